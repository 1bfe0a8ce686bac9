//! What `latest`, the tag index and the registry of series cost: 4,000 series of ten fields, a million series of three
//! tags, memory of each series.
//!
//! `cargo bench -p sonde-engine --bench latest -- [--scale 0.1]`; `--scale` shrinks the million.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark stops at the first thing that is wrong"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sonde_engine::{
    CatalogRequest, ColumnId, ColumnRole, Engine, FieldValue, LatestRequest, NewColumn, NewTable, Options,
    PhysicalType, Row, ScanRequest, Table, TableKind, TableOptions, TagFilter, TimeRange, Timestamp,
};

/// 2024-02-24T00:00:00Z.
const START: i64 = 1_708_732_800_000_000_000;
const BATCH: usize = 20_000;
const TAGS: [&str; 3] = ["site", "kind", "device"];

/// What is written: a row of each series every `step` nanoseconds.
#[derive(Clone, Copy)]
struct Shape {
    series: usize,
    fields: usize,
    rounds: usize,
    step: i64,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let scale: f64 =
        args.iter().position(|arg| arg == "--scale").map_or(1.0, |at| args[at + 1].parse().unwrap());
    let second = 1_000_000_000;
    // 13 hours of two days.
    let small = Shape { series: 4000, fields: 10, rounds: 250, step: 400 * second };
    run(small);
    let series = (1e6 * scale) as usize;
    run(Shape { series, fields: 3, rounds: 4, step: 1800 * second });
}

fn run(shape: Shape) {
    let dir: PathBuf =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-latest-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    println!(
        "{} series of {} tags, {} float64 fields, {} rows each",
        shape.series,
        TAGS.len(),
        shape.fields,
        shape.rounds
    );
    let before = resident();
    let engine = open(&dir);
    let table = create(&engine, shape);
    let started = Instant::now();
    write(&engine, &table, shape);
    figure("write", started.elapsed().as_secs_f64(), "s");
    latest_of(&engine, shape, "in memory");
    drop((engine, table));

    let started = Instant::now();
    let engine = open(&dir);
    figure("open, rows from the log", started.elapsed().as_secs_f64() * 1e3, "ms");
    once(&engine, shape, "one series, first after a restart, log");
    engine.flush().unwrap();
    once(&engine, shape, "one series, first after a flush");
    latest_of(&engine, shape, "in chunks");
    one_more_round(&engine, shape);
    latest_of(&engine, shape, "in chunks and memory");
    engine.close().unwrap();
    drop(engine);

    let started = Instant::now();
    let engine = open(&dir);
    figure("open, rows in chunks", started.elapsed().as_secs_f64() * 1e3, "ms");
    figure("memory after it, per series", (resident() - before) / shape.series as f64, "bytes");
    once(&engine, shape, "one series, first after a restart, chunks");
    figure(
        "memory with order and directory, per series",
        (resident() - before) / shape.series as f64,
        "bytes",
    );
    one_tag(&engine, shape, "scan plan by one tag, first: builds the index");
    figure("memory with the index, per series", (resident() - before) / shape.series as f64, "bytes");
    one_tag(&engine, shape, "scan plan by one tag, then");
    latest_of(&engine, shape, "after a restart");
    drop(engine);
    std::fs::remove_dir_all(&dir).unwrap();
}

fn open(dir: &Path) -> Engine {
    let mut options = Options::new(dir);
    options.memtable_bytes = 1 << 30;
    let started = Instant::now();
    loop {
        match Engine::open(options.clone()) {
            Ok(engine) => return engine,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(10), "{error}"),
        }
    }
}

fn create(engine: &Engine, shape: Shape) -> Arc<Table> {
    let column = |name: &str, role, kind| NewColumn { name: name.into(), role, kind };
    let mut columns: Vec<NewColumn> =
        TAGS.iter().map(|tag| column(tag, ColumnRole::Tag, PhysicalType::Text)).collect();
    columns.extend(
        (0..shape.fields).map(|i| column(&format!("f{i}"), ColumnRole::Field, PhysicalType::Float64)),
    );
    let new = NewTable {
        database: "public".into(),
        name: "readings".into(),
        kind: TableKind::Points,
        open: true,
        options: TableOptions::default(),
        columns,
    };
    engine.change_catalog(CatalogRequest::CreateTable(new)).unwrap();
    current(engine)
}

fn current(engine: &Engine) -> Arc<Table> {
    Arc::clone(engine.catalog().require_table("public", "readings").unwrap())
}

fn tags(series: usize) -> [String; 3] {
    // In no order: keys are not allocated as they sort.
    let device = series * 7919 % 1_000_003;
    [format!("site-{}", device % 100), format!("kind-{}", device % 7), format!("device-{device:07}")]
}

fn write(engine: &Engine, table: &Arc<Table>, shape: Shape) {
    (0..shape.rounds).for_each(|round| write_round(engine, table, shape, round));
}

