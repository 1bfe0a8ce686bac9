//! The fixed header (section 2.1) and the choice of packet.

use super::ack::{Ack, Auth, ConnAck, Disconnect, SubAck};
use super::connect::Connect;
use super::error::DecodeError;
use super::publish::Publish;
use super::subscribe::{Subscribe, Unsubscribe};
use super::wire::varint;

/// A protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// MQTT 3.1.1.
    V311,
    /// MQTT 5.0.
    V5,
}

/// A control packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the standard's table 2-1")]
pub enum Packet<'a> {
    Connect(Connect<'a>),
    ConnAck(ConnAck<'a>),
    Publish(Publish<'a>),
    PubAck(Ack<'a>),
    PubRec(Ack<'a>),
    PubRel(Ack<'a>),
    PubComp(Ack<'a>),
    Subscribe(Subscribe<'a>),
    SubAck(SubAck<'a>),
    Unsubscribe(Unsubscribe<'a>),
    UnsubAck(SubAck<'a>),
    PingReq,
    PingResp,
    Disconnect(Disconnect<'a>),
    Auth(Auth<'a>),
}

/// Decodes the packet at the start of `bytes` and returns it with its length; `None` where it is not complete yet.
/// `version` is what the connection speaks (CONNECT says its own), `limit` the bytes that a packet may have.
pub fn decode(
    bytes: &[u8],
    version: Version,
    limit: usize,
) -> Result<Option<(Packet<'_>, usize)>, DecodeError> {
    let Some((first, rest)) = bytes.split_first() else { return Ok(None) };
    check_flags(*first)?;
    let Some((remaining, len)) = varint(rest)? else { return Ok(None) };
    let size = 1 + len + remaining as usize;
    if size > limit {
        return Err(DecodeError::TooLarge { size, limit });
    }
    let Some(body) = bytes.get(1 + len..size) else { return Ok(None) };
    let empty =
        |packet| if body.is_empty() { Ok(packet) } else { Err(DecodeError::Malformed("a ping with a body")) };
    let packet = match first >> 4 {
        1 => Packet::Connect(Connect::decode(body)?),
        2 => Packet::ConnAck(ConnAck::decode(body, version)?),
        3 => Packet::Publish(Publish::decode(first & 0xf, body, version)?),
        4 => Packet::PubAck(Ack::decode(4, body, version)?),
        5 => Packet::PubRec(Ack::decode(5, body, version)?),
        6 => Packet::PubRel(Ack::decode(6, body, version)?),
        7 => Packet::PubComp(Ack::decode(7, body, version)?),
        8 => Packet::Subscribe(Subscribe::decode(body, version)?),
        9 => Packet::SubAck(SubAck::decode(9, body, version)?),
        10 => Packet::Unsubscribe(Unsubscribe::decode(body, version)?),
        11 => Packet::UnsubAck(SubAck::decode(11, body, version)?),
        12 => empty(Packet::PingReq)?,
        13 => empty(Packet::PingResp)?,
        14 => Packet::Disconnect(Disconnect::decode(body, version)?),
        15 if version == Version::V5 => Packet::Auth(Auth::decode(body)?),
        _ => return Err(DecodeError::Malformed("a packet type that there is not")),
    };
    Ok(Some((packet, size)))
}

/// The flags of every packet but PUBLISH are fixed.
fn check_flags(first: u8) -> Result<(), DecodeError> {
    let flags = first & 0xf;
    let right = match first >> 4 {
        0 => return Err(DecodeError::Malformed("packet type 0")),
        3 => return Ok(()),
        6 | 8 | 10 => 2,
        _ => 0,
    };
    if flags == right {
        Ok(())
    } else {
        Err(DecodeError::Malformed("reserved flags of the fixed header are set"))
    }
}

impl Packet<'_> {
    /// Appends the packet. SUBSCRIBE and UNSUBSCRIBE are encoded from their filters, by their own functions.
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        match self {
            Self::Connect(connect) => connect.encode(out),
            Self::ConnAck(ack) => ack.encode(version, out),
            Self::Publish(publish) => publish.encode(version, out),
            Self::PubAck(ack) => ack.encode(0x40, version, out),
            Self::PubRec(ack) => ack.encode(0x50, version, out),
            Self::PubRel(ack) => ack.encode(0x62, version, out),
            Self::PubComp(ack) => ack.encode(0x70, version, out),
            Self::Subscribe(subscribe) => {
                let filters: Vec<_> = subscribe.filters().collect();
                Subscribe::encode(subscribe.packet_id, subscribe.properties, &filters, version, out);
            }
            Self::SubAck(ack) => ack.encode(9, version, out),
            Self::Unsubscribe(unsubscribe) => {
                let filters: Vec<_> = unsubscribe.filters().collect();
                Unsubscribe::encode(unsubscribe.packet_id, unsubscribe.properties, &filters, version, out);
            }
            Self::UnsubAck(ack) => ack.encode(11, version, out),
            Self::PingReq => out.extend_from_slice(&[0xc0, 0]),
            Self::PingResp => out.extend_from_slice(&[0xd0, 0]),
            Self::Disconnect(disconnect) => disconnect.encode(version, out),
            Self::Auth(auth) => auth.encode(out),
        }
    }
}
