//! A turn of the event loop: what it gathered, its commit, and what is released once that is durable.
//!
//! # Invariants
//! - Turns are released in their order; the answers of one leave together.
//! - A turn whose commit failed leaves memory as the state store has it, and no client of it hears anything more. Once the
//!   engine refuses everything until a restart, nothing is tried again: the restart reads what is stored.

use std::pin::Pin;
use std::task::{Context, Poll as TaskPoll};
use std::time::Instant;

use futures::channel::oneshot;
use sonde_engine::{Engine, Origin, Receipt, SeqNo, State, WriteBatchBuilder};
use sonde_proto::mqtt::ReasonCode;

use super::block::Block;
use super::packets::NOT_STORED;
use super::quota::Drops;
use super::reasons::Why;
use super::router::SessionKey;
use super::session::{Delivery, Stored};
use super::subscribe::UNNUMBERED;
use super::worker::Worker;
use crate::limits::{DELIVERIES_IN_FLIGHT, TURN_BYTES, TURNS_IN_FLIGHT};

/// Something to write to a connection once the turn is durable.
#[derive(Debug)]
pub(super) enum Answer {
    PubAck(u16, ReasonCode, Why),
    PubRec(u16, ReasonCode, Why),
    PubRel(u16, ReasonCode),
    PubComp(u16, ReasonCode),
    SubAck(u16, Box<[u8]>, Why),
    UnsubAck(u16, Box<[u8]>, Why),
    PingResp,
    /// The bytes of the CONNACK; what is in flight is sent again behind it.
    ConnAck(Vec<u8>),
    /// A CONNACK that says why not; the connection is closed behind it.
    Refused(ReasonCode),
    /// An error, in 5.0 with its reason, in a code and in words; the connection is closed behind it.
    Close(ReasonCode, &'static str),
}

/// A connection, and which of those that had its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectionKey {
    pub(super) place: usize,
    pub(super) generation: u64,
}

/// What memory already says and the state store does not, should the commit fail.
#[derive(Debug)]
pub(super) enum Undo {
    /// A QoS 2 number was taken.
    Received(SessionKey, u16),
    /// A QoS 2 number was given back.
    Released(SessionKey, u16),
    /// A subscription was made or ended: its record is written again as it is by then.
    Subscribed(SessionKey, Box<str>),
    /// The retained message of a topic was replaced or removed.
    Retained(String),
    /// Something has happened that cannot be taken back: its record is to be written with the next turn.
    Settled(State),
    /// The record of a block of what waits for a session was to be written, or removed.
    Backlog(SessionKey, u64),
    /// The record of what a session did not get was to be written.
    Drops(SessionKey),
    /// What a member of a group left behind was given to another one.
    HandedOn(Delivery),
}

impl Undo {
    /// Whether it makes something to be committed once more.
    fn is_tried_again(&self) -> bool {
        match self {
            Self::Received(..) | Self::Released(..) | Self::Retained(_) => false,
            Self::Subscribed(..)
            | Self::Settled(_)
            | Self::Backlog(..)
            | Self::Drops(_)
            | Self::HandedOn(_) => true,
        }
    }

    /// The session that it is about.
    fn session(&self) -> Option<SessionKey> {
        match self {
            Self::Received(session, _)
            | Self::Released(session, _)
            | Self::Subscribed(session, _)
            | Self::Backlog(session, _)
            | Self::Drops(session) => Some(*session),
            Self::Retained(_) | Self::Settled(_) | Self::HandedOn(_) => None,
        }
    }
}

/// Answers whoever asked for a message to be published.
pub(super) type Reply = oneshot::Sender<sonde_engine::Result<()>>;

/// What one pass over the readable connections gathered.
pub(super) struct Turn {
    pub(super) builder: WriteBatchBuilder,
    pub(super) answers: Vec<(ConnectionKey, Answer)>,
    pub(super) deliveries: Vec<(SessionKey, Delivery)>,
    /// QoS 2 deliveries whose packet id is recorded here: they are sent then.
    pub(super) starts: Vec<(SessionKey, u16)>,
    pub(super) undo: Vec<Undo>,
    pub(super) replies: Vec<Reply>,
    /// Sessions for whom something was logged, or that are done with something of the log.
    pub(super) noted: Vec<SessionKey>,
    /// Bytes of the messages that the deliveries share.
    pub(super) message_bytes: usize,
}

impl Turn {
    pub(super) fn new(engine: &Engine, origin: Origin) -> Self {
        let mut builder = engine.batch();
        builder.set_origin(origin);
        // No client hears of a full disk; the turns that wait are bounded, and so is what is read.
        builder.set_patient();
        Self {
            builder,
            answers: Vec::new(),
            deliveries: Vec::new(),
            starts: Vec::new(),
            undo: Vec::new(),
            replies: Vec::new(),
            noted: Vec::new(),
            message_bytes: 0,
        }
    }

    /// Whether it has as much as a turn may have. Asked between messages, never between the parts of one.
    pub(super) fn is_full(&self) -> bool {
        let noted = size_of_val(&*self.deliveries) + size_of_val(&*self.answers) + size_of_val(&*self.undo);
        self.builder.bytes() + noted + self.message_bytes >= TURN_BYTES
    }

