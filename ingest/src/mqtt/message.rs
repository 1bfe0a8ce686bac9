//! A message on its way to subscribers, and its bytes in the state store.

use std::borrow::Cow;
use std::sync::Arc;

use sonde_engine::{MessageRef, Origin, SeqNo, Timestamp};
use sonde_proto::mqtt::{Properties, PropertiesBuilder, Property, Publish, QoS};

use super::budget::Weight;
use crate::limits::PACKET_BYTES;

/// Nanoseconds of a second.
const NANOS: i64 = 1_000_000_000;
/// The flag of a message's bytes that says that its arrival stands in them.
const HAS_ARRIVAL: u8 = 8;

/// A message, which those share to whom it is delivered.
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
    /// MQTT 5 properties that go with it, encoded; all but the expiry, of which only the rest is passed on.
    pub properties: Arc<[u8]>,
    /// Message Expiry Interval (MQTT 5, section 3.3.2.3.3): seconds from the arrival on; none is for ever.
    pub expiry: Option<u32>,
    /// When it came, by the engine's clock.
    pub arrival: Timestamp,
    /// Where it comes from; what a rule published the default source does not take.
    pub origin: Origin,
    /// What it takes of the memory for messages.
    pub(crate) weight: Weight,
}

impl Message {
    /// A message without properties, which has yet to arrive.
    #[must_use]
    pub fn new(topic: &str, payload: &[u8], qos: QoS, retain: bool) -> Self {
        Self::unweighed(topic, payload, qos, retain).weighed()
    }

    fn unweighed(topic: &str, payload: &[u8], qos: QoS, retain: bool) -> Self {
        Self {
            topic: topic.into(),
            payload: payload.into(),
            qos,
            retain,
            properties: Arc::default(),
            expiry: None,
            arrival: Timestamp::from_nanos(0),
            origin: Origin::Client,
            weight: Weight::default(),
        }
    }

    /// The same, counted for itself: whoever changes or copies what a message has, asks for it.
    #[must_use]
    pub fn weighed(mut self) -> Self {
        self.weight = Weight::of(self.bytes());
        self
    }

    /// Copies a packet out of the read buffer, with the properties that are forwarded.
    #[must_use]
    pub fn of(publish: &Publish<'_>, arrival: Timestamp) -> Self {
        let mut properties = PropertiesBuilder::new();
        let mut expiry = None;
        for property in publish.properties.iter() {
            let forwarded = matches!(
                property,
                Property::PayloadFormatIndicator(_)
                    | Property::ContentType(_)
                    | Property::ResponseTopic(_)
                    | Property::CorrelationData(_)
                    | Property::UserProperty(..)
            );
            if forwarded {
                properties.push(property);
            } else if let Property::MessageExpiryInterval(seconds) = property {
                expiry = Some(seconds);
            }
        }
        Self {
            properties: properties.as_properties().as_bytes().into(),
            expiry,
            arrival,
            ..Self::unweighed(publish.topic, publish.payload, publish.qos, publish.retain)
        }
        .weighed()
    }

    /// A message as the log has it.
    #[must_use]
    pub fn of_log(raw: &MessageRef<'_>) -> Self {
        let publish = Publish {
            dup: false,
            qos: QoS::from_bits(raw.qos).unwrap_or(QoS::AtMostOnce),
            retain: raw.retain,
            topic: raw.topic,
            packet_id: 0,
            properties: Properties::from_encoded(raw.properties),
            payload: raw.payload,
        };
        Self::of(&publish, raw.received)
    }

