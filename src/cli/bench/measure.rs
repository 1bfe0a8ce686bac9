//! Sizes and speeds of one column.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, UInt64Array};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use sonde_storage_format::limits::{ROW_GROUP_ROWS, VECTOR_VALUES};
use sonde_storage_format::{
    Cell, CodecId, Column, Profile, Values, decode_page, encode_floats_as, encode_ints_as, encode_page_as,
};

use super::super::{Exit, Failure, Result};
use super::input::NamedColumn;

/// How long a speed is measured at least.
const PATIENCE: Duration = Duration::from_millis(50);

/// A column in one profile.
#[derive(Debug)]
pub(super) struct Encoded {
    /// Bits per present value, page heads and padding included.
    pub(super) bits: f64,
    pub(super) encode_gbps: f64,
    pub(super) decode_gbps: f64,
}

/// What was found of a column.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) rows: usize,
    pub(super) values: usize,
    /// The fast profile.
    pub(super) hot: Encoded,
    /// The dense profile.
    pub(super) compacted: Encoded,
    pub(super) zstd3: Encoded,
    pub(super) parquet_zstd_bits: f64,
    /// Single codecs over vectors of 1,024; a vector that one does not apply to counts as raw.
    pub(super) codecs: Vec<(&'static str, f64)>,
}

pub(super) fn measure(input: &NamedColumn) -> Result<Measured> {
    let rows = input.column.len();
    let present: Vec<usize> = (0..rows).filter(|row| input.column.cells.get(*row) == Cell::Value).collect();
    let values = input.column.values.gather(&present);
    let count = present.len();
    let bits = |bytes: usize| bytes as f64 * 8.0 / count.max(1) as f64;
    let failed =
        |error: &dyn std::fmt::Display| Failure::new(Exit::Failed, format!("{}: {error}", input.name));
    let raw = plain_bytes(&values);
    let parquet = parquet_bytes(&values).map_err(|error| failed(&error))?;
    Ok(Measured {
        name: input.name.clone(),
        kind: input.kind,
        rows,
        values: count,
        hot: encoded(Profile::Fast, input, count).map_err(|error| failed(&error))?,
        compacted: encoded(Profile::Dense, input, count).map_err(|error| failed(&error))?,
        zstd3: zstd3(&raw, count).map_err(|error| failed(&error))?,
        parquet_zstd_bits: bits(parquet),
        codecs: codecs(&values, input.times).into_iter().map(|(name, bytes)| (name, bits(bytes))).collect(),
    })
}

fn encoded(profile: Profile, input: &NamedColumn, count: usize) -> sonde_storage_format::Result<Encoded> {
    let rows = input.column.len();
    let groups: Vec<Column> = (0..rows)
        .step_by(ROW_GROUP_ROWS)
        .map(|start| input.column.slice(start..(start + ROW_GROUP_ROWS).min(rows)))
        .collect();
    let mut pages = Vec::new();
    let encode = seconds(|| {
        pages = groups.iter().map(|group| encode_page_as(profile, group, input.times)).collect::<Vec<_>>();
    });
    let mut damage = None;
    let decode = seconds(|| {
        for page in &pages {
            match decode_page(page) {
                Ok(column) => drop(std::hint::black_box(column)),
                Err(error) => damage = Some(error),
            }
        }
    });
    if let Some(error) = damage {
        return Err(error);
    }
    let bytes: usize = pages.iter().map(Vec::len).sum();
    let speed = |seconds: f64| count as f64 * 8.0 / seconds / 1e9;
    Ok(Encoded {
        bits: bytes as f64 * 8.0 / count.max(1) as f64,
        encode_gbps: speed(encode),
        decode_gbps: speed(decode),
    })
}

/// The values as they are under zstd, level 3.
fn zstd3(raw: &[u8], count: usize) -> std::io::Result<Encoded> {
    let packed = zstd::bulk::compress(raw, 3)?;
    let encode = seconds(|| drop(std::hint::black_box(zstd::bulk::compress(raw, 3))));
    let decode = seconds(|| drop(std::hint::black_box(zstd::bulk::decompress(&packed, raw.len()))));
    let speed = |seconds: f64| count as f64 * 8.0 / seconds / 1e9;
    Ok(Encoded {
        bits: packed.len() as f64 * 8.0 / count.max(1) as f64,
        encode_gbps: speed(encode),
        decode_gbps: speed(decode),
    })
}

