//! What a backup is taken of: the files of one moment, of a running engine or of a directory that no server has.
//!
//! # Invariants
//! - The position is asked for behind the files: no change that a file shows lies beyond it. (A job may carry out what
//!   a commit says before that commit is published.)
//! - Chunks and cold files are held alive by what readers hold, the checkpoint and the log by their mappings.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sonde_storage_format::{Checkpoint, Record, SeqNo, State, TableId, Timestamp, path};

use super::hold::Last;
use crate::clock::{Clock, SystemClock};
use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::manifest::{self, ManifestState};
use crate::recover;
use crate::storage::{LocalStorage, Mapped, Storage};
use crate::version::TableFiles;
use crate::wal::{self, Segment};

/// The files of one moment.
pub(super) struct Source {
    pub(super) data_dir: PathBuf,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) time: Timestamp,
    /// Everything up to here is in the files and the log.
    pub(super) seq: SeqNo,
    pub(super) state: ManifestState,
    pub(super) checkpoint: Option<(u64, Mapped)>,
    /// Oldest first.
    pub(super) segments: Vec<(Segment, Mapped)>,
    /// Where cold files are, if it is the directory's own default store.
    pub(super) cold_dir: Option<PathBuf>,
    /// Keeps chunks and cold files.
    _files: BTreeMap<TableId, Arc<TableFiles>>,
    /// Keeps the directory of a server that is stopped.
    _lock: Option<File>,
}

/// The directory of the cold tier, where it is the data directory's own.
fn own_cold_dir(data_dir: &Path, cold: Option<&Path>) -> Option<PathBuf> {
    let own = data_dir.join(path::COLD_DIR);
    cold.filter(|cold| **cold == own).map(Path::to_path_buf)
}

impl Source {
    /// Of a running engine. The log is pinned by the caller; `from` is the oldest position that is wanted of it.
    pub(super) fn running(inner: &Inner, from: Option<SeqNo>) -> Result<Self> {
        let (files, state, checkpoint) = loop {
            let (files, state) = {
                let manifest = inner.manifest.lock();
                (inner.versions.current().files.clone(), manifest.state.clone())
            };
            match map_checkpoint(inner.storage.as_ref(), &inner.options.data_dir, &state) {
                Ok(checkpoint) => break (files, state, checkpoint),
                // A flush replaced it meanwhile.
                Err(_) if inner.manifest.lock().state.checkpoint != state.checkpoint => {}
                Err(error) => return Err(error),
            }
        };
        let time = inner.clock.now();
        let seq = inner.position()?;
        let from = from.map_or(state.flushed_to, |from| from.min(state.flushed_to));
        let segments = map_segments(inner, from)?;
        let cold = inner.options.cold.as_ref().and_then(|cold| cold.directory.as_deref());
        Ok(Self {
            cold_dir: own_cold_dir(&inner.options.data_dir, cold),
            data_dir: inner.options.data_dir.clone(),
            storage: Arc::clone(&inner.storage),
            time,
            seq,
            state,
            checkpoint,
            segments,
            _files: files,
            _lock: None,
        })
    }

    /// Of a data directory that no server has, which stays locked and unchanged; and what its state says of the last
    /// backup at `name`.
    pub(super) fn stopped(data_dir: &Path, cold: Option<&Path>, name: &str) -> Result<(Self, Option<Last>)> {
        let storage: Arc<dyn Storage> = Arc::new(LocalStorage);
        let version = data_dir.join(path::VERSION);
        let found = storage.read(&version).map_err(|error| Error::io("read", &version, &error))?;
        if found != path::LAYOUT_VERSION.as_bytes() {
            return Err(Error::Layout {
                path: data_dir.to_path_buf(),
                expected: path::LAYOUT_VERSION.trim().to_owned(),
                found: String::from_utf8_lossy(&found).trim().to_owned(),
            });
        }
        let lock = recover::lock(data_dir)?;
        let (state, _) = manifest::read(storage.as_ref(), &data_dir.join(path::MANIFEST_DIR))?;
        let checkpoint = map_checkpoint(storage.as_ref(), data_dir, &state)?;
        let (position, mut last) = read_checkpoint(checkpoint.as_ref(), data_dir, name)?;
        let from = position.min(state.flushed_to);
        let scan = wal::scan(storage.as_ref(), &data_dir.join(path::WAL_DIR), from, |seq, record| {
            if let Record::State(change) = record
                && seq.last > position
                && Last::is_of(&change, name)
            {
                last = Last::read(change.value.as_deref());
            }
        })?;
        let seq = scan.log.last_seq.max(position).max(state.flushed_to);
        let map = |segment: Segment| {
            let bytes = storage.map(&segment.path);
            let bytes = bytes.map_err(|error| Error::io("map", &segment.path, &error))?;
            Ok((segment, bytes))
        };
        let segments = scan.log.segments.into_iter().map(map).collect::<Result<_>>()?;
        let source = Self {
            cold_dir: own_cold_dir(data_dir, cold),
            data_dir: data_dir.to_path_buf(),
            storage,
            time: SystemClock.now(),
            seq,
            state,
            checkpoint,
            segments,
            _files: BTreeMap::new(),
            _lock: Some(lock),
        };
        Ok((source, last))
    }
}

fn checkpoint_path(data_dir: &Path, number: u64) -> PathBuf {
    data_dir.join(path::STATE_DIR).join(path::checkpoint(number))
}

fn map_checkpoint(
    storage: &dyn Storage,
    data_dir: &Path,
    state: &ManifestState,
) -> Result<Option<(u64, Mapped)>> {
    let Some(number) = state.checkpoint else { return Ok(None) };
    let path = checkpoint_path(data_dir, number);
    let bytes = storage.map(&path).map_err(|error| Error::io("map", &path, &error))?;
    Ok(Some((number, bytes)))
}

/// The position of a checkpoint, and what it says of the last backup at `name`.
fn read_checkpoint(
    checkpoint: Option<&(u64, Mapped)>,
    data_dir: &Path,
    name: &str,
) -> Result<(SeqNo, Option<Last>)> {
    let Some((number, bytes)) = checkpoint else { return Ok((SeqNo(0), None)) };
    let decoded = Checkpoint::decode(bytes);
    let path = || checkpoint_path(data_dir, *number);
    let decoded = decoded.map_err(|source| Error::Corrupt { path: path(), source })?;
    let mut last = None;
    for entry in decoded.state {
        let change = State { namespace: entry.namespace, key: entry.key, value: Some(entry.value) };
        if Last::is_of(&change, name) {
            last = Last::read(change.value.as_deref());
        }
    }
    Ok((decoded.position, last))
}

/// The segments that have a frame behind `from`, mapped.
fn map_segments(inner: &Inner, from: SeqNo) -> Result<Vec<(Segment, Mapped)>> {
    'again: loop {
        let mut mapped = Vec::new();
        let wanted = |segment: &Segment| segment.last_seq > from && segment.last_seq >= segment.first_seq;
        for segment in inner.segments.list().into_iter().filter(wanted) {
            match inner.storage.map(&segment.path) {
                Ok(bytes) => mapped.push((segment, bytes)),
                // It went since it was listed: a removal that had begun before the pin.
                Err(error) if error.kind() == ErrorKind::NotFound && !inner.segments.has(segment.number) => {
                    continue 'again;
                }
                Err(error) => return Err(Error::io("map", &segment.path, &error)),
            }
        }
        return Ok(mapped);
    }
}
