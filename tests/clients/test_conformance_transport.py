"""MQTT over WebSocket, chapter 6 of both standards."""

import base64
import hashlib
import os
import socket
import struct

import pytest
from conformance import both_versions, covers, topic
from mqtt_wire import ANSWER_SECONDS, CONNACK, Wire, connect, publish, subscribe
from support import unique

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class WebSocket:
    """The side of the client, with the part of a socket's face that `Wire` uses; `send_frame` sends anything."""

    def __init__(self, address, path="/mqtt", protocols="mqtt"):
        self.socket = socket.create_connection(address, ANSWER_SECONDS)
        key = base64.b64encode(os.urandom(16)).decode()
        head = [f"GET {path} HTTP/1.1", f"Host: {address[0]}:{address[1]}", "Upgrade: websocket", "Connection: Upgrade"]
        head += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
        head += [f"Sec-WebSocket-Protocol: {protocols}"] if protocols else []
        self.socket.sendall(("\r\n".join(head) + "\r\n\r\n").encode())
        self._bytes = b""
        while b"\r\n\r\n" not in self._bytes:
            more = self.socket.recv(4096)
            if not more:
                break
            self._bytes += more
        answer, _, self._bytes = self._bytes.partition(b"\r\n\r\n")
        self.status, *lines = answer.decode().split("\r\n")
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        guid = key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.accept = base64.b64encode(hashlib.sha1(guid.encode()).digest()).decode()

    def send_frame(self, payload, opcode=BINARY, final=True):
        length = len(payload)
        head = bytes([0x80 * final | opcode])
        if length < 126:
            head += bytes([0x80 | length])
        elif length < 65536:
            head += bytes([0x80 | 126]) + struct.pack(">H", length)
        else:
            head += bytes([0x80 | 127]) + struct.pack(">Q", length)
        mask = os.urandom(4)
        self.socket.sendall(head + mask + bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload)))

    def sendall(self, payload):
        self.send_frame(payload)

    def _exactly(self, count):
        while len(self._bytes) < count:
            more = self.socket.recv(65536)
            if not more:
                return None
            self._bytes += more
        taken, self._bytes = self._bytes[:count], self._bytes[count:]
        return taken

    def recv(self, _count):
        """The payload of the next frame with data; nothing at the end."""
        while True:
            head = self._exactly(2)
            if head is None:
                return b""
            opcode, length = head[0] & 15, head[1]
            assert not length & 0x80, "a server masks nothing"
            if length == 126:
                (length,) = struct.unpack(">H", self._exactly(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self._exactly(8))
            payload = self._exactly(length) if length else b""
            if opcode == CLOSE or payload is None:
                return b""
            if opcode in (0, BINARY):
                if payload:
                    return payload
            else:
                assert opcode in (PING, PONG), f"a frame of type {opcode}"

    def settimeout(self, seconds):
        self.socket.settimeout(seconds)

    def close(self):
        self.socket.close()


@pytest.fixture
def websocket(broker_server):
    if broker_server is None or "mqtt_ws" not in broker_server.endpoints:
        pytest.skip("there is no listener for WebSocket")
    return broker_server.address("mqtt_ws")


@covers(v5="6.0.0-3 6.0.0-4", v311="6.0.0-3 6.0.0-4")
@pytest.mark.parametrize("protocols", ["mqtt", "other, mqtt", "mqtt, mqttv3.1"])
def test_the_subprotocol_is_mqtt(websocket, protocols):
    client = WebSocket(websocket, protocols=protocols)
    assert client.status.split()[1] == "101"
    assert client.headers["sec-websocket-protocol"] == "mqtt"
    assert client.headers["sec-websocket-accept"] == client.accept
    client.close()


@covers(v5="6.0.0-1", v311="6.0.0-1")
@both_versions
def test_packets_are_binary_frames_and_others_close(websocket, version):
    client = WebSocket(websocket)
    with Wire(None, version, transport=client) as wire:
        wire.connect(unique("ws"))
        client.send_frame(b"", PING)
        wire.ping()
        client.send_frame(publish(version, "conf/ws", "1"), TEXT)
        wire.until_closed()


@covers(v5="6.0.0-2", v311="6.0.0-2")
@both_versions
def test_packets_and_frames_do_not_align(websocket, version):
    client, name = WebSocket(websocket), topic()
    with Wire(None, version, transport=client) as wire:
        stream = connect(version, unique("ws")) + subscribe(version, 1, [(name, 1)]) + publish(version, name, "1", 1, 2)
        for start in range(0, len(stream), 3):
            client.send_frame(stream[start : start + 3])
        assert wire.next().kind == CONNACK
        wire.message()
        client.send_frame(publish(version, name, "2") + publish(version, name, "3")[:4])
        client.send_frame(publish(version, name, "3")[4:6], final=False)
        client.send_frame(publish(version, name, "3")[6:], opcode=0)
        assert [wire.message().payload for _ in range(2)] == [b"2", b"3"]
        wire.publish(name, b"x" * 100_000, 1)
        assert len(wire.message().payload) == 100_000
