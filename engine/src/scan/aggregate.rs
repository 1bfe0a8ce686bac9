//! Totals of a scan's columns: count, range and sum of all rows, or of each series, without batches of them.
//!
//! Of a chunk whose rows nothing else hides or overlaps, statistics answer first: those of long series, then those of row
//! groups that are wanted as a whole. What they do not say is decoded, and everything else is merged as every scan
//! merges it.
//!
//! # Invariants
//! - Statistics count only where no other source of the snapshot, no delete and no bound of time reaches into the rows
//!   that they are of.
//! - A row is counted once: a series is answered as a whole by its statistics, or none of its rows is.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::ArrayRef;
use sonde_storage_format::{ColumnId, ColumnPages, PageMeta, PhysicalType, RunStats, Sum, Timestamp};

use crate::error::Result;
use crate::open_chunk::OpenChunk;
use crate::scan::batch::tag_arrays;
use crate::scan::merge::{Merge, Window, kinds};
use crate::scan::prune::{Group, Layer};
use crate::scan::source::{self, ChunkSource, Run, time_page};
use crate::scan::total::{FloatSum, Total, sum};
use crate::scan::{Scan, ScanContext};
use crate::version::Chunk;

/// What the rows of a scan, or of one of its series, amount to.
#[derive(Clone, Debug)]
pub struct Totals {
    /// How many there are.
    pub rows: u64,
    /// The first and the last time, where the scan's columns have the time.
    pub times: Option<(Timestamp, Timestamp)>,
    /// The scan's fields, in the order in which its columns name them.
    pub fields: Vec<Total>,
}

impl Totals {
    fn none(kinds: &[PhysicalType]) -> Self {
        Self { rows: 0, times: None, fields: kinds.iter().copied().map(Total::new).collect() }
    }

    fn add_times(&mut self, first: Timestamp, last: Timestamp) {
        let (old_first, old_last) = self.times.unwrap_or((first, last));
        self.times = Some((old_first.min(first), old_last.max(last)));
    }
}

/// Totals of all rows, or of each series that has any, in key order.
#[derive(Debug)]
pub struct Aggregate {
    context: Arc<ScanContext>,
    ranks: Vec<u32>,
    /// One of all rows; or as many as there are series.
    pub totals: Vec<Totals>,
}

impl Aggregate {
    /// The values of some tags of the series that some of the totals are of; for totals by series only.
    #[must_use]
    pub fn tags(&self, tags: &[ColumnId], totals: Range<usize>) -> Vec<ArrayRef> {
        tag_arrays(&self.context, tags, self.ranks.get(totals).unwrap_or_default())
    }
}

/// What is wanted of the scan's rows.
#[derive(Clone, Debug)]
pub struct AggregateRequest {
    /// Whether totals are of each series. The scan's columns then have to name a tag.
    pub by_series: bool,
    /// For each field of the scan, whether its sum is wanted: counts and ranges take less.
    pub sums: Vec<bool>,
}

impl Scan {
    /// The series that the scan wants: at most as many totals are there by series.
    #[must_use]
    pub fn series(&self) -> usize {
        match &self.context.wanted {
            None => self.context.order.len(),
            Some(wanted) => wanted.iter().filter(|wanted| **wanted).count(),
        }
    }

    /// About the bytes of memory that the totals of one partition take.
    #[must_use]
    pub fn aggregate_bytes(&self, request: &AggregateRequest) -> usize {
        let totals = if request.by_series { self.series() } else { 1 };
        let bytes = size_of::<u32>() + size_of::<Totals>() + request.sums.len() * size_of::<Total>();
        totals.saturating_mul(bytes)
    }

    /// Adds up the groups `partition`, `partition + partitions`, ... `goes_on` is asked now and then; what is there when it
    /// says no is of no use.
    pub fn aggregate(
        self: &Arc<Self>,
        partition: usize,
        partitions: usize,
        request: &AggregateRequest,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Aggregate> {
        let mut walk = Walk::new(self, request, goes_on);
        for group in self.groups.iter().skip(partition).step_by(partitions.max(1)) {
            match group.layers.as_slice() {
                [Layer::Chunk(chunk)] if self.shows_all(chunk) => walk.chunk(chunk)?,
                _ => walk.merged(group)?,
            }
        }
        Ok(walk.finish())
    }

    /// Whether no delete hides a row of a chunk.
    fn shows_all(&self, chunk: &Chunk) -> bool {
        self.context.masks_of(chunk.covers(), chunk.meta.times).is_empty()
    }
}

/// Which total is whose.
enum Places {
    /// There is one, of all rows.
    One,
    /// By rank: every series is wanted.
    ByRank,
    /// In the order of these ranks, which ascend: the series that are wanted.
    Of(Vec<u32>),
}

impl Places {
    fn of(scan: &Scan, request: &AggregateRequest) -> Self {
        match &scan.context.wanted {
            _ if !request.by_series => Self::One,
            None => Self::ByRank,
            Some(wanted) => {
                let ranks = (0..).zip(wanted).filter(|(_, wanted)| **wanted);
                Self::Of(ranks.map(|(rank, _)| rank).collect())
            }
        }
    }

