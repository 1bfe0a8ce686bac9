//! ALP, adaptive lossless floating point (Afroozeh, Kuffo, Boncz, SIGMOD 2024), in the arithmetic of Parquet's ALP
//! encoding: a float becomes `d = round(v * 10^e * 10^-f)` and comes back as `d * 10^f * 10^-e`, two multiplications,
//! no fused multiply-add. Where averages lie a few units in the last place (ULP) beside a decimal, a lane of a few bits
//! a value says how many.
//! Drawn in `docs/format/page.md`.
//!
//! # Invariants
//! - A value is an exception unless it comes back with every bit as it was, so NaN payloads, -0.0 and infinities need
//!   no case of their own.
//! - `|d| < 2^51`.
#![expect(
    clippy::indexing_slicing,
    reason = "exponents are checked against the tables' length before they are used"
)]

use super::interleaved::{Decimal, MAGIC};
use super::{bitpack, int, simd};
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
const LIMIT: u64 = 1 << 51;
/// The words of all integers that ALP has.
pub(crate) const INTEGERS: int::Bounds =
    int::Bounds { low: (1 << 63) - (LIMIT - 1), high: (1 << 63) + (LIMIT - 1) };
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
pub(crate) fn encode(
    values: &[f64],
    candidates: &[(Exponents, u32)],
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> bool {
    let Some((exponents, lane)) = choose(values, candidates) else { return false };
    let Scratch { words, ulps, exceptions } = scratch;
    words.resize(values.len(), 0);
    ulps.resize(values.len(), 0);
    simd::dispatch(FindNearest { values, exponents, words, ulps });
    let lane = if lane == 0 { 0 } else { narrowest(ulps) };
    exceptions.clear();
    exceptions.extend((0..values.len()).filter(|at| !in_lane(ulps[*at].cast_signed(), lane)));
    if exceptions.len() as u64 * EXCEPTION_BITS >= values.len() as u64 * 64 {
        return false;
    }
    let start = out.len();
    out.extend_from_slice(&[exponents.0 as u8, exponents.1 as u8, lane as u8]);
    out.extend_from_slice(&(exceptions.len() as u16).to_le_bytes());
    exceptions.iter().for_each(|at| out.extend_from_slice(&(*at as u16).to_le_bytes()));
    exceptions.iter().for_each(|at| out.extend_from_slice(&values[*at].to_bits().to_le_bytes()));
    fill_exceptions(words, exceptions);
    if lane > 0 {
        exceptions.iter().for_each(|at| ulps[*at] = 0);
        ulps.iter_mut().for_each(|ulps| *ulps = ulps.wrapping_add(1 << (lane - 1)));
        bitpack::pack_vector(ulps, lane, out);
    }
    int::encode(words, out);
    if out.len() - start >= 8 * values.len() {
        out.truncate(start);
        return false;
    }
    true
}

/// An exception's place takes the word before it, which costs deltas nothing; the first ones take the first other.
fn fill_exceptions(words: &mut [u64], exceptions: &[usize]) {
    let leading = exceptions.iter().enumerate().take_while(|(i, at)| i == *at).count();
    let mut filler = words.get(leading).copied().unwrap_or_default();
    words.iter_mut().take(leading).for_each(|word| *word = filler);
    for at in exceptions.iter().skip(leading) {
        filler = words[at - 1];
        words[*at] = filler;
    }
}

/// The candidate that takes least for a sample of the values.
fn choose(values: &[f64], candidates: &[(Exponents, u32)]) -> Option<(Exponents, u32)> {
    if let [only] = candidates {
        return Some(*only);
    }
    let sample = sample_of(values);
    let costs = candidates.iter().filter_map(|choice| Some((cost(&sample, choice.0, choice.1)?, *choice)));
    costs.min_by_key(|(cost, _)| *cost).map(|(_, choice)| choice)
}

/// Finds the word of each value's integer, and how many units in the last place (as `i64` bits) the value lies above
/// what comes back of it; the least number where the integer is too large to count.
struct FindNearest<'a> {
    values: &'a [f64],
    exponents: Exponents,
    words: &'a mut [u64],
    ulps: &'a mut [u64],
}

impl simd::Kernel for FindNearest<'_> {
    /// The same as [`nearest`], without branches and conversions.
    #[inline(always)]
    fn run(self) {
        let (e, f) = self.exponents;
        let (up, down, factor, fraction) = (F10[e], IF10[f], F10[f], IF10[e]);
        for ((value, word), ulps) in self.values.iter().zip(self.words).zip(self.ulps) {
            let rounded = *value * up * down + MAGIC;
            let float = rounded - MAGIC;
            let back = float * factor * fraction;
            let off = value.to_bits().wrapping_sub(back.to_bits());
            *word = rounded.to_bits().wrapping_sub(MAGIC.to_bits()) ^ (1 << 63);
            *ulps = if float.abs() < LIMIT as f64 { off } else { 1 << 63 };
        }
    }
}

