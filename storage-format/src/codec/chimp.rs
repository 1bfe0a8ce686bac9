//! Chimp128: XOR with the best of the last 128 floats (Liakos, Papakonstantinopoulou, Kotidis, VLDB 2022, section 4).

use super::bitpack::{BitReader, BitWriter};
use crate::cursor::{Cursor, Result};

/// Floats that a new one is compared with.
const SLOTS: usize = 128;
const SLOT_BITS: u32 = 7;
/// A slot's float is worth its number where more than this many bits at the end are the same (the paper's threshold).
const LEAST_TRAILING: u32 = 6 + SLOT_BITS;
/// Low bits by which a like float is looked up.
const KEY_BITS: u32 = LEAST_TRAILING + 1;
/// The leading zeroes that a class of three bits stands for.
const CLASSES: [u32; 8] = [0, 8, 12, 16, 18, 20, 22, 24];
/// What follows a float: equal to a slot's, close to a slot's, close to the one before in the same or in another class.
const EQUAL: u64 = 0b00;
const NEAR_SLOT: u64 = 0b01;
const SAME_CLASS: u64 = 0b10;
const NEW_CLASS: u64 = 0b11;

/// The class of the most leading zeroes that are there.
fn class_of(zeros: u32) -> usize {
    CLASSES.iter().rposition(|class| *class <= zeros).unwrap_or_default()
}

fn zeros_of(class: usize) -> u32 {
    CLASSES.get(class).copied().unwrap_or_default()
}

/// Appends the floats; `false`, with nothing appended, once they take `limit` bytes.
pub(crate) fn encode(values: &[f64], limit: usize, out: &mut Vec<u8>) -> bool {
    let mut bits = BitWriter::default();
    let mut last_seen = vec![u16::MAX; 1 << KEY_BITS];
    let mut class = None;
    let word = |at: usize| values.get(at).map_or(0, |value| value.to_bits());
    for at in 0..values.len() {
        let value = word(at);
        let key = (value & ((1 << KEY_BITS) - 1)) as usize;
        let seen = last_seen.get_mut(key).map_or(u16::MAX, |seen| std::mem::replace(seen, at as u16));
        if at == 0 {
            bits.put(value, 64);
            continue;
        }
        if bits.len() >= limit {
            return false;
        }
        let like = Some(usize::from(seen)).filter(|like| *like < at && at - like <= SLOTS);
        let slot = |like: usize| (like % SLOTS) as u64;
        match like.map(|like| (like, value ^ word(like))) {
            Some((like, 0)) => {
                bits.put(EQUAL << SLOT_BITS | slot(like), 2 + SLOT_BITS);
                class = None;
                continue;
            }
            Some((like, xor)) if xor.trailing_zeros() > LEAST_TRAILING => {
                let near = class_of(xor.leading_zeros());
                let len = 64 - zeros_of(near) - xor.trailing_zeros();
                bits.put(NEAR_SLOT << SLOT_BITS | slot(like), 2 + SLOT_BITS);
                bits.put((near as u64) << 6 | u64::from(len), 9);
                bits.put(xor >> xor.trailing_zeros(), len);
                class = None;
                continue;
            }
            _ => {}
        }
        let xor = value ^ word(at - 1);
        let new = class_of(xor.leading_zeros());
        if class == Some(new) {
            bits.put(SAME_CLASS, 2);
        } else {
            bits.put(NEW_CLASS << 3 | new as u64, 5);
            class = Some(new);
        }
        bits.put(xor, 64 - zeros_of(new));
    }
    if bits.len() >= limit {
        return false;
    }
    out.extend_from_slice(&bits.into_bytes());
    true
}

/// Reads floats that fill the rest of the cursor, as many as `out` has.
pub(crate) fn decode(cursor: &mut Cursor<'_>, out: &mut [f64]) -> Result<()> {
    let mut bits = BitReader::new(cursor.rest());
    let mut slots = [0_u64; SLOTS];
    let (mut class, mut before) = (None, 0);
    for (at, out) in out.iter_mut().enumerate() {
        let value = if at == 0 {
            bits.bits(64)?
        } else {
            let kind = bits.bits(2)?;
            if kind == EQUAL || kind == NEAR_SLOT {
                let slot = bits.bits(SLOT_BITS)? as usize;
                if slot >= at {
                    return Err(cursor.invalid("a slot that holds a value", slot as u64));
                }
                class = None;
                slots.get(slot).copied().unwrap_or_default()
                    ^ if kind == EQUAL { 0 } else { read_window(cursor, &mut bits)? }
            } else {
                if kind == NEW_CLASS {
                    class = Some(bits.bits(3)? as usize);
                }
                let Some(class) = class else {
                    return Err(cursor.invalid("a class before its reuse", at as u64));
                };
                before ^ bits.bits(64 - zeros_of(class))?
            }
        };
        if let Some(slot) = slots.get_mut(at % SLOTS) {
            *slot = value;
        }
        before = value;
        *out = f64::from_bits(value);
    }
    bits.finish()
}

/// The XOR with a slot's value: its class, its length and its bits.
fn read_window(cursor: &Cursor<'_>, bits: &mut BitReader<'_>) -> Result<u64> {
    let zeros = zeros_of(bits.bits(3)? as usize);
    let len = bits.bits(6)? as u32;
    match 64_u32.checked_sub(zeros + len) {
        Some(trailing) if len > 0 => Ok(bits.bits(len)? << trailing),
        _ => Err(cursor.invalid("an XOR of 1 to 64 bits", (zeros + len).into())),
    }
}
