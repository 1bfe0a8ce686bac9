//! `sonde demo`: the main job on real recordings, every answer checked. One missing row, and it fails.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int64Type};
use arrow::ipc::reader::StreamReader;
use arrow::record_batch::RecordBatch;
use arrow_flight::sql::client::FlightSqlServiceClient;
use futures::TryStreamExt;
use sonde_proto::mqtt::QoS;
use sonde_proto::v1::QueryRequest;
use sonde_proto::v1::query_client::QueryClient;
use sonde_query::statement::split;
use tonic::transport::Endpoint;

use super::client::Client;
use super::demo_data::{Device, Expected, Recording, load};
use super::mqtt_client::{Event, MqttClient};
use super::serve::THREAD_STACK;
use super::{ConfigArgs, DemoArgs, Exit, Failure, Result, apply};
use crate::config::Config;
use crate::serve::{self, Server};
use crate::telemetry;

/// Messages that a device has in flight.
const IN_FLIGHT: usize = 64;
/// How long the alerts may take behind the last message.
const ALERT_PATIENCE: Duration = Duration::from_secs(60);

/// What the demo measured and found.
#[derive(Default)]
struct Summary {
    checks: Vec<(String, bool)>,
    figures: Vec<(&'static str, f64, &'static str)>,
}

impl Summary {
    fn check(&mut self, what: impl Into<String>, holds: bool) {
        let what = what.into();
        println!("  {} {what}", if holds { "ok  " } else { "FAIL" });
        self.checks.push((what, holds));
    }

    fn figure(&mut self, name: &'static str, value: f64, unit: &'static str) {
        self.figures.push((name, value, unit));
    }

    fn holds(&self) -> bool {
        self.checks.iter().all(|(_, holds)| *holds)
    }

    fn print(&self, json: bool) {
        if json {
            let figures: serde_json::Map<String, serde_json::Value> =
                self.figures.iter().map(|(name, value, _)| ((*name).to_owned(), (*value).into())).collect();
            let failed: Vec<&str> =
                self.checks.iter().filter(|(_, holds)| !holds).map(|(what, _)| what.as_str()).collect();
            println!("{}", serde_json::json!({ "ok": self.holds(), "failed": failed, "figures": figures }));
            return;
        }
        println!("\nSummary");
        for (name, value, unit) in &self.figures {
            let digits = if value.abs() < 100.0 { 2 } else { 0 };
            println!("  {:<34} {value:>14.digits$} {unit}", name.replace('_', " "));
        }
        println!("  {:<34} {:>14}", "checks", if self.holds() { "all hold" } else { "FAILED" });
    }
}

pub(super) fn run(args: &DemoArgs) -> Result<()> {
    telemetry::init("warn");
    let data_dir = match &args.data_dir {
        Some(dir) => dir.clone(),
        None => std::env::temp_dir().join(format!("sonde-demo-{}", std::process::id())),
    };
    let _remove = args.data_dir.is_none().then(|| RemoveOnDrop(data_dir.clone()));
    let port = |base: u16| format!("127.0.0.1:{}", base.wrapping_add(args.port_offset));
    let settings = ConfigArgs {
        data_dir: Some(data_dir),
        config: None,
        set: vec![
            format!("mqtt.listen={}", port(1883)),
            format!("http.listen={}", port(7480)),
            format!("grpc.listen={}", port(7481)),
        ],
    };
    let config = Config::load(&settings, false)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(THREAD_STACK).build()?;
    let server = runtime.block_on(serve::start(&config)).map_err(|mut failure| {
        failure.text.push_str("; if the port is taken, add --port-offset 10");
        failure
    })?;
    let mut summary = Summary::default();
    let outcome = play(&runtime, &server, &mut summary);
    if outcome.is_ok() {
        summary.print(args.json);
    }
    let holds = outcome.is_ok() && summary.holds();
    if holds && !args.once {
        invite(&server);
        runtime.block_on(tokio::signal::ctrl_c())?;
    }
    runtime.block_on(server.stop())?;
    outcome?;
    if holds { Ok(()) } else { Err(Failure::new(Exit::Failed, "the demo's checks failed")) }
}

/// Removes the demo's own directory at the end.
struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

