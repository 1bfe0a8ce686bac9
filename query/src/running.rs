//! The queries that are running: on threads of their own, listed, ended by time or by hand.
//!
//! # Invariants
//! - A query is one task, which plans it, drives its stream and feeds its reader. Whatever ends the task ends the
//!   query: the last row, an error, or, whether anyone reads or not, the deadline, a KILL, a reader that went away.
//! - A query is listed from before its planning until its task ends; who hears that it ended finds it gone from the
//!   list.
//! - A stream without an end that was told is an error, never a short answer.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::error::DataFusionError;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::error::{Error, Result};
use crate::limits::{ANSWER_AHEAD, ANSWER_PART_BYTES, QUERY_STACK, RUNNING_QUERIES};
use crate::pressure::{Gate, Held};

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
    /// Bytes that its operators hold in memory.
    pub memory: usize,
}

#[derive(Debug)]
struct Entry {
    principal: String,
    sql: String,
    started: Instant,
    /// Tells the query why it ends.
    cancel: Option<oneshot::Sender<Error>>,
    held: Held,
}

/// All running queries.
#[derive(Debug, Default)]
pub(crate) struct Running {
    next: AtomicU64,
    queries: Mutex<BTreeMap<u64, Entry>>,
    /// Closed while memory is short.
    pub(crate) gate: Gate,
}

/// Takes the query off the list when it ends, however it ends.
#[derive(Debug)]
pub(crate) struct Registration {
    running: Arc<Running>,
    pub(crate) id: u64,
    /// What the query holds.
    pub(crate) held: Held,
    cancelled: oneshot::Receiver<Error>,
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
        let held = Held::default();
        queries.insert(id, Entry { principal, sql, started, cancel: Some(cancel), held: Arc::clone(&held) });
        Ok(Registration { running: Arc::clone(self), id, held, cancelled })
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
                memory: entry.held.load(Ordering::Relaxed),
            })
            .collect()
    }

    /// Ends a query; `false` where there is none of this number.
    pub(crate) fn kill(&self, id: u64) -> bool {
        let mut queries = self.queries.lock();
        let cancel = queries.get_mut(&id).and_then(|entry| entry.cancel.take());
        cancel.is_some_and(|cancel| cancel.send(Error::Cancelled).is_ok())
    }

    /// Ends the query that holds the most memory, where one holds any and was not told to end before.
    pub(crate) fn end_largest(&self) {
        let mut queries = self.queries.lock();
        let alive = queries.iter_mut().filter(|(_, entry)| entry.cancel.is_some());
        let held = |entry: &Entry| entry.held.load(Ordering::Relaxed);
        let Some((id, largest)) = alive.max_by_key(|(_, entry)| held(entry)) else { return };
        let held = held(largest);
        if held == 0 {
            return;
        }
        tracing::warn!(id, held, sql = largest.sql, "memory.limit is reached: the largest query ends");
        let text = format!(
            "the query held {} MiB, the most of all, when the server reached its memory.limit, and was ended; ask for less, or raise the limit",
            held >> 20
        );
        if let Some(cancel) = largest.cancel.take() {
            // It may have ended by itself.
            let _ = cancel.send(Error::Resources(text));
        }
    }
}

/// The threads that queries are planned and run on, so that one which keeps a processor busy delays no door.
#[derive(Debug)]
pub(crate) struct Threads {
    /// `None` while it is being dropped.
    runtime: Option<Runtime>,
    handle: Handle,
    /// The most that one row of an answer may take.
    row_bytes: usize,
}

impl Threads {
    /// As many as there are processors, for answers whose rows take `row_bytes` at most.
    pub(crate) fn start(row_bytes: usize) -> Result<Self> {
        let count = std::thread::available_parallelism().map_or(2, NonZeroUsize::get);
        let runtime = Builder::new_multi_thread()
            .worker_threads(count)
            .thread_name("sonde-query")
            .thread_stack_size(QUERY_STACK)
            .enable_time()
            .build()
            .map_err(|error| Error::Internal(format!("cannot start the threads of queries: {error}")))?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Some(runtime), handle, row_bytes })
    }

    /// Does `work` there. It ends when nobody waits for it any more.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        // A set aborts its tasks when it is dropped.
        let mut tasks = JoinSet::new();
        tasks.spawn_on(work, &self.handle);
        match tasks.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(_)) | None => Err(broke_off()),
        }
    }

    /// Runs a query: `start` plans it and gives its stream.
    pub(crate) async fn stream(
        &self,
        registration: Registration,
        timeout: Duration,
        start: impl Future<Output = Result<SendableRecordBatchStream>> + Send + 'static,
    ) -> Result<SendableRecordBatchStream> {
        // One place more than rows may take: the end never waits for the reader.
        let (sender, mut receiver) = mpsc::channel(ANSWER_AHEAD + 1);
        let Ok(last) = sender.clone().try_reserve_owned() else { return Err(broke_off()) };
        let deadline = Deadline::after(timeout);
        self.handle.spawn(drive(start, self.row_bytes, registration, deadline, sender, last));
        // Planning does not always give way to the task's own look at the clock.
        match tokio::time::timeout_at(deadline.at, receiver.recv()).await {
            Ok(Some(Turn::Begun(schema))) => Ok(Box::pin(Reader { schema, receiver: Some(receiver) })),
            Ok(Some(Turn::End(Err(error)))) => Err(error),
            Ok(Some(Turn::End(Ok(())) | Turn::Rows(_)) | None) => Err(broke_off()),
            Err(_) => Err(deadline.error()),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // The last handle may go inside a runtime, even inside this one, where nothing may wait for threads.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn broke_off() -> Error {
    Error::Internal("the query broke off; the server's log says why".into())
}

/// When a query ends, whether it is done or not.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    at: tokio::time::Instant,
    timeout: Duration,
}

