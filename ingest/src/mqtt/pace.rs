//! Rates: how long something has to wait so that there are no more than so many a second.
//!
//! # Invariants
//! - A second's worth may come at once; what comes beyond it is owed, and waited for, never dropped.

use std::time::{Duration, Instant};

/// How much may come at once, as time.
const BURST: Duration = Duration::from_secs(1);

/// One rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// What one costs.
    interval: Duration,
    /// When everything that came so far would have come at the rate.
    paid_until: Instant,
}

impl Pace {
    /// So many in a second; `None` for 0, no limit.
    pub(super) fn new(per_second: u32, now: Instant) -> Option<Self> {
        let interval = Duration::from_secs(1).checked_div(per_second)?;
        Some(Self { interval, paid_until: now })
    }

    /// Takes `count`, whatever it makes of the wait.
    pub(super) fn take(&mut self, count: u32, now: Instant) {
        self.paid_until = self.paid_until.max(now) + self.interval * count;
    }

    /// How long to wait for the next one; zero where it may come now.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.paid_until.saturating_duration_since(now).saturating_sub(BURST)
    }

    /// Whether less than a second's worth may come at once, because of what came before.
    fn owes(&self, now: Instant) -> bool {
        self.paid_until > now
    }
}

/// The rates of a connection, or of a tenant, that has any.
#[derive(Debug)]
pub(super) struct Meter {
    messages: Option<Pace>,
    bytes: Option<Pace>,
}

impl Meter {
    /// `None` where nothing is limited: such connections pay nothing.
    pub(super) fn new(messages: u32, bytes: u32, now: Instant) -> Option<Box<Self>> {
        let (messages, bytes) = (Pace::new(messages, now), Pace::new(bytes, now));
        (messages.is_some() || bytes.is_some()).then(|| Box::new(Self { messages, bytes }))
    }

    /// Counts a packet.
    pub(super) fn count(&mut self, is_message: bool, bytes: usize, now: Instant) {
        if let Some(pace) = self.messages.as_mut().filter(|_| is_message) {
            pace.take(1, now);
        }
        if let Some(pace) = &mut self.bytes {
            pace.take(u32::try_from(bytes).unwrap_or(u32::MAX), now);
        }
    }

    /// How long its socket is not read; zero where it may be.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let wait = |pace: &Option<Pace>| pace.map_or(Duration::ZERO, |pace| pace.wait(now));
        wait(&self.messages).max(wait(&self.bytes))
    }

    /// Whether one that is made anew would let more come.
    pub(super) fn owes(&self, now: Instant) -> bool {
        self.messages.iter().chain(&self.bytes).any(|pace| pace.owes(now))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_them_comes_at_once_and_the_rest_at_the_rate() {
        let start = Instant::now();
        let mut pace = Pace::new(10, start).unwrap();
        pace.take(10, start);
        assert_eq!(pace.wait(start), Duration::ZERO);
        pace.take(5, start);
        assert_eq!(pace.wait(start), Duration::from_millis(500));
        let later = start + Duration::from_millis(500);
        assert_eq!(pace.wait(later), Duration::ZERO);
        // What was not used long ago is not saved up.
        let much_later = start + Duration::from_secs(60);
        pace.take(20, much_later);
        assert_eq!(pace.wait(much_later), Duration::from_secs(1));
        assert!(Pace::new(0, start).is_none());
    }

    #[test]
    fn a_meter_waits_for_the_slower_of_its_rates() {
        let start = Instant::now();
        let mut meter = Meter::new(1, 1000, start).unwrap();
        meter.count(true, 3000, start);
        assert_eq!(meter.wait(start), Duration::from_secs(2));
        meter.count(false, 0, start);
        meter.count(true, 0, start);
        assert_eq!(meter.wait(start), Duration::from_secs(2));
        assert!(Meter::new(0, 0, start).is_none());
    }
}
