"""Malformed packets and violations of the protocol, of both versions: the server closes, says why in 5.0, and goes on serving."""

from types import SimpleNamespace

import pytest
from conformance import NAMES, covers
from mqtt_packet import (
    AUTH,
    CONNACK,
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    SUBSCRIBE,
    UNSUBACK,
    UNSUBSCRIBE,
    V311,
    V5,
    Will,
    ack,
    auth,
    connect,
    disconnect,
    one_property,
    packet,
    properties,
    publish,
    subscribe,
    text,
    unsubscribe,
    variable,
)

MALFORMED, PROTOCOL, TOPIC_FILTER, TOPIC_NAME, ALIAS, FORMAT = 0x81, 0x82, 0x8F, 0x90, 0x94, 0x99
WRONG = {MALFORMED, PROTOCOL}
WRONG_NAME = {*WRONG, TOPIC_NAME}
WRONG_FILTER = {*WRONG, TOPIC_FILTER}

# What is not UTF-8: a surrogate, an overlong form, a lone continuation, a byte that never occurs, a sequence cut short.
ILL_FORMED = {
    "surrogate": b"a\xed\xa0\x80",
    "overlong": b"a\xc0\xaf",
    "continuation": b"a\x80",
    "0xFF": b"\xff",
    "cut": b"a\xe2\x82",
}
NUL = b"a\0b"


def case(name, make, reasons=frozenset({MALFORMED}), versions=(V311, V5)):
    """`make` gives the bytes for a version."""
    return [
        pytest.param(SimpleNamespace(version=v, make=make, reasons=reasons), id=f"{NAMES[v]}-{name}") for v in versions
    ]


def flat(*cases):
    return [param for group in cases for param in group]


def rejected(broker, wire, case):
    broker.refuses(wire, case.reasons)
    broker.serves()


def on_a_connection(broker, case):
    wire = broker.client(case.version)
    wire.send(case.make(case.version))
    rejected(broker, wire, case)


# Fixed headers

RESERVED_FLAGS = flat(
    *(
        case(f"{name} flags {flags:#x}", lambda v, k=kind, b=body, f=flags: packet(k, b(v), f))
        for name, kind, flags, body in [
            ("PUBACK", PUBACK, 1, lambda v: b"\0\1"),
            ("PUBREC", PUBREC, 2, lambda v: b"\0\1"),
            ("PUBREL", PUBREL, 0, lambda v: b"\0\1"),
            ("PUBREL", PUBREL, 3, lambda v: b"\0\1"),
            ("PUBCOMP", PUBCOMP, 4, lambda v: b"\0\1"),
            ("SUBSCRIBE", SUBSCRIBE, 0, lambda v: subscribe(v, 1, [("a", 0)])[2:]),
            ("SUBSCRIBE", SUBSCRIBE, 0xA, lambda v: subscribe(v, 1, [("a", 0)])[2:]),
            ("UNSUBSCRIBE", UNSUBSCRIBE, 0, lambda v: unsubscribe(v, 1, ["a"])[2:]),
            ("UNSUBSCRIBE", UNSUBSCRIBE, 3, lambda v: unsubscribe(v, 1, ["a"])[2:]),
            ("PINGREQ", PINGREQ, 1, lambda v: b""),
            ("DISCONNECT", DISCONNECT, 8, lambda v: b""),
        ]
    ),
    case("AUTH flags 1", lambda v: auth(0x18, {"authentication_method": "x"}, flags=1), WRONG, versions=(V5,)),
)


@covers(
    v5="2.1.3-1 3.6.1-1 3.8.1-1 3.10.1-1 3.14.1-1 3.15.1-1 4.13.1-1",
    v311="2.2.2-1 2.2.2-2 3.6.1-1 3.8.1-1 3.10.1-1 3.14.1-1 4.8.0-1",
)
@pytest.mark.parametrize("case", RESERVED_FLAGS)
def test_reserved_flags(broker, case):
    on_a_connection(broker, case)


