//! Examines a data directory without changing it: every checksum, and whether the files agree with each other. What
//! [`repair`] does about damage stands in `repair/`.
//!
//! # Invariants
//! - By an examination nothing is written, cut or removed. A server may run beside it: a file that goes meanwhile is looked for again in the
//!   manifest that is current then, and a log that ends in the middle of a frame is being written.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sonde_storage_format::{Checkpoint, ChunkMeta, ChunkReader, FormatError, SeqNo, Timestamp, path};

use crate::error::{Error, Result};
use crate::manifest::{self, ManifestState};
pub use crate::repair::{Loss, Mended, Repaired, repair, repair_on};
use crate::storage::{LocalStorage, Storage};
use crate::wal;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Good,
    /// Works, and somebody should know.
    Warning,
    /// Data is damaged or missing.
    Damage,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at, for example `chunks`.
    pub subject: &'static str,
    /// What is the matter, with the file's name and place where it is about one.
    pub text: String,
}

impl Finding {
    /// A finding about a subject.
    #[must_use]
    pub fn new(severity: Severity, subject: &'static str, text: impl Into<String>) -> Self {
        Self { severity, subject, text: text.into() }
    }
}

/// What an examination of a data directory found.
#[derive(Clone, Debug, Default)]
pub struct Examination {
    /// One or more per subject.
    pub findings: Vec<Finding>,
    /// The newest time of a row in a chunk, if there is a row.
    pub newest: Option<Timestamp>,
}

/// Examines the data directory `dir`. Fails only where it cannot be read at all.
pub fn examine(dir: &Path) -> Result<Examination> {
    let storage = LocalStorage;
    let mut doctor = Doctor { dir, storage: &storage, found: Examination::default() };
    doctor.layout()?;
    let running = doctor.is_running();
    let Some(state) = doctor.manifest() else { return Ok(doctor.found) };
    doctor.chunks(&state);
    let position = doctor.checkpoint(&state);
    doctor.log(position.min(state.flushed_to), running);
    doctor.cold(&state);
    Ok(doctor.found)
}

struct Doctor<'a> {
    dir: &'a Path,
    storage: &'a dyn Storage,
    found: Examination,
}

