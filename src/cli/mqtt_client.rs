//! A blocking MQTT 5 client on our codec, for `tail`, `pub` and the demo's devices.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use sonde_proto::mqtt::{
    Ack, Connect, Filter, Packet, Properties, Publish, QoS, ReasonCode, RetainHandling, Subscribe, Version,
    decode,
};

use super::{Exit, Failure, Result};

const PACKET_LIMIT: usize = 16 << 20;

/// A connection that was let in.
pub(crate) struct MqttClient {
    socket: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// What came from the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Message { topic: String, payload: Vec<u8>, qos: QoS, packet_id: u16 },
    PubAck(ReasonCode),
    PubRec(u16, ReasonCode),
    PubRel(u16),
    PubComp(ReasonCode),
    Other,
}

impl Event {
    fn of(packet: &Packet<'_>) -> Self {
        match packet {
            Packet::Publish(publish) => Self::Message {
                topic: publish.topic.to_owned(),
                payload: publish.payload.to_vec(),
                qos: publish.qos,
                packet_id: publish.packet_id,
            },
            Packet::PubAck(ack) => Self::PubAck(ack.reason),
            Packet::PubRec(ack) => Self::PubRec(ack.packet_id, ack.reason),
            Packet::PubRel(ack) => Self::PubRel(ack.packet_id),
            Packet::PubComp(ack) => Self::PubComp(ack.reason),
            _ => Self::Other,
        }
    }

    /// Fails where it says that the server did not take a message of ours.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::PubAck(reason) | Self::PubRec(_, reason) | Self::PubComp(reason) if reason.is_error() => {
                Err(refused("the message", *reason))
            }
            _ => Ok(()),
        }
    }
}

fn failed(text: impl Into<String>) -> Failure {
    Failure::new(Exit::Failed, text)
}

fn broken(error: std::io::Error) -> Failure {
    failed(format!("the connection to the server broke: {error}"))
}

pub(super) fn refused(what: &str, reason: ReasonCode) -> Failure {
    let exit = match reason {
        ReasonCode::BAD_USER_NAME_OR_PASSWORD | ReasonCode::NOT_AUTHORIZED => Exit::Auth,
        _ => Exit::Failed,
    };
    Failure::new(exit, format!("the server refused {what}: {} (0x{:02x})", meaning(reason), reason.0))
}

/// What a reason code means, in the words of the standard's table 2-6.
fn meaning(reason: ReasonCode) -> &'static str {
    match reason.0 {
        0x00 => "normal disconnection",
        0x80 => "unspecified error",
        0x81 => "malformed packet",
        0x82 => "protocol error",
        0x83 => "implementation specific error",
        0x84 => "unsupported protocol version",
        0x85 => "client identifier not valid",
        0x86 => "bad user name or password",
        0x87 => "not authorized",
        0x88 => "server unavailable",
        0x89 => "server busy",
        0x8a => "banned",
        0x8b => "server shutting down",
        0x8c => "bad authentication method",
        0x8d => "keep alive timeout",
        0x8e => "session taken over",
        0x8f => "topic filter invalid",
        0x90 => "topic name invalid",
        0x91 => "packet identifier in use",
        0x92 => "packet identifier not found",
        0x93 => "receive maximum exceeded",
        0x94 => "topic alias invalid",
        0x95 => "packet too large",
        0x96 => "message rate too high",
        0x97 => "quota exceeded",
        0x98 => "administrative action",
        0x99 => "payload format invalid",
        0x9a => "retain not supported",
        0x9b => "QoS not supported",
        0x9c => "use another server",
        0x9d => "server moved",
        0x9e => "shared subscriptions not supported",
        0x9f => "connection rate exceeded",
        0xa0 => "maximum connect time",
        0xa1 => "subscription identifiers not supported",
        0xa2 => "wildcard subscriptions not supported",
        _ => "a reason that the standard does not name",
    }
}

