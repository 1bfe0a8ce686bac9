//! What the server keeps of a client: subscriptions, messages in flight and waiting, QoS 2 numbers.
//!
//! # Invariants
//! - No socket and no clock here: a session is told what happened and says what to send and what to keep.
//! - Everything of a durable session that an acknowledgement promises is a `State` record of the same commit.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use sonde_engine::{Engine, State, Timestamp};
use sonde_proto::mqtt::QoS;

use super::exchange::{IN_FLIGHT, InFlight, RECEIVED};
use super::message::Message;
use super::will::{PendingWill, WILLS};
use crate::limits::{QUEUED_BYTES, QUEUED_MESSAGES, SEND_MAXIMUM};

const SESSIONS: &str = "mqtt.session";
const QUEUE: &str = "mqtt.queue";

/// How a client subscribed to a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) qos: QoS,
    pub(super) no_local: bool,
    pub(super) retain_as_published: bool,
}

impl Subscription {
    fn to_byte(self) -> u8 {
        self.qos as u8 | u8::from(self.no_local) << 2 | u8::from(self.retain_as_published) << 3
    }

    fn from_byte(byte: u8) -> Option<Self> {
        let qos = QoS::from_bits(byte & 3).ok()?;
        Some(Self { qos, no_local: byte & 4 != 0, retain_as_published: byte & 8 != 0 })
    }
}

/// A message for this session.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    /// Its place in the session's order; the key of its state record.
    pub(super) number: u64,
    pub(super) message: Message,
    /// The QoS it is sent with: the smaller of the message's and the subscription's.
    pub(super) qos: QoS,
    /// The retain flag it is sent with.
    pub(super) retain: bool,
}

/// A client's session.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) client_id: String,
    /// Which of the sessions that this client has had; part of the keys of its records, so that what an earlier one
    /// left behind is never taken for its own.
    incarnation: u64,
    /// Seconds that it is kept after its connection; 0 ends it with the connection.
    pub(super) expiry: u32,
    pub(super) connection: Option<usize>,
    /// When the connection ended, in seconds of the worker's clock.
    pub(super) left_at: Option<u64>,
    pub(super) subscriptions: HashMap<String, Subscription>,
    /// QoS 2 numbers that were received and not released.
    pub(super) received: BTreeSet<u16>,
    pub(super) in_flight: BTreeMap<u16, InFlight>,
    pub(super) queue: VecDeque<Delivery>,
    queue_bytes: usize,
    pub(super) next_packet_id: u16,
    /// The will of the connection that broke, until its delay is over.
    pub(super) will: Option<Box<PendingWill>>,
    /// QoS 1 and 2 messages that the client takes at once.
    pub(super) send_maximum: usize,
    /// Messages that were dropped because the queue was full.
    pub(super) dropped: u64,
}

impl Session {
    pub(super) fn new(client_id: &str, incarnation: u64) -> Self {
        Self {
            client_id: client_id.to_owned(),
            incarnation,
            expiry: 0,
            connection: None,
            left_at: None,
            subscriptions: HashMap::new(),
            received: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            next_packet_id: 1,
            will: None,
            send_maximum: SEND_MAXIMUM,
            dropped: 0,
        }
    }

    /// Whether it outlives its connection.
    pub(super) fn is_durable(&self) -> bool {
        self.expiry > 0
    }

    /// The key of a record of this session: `client id | 0 | incarnation u64 | rest`.
    pub(super) fn key(&self, rest: &[u8]) -> Vec<u8> {
        let mut key = self.client_id.as_bytes().to_vec();
        key.push(0);
        key.extend_from_slice(&self.incarnation.to_be_bytes());
        key.extend_from_slice(rest);
        key
    }

    /// The record of expiry and subscriptions; `None` as value where the session is not durable.
    pub(super) fn record(&self) -> State {
        let mut value = self.expiry.to_le_bytes().to_vec();
        value.extend_from_slice(&self.incarnation.to_le_bytes());
        for (filter, subscription) in &self.subscriptions {
            value.push(subscription.to_byte());
            value.extend_from_slice(&(filter.len() as u16).to_le_bytes());
            value.extend_from_slice(filter.as_bytes());
        }
        let value = self.is_durable().then_some(value);
        State { namespace: SESSIONS.into(), key: self.client_id.as_bytes().to_vec(), value }
    }

    /// The records that remove everything of the session.
    pub(super) fn forget(&self) -> Vec<State> {
        let key = self.client_id.as_bytes().to_vec();
        let mut records = vec![State { namespace: SESSIONS.into(), key, value: None }];
        records.extend(self.forget_exchanges());
        let sent = self.in_flight.values().map(InFlight::number);
        let waiting = self.queue.iter().map(|delivery| delivery.number);
        records.extend(sent.chain(waiting).map(|number| self.dequeue_record(number)));
        records.push(self.gone(WILLS, &[]));
        records
    }

    /// The record that removes one of this session's.
    pub(super) fn gone(&self, namespace: &str, rest: &[u8]) -> State {
        State { namespace: namespace.into(), key: self.key(rest), value: None }
    }

    /// The record of a delivery that must survive.
    pub(super) fn queue_record(&self, delivery: &Delivery) -> State {
        let mut value = vec![delivery.qos as u8 | u8::from(delivery.retain) << 2];
        value.extend_from_slice(&delivery.message.encode());
        State { namespace: QUEUE.into(), key: self.key(&delivery.number.to_be_bytes()), value: Some(value) }
    }

