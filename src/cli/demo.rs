//! `sonde demo`: the main job on real recordings, every answer checked. One missing row, and it fails.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sonde_engine::path;
use sonde_proto::mqtt::QoS;
use sonde_query::statement::split;
use tokio::runtime::Runtime;

use super::client::{Client, cut_off};
use super::demo_checks::check_answers;
use super::demo_data::{Device, Recording, load};
use super::demo_end::{DataDir, Interrupt};
use super::demo_summary::Summary;
use super::mqtt_client::{Event, MqttClient};
use super::output::{shell_path, shell_word};
use super::serve::THREAD_STACK;
use super::{ConfigArgs, DemoArgs, Exit, Failure, Result, apply};
use crate::config::Config;
use crate::serve::{self, Server};
use crate::telemetry;

/// Messages that a device has in flight.
const IN_FLIGHT: usize = 64;
/// How long the alerts may take behind the last message.
const ALERT_PATIENCE: Duration = Duration::from_secs(60);
/// How long a device waits for an answer before it looks whether the demo is to end.
const DEVICE_PATIENCE: Duration = Duration::from_millis(250);

/// What the steps of the demo work with.
pub(super) struct Stage<'a> {
    pub(super) runtime: &'a Runtime,
    pub(super) server: &'a Server,
    pub(super) client: Client,
    /// `host:port` of the MQTT listener.
    mqtt: String,
    pub(super) interrupt: &'a Interrupt,
    pub(super) summary: &'a mut Summary,
}

pub(super) fn run(args: &DemoArgs) -> Result<()> {
    telemetry::init("warn");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(THREAD_STACK).build()?;
    // IMPORTANT: listen before there is a directory, so that no signal leaves one behind.
    let interrupt = Interrupt::listen(&runtime)?;
    let directory = DataDir::make(args.data_dir.as_deref())?;
    let config = settings(directory.path(), args.port_offset)?;
    // The runtime ends in there, and with it everything that may write to the directory.
    perform(runtime, &config, interrupt, args)
}

/// The demo shows the same everywhere: no file and no environment changes its settings.
fn settings(data_dir: &Path, port_offset: u16) -> Result<Config> {
    let port = |base: u16| format!("127.0.0.1:{}", base.wrapping_add(port_offset));
    Config::of_flags(&ConfigArgs {
        data_dir: Some(data_dir.to_owned()),
        config: None,
        set: vec![
            format!("mqtt.listen={}", port(1883)),
            // Nobody speaks WebSocket here, and two of its ports would collide.
            "mqtt.ws_listen=".to_owned(),
            format!("http.listen={}", port(7480)),
            format!("grpc.listen={}", port(7481)),
        ],
    })
}

fn perform(runtime: Runtime, config: &Config, mut interrupt: Interrupt, args: &DemoArgs) -> Result<()> {
    let server = runtime.block_on(serve::start(config)).map_err(|mut failure| {
        failure.text.push_str("; if the port is taken, add --port-offset 10");
        failure
    })?;
    let mut summary = Summary::new(args.json);
    let mut outcome = play(&runtime, &server, &interrupt, &mut summary).and_then(|()| {
        let printed = summary.print();
        summary.verdict().and(printed)
    });
    if outcome.is_ok() && !args.once {
        invite(&server, &summary);
        outcome = Err(runtime.block_on(interrupt.wait()));
    }
    let stopped = runtime.block_on(server.stop());
    outcome.and(stopped)
}

