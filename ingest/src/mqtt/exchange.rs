//! The QoS 1 and 2 exchanges of a session, in and out (sections 4.3 and 4.4), and their records in the state store.
//!
//! # Invariants
//! - No socket and no clock here: a session is told what happened and says what to send and what to keep.
//! - A QoS 2 message of a durable session is sent once the record of its packet id is durable, and released once the
//!   record that says so is: after a crash the exchange goes on with the same packet id ([MQTT-4.4.0-1]).

use std::sync::Arc;

use sonde_engine::{SeqNo, State, Timestamp};
use sonde_proto::mqtt::QoS;

use super::block::Manner;
use super::message::Message;
use super::session::{Delivery, Session, Stored};
use super::via::Via;

/// Namespace of the QoS 2 numbers that were received and not released.
pub(super) const RECEIVED: &str = "mqtt.qos2";
/// Namespace of the QoS 2 exchanges with subscribers.
pub(super) const IN_FLIGHT: &str = "mqtt.inflight";

/// How far a QoS 1 or 2 delivery is.
#[derive(Clone, Debug)]
pub(super) enum InFlight {
    /// It has a packet id whose record is not durable yet: not sent.
    Starting(Delivery),
    /// Sent, perhaps before the server ended; PUBACK or PUBREC is awaited. The log has the message and memory has not: it is
    /// read where it has to be sent again.
    Logged { number: u64, seq: SeqNo, manner: Manner },
    /// Sent, and nowhere but in memory, or a copy; PUBACK or PUBREC is awaited.
    Sent(Delivery),
    /// PUBREL is sent; PUBCOMP is awaited.
    Released(u64),
}

impl InFlight {
    /// A delivery that is sent.
    fn sent(delivery: Delivery) -> Self {
        let Stored::Log(seq) = delivery.stored else { return Self::Sent(delivery) };
        let Delivery { number, qos, retain, via: Via { identifiers, .. }, .. } = delivery;
        Self::Logged { number, seq, manner: Manner { qos, retain, identifiers } }
    }

    /// The delivery's number.
    pub(super) fn number(&self) -> u64 {
        match self {
            Self::Starting(delivery) | Self::Sent(delivery) => delivery.number,
            Self::Logged { number, .. } | Self::Released(number) => *number,
        }
    }

    /// Its place in the session's order.
    pub(super) fn place(&self) -> (u64, SeqNo) {
        match self {
            Self::Starting(delivery) | Self::Sent(delivery) => (delivery.number, delivery.seq),
            Self::Logged { number, seq, .. } => (*number, *seq),
            Self::Released(number) => (*number, SeqNo(0)),
        }
    }

    /// What keeps the message; none where the client has it.
    pub(super) fn stored(&self) -> Option<Stored> {
        match self {
            Self::Starting(delivery) | Self::Sent(delivery) => Some(delivery.stored),
            Self::Logged { seq, .. } => Some(Stored::Log(*seq)),
            Self::Released(_) => None,
        }
    }

    /// Whether the exchange has a record, in a durable session.
    fn is_recorded(&self) -> bool {
        match self {
            Self::Starting(delivery) | Self::Sent(delivery) => delivery.qos == QoS::ExactlyOnce,
            Self::Logged { manner, .. } => manner.qos == QoS::ExactlyOnce,
            Self::Released(_) => true,
        }
    }
}

/// What the record of a QoS 2 exchange says, with the delivery's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recorded {
    /// Sent; the message waits as a copy.
    Sent(u64),
    /// The client has the message.
    Released(u64),
    /// Sent; the message waits in the log.
    InLog(u64, SeqNo),
}

/// What the end of a delivery leaves to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Done {
    /// What kept the message, and need not any more.
    pub(super) stored: Stored,
    /// The records of the exchange.
    pub(super) records: Vec<State>,
}

