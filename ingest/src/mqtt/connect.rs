//! CONNECT and DISCONNECT: who a client is, and which session it gets.

use std::sync::Arc;

use sonde_access::{Origin, Principal, SCRAM};
use sonde_proto::mqtt::{
    ConnAck, Connect, DecodeError, Disconnect, Properties, PropertiesBuilder, Property, ReasonCode, Version,
};

use super::alias::AliasesOut;
use super::authenticate::Unwelcome;
use super::connection::Phase;
use super::router::SessionKey;
use super::session::Session;
use super::stats::Refused;
use super::tenant::TENANT_FULL;
use super::turn::{Answer, ConnectionKey};
use super::will::{WILLS, Will};
use super::worker::Worker;
use crate::limits::{
    KEEP_ALIVE_MAXIMUM, LARGEST_PACKET, PACKET_BYTES, RECEIVE_MAXIMUM, SEND_MAXIMUM, SESSION_EXPIRY,
    TOPIC_ALIAS_MAXIMUM,
};

impl Worker {
    pub(super) fn connect(&mut self, key: ConnectionKey, connect: &Connect<'_>) {
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        connection.version = connect.version;
        let find_maximum = |p| if let Property::MaximumPacketSize(n) = p { Some(n) } else { None };
        let maximum = connect.properties.find(find_maximum).map_or(LARGEST_PACKET, |n| n as usize);
        connection.packet_maximum = maximum.min(LARGEST_PACKET);
        connection.explains = !connect.properties.iter().any(|p| p == Property::RequestProblemInformation(0));
        match self.recognise(key, connect) {
            Some(Ok(principal)) => self.welcome(key, connect, principal, None),
            Some(Err(unwelcome)) => self.turn_back(key, unwelcome),
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
        let Some((_, connection)) = self.connections.get(key.place) else { return };
        let peer = connection.peer.ip();
        if self.connects_too_often(peer, connect.client_id, principal.owner()) {
            let why = "this client or its address connects too often: wait before the next time";
            return self.turn_back(key, (ReasonCode::CONNECTION_RATE_EXCEEDED, 3, why));
        }
        let assigned = connect.client_id.is_empty().then(|| format!("auto-{:016x}", self.next_number()));
        let client_id = assigned.as_deref().unwrap_or(connect.client_id);
        if !self.may_take(client_id, &principal) {
            tracing::info!(client = client_id, principal = principal.name, "the session is someone else's");
            let why = "the session of this client id belongs to another user";
            return self.turn_back(key, (ReasonCode::CLIENT_IDENTIFIER_NOT_VALID, 2, why));
        }
        if !self.has_place_for(client_id, &principal) {
            self.stats.refuse(Refused::Tenant);
            tracing::info!(
                client = client_id,
                principal = principal.name,
                tenant = principal.tenant(),
                "MQTT client refused: its tenant has as many connections as it may"
            );
            return self.refuse_connect_because(key, ReasonCode::QUOTA_EXCEEDED, 3, TENANT_FULL);
        }
        if !self.budget.has_room_for_will(Will::weight_of(connect)) {
            self.stats.refuse(Refused::Will);
            let why = "there is no memory for more wills: connect without one, or raise memory.limit";
            return self.turn_back(key, (ReasonCode::QUOTA_EXCEEDED, 3, why));
        }
        let (session, present) = self.take_session(client_id, connect.clean_start);
        let will = Will::of(connect);
        let expiry = self.begin_session(key, session, connect, will.as_deref(), &principal);
        self.join_tenant(key, session, principal.tenant());
        let granted = Granted {
            present: present && !connect.is_3_1,
            expiry,
            assigned: assigned.as_deref(),
            client_id,
            server_keep_alive: self.server_keep_alive(connect),
            told,
        };
        let connack = granted.connack(connect);
        let keep_alive = granted.server_keep_alive.unwrap_or(connect.keep_alive);
        let now = self.now_millis();
        if let Some((_, connection)) = self.connections.get_mut(key.place) {
            connection.by_scram = told.is_some();
            connection.phase = Phase::Open { session, principal };
            connection.heard_at = now;
            connection.keep_alive = u64::from(keep_alive) * 1500;
            connection.will = will;
            let aliases = connect
                .properties
                .find(|p| if let Property::TopicAliasMaximum(n) = p { Some(n) } else { None });
            connection.aliases_out = AliasesOut::new(aliases.unwrap_or_default());
        }
        self.turn.answers.push((key, Answer::ConnAck(connack)));
    }

    /// The keep alive that a client of 5.0 gets instead of its own; earlier versions have no way to be told.
    fn server_keep_alive(&self, connect: &Connect<'_>) -> Option<u16> {
        let maximum = self.offers.keep_alive_maximum;
        let too_long = connect.keep_alive == 0 || connect.keep_alive > maximum;
        (connect.version == Version::V5 && maximum < KEEP_ALIVE_MAXIMUM && too_long).then_some(maximum)
    }

    /// A CONNECT that does not decode: the versions say how that is answered ([MQTT-3.1.2-2], section 4.13).
    pub(super) fn refuse_malformed(&mut self, key: ConnectionKey, bytes: &[u8], error: &DecodeError) {
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        let version = match error {
            // A client of a version to come understands 5.0 best; the upper bit is that of bridges of 3.1 and 3.1.1.
            DecodeError::UnsupportedVersion(6..=0x7f) => Version::V5,
            DecodeError::UnsupportedVersion(_) => Version::V311,
            _ => match Connect::version_of(bytes) {
                Some(Version::V5) => Version::V5,
                // 3.1.1 has no return code for it, and what is no CONNECT is not answered at all.
                _ => return self.close(key.place),
            },
        };
        connection.version = version;
        self.refuse_connect_because(key, error.reason(), 1, error.what());
    }

    /// Ties a session to its new connection. Returns the expiry that it has from now on.
    fn begin_session(
        &mut self,
        key: ConnectionKey,
        session: SessionKey,
        connect: &Connect<'_>,
        will: Option<&Will>,
        principal: &Arc<Principal>,
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
        let mut ends_durable = false;
        if expiry == 0 {
            // What was logged for it in this turn gets its number while the session is durable.
            self.settle_order(session);
        }
        if let Some(session) = self.sessions.get_mut(session) {
            let was_durable = session.is_durable();
            // The client is back before its will was due: it is not published ([MQTT-3.1.3-9]).
            let cancelled = session.will.take().is_some();
            session.expiry = expiry;
            let owner = principal.owner();
            let owned = session.owner.is_some() || owner.is_some();
            session.owner = owner;
            let is_same = |known: &Arc<Principal>| known.is_recorded_as(principal);
            let is_recorded = session.principal.as_ref().is_some_and(is_same) && was_durable;
            session.principal = Some(Arc::clone(principal));
            session.connection = Some(key.place);
            session.left_at = None;
            session.connected_at = Some(self.engine.now());
            self.sys.client_came();
            session.send_maximum = receive_maximum.map_or(SEND_MAXIMUM, |n| usize::from(n).min(SEND_MAXIMUM));
            if session.is_durable() {
                self.turn.builder.state(session.record());
                if cancelled && will.is_none() {
                    self.turn.builder.state(session.gone(WILLS, &[]));
                }
                if owned {
                    self.turn.builder.state(session.owner_record());
                    if !is_recorded {
                        self.turn.builder.state(session.principal_record());
                    }
                }
            } else if was_durable {
                ends_durable = true;
            }
        }
        if ends_durable {
            self.forget_records(session);
        }
        if let (Some(will), Some(session)) = (will, self.sessions.get(session)) {
            self.turn.builder.state(will.record(session, principal));
        }
        expiry
    }

    /// Answers CONNECT with an error, in 3.1.1 by its return code, and closes.
    pub(super) fn turn_back(&mut self, key: ConnectionKey, (reason, code_311, why): Unwelcome) {
        self.refuse_connect_because(key, reason, code_311, why);
    }

    fn refuse_connect_because(
        &mut self,
        key: ConnectionKey,
        reason: ReasonCode,
        code_311: u8,
        why: &'static str,
    ) {
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        let mut properties = PropertiesBuilder::new();
        let reason = match (connection.version, reason, &self.offers.server_reference) {
            (Version::V311, ..) => ReasonCode(code_311),
            (Version::V5, ReasonCode::SERVER_UNAVAILABLE, Some(reference)) => {
                properties.push(Property::ServerReference(reference));
                ReasonCode::USE_ANOTHER_SERVER
            }
            (Version::V5, ..) => reason,
        };
        if !why.is_empty() {
            properties.push(Property::ReasonString(why));
        }
        let start = connection.out.len();
        let mut packet = ConnAck { session_present: false, reason, properties: properties.as_properties() };
        packet.encode(connection.version, &mut connection.out);
        self.sys.traffic.packets_sent += 1;
        if connection.out.len() - start > connection.packet_maximum {
            connection.out.truncate(start);
            packet.properties = Properties::default();
            packet.encode(connection.version, &mut connection.out);
            if connection.out.len() - start > connection.packet_maximum {
                connection.out.truncate(start);
            }
        }
        connection.closing = true;
        self.stats.connack(reason);
        self.touch(key.place);
    }

    /// Whether someone may have the session of this client id: a session with an owner is that one's alone. That of a user
    /// who is no more is nobody's, and ends.
    fn may_take(&mut self, client_id: &str, principal: &Principal) -> bool {
        let Some(key) = self.by_client.get(client_id).copied() else { return true };
        let Some(session) = self.sessions.get(key) else { return true };
        let Some(owner) = &session.owner else { return true };
        let recorded = session.principal.as_deref();
        if principal.is_owner(owner, recorded) {
            return true;
        }
        let is_over = session.connection.is_none()
            && recorded.is_some_and(|recorded| {
                matches!(recorded.origin(), Origin::User) && self.authenticate.rights_of(recorded).is_none()
            });
        if is_over {
            self.drop_session(key);
        }
        is_over
    }

    /// The session of a client, taken over from its last connection; whether it was there before.
    fn take_session(&mut self, client_id: &str, clean: bool) -> (SessionKey, bool) {
        let known = self.by_client.get(client_id).copied();
        if let Some(place) =
            known.and_then(|key| self.sessions.get(key)).and_then(|session| session.connection)
        {
            self.tell_end(place, ReasonCode::SESSION_TAKEN_OVER);
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
        let of_server = |p: Property<'_>| matches!(p, Property::ServerReference(_)).then_some(());
        if !is_sent_by_clients(disconnect.reason) || disconnect.properties.find(of_server).is_some() {
            let why = "a DISCONNECT that only a server sends";
            return self.refuse_because(key, ReasonCode::PROTOCOL_ERROR, why);
        }
        let asked = asked_expiry(&disconnect.properties);
        let Some(state) = self.sessions.get_mut(session) else { return };
        if !state.is_durable() && asked.is_some_and(|asked| asked > 0) {
            let why = "a session expiry in DISCONNECT, and none in CONNECT";
            return self.refuse_because(key, ReasonCode::PROTOCOL_ERROR, why);
        }
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        // Any other reason leaves the will to be published ([MQTT-3.14.4-3]).
        let taken_back = disconnect.reason == ReasonCode::SUCCESS && connection.will.take().is_some();
        if taken_back {
            self.turn.builder.state(state.gone(WILLS, &[]));
        }
        if let Some(asked) = asked.filter(|_| state.is_durable()) {
            if asked == 0 {
                // What was logged for it in this turn gets its number while the session is durable.
                self.settle_order(session);
                self.forget_records(session);
            }
            if let Some(state) = self.sessions.get_mut(session) {
                state.expiry = asked.min(SESSION_EXPIRY.as_secs() as u32);
                if state.is_durable() {
                    self.turn.builder.state(state.record());
                }
            }
        }
        self.close(key.place);
    }
}

/// The reasons that table 3-13 gives to clients.
fn is_sent_by_clients(reason: ReasonCode) -> bool {
    matches!(reason.0, 0x00 | 0x04 | 0x80..=0x83 | 0x90 | 0x93..=0x99)
}

fn asked_expiry(properties: &Properties<'_>) -> Option<u32> {
    properties.find(|p| if let Property::SessionExpiryInterval(s) = p { Some(s) } else { None })
}

/// What a client gets that is let in.
struct Granted<'a> {
    present: bool,
    expiry: u32,
    assigned: Option<&'a str>,
    client_id: &'a str,
    server_keep_alive: Option<u16>,
    /// The end of its SCRAM exchange.
    told: Option<&'a [u8]>,
}

impl Granted<'_> {
    fn connack(&self, connect: &Connect<'_>) -> Vec<u8> {
        let mut properties = PropertiesBuilder::new();
        if connect.version == Version::V5 {
            self.describe(connect, &mut properties);
        }
        let packet = ConnAck {
            session_present: self.present,
            reason: ReasonCode::SUCCESS,
            properties: properties.as_properties(),
        };
        let mut bytes = Vec::new();
        packet.encode(connect.version, &mut bytes);
        bytes
    }

    fn describe(&self, connect: &Connect<'_>, properties: &mut PropertiesBuilder) {
        properties.push(Property::ReceiveMaximum(RECEIVE_MAXIMUM));
        properties.push(Property::MaximumPacketSize(PACKET_BYTES as u32));
        properties.push(Property::TopicAliasMaximum(TOPIC_ALIAS_MAXIMUM));
        if let Some(assigned) = self.assigned {
            properties.push(Property::AssignedClientIdentifier(assigned));
        }
        if asked_expiry(&connect.properties).is_some_and(|asked| asked != self.expiry) {
            properties.push(Property::SessionExpiryInterval(self.expiry));
        }
        if let Some(seconds) = self.server_keep_alive {
            properties.push(Property::ServerKeepAlive(seconds));
        }
        let asks = connect.properties.iter().any(|p| p == Property::RequestResponseInformation(1));
        if asks && !self.client_id.contains(['+', '#']) {
            properties.push(Property::ResponseInformation(&format!("response/{}/", self.client_id)));
        }
        if let Some(told) = self.told {
            properties.push(Property::AuthenticationMethod(SCRAM));
            properties.push(Property::AuthenticationData(told));
        }
    }
}
