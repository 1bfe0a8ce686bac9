//! Integers: frame of reference and zigzag deltas, bit-packed; run-length of deltas for regular sequences.
//!
//! ```text
//! for       := base u64 | width u8 | packed (v - base)
//! delta     := first u64 | base u64 | width u8 | packed (zigzag(v[i] - v[i-1]) - base), one less than there are values
//! delta_rle := first varint | (zigzag delta varint, run varint) *      the runs add up to one less than the values
//! ```
//! Values are 64-bit words; signed ones are mapped by flipping the sign bit, so that `for` keeps their order.

use super::bitpack;
use crate::cursor::{Cursor, Result, Writer, unzigzag, zigzag};

/// Appends the words less their minimum.
pub(crate) fn encode_for(words: &[u64], out: &mut Vec<u8>) {
    let low = words.iter().copied().min().unwrap_or_default();
    let high = words.iter().copied().max().unwrap_or_default();
    let width = bitpack::width(high - low);
    out.extend_from_slice(&low.to_le_bytes());
    out.push(width as u8);
    bitpack::pack(words.iter().map(|word| word - low), width, out);
}

/// Reads `count` words.
pub(crate) fn decode_for(cursor: &mut Cursor<'_>, count: usize, mut sink: impl FnMut(u64)) -> Result<()> {
    let low = cursor.u64()?;
    let width = cursor.u8()?.into();
    bitpack::unpack(cursor, count, width, |packed| sink(low.wrapping_add(packed)))
}

fn deltas(words: &[u64]) -> impl Iterator<Item = u64> + Clone + '_ {
    words.iter().zip(words.iter().skip(1)).map(|(a, b)| zigzag(b.wrapping_sub(*a).cast_signed()))
}

/// Appends the first word and the deltas less their minimum.
pub(crate) fn encode_delta(words: &[u64], out: &mut Vec<u8>) {
    let low = deltas(words).min().unwrap_or_default();
    let high = deltas(words).max().unwrap_or_default();
    let width = bitpack::width(high - low);
    out.extend_from_slice(&words.first().copied().unwrap_or_default().to_le_bytes());
    out.extend_from_slice(&low.to_le_bytes());
    out.push(width as u8);
    bitpack::pack(deltas(words).map(|delta| delta - low), width, out);
}

/// Reads `count` words.
pub(crate) fn decode_delta(cursor: &mut Cursor<'_>, count: usize, mut sink: impl FnMut(u64)) -> Result<()> {
    let mut word = cursor.u64()?;
    let low = cursor.u64()?;
    let width = cursor.u8()?.into();
    if count == 0 {
        return Ok(());
    }
    sink(word);
    bitpack::unpack(cursor, count - 1, width, |packed| {
        word = word.wrapping_add(unzigzag(low.wrapping_add(packed)).cast_unsigned());
        sink(word);
    })
}

/// Appends the first word and the runs of equal deltas; `false`, with `out` cut back, once it is `limit` bytes long.
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
        writer.varint(delta);
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

/// Reads `count` words.
pub(crate) fn decode_delta_rle(
    cursor: &mut Cursor<'_>,
    count: usize,
    mut sink: impl FnMut(u64),
) -> Result<()> {
    let mut word = cursor.varint()?;
    if count == 0 {
        return Ok(());
    }
    sink(word);
    let mut left = count - 1;
    while left > 0 {
        let delta = unzigzag(cursor.varint()?).cast_unsigned();
        let run = cursor.varint()?;
        if run == 0 || run > left as u64 {
            return Err(cursor.invalid("a run within the vector", run));
        }
        for _ in 0..run {
            word = word.wrapping_add(delta);
            sink(word);
        }
        left -= run as usize;
    }
    Ok(())
}

/// Maps a signed integer so that unsigned order is signed order.
pub(crate) fn to_word(value: i64) -> u64 {
    value.cast_unsigned() ^ (1 << 63)
}

/// The inverse of [`to_word`].
pub(crate) fn from_word(word: u64) -> i64 {
    (word ^ (1 << 63)).cast_signed()
}