NO_PACKET = flat(
    case("type 0", lambda v: packet(0), WRONG),
    case("type 15", lambda v: packet(15), versions=(V311,)),
    case("a length of five bytes", lambda v: b"\x30\xff\xff\xff\xff\x01"),
    case("a PINGREQ with a body", lambda v: packet(PINGREQ, b"\0")),
    case("a PUBACK of one byte", lambda v: packet(PUBACK, b"\0")),
    case("a SUBSCRIBE without an identifier", lambda v: packet(SUBSCRIBE, b"", 2)),
    case("a filter without options", lambda v: packet(SUBSCRIBE, subscribe(v, 1, [("a", 0)])[2:-1], 2)),
    case("a topic beyond the packet", lambda v: packet(PUBLISH, b"\0\xffa")),
    case("properties beyond the packet", lambda v: packet(PUBLISH, text("a") + b"\x7f"), versions=(V5,)),
    case("a SUBSCRIBE without properties", lambda v: subscribe(V311, 1, [("a", 0)]), versions=(V5,)),
)


@covers(v5="2.2.2-1 4.13.1-1", v311="4.8.0-1")
@pytest.mark.parametrize("case", NO_PACKET)
def test_what_is_no_packet(broker, case):
    on_a_connection(broker, case)


# Who may send what and when

OUT_OF_PLACE = flat(
    case("a second CONNECT", lambda v: connect(v, "again"), {PROTOCOL}),
    case("CONNACK", lambda v: packet(CONNACK, b"\0\0" + (b"\0" if v == V5 else b"")), WRONG),
    case("SUBACK", lambda v: packet(SUBACK, b"\0\1" + (b"\0\0" if v == V5 else b"\0")), WRONG),
    case("UNSUBACK", lambda v: packet(UNSUBACK, b"\0\1" + (b"\0\0" if v == V5 else b"")), WRONG),
    case("PINGRESP", lambda v: packet(PINGRESP), WRONG),
    case("AUTH, and CONNECT named no method", lambda v: auth(0x18, {"authentication_method": "x"}), {PROTOCOL}, (V5,)),
)


@covers(v5="3.1.0-2 4.12.0-7 4.13.1-1", v311="3.1.0-2 4.8.0-1")
@pytest.mark.parametrize("case", OUT_OF_PLACE)
def test_packets_out_of_place(broker, case):
    on_a_connection(broker, case)


# Strings


def ill_formed(name, make, reasons=MALFORMED, versions=(V311, V5)):
    found = [
        case(f"{name}: {kind}", lambda v, b=bad: make(v, b), {*WRONG, reasons}, versions)
        for kind, bad in ILL_FORMED.items()
    ]
    return flat(*found, case(f"{name}: U+0000", lambda v: make(v, NUL), {*WRONG, reasons}, versions))


STRINGS = flat(
    ill_formed("topic", lambda v, bad: publish(v, bad, "1"), TOPIC_NAME),
    ill_formed("filter", lambda v, bad: subscribe(v, 1, [(bad, 0)]), TOPIC_FILTER),
    ill_formed("filter to unsubscribe", lambda v, bad: unsubscribe(v, 1, [bad]), TOPIC_FILTER),
    ill_formed(
        "user property's name", lambda v, bad: publish(v, "a", props={"user_property": (bad, "v")}), versions=(V5,)
    ),
    ill_formed(
        "user property's value", lambda v, bad: publish(v, "a", props={"user_property": ("n", bad)}), versions=(V5,)
    ),
    ill_formed("content type", lambda v, bad: publish(v, "a", props={"content_type": bad}), versions=(V5,)),
    ill_formed("response topic", lambda v, bad: publish(v, "a", props={"response_topic": bad}), TOPIC_NAME, (V5,)),
    ill_formed("reason string", lambda v, bad: disconnect(4, {"reason_string": bad}), versions=(V5,)),
)


@covers(
    v5="1.5.4-1 1.5.4-2 1.5.7-1 3.3.2-1 3.3.2-13 3.3.2-19 3.8.3-1 3.10.3-1 4.7.3-2",
    v311="1.5.3-1 1.5.3-2 3.3.2-1 3.8.3-1 3.10.3-1 4.7.3-2",
)
@pytest.mark.parametrize("case", STRINGS)
def test_ill_formed_strings(broker, case):
    on_a_connection(broker, case)


# PUBLISH

