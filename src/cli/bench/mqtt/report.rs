//! What a run found, as lines and as JSON.

use serde_json::{Value, json};

use super::super::super::Result;
use super::super::super::output::say;
use super::client::Tally;
use super::histogram::Histogram;
use super::plan::Plan;
use super::process::Sample;
use super::{Outcome, Phase};

/// Reasons for closed connections that are shown.
const REASONS: usize = 3;

/// The figures of a run.
#[derive(Debug)]
pub(super) struct Report {
    json: Value,
    lines: Vec<(String, String)>,
    complaint: Option<String>,
}

/// Rounded to a thousandth.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn percentiles(histogram: &Histogram) -> Value {
    if histogram.count() == 0 {
        return Value::Null;
    }
    let ms = |nanos: u64| (nanos as f64 / 1000.0).round() / 1000.0;
    json!({
        "p50": ms(histogram.at(0.5)), "p90": ms(histogram.at(0.9)), "p99": ms(histogram.at(0.99)),
        "p99.9": ms(histogram.at(0.999)), "max": ms(histogram.max()), "count": histogram.count(),
    })
}

/// `p50 0.21  p90 ...` of such an object.
fn in_words(percentiles: &Value) -> String {
    ["p50", "p90", "p99", "p99.9", "max"]
        .map(|name| format!("{name} {}", percentiles.get(name).unwrap_or(&Value::Null)))
        .join("  ")
}

fn connecting(count: usize, phase: &Phase) -> Value {
    let per_second = if count > 0 { json!(rounded(count as f64 / phase.seconds)) } else { Value::Null };
    json!({ "count": count, "seconds": rounded(phase.seconds), "per_second": per_second })
}

/// Bytes that each of `count` came to.
fn each(from: Option<Sample>, to: Option<Sample>, count: usize) -> Value {
    match from.zip(to) {
        Some((from, to)) if count > 0 => {
            json!(((to.anonymous as f64 - from.anonymous as f64) / count as f64).round() as i64)
        }
        _ => Value::Null,
    }
}

impl Report {
    pub(super) fn new(plan: &Plan, outcome: &Outcome) -> Self {
        let mut tally = Tally::new(outcome.measured_from);
        outcome.done.iter().for_each(|done| tally.merge(&done.tally));
        let expected: Option<u64> = outcome.done.iter().map(|done| done.expected).sum();
        let expected = expected.filter(|_| plan.subscribers > 0 && plan.payload.has_stamp());
        let unsent: u64 = outcome.done.iter().map(|done| done.unsent).sum();
        let closed: Vec<&str> =
            outcome.done.iter().flat_map(|done| &done.closed).map(|why| why.text.as_str()).collect();
        // What is lost with QoS 0 was allowed to be.
        let lost = expected.map(|expected| expected.saturating_sub(tally.distinct));
        let seconds = tally.last.saturating_sub(outcome.measured_from) as f64 / 1e9;
        let (acknowledged_rate, delivered_rate) =
            (per(tally.measured, seconds), per(tally.delivered, seconds));
        let mut report = Self { json: json!({}), lines: Vec::new(), complaint: None };
        report.put("target", json!(plan.target), Some(plan.target.clone()));
        report.connections(plan, outcome);
        let messages = json!({
            "sent": tally.sent, "acknowledged": tally.acknowledged, "refused": tally.refused,
            "unacknowledged": tally.sent - tally.acknowledged - tally.refused, "unsent": unsent,
            "measured": tally.measured, "seconds": rounded(seconds), "per_second": acknowledged_rate,
        });
        let words = format!(
            "{} sent, {} acknowledged, {} refused, {unsent} due and not sent; {} a second",
            tally.sent,
            tally.acknowledged,
            tally.refused,
            messages.get("per_second").unwrap_or(&Value::Null)
        );
        report.put("messages", messages, (plan.publishers > 0).then_some(words));
        let acknowledgement = percentiles(&tally.acknowledgement);
        let words = (!acknowledgement.is_null()).then(|| in_words(&acknowledgement));
        report.put("acknowledgement_ms", acknowledgement, words);
        let deliveries = json!({
            "received": tally.received, "distinct": tally.distinct, "expected": expected, "lost": lost,
            "duplicated": tally.duplicated, "measured": tally.delivered, "per_second": delivered_rate,
        });
        let unknown = || "an unknown number of".to_owned();
        let words = format!(
            "{} received, {} lost, {} duplicated; {} a second",
            tally.received,
            lost.map_or_else(unknown, |lost| lost.to_string()),
            tally.duplicated,
            deliveries.get("per_second").unwrap_or(&Value::Null)
        );
        report.put("deliveries", deliveries, (plan.subscribers > 0).then_some(words));
        let delivery = percentiles(&tally.delivery);
        let words = (!delivery.is_null()).then(|| in_words(&delivery));
        report.put("delivery_ms", delivery, words);
        report.process(plan, outcome, &tally);
        report.put("own_cpu_seconds", json!(rounded(outcome.own_cpu)), None);
        report.put("closed", json!(closed.len()), None);
        report.complain(&tally, lost.unwrap_or_default(), unsent, &closed);
        report
    }

