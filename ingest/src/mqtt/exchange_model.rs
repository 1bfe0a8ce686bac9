//! A model check of the QoS 1 and 2 exchanges: a publisher, a server, a subscriber, three messages, and every order in
//! which packets arrive, commits end, connections break and the server crashes.
//!
//! # Invariants
//! - The sessions are the real ones; the world around them does with their answers what the event loop does.
//! - Checked in every state: with QoS 2 nothing is stored or delivered twice, and no packet id has two meanings. Checked
//!   where nothing more can happen: everything is stored and delivered, in order, and no record is left behind.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use sonde_engine::{SeqNo, State, Timestamp};
use sonde_proto::mqtt::QoS;

use super::exchange::{Done, InFlight, Next, Received};
use super::message::Message;
use super::records::recover_from;
use super::session::{Delivery, Session, Stored};
use super::via::Via;

const MESSAGES: u8 = 3;
/// Commits that are outstanding before the server reads on.
const TURNS: usize = 2;
const NAMESPACES: [&str; 5] = ["mqtt.session", "mqtt.queue", "mqtt.qos2", "mqtt.inflight", "mqtt.will"];
const NOW: Timestamp = Timestamp::from_nanos(0);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Packet {
    Publish { id: u16, message: u8, dup: bool },
    PubAck(u16),
    PubRec(u16),
    PubRel(u16),
    PubComp(u16),
}

/// How far the publisher is with a message; its packet id is its number and one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Sending {
    Published,
    Released,
    Done,
}

/// Packets on their way, and which of the connections of a client they belong to.
#[derive(Clone, Debug, Default, Hash)]
struct Net {
    up: VecDeque<Packet>,
    down: VecDeque<Packet>,
    connection: u8,
}

#[derive(Clone, Debug)]
enum Effect {
    ToPublisher(u8, Packet),
    ToSubscriber(u8, Packet),
    Deliver(Delivery),
    Start(u16),
    Greet(u8),
}

/// A commit that is outstanding, and what it releases.
#[derive(Clone, Debug, Default)]
struct Turn {
    records: Vec<State>,
    stored: Option<u8>,
    effects: Vec<Effect>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    ServeP,
    ServeS,
    Commit,
    HearP,
    HearS,
    BreakP,
    BreakS,
    Crash,
}

#[derive(Clone)]
struct World {
    qos: QoS,
    sending: [Sending; MESSAGES as usize],
    held: BTreeMap<u16, u8>,
    delivered: Vec<u8>,
    stored: [u8; MESSAGES as usize],
    disk: BTreeMap<(usize, Vec<u8>), Vec<u8>>,
    publisher: Session,
    subscriber: Session,
    /// Whether the subscriber has its CONNACK.
    greeted: bool,
    p: Net,
    s: Net,
    turns: VecDeque<Turn>,
    number: u64,
    crashes: u8,
    breaks: u8,
    /// The packet ids of what the subscriber was sent over this connection and has not acknowledged.
    sent: BTreeSet<u16>,
    /// Its Receive Maximum.
    takes: usize,
    fault: Fault,
}

/// What the server does that it must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// It sends a QoS 2 message without waiting for the record of its packet id.
    Hasty,
    /// A message takes two commits, and the publisher's QoS 2 number is in the second.
    NumberLater,
    /// The same, and the number is in the first.
    NumberEarlier,
    /// It sends again without regard to the Receive Maximum of the new connection.
    Flooding,
}

impl World {
    fn new(qos: QoS, crashes: u8, breaks: u8) -> Self {
        let session = |name| {
            let mut session = Session::new(name, 1);
            session.expiry = 60;
            session.send_maximum = 2;
            session
        };
        let mut world = Self {
            qos,
            sending: [Sending::Published; MESSAGES as usize],
            held: BTreeMap::new(),
            delivered: Vec::new(),
            stored: [0; MESSAGES as usize],
            disk: BTreeMap::new(),
            publisher: session("p"),
            subscriber: session("s"),
            greeted: true,
            p: Net::default(),
            s: Net::default(),
            turns: VecDeque::new(),
            number: 0,
            crashes,
            breaks,
            sent: BTreeSet::new(),
            takes: 2,
            fault: Fault::None,
        };
        world.p.up = (0..MESSAGES).map(|message| publish(message, false)).collect();
        for record in [world.publisher.record(), world.subscriber.record()] {
            world.write(record);
        }
        world
    }

