//! A repair of a damaged directory: what it says is lost is lost, everything else is served, and nothing is wrong.
//!
//! # Invariants
//! - The expected rows are those of a model that leaves out exactly what the report names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sonde_engine::doctor::{Loss, Repaired, Severity, examine, repair, repair_on};
use sonde_engine::{
    CatalogRequest, ColumnRole, Engine, Error, Options, PhysicalType, SeqNo, SeqRange, Storage, TableKind,
    path,
};
use sonde_storage_format::FrameScan;

use crate::data::{
    Batch, DAY, Rec, SECOND, START, Value, column, create, message, new_table, put, rec, table, write,
};
use crate::faults::{Fault, Faulty, Reached};
use crate::model::Model;
use crate::random::Random;
use crate::store::{Store, files_below};

/// What was done to a directory, in log order.
#[derive(Debug)]
enum Step {
    Create(String, bool),
    Write(Batch),
}

/// A directory with several chunks, a checkpoint, and several segments of log behind it, which bring a table and series.
struct Scene {
    store: Store,
    steps: Vec<(SeqRange, Step)>,
    /// By id.
    tables: Vec<String>,
    /// The segment that was written to last.
    last_segment: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let mut store = Store::volatile(1 << 11);
        store.options.cold = None;
        let engine = store.open();
        let mut scene = Self { last_segment: PathBuf::new(), store, steps: Vec::new(), tables: Vec::new() };
        scene.create(&engine, "t", false);
        scene.create(&engine, "e", true);
        for round in 0..4 {
            scene.write_round(&engine, round);
            engine.flush().unwrap();
            if round == 2 {
                engine.compact(table(&engine, "t").id()).unwrap();
            }
        }
        for round in 4..7 {
            scene.write_round(&engine, round);
        }
        scene.create(&engine, "late", false);
        for round in 7..10 {
            scene.write_round(&engine, round);
            scene.put(&engine, "late", &[row("x", round, round)]);
        }
        drop(engine);
        let used = |path: &PathBuf| std::fs::read(path).unwrap()[64..].iter().any(|byte| *byte != 0);
        scene.last_segment = scene.store.segments().into_iter().rfind(used).unwrap();
        assert!(scene.store.segments().len() > 4, "{:?}", scene.store.segments());
        scene
    }

    fn create(&mut self, engine: &Engine, name: &str, events: bool) {
        let kind = if events { TableKind::Events } else { TableKind::Points };
        let seq = engine.change_catalog(CatalogRequest::CreateTable(new_table(name, kind, DAY))).unwrap();
        assert_eq!(table(engine, name).id().0 as usize, self.tables.len());
        self.tables.push(name.to_owned());
        self.steps.push((seq, Step::Create(name.to_owned(), events)));
    }

    fn put(&mut self, engine: &Engine, table: &str, rows: &[Rec]) {
        let batch = message(table, rows);
        self.steps.push((write(engine, &batch).unwrap(), Step::Write(batch)));
    }

    /// Some rows of old and new series, on two days, some of them over older ones.
    fn write_round(&mut self, engine: &Engine, round: i64) {
        for i in 0..6 {
            let rows: Vec<Rec> =
                (0..4).map(|j| row(["a", "b"][j % 2], i * 3 + j as i64 * DAY / 2 / SECOND, round)).collect();
            self.put(engine, "t", &rows);
            self.put(engine, "e", &[row("a", i, round), row(&format!("new-{round}"), i, i)]);
        }
        self.put(
            engine,
            "t",
            &[row(&format!("d{round}"), 1, round), row(&format!("d{}", round / 2), 2, round)],
        );
    }

    /// A copy of the directory.
    fn copy(&self) -> tempfile::TempDir {
        let root = tempfile::tempdir_in(self.store.options.data_dir.parent().unwrap()).unwrap();
        let data = &self.store.options.data_dir;
        for from in files_below(data) {
            let to = root.path().join(from.strip_prefix(data).unwrap());
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(from, to).unwrap();
        }
        root
    }

    /// What the directory holds without the losses and what stood behind `last`; and how many rows depend on them.
    fn model(&self, repaired: &Repaired, last: SeqNo) -> (Model, u64) {
        let gone = |seq: u64| {
            let lost = repaired.losses.iter().any(|loss| match loss {
                Loss::Log { first_seq, last_seq, .. } => (*first_seq..=*last_seq).contains(&seq),
                _ => false,
            });
            seq > last.0 || (lost && seq > repaired.flushed_to)
        };
        let mut model = Model::default();
        let mut tables = BTreeSet::new();
        // Each series is registered with its first row, whatever becomes of the row later.
        let (mut seen, mut unknown) = (BTreeSet::new(), BTreeSet::new());
        let mut dependent = 0;
        for (seq, step) in &self.steps {
            match step {
                Step::Create(name, events) if !gone(seq.first.0) => {
                    model.create(name, *events);
                    tables.insert(name.clone());
                }
                Step::Create(..) => {}
                Step::Write(batch) => {
                    let mut kept: Batch = vec![Vec::new()];
                    for (table, row) in batch.iter().flatten() {
                        let key = (table.clone(), row.tags.clone());
                        if seen.insert(key.clone()) && gone(seq.first.0) {
                            unknown.insert(key.clone());
                        }
                        if gone(seq.first.0) {
                            continue;
                        }
                        if unknown.contains(&key) || !tables.contains(table) {
                            dependent += 1;
                            continue;
                        }
                        if !self.in_lost_chunk(repaired, table, seq.first.0, row.time) {
                            kept[0].push((table.clone(), row.clone()));
                        }
                    }
                    model.apply(&kept);
                }
            }
        }
        (model, dependent)
    }

    fn in_lost_chunk(&self, repaired: &Repaired, name: &str, seq: u64, time: i64) -> bool {
        repaired.losses.iter().any(|loss| match loss {
            Loss::Chunk { table, first_seq, last_seq, range_start, range_end, .. } => {
                self.tables[*table as usize] == name
                    && (*first_seq..=*last_seq).contains(&seq)
                    && (*range_start..*range_end).contains(&time)
            }
            _ => false,
        })
    }

    /// Fails unless the repaired directory holds exactly what the report leaves.
    fn check(&self, dir: &Path, repaired: &Repaired, what: &str) -> Model {
        let again = repair(dir).unwrap();
        assert!(
            again.losses.is_empty() && again.mended.is_empty(),
            "{what}: a second repair found {again:?}"
        );
        let damage = examine(dir).unwrap().findings;
        let damage: Vec<_> = damage.iter().filter(|finding| finding.severity == Severity::Damage).collect();
        assert!(damage.is_empty(), "{what}: {damage:?}");
        let mut options = Options::new(dir);
        options.segment_bytes = 1 << 11;
        let engine = Engine::open(options.clone()).unwrap_or_else(|error| panic!("{what}: {error}"));
        let last = engine.published();
        let (model, dependent) = self.model(repaired, last);
        let reported: u64 = repaired
            .losses
            .iter()
            .map(|loss| if let Loss::Rows { rows, .. } = loss { *rows } else { 0 })
            .sum();
        assert_eq!(reported, dependent, "{what}: {repaired:#?}");
        model.check(&engine);
        // It goes on: new rows, a flush, a restart.
        let mut model_on = model.clone();
        if model_on.tables.contains_key("t") {
            let batch = message("t", &[row("a", 7, 99), row("after", 7, 99)]);
            write(&engine, &batch).unwrap();
            model_on.apply(&batch);
        }
        engine.close().unwrap();
        drop(engine);
        model_on.check(&Engine::open(options).unwrap());
        model
    }

    fn last_seq(&self) -> SeqNo {
        self.steps.last().unwrap().0.last
    }
}

