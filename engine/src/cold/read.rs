//! Reads one cold file as a sorted source.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Decimal128Type, Float64Type, Int16Type, Int64Type, TimestampMicrosecondType,
};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::async_reader::{
    AsyncFileReader, ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder,
};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use sonde_storage_format::{
    Cell, Cells, ColdFile, Column, ColumnId, PhysicalType, SeriesKey, Texts, Timestamp, Values,
};

use crate::cold::{ColdOptions, FIELD_ID, TIME_NS_ID, store_error};
use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::mask::{Mask, hide};
use crate::scan::ScanContext;
use crate::scan::merge::{Window, kinds};

/// Bytes from the end that are read at once for a file's metadata.
const FOOTER_BYTES: usize = 64 << 10;
/// Rows of a window.
const WINDOW_ROWS: usize = 32 * 1024;

/// A Parquet file, read window by window.
pub(crate) struct ColdSource {
    context: Arc<ScanContext>,
    path: String,
    options: ColdOptions,
    stream: ParquetRecordBatchStream<ObjectReader>,
    /// What is hidden of its rows.
    masks: Vec<Arc<Mask>>,
}

impl std::fmt::Debug for ColdSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ColdSource({})", self.path)
    }
}

/// Reads ranges of one object.
struct ObjectReader {
    store: Arc<dyn ObjectStore>,
    path: ObjectPath,
    /// Bytes of the object.
    bytes: u64,
}

fn external(error: object_store::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

impl AsyncFileReader for ObjectReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        Box::pin(async move { self.store.get_range(&self.path, range).await.map_err(external) })
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        Box::pin(async move { self.store.get_ranges(&self.path, &ranges).await.map_err(external) })
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        let bytes = self.bytes;
        Box::pin(async move {
            let reader = ParquetMetaDataReader::new().with_prefetch_hint(Some(FOOTER_BYTES));
            reader.load_and_finish(self, bytes).await.map(Arc::new)
        })
    }
}

fn field_id(field: &arrow::datatypes::Field) -> Option<u32> {
    field.metadata().get(FIELD_ID).and_then(|id| id.parse().ok())
}

impl ColdSource {
    pub(crate) fn open(inner: &Arc<Inner>, context: &Arc<ScanContext>, file: &ColdFile) -> Result<Self> {
        let Some(options) = inner.options.cold.clone() else {
            return Err(Error::Cold(format!("{} is in the cold tier, and none is configured", file.path)));
        };
        let reader = ObjectReader {
            store: Arc::clone(&options.store),
            path: ObjectPath::from(file.path.as_str()),
            bytes: file.bytes,
        };
        let builder = options.runtime.block_on(ParquetRecordBatchStreamBuilder::new(reader));
        let builder = builder.map_err(|error| Error::Cold(format!("{}: {error}", file.path)))?;
        let wanted = |id: u32| {
            let tag = context.table.tag_index(ColumnId(id)).is_some();
            id == 0 || id == TIME_NS_ID || tag || context.fields.contains(&ColumnId(id))
        };
        let fields = builder.schema().fields().iter().enumerate();
        let roots: Vec<usize> =
            fields.filter(|(_, field)| field_id(field).is_some_and(wanted)).map(|(index, _)| index).collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let groups = row_groups(&builder, context)?;
        let builder = builder.with_projection(mask).with_row_groups(groups).with_batch_size(WINDOW_ROWS);
        let stream = builder.build().map_err(store_error)?;
        let masks = context.masks_of(file.position, (file.day.start, file.day.end));
        Ok(Self { context: Arc::clone(context), path: file.path.clone(), options, stream, masks })
    }

    pub(crate) fn next_window(&mut self) -> Result<Option<Window>> {
        loop {
            let Some(batch) = self.options.runtime.block_on(self.stream.next()) else { return Ok(None) };
            let batch = batch.map_err(|error| Error::Cold(format!("{}: {error}", self.path)))?;
            let window = hide(self.to_window(&batch)?, &self.context.order, &self.masks);
            if window.rows() > 0 {
                return Ok(Some(window));
            }
        }
    }

    fn wrong(&self, what: &str) -> Error {
        Error::Cold(format!("{}: {what}; the file was not written by sonde, or was changed", self.path))
    }

    fn to_window(&self, batch: &RecordBatch) -> Result<Window> {
        let schema = batch.schema();
        let arrays: HashMap<u32, &ArrayRef> = schema
            .fields()
            .iter()
            .zip(batch.columns())
            .filter_map(|(field, array)| field_id(field).map(|id| (id, array)))
            .collect();
        let times = self.times(&arrays)?;
        let ranks = self.ranks(&arrays, batch.num_rows())?;
        let keep: Vec<usize> = ranks
            .iter()
            .zip(&times)
            .enumerate()
            .filter(|(_, (rank, time))| {
                self.context.wants(**rank) && self.context.time.contains(Timestamp::from_nanos(**time))
            })
            .map(|(row, _)| row)
            .collect();
        let mut columns = Vec::with_capacity(self.context.fields.len());
        for (id, kind) in self.context.fields.iter().zip(kinds(&self.context)) {
            let column = match arrays.get(&id.0) {
                Some(array) => self.column(array, kind)?,
                None => Column::absent(kind, batch.num_rows()),
            };
            columns.push(if keep.len() == batch.num_rows() { column } else { column.gather(&keep) });
        }
        Ok(Window::new(
            keep.iter().filter_map(|row| ranks.get(*row).copied()).collect(),
            keep.iter().filter_map(|row| times.get(*row).copied()).collect(),
            columns,
        ))
    }

