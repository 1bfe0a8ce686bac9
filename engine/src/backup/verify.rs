//! Reads every object of every backup of a destination, and changes nothing.

use std::collections::BTreeMap;

use super::choose::list_in;
use super::log;
use super::manifest::{self, Manifest, manifest_of};
use super::store::{BackupStore, Content};
use crate::error::{Error, Result};
use crate::manifest::ManifestState;
use sonde_storage_format::path;

/// What was found of a destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Backups that were looked at.
    pub backups: usize,
    /// Objects that were read, each once, and their bytes.
    pub objects: (usize, u64),
    /// What is damaged or missing, each with the name of its object and of the backups that need it.
    pub damage: Vec<String>,
}

/// Verifies every backup of a destination, or one.
pub fn verify(store: &BackupStore, backup: Option<&str>) -> Result<Verified> {
    let objects = store.list()?;
    let listing = list_in(store, &objects)?;
    let mut found = Verified::default();
    let is_meant = |id: &str| backup.is_none_or(|backup| backup == id);
    for (id, what) in listing.unreadable.iter().filter(|(id, _)| is_meant(id)) {
        found.backups += 1;
        found.damage.push(format!("{id}: {}: {what}", manifest_of(id)));
    }
    // An object that many backups share is read once: the outcome by its name and what it should be.
    let mut known: BTreeMap<(String, String), Option<String>> = BTreeMap::new();
    for info in listing.backups.iter().filter(|info| is_meant(&info.id)) {
        let bytes = objects.get(&manifest_of(&info.id)).copied().unwrap_or_default();
        let manifest = manifest::load(store, &info.id, bytes)?;
        found.backups += 1;
        let before = found.damage.len();
        for (object, content) in manifest.objects() {
            let key = (object.to_owned(), content.sha256.clone());
            let damage = match known.get(&key) {
                Some(damage) => damage.clone(),
                None => {
                    found.objects = (found.objects.0 + 1, found.objects.1 + content.bytes);
                    let damage = read(store, object, &content)?;
                    known.insert(key, damage.clone());
                    damage
                }
            };
            found.damage.extend(damage.map(|damage| format!("{}: {damage}", info.id)));
        }
        if found.damage.len() == before {
            let disagreement = damage(agree(store, &manifest))?;
            found.damage.extend(disagreement.map(|what| format!("{}: {what}", info.id)));
        }
    }
    if let Some(backup) = backup.filter(|_| found.backups == 0) {
        return Err(Error::Backup(format!("there is no backup {backup}")));
    }
    Ok(found)
}

/// What is wrong with an object. Other errors than damage are those of the store as a whole.
fn read(store: &BackupStore, object: &str, content: &Content) -> Result<Option<String>> {
    damage(store.read(object, content.clone(), drop))
}

fn damage(outcome: Result<()>) -> Result<Option<String>> {
    match outcome {
        Ok(()) => Ok(None),
        Err(error @ Error::BadBackup { .. }) => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}

/// Fails unless the files are those that the manifest of the data directory names, and the log follows them.
fn agree(store: &BackupStore, backup: &Manifest) -> Result<()> {
    let wrong = |object: &str, what: String| Error::BadBackup { object: object.to_owned(), what };
    let own = manifest_of(&backup.id);
    let prefix = format!("{}/", path::MANIFEST_DIR);
    let file = backup.files.iter().find(|file| file.path.starts_with(&prefix));
    let file = file.ok_or_else(|| wrong(&own, "it has no manifest of a data directory".into()))?;
    let mut bytes = Vec::new();
    store.read(&file.object, file.content(), |part| bytes.extend(part))?;
    let decoded = ManifestState::decode(&bytes);
    let (state, _) = decoded.map_err(|error| wrong(&file.object, error.to_string()))?;
    let files: BTreeMap<&str, u64> =
        backup.files.iter().map(|file| (file.path.as_str(), file.bytes)).collect();
    for meta in state.chunks.values() {
        let name = format!("{}/{}", path::CHUNK_DIR, path::chunk(meta.id));
        if files.get(name.as_str()) != Some(&meta.bytes) {
            return Err(wrong(&own, format!("it has no {name} of {} bytes", meta.bytes)));
        }
    }
    if let Some(number) = state.checkpoint {
        let name = format!("{}/{}", path::STATE_DIR, path::checkpoint(number));
        if !files.contains_key(name.as_str()) {
            return Err(wrong(&own, format!("it has no {name}")));
        }
    }
    verify_log(store, backup)
}

/// Every frame of the log, from what is flushed to what the backup is of.
fn verify_log(store: &BackupStore, backup: &Manifest) -> Result<()> {
    let mut reached = backup.flushed_to.min(backup.parent.as_ref().map_or(u64::MAX, |parent| parent.seq));
    for segment in &backup.log {
        let mut bytes = Vec::new();
        for piece in &segment.pieces {
            store.read(&piece.object, piece.content(), |part| bytes.extend(part))?;
        }
        let object = segment.pieces.last().map(|piece| piece.object.clone()).unwrap_or_default();
        let wrong = |what: String| Error::BadBackup { object: object.clone(), what };
        let start = log::start(segment.number, &bytes).map_err(|error| wrong(error.to_string()))?;
        let end = log::walk(segment.number, &bytes, start, log::END, |_| Ok(true));
        let end = end.map_err(|error| wrong(error.to_string()))?;
        if (end.last_seq.0, end.offset) != (segment.last_seq, bytes.len() as u64)
            || start.last_seq.0 > reached
        {
            return Err(wrong(format!("its log ends at {}, not at {}", end.last_seq.0, segment.last_seq)));
        }
        reached = reached.max(end.last_seq.0);
    }
    if reached < backup.seq {
        return Err(Error::BadBackup {
            object: manifest_of(&backup.id),
            what: format!("its log ends at {reached}, before {}", backup.seq),
        });
    }
    Ok(())
}
