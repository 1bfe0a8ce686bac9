//! The catalog: tables, their columns, and the statements kept as objects. An immutable snapshot; changes make a new one.
//!
//! # Invariants
//! - Only the writer thread applies changes, in log order, together with the rows that need them.
//! - Ids of tables and of a table's columns are never reused.

pub(crate) mod check;
mod nearest;
mod request;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use sonde_storage_format::{CatalogChange, ColumnDef, Object, ObjectKind, TableId};

pub use nearest::nearest;
pub use request::{CatalogRequest, NewColumn, NewTable};
pub use table::Table;

use crate::error::{Error, Result};
use crate::series_budget::SeriesBudget;

/// The name of the time column of every table.
pub const TIME_NAME: &str = "time";

/// A snapshot of the catalog.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    tables: BTreeMap<TableId, Arc<Table>>,
    objects: BTreeMap<(ObjectKind, String, String), Arc<Object>>,
    next_table: u32,
    /// Counts changes of each kind of object.
    versions: BTreeMap<ObjectKind, u64>,
    /// The account of the series of all tables.
    series: Arc<SeriesBudget>,
}

impl Catalog {
    /// An empty one whose series are in this account.
    pub(crate) fn new(series: Arc<SeriesBudget>) -> Self {
        Self { series, ..Self::default() }
    }

    /// The account of the series of all tables.
    pub(crate) fn series_budget(&self) -> &SeriesBudget {
        &self.series
    }

    /// All tables.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.tables.values()
    }

    /// The table of this id.
    #[must_use]
    pub fn table_by_id(&self, id: TableId) -> Option<&Arc<Table>> {
        self.tables.get(&id)
    }

    /// The table of exactly this name.
    #[must_use]
    pub fn exact_table(&self, database: &str, name: &str) -> Option<&Arc<Table>> {
        self.tables.values().find(|table| table.def().name == name && table.def().database == database)
    }

    /// The table of this name: an exact match, else the only one that matches without regard to case.
    #[must_use]
    pub fn table(&self, database: &str, name: &str) -> Option<&Arc<Table>> {
        let of_database = || self.tables.values().filter(|table| table.def().database == database);
        if let Some(exact) = self.exact_table(database, name) {
            return Some(exact);
        }
        let mut matches = of_database().filter(|table| table.def().name.eq_ignore_ascii_case(name));
        let first = matches.next()?;
        matches.next().is_none().then_some(first)
    }

    /// The table of this name, or an error that says which one was probably meant.
    pub fn require_table(&self, database: &str, name: &str) -> Result<&Arc<Table>> {
        // Another database's names are nobody's business.
        let of_database = self.tables.values().filter(|table| table.def().database == database);
        self.table(database, name).ok_or_else(|| Error::UnknownTable {
            name: format!("{database}.{name}"),
            hint: nearest(name, of_database.map(|table| table.def().name.as_str()))
                .map(|name| format!("; did you mean {name}?"))
                .unwrap_or_default(),
        })
    }

    /// All objects of a kind.
    pub fn objects(&self, kind: ObjectKind) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values().filter(move |object| object.kind == kind)
    }

    /// The object of this name.
    #[must_use]
    pub fn object(&self, kind: ObjectKind, database: &str, name: &str) -> Option<&Arc<Object>> {
        self.objects.get(&(kind, database.to_owned(), name.to_owned()))
    }

    /// Grows with every change of an object of this kind.
    #[must_use]
    pub fn version(&self, kind: ObjectKind) -> u64 {
        self.versions.get(&kind).copied().unwrap_or_default()
    }

    /// Applies one change.
    pub(crate) fn apply(&mut self, change: &CatalogChange) {
        match change {
            CatalogChange::CreateTable(def) => {
                self.next_table = self.next_table.max(def.id.0 + 1);
                self.tables.insert(def.id, Arc::new(Table::new(def.clone(), &self.series)));
            }
            CatalogChange::DropTable(table) => {
                self.tables.remove(table);
            }
            CatalogChange::ReserveTables(next) => self.next_table = self.next_table.max(next.0),
            CatalogChange::PutObject(object) => {
                *self.versions.entry(object.kind).or_default() += 1;
                let key = (object.kind, object.database.clone(), object.name.clone());
                self.objects.insert(key, Arc::new(object.clone()));
            }
            CatalogChange::DropObject { kind, database, name } => {
                *self.versions.entry(*kind).or_default() += 1;
                self.objects.remove(&(*kind, database.clone(), name.clone()));
            }
            CatalogChange::SetOptions { table, options } => {
                self.alter(*table, |table| table.set_options(*options));
            }
            CatalogChange::RenameTable { table, name } => self.alter(*table, |table| table.rename(name)),
            CatalogChange::AddColumn { table, column } => {
                self.alter(*table, |table| table.push_column(column.clone()));
            }
            CatalogChange::DropColumn { table, column } => {
                self.alter(*table, |table| table.change_column(*column, |_| None));
            }
            CatalogChange::RenameColumn { table, column, name } => self.alter(*table, |table| {
                table.change_column(*column, |column| Some(ColumnDef { name: name.clone(), ..column }));
            }),
            CatalogChange::SetType { table, column, kind } => self.alter(*table, |table| {
                table.change_column(*column, |column| Some(ColumnDef { kind: *kind, ..column }));
            }),
            CatalogChange::ReserveColumns { table, next } => {
                self.alter(*table, |table| table.reserve_columns(*next));
            }
        }
    }

    /// Changes a table, for this and later snapshots.
    fn alter(&mut self, table: TableId, change: impl FnOnce(&mut Table)) {
        if let Some(table) = self.tables.get_mut(&table) {
            change(Arc::make_mut(table));
        }
    }

    /// Changes that build this catalog from nothing.
    pub(crate) fn to_changes(&self) -> Vec<CatalogChange> {
        let mut changes = vec![CatalogChange::ReserveTables(TableId(self.next_table))];
        for table in self.tables.values() {
            changes.push(CatalogChange::CreateTable(table.def().clone()));
            changes.extend(table.reserved());
        }
        changes.extend(self.objects.values().map(|object| CatalogChange::PutObject(Object::clone(object))));
        changes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use sonde_storage_format::{TableKind, TableOptions};

    use super::*;

    #[test]
    fn ids_are_not_reused_after_a_drop() {
        let new = || NewTable {
            database: "public".into(),
            name: "a".into(),
            kind: TableKind::Points,
            open: true,
            options: TableOptions::default(),
            columns: Vec::new(),
        };
        let mut catalog = Catalog::default();
        let create = |catalog: &Catalog| catalog.plan(&CatalogRequest::CreateTable(new())).unwrap();
        create(&catalog).iter().for_each(|change| catalog.apply(change));
        let first = catalog.table("public", "A").unwrap().id();
        catalog.apply(&CatalogChange::DropTable(first));
        let mut again = Catalog::default();
        catalog.to_changes().iter().for_each(|change| again.apply(change));
        create(&again).iter().for_each(|change| again.apply(change));
        assert_ne!(again.table("public", "a").unwrap().id(), first);
    }
}
