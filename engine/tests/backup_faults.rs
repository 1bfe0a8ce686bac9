//! Backups and restores that fail, die, or meet damage.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
};
use sonde_engine::backup::{BackupStore, RestoreRequest, To, list, restore, verify};
use sonde_engine::{Engine, Error, Options, SeqNo, path};

use crate::backup::{NAME, Past, back_up, check_restored, destination, try_restore};
use crate::data::{DAY, START, Value, create, message, put, rec};
use crate::faults::{Fault, Faulty, Reached};
use crate::model::Model;
use crate::store::{Store, files_below, runtime};

/// A directory whose requests fail from some one on.
#[derive(Debug)]
struct Failing {
    store: LocalFileSystem,
    /// Requests that work still.
    left: AtomicU64,
    writes: AtomicU64,
}

impl Failing {
    fn take(&self) -> StoreResult<()> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| object_store::Error::Generic {
            store: "failing",
            source: "the destination is gone".into(),
        })
    }
}

impl std::fmt::Display for Failing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("failing")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Failing {
    async fn put_opts(
        &self,
        path: &ObjectPath,
        payload: PutPayload,
        how: PutOptions,
    ) -> StoreResult<PutResult> {
        self.take()?;
        self.store.put_opts(path, payload, how).await
    }

    async fn put_multipart_opts(
        &self,
        path: &ObjectPath,
        how: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.take()?;
        self.store.put_multipart_opts(path, how).await
    }

    async fn get_opts(&self, path: &ObjectPath, how: GetOptions) -> StoreResult<GetResult> {
        self.store.get_opts(path, how).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, StoreResult<ObjectPath>>,
    ) -> BoxStream<'static, StoreResult<ObjectPath>> {
        self.store.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> StoreResult<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, how: CopyOptions) -> StoreResult<()> {
        self.store.copy_opts(from, to, how).await
    }
}

struct Filled {
    store: Store,
    engine: Engine,
    past: Past,
    model: Model,
}

/// An engine with chunks, a checkpoint and rows in the log alone.
fn filled() -> Filled {
    let store = Store::with_segments(4096);
    let engine = store.open();
    create(&engine, "t", DAY);
    let mut model = Model::default();
    model.create("t", false);
    let mut past = Past::default();
    for step in 0..12 {
        let rows = [rec(&[("device", "d")], START + step % 3 * DAY + step, &[("i", Value::Int(step))])];
        let seq = put(&engine, "t", &rows).last;
        model.apply(&message("t", &rows));
        past.note(seq, &model);
        if step == 7 {
            engine.flush().unwrap();
        }
    }
    Filled { store, engine, past, model }
}

fn failing(store: &Store, left: u64) -> (BackupStore, Arc<Failing>) {
    let dir = store.beside("backups");
    std::fs::create_dir_all(&dir).unwrap();
    let local = LocalFileSystem::new_with_prefix(&dir).unwrap();
    let failing = Arc::new(Failing { store: local, left: left.into(), writes: AtomicU64::new(0) });
    let store: Arc<dyn ObjectStore> = Arc::<Failing>::clone(&failing);
    (BackupStore::new(store, Some(dir), runtime()), failing)
}

#[test]
fn a_backup_that_dies_at_any_write_is_none_and_the_next_one_tidies_up() {
    let Filled { store, engine, mut past, model } = filled();
    let first = back_up(&engine, &destination(&store));
    past.note(first.seq, &model);
    let rows = [rec(&[("device", "e")], START, &[("i", Value::Int(99))])];
    let mut later = model.clone();
    past.note(put(&engine, "t", &rows).last, {
        later.apply(&message("t", &rows));
        &later
    });
    engine.flush().unwrap();
    let mut died = 0;
    loop {
        let (to, requests) = failing(&store, died);
        match engine.backup(&to, NAME) {
            Err(Error::Cold(text)) => assert!(text.contains("the destination is gone"), "{text}"),
            Err(other) => panic!("{other}"),
            Ok(report) => {
                assert_eq!(requests.writes.load(Ordering::Relaxed), died, "it went on behind a failure");
                past.note(report.seq, &later);
                break;
            }
        }
        let listing = list(&to).unwrap();
        assert_eq!((listing.backups.len(), listing.unreadable.len()), (1, 0));
        assert_eq!(verify(&to, None).unwrap().damage, Vec::<String>::new());
        assert_eq!(try_restore(&to, &store.beside("x"), To::Latest, None).unwrap().backup, first.id);
        std::fs::remove_dir_all(store.beside("x")).unwrap();
        died += 1;
    }
    assert!(died >= 5, "{died} writes");
    // Two backups, and nothing of those that died.
    let dirs = std::fs::read_dir(store.beside("backups")).unwrap();
    assert_eq!(dirs.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count(), 2);
    check_restored(&store, &destination(&store), To::Latest, &past);
    // The engine does not care.
    later.check(&engine);
    engine.close().unwrap();
}

