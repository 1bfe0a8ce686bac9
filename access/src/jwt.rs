//! JSON Web Tokens (RFC 7519) that others sign: RS256, ES256 and EdDSA over the keys of a JWKS (RFC 7517).
//!
//! # Invariants
//! - The algorithm is the key's, never only the token's: `none` and HMAC do not exist here.
//! - A token without an end, or for someone else, is none.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;
use serde_json::Value;

use crate::limits::{JWT_BYTES, JWT_KEYS, JWT_LEEWAY};
use crate::token::fingerprint;

enum Public {
    Rs256 {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point.
    Es256(Vec<u8>),
    EdDsa(Vec<u8>),
}

impl Public {
    fn algorithm(&self) -> &'static str {
        match self {
            Self::Rs256 { .. } => "RS256",
            Self::Es256(_) => "ES256",
            Self::EdDsa(_) => "EdDSA",
        }
    }

    fn fingerprint(&self) -> u64 {
        match self {
            Self::Rs256 { n, e } => fingerprint(&[&(n.len() as u64).to_le_bytes(), &n[..], e].concat()),
            Self::Es256(point) => fingerprint(point),
            Self::EdDsa(key) => fingerprint(key),
        }
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let done = match self {
            Self::Rs256 { n, e } => RsaPublicKeyComponents { n, e }.verify(
                &signature::RSA_PKCS1_2048_8192_SHA256,
                message,
                signature,
            ),
            Self::Es256(point) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            Self::EdDsa(key) => UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature),
        };
        done.is_ok()
    }
}

/// Public keys, by which tokens are checked.
pub struct JwtKeys(Vec<(Option<String>, Public)>);

impl std::fmt::Debug for JwtKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JwtKeys({})", self.0.len())
    }
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

/// What a token must say besides its signature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Who signs; anyone with one of the keys where it is missing.
    pub issuer: Option<String>,
    /// For whom it is; where this is missing, a token for someone in particular is refused.
    pub audience: Option<String>,
    /// The claim that has the roles.
    pub roles: Option<String>,
    /// The claim that has the tenant.
    pub tenant: Option<String>,
}

/// What a token that was accepted says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Who it is.
    pub subject: String,
    /// Roles that it names.
    pub roles: Vec<String>,
    /// Who has issued it, if it says so.
    pub issuer: Option<String>,
    /// The tenant that it names.
    pub tenant: Option<String>,
    /// When it ends, in seconds since the epoch.
    pub expires: u64,
    /// Which key has signed it: see `JwtKeys::has`.
    pub key: u64,
}

/// Whether a secret has the form of a token: three parts, of which the first begins as a JSON object does.
#[must_use]
pub fn looks_like_jwt(secret: &str) -> bool {
    secret.starts_with("eyJ") && secret.split('.').count() == 3
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

impl JwtKeys {
    /// Reads a JWKS. Keys for encryption, and of other algorithms, are passed over.
    pub fn parse(json: &str) -> Result<Self, String> {
        let set: Jwks = serde_json::from_str(json).map_err(|error| format!("not a JWKS: {error}"))?;
        if set.keys.len() > JWT_KEYS {
            return Err(format!("{} keys; expected {JWT_KEYS} at most", set.keys.len()));
        }
        let usable = set.keys.into_iter().filter_map(|jwk| Some((jwk.kid.clone(), public(&jwk)?)));
        let keys: Vec<_> = usable.collect();
        if keys.is_empty() {
            return Err("no key for RS256, ES256 or EdDSA".into());
        }
        Ok(Self(keys))
    }

    /// What a token says, if it is one of these keys', valid at `now` (seconds since the epoch), and as expected; else why
    /// not, without a word of the token.
    pub fn verify(&self, token: &str, now: u64, expected: &Expected) -> Result<Claims, &'static str> {
        if token.len() > JWT_BYTES {
            return Err("too long");
        }
        let (signed, signature) = token.rsplit_once('.').ok_or("malformed")?;
        let (header, claims) = signed.split_once('.').ok_or("malformed")?;
        let signature = decoded(signature).ok_or("malformed")?;
        let header: Header =
            decoded(header).and_then(|json| serde_json::from_slice(&json).ok()).ok_or("malformed")?;
        if header.crit.is_some() {
            return Err("it asks for what is not known (crit)");
        }
        let mut fitting = self.0.iter().filter(|(kid, key)| {
            key.algorithm() == header.alg && (header.kid.is_none() || *kid == header.kid)
        });
        let key = fitting.find(|(_, key)| key.verifies(signed.as_bytes(), &signature));
        let (_, key) = key.ok_or("no key of auth.jwks has signed it")?;
        let claims: Value =
            decoded(claims).and_then(|json| serde_json::from_slice(&json).ok()).ok_or("malformed")?;
        check(&claims, now, expected).map(|claims| Claims { key: key.fingerprint(), ..claims })
    }

    /// Whether the key is one of these that has signed a token once.
    #[must_use]
    pub fn has(&self, key: u64) -> bool {
        self.0.iter().any(|(_, known)| known.fingerprint() == key)
    }
}

fn public(jwk: &Jwk) -> Option<Public> {
    if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
        return None;
    }
    let part = |text: &Option<String>| decoded(text.as_deref()?);
    let key = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => Public::Rs256 { n: part(&jwk.n)?, e: part(&jwk.e)? },
        ("EC", Some("P-256")) => {
            let (x, y) = (part(&jwk.x)?, part(&jwk.y)?);
            if x.len() != 32 || y.len() != 32 {
                return None;
            }
            Public::Es256([&[4][..], &x, &y].concat())
        }
        ("OKP", Some("Ed25519")) => Public::EdDsa(part(&jwk.x)?),
        _ => return None,
    };
    jwk.alg.as_deref().is_none_or(|alg| alg == key.algorithm()).then_some(key)
}

