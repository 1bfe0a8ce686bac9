//! Random packets that are well-formed.
//!
//! # Invariants
//! - What is drawn borrows from memory that is never freed: a test process draws some megabytes, and packets stay the
//!   codec's own types.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;
use sonde_proto::mqtt::{
    Ack, Auth, ConnAck, Connect, Disconnect, Filter, Packet, Properties, Property, Publish, QoS, ReasonCode,
    RetainHandling, SubAck, Version, Will,
};

use crate::model::{Body, Model, name};
use crate::standard::Place;

/// Whom the packets are for: what another codec cannot read or write is not drawn for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// Our own codec: everything.
    Us,
    /// `mqttbytes` cannot tell an empty user name or password from none and takes passwords for text; it does not
    /// know AUTH; it does not read a DISCONNECT of MQTT 5 without properties; it counts a byte too many for each
    /// subscription identifier, so that behind two of them properties pass for payload.
    MqttBytes,
    /// `mqtt-protocol-core` wants a user name with every password, as 3.1.1 does, in MQTT 5 too, and refuses 0x8c in DISCONNECT. Its five known panics
    /// (packet identifier 0, topic alias maximum 0) are in its state machine, which the tests leave alone; identifier 0
    /// is never drawn.
    Core,
}

type Packets = BoxedStrategy<Model<'static>>;

/// Any packet.
pub(crate) fn packet(version: Version, whom: For) -> Packets {
    Union::new(kinds(version, whom).into_iter().map(|(_, packets)| packets)).boxed()
}

/// The packets of each kind, by its name.
pub(crate) fn kinds(version: Version, whom: For) -> Vec<(&'static str, Packets)> {
    let ping = |packet| Just(Model::new(Body::Packet(packet), vec![])).boxed();
    let mut kinds = vec![
        ("CONNECT", connect(version, whom)),
        ("CONNACK", connack(version)),
        ("PUBLISH", publish(version, whom)),
        ("PUBACK", ack(version, Place::PubAck, Packet::PubAck)),
        ("PUBREC", ack(version, Place::PubRec, Packet::PubRec)),
        ("PUBREL", ack(version, Place::PubRel, Packet::PubRel)),
        ("PUBCOMP", ack(version, Place::PubComp, Packet::PubComp)),
        ("SUBSCRIBE", subscribe(version)),
        ("SUBACK", suback(version, Place::SubAck, Packet::SubAck)),
        ("UNSUBSCRIBE", unsubscribe(version)),
        ("UNSUBACK", suback(version, Place::UnsubAck, Packet::UnsubAck)),
        ("PINGREQ", ping(Packet::PingReq)),
        ("PINGRESP", ping(Packet::PingResp)),
        ("DISCONNECT", disconnect(version, whom)),
    ];
    if version == Version::V5 && whom != For::MqttBytes {
        kinds.push(("AUTH", auth()));
    }
    kinds
}

fn connect(version: Version, whom: For) -> Packets {
    let username = text().prop_filter("mqttbytes", move |name| whom != For::MqttBytes || !name.is_empty());
    let password = match whom {
        For::MqttBytes => text().prop_filter("mqttbytes", |t| !t.is_empty()).prop_map(str::as_bytes).boxed(),
        For::Us | For::Core => bytes(),
    };
    let needs_name = version == Version::V311 || whom == For::Core;
    let will = (topic(), bytes(), qos(), any::<bool>(), properties(version, Place::Will));
    // The other codecs know 3.1.1 and 5.0 only.
    let is_3_1 = any::<bool>().prop_map(move |old| old && version == Version::V311 && whom == For::Us);
    let session = (is_3_1, any::<bool>(), any::<u16>(), text(), properties(version, Place::Connect));
    (session, option::of(will), option::of(username), option::of(password))
        .prop_map(move |((is_3_1, clean_start, keep_alive, client_id, list), will, username, password)| {
            let password = password.filter(|_| username.is_some() || !needs_name);
            let mut will_properties = Vec::new();
            let will = will.map(|(topic, payload, qos, retain, list)| {
                will_properties = list;
                Will { topic, payload, qos, retain, properties: Properties::default() }
            });
            let properties = Properties::default();
            let connect = Connect {
                version,
                is_3_1,
                clean_start,
                keep_alive,
                properties,
                client_id,
                will,
                username,
                password,
            };
            Model { body: Body::Packet(Packet::Connect(connect)), properties: list, will_properties }
        })
        .boxed()
}

