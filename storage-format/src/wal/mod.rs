#![doc = include_str!("../../../docs/format/wal.md")]
//!
//! # Invariants
//! - A frame's checksum is seeded with segment and offset, so bytes of a recycled or misplaced block never pass.
//! - One frame is one group commit: it is there whole or not at all.

mod frame;
mod message;
mod record;
mod rows;
mod segment;
mod tail;
mod tombstone;

pub use frame::{Frame, FrameScan, WalWriter};
pub use message::{Message, MessageRef};
pub use record::{Record, SeriesRecord, State};
pub use rows::{Origin, RowsRecord};
pub use segment::{SEGMENT_HEADER_LEN, SegmentHeader};
pub use tail::{find_frame_after, was_synced};
pub use tombstone::{Tombstone, TombstonePart};
