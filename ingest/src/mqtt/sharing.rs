//! Which member of a group gets a message, and who gets what a member leaves behind (MQTT 5, section 4.8.2).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_access::{Action, Principal, allows};
use sonde_engine::SeqNo;
use sonde_proto::mqtt::QoS;

use super::block::Manner;
use super::draft::Draft;
use super::quota::{Dropped, QueueLimits};
use super::router::{Interest, SessionKey};
use super::session::{Delivery, Session, Stored};
use super::shared::{GroupKey, Standing, shared_filter};
use super::subscribe::UNNUMBERED;
use super::turn::Undo;
use super::via::Via;
use super::worker::Worker;
use crate::limits::{COPIES_BYTES, OUT_BYTES, SEND_MAXIMUM};

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
    pub(super) draft: &'m Draft<'m>,
    /// Its number in the turn's batch, or `UNNUMBERED`.
    pub(super) number: SeqNo,
    /// The same, once it is logged in that batch.
    pub(super) logged: Option<u32>,
    /// Bytes of its copies in that batch.
    pub(super) copied: usize,
    /// Whether the turn counts it among the messages that it delivers.
    pub(super) counted: bool,
    /// Whether those who are here get it before it is stored.
    pub(super) early: bool,
}

impl Worker {
    /// Logs a message that is on its way in the batch of its rows, unless it is: an error where that has no room for it.
    pub(super) fn log_outgoing(&mut self, out: &mut Outgoing<'_>) -> sonde_engine::Result<u32> {
        if let Some(number) = out.logged {
            return Ok(number);
        }
        let number = out.draft.log(|message| self.turn.builder.message(message))?;
        out.logged = Some(number);
        Ok(number)
    }

    /// Notes a delivery; what keeps one to a durable session is in the turn's batch when this returns: the log has the
    /// message, or, where another member of a group may get it later, a copy. All of it is in one batch, that of the
    /// message's rows: the publisher's QoS 2 number stands for everything that became of the message.
    pub(super) fn hand_over(&mut self, to: Handing, out: &mut Outgoing<'_>) {
        let Some(session) = self.sessions.get(to.session) else { return };
        let (is_here, replays) = (session.is_here(), session.replay.is_some());
        let is_kept = to.qos != QoS::AtMostOnce && session.is_durable();
        if !is_here && !is_kept {
            return;
        }
        if replays && let Err(error) = self.log_outgoing(out) {
            tracing::warn!(%error, topic = out.draft.topic(), "a replay goes without a message that could not be logged");
        }
        let mut stored = Stored::Nowhere;
        if is_kept && to.via.group.is_none() {
            let identifiers = to.via.identifiers.clone();
            let manner = Manner { qos: to.qos, retain: to.retain, identifiers };
            let Some(number) = self.keep_for(to.session, out, manner) else { return };
            stored = Stored::Log(SeqNo(number.into()));
            if !is_here {
                return;
            }
        }
        let number = self.next_number();
        if is_kept && to.via.group.is_some() {
            out.copied += out.draft.bytes();
            if out.copied > COPIES_BYTES {
                return self.count_dropped(to.session, Dropped::QueueFull, 1);
            }
            stored = Stored::Copy(number);
        }
        let (seq, message) = (out.number, Arc::clone(out.draft.whole()));
        let mut delivery =
            Delivery { number, stored, seq, message, qos: to.qos, retain: to.retain, via: to.via };
        if out.early && !is_kept && !replays {
            // Without its number, which it gets with the commit.
            return self.deliver(to.session, Delivery { seq: SeqNo(0), ..delivery });
        }
        if matches!(stored, Stored::Copy(_)) && !self.keep_copy(to.session, &mut delivery) {
            return;
        }
        if !std::mem::replace(&mut out.counted, true) {
            self.turn.message_bytes += out.draft.bytes();
        }
        self.turn.deliveries.push((to.session, delivery));
    }

