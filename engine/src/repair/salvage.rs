//! What may be kept of the records behind a hole in the log: those that do not depend on records that are gone.
//!
//! # Invariants
//! - A row is kept only if the table, the series and the columns that it names were registered by records that are there.
//!   A series whose registration is gone has no tags any more, so its rows cannot be served under any.
//! - Handles stay as they are: those that are gone get keys that no row uses, so that the handles behind them have no gap.
//! - What is kept once is kept again: a second pass over what a first one wrote changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use sonde_storage_format::{
    CatalogChange, Checkpoint, Column, ColumnId, ColumnRole, Record, RowsRecord, SeqRange, SeriesId,
    SeriesKey, SeriesRecord, State, TableId, WalWriter,
};

use crate::catalog::Catalog;
use crate::repair::Loss;

/// The namespace of the gaps between columns that were seen.
const SETTLED: &str = "repair.columns";

/// What the records so far have registered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Salvage {
    catalog: Catalog,
    series: BTreeMap<TableId, Handles>,
    /// Gaps between columns that an earlier repair has seen.
    settled: BTreeSet<Vec<u8>>,
}

/// The series of a table.
#[derive(Clone, Debug, Default)]
struct Handles {
    /// The first one that is not registered.
    next: u64,
    /// Those below it whose registration is gone.
    lost: Vec<SeriesId>,
    /// Tags whose place in a key is certain, where a column is missing that may have been a tag.
    certain_tags: Option<usize>,
}

impl Handles {
    fn is_known(&self, id: SeriesId) -> bool {
        id.0 < self.next && self.lost.binary_search(&id).is_err()
    }
}

/// A key for a handle whose own is gone. No device has it: tags are never this text.
fn placeholder(table: TableId, id: SeriesId) -> SeriesKey {
    SeriesKey::encode([Some(format!("\0lost series {id} of table {table}").as_str())])
}

impl Salvage {
    /// Starts behind a checkpoint.
    pub(crate) fn new(checkpoint: &Checkpoint) -> Self {
        let mut salvage = Self::default();
        checkpoint.catalog.iter().for_each(|change| salvage.catalog.apply(change));
        for table in &checkpoint.series {
            salvage.series.entry(table.table).or_default().next = table.keys.len() as u64;
        }
        salvage
    }

    /// The catalog as the records so far made it.
    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Puts what may be kept of a record into `out`; returns whether that is the whole record, as it was.
    pub(crate) fn keep(
        &mut self,
        record: Record,
        seq: SeqRange,
        file: &str,
        out: &mut WalWriter,
        losses: &mut Vec<Loss>,
    ) -> bool {
        match record {
            Record::Rows(rows) => self.keep_rows(rows, seq, file, out, losses),
            Record::Series(series) => self.keep_series(series, out),
            Record::Catalog(change) => self.keep_change(&change, out),
            other => {
                if let Record::State(State { namespace, key, .. }) = &other
                    && namespace == SETTLED
                {
                    self.settled.insert(key.clone());
                }
                Self::copy(&other, out);
                true
            }
        }
    }

    /// Puts a whole record into `out`.
    pub(crate) fn copy(record: &Record, out: &mut WalWriter) {
        match record {
            Record::Rows(rows) => out.rows(rows),
            Record::State(state) => out.state(state),
            Record::Catalog(change) => out.catalog(change),
            Record::Series(series) => out.series(series),
            Record::Message(message) => out.message(&message.borrowed()),
            Record::Tombstone(tombstone) => out.tombstone(tombstone),
        }
    }

    /// Column ids have no gap, unless a column's registration is gone: then the places of tags in keys are uncertain from
    /// there on. That this was looked at is noted beside the change, because keys that come later are right.
    fn keep_change(&mut self, change: &CatalogChange, out: &mut WalWriter) -> bool {
        let gap = self.gap_before(change).filter(|(_, key, _)| !self.settled.contains(key));
        if let Some((table, key, tags)) = &gap {
            self.series.entry(*table).or_default().certain_tags.get_or_insert(*tags);
            self.settled.insert(key.clone());
            out.state(&State { namespace: SETTLED.to_owned(), key: key.clone(), value: Some(Vec::new()) });
        }
        self.catalog.apply(change);
        out.catalog(change);
        gap.is_none()
    }

