//! Random bytes, mutated bytes, and the loop that feeds them to a decoder.
//!
//! # Invariants
//! - `cargo test` draws the same cases every time; with `SONDE_FUZZ_SECONDS` set, each run draws others. A case that
//!   fails is printed whole, to become a named test.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bytes at borders that decoders compare with.
const BORDERS: [u8; 16] = [0, 1, 2, 3, 4, 5, 0x0b, 0x15, 0x16, 0x26, 0x7f, 0x80, 0x81, 0x8c, 0xfe, 0xff];

/// xorshift64*, for cases that a seed repeats.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`, which is not 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Feeds random bytes and mutated copies of the exemplars to `decode` until the time is over. `reseal` may make
/// lengths right again.
pub(crate) fn fuzz(
    exemplars: &[Vec<u8>],
    reseal: impl Fn(&mut Random, &mut Vec<u8>),
    decode: impl Fn(&[u8]),
) {
    let seconds = std::env::var("SONDE_FUZZ_SECONDS").ok().map(|text| text.parse().unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut random = Random::new(if seconds.is_some() { now.as_nanos() as u64 } else { 0 });
    let end = Instant::now() + Duration::from_secs_f64(seconds.unwrap_or(1.0));
    let mut rounds = 0_u64;
    while Instant::now() < end {
        let mut bytes = case(&mut random, exemplars);
        reseal(&mut random, &mut bytes);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| decode(&bytes))) {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("round {rounds} failed on these {} bytes: {hex}", bytes.len());
            resume_unwind(panic);
        }
        rounds += 1;
    }
    println!("{rounds} rounds");
    assert!(rounds > 0);
}

fn case(random: &mut Random, exemplars: &[Vec<u8>]) -> Vec<u8> {
    if random.below(8) == 0 {
        return (0..random.below(100)).map(|_| random.next() as u8).collect();
    }
    let mut bytes = random.pick(exemplars).clone();
    for _ in 0..1 + random.below(4) {
        mutate(random, &mut bytes, exemplars);
    }
    bytes
}

/// Changes one thing: a bit, a byte, a range, the end.
pub(crate) fn mutate(random: &mut Random, bytes: &mut Vec<u8>, exemplars: &[Vec<u8>]) {
    if bytes.is_empty() {
        return;
    }
    let at = random.below(bytes.len());
    match random.below(9) {
        0 | 1 => bytes[at] ^= 1 << random.below(8),
        2 | 3 => bytes[at] = *random.pick(&BORDERS),
        4 => bytes[at] = bytes[at].wrapping_add(*random.pick(&[1, 0xff])),
        5 => bytes.insert(at, *random.pick(&BORDERS)),
        6 => bytes.truncate(at),
        7 => {
            let end = at + random.below(bytes.len() - at).min(40);
            let piece = bytes[at..end].to_vec();
            let to = random.below(bytes.len());
            if random.below(2) == 0 {
                bytes.drain(at..end);
            } else {
                bytes.splice(to..to, piece);
            }
        }
        _ => {
            let other = random.pick(exemplars);
            let from = random.below(other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}
