//! Prepared statements of Flight SQL and the rows of values bound to them.
//!
//! # Invariants
//! - A handle carries its statement where that fits, so that most statements cost the server nothing between two calls.
//! - What does not fit is kept for one principal, within a count and bytes; the longest unused goes first.
//! - A handle gives no rights: whoever runs it is asked for them each time.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use datafusion::common::ScalarValue;
use parking_lot::Mutex;
use prost::Message;
use sonde_access::Principal;
use tonic::Status;

use crate::door::ipc;
use crate::error::Result;
use crate::limits::{
    HANDLE_BYTES, INSERT_PARAMETERS, PREPARED_BYTES, PREPARED_STATEMENTS, PRINCIPAL_STATEMENT_BYTES,
    PRINCIPAL_STATEMENTS,
};
use crate::request::Request;

/// A statement, and the values bound to it last.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Prepared {
    /// Its text.
    #[prost(string, tag = "1")]
    pub(crate) sql: String,
    /// Rows of values as an Arrow IPC stream, a column for each parameter in order; empty where nothing is bound.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) parameters: Vec<u8>,
}

impl Prepared {
    /// A statement to which nothing is bound.
    pub(crate) fn new(sql: impl Into<String>) -> Self {
        Self { sql: sql.into(), parameters: Vec::new() }
    }

    /// The statements that run: one where nothing is bound, else one for each row of values; an INSERT takes many rows.
    pub(crate) fn requests(
        self,
        principal: Arc<Principal>,
    ) -> Result<impl Iterator<Item = Result<Request>> + Send> {
        if self.parameters.is_empty() {
            let request = Request::new(self.sql, principal);
            return Ok(Requests::Once(Some(request)));
        }
        let (schema, batches) = ipc::decode(self.parameters)?;
        let width = schema.fields().len().max(1);
        let many = InsertRow::of(&self.sql, width).is_some();
        let rows_at_once = if many { (INSERT_PARAMETERS / width).max(1) } else { 1 };
        let parts = batches.into_iter().flat_map(move |batch| parts(batch, rows_at_once));
        Ok(Requests::Rows { sql: self.sql, principal, parts: Box::new(parts) })
    }
}

/// A batch in parts of at most so many rows.
fn parts(batch: RecordBatch, rows_at_once: usize) -> impl Iterator<Item = RecordBatch> {
    let rows = batch.num_rows();
    (0..rows).step_by(rows_at_once).map(move |start| batch.slice(start, rows_at_once.min(rows - start)))
}

/// The requests of a prepared statement, made one by one.
enum Requests {
    Once(Option<Request>),
    Rows { sql: String, principal: Arc<Principal>, parts: Box<dyn Iterator<Item = RecordBatch> + Send> },
}

impl Iterator for Requests {
    type Item = Result<Request>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Once(request) => request.take().map(Ok),
            Self::Rows { sql, principal, parts } => {
                let part = parts.next()?;
                Some(bound(sql, &part).map(|(sql, parameters)| {
                    let mut request = Request::new(sql, Arc::clone(principal));
                    request.parameters = parameters;
                    request
                }))
            }
        }
    }
}

/// The text for these rows of values, and the values.
fn bound(sql: &str, rows: &RecordBatch) -> Result<(String, Vec<ScalarValue>)> {
    let mut values = Vec::with_capacity(rows.num_rows() * rows.num_columns());
    for row in 0..rows.num_rows() {
        for column in rows.columns() {
            values.push(ScalarValue::try_from_array(column.as_ref(), row)?);
        }
    }
    let text = match InsertRow::of(sql, rows.num_columns()) {
        Some(insert) if rows.num_rows() > 1 => insert.text(rows.num_rows()),
        _ => sql.to_owned(),
    };
    Ok((text, values))
}

/// `INSERT ... VALUES (...)` whose one row is nothing but parameters: many rows of values make one such statement, which
/// is one commit.
struct InsertRow<'a> {
    head: &'a str,
    /// The number of the parameter at each place of the row.
    places: Vec<usize>,
    width: usize,
}

