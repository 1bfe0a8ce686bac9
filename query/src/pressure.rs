//! What queries hold of the process's memory, and who yields when it is short.
//!
//! # Invariants
//! - A query is charged with everything that its operators reserve; the pool of all queries decides whether it gets it.
//! - While memory is short no query begins; where it is used up the query that holds the most ends, with an error that
//!   says so. Others go on.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use datafusion::common::Result as DataFusionResult;
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use tokio::sync::watch;

use crate::error::{Error, Result};

/// How scarce the memory of the process is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pressure {
    /// There is enough.
    #[default]
    None,
    /// It comes near its limit: new queries wait.
    Tight,
    /// It is used up: the largest query ends.
    Over,
}

/// Bytes that one query holds.
pub(crate) type Held = Arc<AtomicUsize>;

/// The pool of all queries, and the count of what one of them holds.
struct CountedPool {
    all: Arc<dyn MemoryPool>,
    held: Held,
}

impl fmt::Debug for CountedPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CountedPool({} of {:?})", self.held.load(Ordering::Relaxed), self.all)
    }
}

impl fmt::Display for CountedPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.all.fmt(f)
    }
}

impl MemoryPool for CountedPool {
    fn name(&self) -> &str {
        "counted"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.all.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.all.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.all.grow(reservation, additional);
        self.held.fetch_add(additional, Ordering::Relaxed);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.all.shrink(reservation, shrink);
        self.held.fetch_sub(shrink, Ordering::Relaxed);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> DataFusionResult<()> {
        self.all.try_grow(reservation, additional)?;
        self.held.fetch_add(additional, Ordering::Relaxed);
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.all.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.all.memory_limit()
    }
}

/// The same context, whose operators are charged to `held`.
pub(crate) fn charged(context: TaskContext, held: Held) -> Arc<TaskContext> {
    let all = Arc::clone(context.memory_pool());
    let runtime = context.runtime_env();
    let runtime = RuntimeEnv { memory_pool: Arc::new(CountedPool { all, held }), ..(*runtime).clone() };
    Arc::new(context.with_runtime(Arc::new(runtime)))
}

/// Where new queries wait while memory is short.
#[derive(Debug)]
pub(crate) struct Gate(watch::Sender<bool>);

impl Default for Gate {
    fn default() -> Self {
        Self(watch::Sender::new(true))
    }
}

impl Gate {
    pub(crate) fn set_open(&self, open: bool) {
        self.0.send_replace(open);
    }

    /// Waits until queries may begin; fails where that takes too long.
    pub(crate) async fn pass(&self, patience: Duration) -> Result<()> {
        let mut state = self.0.subscribe();
        let open = tokio::time::timeout(patience, state.wait_for(|open| *open)).await;
        match open {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Resources(
                "the server's memory is nearly used up (memory.limit): no query begins now; try again later"
                    .into(),
            )),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use datafusion::execution::memory_pool::GreedyMemoryPool;

    use super::*;

    #[test]
    fn a_query_is_charged_with_what_it_got_and_no_more() {
        let all: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(100));
        let runtime = RuntimeEnv { memory_pool: Arc::clone(&all), ..RuntimeEnv::default() };
        let runtime = Arc::new(runtime);
        let (one, two) = (Held::default(), Held::default());
        let pool = |held: &Held| {
            let plain = TaskContext::default().with_runtime(Arc::clone(&runtime));
            Arc::clone(charged(plain, Arc::clone(held)).memory_pool())
        };
        let first = MemoryConsumer::new("a").register(&pool(&one));
        let second = MemoryConsumer::new("b").register(&pool(&two));
        first.try_grow(70).unwrap();
        assert!(second.try_grow(40).is_err(), "the pool is one");
        second.try_grow(30).unwrap();
        first.shrink(20);
        let held = |held: &Held| held.load(Ordering::Relaxed);
        assert_eq!((held(&one), held(&two), all.reserved()), (50, 30, 80));
        drop((first, second));
        assert_eq!((held(&one), held(&two), all.reserved()), (0, 0, 0));
    }

    #[tokio::test]
    async fn queries_wait_while_memory_is_short_but_not_for_ever() {
        let gate = Arc::new(Gate::default());
        gate.pass(Duration::ZERO).await.unwrap();
        gate.set_open(false);
        assert!(matches!(gate.pass(Duration::from_millis(1)).await, Err(Error::Resources(_))));
        let waiting = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.pass(Duration::from_secs(60)).await }
        });
        tokio::task::yield_now().await;
        gate.set_open(true);
        waiting.await.unwrap().unwrap();
    }
}
