//! Decides which chunks to merge, and merges them.
//!
//! # Invariants
//! - Only chunks of one partition are merged, and only where no other chunk of overlapping time has a SeqNo between
//!   theirs, so "newest" keeps its meaning.
//! - The plan is a pure function of the version.

use std::sync::Arc;

use sonde_storage_format::{ChunkId, Edit, SeqRange, TableId, TimeRange, Timestamp};

use crate::engine::Inner;
use crate::error::Result;
use crate::flush::write_chunk;
use crate::limits::{CHUNK_ROWS, COMPACT_CHUNKS};
use crate::scan::ScanContext;
use crate::scan::merge::Merge;
use crate::scan::source::{ChunkSource, Source};
use crate::version::{Chunk, FileEdit, TableFiles, Version};

/// Chunks of one partition to merge into one, oldest first.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) table: TableId,
    pub(crate) range: TimeRange,
    pub(crate) chunks: Vec<Arc<Chunk>>,
}

/// The next merge worth doing that does not rest: the partition with the most chunks, from `COMPACT_CHUNKS` on; of it
/// the longest contiguous run that stays below `CHUNK_ROWS`.
pub(crate) fn plan(version: &Version, rests: impl Fn(&Plan) -> bool) -> Option<Plan> {
    let runs = version.files.iter().flat_map(|(table, files)| runs(*table, files, COMPACT_CHUNKS));
    let small = runs.map(|plan| Plan { chunks: small_run(&plan.chunks), ..plan });
    let ready = small.filter(|plan| plan.chunks.len() >= COMPACT_CHUNKS && !rests(plan));
    ready.max_by_key(|plan| plan.chunks.len())
}

/// Everything of one table, partition by partition, for `COMPACT TABLE`.
pub(crate) fn plan_all(version: &Version, table: TableId) -> Vec<Plan> {
    version.files.get(&table).into_iter().flat_map(|files| runs(table, files, 2)).collect()
}

/// The runs of a table's partitions that are contiguous in SeqNo and have at least so many chunks. Partitions of
/// different widths overlap: a run ends where a chunk of another partition stands between two of its chunks.
fn runs(table: TableId, files: &TableFiles, at_least: usize) -> impl Iterator<Item = Plan> {
    let partitions = files.partitions.iter().filter(move |(_, chunks)| chunks.len() >= at_least);
    let split = move |((start, end), chunks): ((Timestamp, Timestamp), &Arc<Vec<Arc<Chunk>>>)| {
        let range = TimeRange { start, end };
        let others: Vec<SeqRange> = files
            .chunks()
            .map(|chunk| &chunk.meta)
            .filter(|meta| meta.range != range && meta.range.overlaps(&range))
            .map(|meta| meta.seq)
            .collect();
        let joined = |a: &Arc<Chunk>, b: &Arc<Chunk>| {
            !others.iter().any(|other| other.first <= b.meta.seq.last && a.meta.seq.first <= other.last)
        };
        let runs = chunks.chunk_by(joined).filter(|run| run.len() >= at_least);
        runs.map(|run| Plan { table, range, chunks: run.to_vec() }).collect::<Vec<Plan>>()
    };
    partitions.map(|(range, chunks)| (*range, chunks)).flat_map(split)
}

/// The newest contiguous chunks whose sum stays below the limit; a large old chunk is left alone until the new ones
/// together reach a quarter of it, which bounds how often a row is rewritten.
fn small_run(chunks: &[Arc<Chunk>]) -> Vec<Arc<Chunk>> {
    let mut run: Vec<Arc<Chunk>> = Vec::new();
    let mut rows = 0;
    for chunk in chunks.iter().rev() {
        let grows_too_much = run.len() >= COMPACT_CHUNKS - 1 && chunk.meta.rows > 4 * rows;
        if rows + chunk.meta.rows > CHUNK_ROWS || grows_too_much {
            break;
        }
        rows += chunk.meta.rows;
        run.push(Arc::clone(chunk));
    }
    run.reverse();
    run
}

