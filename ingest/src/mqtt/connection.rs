//! One socket: bytes in, bytes out. A quiet connection owns no buffer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use sonde_access::Principal;
use sonde_proto::mqtt::Version;

use super::alias::{AliasesIn, AliasesOut};
use super::authenticate::Waiting;
use super::pace::Meter;
use super::router::SessionKey;
use super::stats::Kind;
use super::transport::{ReadResult, Transport};
use super::will::Will;
use crate::limits::{LARGEST_PACKET, OUT_BYTES, PACED_READ, READ_AT_ONCE};

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

/// Why a connection is not read. Meanwhile its silence is ours: keep alive does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parked {
    /// It is over one of its rates.
    Rate,
    /// Its tenant is, and others of the tenant are read before it.
    Tenant,
    /// Its client takes too little of what waits for it.
    Clogged,
}

/// A socket and what belongs to it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) transport: Transport,
    /// From where the client connects; behind a proxy the client's address, once the proxy has said it.
    pub(super) peer: SocketAddr,
    /// Over what it speaks MQTT.
    pub(super) kind: Kind,
    /// The place of its listener.
    pub(super) door: usize,
    /// The address that it takes a place of.
    pub(super) counted: Option<IpAddr>,
    /// The tenant that it takes a place of.
    pub(super) tenant: Option<Arc<str>>,
    pub(super) phase: Phase,
    pub(super) version: Version,
    /// Milliseconds of silence that end it; 0 is for ever.
    pub(super) keep_alive: u64,
    /// When it was accepted or last heard of, in milliseconds of the worker's clock.
    pub(super) heard_at: u64,
    /// The will, until a DISCONNECT takes it back.
    pub(super) will: Option<Box<Will>>,
    /// The topic aliases that the client gave.
    pub(super) aliases_in: Option<Box<AliasesIn>>,
    /// Those that it takes.
    pub(super) aliases_out: Option<Box<AliasesOut>>,
    /// Whether the client wants Reason Strings with everything (Request Problem Information).
    pub(super) explains: bool,
    /// QoS 1 and 2 messages of it whose last answer is not sent; the QoS 2 numbers of its session come on top.
    pub(super) unanswered: usize,
    /// The largest packet that the client takes.
    pub(super) packet_maximum: usize,
    /// The start of a packet whose end has not come.
    pub(super) partial: Vec<u8>,
    /// What waits to be written.
    pub(super) out: Vec<u8>,
    /// What of `unwritten` the budget for memory knows.
    pub(super) counted_unwritten: usize,
    /// Bytes of MQTT that were written and not counted yet.
    pub(super) written: usize,
    /// Since when the client has taken nothing of what waits for it, in seconds of the worker's clock.
    pub(super) stuck_since: Option<u64>,
    /// Its rates, where there are any.
    pub(super) meter: Option<Box<Meter>>,
    /// Whether it, or its tenant, has rates.
    pub(super) paced: bool,
    /// Whether it has waited for its tenant and may be read before the others that wait.
    pub(super) has_turn: bool,
    /// Whether the socket may have more to read.
    pub(super) readable: bool,
    /// Why it is not read for now, although it is readable.
    pub(super) parked: Option<Parked>,
    /// Whether `partial` may hold whole packets, which come before anything that is read.
    pub(super) has_rest: bool,
    /// Whether the client has closed the connection, and what came before that is not handled yet.
    pub(super) ended: bool,
    /// Whether its CONNACK is in `out`: nothing may come before it.
    pub(super) greeted: bool,
    /// What it waits for before its client is recognised.
    pub(super) waiting: Option<Box<Waiting>>,
    /// Whether its client was recognised by a SCRAM exchange, and may begin another.
    pub(super) by_scram: bool,
    /// Whether it is to be closed once `out` is written.
    pub(super) closing: bool,
    /// Whether its last packet is in `out`: nothing may come behind it.
    pub(super) sealed: bool,
}

impl Connection {
    pub(super) fn new(transport: Transport, peer: SocketAddr, door: usize, kind: Kind, now: u64) -> Self {
        Self {
            transport,
            peer,
            kind,
            door,
            counted: None,
            tenant: None,
            phase: Phase::Opening,
            version: Version::V311,
            keep_alive: 0,
            heard_at: now,
            will: None,
            aliases_in: None,
            aliases_out: None,
            explains: true,
            unanswered: 0,
            packet_maximum: LARGEST_PACKET,
            partial: Vec::new(),
            out: Vec::new(),
            counted_unwritten: 0,
            written: 0,
            stuck_since: None,
            meter: None,
            paced: false,
            has_turn: false,
            readable: false,
            parked: None,
            has_rest: false,
            ended: false,
            greeted: false,
            waiting: None,
            by_scram: false,
            closing: false,
            sealed: false,
        }
    }

    /// Reads into the shared buffer, behind the partial packet, which moves to its front.
    pub(super) fn read(&mut self, buffer: &mut [u8], scratch: &mut [u8]) -> ReadResult {
        let kept = self.partial.len();
        if let Some(front) = buffer.get_mut(..kept) {
            front.copy_from_slice(&self.partial);
        }
        if std::mem::take(&mut self.has_rest) {
            return if self.ended { ReadResult::Closed(kept) } else { ReadResult::More(kept) };
        }
        // What is paced is read little by little: what would wait here anyway waits with the client.
        let limit = (kept + if self.paced { PACED_READ } else { READ_AT_ONCE }).min(buffer.len());
        let room = buffer.get_mut(kept..limit).unwrap_or_default();
        match self.transport.read(self.peer, room, scratch) {
            ReadResult::More(n) => ReadResult::More(kept + n),
            ReadResult::Drained(n) => ReadResult::Drained(kept + n),
            ReadResult::Closed(n) => ReadResult::Closed(kept + n),
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
        let before = self.out.len();
        let intact = self.transport.flush(&mut self.out);
        self.written += before - self.out.len();
        intact
    }

    /// Bytes that wait to be written.
    pub(super) fn unwritten(&self) -> usize {
        self.out.len() + self.transport.unwritten()
    }

    /// Whether its client takes so little of what waits for it that nothing more is read of it.
    pub(super) fn is_clogged(&self) -> bool {
        self.unwritten() > OUT_BYTES
    }

    /// Stops reading it.
    pub(super) fn park(&mut self, why: Parked) {
        (self.readable, self.parked) = (true, Some(why));
    }

    /// Until when it is over one of its rates.
    pub(super) fn over_rate(&self, now: Instant) -> Option<Instant> {
        let wait = self.meter.as_ref()?.wait(now);
        (!wait.is_zero()).then(|| now + wait)
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
