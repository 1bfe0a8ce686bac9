//! The writer's end of the log: every commit is one frame, as durable as it was asked for.

use std::time::Instant;

use sonde_storage_format::{Durability, SeqNo, SeqRange, WalWriter};

use super::Writer;
use crate::clock;
use crate::error::{Error, Result};
use crate::limits::BUFFERED_AGE;

impl Writer {
    /// The start of every frame: the series that earlier ones failed to log, or that this one brings.
    pub(crate) fn records(&self) -> WalWriter {
        let mut records = WalWriter::new();
        self.unlogged.iter().for_each(|series| records.series(series));
        records
    }

    /// Makes one frame, begun with `records`, as durable as asked. Running out of disk before its first byte refuses it; any later error latches.
    pub(crate) fn append(
        &mut self,
        mut records: WalWriter,
        next: SeqNo,
        durability: Durability,
    ) -> Result<()> {
        let now = self.inner.clock.now();
        let mark = clock::mark(self.marked, now);
        mark.iter().for_each(|mark| records.state(mark));
        let bytes = records.len();
        let failed = |error: &Error| {
            if matches!(error, Error::Failed(_)) {
                self.inner.health.fail(error);
            }
        };
        self.log.reserve(bytes, self.next_seq).inspect_err(failed)?;
        let seq = SeqRange { first: self.next_seq, last: SeqNo(next.0 - 1) };
        self.log.append(records, seq, durability).inspect_err(failed)?;
        self.sync_by = match self.log.unsynced() {
            0 => None,
            _ => self.sync_by.or_else(|| Some(Instant::now() + BUFFERED_AGE)),
        };
        self.next_seq = next;
        self.logged += bytes;
        self.unlogged.clear();
        if let Some(mark) = mark {
            self.inner.state.apply(mark);
            self.marked = Some(now);
        }
        Ok(())
    }

    /// Brings what is in the log to stable storage; should that fail, the engine has failed.
    pub(super) fn sync(&mut self) {
        self.sync_by = None;
        if self.inner.health.check().is_ok()
            && let Err(error) = self.log.sync()
        {
            self.inner.health.fail(&error);
        }
    }

    /// The same, unless it is not time yet: however many commands come, it has its turn.
    pub(super) fn sync_if_due(&mut self) {
        if self.sync_by.is_some_and(|sync_by| sync_by <= Instant::now()) {
            self.sync();
        }
    }
}
