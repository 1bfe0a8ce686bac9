//! Which files come and go, and in which order their rows count. Each test is the shape of a bug that there was.

use std::time::{Duration, Instant};

use sonde_engine::limits::COMPACT_CHUNKS;
use sonde_engine::{CatalogRequest, Engine, Error, TableId, TableKind, TableOptions, Timestamp, path};

use sonde_storage_format::ChunkReader;

use crate::data::{DAY, HOUR, START, Value, create, new_table, put, read_all, rec, table};
use crate::store::{Manual, Store, files, files_below};

fn value(engine: &Engine, device: &str, time: i64) -> Option<Value> {
    let rows = read_all(engine, "t");
    let row = rows
        .iter()
        .find(|row| row.tags.get("device").map(String::as_str) == Some(device) && row.time == time);
    row.and_then(|row| row.fields.get("i").cloned())
}

fn set(engine: &Engine, device: &str, time: i64, value: i64) {
    put(engine, "t", &[rec(&[("device", device)], time, &[("i", Value::Int(value))])]);
}

fn set_partition(engine: &Engine, id: TableId, partition: i64) {
    let options = TableOptions { partition, ..TableOptions::default() };
    engine.change_catalog(CatalogRequest::SetOptions(id, options)).unwrap();
}

/// A width that changes while rows are in memory: partitions that start together had one entry, of the old width, and
/// of two that overlapped the one that starts first counted as the older one.
#[test]
fn a_new_partition_width_waits_for_the_next_memtable() {
    let start = START - START.rem_euclid(7 * DAY);
    for widths in [[DAY, 7 * DAY], [7 * DAY, HOUR], [HOUR, 7 * DAY], [DAY, HOUR]] {
        let store = Store::new();
        let engine = store.open();
        let id = create(&engine, "t", widths[0]).id();
        let times = [start, start + HOUR, start + 25 * HOUR, start + 6 * DAY];
        times.iter().for_each(|time| set(&engine, "d", *time, 1));
        set_partition(&engine, id, widths[1]);
        times.iter().for_each(|time| set(&engine, "d", *time, 2));
        set_partition(&engine, id, widths[0]);
        set(&engine, "d", times[1], 3);
        let check = |engine: &Engine| {
            let found = times.map(|time| value(engine, "d", time));
            assert_eq!(found, [2, 3, 2, 2].map(|value| Some(Value::Int(value))), "{widths:?}");
        };
        check(&engine);
        let engine = store.restart(engine);
        check(&engine);
        engine.flush().unwrap();
        check(&engine);
        check(&store.reopen(engine));
    }
}

/// Chunks of two widths overlap; merging those of one width over one of the other in between put old rows on top.
#[test]
fn a_merge_does_not_reach_over_a_chunk_between() {
    let start = START - START.rem_euclid(7 * DAY);
    for last in [DAY, 7 * DAY] {
        let store = Store::new();
        let engine = store.open();
        let id = create(&engine, "t", DAY).id();
        for (round, partition) in [DAY, 7 * DAY, DAY, DAY, 7 * DAY].into_iter().enumerate() {
            set_partition(&engine, id, partition);
            set(&engine, "d", start, round as i64);
            set(&engine, "d", start + 2 * DAY, round as i64);
            set(&engine, ["a", "b", "c", "d", "e"][round], start, round as i64);
            engine.flush().unwrap();
        }
        let check = |engine: &Engine| {
            assert_eq!(value(engine, "d", start), Some(Value::Int(4)));
            assert_eq!(value(engine, "d", start + 2 * DAY), Some(Value::Int(4)));
            assert_eq!(value(engine, "b", start), Some(Value::Int(1)));
        };
        check(&engine);
        assert_eq!(engine.chunks().len(), 8);
        set_partition(&engine, id, last);
        engine.compact(id).unwrap();
        // The weeks are split into days, or the days are taken in by the week.
        assert_eq!(engine.chunks().len(), if last == DAY { 2 } else { 1 });
        check(&engine);
        check(&store.reopen(engine));
    }
}