fn play(runtime: &Runtime, server: &Server, interrupt: &Interrupt, summary: &mut Summary) -> Result<()> {
    let (Some(http), Some(mqtt)) = (server.addresses.http, server.addresses.mqtt) else {
        return Err(Failure::new(Exit::Failed, "the demo's listeners did not start"));
    };
    let mqtt = mqtt.to_string();
    let client = Client::new(format!("http://{http}"), Some(server.admin_token.clone()), Some(mqtt.clone()));
    let mut stage = Stage { runtime, server, client, mqtt, interrupt, summary };
    let recording = publish_all(&mut stage)?;
    let expected = &recording.expected;
    stage.summary.say("4. The same answers through HTTP, gRPC and Flight SQL");
    check_answers(&mut stage, expected, "in memory")?;
    measure_disk(&mut stage, &recording)?;
    check_answers(&mut stage, expected, "in chunks")?;
    stage.summary.say("5. Days older than a week move to the cold tier, as plain Parquet");
    cool(&mut stage)?;
    check_answers(&mut stage, expected, "hot and cold")?;
    stage.summary.figure("resident_memory", resident_mib(), "MiB");
    interrupt.check()
}

/// From the first table to the last alert.
fn publish_all(stage: &mut Stage<'_>) -> Result<Recording> {
    stage.summary.say("1. Tables, sources and a rule, from demo/schema.sql");
    let statements = split(include_str!("../../demo/schema.sql"));
    for statement in statements.map_err(|error| Failure::new(Exit::BadData, error.to_string()))? {
        apply::apply(&stage.client, &statement)?;
    }
    let recording = load(stage.server.engine.now().as_nanos())?;
    stage.summary.say(format_args!(
        "2. {} messages of {} devices over MQTT, QoS 1, each acknowledged when it is on disk",
        recording.messages(),
        recording.devices.len()
    ));
    let alerts = watch_alerts(&stage.mqtt)?;
    publish(stage, &recording)?;
    stage.summary.say("3. The rule's alerts, at a real subscriber");
    let expected = recording.expected.alerts.rows as u64;
    let received = alerts.wait(expected, stage.interrupt)?;
    stage.summary.check(format!("{received} alerts received, {expected} expected"), received == expected);
    Ok(recording)
}

/// Counts the alerts that a subscriber receives.
struct Alerts {
    received: Arc<AtomicU64>,
    stop: StopOnDrop,
    thread: std::thread::JoinHandle<()>,
}

/// Stops the subscriber, also where the demo fails before it waits for the alerts.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Alerts {
    /// Waits until so many came, or for as long as is patient; then a moment longer, in which none too many may come.
    fn wait(self, expected: u64, interrupt: &Interrupt) -> Result<u64> {
        let deadline = Instant::now() + ALERT_PATIENCE;
        while self.received.load(Ordering::Acquire) < expected && Instant::now() < deadline {
            interrupt.check()?;
            std::thread::park_timeout(Duration::from_millis(20));
        }
        drop(self.stop);
        if self.thread.join().is_err() {
            eprintln!("the subscriber panicked");
        }
        Ok(self.received.load(Ordering::Acquire))
    }
}

fn watch_alerts(mqtt: &str) -> Result<Alerts> {
    let mut subscriber = MqttClient::connect(mqtt, "demo-operator", None)?;
    subscriber.subscribe("alerts/+", QoS::AtLeastOnce)?;
    subscriber.set_patience(Some(Duration::from_millis(100)))?;
    let (received, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, stopping) = (Arc::clone(&received), Arc::clone(&stop));
    let thread = std::thread::spawn(move || {
        while !stopping.load(Ordering::Acquire) {
            match receive(&mut subscriber) {
                Ok(is_alert) => {
                    count.fetch_add(is_alert.into(), Ordering::AcqRel);
                }
                // That the server goes while nobody counts any more is no news.
                Err(_) if stopping.load(Ordering::Acquire) => return,
                Err(failure) => return eprintln!("the subscriber: {}", failure.text),
            }
        }
    });
    Ok(Alerts { received, stop: StopOnDrop(stop), thread })
}

/// Takes what comes next, and acknowledges it; whether it is a message.
fn receive(subscriber: &mut MqttClient) -> Result<bool> {
    let Some(event) = subscriber.next()? else { return Ok(false) };
    subscriber.acknowledge(&event);
    subscriber.flush()?;
    Ok(matches!(event, Event::Message { .. }))
}

