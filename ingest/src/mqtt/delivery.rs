//! Deliveries to subscribers: what is sent now, what waits, what is sent again.
//!
//! # Invariants
//! - Nothing is sent to a client before its CONNACK.
//! - What cannot be sent is done with and counted, so it never keeps a place in flight.

use std::sync::atomic::Ordering;

use sonde_engine::{SeqNo, Timestamp};
use sonde_proto::mqtt::{Packet, Properties, PropertiesBuilder, Property, Publish, QoS, Version};

use super::alias::Written;
use super::budget::Room;
use super::connection::Connection;
use super::exchange::Next;
use super::quota::{Dropped, Drops};
use super::router::SessionKey;
use super::session::{Delivery, Stored};
use super::subscribe::SEQ_PROPERTY;
use super::worker::Worker;
use crate::limits::{FETCH_BYTES, LIVE_MESSAGES, OUT_BYTES, PUMPED_MESSAGES};

/// What all the PUBLISHes to a session in a turn are written with.
#[derive(Debug)]
pub(super) struct Pen {
    /// The time, for what remains of their expiry.
    pub(super) now: Timestamp,
    /// Whether the client is told the sequence numbers.
    pub(super) tells_seq: bool,
    /// Bytes of messages that the session may have in flight; beyond them it gets no more before it acknowledges.
    pub(super) in_flight_bytes: usize,
    /// Reused for the properties of each that differ from its message's.
    pub(super) properties: PropertiesBuilder,
}

/// Deliveries that ended without having been sent.
#[derive(Debug, Default)]
struct Unsent {
    /// The packet ids of those that are too large.
    too_large: Vec<u16>,
    /// What kept those that expired.
    expired: Vec<Stored>,
    /// QoS 0.
    dropped: Drops,
    /// Whether what comes next must wait for what is still in the log.
    overtakes: bool,
}

impl Worker {
    pub(super) fn take_pen(&mut self, key: SessionKey) -> Pen {
        let tells_seq = self.sessions.get(key).is_some_and(|session| session.tells_seq);
        let in_flight_bytes = self.queue_limits.bytes.min(self.budget.in_flight_of_one());
        Pen { now: self.clock, tells_seq, in_flight_bytes, properties: std::mem::take(&mut self.properties) }
    }