fn play(runtime: &tokio::runtime::Runtime, server: &Server, summary: &mut Summary) -> Result<()> {
    let (Some(http), Some(mqtt)) = (server.addresses.http, server.addresses.mqtt) else {
        return Err(Failure::new(Exit::Failed, "the demo's listeners did not start"));
    };
    let client =
        Client::new(format!("http://{http}"), Some(server.admin_token.clone()), Some(mqtt.to_string()));
    println!("1. Tables, sources and a rule, from demo/schema.sql");
    let statements = split(include_str!("../../demo/schema.sql"));
    for statement in statements.map_err(|error| Failure::new(Exit::BadData, error.to_string()))? {
        apply::apply(&client, &statement)?;
    }
    let recording = load(server.engine.now().as_nanos())?;
    let messages: usize = recording.devices.iter().map(|device| device.messages.len()).sum();
    println!(
        "2. {messages} messages of {} devices over MQTT, QoS 1, each acknowledged when it is on disk",
        recording.devices.len()
    );
    let alerts = watch_alerts(mqtt.to_string())?;
    publish(&recording, &mqtt.to_string(), summary)?;
    println!("3. The rule's alerts, at a real subscriber");
    let expected = &recording.expected;
    let received = alerts.wait(expected.alerts as u64);
    summary.check(
        format!("{received} alerts received, {} expected", expected.alerts),
        received == expected.alerts as u64,
    );
    println!("4. The same answers through HTTP, gRPC and Flight SQL");
    check_answers(runtime, server, &client, expected, summary, "in memory")?;
    measure_disk(&client, server, &recording, summary)?;
    check_answers(runtime, server, &client, expected, summary, "in chunks")?;
    println!("5. Days older than a week move to the cold tier, as plain Parquet");
    cool(&client, server, summary)?;
    check_answers(runtime, server, &client, expected, summary, "hot and cold")?;
    summary.figure("resident_memory", resident_mib(), "MiB");
    Ok(())
}

