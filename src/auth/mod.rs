//! Who comes in: one place that every door asks.
//!
//! # Invariants
//! - No secret is logged, kept, or part of an error.
//! - What takes long, the hash of a password, is computed by the pool of `passwords.rs`, never by a door.

mod failures;
mod keys;
mod passwords;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use sonde_access::{
    By, Claim, Directory, First, Origin, Principal, Scram, User, digest, looks_like_jwt, password, same,
};
use sonde_engine::{Catalog, Engine, ObjectKind};
use sonde_ingest::mqtt::{Authenticate, Credentials, Ended, Later, Refusal};

use crate::config::{Anonymous, Config};
use failures::Failures;
pub(crate) use keys::JwtOptions;
use keys::Keys;
use passwords::Passwords;

/// The kinds of object that say who may do what.
const KINDS: [ObjectKind; 3] = [ObjectKind::Token, ObjectKind::User, ObjectKind::Role];

/// Someone who was recognised, or why not.
pub(crate) type Known = Result<Arc<Principal>, Refusal>;

/// Counters of logins.
#[derive(Debug, Default)]
pub(crate) struct Logins {
    /// Those that nobody was known by.
    pub(crate) failed: AtomicU64,
    /// Those that were put off: an address had failed too often, or too many passwords waited.
    pub(crate) put_off: AtomicU64,
}

/// Recognises whoever comes in.
pub(crate) struct Authenticator {
    engine: Engine,
    admin_digest: String,
    anonymous: Anonymous,
    insecure: bool,
    /// What the catalog says, at one version of it.
    directory: RwLock<(u64, Arc<Directory>)>,
    passwords: Passwords,
    failures: Failures,
    keys: Option<Keys>,
    pub(crate) logins: Logins,
}

/// What someone sent.
#[derive(Clone, Copy)]
struct Sent<'a> {
    peer: Option<IpAddr>,
    username: Option<&'a str>,
    secret: &'a str,
    claim: Claim<'a>,
}

/// A password that has to be hashed before it is known whose it is.
struct Unverified {
    peer: Option<IpAddr>,
    name: String,
    secret: String,
    /// The hash to compare with; one that no password has where there is no such user.
    hash: String,
    client_id: Option<String>,
    common_name: Option<String>,
}

/// How far a look at the credentials came.
enum Look {
    Done(Known),
    Hash(Unverified),
}

impl Authenticator {
    pub(crate) fn new(engine: Engine, admin_token: &str, config: &Config) -> crate::cli::Result<Arc<Self>> {
        let keys = config.jwt.as_ref().map(Keys::load).transpose()?;
        let passwords = Passwords::start().map_err(|error| {
            crate::cli::Failure::new(crate::cli::Exit::Io, format!("start logins: {error}"))
        })?;
        Ok(Arc::new(Self {
            engine,
            admin_digest: digest(admin_token),
            anonymous: config.anonymous,
            insecure: config.insecure,
            directory: RwLock::new((u64::MAX, Arc::default())),
            passwords,
            failures: Failures::default(),
            keys,
            logins: Logins::default(),
        }))
    }

    /// Another number whenever tokens, users or roles have changed.
    fn version_of(catalog: &Catalog) -> u64 {
        KINDS.iter().map(|kind| catalog.version(*kind)).sum()
    }

    fn directory(&self) -> Arc<Directory> {
        let catalog = self.engine.catalog();
        let version = Self::version_of(&catalog);
        {
            let known = self.directory.read();
            if known.0 == version {
                return Arc::clone(&known.1);
            }
        }
        let mut known = self.directory.write();
        if known.0 != version {
            let directory = Directory::new(
                &known.1,
                stored(&catalog, ObjectKind::Token).into_iter(),
                stored(&catalog, ObjectKind::User).into_iter(),
                stored(&catalog, ObjectKind::Role).into_iter(),
            );
            *known = (version, Arc::new(directory));
        }
        Arc::clone(&known.1)
    }

