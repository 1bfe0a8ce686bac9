//! Which rows are due: files that have outlived their table's retention or budget, memtables that should become files.
//!
//! # Invariants
//! - Pure functions. Whoever calls them reads the version before the catalog: a table of the version that the catalog
//!   does not know was dropped, and is none that was made since.
//! - No row comes back that a later one had overwritten: of a table of points a chunk goes only if nothing older stays
//!   that overlaps it, for its age or for the table's budget, of which what was written first goes first. Cold days are
//!   the oldest; one that is there stays, so that no order of edits, and no crash between two, matters. What a chunk
//!   waits for is of its own time and goes before long; its rows are shown until then, as those below it are.
//! - What a tombstone hides does not come back either: it is kept for as long as any file may hold such rows
//!   ([`Version::needs`]), however old it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sonde_storage_format::{ChunkId, TableId, TableKind, TableOptions, TimeRange, Timestamp};

use crate::catalog::Catalog;
use crate::cold::day_of;
use crate::memtable::Memtable;
use crate::version::{Chunk, TableFiles, Version};

/// What is to go.
#[derive(Debug, Default)]
pub(crate) struct Expired {
    /// Older than their tables keep, or of tables that were dropped.
    pub(crate) chunks: Vec<(TableId, ChunkId)>,
    /// Over the budgets of their tables, by table, first written first.
    pub(crate) evicted: Vec<Arc<Chunk>>,
    /// Days of the cold tier, older than their tables keep or of tables that were dropped.
    pub(crate) cold: Vec<(TableId, TimeRange)>,
}

/// Files that hold only rows older than their table keeps, files of tables that were dropped, and the oldest chunks of
/// tables that have more bytes of them than they may.
pub(crate) fn expired(version: &Version, catalog: &Catalog, now: Timestamp) -> Expired {
    let mut expired = Expired::default();
    for (id, files) in &version.files {
        let Some(table) = catalog.table_by_id(*id) else {
            expired.chunks.extend(files.chunks().map(|chunk| (*id, chunk.meta.id)));
            expired.cold.extend(files.cold.values().map(|file| (*id, file.day)));
            continue;
        };
        let TableOptions { retention, max_bytes, .. } = table.def().options;
        let is_aged = |chunk: &Chunk| is_over(chunk.meta.range.end, retention, now);
        let is_free = table.def().kind == TableKind::Events;
        let of_age = going(files, is_free, is_aged);
        let gone: BTreeSet<ChunkId> = of_age.iter().map(|chunk| chunk.meta.id).collect();
        expired.chunks.extend(gone.iter().map(|chunk| (*id, *chunk)));
        let days = files.cold.values().filter(|file| is_over(file.day.end, retention, now));
        expired.cold.extend(days.map(|file| (*id, file.day)));
        let max_bytes = max_bytes.unsigned_abs();
        if max_bytes > 0 {
            let over = over_budget(files, max_bytes, |chunk| !gone.contains(&chunk.meta.id));
            let should = |chunk: &Chunk| gone.contains(&chunk.meta.id) || over.contains(&chunk.meta.id);
            let go = going(files, is_free, should).into_iter();
            expired.evicted.extend(go.filter(|chunk| !gone.contains(&chunk.meta.id)).cloned());
        }
    }
    expired
}

/// The chunks that may go together, of those that `should`, first written first: all of them where they are `free` of each
/// other, else those that overlap nothing older that stays.
fn going(files: &TableFiles, is_free: bool, should: impl Fn(&Chunk) -> bool) -> Vec<&Arc<Chunk>> {
    let mut stays = Times::default();
    let last_of = |day: &TimeRange| Timestamp::from_nanos(day.end.as_nanos().saturating_sub(1));
    files.cold.values().for_each(|file| stays.add(file.day.start, last_of(&file.day)));
    let may_go = |chunk: &&Arc<Chunk>| {
        let (first, last) = chunk.meta.times;
        let goes = should(chunk) && (is_free || !stays.overlap(first, last));
        if !goes {
            stays.add(first, last);
        }
        goes
    };
    by_age(files).into_iter().filter(may_go).collect()
}

/// The chunks of a table, first written first: of two that overlap, the older one.
fn by_age(files: &TableFiles) -> Vec<&Arc<Chunk>> {
    let mut chunks: Vec<&Arc<Chunk>> = files.chunks().collect();
    chunks.sort_by_key(|chunk| (chunk.meta.seq.first, chunk.meta.range.start));
    chunks
}

