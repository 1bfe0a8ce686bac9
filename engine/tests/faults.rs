//! A disk that fails where a test wants it to, and that loses power.
//!
//! # Invariants
//! - Everybody sees at once what was written, as through the cache of a system. A crash takes back what was not synced:
//!   bytes of files, and names in directories, each for itself; all of it, or a part.
//! - What a sync that failed should have synced is lost in a crash, whatever is synced later.
//! - Only operations that change something are counted, from 0 on. One at a time happens, none behind a crash.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};
use sonde_engine::{LocalStorage, LogFile, Mapped, Storage, path::TMP_SUFFIX};

use crate::random::Random;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// How much of what was not synced, the operation that a crash interrupts included, is on the disk behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    Nothing,
    /// The first half of all bytes, and every other name.
    Half,
    All,
    /// Every name, and no bytes: a file may be there and empty.
    Names,
    /// Any sectors and names, by this seed.
    Some(u64),
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// This operation fails, once.
    Once(u64),
    /// The machine stops in this operation: it, and all that follow, fail.
    Crash(u64, Reached),
    /// The process dies behind this operation; the system goes on and loses nothing.
    Kill(u64),
    /// There is no space for what has none reserved.
    Full,
    /// The same from this operation on.
    FullFrom(u64),
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

/// What a crash takes back.
#[derive(Debug, Default)]
struct Cache {
    /// Oldest first.
    writes: Vec<Unsynced>,
    /// Those whose sync failed.
    lost: Vec<Unsynced>,
    /// Names that changed since their directories were synced, and what stands under them on the disk.
    names: BTreeMap<PathBuf, Option<Vec<u8>>>,
}

/// Bytes of a file that were written and not synced.
#[derive(Debug)]
struct Unsynced {
    /// The file's inode, which is the same under every name and handle.
    inode: u64,
    file: Arc<File>,
    offset: u64,
    /// What stood there before, and how long the file was.
    before: Vec<u8>,
    file_len: u64,
}

#[derive(Debug, Default)]
struct Disk {
    state: Mutex<State>,
    changed: Condvar,
    cache: Mutex<Cache>,
}

/// The real disk, and what goes wrong with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faulty(Arc<Disk>);

/// What becomes of one operation.
enum Verdict {
    Do,
    Fail(io::Error),
    /// It happens, and then the machine stops.
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

    /// Nothing reaches the disk any more, and what was not synced is gone.
    pub(crate) fn crash(&self) {
        self.cut_power(Reached::Nothing);
    }

    /// The same, with a part of what was not synced on the disk.
    pub(crate) fn cut_power(&self, reached: Reached) {
        let mut cache = self.0.cache.lock();
        let crashed = std::mem::replace(&mut self.0.state.lock().crashed, true);
        if !crashed {
            cache.take_back(reached);
        }
    }

    /// Another process uses the disk, after a fault of [`Fault::Kill`] or a drop; the system still holds what was not
    /// synced.
    pub(crate) fn next_process(&self) {
        let mut state = self.0.state.lock();
        (state.crashed, state.fault) = (false, Fault::None);
        state.done.clear();
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
        if state.hold_write.is_some_and(|ending| final_name(&name).ends_with(ending)) {
            (state.hold_write, state.write_waits) = (None, true);
            state.held += 1;
            self.0.changed.notify_all();
            self.0.changed.wait_while(&mut state, |state| state.write_waits);
            state.held -= 1;
        }
    }

    fn wait_to_sync(&self, path: &Path) {
        let mut state = self.0.state.lock();
        let name = path.display().to_string();
        if state.hold.is_some_and(|ending| name.ends_with(ending)) {
            state.held += 1;
            self.0.changed.notify_all();
            self.0.changed.wait_while(&mut state, |state| state.hold.is_some());
            state.held -= 1;
        }
        state.syncs += 1;
    }

