//! One connection of the load: its socket, its packets, and what of its messages is under way.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};

use mio::net::TcpStream;
use sonde_proto::mqtt::{Ack, Packet, Property, Publish, QoS, ReasonCode, Version, decode};

use super::histogram::Histogram;
use super::stamp::Stamp;

/// The largest packet that a server may send us: the standard's.
const PACKET_LIMIT: usize = 256 << 20;
/// Numbers of a client's messages that are told apart: 256 MiB of bits.
const NUMBERS: u64 = 1 << 31;

/// What happened to messages, of one thread.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// Messages due from here on count in `measured`, `delivered` and the histograms.
    pub(super) measured_from: u64,
    pub(super) sent: u64,
    /// Acknowledged as taken; with QoS 0, written.
    pub(super) acknowledged: u64,
    /// Acknowledged with a reason that says that they were not.
    pub(super) refused: u64,
    /// Acknowledged, since `measured_from`.
    pub(super) measured: u64,
    /// Messages that came, whatever they were.
    pub(super) received: u64,
    /// Messages that came for the first time.
    pub(super) distinct: u64,
    /// Of those, due since `measured_from`.
    pub(super) delivered: u64,
    pub(super) duplicated: u64,
    /// When the last acknowledgement or message came.
    pub(super) last: u64,
    pub(super) acknowledgement: Histogram,
    pub(super) delivery: Histogram,
}

impl Tally {
    pub(super) fn new(measured_from: u64) -> Self {
        Self {
            measured_from,
            sent: 0,
            acknowledged: 0,
            refused: 0,
            measured: 0,
            received: 0,
            distinct: 0,
            delivered: 0,
            duplicated: 0,
            last: 0,
            acknowledgement: Histogram::new(),
            delivery: Histogram::new(),
        }
    }

    /// Adds what another thread counted.
    pub(super) fn merge(&mut self, other: &Self) {
        self.sent += other.sent;
        self.acknowledged += other.acknowledged;
        self.refused += other.refused;
        self.measured += other.measured;
        self.received += other.received;
        self.distinct += other.distinct;
        self.delivered += other.delivered;
        self.duplicated += other.duplicated;
        self.last = self.last.max(other.last);
        self.acknowledgement.merge(&other.acknowledgement);
        self.delivery.merge(&other.delivery);
    }

    /// A message of QoS 0, which nobody acknowledges.
    pub(super) fn count_written(&mut self, due: u64, now: u64) {
        self.last = now;
        self.acknowledged += 1;
        self.measured += u64::from(due >= self.measured_from);
    }

    fn settle(&mut self, due: u64, now: u64, reason: ReasonCode) {
        self.last = now;
        if reason.is_error() {
            self.refused += 1;
            return;
        }
        self.acknowledged += 1;
        if due >= self.measured_from {
            self.measured += 1;
            self.acknowledgement.record(now.saturating_sub(due));
        }
    }
}

/// The messages that a publisher has under way, by packet id.
#[derive(Debug, Default)]
pub(super) struct Flight {
    /// When each was due; `None` where the id is free. Packet id 1 is the first.
    slots: Vec<Option<u64>>,
    free: Vec<u16>,
}

impl Flight {
    pub(super) fn new(size: u16) -> Self {
        Self { slots: vec![None; size.into()], free: (1..=size).rev().collect() }
    }

    fn take(&mut self, due: u64) -> Option<u16> {
        let id = self.free.pop()?;
        *self.slots.get_mut(usize::from(id) - 1)? = Some(due);
        Some(id)
    }

    /// When the message of this id was due; its id is free from now on.
    fn give(&mut self, id: u16) -> Option<u64> {
        let due = self.slots.get_mut(usize::from(id).checked_sub(1)?)?.take()?;
        self.free.push(id);
        Some(due)
    }

    /// Keeps to what the server takes at once. Nothing is under way yet.
    fn limit(&mut self, maximum: u16) {
        if usize::from(maximum) < self.slots.len() {
            *self = Self::new(maximum);
        }
    }
}

