//! System tables of what `query` and the engine below it know.

mod access;
mod batch;
mod storage;

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use sonde_engine::limits::TABLE_SERIES;
use sonde_engine::{Engine, ObjectKind, Table};

pub use batch::{BatchBuilder, Kind};

use crate::error::Result;
use crate::query_engine::QueryEngine;
use crate::registry::SystemTable;
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
    let tables: [(&'static str, Make); 11] = [
        ("chunks", storage::chunks),
        ("columns", storage::columns),
        ("grants", access::grants),
        ("jobs", storage::jobs),
        ("queries", queries),
        ("roles", access::roles),
        ("sources", sources),
        ("tables", tables),
        ("tiers", storage::tiers),
        ("users", access::users),
        ("wal", storage::wal),
    ];
    for (name, make) in tables {
        // Not the query engine, which has this table: it would never end.
        let (engine, running) = (query.engine().clone(), Arc::clone(running));
        query.register_table(Arc::new(FnTable::new(name, move || make(&engine, &running))));
    }
}

const QUERIES: [(&str, Kind); 5] = [
    ("id", Kind::UInt),
    ("principal", Kind::Text),
    ("seconds", Kind::Float),
    ("memory", Kind::UInt),
    ("sql", Kind::Text),
];

fn queries(_engine: &Engine, running: &Running) -> Result<RecordBatch> {
    let mut rows = BatchBuilder::new(&QUERIES);
    for info in running.list() {
        rows.uint(info.id);
        rows.text(Some(&info.principal));
        rows.float(info.elapsed.as_secs_f64());
        rows.uint(info.memory as u64);
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

const TABLES: [(&str, Kind); 10] = [
    ("database", Kind::Text),
    ("name", Kind::Text),
    ("kind", Kind::Text),
    ("series", Kind::UInt),
    ("max_series", Kind::UInt),
    ("partition", Kind::Text),
    ("retention", Kind::Text),
    ("cold_after", Kind::Text),
    ("profile", Kind::Text),
    ("durability", Kind::Text),
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
        let set = span(def.options.partition);
        rows.text(if def.options.automatic { Some("automatic") } else { set.as_deref() });
        rows.text(span(def.options.retention).as_deref());
        rows.text(span(def.options.cold_after).as_deref());
        rows.text(Some(&format!("{:?}", def.options.profile).to_ascii_lowercase()));
        rows.text(Some(&format!("{:?}", def.options.durability).to_ascii_lowercase()));
        rows.end_row();
    }
    rows.finish()
}