#[test]
fn damage_of_each_object_is_found_by_name() {
    let Filled { store, engine, .. } = filled();
    let to = destination(&store);
    back_up(&engine, &to);
    let rows = [rec(&[("device", "e")], START, &[("i", Value::Int(99))])];
    put(&engine, "t", &rows);
    engine.flush().unwrap();
    put(&engine, "t", &rows);
    let last = back_up(&engine, &to);
    let root = store.beside("backups");
    let objects: Vec<PathBuf> =
        files_below(&root).into_iter().filter(|path| !path.ends_with("LOCK")).collect();
    assert!(objects.len() > 8, "{objects:?}");
    let manifest = std::fs::read_to_string(root.join(&last.id).join("backup.json")).unwrap();
    let mut needed = 0;
    for object in objects {
        let name = object.strip_prefix(&root).unwrap().display().to_string();
        let good = std::fs::read(&object).unwrap();
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 0x10;
        let damages: [Option<&[u8]>; 4] = [Some(&flipped), Some(&good[..good.len() - 1]), Some(b""), None];
        for damage in damages {
            match damage {
                Some(bytes) => std::fs::write(&object, bytes).unwrap(),
                None => std::fs::remove_file(&object).unwrap(),
            }
            // Without a manifest there is no backup: that alone cannot be told from one that was not finished.
            let is_gone = damage.is_none() && name.ends_with("backup.json");
            let found = verify(&to, None).unwrap();
            assert!(is_gone || found.damage.iter().any(|text| text.contains(&name)), "{name}: {found:?}");
            let is_own = name == format!("{}/backup.json", last.id);
            if is_own || manifest.contains(&name) {
                let dir = store.beside("x");
                let error = try_restore(&to, &dir, To::Latest, Some(&last.id)).unwrap_err();
                let names = matches!(&error, Error::BadBackup { object, .. } if *object == name);
                assert!(names || is_gone, "{name}: {error}");
                assert!(!dir.exists() && !store.beside(".x.restore").exists());
                needed += 1;
            }
        }
        std::fs::write(&object, &good).unwrap();
    }
    assert!(needed > 20, "{needed} of the damages were to objects of the last backup");
    assert_eq!(verify(&to, None).unwrap().damage, Vec::<String>::new());
}

/// What an earlier backup has lost is copied again.
#[test]
fn a_missing_object_is_copied_again() {
    let Filled { store, engine, mut past, model } = filled();
    let to = destination(&store);
    let first = back_up(&engine, &to);
    let chunks = files_below(&store.beside("backups").join(&first.id).join("chunks"));
    std::fs::remove_file(&chunks[0]).unwrap();
    let logs = files_below(&store.beside("backups").join(&first.id).join("wal"));
    std::fs::write(&logs[0], b"short").unwrap();
    let second = back_up(&engine, &to);
    past.note(second.seq, &model);
    check_restored(&store, &to, To::Latest, &past);
    assert_eq!(verify(&to, Some(&second.id)).unwrap().damage, Vec::<String>::new());
    assert_eq!(verify(&to, Some(&first.id)).unwrap().damage.len(), 2);
}

#[test]
fn no_backup_is_made_of_damaged_data() {
    for part in [path::CHUNK_DIR, path::WAL_DIR] {
        let Filled { store, engine, model, .. } = filled();
        let to = destination(&store);
        let file = crate::store::files(&store.dir(part)).pop().unwrap();
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[80] ^= 1;
        // Another file under its name: what the engine has mapped stays as it was.
        let other = store.beside("other");
        std::fs::write(&other, bytes).unwrap();
        std::fs::rename(&other, &file).unwrap();
        let error = engine.backup(&to, NAME).unwrap_err();
        assert!(matches!(&error, Error::Corrupt { path, .. } if *path == file), "{error}");
        assert_eq!(list(&to).unwrap().backups, []);
        assert!(engine.health().is_ok());
        if part == path::WAL_DIR {
            model.check(&engine);
        }
    }
}

