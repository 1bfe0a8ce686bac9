//! Statistics of whole series in a chunk, which answer aggregates without a page.

use super::{ColumnPages, SeriesRun, TIME_COLUMN};
use crate::codec::dictionary;
use crate::column::Column;
use crate::cursor::{Cursor, Result, Writer};
use crate::ids::{ColumnId, PhysicalType};
use crate::limits::{COLUMNS, PLAIN_BYTES, RUN_ROWS};
use crate::page::{Ends, Facts, Sum, Summary};

/// What one column of a series in a chunk amounts to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunStats {
    /// Rows that have a value.
    pub present: u64,
    /// Rows that are NULL; the rest is absent.
    pub nulls: u64,
    /// Values that are NaN.
    pub nans: u64,
    /// Smallest and largest value that is not NaN, as the bits of the column's type.
    pub range: Option<(u64, u64)>,
    /// First and last value with their times.
    pub ends: Option<Ends>,
    /// The sum of the values; not where a float is not finite.
    pub sum: Option<Sum>,
}

/// One column's statistics of the series that have 4,096 rows or more, in the order of the series directory.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnRuns {
    /// The column.
    pub id: ColumnId,
    /// The type of its values.
    pub kind: PhysicalType,
    /// The place of the series in the series directory, and its statistics.
    pub runs: Vec<(usize, RunStats)>,
}

/// Adds up the columns of the series that is being written.
#[derive(Debug, Default)]
pub(super) struct RunBuilder {
    /// Rows of the series that goes on, and what its columns amount to.
    rows: u64,
    open: Vec<(ColumnId, Summary)>,
    done: Vec<(ColumnId, Vec<(usize, Summary)>)>,
    /// Long series so far.
    long: usize,
}

impl RunBuilder {
    /// Adds rows of a series, of a new one or of the one before.
    pub(super) fn add(
        &mut self,
        new: bool,
        columns: &[&(ColumnId, Column)],
        times: &[i64],
        rows: std::ops::Range<usize>,
    ) {
        if new {
            self.close();
        }
        self.rows += rows.len() as u64;
        // Columns come in the same order in each group, so the next one is where it is looked for first.
        let mut next = 0;
        for (id, column) in columns.iter().filter(|(_, column)| column.values.kind() != PhysicalType::Text) {
            let here = self.open.get(next).is_some_and(|(known, _)| known == id);
            let at = if here { Some(next) } else { self.open.iter().position(|(known, _)| known == id) };
            let at = at.unwrap_or_else(|| {
                self.open.push((*id, Summary::new(column.values.kind(), true)));
                self.open.len() - 1
            });
            if let Some((_, summary)) = self.open.get_mut(at) {
                summary.add(column, times, rows.clone());
            }
            next = at + 1;
        }
    }

    /// Keeps the statistics of the series that ends, if it is long.
    fn close(&mut self) {
        let long = self.rows >= RUN_ROWS;
        if long {
            self.long += 1;
        }
        for (id, summary) in self.open.drain(..).filter(|_| long) {
            let entry = (self.long - 1, summary);
            match self.done.iter_mut().find(|(known, _)| *known == id) {
                Some((_, runs)) => runs.push(entry),
                None => self.done.push((id, vec![entry])),
            }
        }
        self.rows = 0;
    }

    /// The columns of the chunk that have statistics, with a summary for each long series; none without such a series.
    pub(super) fn finish(mut self, columns: &[ColumnPages]) -> Vec<(ColumnId, PhysicalType, Vec<Summary>)> {
        self.close();
        if self.long == 0 {
            return Vec::new();
        }
        let wanted =
            columns.iter().filter(|column| column.id != TIME_COLUMN && column.kind != PhysicalType::Text);
        let summaries = |column: &ColumnPages| {
            let mut runs = vec![Summary::new(column.kind, true); self.long];
            let done = self.done.iter_mut().find(|(id, _)| *id == column.id);
            for (at, summary) in done.into_iter().flat_map(|(_, runs)| runs.drain(..)) {
                if let Some(slot) = runs.get_mut(at) {
                    *slot = summary;
                }
            }
            (column.id, column.kind, runs)
        };
        wanted.map(summaries).collect()
    }
}

pub(super) fn encode_runs(columns: &[(ColumnId, PhysicalType, Vec<Summary>)]) -> Vec<u8> {
    if columns.is_empty() {
        return Vec::new();
    }
    let mut writer = Writer::new();
    writer.varint(columns.len() as u64);
    for (id, kind, summaries) in columns {
        writer.u32(id.0);
        writer.u8(*kind as u8);
        for summary in summaries {
            [summary.present, summary.nulls, summary.nans].into_iter().for_each(|count| writer.varint(count));
            Facts { range: summary.range, ends: summary.ends, sum: summary.sum() }.encode(&mut writer);
        }
    }
    // A reader asks for no more memory than this; aggregates then read pages.
    if writer.len() > PLAIN_BYTES { Vec::new() } else { dictionary::compress(writer.as_bytes()) }
}

pub(super) fn decode_runs(
    bytes: &[u8],
    series: &[SeriesRun],
    mut wanted: impl FnMut(ColumnId) -> bool,
) -> Result<Vec<ColumnRuns>> {
    let long = series.iter().enumerate().filter(|(_, run)| run.rows >= RUN_ROWS);
    let long: Vec<usize> = long.map(|(place, _)| place).collect();
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let plain = dictionary::decompress(&mut Cursor::new("run statistics", bytes), PLAIN_BYTES)?;
    let mut cursor = Cursor::new("run statistics", &plain);
    let count = cursor.count(COLUMNS, 5)?;
    let mut columns = Vec::new();
    for _ in 0..count {
        let id = ColumnId(cursor.u32()?);
        let kind = cursor.u8()?;
        let kind = PhysicalType::from_byte(kind)
            .filter(|kind| *kind != PhysicalType::Text)
            .ok_or_else(|| cursor.invalid("a type of numbers", kind.into()))?;
        let wanted = wanted(id);
        let mut runs = Vec::with_capacity(if wanted { long.len() } else { 0 });
        for place in &long {
            let (present, nulls, nans) = (cursor.varint()?, cursor.varint()?, cursor.varint()?);
            let Facts { range, ends, sum } = Facts::decode(&mut cursor, kind)?;
            if wanted {
                runs.push((*place, RunStats { present, nulls, nans, range, ends, sum }));
            }
        }
        if wanted {
            columns.push(ColumnRuns { id, kind, runs });
        }
    }
    cursor.finish()?;
    Ok(columns)
}
