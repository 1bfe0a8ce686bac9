//! The last committed sequence number, and who waits for the next.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use sonde_storage_format::SeqNo;

#[derive(Debug)]
pub(super) struct Published {
    last: Mutex<SeqNo>,
    changed: Condvar,
}

impl Published {
    pub(super) fn new(last: SeqNo) -> Self {
        Self { last: Mutex::new(last), changed: Condvar::new() }
    }

    pub(super) fn set(&self, last: SeqNo) {
        *self.last.lock() = last;
        self.changed.notify_all();
    }

    pub(super) fn get(&self) -> SeqNo {
        *self.last.lock()
    }

    /// Waits until something behind `after` is committed, but no longer than `patience`; returns the last.
    pub(super) fn wait(&self, after: SeqNo, patience: Duration) -> SeqNo {
        let mut last = self.last.lock();
        let behind = |last: &mut SeqNo| *last <= after;
        self.changed.wait_while_for(&mut last, behind, patience);
        *last
    }
}
