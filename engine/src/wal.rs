//! The log: segments written front to back by one thread, and their recovery.
//!
//! # Invariants
//! - The writer thread alone appends; the log's order is the order of everything, without a gap.
//! - A segment's space is reserved before use, so a full disk shows when a segment is prepared, never inside one.
//! - A segment is prepared after everything before it is on stable storage, so only the end of the log can be torn: what
//!   was written behind the last sync. Recovery cuts it off before it prepares a segment behind it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use sonde_storage_format::{
    Durability, FormatError, FrameScan, Record, SEGMENT_HEADER_LEN, SegmentHeader, SeqNo, SeqRange,
    Timestamp, WalWriter, path, was_synced,
};

use crate::error::{Error, Result};
use crate::limits::{BUFFERED_BYTES, FRAME_WITHOUT_ZEROES, ZERO_AHEAD};
use crate::storage::{LogFile, Mapped, Storage};

/// A segment on disk.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) first_seq: SeqNo,
    /// The last sequence number in it; one before `first_seq` while there is none.
    pub(crate) last_seq: SeqNo,
    pub(crate) bytes: u64,
    created: SystemTime,
}

impl Segment {
    /// When it was made, or found.
    pub(crate) fn created(&self) -> Timestamp {
        let since = self.created.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_nanos(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }
}

/// The segments that exist, shared by the writer, the readers and the job that removes old ones.
#[derive(Debug, Default)]
pub(crate) struct Segments(Mutex<Vec<Segment>>);

impl Segments {
    pub(crate) fn list(&self) -> Vec<Segment> {
        self.0.lock().clone()
    }

    /// Those that were found on disk, oldest first.
    pub(crate) fn new(segments: Vec<Segment>) -> Self {
        Self(Mutex::new(segments))
    }

    pub(crate) fn has(&self, number: u64) -> bool {
        self.0.lock().iter().any(|segment| segment.number == number)
    }

    fn push(&self, segment: Segment) {
        self.0.lock().push(segment);
    }

    fn advance(&self, last_seq: SeqNo) {
        if let Some(segment) = self.0.lock().last_mut() {
            segment.last_seq = last_seq;
        }
    }

    /// Takes out the oldest segment if nobody needs it.
    pub(crate) fn take_expired(&self, kept: &Kept, budget: &LogBudget) -> Option<Segment> {
        let mut segments = self.0.lock();
        let total: u64 = segments.iter().map(|segment| segment.bytes).sum();
        let first = segments.first().filter(|_| segments.len() > 1)?;
        let over = total > budget.max_bytes || first.created.elapsed().unwrap_or_default() > budget.max_age;
        // Its youngest frame is as old as the segment behind it.
        let closed = segments.get(1).map(|next| next.created.elapsed().unwrap_or_default());
        let is_young = closed.is_some_and(|age| age < kept.age);
        let needed =
            first.last_seq > kept.replay_from || ((first.last_seq > kept.cursors_from || is_young) && !over);
        (!needed).then(|| segments.remove(0))
    }

    /// Puts back a segment whose file could not be removed.
    pub(crate) fn put_back(&self, segment: Segment) {
        self.0.lock().insert(0, segment);
    }
}

/// What of the log is needed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    /// Recovery replays what is behind it.
    pub(crate) replay_from: SeqNo,
    /// Readers have not read what is behind it; kept within the log's budget.
    pub(crate) cursors_from: SeqNo,
    /// What was written since is wanted, whether or not someone has read it; kept within the log's budget.
    pub(crate) age: Duration,
}

/// How much log is kept for readers that are behind.
#[derive(Clone, Copy, Debug)]
pub struct LogBudget {
    /// Bytes of all segments.
    pub max_bytes: u64,
    /// Age of a segment.
    pub max_age: Duration,
}

impl Default for LogBudget {
    fn default() -> Self {
        Self { max_bytes: 4 << 30, max_age: Duration::from_secs(7 * 86_400) }
    }
}

/// The writer's end of the log.
#[derive(Debug)]
pub(crate) struct Log {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    segments: Arc<Segments>,
    file: Box<dyn LogFile>,
    number: u64,
    len: u64,
    offset: u64,
    /// Where the bytes end that were ever written; behind them is space that is only reserved.
    written: u64,
    synced_through: u64,
    segment_bytes: u64,
}

