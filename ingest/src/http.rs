//! Rows over HTTP: `POST /api/v1/write?table=t` with JSON, NDJSON or line protocol, and the addresses that Telegraf and
//! Influx clients use, `/write` and `/api/v2/write`. 2xx means durable and visible.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Extension, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use sonde_access::{Action, Principal, allows};
use sonde_engine::Engine;
use sonde_query::statement::TimeUnit;

use crate::bodies::Bodies;
use crate::body::{self, Body, BodyKind};
use crate::limits::HTTP_BODY;
use crate::repeat::{Destination, Memories};
use crate::row::Refusal;

/// The routes of this door.
pub fn routes(engine: Engine, bodies: Bodies) -> Router {
    Router::new()
        .route("/api/v1/write", post(write))
        .route("/write", post(influx))
        .route("/api/v2/write", post(influx))
        .layer(DefaultBodyLimit::max(HTTP_BODY))
        .layer(from_fn_with_state(bodies, bound_bodies))
        .route("/ping", get(|| async { StatusCode::NO_CONTENT }))
        .with_state(Door { engine, memories: Arc::default() })
}

/// What every request of this door needs.
#[derive(Clone)]
struct Door {
    engine: Engine,
    memories: Arc<Memories>,
}

/// Lets a request in while there is memory for its body; else the client is asked to come back.
async fn bound_bodies(State(bodies): State<Bodies>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let packed = headers.contains_key(header::CONTENT_ENCODING);
    let bytes = length.filter(|_| !packed).unwrap_or(HTTP_BODY).min(HTTP_BODY);
    match bodies.try_take(bytes) {
        Some(_permit) => next.run(request).await,
        None => Failure(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{} bytes of rows are being written already; try again", bodies.bytes()),
        )
        .into_response(),
    }
}

type Parameters = Query<HashMap<String, String>>;

/// An error with its status, in one line.
struct Failure(StatusCode, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = axum::Json(serde_json::json!({ "error": self.1 }));
        let mut response = (self.0, body).into_response();
        if self.0 == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("5"));
        }
        response
    }
}

impl From<sonde_engine::Error> for Failure {
    fn from(error: sonde_engine::Error) -> Self {
        Self(sonde_query::Error::Engine(error.clone()).http_status(), error.to_string())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid(text) => bad(text),
            Refusal::Engine(error) => error.into(),
            Refusal::Passed => unreachable!("rows over HTTP have no source that passes them over"),
        }
    }
}

fn bad(text: impl Into<String>) -> Failure {
    Failure(StatusCode::BAD_REQUEST, text.into())
}

async fn write(
    State(door): State<Door>,
    Extension(principal): Extension<Arc<Principal>>,
    Query(parameters): Parameters,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Failure> {
    let kind = match content_type(&headers) {
        "application/json" => BodyKind::Json,
        "application/x-ndjson" | "application/jsonl" | "application/x-jsonlines" => BodyKind::NdJson,
        _ => BodyKind::Lines,
    };
    let written = store(door, &principal, &parameters, &headers, body, kind).await?;
    let body = serde_json::json!({ "rows": written });
    Ok((StatusCode::OK, axum::Json(body)).into_response())
}

async fn influx(
    State(door): State<Door>,
    Extension(principal): Extension<Arc<Principal>>,
    Query(parameters): Parameters,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, Failure> {
    store(door, &principal, &parameters, &headers, body, BodyKind::Lines).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

async fn store(
    door: Door,
    principal: &Principal,
    parameters: &HashMap<String, String>,
    headers: &HeaderMap,
    body: Bytes,
    kind: BodyKind,
) -> Result<usize, Failure> {
    if !allows(principal, Action::Write) {
        return Err(Failure(StatusCode::FORBIDDEN, format!("not allowed: {} may not write", principal.name)));
    }
    let bytes = plain(headers, body)?;
    let parameter = |name: &str| parameters.get(name).filter(|value| !value.is_empty());
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let unit = match parameter("precision") {
        None => matches!(kind, BodyKind::Lines).then_some(TimeUnit::Nanosecond),
        Some(name) => Some(unit(name)?),
    };
    let database = parameter("database").cloned().or_else(|| header("database"));
    let body = Body {
        destination: Destination {
            database: database.unwrap_or_else(|| "public".into()),
            table: parameter("table").cloned(),
        },
        unit,
        tags: parameter("tags").map(|tags| tags.split(',').map(str::to_owned).collect()).unwrap_or_default(),
        bytes,
        kind,
    };
    if sonde_query::is_reserved(&body.destination.database) {
        let text = format!("not allowed: database {} is the server's own", body.destination.database);
        return Err(Failure(StatusCode::FORBIDDEN, text));
    }
    let Some(batch) = body::repeated(&door.engine, &door.memories, &body) else {
        return store_blocking(door, body).await;
    };
    let count = batch.rows();
    let receipt = match door.engine.try_write(batch) {
        Ok(receipt) => receipt,
        Err(batch) => blocking(move || door.engine.write(batch)).await?,
    };
    receipt.await?;
    Ok(count)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// Creating tables and columns blocks, and so may the engine's queue.
async fn store_blocking(door: Door, body: Body) -> Result<usize, Failure> {
    let stored = blocking(move || {
        let (builder, refused) = body::build(&door.engine, &door.memories, &body)?;
        let rows = builder.finish().map(|batch| (batch.rows(), door.engine.write(batch)));
        Ok::<_, Failure>((rows, refused))
    });
    let (rows, refused) = stored.await??;
    let count = match rows {
        Some((count, receipt)) => {
            receipt.await?;
            count
        }
        None => 0,
    };
    match refused.count {
        0 => Ok(count),
        bad_rows => {
            let more = if bad_rows > 1 { format!(" (and {} more)", bad_rows - 1) } else { String::new() };
            let first = refused.first;
            Err(bad(format!("partial write: {first}{more}; {count} rows stored, {bad_rows} refused")))
        }
    }
}

fn unit(name: &str) -> Result<TimeUnit, Failure> {
    let short = match name {
        "n" | "nanosecond" => "ns",
        "µ" => "us",
        "u" | "microsecond" => "us",
        "millisecond" => "ms",
        "second" => "s",
        other => other,
    };
    TimeUnit::from_name(short).ok_or_else(|| bad(format!("precision '{name}' is none of ns, us, ms, s")))
}

/// The body, decompressed where it says so.
fn plain(headers: &HeaderMap, body: Bytes) -> Result<Bytes, Failure> {
    let encoding = headers.get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok());
    match encoding {
        None | Some("identity") => Ok(body),
        Some("gzip") => {
            let mut plain = Vec::new();
            let limit = HTTP_BODY as u64;
            let read =
                flate2::read::MultiGzDecoder::new(body.as_ref()).take(limit + 1).read_to_end(&mut plain);
            read.map_err(|error| bad(format!("the gzip body: {error}")))?;
            if plain.len() as u64 > limit {
                return Err(Failure(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body is larger than {limit} bytes"),
                ));
            }
            Ok(plain.into())
        }
        Some(other) => Err(bad(format!("content encoding {other} is not known; gzip is"))),
    }
}