PUBLISHES = flat(
    case("QoS 3", lambda v: publish(v, "a", "1", 3, 1)),
    case("DUP at QoS 0", lambda v: publish(v, "a", "1", dup=True), WRONG),
    case("identifier 0 at QoS 1", lambda v: publish(v, "a", "1", 1, 0), WRONG),
    case("identifier 0 at QoS 2", lambda v: publish(v, "a", "1", 2, 0), WRONG),
    case("+ in a topic", lambda v: publish(v, "a/+", "1"), WRONG_NAME),
    case("# in a topic", lambda v: publish(v, "a/#", "1"), WRONG_NAME),
    case("# inside a level", lambda v: publish(v, "a/b#", "1", 1, 1), WRONG_NAME),
    case("an empty topic", lambda v: publish(v, "", "1"), WRONG_NAME),
    case("+ in a response topic", lambda v: publish(v, "a", props={"response_topic": "r/+"}), WRONG_NAME, (V5,)),
    case("# in a response topic", lambda v: publish(v, "a", props={"response_topic": "#"}), WRONG_NAME, (V5,)),
    case("topic alias 0", lambda v: publish(v, "a", props={"topic_alias": 0}), {*WRONG, ALIAS}, (V5,)),
    case("a subscription identifier", lambda v: publish(v, "a", props={"subscription_identifier": 1}), WRONG, (V5,)),
    case("payload format 2", lambda v: publish(v, "a", props={"payload_format": 2}), {*WRONG, FORMAT}, (V5,)),
)


@covers(
    v5="2.2.1-3 3.3.1-2 3.3.1-4 3.3.2-2 3.3.2-8 3.3.2-14 3.3.4-6 4.7.0-1 4.7.3-1",
    v311="2.3.1-1 3.3.1-2 3.3.1-4 3.3.2-2 4.7.1-1 4.7.3-1",
)
@pytest.mark.parametrize("case", PUBLISHES)
def test_malformed_publishes(broker, case):
    on_a_connection(broker, case)


# SUBSCRIBE and UNSUBSCRIBE


def filters(name, topic_filter):
    return flat(
        case(f"{name} {topic_filter!r}", lambda v: subscribe(v, 1, [(topic_filter, 0)]), WRONG_FILTER),
        case(f"{name} {topic_filter!r}, to unsubscribe", lambda v: unsubscribe(v, 1, [topic_filter]), WRONG_FILTER),
    )


SUBSCRIPTIONS = flat(
    case("SUBSCRIBE without filters", lambda v: subscribe(v, 1, []), WRONG),
    case("UNSUBSCRIBE without filters", lambda v: unsubscribe(v, 1, []), WRONG),
    case("SUBSCRIBE with identifier 0", lambda v: subscribe(v, 0, [("a", 0)]), WRONG),
    case("UNSUBSCRIBE with identifier 0", lambda v: unsubscribe(v, 0, ["a"]), WRONG),
    case("QoS 3", lambda v: subscribe(v, 1, [("a", 3)]), WRONG),
    case("reserved bit 6", lambda v: subscribe(v, 1, [("a", 0x40)]), WRONG),
    case("reserved bit 7", lambda v: subscribe(v, 1, [("a", 0x80)]), WRONG),
    case("bit 2, which is reserved", lambda v: subscribe(v, 1, [("a", 0x04)]), versions=(V311,)),
    case("retain handling 3", lambda v: subscribe(v, 1, [("a", 0x30)]), WRONG, (V5,)),
    case("no local and shared", lambda v: subscribe(v, 1, [("$share/g/a", 0x04)]), {PROTOCOL}, (V5,)),
    case(
        "subscription identifier 0", lambda v: subscribe(v, 1, [("a", 0)], {"subscription_identifier": 0}), WRONG, (V5,)
    ),
    filters("empty", ""),
    filters("# inside a level", "a#"),
    filters("# not last", "a/#/b"),
    filters("+ inside a level", "a+/b"),
    filters("+ inside a level", "a/+b"),
)


@covers(
    v5="2.2.1-3 3.8.3-2 3.8.3-4 3.8.3-5 3.10.3-2 4.7.1-1 4.7.1-2 4.7.3-1",
    v311="2.3.1-1 3.8.3-3 3.8.3-4 3.10.3-2 4.7.1-2 4.7.1-3 4.7.3-1",
)
@pytest.mark.parametrize("case", SUBSCRIPTIONS)
def test_malformed_subscriptions(broker, case):
    on_a_connection(broker, case)


