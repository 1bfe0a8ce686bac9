//! The state records of durable sessions: what they are, and how sessions are read back from them.
//!
//! # Invariants
//! - Everything of a session's own that is kept begins with its client id and incarnation; what has neither a session nor
//!   a meaning is removed when the server starts.

use std::sync::Arc;

use foldhash::HashMap;
use sonde_access::Principal;
use sonde_engine::{Engine, SeqNo, State, Timestamp};
use sonde_proto::mqtt::QoS;

use super::exchange::{IN_FLIGHT, InFlight, RECEIVED, Recorded};
use super::kept::KEPT;
use super::message::Message;
use super::quota::Drops;
use super::session::{Delivery, Session, Stored};
use super::subscribe::UNNUMBERED;
use super::subscription::Subscription;
use super::via::Via;
use super::will::{PendingWill, WILLS};
use crate::limits::FILTER_BYTES;

/// Expiry and incarnation. Earlier builds put the subscriptions behind them; those are moved when the server starts.
const SESSIONS: &str = "mqtt.session";
/// Subscriptions, each under its filter.
const SUBSCRIPTIONS: &str = "mqtt.subscription";
/// Messages that wait as copies: those that come by a group or with subscription identifiers, retained ones, and those of
/// earlier builds.
const QUEUE: &str = "mqtt.queue";
/// Messages that wait in the log: see `backlog.rs`.
const BACKLOG: &str = "mqtt.backlog";
const OWNERS: &str = "mqtt.owner";
/// How many messages a session did not get, by reason.
const DROPS: &str = "mqtt.drops";
/// What the owners were recognised by: asked again whenever rights change.
const PRINCIPALS: &str = "mqtt.principal";
/// Tenants of the clients, by client id as the owners are.
const TENANTS: &str = "mqtt.tenant";

/// In the flags of a delivery's record: a `Via` precedes the message.
const VIA: u8 = 8;
/// The same: its sequence number (u64, little endian) follows the flags; until the commit that in its batch.
const NUMBERED: u8 = 16;
/// Where it stands.
pub(super) const SEQ_AT: usize = 1;
/// In the flags of a subscription's record: the session's client is told sequence numbers.
const TELLS_SEQ: u8 = 32;

impl Session {
    /// The key of a record of this session: `client id | 0 | incarnation u64 | rest`.
    pub(super) fn key(&self, rest: &[u8]) -> Vec<u8> {
        let mut key = self.client_id.as_bytes().to_vec();
        key.push(0);
        key.extend_from_slice(&self.incarnation.to_be_bytes());
        key.extend_from_slice(rest);
        key
    }

    /// The record of the session itself: `expiry u32 | incarnation u64`, little endian; `None` as value where it is not
    /// durable.
    pub(super) fn record(&self) -> State {
        let mut value = self.expiry.to_le_bytes().to_vec();
        value.extend_from_slice(&self.incarnation.to_le_bytes());
        if self.tells_seq {
            // A subscription without a filter: that of earlier builds stand there, each with the flag.
            value.extend_from_slice(&[TELLS_SEQ, 0, 0]);
        }
        let value = self.is_durable().then_some(value);
        State { namespace: SESSIONS.into(), key: self.client_id.as_bytes().to_vec(), value }
    }

    /// The record of what the session has subscribed to by this filter: that of a subscription without its filter, which the
    /// key has; `None` as value where there is nothing to keep.
    pub(super) fn subscription_record(&self, filter: &str) -> State {
        let known = self.subscriptions.get(filter).filter(|_| self.is_durable());
        let value = known.map(|subscription| {
            let mut value = Vec::new();
            subscription.encode("", &mut value);
            value
        });
        State { value, ..self.gone(SUBSCRIPTIONS, filter.as_bytes()) }
    }

    /// The record of whose it is.
    pub(super) fn owner_record(&self) -> State {
        let value = self.owner.as_ref().map(|owner| owner.as_bytes().to_vec());
        State { namespace: OWNERS.into(), key: self.client_id.as_bytes().to_vec(), value }
    }

    /// The record of who its owner was when its client connected.
    pub(super) fn principal_record(&self) -> State {
        let known = self.principal.as_ref().filter(|principal| principal.owner().is_some());
        let value = known.map(|principal| principal.to_record());
        State { namespace: PRINCIPALS.into(), key: self.client_id.as_bytes().to_vec(), value }
    }

