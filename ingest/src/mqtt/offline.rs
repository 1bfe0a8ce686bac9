//! What waits for durable sessions: kept in the log, recorded with the turn, read back when a session takes it.
//!
//! # Invariants
//! - A message that waits is in the log before anyone is acknowledged for it, and its number in the state record of each
//!   session that it waits for, in the same commit.
//! - The log's cursor of the sessions is never behind a message that waits.
//! - What cannot be kept, or is gone from the log, is counted with its reason.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_engine::{Engine, LOG_CURSORS, SeqNo, State};
use sonde_proto::mqtt::{QoS, ReasonCode};

use super::block::{BASE_AT, Block, Manner};
use super::budget::Room;
use super::exchange::{Done, InFlight};
use super::message::Message;
use super::quota::{Dropped, Overflow, QueueLimits};
use super::records::SEQ_AT;
use super::router::SessionKey;
use super::session::{Delivery, Session, Stored};
use super::sharing::Outgoing;
use super::subscribe::UNNUMBERED;
use super::turn::{ConnectionKey, Undo};
use super::worker::Worker;
use crate::limits::{FOLDS, QUEUED_BYTES_OF_ALL};

/// The sessions' cursor in the log.
const CURSOR: &[u8] = b"mqtt sessions";

/// Why a client is sent away for which too much waits.
const TOO_MUCH_WAITS: &str = "more waits for this client, or for its tenant, than may";

/// Where the log says that sessions stand.
pub(super) fn log_cursor(engine: &Engine) -> Option<SeqNo> {
    let value = engine.state(LOG_CURSORS, CURSOR)?;
    Some(SeqNo(u64::from_le_bytes(value.as_ref().try_into().ok()?)))
}

impl Session {
    /// Messages that wait and are not in flight.
    pub(super) fn waiting(&self) -> u64 {
        let is_in_log = |in_flight: &&InFlight| matches!(in_flight.stored(), Some(Stored::Log(_)));
        let sent = self.in_flight.values().filter(is_in_log).count() as u64;
        self.backlog.count().saturating_sub(sent) + self.beside().0
    }

    /// Their bytes, and those in flight from the log.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.backlog.bytes() + self.beside().1
    }

    /// Whether a message of this size is one too many.
    pub(super) fn is_full(&self, bytes: u64, limits: &QueueLimits) -> bool {
        let (beside, beside_bytes) = self.beside();
        // At most the Receive Maximum of the client too few, where copies are in flight.
        let waiting = self.backlog.count().saturating_sub(self.in_flight.len() as u64) + beside;
        let held = self.backlog.bytes() + beside_bytes + self.in_flight_beside();
        waiting >= limits.messages as u64 || held + bytes > limits.bytes as u64
    }

    /// Whether a message of the log is the next one that was not handed out.
    pub(super) fn is_next(&self, seq: SeqNo) -> bool {
        self.backlog.next_unfetched() == Some(seq)
    }

    /// Whether what is in the queue came behind what still waits in the log.
    pub(super) fn is_overtaking(&self) -> bool {
        let first = self.queue.front().filter(|delivery| matches!(delivery.stored, Stored::Copy(_)));
        let first = first.map(|delivery| delivery.number);
        first.is_some_and(|first| self.backlog.next_block().is_some_and(|block| first > block))
    }

    /// Puts a message of the log into the queue: before what came behind it, which waited as a copy.
    pub(super) fn hand_out(&mut self, delivery: Delivery) {
        self.joins(&delivery);
        let at = self.queue.partition_point(|other| other.number <= delivery.number);
        self.queue.insert(at, delivery);
    }

    /// The connection ended: what is in the log waits there, and QoS 0 messages do not wait.
    pub(super) fn put_back(&mut self) {
        let first = self.queue.iter().find_map(|delivery| match delivery.stored {
            Stored::Log(seq) => Some(seq),
            Stored::Nowhere | Stored::Copy(_) => None,
        });
        first.into_iter().for_each(|seq| self.backlog.unfetch_from(seq));
        self.take_where(|delivery| !matches!(delivery.stored, Stored::Copy(_)));
    }
}

