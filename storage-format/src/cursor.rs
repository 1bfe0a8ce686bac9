//! The only reader of bytes, and its twin, the only writer.
//!
//! # Invariants
//! - No read goes beyond the slice: `take` fails, it never panics.
//! - A count read from a file is bounded by its caller's limit and by the bytes that are left.

use std::fmt;

/// What is wrong with bytes that should decode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The structure needs more bytes than there are.
    #[error("{structure} at byte {offset}: expected {expected} more bytes, found {found}")]
    Truncated {
        /// The structure being read.
        structure: &'static str,
        /// Where in it the reader stood.
        offset: usize,
        /// Bytes that were needed.
        expected: usize,
        /// Bytes that were left.
        found: usize,
    },
    /// The bytes are not those that were written.
    #[error("{structure} at byte {offset}: checksum is {found:08x}, expected {expected:08x}")]
    Checksum {
        /// The structure being read.
        structure: &'static str,
        /// Where it starts in its file.
        offset: u64,
        /// The checksum written beside the bytes.
        expected: u32,
        /// The checksum of the bytes found.
        found: u32,
    },
    /// A field has a value that no writer makes.
    #[error("{structure} at byte {offset}: expected {expected}, found {found}")]
    Invalid {
        /// The structure being read.
        structure: &'static str,
        /// Where in it the field stands.
        offset: usize,
        /// What would be right.
        expected: &'static str,
        /// What is there.
        found: u64,
    },
    /// The file is of a version, or needs features, that this program does not read.
    #[error("{structure}: version {found}, {}; this sonde reads version {expected}", whose(*.expected, *.found))]
    Version {
        /// The structure being read.
        structure: &'static str,
        /// The version that this program reads.
        expected: u32,
        /// The version or the unknown feature bits found.
        found: u32,
    },
}

/// Who wrote a version that this program does not read.
fn whose(expected: u32, found: u32) -> &'static str {
    if found > expected {
        "written by a newer sonde"
    } else {
        "of a development build from before the formats were fixed (export its tables with that build)"
    }
}

/// The result of decoding.
pub type Result<T, E = FormatError> = std::result::Result<T, E>;

/// Reads little-endian fields from a slice, front to back.
#[derive(Clone)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    offset: usize,
    structure: &'static str,
}

impl fmt::Debug for Cursor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cursor({} at {} of {})", self.structure, self.offset, self.bytes.len())
    }
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte; errors will name `structure`.
    #[must_use]
    pub fn new(structure: &'static str, bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0, structure }
    }

    /// Bytes read so far.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes not read yet.
    #[must_use]
    pub fn left(&self) -> usize {
        self.bytes.len() - self.offset
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let taken = self.offset.checked_add(n).and_then(|end| self.bytes.get(self.offset..end));
        let Some(taken) = taken else {
            return Err(FormatError::Truncated {
                structure: self.structure,
                offset: self.offset,
                expected: n,
                found: self.left(),
            });
        };
        self.offset += n;
        Ok(taken)
    }

    /// All bytes not read yet.
    pub fn rest(&mut self) -> &'a [u8] {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        self.offset = self.bytes.len();
        rest
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// The next byte, which is 0 or 1.
    pub fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.invalid("0 or 1", other.into())),
        }
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The next eight bytes, signed.
    pub fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// An unsigned LEB128 number of at most 64 bits.
    pub fn varint(&mut self) -> Result<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(self.invalid("a varint of at most 64 bits", bits));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.invalid("a varint of at most 10 bytes", value))
    }

    /// A zigzag varint.
    pub fn varint_signed(&mut self) -> Result<i64> {
        let raw = self.varint()?;
        Ok(unzigzag(raw))
    }

    /// A count of things that take at least `min_bytes` each and are at most `limit`.
    pub fn count(&mut self, limit: usize, min_bytes: usize) -> Result<usize> {
        let raw = self.varint()?;
        let count = usize::try_from(raw).unwrap_or(usize::MAX);
        let room = self.left().checked_div(min_bytes).unwrap_or(usize::MAX);
        if count > limit || count > room {
            return Err(self.invalid("a count within its limit and the bytes left", raw));
        }
        Ok(count)
    }

    /// Bytes behind their length, at most `limit` of them.
    pub fn bytes(&mut self, limit: usize) -> Result<&'a [u8]> {
        let len = self.count(limit, 1)?;
        self.take(len)
    }

    /// Text behind its length, at most `limit` bytes.
    pub fn text(&mut self, limit: usize) -> Result<&'a str> {
        let at = self.offset;
        let bytes = self.bytes(limit)?;
        std::str::from_utf8(bytes).map_err(|error| FormatError::Invalid {
            structure: self.structure,
            offset: at + error.valid_up_to(),
            expected: "UTF-8 text",
            found: bytes.get(error.valid_up_to()).copied().unwrap_or_default().into(),
        })
    }

    /// The error for a field just read that holds `found`.
    #[must_use]
    pub fn invalid(&self, expected: &'static str, found: u64) -> FormatError {
        FormatError::Invalid { structure: self.structure, offset: self.offset, expected, found }
    }

    /// Fails unless every byte was read.
    pub fn finish(&self) -> Result<()> {
        if self.left() == 0 {
            Ok(())
        } else {
            Err(self.invalid("the end of the structure", self.left() as u64))
        }
    }
}

