//! The engine's handle. Lock order: writer thread's own state, then `manifest`, then `flushes`, then a table's series;
//! versions, catalog and health are swapped without holding another lock. No lock is held over I/O but the manifest's,
//! which orders the edits of the flush thread and the job thread.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use sonde_storage_format::{
    ChunkMeta, ColdFile, Edit, SeqNo, SeqRange, SeriesId, State, TableId, Timestamp, path,
};

use crate::batch::{WriteBatch, WriteBatchBuilder};
use crate::catalog::{Catalog, Table};
use crate::clock::{ArrivalClock, Clock, SystemClock};
use crate::cold::ColdOptions;
use crate::error::{Error, Result};
use crate::flushes::Flushes;
use crate::health::Health;
use crate::jobs::{Job, Worker, run_flushes};
use crate::limits::{LOG_READ_BYTES, SEGMENT_BYTES, WRITE_QUEUE};
use crate::log_reader::{LogReader, LogTurn};
use crate::manifest::Manifest;
use crate::memtable::Memtable;
use crate::open_chunk::OpenChunks;
use crate::receipt::Receipt;
use crate::recover::recover;
use crate::scan::latest::{Latest, LatestRequest, latest};
use crate::scan::{Scan, ScanRequest, Snapshot, scan};
use crate::state::StateStore;
use crate::storage::{LocalStorage, Storage};
use crate::version::{FileEdit, Version, Versions};
use crate::wal::{Log, LogBudget, Segments};
use crate::write::{CatalogRequest, Command, Writer};

/// How long an administrator's `FLUSH` waits for the disk.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(600);

/// How an engine is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data directory; created if it is missing.
    pub data_dir: PathBuf,
    /// Bytes of rows in memory before they are flushed. Default 64 MiB.
    pub memtable_bytes: usize,
    /// Bytes of a log segment. Default 64 MiB.
    pub segment_bytes: u64,
    /// How much log is kept for readers that are behind.
    pub log: LogBudget,
    /// The cold tier, where there is one.
    pub cold: Option<ColdOptions>,
}

impl Options {
    /// The defaults, without a cold tier.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            memtable_bytes: 64 << 20,
            segment_bytes: SEGMENT_BYTES,
            log: LogBudget::default(),
            cold: None,
        }
    }
}

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
    segments: Arc<Segments>,
    cursors: Mutex<HashMap<String, SeqNo>>,
    arrivals: ArrivalClock,
    published: Mutex<SeqNo>,
    publish_signal: Condvar,
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
    /// Makes a commit visible and wakes whoever follows the log.
    pub(crate) fn publish(&self, seq: SeqNo, active: &Memtable) {
        self.versions.publish(seq, active);
        *self.published.lock() = seq;
        self.publish_signal.notify_all();
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
        commands.send(Command::Write(WriteBatch::of_state(state), reply)).map_err(|_| Error::Closed)?;
        drop(commands);
        receipt.wait().map(drop)
    }

    /// Asks the writer to look at the age of what is in memory, unless it has more to do than it can.
    pub(crate) fn ask_to_age(&self) {
        if let Some(commands) = self.commands.upgrade() {
            let _ = commands.try_send(Command::Age);
        }
    }

    /// Counts rows that a table lost because it was over its budget.
    pub(crate) fn note_evicted(&self, table: TableId, rows: u64) {
        *self.evicted.lock().entry(table).or_default() += rows;
    }

    /// Whether the engine is being closed.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
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

    /// Removes log segments that neither recovery nor a cursor needs. The flush thread alone calls this: of two
    /// threads, one could fail to remove a segment while the other removes the next.
    pub(crate) fn remove_expired_segments(&self) {
        let replay_from = {
            let manifest = self.manifest.lock();
            manifest.state.flushed_to
        };
        let held = self.cursors.lock().values().copied().min();
        let cursors_from =
            held.into_iter().chain(self.state.oldest_cursor()).min().unwrap_or(SeqNo(u64::MAX));
        // Oldest first, and none before its elders are gone: the log has no gap.
        while let Some(segment) = self.segments.take_expired(replay_from, cursors_from, &self.options.log) {
            if let Err(error) = self.storage.remove(&segment.path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %segment.path.display(), %error, "cannot remove an old log segment");
                self.segments.put_back(segment);
                break;
            }
        }
    }
}

