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
use sonde_engine::{Engine, FieldValue, Timestamp, WriteBatchBuilder};
use sonde_query::statement::TimeUnit;

use crate::bodies::Bodies;
use crate::decode::json::{self, Shape};
use crate::decode::{Rows, line, time_of_number};
use crate::limits::HTTP_BODY;
use crate::row::{Refusal, RowBuffer, TagNames, Target, TimeName, check_time};

/// The routes of this door.
pub fn routes(engine: Engine, bodies: Bodies) -> Router {
    Router::new()
        .route("/api/v1/write", post(write))
        .route("/write", post(influx))
        .route("/api/v2/write", post(influx))
        .layer(DefaultBodyLimit::max(HTTP_BODY))
        .layer(from_fn_with_state(bodies, bound_bodies))
        .route("/ping", get(|| async { StatusCode::NO_CONTENT }))
        .with_state(engine)
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

fn bad(text: impl Into<String>) -> Failure {
    Failure(StatusCode::BAD_REQUEST, text.into())
}

/// What a body holds, and where it goes.
struct Body {
    database: String,
    table: Option<String>,
    unit: Option<TimeUnit>,
    tags: Vec<String>,
    bytes: Bytes,
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
    let bytes = plain(headers, body)?;
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
        bytes,
        kind,
    };
    if sonde_query::is_reserved(&body.database) {
        let text = format!("not allowed: database {} is the server's own", body.database);
        return Err(Failure(StatusCode::FORBIDDEN, text));
    }
    // Creating tables and columns blocks, and so may the engine's queue.
    let stored = tokio::task::spawn_blocking(move || {
        let (builder, refused) = build(&engine, &body)?;
        let rows = builder.finish().map(|batch| (batch.rows(), engine.write(batch)));
        Ok::<_, Failure>((rows, refused))
    });
    let (rows, refused) =
        stored.await.map_err(|error| Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))??;
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

/// A body on its way into a batch.
struct Writer<'b> {
    engine: &'b Engine,
    body: &'b Body,
    text: &'b str,
    buffer: RowBuffer,
    builder: WriteBatchBuilder,
    refused: Refused,
}

/// The rows that were refused: how many, and what is wrong with the first.
#[derive(Default)]
struct Refused {
    count: usize,
    first: String,
}

/// Adds the good rows of a body; says what is wrong with the others.
fn build(engine: &Engine, body: &Body) -> Result<(WriteBatchBuilder, Refused), Failure> {
    let text = std::str::from_utf8(&body.bytes).map_err(|_| bad("the body is not UTF-8"))?;
    let (buffer, builder, refused) = (RowBuffer::default(), engine.batch(), Refused::default());
    let mut writer = Writer { engine, body, text, buffer, builder, refused };
    writer.builder.begin_message();
    match body.kind {
        BodyKind::Lines => writer.lines()?,
        BodyKind::NdJson => writer.nd_json()?,
        BodyKind::Json => writer.json()?,
    }
    Ok((writer.builder, writer.refused))
}

impl<'b> Writer<'b> {
    fn lines(&mut self) -> Result<(), Failure> {
        let mut rows = Rows::default();
        for (number, text) in line::lines(self.text) {
            let stored = self.line(text, &mut rows);
            self.note("line", number, stored)?;
        }
        Ok(())
    }

    fn line(&mut self, text: &'b str, rows: &mut Rows<'b>) -> Result<usize, Refusal> {
        let line = line::decode(text, rows).map_err(|error| Refusal::Invalid(error.0))?;
        let now = self.engine.arrival();
        let time = match line.time {
            None => now,
            Some(number) => {
                let time = time_of_number(&FieldValue::Int(number), self.body.unit);
                let time = time.map_err(|error| Refusal::Invalid(error.0))?;
                check_time(time, now)?;
                time
            }
        };
        let table = self.body.table.as_deref().unwrap_or(&line.table);
        let mut target = target(self.body, table, time);
        (target.time, target.tags) = (TimeName::Absent, TagNames::First(line.tags));
        self.buffer.store(self.engine, &mut self.builder, &target, rows)
    }

    fn nd_json(&mut self) -> Result<(), Failure> {
        let mut rows = Rows::default();
        for (number, text) in self.text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
            let stored = match json::decode(text.as_bytes(), &mut rows) {
                Ok(Shape::Objects) => self.objects(&mut rows),
                Ok(Shape::Scalar) => Err(Refusal::Invalid("no JSON object".into())),
                Err(error) => Err(Refusal::Invalid(error.0)),
            };
            self.note("line", number + 1, stored)?;
        }
        Ok(())
    }

    /// Each object by itself, so that a bad one costs none of the others.
    fn json(&mut self) -> Result<(), Failure> {
        let text = self.text;
        let mut number = 0;
        let mut failure = None;
        let shape = json::decode_each(text.as_bytes(), &mut Rows::default(), |rows| {
            if failure.is_none() {
                let stored = self.objects(rows);
                failure = self.note("row", number, stored).err();
            }
            rows.clear();
            number += 1;
        });
        match (failure, shape) {
            (Some(failure), _) => Err(failure),
            (None, Ok(Shape::Objects)) => Ok(()),
            (None, Ok(Shape::Scalar)) => Err(bad("the body is no JSON object or array of them")),
            (None, Err(error)) => Err(bad(error.0)),
        }
    }

    fn objects(&mut self, rows: &mut Rows<'_>) -> Result<usize, Refusal> {
        let Some(table) = &self.body.table else {
            return Err(Refusal::Invalid("no table: add ?table=name".into()));
        };
        let target = target(self.body, table, self.engine.arrival());
        self.buffer.store(self.engine, &mut self.builder, &target, rows)
    }

    /// Notes what was refused; fails where nothing more can be stored.
    fn note(&mut self, what: &str, number: usize, stored: Result<usize, Refusal>) -> Result<(), Failure> {
        match stored {
            Ok(_) | Err(Refusal::Passed) => Ok(()),
            Err(Refusal::Invalid(reason)) => {
                self.refused.count += 1;
                if self.refused.count == 1 {
                    self.refused.first = format!("{what} {number}: {reason}");
                }
                Ok(())
            }
            Err(Refusal::Engine(error)) => Err(Failure::from(error)),
        }
    }
}

/// Rows of JSON; `arrival` is the time of those without one.
fn target<'t>(body: &'t Body, table: &'t str, arrival: Timestamp) -> Target<'t> {
    Target {
        database: &body.database,
        table,
        time: TimeName::Usual,
        unit: body.unit,
        arrival,
        tags: if body.tags.is_empty() { TagNames::Usual } else { TagNames::Listed(&body.tags) },
        fixed: &[],
        limited_by: None,
    }
}
