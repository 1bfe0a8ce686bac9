//! Retained messages: the last one of each topic, kept in the state store until it expires.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use sonde_engine::{Engine, State, Timestamp};

use super::message::Message;
use super::search::{Search, last_level};
use crate::limits::{MESSAGE_OVERHEAD, RETAINED_OVERHEAD};

const NAMESPACE: &str = "mqtt.retained";
/// Between a last level and the topics that have it; no topic and no filter has it (MQTT 5, 1.5.4).
const SEPARATOR: char = '\0';

/// All retained messages.
#[derive(Debug, Default)]
pub(super) struct Retained {
    messages: BTreeMap<Arc<str>, Message>,
    /// Their topics, each behind its last level: what `devices/+/commands` looks at, however many devices there are.
    ends: BTreeSet<Box<str>>,
    /// When messages expire, soonest first; exactly those of `messages` that do.
    expiries: BTreeSet<(Timestamp, Arc<str>)>,
    /// Bytes of the messages, as each says it.
    message_bytes: usize,
    /// Bytes that they may take.
    limit: usize,
}

impl Retained {
    fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Reads what the state store has, whatever the limit is now.
    pub(super) fn recover(engine: &Engine, limit: usize) -> Self {
        let mut retained = Self::new(limit);
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
        self.message_bytes + self.messages.len() * RETAINED_OVERHEAD
    }

    /// What the messages weigh, of all that are in memory.
    pub(super) fn weight(&self) -> usize {
        self.message_bytes + self.messages.len() * MESSAGE_OVERHEAD
    }

    fn put(&mut self, message: Message) {
        self.remove(&message.topic);
        self.message_bytes += message.bytes();
        if let Some(end) = message.expires_at() {
            self.expiries.insert((end, Arc::clone(&message.topic)));
        }
        if let Some(level) = last_level(&message.topic) {
            self.ends.insert(end_key(level, &message.topic));
        }
        self.messages.insert(Arc::clone(&message.topic), message);
    }

