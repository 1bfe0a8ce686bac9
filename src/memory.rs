//! One budget, `memory.limit`, split among those who hold memory; and a watch that keeps the process within it.
//!
//! # Invariants
//! - Each part has a bound of its own, and the parts together with what they leave are the limit.
//! - Where the process comes near its limit all the same, writers wait for each other, rows in memory are flushed early
//!   and new queries wait; where it is used up, the query that holds the most ends. Writers are slower, never aborted.
//! - Mapped pages of files do not count; the system takes them back as it likes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sonde_engine::Engine;
use sonde_ingest::limits::RETAINED_BYTES;
use sonde_query::{Pressure, QueryEngine};

/// How often the process is measured, and how often where half of the limit is used.
const TICK: Duration = Duration::from_millis(100);
const TICK_NEAR: Duration = Duration::from_millis(10);
/// How long after the end of one query the next one may be ended.
const SETTLE: Duration = Duration::from_secs(1);
/// Most bytes of a memtable, unless the configuration asks for more.
const MEMTABLE_MOST: u64 = 64 << 20;
/// Least and most bytes of requests, of batches that wait, and of directories of chunks.
const PART: std::ops::RangeInclusive<u64> = (4 << 20)..=(256 << 20);

/// Who may hold how much, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    /// Of the process.
    pub(crate) limit: u64,
    /// Rows before a flush; up to two more memtables wait for theirs.
    pub(crate) memtable: u64,
    /// All queries together.
    pub(crate) queries: u64,
    /// Batches that wait for their commit.
    pub(crate) queue: u64,
    /// Requests with rows over HTTP and gRPC.
    pub(crate) bodies: u64,
    /// Directories of chunks that stay open.
    pub(crate) directories: u64,
    /// The series of all tables: their keys, the order of these, the index of their tags.
    pub(crate) series: u64,
    /// Messages of MQTT that wait or are in flight.
    pub(crate) messages: u64,
    /// Retained messages of MQTT, which are in memory twice.
    pub(crate) retained: u64,
    /// Wills of MQTT, which are in memory twice.
    pub(crate) wills: u64,
    /// What is noted of MQTT messages that wait in the log.
    pub(crate) backlogs: u64,
    /// What one scan or merge has decoded at a time.
    pub(crate) merge: u64,
}

impl Split {
    /// The parts of a limit: 3/16 to memtables, 5/16 to queries, 1/8 to MQTT messages, 1/16 each to series, batches,
    /// requests and (twice 1/32) retained messages, 1/32 to directories, 1/64 each to wills and to notes of what waits in
    /// the log. Where memtables need less, series get up to 1/8 and queries up to 3/8. What is left is for flushes and
    /// merges, sessions, connections and the program itself.
    pub(crate) fn of(limit: u64) -> Self {
        let part = |part: u64| (limit / part).clamp(*PART.start(), *PART.end());
        let memtable = (limit / 16).clamp(1 << 20, MEMTABLE_MOST);
        let spare = 3 * (limit / 16).saturating_sub(memtable);
        let series = (limit / 16 + spare).min(limit / 8);
        let directories = part(32);
        let beyond = directories.saturating_sub(limit / 32);
        Self {
            limit,
            memtable,
            queries: (limit / 16 * 5 + spare - (series - limit / 16)).min(limit / 8 * 3) - beyond,
            queue: part(16),
            bodies: part(16),
            directories,
            series,
            messages: limit / 8,
            retained: (limit / 32).min(RETAINED_BYTES as u64),
            wills: limit / 64,
            backlogs: limit / 64,
            merge: (limit / 64).clamp(1 << 20, 16 << 20),
        }
    }

    /// In one line, for the banner.
    pub(crate) fn text(&self) -> String {
        let mib = |bytes: u64| bytes >> 20;
        format!(
            "{} MiB: queries {}, rows before a flush 3 x {}, waiting for commit {}, requests {}, chunk directories {}, series {}, MQTT messages {}, retained 2 x {}, wills {}, notes of waiting {}",
            mib(self.limit),
            mib(self.queries),
            mib(self.memtable),
            mib(self.queue),
            mib(self.bodies),
            mib(self.directories),
            mib(self.series),
            mib(self.messages),
            mib(self.retained),
            mib(self.wills),
            mib(self.backlogs)
        )
    }
}

