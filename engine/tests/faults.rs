//! A disk that fails where a test wants it to.
//!
//! # Invariants
//! - What was written and not synced is not in the file: a crash loses it, or keeps a part of it.
//! - Only operations that change something are counted, from 0 on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use sonde_engine::{LocalStorage, LogFile, Mapped, Storage};

use crate::random::Random;

/// How much of the operation that a crash interrupts reached the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    Nothing,
    Half,
    All,
    /// Any of what was written and not synced, whole or in part, by this seed.
    Some(u64),
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// This operation fails, once.
    Once(u64),
    /// The process dies in this operation: it, and all that follow, fail.
    Crash(u64, Reached),
    /// There is no space for new files.
    Full,
    /// A bug: whoever writes a file whose name ends like this panics.
    Panic(&'static str),
}

#[derive(Debug, Default)]
struct State {
    fault: Fault,
    /// Operations so far, and what they were.
    done: Vec<String>,
    crashed: bool,
    syncs: u64,
    /// Syncs of files with this ending wait while it is set; how many do.
    hold: Option<&'static str>,
    held: usize,
    /// The next whole file with this ending waits, until it may be written.
    hold_write: Option<&'static str>,
    write_waits: bool,
}

#[derive(Debug, Default)]
struct Disk {
    state: Mutex<State>,
    changed: Condvar,
}

/// The real disk, and what goes wrong with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faulty(Arc<Disk>);

/// What becomes of one operation.
enum Verdict {
    Do,
    Fail(io::Error),
    Crash(Reached),
}

fn died() -> io::Error {
    io::Error::other("the process died")
}

impl Faulty {
    pub(crate) fn new(fault: Fault) -> Self {
        let disk = Self::default();
        disk.set(fault);
        disk
    }

    pub(crate) fn set(&self, fault: Fault) {
        self.0.state.lock().fault = fault;
    }

    /// Nothing reaches the disk any more.
    pub(crate) fn crash(&self) {
        self.0.state.lock().crashed = true;
    }

    pub(crate) fn crashed(&self) -> bool {
        self.0.state.lock().crashed
    }

    /// The operations so far.
    pub(crate) fn done(&self) -> Vec<String> {
        self.0.state.lock().done.clone()
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.0.state.lock().syncs
    }

    /// Lets syncs of files whose names end like this wait from now on.
    pub(crate) fn hold_syncs_of(&self, ending: &'static str) {
        self.0.state.lock().hold = Some(ending);
    }

    /// Returns once a sync waits.
    pub(crate) fn wait_held(&self) {
        let mut state = self.0.state.lock();
        self.0.changed.wait_while(&mut state, |state| state.held == 0);
    }

    pub(crate) fn release_syncs(&self) {
        self.0.state.lock().hold = None;
        self.0.changed.notify_all();
    }

    /// Lets the next whole file whose name ends like this wait before it is written; those behind it do not.
    pub(crate) fn hold_next_write_of(&self, ending: &'static str) {
        self.0.state.lock().hold_write = Some(ending);
    }

    pub(crate) fn release_write(&self) {
        self.0.state.lock().write_waits = false;
        self.0.changed.notify_all();
    }

    fn wait_to_write(&self, path: &Path) {
        let mut state = self.0.state.lock();
        let name = path.display().to_string();
        if state.hold_write.is_some_and(|ending| name.ends_with(ending)) {
            (state.hold_write, state.write_waits) = (None, true);
            state.held += 1;
            self.0.changed.notify_all();
            self.0.changed.wait_while(&mut state, |state| state.write_waits);
            state.held -= 1;
        }
    }

    fn verdict(&self, what: &str, path: &Path, makes_file: bool) -> Verdict {
        let mut state = self.0.state.lock();
        if state.crashed {
            return Verdict::Fail(died());
        }
        let number = state.done.len() as u64;
        let name = path.file_name().unwrap_or_default().display().to_string();
        state.done.push(format!("{what} {name}"));
        match state.fault {
            Fault::Panic(ending) if name.ends_with(ending) => panic!("a bug, in {what} {name}"),
            Fault::Once(at) if at == number => Verdict::Fail(io::Error::from_raw_os_error(5)),
            Fault::Full if makes_file => Verdict::Fail(io::Error::from_raw_os_error(28)),
            Fault::Crash(at, reached) if at == number => {
                state.crashed = true;
                Verdict::Crash(reached)
            }
            _ => Verdict::Do,
        }
    }
}

