//! Named limits of queries.

use std::time::Duration;

/// Bytes of a statement.
pub const STATEMENT_BYTES: usize = 1 << 20;
/// Tokens of a statement.
pub const STATEMENT_TOKENS: usize = 100_000;
/// Operators, keywords and subscripts of a statement: each can make an expression, and what recurses over it, one
/// deeper.
pub const STATEMENT_OPERATORS: usize = 2_000;
/// Queries, joins, windows and listed tables of a statement: each can make the plan, and what recurses over it, one
/// deeper. A level of the plan takes more stack than one of an expression, and far more time to plan.
pub const STATEMENT_LAYERS: usize = 256;
/// Times that a statement says EXPLAIN, for which the parser recurses without a limit of its own.
pub const STATEMENT_EXPLAINS: usize = 8;
/// Parentheses inside each other.
pub const STATEMENT_DEPTH: usize = 48;
/// Queries that run at once.
pub const RUNNING_QUERIES: usize = 256;
/// Stack of the threads that plan and run queries. Measured on release and debug builds: `x IS NULL IS NULL ...` takes
/// 1 to 2 KiB an operator, EXPLAIN 4 to 8 KiB; 1,000 listed tables fit, too.
pub const QUERY_STACK: usize = 16 << 20;
/// Bytes of a part of an answer, of which doors write one at a time, unless it is a single row; that may take an eighth of
/// the memory of all queries.
pub const ANSWER_PART_BYTES: usize = 4 << 20;
/// Batches that a query is ahead of its reader.
pub const ANSWER_AHEAD: usize = 2;
/// How long a query waits to begin while memory is short.
pub const PRESSURE_WAIT: Duration = Duration::from_secs(5);
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
/// Totals of series, one and one for each field, that a partition of an aggregation by tags keeps in the engine; with more,
/// rows are grouped above the scan, where they can spill.
pub const SERIES_TOTALS: usize = 128 << 10;
/// One part in so many of the memory of all queries is what the totals of one aggregation may take, in all its partitions;
/// with more, rows are grouped above the scan, too.
pub const TOTALS_SHARE: usize = 4;
/// Totals of series that become one batch.
pub const TOTALS_BATCH: usize = 8192;
/// Bytes of a prepared statement with its parameters that its handle carries; a longer one is kept by the server.
pub const HANDLE_BYTES: usize = 64 << 10;
/// Prepared statements too long for a handle that are kept for one principal; the longest unused one goes first.
pub const PRINCIPAL_STATEMENTS: usize = 64;
/// Bytes of the prepared statements that are kept for one principal.
pub const PRINCIPAL_STATEMENT_BYTES: usize = 16 << 20;
/// Bytes of the prepared statements that are kept for all principals.
pub const PREPARED_BYTES: usize = 64 << 20;
/// Parameters that one INSERT of many rows binds: its text stays well within a statement's tokens and bytes.
pub const INSERT_PARAMETERS: usize = 8192;
/// Bytes of one gRPC message that is sent: clients take 4 MiB unless told otherwise.
pub const ANSWER_MESSAGE_BYTES: usize = 1 << 20;
/// Bytes of a row group of a Parquet answer, which is all that is held of it.
pub const PARQUET_GROUP_BYTES: usize = 16 << 20;
/// Bytes that an Arrow IPC stream from outside may become, decompressed and with its dictionaries written out.
pub const IPC_DECODED_BYTES: u64 = 256 << 20;
/// Fields of the schema of an Arrow IPC stream from outside, those inside others included.
pub const IPC_FIELDS: usize = 10_000;
