//! Random bytes, mutated bytes, and the loop that feeds them to a decoder.
//!
//! # Invariants
//! - `cargo test` draws the same cases every time; with `SONDE_FUZZ_SECONDS` set, each run draws others. A case that
//!   fails is printed whole, to become a named test.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::alloc;

/// A decoder may take this much memory for the small inputs of a fuzz target.
const MEMORY: usize = 512 << 20;
/// Numbers at borders that decoders compare with.
const BORDERS: [u64; 14] =
    [0, 1, 2, 63, 64, 65, 255, 1023, 1024, 1025, 1 << 16, 1 << 31, u32::MAX as u64, u64::MAX];

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

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// Feeds random bytes and mutated copies of the exemplars to `decode` until the time is over. `reseal` makes the
/// checksums right again, so that the damage reaches the code behind them.
pub(crate) fn fuzz(exemplars: &[Vec<u8>], reseal: impl Fn(&mut Vec<u8>), decode: impl Fn(&[u8])) {
    let seconds = std::env::var("SONDE_FUZZ_SECONDS").ok().map(|text| text.parse().unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut random = Random::new(if seconds.is_some() { now.as_nanos() as u64 } else { 0 });
    let end = Instant::now() + Duration::from_secs_f64(seconds.unwrap_or(1.0));
    let mut rounds = 0_u64;
    while Instant::now() < end {
        let mut bytes = case(&mut random, exemplars);
        reseal(&mut bytes);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let ((), peak) = alloc::peak(|| decode(&bytes));
            assert!(peak <= MEMORY, "{peak} bytes allocated for {} bytes", bytes.len());
        }));
        if let Err(panic) = outcome {
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
        let len = random.below(300);
        return random.bytes(len);
    }
    let mut bytes = random.pick(exemplars);
    for _ in 0..1 + random.below(4) {
        mutate(random, &mut bytes, exemplars);
    }
    bytes
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>, exemplars: &[Vec<u8>]) {
    if bytes.is_empty() {
        return;
    }
    let at = random.below(bytes.len());
    match random.below(9) {
        0 | 1 => bytes[at] ^= 1 << random.below(8),
        2 | 3 => bytes[at] = random.pick(&[0, 1, 2, 0x7f, 0x80, 0xff, bytes[at].wrapping_add(1)]),
        4 | 5 => {
            let number = random.pick(&BORDERS).wrapping_add(random.pick(&[0, 0, 1, u64::MAX])).to_le_bytes();
            let len = random.pick(&[2, 4, 8]).min(bytes.len() - at);
            bytes[at..at + len].copy_from_slice(&number[..len]);
        }
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
            let from = random.below(other.len().max(1)).min(other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}