    fn write(&mut self, state: State) {
        let namespace = NAMESPACES.iter().position(|known| **known == *state.namespace).unwrap();
        let key = (namespace, state.key);
        match state.value {
            Some(value) => drop(self.disk.insert(key, value)),
            None => drop(self.disk.remove(&key)),
        }
    }

    /// All that the future depends on.
    fn digest(&self) -> u64 {
        let mut hasher = foldhash::fast::FixedState::default().build_hasher();
        (&self.sending, &self.held, &self.delivered, &self.stored, &self.disk).hash(&mut hasher);
        (&self.p, &self.s, self.greeted, self.number, self.crashes, self.breaks).hash(&mut hasher);
        (&self.sent, self.takes).hash(&mut hasher);
        for session in [&self.publisher, &self.subscriber] {
            (&session.received, session.next_packet_id).hash(&mut hasher);
            (&session.resending, session.send_maximum).hash(&mut hasher);
            for (id, in_flight) in &session.in_flight {
                (id, in_flight.number(), std::mem::discriminant(in_flight)).hash(&mut hasher);
            }
            session.queue.iter().for_each(|delivery| delivery.number.hash(&mut hasher));
            usize::MAX.hash(&mut hasher);
        }
        for turn in &self.turns {
            (turn.stored, turn.records.len()).hash(&mut hasher);
            for state in &turn.records {
                (&state.namespace[..], &state.key, &state.value).hash(&mut hasher);
            }
            for effect in &turn.effects {
                match effect {
                    Effect::ToPublisher(to, packet) => (0, to, packet).hash(&mut hasher),
                    Effect::ToSubscriber(to, packet) => (1, to, packet).hash(&mut hasher),
                    Effect::Deliver(delivery) => (2, delivery.number).hash(&mut hasher),
                    Effect::Start(id) => (3, id).hash(&mut hasher),
                    Effect::Greet(to) => (4, to).hash(&mut hasher),
                }
            }
        }
        hasher.finish()
    }

    /// Does the step, if it is possible.
    fn step(&self, step: Step) -> Option<Self> {
        let reads_on = self.turns.len() < TURNS;
        let can = match step {
            Step::ServeP => reads_on && !self.p.up.is_empty(),
            Step::ServeS => reads_on && !self.s.up.is_empty(),
            Step::Commit => !self.turns.is_empty(),
            Step::HearP => !self.p.down.is_empty(),
            Step::HearS => !self.s.down.is_empty(),
            Step::BreakP | Step::BreakS => self.breaks > 0,
            Step::Crash => self.crashes > 0,
        };
        if !can {
            return None;
        }
        let mut next = self.clone();
        next.take(step)?;
        next.check();
        Some(next)
    }

    fn take(&mut self, step: Step) -> Option<()> {
        match step {
            Step::ServeP => {
                let packet = self.p.up.pop_front()?;
                self.serve_publisher(packet);
            }
            Step::ServeS => {
                let packet = self.s.up.pop_front()?;
                self.serve_subscriber(packet);
            }
            Step::Commit => {
                let turn = self.turns.pop_front()?;
                self.commit(turn);
            }
            Step::HearP => {
                let packet = self.p.down.pop_front()?;
                self.publisher_hears(packet);
            }
            Step::HearS => {
                let packet = self.s.down.pop_front()?;
                self.subscriber_hears(packet);
            }
            Step::BreakP => {
                self.breaks = self.breaks.checked_sub(1)?;
                self.reconnect_publisher();
            }
            Step::BreakS => {
                self.breaks = self.breaks.checked_sub(1)?;
                // It comes back, and takes fewer at once.
                self.takes = 1;
                if self.fault != Fault::Flooding {
                    self.subscriber.send_maximum = self.takes;
                }
                self.reconnect_subscriber();
            }
            Step::Crash => {
                self.crashes = self.crashes.checked_sub(1)?;
                self.turns.clear();
                let entries = |namespace: &str| {
                    let found = self.disk.iter().filter(|((found, _), _)| NAMESPACES[*found] == namespace);
                    found.map(|((_, key), value)| (key.clone(), value.clone())).collect()
                };
                let recovered = recover_from(entries, NOW);
                assert!(recovered.orphans.is_empty(), "{:?}", recovered.orphans);
                self.takes = 2;
                for mut session in recovered.sessions {
                    session.send_maximum = self.takes;
                    let place =
                        if session.client_id == "p" { &mut self.publisher } else { &mut self.subscriber };
                    *place = session;
                }
                // Like states count once, however many numbers and connections were used before.
                let waiting = self.subscriber.queue.iter().map(|delivery| delivery.number);
                let sent = self.subscriber.in_flight.values().map(InFlight::number);
                self.number = waiting.chain(sent).max().unwrap_or_default();
                (self.p.connection, self.s.connection) = (0, 0);
                self.reconnect_publisher();
                self.reconnect_subscriber();
            }
        }
        Some(())
    }

