//! The node's clock, behind a seam for tests; and how the log states it.
//!
//! # Invariants
//! - A frame of the log that is written a second and more after the last statement, or before it because the clock was
//!   set back, states the clock. So a frame without a statement was written less than a second after the last one.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use sonde_storage_format::{State, Timestamp};

use crate::limits::CLOCK_MARK;

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

/// The namespace of the log's statements of the clock.
const NAMESPACE: &str = "engine.clock";
/// Its only key; the value is nanoseconds since the epoch, i64 little endian.
const KEY: &[u8] = b"now";

/// What the frame that is written now states of the clock, which the log stated last as `marked`.
pub(crate) fn mark(marked: Option<Timestamp>, now: Timestamp) -> Option<State> {
    let recent = |last: Timestamp| {
        let since = u64::try_from(now.as_nanos().saturating_sub(last.as_nanos()));
        since.is_ok_and(|since| u128::from(since) < CLOCK_MARK.as_nanos())
    };
    let value = now.as_nanos().to_le_bytes().to_vec();
    let state = || State { namespace: NAMESPACE.into(), key: KEY.to_vec(), value: Some(value) };
    (!marked.is_some_and(recent)).then(state)
}

/// The clock that a record states, if it is such a statement.
pub(crate) fn marked(state: &State) -> Option<Timestamp> {
    let value = state.value.as_deref().filter(|_| state.namespace == NAMESPACE && state.key == KEY)?;
    Some(Timestamp::from_nanos(i64::from_le_bytes(value.try_into().ok()?)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_stated_once_a_second_and_when_it_is_set_back() {
        let at = |millis: i64| Timestamp::from_nanos(millis * 1_000_000);
        let stated = |last, now| mark(last, now).map(|state| marked(&state).unwrap());
        assert_eq!(stated(None, at(5)), Some(at(5)));
        assert_eq!(stated(Some(at(5)), at(5)), None);
        assert_eq!(stated(Some(at(5)), at(1004)), None);
        assert_eq!(stated(Some(at(5)), at(1005)), Some(at(1005)));
        assert_eq!(stated(Some(at(5)), at(4)), Some(at(4)));
        assert_eq!(stated(Some(Timestamp::MIN), Timestamp::MAX), Some(Timestamp::MAX));
        let mut other = mark(None, at(1)).unwrap();
        other.namespace.push('x');
        assert_eq!(marked(&other), None);
    }

    #[test]
    fn arrivals_ascend_while_the_clock_stands_still_or_steps_back() {
        let clock = ArrivalClock::default();
        let at = |secs| Timestamp::from_secs(secs);
        let times = [clock.next(at(5)), clock.next(at(5)), clock.next(at(3)), clock.next(at(6))];
        assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
        assert_eq!(times.last(), Some(&at(6)));
    }
}
