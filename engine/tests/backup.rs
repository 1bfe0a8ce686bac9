//! Backups: what they restore to, what they copy, and which instants they reach.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sonde_engine::backup::{
    BackupStore, Listing, Report, RestoreRequest, Restored, To, back_up_stopped, list, restore, verify,
};
use sonde_engine::{
    ColdOptions, Engine, Error, LocalStorage, LogBudget, Options, Result, SeqNo, State, Timestamp, path,
};

use crate::data::{DAY, SECOND, START, Value, create, message, put, rec, table, write};
use crate::model::Model;
use crate::store::{Manual, Store, files_below, runtime};

/// The name of the destination in the state of an engine.
pub(crate) const NAME: &str = "nightly";

pub(crate) fn destination(store: &Store) -> BackupStore {
    BackupStore::local(&store.beside("backups"), true, runtime()).unwrap()
}

pub(crate) fn back_up(engine: &Engine, to: &BackupStore) -> Report {
    engine.backup(to, NAME).unwrap()
}

pub(crate) fn try_restore(from: &BackupStore, dir: &Path, to: To, backup: Option<&str>) -> Result<Restored> {
    let request = RestoreRequest { data_dir: dir.into(), to, backup: backup.map(str::to_owned) };
    restore(from, &LocalStorage, &request)
}

/// What a store held, by the last sequence number of each step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Past(Vec<(SeqNo, Model)>);

impl Past {
    pub(crate) fn note(&mut self, seq: SeqNo, model: &Model) {
        self.0.push((seq, model.clone()));
    }

    /// Forgets what was committed behind a position.
    pub(crate) fn forget_behind(&mut self, seq: SeqNo) {
        self.0.retain(|(at, _)| *at <= seq);
    }

    pub(crate) fn at(&self, seq: SeqNo) -> &Model {
        let behind = self.0.partition_point(|(at, _)| *at <= seq);
        &self.0[behind.checked_sub(1).unwrap_or_else(|| panic!("nothing is known of {seq:?}"))].1
    }
}

/// Restores and fails unless the directory opens as what was there then; it goes on from there, too.
pub(crate) fn check_restored(store: &Store, from: &BackupStore, to: To, past: &Past) -> Restored {
    let dir = store.beside("restored");
    let restored = try_restore(from, &dir, to, None).unwrap();
    let examined = sonde_engine::doctor::examine(&dir).unwrap();
    let damage =
        examined.findings.iter().find(|finding| finding.severity == sonde_engine::doctor::Severity::Damage);
    assert_eq!(damage, None);
    let engine = Engine::open(options_of(&dir, &store.options)).unwrap();
    assert_eq!(engine.published(), restored.seq);
    let mut model = past.at(restored.seq).clone();
    model.check(&engine);
    for name in model.tables.keys().cloned().collect::<Vec<_>>() {
        let batch = message(&name, &[rec(&[("device", "restored")], START, &[("i", Value::Int(1))])]);
        write(&engine, &batch).unwrap();
        model.apply(&batch);
    }
    engine.flush().unwrap();
    model.check(&engine);
    engine.close().unwrap();
    drop(engine);
    std::fs::remove_dir_all(&dir).unwrap();
    restored
}

/// How a restored directory is opened: with a cold tier of its own, if that of the original was.
pub(crate) fn options_of(dir: &Path, original: &Options) -> Options {
    let mut options = original.clone();
    options.data_dir = dir.into();
    let own = original.data_dir.join(path::COLD_DIR);
    if original.cold.as_ref().is_some_and(|cold| cold.directory.as_ref() == Some(&own)) {
        let own = dir.join(path::COLD_DIR);
        std::fs::create_dir_all(&own).unwrap();
        options.cold = Some(ColdOptions {
            store: Arc::new(object_store::local::LocalFileSystem::new_with_prefix(&own).unwrap()),
            directory: Some(own),
            runtime: runtime(),
        });
    }
    options
}

fn row(device: i64, time: i64, value: i64) -> crate::data::Rec {
    rec(&[("device", &format!("d{device}"))], START + time, &[("i", Value::Int(value))])
}

/// A history of commits, flushes and merges, with backups in between.
pub(crate) struct History {
    pub(crate) store: Store,
    pub(crate) clock: Arc<Manual>,
    pub(crate) engine: Engine,
    pub(crate) to: BackupStore,
    pub(crate) model: Model,
    pub(crate) past: Past,
    pub(crate) steps: i64,
}

impl History {
    pub(crate) fn start() -> Self {
        Self::with_segments(4096)
    }

    pub(crate) fn with_segments(bytes: u64) -> Self {
        let mut store = Store::with_segments(bytes);
        store.options.log = LogBudget { max_bytes: 1 << 30, ..LogBudget::default() };
        let clock = Manual::at(START + 100 * DAY);
        let engine = store.open_by(&clock);
        create(&engine, "t", DAY);
        let to = destination(&store);
        let mut model = Model::default();
        model.create("t", false);
        let mut past = Past::default();
        past.note(engine.published(), &model);
        Self { store, clock, engine, to, model, past, steps: 0 }
    }

