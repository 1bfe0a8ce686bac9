//! Named limits of queries.

use std::time::Duration;

/// Bytes of a statement.
pub const STATEMENT_BYTES: usize = 1 << 20;
/// Tokens of a statement.
pub const STATEMENT_TOKENS: usize = 100_000;
/// Operators of a statement: each can make the planner's recursion one deeper.
pub const STATEMENT_OPERATORS: usize = 2_000;
/// Parentheses inside each other.
pub const STATEMENT_DEPTH: usize = 48;
/// Queries that run at once.
pub const RUNNING_QUERIES: usize = 256;
/// How long a query may run by default.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(300);
/// Prepared statements that are open at once.
pub const PREPARED_STATEMENTS: usize = 1024;
/// Bytes of one gRPC message that is received.
pub const GRPC_MESSAGE_BYTES: usize = 64 << 20;
/// Bytes of one HTTP request body that carries SQL.
pub const HTTP_BODY_BYTES: usize = STATEMENT_BYTES + (64 << 10);
/// Batches that a scan thread is ahead of its reader.
pub const SCAN_AHEAD: usize = 2;
/// Rows that one INSERT hands to the engine at once.
pub const INSERT_ROWS: usize = 8192;
