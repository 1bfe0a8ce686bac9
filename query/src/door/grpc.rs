//! gRPC `sonde.v1.Query`: the answer as an Arrow IPC stream, cut into messages.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt, TryStreamExt, stream};
use sonde_access::Principal;
use sonde_proto::v1::query_server::{Query, QueryServer};
use sonde_proto::v1::{QueryRequest, QueryResponse};
use tonic::{Request, Response, Status};

use crate::context::{self, QueryEngine};
use crate::door::format::{Encoder, Format};
use crate::limits::GRPC_MESSAGE_BYTES;

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

#[tonic::async_trait]
impl Query for QueryService {
    type QueryStream = Pin<Box<dyn Stream<Item = Result<QueryResponse, Status>> + Send>>;

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<Self::QueryStream>, Status> {
        let principal = principal(&request)?;
        let body = request.into_inner();
        let mut wanted = context::Request::new(body.sql, principal);
        if !body.database.is_empty() {
            wanted.database = body.database;
        }
        let answer = self.0.run(wanted).await.map_err(|error| error.to_status())?;
        let answer = answer.started().await.map_err(|error| error.to_status())?;
        let (encoder, head) =
            Encoder::start(Format::Arrow, &answer.schema()).map_err(|error| error.to_status())?;
        let head = stream::once(async move { Ok(QueryResponse { arrow_ipc: head }) });
        let rest = stream::try_unfold((answer, Some(encoder)), |(mut answer, encoder)| async move {
            let Some(mut encoder) = encoder else { return Ok(None) };
            match answer.next().await {
                Some(batch) => {
                    let arrow_ipc = encoder.push(&batch?)?;
                    Ok(Some((QueryResponse { arrow_ipc }, (answer, Some(encoder)))))
                }
                None => Ok(Some((QueryResponse { arrow_ipc: encoder.finish()? }, (answer, None)))),
            }
        });
        let rest = rest.map_err(|error: crate::Error| error.to_status());
        Ok(Response::new(Box::pin(head.chain(rest))))
    }
}
