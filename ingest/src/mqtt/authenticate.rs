//! Who a client is, at CONNECT, by AUTH (MQTT 5, 4.12), and whenever rights change.
//!
//! # Invariants
//! - The event loop never waits: what takes long is answered through the inbox, and until then nothing more of the client
//!   is read, while the time that it has for CONNECT runs on.
//! - A connection whose client is not recognised yet can do nothing but end, or go on with its AUTH exchange.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use sonde_access::{Action, Principal, SCRAM, Scram, allows};
use sonde_proto::mqtt::{
    Auth, Connect, Packet, Properties, PropertiesBuilder, Property, ReasonCode, Version, decode,
};

use super::connection::{Connection, Phase};
use super::packets::explain;
use super::router::SessionKey;
use super::session::Session;
use super::turn::ConnectionKey;
use super::will::WILLS;
use super::worker::Worker;
use super::{Command, Inbox};
use crate::limits::{CLIENT_ID_BYTES, CONNECT_BYTES};

/// AUTH: go on with the exchange (MQTT 5, 3.15.2.1).
const CONTINUE: ReasonCode = ReasonCode(0x18);
/// AUTH: authenticate again.
const AGAIN: ReasonCode = ReasonCode(0x19);

/// The names in a client's certificate, which the listener's authorities have signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The common name of its subject.
    pub common_name: Option<String>,
    /// Its subject alternative names: DNS names, URIs and addresses of e-mail.
    pub names: Vec<String>,
}

/// What a client sent to be recognised.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    /// From where it connects.
    pub peer: IpAddr,
    /// The client id that it asks for; empty for one of the server's choice.
    pub client_id: &'a str,
    /// Its user name.
    pub username: Option<&'a str>,
    /// Its password or token.
    pub password: Option<&'a [u8]>,
    /// Its certificate, on a listener that asks for one.
    pub certificate: Option<&'a ClientCertificate>,
}

impl std::fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, {})", self.peer, self.client_id)
    }
}

/// Why someone is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody with these credentials is known.
    Unknown,
    /// The user is bound to another client id.
    ClientId,
    /// Too many want to come in, or this one has guessed too often: later it may work.
    Busy,
}

/// The end of an exchange: who it was, and what the client is told last.
pub type Ended = (Arc<Principal>, Vec<u8>);

/// Recognises clients.
pub trait Authenticate: Send + Sync {
    /// Who a client is; `None` where `later` is answered instead.
    fn recognise(
        &self,
        credentials: &Credentials<'_>,
        later: Later,
    ) -> Option<Result<Arc<Principal>, Refusal>>;
    /// Begins a SCRAM exchange; what the client is told.
    fn begin_scram(&self, peer: IpAddr, first: &[u8]) -> Result<(Scram, Vec<u8>), Refusal>;
    /// Ends a SCRAM exchange; `credentials` have no password.
    fn end_scram(&self, credentials: &Credentials<'_>, scram: &Scram, last: &[u8]) -> Result<Ended, Refusal>;
    /// Another number whenever someone's rights may have changed.
    fn version(&self) -> u64;
    /// Someone whose connection is open, with the rights of now; `None` where it could not come in any more with the
    /// credential and the client id that it came with; a tail has none.
    fn renew(&self, principal: &Principal, client_id: Option<&str>) -> Option<Arc<Principal>>;
    /// Someone whose connection is gone, with the rights of now; `None` where it is gone.
    fn rights_of(&self, principal: &Principal) -> Option<Arc<Principal>>;
}

/// Where the answer goes that takes long. A client that gets none is closed after `RECOGNISE_TIME`.
#[derive(Debug)]
pub struct Later {
    inbox: Arc<Inbox>,
    key: ConnectionKey,
}

impl Later {
    /// Answers.
    pub fn answer(self, answer: Result<Arc<Principal>, Refusal>) {
        let ConnectionKey { place, generation } = self.key;
        self.inbox.send(Command::Recognised { place, generation, answer });
    }
}

/// What a connection waits for before its client is recognised, or is recognised again.
#[derive(Debug)]
pub(super) enum Waiting {
    /// The answer to this CONNECT.
    Answer(Vec<u8>),
    /// The client's AUTH, for this CONNECT.
    Exchange(Vec<u8>, Scram),
    /// The client's AUTH, of one that is let in already.
    Again(Scram),
}

/// Why a client is not let in: the reason of 5.0, the return code of 3.1.1, and the Reason String.
pub(super) type Unwelcome = (ReasonCode, u8, &'static str);

/// Whoever came with a credential that is none any more is told.
const OUTDATED: &str =
    "the user, password, token, key, certificate or client id of this connection is not accepted any more";

/// Why an exchange does not go on that was begun.
const AUTH_TOO_LARGE: &str = "the AUTH packet is larger than this client takes (Maximum Packet Size)";

fn unwelcome(refusal: Refusal, has_secret: bool) -> Unwelcome {
    match refusal {
        Refusal::Unknown if has_secret => as_it_is(ReasonCode::BAD_USER_NAME_OR_PASSWORD, 4),
        Refusal::Unknown => (
            ReasonCode::NOT_AUTHORIZED,
            5,
            "nobody is let in without a user and password, a token, or a certificate that is a user's",
        ),
        Refusal::ClientId => {
            (ReasonCode::CLIENT_IDENTIFIER_NOT_VALID, 2, "the user is bound to another client id")
        }
        Refusal::Busy => (
            ReasonCode::SERVER_BUSY,
            3,
            "too many logins wait, or too many passwords from this address were wrong: try again in a minute",
        ),
    }
}

/// A refusal whose code says what is wrong.
fn as_it_is(reason: ReasonCode, code_311: u8) -> Unwelcome {
    (reason, code_311, explain(reason))
}

fn method<'a>(properties: &Properties<'a>) -> Option<&'a str> {
    properties.find(|p| if let Property::AuthenticationMethod(method) = p { Some(method) } else { None })
}

