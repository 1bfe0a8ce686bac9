//! The MQTT listener: one event loop that reads much, commits in batches, and acknowledges when the commit is durable.
//!
//! # Invariants
//! - PUBACK, PUBREC, PUBCOMP, SUBACK and UNSUBACK of a durable session leave after the commit that holds what they stand for.
//! - Acknowledgements of a connection leave in the order of its packets; the read loop never waits for a commit.
//! - Delivery comes after the commit, so what a subscriber sees is stored.

mod authenticate;
mod connect;
mod connection;
mod delivery;
mod listener;
mod message;
mod packets;
mod publish;
mod resolved;
mod retained;
mod router;
mod session;
mod shared;
mod sharing;
mod subscribe;
mod sys;
mod tables;
mod trie;
mod turn;
mod via;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;

use futures::channel::oneshot;
use parking_lot::Mutex;
use sonde_access::Principal;

use tables::{SessionInfo, SubscriptionInfo};

pub use authenticate::{Authenticate, ClientCertificate, Credentials, Ended, Later, Refusal};
pub use listener::{Mqtt, MqttStats, start};
pub use message::Message;

/// How the listener is started.
#[derive(Clone)]
pub struct MqttOptions {
    /// Where it listens; port 0 is any free one.
    pub listen: SocketAddr,
    /// Who may come in.
    pub authenticate: Arc<dyn Authenticate>,
}

impl std::fmt::Debug for MqttOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MqttOptions({})", self.listen)
    }
}

/// What others ask of the event loop.
#[derive(Debug)]
pub(crate) enum Command {
    /// Publish messages; answered when they are as durable as their QoS asks for.
    Publish(Vec<Message>, oneshot::Sender<sonde_engine::Result<()>>),
    /// End a session and its connection; answered with whether there was one.
    Kill(String, std::sync::mpsc::Sender<bool>),
    /// Who the client of a connection is.
    Recognised {
        /// The connection's place.
        place: usize,
        /// Which of those that had the place.
        generation: u64,
        /// Who it is, or why it may not come in.
        answer: Result<Arc<Principal>, Refusal>,
    },
    /// What the sessions are.
    List(std::sync::mpsc::Sender<Vec<SessionInfo>>),
    /// What they have subscribed to.
    Subscriptions(std::sync::mpsc::Sender<Vec<SubscriptionInfo>>),
    /// Stop: close every connection.
    Stop,
}

/// The event loop's inbox.
#[derive(Debug)]
pub(crate) struct Inbox {
    commands: Mutex<Vec<Command>>,
    waker: mio::Waker,
}

impl Inbox {
    pub(crate) fn send(&self, command: Command) {
        self.commands.lock().push(command);
        self.wake();
    }

    pub(crate) fn take(&self) -> Vec<Command> {
        std::mem::take(&mut *self.commands.lock())
    }

    pub(crate) fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake the MQTT event loop");
        }
    }
}

/// Commits wake the event loop through this.
impl std::task::Wake for Inbox {
    fn wake(self: Arc<Self>) {
        Inbox::wake(&self);
    }
}
