//! Background work: one enum, one channel, one thread.
//!
//! # Invariants
//! - What to do is decided by pure functions over a `Version`; this file only carries it out.
//! - A job that fails leaves the version as it was and is tried again.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use object_store::{ObjectStoreExt, path::Path as ObjectPath};
use parking_lot::{Condvar, Mutex};
use sonde_storage_format::{
    CatalogChange, Checkpoint, ChunkId, ColdFile, Edit, SeqNo, SeqRange, StateEntry, TableId, TableSeries,
    TimeRange, Timestamp, path,
};

use crate::catalog::Table;
use crate::cold::{DAY, day_of, write::write_day};
use crate::compact;
use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::flush::{flush, write_chunk};
use crate::memtable::Memtable;
use crate::retention::expired;
use crate::scan::ScanContext;
use crate::scan::merge::Merge;
use crate::scan::prune::Layer;
use crate::scan::source::{ChunkSource, Source, open as open_sources};
use crate::version::{Chunk, FileEdit};

/// How often the thread looks for work by itself.
const TICK: Duration = Duration::from_secs(1);
/// How often it looks for rows that are old enough to go or to cool.
const AGE_TICK: Duration = Duration::from_secs(60);

/// Background work.
#[derive(Debug)]
pub(crate) enum Job {
    /// Write frozen memtables as chunks.
    Flush,
    /// Merge all chunks of each partition of a table.
    Compact(TableId, Sender<Result<()>>),
    /// Move complete days of a table that end at or before an instant to the cold tier; answers with the files written.
    Cool(TableId, Timestamp, Sender<Result<usize>>),
    /// Drop files whose rows have outlived their table's retention, or whose table is gone.
    Retain,
    /// Flush what is frozen, then end.
    Stop,
}

/// A frozen memtable and everything a checkpoint needs, as of one position.
#[derive(Debug)]
pub(crate) struct FlushInput {
    pub(crate) memtable: Arc<Memtable>,
    pub(crate) position: SeqNo,
    pub(crate) catalog: Vec<CatalogChange>,
    /// How many series each table had.
    pub(crate) series: Vec<(Arc<Table>, usize)>,
    pub(crate) state: Vec<StateEntry>,
}

/// Frozen memtables that wait, oldest first, and the position up to which everything is flushed.
#[derive(Debug, Default)]
pub(crate) struct Flushes {
    inner: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<Arc<FlushInput>>,
    flushed_to: SeqNo,
    /// How many flushes failed, and why the last one did, until one succeeds.
    failures: u64,
    failure: Option<Error>,
}

impl Flushes {
    pub(crate) fn new(flushed_to: SeqNo) -> Self {
        Self { inner: Mutex::new(Waiting { flushed_to, ..Waiting::default() }), changed: Condvar::new() }
    }

    pub(crate) fn push(&self, input: FlushInput) {
        self.inner.lock().queue.push_back(Arc::new(input));
    }

    fn first(&self) -> Option<Arc<FlushInput>> {
        self.inner.lock().queue.front().cloned()
    }

    fn done(&self, position: SeqNo) {
        let mut inner = self.inner.lock();
        inner.queue.pop_front();
        inner.flushed_to = position;
        inner.failure = None;
        self.changed.notify_all();
    }

    fn failed(&self, error: &Error) {
        let mut inner = self.inner.lock();
        inner.failures += 1;
        inner.failure = Some(error.clone());
        self.changed.notify_all();
    }

    /// Waits until fewer than `limit` memtables wait. Fails where that takes too long, and at once while flushes fail.
    pub(crate) fn wait_for_room(&self, limit: usize, patience: Duration) -> Result<()> {
        let mut inner = self.inner.lock();
        let full = |inner: &mut Waiting| inner.queue.len() >= limit && inner.failure.is_none();
        self.changed.wait_while_for(&mut inner, full, patience);
        if inner.queue.len() < limit {
            return Ok(());
        }
        Err(inner
            .failure
            .clone()
            .unwrap_or_else(|| Error::Full(format!("{limit} memtables wait for their flush"))))
    }

