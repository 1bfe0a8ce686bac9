//! The newest point of each series, without a cache that someone has to declare.
//!
//! Groups of layers are looked at newest first, and only for the series that are still open. In a group, what is known
//! without reading rows bounds the newest time of each: the directories of its files, each read once in a process's
//! life (`newest.rs`), and the times in memory. Then rows are read as every scan reads them, from the smallest bound on,
//! for those series alone; a series with a row there is settled, since nothing is newer.
//!
//! # Invariants
//! - A bound is never too small. It may be too large, where rows are hidden or gone: a series that has no row at its
//!   bound is looked for below it, in this group and in older ones.
//! - Rows come through `Source` and `Merge` alone, so what hides or folds them there does so here.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use sonde_storage_format::limits::ROW_GROUP_ROWS;
use sonde_storage_format::{ColdFile, Column, ColumnId, SeriesId, TimeRange, Timestamp};

use crate::catalog::Table;
use crate::cold::read::ColdSource;
use crate::engine::Inner;
use crate::error::Result;
use crate::limits::BATCH_ROWS;
use crate::memtable::{Block, PartitionBlocks};
use crate::newest::FileName;
use crate::scan::batch::{schema, to_batch};
use crate::scan::merge::{Merge, Window, kinds};
use crate::scan::prune::{Group, Layer, groups};
use crate::scan::{ScanContext, ScanRequest, Snapshot, TagFilter, context, source};
use crate::version::{Chunk, Version};

/// Marks a series that is settled, or was not asked for.
const SETTLED: i64 = i64::MAX;
/// Rows that may be read for each series that is looked for; with more the series are read in parts of like bounds.
const ROWS_PER_SERIES: u64 = 8;

/// Which newest points are wanted.
#[derive(Clone, Debug)]
pub struct LatestRequest {
    /// The table, as the snapshot's catalog has it.
    pub table: Arc<Table>,
    /// The columns to return, in this order.
    pub columns: Vec<ColumnId>,
    /// Series that fail one of these are not returned.
    pub tags: Vec<TagFilter>,
    /// Which part of the series, in key order, and of how many: parts can be asked for at the same time.
    pub part: (usize, usize),
}

impl LatestRequest {
    /// The newest point of each series of a table, with these columns.
    #[must_use]
    pub fn all(table: Arc<Table>, columns: Vec<ColumnId>) -> Self {
        Self { table, columns, tags: Vec::new(), part: (0, 1) }
    }
}

/// The newest point of each series, in key order, at most 8,192 in a batch.
#[derive(Debug)]
pub struct Latest {
    context: ScanContext,
    schema: SchemaRef,
    columns: Vec<ColumnId>,
    pieces: Vec<Window>,
    /// By rank.
    found: Vec<Found>,
    /// How many are out.
    done: usize,
}

/// Where the row of a series is.
#[derive(Clone, Copy, Debug)]
struct Found {
    rank: u32,
    piece: u32,
    row: u32,
}

/// A series that is looked for, and the newest time that it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    bound: i64,
    rank: u32,
}

/// Finds the newest point of each series that passes the request's filters.
pub(crate) fn latest(inner: &Arc<Inner>, snapshot: &Snapshot, request: &LatestRequest) -> Result<Latest> {
    let mut all = ScanRequest::all(Arc::clone(&request.table), request.columns.clone());
    all.tags.clone_from(&request.tags);
    let mut context = context(inner, &snapshot.version, &all);
    context.needs_points = true;
    let wanted = context.wanted.take();
    let mut search = Search::new(inner, &context, wanted.as_deref(), request.part);
    for group in groups(&snapshot.version, &context).iter().rev() {
        if search.open.is_empty() {
            break;
        }
        search.visit(&snapshot.version, group)?;
    }
    let Search { mut found, pieces, .. } = search;
    if !found.is_sorted_by_key(|found| found.rank) {
        found.sort_unstable_by_key(|found| found.rank);
    }
    let schema = schema(&request.table, &request.columns);
    Ok(Latest { context, schema, columns: request.columns.clone(), pieces, found, done: 0 })
}