# Properties, reason codes


def twice(name, value):
    return one_property(name, value) * 2


PROPERTY_ERRORS = flat(
    case("one that does not exist", lambda v: publish(v, "a", props=b"\x7f\x00"), WRONG, (V5,)),
    case("one of another packet", lambda v: subscribe(v, 1, [("a", 0)], {"topic_alias": 1}), WRONG, (V5,)),
    case("one of CONNECT in DISCONNECT", lambda v: disconnect(0, {"receive_maximum": 1}), WRONG, (V5,)),
    case("message expiry twice", lambda v: publish(v, "a", props=twice("message_expiry", 1)), WRONG, (V5,)),
    case("content type twice", lambda v: publish(v, "a", props=twice("content_type", "x")), WRONG, (V5,)),
    case("cut short", lambda v: publish(v, "a", props=one_property("message_expiry", 1)[:-1]), WRONG, (V5,)),
    case("a long length", lambda v: packet(PUBLISH, text("a") + b"\xff\xff\xff\xff\x01"), WRONG, (V5,)),
    case("PUBACK with a reason of SUBACK", lambda v: ack(PUBACK, 1, 0x8F), WRONG, (V5,)),
    case("PUBREL with a reason of PUBREC", lambda v: ack(PUBREL, 1, 0x87), WRONG, (V5,)),
    case("DISCONNECT with a reason of PUBACK", lambda v: disconnect(0x10), WRONG, (V5,)),
    case("a session expiry, and CONNECT had none", lambda v: disconnect(0, {"session_expiry": 9}), {PROTOCOL}, (V5,)),
)


@covers(v5="4.13.1-1 3.14.2-1")
@pytest.mark.parametrize("case", PROPERTY_ERRORS)
def test_malformed_properties_and_reasons(broker, case):
    on_a_connection(broker, case)


# CONNECT


def connect_body(version, flags, payload, props=b"\0"):
    return packet(
        CONNECT, text("MQTT") + bytes([version, flags]) + b"\0\x3c" + (props if version == V5 else b"") + payload
    )


CONNECTS = flat(
    case("another protocol name", lambda v: connect(v, "c", name="MQTX"), ()),
    case("a lower-case protocol name", lambda v: connect(v, "c", name="mqtt"), ()),
    case("HTTP", lambda v: b"GET / HTTP/1.1\r\nHost: example\r\n\r\n", ()),
    case("the reserved flag", lambda v: connect(v, "c", flags=0x03), WRONG),
    case("will QoS without a will", lambda v: connect(v, "c", flags=0x02 | 0x08), WRONG),
    case("will retain without a will", lambda v: connect(v, "c", flags=0x02 | 0x20), WRONG),
    case("will QoS 3", lambda v: connect(v, "c", will=Will("a"), flags=0x02 | 0x04 | 0x18), WRONG),
    case("a will that is not there", lambda v: connect_body(v, 0x06, text("c")), WRONG),
    case("a user name that is not there", lambda v: connect_body(v, 0x82, text("c")), WRONG),
    case("a password that is not there", lambda v: connect_body(v, 0xC2, text("c") + text("u")), WRONG),
    case("a user name that is not announced", lambda v: connect_body(v, 0x02, text("c") + text("u")), WRONG),
    case("a password that is not announced", lambda v: connect_body(v, 0x82, text("c") + text("u") + text("p")), WRONG),
    case("a password without a user name", lambda v: connect(v, "c", password="p"), versions=(V311,)),
    case("no client id", lambda v: connect_body(v, 0x02, b""), WRONG),
    case("+ in the will's topic", lambda v: connect(v, "c", will=Will("a/+")), WRONG_NAME),
    case("an empty will topic", lambda v: connect(v, "c", will=Will("")), WRONG_NAME),
    case("receive maximum 0", lambda v: connect(v, "c", props={"receive_maximum": 0}), WRONG, (V5,)),
    case("maximum packet size 0", lambda v: connect(v, "c", props={"maximum_packet_size": 0}), WRONG, (V5,)),
    case(
        "request problem information 2",
        lambda v: connect(v, "c", props={"request_problem_information": 2}),
        WRONG,
        (V5,),
    ),
    case("session expiry twice", lambda v: connect(v, "c", props=twice("session_expiry", 1)), WRONG, (V5,)),
    case(
        "authentication data without a method",
        lambda v: connect(v, "c", props={"authentication_data": b"x"}),
        WRONG,
        (V5,),
    ),
    case("a property of PUBLISH", lambda v: connect(v, "c", props={"topic_alias": 1}), WRONG, (V5,)),
    case(
        "a property of CONNECT in the will",
        lambda v: connect(v, "c", will=Will("a", props={"receive_maximum": 1})),
        WRONG,
        (V5,),
    ),
    case("properties beyond the packet", lambda v: connect_body(v, 0x02, text("c"), b"\x7f"), WRONG, (V5,)),
    *(
        case(f"{name}: {kind}", lambda v, m=make, b=bad: m(v, b), {*WRONG, *more})
        for kind, bad in {**ILL_FORMED, "U+0000": NUL}.items()
        for name, make, more in [
            ("client id", lambda v, bad: connect(v, bad), {0x85}),
            ("will topic", lambda v, bad: connect(v, "c", will=Will(bad)), {TOPIC_NAME}),
            ("user name", lambda v, bad: connect(v, "c", username=bad), {0x86}),
        ]
    ),
)


