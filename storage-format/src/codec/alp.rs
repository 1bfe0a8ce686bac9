//! ALP, adaptive lossless floating point (Afroozeh, Kuffo, Boncz, SIGMOD 2024), in the arithmetic of Parquet's ALP
//! encoding: a float becomes `d = round(v * 10^e * 10^-f)` and comes back as `d * 10^f * 10^-e`, two multiplications,
//! no fused multiply-add.
//!
//! ```text
//! vector := e u8 | f u8 | width u8 | exceptions u16 | base i64 | packed (d - base) | position u16 * | bits u64 *
//! ```
//! # Invariants
//! - A value is an exception unless it comes back with every bit as it was, so NaN payloads, -0.0 and infinities need
//!   no case of their own.
//! - `|d| < 2^51`.
#![expect(
    clippy::indexing_slicing,
    reason = "exponents are checked against the tables' length before they are used"
)]

use super::bitpack;
use crate::cursor::{Cursor, Result};

/// Larger exponents bring no exact values: 2^51 has 16 digits.
const MAX_EXPONENT: usize = 18;
const F10: [f64; MAX_EXPONENT + 1] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18];
const IF10: [f64; MAX_EXPONENT + 1] = [
    1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13, 1e-14, 1e-15,
    1e-16, 1e-17, 1e-18,
];
/// 2^52 + 2^51: adding and subtracting it rounds to the nearest integer.
const MAGIC: f64 = 6_755_399_441_055_744.0;
const LIMIT: u64 = 1 << 51;
/// Values looked at when the exponents of a vector are chosen.
const SAMPLES: usize = 32;
/// Bytes of the vector's header.
const HEADER: usize = 13;

fn to_int(value: f64, e: usize, f: usize) -> i64 {
    // `as` saturates, so values out of range fail the comparison that follows.
    (value * F10[e] * IF10[f] + MAGIC - MAGIC) as i64
}

fn to_float(int: i64, e: usize, f: usize) -> f64 {
    int as f64 * F10[f] * IF10[e]
}

fn exact(value: f64, e: usize, f: usize) -> Option<i64> {
    let int = to_int(value, e, f);
    (int.unsigned_abs() < LIMIT && to_float(int, e, f).to_bits() == value.to_bits()).then_some(int)
}

/// The exponents that make the sample smallest; the smallest ones on ties, so that integers stay integers.
fn choose(values: &[f64]) -> Option<(usize, usize)> {
    let step = values.len().div_ceil(SAMPLES).max(1);
    let sample: Vec<f64> = values.iter().copied().step_by(step).collect();
    let mut best: Option<(u64, usize, usize)> = None;
    for e in 0..=MAX_EXPONENT {
        for f in 0..=e {
            let (mut low, mut high, mut hits) = (i64::MAX, i64::MIN, 0_u64);
            for int in sample.iter().filter_map(|&value| exact(value, e, f)) {
                low = low.min(int);
                high = high.max(int);
                hits += 1;
            }
            if hits < 2 && sample.len() > 1 || hits == 0 {
                continue;
            }
            let width = bitpack::width(high.abs_diff(low));
            let total = sample.len() as u64;
            let cost = total * u64::from(width) + (total - hits) * 80;
            if best.is_none_or(|(least, ..)| cost < least) {
                best = Some((cost, e, f));
            }
        }
    }
    best.map(|(_, e, f)| (e, f))
}

/// Appends the vector; `false`, with nothing appended, where ALP does not pay.
pub(crate) fn encode(values: &[f64], out: &mut Vec<u8>) -> bool {
    let Some((e, f)) = choose(values) else { return false };
    let ints: Vec<Option<i64>> = values.iter().map(|&value| exact(value, e, f)).collect();
    let Some(filler) = ints.iter().copied().flatten().next() else { return false };
    let known = || ints.iter().map(|int| int.unwrap_or(filler));
    let (low, high) = known().fold((i64::MAX, i64::MIN), |(low, high), int| (low.min(int), high.max(int)));
    let width = bitpack::width(high.abs_diff(low));
    let exceptions = ints.iter().filter(|int| int.is_none()).count();
    if HEADER + bitpack::packed_len(values.len(), width) + 10 * exceptions >= 8 * values.len() {
        return false;
    }
    out.extend_from_slice(&[e as u8, f as u8, width as u8]);
    out.extend_from_slice(&(exceptions as u16).to_le_bytes());
    out.extend_from_slice(&low.to_le_bytes());
    bitpack::pack(known().map(|int| int.abs_diff(low)), width, out);
    let missed = || ints.iter().enumerate().filter(|(_, int)| int.is_none()).map(|(i, _)| i);
    for i in missed() {
        out.extend_from_slice(&(i as u16).to_le_bytes());
    }
    for i in missed() {
        out.extend_from_slice(&values[i].to_bits().to_le_bytes());
    }
    true
}

/// Reads `count` floats.
pub(crate) fn decode(cursor: &mut Cursor<'_>, count: usize, out: &mut Vec<f64>) -> Result<()> {
    let (e, f) = (cursor.u8()? as usize, cursor.u8()? as usize);
    if e > MAX_EXPONENT || f > e {
        return Err(cursor.invalid("ALP exponents with f <= e <= 18", (e << 8 | f) as u64));
    }
    let width = cursor.u8()?.into();
    let exceptions = cursor.u16()? as usize;
    let base = cursor.i64()?;
    let start = out.len();
    out.reserve(count);
    let (factor, fraction) = (F10[f], IF10[e]);
    bitpack::unpack(cursor, count, width, |packed| {
        out.push(base.wrapping_add(packed.cast_signed()) as f64 * factor * fraction);
    })?;
    let mut positions = Cursor::new("ALP exceptions", cursor.take(2 * exceptions.min(count + 1))?);
    for _ in 0..exceptions {
        let at = positions.u16()? as usize;
        let bits = cursor.u64()?;
        match out.get_mut(start + at) {
            Some(slot) => *slot = f64::from_bits(bits),
            None => return Err(cursor.invalid("an exception inside the vector", at as u64)),
        }
    }
    Ok(())
}