fn publish(stage: &mut Stage<'_>, recording: &Recording) -> Result<()> {
    let total = recording.messages();
    let (done, mqtt, interrupt) = (AtomicU64::new(0), stage.mqtt.as_str(), stage.interrupt);
    let started = Instant::now();
    let results: Vec<Result<Vec<Duration>>> = std::thread::scope(|scope| {
        let done = &done;
        let devices: Vec<_> = recording
            .devices
            .iter()
            .map(|device| scope.spawn(move || publish_device(device, mqtt, done, interrupt)))
            .collect();
        while !devices.iter().all(|device| device.is_finished()) {
            std::thread::park_timeout(Duration::from_millis(250));
            let sent = done.load(Ordering::Relaxed);
            eprint!(
                "\r  {sent:>8} of {total} acknowledged, {:>7.0} a second ",
                sent as f64 / started.elapsed().as_secs_f64()
            );
        }
        eprintln!();
        let panicked = || Err(Failure::new(Exit::Failed, "a device panicked"));
        devices.into_iter().map(|device| device.join().unwrap_or_else(|_| panicked())).collect()
    });
    let elapsed = started.elapsed().as_secs_f64();
    let mut latencies = Vec::with_capacity(total);
    for result in results {
        latencies.extend(result?);
    }
    latencies.sort_unstable();
    let at = |share: f64| {
        let place = ((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1));
        latencies.get(place).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    };
    let rows = recording.expected.published_rows();
    let summary = &mut *stage.summary;
    summary.check(format!("{total} messages acknowledged"), latencies.len() == total);
    summary.figure("messages", total as f64 / elapsed, "per second");
    // What is acknowledged is stored; the checks count it.
    summary.figure("rows", rows as f64 / elapsed, "per second");
    summary.figure("values", recording.values as f64 / elapsed, "per second");
    summary.figure("acknowledgement_p50", at(0.5), "ms");
    summary.figure("acknowledgement_p99", at(0.99), "ms");
    Ok(())
}