/// What a connection is for.
#[derive(Debug)]
pub(super) enum Role {
    Quiet,
    Subscriber {
        /// SUBACKs that are awaited.
        pending: usize,
        /// Which numbers of each client came, a bit each.
        seen: HashMap<u32, Vec<u64>>,
    },
    Publisher {
        flight: Flight,
        /// Messages that were put into `output`.
        sent: u64,
        /// How many may have been put there by now.
        due: u64,
        /// When the last one was due: no two of a client have one time.
        last_due: u64,
        /// The topic, where it is always the same.
        topic: Option<String>,
        /// Subscribers that get each message, where that can be told.
        audience: Option<u64>,
    },
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// CONNACK is awaited.
    Opening,
    Open,
    Closed,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) socket: TcpStream,
    pub(super) number: u32,
    pub(super) role: Role,
    pub(super) state: State,
    pub(super) version: Version,
    /// What is to be written.
    pub(super) output: Vec<u8>,
    /// The start of a packet whose end has not come.
    partial: Vec<u8>,
}

/// Why a connection cannot be used any more.
#[derive(Debug)]
pub(super) enum Broken {
    Socket(io::Error),
    /// The server closed it.
    Closed,
    /// The server closed it, or did not let it in, and said why.
    Refused(&'static str, ReasonCode),
    Protocol(String),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Socket(error)
    }
}

impl Client {
    pub(super) fn new(socket: TcpStream, number: u32, role: Role, version: Version) -> Self {
        let state = State::Opening;
        Self { socket, number, role, state, version, output: Vec::new(), partial: Vec::new() }
    }

    /// Whether it is ready for the run: let in, and subscribed.
    pub(super) fn is_ready(&self) -> bool {
        self.state == State::Open && !matches!(self.role, Role::Subscriber { pending: 1.., .. })
    }

