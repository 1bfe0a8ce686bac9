//! What the server keeps of a client: subscriptions, messages in flight and waiting, QoS 2 numbers.
//!
//! # Invariants
//! - No socket and no clock here: a session is told what happened and says what to send and what to keep.
//! - Everything of a durable session that an acknowledgement promises is a `State` record (`records.rs`) of the same commit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use foldhash::HashMap;
use sonde_access::Principal;
use sonde_engine::{SeqNo, State, Timestamp};
use sonde_proto::mqtt::QoS;

use super::backlog::Backlog;
use super::budget::{Room, Tally};
use super::exchange::InFlight;
use super::kept::Kept;
use super::message::Message;
use super::quota::{Dropped, Drops};
use super::replay::Replay;
use super::search::Search;
use super::shared::shared_filter;
use super::subscription::Subscription;
use super::tail::TailSink;
use super::via::Via;
use super::will::PendingWill;
use crate::limits::{IN_FLIGHT_OVERHEAD, LIVE_MESSAGES, SEND_MAXIMUM};

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
    pub(super) message: Arc<Message>,
    /// The QoS it is sent with: the smaller of the message's and the subscription's.
    pub(super) qos: QoS,
    /// The retain flag it is sent with.
    pub(super) retain: bool,
    /// The subscriptions that it comes by.
    pub(super) via: Via,
}

impl Delivery {
    /// Bytes that it takes beside its message.
    fn entry_bytes(&self) -> usize {
        let identifiers = self.via.identifiers.as_deref().map_or(0, size_of_val);
        size_of::<Self>() + identifiers
    }
}

#[cfg(test)]
impl Delivery {
    /// A copy of a message that says `x`.
    pub(super) fn copy(number: u64, qos: QoS) -> Self {
        let message = Arc::new(Message::new("t", b"x", qos, false));
        let (stored, seq, via) = (Stored::Copy(number), SeqNo(0), Via::default());
        Self { number, stored, seq, message, qos, retain: false, via }
    }
}

/// What of a session its client may not read.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    /// What another member of its group may get.
    pub(super) waiting: Vec<Delivery>,
    /// QoS 2 messages that were sent: they must not go to another ([MQTT-4.8.2-5]).
    pub(super) begun: Vec<Delivery>,
    /// The records of exchanges, to go.
    pub(super) records: Vec<State>,
}

/// A client's session.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) client_id: String,
    /// Which of the sessions that this client has had; part of the keys of its records, so that what an earlier one
    /// left behind is never taken for its own.
    pub(super) incarnation: u64,
    /// As whom its client was recognised; nobody else can have it. `None` where nobody knows.
    pub(super) owner: Option<String>,
    /// The same with the rights it had last; `None` where nobody has connected yet, or an earlier build kept the session.
    pub(super) principal: Option<Arc<Principal>>,
    /// The tenant of its client, as it was last recognised.
    pub(super) tenant: Option<Arc<str>>,
    /// Bytes that its tenant knows to wait for it.
    pub(super) tenant_bytes: u64,
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
    /// The subscriptions that have not had all yet that is retained for them.
    pub(super) searches: BTreeMap<Box<str>, Search>,
    /// Whether it is among the worker's `searching`.
    pub(super) searching: bool,
    /// The last turn, counted as the worker does, that has something of that.
    pub(super) searched_in: u64,
    /// QoS 2 numbers that were received and not released.
    pub(super) received: BTreeSet<u16>,
    pub(super) in_flight: BTreeMap<u16, InFlight>,
    /// The packet ids of what is still to be sent again over this connection, in their order, and whether it was sent
    /// before.
    pub(super) resending: VecDeque<(u16, bool)>,
    /// What is to be sent next; of what waits in the log, the part that was read.
    pub(super) queue: VecDeque<Delivery>,
    /// Messages of the queue that are not in the backlog, and their bytes.
    beside: usize,
    beside_bytes: usize,
    /// Bytes of all messages of the queue.
    queue_bytes: usize,
    /// Bytes of the messages in flight that are in memory, and of those that are not in the backlog.
    in_flight_bytes: usize,
    in_flight_beside: usize,
    /// What the budget knows of the entries of the queue and of what is in flight.
    tally: Tally,
    /// What waits in the log.
    pub(super) backlog: Backlog,
    /// Whether the present turn knows that the backlog has something to record.
    pub(super) noted: bool,
    /// Whether it is among the worker's `due`.
    pub(super) due: bool,
    pub(super) next_packet_id: u16,
    /// The will of the connection that broke, until its delay is over.
    pub(super) will: Option<Box<PendingWill>>,
    /// QoS 1 and 2 messages that the client takes at once.
    pub(super) send_maximum: usize,
    /// Messages that the client did not get.
    pub(super) drops: Drops,
    /// What the record says of them.
    pub(super) drops_recorded: Drops,
    /// What is kept beside the log.
    pub(super) kept: Kept,
}

