//! The queries that are running: listed, ended by time or by hand.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::error::DataFusionError;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::limits::RUNNING_QUERIES;

/// A running query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryInfo {
    /// Its number.
    pub id: u64,
    /// Who runs it.
    pub principal: String,
    /// The statement.
    pub sql: String,
    /// How long it has been running.
    pub elapsed: Duration,
}

#[derive(Debug)]
struct Entry {
    principal: String,
    sql: String,
    started: Instant,
    cancel: Option<oneshot::Sender<()>>,
}

/// All running queries.
#[derive(Debug, Default)]
pub(crate) struct Running {
    next: AtomicU64,
    queries: Mutex<BTreeMap<u64, Entry>>,
}

/// Takes the query off the list when it ends, however it ends.
#[derive(Debug)]
pub(crate) struct Registration {
    running: Arc<Running>,
    pub(crate) id: u64,
    cancelled: oneshot::Receiver<()>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.running.queries.lock().remove(&self.id);
    }
}

impl Running {
    pub(crate) fn register(self: &Arc<Self>, principal: &str, sql: &str) -> Result<Registration> {
        let (cancel, cancelled) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let mut queries = self.queries.lock();
        if queries.len() >= RUNNING_QUERIES {
            return Err(Error::Resources(format!("{RUNNING_QUERIES} queries are running; try again later")));
        }
        let (principal, sql, started) = (principal.to_owned(), sql.to_owned(), Instant::now());
        queries.insert(id, Entry { principal, sql, started, cancel: Some(cancel) });
        Ok(Registration { running: Arc::clone(self), id, cancelled })
    }

    pub(crate) fn list(&self) -> Vec<QueryInfo> {
        let queries = self.queries.lock();
        queries
            .iter()
            .map(|(id, entry)| QueryInfo {
                id: *id,
                principal: entry.principal.clone(),
                sql: entry.sql.clone(),
                elapsed: entry.started.elapsed(),
            })
            .collect()
    }

    /// Ends a query; `false` where there is none of this number.
    pub(crate) fn kill(&self, id: u64) -> bool {
        let mut queries = self.queries.lock();
        let cancel = queries.get_mut(&id).and_then(|entry| entry.cancel.take());
        cancel.is_some_and(|cancel| cancel.send(()).is_ok())
    }
}

/// A stream that ends with an error when its time is up or someone ends it.
pub(crate) struct Watched {
    inner: Option<SendableRecordBatchStream>,
    schema: SchemaRef,
    deadline: Pin<Box<tokio::time::Sleep>>,
    timeout: Duration,
    registration: Registration,
}

impl Watched {
    pub(crate) fn new(
        inner: SendableRecordBatchStream,
        registration: Registration,
        timeout: Duration,
    ) -> Self {
        let deadline = Box::pin(tokio::time::sleep(timeout));
        Self { schema: inner.schema(), inner: Some(inner), deadline, timeout, registration }
    }

    fn stop(&mut self, error: Error) -> Poll<Option<Result<RecordBatch, DataFusionError>>> {
        self.inner = None;
        Poll::Ready(Some(Err(error.into_datafusion())))
    }
}

impl Stream for Watched {
    type Item = Result<RecordBatch, DataFusionError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.inner.is_none() {
            return Poll::Ready(None);
        }
        // First of all, so that a stream that is always ready ends in time, too.
        if self.deadline.as_mut().poll(context).is_ready() {
            let secs = self.timeout.as_secs();
            return self.stop(Error::Timeout(secs));
        }
        if let Poll::Ready(Ok(())) = Pin::new(&mut self.registration.cancelled).poll(context) {
            return self.stop(Error::Cancelled);
        }
        match self.inner.as_mut() {
            Some(inner) => inner.as_mut().poll_next(context),
            None => Poll::Ready(None),
        }
    }
}

impl RecordBatchStream for Watched {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}
