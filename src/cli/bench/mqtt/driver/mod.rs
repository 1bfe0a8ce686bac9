//! The event loop of one thread of the load: connects its clients, publishes by the plan, and waits for what is missing.

mod connect;
mod progress;
mod publish;
mod ticker;
mod wait;

use std::time::Duration;

use mio::{Events, Poll, Token};
use sonde_proto::mqtt::{Disconnect, Packet};

use super::client::{Broken, Client, Role, State, Tally};
use super::plan::{Plan, Until};
use crate::cli::mqtt_client::refused;
use crate::cli::{Exit, Failure, Result};
use connect::subscribe;
pub(super) use progress::Progress;
use publish::Composer;
use ticker::Ticker;

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
    composer: Composer,
    expected: u64,
    published: Tally,
    closed: Vec<Failure>,
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
            composer: Composer::new(thread as u64 + 1),
            expected: 0,
            published: Tally::new(0),
            closed: Vec::new(),
        })
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
                subscribe(self.plan, client);
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
        self.progress.add(&self.tally, &mut self.published);
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
        let rate = plan.rate.filter(|_| !self.publishers.is_empty());
        let ticker = rate.map(|rate| Ticker::start(self.poll.registry(), rate)).transpose()?;
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
        let blind = self.progress.is_blind();
        Ok(Done {
            tally: self.tally,
            expected: (!blind).then_some(self.expected),
            unsent,
            closed: self.closed,
        })
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
