//! The standard's tables, written down a second time: which properties and reason codes a packet may carry.

use sonde_proto::mqtt::{Property, Version};

/// A place where properties stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Connect,
    Will,
    ConnAck,
    Publish,
    PubAck,
    PubRec,
    PubRel,
    PubComp,
    Subscribe,
    SubAck,
    Unsubscribe,
    UnsubAck,
    Disconnect,
    Auth,
}

pub(crate) const PLACES: [Place; 14] = [
    Place::Connect,
    Place::Will,
    Place::ConnAck,
    Place::Publish,
    Place::PubAck,
    Place::PubRec,
    Place::PubRel,
    Place::PubComp,
    Place::Subscribe,
    Place::SubAck,
    Place::Unsubscribe,
    Place::UnsubAck,
    Place::Disconnect,
    Place::Auth,
];

/// Every property identifier (MQTT 5, table 2-4).
pub(crate) const PROPERTIES: [u8; 27] = [
    0x01, 0x02, 0x03, 0x08, 0x09, 0x0b, 0x11, 0x12, 0x13, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1c, 0x1f,
    0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a,
];

impl Place {
    /// The properties of sections 3.1.2.11, 3.1.3.2, 3.2.2.3 and so on, packet by packet, where the codec has them
    /// property by property.
    pub(crate) fn properties(self) -> &'static [u8] {
        match self {
            Self::Connect => &[0x11, 0x21, 0x27, 0x22, 0x19, 0x17, 0x26, 0x15, 0x16],
            Self::Will => &[0x18, 0x01, 0x02, 0x03, 0x08, 0x09, 0x26],
            Self::ConnAck => &[
                0x11, 0x21, 0x24, 0x25, 0x27, 0x12, 0x22, 0x1f, 0x26, 0x28, 0x29, 0x2a, 0x13, 0x1a, 0x1c,
                0x15, 0x16,
            ],
            Self::Publish => &[0x01, 0x02, 0x23, 0x08, 0x09, 0x26, 0x0b, 0x03],
            Self::PubAck | Self::PubRec | Self::PubRel | Self::PubComp | Self::SubAck | Self::UnsubAck => {
                &[0x1f, 0x26]
            }
            Self::Subscribe => &[0x0b, 0x26],
            Self::Unsubscribe => &[0x26],
            Self::Disconnect => &[0x11, 0x1f, 0x26, 0x1c],
            Self::Auth => &[0x15, 0x16, 0x1f, 0x26],
        }
    }

    /// The reason codes of tables 3-1 (3.1.1) and 3-1 to 3-13 (5.0). 0x8c in DISCONNECT stands in table 2-6 alone.
    pub(crate) fn codes(self, version: Version) -> &'static [u8] {
        match (self, version) {
            (Self::ConnAck, Version::V311) => &[0, 1, 2, 3, 4, 5],
            (Self::SubAck, Version::V311) => &[0, 1, 2, 0x80],
            (_, Version::V311) => &[],
            (Self::ConnAck, Version::V5) => &[
                0x00, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8c, 0x90, 0x95,
                0x97, 0x99, 0x9a, 0x9b, 0x9c, 0x9d, 0x9f,
            ],
            (Self::PubAck | Self::PubRec, Version::V5) => {
                &[0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]
            }
            (Self::PubRel | Self::PubComp, Version::V5) => &[0x00, 0x92],
            (Self::SubAck, Version::V5) => {
                &[0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8f, 0x91, 0x97, 0x9e, 0xa1, 0xa2]
            }
            (Self::UnsubAck, Version::V5) => &[0x00, 0x11, 0x80, 0x83, 0x87, 0x8f, 0x91],
            (Self::Disconnect, Version::V5) => &[
                0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8b, 0x8c, 0x8d, 0x8e, 0x8f, 0x90, 0x93,
                0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0x9b, 0x9c, 0x9d, 0x9e, 0x9f, 0xa0, 0xa1, 0xa2,
            ],
            (Self::Auth, Version::V5) => &[0x00, 0x18, 0x19],
            (
                Self::Connect | Self::Will | Self::Publish | Self::Subscribe | Self::Unsubscribe,
                Version::V5,
            ) => &[],
        }
    }
}

