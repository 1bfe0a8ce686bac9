//! The handle of the running listeners, and how they are started.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use futures::channel::oneshot;
use mio::Poll;
use parking_lot::Mutex;
use sonde_engine::Engine;

use super::accept::{Doors, INBOX};
use super::message::Message;
use super::tables;
use super::worker::{Shared, Worker};
use super::{Command, Inbox, ListenAddress, MqttOptions, MqttStats};
use crate::topics::Topics;

/// How long a question to the event loop may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The running listeners.
#[derive(Debug)]
pub struct Mqtt {
    addresses: Vec<(String, ListenAddress)>,
    inbox: Arc<Inbox>,
    stats: Arc<MqttStats>,
    topics: Arc<Topics>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Starts the listeners: sessions are recovered and routable before the first client is let in.
pub fn start(engine: &Engine, options: MqttOptions, topics: Arc<Topics>) -> io::Result<Mqtt> {
    let poll = Poll::new()?;
    let doors = Doors::open(&options, poll.registry())?;
    let addresses = doors.addresses();
    let waker = mio::Waker::new(poll.registry(), INBOX)?;
    let inbox = Arc::new(Inbox { commands: Mutex::new(Vec::new()), waker });
    let stats = Arc::new(MqttStats::default());
    let dead_letters = crate::dead_letter::table(engine).map_err(io::Error::other)?;
    let (engine, loop_inbox, loop_stats, loop_topics) =
        (engine.clone(), Arc::clone(&inbox), Arc::clone(&stats), Arc::clone(&topics));
    let thread = std::thread::Builder::new().name("sonde-mqtt".into()).spawn(move || {
        let shared = Shared {
            inbox: loop_inbox,
            stats: loop_stats,
            topics: loop_topics,
            dead_letters,
            queue_limits: options.queue,
            raw_retention: options.raw_retention,
            early: options.early,
            offers: options.offers,
        };
        Worker::new(engine, poll, doors, options.authenticate, shared).run();
    })?;
    Ok(Mqtt { addresses, inbox, stats, topics, thread: Mutex::new(Some(thread)) })
}

impl Mqtt {
    /// The names of those that are open, and where they listen.
    #[must_use]
    pub fn addresses(&self) -> &[(String, ListenAddress)] {
        &self.addresses
    }

    /// Reads the files of the certificate again, whether or not they have changed.
    pub fn reload_certificates(&self) {
        self.inbox.send(Command::ReloadCertificates);
    }

    /// How the event loop is asked.
    pub(super) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
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
        tables::sessions(self.ask(Command::List)?)
    }

    /// `system.subscriptions`.
    pub fn subscriptions(&self) -> sonde_query::Result<RecordBatch> {
        tables::subscriptions(self.ask(Command::Subscriptions)?)
    }

    /// Asks the event loop.
    fn ask<T>(&self, question: impl FnOnce(std::sync::mpsc::Sender<T>) -> Command) -> sonde_query::Result<T> {
        let (reply, answer) = std::sync::mpsc::channel();
        self.inbox.send(question(reply));
        answer
            .recv_timeout(PATIENCE)
            .map_err(|_| sonde_query::Error::Internal("the MQTT listener does not answer".into()))
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
