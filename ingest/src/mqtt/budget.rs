//! Memory of messages: what MQTT may hold of them is a share of `memory.limit`, asked before more is kept.
//!
//! # Invariants
//! - A message counts once, however many sessions hold it, from when it is made until the last of them lets go of it; a copy
//!   that a session has in the state store counts for itself.
//! - It counts with what it really takes, allocations included, and so does its place in each queue.
//! - What is written for a connection counts until its socket has taken it.
//! - What is noted of messages in the log has a limit of its own.
//! - Wills have a limit of their own: nobody gets less because many clients have one.
//! - Retained messages have a limit of their own beside the share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::connection::Connection;
use crate::limits::ROOM_SILENCE;

/// Bytes of all messages in memory: a gauge of the process, as an allocator has one.
static MESSAGES: AtomicUsize = AtomicUsize::new(0);
/// Bytes of all wills, in the same way.
static WILLS: AtomicUsize = AtomicUsize::new(0);
/// Bytes of what is noted of the messages that wait in the log, in the same way.
static BACKLOGS: AtomicUsize = AtomicUsize::new(0);

/// Bytes in a gauge while this lives.
#[derive(Debug)]
struct Counted {
    gauge: &'static AtomicUsize,
    bytes: usize,
}

impl Counted {
    fn new(gauge: &'static AtomicUsize, bytes: usize) -> Self {
        gauge.fetch_add(bytes, Ordering::Relaxed);
        Self { gauge, bytes }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gauge.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What a message takes of the memory, shared by all that share the message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weight(#[expect(dead_code, reason = "it is held to be dropped")] Option<Arc<Counted>>);

impl Weight {
    pub(super) fn of(bytes: usize) -> Self {
        Self(Some(Arc::new(Counted::new(&MESSAGES, bytes))))
    }

    pub(super) fn of_will(bytes: usize) -> Self {
        Self(Some(Arc::new(Counted::new(&WILLS, bytes))))
    }
}

/// Bytes of one that holds many things in a gauge, as many as it says.
#[derive(Debug)]
pub(super) struct Tally {
    gauge: &'static AtomicUsize,
    bytes: usize,
}

impl Tally {
    /// Of entries of queues, which count as messages do.
    pub(super) fn of_messages() -> Self {
        Self { gauge: &MESSAGES, bytes: 0 }
    }

    /// Of what is noted of the log.
    pub(super) fn of_backlogs() -> Self {
        Self { gauge: &BACKLOGS, bytes: 0 }
    }

    pub(super) fn add(&mut self, bytes: usize) {
        self.gauge.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }

    pub(super) fn subtract(&mut self, bytes: usize) {
        self.gauge.fetch_sub(bytes, Ordering::Relaxed);
        self.bytes -= bytes;
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Clone for Tally {
    fn clone(&self) -> Self {
        let mut clone = Self { gauge: self.gauge, bytes: 0 };
        clone.add(self.bytes);
        clone
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.gauge.fetch_sub(self.bytes, Ordering::Relaxed);
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
    /// Bytes of wills; each is in memory twice, too.
    pub wills: usize,
    /// Bytes of what is noted of the messages that wait in the log for sessions.
    pub backlogs: usize,
}

/// How much more may be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Room {
    Plenty,
    /// What the log has too is not held any more, and a client that has something in flight gets no more.
    Scarce,
    /// What would wait in memory is dropped.
    Short,
    /// Who has something in flight, or waiting in memory, gets no more.
    Gone,
    /// Nothing more is sent that needs an acknowledgement, and who holds most is sent away.
    Over,
}

impl Room {
    /// For the log, and as a label.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plenty => "plenty",
            Self::Scarce => "scarce",
            Self::Short => "short",
            Self::Gone => "gone",
            Self::Over => "over",
        }
    }
}

/// What is held, beside the messages themselves.
#[derive(Debug)]
pub(super) struct Budget {
    limits: MemoryLimits,
    /// Bytes that wait to be written to connections.
    unwritten: usize,
    /// How much room there was when it was last looked at, and what was last said of it, in which second.
    pub(super) last: Room,
    told: Option<(Room, u64)>,
    /// In which second somebody was sent away for the memory's sake.
    pub(super) shed_at: Option<u64>,
}

impl Budget {
    pub(super) fn new(limits: MemoryLimits) -> Self {
        Self { limits, unwritten: 0, last: Room::Plenty, told: None, shed_at: None }
    }

    /// Bytes of messages that may be held.
    pub(super) fn limit(&self) -> usize {
        self.limits.messages
    }

    /// What is held of those, if so many bytes of the messages are retained.
    pub(super) fn used(&self, retained: usize) -> usize {
        MESSAGES.load(Ordering::Relaxed).saturating_sub(retained) + self.unwritten
    }

    /// Whether a will of this weight may come.
    pub(super) fn has_room_for_will(&self, weight: usize) -> bool {
        weight == 0 || WILLS.load(Ordering::Relaxed) + weight <= self.limits.wills
    }

    /// Bytes that are noted of messages in the log.
    pub(super) fn backlogs(&self) -> usize {
        BACKLOGS.load(Ordering::Relaxed)
    }

    /// Whether more may be noted of messages in the log.
    pub(super) fn has_room_for_backlog(&self) -> bool {
        self.backlogs() < self.limits.backlogs
    }

    /// Takes note of how much room there is now. Returns whether there is less than before, and whether that, or that there
    /// is plenty again, is to be said: something worse at once, else no more than once in `ROOM_SILENCE` seconds.
    pub(super) fn note(&mut self, room: Room, now: u64) -> (bool, bool) {
        let is_less = room > std::mem::replace(&mut self.last, room);
        let is_told = match self.told {
            None => is_less,
            Some((told, at)) if now < at + ROOM_SILENCE => room > told,
            Some((told, _)) => room != told && (is_less || room == Room::Plenty),
        };
        if is_told {
            self.told = Some((room, now));
        }
        (is_less, is_told)
    }

    /// How much more may be held, if so many bytes of the messages are retained.
    pub(super) fn room(&self, retained: usize) -> Room {
        room_of(self.used(retained), self.limits.messages)
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
        _ if used < limit.saturating_mul(2) => Room::Gone,
        _ => Room::Over,
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
        assert_eq!([at(1599), at(1600)], [Room::Gone, Room::Over]);
        assert!(Room::Plenty < Room::Scarce && Room::Short < Room::Gone);
    }

    #[test]
    fn it_is_said_at_once_that_less_is_left_and_else_once_in_a_while() {
        let mut budget = Budget::new(MemoryLimits { messages: 800, retained: 0, wills: 0, backlogs: 0 });
        let mut note = |room, now| budget.note(room, now);
        assert_eq!(note(Room::Plenty, 0), (false, false));
        assert_eq!(note(Room::Scarce, 1), (true, true));
        assert_eq!(note(Room::Plenty, 2), (false, false));
        assert_eq!(note(Room::Scarce, 2), (true, false), "it was said a second ago");
        assert_eq!(note(Room::Gone, 3), (true, true), "it is worse");
        assert_eq!(note(Room::Plenty, 2 + ROOM_SILENCE), (false, false));
        assert_eq!(note(Room::Plenty, 3 + ROOM_SILENCE), (false, true), "over");
        assert_eq!(note(Room::Plenty, 3 + 9 * ROOM_SILENCE), (false, false), "said once");
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
