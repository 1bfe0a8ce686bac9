//! Counts of durations in buckets whose width grows with them, so that every percentile is exact to 1 in 128.

/// Buckets to a doubling: a duration is known to `1 / STEPS`.
const STEPS: u64 = 1 << STEP_BITS;
const STEP_BITS: u32 = 7;
/// Buckets for every `u64`.
const BUCKETS: usize = ((64 - STEP_BITS + 1) as usize) << STEP_BITS;

/// Durations in nanoseconds.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    count: u64,
    max: u64,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self { counts: vec![0; BUCKETS], count: 0, max: 0 }
    }

    pub(super) fn record(&mut self, nanos: u64) {
        if let Some(count) = self.counts.get_mut(bucket(nanos)) {
            *count += 1;
        }
        self.count += 1;
        self.max = self.max.max(nanos);
    }

    /// Adds what another one has.
    pub(super) fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// The duration that this share of all does not exceed; 0 where there is none.
    pub(super) fn at(&self, share: f64) -> u64 {
        let wanted = ((self.count as f64 * share).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (place, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper(place).min(self.max);
            }
        }
        self.max
    }
}

/// Below `STEPS` a bucket is a nanosecond; above, each doubling has `STEPS` of them.
fn bucket(nanos: u64) -> usize {
    if nanos < STEPS {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - STEP_BITS;
    ((u64::from(shift) << STEP_BITS) + (nanos >> shift)) as usize
}

/// The largest duration of a bucket.
fn upper(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * STEPS {
        return bucket;
    }
    let shift = (bucket >> STEP_BITS) - 1;
    let low = ((bucket & (STEPS - 1)) | STEPS) << shift;
    low + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_touch_and_are_narrow() {
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(upper(BUCKETS - 1), u64::MAX);
        for place in 0..BUCKETS - 1 {
            let top = upper(place);
            assert_eq!((bucket(top), bucket(top + 1)), (place, place + 1), "{top}");
        }
        for nanos in [0, 1, 127, 128, 255, 256, 257, 1000, 123_456_789, u64::MAX / 3] {
            let top = upper(bucket(nanos));
            assert!(top >= nanos && top - nanos <= nanos / STEPS, "{nanos}: {top}");
        }
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_durations() {
        let mut first = Histogram::new();
        let mut second = Histogram::new();
        for nanos in 1..=100_000_u64 {
            let one = if nanos % 2 == 0 { &mut first } else { &mut second };
            one.record(nanos * 1000);
        }
        first.merge(&second);
        assert_eq!((first.count(), first.max()), (100_000, 100_000_000));
        for (share, exact) in [(0.5, 5e7), (0.9, 9e7), (0.99, 9.9e7), (0.999, 9.99e7), (1.0, 1e8)] {
            let found = first.at(share) as f64;
            assert!((exact..=exact * (1.0 + 1.0 / 128.0)).contains(&found), "{share}: {found}");
        }
    }

    #[test]
    fn nothing_has_no_duration() {
        assert_eq!((Histogram::new().at(0.5), Histogram::new().max()), (0, 0));
    }
}
