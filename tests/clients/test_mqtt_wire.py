"""MQTT packets by hand over a raw socket: what well-behaved clients never send, and what they do not look at."""

import pytest
from mqtt_packet import (
    CONNACK,
    PINGREQ,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    UNSUBSCRIBE,
    V5,
    V31,
    V311,
    Will,
    ack,
    connect,
    disconnect,
    one_property,
    packet,
    publish,
    subscribe,
)
from mqtt_wire import Wire, connected
from support import unique, wait_until

DURABLE = {"clean": False, "props": {"session_expiry": 3600}}


def client(server, client_id=None, version=V5, **how):
    return connected(server.address("mqtt"), version, client_id, **how)


def subscriber(server, topic_filter, qos, client_id=None, **how):
    """A client with one subscription."""
    wire = client(server, client_id, **how)
    assert wire.subscribe((topic_filter, qos)) == [qos]
    return wire


def unconnected(server, version=V5):
    return Wire(server.address("mqtt"), version)


# Versions


def test_mqtt_3_1_is_served_as_3_1_1(server):
    name, topic = unique("old"), f"{unique()}/x"
    first = subscriber(server, topic, 1, name, version=V31, clean=False)
    assert not first.connack.session_present
    first.disconnect()
    sender = client(server, unique("old") + "-with-a-name-beyond-23-characters", V31)
    sender.publish(topic, b"kept", 1)
    again = client(server, name, V31, clean=False)
    assert not again.connack.session_present, "3.1 has no session present"
    message = again.message()
    assert (message.payload, message.qos) == (b"kept", 1)
    assert client(server, "", V31, expect=2).ended() is None


@pytest.mark.parametrize(
    "name, level, answer",
    [
        ("MQTT", 6, b"\x00\x84"),
        ("MQTT", 3, b"\x00\x01"),
        ("MQTT", 0x84, b"\x00\x01"),  # a bridge of Mosquitto asks so first
        ("MQIsdp", 4, b"\x00\x01"),
        ("MQIsdp", 0x83, b"\x00\x01"),
    ],
)
def test_versions_that_there_are_not(server, name, level, answer):
    said = unconnected(server).send(connect(V311, "x", name=name, level=level)).bytes_until_closed()
    assert said[0] == CONNACK << 4 and said[1] == len(said) - 2 and said[2:4] == answer


def test_a_malformed_connect_is_answered_in_5_0_only(server):
    (connack,) = unconnected(server).send(connect(V5, "x", flags=0x03)).until_closed()
    assert (connack.kind, connack.session_present, connack.reason) == (CONNACK, False, 0x81)
    assert "reserved flag" in connack.props["reason_string"]
    assert unconnected(server, V311).send(connect(V311, "x", flags=0x03)).until_closed() == []


# Topic aliases


def test_topic_aliases_of_a_client(server):
    topic = unique()
    receiver = subscriber(server, f"{topic}/#", 1)
    sender = client(server)
    assert sender.connack.props["topic_alias_maximum"] == 64
    sent = [("a", 1), ("", 1), ("b", 64), ("", 64), ("", 1), ("c", 1), ("", 1)]
    for n, (level, alias) in enumerate(sent):
        sender.publish(f"{topic}/{level}" if level else "", str(n), 1, props={"topic_alias": alias})
    got = [receiver.message() for _ in sent]
    assert [m.topic.removeprefix(topic) for m in got] == ["/a", "/a", "/b", "/b", "/a", "/c", "/c"]
    assert [int(m.payload) for m in got] == list(range(len(sent)))
    assert all("topic_alias" not in m.props for m in got)
    # The table ends with the connection.
    name = unique("client")
    first = client(server, name, **DURABLE)
    first.publish(topic, "x", 1, props={"topic_alias": 1})
    second = client(server, name, **DURABLE)
    second.publish("", "x", props={"topic_alias": 1})
    assert second.ended().reason == 0x82