    fn get(&self, rank: u32) -> Option<usize> {
        match self {
            Self::One => Some(0),
            Self::ByRank => Some(rank as usize),
            Self::Of(ranks) => ranks.binary_search(&rank).ok(),
        }
    }
}

struct Walk<'w> {
    scan: &'w Arc<Scan>,
    request: &'w AggregateRequest,
    goes_on: &'w dyn Fn() -> bool,
    kinds: Vec<PhysicalType>,
    places: Places,
    totals: Vec<Totals>,
}

impl<'w> Walk<'w> {
    fn new(scan: &'w Arc<Scan>, request: &'w AggregateRequest, goes_on: &'w dyn Fn() -> bool) -> Self {
        let kinds = kinds(&scan.context);
        let count = if request.by_series { scan.series() } else { 1 };
        let totals = vec![Totals::none(&kinds); count];
        Self { scan, request, goes_on, kinds, places: Places::of(scan, request), totals }
    }

    /// Leaves out, in place, the series that have no row.
    fn finish(self) -> Aggregate {
        let (context, mut totals) = (Arc::clone(&self.scan.context), self.totals);
        let mut ranks = match self.places {
            Places::One => return Aggregate { context, ranks: Vec::new(), totals },
            Places::ByRank => (0..totals.len() as u32).collect(),
            Places::Of(ranks) => ranks,
        };
        let has_rows = |totals: &Totals| totals.rows > 0;
        let mut of_ranks = totals.iter();
        ranks.retain(|_| of_ranks.next().is_some_and(has_rows));
        totals.retain(has_rows);
        Aggregate { context, ranks, totals }
    }

    /// Looked up once for a run of rows.
    fn totals_of(&mut self, rank: u32) -> Option<&mut Totals> {
        self.totals.get_mut(self.places.get(rank)?)
    }

    /// Rows in memory, cold ones, and those of sources that overlap.
    fn merged(&mut self, group: &Group) -> Result<()> {
        let context = &self.scan.context;
        let sources = source::open(&self.scan.inner, context, group)?;
        let mut merge = Merge::newest_wins(Arc::clone(context), sources);
        while (self.goes_on)() {
            let Some(window) = merge.next_window()? else { break };
            self.add_window(&window);
        }
        Ok(())
    }

    fn add_window(&mut self, window: &Window) {
        if !self.request.by_series {
            return self.add_rows(0, window, 0..window.rows());
        }
        let mut start = 0;
        for run in window.ranks.chunk_by(|a, b| a == b) {
            let rank = run.first().copied().unwrap_or_default();
            self.add_rows(rank, window, start..start + run.len());
            start += run.len();
        }
    }

    fn add_rows(&mut self, rank: u32, window: &Window, rows: Range<usize>) {
        let Some(totals) = self.totals_of(rank) else { return };
        totals.rows += rows.len() as u64;
        let times = || window.times.get(rows.clone()).unwrap_or_default().iter();
        if let Some((first, last)) = times().min().zip(times().max()) {
            totals.add_times(Timestamp::from_nanos(*first), Timestamp::from_nanos(*last));
        }
        for (total, column) in totals.fields.iter_mut().zip(&window.columns) {
            total.add(column, rows.clone());
        }
    }

    /// A chunk that nothing overlaps and nothing hides.
    fn chunk(&mut self, chunk: &Arc<Chunk>) -> Result<()> {
        let mut source = ChunkSource::kept(&self.scan.inner, &self.scan.context, chunk, 1)?;
        let open = source.opened()?;
        let known = self.known_series(&open)?;
        let groups = open.columns.first().map_or(0, |time| time.pages.len());
        for group in (0..groups).take_while(|_| (self.goes_on)()) {
            let mut runs = source.wanted_of(&open, group)?;
            runs.retain(|run| known.binary_search(&run.rank).is_err());
            match time_page(&open, group) {
                _ if runs.is_empty() => {}
                Some(page) if self.is_whole(&runs, &page) => self.row_group(&open, group, &runs, &page)?,
                _ => self.add_window(&source.read(&open, group, &runs)?),
            }
        }
        Ok(())
    }