/// Instants, as spans that do not overlap: the last of each, which belongs to it, by its first.
#[derive(Debug, Default)]
struct Times(BTreeMap<Timestamp, Timestamp>);

impl Times {
    /// Whether any of them is from `first` to `last`.
    fn overlap(&self, first: Timestamp, last: Timestamp) -> bool {
        self.0.range(..=last).next_back().is_some_and(|(_, end)| *end >= first)
    }

    fn add(&mut self, mut first: Timestamp, mut last: Timestamp) {
        while let Some((&start, &end)) = self.0.range(..=last).next_back().filter(|(_, end)| **end >= first) {
            self.0.remove(&start);
            (first, last) = (first.min(start), last.max(end));
        }
        self.0.insert(first, last);
    }
}

/// The chunks that have to go, of those that would `stay`, so that the others have at most so many bytes. The newest
/// one stays in any case.
fn over_budget(files: &TableFiles, max_bytes: u64, stay: impl Fn(&Chunk) -> bool) -> BTreeSet<ChunkId> {
    let mut chunks: Vec<&Arc<Chunk>> = by_age(files).into_iter().filter(|chunk| stay(chunk)).collect();
    let mut bytes: u64 = chunks.iter().map(|chunk| chunk.meta.bytes).sum();
    chunks.pop();
    let over = |chunk: &&Arc<Chunk>| {
        let over = bytes > max_bytes;
        bytes -= chunk.meta.bytes;
        over
    };
    chunks.into_iter().take_while(over).map(|chunk| chunk.meta.id).collect()
}

/// Whether a memtable has a whole partition whose rows are older than their table keeps, or keeps hot where there
/// `is_cold` storage.
pub(crate) fn has_due_rows(memtable: &Memtable, catalog: &Catalog, is_cold: bool, now: Timestamp) -> bool {
    memtable.partitions().any(|(id, partition)| {
        let Some(table) = catalog.table_by_id(id) else { return false };
        let TableOptions { retention, cold_after, .. } = table.def().options;
        let range = partition.range;
        is_over(range.end, retention, now)
            || (is_cold && is_over(range.end.max(day_of(range.start).end), cold_after, now))
    })
}

