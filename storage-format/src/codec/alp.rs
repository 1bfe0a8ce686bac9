//! ALP, adaptive lossless floating point (Afroozeh, Kuffo, Boncz, SIGMOD 2024), in the arithmetic of Parquet's ALP
//! encoding: a float becomes `d = round(v * 10^e * 10^-f)` and comes back as `d * 10^f * 10^-e`, two multiplications,
//! no fused multiply-add. Where averages lie a few units in the last place (ULP) beside a decimal, a lane of a few bits
//! a value says how many.
//!
//! ```text
//! vector := e u8 | f u8 | lane u8 | exceptions u16 | position u16 * | bits u64 *
//!           | packed (ulps + 2^(lane - 1)), where lane > 0 | d, as a vector of integers with its tag
//! ```
//! # Invariants
//! - A value is an exception unless it comes back with every bit as it was, so NaN payloads, -0.0 and infinities need
//!   no case of their own.
//! - `|d| < 2^51`.
#![expect(
    clippy::indexing_slicing,
    reason = "exponents are checked against the tables' length before they are used"
)]

use super::{bitpack, int};
use crate::cursor::{Cursor, Result};
use crate::limits::VECTOR_VALUES;

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
/// Values of a vector that are looked at when its exponents are chosen.
const SAMPLES: usize = 32;
/// Vectors of a page that are looked at when the page's candidates are chosen.
const SAMPLED_VECTORS: usize = 8;
/// Candidates that a page's vectors choose from.
const CANDIDATES: usize = 5;
/// The widest lane.
const MAX_LANE: u32 = 4;
/// Bits of an exception: its position and its value.
const EXCEPTION_BITS: u64 = 80;

/// The exponents e and f.
pub(crate) type Exponents = (usize, usize);

fn to_int(value: f64, e: usize, f: usize) -> i64 {
    // `as` saturates, so values out of range fail the comparison that follows.
    (value * F10[e] * IF10[f] + MAGIC - MAGIC) as i64
}

/// Exact for `|int| < 2^51`, and three times faster than a conversion where processors have none for vectors.
#[inline(always)]
fn int_to_float(int: i64) -> f64 {
    f64::from_bits(int.wrapping_add(MAGIC.to_bits().cast_signed()).cast_unsigned()) - MAGIC
}

fn to_float(int: i64, e: usize, f: usize) -> f64 {
    int_to_float(int) * F10[f] * IF10[e]
}

/// The integer of a value, and how many units in the last place the value lies above what comes back.
fn nearest(value: f64, (e, f): Exponents) -> Option<(i64, i64)> {
    let int = to_int(value, e, f);
    (int.unsigned_abs() < LIMIT).then(|| {
        let back = to_float(int, e, f);
        (int, value.to_bits().wrapping_sub(back.to_bits()).cast_signed())
    })
}

/// Whether a lane holds so many units; without a lane only none.
fn in_lane(ulps: i64, lane: u32) -> bool {
    match lane {
        0 => ulps == 0,
        _ => {
            let half = 1 << (lane - 1);
            (-half..half).contains(&ulps)
        }
    }
}

/// Bits that a sample takes, `None` where fewer than two values are no exceptions.
fn cost(sample: &[f64], exponents: Exponents, lane: u32) -> Option<u64> {
    let (mut low, mut high, mut hits) = (i64::MAX, i64::MIN, 0_u64);
    for value in sample {
        if let Some((int, ulps)) = nearest(*value, exponents)
            && in_lane(ulps, lane)
        {
            low = low.min(int);
            high = high.max(int);
            hits += 1;
        }
    }
    if hits == 0 || (hits < 2 && sample.len() > 1) {
        return None;
    }
    let total = sample.len() as u64;
    let width = bitpack::width(high.abs_diff(low)) + lane;
    Some(total * u64::from(width) + (total - hits) * EXCEPTION_BITS)
}

/// All pairs of exponents, small ones first, so that integers stay integers on ties.
fn pairs() -> impl Iterator<Item = Exponents> {
    (0..=MAX_EXPONENT).flat_map(|e| (0..=e).map(move |f| (e, f)))
}

fn sample_of(values: &[f64]) -> Vec<f64> {
    values.iter().copied().step_by(values.len().div_ceil(SAMPLES).max(1)).collect()
}

