//! Builds the unit that is committed: rows for any number of tables, and state, all or nothing.
//!
//! # Invariants
//! - `WriteBatchBuilder::finish` is the only maker of a `WriteBatch`: typed, bounded, columns known to the catalog.
//! - A row is checked whole before any of it is stored in the builder.

use std::borrow::Cow;
use std::sync::Arc;

use foldhash::HashMap;
use sonde_storage_format::limits::{KEY_BYTES, TEXT_BYTES};
use sonde_storage_format::{
    Cell, Column, ColumnDef, ColumnId, ColumnRole, Origin, PhysicalType, SeriesId, SeriesKey, State, TableId,
    Timestamp, Values,
};

use crate::catalog::Table;
use crate::error::{Error, Result};
use crate::limits::{BATCH_BYTES, TABLE_SERIES};

/// Above this, integers are not exact as float64.
pub const EXACT_INTEGER: u64 = 1 << 53;
/// Marks a row's series as an index into the part's new keys.
const NEW_SERIES: u64 = 1 << 63;
/// Marks a column that the part has not met.
const NO_PLACE: u32 = u32::MAX;

/// A value on its way into a column.
#[derive(Clone, Debug, PartialEq)]
pub enum FieldValue<'a> {
    /// An explicit NULL.
    Null,
    /// A float, or a number without a declared type.
    Float(f64),
    /// A signed integer.
    Int(i64),
    /// An unsigned integer.
    UInt(u64),
    /// A boolean.
    Bool(bool),
    /// A string.
    Text(Cow<'a, str>),
}

impl FieldValue<'_> {
    /// The type of a column that appears with this value; NULL makes none.
    #[must_use]
    pub fn kind(&self) -> Option<PhysicalType> {
        Some(match self {
            Self::Null => return None,
            Self::Float(_) => PhysicalType::Float64,
            Self::Int(_) => PhysicalType::Int64,
            Self::UInt(_) => PhysicalType::UInt64,
            Self::Bool(_) => PhysicalType::Boolean,
            Self::Text(_) => PhysicalType::Text,
        })
    }

    /// Whether a column of this type holds the value exactly.
    #[must_use]
    pub fn fits(&self, kind: PhysicalType) -> bool {
        match (self, kind) {
            (Self::Null, _)
            | (Self::Float(_), PhysicalType::Float64)
            | (Self::Int(_), PhysicalType::Int64)
            | (Self::UInt(_), PhysicalType::UInt64)
            | (Self::Bool(_), PhysicalType::Boolean)
            | (Self::Text(_), PhysicalType::Text) => true,
            (Self::Float(value), PhysicalType::Int64) => {
                value.fract() == 0.0
                    && value.abs() <= EXACT_INTEGER as f64
                    && !(*value == 0.0 && value.is_sign_negative())
            }
            (Self::Float(value), PhysicalType::UInt64) => {
                value.fract() == 0.0 && *value <= EXACT_INTEGER as f64 && value.is_sign_positive()
            }
            (Self::Int(value), PhysicalType::Float64) => value.unsigned_abs() <= EXACT_INTEGER,
            (Self::UInt(value), PhysicalType::Float64) => *value <= EXACT_INTEGER,
            (Self::Int(value), PhysicalType::UInt64) => *value >= 0,
            (Self::UInt(value), PhysicalType::Int64) => i64::try_from(*value).is_ok(),
            _ => false,
        }
    }

    /// Appends the value to a column that it fits; panics where it does not.
    pub fn push(&self, column: &mut Column) {
        match (&mut column.values, self) {
            (_, Self::Null) => return column.push_empty(Cell::Null, 1),
            (Values::Float(values), Self::Float(value)) => values.push(*value),
            (Values::Float(values), Self::Int(value)) => values.push(*value as f64),
            (Values::Float(values), Self::UInt(value)) => values.push(*value as f64),
            (Values::Int(values), Self::Int(value)) => values.push(*value),
            (Values::Int(values), Self::Float(value)) => values.push(*value as i64),
            (Values::Int(values), Self::UInt(value)) => values.push(value.cast_signed()),
            (Values::UInt(values), Self::UInt(value)) => values.push(*value),
            (Values::UInt(values), Self::Float(value)) => values.push(*value as u64),
            (Values::UInt(values), Self::Int(value)) => values.push(value.cast_unsigned()),
            (Values::Bool(values), Self::Bool(value)) => values.push(*value),
            (Values::Text(values), Self::Text(value)) => values.push(value.as_bytes()),
            (values, value) => panic!("BUG: {value:?} does not fit {:?}", values.kind()),
        }
        column.cells.push(Cell::Value);
    }
}

