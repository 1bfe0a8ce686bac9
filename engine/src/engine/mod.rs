//! The engine's handle: how it is opened and closed, and how it writes. What it shares with its threads is in `inner`.

mod inner;
mod options;
mod published;
mod read;
mod threads;
mod work;

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, channel, sync_channel};

use sonde_storage_format::{SeqRange, Timestamp, path};

pub(crate) use inner::Inner;
pub use options::Options;

use crate::batch::{WriteBatch, WriteBatchBuilder};
use crate::catalog::{Catalog, CatalogRequest};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, Result};
use crate::jobs::{Job, Worker, run_flushes};
use crate::limits::WRITE_QUEUE;
use crate::receipt::Receipt;
use crate::recover::recover;
use crate::storage::{LocalStorage, Storage};
use crate::wal::Log;
use crate::write::{Command, Writer};
use threads::{Threads, spawn};

/// The storage engine. Clones are handles to the same one; the last one's drop stops its threads and, other than
/// `close`, leaves what is in memory to the next start's recovery.
#[derive(Clone, Debug)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
    commands: Arc<SyncSender<Command>>,
    // IMPORTANT: behind `commands`, whose end ends the threads that this waits for.
    threads: Arc<Threads>,
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
        let (next, active) = (recovered.next_seq, recovered.version.active.clone());
        let replayed = recovered.log.replayed;
        let (jobs, job_queue) = channel();
        let (commands, queue) = sync_channel(WRITE_QUEUE);
        let commands = Arc::new(commands);
        let inner = Arc::new(Inner::new(options, storage, clock, recovered, &commands, jobs));
        let log = Log::start(
            Arc::clone(&inner.storage),
            &inner.options.data_dir.join(path::WAL_DIR),
            Arc::clone(&inner.segments),
            next,
            inner.options.segment_bytes,
        )?;
        let writer = Writer::new(Arc::clone(&inner), log, active, next, replayed);
        let flushing = Arc::clone(&inner);
        let worker = Worker::new(Arc::clone(&inner));
        let threads = vec![
            spawn("sonde-writer", move || writer.run(&queue))?,
            spawn("sonde-flush", move || run_flushes(&flushing))?,
            spawn("sonde-jobs", move || worker.run(&job_queue))?,
        ];
        Ok(Self { inner, commands, threads: Arc::new(Threads::new(threads)) })
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

    /// The arrival time of a message: the node's clock, strictly ascending.
    #[must_use]
    pub fn arrival(&self) -> Timestamp {
        self.inner.arrivals.next(self.inner.clock.now())
    }

    /// Whether writes are accepted: no disk error, and no thread of the engine that panicked.
    pub fn health(&self) -> Result<()> {
        self.inner.health.check()
    }

    /// Whether the engine was not closed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.inner.is_closing()
    }

    /// Flushes and stops. Other handles answer `Closed` from here on.
    pub fn close(&self) -> Result<()> {
        self.inner.set_closing();
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
