//! The event loop. A turn reads what is there, commits it as one batch, and releases acknowledgements and deliveries
//! of turns whose commit has become durable, in their order.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::{Duration, Instant};

use foldhash::HashMap;
use mio::net::TcpListener;
use mio::{Events, Interest as Readiness, Poll, Token};
use slab::Slab;
use sonde_engine::{Engine, Origin, Table};
use sonde_proto::mqtt::{Disconnect, QoS, ReasonCode, Version, decode};

use super::connection::{Connection, Phase, ReadResult};
use super::listener::MqttStats;
use super::message::Message;
use super::retained::Retained;
use super::router::{Interest, Router, SessionKey};
use super::session::{self, Session};
use super::sys::Sys;
use super::turn::{Answer, Committing, ConnectionKey, Reply, Turn};
use super::{Authenticate, Command, Inbox};
use crate::limits::{
    CONNECT_BYTES, CONNECT_TIME, CONNECTIONS, PACKET_BYTES, READ_BUFFER, TOPICS, TURN_BYTES, TURNS_IN_FLIGHT,
};
use crate::row::RowBuffer;
use crate::source::{Source, Sources};
use crate::topics::{TopicStats, Topics};

pub(super) const LISTENER: Token = Token(usize::MAX);
pub(super) const INBOX: Token = Token(usize::MAX - 1);
/// How long the loop sleeps when nothing happens.
const TICK: Duration = Duration::from_secs(1);

/// What the loop shares with the rest of the process.
pub(super) struct Shared {
    pub(super) inbox: Arc<Inbox>,
    pub(super) stats: Arc<MqttStats>,
    pub(super) topics: Arc<Topics>,
    pub(super) dead_letters: Arc<Table>,
}

/// What is known of a topic, until the sources change.
pub(super) struct TopicInfo {
    pub(super) source: Option<Arc<Source>>,
    pub(super) stats: Arc<TopicStats>,
}

/// The event loop's state. What each packet does to it is in `packets.rs` and the files of the packets.
pub(super) struct Worker {
    pub(super) engine: Engine,
    pub(super) authenticate: Arc<dyn Authenticate>,
    /// The rights that the principals of the connections have are of this version.
    pub(super) rights_version: u64,
    pub(super) stats: Arc<MqttStats>,
    pub(super) dead_letters: Arc<Table>,
    pub(super) connections: Slab<(u64, Connection)>,
    pub(super) sessions: Slab<Session>,
    pub(super) by_client: HashMap<String, SessionKey>,
    pub(super) router: Router,
    pub(super) retained: Retained,
    pub(super) turn: Turn,
    /// Where the rows of the turn come from.
    pub(super) origin: Origin,
    pub(super) sys: Sys,
    /// Reused by every row.
    pub(super) row_buffer: RowBuffer,
    poll: Poll,
    listener: TcpListener,
    /// Whether clients may wait that could not be accepted.
    accept_again: bool,
    pub(super) inbox: Arc<Inbox>,
    pub(super) waker: Waker,
    topics: Arc<Topics>,
    topic_cache: HashMap<Box<str>, Rc<TopicInfo>>,
    sources: Sources,
    ready: VecDeque<usize>,
    /// Connections that may have something to write.
    pub(super) dirty: Vec<usize>,
    pub(super) committing: VecDeque<Committing>,
    buffer: Vec<u8>,
    started: Instant,
    swept_at: u64,
    generation: u64,
    next_number: u64,
    stopping: bool,
}

