//! What was encoded decodes to the same fields.

use proptest::prelude::*;
use sonde_proto::mqtt::{DecodeError, Packet, Publish, QoS, Version, decode};

use crate::exemplar;
use crate::model::{LIMIT, Model, builder};
use crate::standard::{PLACES, PROPERTIES, Place, example, packet_with};
use crate::strategy::{For, packet};

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn packets_of_3_1_1(model in packet(Version::V311, For::Us)) {
        let bytes = model.encode(Version::V311);
        prop_assert_eq!(Model::decode(&bytes, Version::V311), model);
    }

    #[test]
    fn packets_of_5_0(model in packet(Version::V5, For::Us)) {
        let bytes = model.encode(Version::V5);
        prop_assert_eq!(Model::decode(&bytes, Version::V5), model);
    }

    #[test]
    fn packets_that_follow_each_other(
        first in packet(Version::V5, For::Us), second in packet(Version::V5, For::Us)
    ) {
        let mut bytes = first.encode(Version::V5);
        let boundary = bytes.len();
        bytes.extend(second.encode(Version::V5));
        let (packet, len) = decode(&bytes, Version::V5, LIMIT).unwrap().unwrap();
        prop_assert_eq!(len, boundary);
        prop_assert_eq!(Model::of(packet), first);
        prop_assert_eq!(Model::decode(&bytes[len..], Version::V5), second);
    }
}

#[test]
fn lengths_at_which_the_remaining_length_grows() {
    for remaining in [127, 128, 16_383, 16_384, 2_097_151, 2_097_152] {
        let payload = vec![7; remaining - 3];
        let publish = Publish {
            dup: false,
            qos: QoS::AtMostOnce,
            retain: false,
            topic: "t",
            packet_id: 0,
            properties: Default::default(),
            payload: &payload,
        };
        let mut bytes = vec![0xee];
        publish.encode(Version::V311, &mut bytes);
        let expected = exemplar::seal(0x30, &[b"\0\x01t", &payload[..]].concat());
        assert!(bytes[1..] == expected, "{remaining}");
        let decoded = decode(&expected, Version::V311, expected.len()).unwrap().unwrap();
        assert!(decoded == (Packet::Publish(publish), expected.len()), "{remaining}");
        let error = DecodeError::TooLarge { size: expected.len(), limit: expected.len() - 1 };
        assert_eq!(decode(&expected, Version::V311, expected.len() - 1), Err(error));
        assert_eq!(
            decode(&expected[..5], Version::V311, expected.len() - 1),
            Err(error),
            "before the body is there"
        );
    }
}

#[test]
fn each_property_has_the_bytes_of_the_standard() {
    for id in PROPERTIES {
        let (property, bytes) = example(id);
        let built = builder(&[property]);
        assert_eq!(built.as_properties().iter().collect::<Vec<_>>(), [property]);
        let place = *PLACES.iter().find(|place| place.properties().contains(&id)).unwrap();
        // Authentication data needs a method.
        let method = if id == 0x16 { example(0x15).1 } else { vec![] };
        let packet = packet_with(place, &[bytes, method].concat());
        let model = Model::decode(&packet, Version::V5);
        assert!(model.properties.first().or(model.will_properties.first()) == Some(&property), "{id:#04x}");
        assert_eq!(model.encode(Version::V5), packet, "{id:#04x}");
    }
}

#[test]
fn each_property_stands_where_the_standard_says_and_as_often() {
    for place in PLACES {
        for id in PROPERTIES {
            let (_, bytes) = example(id);
            let method =
                if id == 0x15 || !place.properties().contains(&0x15) { vec![] } else { example(0x15).1 };
            let once = packet_with(place, &[&bytes[..], &method].concat());
            let twice = packet_with(place, &[&bytes[..], &bytes, &method].concat());
            if !place.properties().contains(&id) {
                let error = DecodeError::Protocol("a property that does not belong in this packet");
                assert_eq!(decode(&once, Version::V5, LIMIT), Err(error), "{place:?} {id:#04x}");
                continue;
            }
            assert!(decode(&once, Version::V5, LIMIT).unwrap().is_some(), "{place:?} {id:#04x}");
            let twice = decode(&twice, Version::V5, LIMIT);
            if id == 0x26 || (id == 0x0b && place == Place::Publish) {
                assert!(twice.unwrap().is_some(), "{place:?} {id:#04x}");
            } else {
                let error = DecodeError::Protocol("a property that stands twice");
                assert_eq!(twice, Err(error), "{place:?} {id:#04x}");
            }
        }
    }
}

#[test]
fn each_reason_code_stands_where_the_standard_says() {
    let method = example(0x15).1;
    for place in PLACES {
        for code in 0..=u8::MAX {
            for version in [Version::V311, Version::V5] {
                let v5 = version == Version::V5;
                let bytes = match place {
                    Place::ConnAck if v5 => vec![0x20, 3, 0, code, 0],
                    Place::ConnAck => vec![0x20, 2, 0, code],
                    Place::SubAck if v5 => vec![0x90, 5, 0, 1, 0, 0, code],
                    Place::SubAck => vec![0x90, 4, 0, 1, 0, code],
                    Place::PubAck if v5 => vec![0x40, 3, 0, 1, code],
                    Place::PubRec if v5 => vec![0x50, 3, 0, 1, code],
                    Place::PubRel if v5 => vec![0x62, 3, 0, 1, code],
                    Place::PubComp if v5 => vec![0x70, 3, 0, 1, code],
                    Place::UnsubAck if v5 => vec![0xb0, 4, 0, 1, 0, code],
                    Place::Disconnect if v5 => vec![0xe0, 1, code],
                    Place::Auth if v5 => {
                        exemplar::seal(0xf0, &[&[code, method.len() as u8], &method[..]].concat())
                    }
                    _ => continue,
                };
                let decoded = decode(&bytes, version, LIMIT);
                if place.codes(version).contains(&code) {
                    let again = Model::of(decoded.unwrap().unwrap().0).encode(version);
                    // Success may be left out.
                    assert!(again == bytes || code == 0, "{place:?} {version:?} {code:#04x}");
                } else {
                    let error = DecodeError::Protocol("a reason code that does not belong in this packet");
                    assert_eq!(decoded, Err(error), "{place:?} {version:?} {code:#04x}");
                }
            }
        }
    }
}

#[test]
fn what_a_version_cannot_say_is_left_out() {
    use sonde_proto::mqtt::{Filter, Properties, RetainHandling, SubAck, Subscribe};
    let mut out = Vec::new();
    let filter = Filter {
        filter: "a",
        qos: QoS::AtLeastOnce,
        no_local: true,
        retain_as_published: true,
        retain_handling: RetainHandling::Never,
    };
    Subscribe::encode(1, Properties::default(), &[filter], Version::V311, &mut out);
    assert_eq!(out, exemplar::parse("82 r 0001 s'a' 01"));
    let user = builder(&[example(0x1f).0]);
    let ack = SubAck { packet_id: 1, properties: user.as_properties(), reasons: &[0, 0x11] };
    out.clear();
    Packet::UnsubAck(ack).encode(Version::V311, &mut out);
    assert_eq!(out, exemplar::parse("b0 02 0001"));
}
