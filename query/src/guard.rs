//! Bounds a statement before the planner sees it: a long `1+1+...` chain or a pile of parentheses would otherwise
//! overflow the planner's stack and end the process.

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::error::{Error, Result};
use crate::limits::{STATEMENT_BYTES, STATEMENT_DEPTH, STATEMENT_OPERATORS, STATEMENT_TOKENS};

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

/// Fails where the tokens could make a plan that is too deep.
pub(crate) fn check_tokens(tokens: &[TokenWithSpan]) -> Result<()> {
    let (mut depth, mut deepest, mut operators, mut count) = (0_usize, 0, 0, 0);
    for token in tokens {
        match &token.token {
            Token::Whitespace(_) => continue,
            Token::LParen | Token::LBracket => depth += 1,
            Token::RParen | Token::RBracket => depth = depth.saturating_sub(1),
            token if is_operator(token) => operators += 1,
            _ => {}
        }
        count += 1;
        deepest = deepest.max(depth);
    }
    for (what, found, limit) in [
        ("tokens", count, STATEMENT_TOKENS),
        ("operators", operators, STATEMENT_OPERATORS),
        ("parentheses inside each other", deepest, STATEMENT_DEPTH),
    ] {
        if found > limit {
            return Err(Error::Invalid(format!("the statement has {found} {what}, the limit is {limit}")));
        }
    }
    Ok(())
}

fn is_operator(token: &Token) -> bool {
    const WORDS: [&str; 11] =
        ["AND", "OR", "NOT", "UNION", "EXCEPT", "INTERSECT", "CASE", "BETWEEN", "LIKE", "JOIN", "SELECT"];
    match token {
        Token::Word(word) => {
            word.quote_style.is_none() && WORDS.iter().any(|w| word.value.eq_ignore_ascii_case(w))
        }
        Token::Comma
        | Token::Number(..)
        | Token::SingleQuotedString(_)
        | Token::DoubleQuotedString(_)
        | Token::Period
        | Token::SemiColon
        | Token::Placeholder(_)
        | Token::EOF => false,
        // Everything else that is no name, literal or bracket: arithmetic, comparison, casts, arrows.
        _ => true,
    }
}