/// What becomes of the message that has waited longest.
#[derive(Debug)]
pub(super) enum Next {
    /// To be sent; the packet id is 0 with QoS 0.
    Send(u16, Delivery),
    /// To be sent under this packet id when this record of it is durable.
    Record(u16, State),
    /// Too old: its delivery does not begin.
    Expired(Delivery),
}

/// What a PUBREC leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// There is no such exchange.
    Unknown,
    /// It was received before; PUBREL is due again.
    Again,
    /// The client has the message: PUBREL is due once this is durable.
    Release(Done),
}

impl Session {
    /// Takes the next waiting message that may be sent; with QoS 1 or 2 it is in flight from now on. Without `room` for
    /// more unsent bytes, what is acknowledged waits.
    pub(super) fn next_to_send(&mut self, now: Timestamp, room: bool) -> Option<Next> {
        let first = self.queue.front()?;
        let needs_id = first.qos != QoS::AtMostOnce;
        let expired = first.message.is_expired(now);
        let waits = !room || self.in_flight.len() >= self.send_maximum || !self.resending.is_empty();
        if needs_id && !expired && waits {
            return None;
        }
        let delivery = self.take_first()?;
        if expired {
            return Some(Next::Expired(delivery));
        }
        if !needs_id {
            return Some(Next::Send(0, delivery));
        }
        let id = self.free_packet_id();
        if delivery.qos == QoS::ExactlyOnce && self.is_durable() {
            self.flies(&delivery);
            self.take_off(id, InFlight::Starting(delivery));
            return Some(Next::Record(id, self.in_flight_record(id)?));
        }
        self.sent(id, delivery.clone());
        Some(Next::Send(id, delivery))
    }

    /// A delivery is sent under this packet id.
    fn sent(&mut self, packet_id: u16, delivery: Delivery) {
        if !matches!(delivery.stored, Stored::Log(_)) {
            self.flies(&delivery);
        }
        self.take_off(packet_id, InFlight::sent(delivery));
    }

    fn free_packet_id(&mut self) -> u16 {
        // `in_flight` holds at most 65,535 entries less one, so a free number exists.
        loop {
            let id = self.next_packet_id;
            self.next_packet_id = self.next_packet_id.checked_add(1).unwrap_or(1);
            if !self.in_flight.contains_key(&id) {
                return id;
            }
        }
    }

    /// The record of the packet id is durable. Returns what is to be sent under it now.
    pub(super) fn started(&mut self, packet_id: u16) -> Option<Delivery> {
        let unacknowledged = self.unacknowledged();
        let InFlight::Starting(delivery) = self.in_flight.get(&packet_id)? else { return None };
        let delivery = delivery.clone();
        self.landed(&delivery);
        self.sent(packet_id, delivery.clone());
        if !self.resending.is_empty() || unacknowledged > self.send_maximum {
            // Its connection is a new one since, and what comes before it has not been sent again.
            self.resending.push_back((packet_id, false));
            return None;
        }
        Some(delivery)
    }

    /// Messages in flight that this connection has, or is about to have.
    pub(super) fn unacknowledged(&self) -> usize {
        self.in_flight.len() - self.resending.len()
    }

    /// A new connection: what is in flight is to be sent again in its first order ([MQTT-4.4.0-1], [MQTT-4.6.0-1]). Returns
    /// the packet ids of the PUBRELs, which no Receive Maximum holds back.
    pub(super) fn begin_again(&mut self) -> Vec<u16> {
        let mut in_flight: Vec<_> = self.in_flight.iter().map(|(id, it)| (it.place(), *id, it)).collect();
        in_flight.sort_unstable_by_key(|(place, id, _)| (*place, *id));
        let mut released = Vec::new();
        self.resending.clear();
        for (_, id, in_flight) in in_flight {
            match in_flight {
                // It is sent when the record of its packet id is durable.
                InFlight::Starting(_) => {}
                InFlight::Logged { .. } | InFlight::Sent(_) => self.resending.push_back((id, true)),
                InFlight::Released(_) => released.push(id),
            }
        }
        released
    }

