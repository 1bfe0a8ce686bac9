//! PUBLISH and its acknowledgements: store, retain, route.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_access::{Action, Principal, allows};
use sonde_engine::{Origin, SeqNo, Timestamp};
use sonde_proto::mqtt::{Ack, Property, Publish, QoS, ReasonCode, Version};

use super::draft::{Draft, Form};
use super::exchange::{Done, Received};
use super::message::Message;
use super::reasons::{Verdict, Words};
use super::router::SessionKey;
use super::sharing::{Handing, Outgoing};
use super::sys;
use super::turn::{Answer, ConnectionKey, Undo};
use super::via::Via;
use super::worker::{TopicInfo, Worker};
use crate::dead_letter::{self, DeadLetter};
use crate::limits::{RECEIVE_MAXIMUM, TURN_BYTES};
use crate::row::Refusal;
use crate::source::{DEFAULT_SOURCE, Incoming, Sink, Source};

/// A message as it comes in, from a packet or from inside.
pub(super) struct Arriving<'a> {
    pub(super) topic: &'a str,
    pub(super) payload: &'a [u8],
    pub(super) qos: QoS,
    pub(super) retain: bool,
    /// The default source does not take it: a rule published it, or it asks for a response.
    pub(super) beside_default: bool,
    /// The session that published it.
    pub(super) session: Option<SessionKey>,
}

/// Where a message is in the turn's batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Its number in it, or `UNNUMBERED`.
    pub(super) number: SeqNo,
    /// Whether it is logged even where nobody waits for it, for replays.
    pub(super) keep: bool,
    /// Whether those who are here get it before it is stored.
    pub(super) early: bool,
}

fn action(topic: &str, qos: QoS, retain: bool) -> Action<'_> {
    Action::Publish { topic, qos: qos as u8, retain }
}

impl Worker {
    pub(super) fn publish(
        &mut self,
        key: ConnectionKey,
        session: SessionKey,
        principal: &Arc<Principal>,
        publish: &Publish<'_>,
    ) {
        self.stats.received.fetch_add(1, Ordering::Relaxed);
        self.sys.traffic.payload_received += publish.payload.len() as u64;
        let alias =
            publish.properties.find(|p| if let Property::TopicAlias(alias) = p { Some(alias) } else { None });
        let Some(alias) = alias else { return self.publish_to_topic(key, session, principal, publish) };
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        match connection.aliases_in.get_or_insert_default().resolve(alias, publish.topic) {
            Ok(topic) => {
                self.publish_to_topic(key, session, principal, &Publish { topic: &topic, ..*publish });
            }
            Err((reason, why)) => self.refuse_because(key, reason, why),
        }
    }

