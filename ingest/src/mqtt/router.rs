//! Which sessions want a topic: a trie of filter levels.
//!
//! # Invariants
//! - Subscribing and unsubscribing touch one path of the trie.
//! - Wildcards in the first level do not match topics that begin with `$`.

use std::collections::HashMap;

use sonde_proto::mqtt::QoS;

/// A session's place in the session table.
pub(super) type SessionKey = usize;

/// What a session wants of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interest {
    pub(super) session: SessionKey,
    pub(super) qos: QoS,
    pub(super) no_local: bool,
    pub(super) retain_as_published: bool,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, Node>,
    /// Those whose filter ends here.
    here: Vec<Interest>,
    /// Those whose filter ends in `#` here.
    below: Vec<Interest>,
}

impl Node {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.here.is_empty() && self.below.is_empty()
    }
}

/// All subscriptions.
#[derive(Debug, Default)]
pub(super) struct Router {
    root: Node,
    count: usize,
}

impl Router {
    /// Number of subscriptions.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Adds a subscription; one of the same session and filter is replaced.
    pub(super) fn subscribe(&mut self, filter: &str, interest: Interest) {
        let list = self.list(filter);
        match list.iter_mut().find(|known| known.session == interest.session) {
            Some(known) => *known = interest,
            None => {
                list.push(interest);
                self.count += 1;
            }
        }
    }

    fn list(&mut self, filter: &str) -> &mut Vec<Interest> {
        let mut node = &mut self.root;
        for level in filter.split('/') {
            if level == "#" {
                return &mut node.below;
            }
            node = node.children.entry(level.into()).or_default();
        }
        &mut node.here
    }

    /// Removes a subscription.
    pub(super) fn unsubscribe(&mut self, filter: &str, session: SessionKey) {
        fn remove<'f>(
            node: &mut Node,
            mut levels: impl Iterator<Item = &'f str>,
            session: SessionKey,
        ) -> usize {
            let list = match levels.next() {
                None => &mut node.here,
                Some("#") => &mut node.below,
                Some(level) => {
                    let Some(child) = node.children.get_mut(level) else { return 0 };
                    let removed = remove(child, levels, session);
                    if child.is_empty() {
                        node.children.remove(level);
                    }
                    return removed;
                }
            };
            let before = list.len();
            list.retain(|interest| interest.session != session);
            before - list.len()
        }
        let mut levels = filter.split('/').collect::<Vec<_>>().into_iter();
        self.count -= remove(&mut self.root, &mut levels as &mut dyn Iterator<Item = &str>, session);
    }

    /// Collects who wants a topic, each session once, with the largest QoS of its filters.
    pub(super) fn matches(&self, topic: &str, found: &mut Vec<Interest>) {
        found.clear();
        if self.count == 0 {
            return;
        }
        let levels: Vec<&str> = topic.split('/').collect();
        collect(&self.root, &levels, topic.starts_with('$'), found);
        if found.len() > 1 {
            found.sort_by_key(|interest| (interest.session, std::cmp::Reverse(interest.qos)));
            found.dedup_by_key(|interest| interest.session);
        }
    }
}

fn collect(node: &Node, levels: &[&str], reserved: bool, found: &mut Vec<Interest>) {
    if !reserved {
        found.extend_from_slice(&node.below);
    }
    let Some((level, rest)) = levels.split_first() else {
        found.extend_from_slice(&node.here);
        return;
    };
    if let Some(child) = node.children.get(*level) {
        collect(child, rest, false, found);
    }
    if !reserved && let Some(child) = node.children.get("+") {
        collect(child, rest, false, found);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sonde_proto::mqtt::{filter_matches, validate_filter, validate_topic};

    fn interest(session: SessionKey) -> Interest {
        Interest { session, qos: QoS::AtLeastOnce, no_local: false, retain_as_published: false }
    }

    proptest! {
        #[test]
        fn the_trie_agrees_with_the_plain_comparison(
            filters in proptest::collection::vec("(\\$|[a-c+#]|)(/([a-c+#]|)){0,3}", 0..12),
            topic in "(\\$|[a-c]|)(/([a-c]|)){0,3}",
            gone in proptest::collection::vec(any::<bool>(), 12),
        ) {
            prop_assume!(validate_topic(&topic).is_ok());
            let mut router = Router::default();
            let valid: Vec<&String> = filters.iter().filter(|f| validate_filter(f).is_ok()).collect();
            for (session, filter) in valid.iter().enumerate() {
                router.subscribe(filter, interest(session));
            }
            for (session, filter) in valid.iter().enumerate().filter(|(i, _)| gone[*i]) {
                router.unsubscribe(filter, session);
            }
            let mut found = Vec::new();
            router.matches(&topic, &mut found);
            let found: Vec<usize> = found.iter().map(|i| i.session).collect();
            let expected: Vec<usize> = valid.iter().enumerate()
                .filter(|(i, filter)| !gone[*i] && filter_matches(filter, &topic)).map(|(i, _)| i).collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(router.len(), valid.iter().enumerate().filter(|(i, _)| !gone[*i]).count());
        }
    }
}
