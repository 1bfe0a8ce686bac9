//! Whoever guesses passwords is slowed: an address for each name, and, more loosely, for all of them together. Whoever is
//! known already, and tokens, which nobody guesses, are not.
//!
//! # Invariants
//! - An address of IPv6 is its network of 64 bits: a host has as many addresses as it wants.
//! - A right password forgives the wrong ones of its own name, none of others: an account of one's own is no help.
//! - Those that failed most are remembered longest, however many others fail.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Addresses, and pairs of an address and a name, that are remembered; some 80 bytes each.
const REMEMBERED: usize = 20_000;
/// Wrong passwords in a row for a name that cost an address nothing.
const FREE: u32 = 10;
/// Wrong passwords for all names that cost an address nothing: behind it may be many clients.
const FREE_OF_ADDRESS: u32 = 100;
/// How soon one of these is forgotten: one client that comes back with a wrong password does not use them up.
const FORGIVEN: Duration = Duration::from_secs(6);
/// The longest that someone has to wait.
const LONGEST: Duration = Duration::from_secs(60);
/// How long a wrong password is remembered.
const MEMORY: Duration = Duration::from_secs(600);

/// Who failed: an address, for the name of this hash or for all.
type Who = (IpAddr, Option<u64>);

/// Wrong passwords.
#[derive(Default)]
pub(super) struct Failures {
    known: Mutex<HashMap<Who, Failed>>,
    /// Its key is of this process: nobody can make two names one.
    names: RandomState,
}

struct Failed {
    times: u32,
    last: Instant,
}

impl Failed {
    /// How long after the last wrong password one has to wait: 1, 2, 4, ... seconds.
    fn pause(&self, free: u32) -> Duration {
        match self.times.checked_sub(free) {
            None => Duration::ZERO,
            Some(beyond) => Duration::from_secs(1 << beyond.min(6)).min(LONGEST),
        }
    }

    /// Another one; of those before, one is forgotten in each `forgiven`.
    fn again(&mut self, forgiven: Option<Duration>, now: Instant) {
        let since = now.saturating_duration_since(self.last);
        let forgotten = forgiven.map_or(0, |forgiven| since.as_secs() / forgiven.as_secs().max(1));
        let before = if since < MEMORY { self.times } else { 0 };
        let forgotten = u32::try_from(forgotten).unwrap_or(u32::MAX);
        (self.times, self.last) = (before.saturating_sub(forgotten).saturating_add(1), now);
    }
}

/// An address as it is remembered.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

impl Failures {
    /// The address for the name, and for all.
    fn who(&self, peer: IpAddr, name: &str) -> [(Who, u32, Option<Duration>); 2] {
        let network = network(peer);
        let name = self.names.hash_one(name);
        [((network, Some(name)), FREE, None), ((network, None), FREE_OF_ADDRESS, Some(FORGIVEN))]
    }

    /// Whether someone has to wait before another password of this name is looked at.
    pub(super) fn is_slowed(&self, peer: Option<IpAddr>, name: &str) -> bool {
        let Some(peer) = peer else { return false };
        let known = self.known.lock();
        self.who(peer, name).iter().any(|(who, free, _)| {
            known.get(who).is_some_and(|failed| failed.last.elapsed() < failed.pause(*free))
        })
    }

    /// A wrong password came from there.
    pub(super) fn failed(&self, peer: Option<IpAddr>, name: &str) {
        let Some(peer) = peer else { return };
        let now = Instant::now();
        let mut known = self.known.lock();
        for (who, _, forgiven) in self.who(peer, name) {
            if known.len() >= REMEMBERED && !known.contains_key(&who) {
                make_room(&mut known);
            }
            known.entry(who).or_insert(Failed { times: 0, last: now }).again(forgiven, now);
        }
    }

    /// A right password came from there.
    pub(super) fn succeeded(&self, peer: Option<IpAddr>, name: &str) {
        let Some(peer) = peer else { return };
        let [(who, ..), _] = self.who(peer, name);
        self.known.lock().remove(&who);
    }
}