    fn reconnect_publisher(&mut self) {
        self.p = Net { connection: self.p.connection + 1, ..Net::default() };
        for (message, sending) in (0..).zip(self.sending) {
            match sending {
                Sending::Published => self.p.up.push_back(publish(message, true)),
                Sending::Released => self.p.up.push_back(Packet::PubRel(u16::from(message) + 1)),
                Sending::Done => {}
            }
        }
    }

    fn reconnect_subscriber(&mut self) {
        self.s = Net { connection: self.s.connection + 1, ..Net::default() };
        self.greeted = false;
        self.sent.clear();
        let effects = vec![Effect::Greet(self.s.connection)];
        self.turns.push_back(Turn { effects, ..Turn::default() });
    }

    fn serve_publisher(&mut self, packet: Packet) {
        let connection = self.p.connection;
        let mut turn = Turn::default();
        let answer = match packet {
            Packet::Publish { id, .. } if self.publisher.received.contains(&id) => Packet::PubRec(id),
            Packet::Publish { id, message, .. } => {
                self.number += 1;
                let copy = Arc::new(Message::new("t", &[message], self.qos, false));
                let (number, qos) = (self.number, self.qos);
                let (stored, seq, via) = (Stored::Copy(number), SeqNo(0), Via::default());
                let delivery = Delivery { number, stored, seq, message: copy, qos, retain: false, via };
                turn.records.push(self.subscriber.queue_record(&delivery));
                turn.stored = Some(message);
                turn.effects.push(Effect::Deliver(delivery));
                if self.qos == QoS::AtLeastOnce {
                    Packet::PubAck(id)
                } else {
                    let number = self.publisher.take_number(id);
                    match self.fault {
                        Fault::NumberLater => self.turns.push_back(std::mem::take(&mut turn)),
                        Fault::NumberEarlier => {
                            let records = number.iter().cloned().collect();
                            self.turns.push_back(Turn { records, ..Turn::default() });
                        }
                        _ => {}
                    }
                    if self.fault != Fault::NumberEarlier {
                        turn.records.extend(number);
                    }
                    Packet::PubRec(id)
                }
            }
            Packet::PubRel(id) => {
                turn.records.extend(self.publisher.release_number(id).1);
                Packet::PubComp(id)
            }
            other => panic!("{other:?} from the publisher"),
        };
        turn.effects.insert(0, Effect::ToPublisher(connection, answer));
        self.turns.push_back(turn);
    }

    fn serve_subscriber(&mut self, packet: Packet) {
        let mut turn = Turn::default();
        if let Packet::PubAck(id) | Packet::PubComp(id) = packet {
            self.sent.remove(&id);
        }
        match packet {
            Packet::PubAck(id) => {
                self.subscriber.acknowledged(id).into_iter().for_each(|done| self.finish(done, &mut turn))
            }
            Packet::PubComp(id) => {
                self.subscriber.completed(id).into_iter().for_each(|done| self.finish(done, &mut turn))
            }
            Packet::PubRec(id) => {
                match self.subscriber.received_by_client(id) {
                    Received::Release(done) => self.finish(done, &mut turn),
                    Received::Again => {}
                    Received::Unknown => panic!("the subscriber has a packet id that we do not know"),
                }
                turn.effects.push(Effect::ToSubscriber(self.s.connection, Packet::PubRel(id)));
            }
            other => panic!("{other:?} from the subscriber"),
        }
        self.turns.push_back(turn);
        self.pump();
    }

