//! What each packet does: the session's side of the protocol, without a socket.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_proto::mqtt::{Ack, ConnAck, Disconnect, Packet, Properties, ReasonCode, SubAck, Version};

use super::connection::Phase;
use super::turn::{Answer, ConnectionKey};
use super::worker::Worker;

/// Appends the packet of an answer.
pub(super) fn encode_answer(answer: &Answer, version: Version, out: &mut Vec<u8>) {
    let ack = |packet_id: u16, reason: ReasonCode| Ack { reason, ..Ack::of(packet_id) };
    let packet = match answer {
        Answer::PubAck(id, reason) => Packet::PubAck(ack(*id, *reason)),
        Answer::PubRec(id, reason) => Packet::PubRec(ack(*id, *reason)),
        Answer::PubRel(id, reason) => Packet::PubRel(ack(*id, *reason)),
        Answer::PubComp(id, reason) => Packet::PubComp(ack(*id, *reason)),
        Answer::SubAck(packet_id, reasons) => {
            Packet::SubAck(SubAck { packet_id: *packet_id, properties: Properties::default(), reasons })
        }
        Answer::UnsubAck(packet_id, reasons) => {
            Packet::UnsubAck(SubAck { packet_id: *packet_id, properties: Properties::default(), reasons })
        }
        Answer::ConnAck(bytes) => return out.extend_from_slice(bytes),
        Answer::Refused(reason) => {
            // 3.1.1 has a return code of its own: 3, server unavailable.
            let reason = if version == Version::V5 { *reason } else { ReasonCode(3) };
            Packet::ConnAck(ConnAck { session_present: false, reason, properties: Properties::default() })
        }
        Answer::Close(_) if version == Version::V311 => return,
        Answer::Close(reason) => Packet::Disconnect(Disconnect { reason: *reason, ..Disconnect::default() }),
    };
    packet.encode(version, out);
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
                self.refuse(key, ReasonCode::PROTOCOL_ERROR);
            }
        }
    }
}