impl Latest {
    /// The schema of the batches.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// The number of series that have a point.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.found.len()
    }

    /// About the bytes that the points take in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let of_columns = |piece: &Window| piece.columns.iter().map(Column::byte_len).sum::<usize>();
        let of_pieces = self.pieces.iter().map(|piece| 12 * piece.rows() + of_columns(piece));
        of_pieces.sum::<usize>() + size_of_val(self.found.as_slice())
    }

    fn window(&self, found: &[Found]) -> Window {
        let (mut ranks, mut times) = (Vec::with_capacity(found.len()), Vec::with_capacity(found.len()));
        let mut columns: Vec<Column> = kinds(&self.context).into_iter().map(Column::new).collect();
        let follows = |a: &Found, b: &Found| a.piece == b.piece && a.row + 1 == b.row;
        for run in found.chunk_by(follows) {
            let Some(first) = run.first() else { continue };
            let Some(piece) = self.pieces.get(first.piece as usize) else { continue };
            let rows = first.row as usize..first.row as usize + run.len();
            ranks.extend_from_slice(piece.ranks.get(rows.clone()).unwrap_or_default());
            times.extend_from_slice(piece.times.get(rows.clone()).unwrap_or_default());
            for (column, from) in columns.iter_mut().zip(&piece.columns) {
                column.extend_from(from, rows.clone());
            }
        }
        Window::new(ranks, times, columns)
    }
}

impl Iterator for Latest {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.found.get(self.done..).unwrap_or_default();
        let part = rest.get(..rest.len().min(BATCH_ROWS)).filter(|part| !part.is_empty())?;
        let window = self.window(part);
        self.done += part.len();
        Some(to_batch(&self.context, &self.schema, &self.columns, window))
    }
}

struct Search<'s> {
    inner: &'s Arc<Inner>,
    /// Of all rows of the table.
    context: &'s ScanContext,
    /// The ranks that are looked for, ascending.
    open: Vec<u32>,
    /// By rank: what is open may have rows up to here in the group that is visited.
    bounds: Vec<i64>,
    found: Vec<Found>,
    pieces: Vec<Window>,
}

impl<'s> Search<'s> {
    fn new(
        inner: &'s Arc<Inner>,
        context: &'s ScanContext,
        wanted: Option<&[bool]>,
        (part, parts): (usize, usize),
    ) -> Self {
        let wants = |rank: &u32| wanted.is_none_or(|wanted| wanted.get(*rank as usize) == Some(&true));
        let mut open: Vec<u32> = (0..context.order.len() as u32).filter(wants).collect();
        // By the series that are wanted, so that each part has as much to do.
        let border = |part: usize| (open.len() as u128 * part as u128 / parts.max(1) as u128) as usize;
        let (start, end) = (border(part), border(part + 1).min(open.len()));
        open.truncate(end);
        open.drain(..start.min(end));
        let mut bounds = vec![SETTLED; context.order.len()];
        for rank in &open {
            if let Some(bound) = bounds.get_mut(*rank as usize) {
                *bound = i64::MIN;
            }
        }
        Self { inner, context, open, bounds, found: Vec::new(), pieces: Vec::new() }
    }

    /// Settles the open series that have a row in a group; all newer groups were visited.
    fn visit(&mut self, version: &Version, group: &Group) -> Result<()> {
        let range = range_of(group);
        self.bound_by_files(version, group, &range)?;
        self.bound_by_memory(group);
        let mut candidates: Vec<Candidate> = Vec::new();
        for rank in &self.open {
            let bound = self.bounds.get(*rank as usize).copied().unwrap_or(SETTLED);
            if bound >= range.start.as_nanos() {
                candidates.push(Candidate { bound, rank: *rank });
            }
        }
        if candidates.is_empty() {
            return Ok(());
        }
        let mut left = Vec::new();
        self.read_in_parts(group, &mut candidates, &mut left)?;
        // What was hidden at its bound: whatever there is below it.
        if let Some(last) = left.iter().map(|candidate| candidate.bound).max() {
            let below = TimeRange { start: range.start, end: Timestamp::from_nanos(last) };
            self.read(group, below, &left)?;
        }
        let bounds = &self.bounds;
        self.open.retain(|rank| bounds.get(*rank as usize).is_some_and(|bound| *bound != SETTLED));
        Ok(())
    }

    /// Bounds the open series by what the directories of the group's files say; those that are not in them get
    /// `i64::MIN`.
    fn bound_by_files(&mut self, version: &Version, group: &Group, range: &TimeRange) -> Result<()> {
        let mut has_files = false;
        for layer in &group.layers {
            match layer {
                Layer::Memory(_) => continue,
                Layer::Chunk(chunk) => self.read_directory(version, chunk)?,
                Layer::Cold(file) => self.read_series(version, file)?,
            }
            has_files = true;
        }
        let newest = self.context.table.series().newest().read();
        for rank in &self.open {
            let Some(bound) = self.bounds.get_mut(*rank as usize) else { continue };
            let known = if has_files { newest.bound(self.context.order.id(*rank)) } else { i64::MIN };
            // Newer files that have the series show none of its rows there, and do not say what is here.
            *bound = known.min(range.end.as_nanos() - 1);
        }
        Ok(())
    }

