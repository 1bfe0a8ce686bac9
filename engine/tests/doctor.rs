//! What an examination says of a whole directory, of a damaged one, and of one with files missing; it changes nothing.

use std::path::{Path, PathBuf};

use sonde_engine::doctor::{Finding, Severity, examine};
use sonde_engine::{CatalogRequest, Engine, Error, TableKind, TableOptions, Timestamp, path};

use crate::data::{DAY, START, Value, create, new_table, put, rec, table};
use crate::store::{Store, files, files_below};

/// A directory with rows in a chunk, a checkpoint, and rows in the log only.
fn store() -> Store {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", crate::data::DAY);
    let write = |from: i64| {
        for i in from..from + 500 {
            let fields = [("i", Value::Int(i * 7 % 100)), ("f", Value::Float((i as f64 / 3.0).to_bits()))];
            put(&engine, "t", &[rec(&[("device", "a")], START + i * 1_000_000_000, &fields)]);
        }
    };
    write(0);
    engine.flush().unwrap();
    write(500);
    drop(engine);
    store
}

/// The oldest file of a part of the directory: of the log the one that has frames.
fn file(store: &Store, part: &str) -> PathBuf {
    files(&store.dir(part)).swap_remove(0)
}

fn dir(store: &Store) -> &Path {
    &store.options.data_dir
}

/// The subjects with damage, and what is said of them.
fn damage(dir: &Path) -> Vec<(&'static str, String)> {
    let findings = examine(dir).unwrap().findings;
    let damage = findings.into_iter().filter(|finding| finding.severity == Severity::Damage);
    damage.map(|finding| (finding.subject, finding.text)).collect()
}

fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    files_below(dir).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn a_whole_directory_is_good_and_stays_as_it_is() {
    let store = store();
    let before = contents(dir(&store));
    let found = examine(dir(&store)).unwrap();
    assert!(found.findings.iter().all(|finding| finding.severity == Severity::Good), "{:?}", found.findings);
    let subjects: Vec<&str> = found.findings.iter().map(|finding| finding.subject).collect();
    assert_eq!(subjects, ["layout", "server", "manifest", "chunks", "checkpoint", "log"]);
    assert!(found.newest.is_some());
    assert_eq!(contents(dir(&store)), before);
}

#[test]
fn a_running_engine_is_no_finding() {
    let store = store();
    let engine = store.open();
    put(&engine, "t", &[rec(&[("device", "b")], START, &[("i", Value::Int(1))])]);
    let found = examine(dir(&store)).unwrap().findings;
    assert!(found.iter().all(|finding| finding.severity == Severity::Good), "{found:?}");
    assert!(found.iter().any(|finding| finding.text == "a server has the directory"));
    engine.close().unwrap();
}

/// A store whose log keeps nothing for readers, with a table `still` that has one chunk and is not written to.
fn busy_store() -> (Store, Engine) {
    let mut store = Store::with_own_cold();
    store.options.segment_bytes = 64 << 10;
    store.options.log.max_bytes = 1;
    let engine = store.open();
    create(&engine, "still", DAY);
    let row = |i: i64| rec(&[("device", "a")], START + i, &[("i", Value::Int(i * 7 % 100))]);
    put(&engine, "still", &(0..500).map(row).collect::<Vec<_>>());
    engine.flush().unwrap();
    create(&engine, "t", DAY);
    let options = TableOptions { partition: DAY, max_bytes: 1, ..TableOptions::default() };
    let letters = sonde_engine::NewTable { options, ..new_table("letters", TableKind::Events, DAY) };
    engine.change_catalog(CatalogRequest::CreateTable(letters)).unwrap();
    (store, engine)
}

/// Everything that replaces and removes files: flushes, merges, moves to the cold tier, days that are cooled again, and
/// budgets, which are looked at when a table is dropped.
fn bustle(engine: &Engine, round: i64) {
    let row = |i: i64| {
        let time = START + (round % 40) * DAY + i * 1_000_000;
        rec(&[("device", &format!("d{}", i % 7))], time, &[("i", Value::Int(round * i))])
    };
    let rows: Vec<_> = (0..200).map(row).collect();
    put(engine, "t", &rows);
    put(engine, "letters", &rows);
    engine.flush().unwrap();
    let id = table(engine, "t").id();
    match round % 4 {
        0 => engine.compact(id).unwrap(),
        1 => {
            engine.cool(id, Timestamp::from_nanos(START + (round % 40) * DAY)).unwrap();
        }
        2 => {
            let other = create(engine, "other", DAY).id();
            engine.change_catalog(CatalogRequest::DropTable(other)).unwrap();
        }
        _ => {}
    }
}

/// What is not good in examinations that go on while the engine is busy, and how many there were.
fn examine_while_busy(store: &Store, engine: &Engine, rounds: i64) -> (usize, Vec<Finding>) {
    let (mut examinations, mut found) = (0, Vec::new());
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| (0..rounds).for_each(|round| bustle(engine, round)));
        while !busy.is_finished() || examinations == 0 {
            let findings = examine(dir(store)).unwrap().findings;
            found.extend(findings.into_iter().filter(|finding| finding.severity != Severity::Good));
            examinations += 1;
        }
    });
    (examinations, found)
}

