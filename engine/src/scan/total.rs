//! What the values of a column amount to: how many, their range and their sum.
//!
//! # Invariants
//! - A total of parts is the total of the whole, in whichever order the parts are added: exactly for integers, and for
//!   floats up to the rounding of a compensated sum.

use std::ops::Range;

use sonde_storage_format::limits::VECTOR_VALUES;
use sonde_storage_format::{Cell, Cells, Column, PhysicalType, RunStats, Sum, Values};

/// Sums that go on side by side, so that one addition need not wait for the one before.
const LANES: usize = 8;

/// A sum of floats that does not lose small values beside large ones (Neumaier, 1974). Slices are added up plainly, a
/// vector of 1,024 at a time, and their sums with compensation.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FloatSum {
    sum: f64,
    compensation: f64,
}

impl FloatSum {
    fn add(&mut self, value: f64) {
        let total = self.sum + value;
        let lost = match self.sum.abs() >= value.abs() {
            true => (self.sum - total) + value,
            false => (value - total) + self.sum,
        };
        self.compensation += lost;
        self.sum = total;
    }

    pub(crate) fn add_all(&mut self, values: &[f64]) {
        for vector in values.chunks(VECTOR_VALUES) {
            let (lanes, rest) = vector.as_chunks::<LANES>();
            let mut sums = [0.0; LANES];
            for values in lanes {
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
            self.add(sums.iter().chain(rest).sum());
        }
    }

    /// Where the plain sum is infinite or NaN, so is the whole.
    fn total(&self) -> f64 {
        if self.sum.is_finite() { self.sum + self.compensation } else { self.sum }
    }
}

impl From<FloatSum> for Sum {
    fn from(FloatSum { sum, compensation }: FloatSum) -> Self {
        Self::Float { sum, compensation }
    }
}

/// What a column amounts to in some rows.
#[derive(Clone, Copy, Debug)]
pub struct Total {
    kind: PhysicalType,
    present: u64,
    nans: u64,
    /// Of the values that are not NaN, as bits of the column's type.
    range: Option<(u64, u64)>,
    floats: FloatSum,
    integers: i128,
}

/// A number of a column, exact.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// Of a column of floats.
    Float(f64),
    /// Of a column of integers.
    Int(i128),
}

impl Total {
    /// Of no rows, in a column of this type.
    pub(crate) fn new(kind: PhysicalType) -> Self {
        let (present, nans, range, integers) = (0, 0, None, 0);
        Self { kind, present, nans, range, floats: FloatSum::default(), integers }
    }

    /// Rows that have a value.
    #[must_use]
    pub fn present(&self) -> u64 {
        self.present
    }

    /// The smallest value; NaN is above every number, as in SQL. None without a value, and of strings and booleans.
    #[must_use]
    pub fn min(&self) -> Option<Number> {
        match self.range {
            Some((low, _)) => number(self.kind, low),
            None => (self.nans > 0).then_some(Number::Float(f64::NAN)),
        }
    }

    /// The largest value, as `min` is the smallest.
    #[must_use]
    pub fn max(&self) -> Option<Number> {
        match self.range {
            Some((_, high)) if self.nans == 0 => number(self.kind, high),
            _ => (self.nans > 0).then_some(Number::Float(f64::NAN)),
        }
    }

    /// The sum of the values; none without a value. Only where sums were asked for.
    #[must_use]
    pub fn sum(&self) -> Option<Number> {
        (self.present > 0).then(|| match self.kind {
            PhysicalType::Float64 => Number::Float(self.floats.total()),
            _ => Number::Int(self.integers),
        })
    }

    /// Adds what is known of other rows but their sum; `kind` is the type that these have been stored with.
    pub(crate) fn add_known(
        &mut self,
        kind: PhysicalType,
        present: u64,
        nans: u64,
        range: Option<(u64, u64)>,
    ) {
        self.present += present;
        self.nans += nans;
        let Some((low, high)) = range else { return };
        let (low, high) = (self.converted(kind, low), self.converted(kind, high));
        let (old_low, old_high) = self.range.unwrap_or((low, high));
        let less = |a: u64, b: u64| match self.kind {
            PhysicalType::Float64 => f64::from_bits(a) < f64::from_bits(b),
            PhysicalType::Int64 => a.cast_signed() < b.cast_signed(),
            _ => a < b,
        };
        self.range = Some((
            if less(low, old_low) { low } else { old_low },
            if less(old_high, high) { high } else { old_high },
        ));
    }

