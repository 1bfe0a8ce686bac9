//! ALP-RD, for real doubles (Afroozeh, Kuffo, Boncz, SIGMOD 2024, section 3.4): the left bits of neighbouring doubles are
//! few and have a dictionary, the right bits are noise and are packed as they are.
#![expect(clippy::indexing_slicing, reason = "a code has three bits and the dictionary eight entries")]

use super::{bitpack, simd};
use crate::cursor::{Cursor, Result};
use crate::limits::VECTOR_VALUES;

/// Left parts in a dictionary.
const ENTRIES: usize = 8;
/// Bits that a left part has at most.
const MAX_LEFT: u32 = 16;
/// Bits of an exception: position and left part.
const EXCEPTION_BITS: usize = 32;
/// Values looked at when the cut is chosen.
const SAMPLES: usize = 256;

/// Bits of codes for so many entries.
fn code_width(entries: usize) -> u32 {
    bitpack::width(entries.saturating_sub(1) as u64)
}

/// The most frequent left parts, at most eight, and how many values have none of them.
fn dictionary(values: impl Iterator<Item = f64>, right: u32) -> (Vec<u16>, usize) {
    let mut lefts: Vec<u16> = values.map(|value| (value.to_bits() >> right) as u16).collect();
    let all = lefts.len();
    lefts.sort_unstable();
    let mut counted: Vec<(usize, u16)> =
        lefts.chunk_by(|a, b| a == b).map(|run| (run.len(), run[0])).collect();
    counted.sort_unstable_by_key(|(count, left)| (std::cmp::Reverse(*count), *left));
    counted.truncate(ENTRIES);
    let known: usize = counted.iter().map(|(count, _)| count).sum();
    (counted.into_iter().map(|(_, left)| left).collect(), all - known)
}

fn bits(values: usize, right: u32, entries: usize, exceptions: usize) -> usize {
    values * (right + code_width(entries)) as usize + exceptions * EXCEPTION_BITS
}

/// How many bits of a page's values are noise: the cut that takes least; `None` where that is no less than the values.
pub(crate) fn right_bits(values: &[f64]) -> Option<u32> {
    let sample = || values.iter().copied().step_by(values.len().div_ceil(SAMPLES).max(1));
    let cost = |right: u32| {
        let (entries, exceptions) = dictionary(sample(), right);
        (bits(sample().count(), right, entries.len(), exceptions), right)
    };
    let (least, right) = (64 - MAX_LEFT..64).map(cost).min()?;
    (least < 64 * sample().count()).then_some(right)
}

/// Appends the vector, without its tag, cut where the page has it.
pub(crate) fn encode(values: &[f64], right: u32, out: &mut Vec<u8>) {
    let (entries, exceptions) = dictionary(values.iter().copied(), right);
    let left = |value: &f64| (value.to_bits() >> right) as u16;
    // An exception has a code beyond the dictionary until it is packed.
    let code = |value: &f64| entries.iter().position(|entry| *entry == left(value)).unwrap_or(ENTRIES) as u64;
    let mut codes: Vec<u64> = values.iter().map(code).collect();
    let unknown: Vec<usize> = (0..values.len()).filter(|at| codes[*at] == ENTRIES as u64).collect();
    debug_assert_eq!(unknown.len(), exceptions);
    unknown.iter().for_each(|at| codes[*at] = 0);
    out.extend_from_slice(&[right as u8, entries.len() as u8]);
    entries.iter().for_each(|entry| out.extend_from_slice(&entry.to_le_bytes()));
    out.extend_from_slice(&(unknown.len() as u16).to_le_bytes());
    bitpack::pack_vector(&codes, code_width(entries.len()), out);
    let rights: Vec<u64> = values.iter().map(|value| value.to_bits() & ((1 << right) - 1)).collect();
    bitpack::pack_vector(&rights, right, out);
    unknown.iter().for_each(|at| out.extend_from_slice(&(*at as u16).to_le_bytes()));
    unknown.iter().for_each(|at| out.extend_from_slice(&left(&values[*at]).to_le_bytes()));
}

/// Reads a vector behind its tag, as many values as `out` has, at most 1,024. `rights` is memory for the right parts.
pub(crate) fn decode(cursor: &mut Cursor<'_>, rights: &mut Vec<u64>, out: &mut [f64]) -> Result<()> {
    let right = u32::from(cursor.u8()?);
    let count = usize::from(cursor.u8()?);
    if !(64 - MAX_LEFT..64).contains(&right) || !(1..=ENTRIES).contains(&count) || out.len() > VECTOR_VALUES {
        return Err(
            cursor.invalid("48 to 63 right bits and 1 to 8 left parts", u64::from(right) << 8 | count as u64)
        );
    }
    let mut entries = [0_u64; ENTRIES];
    for slot in entries.iter_mut().take(count) {
        *slot = u64::from(cursor.u16()?) << right;
    }
    let exceptions = usize::from(cursor.u16()?);
    let mut codes = [0_u64; VECTOR_VALUES];
    let codes = &mut codes[..out.len()];
    bitpack::unpack_vector(cursor, code_width(count), codes)?;
    if let Some(unknown) = codes.iter().find(|code| **code >= count as u64) {
        return Err(cursor.invalid("a code of a left part", *unknown));
    }
    rights.resize(out.len(), 0);
    bitpack::unpack_vector(cursor, right, rights)?;
    simd::dispatch(Join { entries: &entries, codes, rights, out });
    let mut positions = Cursor::new("ALP-RD exceptions", cursor.take(2 * exceptions)?);
    let mut lefts = Cursor::new("ALP-RD exceptions", cursor.take(2 * exceptions)?);
    for _ in 0..exceptions {
        let (at, left) = (usize::from(positions.u16()?), u64::from(lefts.u16()?));
        let Some((slot, right_part)) = out.get_mut(at).zip(rights.get(at)) else {
            return Err(cursor.invalid("an exception inside the vector", at as u64));
        };
        *slot = f64::from_bits(left << right | right_part);
    }
    Ok(())
}

struct Join<'a> {
    entries: &'a [u64; ENTRIES],
    codes: &'a [u64],
    rights: &'a [u64],
    out: &'a mut [f64],
}

impl simd::Kernel for Join<'_> {
    #[inline(always)]
    fn run(self) {
        for ((slot, code), right) in self.out.iter_mut().zip(self.codes).zip(self.rights) {
            *slot = f64::from_bits(self.entries[*code as usize % ENTRIES] | right);
        }
    }
}
