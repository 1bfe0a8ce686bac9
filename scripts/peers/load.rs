//! The load of `make bench-peers`: sends the lines of a file to one HTTP address, in requests of a fixed number of lines,
//! over one keep-alive connection a client, and prints what happened as one JSON object.
//!
//! Built by `rustc` alone. The same for every system, so that its own cost, which it prints, falls on all alike.
//!
//! # Invariants
//! - Lines go out in the order of the file, each once; a client has one request under way.
//! - Time and CPU count from the moment that all clients are ready: the file is cut into requests before, and with
//!   `--warm 1` each client has sent a first request, which counts nowhere (a server may set up things for a connection).
//! - Anything but a 2xx answer ends the run with its text: a refused row must not look like a fast one.

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Longest wait for one answer: a server that merges may stall its clients, but not for ever.
const ANSWER: Duration = Duration::from_secs(60);
/// Longest answer that is read, in bytes: those of writes are empty or an error.
const MAX_BODY: usize = 1 << 20;
/// Clock ticks of `/proc/self/stat` in a second, on every Linux that we know.
const TICKS: f64 = 100.0;

fn main() {
    if let Err(error) = run() {
        eprintln!("load: {error}");
        std::process::exit(1);
    }
}

/// What the flags say; all but `--token`, `--skip`, `--warm` and `--seconds` are required.
struct Load {
    /// `127.0.0.1:port`
    address: String,
    /// Path and query of the address.
    path: String,
    token: Option<String>,
    file: String,
    clients: usize,
    /// Lines a request.
    lines: usize,
    /// Lines of the file that other runs have sent.
    skip: usize,
    /// Most lines to send.
    rows: usize,
    /// Requests of each client before the clock runs.
    warm: usize,
    /// No request starts later.
    seconds: f64,
}

fn flags() -> Result<Load> {
    let mut found = HashMap::new();
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} has no value"))?;
        found.insert(name, value);
    }
    let text = |name: &str| found.get(name).cloned().ok_or_else(|| format!("{name} is missing"));
    let number = |name: &str| -> Result<usize> { Ok(text(name)?.parse()?) };
    Ok(Load {
        address: text("--address")?,
        path: text("--path")?,
        token: found.get("--token").cloned(),
        file: text("--file")?,
        clients: number("--clients")?.max(1),
        lines: number("--lines")?.max(1),
        skip: found.get("--skip").map_or(Ok(0), |skip| skip.parse())?,
        rows: number("--rows")?,
        warm: found.get("--warm").map_or(Ok(0), |warm| warm.parse())?,
        seconds: found.get("--seconds").map_or(Ok(f64::MAX), |seconds| seconds.parse())?,
    })
}

/// A body: where it lies in the file, and how many lines it has.
struct Part {
    offset: u64,
    bytes: usize,
    lines: usize,
}

fn cut(load: &Load) -> Result<Vec<Part>> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(&load.file)?);
    let (mut parts, mut line, mut offset): (Vec<Part>, _, _) = (Vec::new(), Vec::new(), 0);
    for number in 0..load.skip.saturating_add(load.rows) {
        line.clear();
        let bytes = file.read_until(b'\n', &mut line)?;
        if bytes == 0 {
            break;
        }
        if number >= load.skip {
            match parts.last_mut() {
                Some(part) if part.lines < load.lines => {
                    part.bytes += bytes;
                    part.lines += 1;
                }
                _ => parts.push(Part { offset, bytes, lines: 1 }),
            }
        }
        offset += bytes as u64;
    }
    if parts.is_empty() {
        return Err(format!("{} has no lines behind the first {}", load.file, load.skip).into());
    }
    Ok(parts)
}

/// CPU seconds of this process so far.
fn cpu() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The second field, the name, may hold spaces; it ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / TICKS)
}

/// Reads one answer and fails unless it is a 2xx.
fn answer(input: &mut BufReader<TcpStream>, text: &mut String) -> Result<()> {
    text.clear();
    input.read_line(text)?;
    let status: u16 =
        text.split(' ').nth(1).unwrap_or_default().parse().map_err(|_| format!("no answer but {text:?}"))?;
    let (mut length, mut chunked) = (0, false);
    loop {
        text.clear();
        input.read_line(text)?;
        let Some((name, value)) = text.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse()?;
        }
        chunked |=
            name.eq_ignore_ascii_case("transfer-encoding") && value.trim().eq_ignore_ascii_case("chunked");
    }
    let mut body = Vec::new();
    loop {
        if chunked {
            text.clear();
            input.read_line(text)?;
            length = usize::from_str_radix(text.trim(), 16)?;
        }
        if body.len() + length > MAX_BODY {
            return Err(format!("an answer of more than {MAX_BODY} bytes").into());
        }
        let start = body.len();
        body.resize(start + length, 0);
        input.read_exact(&mut body[start..])?;
        if chunked {
            input.read_line(text)?; // what ends a chunk, and the empty line behind the last one
        }
        if !chunked || length == 0 {
            break;
        }
    }
    if !(200..300).contains(&status) {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into());
    }
    Ok(())
}

