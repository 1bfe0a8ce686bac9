//! Objects whose fate is open: about to be uploaded, or about to be replaced. Each has a record in the log before
//! anything happens to it, so that a crash leaves none behind that nobody knows of.
//!
//! # Invariants
//! - An object that is not named by the manifest has a record, from before its upload until after its deletion.
//! - Only objects with a record are deleted. The store is never listed: others may keep objects in it.
//! - An object is deleted only once the manifest on disk does not name it and no reader of this process has it.
//! - The job thread alone calls these functions, so no upload is under way while it cleans up.

use std::collections::BTreeSet;
use std::sync::Arc;

use object_store::{ObjectStoreExt, path::Path as ObjectPath};
use sonde_storage_format::{ColdFile, State};

use crate::cold::write::sync_directory_of;
use crate::cold::{ColdOptions, store_error};
use crate::engine::Inner;
use crate::error::Result;

/// The namespace of the records; a key is an object's path.
const NAMESPACE: &str = "cold.pending";

fn record(path: &str, value: Option<Vec<u8>>) -> State {
    State { namespace: NAMESPACE.into(), key: path.as_bytes().to_vec(), value }
}

/// Logs that the fate of these objects is open; returns once that is durable.
pub(crate) fn note<'a>(inner: &Inner, paths: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let records: Vec<State> = paths.into_iter().map(|path| record(path, Some(Vec::new()))).collect();
    if records.is_empty() { Ok(()) } else { inner.commit_state(records) }
}

/// Settles the fate of every object with a record: deletes those that the manifest does not name, and forgets the
/// records. What a reader has open waits: `replaced` are the files that edits took out, by which readers are known.
pub(crate) fn clean_up(inner: &Inner, replaced: &mut Vec<Arc<ColdFile>>) -> Result<()> {
    replaced.retain(|file| Arc::strong_count(file) > 1);
    let Some(cold) = &inner.options.cold else { return Ok(()) };
    let mut open: BTreeSet<String> = paths(inner).collect();
    open.retain(|path| replaced.iter().all(|file| file.path != *path));
    if open.is_empty() {
        return Ok(());
    }
    let kept = named(inner, &open)?;
    let mut failed = None;
    let mut settled = Vec::new();
    for path in open {
        let deleted = if kept.contains(&path) { Ok(()) } else { delete(cold, &path) };
        match deleted {
            Ok(()) => settled.push(record(&path, None)),
            Err(error) => failed = Some(error),
        }
    }
    if !settled.is_empty() {
        inner.commit_state(settled)?;
    }
    failed.map_or(Ok(()), Err)
}

fn paths(inner: &Inner) -> impl Iterator<Item = String> {
    let keys = inner.state.list(NAMESPACE).into_iter().map(|(key, _)| key);
    keys.filter_map(|key| String::from_utf8(key).ok())
}

/// Those of the objects that the manifest names, on disk too.
fn named(inner: &Inner, open: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    let mut manifest = inner.manifest.lock();
    manifest.settle()?;
    let files = manifest.state.cold.values().filter(|file| open.contains(&file.path));
    Ok(files.map(|file| file.path.clone()).collect())
}

/// Deletes an object for good; one that is not there is as good as deleted.
fn delete(cold: &ColdOptions, path: &str) -> Result<()> {
    let object = ObjectPath::from(path);
    match cold.runtime.block_on(cold.store.delete(&object)) {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => {
            let error = store_error(error);
            tracing::warn!(path, %error, "cannot delete a file of the cold tier");
            return Err(error);
        }
    }
    // Else a loss of power brings it back once its record is gone.
    match &cold.directory {
        Some(root) => sync_directory_of(root, object.as_ref()),
        None => Ok(()),
    }
}