    /// The next packet id whose message is to be sent again, and whether it was sent before: within the Receive Maximum
    /// of this connection ([MQTT-3.3.4-9]), and while there is `room` for more unsent bytes.
    pub(super) fn next_again(&mut self, room: bool) -> Option<(u16, bool)> {
        if !room || self.unacknowledged() >= self.send_maximum {
            return None;
        }
        self.resending.pop_front()
    }

    /// A message is not to be sent again.
    fn not_again(&mut self, packet_id: u16) {
        let place = self.resending.iter().position(|(id, _)| *id == packet_id);
        let _ = place.and_then(|place| self.resending.remove(place));
    }

    /// The record of a QoS 2 exchange: `how far u8, 0 sent, 1 released, 2 sent from the log | number u64`, and from the log
    /// `sequence number u64`, little endian, under the packet id. `None` where there is no such exchange, or it needs no
    /// record.
    pub(super) fn in_flight_record(&self, packet_id: u16) -> Option<State> {
        let in_flight = self.in_flight.get(&packet_id)?;
        if !in_flight.is_recorded() || !self.is_durable() {
            return None;
        }
        let far = match in_flight.stored() {
            None => 1,
            Some(Stored::Log(_)) => 2,
            Some(Stored::Nowhere | Stored::Copy(_)) => 0,
        };
        let mut value = vec![far];
        value.extend_from_slice(&in_flight.number().to_le_bytes());
        if let Some(Stored::Log(seq)) = in_flight.stored() {
            value.extend_from_slice(&seq.0.to_le_bytes());
        }
        let key = self.key(&packet_id.to_be_bytes());
        Some(State { namespace: IN_FLIGHT.into(), key, value: Some(value) })
    }

    /// Reads such a record.
    pub(super) fn read_in_flight(value: &[u8]) -> Option<Recorded> {
        let (far, rest) = value.split_first()?;
        let (number, rest) = rest.split_first_chunk::<8>()?;
        let number = u64::from_le_bytes(*number);
        match (far, rest) {
            (0, []) => Some(Recorded::Sent(number)),
            (1, []) => Some(Recorded::Released(number)),
            (2, seq) => Some(Recorded::InLog(number, SeqNo(u64::from_le_bytes(seq.try_into().ok()?)))),
            _ => None,
        }
    }

    /// What is to be sent again next and only the log has, as far as that ascends: numbers in the log and packet ids, no more
    /// than the client takes now, and so many at most.
    pub(super) fn logged_again(&self, most: usize) -> Vec<(SeqNo, u16)> {
        let takes = self.send_maximum.saturating_sub(self.unacknowledged()).min(most);
        let mut found: Vec<(SeqNo, u16)> = Vec::new();
        for (id, _) in self.resending.iter().take(takes) {
            match self.in_flight.get(id) {
                Some(InFlight::Logged { seq, .. }) if found.last().is_none_or(|(last, _)| last < seq) => {
                    found.push((*seq, *id));
                }
                _ => break,
            }
        }
        found
    }

    /// The delivery of an exchange whose message was read from the log.
    pub(super) fn read_again(&self, packet_id: u16, message: Arc<Message>) -> Option<Delivery> {
        let InFlight::Logged { number, seq, manner } = self.in_flight.get(&packet_id)? else { return None };
        let Manner { qos, retain, identifiers } = manner.clone();
        let (stored, via) = (Stored::Log(*seq), Via { group: None, identifiers });
        Some(Delivery { number: *number, stored, seq: *seq, message, qos, retain, via })
    }

