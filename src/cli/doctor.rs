//! `sonde doctor`: whether the data is whole, and whether the machine and the configuration let the server work.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use rustix::process::{Resource, getrlimit};
use serde_json::json;
use sonde_engine::doctor::{Finding, Severity, examine};
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
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DoctorArgs) -> Result<()> {
    let config = Config::load(&args.config, true)?;
    let dir = &config.data_dir;
    let examination = examine(dir).map_err(|error| match error {
        Error::Layout { .. } => Failure::new(Exit::BadData, error.to_string()),
        _ => Failure::new(Exit::Io, format!("{error}; is it a data directory? --data-dir names another")),
    })?;
    let mut findings = examination.findings;
    findings.push(space(dir));
    findings.push(files());
    findings.push(clock(examination.newest));
    findings.extend(permissions(dir));
    findings.extend(exposure(&config));
    let worst = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Good);
    print(&findings, worst, dir, args.json)?;
    match worst {
        Severity::Damage => Err(Failure::new(Exit::BadData, "data is damaged or missing: see above")),
        Severity::Good | Severity::Warning => Ok(()),
    }
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Good => "good",
        Severity::Warning => "warning",
        Severity::Damage => "damage",
    }
}

fn print(findings: &[Finding], worst: Severity, dir: &Path, as_json: bool) -> Result<()> {
    if as_json {
        let finding = |finding: &Finding| json!({ "severity": word(finding.severity), "subject": finding.subject, "text": finding.text });
        let findings: Vec<_> = findings.iter().map(finding).collect();
        return say(json!({ "data_dir": dir, "worst": word(worst), "findings": findings }));
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
