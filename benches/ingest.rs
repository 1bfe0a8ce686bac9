//! Ingest of a whole server: real sockets, durable acknowledgements, and the server's own CPU time.
//!
//! `cargo bench --bench ingest --profile demo -- [mqtt|line] [--scale 0.1]`. The server is a process of its own; the
//! load shares its cores, so messages per CPU second of the server is the figure that the machine's noise moves least.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark stops at the first thing that is wrong"
)]

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use sonde_proto::mqtt::{Connect, Packet, Properties, Publish, QoS, Version, decode};

/// 2024-02-23T14:53:20Z in milliseconds: the first time of every load.
const START_MS: u64 = 1_708_700_000_000;
/// Clock ticks of `/proc/<pid>/stat` in a second, on every Linux that we know.
const TICKS: f64 = 100.0;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let scale: f64 =
        args.iter().position(|arg| arg == "--scale").map_or(1.0, |at| args[at + 1].parse().unwrap());
    let wanted = |name: &str| {
        let named: Vec<_> = args.iter().filter(|arg| ["mqtt", "line"].contains(&arg.as_str())).collect();
        named.is_empty() || named.iter().any(|arg| *arg == name)
    };
    if wanted("mqtt") {
        mqtt(&MqttLoad { connections: 1000, in_flight: 4, messages: (2_000_000.0 * scale) as usize });
        mqtt(&MqttLoad { connections: 10, in_flight: 64, messages: (2_000_000.0 * scale) as usize });
    }
    if wanted("line") {
        line(&LineLoad {
            clients: 2,
            hosts: 4000,
            lines: 10_000,
            batches: (300.0 * scale).max(4.0) as usize,
        });
    }
}

/// A server on a data directory of its own.
struct Server {
    process: Child,
    dir: PathBuf,
}

