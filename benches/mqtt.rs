//! MQTT: devices that publish, all on one thread.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use sonde_proto::mqtt::{Connect, Packet, Properties, Publish, QoS, Version, decode};

use crate::cpu::START_MS;
use crate::server::{Server, at, figure};

/// How many devices send how much.
pub(crate) struct Load {
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
    pub(crate) messages: usize,
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
pub(crate) fn run(load: &Load) {
    println!(
        "MQTT QoS 1, {} connections with {} in flight, {} messages",
        load.connections, load.in_flight, load.messages
    );
    let server = Server::start();
    let Measured { sent, rate, cpu_rate, mut latencies } = measure(&server, load);
    let asked = Instant::now();
    let stored = server.number("SELECT count(*) FROM acme");
    assert_eq!(stored, sent as f64, "rows visible when the last PUBACK has come");
    figure("messages per second", rate, "/s");
    figure("messages per CPU second of the server", cpu_rate, "/s");
    figure("acknowledgement p50", at(&mut latencies, 0.5), "ms");
    figure("acknowledgement p99", at(&mut latencies, 0.99), "ms");
    figure("all rows counted, right after the last ack", asked.elapsed().as_secs_f64() * 1e3, "ms");
    figure("peak resident memory of the server", server.memory("VmHWM"), "MiB");
}

/// What a load came to.
pub(crate) struct Measured {
    /// Messages, those before the measurement included.
    pub(crate) sent: usize,
    pub(crate) rate: f64,
    pub(crate) cpu_rate: f64,
    pub(crate) latencies: Vec<Duration>,
}

/// Puts a load on a server, after a tenth of it to warm up.
pub(crate) fn measure(server: &Server, load: &Load) -> Measured {
    let mut poll = Poll::new().unwrap();
    let mut devices: Vec<Device> = (0..load.connections).map(|i| connect(server, &poll, i)).collect();
    let warm = load.messages / 10 / load.connections;
    drive(&mut poll, &mut devices, load.in_flight, warm);
    let (cpu, started) = (server.cpu(), Instant::now());
    let each = load.messages / load.connections;
    let latencies = drive(&mut poll, &mut devices, load.in_flight, warm + each);
    let messages = (each * load.connections) as f64;
    Measured {
        sent: (warm + each) * load.connections,
        rate: messages / started.elapsed().as_secs_f64(),
        cpu_rate: messages / (server.cpu() - cpu),
        latencies,
    }
}

fn connect(server: &Server, poll: &Poll, number: usize) -> Device {
    let mut socket = TcpStream::connect(server.address("mqtt")).unwrap();
    socket.set_nodelay(true).unwrap();
    poll.registry().register(&mut socket, Token(number), Interest::READABLE | Interest::WRITABLE).unwrap();
    let mut output = Vec::new();
    let client_id = format!("d{number:06}");
    let connect = Connect {
        version: Version::V311,
        is_3_1: false,
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
