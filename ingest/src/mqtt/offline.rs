//! What waits for durable sessions: kept in the log, recorded with the turn, read back when a session takes it.
//!
//! # Invariants
//! - A message that waits is in the log before anyone is acknowledged for it, and its number in the state record of each
//!   session that it waits for, in the same commit.
//! - The log's cursor of the sessions is never behind a message that waits.
//! - What cannot be kept, or is gone from the log, is counted with its reason.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use sonde_engine::{Engine, LOG_CURSORS, MessageRef, SeqNo, SeqRange, State};
use sonde_proto::mqtt::ReasonCode;

use super::backlog::{BASE_AT, Block, Manner};
use super::message::Message;
use super::router::SessionKey;
use super::session::{Delivery, Session, Stored};
use super::turn::{ConnectionKey, Undo};
use super::worker::Worker;
use crate::limits::{FETCH_BYTES, FETCH_MESSAGES, QUEUED_BYTES, QUEUED_BYTES_OF_ALL, QUEUED_MESSAGES};

/// The sessions' cursor in the log.
const CURSOR: &[u8] = b"mqtt sessions";

/// Why a client does not get a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// As much waits for it as may.
    Full,
    /// QoS 0, and the connection does not keep up.
    Slow,
    /// It is larger than the client takes.
    TooLarge,
    /// The log's budget ended before the client came for it.
    Gone,
}

impl Dropped {
    /// All reasons, in the order of their counters.
    pub(crate) const ALL: [Self; 4] = [Self::Full, Self::Slow, Self::TooLarge, Self::Gone];

    /// The reason as `system.sessions` and the log say it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Full => "queue full",
            Self::Slow => "slow reader",
            Self::TooLarge => "too large for the client",
            Self::Gone => "gone from the log",
        }
    }

    /// The counters as text; none where all are 0.
    pub(crate) fn describe(counters: &[u64; Self::ALL.len()]) -> Option<String> {
        let counted = Self::ALL.iter().zip(counters).filter(|(_, count)| **count > 0);
        let parts: Vec<String> = counted.map(|(why, count)| format!("{}: {count}", why.text())).collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

/// What happens to a message for a session for which as much waits as may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The new one is dropped.
    #[default]
    DropNew,
    /// The oldest that is not in flight is dropped.
    DropOldest,
    /// The new one is dropped, and a client that is connected is sent away with 0x97 (MQTT 5, 4.13).
    Disconnect,
}

/// How much waits for a session.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Messages. Default 10,000.
    pub messages: usize,
    /// Their bytes. Default 64 MiB.
    pub bytes: usize,
    /// What happens beyond.
    pub overflow: Overflow,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self { messages: QUEUED_MESSAGES, bytes: QUEUED_BYTES, overflow: Overflow::DropNew }
    }
}

/// Where the log says that sessions stand.
pub(super) fn log_cursor(engine: &Engine) -> Option<SeqNo> {
    let value = engine.state(LOG_CURSORS, CURSOR)?;
    Some(SeqNo(u64::from_le_bytes(value.as_ref().try_into().ok()?)))
}

impl Session {
    /// Messages that wait and are not in flight.
    pub(super) fn waiting(&self) -> u64 {
        let is_in_log = |stored: Stored| matches!(stored, Stored::Log(_));
        let sent = self.in_flight.values().filter(|in_flight| is_in_log(in_flight.stored())).count() as u64;
        let beside = self.queue.iter().filter(|delivery| !is_in_log(delivery.stored)).count() as u64;
        self.backlog.count().saturating_sub(sent) + beside
    }

    /// Their bytes, and those in flight.
    pub(super) fn waiting_bytes(&self) -> u64 {
        let beside = self.queue.iter().filter(|delivery| !matches!(delivery.stored, Stored::Log(_)));
        self.backlog.bytes() + beside.map(|delivery| delivery.message.bytes() as u64).sum::<u64>()
    }

