//! What the standards forbid, as bytes and the error they must give; and what they allow although it looks odd.
//!
//! Bytes are written as `exemplar::parse` reads them. Where a standard names the kind of error, it is that one; where
//! it does not, `Malformed` is what cannot be parsed and `Protocol` what can be parsed and is against the rules.

use sonde_proto::mqtt::DecodeError::{self, Malformed, Protocol, TooLarge, UnsupportedVersion};
use sonde_proto::mqtt::Version::{self, V5, V311};
use sonde_proto::mqtt::{Connect, Packet, Property, ReasonCode, decode};

use crate::exemplar::parse;
use crate::model::Model;

const LIMIT: usize = 1 << 20;

type Case = (&'static str, Version, &'static str, DecodeError);

const CUT: DecodeError = Malformed("a field is cut short");
const NOT_UTF8: DecodeError = Malformed("a string is not UTF-8");
const NUL: DecodeError = Malformed("a string has U+0000");
const TRAILING: DecodeError = Malformed("bytes behind the end of the packet");
const FLAGS: DecodeError = Malformed("reserved flags of the fixed header are set");
const OVER_LONG: DecodeError = Malformed("a variable byte integer is longer than it need be");
const FIVE_BYTES: DecodeError = Malformed("a variable byte integer of five bytes");
const VARINT_CUT: DecodeError = Malformed("a variable byte integer is cut short");
const NO_PROPERTY: DecodeError = Malformed("a property that there is not");
const QOS_3: DecodeError = Malformed("QoS 3");
const DUP: DecodeError = Malformed("DUP with QoS 0");
const TOPIC_WILDCARD: DecodeError = Malformed("a wildcard in a topic name");
const OPTIONS: DecodeError = Malformed("reserved bits of subscription options are set");
const WILL_FLAGS: DecodeError = Malformed("will flags without a will");
const ID_0: DecodeError = Protocol("packet identifier 0");
const NAME: DecodeError = Protocol("a protocol name other than MQTT");
const FLAG: DecodeError = Protocol("a flag property that is neither 0 nor 1");
const PLACE: DecodeError = Protocol("a property that does not belong in this packet");
const TWICE: DecodeError = Protocol("a property that stands twice");
const CODE: DecodeError = Protocol("a reason code that does not belong in this packet");
const NO_METHOD: DecodeError = Protocol("authentication data without a method");
const EMPTY_TOPIC: DecodeError = Protocol("an empty topic");
const EMPTY_FILTER: DecodeError = Protocol("an empty topic filter");
const WILDCARD: DecodeError = Protocol("a wildcard inside a level");
const SHARE_NAME: DecodeError = Protocol("a share name that is empty or has a wildcard");
const NO_CODES: DecodeError = Protocol("an acknowledgement of no filter");

const FIXED_HEADER: &[Case] = &[
    ("packet type 0", V311, "00 00", Malformed("packet type 0")),
    ("AUTH before MQTT 5", V311, "f0 00", Malformed("a packet type that there is not")),
    ("CONNECT with flags", V311, "11 r s'MQTT' 04 02 003c s'id'", FLAGS),
    ("CONNACK with flags", V5, "28 03 00 00 00", FLAGS),
    ("PUBACK with flags", V5, "42 02 0001", FLAGS),
    ("PUBREC with flags", V311, "51 02 0001", FLAGS),
    ("PUBREL without flags", V311, "60 02 0001", FLAGS),
    ("PUBREL with other flags", V5, "63 02 0001", FLAGS),
    ("PUBCOMP with flags", V5, "74 02 0001", FLAGS),
    ("SUBSCRIBE without flags", V311, "80 r 0001 s'a' 00", FLAGS),
    ("SUBSCRIBE with other flags", V5, "8a r 0001 00 s'a' 00", FLAGS),
    ("SUBACK with flags", V311, "92 03 0001 00", FLAGS),
    ("UNSUBSCRIBE without flags", V5, "a0 r 0001 00 s'a'", FLAGS),
    ("UNSUBACK with flags", V311, "b2 02 0001", FLAGS),
    ("PINGREQ with flags", V311, "c1 00", FLAGS),
    ("PINGRESP with flags", V5, "d8 00", FLAGS),
    ("DISCONNECT with flags", V5, "e1 00", FLAGS),
    ("AUTH with flags", V5, "f4 00", FLAGS),
    ("remaining length of five bytes", V311, "30 8080808001", FIVE_BYTES),
    ("remaining length that does not end", V5, "30 ffffffff", FIVE_BYTES),
    ("remaining length with a zero byte behind", V5, "c0 8000", OVER_LONG),
    ("remaining length with two zero bytes behind", V311, "40 828000 0001", OVER_LONG),
    ("the largest remaining length", V5, "30 ffffff7f", TooLarge { size: 268_435_460, limit: LIMIT }),
    ("one more than the limit", V311, "30 fdff3f", TooLarge { size: LIMIT + 1, limit: LIMIT }),
    ("PINGREQ with a body", V311, "c0 01 00", Malformed("a ping with a body")),
    ("PINGRESP with a body", V5, "d0 01 00", Malformed("a ping with a body")),
];

