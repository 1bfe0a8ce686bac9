//! Line protocol over HTTP/1.1 with keep-alive: clients that each wait for an answer before they send on, all on one
//! thread, with requests that are ready before the clock starts.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::cpu;
use crate::server::{Server, at, figure};

/// How many clients send how much.
pub(crate) struct Load {
    pub(crate) clients: usize,
    /// Lines of a request.
    pub(crate) lines: usize,
    /// Requests of all clients.
    pub(crate) requests: usize,
}

/// A client: its socket, and the request under way.
struct Client {
    socket: TcpStream,
    /// The request, and how many of its bytes were written.
    request: usize,
    written: usize,
    sent_at: Instant,
    answer: Vec<u8>,
    idle: bool,
}

/// Requests that clients take one after the other.
struct Requests<'r> {
    bytes: &'r [Vec<u8>],
    next: usize,
}

pub(crate) fn run(load: &Load) {
    println!(
        "Line protocol, {} clients, {} requests of {} lines with 10 fields",
        load.clients, load.requests, load.lines
    );
    let server = Server::start();
    let requests: Vec<Vec<u8>> = (0..load.requests).map(|number| request(load, number, &server)).collect();
    let mut poll = Poll::new().unwrap();
    let mut clients: Vec<Client> = (0..load.clients).map(|place| connect(&server, &poll, place)).collect();
    // The first ones make the table, its columns and its series.
    let (warm, measured) = requests.split_at((load.requests / 20).max(1));
    drive(&mut poll, &mut clients, warm);
    let (cpu, started) = (server.cpu(), Instant::now());
    let mut latencies = drive(&mut poll, &mut clients, measured);
    let (elapsed, spent) = (started.elapsed().as_secs_f64(), server.cpu() - cpu);
    let rows = (measured.len() * load.lines) as f64;
    let all = (requests.len() * load.lines) as f64;
    assert_eq!(server.number("SELECT count(*) FROM cpu"), all, "every row was stored");
    figure("rows per second", rows / elapsed, "/s");
    figure("rows per CPU second of the server", rows / spent, "/s");
    figure("request p50", at(&mut latencies, 0.5), "ms");
    figure("request p99", at(&mut latencies, 0.99), "ms");
    figure("peak resident memory of the server", server.memory("VmHWM"), "MiB");
    if load.lines > 1 {
        server.statement("COMPACT TABLE cpu");
        figure("rows per CPU second, compaction included", rows / (server.cpu() - cpu), "/s");
        let bytes = server.number("SELECT sum(bytes) FROM system.chunks");
        figure("bytes per value in chunks", bytes / (all * cpu::FIELDS.len() as f64), "bytes");
    }
}

fn request(load: &Load, number: usize, server: &Server) -> Vec<u8> {
    let body = cpu::lines(number * load.lines..(number + 1) * load.lines);
    let head = format!(
        "POST /write HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n",
        server.token(),
        body.len()
    );
    [head, body].concat().into_bytes()
}

fn connect(server: &Server, poll: &Poll, place: usize) -> Client {
    // Connected before it is set to not block, so that no request is written to a socket that is not there yet.
    let socket = std::net::TcpStream::connect(server.address("http")).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut socket = TcpStream::from_std(socket);
    poll.registry().register(&mut socket, Token(place), Interest::READABLE | Interest::WRITABLE).unwrap();
    Client { socket, request: 0, written: 0, sent_at: Instant::now(), answer: Vec::new(), idle: true }
}

/// Sends all requests. Returns how long each waited for its answer.
fn drive(poll: &mut Poll, clients: &mut [Client], bytes: &[Vec<u8>]) -> Vec<Duration> {
    let mut requests = Requests { bytes, next: 0 };
    let mut latencies = Vec::with_capacity(bytes.len());
    let mut events = Events::with_capacity(clients.len());
    clients.iter_mut().for_each(|client| client.begin(&mut requests));
    while latencies.len() < bytes.len() {
        poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
        assert!(!events.is_empty(), "nothing was answered for 10 s");
        for event in &events {
            let client = &mut clients[event.token().0];
            if !client.idle {
                client.write(bytes);
                if client.read() {
                    latencies.push(client.sent_at.elapsed());
                    client.begin(&mut requests);
                }
            }
        }
    }
    latencies
}

impl Client {
    /// Sends the next request, if there is one.
    fn begin(&mut self, requests: &mut Requests<'_>) {
        self.idle = requests.next == requests.bytes.len();
        if !self.idle {
            (self.request, self.written, self.sent_at) = (requests.next, 0, Instant::now());
            requests.next += 1;
            self.write(requests.bytes);
        }
    }

    /// Writes what the socket takes of the request.
    fn write(&mut self, requests: &[Vec<u8>]) {
        let request = &requests[self.request];
        while self.written < request.len() {
            match self.socket.write(&request[self.written..]) {
                Ok(n) => self.written += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Reads what is there of the answer. Says whether that is all of it.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => panic!("the server closed the connection"),
                Ok(n) => self.answer.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        // 204: an answer without a body ends with its head.
        let whole = self.answer.ends_with(b"\r\n\r\n");
        if whole {
            assert!(self.answer.starts_with(b"HTTP/1.1 204"), "{}", String::from_utf8_lossy(&self.answer));
            self.answer.clear();
        }
        whole
    }
}
