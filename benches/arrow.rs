//! Arrow record batches over gRPC: tags as dictionaries, fields as integers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, DictionaryArray, Int64Array, TimestampNanosecondArray};
use arrow::datatypes::Int32Type;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use sonde_proto::v1::WriteRequest;
use sonde_proto::v1::write_client::WriteClient;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::cpu::{self, FIELDS, TAGS};
use crate::server::{Server, at, figure};

/// How many clients send how much.
pub(crate) struct Load {
    pub(crate) clients: usize,
    /// Rows of a request.
    pub(crate) rows: usize,
    /// Requests of all clients.
    pub(crate) requests: usize,
}

pub(crate) fn run(load: &Load) {
    println!(
        "Arrow over gRPC, {} clients, {} requests of {} rows with 10 tags and 10 fields",
        load.clients, load.requests, load.rows
    );
    let server = Server::start();
    let batch = |number: usize| stream(&batch(number * load.rows..(number + 1) * load.rows));
    let requests: Vec<Vec<u8>> = (0..load.requests).map(batch).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (warm, measured) = requests.split_at((load.requests / 20).max(1));
    runtime.block_on(drive(&server, 1, warm));
    let (cpu, started) = (server.cpu(), Instant::now());
    let mut latencies = runtime.block_on(drive(&server, load.clients, measured));
    let (elapsed, spent) = (started.elapsed().as_secs_f64(), server.cpu() - cpu);
    let rows = (measured.len() * load.rows) as f64;
    let all = (requests.len() * load.rows) as f64;
    assert_eq!(server.number("SELECT count(*) FROM cpu"), all, "every row was stored");
    figure("rows per second", rows / elapsed, "/s");
    figure("rows per CPU second of the server", rows / spent, "/s");
    figure("request p50", at(&mut latencies, 0.5), "ms");
    figure("request p99", at(&mut latencies, 0.99), "ms");
    figure("peak resident memory of the server", server.memory("VmHWM"), "MiB");
    server.statement("COMPACT TABLE cpu");
    figure("rows per CPU second, compaction included", rows / (server.cpu() - cpu), "/s");
}

fn batch(rows: std::ops::Range<usize>) -> RecordBatch {
    let times = rows.clone().map(|row| cpu::time(row) as i64);
    let time = ("time", Arc::new(TimestampNanosecondArray::from_iter_values(times)) as ArrayRef);
    let tag = |(place, name): (usize, &&'static str)| {
        let values: DictionaryArray<Int32Type> = rows
            .clone()
            .map(|row| Some(cpu::tag(row, place)))
            .collect::<Vec<_>>()
            .iter()
            .map(|tag| tag.as_deref())
            .collect();
        (*name, Arc::new(values) as ArrayRef)
    };
    let field = |(place, name): (usize, &&'static str)| {
        let values = Int64Array::from_iter_values(rows.clone().map(|row| cpu::field(row, place)));
        (*name, Arc::new(values) as ArrayRef)
    };
    let tags = TAGS.iter().enumerate().map(tag);
    let fields = FIELDS.iter().enumerate().map(field);
    RecordBatch::try_from_iter(std::iter::once(time).chain(tags).chain(fields)).unwrap()
}

fn stream(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(Vec::new(), batch.schema_ref()).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

/// Sends all requests, each client on a connection of its own. Returns how long each waited for its answer.
async fn drive(server: &Server, clients: usize, requests: &[Vec<u8>]) -> Vec<Duration> {
    let token = format!("Bearer {}", server.token());
    let next = AtomicUsize::new(0);
    let client = || async {
        let endpoint = Endpoint::from_shared(format!("http://{}", server.address("grpc"))).unwrap();
        // As large as a batch, so that a request does not wait for window updates.
        let endpoint = endpoint.initial_stream_window_size(8 << 20).initial_connection_window_size(8 << 20);
        let mut client = WriteClient::new(endpoint.connect().await.unwrap());
        let mut latencies = Vec::new();
        while let Some(bytes) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
            latencies.push(send(&mut client, &token, bytes.clone()).await);
        }
        latencies
    };
    let all = futures::future::join_all((0..clients).map(|_| client())).await;
    all.into_iter().flatten().collect()
}

async fn send(client: &mut WriteClient<Channel>, token: &str, arrow_ipc: Vec<u8>) -> Duration {
    let tags = TAGS.iter().map(|tag| (*tag).to_owned()).collect();
    let request = WriteRequest { database: String::new(), table: "cpu".into(), arrow_ipc, tags };
    let mut request = Request::new(request);
    request.metadata_mut().insert("authorization", token.parse().unwrap());
    let sent = Instant::now();
    let answer = client.write(request).await.unwrap().into_inner();
    assert!(answer.errors.is_empty(), "{:?}", answer.errors.first());
    sent.elapsed()
}
