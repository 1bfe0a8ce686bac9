//! The HTTP front door: mounts the crates' routes behind one authentication layer, and tells how the server is.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sonde_engine::Engine;
use sonde_ingest::Bodies;
use sonde_ingest::mqtt::{Mqtt, Refusal};
use sonde_query::QueryEngine;

use crate::auth::Authenticator;

/// What the front door needs.
#[derive(Clone)]
pub(crate) struct Front {
    pub(crate) engine: Engine,
    pub(crate) query: QueryEngine,
    pub(crate) mqtt: Option<Arc<Mqtt>>,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) insecure: bool,
    pub(crate) bodies: Bodies,
}

/// All routes.
pub(crate) fn routes(front: Front) -> Router {
    let open = Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(front.clone());
    let doors = sonde_query::door::http::routes(front.query.clone())
        .merge(sonde_ingest::http::routes(front.engine.clone(), front.bodies.clone()));
    let doors = match &front.mqtt {
        Some(mqtt) => doors.merge(sonde_ingest::tail::http::routes(Arc::clone(mqtt))),
        None => doors,
    };
    let guarded = doors.route_layer(middleware::from_fn_with_state(front, authenticate));
    guarded.merge(open)
}

async fn authenticate(State(front): State<Front>, mut request: Request, next: Next) -> Response {
    // Clients ask whether the server is there before they have a token.
    if request.uri().path() == "/ping" {
        return next.run(request).await;
    }
    let header = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    match front.authenticator.header(header, peer).await {
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Err(Refusal::Busy) => {
            let text = "too many logins, or too many wrong passwords from this address: come back in a while";
            let body = axum::Json(serde_json::json!({ "error": text }));
            (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "5")], body).into_response()
        }
        Err(_) => {
            let text = "no valid token: send Authorization: Bearer <token>; the administrator's is in <data-dir>/admin.token";
            let body = axum::Json(serde_json::json!({ "error": text }));
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer, Basic")], body).into_response()
        }
    }
}

async fn ready(State(front): State<Front>) -> Response {
    if front.mqtt.as_ref().is_some_and(|mqtt| !mqtt.is_running()) {
        let text = "the MQTT event loop has ended: the server stops, look for the error in its log\n";
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    match front.engine.health() {
        Ok(()) => (StatusCode::OK, "ready\n").into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

async fn metrics(State(front): State<Front>) -> Response {
    let log = front.engine.log_status();
    let (memory_bytes, memory_rows) = front.engine.memory();
    let (series_bytes, series_most) = front.engine.series_memory();
    let chunks = front.engine.chunks();
    let cold = front.engine.cold_files();
    let mut values: Vec<(&str, &str, u64)> = vec![
        ("sonde_insecure", "gauge", front.insecure.into()),
        ("sonde_ready", "gauge", front.engine.health().is_ok().into()),
        ("sonde_log_bytes", "gauge", log.bytes),
        ("sonde_log_segments", "gauge", log.segments as u64),
        ("sonde_log_position", "counter", log.last.0),
        ("sonde_flushed_position", "counter", log.flushed_to.0),
        ("sonde_memtable_bytes", "gauge", memory_bytes as u64),
        ("sonde_memtable_rows", "gauge", memory_rows as u64),
        ("sonde_series_bytes", "gauge", series_bytes as u64),
        ("sonde_series_bytes_at_most", "gauge", series_most as u64),
        ("sonde_chunks", "gauge", chunks.len() as u64),
        ("sonde_chunk_bytes", "gauge", chunks.iter().map(|chunk| chunk.bytes).sum()),
        ("sonde_cold_files", "gauge", cold.len() as u64),
        ("sonde_cold_bytes", "gauge", cold.iter().map(|file| file.bytes).sum()),
        ("sonde_queries_running", "gauge", front.query.running().len() as u64),
    ];
    let logins = &front.authenticator.logins;
    values.extend([
        ("sonde_logins_failed_total", "counter", logins.failed.load(Ordering::Relaxed)),
        ("sonde_logins_put_off_total", "counter", logins.put_off.load(Ordering::Relaxed)),
    ]);
    if let Some(mqtt) = &front.mqtt {
        let stats = mqtt.stats();
        values.extend([
            ("sonde_mqtt_messages_received_total", "counter", stats.received.load(Ordering::Relaxed)),
            ("sonde_mqtt_messages_sent_total", "counter", stats.sent.load(Ordering::Relaxed)),
            ("sonde_mqtt_messages_dropped_total", "counter", stats.dropped.load(Ordering::Relaxed)),
            ("sonde_mqtt_messages_expired_total", "counter", stats.expired.load(Ordering::Relaxed)),
            ("sonde_mqtt_connections", "gauge", stats.connections.load(Ordering::Relaxed)),
            ("sonde_mqtt_protocol_errors_total", "counter", stats.protocol_errors.load(Ordering::Relaxed)),
            ("sonde_mqtt_denied_total", "counter", stats.denied.load(Ordering::Relaxed)),
            ("sonde_mqtt_connections_accepted_total", "counter", stats.accepted.load(Ordering::Relaxed)),
            ("sonde_mqtt_bytes_received_total", "counter", stats.bytes_in.load(Ordering::Relaxed)),
            ("sonde_mqtt_bytes_sent_total", "counter", stats.bytes_out.load(Ordering::Relaxed)),
            ("sonde_mqtt_paused_total", "counter", stats.paused.load(Ordering::Relaxed)),
            ("sonde_mqtt_tenant_paused_total", "counter", stats.tenant_paused.load(Ordering::Relaxed)),
            ("sonde_mqtt_unread_closed_total", "counter", stats.unread.load(Ordering::Relaxed)),
            ("sonde_mqtt_message_bytes", "gauge", stats.message_bytes.load(Ordering::Relaxed)),
            ("sonde_mqtt_backlog_bytes", "gauge", stats.backlog_bytes.load(Ordering::Relaxed)),
            ("sonde_mqtt_shed_total", "counter", stats.shed.load(Ordering::Relaxed)),
            ("sonde_mqtt_banned", "gauge", stats.banned.load(Ordering::Relaxed)),
        ]);
    }
    let mut text = String::new();
    for (name, kind, value) in values {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
    }
    if let Some(mqtt) = &front.mqtt {
        let mut last = String::new();
        mqtt.stats().labelled(|name, kind, labels, value| {
            if last != name {
                name.clone_into(&mut last);
                let _ = writeln!(text, "# TYPE {name} {kind}");
            }
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        });
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
