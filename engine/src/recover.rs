//! From the files of a data directory to the state before the last stop: manifest, checkpoint, then the log's tail.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use sonde_storage_format::{
    Checkpoint, ChunkId, ChunkMeta, Record, SeqNo, SeriesId, SeriesKey, TableId, Timestamp, path,
};

use crate::catalog::Catalog;
use crate::compact::width::Widths;
use crate::doctor::check_version;
use crate::engine::Options;
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::mask::{self, Mask, TOMBSTONES};
use crate::memtable::Memtable;
use crate::series_budget::SeriesBudget;
use crate::state::StateStore;
use crate::storage::{Storage, create_dirs};
use crate::version::{Chunk, TableFiles, Version};
use crate::wal::{self, RecoveredLog};

/// Everything that was recovered.
pub(crate) struct Recovered {
    pub(crate) lock: File,
    pub(crate) manifest: Manifest,
    pub(crate) version: Version,
    pub(crate) catalog: Catalog,
    pub(crate) state: StateStore,
    pub(crate) widths: Widths,
    pub(crate) log: RecoveredLog,
    pub(crate) next_seq: SeqNo,
    /// Rows that came from the log.
    pub(crate) replayed: u64,
}

/// Locks the directory and reads it.
pub(crate) fn recover(options: &Options, storage: &Arc<dyn Storage>, now: Timestamp) -> Result<Recovered> {
    let dir = &options.data_dir;
    // Before anything is made: the directory of another version stays as it is.
    let has_layout = check_layout(dir, storage.as_ref())?;
    let parts = [path::WAL_DIR, path::CHUNK_DIR, path::MANIFEST_DIR, path::STATE_DIR];
    create_dirs(dir, &parts).map_err(|error| Error::io("create", dir, &error))?;
    let lock = lock(dir)?;
    if !has_layout {
        write_layout(dir, storage.as_ref())?;
    }
    let manifest = Manifest::open(Arc::clone(storage), &dir.join(path::MANIFEST_DIR))?;
    let flushed_to = manifest.state.flushed_to;
    let catalog = Catalog::new(Arc::new(SeriesBudget::new(options.series_bytes)));
    let state = StateStore::default();
    let (active, widths, chunks) = (Memtable::default(), Widths::default(), &manifest.state.chunks);
    let mut replay = Replay { catalog, state, active, widths, learned: BTreeSet::new(), rows: 0, now };
    let position = replay.checkpoint(dir, storage.as_ref(), manifest.state.checkpoint)?;
    let from = position.min(flushed_to);
    let log = wal::recover(storage.as_ref(), &dir.join(path::WAL_DIR), from, |seq, record| {
        replay.record(record, chunks, seq.last > position, seq.last > flushed_to);
    })?;
    let last_seq = log.last_seq.max(position).max(flushed_to);
    let files = open_files(dir, storage, &manifest)?;
    let mut masks: BTreeMap<TableId, Arc<Vec<Arc<Mask>>>> = BTreeMap::new();
    for (table, mask) in mask::of_state(&replay.state.list(TOMBSTONES), now)? {
        Arc::make_mut(masks.entry(table).or_default()).push(Arc::new(mask));
    }
    warn_of_series(&replay.catalog);
    let version = Version { seq: last_seq, active: replay.active, frozen: Vec::new(), files, masks };
    Ok(Recovered {
        lock,
        manifest,
        version,
        catalog: replay.catalog,
        state: replay.state,
        widths: replay.widths,
        log,
        next_seq: last_seq.plus(1),
        replayed: replay.rows,
    })
}

/// Says where there are more series than there is memory for: as many were acknowledged when there was more of it.
fn warn_of_series(catalog: &Catalog) {
    let (used, limit) = (catalog.series_budget().used(), catalog.series_budget().limit());
    if used > limit {
        tracing::warn!(
            used,
            limit,
            "the series take more memory than their share of memory.limit; rows of new series are refused until it is raised, or tables with many series are dropped"
        );
    }
}

/// Takes the directory for this process, for as long as the file is open.
pub(crate) fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(path::LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| Error::io("open", &path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::Locked { path: dir.to_path_buf() }),
        Err(std::fs::TryLockError::Error(error)) => Err(Error::io("lock", &path, &error)),
    }
}

