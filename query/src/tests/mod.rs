//! Statements against an engine in a temporary directory, and what tests elsewhere ask it with.

mod aggregates;
mod latest;
mod nan;
mod statements;

use std::sync::Arc;

use arrow::array::Array;
use arrow::util::display::array_value_to_string;
use sonde_access::Principal;
use sonde_engine::Engine;

use crate::{QueryEngine, QueryOptions, Request, Result};

pub(crate) const CREATE: &str = "CREATE TABLE t (time TIMESTAMP, device STRING TAG, a DOUBLE, b BIGINT)";

pub(crate) fn open() -> (QueryEngine, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(sonde_engine::Options::new(dir.path().join("data"))).unwrap();
    let query = QueryEngine::new(engine, QueryOptions::new(dir.path().join("spill"))).unwrap();
    (query, dir)
}

pub(crate) async fn ask_as(query: &QueryEngine, principal: Principal, sql: &str) -> Result<Vec<Vec<String>>> {
    let answer = query.run(Request::new(sql, Arc::new(principal))).await?;
    let mut rows = Vec::new();
    for batch in answer.collect().await? {
        for row in 0..batch.num_rows() {
            let text = |column: &Arc<dyn Array>| match column.is_null(row) {
                true => "NULL".to_owned(),
                false => array_value_to_string(column, row).unwrap(),
            };
            rows.push(batch.columns().iter().map(text).collect());
        }
    }
    Ok(rows)
}

pub(crate) async fn ask(query: &QueryEngine, sql: &str) -> Result<Vec<Vec<String>>> {
    ask_as(query, Principal::admin("me"), sql).await
}

pub(crate) async fn refusal(query: &QueryEngine, sql: &str) -> String {
    ask(query, sql).await.expect_err(sql).to_string()
}
