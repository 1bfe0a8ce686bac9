//! `sonde inspect`: what a file of the data directory holds, and whether all of it is as it was written.

mod dump;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use sonde_storage_format::{
    Checkpoint, ChunkReader, CodecId, ColumnPages, Edit, FormatError, FrameScan, ManifestHeader, Page,
    PhysicalType, Record, SEGMENT_HEADER_LEN, SegmentHeader, SeriesRun, Sum, decode_edits, path,
};

use super::output::say;
use super::{Exit, Failure, Result};

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// A chunk, a segment of the log, a manifest or a checkpoint.
    file: PathBuf,
    /// JSON instead of text.
    #[arg(long)]
    json: bool,
    /// Decode every page as well, not only check its checksum.
    #[arg(long)]
    verify: bool,
    /// Print all that the file holds, one JSON object a line, instead of what it amounts to.
    #[arg(long, conflicts_with_all = ["json", "verify"])]
    dump: bool,
}

pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let bytes = std::fs::read(&args.file)
        .map_err(|error| Failure::new(Exit::Io, format!("{}: {error}", args.file.display())))?;
    let name = args.file.file_name().unwrap_or_default().to_string_lossy();
    let failure = |damage| Failure::new(Exit::BadData, format!("{}: {damage}", args.file.display()));
    if args.dump {
        return dump::dump(&bytes, |line| say(line).map_err(Stop::Output)).map_err(|stop| match stop {
            Stop::Damage(damage) => failure(damage),
            Stop::Output(failure) => failure,
        });
    }
    let found = describe(&bytes, &name, args.verify).map_err(failure)?;
    if args.json {
        return say(found);
    }
    let mut lines = Vec::new();
    print(&found, 0, &mut lines);
    lines.into_iter().try_for_each(say)
}

/// Why a dump ends.
enum Stop {
    Damage(Damage),
    Output(Failure),
}

impl From<Damage> for Stop {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}