    fn read_directory(&self, version: &Version, chunk: &Arc<Chunk>) -> Result<()> {
        let name = FileName::Chunk(chunk.meta.id);
        if self.context.table.series().newest().read().has_read(&name) {
            return Ok(());
        }
        let open = chunk.open()?;
        self.inner.open_chunks.keep(&open);
        self.add(version, name, open.series.iter().map(|run| (run.id, run.last)));
        Ok(())
    }

    /// Cold files have no directory of series: their tags and times are read, once.
    fn read_series(&self, version: &Version, file: &ColdFile) -> Result<()> {
        let name = FileName::of_cold(file);
        if self.context.table.series().newest().read().has_read(&name) {
            return Ok(());
        }
        let context = Arc::new(ScanContext { fields: Vec::new(), ..self.context.clone() });
        let mut source = ColdSource::open(self.inner, &context, file)?;
        let mut series: Vec<(SeriesId, Timestamp)> = Vec::new();
        while let Some(window) = source.next_window()? {
            for (rank, time) in last_rows(&window).filter_map(|row| point(&window, row)) {
                series.push((context.order.id(rank), Timestamp::from_nanos(time)));
            }
        }
        self.add(version, name, series.into_iter());
        Ok(())
    }

    fn add(&self, version: &Version, name: FileName, series: impl Iterator<Item = (SeriesId, Timestamp)>) {
        let mut newest = self.context.table.series().newest().write();
        newest.add(name, series);
        if let Some(files) = version.files.get(&self.context.table.id()) {
            newest.forget_all_but(files);
        }
    }

    /// Raises the bounds to the newest times of the group's rows in memory. Blocks are looked at newest first, until
    /// none that is left has anything newer than what every open series has already.
    fn bound_by_memory(&mut self, group: &Group) {
        let partitions = group.layers.iter().filter_map(|layer| match layer {
            Layer::Memory(partition) => Some(partition.as_ref()),
            _ => None,
        });
        let mut blocks: Vec<&Block> =
            partitions.flat_map(|part| part.blocks.iter().map(Arc::as_ref)).collect();
        blocks.sort_unstable_by_key(|block| std::cmp::Reverse(block.last.as_nanos()));
        let (mut least, mut rows) = (i64::MIN, 0);
        for block in blocks {
            // As often as it is worth it: it looks at every open series.
            if rows >= self.open.len() {
                rows = 0;
                let bounds = self.open.iter().filter_map(|rank| self.bounds.get(*rank as usize));
                least = bounds.copied().min().unwrap_or(SETTLED);
            }
            if block.last.as_nanos() <= least {
                break;
            }
            for (series, time) in block.series.iter().zip(&block.times) {
                let rank = self.context.order.rank(*series);
                if let Some(bound) = self.bounds.get_mut(rank as usize) {
                    *bound = (*bound).max(*time);
                }
            }
            rows += block.rows();
        }
    }

    /// Reads candidates from their smallest bound on, all at once where that is few rows, else in parts whose bounds
    /// are nearer to each other. Those that have no row there are added to `left`.
    fn read_in_parts(
        &mut self,
        group: &Group,
        candidates: &mut [Candidate],
        left: &mut Vec<Candidate>,
    ) -> Result<()> {
        let bounds = || candidates.iter().map(|candidate| candidate.bound);
        let (Some(first), Some(last)) = (bounds().min(), bounds().max()) else { return Ok(()) };
        let time = TimeRange { start: Timestamp::from_nanos(first), end: Timestamp::from_nanos(last + 1) };
        let count = candidates.len();
        let enough = ROWS_PER_SERIES * count as u64 + directory_cost(group);
        if count == 1
            || first == last
            || expected_rows(group, &time, count, self.context.order.len()) <= enough
        {
            self.read(group, time, candidates)?;
            let bounds = &self.bounds;
            let is_left = |candidate: &&Candidate| bounds.get(candidate.rank as usize) != Some(&SETTLED);
            left.extend(candidates.iter().filter(is_left));
            return Ok(());
        }
        candidates.sort_unstable();
        let (older, newer) = candidates.split_at_mut(count / 2);
        self.read_in_parts(group, newer, left)?;
        self.read_in_parts(group, older, left)
    }

