//! The engine through its public API: a model, faults, crashes, and what each has found.
//!
//! `data` says what rows are, `model` what they come to, `store` opens directories, `faults` is a disk that fails,
//! `random` makes cases that a seed repeats; the other modules are the tests.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test that panics is a test that fails"
)]

mod data;
mod faults;
mod model;
mod random;
mod store;

mod activity;
mod aggregate;
mod background;
mod backup;
mod backup_chain;
mod backup_faults;
mod backup_random;
mod buffered;
mod catalog;
mod cold;
mod commit;
mod compact;
mod crash;
mod delete;
mod disk;
mod doctor;
mod files;
mod golden;
mod latest;
mod layers;
mod log;
mod messages;
mod power;
mod recovery;
mod repair;
mod retention;
mod series;
mod torture;
mod types;
