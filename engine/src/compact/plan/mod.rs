//! Decides which chunks of a table to merge into which ranges: a pure function of what the chunks say.
//!
//! A table's chunks fall into **cells**: chunks whose ranges overlap belong together, and so do the chunks of one
//! partition of the table's present width while they are small together. Most cells are one partition. A cell where
//! wide chunks (late rows of many partitions, or partitions of an older width) lie over narrow ones is *mixed*: its wide
//! chunks are split along the borders of the narrow ones.
//!
//! # Invariants
//! - **Of two chunks of a table whose ranges overlap, one is newer than the other as a whole: their SeqNo ranges are
//!   disjoint.** A flush keeps it, because it is newer than every chunk, and the ranges of its own chunks are disjoint. A
//!   merge keeps it, because no chunk outside of it whose range overlaps what it writes has a SeqNo between its first
//!   and its last.
//! - What a merge costs, in rows written for a row that came, is bounded: see `sizes`.

mod cell;
mod mixed;
mod sizes;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests;

use sonde_storage_format::{ChunkId, ChunkMeta, TimeRange, Timestamp};

use cell::cells;

/// What a plan depends on besides the chunks.
#[derive(Clone, Copy)]
pub(crate) struct Outlook<'a> {
    pub(crate) now: Timestamp,
    /// The present width of the table's partitions.
    pub(crate) width: i64,
    /// Since when each chunk is known to be there.
    pub(crate) since: &'a dyn Fn(ChunkId) -> Timestamp,
    /// Ranges with rows in memory: what they overlap is not quiet.
    pub(crate) in_memory: &'a [TimeRange],
    /// Chunks that should be dense, as their table is, and are not; `None` where the table is not.
    pub(crate) thin: Option<&'a dyn Fn(ChunkId) -> bool>,
}

/// Chunks to merge, and the ranges of the chunks to make of them, in time order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) chunks: Vec<ChunkId>,
    pub(crate) ranges: Vec<TimeRange>,
    /// What to do first, where there is a choice: how many files it takes away, wide ones more than others.
    pub(crate) weight: usize,
}

/// The merge most worth doing of a table's chunks that passes `may`; chunks come in any order.
pub(crate) fn choose(
    chunks: &[&ChunkMeta],
    outlook: &Outlook<'_>,
    may: impl Fn(&Choice) -> bool,
) -> Option<Choice> {
    let choices = cells(chunks, outlook.width).into_iter().filter_map(|cell| cell.next(outlook));
    choices.filter(may).max_by_key(|choice| choice.weight)
}

/// The next merge on the way to one chunk for each cell, whatever it costs.
pub(crate) fn choose_all(chunks: &[&ChunkMeta], width: i64, may: impl Fn(&Choice) -> bool) -> Option<Choice> {
    cells(chunks, width).into_iter().find_map(|cell| cell.everything().filter(|choice| may(choice)))
}
