//! The event loop of one thread of the load: connects its clients, publishes by the plan, and waits for what is missing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use sonde_proto::mqtt::{
    Connect, Disconnect, Filter, Packet, Properties, PropertiesBuilder, Property, Publish, QoS,
    RetainHandling, Subscribe, Version,
};

use super::super::super::mqtt_client::refused;
use super::super::super::{Exit, Failure, Result};
use super::client::{Broken, Client, Flight, Role, State, Tally};
use super::pace::Pace;
use super::plan::{Plan, Until};
use super::template::{Fill, Random};

const TICKER: Token = Token(usize::MAX);
/// Connections that are being made at once: fewer than a listener with a short backlog (Mosquitto 100) lets wait, beyond
/// which a SYN is lost and sent again after a second.
const CONNECTING: usize = 64;
/// Filters of one SUBSCRIBE.
const FILTERS: usize = 100;
/// Bytes that wait for a socket before no more QoS 0 messages are made for it.
const OUTPUT_BYTES: usize = 64 << 10;
/// How long a connection may take to be let in.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// The shortest time between two wake-ups of a fixed rate.
const TICK: Duration = Duration::from_micros(100);
/// Seconds that a server is asked to keep the session of `--keep-session`.
const KEEP_SECONDS: u32 = 86_400;

/// What all threads know of each other's messages, so that each can tell when nothing is missing.
#[derive(Debug)]
pub(super) struct Progress {
    /// Messages sent that are to be acknowledged.
    sent: AtomicU64,
    settled: AtomicU64,
    /// Deliveries that are to come; meaningless while `blind`.
    expected: AtomicU64,
    distinct: AtomicU64,
    received: AtomicU64,
    /// Threads that may send more.
    publishing: AtomicU64,
    /// Nobody can tell how many deliveries are to come.
    blind: AtomicBool,
}

impl Progress {
    pub(super) fn new(threads: usize) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            sent: zero(),
            settled: zero(),
            expected: zero(),
            distinct: zero(),
            received: zero(),
            publishing: AtomicU64::new(threads as u64),
            blind: AtomicBool::new(false),
        }
    }
}

/// What a thread did.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) tally: Tally,
    /// Deliveries that were to come, where that can be told.
    pub(super) expected: Option<u64>,
    /// Messages that were due at the fixed rate and could not be sent.
    pub(super) unsent: u64,
    /// Why connections that were closed were.
    pub(super) closed: Vec<Failure>,
}

/// One thread's loop.
pub(super) struct Driver<'p> {
    plan: &'p Plan,
    progress: &'p Progress,
    thread: usize,
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    clients: Vec<Client>,
    /// Places of the publishers.
    publishers: Vec<usize>,
    ready: usize,
    /// Publishers that still have something to send.
    unfinished: usize,
    /// Publishers that could send more at once: no event of theirs will come.
    hungry: Vec<usize>,
    /// When publishing began.
    start: u64,
    tally: Tally,
    random: Random,
    expected: u64,
    published: Tally,
    closed: Vec<Failure>,
    text: Vec<u8>,
    topic: Vec<u8>,
}

fn said(broken: Broken) -> Failure {
    match broken {
        Broken::Socket(error) => Failure::new(Exit::Unreachable, error.to_string()),
        Broken::Closed => Failure::new(Exit::Failed, "the server closed the connection"),
        Broken::Refused(what, reason) => refused(what, reason),
        Broken::Protocol(text) => Failure::new(Exit::Failed, text),
    }
}

impl<'p> Driver<'p> {
    pub(super) fn new(plan: &'p Plan, progress: &'p Progress, thread: usize) -> Result<Self> {
        Ok(Self {
            plan,
            progress,
            thread,
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            buffer: vec![0; 64 << 10],
            clients: Vec::new(),
            publishers: Vec::new(),
            ready: 0,
            unfinished: 0,
            hungry: Vec::new(),
            start: 0,
            tally: Tally::new(0),
            random: Random::new(thread as u64 + 1),
            expected: 0,
            published: Tally::new(0),
            closed: Vec::new(),
            text: Vec::new(),
            topic: Vec::new(),
        })
    }

    /// Connections that are neither publishers nor subscribers.
    pub(super) fn connect_quiet(&mut self) -> Result<()> {
        let numbers: Vec<usize> = self.plan.share(self.plan.quiet, self.thread).collect();
        self.connect(&numbers, "q", |_| Role::Quiet)
    }

