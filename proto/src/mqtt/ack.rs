//! The packets that answer: CONNACK, PUBACK and its kin, SUBACK, UNSUBACK, DISCONNECT, AUTH.

use super::error::{DecodeError, ReasonCode};
use super::packet::Version;
use super::property::{Properties, Property, place};
use super::wire::{Reader, put_packet, put_u16};

/// CONNACK (section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnAck<'a> {
    /// Whether the server remembers the session.
    pub session_present: bool,
    /// MQTT 5: a reason code; 3.1.1: a return code from 0 to 5.
    pub reason: ReasonCode,
    /// MQTT 5 properties.
    pub properties: Properties<'a>,
}

impl<'a> ConnAck<'a> {
    pub(super) fn decode(body: &'a [u8], version: Version) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let flags = reader.u8()?;
        if flags > 1 {
            return Err(DecodeError::Malformed("reserved flags of CONNACK are set"));
        }
        let reason = read_code(&mut reader, 2, version)?;
        let properties = match version {
            Version::V5 => Properties::read(&mut reader, place::CONNACK)?,
            Version::V311 => Properties::default(),
        };
        reader.finish()?;
        Ok(Self { session_present: flags == 1, reason, properties })
    }

    /// Appends the packet.
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        put_packet(0x20, out, |out| {
            out.extend_from_slice(&[self.session_present.into(), self.reason.0]);
            if version == Version::V5 {
                self.properties.write(out);
            }
        });
    }
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP (sections 3.4 to 3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack<'a> {
    /// The number of the message.
    pub packet_id: u16,
    /// MQTT 5: how it went.
    pub reason: ReasonCode,
    /// MQTT 5 properties.
    pub properties: Properties<'a>,
}

impl<'a> Ack<'a> {
    /// Success.
    #[must_use]
    pub fn of(packet_id: u16) -> Self {
        Self { packet_id, reason: ReasonCode::SUCCESS, properties: Properties::default() }
    }

    pub(super) fn decode(packet_type: u8, body: &'a [u8], version: Version) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let packet_id = reader.packet_id()?;
        let (reason, properties) = read_reason(&mut reader, packet_type, version, place::ACK)?;
        Ok(Self { packet_id, reason, properties })
    }

    pub(super) fn encode(&self, first: u8, version: Version, out: &mut Vec<u8>) {
        put_packet(first, out, |out| {
            put_u16(self.packet_id, out);
            write_reason(self.reason, self.properties, version, out);
        });
    }
}

/// Whether a packet of this type may carry the code (table 2-6; in 3.1.1 table 3.1 and section 3.9.3).
fn may_carry(packet_type: u8, version: Version, code: u8) -> bool {
    match (packet_type, version) {
        (2, Version::V311) => code <= 5,
        (9, Version::V311) => matches!(code, 0..=2 | 0x80),
        (2, Version::V5) => matches!(code, 0 | 0x80..=0x8a | 0x8c | 0x90 | 0x95 | 0x97 | 0x99..=0x9d | 0x9f),
        (4 | 5, Version::V5) => matches!(code, 0 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99),
        (6 | 7, Version::V5) => matches!(code, 0 | 0x92),
        (9, Version::V5) => {
            matches!(code, 0..=2 | 0x80 | 0x83 | 0x87 | 0x8f | 0x91 | 0x97 | 0x9e | 0xa1 | 0xa2)
        }
        (11, Version::V5) => matches!(code, 0 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8f | 0x91),
        (14, Version::V5) => {
            matches!(code, 0 | 4 | 0x80..=0x83 | 0x87 | 0x89 | 0x8b..=0x90 | 0x93..=0xa2)
        }
        (15, Version::V5) => matches!(code, 0 | 0x18 | 0x19),
        _ => false,
    }
}

fn read_code(reader: &mut Reader<'_>, packet_type: u8, version: Version) -> Result<ReasonCode, DecodeError> {
    match reader.u8()? {
        code if may_carry(packet_type, version, code) => Ok(ReasonCode(code)),
        _ => Err(DecodeError::Protocol("a reason code that does not belong in this packet")),
    }
}

