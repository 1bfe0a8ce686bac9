//! What lies between a socket and MQTT's bytes: a PROXY header, TLS, WebSocket, each of them or none.
//!
//! # Invariants
//! - Bytes are read into buffers of the event loop; a connection keeps only what came in part, and what could not be
//!   written.
//! - A plain TCP connection has no layers and pays for none.

mod certificate;
#[cfg(test)]
mod fuzz;
mod proxy;
mod socket;
mod tls;
mod tls_files;
mod upgrade;
mod websocket;

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use self::tls::Tls;
use self::websocket::WebSocket;
use super::ClientCertificate;
use crate::limits::{TLS_RECORD, WIRE_BYTES};

pub(super) use self::socket::Socket;
pub(super) use self::tls_files::TlsStore;

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadResult {
    /// This many bytes; there may be more.
    More(usize),
    /// This many bytes, and no more for now.
    Drained(usize),
    /// This many bytes, and the client has closed the connection, or it broke.
    Closed(usize),
}

/// A socket and its layers.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) socket: Socket,
    layers: Option<Box<Layers>>,
}

/// The layers over a socket, the lowest first.
#[derive(Debug)]
struct Layers {
    /// The PROXY header up to its end; `None` from then on, and where none is expected.
    proxy: Option<Vec<u8>>,
    tls: Option<Tls>,
    websocket: Option<WebSocket>,
    /// Encrypted and framed, and not written yet.
    wire: Vec<u8>,
    /// Origins of pages that may connect by WebSocket.
    origins: Arc<[String]>,
    /// What a PROXY header said, until it is asked for.
    source: Option<SocketAddr>,
    /// What broke the connection.
    error: Option<String>,
}

/// Which layers a listener's connections have.
#[derive(Debug)]
pub(super) struct Stack {
    pub(super) proxy: bool,
    pub(super) tls: Option<Arc<rustls::ServerConfig>>,
    pub(super) websocket: bool,
    pub(super) origins: Arc<[String]>,
}

impl Transport {
    pub(super) fn new(socket: Socket, stack: Stack) -> Result<Self, rustls::Error> {
        if !stack.proxy && stack.tls.is_none() && !stack.websocket {
            return Ok(Self { socket, layers: None });
        }
        let layers = Layers {
            proxy: stack.proxy.then(Vec::new),
            tls: stack.tls.map(Tls::new).transpose()?,
            websocket: stack.websocket.then(WebSocket::new),
            wire: Vec::new(),
            origins: stack.origins,
            source: None,
            error: None,
        };
        Ok(Self { socket, layers: Some(Box::new(layers)) })
    }

    /// Reads MQTT's bytes to the front of `room`; `scratch` takes what is to be decrypted.
    pub(super) fn read(&mut self, peer: SocketAddr, room: &mut [u8], scratch: &mut [u8]) -> ReadResult {
        let Some(layers) = &mut self.layers else { return fill(&mut self.socket, room, 0) };
        let found = match &layers.tls {
            None => fill(&mut self.socket, room, 0),
            Some(tls) => {
                let kept = tls.pending().len();
                let limit = scratch.len().min(room.len());
                let Some(scratch) = scratch.get_mut(..limit) else { return ReadResult::Closed(0) };
                if let Some(front) = scratch.get_mut(..kept) {
                    front.copy_from_slice(tls.pending());
                }
                fill(&mut self.socket, scratch, kept)
            }
        };
        let (ReadResult::More(came) | ReadResult::Drained(came) | ReadResult::Closed(came)) = found;
        match layers.unwrap(peer, room, scratch, came) {
            Ok((payload, false)) => match found {
                ReadResult::More(_) => ReadResult::More(payload),
                ReadResult::Drained(_) => ReadResult::Drained(payload),
                ReadResult::Closed(_) => ReadResult::Closed(payload),
            },
            Ok((payload, true)) => {
                self.say_goodbye();
                ReadResult::Closed(payload)
            }
            Err(error) => {
                layers.error = Some(error);
                self.say_goodbye();
                ReadResult::Closed(0)
            }
        }
    }

    /// Writes what was answered before the end, as far as the socket takes it.
    fn say_goodbye(&mut self) {
        if let Some(layers) = &mut self.layers {
            let _ = write(&mut self.socket, &mut layers.wire);
        }
    }

    /// Writes `out`, and what the layers themselves have to say; `false` where the connection broke.
    pub(super) fn flush(&mut self, out: &mut Vec<u8>) -> bool {
        let Some(layers) = &mut self.layers else { return write(&mut self.socket, out) };
        let mut done = 0;
        loop {
            while layers.is_open() && layers.wire.len() < WIRE_BYTES {
                let rest = out.get(done..).filter(|rest| !rest.is_empty()).unwrap_or_default();
                let len = match &mut layers.websocket {
                    Some(websocket) => websocket.next_frame(rest, PIECE),
                    None => rest.len().min(PIECE),
                };
                let Some(piece) = rest.get(..len).filter(|piece| !piece.is_empty()) else { break };
                if let Err(error) = layers.wrap(piece) {
                    layers.error = Some(error);
                    return false;
                }
                done += piece.len();
            }
            let pending = layers.wire.len();
            if pending == 0 {
                break;
            }
            if !write(&mut self.socket, &mut layers.wire) {
                return false;
            }
            if !layers.wire.is_empty() {
                break;
            }
        }
        if done == out.len() {
            *out = Vec::new();
        } else {
            out.drain(..done);
        }
        true
    }

    /// Bytes that wait below what waits for [`Transport::flush`].
    pub(super) fn unwritten(&self) -> usize {
        self.layers.as_ref().map_or(0, |layers| layers.wire.len())
    }

