//! SUBSCRIBE and UNSUBSCRIBE.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_access::{Action, Principal, allows};
use sonde_engine::SeqNo;
use sonde_proto::mqtt::{
    Property, QoS, ReasonCode, RetainHandling, Subscribe, Unsubscribe, Version, is_shared,
};

use super::reasons::Words;
use super::replay::{self, is_replay};
use super::router::SessionKey;
use super::subscription::Subscription;
use super::turn::{Answer, ConnectionKey, Undo};
use super::worker::{Worker, interest};
use crate::limits::{FILTER_BYTES, FILTERS, SESSION_FILTER_BYTES, SUBSCRIPTIONS};

/// The user property of MQTT 5 that asks for sequence numbers in SUBSCRIBE, and gives one in PUBLISH.
pub(super) const SEQ_PROPERTY: &str = "sonde-seq";

/// Stands for the number of a message that the turn's batch does not have.
pub(super) const UNNUMBERED: SeqNo = SeqNo(u64::MAX);

impl Worker {
    pub(super) fn subscribe(
        &mut self,
        key: ConnectionKey,
        session: SessionKey,
        principal: &Arc<Principal>,
        subscribe: &Subscribe<'_>,
    ) {
        let identifier = subscribe
            .properties
            .find(|p| if let Property::SubscriptionIdentifier(id) = p { Some(id) } else { None })
            .unwrap_or_default();
        let Some((_, connection)) = self.connections.get(key.place) else { return };
        let (v5, mut words) = (connection.version == Version::V5, Words::of(connection));
        let mut reasons = Vec::new();
        let mut refuse = |filter: &str, reason: ReasonCode| {
            words.refused(filter, reason);
            if v5 { reason.0 } else { 0x80 }
        };
        let asks = |p: Property<'_>| match p {
            Property::UserProperty(SEQ_PROPERTY, value) => Some(value != "0"),
            _ => None,
        };
        if let (Some(asks), Some(state)) = (subscribe.properties.find(asks), self.sessions.get_mut(session))
            && std::mem::replace(&mut state.tells_seq, asks) != asks
            && state.is_durable()
        {
            self.turn.builder.state(state.record());
        }
        self.settle_order(session);
        let known = self.sessions.get(session).map(|state| state.subscriptions.keys());
        let mut filter_bytes: usize = known.into_iter().flatten().map(|filter| filter.len()).sum();
        for (count, filter) in subscribe.filters().enumerate() {
            if count >= FILTERS {
                reasons.push(refuse(filter.filter, ReasonCode::QUOTA_EXCEEDED));
                continue;
            }
            if is_replay(filter.filter) {
                reasons.push(match self.subscribe_replay(session, principal, filter.filter, filter.qos) {
                    Ok(()) => filter.qos as u8,
                    Err(reason) => refuse(filter.filter, reason),
                });
                continue;
            }
            let Some(state) = self.sessions.get_mut(session) else { return };
            let is_new = !state.subscriptions.contains_key(filter.filter);
            let refused = if !allows(principal, Action::Subscribe(filter.filter)) {
                self.stats.denied.fetch_add(1, Ordering::Relaxed);
                Some(ReasonCode::NOT_AUTHORIZED)
            } else if is_new
                && (state.subscriptions.len() >= SUBSCRIPTIONS
                    || filter.filter.len() > FILTER_BYTES
                    || filter_bytes + filter.filter.len() > SESSION_FILTER_BYTES)
            {
                Some(ReasonCode::QUOTA_EXCEEDED)
            } else {
                None
            };
            if let Some(refused) = refused {
                reasons.push(refuse(filter.filter, refused));
                continue;
            }
            let subscription = Subscription {
                qos: filter.qos,
                no_local: filter.no_local,
                retain_as_published: filter.retain_as_published,
                identifier,
            };
            state.subscriptions.insert(filter.filter.into(), subscription);
            filter_bytes += if is_new { filter.filter.len() } else { 0 };
            self.router.subscribe(filter.filter, interest(session, subscription));
            self.record_subscription(session, filter.filter);
            reasons.push(filter.qos as u8);
            let sends = match filter.retain_handling {
                RetainHandling::Send => true,
                RetainHandling::SendIfNew => is_new,
                RetainHandling::Never => false,
            };
            // A group gets none: nobody could say which member (section 4.8.2).
            if sends && !is_shared(filter.filter) {
                self.begin_search(session, filter.filter);
            }
        }
        self.turn.answers.push((key, Answer::SubAck(subscribe.packet_id, reasons.into(), words.finish())));
    }

    /// A filter that begins with `$replay/`: whoever may subscribe to what it is of may have it.
    fn subscribe_replay(
        &mut self,
        session: SessionKey,
        principal: &Arc<Principal>,
        filter: &str,
        qos: QoS,
    ) -> Result<(), ReasonCode> {
        let Some((_, inner)) = replay::parts(filter) else { return Err(ReasonCode::TOPIC_FILTER_INVALID) };
        if !allows(principal, Action::Subscribe(inner)) {
            self.stats.denied.fetch_add(1, Ordering::Relaxed);
            return Err(ReasonCode::NOT_AUTHORIZED);
        }
        let subscription = Subscription::plain(qos);
        self.begin_replay(session, filter, subscription)
    }

    /// The record of a subscription is written with the turn, as the session has it: or removed, where it has it no more.
    pub(super) fn record_subscription(&mut self, key: SessionKey, filter: &str) {
        if let Some(state) = self.sessions.get(key).filter(|state| state.is_durable()) {
            self.turn.builder.state(state.subscription_record(filter));
            self.turn.undo.push(Undo::Subscribed(key, filter.into()));
        }
    }

    /// What the turn has logged for a session stays before what comes otherwise once its subscriptions change.
    pub(super) fn settle_order(&mut self, session: SessionKey) {
        if self.sessions.get(session).is_some_and(|session| session.backlog.is_gathering()) {
            self.submit_turn();
        }
    }

    pub(super) fn unsubscribe(
        &mut self,
        key: ConnectionKey,
        session: SessionKey,
        unsubscribe: &Unsubscribe<'_>,
    ) {
        let Some((_, connection)) = self.connections.get(key.place) else { return };
        let (v5, mut words) = (connection.version == Version::V5, Words::of(connection));
        let mut reasons = Vec::new();
        self.settle_order(session);
        for filter in unsubscribe.filters() {
            let known = if is_replay(filter) {
                self.end_replay(session, filter)
            } else {
                let Some(state) = self.sessions.get_mut(session) else { return };
                let known = state.subscriptions.remove(filter).is_some();
                if known {
                    state.searches.remove(filter);
                    self.router.unsubscribe(filter, session);
                    self.record_subscription(session, filter);
                }
                known
            };
            if !known {
                words.unknown(filter);
            }
            let reason = if known { ReasonCode::SUCCESS } else { ReasonCode::NO_SUBSCRIPTION_EXISTED };
            reasons.push(reason.0);
        }
        let reasons = if v5 { reasons } else { Vec::new() };
        self.turn
            .answers
            .push((key, Answer::UnsubAck(unsubscribe.packet_id, reasons.into(), words.finish())));
    }
}
