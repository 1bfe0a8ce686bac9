//! Cells where wide chunks lie over narrow ones: when wide chunks are split, and what is merged until then.

use std::collections::BTreeSet;

use sonde_storage_format::{ChunkId, ChunkMeta, TimeRange, Timestamp};

use super::cell::{Cell, is_past, rows};
use super::sizes::{SMALLEST, due, share};
use super::{Choice, Outlook};
use crate::limits::{
    CHUNK_ROWS, COMPACT_CHUNKS as FAN, QUIET_AGE, SPLIT_RANGES, SPLIT_ROWS, WIDE_AGE, WIDE_CHUNKS,
};

impl<'a> Cell<'a> {
    /// All of a mixed cell at once, wide chunks split and narrow ones merged with what falls to them; where it has to be
    /// `worth_it`, only if the wide ones are worth rewriting the narrow ones for.
    pub(super) fn settled(&self, worth_it: bool) -> Option<Choice> {
        let borders = self.borders();
        let wide = self.wide(&borders);
        let (newer, all) = (rows(&wide), rows(&self.chunks));
        if worth_it && newer.saturating_mul(share(all)) < all - newer {
            return None;
        }
        let ranges = parts(&self.range, &self.chunks, &borders);
        let narrow = |range: &TimeRange| -> u64 {
            let of_range = self.chunks.iter().filter(|meta| meta.range == *range);
            of_range.map(|meta| meta.rows).sum()
        };
        let fits =
            ranges.len() <= SPLIT_RANGES && ranges.iter().all(|range| newer + narrow(range) <= CHUNK_ROWS);
        let chunks: Vec<ChunkId> = self.chunks.iter().map(|meta| meta.id).collect();
        fits.then_some(Choice { weight: chunks.len(), chunks, ranges })
    }

    /// The split of a run of wide chunks of one range among the ranges below it, where it is due or no matter.
    pub(super) fn split(&self, due: Option<&Outlook<'_>>) -> Option<Choice> {
        let borders = self.borders();
        let wide = self.wide(&borders);
        let splits = wide.iter().map(|first| {
            let run = self.run_from(first);
            let ranges = parts(&first.range, &run, &borders);
            (run, ranges)
        });
        let is_due = |run: &[&ChunkMeta], ranges: usize| {
            due.is_none_or(|outlook| self.is_split_due(run, ranges, wide.len(), outlook))
        };
        let (run, mut ranges) =
            splits.filter(|(run, ranges)| is_due(run, ranges.len())).max_by_key(|(run, _)| run.len())?;
        if ranges.len() > SPLIT_RANGES {
            // The rest stays wide, and is split next.
            let end = run.first()?.range.end;
            let rest = ranges.get(SPLIT_RANGES - 1).map(|first| TimeRange { start: first.start, end });
            ranges.truncate(SPLIT_RANGES - 1);
            ranges.extend(rest);
        }
        let chunks: Vec<ChunkId> = run.iter().map(|meta| meta.id).collect();
        Some(Choice { weight: chunks.len() + FAN, chunks, ranges })
    }

    /// A split is due when it makes chunks that are worth a file and many wide ones lie there, or one has for long; and
    /// when nothing has come for longer, or there are too many to wait.
    fn is_split_due(&self, run: &[&ChunkMeta], ranges: usize, wide: usize, outlook: &Outlook<'_>) -> bool {
        let is_old = |meta: &&&ChunkMeta, age: u128| is_past((outlook.since)(meta.id), age, outlook.now);
        let is_worth_it = rows(run) >= SPLIT_ROWS * ranges as u64;
        let waited = wide >= WIDE_CHUNKS || run.iter().any(|meta| is_old(&meta, QUIET_AGE.as_nanos()));
        (is_worth_it && waited)
            || wide >= 2 * WIDE_CHUNKS
            || self.chunks.iter().all(|meta| is_old(&meta, WIDE_AGE.as_nanos()))
    }

    /// In a mixed cell, the merge of chunks of one range that nothing stands between: of narrow ones, and of wide ones
    /// with too few rows for a split.
    pub(super) fn merge_alike(&self) -> Option<Choice> {
        let borders = self.borders();
        let wide: BTreeSet<ChunkId> = self.wide(&borders).iter().map(|meta| meta.id).collect();
        let choice = |first: &&'a ChunkMeta| {
            let run = self.run_from(first);
            if wide.contains(&first.id)
                && rows(&run) >= SPLIT_ROWS * parts(&first.range, &run, &borders).len() as u64
            {
                return None;
            }
            let sizes: Vec<u64> = run.iter().map(|meta| meta.rows.max(SMALLEST)).collect();
            let chunks: Vec<ChunkId> = run.get(due(&sizes)?)?.iter().map(|meta| meta.id).collect();
            Some(Choice { weight: chunks.len(), chunks, ranges: vec![first.range] })
        };
        self.chunks.iter().filter_map(choice).max_by_key(|choice| choice.weight)
    }

    /// Where the ranges of the chunks begin and end.
    fn borders(&self) -> BTreeSet<Timestamp> {
        self.chunks.iter().flat_map(|meta| [meta.range.start, meta.range.end]).collect()
    }

    /// The chunks that have a border inside them.
    fn wide(&self, borders: &BTreeSet<Timestamp>) -> Vec<&'a ChunkMeta> {
        let is_wide = |meta: &&&ChunkMeta| inner_borders(borders, &meta.range).next().is_some();
        self.chunks.iter().filter(is_wide).copied().collect()
    }

    /// The chunks of the same range from `first` on that fit into one and that no other chunk of the cell stands
    /// between.
    fn run_from(&self, first: &'a ChunkMeta) -> Vec<&'a ChunkMeta> {
        let mut run = vec![first];
        let mut hull = first.seq;
        let mut rows = first.rows;
        let alike = |meta: &&&ChunkMeta| meta.range == first.range && meta.seq.first > first.seq.last;
        for next in self.chunks.iter().filter(alike) {
            let joined = hull.union(next.seq);
            rows += next.rows;
            let between = |meta: &&ChunkMeta| {
                meta.range != first.range && meta.range.overlaps(&first.range) && meta.seq.overlaps(joined)
            };
            if rows > CHUNK_ROWS || self.chunks.iter().any(between) {
                break;
            }
            hull = joined;
            run.push(next);
        }
        run
    }
}

/// A range, cut at the borders inside it: the parts that these chunks may have rows of.
fn parts(range: &TimeRange, chunks: &[&ChunkMeta], borders: &BTreeSet<Timestamp>) -> Vec<TimeRange> {
    let has_rows =
        |part: &TimeRange| chunks.iter().any(|meta| meta.times.0 < part.end && part.start <= meta.times.1);
    let starts: Vec<Timestamp> = std::iter::once(range.start).chain(inner_borders(borders, range)).collect();
    let ends = starts.iter().skip(1).copied().chain([range.end]);
    let parts = starts.iter().zip(ends).map(|(start, end)| TimeRange { start: *start, end });
    parts.filter(has_rows).collect()
}

/// The borders inside a range, which begins and ends at one.
fn inner_borders<'a>(
    borders: &'a BTreeSet<Timestamp>,
    range: &TimeRange,
) -> impl Iterator<Item = Timestamp> + use<'a> {
    let start = range.start;
    borders.range(range.start..range.end).copied().filter(move |border| *border > start)
}
