//! Integer columns that become floats: whether every stored value stays what it is, and old values as the new type.
//!
//! # Invariants
//! - Nothing that is stored is rewritten for it: files and blocks keep the type that they were written with, and readers
//!   widen it.
//! - A column is widened only where every integer in it is exact as a float: at most 2^53 either way.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{Int64Type, UInt64Type};
use sonde_storage_format::{
    Column, ColumnDef, ColumnId, ColumnRange, PhysicalType, SeqRange, TableId, Values,
};

use crate::batch::EXACT_INTEGER;
use crate::catalog::{CatalogRequest, Table};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::memtable::Memtable;
use crate::scan::ScanRequest;
use crate::version::Version;

/// Whether a column of one type can become one of the other.
fn is_wider(from: PhysicalType, to: PhysicalType) -> bool {
    matches!(from, PhysicalType::Int64 | PhysicalType::UInt64) && to == PhysicalType::Float64
}

/// The column as one of `kind`: integers as floats where that is what `kind` is wider by; others as they are.
#[must_use]
pub fn widened(column: Column, kind: PhysicalType) -> Column {
    if !is_wider(column.values.kind(), kind) {
        return column;
    }
    let values = match column.values {
        Values::Int(values) => values.into_iter().map(|value| value as f64).collect(),
        Values::UInt(values) => values.into_iter().map(|value| value as f64).collect(),
        other => return Column { cells: column.cells, values: other },
    };
    Column { cells: column.cells, values: Values::Float(values) }
}

/// Whether a batch's column can be stored in a column of `kind`.
pub(crate) fn can_hold(kind: PhysicalType, column: &Column) -> bool {
    let found = column.values.kind();
    found == kind || (is_wider(found, kind) && is_exact(column))
}

fn is_exact(column: &Column) -> bool {
    match &column.values {
        Values::Int(values) => values.iter().all(|value| value.unsigned_abs() <= EXACT_INTEGER),
        Values::UInt(values) => values.iter().all(|value| *value <= EXACT_INTEGER),
        _ => true,
    }
}

fn is_exact_range(range: &ColumnRange) -> bool {
    let Some((low, high)) = range.range else { return true };
    match range.kind {
        PhysicalType::Int64 => {
            [low, high].iter().all(|bits| bits.cast_signed().unsigned_abs() <= EXACT_INTEGER)
        }
        PhysicalType::UInt64 => high <= EXACT_INTEGER,
        _ => true,
    }
}

/// Fails unless the column can become one of `kind`, by what is in memory and in chunks.
pub(crate) fn check(
    version: &Version,
    active: &Memtable,
    table: TableId,
    column: &ColumnDef,
    kind: PhysicalType,
) -> Result<()> {
    let (name, from, to) = (&column.name, column.kind.sql_name(), kind.sql_name());
    if !is_wider(column.kind, kind) {
        let what = "integers become DOUBLE, and no other type changes";
        return Err(Error::Row(format!("column {name} is {from} and cannot become {to}: {what}")));
    }
    let chunks = version.files.get(&table).into_iter().flat_map(|files| files.chunks());
    let mut ranges = chunks.flat_map(|chunk| &chunk.meta.columns).filter(|range| range.id == column.id);
    let memtables = version.frozen.iter().map(Arc::as_ref).chain([active]);
    let mut blocks = memtables.flat_map(|memtable| memtable.columns(table, column.id));
    if ranges.all(is_exact_range) && blocks.all(is_exact) {
        return Ok(());
    }
    Err(inexact(Some(column)))
}

/// The error for a column that holds an integer beyond 2^53.
fn inexact(column: Option<&ColumnDef>) -> Error {
    let (name, from) = column.map_or(("", ""), |column| (&column.name, column.kind.sql_name()));
    let what = "it holds integers beyond 2^53, which a DOUBLE does not hold exactly";
    Error::Row(format!("column {name} is {from} and cannot become DOUBLE: {what}"))
}

/// Whether an array has no integer that is inexact as a float.
fn is_exact_array(array: &ArrayRef) -> bool {
    let ints = array.as_primitive_opt::<Int64Type>().into_iter().flatten().flatten();
    let uints = array.as_primitive_opt::<UInt64Type>().into_iter().flatten().flatten();
    ints.map(i64::unsigned_abs).chain(uints).all(|value| value <= EXACT_INTEGER)
}

/// What becomes of a column whose values in the cold tier, which the manifest does not know, have to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColdValues {
    /// They are read, however long that takes.
    Read,
    /// The column stays as it is.
    Refuse,
}

impl Engine {
    /// Makes an integer field one of floats. Fails where it holds an integer that is not exact as a float.
    pub fn widen(&self, table: &Arc<Table>, column: ColumnId, cold: ColdValues) -> Result<SeqRange> {
        self.check_cold(table, column, cold)?;
        self.change_catalog(CatalogRequest::Widen(table.id(), column, PhysicalType::Float64))
    }

    fn check_cold(&self, table: &Arc<Table>, id: ColumnId, cold: ColdValues) -> Result<()> {
        let column = table.column_by_id(id);
        for file in self.cold_files().into_iter().filter(|file| file.table == table.id()) {
            if cold == ColdValues::Refuse {
                let name = column.map_or("", |column| column.name.as_str());
                let (table, kind) = (table.full_name(), column.map_or("", |column| column.kind.sql_name()));
                return Err(Error::Row(format!(
                    "column {name} is {kind}, and days of {table} are cold, whose values have to be read before it \
                     can be DOUBLE: ALTER TABLE {table} ALTER COLUMN \"{name}\" TYPE DOUBLE"
                )));
            }
            let request = ScanRequest { time: file.day, ..ScanRequest::all(Arc::clone(table), vec![id]) };
            for batch in self.scan(&self.snapshot(), &request)?.open(0, 1) {
                if !batch?.columns().iter().all(is_exact_array) {
                    return Err(inexact(column));
                }
            }
        }
        Ok(())
    }
}

impl Memtable {
    /// The values of a column, block by block.
    fn columns(&self, table: TableId, id: ColumnId) -> impl Iterator<Item = &Column> {
        self.of_table(table).flat_map(|partition| &partition.blocks).filter_map(move |block| block.column(id))
    }
}
