//! The one door of every read: snapshot, prune, sources, merge, batches.
//!
//! # Invariants
//! - A scan sees one snapshot; whatever it needs stays alive until the scan ends.
//! - Every source is in (key, time) order and holds a point at most once; the newest write of a field wins.
//! - Groups of sources do not overlap in time, so each is merged alone and they can run in parallel.

pub(crate) mod aggregate;
pub(crate) mod batch;
pub(crate) mod latest;
pub(crate) mod merge;
pub(crate) mod prune;
pub(crate) mod source;
pub(crate) mod total;

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use sonde_storage_format::{ColumnId, ColumnRole, SeqNo, TableKind, TimeRange, Timestamp};

use crate::catalog::{Catalog, Table};
use crate::engine::Inner;
use crate::error::Result;
use crate::limits::BATCH_ROWS;
use crate::mask::Mask;
use crate::scan::batch::to_batch;
use crate::scan::merge::{Merge, Window};
use crate::scan::prune::Group;
use crate::series::KeyOrder;
use crate::version::Version;

/// Everything that was committed at one moment.
#[derive(Clone)]
pub struct Snapshot {
    pub(crate) version: Arc<Version>,
    catalog: Arc<Catalog>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Snapshot({})", self.version.seq)
    }
}

impl Snapshot {
    pub(crate) fn new(version: Arc<Version>, catalog: Arc<Catalog>) -> Self {
        Self { version, catalog }
    }

    /// Everything up to here is in the snapshot.
    #[must_use]
    pub fn seq(&self) -> SeqNo {
        self.version.seq
    }

    /// The catalog of the same moment.
    #[must_use]
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }
}

/// A tag must have one of these values; `None` is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagFilter {
    /// The tag.
    pub column: ColumnId,
    /// The values that pass.
    pub values: BTreeSet<Option<String>>,
}

/// Rows outside need not be returned: `low <= value <= high`, used to skip pages, never to drop single rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValueRange {
    /// A numeric field.
    pub column: ColumnId,
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

/// What a scan should return.
#[derive(Clone, Debug)]
pub struct ScanRequest {
    /// The table, as the snapshot's catalog has it.
    pub table: Arc<Table>,
    /// The columns to return, in this order.
    pub columns: Vec<ColumnId>,
    /// Rows outside are not returned.
    pub time: TimeRange,
    /// Series that fail one of these are not returned.
    pub tags: Vec<TagFilter>,
    /// Pages that cannot hold a wanted value may be skipped.
    pub values: Vec<ValueRange>,
    /// At most this many rows are returned by each partition.
    pub limit: Option<usize>,
}

impl ScanRequest {
    /// All rows of a table, with these columns.
    #[must_use]
    pub fn all(table: Arc<Table>, columns: Vec<ColumnId>) -> Self {
        Self { table, columns, time: TimeRange::ALL, tags: Vec::new(), values: Vec::new(), limit: None }
    }
}

/// What all sources of one scan share.
#[derive(Clone, Debug)]
pub(crate) struct ScanContext {
    pub(crate) table: Arc<Table>,
    pub(crate) time: TimeRange,
    /// Fields to decode, in the order of the windows' columns.
    pub(crate) fields: Vec<ColumnId>,
    pub(crate) values: Vec<ValueRange>,
    pub(crate) order: Arc<KeyOrder>,
    /// By rank, whether the series passes the tag filters; `None` where all do.
    pub(crate) wanted: Option<Vec<bool>>,
    /// Whether somebody asks for the time or the tags of the rows.
    pub(crate) needs_points: bool,
    /// What is hidden of sources older than they are, in the order of their sequence numbers.
    pub(crate) masks: Vec<Arc<Mask>>,
    /// About the bytes that the windows of all sources of one merge take.
    pub(crate) merge_bytes: usize,
}

impl ScanContext {
    pub(crate) fn wants(&self, rank: u32) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| wanted.get(rank as usize).copied().unwrap_or(false))
    }

    /// Whether one row per point must be made of several; rows of event tables are all their own.
    pub(crate) fn folds(&self) -> bool {
        self.table.def().kind == TableKind::Points
    }

    /// The masks that hide rows of a source that has everything up to `seq`, if it has rows of these times.
    pub(crate) fn masks_of(&self, seq: SeqNo, times: (Timestamp, Timestamp)) -> Vec<Arc<Mask>> {
        let hides = |mask: &&Arc<Mask>| seq < mask.seq && mask.reaches(times.0, times.1);
        self.masks.iter().filter(hides).cloned().collect()
    }

    /// What they hide of sources read with this context is gone up to here.
    pub(crate) fn purged(&self) -> SeqNo {
        self.masks.last().map_or(SeqNo(0), |mask| mask.seq)
    }

    /// Reads all fields of a table in full, as flush and compaction do.
    pub(crate) fn whole(
        table: &Arc<Table>,
        order: Arc<KeyOrder>,
        time: TimeRange,
        masks: Vec<Arc<Mask>>,
        merge_bytes: usize,
    ) -> Self {
        let columns = table.def().columns.iter();
        let fields =
            columns.filter(|column| column.role == ColumnRole::Field).map(|column| column.id).collect();
        let (table, values) = (Arc::clone(table), Vec::new());
        Self { table, time, fields, values, order, wanted: None, needs_points: true, masks, merge_bytes }
    }
}

