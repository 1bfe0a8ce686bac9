//! gRPC `sonde.v1.Write`: record batches of an Arrow IPC stream as rows. OK means durable and visible.

use sonde_access::{Action, allows};
use sonde_engine::{Engine, Receipt};
use sonde_proto::v1::write_server::{Write, WriteServer};
use sonde_proto::v1::{RowError, WriteRequest, WriteResponse};
use sonde_query::door::grpc::principal;
use sonde_query::door::ipc;
use sonde_query::limits::GRPC_MESSAGE_BYTES;
use sonde_query::{Nulls, ensure_table, is_reserved, write_rows};
use tonic::{Request, Response, Status};

use crate::bodies::Bodies;
use crate::row::accepted_times;

/// The service.
#[derive(Clone, Debug)]
pub struct WriteService(Engine, Bodies);

/// The service, ready to be mounted.
#[must_use]
pub fn service(engine: Engine, bodies: Bodies) -> WriteServer<WriteService> {
    WriteServer::new(WriteService(engine, bodies)).max_decoding_message_size(GRPC_MESSAGE_BYTES)
}

#[tonic::async_trait]
impl Write for WriteService {
    async fn write(&self, request: Request<WriteRequest>) -> Result<Response<WriteResponse>, Status> {
        let principal = principal(&request)?;
        if !allows(&principal, Action::Write) {
            return Err(Status::permission_denied(format!("{} may not write", principal.name)));
        }
        let (engine, request) = (self.0.clone(), request.into_inner());
        let Some(_permit) = self.1.try_take(request.arrow_ipc.len()) else {
            let text = format!("{} bytes of rows are being written already; try again", self.1.bytes());
            return Err(Status::unavailable(text));
        };
        let stored = tokio::task::spawn_blocking(move || store(&engine, request)).await;
        let (receipt, response) = stored.map_err(|error| Status::internal(error.to_string()))??;
        if let Some(receipt) = receipt {
            receipt.await.map_err(|error| sonde_query::Error::Engine(error).to_status())?;
        }
        Ok(Response::new(response))
    }
}

fn store(engine: &Engine, request: WriteRequest) -> Result<(Option<Receipt>, WriteResponse), Status> {
    let WriteRequest { database, table, arrow_ipc, tags } = request;
    if table.is_empty() {
        return Err(Status::invalid_argument("no table was named"));
    }
    let database = if database.is_empty() { "public" } else { &database };
    if is_reserved(database) {
        let text = format!("not allowed: database {database} is the server's own");
        return Err(Status::permission_denied(text));
    }
    let status = |error: sonde_query::Error| error.to_status();
    let (schema, batches) = ipc::decode(arrow_ipc).map_err(status)?;
    let table = ensure_table(engine, database, &table, &schema, &tags).map_err(status)?;
    let mut builder = engine.batch();
    builder.begin_message();
    let mut response = WriteResponse::default();
    let mut before = 0;
    for batch in batches {
        let (arrival, range) = (|| engine.arrival(), accepted_times(engine.arrival()));
        let errors =
            write_rows(&mut builder, &table, &batch, &arrival, &range, Nulls::Absent).map_err(status)?;
        response.rows += (batch.num_rows() - errors.len()) as u64;
        let at =
            |error: sonde_query::RowError| RowError { row: before + error.row as u64, reason: error.reason };
        response.errors.extend(errors.into_iter().map(at));
        before += batch.num_rows() as u64;
    }
    Ok((builder.finish().map(|batch| engine.write(batch)), response))
}
