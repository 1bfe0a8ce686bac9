#![doc = include_str!("../../docs/format/manifest.md")]
//!
//! # Invariants
//! - Each frame is one edit, whole or not at all; edits apply in the order in which they stand.

use crate::checksum::crc32_seeded;
use crate::cursor::{Cursor, FormatError, Result, Writer};
use crate::ids::{ChunkId, ColumnId, PhysicalType, SeqNo, SeqRange, TableId};
use crate::limits::{COLUMNS, EDIT_BYTES, KEY_BYTES};
use crate::time::{TimeRange, Timestamp};

const MAGIC: &[u8; 8] = b"SONDEMAN";
const VERSION: u32 = 1;
/// Numbers of the first and the last kind of step.
const STEP_CHUNK: u8 = 1;
const STEP_LAST: u8 = 8;

/// The head of a manifest file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestHeader {
    /// The file's number, which seeds the checksums of its frames.
    pub number: u64,
}

impl ManifestHeader {
    /// Bytes of the head.
    pub const LEN: usize = 24;

    /// The head's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.put(MAGIC);
        writer.u32(VERSION);
        writer.u64(self.number);
        let crc = crc32_seeded(0, 0, writer.as_bytes());
        writer.u32(crc);
        writer.into_bytes()
    }

    /// Reads and verifies the head.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new("manifest head", bytes);
        let body = cursor.take(Self::LEN - 4)?;
        let expected = cursor.u32()?;
        let mut cursor = Cursor::new("manifest head", body);
        if cursor.take(MAGIC.len())? != MAGIC {
            return Err(cursor.invalid("the magic SONDEMAN", 0));
        }
        let found = crc32_seeded(0, 0, body);
        if found != expected {
            return Err(FormatError::Checksum { structure: "manifest head", offset: 0, expected, found });
        }
        let version = cursor.u32()?;
        if version != VERSION {
            return Err(FormatError::Version { structure: "manifest", expected: VERSION, found: version });
        }
        Ok(Self { number: cursor.u64()? })
    }
}

/// What a chunk holds, enough to prune without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkMeta {
    /// The chunk.
    pub id: ChunkId,
    /// Its table.
    pub table: TableId,
    /// The partition that it was written for.
    pub range: TimeRange,
    /// The first and the last time in it, both inclusive.
    pub times: (Timestamp, Timestamp),
    /// The sequence numbers that it covers.
    pub seq: SeqRange,
    /// Rows.
    pub rows: u64,
    /// Series.
    pub series: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// What its columns hold.
    pub columns: Vec<ColumnRange>,
}

/// What one column of a chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnRange {
    /// The column.
    pub id: ColumnId,
    /// The type of its values.
    pub kind: PhysicalType,
    /// Rows that have a value.
    pub present: u64,
    /// Bytes of its pages.
    pub bytes: u64,
    /// Smallest and largest value that is not NaN, as bits of the type; strings have none.
    pub range: Option<(u64, u64)>,
}

/// A Parquet file of the cold tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColdFile {
    /// The table.
    pub table: TableId,
    /// The UTC day that it holds rows of.
    pub day: TimeRange,
    /// Every row of the day up to this position is in the cold tier.
    pub position: SeqNo,
    /// Where it lies, relative to the root of the object store.
    pub path: String,
    /// Rows.
    pub rows: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// One step of an edit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// A chunk joins.
    AddChunk(ChunkMeta),
    /// A chunk leaves.
    RemoveChunk(ChunkId),
    /// Every row up to here is in chunks or in the cold tier.
    FlushedTo(SeqNo),
    /// Records besides rows are in this checkpoint.
    Checkpoint(u64),
    /// A cold file joins; files of an older position of the same table and day leave.
    AddCold(ColdFile),
    /// All cold files of a table and day leave.
    RemoveCold {
        /// The table.
        table: TableId,
        /// The day.
        day: TimeRange,
    },
    /// Ids below this one were used already.
    NextChunk(ChunkId),
    /// What tombstones up to here hide is not in the chunk, though its own sequence numbers end before.
    Purged {
        /// The chunk.
        chunk: ChunkId,
        /// The sequence number of the last of the tombstones.
        seq: SeqNo,
    },
}

/// Encodes the steps of one edit as the frame that stands at `offset` of manifest `number`. Fails where they are more
/// than a frame takes.
pub fn encode_edit(number: u64, offset: u64, edits: &[Edit]) -> Result<Vec<u8>> {
    let mut body = Writer::new();
    body.varint(edits.len() as u64);
    edits.iter().for_each(|edit| edit.encode(&mut body));
    if body.len() > EDIT_BYTES {
        let (structure, expected) = ("manifest edit", "at most 64 MiB");
        return Err(FormatError::Invalid { structure, offset: 0, expected, found: body.len() as u64 });
    }
    let mut covered = Writer::new();
    covered.u32(body.len() as u32);
    covered.put(body.as_bytes());
    let mut frame = Writer::new();
    frame.u32(crc32_seeded(number, offset, covered.as_bytes()));
    frame.put(covered.as_bytes());
    Ok(frame.into_bytes())
}

