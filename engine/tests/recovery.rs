//! From the files of a directory to what was acknowledged; and from damaged files to an error that names them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sonde_engine::{
    CatalogRequest, ColumnRole, Engine, Error, Object, ObjectKind, PhysicalType, SeqNo, State, TableId,
    WriteBatch, path,
};

use crate::data::{DAY, START, Value, column, create, put, read_all, rec, table};
use crate::faults::Faulty;
use crate::store::{Store, files};

fn add(engine: &Engine, i: i64) {
    put(engine, "t", &[rec(&[("device", &format!("d{}", i % 7))], START + i, &[("i", Value::Int(i))])]);
}

/// The values of the rows, by time.
fn values(engine: &Engine) -> Vec<i64> {
    let mut rows = read_all(engine, "t");
    rows.sort_by_key(|row| row.time);
    let value = |row: &crate::data::Rec| match row.fields["i"] {
        Value::Int(value) => value,
        _ => panic!("{row:?}"),
    };
    rows.iter().map(value).collect()
}

/// A store of a table and so many rows, all in the log, stopped without a flush.
fn store_of(rows: i64, segment_bytes: u64) -> Store {
    let store = Store::with_segments(segment_bytes);
    let engine = store.open();
    create(&engine, "t", DAY);
    (0..rows).for_each(|i| add(&engine, i));
    store
}

