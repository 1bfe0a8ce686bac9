"""MQTT packets by hand, for exchanges that no client library lets one drive: CONNECT, AUTH, SUBSCRIBE, PUBLISH."""

import socket
import struct

ANSWER_SECONDS = 20
CONNACK, PUBLISH, PUBACK, SUBACK, DISCONNECT, AUTH = 2, 3, 4, 9, 14, 15
METHOD, DATA = 0x15, 0x16


def text(value):
    value = value.encode() if isinstance(value, str) else value
    return struct.pack(">H", len(value)) + value


def packet(first, body):
    length, remaining = b"", len(body)
    while True:
        remaining, digit = remaining >> 7, remaining & 0x7F
        length += bytes([digit | (0x80 if remaining else 0)])
        if not remaining:
            return bytes([first]) + length + body


def properties(*pairs):
    """Each pair: an identifier, and its value as bytes."""
    encoded = b"".join(bytes([identifier]) + value for identifier, value in pairs)
    assert len(encoded) < 128 * 128
    size = len(encoded)
    return (bytes([size]) if size < 128 else bytes([size & 0x7F | 0x80, size >> 7])) + encoded


def varint(body):
    value = shift = at = 0
    while True:
        value |= (body[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not body[at - 1] & 0x80:
            return value, body[at:]


# How each property that the server sends is encoded: bytes, or None for a text or binary.
SIZES = {0x01: 1, 0x02: 4, 0x11: 4, 0x13: 2, 0x17: 1, 0x19: 1, 0x21: 2, 0x22: 2, 0x23: 2, 0x24: 1, 0x25: 1}
SIZES |= {0x27: 4, 0x28: 1, 0x29: 1, 0x2A: 1}


def read_properties(body):
    """The properties at the start of `body` as a dictionary."""
    length, body = varint(body) if body else (0, b"")
    body, found = body[:length], {}
    while body:
        identifier, body = body[0], body[1:]
        if identifier == 0x0B:
            value, body = varint(body)
        elif identifier == 0x26:
            (first,) = struct.unpack(">H", body[:2])
            (second,) = struct.unpack(">H", body[2 + first : 4 + first])
            value, body = body[: 4 + first + second], body[4 + first + second :]
        elif identifier in SIZES:
            value, body = body[: SIZES[identifier]], body[SIZES[identifier] :]
        else:
            (size,) = struct.unpack(">H", body[:2])
            value, body = body[2 : 2 + size], body[2 + size :]
        found[identifier] = value
    return found


class Raw:
    """One connection. Packets are read as (type, flags, body)."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=ANSWER_SECONDS)
        self.bytes = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def _fill(self, size):
        while len(self.bytes) < size:
            more = self.socket.recv(65536)
            if not more:
                return False
            self.bytes += more
        return True

    def read(self):
        """The next packet; None where the server has closed the connection."""
        size = 2
        while True:
            if not self._fill(size):
                return None
            if not self.bytes[size - 1] & 0x80:
                break
            size += 1
        remaining, _ = varint(self.bytes[1:size])
        if not self._fill(size + remaining):
            return None
        first, body = self.bytes[0], self.bytes[size : size + remaining]
        self.bytes = self.bytes[size + remaining :]
        return first >> 4, first & 0xF, body

    def connect(self, client_id, username=None, password=None, clean=True, expiry=0, extra=(), v5=True):
        flags = (2 if clean else 0) | (0x80 if username is not None else 0) | (0x40 if password is not None else 0)
        body = text("MQTT") + bytes([5 if v5 else 4, flags]) + struct.pack(">H", 0)
        if v5:
            body += properties((0x11, struct.pack(">I", expiry)), *extra)
        body += text(client_id)
        body += b"".join(text(part) for part in (username, password) if part is not None)
        self.send(packet(0x10, body))

    def connack(self):
        """(session present, reason, properties) of the CONNACK that comes next."""
        kind, _, body = self.read()
        assert kind == CONNACK, kind
        return body[0], body[1], read_properties(body[2:])

    def auth(self, reason, *pairs):
        self.send(packet(AUTH << 4, bytes([reason]) + properties(*pairs)))

    def read_auth(self):
        """(reason, properties) of the AUTH that comes next."""
        kind, _, body = self.read()
        assert kind == AUTH, (kind, body)
        return (body[0], read_properties(body[1:])) if body else (0, {})

    def disconnected(self):
        """The reason of the DISCONNECT that comes next, behind which the connection ends."""
        kind, _, body = self.read()
        assert kind == DISCONNECT, (kind, body)
        assert self.read() is None
        return body[0] if body else 0

    def subscribe(self, *filters, qos=1):
        """The reasons of the SUBACK."""
        body = struct.pack(">H", 7) + b"\0" + b"".join(text(f) + bytes([qos]) for f in filters)
        self.send(packet(0x82, body))
        kind, _, body = self.read()
        assert kind == SUBACK, (kind, body)
        length, rest = varint(body[2:])
        return list(rest[length:])

    def publish(self, topic, payload, qos=1, retain=False):
        """The reason of the PUBACK."""
        identifier = struct.pack(">H", 9) if qos else b""
        body = text(topic) + identifier + b"\0" + payload.encode()
        self.send(packet(0x30 | qos << 1 | retain, body))
        if qos == 0:
            return None
        kind, _, body = self.read()
        assert kind == PUBACK, (kind, body)
        return body[2] if len(body) > 2 else 0

    def next_message(self):
        """(topic, payload) of the PUBLISH that comes next."""
        kind, flags, body = self.read()
        assert kind == PUBLISH, (kind, body)
        (size,) = struct.unpack(">H", body[:2])
        rest = body[2 + size :]
        if flags & 6:
            self.send(packet(PUBACK << 4, rest[:2]))
            rest = rest[2:]
        length, rest = varint(rest)
        return body[2 : 2 + size].decode(), rest[length:].decode()