    /// The record that a delivery is done with.
    pub(super) fn dequeue_record(&self, number: u64) -> State {
        self.gone(QUEUE, &number.to_be_bytes())
    }

    /// Appends a message to what waits; the message comes back where the queue is full.
    pub(super) fn enqueue(&mut self, delivery: Delivery) -> Result<(), Delivery> {
        if !self.has_room(&delivery.message) {
            self.count_dropped();
            return Err(delivery);
        }
        self.append(delivery);
        Ok(())
    }

    fn append(&mut self, delivery: Delivery) {
        self.queue_bytes += delivery.message.bytes();
        self.queue.push_back(delivery);
    }

    /// Counts a message that the client will not get; said in the log ever more seldom.
    pub(super) fn count_dropped(&mut self) {
        self.dropped += 1;
        if self.dropped.is_power_of_two() {
            tracing::warn!(
                client = self.client_id,
                dropped = self.dropped,
                "messages for an MQTT client were dropped"
            );
        }
    }

    /// Whether the queue takes another message of this size.
    pub(super) fn has_room(&self, message: &Message) -> bool {
        self.queue.len() < QUEUED_MESSAGES && self.queue_bytes + message.bytes() <= QUEUED_BYTES
    }

    /// Takes the message that has waited longest out of the queue.
    pub(super) fn take_first(&mut self) -> Option<Delivery> {
        let delivery = self.queue.pop_front()?;
        self.queue_bytes -= delivery.message.bytes();
        Some(delivery)
    }

    /// Takes what has expired out of the queue.
    pub(super) fn take_expired(&mut self, now: Timestamp) -> Vec<Delivery> {
        let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.queue)
            .into_iter()
            .partition(|delivery| delivery.message.is_expired(now));
        self.queue = kept.into();
        self.queue_bytes -= gone.iter().map(|delivery| delivery.message.bytes()).sum::<usize>();
        gone
    }
}

/// What the state store has of sessions.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// The durable sessions, with everything that waits for them.
    pub(super) sessions: Vec<Session>,
    /// Removals of records whose session is gone.
    pub(super) orphans: Vec<State>,
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
    let mut sessions: HashMap<String, Session> = HashMap::new();
    let mut orphans = Vec::new();
    let mut orphan =
        |namespace: &str, key| orphans.push(State { namespace: namespace.into(), key, value: None });
    for (key, value) in entries(SESSIONS) {
        let session = std::str::from_utf8(&key).ok().and_then(|client| read_session(client, value.as_ref()));
        match session {
            Some(session) => drop(sessions.insert(session.client_id.clone(), session)),
            None => orphan(SESSIONS, key),
        }
    }
    // Keys sort by client and number, so each queue comes back in its order. Whether there was room was asked before.
    let readers: [(&str, Reader); 4] = [
        (RECEIVED, |session, id, _, _| {
            session.received.insert(u16::from_be_bytes(id.try_into().ok()?));
            Some(())
        }),
        (QUEUE, |session, number, value, now| {
            session.append(read_delivery(u64::from_be_bytes(number.try_into().ok()?), value, now)?);
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
    for (namespace, read) in readers {
        for (key, value) in entries(namespace) {
            let found = owner(&mut sessions, &key);
            if found.and_then(|(session, rest)| read(session, rest, value.as_ref(), now)).is_none() {
                orphan(namespace, key);
            }
        }
    }
    Recovered { sessions: sessions.into_values().collect(), orphans }
}

/// Gives a session one of its records: the rest of its key, its value, and the time. `None` where it means nothing.
type Reader = fn(&mut Session, &[u8], &[u8], Timestamp) -> Option<()>;

impl Session {
    /// A QoS 2 exchange that was under way when the server ended goes on under its packet id.
    fn go_on(&mut self, packet_id: u16, (released, number): (bool, u64)) -> Option<()> {
        let in_flight = if released {
            InFlight::Released(number)
        } else {
            let place = self.queue.iter().position(|delivery| delivery.number == number)?;
            let delivery = self.queue.remove(place)?;
            self.queue_bytes -= delivery.message.bytes();
            InFlight::Sent(delivery)
        };
        self.in_flight.insert(packet_id, in_flight);
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
    while let Some((byte, behind)) = rest.split_first() {
        let (len, behind) = behind.split_first_chunk::<2>()?;
        let (filter, behind) = behind.split_at_checked(u16::from_le_bytes(*len).into())?;
        let filter = std::str::from_utf8(filter).ok()?.to_owned();
        session.subscriptions.insert(filter, Subscription::from_byte(*byte)?);
        rest = behind;
    }
    Some(session)
}

fn read_delivery(number: u64, value: &[u8], now: Timestamp) -> Option<Delivery> {
    let (flags, message) = value.split_first()?;
    let qos = QoS::from_bits(flags & 3).ok()?;
    Some(Delivery { number, message: Message::decode(message, now)?, qos, retain: flags & 4 != 0 })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_record_reads_back() {
        let mut session = Session::new("c", 1);
        session.expiry = 60;
        let subscription = Subscription { qos: QoS::AtLeastOnce, no_local: true, retain_as_published: false };
        session.subscriptions.insert("a/+".into(), subscription);
        let again = read_session("c", &session.record().value.unwrap()).unwrap();
        assert_eq!((again.incarnation, again.expiry), (1, 60));
        assert_eq!(again.subscriptions, session.subscriptions);
    }
}
