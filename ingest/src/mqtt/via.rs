//! By which of its subscriptions a session gets a message, and how that stands in the record of a delivery.

use std::sync::Arc;

/// By what a message comes to a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Via {
    /// The shared subscription (`$share/<name>/<filter>`) whose message it is, so that another member can get it.
    pub(super) group: Option<Arc<str>>,
    /// The identifiers of the subscriptions that match ([MQTT-3.3.4-3]).
    pub(super) identifiers: Option<Arc<[u32]>>,
}

impl Via {
    /// By a subscription with this identifier, where it is not 0.
    pub(super) fn identifier(identifier: u32) -> Self {
        Self::identifiers(&mut [identifier].into_iter())
    }

    /// By subscriptions with these identifiers; 0 is none.
    pub(super) fn identifiers(identifiers: &mut dyn Iterator<Item = u32>) -> Self {
        let mut given = identifiers.filter(|identifier| *identifier != 0).peekable();
        let identifiers = given.peek().is_some().then(|| given.collect());
        Self { group: None, identifiers }
    }

    /// Whether there is nothing to say.
    pub(super) fn is_plain(&self) -> bool {
        self.group.is_none() && self.identifiers.is_none()
    }

    /// `group length u16 | group | count u16 | identifiers u32 each`, little endian; length 0 is no group.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let group = self.group.as_deref().unwrap_or_default();
        out.extend_from_slice(&(group.len() as u16).to_le_bytes());
        out.extend_from_slice(group.as_bytes());
        // A session has at most `limits::SUBSCRIPTIONS` of them.
        let identifiers = self.identifiers.as_deref().unwrap_or_default();
        out.extend_from_slice(&(identifiers.len() as u16).to_le_bytes());
        identifiers.iter().for_each(|identifier| out.extend_from_slice(&identifier.to_le_bytes()));
    }

    /// Reads what `encode` wrote; returns what stands behind it too.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (len, rest) = bytes.split_first_chunk::<2>()?;
        let (group, rest) = rest.split_at_checked(u16::from_le_bytes(*len).into())?;
        let (count, rest) = rest.split_first_chunk::<2>()?;
        let (identifiers, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*count)) * 4)?;
        let (chunks, _) = identifiers.as_chunks::<4>();
        let mut via = Self::identifiers(&mut chunks.iter().map(|chunk| u32::from_le_bytes(*chunk)));
        let group = std::str::from_utf8(group).ok()?;
        via.group = (!group.is_empty()).then(|| group.into());
        Some((via, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_from_its_bytes() {
        let group = Some("$share/g/a/#".into());
        for via in [
            Via::default(),
            Via::identifier(268_435_455),
            Via { group: group.clone(), ..Via::identifier(1) },
            Via { group, ..Via::identifiers(&mut [1, 0, 2].into_iter()) },
        ] {
            let mut bytes = Vec::new();
            via.encode(&mut bytes);
            let whole = bytes.len();
            bytes.extend_from_slice(b"message");
            assert_eq!(Via::decode(&bytes), Some((via, b"message".as_slice())));
            assert!((0..whole).all(|end| Via::decode(bytes.get(..end).unwrap_or_default()).is_none()));
        }
        assert!(Via::identifier(0).is_plain());
    }
}
