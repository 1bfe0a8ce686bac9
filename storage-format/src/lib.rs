//! Every byte that SondeDB keeps on disk: codecs, pages, chunk files, the log, the manifest, the catalog.
//!
//! Pure functions over `&[u8]`: no files, no clock, no threads, no mapping. The drawings of the structures are in
//! `docs/format/`; each is pulled into the module that reads and writes it.
//!
//! # Invariants
//! - All integers are little endian; every length is bounded before anything is allocated.
//! - Every byte of a file is under a CRC32 that is checked before the byte is interpreted.
//! - What decodes was encoded by a version that this one knows: unknown versions and feature bits are refused.

mod catalog;
mod checkpoint;
mod checksum;
mod chunk;
mod codec;
mod column;
mod cursor;
mod ids;
mod manifest;
mod page;
mod series_key;
mod series_keys;
mod time;
mod wal;

pub mod limits;
pub mod path;

pub use catalog::{
    CatalogChange, ColumnDef, ColumnRole, Durability, Object, ObjectKind, TableDef, TableKind, TableOptions,
};
pub use checkpoint::{Checkpoint, StateEntry, TableSeries, checkpoint_parts};
pub use checksum::{crc32, crc32_seeded};
pub use chunk::{
    ChunkReader, ChunkRoot, ChunkWriter, ColumnPages, ColumnRuns, PageMeta, RunStats, SeriesRows, SeriesRun,
    TIME_COLUMN,
};
pub use codec::{CodecId, Profile, decode_floats, encode_floats_as, encode_ints_as, use_portable_code};
pub use column::{Cell, Cells, Column, Texts, Values};
pub use cursor::{Cursor, FormatError, Result, Writer};
pub use ids::{ChunkId, ColumnId, LogPosition, PhysicalType, SeqNo, SeqRange, SeriesId, TableId};
pub use manifest::{
    ChunkMeta, ColdFile, ColumnRange, Edit, ManifestHeader, decode_edits, encode_edit, salvage_edits,
};
pub use page::{Between, Ends, Page, PageStats, Selection, Sum, decode_page, encode_page, encode_page_as};
pub use series_key::{SeriesKey, Tags};
pub use series_keys::SeriesKeys;
pub use time::{TimeRange, Timestamp};
pub use wal::{
    Frame, FrameScan, Message, MessageRef, Origin, Record, RowsRecord, SEGMENT_HEADER_LEN, SegmentHeader,
    SeriesRecord, State, Tombstone, TombstonePart, WalWriter, find_frame_after, was_synced,
};