    /// Its properties for a place where they must say when it expires: the expiry interval first.
    #[must_use]
    pub fn properties_to_keep(&self) -> Cow<'_, [u8]> {
        let Some(seconds) = self.expiry else { return Cow::Borrowed(&self.properties) };
        let mut properties = PropertiesBuilder::new();
        properties.push(Property::MessageExpiryInterval(seconds));
        properties.extend(Properties::from_encoded(&self.properties));
        Cow::Owned(properties.as_properties().as_bytes().to_vec())
    }

    /// When it is no longer delivered.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        let seconds = self.expiry?;
        Some(Timestamp::from_nanos(self.arrival.as_nanos().saturating_add(i64::from(seconds) * NANOS)))
    }

    /// Whether its delivery must not begin any more ([MQTT-3.3.2-5]).
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at().is_some_and(|end| now >= end)
    }

    /// The expiry interval to send: what was received less the whole seconds that it waited ([MQTT-3.3.2-6]).
    #[must_use]
    pub fn remaining(&self, now: Timestamp) -> Option<u32> {
        let waited = now.as_nanos().saturating_sub(self.arrival.as_nanos()).max(0) / NANOS;
        Some(self.expiry?.saturating_sub(u32::try_from(waited).unwrap_or(u32::MAX)))
    }

    /// Bytes that it takes, for quotas.
    #[must_use]
    pub fn bytes(&self) -> usize {
        Self::bytes_of(&self.topic, &self.payload, &self.properties)
    }

    /// The same of a message that is made of these.
    pub(super) fn bytes_of(topic: &str, payload: &[u8], properties: &[u8]) -> usize {
        topic.len() + payload.len() + properties.len() + 64
    }

    /// The message as the log keeps it, with its `properties_to_keep`.
    #[must_use]
    pub fn raw<'a>(&'a self, properties: &'a [u8]) -> MessageRef<'a> {
        let Self { topic, payload, retain, arrival, .. } = self;
        MessageRef {
            seq: SeqNo(0),
            received: *arrival,
            qos: self.qos as u8,
            retain: *retain,
            topic,
            properties,
            payload,
        }
    }

    /// Why no packet carries it: it would be larger than those of clients may be.
    #[must_use]
    pub(crate) fn too_large(&self) -> Option<String> {
        // At most: the fixed header, the lengths of topic and properties, the packet id, the expiry interval.
        const HEAD: usize = 5 + 2 + 4 + 2 + 5;
        let bytes = HEAD + self.topic.len() + self.properties.len() + self.payload.len();
        (bytes > PACKET_BYTES).then(|| {
            format!("the message would be a packet of {bytes} bytes; a packet has at most {PACKET_BYTES}")
        })
    }

    /// `flags u8 | arrival i64, where the flag 8 says so | topic length u16 | topic | properties length u32 |
    /// properties, the expiry interval first | payload`, little endian.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes());
        bytes.push(self.qos as u8 | u8::from(self.retain) << 2 | HAS_ARRIVAL);
        bytes.extend_from_slice(&self.arrival.as_nanos().to_le_bytes());
        bytes.extend_from_slice(&(self.topic.len() as u16).to_le_bytes());
        bytes.extend_from_slice(self.topic.as_bytes());
        let properties = self.properties_to_keep();
        bytes.extend_from_slice(&(properties.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&properties);
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// Reads what `encode` wrote. A record of before arrivals were kept counts from `now` on.
    #[must_use]
    pub fn decode(bytes: &[u8], now: Timestamp) -> Option<Self> {
        let (flags, mut rest) = bytes.split_first()?;
        let mut arrival = now;
        if flags & HAS_ARRIVAL != 0 {
            let (nanos, behind) = rest.split_first_chunk::<8>()?;
            arrival = Timestamp::from_nanos(i64::from_le_bytes(*nanos));
            rest = behind;
        }
        let (len, rest) = rest.split_first_chunk::<2>()?;
        let (topic, rest) = rest.split_at_checked(u16::from_le_bytes(*len).into())?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (properties, payload) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        let qos = QoS::from_bits(flags & 3).ok()?;
        Some(Self::of(
            &Publish {
                dup: false,
                qos,
                retain: flags & 4 != 0,
                topic: std::str::from_utf8(topic).ok()?,
                packet_id: 0,
                properties: Properties::from_encoded(properties),
                payload,
            },
            arrival,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_secs(seconds)
    }

    #[test]
    fn messages_come_back_from_their_bytes() {
        let mut properties = PropertiesBuilder::new();
        properties.push(Property::UserProperty("a", "b"));
        let mut message = Message::new("a/b", b"\x00\xff", QoS::ExactlyOnce, true);
        message.properties = properties.as_properties().as_bytes().into();
        message.expiry = Some(7);
        message.arrival = at(5);
        let bytes = message.encode();
        assert_eq!(Message::decode(&bytes, at(100)), Some(message));
        assert!((0..14).all(|end| Message::decode(bytes.get(..end).unwrap_or_default(), at(0)).is_none()));
    }

    #[test]
    fn a_message_of_the_log_says_when_it_expires() {
        let mut properties = PropertiesBuilder::new();
        properties.push(Property::UserProperty("a", "b"));
        let mut message = Message::new("a/b", b"x", QoS::AtLeastOnce, true);
        message.properties = properties.as_properties().as_bytes().into();
        message.arrival = at(5);
        for expiry in [None, Some(7)] {
            message.expiry = expiry;
            assert_eq!(Message::of_log(&message.raw(&message.properties_to_keep())), message);
        }
    }

    #[test]
    fn a_record_without_an_arrival_counts_from_when_it_is_read() {
        // QoS 1; topic "t"; a user property before the expiry of 7 s; payload "x".
        let bytes = b"\x01\x01\x00t\x0c\x00\x00\x00\x26\x00\x01a\x00\x01b\x02\x00\x00\x00\x07x";
        let message = Message::decode(bytes, at(100)).expect("a record of an earlier release");
        assert_eq!((message.expiry, message.arrival, &*message.payload), (Some(7), at(100), &b"x"[..]));
        assert_eq!(&*message.properties, b"\x26\x00\x01a\x00\x01b");
    }

    #[test]
    fn what_remains_is_less_by_the_whole_seconds_that_it_waited() {
        let message =
            Message { expiry: Some(3), arrival: at(10), ..Message::new("t", b"", QoS::AtMostOnce, false) };
        let later = |nanos| Timestamp::from_nanos(at(10).as_nanos() + nanos);
        for (nanos, remaining, expired) in [
            (-NANOS, 3, false),
            (0, 3, false),
            (NANOS - 1, 3, false),
            (NANOS, 2, false),
            (3 * NANOS - 1, 1, false),
            (3 * NANOS, 0, true),
            (100 * NANOS, 0, true),
        ] {
            assert_eq!(message.remaining(later(nanos)), Some(remaining), "{nanos}");
            assert_eq!(message.is_expired(later(nanos)), expired, "{nanos}");
        }
        let for_ever = Message { expiry: None, ..message };
        assert_eq!((for_ever.remaining(Timestamp::MAX), for_ever.is_expired(Timestamp::MAX)), (None, false));
    }
}
