//! Statistics of whole series in a chunk, which answer aggregates without a page.

use super::{ColumnPages, SeriesRun, TIME_COLUMN};
use crate::column::{Cell, Column, Values};
use crate::cursor::{Cursor, Result, Writer};
use crate::ids::{ColumnId, PhysicalType};
use crate::limits::{COLUMNS, ROW_GROUP_ROWS, RUN_ROWS};
use crate::page::{Ends, Sum, Summary, decode_page, encode_page};

/// Pages of a group.
const PAGES: usize = 11;

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

/// One column's statistics of the series that have 1,024 rows or more, in the order of the series directory.
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
    /// The first and the last time of each long series so far.
    long: Vec<(i64, i64)>,
    /// Those of the series that goes on.
    times: (i64, i64),
}

/// The columns of a chunk, their kinds, and a summary for each long series, in order.
pub(super) struct Runs {
    long: Vec<(i64, i64)>,
    columns: Vec<(ColumnId, PhysicalType, Vec<Summary>)>,
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
            self.times.0 = times.get(rows.start).copied().unwrap_or_default();
        }
        self.times.1 = rows.clone().next_back().and_then(|row| times.get(row)).copied().unwrap_or_default();
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
            self.long.push(self.times);
        }
        for (id, summary) in self.open.drain(..).filter(|_| long) {
            let entry = (self.long.len() - 1, summary);
            match self.done.iter_mut().find(|(known, _)| *known == id) {
                Some((_, runs)) => runs.push(entry),
                None => self.done.push((id, vec![entry])),
            }
        }
        self.rows = 0;
    }

    /// What there is, for the columns of the chunk.
    pub(super) fn finish(mut self, columns: &[ColumnPages]) -> Runs {
        self.close();
        let wanted =
            columns.iter().filter(|column| column.id != TIME_COLUMN && column.kind != PhysicalType::Text);
        let columns = wanted.map(|column| {
            let mut runs = vec![Summary::new(column.kind, true); self.long.len()];
            let done = self.done.iter_mut().find(|(id, _)| *id == column.id);
            for (at, summary) in done.into_iter().flat_map(|(_, runs)| runs.drain(..)) {
                if let Some(slot) = runs.get_mut(at) {
                    *slot = summary;
                }
            }
            (column.id, column.kind, runs)
        });
        let columns = if self.long.is_empty() { Vec::new() } else { columns.collect() };
        Runs { long: self.long, columns }
    }
}

pub(super) fn encode_runs(runs: &Runs) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.varint(runs.columns.len() as u64);
    for (id, kind, summaries) in &runs.columns {
        writer.u32(id.0);
        writer.u8(*kind as u8);
        for (group, long) in summaries.chunks(ROW_GROUP_ROWS).zip(runs.long.chunks(ROW_GROUP_ROWS)) {
            for column in columns_of(*kind, group, long) {
                let page = encode_page(&column, false);
                writer.u32(page.len() as u32);
                writer.put(&page);
            }
        }
    }
    writer.into_bytes()
}

/// The columns of the eleven pages of a group.
fn columns_of(kind: PhysicalType, group: &[Summary], long: &[(i64, i64)]) -> [Column; PAGES] {
    let count = |value: fn(&Summary) -> u64| Column::of(Values::UInt(group.iter().map(value).collect()));
    let value = |value: fn(&Summary) -> Option<u64>| optional(kind, group.iter().map(value));
    let unsigned = PhysicalType::UInt64;
    let lag = |lag: fn(Ends, (i64, i64)) -> i64| {
        let lags = group.iter().zip(long);
        optional(unsigned, lags.map(|(summary, times)| Some(lag(summary.ends?, *times).cast_unsigned())))
    };
    let (upper, lower) = match kind {
        PhysicalType::Float64 => (kind, kind),
        _ => (PhysicalType::Int64, unsigned),
    };
    [
        count(|summary| summary.present),
        count(|summary| summary.nulls),
        count(|summary| summary.nans),
        value(|summary| Some(summary.range?.0)),
        value(|summary| Some(summary.range?.1)),
        value(|summary| Some(summary.ends?.first.1)),
        value(|summary| Some(summary.ends?.last.1)),
        lag(|ends, times| ends.first.0.wrapping_sub(times.0)),
        lag(|ends, times| times.1.wrapping_sub(ends.last.0)),
        optional(upper, group.iter().map(|summary| Some(halves(summary.sum()?).0))),
        optional(lower, group.iter().map(|summary| Some(halves(summary.sum()?).1))),
    ]
}

