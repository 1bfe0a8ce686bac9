//! What can go wrong in the engine: three outcomes, never mixed.
//!
//! # Invariants
//! - The caller's fault (unknown table, conflict, limit) changes nothing.
//! - `Full` is transient: the engine refuses writes, keeps reads and recovers by itself.
//! - `Failed` is for good: an I/O error inside a prepared segment or of a sync latches, and so does the end of a thread
//!   that panicked, until a restart.

use std::path::PathBuf;

use sonde_storage_format::FormatError;

/// An error of the engine.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("{operation} {path}: {message}", path = path.display())]
    Io {
        /// What was done, for example `create`.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        message: String,
    },
    /// A file is damaged.
    #[error("{path} is damaged: {source}", path = path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
    /// A file is damaged, and leaving out what is damaged would lose more than that.
    #[error("{path} cannot be repaired: {why}", path = path.display())]
    Unrepairable {
        /// The file.
        path: PathBuf,
        /// Why not, and what a restore would need.
        why: String,
    },
    /// Another process owns the data directory.
    #[error("data directory {path} is in use by another sonde process; stop it or choose another --data-dir", path = path.display())]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// The data directory is of another version.
    #[error("data directory {path} has layout version {found}, this sonde reads version {expected}; version 0 is of development builds before the formats were fixed: export its tables with the build that wrote it", path = path.display())]
    Layout {
        /// The data directory.
        path: PathBuf,
        /// What this program reads.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A disk error, or a bug, latched the engine.
    #[error("the engine failed and refuses writes until a restart: {0}")]
    Failed(String),
    /// There is no room, on disk or for rows in memory; writes are refused until there is.
    #[error("{0}")]
    Full(String),
    /// What the batch was built against has changed; build it again.
    #[error("{0}")]
    Conflict(String),
    /// There is no such table.
    #[error("unknown table {name}{hint}")]
    UnknownTable {
        /// What was asked for.
        name: String,
        /// `; did you mean x?`, or empty.
        hint: String,
    },
    /// A value does not fit its column, a row its table.
    #[error("{0}")]
    Row(String),
    /// A named limit is reached.
    #[error("{what}: limit is {limit}")]
    Limit {
        /// What there would be too many of.
        what: String,
        /// How many there may be.
        limit: u64,
    },
    /// The table has as many series as it may; rows of those go on.
    #[error("table {table} has {limit} series, its limit, and the row would be the first of another; rows of the series it has are stored as before. Raise the limit with ALTER TABLE {table} SET (max_series = {}), or make a tag whose values never repeat a field", limit.saturating_mul(10))]
    Series {
        /// The table.
        table: String,
        /// How many there may be.
        limit: u64,
    },
    /// The series of all tables take as much memory as they may; rows of those go on.
    #[error("no memory for another series of table {table}, which has {series}: the series of all tables take {:.2} MiB of the {:.2} MiB that are theirs of memory.limit; rows of the series there are are stored as before. Raise memory.limit, drop tables whose series nobody needs, or make a tag whose values never repeat a field", mib(*used), mib(*limit))]
    SeriesMemory {
        /// The table that the row is of.
        table: String,
        /// How many series it has.
        series: u64,
        /// Bytes that the series of all tables take, those that wait for their commit included.
        used: u64,
        /// How many they may take.
        limit: u64,
    },
    /// The batch holds as much as it may: what was refused belongs into the next one.
    #[error("more than {limit} bytes of rows in one batch", limit = crate::limits::BATCH_BYTES)]
    BatchFull,
    /// The object store refused.
    #[error("object store: {0}")]
    Cold(String),
    /// A backup cannot be made, found or restored as it was asked for.
    #[error("{0}")]
    Backup(String),
    /// An object of a backup is missing, not what was written, or of a program that is not this one.
    #[error("backup object {object}: {what}")]
    BadBackup {
        /// The object, from the destination's root on.
        object: String,
        /// What is wrong with it.
        what: String,
    },
    /// The engine was closed.
    #[error("the engine is closed")]
    Closed,
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The result of an engine operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps a system error; a full disk becomes [`Error::Full`].
    pub(crate) fn io(operation: &'static str, path: &std::path::Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        if matches!(error.kind(), StorageFull | QuotaExceeded) {
            let what = format!("disk full: {operation} {}", path.display());
            return Self::Full(format!("{what}; writes are refused until space is freed"));
        }
        Self::Io { operation, path: path.to_path_buf(), message: error.to_string() }
    }

    /// Whether the same request may work later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Full(_) | Self::Conflict(_))
    }
}
