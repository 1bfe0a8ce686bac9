//! Shared subscriptions (MQTT 5, section 4.8.2): the members of a group, and whose turn it is.
//!
//! # Invariants
//! - Each message of a group goes to one member.
//! - No socket and no session here: who is able to take a message is asked.

use std::sync::Arc;

use foldhash::HashMap;
use slab::Slab;

use super::router::{Interest, SessionKey};
use super::trie;

/// A group's place in the table of groups.
pub(super) type GroupKey = u32;

/// How well a member could take a message now; the smaller, the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// Connected, and nothing waits for it.
    Ready,
    /// Connected, with room in its queue, in which so many times wait what it can have in flight.
    Behind(usize),
    /// Away, with a queue that is kept and has room.
    Away,
    /// Not at all.
    Unable,
}

/// The sessions that share a filter under one name.
#[derive(Debug)]
pub(super) struct Group {
    /// `$share/<name>/<filter>`, as it was subscribed to.
    pub(super) filter: Arc<str>,
    /// In the order of their sessions, each once.
    members: Vec<Interest>,
    /// The member whose turn it is.
    next: usize,
}

impl Group {
    fn new(filter: &str) -> Self {
        Self { filter: filter.into(), members: Vec::new(), next: 0 }
    }

    /// The member that gets the next message: by turns the first that is ready, else the one that stands best.
    pub(super) fn choose(&mut self, standing: impl Fn(&Interest) -> Standing) -> Option<Interest> {
        let (before, from) = self.members.split_at_checked(self.next).unwrap_or((&[], &self.members));
        let first = self.members.len() - from.len();
        let turns = from.iter().enumerate().map(|(at, member)| (first + at, member));
        let mut best: Option<(Standing, usize, Interest)> = None;
        for (at, member) in turns.chain(before.iter().enumerate()) {
            let standing = standing(member);
            if standing < best.map_or(Standing::Unable, |(standing, ..)| standing) {
                best = Some((standing, at, *member));
                if standing == Standing::Ready {
                    break;
                }
            }
        }
        let (_, at, member) = best?;
        self.next = at + 1;
        Some(member)
    }

    fn leave(&mut self, session: SessionKey) -> bool {
        trie::remove(&mut self.members, session)
    }
}

/// All groups.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: Slab<Group>,
    by_filter: HashMap<Arc<str>, GroupKey>,
}

/// What joining or leaving did to a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Membership {
    /// The group's first member: the group is new.
    First(GroupKey),
    /// Another member.
    Another,
    /// The session was a member before.
    Renewed,
    /// The last member has gone, and the group with it.
    Last(GroupKey),
    /// A member has gone, others are left.
    Fewer,
    /// The session is no member.
    Stranger,
}

impl Groups {
    /// The group of `$share/<name>/<filter>`.
    pub(super) fn find(&self, filter: &str) -> Option<GroupKey> {
        self.by_filter.get(filter).copied()
    }

    /// The group of this key.
    pub(super) fn get_mut(&mut self, key: GroupKey) -> Option<&mut Group> {
        self.groups.get_mut(key as usize)
    }

    /// Adds a member, or changes how it subscribed.
    pub(super) fn join(&mut self, filter: &str, interest: Interest) -> Membership {
        let known = self.find(filter);
        let key = known.unwrap_or_else(|| {
            let group = Group::new(filter);
            let name = Arc::clone(&group.filter);
            let key = self.groups.insert(group) as GroupKey;
            self.by_filter.insert(name, key);
            key
        });
        let is_new = self.get_mut(key).is_some_and(|group| trie::put(&mut group.members, interest));
        match (known, is_new) {
            (None, _) => Membership::First(key),
            (Some(_), true) => Membership::Another,
            (Some(_), false) => Membership::Renewed,
        }
    }