fn row(device: &str, second: i64, value: i64) -> Rec {
    let fields = [("i", Value::Int(value)), ("s", Value::text(&format!("value {value} of {device}")))];
    rec(&[("device", device)], START + second * SECOND, &fields[..1 + (value % 2) as usize])
}

fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = files_below(dir).into_iter().filter(|path| !path.ends_with(path::LOCK));
    files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Damages a file; returns what was done.
fn damage(path: &Path, random: &mut Random) -> String {
    let mut bytes = std::fs::read(path).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1).min(bytes.len());
    let at = random.below(used.max(1));
    let what = match random.below(8) {
        0 => {
            bytes.truncate(at);
            format!("cut at {at}")
        }
        1 => {
            let end = (at + 1 + random.below(300)).min(bytes.len());
            bytes[at..end].fill(0);
            format!("zeroes from {at} to {end}")
        }
        2 => {
            std::fs::remove_file(path).unwrap();
            return "removed".to_owned();
        }
        _ => {
            let bit = random.below(8);
            bytes[at] ^= 1 << bit;
            format!("bit {bit} of byte {at}")
        }
    };
    std::fs::write(path, bytes).unwrap();
    what
}

/// Any damage to any file: a refusal that names it and changes nothing, or a repair whose report is exact.
#[test]
fn any_damage_is_repaired_or_refused() {
    let scene = Scene::new();
    let (mut repaired_count, mut refused, mut whole) = (0, 0, 0);
    for seed in 0..240 {
        let mut random = Random::new(seed);
        let root = scene.copy();
        let dir = root.path();
        let parts = [
            path::WAL_DIR,
            path::WAL_DIR,
            path::CHUNK_DIR,
            path::MANIFEST_DIR,
            path::STATE_DIR,
            path::VERSION,
        ];
        let files = files_below(dir);
        let part = dir.join(parts[random.below(if seed % 20 == 0 { 6 } else { 5 })]);
        let files: Vec<PathBuf> = files.into_iter().filter(|file| file.starts_with(&part)).collect();
        let file = random.pick(&files);
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let what = format!("seed {seed}: {name}: {}", damage(&file, &mut random));
        let before = contents(dir);
        match repair(dir) {
            Ok(repaired) => {
                let found_nothing = repaired.losses.is_empty() && repaired.mended.is_empty();
                assert_eq!(repaired.quarantine.is_none(), found_nothing, "{what}");
                if found_nothing {
                    assert_eq!(contents(dir), before, "{what}");
                    whole += 1;
                } else {
                    repaired_count += 1;
                }
                let kept = repaired.quarantine.as_ref().map(|place| files_below(place)).unwrap_or_default();
                let damaged = before.iter().find(|(path, _)| *path == file);
                if let Some((_, bytes)) = damaged.filter(|_| !found_nothing) {
                    let copies = kept.iter().filter(|kept| kept.file_name() == file.file_name());
                    let copies: Vec<Vec<u8>> = copies.map(|path| std::fs::read(path).unwrap()).collect();
                    assert!(copies.contains(bytes), "{what}: not in the quarantine: {kept:?}");
                }
                scene.check(dir, &repaired, &what);
                // Only the log's end can go without anybody being able to know.
                let engine = Engine::open(Options::new(dir)).unwrap();
                let end_lost = engine.published() < scene.last_seq();
                assert!(
                    !end_lost || name == scene.last_segment.file_name().unwrap().to_str().unwrap(),
                    "{what}"
                );
            }
            Err(error) => {
                refused += 1;
                let text = error.to_string();
                let parts = text.contains(&name)
                    || text.contains("/manifest cannot be")
                    || matches!(error, Error::Layout { .. });
                assert!(parts, "{what}: {text}");
                assert_eq!(contents(dir), before, "{what}: {text}");
            }
        }
    }
    assert!(repaired_count > 80 && refused > 20 && whole > 0, "{repaired_count} {refused} {whole}");
}

