//! What fits a column, what identifies a row, and what is too large.

use std::borrow::Cow;

use sonde_engine::{
    CatalogRequest, EXACT_INTEGER, Engine, Error, FieldValue, PhysicalType, Row, State, TableKind, Timestamp,
    WriteBatch,
};

use crate::data::{DAY, START, Value, create, new_table, put, read_all, rec, table};
use crate::store::Store;

const KINDS: [PhysicalType; 5] = [
    PhysicalType::Float64,
    PhysicalType::Int64,
    PhysicalType::UInt64,
    PhysicalType::Boolean,
    PhysicalType::Text,
];

/// Which kinds a value fits.
fn fits(value: FieldValue<'_>) -> Vec<PhysicalType> {
    KINDS.into_iter().filter(|kind| value.fits(*kind)).collect()
}

#[test]
fn values_fit_where_nothing_is_lost() {
    use FieldValue::{Bool, Float, Int, Null, Text, UInt};
    use PhysicalType::{Boolean, Float64, Int64, UInt64};
    assert_eq!(fits(Null), KINDS);
    assert_eq!(fits(Bool(true)), [Boolean]);
    assert_eq!(fits(Text("1".into())), [PhysicalType::Text]);
    assert_eq!(fits(Float(1.5)), [Float64]);
    for special in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 1e300, 2_f64.powi(53) + 2.0] {
        assert_eq!(fits(Float(special)), [Float64], "{special}");
    }
    assert_eq!(fits(Float(0.0)), [Float64, Int64, UInt64]);
    assert_eq!(fits(Float(7.0)), [Float64, Int64, UInt64]);
    assert_eq!(fits(Float(-7.0)), [Float64, Int64]);
    assert_eq!(fits(Float(EXACT_INTEGER as f64)), [Float64, Int64, UInt64]);
    assert_eq!(fits(Int(-1)), [Float64, Int64]);
    assert_eq!(fits(Int(1)), [Float64, Int64, UInt64]);
    assert_eq!(fits(Int(EXACT_INTEGER as i64 + 1)), [Int64, UInt64]);
    assert_eq!(fits(Int(-(EXACT_INTEGER as i64))), [Float64, Int64]);
    assert_eq!(fits(Int(i64::MIN)), [Int64]);
    assert_eq!(fits(UInt(1)), [Float64, Int64, UInt64]);
    assert_eq!(fits(UInt(i64::MAX as u64)), [Int64, UInt64]);
    assert_eq!(fits(UInt(u64::MAX)), [UInt64]);
}

