//! What the background threads do, for whoever asks: what runs, waits, rests after a failure, and what ended last.
//!
//! # Invariants
//! - The lock is held to note and to copy, never over work; a job takes it twice.
//! - Everything is bounded: jobs that ended by `FINISHED_JOBS`, those that rest by `RESTING_JOBS`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sonde_storage_format::{TableId, TimeRange, Timestamp};

use crate::error::{Error, Result};
use crate::limits::{FINISHED_JOBS, RESTING_JOBS};

/// A kind of background work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    /// Rows in memory become chunks.
    Flush,
    /// Chunks of a partition become one.
    Compact,
    /// Days go to the cold tier.
    Cool,
    /// Files go that retention, or a table's budget, has reached.
    Retain,
    /// Files of the cold tier go that nothing needs.
    CleanUp,
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It waits for its thread.
    Queued,
    /// It runs.
    Running,
    /// It failed, and is tried again later.
    Resting,
    /// It ended well.
    Done,
    /// It failed.
    Failed,
}

/// A job, as `system.jobs` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobStatus {
    /// What it does.
    pub kind: JobKind,
    /// How it stands.
    pub state: JobState,
    /// The table; none where it is about all of them.
    pub table: Option<TableId>,
    /// The partition, if it is about one.
    pub range: Option<TimeRange>,
    /// When it began, or was asked for; none for rows in memory that wait.
    pub started: Option<Timestamp>,
    /// How long it took, or runs.
    pub took: Option<Duration>,
    /// Rows that it works on, or went through.
    pub rows: Option<u64>,
    /// Bytes that it reads, or wrote once it is done.
    pub bytes: Option<u64>,
    /// How often in a row it failed.
    pub failures: u64,
    /// Why it failed last.
    pub error: Option<String>,
    /// When it is tried again.
    pub next_try: Option<Timestamp>,
}

/// How much a job is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

/// What a job is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) kind: JobKind,
    pub(crate) table: Option<TableId>,
    pub(crate) range: Option<TimeRange>,
}

impl Subject {
    pub(crate) fn new(kind: JobKind, table: Option<TableId>, range: Option<TimeRange>) -> Self {
        Self { kind, table, range }
    }

    pub(crate) fn status(&self, state: JobState, started: Option<Timestamp>) -> JobStatus {
        JobStatus {
            kind: self.kind,
            state,
            table: self.table,
            range: self.range,
            started,
            took: None,
            rows: None,
            bytes: None,
            failures: 0,
            error: None,
            next_try: None,
        }
    }
}

/// A job that runs; given back when it ends.
#[derive(Debug)]
pub(crate) struct Running(u64);

#[derive(Debug, Default)]
pub(crate) struct Activity(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    queued: Vec<(Subject, Timestamp)>,
    running: Vec<(u64, Subject, Instant, JobStatus)>,
    resting: Vec<(Subject, JobStatus)>,
    /// Oldest first.
    finished: VecDeque<JobStatus>,
}

impl Activity {
    /// Someone asked for it.
    pub(crate) fn asked(&self, subject: Subject, now: Timestamp) {
        self.0.lock().queued.push((subject, now));
    }

    /// What was asked for is done: its parts were noted for themselves.
    pub(crate) fn answered(&self, subject: Subject) {
        let mut state = self.0.lock();
        if let Some(place) = state.queued.iter().position(|(queued, _)| *queued == subject) {
            state.queued.remove(place);
        }
    }

    /// A job begins.
    pub(crate) fn begin(&self, subject: Subject, work: Option<Work>, now: Timestamp) -> Running {
        let mut state = self.0.lock();
        state.next += 1;
        let id = state.next;
        let mut status = subject.status(JobState::Running, Some(now));
        (status.rows, status.bytes) = (work.map(|work| work.rows), work.map(|work| work.bytes));
        state.running.push((id, subject, Instant::now(), status));
        Running(id)
    }