@pytest.mark.parametrize("topic, alias, reason", [("a", 0, 0x94), ("a", 65, 0x94), ("", 7, 0x82), ("", None, 0x82)])
def test_topic_aliases_that_there_are_not(server, topic, alias, reason):
    wire = client(server)
    wire.publish(topic, "x", props={} if alias is None else {"topic_alias": alias})
    end = wire.ended()
    assert end.reason == reason and end.props["reason_string"]


def test_the_bytes_of_topic_aliases_are_bounded(server):
    wire = client(server)
    for alias in (1, 2, 3):
        wire.publish("x" * 6000, "x", props={"topic_alias": alias})
    assert wire.ended().reason == 0x97


def test_topic_aliases_to_a_client_that_takes_them(server):
    topic = unique()
    receiver = subscriber(server, f"{topic}/#", 0, props={"topic_alias_maximum": 2, "maximum_packet_size": 100})
    sender = client(server)
    full = topic + "/first"
    # As large as the receiver takes without the three bytes of an alias: 2 + 2 + topic + 1 + payload.
    largest = b"x" * (100 - 5 - len(full))
    levels = ["first", "first", "second", "third", "first", "second"]
    sender.publish(full, largest)
    for level in levels:
        sender.publish(f"{topic}/{level}", "x")
    message = receiver.message()
    assert (message.topic, message.payload) == (full, largest) and "topic_alias" not in message.props
    got = [receiver.message() for _ in levels]
    assert [(m.topic.removeprefix(topic + "/"), m.props.get("topic_alias")) for m in got] == [
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
    subscriber(server, f"{topic}/#", 1, name, **DURABLE).disconnect()
    sender = client(server)
    for level, expiry in (("short", 1), ("long", 1000), ("forever", None)):
        for retain in (False, True):
            props = {} if expiry is None else {"message_expiry": expiry}
            sender.publish(f"{topic}/{level}", "x", 1, retain, props)
    # Retained messages that expire go, and their records with them.
    fresh = lambda: {m.topic.removeprefix(topic): m.props.get("message_expiry") for m in retained_now(server, topic)}  # noqa: E731
    wait_until(lambda: "/short" not in fresh(), "the end of the retained message")
    server.kill9()
    server.restart()
    kept = fresh()
    assert set(kept) == {"/long", "/forever"} and kept["/forever"] is None
    assert 900 < kept["/long"] < 1000, "a second has gone"
    queued = client(server, name, **DURABLE)
    assert queued.connack.session_present
    got = [queued.next_is(PUBLISH) for _ in range(4)]
    for message in got:
        queued.acknowledge(message)
    assert [m.topic.removeprefix(topic) for m in got] == ["/long", "/long", "/forever", "/forever"]
    assert all(900 < m.props["message_expiry"] < 1000 for m in got[:2])
    queued.hears_nothing()


def retained_now(server, topic):
    """What a new subscriber gets."""
    wire, end = subscriber(server, f"{topic}/#", 0), f"{topic}/end"
    wire.publish(end)
    return wire.messages_before(end)


# Wills


def will_of(topic, payload="gone", delay=None, **props):
    return Will(topic, payload, 1, props=({} if delay is None else {"will_delay": delay}) | props)


def test_a_will_waits_for_its_delay_and_a_client_that_returns_cancels_it(server):
    name, topic = unique("client"), f"{unique()}/gone"
    watcher = subscriber(server, topic, 1)
    client(server, name, **DURABLE, will=will_of(topic, "first", 3600)).break_off()
    will = will_of(topic, "second", 1, message_expiry=100, content_type="text")
    second = client(server, name, **DURABLE, will=will)
    assert second.connack.session_present
    second.break_off()
    message = watcher.message()
    assert message.payload == b"second", "the first was cancelled"
    # The expiry counts from the publication on; the commit before the delivery may take its time.
    assert message.props["content_type"] == "text" and 95 <= message.props["message_expiry"] <= 100


def test_the_end_of_the_session_is_the_latest_time_for_a_will(server):
    name, topic = unique("client"), f"{unique()}/gone"
    watcher = subscriber(server, topic, 1)
    for payload, expiry in (("no session", 0), ("expired", 1)):
        client(server, name, props={"session_expiry": expiry}, will=will_of(topic, payload, 3600)).break_off()
        assert watcher.message().payload == payload.encode()
    client(server, name, props={"session_expiry": 60}, will=will_of(topic, "clean start", 3600)).break_off()
    client(server, name, clean=True)
    assert watcher.message().payload == b"clean start"


def test_a_takeover_publishes_the_will_unless_its_delay_lets_it_wait(server):
    name, topic = unique("client"), f"{unique()}/gone"
    watcher = subscriber(server, topic, 1)
    first = client(server, name, **DURABLE, will=will_of(topic, "waits", 60))
    second = client(server, name, **DURABLE, will=will_of(topic, "at once"))
    assert first.ended().reason == 0x8E
    third = client(server, name, **DURABLE, will=will_of(topic, "session ends", 60))
    assert second.ended().reason == 0x8E
    assert watcher.message().payload == b"at once"
    client(server, name)
    assert third.ended().reason == 0x8E
    assert watcher.message().payload == b"session ends"


@pytest.mark.parametrize("reason, published", [(0x00, False), (0x04, True), (0x93, True)])
def test_only_a_normal_disconnect_takes_the_will_back(server, reason, published):
    topic = f"{unique()}/gone"
    watcher = subscriber(server, f"{topic}/#", 1)
    client(server, will=will_of(topic)).disconnect(reason)
    client(server).publish(f"{topic}/end", "x")
    assert watcher.message().topic == (topic if published else f"{topic}/end")


@pytest.mark.parametrize("reason", [0x87, 0x8B, 0x8E])
def test_a_disconnect_that_only_servers_send(server, reason):
    assert client(server).send(disconnect(reason, {})).ended().reason == 0x82


def test_wills_of_durable_sessions_survive_the_server(make_server):
    server = make_server()
    topic = unique()
    watch = unique("client")
    subscriber(server, f"{topic}/#", 1, watch, **DURABLE).disconnect()
    names = {kind: unique("client") for kind in ("broken", "waits", "back", "left")}
    delays = {"broken": None, "waits": 2, "back": 3600, "left": None}
    wills = {kind: will_of(f"{topic}/{kind}", delay=delay) for kind, delay in delays.items()}
    wires = {kind: client(server, names[kind], **DURABLE, will=wills[kind]) for kind in names}
    wires["left"].disconnect()
    # A DISCONNECT is not acknowledged; what is, behind it, is stored after it.
    client(server).publish(f"{topic}-other", "x", 1)
    server.kill9()
    server.restart()
    watcher = client(server, watch, **DURABLE)
    for kind in ("broken", "waits"):
        message = watcher.message()
        assert (message.topic, message.payload) == (f"{topic}/{kind}", b"gone")
    client(server, names["back"], **DURABLE).disconnect()
    watcher.hears_nothing()
    # Nothing is left of those that were published, taken back or cancelled.
    server.kill9()
    server.restart()
    watcher = client(server, watch, **DURABLE)
    client(server).publish(f"{topic}/end", "x", 1)
    for message in watcher.messages_before(f"{topic}/end"):
        # Its PUBACK may not have been stored when the server ended.
        assert message.dup or message.topic == f"{topic}/waits", message


# Flow control


@pytest.mark.parametrize("mixed", [False, True], ids=["QoS 2", "QoS 1 and 2"])
def test_more_than_receive_maximum_in_flight(server, mixed):
    topic, name = unique(), unique("client")
    wire = client(server, name, **DURABLE)
    maximum = wire.connack.props["receive_maximum"]
    for n in range(maximum):
        wire.send(publish(V5, topic, "x", 2, n + 1))
    for n in range(maximum):
        assert wire.next_is(PUBREC, n + 1).reason == 0
    # Again is not more.
    wire.send(publish(V5, topic, "x", 2, 1, dup=True))
    wire.next_is(PUBREC, 1)
    wire.send(publish(V5, topic, "x", 1 if mixed else 2, maximum + 1))
    end = wire.ended()
    assert end.reason == 0x93 and "Receive Maximum" in end.props["reason_string"]
    # What is released makes room.
    wire = client(server, name, **DURABLE)
    wire.send(ack(PUBREL, 1))
    wire.next_is(PUBCOMP, 1)
    wire.send(publish(V5, topic, "x", 2, maximum + 1))
    assert wire.next_is(PUBREC, maximum + 1).reason == 0


def test_we_keep_to_the_receive_maximum_of_the_client(server):
    topic = unique()
    receiver = subscriber(server, topic, 2, props={"receive_maximum": 2})
    sender = client(server)
    for n in range(5):
        sender.send(publish(V5, topic, str(n), 1 + n % 2, n + 1))
    first, second = receiver.next_is(PUBLISH), receiver.next_is(PUBLISH)
    receiver.hears_nothing()  # and not a third
    assert {first.payload, second.payload} == {b"0", b"1"}
    for message in (first, second):
        receiver.send(ack(PUBACK if message.qos == 1 else PUBREC, message.packet_id))
    assert sorted(receiver.next().kind for _ in range(2)) == [PUBLISH, PUBREL], "one place became free"
    receiver.hears_nothing()


def test_packets_that_are_too_large(server):
    topic = unique()
    sender = client(server)
    assert sender.connack.props["maximum_packet_size"] == 1 << 20
    small = subscriber(server, topic, 1, props={"maximum_packet_size": 40})
    sender.publish(topic, b"x" * 100, 1)
    sender.publish(topic, "fits", 1)
    assert small.message().payload == b"fits"
    # Its head is enough to know.
    end = sender.send(publish(V5, topic, b"x" * (1 << 20))[:64]).ended()
    assert end.reason == 0x95 and end.props["reason_string"]
    # A Reason String that does not fit is left out, and so is a packet that does not.
    small.publish("", "x", props={"topic_alias": 7})
    end = small.ended()
    assert (end.reason, end.props) == (0x82, {})
    tiny = unconnected(server).send(connect(V5, unique("client"), props={"maximum_packet_size": 4}))
    assert tiny.next() is None, "no CONNACK is that small"


# CONNACK and what it leads to


def test_request_and_response_information(server):
    name, asks = unique("client"), {"props": {"request_response_information": 1}}
    assert client(server, name, **asks).connack.props["response_information"] == f"response/{name}/"
    assert "response_information" not in client(server, name).connack.props
    assert "response_information" not in client(server, name + "/#", **asks).connack.props
    assigned = client(server, "", **asks).connack.props
    assert assigned["response_information"] == f"response/{assigned['assigned_client_id']}/"


def test_problem_information_is_left_out_where_it_is_not_wanted(make_server):
    server = make_server()
    server.sql("CREATE SOURCE strict ON MQTT 'strict/+' FORMAT JSON INTO strict WITH (reject_invalid = true)")
    for asks, wanted in ((None, True), (1, True), (0, False)):
        wire = client(server, props={} if asks is None else {"request_problem_information": asks})
        answer = wire.publish("strict/x", "not JSON", 1)
        assert answer.reason == 0x99 and ("reason_string" in answer.props) is wanted
        wire.publish("", "x", props={"topic_alias": 9})
        end = wire.ended()
        assert end.reason == 0x82 and "reason_string" in end.props, "a DISCONNECT may always say why"


def test_server_keep_alive_and_server_reference(make_server):
    server = make_server("mqtt.keep_alive_maximum=2 minutes", "mqtt.server_reference=other.example:1883")
    for asked, granted in ((0, 120), (60, None), (120, None), (121, 120), (65535, 120)):
        assert client(server, keep_alive=asked).connack.props.get("server_keep_alive") == granted, asked
    client(server, version=V311, keep_alive=600)
    staying, old = client(server), client(server, version=V311)
    server.stop()
    end = staying.ended()
    assert (end.reason, end.props) == (0x9C, {"server_reference": "other.example:1883"})
    assert old.ended() is None


def test_without_a_server_reference_the_end_is_the_end(make_server):
    server = make_server()
    wire = client(server, keep_alive=0)
    assert "server_keep_alive" not in wire.connack.props
    server.stop()
    end = wire.ended()
    assert (end.reason, end.props) == (0x8B, {})


def test_a_session_expiry_in_disconnect(server):
    name = unique("client")
    end = client(server, name).send(disconnect(0, {"session_expiry": 10})).ended()
    assert end.reason == 0x82, "there was none in CONNECT"
    client(server, name, props={"session_expiry": 60}).disconnect(0, {"session_expiry": 0})
    again = client(server, name, **DURABLE)
    assert not again.connack.session_present
    again.disconnect(0, {"session_expiry": 100})
    assert client(server, name, clean=False).connack.session_present


# QoS 2 to subscribers over crashes


@pytest.mark.parametrize("crash", [True, False], ids=["server crash", "connection loss"])
def test_an_outgoing_qos_2_exchange_goes_on_under_its_packet_id(make_server, crash):
    server = make_server()
    topic, name = unique(), unique("client")
    receiver = subscriber(server, topic, 2, name, **DURABLE)
    sender = client(server)
    for n in range(4):
        sender.send(publish(V5, topic, str(n), 1 if n == 0 else 2, n + 1))
    for n in range(4):
        sender.next_is(PUBACK if n == 0 else PUBREC, n + 1)
    # The subscription's QoS is 2: what came with 1 is sent with 1.
    got = [receiver.next_is(PUBLISH) for _ in range(4)]
    assert [(int(m.payload), m.qos, m.dup) for m in sorted(got, key=lambda m: m.payload)] == [
        (0, 1, False),
        (1, 2, False),
        (2, 2, False),
        (3, 2, False),
    ]
    ids = {int(m.payload): m.packet_id for m in got}
    receiver.send(ack(PUBACK, ids[0]))
    # 1 is done with, 2 is released, 3 is sent.
    for n in (1, 2):
        receiver.send(ack(PUBREC, ids[n]))
        receiver.next_is(PUBREL, ids[n])
    receiver.send(ack(PUBCOMP, ids[1]))
    receiver.hears_nothing()
    # Behind this acknowledgement, the commits of the packets before it are durable too.
    receiver.publish(f"{topic}/other", "x", 1)
    if crash:
        server.kill9()
        server.restart()
    else:
        receiver.break_off()
    receiver = client(server, name, **DURABLE)
    assert receiver.connack.session_present
    found = {it.kind: it for it in (receiver.next(), receiver.next())}
    assert found[PUBREL].packet_id == ids[2]
    again = found[PUBLISH]
    assert (again.packet_id, again.payload, again.dup) == (ids[3], b"3", True)
    receiver.send(ack(PUBCOMP, ids[2]), ack(PUBREC, ids[3]))
    receiver.next_is(PUBREL, ids[3])
    receiver.send(ack(PUBCOMP, ids[3]))
    receiver.hears_nothing()
    receiver.publish(f"{topic}/other", "x", 1)
    server.kill9()
    server.restart()
    receiver = client(server, name, **DURABLE)
    assert receiver.connack.session_present
    receiver.hears_nothing()


def test_acknowledgements_of_what_was_never_sent(server):
    wire = client(server)
    wire.send(ack(PUBACK, 7), ack(PUBCOMP, 7), ack(PUBREC, 7))
    assert wire.next_is(PUBREL, 7).reason == 0x92
    wire.send(ack(PUBREL, 7))
    assert wire.next_is(PUBCOMP, 7).reason == 0x92
    old = client(server, version=V311)
    old.send(ack(PUBREL, 7))
    assert old.next_is(PUBCOMP, 7).size == 4


def test_a_refused_qos_2_message_is_over(server):
    """A PUBREC with an error ends the exchange: no PUBREL, and its place in flight is free."""
    topic = unique()
    receiver = subscriber(server, topic, 2, clean=False, props={"session_expiry": 60, "receive_maximum": 1})
    client(server).send(publish(V5, topic, "1", 2, 1), publish(V5, topic, "2", 2, 2)).next_is(PUBREC, 1)
    message = receiver.next_is(PUBLISH)
    receiver.send(ack(PUBREC, message.packet_id, 0x83))
    assert receiver.next_is(PUBLISH).payload == b"2"


# Malformed packets and their reasons, in MQTT 5.0

malformed = {
    "QoS 3": (publish(V5, "a", qos=3, packet_id=1), 0x81),
    "DUP with QoS 0": (publish(V5, "a", dup=True), 0x81),
    "packet id 0": (publish(V5, "a", qos=1, packet_id=0), 0x82),
    "a wildcard in a topic": (publish(V5, "a/#"), 0x81),
    "a topic that is not UTF-8": (publish(V5, b"\xff"), 0x81),
    "a topic with U+0000": (publish(V5, "a\0"), 0x81),
    "an empty topic": (publish(V5, ""), 0x82),
    "a wildcard in a response topic": (publish(V5, "a", props={"response_topic": "b/+"}), 0x81),
    "a property twice": (publish(V5, "a", props=one_property("message_expiry", 1) * 2), 0x82),
    "a property of another packet": (publish(V5, "a", props={"will_delay": 1}), 0x82),
    "a subscription identifier in PUBLISH": (publish(V5, "a", props={"subscription_identifier": 1}), 0x82),
    "a payload format indicator of 2": (publish(V5, "a", props={"payload_format": 2}), 0x82),
    "an unknown property": (publish(V5, "a", props=b"\x7e\x00"), 0x81),
    "flags of PUBREL": (packet(PUBREL, b"\x00\x01"), 0x81),
    "flags of SUBSCRIBE": (subscribe(V5, 1, [("a", 0)], flags=0), 0x81),
    "a subscription without filters": (subscribe(V5, 1, []), 0x82),
    "reserved subscription options": (subscribe(V5, 1, [("a", 0x40)]), 0x81),
    "no local on a shared subscription": (subscribe(V5, 1, [("$share/g/a", 0x04)]), 0x82),
    "retain handling 3": (subscribe(V5, 1, [("a", 0x30)]), 0x82),
    "an unsubscription without filters": (packet(UNSUBSCRIBE, b"\x00\x01\x00", 2), 0x82),
    "a reason code of another packet": (ack(PUBACK, 1, 0x92), 0x82),
    "a second CONNECT": (connect(V5, "again"), 0x82),
    "a CONNACK": (packet(CONNACK, b"\x00\x00\x00"), 0x82),
    "a ping with a body": (packet(PINGREQ, b"\x00"), 0x81),
    "type 0": (packet(0), 0x81),
    "a length of five bytes": (b"\x30\xff\xff\xff\xff\x01", 0x81),
}


@pytest.mark.parametrize("sent, reason", malformed.values(), ids=malformed.keys())
def test_every_malformed_packet_has_its_reason(server, sent, reason):
    end = client(server).send(sent).ended()
    assert end.reason == reason and end.props["reason_string"]


def test_in_3_1_1_the_connection_is_closed_without_a_word(server):
    for sent in (publish(V311, "a", qos=3, packet_id=1), publish(V311, ""), connect(V311, "x")):
        assert client(server, version=V311).send(sent).next() is None


def test_a_payload_that_is_not_the_text_it_says_is_delivered(server):
    """The standard lets a server check the payload format indicator; a device with a wrong one loses nothing here."""
    topic = unique()
    receiver = subscriber(server, topic, 0)
    client(server).publish(topic, b"\xff\xfe", props={"payload_format": 1})
    message = receiver.message()
    assert (message.payload, message.props) == (b"\xff\xfe", {"payload_format": 1})