impl Worker {
    /// Logs a message for a durable session, unless another one has had it logged, and notes that it waits. Returns its
    /// number in the turn's batch; none where it is dropped.
    pub(super) fn keep_for(
        &mut self,
        key: SessionKey,
        out: &mut Outgoing<'_>,
        manner: Manner,
    ) -> Option<u32> {
        let bytes = out.draft.bytes() as u64;
        if !self.may_note(key) {
            self.count_dropped(key, Dropped::QueueFull, 1);
            return None;
        }
        if let Err(why) = self.make_room(key, bytes, manner.qos) {
            self.count_dropped(key, why, 1);
            return None;
        }
        let number = match self.log_outgoing(out) {
            Ok(number) => number,
            Err(error) => {
                tracing::warn!(%error, topic = out.draft.topic(), "a message could not be logged for who is to get it");
                self.count_dropped(key, Dropped::TooLarge, 1);
                return None;
            }
        };
        self.sessions.get_mut(key)?.backlog.note(number, manner, bytes);
        self.queued_bytes += bytes;
        self.count_waiting(key);
        self.note_backlog(key);
        Some(number)
    }

    /// Whether there is memory to note one more message of the log for a session. Where its client is there and keeps up, the
    /// message hardly waits at all.
    fn may_note(&self, key: SessionKey) -> bool {
        let keeps_up = |session: &Session| session.is_here() && session.is_caught_up();
        self.budget.has_room_for_backlog() || self.sessions.get(key).is_some_and(keeps_up)
    }

    /// Keeps a copy of a delivery, unless there is no room for it: whether it is kept.
    pub(super) fn keep_copy(&mut self, key: SessionKey, delivery: &mut Delivery) -> bool {
        // The state store, too, is memory.
        let refused = if self.room() >= Room::Short {
            Err(Dropped::QueueFull)
        } else {
            self.make_room(key, delivery.message.bytes() as u64, delivery.qos)
        };
        if let Err(why) = refused {
            self.count_dropped(key, why, 1);
            return false;
        }
        let Some(record) = self.sessions.get(key).map(|session| session.queue_record(delivery)) else {
            return false;
        };
        delivery.message = Arc::new(Message::clone(&delivery.message).weighed_as_copy(record.key.len()));
        match delivery.seq {
            UNNUMBERED => self.turn.builder.state(record),
            _ => self.turn.builder.state_of_message(record, SEQ_AT),
        }
        true
    }

    /// Counts messages that a session does not get.
    pub(super) fn count_dropped(&mut self, key: SessionKey, why: Dropped, count: u64) {
        self.stats.dropped.fetch_add(count, Ordering::Relaxed);
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.count_dropped(why, count);
        if session.is_durable() {
            // The count is one of the session's records.
            self.note_backlog(key);
        }
    }

    /// Why a message of this size may not wait for a session, if it may not.
    fn is_too_much(&self, key: SessionKey, bytes: u64) -> Option<Dropped> {
        let Some(session) = self.sessions.get(key) else { return Some(Dropped::QueueFull) };
        if self.queued_bytes + bytes > QUEUED_BYTES_OF_ALL || session.is_full(bytes, &self.queue_limits) {
            return Some(Dropped::QueueFull);
        }
        (!self.tenants.may_wait(session, bytes)).then_some(Dropped::TenantFull)
    }

