//! What the server keeps of a client: subscriptions, messages in flight and waiting, QoS 2 numbers.
//!
//! # Invariants
//! - No socket and no clock here: a session is told what happened and says what to send and what to keep.
//! - Everything of a durable session that an acknowledgement promises is a `State` record of the same commit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use foldhash::HashMap;
use sonde_engine::{Engine, SeqNo, State, Timestamp};
use sonde_proto::mqtt::QoS;

use super::backlog::Backlog;
use super::exchange::{IN_FLIGHT, InFlight, RECEIVED, Recorded};
use super::message::Message;
use super::offline::{Dropped, Drops, QueueLimits};
use super::replay::Replay;
use super::subscribe::UNNUMBERED;
use super::tail::TailSink;
use super::via::Via;
use super::will::{PendingWill, WILLS};
use crate::limits::SEND_MAXIMUM;

const SESSIONS: &str = "mqtt.session";
/// Messages that wait as copies: those that come by a group or with subscription identifiers, retained ones, and those of
/// earlier builds.
const QUEUE: &str = "mqtt.queue";
/// Messages that wait in the log: see `backlog.rs`.
const BACKLOG: &str = "mqtt.backlog";
const OWNERS: &str = "mqtt.owner";

/// In the flags of a subscription's record: an identifier follows the filter.
const IDENTIFIED: u8 = 16;
/// The same: the session's client is told sequence numbers.
const TELLS_SEQ: u8 = 32;
/// In the flags of a delivery's record: a `Via` precedes the message.
const VIA: u8 = 8;
/// The same: its sequence number (u64, little endian) follows the flags; until the commit that in its batch.
const NUMBERED: u8 = 16;
/// Where it stands.
pub(super) const SEQ_AT: usize = 1;

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
    /// One without options or identifier.
    pub(super) fn plain(qos: QoS) -> Self {
        Self { qos, no_local: false, retain_as_published: false, identifier: 0 }
    }

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

/// Where a delivery waits, so that it survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stored {
    /// Nowhere but in memory.
    Nowhere,
    /// As a copy under this number.
    Copy(u64),
    /// In the log, until its commit under its number in the turn's batch.
    Log(SeqNo),
}

