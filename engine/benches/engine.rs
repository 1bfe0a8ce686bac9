//! The engine alone, one writer: durable writes, recovery, flush, compaction, scan with sum, ranges of one series; loads of
//! 30 days, in order and shuffled; and the start with 100,000 chunks.
//!
//! `cargo bench -p sonde-engine --bench engine --profile demo -- [--scale 0.1] [--only late|chunks]`. The rows: 1,000
//! series, a row every 10 s, four float64 fields that walk in steps of 0.01, written in time order in batches of 10,000. The
//! loads have as many rows over 30 days, in memtables of the usual 64 MiB; flushes, and merges until none is due any more,
//! are part of their time.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark stops at the first thing that is wrong"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Float64Type;
use sonde_engine::limits::WIDE_AGE;
use sonde_engine::{
    AggregateRequest, CatalogRequest, Clock, ColumnId, ColumnRole, Engine, FieldValue, LocalStorage,
    NewColumn, NewTable, Number, Options, PhysicalType, Row, ScanRequest, SystemClock, Table, TableKind,
    TableOptions, TagFilter, TimeRange, Timestamp,
};

const SERIES: usize = 1000;
const FIELDS: [&str; 4] = ["temperature", "pressure", "vibration", "level"];
const BATCH: usize = 10_000;
/// 2024-02-24T00:00:00Z, so that the rows fill their days.
const START: i64 = 1_708_732_800_000_000_000;
const STEP: i64 = 10_000_000_000;
const DAY: i64 = 86_400 * 1_000_000_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let scale: f64 =
        args.iter().position(|arg| arg == "--scale").map_or(1.0, |at| args[at + 1].parse().unwrap());
    let rows = (5_000_000.0 * scale) as usize / BATCH * BATCH;
    let only = |part: &str| args.windows(2).any(|pair| pair == ["--only", part]);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-engine-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    println!("Engine, {rows} rows of {} float64 fields, {SERIES} series", FIELDS.len());
    if !only("late") && !only("chunks") {
        one_by_one(&dir, rows);
    }
    if !only("chunks") {
        loads(&dir, rows);
    }
    if !only("late") {
        many_chunks(&dir, (100.0 * scale) as usize);
    }
}

/// Each thing for itself.
fn one_by_one(dir: &Path, rows: usize) {
    let engine = open(dir, 1 << 30, Arc::new(SystemClock));
    let table = create(&engine, "readings");
    let in_order = |row: usize| (row % SERIES, row / SERIES, START + (row / SERIES) as i64 * STEP);
    rate("durable write", rows, || write(&engine, &table, rows, in_order));
    let gigabytes = engine.log_status().bytes as f64 / 1e9;
    drop((engine, table));
    let mut engine = None;
    let started = Instant::now();
    rate("recovery from the log", rows, || engine = Some(open(dir, 1 << 30, Arc::new(SystemClock))));
    figure(
        "  the same, for a GB of log (its last segment whole)",
        started.elapsed().as_secs_f64() / gigabytes,
        "s",
    );
    let engine = engine.unwrap();
    scans(&engine, "in memory", rows);
    rate("flush", rows, || engine.flush().unwrap());
    let table = current(&engine);
    rate("compaction of all chunks", rows, || engine.compact(table.id()).unwrap());
    figure("chunks", engine.chunks().len() as f64, "files");
    figure("bytes per value in chunks", chunk_bytes(&engine) / (rows * FIELDS.len()) as f64, "bytes");
    scans(&engine, "in chunks", rows);
    engine.close().unwrap();
    drop((engine, table));
    std::fs::remove_dir_all(dir).unwrap();
}

