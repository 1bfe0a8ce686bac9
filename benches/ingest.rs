//! Ingest of a whole server: real sockets, durable acknowledgements, and the server's own CPU time.
//!
//! `cargo bench --bench ingest --profile demo -- [mqtt|line|small|arrow] [--scale 0.1]`. The server is a process of its
//! own; the load shares its cores, so messages per CPU second of the server is the figure that the machine's noise moves
//! least.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark stops at the first thing that is wrong"
)]

mod arrow;
mod cpu;
mod http;
mod mqtt;
mod server;

const LOADS: [&str; 4] = ["mqtt", "line", "small", "arrow"];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let scale: f64 =
        args.iter().position(|arg| arg == "--scale").map_or(1.0, |at| args[at + 1].parse().unwrap());
    let named: Vec<&str> = LOADS.into_iter().filter(|load| args.iter().any(|arg| arg == load)).collect();
    let wanted = |name: &str| named.is_empty() || named.contains(&name);
    let scaled = |count: usize, least: usize| ((count as f64 * scale) as usize).max(least);
    if wanted("mqtt") {
        mqtt::run(&mqtt::Load { connections: 1000, in_flight: 4, messages: scaled(2_000_000, 2000) });
        mqtt::run(&mqtt::Load { connections: 10, in_flight: 64, messages: scaled(2_000_000, 2000) });
    }
    if wanted("line") {
        for clients in [2, 4] {
            http::run(&http::Load { clients, lines: 10_000, requests: scaled(300, 8) });
        }
    }
    if wanted("small") {
        http::run(&http::Load { clients: 4, lines: 100, requests: scaled(20_000, 100) });
        for (clients, requests) in [(1, 10_000), (4, 40_000), (64, 200_000)] {
            http::run(&http::Load { clients, lines: 1, requests: scaled(requests, 1000) });
        }
    }
    if wanted("arrow") {
        for clients in [1, 2] {
            arrow::run(&arrow::Load { clients, rows: 10_000, requests: scaled(500, 8) });
        }
    }
}