impl Server {
    fn start() -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let mut command = Command::new(env!("CARGO_BIN_EXE_sonde"));
        command.arg("serve").arg("--data-dir").arg(&dir).stdout(Stdio::null());
        for door in ["mqtt", "http", "grpc"] {
            command.arg("--set").arg(format!("{door}.listen=127.0.0.1:0"));
        }
        let server = Self { process: command.spawn().unwrap(), dir };
        let started = Instant::now();
        while !server.dir.join("endpoints.json").exists() {
            assert!(started.elapsed() < Duration::from_secs(30), "the server did not start");
            std::thread::park_timeout(Duration::from_millis(10));
        }
        server
    }

    fn address(&self, door: &str) -> SocketAddr {
        let text = std::fs::read(self.dir.join("endpoints.json")).unwrap();
        let endpoints: serde_json::Value = serde_json::from_slice(&text).unwrap();
        endpoints[door].as_str().unwrap().parse().unwrap()
    }

    fn token(&self) -> String {
        std::fs::read_to_string(self.dir.join("admin.token")).unwrap().trim().to_owned()
    }

    /// CPU seconds of the server so far, user and system.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        // The second field, the name, may hold spaces; it ends with the last parenthesis.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS
    }

    /// A line of `/proc/<pid>/status`, in MiB.
    fn memory(&self, name: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }

    /// The one number that a statement answers.
    fn number(&self, sql: &str) -> f64 {
        let url = format!("http://{}/api/v1/sql", self.address("http"));
        let request = ureq::post(url).header("Authorization", format!("Bearer {}", self.token()));
        let mut answer = request.header("Accept", "application/json").send(sql).unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        answer["rows"][0][0].as_f64().unwrap()
    }

    fn statement(&self, sql: &str) {
        let url = format!("http://{}/api/v1/sql", self.address("http"));
        ureq::post(url).header("Authorization", format!("Bearer {}", self.token())).send(sql).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

fn figure(name: &str, value: f64, unit: &str) {
    let digits = if value.abs() < 100.0 { 2 } else { 0 };
    println!("  {name:<44} {value:>14.digits$} {unit}");
}

/// The value below which this share of the latencies lies, in milliseconds.
fn at(latencies: &mut [Duration], share: f64) -> f64 {
    latencies.sort_unstable();
    latencies[((latencies.len() as f64 * share) as usize).min(latencies.len() - 1)].as_secs_f64() * 1e3
}

struct MqttLoad {
    connections: usize,
    in_flight: usize,
    messages: usize,
}

/// A device: its socket, and the times at which its unacknowledged messages were sent.
struct Device {
    socket: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    acknowledged: usize,
    sent_at: Vec<Instant>,
    open: bool,
}

/// QoS 1, MQTT 3.1.1, default source: topic `acme/siteA/pump/<device>/reading`, 87 bytes of JSON.
fn mqtt(load: &MqttLoad) {
    println!(
        "MQTT QoS 1, {} connections with {} in flight, {} messages",
        load.connections, load.in_flight, load.messages
    );
    let server = Server::start();
    let mut poll = Poll::new().unwrap();
    let mut devices: Vec<Device> = (0..load.connections).map(|i| connect(&server, &poll, i)).collect();
    let warm = load.messages / 10 / load.connections;
    drive(&mut poll, &mut devices, load.in_flight, warm);
    let (cpu, started) = (server.cpu(), Instant::now());
    let each = load.messages / load.connections;
    let mut latencies = drive(&mut poll, &mut devices, load.in_flight, warm + each);
    let (elapsed, cpu) = (started.elapsed().as_secs_f64(), server.cpu() - cpu);
    let sent = (warm + each) * load.connections;
    let asked = Instant::now();
    let stored = server.number("SELECT count(*) FROM acme");
    assert_eq!(stored, sent as f64, "rows visible when the last PUBACK has come");
    let messages = (each * load.connections) as f64;
    figure("messages per second", messages / elapsed, "/s");
    figure("messages per CPU second of the server", messages / cpu, "/s");
    figure("acknowledgement p50", at(&mut latencies, 0.5), "ms");
    figure("acknowledgement p99", at(&mut latencies, 0.99), "ms");
    figure("all rows counted, right after the last ack", asked.elapsed().as_secs_f64() * 1e3, "ms");
    figure("peak resident memory of the server", server.memory("VmHWM"), "MiB");
}

fn connect(server: &Server, poll: &Poll, number: usize) -> Device {
    let mut socket = TcpStream::connect(server.address("mqtt")).unwrap();
    socket.set_nodelay(true).unwrap();
    poll.registry().register(&mut socket, Token(number), Interest::READABLE | Interest::WRITABLE).unwrap();
    let mut output = Vec::new();
    let client_id = format!("d{number:06}");
    let connect = Connect {
        version: Version::V311,
        clean_start: true,
        keep_alive: 0,
        properties: Properties::default(),
        client_id: &client_id,
        will: None,
        username: None,
        password: None,
    };
    connect.encode(&mut output);
    Device { socket, input: Vec::new(), output, sent: 0, acknowledged: 0, sent_at: Vec::new(), open: false }
}

/// Publishes until every device has had `target` messages acknowledged. Returns how long each waited.
fn drive(poll: &mut Poll, devices: &mut [Device], in_flight: usize, target: usize) -> Vec<Duration> {
    let mut latencies = Vec::with_capacity(target * devices.len());
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 64 << 10];
    let mut behind = devices.iter().filter(|device| device.acknowledged < target).count();
    for (number, device) in devices.iter_mut().enumerate() {
        device.fill(number, in_flight, target);
    }
    while behind > 0 {
        poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
        assert!(!events.is_empty(), "nothing was acknowledged for 10 s");
        for event in &events {
            let number = event.token().0;
            let device = &mut devices[number];
            let before = device.acknowledged;
            device.read(&mut buffer, in_flight, &mut latencies);
            device.fill(number, in_flight, target);
            behind -= usize::from(before < target && device.acknowledged >= target);
        }
    }
    latencies
}

