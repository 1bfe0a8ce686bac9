//! Codecs of one vector: at most 1,024 present values of one type, decodable alone, and the choice between them by size
//! and by what decoding costs.
//!
//! Each vector is its codec's tag and the codec's bytes, drawn in `docs/format/page.md`; the number of values is known
//! from the page.

pub(crate) mod alp;
mod alp_rd;
pub(crate) mod bitpack;
mod chimp;
pub(crate) mod dense;
pub(crate) mod dictionary;
pub(crate) mod float;
mod gorilla;
pub(crate) mod int;
mod interleaved;
mod rle;
mod simd;

pub(crate) use int::{from_word, to_word};
pub use simd::use_portable_code;

use dictionary::WordDictionary;

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
    /// Strings and numbers: codes into the page's dictionary.
    Dictionary = 10,
    /// Strings: plain under zstd.
    Zstd = 11,
    /// Integers and times: over their greatest common divisor.
    Gcd = 12,
    /// Floats: XOR with one of the last 128.
    Chimp128 = 13,
    /// A page's unit of the dense profile.
    Pco = 14,
    /// A page's unit of the dense profile: decimal integers.
    AlpPco = 15,
    /// Floats: dictionary of left bits, right bits as they are.
    AlpRd = 16,
    /// Integers and times: a first one and a step.
    Sequence = 17,
    /// A page's unit of the dense profile: 8 bytes each under zstd.
    ZstdWords = 18,
}

impl CodecId {
    const ALL: [Self; 19] = [
        Self::Raw,
        Self::Constant,
        Self::Gorilla,
        Self::Alp,
        Self::DeltaOfDelta,
        Self::For,
        Self::Delta,
        Self::DeltaRle,
        Self::Rle,
        Self::Bitmap,
        Self::Dictionary,
        Self::Zstd,
        Self::Gcd,
        Self::Chimp128,
        Self::Pco,
        Self::AlpPco,
        Self::AlpRd,
        Self::Sequence,
        Self::ZstdWords,
    ];

    /// The codec with this number, if there is one.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }
}

pub(crate) fn read_codec(cursor: &mut Cursor<'_>) -> Result<CodecId> {
    let byte = cursor.u8()?;
    CodecId::from_byte(byte).ok_or_else(|| cursor.invalid("a known codec", byte.into()))
}

/// A page's dictionary, and the bytes that its codes have saved so far.
#[derive(Debug)]
pub(crate) struct Codes {
    pub(crate) dictionary: WordDictionary,
    pub(crate) saved: usize,
}

impl Codes {
    /// Codes have much the same pattern as the words: they are worth a try where the words are wider, or where the words
    /// repeat and something else than words (exceptions, lanes) takes the bytes.
    fn may_save<T: Copy + PartialEq>(&self, words: &[T], bytes: usize) -> bool {
        let changes = words.iter().zip(words.iter().skip(1)).filter(|(a, b)| a != b).count();
        bytes * 20 > self.dictionary.plain_bytes(words.len()) * 21 || changes * 8 < words.len()
    }
}

/// What bit streams must save, in tenths of the bytes without them: they decode ten to forty times slower than packed
/// values.
const STREAMS_SAVE: usize = 1;

/// Encodes one vector of floats, at most 1,024, with one codec, for benchmarks and tests; `None` where it does not apply.
#[must_use]
pub fn encode_floats_as(codec: CodecId, values: &[f64]) -> Option<Vec<u8>> {
    let mut out = vec![codec as u8];
    let any = usize::MAX;
    match codec {
        CodecId::Raw => {
            out.clear();
            float::write_raw(values, &mut out);
            true
        }
        CodecId::Gorilla => gorilla::encode_floats(values, any, &mut out),
        CodecId::Chimp128 => chimp::encode(values, any, &mut out),
        CodecId::Alp => {
            let candidates = alp::candidates(values);
            alp::encode(values, &candidates, &mut alp::Scratch::default(), &mut out)
        }
        CodecId::AlpRd if !values.is_empty() => {
            let right = alp_rd::right_bits(values);
            right.inspect(|right| alp_rd::encode(values, *right, &mut out)).is_some()
        }
        _ => false,
    }
    .then_some(out)
}

/// What the vectors of a page of numbers are decoded with, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// The page's dictionary.
    pub(crate) entries: dictionary::Entries,
    scratch: alp::Scratch,
}

impl Reader {
    pub(crate) fn new(entries: Vec<u64>) -> Self {
        Self { entries: dictionary::Entries::new(entries), scratch: alp::Scratch::default() }
    }

    /// Reads a vector of words that fills the cursor, as many as `out` has.
    pub(crate) fn words(&mut self, cursor: &mut Cursor<'_>, out: &mut [u64]) -> Result<()> {
        if !out.is_empty() {
            match read_codec(cursor)? {
                CodecId::DeltaOfDelta => gorilla::decode_times(cursor, out)?,
                CodecId::Dictionary => {
                    self.entries.decode(cursor, &mut self.scratch.words, out, |word| word)?;
                }
                codec => int::decode(codec, cursor, out)?,
            }
        }
        cursor.finish()
    }

