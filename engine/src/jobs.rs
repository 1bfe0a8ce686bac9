//! Background work: one thread flushes, another does all else, one job after the other.
//!
//! # Invariants
//! - What to do is decided by pure functions over a `Version`; the threads only carry it out.
//! - A job that fails leaves the version as it was, rests, and is tried again; the others have their turn.
//! - A flush waits for no other job, so that writers do not either. It adds chunks and removes none; the job thread
//!   alone removes files. So whatever a plan of the job thread names is there until the job is done, and what a flush
//!   adds meanwhile is newer than all of it. Edits of both are ordered by the manifest's lock.
//! - The flush thread alone writes checkpoints and removes segments of the log.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use sonde_storage_format::{ChunkId, ColdFile, Edit, TableId, TimeRange, Timestamp};

use crate::activity::{JobKind, Running, Subject, Work};
use crate::catalog::Catalog;
use crate::cold::cool::cool;
use crate::cold::pending;
use crate::compact::{self, Notes, Scene};
use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::flush::flush;
use crate::flushes::{FlushInput, Turn};
use crate::health::Watch;
use crate::limits::{COMPACT_TURN, FLUSH_PAUSE, JOB_PAUSE};
use crate::pause::{Pause, Rests};
use crate::retention::{Expired, expired};
use crate::version::{Chunk, FileEdit, TableFiles, Version};

/// How often a thread looks for work by itself.
const TICK: Duration = Duration::from_secs(1);
/// How far the clock goes on between two looks for rows that are old enough to be flushed, to go or to cool.
const AGE_TICK: Duration = Duration::from_secs(60);

/// Background work besides flushes.
#[derive(Debug)]
pub(crate) enum Job {
    /// Merge all chunks of each partition of a table.
    Compact(TableId, Sender<Result<()>>),
    /// Merge what is due; answers with the number of merges.
    CompactDue(Sender<Result<usize>>),
    /// Move complete days of a table that end at or before an instant to the cold tier; answers with the files written.
    Cool(TableId, Timestamp, Sender<Result<usize>>),
    /// Drop files whose rows have outlived their table's retention, or whose table is gone.
    Retain,
    /// Answer: what was asked for before is done.
    Settle(Sender<()>),
    /// End.
    Stop,
}

/// Work that rests by itself when it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    Compact(TableId, TimeRange),
    Purge(TableId, TimeRange),
    Cool(TableId),
    CleanUp,
}

/// Says when it is time to look at ages. By the node's clock, which is what ages are counted by.
#[derive(Debug, Default)]
struct Aging {
    last: Option<Timestamp>,
}

impl Aging {
    fn is_due(&mut self, now: Timestamp) -> bool {
        let passed = |last: Timestamp| Duration::from_nanos(now.as_nanos().abs_diff(last.as_nanos()));
        let due = self.last.is_none_or(|last| passed(last) >= AGE_TICK);
        if due {
            self.last = Some(now);
        }
        due
    }
}

/// On the stack of the flush thread: whatever ends it, nobody waits for it any more.
struct Ended<'a>(&'a Inner);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.flushes.end(self.0.closed());
    }
}

/// The flush thread: serves the queue of flushes until it is stopped.
pub(crate) fn run_flushes(inner: &Arc<Inner>) {
    // IMPORTANT: before the watch, so that it ends behind it: who waited finds the engine failed.
    let _ended = Ended(inner);
    let _watch = Watch::new(&inner.health, "sonde-flush");
    let mut pause = Pause::new(FLUSH_PAUSE);
    let mut aging = Aging::default();
    let mut next_tick = Instant::now() + TICK;
    loop {
        match inner.flushes.turn(pause.until(), next_tick) {
            Turn::Flush(input) => flush_one(inner, &input, &mut pause),
            Turn::Tick => {
                next_tick = Instant::now() + TICK;
                if aging.is_due(inner.clock.now()) {
                    inner.remove_expired_segments();
                    inner.ask_to_age();
                }
            }
            Turn::Stop => break,
        }
    }
}

fn flush_one(inner: &Arc<Inner>, input: &FlushInput, pause: &mut Pause) {
    let rows = input.memtable.rows as u64;
    let work = Work { rows, bytes: input.memtable.bytes as u64 };
    let running =
        inner.activity.begin(Subject::new(JobKind::Flush, None, None), Some(work), inner.clock.now());
    let outcome = flush(inner, input).map(|bytes| Some(Work { rows, bytes }));
    let rest = match &outcome {
        Ok(_) => {
            pause.worked();
            None
        }
        Err(_) => Some(pause.failed(Instant::now())),
    };
    // Before anybody hears of it.
    inner.activity.end(&running, &outcome, rest, inner.clock.now());
    match outcome {
        Ok(_) => inner.flushes.done(input.position),
        Err(error) => {
            let rest = rest.unwrap_or_default().as_secs();
            tracing::error!(%error, "a flush failed; it is tried again in {rest} s, or when someone asks");
            inner.flushes.failed(&error);
        }
    }
}