/// Counts the alerts that a subscriber receives.
struct Alerts {
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Alerts {
    /// Waits until so many came, or for as long as is patient; then a moment longer, in which none too many may come.
    fn wait(self, expected: u64) -> u64 {
        let deadline = Instant::now() + ALERT_PATIENCE;
        while self.received.load(Ordering::Acquire) < expected && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        self.stop.store(true, Ordering::Release);
        if self.thread.join().is_err() {
            eprintln!("the subscriber panicked");
        }
        self.received.load(Ordering::Acquire)
    }
}

fn watch_alerts(mqtt: String) -> Result<Alerts> {
    let mut subscriber = MqttClient::connect(&mqtt, "demo-operator", None)?;
    subscriber.subscribe("alerts/+", QoS::AtLeastOnce)?;
    subscriber.set_patience(Some(Duration::from_millis(100)))?;
    let (received, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, stopping) = (Arc::clone(&received), Arc::clone(&stop));
    let thread = std::thread::spawn(move || {
        while !stopping.load(Ordering::Acquire) {
            match subscriber.next() {
                Ok(Some(event)) => {
                    if matches!(event, Event::Message { .. }) {
                        count.fetch_add(1, Ordering::AcqRel);
                    }
                    subscriber.acknowledge(&event);
                    if subscriber.flush().is_err() {
                        return;
                    }
                }
                Ok(None) => {}
                Err(failure) => return eprintln!("the subscriber: {}", failure.text),
            }
        }
    });
    Ok(Alerts { received, stop, thread })
}

fn publish(recording: &Recording, mqtt: &str, summary: &mut Summary) -> Result<()> {
    let total: usize = recording.devices.iter().map(|device| device.messages.len()).sum();
    let done = AtomicU64::new(0);
    let started = Instant::now();
    let results: Vec<Result<Vec<Duration>>> = std::thread::scope(|scope| {
        let done = &done;
        let devices: Vec<_> = recording
            .devices
            .iter()
            .map(|device| scope.spawn(move || publish_device(device, mqtt, done)))
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
    summary.check(format!("{total} messages acknowledged"), latencies.len() == total);
    summary.figure("messages_per_second", total as f64 / elapsed, "messages/s");
    summary.figure("values_per_second", recording.values as f64 / elapsed, "values/s");
    summary.figure("acknowledgement_p50", at(0.5), "ms");
    summary.figure("acknowledgement_p99", at(0.99), "ms");
    Ok(())
}

/// Publishes a device's messages; how long each waited for its acknowledgement.
fn publish_device(device: &Device, mqtt: &str, done: &AtomicU64) -> Result<Vec<Duration>> {
    let mut client = MqttClient::connect(mqtt, &device.name, None)?;
    let mut latencies = Vec::with_capacity(device.messages.len());
    let mut sent_at = vec![Instant::now(); IN_FLIGHT];
    let (mut next, mut acknowledged) = (0, 0);
    while acknowledged < device.messages.len() {
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
        if let Some(Event::PubAck(_)) = client.next()? {
            latencies.extend(sent_at.get(acknowledged % IN_FLIGHT).map(Instant::elapsed));
            acknowledged += 1;
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(latencies)
}

const CHECKS: &str = "SELECT (SELECT count(*) FROM plant) AS plant, (SELECT sum(collector) FROM plant) AS collector, \
    (SELECT count(*) FROM motion) AS motion, (SELECT count(*) FROM machines) AS machines, \
    (SELECT count(*) FROM alerts) AS alerts, (SELECT count(*) FROM system.dead_letters) AS dead";

/// Asks all three doors for the same sums, and compares them with what was sent.
fn check_answers(
    runtime: &tokio::runtime::Runtime,
    server: &Server,
    client: &Client,
    expected: &Expected,
    summary: &mut Summary,
    place: &'static str,
) -> Result<()> {
    let started = Instant::now();
    let http = StreamReader::try_new(client.sql(CHECKS, "application/vnd.apache.arrow.stream", None)?, None);
    let failed = |error: &dyn std::fmt::Display| Failure::new(Exit::Failed, error.to_string());
    let http: Vec<RecordBatch> =
        http.map_err(|error| failed(&error))?.collect::<Result<_, _>>().map_err(|error| failed(&error))?;
    let elapsed = started.elapsed().as_secs_f64() * 1e3;
    let answers = [
        ("HTTP", http),
        ("gRPC", runtime.block_on(ask_grpc(server)).map_err(|error| failed(&error))?),
        ("Flight SQL", runtime.block_on(ask_flight(server)).map_err(|error| failed(&error))?),
    ];
    for (door, batches) in answers {
        let wanted = [expected.plant_rows, expected.motion_rows, expected.machine_rows, expected.alerts, 0];
        let wanted = Sums { counts: wanted.map(|count| count as i64), collector: expected.plant_sum };
        match sums(&batches) {
            Some(found) if found.agrees(&wanted) => {
                let rows: i64 = found.counts.iter().sum();
                summary.check(format!("{door}, rows {place}: {rows} rows counted, the sum agrees"), true);
            }
            found => {
                summary.check(format!("{door}, rows {place}: {found:?} instead of {wanted:?}"), false);
            }
        }
    }
    summary.figure(
        match place {
            "in memory" => "sums_over_all_rows_in_memory",
            "in chunks" => "sums_over_all_rows_in_chunks",
            _ => "sums_over_all_rows_hot_and_cold",
        },
        elapsed,
        "ms",
    );
    Ok(())
}

/// Counts of plant, motion, machines, alerts and dead letters, and the sum over the plant's collector.
#[derive(Debug)]
struct Sums {
    counts: [i64; 5],
    collector: f64,
}

impl Sums {
    /// Counts must be the same, sums as near as the order of additions allows.
    fn agrees(&self, wanted: &Self) -> bool {
        let difference = (self.collector - wanted.collector).abs();
        self.counts == wanted.counts && difference <= wanted.collector.abs() * 1e-9
    }
}

fn sums(batches: &[RecordBatch]) -> Option<Sums> {
    let batch = batches.iter().find(|batch| batch.num_rows() == 1)?;
    let count = |name: &str| {
        let column = batch.column_by_name(name)?.as_primitive_opt::<Int64Type>()?;
        column.is_valid(0).then(|| column.value(0))
    };
    let collector = batch.column_by_name("collector")?.as_primitive_opt::<Float64Type>()?;
    let counts = [count("plant")?, count("motion")?, count("machines")?, count("alerts")?, count("dead")?];
    Some(Sums { counts, collector: collector.value(0) })
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn endpoint(server: &Server) -> Result<Endpoint, AnyError> {
    let grpc = server.addresses.grpc.ok_or("the gRPC listener did not start")?;
    Ok(Endpoint::from_shared(format!("http://{grpc}"))?)
}

async fn ask_grpc(server: &Server) -> Result<Vec<RecordBatch>, AnyError> {
    let mut client = QueryClient::new(endpoint(server)?.connect().await?);
    let mut request = tonic::Request::new(QueryRequest { sql: CHECKS.to_owned(), database: String::new() });
    request.metadata_mut().insert("authorization", format!("Bearer {}", server.admin_token).parse()?);
    let mut stream = client.query(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(message) = stream.message().await? {
        bytes.extend_from_slice(&message.arrow_ipc);
    }
    let reader = StreamReader::try_new(std::io::Cursor::new(bytes), None)?;
    Ok(reader.collect::<Result<_, _>>()?)
}

async fn ask_flight(server: &Server) -> Result<Vec<RecordBatch>, AnyError> {
    let mut client = FlightSqlServiceClient::new(endpoint(server)?.connect().await?);
    client.set_token(server.admin_token.clone());
    let info = client.execute(CHECKS.to_owned(), None).await?;
    let mut batches = Vec::new();
    for endpoint in info.endpoint {
        let Some(ticket) = endpoint.ticket else { continue };
        batches.extend(client.do_get(ticket).await?.try_collect::<Vec<_>>().await?);
    }
    Ok(batches)
}

/// Flushes and compacts, and compares the chunks with the raw payloads and with Parquet of the same rows.
fn measure_disk(
    client: &Client,
    server: &Server,
    recording: &Recording,
    summary: &mut Summary,
) -> Result<()> {
    let started = Instant::now();
    for table in ["plant", "motion", "machines"] {
        client.sql_text(&format!("COMPACT TABLE {table}"))?;
    }
    summary.figure("flush_and_compaction", started.elapsed().as_secs_f64() * 1e3, "ms");
    let catalog = server.engine.catalog();
    let mut chunk_bytes = 0;
    let mut parquet_bytes = 0;
    for table in ["plant", "motion", "machines"] {
        let id = catalog
            .require_table("public", table)
            .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?
            .id();
        chunk_bytes += server
            .engine
            .chunks()
            .iter()
            .filter(|chunk| chunk.table == id)
            .map(|chunk| chunk.bytes)
            .sum::<u64>();
        let mut parquet = Vec::new();
        let accept = "application/vnd.apache.parquet";
        client.sql(&format!("SELECT * FROM {table}"), accept, None)?.read_to_end(&mut parquet)?;
        parquet_bytes += parquet.len();
    }
    let values = recording.values as f64;
    summary.figure("bytes_per_value_on_disk", chunk_bytes as f64 / values, "bytes");
    summary.figure("bytes_per_value_in_zstd_parquet", parquet_bytes as f64 / values, "bytes");
    summary.figure("bytes_per_value_as_sent", recording.payload_bytes as f64 / values, "bytes");
    Ok(())
}

fn cool(client: &Client, server: &Server, summary: &mut Summary) -> Result<()> {
    let started = Instant::now();
    let week = time_text(server.engine.now().as_nanos() - 7 * 86_400_000_000_000);
    client.sql_text(&format!("COOL TABLE plant BEFORE '{week}'"))?;
    let files = server.engine.cold_files();
    summary.check(format!("{} cold files", files.len()), !files.is_empty());
    summary.figure("cold_files_moved", files.len() as f64, "files");
    summary.figure("cold_bytes", files.iter().map(|file| file.bytes).sum::<u64>() as f64, "bytes");
    summary.figure("cooling", started.elapsed().as_secs_f64() * 1e3, "ms");
    Ok(())
}

/// Nanoseconds since the epoch as RFC 3339.
fn time_text(nanos: i64) -> String {
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

fn invite(server: &Server) {
    let data_dir = server.engine.data_dir().display();
    let text = |address: Option<std::net::SocketAddr>| {
        address.map(|address| address.to_string()).unwrap_or_default()
    };
    println!(
        "\nThe server goes on until Ctrl-C. MQTT {}, HTTP {}, gRPC and Flight SQL {}. Try:",
        text(server.addresses.mqtt),
        text(server.addresses.http),
        text(server.addresses.grpc)
    );
    println!(
        "  sonde sql --data-dir {data_dir} -c \"SELECT time_bucket('1 day', time) AS day, device, max(collector) FROM plant GROUP BY 1, 2 ORDER BY 1, 2\""
    );
    println!("  sonde sql --data-dir {data_dir} -c 'SHOW rules'");
    println!("  sonde pub --data-dir {data_dir} plant/plant-9/state '{{\"collector\":120.5}}'");
    println!("  sonde tail --data-dir {data_dir} 'alerts/#'");
    println!(
        "  curl -H \"Authorization: Bearer $(cat {data_dir}/admin.token)\" http://{}/api/v1/sql -d 'SELECT * FROM system.tiers'",
        text(server.addresses.http)
    );
}