fn connack(version: Version) -> Packets {
    (any::<bool>(), code(version, Place::ConnAck), properties(version, Place::ConnAck))
        .prop_map(|(session_present, reason, list)| {
            let ack = ConnAck { session_present, reason, properties: Properties::default() };
            Model::new(Body::Packet(Packet::ConnAck(ack)), list)
        })
        .boxed()
}

fn publish(version: Version, whom: For) -> Packets {
    let flags = (qos(), any::<bool>(), any::<bool>());
    (flags, any::<bool>(), topic(), packet_id(), properties(version, Place::Publish), payload())
        .prop_map(move |((qos, dup, retain), short, topic, packet_id, mut list, payload)| {
            if whom == For::MqttBytes {
                let mut identifiers = 0;
                list.retain(|property| {
                    identifiers += usize::from(matches!(property, Property::SubscriptionIdentifier(_)));
                    identifiers < 2 || !matches!(property, Property::SubscriptionIdentifier(_))
                });
            }
            let acked = qos != QoS::AtMostOnce;
            let aliased = list.iter().any(|property| matches!(property, Property::TopicAlias(_)));
            let publish = Publish {
                dup: dup && acked,
                qos,
                retain,
                topic: if short && aliased { "" } else { topic },
                packet_id: if acked { packet_id } else { 0 },
                properties: Properties::default(),
                payload,
            };
            Model::new(Body::Packet(Packet::Publish(publish)), list)
        })
        .boxed()
}

