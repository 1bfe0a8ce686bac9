//! What waits in the log comes back to the session that takes it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_access::{Action, Principal, allows};
use sonde_engine::{SeqNo, SeqRange};
use sonde_proto::mqtt::ReasonCode;

use super::backlog::Waiting;
use super::block::Manner;
use super::budget::Room;
use super::connection::Phase;
use super::message::Message;
use super::quota::Dropped;
use super::router::SessionKey;
use super::session::{Delivery, Stored};
use super::turn::ConnectionKey;
use super::via::Via;
use super::worker::Worker;
use crate::limits::{FETCH_BYTES, FETCH_MESSAGES};

impl Worker {
    /// Reads what waits for a session in the log, where little of it is in memory; whether there is more to send now.
    pub(super) fn fetch(&mut self, key: SessionKey) -> bool {
        loop {
            let Some(session) = self.sessions.get(key) else { return false };
            let has_some = match self.room() {
                Room::Plenty => {
                    session.queue.len() as u64 >= FETCH_MESSAGES / 2
                        || session.queue_bytes() >= FETCH_BYTES / 2
                }
                Room::Scarce | Room::Short | Room::Gone | Room::Over => !session.queue.is_empty(),
            };
            if !session.backlog.has_unfetched() || (has_some && !session.is_overtaking()) {
                return false;
            }
            let wanted = session.backlog.unfetched(FETCH_MESSAGES);
            let Some(principal) = self.reader(key) else { return false };
            match self.read_backlog(key, &principal, &wanted) {
                // All of it was gone, or may not be read: there may be more.
                Ok(0) => {}
                Ok(_) => return true,
                Err(error) => {
                    tracing::error!(%error, "cannot read from the log what waits for an MQTT client");
                    self.send_away(key);
                    return false;
                }
            }
        }
    }

    /// Hands messages of the log to their session; returns how many.
    fn read_backlog(
        &mut self,
        key: SessionKey,
        principal: &Principal,
        wanted: &[Waiting],
    ) -> sonde_engine::Result<usize> {
        let ranges: Vec<SeqRange> = wanted.iter().map(|waiting| waiting.range).collect();
        let (found, position) = self.read_ranges(&ranges)?;
        let mut found = found.into_iter().peekable();
        let (mut gone, mut denied) = (Vec::new(), Vec::new());
        let mut count = 0;
        for Waiting { range, manner, block } in wanted {
            for seq in (range.first.0..=range.last.0.min(position.0)).map(SeqNo) {
                let message = found.next_if(|(known, _)| *known == seq).map(|(_, message)| message);
                let Some(message) = message.or_else(|| self.kept_message(key, seq)) else {
                    gone.push(seq);
                    continue;
                };
                if !allows(principal, Action::Subscribe(&message.topic)) {
                    denied.push(seq);
                    continue;
                }
                count += 1;
                if let Some(session) = self.sessions.get_mut(key) {
                    let (Manner { qos, retain, identifiers }, stored) = (manner.clone(), Stored::Log(seq));
                    let via = Via { group: None, identifiers };
                    let message = Arc::new(message);
                    session.hand_out(Delivery { number: *block, stored, seq, message, qos, retain, via });
                }
            }
        }
        self.lose(key, &gone);
        if !denied.is_empty() {
            self.stats.denied.fetch_add(denied.len() as u64, Ordering::Relaxed);
            denied.into_iter().for_each(|seq| self.done_with(key, Stored::Log(seq)));
        }
        if let Some(session) = self.sessions.get_mut(key) {
            session.backlog.fetched_to(position);
        }
        Ok(count)
    }

    /// Messages of the log, as many as are read at once, and up to where that is all of them.
    pub(super) fn read_ranges(
        &mut self,
        ranges: &[SeqRange],
    ) -> sonde_engine::Result<(Vec<(SeqNo, Message)>, SeqNo)> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let most = if self.room() == Room::Plenty { FETCH_BYTES } else { 1 };
        let turn = self.engine.read_messages(&mut self.messages, ranges, &mut |raw| {
            let message = Message::of_log(&raw);
            bytes += message.bytes();
            found.push((raw.seq, message));
            if bytes >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok((found, turn.position))
    }

    /// As whom the client of a session reads, once it may be sent something.
    pub(super) fn reader(&self, key: SessionKey) -> Option<Arc<Principal>> {
        let place = self.sessions.get(key)?.connection?;
        let (_, connection) = self.connections.get(place).filter(|(_, c)| c.greeted && !c.sealed)?;
        match &connection.phase {
            Phase::Open { principal, .. } => Some(Arc::clone(principal)),
            Phase::Opening => None,
        }
    }

    /// What waited is gone from the log: its extent is said, and its numbers are not asked for again.
    pub(super) fn lose(&mut self, key: SessionKey, gone: &[SeqNo]) {
        let (Some(first), Some(last)) = (gone.first(), gone.last()) else { return };
        let count = gone.len() as u64;
        if let Some(session) = self.sessions.get(key) {
            let client = &session.client_id;
            tracing::warn!(client, %first, %last, count, "messages that waited for an MQTT client are gone from the log");
        }
        self.count_dropped(key, Dropped::Gone, count);
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
