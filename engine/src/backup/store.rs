//! Where backups lie: an object store, today a directory behind one.
//!
//! # Invariants
//! - An object is written once, under a name that no other backup uses, and never changed.
//! - What `sync` has returned for survives a crash, where the store is a directory; other stores say so by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, path::Path as ObjectPath};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use crate::error::{Error, Result};
use crate::limits::BACKUP_PART_BYTES;
use crate::storage;

/// Held by who writes to a destination that is a directory.
const LOCK: &str = "LOCK";

/// A destination of backups.
#[derive(Clone, Debug)]
pub struct BackupStore {
    store: Arc<dyn ObjectStore>,
    /// The directory behind the store, where it is one: its files are synced, which `object_store` does not do.
    directory: Option<PathBuf>,
    /// Runs the store's requests.
    runtime: Handle,
}

/// What an object is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) bytes: u64,
    /// SHA-256 in hexadecimal.
    pub(super) sha256: String,
}

pub(super) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The name of the object of a backup that has a file of the data directory.
pub(super) fn object_name(id: &str, path: &str) -> String {
    ObjectPath::from(format!("{id}/{path}")).to_string()
}

/// A name as the store has it.
fn location(name: &str) -> Result<ObjectPath> {
    ObjectPath::parse(name).map_err(|error| damaged(name, error.to_string()))
}

fn damaged(object: &str, what: impl Into<String>) -> Error {
    Error::BadBackup { object: object.to_owned(), what: what.into() }
}

impl BackupStore {
    /// A directory, which is made where `create` says so.
    pub fn local(directory: &Path, create: bool, runtime: Handle) -> Result<Self> {
        let directory =
            std::path::absolute(directory).map_err(|error| Error::io("open", directory, &error))?;
        if create {
            storage::create_dirs(&directory, &[]).map_err(|error| Error::io("create", &directory, &error))?;
        } else if !directory.is_dir() {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::io("open", &directory, &missing));
        }
        let store =
            LocalFileSystem::new_with_prefix(&directory).map_err(|error| failed("open", "", error))?;
        Ok(Self { store: Arc::new(store), directory: Some(directory), runtime })
    }

    /// Any store, rooted at the destination.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, directory: Option<PathBuf>, runtime: Handle) -> Self {
        Self { store, directory, runtime }
    }

    /// Keeps other processes from writing here; for directories only.
    pub(super) fn lock(&self) -> Result<Option<File>> {
        let Some(directory) = &self.directory else { return Ok(None) };
        let path = directory.join(LOCK);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|error| Error::io("open", &path, &error))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => {
                let directory = directory.display();
                Err(Error::Backup(format!("another process writes a backup to {directory}; try again later")))
            }
            // File systems of other machines may know no locks.
            Err(std::fs::TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
                Ok(None)
            }
            Err(std::fs::TryLockError::Error(error)) => Err(Error::io("lock", &path, &error)),
        }
    }

    /// Every object and its bytes.
    pub(super) fn list(&self) -> Result<BTreeMap<String, u64>> {
        let all = self.store.list(None).map_ok(|meta: ObjectMeta| (meta.location.to_string(), meta.size));
        self.runtime.block_on(all.try_collect()).map_err(|error| failed("list", "", error))
    }

    /// Writes an object part by part; `go_on` is asked before each.
    pub(super) fn put(
        &self,
        name: &str,
        bytes: &[u8],
        go_on: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Content> {
        let path = location(name)?;
        let wrong = |error| failed("write", name, error);
        let mut hasher = Sha256::new();
        if bytes.len() <= BACKUP_PART_BYTES {
            go_on(0)?;
            hasher.update(bytes);
            let whole = Bytes::copy_from_slice(bytes);
            self.runtime.block_on(self.store.put(&path, whole.into())).map_err(wrong)?;
        } else {
            let mut upload = self.runtime.block_on(self.store.put_multipart(&path)).map_err(wrong)?;
            for part in bytes.chunks(BACKUP_PART_BYTES) {
                hasher.update(part);
                let sent = go_on(part.len() as u64).and_then(|()| {
                    let part = Bytes::copy_from_slice(part);
                    self.runtime.block_on(upload.put_part(part.into())).map_err(wrong)
                });
                if let Err(error) = sent {
                    // Should this fail, the next backup removes what lies there.
                    let _ = self.runtime.block_on(upload.abort());
                    return Err(error);
                }
            }
            self.runtime.block_on(upload.complete()).map_err(wrong)?;
        }
        if let Some(directory) = &self.directory {
            let file = directory.join(name);
            storage::sync(&file).map_err(|error| Error::io("sync", &file, &error))?;
        }
        let found = self.runtime.block_on(self.store.head(&path)).map_err(wrong)?.size;
        if found != bytes.len() as u64 {
            return Err(damaged(name, format!("{found} bytes after writing {}", bytes.len())));
        }
        Ok(Content { bytes: found, sha256: hex(&hasher.finalize()) })
    }

    /// Makes the names of objects durable.
    pub(super) fn sync<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let mut dirs = BTreeSet::from([directory.clone()]);
        for name in names {
            let file = directory.join(name);
            let above = file.ancestors().skip(1).take_while(|dir| dir.starts_with(directory));
            dirs.extend(above.map(Path::to_path_buf));
        }
        dirs.iter().try_for_each(|dir| storage::sync(dir).map_err(|error| Error::io("sync", dir, &error)))
    }

    /// Opens an object to be read part by part.
    pub(super) fn open(&self, name: &str, expected: Content) -> Result<Reading> {
        let stream = match self.runtime.block_on(self.store.get(&location(name)?)) {
            Ok(found) if found.meta.size != expected.bytes => {
                let found = found.meta.size;
                return Err(damaged(name, format!("expected {} bytes, found {found}", expected.bytes)));
            }
            Ok(found) => found.into_stream(),
            Err(object_store::Error::NotFound { .. }) => return Err(damaged(name, "it is missing")),
            Err(error) => return Err(failed("read", name, error)),
        };
        let (name, runtime) = (name.to_owned(), self.runtime.clone());
        Ok(Reading { name, expected, stream, runtime, hasher: Sha256::new(), len: 0, error: None })
    }

    /// Gives every part of an object to `each`; fails unless it is what was written.
    pub(super) fn read(&self, name: &str, expected: Content, each: impl FnMut(Vec<u8>)) -> Result<()> {
        let mut reading = self.open(name, expected)?;
        reading.by_ref().for_each(each);
        reading.end()
    }

    /// Reads an object as a whole, as it is.
    pub(super) fn read_unchecked(&self, name: &str) -> Result<Vec<u8>> {
        let path = location(name)?;
        let read = async { self.store.get(&path).await?.bytes().await };
        let bytes = self.runtime.block_on(read).map_err(|error| failed("read", name, error))?;
        Ok(bytes.into())
    }

    /// Removes an object; one that is not there is as good as removed.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        match self.runtime.block_on(self.store.delete(&location(name)?)) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed("remove", name, error)),
        }
    }

    /// Removes what is left of a directory of objects, files included that the store does not list.
    pub(super) fn remove_dir(&self, name: &str) -> Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let path = directory.join(name);
        storage::remove_dir(&path).map_err(|error| Error::io("remove", &path, &error))
    }

    /// The names of the directories at the root, where the store is a directory.
    pub(super) fn dirs(&self) -> Result<Vec<String>> {
        let Some(directory) = &self.directory else { return Ok(Vec::new()) };
        let entries = std::fs::read_dir(directory).map_err(|error| Error::io("list", directory, &error))?;
        let dirs = entries.filter_map(|entry| entry.ok().filter(|entry| entry.path().is_dir()));
        Ok(dirs.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    }
}

