//! Pages with few distinct values: a sorted dictionary for the page, and for each vector its codes as a vector of
//! integers. Strings that are not few: plain bytes under zstd.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::{bitpack, int, simd};
use crate::column::Texts;
use crate::cursor::{Cursor, FormatError, Result, Writer};
use crate::limits;

const ZSTD_LEVEL: i32 = 3;
/// Words of a page that show whether it has few distinct ones, and how many of them may be distinct: what a sample of
/// 4,096 equally frequent ones has.
const SAMPLES: usize = 1024;
const MOST_SAMPLES: usize = 906;

/// The distinct strings of `texts`, sorted, if they are few enough for codes to pay.
pub(crate) fn distinct<'a>(texts: &[&'a [u8]]) -> Option<Vec<&'a [u8]>> {
    let mut sorted = texts.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let bytes: usize = sorted.iter().map(|text| text.len() + 4).sum();
    (sorted.len() <= 1 + texts.len() / 2 && bytes <= limits::DICTIONARY_BYTES).then_some(sorted)
}

/// Encodes the dictionary, which is sorted and without duplicates.
pub(crate) fn encode_entries(entries: &[&[u8]]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.varint(entries.len() as u64);
    for entry in entries {
        writer.bytes(entry);
    }
    writer.into_bytes()
}

/// Reads a dictionary.
pub(crate) fn decode_entries(bytes: &[u8]) -> Result<Vec<&[u8]>> {
    let mut cursor = Cursor::new("dictionary", bytes);
    let count = cursor.count(limits::ROW_GROUP_ROWS, 1)?;
    let mut entries: Vec<&[u8]> = Vec::with_capacity(count);
    for _ in 0..count {
        let entry = cursor.text(limits::TEXT_BYTES)?.as_bytes();
        if entries.last().is_some_and(|last| *last >= entry) {
            return Err(cursor.invalid("entries in ascending order", entries.len() as u64));
        }
        entries.push(entry);
    }
    cursor.finish()?;
    Ok(entries)
}

/// The distinct words of a page, ascending, and the code of each.
#[derive(Debug)]
pub(crate) struct WordDictionary {
    entries: Vec<u64>,
    codes: HashMap<u64, u16, BuildHasherDefault<Mix>>,
}

impl WordDictionary {
    /// Of a page's words; `None` where there are too many for codes to pay.
    pub(crate) fn of(words: impl ExactSizeIterator<Item = u64> + Clone) -> Option<Self> {
        let limit = (words.len() / 8).min(limits::WORD_DICTIONARY);
        let step = words.len().div_ceil(SAMPLES).max(1);
        let mut sample: Vec<u64> = words.clone().step_by(step).collect();
        sample.sort_unstable();
        sample.dedup();
        if sample.len() > MOST_SAMPLES {
            return None;
        }
        let mut codes = HashMap::with_capacity_and_hasher(limit + 1, BuildHasherDefault::default());
        for word in words {
            codes.insert(word, 0);
            if codes.len() > limit {
                return None;
            }
        }
        let mut entries: Vec<u64> = codes.keys().copied().collect();
        entries.sort_unstable();
        for (code, word) in entries.iter().enumerate() {
            codes.insert(*word, code as u16);
        }
        Some(Self { entries, codes })
    }

    /// Appends the codes of one vector of the page.
    pub(crate) fn encode(&self, words: impl Iterator<Item = u64>, out: &mut Vec<u8>) {
        let code = |word| self.codes.get(&word).copied().unwrap_or_default();
        let codes: Vec<u64> = words.map(|word| code(word).into()).collect();
        int::encode(&codes, out);
    }

    /// Bytes that the codes of so many words take where they have no pattern.
    pub(crate) fn plain_bytes(&self, words: usize) -> usize {
        words * bitpack::width(self.entries.len().saturating_sub(1) as u64) as usize / 8
    }

    /// Its bytes in a page.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.varint(self.entries.len() as u64);
        self.entries.iter().for_each(|word| writer.u64(*word));
        compress(writer.as_bytes())
    }
}

/// Spreads the bits of a word; nobody gains from making words of a page collide.
#[derive(Debug, Default)]
struct Mix(u64);

impl std::hash::Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Reads a dictionary of words.
pub(crate) fn decode_word_entries(bytes: &[u8]) -> Result<Vec<u64>> {
    let mut cursor = Cursor::new("dictionary of words", bytes);
    let count = cursor.count(limits::WORD_DICTIONARY, 8)?;
    let mut entries: Vec<u64> = Vec::with_capacity(count);
    for at in 0..count {
        let word = cursor.u64()?;
        if entries.last().is_some_and(|last| *last >= word) {
            return Err(cursor.invalid("entries in ascending order", at as u64));
        }
        entries.push(word);
    }
    cursor.finish()?;
    Ok(entries)
}

/// Reads the codes of one vector, as many as `codes` has, each below `entries`.
pub(crate) fn decode_codes(cursor: &mut Cursor<'_>, entries: usize, codes: &mut [u64]) -> Result<()> {
    let codec = super::read_codec(cursor)?;
    int::decode(codec, cursor, codes)?;
    let mut known = true;
    simd::dispatch(AllBelow { limit: entries as u64, codes, known: &mut known });
    let most = || codes.iter().copied().max().unwrap_or_default();
    if known { Ok(()) } else { Err(cursor.invalid("a code of the dictionary", most())) }
}

struct AllBelow<'a> {
    limit: u64,
    codes: &'a [u64],
    known: &'a mut bool,
}

impl simd::Kernel for AllBelow<'_> {
    #[inline(always)]
    fn run(self) {
        let beyond = self.codes.iter().fold(0, |beyond, code| beyond | u64::from(*code >= self.limit));
        *self.known = beyond == 0;
    }
}

