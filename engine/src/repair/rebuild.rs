//! Completes a manifest that lost edits from the files that are there.
//!
//! # Invariants
//! - A chunk says itself which table, range of time and sequence numbers it holds, a checkpoint its position; a flush
//!   writes its chunks first, then the checkpoint, then the edit. So what a whole checkpoint covers is in files.
//! - Of files that hold the same rows one is taken: those that the manifest names, while all of them are there, else the
//!   file that was merged from them.
//! - Where a file is missing that none replaces, or the cold tier has files of which nothing is known, it is refused.

use std::collections::BTreeSet;
use std::path::Path;

use sonde_storage_format::{Checkpoint, ChunkId, ChunkMeta, ChunkReader, Timestamp, path};

use crate::doctor::check_chunk;
use crate::error::{Error, Result};
use crate::flush::column_range;
use crate::manifest::ManifestState;
use crate::repair::files::unrepairable;
use crate::storage::Storage;

pub(crate) struct Rebuild<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) storage: &'a dyn Storage,
    /// The manifest.
    pub(crate) manifest: &'a Path,
}

/// Whether two chunks hold rows of the same commits.
fn overlap(a: &ChunkMeta, b: &ChunkMeta) -> bool {
    a.table == b.table && a.range.overlaps(&b.range) && a.seq.overlaps(b.seq)
}

/// Whether `outer` holds all commits of `inner`.
fn covers(outer: &ChunkMeta, inner: &ChunkMeta) -> bool {
    let same = outer.table == inner.table && outer.range == inner.range;
    same && outer.seq.first <= inner.seq.first && inner.seq.last <= outer.seq.last
}