    /// The record of its client's tenant.
    pub(super) fn tenant_record(&self) -> State {
        let value = self.tenant.as_ref().map(|tenant| tenant.as_bytes().to_vec());
        State { namespace: TENANTS.into(), key: self.client_id.as_bytes().to_vec(), value }
    }

    /// The records that remove everything of the session.
    pub(super) fn forget(&self) -> Vec<State> {
        let gone = |namespace: &str, key| State { namespace: namespace.into(), key, value: None };
        let client = self.client_id.as_bytes().to_vec();
        let mut records =
            [SESSIONS, OWNERS, PRINCIPALS, TENANTS].map(|namespace| gone(namespace, client.clone())).to_vec();
        records.extend(self.subscriptions.keys().map(|filter| self.gone(SUBSCRIPTIONS, filter.as_bytes())));
        records.extend(self.forget_exchanges());
        let sent = self.in_flight.values().filter_map(InFlight::stored);
        let waiting = self.queue.iter().map(|delivery| delivery.stored);
        let copies = sent.chain(waiting).filter_map(|stored| match stored {
            Stored::Copy(number) => Some(number),
            Stored::Nowhere | Stored::Log(_) => None,
        });
        records.extend(copies.map(|number| self.dequeue_record(number)));
        records.extend(self.backlog.records().map(|number| self.backlog_record(number, None)));
        records.extend(self.forget_kept());
        if self.drops_recorded != Drops::default() {
            records.push(self.gone(DROPS, &[]));
        }
        records.push(self.gone(WILLS, &[]));
        records
    }

    /// The record that removes one of this session's.
    pub(super) fn gone(&self, namespace: &str, rest: &[u8]) -> State {
        State { namespace: namespace.into(), key: self.key(rest), value: None }
    }

    /// The record of a delivery that must survive.
    pub(super) fn queue_record(&self, delivery: &Delivery) -> State {
        let via = if delivery.via.is_plain() { 0 } else { VIA };
        let numbered = if delivery.seq == UNNUMBERED { 0 } else { NUMBERED };
        let mut value = vec![delivery.qos as u8 | u8::from(delivery.retain) << 2 | via | numbered];
        if numbered != 0 {
            value.extend_from_slice(&delivery.seq.0.to_le_bytes());
        }
        if via != 0 {
            delivery.via.encode(&mut value);
        }
        value.extend_from_slice(&delivery.message.encode());
        State { namespace: QUEUE.into(), key: self.key(&delivery.number.to_be_bytes()), value: Some(value) }
    }

    /// The record that a delivery is done with.
    pub(super) fn dequeue_record(&self, number: u64) -> State {
        self.gone(QUEUE, &number.to_be_bytes())
    }

    /// The record of what the client did not get.
    pub(super) fn drops_record(&self) -> State {
        State { value: Some(self.drops.encode()), ..self.gone(DROPS, &[]) }
    }

    /// The record of a block of what waits in the log.
    pub(super) fn backlog_record(&self, number: u64, value: Option<Vec<u8>>) -> State {
        State { namespace: BACKLOG.into(), key: self.key(&number.to_be_bytes()), value }
    }
}

/// What the state store has of sessions.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// The durable sessions, with everything that waits for them.
    pub(super) sessions: Vec<Session>,
    /// Removals of records whose session is gone.
    pub(super) orphans: Vec<State>,
    /// What an earlier build wrote in another form, in that of today.
    pub(super) moved: Vec<State>,
    /// Wills of sessions that ended with the server, and what removes their records.
    pub(super) wills: Vec<(PendingWill, State)>,
}

/// Reads the durable sessions from the state store.
pub(super) fn recover(engine: &Engine) -> Recovered {
    recover_from(|namespace| engine.state_entries(namespace), engine.now())
}

