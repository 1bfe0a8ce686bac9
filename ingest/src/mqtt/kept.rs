//! What waits in segments that are about to go from the log is kept beside it: what others publish costs a session that is
//! away none of its messages, as long as it has few.
//!
//! # Invariants
//! - What is kept waits under its sequence number as before; its record goes when the session is done with the message.
//! - It is in memory, as all state is, so it is bounded, for a session and for all together; what is beyond goes with the
//!   log, and is counted when its session comes for it.
//! - Those who want much leave room for those who want little: whoever needs least is first, and all together share half of
//!   the room evenly.

use std::collections::BTreeMap;
use std::time::Duration;

use sonde_engine::{LogBudget, LogSegment, SeqNo, SeqRange, State, Timestamp};

use super::message::Message;
use super::router::SessionKey;
use super::session::Session;
use super::worker::Worker;
use crate::limits::{KEPT_BYTES, TURN_BYTES};

/// Namespace of the messages that are kept, under their sequence numbers.
pub(super) const KEPT: &str = "mqtt.kept";

/// How long before its time a segment is as good as too old.
const ENDANGERED: Duration = Duration::from_secs(600);

/// The messages of a session that are kept, and how far the log was looked through for them.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    /// Bytes by sequence number.
    messages: BTreeMap<u64, u64>,
    bytes: u64,
    /// What waits up to here is kept, or there was no room for it.
    looked_to: SeqNo,
}

impl Kept {
    pub(super) fn has(&self, seq: SeqNo) -> bool {
        self.messages.contains_key(&seq.0)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn insert(&mut self, seq: SeqNo, bytes: u64) {
        let before = self.messages.insert(seq.0, bytes).unwrap_or_default();
        self.bytes += bytes - before.min(bytes);
    }

    /// Whether it was there.
    fn remove(&mut self, seq: SeqNo) -> bool {
        let bytes = self.messages.remove(&seq.0);
        self.bytes -= bytes.unwrap_or_default().min(self.bytes);
        bytes.is_some()
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = SeqNo> {
        self.messages.keys().map(|seq| SeqNo(*seq))
    }
}

/// The part of what is free that the first message of a session may take.
const FREE_TO_FIRST: u64 = 4;

/// What sessions may have kept.
#[derive(Clone, Copy, Debug)]
struct Shares {
    /// Bytes for one session.
    of_one: u64,
    /// Bytes that nobody has.
    free: u64,
}

impl Shares {
    /// Half of the room evenly for all; the rest is for first messages, and for those who come later.
    fn new(room: u64, used: u64, sessions: usize) -> Self {
        let of_one = KEPT_BYTES.min(room / 2 / sessions.max(1) as u64);
        Self { of_one, free: room.saturating_sub(used) }
    }

    /// Whether a session that has so many bytes kept may have a message more.
    fn allow(&self, kept: u64, message: u64) -> bool {
        let is_within = kept + message <= self.of_one && message <= self.free;
        is_within || kept == 0 && message <= self.free / FREE_TO_FIRST
    }
}

/// Up to where the log may go soon for its budget's sake, whoever needs it: the segments that are over it once two more
/// have been begun, and those that are about to be too old.
fn endangered(segments: &[LogSegment], budget: &LogBudget, now: Timestamp) -> SeqNo {
    let Some((_, closed)) = segments.split_last() else { return SeqNo(0) };
    let largest = segments.iter().map(|segment| segment.bytes).max().unwrap_or_default();
    let mut bytes = 2 * largest + segments.iter().map(|segment| segment.bytes).sum::<u64>();
    let mut last = SeqNo(0);
    for segment in closed {
        let age = now.as_nanos().saturating_sub(segment.created.as_nanos());
        let age = Duration::from_nanos(u64::try_from(age).unwrap_or_default());
        if bytes <= budget.max_bytes && age + ENDANGERED <= budget.max_age {
            break;
        }
        bytes -= segment.bytes;
        last = segment.last;
    }
    last
}

impl Session {
    /// The record of a message that is kept; without a message the one that removes it.
    fn kept_record(&self, seq: SeqNo, message: Option<&Message>) -> State {
        State { value: message.map(Message::encode), ..self.gone(KEPT, &seq.0.to_be_bytes()) }
    }

    /// The records that remove what is kept.
    pub(super) fn forget_kept(&self) -> impl Iterator<Item = State> + '_ {
        self.kept.numbers().map(|seq| self.kept_record(seq, None))
    }

    /// The session is done with a message: the record that goes, where it was kept.
    pub(super) fn unkeep(&mut self, seq: SeqNo) -> Option<State> {
        self.kept.remove(seq).then(|| self.kept_record(seq, None))
    }

    /// The oldest message that only the log has.
    pub(super) fn oldest_in_log(&self) -> Option<SeqNo> {
        self.backlog.oldest_where(|seq| !self.kept.has(seq))
    }
}

impl Worker {
    /// Keeps what sessions need of the segments that may go soon, a turn's worth of it.
    pub(super) fn keep_endangered(&mut self) {
        if self.log_cursor.is_none() {
            return;
        }
        let end = endangered(&self.engine.log_segments(), &self.log, self.clock);
        if end <= self.kept_to {
            return;
        }
        let used: u64 = self.sessions.iter().map(|(_, session)| session.kept.bytes()).sum();
        let needs = |session: &Session| session.backlog.oldest().is_some_and(|oldest| oldest <= end);
        let needing = self.sessions.iter().filter(|(_, session)| needs(session));
        let mut shares = Shares::new(self.budget.kept(), used, needing.clone().count());
        let behind = needing.filter(|(_, session)| session.kept.looked_to < end);
        let mut behind: Vec<(u64, SessionKey)> =
            behind.map(|(key, session)| (session.backlog.bytes(), key)).collect();
        behind.sort_unstable();
        let mut bytes = 0;
        for (_, key) in behind {
            if bytes >= TURN_BYTES as u64 {
                // The rest with the next pass of the loop.
                return self.inbox.wake();
            }
            match self.keep_of(key, end, &mut shares) {
                Ok(kept) => bytes += kept,
                Err(error) => {
                    tracing::error!(%error, "cannot read from the log what is about to go from it");
                    return;
                }
            }
        }
        self.kept_to = end;
    }

