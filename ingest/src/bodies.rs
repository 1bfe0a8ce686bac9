//! Bytes of requests with rows that are in memory at once, over all doors that take whole requests.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that one permit of the semaphore stands for.
const PERMIT_BYTES: usize = 1 << 10;

/// A bound on the bytes of requests. Clones share it.
#[derive(Clone, Debug)]
pub struct Bodies {
    bytes: usize,
    free: Arc<Semaphore>,
}

impl Bodies {
    /// At most so many bytes at once.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { bytes, free: Arc::new(Semaphore::new(bytes / PERMIT_BYTES)) }
    }

    /// How many bytes there may be at once.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Lets a request in while there is memory for it; one that is larger than all of it is let in alone.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let wanted = (bytes / PERMIT_BYTES + 1).min(self.bytes / PERMIT_BYTES);
        Arc::clone(&self.free).try_acquire_many_owned(u32::try_from(wanted).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_share_the_bytes_and_a_huge_one_is_alone() {
        let bodies = Bodies::new(10 * PERMIT_BYTES);
        let first = bodies.try_take(4 * PERMIT_BYTES);
        assert!(first.is_some() && bodies.try_take(9 * PERMIT_BYTES).is_none());
        assert!(bodies.clone().try_take(4 * PERMIT_BYTES).is_some());
        assert!(bodies.try_take(1 << 30).is_none());
        drop(first);
        let huge = bodies.try_take(1 << 30);
        assert!(huge.is_some() && bodies.try_take(0).is_none());
    }
}