    fn times(&self, arrays: &HashMap<u32, &ArrayRef>) -> Result<Vec<i64>> {
        let micros = arrays.get(&0).and_then(|array| array.as_primitive_opt::<TimestampMicrosecondType>());
        let rest = arrays.get(&TIME_NS_ID).and_then(|array| array.as_primitive_opt::<Int16Type>());
        let (Some(micros), Some(rest)) = (micros, rest) else {
            return Err(self.wrong("time columns are missing"));
        };
        // Wrapping: near the first instant the microsecond's start lies below i64, the instant itself does not.
        let nanos = |(us, ns): (&i64, &i16)| us.wrapping_mul(1000).wrapping_add(i64::from(*ns));
        Ok(micros.values().iter().zip(rest.values()).map(nanos).collect())
    }

    fn ranks(&self, arrays: &HashMap<u32, &ArrayRef>, rows: usize) -> Result<Vec<u32>> {
        let tags: Vec<Option<&arrow::array::StringArray>> = self
            .context
            .table
            .tags()
            .map(|tag| arrays.get(&tag.id.0).and_then(|array| array.as_string_opt::<i32>()))
            .collect();
        let series = self.context.table.series();
        let mut ranks = Vec::with_capacity(rows);
        let (mut key, mut last_key, mut last_rank) = (Vec::new(), Vec::new(), None);
        for row in 0..rows {
            let value = |tag: &Option<&'_ arrow::array::StringArray>| -> Option<String> {
                tag.filter(|tag| tag.is_valid(row)).map(|tag| tag.value(row).to_owned())
            };
            let values: Vec<Option<String>> = tags.iter().map(value).collect();
            SeriesKey::encode_into(values.iter().map(Option::as_deref), &mut key);
            let rank = match last_rank {
                Some(rank) if key == last_key => rank,
                _ => {
                    let Some(id) = series.lookup(&key) else {
                        return Err(self.wrong("a series is not registered"));
                    };
                    last_key.clone_from(&key);
                    self.context.order.rank(id)
                }
            };
            last_rank = Some(rank);
            ranks.push(rank);
        }
        Ok(ranks)
    }

    fn column(&self, array: &ArrayRef, kind: PhysicalType) -> Result<Column> {
        let rows = array.len();
        let cells = match array.null_count() {
            0 => Cells::Values(rows),
            _ => Cells::Mixed(
                (0..rows).map(|i| if array.is_valid(i) { Cell::Value } else { Cell::Absent }).collect(),
            ),
        };
        let values = match (kind, array.data_type()) {
            (PhysicalType::Float64, DataType::Float64) => Values::Float(primitives::<Float64Type>(array)),
            // Written before the column was widened.
            (PhysicalType::Float64, DataType::Int64) => {
                Values::Float(primitives::<Int64Type>(array).into_iter().map(|value| value as f64).collect())
            }
            (PhysicalType::Float64, DataType::Decimal128(20, 0)) => {
                let decimals = primitives::<Decimal128Type>(array);
                Values::Float(decimals.into_iter().map(|value| value as f64).collect())
            }
            (PhysicalType::Int64, DataType::Int64) => Values::Int(primitives::<Int64Type>(array)),
            (PhysicalType::UInt64, DataType::Decimal128(20, 0)) => {
                let decimals = primitives::<Decimal128Type>(array);
                Values::UInt(
                    decimals.into_iter().map(|value| u64::try_from(value).unwrap_or_default()).collect(),
                )
            }
            (PhysicalType::Boolean, DataType::Boolean) => {
                Values::Bool(array.as_boolean().iter().map(Option::unwrap_or_default).collect())
            }
            (PhysicalType::Text, DataType::Utf8) => {
                let strings = array.as_string::<i32>().iter();
                Values::Text(strings.map(|text| text.unwrap_or_default().as_bytes()).collect::<Texts>())
            }
            (kind, found) => return Err(self.wrong(&format!("a {} column is {found}", kind.sql_name()))),
        };
        Ok(Column { cells, values })
    }
}

/// The values of an array, the type's default where it is null.
fn primitives<T: ArrowPrimitiveType>(array: &ArrayRef) -> Vec<T::Native>
where
    T::Native: Default,
{
    let array = array.as_primitive::<T>();
    match array.null_count() {
        0 => array.values().to_vec(),
        _ => array.iter().map(Option::unwrap_or_default).collect(),
    }
}

/// The row groups whose times overlap the scan's.
fn row_groups(
    builder: &ParquetRecordBatchStreamBuilder<ObjectReader>,
    context: &ScanContext,
) -> Result<Vec<usize>> {
    let metadata = builder.metadata();
    let count = metadata.num_row_groups();
    let name = builder.schema().fields().first().map_or("time", |field| field.name());
    let converter = StatisticsConverter::try_new(name, builder.schema(), builder.parquet_schema());
    let converter = converter.map_err(store_error)?;
    let lows = converter.row_group_mins(metadata.row_groups().iter()).map_err(store_error)?;
    let highs = converter.row_group_maxes(metadata.row_groups().iter()).map_err(store_error)?;
    let bounds = lows
        .as_primitive_opt::<TimestampMicrosecondType>()
        .zip(highs.as_primitive_opt::<TimestampMicrosecondType>());
    let Some((lows, highs)) = bounds else { return Ok((0..count).collect()) };
    let overlaps = |group: &usize| {
        if lows.is_null(*group) || highs.is_null(*group) {
            return true;
        }
        let first = lows.value(*group).saturating_mul(1000);
        let last = highs.value(*group).saturating_mul(1000).saturating_add(999);
        first < context.time.end.as_nanos() && last >= context.time.start.as_nanos()
    };
    Ok((0..count).filter(overlaps).collect())
}