/// The same without a change of width: cooling splits a week into days, and new weeks come.
#[test]
fn a_merge_after_cooling_keeps_the_order() {
    let start = START - START.rem_euclid(7 * DAY);
    let store = Store::new();
    let engine = store.open();
    let id = create(&engine, "t", 7 * DAY).id();
    let day5 = start + 5 * DAY;
    let cool = |before: i64| engine.cool(id, Timestamp::from_nanos(before)).unwrap();
    set(&engine, "d", start, 0);
    set(&engine, "d", day5, 1);
    assert_eq!(cool(start + DAY), 1);
    set(&engine, "d", day5, 2);
    engine.flush().unwrap();
    set(&engine, "d", start + DAY, 0);
    set(&engine, "d", day5, 3);
    assert_eq!(cool(start + 2 * DAY), 1);
    assert_eq!(value(&engine, "d", day5), Some(Value::Int(3)));
    engine.compact(id).unwrap();
    assert_eq!(value(&engine, "d", day5), Some(Value::Int(3)));
    assert_eq!(cool(start + 7 * DAY), 1);
    assert_eq!(value(&engine, "d", day5), Some(Value::Int(3)));
}

/// Large strings made pages beyond what a reader takes, and overflowed the offsets of a column.
#[test]
fn large_strings_make_small_row_groups() {
    let store = Store::new();
    let engine = store.open();
    let id = create(&engine, "t", DAY).id();
    let text = |i: usize| Value::Text(format!("{i}").repeat(3 << 20));
    for i in 0..15 {
        put(&engine, "t", &[rec(&[("device", "d")], START + i as i64, &[("s", text(i))])]);
        if i % 5 == 4 {
            engine.flush().unwrap();
        }
    }
    engine.compact(id).unwrap();
    let chunk = std::fs::read(&files(&store.dir(path::CHUNK_DIR))[0]).unwrap();
    let columns = ChunkReader::open(&chunk).unwrap().columns().unwrap();
    assert_eq!(columns[0].pages.len(), 2, "32 MiB of strings end a row group");
    let rows = read_all(&engine, "t");
    assert_eq!(rows.len(), 15);
    assert!(rows.iter().enumerate().all(|(i, row)| row.fields["s"] == text(i)));
    engine.cool(id, Timestamp::from_nanos(START + DAY)).unwrap();
    assert!(read_all(&engine, "t") == rows);
}

#[test]
fn merged_chunks_go_when_their_last_reader_has_gone() {
    let store = Store::new();
    let engine = store.open();
    let id = create(&engine, "t", DAY).id();
    for i in 0..3 {
        set(&engine, "d", START + i, i);
        engine.flush().unwrap();
    }
    let count = || files(&store.dir(path::CHUNK_DIR)).len();
    assert_eq!(count(), 3);
    let snapshot = engine.snapshot();
    engine.compact(id).unwrap();
    assert_eq!((engine.chunks().len(), count()), (1, 4));
    drop(snapshot);
    assert_eq!(count(), 1);
}

/// Names that object stores do not take as they are, or that would lead out of the tier.
#[test]
fn odd_names_go_to_the_cold_tier() {
    let store = Store::new();
    let engine = store.open();
    for name in ["Größe #1 100%", "../../out", "a/b", "*?<>", "."] {
        let id = create(&engine, name, DAY).id();
        put(&engine, name, &[rec(&[("device", "d")], START, &[("i", Value::Int(1))])]);
        assert_eq!(engine.cool(id, Timestamp::from_nanos(START + DAY)).unwrap(), 1);
        assert_eq!(read_all(&engine, name).len(), 1);
    }
    assert_eq!(files_below(&store.cold()).len(), 5);
    let engine = store.reopen(engine);
    assert_eq!(read_all(&engine, "../../out").len(), 1);
}

#[test]
fn a_cold_tier_that_refuses_leaves_the_rows_hot() {
    let store = Store::new();
    let engine = store.open();
    let id = create(&engine, "t", DAY).id();
    set(&engine, "d", START, 1);
    // A file where the tier wants a directory.
    std::fs::write(store.cold().join("public"), "in the way").unwrap();
    let before = Timestamp::from_nanos(START + DAY);
    assert!(matches!(engine.cool(id, before), Err(Error::Cold(_) | Error::Io { .. })));
    assert_eq!(value(&engine, "d", START), Some(Value::Int(1)));
    assert_eq!((engine.chunks().len(), engine.cold_files().len()), (1, 0));
    std::fs::remove_file(store.cold().join("public")).unwrap();
    assert_eq!(engine.cool(id, before).unwrap(), 1);
    assert_eq!(value(&engine, "d", START), Some(Value::Int(1)));
    // And a file that is gone is an error that names it, not an empty answer.
    let gone = files_below(&store.cold()).remove(0);
    std::fs::remove_file(&gone).unwrap();
    let error =
        crate::data::read(&engine, &engine.snapshot(), "t", &crate::data::Query::default()).unwrap_err();
    assert!(error.to_string().contains(gone.file_name().unwrap().to_str().unwrap()), "{error}");
}

