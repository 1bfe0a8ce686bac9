//! Ingest of a whole server: real sockets, durable acknowledgements, and the server's own CPU time.
//!
//! `cargo bench --bench ingest --profile demo -- [mqtt|router|line|small|single|arrow] [--clients 4] [--scale 0.1]`. The server
//! is a process of its own; the load shares its cores, so messages per CPU second of the server is the figure that the
//! machine's noise moves least.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark stops at the first thing that is wrong"
)]

mod arrow;
mod cpu;
mod http;
mod mqtt;
mod router;
mod server;

const LOADS: [&str; 6] = ["mqtt", "router", "line", "small", "single", "arrow"];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| args.iter().position(|arg| arg == name).map(|at| args[at + 1].as_str());
    let scale: f64 = option("--scale").map_or(1.0, |scale| scale.parse().unwrap());
    let only: Option<usize> = option("--clients").map(|clients| clients.parse().unwrap());
    let named: Vec<&str> = LOADS.into_iter().filter(|load| args.iter().any(|arg| arg == load)).collect();
    let wanted = |name: &str, clients: usize| {
        (named.is_empty() || named.contains(&name)) && only.is_none_or(|only| only == clients)
    };
    let scaled = |count: usize, least: usize| ((count as f64 * scale) as usize).max(least);
    for (connections, in_flight) in [(1000, 4), (10, 64)] {
        if wanted("mqtt", connections) {
            mqtt::run(&mqtt::Load { connections, in_flight, messages: scaled(2_000_000, 2000) });
        }
    }
    if wanted("router", 10) {
        let load = mqtt::Load { connections: 10, in_flight: 64, messages: scaled(2_000_000, 2000) };
        router::run(100_000, &load);
    }
    let requests = [
        ("line", 2, 10_000, scaled(300, 8)),
        ("line", 4, 10_000, scaled(300, 8)),
        ("small", 4, 100, scaled(20_000, 100)),
        ("single", 1, 1, scaled(10_000, 1000)),
        ("single", 4, 1, scaled(40_000, 1000)),
        ("single", 64, 1, scaled(200_000, 1000)),
    ];
    for (name, clients, lines, requests) in requests {
        if wanted(name, clients) {
            http::run(&http::Load { clients, lines, requests });
        }
    }
    for clients in [1, 2] {
        if wanted("arrow", clients) {
            arrow::run(&arrow::Load { clients, rows: 10_000, requests: scaled(500, 8) });
        }
    }
}
