//! Checkpoints: everything that the log says besides rows, up to the position of a flush.
//!
//! # Invariants
//! - The flush thread alone writes them. One counts once the manifest names it, with the flush that it belongs to.
//! - The one that counts is never removed.

use std::path::PathBuf;
use std::sync::Arc;

use sonde_storage_format::{TableSeries, checkpoint_parts, path};

use crate::catalog::Table;
use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::flushes::FlushInput;

fn dir(inner: &Inner) -> PathBuf {
    inner.options.data_dir.join(path::STATE_DIR)
}

/// Writes the checkpoint of a flush; returns its number.
pub(crate) fn write(inner: &Inner, input: &FlushInput) -> Result<u64> {
    let number = inner.manifest.lock().state.checkpoint.unwrap_or_default() + 1;
    let keys = |(table, count): &(Arc<Table>, usize)| TableSeries {
        table: table.id(),
        keys: table.series().first_keys(*count),
    };
    // Shared with the tables, as far as they are in full blocks; and the file is not made as a whole: with millions of
    // series it is as large as they are.
    let series: Vec<TableSeries> = input.series.iter().map(keys).collect();
    let mut parts = checkpoint_parts(input.position, &input.catalog, &series, &input.state);
    let path = dir(inner).join(path::checkpoint(number));
    let written = inner.storage.write_whole(&path, &mut parts);
    written.map_err(|error| Error::io("write", &path, &error))?;
    Ok(number)
}

/// Removes those that count no longer.
pub(crate) fn remove_before(inner: &Inner, number: u64) {
    let dir = dir(inner);
    for name in inner.storage.list(&dir).unwrap_or_default() {
        if path::parse_checkpoint(&name).is_some_and(|known| known < number) {
            let path = dir.join(name);
            if let Err(error) = inner.storage.remove(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove an old checkpoint");
            }
        }
    }
}