impl Deadline {
    fn after(timeout: Duration) -> Self {
        // A clock reaches so far and no further.
        const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
        Self { at: tokio::time::Instant::now() + timeout.min(LONGEST), timeout }
    }

    fn error(self) -> Error {
        Error::Timeout(self.timeout.as_secs())
    }
}

/// What a query's task tells its reader.
enum Turn {
    /// The query is planned.
    Begun(SchemaRef),
    Rows(RecordBatch),
    /// There is no more.
    End(Result<()>),
}

/// A query from its planning to its end.
async fn drive(
    start: impl Future<Output = Result<SendableRecordBatchStream>>,
    row_bytes: usize,
    mut registration: Registration,
    deadline: Deadline,
    sender: mpsc::Sender<Turn>,
    last: mpsc::OwnedPermit<Turn>,
) {
    let end = tokio::select! {
        // First of all the clock, so that a stream that is always ready ends in time, too.
        biased;
        () = tokio::time::sleep_until(deadline.at) => Err(deadline.error()),
        Ok(why) = &mut registration.cancelled => Err(why),
        () = sender.closed() => return,
        end = feed(start, row_bytes, &sender) => end,
    };
    // The stream is gone by now, and so is what it held.
    drop(registration);
    last.send(Turn::End(end));
}

async fn feed(
    start: impl Future<Output = Result<SendableRecordBatchStream>>,
    row_bytes: usize,
    sender: &mpsc::Sender<Turn>,
) -> Result<()> {
    let mut stream = start.await?;
    let mut told = sender.send(Turn::Begun(stream.schema())).await;
    while told.is_ok() {
        let Some(batch) = stream.next().await else { break };
        for part in parts(batch?, row_bytes)? {
            told = sender.send(Turn::Rows(part)).await;
        }
    }
    Ok(())
}

/// A batch in parts that a door can write into one buffer each; fails where a row alone is larger than `row_bytes`.
fn parts(batch: RecordBatch, row_bytes: usize) -> Result<Vec<RecordBatch>> {
    let (mut parts, mut rest) = (Vec::new(), vec![batch]);
    while let Some(batch) = rest.pop() {
        let sizes = batch.columns().iter().map(|column| column.to_data().get_slice_memory_size());
        let bytes: usize = sizes.sum::<Result<_, _>>().map_err(|error| Error::Internal(error.to_string()))?;
        let rows = batch.num_rows();
        if bytes <= ANSWER_PART_BYTES || rows == 1 && bytes <= row_bytes {
            parts.push(batch);
        } else if rows > 1 {
            // The first half comes first.
            rest.push(batch.slice(rows / 2, rows - rows / 2));
            rest.push(batch.slice(0, rows / 2));
        } else {
            return Err(Error::Resources(format!(
                "a row of the answer takes {} MiB, more than an eighth of query.memory; ask for less, or raise it",
                bytes >> 20
            )));
        }
    }
    Ok(parts)
}

/// The rows of a query as they come from its task.
struct Reader {
    schema: SchemaRef,
    /// `None` behind the end.
    receiver: Option<mpsc::Receiver<Turn>>,
}

impl Stream for Reader {
    type Item = Result<RecordBatch, DataFusionError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(receiver) = self.receiver.as_mut() else { return Poll::Ready(None) };
        let end = match ready!(receiver.poll_recv(context)) {
            Some(Turn::Rows(batch)) => return Poll::Ready(Some(Ok(batch))),
            Some(Turn::End(end)) => end,
            Some(Turn::Begun(_)) | None => Err(broke_off()),
        };
        self.receiver = None;
        Poll::Ready(end.err().map(|error| Err(error.into_datafusion())))
    }
}

impl RecordBatchStream for Reader {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use arrow::array::{ArrayRef, StringArray};
    use arrow::datatypes::Schema;
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A stream of so many empty batches, then of nothing that ever comes where `hangs`.
    fn batches(count: usize, hangs: bool) -> SendableRecordBatchStream {
        let schema = Arc::new(Schema::empty());
        let batch = RecordBatch::new_empty(Arc::clone(&schema));
        let rows = futures::stream::iter(vec![batch; count]).map(Ok);
        if hangs {
            return Box::pin(RecordBatchStreamAdapter::new(schema, rows.chain(futures::stream::pending())));
        }
        Box::pin(RecordBatchStreamAdapter::new(schema, rows))
    }

