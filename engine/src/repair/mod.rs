//! Repairs a data directory that no server has: takes out what is damaged, and says exactly what was lost.
//!
//! # Invariants
//! - Nothing is deleted: every file that is replaced or taken out lies in the quarantine first, durable.
//! - Either everything that is damaged is repaired, or nothing is changed and an error says why.
//! - Copies, then the report, then the log from its end, then the manifest, then the files that it names no longer: a
//!   repair that is cut short is finished by the next one.
//! - What was repaired opens, and a second repair finds nothing.

mod files;
mod log;
mod rebuild;
mod salvage;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use sonde_storage_format::{ChunkMeta, ColdFile, FormatError, TableId, path};

use crate::doctor::check_version;
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::recover::lock;
use crate::repair::files::Files;
use crate::repair::log::Base;
use crate::storage::{LocalStorage, Storage, create_dirs};

/// Bytes that a copy to the quarantine takes at once.
const COPY_BYTES: usize = 1 << 20;

/// Something that is gone. Times are nanoseconds since 1970, UTC; ranges of sequence numbers include both ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Loss {
    /// All rows of a chunk. Where other chunks hold older cells of the same points, those are what is read now.
    Chunk {
        /// The file.
        file: String,
        /// The table's id.
        table: u32,
        /// `database.name`, where the catalog still has the table.
        name: Option<String>,
        /// Every row of the table in this range of time that came with one of the sequence numbers.
        range_start: i64,
        /// Where the range ends; not included.
        range_end: i64,
        /// The time of the first row.
        first_time: i64,
        /// The time of the last row.
        last_time: i64,
        /// The first sequence number.
        first_seq: u64,
        /// The last sequence number.
        last_seq: u64,
        /// Rows.
        rows: u64,
        /// Series.
        series: u64,
        /// What was found.
        damage: String,
    },
    /// All rows of a day in the cold tier.
    Cold {
        /// The file.
        file: String,
        /// The table's id.
        table: u32,
        /// `database.name`, where the catalog still has the table.
        name: Option<String>,
        /// Where the day begins.
        day_start: i64,
        /// Where the day ends; not included.
        day_end: i64,
        /// Every row of the day up to this sequence number was in the file.
        position: u64,
        /// Rows.
        rows: u64,
        /// What was found.
        damage: String,
    },
    /// Everything that the log said under these sequence numbers: rows, deletions, statements, state.
    Log {
        /// The segment.
        file: String,
        /// Where in it the damage begins.
        offset: u64,
        /// The first sequence number.
        first_seq: u64,
        /// The last sequence number.
        last_seq: u64,
        /// Whether chunks hold all of it: then only those lose something who still had to read it in the log.
        in_files: bool,
        /// What was found.
        damage: String,
    },
    /// Rows of the log that can be read and not be understood, because what they name was registered in what is lost.
    Rows {
        /// The segment.
        file: String,
        /// The table's id.
        table: u32,
        /// `database.name`, where the catalog still has the table.
        name: Option<String>,
        /// The first sequence number of the commit that they came with.
        first_seq: u64,
        /// The last sequence number of that commit.
        last_seq: u64,
        /// Rows.
        rows: u64,
        /// What they lack.
        reason: &'static str,
    },
    /// The same for single columns of rows that are kept.
    Values {
        /// The segment.
        file: String,
        /// The table's id.
        table: u32,
        /// `database.name`, where the catalog still has the table.
        name: Option<String>,
        /// The column's id.
        column: u32,
        /// The first sequence number of the commit that they came with.
        first_seq: u64,
        /// The last sequence number of that commit.
        last_seq: u64,
        /// Rows of which the column's cells are gone.
        rows: u64,
    },
}

/// A file that was written again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mended {
    /// The file.
    pub file: String,
    /// What was done, and why.
    pub what: String,
}

/// What a repair did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// Where the damaged files are now; none where there was nothing to repair.
    pub quarantine: Option<PathBuf>,
    /// Rows up to this sequence number were in files, those behind it in the log only.
    pub flushed_to: u64,
    /// What is gone.
    pub losses: Vec<Loss>,
    /// What was written again.
    pub mended: Vec<Mended>,
}

impl Loss {
    fn of_chunk(file: String, meta: &ChunkMeta, damage: String) -> Self {
        Self::Chunk {
            file,
            table: meta.table.0,
            name: None,
            range_start: meta.range.start.as_nanos(),
            range_end: meta.range.end.as_nanos(),
            first_time: meta.times.0.as_nanos(),
            last_time: meta.times.1.as_nanos(),
            first_seq: meta.seq.first.0,
            last_seq: meta.seq.last.0,
            rows: meta.rows,
            series: meta.series,
            damage,
        }
    }

    fn of_cold(path: String, file: &ColdFile, damage: String) -> Self {
        Self::Cold {
            file: path,
            table: file.table.0,
            name: None,
            day_start: file.day.start.as_nanos(),
            day_end: file.day.end.as_nanos(),
            position: file.position.0,
            rows: file.rows,
            damage,
        }
    }

