//! Topics that were looked up before, and who wants them: what saves the walk through the trie.
//!
//! # Invariants
//! - What is found is what the trie would say. A change of a filter without wildcards takes its topic out; other
//!   changes stand in a short list that an entry is compared with when it is next used.
//! - Two generations of limited size: what was used lately stays, without a list of uses.

use std::collections::VecDeque;
use std::rc::Rc;

use foldhash::HashMap;
use sonde_proto::mqtt::filter_matches;

use super::router::Interest;
use super::shared::GroupKey;
use crate::limits::{CACHED_INTERESTS, CACHED_TOPIC_BYTES, CACHED_TOPICS, REMEMBERED_TOPIC};

/// Changes that an entry is compared with before it is looked up anew: about what a walk through the trie costs.
const CHANGES: usize = 32;

/// Who wants a topic.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    /// In the order of their sessions; a session stands once for each of its filters that match.
    pub(super) interests: Vec<Interest>,
    /// The groups that share a filter that matches.
    pub(super) groups: Vec<GroupKey>,
}

impl Resolved {
    fn weight(&self) -> usize {
        self.interests.len() + self.groups.len()
    }
}

#[derive(Debug)]
struct Entry {
    resolved: Rc<Resolved>,
    /// The number of changes that it takes into account.
    as_of: u64,
}

#[derive(Debug, Default)]
struct Generation {
    entries: HashMap<Box<str>, Entry>,
    /// Interests of all entries, those replaced since included.
    weight: usize,
    /// Bytes of their topics, in the same way.
    bytes: usize,
}

/// The topics that were looked up.
#[derive(Debug, Default)]
pub(super) struct Cache {
    young: Generation,
    old: Generation,
    /// The last changes of filters with wildcards, the newest last.
    changes: VecDeque<Box<str>>,
    /// How many there have been.
    changed: u64,
}

impl Cache {
    /// Who wants a topic, if that is known.
    pub(super) fn get(&mut self, topic: &str) -> Option<Rc<Resolved>> {
        let (changes, changed) = (&self.changes, self.changed);
        if let Some(entry) = self.young.entries.get_mut(topic) {
            return holds(entry, topic, changes, changed).then(|| Rc::clone(&entry.resolved));
        }
        let (topic, mut entry) = self.old.entries.remove_entry(topic)?;
        if !holds(&mut entry, &topic, changes, changed) {
            return None;
        }
        let resolved = Rc::clone(&entry.resolved);
        self.keep(topic, entry);
        Some(resolved)
    }

    /// Keeps what the trie said of a topic.
    pub(super) fn put(&mut self, topic: &str, resolved: &Rc<Resolved>) {
        if resolved.weight() <= CACHED_INTERESTS / 16 && topic.len() <= REMEMBERED_TOPIC {
            let entry = Entry { resolved: Rc::clone(resolved), as_of: self.changed };
            self.keep(topic.into(), entry);
        }
    }

    fn keep(&mut self, topic: Box<str>, entry: Entry) {
        let weight = entry.resolved.weight();
        let is_full = self.young.entries.len() >= CACHED_TOPICS
            || self.young.weight + weight > CACHED_INTERESTS
            || self.young.bytes + topic.len() > CACHED_TOPIC_BYTES;
        if is_full {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.entries.clear();
            (self.young.weight, self.young.bytes) = (0, 0);
        }
        self.young.weight += weight;
        self.young.bytes += topic.len();
        self.young.entries.insert(topic, entry);
    }

    /// A filter got its first subscriber, another one, or lost one.
    pub(super) fn filter_changed(&mut self, filter: &str) {
        if self.young.entries.is_empty() && self.old.entries.is_empty() {
            return;
        }
        if !filter.contains(['+', '#']) {
            self.young.entries.remove(filter);
            self.old.entries.remove(filter);
            return;
        }
        if self.changes.len() == CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back(filter.into());
        self.changed += 1;
    }
}

/// Whether no change since the entry was made is about its topic; it need not be compared with them again.
fn holds(entry: &mut Entry, topic: &str, changes: &VecDeque<Box<str>>, changed: u64) -> bool {
    let behind = usize::try_from(changed - entry.as_of).unwrap_or(usize::MAX);
    let holds = behind <= changes.len()
        && !changes.iter().rev().take(behind).any(|filter| filter_matches(filter, topic));
    if holds {
        entry.as_of = changed;
    }
    holds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_the_topics_are_limited() {
        let mut cache = Cache::default();
        let nobody = Rc::new(Resolved::default());
        cache.put(&"x".repeat(REMEMBERED_TOPIC + 1), &nobody);
        assert!(cache.young.entries.is_empty(), "too long to be remembered");
        let held =
            |generation: &Generation| generation.entries.keys().map(|topic| topic.len()).sum::<usize>();
        for n in 0..3 * CACHED_TOPIC_BYTES / REMEMBERED_TOPIC {
            cache.put(&format!("{n:08}{}", "x".repeat(REMEMBERED_TOPIC - 8)), &nobody);
        }
        assert!(held(&cache.young) <= CACHED_TOPIC_BYTES && held(&cache.old) <= CACHED_TOPIC_BYTES);
        assert!(held(&cache.old) > CACHED_TOPIC_BYTES / 2, "what was used lately stays");
    }
}
