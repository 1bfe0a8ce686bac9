//! Moves complete UTC days of a table to the cold tier.
//!
//! # Invariants
//! - A plan is a pure function of one version and the position that it is flushed to. While it is carried out flushes
//!   add chunks, which are newer than all that it names; nothing that it names goes, because the job thread alone
//!   removes files.
//! - A day moves with all of its rows up to the position: a day of which a wider chunk has rows waits for its split,
//!   for some of them may be older than rows that would move.
//! - A day that fails stays as it was, and the others have their turn.

use std::collections::BTreeMap;
use std::sync::Arc;

use sonde_storage_format::{ChunkId, ColdFile, Edit, Profile, SeqNo, TableId, TimeRange, Timestamp};

use crate::catalog::Table;
use crate::cold::write::{new_file, write_day};
use crate::cold::{ColdOptions, day_name, day_of, pending};
use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::flush::write_chunk;
use crate::mask::Mask;
use crate::purge::hidden_days;
use crate::scan::ScanContext;
use crate::scan::merge::Merge;
use crate::scan::prune::{Group, Layer};
use crate::scan::source::{ChunkSource, Source, open as open_sources};
use crate::version::{Chunk, FileEdit, Version};

/// A day to move.
#[derive(Debug)]
pub(crate) struct DayPlan {
    day: TimeRange,
    /// Every row of the day up to here is in these files.
    position: SeqNo,
    /// The day's file of before, which is older than the chunks.
    cold: Option<Arc<ColdFile>>,
    /// Oldest first.
    chunks: Vec<Arc<Chunk>>,
}

/// The days of a table, oldest first, that chunks have rows of and that end at or before `before`.
pub(crate) fn plan(version: &Version, position: SeqNo, table: TableId, before: Timestamp) -> Vec<DayPlan> {
    plan_with(version, position, table, before, &[])
}

/// The same, and the days that start at `again` besides, which are in the cold tier already.
fn plan_with(
    version: &Version,
    position: SeqNo,
    table: TableId,
    before: Timestamp,
    again: &[Timestamp],
) -> Vec<DayPlan> {
    let Some(files) = version.files.get(&table) else { return Vec::new() };
    let mut days: BTreeMap<Timestamp, DayPlan> = BTreeMap::new();
    for start in again {
        let (day, cold) = (day_of(*start), files.cold.get(start).cloned());
        days.insert(*start, DayPlan { day, position, cold, chunks: Vec::new() });
    }
    for chunk in files.chunks().filter(|chunk| !is_wide(chunk)) {
        let day = day_of(chunk.meta.range.start);
        let empty = || {
            let cold = files.cold.get(&day.start).cloned();
            DayPlan { day, position, cold, chunks: Vec::new() }
        };
        days.entry(day.start).or_insert_with(empty).chunks.push(Arc::clone(chunk));
    }
    let wide: Vec<&Arc<Chunk>> = files.chunks().filter(|chunk| is_wide(chunk)).collect();
    let is_wanted = |day: &TimeRange| day.end <= before || again.contains(&day.start);
    let waits = |day: &TimeRange| wide.iter().any(|chunk| has_rows_of(chunk, day));
    let mut days: Vec<DayPlan> =
        days.into_values().filter(|plan| is_wanted(&plan.day) && !waits(&plan.day)).collect();
    days.iter_mut().for_each(|plan| plan.chunks.sort_by_key(|chunk| chunk.meta.seq.first));
    days
}

/// Chunks that reach over more than one day, where a day of theirs ends at or before `before`.
fn to_split(version: &Version, table: TableId, before: Timestamp) -> Vec<Arc<Chunk>> {
    let chunks = version.files.get(&table).into_iter().flat_map(|files| files.chunks());
    let due = |chunk: &&Arc<Chunk>| is_wide(chunk) && day_of(chunk.meta.times.0).end <= before;
    chunks.filter(due).cloned().collect()
}

/// Whether it reaches over more than one day, however narrow it is.
fn is_wide(chunk: &Chunk) -> bool {
    let range = chunk.meta.range;
    range.end > day_of(range.start).end
}

