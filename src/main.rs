//! `sonde`: MQTT in, durable columnar time series, SQL out, in one binary.

mod auth;
mod cli;
mod config;
mod http;
mod listeners;
mod memory;
mod serve;
mod telemetry;
mod token;

use std::process::ExitCode;

/// Gives freed memory back and wastes little of it with many threads; how soon stands in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::run()
}
