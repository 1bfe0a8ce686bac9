"""MQTT packet by packet over any socket, where a client library would be too well behaved."""

import socket
import struct

from support import CLIENT_SECONDS, unique

CONNACK, PUBLISH, PUBACK, DISCONNECT = 2, 3, 4, 14


def packet(first, body):
    length, rest = b"", len(body)
    while True:
        rest, digit = divmod(rest, 128)
        length += bytes([digit | 0x80 if rest else digit])
        if not rest:
            return bytes([first]) + length + body


def text(value):
    encoded = value.encode()
    return struct.pack(">H", len(encoded)) + encoded


def connect(name=None, keep_alive=0, version=4, clean=True, username=None, password=None):
    flags = (2 if clean else 0) | (0x80 if username is not None else 0) | (0x40 if password is not None else 0)
    body = text("MQTT") + bytes([version, flags]) + struct.pack(">H", keep_alive) + (b"\0" if version == 5 else b"")
    body += text(name or unique("raw"))
    return packet(0x10, body + b"".join(text(it) for it in (username, password) if it is not None))


def publish(topic, payload, qos=0, packet_id=1):
    payload = payload.encode() if isinstance(payload, str) else payload
    number = struct.pack(">H", packet_id) if qos else b""
    return packet(0x30 | qos << 1, text(topic) + number + payload)


def subscribe(topic_filter, qos, packet_id=1):
    return packet(0x82, struct.pack(">H", packet_id) + text(topic_filter) + bytes([qos]))


def tcp(address, receive_buffer=None):
    """A socket to the server; with a `receive_buffer` the system takes little that the client does not read."""
    made = socket.socket(socket.AF_INET)
    if receive_buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.settimeout(CLIENT_SECONDS)
    made.connect(address)
    return made


class Raw:
    """A connection over `stream`, which has `recv` and `sendall`."""

    def __init__(self, stream):
        self.stream, self.buffer = stream, b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()

    def send(self, *packets):
        self.stream.sendall(b"".join(packets))

    def open(self, **how):
        """Sends CONNECT; the reason or return code of the CONNACK."""
        self.send(connect(**how))
        kind, body = self.next()
        assert kind == CONNACK
        return body[1]

    def next(self):
        """(type, body) of the next packet; (None, b"") where the server has closed the connection."""
        while True:
            found = self._take()
            if found:
                return found
            try:
                more = self.stream.recv(65536)
            except ConnectionResetError:
                more = b""
            if not more:
                return None, b""
            self.buffer += more

    def _take(self):
        length = shift = 0
        for at, digit in enumerate(self.buffer[1:5], 2):
            length |= (digit & 0x7F) << shift
            shift += 7
            if digit < 0x80:
                if len(self.buffer) < at + length:
                    return None
                kind, body = self.buffer[0] >> 4, self.buffer[at : at + length]
                self.buffer = self.buffer[at + length :]
                return kind, body
        return None