fn try_row(
    engine: &Engine,
    time: i64,
    tags: &[(&str, &str)],
    fields: &[(&str, FieldValue<'_>)],
) -> Result<(), Error> {
    let table = table(engine, "t");
    let id = |name: &str| table.column(name).unwrap().id;
    let tags: Vec<_> = tags.iter().map(|(name, value)| (id(name), Cow::Borrowed(*value))).collect();
    let fields: Vec<_> = fields.iter().map(|(name, value)| (id(name), value.clone())).collect();
    let mut builder = engine.batch();
    let row = Row { time: Timestamp::from_nanos(time), tags: &tags, fields: &fields };
    builder.row(&table, &row, None)?;
    engine.write(builder.finish().unwrap()).wait().map(drop)
}

/// What fits comes back as the column's type, equal in value.
#[test]
fn what_fits_is_stored_exactly() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", DAY);
    let exact = EXACT_INTEGER as i64;
    let rows = [
        ([("f", FieldValue::Int(-exact))], ("f", Value::float(-(exact as f64)))),
        ([("f", FieldValue::UInt(EXACT_INTEGER))], ("f", Value::float(exact as f64))),
        ([("i", FieldValue::Float(-(exact as f64)))], ("i", Value::Int(-exact))),
        ([("i", FieldValue::UInt(i64::MAX as u64))], ("i", Value::Int(i64::MAX))),
        ([("u", FieldValue::Int(i64::MAX))], ("u", Value::UInt(i64::MAX as u64))),
        ([("u", FieldValue::Float(exact as f64))], ("u", Value::UInt(EXACT_INTEGER))),
        ([("u", FieldValue::UInt(u64::MAX))], ("u", Value::UInt(u64::MAX))),
        ([("f", FieldValue::Float(-0.0))], ("f", Value::float(-0.0))),
    ];
    for (i, (fields, _)) in rows.iter().enumerate() {
        try_row(&engine, START + i as i64, &[], fields).unwrap();
    }
    let expected: Vec<_> =
        rows.into_iter().enumerate().map(|(i, (_, value))| rec(&[], START + i as i64, &[value])).collect();
    assert_eq!(read_all(&engine, "t"), expected);
    assert_eq!(read_all(&store.restart(engine), "t"), expected);
}

#[test]
fn what_does_not_fit_is_the_rows_fault_and_changes_nothing() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", DAY);
    let table = table(&engine, "t");
    let published = engine.published();
    let mut builder = engine.batch();
    builder.begin_message();
    let id = |name: &str| table.column(name).unwrap().id;
    let time = Timestamp::from_nanos(START);
    let good = [(id("f"), FieldValue::Float(1.0))];
    let fields = [
        (id("b"), FieldValue::Float(1.0)),
        (id("s"), FieldValue::Bool(true)),
        (id("time"), FieldValue::Int(1)),
        (id("site"), FieldValue::Text("a".into())),
        (sonde_engine::ColumnId(99), FieldValue::Null),
    ];
    for bad in fields {
        // The good field before it is not stored either.
        let both = [good[0].clone(), bad];
        let error = builder.row(&table, &Row { time, tags: &[], fields: &both }, None).unwrap_err();
        assert!(matches!(error, Error::Row(_)), "{error}");
    }
    for tag in ["f", "time"] {
        let row = Row { time, tags: &[(id(tag), "a".into())], fields: &good };
        assert!(matches!(builder.row(&table, &row, None), Err(Error::Row(_))), "{tag} is no tag");
    }
    let row = Row { time: Timestamp::MAX, tags: &[], fields: &good };
    assert!(matches!(builder.row(&table, &row, None), Err(Error::Row(_))));
    assert!(builder.finish().is_none(), "nothing was added");
    assert_eq!((engine.published(), engine.series_count(table.id())), (published, 0));
}

/// What a reader of the log would refuse is not written to it: such a row made the next start fail.
#[test]
fn what_is_too_large_is_refused_before_it_is_logged() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", DAY);
    let text = |bytes: usize| "x".repeat(bytes);
    let limits = |result: Result<(), Error>| matches!(result, Err(Error::Limit { .. }));
    assert!(limits(try_row(&engine, START, &[], &[("s", FieldValue::Text(text((16 << 20) + 1).into()))])));
    assert!(limits(try_row(&engine, START, &[("site", &text(64 << 10))], &[])));
    try_row(&engine, START, &[("site", &text(60 << 10))], &[]).unwrap();
    try_row(&engine, START, &[], &[("s", FieldValue::Text(text(16 << 20).into()))]).unwrap();
    let state = |key: usize, value: usize| {
        let state = State { namespace: "n".into(), key: vec![1; key], value: Some(vec![2; value]) };
        engine.write(WriteBatch::of_state(vec![state])).wait().map(drop)
    };
    assert!(limits(state((64 << 10) + 1, 1)));
    assert!(matches!(state(1, 64 << 20), Err(Error::BatchFull)));
    state(64 << 10, 1 << 20).unwrap();
    let engine = store.restart(engine);
    assert_eq!(read_all(&engine, "t").len(), 2);
    assert_eq!(engine.state_entries("n").len(), 1);
    let engine = store.reopen(engine);
    assert_eq!(read_all(&engine, "t").len(), 2);
    assert_eq!(engine.state_entries("n").len(), 1);
}

