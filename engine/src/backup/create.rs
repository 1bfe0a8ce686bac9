//! Makes a backup: what is new is copied, the manifest comes last.
//!
//! # Invariants
//! - Nothing of the engine waits for the destination: files are held by what readers hold, the log by its mappings.
//! - What an earlier backup has is not copied again: a file of the same name, where that backup is known to be of this
//!   history, else one whose bytes are the same too.
//! - Chunks and frames that are copied are verified first, so no backup is made of a damaged file.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use sonde_storage_format::{ChunkMeta, ChunkReader, FormatError, SeqNo, path};

use super::earlier::Earlier;
use super::hold::{Last, outlived};
use super::log::{self, Reached};
use super::manifest::{self, Elsewhere, Manifest, Object, Parent, Piece, id_of, manifest_of};
use super::source::Source;
use super::store::{BackupStore, Content, object_name, sha256};
use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::limits::{BACKUP_LOG_PIECES, BACKUP_PROGRESS};
use crate::storage::Mapped;
use crate::wal::Segment;

/// What was backed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The backup's name.
    pub id: String,
    /// Every commit up to here is in it.
    pub seq: SeqNo,
    /// Objects that belong to it, and their bytes.
    pub objects: (usize, u64),
    /// Those of them that were copied now.
    pub copied: (usize, u64),
    /// The earlier backup since which every instant can be restored.
    pub since: Option<String>,
    /// Cold files in a store of their own, which are not copied.
    pub cold_elsewhere: usize,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ((objects, bytes), (new, new_bytes)) = (self.objects, self.copied);
        write!(f, "backup {} up to seq {}: {objects} objects, {bytes} bytes", self.id, self.seq.0)?;
        write!(f, "; copied {new} objects, {new_bytes} bytes")?;
        if let Some(since) = &self.since {
            write!(f, "; every instant since {since} can be restored")?;
        }
        if self.cold_elsewhere > 0 {
            write!(f, "; {} cold files in a store of their own are not in it", self.cold_elsewhere)?;
        }
        Ok(())
    }
}

/// Backs up a running engine.
pub(crate) fn back_up(inner: &Arc<Inner>, store: &BackupStore, name: &str) -> Result<Report> {
    let _running = inner.backups.start()?;
    let go_on = || if inner.is_closing() { Err(Error::Closed) } else { inner.backups.check() };
    let _lock = store.lock()?;
    let earlier = Earlier::read(store, &go_on)?;
    let last = Last::of(&inner.state, name);
    let ancestor = earlier.load(store, last.as_ref())?;
    inner.backups.pin();
    let source = Source::running(inner, ancestor.as_ref().map(Manifest::seq))?;
    // The log is mapped. What follows is for the next backup, and may be long before this one is done.
    inner.backups.hold(source.seq);
    inner.backups.unpin();
    let made = make(store, source, earlier, ancestor, &go_on)?;
    let last = Last { id: made.id.clone(), seq: made.seq(), time: made.time() };
    let mut state = outlived(&inner.state, inner.clock.now(), inner.options.log.max_age);
    state.push(last.record(name));
    if let Err(error) = inner.commit_state(state) {
        tracing::warn!(backup = made.id, %error, "the log does not wait for the next backup; it is made from an earlier one");
    }
    Ok(report(&made))
}

/// Backs up the data directory of a server that is stopped. `cold` is the directory of its cold tier, if it is one;
/// `name` is what the destination is called.
pub fn back_up_stopped(
    data_dir: &Path,
    cold: Option<&Path>,
    store: &BackupStore,
    name: &str,
) -> Result<Report> {
    let _lock = store.lock()?;
    let (source, last) = Source::stopped(data_dir, cold, name)?;
    let earlier = Earlier::read(store, &|| Ok(()))?;
    let ancestor = earlier.load(store, last.as_ref())?;
    make(store, source, earlier, ancestor, &|| Ok(())).map(|made| report(&made))
}