/// Why a file cannot be described.
#[derive(Debug, thiserror::Error)]
enum Damage {
    #[error("{0}")]
    Format(#[from] FormatError),
    #[error("not a file of sonde: it begins with none of SONDECHK, SONDEWAL, SONDEMAN, SONDECKP")]
    Foreign,
}

const FOREIGN: Damage = Damage::Foreign;

/// What a file is.
enum Kind {
    Chunk,
    Segment,
    Manifest,
    Checkpoint,
}

impl Kind {
    fn of(bytes: &[u8]) -> Option<Self> {
        Some(match bytes.get(..8)? {
            b"SONDECHK" => Self::Chunk,
            b"SONDEWAL" => Self::Segment,
            b"SONDEMAN" => Self::Manifest,
            b"SONDECKP" => Self::Checkpoint,
            _ => return None,
        })
    }
}

fn describe(bytes: &[u8], name: &str, verify: bool) -> Result<Value, Damage> {
    match Kind::of(bytes).ok_or(FOREIGN)? {
        Kind::Chunk => chunk(bytes, verify),
        Kind::Segment => segment(bytes),
        Kind::Manifest => manifest(bytes),
        Kind::Checkpoint => checkpoint(bytes, name),
    }
}

fn chunk(bytes: &[u8], verify: bool) -> Result<Value, Damage> {
    let reader = ChunkReader::open(bytes)?;
    let root = reader.root();
    let (series, columns) = (reader.series()?, reader.columns()?);
    let columns: Vec<Value> =
        columns.iter().map(|column| pages(&reader, column, verify)).collect::<Result<_, Damage>>()?;
    Ok(json!({
        "file": "chunk",
        "id": root.id.0,
        "table": root.table.0,
        "range_ns": [root.range.start.as_nanos(), root.range.end.as_nanos()],
        "seq": [root.seq.first.0, root.seq.last.0],
        "rows": root.rows,
        "series": series.len(),
        "series_with_statistics": long_series(&reader, &series)?,
        "bytes": bytes.len(),
        "checksums": if verify { "all good, every page decodes" } else { "all good" },
        "columns": columns,
    }))
}

/// How many series have statistics of their own.
fn long_series(reader: &ChunkReader<'_>, series: &[SeriesRun]) -> Result<usize, Damage> {
    let mut first = true;
    let columns = reader.run_statistics(series, |_| std::mem::replace(&mut first, false))?;
    Ok(columns.first().map_or(0, |column| column.runs.len()))
}

fn pages(reader: &ChunkReader<'_>, column: &ColumnPages, verify: bool) -> Result<Value, Damage> {
    let (mut bytes, mut values, mut nulls, mut rows) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut codecs: BTreeMap<String, Share> = BTreeMap::new();
    for meta in column.pages.iter().flatten() {
        let page = reader.page(meta)?;
        if verify {
            page.decode()?;
        }
        bytes += u64::from(meta.len);
        rows += u64::from(meta.stats.rows);
        values += u64::from(meta.stats.present);
        nulls += u64::from(meta.stats.nulls);
        for (codec, of_page) in codecs_of(&page)? {
            let all = codecs.entry(format!("{codec:?}")).or_default();
            *all = all.plus(of_page);
        }
    }
    let codecs: serde_json::Map<String, Value> = codecs
        .into_iter()
        .map(|(codec, Share { vectors, bytes, values })| {
            let bits = bits_per_value(bytes as u64, values as u64);
            (codec, json!({ "vectors": vectors, "bytes": bytes, "bits_per_value": bits }))
        })
        .collect();
    Ok(json!({
        "id": column.id.0,
        "type": if column.id.0 == 0 { "time" } else { column.kind.sql_name() },
        "pages": column.pages.iter().flatten().count(),
        "rows": rows,
        "values": values,
        "nulls": nulls,
        "bytes": bytes,
        "bits_per_value": bits_per_value(bytes, values),
        "range": range(column),
        "sum": sum(column),
        "codecs": codecs,
    }))
}

/// What one codec has of a column.
#[derive(Clone, Copy, Default)]
struct Share {
    vectors: usize,
    bytes: usize,
    values: usize,
}

impl Share {
    fn plus(self, other: Self) -> Self {
        Self {
            vectors: self.vectors + other.vectors,
            bytes: self.bytes + other.bytes,
            values: self.values + other.values,
        }
    }
}

/// The codec of each vector of a page.
fn codecs_of(page: &Page<'_>) -> Result<Vec<(CodecId, Share)>, FormatError> {
    let share = |vector| {
        let (codec, bytes, values) = page.codec(vector)?;
        Ok((codec, Share { vectors: 1, bytes, values }))
    };
    (0..page.vectors()).map(share).collect()
}

/// To two decimals.
fn bits_per_value(bytes: u64, values: u64) -> f64 {
    (bytes as f64 * 8.0 / values.max(1) as f64 * 100.0).round() / 100.0
}

/// The sum of the pages that have one, which are those of one series.
fn sum(column: &ColumnPages) -> Value {
    let sums = column.pages.iter().flatten().filter_map(|page| page.stats.sum);
    let add = |total: Option<f64>, sum| {
        let sum = match sum {
            Sum::Float { sum, compensation } => sum + compensation,
            Sum::Int(sum) => sum as f64,
        };
        Some(total.unwrap_or_default() + sum)
    };
    sums.fold(None, add).into()
}

/// Smallest and largest value of the column; strings have none.
fn range(column: &ColumnPages) -> Value {
    let ranges: Vec<(u64, u64)> = column.pages.iter().flatten().filter_map(|page| page.stats.range).collect();
    let low = |key: fn(u64) -> f64| ranges.iter().map(|(low, _)| key(*low)).fold(f64::INFINITY, f64::min);
    let high =
        |key: fn(u64) -> f64| ranges.iter().map(|(_, high)| key(*high)).fold(f64::NEG_INFINITY, f64::max);
    if ranges.is_empty() {
        return Value::Null;
    }
    match column.kind {
        PhysicalType::Float64 => json!([low(f64::from_bits), high(f64::from_bits)]),
        PhysicalType::Int64 => {
            let values = || ranges.iter().flat_map(|(low, high)| [low.cast_signed(), high.cast_signed()]);
            json!([values().min(), values().max()])
        }
        _ => json!([ranges.iter().map(|range| range.0).min(), ranges.iter().map(|range| range.1).max()]),
    }
}

fn segment(bytes: &[u8]) -> Result<Value, Damage> {
    let head = SegmentHeader::decode(bytes)?;
    let (mut offset, mut frames, mut last) = (SEGMENT_HEADER_LEN as u64, 0_u64, 0);
    let mut records: BTreeMap<&str, u64> = BTreeMap::new();
    let mut rows = 0_u64;
    let end = loop {
        match FrameScan::at(head.number, bytes, offset) {
            FrameScan::Frame(frame) => {
                for record in frame.records() {
                    let kind = match record? {
                        Record::Rows(record) => {
                            rows += record.times.len() as u64;
                            "rows"
                        }
                        Record::State(_) => "state",
                        Record::Catalog(_) => "catalog",
                        Record::Series(_) => "series",
                        Record::Message(_) => "message",
                        Record::Tombstone(_) => "tombstone",
                    };
                    *records.entry(kind).or_default() += 1;
                }
                (offset, frames, last) = (frame.end, frames + 1, frame.seq.last.0);
            }
            FrameScan::End => break Value::from("zeroes, as nothing was written behind it"),
            // The last segment of a crash ends so; elsewhere it is damage.
            FrameScan::Bad(error) => break Value::from(format!("torn or damaged: {error}")),
        }
    };
    Ok(json!({
        "file": "log segment",
        "number": head.number,
        "seq": [head.first_seq.0, last],
        "frames": frames,
        "records": records,
        "rows": rows,
        "bytes": bytes.len(),
        "written": offset,
        "end": end,
    }))
}

fn manifest(bytes: &[u8]) -> Result<Value, Damage> {
    let head = ManifestHeader::decode(bytes)?;
    let (edits, end) = decode_edits(head.number, bytes)?;
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    for edit in &edits {
        let kind = match edit {
            Edit::AddChunk(_) => "add_chunk",
            Edit::RemoveChunk(_) => "remove_chunk",
            Edit::FlushedTo(_) => "flushed_to",
            Edit::Checkpoint(_) => "checkpoint",
            Edit::AddCold(_) => "add_cold",
            Edit::RemoveCold { .. } => "remove_cold",
            Edit::NextChunk(_) => "next_chunk",
            Edit::Purged { .. } => "purged",
        };
        *kinds.entry(kind).or_default() += 1;
    }
    Ok(
        json!({ "file": "manifest", "number": head.number, "edits": kinds, "bytes": bytes.len(), "written": end }),
    )
}

fn checkpoint(bytes: &[u8], name: &str) -> Result<Value, Damage> {
    let checkpoint = Checkpoint::decode(bytes)?;
    let series: usize = checkpoint.series.iter().map(|table| table.keys.len()).sum();
    Ok(json!({
        "file": "checkpoint",
        "number": path::parse_checkpoint(name),
        "position": checkpoint.position.0,
        "catalog_changes": checkpoint.catalog.len(),
        "series": series,
        "state_entries": checkpoint.state.len(),
        "bytes": bytes.len(),
        "checksums": "all good",
    }))
}

/// A value as indented lines; what is short stays on one.
fn print(value: &Value, depth: usize, lines: &mut Vec<String>) {
    let indent = "  ".repeat(depth);
    let Value::Object(object) = value else { return lines.push(format!("{indent}{value}")) };
    for (key, value) in object {
        match value {
            Value::Object(_) if value.to_string().len() > 100 => {
                lines.push(format!("{indent}{key}"));
                print(value, depth + 1, lines);
            }
            Value::Array(list) if list.iter().any(Value::is_object) => {
                lines.push(format!("{indent}{key}"));
                list.iter().for_each(|item| lines.push(format!("{indent}  {}", one_line(item))));
            }
            Value::String(text) => lines.push(format!("{indent}{key:<14} {text}")),
            _ => lines.push(format!("{indent}{key:<14} {value}")),
        }
    }
}

fn one_line(value: &Value) -> String {
    let Value::Object(object) = value else { return value.to_string() };
    let parts = object.iter().map(|(key, value)| match value {
        Value::String(text) => format!("{key} {text}"),
        Value::Object(_) => format!("{key} [{}]", one_line(value)),
        _ => format!("{key} {value}"),
    });
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_is_said_so() {
        for bytes in
            [&b""[..], b"\xff\xd8\xff\xe0 a picture", b"SONDECHK", b"SONDEWALxx", b"SONDEMAN", b"SONDECKP"]
        {
            let error = describe(bytes, "x", true).map(drop);
            assert!(error.is_err_and(|error| !error.to_string().contains('\n')));
        }
    }
}
