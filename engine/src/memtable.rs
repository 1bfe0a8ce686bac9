//! Rows that are durable in the log and not yet in a chunk: per table and time range a list of immutable blocks.
//!
//! # Invariants
//! - Blocks of a partition stand in log order, rows of a block too; there is no identity look-up on write.
//! - A clone is a copied list: readers never lock and never see a half commit.
//! - A table's partitions have one width in one memtable, so no two of them overlap; a new width waits for the next.

use std::collections::BTreeMap;
use std::sync::Arc;

use sonde_storage_format::{
    Column, ColumnId, RowsRecord, SeqNo, SeqRange, SeriesId, TableId, TimeRange, Timestamp,
};

use crate::limits::COALESCE_ROWS;
use crate::mask::Mask;

/// What a chunk takes in an edit of the manifest: its fixed fields, and each column with lengths of middling size.
const CHUNK_EDIT_BYTES: usize = 128;
const COLUMN_EDIT_BYTES: usize = 27;

/// Rows of one table and partition, in log order.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) seq: SeqRange,
    /// The first and the last time of its rows, in whatever order they stand.
    pub(crate) first: Timestamp,
    pub(crate) last: Timestamp,
    pub(crate) series: Vec<SeriesId>,
    pub(crate) times: Vec<i64>,
    pub(crate) columns: Vec<(ColumnId, Column)>,
}

impl Block {
    fn new(seq: SeqRange, series: Vec<SeriesId>, times: Vec<i64>, columns: Vec<(ColumnId, Column)>) -> Self {
        let (first, last) = times
            .iter()
            .fold((i64::MAX, i64::MIN), |(first, last), time| (first.min(*time), last.max(*time)));
        let (first, last) = (Timestamp::from_nanos(first), Timestamp::from_nanos(last));
        Self { seq, first, last, series, times, columns }
    }

    pub(crate) fn rows(&self) -> usize {
        self.times.len()
    }

    fn bytes(&self) -> usize {
        16 * self.rows() + self.columns.iter().map(|(_, column)| column.byte_len()).sum::<usize>() + 128
    }

    fn hit_rows(&self, mask: &Mask) -> impl Iterator<Item = bool> {
        let points = self.series.iter().zip(&self.times);
        points.map(|(series, time)| mask.hides(*series, Timestamp::from_nanos(*time)))
    }

    /// Whether the mask names a row of it.
    fn is_hit(&self, mask: &Mask) -> bool {
        mask.reaches(self.first, self.last) && self.hit_rows(mask).any(|hit| hit)
    }

    /// The block without the rows that a mask hides; `None` where there is none of them.
    fn without(&self, mask: &Mask) -> Option<Self> {
        if !mask.reaches(self.first, self.last) {
            return None;
        }
        let kept: Vec<usize> =
            self.hit_rows(mask).enumerate().filter(|(_, hit)| !hit).map(|(row, _)| row).collect();
        (kept.len() < self.rows()).then(|| {
            Self::new(
                self.seq,
                kept.iter().filter_map(|&row| self.series.get(row).copied()).collect(),
                kept.iter().filter_map(|&row| self.times.get(row).copied()).collect(),
                self.columns.iter().map(|(id, column)| (*id, column.gather(&kept))).collect(),
            )
        })
    }

    pub(crate) fn column(&self, id: ColumnId) -> Option<&Column> {
        self.columns.iter().find(|(known, _)| *known == id).map(|(_, column)| column)
    }

    /// Whether the columns that both have are of one type: an integer column may have been widened between them.
    fn has_types_of(&self, other: &Self) -> bool {
        let same = |(id, column): &(ColumnId, Column)| {
            self.column(*id).is_none_or(|mine| mine.values.kind() == column.values.kind())
        };
        other.columns.iter().all(same)
    }

