//! Frames of the log as backups cut them: pure functions over the bytes of a segment.

use sonde_storage_format::{
    FormatError, Frame, FrameScan, Record, SEGMENT_HEADER_LEN, SegmentHeader, SeqNo, Timestamp,
};

use crate::clock;

/// How far a walk over a segment came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reached {
    /// The last sequence number before the place.
    pub(super) last_seq: SeqNo,
    /// Where the next frame would start.
    pub(super) offset: u64,
}

/// The place before the first frame of a segment that should have this number.
pub(super) fn start(number: u64, bytes: &[u8]) -> Result<Reached, FormatError> {
    let head = SegmentHeader::decode(bytes)?;
    if head.number != number {
        let (structure, expected) = ("log segment", "the number in the segment's name");
        return Err(FormatError::Invalid { structure, offset: 16, expected, found: head.number });
    }
    Ok(Reached { last_seq: SeqNo(head.first_seq.0 - 1), offset: SEGMENT_HEADER_LEN as u64 })
}

/// Walks on over whole frames, up to the one that ends at `until`, the first that `takes` refuses, or the end. Verifies
/// their checksums. Behind `until` nothing is looked at: a writer may be at work there.
pub(super) fn walk(
    number: u64,
    bytes: &[u8],
    from: Reached,
    until: SeqNo,
    mut takes: impl FnMut(&Frame<'_>) -> Result<bool, FormatError>,
) -> Result<Reached, FormatError> {
    let mut at = from;
    while at.last_seq < until {
        let frame = match FrameScan::at(number, bytes, at.offset) {
            FrameScan::Frame(frame) => frame,
            FrameScan::End => return Ok(at),
            FrameScan::Bad(error) => return Err(error),
        };
        if frame.seq.first != at.last_seq.plus(1) {
            let (structure, expected) = ("log segment", "the sequence number behind the frame before");
            let (offset, found) = (at.offset as usize, frame.seq.first.0);
            return Err(FormatError::Invalid { structure, offset, expected, found });
        }
        if !takes(&frame)? {
            return Ok(at);
        }
        at = Reached { last_seq: frame.seq.last, offset: frame.end };
    }
    Ok(at)
}

/// Behind every position.
pub(super) const END: SeqNo = SeqNo(u64::MAX);

/// The clock that a frame states, if it does.
pub(super) fn stated(frame: &Frame<'_>) -> Result<Option<Timestamp>, FormatError> {
    for record in frame.records() {
        if let Record::State(state) = record?
            && let Some(time) = clock::marked(&state)
        {
            return Ok(Some(time));
        }
    }
    Ok(None)
}
