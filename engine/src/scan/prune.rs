//! Decides, without touching a file, which sources a scan needs.

use std::sync::Arc;

use sonde_storage_format::{ColdFile, TimeRange, Timestamp};

use crate::catalog::Table;
use crate::memtable::PartitionBlocks;
use crate::scan::{ScanContext, TagFilter};
use crate::series::KeyOrder;
use crate::version::{Chunk, Version};

/// One layer of a group.
#[derive(Clone, Debug)]
pub(crate) enum Layer {
    Cold(Arc<ColdFile>),
    Chunk(Arc<Chunk>),
    Memory(Arc<PartitionBlocks>),
}

impl Layer {
    fn range(&self) -> TimeRange {
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
    let tests: Vec<(usize, &TagFilter)> = filters
        .iter()
        .filter_map(|filter| table.tag_index(filter.column).map(|index| (index, filter)))
        .collect();
    let passes = |id: &sonde_storage_format::SeriesId| {
        let mut tags: Vec<Option<String>> = order.key(*id).tags().map(|tag| tag.ok().flatten()).collect();
        let width = tests.iter().map(|(index, _)| index + 1).max().unwrap_or_default();
        tags.resize(tags.len().max(width), None);
        tests.iter().all(|(index, filter)| tags.get(*index).is_some_and(|tag| filter.values.contains(tag)))
    };
    Some(order.by_rank.iter().map(passes).collect())
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
