//! The event loop. A turn reads what is there, commits it as one batch, and releases acknowledgements and deliveries
//! of turns whose commit has become durable, in their order.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll as TaskPoll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arrow::record_batch::RecordBatch;
use foldhash::HashMap;
use futures::channel::oneshot;
use mio::net::TcpListener;
use mio::{Events, Interest as Readiness, Poll, Token};
use parking_lot::Mutex;
use slab::Slab;
use sonde_engine::{Engine, Receipt, Table, WriteBatchBuilder};
use sonde_proto::mqtt::{Disconnect, Packet, Publish, QoS, ReasonCode, Version, decode};
use sonde_query::system::BatchBuilder;

use super::connection::{Connection, Phase, ReadResult};
use super::message::Message;
use super::retained::Retained;
use super::router::{Interest, Router, SessionKey};
use super::session::{self, Delivery, InFlight, Session};
use super::{Authenticate, Command, Inbox, MqttOptions, SessionInfo};
use crate::limits::{
    CONNECT_BYTES, CONNECT_TIME, CONNECTIONS, OUT_BYTES, PACKET_BYTES, READ_BUFFER, TOPICS, TURN_BYTES,
    TURNS_IN_FLIGHT,
};
use crate::row::RowBuffer;
use crate::source::{Source, Sources};
use crate::topics::{TopicStats, Topics};

const LISTENER: Token = Token(usize::MAX);
const INBOX: Token = Token(usize::MAX - 1);
/// How long the loop sleeps when nothing happens.
const TICK: Duration = Duration::from_secs(1);

/// Counters of the listener.
#[derive(Debug, Default)]
pub struct MqttStats {
    /// Messages received.
    pub received: AtomicU64,
    /// Messages sent to subscribers.
    pub sent: AtomicU64,
    /// Messages that a full queue or a slow reader cost.
    pub dropped: AtomicU64,
    /// Connections that are open.
    pub connections: AtomicU64,
    /// Connections that were closed for a malformed packet or a broken rule.
    pub protocol_errors: AtomicU64,
    /// Publishes and subscriptions that were not allowed.
    pub denied: AtomicU64,
}

/// A running listener.
#[derive(Debug)]
pub struct Mqtt {
    address: SocketAddr,
    inbox: Arc<Inbox>,
    stats: Arc<MqttStats>,
    topics: Arc<Topics>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Starts the listener: sessions are recovered and routable before the first client is let in.
pub fn start(engine: &Engine, options: MqttOptions, topics: Arc<Topics>) -> io::Result<Mqtt> {
    let poll = Poll::new()?;
    let mut listener = TcpListener::bind(options.listen)?;
    let address = listener.local_addr()?;
    poll.registry().register(&mut listener, LISTENER, Readiness::READABLE)?;
    let waker = mio::Waker::new(poll.registry(), INBOX)?;
    let inbox = Arc::new(Inbox { commands: Mutex::new(Vec::new()), waker });
    let stats = Arc::new(MqttStats::default());
    let dead_letters = crate::dead_letter::table(engine).map_err(io::Error::other)?;
    let (engine, loop_inbox, loop_stats, loop_topics) =
        (engine.clone(), Arc::clone(&inbox), Arc::clone(&stats), Arc::clone(&topics));
    let thread = std::thread::Builder::new().name("sonde-mqtt".into()).spawn(move || {
        let shared = Shared { inbox: loop_inbox, stats: loop_stats, topics: loop_topics, dead_letters };
        Worker::new(engine, poll, listener, options.authenticate, shared).run();
    })?;
    Ok(Mqtt { address, inbox, stats, topics, thread: Mutex::new(Some(thread)) })
}

impl Mqtt {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its counters.
    #[must_use]
    pub fn stats(&self) -> &MqttStats {
        &self.stats
    }

    /// What became of the messages of each topic.
    #[must_use]
    pub fn topics(&self) -> &Arc<Topics> {
        &self.topics
    }