fn data<'a>(properties: &Properties<'a>) -> Option<&'a [u8]> {
    properties.find(|p| if let Property::AuthenticationData(data) = p { Some(data) } else { None })
}

fn encoded(connect: &Connect<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    connect.encode(&mut bytes);
    bytes
}

impl Worker {
    /// Who the client is, if it may come in; `None` where that is not known yet.
    pub(super) fn recognise(
        &mut self,
        key: ConnectionKey,
        connect: &Connect<'_>,
    ) -> Option<Result<Arc<Principal>, Unwelcome>> {
        let (_, connection) = self.connections.get_mut(key.place)?;
        let peer = connection.peer;
        if let Err(error) = self.engine.health() {
            if let Some(times) = self.not_stored.again(Instant::now()) {
                tracing::warn!(%peer, %error, times, "MQTT client refused: nothing can be stored");
            }
            return Some(Err(as_it_is(ReasonCode::SERVER_UNAVAILABLE, 3)));
        }
        let id = connect.client_id;
        let nameless =
            id.is_empty() && connect.version != Version::V5 && (!connect.clean_start || connect.is_3_1);
        if nameless || id.contains('\0') || id.len() > CLIENT_ID_BYTES {
            return Some(Err(as_it_is(ReasonCode::CLIENT_IDENTIFIER_NOT_VALID, 2)));
        }
        match (method(&connect.properties), data(&connect.properties)) {
            (None, None) => {}
            (None, Some(_)) => {
                let why = "authentication data without an authentication method";
                return Some(Err((ReasonCode::PROTOCOL_ERROR, 5, why)));
            }
            (Some(SCRAM), first) => {
                return match self.authenticate.begin_scram(peer.ip(), first.unwrap_or_default()) {
                    Ok((scram, told)) => {
                        if !write_auth(connection, CONTINUE, &told) {
                            return Some(Err((ReasonCode::PACKET_TOO_LARGE, 5, AUTH_TOO_LARGE)));
                        }
                        connection.waiting = Some(Box::new(Waiting::Exchange(encoded(connect), scram)));
                        self.touch(key.place);
                        None
                    }
                    Err(refusal) => Some(Err(self.count_refused(key, refusal, true))),
                };
            }
            (Some(_), _) => return Some(Err(as_it_is(ReasonCode::BAD_AUTHENTICATION_METHOD, 5))),
        }
        let certificate = connection.transport.client_certificate();
        let credentials = Credentials {
            peer: peer.ip(),
            client_id: id,
            username: connect.username,
            password: connect.password,
            certificate: certificate.as_ref(),
        };
        let later = Later { inbox: Arc::clone(&self.inbox), key };
        let Some(answer) = self.authenticate.recognise(&credentials, later) else {
            connection.waiting = Some(Box::new(Waiting::Answer(encoded(connect))));
            return None;
        };
        Some(answer.map_err(|refusal| self.count_refused(key, refusal, connect.password.is_some())))
    }