    /// Takes a member out.
    pub(super) fn leave(&mut self, filter: &str, session: SessionKey) -> Membership {
        let Some(key) = self.find(filter) else { return Membership::Stranger };
        let Some(group) = self.get_mut(key) else { return Membership::Stranger };
        if !group.leave(session) {
            return Membership::Stranger;
        }
        if !group.members.is_empty() {
            return Membership::Fewer;
        }
        self.groups.remove(key as usize);
        self.by_filter.remove(filter);
        Membership::Last(key)
    }
}

/// The name of a group and the filter that it shares; `None` where the filter is not a shared one.
pub(super) fn share_name(filter: &str) -> Option<(&str, &str)> {
    filter.strip_prefix("$share/")?.split_once('/')
}

/// The filter that a group shares; `None` where the filter is not a shared one.
pub(super) fn shared_filter(filter: &str) -> Option<&str> {
    share_name(filter).map(|(_, filter)| filter)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sonde_proto::mqtt::QoS;

    fn group(members: usize) -> Group {
        let mut groups = Groups::default();
        for session in 0..members {
            groups.join("$share/g/a", Interest::new(session, QoS::AtLeastOnce));
        }
        groups.groups.remove(0)
    }

    #[test]
    fn members_take_turns() {
        let mut group = group(3);
        let taken: Vec<_> = (0..7).map(|_| group.choose(|_| Standing::Ready).unwrap().session).collect();
        assert_eq!(taken, [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn those_away_share_what_nobody_connected_takes() {
        let mut group = group(4);
        let away = |member: &Interest| if member.session < 2 { Standing::Away } else { Standing::Unable };
        let taken: Vec<_> = (0..4).map(|_| group.choose(away).unwrap().session).collect();
        assert_eq!(taken, [0, 1, 0, 1]);
        assert!(group.choose(|_| Standing::Unable).is_none());
    }

    #[test]
    fn who_is_least_behind_comes_first() {
        let mut group = group(3);
        let behind = |member: &Interest| Standing::Behind([5, 0, 0][member.session]);
        let taken: Vec<_> = (0..4).map(|_| group.choose(behind).unwrap().session).collect();
        assert_eq!(taken, [1, 2, 1, 2]);
    }

    #[test]
    fn a_group_ends_with_its_last_member() {
        let mut groups = Groups::default();
        let join =
            |groups: &mut Groups, session| groups.join("$share/g/a", Interest::new(session, QoS::AtMostOnce));
        assert_eq!(join(&mut groups, 1), Membership::First(0));
        assert_eq!(join(&mut groups, 2), Membership::Another);
        assert_eq!(join(&mut groups, 2), Membership::Renewed);
        assert_eq!(groups.leave("$share/g/a", 3), Membership::Stranger);
        assert_eq!(groups.leave("$share/h/a", 1), Membership::Stranger);
        assert_eq!(groups.leave("$share/g/a", 1), Membership::Fewer);
        assert_eq!(groups.leave("$share/g/a", 2), Membership::Last(0));
        assert_eq!(groups.find("$share/g/a"), None);
    }

    proptest! {
        #[test]
        fn the_best_standing_is_chosen_and_turns_are_fair(
            standings in proptest::collection::vec(0_u8..4, 1..8), rounds in 1_usize..5,
        ) {
            let standing = |number: u8| match number {
                0 => Standing::Ready, 1 => Standing::Behind(0), 2 => Standing::Away, _ => Standing::Unable,
            };
            let mut group = group(standings.len());
            let best = standings.iter().min().copied().unwrap();
            let equals = standings.iter().filter(|other| **other == best).count();
            let mut taken = vec![0; standings.len()];
            for _ in 0..rounds * equals {
                match group.choose(|member| standing(standings[member.session])) {
                    Some(member) => taken[member.session] += 1,
                    None => prop_assert_eq!(best, 3),
                }
            }
            for (member, count) in taken.into_iter().enumerate() {
                let expected = if standings[member] == best && best < 3 { rounds } else { 0 };
                prop_assert_eq!(count, expected, "member {} of {:?}", member, &standings);
            }
        }
    }
}