/// A message for this session.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    /// Its place in the session's order; the key of its state record.
    pub(super) number: u64,
    /// What keeps it.
    pub(super) stored: Stored,
    /// Its sequence number in the log, until its commit that in the turn's batch; 0 where nothing stores it.
    pub(super) seq: SeqNo,
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
    /// The reader, of a session that is none of MQTT.
    pub(super) tail: Option<TailSink>,
    /// The replay, of a session that stands for one.
    pub(super) replay: Option<Replay>,
    /// Whether the client is told the sequence numbers of messages.
    pub(super) tells_seq: bool,
    /// When the connection ended, in seconds of the worker's clock.
    pub(super) left_at: Option<u64>,
    /// When it began.
    pub(super) connected_at: Option<Timestamp>,
    pub(super) subscriptions: HashMap<Box<str>, Subscription>,
    /// QoS 2 numbers that were received and not released.
    pub(super) received: BTreeSet<u16>,
    pub(super) in_flight: BTreeMap<u16, InFlight>,
    /// What is to be sent next; of what waits in the log, the part that was read.
    pub(super) queue: VecDeque<Delivery>,
    /// Messages of the queue that are not in the backlog, and their bytes.
    beside: usize,
    beside_bytes: usize,
    /// What waits in the log.
    pub(super) backlog: Backlog,
    /// Whether the present turn knows that the backlog has something to record.
    pub(super) noted: bool,
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
            tail: None,
            replay: None,
            tells_seq: false,
            left_at: None,
            connected_at: None,
            subscriptions: HashMap::default(),
            received: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            queue: VecDeque::new(),
            beside: 0,
            beside_bytes: 0,
            backlog: Backlog::default(),
            noted: false,
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

    /// Whether somebody takes its messages now: its client, or the reader that it stands for.
    pub(super) fn is_here(&self) -> bool {
        self.connection.is_some() || self.tail.is_some() || self.replay.is_some()
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
            let at = value.len();
            subscription.encode(filter, &mut value);
            if let Some(flags) = value.get_mut(at).filter(|_| self.tells_seq) {
                *flags |= TELLS_SEQ;
            }
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
        let mut withdrawn = self.take_where(|delivery| !may_read(&delivery.message.topic));
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
        let sent = self.in_flight.values().filter_map(InFlight::stored);
        let waiting = self.queue.iter().map(|delivery| delivery.stored);
        let copies = sent.chain(waiting).filter_map(|stored| match stored {
            Stored::Copy(number) => Some(number),
            Stored::Nowhere | Stored::Log(_) => None,
        });
        records.extend(copies.map(|number| self.dequeue_record(number)));
        records.extend(self.backlog.records().map(|number| self.backlog_record(number, None)));
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

    /// The record of a block of what waits in the log.
    pub(super) fn backlog_record(&self, number: u64, value: Option<Vec<u8>>) -> State {
        State { namespace: BACKLOG.into(), key: self.key(&number.to_be_bytes()), value }
    }

    /// Appends a message that is not in the backlog to what waits; what keeps it comes back where that is too much.
    pub(super) fn enqueue(&mut self, delivery: Delivery, limits: &QueueLimits) -> Result<(), Stored> {
        if self.is_full(delivery.message.bytes() as u64, limits) {
            self.count_dropped(Dropped::QueueFull, 1);
            return Err(delivery.stored);
        }
        self.push(delivery);
        Ok(())
    }

    /// The same without a limit, and of messages of the backlog.
    pub(super) fn push(&mut self, delivery: Delivery) {
        if !matches!(delivery.stored, Stored::Log(_)) {
            self.beside += 1;
            self.beside_bytes += delivery.message.bytes();
        }
        self.queue.push_back(delivery);
    }

    /// A delivery has left the queue.
    fn left(&mut self, delivery: &Delivery) {
        if !matches!(delivery.stored, Stored::Log(_)) {
            self.beside -= 1;
            self.beside_bytes -= delivery.message.bytes();
        }
    }

    /// Takes what is meant out of the queue.
    pub(super) fn take_where(&mut self, is_meant: impl Fn(&Delivery) -> bool) -> Vec<Delivery> {
        let (taken, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.queue).into_iter().partition(is_meant);
        self.queue = kept.into();
        taken.iter().for_each(|delivery| self.left(delivery));
        taken
    }

    /// Counts messages that the client will not get; said in the log ever more seldom.
    pub(super) fn count_dropped(&mut self, why: Dropped, count: u64) {
        let before = self.drops.total();
        self.drops.count(why, count);
        let dropped = self.drops.total();
        if dropped.checked_ilog2() > before.checked_ilog2() {
            tracing::warn!(
                client = self.client_id,
                dropped,
                ?why,
                "messages for an MQTT client were dropped"
            );
        }
    }

    /// Messages of the queue that are not in the backlog, and their bytes.
    pub(super) fn beside(&self) -> (u64, u64) {
        (self.beside as u64, self.beside_bytes as u64)
    }

    /// The messages of shared subscriptions that another member may get when this session ends, in their order: those
    /// that were not sent, and those of QoS 1 in flight. QoS 2 in flight must not go to another ([MQTT-4.8.2-5]).
    pub(super) fn shared_messages(&self) -> Vec<Delivery> {
        let is_shared = |delivery: &Delivery| delivery.via.group.is_some();
        let sent = self.in_flight.values().filter_map(|in_flight| match in_flight {
            InFlight::Starting(delivery) => Some(delivery),
            InFlight::Sent(delivery) if delivery.qos == QoS::AtLeastOnce => Some(delivery),
            InFlight::Unread { .. } | InFlight::Sent(_) | InFlight::Released(_) => None,
        });
        let mut shared: Vec<Delivery> =
            sent.chain(&self.queue).filter(|delivery| is_shared(delivery)).cloned().collect();
        shared.sort_unstable_by_key(|delivery| delivery.number);
        shared
    }

    /// Whether nothing waits, and another message could be sent.
    pub(super) fn is_caught_up(&self) -> bool {
        self.queue.is_empty() && !self.backlog.has_unfetched() && self.in_flight.len() < self.send_maximum
    }

    /// Takes the message that has waited longest out of the queue.
    pub(super) fn take_first(&mut self) -> Option<Delivery> {
        let delivery = self.queue.pop_front()?;
        self.left(&delivery);
        Some(delivery)
    }

    /// Takes what has expired out of the queue.
    pub(super) fn take_expired(&mut self, now: Timestamp) -> Vec<Delivery> {
        self.take_where(|delivery| delivery.message.is_expired(now))
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
    let readers: [(&str, Reader); 5] = [
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
    fn go_on(&mut self, packet_id: u16, recorded: Recorded) -> Option<()> {
        let in_flight = match recorded {
            Recorded::Released(number) => InFlight::Released(number),
            Recorded::Sent(number) => {
                let place = self.queue.iter().position(|delivery| delivery.number == number)?;
                let delivery = self.queue.remove(place)?;
                self.left(&delivery);
                InFlight::Sent(delivery)
            }
            Recorded::InLog(number, seq) => {
                let manner = self.backlog.resume(seq)?;
                InFlight::Unread { number, seq, manner }
            }
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
        session.tells_seq |= rest.first().is_some_and(|flags| flags & TELLS_SEQ != 0);
        session.subscriptions.insert(filter.into(), subscription);
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
    let (stored, message) = (Stored::Copy(number), Message::decode(message, now)?);
    Some(Delivery { number, stored, seq, message, qos, retain: flags & 4 != 0, via })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    fn delivery(number: u64, qos: QoS) -> Delivery {
        let message = Message::new("t", b"x", qos, false);
        let (stored, seq, via) = (Stored::Copy(number), SeqNo(0), Via::default());
        Delivery { number, stored, seq, message, qos, retain: false, via }
    }

    #[test]
    fn what_may_not_be_read_is_taken_out() {
        let (mut session, now) = (Session::new("c", 1), Timestamp::from_nanos(0));
        for number in 0..4 {
            let topic = if number % 2 == 0 { "open" } else { "secret" };
            let message = Message::new(topic, b"x", QoS::AtLeastOnce, false);
            let delivery = Delivery { message, ..delivery(number, QoS::AtLeastOnce) };
            session.push(delivery);
        }
        session.next_to_send(now, true).unwrap();
        session.next_to_send(now, true).unwrap();
        let withdrawn = session.keep_readable(|topic| topic != "secret");
        assert_eq!(withdrawn.iter().map(|delivery| delivery.number).collect::<Vec<_>>(), [3, 1]);
        assert_eq!((session.queue.len(), session.in_flight.len()), (1, 1));
        assert_eq!(session.beside(), (1, session.queue[0].message.bytes() as u64));
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
        assert_eq!((&again.subscriptions, again.tells_seq), (&session.subscriptions, false));
        session.tells_seq = true;
        let again = read_session("c", &session.record().value.unwrap()).unwrap();
        assert_eq!((again.subscriptions, again.tells_seq), (session.subscriptions, true));
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

    #[test]
    fn others_get_what_the_standard_lets_them_have() {
        let mut session = Session::new("c", 1);
        session.send_maximum = 3;
        let shared = Via { group: Some("$share/g/a".into()), identifiers: None };
        for (number, qos) in
            (0..).zip([QoS::AtLeastOnce, QoS::ExactlyOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
        {
            let via = if number == 2 { Via::default() } else { shared.clone() };
            session.push(Delivery { via, ..delivery(number, qos) });
        }
        assert_eq!(std::iter::from_fn(|| session.next_to_send(Timestamp::from_nanos(0), true)).count(), 3);
        let numbers: Vec<u64> = session.shared_messages().iter().map(|delivery| delivery.number).collect();
        assert_eq!(numbers, [0, 3], "not what QoS 2 has in flight, not what was not shared");
    }
}