/// Where each frame of a segment starts, and where the last one ends, by the length that a frame begins with.
fn frames(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![64];
    loop {
        let at = *starts.last().unwrap();
        let Some(len) = bytes.get(at..at + 4) else { return starts };
        let len = u32::from_le_bytes(len.try_into().unwrap()) as usize;
        if len == 0 {
            return starts;
        }
        starts.push(at + 32 + (len - 1).next_multiple_of(8));
    }
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn expect_damage(store: &Store, path: &Path) {
    for _ in 0..2 {
        // Refusing changes nothing: the second attempt says the same.
        match store.try_open() {
            Err(Error::Corrupt { path: named, .. }) => assert_eq!(named, path),
            other => panic!("{other:?} instead of damage in {}", path.display()),
        }
    }
}

#[test]
fn rows_come_from_the_log() {
    let store = store_of(50, 512);
    assert!(store.segments().len() > 2);
    let engine = store.open();
    assert_eq!(values(&engine), (0..50).collect::<Vec<_>>());
    assert_eq!(engine.published(), SeqNo(51));
    add(&engine, 50);
    assert_eq!(engine.published(), SeqNo(52));
    assert_eq!(values(&store.restart(engine)), (0..51).collect::<Vec<_>>());
}

/// Every way in which the last frame can be torn: it is dropped, what comes before stays, and what is written after
/// is found by the start after the next, with the torn segment no longer the last.
#[test]
fn a_torn_tail_is_dropped() {
    type Tear = fn(&mut Vec<u8>, usize, usize);
    let tears: [(&str, Tear); 6] = [
        ("cut within the frame", |bytes, start, _| bytes.truncate(start + 40)),
        ("cut within its head", |bytes, start, _| bytes.truncate(start + 5)),
        ("its end is not written", |bytes, start, end| bytes[start + 40..end].fill(0)),
        ("its head is not written", |bytes, start, _| bytes[start..start + 32].fill(0)),
        ("garbage", |bytes, start, end| {
            bytes[start..end].iter_mut().enumerate().for_each(|(i, b)| *b = i as u8)
        }),
        ("garbage to the end of the file", |bytes, start, _| bytes[start..].fill(0xa5)),
    ];
    for (what, tear) in tears {
        let store = store_of(20, 1 << 20);
        let last = store.segments().pop().unwrap();
        change(&last, |bytes| {
            let frames = frames(bytes);
            tear(bytes, frames[frames.len() - 2], frames[frames.len() - 1]);
        });
        let engine = store.open();
        assert_eq!(values(&engine), (0..19).collect::<Vec<_>>(), "{what}");
        add(&engine, 100);
        let engine = store.restart(engine);
        add(&engine, 101);
        let engine = store.restart(engine);
        let expected: Vec<i64> = (0..19).chain([100, 101]).collect();
        assert_eq!(values(&engine), expected, "{what}");
        assert_eq!(values(&store.reopen(engine)), expected, "{what}");
    }
}

#[test]
fn a_segment_that_was_only_prepared_is_no_damage() {
    for what in [vec![], vec![0; 4096], [&[7; 60][..], &[0; 4096]].concat()] {
        let store = store_of(20, 1 << 20);
        assert_eq!(store.segments().len(), 1);
        std::fs::write(store.dir(path::WAL_DIR).join(path::segment(2)), what).unwrap();
        assert_eq!(values(&store.open()), (0..20).collect::<Vec<_>>());
        assert_eq!(values(&store.open()), (0..20).collect::<Vec<_>>());
        assert_eq!(store.segments().len(), 2);
    }
}

#[test]
fn damage_before_the_last_frame_is_refused() {
    type Tear = fn(&mut Vec<u8>, usize, usize);
    let tears: [Tear; 3] = [
        |bytes, start, _| bytes[start + 50] ^= 1,
        |bytes, start, _| bytes[start] ^= 0x10,
        |bytes, start, end| bytes[start..end].fill(0),
    ];
    for tear in tears {
        let store = store_of(20, 1 << 20);
        let last = store.segments().pop().unwrap();
        change(&last, |bytes| {
            let frames = frames(bytes);
            tear(bytes, frames[5], frames[6]);
        });
        expect_damage(&store, &last);
    }
}

#[test]
fn damage_in_an_older_segment_is_refused() {
    type Tear = fn(&mut Vec<u8>, &[usize]);
    let tears: [Tear; 5] = [
        |bytes, frames| bytes[frames[frames.len() - 2] + 50] ^= 1,
        |bytes, frames| bytes[frames[frames.len() - 2]..].fill(0),
        |bytes, frames| bytes.truncate(frames[1]),
        |bytes, _| bytes[20] ^= 1,
        |bytes, _| bytes.truncate(20),
    ];
    for (i, tear) in tears.into_iter().enumerate() {
        let store = store_of(50, 512);
        let [.., middle, after, _] = &store.segments()[..] else { panic!("segments") };
        change(middle, |bytes| tear(bytes, &frames(&bytes.clone())));
        // A segment that lost its end without a trace shows at the start of the next one.
        expect_damage(&store, if (1..3).contains(&i) { after } else { middle });
    }
}

#[test]
fn a_segment_that_is_gone_is_noticed() {
    let store = store_of(50, 512);
    let segments = store.segments();
    std::fs::remove_file(&segments[1]).unwrap();
    expect_damage(&store, &segments[2]);
    let store = store_of(50, 512);
    let segments = store.segments();
    std::fs::remove_file(&segments[0]).unwrap();
    expect_damage(&store, &segments[1]);
}

/// The end of the log is gone, but the next segment says how far it reached.
#[test]
fn a_tail_that_was_synced_before_the_next_segment_is_missed() {
    let store = store_of(20, 1 << 20);
    drop(store.open());
    add(&store.open(), 20);
    let segments = store.segments();
    let [_, second] = &segments[..] else { panic!("{segments:?}") };
    // The second segment keeps its head only.
    change(second, |bytes| bytes[64..].fill(0));
    change(&segments[0], |bytes| {
        let frames = frames(bytes);
        bytes[frames[frames.len() - 2] + 50] ^= 1;
    });
    expect_damage(&store, &segments[0]);
}

/// Removing old segments stopped half way: what is left of them is in nobody's way.
#[test]
fn a_gap_among_segments_that_are_flushed_is_no_damage() {
    let store = Store::with_segments(512);
    let engine = store.open();
    engine.hold_log("reader", SeqNo(0));
    create(&engine, "t", DAY);
    (0..50).for_each(|i| add(&engine, i));
    engine.flush().unwrap();
    drop(engine);
    let segments = store.segments();
    assert!(segments.len() > 3);
    std::fs::remove_file(&segments[1]).unwrap();
    let engine = store.open();
    assert_eq!(values(&engine), (0..50).collect::<Vec<_>>());
    assert!(!segments[0].exists());
    add(&engine, 50);
    assert_eq!(values(&store.restart(engine)).len(), 51);
}

#[test]
fn a_directory_has_one_owner() {
    let store = Store::new();
    let engine = store.open();
    match store.try_open() {
        Err(Error::Locked { path }) => assert_eq!(path, store.options.data_dir),
        other => panic!("{other:?}"),
    }
    let clone = engine.clone();
    drop(engine);
    assert!(matches!(store.try_open(), Err(Error::Locked { .. })));
    drop(clone);
    store.open();
}

#[test]
fn another_layout_is_refused() {
    let store = store_of(1, 1 << 20);
    std::fs::write(store.dir(path::VERSION), "7\n").unwrap();
    match store.try_open() {
        Err(Error::Layout { found, .. }) => assert_eq!(found, "7"),
        other => panic!("{other:?}"),
    }
    std::fs::write(store.dir(path::VERSION), path::LAYOUT_VERSION).unwrap();
    assert_eq!(values(&store.open()), [0]);
}

#[test]
fn files_that_nothing_names_are_removed_and_others_stay() {
    let store = store_of(5, 1 << 20);
    let engine = store.open();
    engine.close().unwrap();
    drop(engine);
    let chunks = store.dir(path::CHUNK_DIR);
    let named = files(&chunks);
    assert_eq!(named.len(), 1);
    let orphan = chunks.join("00000000000000ff.chunk");
    let tmp = chunks.join(format!("0000000000000009.chunk{}", path::TMP_SUFFIX));
    let foreign = chunks.join("notes.txt");
    for path in [&orphan, &tmp, &foreign] {
        std::fs::write(path, "x").unwrap();
    }
    std::fs::create_dir(chunks.join("lost+found")).unwrap();
    assert_eq!(values(&store.open()), [0, 1, 2, 3, 4]);
    assert!(!orphan.exists() && !tmp.exists() && foreign.exists() && named[0].exists());
}

#[test]
fn a_chunk_that_is_gone_or_damaged_is_named() {
    let store = store_of(5, 1 << 20);
    let engine = store.open();
    engine.close().unwrap();
    drop(engine);
    let chunk = files(&store.dir(path::CHUNK_DIR)).remove(0);
    change(&chunk, |bytes| bytes[100] ^= 1);
    let engine = store.open();
    let error =
        crate::data::read(&engine, &engine.snapshot(), "t", &crate::data::Query::default()).unwrap_err();
    assert!(matches!(&error, Error::Corrupt { path, .. } if *path == chunk), "{error}");
    drop(engine);
    std::fs::remove_file(&chunk).unwrap();
    assert!(matches!(store.try_open(), Err(Error::Io { path, .. }) if path == chunk));
}

/// A whole file in the place of another one.
#[test]
fn a_chunk_in_the_wrong_place_is_named() {
    let store = store_of(5, 1 << 20);
    let engine = store.reopen(store.open());
    add(&engine, 5);
    engine.flush().unwrap();
    drop(engine);
    let [first, second] = &files(&store.dir(path::CHUNK_DIR))[..] else { panic!("two chunks") };
    std::fs::copy(first, second).unwrap();
    let engine = store.open();
    let error =
        crate::data::read(&engine, &engine.snapshot(), "t", &crate::data::Query::default()).unwrap_err();
    assert!(matches!(&error, Error::Corrupt { path, .. } if path == second), "{error}");
}

fn damage_in(part: &str, ending: &str) {
    let store = store_of(5, 1 << 20);
    let engine = store.open();
    engine.close().unwrap();
    drop(engine);
    let file: PathBuf = files(&store.dir(part)).pop().unwrap();
    assert!(file.to_str().unwrap().ends_with(ending));
    change(&file, |bytes| bytes[10] ^= 1);
    assert!(matches!(store.try_open(), Err(Error::Corrupt { path, .. }) if path == file));
}

#[test]
fn a_damaged_manifest_is_refused() {
    damage_in(path::MANIFEST_DIR, ".manifest");
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    damage_in(path::STATE_DIR, ".checkpoint");
}

fn state(key: &str, value: Option<&str>) -> State {
    State { namespace: "n".into(), key: key.into(), value: value.map(Into::into) }
}

/// Catalog, series and state, in every way of stopping.
#[test]
fn all_that_is_not_rows_survives() {
    type Stop = fn(&Store, Engine) -> Engine;
    let stops: [(&str, Stop); 4] = [
        ("restart", |store, engine| store.restart(engine)),
        ("reopen", |store, engine| store.reopen(engine)),
        ("restart after flush", |store, engine| {
            engine.flush().unwrap();
            store.restart(engine)
        }),
        ("twice", |store, engine| store.restart(store.restart(engine))),
    ];
    for (what, stop) in stops {
        println!("{what}");
        let store = Store::new();
        let mut engine = store.open();
        let id = create(&engine, "t", DAY).id();
        let set =
            |engine: &Engine, states: Vec<State>| engine.write(WriteBatch::of_state(states)).wait().unwrap();
        set(&engine, vec![state("a", Some("1")), state("b", Some("2")), state("c", Some(""))]);
        (0..10).for_each(|i| add(&engine, i));
        engine = stop(&store, engine);
        let new = column("x", ColumnRole::Field, PhysicalType::Boolean);
        engine.change_catalog(CatalogRequest::AddColumns(id, vec![new])).unwrap();
        let object = Object {
            kind: ObjectKind::Rule,
            database: "public".into(),
            name: "r".into(),
            text: "one".into(),
        };
        let object = |text: &str| Object { text: text.into(), ..object.clone() };
        engine.change_catalog(CatalogRequest::PutObject { object: object("one"), replace: false }).unwrap();
        set(&engine, vec![state("a", None), state("b", Some("3"))]);
        engine = stop(&store, engine);
        engine.change_catalog(CatalogRequest::PutObject { object: object("two"), replace: true }).unwrap();
        put(
            &engine,
            "t",
            &[rec(&[("device", "new")], START, &[("x", Value::Bool(true)), ("i", Value::Int(0))])],
        );
        engine = stop(&store, engine);
        assert_eq!(engine.state("n", b"a"), None, "{what}");
        assert_eq!(engine.state("n", b"b").as_deref(), Some(&b"3"[..]));
        assert_eq!(engine.state("n", b"c").as_deref(), Some(&b""[..]));
        assert_eq!(engine.state_entries("n").len(), 2);
        let catalog = engine.catalog();
        assert_eq!(catalog.object(ObjectKind::Rule, "public", "r").unwrap().text, "two");
        assert_eq!(catalog.table_by_id(id).unwrap().column("x").unwrap().kind, PhysicalType::Boolean);
        assert_eq!(engine.series_count(id), 8);
        assert_eq!(read_all(&engine, "t").len(), 11);
        engine.change_catalog(CatalogRequest::DropTable(id)).unwrap();
        let drop = CatalogRequest::DropObject {
            kind: ObjectKind::Rule,
            database: "public".into(),
            name: "r".into(),
        };
        engine.change_catalog(drop).unwrap();
        engine = stop(&store, engine);
        assert_eq!(engine.catalog().tables().count(), 0);
        assert_eq!(engine.catalog().objects(ObjectKind::Rule).count(), 0);
        create(&engine, "t", DAY);
        assert_ne!(table(&engine, "t").id(), id, "{what}");
        add(&engine, 1);
        assert_eq!(values(&engine), [1]);
        engine = stop(&store, engine);
        assert_eq!(values(&engine), [1]);
        assert_eq!(engine.series_count(table(&engine, "t").id()), 1);
    }
}

/// A checkpoint that was taken before a table was dropped, and written after: it had the table without its series,
/// and those that the log then brought left a gap.
#[test]
fn a_table_dropped_between_freeze_and_checkpoint() {
    let store = Store::new();
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    let id = create(&engine, "t", DAY).id();
    (0..5).for_each(|i| add(&engine, i));
    // The flush fails, its memtable waits; its checkpoint is as of now.
    disk.set(crate::faults::Fault::Full);
    assert!(engine.flush().is_err());
    add(&engine, 5);
    engine.change_catalog(CatalogRequest::DropTable(id)).unwrap();
    assert_eq!(engine.memory(), (0, 0), "what waits for its flush goes too");
    disk.set(crate::faults::Fault::None);
    engine.flush().unwrap();
    disk.crash();
    drop(engine);
    let engine = store.open();
    assert_eq!(engine.catalog().tables().count(), 0);
    assert_eq!(create(&engine, "t", DAY).id(), TableId(id.0 + 1));
}

/// Starting again and again does not fill the disk with segments.
#[test]
fn starts_without_writes_leave_no_segments_behind() {
    let store = store_of(3, 1 << 20);
    for _ in 0..5 {
        assert_eq!(values(&store.open()), [0, 1, 2]);
    }
    assert_eq!(store.segments().len(), 2);
}

/// Neither does state alone: closing writes a checkpoint, and the log can go.
#[test]
fn a_log_of_state_alone_is_checkpointed() {
    let store = Store::with_segments(512);
    let engine = store.open();
    for i in 0..100 {
        engine.write(WriteBatch::of_state(vec![state(&format!("{i}"), Some("x"))])).wait().unwrap();
    }
    assert!(store.segments().len() > 2);
    let engine = store.restart(engine);
    let engine = store.reopen(engine);
    assert_eq!(engine.state_entries("n").len(), 100);
    engine.flush().unwrap();
    let status = engine.log_status();
    assert_eq!((status.flushed_to, status.last), (SeqNo(100), SeqNo(100)));
}
