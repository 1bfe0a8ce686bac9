//! All names of files and directories in a data directory, built and parsed here.

use crate::ids::ChunkId;

/// Holds the lock of the process that owns the directory.
pub const LOCK: &str = "LOCK";
/// The version of the directory's layout.
pub const VERSION: &str = "VERSION";
/// Segments of the log.
pub const WAL_DIR: &str = "wal";
/// Chunk files.
pub const CHUNK_DIR: &str = "chunks";
/// The manifest.
pub const MANIFEST_DIR: &str = "manifest";
/// Checkpoints of catalog, series and state.
pub const STATE_DIR: &str = "state";
/// The default object store.
pub const COLD_DIR: &str = "cold";
/// Where queries spill.
pub const SPILL_DIR: &str = "spill";
/// Where `sonde doctor --repair` puts what it takes out, by the time of the repair.
pub const QUARANTINE_DIR: &str = "quarantine";
/// What a repair found and did, in its directory below [`QUARANTINE_DIR`].
pub const REPAIR_REPORT: &str = "report.json";
/// The token of the administrator, mode 0600.
pub const ADMIN_TOKEN: &str = "admin.token";
/// The addresses that the server listens on.
pub const ENDPOINTS: &str = "endpoints.json";
/// The version written to [`VERSION`].
pub const LAYOUT_VERSION: &str = "1\n";
/// The ending of a file that is being written.
pub const TMP_SUFFIX: &str = ".tmp";

/// The name of a log segment.
#[must_use]
pub fn segment(number: u64) -> String {
    format!("{number:016x}.wal")
}

/// The number of a log segment, if the name is one.
#[must_use]
pub fn parse_segment(name: &str) -> Option<u64> {
    parse(name, ".wal")
}

/// The name of a chunk file.
#[must_use]
pub fn chunk(id: ChunkId) -> String {
    format!("{:016x}.chunk", id.0)
}

/// The id of a chunk file, if the name is one.
#[must_use]
pub fn parse_chunk(name: &str) -> Option<ChunkId> {
    parse(name, ".chunk").map(ChunkId)
}

/// The name of a manifest.
#[must_use]
pub fn manifest(number: u64) -> String {
    format!("{number:016x}.manifest")
}

/// The number of a manifest, if the name is one.
#[must_use]
pub fn parse_manifest(name: &str) -> Option<u64> {
    parse(name, ".manifest")
}

/// The name of a checkpoint.
#[must_use]
pub fn checkpoint(number: u64) -> String {
    format!("{number:016x}.checkpoint")
}

/// The number of a checkpoint, if the name is one.
#[must_use]
pub fn parse_checkpoint(name: &str) -> Option<u64> {
    parse(name, ".checkpoint")
}

fn parse(name: &str, suffix: &str) -> Option<u64> {
    let digits = name.strip_suffix(suffix)?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    // Only as it is built: 16 digits, no sign, no capitals.
    (digits == format!("{number:016x}")).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        assert_eq!(parse_segment(&segment(77)), Some(77));
        assert_eq!(parse_chunk(&chunk(ChunkId(u64::MAX))), Some(ChunkId(u64::MAX)));
        assert_eq!(parse_manifest(&manifest(0)), Some(0));
        assert_eq!(parse_checkpoint(&checkpoint(5)), Some(5));
        assert_eq!(parse_chunk("1.chunk"), None);
        assert_eq!(parse_segment("0000000000000001.wal.tmp"), None);
    }
}
