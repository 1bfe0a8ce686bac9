//! What the cells of a page, or of a series in a chunk, amount to.

use crate::column::{Cell, Cells, Column, Values};
use crate::cursor::{Cursor, Result, Writer};
use crate::ids::PhysicalType;

/// What a page's cells amount to, kept in the chunk's directory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PageStats {
    /// Rows of the page.
    pub rows: u32,
    /// Rows that have a value.
    pub present: u32,
    /// Rows that are NULL; the rest is absent.
    pub nulls: u32,
    /// Values that are NaN.
    pub nans: u32,
    /// Smallest and largest value that is not NaN, as the bits of the column's type; strings have none.
    pub range: Option<(u64, u64)>,
    /// First and last value; only where all rows are of one series, and not for times and strings.
    pub ends: Option<Ends>,
    /// The sum of the values, under the same conditions; not where a float is not finite.
    pub sum: Option<Sum>,
}

/// The first and the last value of a series, as the bits of the column's type, and their times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Time and bits of the first value.
    pub first: (i64, u64),
    /// Time and bits of the last value.
    pub last: (i64, u64),
}

/// A sum of values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sum {
    /// Of floats, in row order: what plain addition gives, and what it lost (Neumaier, 1974). The sum is both together.
    Float {
        /// The sum as it is added up.
        sum: f64,
        /// What rounding took from it.
        compensation: f64,
    },
    /// Of integers, or of the booleans that are true; exact.
    Int(i128),
}

/// What statistics say of values beside their count, as a page's entry and a series' statistics have it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) range: Option<(u64, u64)>,
    pub(crate) ends: Option<Ends>,
    pub(crate) sum: Option<Sum>,
}

const HAS_RANGE: u8 = 1;
const HAS_ENDS: u8 = 2;
const HAS_SUM: u8 = 4;

impl Facts {
    /// Appends which facts there are, and these.
    pub(crate) fn encode(&self, writer: &mut Writer) {
        let flag = |has: bool, flag: u8| if has { flag } else { 0 };
        let has_range = flag(self.range.is_some(), HAS_RANGE);
        writer.u8(has_range | flag(self.ends.is_some(), HAS_ENDS) | flag(self.sum.is_some(), HAS_SUM));
        if let Some((low, high)) = self.range {
            writer.u64(low);
            writer.u64(high);
        }
        if let Some(ends) = self.ends {
            for (time, bits) in [ends.first, ends.last] {
                writer.i64(time);
                writer.u64(bits);
            }
        }
        match self.sum {
            Some(Sum::Float { sum, compensation }) => {
                writer.u64(sum.to_bits());
                writer.u64(compensation.to_bits());
            }
            Some(Sum::Int(sum)) => writer.put(&sum.to_le_bytes()),
            None => {}
        }
    }

    /// Reads them, of values of a type.
    pub(crate) fn decode(cursor: &mut Cursor<'_>, kind: PhysicalType) -> Result<Self> {
        let flags = cursor.u8()?;
        if flags > HAS_RANGE | HAS_ENDS | HAS_SUM {
            return Err(cursor.invalid("flags of at most 3 bits", flags.into()));
        }
        let has = |flag: u8| flags & flag != 0;
        let range = if has(HAS_RANGE) { Some((cursor.u64()?, cursor.u64()?)) } else { None };
        let mut end = || Ok((cursor.i64()?, cursor.u64()?));
        let ends = if has(HAS_ENDS) { Some(Ends { first: end()?, last: end()? }) } else { None };
        let sum = match kind {
            _ if !has(HAS_SUM) => None,
            PhysicalType::Float64 => Some(Sum::Float {
                sum: f64::from_bits(cursor.u64()?),
                compensation: f64::from_bits(cursor.u64()?),
            }),
            _ => Some(Sum::Int(i128::from(cursor.u64()?) | i128::from(cursor.i64()?) << 64)),
        };
        Ok(Self { range, ends, sum })
    }
}

/// Adds up cells of one series after the other, or of a page.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    kind: PhysicalType,
    /// Whether first, last and sum are wanted.
    series: bool,
    pub(crate) rows: u64,
    pub(crate) present: u64,
    pub(crate) nulls: u64,
    pub(crate) nans: u64,
    pub(crate) range: Option<(u64, u64)>,
    pub(crate) ends: Option<Ends>,
    int: i128,
    sum: f64,
    compensation: f64,
}

impl Summary {
    /// Nothing yet; `series` says that all rows will be of one, in time order.
    pub(crate) fn new(kind: PhysicalType, series: bool) -> Self {
        let series = series && kind != PhysicalType::Text;
        let (rows, present, nulls, nans, int) = (0, 0, 0, 0, 0);
        let (range, ends, sum, compensation) = (None, None, 0.0, 0.0);
        Self { kind, series, rows, present, nulls, nans, range, ends, int, sum, compensation }
    }

    /// Adds the rows `rows` of a column, whose times these are.
    pub(crate) fn add(&mut self, column: &Column, times: &[i64], rows: std::ops::Range<usize>) {
        self.rows += rows.len() as u64;
        let times = times.get(rows.clone()).unwrap_or_default();
        let cells = match &column.cells {
            Cells::Values(_) => None,
            Cells::Mixed(cells) => Some(cells.get(rows.clone()).unwrap_or_default()),
        };
        let nulls = cells.map_or(0, |cells| cells.iter().filter(|cell| **cell == Cell::Null).count());
        self.nulls += nulls as u64;
        match &column.values {
            Values::Float(values) => self.add_floats(values.get(rows).unwrap_or_default(), cells, times),
            Values::Int(values) => self.add_ints(values.get(rows).unwrap_or_default(), cells, times),
            Values::UInt(values) => self.add_ints(values.get(rows).unwrap_or_default(), cells, times),
            Values::Bool(values) => self.add_ints(values.get(rows).unwrap_or_default(), cells, times),
            Values::Text(_) => {
                let present = cells
                    .map_or(rows.len(), |cells| cells.iter().filter(|cell| **cell == Cell::Value).count());
                self.present += present as u64;
            }
        }
    }