    /// Commits `count` batches, each two seconds behind the one before.
    pub(crate) fn write(&mut self, count: i64) {
        for _ in 0..count {
            self.clock.go_on(2 * SECOND);
            self.steps += 1;
            let rows = [row(self.steps % 5, self.steps % 7 * DAY, self.steps), row(9, self.steps, 0)];
            let seq = put(&self.engine, "t", &rows).last;
            self.model.apply(&message("t", &rows));
            self.past.note(seq, &self.model);
        }
    }

    pub(crate) fn compact(&self) {
        self.engine.compact(table(&self.engine, "t").id()).unwrap();
    }

    pub(crate) fn back_up(&mut self) -> Report {
        self.clock.go_on(SECOND);
        let report = back_up(&self.engine, &self.to);
        self.past.note(report.seq, &self.model);
        report
    }

    pub(crate) fn check(&self, to: To) -> Restored {
        check_restored(&self.store, &self.to, to, &self.past)
    }

    pub(crate) fn list(&self) -> Listing {
        let listing = list(&self.to).unwrap();
        assert_eq!(listing.unreadable, []);
        listing
    }
}

#[test]
fn a_backup_of_an_engine_without_rows_restores() {
    let store = Store::new();
    let engine = store.open();
    let to = destination(&store);
    let mut past = Past::default();
    past.note(SeqNo(0), &Model::default());
    let report = back_up(&engine, &to);
    assert_eq!((report.seq, report.since), (SeqNo(0), None));
    assert_eq!(check_restored(&store, &to, To::Latest, &past).seq, SeqNo(0));
}

