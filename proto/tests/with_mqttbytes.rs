//! The same packets through `mqttbytes` 0.6: what it encodes we decode to equal fields, and the other way round.
//! What it cannot read or write is listed at `strategy::For::MqttBytes`.

use bytes::BytesMut;
use mqttbytes::{Error, Protocol, QoS as TheirQoS, v4, v5};
use proptest::prelude::*;
use sonde_proto::mqtt::{Filter, Packet, Property, QoS, ReasonCode, RetainHandling, Version, Will};

use crate::model::{Body, LIMIT, Model};
use crate::strategy::{For, packet};

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn packets_of_3_1_1(model in packet(Version::V311, For::MqttBytes)) {
        let theirs = to_v4(&model);
        let bytes = write_v4(&theirs).unwrap();
        prop_assert_eq!(Model::decode(&bytes, Version::V311), model.clone());
        let mut ours = BytesMut::from(&model.encode(Version::V311)[..]);
        prop_assert_eq!(v4::read(&mut ours, LIMIT).unwrap(), theirs);
        prop_assert!(ours.is_empty());
    }

    #[test]
    fn packets_of_5_0(model in packet(Version::V5, For::MqttBytes)) {
        let theirs = to_v5(&model);
        let bytes = write_v5(&theirs).unwrap();
        // It writes properties in an order of its own.
        prop_assert_eq!(Model::decode(&bytes, Version::V5).sorted(), model.clone().sorted());
        let mut ours = BytesMut::from(&model.encode(Version::V5)[..]);
        prop_assert_eq!(v5::read(&mut ours, LIMIT).unwrap(), theirs);
        prop_assert!(ours.is_empty());
    }
}

#[test]
fn a_disconnect_without_properties_is_understood() {
    use v5::DisconnectReasonCode as Code;
    for reason in [Code::NormalDisconnection, Code::DisconnectWithWillMessage, Code::QuotaExceeded] {
        let bytes =
            write_v5(&v5::Packet::Disconnect(v5::Disconnect { reason_code: reason, properties: None }))
                .unwrap();
        let Body::Packet(Packet::Disconnect(ours)) = Model::decode(&bytes, Version::V5).body else {
            panic!()
        };
        assert_eq!(ours.reason.0, reason as u8);
    }
}

fn to_v4(model: &Model<'static>) -> v4::Packet {
    use v4::ConnectReturnCode as Code;
    match &model.body {
        Body::Packet(Packet::Connect(p)) => v4::Packet::Connect(v4::Connect {
            protocol: Protocol::V4,
            keep_alive: p.keep_alive,
            client_id: p.client_id.into(),
            clean_session: p.clean_start,
            last_will: p
                .will
                .map(|will| v4::LastWill::new(will.topic, will.payload, qos(will.qos), will.retain)),
            login: login(p.username, p.password).map(|(username, password)| v4::Login { username, password }),
        }),
        Body::Packet(Packet::ConnAck(p)) => {
            let codes = [
                Code::Success,
                Code::RefusedProtocolVersion,
                Code::BadClientId,
                Code::ServiceUnavailable,
                Code::BadUserNamePassword,
                Code::NotAuthorized,
            ];
            v4::Packet::ConnAck(v4::ConnAck::new(
                find(&codes, |code| code as u8, p.reason),
                p.session_present,
            ))
        }
        Body::Packet(Packet::Publish(p)) => v4::Packet::Publish(v4::Publish {
            dup: p.dup,
            qos: qos(p.qos),
            retain: p.retain,
            topic: p.topic.into(),
            pkid: p.packet_id,
            payload: p.payload.into(),
        }),
        Body::Packet(Packet::PubAck(p)) => v4::Packet::PubAck(v4::PubAck::new(p.packet_id)),
        Body::Packet(Packet::PubRec(p)) => v4::Packet::PubRec(v4::PubRec::new(p.packet_id)),
        Body::Packet(Packet::PubRel(p)) => v4::Packet::PubRel(v4::PubRel::new(p.packet_id)),
        Body::Packet(Packet::PubComp(p)) => v4::Packet::PubComp(v4::PubComp::new(p.packet_id)),
        Body::Subscribe(pkid, filters) => {
            let filters =
                filters.iter().map(|f| v4::SubscribeFilter::new(f.filter.into(), qos(f.qos))).collect();
            v4::Packet::Subscribe(v4::Subscribe { pkid: *pkid, filters })
        }
        Body::Packet(Packet::SubAck(p)) => {
            let codes = p.reasons.iter().map(|code| (*code).try_into().unwrap()).collect();
            v4::Packet::SubAck(v4::SubAck::new(p.packet_id, codes))
        }
        Body::Unsubscribe(pkid, filters) => {
            let topics = filters.iter().map(|filter| (*filter).into()).collect();
            v4::Packet::Unsubscribe(v4::Unsubscribe { pkid: *pkid, topics })
        }
        Body::Packet(Packet::UnsubAck(p)) => v4::Packet::UnsubAck(v4::UnsubAck::new(p.packet_id)),
        Body::Packet(Packet::PingReq) => v4::Packet::PingReq,
        Body::Packet(Packet::PingResp) => v4::Packet::PingResp,
        Body::Packet(Packet::Disconnect(_)) => v4::Packet::Disconnect,
        Body::Packet(packet) => panic!("not drawn: {packet:?}"),
    }
}

