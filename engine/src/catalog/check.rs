//! What names, columns and options of tables may be.

use sonde_storage_format::{ColumnDef, ColumnId, ColumnRole, PhysicalType, TableOptions};

use super::NewColumn;
use crate::cold::{DAY, TIME_NS};
use crate::error::{Error, Result};
use crate::limits;

pub(super) fn check_name(what: &str, name: &str) -> Result<()> {
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

pub(super) fn check_column_name(name: &str) -> Result<()> {
    check_name("a column", name)?;
    if name.eq_ignore_ascii_case(TIME_NS) {
        let why = "the cold tier keeps the nanoseconds of the time under it; choose another name";
        return Err(Error::Row(format!("column {name} has a reserved name: {why}")));
    }
    Ok(())
}

/// Adds a column whose id is `next`.
pub(super) fn push_column(columns: &mut Vec<ColumnDef>, new: NewColumn, next: u32) -> Result<()> {
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