/// The optional reason code and properties at the end of a packet.
fn read_reason<'a>(
    reader: &mut Reader<'a>,
    packet_type: u8,
    version: Version,
    place: u16,
) -> Result<(ReasonCode, Properties<'a>), DecodeError> {
    let mut reason = ReasonCode::SUCCESS;
    let mut properties = Properties::default();
    if version == Version::V5 && !reader.is_empty() {
        reason = read_code(reader, packet_type, version)?;
        if !reader.is_empty() {
            properties = Properties::read(reader, place)?;
        }
    }
    reader.finish()?;
    Ok((reason, properties))
}

fn write_reason(reason: ReasonCode, properties: Properties<'_>, version: Version, out: &mut Vec<u8>) {
    if version == Version::V311 || (reason == ReasonCode::SUCCESS && properties.is_empty()) {
        return;
    }
    out.push(reason.0);
    if !properties.is_empty() {
        properties.write(out);
    }
}

/// SUBACK or UNSUBACK (sections 3.9 and 3.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubAck<'a> {
    /// The number of the SUBSCRIBE or UNSUBSCRIBE.
    pub packet_id: u16,
    /// MQTT 5 properties.
    pub properties: Properties<'a>,
    /// One code for each filter; none in an UNSUBACK of 3.1.1.
    pub reasons: &'a [u8],
}

impl<'a> SubAck<'a> {
    pub(super) fn decode(packet_type: u8, body: &'a [u8], version: Version) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let packet_id = reader.packet_id()?;
        let properties = match version {
            Version::V5 => Properties::read(&mut reader, place::ACK)?,
            Version::V311 => Properties::default(),
        };
        if packet_type == 11 && version == Version::V311 {
            reader.finish()?;
            return Ok(Self { packet_id, properties, reasons: &[] });
        }
        let reasons = reader.clone().rest();
        if reasons.is_empty() {
            return Err(DecodeError::Protocol("an acknowledgement of no filter"));
        }
        while !reader.is_empty() {
            read_code(&mut reader, packet_type, version)?;
        }
        Ok(Self { packet_id, properties, reasons })
    }

    pub(super) fn encode(&self, packet_type: u8, version: Version, out: &mut Vec<u8>) {
        put_packet(packet_type << 4, out, |out| {
            put_u16(self.packet_id, out);
            if version == Version::V5 {
                self.properties.write(out);
            }
            if packet_type == 9 || version == Version::V5 {
                out.extend_from_slice(self.reasons);
            }
        });
    }
}

/// DISCONNECT (section 3.14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disconnect<'a> {
    /// MQTT 5: why.
    pub reason: ReasonCode,
    /// MQTT 5 properties.
    pub properties: Properties<'a>,
}

impl<'a> Disconnect<'a> {
    pub(super) fn decode(body: &'a [u8], version: Version) -> Result<Self, DecodeError> {
        let (reason, properties) = read_reason(&mut Reader::new(body), 14, version, place::DISCONNECT)?;
        Ok(Self { reason, properties })
    }

    /// Appends the packet.
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        put_packet(0xe0, out, |out| write_reason(self.reason, self.properties, version, out));
    }
}

/// AUTH (section 3.15), MQTT 5 only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Auth<'a> {
    /// Success, continue, or re-authenticate.
    pub reason: ReasonCode,
    /// Method and data.
    pub properties: Properties<'a>,
}

impl<'a> Auth<'a> {
    pub(super) fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let (reason, properties) = read_reason(&mut Reader::new(body), 15, Version::V5, place::AUTH)?;
        let says_something = reason != ReasonCode::SUCCESS || !properties.is_empty();
        let has_method = |property| matches!(property, Property::AuthenticationMethod(_)).then_some(());
        if says_something && properties.find(has_method).is_none() {
            return Err(DecodeError::Protocol("AUTH without a method"));
        }
        Ok(Self { reason, properties })
    }

    /// Appends the packet.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_packet(0xf0, out, |out| write_reason(self.reason, self.properties, Version::V5, out));
    }
}