/// Reads the durable sessions from the entries of each namespace.
pub(super) fn recover_from<V: AsRef<[u8]>>(
    entries: impl Fn(&str) -> Vec<(Vec<u8>, V)>,
    now: Timestamp,
) -> Recovered {
    let mut sessions: HashMap<String, Session> = HashMap::default();
    let (mut orphans, mut moved) = (Vec::new(), Vec::new());
    let mut orphan =
        |namespace: &str, key| orphans.push(State { namespace: namespace.into(), key, value: None });
    for (key, value) in entries(SESSIONS) {
        let session = std::str::from_utf8(&key).ok().and_then(|client| read_session(client, value.as_ref()));
        match session {
            Some(session) => {
                if !session.subscriptions.is_empty() {
                    moved.push(session.record());
                    moved.extend(
                        session.subscriptions.keys().map(|filter| session.subscription_record(filter)),
                    );
                }
                drop(sessions.insert(session.client_id.clone(), session));
            }
            None => orphan(SESSIONS, key),
        }
    }
    for namespace in [OWNERS, TENANTS] {
        for (key, value) in entries(namespace) {
            let session = std::str::from_utf8(&key).ok().and_then(|client| sessions.get_mut(client));
            match (session, std::str::from_utf8(value.as_ref())) {
                (Some(session), Ok(owner)) if namespace == OWNERS => session.owner = Some(owner.to_owned()),
                (Some(session), Ok(tenant)) => session.tenant = Some(tenant.into()),
                _ => orphan(namespace, key),
            }
        }
    }
    for (key, value) in entries(PRINCIPALS) {
        let session = std::str::from_utf8(&key).ok().and_then(|client| sessions.get_mut(client));
        match (session, Principal::from_record(value.as_ref())) {
            (Some(session), Some(principal)) => session.principal = Some(Arc::new(principal)),
            _ => orphan(PRINCIPALS, key),
        }
    }
    // Keys sort by client and number, so each queue comes back in its order. Whether there was room was asked before.
    let readers: [(&str, Reader); 8] = [
        (SUBSCRIPTIONS, |session, filter, value, _| {
            let (_, subscription, _) = Subscription::decode(value).filter(|(_, _, rest)| rest.is_empty())?;
            session.subscriptions.insert(std::str::from_utf8(filter).ok()?.into(), subscription);
            Some(())
        }),
        (RECEIVED, |session, id, _, _| {
            session.received.insert(u16::from_be_bytes(id.try_into().ok()?));
            Some(())
        }),
        (QUEUE, |session, number, value, now| {
            session.push(read_delivery(u64::from_be_bytes(number.try_into().ok()?), value, now)?);
            Some(())
        }),
        (BACKLOG, |session, number, value, _| {
            let number = u64::from_be_bytes(number.try_into().ok()?);
            session.backlog.restore(number, value).then_some(())
        }),
        (KEPT, |session, seq, value, _| {
            let seq = SeqNo(u64::from_be_bytes(seq.try_into().ok()?));
            session.backlog.has(seq).then(|| session.kept.insert(seq, value.len() as u64))
        }),
        (DROPS, |session, _, value, _| {
            session.drops = Drops::decode(value)?;
            session.drops_recorded = session.drops;
            Some(())
        }),
        (IN_FLIGHT, |session, id, value, _| {
            session.go_on(u16::from_be_bytes(id.try_into().ok()?), Session::read_in_flight(value)?)
        }),
        (WILLS, |session, _, value, now| {
            session.will = Some(Box::new(PendingWill::decode(value, session.expiry, now)?));
            Some(())
        }),
    ];
    let mut wills = Vec::new();
    for (namespace, read) in readers {
        for (key, value) in entries(namespace) {
            let value = value.as_ref();
            let is_read = match owner(&mut sessions, &key) {
                Some((session, rest)) => read(session, rest, value, now).is_some(),
                // Its session ended with the server; earlier builds kept those of durable sessions only.
                None if namespace == WILLS => {
                    match PendingWill::decode(value, 0, now).filter(|will| will.principal.is_some()) {
                        Some(will) => {
                            wills.push((will, State { namespace: WILLS.into(), key, value: None }));
                            continue;
                        }
                        None => false,
                    }
                }
                None => false,
            };
            if !is_read {
                orphan(namespace, key);
            }
        }
    }
    Recovered { sessions: sessions.into_values().collect(), orphans, moved, wills }
}

/// Gives a session one of its records: the rest of its key, its value, and the time. `None` where it means nothing.
type Reader = fn(&mut Session, &[u8], &[u8], Timestamp) -> Option<()>;

