//! Arrow record batches as rows of a table: `INSERT`, gRPC `Write` and rules store by the same code.
//!
//! # Invariants
//! - A name is the table's or the column's that is spelled the same; case is folded in SQL's words only, before this.
//! - A value that a conversion cannot keep makes an error of its row: it never becomes a null, and a time never the
//!   arrival.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Float64Type, Int64Type, SchemaRef, TimeUnit, TimestampNanosecondType, UInt64Type,
};
use arrow::record_batch::RecordBatch;
use arrow::util::display::array_value_to_string;
use sonde_engine::limits::BATCH_BYTES;
use sonde_engine::{
    CatalogRequest, ColumnDef, ColumnId, ColumnRole, Engine, FieldValue, NewColumn, NewTable, PhysicalType,
    Row, TIME_NAME, Table, TableKind, TableOptions, Timestamp, WriteBatchBuilder,
};

use crate::error::{Error, Result};
use crate::row_columns;

/// A row that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowError {
    /// The row, counted from 0 in its batch.
    pub row: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// What a null in a field says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nulls {
    /// Nothing: the older value stays.
    Absent,
    /// The value is NULL from here on.
    Explicit,
}

/// Makes sure that a table has the columns of `schema`, creating what is missing; columns named in `tags` become tags,
/// as text. A table whose schema is fixed gets no new columns.
pub fn ensure_table(
    engine: &Engine,
    database: &str,
    name: &str,
    schema: &SchemaRef,
    tags: &[String],
) -> Result<Arc<Table>> {
    let mut columns = Vec::new();
    for field in schema.fields().iter().filter(|field| field.name() != TIME_NAME) {
        let kind = storable(field.name(), field.data_type())?;
        let (role, kind) = if tags.iter().any(|tag| tag == field.name()) {
            (ColumnRole::Tag, PhysicalType::Text)
        } else {
            (ColumnRole::Field, kind)
        };
        columns.push(NewColumn { name: field.name().clone(), role, kind });
    }
    let catalog = engine.catalog();
    let Some(table) = catalog.exact_table(database, name) else {
        let new = NewTable {
            database: database.to_owned(),
            name: name.to_owned(),
            kind: TableKind::Points,
            open: true,
            options: TableOptions::automatic(),
            columns,
        };
        match engine.change_catalog(CatalogRequest::CreateTable(new)) {
            // Someone else was faster: the columns are looked at once more.
            Err(sonde_engine::Error::Conflict(_)) => {
                return ensure_table(engine, database, name, schema, tags);
            }
            other => other?,
        };
        return found(engine, database, name);
    };
    let missing: Vec<NewColumn> =
        columns.into_iter().filter(|column| table.exact(&column.name).is_none()).collect();
    if missing.is_empty() {
        return Ok(Arc::clone(table));
    }
    if !table.def().open {
        let names: Vec<&str> = missing.iter().map(|column| column.name.as_str()).collect();
        return Err(no_column(table, &names.join(", ")));
    }
    engine.change_catalog(CatalogRequest::AddColumns(table.id(), missing))?;
    found(engine, database, name)
}

fn found(engine: &Engine, database: &str, name: &str) -> Result<Arc<Table>> {
    let table = engine.catalog().exact_table(database, name).map(Arc::clone);
    // Made a moment ago, it can only have been dropped since.
    table.ok_or_else(|| Error::Invalid(format!("table {database}.{name} was dropped meanwhile")))
}

fn no_column(table: &Table, names: &str) -> Error {
    Error::Invalid(format!("table {} has no column {names}", table.full_name()))
}

