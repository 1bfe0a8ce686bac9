//! `sonde sql`: one statement, or a prompt.

use std::fs::File;
use std::io::{BufRead, IsTerminal, Read, Write};

use arrow::ipc::reader::StreamReader;
use arrow::record_batch::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use clap::ValueEnum;

use super::client::{Client, copy_body, cut_off};
use super::output::unwritten;
use super::{Exit, Failure, Result, SqlArgs};

/// How an answer is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// A table for people.
    Table,
    /// Comma-separated values with a header.
    Csv,
    /// JSON with columns and rows.
    Json,
    /// One JSON object per line.
    Ndjson,
    /// Arrow IPC stream.
    Arrow,
    /// Parquet file.
    Parquet,
}

impl OutputFormat {
    fn accept(self) -> &'static str {
        match self {
            Self::Table | Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Csv => "text/csv",
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }
}

pub(super) fn run(args: &SqlArgs) -> Result<()> {
    let client = Client::find(&args.server)?;
    match &args.command {
        Some(sql) => answer(&client, sql, args),
        None => prompt(&client, args),
    }
}

fn answer(client: &Client, sql: &str, args: &SqlArgs) -> Result<()> {
    let body = client.sql(sql, args.format.accept(), args.database.as_deref())?;
    if let Some(path) = &args.output {
        let unwritten =
            |error: std::io::Error| Failure::new(Exit::Io, format!("write {}: {error}", path.display()));
        let mut file = File::create(path).map_err(unwritten)?;
        return write_answer(body, args.format, &mut file, unwritten);
    }
    let binary = matches!(args.format, OutputFormat::Arrow | OutputFormat::Parquet);
    if binary && std::io::stdout().is_terminal() {
        return Err(Failure::new(Exit::Failed, "this format is not for a terminal: add --output FILE"));
    }
    write_answer(body, args.format, &mut std::io::stdout().lock(), unwritten)
}

fn write_answer(
    mut body: Box<dyn Read>,
    format: OutputFormat,
    out: &mut dyn Write,
    unwritten: impl Fn(std::io::Error) -> Failure,
) -> Result<()> {
    if format == OutputFormat::Table {
        writeln!(out, "{}", table(body)?).map_err(&unwritten)?;
    } else {
        copy_body(&mut body, out, &unwritten)?;
    }
    out.flush().map_err(&unwritten)
}

fn table(body: Box<dyn Read>) -> Result<String> {
    let reader = StreamReader::try_new(body, None).map_err(cut_off)?;
    let schema = reader.schema();
    let mut batches: Vec<RecordBatch> = reader.collect::<Result<_, _>>().map_err(cut_off)?;
    if batches.is_empty() {
        batches.push(RecordBatch::new_empty(schema));
    }
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let table = pretty_format_batches(&batches).map_err(cut_off)?;
    Ok(format!("{table}\n({rows} rows)"))
}

/// Reads statements, each up to its semicolon, until the end of the input.
fn prompt(client: &Client, args: &SqlArgs) -> Result<()> {
    let interactive = std::io::stdin().is_terminal();
    let mut statement = String::new();
    let show_prompt = |text: &str| -> Result<()> {
        if interactive {
            let mut out = std::io::stdout().lock();
            write!(out, "{text}").and_then(|()| out.flush()).map_err(unwritten)?;
        }
        Ok(())
    };
    show_prompt("sonde> ")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if statement.trim().is_empty() && matches!(line.trim(), "quit" | "exit" | "\\q") {
            return Ok(());
        }
        statement.push_str(&line);
        statement.push('\n');
        if !line.trim_end().ends_with(';') {
            show_prompt("   ... ")?;
            continue;
        }
        run_one(client, &std::mem::take(&mut statement), args, interactive)?;
        show_prompt("sonde> ")?;
    }
    run_one(client, &statement, args, interactive)
}

/// At a prompt an error is shown and the next statement awaited; a script ends with it.
fn run_one(client: &Client, statement: &str, args: &SqlArgs, interactive: bool) -> Result<()> {
    if statement.trim().is_empty() {
        return Ok(());
    }
    match answer(client, statement, args) {
        Err(failure) if interactive && failure.exit == Exit::Failed => {
            eprintln!("sonde: {}", failure.text);
            Ok(())
        }
        other => other,
    }
}
