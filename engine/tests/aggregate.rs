//! Totals of scans: the same as of the rows, and without reading them where statistics answer.
//!
//! Every history that is checked against the model has its totals checked here, too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use sonde_engine::{
    Aggregate, AggregateRequest, ColumnId, ColumnRole, Engine, Error, Number, PhysicalType, Scan,
    ScanRequest, Snapshot, Totals, path,
};
use sonde_storage_format::ChunkReader;

use crate::data::{
    DAY, Query, Rec, SECOND, START, Value, create, delete_range, filters, message, put, range, rec,
};
use crate::model::Model;
use crate::store::Store;

/// Fails unless the totals that a query's rows have, of all and by series, are those of `rows`.
pub(crate) fn check(engine: &Engine, snapshot: &Snapshot, name: &str, query: &Query, rows: &[Rec]) {
    let scan = scan(engine, snapshot, name, query);
    let whole: Vec<&Rec> = rows.iter().collect();
    let found = totals(&scan, false, true);
    let parts: Vec<&Totals> = found.iter().flat_map(|part| &part.totals).collect();
    same(&scan, &parts, &whole, &format!("{name} {query:?}, all rows"));

    let tags: Vec<String> = scan.table().tags().map(|tag| tag.name.clone()).collect();
    if tags.is_empty() {
        return;
    }
    let mut expected: BTreeMap<Vec<Option<String>>, Vec<&Rec>> = BTreeMap::new();
    for row in rows {
        let key = tags.iter().map(|tag| row.tags.get(tag).cloned()).collect();
        expected.entry(key).or_default().push(row);
    }
    let found = totals(&scan, true, true);
    let mut by_series: BTreeMap<Vec<Option<String>>, Vec<&Totals>> = BTreeMap::new();
    for part in &found {
        for (key, totals) in keys(&scan, part).into_iter().zip(&part.totals) {
            by_series.entry(key).or_default().push(totals);
        }
    }
    assert_eq!(by_series.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name} {query:?}");
    for (key, parts) in &by_series {
        same(&scan, parts, &expected[key], &format!("{name} {query:?}, {key:?}"));
    }
}

fn scan(engine: &Engine, snapshot: &Snapshot, name: &str, query: &Query) -> Arc<Scan> {
    let table = snapshot.catalog().require_table("public", name).unwrap();
    let is_wanted = |column: &&sonde_engine::ColumnDef| {
        column.role != ColumnRole::Field
            || query.fields.as_ref().is_none_or(|fields| fields.contains(&column.name))
    };
    let columns = table.def().columns.iter().filter(is_wanted).map(|column| column.id).collect();
    let mut request = ScanRequest::all(Arc::clone(table), columns);
    (request.time, request.tags) = (query.time, filters(table, &query.tags));
    engine.scan(snapshot, &request).unwrap()
}

fn fields(scan: &Scan) -> Vec<ColumnId> {
    let is_field = |id: &ColumnId| scan.table().column_by_id(*id).unwrap().role == ColumnRole::Field;
    scan.columns().iter().copied().filter(is_field).collect()
}

/// The totals of each of two partitions.
fn totals(scan: &Arc<Scan>, by_series: bool, sums: bool) -> Vec<Aggregate> {
    let sums = vec![sums; fields(scan).len()];
    let request = AggregateRequest { by_series, sums };
    (0..2).map(|partition| scan.aggregate(partition, 2, &request, &|| true).unwrap()).collect()
}

fn keys(scan: &Scan, aggregate: &Aggregate) -> Vec<Vec<Option<String>>> {
    let tags: Vec<ColumnId> = scan.table().tags().map(|tag| tag.id).collect();
    let arrays: Vec<ArrayRef> = aggregate.tags(&tags, 0..aggregate.totals.len());
    let tag = |array: &ArrayRef, row: usize| {
        (!array.is_null(row)).then(|| array.as_string::<i32>().value(row).to_owned())
    };
    (0..aggregate.totals.len()).map(|row| arrays.iter().map(|array| tag(array, row)).collect()).collect()
}

