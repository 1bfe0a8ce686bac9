//! Mends the log: finds the holes in it, and writes the segments around them again.
//!
//! # Invariants
//! - Every frame that can be read is kept, before a hole and behind it, but for records that depend on what is gone
//!   (`salvage.rs`).
//! - The numbers of a hole are covered by a frame without records, so the log has no gap and no reader needs to know.
//! - Segments are replaced whole, the newest first: what one loses follows from the holes before it, which are still
//!   there if the repair is cut short.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sonde_storage_format::{
    Checkpoint, FormatError, FrameScan, SEGMENT_HEADER_LEN, SegmentHeader, SeqNo, SeqRange, WalWriter,
    find_frame_after, path, was_synced,
};

use crate::error::{Error, Result};
use crate::repair::salvage::Salvage;
use crate::repair::{Loss, Mended};
use crate::storage::{Mapped, Storage};

/// What recovery starts from.
#[derive(Debug)]
pub(crate) struct Base<'a> {
    /// The checkpoint, empty and at 0 where there is none.
    pub(crate) checkpoint: &'a Checkpoint,
    /// Every row up to here is in files.
    pub(crate) flushed_to: SeqNo,
}

impl Base<'_> {
    /// What the log must hold begins behind this.
    pub(crate) fn from(&self) -> SeqNo {
        self.checkpoint.position.min(self.flushed_to)
    }
}

/// Something in a segment.
#[derive(Clone, Copy, Debug)]
enum Item {
    /// The frame at this offset of the damaged file.
    Frame(u64),
    /// Nothing can be read of these numbers.
    Hole(SeqRange),
}

/// One segment as it is and as it should be.
#[derive(Debug)]
struct Plan {
    number: u64,
    path: PathBuf,
    bytes: Mapped,
    /// What its head says, if it can be read.
    head: Option<SeqNo>,
    first_seq: SeqNo,
    /// One behind the last number in it.
    next: SeqNo,
    items: Vec<Item>,
    /// What is damaged, and where.
    damage: Option<(u64, String)>,
    /// What stands behind the last frame and is none.
    tail: Option<u64>,
    /// No frame was begun in it.
    unused: bool,
    rewrite: bool,
    /// What was registered when it begins; where it is to be written again.
    salvage: Salvage,
}

/// What is to be done about the log.
#[derive(Debug)]
pub(crate) struct LogPlan {
    segments: Vec<Plan>,
    pub(crate) losses: Vec<Loss>,
    pub(crate) mended: Vec<Mended>,
    /// As of the end of the log.
    pub(crate) salvage: Salvage,
    /// The first number that can be read in the log.
    pub(crate) first_found: Option<SeqNo>,
}

impl LogPlan {
    /// The files that are to be replaced.
    pub(crate) fn damaged(&self) -> impl Iterator<Item = &Path> {
        self.segments.iter().filter(|segment| segment.rewrite).map(|segment| segment.path.as_path())
    }

    /// Replaces them.
    pub(crate) fn apply(&self, storage: &dyn Storage, base: &Base<'_>) -> Result<()> {
        for segment in self.segments.iter().rev().filter(|segment| segment.rewrite) {
            let bytes = segment.mended(base)?;
            let written = storage.write_whole(&segment.path, &mut std::iter::once(bytes));
            written.map_err(|error| Error::io("write", &segment.path, &error))?;
        }
        Ok(())
    }
}

/// Looks at every segment of a directory and decides what to do about it.
pub(crate) fn plan(storage: &Arc<dyn Storage>, dir: &Path, base: &Base<'_>) -> Result<LogPlan> {
    let names = storage.list(dir).map_err(|error| Error::io("list", dir, &error))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| path::parse_segment(name)).collect();
    numbers.sort_unstable();
    let segments = numbers.into_iter().map(|number| Plan::read(storage.as_ref(), dir, number));
    let mut segments = segments.collect::<Result<Vec<Plan>>>()?;
    // The next start removes what was prepared and never written.
    while segments.pop_if(|segment| segment.unused && segment.head.is_none()).is_some() {}
    let mut log = LogPlan {
        segments,
        losses: Vec::new(),
        mended: Vec::new(),
        salvage: Salvage::new(base.checkpoint),
        first_found: None,
    };
    log.number(base.from())?;
    let found = |segment: &Plan| segment.head.or_else(|| segment.first_frame().map(|first| first.1));
    log.first_found = log.segments.iter().find_map(found);
    log.salvage(base)?;
    Ok(log)
}

