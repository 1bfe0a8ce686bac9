//! What an examination says of a whole directory, of a damaged one, and of one with files missing; it changes nothing.

use std::path::{Path, PathBuf};

use sonde_engine::doctor::{Severity, examine};
use sonde_engine::{Error, path};

use crate::data::{START, Value, create, put, rec};
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
