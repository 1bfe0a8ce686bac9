//! The cold tier: complete UTC days as plain Parquet in an object store, the one async part of the engine.
//!
//! # Invariants
//! - A cold day covers all its rows up to its position; every hot row of the day is newer, so hot beats cold.
//! - The order of a move: note in the log, write, sync, verify, manifest edit, delete. A crash between any two loses
//!   and doubles nothing, and leaves no object behind that nobody knows of.
//! - Times are microseconds and `time_ns`, the rest from 0 to 999; unsigned integers are decimal(20, 0).

pub(crate) mod cool;
pub(crate) mod pending;
pub(crate) mod read;
pub(crate) mod write;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use object_store::ObjectStore;
use sonde_storage_format::{ColumnDef, ColumnRole, PhysicalType, TimeRange, Timestamp};

use crate::catalog::Table;
use crate::error::Error;

/// One UTC day in nanoseconds.
pub(crate) const DAY: i64 = 86_400_000_000_000;
/// Holds nanoseconds below a microsecond. No column of a table may have its name, whatever the case of its letters.
pub(crate) const TIME_NS: &str = "time_ns";
/// Where Parquet keeps a column's id, which outlives its name.
const FIELD_ID: &str = "PARQUET:field_id";
/// The field id of `time_ns`, which no column of a table has.
const TIME_NS_ID: u32 = i32::MAX as u32;

/// Where cold files go, and what runs the requests.
#[derive(Clone, Debug)]
pub struct ColdOptions {
    /// The object store, rooted at the tier.
    pub store: Arc<dyn ObjectStore>,
    /// The directory behind the store, where it is one: its files are synced, which `object_store` does not do.
    pub directory: Option<PathBuf>,
    /// Runs the store's requests.
    pub runtime: tokio::runtime::Handle,
}

pub(crate) fn store_error(error: impl std::fmt::Display) -> Error {
    Error::Cold(error.to_string())
}

/// The UTC day that an instant falls into.
pub(crate) fn day_of(time: Timestamp) -> TimeRange {
    TimeRange::aligned(time, DAY)
}

/// `2026-11-20`, by Howard Hinnant's civil-from-days.
pub(crate) fn day_name(day: &TimeRange) -> String {
    let days = day.start.as_nanos().div_euclid(DAY) + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The schema of a table's Parquet files: time, its rest, tags, fields.
pub(crate) fn schema(table: &Table) -> Arc<Schema> {
    let field = |name: &str, kind: DataType, nullable: bool, id: u32| {
        Field::new(name, kind, nullable).with_metadata(HashMap::from([(FIELD_ID.to_owned(), id.to_string())]))
    };
    let columns = &table.def().columns;
    let of_role = |role| columns.iter().filter(move |column: &&ColumnDef| column.role == role);
    let mut fields: Vec<Field> = Vec::with_capacity(columns.len() + 1);
    for time in of_role(ColumnRole::Time) {
        fields.push(field(
            &time.name,
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            false,
            time.id.0,
        ));
        fields.push(field(TIME_NS, DataType::Int16, false, TIME_NS_ID));
    }
    for column in of_role(ColumnRole::Tag).chain(of_role(ColumnRole::Field)) {
        let kind = match column.kind {
            PhysicalType::Float64 => DataType::Float64,
            PhysicalType::Int64 => DataType::Int64,
            PhysicalType::UInt64 => DataType::Decimal128(20, 0),
            PhysicalType::Boolean => DataType::Boolean,
            PhysicalType::Text => DataType::Utf8,
        };
        fields.push(field(&column.name, kind, true, column.id.0));
    }
    Arc::new(Schema::new(fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_the_names_of_the_calendar() {
        let name = |secs| day_name(&day_of(Timestamp::from_secs(secs)));
        assert_eq!(name(0), "1970-01-01");
        assert_eq!(name(-1), "1969-12-31");
        assert_eq!(name(951_782_400), "2000-02-29");
        assert_eq!(name(1_795_132_800), "2026-11-20");
    }
}