    pub(super) fn connect_subscribers(&mut self) -> Result<()> {
        let numbers: Vec<usize> = self.plan.share(self.plan.subscribers, self.thread).collect();
        let pending = |number| self.plan.filters_of(number).count().div_ceil(FILTERS);
        let pending: HashMap<usize, usize> =
            numbers.iter().map(|number| (*number, pending(*number))).collect();
        self.connect(&numbers, "s", |number| Role::Subscriber {
            pending: pending.get(&number).copied().unwrap_or_default(),
            seen: HashMap::new(),
        })
    }

    pub(super) fn connect_publishers(&mut self) -> Result<()> {
        let plan = self.plan;
        let numbers: Vec<usize> = plan.share(plan.publishers, self.thread).collect();
        let topic = |number: &usize| plan.topic.is_constant().then(|| plan.topic.text(*number as u32, 0));
        let topics: Vec<Option<String>> = numbers.iter().map(topic).collect();
        // Before the first connects: many subscriptions take a while, and servers do not wait long for CONNECT.
        let audiences = plan.audiences(&topics);
        let mut roles = topics.into_iter().zip(audiences).map(|(topic, audience)| {
            let flight = Flight::new(plan.in_flight);
            Role::Publisher { flight, sent: 0, due: 0, last_due: 0, topic, audience }
        });
        self.publishers = (self.clients.len()..self.clients.len() + numbers.len()).collect();
        self.connect(&numbers, "p", |_| roles.next().unwrap_or(Role::Quiet))
    }

    /// Connects clients and waits until each is ready.
    fn connect(&mut self, numbers: &[usize], kind: &str, mut role: impl FnMut(usize) -> Role) -> Result<()> {
        let began = self.plan.clock.now();
        let rate = self.plan.connect_rate.map(|rate| Pace::new(began, rate / self.plan.threads as f64, 1));
        let (first, all) = (self.clients.len(), self.clients.len() + numbers.len());
        let mut heard = (began, self.ready);
        while self.ready < all {
            let now = self.plan.clock.now();
            let allowed = rate.map_or(usize::MAX, |rate| first + rate.due_by(now) as usize);
            while self.clients.len() < all.min(allowed) && self.clients.len() - self.ready < CONNECTING {
                let Some(number) = numbers.get(self.clients.len() - first) else { break };
                self.open(*number, kind, role(*number))?;
            }
            self.turn(Duration::from_millis(if rate.is_some() { 1 } else { 100 }));
            if let Some(why) = self.closed.first() {
                return Err(Failure::new(why.exit, format!("{}: {}", self.plan.target, why.text)));
            }
            if heard.1 != self.ready {
                heard = (now, self.ready);
            } else if now - heard.0 > CONNECT_PATIENCE.as_nanos() as u64 {
                let missing = all - self.ready;
                return Err(Failure::new(
                    Exit::Unreachable,
                    format!("{}: {missing} connections heard nothing for 30 s", self.plan.target),
                ));
            }
        }
        Ok(())
    }

    fn open(&mut self, number: usize, kind: &str, role: Role) -> Result<()> {
        let plan = self.plan;
        let mut socket = TcpStream::connect(plan.address).map_err(|error| {
            Failure::new(Exit::Unreachable, format!("{} cannot be reached by MQTT: {error}", plan.target))
        })?;
        socket.set_nodelay(true)?;
        let token = Token(self.clients.len());
        self.poll.registry().register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
        let mut client = Client::new(socket, number as u32, role, plan.version);
        let keeps = plan.keep_session && matches!(client.role, Role::Subscriber { .. });
        let mut properties = PropertiesBuilder::new();
        if keeps && plan.version == Version::V5 {
            properties.push(Property::SessionExpiryInterval(KEEP_SECONDS));
        }
        let connect = Connect {
            version: plan.version,
            is_3_1: false,
            clean_start: !keeps,
            keep_alive: 0,
            properties: properties.as_properties(),
            client_id: &format!("{}-{kind}{number:06}", plan.prefix),
            will: None,
            username: plan.username.as_deref(),
            password: plan.password.as_deref().map(str::as_bytes),
        };
        connect.encode(&mut client.output);
        self.clients.push(client);
        Ok(())
    }

