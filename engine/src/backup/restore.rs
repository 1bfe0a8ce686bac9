//! Writes a data directory from a backup.
//!
//! # Invariants
//! - The target is missing or empty. Everything is written beside it and takes its name at the end, so a crash leaves
//!   nothing that a server would take for data.
//! - Every byte is verified when it is read from the backup, and again when it has been written and is read back.

use std::path::{Path, PathBuf};

use sonde_storage_format::{SeqNo, Timestamp, path};

use super::choose::{To, list_in};
use super::log::{self, Reached};
use super::manifest::{self, Manifest, Object, Segment, manifest_of, rfc3339};
use super::store::{BackupStore, Content, sha256};
use crate::error::{Error, Result};
use crate::storage::{self, Storage};

/// What to restore, and where to.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// The data directory to make: missing, or empty.
    pub data_dir: PathBuf,
    /// Up to where.
    pub to: To,
    /// The backup, or the last of the chain that is meant; the newest where it is `None`.
    pub backup: Option<String>,
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The backup that the files are of.
    pub backup: String,
    /// The last commit that is in it.
    pub seq: SeqNo,
    /// The clock as the log stated it last up to there, or when the backup was taken.
    pub time: Timestamp,
    /// Files that were written, and their bytes.
    pub files: (usize, u64),
    /// Cold files that lie in a store of their own: the server has to find them there.
    pub cold_elsewhere: usize,
}

/// Restores a backup into a directory.
pub fn restore(store: &BackupStore, storage: &dyn Storage, request: &RestoreRequest) -> Result<Restored> {
    let dir = std::path::absolute(&request.data_dir);
    let dir = &dir.map_err(|error| Error::io("open", &request.data_dir, &error))?;
    check_free(dir)?;
    let objects = store.list()?;
    let choice = list_in(store, &objects)?.choose(request.to, request.backup.as_deref())?;
    let load = |id: &String| {
        let bytes = objects.get(&manifest_of(id)).copied().unwrap_or_default();
        manifest::load(store, id, bytes)
    };
    let base = load(&choice.base)?;
    let next = choice.next.as_ref().map(load).transpose()?;
    let beside = beside(dir)?;
    storage::remove_dir(&beside).map_err(|error| Error::io("remove", &beside, &error))?;
    tracing::info!(backup = base.id, dir = %dir.display(), "a restore begins");
    let restored = write(store, storage, &beside, &base, next.as_ref(), request.to)
        .and_then(|restored| finish(&beside, dir).map(|()| restored));
    if restored.is_err() {
        // Should this fail, the next restore to this place removes it.
        let _ = storage::remove_dir(&beside);
    }
    restored
}

fn check_free(dir: &Path) -> Result<()> {
    match storage::is_free(dir) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let dir = dir.display();
            Err(Error::Backup(format!("{dir} is not empty; a restore makes a directory and changes none")))
        }
        Err(error) => Err(Error::io("list", dir, &error)),
    }
}

/// Where a data directory is written before it has its name; on the same file system, or it could not take it.
fn beside(dir: &Path) -> Result<PathBuf> {
    let name = dir.file_name().zip(dir.parent());
    let Some((name, parent)) = name else {
        return Err(Error::Backup(format!("{} has no name that a restore could give", dir.display())));
    };
    Ok(parent.join(format!(".{}.restore", name.to_string_lossy())))
}

fn finish(beside: &Path, dir: &Path) -> Result<()> {
    storage::rename_dir(beside, dir).map_err(|error| match error.kind() {
        std::io::ErrorKind::CrossesDevices | std::io::ErrorKind::ResourceBusy => {
            let dir = dir.display();
            Error::Backup(format!(
                "{dir} is a mount point, which cannot be renamed: restore into a directory below it"
            ))
        }
        std::io::ErrorKind::DirectoryNotEmpty => {
            Error::Backup(format!("{} is not empty any more", dir.display()))
        }
        _ => Error::io("rename", beside, &error),
    })
}

fn write(
    store: &BackupStore,
    storage: &dyn Storage,
    dir: &Path,
    base: &Manifest,
    next: Option<&Manifest>,
    to: To,
) -> Result<Restored> {
    let parts = [path::WAL_DIR, path::CHUNK_DIR, path::MANIFEST_DIR, path::STATE_DIR];
    storage::create_dirs(dir, &parts).map_err(|error| Error::io("create", dir, &error))?;
    let mut out = Output { store, storage, dir, files: (0, 0) };
    for file in &base.files {
        out.file(file)?;
    }
    let (seq, time) = out.log(base, next, to)?;
    let version = path::LAYOUT_VERSION.as_bytes().to_vec();
    out.put(path::VERSION, version)?;
    let files = out.files;
    Ok(Restored { backup: base.id.clone(), seq, time, files, cold_elsewhere: base.cold_elsewhere.len() })
}

struct Output<'a> {
    store: &'a BackupStore,
    storage: &'a dyn Storage,
    dir: &'a Path,
    files: (usize, u64),
}