fn ack(version: Version, place: Place, packet: fn(Ack<'static>) -> Packet<'static>) -> Packets {
    (packet_id(), code(version, place), properties(version, place))
        .prop_map(move |(packet_id, reason, list)| {
            let ack = Ack { packet_id, reason, properties: Properties::default() };
            Model::new(Body::Packet(packet(ack)), list)
        })
        .boxed()
}

fn subscribe(version: Version) -> Packets {
    let options = (qos(), any::<bool>(), any::<bool>(), select(&RETAIN_HANDLINGS[..]));
    let one = (filter(), options).prop_map(
        move |(filter, (qos, no_local, retain_as_published, retain_handling))| {
            if version == Version::V311 {
                return Filter {
                    filter,
                    qos,
                    no_local: false,
                    retain_as_published: false,
                    retain_handling: RetainHandling::Send,
                };
            }
            let no_local = no_local && !filter.starts_with("$share/");
            Filter { filter, qos, no_local, retain_as_published, retain_handling }
        },
    );
    (packet_id(), vec(one, 1..6), properties(version, Place::Subscribe))
        .prop_map(|(packet_id, filters, list)| Model::new(Body::Subscribe(packet_id, filters), list))
        .boxed()
}

const RETAIN_HANDLINGS: [RetainHandling; 3] =
    [RetainHandling::Send, RetainHandling::SendIfNew, RetainHandling::Never];

fn unsubscribe(version: Version) -> Packets {
    (packet_id(), vec(filter(), 1..6), properties(version, Place::Unsubscribe))
        .prop_map(|(packet_id, filters, list)| Model::new(Body::Unsubscribe(packet_id, filters), list))
        .boxed()
}

fn suback(version: Version, place: Place, packet: fn(SubAck<'static>) -> Packet<'static>) -> Packets {
    let codes = place.codes(version);
    let reasons = if codes.is_empty() { Just(vec![]).boxed() } else { vec(select(codes), 1..150).boxed() };
    (packet_id(), reasons, properties(version, place))
        .prop_map(move |(packet_id, reasons, list)| {
            let ack = SubAck { packet_id, properties: Properties::default(), reasons: reasons.leak() };
            Model::new(Body::Packet(packet(ack)), list)
        })
        .boxed()
}

fn disconnect(version: Version, whom: For) -> Packets {
    let listed = move |code: &ReasonCode| whom == For::Us || code.0 != 0x8c;
    let reason = code(version, Place::Disconnect).prop_filter("0x8c stands in table 2-6 alone", listed);
    (reason, properties(version, Place::Disconnect))
        .prop_map(move |(reason, mut list)| {
            if list.is_empty() && version == Version::V5 && whom == For::MqttBytes {
                list.push(Property::SessionExpiryInterval(reason.0.into()));
            }
            let disconnect = Disconnect { reason, properties: Properties::default() };
            Model::new(Body::Packet(Packet::Disconnect(disconnect)), list)
        })
        .boxed()
}

fn auth() -> Packets {
    (code(Version::V5, Place::Auth), text(), properties(Version::V5, Place::Auth))
        .prop_map(|(reason, method, mut list)| {
            let has_method =
                list.iter().any(|property| matches!(property, Property::AuthenticationMethod(_)));
            if !has_method && (reason != ReasonCode::SUCCESS || !list.is_empty()) {
                list.push(Property::AuthenticationMethod(method));
            }
            let auth = Auth { reason, properties: Properties::default() };
            Model::new(Body::Packet(Packet::Auth(auth)), list)
        })
        .boxed()
}

fn packet_id() -> impl Strategy<Value = u16> {
    prop_oneof![1..=u16::MAX, select(vec![1, 0x00ff, 0x0100, u16::MAX])]
}

fn qos() -> impl Strategy<Value = QoS> {
    select(vec![QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
}

fn code(version: Version, place: Place) -> BoxedStrategy<ReasonCode> {
    match place.codes(version) {
        [] => Just(ReasonCode::SUCCESS).boxed(),
        codes => prop_oneof![Just(0), select(codes)].prop_map(ReasonCode).boxed(),
    }
}

static LONG: [u8; 65_535] = [b'x'; 65_535];

/// Text up to what a length of two bytes can say, with any character but U+0000.
fn text() -> BoxedStrategy<&'static str> {
    let short = prop_oneof![
        "[a-z]{0,8}",
        vec(any::<char>(), 0..10).prop_map(|chars| chars.into_iter().filter(|c| *c != '\0').collect()),
    ];
    let long = prop_oneof![2 => 100..300_usize, 1 => 65_500..=65_535_usize];
    prop_oneof![
        40 => short.prop_map(|text: String| &*text.leak()),
        3 => long.prop_map(|len| std::str::from_utf8(&LONG[..len]).unwrap()),
    ]
    .boxed()
}

fn bytes() -> BoxedStrategy<&'static [u8]> {
    prop_oneof![
        20 => vec(any::<u8>(), 0..20).prop_map(|bytes| &*bytes.leak()),
        1 => (0..=65_535_usize).prop_map(|len| &LONG[..len]),
    ]
    .boxed()
}

/// Lengths around those where the remaining length takes a byte more.
fn payload() -> BoxedStrategy<&'static [u8]> {
    let long = prop_oneof![4 => 100..150_usize, 1 => 16_370..16_390_usize];
    prop_oneof![
        4 => vec(any::<u8>(), 0..20).prop_map(|bytes| &*bytes.leak()),
        1 => long.prop_map(|len| &LONG[..len]),
    ]
    .boxed()
}

fn topic() -> BoxedStrategy<&'static str> {
    let chars = vec(any::<char>(), 1..12).prop_map(|chars| {
        let plain = |c| if matches!(c, '+' | '#' | '\0') { '/' } else { c };
        chars.into_iter().map(plain).collect()
    });
    prop_oneof![3 => "[a-c]{0,3}(/[a-c]{0,3}){1,6}", 3 => chars, 1 => Just("/".repeat(31))]
        .prop_map(|topic: String| &*topic.leak())
        .boxed()
}

