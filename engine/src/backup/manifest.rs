#![doc = include_str!("../../../docs/format/backup.md")]
//!
//! # Invariants
//! - A manifest names everything that a restore reads. It is the last object of its backup: without it there is none.
//! - The last member is the SHA-256 of all bytes before it, so a manifest that was cut off or changed is known as such.

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use sonde_storage_format::{SeqNo, Timestamp, path};

use super::store::{BackupStore, Content, sha256};
use crate::cold::{DAY, day_name, day_of};
use crate::error::{Error, Result};
use crate::limits::BACKUP_MANIFEST_BYTES;

/// The version of backups that this program writes.
const VERSION: u32 = 1;
/// The name of a manifest in the directory of its backup.
const NAME: &str = "backup.json";
/// What stands before the digest.
const SEAL: &str = ",\n  \"sha256\": \"";

/// A backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) version: u32,
    pub(super) id: String,
    /// When it was taken, RFC 3339, for people.
    pub(super) time: String,
    /// The same in nanoseconds since the epoch.
    pub(super) time_ns: i64,
    /// The program that wrote it.
    pub(super) sonde: String,
    /// The layout version of the data directory.
    pub(super) layout: String,
    pub(super) data_dir: String,
    /// Every commit up to here is in it.
    pub(super) seq: u64,
    /// The chunks have every row up to here, the log what follows.
    pub(super) flushed_to: u64,
    /// The backup behind which the log goes on without a gap.
    pub(super) parent: Option<Parent>,
    pub(super) files: Vec<Object>,
    pub(super) log: Vec<Segment>,
    /// Cold files that lie in a store of their own, which are not copied.
    pub(super) cold_elsewhere: Vec<Elsewhere>,
}

/// An earlier backup of the same history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Parent {
    pub(super) id: String,
    pub(super) seq: u64,
}

/// A file of the data directory, and the object that has its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Object {
    /// From the data directory on.
    pub(super) path: String,
    pub(super) object: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// The committed bytes of a segment of the log, from its start on, in pieces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    pub(super) pieces: Vec<Piece>,
}

/// Bytes of a segment, behind those of the piece before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    pub(super) object: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// A cold file in a store of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Elsewhere {
    pub(super) path: String,
    pub(super) bytes: u64,
}

impl Object {
    pub(super) fn content(&self) -> Content {
        Content { bytes: self.bytes, sha256: self.sha256.clone() }
    }
}

impl Piece {
    pub(super) fn content(&self) -> Content {
        Content { bytes: self.bytes, sha256: self.sha256.clone() }
    }
}

impl Segment {
    pub(super) fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes).sum()
    }
}

/// The first two members, which every version has.
#[derive(Deserialize)]
struct Head {
    version: u32,
    layout: String,
}

impl Manifest {
    /// A backup of this moment, of which nothing is copied yet.
    pub(super) fn new(time: Timestamp, data_dir: &Path) -> Self {
        Self {
            version: VERSION,
            id: new_id(time),
            time: rfc3339(time),
            time_ns: time.as_nanos(),
            sonde: env!("CARGO_PKG_VERSION").to_owned(),
            layout: path::LAYOUT_VERSION.trim().to_owned(),
            data_dir: data_dir.display().to_string(),
            seq: 0,
            flushed_to: 0,
            parent: None,
            files: Vec::new(),
            log: Vec::new(),
            cold_elsewhere: Vec::new(),
        }
    }

    pub(super) fn seq(&self) -> SeqNo {
        SeqNo(self.seq)
    }

    pub(super) fn time(&self) -> Timestamp {
        Timestamp::from_nanos(self.time_ns)
    }

    /// Every object that it names, those of files first.
    pub(super) fn objects(&self) -> impl Iterator<Item = (&str, Content)> {
        let files = self.files.iter().map(|file| (file.object.as_str(), file.content()));
        let pieces = self.log.iter().flat_map(|segment| &segment.pieces);
        files.chain(pieces.map(|piece| (piece.object.as_str(), piece.content())))
    }

    /// Its bytes.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let text = serde_json::to_string_pretty(self);
        let text = text.map_err(|error| Error::Backup(format!("the manifest of a backup: {error}")))?;
        let body = text.strip_suffix("\n}").unwrap_or(&text);
        let digest = sha256(body.as_bytes());
        Ok(format!("{body}{SEAL}{digest}\"\n}}\n").into_bytes())
    }

    /// Reads and verifies the manifest `object`.
    pub(super) fn decode(object: &str, bytes: &[u8]) -> Result<Self> {
        let damaged = |what: String| Error::BadBackup { object: object.to_owned(), what };
        let text = std::str::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
        let sealed = text.rsplit_once(SEAL).ok_or_else(|| damaged("it has no end".into()))?;
        let (body, found) = (sealed.0, sha256(sealed.0.as_bytes()));
        if sealed.1 != format!("{found}\"\n}}\n") {
            return Err(damaged(format!("its SHA-256 is {found}, which it does not state")));
        }
        let text = format!("{body}\n}}");
        let head: Head = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if head.version != VERSION || head.layout != path::LAYOUT_VERSION.trim() {
            let known = path::LAYOUT_VERSION.trim();
            return Err(damaged(format!(
                "it is of backup version {} and layout {}, this sonde reads version {VERSION} and layout {known}; use the one that wrote it, or a newer one",
                head.version, head.layout
            )));
        }
        let manifest: Self = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        let strange = manifest.files.iter().map(|file| &file.path).find(|path| !is_plain(path));
        match strange {
            Some(path) => Err(damaged(format!("'{path}' is no file of a data directory"))),
            None if object != manifest_of(&manifest.id) => {
                Err(damaged(format!("it is the manifest of {}", manifest.id)))
            }
            None => Ok(manifest),
        }
    }
}

