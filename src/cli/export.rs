//! `sonde export --query ... --output file.parquet`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::client::{Client, copy_body};
use super::output::say;
use super::{Exit, ExportArgs, Failure, Result};

pub(super) fn run(args: &ExportArgs) -> Result<()> {
    let client = Client::find(&args.server)?;
    let mut body = client.sql(&args.query, "application/vnd.apache.parquet", None)?;
    let tmp = args.output.with_extension("partial");
    match write_file(&mut body, &tmp, &args.output) {
        Ok(bytes) => say(format_args!("{bytes} bytes written to {}", args.output.display())),
        Err(failure) => {
            // What is there is no whole Parquet file.
            let _ = std::fs::remove_file(&tmp);
            Err(failure)
        }
    }
}

fn write_file(body: &mut dyn Read, tmp: &Path, output: &Path) -> Result<u64> {
    let unwritten =
        |error: std::io::Error| Failure::new(Exit::Io, format!("write {}: {error}", output.display()));
    let mut file = File::create(tmp).map_err(unwritten)?;
    let bytes = copy_body(body, &mut file, unwritten)?;
    file.sync_all().and_then(|()| std::fs::rename(tmp, output)).map_err(unwritten)?;
    Ok(bytes)
}