/// What a client has sent, and how long each acknowledgement took.
#[derive(Default)]
struct Sent {
    lines: usize,
    bytes: usize,
    latencies: Vec<Duration>,
}

/// What the clients share.
struct Shared {
    load: Load,
    parts: Vec<Part>,
    next: AtomicUsize,
    ready: Barrier,
}

/// A connection and the buffers of its requests.
struct Client<'a> {
    shared: &'a Shared,
    file: File,
    output: TcpStream,
    input: BufReader<TcpStream>,
    head: String,
    request: Vec<u8>,
    text: String,
    sent: Sent,
}

impl<'a> Client<'a> {
    fn new(shared: &'a Shared, stream: TcpStream) -> Result<Self> {
        let load = &shared.load;
        let token =
            load.token.as_ref().map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
        Ok(Self {
            shared,
            file: File::open(&load.file)?,
            output: stream.try_clone()?,
            input: BufReader::new(stream),
            head: format!("POST {} HTTP/1.1\r\nHost: {}\r\n{token}Content-Length: ", load.path, load.address),
            request: Vec::new(),
            text: String::new(),
            sent: Sent::default(),
        })
    }

    /// Sends the next request that nobody has sent; whether there was one.
    fn step(&mut self) -> Result<bool> {
        let shared = self.shared;
        let Some(part) = shared.parts.get(shared.next.fetch_add(1, Ordering::Relaxed)) else {
            return Ok(false);
        };
        self.request.clear();
        write!(self.request, "{}{}\r\n\r\n", self.head, part.bytes)?;
        let start = self.request.len();
        self.request.resize(start + part.bytes, 0);
        self.file.read_exact_at(&mut self.request[start..], part.offset)?;
        let began = Instant::now();
        self.output.write_all(&self.request)?;
        answer(&mut self.input, &mut self.text)?;
        self.sent.latencies.push(began.elapsed());
        self.sent.lines += part.lines;
        self.sent.bytes += part.bytes;
        Ok(true)
    }
}

/// What a client sends once all are ready, and how many lines it has sent before.
fn client(shared: &Shared, stream: TcpStream) -> Result<(Sent, usize)> {
    let mut client = Client::new(shared, stream)?;
    for _ in 0..shared.load.warm {
        client.step()?;
    }
    let warm = std::mem::take(&mut client.sent).lines;
    shared.ready.wait();
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < shared.load.seconds && client.step()? {}
    Ok((client.sent, warm))
}

/// The value below which this share of the latencies lies, in milliseconds.
fn at(latencies: &[Duration], share: f64) -> f64 {
    let index = (latencies.len() as f64 * share) as usize;
    latencies[index.min(latencies.len() - 1)].as_secs_f64() * 1e3
}

fn run() -> Result<()> {
    let load = flags()?;
    let parts = cut(&load)?;
    let clients = load.clients;
    let shared =
        Arc::new(Shared { load, parts, next: AtomicUsize::new(0), ready: Barrier::new(clients + 1) });
    let mut threads = Vec::new();
    for _ in 0..clients {
        let stream = TcpStream::connect(&shared.load.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let own = Arc::clone(&shared);
        threads.push(std::thread::spawn(move || {
            // A client that fails ends the run at once: the others would hide it behind their rows.
            client(&own, stream).unwrap_or_else(|error| {
                eprintln!("load: {error}");
                std::process::exit(1)
            })
        }));
    }
    shared.ready.wait();
    let (began, cpu_before) = (Instant::now(), cpu()?);
    let (mut all, mut warm) = (Sent::default(), 0);
    for thread in threads {
        let (sent, before) = thread.join().map_err(|_| "a client panicked")?;
        warm += before;
        all.lines += sent.lines;
        all.bytes += sent.bytes;
        all.latencies.extend(sent.latencies);
    }
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu()? - cpu_before);
    if all.latencies.is_empty() {
        return Err("no request was sent: too few lines, or too little time".into());
    }
    all.latencies.sort_unstable();
    println!(
        "{{\"rows\": {}, \"warm\": {warm}, \"requests\": {}, \"bytes\": {}, \"seconds\": {seconds:.6}, \"client_cpu\": {cpu:.2}, \
         \"p50_ms\": {:.4}, \"p99_ms\": {:.4}}}",
        all.lines,
        all.latencies.len(),
        all.bytes,
        at(&all.latencies, 0.5),
        at(&all.latencies, 0.99),
    );
    Ok(())
}
