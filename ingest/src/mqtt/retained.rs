//! Retained messages: the last one of each topic, kept in the state store.

use std::collections::BTreeMap;

use sonde_engine::{Engine, State};
use sonde_proto::mqtt::filter_matches;

use super::message::Message;
use crate::limits::RETAINED_BYTES;

const NAMESPACE: &str = "mqtt.retained";

/// All retained messages.
#[derive(Debug, Default)]
pub(super) struct Retained {
    messages: BTreeMap<String, Message>,
    bytes: usize,
}

impl Retained {
    pub(super) fn recover(engine: &Engine) -> Self {
        let mut retained = Self::default();
        for (_, value) in engine.state_entries(NAMESPACE) {
            if let Some(message) = Message::decode(&value) {
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
        self.bytes += message.bytes();
        if let Some(old) = self.messages.insert(message.topic.to_string(), message) {
            self.bytes -= old.bytes();
        }
    }

    /// Keeps the message, or removes the topic's where its payload is empty. Returns the change of state, or `None`
    /// where there is no room.
    pub(super) fn update(&mut self, message: &Message) -> Option<State> {
        let key = message.topic.as_bytes().to_vec();
        if message.payload.is_empty() {
            if let Some(old) = self.messages.remove(message.topic.as_ref()) {
                self.bytes -= old.bytes();
            }
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
        if let Some(newer) = self.messages.remove(topic) {
            self.bytes -= newer.bytes();
        }
        let stored = engine.state(NAMESPACE, topic.as_bytes());
        if let Some(message) = stored.and_then(|value| Message::decode(&value)) {
            self.put(message);
        }
    }

    /// The messages that a new subscription gets.
    pub(super) fn matching(&self, filter: &str) -> Vec<Message> {
        if !filter.contains(['+', '#']) {
            return self.messages.get(filter).cloned().into_iter().collect();
        }
        let fixed = filter.split(['+', '#']).next().unwrap_or_default();
        let range = self.messages.range(fixed.to_owned()..);
        let near = range.take_while(|(topic, _)| topic.starts_with(fixed.trim_end_matches('/')));
        // `a/#` matches `a` too, which sorts before `a/`.
        let parent = self.messages.get(fixed.trim_end_matches('/')).filter(|_| fixed.ends_with('/'));
        let all = parent.into_iter().chain(near.map(|(_, message)| message));
        all.filter(|message| filter_matches(filter, &message.topic)).cloned().collect()
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
        let found =
            |filter: &str| retained.matching(filter).iter().map(|m| m.topic.to_string()).collect::<Vec<_>>();
        assert_eq!(found("a/#"), ["a", "a/b", "a/b/c"]);
        assert_eq!(found("+"), ["a", "ab", "b"]);
        assert_eq!(found("a/+/c"), ["a/b/c"]);
        assert_eq!(found("b"), ["b"]);
        assert!(found("c/#").is_empty());
    }
}
