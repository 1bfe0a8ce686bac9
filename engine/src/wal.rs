//! The log: segments written front to back by one thread, and read by whoever follows the changes.
//!
//! # Invariants
//! - The writer thread alone appends; the log's order is the order of everything.
//! - A segment's space is reserved before use, so a full disk shows when a segment is prepared, never inside one.
//! - Readers stop at the published sequence number: everything before it is whole and synced.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use sonde_storage_format::{
    FrameScan, Record, RowsRecord, SEGMENT_HEADER_LEN, SegmentHeader, SeqNo, SeqRange, TableId, WalWriter,
    find_frame_after, path,
};

use crate::error::{Error, Result};
use crate::storage::{LogFile, Storage};

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

/// The segments that exist, shared by the writer, the readers and the job that removes old ones.
#[derive(Debug, Default)]
pub(crate) struct Segments(Mutex<Vec<Segment>>);

impl Segments {
    pub(crate) fn list(&self) -> Vec<Segment> {
        self.0.lock().clone()
    }

    fn push(&self, segment: Segment) {
        self.0.lock().push(segment);
    }

    /// Adds a segment that was found on disk; the oldest comes first.
    pub(crate) fn restore(&self, segment: Segment) {
        self.push(segment);
    }

    fn advance(&self, last_seq: SeqNo) {
        if let Some(segment) = self.0.lock().last_mut() {
            segment.last_seq = last_seq;
        }
    }

    /// Takes out the segments, oldest first, that nobody needs: replay needs those behind `replay_from`; cursors those
    /// behind `cursors_from`, unless the log is larger or a segment older than its budget.
    pub(crate) fn take_expired(&self, replay_from: SeqNo, cursors_from: SeqNo, budget: &LogBudget) -> Vec<Segment> {
        let mut segments = self.0.lock();
        let mut expired = Vec::new();
        while segments.len() > 1 {
            let total: u64 = segments.iter().map(|segment| segment.bytes).sum();
            let Some(first) = segments.first() else { break };
            let over = total > budget.max_bytes || first.created.elapsed().unwrap_or_default() > budget.max_age;
            if first.last_seq > replay_from || (first.last_seq > cursors_from && !over) {
                break;
            }
            expired.push(segments.remove(0));
        }
        expired
    }
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
            synced_through: offset,
            segment_bytes,
        })
    }

    /// Makes room for a frame of about this size. Failing here changes nothing: no byte of the frame was written.
    pub(crate) fn reserve(&mut self, frame_bytes: usize, next: SeqNo) -> Result<()> {
        let wanted = frame_bytes as u64 + 64;
        if self.offset + wanted <= self.len {
            return Ok(());
        }
        let bytes = self.segment_bytes.max(wanted + SEGMENT_HEADER_LEN as u64);
        let number = self.number + 1;
        let (file, len) = prepare(self.storage.as_ref(), &self.dir, &self.segments, number, next, bytes)?;
        (self.file, self.number, self.len) = (file, number, len);
        self.offset = SEGMENT_HEADER_LEN as u64;
        self.synced_through = self.offset;
        Ok(())
    }

    /// Appends one group and returns once it is on stable storage. After an error the log must not be used again.
    pub(crate) fn append(&mut self, records: WalWriter, seq: SeqRange) -> Result<()> {
        let frame = records.finish(self.number, self.offset, seq, self.synced_through);
        assert!(self.offset + frame.len() as u64 <= self.len, "room for the frame was reserved");
        let failed = |operation| move |error: std::io::Error| Error::Failed(format!("{operation} of the log: {error}"));
        self.file.write_at(&frame, self.offset).map_err(failed("write"))?;
        self.file.sync().map_err(failed("sync"))?;
        self.offset += frame.len() as u64;
        self.synced_through = self.offset;
        self.segments.advance(seq.last);
        Ok(())
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

/// Reads the segments of a directory, oldest first, and gives every record behind `from` to `replay`. Returns the
/// segments and the last sequence number. A torn tail of the last segment is dropped; damage elsewhere is an error.
pub(crate) fn recover(
    storage: &dyn Storage,
    dir: &Path,
    from: SeqNo,
    mut replay: impl FnMut(SeqRange, Record) -> Result<()>,
) -> Result<(Vec<Segment>, SeqNo)> {
    let names = storage.list(dir).map_err(|error| Error::io("list", dir, &error))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| path::parse_segment(name)).collect();
    numbers.sort_unstable();
    let mut segments = Vec::new();
    let mut last_seq = from;
    for (i, number) in numbers.iter().copied().enumerate() {
        let path = dir.join(path::segment(number));
        let is_last = i + 1 == numbers.len();
        let bytes = storage.map(&path).map_err(|error| Error::io("map", &path, &error))?;
        let corrupt = |source| Error::Corrupt { path: path.clone(), source };
        let head = match SegmentHeader::decode(&bytes) {
            Ok(head) => head,
            // A crash while the segment was prepared: nothing in it was acknowledged.
            Err(_) if is_last && bytes.iter().skip(SEGMENT_HEADER_LEN).all(|byte| *byte == 0) => {
                drop(bytes);
                storage.remove(&path).map_err(|error| Error::io("remove", &path, &error))?;
                continue;
            }
            Err(error) => return Err(corrupt(error)),
        };
        if head.number != number {
            return Err(corrupt(sonde_storage_format::FormatError::Invalid {
                structure: "log segment head",
                offset: 16,
                expected: "the number in the file's name",
                found: head.number,
            }));
        }
        let mut segment_last = SeqNo(head.first_seq.0 - 1);
        let mut offset = SEGMENT_HEADER_LEN as u64;
        loop {
            let frame = match FrameScan::at(number, &bytes, offset) {
                FrameScan::Frame(frame) => frame,
                FrameScan::End => break,
                FrameScan::Bad(error) => {
                    if !is_last || find_frame_after(number, &bytes, offset).is_some() {
                        return Err(corrupt(error));
                    }
                    tracing::warn!(path = %path.display(), offset, %error, "dropped a torn tail of the log");
                    break;
                }
            };
            segment_last = frame.seq.last;
            last_seq = last_seq.max(segment_last);
            if frame.seq.last > from {
                for record in frame.records() {
                    replay(frame.seq, record.map_err(corrupt)?)?;
                }
            }
            offset = frame.end;
        }
        let created = SystemTime::now();
        let bytes = bytes.len() as u64;
        segments.push(Segment { number, path, first_seq: head.first_seq, last_seq: segment_last, bytes, created });
    }
    Ok((segments, last_seq))
}

