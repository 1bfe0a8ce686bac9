//! Chunk files that are open: mapped, their directories verified. A bounded number stays open for the next reader.
//!
//! # Invariants
//! - A chunk that nobody reads and that is not kept is unmapped: a process may have a limited number of mappings
//!   (Linux: `vm.max_map_count`, 65,530 by default).
//! - What a reader holds stays mapped until the reader goes, kept or not.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use sonde_storage_format::{
    ChunkMeta, ChunkReader, Column, ColumnId, ColumnPages, ColumnRuns, FormatError, Page, PageMeta,
    SeriesKey, SeriesRun,
};

use crate::error::{Error, Result};
use crate::limits::OPEN_CHUNKS;
use crate::storage::Mapped;

/// A chunk that was mapped and whose directories were verified.
#[derive(Debug)]
pub(crate) struct OpenChunk {
    path: PathBuf,
    bytes: Mapped,
    pub(crate) series: Vec<SeriesRun>,
    pub(crate) columns: Vec<ColumnPages>,
    /// The first row of each row group.
    pub(crate) starts: Vec<u64>,
    /// Whether it was read since the cache looked last.
    used: AtomicBool,
    /// Whether the cache has it.
    kept: AtomicBool,
    /// Whether its file is to go once nobody has it open.
    obsolete: AtomicBool,
}

impl OpenChunk {
    /// Verifies the root and the directories of a chunk that should be `meta`'s.
    pub(crate) fn new(path: &Path, bytes: Mapped, meta: &ChunkMeta) -> Result<Self, FormatError> {
        let reader = ChunkReader::open(&bytes)?;
        let root = reader.root();
        if (root.id, root.table, root.rows) != (meta.id, meta.table, meta.rows) {
            let (structure, expected) = ("chunk root", "the chunk that the manifest names");
            return Err(FormatError::Invalid { structure, offset: 0, expected, found: root.id.0 });
        }
        let (mut series, columns) = (reader.series()?, reader.columns()?);
        // The registry has the keys; here they would be most of what a directory takes.
        series.iter_mut().for_each(|run| run.key = SeriesKey::default());
        let rows = columns.first().into_iter().flat_map(|time| &time.pages);
        let rows = rows.map(|page| page.map_or(0, |page| u64::from(page.stats.rows)));
        let starts = rows.scan(0, |next, rows| Some(std::mem::replace(next, *next + rows))).collect();
        let (used, kept, obsolete) = (AtomicBool::new(true), AtomicBool::default(), AtomicBool::default());
        Ok(Self { path: path.to_path_buf(), bytes, series, columns, starts, used, kept, obsolete })
    }

    /// The error for a chunk that is not what its checksums vouch for.
    pub(crate) fn wrong(&self, expected: &'static str) -> Error {
        let source = FormatError::Invalid { structure: "chunk", offset: 0, expected, found: 0 };
        Error::Corrupt { path: self.path.clone(), source }
    }

    /// Its file is to go: it is not worth keeping open.
    pub(crate) fn retire(&self) {
        self.obsolete.store(true, Ordering::Relaxed);
    }

    /// Decodes rows of a page, in pieces that each decode no more vectors than their rows lie in.
    pub(crate) fn rows(&self, meta: &PageMeta, pieces: &[Range<usize>]) -> Result<Column> {
        self.read_rows(meta, pieces).map_err(|source| Error::Corrupt { path: self.path.clone(), source })
    }

