//! A message on its way to subscribers, and its bytes in the state store.

use std::sync::Arc;

use sonde_engine::{MessageRef, Origin};
use sonde_proto::mqtt::{PropertiesBuilder, Property, Publish, QoS};

/// A message: shared by everyone it is delivered to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it was published.
    pub topic: Arc<str>,
    /// What it says.
    pub payload: Arc<[u8]>,
    /// The QoS it was published with.
    pub qos: QoS,
    /// Whether it was published to be retained.
    pub retain: bool,
    /// MQTT 5 properties that go with it, encoded.
    pub properties: Arc<[u8]>,
    /// Where it comes from; what a rule published the default source does not take.
    pub origin: Origin,
}

impl Message {
    /// A message without properties.
    #[must_use]
    pub fn new(topic: &str, payload: &[u8], qos: QoS, retain: bool) -> Self {
        Self {
            topic: topic.into(),
            payload: payload.into(),
            qos,
            retain,
            properties: Arc::from([]),
            origin: Origin::Client,
        }
    }

    /// Copies a packet out of the read buffer, with the properties that are forwarded.
    #[must_use]
    pub fn of(publish: &Publish<'_>) -> Self {
        let mut properties = PropertiesBuilder::new();
        for property in publish.properties.iter() {
            let forwarded = matches!(
                property,
                Property::PayloadFormatIndicator(_)
                    | Property::ContentType(_)
                    | Property::ResponseTopic(_)
                    | Property::CorrelationData(_)
                    | Property::UserProperty(..)
                    | Property::MessageExpiryInterval(_)
            );
            if forwarded {
                properties.push(property);
            }
        }
        Self {
            properties: properties.as_properties().as_bytes().into(),
            ..Self::new(publish.topic, publish.payload, publish.qos, publish.retain)
        }
    }

    /// A message as the log has it.
    #[must_use]
    pub fn of_log(raw: &MessageRef<'_>) -> Self {
        let qos = QoS::from_bits(raw.qos).unwrap_or(QoS::AtMostOnce);
        Self { properties: raw.properties.into(), ..Self::new(raw.topic, raw.payload, qos, raw.retain) }
    }

    /// Bytes that it takes, for quotas.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.topic.len() + self.payload.len() + self.properties.len() + 64
    }

    /// `flags u8 | topic length u16 | topic | properties length u32 | properties | payload`, little endian.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes());
        bytes.push(self.qos as u8 | u8::from(self.retain) << 2);
        bytes.extend_from_slice(&(self.topic.len() as u16).to_le_bytes());
        bytes.extend_from_slice(self.topic.as_bytes());
        bytes.extend_from_slice(&(self.properties.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.properties);
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// Reads what `encode` wrote.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (flags, rest) = bytes.split_first()?;
        let (len, rest) = rest.split_first_chunk::<2>()?;
        let (topic, rest) = rest.split_at_checked(u16::from_le_bytes(*len).into())?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (properties, payload) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        let qos = QoS::from_bits(flags & 3).ok()?;
        let mut message = Self::new(std::str::from_utf8(topic).ok()?, payload, qos, flags & 4 != 0);
        message.properties = properties.into();
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_from_their_bytes() {
        let mut properties = PropertiesBuilder::new();
        properties.push(Property::UserProperty("a", "b"));
        let mut message = Message::new("a/b", b"\x00\xff", QoS::ExactlyOnce, true);
        message.properties = properties.as_properties().as_bytes().into();
        let bytes = message.encode();
        assert_eq!(Message::decode(&bytes), Some(message));
        assert!((0..6).all(|end| Message::decode(bytes.get(..end).unwrap_or_default()).is_none()));
    }
}
