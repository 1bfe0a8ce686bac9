//! `GET /api/v1/tail?filter=...`: what is published to a filter, as server-sent events.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::Stream;
use serde_json::json;
use sonde_access::{Action, Principal, allows};
use sonde_engine::backup::rfc3339;

use crate::mqtt::{Mqtt, Tail, TailError, TailEvent, TailMessage};

/// How long nothing comes before a comment keeps the connection from being taken for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The route of this door.
pub fn routes(mqtt: Arc<Mqtt>) -> Router {
    Router::new().route("/api/v1/tail", get(tail)).with_state(mqtt)
}

fn failure(status: StatusCode, text: String) -> Response {
    (status, axum::Json(json!({ "error": text }))).into_response()
}

async fn tail(
    State(mqtt): State<Arc<Mqtt>>,
    Extension(principal): Extension<Arc<Principal>>,
    Query(parameters): Query<HashMap<String, String>>,
) -> Response {
    let Some(filter) = parameters.get("filter").filter(|filter| !filter.is_empty()) else {
        let text = "no filter was named: GET /api/v1/tail?filter=a/%23 (# is written as %23)";
        return failure(StatusCode::BAD_REQUEST, text.into());
    };
    if !allows(&principal, Action::Subscribe(filter)) {
        let text = format!("{} may not subscribe to '{filter}'", principal.name);
        return failure(StatusCode::FORBIDDEN, text);
    }
    match mqtt.tail(filter, &principal).await {
        Ok(tail) => Sse::new(events(tail)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response(),
        Err(error @ TailError::Filter { .. }) => failure(StatusCode::BAD_REQUEST, error.to_string()),
        Err(error @ (TailError::TooMany | TailError::Stopped)) => {
            failure(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        }
    }
}

fn events(tail: Tail) -> impl Stream<Item = Result<Event, Infallible>> {
    futures::stream::unfold(tail, |mut tail| async move {
        let event = tail.next().await?;
        let event = match event {
            TailEvent::Message(message) => Event::default().event("message").data(data(&message)),
            TailEvent::Dropped(count) => {
                Event::default().event("dropped").data(json!({ "dropped": count }).to_string())
            }
            TailEvent::Ended(end) => {
                Event::default().event("ended").data(json!({ "reason": end.reason() }).to_string())
            }
        };
        Some((Ok(event), tail))
    })
}

/// One line of JSON. A payload that is UTF-8 stands as text, any other as base64.
fn data(message: &TailMessage) -> String {
    let TailMessage { message, time, seq, retained } = message;
    let mut object = json!({
        "topic": &*message.topic,
        "qos": message.qos as u8,
        "retained": retained,
        "time": rfc3339(*time),
    });
    if let Some(object) = object.as_object_mut() {
        match std::str::from_utf8(&message.payload) {
            Ok(text) => object.insert("payload".into(), text.into()),
            Err(_) => object.insert("payload_base64".into(), STANDARD.encode(&message.payload).into()),
        };
        if let Some(seq) = seq {
            object.insert("seq".into(), seq.0.into());
        }
    }
    object.to_string()
}
