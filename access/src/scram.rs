//! The server's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), without a socket: messages in, messages out.
//!
//! # Invariants
//! - Someone who is not known goes through the same steps, with a salt of his own that is always the same.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::{hmac, pbkdf2};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::limits::{SCRAM_BYTES, SCRAM_ITERATIONS};
use crate::token::{hex, same};

/// The name of the method.
pub const SCRAM: &str = "SCRAM-SHA-256";

/// What the catalog keeps of a password for SCRAM; it does not give the password, and logs nobody in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScramKeys {
    /// Base64.
    salt: String,
    iterations: u32,
    /// Base64 of the 32 bytes of StoredKey.
    stored_key: String,
    /// Base64 of the 32 bytes of ServerKey.
    server_key: String,
}

impl std::fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ScramKeys")
    }
}

impl ScramKeys {
    /// The keys of a password; `None` where it is not printable ASCII, the part of Unicode that RFC 4013 leaves as it is.
    #[must_use]
    pub fn of(password: &str, salt: &[u8; 16]) -> Option<Self> {
        if !password.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return None;
        }
        let iterations = NonZeroU32::new(SCRAM_ITERATIONS)?;
        let mut salted = [0; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password.as_bytes(), &mut salted);
        Some(Self {
            salt: STANDARD.encode(salt),
            iterations: SCRAM_ITERATIONS,
            stored_key: STANDARD.encode(Sha256::digest(mac(&salted, b"Client Key"))),
            server_key: STANDARD.encode(mac(&salted, b"Server Key")),
        })
    }

    /// For a name that nobody has: the same salt each time, and keys that no password has.
    fn of_nobody(secret: &[u8], name: &str) -> Self {
        let of = |what: &str| mac(secret, format!("{what} {name}").as_bytes());
        Self {
            salt: STANDARD.encode(of("salt").get(..16).unwrap_or_default()),
            iterations: SCRAM_ITERATIONS,
            stored_key: STANDARD.encode(of("stored")),
            server_key: STANDARD.encode(of("server")),
        }
    }
}

fn mac(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
}

/// The client's first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct First {
    /// Who wants to come in.
    pub name: String,
    gs2: String,
    bare: String,
    nonce: String,
}

impl First {
    /// Reads it; `None` where it is malformed, or asks for a channel binding or to act as someone else.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(message).ok().filter(|text| text.len() <= SCRAM_BYTES)?;
        let mut parts = text.splitn(3, ',');
        let (flag, authzid, bare) = (parts.next()?, parts.next()?, parts.next()?);
        if flag != "n" && flag != "y" {
            return None;
        }
        let mut attributes = bare.split(',');
        let name = unescaped(attributes.next()?.strip_prefix("n=")?)?;
        if !authzid.is_empty() && unescaped(authzid.strip_prefix("a=")?)? != name {
            return None;
        }
        let nonce = attributes.next()?.strip_prefix("r=").filter(|nonce| is_printable(nonce))?;
        let gs2 = format!("{flag},{authzid},");
        Some(Self { name, gs2, bare: bare.to_owned(), nonce: nonce.to_owned() })
    }
}

fn is_printable(nonce: &str) -> bool {
    !nonce.is_empty() && nonce.bytes().all(|byte| (b'!'..=b'~').contains(&byte) && byte != b',')
}

/// A name as it was before `,` became `=2C` and `=` became `=3D`.
fn unescaped(text: &str) -> Option<String> {
    let mut name = String::new();
    let mut parts = text.split('=');
    name.push_str(parts.next()?);
    for part in parts {
        let (escape, rest) = part.split_at_checked(2)?;
        name.push(match escape {
            "2C" => ',',
            "3D" => '=',
            _ => return None,
        });
        name.push_str(rest);
    }
    (!name.is_empty() && !name.contains('\0')).then_some(name)
}

/// An exchange that waits for the client's last message.
#[derive(Clone, PartialEq, Eq)]
pub struct Scram {
    name: String,
    gs2: String,
    nonce: String,
    /// Both first messages, separated by a comma.
    begun: String,
    keys: ScramKeys,
    known: bool,
}

impl std::fmt::Debug for Scram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scram({})", self.name)
    }
}

impl Scram {
    /// Answers the first message. `keys` is what the catalog has of the name, `secret` what salts of unknown names are made
    /// of, `random` the server's part of the nonce.
    #[must_use]
    pub fn start(first: First, keys: Option<ScramKeys>, secret: &[u8], random: &[u8; 18]) -> (Self, Vec<u8>) {
        let known = keys.is_some();
        let keys = keys.unwrap_or_else(|| ScramKeys::of_nobody(secret, &first.name));
        let nonce = format!("{}{}", first.nonce, hex(random));
        let answer = format!("r={nonce},s={},i={}", keys.salt, keys.iterations);
        let begun = format!("{},{answer}", first.bare);
        (Self { name: first.name, gs2: first.gs2, nonce, begun, keys, known }, answer.into_bytes())
    }