    /// Hands a message to the member of a group whose turn it is; counts it as dropped where none can take it.
    pub(super) fn hand_to_group(&mut self, group: GroupKey, qos: QoS, retain: bool, out: &mut Outgoing<'_>) {
        let Self { router, sessions, connections, queue_limits, tenants, .. } = self;
        let bytes = out.draft.bytes() as u64;
        let Some(group) = router.group_mut(group) else { return };
        let chosen = group.choose(|member| {
            let Some(session) = sessions.get(member.session) else { return Standing::Unable };
            if !tenants.may_wait(session, bytes) {
                return Standing::Unable;
            }
            let connection = session.connection.and_then(|place| connections.get(place));
            let unsent = connection.map(|(_, connection)| connection.out.len());
            standing(session, unsent, member.qos.min(qos), bytes, queue_limits)
        });
        let Some(Interest { session, identifier, qos: granted, retain_as_published, .. }) = chosen else {
            self.stats.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let via = Via { group: Some(Arc::clone(&group.filter)), ..Via::identifier(identifier) };
        let to = Handing { session, qos: granted.min(qos), retain: retain && retain_as_published, via };
        self.hand_over(to, out);
    }

    /// A session that has nobody behind it leaves the groups whose messages its owner may not read any more, `None` where
    /// there is no such owner: what waits for it goes to others. Its own subscriptions are judged when its client is back.
    pub(super) fn leave_groups(&mut self, key: SessionKey, owner: Option<&Principal>) {
        let may_read = |filter: &str| owner.is_some_and(|owner| allows(owner, Action::Subscribe(filter)));
        let Some(session) = self.sessions.get_mut(key) else { return };
        let is_left = |filter: &str| shared_filter(filter).is_some() && !may_read(filter);
        let left: Vec<Box<str>> =
            session.subscriptions.keys().filter(|filter| is_left(filter)).cloned().collect();
        if left.is_empty() {
            return;
        }
        for filter in &left {
            session.subscriptions.remove(filter);
            self.router.unsubscribe(filter, key);
        }
        let is_of_them = |delivery: &Delivery| {
            delivery.via.group.as_deref().is_some_and(|group| left.iter().any(|filter| **filter == *group))
        };
        let mut withdrawn = session.take_shared(is_of_them);
        tracing::info!(
            client = session.client_id,
            subscriptions = left.len(),
            messages = withdrawn.len(),
            "an MQTT session leaves groups whose messages its owner may not read any more"
        );
        left.iter().for_each(|filter| self.record_subscription(key, filter));
        withdrawn.extend(self.withdraw_where(key, is_of_them));
        withdrawn.sort_unstable_by_key(|delivery| delivery.number);
        self.stats.denied.fetch_add(left.len() as u64, Ordering::Relaxed);
        // Before the records go: a crash between two batches may double a message, not lose one.
        self.hand_on(withdrawn.clone());
        for delivery in &withdrawn {
            self.done_with(key, delivery.stored);
        }
    }

    /// Gives what a session leaves behind of its groups to other members; again, where the commit fails.
    pub(super) fn hand_on(&mut self, left_behind: Vec<Delivery>) {
        for delivery in left_behind {
            let Some(filter) = &delivery.via.group else { continue };
            if self.turn.is_full() {
                self.submit_turn();
            }
            match self.router.group(filter) {
                Some(group) => {
                    let message = &delivery.message;
                    let draft = &Draft::again(message);
                    let (number, logged, early) = (UNNUMBERED, None, false);
                    let mut out = Outgoing { draft, number, logged, copied: 0, counted: false, early };
                    self.hand_to_group(group, message.qos, message.retain, &mut out);
                    self.turn.undo.push(Undo::HandedOn(delivery));
                }
                // It was the last member.
                None => drop(self.stats.dropped.fetch_add(1, Ordering::Relaxed)),
            }
        }
    }
}

/// How well a session could take a message of so many bytes with this QoS; `unsent`: bytes that wait for its socket, if it
/// is connected.
fn standing(
    session: &Session,
    unsent: Option<usize>,
    qos: QoS,
    bytes: u64,
    limits: &QueueLimits,
) -> Standing {
    match unsent {
        _ if session.is_full(bytes, limits) => Standing::Unable,
        None if qos == QoS::AtMostOnce || !session.is_durable() => Standing::Unable,
        None => Standing::Away,
        Some(unsent) if session.is_caught_up() && unsent <= OUT_BYTES => Standing::Ready,
        Some(_) => Standing::Behind(session.queue.len() / SEND_MAXIMUM),
    }
}
