//! Ends: of a connection, of a session, of the event loop.

use std::time::{Duration, Instant};

use sonde_proto::mqtt::{Disconnect, PropertiesBuilder, Property, ReasonCode, Version};

use super::connection::Phase;
use super::router::SessionKey;
use super::session::Stored;
use super::turn::ConnectionKey;
use super::will::WILLS;
use super::worker::Worker;

/// How long the last commits may take when the loop ends.
const LAST_COMMITS: Duration = Duration::from_secs(5);

impl Worker {
    /// Ends a connection: its will is published, and its session ends or waits.
    pub(super) fn close(&mut self, place: usize) {
        let Some((generation, mut connection)) = self.connections.try_remove(place) else { return };
        self.leave(&connection);
        if let Some(tenant) = &connection.tenant {
            self.tenants.leave(tenant, ConnectionKey { place, generation });
        }
        connection.transport.close();
        if let Err(error) = self.poll.registry().deregister(&mut connection.transport.socket) {
            tracing::debug!(%error, "cannot unwatch an MQTT connection");
        }
        let now = self.now();
        let (mut goes_on, mut will_record) = (None, None);
        if let Some(key) = connection.session()
            && let Some(session) = self.sessions.get_mut(key)
            && session.connection == Some(place)
        {
            session.connection = None;
            session.left_at = Some(now);
            let is_durable = session.is_durable();
            will_record = connection.will.is_some().then(|| session.gone(WILLS, &[]));
            if is_durable {
                // Else others of its groups get what waits.
                session.put_back();
            }
            self.count_waiting(key);
            self.end_replays(key);
            self.sys.client_left();
            if is_durable {
                goes_on = Some(key);
            } else {
                self.drop_session(key);
            }
        }
        if let (Some(will), Phase::Open { principal, .. }) = (connection.will.take(), connection.phase) {
            self.will_of_broken(*will, principal, goes_on, will_record);
        }
    }

    /// Forgets a session and everything that waits for it; what it leaves of its groups goes to other members.
    pub(super) fn drop_session(&mut self, key: SessionKey) {
        let Some(mut session) = self.sessions.try_remove(key) else { return };
        self.by_client.remove(&session.client_id);
        self.queued_bytes -= session.backlog.bytes();
        if let Some(tenant) = session.tenant.as_ref().filter(|_| session.tenant_bytes > 0) {
            self.tenants.queue_changed(tenant, session.tenant_bytes, 0);
        }
        let will = session.will.take();
        session.subscriptions.keys().for_each(|filter| self.router.unsubscribe(filter, key));
        let withdrawn = self.withdraw(key);
        // Before the records go: a crash between two batches may double a message, not lose one.
        self.hand_on(session.shared_messages());
        self.hand_on(withdrawn.iter().filter(|delivery| delivery.via.group.is_some()).cloned().collect());
        if session.is_durable() {
            session.forget().into_iter().for_each(|record| self.turn.builder.state(record));
            for delivery in &withdrawn {
                if let Stored::Copy(number) = delivery.stored {
                    self.turn.builder.state(session.dequeue_record(number));
                }
            }
        }
        for number in self.withdraw_backlog(key) {
            self.turn.builder.state(session.backlog_record(number, None));
        }
        // The end of the session is the latest time for a will that waits.
        if let Some(will) = will {
            self.publish_will(&will, None);
        }
    }

    /// The end: what was committed is acknowledged, then every client is told and closed.
    pub(super) fn close_all(&mut self) {
        self.submit_turn();
        let deadline = Instant::now() + LAST_COMMITS;
        while !self.committing.is_empty() && Instant::now() < deadline {
            self.release_turns();
            std::thread::yield_now();
        }
        for (_, (_, connection)) in &mut self.connections {
            let open =
                matches!(connection.phase, Phase::Open { .. }) && connection.greeted && !connection.sealed;
            if connection.version == Version::V5 && open {
                let mut properties = PropertiesBuilder::new();
                let mut reason = ReasonCode::SERVER_SHUTTING_DOWN;
                if let Some(reference) = &self.offers.server_reference {
                    reason = ReasonCode::USE_ANOTHER_SERVER;
                    properties.push(Property::ServerReference(reference));
                }
                let goodbye = Disconnect { reason, properties: properties.as_properties() };
                goodbye.encode(Version::V5, &mut connection.out);
            }
            connection.flush();
            connection.transport.close();
        }
    }
}
