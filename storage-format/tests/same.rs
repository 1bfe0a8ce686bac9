//! Equality bit by bit: NaN equals the same NaN, and -0.0 is not 0.0.

use sonde_storage_format::{Cells, Column, PhysicalType, Values};

/// The bits of floats.
pub(crate) fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A column as something that `==` compares bit by bit.
pub(crate) fn exact(column: &Column) -> (PhysicalType, Cells, Values) {
    let values = match &column.values {
        Values::Float(values) => Values::UInt(bits(values)),
        other => other.clone(),
    };
    (column.values.kind(), column.cells.clone(), values)
}

/// Columns with their ids, as something that `==` compares bit by bit.
pub(crate) fn exact_all<I: Copy>(columns: &[(I, Column)]) -> Vec<(I, (PhysicalType, Cells, Values))> {
    columns.iter().map(|(id, column)| (*id, exact(column))).collect()
}