#[test]
fn a_restore_that_dies_at_any_write_leaves_no_directory() {
    let Filled { store, engine, mut past, model } = filled();
    let to = destination(&store);
    let report = back_up(&engine, &to);
    past.note(report.seq, &model);
    let dir = store.beside("x");
    let request = RestoreRequest { data_dir: dir.clone(), to: To::Latest, backup: None };
    for reached in [Reached::Nothing, Reached::Half, Reached::All] {
        for at in 0.. {
            let disk = Faulty::new(Fault::Crash(at, reached));
            let outcome = restore(&to, &disk, &request);
            if !disk.crashed() {
                outcome.unwrap();
                assert!(at > 5, "{at} writes");
                break;
            }
            assert!(outcome.is_err() && !dir.exists(), "it died in {:?}", disk.done().pop());
        }
        let engine = Engine::open(Options { data_dir: dir.clone(), ..store.options.clone() }).unwrap();
        model.check(&engine);
        drop(engine);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn a_cancelled_backup_ends_and_lets_the_next_one_run() {
    let Filled { store, engine, mut past, model } = filled();
    assert!(!engine.cancel_backup());
    let (slow, gate) = gated(&store);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| engine.backup(&slow, NAME));
        gate.wait_for_a_write();
        // Another one has to wait, and writers do not.
        let (other, _) = failing(&store, 100);
        assert!(matches!(engine.backup(&other, NAME), Err(Error::Limit { limit: 1, .. })));
        put(&engine, "t", &[rec(&[("device", "meanwhile")], START, &[("i", Value::Int(0))])]);
        engine.flush().unwrap();
        assert!(engine.cancel_backup());
        gate.open();
        let error = running.join().unwrap().unwrap_err();
        assert!(error.to_string().contains("cancelled"), "{error}");
    });
    let to = destination(&store);
    assert_eq!(list(&to).unwrap().backups, []);
    let mut model = model;
    model.apply(&message("t", &[rec(&[("device", "meanwhile")], START, &[("i", Value::Int(0))])]));
    let report = back_up(&engine, &to);
    past.note(report.seq, &model);
    check_restored(&store, &to, To::Latest, &past);
}

/// The first backup takes long: what is committed meanwhile is for the second one.
#[test]
fn the_log_waits_for_the_next_backup_while_the_first_is_copied() {
    let Filled { store, engine, mut past, model } = filled();
    let (slow, gate) = gated(&store);
    let mut later = model;
    let first = std::thread::scope(|scope| {
        let running = scope.spawn(|| engine.backup(&slow, NAME).unwrap());
        gate.wait_for_a_write();
        for step in 0..100 {
            let rows = [rec(&[("device", "meanwhile")], START + step, &[("i", Value::Int(step))])];
            let seq = put(&engine, "t", &rows).last;
            later.apply(&message("t", &rows));
            past.note(seq, &later);
        }
        engine.flush().unwrap();
        gate.open();
        running.join().unwrap()
    });
    let to = destination(&store);
    let second = back_up(&engine, &to);
    assert_eq!(second.since, Some(first.id));
    past.note(second.seq, &later);
    for seq in [first.seq.0 + 1, first.seq.0 + 50, second.seq.0] {
        check_restored(&store, &to, To::Seq(SeqNo(seq)), &past);
    }
}

fn gated(store: &Store) -> (BackupStore, Arc<Gate>) {
    let dir = store.beside("backups");
    std::fs::create_dir_all(&dir).unwrap();
    let local = LocalFileSystem::new_with_prefix(&dir).unwrap();
    let (waits, changed) = (std::sync::Mutex::default(), std::sync::Condvar::new());
    let gate = Arc::new(Gate { store: local, waits, changed });
    let shared: Arc<dyn ObjectStore> = Arc::<Gate>::clone(&gate);
    (BackupStore::new(shared, Some(dir), runtime()), gate)
}

/// A directory whose writes wait at a gate.
#[derive(Debug)]
struct Gate {
    store: LocalFileSystem,
    /// Whether a write waits, and whether the gate is open.
    waits: std::sync::Mutex<(bool, bool)>,
    changed: std::sync::Condvar,
}

impl Gate {
    fn wait_for_a_write(&self) {
        let waits = self.waits.lock().unwrap();
        drop(self.changed.wait_while(waits, |(waits, _)| !*waits).unwrap());
    }

    fn open(&self) {
        self.waits.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut waits = self.waits.lock().unwrap();
        waits.0 = true;
        self.changed.notify_all();
        drop(self.changed.wait_while(waits, |(_, open)| !*open).unwrap());
    }
}

impl std::fmt::Display for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("gate")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Gate {
    async fn put_opts(
        &self,
        path: &ObjectPath,
        payload: PutPayload,
        how: PutOptions,
    ) -> StoreResult<PutResult> {
        self.pass();
        self.store.put_opts(path, payload, how).await
    }

    async fn put_multipart_opts(
        &self,
        path: &ObjectPath,
        how: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(path, how).await
    }

    async fn get_opts(&self, path: &ObjectPath, how: GetOptions) -> StoreResult<GetResult> {
        self.store.get_opts(path, how).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, StoreResult<ObjectPath>>,
    ) -> BoxStream<'static, StoreResult<ObjectPath>> {
        self.store.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> StoreResult<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, how: CopyOptions) -> StoreResult<()> {
        self.store.copy_opts(from, to, how).await
    }
}