    /// Who sent this, as far as that is quickly known.
    fn look(&self, sent: Sent<'_>) -> Look {
        let unknown = || Look::Done(Err(Refusal::Unknown));
        // Nothing is nobody's secret, whatever a file or the catalog holds.
        if sent.secret.is_empty() || sent.secret.len() > sonde_access::limits::JWT_BYTES {
            return unknown();
        }
        if same(digest(sent.secret).as_bytes(), self.admin_digest.as_bytes()) {
            let admin = Principal::admin("admin");
            let admin = admin.on(sent.claim.client_id.unwrap_or_default(), sent.claim.common_name);
            return Look::Done(Ok(Arc::new(admin)));
        }
        let directory = self.directory();
        if let Some(bearer) = directory.token(sent.secret, sent.claim) {
            return Look::Done(Ok(Arc::new(bearer)));
        }
        if let Some(keys) = self.keys.as_ref().filter(|_| looks_like_jwt(sent.secret)) {
            return Look::Done(self.bearer(keys, &directory, sent));
        }
        let Some(name) = sent.username else { return unknown() };
        let user = directory.user(name);
        let hash = user.and_then(|user| user.stored.password.as_deref());
        if let (Some(user), Some(hash)) = (user, hash)
            && self.passwords.is_verified(name, hash, sent.secret)
        {
            return Look::Done(bound(&directory, user, By::Password, sent.claim));
        }
        if self.failures.is_slowed(sent.peer, name) {
            return Look::Done(Err(Refusal::Busy));
        }
        Look::Hash(Unverified {
            peer: sent.peer,
            name: name.to_owned(),
            secret: sent.secret.to_owned(),
            hash: hash.unwrap_or(password::NOBODY).to_owned(),
            client_id: sent.claim.client_id.map(str::to_owned),
            common_name: sent.claim.common_name.map(str::to_owned),
        })
    }

    fn bearer(&self, keys: &Keys, directory: &Directory, sent: Sent<'_>) -> Known {
        let now = u64::try_from(self.engine.now().as_nanos() / 1_000_000_000).unwrap_or_default();
        let claims = keys.verify(sent.secret, now).map_err(|why| {
            tracing::info!(peer = ?sent.peer, why, "a JSON Web Token is not accepted");
            Refusal::Unknown
        })?;
        if let Some(user) = directory.user(&claims.subject) {
            bound(directory, user, By::Key, sent.claim)?;
        }
        let name = claims.subject.clone();
        directory.bearer(claims, sent.claim).map(Arc::new).ok_or_else(|| {
            tracing::info!(peer = ?sent.peer, name, "the subject of a JSON Web Token is no user and has no role here");
            Refusal::Unknown
        })
    }

    /// Looks, counts, and answers now or through the pool.
    fn answer(self: &Arc<Self>, sent: Sent<'_>, reply: impl FnOnce(Known) + Send + 'static) -> Option<Known> {
        let unverified = match self.look(sent) {
            Look::Done(known) => return Some(self.counted(sent.peer, sent.username, known)),
            Look::Hash(unverified) => unverified,
        };
        let this = Arc::clone(self);
        let job = move || {
            let known = this.verify(&unverified);
            reply(this.counted(unverified.peer, Some(&unverified.name), known));
        };
        if self.passwords.submit(Box::new(job)) {
            return None;
        }
        Some(self.counted(sent.peer, sent.username, Err(Refusal::Busy)))
    }

    /// Hashes a password; runs in the pool.
    fn verify(&self, sent: &Unverified) -> Known {
        if !password::verify(&sent.hash, sent.secret.as_bytes()) {
            self.failures.failed(sent.peer, &sent.name);
            return Err(Refusal::Unknown);
        }
        // The user may have changed meanwhile.
        let directory = self.directory();
        let user = directory.user(&sent.name).ok_or(Refusal::Unknown)?;
        if user.stored.password.as_deref() != Some(&sent.hash) {
            return Err(Refusal::Unknown);
        }
        self.failures.succeeded(sent.peer, &sent.name);
        self.passwords.verified(&sent.name, &sent.hash, &sent.secret);
        if !password::is_ours(&sent.hash) {
            passwords::rehash(&self.engine, &sent.name, &sent.hash, &sent.secret);
        }
        let claim = Claim { client_id: sent.client_id.as_deref(), common_name: sent.common_name.as_deref() };
        bound(&directory, user, By::Password, claim)
    }

