//! For whom the log is kept beyond what recovery needs, and when its segments go.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sonde_storage_format::SeqNo;

use crate::engine::{Engine, Inner};
use crate::wal::Kept;

/// What readers of this process have asked for; nothing of it is stored.
#[derive(Debug, Default)]
pub(crate) struct LogHolds {
    /// By the reader's name, what it has read.
    cursors: Mutex<HashMap<String, SeqNo>>,
    /// Seconds of log that are kept for readers of the past.
    age: AtomicU64,
}

impl LogHolds {
    fn hold(&self, name: &str, position: SeqNo) {
        self.cursors.lock().insert(name.to_owned(), position);
    }

    fn release(&self, name: &str) {
        self.cursors.lock().remove(name);
    }

    fn set_age(&self, age: Duration) {
        self.age.store(age.as_secs(), Ordering::Relaxed);
    }

    fn age(&self) -> Duration {
        Duration::from_secs(self.age.load(Ordering::Relaxed))
    }

    fn oldest(&self) -> Option<SeqNo> {
        self.cursors.lock().values().copied().min()
    }

    /// The reader that is furthest behind, and what it has read.
    pub(crate) fn oldest_of(&self) -> Option<(SeqNo, String)> {
        self.cursors.lock().iter().map(|(name, at)| (*at, name.clone())).min()
    }
}

impl Engine {
    /// Keeps the log of so long, within its budget, for whoever wants to read messages of the past.
    pub fn keep_log_for(&self, age: Duration) {
        self.inner.holds.set_age(age);
    }

    /// Keeps the log behind `position` for a reader of this name, within the log's budget.
    pub fn hold_log(&self, name: &str, position: SeqNo) {
        self.inner.holds.hold(name, position);
    }

    /// Forgets a reader.
    pub fn release_log(&self, name: &str) {
        self.inner.holds.release(name);
    }
}

impl Inner {
    /// Removes log segments that neither recovery nor a cursor needs. The flush thread alone calls this: of two
    /// threads, one could fail to remove a segment while the other removes the next.
    pub(crate) fn remove_expired_segments(&self) {
        let replay_from = {
            let manifest = self.manifest.lock();
            manifest.state.flushed_to
        };
        // IMPORTANT: behind the manifest. A backup pins first and looks then, so what goes in spite of it is flushed.
        let replay_from = self.backups.pinned().map_or(replay_from, |pinned| pinned.min(replay_from));
        let held = self.holds.oldest();
        let backups = self.backups.log_wanted_from(&self.state, self.clock.now(), self.options.log.max_age);
        let held = held.into_iter().chain(self.state.oldest_cursor()).chain(backups);
        let cursors_from = held.min().unwrap_or(SeqNo(u64::MAX));
        // Oldest first, and none before its elders are gone: the log has no gap.
        let kept = Kept { replay_from, cursors_from, age: self.holds.age() };
        while let Some(segment) = self.segments.take_expired(&kept, &self.options.log) {
            if let Err(error) = self.storage.remove(&segment.path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %segment.path.display(), %error, "cannot remove an old log segment");
                self.segments.put_back(segment);
                break;
            }
        }
    }
}
