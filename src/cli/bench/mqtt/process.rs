//! CPU time and memory of the server's process, from `/proc`.

use std::fs;

use super::super::super::{Exit, Failure, Result};

/// Clock ticks of `/proc/<pid>/stat` in a second: `USER_HZ`, 100 on every Linux that has this binary.
const TICKS: f64 = 100.0;

/// A process as it is at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// Seconds of user and system time so far.
    pub(super) cpu: f64,
    /// Resident bytes.
    pub(super) resident: u64,
    /// Resident bytes that no file stands behind.
    pub(super) anonymous: u64,
}

/// Looks at a process; nothing where none was named.
pub(super) fn sample(pid: Option<u32>) -> Result<Option<Sample>> {
    let Some(pid) = pid else { return Ok(None) };
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::read_to_string(&path)
            .map_err(|error| Failure::new(Exit::Io, format!("--pid {pid}: {path}: {error}")))
    };
    let (stat, status) = (read("stat")?, read("status")?);
    parse(&stat, &status)
        .map(Some)
        .ok_or_else(|| Failure::new(Exit::Io, format!("--pid {pid}: /proc/{pid} is not as expected")))
}

fn parse(stat: &str, status: &str) -> Option<Sample> {
    // The second field, the name, may hold spaces; it ends with the last parenthesis.
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some(Sample { cpu: (user + system) / TICKS, resident: bytes("VmRSS:")?, anonymous: bytes("RssAnon:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_an_odd_name_is_read() {
        let stat = "12 (a ) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0";
        let status = "Name:\ta ) b\nVmRSS:\t    2048 kB\nRssAnon:\t     512 kB\n";
        let sample = Sample { cpu: 3.0, resident: 2 << 20, anonymous: 512 << 10 };
        assert_eq!(parse(stat, status), Some(sample));
        assert_eq!(parse(stat, "Name:\tx\n"), None);
    }

    #[test]
    fn this_process_uses_memory() {
        let found = sample(Some(std::process::id())).ok().flatten();
        assert!(found.is_some_and(|sample| sample.resident > 0 && sample.anonymous <= sample.resident));
    }
}