impl Session {
    /// A QoS 2 exchange that was under way when the server ended goes on under its packet id.
    fn go_on(&mut self, packet_id: u16, recorded: Recorded) -> Option<()> {
        let in_flight = match recorded {
            Recorded::Released(number) => InFlight::Released(number),
            Recorded::Sent(number) => {
                let place = self.queue.iter().position(|delivery| delivery.number == number)?;
                let delivery = self.queue.remove(place)?;
                self.left(&delivery);
                self.flies(&delivery);
                InFlight::Sent(delivery)
            }
            Recorded::InLog(number, seq) => {
                let manner = self.backlog.resume(seq)?;
                InFlight::Unread { number, seq, manner }
            }
        };
        self.in_flight.insert(packet_id, in_flight);
        // An id whose exchange ends without the client's word is not used again soon: the client may hold its message.
        self.next_packet_id = self.next_packet_id.max(packet_id.checked_add(1).unwrap_or(1));
        Some(())
    }
}

/// The session that a record belongs to, and the rest of its key.
fn owner<'s, 'k>(
    sessions: &'s mut HashMap<String, Session>,
    key: &'k [u8],
) -> Option<(&'s mut Session, &'k [u8])> {
    let end = key.iter().position(|byte| *byte == 0)?;
    let (client, rest) = key.split_at(end);
    let (incarnation, rest) = rest.get(1..)?.split_first_chunk::<8>()?;
    let session = sessions.get_mut(std::str::from_utf8(client).ok()?)?;
    (session.incarnation == u64::from_be_bytes(*incarnation)).then_some((session, rest))
}

fn read_session(client_id: &str, value: &[u8]) -> Option<Session> {
    let (expiry, rest) = value.split_first_chunk::<4>()?;
    let (incarnation, mut rest) = rest.split_first_chunk::<8>()?;
    let mut session = Session::new(client_id, u64::from_le_bytes(*incarnation));
    session.expiry = u32::from_le_bytes(*expiry);
    session.left_at = Some(0);
    while !rest.is_empty() {
        let (filter, subscription, behind) = Subscription::decode(rest)?;
        session.tells_seq |= rest.first().is_some_and(|flags| flags & TELLS_SEQ != 0);
        if filter.is_empty() {
            // It says only that.
        } else if filter.len() > FILTER_BYTES {
            let bytes = filter.len();
            tracing::warn!(
                client = client_id,
                bytes,
                "a subscription ends: its filter may have {FILTER_BYTES} bytes"
            );
        } else {
            session.subscriptions.insert(filter.into(), subscription);
        }
        rest = behind;
    }
    Some(session)
}

