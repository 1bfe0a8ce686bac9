//! One sorted source per layer: rows in memory, a chunk, a cold file.

use std::ops::Range;
use std::sync::Arc;

use sonde_storage_format::limits::VECTOR_VALUES;
use sonde_storage_format::{Column, ColumnId, PageMeta, PhysicalType, Timestamp, Values};

use crate::cold::read::ColdSource;
use crate::engine::Inner;
use crate::error::Result;
use crate::mask::{Mask, hide};
use crate::memtable::Block;
use crate::open_chunk::OpenChunk;
use crate::scan::ScanContext;
use crate::scan::merge::{RowRef, Window, assemble, kinds};
use crate::scan::prune::{Group, Layer};
use crate::version::Chunk;
use crate::widen::widened;

/// A sorted source.
#[derive(Debug)]
pub(crate) enum Source {
    Memory(MemorySource),
    Chunk(ChunkSource),
    Cold(Box<ColdSource>),
}

impl Source {
    /// The next rows in (key, time) order; `None` at the end.
    pub(crate) fn next_window(&mut self) -> Result<Option<Window>> {
        match self {
            Self::Memory(source) => Ok(source.next_window()),
            Self::Chunk(source) => source.next_window(),
            Self::Cold(source) => source.next_window(),
        }
    }
}

/// Opens the layers of a group, oldest first.
pub(crate) fn open(inner: &Arc<Inner>, context: &Arc<ScanContext>, group: &Group) -> Result<Vec<Source>> {
    let layers = group.layers.len();
    let source = |layer: &Layer| {
        Ok(match layer {
            Layer::Memory(partition) => Source::Memory(MemorySource::new(context, &partition.blocks, layers)),
            Layer::Chunk(chunk) => Source::Chunk(ChunkSource::kept(inner, context, chunk, layers)?),
            Layer::Cold(file) => Source::Cold(Box::new(ColdSource::open(inner, context, file)?)),
        })
    };
    group.layers.iter().map(source).collect()
}

/// Rows in memory that a scan wants: sorted as a whole, gathered and folded window by window.
#[derive(Debug)]
pub(crate) struct MemorySource {
    context: Arc<ScanContext>,
    blocks: Vec<Arc<Block>>,
    /// In (key, time) order, those of one point in log order.
    rows: Vec<RowRef>,
    /// Rows that are out already.
    done: usize,
    /// Rows of one window.
    window_rows: usize,
}

impl MemorySource {
    /// Of the blocks of one partition, or of some whose times do not overlap, which is merged with others, `inputs` in all.
    pub(crate) fn new(context: &Arc<ScanContext>, blocks: &[Arc<Block>], inputs: usize) -> Self {
        Self {
            blocks: blocks.to_vec(),
            rows: in_key_order(wanted_rows(context, blocks), context.order.len()),
            done: 0,
            window_rows: window_rows(context, inputs),
            context: Arc::clone(context),
        }
    }

    fn next_window(&mut self) -> Option<Window> {
        let left = self.rows.get(self.done..).filter(|left| !left.is_empty())?;
        // Rows of one point stay together, so that they fold.
        let (window, behind) = left.split_at_checked(self.window_rows).unwrap_or((left, &[]));
        let last = window.last().map(RowRef::point);
        let more = behind.iter().take_while(|row| Some(row.point()) == last).count();
        let rows = left.get(..window.len() + more).unwrap_or_default();
        let columns: Vec<Vec<Option<&Column>>> = self
            .context
            .fields
            .iter()
            .map(|id| self.blocks.iter().map(|block| block.column(*id)).collect())
            .collect();
        let out = assemble(&kinds(&self.context), &columns, rows, self.context.folds());
        self.done += rows.len();
        Some(out)
    }
}

/// The rows of blocks that a scan wants, in log order.
fn wanted_rows(context: &ScanContext, blocks: &[Arc<Block>]) -> Vec<RowRef> {
    let mut refs = Vec::new();
    for (input, block) in blocks.iter().enumerate() {
        if block.last < context.time.start || block.first >= context.time.end {
            continue;
        }
        let masks = context.masks_of(block.seq.last, (block.first, block.last));
        for (row, (series, time)) in block.series.iter().zip(&block.times).enumerate() {
            let at = Timestamp::from_nanos(*time);
            if !context.time.contains(at) {
                continue;
            }
            let rank = context.order.rank(*series);
            let is_hidden = || masks.iter().any(|mask| mask.hides(*series, at));
            if context.wants(rank) && !is_hidden() {
                refs.push(RowRef { rank, time: *time, input: input as u32, row: row as u32 });
            }
        }
    }
    refs
}

