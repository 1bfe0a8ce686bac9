//! Which member of a group gets a message, and who gets what a member leaves behind (MQTT 5, section 4.8.2).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_engine::SeqNo;
use sonde_proto::mqtt::QoS;

use super::backlog::Manner;
use super::message::Message;
use super::offline::QueueLimits;
use super::router::{Interest, SessionKey};
use super::session::{Delivery, Session, Stored};
use super::shared::{GroupKey, Standing};
use super::subscribe::UNNUMBERED;
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

/// A message on its way to those who want it.
#[derive(Debug)]
pub(super) struct Outgoing<'m> {
    pub(super) message: &'m Message,
    /// Its number in the turn's batch, or `UNNUMBERED`.
    pub(super) number: SeqNo,
    /// The same, once it is logged in that batch.
    pub(super) logged: Option<u32>,
    /// Whether those who are here get it before it is stored.
    pub(super) early: bool,
}

impl Worker {
    /// Logs a message that is on its way, unless it is.
    pub(super) fn log_outgoing(&mut self, out: &mut Outgoing<'_>) -> Option<u32> {
        if out.logged.is_none() {
            out.logged = self.log_message(out.message);
            out.number = SeqNo(self.turn.builder.current_message().into());
        }
        out.logged
    }

    /// Notes a delivery; what keeps one to a durable session is in the turn's batch when this returns: the log has the
    /// message, or, where more is to be known than how it is sent, a copy.
    pub(super) fn hand_over(&mut self, to: Handing, out: &mut Outgoing<'_>) {
        let Some(session) = self.sessions.get(to.session) else { return };
        let (is_here, replays) = (session.is_here(), session.replay.is_some());
        let is_kept = to.qos != QoS::AtMostOnce && session.is_durable();
        if !is_here && !is_kept {
            return;
        }
        if replays {
            self.log_outgoing(out);
        }
        let mut stored = Stored::Nowhere;
        if is_kept && to.via.is_plain() {
            let manner = Manner { qos: to.qos, retain: to.retain };
            let Some(number) = self.keep_for(to.session, out, manner) else { return };
            stored = Stored::Log(SeqNo(number.into()));
            if !is_here {
                return;
            }
        }
        if is_kept && !to.via.is_plain() && self.turn.builder.bytes() >= TURN_BYTES {
            // Many durable subscribers of a large message: their copies go out with several batches.
            self.submit_turn();
            (out.number, out.logged) = (UNNUMBERED, None);
        }
        let number = self.next_number();
        if is_kept && !to.via.is_plain() {
            stored = Stored::Copy(number);
        }
        let (seq, message) = (out.number, out.message.clone());
        let delivery = Delivery { number, stored, seq, message, qos: to.qos, retain: to.retain, via: to.via };
        if out.early && !is_kept && !replays {
            // Without its number, which it gets with the commit.
            return self.deliver(to.session, Delivery { seq: SeqNo(0), ..delivery });
        }
        if matches!(stored, Stored::Copy(_)) && !self.keep_copy(to.session, &delivery) {
            return;
        }
        self.turn.deliveries.push((to.session, delivery));
    }

    /// Hands a message to the member of a group whose turn it is; counts it as dropped where none can take it.
    pub(super) fn hand_to_group(&mut self, group: GroupKey, qos: QoS, retain: bool, out: &mut Outgoing<'_>) {
        let Self { router, sessions, connections, queue_limits, tenants, .. } = self;
        let message = out.message;
        let Some(group) = router.group_mut(group) else { return };
        let chosen = group.choose(|member| {
            let Some(session) = sessions.get(member.session) else { return Standing::Unable };
            if !tenants.may_wait(session, message.bytes() as u64) {
                return Standing::Unable;
            }
            let connection = session.connection.and_then(|place| connections.get(place));
            let unsent = connection.map(|(_, connection)| connection.out.len());
            standing(session, unsent, member.qos.min(qos), message, queue_limits)
        });
        let Some(Interest { session, identifier, qos: granted, retain_as_published, .. }) = chosen else {
            self.stats.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let via = Via { group: Some(Arc::clone(&group.filter)), ..Via::identifier(identifier) };
        let to = Handing { session, qos: granted.min(qos), retain: retain && retain_as_published, via };
        self.hand_over(to, out);
    }

    /// Gives what a session leaves behind of its groups to other members; again, where the commit fails.
    pub(super) fn hand_on(&mut self, left_behind: Vec<Delivery>) {
        for delivery in left_behind {
            let Some(filter) = &delivery.via.group else { continue };
            match self.router.group(filter) {
                Some(group) => {
                    let message = &delivery.message;
                    let mut out = Outgoing { message, number: UNNUMBERED, logged: None, early: false };
                    self.hand_to_group(group, message.qos, message.retain, &mut out);
                    self.turn.undo.push(Undo::HandedOn(delivery));
                }
                // It was the last member.
                None => drop(self.stats.dropped.fetch_add(1, Ordering::Relaxed)),
            }
        }
    }
}

/// How well a session could take a message with this QoS; `unsent`: bytes that wait for its socket, if it is connected.
fn standing(
    session: &Session,
    unsent: Option<usize>,
    qos: QoS,
    message: &Message,
    limits: &QueueLimits,
) -> Standing {
    match unsent {
        _ if session.is_full(message.bytes() as u64, limits) => Standing::Unable,
        None if qos == QoS::AtMostOnce || !session.is_durable() => Standing::Unable,
        None => Standing::Away,
        Some(unsent) if session.is_caught_up() && unsent <= OUT_BYTES => Standing::Ready,
        Some(_) => Standing::Behind(session.queue.len() / SEND_MAXIMUM),
    }
}
