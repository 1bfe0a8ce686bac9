//! Which rows are due: files that have outlived their table's retention or budget, memtables that should become files.
//!
//! # Invariants
//! - Pure functions. Whoever calls them reads the version before the catalog: a table of the version that the catalog
//!   does not know was dropped, and is none that was made since.
//! - Over its budget a table loses what was written first, so no row comes back that a later one had overwritten.

use std::sync::Arc;

use sonde_storage_format::{ChunkId, TableId, TableOptions, TimeRange, Timestamp};

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
        let options = catalog.table_by_id(*id).map(|table| table.def().options);
        let gone = |end: Timestamp| options.is_none_or(|options| is_over(end, options.retention, now));
        let chunks = files.chunks().filter(|chunk| gone(chunk.meta.range.end));
        expired.chunks.extend(chunks.map(|chunk| (*id, chunk.meta.id)));
        let days = files.cold.values().filter(|file| gone(file.day.end));
        expired.cold.extend(days.map(|file| (*id, file.day)));
        let max_bytes = options.map_or(0, |options| options.max_bytes.unsigned_abs());
        if max_bytes > 0 {
            expired.evicted.extend(over_budget(files, max_bytes, |chunk| !gone(chunk.meta.range.end)));
        }
    }
    expired
}

/// The chunks that have to go, of those that would `stay`, so that the others have at most so many bytes. The newest
/// one stays in any case.
fn over_budget(files: &TableFiles, max_bytes: u64, stay: impl Fn(&Chunk) -> bool) -> Vec<Arc<Chunk>> {
    let mut chunks: Vec<&Arc<Chunk>> = files.chunks().filter(|chunk| stay(chunk)).collect();
    chunks.sort_by_key(|chunk| (chunk.meta.seq.first, chunk.meta.range.start));
    let mut bytes: u64 = chunks.iter().map(|chunk| chunk.meta.bytes).sum();
    chunks.pop();
    let over = |chunk: &&Arc<Chunk>| {
        let over = bytes > max_bytes;
        bytes -= chunk.meta.bytes;
        over
    };
    chunks.into_iter().take_while(over).cloned().collect()
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

    /// A catalog of one table, and its id.
    fn catalog(options: TableOptions) -> (Catalog, TableId) {
        let new = NewTable {
            database: "public".into(),
            name: "t".into(),
            kind: TableKind::Events,
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
        let mut files = TableFiles::default();
        for (i, (hour, bytes)) in chunks.iter().enumerate() {
            let seq = SeqNo(10 * i as u64 + 1);
            let range = TimeRange { start: at(hour * HOUR), end: at((hour + 1) * HOUR) };
            let meta = ChunkMeta {
                id: ChunkId(i as u64),
                table,
                range,
                times: (range.start, range.start),
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
        let day = day_of(at(0));
        let cold = ColdFile { table, day, position: SeqNo(0), path: "p".into(), rows: 1, bytes: 1 };
        files.cold.insert(day.start, Arc::new(cold));
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