/// Seconds of one run, the mean of as many as fit the patience.
fn seconds(mut run: impl FnMut()) -> f64 {
    run();
    let started = Instant::now();
    let mut runs = 0;
    while runs == 0 || started.elapsed() < PATIENCE {
        run();
        runs += 1;
    }
    started.elapsed().as_secs_f64() / f64::from(runs)
}

/// The values as they are, 8 bytes each; strings with a length before each.
fn plain_bytes(values: &Values) -> Vec<u8> {
    match values {
        Values::Float(values) => values.iter().flat_map(|value| value.to_bits().to_le_bytes()).collect(),
        Values::Int(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Values::UInt(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Values::Bool(values) => values.iter().map(|value| u8::from(*value)).collect(),
        Values::Text(texts) => texts
            .iter()
            .flat_map(|text| (text.len() as u32).to_le_bytes().into_iter().chain(text.iter().copied()))
            .collect(),
    }
}

fn parquet_bytes(values: &Values) -> parquet::errors::Result<usize> {
    let array: ArrayRef = match values {
        Values::Float(values) => Arc::new(Float64Array::from(values.clone())),
        Values::Int(values) => Arc::new(Int64Array::from(values.clone())),
        Values::UInt(values) => Arc::new(UInt64Array::from(values.clone())),
        Values::Bool(values) => Arc::new(BooleanArray::from(values.clone())),
        Values::Text(texts) => {
            let strings = texts.iter().map(|text| std::str::from_utf8(text).unwrap_or_default());
            Arc::new(StringArray::from_iter_values(strings))
        }
    };
    let batch = RecordBatch::try_from_iter([("value", array)])?;
    let level = ZstdLevel::try_new(3)?;
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties))?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(bytes.len())
}

/// Bytes of each codec that applies to the type.
fn codecs(values: &Values, times: bool) -> Vec<(&'static str, usize)> {
    match values {
        Values::Float(values) => {
            let ids = [
                ("gorilla_bits", CodecId::Gorilla),
                ("chimp128_bits", CodecId::Chimp128),
                ("alp_bits", CodecId::Alp),
                ("alp_rd_bits", CodecId::AlpRd),
            ];
            let mut sizes: Vec<_> = ids
                .into_iter()
                .map(|(name, codec)| (name, vectors(values, |vector| encode_floats_as(codec, vector))))
                .collect();
            sizes.push(("pco_bits", pco_bytes(values)));
            sizes
        }
        Values::Int(values) => {
            let mut ids = vec![
                ("for_bits", CodecId::For),
                ("delta_bits", CodecId::Delta),
                ("delta_rle_bits", CodecId::DeltaRle),
            ];
            if times {
                ids.push(("delta_of_delta_bits", CodecId::DeltaOfDelta));
            }
            ids.into_iter()
                .map(|(name, codec)| (name, vectors(values, |vector| encode_ints_as(codec, vector))))
                .collect()
        }
        _ => Vec::new(),
    }
}

/// Bytes of pco alone, at its default level, in chunks of a row group.
fn pco_bytes(values: &[f64]) -> usize {
    let config = pco::ChunkConfig::default().with_compression_level(pco::DEFAULT_COMPRESSION_LEVEL);
    let chunks = values.chunks(ROW_GROUP_ROWS);
    // It refuses only configurations and sizes that it does not get here; such a chunk would count as raw.
    let bytes =
        |chunk: &[f64]| pco::standalone::simple_compress(chunk, &config).map_or(8 * chunk.len(), |b| b.len());
    chunks.map(bytes).sum()
}

fn vectors<T>(values: &[T], encode: impl Fn(&[T]) -> Option<Vec<u8>>) -> usize {
    let vectors = values.chunks(VECTOR_VALUES);
    vectors.map(|vector| encode(vector).map_or(1 + 8 * vector.len(), |bytes| bytes.len())).sum()
}
