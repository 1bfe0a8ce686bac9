#![doc = include_str!("../../../docs/format/chunk.md")]
//!
//! # Invariants
//! - Rows stand in (key, time) order; the rows of one series are contiguous.
//! - Opening reads the root only; a section's checksum is verified when the section is first asked for.

mod read;
mod runs;
mod write;

pub use read::ChunkReader;
pub use runs::{ColumnRuns, RunStats};
pub use write::{ChunkWriter, SeriesRows};

use crate::cursor::{Cursor, FormatError, Result, Writer};
use crate::ids::{ChunkId, ColumnId, PhysicalType, SeqNo, SeqRange, SeriesId, TableId};
use crate::page::PageStats;
use crate::series_key::SeriesKey;
use crate::time::{TimeRange, Timestamp};

/// The column that holds every row's time, in nanoseconds.
pub const TIME_COLUMN: ColumnId = ColumnId(0);

const MAGIC: &[u8; 8] = b"SONDECHK";
const VERSION: u32 = 1;
/// The head: magic, version, zeroes.
const HEAD_LEN: usize = 64;
/// The tail behind the root: root length, root checksum, magic.
const TAIL_LEN: usize = 16;

/// What the root of a chunk file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkRoot {
    /// The chunk's id.
    pub id: ChunkId,
    /// The table it belongs to.
    pub table: TableId,
    /// The time range that the chunk was written for; every row is inside.
    pub range: TimeRange,
    /// The sequence numbers that the chunk covers.
    pub seq: SeqRange,
    /// Rows.
    pub rows: u64,
    /// Series.
    pub series: u64,
    series_section: Section,
    page_section: Section,
    run_section: Section,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Section {
    offset: u64,
    len: u64,
    crc: u32,
}

/// The rows of one series in a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesRun {
    /// The handle of the series.
    pub id: SeriesId,
    /// Its key.
    pub key: SeriesKey,
    /// The first row of the series in the chunk.
    pub start: u64,
    /// How many rows it has.
    pub rows: u64,
    /// The time of its first row.
    pub first: Timestamp,
    /// The time of its last row.
    pub last: Timestamp,
}

/// Where a page stands and what it amounts to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PageMeta {
    /// Where the page starts in the file, a multiple of 64.
    pub offset: u64,
    /// Its length, padding included.
    pub len: u32,
    /// The checksum of those bytes.
    pub crc: u32,
    /// The type of its values, that of its column.
    pub kind: PhysicalType,
    /// What its cells amount to.
    pub stats: PageStats,
}

/// The pages of one column, one per row group; `None` where the column is absent from every row of the group.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnPages {
    /// The column.
    pub id: ColumnId,
    /// The type of its values.
    pub kind: PhysicalType,
    /// One entry per row group.
    pub pages: Vec<Option<PageMeta>>,
}

impl ChunkRoot {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u32(VERSION);
        writer.u32(0); // feature bits: none yet
        writer.u64(self.id.0);
        writer.u32(self.table.0);
        writer.i64(self.range.start.as_nanos());
        writer.i64(self.range.end.as_nanos());
        writer.u64(self.seq.first.0);
        writer.u64(self.seq.last.0);
        writer.u64(self.rows);
        writer.u64(self.series);
        for section in [self.series_section, self.page_section, self.run_section] {
            writer.u64(section.offset);
            writer.u64(section.len);
            writer.u32(section.crc);
        }
        writer.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new("chunk root", bytes);
        let version = cursor.u32()?;
        if version != VERSION {
            return Err(FormatError::Version { structure: "chunk", expected: VERSION, found: version });
        }
        let features = cursor.u32()?;
        if features != 0 {
            return Err(FormatError::Version {
                structure: "chunk feature bits",
                expected: 0,
                found: features,
            });
        }
        let id = ChunkId(cursor.u64()?);
        let table = TableId(cursor.u32()?);
        let range = TimeRange {
            start: Timestamp::from_nanos(cursor.i64()?),
            end: Timestamp::from_nanos(cursor.i64()?),
        };
        let seq = SeqRange { first: SeqNo(cursor.u64()?), last: SeqNo(cursor.u64()?) };
        let (rows, series) = (cursor.u64()?, cursor.u64()?);
        // A section is as long as the file lets it be.
        let mut section = || -> Result<Section> {
            Ok(Section { offset: cursor.u64()?, len: cursor.u64()?, crc: cursor.u32()? })
        };
        let (series_section, page_section, run_section) = (section()?, section()?, section()?);
        cursor.finish()?;
        Ok(Self { id, table, range, seq, rows, series, series_section, page_section, run_section })
    }
}