const CONNECT: &[Case] = &[
    ("empty", V311, "10 00", CUT),
    ("protocol name in small letters", V311, "10 r s'mqtt' 04 02 003c s'id'", NAME),
    ("empty protocol name", V5, "10 r s'' 05 02 003c 00 s'id'", NAME),
    ("longer protocol name", V5, "10 r s'MQTTT' 05 02 003c 00 s'id'", NAME),
    ("protocol name that is not UTF-8", V311, "10 r 0004 4d5154ff 04 02 003c s'id'", NOT_UTF8),
    ("MQTT 3.1 with the level of 3.1.1", V311, "10 r s'MQIsdp' 04 02 003c s'id'", UnsupportedVersion(4)),
    ("MQTT 3.1 of a bridge", V311, "10 r s'MQIsdp' 83 02 003c s'id'", UnsupportedVersion(0x83)),
    (
        "MQTT 3.1 with the reserved flag",
        V311,
        "10 r s'MQIsdp' 03 03 003c s'id'",
        Malformed("the reserved flag of CONNECT is set"),
    ),
    ("MQTT 3.1 without a client id", V311, "10 r s'MQIsdp' 03 02 003c", CUT),
    ("protocol level 0", V311, "10 r s'MQTT' 00 02 003c s'id'", UnsupportedVersion(0)),
    ("protocol level 3", V311, "10 r s'MQTT' 03 02 003c s'id'", UnsupportedVersion(3)),
    ("protocol level 6", V5, "10 r s'MQTT' 06 02 003c 00 s'id'", UnsupportedVersion(6)),
    ("protocol level of a bridge", V311, "10 r s'MQTT' 84 02 003c s'id'", UnsupportedVersion(0x84)),
    (
        "reserved flag",
        V311,
        "10 r s'MQTT' 04 03 003c s'id'",
        Malformed("the reserved flag of CONNECT is set"),
    ),
    (
        "reserved flag",
        V5,
        "10 r s'MQTT' 05 01 003c 00 s'id'",
        Malformed("the reserved flag of CONNECT is set"),
    ),
    ("will QoS 1 without a will", V311, "10 r s'MQTT' 04 0a 003c s'id'", WILL_FLAGS),
    ("will QoS 2 without a will", V5, "10 r s'MQTT' 05 12 003c 00 s'id'", WILL_FLAGS),
    ("will retain without a will", V311, "10 r s'MQTT' 04 22 003c s'id'", WILL_FLAGS),
    ("will QoS 3", V311, "10 r s'MQTT' 04 1e 003c s'id' s'will' s''", QOS_3),
    ("will QoS 3", V5, "10 r s'MQTT' 05 1e 003c 00 s'id' 00 s'will' s''", QOS_3),
    ("will without its topic", V311, "10 r s'MQTT' 04 06 003c s'id'", CUT),
    ("will without its payload", V311, "10 r s'MQTT' 04 06 003c s'id' s'will'", CUT),
    ("will with an empty topic", V311, "10 r s'MQTT' 04 06 003c s'id' s'' s'x'", EMPTY_TOPIC),
    ("will with a wildcard", V311, "10 r s'MQTT' 04 06 003c s'id' s'a/#' s'x'", TOPIC_WILDCARD),
    ("will topic with U+0000", V5, "10 r s'MQTT' 05 06 003c 00 s'id' 00 0002 6100 s'x'", NUL),
    ("will topic that is not UTF-8", V311, "10 r s'MQTT' 04 06 003c s'id' 0002 61ff s'x'", NOT_UTF8),
    (
        "password without a user name",
        V311,
        "10 r s'MQTT' 04 42 003c s'id' s'secret'",
        Malformed("a password without a user name"),
    ),
    ("user name flag without one", V311, "10 r s'MQTT' 04 82 003c s'id'", CUT),
    ("password flag without one", V5, "10 r s'MQTT' 05 c2 003c 00 s'id' s'user'", CUT),
    ("user name without its flag", V311, "10 r s'MQTT' 04 02 003c s'id' s'user'", TRAILING),
    ("a byte behind the end", V5, "10 r s'MQTT' 05 02 003c 00 s'id' 00", TRAILING),
    ("client id that is not UTF-8", V311, "10 r s'MQTT' 04 02 003c 0001 ff", NOT_UTF8),
    ("client id with U+0000", V311, "10 r s'MQTT' 04 02 003c 0003 610062", NUL),
    ("client id with a surrogate", V5, "10 r s'MQTT' 05 02 003c 00 0003 eda080", NOT_UTF8),
    ("client id with an over-long character", V311, "10 r s'MQTT' 04 02 003c 0002 c080", NOT_UTF8),
    ("client id beyond U+10FFFF", V311, "10 r s'MQTT' 04 02 003c 0004 f4908080", NOT_UTF8),
    ("client id longer than the packet", V311, "10 r s'MQTT' 04 02 003c 0005 6964", CUT),
    ("no client id", V5, "10 r s'MQTT' 05 02 003c 00", CUT),
    ("user name with U+0000", V5, "10 r s'MQTT' 05 82 003c 00 s'id' 0001 00", NUL),
    ("user name that is not UTF-8", V311, "10 r s'MQTT' 04 82 003c s'id' 0002 c328", NOT_UTF8),
    ("no property length", V5, "10 r s'MQTT' 05 02 003c", VARINT_CUT),
    ("properties longer than the packet", V5, "10 r s'MQTT' 05 02 003c 7f 11", CUT),
    ("over-long property length", V5, "10 r s'MQTT' 05 02 003c 8000 s'id'", OVER_LONG),
    ("property length of five bytes", V5, "10 r s'MQTT' 05 02 003c 8080808001 s'id'", FIVE_BYTES),
    ("receive maximum 0", V5, "10 r s'MQTT' 05 02 003c 03 21 0000 s'id'", Protocol("receive maximum 0")),
    (
        "maximum packet size 0",
        V5,
        "10 r s'MQTT' 05 02 003c 05 27 00000000 s'id'",
        Protocol("maximum packet size 0"),
    ),
    ("request problem information 2", V5, "10 r s'MQTT' 05 02 003c 02 17 02 s'id'", FLAG),
    ("request response information 2", V5, "10 r s'MQTT' 05 02 003c 02 19 02 s'id'", FLAG),
    ("session expiry twice", V5, "10 r s'MQTT' 05 02 003c 0a 11 00000001 11 00000001 s'id'", TWICE),
    ("authentication data without a method", V5, "10 r s'MQTT' 05 02 003c 04 16 0001 ff s'id'", NO_METHOD),
    ("a property of PUBLISH", V5, "10 r s'MQTT' 05 02 003c 02 01 01 s'id'", PLACE),
    ("a property of the will", V5, "10 r s'MQTT' 05 02 003c 05 18 00000001 s'id'", PLACE),
    ("property 0", V5, "10 r s'MQTT' 05 02 003c 02 00 01 s'id'", NO_PROPERTY),
    ("property 4", V5, "10 r s'MQTT' 05 02 003c 02 04 01 s'id'", NO_PROPERTY),
    ("property 0x2b", V5, "10 r s'MQTT' 05 02 003c 02 2b 01 s'id'", NO_PROPERTY),
    ("property of two bytes", V5, "10 r s'MQTT' 05 02 003c 03 9101 01 s'id'", NO_PROPERTY),
    (
        "property 64, which does not fit a set of bits",
        V5,
        "10 r s'MQTT' 05 02 003c 02 40 01 s'id'",
        NO_PROPERTY,
    ),
    ("over-long property identifier", V5, "10 r s'MQTT' 05 02 003c 06 9100 00000001 s'id'", OVER_LONG),
    ("property cut by the property length", V5, "10 r s'MQTT' 05 02 003c 03 11 00000001 s'id'", CUT),
    ("user property without a value", V5, "10 r s'MQTT' 05 02 003c 04 26 0001 61 s'id'", CUT),
    ("user property that is not UTF-8", V5, "10 r s'MQTT' 05 02 003c 06 26 0001 ff 0000 s'id'", NOT_UTF8),
    ("user property with U+0000", V5, "10 r s'MQTT' 05 02 003c 06 26 0000 0001 00 s'id'", NUL),
    ("no will properties", V5, "10 r s'MQTT' 05 06 003c 00 s'id'", VARINT_CUT),
    ("will delay twice", V5, "10 r s'MQTT' 05 06 003c 00 s'id' 0a 18 00000001 18 00000001 s't' s''", TWICE),
    ("will payload format 2", V5, "10 r s'MQTT' 05 06 003c 00 s'id' 02 01 02 s't' s''", FLAG),
    ("topic alias in the will", V5, "10 r s'MQTT' 05 06 003c 00 s'id' 03 23 0001 s't' s''", PLACE),
    (
        "will response topic with a wildcard",
        V5,
        "10 r s'MQTT' 05 06 003c 00 s'id' 04 08 s'+' s't' s''",
        TOPIC_WILDCARD,
    ),
    ("empty will response topic", V5, "10 r s'MQTT' 05 06 003c 00 s'id' 03 08 s'' s't' s''", EMPTY_TOPIC),
];

