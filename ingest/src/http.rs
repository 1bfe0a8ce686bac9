//! Rows over HTTP: `POST /api/v1/write?table=t` with JSON, NDJSON or line protocol, and the addresses that Telegraf and
//! Influx clients use, `/write` and `/api/v2/write`. 2xx means durable and visible.

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

use crate::decode::json::{self, Shape};
use crate::decode::{Rows, line, time_of_number};
use crate::limits::HTTP_BODY;
use crate::row::{Refusal, RowBuffer, TagNames, Target, TimeName, check_time};

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
    /// What is wrong with the rows that were refused.
    errors: Vec<String>,
}

/// Adds the good rows of a body; returns what is wrong with the others.
fn build(engine: &Engine, body: &Body) -> Result<(WriteBatchBuilder, Vec<String>), Failure> {
    let text = std::str::from_utf8(&body.bytes).map_err(|_| bad("the body is not UTF-8"))?;
    let (buffer, builder, errors) = (RowBuffer::default(), engine.batch(), Vec::new());
    let mut writer = Writer { engine, body, text, buffer, builder, errors };
    writer.builder.begin_message();
    match body.kind {
        BodyKind::Lines => writer.lines()?,
        BodyKind::NdJson => writer.nd_json()?,
        BodyKind::Json => writer.json()?,
    }
    Ok((writer.builder, writer.errors))
}

impl<'b> Writer<'b> {
    fn lines(&mut self) -> Result<(), Failure> {
        for (number, text) in line::lines(self.text) {
            let stored = self.line(text);
            self.note("line", number, stored)?;
        }
        Ok(())
    }

    fn line(&mut self, text: &str) -> Result<usize, Refusal> {
        let mut rows = self.buffer.rows();
        let line = line::decode(text, &mut rows).map_err(|error| Refusal::Invalid(error.0))?;
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
        let target =
            Target { time: TimeName::Absent, tags: TagNames::First(line.tags), ..self.target(table, time) };
        self.buffer.store(self.engine, &mut self.builder, &target, rows)
    }

    fn nd_json(&mut self) -> Result<(), Failure> {
        for (number, text) in self.text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
            let mut rows = self.buffer.rows();
            let stored = match json::decode(text.as_bytes(), &mut rows) {
                Ok(Shape::Objects) => self.objects(rows),
                Ok(Shape::Scalar) => Err(Refusal::Invalid("no JSON object".into())),
                Err(error) => Err(Refusal::Invalid(error.0)),
            };
            self.note("line", number + 1, stored)?;
        }
        Ok(())
    }

    fn json(&mut self) -> Result<(), Failure> {
        let mut rows = Rows::default();
        match json::decode(self.text.as_bytes(), &mut rows) {
            Ok(Shape::Objects) => {}
            Ok(Shape::Scalar) => return Err(bad("the body is no JSON object or array of them")),
            Err(error) => return Err(bad(error.0)),
        }
        // Each row by itself, so that a bad one costs none of the others.
        let (mut items, ends) = rows.drain();
        let mut start = 0;
        for (number, end) in ends.enumerate() {
            let mut row = self.buffer.rows();
            items.by_ref().take(end - start).for_each(|item| row.push(item));
            row.end_row();
            start = end;
            let stored = self.objects(row);
            self.note("row", number, stored)?;
        }
        Ok(())
    }

    fn objects(&mut self, rows: Rows<'_>) -> Result<usize, Refusal> {
        let Some(table) = &self.body.table else {
            return Err(Refusal::Invalid("no table: add ?table=name".into()));
        };
        let target = self.target(table, self.engine.arrival());
        self.buffer.store(self.engine, &mut self.builder, &target, rows)
    }

    fn target<'t>(&self, table: &'t str, arrival: Timestamp) -> Target<'t>
    where
        'b: 't,
    {
        let tags = &self.body.tags;
        Target {
            database: &self.body.database,
            table,
            time: TimeName::Usual,
            unit: self.body.unit,
            arrival,
            tags: if tags.is_empty() { TagNames::Usual } else { TagNames::Listed(tags) },
            fixed: &[],
            limited_by: None,
        }
    }

    /// Notes what was refused; fails where nothing more can be stored.
    fn note(&mut self, what: &str, number: usize, stored: Result<usize, Refusal>) -> Result<(), Failure> {
        match stored {
            Ok(_) | Err(Refusal::Passed) => Ok(()),
            Err(Refusal::Invalid(reason)) => {
                self.errors.push(format!("{what} {number}: {reason}"));
                Ok(())
            }
            Err(Refusal::Engine(error)) => Err(Failure::from(error)),
        }
    }
}