/// Follows the committed rows of some tables, from a position on.
#[derive(Debug)]
pub struct LogReader {
    /// Everything up to here was read.
    position: SeqNo,
    /// Where the next frame stands, if the last turn ended inside a segment.
    place: Option<(u64, u64)>,
}

/// What one turn of a [`LogReader`] found.
#[derive(Debug, Default)]
pub struct LogTurn {
    /// Rows of the tables asked for, in log order.
    pub rows: Vec<RowsRecord>,
    /// Everything up to here has been read.
    pub position: SeqNo,
    /// Sequence numbers that were gone from the log before they were read.
    pub lost: Option<SeqRange>,
}

impl LogReader {
    /// Starts behind `position`.
    #[must_use]
    pub fn new(position: SeqNo) -> Self {
        Self { position, place: None }
    }

    /// Everything up to here was read.
    #[must_use]
    pub fn position(&self) -> SeqNo {
        self.position
    }

    /// Reads on, up to `published` or about `max_bytes`, whichever comes first.
    pub(crate) fn turn(
        &mut self,
        storage: &dyn Storage,
        segments: &Segments,
        published: SeqNo,
        max_bytes: usize,
        wanted: impl Fn(TableId) -> bool,
    ) -> Result<LogTurn> {
        let mut turn = LogTurn { position: self.position, ..LogTurn::default() };
        if self.position >= published {
            return Ok(turn);
        }
        let mut taken = 0;
        let list = segments.list();
        if let Some(first) = list.first()
            && first.first_seq > self.position.plus(1)
        {
            let last = SeqNo(first.first_seq.0 - 1).min(published);
            turn.lost = Some(SeqRange { first: self.position.plus(1), last });
            self.position = last;
        }
        for segment in &list {
            if segment.last_seq <= self.position {
                continue;
            }
            let bytes = storage.map(&segment.path).map_err(|error| Error::io("map", &segment.path, &error))?;
            let mut offset = match self.place {
                Some((number, offset)) if number == segment.number => offset,
                _ => SEGMENT_HEADER_LEN as u64,
            };
            loop {
                let frame = match FrameScan::at(segment.number, &bytes, offset) {
                    FrameScan::Frame(frame) if frame.seq.last <= published => frame,
                    FrameScan::Frame(_) | FrameScan::End => break,
                    // Behind the published position the writer may be at work on these very bytes.
                    FrameScan::Bad(_) if self.position >= segment.last_seq.min(published) => break,
                    FrameScan::Bad(source) => return Err(Error::Corrupt { path: segment.path.clone(), source }),
                };
                if frame.seq.last > self.position {
                    for record in frame.records() {
                        match record.map_err(|source| Error::Corrupt { path: segment.path.clone(), source })? {
                            Record::Rows(rows) if wanted(rows.table) => turn.rows.push(rows),
                            _ => {}
                        }
                    }
                    self.position = frame.seq.last;
                }
                taken += (frame.end - offset) as usize;
                offset = frame.end;
                self.place = Some((segment.number, offset));
                turn.position = self.position;
                if taken >= max_bytes || self.position >= published {
                    return Ok(turn);
                }
            }
        }
        turn.position = self.position;
        Ok(turn)
    }
}
