//! Named limits of the engine.

use std::time::Duration;

/// Batches that wait for the writer thread; further writers wait for room.
pub const WRITE_QUEUE: usize = 1024;
/// Bytes of rows that wait for the writer thread or are being committed, unless the options say otherwise.
pub const QUEUE_BYTES: usize = 64 << 20;
/// Batches in one group commit.
pub const GROUP_BATCHES: usize = 512;
/// Approximate bytes of rows in one group commit.
pub const GROUP_BYTES: usize = 16 << 20;
/// How long rows of tables with `durability = 'buffered'` wait for stable storage at most.
pub const BUFFERED_AGE: Duration = Duration::from_millis(200);
/// Bytes of the log that may wait for it.
pub const BUFFERED_BYTES: u64 = 1 << 20;
/// Bytes of one batch, above which no further row is taken; a group stays far below the largest frame of the log.
pub const BATCH_BYTES: usize = 64 << 20;
/// Bytes of a log segment, unless one frame needs more.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// Bytes of zeroes that are written behind a small frame of the log.
pub const ZERO_AHEAD: usize = 128 << 10;
/// Bytes from which on a frame of the log brings no zeroes: writing as many again would take longer than what they save.
pub const FRAME_WITHOUT_ZEROES: usize = 32 << 10;
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
/// Points that one DELETE by the values of fields removes, or that one UPDATE changes.
pub const CHANGE_POINTS: usize = 1_000_000;
/// Tombstones of a table that wait until compaction has removed what they hide; further deletes are refused meanwhile.
pub const MASKS: usize = 1024;
/// Ranges and points of one mask, above which it is not joined with the next one.
pub const MASK_PARTS: usize = 64 << 10;
/// Tombstones of a table from which on compaction removes what they hide without waiting for their age.
pub const PURGE_MASKS: usize = 64;
/// What was deleted is removed from files by compaction, begun after this time at the latest.
pub const PURGE_AGE: Duration = Duration::from_secs(3600);
/// How often a change of points that others wrote meanwhile is tried before it is given up.
pub const CHANGE_ATTEMPTS: usize = 8;
/// Chunks of like size in one partition before they are merged.
pub const COMPACT_CHUNKS: usize = 8;
/// Chunks of one partition from which on some are merged, whatever their sizes: a reader has all of them open.
pub const CELL_CHUNKS: usize = 32;
/// Wide chunks over the same partitions before they are split among those.
pub const WIDE_CHUNKS: usize = 16;
/// Chunks that one split makes at most.
pub const SPLIT_RANGES: usize = 512;
/// Rows, on average, from which on a chunk that a split makes is worth its file.
pub const SPLIT_ROWS: u64 = 1024;
/// How long nothing has come before wide chunks are split even if they have fewer rows.
pub const WIDE_AGE: Duration = Duration::from_secs(6 * 3600);
/// Rows below which what lies in one partition is one chunk in the end, even if its chunks are of narrower ranges, and
/// below which an old chunk is rewritten for an eighth of its rows.
pub const JOIN_ROWS: u64 = 1 << 20;
/// How long no chunk has joined a partition that has ended before it is merged for good, and how long a wide chunk that
/// is worth a split may lie over the partitions below it.
pub const QUIET_AGE: Duration = Duration::from_secs(900);
/// How long after the end of a partition its only chunk is rewritten where its table has become dense.
pub const DENSE_AGE: Duration = Duration::from_secs(86_400);
/// How long the job thread merges what is due before it looks for other work.
pub const COMPACT_TURN: Duration = Duration::from_secs(5);
/// Jobs that ended and are still shown.
pub const FINISHED_JOBS: usize = 100;
/// Jobs that failed and are shown until they work; more of them rest all the same.
pub const RESTING_JOBS: usize = 1000;
/// Chunks that stay mapped for the next reader; a quarter of the mappings that Linux allows a process by default.
pub const OPEN_CHUNKS: usize = 16_384;
/// Bytes of the directories of chunks that stay mapped, unless the options say otherwise.
pub const OPEN_CHUNK_BYTES: usize = 64 << 20;
/// Rows of one chunk; a merge stops growing beyond it.
pub const CHUNK_ROWS: u64 = 64 << 20;
/// Bytes of strings in one row group of a chunk; far below what a page and 32-bit offsets hold.
pub const GROUP_TEXT_BYTES: usize = 32 << 20;
/// How long batches that may wait for room do so before the writer looks again whether there is some.
pub const STALLED_RETRY: Duration = Duration::from_millis(100);
/// About the bytes of the windows of all sources of one merge, unless each has but a vector of rows or the options say
/// otherwise.
pub const MERGE_BYTES: usize = 16 << 20;
/// Rows of a record batch that a scan hands out.
pub const BATCH_ROWS: usize = 8192;
/// Looks at manifest, checkpoint and log that an examination beside a running server takes at most, while each finds
/// something else.
pub const EXAMINE_LOOKS: usize = 8;
/// Bytes of the manifest before it is rewritten as a snapshot; twice its snapshot's, where that is more.
pub const MANIFEST_BYTES: u64 = 4 << 20;
/// Bytes of one frame of the manifest's snapshot.
pub const MANIFEST_FRAME_BYTES: usize = 1 << 20;
/// Bytes that one turn of a log reader takes.
pub const LOG_READ_BYTES: usize = 4 << 20;
/// Backups that run at one time.
pub const BACKUPS: u64 = 1;
/// Bytes of one part of an object that a backup writes; object stores take parts of 5 MiB and more.
pub const BACKUP_PART_BYTES: usize = 8 << 20;
/// Objects that one segment of the log is backed up in; beyond it the next backup copies the segment as one.
pub const BACKUP_LOG_PIECES: usize = 64;
/// Bytes of the manifest of a backup: some millions of files.
pub const BACKUP_MANIFEST_BYTES: u64 = 1 << 30;
/// How often a running backup says in the log how far it is.
pub const BACKUP_PROGRESS: Duration = Duration::from_secs(10);
/// How far the clock goes on before the next frame of the log states it: what a restore to an instant is exact to.
pub const CLOCK_MARK: Duration = Duration::from_secs(1);
/// Bytes of memory that the series of all tables take, unless the options say otherwise.
pub const SERIES_MEMORY: usize = 1 << 30;
/// Series of a table that has no `max_series` of its own. Each takes about 130 bytes of memory with its place in the
/// tag index, so the memory of all tables' series is used up before on all but large machines.
pub const TABLE_SERIES: usize = 10_000_000;
/// The most that `max_series` may be: handles and ranks have 32 bits.
pub const SERIES_AT_MOST: usize = 1_000_000_000;
/// Columns of a table.
pub const COLUMNS: usize = 4096;
/// Bytes of the name of a database, a table, a column or an object.
pub const NAME_BYTES: usize = 255;
/// Rows that a partition of automatic width should have at most: half a chunk.
pub const PARTITION_ROWS: u64 = CHUNK_ROWS / 2;
/// Bytes of chunks that a partition of automatic width should have at most.
pub const PARTITION_BYTES: u64 = 512 << 20;
/// Partitions of one block that a memtable has rows of before those may share a chunk.
pub const LATE_PARTITIONS: usize = 4;
/// Chunks of a table that a flush makes before late rows of blocks of blocks share one.
pub const FLUSH_CHUNKS: usize = 128;
/// Rows, on average, from which on each partition of a block gets a chunk of its own at a flush: a row group.
pub const LATE_ROWS: usize = sonde_storage_format::limits::ROW_GROUP_ROWS;
/// Places of frames that a reader of messages remembers, one for each MiB of log; beyond them it begins anew.
pub const MESSAGE_PLACES: usize = 64 << 10;