    /// Who wants to come in.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it was begun with these keys.
    #[must_use]
    pub fn is_of(&self, keys: &ScramKeys) -> bool {
        self.keys == *keys
    }

    /// Checks the client's last message; returns the server's, by which the client knows it.
    #[must_use]
    pub fn finish(&self, message: &[u8]) -> Option<Vec<u8>> {
        let text = std::str::from_utf8(message).ok().filter(|text| text.len() <= SCRAM_BYTES)?;
        let (without_proof, proof) = text.rsplit_once(",p=")?;
        let mut attributes = without_proof.split(',');
        let channel = STANDARD.decode(attributes.next()?.strip_prefix("c=")?).ok()?;
        if channel != self.gs2.as_bytes() || attributes.next()?.strip_prefix("r=")? != self.nonce {
            return None;
        }
        let told = format!("{},{without_proof}", self.begun);
        let proof = STANDARD.decode(proof).ok()?;
        let stored_key = STANDARD.decode(&self.keys.stored_key).ok()?;
        let signature = mac(&stored_key, told.as_bytes());
        let client_key: Vec<u8> = proof.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        let is_right = proof.len() == signature.len() && same(&Sha256::digest(&client_key), &stored_key);
        let server_key = STANDARD.decode(&self.keys.server_key).ok()?;
        let verifier = format!("v={}", STANDARD.encode(mac(&server_key, told.as_bytes())));
        (is_right && self.known).then(|| verifier.into_bytes())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// The example of RFC 7677, section 3: user `user`, password `pencil`, 4,096 iterations.
    fn example() -> (Scram, Vec<u8>) {
        let salt = "W22ZaJ0SNY7soEsUEjb6gQ==";
        let mut salted = [0; 32];
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            NonZeroU32::new(4096).unwrap(),
            &STANDARD.decode(salt).unwrap(),
            b"pencil",
            &mut salted,
        );
        let keys = ScramKeys {
            salt: salt.into(),
            iterations: 4096,
            stored_key: STANDARD.encode(Sha256::digest(mac(&salted, b"Client Key"))),
            server_key: STANDARD.encode(mac(&salted, b"Server Key")),
        };
        let first = First::parse(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO").unwrap();
        let (mut scram, _) = Scram::start(first, Some(keys), b"", &[0; 18]);
        // The nonce that the example's server has drawn.
        scram.nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".into();
        scram.begun = format!("n=user,r=rOprNGfwEbeRWgbNEkqO,r={},s={salt},i=4096", scram.nonce);
        let last = format!("c=biws,r={},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=", scram.nonce);
        (scram, last.into_bytes())
    }

    #[test]
    fn the_example_of_the_rfc_comes_out() {
        let (scram, last) = example();
        let verifier = scram.finish(&last).unwrap();
        assert_eq!(verifier, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn what_differs_is_refused() {
        let (scram, last) = example();
        let text = String::from_utf8(last).unwrap();
        for (from, to) in
            [("c=biws", "c=eSws"), ("p=dH", "p=dG"), ("IkNO", "IkNo"), ("k0,p", "k1,p"), (",p=", ",q=")]
        {
            let other = text.replacen(from, to, 1);
            assert!(other == text || scram.finish(other.as_bytes()).is_none(), "{other}");
        }
        let mut nobody = scram.clone();
        nobody.known = false;
        assert!(nobody.finish(text.as_bytes()).is_none());
    }

    #[test]
    fn an_unknown_name_has_a_salt_that_stays() {
        let first = || First::parse(b"n,,n=ghost,r=abc").unwrap();
        let (_, a) = Scram::start(first(), None, b"secret", &[1; 18]);
        let (_, b) = Scram::start(first(), None, b"secret", &[1; 18]);
        let (_, c) = Scram::start(first(), None, b"another", &[1; 18]);
        assert!(a == b && a != c);
        let of_one = String::from_utf8(a).unwrap();
        assert!(of_one.ends_with(&format!(",i={SCRAM_ITERATIONS}")), "{of_one}");
    }

    #[test]
    fn first_messages_that_are_none_are_refused() {
        for text in [
            "",
            "n,,",
            "p=tls-unique,,n=a,r=b",
            "n,,n=,r=b",
            "n,,n=a",
            "n,,m=x,n=a,r=b",
            "n,a=b,n=a,r=c",
            "n,,n=a=b,r=c",
        ] {
            assert_eq!(First::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(First::parse(b"n,a=a=2Cb,n=a=2Cb,r=c").unwrap().name, "a,b");
    }

    #[test]
    fn only_printable_ascii_has_keys() {
        assert!(ScramKeys::of("pencil é", &[0; 16]).is_none() && ScramKeys::of("pencil", &[0; 16]).is_some());
    }
}
