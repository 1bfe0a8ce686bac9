//! Which series have a tag value: per tag and value a set of handles.
//!
//! It is built when a tag filter first asks, and from then on takes in what was added since at each filter. So tables
//! that nobody filters cost no memory, neither recovery nor the writer's thread is slower for it, and whoever asks first
//! after a start pays once, about a microsecond for each series. Filters that name every tag do without it
//! (`scan/prune.rs`).
//!
//! # Invariants
//! - A value is not copied: it stands in the key of the first series that has it.
//! - What is not in `present` has no value of the tag; a tag that no key reaches to has no entry at all.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use roaring::RoaringBitmap;
use sonde_storage_format::SeriesKeys;

use crate::series_budget::tag_bytes;

/// A tag's place in the key, and the values that pass; `None` is absent.
pub(crate) type TagTest<'f> = (usize, &'f BTreeSet<Option<String>>);

/// The values of a table's tags.
#[derive(Default)]
pub(crate) struct TagIndex {
    /// Those that are in the index.
    keys: SeriesKeys,
    /// By the tag's place in the key.
    tags: Vec<TagValues>,
    hasher: RandomState,
    /// What the series that are in it were charged for it.
    charged: usize,
    measured: Measured,
}

/// What the index took when it was last measured.
#[derive(Default)]
struct Measured {
    series: usize,
    /// By how many bytes that was more than what was charged, if it was.
    beyond: isize,
}

#[derive(Default)]
struct TagValues {
    values: HashTable<Value>,
    /// The series that have a value.
    present: RoaringBitmap,
}

/// A value of a tag.
struct Value {
    /// The first series that has it.
    first: u32,
    /// The upper half of its hash: most other values are told apart, and all are moved, without a look at a key.
    hash: u32,
    /// All series that have it, where it is more than the first. A tag that names the device has one series a value.
    series: Option<Box<RoaringBitmap>>,
}

/// The hash by which the table places a value, made of the half that is kept.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn tag(keys: &SeriesKeys, handle: u32, place: usize) -> Option<Cow<'_, str>> {
    keys.tags(handle as usize).nth(place).and_then(|tag| tag.ok().flatten())
}

impl TagIndex {
    /// Whether it knows the first so many series.
    pub(crate) fn covers(&self, series: usize) -> bool {
        self.keys.len() >= series
    }

    /// Takes in the series that are new since it last did. Returns how many more bytes have to be charged for those that
    /// are in it: it is measured whenever they are an eighth more.
    pub(crate) fn extend(&mut self, keys: &SeriesKeys) -> isize {
        let known = self.keys.len();
        if keys.len() <= known {
            return 0;
        }
        self.keys = keys.clone();
        for handle in known..keys.len() {
            let mut tags = 0;
            for (place, value) in keys.tags(handle).enumerate() {
                let Some(value) = value.ok().flatten() else { continue };
                tags += 1;
                if self.tags.len() <= place {
                    self.tags.resize_with(place + 1, TagValues::default);
                }
                let hash = self.hash(&value);
                if let Some(values) = self.tags.get_mut(place) {
                    values.add(keys, place, handle as u32, &value, hash);
                }
            }
            self.charged += tag_bytes(tags);
        }
        if keys.len() < self.measured.series + self.measured.series / 8 {
            return 0;
        }
        // Where it is less, the charge stays: room that is there after a query, and not after a restart, helps nobody.
        let beyond = self.memory().saturating_sub(self.charged).cast_signed();
        let before = std::mem::replace(&mut self.measured, Measured { series: keys.len(), beyond });
        beyond - before.beyond
    }

    fn hash(&self, value: &str) -> u32 {
        (self.hasher.hash_one(value) >> 32) as u32
    }

    /// The series that pass every test.
    pub(crate) fn select(&self, tests: &[TagTest<'_>]) -> RoaringBitmap {
        let mut selected: Option<RoaringBitmap> = None;
        for (place, values) in tests {
            let passing = self.any_of(*place, values);
            selected = Some(match selected {
                Some(selected) => selected & passing,
                None => passing,
            });
        }
        selected.unwrap_or_else(|| self.all())
    }

    fn all(&self) -> RoaringBitmap {
        let mut all = RoaringBitmap::new();
        all.insert_range(0..self.keys.len() as u32);
        all
    }

    /// The series whose tag has one of these values.
    fn any_of(&self, place: usize, values: &BTreeSet<Option<String>>) -> RoaringBitmap {
        let tag = self.tags.get(place);
        let mut any = RoaringBitmap::new();
        for value in values {
            match (value, tag) {
                (Some(value), Some(tag)) => match tag.find(&self.keys, place, value, self.hash(value)) {
                    Some(Value { series: Some(series), .. }) => any |= series.as_ref(),
                    Some(Value { first, series: None, .. }) => drop(any.insert(*first)),
                    None => {}
                },
                (Some(_), None) => {}
                (None, Some(tag)) => any |= self.all() - &tag.present,
                (None, None) => any |= self.all(),
            }
        }
        any
    }

    /// About the bytes that it takes in memory, the keys excepted, which it shares.
    fn memory(&self) -> usize {
        let of_set = |set: &RoaringBitmap| {
            let facts = set.statistics();
            // Besides what a container holds: its own fields, and what the allocator adds.
            facts.n_bytes_array_containers
                + facts.n_bytes_bitset_containers
                + facts.n_bytes_run_containers
                + 48 * u64::from(facts.n_containers)
        };
        let sets = |tag: &TagValues| {
            let several = tag.values.iter().filter_map(|value| value.series.as_ref());
            (several.map(|series| 40 + of_set(series)).sum::<u64>() + of_set(&tag.present)) as usize
        };
        self.tags.iter().map(|tag| tag.values.allocation_size() + sets(tag)).sum()
    }
}

impl TagValues {
    fn find(&self, keys: &SeriesKeys, place: usize, value: &str, hash: u32) -> Option<&Value> {
        let same =
            |known: &Value| known.hash == hash && tag(keys, known.first, place).as_deref() == Some(value);
        self.values.find(spread(hash), same)
    }