    /// Both blocks as one; `newer` holds the later rows.
    fn join(older: &Self, newer: &Self) -> Self {
        let rows = older.rows() + newer.rows();
        let mut columns: Vec<(ColumnId, Column)> = older.columns.clone();
        for (id, column) in &mut columns {
            match newer.column(*id) {
                Some(more) => column.extend_from(more, 0..more.len()),
                None => column.push_empty(sonde_storage_format::Cell::Absent, newer.rows()),
            }
        }
        for (id, more) in &newer.columns {
            if older.column(*id).is_none() {
                let mut column = Column::absent(more.values.kind(), older.rows());
                column.extend_from(more, 0..more.len());
                columns.push((*id, column));
            }
        }
        let mut series = Vec::with_capacity(rows);
        series.extend_from_slice(&older.series);
        series.extend_from_slice(&newer.series);
        let mut times = Vec::with_capacity(rows);
        times.extend_from_slice(&older.times);
        times.extend_from_slice(&newer.times);
        Self::new(older.seq.union(newer.seq), series, times, columns)
    }
}

/// The blocks of one table and time range.
#[derive(Clone, Debug)]
pub(crate) struct PartitionBlocks {
    pub(crate) range: TimeRange,
    pub(crate) blocks: Vec<Arc<Block>>,
    /// The columns that the blocks have between them, ascending.
    columns: Vec<ColumnId>,
}

impl PartitionBlocks {
    /// No rows yet.
    pub(crate) fn new(range: TimeRange) -> Self {
        Self { range, blocks: Vec::new(), columns: Vec::new() }
    }

    fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.bytes()).sum()
    }

    pub(crate) fn rows(&self) -> usize {
        self.blocks.iter().map(|block| block.rows()).sum()
    }

    /// The same without the blocks that have no row from `start` on.
    pub(crate) fn from(&self, start: Timestamp) -> Self {
        let mut part = self.clone();
        part.blocks.retain(|block| block.last >= start);
        part
    }

    /// About what the chunk of these rows takes in an edit of the manifest.
    fn edit_bytes(&self) -> usize {
        if self.blocks.is_empty() {
            return 0;
        }
        // One more column: the time.
        CHUNK_EDIT_BYTES + COLUMN_EDIT_BYTES * (self.columns.len() + 1)
    }

    /// Whether every row of it was written before `seq`.
    pub(crate) fn is_older_than(&self, seq: SeqNo) -> bool {
        self.blocks.iter().all(|block| block.seq.last < seq)
    }

    fn note_columns(&mut self, block: &Block) {
        for (id, _) in &block.columns {
            if let Err(place) = self.columns.binary_search(id) {
                self.columns.insert(place, *id);
            }
        }
    }
}

/// A snapshot of the rows in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memtable {
    partitions: BTreeMap<(TableId, Timestamp), Arc<PartitionBlocks>>,
    /// The width of each table's partitions, as it was when the table's first rows came.
    widths: BTreeMap<TableId, i64>,
    pub(crate) bytes: usize,
    pub(crate) rows: usize,
    /// About the bytes of the manifest edit that a flush of it comes to.
    pub(crate) edit_bytes: usize,
    /// The first and the last sequence number in it.
    pub(crate) seq: Option<SeqRange>,
    /// Rows up to here and rows behind it are never in one block, so that a change can tell them apart.
    fence: SeqNo,
}

impl Memtable {
    pub(crate) fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// The partitions of a table, in time order.
    pub(crate) fn of_table(&self, table: TableId) -> impl Iterator<Item = &Arc<PartitionBlocks>> {
        self.partitions
            .range((table, Timestamp::MIN)..=(table, Timestamp::MAX))
            .map(|(_, partition)| partition)
    }