    /// Whether a message of this size is one too many.
    fn is_full(&self, bytes: u64, limits: &QueueLimits) -> bool {
        let waiting = self.backlog.count().saturating_sub(self.in_flight.len() as u64);
        waiting >= limits.messages as u64 || self.backlog.bytes() + bytes > limits.bytes as u64
    }

    /// Whether a message of the log is the next one that was not handed out.
    pub(super) fn is_next(&self, seq: SeqNo) -> bool {
        self.backlog.next_unfetched() == Some(seq)
    }

    /// The connection ended: what is in the log waits there, and QoS 0 messages do not wait.
    pub(super) fn put_back(&mut self) {
        let first = self.queue.iter().find_map(|delivery| match delivery.stored {
            Stored::Log(seq) => Some(seq),
            Stored::Nowhere | Stored::Copy(_) => None,
        });
        first.into_iter().for_each(|seq| self.backlog.unfetch_from(seq));
        self.queue.retain(|delivery| matches!(delivery.stored, Stored::Copy(_)));
        self.queue_bytes = self.queue.iter().map(|delivery| delivery.message.bytes()).sum();
    }
}

impl Worker {
    /// Logs a message for a durable session, unless another one has had it logged, and notes that it waits. Returns its
    /// number in the turn's batch; none where it is dropped.
    pub(super) fn keep_for(
        &mut self,
        key: SessionKey,
        message: &Message,
        manner: Manner,
        logged: &mut Option<u32>,
    ) -> Option<u32> {
        let bytes = message.bytes() as u64;
        if !self.make_room(key, bytes) {
            self.stats.dropped.fetch_add(1, Ordering::Relaxed);
            self.sessions.get_mut(key)?.count_dropped(Dropped::Full, 1);
            return None;
        }
        let number = match logged {
            Some(number) => *number,
            None => *logged.insert(self.log_message(message)?),
        };
        self.sessions.get_mut(key)?.backlog.note(number, manner, bytes);
        self.queued_bytes += bytes;
        self.note_backlog(key);
        Some(number)
    }

    /// Logs the current message of the turn; where the batch is full, with the next one.
    pub(super) fn log_message(&mut self, message: &Message) -> Option<u32> {
        for _ in 0..2 {
            let raw = MessageRef {
                seq: SeqNo(0),
                received: self.engine.now(),
                qos: message.qos as u8,
                retain: message.retain,
                topic: &message.topic,
                properties: &message.properties,
                payload: &message.payload,
            };
            if let Ok(number) = self.turn.builder.message(&raw) {
                return Some(number);
            }
            self.submit_turn();
            self.turn.builder.begin_message();
        }
        unreachable!("a packet is smaller than an empty batch")
    }

    /// Whether a message of this size may wait for a session, once what the policy says has gone for it.
    fn make_room(&mut self, key: SessionKey, bytes: u64) -> bool {
        let limits = self.queue_limits;
        let of_all = self.queued_bytes + bytes > QUEUED_BYTES_OF_ALL;
        let Some(session) = self.sessions.get(key) else { return false };
        if !of_all && !session.is_full(bytes, &limits) {
            return true;
        }
        let place = session.connection;
        match limits.overflow {
            Overflow::DropNew => false,
            Overflow::Disconnect => {
                let place = place.and_then(|place| Some((place, self.connections.get(place)?)));
                if let Some((place, (generation, _))) = place.filter(|(_, (_, c))| !c.closing) {
                    let key = ConnectionKey { place, generation: *generation };
                    self.refuse(key, ReasonCode::QUOTA_EXCEEDED);
                }
                false
            }
            Overflow::DropOldest => {
                while self.sessions.get(key).is_some_and(|session| session.is_full(bytes, &limits)) {
                    if !self.drop_oldest(key) {
                        return false;
                    }
                }
                !of_all
            }
        }
    }