/// Rows of one table.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) table: TableId,
    /// Per row, which message of the batch it came with, counted from 0.
    pub(crate) messages: Vec<u32>,
    /// Per row, its handle, or `NEW_SERIES` and an index into `new_keys`.
    pub(crate) series: Vec<u64>,
    pub(crate) new_keys: Vec<SeriesKey>,
    pub(crate) times: Vec<i64>,
    pub(crate) columns: Vec<(ColumnId, Column)>,
}

impl Part {
    /// The handles of the rows, given those of the new keys.
    pub(crate) fn resolve(&self, new: &[SeriesId]) -> Vec<SeriesId> {
        let handle = |raw: &u64| match raw & NEW_SERIES {
            0 => SeriesId(*raw),
            _ => new.get((raw ^ NEW_SERIES) as usize).copied().unwrap_or_default(),
        };
        self.series.iter().map(handle).collect()
    }
}

/// What is committed as one: all or nothing.
#[derive(Debug)]
pub struct WriteBatch {
    pub(crate) parts: Vec<Part>,
    pub(crate) state: Vec<State>,
    /// How many sequence numbers the batch takes: one per message, at least one.
    pub(crate) messages: u32,
    pub(crate) bytes: usize,
    /// Where the rows come from.
    pub(crate) origin: Origin,
}

impl WriteBatch {
    /// A batch of state alone.
    #[must_use]
    pub fn of_state(state: Vec<State>) -> Self {
        let bytes = state.iter().map(state_bytes).sum();
        Self { parts: Vec::new(), state, messages: 1, bytes, origin: Origin::Client }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.times.len()).sum()
    }

    /// Whether there is nothing to commit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.state.is_empty()
    }
}

/// One row to add.
#[derive(Debug)]
pub struct Row<'r, 'a> {
    /// The row's time.
    pub time: Timestamp,
    /// The tags that are present, by column.
    pub tags: &'r [(ColumnId, Cow<'a, str>)],
    /// The fields that are not absent, by column.
    pub fields: &'r [(ColumnId, FieldValue<'a>)],
}

struct OpenPart {
    table: Arc<Table>,
    new_index: HashMap<SeriesKey, u32>,
    /// Where each column of the table stands in `part.columns`, by ColumnId.
    places: Vec<u32>,
    /// Bytes of strings and of new keys.
    texts: usize,
    part: Part,
}

/// Collects rows and state.
pub struct WriteBatchBuilder {
    parts: Vec<OpenPart>,
    state: Vec<State>,
    messages: u32,
    bytes: usize,
    key: Vec<u8>,
    origin: Origin,
}

impl std::fmt::Debug for WriteBatchBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WriteBatchBuilder({} messages, {} bytes)", self.messages, self.bytes)
    }
}

impl WriteBatchBuilder {
    pub(crate) fn new() -> Self {
        let (parts, state, key) = (Vec::new(), Vec::new(), Vec::new());
        Self { parts, state, messages: 0, bytes: 0, key, origin: Origin::Client }
    }

    /// Starts the next message: rows and state added from here on carry its sequence number. Returns how many came
    /// before it.
    pub fn begin_message(&mut self) -> u32 {
        self.messages += 1;
        self.messages - 1
    }

    /// Says where the rows of the batch come from; else a client wrote them.
    pub fn set_origin(&mut self, origin: Origin) {
        self.origin = origin;
    }

