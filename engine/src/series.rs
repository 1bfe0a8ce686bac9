//! The series of a table: keys to dense handles. They belong to the catalog's `Table`, whose snapshots share them, so
//! they live as long as anyone can still read the table, dropped or not.
//!
//! # Invariants
//! - The writer thread alone allocates; a handle is logged before or with the first row that uses it.
//! - Handles are dense per table and never reused, so lists are indexed by them.
//! - Handles are no order: `KeyOrder` gives each its rank in key order.

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use parking_lot::RwLock;
use sonde_storage_format::{SeriesId, SeriesKey};

use crate::catalog::Table;
use crate::scan::TagFilter;

/// The series of one table.
#[derive(Default)]
pub(crate) struct TableSeries {
    inner: RwLock<Inner>,
    order: RwLock<Arc<KeyOrder>>,
}

impl std::fmt::Debug for TableSeries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TableSeries({})", self.len())
    }
}

#[derive(Debug, Default)]
struct Inner {
    keys: Vec<SeriesKey>,
    by_key: HashTable<u32>,
    hasher: RandomState,
}

/// The rank of each handle in key order, as of some moment; handles allocated later are missing.
#[derive(Debug, Default)]
pub(crate) struct KeyOrder {
    /// By handle.
    pub(crate) ranks: Vec<u32>,
    /// By rank.
    pub(crate) by_rank: Vec<SeriesId>,
    /// By handle.
    pub(crate) keys: Vec<SeriesKey>,
}

impl KeyOrder {
    /// The rank of a handle.
    pub(crate) fn rank(&self, id: SeriesId) -> u32 {
        let rank = self.ranks.get(id.0 as usize).copied();
        rank.unwrap_or_else(|| panic!("BUG: series {id} is not registered, {} are", self.ranks.len()))
    }

    /// The handle of a rank.
    pub(crate) fn id(&self, rank: u32) -> SeriesId {
        self.by_rank.get(rank as usize).copied().unwrap_or_default()
    }

    /// The key of a handle.
    pub(crate) fn key(&self, id: SeriesId) -> &SeriesKey {
        let key = self.keys.get(id.0 as usize);
        key.unwrap_or_else(|| panic!("BUG: series {id} is not registered, {} are", self.keys.len()))
    }
}

impl KeyOrder {
    /// The order of `keys`, which begin with this order's. Only the new ones are sorted, then both are merged.
    fn extended(&self, keys: Vec<SeriesKey>) -> Self {
        let key = |id: &SeriesId| keys.get(id.0 as usize);
        let mut new: Vec<SeriesId> = (self.ranks.len() as u64..keys.len() as u64).map(SeriesId).collect();
        new.sort_unstable_by_key(key);
        let mut by_rank = Vec::with_capacity(keys.len());
        let mut old = self.by_rank.as_slice();
        for id in new {
            let (before, behind) = old.split_at(old.partition_point(|known| key(known) < key(&id)));
            by_rank.extend_from_slice(before);
            by_rank.push(id);
            old = behind;
        }
        by_rank.extend_from_slice(old);
        let mut ranks = vec![0; keys.len()];
        for (rank, id) in by_rank.iter().enumerate() {
            if let Some(slot) = ranks.get_mut(id.0 as usize) {
                *slot = rank as u32;
            }
        }
        Self { ranks, by_rank, keys }
    }
}

impl TableSeries {
    /// Number of series.
    pub(crate) fn len(&self) -> usize {
        self.inner.read().keys.len()
    }

    /// The key of a handle.
    pub(crate) fn key(&self, id: SeriesId) -> Option<SeriesKey> {
        self.inner.read().keys.get(id.0 as usize).cloned()
    }

    /// The handle of a key.
    pub(crate) fn lookup(&self, key: &[u8]) -> Option<SeriesId> {
        self.inner.read().find(key)
    }

