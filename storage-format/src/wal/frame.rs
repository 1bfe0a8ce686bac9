//! Frames: one group commit each, how it is written and how it is found again.

use super::message::MessageRef;
use super::record::{
    KIND_CATALOG, KIND_MESSAGE, KIND_ROWS, KIND_SERIES, KIND_STATE, KIND_TOMBSTONE, Record, SeriesRecord,
    State, are_records, read_message,
};
use super::rows::RowsRecord;
use super::tombstone::Tombstone;
use crate::catalog::CatalogChange;
use crate::cursor::{Cursor, FormatError, Result, Writer};
use crate::ids::{SeqNo, SeqRange};
use crate::limits::FRAME_BYTES;

const FRAME_HEADER_LEN: usize = 32;
/// Frames begin at multiples of so many bytes.
pub(super) const FRAME_ALIGN: usize = 8;

/// Collects the records of one group.
#[derive(Debug)]
pub struct WalWriter {
    payload: Writer,
}

impl Default for WalWriter {
    /// The same as `new`: the payload starts behind the room for the frame's head.
    fn default() -> Self {
        Self { payload: Writer::on(vec![0; FRAME_HEADER_LEN]) }
    }
}

impl WalWriter {
    /// No records yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of the frame so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.payload.len()
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.payload.len() == FRAME_HEADER_LEN
    }

    fn record(&mut self, kind: u8, body: impl FnOnce(&mut Writer)) {
        self.payload.u8(kind);
        let at = self.payload.len();
        self.payload.u32(0);
        body(&mut self.payload);
        let len = (self.payload.len() - at - 4) as u32;
        if let Some(slot) = self.payload.buffer().get_mut(at..at + 4) {
            slot.copy_from_slice(&len.to_le_bytes());
        }
    }

    /// Appends rows.
    pub fn rows(&mut self, rows: &RowsRecord) {
        self.record(KIND_ROWS, |writer| rows.write(writer));
    }

    /// Appends a change of state.
    pub fn state(&mut self, state: &State) {
        self.record(KIND_STATE, |writer| state.write(writer));
    }

    /// Appends a change of the catalog.
    pub fn catalog(&mut self, change: &CatalogChange) {
        self.record(KIND_CATALOG, |writer| change.encode(writer));
    }

    /// Appends new series.
    pub fn series(&mut self, series: &SeriesRecord) {
        self.record(KIND_SERIES, |writer| series.write(writer));
    }

    /// Appends a message.
    pub fn message(&mut self, message: &MessageRef<'_>) {
        self.record(KIND_MESSAGE, |writer| message.write(writer));
    }

    /// Appends a tombstone.
    pub fn tombstone(&mut self, tombstone: &Tombstone) {
        self.record(KIND_TOMBSTONE, |writer| tombstone.write(writer));
    }

    /// The frame's bytes for this place of this segment.
    #[must_use]
    pub fn finish(self, segment: u64, offset: u64, seq: SeqRange, synced_through: u64) -> Vec<u8> {
        let len = self.payload.len() - FRAME_HEADER_LEN;
        assert!(len + FRAME_HEADER_LEN <= FRAME_BYTES, "a frame of {len} bytes");
        assert!(
            synced_through <= offset,
            "synced through {synced_through}, but the frame stands at {offset}"
        );
        let mut payload = self.payload;
        payload.pad(FRAME_ALIGN);
        let mut bytes = payload.into_bytes();
        let mut header = Writer::new();
        header.u32(len as u32 + 1); // so that zeroes are never a frame
        header.u32(0);
        header.u64(seq.first.0);
        header.u64(seq.last.0);
        header.u64(synced_through);
        if let Some(slot) = bytes.get_mut(..FRAME_HEADER_LEN) {
            slot.copy_from_slice(header.as_bytes());
        }
        let crc = frame_crc(segment, offset, &bytes);
        if let Some(slot) = bytes.get_mut(4..8) {
            slot.copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    }
}

