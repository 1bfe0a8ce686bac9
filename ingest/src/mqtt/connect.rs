//! CONNECT and DISCONNECT: who a client is, and which session it gets.

use std::sync::Arc;

use sonde_access::{Principal, SCRAM};
use sonde_proto::mqtt::{
    ConnAck, Connect, Disconnect, Properties, PropertiesBuilder, Property, Publish, ReasonCode, Version,
};

use super::connection::Phase;
use super::message::Message;
use super::packets::encode_answer;
use super::router::SessionKey;
use super::session::Session;
use super::turn::{Answer, ConnectionKey};
use super::worker::Worker;
use crate::limits::{PACKET_BYTES, RECEIVE_MAXIMUM, SEND_MAXIMUM, SESSION_EXPIRY};

impl Worker {
    pub(super) fn connect(&mut self, key: ConnectionKey, connect: &Connect<'_>) {
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        connection.version = connect.version;
        match self.recognise(key, connect) {
            Some(Ok(principal)) => self.welcome(key, connect, principal, None),
            Some(Err((reason, code))) => self.refuse_connect(key, reason, code),
            None => {}
        }
    }

    /// Lets a client in whom `principal` is; `told` is what ends its SCRAM exchange.
    pub(super) fn welcome(
        &mut self,
        key: ConnectionKey,
        connect: &Connect<'_>,
        principal: Arc<Principal>,
        told: Option<&[u8]>,
    ) {
        let assigned = connect.client_id.is_empty().then(|| format!("auto-{:016x}", self.next_number()));
        let client_id = assigned.as_deref().unwrap_or(connect.client_id);
        if !self.may_take(client_id, &principal) {
            tracing::info!(client = client_id, principal = principal.name, "the session is someone else's");
            return self.refuse_connect(key, ReasonCode::CLIENT_IDENTIFIER_NOT_VALID, 2);
        }
        let (session, present) = self.take_session(client_id, connect.clean_start);
        let expiry = self.begin_session(key, session, connect, &principal);
        let given = Given { present, expiry, assigned: assigned.as_deref(), told };
        let connack = connack(connect, &given);
        let now = self.now();
        if let Some((_, connection)) = self.connections.get_mut(key.place) {
            connection.by_scram = told.is_some();
            connection.phase = Phase::Open { session, principal };
            connection.heard_at = now;
            connection.keep_alive = u64::from(connect.keep_alive) * 3 / 2;
            connection.will = will(connect);
            let maximum = connect
                .properties
                .find(|p| if let Property::MaximumPacketSize(n) = p { Some(n) } else { None });
            connection.packet_maximum = maximum.map_or(usize::MAX, |n| n as usize);
        }
        self.turn.answers.push((key, Answer::ConnAck(connack)));
    }

    /// Ties a session to its new connection. Returns the expiry that it has from now on.
    fn begin_session(
        &mut self,
        key: ConnectionKey,
        session: SessionKey,
        connect: &Connect<'_>,
        principal: &Principal,
    ) -> u32 {
        // What the client had subscribed to it may have to give up.
        self.recheck(session, principal);
        let longest = SESSION_EXPIRY.as_secs() as u32;
        let expiry = match (connect.version, connect.clean_start) {
            (Version::V5, _) => asked_expiry(&connect.properties).unwrap_or_default().min(longest),
            (Version::V311, true) => 0,
            (Version::V311, false) => longest,
        };
        let receive_maximum =
            connect.properties.find(|p| if let Property::ReceiveMaximum(n) = p { Some(n) } else { None });
        if let Some(session) = self.sessions.get_mut(session) {
            let was_durable = session.is_durable();
            session.expiry = expiry;
            let owner = principal.owner();
            let owned = session.owner.is_some() || owner.is_some();
            session.owner = owner;
            session.connection = Some(key.place);
            session.left_at = None;
            session.connected_at = Some(self.engine.now());
            self.sys.client_came();
            session.send_maximum = receive_maximum.map_or(SEND_MAXIMUM, |n| usize::from(n).min(SEND_MAXIMUM));
            if session.is_durable() {
                self.turn.builder.state(session.record());
                if owned {
                    self.turn.builder.state(session.owner_record());
                }
            } else if was_durable {
                session.forget().into_iter().for_each(|record| self.turn.builder.state(record));
            }
        }
        expiry
    }

