#![doc = include_str!("../../docs/format/checkpoint.md")]

use crate::catalog::CatalogChange;
use crate::checksum::{Crc32, crc32};
use crate::cursor::{Cursor, FormatError, Result, Writer};
use crate::ids::{SeqNo, TableId};
use crate::limits::{CHECKPOINT_BYTES, KEY_BYTES};
use crate::series_keys::SeriesKeys;

const MAGIC: &[u8; 8] = b"SONDECKP";
const VERSION: u32 = 1;
/// Bytes from which on a part of a file is full.
const PART_BYTES: usize = 1 << 20;

/// Everything that the log says besides rows, up to a position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Every record up to here is in the checkpoint.
    pub position: SeqNo,
    /// Changes that build the catalog from nothing.
    pub catalog: Vec<CatalogChange>,
    /// The series of each table, by handle from 0 on.
    pub series: Vec<TableSeries>,
    /// The keys of all namespaces.
    pub state: Vec<StateEntry>,
}

/// The series of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSeries {
    /// The table.
    pub table: TableId,
    /// The key of each handle.
    pub keys: SeriesKeys,
}

/// A key of a namespace and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateEntry {
    /// Who keeps it.
    pub namespace: String,
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
}

impl Checkpoint {
    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let parts = checkpoint_parts(self.position, &self.catalog, &self.series, &self.state);
        parts.collect::<Vec<_>>().concat()
    }

    /// Reads a file.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new("checkpoint", bytes);
        if cursor.take(MAGIC.len())? != MAGIC {
            return Err(cursor.invalid("the magic SONDECKP", 0));
        }
        let body_len = bytes.len().saturating_sub(4);
        let expected = Cursor::new("checkpoint", bytes.get(body_len..).unwrap_or_default()).u32()?;
        let body = bytes.get(..body_len).unwrap_or_default();
        let found = crc32(body);
        if found != expected {
            return Err(FormatError::Checksum { structure: "checkpoint", offset: 0, expected, found });
        }
        let mut cursor = Cursor::new("checkpoint", body);
        cursor.take(MAGIC.len())?;
        let version = cursor.u32()?;
        if version != VERSION {
            return Err(FormatError::Version { structure: "checkpoint", expected: VERSION, found: version });
        }
        let position = SeqNo(cursor.u64()?);
        let count = cursor.count(usize::MAX, 1)?;
        let catalog = (0..count).map(|_| CatalogChange::decode(&mut cursor)).collect::<Result<_>>()?;
        let count = cursor.count(usize::MAX, 5)?;
        let series = (0..count).map(|_| decode_series(&mut cursor)).collect::<Result<_>>()?;
        let count = cursor.count(usize::MAX, 3)?;
        let state = (0..count).map(|_| decode_state(&mut cursor)).collect::<Result<_>>()?;
        cursor.finish()?;
        Ok(Self { position, catalog, series, state })
    }
}

/// The bytes of the file of a [`Checkpoint`] of these, in parts of about a MiB, so that nobody needs all of them at once.
pub fn checkpoint_parts<'a>(
    position: SeqNo,
    catalog: &'a [CatalogChange],
    series: &'a [TableSeries],
    state: &'a [StateEntry],
) -> impl Iterator<Item = Vec<u8>> + 'a {
    let head = Piece::Head { position, catalog, tables: series.len() };
    let of_table = |table: &'a TableSeries| {
        std::iter::once(Piece::Table(table)).chain(table.keys.iter().map(Piece::Key))
    };
    let mut pieces = std::iter::once(head)
        .chain(series.iter().flat_map(of_table))
        .chain(std::iter::once(Piece::Entries(state.len())))
        .chain(state.iter().map(Piece::Entry));
    let mut crc = Some(Crc32::default());
    std::iter::from_fn(move || {
        let mut writer = Writer::new();
        while writer.len() < PART_BYTES {
            let Some(piece) = pieces.next() else {
                let mut crc = crc.take()?;
                crc.update(writer.as_bytes());
                writer.u32(crc.finish());
                return Some(writer.into_bytes());
            };
            piece.put(&mut writer);
        }
        crc.as_mut()?.update(writer.as_bytes());
        Some(writer.into_bytes())
    })
}

/// What stands in the file at a stretch.
enum Piece<'a> {
    /// Everything before the series.
    Head {
        position: SeqNo,
        catalog: &'a [CatalogChange],
        tables: usize,
    },
    /// What comes before the keys of a table.
    Table(&'a TableSeries),
    Key(&'a [u8]),
    /// How many entries of state follow.
    Entries(usize),
    Entry(&'a StateEntry),
}

impl Piece<'_> {
    fn put(&self, writer: &mut Writer) {
        match self {
            Self::Head { position, catalog, tables } => {
                writer.put(MAGIC);
                writer.u32(VERSION);
                writer.u64(position.0);
                writer.varint(catalog.len() as u64);
                catalog.iter().for_each(|change| change.encode(writer));
                writer.varint(*tables as u64);
            }
            Self::Table(table) => {
                writer.u32(table.table.0);
                writer.varint(table.keys.len() as u64);
            }
            Self::Key(key) => writer.bytes(key),
            Self::Entries(count) => writer.varint(*count as u64),
            Self::Entry(entry) => {
                writer.bytes(entry.namespace.as_bytes());
                writer.bytes(&entry.key);
                writer.bytes(&entry.value);
            }
        }
    }
}

fn decode_series(cursor: &mut Cursor<'_>) -> Result<TableSeries> {
    let table = TableId(cursor.u32()?);
    let count = cursor.count(usize::MAX, 1)?;
    let mut keys = SeriesKeys::default();
    for _ in 0..count {
        keys.push_bytes(cursor.bytes(KEY_BYTES)?)?;
    }
    Ok(TableSeries { table, keys })
}

fn decode_state(cursor: &mut Cursor<'_>) -> Result<StateEntry> {
    Ok(StateEntry {
        namespace: cursor.text(KEY_BYTES)?.to_owned(),
        key: cursor.bytes(KEY_BYTES)?.to_vec(),
        value: cursor.bytes(CHECKPOINT_BYTES)?.to_vec(),
    })
}
