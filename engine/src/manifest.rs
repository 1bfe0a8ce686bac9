//! The manifest on disk: which files make up the store.
//!
//! # Invariants
//! - An edit is durable before it is visible: append, sync, then the swap of the version.
//! - An edit is there whole or not at all: it is one frame or, where it is too large for one, part of a new snapshot.
//! - The manifest of the highest number that has a whole head is the current one; it starts with a snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sonde_storage_format::{
    ChunkId, ChunkMeta, ColdFile, Edit, FormatError, ManifestHeader, SeqNo, TableId, Timestamp, decode_edits,
    encode_edit, limits, path,
};

use crate::error::{Error, Result};
use crate::limits::{MANIFEST_BYTES, MANIFEST_FRAME_BYTES};
use crate::storage::{LogFile, Storage};

/// What the edits of a manifest amount to.
#[derive(Clone, Debug, Default)]
pub(crate) struct ManifestState {
    pub(crate) chunks: BTreeMap<ChunkId, ChunkMeta>,
    pub(crate) cold: BTreeMap<(TableId, Timestamp), ColdFile>,
    pub(crate) flushed_to: SeqNo,
    pub(crate) checkpoint: Option<u64>,
    pub(crate) next_chunk: u64,
    /// Chunks without what tombstones up to here hide, where that is behind their own sequence numbers.
    pub(crate) purged: BTreeMap<ChunkId, SeqNo>,
}

impl ManifestState {
    pub(crate) fn apply(&mut self, edit: &Edit) {
        match edit {
            Edit::AddChunk(chunk) => {
                self.next_chunk = self.next_chunk.max(chunk.id.0 + 1);
                self.chunks.insert(chunk.id, chunk.clone());
            }
            Edit::RemoveChunk(id) => {
                self.chunks.remove(id);
                self.purged.remove(id);
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
            Edit::Purged { chunk, seq } => {
                self.purged.insert(*chunk, *seq);
            }
        }
    }

    fn with(&self, edits: &[Edit]) -> Self {
        let mut state = self.clone();
        edits.iter().for_each(|edit| state.apply(edit));
        state
    }

    /// A manifest of this number that comes to this.
    pub(crate) fn encode(&self, number: u64) -> Result<Vec<u8>> {
        encode_snapshot(number, &self.snapshot())
    }

    /// What the bytes of a manifest come to, and where its last whole edit ends.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, u64), FormatError> {
        let mut state = Self::default();
        let head = ManifestHeader::decode(bytes)?;
        let (edits, end) = decode_edits(head.number, bytes)?;
        if !has_whole_snapshot(head.number, bytes.get(..end as usize).unwrap_or_default()) {
            let (structure, offset) = ("manifest", end as usize);
            let expected = "the end of the snapshot that it begins with";
            return Err(FormatError::Invalid { structure, offset, expected, found: 0 });
        }
        edits.iter().for_each(|edit| state.apply(edit));
        Ok((state, end))
    }

    fn snapshot(&self) -> Vec<Edit> {
        let mut edits = vec![Edit::NextChunk(ChunkId(self.next_chunk)), Edit::FlushedTo(self.flushed_to)];
        edits.extend(self.checkpoint.map(Edit::Checkpoint));
        edits.extend(self.chunks.values().cloned().map(Edit::AddChunk));
        edits.extend(self.purged.iter().map(|(chunk, seq)| Edit::Purged { chunk: *chunk, seq: *seq }));
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
    /// Bytes of the head and the snapshot.
    snapshot: u64,
    pub(crate) state: ManifestState,
    /// Set by a write that failed: what the file ends with is unknown.
    failed: bool,
}

impl Manifest {
    /// Reads the current manifest and starts a new one with its snapshot.
    pub(crate) fn open(storage: Arc<dyn Storage>, dir: &Path) -> Result<Self> {
        let numbers = numbers(storage.as_ref(), dir)?;
        let (state, torn) = read(storage.as_ref(), dir)?;
        if let Some(path) = torn {
            tracing::warn!(path = %path.display(), "dropped a torn tail of the manifest");
        }
        let number = numbers.last().map_or(1, |last| last + 1);
        let manifest = Self::write_snapshot(storage, dir, number, state)?;
        manifest.remove_older(&numbers);
        Ok(manifest)
    }

