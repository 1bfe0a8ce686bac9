//! Takes what is deleted out of files: on the job thread, by and by or for `COMPACT TABLE`.
//!
//! # Invariants
//! - What to do is decided by pure functions over a version.
//! - A chunk that is purged keeps its SeqNos and its range, so that its place among the others stays; what it was purged
//!   of stands beside it in the manifest.
//! - What is hidden is gone from files once this has passed; then the tombstone goes, too.

use std::sync::Arc;

use sonde_storage_format::{ChunkId, ColdFile, Edit, SeqNo, TableId, TimeRange, Timestamp};

use crate::cold::cool::purge_cold;
use crate::compact::{Notes, Plan, rewrite};
use crate::engine::Inner;
use crate::error::Result;
use crate::jobs::{Task, Worker, report};
use crate::limits::{PURGE_AGE, PURGE_MASKS};
use crate::mask::Mask;
use crate::version::{Chunk, FileEdit, Version, is_hidden_in};

/// Chunks all of whose rows are hidden.
fn hidden(version: &Version) -> Vec<(TableId, ChunkId)> {
    let of_table = |(table, masks): (&TableId, &Arc<Vec<Arc<Mask>>>)| {
        let chunks = version.files.get(table).into_iter().flat_map(|files| files.chunks());
        let is_hidden = |chunk: &&Arc<Chunk>| {
            let (first, last) = chunk.meta.times;
            masks.iter().any(|mask| chunk.covers() < mask.seq && mask.hides_all(first, last))
        };
        chunks.filter(is_hidden).map(|chunk| (*table, chunk.meta.id)).collect::<Vec<_>>()
    };
    version.masks.iter().flat_map(of_table).collect()
}

/// Whether what a mask hides should be removed now.
fn is_due(masks: &[Arc<Mask>], mask: &Mask, now: Timestamp) -> bool {
    let age = now.as_nanos().saturating_sub(mask.since.as_nanos());
    masks.len() >= PURGE_MASKS || i128::from(age) >= PURGE_AGE.as_nanos().cast_signed()
}

/// A chunk to write again without what is hidden of it, that does not rest: the one with the oldest mask.
fn purge_plan(
    version: &Version,
    now: Timestamp,
    wanted: impl Fn(TableId) -> bool,
    rests: impl Fn(TableId, TimeRange) -> bool,
) -> Option<Plan> {
    let mut due: Vec<(SeqNo, Plan)> = Vec::new();
    for (table, masks) in &version.masks {
        let chunks = version.files.get(table).into_iter().flat_map(|files| files.chunks());
        for chunk in chunks {
            let hiding =
                |mask: &&Arc<Mask>| is_hidden_in(chunk, mask) && (wanted(*table) || is_due(masks, mask, now));
            let Some(mask) = masks.iter().find(hiding) else { continue };
            let (chunks, ranges) = (vec![Arc::clone(chunk)], vec![chunk.meta.range]);
            let plan = Plan { table: *table, chunks, ranges };
            if !rests(*table, chunk.meta.range) {
                due.push((mask.seq, plan));
            }
        }
    }
    due.into_iter().min_by_key(|(seq, _)| *seq).map(|(_, plan)| plan)
}

/// Writes a chunk again without what is hidden of it; where none of its series has such rows, it just says so.
fn purge(inner: &Arc<Inner>, plan: &Plan, notes: &mut Notes) -> Result<()> {
    let version = inner.versions.current();
    for chunk in &plan.chunks {
        let hiding = version.masks_of(plan.table);
        let hiding: Vec<Arc<Mask>> = hiding.into_iter().filter(|mask| is_hidden_in(chunk, mask)).collect();
        let Some(last) = hiding.last() else { continue };
        let open = chunk.open()?;
        let holds =
            |mask: &Arc<Mask>| open.series.iter().any(|run| mask.may_hide(run.id, run.first, run.last));
        if hiding.iter().any(holds) {
            return rewrite(inner, plan, notes);
        }
        inner.install(&[Edit::Purged { chunk: chunk.meta.id, seq: last.seq }], &FileEdit::default())?;
        chunk.purge(last.seq);
    }
    Ok(())
}

