//! What is chosen of which chunks.

use sonde_storage_format::{ChunkId, ChunkMeta, SeqNo, SeqRange, TableId, TimeRange, Timestamp};

use super::{Outlook, choose, choose_all};
use crate::limits::{
    CELL_CHUNKS, CHUNK_ROWS, COMPACT_CHUNKS as FAN, DENSE_AGE, JOIN_ROWS, QUIET_AGE, SPLIT_ROWS, WIDE_AGE,
    WIDE_CHUNKS,
};

const DAY: i64 = 10;
/// Far behind everything, so that all is quiet.
const LATER: i64 = 1 << 62;

fn at(nanos: i64) -> Timestamp {
    Timestamp::from_nanos(nanos)
}

fn range(start: i64, end: i64) -> TimeRange {
    TimeRange { start: at(start), end: at(end) }
}

/// Chunks of (range, rows), each newer than the one before; named by their ids from 0 on.
fn chunks(chunks: &[(TimeRange, u64)]) -> Vec<ChunkMeta> {
    let meta = |(i, (range, rows)): (usize, &(TimeRange, u64))| {
        let seq = SeqNo(10 * i as u64 + 1);
        ChunkMeta {
            id: ChunkId(i as u64),
            table: TableId(1),
            range: *range,
            times: (range.start, at(range.end.as_nanos() - 1)),
            seq: SeqRange { first: seq, last: seq.plus(8) },
            rows: *rows,
            series: 1,
            bytes: *rows,
            columns: Vec::new(),
        }
    };
    chunks.iter().enumerate().map(meta).collect()
}

fn choice_at(metas: &[ChunkMeta], now: i64) -> Option<(Vec<u64>, Vec<TimeRange>)> {
    let since = |_: ChunkId| at(0);
    let outlook = Outlook { now: at(now), width: DAY, since: &since, in_memory: &[], thin: None };
    let choice = choose(&metas.iter().collect::<Vec<_>>(), &outlook, |_| true)?;
    Some((choice.chunks.iter().map(|id| id.0).collect(), choice.ranges))
}

/// What is merged while rows come.
fn busy(metas: &[(TimeRange, u64)]) -> Option<Vec<u64>> {
    choice_at(&chunks(metas), 0).map(|(ids, _)| ids)
}

fn quiet(metas: &[(TimeRange, u64)]) -> Option<Vec<u64>> {
    choice_at(&chunks(metas), LATER).map(|(ids, _)| ids)
}

#[test]
fn eight_of_like_size_are_merged() {
    let day = range(0, DAY);
    assert_eq!(busy(&[(day, 5000); 7]), None);
    assert_eq!(busy(&[(day, 5000); 8]), Some((0..8).collect()));
    // Small ones count alike: each is a file.
    let small: Vec<_> = (0..8).map(|i| (day, 1 + 100 * i)).collect();
    assert_eq!(busy(&small), Some((0..8).collect()));
    // A large old one stays out of it.
    let mut with_large = vec![(day, 40_001)];
    with_large.extend([(day, 5000); 8]);
    assert_eq!(busy(&with_large), Some((1..9).collect()));
    // The cell with the most.
    let mut two = vec![(day, 5000); 8];
    two.extend([(range(DAY, 2 * DAY), 5000); 9]);
    assert_eq!(busy(&two), Some((8..17).collect()));
}

#[test]
fn a_chunk_has_so_many_rows_and_no_more() {
    let day = range(0, DAY);
    assert_eq!(busy(&[(day, CHUNK_ROWS / 8); 8]), Some((0..8).collect()));
    assert_eq!(busy(&[(day, CHUNK_ROWS / 8 + 1); 8]), None);
    assert_eq!(quiet(&[(day, CHUNK_ROWS / 2 + 1); 2]), None);
    // Too many files, but none that fit together.
    assert_eq!(busy(&[(day, CHUNK_ROWS / 2 + 1); 40]), None);
    assert_eq!(busy(&[(day, CHUNK_ROWS / 2); 40]).unwrap().len(), 2);
}

/// Sizes of which none is like its neighbours.
#[test]
fn no_cell_has_too_many_chunks() {
    let day = range(0, DAY);
    let ruler = |i: u64| (day, 4096 << (2 * (i + 1).trailing_zeros().min(4)));
    let sizes: Vec<_> = (0..CELL_CHUNKS as u64).map(ruler).collect();
    assert_eq!(busy(&sizes).unwrap().len(), FAN);
    assert_eq!(busy(&sizes[..3]), None);
}

#[test]
fn what_is_quiet_is_merged_for_good_where_it_is_worth_it() {
    let day = range(0, DAY);
    assert_eq!(quiet(&[(day, 5000)]), None);
    assert_eq!(quiet(&[(day, 80_000), (day, 10_000)]), Some(vec![0, 1]), "an eighth of a small one");
    assert_eq!(quiet(&[(day, 80_001), (day, 9_999)]), None);
    let large = 8 * JOIN_ROWS;
    assert_eq!(quiet(&[(day, large), (day, large / 2 - 1)]), None);
    assert_eq!(quiet(&[(day, large), (day, large / 2)]), Some(vec![0, 1]), "half of a large one");
    // Late ones are merged among themselves.
    assert_eq!(quiet(&[(day, large), (day, 2000), (day, 2000)]), Some(vec![1, 2]));
}

