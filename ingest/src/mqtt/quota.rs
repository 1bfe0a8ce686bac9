//! How much may wait for a session, what happens beyond, and the count of what did not get to it.

use crate::limits::{QUEUED_BYTES, QUEUED_MESSAGES};

/// Why a message did not get to its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// Too much waited for the session.
    QueueFull,
    /// Too much waited for the sessions of its tenant.
    TenantFull,
    /// It is larger than the client takes.
    TooLarge,
    /// QoS 0, and the client did not read.
    Slow,
    /// The log's budget ended before the client came for it.
    Gone,
}

/// Messages that a session did not get, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drops {
    pub(crate) queue_full: u64,
    pub(crate) tenant_full: u64,
    pub(crate) too_large: u64,
    pub(crate) slow: u64,
    pub(crate) gone: u64,
}

impl Drops {
    pub(super) fn count(&mut self, why: Dropped, count: u64) {
        *match why {
            Dropped::QueueFull => &mut self.queue_full,
            Dropped::TenantFull => &mut self.tenant_full,
            Dropped::TooLarge => &mut self.too_large,
            Dropped::Slow => &mut self.slow,
            Dropped::Gone => &mut self.gone,
        } += count;
    }

    pub(crate) fn total(&self) -> u64 {
        self.queue_full + self.tenant_full + self.too_large + self.slow + self.gone
    }

    /// `queue full u64 | tenant full u64 | too large u64 | slow u64 | gone u64`, little endian.
    pub(super) fn encode(&self) -> Vec<u8> {
        let Self { queue_full, tenant_full, too_large, slow, gone } = *self;
        [queue_full, tenant_full, too_large, slow, gone].iter().flat_map(|n| n.to_le_bytes()).collect()
    }

    /// Reads what `encode` wrote.
    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let (numbers, rest) = value.as_chunks::<8>();
        let numbers: &[[u8; 8]; 5] = numbers.try_into().ok()?;
        let [queue_full, tenant_full, too_large, slow, gone] = numbers.map(u64::from_le_bytes);
        rest.is_empty().then_some(Self { queue_full, tenant_full, too_large, slow, gone })
    }
}

/// What happens to a message for a session for which as much waits as may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The new one is dropped.
    #[default]
    DropNew,
    /// The oldest that is not in flight is dropped.
    DropOldest,
    /// The new one is dropped, and a client that is connected is sent away with 0x97 (MQTT 5, 4.13).
    Disconnect,
}

/// How much waits for a session.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Messages. Default 10,000.
    pub messages: usize,
    /// Their bytes. Default 64 MiB.
    pub bytes: usize,
    /// What happens beyond.
    pub overflow: Overflow,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self { messages: QUEUED_MESSAGES, bytes: QUEUED_BYTES, overflow: Overflow::DropNew }
    }
}
