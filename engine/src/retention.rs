//! Which files have outlived their table's retention.

use sonde_storage_format::{ChunkId, TableId, TimeRange, Timestamp};

use crate::catalog::Catalog;
use crate::version::Version;

/// What retention removes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Expired {
    pub(crate) chunks: Vec<(TableId, ChunkId)>,
    pub(crate) cold: Vec<(TableId, TimeRange)>,
}

impl Expired {
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.cold.is_empty()
    }
}

/// Files that hold only rows older than their table keeps, and files of tables that were dropped.
pub(crate) fn expired(version: &Version, catalog: &Catalog, now: Timestamp) -> Expired {
    let mut expired = Expired::default();
    for (id, files) in &version.files {
        let retention = catalog.table_by_id(*id).map(|table| table.def().options.retention);
        let gone = |end: Timestamp| match retention {
            None => true,
            Some(0) => false,
            Some(retention) => end.as_nanos() <= now.as_nanos().saturating_sub(retention),
        };
        let chunks = files.chunks().filter(|chunk| gone(chunk.meta.range.end));
        expired.chunks.extend(chunks.map(|chunk| (*id, chunk.meta.id)));
        expired
            .cold
            .extend(files.cold.values().filter(|file| gone(file.day.end)).map(|file| (*id, file.day)));
    }
    expired
}