    /// Answers CONNECT with an error, in 3.1.1 by its return code, and closes.
    pub(super) fn refuse_connect(&mut self, key: ConnectionKey, reason: ReasonCode, code_311: u8) {
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        let reason = if connection.version == Version::V5 { reason } else { ReasonCode(code_311) };
        let packet = ConnAck { session_present: false, reason, properties: Properties::default() };
        packet.encode(connection.version, &mut connection.out);
        self.sys.traffic.packets_sent += 1;
        connection.closing = true;
        self.touch(key.place);
    }

    /// Whether someone may have the session of this client id: a session with an owner is that one's alone.
    fn may_take(&self, client_id: &str, principal: &Principal) -> bool {
        let known = self.by_client.get(client_id).and_then(|key| self.sessions.get(*key));
        known.is_none_or(|session| session.owner.is_none() || session.owner == principal.owner())
    }

    /// The session of a client, taken over from its last connection; whether it was there before.
    fn take_session(&mut self, client_id: &str, clean: bool) -> (SessionKey, bool) {
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
                let incarnation = self.next_number();
                (self.add_session(Session::new(client_id, incarnation)), false)
            }
        }
    }

    pub(super) fn disconnect(
        &mut self,
        key: ConnectionKey,
        session: SessionKey,
        disconnect: &Disconnect<'_>,
    ) {
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        if disconnect.reason != ReasonCode::DISCONNECT_WITH_WILL {
            connection.will = None;
        }
        let asked = asked_expiry(&disconnect.properties);
        if let (Some(asked), Some(session)) = (asked, self.sessions.get_mut(session)) {
            let longest = SESSION_EXPIRY.as_secs() as u32;
            if session.is_durable() {
                let gone = if asked == 0 { session.forget() } else { Vec::new() };
                gone.into_iter().for_each(|record| self.turn.builder.state(record));
                session.expiry = asked.min(longest);
                if session.is_durable() {
                    self.turn.builder.state(session.record());
                }
            } else if asked > 0 {
                return self.refuse(key, ReasonCode::PROTOCOL_ERROR);
            }
        }
        self.close(key.place);
    }
}

fn asked_expiry(properties: &Properties<'_>) -> Option<u32> {
    properties.find(|p| if let Property::SessionExpiryInterval(s) = p { Some(s) } else { None })
}

/// What a client gets besides what it asked for.
struct Given<'a> {
    present: bool,
    expiry: u32,
    assigned: Option<&'a str>,
    /// The end of its SCRAM exchange.
    told: Option<&'a [u8]>,
}

fn connack(connect: &Connect<'_>, given: &Given<'_>) -> Vec<u8> {
    let mut properties = PropertiesBuilder::new();
    if connect.version == Version::V5 {
        properties.push(Property::ReceiveMaximum(RECEIVE_MAXIMUM));
        properties.push(Property::MaximumPacketSize(PACKET_BYTES as u32));
        if let Some(assigned) = given.assigned {
            properties.push(Property::AssignedClientIdentifier(assigned));
        }
        if asked_expiry(&connect.properties).is_some_and(|asked| asked != given.expiry) {
            properties.push(Property::SessionExpiryInterval(given.expiry));
        }
        if let Some(told) = given.told {
            properties.push(Property::AuthenticationMethod(SCRAM));
            properties.push(Property::AuthenticationData(told));
        }
    }
    let packet = ConnAck {
        session_present: given.present,
        reason: ReasonCode::SUCCESS,
        properties: properties.as_properties(),
    };
    let mut bytes = Vec::new();
    packet.encode(connect.version, &mut bytes);
    bytes
}

fn will(connect: &Connect<'_>) -> Option<Message> {
    let will = connect.will.as_ref()?;
    Some(Message::of(&Publish {
        dup: false,
        qos: will.qos,
        retain: will.retain,
        topic: will.topic,
        packet_id: 0,
        properties: will.properties,
        payload: will.payload,
    }))
}
