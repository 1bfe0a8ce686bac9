//! The keys of `auth.jwks`, read again when the file changes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use sonde_access::{Claims, Expected, JwtKeys};

use crate::cli::{Exit, Failure, Result};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Bytes of the file at most.
const FILE_BYTES: u64 = 1 << 20;

/// Where the keys are, and what a token must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JwtOptions {
    pub(crate) jwks: PathBuf,
    pub(crate) expected: Expected,
}

/// The keys as the file has them, and how often they were read.
struct Held {
    keys: RwLock<JwtKeys>,
    version: AtomicU64,
}

/// The keys.
pub(super) struct Keys {
    held: Arc<Held>,
    expected: Expected,
}

fn read(options: &JwtOptions) -> std::result::Result<(JwtKeys, Option<SystemTime>), String> {
    let meta = std::fs::metadata(&options.jwks).map_err(|error| error.to_string())?;
    if meta.len() > FILE_BYTES {
        return Err(format!("it has {} bytes; expected {FILE_BYTES} at most", meta.len()));
    }
    let text = std::fs::read_to_string(&options.jwks).map_err(|error| error.to_string())?;
    Ok((JwtKeys::parse(&text)?, meta.modified().ok()))
}

impl Keys {
    pub(super) fn load(options: &JwtOptions) -> Result<Self> {
        let wrong =
            |why: String| Failure::new(Exit::Config, format!("auth.jwks {}: {why}", options.jwks.display()));
        let (keys, read_at) = read(options).map_err(wrong)?;
        let held = Arc::new(Held { keys: RwLock::new(keys), version: AtomicU64::new(0) });
        let watched = Arc::downgrade(&held);
        let options = options.clone();
        let expected = options.expected.clone();
        let watch = move || {
            let mut known = read_at;
            loop {
                std::thread::sleep(LOOK);
                let Some(held) = watched.upgrade() else { return };
                let changed = std::fs::metadata(&options.jwks).and_then(|meta| meta.modified()).ok();
                if changed == known {
                    continue;
                }
                known = changed;
                match read(&options) {
                    Ok((new, at)) => {
                        known = at;
                        *held.keys.write() = new;
                        held.version.fetch_add(1, Ordering::Release);
                        tracing::info!(path = %options.jwks.display(), "auth.jwks was read again");
                    }
                    Err(why) => {
                        tracing::warn!(path = %options.jwks.display(), why, "auth.jwks cannot be read; the keys of before stay");
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("sonde-jwks".into()).spawn(watch);
        thread.map_err(|error| Failure::new(Exit::Io, format!("watch auth.jwks: {error}")))?;
        Ok(Self { held, expected })
    }

    pub(super) fn verify(&self, token: &str, now: u64) -> std::result::Result<Claims, &'static str> {
        self.held.keys.read().verify(token, now, &self.expected)
    }

    /// Whether a key that has signed a token is still one.
    pub(super) fn has(&self, key: u64) -> bool {
        self.held.keys.read().has(key)
    }

    /// Another number whenever the file was read.
    pub(super) fn version(&self) -> u64 {
        self.held.version.load(Ordering::Acquire)
    }
}
