//! `sonde backup`: by the running server, or of the directory of a stopped one; and what a destination has.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use sonde_engine::backup::{BackupInfo, BackupStore, Listing, back_up_stopped, list, prune, rfc3339, verify};
use sonde_engine::{Error, path};
use tokio::runtime::Runtime;

use super::client::{Client, cut_off};
use super::output::say;
use super::{Exit, Failure, Result, ServerArgs};
use crate::config::Config;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct BackupArgs {
    #[command(subcommand)]
    command: Option<BackupCommand>,
    /// The directory that backups go to, as the server sees it: one of its `backup.locations`, or below one.
    #[arg(required = true)]
    destination: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Subcommand)]
enum BackupCommand {
    /// List the backups of a destination, and the instants that can be restored.
    List {
        /// The directory of the backups.
        destination: String,
        /// One JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Remove old backups of a destination, and what only they need.
    Prune {
        /// The directory of the backups.
        destination: String,
        /// How many of the newest stay.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        keep: u32,
    },
    /// Read every object of every backup of a destination and check it; changes nothing.
    Verify {
        /// The directory of the backups.
        destination: String,
        /// Only this backup.
        #[arg(long)]
        backup: Option<String>,
        /// One JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(args: &BackupArgs) -> Result<()> {
    match (&args.command, &args.destination) {
        (Some(BackupCommand::List { destination, json }), _) => show(destination, *json),
        (Some(BackupCommand::Verify { destination, backup, json }), _) => {
            check(destination, backup.as_deref(), *json)
        }
        (Some(BackupCommand::Prune { destination, keep }), _) => remove_old(destination, *keep),
        (None, Some(destination)) => make(&directory(destination)?, &args.server),
        (None, None) => Err(Failure::new(Exit::Usage, "where to? sonde backup DESTINATION")),
    }
}

/// The exit code that says what failed.
pub(super) fn failure(error: Error) -> Failure {
    let exit = match error {
        Error::Corrupt { .. } | Error::BadBackup { .. } | Error::Layout { .. } => Exit::BadData,
        Error::Io { .. } | Error::Full(_) | Error::Cold(_) | Error::Locked { .. } | Error::Failed(_) => {
            Exit::Io
        }
        _ => Exit::Failed,
    };
    Failure::new(exit, error.to_string())
}

/// The absolute path of a directory that was given as one, or as a URL.
fn directory(destination: &str) -> Result<PathBuf> {
    let path = match destination.split_once("://") {
        None => destination,
        Some(("file", path)) => path,
        Some((scheme, _)) => {
            let text = format!("this build has no {scheme}:// store; a directory or file:// URL is expected");
            return Err(Failure::new(Exit::Usage, text));
        }
    };
    std::path::absolute(path).map_err(|error| Failure::new(Exit::Usage, format!("'{destination}': {error}")))
}

/// A destination, with what runs its requests.
pub(super) struct Destination {
    pub(super) store: BackupStore,
    /// Behind the store: it has to outlive it.
    _runtime: Runtime,
}

impl Destination {
    pub(super) fn open(directory: &Path, create: bool) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(Exit::Io, format!("start a thread: {error}")))?;
        let store = BackupStore::local(directory, create, runtime.handle().clone()).map_err(failure)?;
        Ok(Self { store, _runtime: runtime })
    }

    /// One that is there already.
    pub(super) fn find(destination: &str) -> Result<Self> {
        Self::open(&directory(destination)?, false)
    }
}

fn make(directory: &Path, args: &ServerArgs) -> Result<()> {
    let is_named = args.url.is_some() || std::env::var_os("SONDE_URL").is_some_and(|url| !url.is_empty());
    match &args.config.data_dir {
        Some(data_dir) if !is_named && !has_server(data_dir) => {
            let config = Config::load(&args.config, true)?;
            let to = Destination::open(directory, true)?;
            let name = directory.to_string_lossy();
            let report = back_up_stopped(&config.data_dir, Some(&config.cold_dir), &to.store, &name);
            say(report.map_err(failure)?)
        }
        _ => by_server(&Client::find(args)?, directory),
    }
}

/// Whether a server has the directory.
fn has_server(data_dir: &Path) -> bool {
    File::open(data_dir.join(path::LOCK)).is_ok_and(|lock| lock.try_lock_shared().is_err())
}

