//! Decides, without touching a file, which sources a scan needs.

use std::sync::Arc;

use sonde_storage_format::{ColdFile, SeriesId, SeriesKey, TimeRange, Timestamp};

use crate::catalog::Table;
use crate::memtable::PartitionBlocks;
use crate::scan::{ScanContext, TagFilter};
use crate::series::KeyOrder;
use crate::tag_index::TagTest;
use crate::version::{Chunk, Version};

/// Keys that a filter of all tags may come to and are looked up one by one; from more on the index is asked.
const LOOKED_UP_KEYS: usize = 64;

/// One layer of a group.
#[derive(Clone, Debug)]
pub(crate) enum Layer {
    Cold(Arc<ColdFile>),
    Chunk(Arc<Chunk>),
    Memory(Arc<PartitionBlocks>),
}

impl Layer {
    pub(crate) fn range(&self) -> TimeRange {
        match self {
            Self::Cold(file) => file.day,
            Self::Chunk(chunk) => chunk.meta.range,
            Self::Memory(partition) => partition.range,
        }
    }
}

/// Sources that overlap in time, oldest first.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) layers: Vec<Layer>,
}

impl Group {
    pub(crate) fn rows(&self) -> u64 {
        let rows = |layer: &Layer| match layer {
            Layer::Cold(file) => file.rows,
            Layer::Chunk(chunk) => chunk.meta.rows,
            Layer::Memory(partition) => partition.blocks.iter().map(|block| block.rows() as u64).sum(),
        };
        self.layers.iter().map(rows).sum()
    }
}

/// By rank, whether a series passes every filter; `None` where there is no filter.
pub(crate) fn series(table: &Table, order: &KeyOrder, filters: &[TagFilter]) -> Option<Vec<bool>> {
    if filters.is_empty() {
        return None;
    }
    let tests: Vec<TagTest<'_>> = filters
        .iter()
        .filter_map(|filter| table.tag_index(filter.column).map(|place| (place, &filter.values)))
        .collect();
    let mut wanted = vec![false; order.len()];
    let mut want = |id: SeriesId| {
        // Those that came after the order have no row that the scan could see.
        if (id.0 as usize) < order.len()
            && let Some(slot) = wanted.get_mut(order.rank(id) as usize)
        {
            *slot = true;
        }
    };
    match whole_keys(table.tags().count(), &tests) {
        Some(keys) => keys.iter().filter_map(|key| table.series().lookup(key)).for_each(&mut want),
        None => {
            let selected = table.series().select(order.keys(), &tests);
            selected.iter().for_each(|id| want(SeriesId(id.into())));
        }
    }
    Some(wanted)
}

/// The keys that pass, where the tests name every tag once and a few values of each: they are looked up, so that a
/// single series is found without the index.
fn whole_keys(tags: usize, tests: &[TagTest<'_>]) -> Option<Vec<Vec<u8>>> {
    let mut by_place: Vec<&TagTest<'_>> = tests.iter().collect();
    by_place.sort_unstable_by_key(|(place, _)| *place);
    let names_all = by_place.iter().map(|(place, _)| *place).eq(0..tags);
    let count = tests.iter().try_fold(1, |count: usize, (_, values)| count.checked_mul(values.len()))?;
    if !names_all || count > LOOKED_UP_KEYS {
        return None;
    }
    let mut keys: Vec<Vec<Option<&str>>> = vec![Vec::new()];
    for (_, values) in by_place {
        let mut longer = Vec::with_capacity(keys.len() * values.len());
        for key in &keys {
            longer.extend(values.iter().map(|value| [key.as_slice(), &[value.as_deref()]].concat()));
        }
        keys = longer;
    }
    let encode = |key: Vec<Option<&str>>| {
        let mut bytes = Vec::new();
        SeriesKey::encode_into(key, &mut bytes);
        bytes
    };
    Some(keys.into_iter().map(encode).collect())
}

/// The layers that may hold rows of the scan's time range, in groups that do not overlap in time.
pub(crate) fn groups(version: &Version, context: &ScanContext) -> Vec<Group> {
    let table = context.table.id();
    let mut layers: Vec<(usize, Layer)> = Vec::new();
    if let Some(files) = version.files.get(&table) {
        let cold = files.cold.values().filter(|file| file.day.overlaps(&context.time));
        layers.extend(cold.map(|file| (0, Layer::Cold(Arc::clone(file)))));
        let mut chunks: Vec<&Arc<Chunk>> =
            files.chunks().filter(|chunk| may_hold(chunk, &context.time)).collect();
        chunks.sort_by_key(|chunk| chunk.meta.seq.first);
        layers.extend(chunks.into_iter().map(|chunk| (1, Layer::Chunk(Arc::clone(chunk)))));
    }
    for (age, memtable) in version.frozen.iter().map(Arc::as_ref).chain([&version.active]).enumerate() {
        let partitions = memtable.of_table(table).filter(|partition| partition.range.overlaps(&context.time));
        layers.extend(partitions.map(|partition| (2 + age, Layer::Memory(Arc::clone(partition)))));
    }
    into_groups(layers)
}

fn may_hold(chunk: &Chunk, time: &TimeRange) -> bool {
    let (first, last) = chunk.meta.times;
    first < time.end && time.start <= last
}

/// Sweeps over the layers by start of range; a group ends where no range reaches over.
fn into_groups(mut layers: Vec<(usize, Layer)>) -> Vec<Group> {
    let mut by_age: Vec<(usize, usize)> = layers.iter().enumerate().map(|(i, (age, _))| (*age, i)).collect();
    by_age.sort_unstable();
    let mut rank = vec![0; layers.len()];
    for (position, (_, i)) in by_age.into_iter().enumerate() {
        if let Some(slot) = rank.get_mut(i) {
            *slot = position;
        }
    }
    for ((age, _), rank) in layers.iter_mut().zip(rank) {
        *age = rank;
    }
    layers.sort_by_key(|(_, layer)| layer.range().start);
    let mut groups: Vec<Vec<(usize, Layer)>> = Vec::new();
    let mut reach = Timestamp::MIN;
    for (age, layer) in layers {
        let range = layer.range();
        match groups.last_mut() {
            Some(group) if range.start < reach => group.push((age, layer)),
            _ => groups.push(vec![(age, layer)]),
        }
        reach = reach.max(range.end);
    }
    let sorted = |mut group: Vec<(usize, Layer)>| {
        group.sort_by_key(|(age, _)| *age);
        Group { layers: group.into_iter().map(|(_, layer)| layer).collect() }
    };
    groups.into_iter().map(sorted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(start: i64, end: i64) -> Layer {
        let range = TimeRange { start: Timestamp::from_nanos(start), end: Timestamp::from_nanos(end) };
        Layer::Memory(Arc::new(PartitionBlocks::new(range)))
    }

    #[test]
    fn layers_that_overlap_share_a_group_oldest_first() {
        let groups =
            into_groups(vec![(2, layer(0, 10)), (0, layer(5, 30)), (1, layer(0, 10)), (2, layer(30, 40))]);
        let starts: Vec<Vec<i64>> =
            groups.iter().map(|g| g.layers.iter().map(|l| l.range().start.as_nanos()).collect()).collect();
        assert_eq!(starts, [vec![5, 0, 0], vec![30]]);
    }
}