/// Publishes a device's messages; how long each waited for its acknowledgement.
fn publish_device(
    device: &Device,
    mqtt: &str,
    done: &AtomicU64,
    interrupt: &Interrupt,
) -> Result<Vec<Duration>> {
    let mut client = MqttClient::connect(mqtt, &device.name, None)?;
    client.set_patience(Some(DEVICE_PATIENCE))?;
    let mut latencies = Vec::with_capacity(device.messages.len());
    let mut sent_at = vec![Instant::now(); IN_FLIGHT];
    let (mut next, mut acknowledged) = (0, 0);
    while acknowledged < device.messages.len() {
        interrupt.check()?;
        while next < device.messages.len() && next - acknowledged < IN_FLIGHT {
            let Some((topic, payload)) = device.messages.get(next) else { break };
            if let Some(slot) = sent_at.get_mut(next % IN_FLIGHT) {
                *slot = Instant::now();
            }
            // Acknowledgements come in order, so the packet id only has to differ among those in flight.
            client.queue(topic, payload.as_bytes(), QoS::AtLeastOnce, false, (next % 60_000) as u16 + 1);
            next += 1;
        }
        client.flush()?;
        let Some(event) = client.next()? else { continue };
        event.check()?;
        if matches!(event, Event::PubAck(_)) {
            latencies.extend(sent_at.get(acknowledged % IN_FLIGHT).map(Instant::elapsed));
            acknowledged += 1;
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(latencies)
}

/// Flushes and compacts, and compares the chunks with the raw payloads and with Parquet of the same rows.
fn measure_disk(stage: &mut Stage<'_>, recording: &Recording) -> Result<()> {
    let engine = &stage.server.engine;
    let started = Instant::now();
    for table in ["plant", "motion", "machines"] {
        stage.interrupt.check()?;
        stage.client.sql_text(&format!("COMPACT TABLE {table}"))?;
    }
    stage.summary.figure("flush_and_compaction", started.elapsed().as_secs_f64() * 1e3, "ms");
    let catalog = engine.catalog();
    let mut chunk_bytes = 0;
    let mut parquet_bytes = 0;
    for table in ["plant", "motion", "machines"] {
        let id = catalog
            .require_table("public", table)
            .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?
            .id();
        let chunks = engine.chunks();
        let of_table = chunks.iter().filter(|chunk| chunk.table == id);
        chunk_bytes += of_table.map(|chunk| chunk.bytes).sum::<u64>();
        stage.interrupt.check()?;
        let mut parquet = Vec::new();
        let accept = "application/vnd.apache.parquet";
        let mut body = stage.client.sql(&format!("SELECT * FROM {table}"), accept, None)?;
        body.read_to_end(&mut parquet).map_err(cut_off)?;
        parquet_bytes += parquet.len();
    }
    let values = recording.values as f64;
    stage.summary.figure("on_disk", chunk_bytes as f64 / values, "bytes per value");
    stage.summary.figure("in_zstd_parquet", parquet_bytes as f64 / values, "bytes per value");
    stage.summary.figure("as_sent", recording.payload_bytes as f64 / values, "bytes per value");
    Ok(())
}

fn cool(stage: &mut Stage<'_>) -> Result<()> {
    stage.interrupt.check()?;
    let engine = &stage.server.engine;
    let started = Instant::now();
    let week = time_text(engine.now().as_nanos() - 7 * 86_400_000_000_000);
    stage.client.sql_text(&format!("COOL TABLE plant BEFORE '{week}'"))?;
    let files = engine.cold_files();
    stage.summary.check(format!("{} cold files", files.len()), !files.is_empty());
    stage.summary.figure("cold", files.len() as f64, "files");
    stage.summary.figure("cold", files.iter().map(|file| file.bytes).sum::<u64>() as f64, "bytes");
    stage.summary.figure("cooling", started.elapsed().as_secs_f64() * 1e3, "ms");
    Ok(())
}

/// Nanoseconds since the epoch as RFC 3339.
pub(super) fn time_text(nanos: i64) -> String {
    let array = arrow::array::TimestampNanosecondArray::from(vec![nanos]).with_timezone("UTC");
    arrow::util::display::array_value_to_string(&array, 0).unwrap_or_default()
}

/// Resident memory of this process, server and devices together.
fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}

/// Says what can be tried now, in commands that run from anywhere as they are.
fn invite(server: &Server, summary: &Summary) {
    let text = |address: Option<std::net::SocketAddr>| {
        address.map(|address| address.to_string()).unwrap_or_default()
    };
    let http = format!("http://{}", text(server.addresses.http));
    summary.say(format_args!(
        "\nThe server goes on until Ctrl-C. MQTT {}, HTTP {http}, gRPC and Flight SQL {}. Try:",
        text(server.addresses.mqtt),
        text(server.addresses.grpc)
    ));
    // `make demo` leaves no `sonde` on the PATH.
    let program = std::env::current_exe();
    let sonde = program.map_or_else(|_| "sonde".to_owned(), |path| shell_word(&path.to_string_lossy()));
    let place = format!("--data-dir {}", shell_path(server.engine.data_dir()));
    let token = shell_path(&server.engine.data_dir().join(path::ADMIN_TOKEN));
    for command in [
        format!(
            "{sonde} sql {place} -c \"SELECT time_bucket('1 day', time) AS day, device, max(collector) FROM plant GROUP BY 1, 2 ORDER BY 1, 2\""
        ),
        format!("{sonde} sql {place} -c 'SHOW rules'"),
        format!("{sonde} pub {place} plant/plant-9/state '{{\"collector\":120.5}}'"),
        format!("{sonde} tail {place} 'alerts/#'"),
        format!(
            "curl -H \"Authorization: Bearer $(cat {token})\" {http}/api/v1/sql -d 'SELECT * FROM system.tiers'"
        ),
    ] {
        summary.say(format_args!("  {command}"));
    }
}