/// What the vectors of a page choose from: exponents and lane, most wanted first.
pub(crate) fn candidates(values: &[f64]) -> Vec<(Exponents, u32)> {
    let vectors = values.len().div_ceil(VECTOR_VALUES);
    let step = vectors.div_ceil(SAMPLED_VECTORS).max(1);
    let mut votes: Vec<((Exponents, u32), usize)> = Vec::new();
    for vector in values.chunks(VECTOR_VALUES).step_by(step) {
        let sample = sample_of(vector);
        let plain = cheapest(&sample, 0);
        let exact = |exponents| {
            sample
                .iter()
                .filter(|value| nearest(**value, exponents).is_some_and(|(_, ulps)| ulps == 0))
                .count()
        };
        // Where all of the sample is exact there is nothing that a lane could mend.
        let laned = match plain {
            Some((_, exponents)) if exact(exponents) == sample.len() => None,
            _ => cheapest(&sample, MAX_LANE - 1),
        };
        let choices = [plain.map(|(_, pair)| (pair, 0)), laned.map(|(_, pair)| (pair, MAX_LANE - 1))];
        for choice in choices.into_iter().flatten() {
            match votes.iter_mut().find(|(known, _)| *known == choice) {
                Some((_, count)) => *count += 1,
                None => votes.push((choice, 1)),
            }
        }
    }
    votes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    votes.truncate(CANDIDATES);
    votes.into_iter().map(|(choice, _)| choice).collect()
}

fn cheapest(sample: &[f64], lane: u32) -> Option<(u64, Exponents)> {
    pairs().filter_map(|pair| Some((cost(sample, pair, lane)?, pair))).min_by_key(|(cost, _)| *cost)
}

/// Appends the vector without its tag; `false`, with nothing appended, where ALP does not pay.
pub(crate) fn encode(values: &[f64], candidates: &[(Exponents, u32)], out: &mut Vec<u8>) -> bool {
    let sample = sample_of(values);
    let costs = candidates
        .iter()
        .filter_map(|(exponents, lane)| Some((cost(&sample, *exponents, *lane)?, *exponents, *lane)));
    let Some((_, exponents, lane)) = costs.min_by_key(|(cost, ..)| *cost) else { return false };
    let near: Vec<Option<(i64, i64)>> = values.iter().map(|value| nearest(*value, exponents)).collect();
    let lane = if lane == 0 { 0 } else { narrowest(&near) };
    let kept = |near: &Option<(i64, i64)>| near.filter(|(_, ulps)| in_lane(*ulps, lane));
    let exceptions: Vec<usize> =
        near.iter().enumerate().filter(|(_, near)| kept(near).is_none()).map(|(at, _)| at).collect();
    let Some((mut filler, _)) = near.iter().find_map(kept) else { return false };
    if exceptions.len() as u64 * EXCEPTION_BITS >= values.len() as u64 * 64 {
        return false;
    }
    let start = out.len();
    out.extend_from_slice(&[exponents.0 as u8, exponents.1 as u8, lane as u8]);
    out.extend_from_slice(&(exceptions.len() as u16).to_le_bytes());
    exceptions.iter().for_each(|at| out.extend_from_slice(&(*at as u16).to_le_bytes()));
    exceptions.iter().for_each(|at| out.extend_from_slice(&values[*at].to_bits().to_le_bytes()));
    if lane > 0 {
        let half = 1_i64 << (lane - 1);
        let ulps: Vec<u64> =
            near.iter().map(|near| (kept(near).map_or(0, |(_, ulps)| ulps) + half).cast_unsigned()).collect();
        bitpack::pack_vector(&ulps, lane, out);
    }
    // An exception repeats the integer before it, which costs deltas nothing.
    let words: Vec<u64> = near
        .iter()
        .map(|near| {
            filler = kept(near).map_or(filler, |(int, _)| int);
            int::to_word(filler)
        })
        .collect();
    int::encode(&words, out);
    if out.len() - start >= 8 * values.len() {
        out.truncate(start);
        return false;
    }
    true
}

/// The lane for which lane and exceptions take least.
fn narrowest(near: &[Option<(i64, i64)>]) -> u32 {
    let bits = |lane: u32| {
        let missed = near.iter().filter(|near| near.is_none_or(|(_, ulps)| !in_lane(ulps, lane))).count();
        near.len() as u64 * u64::from(lane) + missed as u64 * EXCEPTION_BITS
    };
    (0..=MAX_LANE).min_by_key(|lane| bits(*lane)).unwrap_or_default()
}

/// A page's values as integers of one pair of exponents.
pub(crate) struct Whole {
    pub(crate) exponents: Exponents,
    /// An exception repeats the integer before it.
    pub(crate) integers: Vec<i64>,
    /// Where the exceptions are.
    pub(crate) exceptions: Vec<usize>,
}

