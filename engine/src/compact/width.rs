//! How wide a table's partitions are where nobody set a width, and which partitions share a chunk when they are flushed.
//!
//! # Invariants
//! - Every width divides a UTC day or is whole days, and each one of `WIDTHS` divides the next: ranges of two of them
//!   nest or do not touch.
//! - A width follows from what the table's chunks say, so a restart finds it again; chunks state their own range, so
//!   it may change at any time.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use sonde_storage_format::{ChunkMeta, TableDef, TableId, TableOptions, TimeRange, Timestamp};

use crate::cold::DAY;
use crate::limits::{FLUSH_CHUNKS, LATE_PARTITIONS, LATE_ROWS, PARTITION_BYTES, PARTITION_ROWS};
use crate::version::Version;

const MINUTE: i64 = DAY / 1440;
const HOUR: i64 = DAY / 24;
/// The widths that are chosen from: 1, 5 and 15 minutes, 1 and 6 hours, 1, 8 and 32 days.
pub(crate) const WIDTHS: [i64; 8] = [MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 6 * HOUR, DAY, 8 * DAY, 32 * DAY];
/// The lengths of time, up to the newest row, over which rows are counted.
const WINDOWS: [i64; 6] = [15 * MINUTE, HOUR, 6 * HOUR, DAY, 8 * DAY, 32 * DAY];
/// How far back a single chunk counts: over a weekend, so that Monday is no surprise.
const LOOKBACK: i64 = 8 * DAY;
/// A width is at most so many times the time that the table has rows of: an hour says little about a month.
const EVIDENCE: i64 = 8;
/// A retained table has at least about so many partitions, because whole ones go.
const KEPT_PARTITIONS: i64 = 8;
/// Late rows of no longer than about this share a chunk, unless a block of partitions is longer.
const WIDEST_LANE: i64 = 256 * DAY;
/// The narrowest that retention asks for.
const NARROWEST_KEPT: i64 = HOUR;

/// How much a table has for a length of time, at its densest, and how long it has been there.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Density {
    rows_per_day: f64,
    bytes_per_day: f64,
    /// From the first row that counts to the newest, nanoseconds.
    span: i64,
}

impl Density {
    /// Of the rows up to `now`: later ones are of clocks that are wrong. `None` where there is none.
    pub(crate) fn of<'a>(
        chunks: impl Iterator<Item = &'a ChunkMeta> + Clone,
        now: Timestamp,
    ) -> Option<Self> {
        let past = chunks.filter(|meta| meta.times.0 <= now);
        let newest = past.clone().map(|meta| meta.times.1.min(now)).max()?;
        let oldest = past.clone().map(|meta| meta.times.0).min()?;
        let mut density = Self { span: nanos_between(oldest, newest), ..Self::default() };
        for window in WINDOWS {
            let start = Timestamp::from_nanos(newest.as_nanos().saturating_sub(window));
            let (mut rows, mut bytes) = (0.0, 0.0);
            for meta in past.clone() {
                let part = part_within(meta, start, newest);
                rows += part * meta.rows as f64;
                bytes += part * meta.bytes as f64;
            }
            density.raise(rows, bytes, window);
        }
        // What was dense and is over: a night does not make the partitions of the next day too wide.
        let recent = Timestamp::from_nanos(newest.as_nanos().saturating_sub(LOOKBACK));
        for meta in past.filter(|meta| meta.times.1 >= recent) {
            let length =
                nanos_between(meta.times.0, meta.times.1).max(WINDOWS.iter().copied().min().unwrap_or(1));
            density.raise(meta.rows as f64, meta.bytes as f64, length);
        }
        Some(density)
    }

    fn raise(&mut self, rows: f64, bytes: f64, length: i64) {
        let days = length as f64 / DAY as f64;
        self.rows_per_day = self.rows_per_day.max(rows / days);
        self.bytes_per_day = self.bytes_per_day.max(bytes / days);
    }

    /// What a partition of this width would hold, as a share of what it should hold at most.
    fn fill(&self, width: i64, bytes: f64) -> f64 {
        let days = width as f64 / DAY as f64;
        (self.rows_per_day * days / PARTITION_ROWS as f64).max(self.bytes_per_day * days / bytes)
    }
}