    /// Drops the oldest message that waits and is not in flight; `false` where there is none.
    fn drop_oldest(&mut self, key: SessionKey) -> bool {
        let Some(session) = self.sessions.get_mut(key) else { return false };
        let stored = match session.pop() {
            Some(delivery) => delivery.stored,
            None => match session.backlog.next_unfetched() {
                Some(seq) => Stored::Log(seq),
                None => return false,
            },
        };
        session.count_dropped(Dropped::Full, 1);
        self.stats.dropped.fetch_add(1, Ordering::Relaxed);
        self.done_with(key, stored);
        true
    }

    /// A delivery needs nothing any more that keeps it.
    pub(super) fn done_with(&mut self, key: SessionKey, stored: Stored) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        match stored {
            Stored::Nowhere => {}
            Stored::Copy(number) => {
                let record = session.dequeue_record(number);
                self.dequeue(record);
            }
            Stored::Log(seq) => {
                let before = session.backlog.bytes();
                session.backlog.remove(seq);
                self.queued_bytes -= before - session.backlog.bytes();
                self.note_backlog(key);
            }
        }
    }

    /// The present turn records what is left of a session's backlog.
    pub(super) fn note_backlog(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if !std::mem::replace(&mut session.noted, true) {
            self.turn.noted.push(key);
        }
    }

    /// Puts into the turn's batch what it brought for each session, and what is left of what came before. Returns the
    /// former, to be numbered once that is durable.
    pub(super) fn record_backlogs(&mut self) -> Vec<(SessionKey, Block)> {
        let mut blocks = Vec::new();
        for key in std::mem::take(&mut self.turn.noted) {
            let number = self.next_number();
            let Some(session) = self.sessions.get_mut(key) else { continue };
            session.noted = false;
            if !session.is_durable() {
                continue;
            }
            for (number, value) in session.backlog.changes() {
                self.turn.builder.state(session.backlog_record(number, value));
                self.turn.undo.push(Undo::Backlog(key, number));
            }
            if let Some(block) = session.backlog.seal(number) {
                let record = session.backlog_record(number, Some(block.encode()));
                self.turn.builder.state_of_message(record, BASE_AT);
                blocks.push((key, block));
            }
        }
        if !blocks.is_empty() && self.log_cursor.is_none() {
            // What the batch holds comes behind everything that is committed.
            self.set_log_cursor(Some(self.engine.published()));
        }
        blocks
    }

    /// What a turn brought that is not going to be durable.
    pub(super) fn discard_backlogs(&mut self, blocks: &[(SessionKey, Block)]) {
        for (key, block) in blocks {
            if let Some(session) = self.sessions.get_mut(*key) {
                let before = session.backlog.bytes();
                session.backlog.discard(block);
                self.queued_bytes -= before - session.backlog.bytes();
            }
        }
        self.log_cursor = log_cursor(&self.engine);
    }

    /// Takes out what turns bring for a session that ends. Returns the numbers of the records.
    pub(super) fn withdraw_backlog(&mut self, key: SessionKey) -> Vec<u64> {
        self.turn.noted.retain(|noted| *noted != key);
        let mut numbers = Vec::new();
        for turn in &mut self.committing {
            turn.blocks.retain(|(session, block)| {
                if *session == key {
                    numbers.push(block.number);
                }
                *session != key
            });
        }
        numbers
    }

    fn set_log_cursor(&mut self, position: Option<SeqNo>) {
        let value = position.map(|position| position.0.to_le_bytes().to_vec());
        self.turn.builder.state(State { namespace: LOG_CURSORS.into(), key: CURSOR.to_vec(), value });
        self.log_cursor = position;
    }

    /// Lets go of the log that no session needs any more.
    pub(super) fn move_log_cursor(&mut self) {
        // What is on its way has no number yet.
        if !self.committing.is_empty() || !self.turn.noted.is_empty() || self.log_cursor.is_none() {
            return;
        }
        let oldest = self.sessions.iter().filter_map(|(_, session)| session.backlog.oldest()).min();
        let position = oldest.map(|seq| SeqNo(seq.0 - 1));
        if position != self.log_cursor {
            self.set_log_cursor(position);
        }
    }

    /// Reads what waits for a session in the log, where little of it is in memory.
    pub(super) fn fetch(&mut self, key: SessionKey) {
        loop {
            let Some(session) = self.sessions.get(key).filter(|session| session.connection.is_some()) else {
                return;
            };
            let has_some = session.queue.len() as u64 >= FETCH_MESSAGES / 2;
            if has_some || !session.backlog.has_unfetched() {
                return;
            }
            let wanted = session.backlog.unfetched(FETCH_MESSAGES);
            match self.read_backlog(key, &wanted) {
                // All of it was gone: there may be more.
                Ok(0) => {}
                Ok(_) => return,
                Err(error) => {
                    tracing::error!(%error, "cannot read from the log what waits for an MQTT client");
                    return self.send_away(key);
                }
            }
        }
    }

    /// Hands messages of the log to their session; returns how many.
    fn read_backlog(
        &mut self,
        key: SessionKey,
        wanted: &[(SeqRange, Manner)],
    ) -> sonde_engine::Result<usize> {
        let ranges: Vec<SeqRange> = wanted.iter().map(|(range, _)| *range).collect();
        let mut found: Vec<(SeqNo, Message)> = Vec::new();
        let mut bytes = 0;
        let turn = self.engine.read_messages(&mut self.messages, &ranges, &mut |raw| {
            let message = Message::of_log(&raw);
            bytes += message.bytes();
            found.push((raw.seq, message));
            if bytes >= FETCH_BYTES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let count = found.len();
        let mut found = found.into_iter().peekable();
        let mut gone = Vec::new();
        for (range, manner) in wanted {
            for seq in (range.first.0..=range.last.0.min(turn.position.0)).map(SeqNo) {
                match found.next_if(|(known, _)| *known == seq) {
                    Some((_, message)) => self.hand_out(key, seq, message, *manner),
                    None => gone.push(seq),
                }
            }
        }
        self.lose(key, &gone);
        if let Some(session) = self.sessions.get_mut(key) {
            session.backlog.fetched_to(turn.position);
        }
        Ok(count)
    }

    fn hand_out(&mut self, key: SessionKey, seq: SeqNo, message: Message, manner: Manner) {
        let number = self.next_number();
        if let Some(session) = self.sessions.get_mut(key) {
            let Manner { qos, retain } = manner;
            session.push(Delivery { number, stored: Stored::Log(seq), seq, message, qos, retain });
        }
    }

    /// What waited is gone from the log: its extent is said, and its numbers are not asked for again.
    fn lose(&mut self, key: SessionKey, gone: &[SeqNo]) {
        let (Some(first), Some(last)) = (gone.first(), gone.last()) else { return };
        let count = gone.len() as u64;
        if let Some(session) = self.sessions.get_mut(key) {
            let client = &session.client_id;
            tracing::warn!(client, %first, %last, count, "messages that waited for an MQTT client are gone from the log");
            session.count_dropped(Dropped::Gone, count);
        }
        self.stats.dropped.fetch_add(count, Ordering::Relaxed);
        gone.iter().for_each(|seq| self.done_with(key, Stored::Log(*seq)));
    }

    /// Closes the connection of a session for which nothing can be read.
    pub(super) fn send_away(&mut self, key: SessionKey) {
        let place = self.sessions.get(key).and_then(|session| session.connection);
        let place = place.and_then(|place| Some((place, self.connections.get(place)?)));
        if let Some((place, (generation, _))) = place.filter(|(_, (_, c))| !c.closing) {
            let key = ConnectionKey { place, generation: *generation };
            self.refuse(key, ReasonCode::SERVER_UNAVAILABLE);
        }
    }
}
