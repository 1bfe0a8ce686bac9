//! How a client subscribed to a filter, and how its session's record says so.

use sonde_proto::mqtt::QoS;

/// In the flags of a subscription's record: an identifier follows the filter.
const IDENTIFIED: u8 = 16;

/// How a client subscribed to a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) qos: QoS,
    pub(super) no_local: bool,
    pub(super) retain_as_published: bool,
    /// The subscription identifier; 0 is none.
    pub(super) identifier: u32,
}

impl Subscription {
    /// One without options or identifier.
    pub(super) fn plain(qos: QoS) -> Self {
        Self { qos, no_local: false, retain_as_published: false, identifier: 0 }
    }

    /// `flags u8 | filter length u16 | filter`, and `identifier u32` where the flags say so; little endian.
    pub(super) fn encode(self, filter: &str, out: &mut Vec<u8>) {
        let identified = if self.identifier == 0 { 0 } else { IDENTIFIED };
        let flags = u8::from(self.no_local) << 2 | u8::from(self.retain_as_published) << 3 | identified;
        out.push(self.qos as u8 | flags);
        out.extend_from_slice(&(filter.len() as u16).to_le_bytes());
        out.extend_from_slice(filter.as_bytes());
        if self.identifier != 0 {
            out.extend_from_slice(&self.identifier.to_le_bytes());
        }
    }

    /// Reads what `encode` wrote: the filter, how it was subscribed to, and what stands behind.
    pub(super) fn decode(bytes: &[u8]) -> Option<(&str, Self, &[u8])> {
        let (flags, rest) = bytes.split_first()?;
        let (len, rest) = rest.split_first_chunk::<2>()?;
        let (filter, rest) = rest.split_at_checked(u16::from_le_bytes(*len).into())?;
        let (identifier, rest) = match flags & IDENTIFIED {
            0 => (0, rest),
            _ => rest.split_first_chunk::<4>().map(|(bytes, rest)| (u32::from_le_bytes(*bytes), rest))?,
        };
        let subscription = Self {
            qos: QoS::from_bits(flags & 3).ok()?,
            no_local: flags & 4 != 0,
            retain_as_published: flags & 8 != 0,
            identifier,
        };
        Some((std::str::from_utf8(filter).ok()?, subscription, rest))
    }
}
