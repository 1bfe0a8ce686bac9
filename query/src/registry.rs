//! What others offer to statements: tables of live state, and statements that need live state.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use parking_lot::RwLock;

use crate::error::Result;

/// A table of live state, offered by whoever has the state.
pub trait SystemTable: Send + Sync + std::fmt::Debug {
    /// Its name in the database `system`.
    fn name(&self) -> &'static str;
    /// Its rows as they are now; always of the same schema.
    fn batch(&self) -> Result<RecordBatch>;
}

/// A statement that needs live state, offered by whoever has the state.
pub trait StatementHandler: Send + Sync + std::fmt::Debug {
    /// The words that the statement starts with, in capitals.
    fn prefix(&self) -> &'static [&'static str];
    /// Runs it; `argument` is the text behind the prefix. Returns what to tell the caller.
    fn run(&self, argument: &str) -> Result<String>;
}

/// The system tables by name.
pub(crate) type SystemTables = RwLock<BTreeMap<&'static str, Arc<dyn SystemTable>>>;

/// The statements of others, in the order in which they came.
#[derive(Default)]
pub(crate) struct StatementHandlers(RwLock<Vec<Arc<dyn StatementHandler>>>);

impl StatementHandlers {
    pub(crate) fn add(&self, handler: Arc<dyn StatementHandler>) {
        self.0.write().push(handler);
    }

    /// The statement that this text starts with, and the text behind its prefix.
    pub(crate) fn find(&self, sql: &str) -> Option<(Arc<dyn StatementHandler>, String)> {
        let handlers = self.0.read();
        handlers.iter().find_map(|handler| {
            let mut rest = sql.trim().trim_end_matches(';').trim();
            for word in handler.prefix() {
                let (first, behind) = rest.split_at_checked(word.len())?;
                let ends = behind.is_empty() || behind.starts_with(char::is_whitespace);
                if !first.eq_ignore_ascii_case(word) || !ends {
                    return None;
                }
                rest = behind.trim_start();
            }
            Some((Arc::clone(handler), rest.to_owned()))
        })
    }
}
