//! Hot, cold and mixed: wherever rows lie, they are the same rows.

use sonde_engine::{CatalogRequest, ColumnRole, Engine, PhysicalType, TableId, Timestamp};

use crate::data::{
    Batch, DAY, HOUR, Query, Rec, SECOND, START, Value, column, create, message, put, range, read, read_all,
    rec, table, write,
};
use crate::model::Model;
use crate::store::{Store, files_below};

const DAYS: i64 = 10;

fn cool(engine: &Engine, id: TableId, before: i64) -> usize {
    engine.cool(id, Timestamp::from_nanos(before)).unwrap()
}

/// A row of every kind for each of the days: fine times, large integers, NULLs, strings, absent tags.
fn rows(round: i64) -> Batch {
    let mut rows = Vec::new();
    for day in 0..DAYS {
        let start = START + day * DAY;
        let large = Value::UInt(u64::MAX - (day + round) as u64);
        let float = Value::float(day as f64 + round as f64 / 4.0);
        rows.push(rec(&[("site", "a"), ("device", "1")], start, &[("f", float.clone()), ("u", large)]));
        rows.push(rec(
            &[("site", "a"), ("device", "1")],
            start + 999,
            &[("f", float), ("s", Value::text("ü\0"))],
        ));
        rows.push(rec(
            &[("site", ""), ("device", "2")],
            start + 5 * HOUR + 1,
            &[("i", Value::Int(i64::MIN + round))],
        ));
        rows.push(rec(&[("device", "2")], start + DAY - 1, &[("b", Value::Bool(true)), ("f", Value::Null)]));
        rows.push(rec(&[], start + 12 * HOUR, &[]));
    }
    message("t", &rows)
}

/// Late rows of one day: a field that is overwritten, one that becomes NULL, one that was absent, a new series.
fn late(day: i64, value: i64) -> Batch {
    let start = START + day * DAY;
    let known = [("site", "a"), ("device", "1")];
    message(
        "t",
        &[
            rec(&known, start, &[("u", Value::UInt(value as u64))]),
            rec(&known, start + 999, &[("s", Value::Null), ("i", Value::Int(value))]),
            rec(&[("site", "late")], start + value, &[("f", Value::float(value as f64))]),
        ],
    )
}

fn everywhere(partition: i64) {
    let store = Store::new();
    let mut engine = store.open();
    let id = create(&engine, "t", partition).id();
    let mut model = Model::default();
    model.create("t", false);
    let add = |engine: &Engine, model: &mut Model, batch: Batch| {
        write(engine, &batch).unwrap();
        model.apply(&batch);
        check(engine, model);
    };
    add(&engine, &mut model, rows(0));
    add(&engine, &mut model, rows(1));
    engine.flush().unwrap();
    assert_eq!(engine.memory(), (0, 0));
    check(&engine, &model);
    add(&engine, &mut model, late(3, 5));
    engine = store.restart(engine);
    check(&engine, &model);
    engine.flush().unwrap();
    add(&engine, &mut model, late(2, 6));
    engine.compact(id).unwrap();
    check(&engine, &model);
    assert_eq!(cool(&engine, id, START + 5 * DAY), 5);
    assert_eq!(engine.cold_files().len(), 5);
    assert!(engine.chunks().iter().all(|chunk| chunk.times.0.as_nanos() >= START + 5 * DAY));
    check(&engine, &model);
    // Late for days that are cold: in memory, then in chunks, then in the cold file.
    add(&engine, &mut model, late(3, 7));
    add(&engine, &mut model, late(4, 8));
    engine.flush().unwrap();
    check(&engine, &model);
    engine = store.restart(engine);
    add(&engine, &mut model, late(3, 9));
    let old: Vec<String> = engine.cold_files().into_iter().map(|file| file.path).collect();
    assert_eq!(cool(&engine, id, START + 4 * DAY), 1);
    let new: Vec<String> = engine.cold_files().into_iter().map(|file| file.path).collect();
    assert_eq!(new.iter().filter(|path| old.contains(path)).count(), 4, "one day was cooled again");
    check(&engine, &model);
    engine.compact(id).unwrap();
    check(&engine, &model);
    engine = store.reopen(engine);
    check(&engine, &model);
    assert_eq!(cool(&engine, id, START + DAYS * DAY), 6);
    assert_eq!((engine.cold_files().len(), engine.chunks().len()), (10, 0));
    check(&engine, &model);
    add(&engine, &mut model, rows(2));
    engine = store.restart(engine);
    check(&engine, &model);
    engine = store.reopen(engine);
    check(&engine, &model);
    engine.close().unwrap();
    drop(engine);
    // The tier holds what the manifest names, and nothing that was replaced.
    assert_eq!(files_below(&store.cold()).len(), 10);
}

