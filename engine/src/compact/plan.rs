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
//! - A merge by size at least makes `FAN`ths of a chunk into a chunk: none of its inputs is more than a `FAN`th of what
//!   they come to. So a row is rewritten at most log(`CHUNK_ROWS` / `SMALLEST`) / log(`FAN`) = 6 times on its way, and once
//!   or twice when its partition has gone quiet, or its chunk was wide.
//! - An old large chunk is rewritten for newer ones only when they are half of it, or an eighth where all is small: at
//!   most nine, and for large ones three, rows are written for a late one.
//! - A cell that has `CELL_CHUNKS` chunks is merged, unless no two neighbours fit into one chunk of `CHUNK_ROWS`.

use std::collections::{BTreeMap, BTreeSet};

use sonde_storage_format::{ChunkId, ChunkMeta, SeqRange, TimeRange, Timestamp};

use crate::limits::{
    CELL_CHUNKS, CHUNK_ROWS, COMPACT_CHUNKS as FAN, DENSE_AGE, JOIN_ROWS, QUIET_AGE, SPLIT_RANGES,
    SPLIT_ROWS, WIDE_AGE, WIDE_CHUNKS,
};

/// What a smaller chunk counts for: each takes a file.
const SMALLEST: u64 = 1024;

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

/// Chunks that belong together, oldest first.
struct Cell<'a> {
    /// What they cover; for a cell that is not mixed, the range of the chunks to make.
    range: TimeRange,
    chunks: Vec<&'a ChunkMeta>,
    mixed: bool,
}

