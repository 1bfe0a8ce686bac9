//! Examines a data directory without changing it: every checksum, and whether the files agree with each other. What
//! [`repair`] does about damage stands in `repair/`.
//!
//! # Invariants
//! - By an examination nothing is written, cut or removed.
//! - A server may run beside it. Manifest, checkpoint and log are opened together before any of them is decoded. What is
//!   wrong with them is looked at again, from the manifest that is current then, and is a finding once two looks in a
//!   row agree on it; so is a chunk or a cold file that is not as it should be while the current manifest names it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sonde_storage_format::{Checkpoint, ChunkMeta, ChunkReader, FormatError, SeqNo, Timestamp, path};

use crate::error::{Error, Result};
use crate::limits::EXAMINE_LOOKS;
use crate::manifest::{self, ManifestState};
pub use crate::repair::{Loss, Mended, Repaired, repair, repair_on};
use crate::storage::{LocalStorage, Mapped, Storage};
use crate::wal::{self, LogScan};

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
    let Look { torn, read } = Look::settled(dir, &storage);
    let read = match read {
        Ok(read) => read,
        Err(error) => {
            doctor.note(Severity::Damage, "manifest", error.to_string());
            return Ok(doctor.found);
        }
    };
    doctor.manifest(&read.state, torn.filter(|_| !running));
    doctor.chunks(&read.state, running);
    doctor.checkpoint(&read.checkpoint);
    doctor.log(&read.log, running);
    doctor.cold(&read.state);
    Ok(doctor.found)
}

/// What the manifest says at one moment, and what is in the files that follow from it.
struct Look {
    /// The manifest's path, where it ends with a torn edit.
    torn: Option<PathBuf>,
    read: Result<Read>,
}

struct Read {
    state: ManifestState,
    checkpoint: Result<Option<CheckpointFound>>,
    log: Result<LogFound>,
}

struct CheckpointFound {
    number: u64,
    position: SeqNo,
    entries: usize,
}

struct LogFound {
    scan: LogScan,
    records: u64,
}

impl Look {
    /// Looks until nothing is wrong, or the same twice in a row: a running server replaces the checkpoint with each flush,
    /// removes segments, and may be in the middle of a frame.
    fn settled(dir: &Path, storage: &dyn Storage) -> Self {
        let mut look = Self::new(dir, storage);
        for _ in 1..EXAMINE_LOOKS {
            let wrong = look.wrong();
            if wrong.is_empty() {
                break;
            }
            look = Self::new(dir, storage);
            if look.wrong() == wrong {
                break;
            }
        }
        look
    }

    fn new(dir: &Path, storage: &dyn Storage) -> Self {
        match manifest::read(storage, &dir.join(path::MANIFEST_DIR)) {
            Ok((state, torn)) => Self { torn, read: Ok(Read::new(dir, storage, state)) },
            Err(error) => Self { torn: None, read: Err(error) },
        }
    }

    /// What is wrong, as text.
    fn wrong(&self) -> Vec<String> {
        match &self.read {
            Ok(read) => {
                let errors = [read.checkpoint.as_ref().err(), read.log.as_ref().err()];
                errors.into_iter().flatten().map(Error::to_string).collect()
            }
            Err(error) => vec![error.to_string()],
        }
    }
}

impl Read {
    /// Opens everything before it decodes anything: what is open stays, even if the server removes it.
    fn new(dir: &Path, storage: &dyn Storage, state: ManifestState) -> Self {
        let path = |number| dir.join(path::STATE_DIR).join(path::checkpoint(number));
        let opened = state.checkpoint.map(|number| {
            let path = path(number);
            let bytes = storage.map(&path).map_err(|error| Error::io("read", &path, &error));
            bytes.map(|bytes| (number, path, bytes))
        });
        let segments = wal::find(storage, &dir.join(path::WAL_DIR));
        let checkpoint = opened.transpose().and_then(|opened| opened.map(decode_checkpoint).transpose());
        let from = match &checkpoint {
            Ok(Some(found)) => found.position.min(state.flushed_to),
            Ok(None) => SeqNo(0),
            // That segments before it are gone is no further damage.
            Err(_) => state.flushed_to,
        };
        let mut records = 0;
        let scan = segments.and_then(|segments| wal::scan_found(segments, from, |_, _| records += 1));
        Self { state, checkpoint, log: scan.map(|scan| LogFound { scan, records }) }
    }
}