fn write_v4(packet: &v4::Packet) -> Result<Vec<u8>, Error> {
    let mut out = BytesMut::new();
    match packet {
        v4::Packet::Connect(p) => p.write(&mut out),
        v4::Packet::ConnAck(p) => p.write(&mut out),
        v4::Packet::Publish(p) => p.write(&mut out),
        v4::Packet::PubAck(p) => p.write(&mut out),
        v4::Packet::PubRec(p) => p.write(&mut out),
        v4::Packet::PubRel(p) => p.write(&mut out),
        v4::Packet::PubComp(p) => p.write(&mut out),
        v4::Packet::Subscribe(p) => p.write(&mut out),
        v4::Packet::SubAck(p) => p.write(&mut out),
        v4::Packet::Unsubscribe(p) => p.write(&mut out),
        v4::Packet::UnsubAck(p) => p.write(&mut out),
        v4::Packet::PingReq => v4::PingReq.write(&mut out),
        v4::Packet::PingResp => v4::PingResp.write(&mut out),
        v4::Packet::Disconnect => v4::Disconnect.write(&mut out),
    }?;
    Ok(out.to_vec())
}

/// The value of the first property of this kind, as its field wants it.
macro_rules! pick {
    ($list:expr, $kind:ident) => {
        $list.iter().find_map(
            |property| if let Property::$kind(value) = *property { Some(value.into()) } else { None },
        )
    };
}

/// PUBACK, PUBREC, PUBREL and PUBCOMP differ only in their types.
macro_rules! ack {
    ($ack:expr, $list:expr, $name:ident, $properties:ident, $reason:ident, [$($code:ident),*]) => {
        v5::Packet::$name(v5::$name {
            pkid: $ack.packet_id,
            reason: find(&[$(v5::$reason::$code),*], |code| code as u8, $ack.reason),
            properties: some($list, |list| v5::$properties {
                reason_string: pick!(list, ReasonString),
                user_properties: user(list),
            }),
        })
    };
}