/// Whether the chunk may have rows of the day.
fn has_rows_of(chunk: &Chunk, day: &TimeRange) -> bool {
    let (first, last) = chunk.meta.times;
    first < day.end && day.start <= last
}

/// Moves the days of a table that end at or before `before`; returns how many. A day that fails is reported, and the
/// first of these errors is what comes back once all have had their turn. Files that were replaced join `replaced`.
pub(crate) fn cool(
    inner: &Arc<Inner>,
    id: TableId,
    before: Timestamp,
    replaced: &mut Vec<Arc<ColdFile>>,
) -> Result<usize> {
    let Some(cold) = &inner.options.cold else {
        return Err(Error::Cold("no cold tier is configured; set cold.url".into()));
    };
    let mut failures = Failures::default();
    split_all(inner, id, before, &mut failures)?;
    let (version, position) = inner.flushed();
    let Some(table) = table_behind(inner, id) else { return Ok(0) };
    let plans = plan(&version, position, id, before);
    let moved = move_days(inner, cold, &table, plans, replaced, &mut failures)?;
    if moved > 0 {
        tracing::info!(table = table.full_name(), days = moved, "moved days to the cold tier");
    }
    failures.first.map_or(Ok(moved), Err)
}

/// Writes days of the cold tier again that have rows which masks hide and which are due.
pub(crate) fn purge_cold(
    inner: &Arc<Inner>,
    id: TableId,
    replaced: &mut Vec<Arc<ColdFile>>,
    due: impl Fn(&Mask) -> bool,
) -> Result<()> {
    let Some(cold) = &inner.options.cold else { return Ok(()) };
    let (version, position) = inner.flushed();
    let Some(table) = table_behind(inner, id) else { return Ok(()) };
    let days = hidden_days(&version, position, id, due);
    if days.is_empty() {
        return Ok(());
    }
    let mut failures = Failures::default();
    let plans = plan_with(&version, position, id, Timestamp::MIN, &days);
    let written = move_days(inner, cold, &table, plans, replaced, &mut failures)?;
    tracing::info!(table = table.full_name(), days = written, "removed deleted rows from the cold tier");
    failures.first.map_or(Ok(()), Err)
}

/// Moves days one after the other; returns how many.
fn move_days(
    inner: &Arc<Inner>,
    cold: &ColdOptions,
    table: &Arc<Table>,
    plans: Vec<DayPlan>,
    replaced: &mut Vec<Arc<ColdFile>>,
    failures: &mut Failures,
) -> Result<usize> {
    let mut moved = 0;
    for plan in plans {
        if inner.is_closing() {
            return Err(Error::Closed);
        }
        let outcome = move_day(inner, cold, table, &plan);
        if failures.passed(table, &plan.day, outcome)? {
            moved += 1;
            replaced.extend(plan.cold);
        }
    }
    Ok(moved)
}

/// The table as the catalog has it now. Asked for behind a version, it has every column that the version's chunks have.
fn table_behind(inner: &Inner, id: TableId) -> Option<Arc<Table>> {
    inner.catalog.load().table_by_id(id).cloned()
}

/// What failed of a table's days.
#[derive(Debug, Default)]
struct Failures {
    first: Option<Error>,
}

impl Failures {
    /// Whether it worked, else it is reported. Only what fails for every day, as in an engine that ends, is an error.
    fn passed(&mut self, table: &Table, day: &TimeRange, outcome: Result<()>) -> Result<bool> {
        match outcome {
            Ok(()) => Ok(true),
            Err(error @ (Error::Closed | Error::Failed(_))) => Err(error),
            Err(error) => {
                let (table, day) = (table.full_name(), day_name(day));
                tracing::error!(table, day, %error, "cannot move a day to the cold tier; it stays hot");
                self.first.get_or_insert(error);
                Ok(false)
            }
        }
    }
}

