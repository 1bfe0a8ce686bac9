"""MQTT over WebSocket, chapter 6 of both standards."""

import pytest
from conformance import both_versions, covers, topic
from mqtt_packet import CONNACK, connect, publish, subscribe
from mqtt_wire import Wire, tcp
from support import unique
from web_socket import BINARY, CONTINUATION, PING, TEXT, WebSocket, accept, frame, request


@pytest.fixture
def websocket(broker_server):
    if broker_server is None or "mqtt_ws" not in broker_server.endpoints:
        pytest.skip("there is no listener for WebSocket")
    return broker_server.address("mqtt_ws")


@covers(v5="6.0.0-3 6.0.0-4", v311="6.0.0-3 6.0.0-4")
@pytest.mark.parametrize("protocols", ["mqtt", "other, mqtt", "mqtt, mqttv3.1"])
def test_the_subprotocol_is_mqtt(websocket, protocols):
    first = request(subprotocol=protocols)
    with WebSocket(tcp(websocket), first) as client:
        assert client.status == 101
        assert client.headers["sec-websocket-protocol"] == "mqtt"
        assert client.headers["sec-websocket-accept"] == accept(first)


@covers(v5="6.0.0-1", v311="6.0.0-1")
@both_versions
def test_packets_are_binary_frames_and_others_close(websocket, version):
    client = WebSocket(tcp(websocket))
    with Wire(client, version) as wire:
        wire.connect(unique("ws"))
        client.send(frame(PING, b""))
        wire.ping()
        client.send(frame(TEXT, publish(version, "conf/ws", "1")))
        wire.until_closed()


@covers(v5="6.0.0-2", v311="6.0.0-2")
@both_versions
def test_packets_and_frames_do_not_align(websocket, version):
    client, name = WebSocket(tcp(websocket)), topic()
    with Wire(client, version) as wire:
        stream = connect(version, unique("ws")) + subscribe(version, 1, [(name, 1)]) + publish(version, name, "1", 1, 2)
        for start in range(0, len(stream), 3):
            client.sendall(stream[start : start + 3])
        assert wire.next().kind == CONNACK
        wire.message()
        client.sendall(publish(version, name, "2") + publish(version, name, "3")[:4])
        client.send(frame(BINARY, publish(version, name, "3")[4:6], last=False))
        client.send(frame(CONTINUATION, publish(version, name, "3")[6:]))
        assert [wire.message().payload for _ in range(2)] == [b"2", b"3"]
        wire.publish(name, b"x" * 100_000, 1)
        assert len(wire.message().payload) == 100_000
