//! The engine's handle. Lock order: writer thread's own state, then `manifest`, then `flushes`, then a table's series;
//! versions, catalog and health are swapped without holding another lock. No lock is held over I/O but the manifest's,
//! which orders the edits of the flush thread and the job thread.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use sonde_storage_format::{
    ChunkMeta, ColdFile, Edit, MessageRef, SeqNo, SeqRange, SeriesId, State, TableId, Timestamp, path,
};

use crate::activity::{Activity, JobKind, Subject};
use crate::backup::{BackupStore, Backups, Report};
use crate::batch::{WriteBatch, WriteBatchBuilder};
use crate::catalog::{Catalog, CatalogRequest, Table};
use crate::clock::{ArrivalClock, Clock, SystemClock};
use crate::cold::ColdOptions;
use crate::compact::stats::{CompactionStats, Compactions};
use crate::compact::width::Widths;
use crate::error::{Error, Result};
use crate::flushes::Flushes;
use crate::health::Health;
use crate::jobs::{Job, Worker, run_flushes};
use crate::limits::{LOG_READ_BYTES, MERGE_BYTES, OPEN_CHUNK_BYTES, QUEUE_BYTES, SEGMENT_BYTES, WRITE_QUEUE};
use crate::log_reader::{LogReader, LogTurn};
use crate::manifest::Manifest;
use crate::memtable::Memtable;
use crate::message_reader::{MessageReader, MessageTurn};
use crate::open_chunk::OpenChunks;
use crate::queue::QueuedBytes;
use crate::receipt::Receipt;
use crate::recover::recover;
use crate::scan::latest::{Latest, LatestRequest, latest};
use crate::scan::{Scan, ScanRequest, Snapshot, scan};
use crate::state::StateStore;
use crate::storage::{LocalStorage, Storage};
use crate::version::{FileEdit, Version, Versions};
use crate::wal::{Kept, Log, LogBudget, Segments};
use crate::write::{Command, Writer};

/// How long an administrator's `FLUSH` waits for the disk.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(600);

