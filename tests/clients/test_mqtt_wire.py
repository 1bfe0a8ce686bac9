"""MQTT packets by hand over a raw socket: what well-behaved clients never send, and what they do not look at."""

import socket
import struct

import pytest
from support import unique, wait_until

ANSWER_SECONDS = 20
V31, V311, V5 = 3, 4, 5
CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, PINGRESP, DISCONNECT = 2, 3, 4, 5, 6, 7, 9, 13, 14

# Properties: their numbers and the format of their values, where that is no text.
EXPIRY, CONTENT, RESPONSE_TOPIC, SESSION_EXPIRY, ASSIGNED, KEEP_ALIVE, WILL_DELAY = 0x02, 0x03, 0x08, 0x11, 0x12, 0x13, 0x18
ASK_PROBLEMS, ASK_RESPONSE, RESPONSE_INFO, REFERENCE, REASON = 0x17, 0x19, 0x1A, 0x1C, 0x1F
RECEIVE_MAXIMUM, ALIAS_MAXIMUM, ALIAS, USER, PACKET_MAXIMUM = 0x21, 0x22, 0x23, 0x26, 0x27
FORMATS = {0x01: "B", EXPIRY: ">I", SESSION_EXPIRY: ">I", KEEP_ALIVE: ">H", ASK_PROBLEMS: "B", WILL_DELAY: ">I"}
FORMATS |= {ASK_RESPONSE: "B", RECEIVE_MAXIMUM: ">H", ALIAS_MAXIMUM: ">H", ALIAS: ">H", PACKET_MAXIMUM: ">I"}
FORMATS |= {0x24: "B", 0x25: "B", 0x28: "B", 0x29: "B", 0x2A: "B"}


def text(value):
    value = value.encode() if isinstance(value, str) else value
    return struct.pack(">H", len(value)) + value


def varint(value):
    digits = b""
    while value >= 0x80:
        digits, value = digits + bytes([value & 0x7F | 0x80]), value >> 7
    return digits + bytes([value])


def properties(known):
    """The properties of a dictionary, or of (number, value) pairs."""
    body = b""
    for number, value in known.items() if isinstance(known, dict) else known:
        body += bytes([number]) + (struct.pack(FORMATS[number], value) if number in FORMATS else text(value))
    return varint(len(body)) + body


def read_properties(body):
    """(the properties, what is behind them)."""
    length, shift, at = 0, 0, 0
    while True:
        length, shift, at = length | (body[at] & 127) << shift, shift + 7, at + 1
        if body[at - 1] < 128:
            break
    found, rest = {}, body[at : at + length]
    while rest:
        number, rest = rest[0], rest[1:]
        if number in FORMATS:
            size = struct.calcsize(FORMATS[number])
            (found[number],), rest = struct.unpack(FORMATS[number], rest[:size]), rest[size:]
        else:
            size = 2 + struct.unpack(">H", rest[:2])[0]
            found[number], rest = rest[2:size].decode(), rest[size:]
    return found, body[at + length :]


def packet(first, *parts):
    body = b"".join(parts)
    return bytes([first]) + varint(len(body)) + body


class Message:
    """A PUBLISH as it came."""

    def __init__(self, flags, body, version):
        self.qos, self.dup, self.retain = flags >> 1 & 3, bool(flags & 8), bool(flags & 1)
        size = 2 + struct.unpack(">H", body[:2])[0]
        self.topic, body = body[2:size].decode(), body[size:]
        self.id = None
        if self.qos:
            self.id, body = struct.unpack(">H", body[:2])[0], body[2:]
        self.properties, self.payload = read_properties(body) if version == V5 else ({}, body)


