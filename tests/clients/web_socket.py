"""WebSocket (RFC 6455) from the client's side, frame by frame, without any of the help that a library gives."""

import base64
import hashlib
import os
import re
import struct

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def request(path="/mqtt", subprotocol="mqtt", **headers):
    """An upgrade. Header names are written with underscores; one with the value None is left out."""
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


def accept(request):
    """The Sec-WebSocket-Accept that answers the key in a request."""
    key = re.search(rb"Sec-WebSocket-Key: (.*)\r\n", request)[1]
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()


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
    """A connection over `stream`, a socket with or without TLS, which begins with the bytes `first`.

    It is a stream itself, for `mqtt_wire.Wire`: what is sent is a binary frame, what is received is the payload of one.
    """

    def __init__(self, stream, first=None):
        self.socket, self._bytes = stream, b""
        self.socket.sendall(first or request())
        while b"\r\n\r\n" not in self._bytes:
            assert self._more(), f"the server closed the connection behind {self._bytes!r}"
        self.head, _, self._bytes = self._bytes.partition(b"\r\n\r\n")
        status, *lines = self.head.decode().split("\r\n")
        self.status = int(status.split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _more(self):
        more = self.socket.recv(65536)
        self._bytes += more
        return more

    def _take(self, count):
        while len(self._bytes) < count:
            assert self._more(), f"the server closed the connection behind {self._bytes!r}"
        taken, self._bytes = self._bytes[:count], self._bytes[count:]
        return taken

    def send(self, *frames):
        self.socket.sendall(b"".join(frames))

    def next(self):
        """(opcode, payload) of the next frame, which is whole and not masked; None at the end of the connection."""
        if not self._bytes and not self._more():
            return None
        first, size = self._take(2)
        assert first & 0xF0 == 0x80 and not size & 0x80, (first, size)
        if size > 125:
            size = int.from_bytes(self._take(2 if size == 126 else 8), "big")
        return first & 0x0F, self._take(size)

    def sendall(self, payload):
        self.send(frame(BINARY, payload))

    def recv(self, _count):
        """The payload of the next frame that has one; nothing at the end, whichever of both protocols says it."""
        while (found := self.next()) is not None:
            opcode, payload = found
            if opcode == CLOSE:
                break
            assert opcode in (BINARY, PING, PONG), f"a frame of type {opcode}"
            if opcode == BINARY and payload:
                return payload
        return b""

    def settimeout(self, seconds):
        self.socket.settimeout(seconds)

    def close(self):
        self.socket.close()