/// A hole in the middle of the log: its numbers, its rows, and those of series that it registered.
#[test]
fn a_hole_in_the_log_takes_its_own_rows_only() {
    let scene = Scene::new();
    let root = scene.copy();
    let dir = root.path();
    let segments = files_below(&dir.join(path::WAL_DIR));
    let at = segments.iter().position(|path| path.file_name() == scene.last_segment.file_name()).unwrap();
    let hole = &segments[at - 1];
    std::fs::remove_file(hole).unwrap();
    let refused = Engine::open(Options::new(dir)).unwrap_err();
    assert!(matches!(refused, Error::Corrupt { .. }), "{refused}");
    let repaired = repair(dir).unwrap();
    let of_log = |loss: &&Loss| matches!(loss, Loss::Log { in_files: false, .. });
    assert_eq!(repaired.losses.iter().filter(of_log).count(), 1, "{repaired:#?}");
    let report = repaired.quarantine.clone().unwrap().join(path::REPAIR_REPORT);
    let report = std::fs::read_to_string(report).unwrap();
    assert!(report.contains("\"kind\": \"log\"") && report.contains("first_seq"), "{report}");
    scene.check(dir, &repaired, "a segment is gone");
}

/// A repair that is cut short anywhere is finished by the next one, which comes to the same rows.
#[test]
fn a_repair_that_is_cut_short_is_finished_by_the_next() {
    let scene = Scene::new();
    let damaged = |dir: &Path| {
        let segments = files_below(&dir.join(path::WAL_DIR));
        for path in [&files_below(&dir.join(path::CHUNK_DIR))[1], &segments[1], &segments[2], &segments[4]] {
            let mut bytes = std::fs::read(path).unwrap();
            bytes[200] ^= 1;
            std::fs::write(path, bytes).unwrap();
        }
    };
    let root = scene.copy();
    damaged(root.path());
    let whole = repair(root.path()).unwrap();
    let expected = scene.check(root.path(), &whole, "in one go");
    let mut operations = 0;
    for at in 0.. {
        for reached in [Reached::Nothing, Reached::Half, Reached::All] {
            let root = scene.copy();
            damaged(root.path());
            let disk: Arc<dyn Storage> = Arc::new(Faulty::new(Fault::Crash(at, reached)));
            if repair_on(root.path(), &disk).is_ok() {
                operations = at;
                break;
            }
            repair(root.path()).unwrap();
            expected.check(&Engine::open(Options::new(root.path())).unwrap());
        }
        if operations > 0 {
            break;
        }
    }
    assert!(operations > 8, "{operations}");
}

