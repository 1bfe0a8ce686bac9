//! A packet as its fields, in the form in which codecs are compared.

use std::mem::take;

use sonde_proto::mqtt::{
    Filter, Packet, Properties, PropertiesBuilder, Property, Subscribe, Unsubscribe, Version, decode,
};

/// No packet of a test is larger.
pub(crate) const LIMIT: usize = 8 << 20;

/// What a packet says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Model<'a> {
    pub(crate) body: Body<'a>,
    pub(crate) properties: Vec<Property<'a>>,
    pub(crate) will_properties: Vec<Property<'a>>,
}

/// A packet but for its properties.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body<'a> {
    Packet(Packet<'a>),
    Subscribe(u16, Vec<Filter<'a>>),
    Unsubscribe(u16, Vec<&'a str>),
}

impl<'a> Model<'a> {
    pub(crate) fn new(body: Body<'a>, properties: Vec<Property<'a>>) -> Self {
        Self { body, properties, will_properties: Vec::new() }
    }

    pub(crate) fn of(mut packet: Packet<'a>) -> Self {
        let list = |properties: Option<&mut Properties<'a>>| {
            properties.map_or(Vec::new(), |p| take(p).iter().collect())
        };
        let properties = list(properties(&mut packet));
        let will_properties = list(will_properties(&mut packet));
        let body = match packet {
            Packet::Subscribe(subscribe) => {
                Body::Subscribe(subscribe.packet_id, subscribe.filters().collect())
            }
            Packet::Unsubscribe(subscribe) => {
                Body::Unsubscribe(subscribe.packet_id, subscribe.filters().collect())
            }
            packet => Body::Packet(packet),
        };
        Self { body, properties, will_properties }
    }

    /// Decodes bytes that are one packet and nothing else.
    pub(crate) fn decode(bytes: &'a [u8], version: Version) -> Self {
        let (packet, len) = decode(bytes, version, LIMIT).unwrap().unwrap();
        assert_eq!(len, bytes.len());
        Self::of(packet)
    }

    pub(crate) fn encode(&self, version: Version) -> Vec<u8> {
        let mut out = Vec::new();
        let main = builder(&self.properties);
        let will = builder(&self.will_properties);
        match &self.body {
            Body::Packet(packet) => {
                let mut packet = *packet;
                if let Some(slot) = properties(&mut packet) {
                    *slot = main.as_properties();
                }
                if let Some(slot) = will_properties(&mut packet) {
                    *slot = will.as_properties();
                }
                packet.encode(version, &mut out);
            }
            Body::Subscribe(id, filters) => {
                Subscribe::encode(*id, main.as_properties(), filters, version, &mut out)
            }
            Body::Unsubscribe(id, filters) => {
                Unsubscribe::encode(*id, main.as_properties(), filters, version, &mut out)
            }
        }
        out
    }

    /// The same with properties ordered by name: the order of different properties means nothing, that of equal ones
    /// is kept.
    pub(crate) fn sorted(mut self) -> Self {
        self.properties.sort_by_key(name);
        self.will_properties.sort_by_key(name);
        self
    }
}

/// The name of a property's kind.
pub(crate) fn name(property: &Property<'_>) -> String {
    format!("{property:?}").split('(').next().unwrap().to_owned()
}

pub(crate) fn builder(list: &[Property<'_>]) -> PropertiesBuilder {
    let mut builder = PropertiesBuilder::new();
    list.iter().for_each(|property| {
        builder.push(*property);
    });
    builder
}

fn properties<'p, 'a>(packet: &'p mut Packet<'a>) -> Option<&'p mut Properties<'a>> {
    Some(match packet {
        Packet::Connect(p) => &mut p.properties,
        Packet::ConnAck(p) => &mut p.properties,
        Packet::Publish(p) => &mut p.properties,
        Packet::PubAck(p) | Packet::PubRec(p) | Packet::PubRel(p) | Packet::PubComp(p) => &mut p.properties,
        Packet::Subscribe(p) => &mut p.properties,
        Packet::SubAck(p) | Packet::UnsubAck(p) => &mut p.properties,
        Packet::Unsubscribe(p) => &mut p.properties,
        Packet::PingReq | Packet::PingResp => return None,
        Packet::Disconnect(p) => &mut p.properties,
        Packet::Auth(p) => &mut p.properties,
    })
}

fn will_properties<'p, 'a>(packet: &'p mut Packet<'a>) -> Option<&'p mut Properties<'a>> {
    match packet {
        Packet::Connect(connect) => connect.will.as_mut().map(|will| &mut will.properties),
        _ => None,
    }
}