/// The lane for which lane and exceptions take least.
fn narrowest(ulps: &[u64]) -> u32 {
    let bits = |lane: u32| {
        let missed = ulps.iter().filter(|ulps| !in_lane(ulps.cast_signed(), lane)).count();
        ulps.len() as u64 * u64::from(lane) + missed as u64 * EXCEPTION_BITS
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

/// The float of one integer; not finite or not exact beyond `|int| < 2^51`.
pub(crate) fn float_of(int: i64, (e, f): Exponents) -> f64 {
    to_float(int, e, f)
}

/// The words of the integers whose floats lie within bounds, both inclusive: an integer's float grows with it.
pub(crate) fn bounds(low: f64, high: f64, exponents: Exponents) -> int::Bounds {
    let (least, most) = (-(LIMIT.cast_signed()) + 1, LIMIT.cast_signed() - 1);
    // The first integer whose float is not below, or above, a bound.
    let first = |wanted: &dyn Fn(f64) -> bool| {
        let (mut from, mut to) = (least, most + 1);
        while from < to {
            let middle = from + (to - from) / 2;
            if wanted(float_of(middle, exponents)) {
                to = middle;
            } else {
                from = middle + 1;
            }
        }
        from
    };
    let (start, end) = (first(&|float| float >= low), first(&|float| float > high));
    if start >= end || low.is_nan() || high.is_nan() {
        return int::Bounds::NONE;
    }
    int::Bounds { low: int::to_word(start), high: int::to_word(end - 1) }
}

/// Reads a pair of exponents.
pub(crate) fn read_exponents(cursor: &mut Cursor<'_>) -> Result<Exponents> {
    let (e, f) = (usize::from(cursor.u8()?), usize::from(cursor.u8()?));
    if e > MAX_EXPONENT || f > e {
        return Err(cursor.invalid("ALP exponents with f <= e <= 18", (e << 8 | f) as u64));
    }
    Ok((e, f))
}

/// Memory that the vectors of a page share, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) words: Vec<u64>,
    ulps: Vec<u64>,
    exceptions: Vec<usize>,
}

/// What a vector says before its integers.
pub(crate) struct Head<'a> {
    pub(crate) exponents: Exponents,
    pub(crate) lane: u32,
    exceptions: usize,
    positions: Cursor<'a>,
    bits: Cursor<'a>,
}

impl<'a> Head<'a> {
    /// Reads it, the lane's values not.
    pub(crate) fn read(cursor: &mut Cursor<'a>) -> Result<Self> {
        let exponents = read_exponents(cursor)?;
        let lane = u32::from(cursor.u8()?);
        if lane > MAX_LANE {
            return Err(cursor.invalid("a lane of at most 4 bits", lane.into()));
        }
        let exceptions = usize::from(cursor.u16()?);
        let positions = Cursor::new("ALP exceptions", cursor.take(2 * exceptions)?);
        let bits = Cursor::new("ALP exceptions", cursor.take(8 * exceptions)?);
        Ok(Self { exponents, lane, exceptions, positions, bits })
    }

    /// Gives each exception's position, below `len`, and value.
    pub(crate) fn each_exception(mut self, len: usize, mut put: impl FnMut(usize, f64)) -> Result<()> {
        for _ in 0..self.exceptions {
            let at = usize::from(self.positions.u16()?);
            if at >= len {
                return Err(self.positions.invalid("an exception inside the vector", at as u64));
            }
            put(at, f64::from_bits(self.bits.u64()?));
        }
        Ok(())
    }
}

/// Reads a vector behind its tag, as many values as `out` has.
pub(crate) fn decode(cursor: &mut Cursor<'_>, scratch: &mut Scratch, out: &mut [f64]) -> Result<()> {
    let head = Head::read(cursor)?;
    if head.lane > 0 {
        scratch.ulps.resize(out.len(), 0);
        bitpack::unpack_vector(cursor, head.lane, &mut scratch.ulps)?;
    }
    if let Some(frame) = int::Frame::read(cursor, out.len())?
        && let Ok(out) = <&mut [f64; VECTOR_VALUES]>::try_from(&mut *out)
    {
        frame.packed.unpack_decimals(decimal(frame.base, head.exponents), out);
    } else {
        scratch.words.resize(out.len(), 0);
        let codec = super::read_codec(cursor)?;
        let base = int::decode_offsets(codec, cursor, &mut scratch.words)?;
        simd::dispatch(Convert { words: &scratch.words, decimal: decimal(base, head.exponents), out });
    }
    if head.lane > 0 {
        simd::dispatch(AddUlps { ulps: &scratch.ulps, half: 1 << (head.lane - 1), out });
    }
    head.each_exception(out.len(), |at, value| {
        if let Some(slot) = out.get_mut(at) {
            *slot = value;
        }
    })
}

/// How words less a base become floats.
fn decimal(base: u64, (e, f): Exponents) -> Decimal {
    let addend = base.wrapping_add(1 << 63).wrapping_add(MAGIC.to_bits());
    Decimal { addend, factor: F10[f], fraction: IF10[e] }
}

struct Convert<'a> {
    words: &'a [u64],
    decimal: Decimal,
    out: &'a mut [f64],
}

impl simd::Kernel for Convert<'_> {
    #[inline(always)]
    fn run(self) {
        for (slot, word) in self.out.iter_mut().zip(self.words) {
            *slot = self.decimal.of(*word);
        }
    }
}

struct AddUlps<'a> {
    ulps: &'a [u64],
    half: u64,
    out: &'a mut [f64],
}

impl simd::Kernel for AddUlps<'_> {
    #[inline(always)]
    fn run(self) {
        for (slot, ulps) in self.out.iter_mut().zip(self.ulps) {
            *slot = f64::from_bits(slot.to_bits().wrapping_add(*ulps).wrapping_sub(self.half));
        }
    }
}
