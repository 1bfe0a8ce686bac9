//! The threads of an engine, and who waits for their end.

use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::error::{Error, Result};

/// The threads of an engine. Whoever drops it waits for their end.
#[derive(Debug)]
pub(super) struct Threads(Mutex<Vec<JoinHandle<()>>>);

impl Threads {
    pub(super) fn new(threads: Vec<JoinHandle<()>>) -> Self {
        Self(Mutex::new(threads))
    }

    pub(super) fn join(&self) {
        for thread in self.0.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the engine panicked");
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.join();
    }
}

pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| Error::Failed(format!("cannot start thread {name}: {error}")))
}
