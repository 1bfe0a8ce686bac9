//! Integers: frame of reference and deltas, bit-packed with patches (PFOR, Zukowski et al., ICDE 2006); sequences and
//! runs of deltas for what is regular; all of them over the greatest common divisor where there is one.
//!
//! All work on 64-bit words, drawn in `docs/format/page.md`. Arithmetic wraps.

mod encode;
mod filter;

pub(crate) use encode::{encode, encode_delta, encode_delta_rle, encode_for, encode_sequence};
pub(crate) use filter::{Bounds, all_within, filter, filter_tagged};

use super::interleaved::Interleaved;
use super::{CodecId, bitpack, simd};
use crate::cursor::{Cursor, Result, unzigzag};
use crate::limits::VECTOR_VALUES;

/// Reads a vector of words behind its tag, as many as `out` has.
pub(crate) fn decode(codec: CodecId, cursor: &mut Cursor<'_>, out: &mut [u64]) -> Result<()> {
    let base = decode_offsets(codec, cursor, out)?;
    if base != 0 {
        simd::dispatch(Add { base, words: out });
    }
    Ok(())
}

/// Reads a vector of words as offsets from the base that it gives back, so that who changes them anyway adds the base in
/// the same go.
pub(crate) fn decode_offsets(codec: CodecId, cursor: &mut Cursor<'_>, out: &mut [u64]) -> Result<u64> {
    match codec {
        CodecId::Constant => out.fill(cursor.u64()?),
        CodecId::For => {
            let base = cursor.u64()?;
            read_packed(cursor, out)?;
            return Ok(base);
        }
        CodecId::Delta => decode_delta(cursor, out)?,
        CodecId::DeltaRle => decode_delta_rle(cursor, out)?,
        CodecId::Sequence => decode_sequence(cursor, out)?,
        CodecId::Gcd => {
            let base = cursor.u64()?;
            let divisor = cursor.varint()?;
            match super::read_codec(cursor)? {
                CodecId::Gcd => return Err(cursor.invalid("one divisor", CodecId::Gcd as u64)),
                inner => decode(inner, cursor, out)?,
            }
            simd::dispatch(Multiply { divisor, words: out });
            return Ok(base);
        }
        other => return Err(cursor.invalid("a codec for integers", other as u64)),
    }
    Ok(0)
}

struct Add<'a> {
    base: u64,
    words: &'a mut [u64],
}

impl simd::Kernel for Add<'_> {
    #[inline(always)]
    fn run(self) {
        self.words.iter_mut().for_each(|word| *word = word.wrapping_add(self.base));
    }
}

struct Multiply<'a> {
    divisor: u64,
    words: &'a mut [u64],
}

impl simd::Kernel for Multiply<'_> {
    #[inline(always)]
    fn run(self) {
        self.words.iter_mut().for_each(|word| *word = word.wrapping_mul(self.divisor));
    }
}

fn decode_delta(cursor: &mut Cursor<'_>, out: &mut [u64]) -> Result<()> {
    let first = cursor.u64()?;
    let centre = cursor.u64()?;
    read_packed(cursor, out)?;
    simd::dispatch(Steps { centre, words: out });
    // The first step is the centre less itself, and the word before the first one lies a centre below it.
    let mut word = first.wrapping_sub(centre);
    for slot in out {
        word = word.wrapping_add(*slot);
        *slot = word;
    }
    Ok(())
}

/// The steps between words, from zigzags around their centre.
struct Steps<'a> {
    centre: u64,
    words: &'a mut [u64],
}

impl simd::Kernel for Steps<'_> {
    #[inline(always)]
    fn run(self) {
        for word in self.words {
            *word = unzigzag(*word).cast_unsigned().wrapping_add(self.centre);
        }
    }
}

fn decode_sequence(cursor: &mut Cursor<'_>, out: &mut [u64]) -> Result<()> {
    let sequence = Sequence::read(cursor)?;
    let mut word = sequence.first;
    for slot in out {
        *slot = word;
        word = word.wrapping_add(sequence.step);
    }
    Ok(())
}

/// A frame of reference of a whole vector without exceptions, which unpacks in one go with what is made of its words.
pub(crate) struct Frame<'a> {
    /// Added to each word.
    pub(crate) base: u64,
    pub(crate) packed: Interleaved<'a>,
}

impl<'a> Frame<'a> {
    /// Reads it where `cursor`, before the tag, has one of `count` words; else leaves the cursor where it is.
    pub(crate) fn read(cursor: &mut Cursor<'a>, count: usize) -> Result<Option<Self>> {
        let mut ahead = cursor.clone();
        if count != VECTOR_VALUES || super::read_codec(&mut ahead)? != CodecId::For {
            return Ok(None);
        }
        let base = ahead.u64()?;
        let (width, exceptions, high) = (ahead.u8()?, ahead.u16()?, ahead.u8()?);
        if exceptions > 0 || high > 0 {
            return Ok(None);
        }
        let packed = Interleaved::read(&mut ahead, width.into())?;
        *cursor = ahead;
        Ok(Some(Self { base, packed }))
    }
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

/// Words that grow by one step: word `i` is `first + i * step`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub(crate) first: u64,
    pub(crate) step: u64,
}

impl Sequence {
    pub(crate) fn read(cursor: &mut Cursor<'_>) -> Result<Self> {
        Ok(Self { first: cursor.u64()?, step: cursor.u64()? })
    }

    pub(crate) fn word(self, at: usize) -> u64 {
        self.first.wrapping_add(self.step.wrapping_mul(at as u64))
    }
}

fn decode_delta_rle(cursor: &mut Cursor<'_>, out: &mut [u64]) -> Result<()> {
    let mut slots = out.iter_mut();
    each_delta_run(cursor, slots.len(), |first, delta, run| {
        let mut word = first;
        for slot in slots.by_ref().take(run) {
            *slot = word;
            word = word.wrapping_add(delta);
        }
    })
}

/// Gives each run of `count` words: its first one, how they grow, and how many they are, at least one.
fn each_delta_run(cursor: &mut Cursor<'_>, count: usize, mut put: impl FnMut(u64, u64, usize)) -> Result<()> {
    let mut word = cursor.varint()?;
    let Some(mut left) = count.checked_sub(1) else { return Ok(()) };
    put(word, 0, 1);
    while left > 0 {
        let delta = unzigzag(cursor.varint()?).cast_unsigned();
        let run = cursor.varint()?;
        let Some(len) = usize::try_from(run).ok().filter(|len| (1..=left).contains(len)) else {
            return Err(cursor.invalid("a run within the vector", run));
        };
        put(word.wrapping_add(delta), delta, len);
        word = word.wrapping_add(delta.wrapping_mul(run));
        left -= len;
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
