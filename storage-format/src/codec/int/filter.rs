//! Which words of a vector lie within bounds, found without decoding where its codec tells.

use super::{Sequence, decode_offsets, each_delta_run};
use crate::codec::{CodecId, read_codec};
use crate::cursor::{Cursor, Result};

/// Bounds of words, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) low: u64,
    pub(crate) high: u64,
}

impl Bounds {
    /// No word lies in them.
    pub(crate) const NONE: Self = Self { low: 1, high: 0 };

    /// The codes from `first` on and before `behind`.
    pub(crate) fn between(first: usize, behind: usize) -> Self {
        match behind.checked_sub(1) {
            Some(last) => Self { low: first as u64, high: last as u64 },
            None => Self::NONE,
        }
    }

    pub(crate) fn contains(self, word: u64) -> bool {
        self.low <= word && word <= self.high
    }

    /// Whether all words from `low` to `high` lie inside, or none does; `None` where they may differ.
    fn decide(self, low: u64, high: u64) -> Option<bool> {
        if self.low <= low && high <= self.high {
            return Some(true);
        }
        (high < self.low || self.high < low || self.low > self.high).then_some(false)
    }
}

/// Says which words of a vector lie within bounds, tag included: `put` gets runs of equal answers in order.
pub(crate) fn filter_tagged(
    cursor: &mut Cursor<'_>,
    bounds: Bounds,
    count: usize,
    scratch: &mut Vec<u64>,
    put: impl FnMut(bool, usize),
) -> Result<()> {
    let codec = read_codec(cursor)?;
    filter(codec, cursor, bounds, count, scratch, put)
}

/// The same behind the tag, or of a page's unit. Where all words are known to lie on one side they are not decoded.
pub(crate) fn filter(
    codec: CodecId,
    cursor: &mut Cursor<'_>,
    bounds: Bounds,
    count: usize,
    scratch: &mut Vec<u64>,
    mut put: impl FnMut(bool, usize),
) -> Result<()> {
    if let Some(inside) =
        extremes(codec, cursor.clone(), count)?.and_then(|(low, high)| bounds.decide(low, high))
    {
        cursor.rest();
        put(inside, count);
        return Ok(());
    }
    if codec == CodecId::DeltaRle {
        return each_delta_run(cursor, count, |first, delta, run| {
            let last = first.wrapping_add(delta.wrapping_mul(run as u64 - 1));
            match bounds.decide(first, last).filter(|_| delta == 0) {
                Some(inside) => put(inside, run),
                None => (0..run as u64)
                    .for_each(|i| put(bounds.contains(first.wrapping_add(delta.wrapping_mul(i))), 1)),
            }
        });
    }
    scratch.resize(count, 0);
    let base = decode_offsets(codec, cursor, scratch)?;
    for run in scratch
        .chunk_by(|a, b| bounds.contains(a.wrapping_add(base)) == bounds.contains(b.wrapping_add(base)))
    {
        put(run.first().is_some_and(|word| bounds.contains(word.wrapping_add(base))), run.len());
    }
    Ok(())
}

/// Whether all words of a vector, tag included, are known to lie within bounds without decoding them.
pub(crate) fn all_within(mut cursor: Cursor<'_>, bounds: Bounds, count: usize) -> Result<bool> {
    let codec = read_codec(&mut cursor)?;
    let extremes = extremes(codec, cursor, count)?;
    Ok(extremes.and_then(|(low, high)| bounds.decide(low, high)) == Some(true))
}

/// What the words cannot be below or above, where their codec tells.
fn extremes(codec: CodecId, mut cursor: Cursor<'_>, count: usize) -> Result<Option<(u64, u64)>> {
    Ok(match codec {
        CodecId::Constant => {
            let word = cursor.u64()?;
            Some((word, word))
        }
        CodecId::For => frame_extremes(&mut cursor)?,
        CodecId::Sequence => sequence_extremes(Sequence::read(&mut cursor)?, count),
        _ => None,
    })
}

/// What the words of a frame of reference cannot be below or above; `None` where the frame wraps.
fn frame_extremes(cursor: &mut Cursor<'_>) -> Result<Option<(u64, u64)>> {
    let base = cursor.u64()?;
    let width = u32::from(cursor.u8()?);
    cursor.u16()?;
    let bits = width + u32::from(cursor.u8()?);
    let most = u64::MAX.checked_shr(64 - bits.min(64)).unwrap_or_default();
    Ok(base.checked_add(most).map(|high| (base, high)))
}

/// The least and the greatest word of a sequence; `None` where it wraps.
fn sequence_extremes(sequence: Sequence, count: usize) -> Option<(u64, u64)> {
    let steps = i128::try_from(count).ok()? - 1;
    let last = i128::from(sequence.first) + i128::from(sequence.step.cast_signed()) * steps;
    let last = u64::try_from(last).ok()?;
    Some((sequence.first.min(last), sequence.first.max(last)))
}