/// Fails unless totals of parts come to the totals of the rows.
fn same(scan: &Scan, parts: &[&Totals], rows: &[&Rec], what: &str) {
    assert_eq!(parts.iter().map(|part| part.rows).sum::<u64>(), rows.len() as u64, "{what}: rows");
    let first = parts.iter().filter_map(|part| Some(part.times?.0.as_nanos())).min();
    let last = parts.iter().filter_map(|part| Some(part.times?.1.as_nanos())).max();
    assert_eq!(first, rows.iter().map(|row| row.time).min(), "{what}: the first time");
    assert_eq!(last, rows.iter().map(|row| row.time).max(), "{what}: the last time");
    for (place, id) in fields(scan).into_iter().enumerate() {
        let column = scan.table().column_by_id(id).unwrap();
        let what = format!("{what}, {}", column.name);
        let of_field = rows.iter().filter_map(|row| row.fields.get(&column.name));
        let values: Vec<&Value> = of_field.filter(|value| **value != Value::Null).collect();
        let fields = || parts.iter().map(|part| &part.fields[place]);
        assert_eq!(fields().map(|field| field.present()).sum::<u64>(), values.len() as u64, "{what}: count");
        if matches!(column.kind, PhysicalType::Boolean | PhysicalType::Text) {
            continue;
        }
        let exact = |value: &&Value| match value {
            Value::Int(value) => i128::from(*value),
            Value::UInt(value) => i128::from(*value),
            other => panic!("{what}: {other:?}"),
        };
        if column.kind == PhysicalType::Float64 {
            let mut numbers: Vec<f64> = values.iter().map(|value| value.number().unwrap()).collect();
            numbers.sort_by(sql_order);
            let ordered = |found: Vec<Number>| {
                let mut found: Vec<f64> = found.into_iter().map(float).collect();
                found.sort_by(sql_order);
                found
            };
            let low = ordered(fields().filter_map(|field| field.min()).collect());
            let high = ordered(fields().filter_map(|field| field.max()).collect());
            assert!(alike(low.first(), numbers.first()), "{what}: min {low:?}");
            assert!(alike(high.last(), numbers.last()), "{what}: max {high:?}");
            let sum: f64 = fields().filter_map(|field| field.sum()).map(float).sum();
            let expected: f64 = numbers.iter().sum();
            let size: f64 = numbers.iter().map(|number| number.abs()).sum();
            let near = (sum - expected).abs() <= 1e-12 * size || alike(Some(&sum), Some(&expected));
            assert!(near, "{what}: sum {sum}, expected {expected}");
            continue;
        }
        let low = fields().filter_map(|field| field.min()).map(int).min();
        let high = fields().filter_map(|field| field.max()).map(int).max();
        assert_eq!(low, values.iter().map(exact).min(), "{what}: min");
        assert_eq!(high, values.iter().map(exact).max(), "{what}: max");
        let sum: i128 = fields().filter_map(|field| field.sum()).map(int).sum();
        assert_eq!(sum, values.iter().map(exact).sum(), "{what}: sum");
    }
}

fn float(number: Number) -> f64 {
    match number {
        Number::Float(number) => number,
        Number::Int(number) => panic!("{number} is of no column of floats"),
    }
}

fn int(number: Number) -> i128 {
    match number {
        Number::Int(number) => number,
        Number::Float(number) => panic!("{number} is of no column of integers"),
    }
}

