//! Codecs of one vector: at most 1,024 present values of one type, decodable alone, the smallest encoding chosen.
//!
//! Each vector is its codec's tag and the codec's bytes; the number of values is known from the page.

pub(crate) mod alp;
pub(crate) mod bitpack;
pub(crate) mod dense;
pub(crate) mod dictionary;
mod gorilla;
mod int;
mod rle;

pub(crate) use int::{from_word, to_word};

use crate::column::Texts;
use crate::cursor::{Cursor, Result};

/// What a page is encoded for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Reading: every vector of 1,024 values decodes alone, at memory speed.
    #[default]
    Fast,
    /// Size: a page may be one unit, decoded as a whole, some ten times slower, where that saves more than a tenth.
    Dense,
}

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
    /// Integers and times: frame of reference, bit-packed, patched.
    For = 5,
    /// Integers and times: zigzag deltas, bit-packed, patched.
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
    /// Integers and times: over their greatest common divisor.
    Gcd = 12,
    /// Floats: codes into the page's dictionary.
    FloatDictionary = 13,
    /// A page's unit of the dense profile.
    Pco = 14,
    /// A page's unit of the dense profile: decimal integers.
    AlpPco = 15,
}

impl CodecId {
    /// The codec with this number, if there is one.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        use CodecId::*;
        [
            Raw,
            Constant,
            Gorilla,
            Alp,
            DeltaOfDelta,
            For,
            Delta,
            DeltaRle,
            Rle,
            Bitmap,
            Dictionary,
            Zstd,
            Gcd,
            FloatDictionary,
            Pco,
            AlpPco,
        ]
        .into_iter()
        .find(|codec| *codec as u8 == byte)
    }
}

pub(crate) fn read_codec(cursor: &mut Cursor<'_>) -> Result<CodecId> {
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

/// What the vectors of a page of floats share.
#[derive(Debug, Default)]
pub(crate) struct FloatPage {
    /// Exponents and lanes that ALP chooses from.
    alp: Vec<(alp::Exponents, u32)>,
    /// The distinct values, as bits in ascending order; empty where there are too many.
    pub(crate) dictionary: Vec<u64>,
}

impl FloatPage {
    /// Looks at the values of a page.
    pub(crate) fn of(values: &[f64]) -> Self {
        Self { alp: alp::candidates(values), dictionary: dictionary::distinct_floats(values) }
    }

    /// The same without a dictionary.
    pub(crate) fn without_dictionary(self) -> Self {
        Self { dictionary: Vec::new(), ..self }
    }
}

/// Appends one vector of floats in the smallest encoding.
pub(crate) fn encode_floats(values: &[f64], page: &FloatPage, out: &mut Vec<u8>) {
    let Some(first) = values.first() else { return };
    if values.iter().all(|value| value.to_bits() == first.to_bits()) {
        out.push(CodecId::Constant as u8);
        out.extend_from_slice(&first.to_bits().to_le_bytes());
        return;
    }
    let mut smallest = Smallest::new(CodecId::Raw, |out| {
        values.iter().for_each(|v| out.extend_from_slice(&v.to_bits().to_le_bytes()))
    });
    smallest.consider(CodecId::Alp, |out| alp::encode(values, &page.alp, out));
    if !page.dictionary.is_empty() {
        smallest.consider(CodecId::FloatDictionary, |out| {
            int::encode(&dictionary::float_codes(values, &page.dictionary), out);
            true
        });
    }
    // XOR pays on slowly moving doubles and repeats; where ALP halves the data already it decodes twenty times faster.
    if smallest.best.len() > values.len() * 4 {
        smallest.consider(CodecId::Gorilla, |out| {
            gorilla::encode_floats(values, out);
            true
        });
    }
    out.extend_from_slice(&smallest.best);
}

/// Encodes one vector of floats, at most 1,024, with one codec, for benchmarks and tests; `None` where it does not apply.
#[must_use]
pub fn encode_floats_as(codec: CodecId, values: &[f64]) -> Option<Vec<u8>> {
    let mut out = vec![codec as u8];
    match codec {
        CodecId::Raw => values.iter().for_each(|v| out.extend_from_slice(&v.to_bits().to_le_bytes())),
        CodecId::Gorilla => gorilla::encode_floats(values, &mut out),
        CodecId::Alp => return alp::encode(values, &alp::candidates(values), &mut out).then_some(out),
        _ => return None,
    }
    Some(out)
}

/// Reads one vector of floats that fills the cursor, as many as `out` has, at most 1,024. `dictionary` is the page's.
pub fn decode_floats(cursor: &mut Cursor<'_>, dictionary: &[f64], out: &mut [f64]) -> Result<()> {
    decode_floats_in(cursor, dictionary, &mut alp::Scratch::default(), out)
}

/// The same in memory that the vectors of a page share.
pub(crate) fn decode_floats_in(
    cursor: &mut Cursor<'_>,
    dictionary: &[f64],
    scratch: &mut alp::Scratch,
    out: &mut [f64],
) -> Result<()> {
    if out.is_empty() {
        return cursor.finish();
    }
    match read_codec(cursor)? {
        CodecId::Raw => {
            for slot in out.iter_mut() {
                *slot = f64::from_bits(cursor.u64()?);
            }
        }
        CodecId::Constant => out.fill(f64::from_bits(cursor.u64()?)),
        CodecId::Gorilla => gorilla::decode_floats(cursor, out)?,
        CodecId::Alp => alp::decode(cursor, scratch, out)?,
        CodecId::FloatDictionary => dictionary::decode_floats(cursor, dictionary, out)?,
        other => return Err(cursor.invalid("a codec for floats", other as u64)),
    }
    cursor.finish()
}

fn encode_words(words: &[u64], times: bool, out: &mut Vec<u8>) {
    let start = out.len();
    int::encode(words, out);
    if times && out.len() - start > words.len() / 8 {
        let values: Vec<i64> = words.iter().map(|&word| int::from_word(word)).collect();
        let mut stream = vec![CodecId::DeltaOfDelta as u8];
        gorilla::encode_times(&values, &mut stream);
        // Bit by bit it decodes slowly: it has to save a tenth.
        if stream.len() * 10 < (out.len() - start) * 9 {
            out.truncate(start);
            out.extend_from_slice(&stream);
        }
    }
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

/// Encodes a whole page of words as one unit of runs, tag included, where that takes fewer bytes than `limit`.
pub(crate) fn encode_runs(words: &[u64], limit: usize) -> Option<Vec<u8>> {
    let mut out = vec![CodecId::DeltaRle as u8];
    int::encode_delta_rle(words, limit, &mut out).then_some(out)
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

/// Reads words that fill the cursor, as many as `out` has: a vector, or a page's one unit.
pub(crate) fn decode_words(cursor: &mut Cursor<'_>, out: &mut [u64]) -> Result<()> {
    if !out.is_empty() {
        match read_codec(cursor)? {
            CodecId::DeltaOfDelta => gorilla::decode_times(cursor, out)?,
            codec => int::decode(codec, cursor, out)?,
        }
    }
    cursor.finish()
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