    /// Approximate bytes of what was added.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no message was begun and nothing added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0 && self.parts.is_empty() && self.state.is_empty()
    }

    /// Adds a change of state.
    pub fn state(&mut self, state: State) {
        self.bytes += state_bytes(&state);
        self.state.push(state);
    }

    /// Adds a row of `table` to the current message. Fails, with nothing added, where a value does not fit its column
    /// or the row its batch. A row of a new series is refused where the table has as many as it may: its
    /// `max_series`; where it has none, this one, or [`TABLE_SERIES`]. Batches that are built at the same moment do not
    /// see each other's series, and may exceed the limit by them.
    pub fn row(&mut self, table: &Arc<Table>, row: &Row<'_, '_>, max_series: Option<usize>) -> Result<()> {
        check(table, row)?;
        encode_key(table, row.tags, &mut self.key);
        if self.key.len() > KEY_BYTES {
            return Err(Error::Limit { what: "bytes of a row's tags".into(), limit: KEY_BYTES as u64 });
        }
        let place = self.part(table);
        let (parts, key) = (&mut self.parts, &mut self.key);
        let Some(open) = parts.get_mut(place) else { unreachable!("part {place} was just made") };
        let others = self.bytes - open.bytes();
        if others + open.bytes_with(key, row) > BATCH_BYTES {
            return Err(Error::BatchFull);
        }
        let series = open.series(key, max_series)?;
        open.push(self.messages.saturating_sub(1), series, row);
        self.bytes = others + open.bytes();
        Ok(())
    }

    /// Takes back the rows of the current message; its number and its state stay.
    pub fn take_back_message(&mut self) {
        let current = self.messages.saturating_sub(1);
        for open in &mut self.parts {
            self.bytes -= open.bytes();
            open.truncate(open.part.messages.partition_point(|message| *message < current));
            self.bytes += open.bytes();
        }
    }

    /// The part of a table. There is one, whatever snapshots of the table the rows come with, so that rows stay in order.
    fn part(&mut self, table: &Arc<Table>) -> usize {
        if let Some(place) = self.parts.iter().position(|open| open.table.id() == table.id()) {
            if let Some(open) = self.parts.get_mut(place)
                && !Arc::ptr_eq(&open.table, table)
            {
                open.table = Arc::clone(table);
            }
            return place;
        }
        let part = Part {
            table: table.id(),
            messages: Vec::new(),
            series: Vec::new(),
            new_keys: Vec::new(),
            times: Vec::new(),
            columns: Vec::new(),
        };
        self.parts.push(OpenPart {
            table: Arc::clone(table),
            new_index: HashMap::default(),
            places: Vec::new(),
            texts: 0,
            part,
        });
        self.parts.len() - 1
    }

    /// The batch; `None` where nothing was added.
    #[must_use]
    pub fn finish(self) -> Option<WriteBatch> {
        let mut parts: Vec<Part> = self.parts.into_iter().map(OpenPart::finish).collect();
        parts.retain(|part| !part.times.is_empty());
        let messages = self.messages.max(1);
        let batch = WriteBatch { parts, state: self.state, messages, bytes: self.bytes, origin: self.origin };
        (!batch.is_empty()).then_some(batch)
    }
}

fn state_bytes(state: &State) -> usize {
    state.namespace.len() + state.key.len() + state.value.as_ref().map_or(0, Vec::len) + 32
}

/// Fails where the table has no such column or the value does not fit it.
fn check(table: &Table, row: &Row<'_, '_>) -> Result<()> {
    let column = |id: ColumnId, role: ColumnRole| {
        let column = table.column_by_id(id).filter(|column| column.role == role);
        column.ok_or_else(|| Error::Row(format!("table {} has no {role:?} column {id}", table.full_name())))
    };
    if row.time == Timestamp::MAX {
        return Err(Error::Row("the last instant that 64 bits can name is no time of a row".into()));
    }
    for (id, _) in row.tags {
        column(*id, ColumnRole::Tag)?;
    }
    for (id, value) in row.fields {
        let column = column(*id, ColumnRole::Field)?;
        if !value.fits(column.kind) {
            return Err(type_conflict(column, value));
        }
        if text_bytes(value) > TEXT_BYTES {
            return Err(Error::Limit {
                what: format!("bytes of column {}", column.name),
                limit: TEXT_BYTES as u64,
            });
        }
    }
    Ok(())
}

fn text_bytes(value: &FieldValue<'_>) -> usize {
    match value {
        FieldValue::Text(text) => text.len(),
        _ => 0,
    }
}

