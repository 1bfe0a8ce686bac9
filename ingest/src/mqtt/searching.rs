//! What is retained goes to new subscriptions a piece a turn, so that no client holds up the others, however many filters it
//! subscribes to and however much matches them.
//!
//! # Invariants
//! - The first piece is in the batch that records the subscription, if there is room; the next one waits for the commit of
//!   the one before, and for a client that takes what it gets.
//! - A search is of a filter that the session has subscribed to: it ends with that, and begins anew where the client
//!   subscribes to it again.
//! - Searches are of memory: a durable session goes on with them when its client is back, but not after a restart.

use std::sync::Arc;

use sonde_proto::mqtt::{QoS, filter_matches};

use super::budget::Room;
use super::message::Message;
use super::router::SessionKey;
use super::search::Search;
use super::session::{Delivery, Stored};
use super::subscribe::UNNUMBERED;
use super::subscription::Subscription;
use super::sys::ROOT;
use super::via::Via;
use super::worker::Worker;
use crate::limits::{FETCH_BYTES, FETCH_MESSAGES, OUT_BYTES, SEARCH_STEPS, TURN_BYTES, TURNS_IN_FLIGHT};

/// How much a session may get at once.
struct Piece {
    messages: u64,
    bytes: usize,
}

impl Piece {
    fn is_used_up(&self) -> bool {
        self.messages == 0 || self.bytes == 0
    }

    fn take(&mut self, message: &Message) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(message.bytes());
    }
}

impl Worker {
    /// A subscription is to get what is retained for it.
    pub(super) fn begin_search(&mut self, key: SessionKey, filter: &str) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.searches.is_empty() {
            self.searching.push_back(key);
        }
        session.searches.insert(filter.into(), Search::new(filter));
    }

    /// A piece for every session that something retained is looked for and that takes it, as far as the turn has room.
    /// Returns whether there is more to do right away.
    pub(super) fn step_searches(&mut self) -> bool {
        let mut steps = SEARCH_STEPS;
        let mut goes_on = false;
        for _ in 0..self.searching.len() {
            if self.committing.len() >= TURNS_IN_FLIGHT {
                // A commit that ends wakes the loop.
                return false;
            }
            if steps == 0 || self.turn.builder.bytes() >= TURN_BYTES {
                return true;
            }
            let Some(key) = self.searching.pop_front() else { break };
            if self.takes_retained(key) {
                goes_on = true;
                self.step_search(key, &mut steps);
            }
            if self.sessions.get(key).is_some_and(|session| !session.searches.is_empty()) {
                self.searching.push_back(key);
            }
        }
        goes_on
    }

    /// Whether a session has had what it got before, and takes more.
    fn takes_retained(&self, key: SessionKey) -> bool {
        let Some(session) = self.sessions.get(key).filter(|session| !session.searches.is_empty()) else {
            return false;
        };
        if self.released < session.searched_in || self.room() >= Room::Short {
            return false;
        }
        if let Some(tail) = &session.tail {
            return tail.has_room(FETCH_MESSAGES as usize);
        }
        let connection = session.connection.and_then(|place| self.connections.get(place));
        let has_room = connection.is_some_and(|(_, c)| !c.closing && c.out.len() < OUT_BYTES / 4);
        has_room && (session.queue.len() as u64) < FETCH_MESSAGES
    }

    fn step_search(&mut self, key: SessionKey, steps: &mut usize) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let mut searches = std::mem::take(&mut session.searches);
        let mut piece = Piece { messages: FETCH_MESSAGES, bytes: FETCH_BYTES };
        // Made once, however many filters ask for them.
        let mut ours = None;
        while let Some(mut entry) = searches.first_entry() {
            if *steps == 0 || piece.is_used_up() {
                break;
            }
            let search = entry.get_mut();
            let known = self.sessions.get(key).and_then(|session| session.subscriptions.get(search.filter()));
            let Some(subscription) = known.copied() else {
                entry.remove();
                continue;
            };
            if search.filter().starts_with(ROOT) {
                // Clients cannot publish there, so that is all there is.
                let ours = ours.get_or_insert_with(|| self.sys_messages());
                *steps = steps.saturating_sub(ours.len());
                for message in ours.iter().filter(|message| filter_matches(search.filter(), &message.topic)) {
                    piece.take(message);
                    self.hand_retained(key, subscription, message.clone());
                }
                search.end();
            }
            while !piece.is_used_up() {
                let Some(message) = self.retained.next_of(search, steps) else { break };
                if !message.is_expired(self.clock) {
                    let message = message.clone();
                    piece.take(&message);
                    self.hand_retained(key, subscription, message);
                }
            }
            if search.is_over() {
                entry.remove();
            }
        }
        if let Some(session) = self.sessions.get_mut(key) {
            session.searches = searches;
            if piece.messages < FETCH_MESSAGES {
                // The turn that is being gathered is the next one that is submitted.
                session.searched_in = self.submitted + 1;
            }
        }
    }

    /// Notes a retained message for a subscription.
    fn hand_retained(&mut self, key: SessionKey, subscription: Subscription, message: Message) {
        let qos = subscription.qos.min(message.qos);
        let via = Via::identifier(subscription.identifier);
        let (number, stored, seq) = (self.next_number(), Stored::Nowhere, UNNUMBERED);
        let message = Arc::new(message);
        let mut delivery = Delivery { number, stored, seq, message, qos, retain: true, via };
        if qos != QoS::AtMostOnce && self.sessions.get(key).is_some_and(|session| session.is_durable()) {
            delivery.stored = Stored::Copy(number);
            if !self.keep_copy(key, &mut delivery) {
                return;
            }
        }
        self.turn.deliveries.push((key, delivery));
    }
}
