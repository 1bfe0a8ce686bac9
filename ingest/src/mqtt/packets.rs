//! What each packet does: the session's side of the protocol, without a socket.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_access::{Action, Principal, allows};
use sonde_proto::mqtt::{
    Ack, ConnAck, Connect, Disconnect, Packet, Properties, PropertiesBuilder, Property, Publish, QoS,
    ReasonCode, RetainHandling, SubAck, Subscribe, Unsubscribe, Version, is_shared,
};

use super::Credentials;
use super::connection::Phase;
use super::message::Message;
use super::session::{Delivery, Session, Subscription};
use super::worker::{Answer, ConnectionKey, Worker, interest};
use crate::dead_letter::{self, DeadLetter};
use crate::limits::{PACKET_BYTES, RECEIVE_MAXIMUM, SEND_MAXIMUM, SESSION_EXPIRY, SUBSCRIPTIONS};
use crate::row::Refusal;
use crate::source::{DEFAULT_SOURCE, Incoming};

/// A message as it comes in, from a packet or from inside.
struct Arriving<'a> {
    topic: &'a str,
    payload: &'a [u8],
    qos: QoS,
    retain: bool,
    /// The default source does not take it: a rule published it, or it asks for a response.
    beside_default: bool,
    /// The session that published it.
    session: Option<usize>,
}

/// Appends the packet of an answer.
pub(super) fn encode_answer(answer: &Answer, version: Version, out: &mut Vec<u8>) {
    let ack = |packet_id: u16, reason: ReasonCode| Ack { reason, ..Ack::of(packet_id) };
    let packet = match answer {
        Answer::PubAck(id, reason) => Packet::PubAck(ack(*id, *reason)),
        Answer::PubRec(id, reason) => Packet::PubRec(ack(*id, *reason)),
        Answer::PubRel(id, reason) => Packet::PubRel(ack(*id, *reason)),
        Answer::PubComp(id, reason) => Packet::PubComp(ack(*id, *reason)),
        Answer::SubAck(packet_id, reasons) => {
            Packet::SubAck(SubAck { packet_id: *packet_id, properties: Properties::default(), reasons })
        }
        Answer::UnsubAck(packet_id, reasons) => {
            Packet::UnsubAck(SubAck { packet_id: *packet_id, properties: Properties::default(), reasons })
        }
        Answer::ConnAck(bytes) => return out.extend_from_slice(bytes),
        Answer::Close(_) if version == Version::V311 => return,
        Answer::Close(reason) => Packet::Disconnect(Disconnect { reason: *reason, ..Disconnect::default() }),
    };
    packet.encode(version, out);
}

impl Worker {
    pub(super) fn handle_packet(&mut self, key: ConnectionKey, packet: &Packet<'_>) {
        let Some((_, connection)) = self.connections.get(key.place) else { return };
        let (session, principal) = match (&connection.phase, packet) {
            (Phase::Opening, Packet::Connect(connect)) => return self.connect(key, connect),
            // Not MQTT, or not the beginning of it: nothing is answered.
            (Phase::Opening, _) => return self.close(key.place),
            (Phase::Open { session, principal }, _) => (*session, Arc::clone(principal)),
        };
        match packet {
            Packet::Publish(publish) => self.publish(key, session, &principal, publish),
            Packet::PubAck(ack) => self.puback(session, ack.packet_id),
            Packet::PubRec(ack) => self.pubrec(key, session, ack),
            Packet::PubRel(ack) => self.pubrel(key, session, ack.packet_id),
            Packet::PubComp(ack) => self.pubcomp(session, ack.packet_id),
            Packet::Subscribe(subscribe) => self.subscribe(key, session, &principal, subscribe),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(key, session, unsubscribe),
            Packet::PingReq => {
                if let Some((_, connection)) = self.connections.get_mut(key.place) {
                    Packet::PingResp.encode(connection.version, &mut connection.out);
                    self.touch(key.place);
                }
            }
            Packet::Disconnect(disconnect) => self.disconnect(key, session, disconnect),
            Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::PingResp
            | Packet::Auth(_) => {
                self.stats.protocol_errors.fetch_add(1, Ordering::Relaxed);
                self.refuse(key, ReasonCode::PROTOCOL_ERROR);
            }
        }
    }