    /// All partitions, by table and time.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = (TableId, &Arc<PartitionBlocks>)> {
        self.partitions.iter().map(|((table, _), partition)| (*table, partition))
    }

    /// Removes the rows of a table that was dropped.
    pub(crate) fn drop_table(&mut self, table: TableId) {
        self.widths.remove(&table);
        self.partitions.retain(|(known, _), _| *known != table);
        let blocks = || self.partitions.values().flat_map(|partition| &partition.blocks);
        (self.bytes, self.rows) =
            (blocks().map(|block| block.bytes()).sum(), blocks().map(|block| block.rows()).sum());
        self.edit_bytes = self.partitions.values().map(|partition| partition.edit_bytes()).sum();
    }

    /// Keeps the rows of later commits apart from those up to `seq`.
    pub(crate) fn fence(&mut self, seq: SeqNo) {
        self.fence = seq;
    }

    /// Removes the rows that a mask hides, all of which are older than it.
    pub(crate) fn hide(&mut self, table: TableId, mask: &Mask) {
        let reached = |partition: &PartitionBlocks| mask.reaches(partition.range.start, partition.range.end);
        let hit: Vec<Timestamp> =
            self.of_table(table).filter(|partition| reached(partition)).map(|p| p.range.start).collect();
        for start in hit {
            let Some(partition) = self.partitions.get_mut(&(table, start)) else { continue };
            let kept: Vec<Option<Block>> = partition.blocks.iter().map(|block| block.without(mask)).collect();
            if kept.iter().all(Option::is_none) {
                continue;
            }
            let partition = Arc::make_mut(partition);
            (self.edit_bytes, self.bytes, self.rows) = (
                self.edit_bytes - partition.edit_bytes(),
                self.bytes - partition.bytes(),
                self.rows - partition.rows(),
            );
            for (block, kept) in partition.blocks.iter_mut().zip(kept) {
                if let Some(kept) = kept {
                    *block = Arc::new(kept);
                }
            }
            partition.blocks.retain(|block| block.rows() > 0);
            (self.edit_bytes, self.bytes, self.rows) = (
                self.edit_bytes + partition.edit_bytes(),
                self.bytes + partition.bytes(),
                self.rows + partition.rows(),
            );
            if partition.blocks.is_empty() {
                self.partitions.remove(&(table, start));
            }
        }
    }

    /// Whether one of the points was written behind `seq`.
    pub(crate) fn has_since(&self, table: TableId, seq: SeqNo, mask: &Mask) -> bool {
        let blocks = self.of_table(table).flat_map(|partition| &partition.blocks);
        blocks.filter(|block| block.seq.last > seq).any(|block| block.is_hit(mask))
    }

    /// Adds rows; `width` is the width in nanoseconds that the table's partitions should have.
    pub(crate) fn insert(&mut self, rows: RowsRecord, width: i64) {
        let last = rows.seq_offsets.last().copied().unwrap_or_default();
        let seq = SeqRange { first: rows.first_seq, last: rows.first_seq.plus(last.into()) };
        self.seq = Some(self.seq.map_or(seq, |known| known.union(seq)));
        let Some(&first) = rows.times.first() else { return };
        let width = *self.widths.entry(rows.table).or_insert(width);
        let range = TimeRange::aligned(Timestamp::from_nanos(first), width);
        let table = rows.table;
        if rows.times.iter().all(|time| range.contains(Timestamp::from_nanos(*time))) {
            return self.push(table, range, Block::new(seq, rows.series, rows.times, rows.columns));
        }
        for (start, picked) in by_partition(&rows.times, width) {
            let range = TimeRange::aligned(start, width);
            let block = Block::new(
                seq_of(&rows, &picked),
                picked.iter().filter_map(|&row| rows.series.get(row).copied()).collect(),
                picked.iter().filter_map(|&row| rows.times.get(row).copied()).collect(),
                rows.columns.iter().map(|(id, column)| (*id, column.gather(&picked))).collect(),
            );
            self.push(table, range, block);
        }
    }

    fn push(&mut self, table: TableId, range: TimeRange, block: Block) {
        self.rows += block.rows();
        let partition = self
            .partitions
            .entry((table, range.start))
            .or_insert_with(|| Arc::new(PartitionBlocks::new(range)));
        let partition = Arc::make_mut(partition);
        self.edit_bytes -= partition.edit_bytes();
        partition.note_columns(&block);
        let blocks = &mut partition.blocks;
        let mut block = block;
        // Neighbours of like size are joined, so a row is copied a logarithmic number of times.
        while let Some(last) = blocks.last() {
            if last.seq.last <= self.fence
                || !last.has_types_of(&block)
                || last.rows() > 2 * block.rows()
                || last.rows() + block.rows() > COALESCE_ROWS
            {
                break;
            }
            self.bytes -= last.bytes();
            block = Block::join(last, &block);
            blocks.pop();
        }
        self.bytes += block.bytes();
        blocks.push(Arc::new(block));
        self.edit_bytes += partition.edit_bytes();
    }
}

