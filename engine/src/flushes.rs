//! What waits to be flushed: the writer freezes memtables at one end, the flush thread takes them at the other.
//!
//! # Invariants
//! - Memtables leave in the order in which they came, each once it is in chunks.
//! - Nobody waits for a thread that is gone, or for a flush that has failed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use sonde_storage_format::{CatalogChange, SeqNo, StateEntry};

use crate::catalog::Table;
use crate::error::{Error, Result};
use crate::memtable::Memtable;

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

/// What the flush thread does next.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Write this memtable, the oldest.
    Flush(Arc<FlushInput>),
    /// Look what time it is.
    Tick,
    /// End: nothing is left, or what is left has failed once more.
    Stop,
}

/// Frozen memtables, oldest first, and the position up to which everything is flushed.
#[derive(Debug)]
pub(crate) struct Flushes {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<Arc<FlushInput>>,
    flushed_to: SeqNo,
    /// How many flushes failed, and why the last one did, until one succeeds.
    failures: u64,
    failure: Option<Error>,
    /// Someone asked for an attempt now, however long the last failure should rest.
    asked: bool,
    /// No memtable will come any more.
    stopping: bool,
    /// What to tell who waits for the flush thread, once it is gone.
    gone: Option<Error>,
}

impl Flushes {
    pub(crate) fn new(flushed_to: SeqNo) -> Self {
        let waiting = Waiting { flushed_to, ..Waiting::default() };
        Self { waiting: Mutex::new(waiting), changed: Condvar::new() }
    }

    pub(crate) fn push(&self, input: FlushInput) {
        self.waiting.lock().queue.push_back(Arc::new(input));
        self.changed.notify_all();
    }

    /// Whether no memtable waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.lock().queue.is_empty()
    }

    /// What waits, oldest first.
    pub(crate) fn list(&self) -> Vec<Arc<FlushInput>> {
        self.waiting.lock().queue.iter().cloned().collect()
    }

    /// What failed is tried again at once.
    pub(crate) fn ask(&self) {
        self.waiting.lock().asked = true;
        self.changed.notify_all();
    }

    /// Nothing will come any more: what waits is tried once, then the flush thread ends.
    pub(crate) fn stop(&self) {
        let mut waiting = self.waiting.lock();
        (waiting.asked, waiting.stopping) = (true, true);
        self.changed.notify_all();
    }

    /// The flush thread ended; `why` is what it means to who waits for it.
    pub(crate) fn end(&self, why: Error) {
        self.waiting.lock().gone = Some(why);
        self.changed.notify_all();
    }

    /// Waits for work, until `tick` at the latest; what failed before rests until `rest`.
    pub(crate) fn turn(&self, rest: Option<Instant>, tick: Instant) -> Turn {
        let mut waiting = self.waiting.lock();
        loop {
            let now = Instant::now();
            let rest = rest.filter(|until| now < *until && !waiting.asked);
            let until = match (waiting.queue.front().cloned(), rest) {
                // However much is to flush, the tick has its turn.
                _ if now >= tick => return Turn::Tick,
                (Some(input), None) => {
                    waiting.asked = false;
                    return Turn::Flush(input);
                }
                _ if waiting.stopping => return Turn::Stop,
                (Some(_), Some(rest)) => rest.min(tick),
                (None, _) => tick,
            };
            self.changed.wait_until(&mut waiting, until);
        }
    }

    pub(crate) fn done(&self, position: SeqNo) {
        let mut waiting = self.waiting.lock();
        waiting.queue.pop_front();
        waiting.flushed_to = position;
        waiting.failure = None;
        self.changed.notify_all();
    }

    pub(crate) fn failed(&self, error: &Error) {
        let mut waiting = self.waiting.lock();
        waiting.failures += 1;
        waiting.failure = Some(error.clone());
        self.changed.notify_all();
    }

    /// Waits until fewer than `limit` memtables wait. Fails where that takes too long, and at once while flushes fail
    /// or nobody is there to flush.
    pub(crate) fn wait_for_room(&self, limit: usize, patience: Duration) -> Result<()> {
        let mut waiting = self.waiting.lock();
        let full = |waiting: &mut Waiting| waiting.queue.len() >= limit && waiting.stuck().is_none();
        self.changed.wait_while_for(&mut waiting, full, patience);
        if waiting.queue.len() < limit {
            return Ok(());
        }
        let behind = || {
            let waits = format!("the flush is behind: {limit} memtables wait for it");
            Error::Full(format!("{waits}; writes are refused until one is done"))
        };
        Err(waiting.stuck().cloned().unwrap_or_else(behind))
    }

    /// Has what waits flushed now. Waits until everything up to `position` that was frozen is, or until a flush fails.
    pub(crate) fn wait_flushed(&self, position: SeqNo, patience: Duration) -> Result<()> {
        let mut waiting = self.waiting.lock();
        waiting.asked = true;
        self.changed.notify_all();
        let failures = waiting.failures;
        let behind = |waiting: &Waiting| !waiting.queue.is_empty() && waiting.flushed_to < position;
        let waits =
            |waiting: &mut Waiting| behind(waiting) && waiting.failures == failures && waiting.gone.is_none();
        self.changed.wait_while_for(&mut waiting, waits, patience);
        if !behind(&waiting) {
            return Ok(());
        }
        let late = || Error::Full(format!("the flush did not end within {} s", patience.as_secs()));
        let failed = waiting.stuck().filter(|_| waiting.gone.is_some() || waiting.failures > failures);
        Err(failed.cloned().unwrap_or_else(late))
    }
}

