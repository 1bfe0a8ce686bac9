//! A disk that fails once, or has no space: what is acknowledged stays, what is refused is not there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sonde_engine::{
    CatalogRequest, ColumnRole, Engine, Error, PhysicalType, Points, Receipt, Result, SeqRange, State,
    TableId, WriteBatch, path,
};

use crate::crash::History;
use crate::data::{
    DAY, Query, Rec, START, Value, choose, column, create, delete_range, message, put, read_all, rec,
    send_patient, table, update, write,
};
use crate::faults::{Fault, Faulty};
use crate::power::every;
use crate::store::{Busy, Store, files, wait_until};

fn row(device: &str, i: i64) -> Rec {
    rec(&[("device", device)], START + i, &[("i", Value::Int(i))])
}

fn big(device: &str, i: i64, bytes: usize) -> Rec {
    rec(&[("device", device)], START + i, &[("s", Value::Text("x".repeat(bytes)))])
}

/// One operation fails, at every place of a history. A failed write or sync inside a segment latches; all else is
/// tried again. In either case the directory holds what was acknowledged.
#[test]
fn one_failure_anywhere() {
    let total = {
        let store = Store::volatile(2048);
        let disk = Faulty::default();
        History::default().run(&store.open_on(Arc::new(disk.clone())).unwrap()).unwrap();
        disk.done().len() as u64
    };
    assert!(total > 60, "{total} operations");
    let mut latched = 0;
    for at in (0..total).step_by(every(2)) {
        let store = Store::volatile(2048);
        let disk = Faulty::new(Fault::Once(at));
        let mut history = History::on(&disk);
        // An error while opening is an error of opening, and the next attempt works.
        let engine =
            store.open_on(Arc::new(disk.clone())).or_else(|_| store.open_on(Arc::new(disk.clone()))).unwrap();
        let failed_to = disk.done().get(at as usize).cloned();
        let _ = history.run_on(&engine);
        let failed_to = failed_to.or_else(|| disk.done().get(at as usize).cloned()).unwrap_or_default();
        println!("{at}: {failed_to}");
        if let Err(error) = engine.health() {
            latched += 1;
            assert!(matches!(error, Error::Failed(_)), "{error}");
            assert!(failed_to.ends_with(".wal"), "{failed_to} latched");
            let state = State { namespace: "n".into(), key: vec![], value: None };
            assert!(matches!(engine.write(WriteBatch::of_state(vec![state])).wait(), Err(Error::Failed(_))));
            assert!(matches!(
                engine.change_catalog(CatalogRequest::DropTable(TableId(0))),
                Err(Error::Failed(_))
            ));
            history.check_live(&engine);
        } else {
            history.check_live(&engine);
            if failed_to.ends_with(".manifest")
                && (failed_to.starts_with("write ") || failed_to.starts_with("sync "))
            {
                // No second attempt on the same file: what it ends with is unknown.
                let after = disk.done().split_off(at as usize + 1);
                let next = after.iter().find(|done| done.contains(".manifest"));
                assert!(next.is_some_and(|next| next.starts_with("create ")), "{next:?}");
            }
            // What failed left nothing behind, unless it was a removal.
            let chunks = files(&store.dir(path::CHUNK_DIR)).len();
            assert!(chunks == engine.chunks().len() || failed_to.starts_with("remove"), "{chunks} chunks");
        }
        drop(engine);
        history.check_recovered(&store);
    }
    assert!(latched > 10, "{latched} failures latched");
}

#[test]
fn no_space_for_a_segment_refuses_and_recovers() {
    let store = Store::with_segments(4096);
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    let id = create(&engine, "t", DAY).id();
    put(&engine, "t", &[row("a", 0)]);
    disk.set(Fault::Full);
    let refused = write(&engine, &message("t", &[big("refused", 1, 5000)])).unwrap_err();
    assert!(matches!(refused, Error::Full(_)) && refused.is_transient(), "{refused}");
    assert!(matches!(write(&engine, &message("t", &[big("refused too", 1, 5000)])), Err(Error::Full(_))));
    engine.health().unwrap();
    assert_eq!(read_all(&engine, "t"), [row("a", 0)]);
    // What still fits the segment goes on: a change of the catalog, then rows of the series that the refused batch
    // brought. Its handle was given out and must reach the log all the same.
    let new = column("x", ColumnRole::Field, PhysicalType::Float64);
    engine.change_catalog(CatalogRequest::AddColumns(id, vec![new])).unwrap();
    put(&engine, "t", &[row("refused", 2)]);
    assert!(matches!(write(&engine, &message("t", &[big("a", 3, 5000)])), Err(Error::Full(_))));
    disk.set(Fault::None);
    put(&engine, "t", &[big("a", 3, 5000), row("b", 4)]);
    let expected = [row("a", 0), row("refused", 2), big("a", 3, 5000), row("b", 4)];
    let check = |engine: &Engine| {
        let mut rows = read_all(engine, "t");
        rows.sort_by_key(|row| row.time);
        assert_eq!(rows, expected);
    };
    check(&engine);
    disk.crash();
    drop(engine);
    let engine = store.open();
    check(&engine);
    check(&store.reopen(engine));
}