impl Doctor<'_> {
    fn note(&mut self, severity: Severity, subject: &'static str, text: impl Into<String>) {
        self.found.findings.push(Finding::new(severity, subject, text));
    }

    /// The version; without one this is no data directory.
    fn layout(&mut self) -> Result<()> {
        check_version(self.dir, self.storage)?;
        self.note(Severity::Good, "layout", format!("version {}", path::LAYOUT_VERSION.trim()));
        Ok(())
    }

    /// Whether a server has the directory.
    fn is_running(&mut self) -> bool {
        let lock = std::fs::File::open(self.dir.join(path::LOCK));
        let running = lock.is_ok_and(|lock| lock.try_lock_shared().is_err());
        let text = if running { "a server has the directory" } else { "no server has the directory" };
        self.note(Severity::Good, "server", text);
        running
    }

    fn manifest(&mut self) -> Option<ManifestState> {
        match manifest::read(self.storage, &self.dir.join(path::MANIFEST_DIR)) {
            Ok((state, torn)) => {
                if let Some(torn) = torn {
                    let text =
                        format!("{} ends with a torn edit, which the next start drops", torn.display());
                    self.note(Severity::Warning, "manifest", text);
                }
                let (chunks, cold) = (state.chunks.len(), state.cold.len());
                self.note(Severity::Good, "manifest", format!("{chunks} chunks, {cold} cold files"));
                Some(state)
            }
            Err(error) => {
                self.note(Severity::Damage, "manifest", error.to_string());
                None
            }
        }
    }

    fn chunks(&mut self, state: &ManifestState) {
        let dir = self.dir.join(path::CHUNK_DIR);
        let (mut bytes, mut rows, mut damaged) = (0, 0, 0);
        for meta in state.chunks.values() {
            match check_chunk(self.storage, &dir.join(path::chunk(meta.id)), meta) {
                Ok(()) => (bytes, rows) = (bytes + meta.bytes, rows + meta.rows),
                Err(_) if self.has_gone(meta) => {}
                Err(error) => {
                    damaged += 1;
                    let table = meta.table;
                    self.note(
                        Severity::Damage,
                        "chunks",
                        format!("{error} (table {table}, {} rows)", meta.rows),
                    );
                }
            }
            self.found.newest = self.found.newest.max(Some(meta.times.1));
        }
        let good = state.chunks.len() - damaged;
        self.note(
            Severity::Good,
            "chunks",
            format!("{good} good: {rows} rows, {bytes} bytes, every page decoded"),
        );
        let names = self.storage.list(&dir).unwrap_or_default();
        let known: BTreeSet<String> = state.chunks.keys().map(|id| path::chunk(*id)).collect();
        let strangers = names.iter().filter(|name| !known.contains(*name)).count();
        if strangers > 0 {
            let text = format!("{strangers} files of {} that the manifest does not name", dir.display());
            self.note(Severity::Warning, "chunks", text);
        }
    }

    /// Whether a chunk has left the store since: a running server merges and removes chunks.
    fn has_gone(&self, meta: &ChunkMeta) -> bool {
        let now = manifest::read(self.storage, &self.dir.join(path::MANIFEST_DIR));
        now.is_ok_and(|(state, _)| !state.chunks.contains_key(&meta.id))
    }

    /// Up to where the checkpoint that counts goes.
    fn checkpoint(&mut self, state: &ManifestState) -> SeqNo {
        let Some(number) = state.checkpoint else {
            self.note(Severity::Good, "checkpoint", "none yet: everything is in the log");
            return SeqNo(0);
        };
        let path = self.dir.join(path::STATE_DIR).join(path::checkpoint(number));
        let read = self.storage.read(&path).map_err(|error| Error::io("read", &path, &error));
        let decoded = read.and_then(|bytes| {
            Checkpoint::decode(&bytes).map_err(|source| Error::Corrupt { path: path.clone(), source })
        });
        match decoded {
            Ok(checkpoint) => {
                let entries = checkpoint.state.len();
                let text = format!("number {number}, up to {}, {entries} entries", checkpoint.position.0);
                self.note(Severity::Good, "checkpoint", text);
                checkpoint.position
            }
            Err(error) => {
                self.note(Severity::Damage, "checkpoint", error.to_string());
                SeqNo(0)
            }
        }
    }

    /// Every frame of the log.
    fn log(&mut self, from: SeqNo, running: bool) {
        let mut records = 0_u64;
        let dir = self.dir.join(path::WAL_DIR);
        let mut scan = || {
            records = 0;
            wal::scan(self.storage, &dir, from, |_, _| records += 1)
        };
        // A running server may remove a segment while it is looked at.
        let scanned = scan().or_else(|error| if running { scan() } else { Err(error) });
        match scanned {
            Ok(scan) => {
                if let Some((path, offset)) = scan.torn.filter(|_| !running) {
                    let text = format!(
                        "{} ends with a torn frame at {offset}, which the next start cuts off",
                        path.display()
                    );
                    self.note(Severity::Warning, "log", text);
                }
                let segments = scan.log.segments.len();
                let text =
                    format!("{segments} segments up to {}, {records} records to replay", scan.log.last_seq.0);
                self.note(Severity::Good, "log", text);
            }
            Err(error) => self.note(Severity::Damage, "log", error.to_string()),
        }
    }

    /// Whether the files of the default cold tier are there with the bytes that they should have.
    fn cold(&mut self, state: &ManifestState) {
        let root: PathBuf = self.dir.join(path::COLD_DIR);
        if state.cold.is_empty() || !root.is_dir() {
            return;
        }
        let mut good = 0;
        for file in state.cold.values() {
            let path = root.join(&file.path);
            let found = std::fs::metadata(&path).map(|metadata| metadata.len());
            match found {
                Ok(bytes) if bytes == file.bytes => good += 1,
                Ok(bytes) => {
                    let text = format!("{}: expected {} bytes, found {bytes}", path.display(), file.bytes);
                    self.note(Severity::Damage, "cold", text);
                }
                Err(error) => {
                    self.note(Severity::Damage, "cold", Error::io("open", &path, &error).to_string())
                }
            }
        }
        self.note(Severity::Good, "cold", format!("{good} files have the bytes that the manifest states"));
    }
}

/// Fails unless this is a data directory of the version that this program reads.
pub(crate) fn check_version(dir: &Path, storage: &dyn Storage) -> Result<()> {
    let path = dir.join(path::VERSION);
    let version = storage.read(&path).map_err(|error| Error::io("read", &path, &error))?;
    if version != path::LAYOUT_VERSION.as_bytes() {
        return Err(Error::Layout {
            path: dir.to_path_buf(),
            expected: path::LAYOUT_VERSION.trim().to_owned(),
            found: String::from_utf8_lossy(&version).trim().to_owned(),
        });
    }
    Ok(())
}

/// Reads every byte of a chunk.
pub(crate) fn check_chunk(storage: &dyn Storage, path: &Path, meta: &ChunkMeta) -> Result<()> {
    let bytes = storage.map(path).map_err(|error| Error::io("open", path, &error))?;
    let corrupt = |source| Error::Corrupt { path: path.to_path_buf(), source };
    let reader = ChunkReader::open(&bytes).map_err(corrupt)?;
    let root = reader.root();
    if (root.id, root.table, root.rows, bytes.len() as u64) != (meta.id, meta.table, meta.rows, meta.bytes) {
        let (structure, expected) = ("chunk root", "the chunk that the manifest names");
        let source = FormatError::Invalid { structure, offset: 0, expected, found: root.id.0 };
        return Err(corrupt(source));
    }
    let series = reader.series().map_err(corrupt)?;
    reader.run_statistics(&series, |_| false).map_err(corrupt)?;
    for column in reader.columns().map_err(corrupt)? {
        for page in column.pages.iter().flatten() {
            reader.page(page).and_then(|page| page.decode()).map_err(corrupt)?;
        }
    }
    Ok(())
}
