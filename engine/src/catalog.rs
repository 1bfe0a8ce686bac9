//! The catalog: tables, their columns, and the statements kept as objects. An immutable snapshot; changes make a new one.
//!
//! # Invariants
//! - Only the writer thread applies changes, in log order, together with the rows that need them.
//! - Ids of tables and of a table's columns are never reused.

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::HashMap;
use sonde_storage_format::{
    CatalogChange, ColumnDef, ColumnId, ColumnRole, Object, ObjectKind, PhysicalType, TableDef, TableId,
    TableKind, TableOptions,
};

use crate::cold::{DAY, TIME_NS};
use crate::error::{Error, Result};
use crate::limits;
use crate::series::TableSeries;

/// The name of the time column of every table.
pub const TIME_NAME: &str = "time";

/// A table as the catalog knows it.
#[derive(Clone, Debug)]
pub struct Table {
    def: TableDef,
    /// The place of each column in `def`.
    by_name: HashMap<String, usize>,
    /// Shared by all snapshots of the table.
    series: Arc<TableSeries>,
    /// Above the ids of all columns that it ever had.
    next_column: u32,
}

impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.def == other.def
    }
}

impl Eq for Table {}

impl Table {
    fn new(def: TableDef) -> Self {
        let next_column = def.columns.iter().map(|column| column.id.0 + 1).max().unwrap_or_default();
        let mut table = Self { def, by_name: HashMap::default(), series: Arc::default(), next_column };
        table.index_names();
        table
    }

    fn index_names(&mut self) {
        let places = self.def.columns.iter().enumerate();
        self.by_name = places.map(|(place, column)| (column.name.clone(), place)).collect();
    }

    fn push_column(&mut self, column: ColumnDef) {
        self.by_name.insert(column.name.clone(), self.def.columns.len());
        self.next_column = self.next_column.max(column.id.0 + 1);
        self.def.columns.push(column);
    }

    /// Changes one of its columns, or takes it out.
    fn change_column(&mut self, id: ColumnId, change: impl FnOnce(ColumnDef) -> Option<ColumnDef>) {
        if let Ok(place) = self.def.columns.binary_search_by_key(&id, |column| column.id) {
            let changed = change(self.def.columns.remove(place));
            changed.into_iter().for_each(|column| self.def.columns.insert(place, column));
            self.index_names();
        }
    }

    /// Its definition.
    #[must_use]
    pub fn def(&self) -> &TableDef {
        &self.def
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> TableId {
        self.def.id
    }

    /// The column of exactly this name.
    #[must_use]
    pub fn exact(&self, name: &str) -> Option<&ColumnDef> {
        self.def.columns.get(*self.by_name.get(name)?)
    }

    /// The column of this name: an exact match, else the only one that matches without regard to case.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&ColumnDef> {
        if let Some(column) = self.exact(name) {
            return Some(column);
        }
        let mut matches = self.def.columns.iter().filter(|column| column.name.eq_ignore_ascii_case(name));
        let first = matches.next()?;
        matches.next().is_none().then_some(first)
    }

    /// The column of this id.
    #[must_use]
    pub fn column_by_id(&self, id: ColumnId) -> Option<&ColumnDef> {
        // Columns are appended with ascending ids.
        let place = self.def.columns.binary_search_by_key(&id, |column| column.id).ok()?;
        self.def.columns.get(place)
    }

    /// How many series it may have: what it was given, else `default`.
    #[must_use]
    pub fn max_series(&self, default: usize) -> usize {
        match self.def.options.max_series {
            0 => default,
            most => most as usize,
        }
    }

    /// Its series, those that were registered after this snapshot included.
    pub(crate) fn series(&self) -> &Arc<TableSeries> {
        &self.series
    }

    /// Its tags, in ColumnId order, as series keys have them.
    pub fn tags(&self) -> impl Iterator<Item = &ColumnDef> + Clone {
        self.def.columns.iter().filter(|column| column.role == ColumnRole::Tag)
    }

    /// The place of a tag in the series key.
    #[must_use]
    pub fn tag_index(&self, id: ColumnId) -> Option<usize> {
        self.tags().position(|tag| tag.id == id)
    }

    /// `database.name`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.def.database, self.def.name)
    }
}

/// A snapshot of the catalog.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    tables: BTreeMap<TableId, Arc<Table>>,
    objects: BTreeMap<(ObjectKind, String, String), Arc<Object>>,
    next_table: u32,
    /// Counts changes of each kind of object.
    versions: BTreeMap<ObjectKind, u64>,
}