    fn verdict(&self, what: &str, path: &Path, needs_space: bool) -> Verdict {
        let mut state = self.0.state.lock();
        if state.crashed {
            return Verdict::Fail(died());
        }
        let number = state.done.len() as u64;
        let name = path.file_name().unwrap_or_default().display().to_string();
        state.done.push(format!("{what} {name}"));
        let no_space = || Verdict::Fail(io::Error::from_raw_os_error(28));
        match state.fault {
            Fault::Panic(ending) if final_name(&name).ends_with(ending) => panic!("a bug, in {what} {name}"),
            Fault::Once(at) if at == number => Verdict::Fail(io::Error::from_raw_os_error(5)),
            Fault::Full if needs_space => no_space(),
            Fault::FullFrom(at) if at <= number && needs_space => no_space(),
            Fault::Crash(at, reached) if at == number => {
                state.crashed = true;
                Verdict::Crash(reached)
            }
            Fault::Kill(at) if at == number => {
                state.crashed = true;
                Verdict::Do
            }
            _ => Verdict::Do,
        }
    }

    /// One operation, which is `act` on the cache and the real disk; `part` of it is what happens where it fails.
    fn operate<T>(
        &self,
        (what, path, needs_space): (&str, &Path, bool),
        part: impl FnOnce(&mut Cache),
        act: impl FnOnce(&mut Cache) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut cache: MutexGuard<'_, Cache> = self.0.cache.lock();
        match self.verdict(what, path, needs_space) {
            Verdict::Do => act(&mut cache),
            Verdict::Fail(error) => {
                if !self.crashed() {
                    part(&mut cache);
                }
                Err(error)
            }
            Verdict::Crash(reached) => {
                let acted = act(&mut cache);
                cache.take_back(reached);
                Err(acted.err().unwrap_or_else(died))
            }
        }
    }

    fn file(&self, path: &Path, opened: Box<dyn LogFile>) -> io::Result<Box<dyn LogFile>> {
        let file = Arc::new(File::options().read(true).write(true).open(path)?);
        let metadata = file.metadata()?;
        let (inode, reserved) = (metadata.ino(), metadata.len());
        let (disk, path) = (self.clone(), path.to_path_buf());
        Ok(Box::new(FaultyFile { disk, path, opened, file, inode, reserved }))
    }
}

/// The name that a file will have once it is whole.
fn final_name(name: &str) -> &str {
    name.strip_suffix(TMP_SUFFIX).unwrap_or(name)
}

fn nothing(_: &mut Cache) {}

impl Cache {
    /// Notes what stands under a name on the disk, before that changes.
    fn note(&mut self, path: &Path) {
        self.names.entry(path.to_path_buf()).or_insert_with(|| std::fs::read(path).ok());
    }

    fn write(&mut self, file: &FaultyFile, bytes: &[u8], offset: u64) -> io::Result<()> {
        let file_len = file.file.metadata()?.len();
        let mut before = vec![0; bytes.len()];
        let known = file_len.saturating_sub(offset).min(bytes.len() as u64) as usize;
        file.file.read_exact_at(&mut before[..known], offset)?;
        let (inode, file) = (file.inode, Arc::clone(&file.file));
        file.write_all_at(bytes, offset)?;
        self.writes.push(Unsynced { inode, file, offset, before, file_len });
        Ok(())
    }

    /// Nobody knows what a sync that failed has synced; what it did not is clean all the same, and so never will be.
    fn fail_sync(&mut self, inode: u64) {
        let writes = std::mem::take(&mut self.writes);
        let (failed, others) = writes.into_iter().partition(|write| write.inode == inode);
        (self.writes, self.lost) = (others, failed);
    }

