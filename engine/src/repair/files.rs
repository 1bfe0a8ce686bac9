//! What the manifest should say: which manifest can be trusted, and which files it may no longer name.
//!
//! # Invariants
//! - A manifest that lost edits is never believed as it is: what it does not know of would be removed at the next start.
//!   `rebuild.rs` completes it from the files that are there, or refuses.

use std::path::Path;
use std::sync::Arc;

use sonde_storage_format::{Checkpoint, path, salvage_edits};

use crate::doctor::check_chunk;
use crate::error::{Error, Result};
use crate::manifest::{self, ManifestState};
use crate::repair::rebuild::Rebuild;
use crate::repair::{Loss, Mended, is_version};
use crate::storage::Storage;

/// The files of a data directory besides the log.
pub(crate) struct Files<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) storage: &'a Arc<dyn Storage>,
    /// The manifest's, without what is lost.
    pub(crate) state: ManifestState,
    pub(crate) checkpoint: Checkpoint,
    /// Files that go to the quarantine and are taken out, relative to the directory.
    pub(crate) damaged: Vec<String>,
    pub(crate) losses: Vec<Loss>,
    pub(crate) mended: Vec<Mended>,
    /// The checkpoint that counts cannot be read.
    pub(crate) without_checkpoint: bool,
    /// The manifest lost edits, or may have.
    suspicious: bool,
    head_damage: Option<String>,
}

impl<'a> Files<'a> {
    pub(crate) fn read(dir: &'a Path, storage: &'a Arc<dyn Storage>) -> Result<Self> {
        let mut files = Self {
            dir,
            storage,
            state: ManifestState::default(),
            checkpoint: Checkpoint::default(),
            damaged: Vec::new(),
            losses: Vec::new(),
            mended: Vec::new(),
            without_checkpoint: false,
            suspicious: false,
            head_damage: None,
        };
        files.read_manifest()?;
        files.read_checkpoint()?;
        files.check_chunks()?;
        files.check_cold();
        Ok(files)
    }

    fn names(&self, part: &str) -> Result<Vec<String>> {
        let dir = self.dir.join(part);
        self.storage.list(&dir).map_err(|error| Error::io("list", &dir, &error))
    }

    fn read_manifest(&mut self) -> Result<()> {
        let dir = self.dir.join(path::MANIFEST_DIR);
        let Some(number) = manifest::numbers(self.storage.as_ref(), &dir)?.pop_last() else {
            let rest = [path::CHUNK_DIR, path::STATE_DIR].map(|part| self.names(part));
            return match rest.into_iter().collect::<Result<Vec<_>>>()?.iter().all(Vec::is_empty) {
                true => Ok(()),
                false => Err(unrepairable(
                    &dir,
                    "there are chunks or a checkpoint, and no manifest that names them",
                )),
            };
        };
        let name = format!("{}/{}", path::MANIFEST_DIR, path::manifest(number));
        let path = self.dir.join(&name);
        let (state, damage) = match manifest::read(self.storage.as_ref(), &dir) {
            Ok((state, None)) => (state, None),
            Ok((state, Some(_))) => (state, Some("it ends with an edit that is not whole".to_owned())),
            Err(Error::Corrupt { source, .. }) if !is_version(&source) => {
                let bytes = self.storage.read(&path).map_err(|error| Error::io("read", &path, &error))?;
                self.salvage(&path, number, &bytes, &source.to_string())?
            }
            Err(error) => return Err(error),
        };
        self.state = state;
        let rebuilt = Rebuild { dir: self.dir, storage: self.storage.as_ref(), manifest: &path }
            .run(&mut self.state, damage.as_deref())?;
        self.suspicious = damage.is_some() || rebuilt.is_some();
        if self.suspicious || self.head_damage.is_some() {
            let damage =
                damage.or(self.head_damage.take()).unwrap_or_else(|| "its last edits are gone".into());
            let rebuilt = rebuilt.unwrap_or_else(|| "nothing that counts is missing in it".into());
            self.mended
                .push(Mended { file: name.clone(), what: format!("written again ({damage}): {rebuilt}") });
            self.damaged.push(name);
        }
        Ok(())
    }