    /// Adds a sum of other rows.
    pub(crate) fn add_sum(&mut self, sum: Sum) {
        match sum {
            Sum::Float { sum, compensation } => {
                self.floats.add(sum);
                // What an infinite sum lost says nothing.
                self.floats.add(if sum.is_finite() { compensation } else { 0.0 });
            }
            Sum::Int(sum) if self.kind == PhysicalType::Float64 => self.floats.add(sum as f64),
            Sum::Int(sum) => self.integers += sum,
        }
    }

    /// Adds a series' statistics, which are of a column of type `kind`.
    pub(crate) fn add_run(&mut self, kind: PhysicalType, run: &RunStats) {
        self.add_known(kind, run.present, run.nans, run.range);
        run.sum.into_iter().for_each(|sum| self.add_sum(sum));
    }

    /// Adds rows of a column of this type.
    pub(crate) fn add(&mut self, column: &Column, rows: Range<usize>) {
        let cells = match &column.cells {
            Cells::Values(_) => None,
            Cells::Mixed(cells) => Some(cells.get(rows.clone()).unwrap_or_default()),
        };
        let present = match cells {
            None => rows.len(),
            Some(cells) => cells.iter().filter(|cell| **cell == Cell::Value).count(),
        };
        match &column.values {
            Values::Float(values) => self.add_floats(values.get(rows).unwrap_or_default(), cells, present),
            Values::Int(values) => self.add_integers(values.get(rows).unwrap_or_default(), cells, present),
            Values::UInt(values) => self.add_integers(values.get(rows).unwrap_or_default(), cells, present),
            Values::Bool(_) | Values::Text(_) => self.present += present as u64,
        }
    }

    fn add_floats(&mut self, values: &[f64], cells: Option<&[Cell]>, present: usize) {
        // A slot without a value is zero.
        self.floats.add_all(values);
        let (mut low, mut high, mut nans) = (f64::INFINITY, f64::NEG_INFINITY, 0);
        each(values, cells, |value: f64| {
            nans += u64::from(value.is_nan());
            low = if value < low { value } else { low };
            high = if value > high { value } else { high };
        });
        let range = (present as u64 > nans).then_some((low.to_bits(), high.to_bits()));
        self.add_known(PhysicalType::Float64, present as u64, nans, range);
    }

    fn add_integers<T: Integer>(&mut self, values: &[T], cells: Option<&[Cell]>, present: usize) {
        self.integers += sum(values);
        let mut range: Option<(T, T)> = None;
        each(values, cells, |value: T| {
            let (low, high) = range.unwrap_or((value, value));
            range = Some((low.min(value), high.max(value)));
        });
        let range = range.map(|(low, high)| (low.bits(), high.bits()));
        self.add_known(T::KIND, present as u64, 0, range);
    }

    /// Bits of a value that was stored with type `kind`, as bits of the column's type now.
    fn converted(&self, kind: PhysicalType, bits: u64) -> u64 {
        match (kind, self.kind) {
            (PhysicalType::Int64, PhysicalType::Float64) => (bits.cast_signed() as f64).to_bits(),
            (PhysicalType::UInt64, PhysicalType::Float64) => (bits as f64).to_bits(),
            _ => bits,
        }
    }
}

fn number(kind: PhysicalType, bits: u64) -> Option<Number> {
    match kind {
        PhysicalType::Float64 => Some(Number::Float(f64::from_bits(bits))),
        PhysicalType::Int64 => Some(Number::Int(bits.cast_signed().into())),
        PhysicalType::UInt64 => Some(Number::Int(bits.into())),
        PhysicalType::Boolean | PhysicalType::Text => None,
    }
}

fn each<T: Copy>(values: &[T], cells: Option<&[Cell]>, mut add: impl FnMut(T)) {
    match cells {
        None => values.iter().for_each(|value| add(*value)),
        Some(cells) => {
            let there = values.iter().zip(cells).filter(|(_, cell)| **cell == Cell::Value);
            there.for_each(|(value, _)| add(*value));
        }
    }
}

