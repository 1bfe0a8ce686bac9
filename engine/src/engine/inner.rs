//! What all parts of the engine share.
//!
//! # Invariants
//! - Lock order: writer thread's own state, then `manifest`, then `flushes`, then a table's series; versions, catalog and
//!   health are swapped without holding another lock.
//! - No lock is held over I/O but the manifest's, which orders the edits of the flush thread and the job thread.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, SyncSender, channel};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use sonde_storage_format::{ChunkMeta, Edit, SeqNo, State, TableId};

use super::options::Options;
use super::published::Published;
use crate::activity::Activity;
use crate::backup::Backups;
use crate::batch::WriteBatch;
use crate::catalog::Catalog;
use crate::clock::{ArrivalClock, Clock};
use crate::compact::stats::Compactions;
use crate::compact::width::Widths;
use crate::error::{Error, Result};
use crate::flushes::Flushes;
use crate::health::Health;
use crate::jobs::Job;
use crate::log_holds::LogHolds;
use crate::manifest::Manifest;
use crate::memtable::Memtable;
use crate::open_chunk::OpenChunks;
use crate::queue::QueuedBytes;
use crate::receipt::Receipt;
use crate::recover::Recovered;
use crate::state::StateStore;
use crate::storage::Storage;
use crate::version::{FileEdit, Version, Versions};
use crate::wal::Segments;
use crate::write::Command;

/// What all parts of the engine share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) options: Options,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) catalog: ArcSwap<Catalog>,
    pub(crate) state: StateStore,
    pub(crate) versions: Versions,
    pub(crate) open_chunks: OpenChunks,
    pub(crate) manifest: Mutex<Manifest>,
    pub(crate) flushes: Flushes,
    pub(crate) health: Health,
    pub(crate) queued: QueuedBytes,
    /// How wide the partitions of rows to come are, where that is automatic.
    pub(crate) widths: Widths,
    /// What flushes and merges have written.
    pub(crate) compactions: Compactions,
    pub(crate) activity: Activity,
    pub(crate) backups: Backups,
    pub(crate) segments: Arc<Segments>,
    pub(crate) holds: LogHolds,
    pub(super) arrivals: ArrivalClock,
    pub(super) published: Published,
    jobs: Mutex<Sender<Job>>,
    /// The writer's queue. Weak, because its end, with the last handle, is what ends the threads.
    commands: Weak<SyncSender<Command>>,
    /// Rows that went because their table was over its budget of bytes, since the start.
    evicted: Mutex<HashMap<TableId, u64>>,
    /// Set by `close`: work of many parts ends behind the part that is under way.
    closing: AtomicBool,
    /// Held for as long as the process owns the data directory.
    _lock: File,
}

impl Inner {
    /// What was recovered, with queues whose other ends the threads will have.
    pub(super) fn new(
        options: Options,
        storage: Arc<dyn Storage>,
        clock: Arc<dyn Clock>,
        recovered: Recovered,
        commands: &Arc<SyncSender<Command>>,
        jobs: Sender<Job>,
    ) -> Self {
        Self {
            flushes: Flushes::new(recovered.manifest.state.flushed_to),
            storage,
            clock,
            catalog: ArcSwap::from_pointee(recovered.catalog),
            state: recovered.state,
            versions: Versions::new(recovered.version),
            open_chunks: OpenChunks::new(options.directory_bytes),
            queued: QueuedBytes::new(options.queue_bytes),
            manifest: Mutex::new(recovered.manifest),
            health: Health::default(),
            widths: recovered.widths,
            compactions: Compactions::default(),
            activity: Activity::default(),
            backups: Backups::default(),
            segments: Arc::new(Segments::new(recovered.log.segments)),
            holds: LogHolds::default(),
            arrivals: ArrivalClock::default(),
            published: Published::new(SeqNo(recovered.next_seq.0 - 1)),
            jobs: Mutex::new(jobs),
            commands: Arc::downgrade(commands),
            evicted: Mutex::default(),
            closing: AtomicBool::new(false),
            _lock: recovered.lock,
            options,
        }
    }