    /// Lets what the policy says go for a message of this size that is to wait; fails where that is not enough. Nobody is
    /// promised a message of QoS 0: it takes no other's place, and gives its own to one of QoS 1 or 2.
    pub(super) fn make_room(&mut self, key: SessionKey, bytes: u64, qos: QoS) -> Result<(), Dropped> {
        if self.is_too_much(key, bytes).is_none() {
            return Ok(());
        }
        self.drop_expired(key);
        while let Some(why) = self.is_too_much(key, bytes) {
            if qos == QoS::AtMostOnce {
                return Err(why);
            }
            let unpromised = self.sessions.get_mut(key).and_then(Session::take_unpromised);
            if let Some(delivery) = unpromised {
                self.count_dropped(key, why, 1);
                self.done_with(key, delivery.stored);
                continue;
            }
            match self.queue_limits.overflow {
                Overflow::DropNew => return Err(why),
                Overflow::Disconnect => {
                    let place = self.sessions.get(key).and_then(|session| session.connection);
                    let place = place.and_then(|place| Some((place, self.connections.get(place)?)));
                    if let Some((place, (generation, _))) = place.filter(|(_, (_, c))| !c.closing) {
                        let key = ConnectionKey { place, generation: *generation };
                        self.refuse_because(key, ReasonCode::QUOTA_EXCEEDED, TOO_MUCH_WAITS);
                    }
                    return Err(why);
                }
                Overflow::DropOldest => {
                    if !self.drop_oldest(key, why) {
                        return Err(why);
                    }
                }
            }
        }
        Ok(())
    }

    /// Drops what has expired of what is in memory.
    fn drop_expired(&mut self, key: SessionKey) {
        let clock = self.clock;
        let expired = self.sessions.get_mut(key).map(|session| session.take_expired(clock));
        for delivery in expired.into_iter().flatten() {
            self.stats.expired.fetch_add(1, Ordering::Relaxed);
            self.done_with(key, delivery.stored);
        }
    }

    /// Drops the oldest message that waits and is not in flight; `false` where there is none.
    fn drop_oldest(&mut self, key: SessionKey, why: Dropped) -> bool {
        let Some(session) = self.sessions.get_mut(key) else { return false };
        let stored = match session.take_first() {
            Some(delivery) => delivery.stored,
            None => match session.backlog.next_unfetched() {
                Some(seq) => Stored::Log(seq),
                None => return false,
            },
        };
        self.count_dropped(key, why, 1);
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
                self.turn.settle(record);
            }
            Stored::Log(seq) => {
                let before = session.backlog.bytes();
                session.backlog.remove(seq);
                self.queued_bytes -= before - session.backlog.bytes();
                let kept = session.unkeep(seq);
                kept.into_iter().for_each(|record| self.turn.settle(record));
                self.note_backlog(key);
            }
        }
        self.count_waiting(key);
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
        let noted = std::mem::take(&mut self.turn.noted);
        // Not all sessions in one turn, where all get the same messages: each has to fold in one of sixteen.
        let mut folds = FOLDS + noted.len() / 8;
        for key in noted {
            let number = self.next_number();
            let Some(session) = self.sessions.get_mut(key) else { continue };
            session.noted = false;
            if !session.is_durable() {
                continue;
            }
            if session.drops != session.drops_recorded {
                session.drops_recorded = session.drops;
                self.turn.builder.state(session.drops_record());
                self.turn.undo.push(Undo::Drops(key));
            }
            // A copy that waits stands between blocks, by its number.
            if folds > 0 && session.backlog.is_gathering() && session.beside().0 == 0 {
                folds -= usize::from(session.backlog.fold());
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

    /// Removes the records of a session that is kept no longer than its connection from now on.
    pub(super) fn forget_records(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get(key) else { return };
        let mut records = session.forget();
        let coming = self.committing.iter().flat_map(|turn| &turn.blocks).filter(|(of, _)| *of == key);
        records.extend(coming.map(|(_, block)| session.backlog_record(block.number, None)));
        records.extend(self.outstanding(key).filter_map(|delivery| match delivery.stored {
            Stored::Copy(number) => Some(session.dequeue_record(number)),
            Stored::Nowhere | Stored::Log(_) => None,
        }));
        records.into_iter().for_each(|record| self.turn.builder.state(record));
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
        let oldest = self.sessions.iter().filter_map(|(_, session)| session.oldest_in_log()).min();
        let position = oldest.map(|seq| SeqNo(seq.0 - 1));
        if position != self.log_cursor {
            self.set_log_cursor(position);
        }
    }

    /// A delivery has come to an end.
    pub(super) fn finish(&mut self, key: SessionKey, done: Done) {
        done.records.into_iter().for_each(|record| self.turn.settle(record));
        self.done_with(key, done.stored);
    }
}