    fn connect(&mut self, key: ConnectionKey, connect: &Connect<'_>) {
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        connection.version = connect.version;
        let peer = connection.peer;
        let v5 = connect.version == Version::V5;
        let method = connect
            .properties
            .find(|p| if let Property::AuthenticationMethod(m) = p { Some(m) } else { None });
        if method.is_some() {
            return self.refuse_connect(key, ReasonCode::BAD_AUTHENTICATION_METHOD, 5);
        }
        let credentials =
            Credentials { peer: peer.ip(), username: connect.username, password: connect.password };
        let Some(principal) = (self.authenticate)(&credentials) else {
            self.stats.denied.fetch_add(1, Ordering::Relaxed);
            tracing::info!(%peer, client = connect.client_id, "MQTT client refused: it is not known");
            let anonymous = connect.password.is_none();
            let reason =
                if anonymous { ReasonCode::NOT_AUTHORIZED } else { ReasonCode::BAD_USER_NAME_OR_PASSWORD };
            return self.refuse_connect(key, reason, if anonymous { 5 } else { 4 });
        };
        if connect.client_id.is_empty() && !v5 && !connect.clean_start {
            return self.refuse_connect(key, ReasonCode::CLIENT_IDENTIFIER_NOT_VALID, 2);
        }
        if connect.client_id.contains('\0') || connect.client_id.len() > 1024 {
            return self.refuse_connect(key, ReasonCode::CLIENT_IDENTIFIER_NOT_VALID, 2);
        }
        let assigned = connect.client_id.is_empty().then(|| format!("auto-{:016x}", self.next_number()));
        let client_id = assigned.as_deref().unwrap_or(connect.client_id);
        let (session, present) = self.take_session(client_id, connect.clean_start);
        let asked = connect
            .properties
            .find(|p| if let Property::SessionExpiryInterval(s) = p { Some(s) } else { None });
        let longest = SESSION_EXPIRY.as_secs() as u32;
        let expiry = match (v5, connect.clean_start) {
            (true, _) => asked.unwrap_or_default().min(longest),
            (false, true) => 0,
            (false, false) => longest,
        };
        let receive_maximum =
            connect.properties.find(|p| if let Property::ReceiveMaximum(n) = p { Some(n) } else { None });
        if let Some(session) = self.sessions.get_mut(session) {
            let was_durable = session.is_durable();
            session.expiry = expiry;
            session.connection = Some(key.place);
            session.left_at = None;
            session.send_maximum = receive_maximum.map_or(SEND_MAXIMUM, |n| usize::from(n).min(SEND_MAXIMUM));
            if session.is_durable() || was_durable {
                self.turn.builder.state(session.record());
            }
        }
        let mut connack = Vec::new();
        let mut properties = PropertiesBuilder::new();
        if v5 {
            properties.push(Property::ReceiveMaximum(RECEIVE_MAXIMUM));
            properties.push(Property::MaximumPacketSize(PACKET_BYTES as u32));
            properties.push(Property::SubscriptionIdentifierAvailable(0));
            properties.push(Property::SharedSubscriptionAvailable(0));
            if let Some(assigned) = &assigned {
                properties.push(Property::AssignedClientIdentifier(assigned));
            }
            if asked.is_some_and(|asked| asked != expiry) {
                properties.push(Property::SessionExpiryInterval(expiry));
            }
        }
        let packet = ConnAck {
            session_present: present,
            reason: ReasonCode::SUCCESS,
            properties: properties.as_properties(),
        };
        packet.encode(connect.version, &mut connack);
        if let Some((_, connection)) = self.connections.get_mut(key.place) {
            connection.phase = Phase::Open { session, principal };
            connection.keep_alive = u64::from(connect.keep_alive) * 3 / 2;
            connection.will = connect.will.as_ref().map(|will| {
                let publish = Publish {
                    dup: false,
                    qos: will.qos,
                    retain: will.retain,
                    topic: will.topic,
                    packet_id: 0,
                    properties: will.properties,
                    payload: will.payload,
                };
                Message::of(&publish)
            });
            let maximum = connect
                .properties
                .find(|p| if let Property::MaximumPacketSize(n) = p { Some(n) } else { None });
            connection.packet_maximum = maximum.map_or(usize::MAX, |n| n as usize);
        }
        self.turn.answers.push((key, Answer::ConnAck(connack)));
    }

    /// Answers CONNECT with an error, in 3.1.1 by its return code, and closes.
    fn refuse_connect(&mut self, key: ConnectionKey, reason: ReasonCode, code_311: u8) {
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        let reason = if connection.version == Version::V5 { reason } else { ReasonCode(code_311) };
        let packet = ConnAck { session_present: false, reason, properties: Properties::default() };
        packet.encode(connection.version, &mut connection.out);
        connection.closing = true;
        self.touch(key.place);
    }