    /// Adds a series, which is behind all that are in it.
    fn add(&mut self, keys: &SeriesKeys, place: usize, handle: u32, value: &str, hash: u32) {
        self.present.insert(handle);
        let same =
            |known: &Value| known.hash == hash && tag(keys, known.first, place).as_deref() == Some(value);
        match self.values.find_mut(spread(hash), same) {
            Some(known) => {
                let first = known.first;
                known.series.get_or_insert_with(|| Box::new(RoaringBitmap::from([first]))).insert(handle);
            }
            None => {
                let new = Value { first: handle, hash, series: None };
                self.values.insert_unique(spread(hash), new, |known| spread(known.hash));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sonde_storage_format::SeriesKey;

    use super::*;

    /// The filter as it is meant: each key, each tag.
    fn naive(keys: &SeriesKeys, tests: &[TagTest<'_>]) -> Vec<u32> {
        let passes = |handle: &u32| {
            let tags = keys.tags(*handle as usize).to_values(8);
            tests.iter().all(|(place, values)| values.contains(&tags.get(*place).cloned().flatten()))
        };
        (0..keys.len() as u32).filter(passes).collect()
    }

    fn value() -> impl Strategy<Value = Option<String>> {
        proptest::option::of(prop_oneof![Just(String::new()), "[ab\\x00é]{0,2}", "[0-9]{1,3}"])
    }

    proptest! {
        #[test]
        fn the_index_selects_what_the_keys_say(
            rows in proptest::collection::vec(proptest::collection::vec(value(), 0..4), 0..120),
            parts in proptest::collection::vec(0..120_usize, 0..4),
            filters in proptest::collection::vec(
                (0..6_usize, proptest::collection::btree_set(value(), 0..4)), 0..4),
        ) {
            let distinct: BTreeSet<SeriesKey> =
                rows.iter().map(|tags| SeriesKey::encode(tags.iter().map(Option::as_deref))).collect();
            // In no order, as handles are.
            let mut shuffled: Vec<SeriesKey> = distinct.into_iter().collect();
            shuffled.sort_by_key(|key| foldhash::fast::FixedState::default().hash_one(key));
            let keys: SeriesKeys = shuffled.into_iter().collect();
            let mut index = TagIndex::default();
            for part in parts.into_iter().chain([keys.len()]) {
                let part = keys.first(part.min(keys.len()));
                index.extend(&part);
                prop_assert!(index.covers(part.len()));
                let tests: Vec<TagTest<'_>> = filters.iter().map(|(place, values)| (*place, values)).collect();
                let found: Vec<u32> = index.select(&tests).iter().filter(|id| (*id as usize) < part.len()).collect();
                prop_assert_eq!(found, naive(&part, &tests));
            }
        }
    }

    /// Prints what a million series of three tags come to; the bound is what the documents say.
    #[test]
    fn memory_of_the_index_is_bounded() {
        let count = if std::env::var_os("SONDE_SERIES").is_some() { 1_000_000 } else { 50_000 };
        let key = |i: usize| {
            let (site, kind, device) =
                (format!("site-{}", i % 100), format!("kind-{}", i % 7), format!("device-{i:07}"));
            SeriesKey::encode([Some(site.as_str()), Some(kind.as_str()), Some(device.as_str())])
        };
        let keys: SeriesKeys = (0..count).map(key).collect();
        let mut index = TagIndex::default();
        let started = std::time::Instant::now();
        index.extend(&keys);
        let (built, per) = (started.elapsed(), |bytes: usize| bytes as f64 / count as f64);
        println!(
            "{count} series: keys {:.1} bytes each, index {:.1} bytes each, built in {built:?}",
            per(keys.memory()),
            per(index.memory())
        );
        assert!(per(index.memory()) < 60.0 && per(keys.memory()) < 48.0);
    }
}