/// An object that is being read. Its parts end where reading fails: ask `end` before believing them.
pub(super) struct Reading {
    name: String,
    expected: Content,
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    runtime: Handle,
    hasher: Sha256,
    len: u64,
    error: Option<Error>,
}

impl Iterator for Reading {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        match self.runtime.block_on(self.stream.next())? {
            Ok(part) => {
                self.hasher.update(&part);
                self.len += part.len() as u64;
                Some(part.into())
            }
            Err(error) => {
                self.error = Some(failed("read", &self.name, error));
                None
            }
        }
    }
}

impl Reading {
    /// Fails unless the parts were all of what was written.
    pub(super) fn end(self) -> Result<()> {
        let found = hex(&self.hasher.finalize());
        match self.error {
            Some(error) => Err(error),
            None if self.len != self.expected.bytes => Err(damaged(
                &self.name,
                format!("expected {} bytes, found {}", self.expected.bytes, self.len),
            )),
            None if found != self.expected.sha256 => {
                Err(damaged(&self.name, format!("expected SHA-256 {}, found {found}", self.expected.sha256)))
            }
            None => Ok(()),
        }
    }
}

/// What the system said, where it was the system. A destination that is full is no disk of the engine that is: writes
/// are not refused.
fn failed(operation: &'static str, name: &str, error: object_store::Error) -> Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return Error::Io { operation, path: PathBuf::from(name), message: io.to_string() };
        }
        source = inner.source();
    }
    Error::Cold(format!("{operation} {name}: {error}"))
}
