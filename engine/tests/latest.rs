//! The newest point of each series where it is hard to find; what is usual, `Model::check` looks at after every step of
//! every other test. And how many series a table may have.

use std::borrow::Cow;
use std::sync::Arc;

use sonde_engine::{
    CatalogRequest, Engine, Error, LatestRequest, Row, Snapshot, TableKind, TableOptions, Timestamp,
};

use crate::data::{
    DAY, HOUR, Query, Rec, SECOND, START, Value, create, latest, message, new_table, put, rec, table, write,
};
use crate::model::Model;
use crate::store::Store;

fn newest(engine: &Engine, snapshot: &Snapshot) -> Vec<Rec> {
    latest(engine, snapshot, "t", &Query::default()).unwrap()
}

fn cool(engine: &Engine, before: i64) {
    engine.cool(table(engine, "t").id(), Timestamp::from_nanos(before)).unwrap();
}

/// One point whose cells came by and by: cold, in a chunk, in memory. Cells of older points do not count.
#[test]
fn a_point_in_every_layer() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", DAY);
    let of = |time: i64, fields: &[(&str, Value)]| rec(&[("device", "d")], time, fields);
    put(&engine, "t", &[of(START, &[("s", Value::text("old")), ("f", Value::float(0.5))])]);
    put(&engine, "t", &[of(START + 9, &[("f", Value::float(1.5)), ("i", Value::Int(1))])]);
    cool(&engine, START + DAY);
    assert_eq!((engine.cold_files().len(), engine.chunks().len()), (1, 0));
    put(&engine, "t", &[of(START + 9, &[("i", Value::Int(2)), ("u", Value::UInt(3))])]);
    engine.flush().unwrap();
    put(&engine, "t", &[of(START + 9, &[("u", Value::Null), ("b", Value::Bool(true))])]);
    put(&engine, "t", &[of(START + 8, &[("s", Value::text("late"))])]);
    let expected = of(START + 9, &[("f", Value::float(1.5)), ("i", Value::Int(2)), ("b", Value::Bool(true))]);
    let snapshot = engine.snapshot();
    assert_eq!(newest(&engine, &snapshot), std::slice::from_ref(&expected));
    // What comes later, and what becomes of the files, is not the snapshot's.
    put(&engine, "t", &[of(START + DAY, &[("i", Value::Int(4))])]);
    engine.flush().unwrap();
    assert_eq!(newest(&engine, &engine.snapshot()), [of(START + DAY, &[("i", Value::Int(4))])]);
    cool(&engine, START + 2 * DAY);
    assert_eq!(newest(&engine, &snapshot), [expected]);
    let engine = store.restart(engine);
    assert_eq!(newest(&engine, &engine.snapshot()), [of(START + DAY, &[("i", Value::Int(4))])]);
}

/// Series that ended at any time of a week, in chunks that overlap it and each other, and one that never had a row in
/// the newest of them: they are looked for in parts, and none is missed.
#[test]
fn series_that_ended_at_any_time() {
    const SERIES: i64 = 70;
    const ROWS: i64 = 2000;
    let store = Store::new();
    let engine = store.open();
    let id = create(&engine, "t", 7 * DAY).id();
    // A Thursday, as weeks start on.
    let start = START - START % (7 * DAY);
    let device = |series: i64| format!("d{series:02}");
    let mut model = Model::default();
    model.create("t", false);
    for half in 0..2 {
        let mut rows = Vec::new();
        for series in 0..SERIES {
            let count = ROWS * (series + 1) / SERIES;
            let rows_of = (0..count).filter(|i| i % 2 == half);
            rows.extend(rows_of.map(|i| {
                let time = start + i * 300 * SECOND + series;
                rec(&[("device", device(series).as_str())], time, &[("i", Value::Int(i))])
            }));
        }
        let batch = message("t", &rows);
        write(&engine, &batch).unwrap();
        model.apply(&batch);
        engine.flush().unwrap();
        model.check_latest(&engine, &engine.snapshot(), "t", &Query::default());
    }
    assert_eq!(engine.chunks().len(), 2);
    let late = message("t", &[rec(&[("device", device(3).as_str())], start, &[("i", Value::Int(-1))])]);
    write(&engine, &late).unwrap();
    model.apply(&late);
    let tags = vec![("device".to_owned(), [Some(device(3)), Some(device(69)), None].into())];
    let some = Query { tags, fields: Some(vec!["f".into()]), ..Query::default() };
    let check = |engine: &Engine| {
        model.check_latest(engine, &engine.snapshot(), "t", &Query::default());
        model.check_latest(engine, &engine.snapshot(), "t", &some);
    };
    check(&engine);
    engine.compact(id).unwrap();
    check(&engine);
    let engine = store.restart(engine);
    check(&engine);
}

