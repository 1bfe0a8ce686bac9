//! Hashes of passwords as PHC strings: argon2id for ours, PBKDF2 and salted SHA-512 for those that come from Mosquitto.
//!
//! # Invariants
//! - A hash that is accepted costs a bounded time and memory to verify.
//! - A password that nobody has costs as much to refuse as one that is wrong ([`NOBODY`]).

use std::num::NonZeroU32;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ring::pbkdf2;
use sha2::{Digest, Sha512};

use crate::limits::{
    ARGON2_MEMORY, ARGON2_MEMORY_MAX, ARGON2_PASSES, ITERATIONS_MAX, PASSWORD_BYTES, PASSWORD_CHARACTERS,
};
use crate::token::same;

/// Bytes of an argon2id hash.
const HASH_BYTES: usize = 32;
/// Bytes of a salt and of a hash that came from elsewhere.
const FOREIGN_BYTES: usize = 64;

/// A hash that no password has, for users that there are not.
pub const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// What a PHC string says.
enum Hash {
    Argon2id {
        params: Params,
        salt: Vec<u8>,
        hash: Vec<u8>,
    },
    Pbkdf2Sha512 {
        iterations: NonZeroU32,
        salt: Vec<u8>,
        hash: Vec<u8>,
    },
    /// SHA-512 of password and salt: what `mosquitto_passwd` made before 2.0.
    SaltedSha512 {
        salt: Vec<u8>,
        hash: Vec<u8>,
    },
}

/// Fails unless someone may have this as a new password.
pub fn check_new(password: &str) -> Result<(), String> {
    if password.chars().count() < PASSWORD_CHARACTERS {
        return Err(format!("a password has {PASSWORD_CHARACTERS} characters at least"));
    }
    if password.len() > PASSWORD_BYTES {
        return Err(format!("a password has {PASSWORD_BYTES} bytes at most"));
    }
    Ok(())
}

/// The argon2id hash of a password, as a PHC string.
pub fn hash(password: &str, salt: &[u8; 16]) -> Result<String, String> {
    let params = Params::new(ARGON2_MEMORY, ARGON2_PASSES, 1, Some(HASH_BYTES)).map_err(|e| e.to_string())?;
    let mut out = [0; HASH_BYTES];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into(password.as_bytes(), salt, &mut out).map_err(|error| error.to_string())?;
    let (salt, out) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(out));
    Ok(format!("$argon2id$v=19$m={ARGON2_MEMORY},t={ARGON2_PASSES},p=1${salt}${out}"))
}

/// Fails unless this is a hash that can be verified.
pub fn check_hash(phc: &str) -> Result<(), String> {
    parse(phc).map(drop).ok_or_else(|| {
        "expected the hash of a password: $argon2id$v=19$m=..,t=..,p=..$salt$hash, $pbkdf2-sha512$i=..$salt$hash, or a \
         line's hash of mosquitto_passwd"
            .to_owned()
    })
}

/// Whether a hash is made as we make them; one that came from elsewhere is replaced at the next login.
#[must_use]
pub fn is_ours(phc: &str) -> bool {
    phc.starts_with(&format!("$argon2id$v=19$m={ARGON2_MEMORY},t={ARGON2_PASSES},p=1$"))
}

/// Whether this is the password. Takes the time of its hash, some 20 ms or more.
#[must_use]
pub fn verify(phc: &str, password: &[u8]) -> bool {
    if password.len() > PASSWORD_BYTES {
        return false;
    }
    match parse(phc) {
        Some(Hash::Argon2id { params, salt, hash }) => {
            let mut out = vec![0; hash.len()];
            let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
            argon2.hash_password_into(password, &salt, &mut out).is_ok() && same(&out, &hash)
        }
        Some(Hash::Pbkdf2Sha512 { iterations, salt, hash }) => {
            pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA512, iterations, &salt, password, &hash).is_ok()
        }
        Some(Hash::SaltedSha512 { salt, hash }) => {
            same(&Sha512::new().chain_update(password).chain_update(&salt).finalize(), &hash)
        }
        None => false,
    }
}