impl Rebuild<'_> {
    /// Completes `state`, of which something is missing where `damage` says so. Returns what was added, if anything was.
    pub(crate) fn run(&self, state: &mut ManifestState, damage: Option<&str>) -> Result<Option<String>> {
        let files: BTreeSet<ChunkId> =
            self.names(path::CHUNK_DIR)?.iter().filter_map(|name| path::parse_chunk(name)).collect();
        // While the named one is there, a newer one is of a flush that was not finished.
        let named =
            state.checkpoint.map(|number| self.dir.join(path::STATE_DIR).join(path::checkpoint(number)));
        let is_there = named.is_some_and(|path| path.exists());
        let newer = if is_there && damage.is_none() { None } else { self.newer_checkpoint(state)? };
        let is_missing = |state: &ManifestState| state.chunks.keys().any(|id| !files.contains(id));
        if damage.is_none() && newer.is_none() && !is_missing(state) {
            return Ok(None);
        }
        let mut added = Vec::new();
        if let Some((number, checkpoint)) = newer {
            state.checkpoint = Some(number);
            state.flushed_to = state.flushed_to.max(checkpoint.position);
            added.push(format!("checkpoint {number}"));
        }
        let mut unnamed = Vec::new();
        for id in files.iter().filter(|id| !state.chunks.contains_key(id)) {
            match self.describe(*id) {
                // A flush that was not finished: its rows are in the log.
                Ok(meta) if meta.seq.last > state.flushed_to => {}
                Ok(meta) => unnamed.push(meta),
                Err(error) if damage.is_some() => return Err(self.refuse(damage, &error.to_string())),
                Err(_) => {}
            }
        }
        // What was merged last covers most.
        unnamed.sort_by_key(|meta| (u64::MAX - (meta.seq.last.0 - meta.seq.first.0), u64::MAX - meta.id.0));
        for meta in unnamed {
            if self.adopt(state, &files, &meta, damage)? {
                added.push(path::chunk(meta.id));
            }
        }
        let gone = state.chunks.keys().find(|id| !files.contains(id)).copied();
        if let Some(gone) = gone.filter(|_| damage.is_some()) {
            return Err(self.refuse(damage, &format!("{} is named and gone", path::chunk(gone))));
        }
        if damage.is_some() || gone.is_some() {
            self.check_cold(state, damage)?;
        }
        state.next_chunk = state.next_chunk.max(files.last().map_or(0, |id| id.0 + 1));
        let text = format!("completed by files that it did not name: {}", added.join(", "));
        Ok((!added.is_empty()).then_some(text))
    }

    fn refuse(&self, damage: Option<&str>, found: &str) -> Error {
        let damage = damage.unwrap_or("it ends too early");
        unrepairable(self.manifest, &format!("{damage}; {found}"))
    }

    fn names(&self, part: &str) -> Result<Vec<String>> {
        let dir = self.dir.join(part);
        self.storage.list(&dir).map_err(|error| Error::io("list", &dir, &error))
    }

    /// The newest whole checkpoint, if the manifest names an older one or none.
    fn newer_checkpoint(&self, state: &ManifestState) -> Result<Option<(u64, Checkpoint)>> {
        let names = self.names(path::STATE_DIR)?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| path::parse_checkpoint(name)).collect();
        numbers.retain(|number| state.checkpoint.is_none_or(|named| named < *number));
        numbers.sort_unstable();
        Ok(numbers.into_iter().rev().find_map(|number| {
            let bytes =
                self.storage.read(&self.dir.join(path::STATE_DIR).join(path::checkpoint(number))).ok()?;
            Some((number, Checkpoint::decode(&bytes).ok()?))
        }))
    }

    /// Takes a chunk that nobody names, unless its rows are in files that are there; returns whether it did.
    fn adopt(
        &self,
        state: &mut ManifestState,
        files: &BTreeSet<ChunkId>,
        meta: &ChunkMeta,
        damage: Option<&str>,
    ) -> Result<bool> {
        let day = |file: &&sonde_storage_format::ColdFile| {
            file.table == meta.table && file.day.overlaps(&meta.range) && meta.seq.last <= file.position
        };
        if state.cold.values().any(|file| day(&file)) {
            return Ok(false);
        }
        let others: Vec<&ChunkMeta> = state.chunks.values().filter(|other| overlap(meta, other)).collect();
        let all_there = others.iter().all(|other| files.contains(&other.id));
        if !others.is_empty() && all_there {
            return Ok(false);
        }
        if !others.iter().all(|other| covers(meta, other)) {
            let found = format!("{} holds only a part of what it names", path::chunk(meta.id));
            return Err(self.refuse(damage, &found));
        }
        // Without damage, and with nothing gone that it replaces, it was left over.
        if others.is_empty() && damage.is_none() && !self.is_of_newest_flush(state, meta) {
            return Ok(false);
        }
        let replaced: Vec<ChunkId> = others.iter().map(|other| other.id).collect();
        replaced.iter().for_each(|id| drop(state.chunks.remove(id)));
        state.chunks.insert(meta.id, meta.clone());
        Ok(true)
    }

    /// Whether a chunk came after everything that the manifest names.
    fn is_of_newest_flush(&self, state: &ManifestState, meta: &ChunkMeta) -> bool {
        meta.id.0 >= state.next_chunk
    }

    /// What a chunk file says of itself, every byte of it verified.
    fn describe(&self, id: ChunkId) -> Result<ChunkMeta> {
        let path = self.dir.join(path::CHUNK_DIR).join(path::chunk(id));
        let bytes = self.storage.map(&path).map_err(|error| Error::io("map", &path, &error))?;
        let corrupt = |source| Error::Corrupt { path: path.clone(), source };
        let reader = ChunkReader::open(&bytes).map_err(corrupt)?;
        let root = reader.root();
        let series = reader.series().map_err(corrupt)?;
        let first = series.iter().map(|run| run.first).min().unwrap_or(Timestamp::MAX);
        let last = series.iter().map(|run| run.last).max().unwrap_or(Timestamp::MIN);
        let columns = reader.columns().map_err(corrupt)?;
        let meta = ChunkMeta {
            id,
            table: root.table,
            range: root.range,
            times: (first, last),
            seq: root.seq,
            rows: root.rows,
            series: root.series,
            bytes: bytes.len() as u64,
            columns: columns.iter().map(column_range).collect(),
        };
        check_chunk(self.storage, &path, &meta)?;
        Ok(meta)
    }

    /// Fails unless the default cold tier has exactly the files that the manifest names.
    fn check_cold(&self, state: &ManifestState, damage: Option<&str>) -> Result<()> {
        let names = cold_names(&self.dir.join(path::COLD_DIR));
        let named: BTreeSet<String> = state.cold.values().map(|file| file.path.clone()).collect();
        match names.symmetric_difference(&named).next() {
            Some(name) if !names.is_empty() => {
                Err(self.refuse(damage, &format!("{name} of the cold tier is unknown, or gone")))
            }
            _ => Ok(()),
        }
    }
}

/// The Parquet files below a directory, relative to it.
fn cold_names(root: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if let Ok(name) = path.strip_prefix(root)
                && path.extension().is_some_and(|extension| extension == "parquet")
            {
                names.insert(name.display().to_string());
            }
        }
    }
    names
}
