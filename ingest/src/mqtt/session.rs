//! What the server keeps of a client: subscriptions, messages in flight and waiting, QoS 2 numbers.
//!
//! # Invariants
//! - No socket and no clock here: a session is told what happened and says what to send and what to keep.
//! - Everything of a durable session that an acknowledgement promises is a `State` record of the same commit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use foldhash::HashMap;
use sonde_engine::{Engine, State, Timestamp};
use sonde_proto::mqtt::QoS;

use super::exchange::{IN_FLIGHT, InFlight, RECEIVED};
use super::message::Message;
use super::via::Via;
use super::will::{PendingWill, WILLS};
use crate::limits::{QUEUED_BYTES, QUEUED_MESSAGES, SEND_MAXIMUM};

const SESSIONS: &str = "mqtt.session";
const QUEUE: &str = "mqtt.queue";
const OWNERS: &str = "mqtt.owner";

/// In the flags of a subscription's record: an identifier follows the filter.
const IDENTIFIED: u8 = 16;
/// In the flags of a delivery's record: a `Via` precedes the message.
const VIA: u8 = 8;

/// How a client subscribed to a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) qos: QoS,
    pub(super) no_local: bool,
    pub(super) retain_as_published: bool,
    /// The subscription identifier; 0 is none.
    pub(super) identifier: u32,
}

impl Subscription {
    /// `flags u8 | filter length u16 | filter`, and `identifier u32` where the flags say so; little endian.
    fn encode(self, filter: &str, out: &mut Vec<u8>) {
        let identified = if self.identifier == 0 { 0 } else { IDENTIFIED };
        let flags = u8::from(self.no_local) << 2 | u8::from(self.retain_as_published) << 3 | identified;
        out.push(self.qos as u8 | flags);
        out.extend_from_slice(&(filter.len() as u16).to_le_bytes());
        out.extend_from_slice(filter.as_bytes());
        if self.identifier != 0 {
            out.extend_from_slice(&self.identifier.to_le_bytes());
        }
    }

    /// Reads what `encode` wrote: the filter, how it was subscribed to, and what stands behind.
    fn decode(bytes: &[u8]) -> Option<(&str, Self, &[u8])> {
        let (flags, rest) = bytes.split_first()?;
        let (len, rest) = rest.split_first_chunk::<2>()?;
        let (filter, rest) = rest.split_at_checked(u16::from_le_bytes(*len).into())?;
        let (identifier, rest) = match flags & IDENTIFIED {
            0 => (0, rest),
            _ => rest.split_first_chunk::<4>().map(|(bytes, rest)| (u32::from_le_bytes(*bytes), rest))?,
        };
        let subscription = Self {
            qos: QoS::from_bits(flags & 3).ok()?,
            no_local: flags & 4 != 0,
            retain_as_published: flags & 8 != 0,
            identifier,
        };
        Some((std::str::from_utf8(filter).ok()?, subscription, rest))
    }
}

/// Why a message did not get to its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// Too much waited for the session.
    QueueFull,
    /// It is larger than the client takes.
    TooLarge,
    /// QoS 0, and the client did not read.
    Slow,
}

/// Messages that a session did not get, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drops {
    pub(crate) queue_full: u64,
    pub(crate) too_large: u64,
    pub(crate) slow: u64,
}

impl Drops {
    pub(crate) fn total(&self) -> u64 {
        self.queue_full + self.too_large + self.slow
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
    /// The subscriptions that it comes by.
    pub(super) via: Via,
}

/// A client's session.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) client_id: String,
    /// Which of the sessions that this client has had; part of the keys of its records, so that what an earlier one
    /// left behind is never taken for its own.
    incarnation: u64,
    /// As whom its client was recognised; nobody else can have it. `None` where nobody knows.
    pub(super) owner: Option<String>,
    /// Seconds that it is kept after its connection; 0 ends it with the connection.
    pub(super) expiry: u32,
    pub(super) connection: Option<usize>,
    /// When the connection ended, in seconds of the worker's clock.
    pub(super) left_at: Option<u64>,
    /// When it began.
    pub(super) connected_at: Option<Timestamp>,
    pub(super) subscriptions: HashMap<Box<str>, Subscription>,
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
    /// Messages that the client did not get.
    pub(super) drops: Drops,
}