#[test]
fn quiet_is_over_old_and_not_in_memory() {
    let metas = chunks(&[(range(0, DAY), 5000); 2]);
    let refs: Vec<&ChunkMeta> = metas.iter().collect();
    let age = QUIET_AGE.as_nanos() as i64;
    let chosen = |now: i64, since: i64, in_memory: &[TimeRange]| {
        let since = move |_: ChunkId| at(since);
        let outlook = Outlook { now: at(now), width: DAY, since: &since, in_memory, thin: None };
        choose(&refs, &outlook, |_| true).is_some()
    };
    assert!(chosen(age + 5, 5, &[range(DAY, 2 * DAY)]));
    assert!(!chosen(age + 4, 5, &[]), "it may go on");
    assert!(!chosen(age + 5, 5, &[range(DAY - 1, DAY)]), "it goes on");
    assert!(!chosen(DAY - 1, -2 * age, &[]), "it is not over");
}

#[test]
fn wide_chunks_are_split_among_the_partitions_below_them() {
    let (one, four, week) = (range(0, DAY), range(3 * DAY, 4 * DAY), range(0, 7 * DAY));
    let large = 10 * JOIN_ROWS;
    let mut all = vec![(one, large), (four, large)];
    all.extend([(week, 5000); WIDE_CHUNKS - 1]);
    assert_eq!(busy(&all), None);
    all.push((week, 5000));
    let (ids, ranges) = choice_at(&chunks(&all), 0).unwrap();
    assert_eq!(ids, (2..2 + WIDE_CHUNKS as u64).collect::<Vec<_>>());
    let between = [one, range(DAY, 3 * DAY), four, range(4 * DAY, 7 * DAY)];
    assert_eq!(ranges, between);
    // A few that lie there for long are as bad for readers.
    let rested = |rows: u64, age: u128| {
        let metas = chunks(&[(one, large), (four, large), (week, rows)]);
        choice_at(&metas, age as i64).map(|(ids, _)| ids)
    };
    let worth_it = 4 * SPLIT_ROWS;
    assert_eq!(rested(worth_it, QUIET_AGE.as_nanos()), Some(vec![2]));
    assert_eq!(rested(worth_it, QUIET_AGE.as_nanos() - 1), None);
    assert_eq!(rested(worth_it - 1, QUIET_AGE.as_nanos()), None, "not worth the files");
    assert_eq!(rested(1, WIDE_AGE.as_nanos()), Some(vec![2]), "nothing comes any more");
    // Only where there are rows.
    let mut metas = chunks(&[(one, large), (four, large), (week, 5)]);
    metas[2].times = (at(DAY + 1), at(2 * DAY));
    assert_eq!(choice_at(&metas, LATER).unwrap().1, [range(DAY, 3 * DAY)]);
}

/// Late rows that are as many as those that came in time are split and merged at once.
#[test]
fn a_mixed_cell_that_is_quiet_is_settled_at_once_where_it_is_worth_it() {
    let (one, two, week) = (range(0, DAY), range(DAY, 2 * DAY), range(0, 7 * DAY));
    let large = 10 * JOIN_ROWS;
    let settled = |late: u64| choice_at(&chunks(&[(one, large), (two, large), (week, late)]), LATER).unwrap();
    let parts = vec![one, two, range(2 * DAY, 7 * DAY)];
    assert_eq!(settled(large), (vec![0, 1, 2], parts.clone()));
    assert_eq!(settled(large - 1), (vec![2], parts));
    let busy = chunks(&[(one, large), (two, large), (week, large)]);
    assert_eq!(choice_at(&busy, QUIET_AGE.as_nanos() as i64 - 1), None);
}

/// In a mixed cell too: wide ones that are not worth a split, and narrow ones.
#[test]
fn chunks_of_one_range_are_merged_below_and_above_each_other() {
    let (day, other, week) = (range(0, DAY), range(DAY, 2 * DAY), range(0, 7 * DAY));
    let large = 10 * JOIN_ROWS;
    let mut all = vec![(day, large), (other, large)];
    all.extend([(week, 5); FAN - 1]);
    assert_eq!(busy(&all), None);
    all.push((week, 5));
    let choice = choice_at(&chunks(&all), 0).unwrap();
    assert_eq!(choice, ((2..2 + FAN as u64).collect(), vec![week]));
    let mut narrow = vec![(other, large), (week, 5)];
    narrow.extend([(day, large); 3]);
    narrow.extend([(day, 5000); FAN]);
    assert_eq!(busy(&narrow), Some((5..5 + FAN as u64).collect()));
    narrow.insert(9, (week, 5));
    assert_eq!(busy(&narrow), None, "one stands between them");
    // Where there are too many to wait, nothing has to be worth it.
    let mut apart = vec![(other, large)];
    for _ in 0..2 * WIDE_CHUNKS - 1 {
        apart.extend([(day, large / 10), (week, 5)]);
    }
    assert!(busy(&apart).is_none_or(|ids| ids.len() > 1));
    apart.push((week, 5));
    let (ids, ranges) = choice_at(&chunks(&apart), 0).unwrap();
    assert!(ids.len() == 2 && ranges.len() == 3, "{ids:?} {ranges:?}");
}