    /// Adds the wanted series that the chunk's statistics answer; their ranks, ascending.
    fn known_series(&mut self, open: &OpenChunk) -> Result<Vec<u32>> {
        let context = Arc::clone(&self.scan.context);
        let is_asked =
            self.request.sums.contains(&true) || self.request.by_series || context.wanted.is_some();
        if context.fields.is_empty() || !is_asked || self.kinds.contains(&PhysicalType::Text) {
            return Ok(Vec::new());
        }
        let columns = open.run_statistics(|id| context.fields.contains(&id))?;
        let has_column = |id: &ColumnId| open.columns.iter().any(|column| column.id == *id);
        let of_field = |id: &ColumnId| {
            columns.iter().find(|column| column.id == *id).map(|c| (c.kind, c.runs.as_slice()))
        };
        let fields: Vec<_> = context.fields.iter().map(of_field).collect();
        // A column that the chunk does not have is absent in every row; one that it has is in the statistics, if any is.
        if fields.iter().zip(&context.fields).any(|(field, id)| field.is_none() && has_column(id)) {
            return Ok(Vec::new());
        }
        let places = fields.iter().flatten().map(|(_, runs)| *runs).next().unwrap_or_default();
        let mut known = Vec::with_capacity(places.len());
        for (nth, (place, _)) in places.iter().enumerate() {
            let Some(series) = open.series.get(*place) else { continue };
            let rank = context.order.rank(series.id);
            let in_time = context.time.contains(series.first) && context.time.contains(series.last);
            let stats = |field: &Option<(PhysicalType, &[(usize, RunStats)])>| {
                field.and_then(|(kind, runs)| Some((kind, runs.get(nth)?.1)))
            };
            let stats: Vec<Option<(PhysicalType, RunStats)>> = fields.iter().map(stats).collect();
            let mut wanted = stats.iter().zip(&self.request.sums);
            let has_sums = wanted.all(|(stats, sum)| {
                !sum || stats.is_none_or(|(_, run)| run.present == 0 || run.sum.is_some())
            });
            if !in_time || !context.wants(rank) || !has_sums {
                continue;
            }
            let Some(totals) = self.totals_of(rank) else { continue };
            totals.rows += series.rows;
            totals.add_times(series.first, series.last);
            for (total, stats) in totals.fields.iter_mut().zip(&stats) {
                stats.iter().for_each(|(kind, run)| total.add_run(*kind, run));
            }
            known.push(rank);
        }
        Ok(known)
    }

    /// Whether a row group is wanted as a whole, and for one total.
    fn is_whole(&self, runs: &[Run], time: &PageMeta) -> bool {
        let rows: usize = runs.iter().map(|run| run.rows.len()).sum();
        rows == time.stats.rows as usize && (!self.request.by_series || runs.len() == 1)
    }

    /// Adds a row group by the statistics of its pages.
    fn row_group(&mut self, open: &OpenChunk, group: usize, runs: &[Run], time: &PageMeta) -> Result<()> {
        let sums: Vec<bool> = self.request.sums.clone();
        let fields = Arc::clone(&self.scan.context);
        let rank = runs.first().map_or(0, |run| run.rank);
        let Some(totals) = self.totals_of(rank) else { return Ok(()) };
        totals.rows += u64::from(time.stats.rows);
        if let Some((first, last)) = time.stats.range {
            let at = |bits: u64| Timestamp::from_nanos(bits.cast_signed());
            totals.add_times(at(first), at(last));
        }
        for ((total, id), sum) in totals.fields.iter_mut().zip(&fields.fields).zip(sums) {
            let Some(page) = page_of(&open.columns, *id, group) else { continue };
            let stats = &page.stats;
            total.add_known(page.kind, stats.present.into(), stats.nans.into(), stats.range);
            match stats.sum {
                Some(known) => total.add_sum(known),
                None if sum && stats.present > 0 => total.add_sum(sum_of(open, &page)?),
                None => {}
            }
        }
        Ok(())
    }
}

fn page_of(columns: &[ColumnPages], id: ColumnId, group: usize) -> Option<PageMeta> {
    let column = columns.iter().find(|column| column.id == id)?;
    column.pages.get(group).copied().flatten()
}

/// The sum of a page's values, vector by vector: they never stand in memory all at once.
fn sum_of(open: &OpenChunk, meta: &PageMeta) -> Result<Sum> {
    open.with_page(meta, |page| match meta.kind {
        PhysicalType::Float64 => {
            let mut sum = FloatSum::default();
            page.scan_floats(0..page.vectors(), |values| sum.add_all(values))?;
            Ok(sum.into())
        }
        PhysicalType::Int64 | PhysicalType::UInt64 => {
            let mut all = 0;
            page.scan_words(0..page.vectors(), |words| all += sum(words))?;
            let shift = if meta.kind == PhysicalType::Int64 { (page.present() as i128) << 63 } else { 0 };
            Ok(Sum::Int(all - shift))
        }
        PhysicalType::Boolean | PhysicalType::Text => Ok(Sum::Int(0)),
    })
}
