//! The records of a frame: each is a kind, the length of its body, and the body.

use super::message::{Message, MessageRef};
use super::rows::RowsRecord;
use super::tombstone::Tombstone;
use crate::catalog::CatalogChange;
use crate::cursor::{Cursor, Result, Writer};
use crate::ids::{SeriesId, TableId};
use crate::limits::KEY_BYTES;
use crate::series_key::SeriesKey;

pub(super) const KIND_ROWS: u8 = 1;
pub(super) const KIND_MESSAGE: u8 = 2;
pub(super) const KIND_STATE: u8 = 3;
pub(super) const KIND_CATALOG: u8 = 4;
pub(super) const KIND_TOMBSTONE: u8 = 5;
pub(super) const KIND_SERIES: u8 = 6;

/// One record of a frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// Rows of a table.
    Rows(RowsRecord),
    /// State of a namespace.
    State(State),
    /// A change of the catalog.
    Catalog(CatalogChange),
    /// New series.
    Series(SeriesRecord),
    /// A message.
    Message(Message),
    /// Rows that are gone.
    Tombstone(Tombstone),
}

impl Record {
    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self> {
        let (kind, mut body) = next(cursor)?;
        let record = match kind {
            KIND_ROWS => Self::Rows(RowsRecord::read(&mut body)?),
            KIND_STATE => Self::State(State::read(&mut body)?),
            KIND_MESSAGE => Self::Message(MessageRef::read(&mut body)?.to_message()),
            KIND_TOMBSTONE => Self::Tombstone(Tombstone::read(&mut body)?),
            KIND_CATALOG => Self::Catalog(CatalogChange::decode(&mut body)?),
            KIND_SERIES => Self::Series(SeriesRecord::read(&mut body)?),
            other => return Err(cursor.invalid("a known record kind", other.into())),
        };
        body.finish()?;
        Ok(record)
    }
}

/// The kind of the next record, and its body.
fn next<'a>(cursor: &mut Cursor<'a>) -> Result<(u8, Cursor<'a>)> {
    let kind = cursor.u8()?;
    let len = cursor.u32()? as usize;
    Ok((kind, Cursor::new("log record", cursor.take(len)?)))
}

/// The message that the next record is; none where it is of another kind, and passed over.
pub(super) fn read_message<'a>(cursor: &mut Cursor<'a>) -> Result<Option<MessageRef<'a>>> {
    match next(cursor)? {
        (KIND_MESSAGE, mut body) => MessageRef::read(&mut body).map(Some),
        _ => Ok(None),
    }
}

/// Whether these bytes are records, one behind the other up to the end; by their kinds and lengths, not their bodies.
pub(super) fn are_records(payload: &[u8]) -> bool {
    let mut cursor = Cursor::new("log frame", payload);
    while cursor.left() > 0 {
        match next(&mut cursor) {
            Ok((kind, _)) if (KIND_ROWS..=KIND_SERIES).contains(&kind) => {}
            _ => return false,
        }
    }
    true
}

/// New series of a table: handles `first ..` in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesRecord {
    /// The table.
    pub table: TableId,
    /// The handle of the first key.
    pub first: SeriesId,
    /// The keys.
    pub keys: Vec<SeriesKey>,
}

impl SeriesRecord {
    pub(super) fn write(&self, writer: &mut Writer) {
        writer.u32(self.table.0);
        writer.varint(self.first.0);
        writer.varint(self.keys.len() as u64);
        self.keys.iter().for_each(|key| writer.bytes(key.as_bytes()));
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Self> {
        let (table, first) = (TableId(cursor.u32()?), SeriesId(cursor.varint()?));
        let count = cursor.count(usize::MAX, 1)?;
        let mut keys = Vec::with_capacity(count);
        for _ in 0..count {
            keys.push(SeriesKey::from_bytes(cursor.bytes(KEY_BYTES)?)?);
        }
        Ok(Self { table, first, keys })
    }
}

/// A key of a namespace that took a value, or lost it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Who keeps it, for example `mqtt.retained`.
    pub namespace: String,
    /// The key.
    pub key: Vec<u8>,
    /// The value; `None` removes the key.
    pub value: Option<Vec<u8>>,
}

impl State {
    pub(super) fn write(&self, writer: &mut Writer) {
        writer.bytes(self.namespace.as_bytes());
        writer.bytes(&self.key);
        writer.u8(self.value.is_some().into());
        writer.put(self.value.as_deref().unwrap_or_default());
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Self> {
        let namespace = cursor.text(KEY_BYTES)?.to_owned();
        let key = cursor.bytes(KEY_BYTES)?.to_vec();
        let value = cursor.flag()?.then(|| cursor.rest().to_vec());
        Ok(Self { namespace, key, value })
    }
}
