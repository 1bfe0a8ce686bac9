"""MQTT 3.1, 3.1.1 and 5.0 on the wire: every packet is built and taken apart here, and nothing is hidden.

A test decides on every byte: the builders take any value for any field, so a malformed packet is a well-formed one with one
thing wrong. Connections have deadlines, and what arrives is taken packet by packet.
"""

import itertools
import os
import socket
import ssl
import struct
import time
from dataclasses import dataclass, field

V31, V311, V5 = 3, 4, 5

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = range(1, 8)
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT, AUTH = range(8, 16)
NAMES = (
    "reserved CONNECT CONNACK PUBLISH PUBACK PUBREC PUBREL PUBCOMP SUBSCRIBE SUBACK UNSUBSCRIBE UNSUBACK "
    "PINGREQ PINGRESP DISCONNECT AUTH"
).split()

# A busy machine may take long to answer; a test that passes never waits for this.
ANSWER_SECONDS = float(os.environ.get("MQTT_ANSWER_SECONDS", "20"))

# name: (identifier, type), section 2.2.2.2.
PROPERTIES = {
    "payload_format": (0x01, "byte"),
    "message_expiry": (0x02, "four"),
    "content_type": (0x03, "text"),
    "response_topic": (0x08, "text"),
    "correlation_data": (0x09, "binary"),
    "subscription_identifier": (0x0B, "variable"),
    "session_expiry": (0x11, "four"),
    "assigned_client_id": (0x12, "text"),
    "server_keep_alive": (0x13, "two"),
    "authentication_method": (0x15, "text"),
    "authentication_data": (0x16, "binary"),
    "request_problem_information": (0x17, "byte"),
    "will_delay": (0x18, "four"),
    "request_response_information": (0x19, "byte"),
    "response_information": (0x1A, "text"),
    "server_reference": (0x1C, "text"),
    "reason_string": (0x1F, "text"),
    "receive_maximum": (0x21, "two"),
    "topic_alias_maximum": (0x22, "two"),
    "topic_alias": (0x23, "two"),
    "maximum_qos": (0x24, "byte"),
    "retain_available": (0x25, "byte"),
    "user_property": (0x26, "pair"),
    "maximum_packet_size": (0x27, "four"),
    "wildcard_available": (0x28, "byte"),
    "subscription_identifiers_available": (0x29, "byte"),
    "shared_available": (0x2A, "byte"),
}
_BY_IDENTIFIER = {identifier: (name, kind) for name, (identifier, kind) in PROPERTIES.items()}
# The only ones that may stand in a packet more than once.
_REPEATED = ("user_property", "subscription_identifier")
# What the standard lets stand in each packet that a server sends, table 2-4.
ALLOWED = {
    CONNACK: "session_expiry assigned_client_id server_keep_alive authentication_method authentication_data "
    "response_information server_reference reason_string receive_maximum topic_alias_maximum maximum_qos "
    "retain_available user_property maximum_packet_size wildcard_available subscription_identifiers_available "
    "shared_available",
    PUBLISH: "payload_format message_expiry content_type response_topic correlation_data subscription_identifier "
    "topic_alias user_property",
    DISCONNECT: "session_expiry server_reference reason_string user_property",
    AUTH: "authentication_method authentication_data reason_string user_property",
    **{kind: "reason_string user_property" for kind in (PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK)},
}
# The reason codes that the standard has for each packet.
REASONS = {
    CONNACK: {0, *range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F},
    PUBACK: {0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99},
    PUBREC: {0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99},
    PUBREL: {0, 0x92},
    PUBCOMP: {0, 0x92},
    SUBACK: {0, 1, 2, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2},
    UNSUBACK: {0, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91},
    DISCONNECT: {0, 4, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, *range(0x8D, 0x91), *range(0x93, 0xA3)},
    AUTH: {0, 0x18, 0x19},
}


class Malformed(Exception):
    """What arrived is no packet of the standard."""


# Building


def variable(number):
    """A variable byte integer."""
    encoded = bytearray()
    while True:
        number, digit = number >> 7, number & 0x7F
        encoded.append(digit | (0x80 if number else 0))
        if not number:
            return bytes(encoded)


def text(value):
    """A string or bytes behind its length of two bytes."""
    raw = value.encode() if isinstance(value, str) else bytes(value)
    return struct.pack(">H", len(raw)) + raw


