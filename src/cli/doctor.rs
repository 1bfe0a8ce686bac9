//! `sonde doctor`: whether the data is whole, and whether the machine and the configuration let the server work;
//! `--repair` takes out what is damaged first.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use rustix::process::{Resource, getrlimit};
use serde_json::json;
use sonde_engine::doctor::{Finding, Loss, Repaired, Severity, examine, repair};
use sonde_engine::{Error, Timestamp, path};

use super::output::say;
use super::{ConfigArgs, Exit, Failure, Result};
use crate::config::Config;

/// Open files below which a fleet of devices cannot connect.
const LEAST_FILES: u64 = 4096;
/// Free space of the data's file system below which somebody should know: the server refuses writes soon.
const LEAST_SPACE: u64 = 1 << 30;
/// 2024-01-01T00:00:00Z: no machine that runs this is older.
const LEAST_CLOCK: u64 = 1_704_067_200;
/// Rows from further ahead than this mean that a clock is wrong.
const AHEAD_NANOS: i64 = 86_400_000_000_000;

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Repair the data directory of a stopped server first: what is damaged goes to its `quarantine/`, and what is lost
    /// with it is printed.
    #[arg(long)]
    repair: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DoctorArgs) -> Result<()> {
    let config = Config::load(&args.config, true)?;
    let dir = &config.data_dir;
    let repaired = if args.repair { Some(repair(dir).map_err(failure)?) } else { None };
    let examination = examine(dir).map_err(failure)?;
    let mut findings = examination.findings;
    findings.push(space(dir));
    findings.push(files());
    findings.push(clock(examination.newest));
    findings.extend(permissions(dir));
    findings.extend(exposure(&config));
    let worst = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Good);
    print(&findings, worst, dir, repaired.as_ref(), args.json)?;
    let lost = repaired.as_ref().filter(|repaired| !repaired.losses.is_empty());
    match (worst, lost.and_then(|repaired| repaired.quarantine.as_ref())) {
        (Severity::Damage, _) => Err(Failure::new(Exit::BadData, "data is damaged or missing: see above")),
        (_, Some(place)) => {
            let text =
                format!("repaired, with losses: see above and {}", place.join(path::REPAIR_REPORT).display());
            Err(Failure::new(Exit::Partial, text))
        }
        _ => Ok(()),
    }
}

fn failure(error: Error) -> Failure {
    let text = error.to_string();
    match error {
        Error::Layout { .. } | Error::Corrupt { .. } | Error::Unrepairable { .. } => {
            Failure::new(Exit::BadData, text)
        }
        Error::Locked { .. } | Error::Full(_) => Failure::new(Exit::Io, text),
        _ => Failure::new(Exit::Io, format!("{text}; is it a data directory? --data-dir names another")),
    }
}

/// A loss in one line.
fn loss(loss: &Loss) -> String {
    let time = |nanos: &i64| super::demo::time_text(*nanos);
    let named = |name: &Option<String>, id: &u32| name.clone().unwrap_or_else(|| format!("table {id}"));
    match loss {
        Loss::Chunk {
            file,
            table,
            name,
            first_time,
            last_time,
            first_seq,
            last_seq,
            rows,
            series,
            damage,
            ..
        } => {
            let (name, first, last) = (named(name, table), time(first_time), time(last_time));
            let seq = format!("sequence numbers {first_seq} to {last_seq}");
            format!("{rows} rows of {name}, {series} series, {first} to {last}, {seq} ({file}: {damage})")
        }
        Loss::Cold { file, table, name, day_start, position, rows, damage, .. } => {
            let (name, day) = (named(name, table), time(day_start));
            format!(
                "{rows} rows of {name} on the day of {day}, up to sequence number {position} ({file}: {damage})"
            )
        }
        Loss::Log { file, offset, first_seq, last_seq, in_files, damage } => {
            let what = if *in_files { "what rules had yet to read" } else { "everything" };
            format!("{what} of sequence numbers {first_seq} to {last_seq} ({file} at {offset}: {damage})")
        }
        Loss::Rows { file, table, name, first_seq, last_seq, rows, reason } => {
            let (name, seq) = (named(name, table), format!("sequence numbers {first_seq} to {last_seq}"));
            format!("{rows} rows of {name} of {seq}: {reason} ({file})")
        }
        Loss::Values { file, table, name, column, first_seq, last_seq, rows } => {
            let (name, seq) = (named(name, table), format!("sequence numbers {first_seq} to {last_seq}"));
            format!("column {column}, which is unknown, in {rows} rows of {name} of {seq} ({file})")
        }
    }
}

