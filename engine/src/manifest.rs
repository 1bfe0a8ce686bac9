//! The manifest on disk: which files make up the store.
//!
//! # Invariants
//! - An edit is durable before it is visible: append, sync, then the swap of the version.
//! - The manifest of the highest number that has a whole head is the current one; it starts with a snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sonde_storage_format::{
    ChunkId, ChunkMeta, ColdFile, Edit, ManifestHeader, SeqNo, TableId, Timestamp, decode_edits, encode_edit,
    path,
};

use crate::error::{Error, Result};
use crate::limits::MANIFEST_BYTES;
use crate::storage::{LogFile, Storage};

/// What the edits of a manifest amount to.
#[derive(Clone, Debug, Default)]
pub(crate) struct ManifestState {
    pub(crate) chunks: BTreeMap<ChunkId, ChunkMeta>,
    pub(crate) cold: BTreeMap<(TableId, Timestamp), ColdFile>,
    pub(crate) flushed_to: SeqNo,
    pub(crate) checkpoint: Option<u64>,
    pub(crate) next_chunk: u64,
}

impl ManifestState {
    fn apply(&mut self, edit: &Edit) {
        match edit {
            Edit::AddChunk(chunk) => {
                self.next_chunk = self.next_chunk.max(chunk.id.0 + 1);
                self.chunks.insert(chunk.id, chunk.clone());
            }
            Edit::RemoveChunk(id) => {
                self.chunks.remove(id);
            }
            Edit::FlushedTo(seq) => self.flushed_to = self.flushed_to.max(*seq),
            Edit::Checkpoint(number) => self.checkpoint = Some(*number),
            Edit::AddCold(file) => {
                self.cold.insert((file.table, file.day.start), file.clone());
            }
            Edit::RemoveCold { table, day } => {
                self.cold.remove(&(*table, day.start));
            }
            Edit::NextChunk(id) => self.next_chunk = self.next_chunk.max(id.0),
        }
    }

    fn snapshot(&self) -> Vec<Edit> {
        let mut edits = vec![Edit::NextChunk(ChunkId(self.next_chunk)), Edit::FlushedTo(self.flushed_to)];
        edits.extend(self.checkpoint.map(Edit::Checkpoint));
        edits.extend(self.chunks.values().cloned().map(Edit::AddChunk));
        edits.extend(self.cold.values().cloned().map(Edit::AddCold));
        edits
    }
}

/// The manifest, open for edits.
#[derive(Debug)]
pub(crate) struct Manifest {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    number: u64,
    file: Box<dyn LogFile>,
    offset: u64,
    pub(crate) state: ManifestState,
    /// Set by a write that failed: what the file ends with is unknown.
    failed: bool,
}

impl Manifest {
    /// Reads the current manifest and starts a new one with its snapshot.
    pub(crate) fn open(storage: Arc<dyn Storage>, dir: &Path) -> Result<Self> {
        let names = storage.list(dir).map_err(|error| Error::io("list", dir, &error))?;
        let numbers: BTreeSet<u64> = names.iter().filter_map(|name| path::parse_manifest(name)).collect();
        let mut state = ManifestState::default();
        if let Some(number) = numbers.last() {
            let path = dir.join(path::manifest(*number));
            let bytes = storage.read(&path).map_err(|error| Error::io("read", &path, &error))?;
            let corrupt = |source| Error::Corrupt { path: path.clone(), source };
            let head = ManifestHeader::decode(&bytes).map_err(corrupt)?;
            let (edits, end) = decode_edits(head.number, &bytes).map_err(corrupt)?;
            if end < bytes.len() as u64 {
                tracing::warn!(path = %path.display(), offset = end, "dropped a torn tail of the manifest");
            }
            edits.iter().for_each(|edit| state.apply(edit));
        }
        let number = numbers.last().map_or(1, |last| last + 1);
        let manifest = Self::write_snapshot(storage, dir, number, state)?;
        manifest.remove_older(&numbers);
        Ok(manifest)
    }

    fn write_snapshot(
        storage: Arc<dyn Storage>,
        dir: &Path,
        number: u64,
        state: ManifestState,
    ) -> Result<Self> {
        let path = dir.join(path::manifest(number));
        let mut bytes = ManifestHeader { number }.encode();
        // Frames of bounded size, so that a store of many chunks stays within the limit of an edit.
        for edits in state.snapshot().chunks(1024) {
            bytes.extend_from_slice(&encode_edit(number, bytes.len() as u64, edits));
        }
        // An empty edit ends the snapshot: damage inside it has a whole frame behind it, so it is no torn tail.
        bytes.extend_from_slice(&encode_edit(number, bytes.len() as u64, &[]));
        let offset = bytes.len() as u64;
        let written = storage.write_whole(&path, &mut std::iter::once(bytes));
        written.map_err(|error| Error::io("write", &path, &error))?;
        let file = storage.open(&path).map_err(|error| Error::io("open", &path, &error))?;
        Ok(Self { storage, dir: dir.to_path_buf(), number, file, offset, state, failed: false })
    }

    fn remove_older(&self, numbers: &BTreeSet<u64>) {
        for number in numbers.iter().filter(|number| **number < self.number) {
            let path = self.dir.join(path::manifest(*number));
            if let Err(error) = self.storage.remove(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove an old manifest");
            }
        }
    }

    /// A chunk id that was never used; none while the manifest could not name the chunk.
    pub(crate) fn next_chunk(&mut self) -> Result<ChunkId> {
        self.settle()?;
        self.state.next_chunk += 1;
        Ok(ChunkId(self.state.next_chunk - 1))
    }

    /// After a write that failed: a new file, without what may or may not have been written.
    pub(crate) fn settle(&mut self) -> Result<()> {
        if self.failed { self.rewrite() } else { Ok(()) }
    }

    /// Whether what is on disk is known; else an edit that failed may stand there all the same.
    pub(crate) fn is_settled(&self) -> bool {
        !self.failed
    }

    /// Makes the edits durable as one. After an error they are not there, unless the manifest is not settled.
    pub(crate) fn append(&mut self, edits: &[Edit]) -> Result<()> {
        self.settle()?;
        if self.offset > MANIFEST_BYTES {
            self.rewrite()?;
        }
        let frame = encode_edit(self.number, self.offset, edits);
        if let Err(error) = self.file.write_at(&frame, self.offset).and_then(|()| self.file.sync()) {
            let failed = Error::io("write", &self.dir.join(path::manifest(self.number)), &error);
            self.failed = true;
            // Should this fail too, the next edit begins with it.
            let _ = self.settle();
            return Err(failed);
        }
        self.offset += frame.len() as u64;
        edits.iter().for_each(|edit| self.state.apply(edit));
        Ok(())
    }

    /// Replaces the file by a snapshot under the next number.
    fn rewrite(&mut self) -> Result<()> {
        let old = self.number;
        let state = self.state.clone();
        *self = Self::write_snapshot(Arc::clone(&self.storage), &self.dir, old + 1, state)?;
        self.remove_older(&BTreeSet::from([old]));
        Ok(())
    }
}