impl Session {
    pub(super) fn new(client_id: &str, incarnation: u64) -> Self {
        Self {
            client_id: client_id.to_owned(),
            incarnation,
            owner: None,
            expiry: 0,
            connection: None,
            left_at: None,
            connected_at: None,
            subscriptions: HashMap::default(),
            received: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            next_packet_id: 1,
            will: None,
            send_maximum: SEND_MAXIMUM,
            drops: Drops::default(),
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
            subscription.encode(filter, &mut value);
        }
        let value = self.is_durable().then_some(value);
        State { namespace: SESSIONS.into(), key: self.client_id.as_bytes().to_vec(), value }
    }

    /// The record of whose it is.
    pub(super) fn owner_record(&self) -> State {
        let value = self.owner.as_ref().map(|owner| owner.as_bytes().to_vec());
        State { namespace: OWNERS.into(), key: self.client_id.as_bytes().to_vec(), value }
    }

    /// Takes out what waits and may not be read, in flight too where no connection has it. Returns it.
    pub(super) fn keep_readable(&mut self, may_read: impl Fn(&str) -> bool) -> Vec<Delivery> {
        let mut withdrawn = Vec::new();
        let mut bytes = 0;
        self.queue.retain(|delivery| {
            let readable = may_read(&delivery.message.topic);
            if !readable {
                withdrawn.push(delivery.clone());
                bytes += delivery.message.bytes();
            }
            readable
        });
        self.queue_bytes -= bytes;
        if self.connection.is_none() {
            self.in_flight.retain(|_, in_flight| match in_flight {
                // An exchange of QoS 2 that has begun is brought to its end.
                InFlight::Sent(delivery)
                    if delivery.qos == QoS::AtLeastOnce && !may_read(&delivery.message.topic) =>
                {
                    withdrawn.push(delivery.clone());
                    false
                }
                _ => true,
            });
        }
        withdrawn
    }

