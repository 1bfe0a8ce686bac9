//! A blocking MQTT 5 client on our codec, for `tail`, `pub` and the demo's devices.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use sonde_proto::mqtt::{
    Ack, Connect, Filter, Packet, Properties, Publish, QoS, RetainHandling, Subscribe, Version, decode,
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
    PubAck(u16),
    PubRec(u16),
    PubComp(u16),
    Other,
}

fn failed(text: impl Into<String>) -> Failure {
    Failure::new(Exit::Failed, text)
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
            Packet::ConnAck(ack) if ack.reason.is_error() => Some(Err(Failure::new(
                Exit::Auth,
                format!("the server refused the connection: reason 0x{:02x}", ack.reason.0),
            ))),
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
                Some(reason) if *reason >= 0x80 => {
                    Err(failed(format!("the subscription was refused: 0x{reason:02x}")))
                }
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

    /// Puts the acknowledgement of a message, or PUBREL, into the output buffer.
    pub(crate) fn acknowledge(&mut self, event: &Event) {
        let packet = match event {
            Event::Message { qos: QoS::AtLeastOnce, packet_id, .. } => Packet::PubAck(Ack::of(*packet_id)),
            Event::Message { qos: QoS::ExactlyOnce, packet_id, .. } => Packet::PubRec(Ack::of(*packet_id)),
            Event::PubRec(packet_id) => Packet::PubRel(Ack::of(*packet_id)),
            _ => return,
        };
        packet.encode(Version::V5, &mut self.output);
    }

    /// Writes what is in the output buffer.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.socket.write_all(&self.output)?;
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
            if let Some(event) = self.take(|packet| {
                Some(match packet {
                    Packet::Publish(publish) => Event::Message {
                        topic: publish.topic.to_owned(),
                        payload: publish.payload.to_vec(),
                        qos: publish.qos,
                        packet_id: publish.packet_id,
                    },
                    Packet::PubAck(ack) => Event::PubAck(ack.packet_id),
                    Packet::PubRec(ack) => Event::PubRec(ack.packet_id),
                    Packet::PubRel(ack) => Event::PubComp(ack.packet_id),
                    Packet::PubComp(ack) => Event::PubComp(ack.packet_id),
                    _ => Event::Other,
                })
            })? {
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
                    return Err(failed(format!(
                        "the server closed the connection: reason 0x{:02x}",
                        disconnect.reason.0
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
            Err(error) => Err(error.into()),
        }
    }
}