/// An integer of 64 bits: its halves are added up by themselves, which no vector's sum overflows.
pub(crate) trait Integer: Copy + Ord {
    const KIND: PhysicalType;

    fn bits(self) -> u64;
    /// The upper half with its sign, and the lower one.
    fn halves(self) -> (i64, i64);
}

impl Integer for i64 {
    const KIND: PhysicalType = PhysicalType::Int64;

    fn bits(self) -> u64 {
        self.cast_unsigned()
    }

    fn halves(self) -> (i64, i64) {
        (self >> 32, self & 0xffff_ffff)
    }
}

impl Integer for u64 {
    const KIND: PhysicalType = PhysicalType::UInt64;

    fn bits(self) -> u64 {
        self
    }

    fn halves(self) -> (i64, i64) {
        ((self >> 32).cast_signed(), (self & 0xffff_ffff).cast_signed())
    }
}

/// The exact sum of integers.
pub(crate) fn sum<T: Integer>(values: &[T]) -> i128 {
    let of_vector = |vector: &[T]| {
        let halves = vector.iter().map(|value| value.halves());
        let (upper, lower) = halves.fold((0, 0), |(upper, lower), (u, l)| (upper + u, lower + l));
        (i128::from(upper) << 32) + i128::from(lower)
    };
    values.chunks(VECTOR_VALUES).map(of_vector).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(column: &Column) -> Total {
        let mut total = Total::new(column.values.kind());
        total.add(column, 0..column.len());
        total
    }

    fn floats(values: &[f64]) -> Column {
        Column { cells: Cells::Values(values.len()), values: Values::Float(values.to_vec()) }
    }

    #[test]
    fn sums_of_integers_are_exact_where_64_bits_are_too_few() {
        let column = Column { cells: Cells::Values(3000), values: Values::Int(vec![i64::MIN; 3000]) };
        assert_eq!(total(&column).sum(), Some(Number::Int(i128::from(i64::MIN) * 3000)));
        let column = Column { cells: Cells::Values(3000), values: Values::UInt(vec![u64::MAX; 3000]) };
        assert_eq!(total(&column).sum(), Some(Number::Int(i128::from(u64::MAX) * 3000)));
        assert_eq!(total(&column).max(), Some(Number::Int(u64::MAX.into())));
    }

    #[test]
    fn small_values_are_not_lost_beside_large_ones() {
        let mut sum = FloatSum::default();
        for values in [[1e100, 0.0], [1.0, 1.0], [-1e100, 0.0]] {
            sum.add_all(&values);
        }
        assert_eq!(sum.total(), 2.0);
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        assert_eq!(total(&floats(&[1.0, f64::INFINITY])).sum(), Some(Number::Float(f64::INFINITY)));
        let nan = total(&floats(&[1.0, f64::NAN, 0.5]));
        assert!(matches!(nan.sum(), Some(Number::Float(sum)) if sum.is_nan()));
        assert_eq!(nan.min(), Some(Number::Float(0.5)));
        assert!(matches!(nan.max(), Some(Number::Float(high)) if high.is_nan()), "NaN is above every number");
    }

    #[test]
    fn rows_without_a_value_are_no_zeros() {
        let cells = Cells::Mixed(vec![Cell::Value, Cell::Null, Cell::Absent, Cell::Value]);
        let column = Column { cells, values: Values::Float(vec![2.0, 0.0, 0.0, 3.0]) };
        let all = total(&column);
        assert_eq!(
            (all.present(), all.min(), all.sum()),
            (2, Some(Number::Float(2.0)), Some(Number::Float(5.0)))
        );
        let mut none = Total::new(PhysicalType::Float64);
        none.add(&column, 1..3);
        assert_eq!((none.present(), none.min(), none.max(), none.sum()), (0, None, None, None));
    }

    #[test]
    fn integers_that_became_floats_add_up_as_floats() {
        let mut total = Total::new(PhysicalType::Float64);
        total.add_known(PhysicalType::Int64, 2, 0, Some(((-3_i64).cast_unsigned(), 7)));
        total.add_sum(Sum::Int(4));
        total.add(&floats(&[0.5]), 0..1);
        assert_eq!(total.min(), Some(Number::Float(-3.0)));
        assert_eq!(total.max(), Some(Number::Float(7.0)));
        assert_eq!(total.sum(), Some(Number::Float(4.5)));
    }
}
