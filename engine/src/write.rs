//! The write path: one thread owns the log, and a commit is one function.
//!
//! # Invariants
//! - The log's order is SeqNo order is memtable order, because one thread makes all three.
//! - Nobody is answered before everything the answer stands for is on stable storage and visible. A group of which every
//!   batch brings rows of buffered tables, and nothing else, is answered once it is in the log's file; stable storage
//!   follows within `BUFFERED_AGE` and `BUFFERED_BYTES`, or with the next group. Chunks, and the log's next segment, come
//!   behind it.
//! - A group has no timer: it is whatever queued up during the last sync.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use sonde_storage_format::limits::KEY_BYTES;
use sonde_storage_format::{
    Durability, ObjectKind, RowsRecord, SeqNo, SeqRange, SeriesRecord, State, TableId, Timestamp, WalWriter,
};

use crate::batch::WriteBatch;
use crate::catalog::{Catalog, CatalogRequest};
use crate::clock;
use crate::delete::{Deletion, Points};
use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::flushes::FlushInput;
use crate::group;
use crate::health::Watch;
use crate::jobs::Job;
use crate::limits::{
    BATCH_BYTES, BUFFERED_AGE, DUE_FLUSH_AGE, FLUSH_AGE, FLUSH_EDIT_BYTES, FROZEN_MEMTABLES, GROUP_BATCHES,
    GROUP_BYTES, MEMTABLE_BYTES, STALLED_RETRY,
};
use crate::mask::TOMBSTONES;
use crate::memtable::Memtable;
use crate::receipt::Reply;
use crate::retention::has_due_rows;
use crate::scan::Snapshot;
use crate::state::{CURSORS, cursor_key};
use crate::wal::Log;
use crate::widen;

/// How long a writer waits for a flush before it is told that the disk does not keep up.
const FLUSH_PATIENCE: Duration = Duration::from_secs(30);

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

