//! Which sessions want a topic: a trie of filters, the groups of shared subscriptions, and a cache of topics.
//!
//! # Invariants
//! - Subscribing and unsubscribing touch one path of the trie; a topic that is looked up again costs one hash.
//! - Wildcards in the first level do not match topics that begin with `$`.

use std::rc::Rc;

use sonde_proto::mqtt::QoS;

use super::resolved::{Cache, Resolved};
use super::shared::{Group, GroupKey, Groups, Membership, shared_filter};
use super::trie::Trie;

/// A session's place in the session table.
pub(super) type SessionKey = usize;

/// What a session wants of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interest {
    pub(super) session: SessionKey,
    /// The subscription identifier; 0 is none (section 3.8.2.1.2).
    pub(super) identifier: u32,
    pub(super) qos: QoS,
    pub(super) no_local: bool,
    pub(super) retain_as_published: bool,
}

const _: () = assert!(size_of::<Interest>() == 16);

#[cfg(test)]
impl Interest {
    pub(super) fn new(session: SessionKey, qos: QoS) -> Self {
        Self { session, identifier: 0, qos, no_local: false, retain_as_published: false }
    }
}

/// All subscriptions.
#[derive(Debug, Default)]
pub(super) struct Router {
    trie: Trie,
    groups: Groups,
    cache: Cache,
    /// What a topic that nobody wants resolves to.
    nobody: Rc<Resolved>,
    count: usize,
    shared: usize,
    /// Subscriptions that begin with `$SYS`.
    sys: usize,
}

impl Router {
    /// Number of subscriptions, shared ones included.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Number of shared subscriptions.
    pub(super) fn shared_len(&self) -> usize {
        self.shared
    }

    /// Whether somebody may want what the server says of itself.
    pub(super) fn wants_sys(&self) -> bool {
        self.sys > 0
    }

    /// Adds a subscription; one of the same session and filter is replaced.
    pub(super) fn subscribe(&mut self, filter: &str, interest: Interest) {
        let Some(plain) = shared_filter(filter) else {
            self.cache.filter_changed(filter);
            if self.trie.change(filter, |subscribers| subscribers.put(interest)) {
                self.count += 1;
                self.sys += usize::from(is_sys(filter));
            }
            return;
        };
        let membership = self.groups.join(filter, interest);
        if let Membership::First(group) = membership {
            self.cache.filter_changed(plain);
            self.trie.change(plain, |subscribers| subscribers.groups.push(group));
        }
        if membership != Membership::Renewed {
            self.count += 1;
            self.shared += 1;
            self.sys += usize::from(is_sys(plain));
        }
    }

    /// Removes a subscription.
    pub(super) fn unsubscribe(&mut self, filter: &str, session: SessionKey) {
        let Some(plain) = shared_filter(filter) else {
            if self.trie.change(filter, |subscribers| subscribers.remove(session)) {
                self.cache.filter_changed(filter);
                self.count -= 1;
                self.sys -= usize::from(is_sys(filter));
            }
            return;
        };
        let membership = self.groups.leave(filter, session);
        if let Membership::Last(group) = membership {
            self.cache.filter_changed(plain);
            self.trie.change(plain, |subscribers| subscribers.groups.retain(|known| *known != group));
        }
        if membership != Membership::Stranger {
            self.count -= 1;
            self.shared -= 1;
            self.sys -= usize::from(is_sys(plain));
        }
    }

    /// Who wants a topic.
    pub(super) fn resolve(&mut self, topic: &str) -> Rc<Resolved> {
        if self.count == 0 {
            return Rc::clone(&self.nobody);
        }
        if let Some(known) = self.cache.get(topic) {
            return known;
        }
        let mut resolved = Resolved::default();
        self.trie.visit(topic, &mut |subscribers| {
            resolved.interests.extend_from_slice(&subscribers.interests);
            resolved.groups.extend_from_slice(&subscribers.groups);
        });
        resolved.interests.sort_by_key(|interest| interest.session);
        let nobody = resolved.interests.is_empty() && resolved.groups.is_empty();
        let resolved = if nobody { Rc::clone(&self.nobody) } else { Rc::new(resolved) };
        self.cache.put(topic, &resolved);
        resolved
    }

    /// The group of `$share/<name>/<filter>`.
    pub(super) fn group(&self, filter: &str) -> Option<GroupKey> {
        self.groups.find(filter)
    }

    /// A group that a topic resolved to.
    pub(super) fn group_mut(&mut self, key: GroupKey) -> Option<&mut Group> {
        self.groups.get_mut(key)
    }
}

