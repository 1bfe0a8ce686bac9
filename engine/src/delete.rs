//! DELETE and UPDATE: what callers ask for, and what the writer does about it.
//!
//! # Invariants
//! - A deletion is one commit: durable, then seen by every later snapshot, hot and cold.
//! - Ranges of time and tags hide whatever was committed before them. Points were chosen by their values in a
//!   snapshot: if one of them was written since, nothing happens, and the caller chooses again.

use std::sync::Arc;
use std::sync::mpsc::channel;

use arrow::array::{Array, AsArray};
use arrow::datatypes::TimestampNanosecondType;
use arrow::record_batch::RecordBatch;
use sonde_storage_format::{
    ColdFile, Durability, SeqNo, SeqRange, SeriesId, SeriesKey, TableId, TableKind, TimeRange, Timestamp,
    Tombstone, TombstonePart,
};

use crate::batch::WriteBatch;
use crate::catalog::Table;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::limits::{CHANGE_POINTS, MASKS};
use crate::mask::Mask;
use crate::receipt::Receipt;
use crate::scan::{Snapshot, TagFilter, prune};
use crate::version::Chunk;
use crate::write::{Command, Writer};

/// Points of a table that a change is to touch, as one snapshot has them.
#[derive(Clone, Debug)]
pub struct Points {
    pub(crate) table: TableId,
    /// The snapshot's position.
    pub(crate) read_at: SeqNo,
    points: Vec<(SeriesId, Timestamp)>,
}

impl Points {
    /// No points yet, of a table of a snapshot that [`Engine::fence`] gave.
    #[must_use]
    pub fn new(table: &Table, snapshot: &Snapshot) -> Self {
        Self { table: table.id(), read_at: snapshot.seq(), points: Vec::new() }
    }

    /// Adds the points of some rows: the time, then every tag in the table's order. Fails beyond a million points.
    pub fn push(&mut self, table: &Table, rows: &RecordBatch) -> Result<()> {
        let unfit = || Error::Row("points are a time and strings for the tags".into());
        let (times, tags) = rows.columns().split_first().ok_or_else(unfit)?;
        let times = times.as_primitive_opt::<TimestampNanosecondType>().ok_or_else(unfit)?;
        let tags: Vec<_> = tags.iter().map(|tag| tag.as_string_opt::<i32>()).collect();
        if self.points.len() + rows.num_rows() > CHANGE_POINTS {
            let what =
                "points that one statement deletes by the values of fields, or updates; split it by time";
            return Err(Error::Limit { what: what.into(), limit: CHANGE_POINTS as u64 });
        }
        let mut key = Vec::new();
        for (row, time) in times.values().iter().enumerate() {
            let value = |tag: &Option<&'_ arrow::array::StringArray>| -> Option<String> {
                tag.filter(|tag| tag.is_valid(row)).map(|tag| tag.value(row).to_owned())
            };
            let values: Vec<Option<String>> = tags.iter().map(value).collect();
            SeriesKey::encode_into(values.iter().map(Option::as_deref), &mut key);
            let series = table.series().lookup(&key);
            let series =
                series.ok_or_else(|| Error::Row("a point of a series that does not exist".into()))?;
            self.points.push((series, Timestamp::from_nanos(*time)));
        }
        Ok(())
    }

    /// How many points there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.points.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    fn part(&self) -> TombstonePart {
        TombstonePart::Points(self.points.clone())
    }

    /// Names the points, to look for them.
    pub(crate) fn mask(&self) -> Mask {
        let (table, parts) = (self.table, vec![self.part()]);
        Mask::new(Tombstone { table, seq: SeqNo(u64::MAX), parts }, Timestamp::MIN)
    }
}

/// What the writer is asked to delete.
#[derive(Debug)]
pub(crate) enum Deletion {
    /// Rows of a range of time whose series pass the filters.
    Range {
        table: Arc<Table>,
        range: TimeRange,
        tags: Vec<TagFilter>,
        /// The series that pass, among the first so many of the table; `None` where there is no filter.
        series: Option<(Vec<SeriesId>, usize)>,
    },
    Points(Points),
}

impl Deletion {
    pub(crate) fn table(&self) -> TableId {
        match self {
            Self::Range { table, .. } => table.id(),
            Self::Points(points) => points.table,
        }
    }

    /// What it hides, as of this moment of the writer's thread.
    pub(crate) fn parts(&self) -> Vec<TombstonePart> {
        match self {
            Self::Points(points) => vec![points.part()],
            Self::Range { table, range, tags, series } => {
                let series = series.as_ref().map(|(known, seen)| {
                    // Series that came since they were looked up.
                    let new = table.series().matching(table, tags, *seen);
                    known.iter().copied().chain(new).collect()
                });
                vec![TombstonePart::Range { range: *range, series }]
            }
        }
    }
}

impl Engine {
    /// A snapshot whose rows the writer can tell from later ones, for a change that depends on what it shows.
    pub fn fence(&self) -> Result<Snapshot> {
        let (reply, fenced) = channel();
        self.send(Command::Fence(reply))?;
        fenced.recv().map_err(|_| self.closed())
    }

