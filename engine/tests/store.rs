//! Data directories that are opened again and again.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use object_store::local::LocalFileSystem;
use sonde_engine::{
    Clock, ColdOptions, Engine, LocalStorage, Options, Result, Storage, SystemClock, Timestamp, path,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
});

/// Where requests of object stores run.
pub(crate) fn runtime() -> tokio::runtime::Handle {
    RUNTIME.handle().clone()
}

/// A data directory, with a cold tier beside it.
#[derive(Debug)]
pub(crate) struct Store {
    root: TempDir,
    pub(crate) options: Options,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self::on(tempfile::tempdir().unwrap())
    }

    /// With log segments of this many bytes.
    pub(crate) fn with_segments(bytes: u64) -> Self {
        let mut store = Self::new();
        store.options.segment_bytes = bytes;
        store
    }

    /// The same in memory, where there is a file system for that: for tests of thousands of syncs, which make their own
    /// crashes.
    pub(crate) fn volatile(segment_bytes: u64) -> Self {
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let mut store = Self::on(root.unwrap());
        store.options.segment_bytes = segment_bytes;
        store
    }

    fn on(root: TempDir) -> Self {
        let cold = root.path().join("cold");
        std::fs::create_dir(&cold).unwrap();
        let mut options = Options::new(root.path().join("data"));
        options.segment_bytes = 1 << 20;
        options.cold = Some(ColdOptions {
            store: Arc::new(LocalFileSystem::new_with_prefix(&cold).unwrap()),
            directory: Some(cold),
            runtime: RUNTIME.handle().clone(),
        });
        Self { root, options }
    }

    /// A copy of both directories.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::volatile(self.options.segment_bytes);
        for path in files_below(self.root.path()) {
            let to = copy.root.path().join(path.strip_prefix(self.root.path()).unwrap());
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(path, to).unwrap();
        }
        copy
    }

    pub(crate) fn open(&self) -> Engine {
        self.try_open().unwrap()
    }

    pub(crate) fn try_open(&self) -> Result<Engine> {
        self.open_on(Arc::new(LocalStorage))
    }

    pub(crate) fn open_on(&self, storage: Arc<dyn Storage>) -> Result<Engine> {
        Engine::open_with(self.options.clone(), storage, Arc::new(SystemClock))
    }

    pub(crate) fn open_by(&self, clock: &Arc<Manual>) -> Engine {
        Engine::open_with(self.options.clone(), Arc::new(LocalStorage), Arc::<Manual>::clone(clock)).unwrap()
    }

    /// Closes in good order, all rows flushed, and opens again.
    pub(crate) fn reopen(&self, engine: Engine) -> Engine {
        engine.close().unwrap();
        drop(engine);
        self.open()
    }

    /// Stops without a flush, so that all rows come from the log, and opens again.
    pub(crate) fn restart(&self, engine: Engine) -> Engine {
        drop(engine);
        self.open()
    }

    pub(crate) fn cold(&self) -> PathBuf {
        self.root.path().join("cold")
    }

    /// A place beside the data directory.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// The same with the cold tier in the data directory, where it is by default.
    pub(crate) fn with_own_cold() -> Self {
        let mut store = Self::new();
        let cold = store.options.data_dir.join(path::COLD_DIR);
        std::fs::create_dir_all(&cold).unwrap();
        store.options.cold = Some(ColdOptions {
            store: Arc::new(LocalFileSystem::new_with_prefix(&cold).unwrap()),
            directory: Some(cold),
            runtime: runtime(),
        });
        store
    }

    pub(crate) fn dir(&self, part: &str) -> PathBuf {
        self.options.data_dir.join(part)
    }

    /// The log's segments, oldest first.
    pub(crate) fn segments(&self) -> Vec<PathBuf> {
        files(&self.dir(path::WAL_DIR))
    }
}

/// A clock that a test sets.
#[derive(Debug)]
pub(crate) struct Manual(AtomicI64);

impl Manual {
    pub(crate) fn at(nanos: i64) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(nanos)))
    }

    pub(crate) fn now_nanos(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, nanos: i64) {
        self.0.store(nanos, Ordering::Relaxed);
    }

    pub(crate) fn go_on(&self, nanos: i64) {
        self.0.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl Clock for Manual {
    fn now(&self) -> Timestamp {
        Timestamp::from_nanos(self.now_nanos())
    }
}

/// Waits for what happens by itself.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Some who always have something to ask of an engine's writer, and nothing to commit, until this is dropped.
pub(crate) struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    pub(crate) fn with(engine: &Engine) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ask = |_| {
            let (engine, stop) = (engine.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    engine.fence().unwrap();
                }
            })
        };
        let threads = (0..4).map(ask).collect();
        Self { stop, threads }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// The files in a directory, by name.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The files below a directory, at any depth.
pub(crate) fn files_below(dir: &Path) -> Vec<PathBuf> {
    files(dir)
        .into_iter()
        .flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] })
        .collect()
}