#[test]
fn a_dropped_table_takes_its_files_with_it() {
    let store = Store::new();
    let engine = store.open();
    let id = create(&engine, "t", DAY).id();
    set(&engine, "d", START, 1);
    engine.cool(id, Timestamp::from_nanos(START + DAY)).unwrap();
    set(&engine, "d", START, 2);
    engine.flush().unwrap();
    set(&engine, "d", START, 3);
    engine.change_catalog(CatalogRequest::DropTable(id)).unwrap();
    assert_eq!(engine.memory(), (0, 0));
    create(&engine, "t", DAY);
    assert_eq!(read_all(&engine, "t"), []);
    set(&engine, "d", START, 4);
    let engine = store.restart(engine);
    assert_eq!(value(&engine, "d", START), Some(Value::Int(4)));
    assert_ne!(table(&engine, "t").id(), id);
    engine.close().unwrap();
    drop(engine);
    assert_eq!(files_below(&store.cold()), [] as [std::path::PathBuf; 0]);
    let engine = store.open();
    assert!(engine.chunks().iter().all(|chunk| chunk.table != id));
    assert_eq!(value(&engine, "d", START), Some(Value::Int(4)));
}

#[test]
fn retention_removes_partitions_that_have_ended() {
    let store = Store::new();
    let clock = Manual::at(START + 10 * DAY);
    let engine = store.open_by(&clock);
    let id = create(&engine, "t", DAY).id();
    for day in 0..10 {
        set(&engine, "d", START + day * DAY, day);
    }
    engine.cool(id, Timestamp::from_nanos(START + 4 * DAY)).unwrap();
    // Retention is looked at when a table is dropped; the merge behind it waits for it.
    let retain = |retention: i64, now: i64| {
        clock.set(now);
        let options = TableOptions { retention, ..TableOptions::default() };
        engine.change_catalog(CatalogRequest::SetOptions(id, options)).unwrap();
        let other = create(&engine, "other", DAY).id();
        engine.change_catalog(CatalogRequest::DropTable(other)).unwrap();
        engine.compact(id).unwrap();
        read_all(&engine, "t").len()
    };
    assert_eq!(retain(0, START + 100 * DAY), 10);
    assert_eq!(retain(8 * DAY, START + 10 * DAY - 1), 9);
    assert_eq!(retain(8 * DAY, START + 10 * DAY), 8);
    assert_eq!(engine.cold_files().len(), 2);
    assert_eq!(retain(3 * DAY, START + 10 * DAY), 3);
    assert_eq!((engine.cold_files().len(), engine.chunks().len()), (0, 3));
    engine.close().unwrap();
    drop(engine);
    assert_eq!(files_below(&store.cold()), [] as [std::path::PathBuf; 0]);
    assert_eq!(read_all(&store.open(), "t").len(), 3);
}

/// What nobody asks for: small chunks are merged, and old days go to the cold tier, while the engine runs.
#[test]
fn chunks_are_merged_and_cooled_by_themselves() {
    let store = Store::new();
    let engine = store.open();
    let mut tables = ["merged", "cooled"].map(|name| new_table(name, TableKind::Points, DAY));
    tables[1].options.cold_after = DAY;
    for table in tables {
        engine.change_catalog(CatalogRequest::CreateTable(table)).unwrap();
    }
    let row = |i: i64| rec(&[("device", "d")], START, &[("i", Value::Int(i))]);
    for i in 0..COMPACT_CHUNKS as i64 {
        put(&engine, "merged", &[row(i)]);
        put(&engine, "cooled", &[row(i)]);
        engine.flush().unwrap();
    }
    let merged = table(&engine, "merged").id();
    let deadline = Instant::now() + Duration::from_secs(60);
    while engine.cold_files().len() != 1
        || engine.chunks().iter().filter(|chunk| chunk.table == merged).count() != 1
    {
        assert!(Instant::now() < deadline, "{:?} {:?}", engine.chunks(), engine.cold_files());
        std::thread::yield_now();
    }
    assert_eq!(read_all(&engine, "merged"), [row(COMPACT_CHUNKS as i64 - 1)]);
    assert_eq!(read_all(&engine, "cooled"), [row(COMPACT_CHUNKS as i64 - 1)]);
}