    /// Counts and logs a client that is not let in; never with what it sent as its secret.
    fn count_refused(&self, key: ConnectionKey, refusal: Refusal, has_secret: bool) -> Unwelcome {
        self.stats.denied.fetch_add(1, Ordering::Relaxed);
        if let Some((_, connection)) = self.connections.get(key.place) {
            tracing::info!(peer = %connection.peer, ?refusal, "MQTT client refused");
        }
        unwelcome(refusal, has_secret)
    }

    /// The answer that a connection has waited for, if it is still there.
    pub(super) fn recognised(&mut self, key: ConnectionKey, answer: Result<Arc<Principal>, Refusal>) {
        let Some((_, connection)) =
            self.connections.get_mut(key.place).filter(|(known, _)| *known == key.generation)
        else {
            return;
        };
        let Some(Waiting::Answer(bytes)) = connection.waiting.take_if(|w| w.is_answer()).map(|w| *w) else {
            return;
        };
        let Some(connect) = connect_of(&bytes) else { return self.close(key.place) };
        match answer {
            // The user may have changed while the answer was on its way.
            Ok(principal) => match self.authenticate.renew(&principal, Some(connect.client_id)) {
                Some(principal) => self.welcome(key, &connect, principal, None),
                None => {
                    let unwelcome = self.count_refused(key, Refusal::Unknown, connect.password.is_some());
                    self.turn_back(key, unwelcome);
                }
            },
            Err(refusal) => {
                let unwelcome = self.count_refused(key, refusal, connect.password.is_some());
                self.turn_back(key, unwelcome);
            }
        }
        self.read_on(key.place);
    }

    /// A packet of a client that is not let in yet.
    pub(super) fn opening(&mut self, key: ConnectionKey, packet: &Packet<'_>) {
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        let waiting = connection.waiting.take().map(|waiting| *waiting);
        match (waiting, packet) {
            (None, Packet::Connect(connect)) => self.connect(key, connect),
            (Some(Waiting::Exchange(bytes, scram)), Packet::Auth(auth)) => {
                self.end_exchange(key, &bytes, &scram, auth);
            }
            // Not MQTT, or not the beginning of it: nothing is answered.
            _ => self.close(key.place),
        }
    }

    fn end_exchange(&mut self, key: ConnectionKey, bytes: &[u8], scram: &Scram, auth: &Auth<'_>) {
        let Some(connect) = connect_of(bytes) else { return self.close(key.place) };
        if auth.reason != CONTINUE || method(&auth.properties) != Some(SCRAM) {
            let why = "an AUTH that does not go on with the exchange that was begun";
            return self.turn_back(key, (ReasonCode::PROTOCOL_ERROR, 5, why));
        }
        match self.end_scram(key, connect.client_id, scram, auth) {
            Ok((principal, told)) => self.welcome(key, &connect, principal, Some(&told)),
            Err(refusal) => {
                let unwelcome = self.count_refused(key, refusal, true);
                self.turn_back(key, unwelcome);
            }
        }
    }

    fn end_scram(
        &self,
        key: ConnectionKey,
        client_id: &str,
        scram: &Scram,
        auth: &Auth<'_>,
    ) -> Result<Ended, Refusal> {
        let Some((_, connection)) = self.connections.get(key.place) else { return Err(Refusal::Unknown) };
        let certificate = connection.transport.client_certificate();
        let credentials = Credentials {
            peer: connection.peer.ip(),
            client_id,
            username: Some(scram.name()),
            password: None,
            certificate: certificate.as_ref(),
        };
        self.authenticate.end_scram(&credentials, scram, data(&auth.properties).unwrap_or_default())
    }

