//! Many series keys by handle, one behind the other in blocks that copies share.
//!
//! # Invariants
//! - What is in it is a `SeriesKey`: made by one, or checked like one.
//! - A full block never changes. A copy shares all blocks; the last one is copied when either side adds a key to it.

use std::sync::Arc;

use crate::cursor::Result;
use crate::limits::KEY_BYTES;
use crate::series_key::{SeriesKey, Tags};

/// Keys of a block. What is copied where a list and its copy part is one block, and a list of a few keys stays small.
const BLOCK_KEYS: usize = 1024;

// Ends are u32.
const _: () = assert!(BLOCK_KEYS * KEY_BYTES <= u32::MAX as usize);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Block {
    bytes: Vec<u8>,
    /// Where each key ends.
    ends: Vec<u32>,
}

impl Block {
    fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)? as usize;
        let start =
            index.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| *end as usize);
        self.bytes.get(start..end)
    }
}

/// Series keys by handle, from 0 on. A copy costs a pointer for each 1,024 keys.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SeriesKeys {
    blocks: Vec<Arc<Block>>,
    len: usize,
}

impl std::fmt::Debug for SeriesKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SeriesKeys({})", self.len)
    }
}

impl SeriesKeys {
    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a key.
    pub fn push(&mut self, key: &SeriesKey) {
        self.push_checked(key.as_bytes());
    }

    /// Adds a key that stands in a file; fails where it is none.
    pub(crate) fn push_bytes(&mut self, key: &[u8]) -> Result<()> {
        SeriesKey::check(key)?;
        self.push_checked(key);
        Ok(())
    }

    fn push_checked(&mut self, key: &[u8]) {
        if self.len.is_multiple_of(BLOCK_KEYS) {
            self.blocks.push(Arc::default());
        }
        let Some(block) = self.blocks.last_mut() else { unreachable!("a block was just made") };
        let block = Arc::make_mut(block);
        block.bytes.extend_from_slice(key);
        block.ends.push(block.bytes.len() as u32);
        self.len += 1;
        if block.ends.len() == BLOCK_KEYS {
            block.bytes.shrink_to_fit();
        }
    }

    /// The encoded bytes of a key.
    #[must_use]
    pub fn get(&self, handle: usize) -> Option<&[u8]> {
        self.blocks.get(handle / BLOCK_KEYS)?.get(handle % BLOCK_KEYS)
    }

    /// A key of its own.
    #[must_use]
    pub fn key(&self, handle: usize) -> Option<SeriesKey> {
        self.get(handle).map(SeriesKey::of_checked)
    }

    /// The tag values of a key; none where there is no such key.
    #[must_use]
    pub fn tags(&self, handle: usize) -> Tags<'_> {
        Tags::of(self.get(handle).unwrap_or_default())
    }

    /// The encoded keys in the order of their handles.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.blocks.iter().flat_map(|block| (0..block.ends.len()).filter_map(|index| block.get(index)))
    }

    /// The first so many keys.
    #[must_use]
    pub fn first(&self, len: usize) -> Self {
        if len >= self.len {
            return self.clone();
        }
        let mut first = Self { blocks: self.blocks.iter().take(len / BLOCK_KEYS).cloned().collect(), len: 0 };
        first.len = first.blocks.len() * BLOCK_KEYS;
        (first.len..len).filter_map(|handle| self.get(handle)).for_each(|key| first.push_checked(key));
        first
    }

    /// Bytes that the keys take in memory.
    #[must_use]
    pub fn memory(&self) -> usize {
        let of_block =
            |block: &Arc<Block>| size_of::<Block>() + 24 + block.bytes.capacity() + 4 * block.ends.capacity();
        self.blocks.iter().map(of_block).sum()
    }
}

impl FromIterator<SeriesKey> for SeriesKeys {
    fn from_iter<I: IntoIterator<Item = SeriesKey>>(keys: I) -> Self {
        let mut all = Self::default();
        keys.into_iter().for_each(|key| all.push(&key));
        all
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn key(i: usize) -> SeriesKey {
        SeriesKey::encode([Some(format!("d{i}").as_str()), None, i.is_multiple_of(2).then_some("\0")])
    }

    #[test]
    fn a_copy_stays_as_it_was_and_each_key_is_where_it_was_put() {
        let keys: Vec<SeriesKey> = (0..3 * BLOCK_KEYS + 5).map(key).collect();
        let mut all = SeriesKeys::default();
        let mut copies = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            if i % 500 == 0 || i % BLOCK_KEYS <= 1 {
                copies.push((all.clone(), i));
            }
            all.push(key);
        }
        copies.push((all.clone(), keys.len()));
        for (copy, len) in copies {
            assert_eq!(copy.len(), len);
            assert!(copy.iter().eq(keys.iter().take(len).map(SeriesKey::as_bytes)));
            assert_eq!(copy.get(len), None);
            assert_eq!(all.first(len), copy);
            assert_eq!(copy, keys.iter().take(len).cloned().collect());
        }
        assert_eq!(all.key(BLOCK_KEYS), Some(key(BLOCK_KEYS)));
        let tags: Vec<_> = all.tags(2).map(Result::unwrap).collect();
        assert_eq!(tags, [Some("d2".into()), None, Some("\0".into())]);
        assert_eq!(all.tags(keys.len()).count(), 0);
    }

    #[test]
    fn what_is_no_key_is_not_taken() {
        let mut keys = SeriesKeys::default();
        assert!(keys.push_bytes(&[2]).is_err() && keys.push_bytes(&[0]).is_err());
        keys.push_bytes(key(7).as_bytes()).unwrap();
        assert_eq!((keys.len(), keys.get(0)), (1, Some(key(7).as_bytes())));
    }
}
