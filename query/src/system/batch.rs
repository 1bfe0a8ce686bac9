//! Builds the small record batches of system tables row by row.
//!
//! # Invariants
//! - The columns of a table stand in one place; cells come in their order, and one of another kind, or too many or too
//!   few of them in a row, is a bug that the table's first reader finds.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Builder, StringBuilder, TimestampNanosecondBuilder, UInt64Builder};
use arrow::datatypes::{Field, Schema};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use sonde_engine::Timestamp;

use crate::error::{Error, Result};

/// What a column of a system table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Strings.
    Text,
    /// Counts.
    UInt,
    /// Numbers.
    Float,
    /// Times.
    Time,
}

/// The cells of one column.
#[derive(Debug)]
enum Cells {
    Text(StringBuilder),
    UInt(UInt64Builder),
    Float(Float64Builder),
    Time(TimestampNanosecondBuilder),
}

impl Cells {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Text => Self::Text(StringBuilder::new()),
            Kind::UInt => Self::UInt(UInt64Builder::new()),
            Kind::Float => Self::Float(Float64Builder::new()),
            Kind::Time => Self::Time(TimestampNanosecondBuilder::new()),
        }
    }

    fn finish(self) -> ArrayRef {
        match self {
            Self::Text(mut cells) => Arc::new(cells.finish()),
            Self::UInt(mut cells) => Arc::new(cells.finish()),
            Self::Float(mut cells) => Arc::new(cells.finish()),
            Self::Time(mut cells) => Arc::new(cells.finish().with_timezone("UTC")),
        }
    }
}

/// Cells in the order of the columns, row after row.
#[derive(Debug)]
pub struct BatchBuilder {
    columns: &'static [(&'static str, Kind)],
    cells: Vec<Cells>,
    /// The column of the next cell.
    next: usize,
    rows: usize,
}

impl BatchBuilder {
    /// A table of these columns, without rows.
    #[must_use]
    pub fn new(columns: &'static [(&'static str, Kind)]) -> Self {
        let cells = columns.iter().map(|(_, kind)| Cells::new(*kind)).collect();
        Self { columns, cells, next: 0, rows: 0 }
    }

    /// A string.
    pub fn text(&mut self, value: Option<&str>) {
        match self.cell() {
            (_, Cells::Text(cells)) => cells.append_option(value),
            (name, _) => panic!("BUG: column {name} holds no strings"),
        }
    }

    /// A count.
    pub fn uint(&mut self, value: u64) {
        self.maybe_uint(Some(value));
    }

    /// The same, or NULL.
    pub fn maybe_uint(&mut self, value: Option<u64>) {
        match self.cell() {
            (_, Cells::UInt(cells)) => cells.append_option(value),
            (name, _) => panic!("BUG: column {name} holds no counts"),
        }
    }

    /// A number.
    pub fn float(&mut self, value: f64) {
        self.maybe_float(Some(value));
    }

    /// The same, or NULL.
    pub fn maybe_float(&mut self, value: Option<f64>) {
        match self.cell() {
            (_, Cells::Float(cells)) => cells.append_option(value),
            (name, _) => panic!("BUG: column {name} holds no numbers"),
        }
    }

    /// A time.
    pub fn time(&mut self, value: Timestamp) {
        self.maybe_time(Some(value));
    }

    /// The same, or NULL.
    pub fn maybe_time(&mut self, value: Option<Timestamp>) {
        match self.cell() {
            (_, Cells::Time(cells)) => cells.append_option(value.map(Timestamp::as_nanos)),
            (name, _) => panic!("BUG: column {name} holds no times"),
        }
    }

    fn cell(&mut self) -> (&'static str, &mut Cells) {
        let place = self.next;
        self.next += 1;
        match (self.columns.get(place), self.cells.get_mut(place)) {
            (Some((name, _)), Some(cells)) => (*name, cells),
            _ => panic!("BUG: a cell behind the last of {} columns", self.columns.len()),
        }
    }

    /// Ends a row.
    pub fn end_row(&mut self) {
        assert_eq!(self.next, self.columns.len(), "BUG: a row of {:?}", self.columns);
        self.next = 0;
        self.rows += 1;
    }

    /// The rows.
    pub fn finish(self) -> Result<RecordBatch> {
        assert_eq!(self.next, 0, "BUG: a row that did not end, of {:?}", self.columns);
        let arrays: Vec<ArrayRef> = self.cells.into_iter().map(Cells::finish).collect();
        let fields: Vec<Field> = self
            .columns
            .iter()
            .zip(&arrays)
            .map(|((name, _), array)| Field::new(*name, array.data_type().clone(), true))
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)
            .map_err(|error| Error::Internal(error.to_string()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const COLUMNS: [(&str, Kind); 2] = [("name", Kind::Text), ("count", Kind::UInt)];

    #[test]
    fn cells_stand_in_the_order_of_the_columns() {
        let mut rows = BatchBuilder::new(&COLUMNS);
        rows.text(Some("a"));
        rows.uint(1);
        rows.end_row();
        rows.text(None);
        rows.uint(2);
        rows.end_row();
        let batch = rows.finish().unwrap();
        assert_eq!((batch.num_rows(), batch.num_columns()), (2, 2));
        assert_eq!(batch.column(0).null_count(), 1);
    }

    #[test]
    #[should_panic(expected = "BUG")]
    fn a_row_with_too_few_cells_is_a_bug() {
        let mut rows = BatchBuilder::new(&COLUMNS);
        rows.text(Some("a"));
        rows.end_row();
    }

    #[test]
    #[should_panic(expected = "BUG")]
    fn a_cell_of_another_kind_is_a_bug() {
        BatchBuilder::new(&COLUMNS).uint(1);
    }
}
