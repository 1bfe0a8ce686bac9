//! How much of what is stored, retained messages and those of the past, a client gets at once, and when it gets more.

use super::budget::Room;
use super::connection::Connection;
use super::message::Message;
use super::session::Session;
use crate::limits::{FETCH_BYTES, FETCH_MESSAGES, OUT_BYTES};

/// What a session may still get at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portion {
    messages: u64,
    bytes: usize,
    /// Whether nothing of it was taken yet.
    pub(super) is_whole: bool,
}

impl Portion {
    /// A single message where memory is scarce: what nobody acknowledges is dropped then, if the socket does not take it.
    pub(super) fn of(room: Room) -> Self {
        let messages = if room == Room::Plenty { FETCH_MESSAGES } else { 1 };
        Self { messages, bytes: FETCH_BYTES, is_whole: true }
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.messages == 0 || self.bytes == 0
    }

    pub(super) fn take(&mut self, message: &Message) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(message.bytes());
        self.is_whole = false;
    }
}

/// Whether a client has taken enough of what it got for another portion.
pub(super) fn takes_more(session: &Session, connection: &Connection, room: Room) -> bool {
    let (unsent, waiting) = (connection.out.len(), session.queue.len() as u64);
    let has_room = match room {
        Room::Plenty => unsent < OUT_BYTES / 4 && waiting < FETCH_MESSAGES,
        Room::Scarce | Room::Short | Room::Gone | Room::Over => unsent == 0 && waiting == 0,
    };
    has_room && connection.greeted && !connection.closing
}

#[cfg(test)]
mod tests {
    use sonde_proto::mqtt::QoS;

    use super::*;

    #[test]
    fn a_portion_is_smaller_where_memory_is_scarce() {
        let message = Message::new("t", b"x", QoS::AtMostOnce, false);
        let taken = |room| {
            let mut portion = Portion::of(room);
            assert!(portion.is_whole);
            let mut count = 0;
            while !portion.is_used_up() {
                portion.take(&message);
                count += 1;
            }
            count
        };
        assert_eq!([taken(Room::Scarce), taken(Room::Plenty)], [1, FETCH_MESSAGES]);
    }
}
