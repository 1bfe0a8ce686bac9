//! What of a replay is in tables only: read by a thread of its own, handed out by the event loop.
//!
//! # Invariants
//! - The event loop never reads a table: the thread gives it one piece at a time, of each replay in turn.
//! - A piece is read when the one before it is out; a replay that has ended stops the work for it.

mod history;
mod inverse;
mod logged;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use foldhash::HashMap;
use sonde_engine::{Engine, SeqNo, Timestamp};

use super::message::Message;
use super::portion::Portion;
use super::router::SessionKey;
use super::{Command, Inbox};
use crate::source::Sources;
use history::{History, Piece};

/// The rows of one replay.
#[derive(Debug)]
pub(super) struct Rows {
    /// Tells the replay from others that had its place.
    number: u64,
    /// What is to be read, while nobody reads it.
    history: Option<Box<History>>,
    /// What was read and not handed out.
    waiting: VecDeque<(Timestamp, Message)>,
    /// All rows before this have been read.
    upto: Timestamp,
    is_over: Arc<AtomicBool>,
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

impl Rows {
    /// The time before which no row comes any more.
    pub(super) fn next_time(&self) -> Timestamp {
        self.waiting.front().map_or(self.upto, |(time, _)| *time)
    }

    /// Takes out rows up to a time, as many as are handed out at once.
    pub(super) fn take(&mut self, until: Timestamp, mut portion: Portion) -> Vec<Message> {
        let mut taken = Vec::new();
        while !portion.is_used_up() {
            if self.waiting.front().is_none_or(|(time, _)| *time > until) {
                break;
            }
            let Some((_, message)) = self.waiting.pop_front() else { break };
            portion.take(&message);
            taken.push(message);
        }
        taken
    }

    fn is_at_end(&self) -> bool {
        self.waiting.is_empty() && self.upto == Timestamp::MAX
    }
}

/// A piece of work for the thread, or what came of it.
#[derive(Debug)]
pub(crate) struct Work {
    key: SessionKey,
    number: u64,
    history: Box<History>,
    is_over: Arc<AtomicBool>,
    found: sonde_engine::Result<Option<Piece>>,
}

/// The rows of all replays.
#[derive(Debug, Default)]
pub(super) struct Past {
    thread: Option<Reader>,
    rows: HashMap<SessionKey, Rows>,
}

impl Past {
    /// Begins the rows of a replay, if a table has some; sources that cannot be read backwards are named in the log.
    pub(super) fn begin(
        &mut self,
        (key, number): (SessionKey, u64),
        engine: &Engine,
        sources: &Sources,
        (filter, from): (&str, Timestamp),
        position: SeqNo,
    ) {
        let (inverses, left_out) = inverse::inverses(&engine.catalog(), sources, filter);
        for inverse::LeftOut { source, why } in left_out {
            tracing::info!(
                filter,
                source,
                why,
                "a replay has what the log keeps of this source, and no rows"
            );
        }
        if inverses.is_empty() {
            return;
        }
        let history = History::new(engine, filter, from, inverses, position);
        let rows = Rows {
            number,
            history: Some(Box::new(history)),
            waiting: VecDeque::new(),
            upto: from,
            is_over: Arc::default(),
        };
        self.rows.insert(key, rows);
    }

    /// Ends the rows of a replay, if it has some.
    pub(super) fn end(&mut self, key: SessionKey) {
        self.rows.remove(&key);
    }

    /// The rows of a replay, while there are some to come.
    pub(super) fn of(&mut self, key: SessionKey) -> Option<&mut Rows> {
        if self.rows.get(&key).is_some_and(Rows::is_at_end) {
            self.rows.remove(&key);
        }
        self.rows.get_mut(&key)
    }

    /// Has the next piece read, where the one before it is out and nobody reads.
    pub(super) fn ask(&mut self, key: SessionKey, inbox: &Arc<Inbox>) -> std::io::Result<()> {
        let Some(rows) = self.rows.get_mut(&key).filter(|rows| rows.waiting.is_empty()) else {
            return Ok(());
        };
        let Some(history) = rows.history.take() else { return Ok(()) };
        let (number, is_over) = (rows.number, Arc::clone(&rows.is_over));
        let thread = match &mut self.thread {
            Some(thread) => thread,
            none => none.insert(Reader::start(inbox)?),
        };
        thread.send(Work { key, number, history, is_over, found: Ok(None) })
    }

    /// Takes in what the thread has read. The replay may have ended meanwhile.
    pub(super) fn take_in(&mut self, work: Work) -> Result<(), (SessionKey, sonde_engine::Error)> {
        let Some(rows) = self.rows.get_mut(&work.key).filter(|rows| rows.number == work.number) else {
            return Ok(());
        };
        let piece = work.found.map_err(|error| (work.key, error))?;
        rows.history = Some(work.history);
        if let Some(piece) = piece {
            (rows.waiting, rows.upto) = (piece.rows, piece.upto);
        }
        Ok(())
    }
}

/// The thread.
#[derive(Debug)]
struct Reader {
    /// `None` at its end.
    work: Option<Sender<Work>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    fn start(inbox: &Arc<Inbox>) -> std::io::Result<Self> {
        let (work, todo) = channel();
        let is_over = Arc::<AtomicBool>::default();
        let (inbox, over) = (Arc::clone(inbox), Arc::clone(&is_over));
        let run = move || read(&todo, &inbox, &over);
        let thread = std::thread::Builder::new().name("sonde-replay".into()).spawn(run)?;
        Ok(Self { work: Some(work), is_over, thread: Some(thread) })
    }

    fn send(&self, work: Work) -> std::io::Result<()> {
        let sent = self.work.as_ref().is_some_and(|sender| sender.send(work).is_ok());
        sent.then_some(()).ok_or_else(|| std::io::Error::other("the thread that reads rows has ended"))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.work = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that reads rows for replays panicked");
        }
    }
}

/// A step of each replay in turn, until each has a piece; ends with the event loop.
fn read(todo: &Receiver<Work>, inbox: &Inbox, is_over: &AtomicBool) {
    let mut works: VecDeque<Work> = VecDeque::new();
    while !is_over.load(Ordering::Relaxed) {
        match works.is_empty() {
            true => match todo.recv() {
                Ok(work) => works.push_back(work),
                Err(_) => return,
            },
            false => match todo.try_recv() {
                Ok(work) => {
                    works.push_back(work);
                    continue;
                }
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {}
            },
        }
        let Some(mut work) = works.pop_front() else { continue };
        let of_replay = Arc::clone(&work.is_over);
        let ended = || is_over.load(Ordering::Relaxed) || of_replay.load(Ordering::Relaxed);
        if ended() {
            continue;
        }
        work.found = work.history.step(&ended);
        match work.found {
            Ok(None) => works.push_back(work),
            Ok(Some(_)) | Err(_) => inbox.send(Command::Past(work)),
        }
    }
}
