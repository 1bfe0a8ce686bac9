//! Packets of every kind as bytes, written down without the codec's help.

use sonde_proto::mqtt::Version::{self, V5, V311};

use crate::model::Model;
use crate::standard::{PLACES, example, packet_with};

/// Name, version and bytes of packets in their shortest form.
const PLAIN: &[(&str, Version, &str)] = &[
    ("CONNECT", V311, "10 r s'MQTT' 04 02 003c s'id'"),
    ("CONNECT with all", V311, "10 r s'MQTT' 04 ee 003c s'id' s'will' 0003 00ff01 s'user' s'password'"),
    ("CONNECT of 3.1", V311, "10 r s'MQIsdp' 03 02 003c s'id'"),
    (
        "CONNECT of 3.1 with all",
        V311,
        "10 r s'MQIsdp' 03 ee 003c s'id' s'will' 0003 00ff01 s'user' s'password'",
    ),
    ("CONNACK", V311, "20 02 01 00"),
    ("CONNACK refused", V311, "20 02 00 05"),
    ("PUBLISH QoS 0", V311, "30 r s'topic' 'payload'"),
    ("PUBLISH QoS 1", V311, "3b r s'topic' 1234 'payload'"),
    ("PUBLISH QoS 2", V311, "34 r s'topic' ffff"),
    ("PUBACK", V311, "40 02 0001"),
    ("PUBREC", V311, "50 02 0100"),
    ("PUBREL", V311, "62 02 1234"),
    ("PUBCOMP", V311, "70 02 ffff"),
    ("SUBSCRIBE", V311, "82 r 000a s'a/b' 01 s'c/+' 02 s'#' 00"),
    ("SUBACK", V311, "90 06 000a 01 02 00 80"),
    ("UNSUBSCRIBE", V311, "a2 r 000a s'a/b' s'+/#'"),
    ("UNSUBACK", V311, "b0 02 000a"),
    ("PINGREQ", V311, "c0 00"),
    ("PINGRESP", V311, "d0 00"),
    ("DISCONNECT", V311, "e0 00"),
    ("CONNECT", V5, "10 r s'MQTT' 05 00 0000 00 s''"),
    ("CONNECT with all", V5, "10 r s'MQTT' 05 f6 003c 00 s'id' 00 s'will' 0003 00ff01 s'user' s'password'"),
    ("CONNACK", V5, "20 03 00 00 00"),
    ("PUBLISH", V5, "30 r s'topic' 00 'payload'"),
    ("PUBLISH of an alias", V5, "3d r s'' 0102 03 23 0001"),
    ("PUBACK", V5, "40 02 0001"),
    ("PUBACK with a reason", V5, "40 03 0001 10"),
    ("PUBREC", V5, "50 03 0100 97"),
    ("PUBREL", V5, "62 03 1234 92"),
    ("PUBCOMP", V5, "70 02 ffff"),
    ("SUBSCRIBE", V5, "82 r 000a 00 s'a/b' 2d s'$share/g/#' 1a"),
    ("SUBACK", V5, "90 06 000a 00 02 80 a2"),
    ("UNSUBSCRIBE", V5, "a2 r 000a 00 s'a/b' s'$share/g/#'"),
    ("UNSUBACK", V5, "b0 05 000a 00 00 11"),
    ("PINGREQ", V5, "c0 00"),
    ("PINGRESP", V5, "d0 00"),
    ("DISCONNECT", V5, "e0 00"),
    ("DISCONNECT with a reason", V5, "e0 01 04"),
    ("AUTH", V5, "f0 00"),
];

/// The plain packets, and one with all its properties for each place where properties stand.
pub(crate) fn all() -> Vec<(String, Version, Vec<u8>)> {
    let plain =
        PLAIN.iter().map(|(name, version, bytes)| (format!("{name} {version:?}"), *version, parse(bytes)));
    let full = PLACES.iter().map(|place| {
        let properties: Vec<u8> = place.properties().iter().flat_map(|id| example(*id).1).collect();
        (format!("{place:?} with all properties"), V5, packet_with(*place, &properties))
    });
    plain.chain(full).collect()
}

/// The bytes of hexadecimal digits, where `'text'` stands for its bytes, `s'text'` for its bytes behind their length,
/// and `r` for the remaining length.
pub(crate) fn parse(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut sealed = false;
    for token in text.split_whitespace() {
        match token.split('\'').collect::<Vec<_>>()[..] {
            ["r"] => sealed = true,
            [digits] => {
                let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
                bytes.extend(pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()));
            }
            [kind, text, ""] => {
                if kind == "s" {
                    bytes.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
                }
                bytes.extend(text.as_bytes());
            }
            _ => panic!("{token}"),
        }
    }
    if sealed { seal(bytes[0], &bytes[1..]) } else { bytes }
}

/// A packet of this first byte and body.
pub(crate) fn seal(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut len = body.len();
    while len >= 0x80 {
        packet.push(len as u8 | 0x80);
        len >>= 7;
    }
    packet.push(len as u8);
    packet.extend(body);
    packet
}

/// The body of a packet.
pub(crate) fn body(packet: &[u8]) -> &[u8] {
    let len = packet[1..].iter().position(|byte| byte & 0x80 == 0).unwrap();
    &packet[2 + len..]
}

#[test]
fn exemplars_are_golden() {
    for (name, version, bytes) in all() {
        assert_eq!(Model::decode(&bytes, version).encode(version), bytes, "{name}");
    }
}