/// Preparing the next segment fails after its file is there, and rows go on in the old one. A crash then leaves a
/// segment behind that was prepared too early.
#[test]
fn a_segment_that_was_prepared_in_vain_is_no_damage() {
    let store = Store::with_segments(4096);
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    create(&engine, "t", DAY);
    put(&engine, "t", &[row("a", 0)]);
    // The file, its space, their syncs, the write of the head, its sync.
    disk.set(Fault::Once(disk.done().len() as u64 + 5));
    let refused = write(&engine, &message("t", &[big("a", 1, 5000)])).unwrap_err();
    assert!(matches!(refused, Error::Io { .. }), "{refused}");
    engine.health().unwrap();
    put(&engine, "t", &[row("a", 2)]);
    assert_eq!(store.segments().len(), 2);
    drop(engine);
    assert_eq!(read_all(&store.open(), "t"), [row("a", 0), row("a", 2)]);
    let engine = store.open();
    put(&engine, "t", &[big("a", 3, 5000)]);
    assert_eq!(read_all(&store.restart(engine), "t").len(), 3);
}

#[test]
fn no_space_for_chunks_refuses_at_once_and_recovers() {
    let mut store = Store::new();
    store.options.memtable_bytes = 2048;
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    create(&engine, "t", DAY);
    disk.set(Fault::Full);
    let mut written = Vec::new();
    let started = Instant::now();
    let refused = loop {
        let next = row("a", written.len() as i64);
        match write(&engine, &message("t", std::slice::from_ref(&next))) {
            Ok(_) => written.push(next),
            Err(error) => break error,
        }
        assert!(written.len() < 10_000, "nothing is refused");
    };
    assert!(matches!(refused, Error::Full(_)), "{refused}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert!(matches!(engine.flush(), Err(Error::Full(_))));
    engine.health().unwrap();
    assert_eq!(read_all(&engine, "t"), written);
    disk.set(Fault::None);
    // A flush that succeeds is what ends the refusal; whoever asks for one need not wait for the next attempt.
    while engine.flush().is_err() {}
    assert_eq!(engine.memory().1, 0);
    put(&engine, "t", &[row("a", -1)]);
    assert_eq!(read_all(&engine, "t").len(), written.len() + 1);
    assert_eq!(read_all(&store.restart(engine), "t").len(), written.len() + 1);
}

/// A batch that may wait is neither refused nor lost; those behind it stay behind it, and whoever may not wait is refused
/// meanwhile.
#[test]
fn patient_batches_wait_for_room_in_their_order() {
    let mut store = Store::new();
    store.options.memtable_bytes = 2048;
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    create(&engine, "t", DAY);
    disk.set(Fault::Full);
    let mut next = 0..;
    let mut row = || row("a", next.next().unwrap());
    while write(&engine, &message("t", &[row()])).is_ok() {}
    let acknowledged = read_all(&engine, "t").len();
    let patient = |value: u8| {
        let mut batch = engine.batch();
        batch.set_patient();
        batch.state(State { namespace: "n".into(), key: vec![0], value: Some(vec![value]) });
        engine.write(batch.finish().unwrap())
    };
    let (answers, told) = std::sync::mpsc::channel();
    for receipt in (1..=3).map(patient) {
        let answers = answers.clone();
        std::thread::spawn(move || answers.send(receipt.wait()));
    }
    assert!(matches!(write(&engine, &message("t", &[row()])), Err(Error::Full(_))));
    assert!(told.recv_timeout(Duration::from_millis(300)).is_err(), "there is no room");
    disk.set(Fault::None);
    wait_until("the flush", || engine.flush().is_ok());
    let mut seqs: Vec<_> =
        (0..3).map(|_| told.recv_timeout(Duration::from_secs(20)).unwrap().unwrap()).collect();
    seqs.sort_unstable_by_key(|range| range.first);
    assert!(seqs.windows(2).all(|pair| pair[0].last < pair[1].first), "{seqs:?}");
    assert_eq!(engine.state("n", &[0]).as_deref(), Some(&[3][..]), "the last one came last");
    assert_eq!(read_all(&store.restart(engine), "t").len(), acknowledged);
}

/// A log that has room for small commits only, and a patient batch of a large one that waits.
struct Stalled {
    store: Store,
    disk: Faulty,
    engine: Engine,
    waits: Receipt,
    /// What was chosen before there was no room.
    points: Points,
    rows: Vec<Rec>,
}

fn old() -> Rec {
    row("a", 0)
}

fn new() -> Rec {
    let fields = [("i", Value::Int(100)), ("s", Value::Text("x".repeat(5000)))];
    rec(&[("device", "a")], START, &fields)
}

impl Stalled {
    fn new() -> Self {
        let store = Store::with_segments(4096);
        let disk = Faulty::default();
        let engine = store.open_on(Arc::new(disk.clone())).unwrap();
        create(&engine, "t", DAY);
        put(&engine, "t", &[old()]);
        let (points, rows) = choose(&engine, "t", |_| true);
        disk.set(Fault::Full);
        let waits = send_patient(&engine, &message("t", &[new()])).unwrap();
        // Behind the batch in the writer's queue.
        engine.fence().unwrap();
        assert_eq!(read_all(&engine, "t"), [old()]);
        Self { store, disk, engine, waits, points, rows }
    }

    /// Commits what is chosen with the next number.
    fn count_up(&self) -> Result<SeqRange> {
        let raised = self.rows.iter().map(|row| match row.fields["i"] {
            Value::Int(i) => rec(&[("device", "a")], row.time, &[("i", Value::Int(i + 1))]),
            _ => panic!("{row:?}"),
        });
        update(&self.engine, "t", self.points.clone(), &raised.collect::<Vec<_>>())
    }

    fn ends_with(self, expected: &Rec) {
        self.waits.wait().unwrap();
        assert_eq!(read_all(&self.engine, "t"), std::slice::from_ref(expected));
        assert_eq!(read_all(&self.store.restart(self.engine), "t"), std::slice::from_ref(expected));
    }
}

/// What waits came first: an update that was decided before it is refused, not built upon it.
#[test]
fn an_update_does_not_pass_what_waits_for_room() {
    let stalled = Stalled::new();
    let refused = stalled.count_up();
    assert!(matches!(refused, Err(Error::Full(_))), "{refused:?}");
    stalled.disk.set(Fault::None);
    let refused = stalled.count_up();
    assert!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");
    stalled.ends_with(&new());
}

/// A deletion is a small commit that has room: what waits comes behind it, whatever it says.
#[test]
fn a_deletion_takes_nothing_of_what_waits_for_room() {
    for by_values in [true, false] {
        let stalled = Stalled::new();
        if by_values {
            stalled.engine.delete_points(&table(&stalled.engine, "t"), stalled.points.clone()).unwrap();
        } else {
            delete_range(&stalled.engine, "t", &Query::default()).unwrap();
        }
        assert_eq!(read_all(&stalled.engine, "t"), []);
        stalled.disk.set(Fault::None);
        stalled.ends_with(&new());
    }
}

/// Nobody who keeps the writer busy, and brings nothing to commit, puts off the next attempt.
#[test]
fn what_waits_for_room_has_its_turn_however_much_else_is_asked() {
    let stalled = Stalled::new();
    let busy = Busy::with(&stalled.engine);
    stalled.disk.set(Fault::None);
    wait_until("the commit of what waits", || read_all(&stalled.engine, "t") == [new()]);
    drop(busy);
    stalled.ends_with(&new());
}

#[test]
fn a_full_disk_at_start_is_an_error_that_says_so() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", DAY);
    put(&engine, "t", &[row("a", 0)]);
    drop(engine);
    assert!(matches!(store.open_on(Arc::new(Faulty::new(Fault::Full))), Err(Error::Full(_))));
    assert_eq!(read_all(&store.open(), "t"), [row("a", 0)]);
}
