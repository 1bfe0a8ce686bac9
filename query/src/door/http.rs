//! `POST /api/v1/sql`, `GET /api/v1/queries`, `DELETE /api/v1/queries/{id}`.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Extension, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use datafusion::common::ScalarValue;
use futures::TryStreamExt;
use serde::Deserialize;
use sonde_access::{Action, Principal};

use crate::door::format::{Format, encode};
use crate::error::{Error, Result};
use crate::limits::HTTP_BODY_BYTES;
use crate::permit::permit;
use crate::query_engine::QueryEngine;
use crate::request::Request;

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
        refuse(self.http_status(), &self.to_string())
    }
}

/// An error as every door of ours says it: one sentence in JSON.
fn refuse(status: StatusCode, text: &str) -> Response {
    let mut response = (status, Json(serde_json::json!({ "error": text }))).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("5"));
    }
    response
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
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let text = format!("the body is longer than {HTTP_BODY_BYTES} bytes, the limit of a statement");
            return refuse(rejection.status(), &text);
        }
        Err(rejection) => return refuse(rejection.status(), &rejection.body_text()),
    };
    let answered = match parse_body(&headers, &body, principal) {
        Ok(request) => answer(&query, request, &headers).await,
        Err(error) => Err(error),
    };
    answered.unwrap_or_else(IntoResponse::into_response)
}

/// Runs a statement; what goes wrong after the first rows cuts the response off, which clients see as an error.
async fn answer(query: &QueryEngine, request: Request, headers: &HeaderMap) -> Result<Response> {
    let accepts: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok()).collect();
    let format = Format::from_accept(&accepts.join(","));
    let answer = query.run(request).await?.started().await?;
    let body = Body::from_stream(encode(answer, format)?.map_ok(Bytes::from));
    Ok(([(header::CONTENT_TYPE, format.content_type())], body).into_response())
}

fn parse_body(headers: &HeaderMap, body: &[u8], principal: Arc<Principal>) -> Result<Request> {
    let text = std::str::from_utf8(body).map_err(|_| Error::Invalid("the body is not UTF-8".into()))?;
    let kind = plain_header(headers, "content-type")?.unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let is_json = kind.eq_ignore_ascii_case("application/json") || text.trim_start().starts_with('{');
    let mut request = if is_json { parse_json(text, principal)? } else { Request::new(text, principal) };
    // No name is the same as no header, as over gRPC.
    if let Some(database) = plain_header(headers, "database")?.filter(|database| !database.is_empty()) {
        request.database = database.to_owned();
    }
    Ok(request)
}

fn plain_header<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>> {
    let value = headers.get(name).map(header::HeaderValue::to_str).transpose();
    value.map_err(|_| Error::Invalid(format!("the header {name} is not plain text")))
}

fn parse_json(text: &str, principal: Arc<Principal>) -> Result<Request> {
    let body: SqlBody =
        serde_json::from_str(text).map_err(|error| Error::Invalid(format!("the JSON body: {error}")))?;
    let mut request = Request::new(body.query, principal);
    request.parameters = body.params.iter().map(parameter).collect::<Result<_>>()?;
    if let Some(database) = body.database.filter(|database| !database.is_empty()) {
        request.database = database;
    }
    Ok(request)
}

fn parameter(value: &serde_json::Value) -> Result<ScalarValue> {
    Ok(match value {
        serde_json::Value::Null => ScalarValue::Null,
        serde_json::Value::Bool(value) => ScalarValue::Boolean(Some(*value)),
        serde_json::Value::String(value) => ScalarValue::Utf8(Some(value.clone())),
        serde_json::Value::Number(value) => match (value.as_i64(), value.as_u64()) {
            (Some(value), _) => ScalarValue::Int64(Some(value)),
            (None, Some(value)) => ScalarValue::UInt64(Some(value)),
            (None, None) => ScalarValue::Float64(value.as_f64()),
        },
        _ => return Err(Error::Invalid("a parameter is a string, a number, a boolean or null".into())),
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
                "memory": info.memory,
            })
        })
        .collect();
    Ok(Json(serde_json::json!({ "queries": list })))
}

async fn kill(
    State(query): State<QueryEngine>,
    Extension(principal): Extension<Arc<Principal>>,
    Path(id): Path<String>,
) -> Result<Response> {
    permit(&principal, Action::Admin, "ending a query")?;
    let id = id.parse::<u64>().map_err(|_| Error::Invalid(format!("'{id}' is no number of a query")))?;
    if query.kill(id) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(refuse(StatusCode::NOT_FOUND, &format!("no query {id} is running; see system.queries")))
}