fn nanos_between(first: Timestamp, last: Timestamp) -> i64 {
    last.as_nanos().saturating_sub(first.as_nanos())
}

/// The part of a chunk's rows from `start` to `end`, as if they were spread evenly over its times.
fn part_within(meta: &ChunkMeta, start: Timestamp, end: Timestamp) -> f64 {
    let (first, last) = (meta.times.0.max(start), meta.times.1.min(end));
    if first > last {
        return 0.0;
    }
    (nanos_between(first, last) as f64 + 1.0) / (nanos_between(meta.times.0, meta.times.1) as f64 + 1.0)
}

/// The width of the partitions to come. It stays as it is unless they would hold more than twice what they should, or
/// wider ones less than half of it: between the two nothing changes, so that widths do not flap.
pub(crate) fn choose(current: i64, seen: Option<Density>, options: &TableOptions) -> i64 {
    let widest = widest(options);
    let current = current.min(widest);
    let Some(seen) = seen else { return current };
    let bytes = match options.max_bytes {
        0 => PARTITION_BYTES as f64,
        budget => (budget / KEPT_PARTITIONS).max(1).min(PARTITION_BYTES as i64) as f64,
    };
    let [narrowest, ..] = WIDTHS;
    if seen.fill(current, bytes) > 2.0 {
        let fits = |width: &&i64| **width < current && seen.fill(**width, bytes) <= 1.0;
        return WIDTHS.iter().rev().find(fits).copied().unwrap_or(narrowest.min(current));
    }
    let proven = seen.span.saturating_mul(EVIDENCE).min(widest);
    let wider = |width: &&i64| **width > current && **width <= proven && seen.fill(**width, bytes) <= 0.5;
    WIDTHS.iter().rev().find(wider).copied().unwrap_or(current)
}

/// The widest partitions that the options allow: retention drops whole ones, and whole days go to the cold tier.
fn widest(options: &TableOptions) -> i64 {
    let mut widest = 32 * DAY;
    if options.cold_after > 0 {
        widest = widest.min(DAY);
    }
    if options.retention > 0 {
        widest = widest.min((options.retention / KEPT_PARTITIONS).max(NARROWEST_KEPT));
    }
    let [narrowest, ..] = WIDTHS;
    WIDTHS.iter().rev().find(|width| **width <= widest).copied().unwrap_or(narrowest)
}

/// The widths of the tables whose width is automatic, as of their last flush.
#[derive(Debug, Default)]
pub(crate) struct Widths(Mutex<BTreeMap<TableId, i64>>);

impl Widths {
    /// The width that rows of this table should be partitioned by now.
    pub(crate) fn of(&self, table: &TableDef) -> i64 {
        if !table.options.automatic {
            return table.options.partition;
        }
        self.0
            .lock()
            .get(&table.id)
            .copied()
            .unwrap_or_else(|| choose(table.options.partition, None, &table.options))
    }

    /// Looks again at what a table has; returns the widths before and after where they differ.
    pub(crate) fn learn(
        &self,
        table: &TableDef,
        chunks: &[&ChunkMeta],
        now: Timestamp,
    ) -> Option<(i64, i64)> {
        if !table.options.automatic {
            self.0.lock().remove(&table.id);
            return None;
        }
        let chunks = chunks.iter().copied();
        let known = self.0.lock().get(&table.id).copied();
        let before = known.or_else(|| newest_width(chunks.clone(), now)).unwrap_or(table.options.partition);
        let after = choose(before, Density::of(chunks, now), &table.options);
        self.0.lock().insert(table.id, after);
        (before != after).then_some((before, after))
    }