    fn counted(&self, peer: Option<IpAddr>, name: Option<&str>, known: Known) -> Known {
        match &known {
            Err(Refusal::Busy) => drop(self.logins.put_off.fetch_add(1, Ordering::Relaxed)),
            Err(why) => {
                self.logins.failed.fetch_add(1, Ordering::Relaxed);
                tracing::info!(?peer, name, ?why, "a login failed");
            }
            Ok(_) => {}
        }
        known
    }

    /// The principal of an HTTP or gRPC request, by its `Authorization` header.
    pub(crate) async fn header(self: &Arc<Self>, header: Option<&str>, peer: Option<IpAddr>) -> Known {
        if self.insecure {
            return Ok(Arc::new(Principal::admin("insecure")));
        }
        let (scheme, rest) = header.and_then(|header| header.split_once(' ')).ok_or(Refusal::Unknown)?;
        let rest = rest.trim();
        let (reply, answer) = futures::channel::oneshot::channel();
        // Whoever asked may have gone.
        let reply = move |known| drop(reply.send(known));
        let known = if scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("token") {
            self.answer(Sent { peer, username: None, secret: rest, claim: Claim::default() }, reply)
        } else if scheme.eq_ignore_ascii_case("basic") {
            let pair = STANDARD.decode(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = pair.ok_or(Refusal::Unknown)?;
            let (name, secret) = pair.split_once(':').ok_or(Refusal::Unknown)?;
            self.answer(Sent { peer, username: Some(name), secret, claim: Claim::default() }, reply)
        } else {
            Some(Err(Refusal::Unknown))
        };
        match known {
            Some(known) => known,
            None => answer.await.unwrap_or(Err(Refusal::Busy)),
        }
    }

    /// Whether a client without credentials may come in.
    fn lets_in(&self, peer: IpAddr) -> bool {
        let is_loopback = match peer {
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(v6.is_loopback(), |v4| v4.is_loopback()),
            IpAddr::V4(v4) => v4.is_loopback(),
        };
        match self.anonymous {
            Anonymous::Always => true,
            Anonymous::Loopback => is_loopback,
            Anonymous::Never => false,
        }
    }

    /// A client without a password: by its certificate, or by nothing.
    fn without_secret(&self, credentials: &Credentials<'_>) -> Known {
        let claim = claim(credentials);
        if let Some(certificate) = credentials.certificate {
            let names = certificate.common_name.iter().chain(&certificate.names).map(String::as_str);
            let directory = self.directory();
            if let Some(user) = directory.user_of_certificate(names) {
                return bound(&directory, user, By::Certificate, claim);
            }
        }
        if !self.lets_in(credentials.peer) {
            return Err(Refusal::Unknown);
        }
        Ok(Arc::new(Principal::anonymous_device().on(credentials.client_id, claim.common_name)))
    }
}

fn claim<'a>(credentials: &Credentials<'a>) -> Claim<'a> {
    let certificate = credentials.certificate;
    Claim {
        client_id: Some(credentials.client_id),
        common_name: certificate.and_then(|certificate| certificate.common_name.as_deref()),
    }
}

/// The user, if it may use this client id; the doors without client ids ask for none.
fn bound(directory: &Directory, user: &User, by: By, claim: Claim<'_>) -> Known {
    if claim.client_id.is_some_and(|id| !user.stored.may_be(&user.name, id)) {
        return Err(Refusal::ClientId);
    }
    Ok(Arc::new(directory.principal(user, by, claim)))
}

