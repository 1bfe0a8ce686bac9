//! Builds the small record batches of system tables row by row.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, StringArray, TimestampNanosecondArray, UInt64Array};
use arrow::datatypes::{Field, Schema};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use sonde_engine::Timestamp;

use crate::error::{Error, Result};

enum Cell {
    Text(Option<String>),
    UInt(Option<u64>),
    Float(Option<f64>),
    Time(Option<i64>),
}

/// Cells in the order of the columns, row after row.
#[derive(Default)]
pub struct BatchBuilder {
    row: Vec<(&'static str, Cell)>,
    rows: Vec<Vec<(&'static str, Cell)>>,
}

impl std::fmt::Debug for BatchBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BatchBuilder({} rows)", self.rows.len())
    }
}

impl BatchBuilder {
    /// No rows yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A string of the current row.
    pub fn text(&mut self, column: &'static str, value: Option<&str>) {
        self.row.push((column, Cell::Text(value.map(str::to_owned))));
    }

    /// A count of the current row.
    pub fn uint(&mut self, column: &'static str, value: u64) {
        self.row.push((column, Cell::UInt(Some(value))));
    }

    /// A number of the current row.
    pub fn float(&mut self, column: &'static str, value: f64) {
        self.row.push((column, Cell::Float(Some(value))));
    }

    /// A time of the current row.
    pub fn time(&mut self, column: &'static str, value: Timestamp) {
        self.row.push((column, Cell::Time(Some(value.as_nanos()))));
    }

    /// Ends the current row.
    pub fn end_row(&mut self) {
        self.rows.push(std::mem::take(&mut self.row));
    }

    /// The batch; `columns` are names and types: `s` string, `u` count, `f` number, `t` time.
    pub fn finish(self, columns: &[(&'static str, &str)]) -> Result<RecordBatch> {
        let count = self.rows.len();
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(columns.len());
        for (name, kind) in columns {
            let cells = || {
                self.rows
                    .iter()
                    .map(move |row| row.iter().find(|(column, _)| column == name).map(|(_, cell)| cell))
            };
            arrays.push(match *kind {
                "s" => Arc::new(
                    cells()
                        .map(|cell| if let Some(Cell::Text(text)) = cell { text.as_deref() } else { None })
                        .collect::<StringArray>(),
                ),
                "u" => Arc::new(
                    cells()
                        .map(|cell| if let Some(Cell::UInt(n)) = cell { *n } else { None })
                        .collect::<UInt64Array>(),
                ),
                "f" => Arc::new(
                    cells()
                        .map(|cell| if let Some(Cell::Float(n)) = cell { *n } else { None })
                        .collect::<Float64Array>(),
                ),
                _ => {
                    let times = cells().map(|cell| if let Some(Cell::Time(n)) = cell { *n } else { None });
                    Arc::new(times.collect::<TimestampNanosecondArray>().with_timezone("UTC"))
                }
            });
        }
        let fields: Vec<Field> = columns
            .iter()
            .zip(&arrays)
            .map(|((name, _), array)| Field::new(*name, array.data_type().clone(), true))
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)
            .map_err(|error| Error::Internal(error.to_string()))
    }
}
