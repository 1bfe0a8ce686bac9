//! `$SYS/broker/...`: what the server says of itself, by the names that users of Mosquitto know.
//!
//! # Invariants
//! - Nothing of it is stored, not even in a queue: its QoS is 0 and its messages are retained in memory only.
//! - Its values are made when somebody has subscribed to `$SYS/...`; only the traffic is counted always.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_proto::mqtt::QoS;

use super::draft::Draft;
use super::message::Message;
use super::publish::{Arriving, Place};
use super::subscribe::UNNUMBERED;
use super::worker::Worker;
use crate::limits::SYS_INTERVAL;

/// What nobody but the server publishes to.
pub(super) const ROOT: &str = "$SYS/";

/// What has come and gone since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    /// Packets of every kind.
    pub(super) packets_received: u64,
    pub(super) packets_sent: u64,
    /// Bytes of the sockets.
    pub(super) bytes_received: u64,
    pub(super) bytes_sent: u64,
    /// Bytes of payloads.
    pub(super) payload_received: u64,
    pub(super) payload_sent: u64,
    /// Connections that were accepted.
    pub(super) sockets: u64,
    /// CONNECTs that were let in.
    pub(super) connects: u64,
    pub(super) published: u64,
    pub(super) delivered: u64,
    pub(super) dropped: u64,
}

/// A rate per minute, averaged over 1, 5 and 15 minutes with exponentially fading weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Load([f64; 3]);

const MINUTES: [(f64, &str); 3] = [(1.0, "1min"), (5.0, "5min"), (15.0, "15min")];

impl Load {
    fn add(&mut self, count: u64, seconds: f64) {
        let rate = count as f64 * 60.0 / seconds;
        for (average, (minutes, _)) in self.0.iter_mut().zip(MINUTES) {
            let fade = (-seconds / (60.0 * minutes)).exp();
            *average = rate * (1.0 - fade) + *average * fade;
        }
    }
}

/// One of the counters.
type Counter = fn(&Traffic) -> u64;

/// The counters whose loads are told, and the names they have below `load/`.
const LOADS: [(&str, Counter); 9] = [
    ("messages/received", |traffic| traffic.packets_received),
    ("messages/sent", |traffic| traffic.packets_sent),
    ("publish/received", |traffic| traffic.published),
    ("publish/sent", |traffic| traffic.delivered),
    ("publish/dropped", |traffic| traffic.dropped),
    ("bytes/received", |traffic| traffic.bytes_received),
    ("bytes/sent", |traffic| traffic.bytes_sent),
    ("sockets", |traffic| traffic.sockets),
    ("connections", |traffic| traffic.connects),
];

/// What is known of the server's past.
#[derive(Debug, Default)]
pub(super) struct Sys {
    pub(super) traffic: Traffic,
    /// Clients that are connected now, and the most that were at once.
    connected: usize,
    maximum: usize,
    /// Sessions that have expired.
    pub(super) expired: u64,
    loads: [Load; LOADS.len()],
    /// The traffic at the last sample, and when that was, in seconds of the worker's clock.
    sampled: Traffic,
    sampled_at: u64,
    /// What was published last, by topic; empty while nobody wants it.
    said: HashMap<String, String>,
}

impl Sys {
    /// A client was let in.
    pub(super) fn client_came(&mut self) {
        self.traffic.connects += 1;
        self.connected += 1;
        self.maximum = self.maximum.max(self.connected);
    }

    /// A client that was let in has gone.
    pub(super) fn client_left(&mut self) {
        self.connected = self.connected.saturating_sub(1);
    }

    /// Brings the loads up to date.
    fn sample(&mut self, traffic: Traffic, now: u64) {
        let seconds = now.saturating_sub(self.sampled_at) as f64;
        if seconds == 0.0 {
            return;
        }
        for (load, (_, count)) in self.loads.iter_mut().zip(LOADS) {
            load.add(count(&traffic) - count(&self.sampled), seconds);
        }
        self.sampled = traffic;
        self.sampled_at = now;
    }
}

/// What the server says of itself: retained, at QoS 0.
fn said(topic: &str, value: &str) -> Message {
    Message::new(topic, value.as_bytes(), QoS::AtMostOnce, true)
}

impl Worker {
    fn traffic(&self) -> Traffic {
        Traffic {
            published: self.stats.received.load(Ordering::Relaxed),
            delivered: self.stats.sent.load(Ordering::Relaxed),
            dropped: self.stats.dropped.load(Ordering::Relaxed),
            ..self.sys.traffic
        }
    }