/// The storage engine. Clones are handles to the same one; the last one's drop stops its threads and, other than
/// `close`, leaves what is in memory to the next start's recovery.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
    commands: Arc<SyncSender<Command>>,
    // IMPORTANT: behind `commands`, whose end ends the threads that this waits for.
    threads: Arc<Threads>,
}

/// The threads of an engine. Whoever drops it waits for their end.
#[derive(Debug)]
struct Threads(Mutex<Vec<JoinHandle<()>>>);

impl Threads {
    fn join(&self) {
        for thread in self.0.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the engine panicked");
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.join();
    }
}

/// What the log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogStatus {
    /// Segments on disk.
    pub segments: usize,
    /// Bytes on disk.
    pub bytes: u64,
    /// The first sequence number that can still be read.
    pub first: SeqNo,
    /// The last committed sequence number.
    pub last: SeqNo,
    /// Everything up to here is in chunks.
    pub flushed_to: SeqNo,
}

impl Engine {
    /// Opens a data directory and recovers what was acknowledged.
    pub fn open(options: Options) -> Result<Self> {
        Self::open_with(options, Arc::new(LocalStorage), Arc::new(SystemClock))
    }

    /// Opens a data directory on other files and another clock, for tests.
    pub fn open_with(options: Options, storage: Arc<dyn Storage>, clock: Arc<dyn Clock>) -> Result<Self> {
        let recovered = recover(&options, &storage)?;
        tracing::info!(
            rows = recovered.replayed,
            tables = recovered.catalog.tables().count(),
            chunks = recovered.manifest.state.chunks.len(),
            "recovered the data directory"
        );
        let segments = Arc::new(Segments::new(recovered.log.segments));
        let wal_dir = options.data_dir.join(path::WAL_DIR);
        let next = recovered.next_seq;
        let log =
            Log::start(Arc::clone(&storage), &wal_dir, Arc::clone(&segments), next, options.segment_bytes)?;
        let (jobs, job_queue) = channel();
        let (commands, queue) = sync_channel(WRITE_QUEUE);
        let commands = Arc::new(commands);
        let active = recovered.version.active.clone();
        let inner = Arc::new(Inner {
            flushes: Flushes::new(recovered.manifest.state.flushed_to),
            storage,
            clock,
            catalog: ArcSwap::from_pointee(recovered.catalog),
            state: recovered.state,
            versions: Versions::new(recovered.version),
            open_chunks: OpenChunks::default(),
            manifest: Mutex::new(recovered.manifest),
            health: Health::default(),
            segments,
            cursors: Mutex::new(HashMap::new()),
            arrivals: ArrivalClock::default(),
            published: Mutex::new(SeqNo(next.0 - 1)),
            publish_signal: Condvar::new(),
            jobs: Mutex::new(jobs),
            commands: Arc::downgrade(&commands),
            evicted: Mutex::default(),
            closing: AtomicBool::new(false),
            _lock: recovered.lock,
            options,
        });
        let writer = Writer::new(Arc::clone(&inner), log, active, next, recovered.log.replayed);
        let flushing = Arc::clone(&inner);
        let worker = Worker::new(Arc::clone(&inner));
        let threads = vec![
            spawn("sonde-writer", move || writer.run(&queue))?,
            spawn("sonde-flush", move || run_flushes(&flushing))?,
            spawn("sonde-jobs", move || worker.run(&job_queue))?,
        ];
        Ok(Self { inner, commands, threads: Arc::new(Threads(Mutex::new(threads))) })
    }

    /// Starts a batch.
    #[must_use]
    pub fn batch(&self) -> WriteBatchBuilder {
        WriteBatchBuilder::new()
    }