    /// Writes the record of something that has happened; tried again with the next turn where the commit fails.
    pub(super) fn settle(&mut self, record: State) {
        self.builder.state(record.clone());
        self.undo.push(Undo::Settled(record));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.builder.is_empty()
            && self.answers.is_empty()
            && self.deliveries.is_empty()
            && self.replies.is_empty()
            && self.noted.is_empty()
    }
}

/// A turn whose commit is outstanding; without a receipt there is nothing to commit.
pub(super) struct Committing {
    receipt: Option<Receipt>,
    pub(super) answers: Vec<(ConnectionKey, Answer)>,
    deliveries: Vec<(SessionKey, Delivery)>,
    starts: Vec<(SessionKey, u16)>,
    undo: Vec<Undo>,
    replies: Vec<Reply>,
    /// What the turn brought for sessions that read it from the log.
    pub(super) blocks: Vec<(SessionKey, Block)>,
}

impl Worker {
    /// Whether more is to be read: what waits for its commit, or to be released, is bounded.
    pub(super) fn may_read(&self) -> bool {
        let deliveries = || self.committing.iter().map(|turn| turn.deliveries.len()).sum::<usize>();
        self.committing.len() < TURNS_IN_FLIGHT && deliveries() < DELIVERIES_IN_FLIGHT
    }

    /// Hands the turn to the engine.
    pub(super) fn submit_turn(&mut self) {
        if self.turn.is_empty() {
            return;
        }
        let blocks = self.record_backlogs();
        self.submitted += 1;
        let turn = std::mem::replace(&mut self.turn, Turn::new(&self.engine, self.origin));
        let receipt = turn.builder.finish().map(|batch| self.engine.write(batch));
        self.committing.push_back(Committing {
            receipt,
            answers: turn.answers,
            deliveries: turn.deliveries,
            starts: turn.starts,
            undo: turn.undo,
            replies: turn.replies,
            blocks,
        });
    }

    /// Releases the turns that are durable, oldest first.
    pub(super) fn release_turns(&mut self) {
        let waker = self.waker.clone();
        while let Some(turn) = self.committing.front_mut() {
            let result = match &mut turn.receipt {
                None => Ok(SeqNo(0)),
                Some(receipt) => match Pin::new(receipt).poll(&mut Context::from_waker(&waker)) {
                    TaskPoll::Pending => return,
                    TaskPoll::Ready(result) => result.map(|range| range.first),
                },
            };
            let Some(turn) = self.committing.pop_front() else { return };
            self.released += 1;
            match result {
                Ok(first) => self.release(turn, first),
                Err(error) => self.fail(turn, &error),
            }
        }
    }

    /// `first` is the sequence number of the turn's first message.
    fn release(&mut self, turn: Committing, first: SeqNo) {
        for (key, block) in turn.blocks {
            if let Some(session) = self.sessions.get_mut(key) {
                session.backlog.append(block, first);
            }
        }
        for (key, answer) in turn.answers {
            self.answer(key, answer);
        }
        for (session, packet_id) in turn.starts {
            self.start(session, packet_id);
        }
        for (session, mut delivery) in turn.deliveries {
            delivery.seq = match (delivery.seq, first) {
                (UNNUMBERED, _) | (_, SeqNo(0)) => SeqNo(0),
                (number, first) => first.plus(number.0),
            };
            if let Stored::Log(number) = &mut delivery.stored {
                *number = first.plus(number.0);
            }
            self.deliver(session, delivery);
        }
        self.pump_due();
        turn.replies.into_iter().for_each(|reply| drop(reply.send(Ok(()))));
    }

