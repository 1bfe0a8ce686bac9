//! When messages are due at a fixed rate. The schedule does not wait for the server: a message that leaves late has waited
//! since it was due, and its latency says so (no coordinated omission).

/// The schedule of some of the clients, which take turns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// When the first message is due, in nanoseconds.
    start: u64,
    /// Messages a second, all clients of the schedule together.
    rate: f64,
    clients: u64,
}

impl Pace {
    pub(super) fn new(start: u64, rate: f64, clients: usize) -> Self {
        Self { start, rate, clients: clients.max(1) as u64 }
    }

    /// When the `number`-th message of a client is due.
    pub(super) fn due(&self, client: usize, number: u64) -> u64 {
        let place = number * self.clients + client as u64;
        self.start + (place as f64 * 1e9 / self.rate) as u64
    }

    /// How many messages are due by `now`, of all clients.
    pub(super) fn due_by(&self, now: u64) -> u64 {
        match now.checked_sub(self.start) {
            Some(elapsed) => (elapsed as f64 * self.rate / 1e9) as u64 + 1,
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_take_turns_and_nothing_is_late_by_rounding() {
        let pace = Pace::new(1_000_000, 2000.0, 3);
        let due: Vec<u64> = (0..3).flat_map(|n| (0..3).map(move |c| pace.due(c, n))).collect();
        let expected: Vec<u64> = (0..9).map(|place| 1_000_000 + place * 500_000).collect();
        assert_eq!(due, expected);
        assert_eq!(pace.due_by(999_999), 0);
        assert_eq!(pace.due_by(1_000_000), 1);
        assert_eq!(pace.due_by(1_499_999), 1);
        assert_eq!(pace.due_by(1_500_000), 2);
    }

    #[test]
    fn an_hour_at_an_odd_rate_has_the_messages_of_an_hour() {
        let pace = Pace::new(0, 333.3, 7);
        assert_eq!(pace.due_by(3_600_000_000_000), 1_199_881);
    }
}
