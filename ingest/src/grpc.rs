//! gRPC `sonde.v1.Write`: record batches of an Arrow IPC stream as rows. OK means durable and visible.

use arrow::ipc::reader::StreamReader;
use sonde_access::{Action, allows};
use sonde_engine::Engine;
use sonde_proto::v1::write_server::{Write, WriteServer};
use sonde_proto::v1::{RowError, WriteRequest, WriteResponse};
use sonde_query::door::grpc::principal;
use sonde_query::{ensure_table, limits::GRPC_MESSAGE_BYTES, write_rows};
use tonic::{Request, Response, Status};

use crate::row::accepted_times;

/// The service.
#[derive(Clone, Debug)]
pub struct WriteService(Engine);

/// The service, ready to be mounted.
#[must_use]
pub fn service(engine: Engine) -> WriteServer<WriteService> {
    WriteServer::new(WriteService(engine)).max_decoding_message_size(GRPC_MESSAGE_BYTES)
}

#[tonic::async_trait]
impl Write for WriteService {
    async fn write(&self, request: Request<WriteRequest>) -> Result<Response<WriteResponse>, Status> {
        let principal = principal(&request)?;
        if !allows(&principal, Action::Write) {
            return Err(Status::permission_denied(format!("{} may not write", principal.name)));
        }
        let (engine, request) = (self.0.clone(), request.into_inner());
        let stored = tokio::task::spawn_blocking(move || store(&engine, &request)).await;
        let (receipt, response) = stored.map_err(|error| Status::internal(error.to_string()))??;
        if let Some(receipt) = receipt {
            receipt.await.map_err(|error| sonde_query::Error::Engine(error).to_status())?;
        }
        Ok(Response::new(response))
    }
}

fn store(
    engine: &Engine,
    request: &WriteRequest,
) -> Result<(Option<sonde_engine::Receipt>, WriteResponse), Status> {
    if request.table.is_empty() {
        return Err(Status::invalid_argument("no table was named"));
    }
    let wrong =
        |error: arrow::error::ArrowError| Status::invalid_argument(format!("the Arrow IPC stream: {error}"));
    let database = if request.database.is_empty() { "public" } else { &request.database };
    let reader = StreamReader::try_new(std::io::Cursor::new(&request.arrow_ipc), None).map_err(wrong)?;
    let status = |error: sonde_query::Error| error.to_status();
    let table =
        ensure_table(engine, database, &request.table, &reader.schema(), &request.tags).map_err(status)?;
    let mut builder = engine.batch();
    builder.begin_message();
    let mut response = WriteResponse::default();
    let mut before = 0;
    for batch in reader {
        let batch = batch.map_err(wrong)?;
        let now = engine.arrival();
        let errors = write_rows(
            &mut builder,
            &table,
            &batch,
            &|| now,
            &accepted_times(now),
            sonde_query::Nulls::Absent,
        )
        .map_err(status)?;
        response.rows += (batch.num_rows() - errors.len()) as u64;
        let at =
            |error: sonde_query::RowError| RowError { row: before + error.row as u64, reason: error.reason };
        response.errors.extend(errors.into_iter().map(at));
        before += batch.num_rows() as u64;
    }
    Ok((builder.finish().map(|batch| engine.write(batch)), response))
}
