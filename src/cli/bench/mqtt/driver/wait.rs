//! Waiting: for what others send, and for what is missing of our own.

use std::time::Duration;

use sonde_proto::mqtt::QoS;

use super::super::client::State;
use super::super::plan::Until;
use super::Driver;

impl Driver<'_> {
    /// Without publishers: takes what comes until the time is over, or all of `--messages` have come.
    pub(super) fn listen(&mut self, end: u64) {
        if let Until::Messages(all) = self.plan.until {
            self.expected = if self.thread == 0 { all } else { 0 };
            self.progress.expect(Some(self.expected));
            return;
        }
        self.progress.expect(None);
        loop {
            let now = self.plan.clock.now();
            if now >= end {
                return;
            }
            self.turn(Duration::from_nanos(end - now).min(Duration::from_millis(100)));
        }
    }

    /// Waits until everything is acknowledged and delivered, or nothing comes any more.
    pub(super) fn await_missing(&mut self) {
        let (plan, progress) = (self.plan, self.progress);
        // In this order: behind the end of publishing, the counts of what is to come grow no more.
        let is_over = || {
            progress.is_sent()
                && (plan.qos == QoS::AtMostOnce || progress.is_settled())
                && (plan.subscribers == 0 || progress.is_delivered())
        };
        progress.add(&self.tally, &mut self.published);
        let mut quiet = (plan.clock.now(), progress.state());
        while !is_over() {
            self.turn(Duration::from_millis(20));
            let now = plan.clock.now();
            if progress.state() != quiet.1 {
                quiet = (now, progress.state());
            }
            if now - quiet.0 > plan.patience.as_nanos() as u64 {
                return;
            }
        }
        // What is delivered twice comes a moment later.
        if plan.subscribers > 0 {
            self.turn(Duration::from_millis(50));
        }
        // Acknowledgements of the last deliveries.
        for client in &mut self.clients {
            if client.state == State::Open && client.flush().is_err() {
                client.state = State::Closed;
            }
        }
    }
}