    /// Hands a delivery whose turn is durable to its session.
    pub(super) fn deliver(&mut self, key: SessionKey, delivery: Delivery) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.tail.is_some() {
            return self.deliver_to_tail(key, delivery);
        }
        if session.replay.is_some() {
            return self.deliver_to_replay(key, delivery);
        }
        if delivery.qos == QoS::AtMostOnce && session.connection.is_none() {
            return;
        }
        let room = self.room();
        let is_short = room >= Room::Short;
        let (needs_memory, no_id) = (delivery.stored == Stored::Nowhere, delivery.qos == QoS::AtMostOnce);
        if is_short {
            // What may go goes first: it is asked below whether anything waits.
            self.pump(key);
        }
        let Some(session) = self.sessions.get_mut(key) else { return };
        if let Stored::Log(seq) = delivery.stored {
            // Only what comes next; else it is read from the log when its turn comes.
            let has_room = session.queue.len() < LIVE_MESSAGES && session.queue_bytes() < FETCH_BYTES;
            let is_live = session.connection.is_some() && has_room && session.is_next(seq);
            if is_live && self.budget.room(self.retained.weight()) == Room::Plenty {
                session.backlog.fetched_to(seq);
                session.push(delivery);
            }
        } else if needs_memory && session.holds_enough(room, no_id) {
            self.count_dropped(key, if no_id { Dropped::Slow } else { Dropped::QueueFull }, 1);
            self.done_with(key, delivery.stored);
        } else if let Err(why) = self.make_room(key, delivery.message.bytes() as u64, delivery.qos) {
            self.count_dropped(key, why, 1);
            self.done_with(key, delivery.stored);
        } else if let Some(session) = self.sessions.get_mut(key) {
            session.push(delivery);
        }
        let many = self.sessions.get(key).is_some_and(|session| session.queue.len() >= PUMPED_MESSAGES);
        if many { self.pump(key) } else { self.pump_soon(key) }
    }

    /// Something changed for a session; it is pumped once when everything of the same kind is seen to.
    pub(super) fn pump_soon(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if !std::mem::replace(&mut session.due, true) {
            self.due.push(key);
        }
    }

    /// Pumps the sessions for which something changed.
    pub(super) fn pump_due(&mut self) {
        for key in std::mem::take(&mut self.due) {
            if let Some(session) = self.sessions.get_mut(key) {
                session.due = false;
                self.pump(key);
            }
        }
    }

    /// How much more may be held in memory.
    pub(super) fn room(&self) -> Room {
        self.budget.room(self.retained.weight())
    }

    /// Sends what waits to those that got nothing for want of memory.
    pub(super) fn pump_held(&mut self) {
        if !self.held.is_empty() && self.room() < Room::Over {
            for key in std::mem::take(&mut self.held) {
                self.pump(key);
            }
        }
    }

    /// Writes what waits for a session and may be sent.
    pub(super) fn pump(&mut self, key: SessionKey) {
        loop {
            self.send_again(key);
            self.fetch(key);
            let mut pen = self.take_pen(key);
            let unsent = self.pump_with(key, &mut pen);
            self.properties = pen.properties;
            for (why, count) in
                [(Dropped::Slow, unsent.dropped.slow), (Dropped::TooLarge, unsent.dropped.too_large)]
            {
                if count > 0 {
                    self.count_dropped(key, why, count);
                }
            }
            if unsent.too_large.is_empty() && unsent.expired.is_empty() {
                if unsent.overtakes && self.fetch(key) {
                    continue;
                }
                return self.count_waiting(key);
            }
            // Places in flight became free, or there is more in the log.
            unsent.too_large.into_iter().for_each(|packet_id| self.give_up(key, packet_id));
            unsent.expired.into_iter().for_each(|stored| self.done_with(key, stored));
        }
    }

    fn pump_with(&mut self, key: SessionKey, pen: &mut Pen) -> Unsent {
        let mut unsent = Unsent::default();
        let Some(session) = self.sessions.get_mut(key) else { return unsent };
        let Some(place) = session.connection else { return unsent };
        let Some((_, connection)) = self.connections.get_mut(place) else { return unsent };
        if !connection.greeted || connection.sealed {
            return unsent;
        }
        loop {
            unsent.overtakes = session.is_overtaking();
            if unsent.overtakes {
                break;
            }
            let memory = self.budget.room(self.retained.weight());
            let in_flight = session.in_flight_bytes();
            let room = connection.out.len() <= OUT_BYTES
                && match memory {
                    Room::Plenty => in_flight < pen.in_flight_bytes,
                    Room::Scarce | Room::Short | Room::Gone => session.in_flight.is_empty(),
                    Room::Over => false,
                };
            if memory == Room::Over && !session.queue.is_empty() {
                self.held.insert(key);
            }
            // Where memory is scarce, the socket has to take at once what nobody acknowledges.
            let most = if memory == Room::Plenty { OUT_BYTES } else { 0 };
            let Some(next) = session.next_to_send(pen.now, room) else { break };
            let (packet_id, delivery) = match next {
                Next::Send(packet_id, delivery) => (packet_id, delivery),
                Next::Record(packet_id, record) => {
                    self.turn.builder.state(record);
                    self.turn.starts.push((key, packet_id));
                    continue;
                }
                Next::Expired(delivery) => {
                    self.stats.expired.fetch_add(1, Ordering::Relaxed);
                    unsent.expired.push(delivery.stored);
                    continue;
                }
            };
            if delivery.qos == QoS::AtMostOnce && connection.out.len() > most {
                // A connection that broke is closed by the write that follows.
                let unwritten = connection.out.len();
                connection.flush();
                self.sys.traffic.bytes_sent += (unwritten - connection.out.len()) as u64;
                if connection.out.len() > most {
                    unsent.dropped.slow += 1;
                    continue;
                }
            }
            if write_publish(connection, packet_id, &delivery, false, pen) {
                self.stats.sent.fetch_add(1, Ordering::Relaxed);
                self.sys.traffic.packets_sent += 1;
                self.sys.traffic.payload_sent += delivery.message.payload.len() as u64;
            } else if packet_id == 0 {
                unsent.dropped.too_large += 1;
            } else {
                unsent.too_large.push(packet_id);
            }
        }
        self.budget.count(connection);
        self.dirty.push(place);
        unsent
    }

    /// The packet id of a QoS 2 delivery is recorded: it is sent, or, where its client is not there, with the next
    /// connection.
    pub(super) fn start(&mut self, key: SessionKey, packet_id: u16) {
        let mut pen = self.take_pen(key);
        let fits = self.start_with(key, packet_id, &mut pen);
        self.properties = pen.properties;
        if !fits {
            self.give_up(key, packet_id);
            self.pump(key);
        }
    }

    fn start_with(&mut self, key: SessionKey, packet_id: u16, pen: &mut Pen) -> bool {
        let Some(session) = self.sessions.get_mut(key) else { return true };
        let place = session.connection;
        let Some(delivery) = session.started(packet_id) else { return true };
        let Some(place) = place else { return true };
        let found = self.connections.get_mut(place).filter(|(_, connection)| connection.greeted);
        let Some((_, connection)) = found else { return true };
        let fits = write_publish(connection, packet_id, &delivery, false, pen);
        if fits {
            self.stats.sent.fetch_add(1, Ordering::Relaxed);
        }
        self.dirty.push(place);
        fits
    }

    /// Ends a delivery that is larger than its client takes, as if it had been acknowledged (MQTT 5, 3.1.2.11.4).
    pub(super) fn give_up(&mut self, key: SessionKey, packet_id: u16) {
        self.count_dropped(key, Dropped::TooLarge, 1);
        let done = self.sessions.get_mut(key).and_then(|session| session.finish(packet_id));
        done.into_iter().for_each(|done| self.finish(key, done));
    }
}

