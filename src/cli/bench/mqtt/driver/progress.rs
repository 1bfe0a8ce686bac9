//! What all threads know of each other's messages, so that each can tell when nothing is missing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::super::client::Tally;

/// Counts of all threads together.
#[derive(Debug)]
pub(in crate::cli::bench::mqtt) struct Progress {
    /// Messages sent that are to be acknowledged.
    sent: AtomicU64,
    settled: AtomicU64,
    /// Deliveries that are to come; meaningless while `blind`.
    expected: AtomicU64,
    distinct: AtomicU64,
    received: AtomicU64,
    /// Threads that may send more.
    publishing: AtomicU64,
    /// Nobody can tell how many deliveries are to come.
    blind: AtomicBool,
}

impl Progress {
    pub(in crate::cli::bench::mqtt) fn new(threads: usize) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            sent: zero(),
            settled: zero(),
            expected: zero(),
            distinct: zero(),
            received: zero(),
            publishing: AtomicU64::new(threads as u64),
            blind: AtomicBool::new(false),
        }
    }

    /// Adds what a thread has counted since the last time, which `told` remembers.
    pub(super) fn add(&self, now: &Tally, told: &mut Tally) {
        self.sent.fetch_add(now.sent - told.sent, Relaxed);
        let settled = |tally: &Tally| tally.acknowledged + tally.refused;
        self.settled.fetch_add(settled(now) - settled(told), Relaxed);
        self.distinct.fetch_add(now.distinct - told.distinct, Relaxed);
        self.received.fetch_add(now.received - told.received, Relaxed);
        (told.sent, told.acknowledged, told.refused) = (now.sent, now.acknowledged, now.refused);
        (told.distinct, told.received) = (now.distinct, now.received);
    }

    /// So many more deliveries are to come; `None` where nobody can tell.
    pub(super) fn expect(&self, deliveries: Option<u64>) {
        match deliveries {
            Some(deliveries) => {
                self.expected.fetch_add(deliveries, Relaxed);
            }
            None => self.blind.store(true, Relaxed),
        }
    }

    /// Whether nobody can tell how many deliveries are to come.
    pub(super) fn is_blind(&self) -> bool {
        self.blind.load(Relaxed)
    }

    /// A thread sends nothing more.
    pub(super) fn end_publishing(&self) {
        self.publishing.fetch_sub(1, Relaxed);
    }

    /// Whether nothing more is sent.
    pub(super) fn is_sent(&self) -> bool {
        self.publishing.load(Relaxed) == 0
    }

    /// Whether what was sent is acknowledged.
    pub(super) fn is_settled(&self) -> bool {
        self.settled.load(Relaxed) >= self.sent.load(Relaxed)
    }

    /// Whether all has come that was to come; never where nobody can tell.
    pub(super) fn is_delivered(&self) -> bool {
        !self.is_blind() && self.distinct.load(Relaxed) >= self.expected.load(Relaxed)
    }

    /// Changes as long as something goes on.
    pub(super) fn state(&self) -> [u64; 3] {
        [&self.settled, &self.received, &self.sent].map(|count| count.load(Relaxed))
    }
}
