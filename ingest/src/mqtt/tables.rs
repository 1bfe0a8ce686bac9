//! `system.sessions` and `system.subscriptions`: what the event loop tells, and the rows that are made of it elsewhere.

use std::net::SocketAddr;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use sonde_engine::Timestamp;
use sonde_query::system::{BatchBuilder, Kind};

use super::connection::Phase;
use super::quota::Drops;
use super::session::Session;
use super::shared::share_name;
use super::subscription::Subscription;
use super::worker::Worker;

/// The columns of `system.sessions`.
const SESSIONS: &[(&str, Kind)] = &[
    ("client", Kind::Text),
    ("state", Kind::Text),
    ("principal", Kind::Text),
    ("tenant", Kind::Text),
    ("peer", Kind::Text),
    ("connected_at", Kind::Time),
    ("expiry_seconds", Kind::UInt),
    ("subscriptions", Kind::UInt),
    ("in_flight", Kind::UInt),
    ("queued", Kind::UInt),
    ("queued_bytes", Kind::UInt),
    ("dropped", Kind::UInt),
    ("dropped_queue_full", Kind::UInt),
    ("dropped_too_large", Kind::UInt),
    ("dropped_slow", Kind::UInt),
    ("dropped_gone", Kind::UInt),
    ("dropped_tenant_full", Kind::UInt),
];

/// The columns of `system.subscriptions`.
const SUBSCRIPTIONS: &[(&str, Kind)] = &[
    ("client", Kind::Text),
    ("filter", Kind::Text),
    ("share", Kind::Text),
    ("qos", Kind::UInt),
    ("no_local", Kind::Text),
    ("retain_as_published", Kind::Text),
    ("identifier", Kind::UInt),
];

/// What `system.sessions` says of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionInfo {
    client: String,
    state: &'static str,
    principal: Option<String>,
    tenant: Option<Arc<str>>,
    peer: Option<SocketAddr>,
    connected_at: Option<Timestamp>,
    expiry: u32,
    subscriptions: usize,
    in_flight: usize,
    queued: u64,
    queued_bytes: u64,
    drops: Drops,
}

/// What `system.subscriptions` says of a session's subscriptions.
#[derive(Clone, Debug)]
pub(crate) struct SubscriptionInfo {
    client: String,
    subscriptions: Vec<(Box<str>, Subscription)>,
}

impl Worker {
    pub(super) fn list(&self) -> Vec<SessionInfo> {
        self.sessions.iter().map(|(_, session)| self.info(session)).collect()
    }

    fn info(&self, session: &Session) -> SessionInfo {
        let connection = session.connection.and_then(|place| self.connections.get(place)).map(|(_, c)| c);
        SessionInfo {
            client: session.client_id.clone(),
            state: match connection {
                Some(_) => "connected",
                None if session.tail.is_some() => "tail",
                None if session.replay.is_some() => "replay",
                None => "away",
            },
            principal: connection.and_then(|connection| match &connection.phase {
                Phase::Open { principal, .. } => Some(principal.name.clone()),
                Phase::Opening => None,
            }),
            tenant: session.tenant.clone(),
            peer: connection.map(|connection| connection.peer),
            connected_at: session.connected_at.filter(|_| connection.is_some()),
            expiry: session.expiry,
            subscriptions: session.subscriptions.len(),
            in_flight: session.in_flight.len(),
            queued: session.waiting(),
            queued_bytes: session.waiting_bytes(),
            drops: session.drops,
        }
    }

    pub(super) fn list_subscriptions(&self) -> Vec<SubscriptionInfo> {
        let of = |session: &Session| SubscriptionInfo {
            client: session.client_id.clone(),
            subscriptions: session.subscriptions.iter().map(|(filter, how)| (filter.clone(), *how)).collect(),
        };
        let subscribers = self.sessions.iter().map(|(_, session)| session);
        subscribers.filter(|session| !session.subscriptions.is_empty()).map(of).collect()
    }
}

/// The rows of `system.sessions`, by client.
pub(super) fn sessions(mut sessions: Vec<SessionInfo>) -> sonde_query::Result<RecordBatch> {
    sessions.sort_by(|a, b| a.client.cmp(&b.client));
    let mut rows = BatchBuilder::new(SESSIONS);
    for session in sessions {
        rows.text(Some(&session.client));
        rows.text(Some(session.state));
        rows.text(session.principal.as_deref());
        rows.text(session.tenant.as_deref());
        rows.text(session.peer.map(|peer| peer.to_string()).as_deref());
        rows.maybe_time(session.connected_at);
        rows.uint(session.expiry.into());
        rows.uint(session.subscriptions as u64);
        rows.uint(session.in_flight as u64);
        rows.uint(session.queued);
        rows.uint(session.queued_bytes);
        rows.uint(session.drops.total());
        rows.uint(session.drops.queue_full);
        rows.uint(session.drops.too_large);
        rows.uint(session.drops.slow);
        rows.uint(session.drops.gone);
        rows.uint(session.drops.tenant_full);
        rows.end_row();
    }
    rows.finish()
}

/// The rows of `system.subscriptions`, by client and filter.
pub(super) fn subscriptions(mut infos: Vec<SubscriptionInfo>) -> sonde_query::Result<RecordBatch> {
    infos.sort_by(|a, b| a.client.cmp(&b.client));
    let mut rows = BatchBuilder::new(SUBSCRIPTIONS);
    let yes_no = |yes: bool| Some(if yes { "yes" } else { "no" });
    for SubscriptionInfo { client, mut subscriptions } in infos {
        subscriptions.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (filter, how) in subscriptions {
            let share = share_name(&filter);
            rows.text(Some(&client));
            rows.text(Some(share.map_or(&*filter, |(_, plain)| plain)));
            rows.text(share.map(|(name, _)| name));
            rows.uint(how.qos as u64);
            rows.text(yes_no(how.no_local));
            rows.text(yes_no(how.retain_as_published));
            rows.maybe_uint(Some(how.identifier.into()).filter(|identifier| *identifier != 0));
            rows.end_row();
        }
    }
    rows.finish()
}