/// Whether it ended at least so long ago; an age of 0 never comes.
fn is_over(end: Timestamp, age: i64, now: Timestamp) -> bool {
    age > 0 && end.as_nanos() <= now.as_nanos().saturating_sub(age)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::catalog::{CatalogRequest, NewTable};
    use crate::cold::DAY;
    use crate::storage::LocalStorage;
    use sonde_storage_format::{ChunkMeta, ColdFile, RowsRecord, SeqNo, SeqRange, SeriesId, TableKind};

    const HOUR: i64 = DAY / 24;

    /// A catalog of one table of events, and its id.
    fn catalog(options: TableOptions) -> (Catalog, TableId) {
        catalog_of(TableKind::Events, options)
    }

    fn catalog_of(kind: TableKind, options: TableOptions) -> (Catalog, TableId) {
        let new = NewTable {
            database: "public".into(),
            name: "t".into(),
            kind,
            open: true,
            options,
            columns: Vec::new(),
        };
        let mut catalog = Catalog::default();
        let changes = catalog.plan(&CatalogRequest::CreateTable(new)).unwrap();
        changes.iter().for_each(|change| catalog.apply(change));
        let table = catalog.table("public", "t").unwrap().id();
        (catalog, table)
    }

    fn at(nanos: i64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    /// A table of chunks of an hour each, given by (hour, bytes) in the order in which they were written, and of one
    /// cold day, the first; chunks are named by their place.
    fn version(table: TableId, chunks: &[(i64, u64)]) -> Version {
        let hours: Vec<_> = chunks.iter().map(|(hour, bytes)| (*hour, hour + 1, *bytes)).collect();
        version_of(table, &hours, true)
    }

    /// The same of chunks from one hour to another, full of rows; the first day is cold where it `is_cold`.
    fn version_of(table: TableId, chunks: &[(i64, i64, u64)], is_cold: bool) -> Version {
        let mut files = TableFiles::default();
        for (i, (start, end, bytes)) in chunks.iter().enumerate() {
            let seq = SeqNo(10 * i as u64 + 1);
            let range = TimeRange { start: at(start * HOUR), end: at(end * HOUR) };
            let meta = ChunkMeta {
                id: ChunkId(i as u64),
                table,
                range,
                times: (range.start, at(end * HOUR - 1)),
                seq: SeqRange { first: seq, last: seq.plus(8) },
                rows: 1,
                series: 1,
                bytes: *bytes,
                columns: Vec::new(),
            };
            let chunk = Arc::new(Chunk::new(meta, "never opened".into(), Arc::new(LocalStorage)));
            chunk.keep();
            Arc::make_mut(files.partitions.entry((range.start, range.end)).or_default()).push(chunk);
        }
        if is_cold {
            let day = day_of(at(0));
            let cold = ColdFile { table, day, position: SeqNo(0), path: "p".into(), rows: 1, bytes: 1 };
            files.cold.insert(day.start, Arc::new(cold));
        }
        Version { files: [(table, Arc::new(files))].into(), ..Version::default() }
    }

    /// The chunks that expire, those that are evicted, and how many cold days go.
    fn gone(version: &Version, catalog: &Catalog, now: i64) -> (Vec<u64>, Vec<u64>, usize) {
        let expired = expired(version, catalog, at(now));
        let evicted = expired.evicted.iter().map(|chunk| chunk.meta.id.0).collect();
        (expired.chunks.iter().map(|(_, id)| id.0).collect(), evicted, expired.cold.len())
    }

    #[test]
    fn retention_counts_from_the_end_of_a_file() {
        let (kept, id) = catalog(TableOptions { retention: 2 * HOUR, ..TableOptions::default() });
        let version = version(id, &[(0, 1), (1, 1), (40, 1)]);
        assert_eq!(gone(&version, &kept, 3 * HOUR - 1), (vec![], vec![], 0));
        assert_eq!(gone(&version, &kept, 3 * HOUR), (vec![0], vec![], 0));
        assert_eq!(gone(&version, &kept, 26 * HOUR), (vec![0, 1], vec![], 1));
        let (for_ever, _) = catalog(TableOptions::default());
        assert_eq!(gone(&version, &for_ever, i64::MAX), (vec![], vec![], 0));
        assert_eq!(gone(&version, &Catalog::default(), 0), (vec![0, 1, 2], vec![], 1), "dropped");
    }

    #[test]
    fn over_its_budget_a_table_loses_what_was_written_first() {
        let budget = |max_bytes: i64| catalog(TableOptions { max_bytes, ..TableOptions::default() });
        // The third was written last but one, for the first hour.
        let chunks = [(5, 10), (6, 10), (0, 10), (7, 10)];
        let evicted = |max_bytes: i64| {
            let (catalog, id) = budget(max_bytes);
            gone(&version(id, &chunks), &catalog, 0).1
        };
        assert_eq!(evicted(0), [] as [u64; 0], "0 is without a limit");
        assert_eq!(evicted(40), [] as [u64; 0]);
        assert_eq!(evicted(39), [0]);
        assert_eq!(evicted(30), [0]);
        assert_eq!(evicted(11), [0, 1, 2]);
        assert_eq!(evicted(1), [0, 1, 2], "the newest stays");
        // What goes anyway is no eviction, and makes room.
        let options = TableOptions { max_bytes: 30, retention: HOUR, ..TableOptions::default() };
        let (catalog, id) = catalog(options);
        assert_eq!(gone(&version(id, &chunks), &catalog, 6 * HOUR), (vec![2], vec![], 0));
    }

    #[test]
    fn a_chunk_of_points_waits_for_what_is_older_below_it() {
        let options = TableOptions { retention: HOUR, ..TableOptions::default() };
        let (catalog, id) = catalog_of(TableKind::Points, options);
        let gone_at = |chunks: &[(i64, i64)], is_cold: bool, hour: i64| {
            let chunks: Vec<_> = chunks.iter().map(|(start, end)| (*start, *end, 1)).collect();
            let (gone, _, days) = gone(&version_of(id, &chunks, is_cold), &catalog, hour * HOUR);
            (gone, days)
        };
        let over_wide = [(0, 8), (0, 1)];
        assert_eq!(gone_at(&over_wide, false, 8), (vec![], 0));
        assert_eq!(gone_at(&over_wide, false, 9), (vec![0, 1], 0));
        let under_wide = [(0, 1), (0, 8)];
        assert_eq!(gone_at(&under_wide, false, 8), (vec![0], 0), "what lies above it is what is seen");
        assert_eq!(gone_at(&[(1, 8), (0, 1)], false, 8), (vec![1], 0), "beside it");
        // The last one waits for one that waits itself.
        assert_eq!(gone_at(&[(5, 10), (3, 6), (2, 4)], false, 7), (vec![], 0));
        assert_eq!(gone_at(&[(5, 10), (3, 6), (2, 4)], false, 11), (vec![0, 1, 2], 0));
        // The day goes first, then what lies over it.
        assert_eq!(gone_at(&[(3, 4), (24, 25)], true, 24), (vec![], 0));
        assert_eq!(gone_at(&[(3, 4), (24, 25)], true, 26), (vec![1], 1));
        assert_eq!(gone_at(&[(3, 4), (24, 25)], false, 26), (vec![0, 1], 0));
        assert_eq!(gone(&version(id, &[(0, 1)]), &Catalog::default(), 0), (vec![0], vec![], 1), "dropped");
    }

    #[test]
    fn a_budget_of_points_spares_what_lies_over_older_rows() {
        let budget = |options| catalog_of(TableKind::Points, options);
        let (catalog, id) = budget(TableOptions { max_bytes: 10, ..TableOptions::default() });
        // The first three lie over the cold day, or over one that does.
        let chunks = [(0, 2, 10), (20, 30, 10), (25, 26, 10), (30, 31, 10), (40, 41, 10)];
        assert_eq!(gone(&version_of(id, &chunks, true), &catalog, 0).1, [3]);
        assert_eq!(gone(&version_of(id, &chunks, false), &catalog, 0).1, [0, 1, 2, 3]);
        // What waited for one that goes for the budget goes with it, for its age.
        let options = TableOptions { max_bytes: 10, retention: HOUR, ..TableOptions::default() };
        let (catalog, id) = budget(options);
        let chunks = [(0, 8, 10), (0, 1, 10), (40, 41, 10)];
        assert_eq!(gone(&version_of(id, &chunks, false), &catalog, 4 * HOUR), (vec![], vec![0, 1], 0));
    }

    proptest::proptest! {
        /// Of every instant the row that was seen is seen, or none.
        #[test]
        fn nothing_that_was_overwritten_comes_back(
            spans in proptest::collection::vec((0_i64..40, 1_i64..20, 1_u64..9), 1..12),
            is_cold in proptest::bool::ANY,
            retention in 0_i64..50,
            max_bytes in 0_i64..60,
        ) {
            let options = TableOptions { retention: retention * HOUR, max_bytes, ..TableOptions::default() };
            let (catalog, id) = catalog_of(TableKind::Points, options);
            let chunks: Vec<_> =
                spans.iter().map(|(start, hours, bytes)| (*start, start + hours, *bytes)).collect();
            let version = version_of(id, &chunks, is_cold);
            let expired = expired(&version, &catalog, at(60 * HOUR));
            let evicted: Vec<ChunkId> = expired.evicted.iter().map(|chunk| chunk.meta.id).collect();
            let goes = |chunk: usize| {
                let chunk = ChunkId(chunk as u64);
                evicted.contains(&chunk) || expired.chunks.contains(&(id, chunk))
            };
            for hour in 0..60 {
                let has = |(_, (start, end, _)): &(usize, &(i64, i64, u64))| (*start..*end).contains(&hour);
                let of_hour = chunks.iter().enumerate().filter(has);
                let of_hour: Vec<usize> = of_hour.map(|(chunk, _)| chunk).collect();
                let Some(newest) = of_hour.last() else { continue };
                if goes(*newest) {
                    // The cold day is there until it has gone itself.
                    proptest::prop_assert!(of_hour.iter().all(|chunk| goes(*chunk)));
                    proptest::prop_assert!(!is_cold || hour >= 24);
                }
            }
        }
    }

    #[test]
    fn memtables_are_due_with_a_whole_partition() {
        let options = TableOptions { partition: HOUR, cold_after: DAY, ..TableOptions::default() };
        let (cooled, id) = catalog(options);
        let mut memtable = Memtable::default();
        let rows = RowsRecord {
            table: id,
            origin: sonde_storage_format::Origin::Client,
            first_seq: SeqNo(1),
            seq_offsets: vec![0],
            series: vec![SeriesId(0)],
            times: vec![90 * HOUR + 1],
            columns: Vec::new(),
        };
        memtable.insert(rows, HOUR);
        // The day ends at hour 96, and is due a day later.
        let due = |catalog: &Catalog, is_cold: bool, hours: i64| {
            has_due_rows(&memtable, catalog, is_cold, at(hours * HOUR))
        };
        assert!(!due(&cooled, true, 119) && due(&cooled, true, 120));
        assert!(!due(&cooled, false, 120), "nowhere to go");
        let (kept, _) = catalog(TableOptions { cold_after: 0, retention: 2 * HOUR, ..options });
        assert!(!due(&kept, true, 92) && due(&kept, true, 93));
        assert!(!due(&Catalog::default(), true, 1000));
    }
}