    /// Forgets tables that are gone.
    pub(crate) fn retain(&self, known: impl Fn(TableId) -> bool) {
        self.0.lock().retain(|table, _| known(*table));
    }
}

/// The width of the chunks that the newest rows are in, where it is one that is chosen from: what was chosen before a
/// restart.
fn newest_width<'a>(chunks: impl Iterator<Item = &'a ChunkMeta> + Clone, now: Timestamp) -> Option<i64> {
    let newest = chunks.clone().filter(|meta| meta.times.1 <= now).map(|meta| meta.times.1).max()?;
    let widths = chunks.filter(|meta| meta.range.contains(newest)).map(|meta| width_of(&meta.range));
    widths.filter(|width| WIDTHS.contains(width)).min()
}

pub(crate) fn width_of(range: &TimeRange) -> i64 {
    nanos_between(range.start, range.end)
}

/// The ranges with rows in memory of a table.
pub(crate) fn in_memory(version: &Version, table: TableId) -> Vec<TimeRange> {
    let memtables = version.frozen.iter().map(AsRef::as_ref).chain([&version.active]);
    memtables.flat_map(|memtable| memtable.of_table(table).map(|partition| partition.range)).collect()
}

/// The width of the blocks of neighbouring partitions of this width that may share a chunk: the next one of at least
/// four, else of up to eight partitions.
fn wider(width: i64) -> Option<i64> {
    let whole = |width: i64| DAY % width == 0 || width % DAY == 0;
    let next = || WIDTHS.contains(&width).then(|| WIDTHS.iter().copied().find(|next| next / 4 >= width));
    let multiple = || (2..=8).rev().filter_map(|times| width.checked_mul(times)).find(|wider| whole(*wider));
    next().flatten().or_else(multiple)
}

/// How the partitions of one table's memtable, given by range and rows in time order, become chunks: the range of each
/// chunk and how many partitions it takes.
///
/// Late rows lie in many partitions, and few in each. Where a memtable reaches over `LATE_PARTITIONS` of a block and a
/// chunk for each would have fewer than `LATE_ROWS` rows, the block gets one chunk, which compaction splits when it has
/// grown or rested. So a flush comes to at most three chunks a block and one for each `LATE_ROWS` rows; where these are
/// more than `FLUSH_CHUNKS`, blocks are taken together in the same way.
pub(crate) fn lanes(partitions: &[(TimeRange, usize)]) -> Vec<(TimeRange, usize)> {
    let mut lanes: Vec<Lane> =
        partitions.iter().map(|(range, rows)| Lane { range: *range, rows: *rows, partitions: 1 }).collect();
    // At the ends of time a range is cut off; those in between have the width.
    let width = partitions.iter().map(|(range, _)| width_of(range)).max().unwrap_or_default();
    let mut next = Some(width).filter(|width| *width > 0).and_then(wider);
    let mut first = true;
    while let Some(width) = next.filter(|_| first || lanes.len() > FLUSH_CHUNKS) {
        lanes = taken_together(&lanes, width);
        next = wider(width).filter(|wider| *wider <= WIDEST_LANE);
        first = false;
    }
    lanes.into_iter().map(|lane| (lane.range, lane.partitions)).collect()
}

/// Partitions that share a chunk.
#[derive(Clone)]
struct Lane {
    range: TimeRange,
    rows: usize,
    partitions: usize,
}

