//! Series and the memory that they may take: beyond it new ones are refused, and nothing else is.

use std::borrow::Cow;
use std::sync::Arc;

use sonde_engine::{BatchSeries, CatalogRequest, Engine, Error, Row, Table, Timestamp, WriteBatchBuilder};

use crate::data::{DAY, START, Value, create, message, put, read_all, rec, table, write};
use crate::store::Store;

fn device(i: usize) -> String {
    format!("device-number-{i:08}")
}

/// Adds a row of a device to a batch.
fn add(batch: &mut WriteBatchBuilder, table: &Arc<Table>, name: &str) -> Result<BatchSeries, Error> {
    let tag = table.column("device").unwrap().id;
    let tags = [(tag, Cow::Borrowed(name))];
    batch.row(table, &Row { time: Timestamp::from_nanos(START), tags: &tags, fields: &[] }, None)
}

/// Writes one new series after the other, a hundred to a batch, until one is refused; how many there are then.
fn fill(engine: &Engine, name: &str) -> (usize, Error) {
    let table = table(engine, name);
    let mut next = engine.series_count(table.id());
    loop {
        let mut batch = engine.batch();
        batch.begin_message();
        let refused = (0..100).find_map(|i| add(&mut batch, &table, &device(next + i)).err());
        if let Some(batch) = batch.finish() {
            engine.write(batch).wait().unwrap();
        }
        next = engine.series_count(table.id());
        if let Some(error) = refused {
            return (next, error);
        }
    }
}

fn row(i: usize, value: i64) -> crate::data::Rec {
    rec(&[("device", &device(i))], START + value, &[("i", Value::Int(value))])
}

#[test]
fn series_have_a_share_of_memory() {
    let mut store = Store::new();
    store.options.series_bytes = 100 << 10;
    let engine = store.open();
    for name in ["t", "other"] {
        create(&engine, name, DAY);
    }
    let (count, refused) = fill(&engine, "t");
    assert!((500..1200).contains(&count), "{count}");
    assert!(
        matches!(&refused, Error::SeriesMemory { table, limit, .. } if table == "public.t" && *limit == 100 << 10),
        "{refused}"
    );
    assert!(!refused.is_transient());
    let Error::SeriesMemory { series, .. } = &refused else { unreachable!("{refused}") };
    assert!(*series as usize <= count && *series as usize > count - 100, "{series} of {count}");
    let text = refused.to_string();
    for part in [
        "public.t",
        &format!("which has {series}"),
        "0.10 MiB",
        "memory.limit",
        "stored as before",
        "drop tables",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (used, limit) = engine.series_memory();
    assert!(used <= limit && used > limit - 200, "{used} of {limit}");

    // Of every table no new series but the one without tags; rows of those that there are go on, of the same batch too.
    let check = |engine: &Engine| {
        assert!(matches!(write(engine, &message("other", &[row(0, 1)])), Err(Error::SeriesMemory { .. })));
        put(engine, "other", &[rec(&[], START, &[("i", Value::Int(1))])]);
        let t = table(engine, "t");
        let mut batch = engine.batch();
        batch.begin_message();
        add(&mut batch, &t, &device(0)).unwrap();
        assert!(matches!(add(&mut batch, &t, &device(count)), Err(Error::SeriesMemory { .. })));
        add(&mut batch, &t, &device(count - 1)).unwrap();
        engine.write(batch.finish().unwrap()).wait().unwrap();
        assert_eq!(engine.series_count(t.id()), count);
    };
    check(&engine);
    let engine = store.restart(engine);
    check(&engine);
    let engine = store.reopen(engine);
    check(&engine);
    let rows = read_all(&engine, "t");
    assert_eq!(rows.len(), count, "nothing that was acknowledged is lost");

    // A table that goes makes room.
    let t = table(&engine, "t").id();
    engine.change_catalog(CatalogRequest::DropTable(t)).unwrap();
    put(&engine, "other", &[row(0, 1)]);
    assert!(engine.series_memory().0 < limit / 2);
}

#[test]
fn more_than_the_share_is_opened_and_read() {
    let mut store = Store::new();
    let engine = store.open();
    create(&engine, "t", DAY);
    put(&engine, "t", &(0..500).map(|i| row(i, 1)).collect::<Vec<_>>());
    drop(engine);
    store.options.series_bytes = 1 << 10;
    for flushed in [false, true] {
        let mut engine = store.open();
        if flushed {
            engine = store.reopen(engine);
        }
        let (used, limit) = engine.series_memory();
        assert!(used > 50 * limit, "{used} of {limit}");
        put(&engine, "t", &[row(7, 2)]);
        assert!(matches!(write(&engine, &message("t", &[row(500, 2)])), Err(Error::SeriesMemory { .. })));
        assert_eq!(read_all(&engine, "t").len(), 501);
    }
}

/// What batches will add is reserved, so that they do not exceed the share together; what is not committed is given back.
#[test]
fn batches_that_are_built_at_once_share_the_room() {
    let mut store = Store::new();
    store.options.series_bytes = 16 << 10;
    let engine = store.open();
    let t = create(&engine, "t", DAY);
    let mut batches: Vec<WriteBatchBuilder> = (0..4).map(|_| engine.batch()).collect();
    let mut added = 0;
    'full: loop {
        for batch in &mut batches {
            if add(batch, &t, &device(added)).is_err() {
                break 'full;
            }
            added += 1;
        }
    }
    drop(batches.pop());
    let mut more = engine.batch();
    let again = (0..added).take_while(|i| add(&mut more, &t, &device(added + i)).is_ok()).count();
    assert!(again >= added / 4 && again <= added / 4 + 1, "{again} of {added}");
    batches.push(more);
    for batch in batches {
        engine.write(batch.finish().unwrap()).wait().unwrap();
    }
    assert!(engine.series_count(t.id()) >= added);
    let (used, limit) = engine.series_memory();
    assert!(used <= limit, "{used} of {limit}");
}
