//! The same packets through `mqtt-protocol-core` 0.7: the same bytes, and the same fields from them. What it refuses
//! although the standard allows it is listed at `strategy::For::Core`.

use mqtt_protocol_core::mqtt::packet::{
    self as core, DecodeResult, GenericPacketTrait, Packet as Theirs, PayloadFormat, Qos, SubEntry, SubOpts,
    VariableByteInteger, v3_1_1, v5_0,
};
use mqtt_protocol_core::mqtt::result_code::MqttError;
use proptest::prelude::*;
use sonde_proto::mqtt::{Ack, Filter, Packet, Property, QoS, ReasonCode, RetainHandling, Version, decode};

use crate::damage::{VERSIONS, seal_some};
use crate::exemplar;
use crate::model::{Body, Model};
use crate::random::fuzz;
use crate::strategy::{For, packet};

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn packets_of_3_1_1(model in packet(Version::V311, For::Core)) {
        check(&model, Version::V311, &to_v311(&model).unwrap());
    }

    #[test]
    fn connect_of_3_1_is_that_of_3_1_1_behind_its_first_bytes(model in packet(Version::V311, For::Core)) {
        if let Body::Packet(Packet::Connect(mut connect)) = model.body {
            let theirs = to_v311(&model).unwrap().to_continuous_buffer();
            connect.is_3_1 = true;
            let old = Model { body: Body::Packet(Packet::Connect(connect)), ..model };
            let behind_level = &exemplar::body(&theirs)[7..];
            let bytes = exemplar::seal(0x10, &[b"\x00\x06MQIsdp\x03", behind_level].concat());
            prop_assert_eq!(old.encode(Version::V311), bytes.clone());
            prop_assert_eq!(Model::decode(&bytes, Version::V5), old);
        }
    }

    #[test]
    fn packets_of_5_0(model in packet(Version::V5, For::Core)) {
        check(&model, Version::V5, &to_v5(&model).unwrap());
    }
}

#[test]
fn fuzz_mqtt_oracle() {
    let exemplars: Vec<_> = exemplar::all().into_iter().map(|(_, _, bytes)| bytes).collect();
    fuzz(&exemplars, seal_some, |bytes| VERSIONS.iter().for_each(|version| takes_too(bytes, *version)));
}

/// Fails where we take a packet that it refuses. (It takes much that we refuse: U+0000, wildcards in topics, packet
/// identifier 0, lengths that are not in their shortest form.)
fn takes_too(bytes: &[u8], version: Version) {
    let Ok(Some((packet, len))) = decode(bytes, version, 1 << 20) else { return };
    let version = if let Packet::Connect(connect) = packet { connect.version } else { version };
    let is_known = match packet {
        Packet::Connect(p) => p.is_3_1 || (p.password.is_some() && p.username.is_none()),
        Packet::Publish(p) => p.properties.iter().any(|property| property == Property::TopicAlias(0)),
        Packet::Disconnect(p) => p.reason.0 == 0x8c,
        _ => false,
    };
    let theirs = parse(&bytes[..len], version);
    assert!(is_known || theirs.is_ok(), "{packet:?}: {:?}", theirs.err());
}

fn check(model: &Model<'_>, version: Version, theirs: &Theirs) {
    let bytes = theirs.to_continuous_buffer();
    assert_eq!(Model::decode(&bytes, version), *model);
    // It keeps the order of properties, and every packet has one shortest form.
    let ours = model.encode(version);
    assert_eq!(ours, bytes);
    assert_eq!(parse(&ours, version).unwrap(), *theirs);
}

/// Reads a packet with its parsers, which want the fixed header taken off.
fn parse(packet: &[u8], version: Version) -> Result<Theirs, MqttError> {
    let DecodeResult::Ok(len, size) = VariableByteInteger::decode_stream(&packet[1..]) else { panic!() };
    let (flags, body) = (packet[0] & 0xf, &packet[1 + size..]);
    assert_eq!(len.to_u32() as usize, body.len());
    let (packet, consumed) = match version {
        Version::V311 => parse_v311(packet[0] >> 4, flags, body)?,
        Version::V5 => parse_v5(packet[0] >> 4, flags, body)?,
    };
    assert_eq!(consumed, body.len());
    Ok(packet)
}

