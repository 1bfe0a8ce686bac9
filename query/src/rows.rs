//! Arrow record batches as rows of a table: `INSERT`, gRPC `Write` and rules store by the same code.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Float64Type, Int64Type, SchemaRef, TimeUnit, TimestampNanosecondType, UInt64Type,
};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::common::Result as DataFusionResult;
use datafusion::datasource::sink::DataSink;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType};
use futures::StreamExt;
use sonde_engine::{
    CatalogRequest, ColumnId, ColumnRole, Engine, FieldValue, NewColumn, NewTable, PhysicalType, Row,
    TIME_NAME, Table, TableKind, TableOptions, Timestamp, WriteBatchBuilder,
};

use crate::error::{Error, Result};

/// A row that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowError {
    /// The row, counted from 0 in its batch.
    pub row: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// Makes sure that a table has the columns of `schema`, creating what is missing; string columns named in `tags`
/// become tags. A table whose schema is fixed gets no new columns.
pub fn ensure_table(
    engine: &Engine,
    database: &str,
    name: &str,
    schema: &SchemaRef,
    tags: &[String],
) -> Result<Arc<Table>> {
    let mut columns = Vec::new();
    for field in schema.fields() {
        if field.name().eq_ignore_ascii_case(TIME_NAME) {
            continue;
        }
        let kind = physical(field.data_type()).ok_or_else(|| {
            Error::Invalid(format!(
                "column {} has type {}, which cannot be stored",
                field.name(),
                field.data_type()
            ))
        })?;
        let is_tag = tags.iter().any(|tag| tag == field.name());
        if is_tag && kind != PhysicalType::Text {
            return Err(Error::Invalid(format!("tag {} must be a string column", field.name())));
        }
        let role = if is_tag { ColumnRole::Tag } else { ColumnRole::Field };
        columns.push(NewColumn { name: field.name().clone(), role, kind });
    }
    let catalog = engine.catalog();
    let Some(table) = catalog.table(database, name) else {
        let new = NewTable {
            database: database.to_owned(),
            name: name.to_owned(),
            kind: TableKind::Points,
            open: true,
            options: TableOptions::default(),
            columns,
        };
        match engine.change_catalog(CatalogRequest::CreateTable(new)) {
            // Someone else was faster: the columns are looked at once more.
            Err(sonde_engine::Error::Conflict(_)) => {
                return ensure_table(engine, database, name, schema, tags);
            }
            other => other?,
        };
        return Ok(Arc::clone(engine.catalog().require_table(database, name)?));
    };
    let missing: Vec<NewColumn> =
        columns.into_iter().filter(|column| table.column(&column.name).is_none()).collect();
    if missing.is_empty() {
        return Ok(Arc::clone(table));
    }
    if !table.def().open {
        let names: Vec<&str> = missing.iter().map(|column| column.name.as_str()).collect();
        return Err(Error::Invalid(format!(
            "table {} has no column {}",
            table.full_name(),
            names.join(", ")
        )));
    }
    engine.change_catalog(CatalogRequest::AddColumns(table.id(), missing))?;
    Ok(Arc::clone(engine.catalog().require_table(database, name)?))
}

fn physical(kind: &DataType) -> Option<PhysicalType> {
    Some(match kind {
        DataType::Float16 | DataType::Float32 | DataType::Float64 | DataType::Decimal128(..) => {
            PhysicalType::Float64
        }
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => PhysicalType::Int64,
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => PhysicalType::UInt64,
        DataType::Boolean => PhysicalType::Boolean,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => PhysicalType::Text,
        DataType::Dictionary(_, value) => return physical(value),
        DataType::Timestamp(..) | DataType::Date32 => PhysicalType::Text,
        DataType::Null => PhysicalType::Float64,
        _ => return None,
    })
}

/// Adds the rows of a batch to the current message; rows that do not fit are passed over and reported.
/// `arrival` is the time of rows without one; `range` the times that are accepted.
pub fn write_rows(
    builder: &mut WriteBatchBuilder,
    table: &Arc<Table>,
    batch: &RecordBatch,
    arrival: &dyn Fn() -> Timestamp,
    range: &std::ops::RangeInclusive<Timestamp>,
    nulls: Nulls,
) -> Result<Vec<RowError>> {
    let _ = nulls;
    let arrival = arrival();
    let schema = batch.schema();
    let mut times = None;
    let mut columns: Vec<(ColumnId, ColumnRole, ArrayRef)> = Vec::new();
    for (field, array) in schema.fields().iter().zip(batch.columns()) {
        if field.name().eq_ignore_ascii_case(TIME_NAME) {
            times = Some(cast_times(array)?);
            continue;
        }
        let Some(column) = table.column(field.name()) else {
            return Err(Error::Invalid(format!(
                "table {} has no column {}",
                table.full_name(),
                field.name()
            )));
        };
        columns.push((column.id, column.role, normal(array, field.name())?));
    }
    let mut errors = Vec::new();
    let (mut tags, mut fields) = (Vec::new(), Vec::new());
    for row in 0..batch.num_rows() {
        tags.clear();
        fields.clear();
        for (id, role, array) in &columns {
            match role {
                ColumnRole::Tag if array.is_valid(row) => {
                    let Some(strings) = array.as_string_opt::<i32>() else { continue };
                    tags.push((*id, Cow::Borrowed(strings.value(row))));
                }
                ColumnRole::Field => fields.push((*id, value(array, row))),
                _ => {}
            }
        }
        let time = times.as_ref().filter(|times| times.is_valid(row)).map_or(arrival, |times| {
            Timestamp::from_nanos(times.as_primitive::<TimestampNanosecondType>().value(row))
        });
        let stored = if range.contains(&time) {
            builder
                .row(table, &Row { time, tags: &tags, fields: &fields }, None)
                .map_err(|error| error.to_string())
        } else {
            Err(format!("time {} ns is outside the accepted range", time.as_nanos()))
        };
        if let Err(reason) = stored {
            errors.push(RowError { row, reason });
        }
    }
    Ok(errors)
}