/// Memory of the machine, or of the control groups that the process is in, whichever is least.
pub(crate) fn available_bytes() -> u64 {
    let total = kib_of(&read("/proc/meminfo"), "MemTotal:").unwrap_or(2 << 30);
    let limits = limit_files(&read("/proc/self/cgroup"));
    let groups = limits.iter().filter_map(|path| read(path).trim().parse::<u64>().ok()).min();
    total.min(groups.unwrap_or(u64::MAX))
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Where a limit of memory may stand for the process whose `/proc/self/cgroup` this is: its group, of version 2 or 1, and all
/// above. In a container the outermost one is its own.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (mount, file) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        let group = Path::new(group.trim_start_matches('/'));
        files.extend(group.ancestors().map(|ancestor| Path::new(mount).join(ancestor).join(file)));
    }
    files
}

/// A number of KiB behind a name, in bytes.
fn kib_of(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Bytes of the process that are no mapped files; 0 where the system does not say.
pub(crate) fn anonymous_bytes() -> u64 {
    kib_of(&read("/proc/self/status"), "RssAnon:").unwrap_or_default()
}

/// Watches the process until the engine is closed.
pub(crate) fn watch(engine: Engine, query: QueryEngine, limit: u64) -> std::io::Result<()> {
    let run = move || {
        let mut pressure = Pressure::None;
        let mut ended_at: Option<Instant> = None;
        while engine.is_open() {
            let used = anonymous_bytes();
            let now = pressure_of(used, limit, pressure != Pressure::None);
            if now != pressure {
                tracing::debug!(used, limit, ?now, "memory");
            }
            pressure = now;
            engine.relieve(pressure != Pressure::None);
            // What a query held is not given back at once: the next one gets the time to live.
            let settled = ended_at.is_none_or(|at| at.elapsed() > SETTLE);
            match pressure {
                Pressure::Over if settled => ended_at = Some(Instant::now()),
                Pressure::Over => pressure = Pressure::Tight,
                Pressure::None | Pressure::Tight => {}
            }
            query.relieve(pressure);
            std::thread::sleep(if used > limit / 2 { TICK_NEAR } else { TICK });
        }
    };
    std::thread::Builder::new().name("sonde-memory".to_owned()).spawn(run).map(drop)
}

/// How scarce memory is. There are two marks between plenty and scarcity, so that it does not flap.
fn pressure_of(used: u64, limit: u64, was_tight: bool) -> Pressure {
    // What a query allocates between two looks has to fit above the last mark.
    if used > limit / 8 * 7 {
        Pressure::Over
    } else if used > limit / 4 * 3 || was_tight && used > limit / 8 * 5 {
        Pressure::Tight
    } else {
        Pressure::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_stay_below_the_whole() {
        for limit in [64 << 20, 256 << 20, 512 << 20, 1 << 30, 3 << 29, 2 << 30, 12 << 30, 1 << 40] {
            let split = Split::of(limit);
            let mqtt = split.messages + 2 * split.retained + split.wills + split.backlogs;
            let requests = split.queue + split.bodies;
            let parts =
                3 * split.memtable + split.queries + requests + split.directories + split.series + mqtt;
            assert!(parts <= limit / 16 * 15, "{split:?}");
        }
    }

    #[test]
    fn a_million_series_fit_two_gibibytes() {
        let split = Split::of(2 << 30);
        assert_eq!((split.series, split.queries), (256 << 20, 704 << 20));
        // With two tags a MiB has 7,700 of them; the figures are in docs/configuration.md.
        assert!((split.series >> 20) * 7_700 > 1_000_000);
        assert_eq!(Split::of(128 << 20).series, 8 << 20);
    }

    #[test]
    fn limits_are_looked_for_in_the_own_group_and_above() {
        let two = limit_files("0::/system.slice/sonde.service\n");
        let expected = ["system.slice/sonde.service/memory.max", "system.slice/memory.max", "memory.max"];
        assert_eq!(two, expected.map(|file| Path::new("/sys/fs/cgroup").join(file)));
        let one = limit_files("5:cpu,cpuacct:/x\n4:memory:/a:b\n1:name=systemd:/\nnonsense\n");
        let expected = ["a:b/memory.limit_in_bytes", "memory.limit_in_bytes"];
        assert_eq!(one, expected.map(|file| Path::new("/sys/fs/cgroup/memory").join(file)));
    }

    #[test]
    fn pressure_has_two_marks() {
        let at = |used, was_tight| pressure_of(used, 800, was_tight);
        assert_eq!(
            [at(600, false), at(601, false), at(501, true)],
            [Pressure::None, Pressure::Tight, Pressure::Tight]
        );
        assert_eq!(
            [at(500, true), at(700, true), at(701, true)],
            [Pressure::None, Pressure::Tight, Pressure::Over]
        );
    }

    #[test]
    fn the_process_is_measured() {
        let before = anonymous_bytes();
        let held = vec![1_u8; 64 << 20];
        assert!(anonymous_bytes() >= before + (60 << 20), "{} bytes before", before + held.len() as u64);
    }
}