/// A scan whose sources are chosen: groups that can be read in any order, each alone.
pub struct Scan {
    inner: Arc<Inner>,
    context: Arc<ScanContext>,
    columns: Vec<ColumnId>,
    schema: SchemaRef,
    limit: Option<usize>,
    groups: Vec<Group>,
    /// Keeps the snapshot's files alive.
    _snapshot: Arc<Version>,
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scan({}, {} groups)", self.context.table.full_name(), self.groups.len())
    }
}

/// What the sources of a request share.
fn context(inner: &Inner, version: &Version, request: &ScanRequest) -> ScanContext {
    let order = request.table.series().order();
    let columns = request.columns.iter();
    let is_field =
        |id: &&ColumnId| request.table.column_by_id(**id).is_some_and(|c| c.role == ColumnRole::Field);
    ScanContext {
        fields: columns.filter(is_field).copied().collect(),
        table: Arc::clone(&request.table),
        time: request.time,
        values: request.values.clone(),
        wanted: prune::series(&request.table, &order, &request.tags),
        order,
        needs_points: !request.columns.iter().all(|id| is_field(&id)),
        masks: version.masks_of(request.table.id()),
        merge_bytes: inner.options.merge_bytes,
    }
}

/// Chooses what `request` needs of one snapshot.
pub(crate) fn scan(inner: &Arc<Inner>, snapshot: &Snapshot, request: &ScanRequest) -> Result<Scan> {
    let version = Arc::clone(&snapshot.version);
    let context = context(inner, &version, request);
    let groups = prune::groups(&version, &context);
    Ok(Scan {
        inner: Arc::clone(inner),
        schema: batch::schema(&request.table, &request.columns),
        context: Arc::new(context),
        columns: request.columns.clone(),
        limit: request.limit,
        groups,
        _snapshot: version,
    })
}

impl Scan {
    /// The schema of the batches.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &Arc<Table> {
        &self.context.table
    }

    /// The columns of the batches.
    #[must_use]
    pub fn columns(&self) -> &[ColumnId] {
        &self.columns
    }

    /// How many groups there are, at most so many partitions are useful.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// An upper bound of the rows: those of all sources, before tags, times and overwrites are regarded.
    #[must_use]
    pub fn rows_at_most(&self) -> u64 {
        self.groups.iter().map(Group::rows).sum()
    }

    /// Reads the groups `partition`, `partition + partitions`, ...
    #[must_use]
    pub fn open(self: &Arc<Self>, partition: usize, partitions: usize) -> ScanStream {
        ScanStream {
            scan: Arc::clone(self),
            next_group: partition,
            step: partitions.max(1),
            merge: None,
            ready: None,
            left: self.limit.unwrap_or(usize::MAX),
        }
    }
}

/// The batches of a scan, pulled by whichever thread reads them: at most 8,192 rows each, in (key, time) order within
/// a group.
#[derive(Debug)]
pub struct ScanStream {
    scan: Arc<Scan>,
    next_group: usize,
    step: usize,
    merge: Option<Merge>,
    /// A batch being handed out in parts, and how many of its rows are out.
    ready: Option<(RecordBatch, usize)>,
    left: usize,
}

impl ScanStream {
    fn next_window(&mut self) -> Result<Option<Window>> {
        loop {
            if let Some(merge) = &mut self.merge {
                if let Some(window) = merge.next_window()? {
                    return Ok(Some(window));
                }
                self.merge = None;
            }
            let Some(group) = self.scan.groups.get(self.next_group) else { return Ok(None) };
            self.next_group += self.step;
            let sources = source::open(&self.scan.inner, &self.scan.context, group)?;
            self.merge = Some(Merge::newest_wins(Arc::clone(&self.scan.context), sources));
        }
    }

    fn take_ready(&mut self) -> Option<RecordBatch> {
        let (batch, done) = self.ready.as_mut()?;
        let rows = (batch.num_rows() - *done).min(BATCH_ROWS).min(self.left);
        let part = batch.slice(*done, rows);
        *done += rows;
        self.left -= rows;
        if *done == batch.num_rows() || self.left == 0 {
            self.ready = None;
        }
        Some(part)
    }
}

impl Iterator for ScanStream {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(batch) = self.take_ready() {
            return Some(Ok(batch));
        }
        if self.left == 0 {
            return None;
        }
        let batch = self.next_window().and_then(|window| {
            let Some(window) = window else { return Ok(None) };
            to_batch(&self.scan.context, &self.scan.schema, &self.scan.columns, window).map(Some)
        });
        match batch {
            Ok(Some(batch)) => {
                self.ready = Some((batch, 0));
                self.take_ready().map(Ok)
            }
            Ok(None) => None,
            Err(error) => {
                // A scan that failed does not go on.
                self.left = 0;
                Some(Err(error))
            }
        }
    }
}
