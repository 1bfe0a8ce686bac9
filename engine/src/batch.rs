//! Builds the unit that is committed: rows for any number of tables, and state, all or nothing.
//!
//! # Invariants
//! - `WriteBatchBuilder::finish` is the only maker of a `WriteBatch`: typed, bounded, columns known to the catalog.
//! - A row is checked whole before any of it is stored in the builder.

use std::borrow::Cow;
use std::sync::Arc;

use sonde_storage_format::{
    Cell, Column, ColumnDef, ColumnId, MessageRef, Origin, PhysicalType, SeqNo, SeriesId, SeriesKey, State,
    TableId, Timestamp, Values,
};

use crate::catalog::Table;
use crate::error::{Error, Result};
use crate::limits::BATCH_BYTES;
use crate::open_part::{OpenPart, check_time, encode_key, key_values};
use crate::raw::RawMessages;
use crate::series_budget::Charged;
use crate::tag_column::{TagColumn, in_key_order, series_of};

/// Above this, integers are not exact as float64.
pub const EXACT_INTEGER: u64 = 1 << 53;
/// Marks a row's series as an index into the part's new keys.
pub(crate) const NEW_SERIES: u64 = 1 << 63;

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

    /// Bytes of a string; other values have none of their own.
    pub(crate) fn text_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            _ => 0,
        }
    }
}

/// A series as the rows of a batch name it: found once for many rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSeries(pub(crate) u64);

impl BatchSeries {
    /// Whether the series has its handle: then this names it in other batches of its table too.
    #[must_use]
    pub fn is_registered(self) -> bool {
        self.0 & NEW_SERIES == 0
    }
}

/// Rows of one table.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) table: TableId,
    /// Per row, which message of the batch it came with, counted from 0.
    pub(crate) messages: Vec<u32>,
    /// Per row, its handle, or `NEW_SERIES` and an index into `new_keys`.
    pub(crate) series: Vec<BatchSeries>,
    pub(crate) new_keys: Vec<SeriesKey>,
    pub(crate) times: Vec<i64>,
    pub(crate) columns: Vec<(ColumnId, Column)>,
    /// The memory of the new keys' series.
    pub(crate) reserved: Charged,
}

impl Part {
    /// The handles of the rows, given those of the new keys.
    pub(crate) fn resolve(&self, new: &[SeriesId]) -> Vec<SeriesId> {
        let handle = |series: &BatchSeries| match series.is_registered() {
            true => SeriesId(series.0),
            false => new.get((series.0 ^ NEW_SERIES) as usize).copied().unwrap_or_default(),
        };
        self.series.iter().map(handle).collect()
    }
}

/// A place in a value of state that holds a message's number in the batch until the commit gives it its SeqNo.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    state: usize,
    at: usize,
}

/// What is committed as one: all or nothing.
#[derive(Debug)]
pub struct WriteBatch {
    pub(crate) parts: Vec<Part>,
    pub(crate) state: Vec<State>,
    /// Which values of state name a message of the batch, and where in the value.
    pub(crate) stamps: Vec<Stamp>,
    pub(crate) raw: Box<RawMessages>,
    /// How many sequence numbers the batch takes: one per message, at least one.
    pub(crate) messages: u32,
    pub(crate) bytes: usize,
    /// Where the rows come from.
    pub(crate) origin: Origin,
    /// Whether it waits where there is no room, instead of being refused.
    pub(crate) patient: bool,
}

impl WriteBatch {
    /// A batch of state alone.
    #[must_use]
    pub fn of_state(state: Vec<State>) -> Self {
        let bytes = state.iter().map(state_bytes).sum();
        let (parts, stamps, raw) = (Vec::new(), Vec::new(), Box::default());
        Self { parts, state, stamps, raw, messages: 1, bytes, origin: Origin::Client, patient: false }
    }

