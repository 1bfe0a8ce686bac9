//! `sonde bench mqtt`: load for any MQTT broker.
//!
//! One thread drives all clients unless more are asked for. Phases, each after the one before it is complete on all
//! threads: quiet connections, subscribers, publishers, warm-up, measurement, waiting for what is missing.

mod client;
mod driver;
mod histogram;
mod pace;
mod plan;
mod process;
mod report;
mod stamp;
mod template;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::driver::{Done, Driver, Progress};
use self::plan::Plan;
use self::process::{Sample, sample};
use self::report::Report;
use super::super::{Exit, Failure, Result};

/// Until all threads have taken note of when they start.
const HEAD_START: Duration = Duration::from_millis(10);

#[derive(Debug, Args)]
pub(in crate::cli) struct MqttArgs {
    /// The broker's host.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The broker's port.
    #[arg(long, default_value_t = 1883)]
    port: u16,
    /// The broker as `mqtt://HOST[:PORT]`.
    #[arg(long, conflicts_with_all = ["host", "port"])]
    url: Option<String>,
    /// The version of MQTT.
    #[arg(long, default_value = "3.1.1", value_parser = ["3.1.1", "5"])]
    protocol_version: String,
    /// The user name of all clients.
    #[arg(long)]
    username: Option<String>,
    /// The password of all clients; without it, that of SONDE_BENCH_PASSWORD, which other users of the machine do not see.
    #[arg(long)]
    password: Option<String>,
    /// What client ids begin with.
    #[arg(long, default_value = "sonde-bench")]
    client_prefix: String,
    /// Connections that publish.
    #[arg(long, default_value_t = 10)]
    connections: usize,
    /// Connections that only subscribe.
    #[arg(long, default_value_t = 0)]
    subscribers: usize,
    /// Connections that do nothing; `--pid` tells what each takes.
    #[arg(long, default_value_t = 0)]
    quiet: usize,
    /// New connections a second; without it, as many as the broker takes.
    #[arg(long)]
    connect_rate: Option<f64>,
    /// QoS of the messages.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// QoS of the subscriptions; as `--qos` without it.
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=2))]
    subscriber_qos: Option<u8>,
    /// Messages that each connection has unacknowledged at most.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    in_flight: u16,
    /// Messages a second, of all connections together; latencies count from when a message was due. Without it, as fast as
    /// acknowledgements come.
    #[arg(long)]
    rate: Option<f64>,
    /// The topic; with placeholders as `--payload`.
    #[arg(long, default_value = "bench/{client}")]
    topic: String,
    /// The payload. {client}: the connection's number; {seq}: the message's among those of its connection; {time},
    /// {time_ms}: when it was due, since 1970; {random:LOW:HIGH}: a number with as many decimals as the bounds; {stamp}:
    /// what subscribers recognise it by, without which latency and loss of deliveries are not known.
    #[arg(long, conflicts_with = "size")]
    payload: Option<String>,
    /// Bytes of a payload that says nothing; of 43 on it has a stamp.
    #[arg(long)]
    size: Option<usize>,
    /// A filter of the subscribers, with {client} for the subscriber's number and {n} for the subscription's; may be
    /// repeated. Every subscriber has all of them.
    #[arg(long, default_value = "#")]
    filter: Vec<String>,
    /// Subscriptions of all subscribers together, dealt out to them, each with the next of the filters in turn.
    #[arg(long)]
    subscriptions: Option<usize>,
    /// Subscribers resume their sessions, which the broker keeps for a day.
    #[arg(long)]
    keep_session: bool,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    duration: f64,
    /// Messages to publish, of all connections together, instead of `--duration`; without `--connections`, messages that
    /// are to come.
    #[arg(long)]
    messages: Option<u64>,
    /// Seconds before those that are measured; 1 by default, and 0 with `--messages`.
    #[arg(long, value_parser = seconds)]
    warm_up: Option<f64>,
    /// Seconds without any acknowledgement or message after which what is missing is lost.
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    patience: f64,
    /// Threads that the connections are shared out to.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    threads: u8,
    /// The broker's process, whose CPU time and memory are measured.
    #[arg(long)]
    pid: Option<u32>,
    /// One JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

/// A time in seconds, of a day at most.
fn seconds(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds, from 0 to 86400".into()),
    }
}