/// The error for a value that its column cannot hold.
#[must_use]
pub fn type_conflict(column: &ColumnDef, value: &FieldValue<'_>) -> Error {
    let found = match value {
        FieldValue::Null => "NULL".to_owned(),
        FieldValue::Float(value) => format!("number {value}"),
        FieldValue::Int(value) => format!("integer {value}"),
        FieldValue::UInt(value) => format!("integer {value}"),
        FieldValue::Bool(value) => format!("boolean {value}"),
        FieldValue::Text(value) => format!("string '{}'", value.chars().take(40).collect::<String>()),
    };
    Error::Row(format!("column {} is {}, found {found}", column.name, column.kind.sql_name()))
}

fn encode_key(table: &Table, tags: &[(ColumnId, Cow<'_, str>)], key: &mut Vec<u8>) {
    let value = |tag: &ColumnDef| tags.iter().find(|(id, _)| *id == tag.id).map(|(_, value)| value.as_ref());
    SeriesKey::encode_into(table.tags().map(value), key);
}

impl OpenPart {
    /// About what the part takes in the log: every column has a slot for every row.
    fn bytes(&self) -> usize {
        self.part.times.len() * (24 + 9 * self.part.columns.len()) + self.texts
    }

    /// The same with one more row.
    fn bytes_with(&self, key: &[u8], row: &Row<'_, '_>) -> usize {
        let texts: usize = row.fields.iter().map(|(_, value)| text_bytes(value)).sum();
        let is_new = |id: &ColumnId| self.places.get(id.0 as usize).is_none_or(|place| *place == NO_PLACE);
        let columns = self.part.columns.len() + row.fields.iter().filter(|(id, _)| is_new(id)).count();
        (self.part.times.len() + 1) * (24 + 9 * columns) + self.texts + texts + key.len()
    }

    fn series(&mut self, key: &[u8], max_series: Option<usize>) -> Result<u64> {
        if let Some(id) = self.table.series().lookup(key) {
            return Ok(id.0);
        }
        if let Some(index) = self.new_index.get(key) {
            return Ok(NEW_SERIES | u64::from(*index));
        }
        let limit = self.table.max_series(max_series.unwrap_or(TABLE_SERIES));
        if self.table.series().len() + self.new_index.len() >= limit {
            return Err(Error::Series { table: self.table.full_name(), limit: limit as u64 });
        }
        let key = SeriesKey::from_bytes(key).map_err(|error| Error::Row(error.to_string()))?;
        let index = self.part.new_keys.len() as u32;
        self.texts += key.as_bytes().len();
        self.part.new_keys.push(key.clone());
        self.new_index.insert(key, index);
        Ok(NEW_SERIES | u64::from(index))
    }

    fn push(&mut self, message: u32, series: u64, row: &Row<'_, '_>) {
        let rows = self.part.times.len();
        self.part.messages.push(message);
        self.part.series.push(series);
        self.part.times.push(row.time.as_nanos());
        for (id, value) in row.fields {
            let column = self.column(*id);
            // A column named twice in one row: the last value stands.
            if column.len() > rows {
                *column = column.slice(0..rows);
            }
            column.push_empty(Cell::Absent, rows - column.len());
            value.push(column);
            self.texts += text_bytes(value);
        }
    }

    /// Keeps the first rows. Keys that only others had stay registered.
    fn truncate(&mut self, rows: usize) {
        self.part.messages.truncate(rows);
        self.part.series.truncate(rows);
        self.part.times.truncate(rows);
        for (_, column) in self.part.columns.iter_mut().filter(|(_, column)| column.len() > rows) {
            *column = column.slice(0..rows);
        }
    }

    fn column(&mut self, id: ColumnId) -> &mut Column {
        let index = id.0 as usize;
        if self.places.len() <= index {
            self.places.resize(index + 1, NO_PLACE);
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

    fn finish(mut self) -> Part {
        let rows = self.part.times.len();
        debug_assert!(self.table.def().columns.iter().filter(|c| c.role == ColumnRole::Time).count() == 1);
        for (_, column) in &mut self.part.columns {
            let missing = rows - column.len();
            if missing > 0 {
                column.push_empty(Cell::Absent, missing);
            }
        }
        self.part
    }
}
