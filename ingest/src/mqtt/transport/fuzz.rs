//! Fuzz targets of the layers together: whatever strangers send, and however the network cuts it, the same comes of it.
//! WebSocket and PROXY alone are targets of `fuzz/`, which follow the coverage of the code.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};

use super::{Layers, Tls, WebSocket};
use crate::decode::fuzz::random::fuzz;
use crate::limits::{TLS_PENDING, TLS_RECORD};

const HEADER: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x0a\0\0\x01\x1f\x90\x07\x5b";
const REQUEST: &[u8] = b"GET /mqtt HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Protocol: mqtt\r\n\r\n";
/// PINGREQ in a masked frame, then a ping, then a close.
const FRAMES: &[u8] = b"\x82\x82abcd\xa1\x62\x89\x81abcd\x00\x88\x80abcd";

/// A server that has no certificate for anybody: its answers need no random numbers.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

fn server() -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    Arc::new(builder.with_cert_resolver(Arc::new(NoCertificate)))
}

/// What a client of TLS 1.2 and 1.3 begins with.
fn client_hello() -> Vec<u8> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

fn layers(proxy: bool, tls: Option<&Arc<ServerConfig>>, websocket: bool) -> Layers {
    Layers {
        proxy: proxy.then(Vec::new),
        tls: tls.map(|config| Tls::new(Arc::clone(config)).unwrap()),
        websocket: websocket.then(WebSocket::new),
        wire: Vec::new(),
        origins: Arc::from([]),
        source: None,
        error: None,
    }
}

#[derive(Debug, PartialEq)]
struct Read {
    payload: Vec<u8>,
    wire: Vec<u8>,
    source: Option<SocketAddr>,
    /// Whether the connection ended, and whether it broke.
    ended: bool,
    broke: bool,
}

/// What comes of reads of so many bytes, as `Transport::read` passes them on.
fn read(mut layers: Layers, bytes: &[u8], piece: usize) -> Read {
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    let (mut payload, mut ended, mut broke) = (Vec::new(), false, false);
    for part in bytes.chunks(piece.max(1)) {
        let kept = layers.tls.as_ref().map_or(&[][..], Tls::pending);
        assert!(kept.len() <= TLS_PENDING);
        let mut came = [kept, part].concat();
        let mut room = if layers.tls.is_some() { vec![0; came.len()] } else { came.clone() };
        let len = came.len();
        match layers.unwrap(peer, &mut room, &mut came, len) {
            Ok((plain, end)) => {
                payload.extend_from_slice(&room[..plain]);
                ended = end;
            }
            Err(_) => broke = true,
        }
        if ended || broke {
            break;
        }
    }
    Read { payload, wire: layers.wire, source: layers.source, ended, broke }
}

fn the_same_however_it_is_cut(bytes: &[u8], make: impl Fn() -> Layers) {
    let whole = read(make(), bytes, bytes.len());
    assert!(whole.payload.len() <= bytes.len() && whole.wire.len() <= bytes.len() + TLS_RECORD);
    for piece in [1, 7, 64] {
        assert_eq!(read(make(), bytes, piece), whole, "reads of {piece} bytes");
    }
}

/// The rest of a handshake message is waited for, and something else comes. What the server answers must not depend on
/// bytes that are gone: this ended the event loop once.
#[test]
fn a_hello_that_breaks_off_in_its_middle_is_refused() {
    let server = server();
    let mut bytes = client_hello();
    // The last byte of the message's length: it goes on in another record.
    bytes[8] += 1;
    bytes.extend([0x17, 0, 0, 0, 0]);
    let found = read(layers(false, Some(&server), false), &bytes, bytes.len());
    assert!(found.broke && found.wire.first() == Some(&0x15), "no alert: {found:?}");
    the_same_however_it_is_cut(&bytes, || layers(false, Some(&server), false));
}

#[test]
fn fuzz_transport_websocket_behind_a_proxy() {
    let begun = [HEADER, REQUEST].concat();
    let exemplars = [[&begun[..], FRAMES].concat(), [REQUEST, FRAMES].concat(), begun];
    fuzz(
        &exemplars,
        |_, _| {},
        |bytes| {
            the_same_however_it_is_cut(bytes, || layers(true, None, true));
            the_same_however_it_is_cut(bytes, || layers(false, None, true));
        },
    );
}

#[test]
fn fuzz_transport_tls_behind_a_proxy() {
    let (server, hello) = (server(), client_hello());
    let exemplars = [[HEADER, &hello].concat(), hello];
    fuzz(
        &exemplars,
        |_, _| {},
        |bytes| {
            the_same_however_it_is_cut(bytes, || layers(true, Some(&server), false));
            the_same_however_it_is_cut(bytes, || layers(false, Some(&server), true));
        },
    );
}
