//! `BACKUP TO 'location'`.
//!
//! # Invariants
//! - A backup goes to one of the configured locations, or below one: a server does not write wherever a client says.

use sonde_engine::backup::BackupStore;
use tokio::runtime::Handle;

use super::copy::{path_within, refused};
use super::parser::Parser;
use super::run::blocking;
use crate::error::Result;
use crate::query_engine::QueryEngine;

pub(super) fn parse(parser: &mut Parser<'_>) -> Result<String> {
    parser.words(&["BACKUP", "TO"])?;
    parser.text("a location")
}

/// Backs up the engine, and returns when that is done. It goes on where the caller goes away; `KILL BACKUP` ends it.
pub(super) async fn run(query: &QueryEngine, location: &str) -> Result<String> {
    let options = query.options();
    let path = path_within(&options.backup_locations, location)
        .ok_or_else(|| refused("BACKUP", "backup.locations", &options.backup_locations, location))?;
    let runtime = options.backup_runtime.clone().unwrap_or_else(Handle::current);
    let engine = query.engine().clone();
    blocking(move || {
        let store = BackupStore::local(&path, true, runtime)?;
        Ok(engine.backup(&store, &path.to_string_lossy())?.to_string())
    })
    .await
}
