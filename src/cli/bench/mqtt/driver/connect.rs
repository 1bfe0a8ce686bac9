//! How a thread's clients come in: a few at a time, each with what it is to subscribe to.

use std::collections::HashMap;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Token};
use sonde_proto::mqtt::{
    Connect, Filter, Properties, PropertiesBuilder, Property, RetainHandling, Subscribe, Version,
};

use super::super::client::{Client, Flight, Role};
use super::super::pace::Pace;
use super::super::plan::Plan;
use super::Driver;
use crate::cli::{Exit, Failure, Result};

/// Connections that are being made at once: fewer than a listener with a short backlog (Mosquitto 100) lets wait, beyond
/// which a SYN is lost and sent again after a second.
const CONNECTING: usize = 64;
/// Filters of one SUBSCRIBE.
const FILTERS: usize = 100;
/// How long a connection may take to be let in.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// Seconds that a server is asked to keep the session of `--keep-session`.
const KEEP_SECONDS: u32 = 86_400;

impl Driver<'_> {
    /// Connections that are neither publishers nor subscribers.
    pub(in crate::cli::bench::mqtt) fn connect_quiet(&mut self) -> Result<()> {
        let numbers: Vec<usize> = self.plan.share(self.plan.quiet, self.thread).collect();
        self.connect(&numbers, "q", |_| Role::Quiet)
    }

    pub(in crate::cli::bench::mqtt) fn connect_subscribers(&mut self) -> Result<()> {
        let numbers: Vec<usize> = self.plan.share(self.plan.subscribers, self.thread).collect();
        let pending = |number| self.plan.filters_of(number).count().div_ceil(FILTERS);
        let pending: HashMap<usize, usize> =
            numbers.iter().map(|number| (*number, pending(*number))).collect();
        self.connect(&numbers, "s", |number| Role::Subscriber {
            pending: pending.get(&number).copied().unwrap_or_default(),
            seen: HashMap::new(),
        })
    }

    pub(in crate::cli::bench::mqtt) fn connect_publishers(&mut self) -> Result<()> {
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
        greet(plan, &mut client, &format!("{}-{kind}{number:06}", plan.prefix));
        self.clients.push(client);
        Ok(())
    }
}

/// Writes a client's CONNECT.
fn greet(plan: &Plan, client: &mut Client, id: &str) {
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
        client_id: id,
        will: None,
        username: plan.username.as_deref(),
        password: plan.password.as_deref().map(str::as_bytes),
    };
    connect.encode(&mut client.output);
}

/// Asks for what a subscriber is to get.
pub(super) fn subscribe(plan: &Plan, client: &mut Client) {
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
