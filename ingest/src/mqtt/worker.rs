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
use mio::{Events, Poll, Token};
use slab::Slab;
use sonde_engine::{Engine, MessageReader, Origin, SeqNo, Table, Timestamp};
use sonde_proto::mqtt::{Disconnect, Packet, PropertiesBuilder, Property, ReasonCode, Version, decode};

use super::accept::{Doors, INBOX};
use super::connection::{Connection, Parked, Phase};
use super::message::Message;
use super::offline::{self, QueueLimits};
use super::packets::explain;
use super::past::Past;
use super::retained::Retained;
use super::router::{Interest, Router, SessionKey};
use super::session::{self, Session, Stored};
use super::stats::Refused;
use super::sys::Sys;
use super::transport::ReadResult;
use super::turn::{Answer, Committing, ConnectionKey, Reply, Turn, Undo};
use super::{Authenticate, Command, Inbox, MqttStats, Offers};
use crate::limits::{
    CONNECT_BYTES, CONNECT_TIME, OUT_BYTES, PACKET_BYTES, READ_BUFFER, TOPICS, TURN_BYTES, TURNS_IN_FLIGHT,
};
use crate::row::RowBuffer;
use crate::source::{Source, Sources};
use crate::topics::{TopicStats, Topics};

/// How long the loop sleeps when nothing happens.
const TICK: Duration = Duration::from_secs(1);

