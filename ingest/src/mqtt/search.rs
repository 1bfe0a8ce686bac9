//! Looks for the retained messages that a filter matches, a bounded number of steps at a time.
//!
//! # Invariants
//! - The topics are looked at in their order, each at most once; behind each `+` whole levels are skipped, so that a step is
//!   a topic that matches, or the first one of a subtree that does not.
//! - No clock and no messages here: a search is told which topic comes next and says what to do with it.

use std::ops::Bound;

/// What sorts right behind `/`: with it in place of a `/`, a topic stands behind everything below that level.
const BEHIND: &str = "0";
/// What sorts right behind every topic that begins with `$`.
const BEHIND_OURS: &str = "%";

/// How far the search for what a filter matches is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Search {
    filter: Box<str>,
    /// Where it goes on; none where it is over.
    from: Option<Bound<String>>,
}

/// What a topic is to a filter.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Matches,
    /// It does not match, and neither does what comes before this.
    Skip(Bound<String>),
    /// Nothing behind it matches.
    Over,
}

impl Search {
    pub(super) fn new(filter: &str) -> Self {
        Self { filter: filter.into(), from: Some(Bound::Included(String::new())) }
    }

    /// The filter.
    pub(super) fn filter(&self) -> &str {
        &self.filter
    }

    /// Whether nothing is left to look at.
    pub(super) fn is_over(&self) -> bool {
        self.from.is_none()
    }

    pub(super) fn end(&mut self) {
        self.from = None;
    }

    /// The only topic that can match, if the filter has no wildcard.
    pub(super) fn exact(&self) -> Option<&str> {
        Some(&*self.filter).filter(|filter| !filter.contains(['+', '#']))
    }

    /// The last level of all topics that can match, if the filter says it.
    pub(super) fn last_level(&self) -> Option<&str> {
        last_level(&self.filter).filter(|level| !level.contains(['+', '#']))
    }

    /// From where on topics are to be looked at.
    pub(super) fn from(&self) -> Option<Bound<&str>> {
        self.from.as_ref().map(|from| from.as_ref().map(String::as_str))
    }

    /// The first topic from there on is this one, or there is none. Whether it matches.
    pub(super) fn look_at(&mut self, topic: Option<&str>) -> bool {
        let Some(topic) = topic else {
            self.from = None;
            return false;
        };
        match judge(&self.filter, topic) {
            Verdict::Matches => {
                self.from = Some(Bound::Excluded(topic.to_owned()));
                return true;
            }
            Verdict::Skip(from) => self.from = Some(from),
            Verdict::Over => self.from = None,
        }
        false
    }
}

/// What stands behind the last `/`.
pub(super) fn last_level(topic: &str) -> Option<&str> {
    topic.rsplit('/').next()
}

fn judge(filter: &str, topic: &str) -> Verdict {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return Verdict::Skip(Bound::Included(BEHIND_OURS.to_owned()));
    }
    let (mut parts, mut levels) = (filter.split('/'), topic.split('/'));
    // Where the level begins, and where the one that the last `+` took ends.
    let (mut at, mut sideways) = (0, None);
    loop {
        match (parts.next(), levels.next()) {
            (Some("#"), _) | (None, None) => return Verdict::Matches,
            (Some("+"), Some(level)) => {
                sideways = Some(at + level.len());
                at += level.len() + 1;
            }
            (Some(part), Some(level)) if part == level => at += level.len() + 1,
            (Some(part), Some(_)) => {
                // What matches begins as the topic does up to here, and goes on with this part: ended by it, or by a
                // `/`, which sorts behind some characters that a level may have.
                let mut wanted = topic.get(..at).unwrap_or_default().to_owned();
                wanted.push_str(part);
                if wanted.as_str() < topic {
                    wanted.push('/');
                }
                return if wanted.as_str() > topic {
                    Verdict::Skip(Bound::Included(wanted))
                } else {
                    beside(topic, sideways)
                };
            }
            // Too short: what is below it, and what begins with its last level, comes behind it.
            (Some(_), None) => return Verdict::Skip(Bound::Excluded(topic.to_owned())),
            // Too deep, and so is all that is below that level.
            (None, Some(_)) => return beside(topic, sideways),
        }
    }
}

/// Nothing more below the level that ends there can match.
fn beside(topic: &str, sideways: Option<usize>) -> Verdict {
    let level = sideways.and_then(|end| topic.get(..end));
    level.map_or(Verdict::Over, |level| Verdict::Skip(Bound::Included([level, BEHIND].concat())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use sonde_proto::mqtt::filter_matches;

    use super::*;

    /// What is found, and in how many steps.
    fn find(filter: &str, topics: &BTreeSet<String>) -> (Vec<String>, usize) {
        let (mut search, mut found, mut steps) = (Search::new(filter), Vec::new(), 0);
        while let Some(from) = search.from() {
            let topic = topics.range::<str, _>((from, Bound::Unbounded)).next();
            if search.look_at(topic.map(String::as_str)) {
                found.extend(topic.cloned());
            }
            steps += 1;
        }
        (found, steps)
    }

    /// Levels with characters that sort before `/` and behind it.
    fn level() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["", "a", "a-", "a0", "b", "-", "$", "$s", "%"])
    }

    fn filter() -> impl Strategy<Value = String> {
        let part = prop_oneof![2 => level(), 1 => Just("+")];
        (prop::collection::vec(part, 1..4), any::<bool>()).prop_map(|(mut parts, all)| {
            if all {
                parts.push("#");
            }
            parts.join("/")
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn it_finds_what_the_filter_matches_in_order(
            topics in prop::collection::btree_set(
                prop::collection::vec(level(), 1..4).prop_map(|levels| levels.join("/")), 0..40),
            filters in prop::collection::vec(filter(), 1..8),
        ) {
            for filter in filters.iter().map(String::as_str).chain(["#", "//#", "/", "+"]) {
                let matching: Vec<_> = topics.iter().filter(|topic| filter_matches(filter, topic)).cloned().collect();
                let (found, steps) = find(filter, &topics);
                prop_assert_eq!(found, matching, "{}", filter);
                prop_assert!(steps <= topics.len() + 1, "{} steps for {}", steps, filter);
            }
        }
    }

    #[test]
    fn subtrees_are_skipped() {
        let topics: BTreeSet<String> =
            (0..100).flat_map(|n| (0..100).map(move |m| format!("d/{n:02}/s/{m}"))).collect();
        for (filter, most, count) in [
            ("d/+/t", 101, 0),
            ("d/+/s", 101, 0),
            ("d/+/s/7", 301, 100),
            ("d/07/#", 102, 100),
            ("e/#", 2, 0),
            ("a/+/t", 1, 0),
            ("+/07/+/7", 6, 1),
            ("#", 10_001, 10_000),
        ] {
            let (found, steps) = find(filter, &topics);
            assert_eq!(found.len(), count, "{filter}");
            assert!(steps <= most, "{steps} steps for {filter}");
        }
    }
}