/// Whether a path stays below the directory that it is joined to.
fn is_plain(path: &str) -> bool {
    let dirs = [path::CHUNK_DIR, path::MANIFEST_DIR, path::STATE_DIR, path::COLD_DIR];
    let mut parts = Path::new(path).components();
    let first = parts.next();
    let known = dirs.iter().any(|dir| first == Some(Component::Normal(dir.as_ref())));
    let mut rest = parts.peekable();
    known && rest.peek().is_some() && rest.all(|part| matches!(part, Component::Normal(_)))
}

/// The object that is the manifest of a backup.
pub(super) fn manifest_of(id: &str) -> String {
    format!("{id}/{NAME}")
}

/// The backup whose directory an object lies in.
pub(super) fn id_of(object: &str) -> Option<&str> {
    let (id, rest) = object.split_once('/')?;
    (is_id(id) && !rest.is_empty()).then_some(id)
}

/// The backup whose manifest an object is.
pub(super) fn manifest_id(object: &str) -> Option<&str> {
    id_of(object).filter(|id| manifest_of(id) == object)
}

/// Reads the manifest of a backup.
pub(super) fn load(store: &BackupStore, id: &str, bytes: u64) -> Result<Manifest> {
    let object = manifest_of(id);
    if bytes > BACKUP_MANIFEST_BYTES {
        let what = format!("{bytes} bytes; a manifest has at most {BACKUP_MANIFEST_BYTES}");
        return Err(Error::BadBackup { object, what });
    }
    Manifest::decode(&object, &store.read_unchecked(&object)?)
}

/// `20261121T090000Z-` and 8 random digits: by name is by time.
fn new_id(time: Timestamp) -> String {
    let text: String = rfc3339(time).chars().filter(|c| !matches!(c, '-' | ':')).collect();
    let second = text.split('.').next().unwrap_or_default();
    let random: String = uuid::Uuid::new_v4().simple().to_string().chars().take(8).collect();
    format!("{second}Z-{random}")
}

pub(super) fn is_id(text: &str) -> bool {
    let shape = |c: char| match c {
        '0'..='9' => '0',
        'a'..='f' => 'a',
        other => other,
    };
    let Some((time, random)) = text.split_once('-') else { return false };
    let time: String = time.chars().map(shape).collect();
    time == "00000000T000000Z" && random.len() == 8 && random.chars().all(|c| matches!(shape(c), '0' | 'a'))
}

/// `2026-11-21T09:00:00.123456789Z`.
#[must_use]
pub fn rfc3339(time: Timestamp) -> String {
    let day = day_of(time);
    let nanos = time.as_nanos().rem_euclid(DAY);
    let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{}T{hour:02}:{minute:02}:{second:02}.{rest:09}Z", day_name(&day))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let mut manifest = Manifest::new(Timestamp::from_secs(1_795_132_800), Path::new("/data"));
        (manifest.seq, manifest.flushed_to) = (7, 5);
        let (path, object) = ("chunks/x \"y\".chunk".to_owned(), "20261120T000000Z-0123abcd/x".to_owned());
        manifest.files.push(Object { path, object: object.clone(), bytes: 3, sha256: "ab".into() });
        let pieces = vec![Piece { object, bytes: 64, sha256: "cd".into() }];
        manifest.log.push(Segment { number: 1, first_seq: 1, last_seq: 7, pieces });
        manifest.parent = Some(Parent { id: "p".into(), seq: 5 });
        manifest
    }

    #[test]
    fn a_manifest_reads_back_and_any_change_is_found() {
        let manifest = manifest();
        assert!(is_id(&manifest.id) && manifest.id.starts_with("20261120T000000Z-"), "{}", manifest.id);
        let object = manifest_of(&manifest.id);
        assert_eq!((manifest_id(&object), id_of("LOCK")), (Some(manifest.id.as_str()), None));
        let bytes = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&object, &bytes).unwrap(), manifest);
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(value.get("seq").unwrap(), 7);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            *changed.get_mut(at).unwrap() ^= 1;
            let error = Manifest::decode(&object, &changed).unwrap_err();
            assert!(matches!(&error, Error::BadBackup { object: named, .. } if *named == object), "{error}");
            assert!(Manifest::decode(&object, bytes.get(..at).unwrap()).is_err(), "{at}");
        }
    }

    #[test]
    fn what_a_newer_program_wrote_is_not_read() {
        let mut manifest = manifest();
        let object = manifest_of(&manifest.id);
        manifest.layout = "2".into();
        let error = Manifest::decode(&object, &manifest.encode().unwrap()).unwrap_err();
        assert!(matches!(&error, Error::BadBackup { what, .. } if what.contains("layout 2")), "{error}");
        (manifest.layout, manifest.version) = ("1".into(), 2);
        let error = Manifest::decode(&object, &manifest.encode().unwrap()).unwrap_err();
        assert!(error.to_string().contains("backup version 2"), "{error}");
    }

    #[test]
    fn files_stay_below_the_data_directory() {
        for (path, plain) in [
            ("chunks/1.chunk", true),
            ("cold/a/b.parquet", true),
            ("cold", false),
            ("wal/1.wal", false),
            ("/etc/passwd", false),
            ("chunks/../../x", false),
            ("../x", false),
            ("", false),
        ] {
            assert_eq!(is_plain(path), plain, "{path}");
            let mut manifest = manifest();
            manifest.files.first_mut().unwrap().path = path.to_owned();
            let decoded = Manifest::decode(&manifest_of(&manifest.id), &manifest.encode().unwrap());
            assert_eq!(decoded.is_ok(), plain, "{path}");
        }
    }
}
