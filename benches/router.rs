//! 100,000 subscriptions, half of them with wildcards: what they weigh, and what they cost those who publish.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use sonde_proto::mqtt::{
    Connect, Filter, Packet, Properties, QoS, RetainHandling, Subscribe, Version, decode,
};

use crate::mqtt::{self, Load};
use crate::server::{Server, figure};

/// Subscriptions of one client; a session has at most 1,024.
const EACH: usize = 1000;
/// Filters of one SUBSCRIBE.
const AT_ONCE: usize = 100;

/// Measures a load without subscriptions and with them, on one server. They are of devices that do not publish, so that
/// finding who wants a message is all that they add.
pub(crate) fn run(subscriptions: usize, load: &Load) {
    println!("MQTT QoS 1, {} connections, {subscriptions} subscriptions of others", load.connections);
    let server = Server::start();
    let flat = mqtt::measure(&server, load);
    let (memory, started) = (server.memory("VmRSS"), Instant::now());
    let clients: Vec<TcpStream> =
        (0..subscriptions / EACH).map(|client| subscriber(&server, client)).collect();
    let count = (clients.len() * EACH) as f64;
    figure("subscribed per second, 100 filters in a packet", count / started.elapsed().as_secs_f64(), "/s");
    figure(
        "memory of a subscription, all structures",
        (server.memory("VmRSS") - memory) * 1048576.0 / count,
        "B",
    );
    let routed = mqtt::measure(&server, load);
    figure("messages per CPU second, no subscription", flat.cpu_rate, "/s");
    figure("messages per CPU second, with them", routed.cpu_rate, "/s");
    figure("the one to the other", routed.cpu_rate / flat.cpu_rate, "x");
    figure("messages per second, with them to without", routed.rate / flat.rate, "x");
}

/// A client that has subscribed to `EACH` filters, every other one with wildcards.
fn subscriber(server: &Server, client: usize) -> TcpStream {
    let mut socket = TcpStream::connect(server.address("mqtt")).unwrap();
    let client_id = format!("s{client:06}");
    let mut out = Vec::new();
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
    connect.encode(&mut out);
    let names: Vec<String> = (0..EACH)
        .map(|n| {
            let device = 1_000_000 + client * EACH + n;
            if n % 2 == 0 {
                format!("acme/siteA/pump/d{device}/reading")
            } else {
                format!("acme/+/pump/d{device}/#")
            }
        })
        .collect();
    for (number, names) in names.chunks(AT_ONCE).enumerate() {
        let filter = |name| Filter {
            filter: name,
            qos: QoS::AtLeastOnce,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        };
        let filters: Vec<Filter<'_>> = names.iter().map(|name| filter(name.as_str())).collect();
        Subscribe::encode(number as u16 + 1, Properties::default(), &filters, Version::V311, &mut out);
    }
    socket.write_all(&out).unwrap();
    let (mut answers, mut input, mut buffer) = (0, Vec::new(), [0; 4096]);
    while answers < EACH / AT_ONCE {
        let n = socket.read(&mut buffer).unwrap();
        assert!(n > 0, "the server closed the connection");
        input.extend_from_slice(&buffer[..n]);
        while let Some((packet, len)) = decode(&input, Version::V311, 1 << 20).unwrap() {
            if let Packet::SubAck(ack) = &packet {
                assert!(ack.reasons.iter().all(|reason| *reason < 0x80));
                answers += 1;
            }
            input.drain(..len);
        }
    }
    socket
}
