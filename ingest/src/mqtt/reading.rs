//! Reading: what connections have sent, a turn's worth of it, cut into packets.
//!
//! # Invariants
//! - All connections share one buffer; a connection owns no more than the start of a packet whose end has not come.
//! - A connection that may not be read now (`Parked`) keeps its place in nobody's way, and its bytes with its client.

use std::sync::atomic::Ordering;
use std::time::Instant;

use sonde_proto::mqtt::{Packet, decode};

use super::connection::{Parked, Phase};
use super::stats::Refused;
use super::transport::ReadResult;
use super::turn::ConnectionKey;
use super::worker::Worker;
use crate::limits::{CONNECT_BYTES, PACKET_BYTES};

impl Worker {
    /// Reads every connection that has something once, until the turn is full.
    pub(super) fn read_ready(&mut self) {
        self.refresh_sources();
        let (mut buffer, mut scratch) = (std::mem::take(&mut self.buffer), std::mem::take(&mut self.scratch));
        for _ in 0..self.ready.len() {
            if self.turn.is_full() || !self.may_read() {
                break;
            }
            let Some(place) = self.ready.pop_front() else { break };
            self.read_connection(place, &mut buffer, &mut scratch);
        }
        (self.buffer, self.scratch) = (buffer, scratch);
    }

    pub(super) fn mark_ready(&mut self, place: usize) {
        if let Some((_, connection)) = self.connections.get_mut(place)
            && !std::mem::replace(&mut connection.readable, true)
            && connection.parked.is_none()
        {
            self.ready.push_back(place);
        }
    }

    /// Reads a connection that was not read for a while, and whose events have passed.
    pub(super) fn read_on(&mut self, place: usize) {
        self.mark_ready(place);
    }

    /// Stops reading a connection that is over a rate, or whose tenant is.
    fn pause(&mut self, key: ConnectionKey, now: Instant) {
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        self.stats.paused.fetch_add(1, Ordering::Relaxed);
        match (connection.over_rate(now), &connection.tenant) {
            (Some(until), _) => {
                connection.park(Parked::Rate);
                self.doors.waiting.insert((until, key.place, key.generation));
            }
            (None, Some(tenant)) => {
                self.stats.tenant_paused.fetch_add(1, Ordering::Relaxed);
                self.tenants.wait_for_turn(tenant, key, false, now);
                connection.park(Parked::Tenant);
            }
            (None, None) => {}
        }
    }

    /// Reads a connection again that was not read for this reason.
    pub(super) fn unpark(&mut self, key: ConnectionKey, why: Parked) {
        let now = self.now_millis();
        let found = self.connections.get_mut(key.place).filter(|(known, _)| *known == key.generation);
        if let Some((_, connection)) = found
            && connection.parked == Some(why)
        {
            connection.parked = None;
            // Its silence was ours.
            connection.heard_at = now;
            self.ready.push_back(key.place);
        }
    }

    fn read_connection(&mut self, place: usize, buffer: &mut [u8], scratch: &mut [u8]) {
        let now = self.now_millis();
        let Some((generation, connection)) = self.connections.get_mut(place) else { return };
        let key = ConnectionKey { place, generation: *generation };
        connection.readable = false;
        let had_turn = std::mem::take(&mut connection.has_turn);
        if connection.pauses() {
            return;
        }
        if connection.is_clogged() {
            // Who does not read what is answered is not asked for more; `write_dirty` goes on.
            connection.park(Parked::Clogged);
            self.stats.paused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if connection.paced && self.waits_for_tenant(key, had_turn) {
            return;
        }
        let Some((_, connection)) = self.connections.get_mut(place) else { return };
        let found = connection.read(buffer, scratch);
        let (ReadResult::More(filled) | ReadResult::Drained(filled) | ReadResult::Closed(filled)) = found;
        let came = filled - connection.partial.len();
        self.stats.bytes_in.fetch_add(came as u64, Ordering::Relaxed);
        self.sys.traffic.bytes_received += came as u64;
        // Until CONNECT the time runs from the beginning, however slowly bytes trickle.
        if came > 0 && connection.session().is_some() {
            connection.heard_at = now;
        }
        if connection.transport.unwritten() > 0 {
            self.dirty.push(place);
        }
        if let Some(error) = connection.transport.take_error() {
            self.stats.refuse(Refused::Handshake);
            tracing::debug!(peer = %connection.peer, error, "MQTT connection closed");
        }
        if let Some(source) = connection.transport.take_source()
            && !self.take_peer(key, source)
        {
            return self.close(place);
        }
        let Some((_, connection)) = self.connections.get_mut(place) else { return };
        let ended = matches!(found, ReadResult::Closed(_));
        if connection.closing && !ended {
            connection.partial = Vec::new();
            return;
        }
        let bytes = buffer.get(..filled).unwrap_or_default();
        let done = self.handle_bytes(key, bytes);
        // What waits to be released comes first: the rest is handled behind what others have sent meanwhile.
        let may_read = self.may_read();
        // The connection may have gone, and its place been taken, while its packets were handled.
        let still = self.connections.get_mut(place).filter(|(known, _)| *known == key.generation);
        let Some((_, connection)) = still else { return };
        let rest = bytes.get(done..).unwrap_or_default();
        let now = Instant::now();
        if connection.paced && !connection.closing && self.tenants.is_over_rate(connection, now) {
            (connection.has_rest, connection.ended) = (!rest.is_empty() || ended, ended);
            connection.keep(rest);
            return self.pause(key, now);
        }
        let goes_on = !may_read && !connection.closing;
        if ended && !goes_on {
            return self.close(place);
        }
        if connection.pauses() && rest.len() > CONNECT_BYTES {
            // Nobody knows yet who it is.
            return self.close(place);
        }
        if goes_on {
            (connection.has_rest, connection.ended) = (!rest.is_empty() || ended, ended);
        }
        connection.keep(rest);
        if goes_on || matches!(found, ReadResult::More(_)) {
            self.mark_ready(place);
        }
    }

    /// Handles the whole packets at the start of `bytes`; returns how many bytes they take.
    fn handle_bytes(&mut self, key: ConnectionKey, bytes: &[u8]) -> usize {
        let mut done = 0;
        loop {
            let Some((_, connection)) =
                self.connections.get(key.place).filter(|(known, _)| *known == key.generation)
            else {
                return bytes.len();
            };
            if connection.closing {
                return bytes.len();
            }
            if connection.pauses()
                || connection.paced && self.tenants.is_over_rate(connection, Instant::now())
            {
                return done;
            }
            let opening = matches!(connection.phase, Phase::Opening);
            let limit = if opening { CONNECT_BYTES } else { PACKET_BYTES };
            match decode(bytes.get(done..).unwrap_or_default(), connection.version, limit) {
                Ok(Some((packet, len))) => {
                    done += len;
                    if let Some((_, connection)) = self.connections.get_mut(key.place)
                        && connection.paced
                    {
                        let is_message = matches!(packet, Packet::Publish(_));
                        self.tenants.count_packet(connection, is_message, len, Instant::now());
                    }
                    self.handle_packet(key, &packet);
                    if self.turn.is_full() {
                        self.submit_turn();
                        if !self.may_read() {
                            return done;
                        }
                    }
                }
                Ok(None) => return done,
                Err(error) => {
                    self.stats.protocol_errors.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(peer = %connection.peer, %error, "MQTT connection closed");
                    if opening {
                        self.refuse_malformed(key, bytes.get(done..).unwrap_or_default(), &error);
                    } else {
                        self.refuse_because(key, error.reason(), error.what());
                    }
                    return bytes.len();
                }
            }
        }
    }
}
