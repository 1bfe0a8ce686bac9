//! Topic filters of rules: wildcards, and `${name}` places that stand for who asks.
//!
//! # Invariants
//! - A place matches one level or a part of one, as it was written; no value can make it match anything wider.
//! - A place without a value allows nothing, and what is denied stays denied.

use serde::{Deserialize, Serialize};

use crate::limits::{FILTER_BYTES, FILTER_LEVELS};

/// What a `${name}` place of a filter stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `${clientid}`: the client id of the MQTT session.
    ClientId,
    /// `${username}`: the name of the user who was recognised.
    Username,
    /// `${cn}`: the common name of the client's certificate.
    Cn,
    /// `${device}`: the user's option `device`, or the name of the token.
    Device,
    /// `${tenant}`: the user's option `tenant`, or a claim of a JSON Web Token.
    Tenant,
}

const PLACES: [(&str, Place); 5] = [
    ("clientid", Place::ClientId),
    ("username", Place::Username),
    ("cn", Place::Cn),
    ("device", Place::Device),
    ("tenant", Place::Tenant),
];

/// What is known of someone, for the places of filters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    values: [Option<Box<str>>; 5],
}

impl Identity {
    /// With a value for a place. One that is empty or holds `+`, `#`, `/` or NUL could widen a rule: it counts as none.
    #[must_use]
    pub fn with(mut self, place: Place, value: Option<&str>) -> Self {
        let plain = value.filter(|value| !value.is_empty() && !value.contains(['+', '#', '/', '\0']));
        if let Some(slot) = self.values.get_mut(place as usize) {
            *slot = plain.map(Into::into);
        }
        self
    }

    /// The value of a place, where it has one that is safe.
    #[must_use]
    pub fn get(&self, place: Place) -> Option<&str> {
        self.values.get(place as usize)?.as_deref()
    }
}

/// A level of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Level {
    Text(Box<str>),
    /// `+`
    Any,
    /// `#`
    Rest,
    Place {
        before: Box<str>,
        place: Place,
        behind: Box<str>,
    },
}

/// A filter of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter(Box<[Level]>);

impl Filter {
    /// Reads a filter such as `acme/${device}/#`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("filter '{text}': {why}"));
        if text.is_empty() || text.len() > FILTER_BYTES || text.contains('\0') {
            return wrong(&format!("expected 1 to {FILTER_BYTES} bytes without NUL"));
        }
        if text.starts_with("$share/") || text.starts_with("$replay/") {
            return wrong("name the topics themselves: a right to them holds for $share and $replay, too");
        }
        let levels: Result<Vec<Level>, String> = text.split('/').map(level).collect();
        let levels = match levels {
            Ok(levels) => levels,
            Err(why) => return wrong(&why),
        };
        if levels.len() > FILTER_LEVELS {
            return wrong(&format!("it has more than {FILTER_LEVELS} levels"));
        }
        if levels.iter().rev().skip(1).any(|level| *level == Level::Rest) {
            return wrong("# is the last level");
        }
        Ok(Self(levels.into()))
    }

    /// Whether every topic that `wanted` (a topic or a filter) stands for is one of this filter's.
    pub(crate) fn covers(&self, identity: &Identity, wanted: &str) -> bool {
        let wanted = plain(wanted);
        // Topics that begin with $ are the server's: only a filter that names them has them.
        let named = matches!(self.0.first(), Some(Level::Text(_)));
        if wanted.is_empty() || wanted.starts_with('$') && !named {
            return false;
        }
        let mut levels = self.0.iter();
        let mut wanted = wanted.split('/');
        loop {
            match (levels.next(), wanted.next()) {
                (Some(Level::Rest), _) | (None, None) => return true,
                (Some(level), Some(part)) if level.covers(identity, part) => {}
                _ => return false,
            }
        }
    }

    /// Whether any topic that `wanted` (a topic or a filter) stands for may be one of this filter's. A place without a
    /// value may be any level: what a rule denies it denies to the one who has no name, too.
    pub(crate) fn touches(&self, identity: &Identity, wanted: &str) -> bool {
        let wanted = plain(wanted);
        let wild = matches!(self.0.first(), Some(Level::Any | Level::Rest));
        let reserved = matches!(self.0.first(), Some(Level::Text(text)) if text.starts_with('$'));
        if wanted.starts_with('$') && wild || reserved && wanted.starts_with(['+', '#']) {
            return false;
        }
        let mut levels = self.0.iter();
        let mut wanted = wanted.split('/');
        loop {
            match (levels.next(), wanted.next()) {
                (Some(Level::Rest), _) | (_, Some("#")) | (None, None) => return true,
                (Some(_), Some("+")) => {}
                (Some(level), Some(part)) if level.touches(identity, part) => {}
                _ => return false,
            }
        }
    }
}

impl Level {
    fn covers(&self, identity: &Identity, part: &str) -> bool {
        match self {
            Self::Any => part != "#",
            // What was parsed holds no wildcard, so neither equals one.
            Self::Text(text) => **text == *part,
            Self::Place { before, place, behind } => {
                identity.get(*place).is_some_and(|value| is_made_of(part, before, value, behind))
            }
            Self::Rest => true,
        }
    }

    fn touches(&self, identity: &Identity, part: &str) -> bool {
        match self {
            Self::Place { place, .. } if identity.get(*place).is_none() => true,
            level => level.covers(identity, part),
        }
    }
}

fn is_made_of(part: &str, before: &str, value: &str, behind: &str) -> bool {
    part.strip_prefix(before).and_then(|rest| rest.strip_suffix(behind)) == Some(value)
}