#[test]
fn a_directory_in_use_and_a_whole_one_stay_as_they_are() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", DAY);
    let error = repair(&store.options.data_dir).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    engine.close().unwrap();
    drop(engine);
    let before = contents(&store.options.data_dir);
    let repaired = repair(&store.options.data_dir).unwrap();
    assert!(repaired.quarantine.is_none() && repaired.losses.is_empty(), "{repaired:?}");
    assert_eq!(contents(&store.options.data_dir), before);
    assert!(repair(&store.options.data_dir.join("nothing")).is_err());
}

/// Flips a bit of the frame with this sequence number.
fn damage_frame(store: &Store, wanted: SeqNo) {
    for path in store.segments() {
        let mut bytes = std::fs::read(&path).unwrap();
        let number = path::parse_segment(path.file_name().unwrap().to_str().unwrap()).unwrap();
        let mut offset = 64;
        while let FrameScan::Frame(frame) = FrameScan::at(number, &bytes.clone(), offset) {
            if frame.seq.first <= wanted && wanted <= frame.seq.last {
                bytes[offset as usize + 40] ^= 1;
                return std::fs::write(&path, bytes).unwrap();
            }
            offset = frame.end;
        }
    }
    panic!("no frame has {wanted}");
}

/// Columns whose registration is gone: fields go with their values, and a series whose key has a tag too many cannot be
/// told from others, so its rows go. Nothing turns up under a column that comes later.
#[test]
fn what_a_lost_column_held_turns_up_nowhere() {
    let mut store = Store::new();
    store.options.cold = None;
    let engine = store.open();
    let id = create(&engine, "t", DAY).id();
    let add = |engine: &Engine, columns: &[(&str, ColumnRole)]| {
        let columns = columns.iter().map(|(name, role)| {
            let kind = if *role == ColumnRole::Tag { PhysicalType::Text } else { PhysicalType::Float64 };
            column(name, *role, kind)
        });
        engine.change_catalog(CatalogRequest::AddColumns(id, columns.collect())).unwrap()
    };
    let tagged = |device: &str, more: &[(&str, &str)], second: i64, fields: &[(&str, Value)]| {
        let mut row = row(device, second, 2);
        row.tags.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        row.fields.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        row
    };
    put(&engine, "t", &[row("a", 0, 2)]);
    engine.flush().unwrap();
    let lost = add(&engine, &[("x", ColumnRole::Field), ("line", ColumnRole::Tag)]);
    let one = Value::float(1.0);
    put(&engine, "t", &[tagged("a", &[], 1, &[("x", one.clone())]), tagged("a", &[("line", "7")], 2, &[])]);
    add(&engine, &[("hall", ColumnRole::Tag), ("z", ColumnRole::Field)]);
    put(&engine, "t", &[tagged("a", &[], 3, &[("z", one.clone())]), tagged("b", &[("hall", "h")], 4, &[])]);
    put(&engine, "t", &[tagged("c", &[], 5, &[])]);
    drop(engine);
    damage_frame(&store, lost.first);

    let repaired = repair(&store.options.data_dir).unwrap();
    let kinds: Vec<(&str, u64)> = repaired
        .losses
        .iter()
        .filter_map(|loss| match loss {
            Loss::Rows { rows, .. } => Some(("rows", *rows)),
            Loss::Values { rows, .. } => Some(("values", *rows)),
            _ => None,
        })
        .collect();
    assert_eq!(kinds, [("rows", 1), ("values", 1), ("rows", 1)], "{repaired:#?}");
    let engine = store.open();
    let kept = [
        row("a", 0, 2),
        tagged("a", &[], 1, &[]),
        tagged("a", &[], 3, &[("z", one)]),
        tagged("c", &[], 5, &[]),
    ];
    let found = || {
        let mut rows = crate::data::read_all(&engine, "t");
        rows.sort_by_key(|row| row.time);
        rows
    };
    assert_eq!(found(), kept);
    add(&engine, &[("line", ColumnRole::Tag), ("x", ColumnRole::Field)]);
    write(&engine, &message("t", &[tagged("d", &[("hall", "g"), ("line", "8")], 6, &[])])).unwrap();
    assert_eq!(found()[..4], kept);
    assert_eq!(found()[4].tags, tagged("d", &[("hall", "g"), ("line", "8")], 6, &[]).tags);
    assert!(repair(&store.options.data_dir).is_err(), "it is in use");
    drop(engine);
    assert!(repair(&store.options.data_dir).unwrap().quarantine.is_none());
}
