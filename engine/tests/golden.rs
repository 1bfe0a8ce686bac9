//! A data directory that version 1 wrote, with every kind of content: each later build reads the same in it.
//!
//! # Invariants
//! - `testdata/v1` is never written again. `SONDE_WRITE_GOLDEN=1` makes a directory that is missing; a later layout gets
//!   another `VERSION` here, and a directory beside the old ones.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use sonde_engine::doctor::{Loss, Repaired, repair};
use sonde_engine::{
    CatalogRequest, ColdOptions, ColumnRole, Engine, Error, NewTable, Object, ObjectKind, Options,
    PhysicalType, Profile, State, TableKind, TableOptions, Timestamp, path,
};

use crate::data::{
    DAY, HOUR, Rec, SECOND, START, Tags, Value, column, message, new_table, put, read_all, rec, send, table,
};
use crate::random::Random;
use crate::store::{Store, files_below};

/// What this build writes.
const VERSION: &str = "v1";
/// So long that no row of it ever expires.
const CENTURY: i64 = 36_500 * DAY;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

/// The cold tier lies in the directory, as by default.
fn options(dir: &Path) -> Options {
    let cold = dir.join(path::COLD_DIR);
    std::fs::create_dir_all(&cold).unwrap();
    let mut options = Options::new(dir);
    options.segment_bytes = 1 << 13;
    options.cold = Some(ColdOptions {
        store: Arc::new(LocalFileSystem::new_with_prefix(&cold).unwrap()),
        directory: Some(cold),
        ..Store::new().options.cold.unwrap()
    });
    options
}

fn copy(from: &Path, to: &Path) {
    for file in files_below(from) {
        let to = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(file, to).unwrap();
    }
}

/// Everything that can be read, as lines.
fn describe(engine: &Engine) -> String {
    let mut text = String::new();
    let catalog = engine.catalog();
    for table in catalog.tables() {
        let def = table.def();
        let TableOptions { partition, retention, cold_after, max_bytes, profile, .. } = def.options;
        writeln!(text, "table {} {} {:?} open={}", def.id, table.full_name(), def.kind, def.open).unwrap();
        writeln!(text, "  options {partition} {retention} {cold_after} {max_bytes} {profile:?}").unwrap();
        for column in &def.columns {
            writeln!(text, "  column {} {:?} {:?} {:?}", column.id, column.name, column.role, column.kind)
                .unwrap();
        }
        let mut rows = read_all(engine, &def.name);
        rows.sort();
        for Rec { tags, time, fields } in rows {
            writeln!(text, "  row {time} {tags:?} {fields:?}").unwrap();
        }
    }
    for kind in [ObjectKind::Source, ObjectKind::Rule, ObjectKind::Token] {
        for object in catalog.objects(kind) {
            writeln!(text, "{kind:?} {:?} {:?} {:?}", object.database, object.name, object.text).unwrap();
        }
    }
    for namespace in ["mqtt.retained", "mqtt.session", sonde_engine::CURSORS] {
        for (key, value) in engine.state_entries(namespace) {
            writeln!(text, "state {namespace} {key:?} {:?}", value.as_ref()).unwrap();
        }
    }
    text
}

fn object(engine: &Engine, kind: ObjectKind, name: &str, text: &str) {
    let object = Object { kind, database: "public".into(), name: name.into(), text: text.into() };
    engine.change_catalog(CatalogRequest::PutObject { object, replace: false }).unwrap();
}

fn state(engine: &Engine, namespace: &str, key: &str, value: &[u8]) {
    let state =
        State { namespace: namespace.into(), key: key.as_bytes().to_vec(), value: Some(value.to_vec()) };
    let batch = message("points", &[rec(&[("device", "state")], START, &[])]);
    send(engine, &batch, Some(state)).unwrap().wait().unwrap();
}

/// A row with a value of every type, some of them at their limits.
fn full(device: &str, time: i64, i: i64) -> Rec {
    let floats = [0.1, -0.0, f64::MAX, f64::NEG_INFINITY, 1e-310, 20.5];
    let fields = [
        (
            "f",
            Value::float(
                floats[i.unsigned_abs() as usize % floats.len()] + if i > 5 { i as f64 } else { 0.0 },
            ),
        ),
        ("i", Value::Int([i64::MIN, -1, i, i64::MAX][i.unsigned_abs() as usize % 4])),
        ("u", Value::UInt([0, u64::MAX, i.unsigned_abs()][i.unsigned_abs() as usize % 3])),
        ("b", Value::Bool(i % 3 == 0)),
        ("s", Value::text(["", "äöü \u{1f321}", "a\0b\"\\", "state"][i.unsigned_abs() as usize % 4])),
    ];
    rec(&[("site", "north"), ("device", device)], time, &fields)
}

