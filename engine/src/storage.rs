//! Files: the only module that touches them, behind one seam so that tests can inject faults.
//!
//! # Invariants
//! - `write_whole` leaves either no file of that name or the whole one: temporary name, sync, rename, directory sync.
//! - Mapped bytes that are looked at never change: chunks are sealed before they are mapped, and of a log segment that
//!   is being written only whole frames are looked at.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sonde_storage_format::path::TMP_SUFFIX;

/// The file operations that the engine needs.
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// Creates a file of `len` zero bytes whose space is reserved, durable under its name.
    fn create(&self, path: &Path, len: u64) -> io::Result<Box<dyn LogFile>>;
    /// Opens a file for appending at offsets.
    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>>;
    /// Writes a file as a whole from its parts, durable under its name when this returns.
    fn write_whole(&self, path: &Path, parts: &mut dyn Iterator<Item = Vec<u8>>) -> io::Result<u64>;
    /// Reads a file as a whole.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Maps a sealed file.
    fn map(&self, path: &Path) -> io::Result<Mapped>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, which is created if it is missing.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
}

/// A file that is written at offsets and synced.
pub trait LogFile: Send + std::fmt::Debug {
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

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        // A relative path's parent may be empty: the working directory.
        Some(dir) if dir.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
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
    fn create(&self, path: &Path, len: u64) -> io::Result<Box<dyn LogFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        if len > 0 {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len) {
                Ok(()) => {}
                // A file system without preallocation still works, only without the reserve.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(len)?,
                Err(error) => {
                    drop(file);
                    std::fs::remove_file(path)?;
                    return Err(error.into());
                }
            }
        }
        file.sync_all()?;
        sync_parent(path)?;
        Ok(Box::new(LocalFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        Ok(Box::new(LocalFile(OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn write_whole(&self, path: &Path, parts: &mut dyn Iterator<Item = Vec<u8>>) -> io::Result<u64> {
        let mut name = path.as_os_str().to_owned();
        name.push(TMP_SUFFIX);
        let tmp = PathBuf::from(name);
        let write = |len: &mut u64| -> io::Result<()> {
            let mut file = File::create(&tmp)?;
            for part in parts {
                file.write_all(&part)?;
                *len += part.len() as u64;
            }
            file.sync_all()?;
            std::fs::rename(&tmp, path)?;
            sync_parent(path)
        };
        let mut len = 0;
        match { write }(&mut len) {
            Ok(()) => Ok(len),
            Err(error) => {
                // The next start removes it too, should this fail.
                let _ = std::fs::remove_file(&tmp);
                Err(error)
            }
        }
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
