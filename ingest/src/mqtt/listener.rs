//! The handle of a running listener, and how it is started.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use futures::channel::oneshot;
use mio::net::TcpListener;
use mio::{Interest as Readiness, Poll};
use parking_lot::Mutex;
use socket2::SockRef;
use sonde_engine::Engine;
use sonde_query::system::{BatchBuilder, Kind};

use super::message::Message;
use super::worker::{INBOX, LISTENER, Shared, Worker};
use super::{Command, Inbox, MqttOptions};
use crate::limits::ACCEPT_BACKLOG;
use crate::topics::Topics;

/// The columns of `system.sessions`.
const COLUMNS: &[(&str, Kind)] = &[
    ("client", Kind::Text),
    ("state", Kind::Text),
    ("principal", Kind::Text),
    ("peer", Kind::Text),
    ("expiry_seconds", Kind::UInt),
    ("subscriptions", Kind::UInt),
    ("in_flight", Kind::UInt),
    ("queued", Kind::UInt),
    ("dropped", Kind::UInt),
];

/// How long a question to the event loop may take.
const PATIENCE: Duration = Duration::from_secs(5);

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
    // The standard library lets 128 wait; whoever comes beyond that is not heard, and tries again a second later.
    SockRef::from(&listener).listen(ACCEPT_BACKLOG)?;
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

    /// Publishes messages in their order; resolves once they are as durable as their targets ask for. Where it fails,
    /// some of them may have been published.
    pub async fn publish(&self, messages: Vec<Message>) -> sonde_engine::Result<()> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Command::Publish(messages, reply));
        answer.await.unwrap_or(Err(sonde_engine::Error::Closed))
    }

    /// Ends a session and its connection; `false` where there is none of this client.
    #[must_use]
    pub fn kill_session(&self, client: &str) -> bool {
        let (reply, answer) = std::sync::mpsc::channel();
        self.inbox.send(Command::Kill(client.to_owned(), reply));
        answer.recv_timeout(PATIENCE).unwrap_or(false)
    }

    /// `system.sessions`.
    pub fn sessions(&self) -> sonde_query::Result<RecordBatch> {
        let (reply, answer) = std::sync::mpsc::channel();
        self.inbox.send(Command::List(reply));
        let sessions = answer
            .recv_timeout(PATIENCE)
            .map_err(|_| sonde_query::Error::Internal("the MQTT listener does not answer".into()))?;
        let mut rows = BatchBuilder::new(COLUMNS);
        for session in sessions {
            rows.text(Some(&session.client));
            rows.text(Some(if session.peer.is_some() { "connected" } else { "away" }));
            rows.text(session.principal.as_deref());
            rows.text(session.peer.map(|peer| peer.to_string()).as_deref());
            rows.uint(session.expiry.into());
            rows.uint(session.subscriptions as u64);
            rows.uint(session.in_flight as u64);
            rows.uint(session.queued as u64);
            rows.uint(session.dropped);
            rows.end_row();
        }
        rows.finish()
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
