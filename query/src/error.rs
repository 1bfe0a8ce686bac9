//! What can go wrong with a statement, mapped once to what each door says.

use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;

/// An error of a statement.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The statement is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The caller may not do this.
    #[error("not allowed: {0}")]
    Denied(String),
    /// It took too long.
    #[error("the query was ended after {0} s; narrow it, or raise query.timeout")]
    Timeout(u64),
    /// Someone ended it.
    #[error("the query was cancelled")]
    Cancelled,
    /// It needs more than there is.
    #[error("{0}")]
    Resources(String),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] sonde_engine::Error),
    /// A defect of this program.
    #[error("{0}")]
    Internal(String),
}

/// The result of a statement.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        match error.find_root() {
            DataFusionError::External(inner) => {
                if let Some(error) = inner.downcast_ref::<Self>() {
                    return error.restate();
                }
                match inner.downcast_ref::<sonde_engine::Error>() {
                    Some(error) => Self::Engine(error.clone()),
                    None => Self::Internal(one_line(&inner.to_string())),
                }
            }
            DataFusionError::SQL(error, _) => Self::Invalid(syntax(error)),
            DataFusionError::ResourcesExhausted(text) => {
                // DataFusion's text lists its operators: it is for the log, the user needs the key to turn.
                tracing::info!(detail = one_line(text), "a query needed more memory than there is");
                Self::Resources(
                    "the query needs more memory than query.memory allows; ask for less, or raise it".into(),
                )
            }
            DataFusionError::Internal(text) => Self::Internal(one_line(text)),
            root => Self::Invalid(clean(&root.strip_backtrace())),
        }
    }
}

impl Error {
    /// The same error again; streams hand out references only.
    fn restate(&self) -> Self {
        match self {
            Self::Invalid(text) => Self::Invalid(text.clone()),
            Self::Denied(text) => Self::Denied(text.clone()),
            Self::Timeout(secs) => Self::Timeout(*secs),
            Self::Cancelled => Self::Cancelled,
            Self::Resources(text) => Self::Resources(text.clone()),
            Self::Engine(error) => Self::Engine(error.clone()),
            Self::Internal(text) => Self::Internal(text.clone()),
        }
    }

    /// As an error of the stream that DataFusion drives.
    #[must_use]
    pub fn into_datafusion(self) -> DataFusionError {
        DataFusionError::External(Box::new(self))
    }

    /// The HTTP status that says so.
    #[must_use]
    pub fn http_status(&self) -> http::StatusCode {
        match self {
            Self::Invalid(_) => http::StatusCode::BAD_REQUEST,
            Self::Denied(_) => http::StatusCode::FORBIDDEN,
            Self::Timeout(_) => http::StatusCode::REQUEST_TIMEOUT,
            Self::Cancelled => http::StatusCode::CONFLICT,
            Self::Resources(_) => http::StatusCode::INSUFFICIENT_STORAGE,
            Self::Engine(error) => match error {
                sonde_engine::Error::Full(_)
                | sonde_engine::Error::Failed(_)
                | sonde_engine::Error::Closed => http::StatusCode::SERVICE_UNAVAILABLE,
                sonde_engine::Error::Io { .. }
                | sonde_engine::Error::Corrupt { .. }
                | sonde_engine::Error::BadBackup { .. } => http::StatusCode::INTERNAL_SERVER_ERROR,
                _ => http::StatusCode::BAD_REQUEST,
            },
            Self::Internal(_) => http::StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The gRPC status that says so.
    #[must_use]
    pub fn to_status(&self) -> tonic::Status {
        let text = self.to_string();
        match self {
            Self::Denied(_) => tonic::Status::permission_denied(text),
            Self::Timeout(_) => tonic::Status::deadline_exceeded(text),
            Self::Cancelled => tonic::Status::cancelled(text),
            Self::Resources(_) => tonic::Status::resource_exhausted(text),
            _ => match self.http_status().as_u16() {
                400 => tonic::Status::invalid_argument(text),
                503 => tonic::Status::unavailable(text),
                _ => tonic::Status::internal(text),
            },
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The parser's message, without the name of its kind.
fn syntax(error: &ParserError) -> String {
    match error {
        ParserError::ParserError(text) | ParserError::TokenizerError(text) => one_line(text),
        ParserError::RecursionLimitExceeded => "the statement is nested too deeply".into(),
    }
}

/// DataFusion's message in one line, without the names of the kinds that it was wrapped in.
fn clean(text: &str) -> String {
    const KINDS: [&str; 7] = [
        "Error during planning: ",
        "Schema error: ",
        "Execution error: ",
        "SQL error: ",
        "Arrow error: ",
        "Parser error: ",
        "Cast error: ",
    ];
    let line = one_line(text);
    let mut rest = line.as_str();
    while let Some(inner) = KINDS.iter().find_map(|kind| rest.strip_prefix(kind)) {
        rest = inner;
    }
    rest.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_sentence_without_wrappers() {
        for (error, expected) in [
            (
                DataFusionError::SQL(
                    Box::new(ParserError::ParserError("Expected: x,\n found: y".into())),
                    None,
                ),
                "Expected: x, found: y",
            ),
            (
                DataFusionError::SQL(Box::new(ParserError::RecursionLimitExceeded), None),
                "the statement is nested too deeply",
            ),
            (DataFusionError::Execution("Parser error: 'a' is no time".into()), "'a' is no time"),
        ] {
            assert_eq!(Error::from(error).to_string(), expected);
        }
    }
}
