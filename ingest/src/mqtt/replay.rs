//! `$replay/<from>/<filter>`: messages of the past, from the log in its order and where it has them no more as rows of
//! tables, then those that come, without a gap or a duplicate.
//!
//! # Invariants
//! - A replay is a session without a socket beside the one that asked: while it is there, what matches its filter is logged.
//! - It reads the log up to the last commit, and all that was routed before it began, before it goes on live; a message that
//!   was read is not delivered again, by its sequence number. Whatever a commit behind that holds has not been released yet,
//!   and comes live.
//! - Rows are merged with the messages of the log by time: a row's own, and when a message came.
//! - It reads a bounded piece of the log a turn of the event loop, and nothing while its client is behind.
//! - Until it is live the log is held for it, from where it began while rows are to come: they are compared with it.
//! - It ends with its connection; nothing of it is durable.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_access::{Action, allows};
use sonde_engine::{Engine, FieldValue, SeqNo, SeqRange, Timestamp};
use sonde_proto::mqtt::{QoS, ReasonCode, filter_matches, is_shared};
use sonde_query::statement::parse_duration;

use super::message::Message;
use super::past::Work;
use super::portion::{Portion, takes_more};
use super::router::SessionKey;
use super::session::{Delivery, Session, Stored};
use super::subscription::Subscription;
use super::sys;
use super::via::Via;
use super::worker::{Worker, interest};
use crate::decode::time_of_number;
use crate::limits::{REPLAY_SEQS, REPLAYS, SESSION_REPLAYS};

/// What the filter of a replay begins with.
const PREFIX: &str = "$replay/";

/// A replay, in the session that stands for it.
#[derive(Clone, Debug)]
pub(super) struct Replay {
    /// Tells it from those that had its place.
    number: u64,
    /// The session that asked.
    target: SessionKey,
    /// What it asked for, as it is to be unsubscribed from.
    filter: String,
    /// The filter without the time.
    inner: String,
    from: Timestamp,
    qos: QoS,
    /// Everything up to here was delivered.
    position: SeqNo,
    /// The last turn that may have messages that were routed before the replay began: they come from the log.
    behind_turn: u64,
    /// Whether its rows are being read, or have been.
    has_begun: bool,
    /// When the next message of the log came, where rows come before it.
    held: Option<Timestamp>,
    /// Whether what is committed from now on is delivered as it comes.
    live: bool,
}

/// Where a replay begins and what it is of: the parts of `$replay/<from>/<filter>`.
pub(super) fn parts(filter: &str) -> Option<(&str, &str)> {
    filter.strip_prefix(PREFIX)?.split_once('/')
}

/// Whether a filter asks for a replay.
pub(super) fn is_replay(filter: &str) -> bool {
    filter.starts_with(PREFIX)
}

/// RFC 3339, a number of seconds (or, by its size, milliseconds) since 1970, or how long ago, such as `-1h`.
fn instant(from: &str, now: Timestamp) -> Option<Timestamp> {
    if let Some(ago) = from.strip_prefix('-') {
        let ago = parse_duration(ago).ok()?;
        return Some(Timestamp::from_nanos(now.as_nanos().saturating_sub(ago)));
    }
    let value = from.parse().map_or_else(|_| FieldValue::Text(from.into()), FieldValue::Int);
    time_of_number(&value, None).ok()
}

/// Behind what a replay from this time need not look at.
fn position_of(engine: &Engine, from: Timestamp) -> SeqNo {
    let segments = engine.log_segments();
    // What stands before a segment was written before that was made.
    let first = segments.iter().rev().find(|segment| segment.created <= from).or(segments.first());
    first.map_or_else(|| engine.published(), |segment| SeqNo(segment.first.0 - 1))
}

impl Worker {
    /// Begins a replay for a session; the reason why not, where it cannot be.
    pub(super) fn begin_replay(
        &mut self,
        target: SessionKey,
        filter: &str,
        subscription: Subscription,
    ) -> Result<(), ReasonCode> {
        let is_stored = |inner: &str| !is_shared(inner) && !is_replay(inner) && !inner.starts_with(sys::ROOT);
        let parsed = parts(filter).filter(|(_, inner)| is_stored(inner));
        let from = parsed.and_then(|(from, inner)| Some((instant(from, self.engine.now())?, inner)));
        let Some((from, inner)) = from else { return Err(ReasonCode::TOPIC_FILTER_INVALID) };
        self.end_replay(target, filter);
        let of_session = self.replays.iter().filter(|key| self.replay_target(**key) == Some(target)).count();
        if self.replays.len() >= REPLAYS || of_session >= SESSION_REPLAYS {
            return Err(ReasonCode::QUOTA_EXCEEDED);
        }
        self.submit_turn();
        let number = self.next_number();
        let mut session = Session::new(&format!("replay {number:x}"), number);
        session.subscriptions.insert(inner.into(), subscription);
        let position = position_of(&self.engine, from);
        session.replay = Some(Replay {
            number,
            target,
            filter: filter.to_owned(),
            inner: inner.to_owned(),
            from,
            qos: subscription.qos,
            position,
            behind_turn: self.submitted,
            has_begun: false,
            held: None,
            live: false,
        });
        self.engine.hold_log(&session.client_id, position);
        let key = self.sessions.insert(session);
        self.router.subscribe(inner, interest(key, subscription));
        self.replays.push(key);
        Ok(())
    }