/// One group commit.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Where the frame starts in its segment.
    pub offset: u64,
    /// Where the next frame starts.
    pub end: u64,
    /// The sequence numbers that it covers.
    pub seq: SeqRange,
    /// Everything before this offset was on stable storage when the frame was written.
    pub synced_through: u64,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The records, in the order in which they were written.
    pub fn records(&self) -> impl Iterator<Item = Result<Record>> + use<'a> {
        let mut cursor = Cursor::new("log frame", self.payload);
        std::iter::from_fn(move || (cursor.left() > 0).then(|| Record::read(&mut cursor)))
    }

    /// The messages alone, borrowed, in their order: records of other kinds are passed over by their length.
    pub fn messages(&self) -> impl Iterator<Item = Result<MessageRef<'a>>> + use<'a> {
        let mut cursor = Cursor::new("log frame", self.payload);
        std::iter::from_fn(move || {
            while cursor.left() > 0 {
                match read_message(&mut cursor) {
                    Ok(None) => {}
                    Ok(Some(message)) => return Some(Ok(message)),
                    Err(error) => {
                        cursor.rest();
                        return Some(Err(error));
                    }
                }
            }
            None
        })
    }

    /// Whether its payload could be records, by their heads: for bytes whose checksum would take long.
    pub(super) fn has_records(&self) -> bool {
        are_records(self.payload)
    }

    /// The frame at `offset` as its head describes it, without a look at the checksum: to step over frames that are known
    /// to be whole, or to read one again.
    pub fn unverified(bytes: &'a [u8], offset: u64) -> Result<Self> {
        let rest = usize::try_from(offset).ok().and_then(|start| bytes.get(start..)).unwrap_or_default();
        let (frame, _) = read_head(rest, offset)?;
        Ok(frame)
    }
}

/// What stands at an offset of a segment.
#[derive(Debug)]
pub enum FrameScan<'a> {
    /// A frame.
    Frame(Frame<'a>),
    /// Zeroes, or the end of the file: nothing was written here.
    End,
    /// Something else: a torn tail, or damage.
    Bad(FormatError),
}

impl<'a> FrameScan<'a> {
    /// Reads what stands at `offset` of the segment `number`, whose bytes these are.
    #[must_use]
    pub fn at(number: u64, bytes: &'a [u8], offset: u64) -> Self {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = bytes.get(start..).unwrap_or_default();
        if rest.iter().take(FRAME_HEADER_LEN).all(|byte| *byte == 0) {
            return Self::End;
        }
        match read_frame(number, rest, offset) {
            Ok(frame) => Self::Frame(frame),
            Err(error) => Self::Bad(error),
        }
    }
}

fn read_frame(number: u64, rest: &[u8], offset: u64) -> Result<Frame<'_>> {
    let (frame, expected) = read_head(rest, offset)?;
    let found = frame_crc(number, offset, rest.get(..(frame.end - offset) as usize).unwrap_or_default());
    if found != expected {
        return Err(FormatError::Checksum { structure: "log frame", offset, expected, found });
    }
    Ok(frame)
}

/// The frame that a head describes, and the checksum that it states.
fn read_head(rest: &[u8], offset: u64) -> Result<(Frame<'_>, u32)> {
    let mut cursor = Cursor::new("log frame", rest);
    let stated = cursor.u32()?;
    let expected = cursor.u32()?;
    let seq = SeqRange { first: SeqNo(cursor.u64()?), last: SeqNo(cursor.u64()?) };
    let synced_through = cursor.u64()?;
    let Some(len) = (stated as usize).checked_sub(1).filter(|len| *len <= FRAME_BYTES) else {
        return Err(cursor.invalid("a frame of at most 256 MiB", stated.into()));
    };
    // Nothing is synced that was not written before.
    if synced_through > offset {
        return Err(cursor.invalid("a sync that ended before the frame", synced_through));
    }
    let payload = cursor.take(len)?;
    cursor.take(len.next_multiple_of(FRAME_ALIGN) - len)?;
    Ok((Frame { offset, end: offset + cursor.offset() as u64, seq, synced_through, payload }, expected))
}

/// The checksum of a frame: its length field, then everything behind the checksum field.
fn frame_crc(segment: u64, offset: u64, frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&segment.to_le_bytes());
    hasher.update(&offset.to_le_bytes());
    hasher.update(frame.get(..4).unwrap_or_default());
    hasher.update(frame.get(8..).unwrap_or_default());
    hasher.finalize()
}
