//! System tables of what `query` and the engine below it know.

mod batch;

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use sonde_engine::limits::TABLE_SERIES;
use sonde_engine::{Engine, ObjectKind, Table};

pub use batch::{BatchBuilder, Kind};

use crate::context::{QueryEngine, SystemTable};
use crate::error::Result;
use crate::running::Running;

/// A system table made by a function.
pub struct FnTable<F> {
    name: &'static str,
    make: F,
}

impl<F> std::fmt::Debug for FnTable<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "system.{}", self.name)
    }
}

impl<F: Fn() -> Result<RecordBatch> + Send + Sync> FnTable<F> {
    /// The table of this name; `make` gives its rows.
    pub fn new(name: &'static str, make: F) -> Self {
        Self { name, make }
    }
}

impl<F: Fn() -> Result<RecordBatch> + Send + Sync> SystemTable for FnTable<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn batch(&self) -> Result<RecordBatch> {
        (self.make)()
    }
}

/// Gives the rows of a table.
type Make = fn(&Engine, &Running) -> Result<RecordBatch>;

/// Registers the tables that need nothing from elsewhere.
pub(crate) fn register(query: &QueryEngine, running: &Arc<Running>) {
    let tables: [(&'static str, Make); 7] = [
        ("chunks", chunks),
        ("columns", columns),
        ("queries", queries),
        ("sources", sources),
        ("tables", tables),
        ("tiers", tiers),
        ("wal", wal),
    ];
    for (name, make) in tables {
        // Not the query engine, which has this table: it would never end.
        let (engine, running) = (query.engine().clone(), Arc::clone(running));
        query.register_table(Arc::new(FnTable::new(name, move || make(&engine, &running))));
    }
}

const CHUNKS: [(&str, Kind); 9] = [
    ("id", Kind::UInt),
    ("table", Kind::Text),
    ("first", Kind::Time),
    ("last", Kind::Time),
    ("seq_min", Kind::UInt),
    ("seq_max", Kind::UInt),
    ("rows", Kind::UInt),
    ("series", Kind::UInt),
    ("bytes", Kind::UInt),
];

fn chunks(engine: &Engine, _running: &Running) -> Result<RecordBatch> {
    let catalog = engine.catalog();
    let mut rows = BatchBuilder::new(&CHUNKS);
    for chunk in engine.chunks() {
        let table = catalog.table_by_id(chunk.table).map(|table| table.full_name());
        rows.uint(chunk.id.0);
        rows.text(table.as_deref());
        rows.time(chunk.times.0);
        rows.time(chunk.times.1);
        rows.uint(chunk.seq.first.0);
        rows.uint(chunk.seq.last.0);
        rows.uint(chunk.rows);
        rows.uint(chunk.series);
        rows.uint(chunk.bytes);
        rows.end_row();
    }
    rows.finish()
}

const COLUMNS: [(&str, Kind); 6] = [
    ("table", Kind::Text),
    ("column", Kind::Text),
    ("role", Kind::Text),
    ("type", Kind::Text),
    ("values", Kind::UInt),
    ("bytes", Kind::UInt),
];

fn columns(engine: &Engine, _running: &Running) -> Result<RecordBatch> {
    let catalog = engine.catalog();
    let chunks = engine.chunks();
    let mut rows = BatchBuilder::new(&COLUMNS);
    for table in catalog.tables() {
        for column in &table.def().columns {
            let ranges = || {
                let of_table = chunks.iter().filter(|chunk| chunk.table == table.id());
                of_table.flat_map(|chunk| chunk.columns.iter()).filter(|range| range.id == column.id)
            };
            rows.text(Some(&table.full_name()));
            rows.text(Some(&column.name));
            rows.text(Some(&format!("{:?}", column.role).to_ascii_lowercase()));
            rows.text(Some(if column.id.0 == 0 { "TIMESTAMP" } else { column.kind.sql_name() }));
            rows.uint(ranges().map(|range| range.present).sum());
            rows.uint(ranges().map(|range| range.bytes).sum());
            rows.end_row();
        }
    }
    rows.finish()
}

const QUERIES: [(&str, Kind); 4] =
    [("id", Kind::UInt), ("principal", Kind::Text), ("seconds", Kind::Float), ("sql", Kind::Text)];

fn queries(_engine: &Engine, running: &Running) -> Result<RecordBatch> {
    let mut rows = BatchBuilder::new(&QUERIES);
    for info in running.list() {
        rows.uint(info.id);
        rows.text(Some(&info.principal));
        rows.float(info.elapsed.as_secs_f64());
        rows.text(Some(&info.sql));
        rows.end_row();
    }
    rows.finish()
}

const SOURCES: [(&str, Kind); 3] =
    [("database", Kind::Text), ("name", Kind::Text), ("statement", Kind::Text)];

fn sources(engine: &Engine, _running: &Running) -> Result<RecordBatch> {
    let catalog = engine.catalog();
    let mut rows = BatchBuilder::new(&SOURCES);
    for object in catalog.objects(ObjectKind::Source) {
        rows.text(Some(&object.database));
        rows.text(Some(&object.name));
        rows.text(Some(&object.text));
        rows.end_row();
    }
    rows.finish()
}

const TABLES: [(&str, Kind); 9] = [
    ("database", Kind::Text),
    ("name", Kind::Text),
    ("kind", Kind::Text),
    ("series", Kind::UInt),
    ("max_series", Kind::UInt),
    ("partition", Kind::Text),
    ("retention", Kind::Text),
    ("cold_after", Kind::Text),
    ("profile", Kind::Text),
];

fn tables(engine: &Engine, _running: &Running) -> Result<RecordBatch> {
    let catalog = engine.catalog();
    let mut rows = BatchBuilder::new(&TABLES);
    let span = |nanos: i64| (nanos > 0).then(|| format!("{} s", nanos / 1_000_000_000));
    for table in catalog.tables() {
        let def = Table::def(table);
        rows.text(Some(&def.database));
        rows.text(Some(&def.name));
        rows.text(Some(&format!("{:?}", def.kind).to_ascii_lowercase()));
        rows.uint(engine.series_count(def.id) as u64);
        rows.uint(table.max_series(TABLE_SERIES) as u64);
        rows.text(span(def.options.partition).as_deref());
        rows.text(span(def.options.retention).as_deref());
        rows.text(span(def.options.cold_after).as_deref());
        rows.text(Some(&format!("{:?}", def.options.profile).to_ascii_lowercase()));
        rows.end_row();
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

fn tiers(engine: &Engine, _running: &Running) -> Result<RecordBatch> {
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

const WAL: [(&str, Kind); 5] = [
    ("segments", Kind::UInt),
    ("bytes", Kind::UInt),
    ("first", Kind::UInt),
    ("last", Kind::UInt),
    ("flushed_to", Kind::UInt),
];

fn wal(engine: &Engine, _running: &Running) -> Result<RecordBatch> {
    let status = engine.log_status();
    let mut rows = BatchBuilder::new(&WAL);
    rows.uint(status.segments as u64);
    rows.uint(status.bytes);
    rows.uint(status.first.0);
    rows.uint(status.last.0);
    rows.uint(status.flushed_to.0);
    rows.end_row();
    rows.finish()
}