    /// AUTH of a client that is let in: it authenticates again, by the method of its CONNECT (MQTT 5, 4.12.1).
    pub(super) fn authenticate_again(&mut self, key: ConnectionKey, session: SessionKey, auth: &Auth<'_>) {
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        if !connection.by_scram || method(&auth.properties) != Some(SCRAM) {
            self.stats.protocol_errors.fetch_add(1, Ordering::Relaxed);
            return self.refuse(key, ReasonCode::PROTOCOL_ERROR);
        }
        match (auth.reason, connection.waiting.take().map(|waiting| *waiting)) {
            (AGAIN, None) => {
                let first = data(&auth.properties).unwrap_or_default();
                match self.authenticate.begin_scram(connection.peer.ip(), first) {
                    Ok((scram, told)) if write_auth(connection, CONTINUE, &told) => {
                        connection.waiting = Some(Box::new(Waiting::Again(scram)));
                        self.touch(key.place);
                    }
                    Ok(_) => self.refuse_because(key, ReasonCode::PACKET_TOO_LARGE, AUTH_TOO_LARGE),
                    Err(_) => self.refuse(key, ReasonCode::NOT_AUTHORIZED),
                }
            }
            (CONTINUE, Some(Waiting::Again(scram))) => self.end_again(key, session, &scram, auth),
            _ => {
                self.stats.protocol_errors.fetch_add(1, Ordering::Relaxed);
                self.refuse(key, ReasonCode::PROTOCOL_ERROR);
            }
        }
    }

    fn end_again(&mut self, key: ConnectionKey, session: SessionKey, scram: &Scram, auth: &Auth<'_>) {
        let client_id = self.sessions.get(session).map(|session| session.client_id.clone());
        let ended = self.end_scram(key, &client_id.unwrap_or_default(), scram, auth);
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        let Phase::Open { principal, .. } = &mut connection.phase else { return };
        match ended {
            // A session stays with its owner.
            Ok((now, told)) if now.owner() == principal.owner() => {
                *principal = Arc::clone(&now);
                if let Some(session) = self.sessions.get_mut(session) {
                    session.principal = Some(Arc::clone(&now));
                }
                if !write_auth(connection, ReasonCode::SUCCESS, &told) {
                    return self.refuse_because(key, ReasonCode::PACKET_TOO_LARGE, AUTH_TOO_LARGE);
                }
                self.touch(key.place);
                self.recheck(session, &now);
            }
            _ => {
                self.count_refused(key, Refusal::Unknown, true);
                self.refuse(key, ReasonCode::NOT_AUTHORIZED);
            }
        }
    }

    /// Takes the rights as they are now: whoever is gone is sent away, subscriptions that are not allowed any more end, and
    /// what waits for them is not delivered.
    pub(super) fn renew_rights(&mut self) {
        let version = self.authenticate.version();
        if version == self.rights_version {
            return;
        }
        self.rights_version = version;
        let mut changed = Vec::new();
        let mut gone = Vec::new();
        for (place, (generation, connection)) in &mut self.connections {
            let Phase::Open { session, principal } = &mut connection.phase else { continue };
            let Some(state) = self.sessions.get_mut(*session) else { continue };
            match self.authenticate.renew(principal, Some(&state.client_id)) {
                Some(now) if now.has_rights_of(principal) => {}
                Some(now) => {
                    *principal = Arc::clone(&now);
                    state.principal = Some(Arc::clone(&now));
                    changed.push((ConnectionKey { place, generation: *generation }, *session, now));
                }
                None => {
                    // It is that of someone who could not connect any more, and not to come back with the next start.
                    if connection.will.take().is_some() {
                        self.turn.settle(state.gone(WILLS, &[]));
                    }
                    let now = self.authenticate.rights_of(principal);
                    gone.push((ConnectionKey { place, generation: *generation }, *session, now));
                }
            }
        }
        for (key, session, principal) in changed {
            self.join_tenant(key, session, principal.tenant());
            self.recheck(session, &principal);
        }
        for (key, session, owner) in gone {
            self.refuse_because(key, ReasonCode::NOT_AUTHORIZED, OUTDATED);
            self.leave_groups(session, owner.as_deref());
        }
        self.renew_away();
        let authenticate = Arc::clone(&self.authenticate);
        self.recheck_tails(|principal| authenticate.renew(principal, None));
    }

