//! The rows of one table in a batch that is being built.
//!
//! # Invariants
//! - Whatever can fail is found before anything is stored: `weigh` first, then `series`, then `push`, which cannot fail.
//! - Between rows a column may be shorter than the part; what it lacks is absent.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use foldhash::HashMap;
use sonde_storage_format::limits::{KEY_BYTES, TEXT_BYTES};
use sonde_storage_format::{
    Cell, Column, ColumnDef, ColumnId, ColumnRole, PhysicalType, SeriesKey, Texts, Timestamp,
};

use crate::batch::{BatchSeries, FieldValue, NEW_SERIES, Part, RowColumns, type_conflict};
use crate::catalog::Table;
use crate::error::{Error, Result};
use crate::limits::{COALESCE_ROWS, TABLE_SERIES};
use crate::series_budget::Charged;

/// Marks a column that the part has not met.
const NO_PLACE: u32 = u32::MAX;

pub(crate) struct OpenPart {
    pub(crate) table: Arc<Table>,
    pub(crate) part: Part,
    new_index: HashMap<SeriesKey, u32>,
    /// Where each column of the table stands in `part.columns`, by ColumnId.
    places: Vec<u32>,
    /// Bytes of strings and of new keys.
    texts: usize,
}

/// What rows add to a part.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Added {
    rows: usize,
    /// Columns that the part has not met.
    columns: usize,
    /// Bytes of strings.
    texts: usize,
}

/// Fails where no row may have this time.
pub(crate) fn check_time(time: Timestamp) -> Result<()> {
    if time == Timestamp::MAX {
        return Err(Error::Row("the last instant that 64 bits can name is no time of a row".into()));
    }
    Ok(())
}

pub(crate) fn column_of(table: &Table, id: ColumnId, role: ColumnRole) -> Result<&ColumnDef> {
    let column = table.column_by_id(id).filter(|column| column.role == role);
    column.ok_or_else(|| Error::Row(format!("table {} has no {role:?} column {id}", table.full_name())))
}

/// The values of a table's tags in the order of its keys. Fails where one of `tags` is none of the table's.
pub(crate) fn key_values<'t>(
    table: &'t Table,
    tags: &'t [(ColumnId, Cow<'_, str>)],
) -> Result<impl Iterator<Item = Option<&'t str>>> {
    for (id, _) in tags {
        column_of(table, *id, ColumnRole::Tag)?;
    }
    let value = |tag: &ColumnDef| tags.iter().find(|(id, _)| *id == tag.id).map(|(_, value)| value.as_ref());
    Ok(table.tags().map(value))
}

/// Encodes the key of these values; fails where it is too long.
pub(crate) fn encode_key<'t>(values: impl Iterator<Item = Option<&'t str>>, key: &mut Vec<u8>) -> Result<()> {
    SeriesKey::encode_into(values, key);
    if key.len() > KEY_BYTES {
        return Err(Error::Limit { what: "bytes of a row's tags".into(), limit: KEY_BYTES as u64 });
    }
    Ok(())
}

fn text_too_long(column: &ColumnDef) -> Error {
    Error::Limit { what: format!("bytes of column {}", column.name), limit: TEXT_BYTES as u64 }
}

impl OpenPart {
    pub(crate) fn new(table: &Arc<Table>) -> Self {
        let part = Part {
            table: table.id(),
            messages: Vec::new(),
            series: Vec::new(),
            new_keys: Vec::new(),
            times: Vec::new(),
            columns: Vec::new(),
            reserved: Charged::new(table.series().budget()),
        };
        let (new_index, places) = (HashMap::default(), Vec::new());
        Self { table: Arc::clone(table), part, new_index, places, texts: 0 }
    }