fn parse_v311(packet_type: u8, flags: u8, body: &[u8]) -> Result<(Theirs, usize), MqttError> {
    fn of<T: Into<Theirs>>((packet, size): (T, usize)) -> (Theirs, usize) {
        (packet.into(), size)
    }
    Ok(match packet_type {
        1 => of(v3_1_1::Connect::parse(body)?),
        2 => of(v3_1_1::Connack::parse(body)?),
        3 => of(v3_1_1::Publish::parse(flags, body.into())?),
        4 => of(v3_1_1::Puback::parse(body)?),
        5 => of(v3_1_1::Pubrec::parse(body)?),
        6 => of(v3_1_1::Pubrel::parse(body)?),
        7 => of(v3_1_1::Pubcomp::parse(body)?),
        8 => of(v3_1_1::Subscribe::parse(body)?),
        9 => of(v3_1_1::Suback::parse(body)?),
        10 => of(v3_1_1::Unsubscribe::parse(body)?),
        11 => of(v3_1_1::Unsuback::parse(body)?),
        12 => of(v3_1_1::Pingreq::parse(body)?),
        13 => of(v3_1_1::Pingresp::parse(body)?),
        14 => of(v3_1_1::Disconnect::parse(body)?),
        _ => panic!("packet type {packet_type}"),
    })
}

fn parse_v5(packet_type: u8, flags: u8, body: &[u8]) -> Result<(Theirs, usize), MqttError> {
    fn of<T: Into<Theirs>>((packet, size): (T, usize)) -> (Theirs, usize) {
        (packet.into(), size)
    }
    Ok(match packet_type {
        1 => of(v5_0::Connect::parse(body)?),
        2 => of(v5_0::Connack::parse(body)?),
        3 => of(v5_0::Publish::parse(flags, body.into())?),
        4 => of(v5_0::Puback::parse(body)?),
        5 => of(v5_0::Pubrec::parse(body)?),
        6 => of(v5_0::Pubrel::parse(body)?),
        7 => of(v5_0::Pubcomp::parse(body)?),
        8 => of(v5_0::Subscribe::parse(body)?),
        9 => of(v5_0::Suback::parse(body)?),
        10 => of(v5_0::Unsubscribe::parse(body)?),
        11 => of(v5_0::Unsuback::parse(body)?),
        12 => of(v5_0::Pingreq::parse(body)?),
        13 => of(v5_0::Pingresp::parse(body)?),
        14 => of(v5_0::Disconnect::parse(body)?),
        _ => of(v5_0::Auth::parse(body)?),
    })
}

fn to_v311(model: &Model<'_>) -> Result<Theirs, MqttError> {
    Ok(match &model.body {
        Body::Packet(Packet::Connect(p)) => {
            let mut builder =
                v3_1_1::Connect::builder().clean_session(p.clean_start).keep_alive(p.keep_alive);
            builder = builder.client_id(p.client_id)?;
            if let Some(will) = p.will {
                builder =
                    builder.will_message(will.topic, will.payload.to_vec(), qos(will.qos), will.retain)?;
            }
            if let Some(username) = p.username {
                builder = builder.user_name(username)?;
            }
            if let Some(password) = p.password {
                builder = builder.password(password.to_vec())?;
            }
            builder.build()?.into()
        }
        Body::Packet(Packet::ConnAck(p)) => {
            let code = p.reason.0.try_into().unwrap();
            v3_1_1::Connack::builder().session_present(p.session_present).return_code(code).build()?.into()
        }
        Body::Packet(Packet::Publish(p)) => {
            let mut builder =
                v3_1_1::Publish::builder().topic_name(p.topic)?.qos(qos(p.qos)).retain(p.retain).dup(p.dup);
            if p.qos != QoS::AtMostOnce {
                builder = builder.packet_id(p.packet_id);
            }
            builder.payload(p.payload).build()?.into()
        }
        Body::Packet(Packet::PubAck(p)) => v3_1_1::Puback::builder().packet_id(p.packet_id).build()?.into(),
        Body::Packet(Packet::PubRec(p)) => v3_1_1::Pubrec::builder().packet_id(p.packet_id).build()?.into(),
        Body::Packet(Packet::PubRel(p)) => v3_1_1::Pubrel::builder().packet_id(p.packet_id).build()?.into(),
        Body::Packet(Packet::PubComp(p)) => v3_1_1::Pubcomp::builder().packet_id(p.packet_id).build()?.into(),
        Body::Subscribe(id, filters) => {
            v3_1_1::Subscribe::builder().packet_id(*id).entries(entries(filters)?).build()?.into()
        }
        Body::Packet(Packet::SubAck(p)) => {
            v3_1_1::Suback::builder().packet_id(p.packet_id).return_codes(codes(p.reasons)).build()?.into()
        }
        Body::Unsubscribe(id, filters) => {
            v3_1_1::Unsubscribe::builder().packet_id(*id).entries(filters.iter().copied())?.build()?.into()
        }
        Body::Packet(Packet::UnsubAck(p)) => {
            v3_1_1::Unsuback::builder().packet_id(p.packet_id).build()?.into()
        }
        Body::Packet(Packet::PingReq) => v3_1_1::Pingreq::new().into(),
        Body::Packet(Packet::PingResp) => v3_1_1::Pingresp::new().into(),
        Body::Packet(Packet::Disconnect(_)) => v3_1_1::Disconnect::new().into(),
        Body::Packet(packet) => panic!("not drawn: {packet:?}"),
    })
}