/// Makes one lane of each block of this width that late rows lie in.
fn taken_together(lanes: &[Lane], width: i64) -> Vec<Lane> {
    let block = |lane: &Lane| TimeRange::aligned(lane.range.start, width);
    let mut taken = Vec::new();
    for of_block in lanes.chunk_by(|a, b| block(a) == block(b)) {
        let (rows, partitions) = of_block
            .iter()
            .fold((0, 0), |(rows, partitions), lane| (rows + lane.rows, partitions + lane.partitions));
        let range = of_block.first().map(block).unwrap_or(TimeRange::ALL);
        let fits = of_block.iter().all(|lane| range.start <= lane.range.start && lane.range.end <= range.end);
        if fits && of_block.len() >= LATE_PARTITIONS && rows < of_block.len() * LATE_ROWS {
            taken.push(Lane { range, rows, partitions });
        } else {
            taken.extend_from_slice(of_block);
        }
    }
    taken
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;
    use crate::catalog::check::check_options;
    use sonde_storage_format::{ChunkId, SeqNo, SeqRange};

    fn at(nanos: i64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    fn options() -> TableOptions {
        TableOptions::automatic()
    }

    fn chunk(first: i64, last: i64, rows: u64) -> ChunkMeta {
        ChunkMeta {
            id: ChunkId(0),
            table: TableId(1),
            range: TimeRange::aligned(at(first), DAY),
            times: (at(first), at(last)),
            seq: SeqRange { first: SeqNo(1), last: SeqNo(2) },
            rows,
            series: 1,
            bytes: rows,
            columns: Vec::new(),
        }
    }

    /// A table that has had so many rows a day for so long.
    fn steady(rows_per_day: f64, span: i64) -> Option<Density> {
        Some(Density { rows_per_day, bytes_per_day: rows_per_day, span })
    }

    #[test]
    fn widths_nest_and_are_allowed() {
        for pair in WIDTHS.windows(2) {
            assert!(pair[0] < pair[1] && pair[1] % pair[0] == 0, "{pair:?}");
        }
        for partition in WIDTHS {
            check_options(&TableOptions { partition, ..options() }).unwrap();
        }
    }

    #[test]
    fn a_fleet_a_machine_and_a_trickle_get_chunks_of_bounded_size() {
        let after_a_month = |rows_per_day: f64| choose(DAY, steady(rows_per_day, 30 * DAY), &options());
        assert_eq!(after_a_month(48e6), DAY, "a million devices with 48 points a day");
        assert_eq!(after_a_month(70e6), 6 * HOUR);
        assert_eq!(after_a_month(20_000.0 * 86_400.0), 15 * MINUTE, "one machine at 20 kHz");
        assert_eq!(after_a_month(1440.0), 32 * DAY, "a row a minute");
        assert_eq!(after_a_month(30e6), DAY);
        let mut rows_per_day = 1.0;
        while rows_per_day < 1e10 {
            let width = after_a_month(rows_per_day);
            let rows = rows_per_day * width as f64 / DAY as f64;
            assert!(rows <= 2.0 * PARTITION_ROWS as f64, "{rows_per_day} rows a day: {rows} in {width}");
            let is_widest = width == WIDTHS[WIDTHS.len() - 1];
            assert!(
                is_widest || rows >= PARTITION_ROWS as f64 / 32.0,
                "{rows_per_day}: only {rows} in {width}"
            );
            rows_per_day *= 1.1;
        }
        assert_eq!(after_a_month(1e15), MINUTE, "no narrower than the narrowest");
        assert_eq!(choose(DAY, None, &options()), DAY);
    }

    /// What is four times as much by day as by night changes the width a few times at most, not every day.
    #[test]
    fn widths_do_not_flap() {
        for start in WIDTHS {
            for exponent in 0..100 {
                let (mut width, mut changes, mut noise) = (start, 0, 1u64);
                for _ in 0..300 {
                    noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let factor = 1.0 + 2.9 * (noise >> 40) as f64 / (1u64 << 24) as f64;
                    let seen = steady(1.26f64.powi(exponent) * factor, 300 * DAY);
                    let next = choose(width, seen, &options());
                    changes += usize::from(next != width);
                    width = next;
                }
                assert!(changes <= 3, "1.26^{exponent} rows a day from {start}: {changes} changes");
            }
        }
    }

    #[test]
    fn an_hour_says_little_about_a_month() {
        let after = |span: i64| choose(DAY, steady(1440.0, span), &options());
        assert_eq!(after(HOUR), DAY);
        assert_eq!(after(DAY - 1), DAY);
        assert_eq!(after(DAY), 8 * DAY);
        assert_eq!(after(4 * DAY), 32 * DAY);
        // What is too much is too much at once.
        assert_eq!(choose(DAY, steady(20_000.0 * 86_400.0, MINUTE), &options()), 15 * MINUTE);
    }

    #[test]
    fn options_bound_the_width() {
        let chosen = |options: TableOptions| choose(DAY, steady(1440.0, 300 * DAY), &options);
        assert_eq!(chosen(TableOptions { cold_after: 1, ..options() }), DAY);
        assert_eq!(chosen(TableOptions { retention: 64 * DAY, ..options() }), 8 * DAY);
        assert_eq!(chosen(TableOptions { retention: 7 * DAY, ..options() }), 6 * HOUR);
        assert_eq!(chosen(TableOptions { retention: 1, ..options() }), HOUR);
        // A budget of bytes is kept by dropping chunks, so none is a large part of it.
        let budget = TableOptions { max_bytes: 8 * 1440, ..options() };
        assert_eq!(choose(DAY, steady(1440.0, 300 * DAY), &budget), DAY);
        assert_eq!(choose(8 * DAY, steady(1440.0, 300 * DAY), &budget), DAY);
    }

    #[test]
    fn the_densest_time_counts_and_clocks_that_are_wrong_do_not() {
        let density = |chunks: &[ChunkMeta], now: i64| Density::of(chunks.iter(), at(now));
        assert_eq!(density(&[], 100 * DAY), None);
        assert_eq!(density(&[chunk(200 * DAY, 201 * DAY, 5)], 100 * DAY), None);
        // A million rows in an hour, and a few late ones, one in the far future.
        let burst = chunk(50 * DAY, 50 * DAY + HOUR, 1_000_000);
        let chunks = [burst.clone(), chunk(20 * DAY, 49 * DAY, 300), chunk(5000 * DAY, 5000 * DAY, 1)];
        let seen = density(&chunks, 100 * DAY).unwrap();
        assert!((seen.rows_per_day / 24e6 - 1.0).abs() < 0.01, "{seen:?}");
        assert_eq!(seen.span, 30 * DAY + HOUR);
        // It counts for a week.
        let later = |days: i64| {
            let after = chunk((50 + days) * DAY, (50 + days) * DAY + HOUR, 10);
            density(&[burst.clone(), after], 100 * DAY).unwrap().rows_per_day
        };
        assert!(later(7) > 20e6 && later(9) < 1e6, "{} {}", later(7), later(9));
        // All at one instant is no infinity.
        let instant = density(&[chunk(50 * DAY, 50 * DAY, 96)], 100 * DAY).unwrap();
        assert!((instant.rows_per_day - 96.0 * 96.0).abs() < 1.0, "{instant:?}");
    }

    #[test]
    fn widths_are_found_again_and_a_width_that_was_set_stays() {
        let mut table = TableDef {
            id: TableId(1),
            database: "public".into(),
            name: "t".into(),
            kind: sonde_storage_format::TableKind::Points,
            open: true,
            options: options(),
            columns: Vec::new(),
        };
        let widths = Widths::default();
        assert_eq!(widths.of(&table), DAY);
        // Too much for a day, and right for a width that half of it would not have chosen.
        let mut chunk = chunk(0, 6 * HOUR - 1, 10_000_000);
        chunk.range = TimeRange::aligned(at(0), 6 * HOUR);
        assert_eq!(widths.learn(&table, &[&chunk], at(DAY)), None, "what was chosen before");
        assert_eq!(widths.of(&table), 6 * HOUR);
        assert_eq!(Widths::default().learn(&table, &[], at(DAY)), None);
        table.options.automatic = false;
        table.options.partition = HOUR;
        assert_eq!((widths.learn(&table, &[&chunk], at(DAY)), widths.of(&table)), (None, HOUR));
        widths.retain(|_| false);
        table.options = TableOptions { cold_after: 1, partition: 8 * DAY, ..options() };
        assert_eq!(widths.of(&table), DAY, "the first width is bounded too");
    }

    fn days(days: &[(i64, usize)]) -> Vec<(TimeRange, usize)> {
        days.iter().map(|(day, rows)| (TimeRange::aligned(at(day * DAY), DAY), *rows)).collect()
    }

    #[test]
    fn late_rows_of_many_partitions_share_a_chunk() {
        let week = TimeRange { start: at(8 * DAY), end: at(16 * DAY) };
        let late = days(&[(9, 3), (11, 5), (12, 1), (15, 2), (16, 9)]);
        assert_eq!(lanes(&late), [(week, 4), (late[4].0, 1)]);
        // Three are no storm, and many rows are worth their files.
        let few = days(&[(9, 3), (11, 5), (12, 1)]);
        assert_eq!(lanes(&few), few.iter().map(|(range, _)| (*range, 1)).collect::<Vec<_>>());
        let many = days(&[(9, LATE_ROWS), (11, LATE_ROWS), (12, LATE_ROWS), (13, LATE_ROWS)]);
        assert_eq!(lanes(&many).len(), 4);
        assert!(lanes(&[]).is_empty());
    }

    /// A fleet of 100,000 rows a second, of which a hundredth is up to 30 days late.
    #[test]
    fn late_rows_of_thousands_of_partitions_are_no_storm_of_files() {
        let width = 5 * MINUTE;
        let late = 30 * DAY / width;
        let mut partitions: Vec<(TimeRange, usize)> =
            (0..late).map(|i| (TimeRange::aligned(at(i * width), width), 2)).collect();
        partitions.push((TimeRange::aligned(at(late * width), width), 1_300_000));
        let lanes = lanes(&partitions);
        assert!(lanes.len() <= FLUSH_CHUNKS, "{} chunks", lanes.len());
        assert_eq!(lanes.last(), Some(&(partitions[late as usize].0, 1)), "what is new is by itself");
        assert_eq!(lanes.iter().map(|(_, count)| count).sum::<usize>(), partitions.len());
    }

    /// Whatever their width is, chunks of one flush do not overlap, and hold what was put in them.
    #[test]
    fn chunks_of_a_flush_are_disjoint_and_few() {
        let odd = [DAY / 9, 10 * MINUTE, 12 * HOUR, 2 * DAY, 7 * DAY, 182 * DAY, DAY / 1_000_000];
        for width in WIDTHS.into_iter().chain(odd) {
            let parts: Vec<(TimeRange, usize)> =
                (-150..150).map(|i| (TimeRange::aligned(at(3 * i * width), width), 10)).collect();
            let lanes = lanes(&parts);
            let mut rest = parts.iter();
            for (range, count) in &lanes {
                for (part, _) in rest.by_ref().take(*count) {
                    assert!(range.start <= part.start && part.end <= range.end, "{width}");
                }
                let length = width_of(range);
                assert!(DAY % length == 0 || length % DAY == 0, "{width}: {range:?}");
            }
            assert!(rest.next().is_none());
            assert!(lanes.windows(2).all(|pair| pair[0].0.end <= pair[1].0.start), "{width}");
        }
        // The ends of time, where partitions are cut off.
        let ends: Vec<(TimeRange, usize)> = [i64::MIN, i64::MIN + 2 * DAY, i64::MAX - 1]
            .iter()
            .map(|time| (TimeRange::aligned(at(*time), DAY), 1))
            .collect();
        assert_eq!(lanes(&ends).len(), 3);
    }
}
