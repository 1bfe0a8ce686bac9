//! Who comes in: one place that every door asks.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::RwLock;
use sonde_access::{Principal, StoredToken, digest, same};
use sonde_engine::{Engine, ObjectKind};
use sonde_ingest::mqtt::Credentials;

use crate::config::Anonymous;

/// Recognises tokens.
pub(crate) struct Authenticator {
    engine: Engine,
    admin_digest: String,
    anonymous: Anonymous,
    insecure: bool,
    /// The catalog's tokens at one version.
    tokens: RwLock<(u64, Vec<(String, StoredToken)>)>,
}

impl Authenticator {
    pub(crate) fn new(engine: Engine, admin_token: &str, anonymous: Anonymous, insecure: bool) -> Self {
        let admin_digest = digest(admin_token);
        Self { engine, admin_digest, anonymous, insecure, tokens: RwLock::new((u64::MAX, Vec::new())) }
    }

    /// The principal of a token.
    pub(crate) fn token(&self, token: &str) -> Option<Arc<Principal>> {
        // Nothing is nobody's secret, whatever a file or the catalog holds.
        if token.is_empty() {
            return None;
        }
        let wanted = digest(token);
        if same(wanted.as_bytes(), self.admin_digest.as_bytes()) {
            return Some(Arc::new(Principal::admin("admin")));
        }
        self.refresh();
        let tokens = self.tokens.read();
        let found = tokens.1.iter().find(|(_, stored)| same(stored.digest.as_bytes(), wanted.as_bytes()));
        found.map(|(name, stored)| Arc::new(Principal::new(name, stored.grants.clone())))
    }

    fn refresh(&self) {
        let catalog = self.engine.catalog();
        let version = catalog.version(ObjectKind::Token);
        if self.tokens.read().0 == version {
            return;
        }
        let read = |object: &Arc<sonde_engine::Object>| match serde_json::from_str(&object.text) {
            Ok(stored) => Some((object.name.clone(), stored)),
            Err(error) => {
                tracing::warn!(token = object.name, %error, "a token of the catalog cannot be read and is not accepted");
                None
            }
        };
        *self.tokens.write() = (version, catalog.objects(ObjectKind::Token).filter_map(read).collect());
    }

    /// The principal of an HTTP or gRPC request, by its `Authorization` header.
    pub(crate) fn header(&self, header: Option<&str>) -> Option<Arc<Principal>> {
        if self.insecure {
            return Some(Arc::new(Principal::admin("insecure")));
        }
        let (scheme, token) = header?.split_once(' ')?;
        let known = scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("token");
        if known { self.token(token.trim()) } else { None }
    }

    /// The principal of an MQTT client: its password is a token.
    pub(crate) fn mqtt(&self, credentials: &Credentials<'_>) -> Option<Arc<Principal>> {
        if self.insecure {
            return Some(Arc::new(Principal::anonymous_device()));
        }
        if let Some(password) = credentials.password {
            return self.token(std::str::from_utf8(password).ok()?);
        }
        let is_loopback = match credentials.peer {
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(v6.is_loopback(), |v4| v4.is_loopback()),
            IpAddr::V4(v4) => v4.is_loopback(),
        };
        let allowed = match self.anonymous {
            Anonymous::Always => true,
            Anonymous::Loopback => is_loopback,
            Anonymous::Never => false,
        };
        allowed.then(|| Arc::new(Principal::anonymous_device()))
    }
}