impl Worker {
    pub(super) fn new(
        engine: Engine,
        poll: Poll,
        listener: TcpListener,
        authenticate: Arc<dyn Authenticate>,
        shared: Shared,
    ) -> Self {
        let mut worker = Self {
            turn: Turn::new(&engine, Origin::Client),
            origin: Origin::Client,
            retained: Retained::recover(&engine),
            sources: Sources::load(&engine),
            waker: Waker::from(Arc::clone(&shared.inbox)),
            // Ascends over restarts, so a queue's new messages sort behind its old ones.
            next_number: engine.now().as_nanos().cast_unsigned(),
            inbox: shared.inbox,
            stats: shared.stats,
            topics: shared.topics,
            dead_letters: shared.dead_letters,
            rights_version: authenticate.version(),
            authenticate,
            connections: Slab::new(),
            sessions: Slab::new(),
            by_client: HashMap::default(),
            router: Router::default(),
            sys: Sys::default(),
            row_buffer: RowBuffer::default(),
            poll,
            listener,
            accept_again: false,
            topic_cache: HashMap::default(),
            ready: VecDeque::new(),
            dirty: Vec::new(),
            committing: VecDeque::new(),
            buffer: vec![0; READ_BUFFER],
            started: Instant::now(),
            swept_at: 0,
            generation: 0,
            stopping: false,
            engine,
        };
        let recovered = session::recover(&worker.engine);
        recovered.orphans.into_iter().for_each(|record| worker.turn.builder.state(record));
        for session in recovered.sessions {
            worker.add_session(session);
        }
        worker
    }

    /// Puts a session into the table and its subscriptions into the router.
    pub(super) fn add_session(&mut self, session: Session) -> SessionKey {
        let client = session.client_id.clone();
        let subscriptions: Vec<_> = session.subscriptions.iter().map(|(f, s)| (f.clone(), *s)).collect();
        let key = self.sessions.insert(session);
        self.by_client.insert(client, key);
        for (filter, subscription) in subscriptions {
            self.router.subscribe(&filter, interest(key, subscription));
        }
        key
    }

