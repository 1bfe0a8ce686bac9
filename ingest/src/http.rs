//! Rows over HTTP: `POST /api/v1/write?table=t` with JSON, NDJSON or line protocol, and the addresses that Telegraf and
//! Influx clients use, `/write` and `/api/v2/write`. 2xx means durable and visible.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Extension, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use sonde_access::{Action, Principal, allows};
use sonde_engine::{Engine, FieldValue, Timestamp, WriteBatchBuilder};
use sonde_query::statement::TimeUnit;

use crate::decode::json::{self, Payload};
use crate::decode::{Item, line, time_of_number};
use crate::limits::HTTP_BODY;
use crate::source::{Refusal, check_time, store_row, usual_tag, usual_time};

/// The routes of this door.
pub fn routes(engine: Engine) -> Router {
    Router::new()
        .route("/api/v1/write", post(write))
        .route("/write", post(influx))
        .route("/api/v2/write", post(influx))
        .layer(DefaultBodyLimit::max(HTTP_BODY))
        .route("/ping", get(|| async { StatusCode::NO_CONTENT }))
        .with_state(engine)
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

fn bad(text: impl Into<String>) -> Failure {
    Failure(StatusCode::BAD_REQUEST, text.into())
}

/// What a body holds, and where it goes.
struct Body {
    database: String,
    table: Option<String>,
    unit: Option<TimeUnit>,
    tags: Vec<String>,
    text: String,
    kind: BodyKind,
}

#[derive(Clone, Copy)]
enum BodyKind {
    Json,
    NdJson,
    Lines,
}

async fn write(
    State(engine): State<Engine>,
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
    let written = store(engine, &principal, &parameters, &headers, body, kind).await?;
    let body = serde_json::json!({ "rows": written });
    Ok((StatusCode::OK, axum::Json(body)).into_response())
}

async fn influx(
    State(engine): State<Engine>,
    Extension(principal): Extension<Arc<Principal>>,
    Query(parameters): Parameters,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, Failure> {
    store(engine, &principal, &parameters, &headers, body, BodyKind::Lines).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

async fn store(
    engine: Engine,
    principal: &Principal,
    parameters: &HashMap<String, String>,
    headers: &HeaderMap,
    body: Bytes,
    kind: BodyKind,
) -> Result<usize, Failure> {
    if !allows(principal, Action::Write) {
        return Err(Failure(StatusCode::FORBIDDEN, format!("not allowed: {} may not write", principal.name)));
    }
    let text = plain_text(headers, body)?;
    let parameter = |name: &str| parameters.get(name).filter(|value| !value.is_empty());
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let unit = match parameter("precision") {
        None => matches!(kind, BodyKind::Lines).then_some(TimeUnit::Nanosecond),
        Some(name) => Some(unit(name)?),
    };
    let body = Body {
        database: parameter("database")
            .cloned()
            .or_else(|| header("database"))
            .unwrap_or_else(|| "public".into()),
        table: parameter("table").cloned(),
        unit,
        tags: parameter("tags").map(|tags| tags.split(',').map(str::to_owned).collect()).unwrap_or_default(),
        text,
        kind,
    };
    // Creating tables and columns blocks, and so may the engine's queue.
    let stored = tokio::task::spawn_blocking(move || {
        let (builder, errors) = build(&engine, &body)?;
        let rows = builder.finish().map(|batch| (batch.rows(), engine.write(batch)));
        Ok::<_, Failure>((rows, errors))
    });
    let (rows, errors) =
        stored.await.map_err(|error| Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))??;
    let count = match rows {
        Some((count, receipt)) => {
            receipt.await?;
            count
        }
        None => 0,
    };
    match errors.first() {
        None => Ok(count),
        Some(first) => {
            let more =
                if errors.len() > 1 { format!(" (and {} more)", errors.len() - 1) } else { String::new() };
            Err(bad(format!("partial write: {first}{more}; {count} rows stored, {} refused", errors.len())))
        }
    }
}

fn unit(name: &str) -> Result<TimeUnit, Failure> {
    let short = match name {
        "n" | "nanosecond" => "ns",
        "u" | "microsecond" => "us",
        "millisecond" => "ms",
        "second" => "s",
        other => other,
    };
    TimeUnit::from_name(short).ok_or_else(|| bad(format!("precision '{name}' is none of ns, us, ms, s")))
}

/// The body as text, decompressed where it says so.
fn plain_text(headers: &HeaderMap, body: Bytes) -> Result<String, Failure> {
    let encoding = headers.get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok());
    let bytes = match encoding {
        None | Some("identity") => body.to_vec(),
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
            plain
        }
        Some(other) => return Err(bad(format!("content encoding {other} is not known; gzip is"))),
    };
    String::from_utf8(bytes).map_err(|_| bad("the body is not UTF-8"))
}