    fn replay_target(&self, key: SessionKey) -> Option<SessionKey> {
        self.sessions.get(key)?.replay.as_ref().map(|replay| replay.target)
    }

    /// Ends the replay that a session has subscribed to under this filter; `false` where there is none.
    pub(super) fn end_replay(&mut self, target: SessionKey, filter: &str) -> bool {
        self.end_replays_where(|replay| replay.target == target && replay.filter == filter)
    }

    /// Ends all replays of a session, because its connection ended.
    pub(super) fn end_replays(&mut self, target: SessionKey) {
        if !self.replays.is_empty() {
            self.end_replays_where(|replay| replay.target == target);
        }
    }

    /// Ends the replays of a session that its owner may not read any more; how many.
    pub(super) fn recheck_replays(&mut self, target: SessionKey, may_read: impl Fn(&str) -> bool) -> usize {
        let before = self.replays.len();
        if before > 0 {
            self.end_replays_where(|replay| replay.target == target && !may_read(&replay.inner));
        }
        before - self.replays.len()
    }

    fn end_replays_where(&mut self, is_meant: impl Fn(&Replay) -> bool) -> bool {
        let meant = |key: &SessionKey| {
            self.sessions.get(*key).and_then(|session| session.replay.as_ref()).is_some_and(&is_meant)
        };
        let (gone, left): (Vec<_>, Vec<_>) = self.replays.iter().copied().partition(meant);
        self.replays = left;
        for key in &gone {
            let Some(session) = self.sessions.try_remove(*key) else { continue };
            session.subscriptions.keys().for_each(|filter| self.router.unsubscribe(filter, *key));
            self.withdraw(*key);
            self.past.end(*key);
            self.engine.release_log(&session.client_id);
        }
        !gone.is_empty()
    }

    /// A turn of every replay that has something to read and whose client keeps up. Returns whether one could go on.
    pub(super) fn step_replays(&mut self) -> bool {
        let mut goes_on = false;
        for at in 0..self.replays.len() {
            let Some(key) = self.replays.get(at).copied() else { break };
            match self.step_replay(key) {
                Ok(more) => goes_on |= more,
                Err(error) => {
                    self.fail_replay(key, &error);
                }
            }
        }
        goes_on
    }

    /// Whether a client takes more.
    fn keeps_up(&self, target: SessionKey) -> bool {
        let Some(session) = self.sessions.get(target) else { return false };
        let connection = session.connection.and_then(|place| self.connections.get(place));
        connection.is_some_and(|(_, connection)| takes_more(session, connection, self.room()))
    }

    /// Nothing can be read for a replay: its client is sent away, and begins it again.
    fn fail_replay(&mut self, key: SessionKey, error: &dyn std::fmt::Display) {
        tracing::error!(%error, "cannot read messages of the past");
        if let Some(target) = self.replay_target(key) {
            self.send_away(target);
        }
    }

    /// What the thread has read of a replay's rows.
    pub(super) fn take_rows(&mut self, work: Work) {
        if let Err((key, error)) = self.past.take_in(work) {
            self.fail_replay(key, &error);
        }
    }

    fn step_replay(&mut self, key: SessionKey) -> sonde_engine::Result<bool> {
        let published = self.engine.published();
        let Some(target) = self.replay_target(key) else { return Ok(false) };
        let keeps_up = self.keeps_up(target);
        let Some(session) = self.sessions.get_mut(key) else { return Ok(false) };
        let name = &session.client_id;
        let Some(replay) = session.replay.as_mut() else { return Ok(false) };
        // What was routed before the replay began is in the tables then, or in the log.
        if replay.live || !keeps_up || self.released < replay.behind_turn {
            return Ok(false);
        }
        if !std::mem::replace(&mut replay.has_begun, true) {
            let of = (replay.inner.as_str(), replay.from);
            self.past.begin((key, replay.number), &self.engine, &self.sources, of, replay.position);
        }
        let next_row = self.past.of(key).map(|rows| rows.next_time());
        let is_first = |came: Timestamp| next_row.is_none_or(|row| came < row);
        let at_end = replay.position >= published;
        let moved = if replay.held.map_or(at_end && next_row.is_some(), |came| !is_first(came)) {
            let until = replay.held.unwrap_or(Timestamp::MAX);
            self.hand_rows(key, target, until)
        } else if at_end {
            // Each release comes before this, and after its commit was published.
            replay.live = true;
            self.engine.release_log(name);
            false
        } else {
            if next_row.is_none() {
                self.engine.hold_log(name, replay.position);
            }
            self.hand_logged(key, target, published, next_row)?
        };
        if let Err(error) = self.past.ask(key, &self.inbox) {
            self.fail_replay(key, &error);
        }
        Ok(moved)
    }

