//! SUBSCRIBE and UNSUBSCRIBE (sections 3.8 and 3.10).

use super::error::DecodeError;
use super::packet::Version;
use super::property::{Properties, place};
use super::publish::QoS;
use super::topic::{is_shared, validate_filter};
use super::wire::{Reader, put_binary, put_packet, put_u16};

/// When retained messages are sent to a new subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetainHandling {
    /// Always.
    #[default]
    Send = 0,
    /// If the subscription is new.
    SendIfNew = 1,
    /// Never.
    Never = 2,
}

/// One filter of a SUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter<'a> {
    /// The topic filter.
    pub filter: &'a str,
    /// The largest QoS that the client wants.
    pub qos: QoS,
    /// Not what the client itself publishes.
    pub no_local: bool,
    /// Keep the retain flag of forwarded messages.
    pub retain_as_published: bool,
    /// When retained messages are sent.
    pub retain_handling: RetainHandling,
}

impl<'a> Filter<'a> {
    fn read(reader: &mut Reader<'a>, version: Version) -> Result<Self, DecodeError> {
        let filter = reader.text()?;
        validate_filter(filter)?;
        let options = reader.u8()?;
        let reserved = if version == Version::V5 { 0b1100_0000 } else { 0b1111_1100 };
        if options & reserved != 0 {
            return Err(DecodeError::Malformed("reserved bits of subscription options are set"));
        }
        let retain_handling = match options >> 4 & 3 {
            0 => RetainHandling::Send,
            1 => RetainHandling::SendIfNew,
            2 => RetainHandling::Never,
            _ => return Err(DecodeError::Protocol("retain handling 3")),
        };
        let no_local = options & 4 != 0;
        if no_local && is_shared(filter) {
            return Err(DecodeError::Protocol("no local on a shared subscription"));
        }
        let qos =
            QoS::from_bits(options & 3).map_err(|_| DecodeError::Protocol("QoS 3 in a subscription"))?;
        Ok(Self { filter, qos, no_local, retain_as_published: options & 8 != 0, retain_handling })
    }

    /// 3.1.1 knows nothing but the QoS.
    fn write(&self, version: Version, out: &mut Vec<u8>) {
        put_binary(self.filter.as_bytes(), out);
        let mut options = self.qos as u8;
        if version == Version::V5 {
            options |= u8::from(self.no_local) << 2;
            options |= u8::from(self.retain_as_published) << 3;
            options |= (self.retain_handling as u8) << 4;
        }
        out.push(options);
    }
}

/// SUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// Its number.
    pub packet_id: u16,
    /// MQTT 5 properties.
    pub properties: Properties<'a>,
    version: Version,
    filters: &'a [u8],
}

impl<'a> Subscribe<'a> {
    pub(super) fn decode(body: &'a [u8], version: Version) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let packet_id = reader.packet_id()?;
        let properties = match version {
            Version::V5 => Properties::read(&mut reader, place::SUBSCRIBE)?,
            Version::V311 => Properties::default(),
        };
        let filters = reader.rest();
        let mut check = Reader::new(filters);
        if check.is_empty() {
            return Err(DecodeError::Protocol("SUBSCRIBE without a filter"));
        }
        while !check.is_empty() {
            Filter::read(&mut check, version)?;
        }
        Ok(Self { packet_id, properties, version, filters })
    }

    /// The filters, in their order.
    pub fn filters(&self) -> impl Iterator<Item = Filter<'a>> + use<'a> {
        let (mut reader, version) = (Reader::new(self.filters), self.version);
        std::iter::from_fn(
            move || if reader.is_empty() { None } else { Filter::read(&mut reader, version).ok() },
        )
    }

    /// Appends the packet of these filters.
    pub fn encode(
        packet_id: u16,
        properties: Properties<'_>,
        filters: &[Filter<'_>],
        version: Version,
        out: &mut Vec<u8>,
    ) {
        put_packet(0x82, out, |out| {
            put_u16(packet_id, out);
            if version == Version::V5 {
                properties.write(out);
            }
            filters.iter().for_each(|filter| filter.write(version, out));
        });
    }
}

/// UNSUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    /// Its number.
    pub packet_id: u16,
    /// MQTT 5 properties.
    pub properties: Properties<'a>,
    filters: &'a [u8],
}

impl<'a> Unsubscribe<'a> {
    pub(super) fn decode(body: &'a [u8], version: Version) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let packet_id = reader.packet_id()?;
        let properties = match version {
            Version::V5 => Properties::read(&mut reader, place::UNSUBSCRIBE)?,
            Version::V311 => Properties::default(),
        };
        let filters = reader.rest();
        let mut check = Reader::new(filters);
        if check.is_empty() {
            return Err(DecodeError::Protocol("UNSUBSCRIBE without a filter"));
        }
        while !check.is_empty() {
            validate_filter(check.text()?)?;
        }
        Ok(Self { packet_id, properties, filters })
    }

    /// The filters, in their order.
    pub fn filters(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut reader = Reader::new(self.filters);
        std::iter::from_fn(move || if reader.is_empty() { None } else { reader.text().ok() })
    }

    /// Appends the packet of these filters.
    pub fn encode(
        packet_id: u16,
        properties: Properties<'_>,
        filters: &[&str],
        version: Version,
        out: &mut Vec<u8>,
    ) {
        put_packet(0xa2, out, |out| {
            put_u16(packet_id, out);
            if version == Version::V5 {
                properties.write(out);
            }
            filters.iter().for_each(|filter| put_binary(filter.as_bytes(), out));
        });
    }
}