fn report(made: &Manifest) -> Report {
    let count = |objects: Vec<Content>| (objects.len(), objects.iter().map(|content| content.bytes).sum());
    let copied = made.objects().filter(|(object, _)| id_of(object) == Some(made.id.as_str()));
    Report {
        id: made.id.clone(),
        seq: made.seq(),
        copied: count(copied.map(|(_, content)| content).collect()),
        objects: count(made.objects().map(|(_, content)| content).collect()),
        since: made.parent.as_ref().map(|parent| parent.id.clone()),
        cold_elsewhere: made.cold_elsewhere.len(),
    }
}

/// Copies what is new of a source and writes the manifest.
fn make(
    store: &BackupStore,
    source: Source,
    earlier: Earlier,
    ancestor: Option<Manifest>,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<Manifest> {
    let mut manifest = Manifest::new(source.time, &source.data_dir);
    (manifest.seq, manifest.flushed_to) = (source.seq.0, source.state.flushed_to.0);
    manifest.parent = ancestor.as_ref().and_then(|ancestor| parent(ancestor, &source));
    tracing::info!(
        backup = manifest.id,
        seq = manifest.seq,
        chunks = source.state.chunks.len(),
        since = manifest.parent.as_ref().map(|parent| parent.id.as_str()).unwrap_or_default(),
        "a backup begins"
    );
    let progress = Progress { began: Instant::now(), told: Instant::now(), copied: 0 };
    let mut copy = Copy { store, earlier, ancestor, manifest, go_on, progress };
    copy.log(&source)?;
    copy.files(&source)?;
    let Copy { mut manifest, progress, .. } = copy;
    manifest.files.sort_by(|a, b| a.path.cmp(&b.path));
    let own =
        manifest.objects().map(|(object, _)| object).filter(|object| id_of(object) == Some(&manifest.id));
    store.sync(own)?;
    let object = manifest_of(&manifest.id);
    store.put(&object, &manifest.encode()?, &mut |_| go_on())?;
    store.sync([object.as_str()])?;
    let (seconds, bytes) = (progress.began.elapsed().as_secs(), progress.copied);
    tracing::info!(backup = manifest.id, bytes, seconds, "a backup is done");
    Ok(manifest)
}

/// The ancestor, if the log goes on from it without a gap.
fn parent(ancestor: &Manifest, source: &Source) -> Option<Parent> {
    let is_behind = |segment: &&(Segment, Mapped)| segment.0.last_seq > ancestor.seq();
    let goes_on = match source.segments.iter().find(is_behind) {
        Some((segment, _)) => segment.first_seq <= ancestor.seq().plus(1),
        None => ancestor.seq() == source.seq,
    };
    goes_on.then(|| Parent { id: ancestor.id.clone(), seq: ancestor.seq })
}

/// Says in the log how far a backup is, now and then.
struct Progress {
    began: Instant,
    told: Instant,
    copied: u64,
}

/// A backup that is being made.
struct Copy<'a> {
    store: &'a BackupStore,
    earlier: Earlier,
    /// An earlier backup of this history.
    ancestor: Option<Manifest>,
    manifest: Manifest,
    go_on: &'a dyn Fn() -> Result<()>,
    progress: Progress,
}