    /// The session of a client, taken over from its last connection; whether it was there before.
    fn take_session(&mut self, client_id: &str, clean: bool) -> (usize, bool) {
        let known = self.by_client.get(client_id).copied();
        if let Some(place) =
            known.and_then(|key| self.sessions.get(key)).and_then(|session| session.connection)
        {
            if let Some((_, old)) = self.connections.get_mut(place) {
                let goodbye = Answer::Close(ReasonCode::SESSION_TAKEN_OVER);
                encode_answer(&goodbye, old.version, &mut old.out);
                old.flush();
            }
            self.close(place);
        }
        // Closing has ended a session that was not durable.
        match self.by_client.get(client_id).copied() {
            Some(key) if !clean => (key, true),
            known => {
                known.into_iter().for_each(|key| self.drop_session(key));
                (self.add_session(Session::new(client_id)), false)
            }
        }
    }

    fn disconnect(&mut self, key: ConnectionKey, session: usize, disconnect: &Disconnect<'_>) {
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        if disconnect.reason != ReasonCode::DISCONNECT_WITH_WILL {
            connection.will = None;
        }
        let asked = disconnect
            .properties
            .find(|p| if let Property::SessionExpiryInterval(s) = p { Some(s) } else { None });
        if let (Some(asked), Some(session)) = (asked, self.sessions.get_mut(session)) {
            let longest = SESSION_EXPIRY.as_secs() as u32;
            if session.is_durable() {
                let gone = if asked == 0 { session.forget() } else { Vec::new() };
                gone.into_iter().for_each(|record| self.turn.builder.state(record));
                session.expiry = asked.min(longest);
                self.turn.builder.state(session.record());
            } else if asked > 0 {
                return self.refuse(key, ReasonCode::PROTOCOL_ERROR);
            }
        }
        self.close(key.place);
    }

