//! Retained messages: the last one of each topic, kept in the state store until it expires.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sonde_engine::{Engine, State, Timestamp};
use sonde_proto::mqtt::filter_matches;

use super::message::Message;
use crate::limits::RETAINED_BYTES;

const NAMESPACE: &str = "mqtt.retained";

/// All retained messages.
#[derive(Debug, Default)]
pub(super) struct Retained {
    messages: BTreeMap<String, Message>,
    /// When messages expire, soonest first; exactly those of `messages` that do.
    expiries: BTreeSet<(Timestamp, Arc<str>)>,
    bytes: usize,
}

impl Retained {
    pub(super) fn recover(engine: &Engine) -> Self {
        let mut retained = Self::default();
        let now = engine.now();
        for (_, value) in engine.state_entries(NAMESPACE) {
            if let Some(message) = Message::decode(&value, now) {
                retained.put(message);
            }
        }
        retained
    }

    /// Number of messages.
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Bytes that they take, for the quota.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn put(&mut self, message: Message) {
        self.remove(&message.topic);
        self.bytes += message.bytes();
        if let Some(end) = message.expires_at() {
            self.expiries.insert((end, Arc::clone(&message.topic)));
        }
        self.messages.insert(message.topic.to_string(), message);
    }

    fn remove(&mut self, topic: &str) {
        let Some(old) = self.messages.remove(topic) else { return };
        self.bytes -= old.bytes();
        if let Some(end) = old.expires_at() {
            self.expiries.remove(&(end, old.topic));
        }
    }

    /// Removes the message that expired first, if one has. Returns its topic and the change of state.
    pub(super) fn expire(&mut self, now: Timestamp) -> Option<(Arc<str>, State)> {
        let (_, topic) = self.expiries.first().filter(|(end, _)| *end <= now)?;
        let topic = Arc::clone(topic);
        self.remove(&topic);
        let key = topic.as_bytes().to_vec();
        Some((topic, State { namespace: NAMESPACE.into(), key, value: None }))
    }

    /// Keeps the message, or removes the topic's where its payload is empty. Returns the change of state, or `None`
    /// where there is no room.
    pub(super) fn update(&mut self, message: &Message) -> Option<State> {
        let key = message.topic.as_bytes().to_vec();
        if message.payload.is_empty() {
            self.remove(&message.topic);
            return Some(State { namespace: NAMESPACE.into(), key, value: None });
        }
        let old = self.messages.get(message.topic.as_ref()).map_or(0, Message::bytes);
        if self.bytes - old + message.bytes() > RETAINED_BYTES {
            return None;
        }
        let value = Some(message.encode());
        self.put(message.clone());
        Some(State { namespace: NAMESPACE.into(), key, value })
    }

    /// Takes a topic's message as the state store has it, after a commit that failed.
    pub(super) fn restore(&mut self, engine: &Engine, topic: &str) {
        self.remove(topic);
        let stored = engine.state(NAMESPACE, topic.as_bytes());
        if let Some(message) = stored.and_then(|value| Message::decode(&value, engine.now())) {
            self.put(message);
        }
    }

    /// The messages that a new subscription gets.
    pub(super) fn matching(&self, filter: &str, now: Timestamp) -> Vec<Message> {
        if !filter.contains(['+', '#']) {
            let found = self.messages.get(filter).filter(|message| !message.is_expired(now));
            return found.cloned().into_iter().collect();
        }
        let fixed = filter.split(['+', '#']).next().unwrap_or_default();
        let range = self.messages.range(fixed.to_owned()..);
        let near = range.take_while(|(topic, _)| topic.starts_with(fixed.trim_end_matches('/')));
        // `a/#` matches `a` too, which sorts before `a/`.
        let parent = self.messages.get(fixed.trim_end_matches('/')).filter(|_| fixed.ends_with('/'));
        let all = parent.into_iter().chain(near.map(|(_, message)| message));
        let wanted = |message: &&Message| filter_matches(filter, &message.topic) && !message.is_expired(now);
        all.filter(wanted).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sonde_proto::mqtt::QoS;

    #[test]
    fn wildcards_find_what_they_match_once() {
        let mut retained = Retained::default();
        for topic in ["a", "a/b", "a/b/c", "ab", "b"] {
            retained.update(&Message::new(topic, b"x", QoS::AtMostOnce, true));
        }
        let found = |filter: &str| {
            let found = retained.matching(filter, Timestamp::from_nanos(0));
            found.iter().map(|m| m.topic.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found("a/#"), ["a", "a/b", "a/b/c"]);
        assert_eq!(found("+"), ["a", "ab", "b"]);
        assert_eq!(found("a/+/c"), ["a/b/c"]);
        assert_eq!(found("b"), ["b"]);
        assert!(found("c/#").is_empty());
    }

    #[test]
    fn what_expires_goes_in_its_order_and_a_newer_message_counts_anew() {
        let at = Timestamp::from_secs;
        let message = |topic: &str, expiry| Message {
            arrival: at(100),
            expiry,
            ..Message::new(topic, b"x", QoS::AtMostOnce, true)
        };
        let mut retained = Retained::default();
        for (topic, expiry) in [("late", Some(9)), ("soon", Some(2)), ("never", None), ("again", Some(1))] {
            retained.update(&message(topic, expiry));
        }
        retained.update(&Message { arrival: at(104), ..message("again", Some(1)) });
        let matching = |retained: &Retained, now| retained.matching("+", at(now)).len();
        assert_eq!(
            (matching(&retained, 101), matching(&retained, 102)),
            (4, 3),
            "not sent, though still there"
        );
        let mut gone = |now| {
            std::iter::from_fn(|| retained.expire(at(now)))
                .map(|(topic, _)| topic.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(gone(101), Vec::<String>::new());
        assert_eq!(gone(102), ["soon"]);
        assert_eq!(gone(1000), ["again", "late"]);
        assert_eq!(retained.messages.len(), 1);
        assert_eq!((retained.bytes, retained.expiries.len()), (message("never", None).bytes(), 0));
    }
}