    /// Replaces the manifest of a directory that nobody has open by one that comes to `state`.
    pub(crate) fn replace(storage: Arc<dyn Storage>, dir: &Path, state: ManifestState) -> Result<()> {
        let numbers = numbers(storage.as_ref(), dir)?;
        let number = numbers.last().map_or(1, |last| last + 1);
        Self::write_snapshot(storage, dir, number, state)?.remove_older(&numbers);
        Ok(())
    }

    fn write_snapshot(
        storage: Arc<dyn Storage>,
        dir: &Path,
        number: u64,
        state: ManifestState,
    ) -> Result<Self> {
        let path = dir.join(path::manifest(number));
        let bytes = state.encode(number)?;
        let snapshot = bytes.len() as u64;
        let written = storage.write_whole(&path, &mut std::iter::once(bytes));
        written.map_err(|error| Error::io("write", &path, &error))?;
        let file = storage.open(&path).map_err(|error| Error::io("open", &path, &error))?;
        let dir = dir.to_path_buf();
        Ok(Self { storage, dir, number, file, offset: snapshot, snapshot, state, failed: false })
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
        if self.failed { self.rewrite(self.state.clone()) } else { Ok(()) }
    }

    /// Whether what is on disk is known; else an edit that failed may stand there all the same.
    pub(crate) fn is_settled(&self) -> bool {
        !self.failed
    }

    /// Makes the edits durable as one. After an error they are not there, unless the manifest is not settled.
    pub(crate) fn append(&mut self, edits: &[Edit]) -> Result<()> {
        self.settle()?;
        if self.offset > MANIFEST_BYTES.max(2 * self.snapshot) {
            self.rewrite(self.state.clone())?;
        }
        let written = match encode_edit(self.number, self.offset, edits) {
            Ok(frame) => self.append_frame(&frame, edits),
            // More than a frame takes: a snapshot with the edits in it is there whole or not at all, too.
            Err(_) => self.rewrite(self.state.with(edits)),
        };
        if written.is_err() {
            self.failed = true;
            // Should this fail too, the next edit begins with it.
            let _ = self.settle();
        }
        written
    }

    fn append_frame(&mut self, frame: &[u8], edits: &[Edit]) -> Result<()> {
        let written = self.file.write_at(frame, self.offset).and_then(|()| self.file.sync());
        written.map_err(|error| Error::io("write", &self.dir.join(path::manifest(self.number)), &error))?;
        self.offset += frame.len() as u64;
        edits.iter().for_each(|edit| self.state.apply(edit));
        Ok(())
    }