    /// Publishes a message; resolves once it is as durable as its targets ask for.
    pub async fn publish(&self, message: Message) -> sonde_engine::Result<()> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Command::Publish(message, reply));
        answer.await.unwrap_or(Err(sonde_engine::Error::Closed))
    }

    /// Ends a session and its connection; `false` where there is none of this client.
    #[must_use]
    pub fn kill_session(&self, client: &str) -> bool {
        let (reply, answer) = std::sync::mpsc::channel();
        self.inbox.send(Command::Kill(client.to_owned(), reply));
        answer.recv_timeout(TICK * 5).unwrap_or(false)
    }

    /// `system.sessions`.
    pub fn sessions(&self) -> sonde_query::Result<RecordBatch> {
        let (reply, answer) = std::sync::mpsc::channel();
        self.inbox.send(Command::List(reply));
        let sessions = answer
            .recv_timeout(TICK * 5)
            .map_err(|_| sonde_query::Error::Internal("the MQTT listener does not answer".into()))?;
        let mut rows = BatchBuilder::new();
        for session in sessions {
            rows.text("client", Some(&session.client));
            rows.text("state", Some(if session.peer.is_some() { "connected" } else { "away" }));
            rows.text("principal", session.principal.as_deref());
            rows.text("peer", session.peer.map(|peer| peer.to_string()).as_deref());
            rows.uint("expiry_seconds", session.expiry.into());
            rows.uint("subscriptions", session.subscriptions as u64);
            rows.uint("in_flight", session.in_flight as u64);
            rows.uint("queued", session.queued as u64);
            rows.uint("dropped", session.dropped);
            rows.end_row();
        }
        rows.finish(&[
            ("client", "s"),
            ("state", "s"),
            ("principal", "s"),
            ("peer", "s"),
            ("expiry_seconds", "u"),
            ("subscriptions", "u"),
            ("in_flight", "u"),
            ("queued", "u"),
            ("dropped", "u"),
        ])
    }

    /// Closes every connection and ends the loop.
    pub fn stop(&self) {
        self.inbox.send(Command::Stop);
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the MQTT event loop panicked");
        }
    }
}

/// What the loop shares with the rest of the process.
struct Shared {
    inbox: Arc<Inbox>,
    stats: Arc<MqttStats>,
    topics: Arc<Topics>,
    dead_letters: Arc<Table>,
}

/// Something to write to a connection once the turn is durable.
#[derive(Debug)]
pub(super) enum Answer {
    PubAck(u16, ReasonCode),
    PubRec(u16, ReasonCode),
    PubRel(u16, ReasonCode),
    PubComp(u16, ReasonCode),
    SubAck(u16, Vec<u8>),
    UnsubAck(u16, Vec<u8>),
    /// The bytes of the CONNACK; what is in flight is sent again behind it.
    ConnAck(Vec<u8>),
    /// An error, in 5.0 with its reason; the connection is closed behind it.
    Close(ReasonCode),
}

/// A connection, and which of those that had its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectionKey {
    pub(super) place: usize,
    pub(super) generation: u64,
}

/// What one pass over the readable connections gathered.
pub(super) struct Turn {
    pub(super) builder: WriteBatchBuilder,
    pub(super) answers: Vec<(ConnectionKey, Answer)>,
    pub(super) deliveries: Vec<(SessionKey, Delivery)>,
    /// QoS 2 numbers that were taken, to be given back where the commit fails.
    pub(super) received: Vec<(SessionKey, u16)>,
    pub(super) replies: Vec<oneshot::Sender<sonde_engine::Result<()>>>,
}