    /// Waits until everything up to `position` that was frozen is flushed, or until a flush fails.
    pub(crate) fn wait_flushed(&self, position: SeqNo, patience: Duration) -> Result<()> {
        let mut inner = self.inner.lock();
        let failures = inner.failures;
        let behind = |inner: &Waiting| !inner.queue.is_empty() && inner.flushed_to < position;
        let waits = |inner: &mut Waiting| behind(inner) && inner.failures == failures;
        self.changed.wait_while_for(&mut inner, waits, patience);
        if !behind(&inner) {
            return Ok(());
        }
        let late = || Error::Full(format!("the flush did not end within {} s", patience.as_secs()));
        Err(inner.failure.clone().filter(|_| inner.failures > failures).unwrap_or_else(late))
    }
}

/// The job thread.
pub(crate) struct Worker {
    inner: Arc<Inner>,
    /// Cold files that a newer one replaced, until their readers have gone.
    replaced: Vec<Arc<ColdFile>>,
    last_aging: Option<Instant>,
}

impl Worker {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner, replaced: Vec::new(), last_aging: None }
    }

    /// Serves jobs until `Stop`.
    pub(crate) fn run(mut self, jobs: &Receiver<Job>) {
        let mut next_tick = Instant::now() + TICK;
        loop {
            // However many jobs come, the tick has its turn.
            let patience = next_tick.saturating_duration_since(Instant::now());
            let job =
                if patience.is_zero() { Err(RecvTimeoutError::Timeout) } else { jobs.recv_timeout(patience) };
            match job {
                Ok(Job::Flush) => self.report("flush", |worker| worker.flush_all()),
                Ok(Job::Compact(table, reply)) => {
                    let _ = reply.send(self.compact_table(table));
                }
                Ok(Job::Cool(table, before, reply)) => {
                    let _ = reply.send(self.cool(table, before));
                }
                Ok(Job::Retain) => self.report("retention", |worker| worker.retain()),
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    self.tick();
                    next_tick = Instant::now() + TICK;
                }
            }
        }
        self.report("flush", |worker| worker.flush_all());
        self.report("cold tier clean-up", |worker| worker.delete_replaced());
    }

    fn report(&mut self, job: &'static str, run: impl FnOnce(&mut Self) -> Result<()>) {
        if let Err(error) = run(self) {
            tracing::error!(job, %error, "background job failed; it will be tried again");
        }
    }

    fn tick(&mut self) {
        self.report("flush", |worker| worker.flush_all());
        self.report("compaction", |worker| worker.compact_one());
        self.report("cold tier clean-up", |worker| worker.delete_replaced());
        if self.last_aging.is_none_or(|last| last.elapsed() >= AGE_TICK) {
            self.last_aging = Some(Instant::now());
            self.report("retention", |worker| worker.retain());
            self.report("cooling", |worker| worker.cool_aged());
            self.inner.remove_expired_segments();
        }
    }

    fn flush_all(&mut self) -> Result<()> {
        while let Some(input) = self.inner.flushes.first() {
            self.flush_one(&input).inspect_err(|error| self.inner.flushes.failed(error))?;
            self.inner.flushes.done(input.position);
        }
        Ok(())
    }

    fn flush_one(&mut self, input: &FlushInput) -> Result<()> {
        let inner = &self.inner;
        let chunks = match input.memtable.seq {
            Some(seq) => flush(inner, &input.memtable, SeqRange { first: seq.first, last: seq.last })?,
            None => Vec::new(),
        };
        let number = write_checkpoint(inner, input)?;
        let mut edits: Vec<Edit> = chunks.iter().map(|chunk| Edit::AddChunk(chunk.meta.clone())).collect();
        edits.extend([Edit::FlushedTo(input.position), Edit::Checkpoint(number)]);
        inner.install(&edits, &FileEdit { add: chunks, flushed: true, ..FileEdit::default() })?;
        remove_checkpoints_before(inner, number);
        inner.remove_expired_segments();
        Ok(())
    }

    fn compact_one(&mut self) -> Result<()> {
        match compact::plan(&self.inner.versions.current()) {
            Some(plan) => compact::compact(&self.inner, &plan),
            None => Ok(()),
        }
    }

    fn compact_table(&mut self, table: TableId) -> Result<()> {
        self.flush_all()?;
        let plans = compact::plan_all(&self.inner.versions.current(), table);
        plans.iter().try_for_each(|plan| compact::compact(&self.inner, plan))
    }

    fn retain(&mut self) -> Result<()> {
        let version = self.inner.versions.current();
        let gone = expired(&version, &self.inner.catalog.load(), self.inner.clock.now());
        if gone.is_empty() {
            return Ok(());
        }
        let mut edits: Vec<Edit> = gone.chunks.iter().map(|(_, id)| Edit::RemoveChunk(*id)).collect();
        edits.extend(gone.cold.iter().map(|(table, day)| Edit::RemoveCold { table: *table, day: *day }));
        for (table, day) in &gone.cold {
            self.replaced
                .extend(version.files.get(table).and_then(|files| files.cold.get(&day.start)).cloned());
        }
        tracing::info!(chunks = gone.chunks.len(), cold_days = gone.cold.len(), "retention removed files");
        let edit = FileEdit { remove: gone.chunks, remove_cold: gone.cold, ..FileEdit::default() };
        self.inner.install(&edits, &edit)
    }

    /// Cools the tables that say when their rows should go.
    fn cool_aged(&mut self) -> Result<()> {
        if self.inner.options.cold.is_none() {
            return Ok(());
        }
        let now = self.inner.clock.now().as_nanos();
        let catalog = self.inner.catalog.load_full();
        for table in catalog.tables().filter(|table| table.def().options.cold_after > 0) {
            let before = Timestamp::from_nanos(now.saturating_sub(table.def().options.cold_after));
            // Nothing is frozen for this: a day this old is in chunks already, but for late rows, which stay hot.
            self.cool_days(table.id(), before)?;
        }
        Ok(())
    }

    /// Moves every complete day that ends at or before `before`, rows in memory included.
    fn cool(&mut self, table: TableId, before: Timestamp) -> Result<usize> {
        self.flush_all()?;
        self.cool_days(table, before)
    }

    fn cool_days(&mut self, id: TableId, before: Timestamp) -> Result<usize> {
        let inner = Arc::clone(&self.inner);
        let Some(cold) = inner.options.cold.clone() else {
            return Err(Error::Cold("no cold tier is configured; set cold.url".into()));
        };
        let catalog = inner.catalog.load_full();
        let Some(table) = catalog.table_by_id(id) else { return Ok(0) };
        self.split_wide(id, before)?;
        let version = inner.versions.current();
        let position = inner.manifest.lock().state.flushed_to;
        let Some(files) = version.files.get(&id) else { return Ok(0) };
        let order = table.series().order();
        let mut moved = 0;
        for day in complete_days(files.chunks(), before) {
            let chunks = within(files.chunks(), &day);
            let mut layers: Vec<Layer> =
                files.cold.get(&day.start).map(|file| Layer::Cold(Arc::clone(file))).into_iter().collect();
            let mut hot = chunks.clone();
            hot.sort_by_key(|chunk| chunk.meta.seq.first);
            layers.extend(hot.into_iter().map(Layer::Chunk));
            let context = Arc::new(ScanContext::whole(table, Arc::clone(&order), day));
            let sources = open_sources(&inner, &context, &crate::scan::prune::Group { layers })?;
            let merge = Merge::newest_wins(Arc::clone(&context), sources);
            inner.manifest.lock().settle()?;
            let file = write_day(&cold, &context, day, position, merge)?;
            let remove: Vec<(TableId, ChunkId)> = chunks.iter().map(|chunk| (id, chunk.meta.id)).collect();
            let mut edits: Vec<Edit> = remove.iter().map(|(_, chunk)| Edit::RemoveChunk(*chunk)).collect();
            edits.extend(file.iter().cloned().map(Edit::AddCold));
            let add_cold = file.iter().cloned().collect();
            let installed = inner.install(&edits, &FileEdit { remove, add_cold, ..FileEdit::default() });
            match (&installed, file) {
                (Ok(()), Some(_)) => self.replaced.extend(files.cold.get(&day.start).cloned()),
                (Err(_), Some(file)) if inner.manifest.lock().is_settled() => {
                    self.replaced.push(Arc::new(file))
                }
                _ => {}
            }
            installed?;
            moved += 1;
        }
        if moved > 0 {
            tracing::info!(table = table.full_name(), days = moved, "moved days to the cold tier");
        }
        Ok(moved)
    }

    /// Rewrites chunks that reach over more than one day, one chunk for each day, where a day of theirs is to cool.
    fn split_wide(&mut self, id: TableId, before: Timestamp) -> Result<()> {
        let inner = &self.inner;
        let version = inner.versions.current();
        let catalog = inner.catalog.load_full();
        let (Some(files), Some(table)) = (version.files.get(&id), catalog.table_by_id(id)) else {
            return Ok(());
        };
        let order = table.series().order();
        let wide = |chunk: &&Arc<Chunk>| {
            chunk.meta.range.end.as_nanos().saturating_sub(chunk.meta.range.start.as_nanos()) > DAY
        };
        for chunk in files.chunks().filter(wide).filter(|chunk| day_of(chunk.meta.times.0).end <= before) {
            let mut parts = Vec::new();
            let mut day = day_of(chunk.meta.times.0);
            loop {
                let context = Arc::new(ScanContext::whole(table, Arc::clone(&order), day));
                let source = Source::Chunk(ChunkSource::new(&context, chunk, false));
                let merge = Merge::newest_wins(Arc::clone(&context), vec![source]);
                parts.extend(write_chunk(inner, &context, day, chunk.meta.seq, merge)?);
                if day.end > chunk.meta.times.1 {
                    break;
                }
                day = day_of(day.end);
            }
            let mut edits = vec![Edit::RemoveChunk(chunk.meta.id)];
            edits.extend(parts.iter().map(|part| Edit::AddChunk(part.meta.clone())));
            let edit = FileEdit { add: parts, remove: vec![(id, chunk.meta.id)], ..FileEdit::default() };
            inner.install(&edits, &edit)?;
        }
        Ok(())
    }

    fn delete_replaced(&mut self) -> Result<()> {
        let Some(cold) = &self.inner.options.cold else { return Ok(()) };
        let (unread, read): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.replaced).into_iter().partition(|file| Arc::strong_count(file) == 1);
        self.replaced = read;
        for file in unread {
            let path = ObjectPath::from(file.path.as_str());
            if let Err(error) = cold.runtime.block_on(cold.store.delete(&path)) {
                self.replaced.push(file);
                return Err(crate::cold::store_error(error));
            }
        }
        Ok(())
    }
}

