//! Strings: a sorted dictionary for the page and bit-packed codes per vector, or plain bytes under zstd. Floats with few
//! distinct values: the same, their codes being a vector of integers.
//!
//! ```text
//! dictionary := count varint | (len varint, bytes) *        under zstd
//! floats     := count varint | bits u64 * ascending         under zstd
//! codes      := width u8 | packed codes
//! plain      := zstd of (len varint * | bytes)
//! ```

use super::bitpack;
use crate::column::Texts;
use crate::cursor::{Cursor, FormatError, Result, Writer};
use crate::limits;

const ZSTD_LEVEL: i32 = 3;

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

/// The distinct bits of the floats, ascending; empty where there are too many for codes to pay.
pub(crate) fn distinct_floats(values: &[f64]) -> Vec<u64> {
    let limit = (values.len() / 8).min(limits::FLOAT_DICTIONARY);
    let mut distinct = std::collections::HashSet::with_capacity(limit + 1);
    for value in values {
        distinct.insert(value.to_bits());
        if distinct.len() > limit {
            return Vec::new();
        }
    }
    let mut distinct: Vec<u64> = distinct.into_iter().collect();
    distinct.sort_unstable();
    distinct
}

/// Encodes a dictionary of floats.
pub(crate) fn encode_float_entries(entries: &[u64]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.varint(entries.len() as u64);
    entries.iter().for_each(|bits| writer.u64(*bits));
    writer.into_bytes()
}

/// Reads a dictionary of floats.
pub(crate) fn decode_float_entries(bytes: &[u8]) -> Result<Vec<f64>> {
    let mut cursor = Cursor::new("dictionary of floats", bytes);
    let count = cursor.count(limits::FLOAT_DICTIONARY, 8)?;
    let mut entries = Vec::with_capacity(count);
    let mut last = None;
    for at in 0..count {
        let bits = cursor.u64()?;
        if last.is_some_and(|last| last >= bits) {
            return Err(cursor.invalid("entries in ascending order", at as u64));
        }
        last = Some(bits);
        entries.push(f64::from_bits(bits));
    }
    cursor.finish()?;
    Ok(entries)
}

/// The codes of one vector of floats.
pub(crate) fn float_codes(values: &[f64], entries: &[u64]) -> Vec<u64> {
    values.iter().map(|value| entries.binary_search(&value.to_bits()).unwrap_or_default() as u64).collect()
}

/// Reads the codes of one vector and puts the float of each.
pub(crate) fn decode_floats(cursor: &mut Cursor<'_>, entries: &[f64], out: &mut [f64]) -> Result<()> {
    let mut scratch = [0_u64; limits::VECTOR_VALUES];
    let Some(codes) = scratch.get_mut(..out.len()) else {
        return Err(cursor.invalid("a vector of at most 1,024 values", out.len() as u64));
    };
    let codec = super::read_codec(cursor)?;
    super::int::decode(codec, cursor, codes)?;
    for (slot, code) in out.iter_mut().zip(codes.iter()) {
        match usize::try_from(*code).ok().and_then(|code| entries.get(code)) {
            Some(entry) => *slot = *entry,
            None => return Err(cursor.invalid("a code of the dictionary", *code)),
        }
    }
    Ok(())
}

/// Appends the codes of one vector.
pub(crate) fn encode_codes(texts: &[&[u8]], entries: &[&[u8]], out: &mut Vec<u8>) {
    let code = |text: &&[u8]| entries.binary_search(text).unwrap_or_default() as u64;
    let width = bitpack::width(entries.len().saturating_sub(1) as u64);
    out.push(width as u8);
    bitpack::pack(texts.iter().map(code), width, out);
}

/// Reads the codes of one vector and appends the string of each.
pub(crate) fn decode_codes(
    cursor: &mut Cursor<'_>,
    count: usize,
    entries: &[&[u8]],
    out: &mut Texts,
) -> Result<()> {
    let width = cursor.u8()?.into();
    let mut unknown = None;
    let mut texts = Vec::with_capacity(count);
    bitpack::unpack(cursor, count, width, |code| match entries.get(code as usize) {
        Some(entry) => texts.push(*entry),
        None => unknown = Some(code),
    })?;
    if let Some(code) = unknown {
        return Err(cursor.invalid("a code of the dictionary", code));
    }
    // A code is a few bits and its string up to 16 MiB, so the bytes left in the page bound nothing.
    let bytes: usize = texts.iter().map(|text| text.len()).sum();
    if bytes > out.room() {
        return Err(cursor.invalid("no more text than a column holds", bytes as u64));
    }
    texts.into_iter().for_each(|text| out.push(text));
    Ok(())
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
    if bytes.len() > out.room() {
        return Err(cursor.invalid("no more text than a column holds", bytes.len() as u64));
    }
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
    let mut writer = Writer::new();
    writer.varint(bytes.len() as u64);
    let packed = zstd::bulk::compress(bytes, ZSTD_LEVEL);
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