/// The cells of a table, in time order.
fn cells<'a>(chunks: &[&'a ChunkMeta], width: i64) -> Vec<Cell<'a>> {
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
        let range = at_home
            .iter()
            .map(|(home, _)| *home)
            .reduce(|a, b| TimeRange { start: a.start.min(b.start), end: a.end.max(b.end) })?;
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

    fn next(&self, outlook: &Outlook<'_>) -> Option<Choice> {
        if self.mixed {
            let last = || self.is_quiet(outlook).then(|| self.settled(true)).flatten();
            return last().or_else(|| self.split(Some(outlook))).or_else(|| self.merge_alike());
        }
        let units = self.units();
        let sizes: Vec<u64> = units.iter().map(|unit| rows(unit).max(SMALLEST)).collect();
        if let Some(window) = by_size(&sizes).or_else(|| by_count(&sizes)) {
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

    fn everything(&self) -> Option<Choice> {
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
    fn is_quiet(&self, outlook: &Outlook<'_>) -> bool {
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

    /// All of a mixed cell at once, wide chunks split and narrow ones merged with what falls to them; where it has to be
    /// `worth_it`, only if the wide ones are worth rewriting the narrow ones for.
    fn settled(&self, worth_it: bool) -> Option<Choice> {
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
    fn split(&self, due: Option<&Outlook<'_>>) -> Option<Choice> {
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
    fn merge_alike(&self) -> Option<Choice> {
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
            let chunks: Vec<ChunkId> =
                run.get(by_size(&sizes).or_else(|| by_count(&sizes))?)?.iter().map(|meta| meta.id).collect();
            Some(Choice { weight: chunks.len(), chunks, ranges: vec![first.range] })
        };
        self.chunks.iter().filter_map(choice).max_by_key(|choice| choice.weight)
    }

    /// Where the ranges of the chunks begin and end.
    fn borders(&self) -> BTreeSet<Timestamp> {
        self.chunks.iter().flat_map(|meta| [meta.range.start, meta.range.end]).collect()
    }

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
                meta.range != first.range && meta.range.overlaps(&first.range) && intersect(meta.seq, joined)
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

fn rows(unit: &[&ChunkMeta]) -> u64 {
    unit.iter().map(|meta| meta.rows).sum()
}

fn intersect(a: SeqRange, b: SeqRange) -> bool {
    a.first <= b.last && b.first <= a.last
}

fn is_past(since: Timestamp, age: u128, now: Timestamp) -> bool {
    let passed = now.as_nanos().saturating_sub(since.as_nanos());
    u128::try_from(passed).is_ok_and(|passed| passed >= age)
}

fn inner_borders<'a>(
    borders: &'a BTreeSet<Timestamp>,
    range: &TimeRange,
) -> impl Iterator<Item = Timestamp> + use<'a> {
    let start = range.start;
    borders.range(range.start..range.end).copied().filter(move |border| *border > start)
}

/// How many of these fit into one chunk.
fn fitting(sizes: &[u64]) -> usize {
    let mut sum = 0;
    let fits = |size: &&u64| {
        sum += **size;
        sum <= CHUNK_ROWS
    };
    sizes.iter().take_while(fits).count()
}

/// The longest run, of those the newest, of which none is more than a `FAN`th of all.
fn by_size(sizes: &[u64]) -> Option<std::ops::Range<usize>> {
    let mut best: Option<std::ops::Range<usize>> = None;
    for start in 0..sizes.len() {
        let (mut sum, mut most) = (0, 0);
        for (place, size) in sizes.iter().enumerate().skip(start) {
            sum += size;
            most = most.max(*size);
            if sum > CHUNK_ROWS {
                break;
            }
            let run = start..place + 1;
            if most * FAN as u64 <= sum && best.as_ref().is_none_or(|best| run.len() >= best.len()) {
                best = Some(run);
            }
        }
    }
    best
}

/// The cheapest run of `FAN` where there are too many for a reader; of fewer where so many do not fit into a chunk.
fn by_count(sizes: &[u64]) -> Option<std::ops::Range<usize>> {
    if sizes.len() < CELL_CHUNKS {
        return None;
    }
    let cheapest = |count: usize| {
        let runs = sizes.windows(count).enumerate().map(|(start, run)| (run.iter().sum::<u64>(), start));
        runs.min().filter(|(sum, _)| *sum <= CHUNK_ROWS).map(|(_, start)| start..start + count)
    };
    (2..=FAN).rev().find_map(cheapest)
}

/// An old chunk is rewritten for newer ones of at least this share of its rows, where there are so many in all.
fn share(all: u64) -> u64 {
    if all <= JOIN_ROWS { 8 } else { 2 }
}

/// What is merged when a cell has gone quiet: the newest ones with the largest old one that they are worth rewriting.
fn at_rest(sizes: &[u64]) -> Option<std::ops::Range<usize>> {
    let mut newer: u64 = sizes.iter().sum();
    for (start, size) in sizes.iter().enumerate() {
        newer -= size;
        let worth_it = newer.saturating_mul(share(size + newer)) >= *size;
        if newer > 0 && size + newer <= CHUNK_ROWS && worth_it {
            return Some(start..sizes.len());
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;
    use sonde_storage_format::{SeqNo, TableId};

    const DAY: i64 = 10;
    /// Far behind everything, so that all is quiet.
    const LATER: i64 = 1 << 62;

    fn at(nanos: i64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    fn range(start: i64, end: i64) -> TimeRange {
        TimeRange { start: at(start), end: at(end) }
    }

    /// Chunks of (range, rows), each newer than the one before; named by their ids from 0 on.
    fn chunks(chunks: &[(TimeRange, u64)]) -> Vec<ChunkMeta> {
        let meta = |(i, (range, rows)): (usize, &(TimeRange, u64))| {
            let seq = SeqNo(10 * i as u64 + 1);
            ChunkMeta {
                id: ChunkId(i as u64),
                table: TableId(1),
                range: *range,
                times: (range.start, at(range.end.as_nanos() - 1)),
                seq: SeqRange { first: seq, last: seq.plus(8) },
                rows: *rows,
                series: 1,
                bytes: *rows,
                columns: Vec::new(),
            }
        };
        chunks.iter().enumerate().map(meta).collect()
    }

    fn choice_at(metas: &[ChunkMeta], now: i64) -> Option<(Vec<u64>, Vec<TimeRange>)> {
        let since = |_: ChunkId| at(0);
        let outlook = Outlook { now: at(now), width: DAY, since: &since, in_memory: &[], thin: None };
        let choice = choose(&metas.iter().collect::<Vec<_>>(), &outlook, |_| true)?;
        Some((choice.chunks.iter().map(|id| id.0).collect(), choice.ranges))
    }

    /// What is merged while rows come.
    fn busy(metas: &[(TimeRange, u64)]) -> Option<Vec<u64>> {
        choice_at(&chunks(metas), 0).map(|(ids, _)| ids)
    }

    fn quiet(metas: &[(TimeRange, u64)]) -> Option<Vec<u64>> {
        choice_at(&chunks(metas), LATER).map(|(ids, _)| ids)
    }

    #[test]
    fn eight_of_like_size_are_merged() {
        let day = range(0, DAY);
        assert_eq!(busy(&[(day, 5000); 7]), None);
        assert_eq!(busy(&[(day, 5000); 8]), Some((0..8).collect()));
        // Small ones count alike: each is a file.
        let small: Vec<_> = (0..8).map(|i| (day, 1 + 100 * i)).collect();
        assert_eq!(busy(&small), Some((0..8).collect()));
        // A large old one stays out of it.
        let mut with_large = vec![(day, 40_001)];
        with_large.extend([(day, 5000); 8]);
        assert_eq!(busy(&with_large), Some((1..9).collect()));
        // The cell with the most.
        let mut two = vec![(day, 5000); 8];
        two.extend([(range(DAY, 2 * DAY), 5000); 9]);
        assert_eq!(busy(&two), Some((8..17).collect()));
    }

    #[test]
    fn a_chunk_has_so_many_rows_and_no_more() {
        let day = range(0, DAY);
        assert_eq!(busy(&[(day, CHUNK_ROWS / 8); 8]), Some((0..8).collect()));
        assert_eq!(busy(&[(day, CHUNK_ROWS / 8 + 1); 8]), None);
        assert_eq!(quiet(&[(day, CHUNK_ROWS / 2 + 1); 2]), None);
        // Too many files, but none that fit together.
        assert_eq!(busy(&[(day, CHUNK_ROWS / 2 + 1); 40]), None);
        assert_eq!(busy(&[(day, CHUNK_ROWS / 2); 40]).unwrap().len(), 2);
    }

    /// Sizes of which none is like its neighbours.
    #[test]
    fn no_cell_has_too_many_chunks() {
        let day = range(0, DAY);
        let ruler = |i: u64| (day, 4096 << (2 * (i + 1).trailing_zeros().min(4)));
        let sizes: Vec<_> = (0..CELL_CHUNKS as u64).map(ruler).collect();
        assert_eq!(busy(&sizes).unwrap().len(), FAN);
        assert_eq!(busy(&sizes[..3]), None);
    }

    #[test]
    fn what_is_quiet_is_merged_for_good_where_it_is_worth_it() {
        let day = range(0, DAY);
        assert_eq!(quiet(&[(day, 5000)]), None);
        assert_eq!(quiet(&[(day, 80_000), (day, 10_000)]), Some(vec![0, 1]), "an eighth of a small one");
        assert_eq!(quiet(&[(day, 80_001), (day, 9_999)]), None);
        let large = 8 * JOIN_ROWS;
        assert_eq!(quiet(&[(day, large), (day, large / 2 - 1)]), None);
        assert_eq!(quiet(&[(day, large), (day, large / 2)]), Some(vec![0, 1]), "half of a large one");
        // Late ones are merged among themselves.
        assert_eq!(quiet(&[(day, large), (day, 2000), (day, 2000)]), Some(vec![1, 2]));
    }

    #[test]
    fn quiet_is_over_old_and_not_in_memory() {
        let metas = chunks(&[(range(0, DAY), 5000); 2]);
        let refs: Vec<&ChunkMeta> = metas.iter().collect();
        let age = QUIET_AGE.as_nanos() as i64;
        let chosen = |now: i64, since: i64, in_memory: &[TimeRange]| {
            let since = move |_: ChunkId| at(since);
            let outlook = Outlook { now: at(now), width: DAY, since: &since, in_memory, thin: None };
            choose(&refs, &outlook, |_| true).is_some()
        };
        assert!(chosen(age + 5, 5, &[range(DAY, 2 * DAY)]));
        assert!(!chosen(age + 4, 5, &[]), "it may go on");
        assert!(!chosen(age + 5, 5, &[range(DAY - 1, DAY)]), "it goes on");
        assert!(!chosen(DAY - 1, -2 * age, &[]), "it is not over");
    }

    #[test]
    fn wide_chunks_are_split_among_the_partitions_below_them() {
        let (one, four, week) = (range(0, DAY), range(3 * DAY, 4 * DAY), range(0, 7 * DAY));
        let large = 10 * JOIN_ROWS;
        let mut all = vec![(one, large), (four, large)];
        all.extend([(week, 5000); WIDE_CHUNKS - 1]);
        assert_eq!(busy(&all), None);
        all.push((week, 5000));
        let (ids, ranges) = choice_at(&chunks(&all), 0).unwrap();
        assert_eq!(ids, (2..2 + WIDE_CHUNKS as u64).collect::<Vec<_>>());
        let between = [one, range(DAY, 3 * DAY), four, range(4 * DAY, 7 * DAY)];
        assert_eq!(ranges, between);
        // A few that lie there for long are as bad for readers.
        let rested = |rows: u64, age: u128| {
            let metas = chunks(&[(one, large), (four, large), (week, rows)]);
            choice_at(&metas, age as i64).map(|(ids, _)| ids)
        };
        let worth_it = 4 * SPLIT_ROWS;
        assert_eq!(rested(worth_it, QUIET_AGE.as_nanos()), Some(vec![2]));
        assert_eq!(rested(worth_it, QUIET_AGE.as_nanos() - 1), None);
        assert_eq!(rested(worth_it - 1, QUIET_AGE.as_nanos()), None, "not worth the files");
        assert_eq!(rested(1, WIDE_AGE.as_nanos()), Some(vec![2]), "nothing comes any more");
        // Only where there are rows.
        let mut metas = chunks(&[(one, large), (four, large), (week, 5)]);
        metas[2].times = (at(DAY + 1), at(2 * DAY));
        assert_eq!(choice_at(&metas, LATER).unwrap().1, [range(DAY, 3 * DAY)]);
    }

    /// Late rows that are as many as those that came in time are split and merged at once.
    #[test]
    fn a_mixed_cell_that_is_quiet_is_settled_at_once_where_it_is_worth_it() {
        let (one, two, week) = (range(0, DAY), range(DAY, 2 * DAY), range(0, 7 * DAY));
        let large = 10 * JOIN_ROWS;
        let settled =
            |late: u64| choice_at(&chunks(&[(one, large), (two, large), (week, late)]), LATER).unwrap();
        let parts = vec![one, two, range(2 * DAY, 7 * DAY)];
        assert_eq!(settled(large), (vec![0, 1, 2], parts.clone()));
        assert_eq!(settled(large - 1), (vec![2], parts));
        let busy = chunks(&[(one, large), (two, large), (week, large)]);
        assert_eq!(choice_at(&busy, QUIET_AGE.as_nanos() as i64 - 1), None);
    }

    /// In a mixed cell too: wide ones that are not worth a split, and narrow ones.
    #[test]
    fn chunks_of_one_range_are_merged_below_and_above_each_other() {
        let (day, other, week) = (range(0, DAY), range(DAY, 2 * DAY), range(0, 7 * DAY));
        let large = 10 * JOIN_ROWS;
        let mut all = vec![(day, large), (other, large)];
        all.extend([(week, 5); FAN - 1]);
        assert_eq!(busy(&all), None);
        all.push((week, 5));
        let choice = choice_at(&chunks(&all), 0).unwrap();
        assert_eq!(choice, ((2..2 + FAN as u64).collect(), vec![week]));
        let mut narrow = vec![(other, large), (week, 5)];
        narrow.extend([(day, large); 3]);
        narrow.extend([(day, 5000); FAN]);
        assert_eq!(busy(&narrow), Some((5..5 + FAN as u64).collect()));
        narrow.insert(9, (week, 5));
        assert_eq!(busy(&narrow), None, "one stands between them");
        // Where there are too many to wait, nothing has to be worth it.
        let mut apart = vec![(other, large)];
        for _ in 0..2 * WIDE_CHUNKS - 1 {
            apart.extend([(day, large / 10), (week, 5)]);
        }
        assert!(busy(&apart).is_none_or(|ids| ids.len() > 1));
        apart.push((week, 5));
        let (ids, ranges) = choice_at(&chunks(&apart), 0).unwrap();
        assert!(ids.len() == 2 && ranges.len() == 3, "{ids:?} {ranges:?}");
    }

    /// What stands between two wide chunks is newer than one of them and older than the other.
    #[test]
    fn a_run_ends_at_a_chunk_that_stands_between() {
        let (day, week) = (range(0, DAY), range(0, 7 * DAY));
        let large = 10 * JOIN_ROWS;
        let all = [(day, large), (week, 5), (week, 5), (day, large), (week, 5), (week, 5), (week, 5)];
        assert_eq!(quiet(&all), Some(vec![4, 5, 6]));
        assert_eq!(quiet(&all[..6]).unwrap().len(), 2);
        // One that stands elsewhere in time does not count.
        let other = [(day, large), (week, 5), (week, 5), (range(7 * DAY, 8 * DAY), large), (week, 5)];
        assert_eq!(quiet(&other), Some(vec![1, 2, 4]));
    }

    #[test]
    fn a_large_partition_takes_in_a_few_narrow_rows() {
        let (day, week) = (range(0, DAY), range(0, 7 * DAY));
        let large = 10 * JOIN_ROWS;
        let mut all = vec![(week, large)];
        all.extend([(day, 5000); 8]);
        let (ids, ranges) = choice_at(&chunks(&all), 0).unwrap();
        assert_eq!((ids, ranges), ((1..9).collect(), vec![week]));
        // Many of them are not taken in: the large one is split.
        let split = choice_at(&chunks(&[(week, large), (day, large / 4)]), LATER).unwrap();
        assert_eq!(split, (vec![0, 1], vec![day, range(DAY, 7 * DAY)]));
    }

    /// The partitions were narrower once.
    #[test]
    fn small_chunks_of_one_partition_are_one_in_the_end() {
        let hour = |hour: i64| range(hour, hour + 1);
        let hours: Vec<_> = (0..5).map(|i| (hour(i), 5000)).collect();
        let (ids, ranges) = choice_at(&chunks(&hours), LATER).unwrap();
        assert_eq!((ids.len(), ranges), (5, vec![range(0, DAY)]));
        let large: Vec<_> = (0..5).map(|i| (hour(i), JOIN_ROWS / 4)).collect();
        assert_eq!(quiet(&large), None, "they are good as they are");
        // Of one flush: neither is newer.
        let mut metas = chunks(&hours[..2]);
        metas[1].seq = metas[0].seq;
        assert_eq!(choice_at(&metas, LATER).unwrap().0, [0, 1]);
    }

    #[test]
    fn everything_becomes_one_chunk_for_each_partition() {
        let (day, week, later) = (range(0, DAY), range(0, 7 * DAY), range(DAY, 2 * DAY));
        let large = 10 * JOIN_ROWS;
        let all = chunks(&[(day, large), (day, 1), (later, large), (week, 5), (day, 1), (later, 1)]);
        let next = |metas: &[ChunkMeta]| {
            choose_all(&metas.iter().collect::<Vec<_>>(), DAY, |_| true)
                .map(|choice| choice.chunks.iter().map(|id| id.0).collect::<Vec<_>>())
        };
        assert_eq!(next(&all), Some(vec![0, 1, 2, 3, 4, 5]), "the wide one is split");
        let mut split = all.clone();
        split[3].range = range(2 * DAY, 7 * DAY);
        assert_eq!(next(&split), Some(vec![0, 1, 4]));
        let full = chunks(&[(day, CHUNK_ROWS), (later, large), (week, 5)]);
        assert_eq!(next(&full), Some(vec![2]), "alone, where all together is too much");
        assert_eq!(next(&chunks(&[(day, 5), (later, 5)])), None);
        let too_large = chunks(&[(day, CHUNK_ROWS / 2 + 1), (day, CHUNK_ROWS / 2 + 1)]);
        assert_eq!(next(&too_large), None);
    }

    #[test]
    fn a_chunk_alone_is_rewritten_once_its_table_is_dense_and_it_is_old() {
        let metas = chunks(&[(range(0, DAY), 5000)]);
        let refs: Vec<&ChunkMeta> = metas.iter().collect();
        let since = |_: ChunkId| at(0);
        let chosen = |now: i64, thin: bool| {
            let thin = move |_: ChunkId| thin;
            let outlook =
                Outlook { now: at(now), width: DAY, since: &since, in_memory: &[], thin: Some(&thin) };
            choose(&refs, &outlook, |_| true).map(|choice| (choice.chunks, choice.ranges))
        };
        let old = DAY + DENSE_AGE.as_nanos() as i64;
        assert_eq!(chosen(old, true), Some((vec![ChunkId(0)], vec![range(0, DAY)])));
        assert_eq!(chosen(old - 1, true), None);
        assert_eq!(chosen(old, false), None);
    }
}
