//! SUBSCRIBE and UNSUBSCRIBE.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_access::{Action, Principal, allows};
use sonde_proto::mqtt::{
    Property, QoS, ReasonCode, RetainHandling, Subscribe, Unsubscribe, Version, is_shared,
};

use super::message::Message;
use super::router::SessionKey;
use super::session::{Delivery, Subscription};
use super::turn::{Answer, ConnectionKey};
use super::via::Via;
use super::worker::{Worker, interest};
use crate::limits::{SUBSCRIPTIONS, TURN_BYTES};

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
        let v5 =
            self.connections.get(key.place).is_some_and(|(_, connection)| connection.version == Version::V5);
        let mut reasons = Vec::new();
        let mut retained = Vec::new();
        for filter in subscribe.filters() {
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
                reasons.push(if v5 { refused.0 } else { 0x80 });
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
                let mut messages = self.retained.matching(filter.filter);
                messages.extend(self.sys_matching(filter.filter));
                retained.extend(messages.into_iter().map(|message| (subscription, message)));
            }
        }
        if let Some(state) = self.sessions.get(session).filter(|state| state.is_durable()) {
            self.turn.builder.state(state.record());
        }
        self.turn.answers.push((key, Answer::SubAck(subscribe.packet_id, reasons)));
        self.deliver_retained(session, retained);
    }

    /// Sends a new subscription what is retained; more than one turn holds goes out with several.
    fn deliver_retained(&mut self, session: SessionKey, retained: Vec<(Subscription, Message)>) {
        for (subscription, message) in retained {
            if self.turn.builder.bytes() >= TURN_BYTES {
                self.submit_turn();
            }
            let qos = subscription.qos.min(message.qos);
            let via = Via::identifier(subscription.identifier);
            let delivery = Delivery { number: self.next_number(), message, qos, retain: true, via };
            let durable = self.sessions.get(session).filter(|s| s.is_durable() && qos != QoS::AtMostOnce);
            if let Some(state) = durable {
                self.turn.builder.state(state.queue_record(&delivery));
            }
            self.turn.deliveries.push((session, delivery));
        }
    }

    pub(super) fn unsubscribe(
        &mut self,
        key: ConnectionKey,
        session: SessionKey,
        unsubscribe: &Unsubscribe<'_>,
    ) {
        let v5 =
            self.connections.get(key.place).is_some_and(|(_, connection)| connection.version == Version::V5);
        let mut reasons = Vec::new();
        let Some(state) = self.sessions.get_mut(session) else { return };
        for filter in unsubscribe.filters() {
            let known = state.subscriptions.remove(filter).is_some();
            self.router.unsubscribe(filter, session);
            let reason = if known { ReasonCode::SUCCESS } else { ReasonCode::NO_SUBSCRIPTION_EXISTED };
            reasons.push(reason.0);
        }
        if state.is_durable() {
            self.turn.builder.state(state.record());
        }
        let reasons = if v5 { reasons } else { Vec::new() };
        self.turn.answers.push((key, Answer::UnsubAck(unsubscribe.packet_id, reasons)));
    }
}