    /// Asks for what a subscriber is to get.
    fn subscribe(plan: &Plan, client: &mut Client) {
        let filters: Vec<String> = plan.filters_of(client.number as usize).collect();
        for (place, filters) in filters.chunks(FILTERS).enumerate() {
            let filters: Vec<Filter<'_>> = filters
                .iter()
                .map(|filter| Filter {
                    filter,
                    qos: plan.subscriber_qos,
                    no_local: false,
                    retain_as_published: false,
                    retain_handling: RetainHandling::Never,
                })
                .collect();
            Subscribe::encode(
                place as u16 + 1,
                Properties::default(),
                &filters,
                plan.version,
                &mut client.output,
            );
        }
    }

    /// Waits for events and handles them.
    fn turn(&mut self, timeout: Duration) {
        if let Err(error) = self.poll.poll(&mut self.events, Some(timeout)) {
            if error.kind() != std::io::ErrorKind::Interrupted {
                self.closed.push(Failure::new(Exit::Failed, format!("cannot wait for events: {error}")));
            }
            return;
        }
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            let Token(place) = event.token();
            let Some(client) = self.clients.get_mut(place).filter(|client| client.state != State::Closed)
            else {
                continue;
            };
            let (was_open, was_ready) = (client.state == State::Open, client.is_ready());
            let clock = self.plan.clock;
            let mut outcome = match event.is_readable() || event.is_read_closed() || event.is_error() {
                true => {
                    client.read(&mut self.buffer, event.is_read_closed(), || clock.now(), &mut self.tally)
                }
                false => Ok(()),
            };
            if !was_open && client.state == State::Open && matches!(client.role, Role::Subscriber { .. }) {
                Self::subscribe(self.plan, client);
            }
            let is_ready = client.is_ready();
            outcome = outcome.and_then(|()| client.flush());
            self.ready += usize::from(!was_ready && is_ready);
            match outcome {
                Ok(()) => self.fill(place),
                Err(broken) => self.end(place, said(broken)),
            }
        }
        std::mem::swap(&mut self.events, &mut events);
        self.share_progress();
    }

    fn end(&mut self, place: usize, why: Failure) {
        let Some(client) = self.clients.get_mut(place) else { return };
        if let Err(error) = self.poll.registry().deregister(&mut client.socket) {
            self.closed.push(Failure::new(Exit::Failed, format!("cannot unwatch a connection: {error}")));
        }
        if let Role::Publisher { sent, due, .. } = &mut client.role
            && *sent < *due
        {
            self.unfinished -= 1;
        }
        client.state = State::Closed;
        self.closed.push(why);
    }

    /// Tells the other threads what was counted since the last time.
    fn share_progress(&mut self) {
        let (now, told) = (&self.tally, &mut self.published);
        let progress = self.progress;
        progress.sent.fetch_add(now.sent - told.sent, Relaxed);
        let settled = |tally: &Tally| tally.acknowledged + tally.refused;
        progress.settled.fetch_add(settled(now) - settled(told), Relaxed);
        progress.distinct.fetch_add(now.distinct - told.distinct, Relaxed);
        progress.received.fetch_add(now.received - told.received, Relaxed);
        (told.sent, told.acknowledged, told.refused) = (now.sent, now.acknowledged, now.refused);
        (told.distinct, told.received) = (now.distinct, now.received);
    }

    /// Publishes what a client may publish now.
    fn fill(&mut self, place: usize) {
        let plan = self.plan;
        let pace = self.pace();
        let Some(client) = self.clients.get_mut(place).filter(|client| client.state == State::Open) else {
            return;
        };
        let (mut made, mut had_work) = (0_u64, false);
        let local = self.publishers.first().map_or(0, |first| place.wrapping_sub(*first));
        while let Role::Publisher { sent, due, last_due, .. } = &client.role {
            if *sent >= *due {
                break;
            }
            had_work = true;
            let (number, last_due) = (*sent, *last_due);
            if plan.qos == QoS::AtMostOnce && client.output.len() > OUTPUT_BYTES {
                break;
            }
            let now = plan.clock.now();
            let time = pace.map_or(now, |pace| pace.due(local, number)).max(last_due + 1);
            let Some(packet_id) = client.take_id(plan.qos, time) else { break };
            self.text.clear();
            let fill = Fill { client: client.number, number, time };
            plan.payload.write(&fill, &mut self.random, &mut self.text);
            let Role::Publisher { sent, last_due, topic, audience, .. } = &mut client.role else { break };
            let topic = match topic {
                Some(topic) => topic.as_str(),
                None => {
                    self.topic.clear();
                    plan.topic.write(&fill, &mut self.random, &mut self.topic);
                    std::str::from_utf8(&self.topic).unwrap_or_default()
                }
            };
            let publish = Publish {
                dup: false,
                qos: plan.qos,
                retain: false,
                topic,
                packet_id,
                properties: Properties::default(),
                payload: &self.text,
            };
            Packet::Publish(publish).encode(plan.version, &mut client.output);
            (*sent, *last_due) = (number + 1, time);
            made += 1;
            self.tally.sent += 1;
            match audience {
                Some(audience) => {
                    self.expected += *audience;
                    self.progress.expected.fetch_add(*audience, Relaxed);
                }
                None => self.progress.blind.store(true, Relaxed),
            }
            if plan.qos == QoS::AtMostOnce {
                self.tally.acknowledged += 1;
                self.tally.measured += u64::from(time >= self.tally.measured_from);
                self.tally.last = now;
            }
        }
        let has_more = matches!(&client.role, Role::Publisher { sent, due, .. } if sent < due);
        self.unfinished -= usize::from(had_work && !has_more);
        let outcome = if made > 0 { client.flush() } else { Ok(()) };
        if plan.qos == QoS::AtMostOnce && has_more && client.output.is_empty() {
            self.hungry.push(place);
        }
        if let Err(broken) = outcome {
            self.end(place, said(broken));
        }
    }

    /// The schedule of this thread's publishers.
    fn pace(&self) -> Option<Pace> {
        let all = self.plan.publishers.max(1) as f64;
        let mine = self.publishers.len();
        self.plan.rate.map(|rate| Pace::new(self.start, rate * mine as f64 / all, mine))
    }

    /// Lets a publisher send up to `due` messages.
    fn allow(&mut self, place: usize, allowed: u64) {
        let Some(client) = self.clients.get_mut(place) else { return };
        let is_open = client.state == State::Open;
        if let Role::Publisher { sent, due, .. } = &mut client.role
            && is_open
            && allowed > *due
        {
            if *sent >= *due {
                self.unfinished += 1;
            }
            *due = allowed;
        }
    }

    /// Publishes from `start` on by the plan, and waits for what is missing.
    pub(super) fn run(mut self, start: u64) -> Result<Done> {
        let plan = self.plan;
        let warm = start + plan.warm_up.as_nanos() as u64;
        self.tally.measured_from = warm;
        self.start = start;
        let end = match plan.until {
            Until::Time(duration) => warm + duration.as_nanos() as u64,
            Until::Messages(_) => u64::MAX,
        };
        std::thread::sleep(Duration::from_nanos(start.saturating_sub(plan.clock.now())));
        let ticker = self.start_ticker()?;
        if plan.publishers > 0 {
            self.publish(end);
        } else if plan.subscribers + plan.quiet > 0 {
            self.listen(end);
        }
        let unsent = self.stop_publishing();
        // Who only listens for a time misses nothing.
        if plan.publishers > 0 || matches!(plan.until, Until::Messages(_)) {
            self.await_missing();
        }
        drop(ticker);
        self.say_goodbye();
        let blind = self.progress.blind.load(Relaxed);
        Ok(Done {
            tally: self.tally,
            expected: (!blind).then_some(self.expected),
            unsent,
            closed: self.closed,
        })
    }

    /// Wakes the loop whenever a message is due: `poll` itself waits for whole milliseconds.
    fn start_ticker(&self) -> Result<Option<Ticker>> {
        let Some(rate) = self.plan.rate.filter(|_| !self.publishers.is_empty()) else { return Ok(None) };
        let waker = Waker::new(self.poll.registry(), TICKER)?;
        let period = Duration::from_secs_f64(1.0 / rate).clamp(TICK, Duration::from_millis(10));
        Ok(Some(Ticker::start(waker, period)))
    }

    fn publish(&mut self, end: u64) {
        let places = self.publishers.clone();
        let each = |local: usize| match self.plan.until {
            Until::Messages(all) => {
                let number = (self.thread + local * self.plan.threads) as u64;
                let (publishers, all) = (self.plan.publishers as u64, all);
                all / publishers + u64::from(number < all % publishers)
            }
            Until::Time(_) => u64::MAX,
        };
        let limits: Vec<u64> = (0..places.len()).map(each).collect();
        let mut issued = 0;
        if self.plan.rate.is_none() {
            for (place, limit) in places.iter().zip(&limits) {
                self.allow(*place, *limit);
                self.fill(*place);
            }
        }
        loop {
            let now = self.plan.clock.now();
            let is_open = |place: &usize| self.clients.get(*place).is_some_and(|c| c.state == State::Open);
            if now >= end || !places.iter().any(is_open) {
                return;
            }
            let mut is_over = self.unfinished == 0 && self.plan.rate.is_none();
            if let Some(pace) = self.pace() {
                let mut touched = Vec::new();
                let due = pace.due_by(now).min(limits.iter().fold(0, |sum, limit| limit.saturating_add(sum)));
                while issued < due {
                    let local = (issued % places.len() as u64) as usize;
                    let Some(place) = places.get(local) else { break };
                    self.allow(*place, issued / places.len() as u64 + 1);
                    touched.push(*place);
                    issued += 1;
                }
                touched.into_iter().for_each(|place| self.fill(place));
                let all = limits.iter().fold(0_u64, |sum, limit| sum.saturating_add(*limit));
                is_over = issued >= all && self.unfinished == 0;
            }
            if is_over {
                return;
            }
            let hungry = std::mem::take(&mut self.hungry);
            let patience = if hungry.is_empty() { Duration::from_millis(100) } else { Duration::ZERO };
            self.turn(Duration::from_nanos(end.saturating_sub(now)).min(patience));
            hungry.into_iter().for_each(|place| self.fill(place));
        }
    }

    /// Without publishers: takes what comes until the time is over, or all of `--messages` have come.
    fn listen(&mut self, end: u64) {
        if let Until::Messages(all) = self.plan.until {
            self.expected = if self.thread == 0 { all } else { 0 };
            self.progress.expected.fetch_add(self.expected, Relaxed);
            return;
        }
        self.progress.blind.store(true, Relaxed);
        loop {
            let now = self.plan.clock.now();
            if now >= end {
                return;
            }
            self.turn(Duration::from_nanos(end - now).min(Duration::from_millis(100)));
        }
    }

    /// Nothing more is sent. Returns how many messages were due and are not.
    fn stop_publishing(&mut self) -> u64 {
        let mut unsent = 0;
        for client in &mut self.clients {
            if let Role::Publisher { sent, due, .. } = &mut client.role {
                if *due != u64::MAX {
                    unsent += *due - *sent;
                }
                *due = *sent;
            }
        }
        self.progress.publishing.fetch_sub(1, Relaxed);
        unsent
    }

    /// Waits until everything is acknowledged and delivered, or nothing comes any more.
    fn await_missing(&mut self) {
        let progress = self.progress;
        let is_over = || {
            let publishing = progress.publishing.load(Relaxed) > 0;
            let settled = self.plan.qos == QoS::AtMostOnce
                || progress.settled.load(Relaxed) >= progress.sent.load(Relaxed);
            let blind = progress.blind.load(Relaxed);
            let delivered = self.plan.subscribers == 0
                || (!blind && progress.distinct.load(Relaxed) >= progress.expected.load(Relaxed));
            !publishing && settled && delivered
        };
        let state =
            || [&progress.settled, &progress.received, &progress.sent].map(|count| count.load(Relaxed));
        self.share_progress();
        let mut quiet = (self.plan.clock.now(), state());
        while !is_over() {
            self.turn(Duration::from_millis(20));
            let now = self.plan.clock.now();
            if state() != quiet.1 {
                quiet = (now, state());
            }
            if now - quiet.0 > self.plan.patience.as_nanos() as u64 {
                return;
            }
        }
        // What is delivered twice comes a moment later.
        if self.plan.subscribers > 0 {
            self.turn(Duration::from_millis(50));
        }
        // Acknowledgements of the last deliveries.
        for client in &mut self.clients {
            if client.state == State::Open && client.flush().is_err() {
                client.state = State::Closed;
            }
        }
    }

    /// Ends the connections as clients should.
    fn say_goodbye(&mut self) {
        for client in self.clients.iter_mut().filter(|client| client.state == State::Open) {
            Packet::Disconnect(Disconnect::default()).encode(client.version, &mut client.output);
            // The run is over: a connection that breaks now takes nothing with it.
            drop(client.flush());
        }
    }
}

/// A thread that wakes a loop again and again, until it is dropped.
#[derive(Debug)]
struct Ticker {
    stopped: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Ticker {
    fn start(waker: Waker, period: Duration) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stopped);
        let thread = std::thread::spawn(move || {
            while !seen.load(Relaxed) {
                std::thread::sleep(period);
                if waker.wake().is_err() {
                    return;
                }
            }
        });
        Self { stopped, thread: Some(thread) }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stopped.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot panic: it sleeps and wakes.
            drop(thread.join());
        }
    }
}
