//! Deliveries to subscribers: what is sent now, what waits, what is sent again.
//!
//! # Invariants
//! - Nothing is sent to a client before its CONNACK.
//! - What cannot be sent is done with and counted, so it never keeps a place in flight.

use std::sync::atomic::Ordering;

use sonde_proto::mqtt::{Packet, Properties, PropertiesBuilder, Property, Publish, QoS, ReasonCode, Version};

use super::connection::Connection;
use super::packets::encode_answer;
use super::router::SessionKey;
use super::session::{Delivery, Dropped, InFlight};
use super::turn::Answer;
use super::worker::Worker;
use crate::limits::OUT_BYTES;

impl Worker {
    /// Sends again, in their first order, what was in flight when the last connection of the session ended.
    pub(super) fn resend(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get(key) else { return };
        let place = session.connection.and_then(|place| self.connections.get_mut(place));
        let Some((_, connection)) = place else { return };
        let mut in_flight: Vec<_> = session.in_flight.iter().collect();
        in_flight.sort_unstable_by_key(|(_, in_flight)| in_flight.number());
        let mut unsendable = Vec::new();
        for (packet_id, in_flight) in in_flight {
            match in_flight {
                InFlight::Sent(delivery) => {
                    if write_publish(connection, *packet_id, delivery, true) {
                        self.sys.traffic.packets_sent += 1;
                        self.sys.traffic.payload_sent += delivery.message.payload.len() as u64;
                    } else {
                        unsendable.push(*packet_id);
                    }
                }
                InFlight::Released(_) => encode_answer(
                    &Answer::PubRel(*packet_id, ReasonCode::SUCCESS),
                    connection.version,
                    &mut connection.out,
                ),
            }
        }
        unsendable.into_iter().for_each(|packet_id| self.give_up(key, packet_id));
    }

    /// Hands a durable delivery to its session.
    pub(super) fn deliver(&mut self, key: SessionKey, delivery: Delivery) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if delivery.qos == QoS::AtMostOnce && session.connection.is_none() {
            return;
        }
        if let Err(refused) = session.enqueue(delivery) {
            self.stats.dropped.fetch_add(1, Ordering::Relaxed);
            if session.is_durable() && refused.qos != QoS::AtMostOnce {
                let record = session.dequeue_record(refused.number);
                self.turn.builder.state(record);
            }
        }
        self.pump(key);
    }

    /// Writes what waits for a session and may be sent.
    pub(super) fn pump(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(place) = session.connection else { return };
        let Some((_, connection)) = self.connections.get_mut(place) else { return };
        if !connection.greeted {
            return;
        }
        let mut unsendable = Vec::new();
        while let Some((packet_id, delivery)) = session.next_to_send() {
            if delivery.qos == QoS::AtMostOnce && connection.out.len() > OUT_BYTES {
                // A connection that broke is closed by the write that follows.
                let unsent = connection.out.len();
                connection.flush();
                self.sys.traffic.bytes_sent += (unsent - connection.out.len()) as u64;
                if connection.out.len() > OUT_BYTES {
                    self.stats.dropped.fetch_add(1, Ordering::Relaxed);
                    session.count_dropped(Dropped::Slow);
                    continue;
                }
            }
            if write_publish(connection, packet_id, &delivery, false) {
                self.stats.sent.fetch_add(1, Ordering::Relaxed);
                self.sys.traffic.packets_sent += 1;
                self.sys.traffic.payload_sent += delivery.message.payload.len() as u64;
            } else if packet_id == 0 {
                self.stats.dropped.fetch_add(1, Ordering::Relaxed);
                session.count_dropped(Dropped::TooLarge);
            } else {
                unsendable.push(packet_id);
            }
        }
        self.dirty.push(place);
        if !unsendable.is_empty() {
            unsendable.into_iter().for_each(|packet_id| self.give_up(key, packet_id));
            // Places in flight became free.
            self.pump(key);
        }
    }

    /// Ends a delivery that is larger than its client takes, as if it had been acknowledged (MQTT 5, 3.1.2.11.4).
    fn give_up(&mut self, key: SessionKey, packet_id: u16) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(number) = session.give_up(packet_id) else { return };
        self.stats.dropped.fetch_add(1, Ordering::Relaxed);
        if session.is_durable() {
            let record = session.dequeue_record(number);
            self.turn.builder.state(record);
        }
    }
}

/// Appends a PUBLISH; `false`, and nothing appended, where it is larger than the client takes.
fn write_publish(connection: &mut Connection, packet_id: u16, delivery: &Delivery, dup: bool) -> bool {
    let message = &delivery.message;
    let identified;
    let properties = match &delivery.via.identifiers {
        Some(identifiers) if connection.version == Version::V5 => {
            identified = with_identifiers(&message.properties, identifiers);
            identified.as_properties()
        }
        _ => Properties::from_encoded(&message.properties),
    };
    let start = connection.out.len();
    let publish = Publish {
        dup: dup && delivery.qos != QoS::AtMostOnce,
        qos: delivery.qos,
        retain: delivery.retain,
        topic: &message.topic,
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

/// The properties of a message, and the identifiers of the subscriptions that it comes by ([MQTT-3.3.4-3]).
fn with_identifiers(properties: &[u8], identifiers: &[u32]) -> PropertiesBuilder {
    let mut builder = PropertiesBuilder::new();
    for property in Properties::from_encoded(properties).iter() {
        builder.push(property);
    }
    for identifier in identifiers {
        builder.push(Property::SubscriptionIdentifier(*identifier));
    }
    builder
}