impl<'a> InsertRow<'a> {
    /// `None` for every other statement, and where the row does not name each of `width` parameters.
    fn of(sql: &'a str, width: usize) -> Option<Self> {
        let text = sql.trim().trim_end_matches(';').trim_end();
        let (head, row) = text.strip_suffix(')')?.rsplit_once('(')?;
        if !is_insert_head(head) {
            return None;
        }
        let number = |(place, item): (usize, &str)| match item.trim() {
            "?" => Some(place + 1),
            item => item.strip_prefix('$')?.parse().ok(),
        };
        let places = row.split(',').enumerate().map(number).collect::<Option<Vec<usize>>>()?;
        let all = (1..=width).all(|number| places.contains(&number));
        let only = places.iter().all(|number| (1..=width).contains(number));
        (all && only).then_some(Self { head, places, width })
    }

    /// The statement with this many rows, its parameters numbered through.
    fn text(&self, rows: usize) -> String {
        let row = |row: usize| {
            let place = |number: &usize| format!("${}", row * self.width + number);
            format!("({})", self.places.iter().map(place).collect::<Vec<_>>().join(", "))
        };
        format!("{}{}", self.head, (0..rows).map(row).collect::<Vec<_>>().join(", "))
    }
}

/// Whether this is `INSERT ... VALUES` without a parameter of its own.
fn is_insert_head(head: &str) -> bool {
    const FIRST: &str = "INSERT";
    const LAST: &str = "VALUES";
    let words = head.trim();
    let Some(middle) = words.len().checked_sub(LAST.len()) else { return false };
    let (Some(first), Some((before, last))) = (words.get(..FIRST.len()), words.split_at_checked(middle))
    else {
        return false;
    };
    first.eq_ignore_ascii_case(FIRST)
        && last.eq_ignore_ascii_case(LAST)
        && before.ends_with(|c: char| c.is_whitespace() || c == ')' || c == '"')
        && !head.contains(['$', '?'])
}

/// What a client holds.
#[derive(Clone, PartialEq, Message)]
struct Handle {
    /// The statement, where it fits.
    #[prost(message, optional, tag = "1")]
    statement: Option<Prepared>,
    /// Else the number by which it is kept.
    #[prost(bytes = "vec", tag = "2")]
    number: Vec<u8>,
}

/// The statements that do not fit into their handles.
#[derive(Debug, Default)]
pub(crate) struct PreparedStatements(Mutex<Kept>);

/// By the name of a principal and a random number.
type Key = (String, Vec<u8>);

#[derive(Debug, Default)]
struct Kept {
    statements: BTreeMap<Key, Entry>,
    /// Counts uses, so that the longest unused is known.
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    statement: Prepared,
    bytes: usize,
    used: u64,
}

impl PreparedStatements {
    /// The handle of a new statement.
    pub(crate) fn handle(&self, principal: &Principal, statement: Prepared) -> Result<Bytes, Status> {
        let number = uuid::Uuid::new_v4().into_bytes().to_vec();
        self.store((principal.name.clone(), number), statement)
    }

    /// The handle of a statement that takes the place of the one that `handle` names.
    pub(crate) fn replace(
        &self,
        principal: &Principal,
        handle: &[u8],
        statement: Prepared,
    ) -> Result<Bytes, Status> {
        let number = read(handle)?.number;
        if number.is_empty() {
            return self.handle(principal, statement);
        }
        self.store((principal.name.clone(), number), statement)
    }

    /// The statement that a handle names.
    pub(crate) fn find(&self, principal: &Principal, handle: &[u8]) -> Result<Prepared, Status> {
        let handle = read(handle)?;
        if let Some(statement) = handle.statement {
            return Ok(statement);
        }
        let found = self.0.lock().find(&(principal.name.clone(), handle.number));
        found.ok_or_else(|| {
            Status::not_found("the prepared statement is closed, or made room for others; prepare it again")
        })
    }

    /// Forgets the statement that a handle names.
    pub(crate) fn close(&self, principal: &Principal, handle: &[u8]) -> Result<(), Status> {
        let number = read(handle)?.number;
        self.0.lock().statements.remove(&(principal.name.clone(), number));
        Ok(())
    }

    fn store(&self, key: Key, statement: Prepared) -> Result<Bytes, Status> {
        let bytes = statement.encoded_len();
        if bytes <= HANDLE_BYTES {
            self.0.lock().statements.remove(&key);
            let handle = Handle { statement: Some(statement), number: Vec::new() };
            return Ok(handle.encode_to_vec().into());
        }
        if bytes > PRINCIPAL_STATEMENT_BYTES {
            return Err(Status::resource_exhausted(format!(
                "the prepared statement has {bytes} bytes with its parameters, the limit is {PRINCIPAL_STATEMENT_BYTES}"
            )));
        }
        let handle = Handle { statement: None, number: key.1.clone() };
        self.0.lock().insert(key, statement, bytes);
        Ok(handle.encode_to_vec().into())
    }
}