def one_property(name, value):
    identifier, kind = PROPERTIES[name]
    encoded = {
        "byte": lambda: bytes([value]),
        "two": lambda: struct.pack(">H", value),
        "four": lambda: struct.pack(">I", value),
        "variable": lambda: variable(value),
        "text": lambda: text(value),
        "binary": lambda: text(value),
        "pair": lambda: text(value[0]) + text(value[1]),
    }[kind]()
    return variable(identifier) + encoded


def properties(values):
    """A block of properties: a dictionary (a list states one several times), or its bytes without the length."""
    if isinstance(values, bytes):
        return variable(len(values)) + values
    block = b""
    for name, value in (values or {}).items():
        for item in value if isinstance(value, list) else [value]:
            block += one_property(name, item)
    return variable(len(block)) + block


def packet(kind, body=b"", flags=0):
    return bytes([kind << 4 | flags]) + variable(len(body)) + body


@dataclass
class Will:
    topic: object
    payload: bytes = b"gone"
    qos: int = 0
    retain: bool = False
    props: object = None


def connect(
    version,
    client_id="",
    clean=True,
    keep_alive=60,
    will=None,
    user=None,
    password=None,
    props=None,
    name=None,
    level=None,
    flags=None,
):
    """`flags` replaces the connect flags that follow from the rest; `name` and `level` those of the version."""
    name = name if name is not None else ("MQIsdp" if version == V31 else "MQTT")
    if flags is None:
        flags = 0x02 * clean
        if will:
            flags |= 0x04 | will.qos << 3 | 0x20 * will.retain
        flags |= 0x80 * (user is not None) | 0x40 * (password is not None)
    body = text(name) + bytes([version if level is None else level, flags]) + struct.pack(">H", keep_alive)
    body += properties(props) if version == V5 else b""
    body += text(client_id)
    if will:
        body += properties(will.props) if version == V5 else b""
        body += text(will.topic) + text(will.payload)
    body += text(user) if user is not None else b""
    body += text(password) if password is not None else b""
    return packet(CONNECT, body)


def publish(version, topic, payload=b"", qos=0, packet_id=None, retain=False, dup=False, props=None):
    payload = payload.encode() if isinstance(payload, str) else payload
    body = text(topic) + (struct.pack(">H", packet_id) if packet_id is not None else b"")
    body += properties(props) if version == V5 else b""
    return packet(PUBLISH, body + payload, 0x08 * dup | qos << 1 | 0x01 * retain)


def ack(version, kind, packet_id, reason=None, props=None, flags=None):
    """PUBACK, PUBREC, PUBREL or PUBCOMP."""
    body = struct.pack(">H", packet_id)
    if reason is not None:
        body += bytes([reason])
    if props is not None:
        body += properties(props)
    return packet(kind, body, (0x02 if kind == PUBREL else 0) if flags is None else flags)


def subscribe(version, packet_id, filters, props=None, flags=0x02):
    """`filters`: of each the filter and its options (a QoS, or the whole byte)."""
    body = struct.pack(">H", packet_id) + (properties(props) if version == V5 else b"")
    for topic_filter, options in filters:
        body += text(topic_filter) + bytes([options])
    return packet(SUBSCRIBE, body, flags)


def unsubscribe(version, packet_id, filters, props=None, flags=0x02):
    body = struct.pack(">H", packet_id) + (properties(props) if version == V5 else b"")
    return packet(UNSUBSCRIBE, body + b"".join(map(text, filters)), flags)


def disconnect(version, reason=None, props=None, flags=0):
    body = b"" if reason is None else bytes([reason])
    body += b"" if props is None else properties(props)
    return packet(DISCONNECT, body, flags)


def auth(reason=None, props=None, flags=0):
    body = b"" if reason is None else bytes([reason])
    body += b"" if props is None else properties(props)
    return packet(AUTH, body, flags)


def options(qos=0, no_local=False, retain_as_published=False, retain_handling=0):
    """The options of a subscription of 5.0."""
    return qos | no_local << 2 | retain_as_published << 3 | retain_handling << 4


# Taking apart


