//! The log as a feed of changes.

use std::sync::Arc;
use std::time::Duration;

use sonde_engine::{Engine, LogReader, RowsRecord, SeqNo, SeqRange, TableId, Values};

use crate::data::{Batch, DAY, Rec, START, Value, create, put, rec, table, write};
use crate::faults::Faulty;
use crate::store::Store;

fn row(i: i64) -> Rec {
    rec(
        &[("device", &format!("d{}", i % 3))],
        START + i,
        &[("i", Value::Int(i)), ("s", Value::text("text of a row"))],
    )
}

/// Sequence number and value of each row.
fn ints(rows: &[RowsRecord]) -> Vec<(u64, i64)> {
    let of = |rows: &RowsRecord| {
        let ints = rows.columns.iter().find_map(|(_, column)| match &column.values {
            Values::Int(values) => Some(values.clone()),
            _ => None,
        });
        let seqs: Vec<u64> =
            rows.seq_offsets.iter().map(|offset| rows.first_seq.plus((*offset).into()).0).collect();
        assert!(rows.times.len() == seqs.len() && rows.series.len() == seqs.len());
        seqs.into_iter().zip(ints.unwrap()).collect::<Vec<_>>()
    };
    rows.iter().flat_map(of).collect()
}

/// Reads to the end: the rows, and what was lost.
fn read_on(engine: &Engine, reader: &mut LogReader) -> (Vec<(u64, i64)>, Vec<SeqRange>) {
    let (mut rows, mut lost) = (Vec::new(), Vec::new());
    while reader.position() < engine.published() {
        let before = reader.position();
        let turn = engine.read_log(reader, |_| true).unwrap();
        assert_eq!(turn.position, reader.position());
        assert!(turn.position > before, "a turn goes on");
        rows.extend(ints(&turn.rows));
        lost.extend(turn.lost);
    }
    (rows, lost)
}

#[test]
fn every_row_comes_once_in_order() {
    let store = Store::with_segments(512);
    let engine = store.open();
    create(&engine, "t", DAY);
    engine.hold_log("reader", SeqNo(0));
    let mut reader = LogReader::new(SeqNo(0));
    let mut expected = Vec::new();
    let mut found = Vec::new();
    for round in 0..30 {
        // Messages of one row, one of two, and one without.
        let first = round * 4;
        let batch: Batch = vec![
            vec![("t".into(), row(first))],
            vec![("t".into(), row(first + 1)), ("t".into(), row(first + 2))],
            vec![],
            vec![("t".into(), row(first + 3))],
        ];
        let range = write(&engine, &batch).unwrap();
        assert_eq!(range.last.0, range.first.0 + 3);
        let seq = |offset: u64| range.first.0 + offset;
        expected.extend([(seq(0), first), (seq(1), first + 1), (seq(1), first + 2), (seq(3), first + 3)]);
        if round % 4 == 0 {
            found.extend(read_on(&engine, &mut reader).0);
            assert_eq!(found, expected);
        }
        if round % 10 == 0 {
            engine.flush().unwrap();
        }
    }
    found.extend(read_on(&engine, &mut reader).0);
    assert_eq!(found, expected);
    assert!(engine.log_status().segments > 3);
    let all = LogReader::new(SeqNo(0));
    for mut reader in [all, LogReader::new(SeqNo(1))] {
        assert_eq!(read_on(&engine, &mut reader), (expected.clone(), vec![]));
    }
    // From every position on, those inside a batch included; before and after a restart.
    let engine = store.restart(engine);
    for position in 0..=engine.published().0 {
        let left: Vec<_> = expected.iter().copied().filter(|(seq, _)| *seq > position).collect();
        assert_eq!(read_on(&engine, &mut LogReader::new(SeqNo(position))), (left, vec![]), "from {position}");
    }
}

#[test]
fn only_the_tables_that_are_wanted() {
    let store = Store::new();
    let engine = store.open();
    for name in ["a", "b"] {
        create(&engine, name, DAY);
        put(&engine, name, &[row(if name == "a" { 1 } else { 2 })]);
    }
    let id = table(&engine, "b").id();
    let turn = engine.read_log(&mut LogReader::new(SeqNo(0)), |table: TableId| table == id).unwrap();
    assert_eq!(ints(&turn.rows), [(4, 2)]);
    assert_eq!((turn.position, turn.lost), (SeqNo(4), None));
}

#[test]
fn a_reader_that_is_overtaken_learns_what_it_lost() {
    let mut store = Store::with_segments(512);
    store.options.log.max_bytes = 3 * 512;
    let engine = store.open();
    create(&engine, "t", DAY);
    engine.hold_log("slow", SeqNo(5));
    let mut reader = LogReader::new(SeqNo(0));
    let mut expected = Vec::new();
    for i in 0..3 {
        expected.push((put(&engine, "t", &[row(i)]).first.0, i));
    }
    let (mut rows, lost) = read_on(&engine, &mut reader);
    assert_eq!(lost, []);
    for i in 3..80 {
        expected.push((put(&engine, "t", &[row(i)]).first.0, i));
    }
    engine.flush().unwrap();
    let status = engine.log_status();
    assert!(status.bytes <= 3 * 512 && status.first > SeqNo(5), "{status:?}");
    let (more, lost) = read_on(&engine, &mut reader);
    rows.extend(more);
    let [lost] = lost[..] else { panic!("{lost:?}") };
    assert_eq!((lost.first, lost.last.plus(1)), (SeqNo(5), status.first));
    expected.retain(|(seq, _)| *seq < lost.first.0 || *seq > lost.last.0);
    assert_eq!(rows, expected);
    assert_eq!(read_on(&engine, &mut reader), (vec![], vec![]));
    // The same after a restart, for one that starts over.
    let engine = store.restart(engine);
    let (_, lost) = read_on(&engine, &mut LogReader::new(SeqNo(0)));
    assert_eq!(lost[0].first, SeqNo(1));
    assert_eq!(lost[0].last.plus(1), engine.log_status().first);
}

