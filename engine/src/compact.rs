//! Merges chunks: of one partition into one, and wide ones into the partitions that they lie over.
//!
//! What to merge is decided by `plan`, how wide partitions are by `width`: pure functions. Here is what carries them
//! out, and what the job thread remembers between two looks.
//!
//! # Invariants
//! - A plan is a function of the version, the catalog, the clock and the notes; it touches no file.
//! - What a merge writes covers the SeqNos of its inputs; `plan` sees to it that no other chunk lies between them.

pub(crate) mod plan;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod simulation;
pub(crate) mod stats;
pub(crate) mod width;

use std::cell::Cell as Flag;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sonde_storage_format::{
    ChunkId, ChunkMeta, Edit, Profile, SeqNo, TIME_COLUMN, TableId, TimeRange, Timestamp, encode_page_as,
};

use crate::catalog::{Catalog, Table};
use crate::cold::DAY;
use crate::compact::plan::{Choice, Outlook, choose, choose_all};
use crate::compact::width::{Widths, in_memory};
use crate::engine::Inner;
use crate::error::Result;
use crate::flush::write_chunk;
use crate::scan::ScanContext;
use crate::scan::merge::Merge;
use crate::scan::source::{ChunkSource, Source};
use crate::version::{Chunk, FileEdit, TableFiles, Version};

/// How often a table is looked at whose files have not changed: partitions go quiet by themselves.
const LOOK: i64 = 60_000_000_000;

/// Chunks to merge, oldest first, and the ranges of the chunks that they become.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) table: TableId,
    pub(crate) chunks: Vec<Arc<Chunk>>,
    pub(crate) ranges: Vec<TimeRange>,
}

impl Plan {
    fn of(table: TableId, files: &TableFiles, choice: Choice) -> Self {
        let wanted: BTreeSet<ChunkId> = choice.chunks.iter().copied().collect();
        let mut chunks: Vec<Arc<Chunk>> =
            files.chunks().filter(|chunk| wanted.contains(&chunk.meta.id)).cloned().collect();
        chunks.sort_by_key(|chunk| chunk.meta.seq.first);
        Self { table, chunks, ranges: choice.ranges }
    }

    /// The range of everything that it writes.
    pub(crate) fn range(&self) -> TimeRange {
        whole(&self.ranges)
    }
}

fn whole(ranges: &[TimeRange]) -> TimeRange {
    let nothing = TimeRange { start: Timestamp::MAX, end: Timestamp::MIN };
    ranges.iter().fold(nothing, |whole, range| whole.union(range))
}

/// What the job thread remembers of chunks. Nothing of it is stored: after a restart every chunk counts as new, which
/// only delays the merges of what is quiet.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    since: BTreeMap<TableId, BTreeMap<ChunkId, Timestamp>>,
    /// Tables with nothing to do: the place of their files in memory, which changes with them, and since when.
    idle: BTreeMap<TableId, (usize, Timestamp)>,
    /// Chunks that no dense encoding makes smaller.
    dense: BTreeMap<TableId, BTreeSet<ChunkId>>,
}

impl Notes {
    /// Takes note of a table's chunks; whether there is a reason to look at them.
    fn look(&mut self, table: TableId, files: &Arc<TableFiles>, now: Timestamp) -> bool {
        let place = Arc::as_ptr(files).addr();
        let same = |(known, since): &(usize, Timestamp)| {
            *known == place && now.as_nanos().abs_diff(since.as_nanos()) < LOOK.unsigned_abs()
        };
        if self.idle.get(&table).is_some_and(same) {
            return false;
        }
        self.idle.insert(table, (place, now));
        let before = self.since.remove(&table).unwrap_or_default();
        let since = |id: ChunkId| (id, before.get(&id).copied().unwrap_or(now));
        let since: BTreeMap<ChunkId, Timestamp> = files.chunks().map(|chunk| since(chunk.meta.id)).collect();
        if let Some(dense) = self.dense.get_mut(&table) {
            dense.retain(|id| since.contains_key(id));
        }
        self.since.insert(table, since);
        true
    }