    /// Once in `SYS_INTERVAL`: samples the loads, and publishes what has changed, if somebody may want it.
    pub(super) fn tell_sys(&mut self, now: u64) {
        if now < self.sys.sampled_at + SYS_INTERVAL {
            return;
        }
        self.sys.sample(self.traffic(), now);
        if !self.router.wants_sys() {
            self.sys.said = HashMap::new();
            return;
        }
        for (topic, value) in self.sys_values() {
            if self.sys.said.get(&topic) == Some(&value) {
                continue;
            }
            let message = Arc::new(said(&topic, &value));
            let arriving = Arriving {
                topic: &topic,
                payload: &message.payload,
                qos: message.qos,
                retain: true,
                beside_default: true,
                session: None,
            };
            let place = Place { number: UNNUMBERED, keep: false, early: false };
            self.route(&arriving, &Draft::again(&message), place);
            self.sys.said.insert(topic, value);
        }
    }

    /// What a new subscription gets at once, as far as its filter matches it.
    pub(super) fn sys_messages(&mut self) -> Vec<Message> {
        let values = self.sys_values();
        if self.sys.said.is_empty() {
            self.sys.said = values.iter().cloned().collect();
        }
        values.iter().map(|(topic, value)| said(topic, value)).collect()
    }

    /// Every topic and its value now.
    fn sys_values(&self) -> Vec<(String, String)> {
        let traffic = self.traffic();
        let mut values = Vec::with_capacity(64);
        let mut say = |name: &str, value: String| values.push((format!("{ROOT}broker/{name}"), value));
        let connected = self.sys.connected;
        // Readers over HTTP and gRPC, and replays, are no clients.
        let total = self.sessions.len() - self.tails - self.replays.len();
        let (mut waiting, mut bytes) = (self.retained.len(), self.retained.bytes());
        for (_, session) in &self.sessions {
            waiting += session.waiting() as usize;
            bytes += session.waiting_bytes() as usize;
        }
        say("version", format!("sonde version {}", env!("CARGO_PKG_VERSION")));
        say("uptime", format!("{} seconds", self.now()));
        for (name, count) in [
            ("clients/connected", connected),
            ("clients/active", connected),
            ("clients/disconnected", total.saturating_sub(connected)),
            ("clients/inactive", total.saturating_sub(connected)),
            ("clients/total", total),
            ("clients/maximum", self.sys.maximum),
            ("subscriptions/count", self.router.len()),
            ("shared_subscriptions/count", self.router.shared_len()),
            ("retained messages/count", self.retained.len()),
            ("messages/stored", waiting),
            ("store/messages/count", waiting),
            ("store/messages/bytes", bytes),
        ] {
            say(name, count.to_string());
        }
        for (name, count) in [
            ("clients/expired", self.sys.expired),
            ("messages/received", traffic.packets_received),
            ("messages/sent", traffic.packets_sent),
            ("bytes/received", traffic.bytes_received),
            ("bytes/sent", traffic.bytes_sent),
            ("publish/messages/received", traffic.published),
            ("publish/messages/sent", traffic.delivered),
            ("publish/messages/dropped", traffic.dropped),
            ("publish/bytes/received", traffic.payload_received),
            ("publish/bytes/sent", traffic.payload_sent),
        ] {
            say(name, count.to_string());
        }
        for (load, (name, _)) in self.sys.loads.iter().zip(LOADS) {
            for (average, (_, minutes)) in load.0.iter().zip(MINUTES) {
                say(&format!("load/{name}/{minutes}"), format!("{average:.2}"));
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_what_the_averages_come_to() {
        let mut sys = Sys::default();
        for step in 1..=600 {
            // 100 packets in 10 s are 600 in a minute.
            let traffic = Traffic { packets_sent: step * 100, ..Traffic::default() };
            sys.sample(traffic, step * 10);
            if step == 6 {
                let Load([one, five, fifteen]) = sys.loads.get(1).copied().unwrap_or_default();
                assert!(one > 370.0 && one < 390.0, "1 - 1/e of it after a minute: {one}");
                assert!(one > five && five > fifteen && fifteen > 0.0);
            }
        }
        let Load(averages) = sys.loads.get(1).copied().unwrap_or_default();
        assert!(averages.iter().all(|average| (average - 600.0).abs() < 1.0), "{averages:?}");
    }

    #[test]
    fn the_most_clients_at_once_are_remembered() {
        let mut sys = Sys::default();
        (0..3).for_each(|_| sys.client_came());
        (0..2).for_each(|_| sys.client_left());
        assert_eq!((sys.connected, sys.maximum, sys.traffic.connects), (1, 3, 3));
    }
}