/// The error of an operation that failed; a crash lets `half` or `all` happen before.
fn end<T>(
    reached: Reached,
    half: impl FnOnce() -> io::Result<()>,
    all: impl FnOnce() -> io::Result<T>,
) -> io::Error {
    let happened = match reached {
        Reached::Nothing => Ok(()),
        Reached::Half | Reached::Some(_) => half(),
        Reached::All => all().map(drop),
    };
    happened.err().unwrap_or_else(died)
}

impl Storage for Faulty {
    fn create(&self, path: &Path, len: u64) -> io::Result<Box<dyn LogFile>> {
        match self.verdict("create", path, true) {
            Verdict::Do => {}
            Verdict::Fail(error) => return Err(error),
            Verdict::Crash(reached) => {
                let half = || std::fs::File::create_new(path).map(drop);
                return Err(end(reached, half, || LocalStorage.create(path, len)));
            }
        }
        let file = LocalStorage.create(path, len)?;
        Ok(Box::new(FaultyFile { disk: self.clone(), path: path.to_path_buf(), file, pending: Vec::new() }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        let file = LocalStorage.open(path)?;
        Ok(Box::new(FaultyFile { disk: self.clone(), path: path.to_path_buf(), file, pending: Vec::new() }))
    }

    fn write_whole(&self, path: &Path, parts: &mut dyn Iterator<Item = Vec<u8>>) -> io::Result<u64> {
        self.wait_to_write(path);
        match self.verdict("write_whole", path, true) {
            Verdict::Do => LocalStorage.write_whole(path, parts),
            Verdict::Fail(error) => Err(error),
            Verdict::Crash(reached) => {
                let bytes: Vec<u8> = parts.flatten().collect();
                let half = || std::fs::write(path.with_extension("half.tmp"), &bytes[..bytes.len() / 2]);
                Err(end(reached, half, || {
                    LocalStorage.write_whole(path, &mut std::iter::once(bytes.clone()))
                }))
            }
        }
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        LocalStorage.read(path)
    }

    fn map(&self, path: &Path) -> io::Result<Mapped> {
        LocalStorage.map(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match self.verdict("remove", path, false) {
            Verdict::Do => LocalStorage.remove(path),
            Verdict::Fail(error) => Err(error),
            Verdict::Crash(reached) => Err(end(reached, || Ok(()), || LocalStorage.remove(path))),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        LocalStorage.list(dir)
    }
}

#[derive(Debug)]
struct FaultyFile {
    disk: Faulty,
    path: PathBuf,
    file: Box<dyn LogFile>,
    /// Written and not synced.
    pending: Vec<(u64, Vec<u8>)>,
}

impl FaultyFile {
    /// Brings what is pending to the disk, or a part of it.
    fn settle(&mut self, reached: Reached) -> io::Result<()> {
        let mut random = if let Reached::Some(seed) = reached { Some(Random::new(seed)) } else { None };
        for (offset, mut bytes) in std::mem::take(&mut self.pending) {
            let parts = match (&mut random, reached) {
                (Some(random), _) => random.below(3),
                (None, Reached::Half) => 1,
                (None, _) => 2,
            };
            bytes.truncate(bytes.len() * parts / 2);
            self.file.write_at(&bytes, offset)?;
        }
        self.file.sync()
    }
}

impl LogFile for FaultyFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.pending.push((offset, bytes.to_vec()));
        match self.disk.verdict("write", &self.path, false) {
            Verdict::Do => Ok(()),
            Verdict::Fail(error) => {
                self.pending.pop();
                Err(error)
            }
            Verdict::Crash(Reached::Nothing) => Err(died()),
            Verdict::Crash(reached) => Err(self.settle(reached).err().unwrap_or_else(died)),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        {
            let mut state = self.disk.0.state.lock();
            let name = self.path.display().to_string();
            if state.hold.is_some_and(|ending| name.ends_with(ending)) {
                state.held += 1;
                self.disk.0.changed.notify_all();
                self.disk.0.changed.wait_while(&mut state, |state| state.hold.is_some());
                state.held -= 1;
            }
            state.syncs += 1;
        }
        match self.disk.verdict("sync", &self.path, false) {
            Verdict::Do => self.settle(Reached::All),
            // As after a real one: nobody knows what is on the disk.
            Verdict::Fail(error) => Err(self.settle(Reached::Half).err().unwrap_or(error)),
            Verdict::Crash(Reached::Nothing) => Err(died()),
            Verdict::Crash(reached) => Err(self.settle(reached).err().unwrap_or_else(died)),
        }
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        match self.disk.verdict("set_len", &self.path, false) {
            Verdict::Do => self.file.set_len(len),
            Verdict::Fail(error) => Err(error),
            Verdict::Crash(reached) => Err(end(reached, || Ok(()), || self.file.set_len(len))),
        }
    }
}