/// Whether the directory has a version; fails where that is not the one that this program reads.
fn check_layout(dir: &Path, storage: &dyn Storage) -> Result<bool> {
    match check_version(dir, storage) {
        Ok(()) => Ok(true),
        Err(Error::Io { .. }) if !dir.join(path::VERSION).exists() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes it a directory of this version, unless another process did so meanwhile.
fn write_layout(dir: &Path, storage: &dyn Storage) -> Result<()> {
    if check_layout(dir, storage)? {
        return Ok(());
    }
    let path = dir.join(path::VERSION);
    let version = path::LAYOUT_VERSION.as_bytes().to_vec();
    let written = storage.write_whole(&path, &mut std::iter::once(version));
    written.map(drop).map_err(|error| Error::io("write", &path, &error))
}

struct Replay {
    catalog: Catalog,
    state: StateStore,
    active: Memtable,
    /// The automatic widths, as the chunks ask for them.
    widths: Widths,
    /// The tables whose chunks were looked at for that.
    learned: BTreeSet<TableId>,
    rows: u64,
    now: Timestamp,
}

impl Replay {
    fn checkpoint(&mut self, dir: &Path, storage: &dyn Storage, number: Option<u64>) -> Result<SeqNo> {
        let Some(number) = number else { return Ok(SeqNo(0)) };
        let path = dir.join(path::STATE_DIR).join(path::checkpoint(number));
        let bytes = storage.map(&path).map_err(|error| Error::io("read", &path, &error))?;
        let checkpoint = Checkpoint::decode(&bytes).map_err(|source| Error::Corrupt { path, source })?;
        checkpoint.catalog.iter().for_each(|change| self.catalog.apply(change));
        for table in &checkpoint.series {
            let known = self.catalog.table_by_id(table.table);
            known.into_iter().for_each(|known| known.series().restore_all(&table.keys));
        }
        for entry in checkpoint.state {
            self.state.apply(sonde_storage_format::State {
                namespace: entry.namespace,
                key: entry.key,
                value: Some(entry.value),
            });
        }
        Ok(checkpoint.position)
    }

    fn record(
        &mut self,
        record: Record,
        chunks: &BTreeMap<ChunkId, ChunkMeta>,
        besides_rows: bool,
        rows: bool,
    ) {
        match record {
            Record::Rows(record) if rows => {
                let Some(table) = self.catalog.table_by_id(record.table) else { return };
                if table.def().options.automatic && self.learned.insert(record.table) {
                    let of_table = chunks.values().filter(|meta| meta.table == record.table);
                    self.widths.learn(table.def(), &of_table.collect::<Vec<_>>(), Timestamp::MAX);
                }
                self.rows += record.times.len() as u64;
                self.active.insert(record, self.widths.of(table.def()));
            }
            Record::State(state) if besides_rows => self.state.apply(state),
            Record::Catalog(change) if besides_rows => {
                if let sonde_storage_format::CatalogChange::DropTable(table) = &change {
                    self.active.drop_table(*table);
                    self.state.remove_prefix(TOMBSTONES, &table.0.to_be_bytes());
                }
                self.catalog.apply(&change);
            }
            Record::Series(new) if besides_rows => self.restore(new.table, new.first, &new.keys),
            Record::Tombstone(tombstone) if besides_rows || rows => {
                let table = tombstone.table;
                if self.catalog.table_by_id(table).is_none() {
                    return;
                }
                let mask = Mask::new(tombstone, self.now);
                self.active.hide(table, &mask);
                // Files may need it: whether they do is found out once they are known.
                self.state.apply(mask.state(table, true));
            }
            // Messages are read where they stand: who needs one knows its number.
            _ => {}
        }
    }

    fn restore(&self, table: TableId, first: SeriesId, keys: &[SeriesKey]) {
        let Some(table) = self.catalog.table_by_id(table) else { return };
        let ids = (first.0..).map(SeriesId);
        ids.zip(keys).for_each(|(id, key)| table.series().restore(id, key));
    }
}

/// Checks that every chunk of the manifest is there, and removes files that no manifest names.
fn open_files(
    dir: &Path,
    storage: &Arc<dyn Storage>,
    manifest: &Manifest,
) -> Result<BTreeMap<TableId, Arc<TableFiles>>> {
    let chunk_dir = dir.join(path::CHUNK_DIR);
    let names = storage.list(&chunk_dir).map_err(|error| Error::io("list", &chunk_dir, &error))?;
    let mut tables: BTreeMap<_, TableFiles> = BTreeMap::new();
    for meta in manifest.state.chunks.values() {
        let name = path::chunk(meta.id);
        let path = chunk_dir.join(&name);
        if names.binary_search(&name).is_err() {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::io("open", &path, &missing));
        }
        let range = (meta.range.start, meta.range.end);
        let chunk = Arc::new(Chunk::new(meta.clone(), path, Arc::clone(storage)));
        chunk.keep();
        if let Some(seq) = manifest.state.purged.get(&meta.id) {
            chunk.purge(*seq);
        }
        let chunks = tables.entry(meta.table).or_default().partitions.entry(range).or_default();
        Arc::make_mut(chunks).push(chunk);
    }
    for files in tables.values_mut() {
        files
            .partitions
            .values_mut()
            .for_each(|chunks| Arc::make_mut(chunks).sort_by_key(|chunk| chunk.meta.seq.first));
    }
    for file in manifest.state.cold.values() {
        tables.entry(file.table).or_default().cold.insert(file.day.start, Arc::new(file.clone()));
    }
    for name in names {
        let orphan = path::parse_chunk(&name).is_some_and(|id| !manifest.state.chunks.contains_key(&id));
        if orphan || name.ends_with(path::TMP_SUFFIX) {
            let path = chunk_dir.join(name);
            tracing::info!(path = %path.display(), "removing a chunk that no manifest names");
            storage.remove(&path).map_err(|error| Error::io("remove", &path, &error))?;
        }
    }
    Ok(tables.into_iter().map(|(table, files)| (table, Arc::new(files))).collect())
}