/// What the catalog has of a kind, by name.
fn stored<T: DeserializeOwned>(catalog: &Catalog, kind: ObjectKind) -> Vec<(String, T)> {
    let read = |object: &Arc<sonde_engine::Object>| match serde_json::from_str(&object.text) {
        Ok(stored) => Some((object.name.clone(), stored)),
        Err(error) => {
            tracing::warn!(kind = ?object.kind, name = object.name, %error, "the catalog's entry cannot be read and is not accepted");
            None
        }
    };
    catalog.objects(kind).filter_map(read).collect()
}

/// The MQTT listener's view.
pub(crate) struct MqttDoor(pub(crate) Arc<Authenticator>);

impl Authenticate for MqttDoor {
    fn recognise(&self, credentials: &Credentials<'_>, later: Later) -> Option<Known> {
        let who = &self.0;
        if who.insecure {
            return Some(Ok(Arc::new(Principal::anonymous_device().on(credentials.client_id, None))));
        }
        let Some(password) = credentials.password else {
            let known = who.without_secret(credentials);
            return Some(who.counted(Some(credentials.peer), credentials.username, known));
        };
        let Ok(secret) = std::str::from_utf8(password) else {
            return Some(who.counted(Some(credentials.peer), credentials.username, Err(Refusal::Unknown)));
        };
        let sent = Sent {
            peer: Some(credentials.peer),
            username: credentials.username,
            secret,
            claim: claim(credentials),
        };
        who.answer(sent, move |known| later.answer(known))
    }

    fn begin_scram(&self, peer: IpAddr, first: &[u8]) -> Result<(Scram, Vec<u8>), Refusal> {
        let who = &self.0;
        let first = First::parse(first).ok_or(Refusal::Unknown)?;
        if who.failures.is_slowed(Some(peer), &first.name) {
            who.logins.put_off.fetch_add(1, Ordering::Relaxed);
            return Err(Refusal::Busy);
        }
        let keys = who.directory().user(&first.name).and_then(|user| user.stored.scram.clone());
        let mut random = [0; 18];
        getrandom::fill(&mut random).map_err(|error| {
            tracing::error!(%error, "no random numbers for a login");
            Refusal::Busy
        })?;
        // Unknown names get salts that nobody else can compute, and that stay over restarts.
        Ok(Scram::start(first, keys, who.admin_digest.as_bytes(), &random))
    }

    fn end_scram(&self, credentials: &Credentials<'_>, scram: &Scram, last: &[u8]) -> Result<Ended, Refusal> {
        let who = &self.0;
        let ended = scram.finish(last).ok_or(Refusal::Unknown).and_then(|told| {
            let directory = who.directory();
            let user = directory.user(scram.name()).ok_or(Refusal::Unknown)?;
            // The password may have changed meanwhile.
            if !user.stored.scram.as_ref().is_some_and(|keys| scram.is_of(keys)) {
                return Err(Refusal::Unknown);
            }
            Ok((bound(&directory, user, By::Password, claim(credentials))?, told))
        });
        match &ended {
            Ok(_) => who.failures.succeeded(Some(credentials.peer), scram.name()),
            Err(why) => {
                who.failures.failed(Some(credentials.peer), scram.name());
                drop(who.counted(Some(credentials.peer), Some(scram.name()), Err(*why)));
            }
        }
        ended
    }

    fn version(&self) -> u64 {
        // Both only grow.
        let keys = self.0.keys.as_ref().map_or(0, Keys::version);
        Authenticator::version_of(&self.0.engine.catalog()) + keys
    }

    fn renew(&self, principal: &Principal, client_id: Option<&str>) -> Option<Arc<Principal>> {
        let is_key = |key| self.0.keys.as_ref().is_some_and(|keys| keys.has(key));
        if principal.signing_key().is_some_and(|key| !is_key(key)) {
            return None;
        }
        self.0.directory().renew(principal, client_id).map(Arc::new)
    }

    fn rights_of(&self, principal: &Principal) -> Option<Arc<Principal>> {
        let lets_nobody_in = self.0.anonymous == Anonymous::Never && !self.0.insecure;
        if *principal.origin() == Origin::Anonymous && lets_nobody_in {
            return None;
        }
        self.0.directory().rights_of(principal).map(Arc::new)
    }
}
