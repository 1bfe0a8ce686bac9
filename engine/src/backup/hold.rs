//! What a running engine keeps of its backups: that one runs, how far back it pins the log, and in the state, for each
//! destination, which one was the last there.
//!
//! # Invariants
//! - What the state says of the last backup was committed behind it, so whoever has that state has the backup in its
//!   history: files of the same name are the same files.
//! - The log waits for the next backup at a destination no longer than its budget, and not at all once the last one
//!   there is older than the log may be.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sonde_storage_format::{SeqNo, State, Timestamp};

use crate::error::{Error, Result};
use crate::limits::BACKUPS;
use crate::state::StateStore;

/// The namespace of the records; a key is a destination.
const NAMESPACE: &str = "engine.backup";

/// The last backup at a destination: `seq` u64 and time i64, little endian, then the id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Last {
    pub(super) id: String,
    pub(super) seq: SeqNo,
    pub(super) time: Timestamp,
}

impl Last {
    pub(super) fn is_of(change: &State, name: &str) -> bool {
        change.namespace == NAMESPACE && change.key == name.as_bytes()
    }

    pub(super) fn read(value: Option<&[u8]>) -> Option<Self> {
        let (seq, rest) = value?.split_first_chunk::<8>()?;
        let (time, id) = rest.split_first_chunk::<8>()?;
        let (seq, time) = (SeqNo(u64::from_le_bytes(*seq)), Timestamp::from_nanos(i64::from_le_bytes(*time)));
        Some(Self { id: String::from_utf8(id.to_vec()).ok()?, seq, time })
    }

    pub(super) fn of(state: &StateStore, name: &str) -> Option<Self> {
        Self::read(state.get(NAMESPACE, name.as_bytes()).as_deref())
    }

    /// The record that says so for the destination `name`.
    pub(super) fn record(&self, name: &str) -> State {
        let mut value = self.seq.0.to_le_bytes().to_vec();
        value.extend(self.time.as_nanos().to_le_bytes());
        value.extend(self.id.as_bytes());
        State { namespace: NAMESPACE.into(), key: name.as_bytes().to_vec(), value: Some(value) }
    }

    /// Whether the log need not wait for the next one any more.
    fn is_over(&self, now: Timestamp, max_age: Duration) -> bool {
        let age = now.as_nanos().saturating_sub(self.time.as_nanos()).max(0).unsigned_abs();
        Duration::from_nanos(age) > max_age
    }
}

/// Records of destinations that nobody has backed up to for longer than the log may be old, to be forgotten.
pub(super) fn outlived(state: &StateStore, now: Timestamp, max_age: Duration) -> Vec<State> {
    let entries = state.list(NAMESPACE).into_iter();
    let over = |value: &[u8]| Last::read(Some(value)).is_none_or(|last| last.is_over(now, max_age));
    let forget = |key| State { namespace: NAMESPACE.into(), key, value: None };
    entries.filter(|(_, value)| over(value)).map(|(key, _)| forget(key)).collect()
}

/// The backup that runs in an engine, if one does.
#[derive(Debug, Default)]
pub(crate) struct Backups {
    running: AtomicBool,
    cancelled: AtomicBool,
    pinned: Mutex<Option<SeqNo>>,
    /// Behind which position the backup after the one that runs will want the log.
    held: Mutex<Option<SeqNo>>,
}

/// That a backup runs; its end ends all that it held.
pub(super) struct Running<'a>(&'a Backups);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.unpin();
        *self.0.held.lock() = None;
        self.0.running.store(false, Ordering::Release);
    }
}

impl Backups {
    pub(super) fn start(&self) -> Result<Running<'_>> {
        if self.running.swap(true, Ordering::AcqRel) {
            return Err(Error::Limit { what: "backups at one time".into(), limit: BACKUPS });
        }
        self.cancelled.store(false, Ordering::Relaxed);
        Ok(Running(self))
    }

    /// Asks the backup that runs to end; `false` where none does.
    pub(crate) fn cancel(&self) -> bool {
        self.cancelled.store(true, Ordering::Relaxed);
        self.running.load(Ordering::Acquire)
    }

    pub(super) fn check(&self) -> Result<()> {
        let is_cancelled = self.cancelled.load(Ordering::Relaxed);
        if is_cancelled { Err(Error::Backup("the backup was cancelled".into())) } else { Ok(()) }
    }

    /// From here on no segment of the log goes that is not on its way already.
    pub(super) fn pin(&self) {
        *self.pinned.lock() = Some(SeqNo(0));
    }

    pub(super) fn unpin(&self) {
        *self.pinned.lock() = None;
    }

    /// The log behind this position is for the next backup, until the state says so.
    pub(super) fn hold(&self, seq: SeqNo) {
        *self.held.lock() = Some(seq);
    }

    /// What a backup needs of the log, whatever the budget says.
    pub(crate) fn pinned(&self) -> Option<SeqNo> {
        *self.pinned.lock()
    }

    /// Behind which position the next backups want the log, within its budget.
    pub(crate) fn log_wanted_from(
        &self,
        state: &StateStore,
        now: Timestamp,
        max_age: Duration,
    ) -> Option<SeqNo> {
        let lasts = state.list(NAMESPACE).into_iter().filter_map(|(_, value)| Last::read(Some(&value)));
        let lasts = lasts.filter(|last| !last.is_over(now, max_age)).map(|last| last.seq);
        lasts.chain(*self.held.lock()).min()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_log_waits_for_destinations_that_are_in_use() {
        let (state, backups) = (StateStore::default(), Backups::default());
        let day = Duration::from_secs(86_400);
        let at = |secs: i64| Timestamp::from_secs(secs);
        let last = |seq, secs| Last { id: "i".into(), seq: SeqNo(seq), time: at(secs) };
        assert_eq!(backups.log_wanted_from(&state, at(0), day), None);
        state.apply(last(7, 0).record("/a"));
        state.apply(last(9, 3600).record("/b"));
        assert_eq!(Last::of(&state, "/b"), Some(last(9, 3600)));
        assert_eq!(backups.log_wanted_from(&state, at(86_400), day), Some(SeqNo(7)));
        assert_eq!(backups.log_wanted_from(&state, at(86_401), day), Some(SeqNo(9)));
        let gone = outlived(&state, at(86_401), day);
        assert_eq!(gone.iter().map(|state| state.key.as_slice()).collect::<Vec<_>>(), [b"/a"]);
        gone.into_iter().for_each(|forget| state.apply(forget));
        assert_eq!(Last::of(&state, "/a"), None);
    }

    #[test]
    fn one_backup_at_a_time() {
        let backups = Backups::default();
        assert!(!backups.cancel());
        let running = backups.start().unwrap();
        assert!(matches!(backups.start(), Err(Error::Limit { limit: 1, .. })));
        backups.pin();
        backups.hold(SeqNo(9));
        let wanted = || backups.log_wanted_from(&StateStore::default(), Timestamp::MIN, Duration::MAX);
        assert_eq!(wanted(), Some(SeqNo(9)));
        assert!(backups.check().is_ok() && backups.cancel() && backups.check().is_err());
        drop(running);
        assert_eq!((backups.pinned(), wanted()), (None, None));
        drop(backups.start().unwrap());
        assert!(backups.check().is_ok());
    }
}
