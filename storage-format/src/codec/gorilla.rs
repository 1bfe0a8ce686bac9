//! Gorilla: XOR of neighbouring floats and delta-of-delta of timestamps (Pelkonen et al., VLDB 2015, section 4.1).
//!
//! The float stream is the paper's. The timestamp buckets are widened to nanoseconds: a zero takes one bit, and the
//! prefixes `10`, `110`, `1110`, `1111` are followed by 14, 24, 36 and 64 bits of zigzag delta-of-delta.

use super::bitpack::{BitReader, BitWriter};
use super::int::to_word;
use crate::cursor::{Cursor, Result, unzigzag, zigzag};

/// Appends the floats as one XOR stream; `false`, with nothing appended, once they take `limit` bytes.
pub(crate) fn encode_floats(values: &[f64], limit: usize, out: &mut Vec<u8>) -> bool {
    let mut bits = BitWriter::default();
    let mut previous = 0_u64;
    let (mut leading, mut meaningful) = (0_u32, 0_u32);
    for (i, value) in values.iter().enumerate() {
        let word = value.to_bits();
        if i == 0 {
            bits.put(word, 64);
            previous = word;
            continue;
        }
        if bits.len() >= limit {
            return false;
        }
        let xor = word ^ previous;
        previous = word;
        if xor == 0 {
            bits.put(0, 1);
            continue;
        }
        let zeros = xor.leading_zeros().min(31);
        let trailing = xor.trailing_zeros();
        let fits = meaningful > 0 && zeros >= leading && trailing >= 64 - leading - meaningful;
        if fits {
            bits.put(0b10, 2);
        } else {
            leading = zeros;
            meaningful = 64 - zeros - trailing;
            bits.put(0b11, 2);
            bits.put(leading.into(), 5);
            bits.put(u64::from(meaningful - 1), 6);
        }
        bits.put(xor >> (64 - leading - meaningful), meaningful);
    }
    if bits.len() >= limit {
        return false;
    }
    out.extend_from_slice(&bits.into_bytes());
    true
}

/// Reads floats that fill the rest of the cursor, as many as `out` has.
pub(crate) fn decode_floats(cursor: &mut Cursor<'_>, out: &mut [f64]) -> Result<()> {
    let mut bits = BitReader::new(cursor.rest());
    let mut previous = 0_u64;
    let (mut leading, mut meaningful) = (0_u32, 0_u32);
    for (i, slot) in out.iter_mut().enumerate() {
        if i == 0 {
            previous = bits.bits(64)?;
        } else if bits.bit()? {
            if bits.bit()? {
                leading = bits.bits(5)? as u32;
                meaningful = bits.bits(6)? as u32 + 1;
                if leading + meaningful > 64 {
                    return Err(
                        cursor.invalid("an XOR window of at most 64 bits", (leading + meaningful).into())
                    );
                }
            }
            if meaningful == 0 {
                return Err(cursor.invalid("an XOR window before its reuse", 0));
            }
            previous ^= bits.bits(meaningful)? << (64 - leading - meaningful);
        }
        *slot = f64::from_bits(previous);
    }
    bits.finish()
}

/// Bits that follow each timestamp prefix.
const BUCKETS: [u32; 4] = [14, 24, 36, 64];

/// Appends the timestamps as one delta-of-delta stream; `false`, with nothing appended, once they take `limit` bytes.
pub(crate) fn encode_times(values: &[i64], limit: usize, out: &mut Vec<u8>) -> bool {
    let mut bits = BitWriter::default();
    let (mut previous, mut delta) = (0_i64, 0_i64);
    for (i, &value) in values.iter().enumerate() {
        if bits.len() >= limit {
            return false;
        }
        let step = value.wrapping_sub(previous);
        previous = value;
        if i == 0 {
            bits.put(value.cast_unsigned(), 64);
            continue;
        }
        let dod = zigzag(step.wrapping_sub(delta));
        delta = step;
        if dod == 0 {
            bits.put(0, 1);
            continue;
        }
        let bucket = BUCKETS.iter().position(|&width| width == 64 || dod >> width == 0).unwrap_or(3);
        let (prefix, len) =
            [(0b10, 2), (0b110, 3), (0b1110, 4), (0b1111, 4)].get(bucket).copied().unwrap_or((0b1111, 4));
        bits.put(prefix, len);
        bits.put(dod, BUCKETS.get(bucket).copied().unwrap_or(64));
    }
    if bits.len() >= limit {
        return false;
    }
    out.extend_from_slice(&bits.into_bytes());
    true
}

/// Reads timestamps that fill the rest of the cursor, as the words of integers, as many as `out` has.
pub(crate) fn decode_times(cursor: &mut Cursor<'_>, out: &mut [u64]) -> Result<()> {
    let mut bits = BitReader::new(cursor.rest());
    let (mut previous, mut delta) = (0_i64, 0_i64);
    for (i, slot) in out.iter_mut().enumerate() {
        if i == 0 {
            previous = bits.bits(64)?.cast_signed();
            *slot = to_word(previous);
            continue;
        }
        if bits.bit()? {
            let mut bucket = 0;
            while bucket < 3 && bits.bit()? {
                bucket += 1;
            }
            let dod = bits.bits(BUCKETS.get(bucket).copied().unwrap_or(64))?;
            delta = delta.wrapping_add(unzigzag(dod));
        }
        previous = previous.wrapping_add(delta);
        *slot = to_word(previous);
    }
    bits.finish()
}