class Wire:
    """One connection. Without `name` nothing is sent yet."""

    def __init__(self, server, name=None, version=V5, **connect):
        self.version = version
        self.socket = socket.create_connection(server.address("mqtt"), ANSWER_SECONDS)
        self.stream = self.socket.makefile("rb")
        self.next_id = 0
        if name is not None:
            self.send(connect_packet(name, version, **connect))
            kind, _, body = self.read()
            assert kind == CONNACK
            self.present, self.code = body[0], body[1]
            self.granted = read_properties(body[2:])[0] if version == V5 else {}

    def send(self, *packets):
        self.socket.sendall(b"".join(packets))
        return self

    def read(self):
        """(type, flags, body) of the next packet, or None at the end."""
        try:
            head = self.stream.read(1)
            if not head:
                return None
            length, shift = 0, 0
            while True:
                (digit,) = self.stream.read(1)
                length, shift = length | (digit & 127) << shift, shift + 7
                if digit < 128:
                    break
            return head[0] >> 4, head[0] & 15, self.stream.read(length)
        except ConnectionResetError:
            return None

    def expect(self, kind):
        found = self.read()
        assert found and found[0] == kind, found
        return found[2]

    def ack(self, kind, packet_id):
        """Waits for an acknowledgement of this packet; (reason code, properties)."""
        body = self.expect(kind)
        assert struct.unpack(">H", body[:2])[0] == packet_id, body
        if len(body) < 3:
            return 0, {}
        return body[2], read_properties(body[3:])[0] if len(body) > 3 else {}

    def message(self):
        kind, flags, body = self.read()
        assert kind == PUBLISH, (kind, body)
        return Message(flags, body, self.version)

    def ended(self):
        """The DISCONNECT before the end of the connection: (reason code, properties), or None where there is none."""
        last = None
        while found := self.read():
            last = found
        if last and last[0] == DISCONNECT:
            return last[2][0], read_properties(last[2][1:])[0] if len(last[2]) > 1 else {}
        return None

    def publish(self, topic, payload=b"x", qos=0, retain=False, dup=False, id=None, given=()):
        """Sends only; the packet id."""
        if qos:
            self.next_id = id or self.next_id + 1
        body = [text(topic), struct.pack(">H", self.next_id) if qos else b""]
        body += [properties(given)] if self.version == V5 else []
        self.send(packet(0x30 | dup << 3 | qos << 1 | retain, *body, payload))
        return self.next_id

    def subscribe(self, topic, qos=2):
        self.next_id += 1
        given = b"\x00" if self.version == V5 else b""
        self.send(packet(0x82, struct.pack(">H", self.next_id), given, text(topic), bytes([qos])))
        assert self.expect(SUBACK)[-1] == qos
        return self

    def answer(self, kind, packet_id):
        first = kind << 4 | (2 if kind == PUBREL else 0)
        return self.send(packet(first, struct.pack(">H", packet_id)))

    def ping(self):
        """Returns when everything before it is handled, if nothing else comes."""
        self.send(b"\xc0\x00")
        self.expect(PINGRESP)

    def disconnect(self, reason=0, given=()):
        if self.version == V5:
            self.send(packet(0xE0, bytes([reason]), properties(given)))
        else:
            self.send(b"\xe0\x00")
        assert self.ended() is None

    def break_off(self):
        """Ends the connection as a failure of the network does, without waiting for anything."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.close()
        self.socket.close()


def connect_packet(name, version=V5, clean=True, keep_alive=0, given=(), will=None, level=None, protocol=None):
    """`will`: (topic, payload, QoS, retain, properties)."""
    flags, behind = clean << 1, text(name)
    if will:
        topic, payload, qos, retain, will_given = will
        flags |= 4 | qos << 3 | retain << 5
        behind += properties(will_given) if version == V5 else b""
        behind += text(topic) + text(payload)
    head = text(protocol or ("MQIsdp" if version == V31 else "MQTT")) + bytes([level or version, flags])
    head += struct.pack(">H", keep_alive) + (properties(given) if version == V5 else b"")
    return packet(0x10, head, behind)


# Versions


def test_mqtt_3_1_is_served_as_3_1_1(server):
    name, topic = unique("old"), f"{unique()}/x"
    first = Wire(server, name, V31, clean=False)
    assert (first.present, first.code) == (0, 0)
    first.subscribe(topic, 1)
    first.disconnect()
    sender = Wire(server, unique("old") + "-with-a-name-beyond-23-characters", V31)
    assert sender.code == 0
    sender.ack(PUBACK, sender.publish(topic, b"kept", qos=1))
    again = Wire(server, name, V31, clean=False)
    assert (again.present, again.code) == (0, 0), "3.1 has no session present"
    message = again.message()
    assert (message.payload, message.qos) == (b"kept", 1)
    nameless = Wire(server, "", V31)
    assert nameless.code == 2 and nameless.ended() is None


@pytest.mark.parametrize(
    "protocol, level, answer",
    [
        ("MQTT", 6, b"\x00\x84"),
        ("MQTT", 3, b"\x00\x01"),
        ("MQTT", 0x84, b"\x00\x01"),  # a bridge of Mosquitto asks so first
        ("MQIsdp", 4, b"\x00\x01"),
        ("MQIsdp", 0x83, b"\x00\x01"),
    ],
)
def test_versions_that_there_are_not(server, protocol, level, answer):
    wire = Wire(server).send(connect_packet("x", V311, level=level, protocol=protocol))
    assert wire.expect(CONNACK)[:2] == answer
    assert wire.ended() is None


def test_a_malformed_connect_is_answered_in_5_0_only(server):
    for version, body in ((V5, True), (V311, False)):
        good = connect_packet("x", version)
        flags = good.index(bytes([version]), 5) + 1
        wire = Wire(server).send(good[:flags] + bytes([good[flags] | 1]) + good[flags + 1 :])
        if body:
            answer = wire.expect(CONNACK)
            assert answer[:2] == b"\x00\x81" and "reserved flag" in read_properties(answer[2:])[0][REASON]
        assert wire.read() is None


# Topic aliases


def test_topic_aliases_of_a_client(server):
    topic = unique()
    receiver = Wire(server, unique("client")).subscribe(f"{topic}/#", 1)
    sender = Wire(server, unique("client"))
    assert sender.granted[ALIAS_MAXIMUM] == 64
    sent = [("a", 1), ("", 1), ("b", 64), ("", 64), ("", 1), ("c", 1), ("", 1)]
    for n, (level, alias) in enumerate(sent):
        sender.publish(f"{topic}/{level}" if level else "", b"%d" % n, qos=1, given={ALIAS: alias})
    got = [receiver.message() for _ in sent]
    assert [m.topic.removeprefix(topic) for m in got] == ["/a", "/a", "/b", "/b", "/a", "/c", "/c"]
    assert [int(m.payload) for m in got] == list(range(len(sent)))
    assert all(ALIAS not in m.properties for m in got)
    # The table ends with the connection.
    name = unique("client")
    first = Wire(server, name, clean=False, given={SESSION_EXPIRY: 60})
    first.ack(PUBACK, first.publish(topic, qos=1, given={ALIAS: 1}))
    second = Wire(server, name, clean=False, given={SESSION_EXPIRY: 60})
    second.publish("", given={ALIAS: 1})
    assert second.ended()[0] == 0x82


@pytest.mark.parametrize("topic, alias, reason", [("a", 0, 0x94), ("a", 65, 0x94), ("", 7, 0x82), ("", None, 0x82)])
def test_topic_aliases_that_there_are_not(server, topic, alias, reason):
    wire = Wire(server, unique("client"))
    wire.publish(topic, given={} if alias is None else {ALIAS: alias})
    code, said = wire.ended()
    assert code == reason and said[REASON]


def test_the_bytes_of_topic_aliases_are_bounded(server):
    wire = Wire(server, unique("client"))
    for alias in (1, 2, 3):
        wire.publish("x" * 6000, given={ALIAS: alias})
    assert wire.ended()[0] == 0x97


def test_topic_aliases_to_a_client_that_takes_them(server):
    topic = unique()
    receiver = Wire(server, unique("client"), given={ALIAS_MAXIMUM: 2, PACKET_MAXIMUM: 100}).subscribe(f"{topic}/#", 0)
    sender = Wire(server, unique("client"))
    full = topic + "/first"
    # As large as the receiver takes without the three bytes of an alias: 2 + 2 + topic + 1 + payload.
    largest = b"x" * (100 - 5 - len(full))
    levels = ["first", "first", "second", "third", "first", "second"]
    sender.publish(full, largest)
    for level in levels:
        sender.publish(f"{topic}/{level}", b"x")
    message = receiver.message()
    assert (message.topic, message.payload) == (full, largest) and ALIAS not in message.properties
    got = [receiver.message() for _ in levels]
    assert [(m.topic.removeprefix(topic + "/"), m.properties.get(ALIAS)) for m in got] == [
        ("first", 1),
        ("", 1),
        ("second", 2),
        ("third", None),
        ("", 1),
        ("", 2),
    ]


# Message expiry


def test_what_remains_of_the_expiry_is_sent_and_what_expired_is_not(make_server):
    server = make_server()
    name, topic = unique("client"), unique()
    durable = {"clean": False, "given": {SESSION_EXPIRY: 3600}}
    Wire(server, name, **durable).subscribe(f"{topic}/#", 1).disconnect()
    sender = Wire(server, unique("client"))
    for level, expiry in (("short", 1), ("long", 1000), ("forever", None)):
        for retain in (False, True):
            given = {} if expiry is None else {EXPIRY: expiry}
            sender.ack(PUBACK, sender.publish(f"{topic}/{level}", b"x", qos=1, retain=retain, given=given))
    # Retained messages that expire go, and their records with them.
    fresh = lambda: {m.topic.removeprefix(topic): m.properties.get(EXPIRY) for m in retained_now(server, topic)}
    wait_until(lambda: "/short" not in fresh(), "the end of the retained message")
    server.kill9()
    server.restart()
    kept = fresh()
    assert set(kept) == {"/long", "/forever"} and kept["/forever"] is None
    assert 900 < kept["/long"] < 1000, "a second has gone"
    queued = Wire(server, name, **durable)
    assert queued.present
    got = []
    for _ in range(4):
        message = queued.message()
        queued.answer(PUBACK, message.id)
        got.append((message.topic.removeprefix(topic), message.properties.get(EXPIRY, 0)))
    assert [level for level, _ in got] == ["/long", "/long", "/forever", "/forever"]
    assert all(900 < rest < 1000 for level, rest in got if level == "/long")
    queued.ping()


def retained_now(server, topic):
    """What a new subscriber gets."""
    wire = Wire(server, unique("client")).subscribe(f"{topic}/#", 0)
    wire.send(b"\xc0\x00")
    messages = []
    while True:
        kind, flags, body = wire.read()
        if kind == PINGRESP:
            end = f"{topic}/end"
            wire.publish(end)
            while (message := wire.message()).topic != end:
                messages.append(message)
            return messages
        messages.append(Message(flags, body, V5))


# Wills


def will_of(topic, payload=b"gone", delay=None, **more):
    return (topic, payload, 1, False, ({} if delay is None else {WILL_DELAY: delay}) | more.get("given", {}))


def test_a_will_waits_for_its_delay_and_a_client_that_returns_cancels_it(server):
    name, topic = unique("client"), f"{unique()}/gone"
    watcher = Wire(server, unique("client")).subscribe(topic, 1)
    durable = {"clean": False, "given": {SESSION_EXPIRY: 60}}
    first = Wire(server, name, **durable, will=will_of(topic, b"first", 3600))
    first.break_off()
    second = Wire(server, name, **durable, will=will_of(topic, b"second", 1, given={EXPIRY: 100, CONTENT: "text"}))
    assert second.present
    second.break_off()
    message = watcher.message()
    assert message.payload == b"second", "the first was cancelled"
    # The expiry counts from the publication on; the commit before the delivery may take its time.
    assert message.properties[CONTENT] == "text" and 95 <= message.properties[EXPIRY] <= 100


def test_the_end_of_the_session_is_the_latest_time_for_a_will(server):
    name, topic = unique("client"), f"{unique()}/gone"
    watcher = Wire(server, unique("client")).subscribe(topic, 1)
    Wire(server, name, given={SESSION_EXPIRY: 0}, will=will_of(topic, b"no session", 3600)).break_off()
    assert watcher.message().payload == b"no session"
    Wire(server, name, given={SESSION_EXPIRY: 1}, will=will_of(topic, b"expired", 3600)).break_off()
    assert watcher.message().payload == b"expired"
    Wire(server, name, given={SESSION_EXPIRY: 60}, will=will_of(topic, b"clean start", 3600)).break_off()
    Wire(server, name, clean=True)
    assert watcher.message().payload == b"clean start"


def test_a_takeover_publishes_the_will_unless_its_delay_lets_it_wait(server):
    name, topic = unique("client"), f"{unique()}/gone"
    watcher = Wire(server, unique("client")).subscribe(topic, 1)
    durable = {"clean": False, "given": {SESSION_EXPIRY: 60}}
    first = Wire(server, name, **durable, will=will_of(topic, b"waits", 60))
    second = Wire(server, name, **durable, will=will_of(topic, b"at once"))
    assert first.ended()[0] == 0x8E
    third = Wire(server, name, **durable, will=will_of(topic, b"session ends", 60))
    assert second.ended()[0] == 0x8E
    assert watcher.message().payload == b"at once"
    Wire(server, name)
    assert third.ended()[0] == 0x8E
    assert watcher.message().payload == b"session ends"


@pytest.mark.parametrize("reason, published", [(0x00, False), (0x04, True), (0x93, True)])
def test_only_a_normal_disconnect_takes_the_will_back(server, reason, published):
    topic = f"{unique()}/gone"
    watcher = Wire(server, unique("client")).subscribe(f"{topic}/#", 1)
    Wire(server, unique("client"), will=will_of(topic)).disconnect(reason)
    Wire(server, unique("client")).publish(f"{topic}/end")
    assert watcher.message().topic == (topic if published else f"{topic}/end")


@pytest.mark.parametrize("reason", [0x87, 0x8B, 0x8E])
def test_a_disconnect_that_only_servers_send(server, reason):
    wire = Wire(server, unique("client"))
    wire.send(packet(0xE0, bytes([reason, 0])))
    assert wire.ended()[0] == 0x82


def test_wills_of_durable_sessions_survive_the_server(make_server):
    server = make_server()
    topic = unique()
    durable = {"clean": False, "given": {SESSION_EXPIRY: 3600}}
    watch = unique("client")
    Wire(server, watch, **durable).subscribe(f"{topic}/#", 1).disconnect()
    names = {kind: unique("client") for kind in ("broken", "waits", "back", "left")}
    wills = {kind: will_of(f"{topic}/{kind}", delay=delay) for kind, delay in zip(names, (None, 2, 3600, None))}
    wires = {kind: Wire(server, names[kind], **durable, will=wills[kind]) for kind in names}
    wires["left"].disconnect()
    # A DISCONNECT is not acknowledged; what is, behind it, is stored after it.
    sender = Wire(server, unique("client"))
    sender.ack(PUBACK, sender.publish(f"{topic}-other", qos=1))
    server.kill9()
    server.restart()
    watcher = Wire(server, watch, **durable)
    for kind in ("broken", "waits"):
        message = watcher.message()
        assert (message.topic, message.payload) == (f"{topic}/{kind}", b"gone")
        watcher.answer(PUBACK, message.id)
    Wire(server, names["back"], **durable).disconnect()
    watcher.ping()
    # Nothing is left of those that were published, taken back or cancelled.
    server.kill9()
    server.restart()
    watcher = Wire(server, watch, **durable)
    Wire(server, unique("client")).publish(f"{topic}/end", qos=1)
    while (message := watcher.message()).topic != f"{topic}/end":
        # Its PUBACK may not have been stored when the server ended.
        assert message.dup or message.topic == f"{topic}/waits", message.topic


# Flow control


@pytest.mark.parametrize("mixed", [False, True], ids=["QoS 2", "QoS 1 and 2"])
def test_more_than_receive_maximum_in_flight(server, mixed):
    topic, name = unique(), unique("client")
    wire = Wire(server, name, clean=False, given={SESSION_EXPIRY: 60})
    maximum = wire.granted[RECEIVE_MAXIMUM]
    for n in range(maximum):
        wire.publish(topic, qos=2, id=n + 1)
    for n in range(maximum):
        assert wire.ack(PUBREC, n + 1)[0] == 0
    # Again is not more.
    wire.publish(topic, qos=2, id=1, dup=True)
    wire.ack(PUBREC, 1)
    wire.publish(topic, qos=1 if mixed else 2, id=maximum + 1)
    code, said = wire.ended()
    assert code == 0x93 and "Receive Maximum" in said[REASON]
    # What is released makes room.
    wire = Wire(server, name, clean=False, given={SESSION_EXPIRY: 60})
    wire.answer(PUBREL, 1)
    wire.ack(PUBCOMP, 1)
    assert wire.ack(PUBREC, wire.publish(topic, qos=2, id=maximum + 1))[0] == 0


def test_we_keep_to_the_receive_maximum_of_the_client(server):
    topic = unique()
    receiver = Wire(server, unique("client"), given={RECEIVE_MAXIMUM: 2}).subscribe(topic, 2)
    sender = Wire(server, unique("client"))
    for n in range(5):
        sender.publish(topic, b"%d" % n, qos=1 + n % 2)
    first, second = receiver.message(), receiver.message()
    receiver.ping()  # and not a third
    assert {first.payload, second.payload} == {b"0", b"1"}
    for message in (first, second):
        receiver.answer(PUBACK if message.qos == 1 else PUBREC, message.id)
    assert sorted(receiver.read()[0] for _ in range(2)) == [PUBLISH, PUBREL], "one place became free"
    receiver.ping()


def test_packets_that_are_too_large(server):
    topic = unique()
    sender = Wire(server, unique("client"))
    assert sender.granted[PACKET_MAXIMUM] == 1 << 20
    small = Wire(server, unique("client"), given={PACKET_MAXIMUM: 40}).subscribe(topic, 1)
    sender.publish(topic, b"x" * 100, qos=1)
    sender.publish(topic, b"fits", qos=1)
    assert small.message().payload == b"fits"
    # Its head is enough to know.
    sender.send(packet(0x30, text(topic), b"\0", b"x" * (1 << 20))[:64])
    code, said = sender.ended()
    assert code == 0x95 and said[REASON]
    # A Reason String that does not fit is left out, and so is a packet that does not.
    small.publish("", given={ALIAS: 7})
    assert small.ended() == (0x82, {})
    tiny = Wire(server).send(connect_packet(unique("client"), given={PACKET_MAXIMUM: 4}))
    assert tiny.read() is None, "no CONNACK is that small"


# CONNACK and what it leads to


def test_request_and_response_information(server):
    name = unique("client")
    assert Wire(server, name, given={ASK_RESPONSE: 1}).granted[RESPONSE_INFO] == f"response/{name}/"
    assert RESPONSE_INFO not in Wire(server, name).granted
    assert RESPONSE_INFO not in Wire(server, name + "/#", given={ASK_RESPONSE: 1}).granted
    assigned = Wire(server, "", given={ASK_RESPONSE: 1}).granted
    assert assigned[RESPONSE_INFO] == f"response/{assigned[ASSIGNED]}/"


def test_problem_information_is_left_out_where_it_is_not_wanted(make_server):
    server = make_server()
    server.sql("CREATE SOURCE strict ON MQTT 'strict/+' FORMAT JSON INTO strict WITH (reject_invalid = true)")
    for asks, wanted in ((None, True), (1, True), (0, False)):
        wire = Wire(server, unique("client"), given={} if asks is None else {ASK_PROBLEMS: asks})
        code, said = wire.ack(PUBACK, wire.publish("strict/x", b"not JSON", qos=1))
        assert code == 0x99 and (REASON in said) is wanted
        wire.publish("", given={ALIAS: 9})
        code, said = wire.ended()
        assert code == 0x82 and REASON in said, "a DISCONNECT may always say why"


def test_server_keep_alive_and_server_reference(make_server):
    server = make_server("mqtt.keep_alive_maximum=2 minutes", "mqtt.server_reference=other.example:1883")
    for asked, granted in ((0, 120), (60, None), (120, None), (121, 120), (65535, 120)):
        assert Wire(server, unique("client"), keep_alive=asked).granted.get(KEEP_ALIVE) == granted, asked
    Wire(server, unique("client"), V311, keep_alive=600)
    staying, old = Wire(server, unique("client")), Wire(server, unique("client"), V311)
    server.stop()
    assert staying.ended() == (0x9C, {REFERENCE: "other.example:1883"})
    assert old.ended() is None


def test_without_a_server_reference_the_end_is_the_end(make_server):
    server = make_server()
    wire = Wire(server, unique("client"), keep_alive=0)
    assert KEEP_ALIVE not in wire.granted
    server.stop()
    assert wire.ended() == (0x8B, {})


def test_a_session_expiry_in_disconnect(server):
    name = unique("client")
    wire = Wire(server, name)
    wire.send(packet(0xE0, b"\x00", properties({SESSION_EXPIRY: 10})))
    assert wire.ended()[0] == 0x82, "there was none in CONNECT"
    Wire(server, name, given={SESSION_EXPIRY: 60}).disconnect(given={SESSION_EXPIRY: 0})
    assert not Wire(server, name, clean=False, given={SESSION_EXPIRY: 60}).present
    Wire(server, name, clean=False, given={SESSION_EXPIRY: 60}).disconnect(given={SESSION_EXPIRY: 100})
    assert Wire(server, name, clean=False).present


# QoS 2 to subscribers over crashes


@pytest.mark.parametrize("crash", [True, False], ids=["server crash", "connection loss"])
def test_an_outgoing_qos_2_exchange_goes_on_under_its_packet_id(make_server, crash):
    server = make_server()
    topic, name = unique(), unique("client")
    durable = {"clean": False, "given": {SESSION_EXPIRY: 3600}}
    receiver = Wire(server, name, **durable).subscribe(topic, 2)
    sender = Wire(server, unique("client"))
    for n in range(3):
        sender.publish(topic, b"%d" % n, qos=1 if n == 0 else 2)
    for n in range(3):
        if n == 0:
            sender.ack(PUBACK, 1)
        else:
            sender.ack(PUBREC, n + 1)
    sender.publish(topic, b"3", qos=2)
    sender.ack(PUBREC, 4)
    # The subscription's QoS is 2: what came with 1 is sent with 1.
    got = {m.payload: m for m in (receiver.message() for _ in range(4))}
    assert [got[b"%d" % n].qos for n in range(4)] == [1, 2, 2, 2] and not any(m.dup for m in got.values())
    receiver.answer(PUBACK, got[b"0"].id)
    # 1 is done with, 2 is released, 3 is sent.
    for n in (1, 2):
        receiver.answer(PUBREC, got[b"%d" % n].id)
        receiver.ack(PUBREL, got[b"%d" % n].id)
    receiver.answer(PUBCOMP, got[b"1"].id)
    receiver.ping()
    # Behind this acknowledgement, the commits of the packets before it are durable too.
    receiver.ack(PUBACK, receiver.publish(f"{topic}/other", qos=1, id=100))
    if crash:
        server.kill9()
        server.restart()
    else:
        receiver.break_off()
    receiver = Wire(server, name, **durable)
    assert receiver.present
    kinds = {}
    for _ in range(2):
        kind, flags, body = receiver.read()
        kinds[kind] = Message(flags, body, V5) if kind == PUBLISH else struct.unpack(">H", body[:2])[0]
    assert kinds[PUBREL] == got[b"2"].id
    again = kinds[PUBLISH]
    assert (again.id, again.payload, again.dup) == (got[b"3"].id, b"3", True)
    receiver.answer(PUBCOMP, kinds[PUBREL])
    receiver.answer(PUBREC, again.id)
    receiver.ack(PUBREL, again.id)
    receiver.answer(PUBCOMP, again.id)
    receiver.ping()
    receiver.ack(PUBACK, receiver.publish(f"{topic}/other", qos=1, id=101))
    server.kill9()
    server.restart()
    receiver = Wire(server, name, **durable)
    assert receiver.present
    receiver.ping()


def test_acknowledgements_of_what_was_never_sent(server):
    wire = Wire(server, unique("client"))
    wire.answer(PUBACK, 7)
    wire.answer(PUBCOMP, 7)
    wire.answer(PUBREC, 7)
    assert wire.ack(PUBREL, 7)[0] == 0x92
    wire.answer(PUBREL, 7)
    assert wire.ack(PUBCOMP, 7)[0] == 0x92
    old = Wire(server, unique("client"), V311)
    old.answer(PUBREL, 7)
    assert old.ack(PUBCOMP, 7) == (0, {})


def test_a_refused_qos_2_message_is_over(server):
    """A PUBREC with an error ends the exchange: no PUBREL, and its place in flight is free."""
    topic = unique()
    receiver = Wire(server, unique("client"), clean=False, given={SESSION_EXPIRY: 60, RECEIVE_MAXIMUM: 1})
    receiver.subscribe(topic, 2)
    sender = Wire(server, unique("client"))
    sender.publish(topic, b"1", qos=2)
    sender.publish(topic, b"2", qos=2)
    message = receiver.message()
    receiver.send(packet(0x50, struct.pack(">H", message.id), b"\x83"))
    assert receiver.message().payload == b"2"


# Malformed packets and their reasons, in MQTT 5.0

malformed = {
    "QoS 3": (packet(0x36, text("a"), b"\x00\x01\x00"), 0x81),
    "DUP with QoS 0": (packet(0x38, text("a"), b"\x00"), 0x81),
    "packet id 0": (packet(0x32, text("a"), b"\x00\x00\x00"), 0x82),
    "a wildcard in a topic": (packet(0x30, text("a/#"), b"\x00"), 0x81),
    "a topic that is not UTF-8": (packet(0x30, text(b"\xff"), b"\x00"), 0x81),
    "a topic with U+0000": (packet(0x30, text("a\0"), b"\x00"), 0x81),
    "an empty topic": (packet(0x30, text(""), b"\x00"), 0x82),
    "a wildcard in a response topic": (packet(0x30, text("a"), properties({RESPONSE_TOPIC: "b/+"})), 0x81),
    "a property twice": (packet(0x30, text("a"), properties([(EXPIRY, 1), (EXPIRY, 1)])), 0x82),
    "a property of another packet": (packet(0x30, text("a"), properties({WILL_DELAY: 1})), 0x82),
    "a subscription identifier in PUBLISH": (packet(0x30, text("a"), b"\x02\x0b\x01"), 0x82),
    "a payload format indicator of 2": (packet(0x30, text("a"), properties({0x01: 2})), 0x82),
    "an unknown property": (packet(0x30, text("a"), b"\x02\x7e\x00"), 0x81),
    "flags of PUBREL": (packet(0x60, b"\x00\x01"), 0x81),
    "flags of SUBSCRIBE": (packet(0x80, b"\x00\x01\x00", text("a"), b"\x00"), 0x81),
    "a subscription without filters": (packet(0x82, b"\x00\x01\x00"), 0x82),
    "reserved subscription options": (packet(0x82, b"\x00\x01\x00", text("a"), b"\x40"), 0x81),
    "no local on a shared subscription": (packet(0x82, b"\x00\x01\x00", text("$share/g/a"), b"\x04"), 0x82),
    "retain handling 3": (packet(0x82, b"\x00\x01\x00", text("a"), b"\x30"), 0x82),
    "an unsubscription without filters": (packet(0xA2, b"\x00\x01\x00"), 0x82),
    "a reason code of another packet": (packet(0x40, b"\x00\x01\x92"), 0x82),
    "a second CONNECT": (connect_packet("again"), 0x82),
    "a CONNACK": (packet(0x20, b"\x00\x00\x00"), 0x82),
    "a ping with a body": (packet(0xC0, b"\x00"), 0x81),
    "type 0": (packet(0x00), 0x81),
    "a length of five bytes": (b"\x30\xff\xff\xff\xff\x01", 0x81),
}


@pytest.mark.parametrize("sent, reason", malformed.values(), ids=malformed.keys())
def test_every_malformed_packet_has_its_reason(server, sent, reason):
    wire = Wire(server, unique("client")).send(sent)
    code, said = wire.ended()
    assert code == reason and said[REASON]


def test_in_3_1_1_the_connection_is_closed_without_a_word(server):
    for sent in (packet(0x36, text("a"), b"\x00\x01"), packet(0x30, text("")), connect_packet("x", V311)):
        assert Wire(server, unique("client"), V311).send(sent).read() is None


def test_a_payload_that_is_not_the_text_it_says_is_delivered(server):
    """The standard lets a server check the payload format indicator; a device with a wrong one loses nothing here."""
    topic = unique()
    receiver = Wire(server, unique("client")).subscribe(topic, 0)
    Wire(server, unique("client")).publish(topic, b"\xff\xfe", given={0x01: 1})
    message = receiver.message()
    assert (message.payload, message.properties) == (b"\xff\xfe", {0x01: 1})
