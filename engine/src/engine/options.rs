//! How an engine is opened.

use std::path::PathBuf;

use crate::cold::ColdOptions;
use crate::limits::{MERGE_BYTES, OPEN_CHUNK_BYTES, QUEUE_BYTES, SEGMENT_BYTES, SERIES_MEMORY};
use crate::wal::LogBudget;

/// How an engine is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data directory; created if it is missing.
    pub data_dir: PathBuf,
    /// Bytes of rows in memory before they are flushed. Default 64 MiB.
    pub memtable_bytes: usize,
    /// Bytes of rows that wait for their commit, or are being committed. Default 64 MiB.
    pub queue_bytes: usize,
    /// Bytes of the directories of chunks that stay open for the next reader. Default 64 MiB.
    pub directory_bytes: usize,
    /// About the bytes of the windows of all sources of one merge, in a scan as in compaction. Default 16 MiB.
    pub merge_bytes: usize,
    /// Bytes of memory that the series of all tables take; rows of more are refused. Default 1 GiB.
    pub series_bytes: usize,
    /// Bytes of a log segment. Default 64 MiB.
    pub segment_bytes: u64,
    /// How much log is kept for readers that are behind.
    pub log: LogBudget,
    /// The cold tier, where there is one.
    pub cold: Option<ColdOptions>,
}

impl Options {
    /// The defaults, without a cold tier.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            memtable_bytes: 64 << 20,
            queue_bytes: QUEUE_BYTES,
            directory_bytes: OPEN_CHUNK_BYTES,
            merge_bytes: MERGE_BYTES,
            series_bytes: SERIES_MEMORY,
            segment_bytes: SEGMENT_BYTES,
            log: LogBudget::default(),
            cold: None,
        }
    }
}
