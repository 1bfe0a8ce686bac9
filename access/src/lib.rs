//! Who may do what: principals, their grants, and the one question every door asks. Pure: no files, no clock.
//!
//! # Invariants
//! - What is not granted is denied.
//! - Only digests of tokens are kept; a token is compared through its SHA-512.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha512};

/// What someone wants to do, and to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// Publish to a topic.
    Publish(&'a str),
    /// Subscribe to a filter.
    Subscribe(&'a str),
    /// Read by SQL.
    Query,
    /// Write rows.
    Write,
    /// Change tables, sources, rules, tokens; flush, compact, cool, kill.
    Admin,
}

/// What a principal was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants {
    /// Everything.
    #[serde(default)]
    pub admin: bool,
    /// Topic filters that it may publish to.
    #[serde(default)]
    pub publish: Vec<String>,
    /// Topic filters that it may subscribe to.
    #[serde(default)]
    pub subscribe: Vec<String>,
    /// SQL queries.
    #[serde(default)]
    pub query: bool,
    /// Writing rows over HTTP and gRPC.
    #[serde(default)]
    pub write: bool,
}

/// Someone who was recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Its name, for logs and system tables.
    pub name: String,
    grants: Grants,
}

impl Principal {
    /// May do everything.
    #[must_use]
    pub fn admin(name: &str) -> Self {
        Self { name: name.to_owned(), grants: Grants { admin: true, ..Grants::default() } }
    }

    /// A device without credentials on a listener that lets it in: publishes and subscribes to everything.
    #[must_use]
    pub fn anonymous_device() -> Self {
        let all = || vec!["#".to_owned()];
        Self {
            name: "anonymous".to_owned(),
            grants: Grants { publish: all(), subscribe: all(), ..Grants::default() },
        }
    }

    /// Has these grants.
    #[must_use]
    pub fn new(name: &str, grants: Grants) -> Self {
        Self { name: name.to_owned(), grants }
    }
}

/// Whether `principal` may do `action`.
#[must_use]
pub fn allows(principal: &Principal, action: Action<'_>) -> bool {
    let grants = &principal.grants;
    if grants.admin {
        return true;
    }
    match action {
        Action::Publish(topic) => grants.publish.iter().any(|filter| covers(filter, topic)),
        Action::Subscribe(wanted) => grants.subscribe.iter().any(|filter| covers(filter, wanted)),
        Action::Query => grants.query,
        Action::Write => grants.write,
        Action::Admin => false,
    }
}

/// Whether every topic that `wanted` (a topic or a filter) stands for is covered by `granted`.
#[must_use]
pub fn covers(granted: &str, wanted: &str) -> bool {
    let wanted = match wanted.strip_prefix("$share/") {
        Some(shared) => shared.split_once('/').map_or("", |(_, filter)| filter),
        None => wanted,
    };
    if wanted.is_empty() || wanted.starts_with('$') && granted.starts_with(['+', '#']) {
        return false;
    }
    let mut granted = granted.split('/');
    let mut wanted = wanted.split('/');
    loop {
        match (granted.next(), wanted.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(part), Some(level)) if part == level && level != "+" && level != "#" => {}
            _ => return false,
        }
    }
}

/// What the catalog keeps of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredToken {
    /// SHA-512 of the token, hexadecimal.
    pub digest: String,
    /// What its bearer may do.
    pub grants: Grants,
}

impl StoredToken {
    /// For a token of at least 256 random bits.
    #[must_use]
    pub fn new(token: &str, grants: Grants) -> Self {
        Self { digest: digest(token), grants }
    }

    /// Whether this is the token. Digests are compared, in constant time.
    #[must_use]
    pub fn matches(&self, token: &str) -> bool {
        same(self.digest.as_bytes(), digest(token).as_bytes())
    }
}

/// The SHA-512 of a token, hexadecimal.
#[must_use]
pub fn digest(token: &str) -> String {
    hex(&Sha512::digest(token.as_bytes()))
}

/// Whether two secrets are the same, in a time that does not tell where they differ.
#[must_use]
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from_digit(half.into(), 16);
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]).filter_map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_covers_what_it_is_wider_than() {
        for (granted, wanted, covered) in [
            ("acme/#", "acme/a/b", true),
            ("acme/#", "acme/#", true),
            ("acme/#", "#", false),
            ("acme/+", "acme/#", false),
            ("acme/+", "acme/+", true),
            ("acme/a", "acme/+", false),
            ("#", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("a/#", "$share/g/a/b", true),
            ("a/#", "$share/g/b", false),
            ("#", "", false),
        ] {
            assert_eq!(covers(granted, wanted), covered, "{granted} {wanted}");
        }
    }

    #[test]
    fn nothing_is_allowed_that_was_not_granted() {
        let grants = Grants { publish: vec!["acme/#".into()], ..Grants::default() };
        let device = Principal::new("d1", grants);
        assert!(allows(&device, Action::Publish("acme/x")));
        for action in
            [Action::Publish("x"), Action::Subscribe("acme/x"), Action::Query, Action::Write, Action::Admin]
        {
            assert!(!allows(&device, action), "{action:?}");
        }
        assert!(allows(&Principal::admin("root"), Action::Admin));
    }

    #[test]
    fn tokens_are_known_by_their_digest() {
        let stored = StoredToken::new("secret", Grants::default());
        assert!(stored.matches("secret") && !stored.matches("secre") && !stored.digest.contains("secret"));
    }
}
