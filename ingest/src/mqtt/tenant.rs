//! Tenants: what the clients of one take together, and whose turn it is where that is too much.
//!
//! # Invariants
//! - A tenant is the `${tenant}` of the rights. Who has none shares nothing with anybody.
//! - What is over a rate waits with its client, never refused and never dropped; those who wait are read one after the other,
//!   so none of them waits for ever.
//! - A rate is the tenant's as long as something of it is owed, whoever has left meanwhile.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::HashMap;
use sonde_access::Principal;

use super::connection::{Connection, Parked};
use super::options::TenantLimits;
use super::pace::Meter;
use super::router::SessionKey;
use super::session::Session;
use super::turn::ConnectionKey;
use super::worker::Worker;

/// Why a client of a tenant with too many connections is not let in.
pub(super) const TENANT_FULL: &str = "the tenant has as many connections as it may";

/// What is known of one tenant.
#[derive(Debug)]
struct Tenant {
    connections: usize,
    /// Bytes that wait for its sessions.
    queued_bytes: u64,
    meter: Option<Box<Meter>>,
    /// Connections that are not read until it is their turn.
    turns: VecDeque<ConnectionKey>,
    /// When the next of them is looked at.
    due: Option<Instant>,
}

/// The tenants of those who are here, or for whom something waits.
#[derive(Debug)]
pub(super) struct Tenants {
    limits: TenantLimits,
    known: HashMap<Arc<str>, Tenant>,
    /// Those of whom somebody waits for a turn.
    due: BTreeSet<(Instant, Arc<str>)>,
}

impl Tenants {
    pub(super) fn new(limits: TenantLimits) -> Self {
        Self { limits, known: HashMap::default(), due: BTreeSet::new() }
    }

    /// Whether there is a rate: connections of tenants are read little by little then.
    pub(super) fn has_rates(&self) -> bool {
        self.limits.messages_per_second > 0 || self.limits.bytes_per_second > 0
    }

    /// Whether it is counted what waits.
    pub(super) fn counts_queues(&self) -> bool {
        self.limits.queued_bytes > 0
    }

    fn entry(&mut self, name: &Arc<str>) -> &mut Tenant {
        let TenantLimits { messages_per_second, bytes_per_second, .. } = self.limits;
        self.known.entry(Arc::clone(name)).or_insert_with(|| Tenant {
            connections: 0,
            queued_bytes: 0,
            meter: Meter::new(messages_per_second, bytes_per_second, Instant::now()),
            turns: VecDeque::new(),
            due: None,
        })
    }

    /// Whether one more connection may come, once `leaving` of its own have gone.
    pub(super) fn has_place(&self, name: &str, leaving: usize) -> bool {
        let open = self.known.get(name).map_or(0, |tenant| tenant.connections);
        self.limits.connections == 0 || open.saturating_sub(leaving) < self.limits.connections
    }

    /// Counts a connection.
    pub(super) fn enter(&mut self, name: &Arc<str>) {
        self.entry(name).connections += 1;
    }

    /// A connection is gone, or another tenant's.
    pub(super) fn leave(&mut self, name: &str, key: ConnectionKey) {
        if let Some(tenant) = self.known.get_mut(name) {
            tenant.connections = tenant.connections.saturating_sub(1);
            tenant.turns.retain(|waiting| *waiting != key);
        }
    }

    /// Counts a packet of a connection, for its own rates and those of its tenant.
    pub(super) fn count_packet(
        &mut self,
        connection: &mut Connection,
        is_message: bool,
        bytes: usize,
        now: Instant,
    ) {
        if let Some(meter) = &mut connection.meter {
            meter.count(is_message, bytes, now);
        }
        if let Some(tenant) = &connection.tenant {
            self.count(tenant, is_message, bytes, now);
        }
    }

    fn count(&mut self, name: &str, is_message: bool, bytes: usize, now: Instant) {
        if let Some(meter) = self.known.get_mut(name).and_then(|tenant| tenant.meter.as_mut()) {
            meter.count(is_message, bytes, now);
        }
    }

    /// Whether a connection is over one of its rates, or of its tenant's.
    pub(super) fn is_over_rate(&self, connection: &Connection, now: Instant) -> bool {
        connection.over_rate(now).is_some()
            || connection.tenant.as_ref().is_some_and(|tenant| self.is_over(tenant, now))
    }

    fn is_over(&self, name: &str, now: Instant) -> bool {
        self.known.get(name).is_some_and(|tenant| !tenant.wait(now).is_zero())
    }

    /// Whether a connection is not to be read now; `has_turn` where it has waited and is the next one.
    pub(super) fn is_to_wait(&self, name: &str, has_turn: bool, now: Instant) -> bool {
        let Some(tenant) = self.known.get(name) else { return false };
        !tenant.wait(now).is_zero() || !has_turn && !tenant.turns.is_empty()
    }

    /// A connection waits for its turn: behind the others, unless it was the next one and could not be read.
    pub(super) fn wait_for_turn(
        &mut self,
        name: &Arc<str>,
        key: ConnectionKey,
        had_turn: bool,
        now: Instant,
    ) {
        let tenant = self.entry(name);
        if had_turn {
            tenant.turns.push_front(key);
        } else {
            tenant.turns.push_back(key);
        }
        self.plan(name, now);
    }