    /// The records that remove all of the session's exchanges.
    pub(super) fn forget_exchanges(&self) -> impl Iterator<Item = State> + '_ {
        let recorded = self.in_flight.iter().filter(|(_, in_flight)| in_flight.is_recorded());
        let out = recorded.map(|(id, _)| self.gone(IN_FLIGHT, &id.to_be_bytes()));
        out.chain(self.received.iter().map(|id| self.gone(RECEIVED, &id.to_be_bytes())))
    }

    /// Takes a delivery out of flight.
    pub(super) fn finish(&mut self, packet_id: u16) -> Option<Done> {
        let in_flight = self.take_down(packet_id)?;
        self.not_again(packet_id);
        let stored = in_flight.stored().unwrap_or(Stored::Nowhere);
        let recorded = self.is_durable() && in_flight.is_recorded();
        let records = recorded.then(|| self.gone(IN_FLIGHT, &packet_id.to_be_bytes()));
        Some(Done { stored, records: records.into_iter().collect() })
    }

    /// PUBACK: the delivery is done with. `None` where nothing awaits a PUBACK.
    pub(super) fn acknowledged(&mut self, packet_id: u16) -> Option<Done> {
        match self.in_flight.get(&packet_id)? {
            InFlight::Sent(delivery) if delivery.qos == QoS::AtLeastOnce => self.finish(packet_id),
            InFlight::Logged { manner, .. } if manner.qos == QoS::AtLeastOnce => self.finish(packet_id),
            _ => None,
        }
    }

    /// PUBREC: the client has the message.
    pub(super) fn received_by_client(&mut self, packet_id: u16) -> Received {
        let (number, stored) = match self.in_flight.get(&packet_id) {
            Some(InFlight::Sent(delivery)) if delivery.qos == QoS::ExactlyOnce => {
                (delivery.number, delivery.stored)
            }
            Some(InFlight::Logged { number, seq, manner }) if manner.qos == QoS::ExactlyOnce => {
                (*number, Stored::Log(*seq))
            }
            Some(InFlight::Released(_)) => return Received::Again,
            _ => return Received::Unknown,
        };
        let before = self.take_off(packet_id, InFlight::Released(number));
        if let Some(InFlight::Sent(delivery)) = before {
            self.landed(&delivery);
        }
        self.not_again(packet_id);
        let records = self.in_flight_record(packet_id).into_iter().collect();
        Received::Release(Done { stored, records })
    }

    /// PUBREC with an error: the client does not want the message, and the exchange is over without a PUBREL.
    pub(super) fn refused_by_client(&mut self, packet_id: u16) -> Option<Done> {
        match self.in_flight.get(&packet_id)? {
            InFlight::Sent(delivery) if delivery.qos == QoS::ExactlyOnce => self.finish(packet_id),
            InFlight::Logged { manner, .. } if manner.qos == QoS::ExactlyOnce => self.finish(packet_id),
            _ => None,
        }
    }

    /// PUBCOMP: the delivery is done with. `None` where nothing awaits a PUBCOMP.
    pub(super) fn completed(&mut self, packet_id: u16) -> Option<Done> {
        match self.in_flight.get(&packet_id)? {
            InFlight::Released(_) => self.finish(packet_id),
            InFlight::Starting(_) | InFlight::Logged { .. } | InFlight::Sent(_) => None,
        }
    }

    /// A QoS 2 number was taken: it stays until its PUBREL. Returns the record of it, for a durable session.
    pub(super) fn take_number(&mut self, packet_id: u16) -> Option<State> {
        self.received.insert(packet_id);
        let key = self.key(&packet_id.to_be_bytes());
        self.is_durable().then(|| State { namespace: RECEIVED.into(), key, value: Some(vec![1]) })
    }

    /// PUBREL: the number may be used again. Returns whether it was known, and the record to go, for a durable session.
    pub(super) fn release_number(&mut self, packet_id: u16) -> (bool, Option<State>) {
        let known = self.received.remove(&packet_id);
        let gone = (known && self.is_durable()).then(|| self.gone(RECEIVED, &packet_id.to_be_bytes()));
        (known, gone)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_nanos(0);

    /// What is left to do for a copy under this number, in a session that is not durable.
    fn done(number: u64) -> Done {
        Done { stored: Stored::Copy(number), records: vec![] }
    }

    fn send(session: &mut Session) -> Option<(u16, u64)> {
        match session.next_to_send(NOW, true)? {
            Next::Send(id, delivery) => Some((id, delivery.number)),
            Next::Record(id, _) => Some((id, session.started(id)?.number)),
            Next::Expired(_) => None,
        }
    }

    #[test]
    fn a_qos_2_delivery_takes_four_steps() {
        let mut session = Session::new("c", 1);
        session.push(Delivery::copy(7, QoS::ExactlyOnce));
        let (id, _) = send(&mut session).unwrap();
        assert_eq!(session.completed(id), None, "PUBCOMP before PUBREC");
        assert_eq!(session.received_by_client(id), Received::Release(done(7)));
        assert_eq!(session.received_by_client(id), Received::Again);
        assert_eq!(session.acknowledged(id), None, "PUBACK is for QoS 1");
        assert_eq!(session.refused_by_client(id), None, "too late to refuse");
        assert_eq!(session.completed(id), Some(Done { stored: Stored::Nowhere, records: vec![] }));
        assert_eq!(session.received_by_client(id), Received::Unknown);
    }

    #[test]
    fn a_durable_session_records_the_packet_id_before_it_sends() {
        let mut session = Session::new("c", 1);
        session.expiry = 60;
        session.push(Delivery::copy(7, QoS::ExactlyOnce));
        let Some(Next::Record(1, record)) = session.next_to_send(NOW, true) else {
            panic!("sent without a record")
        };
        assert_eq!(Session::read_in_flight(&record.value.unwrap()), Some(Recorded::Sent(7)));
        assert_eq!(session.received_by_client(1), Received::Unknown, "it is not sent yet");
        assert_eq!(session.started(1).map(|delivery| delivery.number), Some(7));
        assert!(session.started(1).is_none(), "once");
        let Received::Release(done) = session.received_by_client(1) else { panic!() };
        let released = Session::read_in_flight(done.records[0].value.as_ref().unwrap());
        assert_eq!((released, done.stored), (Some(Recorded::Released(7)), Stored::Copy(7)));
        let done = session.completed(1).unwrap();
        assert_eq!((done.records.len(), done.stored), (1, Stored::Nowhere));
        let gone = &done.records[0];
        assert_eq!((&*gone.namespace, &gone.key, &gone.value), (IN_FLIGHT, &record.key, &None));
    }

    #[test]
    fn the_record_of_an_exchange_reads_back() {
        let mut session = Session::new("c", 1);
        session.expiry = 60;
        let logged =
            Delivery { stored: Stored::Log(SeqNo(9)), seq: SeqNo(9), ..Delivery::copy(7, QoS::ExactlyOnce) };
        session.push(logged);
        let Some(Next::Record(1, record)) = session.next_to_send(NOW, true) else { panic!() };
        let value = record.value.unwrap();
        assert_eq!(Session::read_in_flight(&value), Some(Recorded::InLog(7, SeqNo(9))));
        assert!((0..value.len()).all(|end| Session::read_in_flight(&value[..end]).is_none()));
    }

    #[test]
    fn what_the_log_has_needs_no_memory_once_it_is_sent() {
        for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let mut session = Session::new("c", 1);
            session.expiry = 60;
            for seq in [SeqNo(9), SeqNo(11)] {
                session.push(Delivery { stored: Stored::Log(seq), seq, ..Delivery::copy(seq.0, qos) });
            }
            assert_eq!([send(&mut session), send(&mut session)], [Some((1, 9)), Some((2, 11))]);
            assert_eq!((session.in_flight_bytes(), session.queue_bytes()), (0, 0));
            // It comes back, and takes one at a time.
            session.begin_again();
            assert_eq!(session.logged_again(9), [(SeqNo(9), 1), (SeqNo(11), 2)]);
            session.send_maximum = 1;
            assert_eq!(session.logged_again(9), [(SeqNo(9), 1)]);
            assert_eq!(session.next_again(true), Some((1, true)));
            assert_eq!(session.logged_again(9), [], "it takes no more now");
            let again = session.read_again(1, Arc::new(Message::new("t", b"x", qos, false))).unwrap();
            assert_eq!((again.qos, again.stored, again.number), (qos, Stored::Log(SeqNo(9)), 9));
            let is_over = |session: &mut Session| match qos {
                QoS::ExactlyOnce => matches!(session.received_by_client(1), Received::Release(_)),
                _ => session.acknowledged(1).is_some_and(|done| done.stored == Stored::Log(SeqNo(9))),
            };
            assert!(session.completed(1).is_none() && is_over(&mut session));
        }
    }

    #[test]
    fn no_more_is_in_flight_than_the_client_takes() {
        let mut session = Session::new("c", 1);
        session.send_maximum = 2;
        for number in 0..4 {
            session.push(Delivery::copy(number, QoS::AtLeastOnce));
        }
        let ids: Vec<u16> = std::iter::from_fn(|| send(&mut session)).map(|(id, _)| id).collect();
        assert_eq!(ids, [1, 2]);
        assert_eq!(session.acknowledged(1).map(|done| done.records), Some(vec![]));
        assert_eq!(send(&mut session), Some((3, 2)));
    }

    #[test]
    fn what_is_sent_again_is_within_the_receive_maximum_and_in_its_order() {
        let mut session = Session::new("c", 1);
        for number in 0..6 {
            session.push(Delivery::copy(
                number,
                if number % 2 == 0 { QoS::ExactlyOnce } else { QoS::AtLeastOnce },
            ));
        }
        let ids: Vec<u16> = std::iter::from_fn(|| send(&mut session)).map(|(id, _)| id).collect();
        assert_eq!(ids, [1, 2, 3, 4, 5, 6]);
        assert!(matches!(session.received_by_client(1), Received::Release(_)));
        session.push(Delivery::copy(6, QoS::AtLeastOnce));
        // It comes back, and takes three at a time; one of them is what it has of the exchange of id 1.
        session.send_maximum = 3;
        assert_eq!(session.begin_again(), [1]);
        let again = |session: &mut Session| {
            std::iter::from_fn(|| session.next_again(true)).map(|(id, _)| id).collect::<Vec<_>>()
        };
        assert!(session.next_again(false).is_none(), "no room");
        assert_eq!(again(&mut session), [2, 3]);
        assert!(session.next_to_send(NOW, true).is_none(), "what came later waits");
        session.acknowledged(2).unwrap();
        assert_eq!(again(&mut session), [4]);
        // An acknowledgement of what was sent over the last connection.
        session.received_by_client(5);
        assert_eq!(again(&mut session), [0_u16; 0]);
        for id in [4, 6] {
            session.acknowledged(id);
        }
        session.completed(1).unwrap();
        assert_eq!(again(&mut session), [0_u16; 0], "6 was acknowledged before it was sent again");
        assert_eq!(send(&mut session), Some((7, 6)));
    }

    #[test]
    fn what_expired_is_taken_out_even_where_nothing_may_be_sent() {
        let mut session = Session::new("c", 1);
        session.send_maximum = 1;
        let mut expiring = Delivery::copy(2, QoS::AtLeastOnce);
        Arc::make_mut(&mut expiring.message).expiry = Some(1);
        for delivery in [Delivery::copy(1, QoS::AtLeastOnce), expiring, Delivery::copy(3, QoS::AtLeastOnce)] {
            session.push(delivery);
        }
        assert_eq!(send(&mut session), Some((1, 1)));
        assert!(session.next_to_send(NOW, true).is_none(), "the client takes one at a time");
        let later = Timestamp::from_secs(1);
        assert!(matches!(session.next_to_send(later, true), Some(Next::Expired(gone)) if gone.number == 2));
        assert_eq!(session.acknowledged(1).map(|done| done.records), Some(vec![]));
        assert!(matches!(session.next_to_send(later, true), Some(Next::Send(_, next)) if next.number == 3));
    }
}
