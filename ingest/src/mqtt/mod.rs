//! The MQTT listeners: one event loop that reads much, commits in batches, and acknowledges when the commit is durable.
//!
//! # Invariants
//! - PUBACK, PUBREC, PUBCOMP, SUBACK and UNSUBACK of a durable session leave after the commit that holds what they stand for.
//! - Acknowledgements of a connection leave in the order of its packets; the read loop never waits for a commit.
//! - Delivery comes after the commit, so what a subscriber sees is stored.

mod accept;
mod again;
mod alias;
mod authenticate;
mod backlog;
mod block;
mod budget;
mod commands;
mod connect;
mod connection;
mod delivery;
mod draft;
mod ending;
mod exchange;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod exchange_model;
mod fetching;
mod guard;
mod kept;
mod listener;
mod message;
mod offline;
mod options;
mod pace;
mod packets;
mod past;
mod portion;
mod publish;
mod quota;
mod reading;
mod reasons;
mod records;
mod replay;
mod resolved;
mod retained;
mod router;
mod scarcity;
mod search;
mod searching;
mod seldom;
mod session;
mod shared;
mod sharing;
mod stats;
mod subscribe;
mod subscription;
mod sweep;
mod sys;
mod tables;
mod tail;
mod tenant;
mod transport;
mod trie;
mod turn;
mod via;
mod will;
mod worker;
mod writing;

use std::sync::Arc;

use futures::channel::oneshot;
use parking_lot::Mutex;
use sonde_access::Principal;

use tables::{SessionInfo, SubscriptionInfo};

use crate::limits::INBOX_COMMANDS;

pub use authenticate::{Authenticate, ClientCertificate, Credentials, Ended, Later, Refusal};
pub use budget::MemoryLimits;
pub use listener::{Mqtt, start};
pub use message::Message;
pub use options::{
    AddressRange, ClientCertificates, ConnectionLimits, ListenAddress, ListenerOptions, MqttOptions,
    TenantLimits, TlsFiles,
};
pub use quota::{Overflow, QueueLimits};
pub use stats::MqttStats;
pub use tail::{Tail, TailEnd, TailError, TailEvent, TailMessage};

/// What a 5.0 client is told that it did not ask for.
#[derive(Clone, Debug)]
pub struct Offers {
    /// Seconds of the longest keep alive; a client that asks for more, or for none, gets this as Server Keep Alive.
    /// [`KEEP_ALIVE_MAXIMUM`](crate::limits::KEEP_ALIVE_MAXIMUM) leaves clients their own.
    pub keep_alive_maximum: u16,
    /// Where clients are sent, as Server Reference, while this server stops or cannot store.
    pub server_reference: Option<Arc<str>>,
}

impl Default for Offers {
    fn default() -> Self {
        Self { keep_alive_maximum: crate::limits::KEEP_ALIVE_MAXIMUM, server_reference: None }
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
    /// Begin a tail.
    Tail(tail::Begin),
    /// End it, unless it has ended, which this tells from others.
    EndTail(router::SessionKey, Arc<std::sync::OnceLock<TailEnd>>),
    /// Rows that a replay has asked for.
    Past(past::Work),
    /// What they have subscribed to.
    Subscriptions(std::sync::mpsc::Sender<Vec<SubscriptionInfo>>),
    /// Read the certificate's files again.
    ReloadCertificates,
    /// Stop: close every connection.
    Stop,
}

/// The event loop's inbox. A command that is not taken in is dropped, and whoever waits for its answer hears that there
/// will be none.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// None once the loop has ended.
    commands: Mutex<Option<Vec<Command>>>,
    waker: mio::Waker,
}

impl Inbox {
    fn new(waker: mio::Waker) -> Self {
        Self { commands: Mutex::new(Some(Vec::new())), waker }
    }

    pub(crate) fn send(&self, command: Command) {
        if let Some(commands) = self.commands.lock().as_mut() {
            if commands.len() >= INBOX_COMMANDS && !matches!(command, Command::Stop) {
                tracing::warn!("the MQTT event loop has more to do than it may be asked for at once");
                return;
            }
            commands.push(command);
        }
        self.wake();
    }

    pub(crate) fn take(&self) -> Vec<Command> {
        self.commands.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes in nothing any more.
    fn close(&self) {
        drop(self.commands.lock().take());
    }

    fn is_closed(&self) -> bool {
        self.commands.lock().is_none()
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