impl Log {
    /// Starts a new segment behind the recovered ones.
    pub(crate) fn start(
        storage: Arc<dyn Storage>,
        dir: &Path,
        segments: Arc<Segments>,
        next: SeqNo,
        segment_bytes: u64,
    ) -> Result<Self> {
        let number = segments.list().last().map_or(1, |segment| segment.number + 1);
        let (file, len) = prepare(storage.as_ref(), dir, &segments, number, next, segment_bytes)?;
        let offset = SEGMENT_HEADER_LEN as u64;
        Ok(Self {
            storage,
            dir: dir.to_path_buf(),
            segments,
            file,
            number,
            len,
            offset,
            written: offset,
            synced_through: offset,
            segment_bytes,
        })
    }

    /// Makes room for a frame of about this size. Failing here changes nothing, no byte of the frame was written; but
    /// `Failed` is for good.
    pub(crate) fn reserve(&mut self, frame_bytes: usize, next: SeqNo) -> Result<()> {
        let wanted = frame_bytes as u64 + 64;
        if self.offset + wanted <= self.len {
            return Ok(());
        }
        self.sync()?;
        let bytes = self.segment_bytes.max(wanted + SEGMENT_HEADER_LEN as u64);
        let number = self.number + 1;
        let (file, len) = prepare(self.storage.as_ref(), &self.dir, &self.segments, number, next, bytes)?;
        (self.file, self.number, self.len) = (file, number, len);
        self.offset = SEGMENT_HEADER_LEN as u64;
        (self.written, self.synced_through) = (self.offset, self.offset);
        Ok(())
    }

    /// Bytes that are written and not on stable storage yet.
    pub(crate) fn unsynced(&self) -> u64 {
        self.offset - self.synced_through
    }

    /// Returns once everything that was appended is on stable storage. After an error the log must not be used again.
    pub(crate) fn sync(&mut self) -> Result<()> {
        if self.unsynced() > 0 {
            self.file.sync().map_err(|error| Error::Failed(format!("sync of the log: {error}")))?;
            self.synced_through = self.offset;
        }
        Ok(())
    }

    /// Appends one group, and returns once it is on stable storage if that is to be waited for. After an error the log
    /// must not be used again.
    pub(crate) fn append(&mut self, records: WalWriter, seq: SeqRange, durability: Durability) -> Result<()> {
        let frame = records.finish(self.number, self.offset, seq, self.synced_through);
        let end = self.offset + frame.len() as u64;
        assert!(end <= self.len, "room for the frame was reserved");
        let failed = |error: std::io::Error| Error::Failed(format!("write of the log: {error}"));
        if end > self.written {
            self.written = end + self.zero_ahead(frame.len(), end).map_err(failed)?;
        }
        self.file.write_at(&frame, self.offset).map_err(failed)?;
        let before = std::mem::replace(&mut self.offset, end);
        if durability == Durability::Fsync || self.unsynced() >= BUFFERED_BYTES {
            // Of what failed nobody was told that it is there.
            let synced = self.sync();
            if synced.is_err() {
                self.offset = before;
            }
            synced?;
        }
        self.segments.advance(seq.last);
        Ok(())
    }

    /// The first write to reserved space changes metadata, which the sync has to write too. So a small frame brings
    /// zeroes, in whose place the next ones go. Returns how many.
    fn zero_ahead(&mut self, frame_bytes: usize, end: u64) -> std::io::Result<u64> {
        let room = (self.len - end).min(ZERO_AHEAD as u64);
        if frame_bytes >= FRAME_WITHOUT_ZEROES || room == 0 {
            return Ok(0);
        }
        self.file.write_at(&vec![0; room as usize], end)?;
        Ok(room)
    }
}

fn prepare(
    storage: &dyn Storage,
    dir: &Path,
    segments: &Segments,
    number: u64,
    first_seq: SeqNo,
    bytes: u64,
) -> Result<(Box<dyn LogFile>, u64)> {
    let path = dir.join(path::segment(number));
    let mut file = match storage.create(&path, bytes) {
        Ok(file) => file,
        // Left by an earlier attempt that could not be finished: it holds no frame.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            storage.remove(&path).map_err(|error| Error::io("remove", &path, &error))?;
            storage.create(&path, bytes).map_err(|error| Error::io("create", &path, &error))?
        }
        Err(error) => return Err(Error::io("create", &path, &error)),
    };
    let head = SegmentHeader { number, first_seq }.encode();
    let written = file.write_at(&head, 0).and_then(|()| file.sync());
    written.map_err(|error| Error::io("write", &path, &error))?;
    let last_seq = SeqNo(first_seq.0 - 1);
    segments.push(Segment { number, path, first_seq, last_seq, bytes, created: SystemTime::now() });
    Ok((file, bytes))
}

