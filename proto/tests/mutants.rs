//! So many mutated packets of each kind and version: no panic, no leak, no memory beyond the limit of a packet.
//!
//! # Invariants
//! - Every mutant comes of a packet of its kind that is well-formed, or was before a property was put in, taken out or
//!   said twice; then its bytes are changed.
//! - `cargo test` draws the same mutants every time; `SONDE_FUZZ_SEED` gives others, and with `SONDE_FUZZ_SECONDS` alone
//!   each run draws its own. The seed is printed, and a mutant that fails is too, to become a named test.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sonde_proto::mqtt::{DecodeError, Packet, Property, Version, decode};

use crate::alloc::{allocations, memory, read_all};
use crate::damage::seal_some;
use crate::exemplar::body;
use crate::model::{Body, Model};
use crate::random::{Random, mutate};
use crate::standard::{PROPERTIES, example};
use crate::strategy::{For, kinds};

/// Bytes that a packet may have: the broker's limit for clients that it knows.
const PACKET_BYTES: usize = 1 << 20;
/// Mutants of each kind and version in `cargo test`; `scripts/fuzz.sh` makes a million in an optimised build.
const MUTANTS: usize = 10_000;
/// So many mutants come of the same packet.
const MUTANTS_OF_ONE: usize = 100;
/// Of packets longer than that comes one in so many mutants: the copies would take most of the time.
const LONG: (usize, usize) = (2048, 64);
/// Packets are drawn anew until so many of a kind are there.
const MOST_PACKETS: usize = 5_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Mqtt3_1,
    Mqtt3_1_1,
    Mqtt5_0,
}

impl Dialect {
    /// That of the decoder: 3.1 differs from 3.1.1 in its CONNECT alone.
    fn version(self) -> Version {
        if self == Self::Mqtt5_0 { Version::V5 } else { Version::V311 }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Mqtt3_1 => "3.1",
            Self::Mqtt3_1_1 => "3.1.1",
            Self::Mqtt5_0 => "5.0",
        }
    }
}

/// What became of mutants.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    decoded: usize,
    refused: usize,
    incomplete: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { decoded, refused, incomplete } = self;
        let all = decoded + refused + incomplete;
        write!(f, "{all} mutants: {decoded} decoded, {refused} refused, {incomplete} not all there")
    }
}

#[test]
fn fuzz_mutants_of_mqtt_3_1() {
    survive_all(Dialect::Mqtt3_1);
}

#[test]
fn fuzz_mutants_of_mqtt_3_1_1() {
    survive_all(Dialect::Mqtt3_1_1);
}

#[test]
fn fuzz_mutants_of_mqtt_5_0() {
    survive_all(Dialect::Mqtt5_0);
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// One for the whole run.
static SEED: LazyLock<u64> = LazyLock::new(|| {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let new = variable("SONDE_FUZZ_SECONDS").map(|_| now());
    variable("SONDE_FUZZ_SEED").or(new).unwrap_or(0)
});

fn survive_all(dialect: Dialect) {
    let seed = *SEED;
    let count = variable("SONDE_FUZZ_MUTANTS").map_or(MUTANTS, |count| count as usize);
    for (n, (kind, packets)) in kinds(dialect.version(), For::Us).into_iter().enumerate() {
        let mut random = Random::new(seed << 8 ^ (dialect as u64) << 4 ^ n as u64);
        let drawn = (count / MUTANTS_OF_ONE).clamp(1, MOST_PACKETS);
        let pool = Pool::draw(&mut random, &packets, drawn, dialect);
        let mut tally = Tally::default();
        for _ in 0..count {
            let bytes = pool.mutant(&mut random, dialect.version());
            let cut = random.below(bytes.len() + 1);
            let limit = if random.below(8) == 0 { random.below(bytes.len() + 8) } else { PACKET_BYTES };
            let judge = AssertUnwindSafe(|| survive(&bytes, dialect.version(), cut, limit));
            match catch_unwind(judge) {
                Ok(Ok(Some(_))) => tally.decoded += 1,
                Ok(Ok(None)) => tally.incomplete += 1,
                Ok(Err(_)) => tally.refused += 1,
                Err(panic) => {
                    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                    eprintln!("MQTT {} {kind}, seed {seed}: limit {limit}, cut {cut}: {hex}", dialect.name());
                    resume_unwind(panic);
                }
            }
        }
        println!("MQTT {} {kind}, seed {seed}: {tally}", dialect.name());
        // Mutants that are all the same to the decoder would show nothing.
        assert!(tally.decoded > count / 100 && tally.refused > count / 100, "{kind}: {tally}");
    }
}

/// Decodes a mutant, and what decodes again from what it encodes to. Returns the length of the packet.
fn survive(bytes: &[u8], version: Version, cut: usize, limit: usize) -> Result<Option<usize>, DecodeError> {
    let (decoded, found) = memory(|| {
        let (decoded, allocated) = allocations(|| {
            let decoded = decode(bytes, version, limit);
            if let Ok(Some((packet, len))) = &decoded {
                assert!(*len <= bytes.len().min(limit) && read_all(packet) <= *len, "more items than bytes");
            }
            judge_part(bytes, version, cut, limit, &decoded);
            decoded
        });
        assert_eq!(allocated, 0, "decoding allocates");
        if let Ok(Some((packet, len))) = &decoded {
            say_again(packet, *len, version);
        }
        decoded.map(|decoded| decoded.map(|(_, len)| len))
    });
    assert_eq!(found.left, 0, "memory is left");
    assert!(found.peak <= PACKET_BYTES, "{} bytes at once", found.peak);
    decoded
}

type Decoded<'a> = Result<Option<(Packet<'a>, usize)>, DecodeError>;

