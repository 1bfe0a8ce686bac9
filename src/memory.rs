//! One budget, `memory.limit`, split among those who hold memory; and a watch that keeps the process within it.
//!
//! # Invariants
//! - Each part has a bound of its own, and the parts together with what they leave are the limit.
//! - Where the process comes near its limit all the same, writers wait for each other and rows in memory are flushed
//!   early: slower, never aborted. Mapped pages of files do not count; the system takes them back as it likes.

use std::time::Duration;

use sonde_engine::Engine;

/// How often the process is measured.
const TICK: Duration = Duration::from_millis(100);
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
}

impl Split {
    /// The parts of a limit: 3/16 to memtables, 3/8 to queries, 1/16 each to batches and requests, 1/32 to directories.
    /// What is left is for flushes and merges, series, sessions, connections and the program itself.
    pub(crate) fn of(limit: u64) -> Self {
        let part = |part: u64| (limit / part).clamp(*PART.start(), *PART.end());
        Self {
            limit,
            memtable: (limit / 16).clamp(1 << 20, MEMTABLE_MOST),
            queries: limit / 8 * 3,
            queue: part(16),
            bodies: part(16),
            directories: part(32),
        }
    }

    /// In one line, for the banner.
    pub(crate) fn text(&self) -> String {
        let mib = |bytes: u64| bytes >> 20;
        format!(
            "{} MiB: queries {}, rows before a flush 3 x {}, waiting for commit {}, requests {}, chunk directories {}",
            mib(self.limit),
            mib(self.queries),
            mib(self.memtable),
            mib(self.queue),
            mib(self.bodies),
            mib(self.directories)
        )
    }
}

/// Bytes of the process that are no mapped files; 0 where the system does not say.
pub(crate) fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| {
        line.strip_prefix("RssAnon:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    kib.unwrap_or_default() << 10
}

/// Watches the process until the engine is closed.
pub(crate) fn watch(engine: Engine, limit: u64) -> std::io::Result<()> {
    let run = move || {
        let mut tight = false;
        while engine.is_open() {
            let used = anonymous_bytes();
            // Two marks, so that it does not flap.
            let now = if tight { used > limit / 8 * 7 } else { used > limit / 16 * 15 };
            if now != tight {
                tracing::debug!(used, limit, tight = now, "memory");
            }
            engine.relieve(now);
            tight = now;
            std::thread::sleep(TICK);
        }
    };
    std::thread::Builder::new().name("sonde-memory".to_owned()).spawn(run).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_stay_below_the_whole() {
        for limit in [64 << 20, 256 << 20, 512 << 20, 12 << 30, 1 << 40] {
            let split = Split::of(limit);
            let parts = 3 * split.memtable + split.queries + split.queue + split.bodies + split.directories;
            assert!(parts <= limit / 16 * 13, "{split:?}");
        }
    }

    #[test]
    fn the_process_is_measured() {
        let before = anonymous_bytes();
        let held = vec![1_u8; 64 << 20];
        assert!(anonymous_bytes() >= before + (60 << 20), "{} bytes before", before + held.len() as u64);
    }
}
