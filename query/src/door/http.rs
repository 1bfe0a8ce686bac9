//! `POST /api/v1/sql`, `GET /api/v1/queries`, `DELETE /api/v1/queries/{id}`.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Extension, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use datafusion::common::ScalarValue;
use futures::stream;
use serde::Deserialize;
use sonde_access::{Action, Principal};

use crate::answer::Answer;
use crate::context::{QueryEngine, Request, permit};
use crate::door::format::{Encoder, Format};
use crate::error::{Error, Result};
use crate::limits::HTTP_BODY_BYTES;

/// The routes of this door.
pub fn routes(query: QueryEngine) -> Router {
    Router::new()
        .route("/api/v1/sql", post(sql).layer(DefaultBodyLimit::max(HTTP_BODY_BYTES)))
        .route("/api/v1/queries", get(queries))
        .route("/api/v1/queries/{id}", delete(kill))
        .with_state(query)
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = self.http_status();
        let text = serde_json::json!({"error": self.to_string()});
        let mut response = (status, Json(text)).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("5"));
        }
        response
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SqlBody {
    query: String,
    #[serde(default)]
    database: Option<String>,
    #[serde(default)]
    params: Vec<serde_json::Value>,
}

async fn sql(
    State(query): State<QueryEngine>,
    Extension(principal): Extension<Arc<Principal>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response> {
    let request = parse_body(&headers, &body, principal)?;
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let format = Format::from_accept(accept);
    let answer = query.run(request).await?.started().await?;
    let (encoder, head) = Encoder::start(format, &answer.schema())?;
    let body = Body::from_stream(encode(answer, encoder, head));
    Ok(([(header::CONTENT_TYPE, format.content_type())], body).into_response())
}

fn parse_body(headers: &HeaderMap, body: &[u8], principal: Arc<Principal>) -> Result<Request> {
    let text = std::str::from_utf8(body).map_err(|_| Error::Invalid("the body is not UTF-8".into()))?;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let is_json = header("content-type").is_some_and(|kind| kind.starts_with("application/json"));
    let mut request = if is_json || text.trim_start().starts_with('{') {
        let body: SqlBody =
            serde_json::from_str(text).map_err(|error| Error::Invalid(format!("the JSON body: {error}")))?;
        let mut request = Request::new(body.query, principal);
        request.parameters = body.params.iter().map(parameter).collect::<Result<_>>()?;
        if let Some(database) = body.database {
            request.database = database;
        }
        request
    } else {
        Request::new(text, principal)
    };
    if let Some(database) = header("database") {
        request.database = database.to_owned();
    }
    Ok(request)
}

fn parameter(value: &serde_json::Value) -> Result<ScalarValue> {
    Ok(match value {
        serde_json::Value::Null => ScalarValue::Null,
        serde_json::Value::Bool(value) => ScalarValue::Boolean(Some(*value)),
        serde_json::Value::String(value) => ScalarValue::Utf8(Some(value.clone())),
        serde_json::Value::Number(value) => match value.as_i64() {
            Some(value) => ScalarValue::Int64(Some(value)),
            None => ScalarValue::Float64(value.as_f64()),
        },
        _ => return Err(Error::Invalid("a parameter is a string, a number, a boolean or null".into())),
    })
}

/// The bytes of an answer. A failure after the first rows cuts the response off, which clients see as an error.
fn encode(answer: Answer, encoder: Encoder, head: Vec<u8>) -> impl futures::Stream<Item = Result<Bytes>> {
    let start = (answer, Some(encoder), Some(head));
    stream::try_unfold(start, |(mut answer, encoder, head)| async move {
        let Some(mut encoder) = encoder else { return Ok(None) };
        if let Some(head) = head {
            return Ok(Some((Bytes::from(head), (answer, Some(encoder), None))));
        }
        match answer.next().await {
            Some(batch) => {
                let bytes = encoder.push(&batch?)?;
                Ok(Some((Bytes::from(bytes), (answer, Some(encoder), None))))
            }
            None => Ok(Some((Bytes::from(encoder.finish()?), (answer, None, None)))),
        }
    })
}

async fn queries(
    State(query): State<QueryEngine>,
    Extension(principal): Extension<Arc<Principal>>,
) -> Result<Json<serde_json::Value>> {
    permit(&principal, Action::Query, "queries")?;
    let list: Vec<serde_json::Value> = query
        .running()
        .into_iter()
        .map(|info| {
            serde_json::json!({
                "id": info.id, "principal": info.principal, "sql": info.sql, "seconds": info.elapsed.as_secs_f64(),
            })
        })
        .collect();
    Ok(Json(serde_json::json!({ "queries": list })))
}

async fn kill(
    State(query): State<QueryEngine>,
    Extension(principal): Extension<Arc<Principal>>,
    Path(id): Path<u64>,
) -> Result<StatusCode> {
    permit(&principal, Action::Admin, "ending a query")?;
    Ok(if query.kill(id) { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND })
}
