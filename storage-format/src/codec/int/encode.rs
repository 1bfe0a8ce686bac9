//! Writing a vector of words, and the choice of its codec.
#![expect(clippy::indexing_slicing, reason = "a histogram has a place for each byte")]

use super::{Sequence, bitpack};
use crate::codec::{CodecId, simd};
use crate::cursor::{Writer, zigzag};
use crate::limits::VECTOR_VALUES;

/// Bits of an exception's position.
const POSITION_BITS: u64 = 16;
/// Bits of the heads of `for` and `delta`.
const FOR_HEAD: u64 = 64 + 32;
const DELTA_HEAD: u64 = 128 + 32;
/// Words looked at to find a base below which few words lie, and a usual delta.
const SAMPLES: usize = 64;
/// A run of deltas takes two bytes or more.
const LEAST_RUN_BYTES: usize = 2;

/// How the low and high parts of packed words are cut, and what that costs.
#[derive(Clone, Copy, Debug)]
struct Cut {
    width: u32,
    high: u32,
    exceptions: usize,
    bits: u64,
}

/// The cheapest cut, by a histogram of the words' widths. At most 1,024 words.
fn cut(words: &[u64]) -> Cut {
    let mut widths = [0; VECTOR_VALUES];
    simd::dispatch(Widths { words, widths: &mut widths });
    // Four histograms, so that equal widths in a row do not wait for each other.
    let mut histograms = [0_u16; 4 * 256];
    for (i, width) in widths.iter().take(words.len()).enumerate() {
        histograms[i % 4 * 256 + usize::from(*width)] += 1;
    }
    let count = |width: u32| -> usize {
        histograms.iter().skip(width as usize).step_by(256).map(|count| usize::from(*count)).sum()
    };
    let most = (0..=64).rev().find(|width| count(*width) > 0).unwrap_or_default();
    let values = words.len() as u64;
    let mut best = Cut { width: most, high: 0, exceptions: 0, bits: values * u64::from(most) };
    let mut exceptions = 0;
    for width in (0..most).rev() {
        exceptions += count(width + 1);
        let high = most - width;
        let bits = values * u64::from(width) + exceptions as u64 * (POSITION_BITS + u64::from(high));
        if bits < best.bits {
            best = Cut { width, high, exceptions, bits };
        }
    }
    best
}

struct Widths<'a> {
    words: &'a [u64],
    widths: &'a mut [u8; VECTOR_VALUES],
}

impl simd::Kernel for Widths<'_> {
    #[inline(always)]
    fn run(self) {
        for (width, word) in self.widths.iter_mut().zip(self.words) {
            *width = bitpack::width(*word) as u8;
        }
    }
}

fn write_packed(words: &[u64], cut: Cut, out: &mut Vec<u8>) {
    out.push(cut.width as u8);
    out.extend_from_slice(&(cut.exceptions as u16).to_le_bytes());
    out.push(cut.high as u8);
    if cut.exceptions == 0 {
        return bitpack::pack_vector(words, cut.width, out);
    }
    let mask = (1_u64 << cut.width) - 1;
    let low: Vec<u64> = words.iter().map(|word| word & mask).collect();
    bitpack::pack_vector(&low, cut.width, out);
    let exceptions = || words.iter().enumerate().filter(|(_, word)| **word >> cut.width > 0);
    for (at, _) in exceptions() {
        out.extend_from_slice(&(at as u16).to_le_bytes());
    }
    bitpack::pack(exceptions().map(|(_, word)| word >> cut.width), cut.high, out);
}

/// The words less a base.
struct Frame {
    base: u64,
    offsets: Vec<u64>,
    cut: Cut,
}

impl Frame {
    fn on(base: u64, words: &[u64]) -> Self {
        let offsets: Vec<u64> = words.iter().map(|word| word.wrapping_sub(base)).collect();
        let cut = cut(&offsets);
        Self { base, offsets, cut }
    }

    /// `low` and `high` are the extremes of the words.
    fn of(words: &[u64], (low, high): (u64, u64)) -> Self {
        let frame = Self::on(low, words);
        // A few words far below the others are cheaper as exceptions than as everybody's base.
        let mut sample: Vec<u64> = sampled(words).collect();
        let place = sample.len() / 32;
        let usual = if sample.is_empty() { low } else { *sample.select_nth_unstable(place).1 };
        if bitpack::width(high - usual) == bitpack::width(high - low) {
            return frame;
        }
        let other = Self::on(usual, words);
        if other.cut.bits < frame.cut.bits { other } else { frame }
    }