    /// A delivery has come to an end: what kept it goes.
    fn finish(&mut self, done: Done, turn: &mut Turn) {
        turn.records.extend(done.records);
        if let Stored::Copy(number) = done.stored {
            turn.records.push(self.subscriber.dequeue_record(number));
        }
    }

    fn commit(&mut self, turn: Turn) {
        turn.records.into_iter().for_each(|record| self.write(record));
        if let Some(message) = turn.stored {
            // With QoS 1 twice is as good as once.
            let times = &mut self.stored[usize::from(message)];
            *times = (*times + 1).min(self.qos as u8);
        }
        for effect in turn.effects {
            match effect {
                Effect::ToPublisher(connection, packet) if connection == self.p.connection => {
                    self.p.down.push_back(packet);
                }
                Effect::ToSubscriber(connection, packet) if connection == self.s.connection => {
                    self.s.down.push_back(packet);
                }
                Effect::ToPublisher(..) | Effect::ToSubscriber(..) => {}
                Effect::Deliver(delivery) => {
                    self.subscriber.push(delivery);
                    self.pump();
                }
                Effect::Start(id) => {
                    let Some(delivery) = self.subscriber.started(id) else { continue };
                    let message = delivery.message.payload[0];
                    if self.greeted {
                        self.send(id, message, false);
                    }
                }
                Effect::Greet(connection) if connection == self.s.connection => {
                    self.greeted = true;
                    self.resend();
                    self.pump();
                }
                Effect::Greet(_) => {}
            }
        }
    }

    fn send(&mut self, id: u16, message: u8, dup: bool) {
        self.s.down.push_back(Packet::Publish { id, message, dup });
        self.sent.insert(id);
        // [MQTT-3.3.4-9]
        assert!(self.sent.len() <= self.takes, "more in flight than the client takes: {:?}", self.sent);
    }

    fn resend(&mut self) {
        self.s.down.extend(self.subscriber.begin_again().into_iter().map(Packet::PubRel));
    }

    fn pump(&mut self) {
        while self.greeted
            && let Some((id, dup)) = self.subscriber.next_again(true)
        {
            let Some(InFlight::Sent(delivery)) = self.subscriber.in_flight.get(&id) else { continue };
            let message = delivery.message.payload[0];
            self.send(id, message, dup);
        }
        while self.greeted
            && let Some(next) = self.subscriber.next_to_send(NOW, true)
        {
            match next {
                Next::Send(id, delivery) => self.send(id, delivery.message.payload[0], false),
                Next::Record(id, record) if self.fault == Fault::Hasty => {
                    let message = self.subscriber.started(id).unwrap().message.payload[0];
                    self.send(id, message, false);
                    self.turns.push_back(Turn { records: vec![record], ..Turn::default() });
                }
                Next::Record(id, record) => self.turns.push_back(Turn {
                    records: vec![record],
                    effects: vec![Effect::Start(id)],
                    stored: None,
                }),
                Next::Expired(delivery) => panic!("{delivery:?} expired"),
            }
        }
    }

    fn publisher_hears(&mut self, packet: Packet) {
        let sending = |id: u16| usize::from(id) - 1;
        match packet {
            Packet::PubAck(id) => self.sending[sending(id)] = Sending::Done,
            Packet::PubRec(id) => {
                self.sending[sending(id)] = Sending::Released;
                self.p.up.push_back(Packet::PubRel(id));
            }
            Packet::PubComp(id) => self.sending[sending(id)] = Sending::Done,
            other => panic!("{other:?} to the publisher"),
        }
    }

