//! The node's clock, behind a seam for tests.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use sonde_storage_format::Timestamp;

/// Tells the time.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Now, UTC.
    fn now(&self) -> Timestamp;
}

/// The system's real-time clock.
#[derive(Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_nanos(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }
}

/// Arrival times: strictly ascending over the whole node, `max(now, last + 1 ns)`.
#[derive(Debug, Default)]
pub(crate) struct ArrivalClock(AtomicI64);

impl ArrivalClock {
    pub(crate) fn next(&self, now: Timestamp) -> Timestamp {
        let now = now.as_nanos();
        let before =
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(now.max(last + 1)));
        Timestamp::from_nanos(now.max(before.unwrap_or_default() + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_ascend_while_the_clock_stands_still_or_steps_back() {
        let clock = ArrivalClock::default();
        let at = |secs| Timestamp::from_secs(secs);
        let times = [clock.next(at(5)), clock.next(at(5)), clock.next(at(3)), clock.next(at(6))];
        assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
        assert_eq!(times.last(), Some(&at(6)));
    }
}