@dataclass
class Packet:
    """One packet that arrived, whole and well-formed; `fields` has what its kind has."""

    kind: int
    flags: int
    size: int
    fields: dict = field(default_factory=dict)

    def __getattr__(self, name):
        fields = self.__dict__.get("fields", {})
        if name in fields:
            return fields[name]
        raise AttributeError(f"{NAMES[self.kind]} has no {name}: {fields}")

    def __repr__(self):
        return f"{NAMES[self.kind]}({', '.join(f'{name}={value!r}' for name, value in self.fields.items())})"


class _Reader:
    def __init__(self, body):
        self.body, self.at = body, 0

    def take(self, count):
        if self.at + count > len(self.body):
            raise Malformed(f"{count} bytes at {self.at} of {len(self.body)}")
        self.at += count
        return self.body[self.at - count : self.at]

    def number(self, count):
        return int.from_bytes(self.take(count), "big")

    def binary(self):
        return self.take(self.number(2))

    def text(self):
        try:
            value = self.binary().decode()
        except UnicodeDecodeError as error:
            raise Malformed(f"not UTF-8: {error}") from error
        if "\0" in value:
            raise Malformed("U+0000 in a string")
        return value

    def variable(self):
        value = 0
        for shift in range(0, 28, 7):
            digit = self.number(1)
            value |= (digit & 0x7F) << shift
            if not digit & 0x80:
                if shift and not digit:
                    raise Malformed("a variable byte integer that is longer than it must be")
                return value
        raise Malformed("a variable byte integer of more than four bytes")

    @property
    def rest(self):
        return len(self.body) - self.at

    def properties(self, kind):
        end = self.variable() + self.at
        if end > len(self.body):
            raise Malformed("properties beyond the end of the packet")
        found = {}
        while self.at < end:
            identifier = self.variable()
            if identifier not in _BY_IDENTIFIER:
                raise Malformed(f"property {identifier:#x}")
            name, value_kind = _BY_IDENTIFIER[identifier]
            if name not in ALLOWED[kind].split():
                raise Malformed(f"{name} in {NAMES[kind]}")
            value = {
                "byte": lambda: self.number(1),
                "two": lambda: self.number(2),
                "four": lambda: self.number(4),
                "variable": self.variable,
                "text": self.text,
                "binary": self.binary,
                "pair": lambda: (self.text(), self.text()),
            }[value_kind]()
            if name in _REPEATED:
                found.setdefault(name, []).append(value)
            elif name in found:
                raise Malformed(f"{name} twice")
            else:
                found[name] = value
        if self.at != end:
            raise Malformed("properties of another length than stated")
        return found


def parse(version, kind, flags, body, size):
    """A packet that a server may send. Everything that the standard says of its form is checked."""
    read = _Reader(body)
    found = Packet(kind, flags, size)
    fields = found.fields
    if kind != PUBLISH and flags != (0x02 if kind == PUBREL else 0):
        raise Malformed(f"flags {flags:#x} of {NAMES[kind]}")
    if kind == CONNACK:
        acknowledge, fields["reason"] = read.number(1), read.number(1)
        if acknowledge & 0xFE:
            raise Malformed(f"connect acknowledge flags {acknowledge:#x}")
        fields["session_present"] = bool(acknowledge)
        fields["props"] = read.properties(kind) if version == V5 and read.rest else {}
    elif kind == PUBLISH:
        fields["dup"], fields["qos"], fields["retain"] = bool(flags & 8), flags >> 1 & 3, bool(flags & 1)
        if fields["qos"] == 3 or (fields["dup"] and not fields["qos"]):
            raise Malformed(f"flags {flags:#x} of PUBLISH")
        fields["topic"] = read.text()
        fields["packet_id"] = read.number(2) if fields["qos"] else None
        if fields["packet_id"] == 0:
            raise Malformed("packet identifier 0")
        fields["props"] = read.properties(kind) if version == V5 else {}
        fields["payload"] = read.take(read.rest)
    elif kind in (PUBACK, PUBREC, PUBREL, PUBCOMP):
        fields["packet_id"] = read.number(2)
        fields["reason"] = read.number(1) if version == V5 and read.rest else 0
        fields["props"] = read.properties(kind) if version == V5 and read.rest else {}
    elif kind in (SUBACK, UNSUBACK):
        fields["packet_id"] = read.number(2)
        fields["props"] = read.properties(kind) if version == V5 else {}
        fields["reasons"] = list(read.take(read.rest)) if version == V5 or kind == SUBACK else []
    elif kind in (DISCONNECT, AUTH):
        if version != V5:
            raise Malformed(f"{NAMES[kind]} from a server in 3.1.1")
        fields["reason"] = read.number(1) if read.rest else 0
        fields["props"] = read.properties(kind) if read.rest else {}
    elif kind != PINGRESP:
        raise Malformed(f"{NAMES[kind]} from a server")
    if read.rest:
        raise Malformed(f"{read.rest} bytes behind {found}")
    codes = fields.get("reasons", [fields["reason"]] if "reason" in fields else [])
    if version == V5 and codes and not REASONS[kind].issuperset(codes):
        raise Malformed(f"a reason code that {found} cannot have")
    if version != V5 and kind == SUBACK and not {0, 1, 2, 0x80}.issuperset(codes):
        raise Malformed(f"a return code that {found} cannot have")
    return found


