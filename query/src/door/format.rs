//! Record batches in the formats that clients ask for.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::NullBuffer;
use arrow::csv::WriterBuilder;
use arrow::datatypes::{DataType, Float64Type, IntervalUnit, SchemaRef};
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::{Stream, StreamExt, TryStreamExt, future, stream};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::answer::Answer;
use crate::error::{Error, Result};
use crate::limits::PARQUET_GROUP_BYTES;

/// Timestamps without a zone as those with the zone UTC are written: everything here is UTC.
const UTC_TIME: &str = "%Y-%m-%dT%H:%M:%S%.fZ";

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
    /// The format that an `Accept` header prefers; JSON where it names none that is known.
    #[must_use]
    pub fn from_accept(accept: &str) -> Self {
        let mut best = (0.0, Self::Json);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let Some(format) = parts.next().and_then(Self::of_media_type) else { continue };
            let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok()).unwrap_or(1.0);
            if weight > best.0 {
                best = (weight, format);
            }
        }
        best.1
    }

    fn of_media_type(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "application/x-ndjson" | "application/jsonl" | "application/x-jsonlines" => Self::NdJson,
            "text/csv" => Self::Csv,
            "application/vnd.apache.arrow.stream" => Self::Arrow,
            "application/vnd.apache.parquet" => Self::Parquet,
            "application/json" => Self::Json,
            _ => return None,
        })
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

/// The bytes of an answer, as they come. Fails where the format cannot hold a column; after the first rows a failure can
/// do no more than end the stream with an error.
pub fn encode(answer: Answer, format: Format) -> Result<impl Stream<Item = Result<Vec<u8>>> + Send> {
    let (encoder, head) = Encoder::start(format, &answer.schema())?;
    let head = stream::once(future::ready(Ok(head)));
    let rest = stream::try_unfold((answer, Some(encoder)), |(mut answer, encoder)| async move {
        let Some(mut encoder) = encoder else { return Ok(None) };
        let (bytes, encoder) = match answer.next().await {
            Some(batch) => (encoder.push(&batch?)?, Some(encoder)),
            None => (encoder.finish()?, None),
        };
        Ok::<_, Error>(Some((bytes, (answer, encoder))))
    });
    Ok(head.chain(rest).try_filter(|bytes| future::ready(!bytes.is_empty())))
}

/// Writes batches in one format, handing out bytes as they come.
enum Encoder {
    Json {
        /// Whether a row was written.
        rows: bool,
    },
    NdJson,
    Csv {
        /// The schema, for the header of an empty answer.
        schema: SchemaRef,
        /// Whether the header is out.
        started: bool,
    },
    Arrow(Box<StreamWriter<Vec<u8>>>),
    /// Its bytes come at the end of each row group.
    Parquet(Box<ArrowWriter<Vec<u8>>>),
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Internal(error.to_string())
}

fn refused(error: impl std::fmt::Display) -> Error {
    Error::Invalid(error.to_string())
}

impl Encoder {
    /// Starts an answer; returns the first bytes.
    fn start(format: Format, schema: &SchemaRef) -> Result<(Self, Vec<u8>)> {
        check_columns(format, schema)?;
        Ok(match format {
            Format::Json => (Self::Json { rows: false }, json_head(schema)),
            Format::NdJson => (Self::NdJson, Vec::new()),
            Format::Csv => (Self::Csv { schema: SchemaRef::clone(schema), started: false }, Vec::new()),
            Format::Arrow => {
                let mut writer = StreamWriter::try_new(Vec::new(), schema).map_err(refused)?;
                let head = std::mem::take(writer.get_mut());
                (Self::Arrow(Box::new(writer)), head)
            }
            Format::Parquet => {
                let zstd = Compression::ZSTD(ZstdLevel::default());
                let properties = WriterProperties::builder().set_compression(zstd).build();
                let writer = ArrowWriter::try_new(Vec::new(), SchemaRef::clone(schema), Some(properties));
                (Self::Parquet(Box::new(writer.map_err(refused)?)), Vec::new())
            }
        })
    }

