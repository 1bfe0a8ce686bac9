//! Publishing by the plan: at a fixed rate, or as fast as acknowledgements come.

use std::time::Duration;

use sonde_proto::mqtt::{Packet, Properties, Publish, QoS};

use super::super::client::{Client, Role, State};
use super::super::pace::Pace;
use super::super::plan::{Plan, Until};
use super::super::template::{Fill, Random};
use super::{Driver, said};

/// Bytes that wait for a socket before no more QoS 0 messages are made for it.
const OUTPUT_BYTES: usize = 64 << 10;

/// Makes messages, in buffers that it keeps.
pub(super) struct Composer {
    random: Random,
    payload: Vec<u8>,
    topic: Vec<u8>,
}

impl Composer {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), payload: Vec::new(), topic: Vec::new() }
    }

    /// Appends a publisher's next message to its output.
    fn append(&mut self, plan: &Plan, client: &mut Client, fill: &Fill, packet_id: u16) {
        self.payload.clear();
        plan.payload.write(fill, &mut self.random, &mut self.payload);
        let topic = match &client.role {
            Role::Publisher { topic: Some(topic), .. } => topic.as_str(),
            _ => {
                self.topic.clear();
                plan.topic.write(fill, &mut self.random, &mut self.topic);
                std::str::from_utf8(&self.topic).unwrap_or_default()
            }
        };
        let publish = Publish {
            dup: false,
            qos: plan.qos,
            retain: false,
            topic,
            packet_id,
            properties: Properties::default(),
            payload: &self.payload,
        };
        Packet::Publish(publish).encode(plan.version, &mut client.output);
    }
}

impl Driver<'_> {
    /// Publishes until `end`, or until all is sent.
    pub(super) fn publish(&mut self, end: u64) {
        let places = self.publishers.clone();
        let limits = self.limits();
        let all = limits.iter().fold(0_u64, |sum, limit| sum.saturating_add(*limit));
        if self.plan.rate.is_none() {
            for (place, limit) in places.iter().zip(&limits) {
                self.allow(*place, *limit);
                self.fill(*place);
            }
        }
        let mut issued = 0;
        loop {
            let now = self.plan.clock.now();
            let is_open = |place: &usize| self.clients.get(*place).is_some_and(|c| c.state == State::Open);
            if now >= end || !places.iter().any(is_open) {
                return;
            }
            if let Some(pace) = self.pace() {
                let due = pace.due_by(now).min(all);
                self.issue(&places, issued, due);
                issued = issued.max(due);
            }
            let is_issued = self.plan.rate.is_none() || issued >= all;
            if is_issued && self.unfinished == 0 {
                return;
            }
            let hungry = std::mem::take(&mut self.hungry);
            let patience = if hungry.is_empty() { Duration::from_millis(100) } else { Duration::ZERO };
            self.turn(Duration::from_nanos(end.saturating_sub(now)).min(patience));
            hungry.into_iter().for_each(|place| self.fill(place));
        }
    }

    /// How many messages each publisher has to send.
    fn limits(&self) -> Vec<u64> {
        let each = |local: usize| match self.plan.until {
            Until::Messages(all) => {
                let number = (self.thread + local * self.plan.threads) as u64;
                let publishers = self.plan.publishers as u64;
                all / publishers + u64::from(number < all % publishers)
            }
            Until::Time(_) => u64::MAX,
        };
        (0..self.publishers.len()).map(each).collect()
    }

    /// Lets the publishers at these places, each in its turn, send the messages from `issued` up to `due`.
    fn issue(&mut self, places: &[usize], issued: u64, due: u64) {
        let turns = places.len() as u64;
        let place = |message: u64| places.get((message % turns) as usize).copied();
        for message in issued..due {
            let Some(place) = place(message) else { break };
            self.allow(place, message / turns + 1);
        }
        (issued..due).filter_map(place).for_each(|place| self.fill(place));
    }

    /// Publishes what a client may publish now.
    pub(super) fn fill(&mut self, place: usize) {
        let plan = self.plan;
        let pace = self.pace();
        let Some(client) = self.clients.get_mut(place).filter(|client| client.state == State::Open) else {
            return;
        };
        let (mut made, mut had_work) = (0_u64, false);
        let local = self.publishers.first().map_or(0, |first| place.wrapping_sub(*first));
        while let Role::Publisher { sent, due, last_due, .. } = &client.role {
            if *sent >= *due {
                break;
            }
            had_work = true;
            let (number, last_due) = (*sent, *last_due);
            if plan.qos == QoS::AtMostOnce && client.output.len() > OUTPUT_BYTES {
                break;
            }
            let now = plan.clock.now();
            let time = pace.map_or(now, |pace| pace.due(local, number)).max(last_due + 1);
            let Some(packet_id) = client.take_id(plan.qos, time) else { break };
            let fill = Fill { client: client.number, number, time };
            self.composer.append(plan, client, &fill, packet_id);
            let Role::Publisher { sent, last_due, audience, .. } = &mut client.role else { break };
            (*sent, *last_due) = (number + 1, time);
            made += 1;
            self.tally.sent += 1;
            self.expected += audience.unwrap_or_default();
            self.progress.expect(*audience);
            if plan.qos == QoS::AtMostOnce {
                self.tally.count_written(time, now);
            }
        }
        let has_more = matches!(&client.role, Role::Publisher { sent, due, .. } if sent < due);
        self.unfinished -= usize::from(had_work && !has_more);
        let outcome = if made > 0 { client.flush() } else { Ok(()) };
        if plan.qos == QoS::AtMostOnce && has_more && client.output.is_empty() {
            self.hungry.push(place);
        }
        if let Err(broken) = outcome {
            self.end(place, said(broken));
        }
    }

    /// The schedule of this thread's publishers.
    fn pace(&self) -> Option<Pace> {
        let all = self.plan.publishers.max(1) as f64;
        let mine = self.publishers.len();
        self.plan.rate.map(|rate| Pace::new(self.start, rate * mine as f64 / all, mine))
    }

    /// Lets a publisher send up to `due` messages.
    fn allow(&mut self, place: usize, allowed: u64) {
        let Some(client) = self.clients.get_mut(place) else { return };
        let is_open = client.state == State::Open;
        if let Role::Publisher { sent, due, .. } = &mut client.role
            && is_open
            && allowed > *due
        {
            if *sent >= *due {
                self.unfinished += 1;
            }
            *due = allowed;
        }
    }

    /// Nothing more is sent. Returns how many messages were due and are not.
    pub(super) fn stop_publishing(&mut self) -> u64 {
        let mut unsent = 0;
        for client in &mut self.clients {
            if let Role::Publisher { sent, due, .. } = &mut client.role {
                if *due != u64::MAX {
                    unsent += *due - *sent;
                }
                *due = *sent;
            }
        }
        self.progress.end_publishing();
        unsent
    }
}