const CONNACK: &[Case] = &[
    ("reserved flags", V311, "20 02 02 00", Malformed("reserved flags of CONNACK are set")),
    ("reserved flags", V5, "20 03 81 00 00", Malformed("reserved flags of CONNACK are set")),
    ("return code 6", V311, "20 02 00 06", CODE),
    ("return code of 3.1.1", V5, "20 03 00 01 00", CODE),
    ("only flags", V311, "20 01 00", CUT),
    ("a byte behind the end", V311, "20 03 00 00 00", TRAILING),
    ("no property length", V5, "20 02 00 00", VARINT_CUT),
    ("maximum QoS 2", V5, "20 r 00 00 02 24 02", FLAG),
    ("retain available 2", V5, "20 r 00 00 02 25 02", FLAG),
    ("wildcard subscription available 2", V5, "20 r 00 00 02 28 02", FLAG),
    ("subscription identifier available 2", V5, "20 r 00 00 02 29 02", FLAG),
    ("shared subscription available 2", V5, "20 r 00 00 02 2a ff", FLAG),
    ("receive maximum 0", V5, "20 r 00 00 03 21 0000", Protocol("receive maximum 0")),
    ("maximum packet size 0", V5, "20 r 00 00 05 27 00000000", Protocol("maximum packet size 0")),
    ("assigned client identifier twice", V5, "20 r 00 00 08 12 s'a' 12 s'b'", TWICE),
    ("a property of PUBLISH", V5, "20 r 00 00 03 23 0001", PLACE),
];

