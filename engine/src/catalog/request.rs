//! Changes of the catalog that someone asks for, and what they come to.
//!
//! # Invariants
//! - What is planned was checked against the catalog that it is applied to: names are free, what is named is there.

use std::sync::Arc;

use sonde_storage_format::limits::TEXT_BYTES;
use sonde_storage_format::{
    CatalogChange, ColumnDef, ColumnId, ColumnRole, Object, ObjectKind, PhysicalType, TableDef, TableId,
    TableKind, TableOptions,
};

use super::check::{check_column_name, check_name, check_options, push_column};
use super::{Catalog, TIME_NAME, Table};
use crate::error::{Error, Result};

/// A change of the catalog that someone asks for.
#[derive(Clone, Debug)]
pub enum CatalogRequest {
    /// Create a table; a conflict where it exists.
    CreateTable(NewTable),
    /// Give a table columns; those that it has already are passed over.
    AddColumns(TableId, Vec<NewColumn>),
    /// Set a table's options.
    SetOptions(TableId, TableOptions),
    /// Drop a table and its rows.
    DropTable(TableId),
    /// Give a table another name.
    RenameTable(TableId, String),
    /// Drop a field and its values.
    DropColumn(TableId, ColumnId),
    /// Give a column another name.
    RenameColumn(TableId, ColumnId, String),
    /// Give a field a wider type; refused where it holds a value that the type does not hold exactly.
    Widen(TableId, ColumnId, PhysicalType),
    /// Create an object, or replace it.
    PutObject {
        /// The object.
        object: Object,
        /// Whether one of this name may be replaced.
        replace: bool,
    },
    /// Drop an object.
    DropObject {
        /// Its kind.
        kind: ObjectKind,
        /// Its database.
        database: String,
        /// Its name.
        name: String,
    },
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
    /// The changes that a request comes to; none where all is so already.
    pub(crate) fn plan(&self, request: &CatalogRequest) -> Result<Vec<CatalogChange>> {
        Ok(match request {
            CatalogRequest::CreateTable(new) => vec![self.create_table(new.clone())?],
            CatalogRequest::AddColumns(table, columns) => self.add_columns(*table, columns.clone())?,
            CatalogRequest::SetOptions(table, options) => {
                self.require(*table)?;
                check_options(options)?;
                vec![CatalogChange::SetOptions { table: *table, options: *options }]
            }
            CatalogRequest::DropTable(table) => {
                self.require(*table)?;
                vec![CatalogChange::DropTable(*table)]
            }
            CatalogRequest::RenameTable(table, name) => vec![self.rename_table(*table, name.clone())?],
            CatalogRequest::DropColumn(table, column) => vec![self.drop_column(*table, *column)?],
            CatalogRequest::RenameColumn(table, column, name) => {
                vec![self.rename_column(*table, *column, name.clone())?]
            }
            CatalogRequest::Widen(table, column, kind) => {
                self.set_type(*table, *column, *kind)?.into_iter().collect()
            }
            CatalogRequest::PutObject { object, replace } => vec![self.put_object(object, *replace)?],
            CatalogRequest::DropObject { kind, database, name } => {
                vec![self.drop_object(*kind, database, name)?]
            }
        })
    }

    /// The change that creates a table; an error where one of that name exists.
    fn create_table(&self, new: NewTable) -> Result<CatalogChange> {
        if let Some(known) = self.exact_table(&new.database, &new.name) {
            return Err(Error::Conflict(format!("table {} exists already", known.full_name())));
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
    fn add_columns(&self, table: TableId, new: Vec<NewColumn>) -> Result<Vec<CatalogChange>> {
        let known = self.require(table)?;
        let mut columns = known.def().columns.clone();
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
                    let next = known.next_column() + (columns.len() - before) as u32;
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
        self.table_by_id(table).ok_or_else(gone)
    }

    fn require_column(&self, table: TableId, column: ColumnId) -> Result<&ColumnDef> {
        let gone = || Error::Conflict(format!("column {column} of table {table} was dropped meanwhile"));
        self.require(table)?.column_by_id(column).ok_or_else(gone)
    }

    /// The change that takes a field out of a table.
    fn drop_column(&self, table: TableId, column: ColumnId) -> Result<CatalogChange> {
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
    fn rename_column(&self, table: TableId, column: ColumnId, name: String) -> Result<CatalogChange> {
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
    fn rename_table(&self, table: TableId, name: String) -> Result<CatalogChange> {
        check_name("a table", &name)?;
        let database = &self.require(table)?.def().database;
        if let Some(other) = self.exact_table(database, &name) {
            return Err(Error::Conflict(format!("table {} exists already", other.full_name())));
        }
        Ok(CatalogChange::RenameTable { table, name })
    }

    /// The change that gives a column a wider type; whether its values allow it is the caller's to find out.
    fn set_type(
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

    /// The change that creates an object, or replaces one where it may.
    fn put_object(&self, object: &Object, replace: bool) -> Result<CatalogChange> {
        check_name("a database", &object.database)?;
        check_name("an object", &object.name)?;
        if object.text.len() > TEXT_BYTES {
            return Err(Error::Limit { what: "bytes of a statement".into(), limit: TEXT_BYTES as u64 });
        }
        let known = self.object(object.kind, &object.database, &object.name);
        if known.is_some() && !replace {
            return Err(Error::Conflict(format!("{:?} {} exists already", object.kind, object.name)));
        }
        Ok(CatalogChange::PutObject(object.clone()))
    }

    /// The change that drops an object.
    fn drop_object(&self, kind: ObjectKind, database: &str, name: &str) -> Result<CatalogChange> {
        if self.object(kind, database, name).is_none() {
            return Err(Error::Conflict(format!("there is no {kind:?} {name}")));
        }
        Ok(CatalogChange::DropObject { kind, database: database.to_owned(), name: name.to_owned() })
    }
}