/// Decodes all edits of a manifest, and where the first byte that is none of them stands: a torn tail begins there.
/// Damage before a later frame that is whole is an error, and so is a whole frame that does not decode.
pub fn decode_edits(number: u64, bytes: &[u8]) -> Result<(Vec<Edit>, u64)> {
    let mut edits = Vec::new();
    let mut offset = ManifestHeader::LEN;
    while offset < bytes.len() {
        match frame_body(number, bytes, offset) {
            Ok((body, end)) => {
                // It was written whole: what cannot be read in it is no torn tail.
                decode_body(body, &mut edits)?;
                offset = end;
            }
            Err(error) => {
                let later = (offset + 1..bytes.len())
                    .find(|&at| may_be_frame(bytes, at) && frame_body(number, bytes, at).is_ok());
                return if later.is_some() { Err(error) } else { Ok((edits, offset as u64)) };
            }
        }
    }
    Ok((edits, offset as u64))
}

/// What a manifest holds in spite of damage: the edits of each frame that is whole, and `None` for each stretch of bytes
/// between such frames that is none. The head is not looked at.
#[must_use]
pub fn salvage_edits(number: u64, bytes: &[u8]) -> Vec<Option<Vec<Edit>>> {
    let mut found = Vec::new();
    let mut offset = ManifestHeader::LEN;
    while offset < bytes.len() {
        let frame = frame_body(number, bytes, offset).ok().filter(|_| may_be_frame(bytes, offset));
        if let Some((body, end)) = frame {
            let mut edits = Vec::new();
            found.push(decode_body(body, &mut edits).is_ok().then_some(edits));
            offset = end;
            continue;
        }
        found.push(None);
        let next = (offset + 1..bytes.len())
            .find(|&at| may_be_frame(bytes, at) && frame_body(number, bytes, at).is_ok());
        offset = next.unwrap_or(bytes.len());
    }
    found
}

/// Whether a frame could stand there, by what its first bytes say: to sum up all that may follow each byte of a long
/// torn tail would take minutes.
fn may_be_frame(bytes: &[u8], offset: usize) -> bool {
    let mut cursor = Cursor::new("manifest frame", bytes.get(offset..).unwrap_or_default());
    let mut first_step = || {
        cursor.u32()?;
        let len = cursor.u32()? as usize;
        let mut body = Cursor::new("manifest edit", cursor.take(len)?);
        let count = body.count(usize::MAX, 1)?;
        if count > 0 { body.u8() } else { body.finish().map(|()| STEP_CHUNK) }
    };
    first_step().is_ok_and(|step| (STEP_CHUNK..=STEP_LAST).contains(&step))
}

fn frame_body(number: u64, bytes: &[u8], offset: usize) -> Result<(&[u8], usize)> {
    let mut cursor = Cursor::new("manifest frame", bytes.get(offset..).unwrap_or_default());
    let expected = cursor.u32()?;
    let len = cursor.u32()? as usize;
    if len == 0 || len > EDIT_BYTES {
        return Err(cursor.invalid("an edit of 1 byte to 64 MiB", len as u64));
    }
    let body = cursor.take(len)?;
    let covered = bytes.get(offset + 4..offset + 8 + len).unwrap_or_default();
    let found = crc32_seeded(number, offset as u64, covered);
    if found != expected {
        return Err(FormatError::Checksum {
            structure: "manifest frame",
            offset: offset as u64,
            expected,
            found,
        });
    }
    Ok((body, offset + 8 + len))
}

fn decode_body(body: &[u8], edits: &mut Vec<Edit>) -> Result<()> {
    let mut cursor = Cursor::new("manifest edit", body);
    let count = cursor.count(usize::MAX, 1)?;
    for _ in 0..count {
        edits.push(Edit::decode(&mut cursor)?);
    }
    cursor.finish()
}

/// The most bytes of a chunk without its columns, its step's number included.
const CHUNK_BYTES: usize = 1 + 84 + 10;
/// The most bytes of a column of a chunk.
const COLUMN_BYTES: usize = 22 + 2 * 10;
/// The most bytes of a cold file without its path.
const COLD_BYTES: usize = 1 + 44 + 10;