    fn subscriber_hears(&mut self, packet: Packet) {
        let answer = match packet {
            Packet::Publish { id, message, .. } if self.qos == QoS::AtLeastOnce => {
                if !self.delivered.contains(&message) {
                    self.delivered.push(message);
                }
                Packet::PubAck(id)
            }
            Packet::Publish { id, message, dup } => {
                match self.held.insert(id, message) {
                    None => self.delivered.push(message),
                    Some(held) => assert!(dup && held == message, "packet id {id} has two meanings"),
                }
                Packet::PubRec(id)
            }
            Packet::PubRel(id) => {
                self.held.remove(&id);
                Packet::PubComp(id)
            }
            other => panic!("{other:?} to the subscriber"),
        };
        self.s.up.push_back(answer);
    }

    fn check(&self) {
        let in_order = self.delivered.is_sorted_by(|a, b| a < b);
        assert!(in_order, "delivered twice, or out of order: {:?}", self.delivered);
        assert!(self.stored.iter().all(|times| *times <= 1), "stored twice: {:?}", self.stored);
        for (message, sending) in self.sending.iter().enumerate() {
            let acknowledged = matches!(sending, Sending::Released | Sending::Done);
            assert!(!acknowledged || self.stored[message] > 0, "acknowledged and not stored");
        }
    }

    /// Nothing more can happen.
    fn check_end(&self) {
        assert_eq!(self.sending, [Sending::Done; MESSAGES as usize]);
        assert!(self.stored.iter().all(|times| *times >= 1), "lost: {:?}", self.stored);
        assert!((0..MESSAGES).all(|message| self.delivered.contains(&message)), "lost: {:?}", self.delivered);
        let left: Vec<_> = self.disk.keys().filter(|(namespace, _)| *namespace != 0).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

fn publish(message: u8, dup: bool) -> Packet {
    Packet::Publish { id: u16::from(message) + 1, message, dup }
}

/// Visits every state; returns how many there are.
fn explore(first: World) -> usize {
    const GOING_ON: [Step; 5] = [Step::ServeP, Step::ServeS, Step::Commit, Step::HearP, Step::HearS];
    const FAULTS: [Step; 3] = [Step::Crash, Step::BreakP, Step::BreakS];
    let mut seen = HashSet::from([first.digest()]);
    let mut open = vec![first];
    while let Some(world) = open.pop() {
        let mut visit = |step: &Step| {
            let next = world.step(*step)?;
            if seen.insert(next.digest()) {
                open.push(next);
            }
            Some(())
        };
        if GOING_ON.iter().filter_map(&mut visit).count() == 0 {
            world.check_end();
        }
        for fault in &FAULTS {
            visit(fault);
        }
    }
    seen.len()
}

#[test]
fn no_loss_and_no_duplicate_over_crashes_and_broken_connections() {
    // These are the most faults of a run: those with fewer are among them.
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        for (crashes, breaks) in [(2, 0), (1, 1)] {
            let started = std::time::Instant::now();
            let states = explore(World::new(qos, crashes, breaks));
            println!(
                "{qos:?}, {crashes} crashes, {breaks} broken: {states} states in {:?}",
                started.elapsed()
            );
            assert!(states > 10_000, "the world stands still");
        }
    }
}

#[test]
fn a_server_that_sends_before_it_records_is_found_out() {
    let hasty = World { fault: Fault::Hasty, ..World::new(QoS::ExactlyOnce, 1, 0) };
    assert!(std::panic::catch_unwind(|| explore(hasty)).is_err(), "the model sees nothing");
}

#[test]
fn a_message_that_takes_two_commits_is_found_out() {
    // Why its rows, its copies and the publisher's QoS 2 number must be one batch, whatever its size: with the number
    // behind them it is stored twice, with the number before them never.
    for fault in [Fault::NumberLater, Fault::NumberEarlier] {
        let split = World { fault, ..World::new(QoS::ExactlyOnce, 1, 0) };
        assert!(std::panic::catch_unwind(|| explore(split)).is_err(), "the model sees nothing of {fault:?}");
    }
}

#[test]
fn a_server_that_floods_a_new_connection_is_found_out() {
    let flooding = World { fault: Fault::Flooding, ..World::new(QoS::AtLeastOnce, 0, 1) };
    assert!(std::panic::catch_unwind(|| explore(flooding)).is_err(), "the model sees nothing");
}
