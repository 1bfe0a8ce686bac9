//! Background work that someone asks for and waits for: flushes, merges, the cold tier, backups.

use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use sonde_storage_format::{TableId, Timestamp};

use super::Engine;
use crate::activity::{JobKind, Subject};
use crate::backup::{BackupStore, Report};
use crate::error::Result;
use crate::jobs::Job;
use crate::write::Command;

/// How long an administrator's `FLUSH` waits for the disk.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(600);

impl Engine {
    /// Writes all rows in memory as chunks; returns when they are.
    pub fn flush(&self) -> Result<()> {
        // What failed before is tried again now; should it work, there is room for what is frozen next.
        self.inner.flushes.ask();
        let (reply, frozen) = channel();
        self.send(Command::Freeze(reply))?;
        let position = frozen.recv().map_err(|_| self.inner.closed())??;
        self.inner.flushes.wait_flushed(position, FLUSH_TIMEOUT)
    }

    /// Merges the chunks of each partition of a table into one.
    pub fn compact(&self, table: TableId) -> Result<()> {
        self.flush()?;
        self.inner.activity.asked(Subject::new(JobKind::Compact, Some(table), None), self.now());
        self.await_job(|reply| Job::Compact(table, reply))
    }

    /// Carries out the merges that are due by themselves, now and not at the next tick; returns how many.
    pub fn compact_due(&self) -> Result<usize> {
        self.await_job(Job::CompactDue)
    }

    /// Moves the complete days of a table that end at or before `before` to the cold tier. Returns how many moved.
    pub fn cool(&self, table: TableId, before: Timestamp) -> Result<usize> {
        self.flush()?;
        self.inner.activity.asked(Subject::new(JobKind::Cool, Some(table), None), self.now());
        self.await_job(|reply| Job::Cool(table, before, reply))
    }

    /// Whether memory is short: then batches are committed one at a time, and rows in memory are flushed now.
    pub fn relieve(&self, tight: bool) {
        self.inner.queued.set_tight(tight);
        if tight && self.inner.flushes.is_empty() && self.memory().1 > 0 {
            let _ = self.commands.try_send(Command::Freeze(channel().0));
        }
    }

    /// Makes a backup in `store`, where that has earlier ones of this engine, of what has changed since. `name` is what
    /// the destination is called: the log waits, within its budget, for the next backup there. Blocks until it is done.
    pub fn backup(&self, store: &BackupStore, name: &str) -> Result<Report> {
        crate::backup::back_up(&self.inner, store, name)
    }

    /// Ends the backup that runs; `false` where none does.
    #[must_use]
    pub fn cancel_backup(&self) -> bool {
        self.inner.backups.cancel()
    }

    /// Asks the job thread for something, and waits for its answer.
    fn await_job<T>(&self, job: impl FnOnce(Sender<Result<T>>) -> Job) -> Result<T> {
        let (reply, done) = channel();
        self.inner.send_job(job(reply));
        done.recv().map_err(|_| self.inner.closed())?
    }
}
