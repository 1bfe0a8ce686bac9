//! When the memtable goes to the flush thread, and what goes with it.

use std::sync::Arc;
use std::time::Duration;

use super::Writer;
use crate::error::Result;
use crate::flushes::FlushInput;
use crate::limits::{DUE_FLUSH_AGE, FLUSH_AGE, FLUSH_EDIT_BYTES, FROZEN_MEMTABLES, MEMTABLE_BYTES};
use crate::retention::has_due_rows;

/// How long a writer waits for a flush before it is told that the disk does not keep up.
const FLUSH_PATIENCE: Duration = Duration::from_secs(30);

impl Writer {
    pub(super) fn note_first_row(&mut self) {
        if self.first_row.is_none() && !self.active.is_empty() {
            self.first_row = Some(self.inner.clock.now());
        }
    }

    pub(super) fn freeze_if_full(&mut self) -> Result<()> {
        let limit = self.inner.options.memtable_bytes.min(MEMTABLE_BYTES);
        let fits = self.active.bytes < limit && self.active.edit_bytes < FLUSH_EDIT_BYTES;
        if fits && self.logged < 4 * limit {
            return Ok(());
        }
        self.freeze()
    }

    /// Without it rows that come slowly would stay in memory for ever, out of reach of retention and the cold tier.
    pub(super) fn freeze_if_old(&mut self) {
        // Where flushes are behind, or fail, another one does not help.
        if self.is_old()
            && self.inner.flushes.is_empty()
            && let Err(error) = self.freeze()
        {
            tracing::warn!(%error, "rows in memory are old and cannot be flushed");
        }
    }

    fn is_old(&self) -> bool {
        let Some(first) = self.first_row.filter(|_| !self.active.is_empty()) else { return false };
        let now = self.inner.clock.now();
        let age = now.as_nanos().saturating_sub(first.as_nanos());
        let age = Duration::from_nanos(age.max(0).unsigned_abs());
        let is_cold = self.inner.options.cold.is_some();
        let is_due = || has_due_rows(&self.active, &self.inner.catalog.load(), is_cold, now);
        age >= FLUSH_AGE || (age >= DUE_FLUSH_AGE && is_due())
    }

    /// Hands the memtable, and a checkpoint of all else, to the flush job; waits while too many are waiting already.
    pub(super) fn freeze(&mut self) -> Result<()> {
        // Files never hold what the log may still lose: its numbers would be given to other rows.
        self.sync();
        if self.log.unsynced() > 0 {
            self.inner.health.check()?;
        }
        let inner = &self.inner;
        inner.flushes.wait_for_room(FROZEN_MEMTABLES, FLUSH_PATIENCE)?;
        let catalog = inner.catalog.load_full();
        let series = catalog.tables().map(|table| (Arc::clone(table), table.series().len())).collect();
        let last = self.last_seq();
        let active = std::mem::take(&mut self.active);
        inner.versions.freeze();
        inner.flushes.push(FlushInput {
            memtable: Arc::new(active),
            position: last,
            catalog: catalog.to_changes(),
            series,
            state: inner.state.entries(),
        });
        self.logged = 0;
        self.first_row = None;
        self.frozen_to = last;
        Ok(())
    }
}