    /// The commit was refused: nobody is acknowledged, and every client of the turn is sent away to try again.
    fn fail(&mut self, turn: Committing, error: &sonde_engine::Error) {
        if let Some(times) = self.not_stored.again(Instant::now()) {
            tracing::warn!(%error, clients = turn.answers.len(), times, "MQTT messages could not be stored; their clients are closed");
        }
        let tries_again = self.engine.health().is_ok() && self.engine.is_open();
        let undo = turn.undo.into_iter().filter(|undo| tries_again || !undo.is_tried_again());
        undo.for_each(|undo| self.undo(undo));
        self.discard_backlogs(&turn.blocks);
        for (key, packet_id) in turn.starts.into_iter().filter(|_| tries_again) {
            // Nothing is sent without its record: tried again.
            let record = self.sessions.get(key).and_then(|session| session.in_flight_record(packet_id));
            if let Some(record) = record {
                self.turn.builder.state(record);
                self.turn.starts.push((key, packet_id));
            }
        }
        for (key, answer) in turn.answers {
            let away = match answer {
                Answer::ConnAck(_) => Answer::Refused(ReasonCode::SERVER_UNAVAILABLE),
                _ => Answer::Close(ReasonCode::SERVER_UNAVAILABLE, NOT_STORED),
            };
            self.answer(key, away);
        }
        turn.replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone()))));
    }

    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Received(session, packet_id) => {
                if let Some(session) = self.sessions.get_mut(session) {
                    session.received.remove(&packet_id);
                }
            }
            Undo::Released(session, packet_id) => {
                if let Some(session) = self.sessions.get_mut(session) {
                    session.received.insert(packet_id);
                }
            }
            Undo::Subscribed(session, filter) => self.record_subscription(session, &filter),
            Undo::Retained(topic) => self.retained.restore(&self.engine, &topic),
            Undo::Settled(record) => self.turn.settle(record),
            Undo::Backlog(session, number) => {
                if let Some(session) = self.sessions.get_mut(session) {
                    session.backlog.changed_again(number);
                }
                self.note_backlog(session);
            }
            Undo::Drops(session) => {
                if let Some(session) = self.sessions.get_mut(session) {
                    session.drops_recorded = Drops::default();
                }
                self.note_backlog(session);
            }
            Undo::HandedOn(delivery) => self.hand_on(vec![delivery]),
        }
    }

    /// What turns are going to deliver to a session.
    pub(super) fn outstanding(&self, key: SessionKey) -> impl Iterator<Item = &Delivery> {
        let turns = self.committing.iter().map(|turn| &turn.deliveries).chain([&self.turn.deliveries]);
        turns.flatten().filter(move |(session, _)| *session == key).map(|(_, delivery)| delivery)
    }

    /// Takes out everything that waits for a session's sake, because the session ends. Returns the deliveries.
    pub(super) fn withdraw(&mut self, key: SessionKey) -> Vec<Delivery> {
        let mut withdrawn = Vec::new();
        let outstanding =
            self.committing.iter_mut().map(|turn| (&mut turn.deliveries, &mut turn.starts, &mut turn.undo));
        let Turn { deliveries, starts, undo, .. } = &mut self.turn;
        for (deliveries, starts, undo) in outstanding.chain([(deliveries, starts, undo)]) {
            starts.retain(|(session, _)| *session != key);
            undo.retain(|undo| undo.session() != Some(key));
            let (mine, others) =
                std::mem::take(deliveries).into_iter().partition(|(session, _)| *session == key);
            *deliveries = others;
            let mine: Vec<(SessionKey, Delivery)> = mine;
            withdrawn.extend(mine.into_iter().map(|(_, delivery)| delivery));
        }
        withdrawn
    }

    /// Takes out those of the deliveries to a session that are meant. Returns them.
    pub(super) fn withdraw_where(
        &mut self,
        key: SessionKey,
        is_meant: impl Fn(&Delivery) -> bool,
    ) -> Vec<Delivery> {
        let turns = self.committing.iter_mut().map(|turn| &mut turn.deliveries);
        let mut withdrawn = Vec::new();
        for deliveries in turns.chain([&mut self.turn.deliveries]) {
            let (meant, others) = std::mem::take(deliveries)
                .into_iter()
                .partition(|(session, delivery)| *session == key && is_meant(delivery));
            *deliveries = others;
            let meant: Vec<(SessionKey, Delivery)> = meant;
            withdrawn.extend(meant.into_iter().map(|(_, delivery)| delivery));
        }
        withdrawn
    }

    /// Whether no answer to the connection waits for a commit.
    pub(super) fn is_answered(&self, place: usize) -> bool {
        let generation = self.connections.get(place).map(|(generation, _)| *generation);
        let waits = |answers: &[(ConnectionKey, Answer)]| {
            answers.iter().any(|(key, _)| key.place == place && Some(key.generation) == generation)
        };
        !waits(&self.turn.answers) && !self.committing.iter().any(|turn| waits(&turn.answers))
    }

    fn answer(&mut self, key: ConnectionKey, answer: Answer) {
        let Some((generation, connection)) = self.connections.get_mut(key.place) else { return };
        if *generation != key.generation || connection.sealed {
            return;
        }
        if matches!(&answer, Answer::PubAck(..)) || matches!(&answer, Answer::PubRec(_, r, _) if r.is_error())
        {
            connection.unanswered = connection.unanswered.saturating_sub(1);
        }
        if connection.write_answer(&answer) {
            self.sys.traffic.packets_sent += 1;
        } else {
            // The client takes no packet that large: there is no other way to tell it.
            connection.closing = true;
            connection.sealed = true;
        }
        self.dirty.push(key.place);
        match answer {
            Answer::ConnAck(_) if connection.sealed => {}
            Answer::ConnAck(_) => {
                connection.greeted = true;
                self.stats.connack(ReasonCode::SUCCESS);
                if let Some(session) = connection.session() {
                    self.resend(session);
                    self.go_on_searching(session);
                }
            }
            Answer::Close(reason, _) => {
                self.stats.disconnect(reason);
                connection.closing = true;
                connection.sealed = true;
            }
            Answer::Refused(reason) => {
                self.stats.connack(reason);
                // It was never let in: there is nothing that its end would have to tell.
                connection.will = None;
                connection.closing = true;
                connection.sealed = true;
            }
            _ => {}
        }
    }
}
