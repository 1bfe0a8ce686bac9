//! Booleans: alternating run lengths, or a bitmap.

use crate::cursor::{Cursor, Result, Writer};

/// Appends alternating runs; `false`, with bytes of no use appended, once they take `limit` bytes.
pub(crate) fn encode_rle(values: &[bool], limit: usize, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let mut writer = Writer::on(std::mem::take(out));
    writer.u8(values.first().copied().unwrap_or_default().into());
    let mut runs = values.chunk_by(|a, b| a == b);
    let fits = runs.all(|run| {
        writer.varint(run.len() as u64);
        writer.len() - start < limit
    });
    *out = writer.into_bytes();
    fits
}

/// Gives each run of `count` values, and how long it is.
pub(crate) fn each_run(
    cursor: &mut Cursor<'_>,
    count: usize,
    mut put: impl FnMut(bool, usize),
) -> Result<()> {
    let mut value = cursor.flag()?;
    let mut left = count;
    while left > 0 {
        let run = cursor.varint()?;
        let Some(len) = usize::try_from(run).ok().filter(|len| (1..=left).contains(len)) else {
            return Err(cursor.invalid("a run within the vector", run));
        };
        put(value, len);
        left -= len;
        value = !value;
    }
    Ok(())
}

/// Appends one bit per value.
pub(crate) fn encode_bitmap(values: &[bool], out: &mut Vec<u8>) {
    let byte = |bits: &[bool]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
    out.extend(values.chunks(8).map(byte));
}

/// Appends `count` values.
pub(crate) fn decode_bitmap(cursor: &mut Cursor<'_>, count: usize, out: &mut Vec<bool>) -> Result<()> {
    let bytes = cursor.take(count.div_ceil(8))?;
    let end = out.len() + count;
    for byte in bytes {
        out.extend((0..8).map(|bit| byte >> bit & 1 == 1));
    }
    out.truncate(end);
    let padding = bytes.last().map_or(0, |last| u32::from(*last) >> ((count + 7) % 8 + 1));
    if padding == 0 { Ok(()) } else { Err(cursor.invalid("zero padding", padding.into())) }
}