/// Forgets what is over, or, where someone has many addresses or names, the half that failed least and longest ago.
fn make_room(known: &mut HashMap<Who, Failed>) {
    known.retain(|_, failed| failed.last.elapsed() < MEMORY);
    if known.len() < REMEMBERED {
        return;
    }
    let mut order: Vec<_> = known.iter().map(|(who, failed)| (failed.times, failed.last, *who)).collect();
    order.sort_unstable_by_key(|(times, last, _)| (*times, *last));
    for (_, _, who) in order.iter().take(REMEMBERED / 2) {
        known.remove(who);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HERE: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));

    #[test]
    fn whoever_guesses_waits_ever_longer() {
        let failures = Failures::default();
        (1..FREE).for_each(|_| failures.failed(HERE, "a"));
        assert!(!failures.is_slowed(HERE, "a"));
        failures.failed(HERE, "a");
        assert!(failures.is_slowed(HERE, "a") && !failures.is_slowed(None, "a"));
        assert!(!failures.is_slowed(HERE, "b"), "the password of another name");
        failures.succeeded(HERE, "b");
        assert!(failures.is_slowed(HERE, "a"), "an account of one's own is no help");
        failures.succeeded(HERE, "a");
        assert!(!failures.is_slowed(HERE, "a"));
        let pause = |times| Failed { times, last: Instant::now() }.pause(FREE).as_secs();
        assert_eq!([1, FREE, FREE + 1, FREE + 5, 1000].map(pause), [0, 1, 2, 32, 60]);
    }

    #[test]
    fn an_address_that_tries_many_names_is_slowed_for_all_of_them() {
        let failures = Failures::default();
        (1..FREE_OF_ADDRESS).for_each(|n| failures.failed(HERE, &n.to_string()));
        assert!(!failures.is_slowed(HERE, "x"));
        failures.failed(HERE, "y");
        assert!(failures.is_slowed(HERE, "x"));
        failures.succeeded(HERE, "y");
        assert!(failures.is_slowed(HERE, "x"));
        assert!(!failures.is_slowed(Some(Ipv4Addr::new(10, 0, 0, 1).into()), "x"));
    }

    #[test]
    fn what_an_address_failed_at_is_forgotten_bit_by_bit() {
        let now = Instant::now();
        let mut failed = Failed { times: 50, last: now };
        failed.again(Some(FORGIVEN), now + 10 * FORGIVEN);
        assert_eq!(failed.times, 41);
        failed.again(None, now + 20 * FORGIVEN);
        assert_eq!(failed.times, 42);
        failed.again(None, now + 20 * FORGIVEN + MEMORY);
        assert_eq!(failed.times, 1);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let failures = Failures::default();
        let peer = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        (0..FREE).for_each(|n| failures.failed(peer(&format!("2001:db8:0:1::{n:x}")), "a"));
        assert!(failures.is_slowed(peer("2001:db8:0:1:f::"), "a"));
        assert!(!failures.is_slowed(peer("2001:db8:0:2::1"), "a"));
        (0..FREE).for_each(|_| failures.failed(peer("::ffff:10.0.0.1"), "a"));
        assert!(failures.is_slowed(peer("10.0.0.1"), "a"));
    }

    #[test]
    fn many_others_do_not_make_an_address_forgotten() {
        let failures = Failures::default();
        (0..FREE).for_each(|_| failures.failed(HERE, "a"));
        for n in 0..2 * REMEMBERED as u32 {
            failures.failed(Some(Ipv4Addr::from_bits(n).into()), "a");
        }
        assert!(failures.known.lock().len() <= REMEMBERED);
        let [(who, ..), _] = failures.who(HERE.unwrap(), "a");
        assert_eq!(failures.known.lock().get(&who).unwrap().times, FREE);
    }
}