/// Moves one day: note, write, sync, verify, edit. What the edit replaces goes later, when its readers have gone.
fn move_day(inner: &Arc<Inner>, cold: &ColdOptions, table: &Arc<Table>, plan: &DayPlan) -> Result<()> {
    let file = new_file(table, plan.day, plan.position);
    let before = plan.cold.iter().map(|file| file.path.as_str());
    pending::note(inner, before.chain([file.path.as_str()]))?;
    // An upload would be in vain if the manifest could not name it.
    inner.manifest.lock().settle()?;
    let masks = inner.versions.current().masks_of(table.id());
    let context = Arc::new(ScanContext::whole(
        table,
        table.series().order(),
        plan.day,
        masks,
        inner.options.merge_bytes,
    ));
    let sources = open_sources(inner, &context, &plan.layers())?;
    let merge = Merge::newest_wins(Arc::clone(&context), sources);
    let file = write_day(cold, &context, file, merge)?;
    let remove: Vec<(TableId, ChunkId)> =
        plan.chunks.iter().map(|chunk| (table.id(), chunk.meta.id)).collect();
    let mut edits: Vec<Edit> = remove.iter().map(|(_, chunk)| Edit::RemoveChunk(*chunk)).collect();
    // Nothing is left of the day: deletes took what its file had.
    let emptied = plan.cold.is_some() && file.is_none();
    edits.extend(emptied.then_some(Edit::RemoveCold { table: table.id(), day: plan.day }));
    edits.extend(file.iter().cloned().map(Edit::AddCold));
    let remove_cold = if emptied { vec![(table.id(), plan.day)] } else { Vec::new() };
    let add_cold = file.into_iter().collect();
    inner.install(&edits, &FileEdit { remove, remove_cold, add_cold, ..FileEdit::default() })
}

impl DayPlan {
    fn layers(&self) -> Group {
        let cold = self.cold.iter().map(|file| Layer::Cold(Arc::clone(file)));
        let chunks = self.chunks.iter().map(|chunk| Layer::Chunk(Arc::clone(chunk)));
        Group { layers: cold.chain(chunks).collect() }
    }
}

/// Splits the chunks that reach over more than one day, where a day of theirs is to move.
fn split_all(inner: &Arc<Inner>, id: TableId, before: Timestamp, failures: &mut Failures) -> Result<()> {
    let version = inner.versions.current();
    let Some(table) = table_behind(inner, id) else { return Ok(()) };
    for chunk in to_split(&version, id, before) {
        let outcome = split(inner, &table, &chunk);
        failures.passed(&table, &day_of(chunk.meta.times.0), outcome)?;
    }
    Ok(())
}

