#![doc = include_str!("../../docs/format/chunk.md")]
//!
//! # Invariants
//! - Rows stand in (key, time) order; the rows of one series are contiguous.
//! - Opening reads the root only; a section's checksum is verified when the section is first asked for.

use crate::checksum::crc32;
use crate::column::{Column, Values};
use crate::cursor::{Cursor, FormatError, Result, Writer};
use crate::ids::{ChunkId, ColumnId, PhysicalType, SeqNo, SeqRange, SeriesId, TableId};
use crate::limits::{COLUMNS, KEY_BYTES, PAGE_ALIGN, PAGE_BYTES, ROOT_BYTES, ROW_GROUP_ROWS, SECTION_BYTES};
use crate::page::{PageStats, decode_page, encode_page};
use crate::series_key::SeriesKey;
use crate::time::{TimeRange, Timestamp};

/// The column that holds every row's time, in nanoseconds.
pub const TIME_COLUMN: ColumnId = ColumnId(0);

const MAGIC: &[u8; 8] = b"SONDECHK";
const VERSION: u32 = 0;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageMeta {
    /// Where the page starts in the file, a multiple of 64.
    pub offset: u64,
    /// Its length, padding included.
    pub len: u32,
    /// The checksum of those bytes.
    pub crc: u32,
    /// What its cells amount to.
    pub stats: PageStats,
}

/// The pages of one column, one per row group; `None` where the column is absent from every row of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnPages {
    /// The column.
    pub id: ColumnId,
    /// The type of its values.
    pub kind: PhysicalType,
    /// One entry per row group.
    pub pages: Vec<Option<PageMeta>>,
}

/// Builds a chunk file front to back.
#[derive(Debug)]
pub struct ChunkWriter {
    id: ChunkId,
    table: TableId,
    range: TimeRange,
    seq: SeqRange,
    /// Bytes handed out by `drain` already.
    drained: u64,
    bytes: Writer,
    rows: u64,
    groups: usize,
    columns: Vec<ColumnPages>,
    series: Vec<SeriesRun>,
}

impl ChunkWriter {
    /// Starts a file.
    #[must_use]
    pub fn new(id: ChunkId, table: TableId, range: TimeRange, seq: SeqRange) -> Self {
        assert!(seq.first <= seq.last && !range.is_empty(), "chunk {id} covers {seq:?} and {range:?}");
        let mut bytes = Writer::new();
        bytes.put(MAGIC);
        bytes.u32(VERSION);
        bytes.pad(HEAD_LEN);
        Self {
            id,
            table,
            range,
            seq,
            drained: 0,
            bytes,
            rows: 0,
            groups: 0,
            columns: Vec::new(),
            series: Vec::new(),
        }
    }

    /// Appends a row group of at most 65,536 rows. All columns have as many rows as `times`, in (key, time) order.
    pub fn push_group(&mut self, times: Vec<i64>, columns: &[(ColumnId, Column)]) {
        let rows = times.len();
        assert!(rows > 0 && rows <= ROW_GROUP_ROWS, "a row group of {rows} rows");
        self.push_page(TIME_COLUMN, &Column::of(Values::Int(times)));
        for (id, column) in columns {
            assert_eq!(column.len(), rows, "column {id} and the times differ in length");
            if PageStats::of(column).present > 0 || PageStats::of(column).nulls > 0 {
                self.push_page(*id, column);
            }
        }
        self.rows += rows as u64;
        self.groups += 1;
    }

    fn push_page(&mut self, id: ColumnId, column: &Column) {
        let page = encode_page(column, id == TIME_COLUMN);
        assert!(page.len() <= PAGE_BYTES, "a page of {} bytes", page.len());
        let meta = PageMeta {
            offset: self.drained + self.bytes.len() as u64,
            len: page.len() as u32,
            crc: crc32(&page),
            stats: PageStats::of(column),
        };
        assert_eq!(meta.offset % PAGE_ALIGN as u64, 0, "pages are aligned");
        self.bytes.put(&page);
        let kind = column.values.kind();
        let place = match self.columns.iter_mut().find(|pages| pages.id == id) {
            Some(place) => place,
            None => {
                self.columns.push(ColumnPages { id, kind, pages: Vec::new() });
                self.columns.last_mut().unwrap_or_else(|| unreachable!())
            }
        };
        assert_eq!(place.kind, kind, "column {id} has one type in a chunk");
        place.pages.resize(self.groups, None);
        place.pages.push(Some(meta));
    }

