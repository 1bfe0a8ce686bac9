//! Instants and ranges of time.
//!
//! # Invariants
//! - A `Timestamp` counts nanoseconds since 1970-01-01T00:00:00Z, UTC, without leap seconds.
//! - A `TimeRange` is half open: `start <= t < end`.

/// Nanoseconds since the epoch, UTC: 1677-09-21 to 2262-04-11.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The earliest instant.
    pub const MIN: Self = Self(i64::MIN);
    /// Later than every instant that can be stored.
    pub const MAX: Self = Self(i64::MAX);

    /// From nanoseconds since the epoch.
    #[must_use]
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// From whole seconds since the epoch; saturates.
    #[must_use]
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1_000_000_000))
    }

    /// Nanoseconds since the epoch.
    #[must_use]
    pub const fn as_nanos(self) -> i64 {
        self.0
    }
}

/// A half-open range of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimeRange {
    /// The first instant in the range.
    pub start: Timestamp,
    /// The first instant after the range.
    pub end: Timestamp,
}

impl TimeRange {
    /// Every instant that can be stored.
    pub const ALL: Self = Self { start: Timestamp::MIN, end: Timestamp::MAX };

    /// Whether no instant is in the range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// Whether the instant is in the range.
    #[must_use]
    pub fn contains(&self, time: Timestamp) -> bool {
        self.start <= time && time < self.end
    }

    /// Whether the ranges share an instant.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The smallest range that covers both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// What both ranges have in common; empty where they have nothing.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        Self { start: self.start.max(other.start), end: self.end.min(other.end) }
    }

    /// The UTC-aligned range of `width` nanoseconds that `time` falls into.
    #[must_use]
    pub fn aligned(time: Timestamp, width: i64) -> Self {
        assert!(width > 0, "a partition is at least one nanosecond wide, not {width}");
        let place = time.0.div_euclid(width);
        // Each bound saturates by itself, so that the ranges at the ends of time touch their neighbours too.
        let bound = |place: i64| Timestamp(place.saturating_mul(width));
        Self { start: bound(place), end: bound(place.saturating_add(1)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_floors_before_the_epoch_too() {
        let range = TimeRange::aligned(Timestamp::from_nanos(-1), 10);
        assert_eq!((range.start.as_nanos(), range.end.as_nanos()), (-10, 0));
        assert!(range.contains(Timestamp::from_nanos(-10)) && !range.contains(Timestamp::from_nanos(0)));
    }

    #[test]
    fn ranges_at_the_ends_of_time_touch_their_neighbours() {
        let width = 86_400_000_000_000;
        let first = TimeRange::aligned(Timestamp::MIN, width);
        assert_eq!(first.start, Timestamp::MIN);
        assert_eq!(TimeRange::aligned(first.end, width).start, first.end);
        let last = TimeRange::aligned(Timestamp(i64::MAX - 1), width);
        assert_eq!((last.end, last.start.0 % width), (Timestamp::MAX, 0));
    }

    #[test]
    fn ranges_that_touch_do_not_overlap() {
        let a = TimeRange { start: Timestamp(0), end: Timestamp(10) };
        let b = TimeRange { start: Timestamp(10), end: Timestamp(20) };
        assert!(!a.overlaps(&b) && a.intersect(&b).is_empty());
    }
}
