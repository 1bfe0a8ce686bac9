//! How long what failed rests before it is tried again: twice as long each time, up to a limit.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::error::Result;

/// How long it rests after the first failure.
const FIRST: Duration = Duration::from_secs(1);

/// The rest of one thing.
#[derive(Debug)]
pub(crate) struct Pause {
    most: Duration,
    last: Duration,
    until: Option<Instant>,
}

impl Pause {
    /// No rest; none will be longer than `most`.
    pub(crate) fn new(most: Duration) -> Self {
        Self { most, last: Duration::ZERO, until: None }
    }

    /// Until when it rests.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// It failed; returns how long it rests from now on.
    pub(crate) fn failed(&mut self, now: Instant) -> Duration {
        self.last = (self.last * 2).clamp(FIRST, self.most);
        self.until = Some(now + self.last);
        self.last
    }

    /// It worked.
    pub(crate) fn worked(&mut self) {
        *self = Self::new(self.most);
    }
}

/// The rests of several things, each by itself.
#[derive(Debug)]
pub(crate) struct Rests<T> {
    most: Duration,
    pauses: HashMap<T, Pause>,
}

impl<T: Eq + Hash> Rests<T> {
    /// Nothing rests; nothing will for longer than `most`.
    pub(crate) fn new(most: Duration) -> Self {
        Self { most, pauses: HashMap::new() }
    }

    /// Whether it rests now.
    pub(crate) fn rests(&self, task: &T) -> bool {
        let until = self.pauses.get(task).and_then(Pause::until);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Notes how an attempt ended; returns how long the task rests where it failed.
    pub(crate) fn note<R>(&mut self, task: T, outcome: &Result<R>) -> Option<Duration> {
        if outcome.is_ok() {
            self.pauses.remove(&task);
            return None;
        }
        let pause = self.pauses.entry(task).or_insert_with(|| Pause::new(self.most));
        Some(pause.failed(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_pause_doubles_up_to_its_limit_and_ends_with_a_success() {
        let mut pause = Pause::new(Duration::from_secs(5));
        let now = Instant::now();
        assert_eq!(pause.until(), None);
        let secs: Vec<u64> = (0..5).map(|_| pause.failed(now).as_secs()).collect();
        assert_eq!(secs, [1, 2, 4, 5, 5]);
        assert_eq!(pause.until(), Some(now + Duration::from_secs(5)));
        pause.worked();
        assert_eq!((pause.until(), pause.failed(now).as_secs()), (None, 1));
    }

    #[test]
    fn each_task_rests_by_itself() {
        let mut rests = Rests::new(Duration::from_secs(60));
        assert_eq!(rests.note("a", &Err::<(), _>(Error::Closed)), Some(FIRST));
        assert_eq!(rests.note("a", &Err::<(), _>(Error::Closed)), Some(2 * FIRST));
        assert!(rests.rests(&"a") && !rests.rests(&"b"));
        assert_eq!(rests.note("a", &Ok(())), None);
        assert!(!rests.rests(&"a"));
    }
}