    /// Appends the next series; runs come in key order and follow each other without a gap.
    pub fn push_series(&mut self, run: SeriesRun) {
        if let Some(last) = self.series.last() {
            assert!(last.key < run.key, "series runs come in key order");
            assert_eq!(last.start + last.rows, run.start, "series runs follow each other");
        }
        assert!(run.first <= run.last && self.range.contains(run.first) && self.range.contains(run.last));
        self.series.push(run);
    }

    /// Takes the bytes written so far.
    pub fn drain(&mut self) -> Vec<u8> {
        let bytes = std::mem::take(&mut self.bytes).into_bytes();
        self.drained += bytes.len() as u64;
        bytes
    }

    /// Ends the file: the bytes since the last `drain`, and what the columns amount to.
    #[must_use]
    pub fn finish(mut self) -> (Vec<u8>, Vec<ColumnPages>) {
        let runs: u64 = self.series.iter().map(|run| run.rows).sum();
        assert_eq!(runs, self.rows, "the series directory covers every row");
        for column in &mut self.columns {
            column.pages.resize(self.groups, None);
        }
        let series = encode_series(&self.series);
        let pages = encode_pages(&self.columns, self.groups);
        let series_section = self.push_section(&series);
        let page_section = self.push_section(&pages);
        let root = ChunkRoot {
            id: self.id,
            table: self.table,
            range: self.range,
            seq: self.seq,
            rows: self.rows,
            series: self.series.len() as u64,
            series_section,
            page_section,
        };
        let root = root.encode();
        assert!(root.len() <= ROOT_BYTES, "a root of {} bytes", root.len());
        self.bytes.put(&root);
        self.bytes.u32(root.len() as u32);
        self.bytes.u32(crc32(&root));
        self.bytes.put(MAGIC);
        (self.bytes.into_bytes(), self.columns)
    }

    fn push_section(&mut self, bytes: &[u8]) -> Section {
        let section = Section {
            offset: self.drained + self.bytes.len() as u64,
            len: bytes.len() as u64,
            crc: crc32(bytes),
        };
        self.bytes.put(bytes);
        section
    }
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
        for section in [self.series_section, self.page_section] {
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
        let mut section = || -> Result<Section> {
            let section = Section { offset: cursor.u64()?, len: cursor.u64()?, crc: cursor.u32()? };
            if section.len > SECTION_BYTES as u64 {
                return Err(cursor.invalid("a section of at most 1 GiB", section.len));
            }
            Ok(section)
        };
        let (series_section, page_section) = (section()?, section()?);
        cursor.finish()?;
        Ok(Self { id, table, range, seq, rows, series, series_section, page_section })
    }
}

fn encode_series(series: &[SeriesRun]) -> Vec<u8> {
    let mut writer = Writer::new();
    for run in series {
        writer.varint(run.id.0);
        writer.bytes(run.key.as_bytes());
        writer.varint(run.rows);
        writer.i64(run.first.as_nanos());
        writer.i64(run.last.as_nanos());
    }
    writer.into_bytes()
}

fn encode_pages(columns: &[ColumnPages], groups: usize) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.varint(groups as u64);
    writer.varint(columns.len() as u64);
    for column in columns {
        writer.u32(column.id.0);
        writer.u8(column.kind as u8);
        for page in &column.pages {
            let Some(page) = page else {
                writer.u32(0);
                continue;
            };
            writer.u32(page.len);
            writer.u64(page.offset);
            writer.u32(page.crc);
            writer.u32(page.stats.rows);
            writer.u32(page.stats.present);
            writer.u32(page.stats.nulls);
            writer.u32(page.stats.nans);
            let (has, (low, high)) = (page.stats.range.is_some(), page.stats.range.unwrap_or_default());
            writer.u8(has.into());
            writer.u64(low);
            writer.u64(high);
        }
    }
    writer.into_bytes()
}

