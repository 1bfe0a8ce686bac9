//! Objects of the cold tier that come and go: none stays behind that nobody knows of, and none goes that is not ours.

use std::path::PathBuf;
use std::sync::Arc;

use sonde_engine::{Engine, TableId, Timestamp};

use crate::data::{DAY, Rec, START, Value, create, put, read_all, rec};
use crate::faults::Faulty;
use crate::store::{Store, files_below, wait_until};

fn row(day: i64, i: i64) -> Rec {
    rec(&[("device", "d")], START + day * DAY, &[("i", Value::Int(i))])
}

fn cool(engine: &Engine, id: TableId, days: i64) -> usize {
    engine.cool(id, Timestamp::from_nanos(START + days * DAY)).unwrap()
}

fn objects(store: &Store) -> Vec<PathBuf> {
    files_below(&store.cold())
}

/// Objects whose fate is open.
fn pending(engine: &Engine) -> usize {
    engine.state_entries("cold.pending").len()
}

/// A store of which two days were cooled twice while a reader had the first files; stopped in good order. The paths of
/// the files that nothing needs any more.
fn store_of_replaced_files() -> (Store, Vec<PathBuf>) {
    let store = Store::new();
    let engine = store.open();
    let id = create(&engine, "t", DAY).id();
    put(&engine, "t", &[row(0, 1), row(1, 1)]);
    assert_eq!(cool(&engine, id, 2), 2);
    let old = objects(&store);
    let snapshot = engine.snapshot();
    put(&engine, "t", &[row(0, 2), row(1, 2)]);
    assert_eq!(cool(&engine, id, 2), 2);
    assert_eq!((objects(&store).len(), pending(&engine)), (4, 2));
    let query = crate::data::Query::default();
    let read = crate::data::read(&engine, &snapshot, "t", &query).unwrap();
    assert_eq!(read, [row(0, 1), row(1, 1)], "what is read stays");
    engine.close().unwrap();
    drop(engine);
    drop(snapshot);
    assert_eq!(objects(&store).len(), 4);
    (store, old)
}

#[test]
fn a_crash_between_upload_and_edit_leaves_nothing_behind() {
    let store = Store::new();
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    let id = create(&engine, "t", DAY).id();
    put(&engine, "t", &[row(0, 1)]);
    engine.flush().unwrap();
    disk.hold_syncs_of(".manifest");
    let cooling = {
        let engine = engine.clone();
        std::thread::spawn(move || engine.cool(id, Timestamp::from_nanos(START + DAY)))
    };
    disk.wait_held();
    let [uploaded] = &objects(&store)[..] else { panic!("{:?}", objects(&store)) };
    disk.crash();
    disk.release_syncs();
    assert!(cooling.join().unwrap().is_err());
    drop(engine);
    // The store may be shared: what we did not write is none of our business.
    let foreign = uploaded.with_file_name("part-of-another.parquet");
    std::fs::write(&foreign, "foreign").unwrap();
    let engine = store.open();
    wait_until("the clean-up", || pending(&engine) == 0);
    assert_eq!(objects(&store), std::slice::from_ref(&foreign));
    assert_eq!(read_all(&engine, "t"), [row(0, 1)]);
    assert_eq!(cool(&engine, id, 1), 1);
    assert_eq!((objects(&store).len(), pending(&engine)), (2, 0));
    assert_eq!(read_all(&store.restart(engine), "t"), [row(0, 1)]);
    assert!(foreign.exists());
}

#[test]
fn what_was_read_at_the_stop_goes_at_the_next_start() {
    let (store, old) = store_of_replaced_files();
    let engine = store.open();
    wait_until("the clean-up", || pending(&engine) == 0);
    assert_eq!(objects(&store).len(), 2);
    assert!(old.iter().all(|path| !path.exists()));
    assert_eq!(read_all(&engine, "t"), [row(0, 2), row(1, 2)]);
}

/// The same where somebody was faster.
#[test]
fn an_object_that_is_gone_counts_as_deleted() {
    let (store, old) = store_of_replaced_files();
    old.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    let engine = store.open();
    wait_until("the clean-up", || pending(&engine) == 0);
    assert_eq!(objects(&store).len(), 2);
}

#[test]
fn an_object_that_cannot_be_deleted_stops_no_other_and_is_tried_again() {
    let (store, old) = store_of_replaced_files();
    // Not to be removed like a file.
    std::fs::remove_file(&old[0]).unwrap();
    std::fs::create_dir(&old[0]).unwrap();
    let engine = store.open();
    wait_until("the clean-up of the other", || pending(&engine) == 1 && !old[1].exists());
    std::fs::remove_dir(&old[0]).unwrap();
    wait_until("another attempt", || pending(&engine) == 0);
    assert_eq!(objects(&store).len(), 2);
    assert_eq!(read_all(&engine, "t"), [row(0, 2), row(1, 2)]);
}
