//! What is retained goes to new subscriptions a portion a turn, so that no client holds up the others, however many filters it
//! subscribes to and however much matches them.
//!
//! # Invariants
//! - The first portion is in the batch that records the subscription, if there is room; the next one waits for the commit of
//!   the one before, and for a client that takes what it gets.
//! - A search is of a filter that the session has subscribed to: it ends with that, and begins anew where the client
//!   subscribes to it again.
//! - Searches are of memory: a durable session goes on with them when its client is back, but not after a restart. Meanwhile
//!   it is not among those that are gone through.

use std::sync::Arc;

use sonde_proto::mqtt::{QoS, filter_matches};

use super::budget::Room;
use super::message::Message;
use super::portion::{Portion, takes_more};
use super::router::SessionKey;
use super::search::Search;
use super::session::{Delivery, Stored};
use super::subscribe::UNNUMBERED;
use super::subscription::Subscription;
use super::sys::ROOT;
use super::via::Via;
use super::worker::Worker;
use crate::limits::{FETCH_MESSAGES, SEARCH_STEPS};

impl Worker {
    /// A subscription is to get what is retained for it.
    pub(super) fn begin_search(&mut self, key: SessionKey, filter: &str) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.searches.insert(filter.into(), Search::new(filter));
        self.go_on_searching(key);
    }

    /// What a session is to get of what is retained is looked for as soon as it is its turn.
    pub(super) fn go_on_searching(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if !session.searches.is_empty() && !std::mem::replace(&mut session.searching, true) {
            self.searching.push_back(key);
        }
    }

    /// A portion for every session that something retained is looked for and that takes it, as far as the turn has room.
    /// Returns whether there is more to do right away.
    pub(super) fn step_searches(&mut self) -> bool {
        let mut steps = SEARCH_STEPS;
        let mut goes_on = false;
        for _ in 0..self.searching.len() {
            if !self.may_read() {
                // A commit that ends wakes the loop.
                return false;
            }
            if steps == 0 || self.turn.is_full() {
                return true;
            }
            let Some(key) = self.searching.pop_front() else { break };
            if self.takes_retained(key) {
                goes_on = true;
                self.step_search(key, &mut steps);
            }
            let Some(session) = self.sessions.get_mut(key) else { continue };
            // A client that is back has it begin again.
            session.searching = session.is_here() && !session.searches.is_empty();
            if session.searching {
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
        let room = self.room();
        if self.released < session.searched_in || room >= Room::Short {
            return false;
        }
        if let Some(tail) = &session.tail {
            return room == Room::Plenty && tail.has_room(FETCH_MESSAGES as usize);
        }
        let connection = session.connection.and_then(|place| self.connections.get(place));
        connection.is_some_and(|(_, connection)| takes_more(session, connection, room))
    }

    fn step_search(&mut self, key: SessionKey, steps: &mut usize) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let mut searches = std::mem::take(&mut session.searches);
        let mut portion = Portion::of(self.room());
        // Made once, however many filters ask for them.
        let mut ours = None;
        while let Some(mut entry) = searches.first_entry() {
            if *steps == 0 || portion.is_used_up() {
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
                    portion.take(message);
                    self.hand_retained(key, subscription, message.clone());
                }
                search.end();
            }
            while !portion.is_used_up() {
                let Some(message) = self.retained.next_of(search, steps) else { break };
                if !message.is_expired(self.clock) {
                    let message = message.clone();
                    portion.take(&message);
                    self.hand_retained(key, subscription, message);
                }
            }
            if search.is_over() {
                entry.remove();
            }
        }
        if let Some(session) = self.sessions.get_mut(key) {
            session.searches = searches;
            if !portion.is_whole {
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