/// A batch takes rows up to its limit, counted as the log has them: sparse columns have a slot for every row.
#[test]
fn a_batch_is_bounded() {
    let store = Store::new();
    let engine = store.open();
    let mut new = new_table("t", TableKind::Points, DAY);
    let wide = (0..3000).map(|i| {
        crate::data::column(&format!("c{i}"), sonde_engine::ColumnRole::Field, PhysicalType::Float64)
    });
    new.columns.extend(wide);
    engine.change_catalog(CatalogRequest::CreateTable(new)).unwrap();
    let table = table(&engine, "t");
    let mut builder = engine.batch();
    let mut rows = 0;
    let error = loop {
        let id = table.column(&format!("c{}", rows % 3000)).unwrap().id;
        let fields = [(id, FieldValue::Float(1.0))];
        let row = Row { time: Timestamp::from_nanos(START + rows), tags: &[], fields: &fields };
        match builder.row(&table, &row, None) {
            Ok(_) => rows += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::BatchFull), "{error}");
    assert!((1000..4000).contains(&rows), "{rows} rows");
    assert!(builder.bytes() <= sonde_engine::limits::BATCH_BYTES);
    engine.write(builder.finish().unwrap()).wait().unwrap();
    assert_eq!(engine.memory().1, rows as usize);
    let engine = store.restart(engine);
    assert_eq!(engine.memory().1, rows as usize);
    assert!(engine.memory().0 <= 2 * sonde_engine::limits::BATCH_BYTES);
}

#[test]
fn series_are_bounded_where_they_should_be() {
    let store = Store::new();
    let engine = store.open();
    let table = create(&engine, "t", DAY);
    let device = table.column("device").unwrap().id;
    let mut builder = engine.batch();
    let mut add = |name: &str| {
        let tags = [(device, Cow::Borrowed(name))];
        builder.row(&table, &Row { time: Timestamp::from_nanos(START), tags: &tags, fields: &[] }, Some(2))
    };
    add("a").unwrap();
    add("b").unwrap();
    assert!(matches!(add("c"), Err(Error::Series { limit: 2, .. })));
    add("a").unwrap();
    engine.write(builder.finish().unwrap()).wait().unwrap();
    assert_eq!(engine.series_count(table.id()), 2);
    let mut builder = engine.batch();
    let tags = [(device, Cow::Borrowed("c"))];
    let row = Row { time: Timestamp::from_nanos(START), tags: &tags, fields: &[] };
    assert!(matches!(builder.row(&table, &row, Some(2)), Err(Error::Series { .. })));
}

#[test]
fn events_keep_every_row() {
    let store = Store::new();
    let engine = store.open();
    let new = new_table("t", TableKind::Events, DAY);
    let id = {
        engine.change_catalog(CatalogRequest::CreateTable(new)).map(|_| table(&engine, "t").id()).unwrap()
    };
    let row = |i: i64| rec(&[("device", "d")], START, &[("i", Value::Int(i))]);
    let same = || put(&engine, "t", &[row(1), row(1), row(2)]);
    same();
    same();
    engine.flush().unwrap();
    same();
    engine.flush().unwrap();
    same();
    let check = |engine: &Engine, times: usize| {
        let mut rows = read_all(engine, "t");
        rows.sort();
        let expected = [vec![row(1); 2 * times], vec![row(2); times]].concat();
        assert_eq!(rows, expected);
    };
    check(&engine, 4);
    engine.compact(id).unwrap();
    assert_eq!(engine.chunks().len(), 1);
    check(&engine, 4);
    engine.cool(id, Timestamp::from_nanos(START + DAY)).unwrap();
    same();
    check(&engine, 5);
    engine.cool(id, Timestamp::from_nanos(START + DAY)).unwrap();
    check(&engine, 5);
    let engine = store.restart(engine);
    check(&engine, 5);
}

/// Absent keeps, NULL replaces, a value replaces: also within one row of a field named twice.
#[test]
fn newest_wins_field_by_field() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", DAY);
    let set = |fields: &[(&str, FieldValue<'_>)]| try_row(&engine, START, &[("site", "")], fields).unwrap();
    set(&[("f", FieldValue::Float(1.0)), ("i", FieldValue::Int(1)), ("b", FieldValue::Bool(true))]);
    set(&[("f", FieldValue::Null), ("i", FieldValue::Int(2))]);
    set(&[("i", FieldValue::Int(3)), ("i", FieldValue::Int(4))]);
    set(&[]);
    let expected = [rec(&[("site", "")], START, &[("i", Value::Int(4)), ("b", Value::Bool(true))])];
    assert_eq!(read_all(&engine, "t"), expected);
    engine.flush().unwrap();
    assert_eq!(read_all(&engine, "t"), expected);
    try_row(&engine, START, &[], &[("i", FieldValue::Int(5))]).unwrap();
    assert_eq!(read_all(&engine, "t").len(), 2, "absent and empty tags are two series");
}
