"""MQTT over WebSocket: with paho, and frame by frame."""

import base64
import os
import struct

import pytest
import raw_mqtt
from paho_client import V5, V311, Client
from support import unique, wait_until

BINARY, TEXT, CONTINUES, CLOSE, PING, PONG = 2, 1, 0, 8, 9, 10


def request(path="/mqtt", subprotocol="mqtt", **headers):
    lines = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": subprotocol,
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"GET {path} HTTP/1.1\r\n{head}\r\n".encode()


def frame(opcode, payload, last=True, masked=True):
    """A client's frame, masked as the standard demands unless it is not to be."""
    head, mask = bytes([opcode | 0x80 * last]), os.urandom(4)
    bit = 0x80 * masked
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 65536:
        head += struct.pack(">BH", bit | 126, len(payload))
    else:
        head += struct.pack(">BQ", bit | 127, len(payload))
    if not masked:
        return head + payload
    return head + mask + bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))


class WebSocket:
    """A client's side, without any of the help that a library gives."""

    def __init__(self, server, first=None):
        self.socket, self.buffer = raw_mqtt.tcp(server.address("mqtt_ws")), b""
        self.socket.sendall(first or request())
        self.head = self._until(lambda: self.buffer.partition(b"\r\n\r\n")[:2] if b"\r\n\r\n" in self.buffer else None)
        self.status = int(self.head[0].split()[1])
        self.buffer = self.buffer[sum(map(len, self.head)) :]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def _until(self, found):
        while not (value := found()):
            more = self.socket.recv(65536)
            assert more, f"the server closed the connection behind {self.buffer!r}"
            self.buffer += more
        return value

    def send(self, *frames):
        self.socket.sendall(b"".join(frames))

    def next(self):
        """(opcode, payload) of the next frame, which is whole and not masked."""
        self._until(lambda: len(self.buffer) >= 2)
        assert self.buffer[0] & 0xF0 == 0x80 and not self.buffer[1] & 0x80
        size, at = self.buffer[1], 2
        if size > 125:
            at = 4 if size == 126 else 10
            self._until(lambda: len(self.buffer) >= at)
            size = int.from_bytes(self.buffer[2:at], "big")
        self._until(lambda: len(self.buffer) >= at + size)
        opcode, payload, self.buffer = self.buffer[0] & 15, self.buffer[at : at + size], self.buffer[at + size :]
        return opcode, payload

    def is_closed(self):
        return self.socket.recv(1) == b""


def opened(server):
    made = WebSocket(server)
    assert made.status == 101, made.head
    made.send(frame(BINARY, raw_mqtt.connect()))
    assert made.next() == (BINARY, b"\x20\x02\x00\x00")
    return made


