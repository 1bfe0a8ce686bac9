//! From text to one statement of DataFusion's. Which statements are ours, `statement` knows.

use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::error::{Error, Result};
use crate::guard;
use crate::limits::STATEMENT_DEPTH;
use crate::statement::RuleSpec;

/// Parses one statement, whose `?` become `$1`, `$2` and so on.
pub(crate) fn parse_one(sql: &str) -> Result<Statement> {
    let mut tokens = Vec::new();
    let mut parameters = 0;
    Tokenizer::new(&GenericDialect {}, sql)
        .tokenize_with_location_into_buf_with_mapper(&mut tokens, |mut token| {
            if let Token::Placeholder(name) = &mut token.token
                && name == "?"
            {
                parameters += 1;
                *name = format!("${parameters}");
            }
            token
        })
        .map_err(|error| Error::Invalid(error.to_string()))?;
    guard::check_tokens(&tokens)?;
    let mut parser = DFParserBuilder::new(tokens)
        .with_dialect(&GenericDialect {})
        .with_recursion_limit(STATEMENT_DEPTH + 16)
        .build()?;
    let mut statements = parser.parse_statements()?;
    match statements.pop_front() {
        Some(statement) if statements.is_empty() => Ok(statement),
        Some(_) => Err(Error::Invalid("one statement at a time; send the others on their own".into())),
        None => Err(Error::Invalid("the statement is empty".into())),
    }
}

/// The query of a rule, which reads and does nothing else.
pub(crate) fn rule_query(spec: &RuleSpec) -> Result<Statement> {
    match parse_one(&spec.query)? {
        Statement::Statement(statement) if matches!(*statement, SqlStatement::Query(_)) => {
            Ok(Statement::Statement(statement))
        }
        _ => Err(Error::Invalid(
            "a rule's query is a SELECT; what it does with the rows stands behind DO".into(),
        )),
    }
}
