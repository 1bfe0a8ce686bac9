//! Equality bit by bit: NaN equals the same NaN, and -0.0 is not 0.0.

use sonde_storage_format::{Cell, Cells, Column, PhysicalType, Values};

/// The bits of floats.
pub(crate) fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Values as something that `==` compares bit by bit.
pub(crate) fn exact_values(values: &Values) -> (PhysicalType, Values) {
    let exact = match values {
        Values::Float(values) => Values::UInt(bits(values)),
        other => other.clone(),
    };
    (values.kind(), exact)
}

/// A column as something that `==` compares bit by bit.
pub(crate) fn exact(column: &Column) -> (PhysicalType, Cells, Values) {
    let (kind, values) = exact_values(&column.values);
    (kind, column.cells.clone(), values)
}

/// Columns with their ids, as something that `==` compares bit by bit.
pub(crate) fn exact_all<I: Copy>(columns: &[(I, Column)]) -> Vec<(I, (PhysicalType, Cells, Values))> {
    columns.iter().map(|(id, column)| (*id, exact(column))).collect()
}

/// The rows of a column as something that `==` compares bit by bit: cells that are all values need no map.
pub(crate) fn rows(column: &Column) -> (Vec<Cell>, (PhysicalType, Values)) {
    ((0..column.len()).map(|row| column.cells.get(row)).collect(), exact_values(&column.values))
}