impl Waiting {
    /// Why nothing leaves the queue, where something is wrong.
    fn stuck(&self) -> Option<&Error> {
        self.gone.as_ref().or(self.failure.as_ref())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn input(position: u64) -> FlushInput {
        FlushInput {
            memtable: Arc::default(),
            position: SeqNo(position),
            catalog: Vec::new(),
            series: Vec::new(),
            state: Vec::new(),
        }
    }

    fn position(turn: &Turn) -> Option<u64> {
        if let Turn::Flush(input) = turn { Some(input.position.0) } else { None }
    }

    #[test]
    fn what_failed_rests_until_someone_asks() {
        let flushes = Flushes::new(SeqNo(0));
        flushes.push(input(1));
        let soon = || Instant::now() + Duration::from_millis(20);
        let (long, later) = (Some(Instant::now() + LONG), Instant::now() + LONG);
        assert_eq!(position(&flushes.turn(None, later)), Some(1));
        flushes.failed(&Error::Closed);
        assert!(matches!(flushes.turn(long, soon()), Turn::Tick));
        flushes.ask();
        assert_eq!(position(&flushes.turn(long, later)), Some(1));
        assert!(matches!(flushes.turn(long, soon()), Turn::Tick), "asked once, tried once");
        assert_eq!(position(&flushes.turn(Some(soon()), later)), Some(1), "the rest ends");
        flushes.done(SeqNo(1));
        assert!(flushes.is_empty());
    }

    #[test]
    fn a_stop_tries_once_more() {
        let flushes = Flushes::new(SeqNo(0));
        flushes.push(input(1));
        flushes.push(input(2));
        flushes.stop();
        let (long, later) = (Some(Instant::now() + LONG), Instant::now() + LONG);
        assert_eq!(position(&flushes.turn(long, later)), Some(1));
        flushes.done(SeqNo(1));
        assert_eq!(position(&flushes.turn(None, later)), Some(2));
        flushes.failed(&Error::Closed);
        assert!(matches!(flushes.turn(long, later), Turn::Stop));
    }

    #[test]
    fn nobody_waits_for_a_thread_that_is_gone() {
        let flushes = Arc::new(Flushes::new(SeqNo(0)));
        flushes.push(input(7));
        let waiting = {
            let flushes = Arc::clone(&flushes);
            std::thread::spawn(move || flushes.wait_flushed(SeqNo(7), LONG))
        };
        flushes.end(Error::Failed("it is gone".into()));
        assert!(matches!(waiting.join().unwrap(), Err(Error::Failed(_))));
        assert!(matches!(flushes.wait_for_room(1, LONG), Err(Error::Failed(_))));
        assert!(flushes.wait_for_room(2, LONG).is_ok());
    }

    #[test]
    fn a_flush_that_is_behind_is_no_full_disk() {
        let flushes = Flushes::new(SeqNo(0));
        flushes.push(input(1));
        let error = flushes.wait_for_room(1, Duration::ZERO).unwrap_err();
        assert!(matches!(error, Error::Full(_)) && error.is_transient());
        assert!(error.to_string().contains("behind") && !error.to_string().contains("disk"), "{error}");
    }
}