    /// Commits a batch; waits for room in the queue.
    #[must_use]
    pub fn write(&self, batch: WriteBatch) -> Receipt {
        let (reply, receipt) = Receipt::new();
        // A queue without a writer drops the reply, and the receipt says `Closed`.
        let _ = self.commands.send(Command::Write(batch, reply));
        receipt
    }

    /// Commits a batch unless the queue is full; then the batch comes back.
    pub fn try_write(&self, batch: WriteBatch) -> Result<Receipt, WriteBatch> {
        let (reply, receipt) = Receipt::new();
        match self.commands.try_send(Command::Write(batch, reply)) {
            Err(TrySendError::Full(Command::Write(batch, _))) => Err(batch),
            _ => Ok(receipt),
        }
    }

    /// Changes the catalog; returns once the change is durable and visible.
    pub fn change_catalog(&self, request: CatalogRequest) -> Result<SeqRange> {
        let (reply, receipt) = Receipt::new();
        self.commands.send(Command::Catalog(request, reply)).map_err(|_| self.inner.closed())?;
        receipt.wait()
    }

    /// The catalog as it is now.
    #[must_use]
    pub fn catalog(&self) -> Arc<Catalog> {
        self.inner.catalog.load_full()
    }

    /// Everything committed so far.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        // The version first: what it shows, the catalog knows.
        let version = self.inner.versions.current();
        Snapshot::new(version, self.catalog())
    }

    /// Chooses what a request needs of a snapshot.
    pub fn scan(&self, snapshot: &Snapshot, request: &ScanRequest) -> Result<Arc<Scan>> {
        scan(&self.inner, snapshot, request).map(Arc::new)
    }

    /// The newest point of each series that passes the request's filters.
    pub fn latest(&self, snapshot: &Snapshot, request: &LatestRequest) -> Result<Latest> {
        latest(&self.inner, snapshot, request)
    }

    /// The arrival time of a message: the node's clock, strictly ascending.
    #[must_use]
    pub fn arrival(&self) -> Timestamp {
        self.inner.arrivals.next(self.inner.clock.now())
    }

    /// Number of series of a table.
    #[must_use]
    pub fn series_count(&self, table: TableId) -> usize {
        self.catalog().table_by_id(table).map_or(0, |table| table.series().len())
    }

    /// The tag values of a series, in the order of the table's tags.
    #[must_use]
    pub fn series_tags(&self, table: &Table, id: SeriesId) -> Vec<Option<String>> {
        table.series().tags(id, table.tags().count())
    }

    /// The value of a key of a namespace.
    #[must_use]
    pub fn state(&self, namespace: &str, key: &[u8]) -> Option<Bytes> {
        self.inner.state.get(namespace, key)
    }

    /// All keys and values of a namespace.
    #[must_use]
    pub fn state_entries(&self, namespace: &str) -> Vec<(Vec<u8>, Bytes)> {
        self.inner.state.list(namespace)
    }

    /// The last committed sequence number.
    #[must_use]
    pub fn published(&self) -> SeqNo {
        *self.inner.published.lock()
    }

    /// Waits until something behind `after` is committed; returns the last committed sequence number.
    #[must_use]
    pub fn wait_published(&self, after: SeqNo, patience: Duration) -> SeqNo {
        let mut published = self.inner.published.lock();
        let behind = |published: &mut SeqNo| *published <= after;
        self.inner.publish_signal.wait_while_for(&mut published, behind, patience);
        *published
    }

    /// Reads on in the log: committed rows of the tables that `wanted` names.
    pub fn read_log(&self, reader: &mut LogReader, wanted: impl Fn(TableId) -> bool) -> Result<LogTurn> {
        let published = self.published();
        reader.turn(self.inner.storage.as_ref(), &self.inner.segments, published, LOG_READ_BYTES, wanted)
    }

    /// Keeps the log behind `position` for a reader of this name, within the log's budget.
    pub fn hold_log(&self, name: &str, position: SeqNo) {
        self.inner.cursors.lock().insert(name.to_owned(), position);
    }

    /// Forgets a reader.
    pub fn release_log(&self, name: &str) {
        self.inner.cursors.lock().remove(name);
    }

    /// What the log holds.
    #[must_use]
    pub fn log_status(&self) -> LogStatus {
        let list = self.inner.segments.list();
        LogStatus {
            segments: list.len(),
            bytes: list.iter().map(|segment| segment.bytes).sum(),
            first: list.first().map(|segment| segment.first_seq).unwrap_or_default(),
            last: self.published(),
            flushed_to: self.inner.manifest.lock().state.flushed_to,
        }
    }

    /// All chunks, by table and time.
    #[must_use]
    pub fn chunks(&self) -> Vec<ChunkMeta> {
        let version = self.inner.versions.current();
        version.files.values().flat_map(|files| files.chunks().map(|chunk| chunk.meta.clone())).collect()
    }

    /// All cold files, by table and day.
    #[must_use]
    pub fn cold_files(&self) -> Vec<ColdFile> {
        let version = self.inner.versions.current();
        version
            .files
            .values()
            .flat_map(|files| files.cold.values().map(|file| ColdFile::clone(file)))
            .collect()
    }

    /// Bytes and rows in memory, not yet in chunks.
    #[must_use]
    pub fn memory(&self) -> (usize, usize) {
        let version = self.inner.versions.current();
        let memtables = || version.frozen.iter().map(Arc::as_ref).chain([&version.active]);
        (memtables().map(|memtable| memtable.bytes).sum(), memtables().map(|memtable| memtable.rows).sum())
    }

    /// Rows that a table lost since the start because it had more bytes than its `max_bytes`.
    #[must_use]
    pub fn evicted(&self, table: TableId) -> u64 {
        self.inner.evicted.lock().get(&table).copied().unwrap_or_default()
    }

    /// Whether writes are accepted: no disk error, and no thread of the engine that panicked.
    pub fn health(&self) -> Result<()> {
        self.inner.health.check()
    }

    /// Writes all rows in memory as chunks; returns when they are.
    pub fn flush(&self) -> Result<()> {
        // What failed before is tried again now; should it work, there is room for what is frozen next.
        self.inner.flushes.ask();
        let (reply, frozen) = channel();
        self.commands.send(Command::Freeze(reply)).map_err(|_| self.inner.closed())?;
        let position = frozen.recv().map_err(|_| self.inner.closed())??;
        self.inner.flushes.wait_flushed(position, FLUSH_TIMEOUT)
    }

    /// Merges the chunks of each partition of a table into one.
    pub fn compact(&self, table: TableId) -> Result<()> {
        self.flush()?;
        let (reply, done) = channel();
        self.inner.send_job(Job::Compact(table, reply));
        done.recv().map_err(|_| self.inner.closed())?
    }

    /// Moves the complete days of a table that end at or before `before` to the cold tier. Returns how many moved.
    pub fn cool(&self, table: TableId, before: Timestamp) -> Result<usize> {
        self.flush()?;
        let (reply, done) = channel();
        self.inner.send_job(Job::Cool(table, before, reply));
        done.recv().map_err(|_| self.inner.closed())?
    }

    /// Flushes and stops. Other handles answer `Closed` from here on.
    pub fn close(&self) -> Result<()> {
        self.inner.closing.store(true, Ordering::Relaxed);
        // While there is a log, which has to know what becomes of files of the cold tier.
        let (reply, settled) = channel();
        self.inner.send_job(Job::Settle(reply));
        let _ = settled.recv();
        let flushed = match self.health() {
            Ok(()) => self.flush(),
            Err(error) => Err(error),
        };
        let _ = self.commands.send(Command::Stop);
        self.threads.join();
        flushed
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> &std::path::Path {
        &self.inner.options.data_dir
    }

    /// The node's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| Error::Failed(format!("cannot start thread {name}: {error}")))
}
