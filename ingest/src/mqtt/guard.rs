//! Who connects too much: how many connections an address has, and who comes back too often.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};

use foldhash::{HashMap, HashMapExt};

use crate::limits::CONNECT_COUNTS;

/// Seconds over which connects are counted.
const WINDOW: u64 = 60;

/// An address as connections are counted by it: of IPv6 the network, since a host has as many addresses as it wants.
/// `None` for this machine, which is not limited.
pub(super) fn counted(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        address if address.is_loopback() => None,
        IpAddr::V6(v6) => Some(Ipv6Addr::from(u128::from(v6) >> 64 << 64).into()),
        v4 => Some(v4),
    }
}

/// Connections by address.
#[derive(Debug, Default)]
pub(super) struct Addresses(HashMap<IpAddr, usize>);

impl Addresses {
    /// Counts a connection; `false`, and nothing counted, where there are `limit` already.
    pub(super) fn enter(&mut self, address: IpAddr, limit: usize) -> bool {
        let count = self.0.entry(address).or_default();
        let fits = limit == 0 || *count < limit;
        *count += usize::from(fits);
        fits
    }

    pub(super) fn leave(&mut self, address: IpAddr) {
        if let Some(count) = self.0.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&address);
            }
        }
    }
}

/// Who connects: someone by a client id, or an address. A client id alone is nobody's: whoever may not have its session
/// must not be able to have it refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Who {
    Client { owner: Option<Box<str>>, id: Box<str> },
    Address(IpAddr),
}

/// What is known of one of them.
#[derive(Clone, Copy, Debug)]
struct Connects {
    since: u64,
    count: u32,
    refused_until: u64,
}

/// Refuses whoever connects too often, for a while.
#[derive(Debug)]
pub(super) struct Flapping {
    /// Connects in a minute that are let in; 0 is all of them.
    limit: u32,
    /// Seconds for which it is refused then.
    ban: u64,
    known: HashMap<Who, Connects>,
    /// When each refusal ends, the next one first: all last equally long.
    ends: VecDeque<u64>,
}

/// What comes of a connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Welcome,
    /// It is refused from now on.
    Banned,
    /// It is refused still.
    StillBanned,
}

impl Flapping {
    pub(super) fn new(limit: u32, ban: u64) -> Self {
        Self { limit, ban, known: HashMap::new(), ends: VecDeque::new() }
    }

    /// Whether anything is counted.
    pub(super) fn is_on(&self) -> bool {
        self.limit > 0
    }

    /// Counts a connect at a second of the loop's clock.
    pub(super) fn connect(&mut self, who: Who, now: u64) -> Verdict {
        if self.known.len() >= CONNECT_COUNTS && !self.known.contains_key(&who) {
            if self.banned(now) > CONNECT_COUNTS / 2 {
                // Else everybody who connects would go through all of them for little.
                return Verdict::Welcome;
            }
            self.known.retain(|_, known| known.refused_until > now);
        }
        let known = self.known.entry(who).or_insert(Connects { since: now, count: 0, refused_until: 0 });
        if now < known.refused_until {
            return Verdict::StillBanned;
        }
        if now >= known.since + WINDOW {
            *known = Connects { since: now, count: 0, refused_until: 0 };
        }
        known.count += 1;
        if known.count <= self.limit {
            return Verdict::Welcome;
        }
        *known = Connects { since: now, count: 0, refused_until: now + self.ban };
        self.ends.push_back(now + self.ban);
        Verdict::Banned
    }

    /// Forgets those whose minute and ban are over; once in a while.
    pub(super) fn sweep(&mut self, now: u64) {
        self.known.retain(|_, known| now < known.refused_until || now < known.since + WINDOW);
    }

    /// How many are refused.
    pub(super) fn banned(&mut self, now: u64) -> usize {
        while self.ends.front().is_some_and(|end| *end <= now) {
            self.ends.pop_front();
        }
        self.ends.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_counted_by_host_and_this_machine_is_not() {
        let of = |text: &str| counted(text.parse().unwrap()).map(|address| address.to_string());
        assert_eq!(of("192.0.2.7").as_deref(), Some("192.0.2.7"));
        assert_eq!(of("::ffff:192.0.2.7").as_deref(), Some("192.0.2.7"));
        assert_eq!(of("2001:db8:1:2:3:4:5:6").as_deref(), Some("2001:db8:1:2::"));
        assert_eq!((of("127.0.0.9"), of("::1"), of("::ffff:127.0.0.1")), (None, None, None));
    }

    #[test]
    fn an_address_has_so_many_places() {
        let (mut addresses, address) = (Addresses::default(), "192.0.2.7".parse().unwrap());
        assert!(addresses.enter(address, 2) && addresses.enter(address, 2));
        assert!(!addresses.enter(address, 2));
        addresses.leave(address);
        assert!(addresses.enter(address, 2));
        addresses.leave(address);
        addresses.leave(address);
        assert!(addresses.0.is_empty());
    }

    #[test]
    fn who_connects_too_often_is_refused_for_a_while() {
        let mut flapping = Flapping::new(3, 100);
        let of = |owner: Option<&str>, id: &str| Who::Client { owner: owner.map(Into::into), id: id.into() };
        let who = || of(Some("user:u"), "c");
        let verdicts: Vec<_> = (0..5).map(|now| flapping.connect(who(), now)).collect();
        let [welcome, banned, still] = [Verdict::Welcome, Verdict::Banned, Verdict::StillBanned];
        assert_eq!(verdicts, [welcome, welcome, welcome, banned, still]);
        assert_eq!(flapping.connect(of(Some("user:u"), "other"), 5), welcome);
        assert_eq!(flapping.connect(of(Some("user:other"), "c"), 5), welcome, "nobody refuses others");
        assert_eq!(flapping.connect(of(None, "c"), 5), welcome);
        assert_eq!((flapping.banned(5), flapping.connect(who(), 102)), (1, still));
        assert_eq!((flapping.banned(103), flapping.connect(who(), 103)), (0, welcome));
        // Slowly is not too often.
        assert!((200..1000).step_by(21).all(|now| flapping.connect(of(None, "slow"), now) == welcome));
        flapping.sweep(2000);
        assert!(flapping.known.is_empty());
    }
}