/// Adds the good rows of a body; returns what is wrong with the others.
fn build(engine: &Engine, body: &Body) -> Result<(WriteBatchBuilder, Vec<String>), Failure> {
    let mut builder = engine.batch();
    builder.begin_message();
    let mut errors = Vec::new();
    let mut note = |place: String, refusal: Refusal| match refusal {
        Refusal::Engine(error) => Err(Failure::from(error)),
        Refusal::Invalid(reason) => {
            errors.push(format!("{place}: {reason}"));
            Ok(())
        }
        Refusal::Passed => Ok(()),
    };
    match body.kind {
        BodyKind::Lines => {
            for (number, text) in line::lines(&body.text) {
                if let Err(refusal) = add_line(engine, &mut builder, body, text) {
                    note(format!("line {number}"), refusal)?;
                }
            }
        }
        BodyKind::NdJson => {
            for (number, text) in body.text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
                let rows = match json::decode(text.as_bytes()) {
                    Ok(Payload::Rows(rows)) => rows,
                    Ok(Payload::Scalar(_)) => {
                        note(format!("line {}", number + 1), Refusal::Invalid("no JSON object".into()))?;
                        continue;
                    }
                    Err(error) => {
                        note(format!("line {}", number + 1), Refusal::Invalid(error.0))?;
                        continue;
                    }
                };
                for items in rows {
                    if let Err(refusal) = add_items(engine, &mut builder, body, items) {
                        note(format!("line {}", number + 1), refusal)?;
                    }
                }
            }
        }
        BodyKind::Json => {
            let rows = match json::decode(body.text.as_bytes()).map_err(|error| bad(error.0))? {
                Payload::Rows(rows) => rows,
                Payload::Scalar(_) => return Err(bad("the body is no JSON object or array of them")),
            };
            for (number, items) in rows.into_iter().enumerate() {
                if let Err(refusal) = add_items(engine, &mut builder, body, items) {
                    note(format!("row {number}"), refusal)?;
                }
            }
        }
    }
    Ok((builder, errors))
}

fn add_line(
    engine: &Engine,
    builder: &mut WriteBatchBuilder,
    body: &Body,
    text: &str,
) -> Result<(), Refusal> {
    let line = line::decode(text).map_err(|error| Refusal::Invalid(error.0))?;
    let now = engine.arrival();
    let time = match line.time {
        None => now,
        Some(number) => {
            let time = time_of_number(&FieldValue::Int(number), body.unit);
            let time = time.map_err(|error| Refusal::Invalid(error.0))?;
            check_time(time, now).map_err(Refusal::Invalid)?;
            time
        }
    };
    let tags: Vec<Cow<'_, str>> = line.tags.iter().map(|(name, _)| name.clone()).collect();
    let mut items: Vec<Item<'_>> =
        line.tags.into_iter().map(|(name, value)| (name, FieldValue::Text(value))).collect();
    items.extend(line.fields);
    let table = body.table.as_deref().unwrap_or(&line.table);
    let is_tag = |name: &str| tags.iter().any(|tag| tag == name);
    store_row(engine, builder, (&body.database, table), time, items, &is_tag)
}

fn add_items(
    engine: &Engine,
    builder: &mut WriteBatchBuilder,
    body: &Body,
    mut items: Vec<Item<'_>>,
) -> Result<(), Refusal> {
    let Some(table) = &body.table else {
        return Err(Refusal::Invalid("no table: add ?table=name".into()));
    };
    let now: Timestamp = engine.arrival();
    let mut time = now;
    if let Some(place) = items.iter().position(|(name, _)| usual_time(name)) {
        let (_, value) = items.swap_remove(place);
        time = time_of_number(&value, body.unit).map_err(|error| Refusal::Invalid(error.0))?;
        check_time(time, now).map_err(Refusal::Invalid)?;
    }
    let is_tag =
        |name: &str| body.tags.iter().any(|tag| tag == name) || (body.tags.is_empty() && usual_tag(name));
    store_row(engine, builder, (&body.database, table), time, items, &is_tag)
}