/// A batch that waits for its commit.
struct Waiting {
    batch: WriteBatch,
    reply: Reply,
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
    /// Patient batches for which there was no room, in their order. Bounded by those who make them.
    stalled: Vec<Waiting>,
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
            stalled: Vec::new(),
        };
        writer.note_first_row();
        writer
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
                Command::Update(batch, points, reply) => match self.refuse_changed(&points, true) {
                    Ok(()) => self.commit(vec![Waiting { batch, reply }]),
                    Err(error) => {
                        self.inner.queued.give(batch.bytes);
                        let _ = reply.send(Err(error));
                    }
                },
                Command::Fence(reply) => {
                    self.active.fence(SeqNo(self.next_seq.0 - 1));
                    let version = self.inner.versions.current();
                    let _ = reply.send(Snapshot::new(version, self.inner.catalog.load_full()));
                }
                Command::Freeze(reply) => {
                    let frozen =
                        if self.active.is_empty() && self.logged == 0 { Ok(()) } else { self.freeze() };
                    let _ = reply.send(frozen.map(|()| SeqNo(self.next_seq.0 - 1)));
                }
                Command::Age => self.freeze_if_old(),
                Command::Position(reply) => {
                    let _ = reply.send(SeqNo(self.next_seq.0 - 1));
                }
                Command::Stop => break,
            }
            if next.is_none() {
                next = self.receive(commands);
            }
        }
        self.sync();
    }

    /// The next command; none once nobody is left who could send one. What waits for stable storage is not kept waiting.
    fn receive(&mut self, commands: &Receiver<Command>) -> Option<Command> {
        loop {
            let retry = (!self.stalled.is_empty()).then(|| Instant::now() + STALLED_RETRY);
            let Some(until) = self.sync_by.into_iter().chain(retry).min() else {
                return commands.recv().ok();
            };
            match commands.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(command) => return Some(command),
                Err(RecvTimeoutError::Timeout) if self.stalled.is_empty() => self.sync(),
                Err(RecvTimeoutError::Timeout) => self.commit(Vec::new()),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Brings what is in the log to stable storage; should that fail, the engine has failed.
    fn sync(&mut self) {
        self.sync_by = None;
        if self.inner.health.check().is_ok()
            && let Err(error) = self.log.sync()
        {
            self.inner.health.fail(&error);
        }
    }

    /// The same, unless it is not time yet: however many commands come, it has its turn.
    fn sync_if_due(&mut self) {
        if self.sync_by.is_some_and(|sync_by| sync_by <= Instant::now()) {
            self.sync();
        }
    }

    /// One commit: all waiting batches become durable by one sync, then visible together.
    fn commit(&mut self, group: Vec<Waiting>) {
        let bytes = group.iter().map(|waiting| waiting.batch.bytes).sum();
        self.commit_group(group);
        self.inner.queued.give(bytes);
    }

    fn commit_group(&mut self, new: Vec<Waiting>) {
        self.sync_if_due();
        let mut group = std::mem::take(&mut self.stalled);
        group.extend(new);
        let (group, ready) = match self.make_room(&group) {
            Ok(()) => (self.refuse_unfit(group), Ok(())),
            Err(error) => (self.stall(group, &error), Err(error)),
        };
        let (batches, replies): (Vec<_>, Vec<_>) =
            group.into_iter().map(|waiting| (waiting.batch, waiting.reply)).unzip();
        if batches.is_empty() {
            return;
        }
        match ready.and_then(|()| self.log_and_insert(batches)) {
            Ok(ranges) => {
                self.inner.publish(SeqNo(self.next_seq.0 - 1), &self.active); // readers may see the group from here
                for (reply, range) in replies.into_iter().zip(ranges) {
                    let _ = reply.send(Ok(range));
                }
            }
            Err(error) => replies.into_iter().for_each(|reply| {
                let _ = reply.send(Err(error.clone()));
            }),
        }
    }

    /// All that can be refused for want of room is done here, before a byte of the group is written.
    fn make_room(&mut self, group: &[Waiting]) -> Result<()> {
        self.inner.health.check()?;
        self.freeze_if_full()?;
        if !group.iter().any(|waiting| waiting.batch.patient) {
            return Ok(());
        }
        let bytes = group.iter().map(|waiting| waiting.batch.bytes).sum();
        self.log.reserve(bytes, self.next_seq).inspect_err(|error| {
            if matches!(error, Error::Failed(_)) {
                self.inner.health.fail(error);
            }
        })
    }

    /// Keeps the patient batches of a group for which there is no room, and returns the others.
    fn stall(&mut self, group: Vec<Waiting>, error: &Error) -> Vec<Waiting> {
        if !matches!(error, Error::Full(_)) {
            return group;
        }
        let had_none = self.stalled.is_empty();
        let (patient, refused): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|waiting| waiting.batch.patient);
        self.stalled = patient;
        if had_none && !self.stalled.is_empty() {
            tracing::debug!(%error, batches = self.stalled.len(), "batches wait for room");
        }
        refused
    }

    /// Takes out, and answers, the batches whose tables were dropped since they were built or that are too large.
    fn refuse_unfit(&self, group: Vec<Waiting>) -> Vec<Waiting> {
        let catalog = self.inner.catalog.load();
        let mut fit = Vec::with_capacity(group.len());
        for waiting in group {
            match check_batch(&catalog, &waiting.batch) {
                Ok(()) => fit.push(waiting),
                Err(error) => {
                    let _ = waiting.reply.send(Err(error));
                }
            }
        }
        fit
    }

    /// Appends all batches, syncs once, and builds the next memtable, which readers do not see yet.
    fn log_and_insert(&mut self, batches: Vec<WriteBatch>) -> Result<Vec<SeqRange>> {
        let mut ranges = Vec::with_capacity(batches.len());
        let mut rows = Vec::new();
        let mut state = Vec::new();
        let mut next = self.next_seq;
        let catalog = self.inner.catalog.load();
        let durability = durability(&catalog, &batches);
        let table = |id: TableId| match catalog.table_by_id(id) {
            Some(table) => table,
            None => unreachable!("a batch for table {id}, which is gone, was not refused"),
        };
        let mut raw = Vec::new();
        for mut batch in batches {
            let range = SeqRange { first: next, last: next.plus(u64::from(batch.messages) - 1) };
            next = range.last.plus(1);
            ranges.push(range);
            batch.stamp(range.first);
            raw.push((range.first, batch.raw));
            for part in batch.parts {
                let (ids, new) = table(part.table).series().allocate(&part.new_keys);
                if let Some(first) = ids.iter().zip(&part.new_keys).find(|(_, key)| new.first() == Some(*key))
                {
                    self.unlogged.push(SeriesRecord { table: part.table, first: *first.0, keys: new });
                }
                let series = part.resolve(&ids);
                let part = RowsRecord {
                    table: part.table,
                    origin: batch.origin,
                    first_seq: range.first,
                    series,
                    seq_offsets: part.messages,
                    times: part.times,
                    columns: part.columns,
                };
                group::add(&mut rows, part);
            }
            state.extend(batch.state);
        }
        let mut records = self.records();
        rows.iter().for_each(|rows| records.rows(rows));
        raw.iter().flat_map(|(first, raw)| raw.iter(*first)).for_each(|message| records.message(&message));
        state.iter().for_each(|state| records.state(state));
        self.append(records, next, durability)?;
        for rows in rows {
            let width = self.inner.widths.of(table(rows.table).def());
            self.active.insert(rows, width);
        }
        self.note_first_row();
        state.into_iter().for_each(|state| self.inner.state.apply(state));
        Ok(ranges)
    }

    /// The start of every frame: the series that earlier ones failed to log, or that this one brings.
    pub(crate) fn records(&self) -> WalWriter {
        let mut records = WalWriter::new();
        self.unlogged.iter().for_each(|series| records.series(series));
        records
    }

    /// Makes one frame, begun with `records`, as durable as asked. Running out of disk before its first byte refuses it; any later error latches.
    pub(crate) fn append(
        &mut self,
        mut records: WalWriter,
        next: SeqNo,
        durability: Durability,
    ) -> Result<()> {
        let now = self.inner.clock.now();
        let mark = clock::mark(self.marked, now);
        mark.iter().for_each(|mark| records.state(mark));
        let bytes = records.len();
        let failed = |error: &Error| {
            if matches!(error, Error::Failed(_)) {
                self.inner.health.fail(error);
            }
        };
        self.log.reserve(bytes, self.next_seq).inspect_err(failed)?;
        let seq = SeqRange { first: self.next_seq, last: SeqNo(next.0 - 1) };
        self.log.append(records, seq, durability).inspect_err(failed)?;
        self.sync_by = match self.log.unsynced() {
            0 => None,
            _ => self.sync_by.or_else(|| Some(Instant::now() + BUFFERED_AGE)),
        };
        self.next_seq = next;
        self.logged += bytes;
        self.unlogged.clear();
        if let Some(mark) = mark {
            self.inner.state.apply(mark);
            self.marked = Some(now);
        }
        Ok(())
    }

    fn commit_catalog(&mut self, request: &CatalogRequest) -> Result<SeqRange> {
        self.inner.health.check()?;
        let mut catalog = Catalog::clone(&self.inner.catalog.load());
        let changes = catalog.plan(request)?;
        self.check_widening(&catalog, request)?;
        if changes.is_empty() {
            // It is so already, as of the last commit.
            let last = SeqNo(self.next_seq.0 - 1);
            return Ok(SeqRange { first: last, last });
        }
        let seq = SeqRange { first: self.next_seq, last: self.next_seq };
        let mut records = self.records();
        changes.iter().for_each(|change| records.catalog(change));
        let cursor = cursor_of(&self.inner, request, seq.last);
        cursor.iter().for_each(|state| records.state(state));
        self.append(records, self.next_seq.plus(1), Durability::Fsync)?;
        changes.iter().for_each(|change| catalog.apply(change));
        // Before the catalog: who sees the rule finds its cursor.
        cursor.into_iter().for_each(|state| self.inner.state.apply(state));
        self.inner.catalog.store(Arc::new(catalog));
        if let CatalogRequest::DropTable(table) = request {
            self.active.drop_table(*table);
            self.inner.versions.drop_table(*table);
            self.inner.state.remove_prefix(TOMBSTONES, &table.0.to_be_bytes());
            self.inner.send_job(Job::Retain);
        }
        self.inner.publish(seq.last, &self.active);
        Ok(seq)
    }

    fn check_widening(&self, catalog: &Catalog, request: &CatalogRequest) -> Result<()> {
        let CatalogRequest::Widen(table, column, kind) = request else { return Ok(()) };
        let known = catalog.table_by_id(*table).and_then(|table| table.column_by_id(*column));
        match known.filter(|column| column.kind != *kind) {
            Some(column) => widen::check(&self.inner.versions.current(), &self.active, *table, column, *kind),
            None => Ok(()),
        }
    }

    fn note_first_row(&mut self) {
        if self.first_row.is_none() && !self.active.is_empty() {
            self.first_row = Some(self.inner.clock.now());
        }
    }

    fn freeze_if_full(&mut self) -> Result<()> {
        let limit = self.inner.options.memtable_bytes.min(MEMTABLE_BYTES);
        let fits = self.active.bytes < limit && self.active.edit_bytes < FLUSH_EDIT_BYTES;
        if fits && self.logged < 4 * limit {
            return Ok(());
        }
        self.freeze()
    }

    /// Without it rows that come slowly would stay in memory for ever, out of reach of retention and the cold tier.
    fn freeze_if_old(&mut self) {
        // Where flushes are behind, or fail, another one does not help.
        if self.is_old()
            && self.inner.flushes.is_empty()
            && let Err(error) = self.freeze()
        {
            tracing::warn!(%error, "rows in memory are old and cannot be flushed");
        }
    }

    fn is_old(&self) -> bool {
        let Some(first) = self.first_row.filter(|_| !self.active.is_empty()) else { return false };
        let now = self.inner.clock.now();
        let age = now.as_nanos().saturating_sub(first.as_nanos());
        let age = Duration::from_nanos(age.max(0).unsigned_abs());
        let is_cold = self.inner.options.cold.is_some();
        let is_due = || has_due_rows(&self.active, &self.inner.catalog.load(), is_cold, now);
        age >= FLUSH_AGE || (age >= DUE_FLUSH_AGE && is_due())
    }

    /// Hands the memtable, and a checkpoint of all else, to the flush job; waits while too many are waiting already.
    fn freeze(&mut self) -> Result<()> {
        // Files never hold what the log may still lose: its numbers would be given to other rows.
        self.sync();
        if self.log.unsynced() > 0 {
            self.inner.health.check()?;
        }
        let inner = &self.inner;
        inner.flushes.wait_for_room(FROZEN_MEMTABLES, FLUSH_PATIENCE)?;
        let catalog = inner.catalog.load_full();
        let series = catalog.tables().map(|table| (Arc::clone(table), table.series().len())).collect();
        let last = SeqNo(self.next_seq.0 - 1);
        let active = std::mem::take(&mut self.active);
        inner.versions.freeze();
        inner.flushes.push(FlushInput {
            memtable: Arc::new(active),
            position: last,
            catalog: catalog.to_changes(),
            series,
            state: inner.state.entries(),
        });
        self.logged = 0;
        self.first_row = None;
        self.frozen_to = last;
        Ok(())
    }
}