fn cast_times(array: &ArrayRef) -> Result<ArrayRef> {
    let wanted = DataType::Timestamp(TimeUnit::Nanosecond, None);
    match array.data_type() {
        DataType::Timestamp(..)
        | DataType::Int64
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Null => {
            cast(array, &wanted).map_err(|error| Error::Invalid(format!("column time: {error}")))
        }
        DataType::Date32 => {
            cast(array, &wanted).map_err(|error| Error::Invalid(format!("column time: {error}")))
        }
        other => Err(Error::Invalid(format!(
            "column time is {other}, expected a timestamp or integer nanoseconds"
        ))),
    }
}

/// The array in one of the types that `value` reads.
fn normal(array: &ArrayRef, name: &str) -> Result<ArrayRef> {
    let wanted = match physical(array.data_type()) {
        Some(PhysicalType::Float64) => DataType::Float64,
        Some(PhysicalType::Int64) => DataType::Int64,
        Some(PhysicalType::UInt64) => DataType::UInt64,
        Some(PhysicalType::Boolean) => DataType::Boolean,
        Some(PhysicalType::Text) => DataType::Utf8,
        None => {
            return Err(Error::Invalid(format!(
                "column {name} has type {}, which cannot be stored",
                array.data_type()
            )));
        }
    };
    if *array.data_type() == wanted {
        return Ok(Arc::clone(array));
    }
    cast(array, &wanted).map_err(|error| Error::Invalid(format!("column {name}: {error}")))
}

fn value(array: &ArrayRef, row: usize) -> FieldValue<'_> {
    if array.is_null(row) {
        return FieldValue::Null;
    }
    match array.data_type() {
        DataType::Float64 => FieldValue::Float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Int64 => FieldValue::Int(array.as_primitive::<Int64Type>().value(row)),
        DataType::UInt64 => FieldValue::UInt(array.as_primitive::<UInt64Type>().value(row)),
        DataType::Boolean => FieldValue::Bool(array.as_boolean().value(row)),
        _ => FieldValue::Text(Cow::Borrowed(array.as_string::<i32>().value(row))),
    }
}

/// Takes the rows of an `INSERT`.
#[derive(Debug)]
pub(crate) struct RowSink {
    engine: Engine,
    table: Arc<Table>,
    schema: SchemaRef,
}

impl RowSink {
    pub(crate) fn new(engine: Engine, table: Arc<Table>, schema: SchemaRef) -> Self {
        Self { engine, table, schema }
    }
}

impl DisplayAs for RowSink {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RowSink: table={}", self.table.full_name())
    }
}

#[async_trait]
impl DataSink for RowSink {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    async fn write_all(
        &self,
        mut data: SendableRecordBatchStream,
        _context: &Arc<TaskContext>,
    ) -> DataFusionResult<u64> {
        let external = |error: sonde_engine::Error| DataFusionError::External(Box::new(error));
        let mut builder = self.engine.batch();
        builder.begin_message();
        let everything = Timestamp::MIN..=Timestamp::from_nanos(i64::MAX - 1);
        let mut rows = 0;
        while let Some(batch) = data.next().await {
            let batch = batch?;
            let arrival = self.engine.arrival();
            let errors = write_rows(&mut builder, &self.table, &batch, &|| arrival, &everything, Nulls::Explicit);
            let errors = errors.map_err(Error::into_datafusion)?;
            if let Some(error) = errors.first() {
                let text =
                    format!("row {} of INSERT: {}; nothing was stored", rows + error.row, error.reason);
                return Err(Error::Invalid(text).into_datafusion());
            }
            rows += batch.num_rows();
        }
        if let Some(batch) = builder.finish() {
            let engine = self.engine.clone();
            let receipt = tokio::task::spawn_blocking(move || engine.write(batch)).await;
            receipt.map_err(|error| DataFusionError::External(Box::new(error)))?.await.map_err(external)?;
        }
        Ok(rows as u64)
    }
}

#[derive(Clone,Copy,Debug)]
pub enum Nulls { Absent, Explicit }
pub fn is_reserved(d: &str) -> bool { d == "system" }
