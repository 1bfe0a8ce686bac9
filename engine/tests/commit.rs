//! Group commit: many writers, one order; acknowledged means synced and visible.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::task::{Context, Poll, Waker};

use sonde_engine::{CatalogRequest, Error, SeqNo, SeqRange};

use crate::data::{Batch, DAY, START, Value, create, message, put, read_all, rec, send, table, write};
use crate::faults::Faulty;
use crate::model::Model;
use crate::store::Store;

#[test]
fn writers_read_their_writes_and_share_one_order() {
    const WRITERS: i64 = 8;
    const ROUNDS: i64 = 25;
    let mut store = Store::with_segments(16 << 10);
    // So that memtables freeze and flush meanwhile.
    store.options.memtable_bytes = 8 << 10;
    let engine = store.open();
    create(&engine, "t", DAY);
    let start = engine.published();
    let writer = |writer: i64| {
        let engine = engine.clone();
        std::thread::spawn(move || {
            let device = format!("w{writer}");
            let row = |round: i64| rec(&[("device", &device)], START + round, &[("i", Value::Int(round))]);
            let mut ranges = Vec::new();
            for round in 0..ROUNDS {
                let messages = 1 + (writer + round) as usize % 3;
                let mut batch: Batch = message("t", &[row(round)]);
                batch.resize(messages, Vec::new());
                let range = write(&engine, &batch).unwrap();
                assert_eq!(range.last.0 + 1 - range.first.0, messages as u64);
                let snapshot = engine.snapshot();
                assert!(snapshot.seq() >= range.last && engine.published() >= range.last);
                let query = crate::data::Query {
                    tags: vec![("device".into(), [Some(device.clone())].into())],
                    ..crate::data::Query::default()
                };
                let rows = crate::data::read(&engine, &snapshot, "t", &query).unwrap();
                assert_eq!(rows, (0..=round).map(row).collect::<Vec<_>>());
                ranges.push(range);
            }
            ranges
        })
    };
    let threads: Vec<_> = (0..WRITERS).map(writer).collect();
    let per_writer: Vec<Vec<SeqRange>> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(per_writer.iter().all(|ranges| ranges.is_sorted_by(|a, b| a.last < b.first)));
    let mut ranges: Vec<SeqRange> = per_writer.into_iter().flatten().collect();
    ranges.sort_by_key(|range| range.first);
    let mut next = start.plus(1);
    for range in ranges {
        assert_eq!(range.first, next, "disjoint and dense");
        next = range.last.plus(1);
    }
    assert_eq!(engine.published().plus(1), next);
    assert_eq!(read_all(&store.restart(engine), "t").len(), (WRITERS * ROUNDS) as usize);
}

/// While a sync runs, nobody is answered and nothing is seen; what queues up meanwhile takes one sync together.
#[test]
fn a_group_is_what_queued_during_the_last_sync() {
    let store = Store::new();
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    create(&engine, "t", DAY);
    let row = |i: i64| rec(&[("device", "d")], START, &[("i", Value::Int(i))]);
    let before = (disk.syncs(), engine.published());
    disk.hold_syncs_of(".wal");
    let mut receipts = vec![send(&engine, &message("t", &[row(0)]), None).unwrap()];
    disk.wait_held();
    receipts.extend((1..50).map(|i| send(&engine, &message("t", &[row(i)]), None).unwrap()));
    let mut context = Context::from_waker(Waker::noop());
    for receipt in &mut receipts {
        assert!(matches!(Future::poll(std::pin::Pin::new(receipt), &mut context), Poll::Pending));
    }
    assert_eq!(read_all(&engine, "t"), []);
    assert_eq!(engine.published(), before.1);
    disk.release_syncs();
    for (i, receipt) in receipts.into_iter().enumerate() {
        let seq = before.1.plus(1 + i as u64);
        assert_eq!(receipt.wait().unwrap(), SeqRange { first: seq, last: seq });
    }
    assert_eq!(disk.syncs() - before.0, 2, "one sync for the first, one for all others");
    assert_eq!(read_all(&engine, "t"), [row(49)], "the last one in the log wins");
}

