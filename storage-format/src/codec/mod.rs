//! Codecs of one vector: at most 1,024 present values of one type, decodable alone, the smallest encoding chosen.
//!
//! Each vector is its codec's tag and the codec's bytes; the number of values is known from the page.

mod alp;
pub(crate) mod bitpack;
pub(crate) mod dictionary;
mod gorilla;
mod int;
mod rle;

use crate::column::Texts;
use crate::cursor::{Cursor, Result};

/// A codec, by its number on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CodecId {
    /// Values as they are, 8 bytes each.
    Raw = 0,
    /// All values are the same 8 bytes.
    Constant = 1,
    /// Floats: XOR stream.
    Gorilla = 2,
    /// Floats: decimal integers, frame of reference.
    Alp = 3,
    /// Times: delta-of-delta stream.
    DeltaOfDelta = 4,
    /// Integers and times: frame of reference, bit-packed.
    For = 5,
    /// Integers and times: zigzag deltas, bit-packed.
    Delta = 6,
    /// Integers and times: runs of equal deltas.
    DeltaRle = 7,
    /// Booleans: alternating runs.
    Rle = 8,
    /// Booleans: one bit each.
    Bitmap = 9,
    /// Strings: codes into the page's dictionary.
    Dictionary = 10,
    /// Strings: plain under zstd.
    Zstd = 11,
}

impl CodecId {
    /// The codec with this number, if there is one.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        use CodecId::*;
        [Raw, Constant, Gorilla, Alp, DeltaOfDelta, For, Delta, DeltaRle, Rle, Bitmap, Dictionary, Zstd]
            .into_iter()
            .find(|codec| *codec as u8 == byte)
    }
}

fn read_codec(cursor: &mut Cursor<'_>) -> Result<CodecId> {
    let byte = cursor.u8()?;
    CodecId::from_byte(byte).ok_or_else(|| cursor.invalid("a known codec", byte.into()))
}

/// Keeps the smallest of the candidates written so far.
struct Smallest {
    best: Vec<u8>,
    scratch: Vec<u8>,
}

impl Smallest {
    fn new(codec: CodecId, encode: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut best = vec![codec as u8];
        encode(&mut best);
        Self { best, scratch: Vec::new() }
    }

    fn consider(&mut self, codec: CodecId, encode: impl FnOnce(&mut Vec<u8>) -> bool) {
        self.scratch.clear();
        self.scratch.push(codec as u8);
        if encode(&mut self.scratch) && self.scratch.len() < self.best.len() {
            std::mem::swap(&mut self.best, &mut self.scratch);
        }
    }
}

/// Appends one vector of floats in the smallest encoding.
pub(crate) fn encode_floats(values: &[f64], out: &mut Vec<u8>) {
    let Some(first) = values.first() else { return };
    if values.iter().all(|value| value.to_bits() == first.to_bits()) {
        out.push(CodecId::Constant as u8);
        out.extend_from_slice(&first.to_bits().to_le_bytes());
        return;
    }
    let mut smallest = Smallest::new(CodecId::Raw, |out| {
        values.iter().for_each(|v| out.extend_from_slice(&v.to_bits().to_le_bytes()))
    });
    smallest.consider(CodecId::Alp, |out| alp::encode(values, out));
    // XOR pays on slowly moving doubles and repeats; where ALP halves the data already it decodes twenty times faster.
    if smallest.best.len() > values.len() * 4 {
        smallest.consider(CodecId::Gorilla, |out| {
            gorilla::encode_floats(values, out);
            true
        });
    }
    out.extend_from_slice(&smallest.best);
}

/// Encodes one vector of floats with one codec, for benchmarks and tests; `None` where it does not apply.
#[must_use]
pub fn encode_floats_as(codec: CodecId, values: &[f64]) -> Option<Vec<u8>> {
    let mut out = vec![codec as u8];
    match codec {
        CodecId::Raw => values.iter().for_each(|v| out.extend_from_slice(&v.to_bits().to_le_bytes())),
        CodecId::Gorilla => gorilla::encode_floats(values, &mut out),
        CodecId::Alp => return alp::encode(values, &mut out).then_some(out),
        _ => return None,
    }
    Some(out)
}

/// Reads one vector of `count` floats that fills the cursor.
pub fn decode_floats(cursor: &mut Cursor<'_>, count: usize, out: &mut Vec<f64>) -> Result<()> {
    if count == 0 {
        return cursor.finish();
    }
    match read_codec(cursor)? {
        CodecId::Raw => (0..count).try_for_each(|_| {
            out.push(f64::from_bits(cursor.u64()?));
            Ok(())
        })?,
        CodecId::Constant => {
            let value = f64::from_bits(cursor.u64()?);
            out.resize(out.len() + count, value);
        }
        CodecId::Gorilla => gorilla::decode_floats(cursor, count, out)?,
        CodecId::Alp => alp::decode(cursor, count, out)?,
        other => return Err(cursor.invalid("a codec for floats", other as u64)),
    }
    cursor.finish()
}

