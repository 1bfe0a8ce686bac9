//! Subscribers that are no MQTT clients: what `GET /api/v1/tail` and gRPC `Subscribe` follow.
//!
//! # Invariants
//! - A tail is a session without a socket: the same router, the same order, QoS 0.
//! - It holds a bounded number of messages; a reader that does not keep up is told how many it missed, and where.
//! - It reads under the rights of whoever began it, as they are now: once they do not cover its filter it ends, and what
//!   waits is not given out.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use sonde_access::{Action, Principal, allows};
use sonde_engine::{SeqNo, Timestamp};
use sonde_proto::mqtt::{DecodeError, QoS, is_shared, validate_filter};
use tokio::sync::{mpsc, oneshot};

use super::listener::Mqtt;
use super::router::SessionKey;
use super::session::{Delivery, Session};
use super::subscription::Subscription;
use super::worker::{Worker, interest};
use super::{Command, Inbox, Message};
use crate::limits::{TAIL_MESSAGES, TAILS};

/// A message as a tail sees it.
#[derive(Clone, Debug)]
pub struct TailMessage {
    /// The message.
    pub message: Arc<Message>,
    /// When it was delivered: after its commit.
    pub time: Timestamp,
    /// Its place in the log; none where nothing stored it, and for retained messages.
    pub seq: Option<SeqNo>,
    /// Whether it is retained, from before the tail began.
    pub retained: bool,
}

/// What a tail says next.
#[derive(Clone, Debug)]
pub enum TailEvent {
    /// A message.
    Message(TailMessage),
    /// So many messages were dropped here, because the reader did not keep up.
    Dropped(u64),
    /// It is over, and this is why; nothing follows.
    Ended(TailEnd),
}

/// Why a tail ended that its reader had not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailEnd {
    /// Its reader is nobody any more: the token was revoked or has expired, the user or its roles are gone.
    Unknown,
    /// Its reader may not subscribe to the filter any more.
    NotAllowed,
}

impl TailEnd {
    /// Why, in words.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unknown => {
                "the credentials of this request are not valid any more: a token was revoked or has \
                              expired, or a user or role was dropped"
            }
            Self::NotAllowed => "the right to subscribe to this filter was withdrawn",
        }
    }
}

/// The event loop's end of a tail.
#[derive(Clone, Debug)]
pub(super) struct TailSink {
    /// Each message with the number of those that were dropped right before it.
    messages: mpsc::Sender<(u64, TailMessage)>,
    /// Messages that were dropped behind the last one that was sent.
    dropped: Arc<AtomicU64>,
    /// Whether the event loop is to be woken once the reader has taken what there is.
    waits: Arc<AtomicBool>,
    ended: Arc<OnceLock<TailEnd>>,
    /// Whose rights it reads under.
    principal: Arc<Principal>,
    filter: Arc<str>,
}

/// A subscription of a reader that is no MQTT client; ends with its drop.
#[derive(Debug)]
pub struct Tail {
    messages: mpsc::Receiver<(u64, TailMessage)>,
    dropped: Arc<AtomicU64>,
    waits: Arc<AtomicBool>,
    /// A message that came behind those that were dropped.
    held: Option<TailMessage>,
    ended: Arc<OnceLock<TailEnd>>,
    /// Whether its end was said.
    is_over: bool,
    key: SessionKey,
    inbox: Arc<Inbox>,
}

/// What a tail is to begin with.
#[derive(Debug)]
pub(crate) struct Begin {
    sink: TailSink,
    reply: oneshot::Sender<Option<SessionKey>>,
}

/// Why a tail was not begun.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// The filter is none of MQTT.
    #[error("'{filter}' is not a topic filter: {source}")]
    Filter {
        /// What was asked for.
        filter: String,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// There are too many.
    #[error("{TAILS} readers follow topics already; try again when one has gone")]
    TooMany,
    /// The listener has stopped.
    #[error("the MQTT listener has stopped")]
    Stopped,
}

impl Mqtt {
    /// Follows what is published to a filter, from the retained messages on, as long as this one may; it has to be asked
    /// before whether it may begin.
    pub async fn tail(&self, filter: &str, principal: &Arc<Principal>) -> Result<Tail, TailError> {
        let valid = match is_shared(filter) {
            true => Err(DecodeError::Protocol("a tail has no share of others' messages")),
            false => validate_filter(filter),
        };
        valid.map_err(|source| TailError::Filter { filter: filter.to_owned(), source })?;
        let (sender, messages) = mpsc::channel(TAIL_MESSAGES);
        let dropped = Arc::new(AtomicU64::new(0));
        let (reply, answer) = oneshot::channel();
        let waits = Arc::new(AtomicBool::new(false));
        let ended = Arc::<OnceLock<TailEnd>>::default();
        let sink = TailSink {
            messages: sender,
            dropped: Arc::clone(&dropped),
            waits: Arc::clone(&waits),
            ended: Arc::clone(&ended),
            principal: Arc::clone(principal),
            filter: filter.into(),
        };
        let inbox = Arc::clone(self.inbox());
        inbox.send(Command::Tail(Begin { sink, reply }));
        let key = answer.await.map_err(|_| TailError::Stopped)?.ok_or(TailError::TooMany)?;
        Ok(Tail { messages, dropped, waits, held: None, ended, is_over: false, key, inbox })
    }
}