    /// Ends the connection as its layers do, as far as the socket takes it.
    pub(super) fn close(&mut self) {
        let Some(layers) = self.layers.as_mut().filter(|layers| layers.is_open() && layers.error.is_none())
        else {
            return;
        };
        let mut frame = Vec::new();
        if let Some(websocket) = &layers.websocket {
            websocket.close(&mut frame);
        }
        let ended = match &mut layers.tls {
            None => {
                layers.wire.append(&mut frame);
                Ok(())
            }
            Some(tls) => {
                let framed = if frame.is_empty() { Ok(()) } else { tls.encrypt(&frame, &mut layers.wire) };
                framed.and_then(|()| tls.close(&mut layers.wire))
            }
        };
        if ended.is_ok() {
            self.say_goodbye();
        }
    }

    /// From where a proxy says that the client connects; once.
    pub(super) fn take_source(&mut self) -> Option<SocketAddr> {
        self.layers.as_mut()?.source.take()
    }

    /// What broke the connection; once.
    pub(super) fn take_error(&mut self) -> Option<String> {
        self.layers.as_mut()?.error.take()
    }

    /// The names of the client's certificate, which was verified.
    pub(super) fn client_certificate(&self) -> Option<ClientCertificate> {
        self.layers.as_ref()?.tls.as_ref()?.client_certificate()
    }
}

/// Bytes that are framed and encrypted at once: with the frame's header a record of TLS.
const PIECE: usize = TLS_RECORD - 10;

impl Layers {
    /// Whether MQTT may be written.
    fn is_open(&self) -> bool {
        self.proxy.is_none()
            && self.tls.as_ref().is_none_or(Tls::is_open)
            && self.websocket.as_ref().is_none_or(WebSocket::is_open)
    }

    /// Takes the layers off what came: with TLS it lies in `scratch`, else in `room`. MQTT's bytes are at the front of
    /// `room` then; returns how many, and whether the connection ends behind them.
    fn unwrap(
        &mut self,
        peer: SocketAddr,
        room: &mut [u8],
        scratch: &mut [u8],
        came: usize,
    ) -> Result<(usize, bool), String> {
        let came = if self.proxy.is_some() {
            let place = if self.tls.is_some() { &mut *scratch } else { &mut *room };
            self.take_proxy_header(place, came)?
        } else {
            came
        };
        if self.proxy.is_some() {
            return Ok((0, false));
        }
        let (plain, mut ended) = match &mut self.tls {
            None => (came, false),
            Some(tls) => {
                let came = scratch.get_mut(..came).unwrap_or_default();
                let received = tls.receive(came, room, &mut self.wire).map_err(|error| error.to_string())?;
                (received.plain, received.ended)
            }
        };
        let Some(websocket) = &mut self.websocket else { return Ok((plain, ended)) };
        let mut reply = Vec::new();
        let peer = self.source.unwrap_or(peer);
        let bytes = room.get_mut(..plain).unwrap_or_default();
        let decoded = websocket.decode(bytes, &self.origins, peer, &mut reply);
        ended |= decoded.ended;
        match &mut self.tls {
            None => self.wire.append(&mut reply),
            Some(tls) => {
                for piece in reply.chunks(TLS_RECORD) {
                    tls.encrypt(piece, &mut self.wire).map_err(|error| error.to_string())?;
                }
            }
        }
        Ok((decoded.payload, ended))
    }

    /// Takes the PROXY header off the front of what came; returns how many bytes are left there.
    fn take_proxy_header(&mut self, bytes: &mut [u8], came: usize) -> Result<usize, String> {
        let Some(head) = &mut self.proxy else { return Ok(came) };
        let before = head.len();
        head.extend_from_slice(bytes.get(..came).unwrap_or_default());
        let found = proxy::parse(head).map_err(|error| error.to_string())?;
        let Some(found) = found else { return Ok(0) };
        self.source = found.source;
        self.proxy = None;
        let taken = found.len - before;
        bytes.copy_within(taken..came, 0);
        Ok(came - taken)
    }

    /// Frames and encrypts a piece onto `wire`.
    fn wrap(&mut self, piece: &[u8]) -> Result<(), String> {
        match (&mut self.tls, self.websocket.is_some()) {
            (None, framed) => {
                if framed {
                    websocket::binary_header(piece.len(), &mut self.wire);
                }
                self.wire.extend_from_slice(piece);
                Ok(())
            }
            (Some(tls), false) => tls.encrypt(piece, &mut self.wire).map_err(|error| error.to_string()),
            (Some(tls), true) => {
                let mut framed = Vec::with_capacity(TLS_RECORD);
                websocket::binary_header(piece.len(), &mut framed);
                framed.extend_from_slice(piece);
                tls.encrypt(&framed, &mut self.wire).map_err(|error| error.to_string())
            }
        }
    }
}

/// Reads until the buffer is full or nothing is left, behind the bytes that it holds already.
fn fill(socket: &mut Socket, buffer: &mut [u8], mut filled: usize) -> ReadResult {
    loop {
        let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) else {
            return ReadResult::More(filled);
        };
        match socket.read(room) {
            // What came before the end still counts: a client may publish and go.
            Ok(0) => return ReadResult::Closed(filled),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return ReadResult::Drained(filled),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return ReadResult::Closed(filled),
        }
    }
}

/// Writes as much as the socket takes off the front of `bytes`; `false` where the connection broke. A buffer that was
/// written whole is given back.
fn write(socket: &mut Socket, bytes: &mut Vec<u8>) -> bool {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match socket.write(rest) {
            Ok(0) => return false,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    if done == bytes.len() {
        *bytes = Vec::new();
    } else {
        bytes.drain(..done);
    }
    true
}