    /// Hands out rows up to a time.
    fn hand_rows(&mut self, key: SessionKey, target: SessionKey, until: Timestamp) -> bool {
        let Some(qos) = self.sessions.get(key).and_then(|s| s.replay.as_ref()).map(|replay| replay.qos)
        else {
            return false;
        };
        let portion = Portion::of(self.room());
        let rows = self.past.of(key).map(|rows| rows.take(until, portion)).unwrap_or_default();
        let moved = !rows.is_empty();
        rows.into_iter().for_each(|message| self.hand_replayed(target, SeqNo(0), Arc::new(message), qos));
        self.pump(target);
        moved
    }

    /// Hands out messages of the log that came before the next row.
    fn hand_logged(
        &mut self,
        key: SessionKey,
        target: SessionKey,
        published: SeqNo,
        next_row: Option<Timestamp>,
    ) -> sonde_engine::Result<bool> {
        let mut portion = Portion::of(self.room());
        let Some(replay) = self.sessions.get_mut(key).and_then(|session| session.replay.as_mut()) else {
            return Ok(false);
        };
        let first = replay.position.plus(1);
        let range = SeqRange { first, last: published.min(replay.position.plus(REPLAY_SEQS)) };
        let (mut found, mut held) = (Vec::new(), None);
        let turn = self.engine.read_messages(&mut self.messages, &[range], &mut |raw| {
            if raw.received >= replay.from && filter_matches(&replay.inner, raw.topic) {
                if next_row.is_some_and(|row| raw.received >= row) {
                    held = Some((raw.seq, raw.received));
                    return ControlFlow::Break(());
                }
                let message = Message::of_log(&raw);
                portion.take(&message);
                found.push((raw.seq, message));
            }
            match portion.is_used_up() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        let position = held.map_or(turn.position, |(seq, _)| SeqNo(seq.0 - 1));
        (replay.position, replay.held) = (position.max(replay.position), held.map(|(_, came)| came));
        let (qos, filter) = (replay.qos, replay.filter.as_str());
        if let (Some(first), Some(last)) = (turn.lost.first(), turn.lost.last()) {
            let (first, last) = (first.first, last.last);
            tracing::warn!(filter, %first, %last, "the log's budget ended before a replay had read it");
        }
        for (seq, message) in found {
            self.hand_replayed(target, seq, Arc::new(message), qos);
        }
        self.pump(target);
        Ok(true)
    }

    fn hand_replayed(&mut self, target: SessionKey, seq: SeqNo, message: Arc<Message>, qos: QoS) {
        let reader = self.reader(target);
        if !reader.is_some_and(|principal| allows(&principal, Action::Subscribe(&message.topic))) {
            self.stats.denied.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let number = self.next_number();
        let Some(session) = self.sessions.get_mut(target) else { return };
        let (stored, qos, via) = (Stored::Nowhere, qos.min(message.qos), Via::default());
        session.push(Delivery { number, stored, seq, message, qos, retain: false, via });
    }

    /// A message that was committed is one of a replay's.
    pub(super) fn deliver_to_replay(&mut self, key: SessionKey, delivery: Delivery) {
        let Some(replay) = self.sessions.get_mut(key).and_then(|session| session.replay.as_mut()) else {
            return;
        };
        // Else it was read from the log, or will be.
        if !replay.live || delivery.seq <= replay.position {
            return;
        }
        let (target, qos) = (replay.target, replay.qos);
        let keeps_up = self.keeps_up(target);
        let Some(replay) = self.sessions.get_mut(key).and_then(|session| session.replay.as_mut()) else {
            return;
        };
        if !keeps_up {
            // The log has the message, and what comes after it.
            replay.live = false;
            let position = replay.position;
            if let Some(session) = self.sessions.get(key) {
                self.engine.hold_log(&session.client_id, position);
            }
            return;
        }
        replay.position = delivery.seq;
        self.hand_replayed(target, delivery.seq, delivery.message, qos);
        self.pump(target);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn beginnings_are_read() {
        let now = Timestamp::from_nanos(1_700_000_000_000_000_000);
        let seconds = |from: &str| instant(from, now).map(|time| time.as_nanos() / 1_000_000_000);
        assert_eq!(seconds("-1h"), Some(1_700_000_000 - 3600));
        assert_eq!(seconds("-30m"), Some(1_700_000_000 - 1800));
        assert_eq!(seconds("1699999999"), Some(1_699_999_999));
        assert_eq!(seconds("1699999999000"), Some(1_699_999_999));
        assert_eq!(seconds("2023-11-14T22:13:20Z"), Some(1_700_000_000));
        for wrong in ["", "yesterday", "-", "-1x", "99999999999999999999"] {
            assert_eq!(instant(wrong, now), None, "{wrong}");
        }
        assert_eq!(parts("$replay/-1h/a/#"), Some(("-1h", "a/#")));
        assert_eq!(parts("$replay/-1h"), None);
    }
}
