//! One socket: bytes in, bytes out. A quiet connection owns no buffer.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use mio::net::TcpStream;
use sonde_access::Principal;
use sonde_proto::mqtt::Version;

use super::authenticate::{ClientCertificate, Waiting};
use super::message::Message;
use super::router::SessionKey;

/// How far a connection is.
#[derive(Debug)]
pub(super) enum Phase {
    /// CONNECT is awaited.
    Opening,
    /// The client was let in.
    Open {
        /// Its session's place in the session table.
        session: SessionKey,
        /// Who it is.
        principal: Arc<Principal>,
    },
}

/// A socket and what belongs to it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) phase: Phase,
    pub(super) version: Version,
    /// Seconds of silence that end it; 0 is for ever.
    pub(super) keep_alive: u64,
    /// When it was accepted or last heard of, in seconds of the worker's clock.
    pub(super) heard_at: u64,
    /// The will, until a DISCONNECT takes it back.
    pub(super) will: Option<Message>,
    /// The largest packet that the client takes.
    pub(super) packet_maximum: usize,
    /// The start of a packet whose end has not come.
    pub(super) partial: Vec<u8>,
    /// What waits to be written.
    pub(super) out: Vec<u8>,
    /// Whether the socket may have more to read.
    pub(super) readable: bool,
    /// Whether its CONNACK is in `out`: nothing may come before it.
    pub(super) greeted: bool,
    /// The client's certificate, which its listener has checked.
    pub(super) certificate: Option<Arc<ClientCertificate>>,
    /// What it waits for before its client is recognised.
    pub(super) waiting: Option<Box<Waiting>>,
    /// Whether its client was recognised by a SCRAM exchange, and may begin another.
    pub(super) by_scram: bool,
    /// Whether it is to be closed once `out` is written.
    pub(super) closing: bool,
    /// Whether its last packet is in `out`: nothing may come behind it.
    pub(super) sealed: bool,
}

/// What a read found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadResult {
    /// This many bytes; there may be more.
    More(usize),
    /// This many bytes, and no more for now.
    Drained(usize),
    /// This many bytes, and the client has closed the connection, or it broke.
    Closed(usize),
}

impl Connection {
    pub(super) fn new(socket: TcpStream, peer: SocketAddr, now: u64) -> Self {
        Self {
            socket,
            peer,
            phase: Phase::Opening,
            version: Version::V311,
            keep_alive: 0,
            heard_at: now,
            will: None,
            packet_maximum: usize::MAX,
            partial: Vec::new(),
            out: Vec::new(),
            readable: false,
            greeted: false,
            certificate: None,
            waiting: None,
            by_scram: false,
            closing: false,
            sealed: false,
        }
    }

    /// Reads into the shared buffer, behind the partial packet, which moves to its front.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> ReadResult {
        let kept = self.partial.len();
        if let Some(front) = buffer.get_mut(..kept) {
            front.copy_from_slice(&self.partial);
        }
        let mut filled = kept;
        loop {
            let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) else {
                return ReadResult::More(filled);
            };
            match self.socket.read(room) {
                // What came before the end still counts: a client may publish and go.
                Ok(0) => return ReadResult::Closed(filled),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return ReadResult::Drained(filled);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return ReadResult::Closed(filled),
            }
        }
    }

    /// Keeps what was not a whole packet.
    pub(super) fn keep(&mut self, rest: &[u8]) {
        self.partial.clear();
        if rest.is_empty() {
            self.partial = Vec::new();
        } else {
            self.partial.extend_from_slice(rest);
        }
    }

    /// Writes what waits; `false` where the connection broke.
    pub(super) fn flush(&mut self) -> bool {
        let mut done = 0;
        while let Some(rest) = self.out.get(done..).filter(|rest| !rest.is_empty()) {
            match self.socket.write(rest) {
                Ok(0) => return false,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        if done == self.out.len() {
            self.out = Vec::new();
        } else {
            self.out.drain(..done);
        }
        true
    }

    /// Whether nothing more is to be read before its client is recognised.
    pub(super) fn pauses(&self) -> bool {
        self.waiting.as_deref().is_some_and(Waiting::is_answer)
    }

    /// The session's place, once the client was let in.
    pub(super) fn session(&self) -> Option<SessionKey> {
        match &self.phase {
            Phase::Open { session, .. } => Some(*session),
            Phase::Opening => None,
        }
    }
}