/// What the answer to a group waits for: the strictest that one of its targets asks for.
fn durability(catalog: &Catalog, batches: &[WriteBatch]) -> Durability {
    let is_buffered = |table: TableId| {
        let table = catalog.table_by_id(table);
        table.is_some_and(|table| table.def().options.durability == Durability::Buffered)
    };
    let is_only_rows = |batch: &WriteBatch| batch.state.is_empty() && !batch.parts.is_empty();
    let mut batches = batches.iter();
    let buffered =
        batches.all(|batch| is_only_rows(batch) && batch.parts.iter().all(|part| is_buffered(part.table)));
    if buffered { Durability::Buffered } else { Durability::Fsync }
}

/// Takes what has queued up, within the bounds of a group. Returns the first command that does not join it.
fn gather(commands: &Receiver<Command>, group: &mut Vec<Waiting>) -> Option<Command> {
    let mut bytes: usize = group.iter().map(|waiting| waiting.batch.bytes).sum();
    while group.len() < GROUP_BATCHES && bytes < GROUP_BYTES {
        match commands.try_recv() {
            Ok(Command::Write(batch, reply)) if bytes + batch.bytes <= GROUP_BYTES => {
                bytes += batch.bytes;
                group.push(Waiting { batch, reply });
            }
            Ok(other) => return Some(other),
            Err(_) => break,
        }
    }
    None
}