fn read_delivery(number: u64, value: &[u8], now: Timestamp) -> Option<Delivery> {
    let (flags, rest) = value.split_first()?;
    let qos = QoS::from_bits(flags & 3).ok()?;
    let (seq, rest) = match flags & NUMBERED {
        0 => (SeqNo(0), rest),
        _ => rest.split_first_chunk::<8>().map(|(seq, rest)| (SeqNo(u64::from_le_bytes(*seq)), rest))?,
    };
    let (via, message) = if flags & VIA == 0 { (Via::default(), rest) } else { Via::decode(rest)? };
    let (stored, message) = (Stored::Copy(number), Arc::new(Message::decode(message, now)?));
    Some(Delivery { number, stored, seq, message, qos, retain: flags & 4 != 0, via })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// What is left of records that were written one after the other.
    fn written(records: &[State]) -> BTreeMap<(String, Vec<u8>), Vec<u8>> {
        let mut kept = BTreeMap::new();
        for State { namespace, key, value } in records.iter().cloned() {
            match value {
                Some(value) => drop(kept.insert((namespace, key), value)),
                None => drop(kept.remove(&(namespace, key))),
            }
        }
        kept
    }

    fn recover_of(kept: &BTreeMap<(String, Vec<u8>), Vec<u8>>) -> Recovered {
        let entries = |namespace: &str| {
            let found = kept.iter().filter(|((of, _), _)| of == namespace);
            found.map(|((_, key), value)| (key.clone(), value.clone())).collect()
        };
        recover_from(entries, Timestamp::from_nanos(0))
    }

    #[test]
    fn the_records_read_back() {
        let mut session = Session::new("c", 1);
        session.expiry = 60;
        let plain =
            Subscription { qos: QoS::AtLeastOnce, no_local: true, retain_as_published: false, identifier: 0 };
        session.subscriptions.insert("a/+".into(), plain);
        session.subscriptions.insert("$share/g/a".into(), Subscription { identifier: 300, ..plain });
        let mut records = vec![session.record()];
        records.extend(session.subscriptions.keys().map(|filter| session.subscription_record(filter)));
        let found = recover_of(&written(&records));
        assert_eq!((found.orphans, found.moved), (vec![], vec![]));
        assert_eq!((found.sessions[0].incarnation, found.sessions[0].expiry), (1, 60));
        assert_eq!(found.sessions[0].subscriptions, session.subscriptions);
        assert!(!found.sessions[0].tells_seq);
        session.tells_seq = true;
        records.push(session.record());
        let found = recover_of(&written(&records));
        assert!(found.sessions[0].tells_seq && found.moved.is_empty());
        assert_eq!(found.sessions[0].subscriptions, session.subscriptions);
        // One that ends takes its own record alone; the end of the session takes all.
        session.subscriptions.remove("a/+");
        records.push(session.subscription_record("a/+"));
        let found = recover_of(&written(&records));
        assert_eq!(found.sessions[0].subscriptions, session.subscriptions);
        records.extend(session.forget());
        assert_eq!(written(&records), BTreeMap::new());
    }

    #[test]
    fn subscriptions_of_an_earlier_build_are_moved_once() {
        // As it was written before each subscription had a record, and before there were identifiers.
        let old = [&60_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &[5, 3, 0], b"a/+"].concat();
        let old = State { namespace: SESSIONS.into(), key: b"c".to_vec(), value: Some(old) };
        let plain =
            Subscription { qos: QoS::AtLeastOnce, no_local: true, retain_as_published: false, identifier: 0 };
        let found = recover_of(&written(std::slice::from_ref(&old)));
        assert_eq!(found.sessions[0].subscriptions["a/+"], plain);
        let again = recover_of(&written(&[vec![old], found.moved].concat()));
        assert_eq!(again.sessions[0].subscriptions, found.sessions[0].subscriptions);
        assert_eq!((again.orphans, again.moved), (vec![], vec![]));
    }

    #[test]
    fn owner_and_tenant_read_back_and_go_with_the_session() {
        let mut session = Session::new("c", 1);
        session.expiry = 60;
        session.owner = Some("user:anna".into());
        session.tenant = Some("acme".into());
        let kept = [session.record(), session.owner_record(), session.tenant_record()];
        let entries = |namespace: &str| -> Vec<(Vec<u8>, Vec<u8>)> {
            let of = kept.iter().filter(|record| *record.namespace == *namespace);
            of.map(|record| (record.key.clone(), record.value.clone().unwrap())).collect()
        };
        let recovered = recover_from(entries, Timestamp::from_nanos(0));
        let again = &recovered.sessions[0];
        assert_eq!((again.owner.as_deref(), again.tenant.as_deref()), (Some("user:anna"), Some("acme")));
        let gone = session.forget();
        let is_forgotten =
            |record: &State| gone.iter().any(|g| (&g.namespace, &g.key) == (&record.namespace, &record.key));
        assert!(kept.iter().all(is_forgotten));
        // Without its session a record means nothing.
        let alone = |namespace: &str| if namespace == SESSIONS { Vec::new() } else { entries(namespace) };
        assert_eq!(recover_from(alone, Timestamp::from_nanos(0)).orphans.len(), 2);
    }

    #[test]
    fn a_delivery_reads_back_with_what_it_came_by() {
        let session = Session::new("c", 1);
        let now = Timestamp::from_nanos(0);
        let plain = Delivery::copy(7, QoS::AtLeastOnce);
        let shared = Via { group: Some("$share/g/a".into()), ..Via::identifier(3) };
        for (via, seq, read) in [
            (Via::default(), SeqNo(9), SeqNo(9)),
            (shared.clone(), SeqNo(9), SeqNo(9)),
            (shared, UNNUMBERED, SeqNo(0)),
        ] {
            let delivery = Delivery { via: via.clone(), seq, ..plain.clone() };
            let again = read_delivery(7, &session.queue_record(&delivery).value.unwrap(), now).unwrap();
            assert_eq!((again.via, again.message, again.seq), (via, delivery.message, read));
        }
    }
}