/// One batch writes two tables; whatever files come and go meanwhile, a snapshot shows all of it or nothing, and never
/// less than what was acknowledged before.
#[test]
fn a_snapshot_is_whole_while_files_come_and_go() {
    const ROUNDS: i64 = 400;
    let mut store = Store::volatile(4096);
    store.options.memtable_bytes = 2048;
    let engine = store.open();
    let ids = [create(&engine, "a", DAY).id(), create(&engine, "b", 7 * DAY).id()];
    let acked = Arc::new(AtomicI64::new(-1));
    let done = Arc::new(AtomicBool::new(false));
    let row = |i: i64| rec(&[("device", "d")], START + i % 5 * DAY, &[("i", Value::Int(i))]);
    let newest = |rows: &[crate::data::Rec]| rows.iter().map(|row| row.fields["i"].clone()).max();
    let spawn = |run: Box<dyn Fn() + Send>| {
        let done = Arc::clone(&done);
        std::thread::spawn(move || {
            while !done.load(Ordering::Acquire) {
                run();
            }
        })
    };
    let reader = || {
        let (engine, acked) = (engine.clone(), Arc::clone(&acked));
        Box::new(move || {
            let before = acked.load(Ordering::Acquire);
            let snapshot = engine.snapshot();
            let read =
                |table| crate::data::read(&engine, &snapshot, table, &crate::data::Query::default()).unwrap();
            let (a, b) = (read("a"), read("b"));
            assert_eq!(a, b, "{snapshot:?}");
            let newest = newest(&a).unwrap_or(Value::Int(-1));
            assert!(newest >= Value::Int(before), "{newest:?} is older than {before}");
        })
    };
    let mover = {
        let engine = engine.clone();
        Box::new(move || {
            for id in ids {
                engine.compact(id).unwrap();
                engine.cool(id, sonde_engine::Timestamp::from_nanos(START + 3 * DAY)).unwrap();
            }
        })
    };
    let threads = [spawn(reader()), spawn(reader()), spawn(mover)];
    for i in 0..ROUNDS {
        write(&engine, &vec![vec![("a".into(), row(i))], vec![("b".into(), row(i))]]).unwrap();
        acked.store(i, Ordering::Release);
        if threads.iter().any(std::thread::JoinHandle::is_finished) {
            break;
        }
    }
    done.store(true, Ordering::Release);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(read_all(&engine, "a").len(), 5);
}

/// A batch for a table that was dropped since it was built is refused alone; the rest of its group is not.
#[test]
fn a_stale_batch_is_refused_alone() {
    let store = Store::new();
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    create(&engine, "kept", DAY);
    let dropped = create(&engine, "dropped", DAY).id();
    let row = |i: i64| rec(&[("device", "d")], START + i, &[("i", Value::Int(i))]);
    let both: Batch = vec![vec![("kept".into(), row(9)), ("dropped".into(), row(9))]];
    disk.hold_syncs_of(".wal");
    let first = send(&engine, &message("kept", &[row(0)]), None).unwrap();
    disk.wait_held();
    let drop_table = {
        let engine = engine.clone();
        std::thread::spawn(move || engine.change_catalog(CatalogRequest::DropTable(dropped)))
    };
    disk.release_syncs();
    first.wait().unwrap();
    // Built on the catalog of before.
    let stale = [send(&engine, &both, None), send(&engine, &message("dropped", &[row(8)]), None)];
    drop_table.join().unwrap().unwrap();
    let fresh = send(&engine, &message("kept", &[row(1)]), None).unwrap();
    let mut kept = vec![row(0), row(1)];
    for (i, stale) in stale.into_iter().enumerate() {
        // Either it was there before the drop, or it is a conflict, whole.
        match stale.and_then(sonde_engine::Receipt::wait) {
            Ok(_) if i == 0 => kept.push(row(9)),
            Ok(_) => {}
            Err(error) => {
                assert!(matches!(error, Error::Conflict(_) | Error::UnknownTable { .. }), "{error}")
            }
        }
    }
    fresh.wait().unwrap();
    kept.sort();
    assert_eq!(read_all(&engine, "kept"), kept);
    assert_eq!(read_all(&store.restart(engine), "kept"), kept);
}

/// The same for certain: the batch is built, the table dropped, the batch sent.
#[test]
fn a_batch_built_before_its_table_was_dropped_is_a_conflict() {
    let store = Store::new();
    let engine = store.open();
    let dropped = create(&engine, "t", DAY);
    let device = dropped.column("device").unwrap().id;
    let mut builder = engine.batch();
    builder.begin_message();
    let tags = [(device, "d".into())];
    let row =
        sonde_engine::Row { time: sonde_engine::Timestamp::from_nanos(START), tags: &tags, fields: &[] };
    builder.row(&dropped, &row, None).unwrap();
    let batch = builder.finish().unwrap();
    let snapshot = engine.snapshot();
    put(&engine, "t", &[rec(&[("device", "x")], START, &[])]);
    let later = engine.snapshot();
    engine.change_catalog(CatalogRequest::DropTable(dropped.id())).unwrap();
    let error = engine.write(batch).wait().unwrap_err();
    assert!(matches!(error, Error::Conflict(_)) && error.is_transient(), "{error}");
    assert_eq!(engine.published(), later.seq().plus(1));
    // Whoever holds a snapshot of before still reads it.
    let read =
        |snapshot| crate::data::read(&engine, snapshot, "t", &crate::data::Query::default()).unwrap().len();
    assert_eq!((read(&snapshot), read(&later)), (0, 1));
}

