//! `sonde restore`: a data directory from a backup.

use std::path::PathBuf;

use arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;
use clap::Args;
use sonde_engine::backup::{RestoreRequest, To, restore};
use sonde_engine::{LocalStorage, SeqNo, Timestamp};

use super::backup::{Destination, failure};
use super::output::{say, shell_path};
use super::{Exit, Failure, Result};

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// The directory of the backups.
    destination: String,
    /// The data directory to make: missing, or empty.
    #[arg(long)]
    data_dir: PathBuf,
    /// What was committed up to this instant, for example 2026-11-20T10:00:00Z; exact to a second.
    #[arg(long, value_name = "TIME", conflicts_with = "to_seq")]
    to: Option<String>,
    /// Commits up to this sequence number.
    #[arg(long, value_name = "SEQ")]
    to_seq: Option<u64>,
    /// This backup, or an instant between it and those before it; else the newest that reaches the instant.
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
}

pub(super) fn run(args: &RestoreArgs) -> Result<()> {
    let to = match (&args.to, args.to_seq) {
        (Some(time), _) => To::Time(instant(time)?),
        (None, Some(seq)) => To::Seq(SeqNo(seq)),
        (None, None) => To::Latest,
    };
    let from = Destination::find(&args.destination)?;
    let request = RestoreRequest { data_dir: args.data_dir.clone(), to, backup: args.backup.clone() };
    let restored = restore(&from.store, &LocalStorage, &request).map_err(failure)?;
    say(format_args!("restored {restored}"))?;
    if restored.cold_elsewhere > 0 {
        let count = restored.cold_elsewhere;
        say(format_args!(
            "{count} cold files are not in the backup: cold.url has to name the store that has them"
        ))?;
    }
    say(format_args!("sonde serve --data-dir {}", shell_path(&args.data_dir)))
}

fn instant(text: &str) -> Result<Timestamp> {
    let nanos = string_to_timestamp_nanos(text).map_err(|_| {
        Failure::new(Exit::Usage, format!("--to {text}: expected a time such as 2026-11-20T10:00:00Z"))
    })?;
    Ok(Timestamp::from_nanos(nanos))
}
