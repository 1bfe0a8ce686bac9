//! Integers: frame of reference and deltas, bit-packed with patches (PFOR, Zukowski et al., ICDE 2006); run-length of
//! deltas for regular sequences; all of them over the greatest common divisor where there is one.
//!
//! ```text
//! packed    := width u8 | exceptions u16 | high width u8 | low parts | position u16 * | high parts
//!              the low `width` bits of every value, and the rest of those that have more; without exceptions
//!              nothing follows the low parts and the high width is 0
//! for       := base u64 | packed (v - base)
//! delta     := first u64 | centre u64 | packed zigzag(v[i] - v[i-1] - centre), 0 for the first
//! delta_rle := first varint | (zigzag delta varint, run varint) *      the runs add up to one less than the values
//! gcd       := base u64 | divisor varint | codec u8 | that codec's bytes for (v - base) / divisor
//! ```
//! Values are 64-bit words; signed ones are mapped by flipping the sign bit, so that `for` keeps their order. Low parts
//! are packed as a vector (interleaved where there are 1,024), high parts plainly. All arithmetic wraps.

use super::{CodecId, bitpack};
use crate::cursor::{Cursor, Result, Writer, unzigzag, zigzag};
use crate::limits::VECTOR_VALUES;

/// Bits of an exception's position.
const POSITION_BITS: u64 = 16;
/// Bits of the heads of `for` and `delta`.
const FOR_HEAD: u64 = 64 + 32;
const DELTA_HEAD: u64 = 128 + 32;
/// Words looked at to find a base below which few words lie, and a usual delta.
const SAMPLES: usize = 64;

/// How the low and high parts of packed words are cut, and what that costs.
#[derive(Clone, Copy, Debug)]
struct Cut {
    width: u32,
    high: u32,
    exceptions: usize,
    bits: u64,
}

/// The cheapest cut, by a histogram of the words' widths.
fn cut(words: impl Iterator<Item = u64>) -> Cut {
    let mut histogram = [0_usize; 65];
    let mut count = 0;
    for word in words {
        if let Some(slot) = histogram.get_mut(bitpack::width(word) as usize) {
            *slot += 1;
        }
        count += 1;
    }
    let most = histogram.iter().rposition(|n| *n > 0).unwrap_or_default() as u32;
    let mut best = Cut { width: most, high: 0, exceptions: 0, bits: count as u64 * u64::from(most) };
    let mut exceptions = 0;
    for width in (0..most).rev() {
        exceptions += histogram.get(width as usize + 1).copied().unwrap_or_default();
        let high = most - width;
        let bits = count as u64 * u64::from(width) + exceptions as u64 * (POSITION_BITS + u64::from(high));
        if bits < best.bits && exceptions <= usize::from(u16::MAX) {
            best = Cut { width, high, exceptions, bits };
        }
    }
    best
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

/// Reads packed words, as many as `out` has.
fn read_packed(cursor: &mut Cursor<'_>, out: &mut [u64]) -> Result<()> {
    let width = u32::from(cursor.u8()?);
    let exceptions = usize::from(cursor.u16()?);
    let high = u32::from(cursor.u8()?);
    bitpack::unpack_vector(cursor, width, out)?;
    if exceptions == 0 {
        return if high == 0 { Ok(()) } else { Err(cursor.invalid("no high parts", high.into())) };
    }
    if high == 0 || width + high > 64 || exceptions > out.len() {
        return Err(cursor.invalid("high parts that fit 64 bits", (width + high).into()));
    }
    let mut positions = Cursor::new("exceptions", cursor.take(2 * exceptions)?);
    let mut outside = None;
    bitpack::unpack(cursor, exceptions, high, |part| {
        let at = positions.u16().map_or(usize::MAX, usize::from);
        match out.get_mut(at) {
            Some(slot) => *slot |= part << width,
            None => outside = Some(at),
        }
    })?;
    match outside {
        Some(at) => Err(cursor.invalid("an exception inside the vector", at as u64)),
        None => Ok(()),
    }
}

/// What is known of the words of a vector before one codec is chosen.
struct Candidates {
    base: u64,
    frame: Cut,
    centre: u64,
    delta: Cut,
}

impl Candidates {
    fn of(words: &[u64]) -> Self {
        let low = words.iter().copied().min().unwrap_or_default();
        let frame = cut(words.iter().map(|word| word - low));
        let step = words.len().div_ceil(SAMPLES).max(1);
        // A few words far below the others are cheaper as exceptions than as everybody's base.
        let mut sample: Vec<u64> = words.iter().copied().step_by(step).collect();
        sample.sort_unstable();
        let usual = sample.get(sample.len() / 32).copied().unwrap_or(low);
        let other = cut(words.iter().map(|word| word.wrapping_sub(usual)));
        let (base, frame) = if other.bits < frame.bits { (usual, other) } else { (low, frame) };
        let mut steps: Vec<u64> = deltas(words).step_by(step).collect();
        let middle = steps.len() / 2;
        let centre = match steps.is_empty() {
            true => 0,
            false => *steps.select_nth_unstable_by_key(middle, |step| step.cast_signed()).1,
        };
        let delta = cut(centred(words, centre));
        Self { base, frame, centre, delta }
    }

    fn frame_bits(&self) -> u64 {
        self.frame.bits + FOR_HEAD
    }

    fn delta_bits(&self) -> u64 {
        self.delta.bits + DELTA_HEAD
    }
}

fn deltas(words: &[u64]) -> impl Iterator<Item = u64> + Clone + '_ {
    words.iter().zip(words.iter().skip(1)).map(|(a, b)| b.wrapping_sub(*a))
}