    /// Turns the numbers that values of state hold into sequence numbers, now that the batch has its own.
    pub(crate) fn stamp(&mut self, first: SeqNo) {
        for stamp in &self.stamps {
            let value = self.state.get_mut(stamp.state).and_then(|state| state.value.as_mut());
            if let Some(slot) = value.and_then(|value| value.get_mut(stamp.at..)?.first_chunk_mut::<8>()) {
                *slot = first.plus(u64::from_le_bytes(*slot)).0.to_le_bytes();
            }
        }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.times.len()).sum()
    }

    /// Whether there is nothing to commit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.state.is_empty() && self.raw.is_empty()
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

/// Rows of one table to add a column at a time.
#[derive(Debug)]
pub struct RowColumns {
    /// Per row, its series.
    pub series: Vec<BatchSeries>,
    /// Per row, its time in nanoseconds.
    pub times: Vec<i64>,
    /// Fields, each with one cell per row; a column is named once.
    pub columns: Vec<(ColumnId, Column)>,
}

/// Collects rows and state.
pub struct WriteBatchBuilder {
    parts: Vec<OpenPart>,
    state: Vec<State>,
    stamps: Vec<Stamp>,
    raw: RawMessages,
    messages: u32,
    bytes: usize,
    key: Vec<u8>,
    origin: Origin,
    patient: bool,
}

impl std::fmt::Debug for WriteBatchBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WriteBatchBuilder({} messages, {} bytes)", self.messages, self.bytes)
    }
}

impl WriteBatchBuilder {
    pub(crate) fn new() -> Self {
        let (parts, state, key) = (Vec::new(), Vec::new(), Vec::new());
        let (stamps, raw) = (Vec::new(), RawMessages::default());
        Self { parts, state, stamps, raw, messages: 0, bytes: 0, key, origin: Origin::Client, patient: false }
    }

    /// Starts the next message: rows and state added from here on carry its sequence number. Returns how many came
    /// before it.
    pub fn begin_message(&mut self) -> u32 {
        self.messages += 1;
        self.messages - 1
    }

    /// The number of the current message in the batch, counted from 0.
    #[must_use]
    pub fn current_message(&self) -> u32 {
        self.messages.saturating_sub(1)
    }

    /// Says where the rows of the batch come from; else a client wrote them.
    pub fn set_origin(&mut self, origin: Origin) {
        self.origin = origin;
    }

    /// Where there is no room, on disk or for rows in memory, the batch waits until there is, instead of being refused:
    /// for those who have a bound of their own for what they have not heard of yet. Such batches stay in their order.
    pub fn set_patient(&mut self) {
        self.patient = true;
    }

