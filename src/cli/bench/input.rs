//! Columns of a file: CSV with a header, Parquet or line protocol, each also under zstd.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimeUnit, TimestampNanosecondType, UInt64Type};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sonde_ingest::decode::{Rows, line};
use sonde_storage_format::{Cell, Column, PhysicalType, Values};

use super::super::{Exit, Failure, Result};

/// Bytes that a file may have, unpacked.
const INPUT_BYTES: usize = 4 << 30;
/// Names of a column that is the time.
const TIME_NAMES: [&str; 6] = ["time", "timestamp", "ts", "date", "datetime", "date_time"];

/// A column of a file.
#[derive(Debug)]
pub(super) struct NamedColumn {
    /// `file:column`, where the file has several.
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) column: Column,
    /// Whether the codecs for times apply.
    pub(super) times: bool,
}

fn bad(path: &Path, what: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::BadData, format!("{}: {what}", path.display()))
}

/// Reads the columns of a file that have a value.
pub(super) fn load(path: &Path) -> Result<Vec<NamedColumn>> {
    let mut bytes = std::fs::read(path)
        .map_err(|error| Failure::new(Exit::Io, format!("{}: {error}", path.display())))?;
    let mut name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(plain) = name.strip_suffix(".zst") {
        name = plain.to_owned();
        let unpacked = zstd::stream::decode_all(bytes.as_slice());
        bytes = unpacked.map_err(|error| bad(path, format_args!("zstd: {error}")))?;
    }
    if bytes.len() > INPUT_BYTES {
        return Err(bad(path, format_args!("{} bytes, the limit is {INPUT_BYTES}", bytes.len())));
    }
    let extension = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let columns = match extension.as_str() {
        "parquet" => parquet(path, bytes)?,
        "lp" => line_protocol(path, &text(path, bytes)?)?,
        // Recordings have damaged bytes; they cost their field, not the file.
        _ => csv(path, &String::from_utf8_lossy(&bytes))?,
    };
    let stem = name.split('.').next().unwrap_or_default();
    let named = columns.into_iter().filter(|column| has_value(&column.column));
    Ok(named.map(|column| NamedColumn { name: format!("{stem}:{}", column.name), ..column }).collect())
}

fn has_value(column: &Column) -> bool {
    (0..column.len()).any(|row| column.cells.get(row) == Cell::Value)
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| bad(path, format_args!("no text: {error}")))
}

fn kind_name(kind: PhysicalType, times: bool) -> &'static str {
    match kind {
        _ if times => "time",
        PhysicalType::Float64 => "float64",
        PhysicalType::Int64 => "int64",
        PhysicalType::UInt64 => "uint64",
        PhysicalType::Boolean => "boolean",
        PhysicalType::Text => "string",
    }
}

fn named(name: &str, column: Column, times: bool) -> NamedColumn {
    NamedColumn { name: name.to_owned(), kind: kind_name(column.values.kind(), times), column, times }
}