/// A start with so many times 1,000 chunks: 1,000 tables, a row a day in each.
fn many_chunks(dir: &Path, days: usize) {
    let clock = Arc::new(Later(AtomicI64::new(START)));
    let engine = open(dir, 1 << 30, Arc::<Later>::clone(&clock));
    let tables: Vec<Arc<Table>> = (0..1000).map(|n| create(&engine, &format!("readings_{n}"))).collect();
    for day in 0..days as i64 {
        let time = Timestamp::from_nanos(START + day * DAY);
        clock.0.store(time.as_nanos(), Ordering::Relaxed);
        let mut builder = engine.batch();
        builder.begin_message();
        for table in &tables {
            let tags = [(id(table, "device"), "device-0000".into())];
            let fields = FIELDS.map(|name| (id(table, name), FieldValue::Float(value(0, day as usize, 0))));
            builder.row(table, &Row { time, tags: &tags, fields: &fields }, None).unwrap();
        }
        engine.write(builder.finish().unwrap()).wait().unwrap();
        engine.flush().unwrap();
    }
    let chunks = engine.chunks().len();
    engine.close().unwrap();
    drop((engine, tables));
    let started = Instant::now();
    let engine = open(dir, 1 << 30, clock);
    figure(&format!("start with {chunks} chunks"), started.elapsed().as_secs_f64(), "s");
    assert_eq!(engine.chunks().len(), chunks);
    engine.close().unwrap();
    drop(engine);
    std::fs::remove_dir_all(dir).unwrap();
}

