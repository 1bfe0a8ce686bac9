//! The commit of batches: what waits together is refused, kept or made durable together, and then visible.

use std::sync::mpsc::Receiver;
use std::time::Instant;

use sonde_storage_format::limits::KEY_BYTES;
use sonde_storage_format::{Durability, RowsRecord, SeqRange, SeriesId, SeriesRecord, TableId};

use super::{Command, Writer};
use crate::batch::{Part, WriteBatch};
use crate::catalog::{Catalog, Table};
use crate::delete::Points;
use crate::error::{Error, Result};
use crate::group;
use crate::limits::{BATCH_BYTES, GROUP_BATCHES, GROUP_BYTES, STALLED_RETRY};
use crate::receipt::Reply;
use crate::widen;

/// A batch that waits for its commit.
pub(super) struct Waiting {
    pub(super) batch: WriteBatch,
    pub(super) reply: Reply,
}

/// Patient batches for which there was no room.
pub(super) struct Stalled {
    /// In their order. Bounded by those who make them.
    batches: Vec<Waiting>,
    /// What there was no room for, as the last attempt found.
    why: Error,
    /// When there is another one, however many commands come until then.
    pub(super) retry_at: Instant,
}

impl Writer {
    /// Commits an update if none of its points was written or deleted since they were read. Batches that wait for room came
    /// before it, and may have such points: they are committed first, or there is no room for the update either.
    pub(super) fn commit_update(&mut self, batch: WriteBatch, points: &Points, reply: Reply) {
        if self.stalled.is_some() {
            self.commit(Vec::new());
        }
        let refused = match &self.stalled {
            Some(stalled) => Err(stalled.why.clone()),
            None => self.refuse_changed(points, true),
        };
        match refused {
            Ok(()) => self.commit(vec![Waiting { batch, reply }]),
            Err(error) => {
                self.inner.queued.give(batch.bytes);
                let _ = reply.send(Err(error));
            }
        }
    }

    /// Tries again to commit what waits for room, once it is time.
    pub(super) fn retry_if_due(&mut self) {
        if self.stalled.as_ref().is_some_and(|stalled| stalled.retry_at <= Instant::now()) {
            self.commit(Vec::new());
        }
    }

    /// One commit: all waiting batches become durable by one sync, then visible together.
    pub(super) fn commit(&mut self, group: Vec<Waiting>) {
        let bytes = group.iter().map(|waiting| waiting.batch.bytes).sum();
        self.commit_group(group);
        self.inner.queued.give(bytes);
    }

    fn commit_group(&mut self, new: Vec<Waiting>) {
        self.sync_if_due();
        let mut group = self.stalled.take().map(|stalled| stalled.batches).unwrap_or_default();
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
                self.inner.publish(self.last_seq(), &self.active); // readers may see the group from here
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
        let (batches, refused): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|waiting| waiting.batch.patient);
        if !batches.is_empty() {
            tracing::debug!(%error, batches = batches.len(), "batches wait for room");
            let retry_at = Instant::now() + STALLED_RETRY;
            self.stalled = Some(Stalled { batches, why: error.clone(), retry_at });
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
                let series = self.resolve(table(part.table), &part);
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

    /// The series of a part's rows. New ones get their handles, which go into the log with the next frame.
    fn resolve(&mut self, table: &Table, part: &Part) -> Vec<SeriesId> {
        let (ids, new) = table.series().allocate(&part.new_keys);
        if let Some(first) = ids.iter().zip(&part.new_keys).find(|(_, key)| new.first() == Some(*key)) {
            self.unlogged.push(SeriesRecord { table: part.table, first: *first.0, keys: new });
        }
        part.resolve(&ids)
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
pub(super) fn gather(commands: &Receiver<Command>, group: &mut Vec<Waiting>) -> Option<Command> {
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