    /// A figure, and what is printed of it.
    fn put(&mut self, name: &str, value: Value, words: Option<String>) {
        if let Some(words) = words {
            self.lines.push((name.replace('_', " "), words));
        }
        if let Value::Object(object) = &mut self.json {
            object.insert(name.to_owned(), value);
        }
    }

    fn connections(&mut self, plan: &Plan, outcome: &Outcome) {
        let kinds = [
            ("quiet", plan.quiet, &outcome.quiet),
            ("subscribers", plan.subscribers, &outcome.subscribers),
            ("publishers", plan.publishers, &outcome.publishers),
        ];
        for (name, count, phase) in kinds {
            let value = connecting(count, phase);
            let per_second = value.get("per_second").unwrap_or(&Value::Null);
            let words = (count > 0).then(|| format!("{count} connected, {per_second} a second"));
            self.put(name, value, words);
        }
    }

    fn process(&mut self, plan: &Plan, outcome: &Outcome, tally: &Tally) {
        let Some((from, to)) = outcome.during else { return self.put("process", Value::Null, None) };
        let cpu = to.cpu - from.cpu;
        let subscriptions = plan.subscriptions.max(plan.subscribers);
        let per_cpu_second = |count| if count > 0 { per(count, cpu) } else { Value::Null };
        let connections = [
            (plan.quiet, &outcome.quiet),
            (plan.subscribers, &outcome.subscribers),
            (plan.publishers, &outcome.publishers),
        ];
        let mut before = outcome.before;
        let mut connect_cpu = 0.0;
        for (count, phase) in connections {
            if let Some((from, to)) = before.zip(phase.sample)
                && count > 0
            {
                connect_cpu += to.cpu - from.cpu;
            }
            before = phase.sample;
        }
        let all: usize = connections.iter().map(|(count, _)| count).sum();
        let process = json!({
            "cpu_seconds": rounded(cpu),
            "messages_per_cpu_second": per_cpu_second(tally.measured),
            "deliveries_per_cpu_second": per_cpu_second(tally.delivered),
            "connections_per_cpu_second": if all > 0 { per(all as u64, connect_cpu) } else { Value::Null },
            "resident_bytes": to.resident,
            "anonymous_bytes": to.anonymous,
            "bytes_per_quiet_connection": each(outcome.before, outcome.quiet.sample, plan.quiet),
            "bytes_per_subscription": each(outcome.quiet.sample, outcome.subscribers.sample, subscriptions),
        });
        let show = |name: &str| process.get(name).unwrap_or(&Value::Null).to_string();
        let words = format!(
            "{cpu:.2} CPU seconds, {} messages a CPU second, {} MiB anonymous; bytes a quiet connection: {}, a subscription: {}",
            show("messages_per_cpu_second"),
            to.anonymous >> 20,
            show("bytes_per_quiet_connection"),
            show("bytes_per_subscription"),
        );
        self.put("process", process, Some(words));
    }

    fn complain(&mut self, tally: &Tally, lost: u64, unsent: u64, closed: &[&str]) {
        let missing = tally.sent - tally.acknowledged;
        if missing + lost + unsent == 0 && closed.is_empty() {
            return;
        }
        let mut why: Vec<&str> = closed.iter().copied().take(REASONS).collect();
        why.dedup();
        let text = format!(
            "{missing} messages not taken, {lost} lost, {unsent} due and not sent, {} connections closed{}{}",
            closed.len(),
            if why.is_empty() { "" } else { ": " },
            why.join("; ")
        );
        self.complaint = Some(text);
    }

    pub(super) fn print(&self, as_json: bool) -> Result<()> {
        if as_json {
            return say(&self.json);
        }
        self.lines.iter().try_for_each(|(name, words)| say(format_args!("{name:<20} {words}")))
    }

    /// What went wrong, if anything did.
    pub(super) fn complaint(&self) -> Option<String> {
        self.complaint.clone()
    }
}

/// So many a second, in whole numbers; nothing where no time passed.
fn per(count: u64, seconds: f64) -> Value {
    if seconds > 0.0 { json!((count as f64 / seconds).round() as u64) } else { Value::Null }
}
