//! PUBLISH (section 3.3).

use super::error::DecodeError;
use super::packet::Version;
use super::property::{Properties, Property, place};
use super::topic::validate_topic;
use super::wire::{Reader, put_binary, put_packet, put_u16};

/// How surely a message arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QoS {
    /// At most once.
    #[default]
    AtMostOnce = 0,
    /// At least once.
    AtLeastOnce = 1,
    /// Exactly once.
    ExactlyOnce = 2,
}

impl QoS {
    /// The QoS of this number.
    pub fn from_bits(bits: u8) -> Result<Self, DecodeError> {
        Ok(match bits {
            0 => Self::AtMostOnce,
            1 => Self::AtLeastOnce,
            2 => Self::ExactlyOnce,
            _ => return Err(DecodeError::Malformed("QoS 3")),
        })
    }
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Sent before, perhaps.
    pub dup: bool,
    /// How surely it arrives.
    pub qos: QoS,
    /// To be kept for later subscribers.
    pub retain: bool,
    /// The topic; empty where a topic alias stands for it.
    pub topic: &'a str,
    /// Its number, 0 with QoS 0.
    pub packet_id: u16,
    /// MQTT 5 properties.
    pub properties: Properties<'a>,
    /// What it says.
    pub payload: &'a [u8],
}

impl<'a> Publish<'a> {
    pub(super) fn decode(flags: u8, body: &'a [u8], version: Version) -> Result<Self, DecodeError> {
        let qos = QoS::from_bits(flags >> 1 & 3)?;
        let (dup, retain) = (flags & 8 != 0, flags & 1 != 0);
        if dup && qos == QoS::AtMostOnce {
            return Err(DecodeError::Malformed("DUP with QoS 0"));
        }
        let mut reader = Reader::new(body);
        let topic = reader.text()?;
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { reader.packet_id()? };
        let properties = match version {
            Version::V5 => Properties::read(&mut reader, place::PUBLISH)?,
            Version::V311 => Properties::default(),
        };
        let aliased =
            properties.find(|p| if let Property::TopicAlias(alias) = p { Some(alias) } else { None });
        if !(topic.is_empty() && aliased.is_some()) {
            validate_topic(topic)?;
        }
        Ok(Self { dup, qos, retain, topic, packet_id, properties, payload: reader.rest() })
    }

    /// Appends the packet.
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        let flags = u8::from(self.dup) << 3 | (self.qos as u8) << 1 | u8::from(self.retain);
        put_packet(0x30 | flags, out, |out| {
            put_binary(self.topic.as_bytes(), out);
            if self.qos != QoS::AtMostOnce {
                put_u16(self.packet_id, out);
            }
            if version == Version::V5 {
                self.properties.write(out);
            }
            out.extend_from_slice(self.payload);
        });
    }
}
