//! Writing: what waits for connections goes out, and who is sent away hears why.

use std::sync::atomic::Ordering;

use sonde_proto::mqtt::ReasonCode;

use super::budget::Room;
use super::connection::Parked;
use super::packets::explain;
use super::turn::{Answer, ConnectionKey};
use super::worker::Worker;
use crate::limits::OUT_BYTES;

impl Worker {
    /// Marks a connection as having something to write.
    pub(super) fn touch(&mut self, place: usize) {
        self.dirty.push(place);
    }

    pub(super) fn write_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        let now = self.now();
        for place in dirty {
            let Some((generation, connection)) = self.connections.get_mut(place) else { continue };
            let key = ConnectionKey { place, generation: *generation };
            let before = connection.unwritten();
            let intact = connection.flush();
            let written = std::mem::take(&mut connection.written);
            self.stats.bytes_out.fetch_add(written as u64, Ordering::Relaxed);
            self.sys.traffic.bytes_sent += written as u64;
            self.budget.count(connection);
            let left = connection.unwritten();
            connection.stuck_since = match (left, connection.stuck_since) {
                (0, _) => None,
                (_, Some(since)) if written == 0 && left >= before => Some(since),
                _ => Some(now),
            };
            let (last, session) = (connection.closing && left == 0, connection.session());
            if !intact || (last && self.is_answered(place)) {
                self.close(place);
                continue;
            }
            let most = if self.room() == Room::Plenty { OUT_BYTES / 4 } else { 1 };
            let takes_more = before >= most && left < most;
            self.searches_on |= takes_more && !self.searching.is_empty();
            self.replaying |= takes_more && !self.replays.is_empty();
            // What waited for room goes on.
            let has_room = before > OUT_BYTES && left <= OUT_BYTES;
            if let Some(session) = session.filter(|_| has_room) {
                self.pump(session);
            }
            if left <= OUT_BYTES {
                self.unpark(key, Parked::Clogged);
            }
        }
    }

    /// Tells a client of 5.0 why its connection is about to be closed, with what waits for it.
    pub(super) fn tell_end(&mut self, place: usize, reason: ReasonCode) {
        let Some((_, connection)) = self.connections.get_mut(place) else { return };
        // A packet that the client does not take is left out.
        if connection.greeted && !connection.sealed {
            connection.write_answer(&Answer::Close(reason, explain(reason)));
            self.stats.disconnect(reason);
        }
        connection.flush();
    }

    /// Closes a connection behind everything that is still to be answered, with a reason where the version has one.
    pub(super) fn refuse(&mut self, key: ConnectionKey, reason: ReasonCode) {
        self.refuse_because(key, reason, explain(reason));
    }

    /// The same, with what is wrong in words.
    pub(super) fn refuse_because(&mut self, key: ConnectionKey, reason: ReasonCode, why: &'static str) {
        if let Some((_, connection)) = self.connections.get_mut(key.place) {
            connection.closing = true;
            connection.partial = Vec::new();
        }
        self.turn.answers.push((key, Answer::Close(reason, why)));
    }
}