    /// The table, a name for the gap, and how many tags are known, if columns are missing before a new one.
    fn gap_before(&self, change: &CatalogChange) -> Option<(TableId, Vec<u8>, usize)> {
        let CatalogChange::AddColumn { table, column } = change else { return None };
        let known = self.catalog.table_by_id(*table)?;
        let last = known.def().columns.last().map_or(0, |last| last.id.0);
        let key = format!("{table}.{}", column.id).into_bytes();
        (column.id.0 > last + 1).then(|| (*table, key, known.tags().count()))
    }

    fn keep_series(&mut self, mut new: SeriesRecord, out: &mut WalWriter) -> bool {
        let Some(table) = self.catalog.table_by_id(new.table) else {
            // Replay passes it over.
            out.series(&new);
            return true;
        };
        let tags = table.def().columns.iter().filter(|column| column.role == ColumnRole::Tag).count();
        let handles = self.series.entry(new.table).or_default();
        let most = handles.certain_tags.unwrap_or(tags);
        let mut whole = true;
        if new.first.0 > handles.next {
            let gone = (handles.next..new.first.0).map(SeriesId);
            let keys = gone.map(|id| placeholder(new.table, id)).chain(new.keys).collect();
            (new, whole) = (SeriesRecord { first: SeriesId(handles.next), keys, ..new }, false);
        }
        for (id, key) in (new.first.0..).map(SeriesId).zip(&mut new.keys) {
            if id.0 < handles.next {
                continue;
            }
            let gone = placeholder(new.table, id);
            let is_gone = *key == gone;
            // More tags than are known: what the key means is uncertain.
            if is_gone || key.tags().count() > most {
                handles.lost.push(id);
                whole &= is_gone;
                *key = gone;
            }
        }
        handles.next = handles.next.max(new.first.0 + new.keys.len() as u64);
        handles.lost.sort_unstable();
        handles.lost.dedup();
        out.series(&new);
        whole
    }

    fn keep_rows(
        &self,
        mut rows: RowsRecord,
        seq: SeqRange,
        file: &str,
        out: &mut WalWriter,
        losses: &mut Vec<Loss>,
    ) -> bool {
        let table = self.catalog.table_by_id(rows.table);
        let name = table.map(|table| table.full_name());
        let handles = self.series.get(&rows.table);
        let is_known = |id: &SeriesId| handles.is_some_and(|handles| handles.is_known(*id));
        let kept: Vec<usize> = match table {
            Some(_) => {
                (0..rows.times.len()).filter(|&row| rows.series.get(row).is_some_and(is_known)).collect()
            }
            None => Vec::new(),
        };
        let lost = rows.times.len() - kept.len();
        if lost > 0 {
            let reason = if table.is_some() { "their series are gone" } else { "their table is unknown" };
            losses.push(Loss::Rows {
                file: file.to_owned(),
                table: rows.table.0,
                name: name.clone(),
                first_seq: seq.first.0,
                last_seq: seq.last.0,
                rows: lost as u64,
                reason,
            });
            rows = gather(&rows, &kept);
        }
        let before = rows.columns.len();
        if let Some(table) = table {
            let unknown = |(id, _): &(ColumnId, Column)| table.column_by_id(*id).is_none();
            for (id, column) in rows.columns.extract_if(.., |column| unknown(column)) {
                losses.push(Loss::Values {
                    file: file.to_owned(),
                    table: rows.table.0,
                    name: name.clone(),
                    column: id.0,
                    first_seq: seq.first.0,
                    last_seq: seq.last.0,
                    rows: column.len() as u64,
                });
            }
        }
        if !rows.times.is_empty() {
            out.rows(&rows);
        }
        lost == 0 && rows.columns.len() == before
    }
}

/// Some of the rows.
fn gather(rows: &RowsRecord, kept: &[usize]) -> RowsRecord {
    fn pick<T: Copy>(from: &[T], kept: &[usize]) -> Vec<T> {
        kept.iter().filter_map(|row| from.get(*row).copied()).collect()
    }
    RowsRecord {
        table: rows.table,
        origin: rows.origin,
        first_seq: rows.first_seq,
        seq_offsets: pick(&rows.seq_offsets, kept),
        series: pick(&rows.series, kept),
        times: pick(&rows.times, kept),
        columns: rows.columns.iter().map(|(id, column)| (*id, column.gather(kept))).collect(),
    }
}