/// What becomes of a rule's cursor when the rule is made or dropped: it stands at the commit that made the rule, unless
/// the rule replaces one of its name.
fn cursor_of(inner: &Inner, request: &CatalogRequest, seq: SeqNo) -> Option<State> {
    let cursor = |database: &str, name: &str, value| State {
        namespace: CURSORS.into(),
        key: cursor_key(database, name),
        value,
    };
    match request {
        CatalogRequest::PutObject { object, .. } if object.kind == ObjectKind::Rule => {
            let state = cursor(&object.database, &object.name, Some(seq.0.to_le_bytes().to_vec()));
            inner.state.get(CURSORS, &state.key).is_none().then_some(state)
        }
        CatalogRequest::DropObject { kind: ObjectKind::Rule, database, name } => {
            Some(cursor(database, name, None))
        }
        _ => None,
    }
}

/// What the builder cannot know: whether the tables are still there; and what state brings, which it does not check.
fn check_batch(catalog: &Catalog, batch: &WriteBatch) -> Result<()> {
    for part in &batch.parts {
        let gone = || Error::Conflict(format!("table {} was dropped meanwhile", part.table));
        let table = catalog.table_by_id(part.table).ok_or_else(gone)?;
        for (id, values) in &part.columns {
            let known = table.column_by_id(*id);
            if !known.is_some_and(|column| widen::can_hold(column.kind, values)) {
                let what = "was dropped, or became another type, meanwhile";
                return Err(Error::Conflict(format!("column {id} of table {} {what}", table.full_name())));
            }
        }
    }
    if batch.state.iter().any(|state| state.key.len().max(state.namespace.len()) > KEY_BYTES) {
        return Err(Error::Limit { what: "bytes of a key of state".into(), limit: KEY_BYTES as u64 });
    }
    if batch.bytes > BATCH_BYTES {
        return Err(Error::BatchFull);
    }
    Ok(())
}
