//! The rows of a group commit: those that small batches bring for one table become one record of the log, and one block
//! of the memtable.
//!
//! # Invariants
//! - Rows of a table keep their order, and all rows their sequence numbers.

use sonde_storage_format::RowsRecord;

use crate::limits::COALESCE_ROWS;

/// Adds the rows of a batch to those of its group.
pub(crate) fn add(group: &mut Vec<RowsRecord>, rows: RowsRecord) {
    match group.iter_mut().rev().find(|known| known.table == rows.table) {
        Some(older) => match distance(older, &rows) {
            Some(distance) => join(older, rows, distance),
            None => group.push(rows),
        },
        None => group.push(rows),
    }
}

/// How far the sequence numbers of both are apart, if they can be one record.
fn distance(older: &RowsRecord, newer: &RowsRecord) -> Option<u32> {
    let ids = |rows: &RowsRecord| rows.columns.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    let is_small = older.times.len() + newer.times.len() <= COALESCE_ROWS;
    if !is_small || older.origin != newer.origin || ids(older) != ids(newer) {
        return None;
    }
    let distance = u32::try_from(newer.first_seq.0.checked_sub(older.first_seq.0)?).ok()?;
    let last = newer.seq_offsets.last().copied().unwrap_or_default();
    distance.checked_add(last).is_some().then_some(distance)
}

fn join(older: &mut RowsRecord, newer: RowsRecord, distance: u32) {
    older.seq_offsets.extend(newer.seq_offsets.iter().map(|offset| offset + distance));
    older.series.extend(newer.series);
    older.times.extend(newer.times);
    for ((_, column), (_, more)) in older.columns.iter_mut().zip(&newer.columns) {
        column.extend_from(more, 0..more.len());
    }
}

#[cfg(test)]
mod tests {
    use sonde_storage_format::{Cell, Column, ColumnId, Origin, SeqNo, SeriesId, TableId, Values};

    use super::*;

    fn rows(table: u32, seq: u64, values: &[i64]) -> RowsRecord {
        RowsRecord {
            table: TableId(table),
            origin: Origin::Client,
            first_seq: SeqNo(seq),
            seq_offsets: (0..values.len() as u32).collect(),
            series: vec![SeriesId(0); values.len()],
            times: values.to_vec(),
            columns: vec![(ColumnId(1), Column::of(Values::Int(values.to_vec())))],
        }
    }

    #[test]
    fn small_batches_of_one_table_become_one_record() {
        let mut group = Vec::new();
        let empty = RowsRecord { columns: vec![(ColumnId(1), null())], ..rows(1, 6, &[9]) };
        [rows(1, 1, &[5, 6]), rows(2, 3, &[7]), rows(1, 4, &[8, 8]), empty].into_iter().for_each(|rows| {
            add(&mut group, rows);
        });
        let mut both = rows(1, 1, &[5, 6, 8, 8, 9]);
        both.seq_offsets = vec![0, 1, 3, 4, 5];
        both.columns = vec![(ColumnId(1), Column::of(Values::Int(vec![5, 6, 8, 8])))];
        both.columns.iter_mut().for_each(|(_, column)| column.push_empty(Cell::Null, 1));
        assert_eq!(group, [both, rows(2, 3, &[7])]);
    }

    fn null() -> Column {
        let mut column = Column::of(Values::Int(Vec::new()));
        column.push_empty(Cell::Null, 1);
        column
    }

    #[test]
    fn what_differs_or_is_large_stays_apart() {
        let other = RowsRecord { columns: vec![(ColumnId(2), null())], ..rows(1, 2, &[9]) };
        let rule = RowsRecord { origin: Origin::Rule(1), ..rows(1, 2, &[9]) };
        let far = rows(1, 2 + u64::from(u32::MAX), &[9]);
        let large = rows(1, 2, &vec![1; COALESCE_ROWS]);
        for newer in [other, rule, far, large] {
            let mut group = vec![rows(1, 1, &[5])];
            add(&mut group, newer.clone());
            assert_eq!(group, [rows(1, 1, &[5]), newer]);
        }
    }
}