    fn add_floats(&mut self, values: &[f64], cells: Option<&[Cell]>, times: &[i64]) {
        let (mut low, mut high, mut nans) = (f64::INFINITY, f64::NEG_INFINITY, 0);
        let (mut sum, mut compensation) = (self.sum, self.compensation);
        let series = self.series;
        let add = |value: f64| {
            nans += u64::from(value.is_nan());
            low = if value < low { value } else { low };
            high = if value > high { value } else { high };
            if series {
                let total = sum + value;
                compensation +=
                    if sum.abs() >= value.abs() { (sum - total) + value } else { (value - total) + sum };
                sum = total;
            }
        };
        let present = self.each(values, cells, times, f64::to_bits, add);
        (self.sum, self.compensation) = (sum, compensation);
        self.nans += nans;
        if present > nans {
            // A zero keeps the sign that it has where it is met first, as the range does below.
            let known = self.range.map(|(low, high)| (f64::from_bits(low), f64::from_bits(high)));
            let (old_low, old_high) = known.unwrap_or((low, high));
            let low = if low < old_low { low } else { old_low };
            let high = if high > old_high { high } else { old_high };
            self.range = Some((low.to_bits(), high.to_bits()));
        }
    }

    fn add_ints<T: Integer>(&mut self, values: &[T], cells: Option<&[Cell]>, times: &[i64]) {
        let mut range: Option<(T, T)> = None;
        let mut sum = 0_i128;
        let add = |value: T| {
            let (low, high) = range.unwrap_or((value, value));
            range = Some((low.min(value), high.max(value)));
            sum += value.wide();
        };
        self.each(values, cells, times, T::bits, add);
        self.int += sum;
        if let Some((low, high)) = range {
            let (old_low, old_high) =
                self.range.map_or((low, high), |(low, high)| (T::from_bits(low), T::from_bits(high)));
            self.range = Some((low.min(old_low).bits(), high.max(old_high).bits()));
        }
    }

    /// Gives each value that is there to `add`, notes the first and the last one, and says how many they were.
    fn each<T: Copy>(
        &mut self,
        values: &[T],
        cells: Option<&[Cell]>,
        times: &[i64],
        bits: fn(T) -> u64,
        mut add: impl FnMut(T),
    ) -> u64 {
        let is_value =
            |row: &usize| cells.and_then(|cells| cells.get(*row)).is_none_or(|cell| *cell == Cell::Value);
        let present = match cells {
            None => {
                values.iter().for_each(|value| add(*value));
                values.len()
            }
            Some(cells) => {
                let there = values.iter().zip(cells).filter(|(_, cell)| **cell == Cell::Value);
                there.map(|(value, _)| add(*value)).count()
            }
        };
        self.present += present as u64;
        let end = |row: usize| Some((*times.get(row)?, bits(*values.get(row)?)));
        let first = (0..values.len()).find(is_value).and_then(end);
        let last = (0..values.len()).rev().find(is_value).and_then(end);
        if self.series
            && let Some((first, last)) = first.zip(last)
        {
            let first = self.ends.map_or(first, |ends| ends.first);
            self.ends = Some(Ends { first, last });
        }
        present as u64
    }

    /// The sum, where there is one.
    pub(crate) fn sum(&self) -> Option<Sum> {
        if !self.series || self.present == 0 {
            return None;
        }
        if self.kind != PhysicalType::Float64 {
            return Some(Sum::Int(self.int));
        }
        let (sum, compensation) = (self.sum, self.compensation);
        // Where a value or the sum is not finite, so is the compensation.
        (sum.is_finite() && compensation.is_finite()).then_some(Sum::Float { sum, compensation })
    }

    /// As the statistics of a page.
    pub(crate) fn page_stats(&self) -> PageStats {
        PageStats {
            rows: self.rows as u32,
            present: self.present as u32,
            nulls: self.nulls as u32,
            nans: self.nans as u32,
            range: self.range,
            ends: self.ends,
            sum: self.sum(),
        }
    }
}

/// An integer of a column, or a boolean.
trait Integer: Copy + Ord {
    fn bits(self) -> u64;
    fn from_bits(bits: u64) -> Self;
    fn wide(self) -> i128;
}

impl Integer for i64 {
    fn bits(self) -> u64 {
        self.cast_unsigned()
    }

    fn from_bits(bits: u64) -> Self {
        bits.cast_signed()
    }

    fn wide(self) -> i128 {
        self.into()
    }
}

impl Integer for u64 {
    fn bits(self) -> u64 {
        self
    }

    fn from_bits(bits: u64) -> Self {
        bits
    }

    fn wide(self) -> i128 {
        self.into()
    }
}

impl Integer for bool {
    fn bits(self) -> u64 {
        self.into()
    }

    fn from_bits(bits: u64) -> Self {
        bits != 0
    }

    fn wide(self) -> i128 {
        self.into()
    }
}

impl PageStats {
    /// Counts the cells of a column; first, last and sum are those of a series whose times these are, if given.
    #[must_use]
    pub fn of(column: &Column, series: Option<&[i64]>) -> Self {
        let mut summary = Summary::new(column.values.kind(), series.is_some());
        summary.add(column, series.unwrap_or_default(), 0..column.len());
        summary.page_stats()
    }
}
