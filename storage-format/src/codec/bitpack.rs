//! Fixed-width bit packing in two layouts, and a bit stream for the variable-width codecs.
//!
//! Plain: value `i` of width `w` stands in bits `i * w .. (i + 1) * w` of the byte string, bit 0 of a byte first (as
//! Parquet's bit packing). Interleaved, for exactly 1,024 values: value `i` belongs to lane `i % 16`, and the values of a
//! lane are packed plainly into `w` 64-bit words, of which word `k` of lane `l` stands at `8 * (16 k + l)`. Sixteen
//! neighbouring values take the same shifts, which compilers turn into vector instructions (the idea of FastLanes,
//! Afroozeh and Boncz, VLDB 2023).

use super::interleaved::{Interleaved, LANES};
use crate::cursor::{Cursor, Result};
use crate::limits::VECTOR_VALUES;

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

/// Values of each lane.
const ROWS: usize = VECTOR_VALUES / LANES;
const _: () = assert!(ROWS == 64 && LANES * ROWS == VECTOR_VALUES);

/// Appends the values of a vector, each below `2^width`: interleaved where there are 1,024, else plain.
pub(crate) fn pack_vector(values: &[u64], width: u32, out: &mut Vec<u8>) {
    if values.len() != VECTOR_VALUES {
        return pack(values.iter().copied(), width, out);
    }
    let width = width as usize;
    let mut words = [[0_u64; LANES]; 64];
    for (row, lanes) in values.chunks_exact(LANES).enumerate() {
        let (word, shift) = (row * width / 64, row * width % 64);
        for (lane, value) in lanes.iter().enumerate() {
            if let Some(slot) = words.get_mut(word).and_then(|word| word.get_mut(lane)) {
                *slot |= value << shift;
            }
            if shift + width > 64
                && let Some(slot) = words.get_mut(word + 1).and_then(|word| word.get_mut(lane))
            {
                *slot |= value >> (64 - shift);
            }
        }
    }
    words.iter().take(width).flatten().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
}

/// Reads the values of a vector, as many as `out` has.
pub(crate) fn unpack_vector(cursor: &mut Cursor<'_>, width: u32, out: &mut [u64]) -> Result<()> {
    let count = out.len();
    if let Ok(out) = <&mut [u64; VECTOR_VALUES]>::try_from(&mut *out) {
        Interleaved::read(cursor, width)?.unpack(out);
        return Ok(());
    }
    let mut slots = out.iter_mut();
    unpack(cursor, count, width, |value| {
        if let Some(slot) = slots.next() {
            *slot = value;
        }
    })
}

/// Writes single bits and short fields, most significant bit first.
#[derive(Debug, Default)]
pub(crate) struct BitWriter {
    bytes: Vec<u8>,
    /// The bits that do not fill eight bytes yet, at the low end.
    pending: u64,
    count: u32,
}

impl BitWriter {
    /// Appends the low `count` bits of `value`, at most 64.
    pub(crate) fn put(&mut self, value: u64, count: u32) {
        if count == 0 {
            return;
        }
        let value = value & (u64::MAX >> (64 - count));
        let room = 64 - self.count;
        if count < room {
            self.pending = self.pending << count | value;
            self.count += count;
            return;
        }
        let over = count - room;
        let full = u128::from(self.pending) << room | u128::from(value >> over);
        self.bytes.extend_from_slice(&(full as u64).to_be_bytes());
        (self.pending, self.count) = (value & ((1_u128 << over) - 1) as u64, over);
    }

    /// Bytes so far, the last one not full.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() + self.count.div_ceil(8) as usize
    }

    /// The bytes; zero bits fill the last one.
    pub(crate) fn into_bytes(mut self) -> Vec<u8> {
        let last = (u128::from(self.pending) << (64 - self.count)) as u64;
        let bytes = last.to_be_bytes();
        self.bytes.extend_from_slice(bytes.get(..self.count.div_ceil(8) as usize).unwrap_or_default());
        self.bytes
    }
}

/// Reads what [`BitWriter`] wrote.
#[derive(Debug)]
pub(crate) struct BitReader<'a> {
    cursor: Cursor<'a>,
    /// Bits read from the bytes and not given out yet, at the low end.
    pending: u64,
    left: u32,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { cursor: Cursor::new("bit stream", bytes), pending: 0, left: 0 }
    }

    pub(crate) fn bit(&mut self) -> Result<bool> {
        Ok(self.bits(1)? == 1)
    }

    /// The next `count` bits, at most 64.
    pub(crate) fn bits(&mut self, count: u32) -> Result<u64> {
        if count <= self.left {
            self.left -= count;
            return Ok(self.pending >> self.left & mask(count));
        }
        let high = self.pending & mask(self.left);
        let low = count - self.left;
        self.fill()?;
        let Some(left) = self.left.checked_sub(low) else {
            // Fewer than eight bytes were left, and these too are too few.
            return Err(self.cursor.invalid("more bits", low.into()));
        };
        self.left = left;
        Ok(u128::from(high).unbounded_shl(low) as u64 | self.pending.unbounded_shr(left) & mask(low))
    }

    /// Takes the next eight bytes, or those that are left.
    fn fill(&mut self) -> Result<()> {
        let bytes = self.cursor.take(self.cursor.left().clamp(1, 8))?;
        self.pending = bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        self.left = 8 * bytes.len() as u32;
        Ok(())
    }

    /// Fails unless only the padding of the last byte is left, and that is zero.
    pub(crate) fn finish(&mut self) -> Result<()> {
        let padding = self.pending & mask(self.left);
        if padding != 0 || self.left > 7 {
            return Err(self.cursor.invalid("less than a byte of zero padding", padding));
        }
        self.cursor.finish()
    }
}

fn mask(bits: u32) -> u64 {
    u64::MAX.unbounded_shr(64 - bits)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
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
        fn vectors_come_back(width in 0_u32..=64, seed in any::<u64>(), full in any::<bool>()) {
            let mask = if width == 0 { 0 } else { u64::MAX >> (64 - width) };
            let len = if full { VECTOR_VALUES } else { (seed % 1024) as usize };
            let mut state = seed | 1;
            let values: Vec<u64> = (0..len).map(|_| { state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).rotate_left(17) ^ 1; state & mask }).collect();
            let mut bytes = Vec::new();
            pack_vector(&values, width, &mut bytes);
            prop_assert_eq!(bytes.len(), packed_len(len, width));
            let mut back = vec![u64::MAX; len];
            unpack_vector(&mut Cursor::new("test", &bytes), width, &mut back).unwrap();
            prop_assert_eq!(&back, &values);
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
