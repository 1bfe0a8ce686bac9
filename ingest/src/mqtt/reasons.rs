//! Reason Strings of what is refused (MQTT 5, 3.4.2.2.2 and 3.9.2.1.2): which topic or filter, which right or limit, and what
//! to do.
//!
//! # Invariants
//! - Nothing is put into words where nobody reads it: before 5.0, or for a client that wants none.
//! - A Reason String is bounded, whatever is refused: names are cut, and there are so many.

use std::fmt::{self, Display, Write};

use sonde_proto::mqtt::{QoS, ReasonCode, Version};

use super::connection::Connection;
use super::replay::is_replay;
use super::shared::shared_filter;
use super::sys;
use crate::limits::{REASON_BYTES, REASON_NAME_BYTES, REPLAYS, SESSION_REPLAYS, SUBSCRIPTIONS};

/// The words of an answer; none where the code says all there is to say.
pub(super) type Why = Option<Box<str>>;

/// What became of a message that came in: the reason code of its answer, and its words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) reason: ReasonCode,
    pub(super) why: Why,
}

impl From<ReasonCode> for Verdict {
    fn from(reason: ReasonCode) -> Self {
        Self { reason, why: None }
    }
}

impl Verdict {
    /// The client has no right to publish this.
    pub(super) fn denied(mut words: Words, topic: &str, qos: QoS, retain: bool) -> Self {
        let (topic, retained) = (Name(topic), if retain { " and retain" } else { "" });
        if topic.0.starts_with(sys::ROOT) {
            words.say(format_args!("{topic}: only the server publishes there"));
        } else {
            let qos = qos as u8;
            words.say(format_args!(
                "no right to publish to {topic} with QoS {qos}{retained}: have it granted (GRANT PUBLISH ON {topic} TO ...)"
            ));
        }
        Self { reason: ReasonCode::NOT_AUTHORIZED, why: words.finish() }
    }

    /// A message that a source with `reject_invalid` can make no rows of.
    pub(super) fn invalid(why: &str) -> Self {
        let mut words = Words(Some(String::new()));
        words.say(format_args!("the payload fits no row: {}; it is a dead letter", cut(why, REASON_BYTES)));
        Self { reason: ReasonCode::PAYLOAD_FORMAT_INVALID, why: words.finish() }
    }
}

/// Gathers the words of an answer.
#[derive(Debug)]
pub(super) struct Words(Option<String>);

impl Words {
    /// Words for a client, if it wants any.
    pub(super) fn of(connection: &Connection) -> Self {
        Self((connection.version == Version::V5 && connection.explains).then(String::new))
    }

    /// A filter was refused with this code.
    pub(super) fn refused(&mut self, filter: &str, reason: ReasonCode) {
        let name = Name(filter);
        let granted = Name(shared_filter(filter).unwrap_or(filter));
        match (reason, is_replay(filter)) {
            (ReasonCode::NOT_AUTHORIZED, true) => {
                self.say(format_args!("no right to subscribe to all that {name} replays"));
            }
            (ReasonCode::NOT_AUTHORIZED, false) => self.say(format_args!(
                "no right to subscribe to all of {name}: ask for what is granted, or have it granted (GRANT SUBSCRIBE ON \
                 {granted} TO ...)"
            )),
            (ReasonCode::TOPIC_FILTER_INVALID, true) => self.say(format_args!(
                "{name}: expected $replay/<from>/<filter>, from a time such as -1h or 2026-11-21T13:00:00Z, of topics that \
                 are stored"
            )),
            (ReasonCode::QUOTA_EXCEEDED, true) => self.say(format_args!(
                "{name}: {SESSION_REPLAYS} replays of a session and {REPLAYS} in all are open at most; end one first"
            )),
            (ReasonCode::QUOTA_EXCEEDED, false) => self.say(format_args!(
                "{name}: a session has {SUBSCRIPTIONS} subscriptions at most; unsubscribe from one first"
            )),
            _ => self.say(format_args!("{name} is not taken")),
        }
    }

    /// A filter was not subscribed to.
    pub(super) fn unknown(&mut self, filter: &str) {
        self.say(format_args!("there is no subscription to {}", Name(filter)));
    }

    fn say(&mut self, words: fmt::Arguments<'_>) {
        let Some(text) = &mut self.0 else { return };
        if text.len() > REASON_BYTES {
            if !text.ends_with(MORE) {
                text.push_str(MORE);
            }
            return;
        }
        if !text.is_empty() {
            text.push_str("; ");
        }
        // A String takes all that is written.
        let _ = text.write_fmt(words);
    }

    pub(super) fn finish(self) -> Why {
        self.0.filter(|text| !text.is_empty()).map(String::into_boxed_str)
    }
}

/// Stands for what is not said any more.
const MORE: &str = "; ...";

/// A topic or filter in quotes, cut where it is long.
struct Name<'a>(&'a str);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = cut(self.0, REASON_NAME_BYTES);
        write!(f, "'{shown}{}'", if shown.len() < self.0.len() { "..." } else { "" })
    }
}

/// So many bytes of a text, and none of a character in part.
fn cut(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn wanted() -> Words {
        Words(Some(String::new()))
    }

    #[test]
    fn it_is_said_what_is_missing() {
        let denied = Verdict::denied(wanted(), "a/b", QoS::AtLeastOnce, true);
        assert_eq!(denied.reason, ReasonCode::NOT_AUTHORIZED);
        assert_eq!(
            denied.why.as_deref(),
            Some(
                "no right to publish to 'a/b' with QoS 1 and retain: have it granted (GRANT PUBLISH ON 'a/b' TO ...)"
            )
        );
        let ours = Verdict::denied(wanted(), "$SYS/x", QoS::AtMostOnce, false).why.unwrap();
        assert_eq!(&*ours, "'$SYS/x': only the server publishes there");
        let mut words = wanted();
        words.refused("$share/g/a/#", ReasonCode::NOT_AUTHORIZED);
        words.refused("b", ReasonCode::QUOTA_EXCEEDED);
        let why = words.finish().unwrap();
        assert!(why.contains("'$share/g/a/#'") && why.contains("GRANT SUBSCRIBE ON 'a/#'"), "{why}");
        assert!(why.ends_with("; 'b': a session has 1024 subscriptions at most; unsubscribe from one first"));
    }

    #[test]
    fn nobody_is_told_who_wants_no_words() {
        let mut words = Words(None);
        words.refused("a", ReasonCode::NOT_AUTHORIZED);
        assert_eq!(words.finish(), None);
        assert_eq!(Verdict::denied(Words(None), "a", QoS::AtMostOnce, false).why, None);
        assert_eq!(wanted().finish(), None);
    }

    #[test]
    fn the_words_are_bounded() {
        let mut words = wanted();
        (0..1000).for_each(|_| words.refused(&"ü".repeat(30_000), ReasonCode::NOT_AUTHORIZED));
        let why = words.finish().unwrap();
        assert!(why.len() < 3 * REASON_BYTES && why.ends_with(MORE), "{}", why.len());
        assert!(Verdict::invalid(&"x".repeat(100_000)).why.unwrap().len() < 2 * REASON_BYTES);
        assert_eq!((cut("aü", 2), cut("aü", 3), cut("a", 9)), ("a", "aü", "a"));
    }
}