    /// About what the part takes in the log: every column has a slot for every row.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes_with(Added::default(), 0)
    }

    /// The same with what rows and the key of a new series add.
    pub(crate) fn bytes_with(&self, added: Added, key: usize) -> usize {
        let columns = self.part.columns.len() + added.columns;
        (self.part.times.len() + added.rows) * (24 + 9 * columns) + self.texts + added.texts + key
    }

    /// What a row of these fields adds. Fails where the table has no such column or a value does not fit it.
    pub(crate) fn weigh(&self, fields: &[(ColumnId, FieldValue<'_>)]) -> Result<Added> {
        let mut added = Added { rows: 1, ..Added::default() };
        for (id, value) in fields {
            // The type of a column that the part has met is at hand.
            let (kind, is_new) = match self.known(*id) {
                Some(column) => (column.values.kind(), false),
                None => (column_of(&self.table, *id, ColumnRole::Field)?.kind, true),
            };
            let texts = value.text_bytes();
            if !value.fits(kind) || texts > TEXT_BYTES {
                let column = column_of(&self.table, *id, ColumnRole::Field)?;
                return Err(if texts > TEXT_BYTES && value.fits(kind) {
                    text_too_long(column)
                } else {
                    type_conflict(column, value)
                });
            }
            added.columns += usize::from(is_new);
            added.texts += texts;
        }
        Ok(added)
    }

    /// The same for rows that come as columns.
    pub(crate) fn weigh_columns(&self, rows: &RowColumns) -> Result<Added> {
        let count = rows.times.len();
        assert_eq!(rows.series.len(), count, "every row has a series");
        rows.times.iter().try_for_each(|time| check_time(Timestamp::from_nanos(*time)))?;
        let mut added = Added { rows: count, ..Added::default() };
        for (place, (id, column)) in rows.columns.iter().enumerate() {
            assert_eq!(column.len(), count, "column {id} and the times differ in length");
            assert!(
                rows.columns.iter().take(place).all(|(other, _)| other != id),
                "column {id} is named twice"
            );
            let def = column_of(&self.table, *id, ColumnRole::Field)?;
            if column.values.kind() != def.kind {
                let (found, wanted) = (column.values.kind().sql_name(), def.kind.sql_name());
                return Err(Error::Row(format!("column {} is {wanted}, found {found}", def.name)));
            }
            let texts = column.values.texts();
            if texts.into_iter().flat_map(Texts::iter).any(|text| text.len() > TEXT_BYTES) {
                return Err(text_too_long(def));
            }
            added.columns += usize::from(self.known(*id).is_none());
            added.texts += texts.map_or(0, Texts::byte_len);
        }
        Ok(added)
    }

    /// The series of a key, which is noted as new where it has no handle.
    pub(crate) fn series(&mut self, key: &[u8], max_series: Option<usize>) -> Result<BatchSeries> {
        if let Some(id) = self.table.series().lookup(key) {
            return Ok(BatchSeries(id.0));
        }
        if let Some(index) = self.new_index.get(key) {
            return Ok(BatchSeries(NEW_SERIES | u64::from(*index)));
        }
        let limit = self.table.max_series(max_series.unwrap_or(TABLE_SERIES));
        if self.table.series().len() + self.new_index.len() >= limit {
            return Err(Error::Series { table: self.table.full_name(), limit: limit as u64 });
        }
        let key = SeriesKey::from_bytes(key).map_err(|error| Error::Row(error.to_string()))?;
        if !self.part.reserved.try_add_series(key.as_bytes()) {
            return Err(self.no_memory());
        }
        let index = self.part.new_keys.len() as u32;
        self.texts += key.as_bytes().len();
        self.part.new_keys.push(key.clone());
        self.new_index.insert(key, index);
        Ok(BatchSeries(NEW_SERIES | u64::from(index)))
    }

    fn no_memory(&self) -> Error {
        let series = self.table.series();
        let (used, limit) = (series.budget().used() as u64, series.budget().limit() as u64);
        Error::SeriesMemory { table: self.table.full_name(), series: series.len() as u64, used, limit }
    }

    pub(crate) fn push(
        &mut self,
        message: u32,
        series: BatchSeries,
        time: Timestamp,
        fields: &[(ColumnId, FieldValue<'_>)],
    ) {
        let rows = self.part.times.len();
        if rows == 0 {
            self.part.columns.reserve(fields.len());
        }
        self.part.messages.push(message);
        self.part.series.push(series);
        self.part.times.push(time.as_nanos());
        for (id, value) in fields {
            let column = self.column(*id);
            match column.len().cmp(&rows) {
                Ordering::Equal => {}
                Ordering::Less => column.push_empty(Cell::Absent, rows - column.len()),
                // A column named twice in one row: the last value stands.
                Ordering::Greater => *column = column.slice(0..rows),
            }
            value.push(column);
            self.texts += value.text_bytes();
        }
    }

    pub(crate) fn push_columns(&mut self, message: u32, rows: RowColumns) {
        let before = self.part.times.len();
        self.part.messages.resize(before + rows.times.len(), message);
        for (id, more) in rows.columns {
            self.texts += more.values.texts().map_or(0, Texts::byte_len);
            let column = self.column(id);
            if before == 0 {
                *column = more;
            } else {
                column.push_empty(Cell::Absent, before - column.len());
                column.extend_from(&more, 0..more.len());
            }
        }
        append(&mut self.part.series, rows.series);
        append(&mut self.part.times, rows.times);
    }

    /// Keeps the first rows. Keys that only others had stay registered.
    pub(crate) fn truncate(&mut self, rows: usize) {
        self.part.messages.truncate(rows);
        self.part.series.truncate(rows);
        self.part.times.truncate(rows);
        for (_, column) in self.part.columns.iter_mut().filter(|(_, column)| column.len() > rows) {
            *column = column.slice(0..rows);
        }
    }

    /// A column that the part has met.
    fn known(&self, id: ColumnId) -> Option<&Column> {
        let place = self.places.get(id.0 as usize).filter(|place| **place != NO_PLACE)?;
        self.part.columns.get(*place as usize).map(|(_, column)| column)
    }

    fn column(&mut self, id: ColumnId) -> &mut Column {
        let index = id.0 as usize;
        if self.places.len() <= index {
            let known = self.table.def().columns.len();
            self.places.resize(known.max(index + 1), NO_PLACE);
        }
        let place = self.places.get(index).copied().unwrap_or(NO_PLACE);
        let place = if place == NO_PLACE {
            let kind = self.table.column_by_id(id).map_or(PhysicalType::Float64, |column| column.kind);
            self.part.columns.push((id, Column::new(kind)));
            let place = self.part.columns.len() - 1;
            if let Some(slot) = self.places.get_mut(index) {
                *slot = place as u32;
            }
            place
        } else {
            place as usize
        };
        match self.part.columns.get_mut(place) {
            Some((_, column)) => column,
            None => unreachable!("column {id} has place {place}"),
        }
    }

    pub(crate) fn finish(mut self) -> Part {
        let rows = self.part.times.len();
        debug_assert!(self.table.def().columns.iter().filter(|c| c.role == ColumnRole::Time).count() == 1);
        for (_, column) in &mut self.part.columns {
            let missing = rows - column.len();
            if missing > 0 {
                column.push_empty(Cell::Absent, missing);
            }
        }
        // What stays in memory has no room to grow; small parts are copied into larger ones anyway.
        if rows > COALESCE_ROWS {
            self.part.columns.iter_mut().for_each(|(_, column)| column.shrink_to_fit());
            self.part.series.shrink_to_fit();
            self.part.times.shrink_to_fit();
        }
        self.part
    }
}

/// Appends a list to another one, which becomes it where it is empty.
fn append<T>(list: &mut Vec<T>, mut more: Vec<T>) {
    if list.is_empty() {
        *list = more;
    } else {
        list.append(&mut more);
    }
}