impl Edit {
    /// No encoding of this step has more bytes.
    #[must_use]
    pub fn bytes_at_most(&self) -> usize {
        match self {
            Self::AddChunk(chunk) => CHUNK_BYTES + COLUMN_BYTES * chunk.columns.len(),
            Self::AddCold(file) => COLD_BYTES + file.path.len(),
            Self::RemoveCold { .. } => 1 + 20,
            Self::Purged { .. } => 1 + 16,
            Self::RemoveChunk(_) | Self::FlushedTo(_) | Self::Checkpoint(_) | Self::NextChunk(_) => 1 + 8,
        }
    }

    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::AddChunk(chunk) => {
                writer.u8(1);
                encode_chunk(chunk, writer);
            }
            Self::RemoveChunk(id) => {
                writer.u8(2);
                writer.u64(id.0);
            }
            Self::FlushedTo(seq) => {
                writer.u8(3);
                writer.u64(seq.0);
            }
            Self::Checkpoint(number) => {
                writer.u8(4);
                writer.u64(*number);
            }
            Self::AddCold(file) => {
                writer.u8(5);
                writer.u32(file.table.0);
                encode_range(&file.day, writer);
                writer.u64(file.position.0);
                writer.bytes(file.path.as_bytes());
                writer.u64(file.rows);
                writer.u64(file.bytes);
            }
            Self::RemoveCold { table, day } => {
                writer.u8(6);
                writer.u32(table.0);
                encode_range(day, writer);
            }
            Self::NextChunk(id) => {
                writer.u8(7);
                writer.u64(id.0);
            }
            Self::Purged { chunk, seq } => {
                writer.u8(8);
                writer.u64(chunk.0);
                writer.u64(seq.0);
            }
        }
    }

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        Ok(match cursor.u8()? {
            1 => Self::AddChunk(decode_chunk(cursor)?),
            2 => Self::RemoveChunk(ChunkId(cursor.u64()?)),
            3 => Self::FlushedTo(SeqNo(cursor.u64()?)),
            4 => Self::Checkpoint(cursor.u64()?),
            5 => Self::AddCold(ColdFile {
                table: TableId(cursor.u32()?),
                day: decode_range(cursor)?,
                position: SeqNo(cursor.u64()?),
                path: cursor.text(KEY_BYTES)?.to_owned(),
                rows: cursor.u64()?,
                bytes: cursor.u64()?,
            }),
            6 => Self::RemoveCold { table: TableId(cursor.u32()?), day: decode_range(cursor)? },
            7 => Self::NextChunk(ChunkId(cursor.u64()?)),
            8 => Self::Purged { chunk: ChunkId(cursor.u64()?), seq: SeqNo(cursor.u64()?) },
            other => return Err(cursor.invalid("a known edit", other.into())),
        })
    }
}

fn encode_range(range: &TimeRange, writer: &mut Writer) {
    writer.i64(range.start.as_nanos());
    writer.i64(range.end.as_nanos());
}

fn decode_range(cursor: &mut Cursor<'_>) -> Result<TimeRange> {
    let range =
        TimeRange { start: Timestamp::from_nanos(cursor.i64()?), end: Timestamp::from_nanos(cursor.i64()?) };
    if range.is_empty() {
        return Err(cursor.invalid("a range that is not empty", range.start.as_nanos().cast_unsigned()));
    }
    Ok(range)
}

fn encode_chunk(chunk: &ChunkMeta, writer: &mut Writer) {
    writer.u64(chunk.id.0);
    writer.u32(chunk.table.0);
    encode_range(&chunk.range, writer);
    writer.i64(chunk.times.0.as_nanos());
    writer.i64(chunk.times.1.as_nanos());
    writer.u64(chunk.seq.first.0);
    writer.u64(chunk.seq.last.0);
    writer.u64(chunk.rows);
    writer.u64(chunk.series);
    writer.u64(chunk.bytes);
    writer.varint(chunk.columns.len() as u64);
    for column in &chunk.columns {
        writer.u32(column.id.0);
        writer.u8(column.kind as u8);
        writer.varint(column.present);
        writer.varint(column.bytes);
        writer.u8(column.range.is_some().into());
        let (low, high) = column.range.unwrap_or_default();
        writer.u64(low);
        writer.u64(high);
    }
}

fn decode_chunk(cursor: &mut Cursor<'_>) -> Result<ChunkMeta> {
    let (id, table) = (ChunkId(cursor.u64()?), TableId(cursor.u32()?));
    let range = decode_range(cursor)?;
    let times = (Timestamp::from_nanos(cursor.i64()?), Timestamp::from_nanos(cursor.i64()?));
    let seq = SeqRange { first: SeqNo(cursor.u64()?), last: SeqNo(cursor.u64()?) };
    let (rows, series, bytes) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
    let count = cursor.count(COLUMNS, 24)?;
    let columns = (0..count).map(|_| decode_column(cursor)).collect::<Result<_>>()?;
    Ok(ChunkMeta { id, table, range, times, seq, rows, series, bytes, columns })
}

fn decode_column(cursor: &mut Cursor<'_>) -> Result<ColumnRange> {
    let id = ColumnId(cursor.u32()?);
    let kind = cursor.u8()?;
    let kind = PhysicalType::from_byte(kind).ok_or_else(|| cursor.invalid("a known type", kind.into()))?;
    let (present, bytes, has) = (cursor.varint()?, cursor.varint()?, cursor.u8()?);
    let range = (cursor.u64()?, cursor.u64()?);
    if has > 1 {
        return Err(cursor.invalid("0 or 1", has.into()));
    }
    Ok(ColumnRange { id, kind, present, bytes, range: (has == 1).then_some(range) })
}
