//! Whether the engine may write: a disk that failed once stays failed.

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
            tracing::error!(%error, "storage failed: writes are refused until a restart");
            *failed = Some(error.to_string());
        }
    }
}