/// Merges the chunks of a plan and installs the result.
pub(crate) fn compact(inner: &Arc<Inner>, plan: &Plan) -> Result<()> {
    // Behind the plan's version: the catalog knows every column that the chunks have, the masks all that hides rows.
    let masks = inner.versions.current().masks_of(plan.table);
    let catalog = inner.catalog.load_full();
    let Some(table) = catalog.table_by_id(plan.table) else { return Ok(()) };
    let order = table.series().order();
    let context = Arc::new(ScanContext::whole(table, order, TimeRange::ALL, masks));
    let sources =
        plan.chunks.iter().map(|chunk| Source::Chunk(ChunkSource::new(&context, chunk, false))).collect();
    let merge = Merge::newest_wins(Arc::clone(&context), sources);
    let seq = plan.chunks.iter().map(|chunk| chunk.meta.seq).reduce(|a, b| a.union(b));
    let Some(seq) = seq else { return Ok(()) };
    let merged = write_chunk(inner, &context, plan.range, seq, table.def().options.profile, merge)?;
    let mut edits: Vec<Edit> = plan.chunks.iter().map(|chunk| Edit::RemoveChunk(chunk.meta.id)).collect();
    edits.extend(merged.iter().flat_map(|chunk| chunk.edits()));
    let remove: Vec<(TableId, ChunkId)> =
        plan.chunks.iter().map(|chunk| (plan.table, chunk.meta.id)).collect();
    let edit = FileEdit { add: merged.into_iter().collect(), remove, ..FileEdit::default() };
    inner.install(&edits, &edit)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::storage::LocalStorage;
    use sonde_storage_format::{ChunkMeta, SeqNo};

    const TABLE: TableId = TableId(1);

    fn range(start: i64, end: i64) -> TimeRange {
        TimeRange { start: Timestamp::from_nanos(start), end: Timestamp::from_nanos(end) }
    }

    /// Chunks of (partition, rows), each newer than the one before; named by their ids from 0 on.
    fn version(chunks: &[(TimeRange, u64)]) -> Version {
        let mut files = TableFiles::default();
        for (i, (range, rows)) in chunks.iter().enumerate() {
            let seq = SeqNo(10 * i as u64 + 1);
            let meta = ChunkMeta {
                id: ChunkId(i as u64),
                table: TABLE,
                range: *range,
                times: (range.start, range.start),
                seq: SeqRange { first: seq, last: seq.plus(8) },
                rows: *rows,
                series: 1,
                bytes: 1,
                columns: Vec::new(),
            };
            let chunk = Arc::new(Chunk::new(meta, "never opened".into(), Arc::new(LocalStorage)));
            chunk.keep();
            Arc::make_mut(files.partitions.entry((range.start, range.end)).or_default()).push(chunk);
        }
        Version { files: [(TABLE, Arc::new(files))].into(), ..Version::default() }
    }

    fn ids(plan: &Plan) -> Vec<u64> {
        plan.chunks.iter().map(|chunk| chunk.meta.id.0).collect()
    }

    fn next(version: &Version) -> Option<Plan> {
        plan(version, |_| false)
    }

    #[test]
    fn a_plan_that_rests_lets_the_next_one_go() {
        let (day, other) = (range(0, 10), range(10, 20));
        let version = version(&[(day, 5), (day, 5), (day, 5), (day, 5), (day, 5), (other, 5)]);
        assert!(plan(&version, |plan| plan.range == day).is_none());
        assert_eq!(ids(&plan(&version, |plan| plan.range == other).unwrap()), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_merge_is_worth_it_from_four_small_neighbours_on() {
        let day = range(0, 10);
        assert!(next(&version(&[(day, 5); 3])).is_none());
        assert_eq!(ids(&next(&version(&[(day, 5); 5])).unwrap()), [0, 1, 2, 3, 4]);
        // A large old chunk waits until the new ones are a quarter of it.
        let large = |rows| version(&[(day, rows), (day, 5), (day, 5), (day, 5), (day, 5)]);
        assert_eq!(ids(&next(&large(80)).unwrap()), [0, 1, 2, 3, 4]);
        assert_eq!(ids(&next(&large(81)).unwrap()), [1, 2, 3, 4]);
        assert_eq!(ids(&next(&large(CHUNK_ROWS)).unwrap()), [1, 2, 3, 4]);
        // The partition with the most.
        let other = range(10, 20);
        let mixed = version(&[
            (day, 5),
            (other, 5),
            (day, 5),
            (other, 5),
            (day, 5),
            (other, 5),
            (day, 5),
            (other, 5),
            (other, 5),
        ]);
        assert_eq!(ids(&next(&mixed).unwrap()), [1, 3, 5, 7, 8]);
    }

    #[test]
    fn a_run_ends_at_a_chunk_of_another_width() {
        let (day, week, later) = (range(0, 10), range(0, 70), range(10, 20));
        let chunks = [(day, 5), (day, 5), (week, 5), (day, 5), (later, 5), (day, 5), (day, 5), (day, 5)];
        let runs: Vec<Vec<u64>> = plan_all(&version(&chunks), TABLE).iter().map(ids).collect();
        assert_eq!(runs, [vec![0, 1], vec![3, 5, 6, 7]]);
        assert_eq!(ids(&next(&version(&chunks)).unwrap()), [3, 5, 6, 7]);
        assert!(plan_all(&version(&chunks), TableId(2)).is_empty());
    }
}