/// What a repair did, as lines.
fn repair_lines(repaired: &Repaired) -> Vec<(&'static str, String)> {
    let mended = repaired.mended.iter().map(|mended| ("mended", format!("{}: {}", mended.file, mended.what)));
    let mut lines: Vec<_> = mended.collect();
    lines.extend(repaired.losses.iter().map(|found| ("lost", loss(found))));
    lines.push(match &repaired.quarantine {
        Some(place) => ("repaired", format!("what was damaged, and the report, are in {}", place.display())),
        None => ("repaired", "nothing: there was no damage".to_owned()),
    });
    lines
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Good => "good",
        Severity::Warning => "warning",
        Severity::Damage => "damage",
    }
}

fn print(
    findings: &[Finding],
    worst: Severity,
    dir: &Path,
    repaired: Option<&Repaired>,
    as_json: bool,
) -> Result<()> {
    if as_json {
        let finding = |finding: &Finding| json!({ "severity": word(finding.severity), "subject": finding.subject, "text": finding.text });
        let findings: Vec<_> = findings.iter().map(finding).collect();
        let mut found = json!({ "data_dir": dir, "worst": word(worst), "findings": findings });
        if let (Some(repaired), Some(found)) = (repaired, found.as_object_mut()) {
            found.insert("repair".to_owned(), json!(repaired));
        }
        return say(found);
    }
    for (word, text) in repaired.map(repair_lines).unwrap_or_default() {
        say(format_args!("{word:<8} {:<12} {text}", "repair"))?;
    }
    let mut lines = findings.iter();
    lines.try_for_each(|finding| {
        say(format_args!("{:<8} {:<12} {}", word(finding.severity), finding.subject, finding.text))
    })
}

fn space(dir: &Path) -> Finding {
    let subject = "disk";
    match rustix::fs::statvfs(dir) {
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let severity = if free < LEAST_SPACE { Severity::Warning } else { Severity::Good };
            Finding::new(severity, subject, format!("{} MiB free for the data directory", free >> 20))
        }
        Err(error) => Finding::new(Severity::Warning, subject, format!("free space is unknown: {error}")),
    }
}

fn files() -> Finding {
    let limit = getrlimit(Resource::Nofile).current;
    let text = match limit {
        Some(limit) => format!("{limit} open files at most; each connection is one (ulimit -n)"),
        None => "open files without a limit".to_owned(),
    };
    let few = limit.is_some_and(|limit| limit < LEAST_FILES);
    Finding::new(if few { Severity::Warning } else { Severity::Good }, "limits", text)
}

fn clock(newest: Option<Timestamp>) -> Finding {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let ahead = newest.map_or(0, |newest| newest.as_nanos().saturating_sub(now.as_nanos() as i64));
    if now.as_secs() < LEAST_CLOCK {
        let text = "the clock says a time before 2024: rows that come without a time would get it";
        return Finding::new(Severity::Warning, "clock", text);
    }
    if ahead > AHEAD_NANOS {
        let days = ahead / AHEAD_NANOS;
        return Finding::new(
            Severity::Warning,
            "clock",
            format!("there are rows from {days} days ahead of the clock"),
        );
    }
    Finding::new(Severity::Good, "clock", "no row is more than a day ahead of it")
}

/// Who else may read the data and the administrator's token.
fn permissions(dir: &Path) -> Vec<Finding> {
    let mode = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.mode() & 0o777);
    let mut findings = Vec::new();
    let token = dir.join(path::ADMIN_TOKEN);
    match mode(&token) {
        Ok(mode) if mode & 0o077 != 0 => {
            let text = format!("{} has mode {mode:03o}: others can read it (chmod 600)", token.display());
            findings.push(Finding::new(Severity::Warning, "permissions", text));
        }
        Ok(_) => {
            findings.push(Finding::new(Severity::Good, "permissions", "only its owner reads admin.token"))
        }
        // It comes with the first start.
        Err(_) => {}
    }
    if let Ok(mode) = mode(dir)
        && mode & 0o022 != 0
    {
        let text = format!("{} has mode {mode:03o}: others can write to it", dir.display());
        findings.push(Finding::new(Severity::Warning, "permissions", text));
    }
    findings
}

/// Doors that are open to the network.
fn exposure(config: &Config) -> Vec<Finding> {
    let doors = config.effective.iter().filter(|setting| setting.key.ends_with(".listen"));
    let open = doors.filter(|setting| {
        let host = setting.value.rsplit_once(':').map_or(setting.value.as_str(), |(host, _)| host);
        let local = host.is_empty() || host == "localhost" || host == "[::1]" || host.starts_with("127.");
        !local && !setting.value.is_empty()
    });
    let open: Vec<Finding> = open
        .map(|setting| {
            let text =
                format!("{} = {}: reachable from the network, without TLS", setting.key, setting.value);
            Finding::new(Severity::Warning, "exposure", text)
        })
        .collect();
    if open.is_empty() {
        return vec![Finding::new(Severity::Good, "exposure", "every door listens on loopback only")];
    }
    open
}