const PUBLISH: &[Case] = &[
    ("QoS 3", V311, "36 r s't' 0001 'x'", QOS_3),
    ("QoS 3", V5, "37 r s't' 0001 00 'x'", QOS_3),
    ("DUP with QoS 0", V311, "38 r s't' 'x'", DUP),
    ("DUP with QoS 0", V5, "39 r s't' 00 'x'", DUP),
    ("packet identifier 0", V311, "32 r s't' 0000 'x'", ID_0),
    ("packet identifier 0", V5, "34 r s't' 0000 00 'x'", ID_0),
    ("no packet identifier", V311, "32 r s't'", CUT),
    ("half a packet identifier", V5, "34 r s't' 00", CUT),
    ("empty", V311, "30 00", CUT),
    ("topic longer than the packet", V311, "30 r 0005 74", CUT),
    ("empty topic", V311, "30 r s'' 'x'", EMPTY_TOPIC),
    ("empty topic without an alias", V5, "30 r s'' 00 'x'", EMPTY_TOPIC),
    ("empty topic without an alias but with properties", V5, "30 r s'' 05 02 00000001 'x'", EMPTY_TOPIC),
    ("topic with +", V311, "30 r s'a/+' 'x'", TOPIC_WILDCARD),
    ("topic with #", V5, "30 r s'a#b' 00 'x'", TOPIC_WILDCARD),
    ("topic with + and an alias", V5, "30 r s'+' 03 23 0001 'x'", TOPIC_WILDCARD),
    ("topic with U+0000", V311, "30 r 0003 740074 'x'", NUL),
    ("topic that is not UTF-8", V5, "30 r 0002 74ff 00 'x'", NOT_UTF8),
    ("topic with a surrogate", V311, "30 r 0003 edbfbf 'x'", NOT_UTF8),
    ("topic with half a character", V311, "30 r 0002 74c3 'x'", NOT_UTF8),
    (
        "topic of 33 levels",
        V311,
        "30 r s'////////////////////////////////' 'x'",
        Protocol("a topic of more than 32 levels"),
    ),
    ("no property length", V5, "30 r s't'", VARINT_CUT),
    ("properties longer than the packet", V5, "30 r s't' 05 02 000001", CUT),
    ("payload format 2", V5, "30 r s't' 02 01 02", FLAG),
    ("payload format cut short", V5, "30 r s't' 01 01", CUT),
    ("a reason string", V5, "30 r s't' 04 1f s'a'", PLACE),
    ("a wrong property that is cut short", V5, "30 r s't' 01 11 'x'", CUT),
    ("content type twice", V5, "30 r s't' 08 03 s'a' 03 s'a'", TWICE),
    ("message expiry twice", V5, "30 r s't' 0a 02 00000001 02 00000001", TWICE),
    ("topic alias twice", V5, "30 r s't' 06 23 0001 23 0002", TWICE),
    ("topic alias cut short", V5, "30 r s't' 02 23 00", CUT),
    ("response topic with a wildcard", V5, "30 r s't' 06 08 s'a/#'", TOPIC_WILDCARD),
    ("empty response topic", V5, "30 r s't' 03 08 s''", EMPTY_TOPIC),
    ("subscription identifier 0", V5, "30 r s't' 02 0b 00", Protocol("subscription identifier 0")),
    ("over-long subscription identifier", V5, "30 r s't' 03 0b 8100", OVER_LONG),
    ("subscription identifier of five bytes", V5, "30 r s't' 06 0b 8080808001", FIVE_BYTES),
    ("subscription identifier cut short", V5, "30 r s't' 02 0b 80 'x'", VARINT_CUT),
    ("correlation data longer than the properties", V5, "30 r s't' 04 09 0002 61 'x'", CUT),
];