/// What stands between two wide chunks is newer than one of them and older than the other.
#[test]
fn a_run_ends_at_a_chunk_that_stands_between() {
    let (day, week) = (range(0, DAY), range(0, 7 * DAY));
    let large = 10 * JOIN_ROWS;
    let all = [(day, large), (week, 5), (week, 5), (day, large), (week, 5), (week, 5), (week, 5)];
    assert_eq!(quiet(&all), Some(vec![4, 5, 6]));
    assert_eq!(quiet(&all[..6]).unwrap().len(), 2);
    // One that stands elsewhere in time does not count.
    let other = [(day, large), (week, 5), (week, 5), (range(7 * DAY, 8 * DAY), large), (week, 5)];
    assert_eq!(quiet(&other), Some(vec![1, 2, 4]));
}

#[test]
fn a_large_partition_takes_in_a_few_narrow_rows() {
    let (day, week) = (range(0, DAY), range(0, 7 * DAY));
    let large = 10 * JOIN_ROWS;
    let mut all = vec![(week, large)];
    all.extend([(day, 5000); 8]);
    let (ids, ranges) = choice_at(&chunks(&all), 0).unwrap();
    assert_eq!((ids, ranges), ((1..9).collect(), vec![week]));
    // Many of them are not taken in: the large one is split.
    let split = choice_at(&chunks(&[(week, large), (day, large / 4)]), LATER).unwrap();
    assert_eq!(split, (vec![0, 1], vec![day, range(DAY, 7 * DAY)]));
}

/// The partitions were narrower once.
#[test]
fn small_chunks_of_one_partition_are_one_in_the_end() {
    let hour = |hour: i64| range(hour, hour + 1);
    let hours: Vec<_> = (0..5).map(|i| (hour(i), 5000)).collect();
    let (ids, ranges) = choice_at(&chunks(&hours), LATER).unwrap();
    assert_eq!((ids.len(), ranges), (5, vec![range(0, DAY)]));
    let large: Vec<_> = (0..5).map(|i| (hour(i), JOIN_ROWS / 4)).collect();
    assert_eq!(quiet(&large), None, "they are good as they are");
    // Of one flush: neither is newer.
    let mut metas = chunks(&hours[..2]);
    metas[1].seq = metas[0].seq;
    assert_eq!(choice_at(&metas, LATER).unwrap().0, [0, 1]);
}

#[test]
fn everything_becomes_one_chunk_for_each_partition() {
    let (day, week, later) = (range(0, DAY), range(0, 7 * DAY), range(DAY, 2 * DAY));
    let large = 10 * JOIN_ROWS;
    let all = chunks(&[(day, large), (day, 1), (later, large), (week, 5), (day, 1), (later, 1)]);
    let next = |metas: &[ChunkMeta]| {
        choose_all(&metas.iter().collect::<Vec<_>>(), DAY, |_| true)
            .map(|choice| choice.chunks.iter().map(|id| id.0).collect::<Vec<_>>())
    };
    assert_eq!(next(&all), Some(vec![0, 1, 2, 3, 4, 5]), "the wide one is split");
    let mut split = all.clone();
    split[3].range = range(2 * DAY, 7 * DAY);
    assert_eq!(next(&split), Some(vec![0, 1, 4]));
    let full = chunks(&[(day, CHUNK_ROWS), (later, large), (week, 5)]);
    assert_eq!(next(&full), Some(vec![2]), "alone, where all together is too much");
    assert_eq!(next(&chunks(&[(day, 5), (later, 5)])), None);
    let too_large = chunks(&[(day, CHUNK_ROWS / 2 + 1), (day, CHUNK_ROWS / 2 + 1)]);
    assert_eq!(next(&too_large), None);
}

#[test]
fn a_chunk_alone_is_rewritten_once_its_table_is_dense_and_it_is_old() {
    let metas = chunks(&[(range(0, DAY), 5000)]);
    let refs: Vec<&ChunkMeta> = metas.iter().collect();
    let since = |_: ChunkId| at(0);
    let chosen = |now: i64, thin: bool| {
        let thin = move |_: ChunkId| thin;
        let outlook = Outlook { now: at(now), width: DAY, since: &since, in_memory: &[], thin: Some(&thin) };
        choose(&refs, &outlook, |_| true).map(|choice| (choice.chunks, choice.ranges))
    };
    let old = DAY + DENSE_AGE.as_nanos() as i64;
    assert_eq!(chosen(old, true), Some((vec![ChunkId(0)], vec![range(0, DAY)])));
    assert_eq!(chosen(old - 1, true), None);
    assert_eq!(chosen(old, false), None);
}