/// Appends little-endian fields to a growing buffer.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Continues behind the bytes that are already in the buffer.
    #[must_use]
    pub fn on(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Bytes written so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The bytes, borrowed.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The buffer itself, for codecs that append to one.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Appends bytes as they are.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Appends two bytes.
    pub fn u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    /// Appends four bytes.
    pub fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    /// Appends eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    /// Appends eight bytes, signed.
    pub fn i64(&mut self, value: i64) {
        self.put(&value.to_le_bytes());
    }

    /// Appends an unsigned LEB128 number.
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push((value as u8) | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    /// Appends a zigzag varint.
    pub fn varint_signed(&mut self, value: i64) {
        self.varint(zigzag(value));
    }

    /// Appends bytes behind their length.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.put(bytes);
    }

    /// Appends zeroes up to the next multiple of `align`.
    pub fn pad(&mut self, align: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(align), 0);
    }
}

/// Maps small negative and positive numbers to small unsigned ones.
#[must_use]
pub(crate) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// The inverse of [`zigzag`].
#[must_use]
pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_round_trip(value: u64, signed: i64) {
            let mut writer = Writer::new();
            writer.varint(value);
            writer.varint_signed(signed);
            let mut cursor = Cursor::new("test", writer.as_bytes());
            prop_assert_eq!(cursor.varint().unwrap(), value);
            prop_assert_eq!(cursor.varint_signed().unwrap(), signed);
            prop_assert!(cursor.finish().is_ok());
        }
    }

    #[test]
    fn a_varint_of_65_bits_is_refused() {
        let mut bytes = vec![0xff; 9];
        bytes.push(0x02);
        assert!(Cursor::new("test", &bytes).varint().is_err());
        assert!(Cursor::new("test", &[0xff; 11]).varint().is_err());
    }

    #[test]
    fn counts_are_bounded_by_the_bytes_left() {
        let mut writer = Writer::new();
        writer.varint(1 << 40);
        assert!(Cursor::new("test", writer.as_bytes()).count(usize::MAX, 1).is_err());
        assert!(Cursor::new("test", writer.as_bytes()).bytes(usize::MAX).is_err());
    }

    #[test]
    fn counts_and_lengths_are_bounded_by_the_limit() {
        let mut writer = Writer::new();
        writer.bytes(&[b'x'; 200]);
        let cursor = || Cursor::new("test", writer.as_bytes());
        assert!(cursor().count(200, 1).is_ok() && cursor().count(199, 1).is_err());
        assert!(cursor().bytes(200).is_ok() && cursor().bytes(199).is_err());
        assert!(cursor().text(200).is_ok() && cursor().text(199).is_err());
    }
}
