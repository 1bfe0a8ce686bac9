//! Payloads as rows: one file per format, each giving named scalars that the source maps to columns.

#[cfg(test)]
pub(crate) mod fuzz;
pub mod json;
pub mod line;

use std::borrow::Cow;

use sonde_engine::{FieldValue, Timestamp};
use sonde_query::statement::TimeUnit;

/// Why a payload is no row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(pub String);

/// A named scalar of a payload.
pub type Item<'a> = (Cow<'a, str>, FieldValue<'a>);

/// Rows of named scalars, one after the other in one list, so that many rows need no list of their own.
#[derive(Debug, Default)]
pub struct Rows<'a> {
    items: Vec<Item<'a>>,
    /// Where each row ends in `items`.
    ends: Vec<usize>,
}

impl<'a> Rows<'a> {
    /// Adds an item to the current row.
    pub fn push(&mut self, item: Item<'a>) {
        self.items.push(item);
    }

    /// Ends the current row.
    pub fn end_row(&mut self) {
        self.ends.push(self.items.len());
    }

    /// Number of items in the row that has not ended.
    pub(crate) fn row_len(&self) -> usize {
        self.items.len() - self.ends.last().copied().unwrap_or_default()
    }

    /// Number of rows.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.items.clear();
        self.ends.clear();
    }

    /// The items of each row.
    pub fn iter(&self) -> impl Iterator<Item = &[Item<'a>]> {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let row = self.items.get(start..*end).unwrap_or_default();
            start = *end;
            row
        })
    }

    /// Takes all items out, row after row.
    pub(crate) fn drain(&mut self) -> (std::vec::Drain<'_, Item<'a>>, std::vec::Drain<'_, usize>) {
        (self.items.drain(..), self.ends.drain(..))
    }

    /// Gives the item of a payload that is a bare scalar its name.
    pub(crate) fn name_scalar(&mut self, name: impl FnOnce(&FieldValue<'a>) -> &'static str) {
        if let Some((slot, value)) = self.items.first_mut() {
            *slot = Cow::Borrowed(name(value));
        }
    }

    /// No rows, in the memory of these; what the next rows borrow from may differ.
    pub(crate) fn recycle<'b>(mut self) -> Rows<'b> {
        self.clear();
        Rows { items: recycle(self.items), ends: self.ends }
    }
}

/// An empty list in the memory of another one. Both element types must have one layout for that, as they do where they
/// differ in lifetimes only; else it is merely an empty list.
pub(crate) fn recycle<A, B>(mut list: Vec<A>) -> Vec<B> {
    list.clear();
    list.into_iter().map(|_| unreachable!("the list was emptied")).collect()
}

/// The instant that a number stands for: in `unit`, or by magnitude where none is declared. Below 1e11 it counts
/// seconds, below 1e14 milliseconds, below 1e17 microseconds, else nanoseconds.
pub fn time_of_number(value: &FieldValue<'_>, unit: Option<TimeUnit>) -> Result<Timestamp, DecodeError> {
    let wrong = || DecodeError(format!("time {value:?} is no instant"));
    match value {
        FieldValue::Float(number) => {
            let unit = unit.unwrap_or_else(|| magnitude(number.abs()));
            // Whole numbers stay exact; fractions are rounded to a nanosecond of what a double can say.
            let nanos = if number.fract() == 0.0 && number.abs() < 9.3e18 {
                (*number as i64).checked_mul(unit.nanos())
            } else {
                let nanos = number * unit.nanos() as f64;
                (nanos.is_finite() && nanos.abs() < 9.2e18).then(|| nanos.round() as i64)
            };
            nanos.map(Timestamp::from_nanos).ok_or_else(wrong)
        }
        FieldValue::Int(number) => {
            let unit = unit.unwrap_or_else(|| magnitude(number.unsigned_abs() as f64));
            number.checked_mul(unit.nanos()).map(Timestamp::from_nanos).ok_or_else(wrong)
        }
        FieldValue::UInt(number) => {
            let number = i64::try_from(*number).map_err(|_| wrong())?;
            time_of_number(&FieldValue::Int(number), unit)
        }
        FieldValue::Text(text) => arrow::compute::kernels::cast_utils::string_to_timestamp_nanos(text)
            .map(Timestamp::from_nanos)
            .map_err(|_| {
                DecodeError(format!("time '{text}' is no instant; RFC 3339 or a number is expected"))
            }),
        _ => Err(wrong()),
    }
}

fn magnitude(number: f64) -> TimeUnit {
    match number {
        n if n < 1e11 => TimeUnit::Second,
        n if n < 1e14 => TimeUnit::Millisecond,
        n if n < 1e17 => TimeUnit::Microsecond,
        _ => TimeUnit::Nanosecond,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recycled_rows_keep_their_memory() {
        let text = String::from("x");
        let mut rows = Rows::default();
        (0..100).for_each(|_| rows.push((Cow::Borrowed(text.as_str()), FieldValue::Null)));
        let again: Rows<'static> = rows.recycle();
        assert!(again.items.is_empty() && again.items.capacity() >= 100);
    }

    #[test]
    fn times_are_read_by_magnitude() {
        let nanos = |value| time_of_number(&value, None).map(Timestamp::as_nanos).ok();
        assert_eq!(nanos(FieldValue::Float(1_708_700_000.0)), Some(1_708_700_000_000_000_000));
        assert_eq!(nanos(FieldValue::Float(1_708_700_000_123.0)), Some(1_708_700_000_123_000_000));
        assert_eq!(nanos(FieldValue::Float(1_708_700_000.5)), Some(1_708_700_000_500_000_000));
        assert_eq!(nanos(FieldValue::Int(1_708_700_000_123_456_789)), Some(1_708_700_000_123_456_789));
        assert_eq!(nanos(FieldValue::Text("2024-02-23T14:53:20Z".into())), Some(1_708_700_000_000_000_000));
        assert_eq!(nanos(FieldValue::Text("yesterday".into())), None);
        assert_eq!(nanos(FieldValue::Float(f64::NAN)), None);
    }
}
