//! The MQTT codec through its public API: against two independent codecs, against the standards, against damage.
//!
//! One module per question. `model` is a packet as its fields, `strategy` draws such packets, `standard` holds the
//! standard's tables a second time, `alloc` and `random` are tools. The fuzz target that
//! needs another codec is the test `fuzz_mqtt_oracle`, the others are in `fuzz/`; `scripts/fuzz.sh` runs them all.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

mod alloc;
mod damage;
mod exemplar;
mod malformed;
mod model;
mod mutants;
mod random;
mod round_trip;
mod standard;
mod strategy;
mod with_core;
mod with_mqttbytes;
