//! `sonde bench`: what the codecs make of the columns of a file, against zstd and Parquet; load for an MQTT broker.

mod input;
mod measure;
mod mqtt;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use self::input::load;
use self::measure::{Measured, measure};
use super::output::say;
use super::{Exit, Failure, Result};

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Bits per value and speed of every codec, on the columns of CSV, Parquet or line protocol files.
    Codecs(CodecsArgs),
    /// Load for any MQTT broker: throughput, latencies, what is lost, and what it costs the broker.
    Mqtt(Box<mqtt::MqttArgs>),
}

#[derive(Debug, Args)]
pub(super) struct CodecsArgs {
    /// A file: `.parquet`, `.lp` (line protocol), else CSV with a header; each may end with `.zst`.
    #[arg(long, required = true, num_args = 1..)]
    input: Vec<PathBuf>,
    /// One JSON document instead of a table.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Codecs(args) => codecs(args),
        BenchCommand::Mqtt(args) => mqtt::run(args),
    }
}

fn codecs(args: &CodecsArgs) -> Result<()> {
    let mut measured = Vec::new();
    for path in &args.input {
        for column in load(path)? {
            measured.push(measure(&column)?);
        }
    }
    if measured.is_empty() {
        return Err(Failure::new(Exit::BadData, "the files have no column with a value"));
    }
    if args.json {
        return say(
            json!({ "columns": measured.iter().map(to_json).collect::<Vec<_>>(), "mean": mean(&measured) }),
        );
    }
    print_table(&measured)
}

fn rounded(value: f64) -> Value {
    json!((value * 1000.0).round() / 1000.0)
}

/// The measures of a column, by their names in JSON.
fn figures(column: &Measured) -> Vec<(&'static str, f64)> {
    let mut figures = vec![
        ("hot_bits", column.hot.bits),
        ("compacted_bits", column.compacted.bits),
        ("zstd3_bits", column.zstd3.bits),
        ("parquet_zstd_bits", column.parquet_zstd_bits),
        ("hot_encode_gbps", column.hot.encode_gbps),
        ("hot_decode_gbps", column.hot.decode_gbps),
        ("compacted_encode_gbps", column.compacted.encode_gbps),
        ("compacted_decode_gbps", column.compacted.decode_gbps),
        ("zstd3_encode_gbps", column.zstd3.encode_gbps),
        ("zstd3_decode_gbps", column.zstd3.decode_gbps),
    ];
    figures.extend(column.codecs.iter().copied());
    figures
}

fn to_json(column: &Measured) -> Value {
    let mut object = Map::new();
    object.insert("name".into(), json!(column.name));
    object.insert("type".into(), json!(column.kind));
    object.insert("rows".into(), json!(column.rows));
    object.insert("values".into(), json!(column.values));
    object.extend(figures(column).into_iter().map(|(name, value)| (name.to_owned(), rounded(value))));
    Value::Object(object)
}

/// Means over the float columns, each counting once.
fn mean(measured: &[Measured]) -> Value {
    let floats: Vec<_> = measured.iter().filter(|column| column.kind == "float64").map(figures).collect();
    let mut sums: Map<String, Value> = Map::new();
    let names = floats.iter().flatten().map(|(name, _)| *name);
    for name in names.collect::<std::collections::BTreeSet<_>>() {
        let of_name = || floats.iter().flatten().filter(|(known, _)| *known == name);
        let sum: f64 = of_name().map(|(_, value)| value).sum();
        sums.insert(name.to_owned(), rounded(sum / of_name().count() as f64));
    }
    sums.insert("float_columns".into(), json!(floats.len()));
    Value::Object(sums)
}

fn print_table(measured: &[Measured]) -> Result<()> {
    say("bits per value; GB/s of 8-byte values, one thread: encode / decode")?;
    say(format_args!(
        "{:<28} {:<8} {:>9} {:>7} {:>7} {:>7} {:>8}  {:>13}  {:>13}  codecs",
        "column", "type", "values", "fast", "dense", "zstd-3", "parquet", "fast GB/s", "dense GB/s"
    ))?;
    for column in measured {
        let codecs: Vec<String> = column
            .codecs
            .iter()
            .map(|(name, bits)| format!("{} {bits:.2}", name.trim_end_matches("_bits")))
            .collect();
        let speed = |speed: &measure::Encoded| format!("{:.2} / {:.2}", speed.encode_gbps, speed.decode_gbps);
        say(format_args!(
            "{:<28} {:<8} {:>9} {:>7.2} {:>7.2} {:>7.2} {:>8.2}  {:>13}  {:>13}  {}",
            column.name,
            column.kind,
            column.values,
            column.hot.bits,
            column.compacted.bits,
            column.zstd3.bits,
            column.parquet_zstd_bits,
            speed(&column.hot),
            speed(&column.compacted),
            codecs.join(", ")
        ))?;
    }
    if let Value::Object(mean) = mean(measured) {
        let shown = mean.iter().filter(|(name, _)| name.ends_with("_bits"));
        let shown: Vec<String> =
            shown.map(|(name, value)| format!("{} {value}", name.trim_end_matches("_bits"))).collect();
        let count = mean.get("float_columns").cloned().unwrap_or_default();
        say(format_args!("mean of {count} float columns: {}", shown.join(", ")))?;
    }
    Ok(())
}