    /// A PUBLISH whose topic is known.
    fn publish_to_topic(
        &mut self,
        key: ConnectionKey,
        session: SessionKey,
        principal: &Arc<Principal>,
        publish: &Publish<'_>,
    ) {
        if publish
            .properties
            .find(|p| matches!(p, Property::SubscriptionIdentifier(_)).then_some(()))
            .is_some()
        {
            return self.refuse_because(
                key,
                ReasonCode::PROTOCOL_ERROR,
                "a subscription identifier in a PUBLISH of a client",
            );
        }
        let id = publish.packet_id;
        let Some((_, connection)) = self.connections.get(key.place) else { return };
        let (v5, unanswered) = (connection.version == Version::V5, connection.unanswered);
        let Some(state) = self.sessions.get_mut(session) else { return };
        if publish.qos != QoS::AtMostOnce {
            if publish.qos == QoS::ExactlyOnce && state.received.contains(&id) {
                // Sent again, or still on its way: the message is stored once.
                return self.turn.answers.push((key, Answer::PubRec(id, ReasonCode::SUCCESS, None)));
            }
            // 3.1.1 knows no such limit; there it is that of the QoS 2 numbers that are kept.
            let counted = if v5 { unanswered } else { 0 };
            if (v5 || publish.qos == QoS::ExactlyOnce)
                && state.received.len() + counted >= RECEIVE_MAXIMUM.into()
            {
                return self.refuse(key, ReasonCode::RECEIVE_MAXIMUM_EXCEEDED);
            }
        }
        let outcome = if may_publish(principal, action(publish.topic, publish.qos, publish.retain)) {
            let asks = |p: Property<'_>| {
                matches!(p, Property::ResponseTopic(_) | Property::CorrelationData(_)).then_some(())
            };
            let arriving = Arriving {
                topic: publish.topic,
                payload: publish.payload,
                qos: publish.qos,
                retain: publish.retain,
                beside_default: publish.properties.find(asks).is_some(),
                session: Some(session),
            };
            self.take(&arriving, Form::Packet(publish))
        } else {
            self.stats.denied.fetch_add(1, Ordering::Relaxed);
            let Some((_, connection)) = self.connections.get(key.place) else { return };
            Ok(Verdict::denied(Words::of(connection), publish.topic, publish.qos, publish.retain))
        };
        let Verdict { reason, why } = match outcome {
            Ok(verdict) => verdict,
            Err(error) => {
                tracing::warn!(%error, "an MQTT message could not be stored; its client is closed");
                return self.refuse(key, ReasonCode::SERVER_UNAVAILABLE);
            }
        };
        // 3.1.1 can only acknowledge.
        let reason = if v5 { reason } else { ReasonCode::SUCCESS };
        match publish.qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => self.answer_later(key, Answer::PubAck(id, reason, why)),
            QoS::ExactlyOnce if reason.is_error() => self.answer_later(key, Answer::PubRec(id, reason, why)),
            QoS::ExactlyOnce => {
                if let Some(state) = self.sessions.get_mut(session) {
                    state.take_number(id).into_iter().for_each(|record| self.turn.builder.state(record));
                    self.turn.undo.push(Undo::Received(session, id));
                }
                self.turn.answers.push((key, Answer::PubRec(id, reason, why)));
            }
        }
    }

    /// The answer ends the exchange: until it is sent, the message counts for the Receive Maximum.
    fn answer_later(&mut self, key: ConnectionKey, answer: Answer) {
        if let Some((_, connection)) = self.connections.get_mut(key.place) {
            connection.unanswered += 1;
        }
        self.turn.answers.push((key, answer));
    }

    /// Publishes a message that no packet carries: a will, or what a rule says.
    pub(super) fn publish_internal(
        &mut self,
        message: &Message,
        principal: Option<&Principal>,
    ) -> sonde_engine::Result<()> {
        let action = action(&message.topic, message.qos, message.retain);
        if message.topic.starts_with(sys::ROOT)
            || principal.is_some_and(|principal| !may_publish(principal, action))
        {
            self.stats.denied.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        self.refresh_sources();
        let arriving = Arriving {
            topic: &message.topic,
            payload: &message.payload,
            qos: message.qos,
            retain: message.retain,
            beside_default: message.origin != Origin::Client,
            session: None,
        };
        if let Some(why) = message.too_large() {
            // No client could have sent it, and none takes it.
            self.turn.builder.begin_message();
            self.stats.dropped.fetch_add(1, Ordering::Relaxed);
            return self.bury(&arriving, &why);
        }
        self.take(&arriving, Form::Message(message)).map(drop)
    }

    /// Stores a message, keeps it where it is to be retained, and notes who gets it. What has to be durable is in the
    /// turn's batch when this returns, or in one before it.
    fn take(&mut self, arriving: &Arriving<'_>, form: Form<'_>) -> sonde_engine::Result<Verdict> {
        if self.turn.builder.bytes() >= TURN_BYTES {
            // Not between the parts of a message: its rows, what keeps it for others and the QoS 2 number that says that
            // it came are one commit, and a crash leaves all of them or none.
            self.submit_turn();
        }
        let info = self.topic(arriving.topic);
        let source = info.source.as_ref();
        let source = source.filter(|source| !(arriving.beside_default && source.name == DEFAULT_SOURCE));
        let (arrival, mut verdict) = match source {
            Some(source) => {
                let arrival = self.engine.arrival();
                (arrival, self.store(arriving, arrival, source, &info)?)
            }
            None => {
                self.turn.builder.begin_message();
                info.stats.stored(0);
                (self.clock, ReasonCode::SUCCESS.into())
            }
        };
        let turn = self.submitted;
        let draft = Draft::new(form, arrival);
        if arriving.retain {
            match self.retained.update(draft.whole()) {
                Some(record) => {
                    self.turn.builder.state(record);
                    self.turn.undo.push(Undo::Retained(arriving.topic.to_owned()));
                }
                None => {
                    self.stats.dropped.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(
                        topic = arriving.topic,
                        "not retained: there is no room for more retained messages"
                    );
                    verdict = ReasonCode::QUOTA_EXCEEDED.into();
                }
            }
        }
        let keep = match source.filter(|source| source.name != DEFAULT_SOURCE) {
            Some(source) => source.raw_retention,
            None => self.raw_retention,
        };
        let number = SeqNo(self.turn.builder.current_message().into());
        self.route(arriving, &draft, Place { number, keep: !keep.is_zero(), early: info.early });
        debug_assert_eq!(turn, self.submitted, "a message is in one commit");
        Ok(verdict)
    }

    /// Turns a message into rows, or into a dead letter.
    fn store(
        &mut self,
        arriving: &Arriving<'_>,
        arrival: Timestamp,
        source: &Source,
        info: &TopicInfo,
    ) -> sonde_engine::Result<Verdict> {
        let incoming = Incoming { topic: arriving.topic, payload: arriving.payload, arrival };
        let decode = |worker: &mut Self| {
            worker.turn.builder.begin_message();
            let Self { engine, row_buffer: buffer, turn, .. } = worker;
            source.decode(Sink { engine, buffer, builder: &mut turn.builder }, &incoming)
        };
        let mut outcome = decode(self);
        if matches!(outcome, Err(Refusal::Engine(sonde_engine::Error::BatchFull))) {
            // What came before it fills the batch: the message begins the next one.
            self.submit_turn();
            outcome = decode(self);
        }
        let why = match outcome {
            Ok(rows) => {
                info.stats.stored(rows as u64);
                return Ok(ReasonCode::SUCCESS.into());
            }
            Err(Refusal::Passed) => {
                info.stats.stored(0);
                return Ok(ReasonCode::SUCCESS.into());
            }
            Err(Refusal::Invalid(why)) => why,
            Err(Refusal::Engine(error @ sonde_engine::Error::BatchFull)) => {
                self.submit_turn();
                self.turn.builder.begin_message();
                error.to_string()
            }
            Err(Refusal::Engine(error)) => return Err(error),
        };
        info.stats.rejected(&why);
        self.bury(arriving, &why)?;
        Ok(if source.reject_invalid { Verdict::invalid(&why) } else { ReasonCode::SUCCESS.into() })
    }

    /// Makes the current message a dead letter.
    fn bury(&mut self, arriving: &Arriving<'_>, why: &str) -> sonde_engine::Result<()> {
        match self.write_dead_letter(arriving, why) {
            Err(sonde_engine::Error::BatchFull) => {
                self.submit_turn();
                self.turn.builder.begin_message();
                self.write_dead_letter(arriving, why)
            }
            outcome => outcome,
        }
    }

    fn write_dead_letter(&mut self, arriving: &Arriving<'_>, reason: &str) -> sonde_engine::Result<()> {
        let session = arriving.session.and_then(|session| self.sessions.get(session));
        let client = session.map_or("", |session| session.client_id.as_str());
        let letter = DeadLetter { topic: arriving.topic, client, payload: arriving.payload, reason };
        dead_letter::write(&self.engine, &self.dead_letters, &mut self.turn.builder, &letter)
    }

    /// Notes the deliveries of a message; what keeps those to durable sessions is in a batch when this returns. A session
    /// with several filters that match gets it once, with the largest QoS and all identifiers ([MQTT-3.3.4-3]).
    pub(super) fn route(&mut self, arriving: &Arriving<'_>, draft: &Draft<'_>, place: Place) {
        let found = self.router.resolve(arriving.topic);
        if found.interests.is_empty() && found.groups.is_empty() && !place.keep {
            return;
        }
        let Place { number, early, .. } = place;
        let mut out = Outgoing { draft, number, logged: None, copied: 0, early };
        if place.keep
            && let Err(error) = self.log_outgoing(&mut out)
        {
            tracing::warn!(%error, topic = arriving.topic, "a message is not kept for replays: it could not be logged");
        }
        for interests in found.interests.chunk_by(|a, b| a.session == b.session) {
            let wanted = || {
                let own = |session| arriving.session == Some(session);
                interests.iter().filter(move |interest| !(interest.no_local && own(interest.session)))
            };
            let Some((session, qos)) = wanted().map(|interest| (interest.session, interest.qos)).max() else {
                continue;
            };
            let retain = arriving.retain && wanted().any(|interest| interest.retain_as_published);
            let via = Via::identifiers(&mut wanted().map(|interest| interest.identifier));
            let to = Handing { session, qos: qos.min(arriving.qos), retain, via };
            self.hand_over(to, &mut out);
        }
        for group in &found.groups {
            self.hand_to_group(*group, arriving.qos, arriving.retain, &mut out);
        }
    }

    pub(super) fn puback(&mut self, session: SessionKey, packet_id: u16) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        if let Some(done) = state.acknowledged(packet_id) {
            self.done(session, done);
        }
    }

    pub(super) fn pubcomp(&mut self, session: SessionKey, packet_id: u16) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        if let Some(done) = state.completed(packet_id) {
            self.done(session, done);
        }
    }

    /// A delivery is done with: its records go, and the next one may be sent.
    fn done(&mut self, session: SessionKey, done: Done) {
        self.finish(session, done);
        self.pump_soon(session);
    }

    pub(super) fn pubrec(&mut self, key: ConnectionKey, session: SessionKey, ack: &Ack<'_>) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        if ack.reason.is_error() {
            if let Some(done) = state.refused_by_client(ack.packet_id) {
                self.done(session, done);
            }
            return;
        }
        let reason = match state.received_by_client(ack.packet_id) {
            Received::Unknown => ReasonCode::PACKET_IDENTIFIER_NOT_FOUND,
            Received::Again => ReasonCode::SUCCESS,
            Received::Release(done) => {
                self.finish(session, done);
                ReasonCode::SUCCESS
            }
        };
        self.turn.answers.push((key, Answer::PubRel(ack.packet_id, reason)));
    }

    pub(super) fn pubrel(&mut self, key: ConnectionKey, session: SessionKey, packet_id: u16) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        let (known, record) = state.release_number(packet_id);
        record.into_iter().for_each(|record| self.turn.builder.state(record));
        if known {
            self.turn.undo.push(Undo::Released(session, packet_id));
        }
        let reason = if known { ReasonCode::SUCCESS } else { ReasonCode::PACKET_IDENTIFIER_NOT_FOUND };
        self.turn.answers.push((key, Answer::PubComp(packet_id, reason)));
    }
}

/// Whether a client may publish to a topic: what the server says of itself nobody else says.
fn may_publish(principal: &Principal, action: Action<'_>) -> bool {
    let is_ours = matches!(action, Action::Publish { topic, .. } if topic.starts_with(sys::ROOT));
    !is_ours && allows(principal, action)
}