    /// Adds rows; returns the bytes that are ready.
    fn push(&mut self, batch: &RecordBatch) -> Result<Vec<u8>> {
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
            Self::Parquet(writer) => parquet_rows(writer, batch),
        }
    }

    /// Ends the answer; returns the last bytes.
    fn finish(self) -> Result<Vec<u8>> {
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

/// Fails where the format cannot hold a column, which its writer would only find at the first row.
fn check_columns(format: Format, schema: &SchemaRef) -> Result<()> {
    let holds: fn(&DataType) -> bool = match format {
        Format::Csv => |kind| !kind.is_nested(),
        Format::Parquet => parquet_holds,
        Format::Json | Format::NdJson | Format::Arrow => |_| true,
    };
    match schema.fields().iter().find(|field| !holds(field.data_type())) {
        Some(field) => Err(Error::Invalid(format!(
            "column {} has type {}, which {format:?} cannot hold; cast it, or ask for JSON or Arrow",
            field.name(),
            type_name(field.data_type())
        ))),
        None => Ok(()),
    }
}

fn parquet_holds(kind: &DataType) -> bool {
    match kind {
        DataType::Interval(unit) => *unit != IntervalUnit::MonthDayNano,
        DataType::Union(..) => false,
        DataType::Struct(fields) => {
            !fields.is_empty() && fields.iter().all(|field| parquet_holds(field.data_type()))
        }
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::Map(item, _)
        | DataType::RunEndEncoded(_, item) => parquet_holds(item.data_type()),
        DataType::Dictionary(_, value) => parquet_holds(value),
        _ => true,
    }
}

/// Adds rows to a Parquet file; returns what is finished of it, so that one row group at most is held.
fn parquet_rows(writer: &mut ArrowWriter<Vec<u8>>, batch: &RecordBatch) -> Result<Vec<u8>> {
    writer.write(batch).map_err(failed)?;
    if writer.in_progress_size() > PARQUET_GROUP_BYTES {
        writer.flush().map_err(failed)?;
    }
    // The writer counts the bytes that it passes on, so that they may be taken away.
    writer.sync().map_err(failed)?;
    Ok(std::mem::take(writer.inner_mut()))
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

/// A column about to be written cell by cell.
struct Column<'a> {
    array: &'a ArrayRef,
    /// Its nulls, those of a column of nothing but nulls and of dictionaries' values, too.
    nulls: Option<NullBuffer>,
    formatter: ArrayFormatter<'a>,
}

impl<'a> Column<'a> {
    fn new(array: &'a ArrayRef) -> Result<Self> {
        const OPTIONS: FormatOptions<'static> = FormatOptions::new().with_timestamp_format(Some(UTC_TIME));
        let formatter = ArrayFormatter::try_new(array.as_ref(), &OPTIONS).map_err(failed)?;
        Ok(Self { array, nulls: array.logical_nulls(), formatter })
    }

    fn all(batch: &'a RecordBatch) -> Result<Vec<Self>> {
        batch.columns().iter().map(Self::new).collect()
    }
}

/// Appends one cell as JSON. Numbers that JSON has not (NaN, infinities) become null.
fn json_cell(column: &Column<'_>, row: usize, out: &mut Vec<u8>) -> Result<()> {
    if column.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
        out.extend_from_slice(b"null");
        return Ok(());
    }
    match column.array.data_type() {
        DataType::Float64 => {
            let value = column.array.as_primitive::<Float64Type>().value(row);
            serde_json::to_writer(out, &value).map_err(failed)
        }
        kind if kind.is_integer() || *kind == DataType::Boolean => {
            out.extend_from_slice(column.formatter.value(row).to_string().as_bytes());
            Ok(())
        }
        DataType::Float16 | DataType::Float32 => {
            let text = column.formatter.value(row).to_string();
            let number = text.parse::<f64>().ok().filter(|value| value.is_finite());
            out.extend_from_slice(number.map_or("null".to_owned(), |_| text).as_bytes());
            Ok(())
        }
        _ => serde_json::to_writer(out, &column.formatter.value(row).to_string()).map_err(failed),
    }
}

fn json_rows(batch: &RecordBatch, started: &mut bool) -> Result<Vec<u8>> {
    let columns = Column::all(batch)?;
    let mut out = Vec::with_capacity(batch.num_rows() * 16 * columns.len().max(1));
    for row in 0..batch.num_rows() {
        if std::mem::replace(started, true) {
            out.push(b',');
        }
        out.push(b'[');
        for (i, column) in columns.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            json_cell(column, row, &mut out)?;
        }
        out.push(b']');
    }
    Ok(out)
}

/// One JSON object per row and line.
pub fn nd_json(batch: &RecordBatch) -> Result<Vec<u8>> {
    let columns = Column::all(batch)?;
    let schema = batch.schema();
    let mut out = Vec::new();
    for row in 0..batch.num_rows() {
        out.push(b'{');
        for (i, (field, column)) in schema.fields().iter().zip(&columns).enumerate() {
            if i > 0 {
                out.push(b',');
            }
            serde_json::to_writer(&mut out, field.name()).map_err(failed)?;
            out.push(b':');
            json_cell(column, row, &mut out)?;
        }
        out.extend_from_slice(b"}\n");
    }
    Ok(out)
}