fn storable(name: &str, kind: &DataType) -> Result<PhysicalType> {
    physical(kind)
        .ok_or_else(|| Error::Invalid(format!("column {name} has type {kind}, which cannot be stored")))
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
/// `arrival` gives the time of a row without one, and is asked once for each; `range` is the times that are accepted.
pub fn write_rows(
    builder: &mut WriteBatchBuilder,
    table: &Arc<Table>,
    batch: &RecordBatch,
    arrival: &dyn Fn() -> Timestamp,
    range: &RangeInclusive<Timestamp>,
    nulls: Nulls,
) -> Result<Vec<RowError>> {
    if row_columns::write(builder, table, batch, arrival, range, nulls)? {
        return Ok(Vec::new());
    }
    write_each(builder, table, batch, arrival, range, nulls)
}

/// The same row by row.
fn write_each(
    builder: &mut WriteBatchBuilder,
    table: &Arc<Table>,
    batch: &RecordBatch,
    arrival: &dyn Fn() -> Timestamp,
    range: &RangeInclusive<Timestamp>,
    nulls: Nulls,
) -> Result<Vec<RowError>> {
    let schema = batch.schema();
    let columns = Columns::new(table, &schema, batch)?;
    let mut errors = Vec::new();
    let (mut tags, mut fields) = (Vec::new(), Vec::new());
    for row in 0..batch.num_rows() {
        tags.clear();
        fields.clear();
        let time = match columns.read(row, nulls, &mut tags, &mut fields) {
            Ok(time) => time.unwrap_or_else(arrival),
            Err(reason) => {
                errors.push(RowError { row, reason });
                continue;
            }
        };
        if !range.contains(&time) {
            let reason = format!("time {} ns is outside the accepted range", time.as_nanos());
            errors.push(RowError { row, reason });
            continue;
        }
        match builder.row(table, &Row { time, tags: &tags, fields: &fields }, None) {
            Ok(_) => {}
            Err(sonde_engine::Error::BatchFull) => return Err(too_many()),
            Err(error) => errors.push(RowError { row, reason: error.to_string() }),
        }
    }
    Ok(errors)
}

/// All rows of one INSERT or one request are one commit, so that they are stored all or none.
pub(crate) fn too_many() -> Error {
    Error::Invalid(format!(
        "the rows take more than {} MiB, the most that one statement or request can store; nothing was stored, send \
         them in parts",
        BATCH_BYTES >> 20
    ))
}

/// A column of a batch in the type in which its values are read.
struct Column<'a> {
    name: &'a str,
    given: &'a ArrayRef,
    /// Where nothing was given; the nulls of dictionaries and of untyped columns are nowhere else.
    given_nulls: Option<NullBuffer>,
    values: ArrayRef,
}

impl<'a> Column<'a> {
    fn new(name: &'a str, given: &'a ArrayRef, wanted: &DataType) -> Result<Self> {
        let values = if given.data_type() == wanted {
            Arc::clone(given)
        } else {
            cast(given, wanted).map_err(|error| Error::Invalid(format!("column {name}: {error}")))?
        };
        Ok(Self { name, given, given_nulls: given.logical_nulls(), values })
    }

    /// Whether the row has a value; an error where it has one that the conversion did not keep.
    fn has_value(&self, row: usize) -> Result<bool, String> {
        if self.values.is_valid(row) {
            return Ok(true);
        }
        if self.given_nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return Ok(false);
        }
        let text = array_value_to_string(self.given, row).unwrap_or_else(|_| "the value".to_owned());
        let wanted = match self.values.data_type() {
            DataType::Timestamp(..) => "no time between the years 1677 and 2262".to_owned(),
            other => format!("no {other}"),
        };
        Err(format!("column {}: '{text}' is {wanted}", self.name))
    }
}