/// How an engine is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data directory; created if it is missing.
    pub data_dir: PathBuf,
    /// Bytes of rows in memory before they are flushed. Default 64 MiB.
    pub memtable_bytes: usize,
    /// Bytes of rows that wait for their commit, or are being committed. Default 64 MiB.
    pub queue_bytes: usize,
    /// Bytes of the directories of chunks that stay open for the next reader. Default 64 MiB.
    pub directory_bytes: usize,
    /// About the bytes of the windows of all sources of one merge, in a scan as in compaction. Default 16 MiB.
    pub merge_bytes: usize,
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
            queue_bytes: QUEUE_BYTES,
            directory_bytes: OPEN_CHUNK_BYTES,
            merge_bytes: MERGE_BYTES,
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
    pub(crate) queued: QueuedBytes,
    /// How wide the partitions of rows to come are, where that is automatic.
    pub(crate) widths: Widths,
    /// What flushes and merges have written.
    pub(crate) compactions: Compactions,
    pub(crate) activity: Activity,
    pub(crate) backups: Backups,
    pub(crate) segments: Arc<Segments>,
    pub(crate) cursors: Mutex<HashMap<String, SeqNo>>,
    /// Seconds of log that are kept for readers of the past.
    log_age: AtomicU64,
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
        // IMPORTANT: behind the manifest. A backup pins first and looks then, so what goes in spite of it is flushed.
        let replay_from = self.backups.pinned().map_or(replay_from, |pinned| pinned.min(replay_from));
        let held = self.cursors.lock().values().copied().min();
        let backups = self.backups.log_wanted_from(&self.state, self.clock.now(), self.options.log.max_age);
        let held = held.into_iter().chain(self.state.oldest_cursor()).chain(backups);
        let cursors_from = held.min().unwrap_or(SeqNo(u64::MAX));
        // Oldest first, and none before its elders are gone: the log has no gap.
        let kept = Kept {
            replay_from,
            cursors_from,
            age: Duration::from_secs(self.log_age.load(Ordering::Relaxed)),
        };
        while let Some(segment) = self.segments.take_expired(&kept, &self.options.log) {
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
    pub(crate) inner: Arc<Inner>,
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

impl Engine {
    /// Opens a data directory and recovers what was acknowledged.
    pub fn open(options: Options) -> Result<Self> {
        Self::open_with(options, Arc::new(LocalStorage), Arc::new(SystemClock))
    }

    /// Opens a data directory on other files and another clock, for tests.
    pub fn open_with(options: Options, storage: Arc<dyn Storage>, clock: Arc<dyn Clock>) -> Result<Self> {
        let recovered = recover(&options, &storage, clock.now())?;
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
            open_chunks: OpenChunks::new(options.directory_bytes),
            queued: QueuedBytes::new(options.queue_bytes),
            manifest: Mutex::new(recovered.manifest),
            health: Health::default(),
            widths: recovered.widths,
            compactions: Compactions::default(),
            activity: Activity::default(),
            backups: Backups::default(),
            segments,
            cursors: Mutex::new(HashMap::new()),
            log_age: AtomicU64::new(0),
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
        self.inner.queued.take(batch.bytes);
        // A queue without a writer drops the reply, and the receipt says `Closed`.
        let _ = self.commands.send(Command::Write(batch, reply));
        receipt
    }

    /// Commits a batch unless the queue is full; then the batch comes back.
    pub fn try_write(&self, batch: WriteBatch) -> Result<Receipt, WriteBatch> {
        let (reply, receipt) = Receipt::new();
        let bytes = batch.bytes;
        if !self.inner.queued.try_take(bytes) {
            return Err(batch);
        }
        match self.commands.try_send(Command::Write(batch, reply)) {
            Err(TrySendError::Full(Command::Write(batch, _))) => {
                self.inner.queued.give(bytes);
                Err(batch)
            }
            _ => Ok(receipt),
        }
    }

    /// Waits for room for a batch.
    pub(crate) fn queue(&self, batch: &WriteBatch) {
        self.inner.queued.take(batch.bytes);
    }

    /// Gives the writer a command.
    pub(crate) fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| self.inner.closed())
    }

    /// Why nobody answers.
    pub(crate) fn closed(&self) -> Error {
        self.inner.closed()
    }

    /// Changes the catalog; returns once the change is durable and visible.
    pub fn change_catalog(&self, request: CatalogRequest) -> Result<SeqRange> {
        let (reply, receipt) = Receipt::new();
        self.send(Command::Catalog(request, reply))?;
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

    /// Gives the logged messages of these ranges, which ascend, to `each` in their order, until it breaks.
    pub fn read_messages(
        &self,
        reader: &mut MessageReader,
        wanted: &[SeqRange],
        each: &mut dyn FnMut(MessageRef<'_>) -> ControlFlow<()>,
    ) -> Result<MessageTurn> {
        let published = self.published();
        reader.read(self.inner.storage.as_ref(), &self.inner.segments, published, wanted, each)
    }

    /// Keeps the log of so long, within its budget, for whoever wants to read messages of the past.
    pub fn keep_log_for(&self, age: Duration) {
        self.inner.log_age.store(age.as_secs(), Ordering::Relaxed);
    }

    /// Keeps the log behind `position` for a reader of this name, within the log's budget.
    pub fn hold_log(&self, name: &str, position: SeqNo) {
        self.inner.cursors.lock().insert(name.to_owned(), position);
    }

    /// Forgets a reader.
    pub fn release_log(&self, name: &str) {
        self.inner.cursors.lock().remove(name);
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
        self.send(Command::Freeze(reply))?;
        let position = frozen.recv().map_err(|_| self.inner.closed())??;
        self.inner.flushes.wait_flushed(position, FLUSH_TIMEOUT)
    }

    /// Merges the chunks of each partition of a table into one.
    pub fn compact(&self, table: TableId) -> Result<()> {
        self.flush()?;
        let (reply, done) = channel();
        self.inner.activity.asked(Subject::new(JobKind::Compact, Some(table), None), self.now());
        self.inner.send_job(Job::Compact(table, reply));
        done.recv().map_err(|_| self.inner.closed())?
    }

    /// Carries out the merges that are due by themselves, now and not at the next tick; returns how many.
    pub fn compact_due(&self) -> Result<usize> {
        let (reply, done) = channel();
        self.inner.send_job(Job::CompactDue(reply));
        done.recv().map_err(|_| self.inner.closed())?
    }

    /// What flushes and merges have written of a table since the start.
    #[must_use]
    pub fn compaction_stats(&self, table: TableId) -> CompactionStats {
        self.inner.compactions.of(table)
    }

    /// The width in nanoseconds of the partitions that new rows of a table go to: as set, or as its rows ask for.
    #[must_use]
    pub fn partition_width(&self, table: &Table) -> i64 {
        self.inner.widths.of(table.def())
    }

    /// Moves the complete days of a table that end at or before `before` to the cold tier. Returns how many moved.
    pub fn cool(&self, table: TableId, before: Timestamp) -> Result<usize> {
        self.flush()?;
        let (reply, done) = channel();
        self.inner.activity.asked(Subject::new(JobKind::Cool, Some(table), None), self.now());
        self.inner.send_job(Job::Cool(table, before, reply));
        done.recv().map_err(|_| self.inner.closed())?
    }

    /// Whether the engine was not closed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.inner.is_closing()
    }

    /// Whether memory is short: then batches are committed one at a time, and rows in memory are flushed now.
    pub fn relieve(&self, tight: bool) {
        self.inner.queued.set_tight(tight);
        if tight && self.inner.flushes.is_empty() && self.memory().1 > 0 {
            let _ = self.commands.try_send(Command::Freeze(channel().0));
        }
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

    /// Makes a backup in `store`, where that has earlier ones of this engine, of what has changed since. `name` is what
    /// the destination is called: the log waits, within its budget, for the next backup there. Blocks until it is done.
    pub fn backup(&self, store: &BackupStore, name: &str) -> Result<Report> {
        crate::backup::back_up(&self.inner, store, name)
    }

    /// Ends the backup that runs; `false` where none does.
    #[must_use]
    pub fn cancel_backup(&self) -> bool {
        self.inner.backups.cancel()
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