fn to_v5(model: &Model<'static>) -> v5::Packet {
    let list = &model.properties[..];
    match &model.body {
        Body::Packet(Packet::Connect(p)) => v5::Packet::Connect(v5::Connect {
            protocol: Protocol::V5,
            keep_alive: p.keep_alive,
            client_id: p.client_id.into(),
            clean_session: p.clean_start,
            last_will: p.will.map(|will| last_will(will, &model.will_properties)),
            login: login(p.username, p.password).map(|(username, password)| v5::Login { username, password }),
            properties: some(list, |list| v5::ConnectProperties {
                session_expiry_interval: pick!(list, SessionExpiryInterval),
                receive_maximum: pick!(list, ReceiveMaximum),
                max_packet_size: pick!(list, MaximumPacketSize),
                topic_alias_max: pick!(list, TopicAliasMaximum),
                request_response_info: pick!(list, RequestResponseInformation),
                request_problem_info: pick!(list, RequestProblemInformation),
                user_properties: user(list),
                authentication_method: pick!(list, AuthenticationMethod),
                authentication_data: pick!(list, AuthenticationData),
            }),
        }),
        Body::Packet(Packet::ConnAck(p)) => v5::Packet::ConnAck(v5::ConnAck {
            session_present: p.session_present,
            code: find(&CONNACK, |code| code as u8, p.reason),
            properties: some(list, connack_properties),
        }),
        Body::Packet(Packet::Publish(p)) => v5::Packet::Publish(v5::Publish {
            dup: p.dup,
            qos: qos(p.qos),
            retain: p.retain,
            topic: p.topic.into(),
            pkid: p.packet_id,
            properties: some(list, |list| v5::PublishProperties {
                payload_format_indicator: pick!(list, PayloadFormatIndicator),
                message_expiry_interval: pick!(list, MessageExpiryInterval),
                topic_alias: pick!(list, TopicAlias),
                response_topic: pick!(list, ResponseTopic),
                correlation_data: pick!(list, CorrelationData),
                user_properties: user(list),
                subscription_identifiers: subscription_identifiers(list).collect(),
                content_type: pick!(list, ContentType),
            }),
            payload: p.payload.into(),
        }),
        Body::Packet(Packet::PubAck(p)) => ack!(
            p,
            list,
            PubAck,
            PubAckProperties,
            PubAckReason,
            [
                Success,
                NoMatchingSubscribers,
                UnspecifiedError,
                ImplementationSpecificError,
                NotAuthorized,
                TopicNameInvalid,
                PacketIdentifierInUse,
                QuotaExceeded,
                PayloadFormatInvalid
            ]
        ),
        Body::Packet(Packet::PubRec(p)) => ack!(
            p,
            list,
            PubRec,
            PubRecProperties,
            PubRecReason,
            [
                Success,
                NoMatchingSubscribers,
                UnspecifiedError,
                ImplementationSpecificError,
                NotAuthorized,
                TopicNameInvalid,
                PacketIdentifierInUse,
                QuotaExceeded,
                PayloadFormatInvalid
            ]
        ),
        Body::Packet(Packet::PubRel(p)) => {
            ack!(p, list, PubRel, PubRelProperties, PubRelReason, [Success, PacketIdentifierNotFound])
        }
        Body::Packet(Packet::PubComp(p)) => {
            ack!(p, list, PubComp, PubCompProperties, PubCompReason, [Success, PacketIdentifierNotFound])
        }
        Body::Subscribe(pkid, filters) => v5::Packet::Subscribe(v5::Subscribe {
            pkid: *pkid,
            filters: filters.iter().map(subscribe_filter).collect(),
            properties: some(list, |list| v5::SubscribeProperties {
                id: subscription_identifiers(list).next(),
                user_properties: user(list),
            }),
        }),
        Body::Packet(Packet::SubAck(p)) => v5::Packet::SubAck(v5::SubAck {
            pkid: p.packet_id,
            return_codes: p.reasons.iter().map(|code| (*code).try_into().unwrap()).collect(),
            properties: some(list, |list| v5::SubAckProperties {
                reason_string: pick!(list, ReasonString),
                user_properties: user(list),
            }),
        }),
        Body::Unsubscribe(pkid, filters) => v5::Packet::Unsubscribe(v5::Unsubscribe {
            pkid: *pkid,
            filters: filters.iter().map(|filter| (*filter).into()).collect(),
            properties: some(list, |list| v5::UnsubscribeProperties { user_properties: user(list) }),
        }),
        Body::Packet(Packet::UnsubAck(p)) => v5::Packet::UnsubAck(v5::UnsubAck {
            pkid: p.packet_id,
            reasons: p
                .reasons
                .iter()
                .map(|code| find(&UNSUBACK, |code| code as u8, ReasonCode(*code)))
                .collect(),
            properties: some(list, |list| v5::UnsubAckProperties {
                reason_string: pick!(list, ReasonString),
                user_properties: user(list),
            }),
        }),
        Body::Packet(Packet::PingReq) => v5::Packet::PingReq,
        Body::Packet(Packet::PingResp) => v5::Packet::PingResp,
        Body::Packet(Packet::Disconnect(p)) => v5::Packet::Disconnect(v5::Disconnect {
            reason_code: p.reason.0.try_into().unwrap(),
            properties: some(list, |list| v5::DisconnectProperties {
                session_expiry_interval: pick!(list, SessionExpiryInterval),
                reason_string: pick!(list, ReasonString),
                user_properties: user(list),
                server_reference: pick!(list, ServerReference),
            }),
        }),
        Body::Packet(packet) => panic!("not drawn: {packet:?}"),
    }
}

fn connack_properties(list: &[Property<'static>]) -> v5::ConnAckProperties {
    v5::ConnAckProperties {
        session_expiry_interval: pick!(list, SessionExpiryInterval),
        receive_max: pick!(list, ReceiveMaximum),
        max_qos: pick!(list, MaximumQoS),
        retain_available: pick!(list, RetainAvailable),
        max_packet_size: pick!(list, MaximumPacketSize),
        assigned_client_identifier: pick!(list, AssignedClientIdentifier),
        topic_alias_max: pick!(list, TopicAliasMaximum),
        reason_string: pick!(list, ReasonString),
        user_properties: user(list),
        wildcard_subscription_available: pick!(list, WildcardSubscriptionAvailable),
        subscription_identifiers_available: pick!(list, SubscriptionIdentifierAvailable),
        shared_subscription_available: pick!(list, SharedSubscriptionAvailable),
        server_keep_alive: pick!(list, ServerKeepAlive),
        response_information: pick!(list, ResponseInformation),
        server_reference: pick!(list, ServerReference),
        authentication_method: pick!(list, AuthenticationMethod),
        authentication_data: pick!(list, AuthenticationData),
    }
}

fn last_will(will: Will<'static>, list: &[Property<'static>]) -> v5::LastWill {
    let properties = some(list, |list| v5::WillProperties {
        delay_interval: pick!(list, WillDelayInterval),
        payload_format_indicator: pick!(list, PayloadFormatIndicator),
        message_expiry_interval: pick!(list, MessageExpiryInterval),
        content_type: pick!(list, ContentType),
        response_topic: pick!(list, ResponseTopic),
        correlation_data: pick!(list, CorrelationData),
        user_properties: user(list),
    });
    v5::LastWill { properties, ..v5::LastWill::new(will.topic, will.payload, qos(will.qos), will.retain) }
}