/// Snapshots of a table with fewer and with more columns meet in one batch: its rows stay in order.
#[test]
fn two_snapshots_of_a_table_in_one_batch() {
    let store = Store::new();
    let engine = store.open();
    let old = create(&engine, "t", DAY);
    let new = crate::data::column("x", sonde_engine::ColumnRole::Field, sonde_engine::PhysicalType::Int64);
    engine.change_catalog(CatalogRequest::AddColumns(old.id(), vec![new])).unwrap();
    let new = table(&engine, "t");
    let int = |table: &sonde_engine::Table, name: &str, value: i64| {
        vec![(table.column(name).unwrap().id, sonde_engine::FieldValue::Int(value))]
    };
    let time = sonde_engine::Timestamp::from_nanos(START);
    let mut builder = engine.batch();
    let rows = [
        (&old, int(&old, "i", 1)),
        (&new, int(&new, "x", 2)),
        (&new, int(&new, "i", 3)),
        (&old, int(&old, "i", 4)),
    ];
    for (table, fields) in rows {
        builder.begin_message();
        builder.row(table, &sonde_engine::Row { time, tags: &[], fields: &fields }, None).unwrap();
    }
    engine.write(builder.finish().unwrap()).wait().unwrap();
    assert_eq!(read_all(&engine, "t"), [rec(&[], START, &[("i", Value::Int(4)), ("x", Value::Int(2))])]);
}

/// A message whose last row does not fit takes its others along, those before it stay.
#[test]
fn a_message_is_taken_back_whole() {
    let store = Store::new();
    let engine = store.open();
    let table = create(&engine, "t", DAY);
    let field =
        |name: &str, value: i64| vec![(table.column(name).unwrap().id, sonde_engine::FieldValue::Int(value))];
    let mut builder = engine.batch();
    let row = |builder: &mut sonde_engine::WriteBatchBuilder, i: i64, name: &str| {
        let time = sonde_engine::Timestamp::from_nanos(START + i);
        let row = sonde_engine::Row { time, tags: &[], fields: &field(name, i) };
        builder.row(&table, &row, None).unwrap();
    };
    builder.begin_message();
    row(&mut builder, 0, "i");
    builder.begin_message();
    row(&mut builder, 1, "i");
    row(&mut builder, 2, "u");
    builder.take_back_message();
    row(&mut builder, 3, "i");
    let range = engine.write(builder.finish().unwrap()).wait().unwrap();
    assert_eq!(range.last.0 - range.first.0, 1, "the message keeps its number");
    let expected = [0, 3].map(|i| rec(&[], START + i, &[("i", Value::Int(i))]));
    assert_eq!(read_all(&engine, "t"), expected);
}

#[test]
fn a_closed_engine_says_so() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", DAY);
    let batch = message("t", &[rec(&[], START, &[])]);
    write(&engine, &batch).unwrap();
    engine.close().unwrap();
    assert!(matches!(write(&engine, &batch), Err(Error::Closed)));
    assert!(matches!(engine.flush(), Err(Error::Closed)));
    assert!(matches!(engine.compact(table(&engine, "t").id()), Err(Error::Closed)));
    assert!(engine.change_catalog(CatalogRequest::DropTable(table(&engine, "t").id())).is_err());
    // What was read before can still be.
    assert_eq!(read_all(&engine, "t").len(), 1);
}

/// What was sent before the last handle went is still committed.
#[test]
fn the_last_handle_waits_for_what_was_sent() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", DAY);
    let mut model = Model::default();
    model.create("t", false);
    let batches: Vec<Batch> = (0..100)
        .map(|i| message("t", &[rec(&[("device", "d")], START + i, &[("i", Value::Int(i))])]))
        .collect();
    let receipts: Vec<_> = batches.iter().map(|batch| send(&engine, batch, None).unwrap()).collect();
    drop(engine);
    for (batch, receipt) in batches.iter().zip(receipts) {
        receipt.wait().unwrap();
        model.apply(batch);
    }
    model.check(&store.open());
}

#[test]
fn a_change_that_changes_nothing_takes_no_sequence_number() {
    let store = Store::new();
    let engine = store.open();
    let id = create(&engine, "t", DAY).id();
    let known =
        crate::data::column("f", sonde_engine::ColumnRole::Field, sonde_engine::PhysicalType::Float64);
    let range = engine.change_catalog(CatalogRequest::AddColumns(id, vec![known])).unwrap();
    assert_eq!(range, SeqRange { first: SeqNo(1), last: SeqNo(1) });
    assert_eq!(put(&engine, "t", &[rec(&[], START, &[])]).first, SeqNo(2));
}
