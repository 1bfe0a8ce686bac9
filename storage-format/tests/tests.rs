//! Every structure on disk, through the public API: byte-exact golden files, round trips, damage.
//!
//! One module per structure, `records` for those of the log, `filter` for what reads parts of a page and `stats` for what
//! a chunk says of its values; `exemplars`, `golden`, `plain`, `damage`, `random`, `strategy` and `same` are what they
//! share.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics is a test that fails")]

mod catalog;
mod checkpoint;
mod chunk;
mod codec;
mod damage;
mod docs;
mod exemplars;
mod filter;
mod golden;
mod manifest;
mod page;
mod path;
mod plain;
mod random;
mod records;
mod same;
mod series_key;
mod stats;
mod strategy;
mod wal;