/// Rewrites a chunk as one chunk for each of its days, as far as its range goes: beyond it there may be chunks with the
/// same SeqNos.
fn split(inner: &Arc<Inner>, table: &Arc<Table>, chunk: &Arc<Chunk>) -> Result<()> {
    let order = table.series().order();
    let masks = inner.versions.current().masks_of(table.id());
    let mut parts = Vec::new();
    let mut day = day_of(chunk.meta.times.0);
    loop {
        let context = Arc::new(ScanContext::whole(
            table,
            Arc::clone(&order),
            day,
            masks.clone(),
            inner.options.merge_bytes,
        ));
        let source = Source::Chunk(ChunkSource::merged(&context, chunk, 1));
        let merge = Merge::newest_wins(Arc::clone(&context), vec![source]);
        let range = chunk.meta.range.intersect(&day);
        parts.extend(write_chunk(inner, &context, range, chunk.meta.seq, Profile::Fast, merge)?);
        if day.end > chunk.meta.times.1 {
            break;
        }
        day = day_of(day.end);
    }
    let mut edits = vec![Edit::RemoveChunk(chunk.meta.id)];
    edits.extend(parts.iter().flat_map(|part| part.edits()));
    let remove = vec![(table.id(), chunk.meta.id)];
    inner.install(&edits, &FileEdit { add: parts, remove, ..FileEdit::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cold::DAY;
    use crate::storage::LocalStorage;
    use crate::version::TableFiles;
    use sonde_storage_format::{ChunkMeta, SeqRange};

    const TABLE: TableId = TableId(1);
    const HOUR: i64 = DAY / 24;

    fn at(nanos: i64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    /// Start and end of two ranges: the partition, and the rows' times.
    type Ranges = ((i64, i64), (i64, i64));

    /// Chunks, each newer than the one before; named by their ids from 0 on. Day 0 is cold already.
    fn version(chunks: &[Ranges]) -> Version {
        let mut files = TableFiles::default();
        for (i, (range, times)) in chunks.iter().enumerate() {
            let seq = SeqNo(10 * i as u64 + 1);
            let meta = ChunkMeta {
                id: ChunkId(i as u64),
                table: TABLE,
                range: TimeRange { start: at(range.0), end: at(range.1) },
                times: (at(times.0), at(times.1)),
                seq: SeqRange { first: seq, last: seq.plus(8) },
                rows: 1,
                series: 1,
                bytes: 1,
                columns: Vec::new(),
            };
            let chunk = Arc::new(Chunk::new(meta, "never opened".into(), Arc::new(LocalStorage)));
            chunk.keep();
            let chunks = files.partitions.entry((at(range.0), at(range.1))).or_default();
            Arc::make_mut(chunks).push(chunk);
        }
        let day = day_of(at(0));
        let cold = ColdFile { table: TABLE, day, position: SeqNo(0), path: "p".into(), rows: 1, bytes: 1 };
        files.cold.insert(day.start, Arc::new(cold));
        Version { files: [(TABLE, Arc::new(files))].into(), ..Version::default() }
    }

    /// (day, chunks, whether it was cold) of each plan.
    fn plans(version: &Version, before: i64) -> Vec<(i64, Vec<u64>, bool)> {
        let shown = |plan: DayPlan| {
            assert_eq!(plan.position, SeqNo(99));
            let chunks = plan.chunks.iter().map(|chunk| chunk.meta.id.0).collect();
            (plan.day.start.as_nanos() / DAY, chunks, plan.cold.is_some())
        };
        plan(version, SeqNo(99), TABLE, at(before)).into_iter().map(shown).collect()
    }

    #[test]
    fn complete_days_move_with_all_their_chunks_oldest_first() {
        let hour = |hour: i64| ((hour * HOUR, (hour + 1) * HOUR), (hour * HOUR, hour * HOUR));
        let day = |day: i64| ((day * DAY, (day + 1) * DAY), (day * DAY, day * DAY));
        let version = version(&[hour(5), hour(3), day(0), hour(5), hour(30), day(2)]);
        assert!(plans(&version, DAY - 1).is_empty());
        assert_eq!(plans(&version, DAY), [(0, vec![0, 1, 2, 3], true)]);
        let days = [(0, vec![0, 1, 2, 3], true), (1, vec![4], false), (2, vec![5], false)];
        assert_eq!(plans(&version, 3 * DAY), days);
        assert!(plan(&version, SeqNo(99), TableId(2), Timestamp::MAX).is_empty());
    }

    /// What a flush adds between the split and the plan: its rows of the day are older than those of a chunk behind it.
    #[test]
    fn a_day_waits_for_the_split_of_a_wider_chunk() {
        let day = |day: i64| ((day * DAY, (day + 1) * DAY), (day * DAY, day * DAY));
        let week = ((0, 7 * DAY), (DAY + 5, 2 * DAY));
        let version = version(&[day(0), day(1), week, day(1), day(2), day(3)]);
        let days: Vec<i64> = plans(&version, 7 * DAY).iter().map(|(day, _, _)| *day).collect();
        assert_eq!(days, [0, 3]);
        let split = |before| to_split(&version, TABLE, at(before)).len();
        assert_eq!((split(2 * DAY - 1), split(2 * DAY)), (0, 1));
        // A day long, and of two days.
        let noon = ((12 * HOUR, 36 * HOUR), (12 * HOUR, 30 * HOUR));
        let version = self::version(&[day(0), noon]);
        assert!(plans(&version, 7 * DAY).is_empty());
        assert_eq!(to_split(&version, TABLE, at(DAY)).len(), 1);
    }
}