/// The entries of a page of numbers, laid out so that a code needs no check of its own.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    /// As many as the dictionary has, then zeroes; empty without a dictionary.
    table: Vec<u64>,
    len: usize,
}

impl Entries {
    pub(crate) fn new(mut entries: Vec<u64>) -> Self {
        let len = entries.len();
        if len > 0 {
            entries.resize(limits::WORD_DICTIONARY, 0);
        }
        Self { table: entries, len }
    }

    /// The entries, ascending.
    pub(crate) fn as_slice(&self) -> &[u64] {
        self.table.get(..self.len).unwrap_or_default()
    }

    /// Reads the codes of one vector and puts what `value` makes of the entry of each.
    pub(crate) fn decode<T>(
        &self,
        cursor: &mut Cursor<'_>,
        codes: &mut Vec<u64>,
        out: &mut [T],
        value: impl Fn(u64) -> T,
    ) -> Result<()> {
        codes.resize(out.len(), 0);
        decode_codes(cursor, self.len, codes)?;
        let Some(table) = self.table.first_chunk::<{ limits::WORD_DICTIONARY }>() else { return Ok(()) };
        for (slot, code) in out.iter_mut().zip(codes) {
            let code = *code as usize % limits::WORD_DICTIONARY;
            *slot = value(table.get(code).copied().unwrap_or_default());
        }
        Ok(())
    }
}

/// Appends the codes of one vector of strings.
pub(crate) fn encode_texts(texts: &[&[u8]], entries: &[&[u8]], out: &mut Vec<u8>) {
    let code = |text: &&[u8]| entries.binary_search(text).unwrap_or_default() as u64;
    int::encode(&texts.iter().map(code).collect::<Vec<_>>(), out);
}

/// Reads the codes of one vector and appends the string of each.
pub(crate) fn decode_texts(
    cursor: &mut Cursor<'_>,
    count: usize,
    entries: &[&[u8]],
    out: &mut Texts,
) -> Result<()> {
    let mut codes = vec![0; count];
    decode_codes(cursor, entries.len(), &mut codes)?;
    let texts = || codes.iter().filter_map(|code| entries.get(*code as usize));
    // A code is a few bits and its string up to 16 MiB, so the bytes left in the page bound nothing.
    let bytes: usize = texts().map(|text| text.len()).sum();
    check_room(cursor, out, bytes)?;
    out.reserve(count, bytes);
    texts().for_each(|text| out.push(text));
    Ok(())
}

fn check_room(cursor: &Cursor<'_>, texts: &Texts, bytes: usize) -> Result<()> {
    match texts.byte_len() + bytes {
        all if all <= limits::PAGE_TEXT_BYTES => Ok(()),
        all => Err(cursor.invalid("at most 128 MiB of text in a page", all as u64)),
    }
}

/// Appends the strings of one vector as they are, compressed.
pub(crate) fn encode_plain(texts: &[&[u8]], out: &mut Vec<u8>) {
    let mut writer = Writer::new();
    texts.iter().for_each(|text| writer.varint(text.len() as u64));
    texts.iter().for_each(|text| writer.put(text));
    out.extend_from_slice(&compress(writer.as_bytes()));
}

/// Reads `count` strings that fill the rest of the cursor.
pub(crate) fn decode_plain(cursor: &mut Cursor<'_>, count: usize, out: &mut Texts) -> Result<()> {
    let bytes = decompress(cursor, limits::PLAIN_BYTES)?;
    check_room(cursor, out, bytes.len())?;
    let mut plain = Cursor::new("plain strings", &bytes);
    let mut lens = Vec::with_capacity(count);
    for _ in 0..count {
        lens.push(plain.count(limits::TEXT_BYTES, 0)?);
    }
    for len in lens {
        let text = plain.take(len)?;
        if std::str::from_utf8(text).is_err() {
            return Err(plain.invalid("UTF-8 text", len as u64));
        }
        out.push(text);
    }
    plain.finish()
}

/// `plain length varint | zstd frame`.
pub(crate) fn compress(bytes: &[u8]) -> Vec<u8> {
    compress_at(ZSTD_LEVEL, bytes)
}

/// The same at another level.
pub(crate) fn compress_at(level: i32, bytes: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.varint(bytes.len() as u64);
    let packed = zstd::bulk::compress(bytes, level);
    // zstd fails only where its output buffer is too small, and `bulk` sizes it for the worst case.
    writer.put(&packed.unwrap_or_else(|error| panic!("BUG: zstd of {} bytes: {error}", bytes.len())));
    writer.into_bytes()
}

/// Reads what [`compress`] wrote, which fills the rest of the cursor.
pub(crate) fn decompress(cursor: &mut Cursor<'_>, limit: usize) -> Result<Vec<u8>> {
    let raw = cursor.varint()?;
    let len = usize::try_from(raw).ok().filter(|len| *len <= limit);
    let Some(len) = len else { return Err(cursor.invalid("a plain length within its limit", raw)) };
    let packed = cursor.rest();
    // The claimed length is trusted for allocation only as far as zstd could have reached it: a run of 128 KiB in a
    // block of 4 bytes.
    let capacity = len.min(packed.len().saturating_mul(1 << 15));
    match zstd::bulk::decompress(packed, capacity) {
        Ok(bytes) if bytes.len() == len => Ok(bytes),
        Ok(bytes) => Err(cursor.invalid("the length stated before the zstd frame", bytes.len() as u64)),
        Err(_) => Err(FormatError::Invalid {
            structure: "zstd frame",
            offset: cursor.offset(),
            expected: "a valid zstd frame",
            found: packed.len() as u64,
        }),
    }
}