const ACKS: &[Case] = &[
    ("PUBACK empty", V311, "40 00", CUT),
    ("PUBACK with half an identifier", V5, "40 01 00", CUT),
    ("PUBACK identifier 0", V311, "40 02 0000", ID_0),
    ("PUBREC identifier 0", V5, "50 02 0000", ID_0),
    ("PUBREL identifier 0", V311, "62 02 0000", ID_0),
    ("PUBCOMP identifier 0", V5, "70 03 0000 00", ID_0),
    ("PUBACK with a reason before MQTT 5", V311, "40 03 0001 00", TRAILING),
    ("PUBREL with a byte behind the end", V311, "62 03 0001 00", TRAILING),
    ("PUBACK with a byte behind the properties", V5, "40 05 0001 00 00 00", TRAILING),
    ("PUBACK reason 1", V5, "40 03 0001 01", CODE),
    ("PUBREC reason 0x92", V5, "50 03 0001 92", CODE),
    ("PUBREL reason 0x10", V5, "62 03 0001 10", CODE),
    ("PUBCOMP reason 0x80", V5, "70 03 0001 80", CODE),
    ("PUBACK properties longer than the packet", V5, "40 r 0001 00 08 1f s'a'", CUT),
    ("PUBREC reason string twice", V5, "50 r 0001 00 08 1f s'a' 1f s'b'", TWICE),
    ("PUBREL with a topic alias", V5, "62 r 0001 00 03 23 0001", PLACE),
    ("PUBCOMP reason string with U+0000", V5, "70 r 0001 00 04 1f 0001 00", NUL),
];

