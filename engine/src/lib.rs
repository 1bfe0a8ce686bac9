//! When and where bytes are written and read: log, memtable, chunks, compaction, cold tier, scan.
//!
//! Threads and channels, no runtime (the cold tier excepted): a write returns a [`Receipt`], a read pulls a
//! [`ScanStream`]. The write path is `write/commit.rs::commit`, the read path `scan/mod.rs::scan`.
//!
//! # Invariants
//! - Acknowledged means durable and visible.
//! - A reader sees one immutable snapshot.
//! - The engine never calls up: answers are return values.

mod activity;
mod batch;
mod catalog;
mod checkpoint;
mod clock;
mod cold;
mod compact;
mod delete;
mod engine;
mod error;
mod flush;
mod flushes;
mod group;
mod health;
mod jobs;
mod log_holds;
mod log_reader;
mod manifest;
mod mask;
mod memtable;
mod message_reader;
mod newest;
mod open_chunk;
mod open_part;
mod pause;
mod purge;
mod queue;
mod raw;
mod receipt;
mod recover;
mod repair;
mod retention;
mod scan;
mod series;
mod series_budget;
mod state;
mod status;
mod storage;
mod tag_column;
mod tag_index;
mod version;
mod wal;
mod widen;
mod write;

pub mod backup;
pub mod doctor;
pub mod limits;

pub use activity::{JobKind, JobState, JobStatus};
pub use batch::{
    BatchSeries, EXACT_INTEGER, FieldValue, Row, RowColumns, WriteBatch, WriteBatchBuilder, type_conflict,
};
pub use catalog::{Catalog, CatalogRequest, NewColumn, NewTable, TIME_NAME, Table, nearest};
pub use clock::{Clock, SystemClock};
pub use cold::ColdOptions;
pub use compact::stats::CompactionStats;
pub use delete::Points;
pub use engine::{Engine, Options};
pub use error::{Error, Result};
pub use log_reader::{LogReader, LogTurn};
pub use message_reader::{MessageReader, MessageTurn};
pub use receipt::Receipt;
pub use scan::aggregate::{Aggregate, AggregateRequest, Totals};
pub use scan::batch::{data_type, field_array, schema as arrow_schema};
pub use scan::latest::{Latest, LatestRequest};
pub use scan::total::{Number, Total};
pub use scan::{Scan, ScanRequest, ScanStream, Snapshot, TagFilter, ValueRange};
pub use sonde_storage_format::{
    Cell, Cells, ChunkMeta, ColdFile, Column, ColumnDef, ColumnId, ColumnRole, Durability, MessageRef,
    Object, ObjectKind, Origin, PhysicalType, Profile, RowsRecord, SeqNo, SeqRange, SeriesId, SeriesKey,
    State, TableDef, TableId, TableKind, TableOptions, TimeRange, Timestamp, Values, path,
};
pub use state::{CURSORS, LOG_CURSORS, cursor_key};
pub use status::{LogSegment, LogStatus, SegmentState};
pub use storage::{LocalStorage, LogFile, Mapped, Storage};
pub use tag_column::TagColumn;
pub use wal::LogBudget;
pub use widen::{ColdValues, widened};