/// Less of the bytes is judged the same, or nothing is said yet.
fn judge_part(bytes: &[u8], version: Version, cut: usize, limit: usize, whole: &Decoded<'_>) {
    let part = decode(&bytes[..cut], version, limit);
    match whole {
        Ok(Some((_, len))) if cut >= *len => assert_eq!(part, *whole),
        Ok(_) => assert_eq!(part, Ok(None)),
        Err(_) => assert!(part == Ok(None) || part == *whole, "{part:?}, then {whole:?}"),
    }
}

fn say_again(packet: &Packet<'_>, len: usize, version: Version) {
    let version = if let Packet::Connect(connect) = packet { connect.version } else { version };
    let mut again = Vec::with_capacity(len);
    packet.encode(version, &mut again);
    assert!(again.len() <= len, "lengths have their shortest form");
    assert_eq!(decode(&again, version, again.len()), Ok(Some((*packet, again.len()))));
}

/// Well-formed packets of one kind, and what of them they are made of.
struct Pool {
    models: Vec<Model<'static>>,
    short: Vec<Vec<u8>>,
    long: Vec<Vec<u8>>,
}

impl Pool {
    fn draw(
        random: &mut Random,
        packets: &impl Strategy<Value = Model<'static>>,
        count: usize,
        dialect: Dialect,
    ) -> Self {
        let seed: Vec<u8> = (0..32).map(|_| random.next() as u8).collect();
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        let mut pool = Self { models: Vec::new(), short: Vec::new(), long: Vec::new() };
        for _ in 0..count {
            let mut model = packets.new_tree(&mut runner).unwrap().current();
            if let Body::Packet(Packet::Connect(connect)) = &mut model.body {
                connect.is_3_1 = dialect == Dialect::Mqtt3_1;
            }
            let bytes = model.encode(dialect.version());
            if bytes.len() > LONG.0 {
                pool.long.push(bytes);
            } else {
                pool.short.push(bytes);
                pool.models.push(model);
            }
        }
        pool
    }

    fn mutant(&self, random: &mut Random, version: Version) -> Vec<u8> {
        let is_long = self.short.is_empty() || (!self.long.is_empty() && random.below(LONG.1) == 0);
        let from = if is_long { &self.long } else { &self.short };
        let at = random.below(from.len());
        let mut bytes = from[at].clone();
        let mut changes = 1 + random.below(4);
        if version == Version::V5 && !is_long && random.below(4) == 0 {
            let mut model = self.models[at].clone();
            change_properties(random, &mut model);
            bytes = model.encode(version);
            changes = random.below(2);
        }
        for _ in 0..changes {
            if random.below(4) == 0 {
                lie_of_a_field(random, &mut bytes);
            } else {
                mutate(random, &mut bytes, from);
            }
        }
        seal_some(random, &mut bytes);
        if random.below(16) == 0 {
            lie_of_the_packet(random, &mut bytes);
        }
        bytes
    }
}

/// Says a property twice, puts in any other, takes one out, or moves one.
fn change_properties(random: &mut Random, model: &mut Model<'static>) {
    let is_connect = matches!(&model.body, Body::Packet(Packet::Connect(connect)) if connect.will.is_some());
    let list =
        if is_connect && random.below(2) == 0 { &mut model.will_properties } else { &mut model.properties };
    let any: Property<'static> = example(*random.pick(&PROPERTIES)).0;
    let to = random.below(list.len() + 1);
    if list.is_empty() {
        return list.push(any);
    }
    let at = random.below(list.len());
    match random.below(5) {
        0 | 1 => list.insert(to, list[at]),
        2 => list.insert(to, any),
        3 => drop(list.remove(at)),
        _ => {
            let to = to.min(list.len() - 1);
            list.swap(at, to);
        }
    }
}

/// Writes into two bytes what may pass for the length of a field that is wrong: nothing, more than there is, or a
/// little off.
fn lie_of_a_field(random: &mut Random, bytes: &mut [u8]) {
    if bytes.len() < 4 {
        return;
    }
    let at = 2 + random.below(bytes.len() - 3);
    let rest = (bytes.len() - at - 2) as u16;
    let said = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let lies =
        [0, 1, rest, rest.wrapping_sub(1), rest.wrapping_add(1), said.wrapping_add(1), said.wrapping_sub(1)];
    let lie = if random.below(8) == 0 { *random.pick(&[0x7fff, u16::MAX]) } else { *random.pick(&lies) };
    bytes[at..at + 2].copy_from_slice(&lie.to_be_bytes());
}

/// Puts another remaining length in front of the body: a border, a little off, or none that the standard knows.
fn lie_of_the_packet(random: &mut Random, bytes: &mut Vec<u8>) {
    if !bytes.iter().skip(1).any(|byte| byte & 0x80 == 0) {
        return;
    }
    let rest = body(bytes).to_vec();
    let near = rest.len() as u32;
    let borders = [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, (1 << 28) - 1];
    let lie = match random.below(4) {
        0 => *random.pick(&borders),
        1 => near.wrapping_sub(1),
        2 => near + 1,
        _ => near,
    };
    bytes.truncate(1);
    // Beyond four bytes, and longer than need be, where the case wants it.
    let mut left = lie;
    while left >= 0x80 {
        bytes.push(left as u8 | 0x80);
        left >>= 7;
    }
    match random.below(4) {
        0 => bytes.extend([left as u8 | 0x80, 0]),
        1 => bytes.extend([left as u8 | 0x80, 0x80, 0x80, 0x80, 1]),
        _ => bytes.push(left as u8),
    }
    bytes.extend(rest);
}
