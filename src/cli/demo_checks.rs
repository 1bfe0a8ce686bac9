//! The demo's question, asked at all three doors: every table's rows, and the sum of every numeric field.

use std::time::Instant;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{ArrowPrimitiveType, Float64Type, Int64Type};
use arrow::ipc::reader::StreamReader;
use arrow::record_batch::RecordBatch;
use arrow_flight::sql::client::FlightSqlServiceClient;
use futures::TryStreamExt;
use sonde_proto::v1::QueryRequest;
use sonde_proto::v1::query_client::QueryClient;
use tonic::transport::Endpoint;

use super::client::{Client, cut_off};
use super::demo::Stage;
use super::demo_data::{Expected, TableTotals};
use super::{Exit, Failure, Result};
use crate::serve::Server;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Asks all three doors, and compares their answers with what was sent.
pub(super) fn check_answers(stage: &mut Stage<'_>, expected: &Expected, place: &str) -> Result<()> {
    stage.interrupt.check()?;
    let sql = question(expected);
    let started = Instant::now();
    let http = ask_http(&stage.client, &sql)?;
    let elapsed = started.elapsed().as_secs_f64() * 1e3;
    let failed = |error: AnyError| Failure::new(Exit::Failed, error.to_string());
    let answers = [
        ("HTTP", http),
        ("gRPC", stage.runtime.block_on(ask_grpc(stage.server, &sql)).map_err(failed)?),
        ("Flight SQL", stage.runtime.block_on(ask_flight(stage.server, &sql)).map_err(failed)?),
    ];
    let rows: usize = expected.tables().iter().map(|table| table.rows).sum();
    let sums: usize = expected.tables().iter().map(|table| table.fields.len()).sum();
    for (door, batches) in answers {
        let wrong = differences(&batches, expected);
        let found = match wrong.as_slice() {
            [] => format!("{rows} rows counted, {sums} sums agree"),
            wrong => wrong.join(", "),
        };
        stage.summary.check(format!("{door}, rows {place}: {found}"), wrong.is_empty());
    }
    stage.summary.figure(format!("sums_over_all_rows_{}", place.replace(' ', "_")), elapsed, "ms");
    Ok(())
}

/// One row: the columns of all tables, and the number of messages that became no row.
fn question(expected: &Expected) -> String {
    let tables = expected.tables().map(totals).join(" CROSS JOIN ");
    format!(
        "SELECT * FROM {tables} CROSS JOIN \
         (SELECT count(*) AS \"dead_letters\" FROM system.dead_letters) AS \"refused\""
    )
}

fn totals(totals: &TableTotals) -> String {
    let table = totals.table;
    let mut columns = format!("count(*) AS \"{table}_rows\"");
    for field in &totals.fields {
        let name = field.name;
        columns.push_str(&format!(", sum(CAST(\"{name}\" AS DOUBLE)) AS \"{table}_{name}\""));
    }
    format!("(SELECT {columns} FROM \"{table}\") AS \"{table}_totals\"")
}

/// What an answer says otherwise than expected.
fn differences(batches: &[RecordBatch], expected: &Expected) -> Vec<String> {
    let Some(answer) = batches.iter().find(|batch| batch.num_rows() == 1) else {
        return vec!["no row in the answer".to_owned()];
    };
    let mut wrong = Vec::new();
    let mut count = |name: String, wanted: usize| {
        let found = cell::<Int64Type>(answer, &name);
        if found != i64::try_from(wanted).ok() {
            wrong.push(format!("{name} {} instead of {wanted}", shown(found)));
        }
    };
    for totals in expected.tables() {
        count(format!("{}_rows", totals.table), totals.rows);
    }
    count("dead_letters".to_owned(), 0);
    for totals in expected.tables() {
        for field in &totals.fields {
            let name = format!("{}_{}", totals.table, field.name);
            match cell::<Float64Type>(answer, &name) {
                Some(sum) if field.agrees(sum) => {}
                found => wrong.push(format!("{name} {} instead of {}", shown(found), field.sum)),
            }
        }
    }
    wrong
}

/// The value of a column in a batch of one row; `None` where it is NULL, missing or of another type.
fn cell<T: ArrowPrimitiveType>(batch: &RecordBatch, name: &str) -> Option<T::Native> {
    let column = batch.column_by_name(name)?.as_primitive_opt::<T>()?;
    column.is_valid(0).then(|| column.value(0))
}

fn shown(found: Option<impl ToString>) -> String {
    found.map_or_else(|| "nothing".to_owned(), |found| found.to_string())
}

fn ask_http(client: &Client, sql: &str) -> Result<Vec<RecordBatch>> {
    let body = client.sql(sql, "application/vnd.apache.arrow.stream", None)?;
    let reader = StreamReader::try_new(body, None).map_err(cut_off)?;
    reader.collect::<Result<_, _>>().map_err(cut_off)
}

fn endpoint(server: &Server) -> Result<Endpoint, AnyError> {
    let grpc = server.addresses.grpc.ok_or("the gRPC listener did not start")?;
    Ok(Endpoint::from_shared(format!("http://{grpc}"))?)
}

async fn ask_grpc(server: &Server, sql: &str) -> Result<Vec<RecordBatch>, AnyError> {
    let mut client = QueryClient::new(endpoint(server)?.connect().await?);
    let mut request = tonic::Request::new(QueryRequest { sql: sql.to_owned(), database: String::new() });
    request.metadata_mut().insert("authorization", format!("Bearer {}", server.admin_token).parse()?);
    let mut stream = client.query(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(message) = stream.message().await? {
        bytes.extend_from_slice(&message.arrow_ipc);
    }
    let reader = StreamReader::try_new(std::io::Cursor::new(bytes), None)?;
    Ok(reader.collect::<Result<_, _>>()?)
}

async fn ask_flight(server: &Server, sql: &str) -> Result<Vec<RecordBatch>, AnyError> {
    let mut client = FlightSqlServiceClient::new(endpoint(server)?.connect().await?);
    client.set_token(server.admin_token.clone());
    let info = client.execute(sql.to_owned(), None).await?;
    let mut batches = Vec::new();
    for endpoint in info.endpoint {
        let Some(ticket) = endpoint.ticket else { continue };
        batches.extend(client.do_get(ticket).await?.try_collect::<Vec<_>>().await?);
    }
    Ok(batches)
}