    /// Deletes every row of a range of time whose series pass all filters. Returns once that is durable and visible.
    pub fn delete_range(&self, table: &Arc<Table>, range: TimeRange, tags: &[TagFilter]) -> Result<SeqRange> {
        let series = (!tags.is_empty()).then(|| {
            let order = table.series().order();
            let wanted = prune::series(table, &order, tags).unwrap_or_default();
            let mut passing: Vec<SeriesId> =
                (0..).zip(&wanted).filter(|(_, wanted)| **wanted).map(|(rank, _)| order.id(rank)).collect();
            passing.sort_unstable();
            (passing, order.len())
        });
        if range.is_empty() {
            return Err(Error::Row("an empty range of time has no rows to delete".into()));
        }
        let deletion = Deletion::Range { table: Arc::clone(table), range, tags: tags.to_vec(), series };
        self.delete(deletion)
    }

    /// Deletes points. Fails with [`Error::Conflict`] where one of them was written since the snapshot.
    pub fn delete_points(&self, table: &Table, points: Points) -> Result<SeqRange> {
        if table.def().kind == TableKind::Events {
            let what = "rows of a table of events have no identity: delete them by ranges of time and tags";
            return Err(Error::Row(what.into()));
        }
        self.delete(Deletion::Points(points))
    }

    fn delete(&self, deletion: Deletion) -> Result<SeqRange> {
        let (reply, receipt) = Receipt::new();
        self.send(Command::Delete(deletion, reply))?;
        receipt.wait()
    }

    /// Commits new values of points. Fails with [`Error::Conflict`] where one of them was written or deleted since the
    /// snapshot.
    pub fn update(&self, batch: WriteBatch, points: Points) -> Result<SeqRange> {
        let (reply, receipt) = Receipt::new();
        self.queue(&batch);
        self.send(Command::Update(batch, points, reply))?;
        receipt.wait()
    }
}

impl Writer {
    /// Makes a tombstone durable, then everybody's.
    pub(crate) fn commit_deletion(&mut self, deletion: &Deletion) -> Result<SeqRange> {
        self.inner.health.check()?;
        let table = deletion.table();
        if self.inner.catalog.load().table_by_id(table).is_none() {
            return Err(Error::Conflict(format!("table {table} was dropped meanwhile")));
        }
        if let Deletion::Points(points) = deletion {
            self.refuse_changed(points, false)?;
        }
        let masks = self.inner.versions.current().masks_of(table);
        if masks.len() >= MASKS {
            let why =
                "until compaction has removed what they hide, no more is deleted; COMPACT TABLE does it now";
            return Err(Error::Full(format!("{MASKS} deletes of table {table} wait: {why}")));
        }
        let seq = SeqRange { first: self.next_seq, last: self.next_seq };
        let tombstone = Tombstone { table, seq: seq.last, parts: deletion.parts() };
        let mut records = self.records();
        records.tombstone(&tombstone);
        self.append(records, seq.last.plus(1), Durability::Fsync)?;
        let mask = Mask::new(tombstone, self.inner.clock.now());
        self.active.hide(table, &mask);
        self.deleted.insert(table, seq.last);
        self.keep_mask(table, mask);
        self.inner.publish(seq.last, &self.active);
        Ok(seq)
    }

    /// Keeps a mask for the sources that need it, as one with the last where none of them lies between.
    fn keep_mask(&self, table: TableId, mask: Mask) {
        let version = self.inner.versions.current();
        if !version.needs(table, &mask) {
            return;
        }
        let last = version.masks_of(table).pop().filter(|last| last.seq > self.frozen_to);
        // What came behind the last one and is no longer hidden by it would be by both.
        let last = last.filter(|last| !self.active.has_since(table, last.seq, last));
        let joined = last.as_ref().and_then(|last| last.joined(&mask));
        let replaced = last.filter(|_| joined.is_some());
        let mask = Arc::new(joined.unwrap_or(mask));
        self.inner.state.apply(mask.state(table, true));
        if let Some(last) = &replaced {
            self.inner.state.apply(last.state(table, false));
        }
        self.inner.versions.set_masks(table, |masks| {
            masks.retain(|known| replaced.as_ref().is_none_or(|last| known.seq != last.seq));
            masks.push(Arc::clone(&mask));
        });
    }

    /// Fails where one of the points was written since they were read or, if that matters, rows of the table deleted. Rows
    /// that came since are in memory, in a chunk, or in a cold file already.
    pub(crate) fn refuse_changed(&self, points: &Points, deletes_matter: bool) -> Result<()> {
        let (table, read_at, mask) = (points.table, points.read_at, points.mask());
        let version = self.inner.versions.current();
        let memtables = version.frozen.iter().map(Arc::as_ref).chain([&self.active]);
        let files = version.files.get(&table);
        let chunks = files.into_iter().flat_map(|files| files.chunks());
        let flushed = |chunk: &Arc<Chunk>| {
            chunk.meta.seq.last > read_at && mask.reaches(chunk.meta.times.0, chunk.meta.times.1)
        };
        let days = files.into_iter().flat_map(|files| files.cold.values());
        // It says up to where it has rows, not which of them came last.
        let cooled = |file: &Arc<ColdFile>| file.position > read_at && mask.reaches_into(&file.day);
        let deleted = self.deleted.get(&table).is_some_and(|seq| *seq > read_at);
        if memtables.into_iter().any(|memtable| memtable.has_since(table, read_at, &mask))
            || chunks.into_iter().any(flushed)
            || days.into_iter().any(cooled)
            || (deletes_matter && deleted)
        {
            return Err(Error::Conflict("rows of the statement were changed meanwhile".into()));
        }
        Ok(())
    }
}