fn decode_checkpoint((number, path, bytes): (u64, PathBuf, Mapped)) -> Result<CheckpointFound> {
    let checkpoint = Checkpoint::decode(&bytes).map_err(|source| Error::Corrupt { path, source })?;
    Ok(CheckpointFound { number, position: checkpoint.position, entries: checkpoint.state.len() })
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

    fn manifest(&mut self, state: &ManifestState, torn: Option<PathBuf>) {
        if let Some(torn) = torn {
            let text = format!("{} ends with a torn edit, which the next start drops", torn.display());
            self.note(Severity::Warning, "manifest", text);
        }
        let (chunks, cold) = (state.chunks.len(), state.cold.len());
        self.note(Severity::Good, "manifest", format!("{chunks} chunks, {cold} cold files"));
    }

    fn chunks(&mut self, state: &ManifestState, running: bool) {
        let dir = self.dir.join(path::CHUNK_DIR);
        let (mut good, mut bytes, mut rows) = (0, 0, 0);
        for meta in state.chunks.values() {
            match check_chunk(self.storage, &dir.join(path::chunk(meta.id)), meta) {
                Ok(()) => (good, bytes, rows) = (good + 1, bytes + meta.bytes, rows + meta.rows),
                Err(_) if !self.is_named(|now| now.chunks.contains_key(&meta.id)) => {}
                Err(error) => {
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
        self.note(
            Severity::Good,
            "chunks",
            format!("{good} good: {rows} rows, {bytes} bytes, every page decoded"),
        );
        let names = self.storage.list(&dir).unwrap_or_default();
        let known: BTreeSet<String> = state.chunks.keys().map(|id| path::chunk(*id)).collect();
        let strangers = names.iter().filter(|name| !known.contains(*name)).count();
        // A running server has removed at its start what no manifest names: these are chunks that came or go meanwhile.
        if strangers > 0 && !running {
            let text = format!("{strangers} files of {} that the manifest does not name", dir.display());
            self.note(Severity::Warning, "chunks", text);
        }
    }

    /// Whether the manifest of now names a file still: a running server merges, moves and removes them.
    fn is_named(&self, names: impl Fn(&ManifestState) -> bool) -> bool {
        let mut wrong = None;
        for _ in 0..EXAMINE_LOOKS {
            match manifest::read(self.storage, &self.dir.join(path::MANIFEST_DIR)) {
                Ok((state, _)) => return names(&state),
                // It was replaced just now, unless it cannot be read.
                Err(error) if wrong.as_ref() == Some(&error.to_string()) => break,
                Err(error) => wrong = Some(error.to_string()),
            }
        }
        true
    }

    /// Up to where the checkpoint that counts goes.
    fn checkpoint(&mut self, found: &Result<Option<CheckpointFound>>) {
        let (severity, text) = match found {
            Ok(Some(CheckpointFound { number, position, entries })) => {
                (Severity::Good, format!("number {number}, up to {}, {entries} entries", position.0))
            }
            Ok(None) => (Severity::Good, "none yet: everything is in the log".to_owned()),
            Err(error) => (Severity::Damage, error.to_string()),
        };
        self.note(severity, "checkpoint", text);
    }

    /// Every frame of the log.
    fn log(&mut self, found: &Result<LogFound>, running: bool) {
        let LogFound { scan, records } = match found {
            Ok(found) => found,
            Err(error) => return self.note(Severity::Damage, "log", error.to_string()),
        };
        if let Some((path, offset)) = scan.torn.as_ref().filter(|_| !running) {
            let text = format!(
                "{} ends with a torn frame at {offset}, which the next start cuts off",
                path.display()
            );
            self.note(Severity::Warning, "log", text);
        }
        let (segments, last) = (scan.log.segments.len(), scan.log.last_seq.0);
        let text = format!("{segments} segments up to {last}, {records} records to replay");
        self.note(Severity::Good, "log", text);
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
            let text = match found {
                Ok(bytes) if bytes == file.bytes => {
                    good += 1;
                    continue;
                }
                Ok(bytes) => format!("{}: expected {} bytes, found {bytes}", path.display(), file.bytes),
                Err(error) => Error::io("open", &path, &error).to_string(),
            };
            let day = (file.table, file.day.start);
            if self.is_named(|now| now.cold.get(&day).is_some_and(|now| now.path == file.path)) {
                self.note(Severity::Damage, "cold", text);
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