fn check(claims: &Value, now: u64, expected: &Expected) -> Result<Claims, &'static str> {
    // NumericDate may have a fraction (RFC 7519, section 2).
    let time =
        |name: &str| claims.get(name).map(|value| value.as_f64().filter(|t| *t >= 0.0).map(|t| t as u64));
    let expires = time("exp").flatten().ok_or("it has no end (exp)")?;
    if expires <= now {
        return Err("its time is over (exp)");
    }
    match time("nbf") {
        Some(None) => return Err("malformed"),
        Some(Some(begin)) if begin > now + JWT_LEEWAY => return Err("its time has not come (nbf)"),
        _ => {}
    }
    let issuer = claims.get("iss").and_then(Value::as_str);
    if expected.issuer.is_some() && issuer != expected.issuer.as_deref() {
        return Err("it is not from auth.issuer (iss)");
    }
    let is_for = |wanted: &str| match claims.get("aud") {
        Some(Value::Array(many)) => many.iter().any(|one| one.as_str() == Some(wanted)),
        Some(one) => one.as_str() == Some(wanted),
        None => false,
    };
    let is_mine = expected.audience.as_deref().map_or(claims.get("aud").is_none(), is_for);
    if !is_mine {
        return Err("it is not for auth.audience (aud)");
    }
    let subject = claims.get("sub").and_then(Value::as_str).filter(|name| crate::check_name(name).is_ok());
    let subject = subject.ok_or("it has no subject (sub)")?.to_owned();
    let roles = expected.roles.as_deref().and_then(|name| claims.get(name));
    let roles = match roles {
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(Value::String(words)) => words.split_whitespace().map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    let tenant = expected.tenant.as_deref().and_then(|name| claims.get(name)?.as_str());
    let (issuer, tenant) = (issuer.map(str::to_owned), tenant.map(str::to_owned));
    Ok(Claims { subject, roles, issuer, tenant, expires, key: 0 })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use ring::signature::{Ed25519KeyPair, KeyPair};

    use super::*;

    fn pair() -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap()
    }

    fn keys() -> JwtKeys {
        let x = URL_SAFE_NO_PAD.encode(pair().public_key());
        let jwks = format!(
            r#"{{"keys":[{{"kty":"oct","k":"AAAA"}},{{"kty":"OKP","crv":"Ed25519","kid":"1","x":"{x}"}}]}}"#
        );
        JwtKeys::parse(&jwks).unwrap()
    }

    fn signed(header: &str, claims: &str) -> String {
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(pair().sign(text.as_bytes()));
        format!("{text}.{signature}")
    }

    const HEADER: &str = r#"{"alg":"EdDSA","kid":"1"}"#;

    fn told(header: &str, claims: &str) -> Result<Claims, &'static str> {
        let expected = Expected {
            issuer: Some("us".into()),
            audience: Some("sonde".into()),
            roles: Some("roles".into()),
            tenant: Some("org".into()),
        };
        keys().verify(&signed(header, claims), 1000, &expected)
    }

    #[test]
    fn a_token_says_who_and_until_when() {
        let claims = r#"{"sub":"pump","exp":1001.5,"nbf":1030,"iss":"us","aud":["x","sonde"],"roles":["a","b"],"org":"acme"}"#;
        let claims = told(HEADER, claims).unwrap();
        assert_eq!((claims.subject.as_str(), claims.expires), ("pump", 1001));
        assert_eq!(claims.issuer.as_deref(), Some("us"));
        assert!(keys().has(claims.key) && !keys().has(claims.key + 1));
        assert_eq!((claims.roles, claims.tenant.as_deref()), (vec!["a".into(), "b".into()], Some("acme")));
    }

    #[test]
    fn what_is_not_as_expected_is_refused() {
        let good = r#"{"sub":"pump","exp":1001,"iss":"us","aud":"sonde"}"#;
        assert!(told(HEADER, good).is_ok());
        for (from, to) in [
            ("\"exp\":1001", "\"exp\":1000"),
            ("\"exp\":1001", "\"expires\":1001"),
            ("\"iss\":\"us\"", "\"iss\":\"them\""),
            ("\"aud\":\"sonde\"", "\"aud\":\"x\""),
            ("\"aud\":\"sonde\"", "\"nbf\":2000,\"aud\":\"sonde\""),
            ("\"sub\":\"pump\"", "\"sub\":\"\""),
        ] {
            assert!(told(HEADER, &good.replace(from, to)).is_err(), "{to}");
        }
        for header in [
            r#"{"alg":"none"}"#,
            r#"{"alg":"HS256"}"#,
            r#"{"alg":"ES256"}"#,
            r#"{"alg":"EdDSA","kid":"2"}"#,
            r#"{"alg":"EdDSA","crit":["x"]}"#,
        ] {
            assert!(told(header, good).is_err(), "{header}");
        }
        let token = signed(HEADER, good);
        let (signed, _) = token.rsplit_once('.').unwrap();
        for bad in
            [signed, &format!("{signed}."), &format!("{signed}.AAAA"), &token.replace("pump", "x"), "a.b.c"]
        {
            assert!(keys().verify(bad, 1000, &Expected::default()).is_err(), "{bad}");
        }
        // For someone in particular, and we do not know who we are.
        assert!(keys().verify(&token, 1000, &Expected::default()).is_err());
    }
}
