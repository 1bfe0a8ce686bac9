//! Every structure on disk, through the public API: byte-exact golden files, round trips, damage, fuzzing.
//!
//! One module per structure; `golden`, `damage`, `random`, `alloc`, `strategy` and `same` are what they share.
//! Fuzz targets are the tests named `fuzz_*`; `scripts/fuzz.sh` runs them longer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics is a test that fails")]

mod alloc;
mod catalog;
mod checkpoint;
mod chunk;
mod codec;
mod damage;
mod docs;
mod golden;
mod manifest;
mod page;
mod path;
mod random;
mod same;
mod series_key;
mod strategy;
mod wal;