    /// The same for the owners of sessions without a connection: of what these share they may keep nothing from others.
    fn renew_away(&mut self) {
        let away = |session: &Session| session.connection.is_none() && session.shares();
        let owners = self.sessions.iter().filter(|(_, session)| away(session));
        let owners: Vec<(SessionKey, Arc<Principal>)> = owners
            .filter_map(|(key, session)| Some((key, Arc::clone(session.principal.as_ref()?))))
            .collect();
        for (key, before) in owners {
            let now = self.authenticate.rights_of(&before);
            if now.as_ref().is_some_and(|now| now.has_rights_of(&before)) {
                continue;
            }
            self.leave_groups(key, now.as_deref());
            if let (Some(now), Some(session)) = (now, self.sessions.get_mut(key)) {
                session.principal = Some(now);
            }
        }
    }

    /// Ends what the owner of a session may not read: subscriptions, replays, and messages that wait; those in the log when
    /// they are read.
    pub(super) fn recheck(&mut self, key: SessionKey, principal: &Principal) {
        let may_read = |filter: &str| allows(principal, Action::Subscribe(filter));
        let replays = self.recheck_replays(key, may_read);
        let Some(session) = self.sessions.get_mut(key) else { return };
        let ended: Vec<Box<str>> =
            session.subscriptions.keys().filter(|filter| !may_read(filter)).cloned().collect();
        for filter in &ended {
            session.subscriptions.remove(filter);
            self.router.unsubscribe(filter, key);
        }
        let unreadable = session.keep_readable(may_read);
        let messages = unreadable.waiting.len() + unreadable.begun.len();
        if !ended.is_empty() || messages > 0 || replays > 0 {
            let denied = (ended.len() + messages + replays) as u64;
            self.stats.denied.fetch_add(denied, Ordering::Relaxed);
            tracing::info!(
                client = session.client_id,
                principal = principal.name,
                subscriptions = ended.len() + replays,
                messages,
                "an MQTT client may not read any more what it had subscribed to"
            );
        }
        ended.iter().for_each(|filter| self.record_subscription(key, filter));
        unreadable.records.into_iter().for_each(|record| self.turn.settle(record));
        for delivery in unreadable.waiting.iter().chain(&unreadable.begun) {
            self.done_with(key, delivery.stored);
        }
        if messages > 0 {
            // Nothing of it is in the way any more.
            self.pump_soon(key);
        }
        // Others of its groups may read what it may not.
        let waiting = unreadable.waiting.into_iter();
        self.hand_on(waiting.filter(|delivery| delivery.via.group.is_some()).collect());
    }

    /// Sends away whoever was recognised until now and no longer.
    pub(super) fn end_expired(&mut self) {
        let now = u64::try_from(self.engine.now().as_nanos() / 1_000_000_000).unwrap_or_default();
        let is_over = |phase: &Phase| match phase {
            Phase::Open { principal, .. } => principal.expires().is_some_and(|end| end <= now),
            Phase::Opening => false,
        };
        let over: Vec<ConnectionKey> = self
            .connections
            .iter()
            .filter(|(_, (_, connection))| !connection.closing && is_over(&connection.phase))
            .map(|(place, (generation, _))| ConnectionKey { place, generation: *generation })
            .collect();
        let why = "the time of the token is over";
        over.into_iter().for_each(|key| self.refuse_because(key, ReasonCode::NOT_AUTHORIZED, why));
        self.recheck_tails(|principal| {
            let is_over = principal.expires().is_some_and(|end| end <= now);
            (!is_over).then(|| Arc::clone(principal))
        });
    }
}

impl Waiting {
    pub(super) fn is_answer(&self) -> bool {
        matches!(self, Self::Answer(_))
    }
}

/// The CONNECT that a connection has kept.
fn connect_of(bytes: &[u8]) -> Option<Connect<'_>> {
    match decode(bytes, Version::V5, CONNECT_BYTES) {
        Ok(Some((Packet::Connect(connect), _))) => Some(connect),
        _ => None,
    }
}

/// Appends an AUTH; `false`, and nothing appended, where it is larger than the client takes ([MQTT-3.1.2-24]).
#[must_use]
fn write_auth(connection: &mut Connection, reason: ReasonCode, told: &[u8]) -> bool {
    let mut properties = PropertiesBuilder::new();
    properties.push(Property::AuthenticationMethod(SCRAM));
    properties.push(Property::AuthenticationData(told));
    let start = connection.out.len();
    Auth { reason, properties: properties.as_properties() }.encode(&mut connection.out);
    let fits = connection.out.len() - start <= connection.packet_maximum;
    if !fits {
        connection.out.truncate(start);
    }
    fits
}