# Connections


class Wire:
    """A connection of one version of the protocol, with a deadline for everything that it waits for.

    With `context` it is TLS. `transport` replaces the socket, as the one below for WebSocket does.
    """

    def __init__(self, address, version=V5, context=None, transport=None):
        self.version = version
        if transport is None:
            transport = socket.create_connection(address, ANSWER_SECONDS)
            transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context:
                transport = context.wrap_socket(transport, server_hostname="localhost")
        self.socket = transport
        self.socket.settimeout(ANSWER_SECONDS)
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

    # Taking what arrives

    def _read(self, count):
        """Exactly so many bytes; nothing at a clean end before the first, an error at one after it."""
        while len(self._bytes) < count:
            try:
                more = self.socket.recv(65536)
            except (ConnectionResetError, BrokenPipeError, ssl.SSLError) as error:
                if isinstance(error, TimeoutError):
                    raise
                more = b""
            if not more:
                if self._bytes:
                    raise Malformed(f"the connection ends inside a packet: {self._bytes!r}")
                return None
            self._bytes += more
        taken, self._bytes = self._bytes[:count], self._bytes[count:]
        return taken

    def read_packet(self):
        """The next packet from the socket, or None at its end."""
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
        length = _Reader(digits).variable()
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
            return self.read_packet()
        except TimeoutError:
            raise AssertionError(f"nothing arrived for {seconds} s") from None

    def expect(self, kind, packet_id=None, seconds=ANSWER_SECONDS):
        """The next packet of this kind (and identifier); others wait for their turn."""
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
        while True:
            found = self.next(seconds)
            if found is None:
                return packets
            packets.append(found)

    # What a client does

    def connect(self, client_id="", expect=0, **how):
        """CONNECT, and the CONNACK, which must have the reason `expect`."""
        self.send(connect(self.version, client_id, **how))
        self.connack = self.next()
        assert self.connack is not None and self.connack.kind == CONNACK, f"{self.connack} is no CONNACK"
        assert self.connack.reason == expect, self.connack
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
        self.send(ack(self.version, PUBREL, packet_id))
        return self.expect(PUBCOMP, packet_id)

    def ping(self):
        """Returns when the server has answered: it has read everything that was sent before."""
        self.send(packet(PINGREQ))
        return self.expect(PINGRESP)

    def message(self, acknowledge=True, seconds=ANSWER_SECONDS):
        """The next PUBLISH, which is acknowledged as its QoS asks for."""
        found = self.expect(PUBLISH, seconds=seconds)
        if acknowledge:
            self.acknowledge(found)
        return found

    def acknowledge(self, message):
        if message.qos == 1:
            self.send(ack(self.version, PUBACK, message.packet_id))
        elif message.qos == 2:
            self.send(ack(self.version, PUBREC, message.packet_id))
            self.expect(PUBREL, message.packet_id)
            self.send(ack(self.version, PUBCOMP, message.packet_id))

    def messages_before(self, topic):
        """All messages before one to `topic`, which the caller has had published; all are acknowledged."""
        messages = []
        while True:
            found = self.message()
            if found.topic == topic:
                return messages
            messages.append(found)

    def disconnect(self, reason=None, props=None):
        """DISCONNECT, and the end of the connection from the other side too: the server has seen it."""
        self.send(disconnect(self.version, reason, props))
        self.socket.shutdown(socket.SHUT_WR)
        self.until_closed()
        self.socket.close()

    def break_off(self):
        """The network fails: a reset, nothing said."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