/// The hash of a line of a password file of Mosquitto, `$6$salt$hash` or `$7$iterations$salt$hash`, as a PHC string.
#[must_use]
pub fn from_mosquitto(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split('$').collect();
    let plain = |text: &str| STANDARD.decode(text).ok().map(|bytes| STANDARD_NO_PAD.encode(bytes));
    let phc = match parts.as_slice() {
        ["", "6", salt, hash] => format!("$mosquitto-sha512${}${}", plain(salt)?, plain(hash)?),
        ["", "7", iterations, salt, hash] => {
            format!("$pbkdf2-sha512$i={iterations}${}${}", plain(salt)?, plain(hash)?)
        }
        _ => return None,
    };
    parse(&phc).map(|_| phc)
}

fn parse(phc: &str) -> Option<Hash> {
    let parts: Vec<&str> = phc.split('$').collect();
    let bytes = |text: &str| {
        let bytes = STANDARD_NO_PAD.decode(text).ok()?;
        (1..=FOREIGN_BYTES).contains(&bytes.len()).then_some(bytes)
    };
    match parts.as_slice() {
        ["", "argon2id", "v=19", costs, salt, hash] => {
            let mut costs = costs.split(',');
            let mut cost = |name: &str| costs.next()?.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
            let (memory, passes, lanes): (u32, u32, u32) = (cost("m")?, cost("t")?, cost("p")?);
            let (salt, hash) = (bytes(salt)?, bytes(hash)?);
            if memory > ARGON2_MEMORY_MAX || passes > 16 || lanes > 16 || salt.len() < 8 || hash.len() < 16 {
                return None;
            }
            let params = Params::new(memory, passes, lanes, Some(hash.len())).ok()?;
            Some(Hash::Argon2id { params, salt, hash })
        }
        ["", "pbkdf2-sha512", costs, salt, hash] => {
            let iterations: u32 = costs.strip_prefix("i=")?.parse().ok()?;
            let iterations = NonZeroU32::new(iterations).filter(|i| i.get() <= ITERATIONS_MAX)?;
            let hash = bytes(hash).filter(|hash| hash.len() >= 16)?;
            Some(Hash::Pbkdf2Sha512 { iterations, salt: bytes(salt)?, hash })
        }
        ["", "mosquitto-sha512", salt, hash] => {
            let hash = bytes(hash).filter(|hash| hash.len() == 64)?;
            Some(Hash::SaltedSha512 { salt: bytes(salt)?, hash })
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_known_by_its_hash() {
        let phc = hash("correct horse", &[7; 16]).unwrap();
        assert!(is_ours(&phc) && check_hash(&phc).is_ok() && !phc.contains("horse"));
        assert!(verify(&phc, b"correct horse") && !verify(&phc, b"correct hors"));
        assert!(check_hash(NOBODY).is_ok() && is_ours(NOBODY) && !verify(NOBODY, b""));
    }

    #[test]
    fn hashes_of_mosquitto_are_verified() {
        // PBKDF2 and SHA-512 over the bytes that mosquitto_passwd says.
        let salt = b"123456789012";
        let mut derived = [0; 64];
        let iterations = NonZeroU32::new(101).unwrap();
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, iterations, salt, b"secret", &mut derived);
        let line = format!("$7$101${}${}", STANDARD.encode(salt), STANDARD.encode(derived));
        let phc = from_mosquitto(&line).unwrap();
        assert!(verify(&phc, b"secret") && !verify(&phc, b"Secret") && !is_ours(&phc));
        let old = Sha512::new().chain_update(b"secret").chain_update(salt).finalize();
        let phc = from_mosquitto(&format!("$6${}${}", STANDARD.encode(salt), STANDARD.encode(old))).unwrap();
        assert!(verify(&phc, b"secret") && !verify(&phc, b""));
        for text in ["", "secret", "$5$a$b", "$7$0$AAAA$AAAA", "$6$AAAA$AAAA", "$7$9999999999$AAAA$AAAA"] {
            assert_eq!(from_mosquitto(text), None, "{text}");
        }
    }

    #[test]
    fn a_hash_that_would_cost_too_much_is_refused() {
        let phc = NOBODY.replace("m=19456", "m=4194304");
        assert!(check_hash(&phc).is_err() && !verify(&phc, b"x"));
        assert!(check_new("seven77").is_err() && check_new("eight888").is_ok());
    }
}