/// The days, oldest first, that chunks have rows of and that end at or before `before`.
fn complete_days<'a>(chunks: impl Iterator<Item = &'a Arc<Chunk>>, before: Timestamp) -> Vec<TimeRange> {
    let mut days: Vec<TimeRange> = chunks.map(|chunk| day_of(chunk.meta.times.0)).collect();
    days.retain(|day| day.end <= before);
    days.sort_by_key(|day| day.start);
    days.dedup();
    days
}

fn within<'a>(chunks: impl Iterator<Item = &'a Arc<Chunk>>, day: &TimeRange) -> Vec<Arc<Chunk>> {
    let inside = |chunk: &&Arc<Chunk>| chunk.meta.range.start >= day.start && chunk.meta.range.end <= day.end;
    chunks.filter(inside).cloned().collect()
}

fn state_dir(inner: &Inner) -> std::path::PathBuf {
    inner.options.data_dir.join(path::STATE_DIR)
}

fn write_checkpoint(inner: &Inner, input: &FlushInput) -> Result<u64> {
    let number = inner.manifest.lock().state.checkpoint.unwrap_or_default() + 1;
    let series = input
        .series
        .iter()
        .map(|(table, count)| TableSeries { table: table.id(), keys: table.series().first_keys(*count) });
    let checkpoint = Checkpoint {
        position: input.position,
        catalog: input.catalog.clone(),
        series: series.collect(),
        state: input.state.clone(),
    };
    let path = state_dir(inner).join(path::checkpoint(number));
    let written = inner.storage.write_whole(&path, &mut std::iter::once(checkpoint.encode()));
    written.map_err(|error| Error::io("write", &path, &error))?;
    Ok(number)
}

fn remove_checkpoints_before(inner: &Inner, number: u64) {
    let dir = state_dir(inner);
    for name in inner.storage.list(&dir).unwrap_or_default() {
        if path::parse_checkpoint(&name).is_some_and(|known| known < number) {
            remove_quietly(inner, &dir.join(name));
        }
    }
}

fn remove_quietly(inner: &Inner, path: &Path) {
    if let Err(error) = inner.storage.remove(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove an old file");
    }
}
