//! What a reader sees: an immutable `Version`.
//!
//! # Invariants
//! - The only changes are `publish` (the writer: a commit becomes visible) and `install` (a job: files come and go).
//! - Of two chunks of a table whose ranges of time overlap, in one partition or in several, one is newer than the other
//!   as a whole: their SeqNo ranges do not overlap. Chunks of a partition stand in SeqNo order.
//! - Everything in `chunks` is older than everything in `frozen`, which is older than `active`; cold is the oldest.
//! - Readers hold files alive: the file of a chunk that the manifest does not name, not yet or no longer, is removed
//!   when its last handle goes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use sonde_storage_format::{ChunkId, ChunkMeta, ColdFile, Edit, SeqNo, TableId, TimeRange, Timestamp};

use crate::error::{Error, Result};
use crate::mask::Mask;
use crate::memtable::Memtable;
use crate::open_chunk::OpenChunk;
use crate::storage::Storage;

/// A chunk file of a version.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) meta: ChunkMeta,
    /// What tombstones up to here hide is not in it.
    purged: AtomicU64,
    path: PathBuf,
    storage: Arc<dyn Storage>,
    /// The file as readers have it open now, if any has.
    file: Mutex<Weak<OpenChunk>>,
    /// Whether the manifest names the chunk, or may do so.
    named: AtomicBool,
}

impl Chunk {
    /// A chunk whose file is there and that nothing names yet.
    pub(crate) fn new(meta: ChunkMeta, path: PathBuf, storage: Arc<dyn Storage>) -> Self {
        let purged = AtomicU64::new(meta.seq.last.0);
        Self { meta, purged, path, storage, file: Mutex::default(), named: AtomicBool::new(false) }
    }

    /// Notes that what tombstones up to `seq` hide is not in it.
    pub(crate) fn purge(&self, seq: SeqNo) {
        self.purged.fetch_max(seq.0, Ordering::Relaxed);
    }

    /// Masks of higher sequence numbers alone may hide rows of it.
    pub(crate) fn covers(&self) -> SeqNo {
        SeqNo(self.purged.load(Ordering::Relaxed))
    }

    /// The steps of an edit that make it count.
    pub(crate) fn edits(&self) -> Vec<Edit> {
        let seq = self.covers();
        let purged = (seq > self.meta.seq.last).then_some(Edit::Purged { chunk: self.meta.id, seq });
        [Edit::AddChunk(self.meta.clone())].into_iter().chain(purged).collect()
    }

    /// Keeps the file: the manifest names the chunk now.
    pub(crate) fn keep(&self) {
        self.named.store(true, Ordering::Release);
    }

    /// The file, mapped and its directories verified; shared with whoever has it open.
    pub(crate) fn open(&self) -> Result<Arc<OpenChunk>> {
        if let Some(open) = self.file.lock().upgrade() {
            return Ok(open);
        }
        // Not under the lock: two readers may map a file twice, and none waits for the other's disk.
        let bytes = self.storage.map(&self.path).map_err(|error| Error::io("map", &self.path, &error))?;
        let open = OpenChunk::new(&self.path, bytes, &self.meta);
        let open = Arc::new(open.map_err(|source| Error::Corrupt { path: self.path.clone(), source })?);
        *self.file.lock() = Arc::downgrade(&open);
        Ok(open)
    }

    /// Removes the file once its last reader has gone.
    pub(crate) fn retire(&self) {
        self.named.store(false, Ordering::Release);
        if let Some(open) = self.file.lock().upgrade() {
            open.retire();
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if !self.named.load(Ordering::Acquire)
            && let Err(error) = self.storage.remove(&self.path)
        {
            // The next start removes files that the manifest does not name.
            tracing::warn!(path = %self.path.display(), %error, "cannot remove an obsolete chunk");
        }
    }
}

/// The files of one table.
#[derive(Clone, Debug, Default)]
pub(crate) struct TableFiles {
    /// By start and end of the partition; each list in SeqNo order.
    pub(crate) partitions: BTreeMap<(Timestamp, Timestamp), Arc<Vec<Arc<Chunk>>>>,
    /// Cold files by start of the UTC day.
    pub(crate) cold: BTreeMap<Timestamp, Arc<ColdFile>>,
}

impl TableFiles {
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &Arc<Chunk>> {
        self.partitions.values().flat_map(|chunks| chunks.iter())
    }
}

/// One state of everything that can be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Version {
    /// Every commit up to here is visible.
    pub(crate) seq: SeqNo,
    pub(crate) active: Memtable,
    /// Oldest first.
    pub(crate) frozen: Vec<Arc<Memtable>>,
    pub(crate) files: BTreeMap<TableId, Arc<TableFiles>>,
    /// What is hidden of sources that are older, in the order of the sequence numbers.
    pub(crate) masks: BTreeMap<TableId, Arc<Vec<Arc<Mask>>>>,
}

/// How files come and go, as one step.
#[derive(Debug, Default)]
pub(crate) struct FileEdit {
    pub(crate) add: Vec<Arc<Chunk>>,
    pub(crate) remove: Vec<(TableId, ChunkId)>,
    pub(crate) add_cold: Vec<ColdFile>,
    pub(crate) remove_cold: Vec<(TableId, TimeRange)>,
    /// The oldest frozen memtable is in chunks now.
    pub(crate) flushed: bool,
}