#[test]
fn backups_while_rows_are_written_flushed_and_merged() {
    let mut store = Store::with_own_cold();
    store.options.segment_bytes = 16 << 10;
    store.options.memtable_bytes = 32 << 10;
    let engine = store.open();
    create(&engine, "t", DAY);
    let id = table(&engine, "t").id();
    let to = destination(&store);
    let stop = AtomicBool::new(false);
    let (past, reports) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut model, mut past) = (Model::default(), Past::default());
            model.create("t", false);
            past.note(engine.published(), &model);
            let mut step = 0;
            while !stop.load(Ordering::Relaxed) {
                step += 1;
                let rows: Vec<_> = (0..20).map(|i| row(i, (step + i) % 9 * DAY + i, step)).collect();
                let seq = put(&engine, "t", &rows).last;
                model.apply(&message("t", &rows));
                past.note(seq, &model);
                match step % 40 {
                    13 => engine.flush().unwrap(),
                    26 => engine.compact(id).unwrap(),
                    39 => drop(engine.cool(id, Timestamp::from_nanos(START + 2 * DAY)).unwrap()),
                    _ => {}
                }
            }
            past
        });
        let reports: Vec<Report> = (0..8).map(|_| back_up(&engine, &to)).collect();
        stop.store(true, Ordering::Relaxed);
        (writer.join().unwrap(), reports)
    });
    assert!(
        reports
            .windows(2)
            .all(|pair| pair[0].seq < pair[1].seq && pair[1].since.as_ref() == Some(&pair[0].id))
    );
    assert_eq!(verify(&to, None).unwrap().damage, Vec::<String>::new());
    drop(engine);
    for report in &reports {
        let dir = store.beside("one");
        try_restore(&to, &dir, To::Latest, Some(&report.id)).unwrap();
        let engine = Engine::open(options_of(&dir, &store.options)).unwrap();
        past.at(report.seq).check(&engine);
        drop(engine);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn cold_files_are_copied_from_the_default_store_and_named_where_they_lie_elsewhere() {
    for (store, is_own) in [(Store::with_own_cold(), true), (Store::new(), false)] {
        let engine = store.open();
        create(&engine, "t", DAY);
        let mut model = Model::default();
        model.create("t", false);
        let rows = [row(1, 0, 1), row(2, DAY, 2), row(3, 5 * DAY, 3)];
        let mut past = Past::default();
        past.note(put(&engine, "t", &rows).last, &model);
        model.apply(&message("t", &rows));
        engine.cool(table(&engine, "t").id(), Timestamp::from_nanos(START + 2 * DAY)).unwrap();
        let to = destination(&store);
        let report = back_up(&engine, &to);
        past.note(report.seq, &model);
        assert_eq!(report.cold_elsewhere, if is_own { 0 } else { 2 });
        let parquet = files_below(&store.beside("backups"))
            .into_iter()
            .filter(|path| path.extension().is_some_and(|ending| ending == "parquet"))
            .count();
        assert_eq!(parquet, if is_own { 2 } else { 0 });
        engine.close().unwrap();
        let restored = check_restored(&store, &to, To::Latest, &past);
        assert_eq!(restored.cold_elsewhere, report.cold_elsewhere);
    }
}

#[test]
fn a_stopped_directory_is_backed_up_without_being_changed() {
    let mut history = History::start();
    history.write(5);
    let first = history.back_up();
    history.write(5);
    let seq = history.engine.published();
    let dir = history.store.options.data_dir.clone();
    let stopped = |to: &BackupStore| back_up_stopped(&dir, None, to, NAME);
    assert!(matches!(stopped(&history.to), Err(Error::Locked { .. })));
    // A crash, in the middle of a frame.
    let History { store, engine, to, past, .. } = history;
    drop(engine);
    let segment =
        store.segments().into_iter().rev().find(|path| std::fs::read(path).unwrap().len() > 64).unwrap();
    let contents = || -> Vec<(PathBuf, Vec<u8>)> {
        files_below(&dir).into_iter().map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
    };
    let before = contents();
    let report = stopped(&to).unwrap();
    assert_eq!((report.seq, report.since), (SeqNo(seq.0), Some(first.id)));
    assert!(contents() == before, "the backup changed a file");
    check_restored(&store, &to, To::Latest, &past);
    check_restored(&store, &to, To::Seq(SeqNo(seq.0 - 2)), &past);
    // What it holds already is known by its bytes, even where the state does not know of the backup.
    assert!(stopped(&to).unwrap().copied.0 <= report.copied.0 + 1);
    std::fs::write(segment, b"not a segment").unwrap();
    assert!(matches!(stopped(&to), Err(Error::Corrupt { .. })));
    assert_eq!(list(&to).unwrap().backups.len(), 3);
    std::fs::write(dir.join(path::VERSION), "2\n").unwrap();
    assert!(matches!(stopped(&to), Err(Error::Layout { .. })));
}

#[test]
fn a_restore_makes_a_directory_and_changes_none() {
    let mut history = History::start();
    history.write(2);
    history.back_up();
    let taken = history.store.beside("taken");
    std::fs::create_dir(&taken).unwrap();
    std::fs::write(taken.join("file"), "mine").unwrap();
    let error = try_restore(&history.to, &taken, To::Latest, None).unwrap_err();
    assert!(error.to_string().contains("taken is not empty"), "{error}");
    assert_eq!(std::fs::read_to_string(taken.join("file")).unwrap(), "mine");
    let error = try_restore(&history.to, &taken.join("file"), To::Latest, None).unwrap_err();
    assert!(error.to_string().contains("is not empty"), "{error}");
    // What a restore that died has left is in nobody's way; an empty directory is as good as none.
    std::fs::create_dir_all(history.store.beside(".empty.restore").join("chunks")).unwrap();
    let empty = history.store.beside("empty");
    std::fs::create_dir(&empty).unwrap();
    try_restore(&history.to, &empty, To::Latest, None).unwrap();
    assert!(!history.store.beside(".empty.restore").exists());
    drop(Engine::open(Options::new(&empty)).unwrap());
    let nothing = BackupStore::local(&empty, false, runtime()).unwrap();
    assert!(try_restore(&nothing, &history.store.beside("x"), To::Latest, None).is_err());
    assert!(BackupStore::local(&history.store.beside("nowhere"), false, runtime()).is_err());
}

#[test]
fn a_backup_of_a_newer_layout_is_refused_untouched() {
    let mut history = History::start();
    history.write(2);
    let report = history.back_up();
    let file = history.store.beside("backups").join(&report.id).join("backup.json");
    let text = std::fs::read_to_string(&file).unwrap().replace("\"layout\": \"1\"", "\"layout\": \"2\"");
    // Sealed as the newer program would have sealed it.
    let (body, _) = text.rsplit_once(",\n  \"sha256\": \"").unwrap();
    let digest: String = sha2_hex(body.as_bytes());
    std::fs::write(&file, format!("{body},\n  \"sha256\": \"{digest}\"\n}}\n")).unwrap();
    let dir = history.store.beside("x");
    let error = try_restore(&history.to, &dir, To::Latest, None).unwrap_err();
    assert!(error.to_string().contains("layout 2"), "{error}");
    assert!(!dir.exists());
    let listing = list(&history.to).unwrap();
    assert_eq!((listing.backups.len(), listing.unreadable.len()), (0, 1));
    assert_eq!(verify(&history.to, None).unwrap().damage.len(), 1);
    // It is in nobody's way, and nothing that it may need goes.
    let old = files_below(&history.store.beside("backups"));
    history.write(1);
    history.back_up();
    assert!(old.iter().all(|path| path.exists()));
    history.check(To::Latest);
}

fn sha2_hex(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// State of others, as of the position.

#[test]
fn state_is_restored_too() {
    let store = Store::new();
    let engine = store.open();
    let to = destination(&store);
    let set = |value: u8| {
        let mut batch = engine.batch();
        batch.state(State { namespace: "n".into(), key: b"k".to_vec(), value: Some(vec![value]) });
        engine.write(batch.finish().unwrap()).wait().unwrap().last
    };
    set(1);
    engine.flush().unwrap();
    back_up(&engine, &to);
    let two = set(2);
    engine.flush().unwrap();
    set(3);
    back_up(&engine, &to);
    for (to_what, value) in [(To::Seq(two), 2), (To::Latest, 3)] {
        let dir = store.beside("x");
        try_restore(&to, &dir, to_what, None).unwrap();
        let restored = Engine::open(Options::new(&dir)).unwrap();
        assert_eq!(restored.state("n", b"k").unwrap().as_ref(), [value]);
        drop(restored);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