fn csv(batch: &RecordBatch, header: bool) -> Result<Vec<u8>> {
    let options = WriterBuilder::new().with_header(header).with_timestamp_format(UTC_TIME.to_owned());
    let mut writer = options.build(Vec::new());
    writer.write(batch).map_err(failed)?;
    Ok(writer.into_inner())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Float64Array, Int64Array, NullArray, TimestampNanosecondArray};
    use arrow::datatypes::{Field, Schema};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReader;

    use super::*;

    fn text(batch: &RecordBatch, format: Format) -> String {
        let (mut encoder, mut out) = Encoder::start(format, &batch.schema()).unwrap();
        out.extend(encoder.push(batch).unwrap());
        out.extend(encoder.finish().unwrap());
        String::from_utf8(out).unwrap()
    }

    fn of_one(array: ArrayRef) -> RecordBatch {
        RecordBatch::try_from_iter([("x", array)]).unwrap()
    }

    #[test]
    fn a_column_of_nulls_is_null() {
        let batch = of_one(Arc::new(NullArray::new(1)));
        assert!(text(&batch, Format::Json).ends_with("\"rows\":[[null]]}\n"));
        assert_eq!(text(&batch, Format::NdJson), "{\"x\":null}\n");
        assert_eq!(text(&batch, Format::Csv), "x\n\"\"\n");
    }

    #[test]
    fn times_without_a_zone_are_utc() {
        let batch = of_one(Arc::new(TimestampNanosecondArray::from(vec![0, 1_500_000_000])));
        let wanted = "x\n1970-01-01T00:00:00Z\n1970-01-01T00:00:01.500Z\n";
        assert_eq!(text(&batch, Format::Csv), wanted);
        let wanted = "{\"x\":\"1970-01-01T00:00:00Z\"}\n{\"x\":\"1970-01-01T00:00:01.500Z\"}\n";
        assert_eq!(text(&batch, Format::NdJson), wanted);
        let zoned = of_one(Arc::new(TimestampNanosecondArray::from(vec![0]).with_timezone("UTC")));
        assert_eq!(text(&zoned, Format::Csv), "x\n1970-01-01T00:00:00Z\n");
    }

    #[test]
    fn numbers_that_json_has_not_are_null() {
        let batch = of_one(Arc::new(Float64Array::from(vec![f64::NAN, 1.5])));
        assert_eq!(text(&batch, Format::NdJson), "{\"x\":null}\n{\"x\":1.5}\n");
    }

    #[test]
    fn a_format_that_cannot_hold_a_column_says_so_before_the_first_byte() {
        let start = |kind: &DataType, format| {
            let schema = Arc::new(Schema::new(vec![Field::new("x", kind.clone(), true)]));
            Encoder::start(format, &schema).map(drop)
        };
        let list = DataType::new_list(DataType::Int64, true);
        let interval = DataType::Interval(IntervalUnit::MonthDayNano);
        let both = DataType::new_list(interval.clone(), true);
        for (kind, format) in [(&list, Format::Csv), (&interval, Format::Parquet), (&both, Format::Parquet)] {
            assert!(matches!(start(kind, format), Err(Error::Invalid(_))), "{kind} as {format:?}");
        }
        for format in [Format::Json, Format::NdJson, Format::Arrow] {
            assert!(start(&list, format).is_ok() && start(&interval, format).is_ok(), "{format:?}");
        }
        assert!(start(&list, Format::Parquet).is_ok() && start(&interval, Format::Csv).is_ok());
    }

    #[test]
    fn a_parquet_file_comes_in_parts() {
        let batch = of_one(Arc::new(Int64Array::from_iter_values(0..1000)));
        let (encoder, mut file) = Encoder::start(Format::Parquet, &batch.schema()).unwrap();
        let Encoder::Parquet(mut writer) = encoder else { unreachable!("Parquet was asked for") };
        for _ in 0..3 {
            file.extend(parquet_rows(&mut writer, &batch).unwrap());
            writer.flush().unwrap();
        }
        assert!(file.len() > 1000, "the first groups are out");
        file.extend(writer.into_inner().unwrap());
        let rows = ParquetRecordBatchReader::try_new(bytes::Bytes::from(file), 8192).unwrap();
        assert_eq!(rows.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 3000);
    }

    #[test]
    fn the_format_that_is_wanted_most_is_taken() {
        for (accept, format) in [
            ("", Format::Json),
            ("*/*", Format::Json),
            ("text/html, TEXT/CSV;charset=utf-8", Format::Csv),
            ("application/json;q=0.5, text/csv", Format::Csv),
            ("application/jsonl, text/csv", Format::NdJson),
            ("text/csv;q=0", Format::Json),
        ] {
            assert_eq!(Format::from_accept(accept), format, "{accept}");
        }
    }
}
