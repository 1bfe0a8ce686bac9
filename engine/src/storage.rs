//! Files: the only module that touches them, behind one seam so that tests can inject faults.
//!
//! # Invariants
//! - `write_whole` leaves either no file of that name or the whole one: temporary name, sync, rename, directory sync.
//! - Mapped bytes that are looked at never change: chunks are sealed before they are mapped, and of a log segment that
//!   is being written only whole frames are looked at.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sonde_storage_format::path::TMP_SUFFIX;

/// The file operations that the engine needs. What a file system does in one step is for whoever implements it to give;
/// what takes several, so that it survives a loss of power, is composed of these here.
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// Creates an empty file that is not there yet. It has its name for good once its directory is synced.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn LogFile>>;
    /// Opens a file for appending at offsets.
    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>>;
    /// Gives a file another name, in place of the file that has it; for good once the directory is synced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Returns once the names in a directory are on stable storage.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Reads a file as a whole.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Maps a sealed file.
    fn map(&self, path: &Path) -> io::Result<Mapped>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, which is created if it is missing.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Creates a file of `len` zero bytes whose space is reserved, durable under its name.
    fn create(&self, path: &Path, len: u64) -> io::Result<Box<dyn LogFile>> {
        let mut file = self.create_new(path)?;
        if let Err(error) = file.reserve(len) {
            drop(file);
            self.remove(path)?;
            return Err(error);
        }
        file.sync()?;
        self.sync_dir(parent(path))?;
        Ok(file)
    }

    /// Writes a file as a whole from its parts, durable under its name when this returns.
    fn write_whole(&self, path: &Path, parts: &mut dyn Iterator<Item = Vec<u8>>) -> io::Result<u64> {
        let mut name = path.as_os_str().to_owned();
        name.push(TMP_SUFFIX);
        let tmp = PathBuf::from(name);
        let write = || -> io::Result<u64> {
            let mut file = match self.create_new(&tmp) {
                // Left by an attempt that failed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.remove(&tmp)?;
                    self.create_new(&tmp)?
                }
                created => created?,
            };
            let mut len = 0;
            for part in parts {
                file.write_at(&part, len)?;
                len += part.len() as u64;
            }
            file.sync()?;
            self.rename(&tmp, path)?;
            self.sync_dir(parent(path))?;
            Ok(len)
        };
        // The next start removes it too, should this fail.
        let written = write();
        written.inspect_err(|_| drop(self.remove(&tmp)))
    }
}

/// A file that is written at offsets and synced.
pub trait LogFile: Send + std::fmt::Debug {
    /// Reserves the space of the first `len` bytes, which read as zeroes.
    fn reserve(&mut self, len: u64) -> io::Result<()>;
    /// Writes all bytes at the offset.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns once everything written is on stable storage.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts or extends the file.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
}

/// A file's bytes, mapped read-only.
#[derive(Debug, Default)]
pub struct Mapped(Option<memmap2::Mmap>);

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// The local file system.
#[derive(Debug, Default)]
pub struct LocalStorage;

#[derive(Debug)]
struct LocalFile(File);

/// The directory that a file's name is in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        // A relative path's parent may be empty: the working directory.
        Some(dir) if dir.as_os_str().is_empty() => Path::new("."),
        Some(dir) => dir,
        None => path,
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    LocalStorage.sync_dir(parent(path))
}

/// Creates a directory and those in it, durable under their names.
pub(crate) fn create_dirs(dir: &Path, parts: &[&str]) -> io::Result<()> {
    if !dir.try_exists()? {
        std::fs::create_dir_all(dir)?;
        sync_parent(dir)?;
    }
    parts.iter().try_for_each(|part| std::fs::create_dir_all(dir.join(part)))?;
    File::open(dir)?.sync_all()
}

/// Makes a file or a directory durable as it is.
pub(crate) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Whether a directory may be made here: nothing of the name is there, or a directory without a file.
pub(crate) fn is_free(dir: &Path) -> io::Result<bool> {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives a directory its name, where nothing or an empty directory is, durably.
pub(crate) fn rename_dir(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    sync_parent(to)
}

/// Removes a directory with all that is in it, if it is there.
pub(crate) fn remove_dir(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Storage for LocalStorage {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        Ok(Box::new(LocalFile(OpenOptions::new().read(true).write(true).create_new(true).open(path)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        Ok(Box::new(LocalFile(OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[expect(unsafe_code, reason = "mapping a file is unsafe by nature")]
    fn map(&self, path: &Path) -> io::Result<Mapped> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Mapped(None));
        }
        // SAFETY: nothing truncates a file that is mapped, and nothing writes to the bytes that are looked at: chunks are
        // sealed by their rename, and of a log segment readers stay below what was published. A removed file stays alive as
        // long as its mapping. The directory is locked against other sonde processes.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Mapped(Some(map)))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        std::fs::create_dir_all(dir)?;
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }
}

impl LogFile for LocalFile {
    fn reserve(&mut self, len: u64) -> io::Result<()> {
        // The system refuses to reserve nothing.
        if len == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, len) {
            // A file system without preallocation still works, only without the reserve.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => self.0.set_len(len),
            reserved => Ok(reserved?),
        }
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)?;
        self.0.sync_all()
    }
}
