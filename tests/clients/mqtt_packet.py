"""The packets of MQTT 3.1, 3.1.1 and 5.0: every one is built and taken apart here, and nothing is hidden.

A test decides on every byte: the builders take any value for any field, so a malformed packet is a well-formed one with one
thing wrong. What a server sends is checked for its form.
"""

import struct
from dataclasses import dataclass, field, fields
from typing import Any

V31, V311, V5 = 3, 4, 5

# Types of packets, section 2.1.2.
CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = range(1, 8)
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT, AUTH = range(8, 16)
NAMES = (
    "reserved CONNECT CONNACK PUBLISH PUBACK PUBREC PUBREL PUBCOMP SUBSCRIBE SUBACK UNSUBSCRIBE UNSUBACK "
    "PINGREQ PINGRESP DISCONNECT AUTH"
).split()

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
_BYTES = {"byte": 1, "two": 2, "four": 4}
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

Text = str | bytes  # bytes where a test wants what is not UTF-8
Properties = dict[str, Any] | bytes | None


class Malformed(Exception):
    """What arrived is no packet of the standard."""


# Building


def variable(number: int) -> bytes:
    """A variable byte integer."""
    encoded = bytearray()
    while True:
        number, digit = number >> 7, number & 0x7F
        encoded.append(digit | (0x80 if number else 0))
        if not number:
            return bytes(encoded)


def two(number: int) -> bytes:
    """A two byte integer."""
    return struct.pack(">H", number)


def text(value: Text) -> bytes:
    """A string or binary data behind its length of two bytes."""
    raw = value.encode() if isinstance(value, str) else bytes(value)
    return two(len(raw)) + raw


def one_property(name: str, value: Any) -> bytes:
    identifier, kind = PROPERTIES[name]
    if kind in _BYTES:
        encoded = value.to_bytes(_BYTES[kind], "big")
    elif kind == "variable":
        encoded = variable(value)
    else:
        encoded = b"".join(map(text, value if kind == "pair" else [value]))
    return variable(identifier) + encoded


def properties(values: Properties) -> bytes:
    """A block of properties: a dictionary (a list states one several times), or its bytes without the length."""
    if isinstance(values, bytes):
        return variable(len(values)) + values
    block = b""
    for name, value in (values or {}).items():
        for item in value if isinstance(value, list) else [value]:
            block += one_property(name, item)
    return variable(len(block)) + block