/// How a phase of connecting went.
#[derive(Clone, Copy, Debug)]
struct Phase {
    /// Seconds until all were let in, and had what they subscribed to.
    seconds: f64,
    /// The broker behind it.
    sample: Option<Sample>,
}

/// Everything that is reported.
#[derive(Debug)]
struct Outcome {
    before: Option<Sample>,
    quiet: Phase,
    subscribers: Phase,
    publishers: Phase,
    /// The broker when the measurement began and when it was over.
    during: Option<(Sample, Sample)>,
    /// CPU seconds of this process in the same time.
    own_cpu: f64,
    measured_from: u64,
    done: Vec<Done>,
}

pub(super) fn run(args: &MqttArgs) -> Result<()> {
    let plan = Plan::new(args)?;
    allow_files(plan.quiet + plan.subscribers + plan.publishers)?;
    let outcome = carry_out(&plan, args.pid)?;
    let report = Report::new(&plan, &outcome);
    report.print(args.json)?;
    match report.complaint() {
        Some(complaint) => Err(Failure::new(Exit::Partial, complaint)),
        None => Ok(()),
    }
}

/// Raises the limit on open files as far as it may go, and says where that is not enough.
fn allow_files(connections: usize) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    // Standard streams, the event loops and their wakers.
    let wanted = connections as u64 + 256;
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let raised = limit.maximum.map_or(wanted, |maximum| wanted.min(maximum));
    setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum })
        .map_err(std::io::Error::from)?;
    if raised < wanted {
        let text = format!(
            "{connections} connections need {wanted} open files, and {raised} is the hard limit (ulimit -Hn)"
        );
        return Err(Failure::new(Exit::Usage, text));
    }
    Ok(())
}

/// Runs the threads through their phases.
fn carry_out(plan: &Plan, pid: Option<u32>) -> Result<Outcome> {
    let progress = Progress::new(plan.threads);
    let barrier = Barrier::new(plan.threads + 1);
    let start = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let work = |thread: usize| -> Result<Option<Done>> {
        let mut driver = Driver::new(plan, &progress, thread);
        let phases = [Driver::connect_quiet, Driver::connect_subscribers, Driver::connect_publishers];
        for connect in phases {
            barrier.wait();
            if let Ok(ready) = &mut driver
                && let Err(failure) = connect(ready)
            {
                driver = Err(failure);
            }
            failed.fetch_or(driver.is_err(), Ordering::SeqCst);
            barrier.wait();
        }
        barrier.wait();
        let driver = driver?;
        // Another thread says why.
        if failed.load(Ordering::SeqCst) {
            Ok(None)
        } else {
            driver.run(start.load(Ordering::SeqCst)).map(Some)
        }
    };
    std::thread::scope(|scope| {
        let before = sample(pid);
        let work = &work;
        let threads: Vec<_> = (0..plan.threads).map(|thread| scope.spawn(move || work(thread))).collect();
        let phase = || {
            barrier.wait();
            let began = plan.clock.now();
            barrier.wait();
            let seconds = (plan.clock.now() - began) as f64 / 1e9;
            sample(pid).map(|sample| Phase { seconds, sample })
        };
        // The threads wait at the barriers: no error may return before the last of them.
        let phases = [phase(), phase(), phase()];
        let began = plan.clock.now() + HEAD_START.as_nanos() as u64;
        start.store(began, Ordering::SeqCst);
        barrier.wait();
        let measured_from = began + plan.warm_up.as_nanos() as u64;
        if !failed.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_nanos(measured_from.saturating_sub(plan.clock.now())));
        }
        let own = || Ok::<_, Failure>(sample(Some(std::process::id()))?.unwrap_or_default().cpu);
        let (warm, own_before) = (sample(pid), own());
        let mut done = Vec::new();
        let mut first_failure = Ok(());
        for thread in threads {
            match thread.join() {
                Ok(Ok(result)) => done.extend(result),
                Ok(Err(failure)) => first_failure = first_failure.and(Err(failure)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        first_failure?;
        let [quiet, subscribers, publishers] = phases;
        Ok(Outcome {
            before: before?,
            quiet: quiet?,
            subscribers: subscribers?,
            publishers: publishers?,
            during: warm?.zip(sample(pid)?),
            own_cpu: own()? - own_before?,
            measured_from,
            done,
        })
    })
}
