//! Packets that are cut short or mutated, and bytes that never were a packet.

use sonde_proto::mqtt::{DecodeError, Packet, Version, decode};

use crate::alloc::read_all;
use crate::exemplar::{all, body, seal};
use crate::model::{LIMIT, Model};
use crate::random::Random;

pub(crate) const VERSIONS: [Version; 2] = [Version::V311, Version::V5];

/// Fails unless the decoder's answer holds together: what it takes has a length, ends, and can be said again.
fn check(bytes: &[u8], version: Version) {
    let Ok(Some((packet, len))) = decode(bytes, version, LIMIT) else { return };
    assert!(len <= bytes.len());
    assert!(read_all(&packet) <= len, "more items than bytes");
    let version = if let Packet::Connect(connect) = packet { connect.version } else { version };
    let model = Model::of(packet);
    let again = model.encode(version);
    assert!(again.len() <= len, "lengths have their shortest form");
    assert_eq!(Model::decode(&again, version), model);
    assert_eq!(decode(&bytes[..len], version, len), Ok(Some((packet, len))), "what follows does not matter");
}

#[test]
fn a_packet_that_is_not_all_there_is_no_packet() {
    for (name, version, bytes) in all() {
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut], version, LIMIT), Ok(None), "{name} cut to {cut} bytes");
        }
    }
}

#[test]
fn a_body_that_is_cut_short_is_refused() {
    for (name, version, bytes) in all() {
        for cut in 0..body(&bytes).len() {
            let cut_short = seal(bytes[0], &body(&bytes)[..cut]);
            check(&cut_short, version);
            // These end with a list or with something optional, so that they may also end earlier.
            let may_end = matches!(bytes[0] >> 4, 3 | 8..=11)
                || (version == Version::V5 && matches!(bytes[0] >> 4, 4..=7 | 14 | 15));
            let decoded = decode(&cut_short, version, LIMIT);
            assert!(
                decoded.is_err() || (may_end && decoded != Ok(None)),
                "{name} with a body of {cut} bytes"
            );
        }
    }
}

#[test]
fn a_body_that_goes_on_is_refused() {
    for (name, version, bytes) in all() {
        let longer = seal(bytes[0], &[body(&bytes), &[0]].concat());
        check(&longer, version);
        let may_go_on = match (bytes[0] >> 4, version) {
            (3 | 9, _) => true,
            // A reason code 0, a property length 0.
            (11, Version::V5) => true,
            (4..=7, Version::V5) => body(&bytes).len() <= 3,
            (14 | 15, Version::V5) => body(&bytes).len() <= 1,
            _ => false,
        };
        let decoded = decode(&longer, version, LIMIT);
        assert_eq!(decoded.is_ok(), may_go_on, "{name}: {decoded:?}");
    }
}

#[test]
fn every_flipped_bit_is_survived() {
    for (_, version, bytes) in all() {
        let mut copy = bytes.clone();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                copy[at] ^= 1 << bit;
                check(&copy, version);
                copy[at] = bytes[at];
            }
        }
    }
}

#[test]
fn every_packet_is_survived_in_the_other_version() {
    for (_, _, bytes) in all() {
        VERSIONS.iter().for_each(|version| check(&bytes, *version));
    }
}

#[test]
fn every_start_of_a_packet_is_judged_alike_however_much_of_it_is_there() {
    // A decoder that is fed byte by byte must not change its mind: an error stays, a length is final.
    for first in 0..=u8::MAX {
        for rest in
            [&[0x00][..], &[0x80], &[0x80, 0x00], &[0xff, 0xff, 0xff, 0x7f], &[0xff, 0xff, 0xff, 0xff]]
        {
            let bytes = [&[first], rest].concat();
            let mut refused = None;
            for len in 0..=bytes.len() {
                let decoded = decode(&bytes[..len], Version::V5, 1 << 10);
                if let Some(error) = refused {
                    assert_eq!(decoded, Err(error), "{bytes:02x?}");
                }
                refused = decoded.err();
            }
        }
    }
    let error = DecodeError::Malformed("packet type 0");
    assert_eq!(decode(&[0], Version::V5, LIMIT), Err(error));
}

/// Makes the remaining length right again in three of four cases, so that the damage reaches the code behind it.
pub(crate) fn seal_some(random: &mut Random, bytes: &mut Vec<u8>) {
    let has_body = bytes.iter().skip(1).any(|byte| byte & 0x80 == 0);
    if has_body && random.below(4) != 0 {
        *bytes = seal(bytes[0], body(bytes));
    }
}
