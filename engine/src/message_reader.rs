//! Reads messages back from the log by their sequence numbers.
//!
//! # Invariants
//! - Only frames that are committed are read, and each one's checksum is verified before a message of it is given out.
//! - What is asked for comes in order, once, or is named as lost: gone with its segment.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::ControlFlow;

use sonde_storage_format::{FormatError, Frame, FrameScan, MessageRef, SEGMENT_HEADER_LEN, SeqNo, SeqRange};

use crate::error::{Error, Result};
use crate::limits::MESSAGE_PLACES;
use crate::storage::{Mapped, Storage};
use crate::wal::{Segment, Segments};

/// Bytes of frames that are stepped over before their place is remembered.
const STRIDE: u64 = 1 << 20;

/// Finds messages in the log; remembers some of the places, for this and other readers' next look.
#[derive(Debug, Default)]
pub struct MessageReader {
    /// Of some sequence numbers, the segment and the offset of the frame that begins with them.
    places: BTreeMap<SeqNo, (u64, u64)>,
    /// The frame whose checksum was verified last.
    verified: Option<(u64, u64)>,
}

/// What one turn of a [`MessageReader`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MessageTurn {
    /// What was asked for up to here has been given, was never logged, or is lost.
    pub position: SeqNo,
    /// What was asked for and has gone with its segment.
    pub lost: Vec<SeqRange>,
}

/// The segment that a turn is in.
struct Walk {
    segment: Segment,
    bytes: Mapped,
    offset: u64,
}

impl Walk {
    fn corrupt(&self, source: FormatError) -> Error {
        Error::Corrupt { path: self.segment.path.clone(), source }
    }

    /// Goes on to the frame that holds `seq`, which the segment has.
    fn seek(&mut self, seq: SeqNo, places: &mut BTreeMap<SeqNo, (u64, u64)>) -> Result<()> {
        let mut remembered = self.offset;
        loop {
            let frame = Frame::unverified(&self.bytes, self.offset);
            let frame = frame.map_err(|source| self.corrupt(source))?;
            if frame.seq.last >= seq {
                return Ok(());
            }
            let wrong = frame.seq.first > frame.seq.last || frame.seq.last > self.segment.last_seq;
            if wrong || frame.end <= self.offset {
                let (offset, found) = (self.offset as usize, frame.seq.last.0);
                let expected = "a frame with sequence numbers of its segment";
                return Err(self.corrupt(FormatError::Invalid {
                    structure: "log segment",
                    offset,
                    expected,
                    found,
                }));
            }
            self.offset = frame.end;
            if self.offset - remembered >= STRIDE {
                remembered = self.offset;
                places.insert(frame.seq.last.plus(1), (self.segment.number, self.offset));
            }
        }
    }
}

impl MessageReader {
    /// One that knows no places yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the messages of the ranges, which ascend, to `each`.
    pub(crate) fn read(
        &mut self,
        storage: &dyn Storage,
        segments: &Segments,
        published: SeqNo,
        wanted: &[SeqRange],
        each: &mut dyn FnMut(MessageRef<'_>) -> ControlFlow<()>,
    ) -> Result<MessageTurn> {
        assert!(wanted.is_sorted_by(|a, b| a.last < b.first), "ranges that ascend: {wanted:?}");
        let mut turn = MessageTurn::default();
        let mut walk: Option<Walk> = None;
        for range in wanted {
            let last = range.last.min(published);
            let mut next = range.first.max(turn.position.plus(1));
            while next <= last {
                let inside = walk.take().filter(|walk| walk.segment.last_seq >= next);
                let found = match inside {
                    Some(walk) => Ok(walk),
                    None => self.open(storage, segments, next)?,
                };
                let mut at = match found {
                    Ok(walk) => walk,
                    Err(first) => {
                        let gone = SeqNo(first.0 - 1).min(last);
                        turn.lost.push(SeqRange { first: next, last: gone });
                        turn.position = gone;
                        next = gone.plus(1);
                        continue;
                    }
                };
                at.seek(next, &mut self.places)?;
                if let ControlFlow::Break(position) = self.read_frame(&at, next, wanted, each)? {
                    turn.position = position;
                    return Ok(turn);
                }
                let frame = Frame::unverified(&at.bytes, at.offset).map_err(|source| at.corrupt(source))?;
                turn.position = frame.seq.last;
                next = frame.seq.last.plus(1);
                walk = Some(at);
            }
            turn.position = turn.position.max(last);
        }
        // The last frame may go on behind what was asked for.
        turn.position = turn.position.min(wanted.last().map_or(SeqNo(0), |range| range.last));
        Ok(turn)
    }

    /// Gives out what is wanted of a frame from `next` on; breaks with the number that it went up to.
    fn read_frame(
        &mut self,
        walk: &Walk,
        next: SeqNo,
        wanted: &[SeqRange],
        each: &mut dyn FnMut(MessageRef<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<SeqNo>> {
        let number = walk.segment.number;
        let frame = if self.verified == Some((number, walk.offset)) {
            Frame::unverified(&walk.bytes, walk.offset).map_err(|source| walk.corrupt(source))?
        } else {
            match FrameScan::at(number, &walk.bytes, walk.offset) {
                FrameScan::Frame(frame) => frame,
                FrameScan::Bad(source) => return Err(walk.corrupt(source)),
                FrameScan::End => {
                    let (structure, offset) = ("log segment", walk.offset as usize);
                    let expected = "the frames that were committed";
                    return Err(walk.corrupt(FormatError::Invalid { structure, offset, expected, found: 0 }));
                }
            }
        };
        self.verified = Some((number, walk.offset));
        let from = wanted.partition_point(|range| range.last < next);
        let mut ranges = wanted.get(from..).unwrap_or_default().iter().peekable();
        for message in frame.messages() {
            let message = message.map_err(|source| walk.corrupt(source))?;
            if message.seq < next {
                continue;
            }
            while ranges.next_if(|range| range.last < message.seq).is_some() {}
            let Some(range) = ranges.peek() else { break };
            if message.seq >= range.first && each(message).is_break() {
                return Ok(ControlFlow::Break(message.seq));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The segment that has `seq`, at a frame not behind it; or, where `seq` is gone, the first number that is left.
    fn open(
        &mut self,
        storage: &dyn Storage,
        segments: &Segments,
        seq: SeqNo,
    ) -> Result<std::result::Result<Walk, SeqNo>> {
        loop {
            let list = segments.list();
            let first = list.first().map_or(SeqNo(u64::MAX), |first| first.first_seq);
            if first > seq {
                self.places.retain(|known, _| *known >= first);
                return Ok(Err(first));
            }
            if self.places.len() > MESSAGE_PLACES {
                self.places.clear();
            }
            let segment = list.into_iter().find(|segment| segment.last_seq >= seq);
            let Some(segment) = segment else { return Ok(Err(seq.plus(1))) };
            let bytes = match storage.map(&segment.path) {
                Ok(bytes) => bytes,
                // It expired since it was listed.
                Err(error) if error.kind() == ErrorKind::NotFound && !segments.has(segment.number) => {
                    continue;
                }
                Err(error) => return Err(Error::io("map", &segment.path, &error)),
            };
            let near = self.places.range(..=seq).next_back().map(|(_, place)| *place);
            let offset = match near {
                Some((number, offset)) if number == segment.number => offset,
                _ => SEGMENT_HEADER_LEN as u64,
            };
            return Ok(Ok(Walk { segment, bytes, offset }));
        }
    }
}
