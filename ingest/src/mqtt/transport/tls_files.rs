//! The server's certificate, its key and the clients' authorities: PEM files that are read again when they change.
//!
//! # Invariants
//! - Files that cannot be used leave the ones in use in force; the log says why, once for each change.
//! - With new files nobody resumes a session of before: a client whose authority has gone shows its certificate again.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

use crate::mqtt::{ClientCertificates, TlsFiles};

/// By what a changed file is known: when it was changed, and its length.
type Stamp = Option<(SystemTime, u64)>;

/// The configurations of all listeners, from one reading of the files.
#[derive(Debug)]
pub(in crate::mqtt) struct TlsStore {
    files: TlsFiles,
    stamps: [Stamp; 3],
    configs: Configs,
}

#[derive(Debug)]
struct Configs {
    none: Arc<ServerConfig>,
    /// Those that ask for client certificates; only with authorities.
    optional: Option<Arc<ServerConfig>>,
    required: Option<Arc<ServerConfig>>,
}

impl TlsStore {
    /// Reads the files for the first time.
    pub(in crate::mqtt) fn load(files: &TlsFiles) -> Result<Self, String> {
        Ok(Self { stamps: stamps(files), configs: Configs::read(files)?, files: files.clone() })
    }

    /// What a listener that treats certificates like this needs.
    pub(in crate::mqtt) fn config(&self, certificates: ClientCertificates) -> Option<Arc<ServerConfig>> {
        match certificates {
            ClientCertificates::None => Some(Arc::clone(&self.configs.none)),
            ClientCertificates::Optional => self.configs.optional.clone(),
            ClientCertificates::Required => self.configs.required.clone(),
        }
    }

    /// Reads the files again where one has changed, or `anyway`. Connections that are open keep what they have.
    pub(in crate::mqtt) fn refresh(&mut self, anyway: bool) {
        let stamps = stamps(&self.files);
        if !anyway && stamps == self.stamps {
            return;
        }
        self.stamps = stamps;
        match Configs::read(&self.files) {
            Ok(configs) => {
                self.configs = configs;
                tracing::info!(certificate = %self.files.certificate.display(), "TLS certificate read again");
            }
            Err(error) => {
                tracing::error!(%error, "the TLS certificate in use stays: the files cannot be used")
            }
        }
    }
}

fn stamps(files: &TlsFiles) -> [Stamp; 3] {
    let stamp = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.modified().ok()?, found.len()))
    };
    [stamp(&files.certificate), stamp(&files.key), files.client_authorities.as_deref().and_then(stamp)]
}

impl Configs {
    fn read(files: &TlsFiles) -> Result<Self, String> {
        let chain = certificates("tls.cert", &files.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| {
            format!("tls.key {}: {error}; a private key in PEM is expected", files.key.display())
        })?;
        let provider = Arc::new(ring::default_provider());
        let none = config(&provider, &chain, &key, None)?;
        let Some(path) = &files.client_authorities else {
            return Ok(Self { none, optional: None, required: None });
        };
        let wrong = |error: &dyn std::fmt::Display| format!("tls.client_ca {}: {error}", path.display());
        let mut roots = RootCertStore::empty();
        for authority in certificates("tls.client_ca", path)? {
            roots.add(authority).map_err(|error| wrong(&error))?;
        }
        let roots = Arc::new(roots);
        let verifier =
            || WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let optional = verifier().allow_unauthenticated().build().map_err(|error| wrong(&error))?;
        let required = verifier().build().map_err(|error| wrong(&error))?;
        Ok(Self {
            none,
            optional: Some(config(&provider, &chain, &key, Some(optional))?),
            required: Some(config(&provider, &chain, &key, Some(required))?),
        })
    }
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("{key} {}: {error}", path.display());
    let read = CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))?;
    let found = read.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(&error))?;
    if found.is_empty() {
        return Err(wrong(&"it has no certificate in PEM (-----BEGIN CERTIFICATE-----)"));
    }
    Ok(found)
}

fn config(
    provider: &Arc<CryptoProvider>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    verifier: Option<Arc<dyn rustls::server::danger::ClientCertVerifier>>,
) -> Result<Arc<ServerConfig>, String> {
    let wrong = |error: rustls::Error| format!("tls.cert and tls.key: {error}");
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(wrong)?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain.to_vec(), key.clone_key()).map_err(wrong)?;
    // Sessions are resumed by tickets that clients keep: the server remembers nothing of them.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = ring::Ticketer::new().map_err(wrong)?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}