impl Session {
    pub(super) fn new(client_id: &str, incarnation: u64) -> Self {
        Self {
            client_id: client_id.to_owned(),
            incarnation,
            owner: None,
            principal: None,
            tenant: None,
            tenant_bytes: 0,
            expiry: 0,
            connection: None,
            tail: None,
            replay: None,
            tells_seq: false,
            left_at: None,
            connected_at: None,
            subscriptions: HashMap::default(),
            searches: BTreeMap::new(),
            searching: false,
            searched_in: 0,
            received: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            resending: VecDeque::new(),
            queue: VecDeque::new(),
            beside: 0,
            beside_bytes: 0,
            queue_bytes: 0,
            in_flight_bytes: 0,
            in_flight_beside: 0,
            tally: Tally::of_messages(),
            backlog: Backlog::default(),
            noted: false,
            due: false,
            next_packet_id: 1,
            will: None,
            send_maximum: SEND_MAXIMUM,
            drops: Drops::default(),
            drops_recorded: Drops::default(),
            kept: Kept::default(),
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

    /// Takes out what waits and may not be read, in flight too where this connection does not have it and the client has not
    /// said that it has the message: what PUBREC has answered goes on with PUBREL, which says nothing of the message.
    pub(super) fn keep_readable(&mut self, may_read: impl Fn(&str) -> bool) -> Unreadable {
        let mut found = Unreadable {
            waiting: self.take_where(|delivery| !may_read(&delivery.message.topic)),
            ..Unreadable::default()
        };
        // Whether each that is to be sent again over this connection was sent over one before.
        let resending: HashMap<u16, bool> = self.resending.iter().copied().collect();
        let sent: Vec<u16> = self.in_flight.keys().copied().collect();
        for id in sent {
            let was_sent = match (self.connection, resending.get(&id)) {
                (None, _) => true,
                (Some(_), Some(before)) => *before,
                (Some(_), None) if matches!(self.in_flight.get(&id), Some(InFlight::Starting(_))) => false,
                (Some(_), None) => continue,
            };
            let (delivery, begun) = match self.in_flight.get(&id) {
                Some(InFlight::Starting(delivery)) => (delivery, false),
                Some(InFlight::Sent(delivery)) => (delivery, was_sent && delivery.qos == QoS::ExactlyOnce),
                Some(InFlight::Logged { .. } | InFlight::Released(_)) | None => continue,
            };
            if may_read(&delivery.message.topic) {
                continue;
            }
            let delivery = delivery.clone();
            if begun {
                found.begun.push(delivery)
            } else {
                found.waiting.push(delivery)
            }
            found.records.extend(self.finish(id).into_iter().flat_map(|done| done.records));
        }
        found
    }

    /// Appends a message to what waits.
    pub(super) fn push(&mut self, delivery: Delivery) {
        self.joins(&delivery);
        self.queue.push_back(delivery);
    }

    /// A delivery comes into the queue.
    pub(super) fn joins(&mut self, delivery: &Delivery) {
        self.queue_bytes += delivery.message.bytes();
        self.tally.add(delivery.entry_bytes());
        if !matches!(delivery.stored, Stored::Log(_)) {
            self.beside += 1;
            self.beside_bytes += delivery.message.bytes();
        }
    }

    /// A delivery has left the queue.
    pub(super) fn left(&mut self, delivery: &Delivery) {
        self.queue_bytes -= delivery.message.bytes();
        self.tally.subtract(delivery.entry_bytes());
        if !matches!(delivery.stored, Stored::Log(_)) {
            self.beside -= 1;
            self.beside_bytes -= delivery.message.bytes();
        }
    }

    /// Something is in flight under this packet id.
    pub(super) fn take_off(&mut self, packet_id: u16, in_flight: InFlight) -> Option<InFlight> {
        let before = self.in_flight.insert(packet_id, in_flight);
        if before.is_none() {
            self.tally.add(IN_FLIGHT_OVERHEAD);
        }
        before
    }

    /// What was in flight under this packet id is it no more.
    pub(super) fn take_down(&mut self, packet_id: u16) -> Option<InFlight> {
        let in_flight = self.in_flight.remove(&packet_id)?;
        self.tally.subtract(IN_FLIGHT_OVERHEAD);
        if let InFlight::Starting(delivery) | InFlight::Sent(delivery) = &in_flight {
            self.landed(delivery);
        }
        Some(in_flight)
    }

    /// Bytes of its entries in the queue and in flight, beside the messages.
    pub(super) fn entries_bytes(&self) -> usize {
        self.tally.bytes()
    }

    /// A delivery is in flight.
    pub(super) fn flies(&mut self, delivery: &Delivery) {
        let bytes = delivery.message.bytes();
        self.in_flight_bytes += bytes;
        if !matches!(delivery.stored, Stored::Log(_)) {
            self.in_flight_beside += bytes;
        }
    }

    /// It is in flight no more.
    pub(super) fn landed(&mut self, delivery: &Delivery) {
        let bytes = delivery.message.bytes();
        self.in_flight_bytes -= bytes;
        if !matches!(delivery.stored, Stored::Log(_)) {
            self.in_flight_beside -= bytes;
        }
    }

    /// Bytes of the messages of the queue.
    pub(super) fn queue_bytes(&self) -> usize {
        self.queue_bytes
    }

    /// Bytes of the messages in flight that are in memory.
    pub(super) fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    /// Those of them that are not in the backlog, which counts its own until they are acknowledged.
    pub(super) fn in_flight_beside(&self) -> u64 {
        self.in_flight_beside as u64
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
            InFlight::Logged { .. } | InFlight::Sent(_) | InFlight::Released(_) => None,
        });
        let mut shared: Vec<Delivery> =
            sent.chain(&self.queue).filter(|delivery| is_shared(delivery)).cloned().collect();
        shared.sort_unstable_by_key(|delivery| delivery.number);
        shared
    }

