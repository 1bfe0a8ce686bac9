//! Identifiers that files name things by.
//!
//! # Invariants
//! - `TableId`, `ColumnId`, `SeriesId` and `ChunkId` are never reused within a data directory.
//! - A `SeqNo` is the offset of one message (or request) in the log; the log's order is the order of everything.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A table, for as long as it lives; `DROP` and `CREATE` of the same name give a new one.
    TableId(u32)
);
id!(
    /// A column of a table. 0 is the time column.
    ColumnId(u32)
);
id!(
    /// A dense handle of a series within its table, counted from 0. It is never an order.
    SeriesId(u64)
);
id!(
    /// The offset of a message in the log. The first message is 1; 0 means "before everything".
    SeqNo(u64)
);
id!(
    /// A chunk file of this data directory.
    ChunkId(u64)
);

impl SeqNo {
    /// The sequence number `n` messages after this one.
    #[must_use]
    pub fn plus(self, n: u64) -> Self {
        Self(self.0 + n)
    }
}

/// An inclusive range of sequence numbers, `first <= last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeqRange {
    /// The first sequence number covered.
    pub first: SeqNo,
    /// The last sequence number covered.
    pub last: SeqNo,
}

impl SeqRange {
    /// Whether the ranges share a sequence number.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The smallest range that covers both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self { first: self.first.min(other.first), last: self.last.max(other.last) }
    }
}

/// A place in the log. There is one partition on one node; the offset counts messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// The partition of the log, 0 on one node.
    pub partition: u32,
    /// The message's offset in it, its `SeqNo`.
    pub offset: SeqNo,
}

/// How a column's values are stored. The numbers are those on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PhysicalType {
    /// 64-bit IEEE 754, every bit kept.
    Float64 = 1,
    /// Signed 64-bit integer.
    Int64 = 2,
    /// Unsigned 64-bit integer.
    UInt64 = 3,
    /// `false` or `true`.
    Boolean = 4,
    /// UTF-8 text.
    Text = 5,
}

impl PhysicalType {
    /// The type with this number on disk, if there is one.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Float64,
            2 => Self::Int64,
            3 => Self::UInt64,
            4 => Self::Boolean,
            5 => Self::Text,
            _ => return None,
        })
    }

    /// The name of the type in SQL.
    #[must_use]
    pub fn sql_name(self) -> &'static str {
        match self {
            Self::Float64 => "DOUBLE",
            Self::Int64 => "BIGINT",
            Self::UInt64 => "BIGINT UNSIGNED",
            Self::Boolean => "BOOLEAN",
            Self::Text => "STRING",
        }
    }
}
