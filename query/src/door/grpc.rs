//! gRPC `sonde.v1.Query`: the answer as an Arrow IPC stream, cut into messages that every client takes.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, TryStreamExt, stream};
use sonde_access::Principal;
use sonde_proto::v1::query_server::{Query, QueryServer};
use sonde_proto::v1::{QueryRequest, QueryResponse};
use tonic::{Request, Response, Status};

use crate::door::format::{Format, encode};
use crate::limits::{ANSWER_MESSAGE_BYTES, GRPC_MESSAGE_BYTES};
use crate::query_engine::QueryEngine;

/// The service.
#[derive(Clone, Debug)]
pub struct QueryService(QueryEngine);

/// The service, ready to be mounted.
#[must_use]
pub fn service(query: QueryEngine) -> QueryServer<QueryService> {
    QueryServer::new(QueryService(query)).max_decoding_message_size(GRPC_MESSAGE_BYTES)
}

/// Who asks; requests that the authentication layer did not see are refused.
pub fn principal<T>(request: &Request<T>) -> Result<Arc<Principal>, Status> {
    let principal = request.extensions().get::<Arc<Principal>>();
    principal.cloned().ok_or_else(|| Status::unauthenticated("no token was checked"))
}

/// The messages that bytes of the stream are sent in: as they are, else cut.
fn messages(bytes: Vec<u8>) -> Vec<Result<QueryResponse, Status>> {
    if bytes.len() <= ANSWER_MESSAGE_BYTES {
        return vec![Ok(QueryResponse { arrow_ipc: bytes })];
    }
    let cut = bytes.chunks(ANSWER_MESSAGE_BYTES);
    cut.map(|part| Ok(QueryResponse { arrow_ipc: part.to_vec() })).collect()
}

#[tonic::async_trait]
impl Query for QueryService {
    type QueryStream = Pin<Box<dyn Stream<Item = Result<QueryResponse, Status>> + Send>>;

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<Self::QueryStream>, Status> {
        let principal = principal(&request)?;
        let body = request.into_inner();
        let mut wanted = crate::Request::new(body.sql, principal);
        if !body.database.is_empty() {
            wanted.database = body.database;
        }
        let answer = self.0.run(wanted).await.map_err(|error| error.to_status())?;
        let answer = answer.started().await.map_err(|error| error.to_status())?;
        let bytes = encode(answer, Format::Arrow).map_err(|error| error.to_status())?;
        let bytes = bytes.map_err(|error| error.to_status());
        let messages = bytes.map_ok(|bytes| stream::iter(messages(bytes))).try_flatten();
        Ok(Response::new(Box::pin(messages)))
    }
}