impl MqttClient {
    /// Connects and waits for CONNACK.
    pub(crate) fn connect(address: &str, client_id: &str, token: Option<&str>) -> Result<Self> {
        let socket = TcpStream::connect(address).map_err(|error| {
            Failure::new(Exit::Unreachable, format!("{address} cannot be reached by MQTT: {error}"))
        })?;
        socket.set_nodelay(true)?;
        let mut client = Self { socket, input: Vec::new(), output: Vec::new() };
        let connect = Connect {
            version: Version::V5,
            is_3_1: false,
            clean_start: true,
            keep_alive: 0,
            properties: Properties::default(),
            client_id,
            will: None,
            username: token.map(|_| "token"),
            password: token.map(str::as_bytes),
        };
        connect.encode(&mut client.output);
        client.flush()?;
        client.wait(|packet| match packet {
            Packet::ConnAck(ack) if ack.reason.is_error() => Some(Err(refused("the connection", ack.reason))),
            Packet::ConnAck(_) => Some(Ok(())),
            _ => None,
        })??;
        Ok(client)
    }

    /// Subscribes and waits for SUBACK.
    pub(crate) fn subscribe(&mut self, filter: &str, qos: QoS) -> Result<()> {
        let filter = Filter {
            filter,
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        };
        Subscribe::encode(1, Properties::default(), &[filter], Version::V5, &mut self.output);
        self.flush()?;
        self.wait(|packet| match packet {
            Packet::SubAck(ack) => Some(match ack.reasons.first() {
                Some(reason) if *reason >= 0x80 => Err(refused("the subscription", ReasonCode(*reason))),
                _ => Ok(()),
            }),
            _ => None,
        })?
    }

    /// Puts a message into the output buffer.
    pub(crate) fn queue(&mut self, topic: &str, payload: &[u8], qos: QoS, retain: bool, packet_id: u16) {
        let publish =
            Publish { dup: false, qos, retain, topic, packet_id, properties: Properties::default(), payload };
        publish.encode(Version::V5, &mut self.output);
    }

    /// Puts what answers a message, PUBREC or PUBREL into the output buffer.
    pub(crate) fn acknowledge(&mut self, event: &Event) {
        let packet = match event {
            Event::Message { qos: QoS::AtLeastOnce, packet_id, .. } => Packet::PubAck(Ack::of(*packet_id)),
            Event::Message { qos: QoS::ExactlyOnce, packet_id, .. } => Packet::PubRec(Ack::of(*packet_id)),
            Event::PubRec(packet_id, _) => Packet::PubRel(Ack::of(*packet_id)),
            Event::PubRel(packet_id) => Packet::PubComp(Ack::of(*packet_id)),
            _ => return,
        };
        packet.encode(Version::V5, &mut self.output);
    }

    /// Writes what is in the output buffer.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.socket.write_all(&self.output).map_err(broken)?;
        self.output.clear();
        Ok(())
    }

    /// How long `next` waits; `None` is for ever.
    pub(crate) fn set_patience(&mut self, patience: Option<Duration>) -> Result<()> {
        Ok(self.socket.set_read_timeout(patience)?)
    }

    /// The next packet; `None` where nothing came in time.
    pub(crate) fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.take(|packet| Some(Event::of(packet)))? {
                return Ok(Some(event));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    fn wait<T>(&mut self, mut pick: impl FnMut(&Packet<'_>) -> Option<T>) -> Result<T> {
        loop {
            if let Some(picked) = self.take(&mut pick)? {
                return Ok(picked);
            }
            self.fill()?;
        }
    }

    /// Decodes whole packets until `pick` takes one.
    fn take<T>(&mut self, mut pick: impl FnMut(&Packet<'_>) -> Option<T>) -> Result<Option<T>> {
        let mut done = 0;
        let mut picked = None;
        while picked.is_none() {
            let rest = self.input.get(done..).unwrap_or_default();
            match decode(rest, Version::V5, PACKET_LIMIT)
                .map_err(|error| failed(format!("from the server: {error}")))?
            {
                Some((Packet::Disconnect(disconnect), _)) => {
                    let reason = disconnect.reason;
                    return Err(failed(format!(
                        "the server closed the connection: {} (0x{:02x})",
                        meaning(reason),
                        reason.0
                    )));
                }
                Some((packet, len)) => {
                    picked = pick(&packet);
                    done += len;
                }
                None => break,
            }
        }
        self.input.drain(..done);
        Ok(picked)
    }

    /// Reads more; `false` where nothing came in time.
    fn fill(&mut self) -> Result<bool> {
        let mut chunk = [0; 64 << 10];
        match self.socket.read(&mut chunk) {
            Ok(0) => Err(failed("the server closed the connection")),
            Ok(n) => {
                self.input.extend_from_slice(chunk.get(..n).unwrap_or_default());
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(error) => Err(broken(error)),
        }
    }
}
