//! Booleans: run lengths or a bitmap.
//!
//! ```text
//! rle    := first u8 | run varint *          runs alternate and add up to the number of values
//! bitmap := one bit per value, least significant first
//! ```

use super::bitpack;
use crate::cursor::{Cursor, Result, Writer};

/// Appends alternating runs.
pub(crate) fn encode_rle(values: &[bool], out: &mut Vec<u8>) {
    let mut writer = Writer::on(std::mem::take(out));
    writer.u8(values.first().copied().unwrap_or_default().into());
    for run in values.chunk_by(|a, b| a == b) {
        writer.varint(run.len() as u64);
    }
    *out = writer.into_bytes();
}

/// Reads `count` values.
pub(crate) fn decode_rle(cursor: &mut Cursor<'_>, count: usize, out: &mut Vec<bool>) -> Result<()> {
    let mut value = match cursor.u8()? {
        0 => false,
        1 => true,
        other => return Err(cursor.invalid("0 or 1", other.into())),
    };
    let mut left = count;
    while left > 0 {
        let run = cursor.varint()?;
        if run == 0 || run > left as u64 {
            return Err(cursor.invalid("a run within the vector", run));
        }
        out.resize(out.len() + run as usize, value);
        left -= run as usize;
        value = !value;
    }
    Ok(())
}

/// Appends one bit per value.
pub(crate) fn encode_bitmap(values: &[bool], out: &mut Vec<u8>) {
    bitpack::pack(values.iter().map(|&value| value.into()), 1, out);
}

/// Reads `count` values.
pub(crate) fn decode_bitmap(cursor: &mut Cursor<'_>, count: usize, out: &mut Vec<bool>) -> Result<()> {
    bitpack::unpack(cursor, count, 1, |bit| out.push(bit == 1))
}
