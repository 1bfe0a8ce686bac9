#![doc = include_str!("../../docs/format/series_key.md")]
//!
//! # Invariants
//! - Comparing two keys' bytes compares their tag values as UTF-8 bytes, absent first.
//! - Adding a tag to a table changes no key: missing values at the end mean absent.

use std::borrow::Cow;
use std::sync::Arc;

use crate::cursor::{FormatError, Result};

const ABSENT: u8 = 0;
const PRESENT: u8 = 1;

/// The encoded tag values of a series; clones share them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeriesKey(Arc<[u8]>);

impl SeriesKey {
    /// Encodes tag values given in ColumnId order.
    #[must_use]
    pub fn encode<'a>(tags: impl IntoIterator<Item = Option<&'a str>>) -> Self {
        let mut bytes = Vec::new();
        Self::encode_into(tags, &mut bytes);
        Self(bytes.into())
    }

    /// Encodes into a buffer that the caller reuses; what it held is replaced.
    pub fn encode_into<'a>(tags: impl IntoIterator<Item = Option<&'a str>>, bytes: &mut Vec<u8>) {
        bytes.clear();
        let mut end = 0;
        for tag in tags {
            let Some(value) = tag else {
                bytes.push(ABSENT);
                continue;
            };
            bytes.push(PRESENT);
            // Hardly a value holds a zero, so most are one piece.
            for (i, piece) in value.as_bytes().split(|byte| *byte == 0).enumerate() {
                if i > 0 {
                    bytes.extend_from_slice(&[0, 0xff]);
                }
                bytes.extend_from_slice(piece);
            }
            bytes.extend_from_slice(&[0, 1]);
            end = bytes.len();
        }
        bytes.truncate(end);
    }

    /// Takes bytes that `encode_into` made; fails where they are not a key.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::check(bytes)?;
        Ok(Self(bytes.into()))
    }

    /// Fails where the bytes are not a key.
    pub(crate) fn check(bytes: &[u8]) -> Result<()> {
        let mut last = Some(Cow::Borrowed(""));
        for value in Tags::of(bytes) {
            last = value?;
        }
        if last.is_none() {
            let (structure, offset) = ("series key", bytes.len());
            return Err(FormatError::Invalid {
                structure,
                offset,
                expected: "absent values cut off at the end",
                found: 0,
            });
        }
        Ok(())
    }

    /// Takes bytes that were checked before.
    pub(crate) fn of_checked(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The encoded bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The tag values in ColumnId order, up to the last present one.
    #[must_use]
    pub fn tags(&self) -> Tags<'_> {
        Tags::of(&self.0)
    }

    /// The tag values as strings, `count` of them.
    #[must_use]
    pub fn to_values(&self, count: usize) -> Vec<Option<String>> {
        self.tags().to_values(count)
    }
}

impl std::borrow::Borrow<[u8]> for SeriesKey {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// Iterates over the tag values of a key.
#[derive(Clone, Debug)]
pub struct Tags<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Tags<'a> {
    /// The tag values of an encoded key.
    #[must_use]
    pub fn of(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// The values that are left as strings, `count` of them.
    #[must_use]
    pub fn to_values(self, count: usize) -> Vec<Option<String>> {
        let mut values: Vec<_> = self.map(|tag| tag.ok().flatten().map(Cow::into_owned)).collect();
        values.resize(count, None);
        values
    }

    fn error(&self, expected: &'static str, found: u64) -> FormatError {
        FormatError::Invalid { structure: "series key", offset: self.offset, expected, found }
    }

    fn next_byte(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.offset).copied()?;
        self.offset += 1;
        Some(byte)
    }

    /// The value up to its end, which is borrowed unless a zero in it was escaped.
    fn present(&mut self) -> Result<Option<Cow<'a, str>>> {
        let mut escaped: Vec<u8> = Vec::new();
        loop {
            let rest = self.bytes.get(self.offset..).unwrap_or_default();
            let Some(zero) = rest.iter().position(|byte| *byte == 0) else {
                return Err(self.error("the end of a tag value", 0));
            };
            let part = rest.get(..zero).unwrap_or_default();
            self.offset += zero + 1;
            match self.next_byte() {
                Some(0xff) => {
                    escaped.extend_from_slice(part);
                    escaped.push(0);
                }
                Some(1) if escaped.is_empty() => {
                    let text = std::str::from_utf8(part).map_err(|_| self.error("UTF-8 text", 0))?;
                    return Ok(Some(Cow::Borrowed(text)));
                }
                Some(1) => {
                    escaped.extend_from_slice(part);
                    let text = String::from_utf8(escaped).map_err(|_| self.error("UTF-8 text", 0))?;
                    return Ok(Some(Cow::Owned(text)));
                }
                other => return Err(self.error("00 FF or 00 01", other.unwrap_or_default().into())),
            }
        }
    }
}

impl<'a> Iterator for Tags<'a> {
    type Item = Result<Option<Cow<'a, str>>>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = match self.next_byte()? {
            ABSENT => Ok(None),
            PRESENT => self.present(),
            other => Err(self.error("tag marker 0 or 1", other.into())),
        };
        if item.is_err() {
            self.offset = self.bytes.len();
        }
        Some(item)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tag() -> impl Strategy<Value = Option<String>> {
        proptest::option::of(prop_oneof![Just(String::new()), "[\\x00\\x01a-c\u{ff}]{0,4}"])
    }

    proptest! {
        #[test]
        fn byte_order_is_tag_order(a in proptest::collection::vec(tag(), 3), b in proptest::collection::vec(tag(), 3)) {
            let key = |tags: &[Option<String>]| SeriesKey::encode(tags.iter().map(Option::as_deref));
            prop_assert_eq!(key(&a).cmp(&key(&b)), a.cmp(&b));
            prop_assert_eq!(key(&a).to_values(3), a.clone());
            prop_assert_eq!(SeriesKey::from_bytes(key(&a).as_bytes()).unwrap(), key(&a));
        }
    }

    #[test]
    fn a_tag_that_comes_later_leaves_old_keys_as_they_are() {
        assert_eq!(SeriesKey::encode([Some("a")]), SeriesKey::encode([Some("a"), None]));
        assert_ne!(SeriesKey::encode([Some("a")]), SeriesKey::encode([Some("a"), Some("")]));
    }

    #[test]
    fn damaged_keys_are_refused() {
        for bytes in [&[2][..], &[1, b'a'], &[1, 0, 7], &[1, 0xff, 0, 1]] {
            assert!(SeriesKey::from_bytes(bytes).is_err(), "{bytes:?}");
        }
    }
}
