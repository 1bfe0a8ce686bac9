//! The event loop. A turn reads what is there, commits it as one batch, and releases acknowledgements and deliveries
//! of turns whose commit has become durable, in their order.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use foldhash::HashMap;
use mio::{Events, Poll, Token};
use slab::Slab;
use sonde_engine::{Engine, LogBudget, MessageReader, Origin, SeqNo, Table, Timestamp};
use sonde_proto::mqtt::{PropertiesBuilder, filter_matches};

use super::accept::{Doors, INBOX};
use super::budget::{Budget, MemoryLimits};
use super::commands::Publishing;
use super::connection::Connection;
use super::offline;
use super::past::Past;
use super::quota::QueueLimits;
use super::records;
use super::retained::Retained;
use super::router::{Interest, Router, SessionKey};
use super::seldom::Seldom;
use super::session::Session;
use super::subscription::Subscription;
use super::sys::Sys;
use super::tenant::Tenants;
use super::turn::{Committing, Turn};
use super::{Authenticate, Inbox, MqttStats, Offers};
use crate::limits::{CONNECTIONS, READ_BUFFER, REMEMBERED_TOPIC, TOPICS};
use crate::row::RowBuffer;
use crate::source::{Source, Sources};
use crate::topics::{TopicStats, Topics};

/// How long the loop sleeps when nothing happens, and how late a keep alive may end.
const TICK: Duration = Duration::from_millis(250);
/// Events that are taken at once.
const EVENTS: usize = 1024;

/// What the loop shares with the rest of the process.
pub(super) struct Shared {
    pub(super) inbox: Arc<Inbox>,
    pub(super) stats: Arc<MqttStats>,
    pub(super) topics: Arc<Topics>,
    pub(super) dead_letters: Arc<Table>,
    pub(super) queue_limits: QueueLimits,
    pub(super) memory: MemoryLimits,
    pub(super) raw_retention: Duration,
    pub(super) log: LogBudget,
    pub(super) early: Vec<String>,
    pub(super) offers: Offers,
}

/// What is known of a topic, until the sources change.
pub(super) struct TopicInfo {
    pub(super) source: Option<Arc<Source>>,
    pub(super) stats: Arc<TopicStats>,
    /// Whether those who are here get its messages before they are stored.
    pub(super) early: bool,
}

