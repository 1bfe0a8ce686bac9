//! gRPC `sonde.v1.Subscribe`: what is published to a filter, as a stream.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use sonde_access::{Action, allows};
use sonde_proto::v1::subscribe_response::Event;
use sonde_proto::v1::subscribe_server::{Subscribe, SubscribeServer};
use sonde_proto::v1::{Published, SubscribeRequest, SubscribeResponse};
use sonde_query::door::grpc::principal;
use tonic::{Request, Response, Status};

use crate::mqtt::{Mqtt, TailEnd, TailError, TailEvent, TailMessage};

/// The service.
#[derive(Clone, Debug)]
pub struct SubscribeService(Arc<Mqtt>);

/// The service, ready to be mounted.
#[must_use]
pub fn service(mqtt: Arc<Mqtt>) -> SubscribeServer<SubscribeService> {
    SubscribeServer::new(SubscribeService(mqtt))
}

#[tonic::async_trait]
impl Subscribe for SubscribeService {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<SubscribeResponse, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let principal = principal(&request)?;
        let filter = request.into_inner().filter;
        if !allows(&principal, Action::Subscribe(&filter)) {
            let text = format!("{} may not subscribe to '{filter}'", principal.name);
            return Err(Status::permission_denied(text));
        }
        let tail = self.0.tail(&filter, &principal).await.map_err(|error| match error {
            TailError::Filter { .. } => Status::invalid_argument(error.to_string()),
            TailError::TooMany => Status::resource_exhausted(error.to_string()),
            TailError::Stopped => Status::unavailable(error.to_string()),
        })?;
        let stream = futures::stream::unfold(tail, |mut tail| async move {
            let event = match tail.next().await? {
                TailEvent::Message(message) => Event::Message(published(message)),
                TailEvent::Dropped(count) => Event::Dropped(count),
                TailEvent::Ended(end) => return Some((Err(status(end)), tail)),
            };
            Some((Ok(SubscribeResponse { event: Some(event) }), tail))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

fn status(end: TailEnd) -> Status {
    match end {
        TailEnd::Unknown => Status::unauthenticated(end.reason()),
        TailEnd::NotAllowed => Status::permission_denied(end.reason()),
    }
}

fn published(message: TailMessage) -> Published {
    let TailMessage { message, time, seq, retained } = message;
    Published {
        topic: message.topic.to_string(),
        payload: message.payload.to_vec(),
        qos: message.qos as u32,
        retained,
        time: time.as_nanos(),
        seq: seq.map(|seq| seq.0),
    }
}