@covers(
    v5="1.5.4-1 1.5.4-2 3.1.2-1 3.1.2-3 3.1.2-9 3.1.2-11 3.1.2-12 3.1.2-13 3.1.2-16 3.1.2-17 3.1.2-18 3.1.2-19 3.1.3-1 "
    "3.1.3-3 3.1.3-4 3.1.3-11 3.1.3-12 3.1.4-1 4.13.2-1",
    v311="1.5.3-1 1.5.3-2 3.1.2-1 3.1.2-3 3.1.2-9 3.1.2-11 3.1.2-13 3.1.2-14 3.1.2-15 3.1.2-18 3.1.2-19 3.1.2-20 3.1.2-21 "
    "3.1.2-22 3.1.3-1 3.1.3-3 3.1.3-4 3.1.3-10 3.1.3-11 3.1.4-1",
)
@pytest.mark.parametrize("case", CONNECTS)
def test_malformed_connects(broker, case):
    wire = broker.wire(case.version)
    wire.send(case.make(case.version))
    # Whoever sent no whole CONNECT may be closed without a word; a CONNACK has to say why ([MQTT-3.1.4-1]).
    said = wire.until_closed()
    assert all(packet.kind == CONNACK for packet in said) and len(said) <= 1, said
    if case.version == V5 and broker.server and said:
        assert said[-1].reason in {*case.reasons, 0x80, 0x81, 0x82, 0x84}, said
    broker.serves()


FIRST = flat(
    case("PUBLISH", lambda v: publish(v, "conf/first", "1"), ()),
    case("SUBSCRIBE", lambda v: subscribe(v, 1, [("a", 0)]), ()),
    case("PINGREQ", lambda v: packet(PINGREQ), ()),
    case("DISCONNECT", lambda v: disconnect(), ()),
    case("PUBREL", lambda v: ack(PUBREL, 1), ()),
    case("AUTH", lambda v: packet(AUTH, b"\x18" + properties({"authentication_method": "x"})), (), (V5,)),
)


@covers(v5="3.1.0-1 3.2.0-1 3.14.0-1", v311="3.1.0-1 3.2.0-1")
@pytest.mark.parametrize("case", FIRST)
def test_nothing_is_said_before_connect(broker, case):
    wire = broker.wire(case.version)
    wire.send(case.make(case.version))
    assert wire.until_closed() == []
    broker.serves()


@covers(v5="1.5.5-1")
def test_lengths_have_their_shortest_form(broker):
    """`mqtt_packet` refuses what is longer; here are lengths on both sides of each step."""
    assert [len(variable(n)) for n in (127, 128, 16383, 16384)] == [1, 2, 2, 3]
    client = broker.client()
    name = "conf/lengths"
    client.subscribe(name)
    overhead = len(publish(V5, name, b"")) - 2
    for size in (127, 128, 16383, 16384):
        client.publish(name, b"x" * (size - overhead))
        assert client.message().size == size + 1 + len(variable(size))