/// A column that a table should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewColumn {
    /// Its name.
    pub name: String,
    /// What it is for; not `Time`.
    pub role: ColumnRole,
    /// The type of its values.
    pub kind: PhysicalType,
}

/// A table that should exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTable {
    /// The database that it belongs to.
    pub database: String,
    /// Its name.
    pub name: String,
    /// How rows are identified.
    pub kind: TableKind,
    /// Whether columns appear on first write.
    pub open: bool,
    /// Its options.
    pub options: TableOptions,
    /// Its columns, without the time.
    pub columns: Vec<NewColumn>,
}

impl Catalog {
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
        self.tables.values().find(|table| table.def.name == name && table.def.database == database)
    }

    /// The table of this name: an exact match, else the only one that matches without regard to case.
    #[must_use]
    pub fn table(&self, database: &str, name: &str) -> Option<&Arc<Table>> {
        let of_database = || self.tables.values().filter(|table| table.def.database == database);
        if let Some(exact) = self.exact_table(database, name) {
            return Some(exact);
        }
        let mut matches = of_database().filter(|table| table.def.name.eq_ignore_ascii_case(name));
        let first = matches.next()?;
        matches.next().is_none().then_some(first)
    }

    /// The table of this name, or an error that says which one was probably meant.
    pub fn require_table(&self, database: &str, name: &str) -> Result<&Arc<Table>> {
        // Another database's names are nobody's business.
        let of_database = self.tables.values().filter(|table| table.def.database == database);
        self.table(database, name).ok_or_else(|| Error::UnknownTable {
            name: format!("{database}.{name}"),
            hint: nearest(name, of_database.map(|table| table.def.name.as_str()))
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

    /// The change that creates a table; an error where one of that name exists.
    pub(crate) fn create_table(&self, new: NewTable) -> Result<CatalogChange> {
        if let Some(table) =
            self.tables.values().find(|t| t.def.database == new.database && t.def.name == new.name)
        {
            return Err(Error::Conflict(format!("table {} exists already", table.full_name())));
        }
        check_name("a database", &new.database)?;
        check_name("a table", &new.name)?;
        check_options(&new.options)?;
        let time = ColumnDef {
            id: ColumnId(0),
            name: TIME_NAME.into(),
            role: ColumnRole::Time,
            kind: PhysicalType::Int64,
        };
        let mut columns = vec![time];
        for column in new.columns {
            let next = columns.len() as u32;
            push_column(&mut columns, column, next)?;
        }
        Ok(CatalogChange::CreateTable(TableDef {
            id: TableId(self.next_table),
            database: new.database,
            name: new.name,
            kind: new.kind,
            open: new.open,
            options: new.options,
            columns,
        }))
    }

    /// The changes that give the table these columns; those that it has with the same role and type are passed over.
    pub(crate) fn add_columns(&self, table: TableId, new: Vec<NewColumn>) -> Result<Vec<CatalogChange>> {
        let Some(known) = self.tables.get(&table) else {
            return Err(Error::Conflict(format!("table {table} was dropped meanwhile")));
        };
        let mut columns = known.def.columns.clone();
        let before = columns.len();
        for column in new {
            match columns.iter().find(|known| known.name == column.name) {
                Some(known) if known.role == column.role && known.kind == column.kind => {}
                Some(known) => {
                    return Err(Error::Conflict(format!(
                        "column {} exists already as {:?} {}",
                        known.name,
                        known.role,
                        known.kind.sql_name()
                    )));
                }
                None => {
                    let next = known.next_column + (columns.len() - before) as u32;
                    push_column(&mut columns, column, next)?;
                }
            }
        }
        Ok(columns
            .into_iter()
            .skip(before)
            .map(|column| CatalogChange::AddColumn { table, column })
            .collect())
    }

    fn require(&self, table: TableId) -> Result<&Arc<Table>> {
        let gone = || Error::Conflict(format!("table {table} was dropped meanwhile"));
        self.tables.get(&table).ok_or_else(gone)
    }

    fn require_column(&self, table: TableId, column: ColumnId) -> Result<&ColumnDef> {
        let gone = || Error::Conflict(format!("column {column} of table {table} was dropped meanwhile"));
        self.require(table)?.column_by_id(column).ok_or_else(gone)
    }

    /// The change that takes a field out of a table.
    pub(crate) fn drop_column(&self, table: TableId, column: ColumnId) -> Result<CatalogChange> {
        let known = self.require_column(table, column)?;
        match known.role {
            ColumnRole::Field => Ok(CatalogChange::DropColumn { table, column }),
            ColumnRole::Tag => Err(Error::Row(format!(
                "column {} is a tag: without it series would become one; make a table without it instead",
                known.name
            ))),
            ColumnRole::Time => Err(Error::Row("every table has the column time".into())),
        }
    }

    /// The change that gives a column a new name.
    pub(crate) fn rename_column(
        &self,
        table: TableId,
        column: ColumnId,
        name: String,
    ) -> Result<CatalogChange> {
        let (known, column_def) = (self.require(table)?, self.require_column(table, column)?);
        check_column_name(&name)?;
        if column_def.role == ColumnRole::Time {
            return Err(Error::Row("every table has the column time, under this name".into()));
        }
        if let Some(other) = known.exact(&name) {
            return Err(Error::Conflict(format!("column {} exists already", other.name)));
        }
        Ok(CatalogChange::RenameColumn { table, column, name })
    }

    /// The change that gives a table a new name.
    pub(crate) fn rename_table(&self, table: TableId, name: String) -> Result<CatalogChange> {
        check_name("a table", &name)?;
        let database = &self.require(table)?.def.database;
        if let Some(other) = self.exact_table(database, &name) {
            return Err(Error::Conflict(format!("table {} exists already", other.full_name())));
        }
        Ok(CatalogChange::RenameTable { table, name })
    }

    /// The change that gives a column a wider type; whether its values allow it is the caller's to find out.
    pub(crate) fn set_type(
        &self,
        table: TableId,
        column: ColumnId,
        kind: PhysicalType,
    ) -> Result<Option<CatalogChange>> {
        let known = self.require_column(table, column)?;
        if known.role != ColumnRole::Field {
            return Err(Error::Row(format!("column {} is no field; its type stays", known.name)));
        }
        Ok((known.kind != kind).then_some(CatalogChange::SetType { table, column, kind }))
    }

    /// Applies one change.
    pub(crate) fn apply(&mut self, change: &CatalogChange) {
        match change {
            CatalogChange::CreateTable(def) => {
                self.next_table = self.next_table.max(def.id.0 + 1);
                self.tables.insert(def.id, Arc::new(Table::new(def.clone())));
            }
            CatalogChange::AddColumn { table, column } => {
                if let Some(table) = self.tables.get_mut(table) {
                    Arc::make_mut(table).push_column(column.clone());
                }
            }
            CatalogChange::SetOptions { table, options } => {
                if let Some(table) = self.tables.get_mut(table) {
                    Arc::make_mut(table).def.options = *options;
                }
            }
            CatalogChange::DropTable(table) => {
                self.tables.remove(table);
            }
            CatalogChange::PutObject(object) => {
                *self.versions.entry(object.kind).or_default() += 1;
                let key = (object.kind, object.database.clone(), object.name.clone());
                self.objects.insert(key, Arc::new(object.clone()));
            }
            CatalogChange::DropObject { kind, database, name } => {
                *self.versions.entry(*kind).or_default() += 1;
                self.objects.remove(&(*kind, database.clone(), name.clone()));
            }
            CatalogChange::ReserveTables(next) => self.next_table = self.next_table.max(next.0),
            CatalogChange::DropColumn { table, column } => self.change_column(*table, *column, |_| None),
            CatalogChange::RenameColumn { table, column, name } => {
                self.change_column(*table, *column, |column| {
                    Some(ColumnDef { name: name.clone(), ..column })
                });
            }
            CatalogChange::SetType { table, column, kind } => {
                self.change_column(*table, *column, |column| Some(ColumnDef { kind: *kind, ..column }));
            }
            CatalogChange::RenameTable { table, name } => {
                if let Some(table) = self.tables.get_mut(table) {
                    Arc::make_mut(table).def.name.clone_from(name);
                }
            }
            CatalogChange::ReserveColumns { table, next } => {
                if let Some(table) = self.tables.get_mut(table) {
                    let table = Arc::make_mut(table);
                    table.next_column = table.next_column.max(next.0);
                }
            }
        }
    }

    fn change_column(
        &mut self,
        table: TableId,
        column: ColumnId,
        change: impl FnOnce(ColumnDef) -> Option<ColumnDef>,
    ) {
        if let Some(table) = self.tables.get_mut(&table) {
            Arc::make_mut(table).change_column(column, change);
        }
    }

    /// Changes that build this catalog from nothing.
    pub(crate) fn to_changes(&self) -> Vec<CatalogChange> {
        let mut changes = vec![CatalogChange::ReserveTables(TableId(self.next_table))];
        for table in self.tables.values() {
            let last = table.def.columns.last().map_or(0, |column| column.id.0 + 1);
            let reserved =
                CatalogChange::ReserveColumns { table: table.id(), next: ColumnId(table.next_column) };
            changes.push(CatalogChange::CreateTable(table.def.clone()));
            changes.extend((last < table.next_column).then_some(reserved));
        }
        changes.extend(self.objects.values().map(|object| CatalogChange::PutObject(Object::clone(object))));
        changes
    }
}

pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    match name.len() {
        1..=limits::NAME_BYTES => Ok(()),
        len => {
            Err(Error::Row(format!("the name of {what} has 1 to {} bytes, not {len}", limits::NAME_BYTES)))
        }
    }
}

/// Partitions divide a UTC day or are whole days, so that a day can go to the cold tier.
pub(crate) fn check_options(options: &TableOptions) -> Result<()> {
    let TableOptions { partition, retention, cold_after, max_bytes, max_series, .. } = *options;
    if partition <= 0 || (DAY % partition != 0 && partition % DAY != 0) {
        return Err(Error::Row(format!("a partition divides a day or is whole days, not {partition} ns")));
    }
    if retention < 0 || cold_after < 0 || max_bytes < 0 {
        return Err(Error::Row("retention, cold_after and max_bytes are not negative".into()));
    }
    if !(0..=limits::SERIES_AT_MOST as i64).contains(&max_series) {
        let most = limits::SERIES_AT_MOST;
        return Err(Error::Row(format!("max_series is 1 to {most}, not {max_series}")));
    }
    Ok(())
}

fn check_column_name(name: &str) -> Result<()> {
    check_name("a column", name)?;
    if name.eq_ignore_ascii_case(TIME_NS) {
        let why = "the cold tier keeps the nanoseconds of the time under it; choose another name";
        return Err(Error::Row(format!("column {name} has a reserved name: {why}")));
    }
    Ok(())
}

/// Adds a column whose id is `next`.
fn push_column(columns: &mut Vec<ColumnDef>, new: NewColumn, next: u32) -> Result<()> {
    check_column_name(&new.name)?;
    if columns.iter().any(|column| column.name == new.name) {
        return Err(Error::Row(format!("column {} is named twice", new.name)));
    }
    if columns.len() >= limits::COLUMNS {
        return Err(Error::Limit { what: format!("column {}", new.name), limit: limits::COLUMNS as u64 });
    }
    match (new.role, new.kind) {
        (ColumnRole::Field, _) | (ColumnRole::Tag, PhysicalType::Text) => {}
        (ColumnRole::Tag, _) => return Err(Error::Row(format!("tag {} is not a string", new.name))),
        (ColumnRole::Time, _) => return Err(Error::Row(format!("column {} is a second time", new.name))),
    }
    columns.push(ColumnDef { id: ColumnId(next), name: new.name, role: new.role, kind: new.kind });
    Ok(())
}

/// The name that differs least from `wanted`, if it is near enough to be a slip of the finger.
pub fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|name| (edit_distance(&wanted.to_ascii_lowercase(), &name.to_ascii_lowercase()), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (above, y) in row.iter_mut().skip(1).zip(&b) {
            let here = (diagonal + usize::from(x != *y)).min(left + 1).min(*above + 1);
            diagonal = *above;
            *above = here;
            left = here;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", "abc"), 0);
    }

    #[test]
    fn the_probable_name_is_named() {
        assert_eq!(nearest("sensor", ["sensors", "alerts"].into_iter()), Some("sensors"));
        assert_eq!(nearest("x", ["sensors"].into_iter()), None);
    }

    #[test]
    fn ids_are_not_reused_after_a_drop() {
        let new = |name: &str| NewTable {
            database: "public".into(),
            name: name.into(),
            kind: TableKind::Points,
            open: true,
            options: TableOptions::default(),
            columns: Vec::new(),
        };
        let mut catalog = Catalog::default();
        catalog.apply(&catalog.create_table(new("a")).unwrap());
        let first = catalog.table("public", "A").unwrap().id();
        catalog.apply(&CatalogChange::DropTable(first));
        let mut again = Catalog::default();
        catalog.to_changes().iter().for_each(|change| again.apply(change));
        again.apply(&again.create_table(new("a")).unwrap());
        assert_ne!(again.table("public", "a").unwrap().id(), first);
    }
}