fn centred(words: &[u64], centre: u64) -> impl Iterator<Item = u64> + Clone + '_ {
    let steps = deltas(words).map(move |step| zigzag(step.wrapping_sub(centre).cast_signed()));
    std::iter::once(0).take(words.len().min(1)).chain(steps)
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
    match divisor(words) {
        1 => encode_plain(words, out),
        divisor => encode_gcd(words, divisor, out),
    }
}

fn encode_plain(words: &[u64], out: &mut Vec<u8>) {
    let candidates = Candidates::of(words);
    // A prefix sum costs as much as unpacking: it has to save a twentieth.
    let by_delta = candidates.delta_bits() * 20 < candidates.frame_bits() * 19;
    let bits = if by_delta { candidates.delta_bits() } else { candidates.frame_bits() };
    out.push(CodecId::DeltaRle as u8);
    if encode_delta_rle(words, bits.div_ceil(8) as usize, out) {
        return;
    }
    out.pop();
    if by_delta {
        out.push(CodecId::Delta as u8);
        write_delta(words, &candidates, out);
    } else {
        out.push(CodecId::For as u8);
        write_for(words, &candidates, out);
    }
}

fn write_for(words: &[u64], candidates: &Candidates, out: &mut Vec<u8>) {
    out.extend_from_slice(&candidates.base.to_le_bytes());
    let rest: Vec<u64> = words.iter().map(|word| word.wrapping_sub(candidates.base)).collect();
    write_packed(&rest, candidates.frame, out);
}

fn write_delta(words: &[u64], candidates: &Candidates, out: &mut Vec<u8>) {
    out.extend_from_slice(&words.first().copied().unwrap_or_default().to_le_bytes());
    out.extend_from_slice(&candidates.centre.to_le_bytes());
    let steps: Vec<u64> = centred(words, candidates.centre).collect();
    write_packed(&steps, candidates.delta, out);
}

/// Appends the words less their base, without a tag.
pub(crate) fn encode_for(words: &[u64], out: &mut Vec<u8>) {
    write_for(words, &Candidates::of(words), out);
}

/// Appends the first word and the deltas less their centre, without a tag.
pub(crate) fn encode_delta(words: &[u64], out: &mut Vec<u8>) {
    write_delta(words, &Candidates::of(words), out);
}