/// What recovery finds in the log.
#[derive(Debug)]
pub(crate) struct RecoveredLog {
    /// Oldest first.
    pub(crate) segments: Vec<Segment>,
    /// The last sequence number; at least the one that recovery started from.
    pub(crate) last_seq: SeqNo,
    /// Bytes of the frames that were replayed.
    pub(crate) replayed: usize,
}

/// A segment as recovery finds it.
pub(crate) struct Found {
    number: u64,
    path: PathBuf,
    bytes: Mapped,
}

/// What the segments of a directory hold, before anything is done about it.
pub(crate) struct LogScan {
    pub(crate) log: RecoveredLog,
    /// The segment that ends with a torn frame, and where that starts.
    pub(crate) torn: Option<(PathBuf, u64)>,
    /// Segments that nothing needs.
    unneeded: Vec<PathBuf>,
}

/// Reads the segments of a directory, oldest first, and gives every record behind `from` to `replay`. A torn tail of
/// the log is cut off. Damage elsewhere, or a gap that hides what is behind `from`, is an error and changes no file.
pub(crate) fn recover(
    storage: &dyn Storage,
    dir: &Path,
    from: SeqNo,
    replay: impl FnMut(SeqRange, Record),
) -> Result<RecoveredLog> {
    let LogScan { log, torn, unneeded } = scan(storage, dir, from, replay)?;
    if let Some((path, offset)) = torn {
        tracing::warn!(path = %path.display(), offset, "cut off a torn tail of the log");
        let cut = storage.open(&path).and_then(|mut file| file.set_len(offset));
        cut.map_err(|error| Error::io("cut", &path, &error))?;
    }
    // What a process that died had written and not synced may be in the system's memory only.
    if let Some(last) = log.segments.last() {
        let synced = storage.open(&last.path).and_then(|mut file| file.sync());
        synced.map_err(|error| Error::io("sync", &last.path, &error))?;
    }
    for path in unneeded {
        storage.remove(&path).map_err(|error| Error::io("remove", &path, &error))?;
    }
    Ok(log)
}

/// The same without changing a file.
pub(crate) fn scan(
    storage: &dyn Storage,
    dir: &Path,
    from: SeqNo,
    replay: impl FnMut(SeqRange, Record),
) -> Result<LogScan> {
    scan_found(find(storage, dir)?, from, replay)
}

/// The same of segments that are open already.
pub(crate) fn scan_found(
    mut found: Vec<Found>,
    from: SeqNo,
    mut replay: impl FnMut(SeqRange, Record),
) -> Result<LogScan> {
    // Prepared and never written, as a crash or a failed attempt leaves them: what comes before is the log's end.
    let used = found.iter().rposition(|segment| !segment.is_unused()).map_or(0, |last| last + 1);
    let unused = found.split_off(used);
    let promised = unused.iter().filter_map(|segment| SegmentHeader::decode(&segment.bytes).ok());
    let promised = promised.map(|head| head.first_seq).max().unwrap_or_default();
    let mut unneeded: Vec<PathBuf> = unused.into_iter().map(|segment| segment.path).collect();

    let mut log = RecoveredLog { segments: Vec::new(), last_seq: from, replayed: 0 };
    let mut torn = None;
    for (i, segment) in found.iter().enumerate() {
        let first_seq = segment.first_seq()?;
        let reached = log.segments.last().map(|before: &Segment| before.last_seq).unwrap_or_default();
        let gap = first_seq > reached.plus(1);
        if first_seq <= reached || (gap && first_seq > from.plus(1)) {
            return Err(segment.wrong(24, "the sequence number behind the segment before", first_seq.0));
        }
        if gap {
            // A removal of old segments stopped half way: those before the gap were to go too.
            unneeded.extend(log.segments.drain(..).map(|segment| segment.path));
        }
        let is_last = i + 1 == found.len();
        let (last_seq, cut) = segment.read(first_seq, is_last, |seq, bytes, records| {
            if seq.last > from {
                log.replayed += bytes;
                for record in records {
                    replay(seq, record?);
                }
            }
            Ok(())
        })?;
        torn = cut.map(|offset| (segment.path.clone(), offset));
        log.last_seq = log.last_seq.max(last_seq);
        let (number, path, bytes) = (segment.number, segment.path.clone(), segment.bytes.len() as u64);
        log.segments.push(Segment { number, path, first_seq, last_seq, bytes, created: SystemTime::now() });
    }
    if promised > log.last_seq.plus(1) {
        let path = found.last().map(|segment| segment.path.clone()).or_else(|| unneeded.first().cloned());
        let expected = "everything that was synced before the next segment was prepared";
        return Err(wrong(&path.unwrap_or_default(), 0, expected, log.last_seq.0));
    }
    Ok(LogScan { log, torn, unneeded })
}

