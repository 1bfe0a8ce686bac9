//! CONNECT (section 3.1).

use super::error::DecodeError;
use super::packet::Version;
use super::property::{Properties, place};
use super::publish::QoS;
use super::topic::validate_topic;
use super::wire::{Reader, put_binary, put_packet, put_u16};

/// What the server publishes when the connection ends without a DISCONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Will<'a> {
    /// Where.
    pub topic: &'a str,
    /// What.
    pub payload: &'a [u8],
    /// How surely.
    pub qos: QoS,
    /// Whether it is kept for later subscribers.
    pub retain: bool,
    /// MQTT 5 properties.
    pub properties: Properties<'a>,
}

/// The first packet of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect<'a> {
    /// The version that the connection speaks.
    pub version: Version,
    /// Whether to forget an earlier session.
    pub clean_start: bool,
    /// Seconds between packets at most; 0 is for ever.
    pub keep_alive: u16,
    /// MQTT 5 properties.
    pub properties: Properties<'a>,
    /// The client id; empty to be given one.
    pub client_id: &'a str,
    /// The will.
    pub will: Option<Will<'a>>,
    /// The user name.
    pub username: Option<&'a str>,
    /// The password.
    pub password: Option<&'a [u8]>,
}

impl<'a> Connect<'a> {
    pub(super) fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let name = reader.text()?;
        let level = reader.u8()?;
        let version = match (name, level) {
            ("MQTT", 4) => Version::V311,
            ("MQTT", 5) => Version::V5,
            ("MQTT", other) | ("MQIsdp", other) => return Err(DecodeError::UnsupportedVersion(other)),
            _ => return Err(DecodeError::Protocol("a protocol name other than MQTT")),
        };
        let flags = reader.u8()?;
        if flags & 1 != 0 {
            return Err(DecodeError::Malformed("the reserved flag of CONNECT is set"));
        }
        let keep_alive = reader.u16()?;
        let v5 = version == Version::V5;
        let properties =
            if v5 { Properties::read(&mut reader, place::CONNECT)? } else { Properties::default() };
        let client_id = reader.text()?;
        let has_will = flags & 4 != 0;
        if !has_will && flags & 0b0011_1000 != 0 {
            return Err(DecodeError::Malformed("will flags without a will"));
        }
        let mut will = None;
        if has_will {
            let qos = QoS::from_bits(flags >> 3 & 3)?;
            let properties =
                if v5 { Properties::read(&mut reader, place::WILL)? } else { Properties::default() };
            let topic = reader.text()?;
            validate_topic(topic)?;
            let payload = reader.binary()?;
            will = Some(Will { topic, payload, qos, retain: flags & 0x20 != 0, properties });
        }
        let (has_username, has_password) = (flags & 0x80 != 0, flags & 0x40 != 0);
        if !v5 && has_password && !has_username {
            return Err(DecodeError::Malformed("a password without a user name"));
        }
        let username = if has_username { Some(reader.text()?) } else { None };
        let password = if has_password { Some(reader.binary()?) } else { None };
        reader.finish()?;
        let clean_start = flags & 2 != 0;
        Ok(Self { version, clean_start, keep_alive, properties, client_id, will, username, password })
    }

    /// Appends the packet.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let v5 = self.version == Version::V5;
        let mut flags = u8::from(self.clean_start) << 1;
        if let Some(will) = &self.will {
            flags |= 4 | (will.qos as u8) << 3 | u8::from(will.retain) << 5;
        }
        flags |= u8::from(self.username.is_some()) << 7 | u8::from(self.password.is_some()) << 6;
        put_packet(0x10, out, |out| {
            put_binary(b"MQTT", out);
            out.extend_from_slice(&[if v5 { 5 } else { 4 }, flags]);
            put_u16(self.keep_alive, out);
            if v5 {
                self.properties.write(out);
            }
            put_binary(self.client_id.as_bytes(), out);
            if let Some(will) = &self.will {
                if v5 {
                    will.properties.write(out);
                }
                put_binary(will.topic.as_bytes(), out);
                put_binary(will.payload, out);
            }
            if let Some(username) = self.username {
                put_binary(username.as_bytes(), out);
            }
            if let Some(password) = self.password {
                put_binary(password, out);
            }
        });
    }
}