fn level(text: &str) -> Result<Level, String> {
    match text {
        "+" => return Ok(Level::Any),
        "#" => return Ok(Level::Rest),
        _ if text.contains(['+', '#']) => return Err("a wildcard is a level of its own".into()),
        _ => {}
    }
    let Some((before, rest)) = text.split_once("${") else { return Ok(Level::Text(text.into())) };
    let Some((name, behind)) = rest.split_once('}') else { return Err("a ${ without a }".into()) };
    let Some((_, place)) = PLACES.iter().find(|(known, _)| *known == name) else {
        let known: Vec<String> = PLACES.iter().map(|(name, _)| format!("${{{name}}}")).collect();
        return Err(format!("${{{name}}} is none of {}", known.join(", ")));
    };
    if behind.contains("${") {
        return Err("a level holds one ${...} at most".into());
    }
    Ok(Level::Place { before: before.into(), place: *place, behind: behind.into() })
}

/// The filter of a shared subscription or of a replay, which need the right to the topics themselves.
fn plain(wanted: &str) -> &str {
    let behind = wanted.strip_prefix("$share/").or_else(|| wanted.strip_prefix("$replay/"));
    match behind {
        Some(rest) => rest.split_once('/').map_or("", |(_, filter)| filter),
        None => wanted,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn covers(filter: &str, wanted: &str) -> bool {
        Filter::parse(filter).unwrap().covers(&Identity::default(), wanted)
    }

    fn touches(filter: &str, wanted: &str) -> bool {
        Filter::parse(filter).unwrap().touches(&Identity::default(), wanted)
    }

    #[test]
    fn a_filter_covers_what_it_is_wider_than() {
        for (granted, wanted, covered) in [
            ("acme/#", "acme/a/b", true),
            ("acme/#", "acme", true),
            ("acme/#", "acme/#", true),
            ("acme/#", "#", false),
            ("acme/+", "acme/#", false),
            ("acme/+", "acme/+", true),
            ("acme/+", "acme", false),
            ("acme/a", "acme/+", false),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("a/#", "$share/g/a/b", true),
            ("a/#", "$share/g/b", false),
            ("a/#", "$replay/-1h/a/b", true),
            ("#", "$replay/-1h/$SYS/b", false),
            ("#", "", false),
            ("#", "$share/g", false),
        ] {
            assert_eq!(covers(granted, wanted), covered, "{granted} {wanted}");
        }
    }

    #[test]
    fn a_filter_touches_what_shares_a_topic_with_it() {
        for (denied, wanted, touched) in [
            ("secret/#", "#", true),
            ("secret/#", "+/x", true),
            ("secret/#", "+", true),
            ("secret/a", "secret/+", true),
            ("secret/a", "secret/+/b", false),
            ("secret/a", "public/#", false),
            ("secret/a/b", "secret/a", false),
            ("secret", "secret/#", true),
            ("$SYS/#", "#", false),
            ("#", "$SYS/x", false),
            ("$SYS/#", "$share/g/$SYS/x", true),
            ("a/${cn}/b", "a/anything/b", true),
            ("a/${cn}/b", "a/anything/c", false),
        ] {
            assert_eq!(touches(denied, wanted), touched, "{denied} {wanted}");
        }
    }

    #[test]
    fn filters_that_are_none_are_refused() {
        for text in ["", "a/#/b", "a+", "a/${", "a/${nobody}", "${cn}${cn}", "a\0", "$share/g/a"] {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
        let deep = vec!["a"; FILTER_LEVELS + 1].join("/");
        assert!(Filter::parse(&deep).is_err());
    }

    #[test]
    fn places_stand_for_who_asks() {
        let who = Identity::default().with(Place::ClientId, Some("pump")).with(Place::Cn, Some("a/b"));
        let covers = |filter: &str, wanted: &str| Filter::parse(filter).unwrap().covers(&who, wanted);
        assert!(covers("acme/${clientid}/#", "acme/pump/x"));
        assert!(covers("acme/dev-${clientid}-x", "acme/dev-pump-x"));
        assert!(!covers("acme/${clientid}/#", "acme/other/x") && !covers("acme/${clientid}/#", "acme/+/x"));
        assert!(!covers("acme/${cn}/#", "acme/a/b") && !covers("acme/${tenant}", "acme/"));
        let dollar = Identity::default().with(Place::ClientId, Some("$SYS"));
        assert!(!Filter::parse("${clientid}/#").unwrap().covers(&dollar, "$SYS/broker"));
    }

    proptest! {
        /// Whatever someone calls himself, a place matches that one name in that one level, or nothing.
        #[test]
        fn an_identity_never_widens_a_rule(
            value in "[a-b+#/$\0]{0,4}",
            filter in "(\\$?[ab]|\\$\\{clientid\\}|[ab]\\$\\{clientid\\}|\\+)(/([ab]|\\$\\{clientid\\}|\\+)){0,2}(/#)?",
            wanted in "(\\$?[ab+]{1,2}|#)(/[ab+]{0,2}){0,3}(/#)?",
        ) {
            let who = Identity::default().with(Place::ClientId, Some(&value));
            let covers = Filter::parse(&filter).unwrap().covers(&who, &wanted);
            // As if each place were a level that one topic alone has.
            let safe = !value.is_empty() && !value.contains(['+', '#', '/', '\0']);
            let one = filter.replace("${clientid}", &value);
            let expected = if filter.contains("${") {
                safe && !(filter.starts_with("${") && wanted.starts_with('$'))
                    && Filter::parse(&one).is_ok_and(|one| one.covers(&Identity::default(), &wanted))
            } else {
                Filter::parse(&filter).unwrap().covers(&Identity::default(), &wanted)
            };
            prop_assert_eq!(covers, expected);
            // What is covered is touched: a rule that denies it wins.
            prop_assert!(!covers || Filter::parse(&filter).unwrap().touches(&who, &wanted));
        }
    }
}