    /// Approximate bytes of what was added.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no message was begun and nothing added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0 && self.parts.is_empty() && self.state.is_empty() && self.raw.is_empty()
    }

    /// Adds a change of state.
    pub fn state(&mut self, state: State) {
        self.bytes += state_bytes(&state);
        self.state.push(state);
    }

    /// Adds a change of state whose value holds, in the eight bytes from `at` on, the number of a message of this batch,
    /// counted from 0, as u64 little endian: the commit puts the message's SeqNo in its place.
    pub fn state_of_message(&mut self, state: State, at: usize) {
        let len = state.value.as_ref().map_or(0, Vec::len);
        assert!(at + 8 <= len, "the number of a message at {at} of a value of {len} bytes");
        self.stamps.push(Stamp { state: self.state.len(), at });
        self.state(state);
    }

    /// Logs the current message as it came, in the same commit as its rows and state; its `seq` is given by the commit.
    /// A message is logged once. Fails, with nothing added, where the batch is full. Returns the message's number in the
    /// batch, counted from 0.
    pub fn message(&mut self, message: &MessageRef<'_>) -> Result<u32> {
        let bytes = RawMessages::bytes_of(message);
        if self.bytes + bytes > BATCH_BYTES {
            return Err(Error::BatchFull);
        }
        assert!(self.messages > 0, "a message is begun before it is logged");
        let number = self.messages - 1;
        self.raw.push(number, message);
        self.bytes += bytes;
        Ok(number)
    }

    /// Adds a row of `table` to the current message. Fails, with nothing added, where a value does not fit its column
    /// or the row its batch. A row of a new series is refused where the table has as many as it may: its
    /// `max_series`; where it has none, this one, or [`TABLE_SERIES`](crate::limits::TABLE_SERIES). Batches that are built at the same moment do not
    /// see each other's series, and may exceed the limit by them. So is one that finds no memory. Returns the row's series, for more rows of it.
    pub fn row(
        &mut self,
        table: &Arc<Table>,
        row: &Row<'_, '_>,
        max_series: Option<usize>,
    ) -> Result<BatchSeries> {
        let message = self.messages.saturating_sub(1);
        let (open, others, key) = self.open(table);
        check_time(row.time)?;
        let added = open.weigh(row.fields)?;
        encode_key(key_values(table, row.tags)?, key)?;
        if others + open.bytes_with(added, key.len()) > BATCH_BYTES {
            return Err(Error::BatchFull);
        }
        let series = open.series(key, max_series)?;
        open.push(message, series, row.time, row.fields);
        self.bytes = others + open.bytes();
        Ok(series)
    }

    /// The same for a row whose series an earlier row of `table` had, in this batch or, where it was registered, in
    /// another one.
    pub fn row_of(
        &mut self,
        table: &Arc<Table>,
        series: BatchSeries,
        time: Timestamp,
        fields: &[(ColumnId, FieldValue<'_>)],
    ) -> Result<()> {
        let message = self.messages.saturating_sub(1);
        let (open, others, _) = self.open(table);
        check_time(time)?;
        let added = open.weigh(fields)?;
        if others + open.bytes_with(added, 0) > BATCH_BYTES {
            return Err(Error::BatchFull);
        }
        open.push(message, series, time, fields);
        self.bytes = others + open.bytes();
        Ok(())
    }

    /// The series of each of so many rows that have these tags.
    pub fn series_of_rows(
        &mut self,
        table: &Arc<Table>,
        tags: &[TagColumn<'_>],
        rows: usize,
    ) -> Result<Vec<BatchSeries>> {
        let in_key_order = in_key_order(table, tags)?;
        let (open, others, key) = self.open(table);
        let found = series_of(tags, rows, |row| {
            encode_key(in_key_order.iter().map(|tag| tag.and_then(|tag| tag.value(row))), key)?;
            open.series(key, None)
        });
        self.bytes = others + open.bytes();
        found
    }

    /// Adds rows of `table` to the current message, whose series and columns come from it. Fails, with nothing added,
    /// where a column does not fit the table or the rows do not fit the batch.
    pub fn rows(&mut self, table: &Arc<Table>, rows: RowColumns) -> Result<()> {
        let message = self.messages.saturating_sub(1);
        let (open, others, _) = self.open(table);
        let added = open.weigh_columns(&rows)?;
        if others + open.bytes_with(added, 0) > BATCH_BYTES {
            return Err(Error::BatchFull);
        }
        open.push_columns(message, rows);
        self.bytes = others + open.bytes();
        Ok(())
    }

    /// The part of a table, the bytes of all that is not in it, and the buffer for keys.
    fn open(&mut self, table: &Arc<Table>) -> (&mut OpenPart, usize, &mut Vec<u8>) {
        let place = self.part(table);
        let Some(open) = self.parts.get_mut(place) else { unreachable!("part {place} was just made") };
        let others = self.bytes - open.bytes();
        (open, others, &mut self.key)
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
        self.parts.push(OpenPart::new(table));
        self.parts.len() - 1
    }

    /// The batch; `None` where nothing was added.
    #[must_use]
    pub fn finish(self) -> Option<WriteBatch> {
        let mut parts: Vec<Part> = self.parts.into_iter().map(OpenPart::finish).collect();
        parts.retain(|part| !part.times.is_empty());
        let messages = self.messages.max(1);
        let Self { state, stamps, bytes, origin, patient, .. } = self;
        let raw = Box::new(self.raw);
        let batch = WriteBatch { parts, state, stamps, raw, messages, bytes, origin, patient };
        (!batch.is_empty()).then_some(batch)
    }
}

fn state_bytes(state: &State) -> usize {
    state.namespace.len() + state.key.len() + state.value.as_ref().map_or(0, Vec::len) + 32
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