fn subscribe_filter(filter: &Filter<'_>) -> v5::SubscribeFilter {
    v5::SubscribeFilter {
        path: filter.filter.into(),
        qos: qos(filter.qos),
        nolocal: filter.no_local,
        preserve_retain: filter.retain_as_published,
        retain_forward_rule: match filter.retain_handling {
            RetainHandling::Send => v5::RetainForwardRule::OnEverySubscribe,
            RetainHandling::SendIfNew => v5::RetainForwardRule::OnNewSubscribe,
            RetainHandling::Never => v5::RetainForwardRule::Never,
        },
    }
}

fn write_v5(packet: &v5::Packet) -> Result<Vec<u8>, Error> {
    let mut out = BytesMut::new();
    match packet {
        v5::Packet::Connect(p) => p.write(&mut out),
        v5::Packet::ConnAck(p) => {
            // Without properties it would forget their length, which is not optional here.
            let mut p = p.clone();
            p.properties.get_or_insert_with(v5::ConnAckProperties::new);
            p.write(&mut out)
        }
        v5::Packet::Publish(p) => p.write(&mut out),
        v5::Packet::PubAck(p) => p.write(&mut out),
        v5::Packet::PubRec(p) => p.write(&mut out),
        v5::Packet::PubRel(p) => p.write(&mut out),
        v5::Packet::PubComp(p) => p.write(&mut out),
        v5::Packet::Subscribe(p) => p.write(&mut out),
        v5::Packet::SubAck(p) => p.write(&mut out),
        v5::Packet::Unsubscribe(p) => p.write(&mut out),
        v5::Packet::UnsubAck(p) => p.write(&mut out),
        v5::Packet::PingReq => v5::PingReq.write(&mut out),
        v5::Packet::PingResp => v5::PingResp.write(&mut out),
        v5::Packet::Disconnect(p) => p.write(&mut out),
    }?;
    Ok(out.to_vec())
}

const CONNACK: [v5::ConnectReturnCode; 22] = {
    use v5::ConnectReturnCode::*;
    [
        Success,
        UnspecifiedError,
        MalformedPacket,
        ProtocolError,
        ImplementationSpecificError,
        UnsupportedProtocolVersion,
        ClientIdentifierNotValid,
        BadUserNamePassword,
        NotAuthorized,
        ServerUnavailable,
        ServerBusy,
        Banned,
        BadAuthenticationMethod,
        TopicNameInvalid,
        PacketTooLarge,
        QuotaExceeded,
        PayloadFormatInvalid,
        RetainNotSupported,
        QoSNotSupported,
        UseAnotherServer,
        ServerMoved,
        ConnectionRateExceeded,
    ]
};

const UNSUBACK: [v5::UnsubAckReason; 7] = {
    use v5::UnsubAckReason::*;
    [
        Success,
        NoSubscriptionExisted,
        UnspecifiedError,
        ImplementationSpecificError,
        NotAuthorized,
        TopicFilterInvalid,
        PacketIdentifierInUse,
    ]
};

/// The code of this number: most of its types have no way from a number.
fn find<T: Copy>(codes: &[T], number: impl Fn(T) -> u8, code: ReasonCode) -> T {
    *codes.iter().find(|known| number(**known) == code.0).unwrap()
}

fn some<T>(list: &[Property<'static>], fields: impl FnOnce(&[Property<'static>]) -> T) -> Option<T> {
    if list.is_empty() { None } else { Some(fields(list)) }
}

fn user(list: &[Property<'_>]) -> Vec<(String, String)> {
    let pair = |p: &Property<'_>| {
        if let Property::UserProperty(k, v) = *p { Some((k.into(), v.into())) } else { None }
    };
    list.iter().filter_map(pair).collect()
}

fn subscription_identifiers(list: &[Property<'_>]) -> impl Iterator<Item = usize> {
    list.iter()
        .filter_map(|p| if let Property::SubscriptionIdentifier(id) = *p { Some(id as usize) } else { None })
}

fn login(username: Option<&str>, password: Option<&[u8]>) -> Option<(String, String)> {
    let password = password.map(|bytes| std::str::from_utf8(bytes).unwrap());
    let is_there = username.is_some() || password.is_some();
    is_there.then(|| (username.unwrap_or_default().into(), password.unwrap_or_default().into()))
}

fn qos(qos: QoS) -> TheirQoS {
    mqttbytes::qos(qos as u8).unwrap()
}
