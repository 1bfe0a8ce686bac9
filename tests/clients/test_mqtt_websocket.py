"""MQTT over WebSocket: with paho, and frame by frame."""

import struct

import pytest
from mqtt_packet import PINGREQ, V5, V311, Will, connect, disconnect, packet, publish
from mqtt_wire import tcp
from paho_client import Client
from support import unique, wait_until
from web_socket import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, WebSocket, frame, request


def websocket(server, first=None):
    return WebSocket(tcp(server.address("mqtt_ws")), first)


def opened(server, **how):
    """A WebSocket over which a client is connected; `how` as for CONNECT."""
    made = websocket(server)
    assert made.status == 101, made.head
    made.sendall(connect(V311, unique("ws"), **how))
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
    with websocket(server, first) as refused:
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
    with websocket(server, first) as taken:
        assert taken.status == 101, taken.head


def test_pages_of_listed_origins_may_connect(make_server):
    server = make_server("mqtt.ws_origins=https://console.example,https://other.example")
    for origin, status in [("https://console.example", 101), ("https://example.com", 403), ("http://localhost", 403)]:
        with websocket(server, request(Origin=origin)) as client:
            assert client.status == status, origin


def test_packets_span_frames_and_frames_hold_packets(server):
    topic = f"{unique()}/x"
    with opened(server) as client:
        packets = publish(V311, topic, "a" * 300, 1, 1) + publish(V311, topic, "b", 1, 2)
        pieces = [packets[n : n + 7] for n in range(0, len(packets), 7)]
        client.send(frame(BINARY, pieces[0], last=False))
        for piece in pieces[1:-1]:
            client.send(frame(PING, b"between"), frame(CONTINUATION, piece, last=False))
        client.send(frame(CONTINUATION, pieces[-1]))
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
        for byte in frame(BINARY, packet(PINGREQ)) + frame(PING, b"x") + frame(BINARY, packet(PINGREQ)):
            client.send(bytes([byte]))
        got = {BINARY: b"", PONG: b""}
        while len(got[BINARY]) < 4 or not got[PONG]:
            opcode, payload = client.next()
            got[opcode] += payload
        assert got == {BINARY: b"\xd0\x00\xd0\x00", PONG: b"x"}


@pytest.mark.parametrize(
    "bad, code",
    [
        (frame(TEXT, packet(PINGREQ)), 1003),
        (frame(BINARY, packet(PINGREQ), masked=False), 1002),
        (frame(CONTINUATION, b"x"), 1002),
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
        assert client.next() is None


def test_a_will_is_published_when_a_websocket_ends(server):
    topic = f"{unique()}/will"
    with Client(server) as watcher:
        watcher.subscribe(topic, 1)
        with opened(server, will=Will(topic)):
            pass
        watcher.next_is(topic, "gone")


def test_the_end_of_mqtt_ends_the_websocket(server):
    with opened(server) as client:
        client.sendall(disconnect())
        assert client.next() == (CLOSE, struct.pack(">H", 1000))
        assert client.next() is None
