//! CONNECT and DISCONNECT: who a client is, and which session it gets.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_access::Principal;
use sonde_proto::mqtt::{
    ConnAck, Connect, Disconnect, Properties, PropertiesBuilder, Property, Publish, ReasonCode, Version,
};

use super::Credentials;
use super::connection::Phase;
use super::message::Message;
use super::packets::encode_answer;
use super::router::SessionKey;
use super::session::Session;
use super::turn::{Answer, ConnectionKey};
use super::worker::Worker;
use crate::limits::{PACKET_BYTES, RECEIVE_MAXIMUM, SEND_MAXIMUM, SESSION_EXPIRY};

/// Bytes of a client id.
const CLIENT_ID_BYTES: usize = 1024;

/// It connects too often (MQTT 5, 3.2.2.2).
const CONNECTION_RATE_EXCEEDED: ReasonCode = ReasonCode(0x9F);

/// Why a client is not let in: the reason of 5.0 and the return code of 3.1.1.
type Unwelcome = (ReasonCode, u8);

impl Worker {
    pub(super) fn connect(&mut self, key: ConnectionKey, connect: &Connect<'_>) {
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        connection.version = connect.version;
        let principal = match self.recognise(key, connect) {
            Ok(principal) => principal,
            Err((reason, code)) => return self.refuse_connect(key, reason, code),
        };
        let assigned = connect.client_id.is_empty().then(|| format!("auto-{:016x}", self.next_number()));
        let client_id = assigned.as_deref().unwrap_or(connect.client_id);
        let (session, present) = self.take_session(client_id, connect.clean_start);
        let expiry = self.begin_session(key, session, connect);
        let connack = connack(connect, present, expiry, assigned.as_deref());
        let now = self.now();
        if let Some((_, connection)) = self.connections.get_mut(key.place) {
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

    /// Who the client is, if it may come in.
    fn recognise(&mut self, key: ConnectionKey, connect: &Connect<'_>) -> Result<Arc<Principal>, Unwelcome> {
        let Some((_, connection)) = self.connections.get(key.place) else {
            return Err((ReasonCode::SERVER_UNAVAILABLE, 3));
        };
        let peer = connection.peer;
        let certificate = connection.transport.client_certificate();
        if let Err(error) = self.engine.health() {
            tracing::warn!(%peer, %error, "MQTT client refused: nothing can be stored");
            return Err((ReasonCode::SERVER_UNAVAILABLE, 3));
        }
        let method = connect
            .properties
            .find(|p| if let Property::AuthenticationMethod(m) = p { Some(m) } else { None });
        if method.is_some() {
            return Err((ReasonCode::BAD_AUTHENTICATION_METHOD, 5));
        }
        let credentials = Credentials {
            peer: peer.ip(),
            username: connect.username,
            password: connect.password,
            certificate: certificate.as_ref(),
        };
        let Some(principal) = (self.authenticate)(&credentials) else {
            self.stats.denied.fetch_add(1, Ordering::Relaxed);
            tracing::info!(%peer, client = connect.client_id, "MQTT client refused: it is not known");
            return Err(match connect.password {
                None => (ReasonCode::NOT_AUTHORIZED, 5),
                Some(_) => (ReasonCode::BAD_USER_NAME_OR_PASSWORD, 4),
            });
        };
        let id = connect.client_id;
        let nameless = id.is_empty() && connect.version != Version::V5 && !connect.clean_start;
        if nameless || id.contains('\0') || id.len() > CLIENT_ID_BYTES {
            return Err((ReasonCode::CLIENT_IDENTIFIER_NOT_VALID, 2));
        }
        if self.connects_too_often(peer.ip(), id) {
            return Err((CONNECTION_RATE_EXCEEDED, 3));
        }
        Ok(principal)
    }

    /// Ties a session to its new connection. Returns the expiry that it has from now on.
    fn begin_session(&mut self, key: ConnectionKey, session: SessionKey, connect: &Connect<'_>) -> u32 {
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
            session.connection = Some(key.place);
            session.left_at = None;
            session.connected_at = Some(self.engine.now());
            self.sys.client_came();
            session.send_maximum = receive_maximum.map_or(SEND_MAXIMUM, |n| usize::from(n).min(SEND_MAXIMUM));
            if session.is_durable() {
                self.turn.builder.state(session.record());
            } else if was_durable {
                session.forget().into_iter().for_each(|record| self.turn.builder.state(record));
            }
        }
        expiry
    }

    /// Answers CONNECT with an error, in 3.1.1 by its return code, and closes.
    fn refuse_connect(&mut self, key: ConnectionKey, reason: ReasonCode, code_311: u8) {
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        let reason = if connection.version == Version::V5 { reason } else { ReasonCode(code_311) };
        let packet = ConnAck { session_present: false, reason, properties: Properties::default() };
        packet.encode(connection.version, &mut connection.out);
        self.sys.traffic.packets_sent += 1;
        connection.closing = true;
        self.stats.connack(reason);
        self.touch(key.place);
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

fn connack(connect: &Connect<'_>, present: bool, expiry: u32, assigned: Option<&str>) -> Vec<u8> {
    let mut properties = PropertiesBuilder::new();
    if connect.version == Version::V5 {
        properties.push(Property::ReceiveMaximum(RECEIVE_MAXIMUM));
        properties.push(Property::MaximumPacketSize(PACKET_BYTES as u32));
        if let Some(assigned) = assigned {
            properties.push(Property::AssignedClientIdentifier(assigned));
        }
        if asked_expiry(&connect.properties).is_some_and(|asked| asked != expiry) {
            properties.push(Property::SessionExpiryInterval(expiry));
        }
    }
    let packet = ConnAck {
        session_present: present,
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
