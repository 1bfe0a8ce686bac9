//! Writing a chunk file.

use super::runs::{RunBuilder, encode_runs};
use super::{ChunkRoot, ColumnPages, HEAD_LEN, MAGIC, PageMeta, Section, SeriesRun, TIME_COLUMN, VERSION};
use crate::checksum::crc32;
use crate::codec::Profile;
use crate::column::{Cell, Cells, Column, Values};
use crate::cursor::Writer;
use crate::ids::{ChunkId, ColumnId, SeqRange, SeriesId, TableId};
use crate::limits::{PAGE_ALIGN, PAGE_BYTES, ROOT_BYTES, ROW_GROUP_ROWS};
use crate::page::{Facts, PageStats, encode_page_as};
use crate::series_key::SeriesKey;
use crate::time::{TimeRange, Timestamp};

/// Rows of one series that follow each other in a row group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesRows {
    /// The handle of the series.
    pub id: SeriesId,
    /// Its key.
    pub key: SeriesKey,
    /// How many rows; the next ones are of another series, or in the next row group.
    pub rows: usize,
}

/// Builds a chunk file front to back.
#[derive(Debug)]
pub struct ChunkWriter {
    id: ChunkId,
    table: TableId,
    range: TimeRange,
    seq: SeqRange,
    profile: Profile,
    /// Bytes handed out by `drain` already.
    drained: u64,
    bytes: Writer,
    rows: u64,
    groups: usize,
    columns: Vec<ColumnPages>,
    series: Vec<SeriesRun>,
    runs: RunBuilder,
}

impl ChunkWriter {
    /// Starts a file.
    #[must_use]
    pub fn new(id: ChunkId, table: TableId, range: TimeRange, seq: SeqRange, profile: Profile) -> Self {
        assert!(seq.first <= seq.last && !range.is_empty(), "chunk {id} covers {seq:?} and {range:?}");
        let mut bytes = Writer::new();
        bytes.put(MAGIC);
        bytes.u32(VERSION);
        bytes.pad(HEAD_LEN);
        let (columns, series, runs) = (Vec::new(), Vec::new(), RunBuilder::default());
        Self { id, table, range, seq, profile, drained: 0, bytes, rows: 0, groups: 0, columns, series, runs }
    }

    /// Appends a row group of at most 65,536 rows, in (key, time) order. All columns have as many rows as `times`, and
    /// so have the series together; the first one may go on from the row group before.
    pub fn push_group(&mut self, times: Vec<i64>, columns: &[(ColumnId, Column)], series: &[SeriesRows]) {
        let rows = times.len();
        assert!(rows > 0 && rows <= ROW_GROUP_ROWS, "a row group of {rows} rows");
        assert_eq!(series.iter().map(|series| series.rows).sum::<usize>(), rows, "rows of the series");
        let written: Vec<&(ColumnId, Column)> =
            columns.iter().filter(|(_, column)| !is_absent(column)).collect();
        let mut start = 0;
        for series in series {
            assert!(series.rows > 0, "series {} without a row", series.id.0);
            let rows = start..start + series.rows;
            let new = self.push_series(series, times.get(rows.clone()).unwrap_or_default());
            self.runs.add(new, &written, &times, rows.clone());
            start = rows.end;
        }
        let one_series = (series.len() == 1).then_some(times.as_slice());
        let stats: Vec<PageStats> =
            written.iter().map(|(_, column)| PageStats::of(column, one_series)).collect();
        let times = Column::of(Values::Int(times));
        self.push_page(TIME_COLUMN, &times, PageStats::of(&times, None));
        for ((id, column), stats) in written.into_iter().zip(stats) {
            assert_eq!(column.len(), rows, "column {id} and the times differ in length");
            self.push_page(*id, column, stats);
        }
        self.rows += rows as u64;
        self.groups += 1;
    }