/// Days of the cold tier that have rows which are hidden, and are flushed far enough to be written again.
pub(crate) fn hidden_days(
    version: &Version,
    position: SeqNo,
    table: TableId,
    due: impl Fn(&Mask) -> bool,
) -> Vec<Timestamp> {
    let files = version.files.get(&table).into_iter().flat_map(|files| files.cold.values());
    let masks = version.masks_of(table);
    let is_hidden = |file: &&Arc<ColdFile>| {
        let hides = |mask: &Arc<Mask>| {
            file.position < mask.seq
                && mask.seq <= position
                && mask.reaches(file.day.start, file.day.end)
                && due(mask)
        };
        masks.iter().any(hides)
    };
    files.filter(is_hidden).map(|file| file.day.start).collect()
}

/// Masks that hide nothing any more.
fn spent(version: &Version) -> Vec<(TableId, Arc<Mask>)> {
    let of_table = |(table, masks): (&TableId, &Arc<Vec<Arc<Mask>>>)| {
        let spent = masks.iter().filter(|mask| !version.needs(*table, mask));
        spent.map(|mask| (*table, Arc::clone(mask))).collect::<Vec<_>>()
    };
    version.masks.iter().flat_map(of_table).collect()
}

impl Worker {
    /// Removes at once what is deleted of a table.
    pub(crate) fn purge_table(&mut self, table: TableId) -> Result<()> {
        self.remove_hidden()?;
        let now = self.inner.clock.now();
        let wanted = |id: TableId| id == table;
        while let Some(plan) = purge_plan(&self.inner.versions.current(), now, wanted, |id, _| !wanted(id)) {
            purge(&self.inner, &plan, &mut self.notes)?;
        }
        if self.inner.options.cold.is_some() {
            purge_cold(&self.inner, table, &mut self.replaced, |_| true)?;
        }
        self.forget_spent();
        Ok(())
    }

    /// Removes from one chunk, or from the days of the cold tier, what was deleted long enough ago.
    pub(crate) fn purge_one(&mut self) {
        let version = self.inner.versions.current();
        if version.masks.is_empty() {
            return;
        }
        let now = self.inner.clock.now();
        report("removal of chunks that are deleted as a whole", &self.remove_hidden());
        let rests = |table, range| self.rests.rests(&Task::Purge(table, range));
        if let Some(plan) = purge_plan(&version, now, |_| false, rests) {
            let outcome = purge(&self.inner, &plan, &mut self.notes);
            self.note("removal of what was deleted", Task::Purge(plan.table, plan.range()), &outcome);
        }
        if self.inner.options.cold.is_none() {
            return;
        }
        for table in version.masks.keys() {
            if self.rests.rests(&Task::Cool(*table)) {
                continue;
            }
            let masks = version.masks_of(*table);
            let due = |mask: &Mask| is_due(&masks, mask, now);
            let outcome = purge_cold(&self.inner, *table, &mut self.replaced, due);
            self.note("removal of what was deleted from the cold tier", Task::Cool(*table), &outcome);
        }
    }

    /// Removes chunks without a row that is not hidden.
    pub(crate) fn remove_hidden(&self) -> Result<()> {
        let remove = hidden(&self.inner.versions.current());
        if remove.is_empty() {
            return Ok(());
        }
        let edits: Vec<Edit> = remove.iter().map(|(_, id)| Edit::RemoveChunk(*id)).collect();
        tracing::info!(chunks = remove.len(), "removed chunks all of whose rows were deleted");
        self.inner.install(&edits, &FileEdit { remove, ..FileEdit::default() })
    }

    /// Forgets the tombstones that hide nothing any more.
    pub(crate) fn forget_spent(&self) {
        let spent = spent(&self.inner.versions.current());
        if spent.is_empty() {
            return;
        }
        let records = spent.iter().map(|(table, mask)| mask.state(*table, false)).collect();
        let forgotten = self.inner.commit_state(records);
        if forgotten.is_ok() {
            for (table, mask) in &spent {
                self.inner.versions.set_masks(*table, |masks| masks.retain(|known| known.seq != mask.seq));
            }
        }
        report("clean-up of tombstones", &forgotten);
    }
}