/// Rows of one point stay in log order. Rows of a series mostly come in the order of their times, so they are dealt out
/// by series, and sorted only where they are not; few rows of very many series are just sorted.
fn in_key_order(mut refs: Vec<RowRef>, series: usize) -> Vec<RowRef> {
    if refs.len() < series / 4 {
        refs.sort_by_key(|row| (row.rank, row.time));
        return refs;
    }
    let mut next = vec![0; series];
    let rank = |row: &RowRef| row.rank as usize;
    for row in &refs {
        next.get_mut(rank(row)).into_iter().for_each(|count| *count += 1);
    }
    let mut start = 0;
    for count in &mut next {
        start += std::mem::replace(count, start);
    }
    let mut dealt = vec![RowRef::default(); refs.len()];
    for row in refs {
        let Some(place) = next.get_mut(rank(&row)) else { continue };
        dealt.get_mut(*place).into_iter().for_each(|slot| *slot = row);
        *place += 1;
    }
    for run in dealt.chunk_by_mut(|a, b| a.rank == b.rank) {
        if !run.is_sorted_by_key(|row| row.time) {
            run.sort_by_key(|row| row.time);
        }
    }
    dealt
}

/// Reads a chunk row group by row group.
#[derive(Debug)]
pub(crate) struct ChunkSource {
    context: Arc<ScanContext>,
    chunk: Arc<Chunk>,
    /// From the first window on.
    open: Option<Arc<OpenChunk>>,
    /// No other source overlaps: a page's value range may rule its rows out.
    alone: bool,
    /// The row group that is read next.
    group: usize,
    /// What is wanted of the one before and not read yet, last first.
    left: Vec<Run>,
    /// Rows of one window.
    window_rows: usize,
    /// What is hidden of its rows.
    masks: Vec<Arc<Mask>>,
}

/// Rows of a window of one of `inputs` sources, so that the windows of all of them stay within a bound.
fn window_rows(context: &ScanContext, inputs: usize) -> usize {
    // Eight bytes a field, and as many again for texts and copies; series and time.
    let row = 16 * (1 + context.fields.len());
    (context.merge_bytes / inputs.max(1) / row).max(VECTOR_VALUES)
}

/// The rows of a row group that one series has, and its rank.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) rank: u32,
    pub(super) rows: Range<usize>,
}

impl ChunkSource {
    /// Of a chunk that is merged with others, `inputs` in all.
    pub(crate) fn merged(context: &Arc<ScanContext>, chunk: &Arc<Chunk>, inputs: usize) -> Self {
        Self {
            context: Arc::clone(context),
            chunk: Arc::clone(chunk),
            open: None,
            alone: false,
            group: 0,
            left: Vec::new(),
            // Alone, it is read a row group at a time.
            window_rows: if inputs > 1 { window_rows(context, inputs) } else { usize::MAX },
            masks: context.masks_of(chunk.covers(), chunk.meta.times),
        }
    }

    /// Of a chunk that stays open for the next scan.
    pub(super) fn kept(
        inner: &Inner,
        context: &Arc<ScanContext>,
        chunk: &Arc<Chunk>,
        inputs: usize,
    ) -> Result<Self> {
        let open = chunk.open()?;
        inner.open_chunks.keep(&open);
        Ok(Self { open: Some(open), alone: inputs == 1, ..Self::merged(context, chunk, inputs) })
    }

    /// The chunk, from here on open as long as the source.
    pub(super) fn opened(&mut self) -> Result<Arc<OpenChunk>> {
        Ok(match &self.open {
            Some(open) => Arc::clone(open),
            None => Arc::clone(self.open.insert(self.chunk.open()?)),
        })
    }

