//! Bounds a statement before a parser or the planner sees it: a long `1+1+...` or `x IS NULL IS NULL ...` chain, a
//! pile of parentheses or a list of tables would otherwise overflow the stack of whoever recurses over it, and end the
//! process.
//!
//! # Invariants
//! - Whatever can make a tree one deeper is counted over the whole statement, so that trees which the planner merges
//!   stay bounded, too. What is never more than a leaf is not counted, so that an INSERT may have as many values as it
//!   has tokens.

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::error::{Error, Result};
use crate::limits::{
    STATEMENT_BYTES, STATEMENT_DEPTH, STATEMENT_EXPLAINS, STATEMENT_LAYERS, STATEMENT_OPERATORS,
    STATEMENT_TOKENS,
};

/// Fails where the text is longer than any sensible statement.
pub(crate) fn check_text(sql: &str) -> Result<()> {
    if sql.len() > STATEMENT_BYTES {
        return Err(Error::Invalid(format!(
            "the statement has {} bytes, the limit is {STATEMENT_BYTES}",
            sql.len()
        )));
    }
    Ok(())
}

/// Fails where the tokens could make a tree that is too deep.
pub(crate) fn check_tokens(tokens: &[TokenWithSpan]) -> Result<()> {
    let tokens: Vec<&Token> = tokens
        .iter()
        .map(|token| &token.token)
        .filter(|token| !matches!(token, Token::Whitespace(_) | Token::EOF))
        .collect();
    let mut shape = Shape { tokens: tokens.len(), ..Shape::default() };
    let mut before = None;
    for (at, token) in tokens.iter().enumerate() {
        shape.take(before, token, tokens.get(at + 1).copied());
        before = Some(*token);
    }
    shape.check()
}

/// What of a statement makes trees deep.
#[derive(Default)]
struct Shape {
    tokens: usize,
    operators: usize,
    layers: usize,
    explains: usize,
    deepest: usize,
    /// Whether tables are being listed: in the open bracket that is read, and in those around it.
    listing: bool,
    around: Vec<bool>,
}

impl Shape {
    fn take(&mut self, before: Option<&Token>, token: &Token, next: Option<&Token>) {
        match token {
            Token::LParen | Token::LBrace => self.open(),
            // `x[1][1]...` nests without a bracket inside another.
            Token::LBracket => {
                self.operators += 1;
                self.open();
            }
            Token::RParen | Token::RBracket | Token::RBrace => {
                self.listing = self.around.pop().unwrap_or_default();
            }
            Token::Comma if self.listing => self.layer(),
            Token::VerticalBarRightAngleBracket => self.layer(),
            // `ARRAY<ARRAY<...`: types inside each other, for which the parser recurses without a limit of its own.
            Token::Lt if before.is_some_and(is_type) => self.layer(),
            Token::Plus | Token::Minus if is_sign(before, next) => {}
            // Behind a dot it is a name, whatever it says.
            Token::Word(_) if before == Some(&Token::Period) => {}
            Token::Word(word) => self.keyword(word.keyword, next),
            token if is_leaf(token) => {}
            _ => self.operators += 1,
        }
    }

    fn open(&mut self) {
        self.around.push(std::mem::take(&mut self.listing));
        self.deepest = self.deepest.max(self.around.len());
    }

    /// Something that can be a level of the plan; whatever is joined can also make a condition longer.
    fn layer(&mut self) {
        self.layers += 1;
        self.operators += 1;
    }

    /// A quoted word is no keyword, nor is a name that means nothing to the parser.
    fn keyword(&mut self, keyword: Keyword, next: Option<&Token>) {
        match keyword {
            Keyword::NoKeyword
            | Keyword::AS
            | Keyword::CURRENT_TIMESTAMP
            | Keyword::DEFAULT
            | Keyword::FALSE
            | Keyword::NULL
            | Keyword::TRUE => {}
            // `TIMESTAMP '2026-11-20'` is a literal.
            Keyword::DATE | Keyword::INTERVAL | Keyword::TIME | Keyword::TIMESTAMP | Keyword::TIMESTAMPTZ
                if matches!(next, Some(Token::SingleQuotedString(_))) => {}
            Keyword::EXPLAIN => {
                self.explains += 1;
                self.operators += 1;
            }
            Keyword::FROM => {
                self.listing = true;
                self.operators += 1;
            }
            Keyword::WHERE | Keyword::GROUP | Keyword::HAVING | Keyword::ORDER | Keyword::LIMIT => {
                self.listing = false;
                self.operators += 1;
            }
            Keyword::SELECT
            | Keyword::UNION
            | Keyword::EXCEPT
            | Keyword::INTERSECT
            | Keyword::MINUS
            | Keyword::WINDOW => {
                self.listing = false;
                self.layer();
            }
            Keyword::JOIN
            | Keyword::APPLY
            | Keyword::LATERAL
            | Keyword::OVER
            | Keyword::PIVOT
            | Keyword::UNNEST
            | Keyword::UNPIVOT => self.layer(),
            _ => self.operators += 1,
        }
    }

