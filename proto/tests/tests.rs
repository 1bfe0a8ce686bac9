//! The MQTT codec through its public API: against two independent codecs, against the standards, against damage.
//!
//! One module per question. `model` is a packet as its fields, `strategy` draws such packets, `standard` holds the
//! standard's tables a second time, `alloc` and `random` are tools. Fuzz targets are the tests named `fuzz_*`;
//! `scripts/fuzz.sh` runs them longer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

mod alloc;
mod damage;
mod exemplar;
mod malformed;
mod model;
mod random;
mod round_trip;
mod standard;
mod strategy;
mod with_core;
mod with_mqttbytes;