const SUBSCRIBE: &[Case] = &[
    ("packet identifier 0", V311, "82 r 0000 s'a' 00", ID_0),
    ("packet identifier 0", V5, "82 r 0000 00 s'a' 00", ID_0),
    ("no filter", V311, "82 02 0001", Protocol("SUBSCRIBE without a filter")),
    ("no filter", V5, "82 03 0001 00", Protocol("SUBSCRIBE without a filter")),
    ("no options", V311, "82 r 0001 s'a'", CUT),
    ("no options for the second filter", V5, "82 r 0001 00 s'a' 00 s'b'", CUT),
    ("empty filter", V311, "82 r 0001 s'' 00", EMPTY_FILTER),
    ("filter with # inside a level", V311, "82 r 0001 s'a#' 00", WILDCARD),
    ("filter with # before the end", V5, "82 r 0001 00 s'a/#/b' 00", WILDCARD),
    ("filter with # first of two levels", V311, "82 r 0001 s'#/a' 00", WILDCARD),
    ("filter with + behind text", V5, "82 r 0001 00 s'a+' 00", WILDCARD),
    ("filter with + before text", V311, "82 r 0001 s'x/+a' 00", WILDCARD),
    ("filter with ##", V311, "82 r 0001 s'##' 00", WILDCARD),
    ("second filter is wrong", V5, "82 r 0001 00 s'a' 00 s'b#' 00", WILDCARD),
    ("filter with U+0000", V311, "82 r 0001 0001 00 00", NUL),
    ("filter that is not UTF-8", V5, "82 r 0001 00 0001 80 00", NOT_UTF8),
    (
        "filter of 33 levels",
        V5,
        "82 r 0001 00 s'////////////////////////////////' 00",
        Protocol("a filter of more than 32 levels"),
    ),
    ("QoS 3", V311, "82 r 0001 s'a' 03", Protocol("QoS 3 in a subscription")),
    ("QoS 3", V5, "82 r 0001 00 s'a' 03", Protocol("QoS 3 in a subscription")),
    ("no local before MQTT 5", V311, "82 r 0001 s'a' 04", OPTIONS),
    ("reserved bits", V311, "82 r 0001 s'a' 81", OPTIONS),
    ("reserved bit 6", V5, "82 r 0001 00 s'a' 40", OPTIONS),
    ("reserved bit 7", V5, "82 r 0001 00 s'a' 80", OPTIONS),
    ("retain handling 3", V5, "82 r 0001 00 s'a' 30", Protocol("retain handling 3")),
    (
        "no local on a shared subscription",
        V5,
        "82 r 0001 00 s'$share/g/a' 04",
        Protocol("no local on a shared subscription"),
    ),
    (
        "shared without a filter",
        V5,
        "82 r 0001 00 s'$share/g' 00",
        Protocol("a shared filter without a filter"),
    ),
    ("shared with an empty filter", V5, "82 r 0001 00 s'$share/g/' 00", EMPTY_FILTER),
    ("shared with an empty name", V5, "82 r 0001 00 s'$share//a' 00", SHARE_NAME),
    ("shared with + in the name", V5, "82 r 0001 00 s'$share/+/a' 00", SHARE_NAME),
    ("shared with # in the name", V5, "82 r 0001 00 s'$share/g#/a' 00", SHARE_NAME),
    ("shared with a wrong filter", V5, "82 r 0001 00 s'$share/g/a#' 00", WILDCARD),
    ("subscription identifier 0", V5, "82 r 0001 02 0b 00 s'a' 00", Protocol("subscription identifier 0")),
    ("subscription identifier twice", V5, "82 r 0001 04 0b 01 0b 02 s'a' 00", TWICE),
    ("a reason string", V5, "82 r 0001 04 1f s'x' s'a' 00", PLACE),
    ("no property length", V5, "82 02 0001", VARINT_CUT),
];

const SUBSCRIBE_ACKS: &[Case] = &[
    ("SUBACK identifier 0", V311, "90 03 0000 00", ID_0),
    ("SUBACK of nothing", V311, "90 02 0001", NO_CODES),
    ("SUBACK of nothing", V5, "90 03 0001 00", NO_CODES),
    ("SUBACK code 3", V311, "90 03 0001 03", CODE),
    ("SUBACK code of MQTT 5", V311, "90 04 0001 00 87", CODE),
    ("SUBACK code 3", V5, "90 05 0001 00 00 03", CODE),
    ("SUBACK with a session expiry", V5, "90 r 0001 05 11 00000001 00", PLACE),
    ("UNSUBACK identifier 0", V5, "b0 04 0000 00 00", ID_0),
    ("UNSUBACK with codes before MQTT 5", V311, "b0 03 0001 00", TRAILING),
    ("UNSUBACK of nothing", V5, "b0 03 0001 00", NO_CODES),
    ("UNSUBACK code 1", V5, "b0 04 0001 00 01", CODE),
];

const UNSUBSCRIBE: &[Case] = &[
    ("packet identifier 0", V311, "a2 r 0000 s'a'", ID_0),
    ("packet identifier 0", V5, "a2 r 0000 00 s'a'", ID_0),
    ("no filter", V311, "a2 02 0001", Protocol("UNSUBSCRIBE without a filter")),
    ("no filter", V5, "a2 03 0001 00", Protocol("UNSUBSCRIBE without a filter")),
    ("empty filter", V311, "a2 r 0001 s'a' s''", EMPTY_FILTER),
    ("filter with # before the end", V5, "a2 r 0001 00 s'#/a'", WILDCARD),
    ("filter with U+0000", V311, "a2 r 0001 0002 6100", NUL),
    ("filter cut short", V5, "a2 r 0001 00 0002 61", CUT),
    ("a byte behind the end", V311, "a2 r 0001 s'a' 00", CUT),
    ("a subscription identifier", V5, "a2 r 0001 02 0b 01 s'a'", PLACE),
];