/// All values under one pair of exponents; `None` where more than one in twenty is an exception.
pub(crate) fn whole(values: &[f64]) -> Option<Whole> {
    let mut candidates: Vec<Exponents> = candidates(values)
        .into_iter()
        .filter(|(_, lane)| *lane == 0)
        .map(|(exponents, _)| exponents)
        .collect();
    let exact = |exponents: &Exponents| {
        values.iter().filter(|value| nearest(**value, *exponents).is_some_and(|(_, ulps)| ulps == 0)).count()
    };
    // The first of the best, which are sorted by how many vectors wanted them.
    candidates.reverse();
    let exponents = candidates.into_iter().max_by_key(exact)?;
    if (values.len() - exact(&exponents)) * 20 > values.len() {
        return None;
    }
    let mut filler = 0;
    let mut exceptions = Vec::new();
    let integers = values.iter().enumerate().map(|(at, value)| {
        match nearest(*value, exponents) {
            Some((int, 0)) => filler = int,
            _ => exceptions.push(at),
        }
        filler
    });
    Some(Whole { exponents, integers: integers.collect(), exceptions })
}

/// The floats of integers.
pub(crate) fn to_floats(integers: &[i64], (e, f): Exponents, out: &mut [f64]) {
    let (factor, fraction) = (F10[f], IF10[e]);
    for (slot, int) in out.iter_mut().zip(integers) {
        *slot = int_to_float(*int) * factor * fraction;
    }
}

/// Reads a pair of exponents.
pub(crate) fn read_exponents(cursor: &mut Cursor<'_>) -> Result<Exponents> {
    let (e, f) = (usize::from(cursor.u8()?), usize::from(cursor.u8()?));
    if e > MAX_EXPONENT || f > e {
        return Err(cursor.invalid("ALP exponents with f <= e <= 18", (e << 8 | f) as u64));
    }
    Ok((e, f))
}

/// Memory that the vectors of a page are decoded in, one after the other, where they cannot be in place.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    words: Vec<u64>,
    ulps: Vec<u64>,
}

/// Reads a vector behind its tag, as many values as `out` has.
pub(crate) fn decode(cursor: &mut Cursor<'_>, scratch: &mut Scratch, out: &mut [f64]) -> Result<()> {
    let exponents = read_exponents(cursor)?;
    let lane = u32::from(cursor.u8()?);
    if lane > MAX_LANE {
        return Err(cursor.invalid("a lane of at most 4 bits", lane.into()));
    }
    let exceptions = usize::from(cursor.u16()?);
    let mut positions = Cursor::new("ALP exceptions", cursor.take(2 * exceptions)?);
    let mut bits = Cursor::new("ALP exceptions", cursor.take(8 * exceptions)?);
    if lane > 0 {
        scratch.ulps.resize(out.len(), 0);
        bitpack::unpack_vector(cursor, lane, &mut scratch.ulps)?;
    }
    scratch.words.resize(out.len(), 0);
    let codec = super::read_codec(cursor)?;
    int::decode(codec, cursor, &mut scratch.words)?;
    words_to_floats(&scratch.words, exponents, out);
    if lane > 0 {
        let half = 1 << (lane - 1);
        for (slot, ulps) in out.iter_mut().zip(&scratch.ulps) {
            *slot = f64::from_bits(slot.to_bits().wrapping_add(*ulps).wrapping_sub(half));
        }
    }
    for _ in 0..exceptions {
        let at = usize::from(positions.u16()?);
        match out.get_mut(at) {
            Some(slot) => *slot = f64::from_bits(bits.u64()?),
            None => return Err(cursor.invalid("an exception inside the vector", at as u64)),
        }
    }
    Ok(())
}

/// The floats of words, with the widest instructions that pay.
fn words_to_floats(words: &[u64], exponents: Exponents, out: &mut [f64]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all that the function asks for.
        #[expect(unsafe_code, reason = "a function compiled for a feature that was just detected")]
        return unsafe { words_to_floats_avx2(words, exponents, out) };
    }
    convert(words, exponents, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn words_to_floats_avx2(words: &[u64], exponents: Exponents, out: &mut [f64]) {
    convert(words, exponents, out);
}

#[inline(always)]
fn convert(words: &[u64], (e, f): Exponents, out: &mut [f64]) {
    let (factor, fraction) = (F10[f], IF10[e]);
    for (slot, word) in out.iter_mut().zip(words) {
        *slot = int_to_float(int::from_word(*word)) * factor * fraction;
    }
}