fn by_server(client: &Client, directory: &Path) -> Result<()> {
    let statement = format!("BACKUP TO '{}'", directory.to_string_lossy().replace('\'', "''"));
    let headers = [("accept", "application/json"), ("content-type", "text/plain")];
    let reply = client.post("/api/v1/sql", &headers, statement.as_bytes())?;
    let status = reply.status;
    let mut body = reply.ok().map_err(|failure| match status {
        // The server could not read or write a file.
        500 => Failure::new(Exit::Io, failure.text),
        _ => failure,
    })?;
    let mut text = String::new();
    body.read_to_string(&mut text).map_err(cut_off)?;
    let answer: serde_json::Value = serde_json::from_str(&text).map_err(cut_off)?;
    let said = answer.pointer("/rows/0/0").and_then(|cell| cell.as_str());
    say(said.ok_or_else(|| Failure::new(Exit::Failed, format!("the answer is not understood: {text}")))?)
}

fn show(destination: &str, as_json: bool) -> Result<()> {
    let to = Destination::find(destination)?;
    let listing = list(&to.store).map_err(failure)?;
    if as_json {
        say(listing_json(&listing))?
    } else {
        print(&listing)?
    }
    match listing.unreadable.as_slice() {
        [] => Ok(()),
        some => Err(Failure::new(Exit::BadData, format!("{} backups cannot be read: see above", some.len()))),
    }
}

fn listing_json(listing: &Listing) -> serde_json::Value {
    let backup = |backup: &BackupInfo| {
        json!({
            "id": backup.id,
            "time": rfc3339(backup.time),
            "seq": backup.seq.0,
            "bytes": backup.bytes,
            "own_bytes": backup.own_bytes,
            "since": backup.since,
            "cold_elsewhere": backup.cold_elsewhere,
            "data_dir": backup.data_dir,
            "sonde": backup.sonde,
        })
    };
    let unreadable = |(id, why): &(String, String)| json!({ "id": id, "error": why });
    let range = |range: &sonde_engine::backup::Range| {
        json!({
            "from": rfc3339(range.first.0),
            "from_seq": range.first.1.0,
            "to": rfc3339(range.last.0),
            "to_seq": range.last.1.0,
        })
    };
    json!({
        "backups": listing.backups.iter().map(backup).collect::<Vec<_>>(),
        "unreadable": listing.unreadable.iter().map(unreadable).collect::<Vec<_>>(),
        "restorable": listing.ranges().iter().map(range).collect::<Vec<_>>(),
    })
}

fn print(listing: &Listing) -> Result<()> {
    say(format_args!(
        "{:<25} {:<30} {:>12} {:>14} {:>14}  SINCE",
        "BACKUP", "TIME", "SEQ", "BYTES", "OWN BYTES"
    ))?;
    for backup in &listing.backups {
        let BackupInfo { id, seq, bytes, own_bytes, since, .. } = backup;
        let (time, since) = (rfc3339(backup.time), since.as_deref().unwrap_or("-"));
        say(format_args!("{id:<25} {time:<30} {:>12} {bytes:>14} {own_bytes:>14}  {since}", seq.0))?;
    }
    listing.unreadable.iter().try_for_each(|(id, why)| say(format_args!("{id:<25} {why}")))?;
    listing.ranges().iter().try_for_each(|range| say(format_args!("restorable: {range}")))
}

fn remove_old(destination: &str, keep: u32) -> Result<()> {
    let to = Destination::find(destination)?;
    let pruned = prune(&to.store, keep as usize).map_err(failure)?;
    pruned.backups.iter().try_for_each(|id| say(format_args!("removed {id}")))?;
    say(format_args!("{} backups removed, {} bytes freed", pruned.backups.len(), pruned.bytes))
}

fn check(destination: &str, backup: Option<&str>, as_json: bool) -> Result<()> {
    let to = Destination::find(destination)?;
    let found = verify(&to.store, backup).map_err(failure)?;
    let (objects, bytes) = found.objects;
    if as_json {
        let damage = &found.damage;
        say(json!({ "backups": found.backups, "objects": objects, "bytes": bytes, "damage": damage }))?;
    } else {
        found.damage.iter().try_for_each(say)?;
        say(format_args!("{} backups, {objects} objects, {bytes} bytes read", found.backups))?;
    }
    match found.damage.len() {
        0 => Ok(()),
        count => Err(Failure::new(Exit::BadData, format!("{count} findings: see above"))),
    }
}