    /// Makes a commit visible and wakes whoever follows the log.
    pub(crate) fn publish(&self, seq: SeqNo, active: &Memtable) {
        self.versions.publish(seq, active);
        self.published.set(seq);
    }

    /// Makes an edit durable, then visible.
    pub(crate) fn install(&self, edits: &[Edit], edit: &FileEdit) -> Result<()> {
        let mut manifest = self.manifest.lock();
        let appended = manifest.append(edits);
        // Where nobody knows whether the edit is on disk, its files have to stay too.
        if appended.is_ok() || !manifest.is_settled() {
            edit.add.iter().for_each(|chunk| chunk.keep());
        }
        appended.map(|()| self.versions.install(edit))?;
        if !edit.remove.is_empty() {
            self.open_chunks.drop_obsolete();
        }
        Ok(())
    }

    /// The version and the position that it is flushed to, of the same moment.
    pub(crate) fn flushed(&self) -> (Arc<Version>, SeqNo) {
        let manifest = self.manifest.lock();
        (self.versions.current(), manifest.state.flushed_to)
    }

    /// Commits state of the engine itself, as anybody's is. Not for the writer's thread, which it waits for.
    pub(crate) fn commit_state(&self, state: Vec<State>) -> Result<()> {
        let (reply, receipt) = Receipt::new();
        let commands = self.commands.upgrade().ok_or(Error::Closed)?;
        let batch = WriteBatch::of_state(state);
        self.queued.take(batch.bytes);
        commands.send(Command::Write(batch, reply)).map_err(|_| Error::Closed)?;
        drop(commands);
        receipt.wait().map(drop)
    }

    /// The last committed sequence number. Other than `published`, it is not behind what a thread has seen of a commit.
    pub(crate) fn position(&self) -> Result<SeqNo> {
        let (reply, position) = channel();
        let commands = self.commands.upgrade().ok_or(Error::Closed)?;
        commands.send(Command::Position(reply)).map_err(|_| self.closed())?;
        drop(commands);
        position.recv().map_err(|_| self.closed())
    }

    /// Asks the writer to look at the age of what is in memory, unless it has more to do than it can.
    pub(crate) fn ask_to_age(&self) {
        if let Some(commands) = self.commands.upgrade() {
            let _ = commands.try_send(Command::Age);
        }
    }

    /// Looks again how wide the partitions of these tables should be, once a flush has shown more of them.
    pub(crate) fn learn_widths(&self, tables: &BTreeSet<TableId>) {
        let version = self.versions.current();
        let catalog = self.catalog.load();
        self.widths.retain(|table| catalog.table_by_id(table).is_some());
        self.compactions.retain(|table| catalog.table_by_id(table).is_some());
        for id in tables {
            let Some((table, files)) = catalog.table_by_id(*id).zip(version.files.get(id)) else { continue };
            let metas: Vec<&ChunkMeta> = files.chunks().map(|chunk| &chunk.meta).collect();
            if let Some((before, after)) = self.widths.learn(table.def(), &metas, self.clock.now()) {
                let secs = |nanos: i64| nanos / 1_000_000_000;
                let (table, before, after) = (table.full_name(), secs(before), secs(after));
                tracing::info!(
                    table,
                    before,
                    after,
                    "new rows go to partitions of another width, in seconds"
                );
            }
        }
    }

    /// How many rows a table lost because it was over its budget, since the start.
    pub(crate) fn evicted(&self, table: TableId) -> u64 {
        self.evicted.lock().get(&table).copied().unwrap_or_default()
    }

    /// Counts rows that a table lost because it was over its budget.
    pub(crate) fn note_evicted(&self, table: TableId, rows: u64) {
        *self.evicted.lock().entry(table).or_default() += rows;
    }

    /// Whether the engine is being closed.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// From now on it is.
    pub(super) fn set_closing(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Why nobody answers.
    pub(crate) fn closed(&self) -> Error {
        self.health.check().err().unwrap_or(Error::Closed)
    }

    /// Asks for background work.
    pub(crate) fn send_job(&self, job: Job) {
        if self.jobs.lock().send(job).is_err() {
            tracing::warn!("background work was asked for after the engine was closed");
        }
    }
}
