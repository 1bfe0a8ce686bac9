//! Named limits of the engine.

use std::time::Duration;

/// Batches that wait for the writer thread; further writers wait for room.
pub const WRITE_QUEUE: usize = 1024;
/// Batches in one group commit.
pub const GROUP_BATCHES: usize = 512;
/// Approximate bytes of rows in one group commit.
pub const GROUP_BYTES: usize = 16 << 20;
/// Bytes of one batch, above which no further row is taken; a group stays far below the largest frame of the log.
pub const BATCH_BYTES: usize = 64 << 20;
/// Bytes of a log segment, unless one frame needs more.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// Bytes of zeroes that are written behind a frame of the log that is smaller than they are.
pub const ZERO_AHEAD: usize = 128 << 10;
/// Rows up to which small blocks of the memtable are joined.
pub const COALESCE_ROWS: usize = 1024;
/// Most bytes of a memtable, whatever the options say: 32-bit offsets must reach over the strings of a partition.
pub const MEMTABLE_BYTES: usize = 1 << 30;
/// Frozen memtables that wait for their flush before writers wait.
pub const FROZEN_MEMTABLES: usize = 2;
/// About the bytes of the manifest edit of a flush, above which the memtable is frozen: rows of many partitions are
/// many files, however few bytes they have.
pub const FLUSH_EDIT_BYTES: usize = sonde_storage_format::limits::EDIT_BYTES / 8;
/// Rows that came this long ago are flushed, so that retention, the cold tier and the log's budget reach them.
pub const FLUSH_AGE: Duration = Duration::from_secs(3600);
/// The same for memtables with rows that are due already, by retention or for the cold tier: a device whose clock is
/// wrong sends such rows all the time.
pub const DUE_FLUSH_AGE: Duration = Duration::from_secs(300);
/// The longest rest of a flush that fails.
pub const FLUSH_PAUSE: Duration = Duration::from_secs(30);
/// The longest rest of any other job that fails.
pub const JOB_PAUSE: Duration = Duration::from_secs(300);
/// Chunks of one partition before they are merged.
pub const COMPACT_CHUNKS: usize = 4;
/// Chunks that stay mapped for the next reader; a quarter of the mappings that Linux allows a process by default.
pub const OPEN_CHUNKS: usize = 16_384;
/// Bytes of the directories of chunks that stay mapped.
pub const OPEN_CHUNK_BYTES: usize = 64 << 20;
/// Rows of one chunk; a merge stops growing beyond it.
pub const CHUNK_ROWS: u64 = 64 << 20;
/// Bytes of strings in one row group of a chunk; far below what a page and 32-bit offsets hold.
pub const GROUP_TEXT_BYTES: usize = 32 << 20;
/// Rows of a record batch that a scan hands out.
pub const BATCH_ROWS: usize = 8192;
/// Bytes of the manifest before it is rewritten as a snapshot; twice its snapshot's, where that is more.
pub const MANIFEST_BYTES: u64 = 4 << 20;
/// Bytes of one frame of the manifest's snapshot.
pub const MANIFEST_FRAME_BYTES: usize = 1 << 20;
/// Bytes that one turn of a log reader takes.
pub const LOG_READ_BYTES: usize = 4 << 20;
/// Columns of a table.
pub const COLUMNS: usize = 4096;
/// Bytes of the name of a database, a table, a column or an object.
pub const NAME_BYTES: usize = 255;
