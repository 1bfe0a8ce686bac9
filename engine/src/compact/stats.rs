//! What flushes and merges have written, by table, since the start.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use sonde_storage_format::{ChunkMeta, TableId};

/// What was written of one table since the start. Write amplification is all bytes written by the bytes of the chunks
/// that there are in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactionStats {
    /// Chunks that flushes wrote.
    pub flushed_chunks: u64,
    /// Their bytes.
    pub flushed_bytes: u64,
    /// Merges, the splits of wide chunks and the rewrites of single ones among them.
    pub merges: u64,
    /// Chunks that they wrote.
    pub merged_chunks: u64,
    /// Their bytes.
    pub merged_bytes: u64,
}

/// The counts of all tables.
#[derive(Debug, Default)]
pub(crate) struct Compactions(Mutex<BTreeMap<TableId, CompactionStats>>);

impl Compactions {
    pub(crate) fn flushed(&self, meta: &ChunkMeta) {
        let mut tables = self.0.lock();
        let stats = tables.entry(meta.table).or_default();
        stats.flushed_chunks += 1;
        stats.flushed_bytes += meta.bytes;
    }

    pub(crate) fn merged<'a>(&self, table: TableId, chunks: impl Iterator<Item = &'a ChunkMeta>) {
        let mut tables = self.0.lock();
        let stats = tables.entry(table).or_default();
        stats.merges += 1;
        for meta in chunks {
            stats.merged_chunks += 1;
            stats.merged_bytes += meta.bytes;
        }
    }

    pub(crate) fn of(&self, table: TableId) -> CompactionStats {
        self.0.lock().get(&table).copied().unwrap_or_default()
    }

    /// Forgets tables that are gone.
    pub(crate) fn retain(&self, known: impl Fn(TableId) -> bool) {
        self.0.lock().retain(|table, _| known(*table));
    }
}
