//! Topic names and filters (section 4.7).

use super::error::DecodeError;

/// Levels of a topic or filter.
pub const MAX_LEVELS: usize = 32;

/// Fails unless `topic` can be published to.
pub fn validate_topic(topic: &str) -> Result<(), DecodeError> {
    if topic.is_empty() {
        return Err(DecodeError::Protocol("an empty topic"));
    }
    if topic.bytes().any(|byte| byte == b'+' || byte == b'#') {
        return Err(DecodeError::Malformed("a wildcard in a topic name"));
    }
    if levels(topic) > MAX_LEVELS {
        return Err(DecodeError::Protocol("a topic of more than 32 levels"));
    }
    Ok(())
}

fn levels(topic: &str) -> usize {
    1 + topic.bytes().filter(|byte| *byte == b'/').count()
}

/// Whether the filter is a shared subscription.
#[must_use]
pub fn is_shared(filter: &str) -> bool {
    filter.starts_with("$share/")
}

/// Fails unless `filter` can be subscribed to.
pub fn validate_filter(filter: &str) -> Result<(), DecodeError> {
    let plain = match filter.strip_prefix("$share/") {
        None => filter,
        Some(shared) => {
            let (group, plain) =
                shared.split_once('/').ok_or(DecodeError::Protocol("a shared filter without a filter"))?;
            if group.is_empty() || group.contains(['+', '#']) {
                return Err(DecodeError::Protocol("a share name that is empty or has a wildcard"));
            }
            plain
        }
    };
    if plain.is_empty() {
        return Err(DecodeError::Protocol("an empty topic filter"));
    }
    if levels(plain) > MAX_LEVELS {
        return Err(DecodeError::Protocol("a filter of more than 32 levels"));
    }
    let mut parts = plain.split('/').peekable();
    while let Some(level) = parts.next() {
        let is_last = parts.peek().is_none();
        match level {
            "#" if is_last => {}
            "+" => {}
            _ if level.contains(['+', '#']) => {
                return Err(DecodeError::Protocol("a wildcard inside a level"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a filter that is valid and not shared matches a topic. Wildcards in the first level do not match `$` topics.
#[must_use]
pub fn filter_matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    let mut parts = filter.split('/');
    loop {
        match (parts.next(), levels.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(part), Some(level)) if part == level => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_the_standard_says() {
        for (filter, topic, matches) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("a/b", "a/b/c", false),
        ] {
            assert_eq!(filter_matches(filter, topic), matches, "{filter} {topic}");
        }
    }

    #[test]
    fn filters_are_checked() {
        for filter in ["#", "+", "a/+/b", "a/#", "/", "$share/g/a/#"] {
            assert!(validate_filter(filter).is_ok(), "{filter}");
        }
        for filter in ["", "a#", "#/a", "a/#/b", "+a", "$share/g", "$share//a", "$share/+/a", "$share/g/"] {
            assert!(validate_filter(filter).is_err(), "{filter}");
        }
        assert!(
            validate_topic("a/+").is_err() && validate_topic("").is_err() && validate_topic("a/b").is_ok()
        );
    }
}
