//! A statement as it comes through a door.

use std::sync::Arc;

use datafusion::common::ScalarValue;
use sonde_access::Principal;

use crate::catalog::DEFAULT_DATABASE;

/// A statement, and who asks.
#[derive(Clone, Debug)]
pub struct Request {
    /// The statement.
    pub sql: String,
    /// The database of names without one.
    pub database: String,
    /// Who asks.
    pub principal: Arc<Principal>,
    /// Values for `$1`, `$2`, ...
    pub parameters: Vec<ScalarValue>,
}

impl Request {
    /// A statement in the default database.
    #[must_use]
    pub fn new(sql: impl Into<String>, principal: Arc<Principal>) -> Self {
        Self { sql: sql.into(), database: DEFAULT_DATABASE.to_owned(), principal, parameters: Vec::new() }
    }
}