    /// Replaces the file by a snapshot under the next number.
    fn rewrite(&mut self, state: ManifestState) -> Result<()> {
        let old = self.number;
        *self = Self::write_snapshot(Arc::clone(&self.storage), &self.dir, old + 1, state)?;
        self.remove_older(&BTreeSet::from([old]));
        Ok(())
    }
}

pub(crate) fn numbers(storage: &dyn Storage, dir: &Path) -> Result<BTreeSet<u64>> {
    let names = storage.list(dir).map_err(|error| Error::io("list", dir, &error))?;
    Ok(names.iter().filter_map(|name| path::parse_manifest(name)).collect())
}

/// What the current manifest of a directory amounts to, and its path where it ends with a torn edit.
pub(crate) fn read(storage: &dyn Storage, dir: &Path) -> Result<(ManifestState, Option<PathBuf>)> {
    let Some(number) = numbers(storage, dir)?.pop_last() else {
        return Ok((ManifestState::default(), None));
    };
    let path = dir.join(path::manifest(number));
    let bytes = storage.read(&path).map_err(|error| Error::io("read", &path, &error))?;
    let decoded = ManifestState::decode(&bytes);
    let (state, end) = decoded.map_err(|source| Error::Corrupt { path: path.clone(), source })?;
    Ok((state, (end < bytes.len() as u64).then_some(path)))
}

/// Whether the empty edit is there that ends the snapshot with which every manifest begins. It comes into being whole, so
/// without that edit the file was cut, and says too little.
pub(crate) fn has_whole_snapshot(number: u64, bytes: &[u8]) -> bool {
    const EMPTY: [u8; 5] = [1, 0, 0, 0, 0]; // one byte of body: no step
    let places = bytes.windows(EMPTY.len()).enumerate().skip(ManifestHeader::LEN + 4);
    let mut places = places.filter(|(_, window)| *window == EMPTY).map(|(at, _)| at - 4);
    places.any(|at| {
        let frame = encode_edit(number, at as u64, &[]).unwrap_or_default();
        bytes.get(at..).is_some_and(|rest| rest.starts_with(&frame))
    })
}

/// A manifest that comes to these edits: frames of bounded size, however many edits there are.
fn encode_snapshot(number: u64, edits: &[Edit]) -> Result<Vec<u8>> {
    let mut bytes = ManifestHeader { number }.encode();
    let mut rest = edits;
    loop {
        let (edits, others) = rest.split_at(fitting(rest));
        let frame = encode_edit(number, bytes.len() as u64, edits).map_err(|_| Error::Limit {
            what: "bytes of a step in the manifest".into(),
            limit: limits::EDIT_BYTES as u64,
        })?;
        bytes.extend_from_slice(&frame);
        rest = others;
        // An empty edit ends the snapshot: damage inside it has a whole frame behind it, so it is no torn tail.
        if edits.is_empty() {
            return Ok(bytes);
        }
    }
}

/// How many of the edits go into one frame of a snapshot: all that fit, and one at least, if there is one.
fn fitting(edits: &[Edit]) -> usize {
    let mut left = MANIFEST_FRAME_BYTES;
    let mut count = 0;
    for edit in edits {
        match left.checked_sub(edit.bytes_at_most()) {
            Some(rest) => left = rest,
            None if count > 0 => break,
            None => left = 0,
        }
        count += 1;
    }
    count
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::storage::LocalStorage;
    use sonde_storage_format::TimeRange;

    /// Cold files whose paths are as long as paths may be: the least memory for the most bytes.
    fn cold_files(count: i64) -> Vec<Edit> {
        let cold = |day: i64| {
            let bound = |day: i64| Timestamp::from_nanos(day * crate::cold::DAY);
            let day = TimeRange { start: bound(day), end: bound(day + 1) };
            let path = "x".repeat(limits::KEY_BYTES);
            Edit::AddCold(ColdFile { table: TableId(1), day, position: SeqNo(1), path, rows: 1, bytes: 1 })
        };
        (0..count).map(cold).collect()
    }

    fn open(dir: &Path) -> Manifest {
        Manifest::open(Arc::new(LocalStorage), dir).unwrap()
    }

    /// It panicked the thread that flushes, for ever.
    #[test]
    fn an_edit_that_no_frame_takes_becomes_a_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let mut manifest = open(dir.path());
        manifest.append(&[Edit::FlushedTo(SeqNo(7))]).unwrap();
        let files = cold_files(1025);
        assert!(encode_edit(1, 24, &files).is_err());
        manifest.append(&files).unwrap();
        assert_eq!((manifest.number, manifest.state.cold.len()), (2, 1025));
        // What follows is an edit like any other: a large snapshot is not written again with each.
        manifest.append(&[Edit::Checkpoint(3)]).unwrap();
        assert_eq!(manifest.number, 2);
        drop(manifest);
        let manifest = open(dir.path());
        assert_eq!((manifest.state.cold.len(), manifest.state.flushed_to), (1025, SeqNo(7)));
        assert_eq!(manifest.state.checkpoint, Some(3));
    }

    #[test]
    fn frames_of_a_snapshot_are_cut_by_bytes() {
        let many: Vec<Edit> = (0..100_000).map(|id| Edit::RemoveChunk(ChunkId(id))).collect();
        assert_eq!(fitting(&many), 100_000);
        assert_eq!(fitting(&cold_files(40)), 15);
        let huge = "x".repeat(2 * MANIFEST_FRAME_BYTES);
        let mut edits = cold_files(1);
        if let Some(Edit::AddCold(file)) = edits.first_mut() {
            file.path = huge;
        }
        edits.extend(cold_files(1));
        assert_eq!((fitting(&edits), fitting(&[])), (1, 0));
    }
}
