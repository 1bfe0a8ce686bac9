//! Decides which chunks to merge, and merges them.
//!
//! # Invariants
//! - Only sets contiguous in SeqNo within one partition are merged, so "newest" keeps its meaning.
//! - The plan is a pure function of the version.

use std::sync::Arc;

use sonde_storage_format::{ChunkId, Edit, TableId, TimeRange};

use crate::engine::Inner;
use crate::error::Result;
use crate::flush::write_chunk;
use crate::limits::{CHUNK_ROWS, COMPACT_CHUNKS};
use crate::scan::ScanContext;
use crate::scan::merge::Merge;
use crate::scan::source::{ChunkSource, Source};
use crate::version::{Chunk, FileEdit, Version};

/// Chunks of one partition to merge into one, oldest first.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) table: TableId,
    pub(crate) range: TimeRange,
    pub(crate) chunks: Vec<Arc<Chunk>>,
}

/// The next merge worth doing: the partition with the most chunks, from `COMPACT_CHUNKS` on; of it the longest
/// contiguous run that stays below `CHUNK_ROWS`.
pub(crate) fn plan(version: &Version) -> Option<Plan> {
    let partitions = version.files.iter().flat_map(|(table, files)| {
        files.partitions.iter().map(move |(range, chunks)| (*table, *range, chunks))
    });
    let candidates = partitions.filter(|(_, _, chunks)| chunks.len() >= COMPACT_CHUNKS);
    let runs = candidates.filter_map(|(table, (start, end), chunks)| {
        let run = small_run(chunks);
        (run.len() >= COMPACT_CHUNKS).then(|| Plan { table, range: TimeRange { start, end }, chunks: run })
    });
    runs.max_by_key(|plan| plan.chunks.len())
}

/// Everything of one table, partition by partition, for `COMPACT TABLE`.
pub(crate) fn plan_all(version: &Version, table: TableId) -> Vec<Plan> {
    let Some(files) = version.files.get(&table) else { return Vec::new() };
    let plans = files.partitions.iter().map(|((start, end), chunks)| Plan {
        table,
        range: TimeRange { start: *start, end: *end },
        chunks: chunks.as_ref().clone(),
    });
    plans.filter(|plan| plan.chunks.len() > 1).collect()
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
    let catalog = inner.catalog.load_full();
    let Some(table) = catalog.table_by_id(plan.table) else { return Ok(()) };
    let order = inner.series.table(table.id()).order();
    let context = Arc::new(ScanContext::whole(table, order, TimeRange::ALL));
    let sources = plan.chunks.iter().map(|chunk| Source::Chunk(ChunkSource::new(&context, chunk, false))).collect();
    let merge = Merge::newest_wins(Arc::clone(&context), sources);
    let seq = plan.chunks.iter().map(|chunk| chunk.meta.seq).reduce(|a, b| a.union(b));
    let Some(seq) = seq else { return Ok(()) };
    let merged = write_chunk(inner, &context, plan.range, seq, merge)?;
    let mut edits: Vec<Edit> = plan.chunks.iter().map(|chunk| Edit::RemoveChunk(chunk.meta.id)).collect();
    edits.extend(merged.iter().map(|chunk| Edit::AddChunk(chunk.meta.clone())));
    let remove: Vec<(TableId, ChunkId)> = plan.chunks.iter().map(|chunk| (plan.table, chunk.meta.id)).collect();
    let edit = FileEdit { add: merged.into_iter().collect(), remove, ..FileEdit::default() };
    inner.install(&edits, &edit)
}