impl Version {
    /// What is hidden of a table.
    pub(crate) fn masks_of(&self, table: TableId) -> Vec<Arc<Mask>> {
        self.masks.get(&table).map(|masks| masks.to_vec()).unwrap_or_default()
    }

    /// Whether a file or a frozen memtable may hold rows that the mask hides.
    pub(crate) fn needs(&self, table: TableId, mask: &Mask) -> bool {
        let frozen = self.frozen.iter().flat_map(|memtable| memtable.of_table(table));
        let mut memory = frozen.filter(|partition| partition.is_older_than(mask.seq));
        let files = self.files.get(&table);
        let mut chunks = files.into_iter().flat_map(|files| files.chunks());
        let mut cold = files.into_iter().flat_map(|files| files.cold.values());
        memory.any(|partition| mask.reaches(partition.range.start, partition.range.end))
            || chunks.any(|chunk| is_hidden_in(chunk, mask))
            || cold.any(|file| file.position < mask.seq && mask.reaches(file.day.start, file.day.end))
    }

    /// Applies an edit; chunks that leave are retired.
    fn edited(&self, edit: &FileEdit) -> Self {
        let mut next = self.clone();
        for (table, id) in &edit.remove {
            let Some(files) = next.files.get_mut(table) else { continue };
            let files = Arc::make_mut(files);
            for chunks in files.partitions.values_mut() {
                if chunks.iter().any(|chunk| chunk.meta.id == *id) {
                    Arc::make_mut(chunks).retain(|chunk| chunk.meta.id != *id);
                }
            }
            files.partitions.retain(|_, chunks| !chunks.is_empty());
        }
        for chunk in &edit.add {
            let files = Arc::make_mut(next.files.entry(chunk.meta.table).or_default());
            let range = (chunk.meta.range.start, chunk.meta.range.end);
            let chunks = Arc::make_mut(files.partitions.entry(range).or_default());
            chunks.push(Arc::clone(chunk));
            chunks.sort_by_key(|chunk| chunk.meta.seq.first);
        }
        for (table, day) in &edit.remove_cold {
            if let Some(files) = next.files.get_mut(table) {
                Arc::make_mut(files).cold.remove(&day.start);
            }
        }
        for file in &edit.add_cold {
            let files = Arc::make_mut(next.files.entry(file.table).or_default());
            files.cold.insert(file.day.start, Arc::new(file.clone()));
        }
        if edit.flushed && !next.frozen.is_empty() {
            next.frozen.remove(0);
        }
        next
    }
}

/// Whether a chunk may hold rows that the mask hides.
pub(crate) fn is_hidden_in(chunk: &Chunk, mask: &Mask) -> bool {
    chunk.covers() < mask.seq && mask.reaches(chunk.meta.times.0, chunk.meta.times.1)
}

/// The current version; swapped as a whole.
#[derive(Debug)]
pub(crate) struct Versions {
    current: ArcSwap<Version>,
}

impl Versions {
    pub(crate) fn new(version: Version) -> Self {
        Self { current: ArcSwap::from_pointee(version) }
    }

    /// A snapshot.
    pub(crate) fn current(&self) -> Arc<Version> {
        self.current.load_full()
    }

    /// Makes a commit visible: the writer's memtable replaces the active one.
    pub(crate) fn publish(&self, seq: SeqNo, active: &Memtable) {
        self.current.rcu(|version| Version { seq, active: active.clone(), ..Version::clone(version) });
    }

    /// Changes what is hidden of a table.
    pub(crate) fn set_masks(&self, table: TableId, change: impl Fn(&mut Vec<Arc<Mask>>)) {
        self.current.rcu(|version| {
            let mut next = Version::clone(version);
            let mut masks = next.masks_of(table);
            change(&mut masks);
            if masks.is_empty() {
                next.masks.remove(&table);
            } else {
                next.masks.insert(table, Arc::new(masks));
            }
            next
        });
    }

    /// Moves the active memtable behind the frozen ones.
    pub(crate) fn freeze(&self) {
        self.current.rcu(|version| {
            let mut next = Version::clone(version);
            next.frozen.push(Arc::new(std::mem::take(&mut next.active)));
            next
        });
    }

    /// Makes an edit visible that the manifest holds already.
    pub(crate) fn install(&self, edit: &FileEdit) {
        let before = self.current.rcu(|version| version.edited(edit));
        for (table, id) in &edit.remove {
            let files = before.files.get(table);
            files.into_iter().flat_map(|files| files.chunks()).filter(|chunk| chunk.meta.id == *id).for_each(
                |chunk| {
                    chunk.retire();
                },
            );
        }
    }

    /// Takes a dropped table out of the version.
    pub(crate) fn drop_table(&self, table: TableId) {
        self.current.rcu(|version| {
            let mut next = Version::clone(version);
            next.active.drop_table(table);
            next.masks.remove(&table);
            next.frozen = next
                .frozen
                .iter()
                .map(|memtable| {
                    let mut memtable = Memtable::clone(memtable);
                    memtable.drop_table(table);
                    Arc::new(memtable)
                })
                .collect();
            next
        });
    }
}
