//! Properties (MQTT 5, section 2.2.2).

use super::error::DecodeError;
use super::topic::validate_topic;
use super::wire::{Reader, put_binary, put_u16, put_u32, put_varint};

/// One property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the standard's table 2-4")]
pub enum Property<'a> {
    PayloadFormatIndicator(u8),
    MessageExpiryInterval(u32),
    ContentType(&'a str),
    ResponseTopic(&'a str),
    CorrelationData(&'a [u8]),
    SubscriptionIdentifier(u32),
    SessionExpiryInterval(u32),
    AssignedClientIdentifier(&'a str),
    ServerKeepAlive(u16),
    AuthenticationMethod(&'a str),
    AuthenticationData(&'a [u8]),
    RequestProblemInformation(u8),
    WillDelayInterval(u32),
    RequestResponseInformation(u8),
    ResponseInformation(&'a str),
    ServerReference(&'a str),
    ReasonString(&'a str),
    ReceiveMaximum(u16),
    TopicAliasMaximum(u16),
    TopicAlias(u16),
    MaximumQoS(u8),
    RetainAvailable(u8),
    UserProperty(&'a str, &'a str),
    MaximumPacketSize(u32),
    WildcardSubscriptionAvailable(u8),
    SubscriptionIdentifierAvailable(u8),
    SharedSubscriptionAvailable(u8),
}

/// The packets that properties stand in, as bits.
pub(super) mod place {
    pub(in super::super) const CONNECT: u16 = 1;
    pub(in super::super) const CONNACK: u16 = 1 << 1;
    pub(in super::super) const PUBLISH: u16 = 1 << 2;
    pub(in super::super) const WILL: u16 = 1 << 3;
    pub(in super::super) const ACK: u16 = 1 << 4;
    pub(in super::super) const SUBSCRIBE: u16 = 1 << 5;
    pub(in super::super) const UNSUBSCRIBE: u16 = 1 << 6;
    pub(in super::super) const DISCONNECT: u16 = 1 << 7;
    pub(in super::super) const AUTH: u16 = 1 << 8;
}

use place::{ACK, AUTH, CONNACK, CONNECT, DISCONNECT, PUBLISH, SUBSCRIBE, WILL};

/// The packets in which a property of this number may stand; 0 where there is no such property.
fn places(id: u32) -> u16 {
    match id {
        0x01 | 0x02 | 0x03 | 0x08 | 0x09 => PUBLISH | WILL,
        0x0b => PUBLISH | SUBSCRIBE,
        0x11 => CONNECT | CONNACK | DISCONNECT,
        0x12 | 0x13 | 0x1a | 0x24 | 0x25 | 0x28 | 0x29 | 0x2a => CONNACK,
        0x15 | 0x16 => CONNECT | CONNACK | AUTH,
        0x17 | 0x19 => CONNECT,
        0x18 => WILL,
        0x1c => CONNACK | DISCONNECT,
        0x1f => CONNACK | ACK | DISCONNECT | AUTH,
        0x21 | 0x22 | 0x27 => CONNECT | CONNACK,
        0x23 => PUBLISH,
        0x26 => u16::MAX,
        _ => 0,
    }
}

impl<'a> Property<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<(u32, Self), DecodeError> {
        let id = reader.varint()?;
        let flag = |reader: &mut Reader<'a>| match reader.u8()? {
            value @ 0..=1 => Ok(value),
            _ => Err(DecodeError::Protocol("a flag property that is neither 0 nor 1")),
        };
        let property = match id {
            0x01 => Self::PayloadFormatIndicator(flag(reader)?),
            0x02 => Self::MessageExpiryInterval(reader.u32()?),
            0x03 => Self::ContentType(reader.text()?),
            0x08 => Self::ResponseTopic(reader.text()?),
            0x09 => Self::CorrelationData(reader.binary()?),
            0x0b => match reader.varint()? {
                0 => return Err(DecodeError::Protocol("subscription identifier 0")),
                id => Self::SubscriptionIdentifier(id),
            },
            0x11 => Self::SessionExpiryInterval(reader.u32()?),
            0x12 => Self::AssignedClientIdentifier(reader.text()?),
            0x13 => Self::ServerKeepAlive(reader.u16()?),
            0x15 => Self::AuthenticationMethod(reader.text()?),
            0x16 => Self::AuthenticationData(reader.binary()?),
            0x17 => Self::RequestProblemInformation(flag(reader)?),
            0x18 => Self::WillDelayInterval(reader.u32()?),
            0x19 => Self::RequestResponseInformation(flag(reader)?),
            0x1a => Self::ResponseInformation(reader.text()?),
            0x1c => Self::ServerReference(reader.text()?),
            0x1f => Self::ReasonString(reader.text()?),
            0x21 => match reader.u16()? {
                0 => return Err(DecodeError::Protocol("receive maximum 0")),
                maximum => Self::ReceiveMaximum(maximum),
            },
            0x22 => Self::TopicAliasMaximum(reader.u16()?),
            0x23 => Self::TopicAlias(reader.u16()?),
            0x24 => Self::MaximumQoS(flag(reader)?),
            0x25 => Self::RetainAvailable(flag(reader)?),
            0x26 => Self::UserProperty(reader.text()?, reader.text()?),
            0x27 => match reader.u32()? {
                0 => return Err(DecodeError::Protocol("maximum packet size 0")),
                size => Self::MaximumPacketSize(size),
            },
            0x28 => Self::WildcardSubscriptionAvailable(flag(reader)?),
            0x29 => Self::SubscriptionIdentifierAvailable(flag(reader)?),
            0x2a => Self::SharedSubscriptionAvailable(flag(reader)?),
            _ => return Err(DecodeError::Malformed("a property that there is not")),
        };
        Ok((id, property))
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut byte = |id: u8, value: u8| out.extend_from_slice(&[id, value]);
        match *self {
            Self::PayloadFormatIndicator(value) => byte(0x01, value),
            Self::RequestProblemInformation(value) => byte(0x17, value),
            Self::RequestResponseInformation(value) => byte(0x19, value),
            Self::MaximumQoS(value) => byte(0x24, value),
            Self::RetainAvailable(value) => byte(0x25, value),
            Self::WildcardSubscriptionAvailable(value) => byte(0x28, value),
            Self::SubscriptionIdentifierAvailable(value) => byte(0x29, value),
            Self::SharedSubscriptionAvailable(value) => byte(0x2a, value),
            Self::MessageExpiryInterval(value) => number(0x02, value, out),
            Self::SessionExpiryInterval(value) => number(0x11, value, out),
            Self::WillDelayInterval(value) => number(0x18, value, out),
            Self::MaximumPacketSize(value) => number(0x27, value, out),
            Self::ServerKeepAlive(value) => short(0x13, value, out),
            Self::ReceiveMaximum(value) => short(0x21, value, out),
            Self::TopicAliasMaximum(value) => short(0x22, value, out),
            Self::TopicAlias(value) => short(0x23, value, out),
            Self::ContentType(text) => binary(0x03, text.as_bytes(), out),
            Self::ResponseTopic(text) => binary(0x08, text.as_bytes(), out),
            Self::CorrelationData(bytes) => binary(0x09, bytes, out),
            Self::AssignedClientIdentifier(text) => binary(0x12, text.as_bytes(), out),
            Self::AuthenticationMethod(text) => binary(0x15, text.as_bytes(), out),
            Self::AuthenticationData(bytes) => binary(0x16, bytes, out),
            Self::ResponseInformation(text) => binary(0x1a, text.as_bytes(), out),
            Self::ServerReference(text) => binary(0x1c, text.as_bytes(), out),
            Self::ReasonString(text) => binary(0x1f, text.as_bytes(), out),
            Self::UserProperty(name, value) => {
                binary(0x26, name.as_bytes(), out);
                put_binary(value.as_bytes(), out);
            }
            Self::SubscriptionIdentifier(id) => {
                out.push(0x0b);
                put_varint(id, out);
            }
        }
    }
}

fn number(id: u8, value: u32, out: &mut Vec<u8>) {
    out.push(id);
    put_u32(value, out);
}

fn short(id: u8, value: u16, out: &mut Vec<u8>) {
    out.push(id);
    put_u16(value, out);
}

fn binary(id: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(id);
    put_binary(bytes, out);
}

/// The properties of a packet, checked when it was decoded; empty in MQTT 3.1.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Properties<'a>(&'a [u8]);

impl<'a> Properties<'a> {
    /// Reads the length and the properties, all of which must belong in `place`.
    pub(super) fn read(reader: &mut Reader<'a>, place: u16) -> Result<Self, DecodeError> {
        let len = reader.varint()? as usize;
        let bytes = reader.take(len)?;
        let mut inner = Reader::new(bytes);
        let mut seen = 0_u64;
        while !inner.is_empty() {
            let (id, property) = Property::read(&mut inner)?;
            if places(id) & place == 0 {
                return Err(DecodeError::Protocol("a property that does not belong in this packet"));
            }
            let repeats = id == 0x26 || (id == 0x0b && place == PUBLISH);
            if seen >> id & 1 == 1 && !repeats {
                return Err(DecodeError::Protocol("a property that stands twice"));
            }
            seen |= 1 << id;
            if let Property::ResponseTopic(topic) = property {
                validate_topic(topic)?;
            }
        }
        if seen >> 0x16 & 1 == 1 && seen >> 0x15 & 1 == 0 {
            return Err(DecodeError::Protocol("authentication data without a method"));
        }
        Ok(Self(bytes))
    }

    /// The properties, in their order.
    pub fn iter(&self) -> impl Iterator<Item = Property<'a>> + use<'a> {
        let mut reader = Reader::new(self.0);
        std::iter::from_fn(move || Property::read(&mut reader).ok().map(|(_, property)| property))
    }

    /// Properties that a `PropertiesBuilder` encoded; bytes that are none end the iteration early.
    #[must_use]
    pub fn from_encoded(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The encoded properties, without their length.
    #[must_use]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first property for which `pick` gives something.
    pub fn find<T>(&self, pick: impl FnMut(Property<'a>) -> Option<T>) -> Option<T> {
        if self.0.is_empty() { None } else { self.iter().find_map(pick) }
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        put_varint(self.0.len() as u32, out);
        out.extend_from_slice(self.0);
    }
}

/// Builds properties to send.
#[derive(Clone, Debug, Default)]
pub struct PropertiesBuilder(Vec<u8>);

impl PropertiesBuilder {
    /// No properties yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one.
    pub fn push(&mut self, property: Property<'_>) -> &mut Self {
        property.write(&mut self.0);
        self
    }

    /// Appends properties that are encoded already.
    pub fn extend(&mut self, properties: Properties<'_>) -> &mut Self {
        self.0.extend_from_slice(properties.0);
        self
    }

    /// Takes everything out; the memory stays for the next packet.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// What was appended, as a packet takes it.
    #[must_use]
    pub fn as_properties(&self) -> Properties<'_> {
        Properties(&self.0)
    }
}