/// A packet with an optional reason code and optional properties.
macro_rules! with_reason {
    ($builder:expr, $reason:expr, $list:expr) => {{
        let (mut builder, reason, list): (_, ReasonCode, core::Properties) = ($builder, $reason, $list);
        if reason != ReasonCode::SUCCESS || !list.is_empty() {
            builder = builder.reason_code(reason.0.try_into().unwrap());
        }
        if !list.is_empty() {
            builder = builder.props(list);
        }
        builder.build()?.into()
    }};
}

fn to_v5(model: &Model<'_>) -> Result<Theirs, MqttError> {
    let list = properties(&model.properties)?;
    Ok(match &model.body {
        Body::Packet(Packet::Connect(p)) => {
            let mut builder = v5_0::Connect::builder().clean_start(p.clean_start).keep_alive(p.keep_alive);
            builder = builder.client_id(p.client_id)?.props(list);
            if let Some(will) = p.will {
                builder =
                    builder.will_message(will.topic, will.payload.to_vec(), qos(will.qos), will.retain)?;
                builder = builder.will_props(properties(&model.will_properties)?);
            }
            if let Some(username) = p.username {
                builder = builder.user_name(username)?;
            }
            if let Some(password) = p.password {
                builder = builder.password(password.to_vec())?;
            }
            builder.build()?.into()
        }
        Body::Packet(Packet::ConnAck(p)) => {
            let code = p.reason.0.try_into().unwrap();
            v5_0::Connack::builder()
                .session_present(p.session_present)
                .reason_code(code)
                .props(list)
                .build()?
                .into()
        }
        Body::Packet(Packet::Publish(p)) => {
            let mut builder =
                v5_0::Publish::builder().topic_name(p.topic)?.qos(qos(p.qos)).retain(p.retain).dup(p.dup);
            if p.qos != QoS::AtMostOnce {
                builder = builder.packet_id(p.packet_id);
            }
            builder.props(list).payload(p.payload).build()?.into()
        }
        Body::Packet(Packet::PubAck(Ack { packet_id, reason, .. })) => {
            with_reason!(v5_0::Puback::builder().packet_id(*packet_id), *reason, list)
        }
        Body::Packet(Packet::PubRec(Ack { packet_id, reason, .. })) => {
            with_reason!(v5_0::Pubrec::builder().packet_id(*packet_id), *reason, list)
        }
        Body::Packet(Packet::PubRel(Ack { packet_id, reason, .. })) => {
            with_reason!(v5_0::Pubrel::builder().packet_id(*packet_id), *reason, list)
        }
        Body::Packet(Packet::PubComp(Ack { packet_id, reason, .. })) => {
            with_reason!(v5_0::Pubcomp::builder().packet_id(*packet_id), *reason, list)
        }
        Body::Subscribe(id, filters) => {
            v5_0::Subscribe::builder().packet_id(*id).props(list).entries(entries(filters)?).build()?.into()
        }
        Body::Packet(Packet::SubAck(p)) => v5_0::Suback::builder()
            .packet_id(p.packet_id)
            .props(list)
            .reason_codes(codes(p.reasons))
            .build()?
            .into(),
        Body::Unsubscribe(id, filters) => {
            let builder = v5_0::Unsubscribe::builder().packet_id(*id).props(list);
            builder.entries(filters.iter().copied())?.build()?.into()
        }
        Body::Packet(Packet::UnsubAck(p)) => v5_0::Unsuback::builder()
            .packet_id(p.packet_id)
            .props(list)
            .reason_codes(codes(p.reasons))
            .build()?
            .into(),
        Body::Packet(Packet::PingReq) => v5_0::Pingreq::new().into(),
        Body::Packet(Packet::PingResp) => v5_0::Pingresp::new().into(),
        Body::Packet(Packet::Disconnect(p)) => with_reason!(v5_0::Disconnect::builder(), p.reason, list),
        Body::Packet(Packet::Auth(p)) => with_reason!(v5_0::Auth::builder(), p.reason, list),
        Body::Packet(packet) => panic!("never drawn: {packet:?}"),
    })
}

