//! Bounds that decoders hold before they allocate, and sizes that writers keep.

/// Present values in a vector, the smallest part of a page that decodes alone.
pub const VECTOR_VALUES: usize = 1024;
/// Rows of a row group, and so of a page: 64 vectors.
pub const ROW_GROUP_ROWS: usize = 64 * VECTOR_VALUES;
/// Bytes of one page, header and padding included: 65,536 strings of 16 KiB fit.
pub const PAGE_BYTES: usize = (2 << 30) - 64;
/// Bytes that one compressed part of a page expands to.
pub const PLAIN_BYTES: usize = 256 << 20;
/// Bytes of a page's dictionary; strings that need more are stored plain.
pub const DICTIONARY_BYTES: usize = 64 << 20;
/// Distinct values of a page of numbers that a dictionary holds.
pub const WORD_DICTIONARY: usize = 4096;
/// Rows from which on a series in a chunk has statistics of its own.
pub const RUN_ROWS: u64 = 4096;
/// Pages start at multiples of this many bytes.
pub const PAGE_ALIGN: usize = 64;
/// Bytes of a chunk's root footer.
pub const ROOT_BYTES: usize = 4096;
/// Bytes of one frame of the log.
pub const FRAME_BYTES: usize = 256 << 20;
/// Bytes of one edit of the manifest.
pub const EDIT_BYTES: usize = 64 << 20;
/// Bytes of a checkpoint.
pub const CHECKPOINT_BYTES: usize = 4 << 30;
/// Bytes of a string value.
pub const TEXT_BYTES: usize = 16 << 20;
/// Bytes of all strings of a page: a decoder asks for no more memory, however small the page.
pub const PAGE_TEXT_BYTES: usize = 128 << 20;
/// Columns of a table.
pub const COLUMNS: usize = 4096;
/// Bytes of a series key.
pub const KEY_BYTES: usize = 64 << 10;
