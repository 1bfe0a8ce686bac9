//! The write path: one thread owns the log, and a commit is one function.
//!
//! # Invariants
//! - The log's order is SeqNo order is memtable order, because one thread makes all three.
//! - Nobody is answered before everything the answer stands for is on stable storage and visible. A group of which every
//!   batch brings rows of buffered tables, and nothing else, is answered once it is in the log's file; stable storage
//!   follows within `BUFFERED_AGE` and `BUFFERED_BYTES`, or with the next group. Chunks, and the log's next segment, come
//!   behind it.
//! - A group has no timer: it is whatever queued up during the last sync.

mod catalog;
mod commit;
mod frame;
mod freeze;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Instant;

use sonde_storage_format::{SeqNo, SeriesRecord, TableId, Timestamp};

use crate::batch::WriteBatch;
use crate::catalog::CatalogRequest;
use crate::delete::{Deletion, Points};
use crate::engine::Inner;
use crate::error::Result;
use crate::health::Watch;
use crate::jobs::Job;
use crate::memtable::Memtable;
use crate::receipt::Reply;
use crate::scan::Snapshot;
use crate::wal::Log;
use commit::{Stalled, Waiting, gather};

/// What the writer thread is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Write(WriteBatch, Reply),
    Catalog(CatalogRequest, Reply),
    /// Hide rows.
    Delete(Deletion, Reply),
    /// Commit a batch if none of the points was written or deleted since they were read.
    Update(WriteBatch, Points, Reply),
    /// Keep later rows apart from those of the snapshot that it answers with.
    Fence(Sender<Snapshot>),
    /// Freeze the memtable; answers with the position up to which rows will be flushed.
    Freeze(Sender<Result<SeqNo>>),
    /// Freeze the memtable if its rows are old.
    Age,
    /// Answer with the last committed sequence number: whatever happened before is in the log up to there.
    Position(Sender<SeqNo>),
    Stop,
}

/// The writer thread.
pub(crate) struct Writer {
    pub(crate) inner: Arc<Inner>,
    log: Log,
    pub(crate) active: Memtable,
    pub(crate) next_seq: SeqNo,
    /// Series that have a handle and are not in the log yet.
    unlogged: Vec<SeriesRecord>,
    /// Bytes logged since the memtable was frozen last.
    logged: usize,
    /// When the first row of the memtable came, or was recovered.
    first_row: Option<Timestamp>,
    /// Where the memtable was frozen last: no other source has rows behind it.
    pub(crate) frozen_to: SeqNo,
    /// The last deletion of each table since the start.
    pub(crate) deleted: BTreeMap<TableId, SeqNo>,
    /// When what is acknowledged and not on stable storage has to be there; none where everything is.
    sync_by: Option<Instant>,
    /// The clock as the log stated it last.
    marked: Option<Timestamp>,
    stalled: Option<Stalled>,
}

impl Drop for Writer {
    /// Whatever ends the writer, the last handle's drop included, ends the background work too.
    fn drop(&mut self) {
        self.inner.queued.close();
        self.inner.flushes.stop();
        self.inner.send_job(Job::Stop);
    }
}

impl Writer {
    /// `logged` is the bytes of log that recovery replayed: a flush is what makes them unneeded.
    pub(crate) fn new(inner: Arc<Inner>, log: Log, active: Memtable, next_seq: SeqNo, logged: usize) -> Self {
        let frozen_to = inner.manifest.lock().state.flushed_to;
        let (unlogged, deleted) = (Vec::new(), BTreeMap::new());
        let (first_row, sync_by, marked) = (None, None, None);
        let mut writer = Self {
            inner,
            log,
            active,
            next_seq,
            unlogged,
            logged,
            first_row,
            frozen_to,
            deleted,
            sync_by,
            marked,
            stalled: None,
        };
        writer.note_first_row();
        writer
    }

    /// The last sequence number that a commit has.
    fn last_seq(&self) -> SeqNo {
        SeqNo(self.next_seq.0 - 1)
    }

    /// Serves commands until `Stop`, or until every sender is gone.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        let inner = Arc::clone(&self.inner);
        let _watch = Watch::new(&inner.health, "sonde-writer");
        let mut next = self.receive(commands);
        while let Some(command) = next.take() {
            match command {
                Command::Write(batch, reply) => {
                    let mut group = vec![Waiting { batch, reply }];
                    next = gather(commands, &mut group);
                    self.commit(group);
                }
                Command::Catalog(request, reply) => {
                    // A waiter that went away does not need the answer.
                    let _ = reply.send(self.commit_catalog(&request));
                }
                Command::Delete(deletion, reply) => {
                    let _ = reply.send(self.commit_deletion(&deletion));
                }
                Command::Update(batch, points, reply) => self.commit_update(batch, &points, reply),
                Command::Fence(reply) => {
                    self.active.fence(self.last_seq());
                    let version = self.inner.versions.current();
                    let _ = reply.send(Snapshot::new(version, self.inner.catalog.load_full()));
                }
                Command::Freeze(reply) => {
                    let frozen =
                        if self.active.is_empty() && self.logged == 0 { Ok(()) } else { self.freeze() };
                    let _ = reply.send(frozen.map(|()| self.last_seq()));
                }
                Command::Age => self.freeze_if_old(),
                Command::Position(reply) => {
                    let _ = reply.send(self.last_seq());
                }
                Command::Stop => break,
            }
            if next.is_none() {
                next = self.receive(commands);
            }
        }
        self.sync();
    }

    /// The next command; none once nobody is left who could send one. What waits for stable storage, or for room, is not
    /// kept waiting, however many commands come.
    fn receive(&mut self, commands: &Receiver<Command>) -> Option<Command> {
        loop {
            self.sync_if_due();
            self.retry_if_due();
            let retry = self.stalled.as_ref().map(|stalled| stalled.retry_at);
            let Some(until) = self.sync_by.into_iter().chain(retry).min() else {
                return commands.recv().ok();
            };
            match commands.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(command) => return Some(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }
}
