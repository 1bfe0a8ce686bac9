//! How a table's chunks fall into cells, and what a cell of one range is to be merged into.

use std::collections::BTreeMap;

use sonde_storage_format::{ChunkId, ChunkMeta, TimeRange, Timestamp};

use super::sizes::{SMALLEST, at_rest, due, fitting};
use super::{Choice, Outlook};
use crate::limits::{DENSE_AGE, JOIN_ROWS, QUIET_AGE};

/// Chunks that belong together, oldest first.
pub(super) struct Cell<'a> {
    /// What they cover; for a cell that is not mixed, the range of the chunks to make.
    pub(super) range: TimeRange,
    pub(super) chunks: Vec<&'a ChunkMeta>,
    mixed: bool,
}

/// The cells of a table, in time order.
pub(super) fn cells<'a>(chunks: &[&'a ChunkMeta], width: i64) -> Vec<Cell<'a>> {
    let mut at_home: Vec<(TimeRange, &ChunkMeta)> = homes(chunks, width);
    at_home.sort_by_key(|(home, meta)| (home.start, meta.seq.first));
    let mut cells: Vec<Vec<(TimeRange, &ChunkMeta)>> = Vec::new();
    let mut reach = Timestamp::MIN;
    for (home, meta) in at_home {
        match cells.last_mut() {
            Some(cell) if home.start < reach => cell.push((home, meta)),
            _ => cells.push(vec![(home, meta)]),
        }
        reach = reach.max(home.end);
    }
    cells.into_iter().filter_map(Cell::of).collect()
}

/// The range that each chunk belongs to: its own, or that of the partition of the present width, where the chunks of
/// that partition lie in it as a whole and are small together.
fn homes<'a>(chunks: &[&'a ChunkMeta], width: i64) -> Vec<(TimeRange, &'a ChunkMeta)> {
    let mut rows: BTreeMap<Timestamp, u64> = BTreeMap::new();
    let home = |meta: &ChunkMeta| TimeRange::aligned(meta.range.start, width);
    let inside = |meta: &ChunkMeta| meta.range.end <= home(meta).end;
    for meta in chunks.iter().filter(|meta| inside(meta)) {
        *rows.entry(home(meta).start).or_default() += meta.rows;
    }
    rows.retain(|_, rows| *rows <= JOIN_ROWS);
    for meta in chunks.iter().filter(|meta| !inside(meta)) {
        let first = TimeRange::aligned(meta.range.start, width).start;
        rows.retain(|start, _| *start < first || *start >= meta.range.end);
    }
    let of = |meta: &ChunkMeta| match rows.contains_key(&home(meta).start) && inside(meta) {
        true => home(meta),
        false => meta.range,
    };
    chunks.iter().map(|meta| (of(meta), *meta)).collect()
}

impl<'a> Cell<'a> {
    fn of(at_home: Vec<(TimeRange, &'a ChunkMeta)>) -> Option<Self> {
        let range = at_home.iter().map(|(home, _)| *home).reduce(|a, b| a.union(&b))?;
        let uniform = at_home.iter().all(|(home, _)| *home == range);
        let rows = |of_whole: bool| -> u64 {
            let chunks = at_home.iter().filter(|(home, _)| (*home == range) == of_whole);
            chunks.map(|(_, meta)| meta.rows).sum()
        };
        // A few rows of another width are taken in by the large partition that they lie in.
        let mixed = !uniform && rows(true) < 8 * rows(false);
        let mut chunks: Vec<&ChunkMeta> = at_home.into_iter().map(|(_, meta)| meta).collect();
        chunks.sort_by_key(|meta| (meta.seq.first, meta.range.start));
        Some(Self { range, chunks, mixed })
    }

    /// The next merge that is due, if one is.
    pub(super) fn next(&self, outlook: &Outlook<'_>) -> Option<Choice> {
        if self.mixed {
            let last = || self.is_quiet(outlook).then(|| self.settled(true)).flatten();
            return last().or_else(|| self.split(Some(outlook))).or_else(|| self.merge_alike());
        }
        let units = self.units();
        let sizes: Vec<u64> = units.iter().map(|unit| rows(unit).max(SMALLEST)).collect();
        if let Some(window) = due(&sizes) {
            return self.merge(units.get(window)?);
        }
        let last = match (at_rest(&sizes), units.as_slice()) {
            (Some(window), _) => self.merge(units.get(window)?),
            // The chunks of one flush, of narrower partitions.
            (None, [unit]) if unit.len() > 1 => self.merge(&units),
            _ => self.densified(outlook),
        };
        last.filter(|_| self.is_quiet(outlook))
    }

    /// The next merge on the way to one chunk, due or not.
    pub(super) fn everything(&self) -> Option<Choice> {
        if self.mixed {
            return self.settled(false).or_else(|| self.split(None));
        }
        let units = self.units();
        let sizes: Vec<u64> = units.iter().map(|unit| rows(unit)).collect();
        let runs =
            (0..sizes.len()).map(|start| start..start + fitting(sizes.get(start..).unwrap_or_default()));
        runs.filter_map(|run| self.merge(units.get(run)?)).max_by_key(|choice| choice.weight)
    }

    /// The chunks, oldest first; those of one flush, whose SeqNos are the same, go together.
    fn units(&self) -> Vec<&[&'a ChunkMeta]> {
        let mut last = None;
        let mut start = 0;
        let mut units = Vec::new();
        for (place, meta) in self.chunks.iter().enumerate() {
            if last.is_some_and(|last| meta.seq.first > last) {
                units.extend(self.chunks.get(start..place));
                start = place;
            }
            last = last.max(Some(meta.seq.last));
        }
        units.extend(self.chunks.get(start..).filter(|unit| !unit.is_empty()));
        units
    }

    fn merge(&self, units: &[&[&ChunkMeta]]) -> Option<Choice> {
        let chunks: Vec<ChunkId> = units.iter().flat_map(|unit| unit.iter()).map(|meta| meta.id).collect();
        (chunks.len() > 1).then(|| Choice { weight: chunks.len(), chunks, ranges: vec![self.range] })
    }

    /// Whether nothing comes any more, as far as one can tell.
    pub(super) fn is_quiet(&self, outlook: &Outlook<'_>) -> bool {
        self.range.end <= outlook.now
            && self
                .chunks
                .iter()
                .all(|meta| is_past((outlook.since)(meta.id), QUIET_AGE.as_nanos(), outlook.now))
            && !outlook.in_memory.iter().any(|range| range.overlaps(&self.range))
    }

    /// The rewrite of a chunk that is alone and as its flush left it, in a table that should be dense.
    fn densified(&self, outlook: &Outlook<'_>) -> Option<Choice> {
        let is_old = is_past(self.range.end, DENSE_AGE.as_nanos(), outlook.now);
        let thin = outlook.thin.filter(|_| is_old)?;
        let chunk = self.chunks.iter().find(|meta| thin(meta.id))?;
        Some(Choice { chunks: vec![chunk.id], ranges: vec![chunk.range], weight: 0 })
    }
}

/// How many rows these have.
pub(super) fn rows(unit: &[&ChunkMeta]) -> u64 {
    unit.iter().map(|meta| meta.rows).sum()
}

/// Whether so many nanoseconds have passed.
pub(super) fn is_past(since: Timestamp, age: u128, now: Timestamp) -> bool {
    let passed = now.as_nanos().saturating_sub(since.as_nanos());
    u128::try_from(passed).is_ok_and(|passed| passed >= age)
}
