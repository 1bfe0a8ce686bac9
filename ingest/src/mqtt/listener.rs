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
    /// Resolves when the loop has ended.
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

/// Lives as long as the event loop's thread, however that ends: nobody waits for a loop that is gone.
struct Running {
    inbox: Arc<Inbox>,
    _told: oneshot::Sender<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

/// Starts the listeners: sessions are recovered and routable before the first client is let in.
pub fn start(engine: &Engine, options: MqttOptions, topics: Arc<Topics>) -> io::Result<Mqtt> {
    let poll = Poll::new()?;
    let doors = Doors::open(&options, poll.registry())?;
    let addresses = doors.addresses();
    let waker = mio::Waker::new(poll.registry(), INBOX)?;
    let inbox = Arc::new(Inbox::new(waker));
    let stats = Arc::new(MqttStats::default());
    let dead_letters = crate::dead_letter::table(engine).map_err(io::Error::other)?;
    let (engine, loop_inbox, loop_stats, loop_topics) =
        (engine.clone(), Arc::clone(&inbox), Arc::clone(&stats), Arc::clone(&topics));
    let (running, ended) = oneshot::channel();
    let running = Running { inbox: Arc::clone(&inbox), _told: running };
    let thread = std::thread::Builder::new().name("sonde-mqtt".into()).spawn(move || {
        let _running = running;
        let shared = Shared {
            inbox: loop_inbox,
            stats: loop_stats,
            topics: loop_topics,
            dead_letters,
            queue_limits: options.queue,
            memory: options.memory,
            raw_retention: options.raw_retention,
            log: options.log,
            early: options.early,
            offers: options.offers,
        };
        Worker::new(engine, poll, doors, options.authenticate, shared).run();
    })?;
    let (thread, ended) = (Mutex::new(Some(thread)), Mutex::new(Some(ended)));
    Ok(Mqtt { addresses, inbox, stats, topics, thread, ended })
}

impl Mqtt {
    /// The names of those that are open, and where they listen.
    #[must_use]
    pub fn addresses(&self) -> &[(String, ListenAddress)] {
        &self.addresses
    }

    /// Whether the event loop runs: without it no client is served.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.inbox.is_closed()
    }

    /// Resolves when the event loop has ended, because it was stopped or because it failed; for the first who asks.
    #[must_use]
    pub fn ended(&self) -> Option<impl Future<Output = ()> + use<>> {
        let ended = self.ended.lock().take()?;
        // Nothing is sent: the other end goes with the thread.
        Some(async move {
            let _ = ended.await;
        })
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_loop_that_panicked() {
        let poll = Poll::new().unwrap();
        let inbox = Arc::new(Inbox::new(mio::Waker::new(poll.registry(), INBOX).unwrap()));
        let (told, ended) = oneshot::channel::<()>();
        let running = Running { inbox: Arc::clone(&inbox), _told: told };
        let (reply, early) = oneshot::channel();
        inbox.send(Command::Publish(Vec::new(), reply));
        let thread = std::thread::spawn(move || {
            let _running = running;
            panic!("as a loop that fails");
        });
        assert!(futures::executor::block_on(ended).is_err());
        assert!(thread.join().is_err() && inbox.is_closed());
        assert!(futures::executor::block_on(early).is_err(), "what was asked before");
        let (reply, late) = oneshot::channel();
        inbox.send(Command::Publish(Vec::new(), reply));
        assert!(futures::executor::block_on(late).is_err(), "what is asked later");
    }
}