/// Every NaN, whatever its sign, is above all numbers.
fn sql_order(a: &f64, b: &f64) -> std::cmp::Ordering {
    a.partial_cmp(b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// The same float; any NaN is like any other, and the zeros are one.
fn alike(a: Option<&f64>, b: Option<&f64>) -> bool {
    a == b || a.zip(b).is_some_and(|(a, b)| a.is_nan() && b.is_nan())
}

/// Rows of a series, one a second; every 100th value is missing.
fn series(device: &'static str, count: i64) -> impl Iterator<Item = Rec> {
    (0..count).map(move |n| {
        let value = if n % 100 == 7 { Value::Null } else { Value::float(n as f64 * 0.1) };
        rec(&[("device", device)], START + n * SECOND, &[("f", value), ("i", Value::Int(n - 1000))])
    })
}

/// A series with 5,000 rows and one with 50.
fn long_and_short() -> Vec<Rec> {
    series("long", 5000).chain(series("short", 50)).collect()
}

/// One chunk of these rows.
fn chunk_of(store: &Store, rows: &[Rec]) -> (Engine, Model) {
    let engine = store.open();
    create(&engine, "t", DAY);
    put(&engine, "t", rows);
    engine.flush().unwrap();
    let mut model = Model::default();
    model.create("t", false);
    model.apply(&message("t", rows));
    (engine, model)
}

fn cut(store: &Store, deleted: Option<Query>) -> (Engine, Model) {
    let (engine, mut model) = chunk_of(store, &long_and_short());
    if let Some(deleted) = deleted {
        delete_range(&engine, "t", &deleted).unwrap();
        model.delete_range("t", &deleted);
    }
    (engine, model)
}

fn fields_only(names: &[&str], start: i64, end: i64) -> Query {
    let fields = Some(names.iter().map(|name| (*name).to_owned()).collect());
    Query { time: range(START + start, START + end), fields, ..Query::default() }
}

#[test]
fn times_cut_series_and_deletes_hide_rows() {
    let all = fields_only(&["f", "i"], 0, DAY);
    let edges = [0, 1, SECOND, 25 * SECOND, 49 * SECOND + 1, 4999 * SECOND, 5000 * SECOND, DAY];
    for deleted in [None, Some(fields_only(&[], 10 * SECOND, 20 * SECOND)), Some(all)] {
        let store = Store::new();
        let (engine, model) = cut(&store, deleted);
        for (n, start) in edges.iter().enumerate() {
            for end in &edges[n + 1..] {
                let query = fields_only(&["f", "i"], *start, *end);
                model.check_query(&engine, &engine.snapshot(), "t", &query);
            }
        }
    }
}

/// Statistics of a series answer wherever it stands among the others.
#[test]
fn a_long_series_behind_a_short_one_counts_once() {
    let store = Store::new();
    let rows: Vec<Rec> = series("a", 50).chain(series("long", 5000)).collect();
    let (engine, model) = chunk_of(&store, &rows);
    // Not the texts, which no statistics answer.
    model.check_query(&engine, &engine.snapshot(), "t", &fields_only(&["f", "i"], 0, DAY));
    model.check(&engine);
}

#[test]
fn series_that_share_a_page_have_totals_of_their_own() {
    let store = Store::new();
    let rows: Vec<Rec> = series("a", 50).chain(series("b", 70)).collect();
    let (engine, model) = chunk_of(&store, &rows);
    model.check(&engine);
}

/// NaN is above every number, in memory and in what chunks state.
#[test]
fn a_nan_is_the_largest_value() {
    let store = Store::new();
    let numbers = [1.0, f64::NAN, 5.0];
    let row = |n: usize| {
        let fields = [("f", Value::float(numbers[n % 3]))];
        rec(&[("device", ["a", "b"][n % 2])], START + n as i64 * SECOND, &fields)
    };
    let rows: Vec<Rec> = (0..60).map(row).collect();
    let (engine, mut model) = chunk_of(&store, &rows);
    model.check(&engine);
    let more: Vec<Rec> = (60..90).map(row).collect();
    put(&engine, "t", &more);
    model.apply(&message("t", &more));
    model.check(&engine);
}

#[test]
fn rows_in_memory_over_a_chunk_count_once() {
    let store = Store::new();
    let (engine, mut model) = cut(&store, None);
    let again: Vec<Rec> = long_and_short().into_iter().step_by(3).collect();
    put(&engine, "t", &again);
    model.apply(&message("t", &again));
    model.check(&engine);
}

/// No page of the chunk can be read: nobody notices where statistics answer, and everybody else is told.
#[test]
fn statistics_answer_without_a_page() {
    let store = Store::new();
    let (engine, model) = cut(&store, None);
    let file = store.dir(path::CHUNK_DIR).join(path::chunk(engine.chunks()[0].id));
    engine.close().unwrap();
    drop(engine);
    let mut bytes = std::fs::read(&file).unwrap();
    for column in ChunkReader::open(&bytes.clone()).unwrap().columns().unwrap() {
        for page in column.pages.into_iter().flatten() {
            bytes[page.offset as usize] ^= 1;
        }
    }
    std::fs::write(&file, bytes).unwrap();
    let engine = store.open();
    let snapshot = engine.snapshot();
    let all = fields_only(&["f", "i"], 0, DAY);

    let long = BTreeSet::from([Some("long".to_owned())]);
    let long = Query { tags: vec![("device".to_owned(), long)], ..all.clone() };
    check(&engine, &snapshot, "t", &long, &model.answer("t", &long));

    let whole = scan(&engine, &snapshot, "t", &all);
    let counts = totals(&whole, false, false);
    let counts: Vec<&Totals> = counts.iter().flat_map(|part| &part.totals).collect();
    assert_eq!(counts.iter().map(|part| part.rows).sum::<u64>(), 5050);
    assert_eq!(counts.iter().filter_map(|part| part.fields[1].min()).map(int).min(), Some(-1000));

    for (query, by_series, sums) in [(&all, false, true), (&all, true, false)] {
        let scan = scan(&engine, &snapshot, "t", query);
        let request = AggregateRequest { by_series, sums: vec![sums; 2] };
        let error = scan.aggregate(0, 1, &request, &|| true).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    }
}

#[test]
fn nobody_waits_for_what_nobody_wants() {
    let store = Store::new();
    let (engine, _) = cut(&store, None);
    let scan = scan(&engine, &engine.snapshot(), "t", &fields_only(&["f"], 0, DAY / 2));
    let request = AggregateRequest { by_series: false, sums: vec![true] };
    let asked = std::cell::Cell::new(0);
    let goes_on = || {
        asked.set(asked.get() + 1);
        false
    };
    scan.aggregate(0, 1, &request, &goes_on).unwrap();
    assert!(asked.get() > 0);
}