    /// Whether it is a member of a group.
    pub(super) fn shares(&self) -> bool {
        self.subscriptions.keys().any(|filter| shared_filter(filter).is_some())
    }

    /// Takes out the messages of shared subscriptions that are meant and that other members may get.
    pub(super) fn take_shared(&mut self, is_meant: impl Fn(&Delivery) -> bool) -> Vec<Delivery> {
        let mut taken = self.take_where(&is_meant);
        let sent: Vec<u16> = self.in_flight.keys().copied().collect();
        for id in sent {
            match self.in_flight.get(&id) {
                Some(InFlight::Sent(delivery)) if delivery.qos == QoS::AtLeastOnce && is_meant(delivery) => {
                    taken.push(delivery.clone());
                    self.take_down(id);
                }
                _ => {}
            }
        }
        taken
    }

    /// Whether it has as much in memory as it may have where no more than this is left. What needs no packet id (`no_id`) goes
    /// at once where nothing waits.
    pub(super) fn holds_enough(&self, room: Room, no_id: bool) -> bool {
        match room {
            Room::Plenty | Room::Scarce => false,
            Room::Short => !self.queue.is_empty(),
            Room::Gone | Room::Over => !self.queue.is_empty() || !no_id && !self.in_flight.is_empty(),
        }
    }

    /// Whether nothing waits, and another message could be sent.
    pub(super) fn is_caught_up(&self) -> bool {
        self.queue.is_empty() && !self.backlog.has_unfetched() && self.in_flight.len() < self.send_maximum
    }

    /// Takes the message that has waited longest out of the queue.
    pub(super) fn take_first(&mut self) -> Option<Delivery> {
        let delivery = self.queue.pop_front()?;
        self.left(&delivery);
        if self.queue.is_empty() && self.queue.capacity() > LIVE_MESSAGES {
            // It was long, and is not any more.
            self.queue = VecDeque::new();
        }
        Some(delivery)
    }

    /// Takes the QoS 0 message that has waited longest out of the queue.
    pub(super) fn take_unpromised(&mut self) -> Option<Delivery> {
        let at = self.queue.iter().position(|delivery| delivery.qos == QoS::AtMostOnce)?;
        let delivery = self.queue.remove(at)?;
        self.left(&delivery);
        Some(delivery)
    }