    /// Writes what waits, as far as the socket takes it.
    pub(super) fn flush(&mut self) -> Result<(), Broken> {
        let mut done = 0;
        while let Some(rest) = self.output.get(done..).filter(|rest| !rest.is_empty()) {
            match self.socket.write(rest) {
                Ok(n) => done += n,
                // The socket's event comes; before it, the connection is not made.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if done == self.output.len() && self.output.capacity() > 0 && self.is_quiet() {
            self.output = Vec::new();
        } else {
            self.output.drain(..done);
        }
        Ok(())
    }

    fn is_quiet(&self) -> bool {
        !matches!(self.role, Role::Publisher { .. })
    }

    /// Reads what came and handles it. `ended`: the event says that nothing comes behind it.
    pub(super) fn read(
        &mut self,
        buffer: &mut [u8],
        ended: bool,
        clock: impl Fn() -> u64,
        tally: &mut Tally,
    ) -> Result<(), Broken> {
        loop {
            match self.socket.read(buffer) {
                Ok(0) => return Err(Broken::Closed),
                Ok(n) => {
                    let bytes = buffer.get(..n).unwrap_or_default();
                    self.take(bytes, clock(), tally)?;
                    // A short read has emptied the socket; what comes later brings an event of its own.
                    if n < buffer.len() && !ended {
                        return Ok(());
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take(&mut self, bytes: &[u8], now: u64, tally: &mut Tally) -> Result<(), Broken> {
        let mut partial = std::mem::take(&mut self.partial);
        let whole = if partial.is_empty() {
            bytes
        } else {
            partial.extend_from_slice(bytes);
            partial.as_slice()
        };
        let mut done = 0;
        while let Some((packet, len)) =
            decode(whole.get(done..).unwrap_or_default(), self.version, PACKET_LIMIT)
                .map_err(|error| Broken::Protocol(format!("from the server: {error}")))?
        {
            self.handle(&packet, now, tally)?;
            done += len;
        }
        self.partial = whole.get(done..).unwrap_or_default().to_vec();
        Ok(())
    }

    fn handle(&mut self, packet: &Packet<'_>, now: u64, tally: &mut Tally) -> Result<(), Broken> {
        let answer = match packet {
            Packet::ConnAck(ack) if ack.reason != ReasonCode::SUCCESS => {
                return Err(Broken::Refused("the connection", self.reason_of(ack.reason)));
            }
            Packet::ConnAck(ack) => {
                self.state = State::Open;
                let maximum =
                    ack.properties.find(|p| if let Property::ReceiveMaximum(n) = p { Some(n) } else { None });
                if let (Role::Publisher { flight, .. }, Some(maximum)) = (&mut self.role, maximum) {
                    flight.limit(maximum);
                }
                return Ok(());
            }
            Packet::SubAck(ack) => {
                if let Some(reason) = ack.reasons.iter().find(|reason| **reason >= 0x80) {
                    return Err(Broken::Refused("a subscription", ReasonCode(*reason)));
                }
                if let Role::Subscriber { pending, .. } = &mut self.role {
                    *pending = pending.saturating_sub(1);
                }
                return Ok(());
            }
            Packet::Publish(publish) => {
                self.receive(publish, now, tally);
                match publish.qos {
                    QoS::AtMostOnce => return Ok(()),
                    QoS::AtLeastOnce => Packet::PubAck(Ack::of(publish.packet_id)),
                    QoS::ExactlyOnce => Packet::PubRec(Ack::of(publish.packet_id)),
                }
            }
            Packet::PubRel(ack) => Packet::PubComp(Ack::of(ack.packet_id)),
            // A PUBREC that refuses ends the exchange (MQTT 5, 4.3.3).
            Packet::PubRec(ack) if !ack.reason.is_error() => Packet::PubRel(Ack::of(ack.packet_id)),
            Packet::PubAck(ack) | Packet::PubRec(ack) | Packet::PubComp(ack) => {
                return self.settle(ack, now, tally);
            }
            Packet::Disconnect(disconnect) => {
                return Err(Broken::Refused("to go on", disconnect.reason));
            }
            _ => return Ok(()),
        };
        answer.encode(self.version, &mut self.output);
        Ok(())
    }

    /// The reason of a CONNACK; 3.1.1 has return codes of its own (its table 3.1).
    fn reason_of(&self, code: ReasonCode) -> ReasonCode {
        match code {
            code if self.version == Version::V5 => code,
            ReasonCode(1) => ReasonCode(0x84),
            ReasonCode(2) => ReasonCode(0x85),
            ReasonCode(3) => ReasonCode::SERVER_UNAVAILABLE,
            ReasonCode(4) => ReasonCode::BAD_USER_NAME_OR_PASSWORD,
            ReasonCode(5) => ReasonCode::NOT_AUTHORIZED,
            other => other,
        }
    }

    fn settle(&mut self, ack: &Ack<'_>, now: u64, tally: &mut Tally) -> Result<(), Broken> {
        let unknown = || {
            Broken::Protocol(format!(
                "the server acknowledged packet id {}, which is not under way",
                ack.packet_id
            ))
        };
        let Role::Publisher { flight, .. } = &mut self.role else { return Err(unknown()) };
        let due = flight.give(ack.packet_id).ok_or_else(unknown)?;
        tally.settle(due, now, ack.reason);
        Ok(())
    }

    fn receive(&mut self, publish: &Publish<'_>, now: u64, tally: &mut Tally) {
        tally.received += 1;
        tally.last = now;
        let Role::Subscriber { seen, .. } = &mut self.role else { return };
        let Some(stamp) = Stamp::find(publish.payload).filter(|stamp| stamp.number < NUMBERS) else { return };
        let (word, bit) = ((stamp.number / 64) as usize, 1_u64 << (stamp.number % 64));
        let numbers = seen.entry(stamp.client).or_default();
        if numbers.len() <= word {
            numbers.resize(word + 1, 0);
        }
        let Some(known) = numbers.get_mut(word) else { return };
        if *known & bit != 0 {
            tally.duplicated += 1;
            return;
        }
        *known |= bit;
        tally.distinct += 1;
        if stamp.time >= tally.measured_from {
            tally.delivered += 1;
            tally.delivery.record(now.saturating_sub(stamp.time));
        }
    }

    /// Appends a message where another one may be under way: its packet id and when it was due.
    pub(super) fn take_id(&mut self, qos: QoS, due: u64) -> Option<u16> {
        match &mut self.role {
            Role::Publisher { .. } if qos == QoS::AtMostOnce => Some(0),
            Role::Publisher { flight, .. } => flight.take(due),
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn as_much_is_under_way_as_there_are_ids() {
        let mut flight = Flight::new(2);
        assert_eq!((flight.take(10), flight.take(20), flight.take(30)), (Some(1), Some(2), None));
        assert_eq!(
            (flight.give(2), flight.give(2), flight.give(0), flight.give(3)),
            (Some(20), None, None, None)
        );
        assert_eq!(flight.take(40), Some(2));
        let mut flight = Flight::new(10);
        flight.limit(1);
        assert_eq!((flight.take(1), flight.take(2)), (Some(1), None));
    }
}