fn read(handle: &[u8]) -> Result<Handle, Status> {
    Handle::decode(handle).map_err(|_| Status::invalid_argument("the handle is none of this server's"))
}

impl Kept {
    fn find(&mut self, key: &Key) -> Option<Prepared> {
        self.uses += 1;
        let entry = self.statements.get_mut(key)?;
        entry.used = self.uses;
        Some(entry.statement.clone())
    }

    fn insert(&mut self, key: Key, statement: Prepared, bytes: usize) {
        let principal = key.0.clone();
        self.uses += 1;
        self.statements.insert(key, Entry { statement, bytes, used: self.uses });
        self.shrink(PRINCIPAL_STATEMENTS, PRINCIPAL_STATEMENT_BYTES, |key| key.0 == principal);
        self.shrink(PREPARED_STATEMENTS, PREPARED_BYTES, |_| true);
    }

    /// Forgets the longest unused of some statements until no more than `count` with `bytes` are left.
    fn shrink(&mut self, count: usize, bytes: usize, of: impl Fn(&Key) -> bool) {
        loop {
            let some: Vec<(&Key, &Entry)> = self.statements.iter().filter(|(key, _)| of(key)).collect();
            let held: usize = some.iter().map(|(_, entry)| entry.bytes).sum();
            if some.len() <= count && held <= bytes {
                return;
            }
            let oldest = some.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| (*key).clone());
            let Some(oldest) = oldest else { return };
            self.statements.remove(&oldest);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn rows_of_an_insert_are_one_statement() {
        let text = |sql, width, rows| InsertRow::of(sql, width).map(|insert| insert.text(rows));
        assert_eq!(
            text("insert INTO t (a, b) values ($2, $1);", 2, 2).as_deref(),
            Some("insert INTO t (a, b) values ($2, $1), ($4, $3)")
        );
        assert_eq!(
            text("INSERT INTO t VALUES\n(?, ?)", 2, 2).as_deref(),
            Some("INSERT INTO t VALUES\n($1, $2), ($3, $4)")
        );
        for (sql, width) in [
            ("INSERT INTO t VALUES (?, 1)", 1),
            ("INSERT INTO t VALUES (?, ?)", 3),
            ("INSERT INTO t VALUES ($1, $3)", 2),
            ("INSERT INTO t VALUES ($1), ($2)", 2),
            ("INSERT INTO t SELECT f($1)", 1),
            ("INSERT INTO t SELECT myvalues($1)", 1),
            ("SELECT * FROM t WHERE a IN ($1)", 1),
            ("VALUES ($1)", 1),
            ("(", 1),
            ("é)", 1),
        ] {
            assert_eq!(text(sql, width, 2), None, "{sql}");
        }
    }

    #[test]
    fn short_statements_live_in_their_handles() {
        let (kept, alice) = (PreparedStatements::default(), Principal::admin("alice"));
        let handle = kept.handle(&alice, Prepared::new("SELECT 1")).unwrap();
        assert!(kept.0.lock().statements.is_empty());
        assert_eq!(kept.find(&alice, &handle).unwrap().sql, "SELECT 1");
        assert!(kept.find(&alice, b"no handle").is_err());
    }

    #[test]
    fn long_statements_are_kept_for_their_principal_within_bounds() {
        let kept = PreparedStatements::default();
        let (alice, bob) = (Principal::admin("alice"), Principal::admin("bob"));
        let long = || Prepared::new("x".repeat(HANDLE_BYTES));
        let first = kept.handle(&alice, long()).unwrap();
        let second = kept.handle(&alice, long()).unwrap();
        assert!(kept.find(&bob, &first).is_err());
        for _ in 0..PRINCIPAL_STATEMENTS - 1 {
            kept.find(&alice, &first).unwrap();
            kept.handle(&alice, long()).unwrap();
        }
        assert!(kept.find(&alice, &first).is_ok());
        assert!(kept.find(&alice, &second).is_err());
        assert_eq!(kept.replace(&alice, &first, long()).unwrap(), first);
        kept.close(&alice, &first).unwrap();
        assert!(kept.find(&alice, &first).is_err());
        let huge = Prepared::new("x".repeat(PRINCIPAL_STATEMENT_BYTES));
        assert_eq!(kept.handle(&alice, huge).unwrap_err().code(), tonic::Code::ResourceExhausted);
    }
}