impl Turn {
    fn new(engine: &Engine) -> Self {
        Self {
            builder: engine.batch(),
            answers: Vec::new(),
            deliveries: Vec::new(),
            received: Vec::new(),
            replies: Vec::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.builder.is_empty()
            && self.answers.is_empty()
            && self.deliveries.is_empty()
            && self.replies.is_empty()
    }
}

/// A turn whose commit is outstanding; without a receipt there is nothing to commit.
struct Committing {
    receipt: Option<Receipt>,
    answers: Vec<(ConnectionKey, Answer)>,
    deliveries: Vec<(SessionKey, Delivery)>,
    received: Vec<(SessionKey, u16)>,
    replies: Vec<oneshot::Sender<sonde_engine::Result<()>>>,
}

/// What is known of a topic, until the sources change.
pub(super) struct TopicInfo {
    pub(super) source: Option<Arc<Source>>,
    pub(super) stats: Arc<TopicStats>,
}

/// The event loop's state; `packets.rs` has what each packet does to it.
pub(super) struct Worker {
    pub(super) engine: Engine,
    pub(super) authenticate: Authenticate,
    pub(super) stats: Arc<MqttStats>,
    pub(super) dead_letters: Arc<Table>,
    pub(super) connections: Slab<(u64, Connection)>,
    pub(super) sessions: Slab<Session>,
    pub(super) by_client: HashMap<String, SessionKey>,
    pub(super) router: Router,
    pub(super) retained: Retained,
    pub(super) turn: Turn,
    /// Reused by every look-up of the router.
    pub(super) interests: Vec<Interest>,
    /// Reused by every row.
    pub(super) row_buffer: RowBuffer,
    poll: Poll,
    listener: TcpListener,
    inbox: Arc<Inbox>,
    waker: Waker,
    topics: Arc<Topics>,
    topic_cache: HashMap<Box<str>, Rc<TopicInfo>>,
    sources: Sources,
    ready: VecDeque<usize>,
    dirty: Vec<usize>,
    committing: VecDeque<Committing>,
    buffer: Vec<u8>,
    started: Instant,
    swept_at: u64,
    generation: u64,
    next_number: u64,
    stopping: bool,
}

impl Worker {
    fn new(
        engine: Engine,
        poll: Poll,
        listener: TcpListener,
        authenticate: Authenticate,
        shared: Shared,
    ) -> Self {
        let mut worker = Self {
            turn: Turn::new(&engine),
            retained: Retained::recover(&engine),
            sources: Sources::load(&engine),
            waker: Waker::from(Arc::clone(&shared.inbox)),
            // Ascends over restarts, so a queue's new messages sort behind its old ones.
            next_number: engine.now().as_nanos().cast_unsigned(),
            inbox: shared.inbox,
            stats: shared.stats,
            topics: shared.topics,
            dead_letters: shared.dead_letters,
            authenticate,
            connections: Slab::new(),
            sessions: Slab::new(),
            by_client: HashMap::default(),
            router: Router::default(),
            interests: Vec::new(),
            row_buffer: RowBuffer::default(),
            poll,
            listener,
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
        for session in session::recover(&worker.engine) {
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

    fn run(mut self) {
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
            self.serve_inbox();
            self.release_turns();
            if self.committing.len() < TURNS_IN_FLIGHT {
                self.read_ready();
            }
            self.submit_turn();
            self.release_turns();
            self.write_dirty();
            self.sweep();
        }
        self.close_all();
    }

    fn accept(&mut self) {
        loop {
            let (mut socket, peer) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Out of descriptors, or the client has gone: the next event tries again.
                    tracing::warn!(%error, "cannot accept an MQTT connection");
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
        }
    }

    fn mark_ready(&mut self, place: usize) {
        if let Some((_, connection)) = self.connections.get_mut(place)
            && !std::mem::replace(&mut connection.readable, true)
        {
            self.ready.push_back(place);
        }
    }

    /// Reads every connection that has something once, until the turn is full.
    fn read_ready(&mut self) {
        if self.sources.is_stale(&self.engine) {
            self.sources = Sources::load(&self.engine);
            self.topic_cache.clear();
        }
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

    fn read_connection(&mut self, place: usize, buffer: &mut [u8]) {
        let now = self.now();
        let Some((generation, connection)) = self.connections.get_mut(place) else { return };
        let key = ConnectionKey { place, generation: *generation };
        connection.readable = false;
        let found = connection.read(buffer);
        let (ReadResult::More(filled) | ReadResult::Drained(filled) | ReadResult::Closed(filled)) = found;
        if filled > connection.partial.len() {
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
        connection.keep(bytes.get(done..).unwrap_or_default());
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
            let opening = matches!(connection.phase, Phase::Opening);
            let limit = if opening { CONNECT_BYTES } else { PACKET_BYTES };
            match decode(bytes.get(done..).unwrap_or_default(), connection.version, limit) {
                Ok(Some((packet, len))) => {
                    done += len;
                    self.handle_packet(key, &packet);
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

    /// Hands the turn to the engine.
    fn submit_turn(&mut self) {
        if self.turn.is_empty() {
            return;
        }
        let turn = std::mem::replace(&mut self.turn, Turn::new(&self.engine));
        let receipt = turn.builder.finish().map(|batch| self.engine.write(batch));
        self.committing.push_back(Committing {
            receipt,
            answers: turn.answers,
            deliveries: turn.deliveries,
            received: turn.received,
            replies: turn.replies,
        });
    }

    /// Releases the turns that are durable, oldest first.
    fn release_turns(&mut self) {
        let waker = self.waker.clone();
        while let Some(turn) = self.committing.front_mut() {
            let result = match &mut turn.receipt {
                None => Ok(()),
                Some(receipt) => match Pin::new(receipt).poll(&mut Context::from_waker(&waker)) {
                    TaskPoll::Pending => return,
                    TaskPoll::Ready(result) => result.map(drop),
                },
            };
            let Some(turn) = self.committing.pop_front() else { return };
            match result {
                Ok(()) => self.release(turn),
                Err(error) => self.fail(turn, &error),
            }
        }
    }

    fn release(&mut self, turn: Committing) {
        for (key, answer) in turn.answers {
            self.answer(key, answer);
        }
        for (session, delivery) in turn.deliveries {
            self.deliver(session, delivery);
        }
        turn.replies.into_iter().for_each(|reply| drop(reply.send(Ok(()))));
    }

    /// The commit was refused: nobody is acknowledged, and every client of the turn is sent away to try again.
    fn fail(&mut self, turn: Committing, error: &sonde_engine::Error) {
        tracing::warn!(%error, clients = turn.answers.len(), "MQTT messages could not be stored; their clients are closed");
        for (session, packet_id) in turn.received {
            if let Some(session) = self.sessions.get_mut(session) {
                session.received.remove(&packet_id);
            }
        }
        for (key, _) in turn.answers {
            self.answer(key, Answer::Close(ReasonCode::SERVER_UNAVAILABLE));
        }
        turn.replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone()))));
    }

    fn answer(&mut self, key: ConnectionKey, answer: Answer) {
        let Some((generation, connection)) = self.connections.get_mut(key.place) else { return };
        if *generation != key.generation {
            return;
        }
        super::packets::encode_answer(&answer, connection.version, &mut connection.out);
        self.dirty.push(key.place);
        match answer {
            Answer::ConnAck(_) => {
                if let Some(session) = connection.session() {
                    self.resend(session);
                    self.pump(session);
                }
            }
            Answer::Close(_) => connection.closing = true,
            _ => {}
        }
    }

    /// Sends again what was in flight when the last connection of the session ended.
    fn resend(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get(key) else { return };
        let Some((_, connection)) = session.connection.and_then(|place| self.connections.get_mut(place))
        else {
            return;
        };
        for (packet_id, in_flight) in &session.in_flight {
            match in_flight {
                InFlight::Sent(delivery) => write_publish(connection, *packet_id, delivery, true),
                InFlight::Released(_) => super::packets::encode_answer(
                    &Answer::PubRel(*packet_id, ReasonCode::SUCCESS),
                    connection.version,
                    &mut connection.out,
                ),
            }
        }
    }

    fn deliver(&mut self, key: SessionKey, delivery: Delivery) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if delivery.qos == QoS::AtMostOnce && session.connection.is_none() {
            return;
        }
        if let Err(refused) = session.enqueue(delivery) {
            self.stats.dropped.fetch_add(1, Ordering::Relaxed);
            if session.is_durable() && refused.qos != QoS::AtMostOnce {
                let record = session.dequeue_record(refused.number);
                self.turn.builder.state(record);
            }
        }
        self.pump(key);
    }

    /// Writes what waits for a session and may be sent.
    pub(super) fn pump(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(place) = session.connection else { return };
        let Some((_, connection)) = self.connections.get_mut(place) else { return };
        while let Some((packet_id, delivery)) = session.next_to_send() {
            if delivery.qos == QoS::AtMostOnce && connection.out.len() > OUT_BYTES {
                self.stats.dropped.fetch_add(1, Ordering::Relaxed);
                session.dropped += 1;
                continue;
            }
            write_publish(connection, packet_id, &delivery, false);
            self.stats.sent.fetch_add(1, Ordering::Relaxed);
        }
        self.dirty.push(place);
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
            if !connection.flush()
                || (connection.closing && connection.out.is_empty() && self.is_answered(place))
            {
                self.close(place);
            }
        }
    }

    /// Whether no answer to the connection waits for a commit.
    fn is_answered(&self, place: usize) -> bool {
        let generation = self.connections.get(place).map(|(generation, _)| *generation);
        let waits = |answers: &[(ConnectionKey, Answer)]| {
            answers.iter().any(|(key, _)| key.place == place && Some(key.generation) == generation)
        };
        !waits(&self.turn.answers) && !self.committing.iter().any(|turn| waits(&turn.answers))
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
            if !session.is_durable() {
                self.drop_session(key);
            }
        }
        if let (Some(will), Phase::Open { principal, .. }) = (connection.will.take(), &connection.phase) {
            let principal = Arc::clone(principal);
            self.publish_internal(&will, Some(&principal));
        }
    }