    /// Reads the rows of some series in a time range, and settles the series that have one.
    fn read(&mut self, group: &Group, time: TimeRange, candidates: &[Candidate]) -> Result<()> {
        let mut wanted = vec![false; self.context.order.len()];
        for candidate in candidates {
            if let Some(slot) = wanted.get_mut(candidate.rank as usize) {
                *slot = true;
            }
        }
        let context = Arc::new(ScanContext { time, wanted: Some(wanted), ..self.context.clone() });
        let layers = group.layers.iter().filter_map(|layer| part_of(layer, &time)).collect();
        let sources = source::open(self.inner, &context, &Group { layers })?;
        let mut merge = Merge::newest_wins(context, sources);
        let mut before = None;
        while let Some(window) = merge.next_window()? {
            self.take_last_rows(window, &mut before);
        }
        Ok(())
    }

    /// Keeps the last row of each series of a window; `before` is the last series of the window before it, which may go
    /// on.
    fn take_last_rows(&mut self, window: Window, before: &mut Option<u32>) {
        let rows: Vec<usize> = last_rows(&window).collect();
        if before.is_some() && *before == window.ranks.first().copied() {
            self.found.pop();
        }
        *before = window.ranks.last().copied();
        let piece = self.pieces.len() as u32;
        let kept = if rows.len() == window.rows() { window } else { window.gather(&rows) };
        for (row, rank) in kept.ranks.iter().enumerate() {
            self.found.push(Found { rank: *rank, piece, row: row as u32 });
            if let Some(bound) = self.bounds.get_mut(*rank as usize) {
                *bound = SETTLED;
            }
        }
        self.pieces.push(kept);
    }
}

fn point(window: &Window, row: usize) -> Option<(u32, i64)> {
    window.ranks.get(row).copied().zip(window.times.get(row).copied())
}

/// The last row of each run of one series.
fn last_rows(window: &Window) -> impl Iterator<Item = usize> {
    let ends = |(row, pair): (usize, &[u32])| match pair {
        [a, b] if a != b => Some(row),
        _ => None,
    };
    window.ranks.windows(2).enumerate().filter_map(ends).chain(window.rows().checked_sub(1))
}

fn range_of(group: &Group) -> TimeRange {
    let ranges = || group.layers.iter().map(Layer::range);
    TimeRange {
        start: ranges().map(|range| range.start).min().unwrap_or(Timestamp::MIN),
        end: ranges().map(|range| range.end).max().unwrap_or(Timestamp::MAX),
    }
}

/// What of a layer may have rows in a time range.
fn part_of(layer: &Layer, time: &TimeRange) -> Option<Layer> {
    match layer {
        Layer::Memory(partition) => {
            let part = PartitionBlocks::from(partition, time.start);
            (!part.blocks.is_empty()).then(|| Layer::Memory(Arc::new(part)))
        }
        Layer::Chunk(chunk) => {
            let (first, last) = chunk.meta.times;
            (first < time.end && time.start <= last).then(|| layer.clone())
        }
        Layer::Cold(file) => file.day.overlaps(time).then(|| layer.clone()),
    }
}

/// About the rows that cost as much as a look at the directories of the group's chunks.
fn directory_cost(group: &Group) -> u64 {
    let series = |layer: &Layer| match layer {
        Layer::Chunk(chunk) => chunk.meta.series,
        Layer::Cold(file) => file.rows,
        Layer::Memory(_) => 0,
    };
    ROW_GROUP_ROWS as u64 + group.layers.iter().map(series).sum::<u64>()
}

/// About the rows that so many of the table's series have in a time range of a group, as if rows came evenly. Those of
/// cold files are not counted: they are decoded whichever are wanted.
fn expected_rows(group: &Group, time: &TimeRange, count: usize, series: usize) -> u64 {
    let share = |of: usize| (count as f64 / of.max(1) as f64).min(1.0);
    let rows = |layer: &Layer| match layer {
        Layer::Chunk(chunk) => {
            let (first, last) = chunk.meta.times;
            let (start, end) = (first.max(time.start).as_nanos(), last.min(time.end).as_nanos());
            let span = last.as_nanos() as f64 - first.as_nanos() as f64 + 1.0;
            let part = ((end as f64 - start as f64 + 1.0) / span).clamp(0.0, 1.0);
            chunk.meta.rows as f64 * part * share(chunk.meta.series as usize)
        }
        Layer::Memory(partition) => {
            let blocks =
                partition.blocks.iter().filter(|block| block.last.as_nanos() >= time.start.as_nanos());
            blocks.map(|block| block.rows()).sum::<usize>() as f64 * share(series)
        }
        Layer::Cold(_) => 0.0,
    };
    group.layers.iter().map(rows).sum::<f64>() as u64
}
