//! `sonde inspect`: what a file of the data directory holds, and whether all of it is as it was written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use sonde_storage_format::{
    Checkpoint, ChunkReader, ColumnPages, Edit, FormatError, FrameScan, ManifestHeader, PageLayout,
    PhysicalType, Record, SEGMENT_HEADER_LEN, SegmentHeader, decode_edits, path,
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
}

pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let bytes = std::fs::read(&args.file)
        .map_err(|error| Failure::new(Exit::Io, format!("{}: {error}", args.file.display())))?;
    let name = args.file.file_name().unwrap_or_default().to_string_lossy();
    let found = describe(&bytes, &name, args.verify)
        .map_err(|error| Failure::new(Exit::BadData, format!("{}: {error}", args.file.display())))?;
    if args.json {
        return say(found);
    }
    let mut lines = Vec::new();
    print(&found, 0, &mut lines);
    lines.into_iter().try_for_each(say)
}

/// Why a file cannot be described.
#[derive(Debug, thiserror::Error)]
enum Damage {
    #[error("{0}")]
    Format(#[from] FormatError),
    #[error("not a file of sonde: it begins with none of SONDECHK, SONDEWAL, SONDEMAN, SONDECKP")]
    Foreign,
}

fn describe(bytes: &[u8], name: &str, verify: bool) -> Result<Value, Damage> {
    match bytes.get(..8) {
        Some(b"SONDECHK") => chunk(bytes, verify),
        Some(b"SONDEWAL") => segment(bytes),
        Some(b"SONDEMAN") => manifest(bytes),
        Some(b"SONDECKP") => checkpoint(bytes, name),
        _ => Err(Damage::Foreign),
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
        "bytes": bytes.len(),
        "checksums": if verify { "all good, every page decodes" } else { "all good" },
        "columns": columns,
    }))
}

fn pages(reader: &ChunkReader<'_>, column: &ColumnPages, verify: bool) -> Result<Value, Damage> {
    let (mut bytes, mut values, mut nulls, mut rows) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut codecs: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for meta in column.pages.iter().flatten() {
        let layout = PageLayout::of(reader.page_bytes(meta)?)?;
        if verify {
            reader.page(meta)?;
        }
        bytes += u64::from(meta.len);
        rows += u64::from(meta.stats.rows);
        values += u64::from(meta.stats.present);
        nulls += u64::from(meta.stats.nulls);
        for (codec, count, len) in layout.codecs {
            let of_codec = codecs.entry(format!("{codec:?}")).or_default();
            *of_codec = (of_codec.0 + count, of_codec.1 + len);
        }
    }
    let codecs: serde_json::Map<String, Value> = codecs
        .into_iter()
        .map(|(codec, (count, len))| (codec, json!({ "vectors": count, "bytes": len })))
        .collect();
    Ok(json!({
        "id": column.id.0,
        "type": if column.id.0 == 0 { "time" } else { column.kind.sql_name() },
        "pages": column.pages.iter().flatten().count(),
        "rows": rows,
        "values": values,
        "nulls": nulls,
        "bytes": bytes,
        "bits_per_value": (bytes as f64 * 8.0 / values.max(1) as f64 * 100.0).round() / 100.0,
        "range": range(column),
        "codecs": codecs,
    }))
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