/// A series is found in the newest file that has it, and no older file is opened.
#[test]
fn older_files_stay_closed() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", HOUR);
    let row = |hour: i64| rec(&[("device", "d")], START + hour * HOUR, &[("i", Value::Int(hour))]);
    for hour in 0..5 {
        put(&engine, "t", &[row(hour)]);
        engine.flush().unwrap();
    }
    let mut chunks = engine.chunks();
    chunks.sort_by_key(|chunk| chunk.times);
    chunks.pop();
    let engine = store.restart(engine);
    // They would be errors.
    for chunk in chunks {
        let path = store.dir(sonde_engine::path::CHUNK_DIR).join(sonde_engine::path::chunk(chunk.id));
        std::fs::write(path, "damaged").unwrap();
    }
    assert_eq!(newest(&engine, &engine.snapshot()), [row(4)]);
    let filter = |device: &str| Query {
        tags: vec![("device".to_owned(), [Some(device.to_owned())].into())],
        ..Query::default()
    };
    assert_eq!(latest(&engine, &engine.snapshot(), "t", &filter("d")).unwrap(), [row(4)]);
    assert_eq!(latest(&engine, &engine.snapshot(), "t", &filter("none")).unwrap(), []);
}

#[test]
fn columns_come_as_they_are_asked_for() {
    let store = Store::new();
    let engine = store.open();
    let table = create(&engine, "t", DAY);
    put(&engine, "t", &[rec(&[("site", "s"), ("device", "d")], START, &[("i", Value::Int(1))])]);
    let id = |name: &str| table.column(name).unwrap().id;
    let ask = |names: &[&str]| {
        let columns = names.iter().map(|name| id(name)).collect();
        let request = LatestRequest::all(Arc::clone(&table), columns);
        let batches: Vec<_> =
            engine.latest(&engine.snapshot(), &request).unwrap().map(Result::unwrap).collect();
        assert_eq!(batches.len(), 1);
        let schema = batches[0].schema();
        let found: Vec<_> = schema.fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(found, names);
        let text =
            |column: &arrow::array::ArrayRef| arrow::util::display::array_value_to_string(column, 0).unwrap();
        (batches[0].num_rows(), batches[0].columns().iter().map(text).collect::<Vec<_>>())
    };
    assert_eq!(ask(&[]), (1, vec![]));
    assert_eq!(ask(&["device", "i", "site", "device"]).1, ["d", "1", "s", "d"]);
    assert_eq!(ask(&["f", "site"]).1, ["", "s"]);
}

/// A table has as many series as it was given; those that it has go on.
#[test]
fn series_have_a_limit() {
    let store = Store::new();
    let engine = store.open();
    let mut new = new_table("t", TableKind::Points, DAY);
    new.options.max_series = 2;
    engine.change_catalog(CatalogRequest::CreateTable(new)).unwrap();
    create(&engine, "other", DAY);
    let row =
        |device: &str, value: i64| rec(&[("device", device)], START + value, &[("i", Value::Int(value))]);
    put(&engine, "t", &[row("a", 1), row("b", 1)]);
    let engine = store.restart(engine);
    let refused = write(&engine, &message("t", &[row("c", 2)])).unwrap_err();
    assert!(matches!(&refused, Error::Series { table, limit: 2 } if table == "public.t"), "{refused}");
    let text = refused.to_string();
    assert!(
        text.contains("public.t") && text.contains("ALTER TABLE") && text.contains(" 2 series"),
        "{text}"
    );
    // Rows beside it are good, of the same batch too.
    let mut builder = engine.batch();
    builder.begin_message();
    let t = table(&engine, "t");
    let device = t.column("device").unwrap().id;
    let mut add = |table: &str, name: &'static str| {
        let tags = [(device, Cow::Borrowed(name))];
        let row = Row { time: Timestamp::from_nanos(START + 3), tags: &tags, fields: &[] };
        builder.row(&crate::data::table(&engine, table), &row, None)
    };
    add("t", "a").unwrap();
    assert!(matches!(add("t", "c"), Err(Error::Series { .. })));
    add("t", "b").unwrap();
    add("other", "c").unwrap();
    engine.write(builder.finish().unwrap()).wait().unwrap();
    assert_eq!((engine.series_count(t.id()), newest(&engine, &engine.snapshot()).len()), (2, 2));

    let options = |max_series| TableOptions { max_series, ..t.def().options };
    engine.change_catalog(CatalogRequest::SetOptions(t.id(), options(3))).unwrap();
    put(&engine, "t", &[row("c", 4)]);
    assert!(write(&engine, &message("t", &[row("d", 4)])).is_err());
    // Fewer than there are: no new ones.
    engine.change_catalog(CatalogRequest::SetOptions(t.id(), options(1))).unwrap();
    put(&engine, "t", &[row("c", 5)]);
    assert!(write(&engine, &message("t", &[row("d", 5)])).is_err());
    engine.change_catalog(CatalogRequest::SetOptions(t.id(), options(0))).unwrap();
    put(&engine, "t", &[row("d", 6)]);
    for wrong in [-1, i64::MAX] {
        assert!(engine.change_catalog(CatalogRequest::SetOptions(t.id(), options(wrong))).is_err());
    }
}