    fn is_dense(&self, table: TableId, chunk: ChunkId) -> bool {
        self.dense.get(&table).is_some_and(|dense| dense.contains(&chunk))
    }

    /// Forgets tables that are gone.
    fn forget(&mut self, version: &Version) {
        self.since.retain(|table, _| version.files.contains_key(table));
        self.idle.retain(|table, _| version.files.contains_key(table));
        self.dense.retain(|table, _| version.files.contains_key(table));
    }
}

/// What a plan is made of.
#[derive(Clone, Copy)]
pub(crate) struct Scene<'a> {
    pub(crate) version: &'a Version,
    /// Asked for behind the version, so that it knows every column of the chunks.
    pub(crate) catalog: &'a Catalog,
    pub(crate) widths: &'a Widths,
    pub(crate) now: Timestamp,
}

/// The merge most worth doing that does not rest.
pub(crate) fn plan(
    scene: &Scene<'_>,
    notes: &mut Notes,
    rests: impl Fn(TableId, TimeRange) -> bool,
) -> Option<Plan> {
    notes.forget(scene.version);
    let mut best: Option<(Choice, TableId, &Arc<TableFiles>)> = None;
    for (id, files) in &scene.version.files {
        let Some(table) = scene.catalog.table_by_id(*id) else { continue };
        if !notes.look(*id, files, scene.now) {
            continue;
        }
        let resting = Flag::new(false);
        let may = |choice: &Choice| {
            let rests = rests(*id, whole(&choice.ranges));
            resting.set(resting.get() || rests);
            !rests
        };
        let choice = choose_of(scene, notes, table, files, may);
        // There is more to do here, be it now or next time.
        if choice.is_some() || resting.get() {
            notes.idle.remove(id);
        }
        let Some(choice) = choice else { continue };
        if best.as_ref().is_none_or(|(best, _, _)| best.weight < choice.weight) {
            best = Some((choice, *id, files));
        }
    }
    best.map(|(choice, table, files)| Plan::of(table, files, choice))
}

/// The width of the partitions that small chunks are joined into: days, where days are to go to the cold tier one by one.
fn join_width(scene: &Scene<'_>, table: &Table) -> i64 {
    let width = scene.widths.of(table.def());
    if table.def().options.cold_after > 0 { width.min(DAY) } else { width }
}

fn choose_of(
    scene: &Scene<'_>,
    notes: &Notes,
    table: &Table,
    files: &TableFiles,
    may: impl Fn(&Choice) -> bool,
) -> Option<Choice> {
    let metas: Vec<&ChunkMeta> = files.chunks().map(|chunk| &chunk.meta).collect();
    let since = notes.since.get(&table.id());
    let since = |id: ChunkId| since.and_then(|since| since.get(&id)).copied().unwrap_or(scene.now);
    let thin = |id: ChunkId| !notes.is_dense(table.id(), id);
    let outlook = Outlook {
        now: scene.now,
        width: join_width(scene, table),
        since: &since,
        in_memory: &in_memory(scene.version, table.id()),
        thin: (table.def().options.profile == Profile::Dense).then_some(&thin),
    };
    choose(&metas, &outlook, may)
}

/// The next merge on the way to one chunk for each partition of a table, of what was written up to `until` and did not
/// fail, for `COMPACT TABLE`.
pub(crate) fn plan_all(
    scene: &Scene<'_>,
    table: &Table,
    until: Option<SeqNo>,
    failed: &[TimeRange],
) -> Option<Plan> {
    let files = scene.version.files.get(&table.id())?;
    let metas = files.chunks().map(|chunk| &chunk.meta);
    let metas: Vec<&ChunkMeta> = metas.filter(|meta| Some(meta.seq.last) <= until).collect();
    let may = |choice: &Choice| !failed.contains(&whole(&choice.ranges));
    let choice = choose_all(&metas, join_width(scene, table), may)?;
    Some(Plan::of(table.id(), files, choice))
}

