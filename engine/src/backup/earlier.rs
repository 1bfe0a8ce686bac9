//! What a destination has already, and what goes: leftovers of backups that were not finished, and old backups.
//!
//! # Invariants
//! - No object goes that a manifest names. Where a manifest cannot be read nothing goes, for nobody knows what it names.
//! - A backup that goes loses its manifest first: from then on it is none.

use std::collections::{BTreeMap, BTreeSet};

use super::choose::list_in;
use super::hold::Last;
use super::manifest::{self, Manifest, id_of, manifest_id, manifest_of};
use super::store::BackupStore;
use crate::error::{Error, Result};

/// What a destination has already.
pub(super) struct Earlier {
    /// Every object and its bytes.
    pub(super) objects: BTreeMap<String, u64>,
    /// The newest backup.
    pub(super) newest: Option<Manifest>,
}

impl Earlier {
    /// Looks at every backup of a destination, and removes what is left of some that were not finished.
    pub(super) fn read(store: &BackupStore, go_on: &dyn Fn() -> Result<()>) -> Result<Self> {
        let mut objects = store.list()?;
        let ids: Vec<String> =
            objects.keys().filter_map(|name| manifest_id(name)).map(str::to_owned).collect();
        let mut named: BTreeSet<String> = ids.iter().map(|id| manifest_of(id)).collect();
        let mut newest: Option<Manifest> = None;
        let mut is_known = true;
        for id in &ids {
            go_on()?;
            let bytes = objects.get(&manifest_of(id)).copied().unwrap_or_default();
            match manifest::load(store, id, bytes) {
                Ok(manifest) => {
                    named.extend(manifest.objects().map(|(object, _)| object.to_owned()));
                    if newest.as_ref().is_none_or(|newest| newest.time_ns <= manifest.time_ns) {
                        newest = Some(manifest);
                    }
                }
                Err(error @ Error::BadBackup { .. }) => {
                    // Nobody knows which objects it names.
                    is_known = false;
                    tracing::warn!(%error, "an earlier backup cannot be used; nothing is tidied up");
                }
                Err(error) => return Err(error),
            }
        }
        if is_known {
            remove_unnamed(store, &mut objects, &named)?;
        }
        Ok(Self { objects, newest })
    }

    /// The manifest of a backup, if it is here and can be read.
    pub(super) fn load(&self, store: &BackupStore, last: Option<&Last>) -> Result<Option<Manifest>> {
        let Some(last) = last else { return Ok(None) };
        let Some(bytes) = self.objects.get(&manifest_of(&last.id)) else { return Ok(None) };
        match manifest::load(store, &last.id, *bytes) {
            Err(Error::BadBackup { .. }) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Whether an object is here with the bytes that it should have.
    pub(super) fn has(&self, object: &str, bytes: u64) -> bool {
        self.objects.get(object) == Some(&bytes)
    }
}

/// Removes the objects of backups that no manifest names: what a crash, a failure or a cancellation left.
fn remove_unnamed(
    store: &BackupStore,
    objects: &mut BTreeMap<String, u64>,
    named: &BTreeSet<String>,
) -> Result<()> {
    let unnamed = objects.keys().filter(|name| id_of(name).is_some() && !named.contains(*name));
    let unnamed: Vec<String> = unnamed.cloned().collect();
    for object in &unnamed {
        store.remove(object)?;
        objects.remove(object);
    }
    let used: BTreeSet<&str> = objects.keys().filter_map(|name| id_of(name)).collect();
    let dirs = store.dirs()?;
    for dir in dirs.iter().filter(|dir| manifest::is_id(dir) && !used.contains(dir.as_str())) {
        store.remove_dir(dir)?;
        tracing::info!(backup = dir, "removed what was left of a backup that was not finished");
    }
    Ok(())
}

/// What was removed of a destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The backups, oldest first.
    pub backups: Vec<String>,
    /// Bytes of the objects that nothing needs any more.
    pub bytes: u64,
}

/// Removes all but the newest backups of a destination, `keep` of them, and the objects that those do not need.
pub fn prune(store: &BackupStore, keep: usize) -> Result<Pruned> {
    let _lock = store.lock()?;
    let objects = store.list()?;
    let listing = list_in(store, &objects)?;
    if let Some((_, why)) = listing.unreadable.first() {
        return Err(Error::Backup(format!("nothing is removed, for it is not known what is needed: {why}")));
    }
    if keep == 0 {
        return Err(Error::Backup(
            "one backup at least is kept; remove the whole directory to remove all".into(),
        ));
    }
    let old = listing.backups.len().saturating_sub(keep);
    let mut pruned = Pruned::default();
    for backup in listing.backups.iter().take(old) {
        let manifest = manifest_of(&backup.id);
        store.remove(&manifest)?;
        store.sync([manifest.as_str()])?;
        pruned.backups.push(backup.id.clone());
    }
    let left = Earlier::read(store, &|| Ok(()))?;
    let bytes = |objects: &BTreeMap<String, u64>| objects.values().sum::<u64>();
    pruned.bytes = bytes(&objects).saturating_sub(bytes(&left.objects));
    Ok(pruned)
}