/// Appends a PUBLISH; `false`, and nothing appended, where it is larger than the client takes.
pub(super) fn write_publish(
    connection: &mut Connection,
    packet_id: u16,
    delivery: &Delivery,
    dup: bool,
    pen: &mut Pen,
) -> bool {
    let topic = &delivery.message.topic;
    let written = connection.aliases_out.as_ref().map_or(Written::Plain, |aliases| aliases.write(topic));
    if append_publish(connection, packet_id, delivery, dup, written, pen) {
        if let (Written::Introduced(alias), Some(aliases)) = (written, &mut connection.aliases_out) {
            aliases.introduce(topic, alias);
        }
        return true;
    }
    // It may be too large for its new alias.
    matches!(written, Written::Introduced(_))
        && append_publish(connection, packet_id, delivery, dup, Written::Plain, pen)
}

fn append_publish(
    connection: &mut Connection,
    packet_id: u16,
    delivery: &Delivery,
    dup: bool,
    written: Written,
    pen: &mut Pen,
) -> bool {
    let message = &delivery.message;
    if message.topic.len() + message.properties.len() + message.payload.len() > connection.packet_maximum {
        // Not written at all: there are lengths that no packet can say.
        return false;
    }
    let start = connection.out.len();
    let alias = match written {
        Written::Plain => None,
        Written::Introduced(alias) | Written::Aliased(alias) => Some(alias),
    };
    let remaining = message.remaining(pen.now).filter(|_| connection.version == Version::V5);
    let identifiers = delivery.via.identifiers.as_deref().filter(|_| connection.version == Version::V5);
    let mut properties = Properties::from_encoded(&message.properties);
    let numbered = pen.tells_seq && delivery.seq > SeqNo(0) && connection.version == Version::V5;
    if alias.is_some() || remaining.is_some() || identifiers.is_some() || numbered {
        pen.properties.clear();
        if let Some(seconds) = remaining {
            pen.properties.push(Property::MessageExpiryInterval(seconds));
        }
        if let Some(alias) = alias {
            pen.properties.push(Property::TopicAlias(alias));
        }
        for identifier in identifiers.into_iter().flatten() {
            pen.properties.push(Property::SubscriptionIdentifier(*identifier));
        }
        pen.properties.extend(properties);
        if numbered {
            pen.properties.push(Property::UserProperty(SEQ_PROPERTY, &delivery.seq.0.to_string()));
        }
        properties = pen.properties.as_properties();
    }
    let publish = Publish {
        dup: dup && delivery.qos != QoS::AtMostOnce,
        qos: delivery.qos,
        retain: delivery.retain,
        topic: if matches!(written, Written::Aliased(_)) { "" } else { &message.topic },
        packet_id,
        properties,
        payload: &message.payload,
    };
    Packet::Publish(publish).encode(connection.version, &mut connection.out);
    let fits = connection.out.len() - start <= connection.packet_maximum;
    if !fits {
        connection.out.truncate(start);
    }
    fits
}
