//! By what strangers say who they are: SCRAM's messages, JSON Web Tokens.
//!
//! # Invariants
//! - What hides behind a signature or a proof is reached, too: the targets hold the keys of whoever is asked for.

use std::sync::OnceLock;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use ring::signature::{Ed25519KeyPair, KeyPair};
use ring::{digest, hmac, pbkdf2};
use sonde_access::{Expected, First, JwtKeys, Scram, ScramKeys, limits, looks_like_jwt};

use crate::alloc;

const PASSWORD: &str = "pencil";
const SALT: [u8; 16] = [7; 16];
/// Seconds since the epoch at which tokens are looked at.
const NOW: u64 = 1000;

fn mac(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
}

/// The two messages of a client, one line each. Whatever the first one is, one who has the password comes in behind it, and
/// nobody else.
pub fn scram(data: &[u8]) {
    static KEYS: OnceLock<(ScramKeys, [u8; 32])> = OnceLock::new();
    let (keys, salted) = KEYS.get_or_init(|| {
        let iterations = limits::SCRAM_ITERATIONS.try_into().expect("more than none");
        let mut salted = [0; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &SALT, PASSWORD.as_bytes(), &mut salted);
        (ScramKeys::of(PASSWORD, &SALT).expect("printable"), salted)
    });
    alloc::bounded(|| {
        let mut lines = data.splitn(2, |byte| *byte == b'\n');
        let (begun, last) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let Some(first) = First::parse(begun) else { return };
        assert!(begun.len() <= limits::SCRAM_BYTES && !first.name.is_empty() && !first.name.contains('\0'));
        let (known, challenge) = Scram::start(first.clone(), Some(keys.clone()), b"secret", &[1; 18]);
        let (ghost, unknown) = Scram::start(first.clone(), None, b"secret", &[1; 18]);
        assert_eq!(challenge.len(), unknown.len(), "the answer tells whether there is such a name");
        assert_eq!(known.name(), first.name);
        // A proof of what nobody holds: no bytes have one.
        assert_eq!(known.finish(last), None);
        assert_eq!(ghost.finish(last), None);
        let challenge = String::from_utf8(challenge).expect("text");
        let right = prove(begun, &challenge, salted);
        // What the client says may leave no room for its proof.
        let fits = right.len() <= limits::SCRAM_BYTES;
        assert_eq!(known.finish(right.as_bytes()).is_some(), fits);
        assert_eq!(ghost.finish(right.as_bytes()), None);
        let wrong = right.replacen("c=", "c=A", 1);
        assert_eq!(known.finish(wrong.as_bytes()), None);
    });
}

/// The client's last message (RFC 5802, section 3), written down without the server's code.
fn prove(first: &[u8], challenge: &str, salted: &[u8; 32]) -> String {
    let first = std::str::from_utf8(first).expect("what parses is text");
    let bare = first.splitn(3, ',').nth(2).expect("what parses has three parts");
    let gs2 = &first[..first.len() - bare.len()];
    let nonce = challenge.split(',').next().expect("a challenge begins with the nonce");
    let without_proof = format!("c={},{nonce}", BASE64_STANDARD.encode(gs2));
    let client_key = mac(salted, b"Client Key");
    let stored_key = digest::digest(&digest::SHA256, &client_key);
    let signature = mac(stored_key.as_ref(), format!("{bare},{challenge},{without_proof}").as_bytes());
    let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
    format!("{without_proof},p={}", BASE64_STANDARD.encode(proof))
}

/// A token as it is; and its first two lines as header and claims of one with a right signature.
pub fn jwt(data: &[u8]) {
    static KEYS: OnceLock<(JwtKeys, Ed25519KeyPair)> = OnceLock::new();
    let (keys, pair) = KEYS.get_or_init(|| {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("32 bytes");
        let x = BASE64_URL_SAFE_NO_PAD.encode(pair.public_key());
        let jwks = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"1","x":"{x}"}}]}}"#);
        (JwtKeys::parse(&jwks).expect("a JWKS"), pair)
    });
    alloc::bounded(|| {
        let (audience, roles, tenant) = (Some("us".into()), Some("roles".into()), Some("tenant".into()));
        let expected = Expected { issuer: None, audience, roles, tenant };
        if let Ok(text) = std::str::from_utf8(data) {
            let _ = looks_like_jwt(text);
            assert!(keys.verify(text, NOW, &expected).is_err(), "nobody has signed this");
        }
        let mut lines = data.splitn(2, |byte| *byte == b'\n');
        let (header, claims) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let encode = |part: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(part);
        let signed = format!("{}.{}", encode(header), encode(claims));
        let token = format!("{signed}.{}", encode(pair.sign(signed.as_bytes()).as_ref()));
        let Ok(found) = keys.verify(&token, NOW, &expected) else { return };
        assert!(token.len() <= limits::JWT_BYTES && found.expires > NOW);
        assert!(sonde_access::check_name(&found.subject).is_ok(), "{:?}", found.subject);
        let other = format!("{signed}.{}", encode(&[0; 64]));
        assert!(keys.verify(&other, NOW, &expected).is_err(), "any signature will do");
        // For somebody else, it is none.
        let elsewhere = Expected { audience: Some("them".into()), ..expected };
        let both = claims.windows(4).any(|four| four == b"them") || claims.contains(&b'\\');
        assert!(both || keys.verify(&token, NOW, &elsewhere).is_err(), "for whom it is does not matter");
    });
}