    /// Keeps what a session needs of the log up to `end`, its oldest first; returns the bytes.
    fn keep_of(&mut self, key: SessionKey, end: SeqNo, shares: &mut Shares) -> sonde_engine::Result<u64> {
        let mut bytes = 0;
        loop {
            let Some(session) = self.sessions.get_mut(key) else { return Ok(bytes) };
            let from = session.kept.looked_to;
            let ranges: Vec<SeqRange> = session.backlog.ranges_between(from, end);
            // None is smaller than a byte.
            if ranges.is_empty() || !shares.allow(session.kept.bytes(), 1) {
                session.kept.looked_to = end;
                return Ok(bytes);
            }
            let (found, position) = self.read_ranges(&ranges)?;
            let Some(session) = self.sessions.get_mut(key) else { return Ok(bytes) };
            for (seq, message) in found {
                if session.kept.has(seq) {
                    continue;
                }
                let size = message.bytes() as u64;
                if !shares.allow(session.kept.bytes(), size) {
                    session.kept.looked_to = end;
                    return Ok(bytes);
                }
                session.kept.insert(seq, size);
                bytes += size;
                shares.free -= size;
                let record = session.kept_record(seq, Some(&message));
                self.turn.settle(record);
            }
            session.kept.looked_to = if position > from { position.min(end) } else { end };
        }
    }

    /// A message that is kept for a session.
    pub(super) fn kept_message(&self, key: SessionKey, seq: SeqNo) -> Option<Message> {
        let session = self.sessions.get(key).filter(|session| session.kept.has(seq))?;
        let record = session.kept_record(seq, None);
        let value = self.engine.state(&record.namespace, &record.key)?;
        Message::decode(value.as_ref(), self.clock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sonde_engine::SegmentState;

    /// Sessions that want everything, however many, before one that wants little.
    #[test]
    fn whoever_wants_little_has_it() {
        for (sessions, message) in [(70, 900_000), (10_000, 60_000), (1000, 100)] {
            let room = 16 << 20;
            let mut shares = Shares::new(room, 0, sessions);
            for _ in 0..sessions {
                let mut kept = 0;
                while shares.allow(kept, message) {
                    (kept, shares.free) = (kept + message, shares.free - message);
                }
                assert!(kept <= KEPT_BYTES);
            }
            assert!(shares.free < room / 4 * 3, "{} of {room} are free", shares.free);
            assert!(
                Shares::new(room, room - shares.free, sessions + 1).allow(0, 1000),
                "{sessions}, {shares:?}"
            );
        }
        let few = Shares::new(64 << 20, 0, 10);
        assert!(few.allow(0, 2 << 20) && !few.allow(1, 2 << 20), "one that is larger is kept alone");
        assert!(few.allow(KEPT_BYTES - 10, 10) && !few.allow(KEPT_BYTES - 10, 11));
        assert!(!Shares::new(100, 100, 1).allow(0, 1));
    }

    #[test]
    fn segments_are_endangered_while_two_more_would_push_them_out() {
        let segment = |number: u64| LogSegment {
            number,
            path: String::new(),
            first: SeqNo(10 * number + 1),
            last: SeqNo(10 * number + 10),
            bytes: 64,
            created: Timestamp::from_secs(1000 * number as i64),
            state: SegmentState::Held,
            held_by: None,
        };
        let all: Vec<LogSegment> = (0..6).map(segment).collect();
        let budget = |max_bytes, seconds| LogBudget { max_bytes, max_age: Duration::from_secs(seconds) };
        let up_to = |budget| endangered(&all, &budget, Timestamp::from_secs(6000)).0;
        assert_eq!(up_to(budget(8 * 64, 100_000)), 0);
        assert_eq!(up_to(budget(7 * 64, 100_000)), 10);
        assert_eq!(up_to(budget(5 * 64, 100_000)), 30);
        assert_eq!(up_to(budget(64, 100_000)), 50, "never the one that is written");
        assert_eq!(up_to(budget(8 * 64, 5000)), 20, "too old in ten minutes");
    }
}