fn is_sys(filter: &str) -> bool {
    filter.starts_with("$SYS/")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sonde_proto::mqtt::{filter_matches, validate_filter, validate_topic};

    fn interest(session: SessionKey) -> Interest {
        Interest::new(session, QoS::AtLeastOnce)
    }

    /// Sessions, then groups, that a topic goes to.
    fn found(router: &mut Router, topic: &str) -> (Vec<usize>, Vec<String>) {
        let resolved = router.resolve(topic);
        let sessions = resolved.interests.iter().map(|interest| interest.session).collect();
        let groups = resolved.groups.iter();
        let mut groups: Vec<String> =
            groups.map(|group| router.group_mut(*group).unwrap().filter.to_string()).collect();
        groups.sort();
        (sessions, groups)
    }

    proptest! {
        /// Every topic is looked up after every change, so the cache has an entry for it that may have become wrong.
        #[test]
        fn the_router_agrees_with_the_plain_comparison(
            steps in proptest::collection::vec(
                (any::<bool>(), 0_usize..4, "((\\$share/[gh]/)?(\\$|[ab+#]|)(/([ab+#]|)){0,3})"), 1..60),
            topics in proptest::collection::vec("(\\$|[ab]|)(/([ab]|)){0,3}", 1..4),
        ) {
            let mut router = Router::default();
            let mut plain: Vec<(usize, String)> = Vec::new();
            for (subscribes, session, filter) in steps {
                if validate_filter(&filter).is_err() {
                    continue;
                }
                plain.retain(|known| *known != (session, filter.clone()));
                if subscribes {
                    router.subscribe(&filter, interest(session));
                    plain.push((session, filter));
                } else {
                    router.unsubscribe(&filter, session);
                }
                prop_assert_eq!(router.len(), plain.len());
                for topic in topics.iter().filter(|topic| validate_topic(topic).is_ok()) {
                    let mut sessions = Vec::new();
                    let mut groups = Vec::new();
                    for (session, filter) in &plain {
                        match shared_filter(filter) {
                            None if filter_matches(filter, topic) => sessions.push(*session),
                            Some(plain) if filter_matches(plain, topic) => groups.push(filter.clone()),
                            _ => {}
                        }
                    }
                    sessions.sort_unstable();
                    groups.sort();
                    groups.dedup();
                    prop_assert_eq!(found(&mut router, topic), (sessions, groups), "{}", topic);
                }
            }
            for (session, filter) in plain {
                router.unsubscribe(&filter, session);
            }
            prop_assert_eq!((router.len(), router.shared_len(), router.trie.nodes()), (0, 0, 0));
        }
    }

    #[test]
    fn wildcards_leave_reserved_topics_alone_also_when_shared() {
        let mut router = Router::default();
        router.subscribe("#", interest(1));
        router.subscribe("+/broker/uptime", interest(2));
        router.subscribe("$share/g/#", interest(3));
        assert!(!router.wants_sys());
        router.subscribe("$share/g/$SYS/#", interest(4));
        router.subscribe("$SYS/broker/+", interest(5));
        assert!(router.wants_sys());
        assert_eq!(found(&mut router, "$SYS/broker/uptime"), (vec![5], vec!["$share/g/$SYS/#".to_owned()]));
        router.unsubscribe("$share/g/$SYS/#", 4);
        router.unsubscribe("$SYS/broker/+", 5);
        assert!(!router.wants_sys());
    }

    #[test]
    fn a_topic_stays_known_while_others_subscribe_elsewhere() {
        let mut router = Router::default();
        router.subscribe("a/+", interest(1));
        let first = router.resolve("a/b");
        for session in 2..1000 {
            router.subscribe("elsewhere/+", interest(session));
            router.subscribe(&format!("a/{session}"), interest(session));
            assert!(Rc::ptr_eq(&first, &router.resolve("a/b")), "after {session}");
        }
        router.subscribe("+/b", interest(2));
        assert_eq!(found(&mut router, "a/b").0, [1, 2]);
    }

    #[test]
    fn more_topics_than_the_cache_holds_are_found() {
        let mut router = Router::default();
        router.subscribe("a/+", interest(1));
        for round in 0..2 {
            for number in 0..crate::limits::CACHED_TOPICS * 2 + 3 {
                assert_eq!(router.resolve(&format!("a/{number}")).interests.len(), 1, "round {round}");
            }
        }
    }
}