    fn bits(&self) -> u64 {
        self.cut.bits + FOR_HEAD
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.base.to_le_bytes());
        write_packed(&self.offsets, self.cut, out);
    }
}

/// The steps between words around their centre.
struct Deltas {
    first: u64,
    centre: u64,
    /// Zigzags; the first is 0.
    zigzags: Vec<u64>,
    cut: Cut,
    /// Runs of equal steps.
    runs: usize,
}

impl Deltas {
    fn of(words: &[u64]) -> Self {
        let first = words.first().copied().unwrap_or_default();
        let steps: Vec<u64> = deltas(words).collect();
        let centre = usual_step(words);
        let mut zigzags = Vec::with_capacity(words.len());
        zigzags.push(0);
        zigzags.extend(steps.iter().map(|step| zigzag(step.wrapping_sub(centre).cast_signed())));
        let runs = 1 + steps.iter().zip(steps.iter().skip(1)).filter(|(a, b)| a != b).count();
        let cut = cut(&zigzags);
        Self { first, centre, zigzags, cut, runs }
    }

    fn bits(&self) -> u64 {
        self.cut.bits + DELTA_HEAD
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&self.centre.to_le_bytes());
        write_packed(&self.zigzags, self.cut, out);
    }
}

/// A few of the words.
fn sampled(words: &[u64]) -> impl Iterator<Item = u64> + '_ {
    words.iter().copied().step_by(words.len().div_ceil(SAMPLES).max(1))
}

/// The steps behind a few of the words.
fn sampled_steps(words: &[u64]) -> impl Iterator<Item = u64> + '_ {
    let pairs = words.windows(2).step_by(words.len().div_ceil(SAMPLES).max(1));
    pairs.map(|pair| pair[1].wrapping_sub(pair[0]))
}

/// The median of the steps of a sample; 0 without any.
fn usual_step(words: &[u64]) -> u64 {
    let mut steps: Vec<u64> = sampled_steps(words).collect();
    let middle = steps.len() / 2;
    match steps.is_empty() {
        true => 0,
        false => *steps.select_nth_unstable_by_key(middle, |step| step.cast_signed()).1,
    }
}

/// Whether a sample of the steps is not a bit wider than one of the offsets: else deltas cannot pay.
fn deltas_promise(words: &[u64], low: u64) -> bool {
    let centre = usual_step(words);
    let steps = sampled_steps(words).map(|step| zigzag(step.wrapping_sub(centre).cast_signed()));
    let of_steps: u32 = steps.map(bitpack::width).sum();
    let of_offsets: u32 = sampled(words).map(|word| bitpack::width(word.wrapping_sub(low))).sum();
    of_steps < of_offsets + SAMPLES as u32
}

/// The least and the greatest of the words.
fn extremes(words: &[u64]) -> (u64, u64) {
    let mut extremes = (u64::MAX, 0);
    simd::dispatch(Extremes { words, extremes: &mut extremes });
    extremes
}

struct Extremes<'a> {
    words: &'a [u64],
    extremes: &'a mut (u64, u64),
}

impl simd::Kernel for Extremes<'_> {
    #[inline(always)]
    fn run(self) {
        let (mut low, mut high) = *self.extremes;
        for word in self.words {
            low = low.min(*word);
            high = high.max(*word);
        }
        *self.extremes = (low, high);
    }
}

fn deltas(words: &[u64]) -> impl Iterator<Item = u64> + '_ {
    words.iter().zip(words.iter().skip(1)).map(|(a, b)| b.wrapping_sub(*a))
}

/// Appends a vector of words, at most 1,024, tag included, in the codec that takes least, where a slower one must save
/// something.
pub(crate) fn encode(words: &[u64], out: &mut Vec<u8>) {
    debug_assert!(words.len() <= VECTOR_VALUES);
    let Some(first) = words.first() else { return };
    if words.iter().all(|word| word == first) {
        out.push(CodecId::Constant as u8);
        out.extend_from_slice(&first.to_le_bytes());
        return;
    }
    if encode_sequence(words, out) {
        return;
    }
    let extremes = extremes(words);
    match divisor(words, extremes.0) {
        1 => encode_plain(words, extremes, out),
        divisor => encode_gcd(words, extremes, divisor, out),
    }
}