impl Copy<'_> {
    /// The committed bytes of the log that a restore of this backup, or to an instant since its parent, reads.
    fn log(&mut self, source: &Source) -> Result<()> {
        let parent = self.manifest.parent.as_ref().map(|parent| parent.seq);
        let from = SeqNo(parent.map_or(self.manifest.flushed_to, |seq| seq.min(self.manifest.flushed_to)));
        for (segment, bytes) in &source.segments {
            if segment.last_seq > from && segment.first_seq <= source.seq {
                let corrupt = |source| Error::Corrupt { path: segment.path.clone(), source };
                self.segment(segment, bytes, source.seq, corrupt)?;
            }
        }
        let reached = self.manifest.log.last().map_or(from.0, |segment| segment.last_seq);
        let begins = self.manifest.log.first().map_or(from.0, |segment| segment.first_seq - 1);
        assert!(
            reached == source.seq.0 || source.seq <= source.state.flushed_to,
            "a backup up to {} has the log up to {reached}",
            source.seq.0
        );
        assert!(begins <= from.0, "a backup from {} has the log from {begins} on", from.0);
        Ok(())
    }

    fn segment(
        &mut self,
        segment: &Segment,
        bytes: &[u8],
        until: SeqNo,
        corrupt: impl Fn(FormatError) -> Error,
    ) -> Result<()> {
        let number = segment.number;
        let whole = log::start(number, bytes).map_err(&corrupt)?;
        let (mut pieces, from) = self.known_pieces(segment).unwrap_or((Vec::new(), whole));
        let reached = log::walk(number, bytes, from, until, |_| Ok(true)).map_err(&corrupt)?;
        let first = if pieces.is_empty() { 0 } else { from.offset };
        let tail = bytes.get(first as usize..reached.offset as usize).unwrap_or_default();
        if !tail.is_empty() {
            let name = format!("{}/{number:016x}-{first}-{}", path::WAL_DIR, reached.offset);
            let object = object_name(&self.manifest.id, &name);
            let Content { bytes, sha256 } = self.put(&object, tail)?;
            pieces.push(Piece { object, bytes, sha256 });
        }
        let (first_seq, last_seq) = (segment.first_seq.0, reached.last_seq.0);
        self.manifest.log.push(manifest::Segment { number, first_seq, last_seq, pieces });
        Ok(())
    }

    /// The pieces that the ancestor has of a segment, and where they end. A directory that was restored without a log
    /// begins its numbers anew, but not where a segment of the ancestor begins.
    fn known_pieces(&self, segment: &Segment) -> Option<(Vec<Piece>, Reached)> {
        let wanted = (segment.number, segment.first_seq.0);
        let mut known = self.ancestor.as_ref()?.log.iter();
        let known = known.find(|known| (known.number, known.first_seq) == wanted)?;
        let is_there = |piece: &Piece| self.earlier.has(&piece.object, piece.bytes);
        let usable = known.pieces.len() < BACKUP_LOG_PIECES && known.pieces.iter().all(is_there);
        let reached = Reached { last_seq: SeqNo(known.last_seq), offset: known.bytes() };
        usable.then(|| (known.pieces.clone(), reached))
    }

    fn files(&mut self, source: &Source) -> Result<()> {
        let known = self.known_files();
        let known = |path: &str| known.get(path).cloned().unwrap_or_default();
        let edits = source.state.encode(1)?;
        let name = format!("{}/{}", path::MANIFEST_DIR, path::manifest(1));
        self.copy_file(name, &edits, Vec::new())?;
        if let Some((number, bytes)) = &source.checkpoint {
            let name = format!("{}/{}", path::STATE_DIR, path::checkpoint(*number));
            self.copy_file(name.clone(), bytes, known(&name))?;
        }
        for meta in source.state.chunks.values() {
            self.chunk(source, meta, &known)?;
        }
        for file in source.state.cold.values() {
            let location = object_store::path::Path::from(file.path.as_str());
            match &source.cold_dir {
                Some(dir) => {
                    let name = format!("{}/{location}", path::COLD_DIR);
                    let path = dir.join(location.as_ref());
                    let known = known(&name);
                    self.file(source, name, &path, file.bytes, known, |_| Ok(()))?;
                }
                None => {
                    let (path, bytes) = (file.path.clone(), file.bytes);
                    self.manifest.cold_elsewhere.push(Elsewhere { path, bytes });
                }
            }
        }
        Ok(())
    }

    fn chunk(&mut self, source: &Source, meta: &ChunkMeta, known: &dyn Fn(&str) -> Vec<Known>) -> Result<()> {
        let name = format!("{}/{}", path::CHUNK_DIR, path::chunk(meta.id));
        let path = source.data_dir.join(&name);
        let known = known(&name);
        self.file(source, name, &path, meta.bytes, known, |bytes| verify_chunk(bytes, meta))
    }

    /// Files that earlier backups have, by path; those of the ancestor first.
    fn known_files(&self) -> HashMap<String, Vec<Known>> {
        let mut known: HashMap<String, Vec<Known>> = HashMap::new();
        for (manifest, is_same) in [(&self.ancestor, true), (&self.earlier.newest, false)] {
            let files = manifest.iter().flat_map(|manifest| &manifest.files);
            for file in files.filter(|file| self.earlier.has(&file.object, file.bytes)) {
                known.entry(file.path.clone()).or_default().push(Known { file: file.clone(), is_same });
            }
        }
        known
    }

    /// Takes a file of an earlier backup, or copies it.
    fn file(
        &mut self,
        source: &Source,
        name: String,
        path: &Path,
        len: u64,
        known: Vec<Known>,
        verify: impl Fn(&[u8]) -> Result<(), FormatError>,
    ) -> Result<()> {
        if let Some(known) = known.iter().find(|known| known.is_same && known.file.bytes == len) {
            self.manifest.files.push(known.file.clone());
            return Ok(());
        }
        let bytes = source.storage.map(path).map_err(|error| Error::io("map", path, &error))?;
        if bytes.len() as u64 != len {
            let (structure, expected) = ("file", "as many bytes as the manifest states");
            let wrong = FormatError::Invalid { structure, offset: 0, expected, found: bytes.len() as u64 };
            return Err(Error::Corrupt { path: path.to_path_buf(), source: wrong });
        }
        verify(&bytes).map_err(|source| Error::Corrupt { path: path.to_path_buf(), source })?;
        self.copy_file(name, &bytes, known)
    }

    /// Takes an object of the same name and bytes, or copies them.
    fn copy_file(&mut self, path: String, bytes: &[u8], known: Vec<Known>) -> Result<()> {
        if known.iter().any(|known| known.file.bytes == bytes.len() as u64) {
            let found = sha256(bytes);
            if let Some(known) = known.into_iter().find(|known| known.file.sha256 == found) {
                self.manifest.files.push(known.file);
                return Ok(());
            }
        }
        let object = object_name(&self.manifest.id, &path);
        let Content { bytes, sha256 } = self.put(&object, bytes)?;
        self.manifest.files.push(Object { path, object, bytes, sha256 });
        Ok(())
    }

    fn put(&mut self, object: &str, bytes: &[u8]) -> Result<Content> {
        let (progress, go_on, id) = (&mut self.progress, self.go_on, &self.manifest.id);
        let before = progress.copied;
        let content = self.store.put(object, bytes, &mut |sent| {
            progress.copied += sent;
            if progress.told.elapsed() >= BACKUP_PROGRESS {
                progress.told = Instant::now();
                tracing::info!(backup = id, object, bytes = progress.copied, "a backup goes on");
            }
            go_on()
        })?;
        progress.copied = before + content.bytes;
        Ok(content)
    }
}

/// A file that an earlier backup has.
#[derive(Clone)]
struct Known {
    file: Object,
    /// Whether that backup is of this history, so that the same name means the same bytes.
    is_same: bool,
}

/// Every checksum of a chunk that should be `meta`'s.
fn verify_chunk(bytes: &[u8], meta: &ChunkMeta) -> Result<(), FormatError> {
    let reader = ChunkReader::open(bytes)?;
    let root = reader.root();
    if (root.id, root.table, root.rows) != (meta.id, meta.table, meta.rows) {
        let (structure, expected) = ("chunk root", "the chunk that the manifest names");
        return Err(FormatError::Invalid { structure, offset: 0, expected, found: root.id.0 });
    }
    let series = reader.series()?;
    reader.run_statistics(&series, |_| false)?;
    for column in reader.columns()? {
        for page in column.pages.iter().flatten() {
            reader.page_bytes(page)?;
        }
    }
    Ok(())
}