    /// Gives every key a handle; new keys, which must be distinct, come back for the log, from the first new handle on.
    pub(crate) fn allocate(&self, keys: &[SeriesKey]) -> (Vec<SeriesId>, Vec<SeriesKey>) {
        let mut inner = self.inner.write();
        let mut new = Vec::new();
        let mut ids = Vec::with_capacity(keys.len());
        for key in keys {
            ids.push(match inner.find(key.as_bytes()) {
                Some(id) => id,
                None => {
                    new.push(key.clone());
                    inner.push(key.clone())
                }
            });
        }
        (ids, new)
    }

    /// The series from handle `from` on that pass every filter, ascending.
    pub(crate) fn matching(&self, table: &Table, filters: &[TagFilter], from: usize) -> Vec<SeriesId> {
        let inner = self.inner.read();
        let new = inner.keys.iter().enumerate().skip(from);
        new.filter(|(_, key)| passes(table, key, filters)).map(|(id, _)| SeriesId(id as u64)).collect()
    }

    /// The first `count` keys, by handle.
    pub(crate) fn first_keys(&self, count: usize) -> Vec<SeriesKey> {
        self.inner.read().keys.iter().take(count).cloned().collect()
    }

    /// Registers a key under the handle that it had; handles that were registered already are passed over.
    pub(crate) fn restore(&self, id: SeriesId, key: &SeriesKey) {
        let mut inner = self.inner.write();
        let known = inner.keys.len() as u64;
        if id.0 < known {
            return;
        }
        assert_eq!(id.0, known, "series handles are restored without a gap");
        inner.push(key.clone());
    }

    /// The order of all series known now.
    pub(crate) fn order(&self) -> Arc<KeyOrder> {
        let cached = Arc::clone(&self.order.read());
        if cached.ranks.len() == self.len() {
            return cached;
        }
        let keys = self.inner.read().keys.clone();
        let order = Arc::new(cached.extended(keys));
        *self.order.write() = Arc::clone(&order);
        order
    }
}

/// Whether the series of a key passes every filter.
pub(crate) fn passes(table: &Table, key: &SeriesKey, filters: &[TagFilter]) -> bool {
    filters.iter().all(|filter| {
        let Some(place) = table.tag_index(filter.column) else { return true };
        // A tag that came later than the series is absent.
        let tag = key.tags().nth(place).and_then(|tag| tag.ok().flatten());
        filter.values.contains(&tag)
    })
}

impl Inner {
    fn find(&self, key: &[u8]) -> Option<SeriesId> {
        let hash = self.hasher.hash_one(key);
        let same = |id: &u32| self.keys.get(*id as usize).is_some_and(|known| known.as_bytes() == key);
        self.by_key.find(hash, same).map(|id| SeriesId((*id).into()))
    }

    fn push(&mut self, key: SeriesKey) -> SeriesId {
        let id = u32::try_from(self.keys.len()).unwrap_or_else(|_| panic!("BUG: 2^32 series in one table"));
        let hash = self.hasher.hash_one(key.as_bytes());
        self.keys.push(key);
        let (keys, hasher) = (&self.keys, &self.hasher);
        let rehash = |id: &u32| keys.get(*id as usize).map_or(0, |key| hasher.hash_one(key.as_bytes()));
        self.by_key.insert_unique(hash, id, rehash);
        SeriesId(id.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_dense_and_ranks_follow_the_keys() {
        let series = TableSeries::default();
        let key = |tag: &str| SeriesKey::encode([Some(tag)]);
        let (ids, new) = series.allocate(&[key("b"), key("a"), key("b")]);
        assert_eq!(ids, [SeriesId(0), SeriesId(1), SeriesId(0)]);
        assert_eq!(new, [key("b"), key("a")]);
        assert_eq!(series.order().ranks, [1, 0]);
        series.allocate(&[key("aa")]);
        let order = series.order();
        assert_eq!(order.by_rank, [SeriesId(1), SeriesId(2), SeriesId(0)]);
        assert_eq!(series.lookup(key("aa").as_bytes()), Some(SeriesId(2)));
    }
}