/// Some fields only, and one of them NULL.
fn sparse(device: &str, time: i64, i: i64) -> Rec {
    rec(&[("device", device)], time, &[("f", Value::Null), ("i", Value::Int(i))])
}

fn create(engine: &Engine, new: NewTable) {
    engine.change_catalog(CatalogRequest::CreateTable(new)).unwrap();
}

fn write_chunks(engine: &Engine) {
    let dense = TableOptions { profile: Profile::Dense, max_bytes: 1 << 40, ..TableOptions::default() };
    let cold = TableOptions { retention: CENTURY, cold_after: CENTURY, ..TableOptions::default() };
    create(engine, new_table("points", TableKind::Points, 6 * HOUR));
    create(engine, new_table("events", TableKind::Events, DAY));
    create(engine, NewTable { options: dense, open: false, ..new_table("dense", TableKind::Points, DAY) });
    create(engine, NewTable { options: cold, ..new_table("cooled", TableKind::Points, DAY) });
    create(engine, new_table("dropped", TableKind::Points, DAY));
    engine.change_catalog(CatalogRequest::DropTable(table(engine, "dropped").id())).unwrap();
    for round in 0..3 {
        let rows = |count: i64, step: i64| -> Vec<Rec> {
            (0..count).map(|i| full(["a", "b"][i as usize % 2], START + i * step, i + round)).collect()
        };
        put(engine, "points", &rows(40, 20 * 60 * SECOND));
        put(engine, "points", &[sparse("a", START + round * HOUR, round), sparse("only", START, round)]);
        put(engine, "events", &[full("a", START, round), full("a", START, round), sparse("b", START, round)]);
        put(engine, "dense", &rows(60, 10 * SECOND));
        put(engine, "cooled", &rows(24, 2 * HOUR));
        engine.flush().unwrap();
    }
    engine.compact(table(engine, "dense").id()).unwrap();
    assert_eq!(engine.cool(table(engine, "cooled").id(), Timestamp::from_nanos(START + DAY)).unwrap(), 1);
    put(engine, "cooled", &[full("a", START, 77)]);
}

fn write_state(engine: &Engine) {
    object(
        engine,
        ObjectKind::Source,
        "plant",
        "CREATE SOURCE plant ON MQTT 'a/{device}' FORMAT JSON INTO points",
    );
    object(
        engine,
        ObjectKind::Rule,
        "hot",
        "CREATE RULE hot AS SELECT * FROM points WHERE f > 80 DO PUBLISH TO 'hot'",
    );
    object(engine, ObjectKind::Token, "pump-7", "{\"digest\":\"00\"}");
    state(engine, "mqtt.retained", "a/b", b"23.5");
    state(engine, "mqtt.session", "client-1", &[0, 1, 2, 255]);
}

/// What is in the log only: rows of old and new series, a column, an object, state.
fn write_tail(engine: &Engine) {
    put(engine, "points", &[full("tail", START + 2 * DAY, 9), sparse("a", START, 99)]);
    let late = vec![
        column("late", ColumnRole::Field, PhysicalType::Float64),
        column("line", ColumnRole::Tag, PhysicalType::Text),
    ];
    engine.change_catalog(CatalogRequest::AddColumns(table(engine, "points").id(), late)).unwrap();
    put(
        engine,
        "points",
        &[rec(&[("device", "tail"), ("line", "7")], START + 2 * DAY, &[("late", Value::float(0.5))])],
    );
    put(engine, "events", &[full("tail", START + DAY, 1)]);
    object(
        engine,
        ObjectKind::Source,
        "late",
        "CREATE SOURCE late ON MQTT 'b/{device}' FORMAT LINE INTO events",
    );
    state(engine, "mqtt.retained", "c", b"{}");
}

/// Makes the golden directory of this version where it is missing, if that is asked for.
#[test]
fn a_golden_directory_is_written_once() {
    let golden = testdata().join(VERSION);
    if golden.exists() || std::env::var("SONDE_WRITE_GOLDEN").is_err() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let engine = Engine::open(options(root.path())).unwrap();
    write_chunks(&engine);
    write_state(&engine);
    engine.flush().unwrap();
    write_tail(&engine);
    let expected = describe(&engine);
    drop(engine);
    std::fs::remove_file(root.path().join(path::LOCK)).unwrap();
    copy(root.path(), &golden.join("data"));
    std::fs::write(golden.join("expected.txt"), expected).unwrap();
}