fn properties(list: &[Property<'_>]) -> Result<core::Properties, MqttError> {
    list.iter().map(|property| one_property(*property)).collect()
}

fn one_property(property: Property<'_>) -> Result<core::Property, MqttError> {
    use Property as P;
    Ok(match property {
        P::PayloadFormatIndicator(v) => {
            core::PayloadFormatIndicator::new(PayloadFormat::try_from(v).unwrap())?.into()
        }
        P::MessageExpiryInterval(v) => core::MessageExpiryInterval::new(v)?.into(),
        P::ContentType(v) => core::ContentType::new(v)?.into(),
        P::ResponseTopic(v) => core::ResponseTopic::new(v)?.into(),
        P::CorrelationData(v) => core::CorrelationData::new(v.to_vec())?.into(),
        P::SubscriptionIdentifier(v) => core::SubscriptionIdentifier::new(v)?.into(),
        P::SessionExpiryInterval(v) => core::SessionExpiryInterval::new(v)?.into(),
        P::AssignedClientIdentifier(v) => core::AssignedClientIdentifier::new(v)?.into(),
        P::ServerKeepAlive(v) => core::ServerKeepAlive::new(v)?.into(),
        P::AuthenticationMethod(v) => core::AuthenticationMethod::new(v)?.into(),
        P::AuthenticationData(v) => core::AuthenticationData::new(v.to_vec())?.into(),
        P::RequestProblemInformation(v) => core::RequestProblemInformation::new(v)?.into(),
        P::WillDelayInterval(v) => core::WillDelayInterval::new(v)?.into(),
        P::RequestResponseInformation(v) => core::RequestResponseInformation::new(v)?.into(),
        P::ResponseInformation(v) => core::ResponseInformation::new(v)?.into(),
        P::ServerReference(v) => core::ServerReference::new(v)?.into(),
        P::ReasonString(v) => core::ReasonString::new(v)?.into(),
        P::ReceiveMaximum(v) => core::ReceiveMaximum::new(v)?.into(),
        P::TopicAliasMaximum(v) => core::TopicAliasMaximum::new(v)?.into(),
        P::TopicAlias(v) => core::TopicAlias::new(v)?.into(),
        P::MaximumQoS(v) => core::MaximumQos::new(v)?.into(),
        P::RetainAvailable(v) => core::RetainAvailable::new(v)?.into(),
        P::UserProperty(name, value) => core::UserProperty::new(name, value)?.into(),
        P::MaximumPacketSize(v) => core::MaximumPacketSize::new(v)?.into(),
        P::WildcardSubscriptionAvailable(v) => core::WildcardSubscriptionAvailable::new(v)?.into(),
        P::SubscriptionIdentifierAvailable(v) => core::SubscriptionIdentifierAvailable::new(v)?.into(),
        P::SharedSubscriptionAvailable(v) => core::SharedSubscriptionAvailable::new(v)?.into(),
    })
}

fn entries(filters: &[Filter<'_>]) -> Result<Vec<SubEntry>, MqttError> {
    let entry = |filter: &Filter<'_>| {
        let handling = match filter.retain_handling {
            RetainHandling::Send => core::RetainHandling::SendRetained,
            RetainHandling::SendIfNew => core::RetainHandling::SendRetainedIfNotExists,
            RetainHandling::Never => core::RetainHandling::DoNotSendRetained,
        };
        let options = SubOpts::new().set_qos(qos(filter.qos)).set_nl(filter.no_local);
        SubEntry::new(filter.filter, options.set_rap(filter.retain_as_published).set_rh(handling))
    };
    filters.iter().map(entry).collect()
}

fn codes<T: TryFrom<u8, Error: std::fmt::Debug>>(codes: &[u8]) -> Vec<T> {
    codes.iter().map(|code| T::try_from(*code).unwrap()).collect()
}

fn qos(qos: QoS) -> Qos {
    Qos::try_from(qos as u8).unwrap()
}