fn encode_plain(words: &[u64], extremes: (u64, u64), out: &mut Vec<u8>) {
    let frame = Frame::of(words, extremes);
    let deltas = deltas_promise(words, extremes.0).then(|| Deltas::of(words));
    // A prefix sum costs as much as unpacking: it has to save a twentieth.
    let by_delta = deltas.as_ref().filter(|deltas| deltas.bits() * 20 < frame.bits() * 19);
    let bytes = by_delta.map_or(frame.bits(), Deltas::bits).div_ceil(8) as usize;
    if deltas.as_ref().is_some_and(|deltas| deltas.runs * LEAST_RUN_BYTES < bytes) {
        out.push(CodecId::DeltaRle as u8);
        if encode_delta_rle(words, bytes, out) {
            return;
        }
        out.pop();
    }
    match by_delta {
        Some(deltas) => {
            out.push(CodecId::Delta as u8);
            deltas.write(out);
        }
        None => {
            out.push(CodecId::For as u8);
            frame.write(out);
        }
    }
}

/// Appends the words less their base, without a tag.
pub(crate) fn encode_for(words: &[u64], out: &mut Vec<u8>) {
    Frame::of(words, extremes(words)).write(out);
}

/// Appends the first word and the deltas less their centre, without a tag.
pub(crate) fn encode_delta(words: &[u64], out: &mut Vec<u8>) {
    Deltas::of(words).write(out);
}

/// Appends the words as a sequence, tag included; `false` where they are none.
pub(crate) fn encode_sequence(words: &[u64], out: &mut Vec<u8>) -> bool {
    let Some(first) = words.first() else { return false };
    let step = deltas(words).next().unwrap_or_default();
    if deltas(words).any(|delta| delta != step) {
        return false;
    }
    let sequence = Sequence { first: *first, step };
    out.push(CodecId::Sequence as u8);
    out.extend_from_slice(&sequence.first.to_le_bytes());
    out.extend_from_slice(&sequence.step.to_le_bytes());
    true
}

/// Appends the first word and the runs of equal deltas, without a tag; `false`, with `out` cut back, once it is `limit`
/// bytes long.
pub(crate) fn encode_delta_rle(words: &[u64], limit: usize, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let mut writer = Writer::on(std::mem::take(out));
    writer.varint(words.first().copied().unwrap_or_default());
    let mut all = deltas(words).peekable();
    let mut fits = true;
    while fits && let Some(delta) = all.next() {
        let mut run = 1;
        while all.next_if_eq(&delta).is_some() {
            run += 1;
        }
        writer.varint(zigzag(delta.cast_signed()));
        writer.varint(run);
        fits = writer.len() - start < limit;
    }
    *out = writer.into_bytes();
    if !fits {
        out.truncate(start);
    }
    fits
}

/// The greatest common divisor of all differences; 1 where it does not pay.
fn divisor(words: &[u64], low: u64) -> u64 {
    let mut divisor = 0;
    for word in words {
        divisor = gcd(word - low, divisor);
        if divisor == 1 {
            return 1;
        }
    }
    divisor.max(1)
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Appends the words over their divisor, tag included; without it where that is smaller, as it is for runs.
fn encode_gcd(words: &[u64], (low, high): (u64, u64), divisor: u64, out: &mut Vec<u8>) {
    let start = out.len();
    let quotients: Vec<u64> = words.iter().map(|word| (word - low) / divisor).collect();
    let mut writer = Writer::on(std::mem::take(out));
    writer.u8(CodecId::Gcd as u8);
    writer.u64(low);
    writer.varint(divisor);
    *out = writer.into_bytes();
    encode_plain(&quotients, (0, (high - low) / divisor), out);
    let mut plain = Vec::new();
    encode_plain(words, (low, high), &mut plain);
    if plain.len() <= out.len() - start {
        out.truncate(start);
        out.extend_from_slice(&plain);
    }
}
