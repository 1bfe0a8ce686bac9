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

fn main() -> ExitCode {
    cli::run()
}