    /// What can be read of a damaged manifest, and what is the matter unless it is all of it.
    fn salvage(
        &mut self,
        path: &Path,
        number: u64,
        bytes: &[u8],
        damage: &str,
    ) -> Result<(ManifestState, Option<String>)> {
        let frames = salvage_edits(number, bytes);
        let mut state = ManifestState::default();
        frames.iter().flatten().flatten().for_each(|edit| state.apply(edit));
        // What the snapshot said of cold files shows in them only where they are in this directory.
        let mut in_snapshot =
            frames.iter().take_while(|edits| edits.as_ref().is_none_or(|edits| !edits.is_empty()));
        let is_local = self.dir.join(path::COLD_DIR).is_dir();
        if !manifest::has_whole_snapshot(number, bytes) || (in_snapshot.any(Option::is_none) && !is_local) {
            return Err(unrepairable(path, damage));
        }
        if frames.iter().all(Option::is_some) {
            // Its head alone.
            self.head_damage = Some(damage.to_owned());
            return Ok((state, None));
        }
        Ok((state, Some(damage.to_owned())))
    }

    fn read_checkpoint(&mut self) -> Result<()> {
        let Some(number) = self.state.checkpoint else { return Ok(()) };
        let name = format!("{}/{}", path::STATE_DIR, path::checkpoint(number));
        let path = self.dir.join(&name);
        let bytes = match self.storage.read(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("read", &path, &error)),
        };
        let damage = match bytes.as_deref().map(Checkpoint::decode) {
            Some(Ok(checkpoint)) => {
                self.checkpoint = checkpoint;
                return Ok(());
            }
            Some(Err(source)) if is_version(&source) => return Err(Error::Corrupt { path, source }),
            Some(Err(source)) => source.to_string(),
            None => "it is not there".to_owned(),
        };
        self.without_checkpoint = true;
        self.state.checkpoint = None;
        if bytes.is_some() {
            self.damaged.push(name.clone());
        }
        let what = format!("replaced by the log, which still has everything from the beginning ({damage})");
        self.mended.push(Mended { file: name, what });
        Ok(())
    }

    /// Fails where the log begins too late for a manifest that may have lost edits.
    pub(crate) fn require_log_from(&self, from: u64, first: u64) -> Result<()> {
        if self.suspicious && first > from + 1 {
            let why = format!("it ends too early: the log begins at {first}, it says {from}");
            return Err(unrepairable(&self.dir.join(path::MANIFEST_DIR), &why));
        }
        Ok(())
    }

    fn check_chunks(&mut self) -> Result<()> {
        let dir = self.dir.join(path::CHUNK_DIR);
        for meta in self.state.chunks.clone().into_values() {
            let path = dir.join(path::chunk(meta.id));
            let Err(error) = check_chunk(self.storage.as_ref(), &path, &meta) else { continue };
            let name = format!("{}/{}", path::CHUNK_DIR, path::chunk(meta.id));
            match &error {
                Error::Corrupt { source, .. } if !is_version(source) => self.damaged.push(name.clone()),
                Error::Io { .. } if !path.exists() => {}
                _ => return Err(error),
            }
            self.state.chunks.remove(&meta.id);
            self.losses.push(Loss::of_chunk(name, &meta, error.to_string()));
        }
        Ok(())
    }

    /// Files of the default cold tier that are gone, or have not the bytes that they should have.
    fn check_cold(&mut self) {
        let root = self.dir.join(path::COLD_DIR);
        if !root.is_dir() {
            return;
        }
        for file in self.state.cold.clone().into_values() {
            let found = std::fs::metadata(root.join(&file.path)).map(|metadata| metadata.len());
            let damage = match found {
                Ok(bytes) if bytes == file.bytes => continue,
                Ok(bytes) => format!("expected {} bytes, found {bytes}", file.bytes),
                Err(error) => error.to_string(),
            };
            let name = format!("{}/{}", path::COLD_DIR, file.path);
            if root.join(&file.path).exists() {
                self.damaged.push(name.clone());
            }
            self.state.cold.remove(&(file.table, file.day.start));
            self.losses.push(Loss::of_cold(name, &file, damage));
        }
    }
}

pub(crate) fn unrepairable(path: &Path, damage: &str) -> Error {
    let why = format!(
        "{damage}. Only the manifest says which files count, so it cannot be left out: restore the whole data directory \
         from a backup, or this file from one that is as new as the other files"
    );
    Error::Unrepairable { path: path.to_path_buf(), why }
}