/// The event loop's state. How its bytes come and go is in `reading.rs` and `writing.rs`; what each packet does to it in
/// `packets.rs` and the files of the packets; what time does in `sweep.rs`; what others ask in `commands.rs`.
pub(super) struct Worker {
    pub(super) engine: Engine,
    pub(super) authenticate: Arc<dyn Authenticate>,
    /// The rights that the principals of the connections have are of this version.
    pub(super) rights_version: u64,
    pub(super) stats: Arc<MqttStats>,
    pub(super) dead_letters: Arc<Table>,
    /// How much waits for a session.
    pub(super) queue_limits: QueueLimits,
    /// What all of them may hold in memory.
    pub(super) budget: Budget,
    /// Sessions that were sent nothing, because there was no memory.
    pub(super) held: BTreeSet<SessionKey>,
    /// How long messages that no source but `default` takes stay in the log.
    pub(super) raw_retention: Duration,
    /// How much log the engine keeps.
    pub(super) log: LogBudget,
    /// Filters of topics whose messages are delivered before they are stored.
    early: Vec<String>,
    /// The sessions that stand for replays.
    pub(super) replays: Vec<SessionKey>,
    /// Rows on their way to them.
    pub(super) past: Past,
    /// Whether one of them can go on.
    pub(super) replaying: bool,
    /// The sessions that something retained is looked for; whose turn it is first.
    pub(super) searching: VecDeque<SessionKey>,
    /// Whether one of them can go on.
    pub(super) searches_on: bool,
    /// Turns that were handed to the engine, and those of them that have ended.
    pub(super) submitted: u64,
    pub(super) released: u64,
    /// Turns and clients for which nothing could be stored.
    pub(super) not_stored: Seldom,
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
    pub(super) tenants: Tenants,
    pub(super) inbox: Arc<Inbox>,
    pub(super) waker: Waker,
    topics: Arc<Topics>,
    topic_cache: HashMap<Box<str>, Rc<TopicInfo>>,
    pub(super) sources: Sources,
    /// Connections that may have something to read.
    pub(super) ready: VecDeque<usize>,
    /// Connections that may have something to write.
    pub(super) dirty: Vec<usize>,
    /// Sessions that are to be pumped.
    pub(super) due: Vec<SessionKey>,
    pub(super) committing: VecDeque<Committing>,
    /// What all connections are read into.
    pub(super) buffer: Vec<u8>,
    /// What is to be decrypted.
    pub(super) scratch: Vec<u8>,
    started: Instant,
    /// The second in which the last sweep was.
    pub(super) swept_at: u64,
    /// When it was last looked who is silent, in milliseconds.
    pub(super) listened_at: u64,
    /// What sessions need of the log up to here is kept beside it.
    pub(super) kept_to: SeqNo,
    /// What rules have said and is not published yet.
    pub(super) publishing: VecDeque<Publishing>,
    generation: u64,
    next_number: u64,
    pub(super) stopping: bool,
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
            retained: Retained::recover(&engine, shared.memory.retained),
            sources: Sources::load(&engine),
            waker: Waker::from(Arc::clone(&shared.inbox)),
            // Ascends over restarts, so a queue's new messages sort behind its old ones.
            next_number: engine.now().as_nanos().cast_unsigned(),
            inbox: shared.inbox,
            stats: shared.stats,
            topics: shared.topics,
            dead_letters: shared.dead_letters,
            queue_limits: shared.queue_limits,
            budget: Budget::new(shared.memory),
            held: BTreeSet::new(),
            raw_retention: shared.raw_retention,
            log: shared.log,
            early: shared.early,
            replays: Vec::new(),
            past: Past::default(),
            replaying: false,
            searching: VecDeque::new(),
            searches_on: false,
            submitted: 0,
            released: 0,
            not_stored: Seldom::default(),
            messages: MessageReader::new(),
            log_cursor: offline::log_cursor(&engine),
            queued_bytes: 0,
            tails: 0,
            offers: shared.offers,
            clock: engine.now(),
            properties: PropertiesBuilder::new(),
            // Of none: what changed before the last end of the server may not be done yet.
            rights_version: u64::MAX,
            authenticate,
            connections: Slab::new(),
            sessions: Slab::new(),
            by_client: HashMap::default(),
            router: Router::default(),
            sys: Sys::default(),
            row_buffer: RowBuffer::default(),
            scratch: vec![0; doors.scratch_bytes()],
            poll,
            tenants: Tenants::new(doors.tenant_limits()),
            doors,
            topic_cache: HashMap::default(),
            ready: VecDeque::new(),
            dirty: Vec::new(),
            due: Vec::new(),
            committing: VecDeque::new(),
            buffer: vec![0; READ_BUFFER],
            started: Instant::now(),
            swept_at: 0,
            listened_at: 0,
            kept_to: SeqNo(0),
            publishing: VecDeque::new(),
            generation: 0,
            stopping: false,
            engine,
        };
        let recovered = records::recover(&worker.engine);
        let rewritten = recovered.orphans.into_iter().chain(recovered.moved);
        rewritten.for_each(|record| worker.turn.builder.state(record));
        for session in recovered.sessions {
            worker.add_session(session);
        }
        worker.publish_left_wills(recovered.wills);
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
        self.count_waiting(key);
        for (filter, subscription) in subscriptions {
            self.router.subscribe(&filter, interest(key, subscription));
        }
        key
    }

    /// Seconds since the loop started.
    pub(super) fn now(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// Milliseconds since then.
    pub(super) fn now_millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A number that ascends with the deliveries.
    pub(super) fn next_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        while !self.stopping {
            let timeout = self.patience();
            if let Err(error) = self.poll.poll(&mut events, Some(timeout))
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "the MQTT event loop cannot wait for events");
                return;
            }
            self.clock = self.engine.now();
            self.accept_again();
            self.serve_due();
            self.give_turns();
            self.take_events(&mut events);
            // IMPORTANT: behind the events: whoever has sent something, however long ago, is marked as readable now.
            self.tick();
            self.renew_rights();
            self.serve_inbox();
            self.release_turns();
            self.publish_on();
            if self.may_read() {
                self.read_ready();
            }
            self.pump_due();
            self.searches_on = self.step_searches();
            self.submit_turn();
            self.release_turns();
            self.replaying = self.step_replays();
            if !self.turn.is_empty() {
                // What was released led to more to commit: that does not wait for the next event.
                self.inbox.wake();
            }
            self.write_dirty();
            self.shed();
            self.pump_held();
            self.sweep();
        }
        self.close_all();
    }

    /// Takes note of everything that has happened to sockets.
    fn take_events(&mut self, events: &mut Events) {
        // Each connection has one event at most, until what it says is done.
        for _ in 0..=CONNECTIONS / EVENTS {
            let mut count = 0;
            for event in &*events {
                count += 1;
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
            if count < EVENTS || self.poll.poll(events, Some(Duration::ZERO)).is_err() {
                return;
            }
        }
    }

    /// How long the loop may sleep.
    fn patience(&self) -> Duration {
        let has_more = !self.ready.is_empty() || !self.publishing.is_empty();
        let busy = has_more && self.may_read();
        if busy || self.replaying || self.searches_on || !self.dirty.is_empty() {
            return Duration::ZERO;
        }
        // Nobody gets a turn while nothing is read.
        let reading = self.may_read();
        let due = self.doors.due().into_iter().chain(self.tenants.due().filter(|_| reading)).min();
        due.map_or(TICK, |due| due.saturating_duration_since(Instant::now()).min(TICK))
    }

    /// Tells a connection from those that had its place before.
    pub(super) fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// Takes the sources of the catalog as it is now.
    pub(super) fn refresh_sources(&mut self) {
        if self.sources.is_stale(&self.engine) {
            self.sources = Sources::load(&self.engine);
            self.topic_cache.clear();
            self.engine.keep_log_for(self.raw_retention.max(self.sources.raw_retention()));
        }
    }

    /// What is known of a topic.
    pub(super) fn topic(&mut self, topic: &str) -> Rc<TopicInfo> {
        if let Some(info) = self.topic_cache.get(topic) {
            return Rc::clone(info);
        }
        let stats = self.topics.of(topic);
        let source = self.sources.find(topic).cloned();
        stats.set_source(source.as_ref().map(|source| source.name.as_str()));
        let early = self.early.iter().any(|filter| filter_matches(filter, topic));
        let info = Rc::new(TopicInfo { source, stats, early });
        if topic.len() > REMEMBERED_TOPIC {
            return info;
        }
        if self.topic_cache.len() >= TOPICS {
            self.topic_cache.clear();
        }
        self.topic_cache.insert(topic.into(), Rc::clone(&info));
        info
    }
}

/// A subscription as the router has it.
pub(super) fn interest(session: SessionKey, subscription: Subscription) -> Interest {
    Interest {
        session,
        qos: subscription.qos,
        no_local: subscription.no_local,
        retain_as_published: subscription.retain_as_published,
        identifier: subscription.identifier,
    }
}