fn one_more_round(engine: &Engine, shape: Shape) {
    write_round(engine, &current(engine), shape, shape.rounds);
}

fn write_round(engine: &Engine, table: &Arc<Table>, shape: Shape, round: usize) {
    let ids = TAGS.map(|tag| table.column(tag).unwrap().id);
    let fields: Vec<ColumnId> =
        (0..shape.fields).map(|i| table.column(&format!("f{i}")).unwrap().id).collect();
    let mut receipts = Vec::new();
    for first in (0..shape.series).step_by(BATCH) {
        let mut builder = engine.batch();
        builder.begin_message();
        for series in first..(first + BATCH).min(shape.series) {
            let names = tags(series);
            let tags = [0, 1, 2].map(|i| (ids[i], names[i].as_str().into()));
            let value = |i: usize| ((series * 31 + round * 17 + i) % 5000) as f64 / 100.0;
            let values: Vec<(ColumnId, FieldValue<'_>)> =
                fields.iter().enumerate().map(|(i, id)| (*id, FieldValue::Float(value(i)))).collect();
            // Each at a time of its own within the step.
            let time = START + round as i64 * shape.step + series as i64 * shape.step / shape.series as i64;
            let time = Timestamp::from_nanos(time);
            builder.row(table, &Row { time, tags: &tags, fields: &values }, None).unwrap();
        }
        receipts.push(engine.write(builder.finish().unwrap()));
    }
    receipts.into_iter().for_each(|receipt| {
        receipt.wait().unwrap();
    });
}

fn request(table: &Arc<Table>, tags: Vec<TagFilter>) -> LatestRequest {
    let columns = table.def().columns.iter().map(|column| column.id).collect();
    LatestRequest { tags, ..LatestRequest::all(Arc::clone(table), columns) }
}

fn filters(table: &Table, series: usize) -> Vec<TagFilter> {
    let values = tags(series);
    let filter = |(tag, value): (&&str, String)| TagFilter {
        column: table.column(tag).unwrap().id,
        values: [Some(value)].into(),
    };
    TAGS.iter().zip(values).map(filter).collect()
}

/// In two parts at the same time, as a query does, where it is more than one series.
fn ask(engine: &Engine, request: &LatestRequest) -> usize {
    let snapshot = engine.snapshot();
    let part = |part: usize, parts: usize| -> usize {
        let request = LatestRequest { part: (part, parts), ..request.clone() };
        engine.latest(&snapshot, &request).unwrap().map(|batch| batch.unwrap().num_rows()).sum()
    };
    if !request.tags.is_empty() {
        return part(0, 1);
    }
    std::thread::scope(|scope| {
        let other = scope.spawn(|| part(1, 2));
        part(0, 2) + other.join().unwrap()
    })
}

fn latest_of(engine: &Engine, shape: Shape, place: &str) {
    let table = current(engine);
    let all = request(&table, Vec::new());
    assert_eq!(ask(engine, &all), shape.series);
    let name = format!("latest of all, {place}");
    median(&name, 9, || assert_eq!(ask(engine, &all), shape.series));
    let mut narrow = all.clone();
    narrow.columns.retain(|id| [0, 3, 4].contains(&id.0));
    median(&format!("latest of all, device and one field, {place}"), 9, || {
        assert_eq!(ask(engine, &narrow), shape.series);
    });
    let mut series = 0;
    median(&format!("latest of one, {place}"), 101, || {
        series += 37;
        assert_eq!(ask(engine, &request(&table, filters(&table, series % shape.series))), 1);
    });
}

fn once(engine: &Engine, shape: Shape, name: &str) {
    let table = current(engine);
    let request = request(&table, filters(&table, shape.series / 2));
    let started = Instant::now();
    assert_eq!(ask(engine, &request), 1);
    figure(name, started.elapsed().as_secs_f64() * 1e3, "ms");
}

fn one_tag(engine: &Engine, shape: Shape, name: &str) {
    let table = current(engine);
    let mut scan = ScanRequest::all(Arc::clone(&table), vec![ColumnId(0)]);
    scan.time = TimeRange { start: Timestamp::MIN, end: Timestamp::from_nanos(0) };
    scan.tags = filters(&table, shape.series / 3).split_off(2);
    let started = Instant::now();
    engine.scan(&engine.snapshot(), &scan).unwrap();
    figure(name, started.elapsed().as_secs_f64() * 1e3, "ms");
}

/// Median and least: what else the machine does is in the first, and hardly in the second.
fn median(name: &str, runs: usize, mut run: impl FnMut()) {
    let mut times: Vec<f64> = (0..runs)
        .map(|_| {
            let started = Instant::now();
            run();
            started.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("  {name:<52} {:>12.2} ms, least {:.2}", times[runs / 2], times[0]);
}

/// Resident bytes of this process.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
}

fn figure(name: &str, value: f64, unit: &str) {
    println!("  {name:<52} {value:>12.2} {unit}");
}