    /// Notes when the next one is looked at, where that is not known.
    fn plan(&mut self, name: &Arc<str>, now: Instant) {
        let Some(tenant) = self.known.get_mut(name) else { return };
        if tenant.due.is_none() && !tenant.turns.is_empty() {
            let at = now + tenant.wait(now);
            tenant.due = Some(at);
            self.due.insert((at, Arc::clone(name)));
        }
    }

    /// When somebody's turn may have come.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Those whose turn it is: one of each tenant that is not over its rates.
    pub(super) fn take_turns(&mut self, now: Instant) -> Vec<ConnectionKey> {
        let mut turns = Vec::new();
        let later = self.due.iter().find(|(at, _)| *at > now).cloned();
        let behind = later.map_or_else(BTreeSet::new, |first| self.due.split_off(&first));
        for (_, name) in std::mem::replace(&mut self.due, behind) {
            let Some(tenant) = self.known.get_mut(&name) else { continue };
            tenant.due = None;
            if tenant.wait(now).is_zero() {
                turns.extend(tenant.turns.pop_front());
            }
            self.plan(&name, now);
        }
        turns
    }

    /// Whether a message of this size may wait for a session. Where its client is there and keeps up, it hardly waits at all,
    /// whatever waits for others of its tenant.
    pub(super) fn may_wait(&self, session: &Session, bytes: u64) -> bool {
        self.has_room(session.tenant.as_ref(), bytes) || session.is_here() && session.is_caught_up()
    }

    /// Whether so many more bytes may wait for a tenant's sessions.
    fn has_room(&self, name: Option<&Arc<str>>, bytes: u64) -> bool {
        let Some(name) = name.filter(|_| self.counts_queues()) else { return true };
        let queued = self.known.get(name).map_or(0, |tenant| tenant.queued_bytes);
        queued + bytes <= self.limits.queued_bytes
    }

    /// What waits for a session of a tenant was `before` and is `now`, in bytes.
    pub(super) fn queue_changed(&mut self, name: &Arc<str>, before: u64, now: u64) {
        let tenant = self.entry(name);
        tenant.queued_bytes = (tenant.queued_bytes + now).saturating_sub(before);
    }

    /// Forgets those of whom nothing is here and nothing is owed; once in a while.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.known.retain(|_, tenant| {
            tenant.connections > 0
                || tenant.queued_bytes > 0
                || tenant.due.is_some()
                || tenant.meter.as_ref().is_some_and(|meter| meter.owes(now))
        });
    }
}

impl Tenant {
    /// How long none of its connections is read; zero where one may be.
    fn wait(&self, now: Instant) -> Duration {
        self.meter.as_ref().map_or(Duration::ZERO, |meter| meter.wait(now))
    }
}

impl Worker {
    /// Whether the tenant of a client that is recognised has a place for it. The connection that it takes over leaves one.
    pub(super) fn has_place_for(&self, client_id: &str, principal: &Principal) -> bool {
        let Some(tenant) = principal.tenant() else { return true };
        let session = self.by_client.get(client_id).and_then(|key| self.sessions.get(*key));
        let taken_over = session.and_then(|session| self.connections.get(session.connection?));
        let leaves = taken_over.is_some_and(|(_, connection)| connection.tenant.as_deref() == Some(tenant));
        self.tenants.has_place(tenant, usize::from(leaves))
    }