/// A property of each kind, and its bytes as table 2-4 has them.
pub(crate) fn example(id: u8) -> (Property<'static>, Vec<u8>) {
    use Property as P;
    let text = |id: u8| [&[id, 0, 2], &b"ab"[..]].concat();
    match id {
        0x01 => (P::PayloadFormatIndicator(1), vec![id, 1]),
        0x02 => (P::MessageExpiryInterval(0x0102_0304), vec![id, 1, 2, 3, 4]),
        0x03 => (P::ContentType("ab"), text(id)),
        0x08 => (P::ResponseTopic("ab"), text(id)),
        0x09 => (P::CorrelationData(b"ab"), text(id)),
        0x0b => (P::SubscriptionIdentifier(0x0fff_ffff), vec![id, 0xff, 0xff, 0xff, 0x7f]),
        0x11 => (P::SessionExpiryInterval(0xffff_ffff), vec![id, 0xff, 0xff, 0xff, 0xff]),
        0x12 => (P::AssignedClientIdentifier("ab"), text(id)),
        0x13 => (P::ServerKeepAlive(0x0102), vec![id, 1, 2]),
        0x15 => (P::AuthenticationMethod("ab"), text(id)),
        0x16 => (P::AuthenticationData(b"ab"), text(id)),
        0x17 => (P::RequestProblemInformation(0), vec![id, 0]),
        0x18 => (P::WillDelayInterval(0x0102_0304), vec![id, 1, 2, 3, 4]),
        0x19 => (P::RequestResponseInformation(1), vec![id, 1]),
        0x1a => (P::ResponseInformation("ab"), text(id)),
        0x1c => (P::ServerReference("ab"), text(id)),
        0x1f => (P::ReasonString("ab"), text(id)),
        0x21 => (P::ReceiveMaximum(0x0102), vec![id, 1, 2]),
        0x22 => (P::TopicAliasMaximum(0x0102), vec![id, 1, 2]),
        0x23 => (P::TopicAlias(0x0102), vec![id, 1, 2]),
        0x24 => (P::MaximumQoS(1), vec![id, 1]),
        0x25 => (P::RetainAvailable(0), vec![id, 0]),
        0x26 => (P::UserProperty("ab", "c"), [&[id, 0, 2], &b"ab"[..], &[0, 1], b"c"].concat()),
        0x27 => (P::MaximumPacketSize(0x0102_0304), vec![id, 1, 2, 3, 4]),
        0x28 => (P::WildcardSubscriptionAvailable(1), vec![id, 1]),
        0x29 => (P::SubscriptionIdentifierAvailable(0), vec![id, 0]),
        0x2a => (P::SharedSubscriptionAvailable(1), vec![id, 1]),
        _ => panic!("there is no property {id:#04x}"),
    }
}

/// A packet of MQTT 5 with these property bytes in this place.
pub(crate) fn packet_with(place: Place, properties: &[u8]) -> Vec<u8> {
    let before: &[u8] = match place {
        Place::Connect => b"\x00\x04MQTT\x05\x02\x00\x00",
        Place::Will => b"\x00\x04MQTT\x05\x06\x00\x00\x00\x00\x00",
        Place::ConnAck => &[0, 0],
        Place::Publish => b"\x00\x01t",
        Place::PubAck | Place::PubRec | Place::PubRel | Place::PubComp => &[0, 1, 0],
        Place::Subscribe | Place::SubAck | Place::Unsubscribe | Place::UnsubAck => &[0, 1],
        Place::Disconnect | Place::Auth => &[0],
    };
    let (first, behind): (u8, &[u8]) = match place {
        Place::Connect => (0x10, &[0, 0]),
        Place::Will => (0x10, b"\x00\x01t\x00\x00"),
        Place::ConnAck => (0x20, &[]),
        Place::Publish => (0x30, &[]),
        Place::PubAck => (0x40, &[]),
        Place::PubRec => (0x50, &[]),
        Place::PubRel => (0x62, &[]),
        Place::PubComp => (0x70, &[]),
        Place::Subscribe => (0x82, b"\x00\x01t\x00"),
        Place::SubAck => (0x90, &[0]),
        Place::Unsubscribe => (0xa2, b"\x00\x01t"),
        Place::UnsubAck => (0xb0, &[0]),
        Place::Disconnect => (0xe0, &[]),
        Place::Auth => (0xf0, &[]),
    };
    let len = u8::try_from(properties.len()).unwrap();
    let body = [before, &[len], properties, behind].concat();
    [&[first, u8::try_from(body.len()).unwrap()], &body[..]].concat()
}
