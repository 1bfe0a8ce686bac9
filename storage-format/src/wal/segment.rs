//! The head of a segment.

use crate::cursor::{Cursor, FormatError, Result, Writer};
use crate::ids::SeqNo;

const MAGIC: &[u8; 8] = b"SONDEWAL";
const VERSION: u32 = 1;
/// Bytes before the first frame of a segment.
pub const SEGMENT_HEADER_LEN: usize = 64;

/// The head of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The segment's number; numbers ascend with the sequence numbers.
    pub number: u64,
    /// No frame of the segment has a smaller sequence number.
    pub first_seq: SeqNo,
}

impl SegmentHeader {
    /// 64 bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.put(MAGIC);
        writer.u32(VERSION);
        writer.u32(0); // feature bits
        writer.u64(self.number);
        writer.u64(self.first_seq.0);
        writer.pad(SEGMENT_HEADER_LEN);
        let mut bytes = writer.into_bytes();
        bytes.truncate(SEGMENT_HEADER_LEN - 4);
        let crc = crate::checksum::crc32(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads and verifies the head of a segment.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new("log segment head", bytes);
        let head = cursor.take(SEGMENT_HEADER_LEN - 4)?;
        let expected = cursor.u32()?;
        let mut cursor = Cursor::new("log segment head", head);
        if cursor.take(MAGIC.len())? != MAGIC {
            return Err(cursor.invalid("the magic SONDEWAL", 0));
        }
        let found = crate::checksum::crc32(head);
        if found != expected {
            return Err(FormatError::Checksum { structure: "log segment head", offset: 0, expected, found });
        }
        let (version, features) = (cursor.u32()?, cursor.u32()?);
        if version != VERSION {
            return Err(FormatError::Version { structure: "log segment", expected: VERSION, found: version });
        }
        if features != 0 {
            let structure = "log segment feature bits";
            return Err(FormatError::Version { structure, expected: 0, found: features });
        }
        Ok(Self { number: cursor.u64()?, first_seq: SeqNo(cursor.u64()?) })
    }
}
