"""MQTT over a socket, packet by packet: what a client library hides or would not do, a test does here.

Over TCP, TLS, WebSocket or any other stream; everything that waits has a deadline. `mqtt_packet` builds the packets and checks
those that arrive.
"""

import itertools
import os
import select
import socket
import ssl
import struct
import time

from mqtt_packet import (
    CONNACK,
    DISCONNECT,
    NAMES,
    PINGREQ,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    UNSUBACK,
    V5,
    Malformed,
    Reader,
    ack,
    connect,
    disconnect,
    packet,
    parse,
    publish,
    subscribe,
    unsubscribe,
)
from support import unique

# A busy machine may take long to answer; a test that passes never waits for this.
ANSWER_SECONDS = float(os.environ.get("MQTT_ANSWER_SECONDS", "20"))

# Streams: what has `recv`, `sendall`, `settimeout` and `close`. `web_socket.WebSocket` is another one.


def tcp(address, receive_buffer=None):
    """A socket to the server; with a `receive_buffer` the system takes little that the client does not read."""
    made = socket.socket(socket.AF_INET)
    if receive_buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.settimeout(ANSWER_SECONDS)
    made.connect(address)
    return made


def tls(address, context, **how):
    """A connection that is through its handshake; `how` as for `SSLContext.wrap_socket`."""
    return context.wrap_socket(tcp(address), server_hostname="localhost", **how)


