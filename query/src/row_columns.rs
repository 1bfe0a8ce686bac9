//! Arrow columns as the columns of a batch, without a look at single rows.
//!
//! # Invariants
//! - What is stored here is what `rows::write_rows` stores row by row; a batch with anything that it might refuse, or
//!   convert value by value, is left to that.

use std::ops::RangeInclusive;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampNanosecondType, UInt64Type};
use arrow::record_batch::RecordBatch;
use sonde_engine::{
    Cell, Cells, Column, ColumnId, ColumnRole, RowColumns, Table, TagColumn, Timestamp, Values,
    WriteBatchBuilder,
};

use crate::error::Result;
use crate::rows::{Nulls, time_type, too_many, wanted};

/// The columns of a batch by what they are in the table, in the types in which they are stored.
#[derive(Default)]
struct Typed {
    time: Option<ArrayRef>,
    tags: Vec<(ColumnId, ArrayRef)>,
    fields: Vec<(ColumnId, Values, Option<NullBuffer>)>,
}

/// Adds all rows of a batch to the current message; says whether it did. Where it did not nothing was added.
pub(crate) fn write(
    builder: &mut WriteBatchBuilder,
    table: &Arc<Table>,
    batch: &RecordBatch,
    arrival: &dyn Fn() -> Timestamp,
    range: &RangeInclusive<Timestamp>,
    nulls: Nulls,
) -> Result<bool> {
    let Some(typed) = typed(table, batch) else { return Ok(false) };
    let Some(times) = times(typed.time.as_ref(), batch.num_rows(), arrival, range, nulls) else {
        return Ok(false);
    };
    let tags: Option<Vec<TagColumn<'_>>> =
        typed.tags.iter().map(|(id, array)| TagColumn::new(*id, array.as_ref())).collect();
    let Some(tags) = tags else { return Ok(false) };
    // Whatever is wrong with a row is said of that row.
    let Ok(series) = builder.series_of_rows(table, &tags, times.len()) else { return Ok(false) };
    let columns = typed
        .fields
        .into_iter()
        .filter_map(|(id, values, empty)| column(values, empty, nulls).map(|column| (id, column)));
    match builder.rows(table, RowColumns { series, times, columns: columns.collect() }) {
        Ok(()) => Ok(true),
        Err(sonde_engine::Error::BatchFull) => Err(too_many()),
        Err(_) => Ok(false),
    }
}

/// `None` where a column is none of the table's, is named twice, or does not become what the table has as a whole.
fn typed(table: &Table, batch: &RecordBatch) -> Option<Typed> {
    let mut typed = Typed::default();
    let schema = batch.schema_ref();
    for (place, (field, given)) in schema.fields().iter().zip(batch.columns()).enumerate() {
        if schema.fields().iter().take(place).any(|other| other.name() == field.name()) {
            return None;
        }
        let column = table.exact(field.name())?;
        match column.role {
            ColumnRole::Time => typed.time = Some(whole(given, &time_type(given.data_type()).ok()?)?),
            ColumnRole::Tag if is_dictionary(given) => typed.tags.push((column.id, Arc::clone(given))),
            ColumnRole::Tag => {
                let wanted = wanted(column, given.data_type()).ok()?;
                typed.tags.push((column.id, whole(given, &wanted)?));
            }
            ColumnRole::Field => {
                let array = whole(given, &wanted(column, given.data_type()).ok()?)?;
                let values = values(&array)?;
                if values.kind() != column.kind {
                    return None;
                }
                typed.fields.push((column.id, values, array.logical_nulls()));
            }
        }
    }
    Some(typed)
}

fn is_dictionary(array: &ArrayRef) -> bool {
    matches!(array.data_type(), DataType::Dictionary(_, values) if **values == DataType::Utf8)
}

/// An array in another type; `None` where a value has none in it.
fn whole(given: &ArrayRef, wanted: &DataType) -> Option<ArrayRef> {
    if given.data_type() == wanted {
        return Some(Arc::clone(given));
    }
    let values = cast(given, wanted).ok()?;
    let nulls = given.logical_nulls().map_or(0, |nulls| nulls.null_count());
    (values.logical_nulls().map_or(0, |nulls| nulls.null_count()) == nulls).then_some(values)
}

/// The time of every row; `None` where one is missing or not accepted.
fn times(
    given: Option<&ArrayRef>,
    rows: usize,
    arrival: &dyn Fn() -> Timestamp,
    range: &RangeInclusive<Timestamp>,
    nulls: Nulls,
) -> Option<Vec<i64>> {
    let (first, last) = (range.start().as_nanos(), range.end().as_nanos());
    let Some(array) = given else { return Some((0..rows).map(|_| arrival().as_nanos()).collect()) };
    let array = array.as_primitive_opt::<TimestampNanosecondType>()?;
    let is_missing = |row: &usize| array.is_null(*row);
    if nulls == Nulls::Explicit && array.null_count() > 0 {
        return None;
    }
    let mut times = array.values().to_vec();
    if array.null_count() > 0 {
        // None of the other times may be refused: an arrival is given once.
        let given = times.iter().enumerate().filter(|(row, _)| !is_missing(row));
        if !given.into_iter().all(|(_, time)| (first..=last).contains(time)) {
            return None;
        }
        times.iter_mut().enumerate().filter(|(row, _)| is_missing(row)).for_each(|(_, time)| {
            *time = arrival().as_nanos();
        });
    }
    times.iter().all(|time| (first..=last).contains(time)).then_some(times)
}

/// The values of an array, in the slots of NULL the type's default.
fn values(array: &ArrayRef) -> Option<Values> {
    let mut values = match array.data_type() {
        DataType::Float64 => Values::Float(array.as_primitive::<Float64Type>().values().to_vec()),
        DataType::Int64 => Values::Int(array.as_primitive::<Int64Type>().values().to_vec()),
        DataType::UInt64 => Values::UInt(array.as_primitive::<UInt64Type>().values().to_vec()),
        DataType::Boolean => Values::Bool(array.as_boolean().values().iter().collect()),
        DataType::Utf8 => {
            let texts = array.as_string::<i32>().iter();
            return Some(Values::Text(texts.map(|text| text.unwrap_or_default().as_bytes()).collect()));
        }
        _ => return None,
    };
    let Some(nulls) = array.logical_nulls().filter(|nulls| nulls.null_count() > 0) else {
        return Some(values);
    };
    match &mut values {
        Values::Float(values) => clear(values, &nulls),
        Values::Int(values) => clear(values, &nulls),
        Values::UInt(values) => clear(values, &nulls),
        Values::Bool(values) => clear(values, &nulls),
        Values::Text(_) => {}
    }
    Some(values)
}

fn clear<T: Default>(values: &mut [T], nulls: &NullBuffer) {
    values
        .iter_mut()
        .zip(nulls.iter())
        .filter(|(_, valid)| !valid)
        .for_each(|(value, _)| *value = T::default());
}

/// The column of a field; `None` where no row says anything.
fn column(values: Values, empty: Option<NullBuffer>, nulls: Nulls) -> Option<Column> {
    let Some(empty) = empty.filter(|empty| empty.null_count() > 0) else { return Some(Column::of(values)) };
    let nothing = match nulls {
        Nulls::Absent if empty.null_count() == empty.len() => return None,
        Nulls::Absent => Cell::Absent,
        Nulls::Explicit => Cell::Null,
    };
    let cells = empty.iter().map(|valid| if valid { Cell::Value } else { nothing });
    Some(Column { cells: Cells::Mixed(cells.collect()), values })
}