impl Device {
    /// Keeps `in_flight` messages under way.
    fn fill(&mut self, number: usize, in_flight: usize, target: usize) {
        self.sent_at.resize(in_flight, Instant::now());
        while self.open && self.sent < target && self.sent - self.acknowledged < in_flight {
            let place = self.sent % in_flight;
            let payload = format!(
                "{{\"device\":\"d{number:06}\",\"ts\":{},\"temperature\":{:.2},\"vibration\":{:.3},\"state\":{}}}",
                START_MS + self.sent as u64 * 100,
                20.0 + ((self.sent * 7 + number * 13) % 1000) as f64 / 100.0,
                ((self.sent * 31 + number * 17) % 100) as f64 / 1000.0,
                self.sent / 50 % 4,
            );
            let publish = Publish {
                dup: false,
                qos: QoS::AtLeastOnce,
                retain: false,
                topic: &format!("acme/siteA/pump/d{number:06}/reading"),
                packet_id: (self.sent % 60_000) as u16 + 1,
                properties: Properties::default(),
                payload: payload.as_bytes(),
            };
            Packet::Publish(publish).encode(Version::V311, &mut self.output);
            self.sent_at[place] = Instant::now();
            self.sent += 1;
        }
        while !self.output.is_empty() {
            match self.socket.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The socket is not connected yet: its event comes.
                Err(error) if error.kind() == ErrorKind::NotConnected => break,
                Err(error) => panic!("device {number}: {error}"),
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8], in_flight: usize, latencies: &mut Vec<Duration>) {
        loop {
            match self.socket.read(buffer) {
                Ok(0) => panic!("the server closed the connection"),
                Ok(n) => self.input.extend_from_slice(&buffer[..n]),
                Err(error) if [ErrorKind::WouldBlock, ErrorKind::NotConnected].contains(&error.kind()) => {
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        let mut done = 0;
        while let Some((packet, len)) = decode(&self.input[done..], Version::V311, 1 << 20).unwrap() {
            match packet {
                Packet::ConnAck(ack) => self.open = !ack.reason.is_error(),
                Packet::PubAck(ack) => {
                    assert_eq!(
                        usize::from(ack.packet_id),
                        self.acknowledged % 60_000 + 1,
                        "acks come in order"
                    );
                    latencies.push(self.sent_at[self.acknowledged % in_flight].elapsed());
                    self.acknowledged += 1;
                }
                other => panic!("{other:?}"),
            }
            done += len;
        }
        self.input.drain(..done);
    }
}

struct LineLoad {
    clients: usize,
    hosts: usize,
    lines: usize,
    batches: usize,
}

/// Line protocol as TSBS's "cpu-only" has it: 10 tags, 10 integer fields, hosts in turn, 10 s apart.
fn line(load: &LineLoad) {
    println!(
        "Line protocol, {} clients, {} batches of {} lines with 10 fields, {} hosts",
        load.clients, load.batches, load.lines, load.hosts
    );
    let server = Server::start();
    let url = format!("http://{}/write", server.address("http"));
    let token = format!("Bearer {}", server.token());
    let bodies: Vec<String> = (0..load.batches).map(|batch| body(load, batch)).collect();
    let send = |bodies: &[String]| {
        let mut latencies = Vec::new();
        let agent = ureq::Agent::new_with_defaults();
        for body in bodies {
            let sent = Instant::now();
            let answer = agent.post(&url).header("Authorization", &token).send(body).unwrap();
            assert_eq!(answer.status(), 204);
            latencies.push(sent.elapsed());
        }
        latencies
    };
    send(&bodies[..2]);
    let (cpu, started) = (server.cpu(), Instant::now());
    let measured = &bodies[2..];
    let mut latencies: Vec<Duration> = std::thread::scope(|scope| {
        let share = measured.len().div_ceil(load.clients);
        let clients: Vec<_> = measured.chunks(share).map(|bodies| scope.spawn(|| send(bodies))).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let (elapsed, spent) = (started.elapsed().as_secs_f64(), server.cpu() - cpu);
    let rows = (measured.len() * load.lines) as f64;
    assert_eq!(server.number("SELECT count(*) FROM cpu"), (bodies.len() * load.lines) as f64);
    figure("rows per second", rows / elapsed, "/s");
    figure("rows per CPU second of the server", rows / spent, "/s");
    figure("batch p50", at(&mut latencies, 0.5), "ms");
    figure("batch p99", at(&mut latencies, 0.99), "ms");
    figure("peak resident memory of the server", server.memory("VmHWM"), "MiB");
    server.statement("COMPACT TABLE cpu");
    figure("rows per CPU second, compaction included", rows / (server.cpu() - cpu), "/s");
    let bytes = server.number("SELECT sum(bytes) FROM system.chunks");
    figure("bytes per value in chunks", bytes / ((bodies.len() * load.lines) as f64 * 10.0), "bytes");
}

fn body(load: &LineLoad, batch: usize) -> String {
    const FIELDS: [&str; 10] =
        ["user", "system", "idle", "nice", "iowait", "irq", "softirq", "steal", "guest", "guest_nice"];
    let mut text = String::with_capacity(load.lines * 360);
    for row in batch * load.lines..(batch + 1) * load.lines {
        let (host, step) = (row % load.hosts, row / load.hosts);
        write!(
            text,
            "cpu,hostname=host_{host},region=eu-west-{},datacenter=eu-west-{}a,rack={},os=Ubuntu16.10,arch=x64,\
             team=SF,service={},service_version=0,service_environment=production ",
            host % 3,
            host % 3,
            host % 100,
            host % 20,
        )
        .unwrap();
        for (place, field) in FIELDS.iter().enumerate() {
            // A walk that stays within 0..=100, as TSBS's.
            let value = (host * 7 + place * 13 + (step + place) % 7 + step / 5) % 101;
            write!(text, "{}usage_{field}={value}i", if place == 0 { "" } else { "," }).unwrap();
        }
        writeln!(text, " {}", START_MS * 1_000_000 + step as u64 * 10_000_000_000).unwrap();
    }
    text
}
