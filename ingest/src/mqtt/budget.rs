//! Memory of messages: what MQTT may hold of them is a share of `memory.limit`, asked before more is kept.
//!
//! # Invariants
//! - A message counts once, however many sessions hold it, from when it is made until the last of them lets go of it; a copy
//!   that a session has in the state store counts for itself.
//! - What is written for a connection counts until its socket has taken it.
//! - Retained messages have a limit of their own beside the share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::connection::Connection;

/// Bytes of all messages in memory: a gauge of the process, as an allocator has one.
static MESSAGES: AtomicUsize = AtomicUsize::new(0);

/// Bytes in the gauge while this lives.
#[derive(Debug)]
struct Counted(usize);

impl Drop for Counted {
    fn drop(&mut self) {
        MESSAGES.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// What a message takes of the memory, shared by all that share the message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weight(#[expect(dead_code, reason = "it is held to be dropped")] Option<Arc<Counted>>);

impl Weight {
    pub(super) fn of(bytes: usize) -> Self {
        MESSAGES.fetch_add(bytes, Ordering::Relaxed);
        Self(Some(Arc::new(Counted(bytes))))
    }
}

// It is no part of what a message says.
impl PartialEq for Weight {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Weight {}

/// How much memory MQTT may use.
#[derive(Clone, Copy, Debug)]
pub struct MemoryLimits {
    /// Bytes of messages that wait or are in flight, of all sessions together, and of what is written for connections.
    pub messages: usize,
    /// Bytes of retained messages; each is in memory twice, here and in the state store.
    pub retained: usize,
}

/// How much more may be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Room {
    Plenty,
    /// What the log has too is not held any more, and a client that has something in flight gets no more.
    Scarce,
    /// What would wait in memory is dropped.
    Short,
    /// Nothing more is sent that needs an acknowledgement.
    Gone,
}

/// What is held, beside the messages themselves.
#[derive(Debug)]
pub(super) struct Budget {
    limits: MemoryLimits,
    /// Bytes that wait to be written to connections.
    unwritten: usize,
}

impl Budget {
    pub(super) fn new(limits: MemoryLimits) -> Self {
        Self { limits, unwritten: 0 }
    }

    /// How much more may be held, if so many bytes of the messages are retained.
    pub(super) fn room(&self, retained: usize) -> Room {
        let messages = MESSAGES.load(Ordering::Relaxed).saturating_sub(retained);
        room_of(messages + self.unwritten, self.limits.messages)
    }

    /// Bytes that one session may have in flight: an eighth, so that one that does not acknowledge is not in the way of all.
    pub(super) fn in_flight_of_one(&self) -> usize {
        self.limits.messages / 8
    }

    /// Bytes that all sessions may keep of what goes from the log: a quarter, beside the rest.
    pub(super) fn kept(&self) -> u64 {
        self.limits.messages as u64 / 4
    }

    /// Counts what waits to be written to a connection as it is now.
    pub(super) fn count(&mut self, connection: &mut Connection) {
        let unwritten = connection.unwritten();
        self.unwritten = self.unwritten - connection.counted_unwritten + unwritten;
        connection.counted_unwritten = unwritten;
    }

    /// A connection is gone, with all that waited to be written to it.
    pub(super) fn forget(&mut self, connection: &Connection) {
        self.unwritten -= connection.counted_unwritten;
    }
}

fn room_of(used: usize, limit: usize) -> Room {
    match used {
        _ if used < limit / 4 * 3 => Room::Plenty,
        _ if used < limit => Room::Scarce,
        _ if used < limit / 2 * 3 => Room::Short,
        _ => Room::Gone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_ends_step_by_step() {
        let at = |used| room_of(used, 800);
        assert_eq!(
            [at(0), at(599), at(600), at(799)],
            [Room::Plenty, Room::Plenty, Room::Scarce, Room::Scarce]
        );
        assert_eq!([at(800), at(1199), at(1200)], [Room::Short, Room::Short, Room::Gone]);
        assert!(Room::Plenty < Room::Scarce && Room::Short < Room::Gone);
    }

    #[test]
    fn a_weight_counts_until_the_last_of_those_that_share_it_is_gone() {
        // Larger than all that other tests of the process hold meanwhile.
        const BYTES: usize = 1 << 40;
        let is_held = || MESSAGES.load(Ordering::Relaxed) >= BYTES;
        let weight = Weight::of(BYTES);
        let other = weight.clone();
        drop(weight);
        assert!(is_held());
        drop(other);
        assert!(!is_held());
    }
}