/// The rows of 30 days: in order, shuffled, and shuffled into a table that has as many rows of these days already.
fn loads(dir: &Path, rows: usize) {
    let step = 30 * DAY / (rows / SERIES) as i64;
    // Clocks of devices are never exact: up to a second late.
    let jitter =
        |row: usize| ((row as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as i64 % 1000 * 1_000_000;
    let in_order =
        |row: usize| (row % SERIES, row / SERIES, START + (row / SERIES) as i64 * step + jitter(row));
    // The same rows in another order.
    let places = shuffle(rows);
    let shuffled = |row: usize| in_order(places[row] as usize);
    let between = |row: usize| {
        let (series, place, time) = shuffled(row);
        (series, place, time + step / 2)
    };
    let mut rates = Vec::new();
    for (name, base) in [("in order", false), ("shuffled", false), ("shuffled, over old chunks", true)] {
        let clock = Arc::new(Later(AtomicI64::new(START + 31 * DAY)));
        let engine = open(dir, 64 << 20, Arc::<Later>::clone(&clock));
        let table = create(&engine, "readings");
        if base {
            load(&engine, &clock, &table, rows, &in_order);
        }
        let (before, old) = (engine.compaction_stats(table.id()), chunk_bytes(&engine));
        let started = Instant::now();
        rate(&format!("load of 30 days, {name}"), rows, || match name {
            "in order" => load(&engine, &clock, &table, rows, &in_order),
            _ if base => load(&engine, &clock, &table, rows, &between),
            _ => load(&engine, &clock, &table, rows, &shuffled),
        });
        rates.push(started.elapsed().as_secs_f64());
        let stats = engine.compaction_stats(table.id());
        let flushed = (stats.flushed_bytes - before.flushed_bytes) as f64;
        let merged = (stats.merged_bytes - before.merged_bytes) as f64;
        figure("  chunks that flushes wrote", (stats.flushed_chunks - before.flushed_chunks) as f64, "files");
        figure("  merges", (stats.merges - before.merges) as f64, "");
        figure("  chunks in the end", engine.chunks().len() as f64, "files");
        let new = chunk_bytes(&engine) - old;
        figure("  bytes flushed / bytes that they come to", flushed / new, "");
        figure("  bytes written / bytes that they come to", (flushed + merged) / new, "");
        let all = (stats.flushed_bytes + stats.merged_bytes) as f64 / chunk_bytes(&engine);
        figure("  the same of the whole table", all, "");
        let all = ScanRequest::all(current(&engine), vec![id(&current(&engine), "temperature")]);
        assert_eq!(read(&engine, &all).1, if base { 2 * rows } else { rows });
        engine.close().unwrap();
        drop((engine, table));
        std::fs::remove_dir_all(dir).unwrap();
    }
    if let [in_order, late, over] = rates[..] {
        figure("rate of a shuffled load, of that in order", 100.0 * in_order / late, "%");
        figure("rate over old chunks, of that in order", 100.0 * in_order / over, "%");
    }
}

/// The numbers below `count` in another order, always the same.
fn shuffle(count: usize) -> Vec<u32> {
    let mut places: Vec<u32> = (0..count as u32).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for place in (1..count).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        places.swap(place, (state % (place as u64 + 1)) as usize);
    }
    places
}

/// A clock that a load sets: what has gone quiet after it is merged without waiting for hours.
#[derive(Debug)]
struct Later(AtomicI64);

impl Clock for Later {
    fn now(&self) -> Timestamp {
        Timestamp::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// Writes and flushes, and merges what is due then and in the hours after.
fn load(
    engine: &Engine,
    clock: &Later,
    table: &Arc<Table>,
    rows: usize,
    place: &impl Fn(usize) -> (usize, usize, i64),
) {
    write(engine, table, rows, place);
    engine.flush().unwrap();
    for _ in 0..3 {
        engine.compact_due().unwrap();
        clock.0.fetch_add(WIDE_AGE.as_nanos() as i64, Ordering::Relaxed);
    }
    engine.compact_due().unwrap();
}

fn chunk_bytes(engine: &Engine) -> f64 {
    engine.chunks().iter().map(|chunk| chunk.bytes).sum::<u64>() as f64
}

/// A memtable of so many bytes; one that holds all rows is flushed when it is asked for. Threads of an engine that was
/// dropped end in their own time, so its lock is awaited.
fn open(dir: &Path, memtable_bytes: usize, clock: Arc<dyn Clock>) -> Engine {
    let mut options = Options::new(dir);
    options.memtable_bytes = memtable_bytes;
    let started = Instant::now();
    loop {
        match Engine::open_with(options.clone(), Arc::new(LocalStorage), Arc::clone(&clock)) {
            Ok(engine) => return engine,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(10), "{error}"),
        }
    }
}

fn create(engine: &Engine, name: &str) -> Arc<Table> {
    let column = |name: &str, role, kind| NewColumn { name: name.into(), role, kind };
    let mut columns = vec![column("device", ColumnRole::Tag, PhysicalType::Text)];
    columns.extend(FIELDS.map(|name| column(name, ColumnRole::Field, PhysicalType::Float64)));
    let new = NewTable {
        database: "public".into(),
        name: name.into(),
        kind: TableKind::Points,
        open: true,
        options: TableOptions::default(),
        columns,
    };
    engine.change_catalog(CatalogRequest::CreateTable(new)).unwrap();
    named(engine, name)
}

fn current(engine: &Engine) -> Arc<Table> {
    named(engine, "readings")
}

fn named(engine: &Engine, name: &str) -> Arc<Table> {
    Arc::clone(engine.catalog().require_table("public", name).unwrap())
}

fn id(table: &Table, name: &str) -> ColumnId {
    table.column(name).unwrap().id
}

/// A walk in steps of 0.01 that stays near its start.
fn value(series: usize, step: usize, field: usize) -> f64 {
    let phase = (step * (field + 1) + series * 37) % 2000;
    let triangle = if phase < 1000 { phase } else { 2000 - phase };
    let jitter = (step * 7919 + series * 104_729 + field * 31) % 13;
    (2000 + triangle as i64 + jitter as i64) as f64 / 100.0
}

/// Writes rows; `place` gives the series, the step of its walk and the time of each.
fn write(engine: &Engine, table: &Arc<Table>, rows: usize, place: impl Fn(usize) -> (usize, usize, i64)) {
    let (device, fields) = (id(table, "device"), FIELDS.map(|name| id(table, name)));
    let names: Vec<String> = (0..SERIES).map(|series| format!("device-{series:04}")).collect();
    let mut receipts = Vec::new();
    for first in (0..rows).step_by(BATCH) {
        let mut builder = engine.batch();
        builder.begin_message();
        for row in first..first + BATCH {
            let (series, step, time) = place(row);
            let tags = [(device, names[series].as_str().into())];
            let values: [(ColumnId, FieldValue<'_>); FIELDS.len()] =
                std::array::from_fn(|field| (fields[field], FieldValue::Float(value(series, step, field))));
            let time = Timestamp::from_nanos(time);
            builder.row(table, &Row { time, tags: &tags, fields: &values }, None).unwrap();
        }
        receipts.push(engine.write(builder.finish().unwrap()));
    }
    for receipt in receipts {
        receipt.wait().unwrap();
    }
}

/// Adds up a field of all rows that a request asks for, and counts them.
type Way = fn(&Engine, &ScanRequest) -> (f64, usize);

fn scans(engine: &Engine, place: &str, rows: usize) {
    let table = current(engine);
    let all = ScanRequest::all(Arc::clone(&table), vec![id(&table, "temperature")]);
    let expected: f64 = (0..rows).map(|row| value(row % SERIES, row / SERIES, 0)).sum();
    let ways: [(&str, Way); 2] =
        [("scan and sum of one field", read), ("total of one field, by statistics where they say it", total)];
    for (name, way) in ways {
        let sum = || {
            let (sum, count) = way(engine, &all);
            assert_eq!(count, rows);
            assert!((sum - expected).abs() < expected * 1e-9, "{sum} instead of {expected}");
        };
        sum();
        // The kernel counts CPU time in hundredths of a second: as many times as take long enough.
        let (started, mut times) = (Instant::now(), 0);
        while started.elapsed() < Duration::from_millis(200) {
            sum();
            times += 1;
        }
        let again = || (0..5 * times).for_each(|_| sum());
        rate(&format!("{name}, {place}"), 5 * times * rows, again);
    }

    for hours in [1, 12] {
        let mut range = all.clone();
        range.tags =
            vec![TagFilter { column: id(&table, "device"), values: [Some("device-0500".to_owned())].into() }];
        let end = START + i64::from(hours) * 3600 * 1_000_000_000;
        range.time = TimeRange { start: Timestamp::from_nanos(START), end: Timestamp::from_nanos(end) };
        let runs = 200;
        let started = Instant::now();
        for _ in 0..runs {
            assert_eq!(read(engine, &range).1, (hours as usize * 360).min(rows / SERIES));
        }
        let each = started.elapsed().as_secs_f64() * 1e6 / f64::from(runs);
        figure(&format!("{hours} h of one series, {place}"), each, "us");
    }
}

/// Sum and count of the only column.
fn read(engine: &Engine, request: &ScanRequest) -> (f64, usize) {
    let scan = engine.scan(&engine.snapshot(), request).unwrap();
    scan.open(0, 1).map(Result::unwrap).fold((0.0, 0), |(sum, count), batch| {
        let column = batch.column(0).as_primitive::<Float64Type>();
        (sum + arrow::compute::sum(column).unwrap_or_default(), count + batch.num_rows())
    })
}

/// The same, without batches.
fn total(engine: &Engine, request: &ScanRequest) -> (f64, usize) {
    let scan = engine.scan(&engine.snapshot(), request).unwrap();
    let wanted = AggregateRequest { by_series: false, sums: vec![true] };
    let aggregate = scan.aggregate(0, 1, &wanted, &|| true).unwrap();
    let totals = &aggregate.totals[0];
    match totals.fields[0].sum() {
        Some(Number::Float(sum)) => (sum, totals.rows as usize),
        other => panic!("{other:?}"),
    }
}

/// CPU seconds of this process so far, user and system.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn rate(name: &str, rows: usize, run: impl FnOnce()) {
    let (started, spent) = (Instant::now(), cpu());
    run();
    let (elapsed, spent) = (started.elapsed().as_secs_f64(), cpu() - spent);
    println!(
        "  {name:<44} {:>12.0} rows/s {:>12.0} rows per CPU s",
        rows as f64 / elapsed,
        rows as f64 / spent.max(0.01)
    );
}

fn figure(name: &str, value: f64, unit: &str) {
    println!("  {name:<44} {value:>12.2} {unit}");
}
