//! Whether the engine may write: a disk that failed once stays failed, and so does an engine that lost a thread.

use parking_lot::RwLock;

use crate::error::{Error, Result};

/// Latches the first failure.
#[derive(Debug, Default)]
pub(crate) struct Health(RwLock<Option<String>>);

impl Health {
    pub(crate) fn check(&self) -> Result<()> {
        match self.0.read().as_ref() {
            None => Ok(()),
            Some(why) => Err(Error::Failed(why.clone())),
        }
    }

    pub(crate) fn fail(&self, error: &Error) {
        let mut failed = self.0.write();
        if failed.is_none() {
            let why = match error {
                Error::Failed(why) => why.clone(),
                other => other.to_string(),
            };
            tracing::error!(why, "the engine failed: writes are refused until a restart");
            *failed = Some(why);
        }
    }
}

/// Stands on the stack of a thread: should the thread panic, the engine has failed, because what the thread was there
/// for is not done any more.
#[derive(Debug)]
pub(crate) struct Watch<'a> {
    health: &'a Health,
    thread: &'static str,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(health: &'a Health, thread: &'static str) -> Self {
        Self { health, thread }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let why = format!("thread {} panicked, which is a bug; its message went to stderr", self.thread);
            self.health.fail(&Error::Failed(why));
        }
    }
}
