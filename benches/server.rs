//! The server under load, a process of its own, and how figures are printed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Clock ticks of `/proc/<pid>/stat` in a second, on every Linux that we know.
const TICKS: f64 = 100.0;

/// A server on a data directory of its own.
pub(crate) struct Server {
    process: Child,
    dir: PathBuf,
}

impl Server {
    pub(crate) fn start() -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let mut command = Command::new(env!("CARGO_BIN_EXE_sonde"));
        command.arg("serve").arg("--data-dir").arg(&dir).stdout(Stdio::null());
        for key in ["mqtt.listen", "mqtt.ws_listen", "http.listen", "grpc.listen"] {
            command.arg("--set").arg(format!("{key}=127.0.0.1:0"));
        }
        let server = Self { process: command.spawn().unwrap(), dir };
        let started = Instant::now();
        while !server.dir.join("endpoints.json").exists() {
            assert!(started.elapsed() < Duration::from_secs(30), "the server did not start");
            std::thread::park_timeout(Duration::from_millis(10));
        }
        server
    }

    pub(crate) fn address(&self, door: &str) -> SocketAddr {
        let text = std::fs::read(self.dir.join("endpoints.json")).unwrap();
        let endpoints: serde_json::Value = serde_json::from_slice(&text).unwrap();
        endpoints[door].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.dir.join("admin.token")).unwrap().trim().to_owned()
    }

    /// CPU seconds of the server so far, user and system.
    pub(crate) fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        // The second field, the name, may hold spaces; it ends with the last parenthesis.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS
    }

    /// A line of `/proc/<pid>/status`, in MiB.
    pub(crate) fn memory(&self, name: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }

    /// The one number that a statement answers.
    pub(crate) fn number(&self, sql: &str) -> f64 {
        let url = format!("http://{}/api/v1/sql", self.address("http"));
        let request = ureq::post(url).header("Authorization", format!("Bearer {}", self.token()));
        let mut answer = request.header("Accept", "application/json").send(sql).unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        answer["rows"][0][0].as_f64().unwrap()
    }

    pub(crate) fn statement(&self, sql: &str) {
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

/// Prints a figure.
pub(crate) fn figure(name: &str, value: f64, unit: &str) {
    let digits = if value.abs() < 100.0 { 2 } else { 0 };
    println!("  {name:<44} {value:>14.digits$} {unit}");
}

/// The value below which this share of the latencies lies, in milliseconds.
pub(crate) fn at(latencies: &mut [Duration], share: f64) -> f64 {
    latencies.sort_unstable();
    latencies[((latencies.len() as f64 * share) as usize).min(latencies.len() - 1)].as_secs_f64() * 1e3
}