    /// Takes note of the rows of a series; whether it is a new one.
    fn push_series(&mut self, rows: &SeriesRows, times: &[i64]) -> bool {
        let (Some(first), Some(last)) = (times.first(), times.last()) else { return false };
        assert!(times.is_sorted(), "times in order");
        let (first, last) = (Timestamp::from_nanos(*first), Timestamp::from_nanos(*last));
        assert!(first <= last && self.range.contains(first) && self.range.contains(last), "times in order");
        let start = match self.series.last_mut() {
            Some(run) if run.id == rows.id => {
                assert!(run.last <= first, "times in order");
                run.rows += times.len() as u64;
                run.last = last;
                return false;
            }
            Some(run) => {
                assert!(run.key < rows.key, "series come in key order");
                run.start + run.rows
            }
            None => 0,
        };
        let (id, key, rows) = (rows.id, rows.key.clone(), times.len() as u64);
        self.series.push(SeriesRun { id, key, start, rows, first, last });
        true
    }

    fn push_page(&mut self, id: ColumnId, column: &Column, stats: PageStats) {
        let page = encode_page_as(self.profile, column, id == TIME_COLUMN);
        assert!(page.len() <= PAGE_BYTES, "a page of {} bytes", page.len());
        let offset = self.drained + self.bytes.len() as u64;
        let kind = column.values.kind();
        let meta = PageMeta { offset, len: page.len() as u32, crc: crc32(&page), kind, stats };
        assert_eq!(meta.offset % PAGE_ALIGN as u64, 0, "pages are aligned");
        self.bytes.put(&page);
        let place = match self.columns.iter_mut().find(|pages| pages.id == id) {
            Some(place) => place,
            None => {
                self.columns.push(ColumnPages { id, kind, pages: Vec::new() });
                self.columns.last_mut().unwrap_or_else(|| unreachable!())
            }
        };
        assert_eq!(place.kind, kind, "column {id} has one type in a chunk");
        place.pages.resize(self.groups.max(place.pages.len()), None);
        assert_eq!(place.pages.len(), self.groups, "column {id} has one page in a row group");
        place.pages.push(Some(meta));
    }

    /// Takes the bytes written so far.
    pub fn drain(&mut self) -> Vec<u8> {
        let bytes = std::mem::take(&mut self.bytes).into_bytes();
        self.drained += bytes.len() as u64;
        bytes
    }

    /// Ends the file: the bytes since the last `drain`, what the columns amount to, and how many series there are.
    #[must_use]
    pub fn finish(mut self) -> (Vec<u8>, Vec<ColumnPages>, u64) {
        for column in &mut self.columns {
            column.pages.resize(self.groups, None);
        }
        let series_section = self.push_section(&encode_series(&self.series));
        let page_section = self.push_section(&encode_pages(&self.columns, self.groups));
        let runs = std::mem::take(&mut self.runs).finish(&self.columns);
        let run_section = self.push_section(&encode_runs(&runs));
        let series = self.series.len() as u64;
        let Self { id, table, range, seq, rows, .. } = self;
        let root =
            ChunkRoot { id, table, range, seq, rows, series, series_section, page_section, run_section };
        let root = root.encode();
        assert!(root.len() <= ROOT_BYTES, "a root of {} bytes", root.len());
        self.bytes.put(&root);
        self.bytes.u32(root.len() as u32);
        self.bytes.u32(crc32(&root));
        self.bytes.put(MAGIC);
        (self.bytes.into_bytes(), self.columns, series)
    }

    fn push_section(&mut self, bytes: &[u8]) -> Section {
        let offset = self.drained + self.bytes.len() as u64;
        self.bytes.put(bytes);
        Section { offset, len: bytes.len() as u64, crc: crc32(bytes) }
    }
}

/// Whether no row of the column has a value or a NULL.
fn is_absent(column: &Column) -> bool {
    match &column.cells {
        Cells::Values(rows) => *rows == 0,
        Cells::Mixed(cells) => cells.iter().all(|cell| *cell == Cell::Absent),
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
            match page {
                Some(page) => encode_page_meta(page, &mut writer),
                None => writer.u32(0),
            }
        }
    }
    writer.into_bytes()
}

fn encode_page_meta(page: &PageMeta, writer: &mut Writer) {
    let PageStats { rows, present, nulls, nans, range, ends, sum } = page.stats;
    writer.u32(page.len);
    writer.u64(page.offset);
    writer.u32(page.crc);
    [rows, present, nulls, nans].into_iter().for_each(|count| writer.u32(count));
    Facts { range, ends, sum }.encode(writer);
}
