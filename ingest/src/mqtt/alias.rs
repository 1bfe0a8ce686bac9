//! Topic aliases of a connection (MQTT 5, section 3.3.2.3.4): numbers that stand for topics, one table each way.
//!
//! # Invariants
//! - A table holds at most as many topics as its receiver allowed, and `TOPIC_ALIAS_BYTES` of them.
//! - Resolving an alias allocates nothing; a topic is copied once, when it is given its number.

use std::collections::HashMap;
use std::sync::Arc;

use sonde_proto::mqtt::ReasonCode;

use crate::limits::{TOPIC_ALIAS_BYTES, TOPIC_ALIAS_MAXIMUM, TOPIC_ALIASES_OUT};

/// Why a PUBLISH cannot be understood; its connection ends.
pub(super) type Refused = (ReasonCode, &'static str);

/// The aliases that a client gave us.
#[derive(Debug, Default)]
pub(super) struct AliasesIn {
    /// The topic of alias `i + 1`.
    topics: Vec<Option<Arc<str>>>,
    bytes: usize,
}

impl AliasesIn {
    /// The topic of a PUBLISH that has an alias: a new meaning of it, or, where its own topic is empty, what it means.
    pub(super) fn resolve(&mut self, alias: u16, topic: &str) -> Result<Arc<str>, Refused> {
        if alias == 0 || alias > TOPIC_ALIAS_MAXIMUM {
            return Err((
                ReasonCode::TOPIC_ALIAS_INVALID,
                "a topic alias of 0, or beyond the Topic Alias Maximum",
            ));
        }
        let place = usize::from(alias) - 1;
        let known = self.topics.get(place).and_then(Option::as_ref);
        if topic.is_empty() || known.is_some_and(|known| **known == *topic) {
            let unknown = (ReasonCode::PROTOCOL_ERROR, "a topic alias that was not given a topic");
            return known.map(Arc::clone).ok_or(unknown);
        }
        let bytes = self.bytes - known.map_or(0, |known| known.len()) + topic.len();
        if bytes > TOPIC_ALIAS_BYTES {
            return Err((ReasonCode::QUOTA_EXCEEDED, "the topics of this connection's aliases are too long"));
        }
        self.bytes = bytes;
        if self.topics.len() <= place {
            self.topics.resize(place + 1, None);
        }
        let topic: Arc<str> = topic.into();
        if let Some(slot) = self.topics.get_mut(place) {
            *slot = Some(Arc::clone(&topic));
        }
        Ok(topic)
    }
}

/// The aliases that we give a client: first come, first served, so that an alias never changes its meaning.
#[derive(Debug)]
pub(super) struct AliasesOut {
    aliases: HashMap<Arc<str>, u16>,
    maximum: u16,
    bytes: usize,
}

/// How a topic is written in a PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// As it is.
    Plain,
    /// With an alias that stands for it from then on, if the packet is sent.
    Introduced(u16),
    /// As its alias alone.
    Aliased(u16),
}

/// Bytes of the property Topic Alias: a topic that is no longer gains nothing by it.
const PROPERTY_BYTES: usize = 3;

impl AliasesOut {
    /// For a client that takes this many; `None` where it takes none.
    pub(super) fn new(maximum: u16) -> Option<Box<Self>> {
        let maximum = maximum.min(TOPIC_ALIASES_OUT);
        (maximum > 0).then(|| Box::new(Self { aliases: HashMap::new(), maximum, bytes: 0 }))
    }

    /// How the topic of the next PUBLISH is written.
    pub(super) fn write(&self, topic: &str) -> Written {
        if let Some(alias) = self.aliases.get(topic) {
            return Written::Aliased(*alias);
        }
        let used = self.aliases.len() as u16;
        let fits = used < self.maximum && self.bytes + topic.len() <= TOPIC_ALIAS_BYTES;
        if fits && topic.len() > PROPERTY_BYTES { Written::Introduced(used + 1) } else { Written::Plain }
    }

    /// The packet that introduces an alias is sent.
    pub(super) fn introduce(&mut self, topic: &Arc<str>, alias: u16) {
        self.bytes += topic.len();
        self.aliases.insert(Arc::clone(topic), alias);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn an_alias_stands_for_the_topic_that_it_was_given_last() {
        let mut aliases = AliasesIn::default();
        assert_eq!(aliases.resolve(1, "").unwrap_err().0, ReasonCode::PROTOCOL_ERROR);
        assert_eq!(&*aliases.resolve(2, "a").unwrap(), "a");
        assert_eq!(&*aliases.resolve(2, "").unwrap(), "a");
        assert_eq!(aliases.resolve(1, "").unwrap_err().0, ReasonCode::PROTOCOL_ERROR);
        assert_eq!(&*aliases.resolve(2, "b").unwrap(), "b");
        assert_eq!(&*aliases.resolve(2, "").unwrap(), "b");
        assert_eq!(&*aliases.resolve(TOPIC_ALIAS_MAXIMUM, "c").unwrap(), "c");
        for alias in [0, TOPIC_ALIAS_MAXIMUM + 1, u16::MAX] {
            assert_eq!(
                aliases.resolve(alias, "c").unwrap_err().0,
                ReasonCode::TOPIC_ALIAS_INVALID,
                "{alias}"
            );
        }
    }

    #[test]
    fn the_bytes_of_aliases_are_bounded_and_a_known_topic_is_not_copied() {
        let mut aliases = AliasesIn::default();
        let long = "x".repeat(TOPIC_ALIAS_BYTES / 2);
        let first = aliases.resolve(1, &long).unwrap();
        assert!(Arc::ptr_eq(&first, &aliases.resolve(1, &long).unwrap()));
        assert!(Arc::ptr_eq(&first, &aliases.resolve(1, "").unwrap()));
        aliases.resolve(2, &long).unwrap();
        assert_eq!(aliases.resolve(3, "y").unwrap_err().0, ReasonCode::QUOTA_EXCEEDED);
        aliases.resolve(2, "short").unwrap();
        aliases.resolve(3, "y").unwrap();
        assert_eq!(aliases.bytes, long.len() + "shorty".len());
    }

    #[test]
    fn we_give_no_more_aliases_than_the_client_takes() {
        assert!(AliasesOut::new(0).is_none());
        let mut aliases = AliasesOut::new(2).unwrap();
        let [a, b, c]: [Arc<str>; 3] = ["topic/a".into(), "topic/b".into(), "topic/c".into()];
        assert_eq!(aliases.write(&a), Written::Introduced(1));
        assert_eq!(aliases.write(&a), Written::Introduced(1), "the packet was not sent");
        aliases.introduce(&a, 1);
        assert_eq!(aliases.write(&a), Written::Aliased(1));
        assert_eq!(aliases.write("abc"), Written::Plain, "too short to gain anything");
        aliases.introduce(&b, 2);
        assert_eq!((aliases.write(&c), aliases.write(&b)), (Written::Plain, Written::Aliased(2)));
    }
}