    fn set_name(&mut self, find: impl Fn(TableId) -> Option<String>) {
        if let Self::Chunk { table, name, .. }
        | Self::Cold { table, name, .. }
        | Self::Rows { table, name, .. }
        | Self::Values { table, name, .. } = self
        {
            *name = find(TableId(*table));
        }
    }
}

/// Repairs the data directory `dir`, which no server may have.
pub fn repair(dir: &Path) -> Result<Repaired> {
    repair_on(dir, &(Arc::new(LocalStorage) as Arc<dyn Storage>))
}

/// Repairs a data directory on other files, for tests.
pub fn repair_on(dir: &Path, storage: &Arc<dyn Storage>) -> Result<Repaired> {
    check_version(dir, storage.as_ref())?;
    let _lock = lock(dir)?;
    let mut files = Files::read(dir, storage)?;
    let checkpoint = std::mem::take(&mut files.checkpoint);
    let base = Base { checkpoint: &checkpoint, flushed_to: files.state.flushed_to };
    let mut log = log::plan(storage, &dir.join(path::WAL_DIR), &base)?;
    if files.without_checkpoint && (!log.losses.is_empty() || log.first_found.is_none_or(|first| first.0 > 1))
    {
        let why = "it holds the names of tables and columns, the series, the sessions and the retained messages, and the \
                   log does not reach back to where they began: restore this file, or the whole data directory, from a \
                   backup";
        let path = files.mended.last().map_or_else(|| dir.to_path_buf(), |mended| dir.join(&mended.file));
        return Err(Error::Unrepairable { path, why: why.to_owned() });
    }
    if let Some(first) = log.first_found {
        files.require_log_from(base.from().0, first.0)?;
    }
    let mut repaired = Repaired { flushed_to: base.flushed_to.0, ..Repaired::default() };
    repaired.losses = std::mem::take(&mut files.losses);
    repaired.losses.append(&mut log.losses);
    repaired.mended = std::mem::take(&mut files.mended);
    repaired.mended.append(&mut log.mended);
    if repaired.losses.is_empty() && repaired.mended.is_empty() {
        return Ok(repaired);
    }
    let catalog = log.salvage.catalog();
    let name = |id| catalog.table_by_id(id).map(|table| table.full_name());
    repaired.losses.iter_mut().for_each(|loss| loss.set_name(name));
    let segments =
        log.damaged().filter_map(|path| path.strip_prefix(dir).ok()).map(|path| path.display().to_string());
    let damaged: Vec<String> = files.damaged.iter().cloned().chain(segments).collect();
    repaired.quarantine = Some(quarantine(dir, storage.as_ref(), &damaged, &mut repaired)?);
    log.apply(storage.as_ref(), &base)?;
    Manifest::replace(Arc::clone(storage), &dir.join(path::MANIFEST_DIR), files.state)?;
    for name in &files.damaged {
        let path = dir.join(name);
        match storage.remove(&path) {
            // The old manifest went with the new one.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &path, &error));
            }
            _ => {}
        }
    }
    Ok(repaired)
}

/// Copies what is damaged to a new directory of the quarantine, and writes the report there.
fn quarantine(
    dir: &Path,
    storage: &dyn Storage,
    damaged: &[String],
    repaired: &mut Repaired,
) -> Result<PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let all = dir.join(path::QUARANTINE_DIR);
    // By the time, in the milliseconds that a name can have; the digits sort.
    let place = all.join(now.as_millis().to_string());
    create_dirs(dir, &[path::QUARANTINE_DIR]).map_err(|error| Error::io("create", &all, &error))?;
    create_dirs(&place, &[]).map_err(|error| Error::io("create", &place, &error))?;
    repaired.quarantine = Some(place.clone());
    for name in damaged {
        let (from, to) = (dir.join(name), place.join(name));
        let parent = to.parent().unwrap_or(&place).to_path_buf();
        create_dirs(&parent, &[]).map_err(|error| Error::io("create", &parent, &error))?;
        let bytes = storage.map(&from).map_err(|error| Error::io("map", &from, &error))?;
        let copied = storage.write_whole(&to, &mut bytes.chunks(COPY_BYTES).map(<[u8]>::to_vec));
        copied.map_err(|error| Error::io("write", &to, &error))?;
    }
    let path = place.join(path::REPAIR_REPORT);
    let report = serde_json::to_vec_pretty(repaired);
    let report = report.map_err(|error| Error::Failed(format!("the report cannot be written: {error}")))?;
    let written = storage.write_whole(&path, &mut std::iter::once(report));
    written.map_err(|error| Error::io("write", &path, &error))?;
    Ok(place)
}

/// Whether a file is of another version, which is no damage.
fn is_version(error: &FormatError) -> bool {
    matches!(error, FormatError::Version { .. })
}