def packet(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    return bytes([kind << 4 | flags]) + variable(len(body)) + body


@dataclass
class Will:
    topic: Text
    payload: Text = b"gone"
    qos: int = 0
    retain: bool = False
    props: Properties = None


def connect(
    version: int,
    client_id: Text = "",
    clean: bool = True,
    keep_alive: int = 60,
    will: Will | None = None,
    username: Text | None = None,
    password: Text | None = None,
    props: Properties = None,
    name: str | None = None,
    level: int | None = None,
    flags: int | None = None,
) -> bytes:
    """`flags` replaces the connect flags that follow from the rest; `name` and `level` those of the version."""
    name = name if name is not None else ("MQIsdp" if version == V31 else "MQTT")
    if flags is None:
        flags = 0x02 * clean
        if will:
            flags |= 0x04 | will.qos << 3 | 0x20 * will.retain
        flags |= 0x80 * (username is not None) | 0x40 * (password is not None)
    body = text(name) + bytes([version if level is None else level, flags]) + two(keep_alive)
    body += properties(props) if version == V5 else b""
    body += text(client_id)
    if will:
        body += properties(will.props) if version == V5 else b""
        body += text(will.topic) + text(will.payload)
    return packet(CONNECT, body + b"".join(text(it) for it in (username, password) if it is not None))


def publish(
    version: int,
    topic: Text,
    payload: Text = b"",
    qos: int = 0,
    packet_id: int | None = None,
    retain: bool = False,
    dup: bool = False,
    props: Properties = None,
) -> bytes:
    payload = payload.encode() if isinstance(payload, str) else payload
    body = text(topic) + (two(packet_id) if packet_id is not None else b"")
    body += properties(props) if version == V5 else b""
    return packet(PUBLISH, body + payload, 0x08 * dup | qos << 1 | 0x01 * retain)


def _reason(reason: int | None, props: Properties) -> bytes:
    """A reason code and properties, each of which may be left out."""
    return (b"" if reason is None else bytes([reason])) + (b"" if props is None else properties(props))


def ack(kind: int, packet_id: int, reason: int | None = None, props: Properties = None) -> bytes:
    """PUBACK, PUBREC, PUBREL or PUBCOMP. A reason and properties are of 5.0."""
    return packet(kind, two(packet_id) + _reason(reason, props), 0x02 if kind == PUBREL else 0)


def subscribe(version: int, packet_id: int, filters, props: Properties = None, flags: int = 0x02) -> bytes:
    """`filters`: of each the filter and its options (a QoS, or the whole byte)."""
    body = two(packet_id) + (properties(props) if version == V5 else b"")
    for topic_filter, options in filters:
        body += text(topic_filter) + bytes([options])
    return packet(SUBSCRIBE, body, flags)


def options(qos: int = 0, no_local: bool = False, retain_as_published: bool = False, retain_handling: int = 0) -> int:
    """The options of a subscription of 5.0."""
    return qos | no_local << 2 | retain_as_published << 3 | retain_handling << 4


def unsubscribe(version: int, packet_id: int, filters, props: Properties = None, flags: int = 0x02) -> bytes:
    body = two(packet_id) + (properties(props) if version == V5 else b"")
    return packet(UNSUBSCRIBE, body + b"".join(map(text, filters)), flags)


def disconnect(reason: int | None = None, props: Properties = None) -> bytes:
    """A reason and properties are of 5.0."""
    return packet(DISCONNECT, _reason(reason, props))


def auth(reason: int | None = None, props: Properties = None, flags: int = 0) -> bytes:
    return packet(AUTH, _reason(reason, props), flags)


# Taking apart


@dataclass(repr=False)
class Packet:
    """One packet that arrived, whole and well-formed. What its type does not have is None, or empty."""

    kind: int
    flags: int
    size: int
    session_present: bool | None = None
    packet_id: int | None = None
    reason: int | None = None
    reasons: list[int] = field(default_factory=list)  # of SUBACK and UNSUBACK
    props: dict[str, Any] = field(default_factory=dict)
    topic: str | None = None
    payload: bytes | None = None
    qos: int | None = None
    retain: bool | None = None
    dup: bool | None = None

    def __repr__(self):
        known = ((it.name, getattr(self, it.name)) for it in fields(self)[3:])
        return f"{NAMES[self.kind]}({', '.join(f'{name}={value!r}' for name, value in known if value not in (None, [], {}))})"


class Reader:
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
        """A variable byte integer in its shortest form."""
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

    def value(self, kind):
        if kind in _BYTES:
            return self.number(_BYTES[kind])
        if kind == "pair":
            return self.text(), self.text()
        return {"variable": self.variable, "text": self.text, "binary": self.binary}[kind]()

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
            value = self.value(value_kind)
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
    read, found, v5 = Reader(body), Packet(kind, flags, size), version == V5
    if kind != PUBLISH and flags != (0x02 if kind == PUBREL else 0):
        raise Malformed(f"flags {flags:#x} of {NAMES[kind]}")
    if kind == CONNACK:
        acknowledge, found.reason = read.number(1), read.number(1)
        if acknowledge & 0xFE:
            raise Malformed(f"connect acknowledge flags {acknowledge:#x}")
        found.session_present = bool(acknowledge)
        found.props = read.properties(kind) if v5 and read.rest else {}
    elif kind == PUBLISH:
        found.dup, found.qos, found.retain = bool(flags & 8), flags >> 1 & 3, bool(flags & 1)
        if found.qos == 3 or (found.dup and not found.qos):
            raise Malformed(f"flags {flags:#x} of PUBLISH")
        found.topic = read.text()
        found.packet_id = read.number(2) if found.qos else None
        if found.packet_id == 0:
            raise Malformed("packet identifier 0")
        found.props = read.properties(kind) if v5 else {}
        found.payload = read.take(read.rest)
    elif kind in (PUBACK, PUBREC, PUBREL, PUBCOMP):
        found.packet_id = read.number(2)
        found.reason = read.number(1) if v5 and read.rest else 0
        found.props = read.properties(kind) if v5 and read.rest else {}
    elif kind in (SUBACK, UNSUBACK):
        found.packet_id = read.number(2)
        found.props = read.properties(kind) if v5 else {}
        found.reasons = list(read.take(read.rest)) if v5 or kind == SUBACK else []
    elif kind in (DISCONNECT, AUTH):
        if not v5:
            raise Malformed(f"{NAMES[kind]} from a server in 3.1.1")
        found.reason = read.number(1) if read.rest else 0
        found.props = read.properties(kind) if read.rest else {}
    elif kind != PINGRESP:
        raise Malformed(f"{NAMES[kind]} from a server")
    if read.rest:
        raise Malformed(f"{read.rest} bytes behind {found}")
    codes = found.reasons if found.reason is None else [found.reason]
    if v5 and codes and not REASONS[kind].issuperset(codes):
        raise Malformed(f"a reason code that {found} cannot have")
    if not v5 and kind == SUBACK and not {0, 1, 2, 0x80}.issuperset(codes):
        raise Malformed(f"a return code that {found} cannot have")
    return found