    /// Takes what has expired out of the queue.
    pub(super) fn take_expired(&mut self, now: Timestamp) -> Vec<Delivery> {
        self.take_where(|delivery| delivery.message.is_expired(now))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::super::exchange::Next;
    use super::*;

    #[test]
    fn what_may_not_be_read_is_taken_out() {
        let (mut session, now) = (Session::new("c", 1), Timestamp::from_nanos(0));
        for number in 0..4 {
            let topic = if number % 2 == 0 { "open" } else { "secret" };
            let message = Arc::new(Message::new(topic, b"x", QoS::AtLeastOnce, false));
            let delivery = Delivery { message, ..Delivery::copy(number, QoS::AtLeastOnce) };
            session.push(delivery);
        }
        session.next_to_send(now, true).unwrap();
        session.next_to_send(now, true).unwrap();
        let withdrawn = session.keep_readable(|topic| topic != "secret").waiting;
        assert_eq!(withdrawn.iter().map(|delivery| delivery.number).collect::<Vec<_>>(), [3, 1]);
        assert_eq!((session.queue.len(), session.in_flight.len()), (1, 1));
        assert_eq!(session.beside(), (1, session.queue[0].message.bytes() as u64));
    }

    #[test]
    fn what_was_sent_with_qos_2_and_may_not_be_read_is_not_sent_again() {
        let (mut session, now) = (Session::new("c", 1), Timestamp::from_nanos(0));
        session.expiry = 60;
        for number in 0..3 {
            session.push(Delivery::copy(number, QoS::ExactlyOnce));
        }
        while session.next_to_send(now, true).is_some() {}
        session.started(1).unwrap();
        session.started(2).unwrap();
        session.received_by_client(2);
        let found = session.keep_readable(|_| false);
        let numbers = |found: &[Delivery]| found.iter().map(|it| it.number).collect::<Vec<_>>();
        assert_eq!((numbers(&found.begun), numbers(&found.waiting)), (vec![0], vec![2]));
        assert_eq!(found.records.len(), 2, "the exchanges' records go");
        assert_eq!(session.in_flight.keys().copied().collect::<Vec<_>>(), [2], "PUBREL says nothing");
    }

    /// REVOKE comes while a connection still has to get again what the one before had.
    #[test]
    fn what_this_connection_has_not_got_again_it_does_not_get() {
        for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let (mut session, now) = (Session::new("c", 1), Timestamp::from_nanos(0));
            (session.expiry, session.connection, session.send_maximum) = (60, Some(0), 10);
            for number in 0..4 {
                session.push(Delivery::copy(number, qos));
            }
            while let Some(next) = session.next_to_send(now, true) {
                if let Next::Record(id @ 1..=3, _) = next {
                    session.started(id).unwrap();
                }
            }
            // QoS 1: a new connection takes one at once; QoS 2: the fourth has no record of its packet id yet.
            session.begin_again();
            session.send_maximum = session.unacknowledged() + 1;
            assert_eq!(session.next_again(true), Some((1, true)));
            let found = session.keep_readable(|_| false);
            let numbers = |found: &[Delivery]| found.iter().map(|it| it.number).collect::<Vec<_>>();
            let expected = match qos {
                QoS::ExactlyOnce => (vec![1, 2], vec![3]),
                _ => (vec![], vec![1, 2, 3]),
            };
            assert_eq!((numbers(&found.begun), numbers(&found.waiting)), expected);
            assert_eq!(found.records.len(), if qos == QoS::ExactlyOnce { 3 } else { 0 });
            assert_eq!((session.next_again(true), session.started(4).is_none()), (None, true));
            assert_eq!(session.in_flight.keys().copied().collect::<Vec<_>>(), [1], "the client has it");
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
            session.push(Delivery { via, ..Delivery::copy(number, qos) });
        }
        assert_eq!(std::iter::from_fn(|| session.next_to_send(Timestamp::from_nanos(0), true)).count(), 3);
        let numbers: Vec<u64> = session.shared_messages().iter().map(|delivery| delivery.number).collect();
        assert_eq!(numbers, [0, 3], "not what QoS 2 has in flight, not what was not shared");
    }
}
