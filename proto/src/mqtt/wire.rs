//! The data types of section 1.5: integers, strings, variable byte integers.

use super::error::DecodeError;

/// Reads fields front to back.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) =
            self.bytes.split_at_checked(n).ok_or(DecodeError::Malformed("a field is cut short"))?;
        self.bytes = rest;
        Ok(taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        let (first, rest) = self.bytes.split_first().ok_or(DecodeError::Malformed("a field is cut short"))?;
        self.bytes = rest;
        Ok(*first)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from(self.u8()?) << 8 | u16::from(self.u8()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from(self.u16()?) << 16 | u32::from(self.u16()?))
    }

    pub(super) fn binary(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u16()?;
        self.take(len.into())
    }

    pub(super) fn text(&mut self) -> Result<&'a str, DecodeError> {
        let text = std::str::from_utf8(self.binary()?)
            .map_err(|_| DecodeError::Malformed("a string is not UTF-8"))?;
        if text.as_bytes().contains(&0) {
            return Err(DecodeError::Malformed("a string has U+0000"));
        }
        Ok(text)
    }

    /// A variable byte integer in its shortest form.
    pub(super) fn varint(&mut self) -> Result<u32, DecodeError> {
        match varint(self.bytes)? {
            Some((value, len)) => {
                self.take(len)?;
                Ok(value)
            }
            None => Err(DecodeError::Malformed("a variable byte integer is cut short")),
        }
    }

    pub(super) fn packet_id(&mut self) -> Result<u16, DecodeError> {
        match self.u16()? {
            0 => Err(DecodeError::Protocol("packet identifier 0")),
            id => Ok(id),
        }
    }

    pub(super) fn finish(&self) -> Result<(), DecodeError> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Malformed("bytes behind the end of the packet"))
        }
    }
}

/// The variable byte integer at the start of `bytes` and its length; `None` where it is not complete yet.
pub(super) fn varint(bytes: &[u8]) -> Result<Option<(u32, usize)>, DecodeError> {
    let mut value = 0_u32;
    for (i, byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            if i > 0 && *byte == 0 {
                return Err(DecodeError::Malformed("a variable byte integer is longer than it need be"));
            }
            return Ok(Some((value, i + 1)));
        }
    }
    if bytes.len() < 4 {
        Ok(None)
    } else {
        Err(DecodeError::Malformed("a variable byte integer of five bytes"))
    }
}

/// Appends a variable byte integer.
pub(super) fn put_varint(mut value: u32, out: &mut Vec<u8>) {
    debug_assert!(value < 1 << 28, "{value} does not fit a variable byte integer");
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn put_u16(value: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(&value.to_be_bytes());
}

pub(super) fn put_u32(value: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends bytes behind their length; what is longer than 65,535 is cut off, which callers rule out.
pub(super) fn put_binary(bytes: &[u8], out: &mut Vec<u8>) {
    let len = bytes.len().min(u16::MAX.into());
    debug_assert_eq!(len, bytes.len(), "a string of {} bytes", bytes.len());
    put_u16(len as u16, out);
    out.extend_from_slice(bytes.get(..len).unwrap_or_default());
}

/// Appends a packet: first byte, remaining length, body.
pub(super) fn put_packet(first: u8, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.push(first);
    // Most packets are short: one byte of length is reserved, and the body moved where it needs more.
    out.push(0);
    body(out);
    let len = out.len() - start - 2;
    if len < 0x80 {
        if let Some(slot) = out.get_mut(start + 1) {
            *slot = len as u8;
        }
        return;
    }
    let mut prefix = Vec::with_capacity(4);
    put_varint(len as u32, &mut prefix);
    out.splice(start + 1..start + 2, prefix);
}
