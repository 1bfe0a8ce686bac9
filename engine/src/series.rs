//! The series of a table: keys to dense handles. They belong to the catalog's `Table`, whose snapshots share them, so
//! they live as long as anyone can still read the table, dropped or not.
//!
//! # Invariants
//! - The writer thread alone allocates; a handle is logged before or with the first row that uses it.
//! - Handles are dense per table and never reused, so lists are indexed by them.
//! - Handles are no order: `KeyOrder` gives each its rank in key order.
//! - What the series take in memory is in the account of the engine for as long as they are in memory.

use std::borrow::Cow;
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use parking_lot::RwLock;
use roaring::RoaringBitmap;
use sonde_storage_format::{SeriesId, SeriesKey, SeriesKeys, Tags};

use crate::catalog::Table;
use crate::newest::NewestInFiles;
use crate::scan::TagFilter;
use crate::series_budget::{Charged, SeriesBudget};
use crate::tag_index::{TagIndex, TagTest};

/// The series of one table.
#[derive(Default)]
pub(crate) struct TableSeries {
    inner: RwLock<Inner>,
    order: RwLock<Arc<KeyOrder>>,
    index: RwLock<TagIndex>,
    newest: RwLock<NewestInFiles>,
    charged: Charged,
}

impl std::fmt::Debug for TableSeries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TableSeries({})", self.len())
    }
}

#[derive(Debug, Default)]
struct Inner {
    keys: SeriesKeys,
    by_key: HashTable<u32>,
    hasher: RandomState,
}

/// The rank of each handle in key order, as of some moment; handles allocated later are missing.
#[derive(Debug, Default)]
pub(crate) struct KeyOrder {
    /// By handle.
    ranks: Vec<u32>,
    /// Handles by rank.
    by_rank: Vec<u32>,
    /// By handle; shared with the table's.
    keys: SeriesKeys,
}

impl KeyOrder {
    /// How many series there are.
    pub(crate) fn len(&self) -> usize {
        self.ranks.len()
    }

    /// The rank of a handle.
    pub(crate) fn rank(&self, id: SeriesId) -> u32 {
        let rank = self.ranks.get(id.0 as usize).copied();
        rank.unwrap_or_else(|| panic!("BUG: series {id} is not registered, {} are", self.ranks.len()))
    }

    /// The handle of a rank.
    pub(crate) fn id(&self, rank: u32) -> SeriesId {
        SeriesId(self.by_rank.get(rank as usize).copied().unwrap_or_default().into())
    }

    /// The key of a handle.
    pub(crate) fn key(&self, id: SeriesId) -> SeriesKey {
        let key = self.keys.key(id.0 as usize);
        key.unwrap_or_else(|| panic!("BUG: series {id} is not registered, {} are", self.keys.len()))
    }

    /// The keys of all handles.
    pub(crate) fn keys(&self) -> &SeriesKeys {
        &self.keys
    }

    /// The order of `keys`, which begin with this order's. Only the new ones are sorted, then both are merged.
    fn extended(&self, keys: SeriesKeys) -> Self {
        let key = |id: &u32| keys.get(*id as usize);
        let new = sorted(&keys, self.ranks.len() as u32);
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
            if let Some(slot) = ranks.get_mut(*id as usize) {
                *slot = rank as u32;
            }
        }
        Self { ranks, by_rank, keys }
    }
}

/// The handles from `first` on in the order of their keys. What the keys have in common is passed over, and the eight
/// bytes behind it decide most comparisons without a look at the keys, which lie all over the memory.
fn sorted(keys: &SeriesKeys, first: u32) -> Vec<u32> {
    let key = |id: u32| keys.get(id as usize).unwrap_or_default();
    let same = |a: &[u8], b: &[u8]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let common = (first..keys.len() as u32).map(|id| same(key(first), key(id))).min().unwrap_or_default();
    let head = |id: u32| {
        let mut head = [0; 8];
        let rest = key(id).get(common..).unwrap_or_default();
        head.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        u64::from_be_bytes(head)
    };
    let mut heads: Vec<(u64, u32)> = (first..keys.len() as u32).map(|id| (head(id), id)).collect();
    heads.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| key(a.1).cmp(key(b.1))));
    heads.into_iter().map(|(_, id)| id).collect()
}

impl TableSeries {
    /// The series of a new table, in this account.
    pub(crate) fn new(budget: &Arc<SeriesBudget>) -> Self {
        Self { charged: Charged::new(budget), ..Self::default() }
    }

    /// The account that they are in.
    pub(crate) fn budget(&self) -> &Arc<SeriesBudget> {
        self.charged.budget()
    }

    /// Number of series.
    pub(crate) fn len(&self) -> usize {
        self.inner.read().keys.len()
    }

