//! What happens when the memory for messages comes to its end: it is said, and who holds most of it lets go.

use std::sync::atomic::Ordering;

use sonde_proto::mqtt::ReasonCode;

use super::budget::Room;
use super::worker::Worker;

impl Worker {
    /// Takes note of how much memory there is for messages, and says it where that is little. Several times a second.
    pub(super) fn watch_memory(&mut self) {
        let used = self.budget.used(self.retained.weight());
        self.stats.message_bytes.store(used as u64, Ordering::Relaxed);
        self.stats.backlog_bytes.store(self.budget.backlogs() as u64, Ordering::Relaxed);
        let (room, now) = (self.room(), self.now());
        let (is_less, is_told) = self.budget.note(room, now);
        if is_less {
            self.stats.came_to(room);
        }
        let limit = self.budget.limit();
        match is_told {
            false => {}
            true if room == Room::Plenty => {
                tracing::info!(used, limit, "there is memory for MQTT messages again");
            }
            true => {
                let largest = self.holders().max_by_key(|(bytes, _)| *bytes);
                let (bytes, place) = largest.unwrap_or_default();
                let client = self.client_of(place);
                let room = room.name();
                tracing::warn!(
                    used,
                    limit,
                    room,
                    client,
                    bytes,
                    "MQTT messages fill their memory: what waits for clients that do not acknowledge or do not read; \
                     the one named holds most"
                );
            }
        }
    }

    /// What connected clients have the server hold in memory: of messages in flight and waiting, and of what is written.
    fn holders(&self) -> impl Iterator<Item = (usize, usize)> {
        self.sessions.iter().filter_map(|(_, session)| {
            let place = session.connection?;
            let (_, connection) = self.connections.get(place)?;
            let held = session.queue_bytes() + session.in_flight_bytes() + session.entries_bytes();
            Some((held + connection.unwritten(), place))
        })
    }

    fn client_of(&self, place: usize) -> &str {
        let session = self.connections.get(place).and_then(|(_, connection)| connection.session());
        session.and_then(|key| self.sessions.get(key)).map_or("", |session| &session.client_id)
    }

    /// Where nobody gets anything any more that has to be acknowledged, those who hold most are sent away until that is not
    /// so. Asked in every pass of the loop, done once in a second at most: a message that several hold is let go by the last.
    pub(super) fn shed(&mut self) {
        let (room, now) = (self.room(), self.now());
        if room > self.budget.last {
            self.watch_memory();
        }
        if room < Room::Over || self.budget.shed_at == Some(now) {
            return;
        }
        self.budget.shed_at = Some(now);
        let used = self.budget.used(self.retained.weight());
        let mut excess = used.saturating_sub(self.budget.limit() / 2 * 3);
        let mut holders: Vec<(usize, usize)> = self.holders().filter(|(bytes, _)| *bytes > 0).collect();
        holders.sort_unstable_by(|a, b| b.cmp(a));
        for (bytes, place) in holders {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(bytes);
            let client = self.client_of(place);
            tracing::warn!(
                client,
                bytes,
                "an MQTT client is sent away: the memory for messages is over, and it holds most"
            );
            self.stats.shed.fetch_add(1, Ordering::Relaxed);
            self.tell_end(place, ReasonCode::QUOTA_EXCEEDED);
            self.close(place);
        }
    }
}