/// The columns of a batch by what they are in the table.
struct Columns<'a> {
    time: Option<Column<'a>>,
    tags: Vec<(ColumnId, Column<'a>)>,
    fields: Vec<(ColumnId, Column<'a>)>,
}

impl<'a> Columns<'a> {
    fn new(table: &Table, schema: &'a SchemaRef, batch: &'a RecordBatch) -> Result<Self> {
        let mut columns = Self { time: None, tags: Vec::new(), fields: Vec::new() };
        for (field, given) in schema.fields().iter().zip(batch.columns()) {
            let name = field.name().as_str();
            let column = table.exact(name).ok_or_else(|| no_column(table, name))?;
            let read = Column::new(name, given, &wanted(column, given.data_type())?)?;
            match column.role {
                ColumnRole::Time => columns.time = Some(read),
                ColumnRole::Tag => columns.tags.push((column.id, read)),
                ColumnRole::Field => columns.fields.push((column.id, read)),
            }
        }
        Ok(columns)
    }

    /// Reads a row; `None` where it has no time.
    fn read<'c>(
        &'c self,
        row: usize,
        nulls: Nulls,
        tags: &mut Vec<(ColumnId, Cow<'c, str>)>,
        fields: &mut Vec<(ColumnId, FieldValue<'c>)>,
    ) -> Result<Option<Timestamp>, String> {
        for (id, column) in &self.tags {
            if column.has_value(row)? {
                tags.push((*id, Cow::Borrowed(column.values.as_string::<i32>().value(row))));
            }
        }
        for (id, column) in &self.fields {
            if column.has_value(row)? {
                fields.push((*id, value(&column.values, row)));
            } else if nulls == Nulls::Explicit {
                fields.push((*id, FieldValue::Null));
            }
        }
        let Some(time) = &self.time else { return Ok(None) };
        if time.has_value(row)? {
            let nanos = time.values.as_primitive::<TimestampNanosecondType>().value(row);
            return Ok(Some(Timestamp::from_nanos(nanos)));
        }
        match nulls {
            Nulls::Absent => Ok(None),
            Nulls::Explicit => Err("column time is NULL; leave it out to have the time of arrival".into()),
        }
    }
}

/// The type in which a column's values are read.
pub(crate) fn wanted(column: &ColumnDef, given: &DataType) -> Result<DataType> {
    let kind = match column.role {
        ColumnRole::Time => return time_type(given),
        ColumnRole::Tag => {
            storable(&column.name, given)?;
            PhysicalType::Text
        }
        ColumnRole::Field => match (given, column.kind) {
            // A decimal without a fraction is exact as an integer, and not always as a float.
            (DataType::Decimal128(_, scale), PhysicalType::Int64 | PhysicalType::UInt64) if *scale <= 0 => {
                column.kind
            }
            _ => storable(&column.name, given)?,
        },
    };
    Ok(match kind {
        PhysicalType::Float64 => DataType::Float64,
        PhysicalType::Int64 => DataType::Int64,
        PhysicalType::UInt64 => DataType::UInt64,
        PhysicalType::Boolean => DataType::Boolean,
        PhysicalType::Text => DataType::Utf8,
    })
}

pub(crate) fn time_type(given: &DataType) -> Result<DataType> {
    match given {
        DataType::Timestamp(..)
        | DataType::Date32
        | DataType::Int64
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Null => Ok(DataType::Timestamp(TimeUnit::Nanosecond, None)),
        other => Err(Error::Invalid(format!(
            "column time is {other}, expected a timestamp or integer nanoseconds"
        ))),
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use std::cell::Cell;

    use arrow::array::{
        BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, StringArray,
        TimestampSecondArray, UInt64Array,
    };
    use sonde_engine::Options;

    use super::*;

    const EVER: RangeInclusive<Timestamp> = Timestamp::MIN..=Timestamp::from_nanos(i64::MAX - 1);

    fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)))
            .unwrap()
    }

    /// Writes to a table made of the batch, `d` being a tag; the errors, and how often the arrival was asked for.
    fn write(batch: &RecordBatch, nulls: Nulls) -> (Vec<RowError>, i64, usize) {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(Options::new(dir.path())).unwrap();
        let table = ensure_table(&engine, "public", "t", &batch.schema(), &["d".to_owned()]).unwrap();
        let arrivals = Cell::new(0);
        let arrival = || {
            arrivals.set(arrivals.get() + 1);
            Timestamp::from_nanos(arrivals.get())
        };
        let mut builder = engine.batch();
        builder.begin_message();
        let errors = write_rows(&mut builder, &table, batch, &arrival, &EVER, nulls).unwrap();
        let rows = builder.finish().map_or(0, |batch| batch.rows());
        (errors, arrivals.get(), rows)
    }

    #[test]
    fn a_time_that_is_none_is_an_error_of_its_row_and_never_the_arrival() {
        let value: ArrayRef = Arc::new(Float64Array::from(vec![1.0, 2.0, 3.0]));
        let texts = StringArray::from(vec![Some("2026-11-20T00:00:00Z"), Some("garbage"), None]);
        let texts = batch(vec![("time", Arc::new(texts) as ArrayRef), ("v", Arc::clone(&value))]);
        let (errors, arrivals, rows) = write(&texts, Nulls::Absent);
        assert_eq!((errors.len(), errors[0].row, arrivals, rows), (1, 1, 1, 2));
        assert!(errors[0].reason.contains("garbage"), "{}", errors[0].reason);
        assert_eq!(write(&texts, Nulls::Explicit).0.len(), 2);

        let far = TimestampSecondArray::from(vec![0, i64::MAX / 2, 1]);
        let far = batch(vec![("time", Arc::new(far) as ArrayRef), ("v", value)]);
        let (errors, arrivals, rows) = write(&far, Nulls::Absent);
        assert_eq!((errors.len(), errors[0].row, arrivals, rows), (1, 1, 0, 2));
    }

    /// The batch that rows make, as text, and the errors.
    fn built(
        batch: &RecordBatch,
        nulls: Nulls,
        write: impl Fn(&mut WriteBatchBuilder, &Arc<Table>, &dyn Fn() -> Timestamp) -> Result<Vec<RowError>>,
    ) -> (String, Vec<RowError>) {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(Options::new(dir.path())).unwrap();
        let tags = ["d".to_owned(), "e".to_owned()];
        let table = ensure_table(&engine, "public", "t", &batch.schema(), &tags).unwrap();
        let arrivals = Cell::new(0);
        let arrival = || {
            arrivals.set(arrivals.get() + 1);
            Timestamp::from_nanos(arrivals.get())
        };
        let mut builder = engine.batch();
        builder.begin_message();
        let errors = write(&mut builder, &table, &arrival).unwrap();
        (format!("{nulls:?} {:?}", builder.finish()), errors)
    }

    #[test]
    fn columns_and_single_rows_are_stored_alike() {
        let keys = Int32Array::from(vec![Some(1), Some(0), None, Some(1)]);
        let dictionary = DictionaryArray::new(keys, Arc::new(StringArray::from(vec!["x", "y"])));
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("time", Arc::new(TimestampSecondArray::from(vec![3, 1, 2, 2]))),
            ("d", Arc::new(dictionary)),
            ("e", Arc::new(StringArray::from(vec![Some("a"), None, None, Some("a")]))),
            ("f", Arc::new(Float64Array::from(vec![Some(1.5), None, Some(f64::NAN), Some(-0.0)]))),
            ("i", Arc::new(Int64Array::from(vec![Some(i64::MIN), Some(0), None, Some(7)]))),
            ("u", Arc::new(UInt64Array::from(vec![u64::MAX, 0, 1, 2]))),
            ("b", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), None]))),
            ("s", Arc::new(StringArray::from(vec![Some("long"), None, Some(""), Some("\u{e9}")]))),
            ("small", Arc::new(Int32Array::from(vec![Some(1), None, Some(-3), Some(4)]))),
        ];
        let nothing: ArrayRef = Arc::new(Float64Array::from(vec![None; 4]));
        let late: ArrayRef = Arc::new(TimestampSecondArray::from(vec![Some(3), None, None, Some(2)]));
        let never: ArrayRef = Arc::new(TimestampSecondArray::from(vec![3, i64::MAX / 2, 1, 2]));
        let with = |name: &'static str, array: &ArrayRef| {
            let others = columns.iter().filter(|(known, _)| *known != name).cloned();
            batch(others.chain([(name, Arc::clone(array))]).collect())
        };
        let cases = [
            (batch(columns.clone()), true),
            (batch(columns.iter().skip(1).cloned().collect()), true),
            (batch(columns.iter().take(3).cloned().collect()), true),
            (with("none", &nothing), true),
            (with("time", &late), true),
            (with("time", &never), false),
        ];
        for (case, (rows, all_good)) in cases.iter().enumerate() {
            for nulls in [Nulls::Absent, Nulls::Explicit] {
                let each = built(rows, nulls, |builder, table, arrival| {
                    write_each(builder, table, rows, arrival, &EVER, nulls)
                });
                let whole = built(rows, nulls, |builder, table, arrival| {
                    write_rows(builder, table, rows, arrival, &EVER, nulls)
                });
                assert_eq!(each, whole, "case {case}");
                // A time that is NULL is an error where NULL was meant.
                let as_columns = *all_good && (case != 4 || nulls == Nulls::Absent);
                assert_eq!(each.1.is_empty(), as_columns, "case {case}: {:?}", each.1);
                let columns_alone = built(rows, nulls, |builder, table, arrival| {
                    let stored = row_columns::write(builder, table, rows, arrival, &EVER, nulls)?;
                    assert_eq!(stored, as_columns, "case {case}");
                    Ok(Vec::new())
                });
                assert!(!as_columns || columns_alone.0 == each.0, "case {case}");
            }
        }
    }

    #[test]
    fn every_row_without_a_time_has_an_arrival_of_its_own() {
        let rows = batch(vec![("v", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef)]);
        assert_eq!(write(&rows, Nulls::Absent), (Vec::new(), 3, 3));
    }

    #[test]
    fn tags_that_are_no_text_become_text() {
        let numbers = batch(vec![("d", Arc::new(Int64Array::from(vec![Some(7), None])) as ArrayRef)]);
        assert_eq!(write(&numbers, Nulls::Absent), (Vec::new(), 2, 2));
        let flags = batch(vec![("d", Arc::new(BooleanArray::from(vec![true, false])) as ArrayRef)]);
        assert_eq!(write(&flags, Nulls::Absent), (Vec::new(), 2, 2));
    }
}
