//! A thread that wakes a loop at a fixed rate: `poll` itself waits for whole milliseconds.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use mio::{Registry, Token, Waker};

const TICKER: Token = Token(usize::MAX);
/// The shortest time between two wake-ups, and the longest.
const TICKS: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(10));

/// A thread that wakes a loop again and again, until it is dropped.
#[derive(Debug)]
pub(super) struct Ticker {
    stopped: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Ticker {
    /// Wakes whoever polls, `rate` times a second where that can be done.
    pub(super) fn start(registry: &Registry, rate: f64) -> io::Result<Self> {
        let waker = Waker::new(registry, TICKER)?;
        let period = Duration::from_secs_f64(1.0 / rate).clamp(TICKS.0, TICKS.1);
        let stopped = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stopped);
        let thread = std::thread::spawn(move || {
            while !seen.load(Relaxed) {
                std::thread::sleep(period);
                if waker.wake().is_err() {
                    return;
                }
            }
        });
        Ok(Self { stopped, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stopped.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot panic: it sleeps and wakes.
            drop(thread.join());
        }
    }
}
