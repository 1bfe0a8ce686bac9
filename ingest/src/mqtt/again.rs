//! What was in flight when a connection ended is sent again over the next one ([MQTT-4.4.0-1]).
//!
//! # Invariants
//! - It comes in its first order, under its packet ids, within the Receive Maximum of the new connection.
//! - What the log has is read when its turn comes, some at a time, and is in no memory once it is written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_access::{Action, Principal, allows};
use sonde_engine::{SeqNo, SeqRange};
use sonde_proto::mqtt::ReasonCode;

use super::budget::Room;
use super::delivery::{Pen, write_publish};
use super::exchange::InFlight;
use super::router::SessionKey;
use super::session::Delivery;
use super::turn::Answer;
use super::worker::Worker;
use crate::limits::{FETCH_MESSAGES, OUT_BYTES};

/// What was read of the log, by packet id.
type Found = BTreeMap<u16, Delivery>;

impl Worker {
    /// Begins to send again what was in flight when the last connection of the session ended: as much as the client takes at
    /// once, and the rest as it acknowledges.
    pub(super) fn resend(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let place = session.connection.and_then(|place| self.connections.get_mut(place));
        let Some((_, connection)) = place else { return };
        for packet_id in session.begin_again() {
            // Four bytes: a client that took a PUBLISH takes them.
            connection.write_answer(&Answer::PubRel(packet_id, ReasonCode::SUCCESS));
            self.sys.traffic.packets_sent += 1;
        }
        self.pump(key);
    }

    /// Sends again what may be sent now.
    pub(super) fn send_again(&mut self, key: SessionKey) {
        while self.sessions.get(key).is_some_and(|session| !session.resending.is_empty())
            && self.may_send_again(key)
        {
            let Some(principal) = self.reader(key) else { return };
            let found = match self.read_again(key, &principal) {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(%error, "cannot read from the log what an MQTT client has not taken");
                    return self.send_away(key);
                }
            };
            let mut pen = self.take_pen(key);
            let (needs_more, too_large) = self.write_again(key, &found, &mut pen);
            self.properties = pen.properties;
            if !needs_more && too_large.is_empty() {
                return;
            }
            // Each leaves its place to the next.
            too_large.into_iter().for_each(|packet_id| self.give_up(key, packet_id));
        }
    }

    /// Whether the memory and the socket have room for a message that is sent again, and the client takes it.
    fn may_send_again(&mut self, key: SessionKey) -> bool {
        let room = self.room();
        let Some(session) = self.sessions.get(key) else { return false };
        let connection = session.connection.and_then(|place| self.connections.get(place));
        let unacknowledged = session.unacknowledged();
        let takes = unacknowledged < session.send_maximum
            && connection.is_some_and(|(_, connection)| connection.out.len() <= OUT_BYTES);
        if takes && room == Room::Over {
            self.held.insert(key);
        }
        takes && room < Room::Over && (room == Room::Plenty || unacknowledged == 0)
    }

    /// Reads the next of what only the log has. What is gone, or may not be read any more, is done with.
    fn read_again(&mut self, key: SessionKey, principal: &Principal) -> sonde_engine::Result<Found> {
        let mut read = Found::new();
        let Some(session) = self.sessions.get(key) else { return Ok(read) };
        let most = if self.room() == Room::Plenty { FETCH_MESSAGES as usize } else { 1 };
        let wanted = session.logged_again(most);
        let ranges: Vec<SeqRange> =
            wanted.iter().map(|(seq, _)| SeqRange { first: *seq, last: *seq }).collect();
        if ranges.is_empty() {
            return Ok(read);
        }
        let (found, position) = self.read_ranges(&ranges)?;
        let mut found = found.into_iter().peekable();
        let (mut gone, mut denied): (Vec<(SeqNo, u16)>, Vec<u16>) = Default::default();
        for (seq, id) in wanted.into_iter().filter(|(seq, _)| *seq <= position) {
            let message = found.next_if(|(known, _)| *known == seq).map(|(_, message)| message);
            let message = message.or_else(|| self.kept_message(key, seq));
            match message {
                Some(message) if !allows(principal, Action::Subscribe(&message.topic)) => denied.push(id),
                Some(message) => {
                    let delivery =
                        self.sessions.get(key).and_then(|session| session.read_again(id, Arc::new(message)));
                    read.extend(delivery.map(|delivery| (id, delivery)));
                }
                None => gone.push((seq, id)),
            }
        }
        let numbers: Vec<SeqNo> = gone.iter().map(|(seq, _)| *seq).collect();
        self.lose(key, &numbers);
        self.stats.denied.fetch_add(denied.len() as u64, Ordering::Relaxed);
        for id in gone.into_iter().map(|(_, id)| id).chain(denied) {
            let done = self.sessions.get_mut(key).and_then(|session| session.finish(id));
            done.into_iter().for_each(|done| self.finish(key, done));
        }
        Ok(read)
    }

    /// Writes what may be written. Returns whether the next has to be read first, and the packet ids of what is too large.
    fn write_again(&mut self, key: SessionKey, found: &Found, pen: &mut Pen) -> (bool, Vec<u16>) {
        let mut too_large = Vec::new();
        let is_plenty = self.room() == Room::Plenty;
        let Some(session) = self.sessions.get_mut(key) else { return (false, too_large) };
        let Some(place) = session.connection else { return (false, too_large) };
        let Some((_, connection)) = self.connections.get_mut(place) else { return (false, too_large) };
        let mut needs_more = false;
        loop {
            let room = connection.out.len() <= OUT_BYTES && (is_plenty || session.unacknowledged() == 0);
            let Some((packet_id, dup)) = session.next_again(room) else { break };
            let delivery = match session.in_flight.get(&packet_id) {
                Some(InFlight::Sent(delivery)) => delivery,
                Some(InFlight::Logged { .. }) => match found.get(&packet_id) {
                    Some(delivery) => delivery,
                    None => {
                        session.resending.push_front((packet_id, dup));
                        needs_more = true;
                        break;
                    }
                },
                _ => continue,
            };
            if write_publish(connection, packet_id, delivery, dup, pen) {
                self.sys.traffic.packets_sent += 1;
                self.sys.traffic.payload_sent += delivery.message.payload.len() as u64;
            } else {
                too_large.push(packet_id);
            }
        }
        self.budget.count(connection);
        self.dirty.push(place);
        (needs_more, too_large)
    }
}
