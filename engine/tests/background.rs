//! What happens without being asked: it keeps no one waiting, and its failures are seen and stay by themselves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sonde_engine::limits::COMPACT_CHUNKS;
use sonde_engine::{CatalogRequest, Engine, Error, TableId, TableKind, TableOptions, path};

use crate::data::{
    DAY, HOUR, Rec, SECOND, START, Value, create, message, new_table, put, read_all, rec, table, write,
};
use crate::faults::{Fault, Faulty};
use crate::store::{Manual, Store, wait_until};

const MINUTE: i64 = 60 * SECOND;

/// Versions of one point.
fn row(i: i64) -> Rec {
    rec(&[("device", "d")], START, &[("i", Value::Int(i))])
}

fn create_with(engine: &Engine, name: &str, kind: TableKind, options: TableOptions) -> TableId {
    let mut new = new_table(name, kind, options.partition);
    new.options = options;
    engine.change_catalog(CatalogRequest::CreateTable(new)).unwrap();
    table(engine, name).id()
}

fn chunks_of(engine: &Engine, table: TableId) -> usize {
    engine.chunks().iter().filter(|chunk| chunk.table == table).count()
}

/// Damages a table's oldest chunk, so that what reads its rows fails.
fn damage(store: &Store, engine: &Engine, table: TableId) {
    let chunks = engine.chunks();
    let of_table = chunks.iter().filter(|chunk| chunk.table == table);
    let oldest = of_table.min_by_key(|chunk| chunk.seq.first).unwrap();
    let path = store.dir(path::CHUNK_DIR).join(path::chunk(oldest.id));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

/// Whoever waited for the flush waited for ten minutes, and the server said that it was ready.
#[test]
fn a_panic_of_the_flush_thread_fails_the_engine() {
    let store = Store::new();
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    create(&engine, "t", DAY);
    put(&engine, "t", &[row(1)]);
    disk.set(Fault::Panic(".chunk"));
    let started = Instant::now();
    let error = engine.flush().unwrap_err();
    assert!(matches!(&error, Error::Failed(why) if why.contains("sonde-flush")), "{error}");
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    assert!(matches!(engine.health(), Err(Error::Failed(_))));
    assert!(matches!(write(&engine, &message("t", &[row(2)])), Err(Error::Failed(_))));
    assert_eq!(read_all(&engine, "t"), [row(1)]);
    assert!(matches!(engine.close(), Err(Error::Failed(_))));
    drop(engine);
    let engine = store.open();
    engine.flush().unwrap();
    assert_eq!(read_all(&engine, "t"), [row(1)]);
}

#[test]
fn a_panic_of_the_job_thread_fails_the_engine() {
    let store = Store::new();
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    let id = create(&engine, "t", DAY).id();
    for i in 0..2 {
        put(&engine, "t", &[row(i)]);
        engine.flush().unwrap();
    }
    disk.set(Fault::Panic(".chunk"));
    assert!(engine.compact(id).is_err());
    failed_for(&store, engine, "sonde-jobs", |engine| engine.compact(id));
}

/// The engine stays failed and says which thread it was; what was acknowledged is there when it is opened again.
fn failed_for(store: &Store, engine: Engine, thread: &str, ask: impl Fn(&Engine) -> Result<(), Error>) {
    wait_until("the failure", || engine.health().is_err());
    let error = ask(&engine).unwrap_err();
    assert!(matches!(&error, Error::Failed(why) if why.contains(thread)), "{error}");
    drop(engine);
    assert_eq!(read_all(&store.open(), "t"), [row(1)]);
}

#[test]
fn a_panic_of_the_writer_fails_the_engine() {
    let store = Store::new();
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    create(&engine, "t", DAY);
    put(&engine, "t", &[row(1)]);
    disk.set(Fault::Panic(".wal"));
    assert!(write(&engine, &message("t", &[row(2)])).is_err());
    failed_for(&store, engine, "sonde-writer", |engine| engine.flush());
}

/// Writes were refused, as if the disk were full, while a merge or a cooling took its minutes.
#[test]
fn a_flush_does_not_wait_for_a_merge() {
    let store = Store::new();
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    let id = create(&engine, "t", DAY).id();
    for i in 0..2 {
        put(&engine, "t", &[row(i)]);
        engine.flush().unwrap();
    }
    disk.hold_next_write_of(".chunk");
    let merge = {
        let engine = engine.clone();
        std::thread::spawn(move || engine.compact(id))
    };
    disk.wait_held();
    put(&engine, "t", &[row(2)]);
    engine.flush().unwrap();
    assert_eq!((engine.memory(), engine.chunks().len()), ((0, 0), 3));
    assert_eq!(read_all(&engine, "t"), [row(2)]);
    disk.release_write();
    merge.join().unwrap().unwrap();
    // What the flush added is no part of the merge, and stays newer than it.
    assert_eq!(engine.chunks().len(), 2);
    assert_eq!(read_all(&engine, "t"), [row(2)]);
    engine.compact(id).unwrap();
    assert_eq!(read_all(&store.reopen(engine), "t"), [row(2)]);
}

#[test]
fn rows_that_come_slowly_are_flushed_within_the_hour() {
    let store = Store::new();
    let clock = Manual::at(START);
    let engine = store.open_by(&clock);
    create(&engine, "t", DAY);
    put(&engine, "t", &[row(1)]);
    wait_until("the flush", || {
        clock.go_on(MINUTE);
        engine.memory() == (0, 0)
    });
    assert!(clock.now_nanos() >= START + HOUR);
    assert_eq!((engine.chunks().len(), read_all(&engine, "t")), (1, vec![row(1)]));
}

/// Retention and the cold tier only look at files.
#[test]
fn rows_that_are_due_do_not_stay_in_memory() {
    let store = Store::new();
    let clock = Manual::at(START + 3 * DAY);
    let engine = store.open_by(&clock);
    let of = |retention, cold_after| TableOptions { retention, cold_after, ..TableOptions::default() };
    create_with(&engine, "dropped", TableKind::Points, of(DAY, 0));
    create_with(&engine, "cooled", TableKind::Points, of(0, DAY));
    create_with(&engine, "kept", TableKind::Points, of(0, 0));
    for name in ["dropped", "cooled", "kept"] {
        put(&engine, name, &[row(1)]);
    }
    wait_until("the end of rows that are due", || {
        clock.go_on(MINUTE);
        read_all(&engine, "dropped").is_empty() && engine.cold_files().len() == 1
    });
    assert!(clock.now_nanos() >= START + 3 * DAY + 5 * MINUTE, "not at once");
    assert_eq!(read_all(&engine, "cooled"), [row(1)]);
    assert_eq!((read_all(&engine, "kept"), engine.chunks().len()), (vec![row(1)], 1));
}

/// Rows that came since the flush are no part of what goes, so the position is not theirs.
#[test]
fn a_cold_day_covers_what_is_flushed_and_no_more() {
    let store = Store::new();
    let clock = Manual::at(START + 3 * DAY);
    let engine = store.open_by(&clock);
    let options = TableOptions { cold_after: DAY, ..TableOptions::default() };
    create_with(&engine, "t", TableKind::Points, options);
    let flushed = put(&engine, "t", &[row(1)]);
    engine.flush().unwrap();
    let today = rec(&[("device", "d")], clock.now_nanos(), &[("i", Value::Int(2))]);
    let later = put(&engine, "t", std::slice::from_ref(&today));
    clock.go_on(2 * MINUTE);
    wait_until("cooling", || engine.cold_files().len() == 1);
    let position = engine.cold_files()[0].position;
    assert!(flushed.last <= position && position < later.first, "{position:?} {later:?}");
    assert_eq!(read_all(&store.restart(engine), "t"), [row(1), today]);
}

#[test]
fn a_table_over_its_budget_loses_its_oldest_rows_and_counts_them() {
    let store = Store::new();
    let engine = store.open();
    let options = TableOptions { partition: HOUR, max_bytes: 1, ..TableOptions::default() };
    let id = create_with(&engine, "letters", TableKind::Events, options);
    let other = create(&engine, "other", DAY).id();
    let letter = |i: i64| rec(&[("device", "d")], START + i * HOUR, &[("i", Value::Int(i))]);
    for i in 0..4 {
        put(&engine, "letters", &[letter(i), letter(i)]);
        engine.flush().unwrap();
    }
    // Budgets are looked at when a table is dropped; the merge behind it waits for it.
    engine.change_catalog(CatalogRequest::DropTable(other)).unwrap();
    engine.compact(id).unwrap();
    assert_eq!(engine.chunks().len(), 1, "the newest stays, however large it is");
    assert_eq!(read_all(&engine, "letters"), [letter(3), letter(3)]);
    assert_eq!((engine.evicted(id), engine.evicted(other)), (6, 0));
    assert_eq!(read_all(&store.reopen(engine), "letters").len(), 2);
}

/// One table that could not cool stopped all that came behind it.
#[test]
fn a_table_that_cannot_cool_stops_no_other() {
    let store = Store::new();
    let clock = Manual::at(START);
    let engine = store.open_by(&clock);
    let options = TableOptions { cold_after: DAY, ..TableOptions::default() };
    let [bad, good] = ["bad", "good"].map(|name| create_with(&engine, name, TableKind::Points, options));
    let next_day = rec(&[("device", "d")], START + DAY, &[("i", Value::Int(2))]);
    for name in ["bad", "good"] {
        put(&engine, name, &[row(1), next_day.clone()]);
    }
    engine.flush().unwrap();
    // The first chunk is that of the first day, which is the first to be moved.
    damage(&store, &engine, bad);
    clock.set(START + 10 * DAY);
    wait_until("cooling", || {
        clock.go_on(MINUTE);
        engine.cold_files().len() == 3
    });
    assert_eq!((chunks_of(&engine, bad), chunks_of(&engine, good)), (1, 0));
    assert_eq!(read_all(&engine, "good"), [row(1), next_day]);
    assert!(engine.cool(bad, sonde_engine::Timestamp::MAX).is_err());
    engine.health().unwrap();
}

/// A merge that failed was chosen again every second, and no other had its turn.
#[test]
fn a_merge_that_cannot_be_done_stops_no_other() {
    let store = Store::new();
    let engine = store.open();
    let [bad, good] = ["bad", "good"].map(|name| create(&engine, name, DAY).id());
    let add = |name: &str, i: i64| {
        put(&engine, name, &[row(i)]);
        engine.flush().unwrap();
    };
    let many = COMPACT_CHUNKS as i64;
    for i in 1..many {
        add("bad", i);
        add("good", i);
    }
    damage(&store, &engine, bad);
    // With the most chunks it is always the first choice.
    (0..3).for_each(|i| add("bad", many + i));
    add("good", many);
    wait_until("the merge", || chunks_of(&engine, good) == 1);
    assert_eq!(chunks_of(&engine, bad), COMPACT_CHUNKS + 2);
    assert_eq!(read_all(&engine, "good"), [row(many)]);
    assert!(matches!(engine.compact(bad), Err(Error::Corrupt { .. })));
}