#[test]
fn a_hold_keeps_segments_and_its_release_lets_them_go() {
    let store = Store::with_segments(512);
    let engine = store.open();
    create(&engine, "t", DAY);
    engine.hold_log("a", SeqNo(0));
    engine.hold_log("b", SeqNo(20));
    (0..80).for_each(|i| {
        put(&engine, "t", &[row(i)]);
    });
    engine.flush().unwrap();
    assert_eq!(engine.log_status().first, SeqNo(1));
    let held = engine.log_status().segments;
    engine.release_log("a");
    let flush = |i: i64| {
        put(&engine, "t", &[row(i)]);
        engine.flush().unwrap();
    };
    flush(80);
    let status = engine.log_status();
    assert!(status.segments < held && status.first > SeqNo(1) && status.first <= SeqNo(21), "{status:?}");
    assert_eq!(read_on(&engine, &mut LogReader::new(SeqNo(20))).1, []);
    engine.hold_log("b", engine.published());
    flush(81);
    assert_eq!(engine.log_status().segments, 1);
    engine.release_log("b");
    assert_eq!(store.segments().len(), 1);
}

#[test]
fn what_is_not_flushed_is_held_by_itself() {
    let mut store = Store::with_segments(512);
    store.options.log.max_bytes = 512;
    let engine = store.open();
    create(&engine, "t", DAY);
    (0..50).for_each(|i| {
        put(&engine, "t", &[row(i)]);
    });
    assert_eq!(engine.log_status().first, SeqNo(1));
    let engine = store.restart(engine);
    assert_eq!(engine.log_status().first, SeqNo(1));
    assert_eq!(crate::data::read_all(&engine, "t").len(), 50);
}

/// A flush lets the log go up to its position, not what was written while it waited.
#[test]
fn what_was_written_during_a_flush_is_held_too() {
    let store = Store::with_segments(512);
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    create(&engine, "t", DAY);
    let mut add = 0..;
    let mut write = |rows: usize| {
        for i in add.by_ref().take(rows) {
            put(&engine, "t", &[row(i)]);
        }
    };
    write(20);
    let position = engine.published();
    // The flush waits at the sync of its manifest edit; what comes meanwhile stays in memory.
    disk.hold_syncs_of(".manifest");
    let flush = {
        let engine = engine.clone();
        std::thread::spawn(move || engine.flush())
    };
    disk.wait_held();
    write(20);
    disk.release_syncs();
    flush.join().unwrap().unwrap();
    let status = engine.log_status();
    assert_eq!(status.flushed_to, position);
    assert!(status.first > SeqNo(1) && status.first <= position.plus(1), "{status:?}");
    disk.crash();
    drop(engine);
    assert_eq!(crate::data::read_all(&store.open(), "t").len(), 40);
}

/// A segment that cannot be removed stays in the list, and so do those behind it: no gap.
#[test]
fn a_segment_that_cannot_be_removed_is_tried_again() {
    let store = Store::with_segments(512);
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    create(&engine, "t", DAY);
    (0..50).for_each(|i| {
        put(&engine, "t", &[row(i)]);
    });
    assert!(engine.log_status().segments > 3);
    // A file system that refuses: a directory stands where the segment was.
    let oldest = store.segments().remove(0);
    let bytes = std::fs::read(&oldest).unwrap();
    std::fs::remove_file(&oldest).unwrap();
    std::fs::create_dir(&oldest).unwrap();
    engine.flush().unwrap();
    assert_eq!(engine.log_status().first, SeqNo(1));
    std::fs::remove_dir(&oldest).unwrap();
    std::fs::write(&oldest, bytes).unwrap();
    put(&engine, "t", &[row(50)]);
    engine.flush().unwrap();
    assert_eq!(engine.log_status().segments, 1);
}

/// A follower reads while rows are written and segments go.
#[test]
fn a_follower_keeps_up() {
    const ROWS: i64 = 300;
    let store = Store::with_segments(512);
    let engine = store.open();
    create(&engine, "t", DAY);
    engine.hold_log("follower", SeqNo(0));
    let follow = {
        let engine = engine.clone();
        move || {
            let mut reader = LogReader::new(SeqNo(0));
            let mut found = Vec::new();
            while found.len() < ROWS as usize {
                let published = engine.wait_published(reader.position(), Duration::from_secs(60));
                assert!(published > reader.position(), "nothing came");
                let (rows, lost) = read_on(&engine, &mut reader);
                assert_eq!(lost, []);
                found.extend(rows);
                engine.hold_log("follower", reader.position());
            }
            found
        }
    };
    let follower = std::thread::spawn(follow);
    let mut expected = Vec::new();
    for i in 0..ROWS {
        expected.push((put(&engine, "t", &[row(i)]).first.0, i));
        if i % 50 == 49 {
            engine.flush().unwrap();
        }
    }
    assert_eq!(follower.join().unwrap(), expected);
}