/// The segments of a directory, oldest first.
pub(crate) fn find(storage: &dyn Storage, dir: &Path) -> Result<Vec<Found>> {
    let names = storage.list(dir).map_err(|error| Error::io("list", dir, &error))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| path::parse_segment(name)).collect();
    numbers.sort_unstable();
    let map = |number: u64| {
        let path = dir.join(path::segment(number));
        let bytes = storage.map(&path).map_err(|error| Error::io("map", &path, &error))?;
        Ok(Found { number, path, bytes })
    };
    numbers.into_iter().map(map).collect()
}

fn wrong(path: &Path, offset: usize, expected: &'static str, found: u64) -> Error {
    let source = FormatError::Invalid { structure: "log segment", offset, expected, found };
    Error::Corrupt { path: path.to_path_buf(), source }
}

fn is_zero(bytes: &[u8]) -> bool {
    const ZEROES: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROES.len()).all(|chunk| ZEROES.starts_with(chunk))
}

impl Found {
    fn wrong(&self, offset: usize, expected: &'static str, found: u64) -> Error {
        wrong(&self.path, offset, expected, found)
    }

    fn corrupt(&self, source: FormatError) -> Error {
        Error::Corrupt { path: self.path.clone(), source }
    }

    /// Whether no frame was ever begun in it. Its space is reserved before its head is written, so it is never short.
    fn is_unused(&self) -> bool {
        self.bytes.is_empty() || self.bytes.get(SEGMENT_HEADER_LEN..).is_some_and(is_zero)
    }

    fn first_seq(&self) -> Result<SeqNo> {
        let head = SegmentHeader::decode(&self.bytes).map_err(|source| self.corrupt(source))?;
        if head.number != self.number {
            return Err(self.wrong(16, "the number in the file's name", head.number));
        }
        Ok(head.first_seq)
    }

    /// Gives every frame to `each`: its sequence numbers, bytes and records. Returns the last sequence number and, where
    /// the segment is the last one and ends with a torn frame, where that starts.
    fn read(
        &self,
        first_seq: SeqNo,
        is_last: bool,
        mut each: impl FnMut(SeqRange, usize, &mut dyn Iterator<Item = Result<Record>>) -> Result<()>,
    ) -> Result<(SeqNo, Option<u64>)> {
        let mut next = first_seq;
        let mut offset = SEGMENT_HEADER_LEN as u64;
        loop {
            let at = offset as usize;
            let bad = match FrameScan::at(self.number, &self.bytes, offset) {
                FrameScan::Frame(frame) if frame.seq.first == next => {
                    let mut records =
                        frame.records().map(|record| record.map_err(|source| self.corrupt(source)));
                    each(frame.seq, (frame.end - offset) as usize, &mut records)?;
                    (next, offset) = (frame.seq.last.plus(1), frame.end);
                    continue;
                }
                FrameScan::Frame(frame) => {
                    return Err(self.wrong(
                        at,
                        "the sequence number behind the frame before",
                        frame.seq.first.0,
                    ));
                }
                FrameScan::End if self.bytes.get(at..).is_none_or(is_zero) => {
                    return Ok((SeqNo(next.0 - 1), None));
                }
                FrameScan::End => self.wrong(at, "a frame before bytes that are not zero", 0),
                FrameScan::Bad(source) => self.corrupt(source),
            };
            if !is_last || was_synced(self.number, &self.bytes, offset) {
                return Err(bad);
            }
            return Ok((SeqNo(next.0 - 1), Some(offset)));
        }
    }
}
