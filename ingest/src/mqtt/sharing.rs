//! Which member of a group gets a message, and who gets what a member leaves behind (MQTT 5, section 4.8.2).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_proto::mqtt::QoS;

use super::message::Message;
use super::router::{Interest, SessionKey};
use super::session::{Delivery, Dropped, Session};
use super::shared::{GroupKey, Standing};
use super::turn::Undo;
use super::via::Via;
use super::worker::Worker;
use crate::limits::{OUT_BYTES, SEND_MAXIMUM, TURN_BYTES};

/// A delivery that is to be noted: to whom, and how it is sent.
#[derive(Debug)]
pub(super) struct Handing {
    pub(super) session: SessionKey,
    pub(super) qos: QoS,
    pub(super) retain: bool,
    pub(super) via: Via,
}

impl Worker {
    /// Notes a delivery; one to a durable session is in the turn's batch when this returns.
    pub(super) fn hand_over(&mut self, to: Handing, message: Message) {
        if self.turn.builder.bytes() >= TURN_BYTES {
            // Many durable subscribers of a large message: their copies go out with several batches.
            self.submit_turn();
        }
        let number = self.next_number();
        let Some(session) = self.sessions.get_mut(to.session) else { return };
        if session.connection.is_none() && (to.qos == QoS::AtMostOnce || !session.is_durable()) {
            return;
        }
        let delivery = Delivery { number, message, qos: to.qos, retain: to.retain, via: to.via };
        if to.qos != QoS::AtMostOnce && session.is_durable() {
            if !session.has_room(&delivery.message) {
                session.count_dropped(Dropped::QueueFull);
                self.stats.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            self.turn.builder.state(session.queue_record(&delivery));
        }
        self.turn.deliveries.push((to.session, delivery));
    }

    /// Hands a message to the member of a group whose turn it is; counts it as dropped where none can take it.
    pub(super) fn hand_to_group(&mut self, group: GroupKey, qos: QoS, retain: bool, message: &Message) {
        let Self { router, sessions, connections, .. } = self;
        let Some(group) = router.group_mut(group) else { return };
        let chosen = group.choose(|member| {
            let Some(session) = sessions.get(member.session) else { return Standing::Unable };
            let connection = session.connection.and_then(|place| connections.get(place));
            let unsent = connection.map(|(_, connection)| connection.out.len());
            standing(session, unsent, member.qos.min(qos), message)
        });
        let Some(Interest { session, identifier, qos: granted, retain_as_published, .. }) = chosen else {
            self.stats.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let via = Via { group: Some(Arc::clone(&group.filter)), ..Via::identifier(identifier) };
        let to = Handing { session, qos: granted.min(qos), retain: retain && retain_as_published, via };
        self.hand_over(to, message.clone());
    }

    /// Gives what a session leaves behind of its groups to other members; again, where the commit fails.
    pub(super) fn hand_on(&mut self, left_behind: Vec<Delivery>) {
        for delivery in left_behind {
            let Some(filter) = &delivery.via.group else { continue };
            match self.router.group(filter) {
                Some(group) => {
                    let message = &delivery.message;
                    self.hand_to_group(group, message.qos, message.retain, message);
                    self.turn.undo.push(Undo::HandedOn(delivery));
                }
                // It was the last member.
                None => drop(self.stats.dropped.fetch_add(1, Ordering::Relaxed)),
            }
        }
    }
}

/// How well a session could take a message with this QoS; `unsent`: bytes that wait for its socket, if it is connected.
fn standing(session: &Session, unsent: Option<usize>, qos: QoS, message: &Message) -> Standing {
    match unsent {
        _ if !session.has_room(message) => Standing::Unable,
        None if qos == QoS::AtMostOnce || !session.is_durable() => Standing::Unable,
        None => Standing::Away,
        Some(unsent) if session.is_caught_up() && unsent <= OUT_BYTES => Standing::Ready,
        Some(_) => Standing::Behind(session.queue.len() / SEND_MAXIMUM),
    }
}