/// The checkpoint that the first look at the manifest named was gone after the chunks were read, which was damage.
#[test]
fn a_busy_engine_is_no_finding() {
    let (store, engine) = busy_store();
    let (examinations, found) = examine_while_busy(&store, &engine, 120);
    assert!(examinations > 20, "{examinations}");
    assert_eq!(found, [], "in {examinations} examinations");
    assert!(engine.health().is_ok() && !files_below(&store.dir(path::COLD_DIR)).is_empty());
}

#[test]
fn damage_is_found_while_an_engine_is_busy() {
    let (store, engine) = busy_store();
    let chunk = file(&store, path::CHUNK_DIR);
    let flip = |path: &Path, at: usize| {
        let mut bytes = std::fs::read(path).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 4;
        std::fs::write(path, &bytes).unwrap();
    };
    flip(&chunk, 100);
    let (examinations, found) = examine_while_busy(&store, &engine, 24);
    assert_eq!(found.len(), examinations);
    let name = chunk.file_name().unwrap().to_str().unwrap();
    assert!(found.iter().all(|one| one.subject == "chunks" && one.text.contains(name)), "{found:?}");
    flip(&chunk, 100);

    // What the engine names still, and is not as it should be.
    put(&engine, "t", &[rec(&[("device", "a")], START, &[("i", Value::Int(1))])]);
    let cold = files_below(&store.dir(path::COLD_DIR));
    let parquet = cold.iter().find(|path| path.extension().is_some_and(|of| of == "parquet")).unwrap();
    let log = store.segments().into_iter().find(|path| {
        let frames = std::fs::read(path).unwrap();
        frames.iter().skip(64).any(|byte| *byte != 0)
    });
    for (path, subject) in
        [(file(&store, path::STATE_DIR), "checkpoint"), (log.unwrap(), "log"), (parquet.clone(), "cold")]
    {
        assert_eq!(damage(dir(&store)), []);
        let whole = std::fs::read(&path).unwrap();
        match subject {
            // The head of the segment: a flipped bit in the last frame would be a torn tail.
            "log" => flip(&path, 17),
            _ => std::fs::remove_file(&path).unwrap(),
        }
        let found = damage(dir(&store));
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(
            found.len() == 1 && found[0].0 == subject && found[0].1.contains(name),
            "{subject}: {found:?}"
        );
        std::fs::write(&path, whole).unwrap();
    }
}

/// One flipped bit anywhere in a file is found, and the file is named.
#[test]
fn damage_is_found_and_named() {
    let store = store();
    for (part, subject) in [
        (path::CHUNK_DIR, "chunks"),
        (path::MANIFEST_DIR, "manifest"),
        (path::STATE_DIR, "checkpoint"),
        (path::WAL_DIR, "log"),
    ] {
        let path = file(&store, part);
        let whole = std::fs::read(&path).unwrap();
        // The last edit of the manifest alone would be a torn tail.
        for at in [0, 17, 30, 100].into_iter().filter(|at| subject != "manifest" || *at < 50) {
            let mut flipped = whole.clone();
            let at = at % flipped.len();
            flipped[at] ^= 4;
            std::fs::write(&path, &flipped).unwrap();
            let found = damage(dir(&store));
            assert_eq!(found.len(), 1, "{subject} at {at}: {found:?}");
            assert_eq!(found[0].0, subject, "{found:?}");
            assert!(found[0].1.contains(path.file_name().unwrap().to_str().unwrap()), "{found:?}");
        }
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(damage(dir(&store)), []);
    }
}

#[test]
fn what_is_missing_too_long_or_unknown_is_found() {
    let store = store();
    let chunk = file(&store, path::CHUNK_DIR);
    let stranger = chunk.with_file_name("0000000000000fff.chunk");
    std::fs::copy(&chunk, &stranger).unwrap();
    let found = examine(dir(&store)).unwrap().findings;
    let warnings: Vec<_> = found.iter().filter(|finding| finding.severity == Severity::Warning).collect();
    assert!(warnings.len() == 1 && warnings[0].text.contains("1 files"), "{found:?}");
    std::fs::remove_file(&stranger).unwrap();

    let whole = std::fs::read(&chunk).unwrap();
    std::fs::write(&chunk, [&whole[..], &[0]].concat()).unwrap();
    assert_eq!(damage(dir(&store)).len(), 1);
    std::fs::remove_file(&chunk).unwrap();
    let found = damage(dir(&store));
    assert!(found.len() == 1 && found[0].1.contains("(table "), "{found:?}");

    std::fs::write(dir(&store).join(path::VERSION), "0\n").unwrap();
    let error = examine(dir(&store)).unwrap_err();
    assert!(
        matches!(&error, Error::Layout { .. }) && error.to_string().contains("development builds"),
        "{error}"
    );
    assert!(examine(&dir(&store).join("nothing")).is_err());
}