@pytest.mark.parametrize("protocol", [V311, V5], ids=["3.1.1", "5.0"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_paho_works_over_websocket(server, protocol, qos):
    table = unique()
    with Client(server, protocol, door="mqtt_ws") as receiver, Client(server, protocol) as sender:
        receiver.subscribe(f"{table}/#", qos)
        for size in (1, 125, 126, 65_535, 65_536, 500_000):
            payload = "x" * size
            sender.publish(f"{table}/x", payload, qos)
            receiver.next_is(f"{table}/x", payload)
        receiver.publish(f"{table}/rows", {"n": 7}, qos)
        receiver.next()
    wait_until(lambda: server.sql(f"SELECT count(*) FROM {table} WHERE n = 7") == [[1]], "the row")


def test_a_session_is_taken_up_over_another_transport(server):
    name, topic = unique("client"), f"{unique()}/x"
    with Client(server, V5, name, durable=True, door="mqtt_ws") as first:
        first.subscribe(topic, 1)
    with Client(server) as sender:
        sender.publish(topic, "kept", 1)
    with Client(server, V5, name, durable=True) as second:
        assert second.session_present
        second.next_is(topic, "kept")


@pytest.mark.parametrize(
    "first, status",
    [
        (request("/"), 404),
        (request("/mqtt/more"), 404),
        (request(subprotocol=None), 400),
        (request(subprotocol="stomp, amqp"), 400),
        (request(Upgrade="h2c"), 426),
        (request(Sec_WebSocket_Version="8"), 426),
        (request(Sec_WebSocket_Key="short"), 400),
        (request(Origin="https://example.com"), 403),
        (request(Filler="x" * 9000), 431),
        (b"POST /mqtt HTTP/1.1\r\n\r\n", 405),
        (b"\x10\x20 not HTTP\r\n\r\n", 400),
    ],
    ids=lambda it: str(it) if isinstance(it, int) else "",
)
def test_what_is_no_upgrade_to_mqtt_is_refused(server, first, status):
    with WebSocket(server, first) as refused:
        assert refused.status == status, refused.head


@pytest.mark.parametrize(
    "first",
    [
        request(subprotocol="mqttv3.1"),
        request(subprotocol="other, mqtt"),
        request("/mqtt?token=x"),
        request(Origin="http://localhost:8080"),
        request(Connection="keep-alive, Upgrade"),
    ],
)
def test_what_clients_send_is_taken(server, first):
    with WebSocket(server, first) as taken:
        assert taken.status == 101, taken.head


def test_pages_of_listed_origins_may_connect(make_server):
    server = make_server("mqtt.ws_origins=https://console.example,https://other.example")
    for origin, status in [("https://console.example", 101), ("https://example.com", 403), ("http://localhost", 403)]:
        with WebSocket(server, request(Origin=origin)) as client:
            assert client.status == status, origin


def test_packets_span_frames_and_frames_hold_packets(server):
    topic = f"{unique()}/x"
    with opened(server) as client:
        packets = raw_mqtt.publish(topic, "a" * 300, 1, 1) + raw_mqtt.publish(topic, "b", 1, 2)
        pieces = [packets[n : n + 7] for n in range(0, len(packets), 7)]
        client.send(frame(BINARY, pieces[0], last=False))
        for piece in pieces[1:-1]:
            client.send(frame(PING, b"between"), frame(CONTINUES, piece, last=False))
        client.send(frame(CONTINUES, pieces[-1]))
        pongs, answers = 0, b""
        while pongs < len(pieces) - 2 or len(answers) < 8:
            opcode, payload = client.next()
            if opcode == PONG:
                assert payload == b"between"
                pongs += 1
            else:
                answers += payload
        assert answers == b"\x40\x02\x00\x01\x40\x02\x00\x02"


def test_frames_byte_by_byte(server):
    with opened(server) as client:
        for byte in frame(BINARY, b"\xc0\x00") + frame(PING, b"x") + frame(BINARY, b"\xc0\x00"):
            client.send(bytes([byte]))
        got = {BINARY: b"", PONG: b""}
        while len(got[BINARY]) < 4 or not got[PONG]:
            opcode, payload = client.next()
            got[opcode] += payload
        assert got == {BINARY: b"\xd0\x00\xd0\x00", PONG: b"x"}


@pytest.mark.parametrize(
    "bad, code",
    [
        (frame(TEXT, b"\xc0\x00"), 1003),
        (frame(BINARY, b"\xc0\x00", masked=False), 1002),
        (frame(CONTINUES, b"x"), 1002),
        (frame(3, b"x"), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(PING, b"x", last=False), 1002),
        (b"\xc2\x80\0\0\0\0", 1002),
        (frame(CLOSE, struct.pack(">H", 1000)), 1000),
        (frame(CLOSE, b""), 1000),
    ],
)
def test_what_breaks_the_rules_is_closed_with_its_code(server, bad, code):
    with opened(server) as client:
        client.send(bad)
        assert client.next() == (CLOSE, struct.pack(">H", code))
        assert client.is_closed()


def test_a_will_is_published_when_a_websocket_ends(server):
    topic = f"{unique()}/will"
    with Client(server) as watcher:
        watcher.subscribe(topic, 1)
        with WebSocket(server) as dying:
            with_will = raw_mqtt.text("MQTT") + b"\x04\x06\0\0"
            with_will += b"".join(map(raw_mqtt.text, (unique(), topic, "gone")))
            dying.send(frame(BINARY, raw_mqtt.packet(0x10, with_will)))
            assert dying.next() == (BINARY, b"\x20\x02\x00\x00")
        watcher.next_is(topic, "gone")


def test_the_end_of_mqtt_ends_the_websocket(server):
    with opened(server) as client:
        client.send(frame(BINARY, b"\xe0\x00"))
        assert client.next() == (CLOSE, struct.pack(">H", 1000))
        assert client.is_closed()