/// Sum and compensation, or the upper and the lower half.
fn halves(sum: Sum) -> (u64, u64) {
    match sum {
        Sum::Float { sum, compensation } => (sum.to_bits(), compensation.to_bits()),
        Sum::Int(sum) => ((sum >> 64) as u64, sum as u64),
    }
}

/// A column of a type from the bits of its values; `None` is absent.
fn optional(kind: PhysicalType, bits: impl Iterator<Item = Option<u64>>) -> Column {
    let mut column = Column::new(kind);
    for bits in bits {
        let Some(bits) = bits else {
            column.push_empty(Cell::Absent, 1);
            continue;
        };
        column.cells.push(Cell::Value);
        match &mut column.values {
            Values::Float(values) => values.push(f64::from_bits(bits)),
            Values::Int(values) => values.push(bits.cast_signed()),
            Values::UInt(values) => values.push(bits),
            Values::Bool(values) => values.push(bits != 0),
            Values::Text(values) => values.push(&[]),
        }
    }
    column
}

pub(super) fn decode_runs(bytes: &[u8], series: &[SeriesRun]) -> Result<Vec<ColumnRuns>> {
    let long: Vec<(usize, &SeriesRun)> =
        series.iter().enumerate().filter(|(_, run)| run.rows >= RUN_ROWS).collect();
    let mut cursor = Cursor::new("run statistics", bytes);
    let count = cursor.count(COLUMNS, 5)?;
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        let id = ColumnId(cursor.u32()?);
        let kind = cursor.u8()?;
        let kind = PhysicalType::from_byte(kind)
            .filter(|kind| *kind != PhysicalType::Text)
            .ok_or_else(|| cursor.invalid("a type of numbers", kind.into()))?;
        let mut runs = Vec::with_capacity(long.len());
        for group in long.chunks(ROW_GROUP_ROWS) {
            let pages = Pages::read(&mut cursor, kind, group.len())?;
            runs.extend(group.iter().enumerate().map(|(row, (place, run))| (*place, pages.run(row, run))));
        }
        columns.push(ColumnRuns { id, kind, runs });
    }
    cursor.finish()?;
    Ok(columns)
}

/// The pages of a group.
struct Pages(Vec<Column>);

impl Pages {
    /// Reads eleven pages of so many rows, of the types that a column of this kind has there.
    fn read(cursor: &mut Cursor<'_>, kind: PhysicalType, rows: usize) -> Result<Self> {
        let wanted = columns_of(kind, &[], &[]).map(|column| column.values.kind());
        let mut pages = Vec::with_capacity(PAGES);
        for kind in wanted {
            let len = cursor.u32()? as usize;
            let page = decode_page(cursor.take(len)?)?;
            if page.values.kind() != kind || page.len() != rows {
                return Err(
                    cursor.invalid("a page of the right type with a row for each series", page.len() as u64)
                );
            }
            pages.push(page);
        }
        Ok(Self(pages))
    }

    /// The bits of a row of a page, `None` where it is absent.
    fn bits(&self, page: usize, row: usize) -> Option<u64> {
        let page = self.0.get(page).filter(|page| page.cells.get(row) == Cell::Value)?;
        match &page.values {
            Values::Float(values) => values.get(row).map(|value| value.to_bits()),
            Values::Int(values) => values.get(row).map(|value| value.cast_unsigned()),
            Values::UInt(values) => values.get(row).copied(),
            Values::Bool(values) => values.get(row).map(|value| u64::from(*value)),
            Values::Text(_) => None,
        }
    }

    fn run(&self, row: usize, run: &SeriesRun) -> RunStats {
        let bits = |page: usize| self.bits(page, row);
        let count = |page: usize| bits(page).unwrap_or_default();
        let sum = bits(9).zip(bits(10)).map(|(upper, lower)| match self.0.get(9).map(|page| &page.values) {
            Some(Values::Float(_)) => {
                Sum::Float { sum: f64::from_bits(upper), compensation: f64::from_bits(lower) }
            }
            _ => Sum::Int(i128::from(upper.cast_signed()) << 64 | i128::from(lower)),
        });
        let end = |value: usize, time: Option<i64>| Some((time?, bits(value)?));
        let first = end(5, bits(7).map(|lag| run.first.as_nanos().wrapping_add_unsigned(lag)));
        let last = end(6, bits(8).map(|lag| run.last.as_nanos().wrapping_sub_unsigned(lag)));
        RunStats {
            present: count(0),
            nulls: count(1),
            nans: count(2),
            range: bits(3).zip(bits(4)),
            ends: first.zip(last).map(|(first, last)| Ends { first, last }),
            sum,
        }
    }
}