    /// The records that remove everything of the session.
    pub(super) fn forget(&self) -> Vec<State> {
        let gone = |namespace: &str, key| State { namespace: namespace.into(), key, value: None };
        let client = self.client_id.as_bytes().to_vec();
        let mut records = vec![gone(SESSIONS, client.clone()), gone(OWNERS, client)];
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
        let via = if delivery.via.is_plain() { 0 } else { VIA };
        let mut value = vec![delivery.qos as u8 | u8::from(delivery.retain) << 2 | via];
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

    /// Appends a message to what waits; the message comes back where the queue is full.
    pub(super) fn enqueue(&mut self, delivery: Delivery) -> Result<(), Delivery> {
        if !self.has_room(&delivery.message) {
            self.count_dropped(Dropped::QueueFull);
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
    pub(super) fn count_dropped(&mut self, why: Dropped) {
        *match why {
            Dropped::QueueFull => &mut self.drops.queue_full,
            Dropped::TooLarge => &mut self.drops.too_large,
            Dropped::Slow => &mut self.drops.slow,
        } += 1;
        let dropped = self.drops.total();
        if dropped.is_power_of_two() {
            tracing::warn!(
                client = self.client_id,
                dropped,
                ?why,
                "messages for an MQTT client were dropped"
            );
        }
    }

    /// Bytes of the messages that wait.
    pub(super) fn queue_bytes(&self) -> usize {
        self.queue_bytes
    }

    /// The messages of shared subscriptions that another member may get when this session ends, in their order: those
    /// that were not sent, and those of QoS 1 in flight. QoS 2 in flight must not go to another ([MQTT-4.8.2-5]).
    pub(super) fn shared_messages(&self) -> Vec<Delivery> {
        let is_shared = |delivery: &Delivery| delivery.via.group.is_some();
        let sent = self.in_flight.values().filter_map(|in_flight| match in_flight {
            InFlight::Starting(delivery) => Some(delivery),
            InFlight::Sent(delivery) if delivery.qos == QoS::AtLeastOnce => Some(delivery),
            InFlight::Sent(_) | InFlight::Released(_) => None,
        });
        let mut shared: Vec<Delivery> =
            sent.chain(&self.queue).filter(|delivery| is_shared(delivery)).cloned().collect();
        shared.sort_unstable_by_key(|delivery| delivery.number);
        shared
    }

    /// Whether the queue takes another message of this size.
    pub(super) fn has_room(&self, message: &Message) -> bool {
        self.queue.len() < QUEUED_MESSAGES && self.queue_bytes + message.bytes() <= QUEUED_BYTES
    }

    /// Whether nothing waits, and another message could be sent.
    pub(super) fn is_caught_up(&self) -> bool {
        self.queue.is_empty() && self.in_flight.len() < self.send_maximum
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
    let mut sessions: HashMap<String, Session> = HashMap::default();
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
    for (key, value) in entries(OWNERS) {
        let session = std::str::from_utf8(&key).ok().and_then(|client| sessions.get_mut(client));
        match (session, std::str::from_utf8(value.as_ref())) {
            (Some(session), Ok(owner)) => session.owner = Some(owner.to_owned()),
            _ => orphan(OWNERS, key),
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
    while !rest.is_empty() {
        let (filter, subscription, behind) = Subscription::decode(rest)?;
        session.subscriptions.insert(filter.into(), subscription);
        rest = behind;
    }
    Some(session)
}

fn read_delivery(number: u64, value: &[u8], now: Timestamp) -> Option<Delivery> {
    let (flags, rest) = value.split_first()?;
    let qos = QoS::from_bits(flags & 3).ok()?;
    let (via, message) = if flags & VIA == 0 { (Via::default(), rest) } else { Via::decode(rest)? };
    Some(Delivery { number, message: Message::decode(message, now)?, qos, retain: flags & 4 != 0, via })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    fn delivery(number: u64, qos: QoS) -> Delivery {
        let message = Message::new("t", b"x", qos, false);
        Delivery { number, message, qos, retain: false, via: Via::default() }
    }

    #[test]
    fn what_may_not_be_read_is_taken_out() {
        let (mut session, now) = (Session::new("c", 1), Timestamp::from_nanos(0));
        for number in 0..4 {
            let topic = if number % 2 == 0 { "open" } else { "secret" };
            let message = Message::new(topic, b"x", QoS::AtLeastOnce, false);
            let delivery = Delivery { message, ..delivery(number, QoS::AtLeastOnce) };
            assert!(session.enqueue(delivery).is_ok());
        }
        session.next_to_send(now, true).unwrap();
        session.next_to_send(now, true).unwrap();
        let withdrawn = session.keep_readable(|topic| topic != "secret");
        assert_eq!(withdrawn.iter().map(|delivery| delivery.number).collect::<Vec<_>>(), [3, 1]);
        assert_eq!((session.queue.len(), session.in_flight.len()), (1, 1));
        assert_eq!(session.queue_bytes, session.queue[0].message.bytes());
    }

    #[test]
    fn the_record_reads_back() {
        let mut session = Session::new("c", 1);
        session.expiry = 60;
        let plain =
            Subscription { qos: QoS::AtLeastOnce, no_local: true, retain_as_published: false, identifier: 0 };
        session.subscriptions.insert("a/+".into(), plain);
        session.subscriptions.insert("$share/g/a".into(), Subscription { identifier: 300, ..plain });
        let again = read_session("c", &session.record().value.unwrap()).unwrap();
        assert_eq!((again.incarnation, again.expiry), (1, 60));
        assert_eq!(again.subscriptions, session.subscriptions);
        // As it was written before there were identifiers.
        let old = [&60_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &[5, 3, 0], b"a/+"].concat();
        assert_eq!(read_session("c", &old).unwrap().subscriptions["a/+"], plain);
    }

    #[test]
    fn a_delivery_reads_back_with_what_it_came_by() {
        let session = Session::new("c", 1);
        let now = Timestamp::from_nanos(0);
        let plain = delivery(7, QoS::AtLeastOnce);
        let shared = Via { group: Some("$share/g/a".into()), ..Via::identifier(3) };
        for via in [Via::default(), shared] {
            let delivery = Delivery { via: via.clone(), ..plain.clone() };
            let again = read_delivery(7, &session.queue_record(&delivery).value.unwrap(), now).unwrap();
            assert_eq!((again.via, again.message), (via, delivery.message));
        }
    }

    #[test]
    fn others_get_what_the_standard_lets_them_have() {
        let mut session = Session::new("c", 1);
        session.send_maximum = 3;
        let shared = Via { group: Some("$share/g/a".into()), identifiers: None };
        for (number, qos) in
            (0..).zip([QoS::AtLeastOnce, QoS::ExactlyOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
        {
            let via = if number == 2 { Via::default() } else { shared.clone() };
            assert!(session.enqueue(Delivery { via, ..delivery(number, qos) }).is_ok());
        }
        assert_eq!(std::iter::from_fn(|| session.next_to_send(Timestamp::from_nanos(0), true)).count(), 3);
        let numbers: Vec<u64> = session.shared_messages().iter().map(|delivery| delivery.number).collect();
        assert_eq!(numbers, [0, 3], "not what QoS 2 has in flight, not what was not shared");
    }
}