    /// Forgets a session and everything that waits for it.
    pub(super) fn drop_session(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.try_remove(key) else { return };
        self.by_client.remove(&session.client_id);
        session.subscriptions.keys().for_each(|filter| self.router.unsubscribe(filter, key));
        if session.is_durable() {
            session.forget().into_iter().for_each(|record| self.turn.builder.state(record));
        }
        self.turn.deliveries.retain(|(session, _)| *session != key);
        self.committing.iter_mut().for_each(|turn| turn.deliveries.retain(|(session, _)| *session != key));
    }

    fn serve_inbox(&mut self) {
        for command in self.inbox.take() {
            match command {
                Command::Publish(message, reply) => {
                    self.publish_internal(&message, None);
                    self.turn.replies.push(reply);
                }
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
                Command::List(reply) => {
                    let _ = reply.send(self.list());
                }
                Command::Stop => self.stopping = true,
            }
        }
    }

    fn list(&self) -> Vec<SessionInfo> {
        let info = |session: &Session| {
            let connection = session.connection.and_then(|place| self.connections.get(place)).map(|(_, c)| c);
            SessionInfo {
                client: session.client_id.clone(),
                principal: connection.and_then(|connection| match &connection.phase {
                    Phase::Open { principal, .. } => Some(principal.name.clone()),
                    Phase::Opening => None,
                }),
                peer: connection.map(|connection| connection.peer),
                expiry: session.expiry,
                subscriptions: session.subscriptions.len(),
                in_flight: session.in_flight.len(),
                queued: session.queue.len(),
                dropped: session.dropped,
            }
        };
        let mut list: Vec<SessionInfo> = self.sessions.iter().map(|(_, session)| info(session)).collect();
        list.sort_by(|a, b| a.client.cmp(&b.client));
        list
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
                Phase::Open { .. } => reading && connection.keep_alive > 0 && quiet > connection.keep_alive,
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
        let expired = |session: &Session| {
            session.connection.is_none()
                && session.left_at.is_some_and(|left| now.saturating_sub(left) > session.expiry.into())
        };
        let gone: Vec<SessionKey> =
            self.sessions.iter().filter(|(_, session)| expired(session)).map(|(key, _)| key).collect();
        gone.into_iter().for_each(|key| self.drop_session(key));
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
    }
}

/// Appends a PUBLISH, unless it is larger than the client takes.
fn write_publish(connection: &mut Connection, packet_id: u16, delivery: &Delivery, dup: bool) {
    let message = &delivery.message;
    let start = connection.out.len();
    let publish = Publish {
        dup: dup && delivery.qos != QoS::AtMostOnce,
        qos: delivery.qos,
        retain: delivery.retain,
        topic: &message.topic,
        packet_id,
        properties: sonde_proto::mqtt::Properties::from_encoded(&message.properties),
        payload: &message.payload,
    };
    Packet::Publish(publish).encode(connection.version, &mut connection.out);
    if connection.out.len() - start > connection.packet_maximum {
        connection.out.truncate(start);
    }
}
