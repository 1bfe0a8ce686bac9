//! What the demo found and measured, for people or as JSON.

use std::fmt::Display;

use super::output;
use super::{Exit, Failure, Result};

/// The checks and figures so far, and where the demo speaks.
pub(super) struct Summary {
    /// Standard output is for one line of JSON alone.
    json: bool,
    checks: Vec<(String, bool)>,
    figures: Vec<Figure>,
}

struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
}

impl Figure {
    /// The name in JSON, which ends with the unit.
    fn key(&self) -> String {
        format!("{}_{}", self.name, self.unit).to_ascii_lowercase().replace(' ', "_")
    }
}

impl Summary {
    pub(super) fn new(json: bool) -> Self {
        Self { json, checks: Vec::new(), figures: Vec::new() }
    }

    /// Says how it goes.
    pub(super) fn say(&self, line: impl Display) {
        if self.json {
            eprintln!("{line}");
            return;
        }
        // Whether somebody reads this changes nothing in what is checked.
        let _ = output::say(line);
    }

    pub(super) fn check(&mut self, what: impl Into<String>, holds: bool) {
        let what = what.into();
        self.say(format_args!("  {} {what}", if holds { "ok  " } else { "FAIL" }));
        self.checks.push((what, holds));
    }

    /// Notes a figure; its unit is not a part of its name.
    pub(super) fn figure(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.figures.push(Figure { name: name.into(), value, unit });
    }

    fn holds(&self) -> bool {
        self.checks.iter().all(|(_, holds)| *holds)
    }

    /// Fails unless every check holds.
    pub(super) fn verdict(&self) -> Result<()> {
        if self.holds() { Ok(()) } else { Err(Failure::new(Exit::Failed, "the demo's checks failed")) }
    }

    pub(super) fn print(&self) -> Result<()> {
        if self.json {
            return output::say(self.to_json());
        }
        self.say("\nSummary");
        for Figure { name, value, unit } in &self.figures {
            let digits = if value.abs() < 100.0 { 2 } else { 0 };
            self.say(format_args!("  {:<34} {value:>14.digits$} {unit}", name.replace('_', " ")));
        }
        let verdict = if self.holds() { "all hold" } else { "FAILED" };
        self.say(format_args!("  {:<34} {verdict:>14}", "checks"));
        Ok(())
    }

    fn to_json(&self) -> serde_json::Value {
        let figures: serde_json::Map<String, serde_json::Value> =
            self.figures.iter().map(|figure| (figure.key(), figure.value.into())).collect();
        let failed: Vec<&str> =
            self.checks.iter().filter(|(_, holds)| !holds).map(|(what, _)| what.as_str()).collect();
        serde_json::json!({ "ok": self.holds(), "failed": failed, "figures": figures })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_figures_end_with_their_units() {
        let mut summary = Summary::new(true);
        summary.figure("rows", 2.0, "per second");
        summary.figure("resident_memory", 1.5, "MiB");
        summary.check("it is so", false);
        let json = serde_json::json!({
            "ok": false, "failed": ["it is so"],
            "figures": { "rows_per_second": 2.0, "resident_memory_mib": 1.5 },
        });
        assert_eq!(summary.to_json(), json);
        assert!(summary.verdict().is_err());
    }
}