const DISCONNECT_AND_AUTH: &[Case] = &[
    ("DISCONNECT with a reason before MQTT 5", V311, "e0 01 00", TRAILING),
    ("DISCONNECT reason 1", V5, "e0 01 01", CODE),
    ("DISCONNECT reason 0x18", V5, "e0 02 18 00", CODE),
    ("DISCONNECT session expiry twice", V5, "e0 r 00 0a 11 00000001 11 00000001", TWICE),
    ("DISCONNECT with a receive maximum", V5, "e0 r 00 03 21 0001", PLACE),
    ("DISCONNECT with a byte behind the end", V5, "e0 03 00 00 00", TRAILING),
    ("DISCONNECT properties longer than the packet", V5, "e0 r 00 05 11", CUT),
    ("AUTH reason 1", V5, "f0 01 01", CODE),
    ("AUTH that goes on without a method", V5, "f0 02 18 00", Protocol("AUTH without a method")),
    ("AUTH of properties without a method", V5, "f0 r 00 04 1f s'a'", Protocol("AUTH without a method")),
    ("AUTH data without a method", V5, "f0 r 18 04 16 s'a'", NO_METHOD),
    ("AUTH method twice", V5, "f0 r 18 08 15 s'a' 15 s'a'", TWICE),
    ("AUTH with a session expiry", V5, "f0 r 19 09 15 s'a' 11 00000001", PLACE),
    ("AUTH with a byte behind the end", V5, "f0 r 18 04 15 s'a' 00", TRAILING),
];

fn tables() -> impl Iterator<Item = (String, &'static Case)> {
    [
        ("fixed header", FIXED_HEADER),
        ("CONNECT", CONNECT),
        ("CONNACK", CONNACK),
        ("PUBLISH", PUBLISH),
        ("acknowledgement", ACKS),
        ("SUBSCRIBE", SUBSCRIBE),
        ("acknowledgement", SUBSCRIBE_ACKS),
        ("UNSUBSCRIBE", UNSUBSCRIBE),
        ("end", DISCONNECT_AND_AUTH),
    ]
    .into_iter()
    .flat_map(|(packet, cases)| {
        cases.iter().map(move |case| (format!("{packet}: {} ({:?})", case.0, case.1), case))
    })
}

/// Name, version and bytes of every case.
pub(crate) fn all() -> Vec<(String, Version, Vec<u8>)> {
    tables().map(|(name, case)| (name, case.1, parse(case.2))).collect()
}

