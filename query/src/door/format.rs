//! Record batches in the formats that clients ask for.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::csv::WriterBuilder;
use arrow::datatypes::{DataType, Float64Type, SchemaRef};
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::error::{Error, Result};

/// A format of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `{"columns":[{"name","type"}],"rows":[[...]]}`.
    Json,
    /// One JSON object per line.
    NdJson,
    /// Comma-separated, with a header.
    Csv,
    /// Arrow IPC stream.
    Arrow,
    /// Parquet file.
    Parquet,
}

impl Format {
    /// The format of an `Accept` header; JSON where it says nothing that is known.
    #[must_use]
    pub fn from_accept(accept: &str) -> Self {
        let known = accept.split(',').filter_map(|part| {
            Some(match part.split(';').next()?.trim() {
                "application/x-ndjson" | "application/jsonl" | "application/x-jsonlines" => Self::NdJson,
                "text/csv" => Self::Csv,
                "application/vnd.apache.arrow.stream" => Self::Arrow,
                "application/vnd.apache.parquet" => Self::Parquet,
                "application/json" => Self::Json,
                _ => return None,
            })
        });
        known.into_iter().next().unwrap_or(Self::Json)
    }

    /// Its media type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::NdJson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }
}

/// Writes batches in one format, handing out bytes as they come.
pub enum Encoder {
    /// JSON in rows.
    Json {
        /// Whether a row was written.
        rows: bool,
    },
    /// JSON lines.
    NdJson,
    /// CSV.
    Csv {
        /// The schema, for the header of an empty answer.
        schema: SchemaRef,
        /// Whether the header is out.
        started: bool,
    },
    /// Arrow IPC.
    Arrow(Box<StreamWriter<Vec<u8>>>),
    /// Parquet, whose bytes come at the end of each row group.
    Parquet(Box<ArrowWriter<Vec<u8>>>),
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Internal(error.to_string())
}

impl Encoder {
    /// Starts an answer; returns the first bytes.
    pub fn start(format: Format, schema: &SchemaRef) -> Result<(Self, Vec<u8>)> {
        Ok(match format {
            Format::Json => (Self::Json { rows: false }, json_head(schema)),
            Format::NdJson => (Self::NdJson, Vec::new()),
            Format::Csv => (Self::Csv { schema: SchemaRef::clone(schema), started: false }, Vec::new()),
            Format::Arrow => {
                let mut writer = StreamWriter::try_new(Vec::new(), schema).map_err(failed)?;
                let head = std::mem::take(writer.get_mut());
                (Self::Arrow(Box::new(writer)), head)
            }
            Format::Parquet => {
                let zstd = Compression::ZSTD(ZstdLevel::default());
                let properties = WriterProperties::builder().set_compression(zstd).build();
                let writer = ArrowWriter::try_new(Vec::new(), SchemaRef::clone(schema), Some(properties));
                (Self::Parquet(Box::new(writer.map_err(failed)?)), Vec::new())
            }
        })
    }

    /// Adds rows; returns the bytes that are ready.
    pub fn push(&mut self, batch: &RecordBatch) -> Result<Vec<u8>> {
        match self {
            Self::Json { rows } => json_rows(batch, rows),
            Self::NdJson => nd_json(batch),
            Self::Csv { started, .. } => {
                let header = !std::mem::replace(started, true);
                csv(batch, header)
            }
            Self::Arrow(writer) => {
                writer.write(batch).map_err(failed)?;
                Ok(std::mem::take(writer.get_mut()))
            }
            Self::Parquet(writer) => {
                writer.write(batch).map_err(failed)?;
                Ok(Vec::new())
            }
        }
    }

    /// Ends the answer; returns the last bytes.
    pub fn finish(self) -> Result<Vec<u8>> {
        match self {
            Self::Json { .. } => Ok(b"]}\n".to_vec()),
            Self::NdJson => Ok(Vec::new()),
            Self::Csv { started: true, .. } => Ok(Vec::new()),
            Self::Csv { schema, .. } => csv(&RecordBatch::new_empty(schema), true),
            Self::Arrow(mut writer) => {
                writer.finish().map_err(failed)?;
                Ok(std::mem::take(writer.get_mut()))
            }
            Self::Parquet(writer) => writer.into_inner().map_err(failed),
        }
    }
}

