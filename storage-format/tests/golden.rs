//! Golden files: what version 1 of the format looks like, byte for byte, and what the values in them are.
//!
//! # Invariants
//! - A file that exists is never rewritten: bytes that differ are a change of the format and need a new version.
//! - Files with a zstd frame also depend on the compressor, as those with a pco file do. Should a new one write other
//!   bytes, the reader must still read the old file: keep it, and add one for the new bytes.
//! - `values.txt` sums up the values of every page, for readers that are not this one: `tests/format/reader.py`.

use std::path::PathBuf;

use sonde_storage_format::{Column, Values, Writer, crc32, decode_page};

use crate::{chunk, exemplars};

/// Fails unless `testdata/v1/<name>.bin` holds these bytes; `SONDE_WRITE_GOLDEN=1` writes it where it is missing.
pub(crate) fn check(name: &str, bytes: &[u8]) {
    let golden = read_or_write(&format!("{name}.bin"), bytes);
    if golden != bytes {
        let at = golden.iter().zip(bytes).position(|(a, b)| a != b).unwrap_or(golden.len().min(bytes.len()));
        let (old, new) = (golden.len(), bytes.len());
        panic!("{name}: differs from byte {at} on; the golden file has {old} bytes, the encoder wrote {new}");
    }
}

fn read_or_write(file: &str, bytes: &[u8]) -> Vec<u8> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "testdata", "v1", file].iter().collect();
    if !path.exists() && std::env::var("SONDE_WRITE_GOLDEN").is_ok_and(|value| value == "1") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; SONDE_WRITE_GOLDEN=1 writes golden files that are missing", path.display())
    })
}

/// A line of `values.txt`: how many rows a column has, and the checksum of its kind, its cells and its values.
pub(crate) fn values_line(name: &str, column: &Column) -> String {
    let mut dump = Writer::new();
    dump.u8(column.values.kind() as u8);
    dump.u32(column.len() as u32);
    (0..column.len()).for_each(|row| dump.u8(column.cells.get(row) as u8));
    match &column.values {
        Values::Float(values) => values.iter().for_each(|value| dump.u64(value.to_bits())),
        Values::Int(values) => values.iter().for_each(|value| dump.i64(*value)),
        Values::UInt(values) => values.iter().for_each(|value| dump.u64(*value)),
        Values::Bool(values) => values.iter().for_each(|value| dump.u8(u8::from(*value))),
        Values::Text(values) => values.iter().for_each(|text| {
            dump.u32(text.len() as u32);
            dump.put(text);
        }),
    }
    format!("{name} {} {:08x}\n", column.len(), crc32(dump.as_bytes()))
}

#[test]
fn values() {
    let pages = exemplars::all().into_iter().map(|exemplar| {
        values_line(&format!("page_{}", exemplar.name), &decode_page(&exemplar.page()).unwrap())
    });
    let lines: String = pages.chain(chunk::values()).collect();
    let golden = String::from_utf8(read_or_write("values.txt", lines.as_bytes())).unwrap();
    for (golden, found) in golden.lines().zip(lines.lines()) {
        assert_eq!(golden, found);
    }
    assert_eq!(golden.lines().count(), lines.lines().count());
}
