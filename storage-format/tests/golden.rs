//! Golden files: what version 0 of the format looks like, byte for byte.
//!
//! # Invariants
//! - A file that exists is never rewritten: bytes that differ are a change of the format and need a new version.
//! - Files with a zstd frame also depend on the compressor. Should a new zstd write other bytes, the reader must still
//!   read the old file: keep it, and add one for the new bytes.

use std::path::PathBuf;

/// Fails unless `testdata/v0/<name>.bin` holds these bytes; `SONDE_WRITE_GOLDEN=1` writes it where it is missing.
pub(crate) fn check(name: &str, bytes: &[u8]) {
    let path = path(name);
    if !path.exists() && std::env::var("SONDE_WRITE_GOLDEN").is_ok_and(|value| value == "1") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    let golden = read(name);
    if golden != bytes {
        let at = golden.iter().zip(bytes).position(|(a, b)| a != b).unwrap_or(golden.len().min(bytes.len()));
        let (old, new) = (golden.len(), bytes.len());
        panic!("{name}: differs from byte {at} on; the golden file has {old} bytes, the encoder wrote {new}");
    }
}

/// The bytes of a golden file.
pub(crate) fn read(name: &str) -> Vec<u8> {
    let path = path(name);
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; SONDE_WRITE_GOLDEN=1 writes golden files that are missing", path.display())
    })
}

fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "testdata", "v0", &format!("{name}.bin")].iter().collect()
}