impl LogPlan {
    /// Finds the holes between the numbers.
    fn number(&mut self, from: SeqNo) -> Result<()> {
        let mut reached: Option<SeqNo> = None;
        for i in 0..self.segments.len() {
            let (before, rest) = self.segments.split_at_mut(i);
            let Some((segment, after)) = rest.split_first_mut() else { break };
            let later = || {
                after
                    .iter()
                    .find_map(|segment| segment.head.or_else(|| segment.first_frame().map(|first| first.1)))
            };
            let start = segment.start(reached, from, later);
            match reached {
                // A removal of old segments stopped half way, and recovery ends it.
                Some(next) if start > next && start <= from.plus(1) => {}
                Some(next) if start > next => {
                    let Some(before) = before.last_mut() else { break };
                    before.add_hole(next, start);
                }
                Some(next) if start < next && !segment.unused => {
                    return Err(segment.disordered(24, start.0));
                }
                _ => {}
            }
            segment.number_frames(start)?;
            if !segment.unused || reached.is_none_or(|next| next < segment.next) {
                reached = Some(segment.next);
            }
        }
        Ok(())
    }

    /// Goes through the records behind the checkpoint: which of them depend on what is gone.
    fn salvage(&mut self, base: &Base<'_>) -> Result<()> {
        let position = base.checkpoint.position;
        let Self { segments, losses, mended, salvage, .. } = self;
        for segment in segments {
            segment.salvage = salvage.clone();
            let known = losses.len();
            let whole = segment.each(|item, offset| {
                match item {
                    Item::Hole(seq) => losses.push(segment.loss(*seq, base.flushed_to)),
                    Item::Frame(_) => {
                        let FrameScan::Frame(frame) = FrameScan::at(segment.number, &segment.bytes, offset)
                        else {
                            return Err(segment.disordered(offset as usize, 0));
                        };
                        let mut whole = true;
                        // Read even where nothing depends on it: what cannot be read must not be written again.
                        for record in frame.records() {
                            let record = record.map_err(|source| segment.corrupt(source))?;
                            if frame.seq.last > position {
                                let mut out = WalWriter::new();
                                whole &= salvage.keep(record, frame.seq, &segment.name(), &mut out, losses);
                            }
                        }
                        return Ok(whole);
                    }
                }
                Ok(true)
            })?;
            let damaged = segment.head.is_none() || segment.tail.is_some() || segment.damage.is_some();
            segment.rewrite =
                damaged || !whole || losses.len() > known || segment.head != Some(segment.first_seq);
            if segment.rewrite {
                mended.push(Mended { file: segment.name(), what: segment.what_was_done() });
            }
        }
        Ok(())
    }
}

impl Plan {
    fn read(storage: &dyn Storage, dir: &Path, number: u64) -> Result<Self> {
        let path = dir.join(path::segment(number));
        let bytes = storage.map(&path).map_err(|error| Error::io("map", &path, &error))?;
        let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        let mut plan = Self {
            number,
            head: None,
            first_seq: SeqNo(0),
            next: SeqNo(0),
            items: Vec::new(),
            damage: None,
            tail: None,
            unused: bytes.is_empty() || bytes.get(SEGMENT_HEADER_LEN..).is_some_and(is_zero),
            rewrite: false,
            salvage: Salvage::default(),
            path,
            bytes,
        };
        match SegmentHeader::decode(&plan.bytes) {
            Ok(head) if head.number == number => plan.head = Some(head.first_seq),
            Ok(head) => return Err(plan.wrong(16, "the number in the file's name", head.number)),
            Err(source @ FormatError::Version { .. }) => return Err(plan.corrupt(source)),
            Err(source) => plan.damage = Some((0, source.to_string())),
        }
        plan.find_frames();
        Ok(plan)
    }

    /// Every frame that can be read, wherever it stands.
    fn find_frames(&mut self) {
        let mut offset = SEGMENT_HEADER_LEN as u64;
        loop {
            let bad = match FrameScan::at(self.number, &self.bytes, offset) {
                FrameScan::Frame(frame) => {
                    self.items.push(Item::Frame(offset));
                    offset = frame.end;
                    continue;
                }
                FrameScan::End => {
                    let rest = self.bytes.get(offset as usize..).unwrap_or_default();
                    if rest.iter().all(|byte| *byte == 0) {
                        return;
                    }
                    "zeroes before other bytes".to_owned()
                }
                FrameScan::Bad(source) => source.to_string(),
            };
            self.damage.get_or_insert((offset, bad));
            // As recovery sees it: what was never synced is a torn tail, whatever can be read of it.
            let synced = was_synced(self.number, &self.bytes, offset);
            match find_frame_after(self.number, &self.bytes, offset).filter(|_| synced) {
                Some(frame) => offset = frame.offset,
                None => return self.tail = Some(offset),
            }
        }
    }

    fn seq(&self, offset: u64) -> Option<SeqRange> {
        match FrameScan::at(self.number, &self.bytes, offset) {
            FrameScan::Frame(frame) => Some(frame.seq),
            FrameScan::End | FrameScan::Bad(_) => None,
        }
    }

    fn first_frame(&self) -> Option<(u64, SeqNo)> {
        self.items.iter().find_map(|item| match item {
            Item::Frame(offset) => Some((*offset, self.seq(*offset)?.first)),
            Item::Hole(_) => None,
        })
    }

