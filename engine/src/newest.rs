//! The newest time that each series of a table has in files, as far as their directories were read.
//!
//! # Invariants
//! - A time is an upper bound over all files that were read, those included that are gone: what hides or removes rows
//!   only lowers the truth. So it never has to be taken back, and files may come and go at any moment.
//! - A file never changes and its name is never used again, so it is read once.

use std::collections::HashSet;
use std::sync::Arc;

use sonde_storage_format::{ChunkId, ColdFile, SeriesId, Timestamp};

use crate::version::TableFiles;

/// A file that has a directory of its series, or rows to make one of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FileName {
    Chunk(ChunkId),
    Cold(Arc<str>),
}

impl FileName {
    pub(crate) fn of_cold(file: &ColdFile) -> Self {
        Self::Cold(file.path.as_str().into())
    }
}

/// What is known of a table's files.
#[derive(Debug, Default)]
pub(crate) struct NewestInFiles {
    read: HashSet<FileName>,
    /// By handle; `i64::MIN` where no file that was read has the series.
    times: Vec<i64>,
}

impl NewestInFiles {
    /// Whether a file was read.
    pub(crate) fn has_read(&self, file: &FileName) -> bool {
        self.read.contains(file)
    }

    /// Takes in the series of a file and their last times.
    pub(crate) fn add(&mut self, file: FileName, series: impl Iterator<Item = (SeriesId, Timestamp)>) {
        for (id, last) in series {
            let place = id.0 as usize;
            if self.times.len() <= place {
                self.times.resize(place + 1, i64::MIN);
            }
            if let Some(time) = self.times.get_mut(place) {
                *time = (*time).max(last.as_nanos());
            }
        }
        self.read.insert(file);
    }

    /// Forgets the names of files that are gone, once they are more than the others.
    pub(crate) fn forget_all_but(&mut self, files: &TableFiles) {
        if self.read.len() <= 2 * (files.chunks().count() + files.cold.len()) + 64 {
            return;
        }
        let cold = files.cold.values().map(|file| FileName::of_cold(file));
        let there: HashSet<FileName> =
            files.chunks().map(|chunk| FileName::Chunk(chunk.meta.id)).chain(cold).collect();
        self.read.retain(|file| there.contains(file));
    }

    /// A series has nothing newer than this in the files that were read; `i64::MIN` where it is in none of them.
    pub(crate) fn bound(&self, id: SeriesId) -> i64 {
        self.times.get(id.0 as usize).copied().unwrap_or(i64::MIN)
    }
}