    async fn until_none_runs(running: &Arc<Running>) {
        for _ in 0..1_000 {
            if running.list().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("a query is still listed");
    }

    #[tokio::test]
    async fn all_rows_arrive_and_then_the_end() {
        let (threads, running) = (Threads::start(usize::MAX).unwrap(), Arc::new(Running::default()));
        let registration = running.register("me", "SELECT").unwrap();
        let stream = threads.stream(registration, LONG, async { Ok(batches(100, false)) }).await.unwrap();
        assert_eq!(stream.collect::<Vec<_>>().await.len(), 100);
        assert!(running.list().is_empty());
    }

    #[tokio::test]
    async fn a_query_ends_though_nobody_reads() {
        let (threads, running) = (Threads::start(usize::MAX).unwrap(), Arc::new(Running::default()));
        let registration = running.register("me", "SELECT").unwrap();
        let brief = Duration::from_millis(50);
        let mut stalled =
            threads.stream(registration, brief, async { Ok(batches(100, false)) }).await.unwrap();
        until_none_runs(&running).await;
        let mut last = None;
        while let Some(turn) = stalled.next().await {
            last = Some(turn);
        }
        assert!(matches!(last.unwrap().map_err(Error::from), Err(Error::Timeout(_))));

        let registration = running.register("me", "SELECT").unwrap();
        let id = registration.id;
        let mut killed = threads.stream(registration, LONG, async { Ok(batches(0, true)) }).await.unwrap();
        assert!(running.kill(id));
        assert!(matches!(killed.next().await.unwrap().map_err(Error::from), Err(Error::Cancelled)));
        assert!(running.list().is_empty() && !running.kill(id));

        let registration = running.register("me", "SELECT").unwrap();
        drop(threads.stream(registration, LONG, async { Ok(batches(0, true)) }).await.unwrap());
        until_none_runs(&running).await;
    }

    #[test]
    fn large_batches_leave_in_parts_and_rows_that_are_too_large_not_at_all() {
        let text = "x".repeat(ANSWER_PART_BYTES / 3);
        let texts: StringArray = (0..8).map(|_| Some(text.as_str())).collect();
        let batch = RecordBatch::try_from_iter([("s", Arc::new(texts) as ArrayRef)]).unwrap();
        let cut = parts(batch.clone(), usize::MAX).unwrap();
        assert_eq!(cut.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [2, 2, 2, 2]);
        assert_eq!(arrow::compute::concat_batches(&batch.schema(), &cut).unwrap(), batch);
        assert_eq!(parts(batch.slice(0, 1), 0).unwrap().len(), 1, "a small part is no matter");
        let long: StringArray = [Some("y".repeat(2 * ANSWER_PART_BYTES))].into_iter().collect();
        let long = RecordBatch::try_from_iter([("s", Arc::new(long) as ArrayRef)]).unwrap();
        assert!(matches!(parts(long, ANSWER_PART_BYTES), Err(Error::Resources(_))));
    }

    #[tokio::test]
    async fn the_largest_query_ends_when_memory_is_used_up() {
        let (threads, running) = (Threads::start(usize::MAX).unwrap(), Arc::new(Running::default()));
        let mut streams = Vec::new();
        for held in [1, 3, 2] {
            let registration = running.register("me", "SELECT").unwrap();
            registration.held.store(held, Ordering::Relaxed);
            streams.push(threads.stream(registration, LONG, async { Ok(batches(0, true)) }).await.unwrap());
        }
        running.end_largest();
        let largest = streams.get_mut(1).unwrap();
        let ended = largest.next().await.unwrap().map_err(Error::from);
        assert!(matches!(ended, Err(Error::Resources(_))), "{ended:?}");
        assert_eq!(running.list().iter().map(|query| query.memory).collect::<Vec<_>>(), [1, 2]);
    }

    #[tokio::test]
    async fn what_fails_or_takes_too_long_before_the_first_row_is_told() {
        let (threads, running) = (Threads::start(usize::MAX).unwrap(), Arc::new(Running::default()));
        let registration = running.register("me", "SELECT").unwrap();
        let failed = threads.stream(registration, LONG, async { Err(Error::Invalid("no".into())) }).await;
        assert!(matches!(failed, Err(Error::Invalid(_))));
        let registration = running.register("me", "SELECT").unwrap();
        let busy = async {
            std::thread::sleep(Duration::from_millis(300));
            Ok(batches(0, false))
        };
        let late = threads.stream(registration, Duration::from_millis(20), busy).await;
        assert!(matches!(late, Err(Error::Timeout(_))));
        until_none_runs(&running).await;
    }
}
