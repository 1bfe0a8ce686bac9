//! What each packet does: the session's side of the protocol, without a socket.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_proto::mqtt::{
    Ack, ConnAck, Disconnect, Packet, Properties, PropertiesBuilder, Property, ReasonCode, SubAck, Version,
};

use super::connection::{Connection, Phase};
use super::turn::{Answer, ConnectionKey};
use super::worker::Worker;

/// Why a connection ends whose messages could not be stored.
pub(super) const NOT_STORED: &str = "the message could not be stored; send it again";

/// What a reason code means here, for the Reason String; empty where the code says it all.
pub(super) fn explain(reason: ReasonCode) -> &'static str {
    match reason {
        ReasonCode::NOT_AUTHORIZED => "not allowed for this client",
        ReasonCode::BAD_USER_NAME_OR_PASSWORD => "the user name, password or token is not known",
        ReasonCode::BAD_AUTHENTICATION_METHOD => "an authentication method that there is not",
        ReasonCode::CLIENT_IDENTIFIER_NOT_VALID => {
            "a client id that is too long, or empty where it must not be"
        }
        ReasonCode::SERVER_UNAVAILABLE => "nothing can be stored at the moment",
        ReasonCode::USE_ANOTHER_SERVER => "this server takes nobody at the moment",
        ReasonCode::PAYLOAD_FORMAT_INVALID => "the payload fits no row; it is a dead letter",
        ReasonCode::QUOTA_EXCEEDED => "there is no room for more retained messages; the rows are stored",
        ReasonCode::RECEIVE_MAXIMUM_EXCEEDED => "more QoS 1 and 2 messages in flight than Receive Maximum",
        ReasonCode::KEEP_ALIVE_TIMEOUT => "nothing was heard for one and a half times the keep alive",
        ReasonCode::ADMINISTRATIVE_ACTION => "an administrator has ended the session",
        ReasonCode::SESSION_TAKEN_OVER => "another connection came with this client id",
        _ => "",
    }
}

impl Answer {
    /// The Reason String: in words what the reason code of a refusal says.
    fn why(&self) -> &str {
        match self {
            Self::PubAck(_, _, Some(why))
            | Self::PubRec(_, _, Some(why))
            | Self::SubAck(_, _, Some(why))
            | Self::UnsubAck(_, _, Some(why)) => why,
            Self::PubAck(_, reason, None) | Self::PubRec(_, reason, None) if reason.is_error() => {
                explain(*reason)
            }
            Self::Refused(reason) => explain(*reason),
            Self::Close(_, why) => why,
            _ => "",
        }
    }

    /// Whether the Reason String may go to a client that wants none with what is no failure of its connection
    /// ([MQTT-3.1.2-29]).
    fn ends_connection(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Close(..))
    }

    fn encode(&self, version: Version, properties: Properties<'_>, out: &mut Vec<u8>) {
        let ack = |packet_id: u16, reason: ReasonCode| Ack { packet_id, reason, properties };
        let packet = match self {
            Self::PubAck(id, reason, _) => Packet::PubAck(ack(*id, *reason)),
            Self::PubRec(id, reason, _) => Packet::PubRec(ack(*id, *reason)),
            Self::PubRel(id, reason) => Packet::PubRel(ack(*id, *reason)),
            Self::PubComp(id, reason) => Packet::PubComp(ack(*id, *reason)),
            Self::SubAck(packet_id, reasons, _) => {
                Packet::SubAck(SubAck { packet_id: *packet_id, properties, reasons })
            }
            Self::UnsubAck(packet_id, reasons, _) => {
                Packet::UnsubAck(SubAck { packet_id: *packet_id, properties, reasons })
            }
            Self::ConnAck(bytes) => return out.extend_from_slice(bytes),
            Self::PingResp => Packet::PingResp,
            Self::Refused(reason) => {
                // 3.1.1 has a return code of its own: 3, server unavailable.
                let reason = if version == Version::V5 { *reason } else { ReasonCode(3) };
                Packet::ConnAck(ConnAck { session_present: false, reason, properties })
            }
            Self::Close(..) if version == Version::V311 => return,
            Self::Close(reason, _) => Packet::Disconnect(Disconnect { reason: *reason, properties }),
        };
        packet.encode(version, out);
    }
}

impl Connection {
    /// Appends the packet of an answer: with its Reason String, unless that makes it too large for the client
    /// ([MQTT-3.2.2-19] and its like). `false`, and nothing appended, where it is too large without it.
    pub(super) fn write_answer(&mut self, answer: &Answer) -> bool {
        let start = self.out.len();
        let why = answer.why();
        if self.version == Version::V5 && !why.is_empty() && (self.explains || answer.ends_connection()) {
            let mut properties = PropertiesBuilder::new();
            properties.push(Property::ReasonString(why));
            answer.encode(self.version, properties.as_properties(), &mut self.out);
            if self.out.len() - start <= self.packet_maximum {
                return true;
            }
            self.out.truncate(start);
        }
        answer.encode(self.version, Properties::default(), &mut self.out);
        let fits = self.out.len() - start <= self.packet_maximum;
        if !fits {
            self.out.truncate(start);
        }
        fits
    }
}

impl Worker {
    pub(super) fn handle_packet(&mut self, key: ConnectionKey, packet: &Packet<'_>) {
        let Some((_, connection)) = self.connections.get(key.place) else { return };
        let (session, principal) = match (&connection.phase, packet) {
            (Phase::Opening, packet) => {
                self.sys.traffic.packets_received += 1;
                return self.opening(key, packet);
            }
            (Phase::Open { session, principal }, _) => (*session, Arc::clone(principal)),
        };
        self.sys.traffic.packets_received += 1;
        match packet {
            Packet::Publish(publish) => self.publish(key, session, &principal, publish),
            Packet::PubAck(ack) => self.puback(session, ack.packet_id),
            Packet::PubRec(ack) => self.pubrec(key, session, ack),
            Packet::PubRel(ack) => self.pubrel(key, session, ack.packet_id),
            Packet::PubComp(ack) => self.pubcomp(session, ack.packet_id),
            Packet::Subscribe(subscribe) => self.subscribe(key, session, &principal, subscribe),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(key, session, unsubscribe),
            Packet::PingReq => {
                if !connection.greeted {
                    // In its turn: nothing comes before CONNACK.
                    return self.turn.answers.push((key, Answer::PingResp));
                }
                if let Some((_, connection)) = self.connections.get_mut(key.place) {
                    Packet::PingResp.encode(connection.version, &mut connection.out);
                    self.sys.traffic.packets_sent += 1;
                    self.touch(key.place);
                }
            }
            Packet::Disconnect(disconnect) => self.disconnect(key, session, disconnect),
            Packet::Auth(auth) => self.authenticate_again(key, session, auth),
            Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::PingResp => {
                self.stats.protocol_errors.fetch_add(1, Ordering::Relaxed);
                self.refuse_because(
                    key,
                    ReasonCode::PROTOCOL_ERROR,
                    "a second CONNECT, or a packet that only a server sends",
                );
            }
        }
    }
}