/// Reads a chunk file that is in memory or mapped.
#[derive(Clone, Debug)]
pub struct ChunkReader<'a> {
    bytes: &'a [u8],
    root: ChunkRoot,
}

impl<'a> ChunkReader<'a> {
    /// Verifies head, root and tail.
    pub fn open(bytes: &'a [u8]) -> Result<Self> {
        let mut head = Cursor::new("chunk head", bytes);
        if head.take(MAGIC.len())? != MAGIC {
            return Err(head.invalid("the magic SONDECHK", 0));
        }
        let version = head.u32()?;
        if version != VERSION {
            return Err(FormatError::Version { structure: "chunk", expected: VERSION, found: version });
        }
        if head.take(HEAD_LEN - MAGIC.len() - 4)?.iter().any(|byte| *byte != 0) {
            return Err(head.invalid("zeroes behind the version", 1));
        }
        let Some(tail_at) = bytes.len().checked_sub(TAIL_LEN) else {
            return Err(head.invalid("a tail of 16 bytes", bytes.len() as u64));
        };
        let mut tail = Cursor::new("chunk tail", bytes.get(tail_at..).unwrap_or_default());
        let (root_len, root_crc) = (tail.u32()? as usize, tail.u32()?);
        if tail.take(MAGIC.len())? != MAGIC {
            return Err(tail.invalid("the magic SONDECHK at the end", 0));
        }
        let root_at = tail_at.checked_sub(root_len).filter(|_| root_len <= ROOT_BYTES);
        let Some(root_at) = root_at else {
            return Err(tail.invalid("a root of at most 4096 bytes", root_len as u64));
        };
        let root = bytes.get(root_at..tail_at).unwrap_or_default();
        verify("chunk root", root_at as u64, root_crc, root)?;
        let root = ChunkRoot::decode(root)?;
        if root.page_section.offset.checked_add(root.page_section.len) != Some(root_at as u64) {
            return Err(tail.invalid("a root behind the page section", root_at as u64));
        }
        Ok(Self { bytes, root })
    }

    /// What the root says.
    #[must_use]
    pub fn root(&self) -> &ChunkRoot {
        &self.root
    }

    /// The series directory, in key order.
    pub fn series(&self) -> Result<Vec<SeriesRun>> {
        let bytes = self.section("series directory", self.root.series_section)?;
        let mut cursor = Cursor::new("series directory", bytes);
        let mut series: Vec<SeriesRun> =
            Vec::with_capacity((self.root.series as usize).min(bytes.len() / 19));
        let mut start = 0;
        for _ in 0..self.root.series {
            let id = SeriesId(cursor.varint()?);
            let key = SeriesKey::from_bytes(cursor.bytes(KEY_BYTES)?)?;
            let rows = cursor.varint()?;
            let first = Timestamp::from_nanos(cursor.i64()?);
            let last = Timestamp::from_nanos(cursor.i64()?);
            if series.last().is_some_and(|before| before.key >= key) || first > last {
                return Err(cursor.invalid("series in key order", id.0));
            }
            series.push(SeriesRun { id, key, start, rows, first, last });
            start = u64::saturating_add(start, rows);
        }
        cursor.finish()?;
        if start != self.root.rows {
            return Err(cursor.invalid("series that cover every row", start));
        }
        Ok(series)
    }