    /// A connection and its session are of this tenant from now on.
    pub(super) fn join_tenant(&mut self, key: ConnectionKey, session: SessionKey, tenant: Option<&str>) {
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return };
        if connection.tenant.as_deref() != tenant {
            if let Some(left) = connection.tenant.take() {
                self.tenants.leave(&left, key);
            }
            connection.tenant = tenant.map(Arc::from);
            connection.tenant.iter().for_each(|tenant| self.tenants.enter(tenant));
            connection.paced = connection.meter.is_some() || tenant.is_some() && self.tenants.has_rates();
        }
        let joined = connection.tenant.clone();
        // It does not wait for a tenant any more that is not its own.
        self.unpark(key, Parked::Tenant);
        let Some(state) = self.sessions.get_mut(session) else { return };
        let before = std::mem::replace(&mut state.tenant, joined);
        if let Some(before) = before.as_ref().filter(|_| state.tenant_bytes > 0) {
            self.tenants.queue_changed(before, std::mem::take(&mut state.tenant_bytes), 0);
        }
        if state.is_durable() && (before.is_some() || state.tenant.is_some()) {
            self.turn.builder.state(state.tenant_record());
        }
        self.count_waiting(session);
    }

    /// Whether a connection is not read now for its tenant's rates: then it waits for its turn.
    pub(super) fn waits_for_tenant(&mut self, key: ConnectionKey, had_turn: bool) -> bool {
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return false };
        let Some(tenant) = &connection.tenant else { return false };
        let now = Instant::now();
        let waits = self.tenants.is_to_wait(tenant, had_turn, now);
        if waits {
            self.tenants.wait_for_turn(tenant, key, had_turn, now);
            connection.park(Parked::Tenant);
        }
        waits
    }

    /// Reads those again whose turn it is.
    pub(super) fn give_turns(&mut self) {
        if self.tenants.due().is_none() || !self.may_read() {
            return;
        }
        for key in self.tenants.take_turns(Instant::now()) {
            if let Some((_, connection)) = self.connections.get_mut(key.place) {
                connection.has_turn = true;
            }
            self.unpark(key, Parked::Tenant);
        }
    }

    /// Tells a session's tenant how much waits for it.
    pub(super) fn count_waiting(&mut self, key: SessionKey) {
        if !self.tenants.counts_queues() {
            return;
        }
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(tenant) = &session.tenant else { return };
        let now = session.waiting_bytes();
        let before = std::mem::replace(&mut session.tenant_bytes, now);
        if before != now {
            self.tenants.queue_changed(tenant, before, now);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn tenants(limits: TenantLimits) -> (Tenants, Arc<str>) {
        (Tenants::new(limits), "acme".into())
    }

    fn connection(place: usize) -> ConnectionKey {
        ConnectionKey { place, generation: 1 }
    }

    #[test]
    fn a_tenant_has_so_many_places_and_one_that_is_replaced_needs_none() {
        let (mut tenants, acme) = tenants(TenantLimits { connections: 2, ..TenantLimits::default() });
        tenants.enter(&acme);
        assert!(tenants.has_place(&acme, 0));
        tenants.enter(&acme);
        assert!(!tenants.has_place(&acme, 0) && tenants.has_place(&acme, 1));
        assert!(tenants.has_place("other", 0));
        tenants.leave(&acme, connection(1));
        assert!(tenants.has_place(&acme, 0));
    }

    #[test]
    fn those_who_wait_are_read_one_after_the_other() {
        let (mut tenants, acme) =
            tenants(TenantLimits { messages_per_second: 10, ..TenantLimits::default() });
        tenants.enter(&acme);
        let start = Instant::now();
        (0..11).for_each(|_| tenants.count(&acme, true, 1, start));
        let again = start + Duration::from_millis(100);
        for place in 0..3 {
            assert!(tenants.is_to_wait(&acme, false, start));
            tenants.wait_for_turn(&acme, connection(place), false, start);
        }
        assert_eq!(tenants.take_turns(start), []);
        let mut order = Vec::new();
        let mut now = again;
        for _ in 0..7 {
            let turns = tenants.take_turns(now);
            let [turn] = turns.as_slice() else { panic!("{turns:?}") };
            order.push(turn.place);
            // Others who come meanwhile stand behind.
            assert!(tenants.is_to_wait(&acme, false, now) && !tenants.is_to_wait(&acme, true, now));
            tenants.count(&acme, true, 1, now);
            assert!(tenants.is_over(&acme, now) && tenants.take_turns(now).is_empty());
            tenants.wait_for_turn(&acme, *turn, false, now);
            now += Duration::from_millis(100);
        }
        assert_eq!(order, [0, 1, 2, 0, 1, 2, 0]);
        // One that goes leaves its turn to the next.
        tenants.leave(&acme, connection(1));
        assert_eq!(tenants.take_turns(now), [connection(2)]);
        // And one that could not use it keeps it.
        tenants.wait_for_turn(&acme, connection(2), true, now);
        assert_eq!(tenants.take_turns(now), [connection(2)]);
        assert_eq!(tenants.take_turns(now), [connection(0)]);
        assert_eq!((tenants.take_turns(now).len(), tenants.due()), (0, None));
    }

    #[test]
    fn what_is_owed_is_not_forgotten_with_the_connection() {
        let (mut tenants, acme) = tenants(TenantLimits { messages_per_second: 1, ..TenantLimits::default() });
        let start = Instant::now();
        tenants.enter(&acme);
        (0..5).for_each(|_| tenants.count(&acme, true, 1, start));
        tenants.leave(&acme, connection(0));
        tenants.sweep(start + Duration::from_secs(1));
        tenants.enter(&acme);
        assert!(tenants.is_over(&acme, start + Duration::from_secs(3)));
        tenants.leave(&acme, connection(0));
        tenants.sweep(start + Duration::from_secs(60));
        assert!(tenants.known.is_empty());
    }

    #[test]
    fn queues_are_counted_together() {
        let (mut tenants, acme) = tenants(TenantLimits { queued_bytes: 100, ..TenantLimits::default() });
        tenants.queue_changed(&acme, 0, 60);
        tenants.queue_changed(&acme, 0, 30);
        assert!(tenants.has_room(Some(&acme), 10) && !tenants.has_room(Some(&acme), 11));
        assert!(tenants.has_room(None, 1000) && tenants.has_room(Some(&"other".into()), 100));
        tenants.queue_changed(&acme, 60, 20);
        assert!(tenants.has_room(Some(&acme), 50));
        tenants.queue_changed(&acme, 30, 0);
        tenants.queue_changed(&acme, 20, 0);
        tenants.sweep(Instant::now());
        assert!(tenants.known.is_empty());
    }
}
