//! What the engine says of itself: its log, its files and memory, and its background work.
//!
//! # Invariants
//! - Each lock is held to copy, and one at a time: the parts of an answer may be of different moments.

use std::sync::Arc;

use sonde_storage_format::{ChunkMeta, ColdFile, SeqNo, TableId, Timestamp, path};

use crate::activity::{JobKind, JobState, JobStatus, Subject};
use crate::catalog::Table;
use crate::compact::stats::CompactionStats;
use crate::engine::Engine;
use crate::wal::Segment;

/// What the log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogStatus {
    /// Segments on disk.
    pub segments: usize,
    /// Bytes on disk.
    pub bytes: u64,
    /// The first sequence number that can still be read.
    pub first: SeqNo,
    /// The last committed sequence number.
    pub last: SeqNo,
    /// Everything up to here is in chunks.
    pub flushed_to: SeqNo,
}

/// Why a segment of the log is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// It is being written.
    Active,
    /// It has rows that are in no chunk yet: a start reads it.
    Replayed,
    /// Someone follows the log and has not read it.
    Held,
    /// Nothing needs it; it goes with the next flush.
    Done,
}

/// A segment of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSegment {
    /// Its number.
    pub number: u64,
    /// Its path in the data directory.
    pub path: String,
    /// Its first sequence number.
    pub first: SeqNo,
    /// Its last one; one before the first while there is none.
    pub last: SeqNo,
    /// Bytes on disk.
    pub bytes: u64,
    /// When it was made; of one that was there at the start, when that was.
    pub created: Timestamp,
    /// Why it is there.
    pub state: SegmentState,
    /// Who has not read it: the rule or reader that is furthest behind.
    pub held_by: Option<String>,
}

impl Engine {
    /// What the log holds.
    #[must_use]
    pub fn log_status(&self) -> LogStatus {
        let list = self.inner.segments.list();
        LogStatus {
            segments: list.len(),
            bytes: list.iter().map(|segment| segment.bytes).sum(),
            first: list.first().map(|segment| segment.first_seq).unwrap_or_default(),
            last: self.published(),
            flushed_to: self.inner.manifest.lock().state.flushed_to,
        }
    }

    /// The segments of the log, oldest first.
    #[must_use]
    pub fn log_segments(&self) -> Vec<LogSegment> {
        let flushed_to = self.inner.manifest.lock().state.flushed_to;
        let readers = self.inner.holds.oldest_of();
        let slowest = readers.into_iter().chain(self.inner.state.oldest_cursor_of()).min();
        let list = self.inner.segments.list();
        let active = list.last().map(|segment| segment.number);
        let describe = |segment: Segment| {
            let held_by = slowest.as_ref().filter(|(at, _)| segment.last_seq > *at);
            let state = match held_by {
                _ if Some(segment.number) == active => SegmentState::Active,
                _ if segment.last_seq > flushed_to => SegmentState::Replayed,
                Some(_) => SegmentState::Held,
                None => SegmentState::Done,
            };
            LogSegment {
                number: segment.number,
                path: format!("{}/{}", path::WAL_DIR, path::segment(segment.number)),
                first: segment.first_seq,
                last: segment.last_seq,
                bytes: segment.bytes,
                created: segment.created(),
                state,
                held_by: held_by.map(|(_, name)| name.clone()),
            }
        };
        list.into_iter().map(describe).collect()
    }

    /// All chunks, by table and time.
    #[must_use]
    pub fn chunks(&self) -> Vec<ChunkMeta> {
        let version = self.inner.versions.current();
        version.files.values().flat_map(|files| files.chunks().map(|chunk| chunk.meta.clone())).collect()
    }

    /// All cold files, by table and day.
    #[must_use]
    pub fn cold_files(&self) -> Vec<ColdFile> {
        let version = self.inner.versions.current();
        version
            .files
            .values()
            .flat_map(|files| files.cold.values().map(|file| ColdFile::clone(file)))
            .collect()
    }

    /// Bytes and rows in memory, not yet in chunks.
    #[must_use]
    pub fn memory(&self) -> (usize, usize) {
        let version = self.inner.versions.current();
        let memtables = || version.frozen.iter().map(Arc::as_ref).chain([&version.active]);
        (memtables().map(|memtable| memtable.bytes).sum(), memtables().map(|memtable| memtable.rows).sum())
    }

    /// Rows that a table lost since the start because it had more bytes than its `max_bytes`.
    #[must_use]
    pub fn evicted(&self, table: TableId) -> u64 {
        self.inner.evicted(table)
    }

    /// What flushes and merges have written of a table since the start.
    #[must_use]
    pub fn compaction_stats(&self, table: TableId) -> CompactionStats {
        self.inner.compactions.of(table)
    }

    /// The width in nanoseconds of the partitions that new rows of a table go to: as set, or as its rows ask for.
    #[must_use]
    pub fn partition_width(&self, table: &Table) -> i64 {
        self.inner.widths.of(table.def())
    }

    /// What the background threads do: what runs, waits and rests, then what ended last, the newest first.
    #[must_use]
    pub fn jobs(&self) -> Vec<JobStatus> {
        let mut jobs = self.inner.activity.list();
        let is_busy = |job: &&JobStatus| {
            job.kind == JobKind::Flush && matches!(job.state, JobState::Running | JobState::Resting)
        };
        // The oldest memtable is the one that is at work, or rests.
        let busy = usize::from(jobs.iter().any(|job| is_busy(&job)));
        jobs.extend(self.inner.flushes.list().iter().skip(busy).map(|input| {
            let (rows, bytes) = (Some(input.memtable.rows as u64), Some(input.memtable.bytes as u64));
            let queued = Subject::new(JobKind::Flush, None, None).status(JobState::Queued, None);
            JobStatus { rows, bytes, ..queued }
        }));
        jobs
    }
}