    fn take_back(&mut self, reached: Reached) {
        let mut random = Random::new(if let Reached::Some(seed) = reached { seed } else { 0 });
        // The newest first, so that older ones bring back what stood there before both.
        for write in std::mem::take(&mut self.writes).iter().rev() {
            write.take_back(reached, &mut random);
        }
        for write in std::mem::take(&mut self.lost).iter().rev() {
            write.take_back(Reached::Nothing, &mut random);
        }
        for (i, (path, before)) in std::mem::take(&mut self.names).into_iter().enumerate() {
            let stays = match reached {
                Reached::Nothing => false,
                Reached::Half => i % 2 == 0,
                Reached::All | Reached::Names => true,
                Reached::Some(_) => random.one_in(2),
            };
            match before {
                _ if stays => {}
                None => drop(std::fs::remove_file(path)),
                // Not in place: somebody may have mapped what is there.
                Some(bytes) => {
                    let other = path.with_extension("before");
                    std::fs::write(&other, bytes).unwrap();
                    std::fs::rename(other, path).unwrap();
                }
            }
        }
    }
}

impl Unsynced {
    fn take_back(&self, reached: Reached, random: &mut Random) {
        let restore = |from: usize, to: usize| {
            self.file.write_all_at(&self.before[from..to], self.offset + from as u64).unwrap();
        };
        let len = self.before.len();
        match reached {
            Reached::All => {}
            Reached::Half => restore(len / 2, len),
            Reached::Some(_) if random.one_in(3) => {}
            Reached::Some(_) if random.one_in(2) => {
                let mut from = 0;
                while from < len {
                    let to = len.min(from + SECTOR - (self.offset as usize + from) % SECTOR);
                    if random.one_in(2) {
                        restore(from, to);
                    }
                    from = to;
                }
            }
            Reached::Nothing | Reached::Names | Reached::Some(_) => {
                restore(0, len);
                if self.file_len < self.offset + len as u64 {
                    self.file.set_len(self.file_len).unwrap();
                }
            }
        }
    }
}

impl Storage for Faulty {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        self.wait_to_write(path);
        let file = self.operate(("create", path, false), nothing, |cache| {
            cache.note(path);
            LocalStorage.create_new(path)
        })?;
        self.file(path, file)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        let file = LocalStorage.open(path)?;
        self.file(path, file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operate(("rename", to, false), nothing, |cache| {
            cache.note(from);
            cache.note(to);
            LocalStorage.rename(from, to)
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.operate(("sync_dir", dir, false), nothing, |cache| {
            cache.names.retain(|path, _| path.parent() != Some(dir));
            Ok(())
        })
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        LocalStorage.read(path)
    }

    fn map(&self, path: &Path) -> io::Result<Mapped> {
        LocalStorage.map(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.operate(("remove", path, false), nothing, |cache| {
            cache.note(path);
            LocalStorage.remove(path)
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        LocalStorage.list(dir)
    }
}

#[derive(Debug)]
struct FaultyFile {
    disk: Faulty,
    path: PathBuf,
    opened: Box<dyn LogFile>,
    /// The same, to take back what is written.
    file: Arc<File>,
    inode: u64,
    /// Bytes that have their space.
    reserved: u64,
}

impl LogFile for FaultyFile {
    fn reserve(&mut self, len: u64) -> io::Result<()> {
        let opened = &mut self.opened;
        self.disk.operate(("reserve", &self.path, true), nothing, |_| opened.reserve(len))?;
        self.reserved = self.reserved.max(len);
        Ok(())
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let needs_space = offset + bytes.len() as u64 > self.reserved;
        self.disk.operate(
            ("write", &self.path, needs_space),
            // A short write.
            |cache| drop(cache.write(self, &bytes[..bytes.len() / 2], offset)),
            |cache| cache.write(self, bytes, offset),
        )
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.wait_to_sync(&self.path);
        self.disk.operate(
            ("sync", &self.path, false),
            |cache| cache.fail_sync(self.inode),
            |cache| {
                cache.writes.retain(|write| write.inode != self.inode);
                Ok(())
            },
        )
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let opened = &mut self.opened;
        self.disk.operate(("set_len", &self.path, false), nothing, |_| opened.set_len(len))
    }
}
