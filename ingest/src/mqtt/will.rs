//! Wills (section 3.1.2.5): what is published for a client whose connection broke, at once or after its delay.
//!
//! # Invariants
//! - A will is a record of CONNECT's commit, and stays one until it is published or taken back: the end of the server is the
//!   end of every connection, and of every session that is not durable, and their wills are published at the next start.
//! - A will is published under the rights of that moment.
//! - A will is published before its record goes: a crash in between publishes it again rather than never.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_access::{Action, Principal, allows};
use sonde_engine::{State, Timestamp};
use sonde_proto::mqtt::{Connect, Property, Publish};

use super::budget::Weight;
use super::message::Message;
use super::router::SessionKey;
use super::session::Session;
use super::worker::Worker;
use crate::limits::WILL_OVERHEAD;

/// Namespace of the wills.
pub(super) const WILLS: &str = "mqtt.will";
/// In the length of a record's principal: all of it is there, and not only its name, as earlier builds have it.
const WHOLE: u16 = 1 << 15;

/// The will of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Will {
    pub(super) message: Message,
    /// Will Delay Interval, seconds.
    pub(super) delay: u32,
}

/// A will whose connection is gone.
#[derive(Clone, Debug)]
pub(super) struct PendingWill {
    pub(super) message: Message,
    /// Under whose rights it is published; where an earlier build has recorded it, it was allowed when its client connected.
    pub(super) principal: Option<Arc<Principal>>,
    /// When it is published, in seconds of the worker's clock, unless the session ends before.
    pub(super) due: u64,
}

/// What a will takes of the memory for wills: it is in the state store, too.
fn weight(message: &Message) -> Weight {
    Weight::of_will(2 * message.bytes() + WILL_OVERHEAD)
}

impl Will {
    /// What the will of a CONNECT would take of that; 0 where it has none.
    pub(super) fn weight_of(connect: &Connect<'_>) -> usize {
        connect.will.as_ref().map_or(0, |will| {
            let bytes = Message::bytes_of(will.topic, will.payload, will.properties.as_bytes());
            2 * bytes + WILL_OVERHEAD
        })
    }

    /// The will of a CONNECT. Its expiry counts from its publication.
    pub(super) fn of(connect: &Connect<'_>) -> Option<Box<Self>> {
        let will = connect.will.as_ref()?;
        let delay =
            will.properties.find(|p| if let Property::WillDelayInterval(s) = p { Some(s) } else { None });
        let publish = Publish {
            dup: false,
            qos: will.qos,
            retain: will.retain,
            topic: will.topic,
            packet_id: 0,
            properties: will.properties,
            payload: will.payload,
        };
        let mut message = Message::of(&publish, Timestamp::from_nanos(0));
        message.weight = weight(&message);
        Some(Box::new(Self { message, delay: delay.unwrap_or_default() }))
    }

    /// The record of it: `delay u32 | WHOLE, and principal length u16 | principal | message`, little endian. Nothing is kept
    /// where its publication was not allowed.
    pub(super) fn record(&self, session: &Session, principal: &Principal) -> State {
        let Message { topic, qos, retain, .. } = &self.message;
        let publish = Action::Publish { topic, qos: *qos as u8, retain: *retain };
        let kept = allows(principal, publish).then(|| principal.to_record());
        // Names and roles are far below it.
        let kept = kept.filter(|kept| kept.len() < usize::from(WHOLE));
        let value = kept.map(|principal| {
            let mut value = self.delay.to_le_bytes().to_vec();
            value.extend_from_slice(&(principal.len() as u16 | WHOLE).to_le_bytes());
            value.extend_from_slice(&principal);
            value.extend_from_slice(&self.message.encode());
            value
        });
        State { value, ..session.gone(WILLS, &[]) }
    }
}