    fn next_window(&mut self) -> Result<Option<Window>> {
        let open = self.opened()?;
        let groups = open.columns.first().map_or(0, |time| time.pages.len());
        while self.left.is_empty() {
            if self.group == groups {
                return Ok(None);
            }
            self.left = self.wanted_of(&open, self.group)?;
            self.left.reverse();
            self.group += 1;
        }
        let runs = self.take_runs();
        let window = self.read(&open, self.group - 1, &runs)?;
        Ok(Some(hide(window, &self.context.order, &self.masks)))
    }

    /// The next runs of the row group, as many rows as a window has.
    fn take_runs(&mut self) -> Vec<Run> {
        let mut room = self.window_rows;
        let mut runs = Vec::new();
        while let Some(run) = self.left.last_mut().filter(|_| room > 0) {
            let rows = run.rows.start..run.rows.end.min(run.rows.start.saturating_add(room));
            run.rows.start = rows.end;
            room -= rows.len();
            runs.push(Run { rank: run.rank, rows });
            if run.rows.is_empty() {
                self.left.pop();
            }
        }
        runs
    }

    /// The rows of a row group that the scan wants.
    pub(super) fn wanted_of(&self, open: &OpenChunk, group: usize) -> Result<Vec<Run>> {
        let Some(time_page) = time_page(open, group) else { return Ok(Vec::new()) };
        let (first, last) = time_page.stats.range.unwrap_or_default();
        let (first, last) =
            (Timestamp::from_nanos(first.cast_signed()), Timestamp::from_nanos(last.cast_signed()));
        let time = self.context.time;
        if last < time.start || first >= time.end || (self.alone && self.ruled_out(open, group)) {
            return Ok(Vec::new());
        }
        let rows = time_page.stats.rows as usize;
        let mut runs = self.runs(open, group, rows);
        if !runs.is_empty() && (first < time.start || last >= time.end) {
            self.cut_to_time(open, &time_page, &mut runs)?;
        }
        Ok(runs)
    }

    /// These rows of a row group.
    pub(super) fn read(&self, open: &OpenChunk, group: usize, runs: &[Run]) -> Result<Window> {
        let wanted = Wanted::of(runs);
        let mut columns = Vec::with_capacity(self.context.fields.len());
        for (id, kind) in self.context.fields.iter().zip(kinds(&self.context)) {
            columns.push(read_column(open, group, *id, kind, &wanted)?);
        }
        if self.alone && !self.context.needs_points && self.masks.is_empty() {
            return Ok(Window::of_fields(wanted.rows, columns));
        }
        let mut ranks = Vec::with_capacity(wanted.rows);
        runs.iter().for_each(|run| ranks.resize(ranks.len() + run.rows.len(), run.rank));
        let times = match time_page(open, group) {
            Some(page) => wanted.read(open, &page)?.values,
            None => Values::Int(Vec::new()),
        };
        let Values::Int(times) = times else { return Err(open.wrong("times that are integers")) };
        Ok(Window::new(ranks, times, columns))
    }

    /// Leaves of each run the rows inside the wanted time.
    fn cut_to_time(&self, open: &OpenChunk, page: &PageMeta, runs: &mut Vec<Run>) -> Result<()> {
        let time = self.context.time;
        let wanted = Wanted::of(runs);
        let Values::Int(times) = wanted.read(open, page)?.values else { return Ok(()) };
        let mut at = 0;
        for run in runs.iter_mut() {
            let of_run = times.get(at..at + run.rows.len()).unwrap_or_default();
            at += run.rows.len();
            let from = of_run.partition_point(|t| *t < time.start.as_nanos());
            let to = of_run.partition_point(|t| *t < time.end.as_nanos());
            run.rows = run.rows.start + from..run.rows.start + to;
        }
        runs.retain(|run| !run.rows.is_empty());
        Ok(())
    }

    /// The wanted series of a row group, with their rows counted from the group's first.
    fn runs(&self, open: &OpenChunk, group: usize, rows: usize) -> Vec<Run> {
        let start = open.starts.get(group).copied().unwrap_or_default();
        let end = start + rows as u64;
        let first = open.series.partition_point(|run| run.start + run.rows <= start);
        let series = open.series.iter().skip(first).take_while(|run| run.start < end);
        series
            .map(|run| (self.context.order.rank(run.id), run))
            .filter(|(rank, _)| self.context.wants(*rank))
            .map(|(rank, run)| {
                let rows = run.start.max(start) - start..(run.start + run.rows).min(end) - start;
                Run { rank, rows: rows.start as usize..rows.end as usize }
            })
            .collect()
    }

