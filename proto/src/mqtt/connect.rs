//! CONNECT (section 3.1), and that of MQTT 3.1, which differs in its first bytes alone.

use super::error::DecodeError;
use super::packet::Version;
use super::property::{Properties, place};
use super::publish::QoS;
use super::topic::validate_topic;
use super::wire::{Reader, put_binary, put_packet, put_u16, varint};

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
    /// Whether it says to be MQTT 3.1 (protocol name `MQIsdp`, level 3); what follows is as in 3.1.1, and so is
    /// `version`.
    pub is_3_1: bool,
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
        let (version, is_3_1) = read_version(&mut reader)?;
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
        Ok(Self { version, is_3_1, clean_start, keep_alive, properties, client_id, will, username, password })
    }

    /// The version that the start of a CONNECT asks for, for an answer to one that is malformed further on. `None`
    /// where the bytes are no CONNECT, or of a version that there is not.
    #[must_use]
    pub fn version_of(bytes: &[u8]) -> Option<Version> {
        let rest = bytes.split_first().filter(|(first, _)| **first == 0x10)?.1;
        let (_, len) = varint(rest).ok()??;
        let mut reader = Reader::new(rest.get(len..)?);
        read_version(&mut reader).ok().map(|(version, _)| version)
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
            let (name, level): (&[u8], u8) = match (self.is_3_1, v5) {
                (true, _) => (b"MQIsdp", 3),
                (false, false) => (b"MQTT", 4),
                (false, true) => (b"MQTT", 5),
            };
            put_binary(name, out);
            out.extend_from_slice(&[level, flags]);
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

/// Protocol name and level: the version, and whether it is 3.1.
fn read_version(reader: &mut Reader<'_>) -> Result<(Version, bool), DecodeError> {
    let name = reader.text()?;
    match (name, reader.u8()?) {
        ("MQTT", 4) => Ok((Version::V311, false)),
        ("MQTT", 5) => Ok((Version::V5, false)),
        ("MQIsdp", 3) => Ok((Version::V311, true)),
        ("MQTT" | "MQIsdp", other) => Err(DecodeError::UnsupportedVersion(other)),
        _ => Err(DecodeError::Protocol("a protocol name other than MQTT")),
    }
}