    /// The first `tags` tag values of a handle.
    pub(crate) fn tags(&self, id: SeriesId, tags: usize) -> Vec<Option<String>> {
        let inner = self.inner.read();
        inner.keys.tags(id.0 as usize).to_values(tags)
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
                    self.charged.add_series(key.as_bytes());
                    inner.push(key)
                }
            });
        }
        (ids, new)
    }

    /// The series from handle `from` on that pass every filter, ascending: for the few that are new.
    pub(crate) fn matching(&self, table: &Table, filters: &[TagFilter], from: usize) -> Vec<SeriesId> {
        let inner = self.inner.read();
        let new = inner.keys.iter().enumerate().skip(from);
        new.filter(|(_, key)| passes(table, key, filters)).map(|(id, _)| SeriesId(id as u64)).collect()
    }

    /// The first `count` keys, by handle.
    pub(crate) fn first_keys(&self, count: usize) -> SeriesKeys {
        self.inner.read().keys.first(count)
    }

    /// Registers a key under the handle that it had; handles that were registered already are passed over.
    pub(crate) fn restore(&self, id: SeriesId, key: &SeriesKey) {
        let mut inner = self.inner.write();
        let known = inner.keys.len() as u64;
        if id.0 < known {
            return;
        }
        assert_eq!(id.0, known, "series handles are restored without a gap");
        inner.push(key);
        self.charged.add_series(key.as_bytes());
    }

    /// Registers all keys of a table that has none yet, by handle from 0 on.
    pub(crate) fn restore_all(&self, keys: &SeriesKeys) {
        let mut inner = self.inner.write();
        assert!(inner.keys.is_empty(), "a checkpoint names the series of a table once");
        inner.fill(keys);
        keys.iter().for_each(|key| self.charged.add_series(key));
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

    /// The handles of the series that pass every test; some that came after `keys` may be among them.
    pub(crate) fn select(&self, keys: &SeriesKeys, tests: &[TagTest<'_>]) -> RoaringBitmap {
        let index = self.index.read();
        if index.covers(keys.len()) {
            return index.select(tests);
        }
        drop(index);
        let mut index = self.index.write();
        self.charged.add(index.extend(keys));
        index.select(tests)
    }

    /// What is known of the newest times in files.
    pub(crate) fn newest(&self) -> &RwLock<NewestInFiles> {
        &self.newest
    }
}

/// Whether the series of a key passes every filter.
fn passes(table: &Table, key: &[u8], filters: &[TagFilter]) -> bool {
    filters.iter().all(|filter| {
        let Some(place) = table.tag_index(filter.column) else { return true };
        // A tag that came later than the series is absent.
        let tag = Tags::of(key).nth(place).and_then(|tag| tag.ok().flatten());
        filter.values.contains(&tag.map(Cow::into_owned))
    })
}

impl Inner {
    fn find(&self, key: &[u8]) -> Option<SeriesId> {
        let hash = self.hasher.hash_one(key);
        let same = |id: &u32| self.keys.get(*id as usize) == Some(key);
        self.by_key.find(hash, same).map(|id| SeriesId((*id).into()))
    }

    fn push(&mut self, key: &SeriesKey) -> SeriesId {
        let id = u32::try_from(self.keys.len()).unwrap_or_else(|_| panic!("BUG: 2^32 series in one table"));
        self.keys.push(key);
        self.place(id);
        SeriesId(id.into())
    }

    /// Takes over keys where there are none.
    fn fill(&mut self, keys: &SeriesKeys) {
        let count = u32::try_from(keys.len()).unwrap_or_else(|_| panic!("BUG: 2^32 series in one table"));
        self.keys = keys.clone();
        self.by_key = HashTable::with_capacity(keys.len());
        (0..count).for_each(|id| self.place(id));
    }

    /// Makes a key that was added findable.
    fn place(&mut self, id: u32) {
        let (keys, hasher) = (&self.keys, &self.hasher);
        let hash = |id: &u32| hasher.hash_one(keys.get(*id as usize).unwrap_or_default());
        self.by_key.insert_unique(hash(&id), id, hash);
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
        assert_eq!(order.by_rank, [1, 2, 0]);
        assert_eq!(series.lookup(key("aa").as_bytes()), Some(SeriesId(2)));
    }

    #[test]
    fn keys_sort_by_their_bytes_whatever_they_have_in_common() {
        let tags = [
            "device-",
            "device-1",
            "device-10",
            "device-\0",
            "device-\0\0",
            "device-2",
            "d",
            "device-1234567890",
        ];
        for common in ["", "site-with-a-long-name-"] {
            let keys: Vec<SeriesKey> =
                tags.iter().map(|tag| SeriesKey::encode([Some(format!("{common}{tag}").as_str())])).collect();
            let series = TableSeries::default();
            for part in keys.chunks(3) {
                series.allocate(part);
                let order = series.order();
                let mut expected: Vec<u32> = (0..order.len() as u32).collect();
                expected.sort_by_key(|id| keys.get(*id as usize));
                assert_eq!(order.by_rank, expected);
            }
            let restored = TableSeries::default();
            restored.restore_all(&series.first_keys(tags.len()));
            assert_eq!(restored.order().by_rank, series.order().by_rank);
            assert!(keys.iter().all(|key| restored.lookup(key.as_bytes()) == series.lookup(key.as_bytes())));
        }
    }
}