    /// Whether a page's value range says that no row of the group passes.
    fn ruled_out(&self, open: &OpenChunk, group: usize) -> bool {
        self.context.values.iter().any(|wanted| {
            let Some(column) = open.columns.iter().find(|column| column.id == wanted.column) else {
                return true;
            };
            let Some(page) = column.pages.get(group).copied().flatten() else { return true };
            let Some((low, high)) = page.stats.range else { return page.stats.nans == 0 };
            let (low, high) = match column.kind {
                PhysicalType::Float64 => (f64::from_bits(low), f64::from_bits(high)),
                PhysicalType::Int64 => (low.cast_signed() as f64, high.cast_signed() as f64),
                PhysicalType::UInt64 => (low as f64, high as f64),
                PhysicalType::Boolean | PhysicalType::Text => return false,
            };
            // SQL orders NaN above every number, so a page with NaNs is kept where there is no upper bound.
            high < wanted.low && (page.stats.nans == 0 || wanted.high.is_finite()) || low > wanted.high
        })
    }
}

/// The page of the times of a row group.
pub(super) fn time_page(open: &OpenChunk, group: usize) -> Option<PageMeta> {
    open.columns.first().and_then(|time| time.pages.get(group).copied().flatten())
}

fn read_column(
    open: &OpenChunk,
    group: usize,
    id: ColumnId,
    kind: PhysicalType,
    wanted: &Wanted,
) -> Result<Column> {
    let pages = open.columns.iter().find(|column| column.id == id);
    match pages.and_then(|column| column.pages.get(group).copied().flatten()) {
        Some(page) => Ok(widened(wanted.read(open, &page)?, kind)),
        None => Ok(Column::absent(kind, wanted.rows)),
    }
}

/// The rows of a row group that a scan wants, in ascending order.
struct Wanted {
    rows: usize,
    /// Runs with only a few rows between them are decoded together.
    pieces: Vec<Range<usize>>,
    /// The wanted rows among those of the pieces; `None` where that is all of them.
    picks: Option<Vec<Range<usize>>>,
}

impl Wanted {
    fn of(runs: &[Run]) -> Self {
        let mut pieces: Vec<Range<usize>> = Vec::new();
        let mut picks = Vec::with_capacity(runs.len());
        let mut decoded = 0;
        for run in runs {
            let near = pieces.last_mut().filter(|piece| run.rows.start < piece.end + VECTOR_VALUES);
            match near {
                Some(piece) => {
                    decoded += run.rows.end - piece.end;
                    piece.end = run.rows.end;
                }
                None => {
                    decoded += run.rows.len();
                    pieces.push(run.rows.clone());
                }
            }
            picks.push(decoded - run.rows.len()..decoded);
        }
        let rows = runs.iter().map(|run| run.rows.len()).sum();
        Self { rows, pieces, picks: (rows < decoded).then_some(picks) }
    }

    fn read(&self, open: &OpenChunk, page: &PageMeta) -> Result<Column> {
        let column = open.rows(page, &self.pieces)?;
        let Some(picks) = &self.picks else { return Ok(column) };
        let mut picked = Column::new(column.values.kind());
        picks.iter().for_each(|rows| picked.extend_from(&column, rows.clone()));
        Ok(picked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_dealt_out_are_rows_sorted() {
        let mut seed = 1_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        for (rows, series) in [(0, 0), (0, 5), (1, 1), (3, 100), (1000, 7), (1000, 900), (50, 201)] {
            let refs: Vec<RowRef> = (0..rows)
                .map(|row| RowRef {
                    rank: random(series) as u32,
                    time: random(40).cast_signed() - 20,
                    input: 0,
                    row,
                })
                .collect();
            let mut sorted = refs.clone();
            sorted.sort_by_key(|row| (row.rank, row.time));
            let all = |refs: &[RowRef]| refs.iter().map(|r| (r.rank, r.time, r.row)).collect::<Vec<_>>();
            assert_eq!(
                all(&in_key_order(refs, series as usize)),
                all(&sorted),
                "{rows} rows, {series} series"
            );
        }
    }
}