fn encode_words(words: &[u64], times: bool, out: &mut Vec<u8>) {
    let Some(first) = words.first() else { return };
    if words.iter().all(|word| word == first) {
        out.push(CodecId::Constant as u8);
        out.extend_from_slice(&first.to_le_bytes());
        return;
    }
    let mut smallest = Smallest::new(CodecId::For, |out| int::encode_for(words, out));
    smallest.consider(CodecId::Delta, |out| {
        int::encode_delta(words, out);
        true
    });
    let limit = smallest.best.len();
    smallest.consider(CodecId::DeltaRle, |out| int::encode_delta_rle(words, limit, out));
    if times && smallest.best.len() > words.len() / 8 {
        let values: Vec<i64> = words.iter().map(|&word| int::from_word(word)).collect();
        smallest.consider(CodecId::DeltaOfDelta, |out| {
            gorilla::encode_times(&values, out);
            true
        });
    }
    out.extend_from_slice(&smallest.best);
}

/// Appends one vector of signed integers in the smallest encoding; `times` allows the time codecs.
pub(crate) fn encode_ints(values: &[i64], times: bool, out: &mut Vec<u8>) {
    let words: Vec<u64> = values.iter().map(|&value| int::to_word(value)).collect();
    encode_words(&words, times, out);
}

/// Appends one vector of unsigned integers in the smallest encoding.
pub(crate) fn encode_uints(values: &[u64], out: &mut Vec<u8>) {
    encode_words(values, false, out);
}

/// Encodes one vector of integers with one codec, for benchmarks and tests; `None` where it does not apply.
#[must_use]
pub fn encode_ints_as(codec: CodecId, values: &[i64]) -> Option<Vec<u8>> {
    let words: Vec<u64> = values.iter().map(|&value| int::to_word(value)).collect();
    let mut out = vec![codec as u8];
    match codec {
        CodecId::For => int::encode_for(&words, &mut out),
        CodecId::Delta => int::encode_delta(&words, &mut out),
        CodecId::DeltaRle => return int::encode_delta_rle(&words, usize::MAX, &mut out).then_some(out),
        CodecId::DeltaOfDelta => gorilla::encode_times(values, &mut out),
        _ => return None,
    }
    Some(out)
}

fn decode_words(cursor: &mut Cursor<'_>, count: usize, mut sink: impl FnMut(u64)) -> Result<()> {
    if count == 0 {
        return cursor.finish();
    }
    match read_codec(cursor)? {
        CodecId::Constant => {
            let word = cursor.u64()?;
            (0..count).for_each(|_| sink(word));
        }
        CodecId::For => int::decode_for(cursor, count, sink)?,
        CodecId::Delta => int::decode_delta(cursor, count, sink)?,
        CodecId::DeltaRle => int::decode_delta_rle(cursor, count, sink)?,
        CodecId::DeltaOfDelta => {
            let mut times = Vec::with_capacity(count);
            gorilla::decode_times(cursor, count, &mut times)?;
            times.into_iter().for_each(|time| sink(int::to_word(time)));
        }
        other => return Err(cursor.invalid("a codec for integers", other as u64)),
    }
    cursor.finish()
}

/// Reads one vector of `count` signed integers that fills the cursor.
pub(crate) fn decode_ints(cursor: &mut Cursor<'_>, count: usize, out: &mut Vec<i64>) -> Result<()> {
    out.reserve(count);
    decode_words(cursor, count, |word| out.push(int::from_word(word)))
}

/// Reads one vector of `count` unsigned integers that fills the cursor.
pub(crate) fn decode_uints(cursor: &mut Cursor<'_>, count: usize, out: &mut Vec<u64>) -> Result<()> {
    out.reserve(count);
    decode_words(cursor, count, |word| out.push(word))
}

/// Appends one vector of booleans in the smaller encoding.
pub(crate) fn encode_bools(values: &[bool], out: &mut Vec<u8>) {
    if values.is_empty() {
        return;
    }
    let mut smallest = Smallest::new(CodecId::Bitmap, |out| rle::encode_bitmap(values, out));
    smallest.consider(CodecId::Rle, |out| {
        rle::encode_rle(values, out);
        true
    });
    out.extend_from_slice(&smallest.best);
}

/// Reads one vector of `count` booleans that fills the cursor.
pub(crate) fn decode_bools(cursor: &mut Cursor<'_>, count: usize, out: &mut Vec<bool>) -> Result<()> {
    if count == 0 {
        return cursor.finish();
    }
    match read_codec(cursor)? {
        CodecId::Bitmap => rle::decode_bitmap(cursor, count, out)?,
        CodecId::Rle => rle::decode_rle(cursor, count, out)?,
        other => return Err(cursor.invalid("a codec for booleans", other as u64)),
    }
    cursor.finish()
}

/// Appends one vector of strings: codes where the page has a dictionary, else plain.
pub(crate) fn encode_texts(texts: &[&[u8]], entries: Option<&[&[u8]]>, out: &mut Vec<u8>) {
    if texts.is_empty() {
        return;
    }
    match entries {
        Some(entries) => {
            out.push(CodecId::Dictionary as u8);
            dictionary::encode_codes(texts, entries, out);
        }
        None => {
            out.push(CodecId::Zstd as u8);
            dictionary::encode_plain(texts, out);
        }
    }
}

/// Reads one vector of `count` strings that fills the cursor.
pub(crate) fn decode_texts(
    cursor: &mut Cursor<'_>,
    count: usize,
    entries: &[&[u8]],
    out: &mut Texts,
) -> Result<()> {
    if count == 0 {
        return cursor.finish();
    }
    match read_codec(cursor)? {
        CodecId::Dictionary => dictionary::decode_codes(cursor, count, entries, out)?,
        CodecId::Zstd => dictionary::decode_plain(cursor, count, out)?,
        other => return Err(cursor.invalid("a codec for strings", other as u64)),
    }
    cursor.finish()
}