/// The job thread.
pub(crate) struct Worker {
    pub(crate) inner: Arc<Inner>,
    /// Cold files that an edit took out, until their readers have gone.
    pub(crate) replaced: Vec<Arc<ColdFile>>,
    pub(crate) rests: Rests<Task>,
    aging: Aging,
    pub(crate) notes: Notes,
}

impl Worker {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        let (rests, aging, notes) = (Rests::new(JOB_PAUSE), Aging::default(), Notes::default());
        Self { inner, replaced: Vec::new(), rests, aging, notes }
    }

    /// Serves jobs until `Stop`.
    pub(crate) fn run(mut self, jobs: &Receiver<Job>) {
        let inner = Arc::clone(&self.inner);
        let _watch = Watch::new(&inner.health, "sonde-jobs");
        // What was left to do when the last process ended.
        self.retain();
        let mut next_tick = Instant::now() + TICK;
        loop {
            // However many jobs come, the tick has its turn.
            let patience = next_tick.saturating_duration_since(Instant::now());
            let job =
                if patience.is_zero() { Err(RecvTimeoutError::Timeout) } else { jobs.recv_timeout(patience) };
            match job {
                Ok(Job::Compact(table, reply)) => {
                    let outcome = self.compact_table(table);
                    inner.activity.answered(Subject::new(JobKind::Compact, Some(table), None));
                    let _ = reply.send(outcome);
                }
                Ok(Job::CompactDue(reply)) => {
                    let _ = reply.send(self.compact_due(None));
                }
                Ok(Job::Cool(table, before, reply)) => {
                    inner.activity.answered(Subject::new(JobKind::Cool, Some(table), None));
                    let _ = reply.send(self.cool(table, before));
                }
                Ok(Job::Retain) => self.retain(),
                Ok(Job::Settle(reply)) => {
                    self.clean_up();
                    let _ = reply.send(());
                }
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    self.tick();
                    next_tick = Instant::now() + TICK;
                }
            }
        }
    }

    fn tick(&mut self) {
        // Failures are reported, and rest.
        let _ = self.compact_due(Some(Instant::now() + COMPACT_TURN));
        self.purge_one();
        self.forget_spent();
        self.clean_up();
        if self.aging.is_due(self.inner.clock.now()) {
            self.retain();
            self.cool_aged();
        }
    }

    /// Merges what is due and does not rest, until `deadline`; of several failures the first comes back.
    fn compact_due(&mut self, deadline: Option<Instant>) -> Result<usize> {
        let mut merges = 0;
        let mut failed = None;
        let late = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        while !self.inner.is_closing() && !late() {
            let inner = Arc::clone(&self.inner);
            let rests = &self.rests;
            let rests = |table, range| rests.rests(&Task::Compact(table, range));
            let (version, catalog) = (inner.versions.current(), inner.catalog.load_full());
            let scene = scene(&inner, &version, &catalog);
            let Some(plan) = compact::plan(&scene, &mut self.notes, rests) else { break };
            // Its files may go once they are replaced.
            drop(version);
            let (running, work) = self.begin_compaction(&plan);
            let outcome = compact::compact(&inner, &plan, &mut self.notes).map(|()| Some(work));
            let rest = self.note("compaction", Task::Compact(plan.table, plan.range()), &outcome);
            self.end(&running, &outcome, rest);
            match outcome {
                Ok(_) => merges += 1,
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        failed.map_or(Ok(merges), Err)
    }

    fn begin_compaction(&self, plan: &compact::Plan) -> (Running, Work) {
        let work = work_of(plan.chunks.iter().map(Arc::as_ref));
        let subject = Subject::new(JobKind::Compact, Some(plan.table), Some(plan.range()));
        (self.begin(subject, Some(work)), work)
    }

    pub(crate) fn begin(&self, subject: Subject, work: Option<Work>) -> Running {
        self.inner.activity.begin(subject, work, self.inner.clock.now())
    }

    pub(crate) fn end(&self, running: &Running, outcome: &Result<Option<Work>>, rest: Option<Duration>) {
        self.inner.activity.end(running, outcome, rest, self.inner.clock.now());
    }

    /// Merges what can be merged of a table, as it is now, and removes what is deleted of it; of several failures the first comes back.
    fn compact_table(&mut self, table: TableId) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        // What flushes add meanwhile is not waited for.
        let newest = |files: &Arc<TableFiles>| files.chunks().map(|chunk| chunk.meta.seq.last).max();
        let until = inner.versions.current().files.get(&table).and_then(newest);
        let (mut failed, mut failure) = (Vec::new(), None);
        loop {
            if inner.is_closing() {
                return Err(Error::Closed);
            }
            let (version, catalog) = (inner.versions.current(), inner.catalog.load_full());
            let Some(def) = catalog.table_by_id(table) else { break };
            let plan = compact::plan_all(&scene(&inner, &version, &catalog), def, until, &failed);
            drop(version);
            let Some(plan) = plan else { break };
            let (running, work) = self.begin_compaction(&plan);
            let outcome = compact::compact(&inner, &plan, &mut self.notes).map(|()| Some(work));
            self.end(&running, &outcome, None);
            if let Err(error) = outcome {
                failed.push(plan.range());
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)?;
        self.purge_table(table)
    }

    /// Moves every complete day that ends at or before `before`.
    fn cool(&mut self, table: TableId, before: Timestamp) -> Result<usize> {
        self.cool_noted(table, before, |_, _| None)
    }

    /// The same; `rest` says how long the table rests where that failed.
    fn cool_noted(
        &mut self,
        table: TableId,
        before: Timestamp,
        rest: impl FnOnce(&mut Self, &Result<usize>) -> Option<Duration>,
    ) -> Result<usize> {
        let running = self.begin(Subject::new(JobKind::Cool, Some(table), None), None);
        let known = self.cold_files(table);
        let moved = cool(&self.inner, table, before, &mut self.replaced);
        let rest = rest(self, &moved);
        let new = || {
            self.cold_files(table).into_iter().filter(|file| !known.iter().any(|old| Arc::ptr_eq(old, file)))
        };
        let sum = |work: Work, file: Arc<ColdFile>| Work {
            rows: work.rows + file.rows,
            bytes: work.bytes + file.bytes,
        };
        let outcome = match &moved {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(new().fold(Work::default(), sum))),
            Err(error) => Err(error.clone()),
        };
        self.end(&running, &outcome, rest);
        self.clean_up();
        moved
    }

    fn cold_files(&self, table: TableId) -> Vec<Arc<ColdFile>> {
        let version = self.inner.versions.current();
        version.files.get(&table).map(|files| files.cold.values().cloned().collect()).unwrap_or_default()
    }

    /// Cools the tables that say when their rows should go.
    fn cool_aged(&mut self) {
        if self.inner.options.cold.is_none() {
            return;
        }
        let now = self.inner.clock.now().as_nanos();
        let catalog = self.inner.catalog.load_full();
        for table in catalog.tables().filter(|table| table.def().options.cold_after > 0) {
            let task = Task::Cool(table.id());
            if !self.rests.rests(&task) {
                let before = Timestamp::from_nanos(now.saturating_sub(table.def().options.cold_after));
                let rest = |worker: &mut Self, outcome: &_| worker.note("cooling", task, outcome);
                let _ = self.cool_noted(table.id(), before, rest);
            }
        }
    }

    /// Removes what retention says: chunks, cold days, and the chunks that waited for these.
    fn retain(&mut self) {
        let running = self.begin(Subject::new(JobKind::Retain, None, None), None);
        // Chunks first: they make room, which the note of what happens to cold files may need. What lies over a cold day
        // waits for the edit that takes the day: behind a crash between the two nothing is seen that it hides.
        let chunks = self.remove_chunks();
        report("retention of chunks", &chunks);
        let cold = self.remove_cold();
        report("retention of cold files", &cold);
        let is_less = cold.as_ref().is_ok_and(|cold| *cold != Work::default());
        let waited = if is_less { self.remove_chunks() } else { Ok(Work::default()) };
        report("retention of chunks over cold files", &waited);
        let sum: Result<Vec<Work>> = [chunks, cold, waited].into_iter().collect();
        let outcome = sum.map(|parts| {
            let sum =
                |sum: Work, part: Work| Work { rows: sum.rows + part.rows, bytes: sum.bytes + part.bytes };
            Some(parts.into_iter().fold(Work::default(), sum)).filter(|work| *work != Work::default())
        });
        self.end(&running, &outcome, None);
        report("removal of chunks that are deleted as a whole", &self.remove_hidden());
        self.clean_up();
    }

    /// What is to go as of now.
    fn expired(&self) -> (Arc<Version>, Arc<Catalog>, Expired) {
        // The version first: a table that the catalog does not know was dropped, and not made since.
        let version = self.inner.versions.current();
        let catalog = self.inner.catalog.load_full();
        let expired = expired(&version, &catalog, self.inner.clock.now());
        (version, catalog, expired)
    }

    fn remove_chunks(&self) -> Result<Work> {
        let (version, catalog, gone) = self.expired();
        let evicted = gone.evicted.iter().map(|chunk| (chunk.meta.table, chunk.meta.id));
        let remove: Vec<(TableId, ChunkId)> = gone.chunks.iter().copied().chain(evicted).collect();
        if remove.is_empty() {
            return Ok(Work::default());
        }
        let chunks = version.files.values().flat_map(|files| files.chunks()).map(Arc::as_ref);
        let work = work_of(chunks.filter(|chunk| remove.contains(&(chunk.meta.table, chunk.meta.id))));
        let edits: Vec<Edit> = remove.iter().map(|(_, id)| Edit::RemoveChunk(*id)).collect();
        self.inner.install(&edits, &FileEdit { remove, ..FileEdit::default() })?;
        if !gone.chunks.is_empty() {
            tracing::info!(chunks = gone.chunks.len(), "retention removed chunks");
        }
        for chunks in gone.evicted.chunk_by(|a, b| a.meta.table == b.meta.table) {
            let Some(id) = chunks.first().map(|chunk| chunk.meta.table) else { continue };
            let rows: u64 = chunks.iter().map(|chunk| chunk.meta.rows).sum();
            let bytes: u64 = chunks.iter().map(|chunk| chunk.meta.bytes).sum();
            let table = catalog.table_by_id(id).map(|table| table.full_name()).unwrap_or_default();
            tracing::warn!(table, rows, bytes, "a table is over its max_bytes: its oldest rows were evicted");
            self.inner.note_evicted(id, rows);
        }
        Ok(work)
    }

    fn remove_cold(&mut self) -> Result<Work> {
        let (version, _, Expired { cold: days, .. }) = self.expired();
        if days.is_empty() {
            return Ok(Work::default());
        }
        let file = |(table, day): &(TableId, TimeRange)| version.files.get(table)?.cold.get(&day.start);
        let files: Vec<Arc<ColdFile>> = days.iter().filter_map(file).cloned().collect();
        pending::note(&self.inner, files.iter().map(|file| file.path.as_str()))?;
        let edits: Vec<Edit> =
            days.iter().map(|(table, day)| Edit::RemoveCold { table: *table, day: *day }).collect();
        tracing::info!(days = days.len(), "retention removes days of the cold tier");
        self.inner.install(&edits, &FileEdit { remove_cold: days, ..FileEdit::default() })?;
        let (rows, bytes) = files.iter().fold((0, 0), |sum, file| (sum.0 + file.rows, sum.1 + file.bytes));
        self.replaced.extend(files);
        Ok(Work { rows, bytes })
    }

    fn clean_up(&mut self) {
        if !self.rests.rests(&Task::CleanUp) {
            let running = self.begin(Subject::new(JobKind::CleanUp, None, None), None);
            let outcome = pending::clean_up(&self.inner, &mut self.replaced).map(|()| None);
            let rest = self.note("clean-up of the cold tier", Task::CleanUp, &outcome);
            self.end(&running, &outcome, rest);
        }
    }

    /// Notes how a task ended: one that failed rests, for as long as comes back.
    pub(crate) fn note<T>(&mut self, job: &'static str, task: Task, outcome: &Result<T>) -> Option<Duration> {
        report(job, outcome);
        let rest = self.rests.note(task, outcome)?;
        tracing::debug!(job, ?task, "rests for {} s", rest.as_secs());
        Some(rest)
    }
}

fn scene<'a>(inner: &'a Inner, version: &'a Version, catalog: &'a Catalog) -> Scene<'a> {
    Scene { version, catalog, widths: &inner.widths, now: inner.clock.now() }
}

/// What chunks hold between them.
pub(crate) fn work_of<'a>(chunks: impl Iterator<Item = &'a Chunk>) -> Work {
    chunks.fold(Work::default(), |work, chunk| Work {
        rows: work.rows + chunk.meta.rows,
        bytes: work.bytes + chunk.meta.bytes,
    })
}

pub(crate) fn report<T>(job: &'static str, outcome: &Result<T>) {
    match outcome {
        // The engine ends meanwhile; the next start goes on.
        Ok(_) | Err(Error::Closed) => {}
        Err(error) => tracing::error!(job, %error, "background job failed; it will be tried again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_looked_at_once_a_minute_of_the_clock() {
        let mut aging = Aging::default();
        let due: Vec<bool> =
            [0, 59, 60, 61, 100, 120, 5, 6].map(|secs| aging.is_due(Timestamp::from_secs(secs))).into();
        // The clock is set back at the end.
        assert_eq!(due, [true, false, true, false, false, true, true, false]);
    }
}
