//! System tables of what lies on disk, and of the work on it.

use arrow::record_batch::RecordBatch;
use sonde_engine::{Engine, JobKind, JobState, SegmentState, TableId, path};

use crate::error::Result;
use crate::running::Running;
use crate::system::{BatchBuilder, Kind};

/// `database.name`; none where the table was dropped.
fn name_of(engine: &Engine, table: TableId) -> Option<String> {
    engine.catalog().table_by_id(table).map(|table| table.full_name())
}

const CHUNKS: [(&str, Kind); 14] = [
    ("id", Kind::UInt),
    ("table", Kind::Text),
    ("first", Kind::Time),
    ("last", Kind::Time),
    ("seq_min", Kind::UInt),
    ("seq_max", Kind::UInt),
    ("rows", Kind::UInt),
    ("series", Kind::UInt),
    ("bytes", Kind::UInt),
    ("range_start", Kind::Time),
    ("range_end", Kind::Time),
    ("path", Kind::Text),
    ("values", Kind::UInt),
    ("bits_per_value", Kind::Float),
];

pub(super) fn chunks(engine: &Engine, _running: &Running) -> Result<RecordBatch> {
    let mut rows = BatchBuilder::new(&CHUNKS);
    for chunk in engine.chunks() {
        let values: u64 = chunk.columns.iter().map(|column| column.present).sum();
        let bytes: u64 = chunk.columns.iter().map(|column| column.bytes).sum();
        rows.uint(chunk.id.0);
        rows.text(name_of(engine, chunk.table).as_deref());
        rows.time(chunk.times.0);
        rows.time(chunk.times.1);
        rows.uint(chunk.seq.first.0);
        rows.uint(chunk.seq.last.0);
        rows.uint(chunk.rows);
        rows.uint(chunk.series);
        rows.uint(chunk.bytes);
        rows.time(chunk.range.start);
        rows.time(chunk.range.end);
        rows.text(Some(&format!("{}/{}", path::CHUNK_DIR, path::chunk(chunk.id))));
        rows.uint(values);
        rows.maybe_float(ratio(8 * bytes, values));
        rows.end_row();
    }
    rows.finish()
}

/// How much of `of` comes to each of `count`.
fn ratio(of: u64, count: u64) -> Option<f64> {
    (count > 0).then(|| of as f64 / count as f64)
}

const COLUMNS: [(&str, Kind); 7] = [
    ("table", Kind::Text),
    ("column", Kind::Text),
    ("role", Kind::Text),
    ("type", Kind::Text),
    ("values", Kind::UInt),
    ("bytes", Kind::UInt),
    ("bytes_per_value", Kind::Float),
];

pub(super) fn columns(engine: &Engine, _running: &Running) -> Result<RecordBatch> {
    let catalog = engine.catalog();
    let chunks = engine.chunks();
    let mut rows = BatchBuilder::new(&COLUMNS);
    for table in catalog.tables() {
        for column in &table.def().columns {
            let of_table = chunks.iter().filter(|chunk| chunk.table == table.id());
            let ranges =
                of_table.flat_map(|chunk| chunk.columns.iter()).filter(|range| range.id == column.id);
            let (values, bytes) =
                ranges.fold((0, 0), |(values, bytes), range| (values + range.present, bytes + range.bytes));
            rows.text(Some(&table.full_name()));
            rows.text(Some(&column.name));
            rows.text(Some(&format!("{:?}", column.role).to_ascii_lowercase()));
            rows.text(Some(if column.id.0 == 0 { "TIMESTAMP" } else { column.kind.sql_name() }));
            rows.uint(values);
            rows.uint(bytes);
            rows.maybe_float(ratio(bytes, values));
            rows.end_row();
        }
    }
    rows.finish()
}

const TIERS: [(&str, Kind); 6] = [
    ("table", Kind::Text),
    ("day", Kind::Time),
    ("path", Kind::Text),
    ("position", Kind::UInt),
    ("rows", Kind::UInt),
    ("bytes", Kind::UInt),
];

pub(super) fn tiers(engine: &Engine, _running: &Running) -> Result<RecordBatch> {
    let catalog = engine.catalog();
    let mut rows = BatchBuilder::new(&TIERS);
    for file in engine.cold_files() {
        let table = catalog.table_by_id(file.table).map(|table| table.full_name());
        rows.text(table.as_deref());
        rows.time(file.day.start);
        rows.text(Some(&file.path));
        rows.uint(file.position.0);
        rows.uint(file.rows);
        rows.uint(file.bytes);
        rows.end_row();
    }
    rows.finish()
}

const WAL: [(&str, Kind); 9] = [
    ("segment", Kind::UInt),
    ("path", Kind::Text),
    ("state", Kind::Text),
    ("held_by", Kind::Text),
    ("first", Kind::UInt),
    ("last", Kind::UInt),
    ("bytes", Kind::UInt),
    ("created", Kind::Time),
    ("flushed_to", Kind::UInt),
];

pub(super) fn wal(engine: &Engine, _running: &Running) -> Result<RecordBatch> {
    let flushed_to = engine.log_status().flushed_to;
    let mut rows = BatchBuilder::new(&WAL);
    for segment in engine.log_segments() {
        rows.uint(segment.number);
        rows.text(Some(&segment.path));
        rows.text(Some(match segment.state {
            SegmentState::Active => "active",
            SegmentState::Replayed => "replayed",
            SegmentState::Held => "held",
            SegmentState::Done => "done",
        }));
        rows.text(segment.held_by.as_deref());
        rows.uint(segment.first.0);
        rows.uint(segment.last.0);
        rows.uint(segment.bytes);
        rows.time(segment.created);
        rows.uint(flushed_to.0);
        rows.end_row();
    }
    rows.finish()
}

const JOBS: [(&str, Kind); 12] = [
    ("kind", Kind::Text),
    ("state", Kind::Text),
    ("table", Kind::Text),
    ("range_start", Kind::Time),
    ("range_end", Kind::Time),
    ("started", Kind::Time),
    ("seconds", Kind::Float),
    ("rows", Kind::UInt),
    ("bytes", Kind::UInt),
    ("failures", Kind::UInt),
    ("error", Kind::Text),
    ("next_try", Kind::Time),
];

pub(super) fn jobs(engine: &Engine, _running: &Running) -> Result<RecordBatch> {
    let mut rows = BatchBuilder::new(&JOBS);
    for job in engine.jobs() {
        rows.text(Some(match job.kind {
            JobKind::Flush => "flush",
            JobKind::Compact => "compact",
            JobKind::Cool => "cool",
            JobKind::Retain => "retain",
            JobKind::CleanUp => "clean_up",
        }));
        rows.text(Some(match job.state {
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Resting => "resting",
            JobState::Done => "done",
            JobState::Failed => "failed",
        }));
        rows.text(job.table.and_then(|table| name_of(engine, table)).as_deref());
        rows.maybe_time(job.range.map(|range| range.start));
        rows.maybe_time(job.range.map(|range| range.end));
        rows.maybe_time(job.started);
        rows.maybe_float(job.took.map(|took| took.as_secs_f64()));
        rows.maybe_uint(job.rows);
        rows.maybe_uint(job.bytes);
        rows.uint(job.failures);
        rows.text(job.error.as_deref());
        rows.maybe_time(job.next_try);
        rows.end_row();
    }
    rows.finish()
}
