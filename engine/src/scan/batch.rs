//! Windows as Arrow record batches.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, StringBuilder, TimestampNanosecondArray,
    UInt64Array,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use sonde_storage_format::{
    Cell, Cells, Column, ColumnDef, ColumnId, ColumnRole, PhysicalType, Tags, Values,
};

use crate::catalog::Table;
use crate::error::{Error, Result};
use crate::scan::ScanContext;
use crate::scan::merge::Window;

/// The Arrow type of a column.
#[must_use]
pub fn data_type(column: &ColumnDef) -> DataType {
    match (column.role, column.kind) {
        (ColumnRole::Time, _) => DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
        (_, PhysicalType::Float64) => DataType::Float64,
        (_, PhysicalType::Int64) => DataType::Int64,
        (_, PhysicalType::UInt64) => DataType::UInt64,
        (_, PhysicalType::Boolean) => DataType::Boolean,
        (_, PhysicalType::Text) => DataType::Utf8,
    }
}

/// The Arrow schema of some columns of a table.
#[must_use]
pub fn schema(table: &Table, columns: &[ColumnId]) -> SchemaRef {
    let field =
        |column: &ColumnDef| Field::new(&column.name, data_type(column), column.role != ColumnRole::Time);
    let fields: Vec<Field> = columns.iter().filter_map(|id| table.column_by_id(*id)).map(field).collect();
    Arc::new(Schema::new(fields))
}

/// The window's rows, with these columns in this order.
pub(crate) fn to_batch(
    context: &ScanContext,
    schema: &SchemaRef,
    columns: &[ColumnId],
    window: Window,
) -> Result<RecordBatch> {
    let rows = window.rows();
    let is_tag = |id: &ColumnId| context.table.column_by_id(*id).is_some_and(|c| c.role == ColumnRole::Tag);
    let tags: Vec<ColumnId> = columns.iter().copied().filter(is_tag).collect();
    let mut tags = tag_arrays(context, &tags, &window.ranks).into_iter();
    let mut fields = window.columns.into_iter();
    let mut arrays: Vec<ArrayRef> = Vec::with_capacity(columns.len());
    for id in columns {
        let Some(column) = context.table.column_by_id(*id) else { continue };
        arrays.push(match column.role {
            // NOTE: time may be asked for twice, so its values are copied.
            ColumnRole::Time => {
                Arc::new(TimestampNanosecondArray::from(window.times.clone()).with_timezone("UTC"))
            }
            ColumnRole::Tag => tags.next().unwrap_or_else(|| unreachable!("a tag without its array")),
            ColumnRole::Field => {
                field_array(fields.next().unwrap_or_else(|| Column::absent(column.kind, rows)))?
            }
        });
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options).map_err(arrow_error)
}

fn arrow_error(error: arrow::error::ArrowError) -> Error {
    Error::Row(format!("cannot make an Arrow array: {error}"))
}

/// Keys that are fetched before the first of them is decoded.
const KEYS_AHEAD: usize = 256;

/// The values of some tags, which may be named in any order and more than once. A key is looked at once for all of them:
/// keys lie all over the memory.
pub(crate) fn tag_arrays(context: &ScanContext, ids: &[ColumnId], ranks: &[u32]) -> Vec<ArrayRef> {
    let new = |id: &ColumnId| {
        let place = context.table.tag_index(*id).unwrap_or_default();
        (place, StringBuilder::with_capacity(ranks.len(), 8 * ranks.len()))
    };
    let mut builders: Vec<(usize, StringBuilder)> = ids.iter().map(new).collect();
    let mut slots: Vec<(usize, &mut StringBuilder)> =
        builders.iter_mut().map(|(place, builder)| (*place, builder)).collect();
    slots.sort_by_key(|(place, _)| *place);
    let runs: Vec<&[u32]> = ranks.chunk_by(|a, b| a == b).collect();
    for runs in runs.chunks(KEYS_AHEAD) {
        let key = |run: &&[u32]| {
            let id = context.order.id(run.first().copied().unwrap_or_default());
            context.order.keys().get(id.0 as usize).unwrap_or_default()
        };
        let keys: Vec<&[u8]> = runs.iter().map(key).collect();
        // Touched all at once, keys come from memory side by side and not one after the other.
        std::hint::black_box(keys.iter().fold(0, |all, key| all ^ key.first().copied().unwrap_or_default()));
        for (run, key) in runs.iter().zip(keys) {
            append_tags(&mut slots, Tags::of(key), run.len());
        }
    }
    builders.into_iter().map(|(_, mut builder)| Arc::new(builder.finish()) as ArrayRef).collect()
}

/// Appends the tags of a key so many times; the slots stand by place.
fn append_tags(slots: &mut [(usize, &mut StringBuilder)], mut tags: Tags<'_>, rows: usize) {
    let (mut value, mut behind) = (None, 0);
    for (place, builder) in slots {
        if *place >= behind {
            value = tags.nth(*place - behind).and_then(|tag| tag.ok().flatten());
            behind = *place + 1;
        }
        match &value {
            Some(value) => (0..rows).for_each(|_| builder.append_value(value)),
            None => builder.append_nulls(rows),
        }
    }
}

/// A field's cells; absent and NULL are null alike.
pub fn field_array(column: Column) -> Result<ArrayRef> {
    let nulls = match &column.cells {
        Cells::Values(_) => None,
        Cells::Mixed(cells) => Some(cells.iter().map(|cell| *cell == Cell::Value).collect::<NullBuffer>()),
    };
    Ok(match column.values {
        Values::Float(values) => Arc::new(Float64Array::new(values.into(), nulls)),
        Values::Int(values) => Arc::new(Int64Array::new(values.into(), nulls)),
        Values::UInt(values) => Arc::new(UInt64Array::new(values.into(), nulls)),
        Values::Bool(values) => Arc::new(BooleanArray::new(values.into(), nulls)),
        Values::Text(texts) => {
            let (offsets, bytes) = texts.into_parts();
            let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
            Arc::new(StringArray::try_new(offsets, Buffer::from_vec(bytes), nulls).map_err(arrow_error)?)
        }
    })
}