/// Odd and right: version and bytes.
const ACCEPTED: &[(&str, Version, &str)] = &[
    ("client id that is empty", V311, "10 r s'MQTT' 04 00 0000 s''"),
    ("user name that is empty", V311, "10 r s'MQTT' 04 82 003c s'' s''"),
    ("password without a user name", V5, "10 r s'MQTT' 05 42 003c 00 s'' s'secret'"),
    ("will of no bytes", V311, "10 r s'MQTT' 04 26 003c s'id' s't' s''"),
    ("password that is not UTF-8", V311, "10 r s'MQTT' 04 c2 003c s'id' s'u' 0002 00ff"),
    ("authentication method without data", V5, "10 r s'MQTT' 05 02 003c 04 15 s'x' s'id'"),
    ("topic alias maximum 0", V5, "10 r s'MQTT' 05 02 003c 03 22 0000 s'id'"),
    ("session expiry for ever", V5, "10 r s'MQTT' 05 02 003c 05 11 ffffffff s'id'"),
    (
        "user properties that are empty and repeat",
        V5,
        "10 r s'MQTT' 05 02 003c 0a 26 s'' s'' 26 s'' s'' s'id'",
    ),
    ("payload of no bytes", V311, "31 r s't'"),
    ("topic with U+FEFF in front, which stays", V311, "30 r 0004 efbbbf74"),
    ("topic with U+2A6D4", V311, "30 r 0005 41f0aa9b94"),
    ("topic with spaces, $ and empty levels", V311, "30 r 0005 242f202f2f"),
    // "SHOULD NOT include" (1.5.4): a receiver may close the connection, and need not.
    ("topic with control characters", V311, "30 r 0003 017f41"),
    ("topic of 32 levels", V311, "30 r s'///////////////////////////////'"),
    ("no topic but an alias", V5, "30 r s'' 03 23 0001"),
    ("response topic and correlation data of no bytes", V5, "30 r s't' 07 08 s'r' 09 s''"),
    ("two subscription identifiers", V5, "30 r s't' 05 0b 01 0b 8001"),
    ("message expiry 0", V5, "30 r s't' 05 02 00000000"),
    ("payload that is not UTF-8 and says it is", V5, "30 r s't' 02 01 01 ff"),
    ("PUBACK with a reason and no properties", V5, "40 03 0001 00"),
    ("PUBACK with a property length 0", V5, "40 04 0001 00 00"),
    ("filters that are only wildcards", V311, "82 r 0001 s'#' 00 s'+' 01 s'+/+/#' 02 s'/+' 00"),
    ("filter with $ and a level that is empty", V311, "82 r 0001 s'$SYS//#' 00"),
    ("filter that only looks shared", V5, "82 r 0001 00 s'$shared' 04"),
    (
        "shared filter of 32 levels behind its name",
        V5,
        "82 r 0001 00 s'$share/g////////////////////////////////' 00",
    ),
    ("the same filter twice", V5, "82 r 0001 00 s'a' 00 s'a' 2a"),
    ("DISCONNECT with a reason and no properties", V5, "e0 01 04"),
    ("DISCONNECT 0x8c, which stands in table 2-6 alone", V5, "e0 01 8c"),
    ("AUTH success with nothing else", V5, "f0 02 00 00"),
];

#[test]
fn what_the_standards_forbid_is_refused() {
    assert!(tables().count() >= 200);
    for (name, (_, version, bytes, error)) in tables() {
        assert_eq!(decode(&parse(bytes), *version, LIMIT), Err(*error), "{name}");
    }
}

#[test]
fn what_is_odd_and_right_is_taken() {
    for (name, version, bytes) in ACCEPTED {
        let bytes = parse(bytes);
        let (packet, len) =
            decode(&bytes, *version, LIMIT).unwrap().unwrap_or_else(|| panic!("{name}: incomplete"));
        assert_eq!(len, bytes.len(), "{name}");
        Model::of(packet);
    }
}

#[test]
fn a_connection_of_either_version_takes_a_connect_of_either() {
    for (name, version, bytes) in ACCEPTED.iter().filter(|(_, _, bytes)| bytes.starts_with("10")) {
        for spoken in [V311, V5] {
            let bytes = parse(bytes);
            let Ok(Some((Packet::Connect(connect), _))) = decode(&bytes, spoken, LIMIT) else {
                panic!("{name}")
            };
            assert_eq!(connect.version, *version, "{name}");
        }
    }
}

#[test]
fn topic_alias_0_is_left_to_the_session() {
    // Its DISCONNECT must say 0x94 (section 3.3.4), which no error of the decoder does.
    let bytes = parse("30 r s't' 03 23 0000");
    let alias = Model::decode(&bytes, V5).properties;
    assert_eq!(alias, [Property::TopicAlias(0)]);
}

#[test]
fn errors_name_their_reason_code() {
    for (error, reason) in [
        (Malformed("x"), ReasonCode(0x81)),
        (Protocol("x"), ReasonCode(0x82)),
        (UnsupportedVersion(6), ReasonCode(0x84)),
        (TooLarge { size: 2, limit: 1 }, ReasonCode(0x95)),
    ] {
        assert_eq!(error.reason(), reason);
    }
}

#[test]
fn the_version_of_a_connect_is_known_although_the_rest_is_malformed() {
    for (bytes, version) in [
        ("10 r s'MQTT' 05 03 003c 00 s'id'", Some(V5)),
        ("10 r s'MQTT' 05", Some(V5)),
        ("10 ff01 s'MQTT' 04", Some(V311)),
        ("10 r s'MQIsdp' 03 03", Some(V311)),
        ("10 r s'MQTT' 06 02 003c 00 s'id'", None),
        ("10 r 'MQT'", None),
        ("30 r s'MQTT' 05", None),
        ("10", None),
    ] {
        assert_eq!(Connect::version_of(&parse(bytes)), version, "{bytes}");
    }
}