    /// The first number that it holds, or held. Without a segment before it, it is the first that is needed at the latest:
    /// what is needed may have stood in a segment that is gone.
    fn start(&self, reached: Option<SeqNo>, from: SeqNo, later: impl FnOnce() -> Option<SeqNo>) -> SeqNo {
        let needed = from.plus(1);
        let own = || self.first_frame().map(|(_, first)| first);
        match (self.head, reached) {
            (Some(head), Some(_)) => head,
            (None, Some(next)) => next,
            (Some(head), None) => head.min(needed),
            (None, None) => own().or_else(later).unwrap_or(needed).min(needed),
        }
    }

    /// Puts the holes between the frames.
    fn number_frames(&mut self, start: SeqNo) -> Result<()> {
        self.first_seq = start;
        let mut next = start;
        let mut items = Vec::with_capacity(self.items.len());
        for item in &self.items {
            let Item::Frame(offset) = *item else { continue };
            let Some(seq) = self.seq(offset) else { continue };
            if seq.first < next {
                return Err(self.disordered(offset as usize, seq.first.0));
            }
            if seq.first > next {
                items.push(Item::Hole(SeqRange { first: next, last: SeqNo(seq.first.0 - 1) }));
            }
            items.push(*item);
            next = seq.last.plus(1);
        }
        // A head that is later than what is needed.
        if let Some(head) = self.head.filter(|head| items.is_empty() && *head > next) {
            items.push(Item::Hole(SeqRange { first: next, last: SeqNo(head.0 - 1) }));
            next = head;
        }
        (self.items, self.next) = (items, next);
        Ok(())
    }

    fn add_hole(&mut self, next: SeqNo, start: SeqNo) {
        self.items.push(Item::Hole(SeqRange { first: next, last: SeqNo(start.0 - 1) }));
        self.next = start;
    }

    /// Calls `each` with every item and its offset; returns whether all of them said yes.
    fn each(&self, mut each: impl FnMut(&Item, u64) -> Result<bool>) -> Result<bool> {
        let mut all = true;
        for item in &self.items {
            let offset = if let Item::Frame(offset) = item { *offset } else { 0 };
            all &= each(item, offset)?;
        }
        Ok(all)
    }

    /// The file as it should be.
    fn mended(&self, base: &Base<'_>) -> Result<Vec<u8>> {
        let mut salvage = self.salvage.clone();
        let mut bytes = SegmentHeader { number: self.number, first_seq: self.first_seq }.encode();
        for item in &self.items {
            let mut out = WalWriter::new();
            let seq = match item {
                Item::Hole(seq) => *seq,
                Item::Frame(offset) => {
                    let FrameScan::Frame(frame) = FrameScan::at(self.number, &self.bytes, *offset) else {
                        return Err(self.disordered(*offset as usize, 0));
                    };
                    for record in frame.records() {
                        let record = record.map_err(|source| self.corrupt(source))?;
                        if frame.seq.last > base.checkpoint.position {
                            salvage.keep(record, frame.seq, "", &mut out, &mut Vec::new());
                        } else {
                            Salvage::copy(&record, &mut out);
                        }
                    }
                    frame.seq
                }
            };
            let offset = bytes.len() as u64;
            bytes.extend_from_slice(&out.finish(self.number, offset, seq, offset));
        }
        Ok(bytes)
    }

    fn name(&self) -> String {
        format!("{}/{}", path::WAL_DIR, path::segment(self.number))
    }

    fn loss(&self, seq: SeqRange, flushed_to: SeqNo) -> Loss {
        let (offset, damage) = self.damage.clone().unwrap_or((0, "what stood behind it is not there".into()));
        Loss::Log {
            file: self.name(),
            offset,
            first_seq: seq.first.0,
            last_seq: seq.last.0,
            in_files: seq.last <= flushed_to,
            damage,
        }
    }

    fn what_was_done(&self) -> String {
        match (&self.damage, self.tail) {
            (Some((offset, damage)), Some(tail)) if *offset == tail && self.items.iter().all(is_frame) => {
                format!("cut off at {tail}, where it ended with a torn frame ({damage})")
            }
            (Some((_, damage)), _) => format!("written again without what is damaged ({damage})"),
            (None, _) => "written again without what depends on numbers that are gone".to_owned(),
        }
    }

    fn wrong(&self, offset: usize, expected: &'static str, found: u64) -> Error {
        self.corrupt(FormatError::Invalid { structure: "log segment", offset, expected, found })
    }

    fn disordered(&self, offset: usize, found: u64) -> Error {
        self.wrong(offset, "the sequence number behind the one before", found)
    }

    fn corrupt(&self, source: FormatError) -> Error {
        Error::Corrupt { path: self.path.clone(), source }
    }
}

fn is_frame(item: &Item) -> bool {
    matches!(item, Item::Frame(_))
}
