//! SUBSCRIBE and UNSUBSCRIBE.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_access::{Action, Principal, allows};
use sonde_engine::SeqNo;
use sonde_proto::mqtt::{
    Property, QoS, ReasonCode, RetainHandling, Subscribe, Unsubscribe, Version, is_shared,
};

use super::message::Message;
use super::reasons::Words;
use super::replay::{self, is_replay};
use super::router::SessionKey;
use super::session::{Delivery, Stored};
use super::subscription::Subscription;
use super::turn::{Answer, ConnectionKey};
use super::via::Via;
use super::worker::{Worker, interest};
use crate::limits::{SUBSCRIPTIONS, TURN_BYTES};

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
        let mut retained = Vec::new();
        let mut refuse = |filter: &str, reason: ReasonCode| {
            words.refused(filter, reason);
            if v5 { reason.0 } else { 0x80 }
        };
        let asks = |p: Property<'_>| match p {
            Property::UserProperty(SEQ_PROPERTY, value) => Some(value != "0"),
            _ => None,
        };
        if let (Some(asks), Some(state)) = (subscribe.properties.find(asks), self.sessions.get_mut(session)) {
            state.tells_seq = asks;
        }
        self.settle_order(session);
        for filter in subscribe.filters() {
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
            } else if is_new && state.subscriptions.len() >= SUBSCRIPTIONS {
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
            self.router.subscribe(filter.filter, interest(session, subscription));
            reasons.push(filter.qos as u8);
            let sends = match filter.retain_handling {
                RetainHandling::Send => true,
                RetainHandling::SendIfNew => is_new,
                RetainHandling::Never => false,
            };
            // A group gets none: nobody could say which member (section 4.8.2).
            if sends && !is_shared(filter.filter) {
                let mut messages = self.retained.matching(filter.filter, self.clock);
                messages.extend(self.sys_matching(filter.filter));
                retained.extend(messages.into_iter().map(|message| (subscription, message)));
            }
        }
        if let Some(state) = self.sessions.get(session).filter(|state| state.is_durable()) {
            self.turn.builder.state(state.record());
        }
        self.turn.answers.push((key, Answer::SubAck(subscribe.packet_id, reasons.into(), words.finish())));
        self.deliver_retained(session, retained);
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

    /// Sends a new subscription what is retained; more than one turn holds goes out with several.
    pub(super) fn deliver_retained(&mut self, session: SessionKey, retained: Vec<(Subscription, Message)>) {
        for (subscription, message) in retained {
            if self.turn.builder.bytes() >= TURN_BYTES {
                self.submit_turn();
            }
            let qos = subscription.qos.min(message.qos);
            let via = Via::identifier(subscription.identifier);
            let (number, stored, seq) = (self.next_number(), Stored::Nowhere, UNNUMBERED);
            let mut delivery = Delivery { number, stored, seq, message, qos, retain: true, via };
            let durable = self.sessions.get(session).filter(|s| s.is_durable() && qos != QoS::AtMostOnce);
            if let Some(state) = durable {
                delivery.stored = Stored::Copy(number);
                self.turn.builder.state(state.queue_record(&delivery));
            }
            self.turn.deliveries.push((session, delivery));
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
                self.router.unsubscribe(filter, session);
                let Some(state) = self.sessions.get_mut(session) else { return };
                state.subscriptions.remove(filter).is_some()
            };
            if !known {
                words.unknown(filter);
            }
            let reason = if known { ReasonCode::SUCCESS } else { ReasonCode::NO_SUBSCRIPTION_EXISTED };
            reasons.push(reason.0);
        }
        if let Some(state) = self.sessions.get(session).filter(|state| state.is_durable()) {
            self.turn.builder.state(state.record());
        }
        let reasons = if v5 { reasons } else { Vec::new() };
        self.turn
            .answers
            .push((key, Answer::UnsubAck(unsubscribe.packet_id, reasons.into(), words.finish())));
    }
}