/// The fields of a line of CSV; quoted ones lose their quotes.
fn fields(line: &str, delimiter: char) -> Vec<String> {
    let mut fields = Vec::new();
    let (mut field, mut quoted) = (String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => field.extend(chars.next()),
            '"' => quoted = !quoted,
            c if c == delimiter && !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    fields.push(field);
    fields
}

/// What all values of a column of CSV are.
#[derive(Clone, Copy)]
struct Guess {
    int: bool,
    float: bool,
    bool: bool,
    time: bool,
}

fn is_missing(field: &str) -> bool {
    matches!(field, "" | "NA" | "N/A" | "null" | "NULL" | "None" | "-")
}

/// A number, with a decimal point or comma.
fn parse_float(field: &str) -> Option<f64> {
    field.parse().ok().or_else(|| field.replacen(',', ".", 1).parse().ok())
}

fn parse_bool(field: &str) -> Option<bool> {
    match field {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

fn parse_time(field: &str) -> Option<i64> {
    arrow::compute::kernels::cast_utils::string_to_timestamp_nanos(field).ok()
}

impl Guess {
    fn narrow(&mut self, field: &str) {
        self.int = self.int && field.parse::<i64>().is_ok();
        self.float = self.float && parse_float(field).is_some();
        self.bool = self.bool && parse_bool(field).is_some();
        self.time = self.time && parse_time(field).is_some();
    }

    fn kind(self) -> PhysicalType {
        match self {
            Self { int: true, .. } => PhysicalType::Int64,
            Self { float: true, .. } => PhysicalType::Float64,
            Self { bool: true, .. } => PhysicalType::Boolean,
            Self { time: true, .. } => PhysicalType::Int64,
            _ => PhysicalType::Text,
        }
    }

    /// Whether values are instants written as text.
    fn is_instant(self) -> bool {
        self.time && !self.int && !self.float
    }
}

/// Lines with a number of fields far from the header's are passed over: recordings have damaged ones.
fn csv(path: &Path, text: &str) -> Result<Vec<NamedColumn>> {
    let mut lines =
        text.lines().map(|line| line.trim_end_matches('\r')).filter(|line| !line.trim().is_empty());
    let header = lines.next().ok_or_else(|| bad(path, "empty: a header and rows are expected"))?;
    let count = |delimiter: char| header.matches(delimiter).count();
    let delimiter = [',', ';', '\t'].into_iter().max_by_key(|delimiter| count(*delimiter)).unwrap_or(',');
    let names = fields(header.trim_start_matches('\u{feff}'), delimiter);
    // A delimiter may end the lines, or the header; files that were put together repeat their header.
    let fits = |row: &Vec<String>| row.len().abs_diff(names.len()) <= 1 && row.first() != names.first();
    let rows: Vec<Vec<String>> = lines.map(|line| fields(line, delimiter)).filter(fits).collect();
    if rows.is_empty() {
        return Err(bad(path, "no row with as many fields as the header"));
    }
    let mut columns = Vec::with_capacity(names.len());
    for (place, name) in names.iter().enumerate() {
        let of_column = || rows.iter().map(move |row| row.get(place).map_or("", |field| field.trim()));
        let mut guess = Guess { int: true, float: true, bool: true, time: true };
        of_column().filter(|field| !is_missing(field)).for_each(|field| guess.narrow(field));
        let times = guess.is_instant()
            || (guess.int && TIME_NAMES.contains(&name.trim().to_ascii_lowercase().as_str()));
        let mut column = Column::new(guess.kind());
        of_column().for_each(|field| push(&mut column, field));
        columns.push(named(name.trim(), column, times));
    }
    Ok(columns)
}

fn push(column: &mut Column, field: &str) {
    if is_missing(field) {
        return column.push_empty(Cell::Absent, 1);
    }
    match &mut column.values {
        Values::Int(values) => {
            values.push(field.parse().ok().or_else(|| parse_time(field)).unwrap_or_default());
        }
        Values::Float(values) => values.push(parse_float(field).unwrap_or_default()),
        Values::Bool(values) => values.push(parse_bool(field).unwrap_or_default()),
        Values::UInt(values) => values.push(field.parse().unwrap_or_default()),
        Values::Text(texts) => texts.push(field.as_bytes()),
    }
    column.cells.push(Cell::Value);
}

fn parquet(path: &Path, bytes: Vec<u8>) -> Result<Vec<NamedColumn>> {
    let failed = |error: &dyn std::fmt::Display| bad(path, error);
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes)).map_err(|error| failed(&error))?;
    let schema = Arc::clone(reader.schema());
    let batches = reader.build().map_err(|error| failed(&error))?;
    let batches = batches.collect::<Result<Vec<_>, _>>().map_err(|error| failed(&error))?;
    let batch = concat_batches(&schema, &batches).map_err(|error| failed(&error))?;
    let mut columns = Vec::new();
    for (field, array) in schema.fields().iter().zip(batch.columns()) {
        let wanted = match field.data_type() {
            kind if kind.is_signed_integer() => DataType::Int64,
            kind if kind.is_unsigned_integer() => DataType::UInt64,
            kind if kind.is_floating() => DataType::Float64,
            DataType::Boolean => DataType::Boolean,
            DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => {
                DataType::Timestamp(TimeUnit::Nanosecond, None)
            }
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
            // Neither numbers nor text: no column of ours.
            _ => continue,
        };
        let array = cast(array, &wanted).map_err(|error| failed(&error))?;
        let times = matches!(wanted, DataType::Timestamp(..));
        columns.push(named(field.name(), of_array(array.as_ref()), times));
    }
    Ok(columns)
}

fn of_array(array: &dyn Array) -> Column {
    let kind = match array.data_type() {
        DataType::Float64 => PhysicalType::Float64,
        DataType::UInt64 => PhysicalType::UInt64,
        DataType::Boolean => PhysicalType::Boolean,
        DataType::Utf8 => PhysicalType::Text,
        _ => PhysicalType::Int64,
    };
    let mut column = Column::new(kind);
    for row in 0..array.len() {
        if array.is_null(row) {
            column.push_empty(Cell::Absent, 1);
            continue;
        }
        match &mut column.values {
            Values::Float(values) => values.push(array.as_primitive::<Float64Type>().value(row)),
            Values::UInt(values) => values.push(array.as_primitive::<UInt64Type>().value(row)),
            Values::Bool(values) => values.push(array.as_boolean().value(row)),
            Values::Text(texts) => texts.push(array.as_string::<i32>().value(row).as_bytes()),
            Values::Int(values) => values.push(match array.as_primitive_opt::<Int64Type>() {
                Some(array) => array.value(row),
                None => array.as_primitive::<TimestampNanosecondType>().value(row),
            }),
        }
        column.cells.push(Cell::Value);
    }
    column
}

/// Fields as `measurement.field`, tags left out; the times of all lines as `time`.
fn line_protocol(path: &Path, text: &str) -> Result<Vec<NamedColumn>> {
    let mut columns: BTreeMap<String, Column> = BTreeMap::new();
    let mut rows = Rows::default();
    for (number, text) in line::lines(text) {
        let wrong =
            |error: sonde_ingest::decode::DecodeError| bad(path, format_args!("line {number}: {error}"));
        let line = line::decode(text, &mut rows).map_err(wrong)?;
        for (name, value) in rows.iter().flatten().skip(line.tags) {
            let Some(kind) = value.kind() else { continue };
            let column = columns.entry(format!("{}.{name}", line.table)).or_insert_with(|| Column::new(kind));
            if value.fits(column.values.kind()) {
                value.push(column);
            }
        }
        if let Some(time) = line.time {
            let times = columns.entry("time".into()).or_insert_with(|| Column::new(PhysicalType::Int64));
            sonde_engine::FieldValue::Int(time).push(times);
        }
    }
    Ok(columns.into_iter().map(|(name, column)| named(&name, column, name == "time")).collect())
}