    /// Does something with a page, verified.
    pub(crate) fn with_page<T>(
        &self,
        meta: &PageMeta,
        read: impl FnOnce(Page<'_>) -> Result<T, FormatError>,
    ) -> Result<T> {
        let page = ChunkReader::open(&self.bytes).and_then(|reader| reader.page(meta));
        page.and_then(read).map_err(|source| Error::Corrupt { path: self.path.clone(), source })
    }

    /// The statistics of its long series, of the columns that are wanted.
    pub(crate) fn run_statistics(&self, wanted: impl FnMut(ColumnId) -> bool) -> Result<Vec<ColumnRuns>> {
        let columns =
            ChunkReader::open(&self.bytes).and_then(|reader| reader.run_statistics(&self.series, wanted));
        columns.map_err(|source| Error::Corrupt { path: self.path.clone(), source })
    }

    fn read_rows(&self, meta: &PageMeta, pieces: &[Range<usize>]) -> Result<Column, FormatError> {
        let page = ChunkReader::open(&self.bytes)?.page(meta)?;
        match pieces {
            [all] if *all == (0..page.rows()) => page.decode(),
            [piece] => page.decode_rows(piece.clone()),
            // A unit decodes as a whole, whichever rows are wanted of it.
            _ if page.is_unit() => {
                let (all, mut rows) = (page.decode()?, Column::new(page.kind()));
                pieces.iter().for_each(|piece| rows.extend_from(&all, piece.clone()));
                Ok(rows)
            }
            _ => {
                let mut rows = Column::new(page.kind());
                for piece in pieces {
                    let decoded = page.decode_rows(piece.clone())?;
                    rows.extend_from(&decoded, 0..decoded.len());
                }
                Ok(rows)
            }
        }
    }

    /// The page with the most bytes, and its column.
    pub(crate) fn largest_page(&self) -> Option<(ColumnId, &PageMeta)> {
        let columns = self.columns.iter();
        let pages =
            columns.flat_map(|column| column.pages.iter().flatten().map(move |page| (column.id, page)));
        pages.max_by_key(|(_, page)| page.len)
    }

    /// About what its directories take in memory.
    fn directory_bytes(&self) -> usize {
        let pages: usize = self.columns.iter().map(|column| column.pages.len()).sum();
        size_of_val(self.series.as_slice()) + pages * size_of::<Option<PageMeta>>() + 8 * self.starts.len()
    }
}

/// Open chunks that stay open, oldest first; one that was read since its turn came last gets another (the clock
/// algorithm).
#[derive(Debug)]
pub(crate) struct OpenChunks {
    /// Bytes of directories that are kept.
    limit: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    chunks: VecDeque<Arc<OpenChunk>>,
    bytes: usize,
}

impl OpenChunks {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, kept: Mutex::default() }
    }

    /// Keeps a chunk open, and lets others go where there are too many.
    pub(crate) fn keep(&self, open: &Arc<OpenChunk>) {
        open.used.store(true, Ordering::Relaxed);
        if open.kept.load(Ordering::Relaxed) {
            return;
        }
        let mut gone = Vec::new();
        {
            let mut kept = self.kept.lock();
            if open.kept.swap(true, Ordering::Relaxed) {
                return;
            }
            kept.bytes += open.directory_bytes();
            kept.chunks.push_back(Arc::clone(open));
            while kept.chunks.len() > OPEN_CHUNKS || kept.bytes > self.limit {
                let Some(oldest) = kept.chunks.pop_front() else { break };
                if oldest.used.swap(false, Ordering::Relaxed) && kept.chunks.len() > 1 {
                    kept.chunks.push_back(oldest);
                    continue;
                }
                oldest.kept.store(false, Ordering::Relaxed);
                kept.bytes -= oldest.directory_bytes();
                gone.push(oldest);
            }
        }
        // Unmapped here, not under the lock.
        drop(gone);
    }

    /// Lets chunks go whose files are to go: a mapping holds the disk space of a removed file.
    pub(crate) fn drop_obsolete(&self) {
        let mut kept = self.kept.lock();
        let (gone, stay): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut kept.chunks)
            .into_iter()
            .partition(|open| open.obsolete.load(Ordering::Relaxed));
        kept.chunks = stay;
        kept.bytes -= gone.iter().map(|open| open.directory_bytes()).sum::<usize>();
        drop(kept);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::OPEN_CHUNK_BYTES;

    fn open() -> Arc<OpenChunk> {
        let starts = vec![0; OPEN_CHUNK_BYTES / 8 / 4];
        Arc::new(OpenChunk {
            path: PathBuf::new(),
            bytes: Mapped::default(),
            series: Vec::new(),
            columns: Vec::new(),
            starts,
            used: AtomicBool::new(false),
            kept: AtomicBool::new(false),
            obsolete: AtomicBool::new(false),
        })
    }

    #[test]
    fn the_cache_is_bounded_and_what_is_read_stays() {
        let cache = OpenChunks::new(OPEN_CHUNK_BYTES);
        let chunks: Vec<_> = (0..8).map(|_| open()).collect();
        for chunk in &chunks {
            cache.keep(chunk);
            chunks.iter().take(1).for_each(|first| cache.keep(first));
        }
        let kept: Vec<bool> = chunks.iter().map(|chunk| Arc::strong_count(chunk) == 2).collect();
        assert_eq!(kept.iter().filter(|kept| **kept).count(), 4, "{kept:?}");
        assert_eq!(kept.first(), Some(&true), "the one that is read again and again");
        assert_eq!(kept.last(), Some(&true), "the newest");
    }
}