impl PendingWill {
    /// Reads a record, after a restart: the connection broke when the server started, second 0 of its clock.
    pub(super) fn decode(value: &[u8], session_expiry: u32, now: Timestamp) -> Option<Self> {
        let (delay, rest) = value.split_first_chunk::<4>()?;
        let (len, rest) = rest.split_first_chunk::<2>()?;
        let len = u16::from_le_bytes(*len);
        let (principal, message) = rest.split_at_checked((len & !WHOLE).into())?;
        let principal = match len & WHOLE {
            0 => None,
            _ => Some(Arc::new(Principal::from_record(principal)?)),
        };
        let mut message = Message::decode(message, now)?;
        message.weight = weight(&message);
        let due = u32::from_le_bytes(*delay).min(session_expiry).into();
        Some(Self { message, principal, due })
    }
}

impl Worker {
    /// The connection of a will is gone without a DISCONNECT that takes it back. `session` is its session, if that goes
    /// on; `gone` removes its record.
    pub(super) fn will_of_broken(
        &mut self,
        will: Will,
        principal: Arc<Principal>,
        session: Option<SessionKey>,
        gone: Option<State>,
    ) {
        let now = self.now();
        let Will { message, delay } = will;
        let state = session.and_then(|key| self.sessions.get_mut(key));
        match state {
            Some(state) if delay > 0 => {
                let due = now + u64::from(delay.min(state.expiry));
                state.will = Some(Box::new(PendingWill { message, principal: Some(principal), due }));
            }
            _ => self.publish_will(&PendingWill { message, principal: Some(principal), due: now }, gone),
        }
    }

    /// Publishes a will, and removes its record.
    pub(super) fn publish_will(&mut self, will: &PendingWill, gone: Option<State>) {
        let rights = will.principal.as_ref().map(|principal| self.authenticate.rights_of(principal));
        match rights {
            Some(None) => drop(self.stats.denied.fetch_add(1, Ordering::Relaxed)),
            rights => {
                let principal = rights.flatten();
                if let Err(error) = self.publish_internal(&will.message, principal.as_deref()) {
                    tracing::warn!(%error, topic = %will.message.topic, "a will could not be stored");
                    self.stats.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        gone.into_iter().for_each(|record| self.turn.builder.state(record));
    }

    /// Publishes the wills of sessions that ended with the server.
    pub(super) fn publish_left_wills(&mut self, wills: Vec<(PendingWill, State)>) {
        for (will, gone) in wills {
            self.publish_will(&will, Some(gone));
            if self.turn.is_full() {
                self.submit_turn();
            }
        }
    }

    /// Publishes the wills whose delay is over.
    pub(super) fn publish_due_wills(&mut self) {
        let now = self.now();
        let is_due = |session: &Session| session.will.as_ref().is_some_and(|will| will.due <= now);
        let due: Vec<SessionKey> =
            self.sessions.iter().filter(|(_, session)| is_due(session)).map(|(key, _)| key).collect();
        for key in due {
            let Some(session) = self.sessions.get_mut(key) else { continue };
            let Some(will) = session.will.take() else { continue };
            let gone = session.gone(WILLS, &[]);
            self.publish_will(&will, Some(gone));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use sonde_access::Grants;
    use sonde_proto::mqtt::QoS;

    #[test]
    fn the_record_reads_back_and_none_is_kept_of_what_is_not_allowed() {
        let mut session = Session::new("c", 7);
        session.expiry = 60;
        let message = Message { expiry: Some(5), ..Message::new("a/b", b"gone", QoS::AtLeastOnce, true) };
        let will = Will { message: message.clone(), delay: 9 };
        let now = Timestamp::from_secs(100);
        let value = will.record(&session, &Principal::admin("root")).value.unwrap();
        let again = PendingWill::decode(&value, 60, now).unwrap();
        assert_eq!((again.message, again.due), (message.clone(), 9));
        assert_eq!(again.principal.unwrap().owner().as_deref(), Some("admin"));
        // As it was written before the principal was: its name.
        let old = [&9_u32.to_le_bytes()[..], &[4, 0], b"root", &message.encode()].concat();
        let old = PendingWill::decode(&old, 60, now).unwrap();
        assert!(old.message == message && old.principal.is_none());
        assert_eq!(PendingWill::decode(&value, 3, now).unwrap().due, 3, "the session ends first");
        assert!((0..40).all(|end| PendingWill::decode(value.get(..end).unwrap(), 60, now).is_none()));
        assert_eq!(will.record(&session, &Principal::new("nobody", Grants::default())).value, None);
    }
}
