//! What stands behind the last whole frame of a segment: a torn tail, or damage.

use super::frame::{FRAME_ALIGN, Frame, FrameScan};

/// The first frame behind `offset`, at any alignment of a frame: where there is one, what stands at `offset` is not a
/// torn tail but damage.
#[must_use]
pub fn find_frame_after(number: u64, bytes: &[u8], offset: u64) -> Option<Frame<'_>> {
    let first = offset.checked_next_multiple_of(FRAME_ALIGN as u64)?.checked_add(FRAME_ALIGN as u64)?;
    // Columns of integers look like heads of frames wherever they lie, and to sum up megabytes for each takes minutes.
    let may_be_frame = |at: &u64| Frame::unverified(bytes, *at).is_ok_and(|frame| frame.has_records());
    let mut places = (first..bytes.len() as u64).step_by(FRAME_ALIGN).filter(may_be_frame);
    places.find_map(|at| match FrameScan::at(number, bytes, at) {
        FrameScan::Frame(frame) => Some(frame),
        FrameScan::End | FrameScan::Bad(_) => None,
    })
}

/// Whether what stands at `offset`, and is no frame, was on stable storage once: a frame behind it says so. Then it is
/// damage, else a torn tail, of which several frames may be left in part, in any order.
#[must_use]
pub fn was_synced(number: u64, bytes: &[u8], offset: u64) -> bool {
    let mut at = offset;
    while let Some(frame) = find_frame_after(number, bytes, at) {
        if frame.synced_through > offset {
            return true;
        }
        // Whole frames stand one behind the other; what is none is searched through.
        at = frame.offset;
        while let FrameScan::Frame(frame) = FrameScan::at(number, bytes, at) {
            if frame.synced_through > offset {
                return true;
            }
            at = frame.end;
        }
    }
    false
}