/// What the loop shares with the rest of the process.
pub(super) struct Shared {
    pub(super) inbox: Arc<Inbox>,
    pub(super) stats: Arc<MqttStats>,
    pub(super) topics: Arc<Topics>,
    pub(super) dead_letters: Arc<Table>,
    pub(super) queue_limits: QueueLimits,
    pub(super) raw_retention: Duration,
    pub(super) offers: Offers,
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
    /// How much waits for a session.
    pub(super) queue_limits: QueueLimits,
    /// How long messages that no source but `default` takes stay in the log.
    pub(super) raw_retention: Duration,
    /// The sessions that stand for replays.
    pub(super) replays: Vec<SessionKey>,
    /// Rows on their way to them.
    pub(super) past: Past,
    /// Whether one of them can go on.
    replaying: bool,
    /// Turns that were handed to the engine, and those of them that have ended.
    pub(super) submitted: u64,
    pub(super) released: u64,
    /// Reads what waits in the log.
    pub(super) messages: MessageReader,
    /// Where the log says that sessions stand; none where nothing waits.
    pub(super) log_cursor: Option<SeqNo>,
    /// Bytes of what waits in the log for all sessions, each message counted for each.
    pub(super) queued_bytes: u64,
    /// Tails that are open.
    pub(super) tails: usize,
    pub(super) offers: Offers,
    /// The engine's clock when this pass of the loop began.
    pub(super) clock: Timestamp,
    /// Reused by every PUBLISH that is sent.
    pub(super) properties: PropertiesBuilder,
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
    pub(super) poll: Poll,
    pub(super) doors: Doors,
    pub(super) inbox: Arc<Inbox>,
    pub(super) waker: Waker,
    topics: Arc<Topics>,
    topic_cache: HashMap<Box<str>, Rc<TopicInfo>>,
    pub(super) sources: Sources,
    ready: VecDeque<usize>,
    /// Connections that may have something to write.
    pub(super) dirty: Vec<usize>,
    pub(super) committing: VecDeque<Committing>,
    buffer: Vec<u8>,
    /// What is to be decrypted.
    scratch: Vec<u8>,
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
        doors: Doors,
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
            queue_limits: shared.queue_limits,
            raw_retention: shared.raw_retention,
            replays: Vec::new(),
            past: Past::default(),
            replaying: false,
            submitted: 0,
            released: 0,
            messages: MessageReader::new(),
            log_cursor: offline::log_cursor(&engine),
            queued_bytes: 0,
            tails: 0,
            offers: shared.offers,
            clock: engine.now(),
            properties: PropertiesBuilder::new(),
            rights_version: authenticate.version(),
            authenticate,
            connections: Slab::new(),
            sessions: Slab::new(),
            by_client: HashMap::default(),
            router: Router::default(),
            sys: Sys::default(),
            row_buffer: RowBuffer::default(),
            scratch: vec![0; doors.scratch_bytes()],
            poll,
            doors,
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
        worker.engine.keep_log_for(worker.raw_retention.max(worker.sources.raw_retention()));
        worker
    }

    /// Puts a session into the table and its subscriptions into the router.
    pub(super) fn add_session(&mut self, session: Session) -> SessionKey {
        let client = session.client_id.clone();
        self.queued_bytes += session.backlog.bytes();
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
            let timeout = self.patience();
            if let Err(error) = self.poll.poll(&mut events, Some(timeout))
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "the MQTT event loop cannot wait for events");
                return;
            }
            let began = Instant::now();
            self.clock = self.engine.now();
            self.accept_again();
            self.serve_due();
            for event in &events {
                match event.token() {
                    INBOX => {}
                    token if let Some(door) = self.doors.of_token(token) => self.accept(door),
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
            self.replaying = self.step_replays();
            if !self.turn.is_empty() {
                // What was released led to more to commit: that does not wait for the next event.
                self.inbox.wake();
            }
            self.write_dirty();
            if began.elapsed() < TICK {
                self.sweep();
            } // Else what clients sent meanwhile is not read yet, and their silence is ours.
        }
        self.close_all();
    }

    /// How long the loop may sleep.
    fn patience(&self) -> Duration {
        let busy = !self.ready.is_empty() && self.committing.len() < TURNS_IN_FLIGHT;
        if busy || self.replaying || !self.dirty.is_empty() {
            return Duration::ZERO;
        }
        let due = self.doors.due().map(|due| due.saturating_duration_since(Instant::now()));
        due.map_or(TICK, |due| due.min(TICK))
    }

    /// Tells a connection from those that had its place before.
    pub(super) fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    fn mark_ready(&mut self, place: usize) {
        if let Some((_, connection)) = self.connections.get_mut(place)
            && !std::mem::replace(&mut connection.readable, true)
            && connection.parked.is_none()
        {
            self.ready.push_back(place);
        }
    }

    /// Reads a connection that was not read for a while, and whose events have passed.
    pub(super) fn read_on(&mut self, place: usize) {
        self.mark_ready(place);
    }

    /// Reads a connection again that was not read for this reason.
    pub(super) fn unpark(&mut self, key: ConnectionKey, why: Parked) {
        let now = self.now();
        let found = self.connections.get_mut(key.place).filter(|(known, _)| *known == key.generation);
        if let Some((_, connection)) = found
            && connection.parked == Some(why)
        {
            connection.parked = None;
            // Its silence was ours.
            connection.heard_at = now;
            self.ready.push_back(key.place);
        }
    }

    /// Reads every connection that has something once, until the turn is full.
    fn read_ready(&mut self) {
        self.refresh_sources();
        let (mut buffer, mut scratch) = (std::mem::take(&mut self.buffer), std::mem::take(&mut self.scratch));
        for _ in 0..self.ready.len() {
            if self.turn.builder.bytes() >= TURN_BYTES {
                break;
            }
            let Some(place) = self.ready.pop_front() else { break };
            self.read_connection(place, &mut buffer, &mut scratch);
        }
        (self.buffer, self.scratch) = (buffer, scratch);
    }

    /// Takes the sources of the catalog as it is now.
    pub(super) fn refresh_sources(&mut self) {
        if self.sources.is_stale(&self.engine) {
            self.sources = Sources::load(&self.engine);
            self.topic_cache.clear();
            self.engine.keep_log_for(self.raw_retention.max(self.sources.raw_retention()));
        }
    }

    fn read_connection(&mut self, place: usize, buffer: &mut [u8], scratch: &mut [u8]) {
        let now = self.now();
        let Some((generation, connection)) = self.connections.get_mut(place) else { return };
        let key = ConnectionKey { place, generation: *generation };
        connection.readable = false;
        if connection.pauses() {
            return;
        }
        if connection.is_clogged() {
            // Who does not read what is answered is not asked for more; `write_dirty` goes on.
            connection.park(Parked::Clogged);
            self.stats.paused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let found = connection.read(buffer, scratch);
        let (ReadResult::More(filled) | ReadResult::Drained(filled) | ReadResult::Closed(filled)) = found;
        let came = filled - connection.partial.len();
        self.stats.bytes_in.fetch_add(came as u64, Ordering::Relaxed);
        self.sys.traffic.bytes_received += came as u64;
        // Until CONNECT the time runs from the beginning, however slowly bytes trickle.
        if came > 0 && connection.session().is_some() {
            connection.heard_at = now;
        }
        if connection.transport.unwritten() > 0 {
            self.dirty.push(place);
        }
        if let Some(error) = connection.transport.take_error() {
            self.stats.refuse(Refused::Handshake);
            tracing::debug!(peer = %connection.peer, error, "MQTT connection closed");
        }
        if let Some(source) = connection.transport.take_source()
            && !self.take_peer(key, source)
        {
            return self.close(place);
        }
        let Some((_, connection)) = self.connections.get_mut(place) else { return };
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
        let rest = bytes.get(done..).unwrap_or_default();
        if let Some(until) = connection.over_rate(Instant::now()).filter(|_| !connection.closing) {
            connection.park(Parked::Rate);
            (connection.has_rest, connection.ended) = (!rest.is_empty() || ended, ended);
            connection.keep(rest);
            self.stats.paused.fetch_add(1, Ordering::Relaxed);
            self.doors.waiting.insert((until, place, key.generation));
            return;
        }
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
            if connection.pauses()
                || connection.meter.is_some() && connection.over_rate(Instant::now()).is_some()
            {
                return done;
            }
            let opening = matches!(connection.phase, Phase::Opening);
            let limit = if opening { CONNECT_BYTES } else { PACKET_BYTES };
            match decode(bytes.get(done..).unwrap_or_default(), connection.version, limit) {
                Ok(Some((packet, len))) => {
                    done += len;
                    if let Some((_, connection)) = self.connections.get_mut(key.place)
                        && let Some(meter) = &mut connection.meter
                    {
                        meter.count(matches!(packet, Packet::Publish(_)), len, Instant::now());
                    }
                    self.handle_packet(key, &packet);
                    if self.turn.builder.bytes() >= TURN_BYTES {
                        self.submit_turn();
                    }
                }
                Ok(None) => return done,
                Err(error) => {
                    self.stats.protocol_errors.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(peer = %connection.peer, %error, "MQTT connection closed");
                    if opening {
                        self.refuse_malformed(key, bytes.get(done..).unwrap_or_default(), &error);
                    } else {
                        self.refuse_because(key, error.reason(), error.what());
                    }
                    return bytes.len();
                }
            }
        }
    }

    /// Closes a connection behind everything that is still to be answered, with a reason where the version has one.
    pub(super) fn refuse(&mut self, key: ConnectionKey, reason: ReasonCode) {
        self.refuse_because(key, reason, explain(reason));
    }

    /// The same, with what is wrong in words.
    pub(super) fn refuse_because(&mut self, key: ConnectionKey, reason: ReasonCode, why: &'static str) {
        if let Some((_, connection)) = self.connections.get_mut(key.place) {
            connection.closing = true;
            connection.partial = Vec::new();
        }
        self.turn.answers.push((key, Answer::Close(reason, why)));
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
        let now = self.now();
        for place in dirty {
            let Some((generation, connection)) = self.connections.get_mut(place) else { continue };
            let key = ConnectionKey { place, generation: *generation };
            let before = connection.unwritten();
            let intact = connection.flush();
            let written = std::mem::take(&mut connection.written);
            self.stats.bytes_out.fetch_add(written as u64, Ordering::Relaxed);
            self.sys.traffic.bytes_sent += written as u64;
            let left = connection.unwritten();
            connection.stuck_since = match (left, connection.stuck_since) {
                (0, _) => None,
                (_, Some(since)) if written == 0 && left >= before => Some(since),
                _ => Some(now),
            };
            let (last, session) = (connection.closing && left == 0, connection.session());
            if !intact || (last && self.is_answered(place)) {
                self.close(place);
                continue;
            }
            // What waited for room goes on.
            let has_room = before > OUT_BYTES && left <= OUT_BYTES;
            if let Some(session) = session.filter(|_| has_room) {
                self.pump(session);
            }
            if left <= OUT_BYTES {
                self.unpark(key, Parked::Clogged);
            }
        }
    }

    /// Ends a connection: its will is published, and its session ends or waits.
    pub(super) fn close(&mut self, place: usize) {
        let Some((_, mut connection)) = self.connections.try_remove(place) else { return };
        self.leave(&connection);
        connection.transport.close();
        if let Err(error) = self.poll.registry().deregister(&mut connection.transport.socket) {
            tracing::debug!(%error, "cannot unwatch an MQTT connection");
        }
        let now = self.now();
        let mut goes_on = None;
        if let Some(key) = connection.session()
            && let Some(session) = self.sessions.get_mut(key)
            && session.connection == Some(place)
        {
            session.connection = None;
            session.left_at = Some(now);
            let is_durable = session.is_durable();
            if is_durable {
                // Else others of its groups get what waits.
                session.put_back();
            }
            self.end_replays(key);
            self.sys.client_left();
            if is_durable {
                goes_on = Some(key);
            } else {
                self.drop_session(key);
            }
        }
        if let (Some(will), Phase::Open { principal, .. }) = (connection.will.take(), connection.phase) {
            self.will_of_broken(*will, principal, goes_on);
        }
    }

    /// Forgets a session and everything that waits for it; what it leaves of its groups goes to other members.
    pub(super) fn drop_session(&mut self, key: SessionKey) {
        let Some(mut session) = self.sessions.try_remove(key) else { return };
        self.by_client.remove(&session.client_id);
        self.queued_bytes -= session.backlog.bytes();
        let will = session.will.take();
        session.subscriptions.keys().for_each(|filter| self.router.unsubscribe(filter, key));
        let withdrawn = self.withdraw(key);
        // Before the records go: a crash between two batches may double a message, not lose one.
        self.hand_on(session.shared_messages());
        self.hand_on(withdrawn.iter().filter(|delivery| delivery.via.group.is_some()).cloned().collect());
        if session.is_durable() {
            session.forget().into_iter().for_each(|record| self.turn.builder.state(record));
            for delivery in &withdrawn {
                if let Stored::Copy(number) = delivery.stored {
                    self.turn.builder.state(session.dequeue_record(number));
                }
            }
        }
        for number in self.withdraw_backlog(key) {
            self.turn.builder.state(session.backlog_record(number, None));
        }
        // The end of the session is the latest time for a will that waits.
        if let Some(will) = will {
            self.publish_will(&will, None);
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
                Command::Tail(begin) => self.begin_tail(begin),
                Command::EndTail(key, ended) => self.leave_tail(key, &ended),
                Command::Past(work) => self.take_rows(work),
                Command::List(reply) => drop(reply.send(self.list())),
                Command::Subscriptions(reply) => drop(reply.send(self.list_subscriptions())),
                Command::ReloadCertificates => self.doors.refresh_certificates(true),
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
        self.sweep_doors();
        let reading = self.committing.len() < TURNS_IN_FLIGHT;
        let unread = self.doors.unread_seconds();
        let (mut silent, mut stuck) = (Vec::new(), Vec::new());
        for (place, (generation, connection)) in &self.connections {
            let since =
                connection.stuck_since.filter(|since| unread > 0 && now.saturating_sub(*since) > unread);
            if since.is_some() {
                stuck.push(place);
            }
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
        for place in stuck {
            if let Some((_, connection)) = self.connections.get(place) {
                let (peer, bytes) = (connection.peer, connection.unwritten());
                tracing::info!(%peer, bytes, "MQTT connection closed: its client does not read what waits for it");
                self.stats.unread.fetch_add(1, Ordering::Relaxed);
            }
            self.close(place);
        }
        for key in silent {
            let opening =
                self.connections.get(key.place).is_some_and(|(_, c)| matches!(c.phase, Phase::Opening));
            if opening {
                self.stats.refuse(Refused::Late);
            }
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
        self.move_log_cursor();
        self.tell_sys(now);
        self.publish_due_wills();
        self.expire_retained();
    }

    /// Removes the retained messages that have expired, as many as a turn takes.
    fn expire_retained(&mut self) {
        while self.turn.builder.bytes() < TURN_BYTES {
            let Some((topic, record)) = self.retained.expire(self.clock) else { return };
            self.stats.expired.fetch_add(1, Ordering::Relaxed);
            self.turn.builder.state(record);
            self.turn.undo.push(Undo::Retained(topic.to_string()));
        }
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
            let open =
                matches!(connection.phase, Phase::Open { .. }) && connection.greeted && !connection.sealed;
            if connection.version == Version::V5 && open {
                let mut properties = PropertiesBuilder::new();
                let mut reason = ReasonCode::SERVER_SHUTTING_DOWN;
                if let Some(reference) = &self.offers.server_reference {
                    reason = ReasonCode::USE_ANOTHER_SERVER;
                    properties.push(Property::ServerReference(reference));
                }
                let goodbye = Disconnect { reason, properties: properties.as_properties() };
                goodbye.encode(Version::V5, &mut connection.out);
            }
            connection.flush();
            connection.transport.close();
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