    /// A job ended; one that failed may rest. What did nothing leaves no trace.
    pub(crate) fn end(
        &self,
        running: &Running,
        outcome: &Result<Option<Work>>,
        rest: Option<Duration>,
        now: Timestamp,
    ) {
        let mut state = self.0.lock();
        let Some(place) = state.running.iter().position(|(id, ..)| *id == running.0) else { return };
        let (_, subject, since, mut status) = state.running.remove(place);
        let before = state.resting.iter().position(|(resting, _)| *resting == subject);
        let failures = before.map_or(0, |place| state.resting.remove(place).1.failures);
        status.took = Some(since.elapsed());
        match outcome {
            Ok(None) | Err(Error::Closed) => return,
            Ok(Some(work)) => {
                status.state = JobState::Done;
                (status.rows, status.bytes) = (Some(work.rows), Some(work.bytes));
            }
            Err(error) => {
                status.state = JobState::Failed;
                status.failures = failures + 1;
                status.error = Some(error.to_string());
                if let Some(rest) = rest.filter(|_| state.resting.len() < RESTING_JOBS) {
                    let nanos = i64::try_from(rest.as_nanos()).unwrap_or(i64::MAX);
                    let next_try = Some(Timestamp::from_nanos(now.as_nanos().saturating_add(nanos)));
                    let status = JobStatus { state: JobState::Resting, next_try, ..status.clone() };
                    state.resting.push((subject, status));
                }
            }
        }
        if state.finished.len() == FINISHED_JOBS {
            state.finished.pop_front();
        }
        state.finished.push_back(status);
    }

    /// Everything: what runs, what waits, what rests, what ended, the newest first.
    pub(crate) fn list(&self) -> Vec<JobStatus> {
        let state = self.0.lock();
        let running = state.running.iter().map(|(_, _, since, status)| {
            let took = Some(since.elapsed());
            JobStatus { took, ..status.clone() }
        });
        let mut list: Vec<JobStatus> = running.collect();
        list.extend(
            state.queued.iter().map(|(subject, asked)| subject.status(JobState::Queued, Some(*asked))),
        );
        list.extend(state.resting.iter().map(|(_, status)| status.clone()));
        list.extend(state.finished.iter().rev().cloned());
        list
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    const COMPACT: Subject = Subject { kind: JobKind::Compact, table: Some(TableId(1)), range: None };

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    #[test]
    fn what_failed_rests_until_it_works() {
        let activity = Activity::default();
        for failures in 1..3 {
            let running = activity.begin(COMPACT, Some(Work { rows: 7, bytes: 70 }), at(failures));
            assert_eq!(activity.list()[0].state, JobState::Running);
            activity.end(&running, &Err(Error::Cold("no".into())), Some(Duration::from_secs(5)), at(10));
            let list = activity.list();
            let resting: Vec<&JobStatus> = list.iter().filter(|job| job.state == JobState::Resting).collect();
            assert_eq!((resting.len(), resting[0].failures), (1, failures as u64));
            assert_eq!((resting[0].next_try, resting[0].rows), (Some(at(15)), Some(7)));
        }
        let running = activity.begin(COMPACT, None, at(20));
        activity.end(&running, &Ok(Some(Work { rows: 7, bytes: 9 })), None, at(21));
        let states: Vec<JobState> = activity.list().iter().map(|job| job.state).collect();
        assert_eq!(states, [JobState::Done, JobState::Failed, JobState::Failed]);
    }

    #[test]
    fn what_ended_is_bounded_and_nothing_leaves_no_trace() {
        let activity = Activity::default();
        activity.asked(COMPACT, at(0));
        assert_eq!(activity.list()[0].state, JobState::Queued);
        activity.answered(COMPACT);
        for i in 0..2 * FINISHED_JOBS as i64 {
            let running = activity.begin(COMPACT, None, at(i));
            let work = (i % 3 > 0).then_some(Work::default());
            activity.end(&running, &Ok(work), None, at(i));
        }
        assert_eq!(activity.list().len(), FINISHED_JOBS);
    }
}