    fn publish(
        &mut self,
        key: ConnectionKey,
        session: usize,
        principal: &Arc<Principal>,
        publish: &Publish<'_>,
    ) {
        self.stats.received.fetch_add(1, Ordering::Relaxed);
        let alias =
            publish.properties.find(|p| if let Property::TopicAlias(alias) = p { Some(alias) } else { None });
        if alias.is_some() {
            // None were offered in CONNACK.
            return self.refuse(key, ReasonCode::TOPIC_ALIAS_INVALID);
        }
        if publish
            .properties
            .find(|p| matches!(p, Property::SubscriptionIdentifier(_)).then_some(()))
            .is_some()
        {
            return self.refuse(key, ReasonCode::PROTOCOL_ERROR);
        }
        let id = publish.packet_id;
        let Some(state) = self.sessions.get_mut(session) else { return };
        let mut taken = false;
        if publish.qos == QoS::ExactlyOnce {
            if state.received.contains(&id) {
                // Sent again, or still on its way: the message is stored once.
                return self.turn.answers.push((key, Answer::PubRec(id, ReasonCode::SUCCESS)));
            }
            if state.received.len() >= RECEIVE_MAXIMUM.into() {
                return self.refuse(key, ReasonCode::RECEIVE_MAXIMUM_EXCEEDED);
            }
            taken = true;
        }
        let v5 =
            self.connections.get(key.place).is_some_and(|(_, connection)| connection.version == Version::V5);
        let outcome = if allows(principal, Action::Publish(publish.topic)) {
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
            self.take(&arriving, || Message::of(publish))
        } else {
            self.stats.denied.fetch_add(1, Ordering::Relaxed);
            Ok(ReasonCode::NOT_AUTHORIZED)
        };
        let reason = match outcome {
            Ok(reason) => reason,
            Err(error) => {
                tracing::warn!(%error, "an MQTT message could not be stored; its client is closed");
                return self.refuse(key, ReasonCode::SERVER_UNAVAILABLE);
            }
        };
        // 3.1.1 can only acknowledge.
        let reason = if v5 { reason } else { ReasonCode::SUCCESS };
        match publish.qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => self.turn.answers.push((key, Answer::PubAck(id, reason))),
            QoS::ExactlyOnce => {
                if taken
                    && !reason.is_error()
                    && let Some(state) = self.sessions.get_mut(session)
                {
                    state.received.insert(id);
                    self.turn.received.push((session, id));
                    if state.is_durable() {
                        self.turn.builder.state(state.received_record(id, true));
                    }
                }
                self.turn.answers.push((key, Answer::PubRec(id, reason)));
            }
        }
    }

    /// Publishes a message that no packet carries: a will, or what a rule says.
    pub(super) fn publish_internal(&mut self, message: &Message, principal: Option<&Principal>) {
        if principal.is_some_and(|principal| !allows(principal, Action::Publish(&message.topic))) {
            self.stats.denied.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let arriving = Arriving {
            topic: &message.topic,
            payload: &message.payload,
            qos: message.qos,
            retain: message.retain,
            beside_default: message.by_rule,
            session: None,
        };
        if let Err(error) = self.take(&arriving, || message.clone()) {
            tracing::warn!(%error, topic = %message.topic, "a message could not be stored");
        }
    }

    /// Stores a message and notes who gets it: source, retained, subscribers. What has to be durable is in the turn's
    /// batch when this returns.
    fn take(
        &mut self,
        arriving: &Arriving<'_>,
        copy: impl Fn() -> Message,
    ) -> sonde_engine::Result<ReasonCode> {
        let mut reason = ReasonCode::SUCCESS;
        let info = self.topic(arriving.topic);
        self.turn.builder.begin_message();
        let source = info.source.as_ref();
        let source = source.filter(|source| !(arriving.beside_default && source.name == DEFAULT_SOURCE));
        match source {
            None => info.stats.stored(0),
            Some(source) => {
                let arrival = self.engine.arrival();
                let incoming = Incoming { topic: arriving.topic, payload: arriving.payload, arrival };
                match source.decode(&self.engine, &mut self.row_buffer, &mut self.turn.builder, &incoming) {
                    Ok(rows) => info.stats.stored(rows as u64),
                    Err(Refusal::Passed) => info.stats.stored(0),
                    Err(Refusal::Engine(error)) => return Err(error),
                    Err(Refusal::Invalid(why)) => {
                        info.stats.rejected(&why);
                        let session = arriving.session.and_then(|session| self.sessions.get(session));
                        let letter = DeadLetter {
                            topic: arriving.topic,
                            client: session.map_or("", |session| &session.client_id),
                            payload: arriving.payload,
                            reason: &why,
                        };
                        dead_letter::write(
                            &self.engine,
                            &self.dead_letters,
                            &mut self.turn.builder,
                            &letter,
                        )?;
                        if source.reject_invalid {
                            reason = ReasonCode::PAYLOAD_FORMAT_INVALID;
                        }
                    }
                }
            }
        }
        let mut message = None;
        if arriving.retain {
            let copied = copy();
            match self.retained.update(&copied) {
                Some(record) => self.turn.builder.state(record),
                None => reason = ReasonCode::QUOTA_EXCEEDED,
            }
            message = Some(copied);
        }
        let mut interests = std::mem::take(&mut self.interests);
        self.router.matches(arriving.topic, &mut interests);
        for found in &interests {
            if found.no_local && arriving.session == Some(found.session) {
                continue;
            }
            let message = message.get_or_insert_with(&copy).clone();
            let qos = found.qos.min(arriving.qos);
            let number = self.next_number();
            let Some(session) = self.sessions.get_mut(found.session) else { continue };
            if session.connection.is_none() && (qos == QoS::AtMostOnce || !session.is_durable()) {
                continue;
            }
            let delivery =
                Delivery { number, message, qos, retain: found.retain_as_published && arriving.retain };
            if qos != QoS::AtMostOnce && session.is_durable() {
                if !session.has_room(&delivery.message) {
                    session.dropped += 1;
                    self.stats.dropped.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                self.turn.builder.state(session.queue_record(&delivery));
            }
            self.turn.deliveries.push((found.session, delivery));
        }
        self.interests = interests;
        Ok(reason)
    }

    fn puback(&mut self, session: usize, packet_id: u16) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        if let Some(number) = state.acknowledged(packet_id) {
            self.done(session, number);
        }
    }

    fn pubcomp(&mut self, session: usize, packet_id: u16) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        if let Some(number) = state.completed(packet_id) {
            self.done(session, number);
        }
    }

    /// A delivery is done with: its record goes, and the next one may be sent.
    fn done(&mut self, session: usize, number: u64) {
        if let Some(state) = self.sessions.get(session).filter(|state| state.is_durable()) {
            self.turn.builder.state(state.dequeue_record(number));
        }
        self.pump(session);
    }

    fn pubrec(&mut self, key: ConnectionKey, session: usize, ack: &Ack<'_>) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        let known = state.received_by_client(ack.packet_id);
        if ack.reason.is_error() {
            // The client does not want it: the exchange is over, without a PUBREL.
            if let Some(number) = state.completed(ack.packet_id) {
                self.done(session, number);
            }
            return;
        }
        let reason = if known { ReasonCode::SUCCESS } else { ReasonCode::PACKET_IDENTIFIER_NOT_FOUND };
        self.turn.answers.push((key, Answer::PubRel(ack.packet_id, reason)));
    }

    fn pubrel(&mut self, key: ConnectionKey, session: usize, packet_id: u16) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        let known = state.received.remove(&packet_id);
        if known && state.is_durable() {
            self.turn.builder.state(state.received_record(packet_id, false));
        }
        let reason = if known { ReasonCode::SUCCESS } else { ReasonCode::PACKET_IDENTIFIER_NOT_FOUND };
        self.turn.answers.push((key, Answer::PubComp(packet_id, reason)));
    }

    fn subscribe(
        &mut self,
        key: ConnectionKey,
        session: usize,
        principal: &Arc<Principal>,
        subscribe: &Subscribe<'_>,
    ) {
        let identified = subscribe
            .properties
            .find(|p| matches!(p, Property::SubscriptionIdentifier(_)).then_some(()))
            .is_some();
        if identified {
            // CONNACK said that there are none.
            return self.refuse(key, ReasonCode(0xa1));
        }
        let v5 =
            self.connections.get(key.place).is_some_and(|(_, connection)| connection.version == Version::V5);
        let mut reasons = Vec::new();
        let mut retained = Vec::new();
        for filter in subscribe.filters() {
            let Some(state) = self.sessions.get_mut(session) else { return };
            let is_new = !state.subscriptions.contains_key(filter.filter);
            let refused = if is_shared(filter.filter) {
                Some(ReasonCode::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED)
            } else if !allows(principal, Action::Subscribe(filter.filter)) {
                self.stats.denied.fetch_add(1, Ordering::Relaxed);
                Some(ReasonCode::NOT_AUTHORIZED)
            } else if is_new && state.subscriptions.len() >= SUBSCRIPTIONS {
                Some(ReasonCode::QUOTA_EXCEEDED)
            } else {
                None
            };
            if let Some(refused) = refused {
                reasons.push(if v5 { refused.0 } else { 0x80 });
                continue;
            }
            let subscription = Subscription {
                qos: filter.qos,
                no_local: filter.no_local,
                retain_as_published: filter.retain_as_published,
            };
            state.subscriptions.insert(filter.filter.to_owned(), subscription);
            self.router.subscribe(filter.filter, interest(session, subscription));
            reasons.push(filter.qos as u8);
            let sends = match filter.retain_handling {
                RetainHandling::Send => true,
                RetainHandling::SendIfNew => is_new,
                RetainHandling::Never => false,
            };
            if sends {
                let messages = self.retained.matching(filter.filter);
                retained.extend(messages.into_iter().map(|message| (filter.qos.min(message.qos), message)));
            }
        }
        if let Some(state) = self.sessions.get(session).filter(|state| state.is_durable()) {
            self.turn.builder.state(state.record());
        }
        self.turn.answers.push((key, Answer::SubAck(subscribe.packet_id, reasons)));
        for (qos, message) in retained {
            let delivery = Delivery { number: self.next_number(), message, qos, retain: true };
            if let Some(state) =
                self.sessions.get(session).filter(|s| s.is_durable() && qos != QoS::AtMostOnce)
            {
                self.turn.builder.state(state.queue_record(&delivery));
            }
            self.turn.deliveries.push((session, delivery));
        }
    }

    fn unsubscribe(&mut self, key: ConnectionKey, session: usize, unsubscribe: &Unsubscribe<'_>) {
        let v5 =
            self.connections.get(key.place).is_some_and(|(_, connection)| connection.version == Version::V5);
        let mut reasons = Vec::new();
        let Some(state) = self.sessions.get_mut(session) else { return };
        for filter in unsubscribe.filters() {
            let known = state.subscriptions.remove(filter).is_some();
            self.router.unsubscribe(filter, session);
            let reason = if known { ReasonCode::SUCCESS } else { ReasonCode::NO_SUBSCRIPTION_EXISTED };
            reasons.push(reason.0);
        }
        if state.is_durable() {
            self.turn.builder.state(state.record());
        }
        let reasons = if v5 { reasons } else { Vec::new() };
        self.turn.answers.push((key, Answer::UnsubAck(unsubscribe.packet_id, reasons)));
    }
}