    /// The page directory, the time column first.
    pub fn columns(&self) -> Result<Vec<ColumnPages>> {
        let bytes = self.section("page directory", self.root.page_section)?;
        let mut cursor = Cursor::new("page directory", bytes);
        let groups = cursor.count(usize::MAX, 4)?;
        let count = cursor.count(COLUMNS, 5)?;
        let mut columns = Vec::with_capacity(count);
        for _ in 0..count {
            let id = ColumnId(cursor.u32()?);
            let kind = cursor.u8()?;
            let kind =
                PhysicalType::from_byte(kind).ok_or_else(|| cursor.invalid("a known type", kind.into()))?;
            let mut pages = Vec::with_capacity(groups);
            for _ in 0..groups {
                pages.push(read_page_meta(&mut cursor)?);
            }
            columns.push(ColumnPages { id, kind, pages });
        }
        cursor.finish()?;
        let time = columns.first().filter(|first: &&ColumnPages| first.id == TIME_COLUMN);
        let rows: Option<Vec<u32>> =
            time.and_then(|time| time.pages.iter().map(|page| Some((*page)?.stats.rows)).collect());
        let Some(rows) = rows else { return Err(cursor.invalid("a time column first", count as u64)) };
        if rows.iter().any(|rows| *rows == 0 || *rows as usize > ROW_GROUP_ROWS) {
            return Err(cursor.invalid("row groups of 1 to 65,536 rows", groups as u64));
        }
        let total: u64 = rows.iter().map(|rows| u64::from(*rows)).sum();
        if total != self.root.rows {
            return Err(cursor.invalid("row groups that cover every row", total));
        }
        let unequal = |column: &ColumnPages| {
            column
                .pages
                .iter()
                .zip(&rows)
                .any(|(page, rows)| page.is_some_and(|page| page.stats.rows != *rows))
        };
        match columns.iter().position(unequal) {
            None => Ok(columns),
            Some(place) => Err(cursor.invalid("pages of a row group with equally many rows", place as u64)),
        }
    }

    /// A page's bytes, verified.
    pub fn page_bytes(&self, meta: &PageMeta) -> Result<&'a [u8]> {
        let bytes = self.range("page", meta.offset, meta.len.into())?;
        verify("page", meta.offset, meta.crc, bytes)?;
        Ok(bytes)
    }

    /// Verifies and decodes a page.
    pub fn page(&self, meta: &PageMeta) -> Result<Column> {
        let bytes = self.page_bytes(meta)?;
        let column = decode_page(bytes)?;
        if column.len() != meta.stats.rows as usize {
            return Err(FormatError::Invalid {
                structure: "page",
                offset: 0,
                expected: "as many rows as the directory says",
                found: column.len() as u64,
            });
        }
        Ok(column)
    }

    fn section(&self, structure: &'static str, section: Section) -> Result<&'a [u8]> {
        let bytes = self.range(structure, section.offset, section.len)?;
        verify(structure, section.offset, section.crc, bytes)?;
        Ok(bytes)
    }

    fn range(&self, structure: &'static str, offset: u64, len: u64) -> Result<&'a [u8]> {
        let end = offset.checked_add(len).and_then(|end| usize::try_from(end).ok());
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        end.and_then(|end| self.bytes.get(start..end)).ok_or(FormatError::Truncated {
            structure,
            offset: start,
            expected: len as usize,
            found: self.bytes.len().saturating_sub(start),
        })
    }
}

fn read_page_meta(cursor: &mut Cursor<'_>) -> Result<Option<PageMeta>> {
    let len = cursor.u32()?;
    if len == 0 {
        return Ok(None);
    }
    if len as usize > PAGE_BYTES {
        return Err(cursor.invalid("a page of less than 2 GiB", len.into()));
    }
    let (offset, crc) = (cursor.u64()?, cursor.u32()?);
    let (rows, present, nulls, nans) = (cursor.u32()?, cursor.u32()?, cursor.u32()?, cursor.u32()?);
    let has = cursor.u8()?;
    let range = (cursor.u64()?, cursor.u64()?);
    if has > 1 {
        return Err(cursor.invalid("0 or 1", has.into()));
    }
    let stats = PageStats { rows, present, nulls, nans, range: (has == 1).then_some(range) };
    Ok(Some(PageMeta { offset, len, crc, stats }))
}

fn verify(structure: &'static str, offset: u64, expected: u32, bytes: &[u8]) -> Result<()> {
    let found = crc32(bytes);
    if found == expected { Ok(()) } else { Err(FormatError::Checksum { structure, offset, expected, found }) }
}