/// Carries out a plan, and notes what it came to.
pub(crate) fn compact(inner: &Arc<Inner>, plan: &Plan, notes: &mut Notes) -> Result<()> {
    if let [chunk] = plan.chunks.as_slice()
        && plan.ranges == [chunk.meta.range]
        && !gets_denser(chunk)?
    {
        notes.dense.entry(plan.table).or_default().insert(chunk.meta.id);
        return Ok(());
    }
    rewrite(inner, plan, notes)
}

/// Writes the chunks of a plan again as it says, and installs the result.
pub(crate) fn rewrite(inner: &Arc<Inner>, plan: &Plan, notes: &mut Notes) -> Result<()> {
    // Behind the plan's version: the catalog knows every column that the chunks have.
    let catalog = inner.catalog.load_full();
    let Some(table) = catalog.table_by_id(plan.table) else { return Ok(()) };
    let profile = table.def().options.profile;
    let merged = merge(inner, table, plan, profile)?;
    if profile == Profile::Dense {
        notes.dense.entry(plan.table).or_default().extend(merged.iter().map(|chunk| chunk.meta.id));
    }
    let mut edits: Vec<Edit> = plan.chunks.iter().map(|chunk| Edit::RemoveChunk(chunk.meta.id)).collect();
    edits.extend(merged.iter().flat_map(|chunk| chunk.edits()));
    let remove: Vec<(TableId, ChunkId)> =
        plan.chunks.iter().map(|chunk| (plan.table, chunk.meta.id)).collect();
    inner.compactions.merged(plan.table, merged.iter().map(|chunk| &chunk.meta));
    inner.install(&edits, &FileEdit { add: merged, remove, ..FileEdit::default() })
}

fn merge(inner: &Arc<Inner>, table: &Arc<Table>, plan: &Plan, profile: Profile) -> Result<Vec<Arc<Chunk>>> {
    let Some(seq) = plan.chunks.iter().map(|chunk| chunk.meta.seq).reduce(|a, b| a.union(b)) else {
        return Ok(Vec::new());
    };
    // Behind the plan's version, too: all that hides rows of its chunks.
    let masks = inner.versions.current().masks_of(plan.table);
    let order = table.series().order();
    let mut merged = Vec::with_capacity(plan.ranges.len());
    for range in &plan.ranges {
        let context = Arc::new(ScanContext::whole(
            table,
            Arc::clone(&order),
            *range,
            masks.clone(),
            inner.options.merge_bytes,
        ));
        let has_rows =
            |chunk: &&Arc<Chunk>| chunk.meta.times.0 < range.end && range.start <= chunk.meta.times.1;
        let chunks: Vec<&Arc<Chunk>> = plan.chunks.iter().filter(has_rows).collect();
        let source = |chunk: &&Arc<Chunk>| Source::Chunk(ChunkSource::merged(&context, chunk, chunks.len()));
        let sources = chunks.iter().map(source).collect();
        let merge = Merge::newest_wins(Arc::clone(&context), sources);
        merged.extend(write_chunk(inner, &context, *range, seq, profile, merge)?);
    }
    Ok(merged)
}

/// Whether the dense encoding would make a chunk smaller, judged by its largest page; one that is dense stays as it is.
fn gets_denser(chunk: &Chunk) -> Result<bool> {
    let open = chunk.open()?;
    let Some((id, page)) = open.largest_page() else { return Ok(false) };
    let column = open.rows(page, std::slice::from_ref(&(0..page.stats.rows as usize)))?;
    Ok(encode_page_as(Profile::Dense, &column, id == TIME_COLUMN).len() < page.len as usize)
}