class Wire:
    """A connection of one version of the protocol to `(host, port)`, or over a stream that was made before."""

    def __init__(self, to, version=V5):
        self.version = version
        self.socket = tcp(to) if isinstance(to, tuple) else to
        self._ids = itertools.count(1)
        self.waiting = []  # packets that arrived while another one was waited for
        self._bytes = b""
        self.connack = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def next_id(self):
        return next(self._ids)

    def send(self, *packets):
        self.socket.sendall(b"".join(packets))
        return self

    # Taking what arrives

    def _receive(self):
        """What has arrived; nothing at the end of the connection."""
        try:
            return self.socket.recv(65536)
        except TimeoutError:  # an `ssl.SSLError` may be one
            raise
        except (ConnectionResetError, BrokenPipeError, ssl.SSLError):
            return b""

    def _read(self, count):
        """Exactly so many bytes; nothing at a clean end before the first, an error at one after it."""
        while len(self._bytes) < count:
            more = self._receive()
            if not more:
                if self._bytes:
                    raise Malformed(f"the connection ends inside a packet: {self._bytes!r}")
                return None
            self._bytes += more
        taken, self._bytes = self._bytes[:count], self._bytes[count:]
        return taken

    def _read_packet(self):
        head = self._read(1)
        if head is None:
            return None
        kind, flags = head[0] >> 4, head[0] & 0x0F
        digits = b""
        while not digits or digits[-1] & 0x80:
            digit = self._read(1)
            if digit is None or len(digits) == 4:
                raise Malformed(f"the length of a {NAMES[kind]}")
            digits += digit
        length = Reader(digits).variable()
        body = self._read(length) if length else b""
        if body is None:
            raise Malformed(f"the connection ends inside a {NAMES[kind]}")
        return parse(self.version, kind, flags, body, 1 + len(digits) + length)

    def next(self, seconds=ANSWER_SECONDS):
        """The next packet, whatever it is; None at the end of the connection."""
        if self.waiting:
            return self.waiting.pop(0)
        self.socket.settimeout(seconds)
        try:
            return self._read_packet()
        except TimeoutError:
            raise AssertionError(f"nothing arrived for {seconds} s") from None

    def has_arrived(self, seconds):
        """Whether anything arrives in this time, the end of the connection included."""
        return bool(self.waiting or self._bytes or select.select([self.socket], [], [], seconds)[0])

    def next_is(self, kind, packet_id=None):
        """The next packet, which must be of this type (and identifier)."""
        found = self.next()
        assert found is not None, f"closed instead of {NAMES[kind]}"
        assert found.kind == kind and packet_id in (None, found.packet_id), (
            f"{found}, and not {NAMES[kind]} {packet_id or ''}"
        )
        return found

    def expect(self, kind, packet_id=None, seconds=ANSWER_SECONDS):
        """The next packet of this type (and identifier); others wait for their turn."""
        found, passed = None, []
        deadline = time.monotonic() + seconds
        while True:
            found = self.next(max(0.01, deadline - time.monotonic()))
            assert found is not None, f"closed while {NAMES[kind]} was waited for; before: {passed}"
            if found.kind == kind and (packet_id is None or found.packet_id == packet_id):
                self.waiting = passed + self.waiting
                return found
            passed.append(found)

    def until_closed(self, seconds=ANSWER_SECONDS):
        """All packets until the server closes the connection."""
        packets = []
        while (found := self.next(seconds)) is not None:
            packets.append(found)
        return packets

    def ended(self):
        """The server closes the connection: the DISCONNECT that it sends before, or None. It sends nothing else."""
        said = self.until_closed()
        assert [it.kind for it in said] in ([], [DISCONNECT]), said
        return said[0] if said else None

    def bytes_until_closed(self):
        """All that the server says until it closes the connection, whatever form it has."""
        said, self._bytes = self._bytes, b""
        while more := self._receive():
            said += more
        return said

    # What a client does

    def connect(self, client_id="", expect: int | None = 0, **how):
        """CONNECT, and the CONNACK, which must have the reason `expect`; with None it may have any."""
        self.send(connect(self.version, client_id, **how))
        self.connack = self.next_is(CONNACK)
        assert expect in (None, self.connack.reason), self.connack
        return self.connack

    def subscribe(self, *filters, props=None):
        """The reason codes; a filter may come with its options."""
        packet_id = self.next_id()
        pairs = [(f, 0) if isinstance(f, str) else f for f in filters]
        self.send(subscribe(self.version, packet_id, pairs, props))
        return self.expect(SUBACK, packet_id).reasons

    def unsubscribe(self, *filters):
        packet_id = self.next_id()
        self.send(unsubscribe(self.version, packet_id, filters))
        return self.expect(UNSUBACK, packet_id).reasons

    def publish(self, topic, payload=b"", qos=0, retain=False, props=None):
        """Returns when the server has said all that it has to say of it: the last answer, or None at QoS 0."""
        packet_id = self.next_id() if qos else None
        self.send(publish(self.version, topic, payload, qos, packet_id, retain, props=props))
        if qos == 0:
            return None
        answer = self.expect(PUBACK if qos == 1 else PUBREC, packet_id)
        if qos == 1 or answer.reason >= 0x80:
            return answer
        self.send(ack(PUBREL, packet_id))
        return self.expect(PUBCOMP, packet_id)

    def ping(self):
        """Returns when the server has answered: it has read everything that was sent before."""
        self.send(packet(PINGREQ))
        return self.expect(PINGRESP)

    def hears_nothing(self):
        """Nothing arrives before the answer to a PINGREQ."""
        self.send(packet(PINGREQ))
        self.next_is(PINGRESP)

    def message(self, acknowledge=True):
        """The next PUBLISH, which is acknowledged as its QoS asks for."""
        found = self.expect(PUBLISH)
        if acknowledge:
            self.acknowledge(found)
        return found

    def acknowledge(self, message):
        if message.qos == 1:
            self.send(ack(PUBACK, message.packet_id))
        elif message.qos == 2:
            self.send(ack(PUBREC, message.packet_id))
            self.expect(PUBREL, message.packet_id)
            self.send(ack(PUBCOMP, message.packet_id))

    def messages_before(self, topic):
        """All messages before one to `topic`, which the caller has had published; all are acknowledged."""
        messages = []
        while (found := self.message()).topic != topic:
            messages.append(found)
        return messages

    def disconnect(self, reason=None, props=None):
        """DISCONNECT, at which the server closes the connection and sends none itself."""
        self.send(disconnect(reason, props))
        assert DISCONNECT not in [it.kind for it in self.until_closed()]
        self.socket.close()

    def break_off(self):
        """The network fails: a reset, nothing said."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def connected(to, version=V5, client_id=None, **how):
    """A client that the server has let in; with None it has a name of its own, `how` as for `connect`."""
    wire = Wire(to, version)
    wire.connect(unique("client") if client_id is None else client_id, **how)
    return wire