impl TailSink {
    /// Whether so many messages could be sent now; else the loop is woken when they may be.
    pub(super) fn has_room(&self, count: usize) -> bool {
        let has_room = self.messages.capacity() >= count;
        self.waits.store(!has_room, Ordering::Relaxed);
        has_room
    }
}

impl Tail {
    /// The next event; none once the listener has stopped, or its end was said.
    pub async fn next(&mut self) -> Option<TailEvent> {
        if self.is_over {
            return None;
        }
        let event = self.next_message().await;
        // Looked at behind the wait: what may not be read any more is not said.
        match self.ended.get() {
            Some(end) => {
                self.is_over = true;
                Some(TailEvent::Ended(*end))
            }
            None => event,
        }
    }

    async fn next_message(&mut self) -> Option<TailEvent> {
        if let Some(message) = self.held.take() {
            return Some(TailEvent::Message(message));
        }
        if self.messages.is_empty() {
            if self.waits.swap(false, Ordering::Relaxed) {
                self.inbox.wake();
            }
            let dropped = self.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                return Some(TailEvent::Dropped(dropped));
            }
        }
        let (dropped, message) = self.messages.recv().await?;
        if dropped == 0 {
            return Some(TailEvent::Message(message));
        }
        self.held = Some(message);
        Some(TailEvent::Dropped(dropped))
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.inbox.send(Command::EndTail(self.key, Arc::clone(&self.ended)));
    }
}

impl Worker {
    /// Begins a tail: a session that nobody can connect to.
    pub(super) fn begin_tail(&mut self, begin: Begin) {
        let Begin { sink, reply } = begin;
        let filter = Arc::clone(&sink.filter);
        if self.tails >= TAILS {
            // Whoever asked may have gone.
            let _ = reply.send(None);
            return;
        }
        let number = self.next_number();
        let mut session = Session::new(&format!("tail {number:x}"), number);
        session.tail = Some(sink);
        let subscription = Subscription::plain(QoS::AtMostOnce);
        session.subscriptions.insert((&*filter).into(), subscription);
        let key = self.sessions.insert(session);
        self.tails += 1;
        self.router.subscribe(&filter, interest(key, subscription));
        if reply.send(Some(key)).is_err() {
            return self.end_tail(key);
        }
        self.begin_search(key, &filter);
    }

    /// Ends the tail of a reader that has gone, unless it was ended before and its place is another's.
    pub(super) fn leave_tail(&mut self, key: SessionKey, ended: &Arc<OnceLock<TailEnd>>) {
        let tail = self.sessions.get(key).and_then(|session| session.tail.as_ref());
        if tail.is_some_and(|tail| Arc::ptr_eq(&tail.ended, ended)) {
            self.end_tail(key);
        }
    }

    /// Ends a tail.
    fn end_tail(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.try_remove(key) else { return };
        session.subscriptions.keys().for_each(|filter| self.router.unsubscribe(filter, key));
        self.withdraw(key);
        self.tails -= 1;
    }

    /// Ends the tails whose readers may not read them any more; `renew` says who they are now.
    pub(super) fn recheck_tails(&mut self, renew: impl Fn(&Arc<Principal>) -> Option<Arc<Principal>>) {
        if self.tails == 0 {
            return;
        }
        let mut over = Vec::new();
        for (key, session) in &mut self.sessions {
            let Some(tail) = &mut session.tail else { continue };
            let end = match renew(&tail.principal) {
                Some(now) if allows(&now, Action::Subscribe(&tail.filter)) => {
                    tail.principal = now;
                    continue;
                }
                Some(_) => TailEnd::NotAllowed,
                None => TailEnd::Unknown,
            };
            tracing::info!(principal = tail.principal.name, filter = &*tail.filter, ?end, "a tail was ended");
            // Once: its session goes with it.
            let _ = tail.ended.set(end);
            over.push(key);
        }
        self.stats.denied.fetch_add(over.len() as u64, Ordering::Relaxed);
        over.into_iter().for_each(|key| self.end_tail(key));
    }

    /// Hands a delivery to a tail.
    pub(super) fn deliver_to_tail(&mut self, key: SessionKey, delivery: Delivery) {
        let time = self.engine.now();
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(tail) = &session.tail else { return };
        let Delivery { message, retain: retained, seq, .. } = delivery;
        let seq = (seq > SeqNo(0)).then_some(seq);
        match tail.messages.try_reserve() {
            Ok(place) => {
                let dropped = tail.dropped.swap(0, Ordering::Relaxed);
                place.send((dropped, TailMessage { message, time, seq, retained }));
            }
            Err(_) => {
                tail.dropped.fetch_add(1, Ordering::Relaxed);
                self.stats.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