impl Output<'_> {
    fn file(&mut self, file: &Object) -> Result<()> {
        let path = self.dir.join(&file.path);
        self.make_dirs(&path)?;
        // The file has its name before the last byte is verified, and the directory none before all of them are.
        let mut reading = self.store.open(&file.object, file.content())?;
        let written = self.storage.write_whole(&path, &mut reading);
        reading.end()?;
        written.map_err(|error| Error::io("write", &path, &error))?;
        self.check(&path, &file.content())
    }

    fn put(&mut self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let path = self.dir.join(name);
        let content = Content { bytes: bytes.len() as u64, sha256: sha256(&bytes) };
        let written = self.storage.write_whole(&path, &mut std::iter::once(bytes));
        written.map_err(|error| Error::io("write", &path, &error))?;
        self.check(&path, &content)
    }

    /// The directories of a cold file.
    fn make_dirs(&self, path: &Path) -> Result<()> {
        let above = path.ancestors().skip(1).take_while(|above| *above != self.dir);
        let above: Vec<&Path> = above.collect();
        for dir in above.into_iter().rev() {
            storage::create_dirs(dir, &[]).map_err(|error| Error::io("create", dir, &error))?;
        }
        Ok(())
    }

    /// Reads back what was written.
    fn check(&mut self, path: &Path, expected: &Content) -> Result<()> {
        let bytes = self.storage.map(path).map_err(|error| Error::io("map", path, &error))?;
        let found = sha256(&bytes);
        if found != expected.sha256 {
            let (expected, path) = (&expected.sha256, path.display());
            return Err(Error::Backup(format!(
                "{path} reads back otherwise than it was written: SHA-256 {found} instead of {expected}; is the disk in order?"
            )));
        }
        self.files = (self.files.0 + 1, self.files.1 + expected.bytes);
        Ok(())
    }

    /// Writes the log behind the chunks, up to what is wanted. Returns the last commit and its time.
    fn log(&mut self, base: &Manifest, next: Option<&Manifest>, to: To) -> Result<(SeqNo, Timestamp)> {
        let mut reached = SeqNo(base.flushed_to);
        let mut time = base.time();
        let mut cut = Cut { to, after: base.seq(), is_over: false, time: None };
        for segment in segments(base, next) {
            if cut.is_over {
                break;
            }
            if segment.first_seq > reached.0 + 1 {
                let what = format!("its log begins at {}, behind {}", segment.first_seq, reached.0);
                let object = segment.pieces.first().map(|piece| piece.object.clone()).unwrap_or_default();
                return Err(Error::BadBackup { object, what });
            }
            let bytes = self.segment(segment)?;
            let name = segment.pieces.first().map_or("", |piece| piece.object.as_str());
            let corrupt = |source: sonde_storage_format::FormatError| Error::BadBackup {
                object: name.to_owned(),
                what: source.to_string(),
            };
            let start = log::start(segment.number, &bytes).map_err(corrupt)?;
            let end = log::walk(segment.number, &bytes, start, log::END, |frame| cut.takes(frame))
                .map_err(corrupt)?;
            self.put_segment(segment, bytes, start, end)?;
            reached = reached.max(end.last_seq);
        }
        if let Some(stated) = cut.time.filter(|_| reached > base.seq()) {
            time = stated;
        }
        let wanted = if let To::Seq(seq) = to { seq } else { base.seq() };
        // A group commit is there whole or not at all, so what is reached may be less than what was asked for.
        let short = reached < base.seq() || (wanted > reached && !cut.is_over);
        if short {
            return Err(Error::BadBackup {
                object: manifest_of(&base.id),
                what: format!("its log ends at {}, before {}", reached.0, wanted.0.max(base.seq)),
            });
        }
        Ok((reached, time))
    }

    /// The bytes of a segment.
    fn segment(&self, segment: &Segment) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for piece in &segment.pieces {
            self.store.read(&piece.object, piece.content(), |part| bytes.extend(part))?;
        }
        Ok(bytes)
    }

    fn put_segment(
        &mut self,
        segment: &Segment,
        mut bytes: Vec<u8>,
        start: Reached,
        end: Reached,
    ) -> Result<()> {
        if end == start {
            return Ok(());
        }
        bytes.truncate(end.offset as usize);
        self.put(&format!("{}/{}", path::WAL_DIR, path::segment(segment.number)), bytes)
    }
}

/// The segments of a backup and, behind its position, those of the next one, which has the shared ones longer. What is
/// in chunks already is restored too: the next backup may go on from an earlier one, and wants the log since then.
fn segments<'a>(base: &'a Manifest, next: Option<&'a Manifest>) -> Vec<&'a Segment> {
    let later = next.map(|next| next.log.as_slice()).unwrap_or_default();
    let first_later = later.first().map_or(u64::MAX, |segment| segment.first_seq);
    base.log.iter().filter(|segment| segment.first_seq < first_later).chain(later).collect()
}

/// Where the log is cut.
struct Cut {
    to: To,
    /// What the base has is never cut: its files may show it.
    after: SeqNo,
    is_over: bool,
    /// The clock as it was stated last before the cut.
    time: Option<Timestamp>,
}

impl Cut {
    fn takes(
        &mut self,
        frame: &sonde_storage_format::Frame<'_>,
    ) -> Result<bool, sonde_storage_format::FormatError> {
        let stated = log::stated(frame)?;
        let is_behind = frame.seq.first > self.after;
        let is_over = match self.to {
            To::Latest => is_behind,
            To::Seq(seq) => frame.seq.last > seq && is_behind,
            To::Time(time) => stated.is_some_and(|stated| stated > time) && is_behind,
        };
        self.is_over |= is_over;
        if !is_over {
            self.time = stated.or(self.time);
        }
        Ok(!is_over)
    }
}

impl std::fmt::Display for Restored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { backup, seq, files, .. } = self;
        let (count, bytes) = files;
        write!(
            f,
            "backup {backup}, up to seq {} of {}: {count} files, {bytes} bytes",
            seq.0,
            rfc3339(self.time)
        )
    }
}
