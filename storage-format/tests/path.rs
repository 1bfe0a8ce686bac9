//! Names of files.

use proptest::prelude::*;
use sonde_storage_format::{ChunkId, path};

proptest! {
    #[test]
    fn round_trip(number: u64) {
        prop_assert_eq!(path::parse_segment(&path::segment(number)), Some(number));
        prop_assert_eq!(path::parse_chunk(&path::chunk(ChunkId(number))), Some(ChunkId(number)));
        prop_assert_eq!(path::parse_manifest(&path::manifest(number)), Some(number));
        prop_assert_eq!(path::parse_checkpoint(&path::checkpoint(number)), Some(number));
    }
}

#[test]
fn a_name_that_is_not_built_here_is_no_name() {
    for name in [
        "+000000000000001.wal",
        "000000000000000A.wal",
        "0000000000000001.WAL",
        "000000000000000é.wal",
        ".wal",
    ] {
        assert_eq!(path::parse_segment(name), None, "{name}");
    }
}
