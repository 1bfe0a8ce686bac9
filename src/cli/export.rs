//! `sonde export --query ... --output file.parquet`.

use std::fs::File;

use super::client::Client;
use super::{Exit, ExportArgs, Failure, Result};

pub(super) fn run(args: &ExportArgs) -> Result<()> {
    let client = Client::find(&args.server)?;
    let mut body = client.sql(&args.query, "application/vnd.apache.parquet", None)?;
    let tmp = args.output.with_extension("partial");
    let written = File::create(&tmp).and_then(|mut file| {
        let bytes = std::io::copy(&mut body, &mut file)?;
        file.sync_all()?;
        std::fs::rename(&tmp, &args.output)?;
        Ok(bytes)
    });
    match written {
        Ok(bytes) => {
            println!("{bytes} bytes written to {}", args.output.display());
            Ok(())
        }
        Err(error) => {
            // What is there is no whole Parquet file.
            let _ = std::fs::remove_file(&tmp);
            Err(Failure::new(Exit::Io, format!("write {}: {error}", args.output.display())))
        }
    }
}
