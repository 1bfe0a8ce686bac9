//! From SQL to a scan and back: statements, tables, functions, limits, and the doors that answers leave by.
//!
//! # Invariants
//! - A query sees one snapshot; every read goes through an engine scan, as rows, totals or newest points.
//! - No SQL text reaches the planner before the guard has bounded it; no SQL reaches a file.
//! - Queries are planned and run on threads of their own, one task each, never on those of a door.
//! - `query` never calls `ingest`: live state enters by two registries, system tables and statement handlers.

mod aggregate;
mod answer;
mod catalog;
mod change;
mod environment;
mod error;
mod guard;
mod insert;
mod latest;
mod leaf;
mod names;
mod parse;
mod permit;
mod planner;
mod pressure;
mod query_engine;
mod registry;
mod request;
mod row_columns;
mod rows;
mod running;
mod scan;
mod table;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;

pub mod door;
pub mod function;
pub mod limits;
pub mod statement;
pub mod system;

pub use answer::Answer;
pub use catalog::is_reserved;
pub use environment::QueryOptions;
pub use error::{Error, Result};
pub use pressure::Pressure;
pub use query_engine::QueryEngine;
pub use registry::{StatementHandler, SystemTable};
pub use request::Request;
pub use rows::{Nulls, RowError, ensure_table, write_rows};
pub use running::QueryInfo;