    fn remove(&mut self, topic: &str) {
        let Some(old) = self.messages.remove(topic) else { return };
        self.message_bytes -= old.bytes();
        if let Some(level) = last_level(topic) {
            self.ends.remove(&end_key(level, topic));
        }
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
        let weight = |message: &Message| message.bytes() + RETAINED_OVERHEAD;
        let old = self.messages.get(message.topic.as_ref()).map_or(0, weight);
        if self.bytes() - old + weight(message) > self.limit {
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

    /// The next message that a search finds, in at most so many steps, of which those that it takes are subtracted.
    pub(super) fn next_of(&self, search: &mut Search, steps: &mut usize) -> Option<&Message> {
        if let Some(topic) = search.exact().filter(|_| !search.is_over()) {
            let found = self.messages.get(topic);
            *steps = steps.saturating_sub(1);
            search.end();
            return found;
        }
        while *steps > 0 {
            let from = search.from()?;
            *steps -= 1;
            let next = match search.last_level() {
                None => {
                    self.messages.range::<str, _>((from, Bound::Unbounded)).next().map(|(topic, _)| &**topic)
                }
                Some(level) => self.next_of_those_with(level, from),
            };
            if search.look_at(next)
                && let Some(message) = next.and_then(|topic| self.messages.get(topic))
            {
                return Some(message);
            }
        }
        None
    }

    /// The first topic from there on that has this last level.
    fn next_of_those_with(&self, level: &str, from: Bound<&str>) -> Option<&str> {
        let from = from.map(|topic| end_key(level, topic));
        let from = from.as_ref().map(|key| &**key);
        let key = self.ends.range::<str, _>((from, Bound::Unbounded)).next()?;
        key.strip_prefix(level)?.strip_prefix(SEPARATOR)
    }
}

/// A topic behind its last level.
fn end_key(level: &str, topic: &str) -> Box<str> {
    let mut key = String::with_capacity(level.len() + SEPARATOR.len_utf8() + topic.len());
    key.push_str(level);
    key.push(SEPARATOR);
    key.push_str(topic);
    key.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sonde_proto::mqtt::{QoS, filter_matches};

    fn matching(retained: &Retained, filter: &str) -> Vec<String> {
        let mut search = Search::new(filter);
        let mut found = Vec::new();
        while !search.is_over() {
            // Interrupted as often as it can be.
            found.extend(retained.next_of(&mut search, &mut 1).map(|message| message.topic.to_string()));
        }
        found
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_the_filter_matches(
            steps in prop::collection::vec(("[ab+]?(/[ab]?){0,3}", any::<bool>()), 1..40),
            filter in "[ab+]?(/[ab+]?){0,3}(/#)?",
        ) {
            let mut retained = Retained::new(1 << 20);
            let mut topics = BTreeSet::new();
            for (topic, kept) in steps {
                let topic = topic.replace('+', "c");
                if topic.is_empty() {
                    continue;
                }
                let payload: &[u8] = if kept { b"x" } else { b"" };
                retained.update(&Message::new(&topic, payload, QoS::AtMostOnce, true));
                if kept { topics.insert(topic); } else { topics.remove(&topic); }
            }
            let wanted: Vec<_> = topics.iter().filter(|topic| filter_matches(&filter, topic)).cloned().collect();
            prop_assert_eq!(matching(&retained, &filter), wanted, "{}", filter);
            prop_assert_eq!((retained.len(), retained.ends.len()), (topics.len(), topics.len()));
        }
    }

    #[test]
    fn beyond_the_limit_a_message_replaces_what_is_as_large_or_nothing() {
        let message =
            |topic: &str, bytes: usize| Message::new(topic, &vec![b'x'; bytes], QoS::AtMostOnce, true);
        let mut retained = Retained::new(2 * (message("a", 1000).bytes() + RETAINED_OVERHEAD));
        let mut kept = |topic, bytes| retained.update(&message(topic, bytes)).is_some();
        assert!(kept("a", 1000) && kept("b", 1000));
        assert!(!kept("c", 1) && !kept("a", 1001) && kept("a", 1000) && kept("a", 10) && kept("b", 1990));
        // Small ones are counted with all that they need besides.
        let mut small = Retained::new(100 * RETAINED_OVERHEAD);
        assert!((0..200).filter(|n| small.update(&message(&format!("{n}"), 1)).is_some()).count() < 100);
    }

    #[test]
    fn those_that_end_otherwise_are_not_looked_at() {
        let mut retained = Retained::new(1 << 20);
        for device in 0..1000 {
            retained.update(&Message::new(&format!("devices/{device}/status"), b"x", QoS::AtMostOnce, true));
        }
        retained.update(&Message::new("devices/7/commands", b"x", QoS::AtMostOnce, true));
        let (mut search, mut steps) = (Search::new("devices/+/commands"), 1000);
        assert!(retained.next_of(&mut search, &mut steps).is_some());
        assert!(retained.next_of(&mut search, &mut steps).is_none() && search.is_over());
        assert!(steps > 990, "{steps} of 1000 left");
    }

    #[test]
    fn wildcards_find_what_they_match_once() {
        let mut retained = Retained::new(1 << 20);
        for topic in ["a", "a/b", "a/b/c", "ab", "b", "/", "a/", "a//"] {
            retained.update(&Message::new(topic, b"x", QoS::AtMostOnce, true));
        }
        let found = |filter: &str| matching(&retained, filter);
        assert_eq!(found("a/#"), ["a", "a/", "a//", "a/b", "a/b/c"]);
        assert_eq!(found("a//#"), ["a/", "a//"]);
        assert_eq!(found("//#"), ["/"]);
        assert_eq!(found("+/b"), ["a/b"]);
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
        let mut retained = Retained::new(1 << 20);
        for (topic, expiry) in [("late", Some(9)), ("soon", Some(2)), ("never", None), ("again", Some(1))] {
            retained.update(&message(topic, expiry));
        }
        retained.update(&Message { arrival: at(104), ..message("again", Some(1)) });
        let mut gone = |now| {
            std::iter::from_fn(|| retained.expire(at(now)))
                .map(|(topic, _)| topic.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(gone(101), Vec::<String>::new());
        assert_eq!(gone(102), ["soon"]);
        assert_eq!(gone(1000), ["again", "late"]);
        assert_eq!(retained.messages.len(), 1);
        assert_eq!((retained.message_bytes, retained.expiries.len()), (message("never", None).bytes(), 0));
    }
}
