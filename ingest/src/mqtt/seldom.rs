//! Lines of the log about what may happen again and again: said once in a while, with how often it happened.

use std::time::{Duration, Instant};

/// How long nothing is said after a line.
const PAUSE: Duration = Duration::from_secs(10);

/// When something was last said.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    said: Option<Instant>,
    /// How often it happened since.
    times: u64,
}

impl Seldom {
    /// It happened once more. Returns how often since it was last said, where it is to be said now.
    pub(super) fn again(&mut self, now: Instant) -> Option<u64> {
        self.times += 1;
        if self.said.is_some_and(|said| now.saturating_duration_since(said) < PAUSE) {
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_at_once_and_then_once_in_a_while() {
        let (mut seldom, start) = (Seldom::default(), Instant::now());
        let said: Vec<_> = (0..25).filter_map(|s| seldom.again(start + Duration::from_secs(s))).collect();
        assert_eq!(said, [1, 10, 10]);
    }
}
