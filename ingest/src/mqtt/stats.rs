//! What the listeners count, for `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};

use sonde_proto::mqtt::ReasonCode;

use super::budget::Room;
use super::options::ListenerOptions;

/// Why a connection, or its CONNECT, was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The listener, or all of them, have as many as they may.
    Connections,
    /// Its address has as many as it may.
    Address,
    /// Too many came to the listener in a second.
    Rate,
    /// It does not come from a proxy that is allowed.
    Proxy,
    /// It, or its client id, connects too often.
    Flapping,
    /// Its tenant has as many connections as it may.
    Tenant,
    /// There is no memory for its will.
    Will,
    /// Its PROXY header, TLS handshake or WebSocket request failed.
    Handshake,
    /// Its CONNECT did not come in time.
    Late,
}

const REFUSED: [(Refused, &str); 9] = [
    (Refused::Connections, "connections"),
    (Refused::Address, "address"),
    (Refused::Rate, "rate"),
    (Refused::Proxy, "proxy"),
    (Refused::Flapping, "flapping"),
    (Refused::Tenant, "tenant"),
    (Refused::Will, "will"),
    (Refused::Handshake, "handshake"),
    (Refused::Late, "late"),
];

/// How little memory for messages there may be.
const ROOMS: [Room; 4] = [Room::Scarce, Room::Short, Room::Gone, Room::Over];

/// Over what a connection speaks MQTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Tls,
    WebSocket,
    SecureWebSocket,
    Unix,
}

const KINDS: [(Kind, &str); 5] = [
    (Kind::Tcp, "tcp"),
    (Kind::Tls, "tls"),
    (Kind::WebSocket, "ws"),
    (Kind::SecureWebSocket, "wss"),
    (Kind::Unix, "unix"),
];

impl Kind {
    pub(super) fn of(listener: &ListenerOptions) -> Self {
        match (&listener.address, listener.tls, listener.websocket) {
            (_, true, true) => Self::SecureWebSocket,
            (_, true, false) => Self::Tls,
            (_, false, true) => Self::WebSocket,
            (super::ListenAddress::Unix(_), false, false) => Self::Unix,
            (super::ListenAddress::Tcp(_), false, false) => Self::Tcp,
        }
    }
}

/// Counters of packets by their reason code.
#[derive(Debug)]
struct ByReason([AtomicU64; 256]);

impl Default for ByReason {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl ByReason {
    fn count(&self, reason: ReasonCode) {
        if let Some(counter) = self.0.get(usize::from(reason.0)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Counters of the listeners.
#[derive(Debug, Default)]
pub struct MqttStats {
    /// Messages received.
    pub received: AtomicU64,
    /// Messages sent to subscribers.
    pub sent: AtomicU64,
    /// Messages that a full queue or a slow reader cost.
    pub dropped: AtomicU64,
    /// Messages that expired before their delivery began.
    pub expired: AtomicU64,
    /// Connections that are open.
    pub connections: AtomicU64,
    /// Connections that were closed for a malformed packet or a broken rule.
    pub protocol_errors: AtomicU64,
    /// Publishes and subscriptions that were not allowed.
    pub denied: AtomicU64,
    /// Connections that were accepted.
    pub accepted: AtomicU64,
    /// Bytes of MQTT that came in.
    pub bytes_in: AtomicU64,
    /// Bytes of MQTT that went out.
    pub bytes_out: AtomicU64,
    /// How often a socket was not read for a rate limit, or until its client took what waits for it.
    pub paused: AtomicU64,
    /// How often that was for the rates of its tenant.
    pub tenant_paused: AtomicU64,
    /// Bytes of what is noted of messages that wait in the log.
    pub backlog_bytes: AtomicU64,
    /// Connections closed because their client took nothing of what waits for it.
    pub unread: AtomicU64,
    /// Client ids and addresses that are refused because they connect too often.
    pub banned: AtomicU64,
    /// Bytes of messages in memory, of those that the limit counts.
    pub message_bytes: AtomicU64,
    /// Connections closed because their clients held most of the memory for messages when it was over.
    pub shed: AtomicU64,
    /// How often that memory came to be scarce, short, gone, over.
    rooms: [AtomicU64; ROOMS.len()],
    refused: [AtomicU64; REFUSED.len()],
    open: [AtomicU64; KINDS.len()],
    connacks: ByReason,
    disconnects: ByReason,
}

impl MqttStats {
    pub(super) fn refuse(&self, why: Refused) {
        let found = REFUSED.iter().zip(&self.refused).find(|((known, _), _)| *known == why);
        if let Some((_, counter)) = found {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts that there is as little memory for messages as this.
    pub(super) fn came_to(&self, room: Room) {
        let found = ROOMS.iter().zip(&self.rooms).find(|(known, _)| **known == room);
        if let Some((_, counter)) = found {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn opened(&self, kind: Kind) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.accepted.fetch_add(1, Ordering::Relaxed);
        if let Some(counter) = self.open_of(kind) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn closed(&self, kind: Kind) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
        if let Some(counter) = self.open_of(kind) {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn open_of(&self, kind: Kind) -> Option<&AtomicU64> {
        KINDS.iter().zip(&self.open).find(|((known, _), _)| *known == kind).map(|(_, counter)| counter)
    }

    /// Counts a CONNACK with this reason, or return code of 3.1.1.
    pub(super) fn connack(&self, reason: ReasonCode) {
        self.connacks.count(reason);
    }

    /// Counts a connection that we end for this reason, whether or not the version has a DISCONNECT that says so.
    pub(super) fn disconnect(&self, reason: ReasonCode) {
        self.disconnects.count(reason);
    }

    /// The counters that have labels: name, kind, labels, value.
    pub fn labelled(&self, mut tell: impl FnMut(&str, &str, &str, u64)) {
        for ((_, label), counter) in KINDS.iter().zip(&self.open) {
            let labels = format!("transport=\"{label}\"");
            tell("sonde_mqtt_connections_open", "gauge", &labels, counter.load(Ordering::Relaxed));
        }
        for ((_, label), counter) in REFUSED.iter().zip(&self.refused) {
            let labels = format!("reason=\"{label}\"");
            tell("sonde_mqtt_connections_refused_total", "counter", &labels, counter.load(Ordering::Relaxed));
        }
        for (room, counter) in ROOMS.iter().zip(&self.rooms) {
            let labels = format!("step=\"{}\"", room.name());
            tell("sonde_mqtt_memory_steps_total", "counter", &labels, counter.load(Ordering::Relaxed));
        }
        for (name, counters) in
            [("sonde_mqtt_connack_total", &self.connacks), ("sonde_mqtt_disconnect_total", &self.disconnects)]
        {
            for (reason, counter) in counters.0.iter().enumerate() {
                let value = counter.load(Ordering::Relaxed);
                if value > 0 {
                    tell(name, "counter", &format!("reason=\"0x{reason:02x}\""), value);
                }
            }
        }
    }
}