fn filter() -> BoxedStrategy<&'static str> {
    let start = prop_oneof![6 => Just(""), 1 => Just("$share/group/"), 1 => Just("$SYS/")];
    let long = (start, topic(), "(/\\+){0,2}", select(vec!["", "/#", "/+/#"]))
        .prop_map(|(start, topic, plus, end)| &*format!("{start}{topic}{plus}{end}").leak())
        .prop_filter("levels", |filter| filter.split('/').count() <= 32);
    let short = select(vec!["#", "+", "/", "+/#", "/+", "+/+/a", "$share/g/#", "$share/g//"]);
    prop_oneof![3 => long, 1 => short].boxed()
}

/// Properties that may stand there together, in any order.
fn properties(version: Version, place: Place) -> BoxedStrategy<Vec<Property<'static>>> {
    if version == Version::V311 {
        return Just(vec![]).boxed();
    }
    let kinds = place.properties().iter().map(|id| property(*id));
    let list = vec(Union::new(kinds), 0..12).prop_map(move |mut list| {
        let mut seen = Vec::new();
        list.retain(|property| {
            let name = name(property);
            let may_repeat =
                name == "UserProperty" || (name == "SubscriptionIdentifier" && place == Place::Publish);
            let is_new = !seen.contains(&name);
            seen.push(name);
            may_repeat || is_new
        });
        if !seen.iter().any(|name| name == "AuthenticationMethod") {
            list.retain(|property| !matches!(property, Property::AuthenticationData(_)));
        }
        list
    });
    prop_oneof![1 => Just(vec![]), 3 => list].boxed()
}

fn property(id: u8) -> BoxedStrategy<Property<'static>> {
    use Property as P;
    let flag = 0..=1_u8;
    let short = prop_oneof![any::<u16>(), Just(0), Just(u16::MAX)];
    let positive = 1..=u16::MAX;
    let long = prop_oneof![any::<u32>(), Just(0), Just(u32::MAX)];
    match id {
        0x01 => flag.prop_map(P::PayloadFormatIndicator).boxed(),
        0x02 => long.prop_map(P::MessageExpiryInterval).boxed(),
        0x03 => text().prop_map(P::ContentType).boxed(),
        0x08 => topic().prop_map(P::ResponseTopic).boxed(),
        0x09 => bytes().prop_map(P::CorrelationData).boxed(),
        0x0b => prop_oneof![1..300_u32, 1..1_u32 << 28, Just((1 << 28) - 1)]
            .prop_map(P::SubscriptionIdentifier)
            .boxed(),
        0x11 => long.prop_map(P::SessionExpiryInterval).boxed(),
        0x12 => text().prop_map(P::AssignedClientIdentifier).boxed(),
        0x13 => short.prop_map(P::ServerKeepAlive).boxed(),
        0x15 => text().prop_map(P::AuthenticationMethod).boxed(),
        0x16 => bytes().prop_map(P::AuthenticationData).boxed(),
        0x17 => flag.prop_map(P::RequestProblemInformation).boxed(),
        0x18 => long.prop_map(P::WillDelayInterval).boxed(),
        0x19 => flag.prop_map(P::RequestResponseInformation).boxed(),
        0x1a => text().prop_map(P::ResponseInformation).boxed(),
        0x1c => text().prop_map(P::ServerReference).boxed(),
        0x1f => text().prop_map(P::ReasonString).boxed(),
        0x21 => positive.prop_map(P::ReceiveMaximum).boxed(),
        0x22 => short.prop_map(P::TopicAliasMaximum).boxed(),
        0x23 => positive.prop_map(P::TopicAlias).boxed(),
        0x24 => flag.prop_map(P::MaximumQoS).boxed(),
        0x25 => flag.prop_map(P::RetainAvailable).boxed(),
        0x26 => (text(), text()).prop_map(|(name, value)| P::UserProperty(name, value)).boxed(),
        0x27 => (1..=u32::MAX).prop_map(P::MaximumPacketSize).boxed(),
        0x28 => flag.prop_map(P::WildcardSubscriptionAvailable).boxed(),
        0x29 => flag.prop_map(P::SubscriptionIdentifierAvailable).boxed(),
        0x2a => flag.prop_map(P::SharedSubscriptionAvailable).boxed(),
        _ => panic!("there is no property {id:#04x}"),
    }
}