fn by_partition(times: &[i64], width: i64) -> BTreeMap<Timestamp, Vec<usize>> {
    let mut groups: BTreeMap<Timestamp, Vec<usize>> = BTreeMap::new();
    for (row, &time) in times.iter().enumerate() {
        let start = TimeRange::aligned(Timestamp::from_nanos(time), width).start;
        groups.entry(start).or_default().push(row);
    }
    groups
}

fn seq_of(rows: &RowsRecord, picked: &[usize]) -> SeqRange {
    let at = |row: Option<&usize>| -> SeqNo {
        let offset = row.and_then(|row| rows.seq_offsets.get(*row)).copied().unwrap_or_default();
        rows.first_seq.plus(offset.into())
    };
    SeqRange { first: at(picked.first()), last: at(picked.last()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sonde_storage_format::Values;

    fn rows(seq: u64, times: &[i64]) -> RowsRecord {
        RowsRecord {
            table: TableId(1),
            origin: sonde_storage_format::Origin::Client,
            first_seq: SeqNo(seq),
            seq_offsets: (0..times.len() as u32).collect(),
            series: vec![SeriesId(0); times.len()],
            times: times.to_vec(),
            columns: vec![(ColumnId(1), Column::of(Values::Int(times.to_vec())))],
        }
    }

    #[test]
    fn rows_go_to_their_partition_in_log_order() {
        let mut memtable = Memtable::default();
        memtable.insert(rows(1, &[5, 15, 6]), 10);
        memtable.insert(rows(4, &[7]), 10);
        let partitions: Vec<_> = memtable.of_table(TableId(1)).collect();
        let times = |p: &PartitionBlocks| p.blocks.iter().flat_map(|b| b.times.clone()).collect::<Vec<_>>();
        assert_eq!(partitions.iter().map(|p| times(p)).collect::<Vec<_>>(), [vec![5, 6, 7], vec![15]]);
        assert_eq!(memtable.seq, Some(SeqRange { first: SeqNo(1), last: SeqNo(4) }));
    }

    #[test]
    fn the_size_of_the_edit_grows_with_partitions_and_columns() {
        let mut memtable = Memtable::default();
        let of = |columns: usize| CHUNK_EDIT_BYTES + COLUMN_EDIT_BYTES * (columns + 1);
        memtable.insert(rows(1, &[5, 15, 6]), 10);
        assert_eq!(memtable.edit_bytes, 2 * of(1));
        memtable.insert(rows(4, &[7, 17]), 10);
        assert_eq!(memtable.edit_bytes, 2 * of(1), "rows alone do not count");
        let mut other = rows(6, &[8]);
        other.columns.push((ColumnId(9), Column::of(Values::Int(vec![1]))));
        memtable.insert(other, 10);
        assert_eq!(memtable.edit_bytes, of(1) + of(2));
        memtable.insert(RowsRecord { table: TableId(2), ..rows(7, &[1]) }, 10);
        assert_eq!(memtable.edit_bytes, 2 * of(1) + of(2));
        memtable.drop_table(TableId(1));
        assert_eq!(memtable.edit_bytes, of(1));
    }

    #[test]
    fn single_rows_are_joined_and_a_snapshot_stays_as_it_was() {
        let mut memtable = Memtable::default();
        for i in 0..100 {
            memtable.insert(rows(1 + i, &[i.cast_signed()]), 1000);
        }
        let before = memtable.clone();
        memtable.insert(rows(101, &[100]), 1000);
        let count =
            |m: &Memtable| m.of_table(TableId(1)).flat_map(|p| &p.blocks).map(|b| b.rows()).sum::<usize>();
        assert_eq!((count(&before), count(&memtable)), (100, 101));
        let blocks = memtable.of_table(TableId(1)).map(|p| p.blocks.len()).sum::<usize>();
        assert!(blocks <= 8, "{blocks} blocks for 101 single rows");
    }
}
