//! Bytes of batches between their makers and the memtable: a bound on memory, where the number of batches is none.
//!
//! # Invariants
//! - What waits for the writer, or is being committed, has at most so many bytes; a batch that is larger by itself waits
//!   until nothing else does.
//! - Nobody waits for a writer that is gone.

use parking_lot::{Condvar, Mutex};

/// Counts the bytes that wait for the writer.
#[derive(Debug)]
pub(crate) struct QueuedBytes {
    limit: usize,
    state: Mutex<Queued>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queued {
    bytes: usize,
    /// The writer is gone: there is nothing to wait for.
    closed: bool,
    /// Memory is short: one batch at a time.
    tight: bool,
}

impl Queued {
    fn has_room(&self, bytes: usize, limit: usize) -> bool {
        self.closed || self.bytes == 0 || (!self.tight && self.bytes + bytes <= limit)
    }
}

impl QueuedBytes {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits for room.
    pub(crate) fn take(&self, bytes: usize) {
        let mut queued = self.state.lock();
        self.changed.wait_while(&mut queued, |queued| !queued.has_room(bytes, self.limit));
        queued.bytes += bytes;
    }

    /// Takes room if there is some.
    pub(crate) fn try_take(&self, bytes: usize) -> bool {
        let mut queued = self.state.lock();
        let room = queued.has_room(bytes, self.limit);
        if room {
            queued.bytes += bytes;
        }
        room
    }

    /// Gives room back.
    pub(crate) fn give(&self, bytes: usize) {
        let mut queued = self.state.lock();
        queued.bytes = queued.bytes.saturating_sub(bytes);
        self.changed.notify_all();
    }

    /// Whether batches go one at a time from here on.
    pub(crate) fn set_tight(&self, tight: bool) {
        self.state.lock().tight = tight;
        self.changed.notify_all();
    }

    /// Wakes everybody for good.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_bounded_and_one_batch_always_fits() {
        let queued = QueuedBytes::new(10);
        assert!(queued.try_take(100), "nothing else waits");
        assert!(!queued.try_take(1));
        queued.give(100);
        assert!(queued.try_take(4) && queued.try_take(6) && !queued.try_take(1));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| queued.take(8));
            queued.give(4);
            queued.give(6);
            waiter.join().unwrap_or_else(|_| panic!("the waiter"));
        });
        assert!(!queued.try_take(3));
        queued.give(8);
        queued.set_tight(true);
        assert!(queued.try_take(1) && !queued.try_take(1));
        std::thread::scope(|scope| {
            scope.spawn(|| queued.take(8));
            queued.close();
        });
    }
}
