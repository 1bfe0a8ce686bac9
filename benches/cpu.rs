//! The rows of TSBS's "cpu-only" set: 4,000 hosts in turn, 10 s apart, with 10 tags and 10 integer fields.

use std::fmt::Write as _;

/// 2024-02-23T14:53:20Z in milliseconds: the first time of every load.
pub(crate) const START_MS: u64 = 1_708_700_000_000;
const HOSTS: usize = 4000;
/// Nanoseconds between two rows of a host.
const STEP: u64 = 10_000_000_000;
/// The names of the tags.
pub(crate) const TAGS: [&str; 10] = [
    "hostname",
    "region",
    "datacenter",
    "rack",
    "os",
    "arch",
    "team",
    "service",
    "service_version",
    "service_environment",
];
/// The names of the fields.
pub(crate) const FIELDS: [&str; 10] = [
    "usage_user",
    "usage_system",
    "usage_idle",
    "usage_nice",
    "usage_iowait",
    "usage_irq",
    "usage_softirq",
    "usage_steal",
    "usage_guest",
    "usage_guest_nice",
];

/// The time of a row in nanoseconds.
pub(crate) fn time(row: usize) -> u64 {
    START_MS * 1_000_000 + (row / HOSTS) as u64 * STEP
}

/// A tag of a row.
pub(crate) fn tag(row: usize, place: usize) -> String {
    let host = row % HOSTS;
    match place {
        0 => format!("host_{host}"),
        1 => format!("eu-west-{}", host % 3),
        2 => format!("eu-west-{}a", host % 3),
        3 => (host % 100).to_string(),
        7 => (host % 20).to_string(),
        _ => ["Ubuntu16.10", "x64", "SF", "", "0", "production"][place - 4].to_owned(),
    }
}

/// A field of a row: a walk that stays within 0..=100, as TSBS's.
pub(crate) fn field(row: usize, place: usize) -> i64 {
    let (host, step) = (row % HOSTS, row / HOSTS);
    ((host * 7 + place * 13 + (step + place) % 7 + step / 5) % 101) as i64
}

/// Rows as line protocol.
pub(crate) fn lines(rows: std::ops::Range<usize>) -> String {
    let mut text = String::with_capacity(rows.len() * 360);
    for row in rows {
        text.push_str("cpu");
        for (place, name) in TAGS.iter().enumerate() {
            write!(text, ",{name}={}", tag(row, place)).unwrap();
        }
        for (place, name) in FIELDS.iter().enumerate() {
            let before = if place == 0 { ' ' } else { ',' };
            write!(text, "{before}{name}={}i", field(row, place)).unwrap();
        }
        writeln!(text, " {}", time(row)).unwrap();
    }
    text
}
