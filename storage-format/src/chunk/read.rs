//! Reading a chunk file.

use super::runs::decode_runs;
use super::{
    ChunkRoot, ColumnPages, ColumnRuns, HEAD_LEN, MAGIC, PageMeta, Section, SeriesRun, TAIL_LEN, TIME_COLUMN,
    VERSION,
};
use crate::checksum::crc32;
use crate::cursor::{Cursor, FormatError, Result};
use crate::ids::{ColumnId, PhysicalType, SeriesId};
use crate::limits::{COLUMNS, KEY_BYTES, PAGE_BYTES, ROOT_BYTES, ROW_GROUP_ROWS};
use crate::page::{Facts, Page, PageStats};
use crate::series_key::SeriesKey;
use crate::time::Timestamp;

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
        if root.run_section.offset.checked_add(root.run_section.len) != Some(root_at as u64) {
            return Err(tail.invalid("a root behind the run statistics", root_at as u64));
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
            start = match start.checked_add(rows).filter(|end| rows > 0 && *end <= self.root.rows) {
                Some(end) => end,
                None => {
                    return Err(cursor.invalid("1 row or more in a series, and no more than in all", rows));
                }
            };
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
                pages.push(read_page_meta(&mut cursor, kind)?);
            }
            columns.push(ColumnPages { id, kind, pages });
        }
        cursor.finish()?;
        let time = columns.first().filter(|first: &&ColumnPages| first.id == TIME_COLUMN);
        let rows: Option<Vec<u32>> =
            time.and_then(|time| time.pages.iter().map(|page| Some((*page)?.stats.rows)).collect());
        let Some(rows) = rows else { return Err(cursor.invalid("a time column first", count as u64)) };
        let whole =
            |page: &PageMeta| page.kind == PhysicalType::Int64 && page.stats.present == page.stats.rows;
        if !time.iter().flat_map(|time| &time.pages).flatten().all(whole) {
            return Err(cursor.invalid("a time in every row", count as u64));
        }
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

    /// A verified page, of which nothing is decoded yet.
    pub fn page(&self, meta: &PageMeta) -> Result<Page<'a>> {
        let page = Page::open(self.page_bytes(meta)?)?;
        let stated = (meta.kind, meta.stats.rows as usize, meta.stats.present as usize);
        if (page.kind(), page.rows(), page.present()) == stated {
            return Ok(page);
        }
        let (structure, expected) = ("page", "the type and the rows that the directory states");
        Err(FormatError::Invalid { structure, offset: 0, expected, found: page.rows() as u64 })
    }

    /// The statistics of series with 4,096 rows or more, of the columns that are wanted; `series` is the directory.
    /// Takes some 130 bytes of memory a series and column.
    pub fn run_statistics(
        &self,
        series: &[SeriesRun],
        wanted: impl FnMut(ColumnId) -> bool,
    ) -> Result<Vec<ColumnRuns>> {
        let bytes = self.section("run statistics", self.root.run_section)?;
        decode_runs(bytes, series, wanted)
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

fn read_page_meta(cursor: &mut Cursor<'_>, kind: PhysicalType) -> Result<Option<PageMeta>> {
    let len = cursor.u32()?;
    if len == 0 {
        return Ok(None);
    }
    if len as usize > PAGE_BYTES {
        return Err(cursor.invalid("a page of less than 2 GiB", len.into()));
    }
    let (offset, crc) = (cursor.u64()?, cursor.u32()?);
    let (rows, present, nulls, nans) = (cursor.u32()?, cursor.u32()?, cursor.u32()?, cursor.u32()?);
    let Facts { range, ends, sum } = Facts::decode(cursor, kind)?;
    let stats = PageStats { rows, present, nulls, nans, range, ends, sum };
    Ok(Some(PageMeta { offset, len, crc, kind, stats }))
}

fn verify(structure: &'static str, offset: u64, expected: u32, bytes: &[u8]) -> Result<()> {
    let found = crc32(bytes);
    if found == expected { Ok(()) } else { Err(FormatError::Checksum { structure, offset, expected, found }) }
}