fn check(engine: &Engine, model: &Model) {
    model.check(engine);
    let snapshot = engine.snapshot();
    for (start, end) in
        [(3 * DAY, 3 * DAY + 1), (2 * DAY + 999, 4 * DAY), (0, 5 * HOUR + 2), (20 * DAY, 21 * DAY)]
    {
        let query = Query { time: range(START + start, START + end), ..Query::default() };
        model.check_query(engine, &snapshot, "t", &query);
    }
}

#[test]
fn days() {
    everywhere(DAY);
}

#[test]
fn hours() {
    everywhere(HOUR);
}

#[test]
fn weeks() {
    everywhere(7 * DAY);
}

#[test]
fn half_a_year() {
    everywhere(182 * DAY);
}

/// A scan goes on over its snapshot while its files are merged, cooled, replaced and dropped.
#[test]
fn a_snapshot_stays_as_it_was() {
    let store = Store::new();
    let engine = store.open();
    let id = create(&engine, "t", DAY).id();
    let mut model = Model::default();
    model.create("t", false);
    let mut held = Vec::new();
    for round in 0..6 {
        let batch = rows(round);
        write(&engine, &batch).unwrap();
        model.apply(&batch);
        held.push((engine.snapshot(), model.clone()));
        match round {
            0 | 1 => engine.flush().unwrap(),
            2 => engine.compact(id).unwrap(),
            3 => drop(cool(&engine, id, START + 4 * DAY)),
            4 => drop(cool(&engine, id, START + 20 * DAY)),
            _ => drop(engine.change_catalog(CatalogRequest::DropTable(id)).unwrap()),
        }
        for (snapshot, model) in &held {
            model.check_query(&engine, snapshot, "t", &Query::default());
            model.check_latest(&engine, snapshot, "t", &Query::default());
        }
    }
    assert!(engine.snapshot().catalog().table_by_id(id).is_none());
}

/// Columns that came after a day went cold are absent there, whatever their type.
#[test]
fn columns_that_came_later() {
    let store = Store::new();
    let engine = store.open();
    let id = create(&engine, "t", DAY).id();
    put(&engine, "t", &[rec(&[("site", "a")], START, &[("f", Value::float(1.0))])]);
    cool(&engine, id, START + DAY);
    let new = vec![
        column("x", ColumnRole::Field, PhysicalType::UInt64),
        column("line", ColumnRole::Tag, PhysicalType::Text),
        column("y", ColumnRole::Field, PhysicalType::Text),
    ];
    engine.change_catalog(CatalogRequest::AddColumns(id, new)).unwrap();
    put(&engine, "t", &[rec(&[("site", "a")], START, &[("x", Value::UInt(7))])]);
    put(&engine, "t", &[rec(&[("site", "a"), ("line", "l")], START, &[("y", Value::text("new"))])]);
    let expected = [
        rec(&[("site", "a")], START, &[("f", Value::float(1.0)), ("x", Value::UInt(7))]),
        rec(&[("site", "a"), ("line", "l")], START, &[("y", Value::text("new"))]),
    ];
    assert_eq!(read_all(&engine, "t"), expected);
    cool(&engine, id, START + DAY);
    assert_eq!(engine.memory().1 + engine.chunks().len(), 0);
    assert_eq!(read_all(&engine, "t"), expected);
    assert_eq!(read_all(&store.reopen(engine), "t"), expected);
}

/// More rows than a row group, a window of Parquet and a batch hold.
#[test]
fn many_rows() {
    const ROWS: i64 = 70_000;
    let store = Store::new();
    let engine = store.open();
    let id = create(&engine, "t", DAY).id();
    let row = |i: i64, value: i64| {
        rec(&[("device", ["a", "b", "c"][i as usize % 3])], START + i * SECOND, &[("i", Value::Int(value))])
    };
    let rows = |values: i64| (0..ROWS).map(|i| row(i, values + i)).collect::<Vec<Rec>>();
    put(&engine, "t", &rows(0));
    engine.flush().unwrap();
    put(&engine, "t", &rows(10)[1000..2000]);
    let mut expected = rows(0);
    expected[1000..2000].clone_from_slice(&rows(10)[1000..2000]);
    expected.sort();
    let check = |engine: &Engine| {
        let mut found = read_all(engine, "t");
        found.sort();
        assert!(found == expected);
        let query = Query { limit: Some(9000), ..Query::default() };
        assert_eq!(read(engine, &engine.snapshot(), "t", &query).unwrap().len(), 9000);
        let time = range(START + 1500 * SECOND, START + 1600 * SECOND);
        let query =
            Query { time, tags: vec![("device".into(), [Some("b".to_owned())].into())], ..Query::default() };
        assert_eq!(read(engine, &engine.snapshot(), "t", &query).unwrap().len(), 33);
    };
    check(&engine);
    engine.compact(id).unwrap();
    assert_eq!(engine.chunks().len(), 1);
    check(&engine);
    cool(&engine, id, START + DAY);
    check(&engine);
    assert_eq!(table(&engine, "t").id(), id);
}
