//! What lies between a socket and MQTT: strangers write its first bytes.

#![allow(dead_code, reason = "what only connections need")]

use std::net::SocketAddr;

use crate::alloc;
use crate::limits::PROXY_HEADER_BYTES;

/// The code alone, as the codec's: the rest of its crate would bring the query engine into a build that is to take
/// seconds.
#[path = "../../ingest/src/mqtt/transport/proxy.rs"]
mod proxy;
#[path = "../../ingest/src/mqtt/transport/upgrade.rs"]
mod upgrade;
#[path = "../../ingest/src/mqtt/transport/websocket.rs"]
mod websocket;

use websocket::WebSocket;

const REQUEST: &[u8] = b"GET /mqtt HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Protocol: mqtt\r\n\r\n";
/// What refuses or opens a connection is no longer, whatever was asked for.
const ANSWER: usize = 512;

/// A header of the PROXY protocol: what follows it, and how it is cut, does not change it.
pub fn proxy(data: &[u8]) {
    alloc::bounded(|| {
        let whole = proxy::parse(data);
        if let Ok(Some(head)) = whole {
            assert!(head.len >= 16 && head.len <= data.len().min(16 + PROXY_HEADER_BYTES));
            assert_eq!(
                head.source.is_some(),
                data[12] == 0x21,
                "a source where the proxy speaks for a client"
            );
            assert_eq!(proxy::parse(&data[..head.len]), whole);
        }
        for cut in (0..data.len()).take(16 + PROXY_HEADER_BYTES) {
            let part = proxy::parse(&data[..cut]);
            assert!(part == Ok(None) || part == whole, "{cut} bytes: {part:?}, then {whole:?}");
        }
    });
}

/// A client's side of a WebSocket connection. The first byte says whether its request is there already, the second how
/// the bytes are cut into reads.
pub fn websocket(data: &[u8]) {
    let [is_open, piece, bytes @ ..] = data else { return };
    let bytes = if is_open & 1 == 1 { [REQUEST, bytes].concat() } else { bytes.to_vec() };
    alloc::bounded(|| {
        let whole = converse(&bytes, bytes.len());
        assert!(whole.payload.len() <= bytes.len());
        assert!(whole.reply.len() <= bytes.len() + ANSWER, "{} bytes of answers", whole.reply.len());
        assert_eq!(converse(&bytes, usize::from(*piece) + 1), whole, "other reads, other bytes");
        check_answer(&whole, is_open & 1 == 1);
    });
}

#[derive(Debug, PartialEq)]
struct Conversation {
    payload: Vec<u8>,
    reply: Vec<u8>,
    ended: bool,
    open: bool,
}

/// Reads of so many bytes, up to the end of the connection.
fn converse(bytes: &[u8], piece: usize) -> Conversation {
    // Of this machine, so that the origin of a page is looked at.
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    let mut socket = WebSocket::new();
    let (mut payload, mut reply, mut ended) = (Vec::new(), Vec::new(), false);
    for read in bytes.chunks(piece.max(1)) {
        let mut read = read.to_vec();
        let decoded = socket.decode(&mut read, &[], peer, &mut reply);
        payload.extend_from_slice(&read[..decoded.payload]);
        ended = decoded.ended;
        if ended {
            break;
        }
    }
    Conversation { payload, reply, ended, open: socket.is_open() }
}

/// The answer to a request is one of ours, line by line: nothing of what was asked for may become a header.
fn check_answer(found: &Conversation, must_be_open: bool) {
    if must_be_open {
        assert!(found.open);
    }
    if found.reply.is_empty() {
        return assert!(!found.open && !found.ended && found.payload.is_empty());
    }
    let end = found.reply.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer ends");
    let head = std::str::from_utf8(&found.reply[..end]).expect("an answer is text");
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    assert_eq!(found.open, status == "HTTP/1.1 101 Switching Protocols", "{head}");
    if !found.open {
        assert!(status.starts_with("HTTP/1.1 4") && found.ended && found.payload.is_empty(), "{head}");
    }
    let known = |line: &str| match line.split_once(": ") {
        Some(("Upgrade", value)) => value == "websocket",
        Some(("Connection", value)) => value == if found.open { "Upgrade" } else { "close" },
        Some(("Sec-WebSocket-Accept", value)) => found.open && value.len() == 28,
        Some(("Sec-WebSocket-Protocol", value)) => found.open && (value == "mqtt" || value == "mqttv3.1"),
        Some(("Sec-WebSocket-Version", value)) => value == "13",
        Some(("Allow", value)) => value == "GET",
        Some(("Content-Type", value)) => value == "text/plain",
        Some(("Content-Length", value)) => value.parse() == Ok(found.reply.len() - end - 4),
        _ => false,
    };
    lines.for_each(|line| assert!(known(line), "{line} in {head}"));
}