    /// Reads one vector that fills the cursor, as many values as `out` has, at most 1,024.
    pub(crate) fn floats(&mut self, cursor: &mut Cursor<'_>, out: &mut [f64]) -> Result<()> {
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
            CodecId::Chimp128 => chimp::decode(cursor, out)?,
            CodecId::Alp => alp::decode(cursor, &mut self.scratch, out)?,
            CodecId::AlpRd => alp_rd::decode(cursor, &mut self.scratch.words, out)?,
            CodecId::Dictionary => {
                self.entries.decode(cursor, &mut self.scratch.words, out, f64::from_bits)?;
            }
            other => return Err(cursor.invalid("a codec for floats", other as u64)),
        }
        cursor.finish()
    }
}

/// Reads one vector of floats without a dictionary that fills the cursor, as many as `out` has, at most 1,024.
pub fn decode_floats(cursor: &mut Cursor<'_>, out: &mut [f64]) -> Result<()> {
    Reader::default().floats(cursor, out)
}

/// Appends one vector of words of the page's kind in the smallest encoding; `times` allows the time codecs.
pub(crate) fn encode_words(words: &[u64], times: bool, codes: Option<&mut Codes>, out: &mut Vec<u8>) {
    let start = out.len();
    int::encode(words, out);
    let plain = out.len() - start;
    if let Some(codes) = codes.filter(|codes| codes.may_save(words, plain)) {
        let mut coded = vec![CodecId::Dictionary as u8];
        codes.dictionary.encode(words.iter().copied(), &mut coded);
        if coded.len() < plain {
            codes.saved += plain - coded.len();
            out.truncate(start);
            out.extend_from_slice(&coded);
        }
    }
    if times && plain > words.len() / 8 {
        let values: Vec<i64> = words.iter().map(|&word| int::from_word(word)).collect();
        let mut stream = vec![CodecId::DeltaOfDelta as u8];
        // Bit by bit it decodes slowly: it has to save a tenth.
        if gorilla::encode_times(&values, plain * (10 - STREAMS_SAVE) / 10 - 1, &mut stream) {
            out.truncate(start);
            out.extend_from_slice(&stream);
        }
    }
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
        CodecId::DeltaOfDelta => return gorilla::encode_times(values, usize::MAX, &mut out).then_some(out),
        CodecId::Sequence => {
            out.clear();
            return int::encode_sequence(&words, &mut out).then_some(out);
        }
        _ => return None,
    }
    Some(out)
}

/// Appends booleans in the smaller encoding, tag included.
pub(crate) fn encode_bools(values: &[bool], out: &mut Vec<u8>) {
    if values.is_empty() {
        return;
    }
    let bitmap = 1 + values.len().div_ceil(8);
    let start = out.len();
    out.push(CodecId::Rle as u8);
    if !rle::encode_rle(values, bitmap, out) {
        out.truncate(start);
        out.push(CodecId::Bitmap as u8);
        rle::encode_bitmap(values, out);
    }
}

/// Reads `count` booleans that fill the cursor.
pub(crate) fn decode_bools(cursor: &mut Cursor<'_>, count: usize, out: &mut Vec<bool>) -> Result<()> {
    if count == 0 {
        return cursor.finish();
    }
    match read_codec(cursor)? {
        CodecId::Bitmap => rle::decode_bitmap(cursor, count, out)?,
        CodecId::Rle => rle::each_run(cursor, count, |value, len| out.resize(out.len() + len, value))?,
        other => return Err(cursor.invalid("a codec for booleans", other as u64)),
    }
    cursor.finish()
}

/// Gives the runs of `count` booleans that fill the cursor; neighbours may be equal.
pub(crate) fn each_bool_run(
    cursor: &mut Cursor<'_>,
    count: usize,
    mut put: impl FnMut(bool, usize),
) -> Result<()> {
    let mut tagged = cursor.clone();
    if count > 0 && read_codec(&mut tagged)? == CodecId::Rle {
        rle::each_run(&mut tagged, count, put)?;
        return tagged.finish();
    }
    let mut values = Vec::with_capacity(count);
    decode_bools(cursor, count, &mut values)?;
    values.chunk_by(|a, b| a == b).for_each(|run| put(run.first() == Some(&true), run.len()));
    Ok(())
}

/// Appends one vector of strings: codes where the page has a dictionary, else plain.
pub(crate) fn encode_texts(texts: &[&[u8]], entries: Option<&[&[u8]]>, out: &mut Vec<u8>) {
    if texts.is_empty() {
        return;
    }
    match entries {
        Some(entries) => {
            out.push(CodecId::Dictionary as u8);
            dictionary::encode_texts(texts, entries, out);
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
        CodecId::Dictionary => dictionary::decode_texts(cursor, count, entries, out)?,
        CodecId::Zstd => dictionary::decode_plain(cursor, count, out)?,
        other => return Err(cursor.invalid("a codec for strings", other as u64)),
    }
    cursor.finish()
}
