//! Tokens: what the catalog keeps of one, and what it allows.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha512};

/// What the bearer of a token was given, as the catalog keeps it.
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
}

/// The SHA-512 of a token, hexadecimal.
#[must_use]
pub fn digest(token: &str) -> String {
    hex(&Sha512::digest(token.as_bytes()))
}

/// A number that tells public things apart, such as names and public keys.
pub(crate) fn fingerprint(bytes: &[u8]) -> u64 {
    Sha512::digest(bytes).iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
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
    fn tokens_are_known_by_their_digest() {
        let stored = StoredToken::new("secret", Grants::default());
        assert!(same(stored.digest.as_bytes(), digest("secret").as_bytes()));
        assert!(stored.digest != digest("secre") && !stored.digest.contains("secret"));
    }
}
