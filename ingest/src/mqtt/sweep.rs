//! What time does: who is silent, slow or stuck, what has expired, what is due.

use std::sync::atomic::Ordering;
use std::time::Instant;

use sonde_proto::mqtt::ReasonCode;

use super::connection::Phase;
use super::router::SessionKey;
use super::session::Session;
use super::stats::Refused;
use super::turn::{ConnectionKey, Undo};
use super::worker::Worker;
use crate::limits::{CONNECT_TIME, RECOGNISE_TIME};

/// How often it is looked who is silent.
const LISTEN_MILLIS: u64 = 250;

impl Worker {
    /// Four times a second, behind the events of a pass: what must not wait for a second to end.
    pub(super) fn tick(&mut self) {
        let now = self.now_millis();
        if now >= self.listened_at + LISTEN_MILLIS {
            self.listened_at = now;
            self.end_silent(now);
            self.keep_endangered();
            self.watch_memory();
        }
    }

    /// Ends connections that are silent, or slow to CONNECT ([MQTT-3.1.2-22]).
    fn end_silent(&mut self, now: u64) {
        let mut silent = Vec::new();
        for (place, (generation, connection)) in &self.connections {
            let quiet = u128::from(now.saturating_sub(connection.heard_at));
            let late = match connection.phase {
                // It has said who it is, and waits for us.
                Phase::Opening if connection.pauses() => quiet > RECOGNISE_TIME.as_millis(),
                Phase::Opening => quiet > CONNECT_TIME.as_millis(),
                // Of what is there and was not read yet, the silence is ours.
                Phase::Open { .. } => {
                    !connection.readable
                        && connection.keep_alive > 0
                        && quiet
                            > u128::from(connection.keep_alive + if connection.closing { 1000 } else { 0 })
                }
            };
            if late {
                silent.push(ConnectionKey { place, generation: *generation });
            }
        }
        for key in silent {
            let opening =
                self.connections.get(key.place).is_some_and(|(_, c)| matches!(c.phase, Phase::Opening));
            if opening {
                self.stats.refuse(Refused::Late);
            }
            if opening || self.connections.get(key.place).is_some_and(|(_, c)| c.closing) {
                self.close(key.place);
            } else {
                self.refuse(key, ReasonCode::KEEP_ALIVE_TIMEOUT);
            }
        }
    }

    /// Once a second: who takes nothing of what waits for it, sessions that have expired, what is due. However long the
    /// loop took: a load that lasts puts nothing off.
    pub(super) fn sweep(&mut self) {
        let now = self.now();
        if now == self.swept_at {
            return;
        }
        self.swept_at = now;
        self.sweep_doors();
        self.tenants.sweep(Instant::now());
        let unread = self.doors.unread_seconds();
        let is_stuck = |since: u64| unread > 0 && now.saturating_sub(since) > unread;
        let stuck: Vec<usize> = self
            .connections
            .iter()
            .filter(|(_, (_, connection))| connection.stuck_since.is_some_and(is_stuck))
            .map(|(place, _)| place)
            .collect();
        for place in stuck {
            if let Some((_, connection)) = self.connections.get(place) {
                let (peer, bytes) = (connection.peer, connection.unwritten());
                tracing::info!(%peer, bytes, "MQTT connection closed: its client does not read what waits for it");
                self.stats.unread.fetch_add(1, Ordering::Relaxed);
            }
            self.close(place);
        }
        self.end_expired();
        let expired = |session: &Session| {
            session.connection.is_none()
                && session.left_at.is_some_and(|left| now.saturating_sub(left) > session.expiry.into())
        };
        let gone: Vec<SessionKey> =
            self.sessions.iter().filter(|(_, session)| expired(session)).map(|(key, _)| key).collect();
        self.sys.expired += gone.len() as u64;
        gone.into_iter().for_each(|key| self.drop_session(key));
        self.move_log_cursor();
        self.tell_sys(now);
        self.publish_due_wills();
        self.expire_retained();
    }

    /// Removes the retained messages that have expired, as many as a turn takes.
    fn expire_retained(&mut self) {
        while !self.turn.is_full() {
            let Some((topic, record)) = self.retained.expire(self.clock) else { return };
            self.stats.expired.fetch_add(1, Ordering::Relaxed);
            self.turn.builder.state(record);
            self.turn.undo.push(Undo::Retained(topic.to_string()));
        }
    }
}