/// The greatest common divisor of all differences; 1 where it does not pay.
fn divisor(words: &[u64]) -> u64 {
    let low = words.iter().copied().min().unwrap_or_default();
    let mut divisor = 0;
    for word in words {
        divisor = gcd(divisor, word - low);
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
pub(crate) fn encode_gcd(words: &[u64], divisor: u64, out: &mut Vec<u8>) {
    let start = out.len();
    let low = words.iter().copied().min().unwrap_or_default();
    let quotients: Vec<u64> = words.iter().map(|word| (word - low) / divisor).collect();
    let mut writer = Writer::on(std::mem::take(out));
    writer.u8(CodecId::Gcd as u8);
    writer.u64(low);
    writer.varint(divisor);
    *out = writer.into_bytes();
    encode_plain(&quotients, out);
    let mut plain = Vec::new();
    encode_plain(words, &mut plain);
    if plain.len() <= out.len() - start {
        out.truncate(start);
        out.extend_from_slice(&plain);
    }
}

/// Reads a vector of words behind its tag, as many as `out` has.
pub(crate) fn decode(codec: CodecId, cursor: &mut Cursor<'_>, out: &mut [u64]) -> Result<()> {
    match codec {
        CodecId::Constant => out.fill(cursor.u64()?),
        CodecId::For => decode_for(cursor, out)?,
        CodecId::Delta => decode_delta(cursor, out)?,
        CodecId::DeltaRle => decode_delta_rle(cursor, out)?,
        CodecId::Gcd => {
            let base = cursor.u64()?;
            let divisor = cursor.varint()?;
            match super::read_codec(cursor)? {
                CodecId::Gcd => return Err(cursor.invalid("one divisor", CodecId::Gcd as u64)),
                inner => decode(inner, cursor, out)?,
            }
            out.iter_mut().for_each(|word| *word = base.wrapping_add(word.wrapping_mul(divisor)));
        }
        other => return Err(cursor.invalid("a codec for integers", other as u64)),
    }
    Ok(())
}

fn decode_for(cursor: &mut Cursor<'_>, out: &mut [u64]) -> Result<()> {
    let base = cursor.u64()?;
    read_packed(cursor, out)?;
    out.iter_mut().for_each(|word| *word = word.wrapping_add(base));
    Ok(())
}

fn decode_delta(cursor: &mut Cursor<'_>, out: &mut [u64]) -> Result<()> {
    let first = cursor.u64()?;
    let centre = cursor.u64()?;
    read_packed(cursor, out)?;
    // The first step is the centre less itself, and the word before the first one lies a centre below it.
    let mut word = first.wrapping_sub(centre);
    for slot in out {
        word = word.wrapping_add(unzigzag(*slot).cast_unsigned()).wrapping_add(centre);
        *slot = word;
    }
    Ok(())
}

/// Appends the first word and the runs of equal deltas, without a tag; `false`, with `out` cut back, once it is `limit`
/// bytes long.
pub(crate) fn encode_delta_rle(words: &[u64], limit: usize, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let mut writer = Writer::on(std::mem::take(out));
    writer.varint(words.first().copied().unwrap_or_default());
    let mut all = deltas(words).peekable();
    while let Some(delta) = all.next() {
        let mut run = 1;
        while all.next_if_eq(&delta).is_some() {
            run += 1;
        }
        writer.varint(zigzag(delta.cast_signed()));
        writer.varint(run);
        if writer.len() - start >= limit {
            *out = writer.into_bytes();
            out.truncate(start);
            return false;
        }
    }
    *out = writer.into_bytes();
    true
}

fn decode_delta_rle(cursor: &mut Cursor<'_>, out: &mut [u64]) -> Result<()> {
    let mut word = cursor.varint()?;
    let Some((first, mut rest)) = out.split_first_mut() else { return Ok(()) };
    *first = word;
    while !rest.is_empty() {
        let delta = unzigzag(cursor.varint()?).cast_unsigned();
        let run = cursor.varint()?;
        let Some((now, behind)) = usize::try_from(run)
            .ok()
            .filter(|run| *run > 0)
            .and_then(|run| std::mem::take(&mut rest).split_at_mut_checked(run))
        else {
            return Err(cursor.invalid("a run within the vector", run));
        };
        for slot in now {
            word = word.wrapping_add(delta);
            *slot = word;
        }
        rest = behind;
    }
    Ok(())
}

/// Maps a signed integer so that unsigned order is signed order.
pub(crate) fn to_word(value: i64) -> u64 {
    value.cast_unsigned() ^ (1 << 63)
}

/// The inverse of [`to_word`].
#[inline(always)]
pub(crate) fn from_word(word: u64) -> i64 {
    (word ^ (1 << 63)).cast_signed()
}