#[test]
fn what_version_1_wrote_is_read() {
    let golden = testdata().join("v1");
    let expected = std::fs::read_to_string(golden.join("expected.txt")).unwrap();
    let root = tempfile::tempdir().unwrap();
    copy(&golden.join("data"), root.path());
    let damage = sonde_engine::doctor::examine(root.path()).unwrap().findings;
    assert!(
        damage.iter().all(|finding| finding.severity == sonde_engine::doctor::Severity::Good),
        "{damage:?}"
    );
    let engine = Engine::open(options(root.path())).unwrap();
    let profiles = engine.chunks().len();
    assert!(profiles >= 5 && engine.cold_files().len() == 1 && engine.memory().1 > 3, "{profiles}");
    assert_same(&describe(&engine), &expected, "as it was written");
    // What this build makes of it is the same.
    for table in engine.catalog().tables() {
        engine.compact(table.id()).unwrap();
    }
    assert_same(&describe(&engine), &expected, "merged");
    engine.close().unwrap();
    drop(engine);
    let engine = Engine::open(options(root.path())).unwrap();
    assert_same(&describe(&engine), &expected, "opened again");
    let tags = Tags::from([("device".to_owned(), "state".to_owned())]);
    assert!(read_all(&engine, "points").iter().any(|row| row.tags == tags));
}

/// Any damage to it is refused or repaired, and what is read behind a repair was written.
#[test]
fn no_damage_to_it_makes_up_rows() {
    let golden = testdata().join("v1/data");
    let rows = |engine: &Engine| -> Vec<(String, Tags, i64)> {
        let catalog = engine.catalog();
        let of = |name: &str| {
            read_all(engine, name).into_iter().map(|row| (name.to_owned(), row.tags, row.time)).collect()
        };
        catalog.tables().flat_map(|table| -> Vec<_> { of(&table.def().name) }).collect()
    };
    let root = tempfile::tempdir().unwrap();
    copy(&golden, root.path());
    let engine = Engine::open(options(root.path())).unwrap();
    let (last, expected) = (engine.published(), rows(&engine));
    let (mut repaired, mut refused) = (0, 0);
    for seed in 0..80 {
        let mut random = Random::new(seed);
        let root = tempfile::tempdir().unwrap();
        copy(&golden, root.path());
        let file = random.pick(&files_below(root.path()));
        let is_cold = file.extension().is_some_and(|extension| extension == "parquet");
        let mut bytes = std::fs::read(&file).unwrap();
        let at = random.below(bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1));
        match random.below(4) {
            // Nothing is known of the bytes of cold files but their number.
            0 => bytes.truncate(at),
            _ if is_cold => bytes.push(0),
            _ => bytes[at] ^= 1 << random.below(8),
        }
        std::fs::write(&file, bytes).unwrap();
        let what = format!("seed {seed}: {} at {at}", file.display());
        let Ok(report) = repair(root.path()) else {
            refused += 1;
            continue;
        };
        repaired += 1;
        assert_eq!(
            is_cold,
            report.losses.iter().any(|loss| matches!(loss, Loss::Cold { .. })),
            "{what}: {report:?}"
        );
        let engine = Engine::open(options(root.path())).unwrap_or_else(|error| panic!("{what}: {error}"));
        let (reached, found) = (engine.published(), rows(&engine));
        let made_up: Vec<_> = found.iter().filter(|row| !expected.contains(row)).collect();
        assert!(made_up.is_empty(), "{what}: {made_up:?}");
        let lost_nothing = report.losses.is_empty() && reached >= last;
        assert!(!lost_nothing || found.len() == expected.len(), "{what}: {report:?}");
        let again = repair_of(root.path(), engine);
        assert!(again.losses.is_empty() && again.mended.is_empty(), "{what}: {again:?}");
    }
    assert!(repaired > 30 && refused > 3, "{repaired} {refused}");
}

/// Stops the engine and repairs its directory.
fn repair_of(dir: &Path, engine: Engine) -> Repaired {
    drop(engine);
    repair(dir).unwrap()
}

fn assert_same(found: &str, expected: &str, what: &str) {
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected, "{what}");
    }
    assert_eq!(found.lines().count(), expected.lines().count(), "{what}");
}

/// A later version's directory, or an earlier one's, is refused and stays as it is, byte for byte.
#[test]
fn another_version_is_refused_and_untouched() {
    for version in ["2\n", "0\n", "", "1\n\n"] {
        let root = tempfile::tempdir().unwrap();
        copy(&testdata().join("v1/data"), root.path());
        std::fs::write(root.path().join(path::VERSION), version).unwrap();
        let contents = || -> Vec<_> {
            files_below(root.path())
                .into_iter()
                .map(|file| (file.clone(), std::fs::read(file).unwrap()))
                .collect()
        };
        let before = contents();
        let refused = Engine::open(options(root.path())).unwrap_err();
        assert!(matches!(refused, Error::Layout { .. }), "{refused}");
        assert!(sonde_engine::doctor::repair(root.path()).is_err());
        assert_eq!(contents(), before, "{version:?}");
    }
}
