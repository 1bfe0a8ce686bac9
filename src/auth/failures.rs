//! Addresses that guess passwords are slowed; whoever is known already, and tokens, which nobody guesses, are not.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Addresses that are remembered.
const ADDRESSES: usize = 10_000;
/// Wrong passwords in a row that cost an address nothing.
const FREE: u32 = 10;
/// The longest that an address has to wait.
const LONGEST: Duration = Duration::from_secs(60);
/// How long a wrong password is remembered.
const MEMORY: Duration = Duration::from_secs(600);

/// Wrong passwords by address.
#[derive(Default)]
pub(super) struct Failures(Mutex<HashMap<IpAddr, Failed>>);

struct Failed {
    times: u32,
    last: Instant,
}

impl Failed {
    /// How long after its last wrong password an address has to wait: 1, 2, 4, ... seconds.
    fn pause(&self) -> Duration {
        match self.times.checked_sub(FREE) {
            None => Duration::ZERO,
            Some(beyond) => Duration::from_secs(1 << beyond.min(6)).min(LONGEST),
        }
    }
}

impl Failures {
    /// Whether an address has to wait before another password of its is looked at.
    pub(super) fn is_slowed(&self, peer: Option<IpAddr>) -> bool {
        let Some(peer) = peer else { return false };
        self.0.lock().get(&peer).is_some_and(|failed| failed.last.elapsed() < failed.pause())
    }

    /// A wrong password came from there.
    pub(super) fn failed(&self, peer: Option<IpAddr>) {
        let Some(peer) = peer else { return };
        let mut known = self.0.lock();
        if known.len() >= ADDRESSES && !known.contains_key(&peer) {
            known.retain(|_, failed| failed.last.elapsed() < MEMORY);
            if known.len() >= ADDRESSES {
                // Someone has many addresses: those that failed least are forgotten.
                known.retain(|_, failed| failed.times > 1);
            }
            if known.len() >= ADDRESSES {
                known.clear();
            }
        }
        let failed = known.entry(peer).or_insert(Failed { times: 0, last: Instant::now() });
        failed.times = if failed.last.elapsed() < MEMORY { failed.times.saturating_add(1) } else { 1 };
        failed.last = Instant::now();
    }

    /// A right password came from there.
    pub(super) fn succeeded(&self, peer: Option<IpAddr>) {
        if let Some(peer) = peer {
            self.0.lock().remove(&peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn whoever_guesses_waits_ever_longer() {
        let failures = Failures::default();
        let peer = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        (1..FREE).for_each(|_| failures.failed(peer));
        assert!(!failures.is_slowed(peer));
        failures.failed(peer);
        assert!(failures.is_slowed(peer) && !failures.is_slowed(None));
        failures.succeeded(peer);
        assert!(!failures.is_slowed(peer));
        let pause = |times| Failed { times, last: Instant::now() }.pause().as_secs();
        assert_eq!([1, FREE, FREE + 1, FREE + 5, 1000].map(pause), [0, 1, 2, 32, 60]);
    }

    #[test]
    fn no_more_addresses_are_remembered_than_the_limit() {
        let failures = Failures::default();
        for n in 0..2 * ADDRESSES as u32 {
            failures.failed(Some(IpAddr::V4(Ipv4Addr::from_bits(n))));
        }
        assert!(failures.0.lock().len() <= ADDRESSES);
    }
}