fn json_head(schema: &SchemaRef) -> Vec<u8> {
    let columns: Vec<serde_json::Value> = schema
        .fields()
        .iter()
        .map(|field| serde_json::json!({"name": field.name(), "type": type_name(field.data_type())}))
        .collect();
    format!("{{\"columns\":{},\"rows\":[", serde_json::Value::Array(columns)).into_bytes()
}

/// The name of a type as SQL has it.
#[must_use]
pub fn type_name(kind: &DataType) -> String {
    match kind {
        DataType::Float16 | DataType::Float32 | DataType::Float64 => "DOUBLE".into(),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => "BIGINT".into(),
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => "BIGINT UNSIGNED".into(),
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "STRING".into(),
        DataType::Timestamp(..) => "TIMESTAMP".into(),
        DataType::Dictionary(_, value) => type_name(value),
        other => other.to_string().to_ascii_uppercase(),
    }
}

fn formatters(batch: &RecordBatch) -> Result<Vec<ArrayFormatter<'_>>> {
    const OPTIONS: FormatOptions<'static> = FormatOptions::new();
    batch
        .columns()
        .iter()
        .map(|array| ArrayFormatter::try_new(array.as_ref(), &OPTIONS).map_err(failed))
        .collect()
}

/// Appends one cell as JSON. Numbers that JSON has not (NaN, infinities) become null.
fn json_cell(array: &ArrayRef, formatter: &ArrayFormatter<'_>, row: usize, out: &mut Vec<u8>) -> Result<()> {
    if array.is_null(row) {
        out.extend_from_slice(b"null");
        return Ok(());
    }
    match array.data_type() {
        DataType::Float64 => {
            let value = array.as_primitive::<Float64Type>().value(row);
            serde_json::to_writer(out, &value).map_err(failed)
        }
        kind if kind.is_integer() || *kind == DataType::Boolean => {
            out.extend_from_slice(formatter.value(row).to_string().as_bytes());
            Ok(())
        }
        DataType::Float16 | DataType::Float32 => {
            let text = formatter.value(row).to_string();
            let number = text.parse::<f64>().ok().filter(|value| value.is_finite());
            out.extend_from_slice(number.map_or("null".to_owned(), |_| text).as_bytes());
            Ok(())
        }
        _ => serde_json::to_writer(out, &formatter.value(row).to_string()).map_err(failed),
    }
}

fn json_rows(batch: &RecordBatch, started: &mut bool) -> Result<Vec<u8>> {
    let formatters = formatters(batch)?;
    let mut out = Vec::with_capacity(batch.num_rows() * 16 * formatters.len().max(1));
    for row in 0..batch.num_rows() {
        if std::mem::replace(started, true) {
            out.push(b',');
        }
        out.push(b'[');
        for (i, (array, formatter)) in batch.columns().iter().zip(&formatters).enumerate() {
            if i > 0 {
                out.push(b',');
            }
            json_cell(array, formatter, row, &mut out)?;
        }
        out.push(b']');
    }
    Ok(out)
}

/// One JSON object per row and line.
pub fn nd_json(batch: &RecordBatch) -> Result<Vec<u8>> {
    let formatters = formatters(batch)?;
    let schema = batch.schema();
    let mut out = Vec::new();
    for row in 0..batch.num_rows() {
        out.push(b'{');
        let columns = schema.fields().iter().zip(batch.columns()).zip(&formatters);
        for (i, ((field, array), formatter)) in columns.enumerate() {
            if i > 0 {
                out.push(b',');
            }
            serde_json::to_writer(&mut out, field.name()).map_err(failed)?;
            out.push(b':');
            json_cell(array, formatter, row, &mut out)?;
        }
        out.extend_from_slice(b"}\n");
    }
    Ok(out)
}

fn csv(batch: &RecordBatch, header: bool) -> Result<Vec<u8>> {
    let mut writer = WriterBuilder::new().with_header(header).build(Vec::new());
    writer.write(batch).map_err(failed)?;
    Ok(writer.into_inner())
}