    /// Seconds since the loop started.
    pub(super) fn now(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// A number that ascends with the deliveries.
    pub(super) fn next_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        while !self.stopping {
            let busy = !self.ready.is_empty() && self.committing.len() < TURNS_IN_FLIGHT;
            let timeout = if busy { Duration::ZERO } else { TICK };
            if let Err(error) = self.poll.poll(&mut events, Some(timeout))
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "the MQTT event loop cannot wait for events");
                return;
            }
            let began = Instant::now();
            if std::mem::take(&mut self.accept_again) {
                self.accept();
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    INBOX => {}
                    Token(place) => {
                        if event.is_writable() {
                            self.dirty.push(place);
                        }
                        if event.is_readable() || event.is_read_closed() {
                            self.mark_ready(place);
                        }
                    }
                }
            }
            self.renew_rights();
            self.serve_inbox();
            self.release_turns();
            if self.committing.len() < TURNS_IN_FLIGHT {
                self.read_ready();
            }
            self.submit_turn();
            self.release_turns();
            self.write_dirty();
            if began.elapsed() < TICK {
                self.sweep();
            } // Else what clients sent meanwhile is not read yet, and their silence is ours.
        }
        self.close_all();
    }

    fn accept(&mut self) {
        loop {
            let (mut socket, peer) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Out of descriptors, or the client has gone. Those behind it bring no event: they are tried again.
                    tracing::warn!(%error, "cannot accept an MQTT connection");
                    self.accept_again = true;
                    return;
                }
            };
            if self.connections.len() >= CONNECTIONS {
                tracing::warn!(%peer, limit = CONNECTIONS, "MQTT connection refused: too many");
                continue;
            }
            // Acknowledgements are batched here; Nagle's algorithm would add 40 ms to them.
            if let Err(error) = socket.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
            let entry = self.connections.vacant_entry();
            let token = Token(entry.key());
            let registered =
                self.poll.registry().register(&mut socket, token, Readiness::READABLE | Readiness::WRITABLE);
            if let Err(error) = registered {
                tracing::warn!(%error, "cannot watch an MQTT connection");
                continue;
            }
            self.generation += 1;
            let now = self.started.elapsed().as_secs();
            entry.insert((self.generation, Connection::new(socket, peer, now)));
            self.stats.connections.fetch_add(1, Ordering::Relaxed);
            self.sys.traffic.sockets += 1;
        }
    }

    fn mark_ready(&mut self, place: usize) {
        if let Some((_, connection)) = self.connections.get_mut(place)
            && !std::mem::replace(&mut connection.readable, true)
        {
            self.ready.push_back(place);
        }
    }

    /// Reads a connection that was not read for a while, and whose events have passed.
    pub(super) fn read_on(&mut self, place: usize) {
        self.mark_ready(place);
    }

    /// Reads every connection that has something once, until the turn is full.
    fn read_ready(&mut self) {
        self.refresh_sources();
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..self.ready.len() {
            if self.turn.builder.bytes() >= TURN_BYTES {
                break;
            }
            let Some(place) = self.ready.pop_front() else { break };
            self.read_connection(place, &mut buffer);
        }
        self.buffer = buffer;
    }

    /// Takes the sources of the catalog as it is now.
    pub(super) fn refresh_sources(&mut self) {
        if self.sources.is_stale(&self.engine) {
            self.sources = Sources::load(&self.engine);
            self.topic_cache.clear();
        }
    }

    fn read_connection(&mut self, place: usize, buffer: &mut [u8]) {
        let now = self.now();
        let Some((generation, connection)) = self.connections.get_mut(place) else { return };
        let key = ConnectionKey { place, generation: *generation };
        connection.readable = false;
        if connection.pauses() {
            return;
        }
        let found = connection.read(buffer);
        let (ReadResult::More(filled) | ReadResult::Drained(filled) | ReadResult::Closed(filled)) = found;
        self.sys.traffic.bytes_received += (filled - connection.partial.len()) as u64;
        // Until CONNECT the time runs from the beginning, however slowly bytes trickle.
        if filled > connection.partial.len() && connection.session().is_some() {
            connection.heard_at = now;
        }
        let ended = matches!(found, ReadResult::Closed(_));
        if connection.closing && !ended {
            connection.partial = Vec::new();
            return;
        }
        let bytes = buffer.get(..filled).unwrap_or_default();
        let done = self.handle_bytes(key, bytes);
        // The connection may have gone, and its place been taken, while its packets were handled.
        let still = self.connections.get_mut(place).filter(|(known, _)| *known == key.generation);
        let Some((_, connection)) = still else { return };
        if ended {
            return self.close(place);
        }
        let rest = bytes.get(done..).unwrap_or_default();
        if connection.pauses() && rest.len() > CONNECT_BYTES {
            // Nobody knows yet who it is.
            return self.close(place);
        }
        connection.keep(rest);
        if matches!(found, ReadResult::More(_)) {
            self.mark_ready(place);
        }
    }

    /// Handles the whole packets at the start of `bytes`; returns how many bytes they take.
    fn handle_bytes(&mut self, key: ConnectionKey, bytes: &[u8]) -> usize {
        let mut done = 0;
        loop {
            let Some((_, connection)) =
                self.connections.get(key.place).filter(|(known, _)| *known == key.generation)
            else {
                return bytes.len();
            };
            if connection.closing {
                return bytes.len();
            }
            if connection.pauses() {
                return done;
            }
            let opening = matches!(connection.phase, Phase::Opening);
            let limit = if opening { CONNECT_BYTES } else { PACKET_BYTES };
            match decode(bytes.get(done..).unwrap_or_default(), connection.version, limit) {
                Ok(Some((packet, len))) => {
                    done += len;
                    self.handle_packet(key, &packet);
                    if self.turn.builder.bytes() >= TURN_BYTES {
                        self.submit_turn();
                    }
                }
                Ok(None) => return done,
                Err(error) => {
                    self.stats.protocol_errors.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(peer = %connection.peer, %error, "MQTT connection closed");
                    self.refuse(key, error.reason());
                    return bytes.len();
                }
            }
        }
    }

    /// Closes a connection behind everything that is still to be answered, with a reason where the version has one.
    pub(super) fn refuse(&mut self, key: ConnectionKey, reason: ReasonCode) {
        if let Some((_, connection)) = self.connections.get_mut(key.place) {
            connection.closing = true;
            connection.partial = Vec::new();
        }
        self.turn.answers.push((key, Answer::Close(reason)));
    }

    /// What is known of a topic.
    pub(super) fn topic(&mut self, topic: &str) -> Rc<TopicInfo> {
        if let Some(info) = self.topic_cache.get(topic) {
            return Rc::clone(info);
        }
        let stats = self.topics.of(topic);
        let source = self.sources.find(topic).cloned();
        stats.set_source(source.as_ref().map(|source| source.name.as_str()));
        let info = Rc::new(TopicInfo { source, stats });
        if self.topic_cache.len() >= TOPICS {
            self.topic_cache.clear();
        }
        self.topic_cache.insert(topic.into(), Rc::clone(&info));
        info
    }

    /// Marks a connection as having something to write.
    pub(super) fn touch(&mut self, place: usize) {
        self.dirty.push(place);
    }

    fn write_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        for place in dirty {
            let Some((_, connection)) = self.connections.get_mut(place) else { continue };
            let unsent = connection.out.len();
            let alive = connection.flush();
            self.sys.traffic.bytes_sent += (unsent - connection.out.len()) as u64;
            if !alive || (connection.closing && connection.out.is_empty() && self.is_answered(place)) {
                self.close(place);
            }
        }
    }

    /// Ends a connection: its will is published, and its session ends or waits.
    pub(super) fn close(&mut self, place: usize) {
        let Some((_, mut connection)) = self.connections.try_remove(place) else { return };
        self.stats.connections.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = self.poll.registry().deregister(&mut connection.socket) {
            tracing::debug!(%error, "cannot unwatch an MQTT connection");
        }
        let now = self.now();
        if let Some(key) = connection.session()
            && let Some(session) = self.sessions.get_mut(key)
            && session.connection == Some(place)
        {
            session.connection = None;
            session.left_at = Some(now);
            self.sys.client_left();
            if !session.is_durable() {
                self.drop_session(key);
            }
        }
        if let (Some(will), Phase::Open { principal, .. }) = (connection.will.take(), &connection.phase) {
            let principal = Arc::clone(principal);
            if let Err(error) = self.publish_internal(&will, Some(&principal)) {
                tracing::warn!(%error, topic = %will.topic, "a will could not be stored");
            }
        }
    }

    /// Forgets a session and everything that waits for it; what it leaves of its groups goes to other members.
    pub(super) fn drop_session(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.try_remove(key) else { return };
        self.by_client.remove(&session.client_id);
        session.subscriptions.keys().for_each(|filter| self.router.unsubscribe(filter, key));
        let withdrawn = self.withdraw(key);
        // Before the records go: a crash between two batches may double a message, not lose one.
        self.hand_on(session.shared_messages());
        self.hand_on(withdrawn.iter().filter(|delivery| delivery.via.group.is_some()).cloned().collect());
        if session.is_durable() {
            session.forget().into_iter().for_each(|record| self.turn.builder.state(record));
            let kept = withdrawn.iter().filter(|delivery| delivery.qos != QoS::AtMostOnce);
            kept.for_each(|delivery| self.turn.builder.state(session.dequeue_record(delivery.number)));
        }
    }

    fn serve_inbox(&mut self) {
        for command in self.inbox.take() {
            match command {
                Command::Publish(messages, reply) => self.publish_all(&messages, reply),
                Command::Kill(client, reply) => {
                    let key = self.by_client.get(&client).copied();
                    if let Some(key) = key {
                        if let Some(place) = self.sessions.get(key).and_then(|session| session.connection) {
                            self.close(place);
                        }
                        self.drop_session(key);
                    }
                    let _ = reply.send(key.is_some());
                }
                Command::Recognised { place, generation, answer } => {
                    self.recognised(ConnectionKey { place, generation }, answer);
                }
                Command::List(reply) => drop(reply.send(self.list())),
                Command::Subscriptions(reply) => drop(reply.send(self.list_subscriptions())),
                Command::Stop => self.stopping = true,
            }
        }
    }

    /// Publishes what a rule says, in turns of their own; answered with the last of them.
    fn publish_all(&mut self, messages: &[Message], reply: Reply) {
        self.begin_turn_from(messages.first().map_or(Origin::Client, |message| message.origin));
        let outcome = messages.iter().try_for_each(|message| {
            self.publish_internal(message, None)?;
            if self.turn.builder.bytes() >= TURN_BYTES {
                self.submit_turn();
            }
            Ok(())
        });
        match outcome {
            Ok(()) => self.turn.replies.push(reply),
            // Whoever asked may have gone.
            Err(error) => drop(reply.send(Err(error))),
        }
        self.begin_turn_from(Origin::Client);
    }

    /// Ends the turn: what comes now has this origin.
    fn begin_turn_from(&mut self, origin: Origin) {
        self.submit_turn();
        self.origin = origin;
        self.turn.builder.set_origin(origin);
    }

    /// Once a second: connections that are silent or slow to CONNECT, sessions that have expired.
    fn sweep(&mut self) {
        let now = self.now();
        if now == self.swept_at {
            return;
        }
        self.swept_at = now;
        let reading = self.committing.len() < TURNS_IN_FLIGHT;
        let mut silent = Vec::new();
        for (place, (generation, connection)) in &self.connections {
            let quiet = now.saturating_sub(connection.heard_at);
            let late = match connection.phase {
                Phase::Opening => quiet > CONNECT_TIME.as_secs(),
                // While we do not read, silence is not the client's fault.
                Phase::Open { .. } => {
                    reading
                        && !connection.readable
                        && connection.keep_alive > 0
                        && quiet > connection.keep_alive
                }
            };
            if late {
                silent.push(ConnectionKey { place, generation: *generation });
            }
        }
        for key in silent {
            let opening =
                self.connections.get(key.place).is_some_and(|(_, c)| matches!(c.phase, Phase::Opening));
            if opening || self.connections.get(key.place).is_some_and(|(_, c)| c.closing) {
                self.close(key.place);
            } else {
                self.refuse(key, ReasonCode::KEEP_ALIVE_TIMEOUT);
            }
        }
        self.end_expired();
        let expired = |session: &Session| {
            session.connection.is_none()
                && session.left_at.is_some_and(|left| now.saturating_sub(left) > session.expiry.into())
        };
        let gone: Vec<SessionKey> =
            self.sessions.iter().filter(|(_, session)| expired(session)).map(|(key, _)| key).collect();
        self.sys.expired += gone.len() as u64;
        gone.into_iter().for_each(|key| self.drop_session(key));
        self.tell_sys(now);
    }

    /// The end: what was committed is acknowledged, then every client is told and closed.
    fn close_all(&mut self) {
        self.submit_turn();
        let deadline = Instant::now() + TICK * 5;
        while !self.committing.is_empty() && Instant::now() < deadline {
            self.release_turns();
            std::thread::yield_now();
        }
        for (_, (_, connection)) in &mut self.connections {
            if connection.version == Version::V5 && matches!(connection.phase, Phase::Open { .. }) {
                let goodbye =
                    Disconnect { reason: ReasonCode::SERVER_SHUTTING_DOWN, ..Disconnect::default() };
                goodbye.encode(Version::V5, &mut connection.out);
            }
            connection.flush();
        }
    }
}

/// A subscription as the router has it.
pub(super) fn interest(session: SessionKey, subscription: session::Subscription) -> Interest {
    Interest {
        session,
        qos: subscription.qos,
        no_local: subscription.no_local,
        retain_as_published: subscription.retain_as_published,
        identifier: subscription.identifier,
    }
}