    fn check(&self) -> Result<()> {
        for (what, found, limit) in [
            ("tokens", self.tokens, STATEMENT_TOKENS),
            ("operators and keywords", self.operators, STATEMENT_OPERATORS),
            ("queries, joins, windows and listed tables", self.layers, STATEMENT_LAYERS),
            ("EXPLAIN", self.explains, STATEMENT_EXPLAINS),
            ("parentheses inside each other", self.deepest, STATEMENT_DEPTH),
        ] {
            if found > limit {
                return Err(Error::Invalid(format!(
                    "the statement has {found} {what}, the limit is {limit}"
                )));
            }
        }
        Ok(())
    }
}

/// Whether a plus or a minus is the sign of a literal that stands alone in a list.
fn is_sign(before: Option<&Token>, next: Option<&Token>) -> bool {
    matches!(before, Some(Token::LParen | Token::Comma)) && matches!(next, Some(Token::Number(..)))
}

/// Whether the word starts a type that is made of others.
fn is_type(token: &Token) -> bool {
    matches!(token, Token::Word(word) if matches!(word.keyword, Keyword::ARRAY | Keyword::STRUCT | Keyword::MAP))
}

/// Dots are among them: the parser recurses over them, within a limit of its own, and what it makes of them is flat.
fn is_leaf(token: &Token) -> bool {
    matches!(
        token,
        Token::Comma
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::DoubleQuotedString(_)
            | Token::Period
            | Token::SemiColon
            | Token::Placeholder(_)
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use datafusion::sql::sqlparser::dialect::GenericDialect;
    use datafusion::sql::sqlparser::tokenizer::Tokenizer;

    use super::*;

    fn check(sql: &str) -> Result<()> {
        check_tokens(&Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location().unwrap())
    }

    #[test]
    fn chains_that_would_overflow_a_stack_are_refused() {
        for (start, link, end) in [
            ("SELECT 1", "+1", ""),
            ("SELECT 1", " IS NULL", ""),
            ("SELECT now()", " AT TIME ZONE 'UTC'", ""),
            ("SELECT x", "[1]", " FROM t"),
            ("SELECT x", "::text", " FROM t"),
            ("SELECT ", "NOT ", "true"),
            ("", "EXPLAIN ", "SELECT 1"),
            ("SELECT * FROM t", ", t", ""),
            ("SELECT * FROM t WHERE a IN (SELECT a FROM t", ", t", ")"),
            ("SELECT * FROM t", " JOIN t", ""),
            ("SELECT 1", " UNION SELECT 1", ""),
            ("SELECT sum(x) OVER ()", ", sum(x) OVER ()", " FROM t"),
            ("WITH a AS (SELECT 1)", ", a AS (SELECT 1)", " SELECT 1"),
            ("SELECT CAST(x AS ", "ARRAY<", "INT)"),
            ("SELECT CAST(x AS ", "STRUCT<a INT, b ", "INT)"),
            ("SELECT ", "(", "1"),
            ("FROM t ", "|> WHERE x ", ""),
        ] {
            let chain = |links: usize| format!("{start}{}{end}", link.repeat(links));
            assert!(check(&chain(4)).is_ok(), "{}", chain(4));
            assert!(check(&chain(5_000)).is_err(), "{}", chain(4));
        }
    }

    #[test]
    fn wide_statements_are_taken() {
        let row = "('2026-11-20T00:00:00Z', 'd1', -1.5, NULL, true, TIMESTAMP '2026-11-20')";
        let insert =
            format!("INSERT INTO t (time, device, a, b, c, d) VALUES {}", vec![row; 5_000].join(", "));
        assert!(check(&insert).is_ok());
        let columns: Vec<String> = (0..1_000).map(|n| format!("avg(t.c{n}) AS a{n}")).collect();
        assert!(check(&format!("SELECT {} FROM t", columns.join(", "))).is_ok());
        assert!(check(&format!("SELECT 1 WHERE 1 IN ({})", vec!["1"; 20_000].join(", "))).is_ok());
    }
}
