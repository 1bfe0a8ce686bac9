//! System tables of what `query` and the engine below it know.

mod batch;

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use sonde_engine::{ObjectKind, Table};

pub use batch::BatchBuilder;

use crate::context::{QueryEngine, SystemTable};
use crate::error::Result;

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
type Make = fn(&QueryEngine) -> Result<RecordBatch>;

/// Registers the tables that need nothing from elsewhere.
pub(crate) fn register(query: &QueryEngine) {
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
        // Held weakly it would be a cycle broken; the process holds one query engine for its whole life.
        let query_engine = query.clone();
        query.register_table(Arc::new(FnTable::new(name, move || make(&query_engine))));
    }
}

fn chunks(query: &QueryEngine) -> Result<RecordBatch> {
    let catalog = query.engine().catalog();
    let mut rows = BatchBuilder::new();
    for chunk in query.engine().chunks() {
        let table = catalog.table_by_id(chunk.table).map(|table| table.full_name());
        rows.uint("id", chunk.id.0);
        rows.text("table", table.as_deref());
        rows.time("first", chunk.times.0);
        rows.time("last", chunk.times.1);
        rows.uint("seq_min", chunk.seq.first.0);
        rows.uint("seq_max", chunk.seq.last.0);
        rows.uint("rows", chunk.rows);
        rows.uint("series", chunk.series);
        rows.uint("bytes", chunk.bytes);
        rows.end_row();
    }
    rows.finish(&[
        ("id", "u"),
        ("table", "s"),
        ("first", "t"),
        ("last", "t"),
        ("seq_min", "u"),
        ("seq_max", "u"),
        ("rows", "u"),
        ("series", "u"),
        ("bytes", "u"),
    ])
}

fn columns(query: &QueryEngine) -> Result<RecordBatch> {
    let catalog = query.engine().catalog();
    let chunks = query.engine().chunks();
    let mut rows = BatchBuilder::new();
    for table in catalog.tables() {
        for column in &table.def().columns {
            let ranges = || {
                let of_table = chunks.iter().filter(|chunk| chunk.table == table.id());
                of_table.flat_map(|chunk| chunk.columns.iter()).filter(|range| range.id == column.id)
            };
            rows.text("table", Some(&table.full_name()));
            rows.text("column", Some(&column.name));
            rows.text("role", Some(&format!("{:?}", column.role).to_ascii_lowercase()));
            rows.text("type", Some(if column.id.0 == 0 { "TIMESTAMP" } else { column.kind.sql_name() }));
            rows.uint("values", ranges().map(|range| range.present).sum());
            rows.uint("bytes", ranges().map(|range| range.bytes).sum());
            rows.end_row();
        }
    }
    rows.finish(&[
        ("table", "s"),
        ("column", "s"),
        ("role", "s"),
        ("type", "s"),
        ("values", "u"),
        ("bytes", "u"),
    ])
}

fn queries(query: &QueryEngine) -> Result<RecordBatch> {
    let mut rows = BatchBuilder::new();
    for info in query.running() {
        rows.uint("id", info.id);
        rows.text("principal", Some(&info.principal));
        rows.float("seconds", info.elapsed.as_secs_f64());
        rows.text("sql", Some(&info.sql));
        rows.end_row();
    }
    rows.finish(&[("id", "u"), ("principal", "s"), ("seconds", "f"), ("sql", "s")])
}

fn sources(query: &QueryEngine) -> Result<RecordBatch> {
    let catalog = query.engine().catalog();
    let mut rows = BatchBuilder::new();
    for object in catalog.objects(ObjectKind::Source) {
        rows.text("database", Some(&object.database));
        rows.text("name", Some(&object.name));
        rows.text("statement", Some(&object.text));
        rows.end_row();
    }
    rows.finish(&[("database", "s"), ("name", "s"), ("statement", "s")])
}

fn tables(query: &QueryEngine) -> Result<RecordBatch> {
    let catalog = query.engine().catalog();
    let mut rows = BatchBuilder::new();
    let days = |nanos: i64| (nanos > 0).then(|| format!("{} s", nanos / 1_000_000_000));
    for table in catalog.tables() {
        let def = Table::def(table);
        rows.text("database", Some(&def.database));
        rows.text("name", Some(&def.name));
        rows.text("kind", Some(&format!("{:?}", def.kind).to_ascii_lowercase()));
        rows.uint("series", query.engine().series_count(def.id) as u64);
        rows.text("partition", days(def.options.partition).as_deref());
        rows.text("retention", days(def.options.retention).as_deref());
        rows.text("cold_after", days(def.options.cold_after).as_deref());
        rows.end_row();
    }
    rows.finish(&[
        ("database", "s"),
        ("name", "s"),
        ("kind", "s"),
        ("series", "u"),
        ("partition", "s"),
        ("retention", "s"),
        ("cold_after", "s"),
    ])
}

fn tiers(query: &QueryEngine) -> Result<RecordBatch> {
    let catalog = query.engine().catalog();
    let mut rows = BatchBuilder::new();
    for file in query.engine().cold_files() {
        let table = catalog.table_by_id(file.table).map(|table| table.full_name());
        rows.text("table", table.as_deref());
        rows.time("day", file.day.start);
        rows.text("path", Some(&file.path));
        rows.uint("position", file.position.0);
        rows.uint("rows", file.rows);
        rows.uint("bytes", file.bytes);
        rows.end_row();
    }
    rows.finish(&[
        ("table", "s"),
        ("day", "t"),
        ("path", "s"),
        ("position", "u"),
        ("rows", "u"),
        ("bytes", "u"),
    ])
}

fn wal(query: &QueryEngine) -> Result<RecordBatch> {
    let status = query.engine().log_status();
    let mut rows = BatchBuilder::new();
    rows.uint("segments", status.segments as u64);
    rows.uint("bytes", status.bytes);
    rows.uint("first", status.first.0);
    rows.uint("last", status.last.0);
    rows.uint("flushed_to", status.flushed_to.0);
    rows.end_row();
    rows.finish(&[("segments", "u"), ("bytes", "u"), ("first", "u"), ("last", "u"), ("flushed_to", "u")])
}
