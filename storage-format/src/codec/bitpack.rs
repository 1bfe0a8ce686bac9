//! Fixed-width bit packing, least significant bit first, and a bit stream for the variable-width codecs.
//!
//! Value `i` of width `w` stands in bits `i * w .. (i + 1) * w` of the byte string, bit 0 of a byte first (as Parquet's
//! bit packing).

use crate::cursor::{Cursor, Result};

/// Bits that the largest of the values needs.
pub(crate) fn width(max: u64) -> u32 {
    64 - max.leading_zeros()
}

/// Bytes that `count` values of `width` bits take.
pub(crate) fn packed_len(count: usize, width: u32) -> usize {
    (count * width as usize).div_ceil(8)
}

/// Appends the values, each below `2^width`.
pub(crate) fn pack(values: impl IntoIterator<Item = u64>, width: u32, out: &mut Vec<u8>) {
    let mut pending = 0_u128;
    let mut bits = 0;
    for value in values {
        debug_assert!(width == 64 || value >> width == 0, "{value} does not fit {width} bits");
        pending |= u128::from(value) << bits;
        bits += width;
        while bits >= 8 {
            out.push(pending as u8);
            pending >>= 8;
            bits -= 8;
        }
    }
    if bits > 0 {
        out.push(pending as u8);
    }
}

/// Reads `count` values of `width` bits and gives each to `sink`.
pub(crate) fn unpack(
    cursor: &mut Cursor<'_>,
    count: usize,
    width: u32,
    mut sink: impl FnMut(u64),
) -> Result<()> {
    if width > 64 {
        return Err(cursor.invalid("a bit width of at most 64", width.into()));
    }
    let bytes = cursor.take(packed_len(count, width))?;
    if width == 0 {
        (0..count).for_each(|_| sink(0));
        return Ok(());
    }
    let mask = u64::MAX >> (64 - width);
    let mut tail = [0_u8; 32];
    // Values whose sixteen bytes lie inside the slice are read in place, the last few from a padded copy.
    let fast = if bytes.len() < 16 { 0 } else { ((bytes.len() - 16) * 8 / width as usize + 1).min(count) };
    for i in 0..fast {
        let bit = i * width as usize;
        sink((read(bytes, bit / 8) >> (bit % 8)) as u64 & mask);
    }
    let base = fast * width as usize / 8;
    let rest = bytes.get(base..).unwrap_or_default();
    for (to, from) in tail.iter_mut().zip(rest) {
        *to = *from;
    }
    for i in fast..count {
        let bit = i * width as usize - base * 8;
        sink((read(&tail, bit / 8) >> (bit % 8)) as u64 & mask);
    }
    Ok(())
}

fn read(bytes: &[u8], at: usize) -> u128 {
    let window = bytes.get(at..at + 16).and_then(|window| window.try_into().ok());
    u128::from_le_bytes(window.unwrap_or_default())
}

/// Writes single bits and short fields, most significant bit first.
#[derive(Debug, Default)]
pub(crate) struct BitWriter {
    bytes: Vec<u8>,
    used: u32,
}

impl BitWriter {
    /// Appends the low `count` bits of `value`.
    pub(crate) fn put(&mut self, value: u64, count: u32) {
        for i in (0..count).rev() {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            if let Some(last) = self.bytes.last_mut() {
                *last |= (((value >> i) & 1) as u8) << (7 - self.used % 8);
            }
            self.used += 1;
        }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads what [`BitWriter`] wrote.
#[derive(Debug)]
pub(crate) struct BitReader<'a> {
    cursor: Cursor<'a>,
    byte: u8,
    left: u32,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { cursor: Cursor::new("bit stream", bytes), byte: 0, left: 0 }
    }

    pub(crate) fn bit(&mut self) -> Result<bool> {
        if self.left == 0 {
            self.byte = self.cursor.u8()?;
            self.left = 8;
        }
        self.left -= 1;
        Ok((self.byte >> self.left) & 1 == 1)
    }

    pub(crate) fn bits(&mut self, count: u32) -> Result<u64> {
        let mut value = 0_u64;
        let mut wanted = count;
        while wanted > 0 {
            if self.left == 0 {
                self.byte = self.cursor.u8()?;
                self.left = 8;
            }
            let n = wanted.min(self.left);
            let chunk = (u64::from(self.byte) >> (self.left - n)) & ((1 << n) - 1);
            value = (value << n) | chunk;
            self.left -= n;
            wanted -= n;
        }
        Ok(value)
    }

    /// Fails unless only the padding of the last byte is left, and that is zero.
    pub(crate) fn finish(&mut self) -> Result<()> {
        let padding = self.byte & ((1_u16 << self.left) - 1) as u8;
        if padding != 0 {
            return Err(self.cursor.invalid("zero padding", padding.into()));
        }
        self.cursor.finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packed_values_come_back(width in 0_u32..=64, raw in proptest::collection::vec(any::<u64>(), 0..300)) {
            let mask = if width == 0 { 0 } else { u64::MAX >> (64 - width) };
            let values: Vec<u64> = raw.iter().map(|v| v & mask).collect();
            let mut bytes = Vec::new();
            pack(values.iter().copied(), width, &mut bytes);
            prop_assert_eq!(bytes.len(), packed_len(values.len(), width));
            let mut back = Vec::new();
            unpack(&mut Cursor::new("test", &bytes), values.len(), width, |v| back.push(v)).unwrap();
            prop_assert_eq!(back, values);
        }

        #[test]
        fn bit_streams_come_back(fields in proptest::collection::vec((any::<u64>(), 0_u32..=64), 0..100)) {
            let mut writer = BitWriter::default();
            fields.iter().for_each(|&(value, count)| writer.put(value, count));
            let bytes = writer.into_bytes();
            let mut reader = BitReader::new(&bytes);
            for &(value, count) in &fields {
                let mask = if count == 0 { 0 } else { u64::MAX >> (64 - count) };
                prop_assert_eq!(reader.bits(count).unwrap(), value & mask);
            }
            prop_assert!(reader.finish().is_ok());
        }
    }
}
