//! A cursor over SQL tokens, with the pieces that our statements are made of.

use arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};
use sonde_engine::Timestamp;

use super::Name;
use crate::error::{Error, Result};

/// Reads tokens front to back; white space and comments are gone.
pub(super) struct Parser<'a> {
    sql: &'a str,
    lines: Vec<usize>,
    /// The tokens that are no white space.
    pieces: Vec<TokenWithSpan>,
    at: usize,
    /// Whether strings may be secrets: no error repeats one.
    secret: bool,
}

/// A value of an option.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum OptionValue {
    Text(String),
    Number(String),
    Bool(bool),
}

impl<'a> Parser<'a> {
    pub(super) fn new(sql: &'a str) -> Result<Self> {
        let mut pieces = tokenize(sql)?;
        pieces.retain(|token| !matches!(token.token, Token::Whitespace(_) | Token::EOF));
        Ok(Self { sql, lines: line_starts(sql), pieces, at: 0, secret: false })
    }

    pub(super) fn tokens(&self) -> &[TokenWithSpan] {
        &self.pieces
    }

    /// Where the token number `at` starts, in bytes of the statement.
    fn start(&self, at: usize) -> usize {
        self.pieces.get(at).map_or(self.sql.len(), |piece| offset(self.sql, &self.lines, piece.span.start))
    }

    /// Where the token number `at` ends, in bytes of the statement.
    fn end_of(&self, at: usize) -> usize {
        self.pieces.get(at).map_or(self.sql.len(), |piece| offset(self.sql, &self.lines, piece.span.end))
    }

    /// The statement's text, without white space and the semicolon at its end.
    pub(super) fn trimmed(&self) -> &'a str {
        self.sql.trim().trim_end_matches(';').trim_end()
    }

    fn token(&self) -> Option<&Token> {
        self.pieces.get(self.at).map(|piece| &piece.token)
    }

    fn error(&self, expected: &str) -> Error {
        match self.pieces.get(self.at) {
            Some(piece) => {
                let hidden = self.secret && !matches!(piece.token, Token::Word(_));
                let found = if hidden { "something else".to_owned() } else { piece.token.to_string() };
                let start = piece.span.start;
                let (line, column) = (start.line, start.column);
                Error::Invalid(format!("expected {expected}, found {found} at line {line}, column {column}"))
            }
            None => Error::Invalid(format!("expected {expected}, found the end of the statement")),
        }
    }

    pub(super) fn peek_word(&self) -> Option<&str> {
        match self.token()? {
            Token::Word(word) if word.quote_style.is_none() => Some(&word.value),
            _ => None,
        }
    }

    pub(super) fn peek_second(&self) -> Option<&str> {
        match &self.pieces.get(self.at + 1)?.token {
            Token::Word(word) => Some(&word.value),
            _ => None,
        }
    }

    /// From here on strings may be secrets.
    pub(super) fn keep_secrets(&mut self) {
        self.secret = true;
    }

    pub(super) fn skip(&mut self, count: usize) {
        self.at += count;
    }

    fn is(&self, wanted: &str) -> bool {
        self.peek_word().is_some_and(|word| word.eq_ignore_ascii_case(wanted))
    }

    /// Takes the word if it comes next.
    pub(super) fn optional(&mut self, wanted: &str) -> bool {
        let is = self.is(wanted);
        self.at += usize::from(is);
        is
    }

    /// Takes these words.
    pub(super) fn words(&mut self, wanted: &[&str]) -> Result<()> {
        wanted.iter().try_for_each(|word| if self.optional(word) { Ok(()) } else { Err(self.error(word)) })
    }

    /// Takes any unquoted word.
    pub(super) fn word(&mut self, expected: &str) -> Result<String> {
        let word = self.peek_word().map(str::to_owned).ok_or_else(|| self.error(expected))?;
        self.at += 1;
        Ok(word)
    }

    pub(super) fn optional_token(&mut self, wanted: &Token) -> bool {
        let is = self.token() == Some(wanted);
        self.at += usize::from(is);
        is
    }

    pub(super) fn expect_token(&mut self, wanted: &Token) -> Result<()> {
        if self.optional_token(wanted) { Ok(()) } else { Err(self.error(&wanted.to_string())) }
    }

    /// Takes an identifier, quoted or not.
    pub(super) fn identifier(&mut self, expected: &str) -> Result<String> {
        match self.token() {
            Some(Token::Word(word)) => {
                let value = word.value.clone();
                self.at += 1;
                Ok(value)
            }
            _ => Err(self.error(expected)),
        }
    }

    /// Takes `name` or `database.name`, a catalog `sonde` before it being allowed.
    pub(super) fn name(&mut self) -> Result<Name> {
        let mut parts = vec![self.identifier("a name")?];
        while self.optional_token(&Token::Period) {
            parts.push(self.identifier("a name")?);
        }
        let name = parts.pop().unwrap_or_default();
        let database = parts.pop();
        match parts.pop() {
            None => Ok(Name { database, name }),
            Some(catalog) if catalog == "sonde" && parts.is_empty() => Ok(Name { database, name }),
            Some(catalog) => Err(Error::Invalid(format!("unknown catalog {catalog}; the only one is sonde"))),
        }
    }

    /// Takes a string in single quotes.
    pub(super) fn text(&mut self, expected: &str) -> Result<String> {
        match self.token() {
            Some(Token::SingleQuotedString(text)) => {
                let text = text.clone();
                self.at += 1;
                Ok(text)
            }
            _ => Err(self.error(expected)),
        }
    }

    pub(super) fn number(&mut self) -> Result<u64> {
        match self.token() {
            Some(Token::Number(digits, _)) => {
                let number = digits.parse().map_err(|_| self.error("a whole number"))?;
                self.at += 1;
                Ok(number)
            }
            _ => Err(self.error("a whole number")),
        }
    }

    pub(super) fn timestamp(&mut self) -> Result<Timestamp> {
        self.optional("TIMESTAMP");
        let text = self.text("a time such as '2026-11-20T00:00:00Z'")?;
        let nanos = string_to_timestamp_nanos(&text).map_err(|error| Error::Invalid(error.to_string()))?;
        Ok(Timestamp::from_nanos(nanos))
    }

    /// Takes `(key = value, ...)`.
    pub(super) fn options(&mut self) -> Result<Vec<(String, OptionValue)>> {
        self.expect_token(&Token::LParen)?;
        let mut options = Vec::new();
        while !self.optional_token(&Token::RParen) {
            if !options.is_empty() {
                self.expect_token(&Token::Comma)?;
            }
            let key = self.identifier("an option")?.to_ascii_lowercase();
            self.expect_token(&Token::Eq)?;
            let value = match self.token() {
                Some(Token::SingleQuotedString(text)) => OptionValue::Text(text.clone()),
                Some(Token::Number(digits, _)) => OptionValue::Number(digits.clone()),
                Some(Token::Word(word)) if word.value.eq_ignore_ascii_case("true") => OptionValue::Bool(true),
                Some(Token::Word(word)) if word.value.eq_ignore_ascii_case("false") => {
                    OptionValue::Bool(false)
                }
                _ => return Err(self.error("a string, a number, true or false")),
            };
            self.at += 1;
            options.push((key, value));
        }
        Ok(options)
    }

    /// Takes everything up to the last top-level word `end` that is followed by one of `then`; returns the text.
    pub(super) fn text_until(&mut self, end: &str, then: &[&str]) -> Result<&'a str> {
        let is_word = |piece: Option<&TokenWithSpan>, wanted: &str| match piece.map(|piece| &piece.token) {
            Some(Token::Word(word)) => word.quote_style.is_none() && word.value.eq_ignore_ascii_case(wanted),
            _ => false,
        };
        let found = (self.at..self.pieces.len()).find(|at| {
            is_word(self.pieces.get(*at), end)
                && then.iter().any(|word| is_word(self.pieces.get(at + 1), word))
        });
        let Some(found) = found else {
            return Err(Error::Invalid(format!("expected {end} followed by {}", then.join(" or "))));
        };
        let (start, stop) = (self.start(self.at), self.start(found));
        self.at = found;
        Ok(self.sql.get(start..stop).unwrap_or_default().trim())
    }

    /// Takes a query in parentheses; returns its text.
    pub(super) fn parenthesised(&mut self) -> Result<&'a str> {
        let start = self.end_of(self.at);
        self.expect_token(&Token::LParen)?;
        let mut depth = 1;
        while depth > 0 {
            match self.token() {
                Some(Token::LParen) => depth += 1,
                Some(Token::RParen) => depth -= 1,
                Some(_) => {}
                None => return Err(self.error(")")),
            }
            self.at += 1;
        }
        let stop = self.start(self.at - 1);
        Ok(self.sql.get(start..stop).unwrap_or_default().trim())
    }

    /// Fails unless the statement ends here.
    pub(super) fn end(&mut self) -> Result<()> {
        while self.optional_token(&Token::SemiColon) {}
        if self.token().is_none() { Ok(()) } else { Err(self.error("the end of the statement")) }
    }
}

fn tokenize(sql: &str) -> Result<Vec<TokenWithSpan>> {
    Tokenizer::new(&GenericDialect {}, sql)
        .tokenize_with_location()
        .map_err(|error| Error::Invalid(format!("{} at {}", error.message, error.location).trim().to_owned()))
}

/// The statements of a script, in their order, without their semicolons.
pub fn split(script: &str) -> Result<Vec<String>> {
    let lines = line_starts(script);
    let mut statements = Vec::new();
    let mut start = 0;
    let mut empty = true;
    for token in tokenize(script)? {
        match token.token {
            Token::SemiColon => {
                let end = offset(script, &lines, token.span.start);
                if !empty {
                    statements.push(script.get(start..end).unwrap_or_default().trim().to_owned());
                }
                start = offset(script, &lines, token.span.end);
                empty = true;
            }
            Token::Whitespace(_) | Token::EOF => {}
            _ => empty = false,
        }
    }
    if !empty {
        statements.push(script.get(start..).unwrap_or_default().trim().to_owned());
    }
    Ok(statements)
}

fn line_starts(sql: &str) -> Vec<usize> {
    std::iter::once(0).chain(sql.match_indices('\n').map(|(at, _)| at + 1)).collect()
}

/// The byte that a line and column, both counted from 1 and columns in characters, stand for.
fn offset(sql: &str, lines: &[usize], location: Location) -> usize {
    let line = (location.line as usize).saturating_sub(1);
    let start = lines.get(line).copied().unwrap_or(sql.len());
    let rest = sql.get(start..).unwrap_or_default();
    let column = (location.column as usize).saturating_sub(1);
    start + rest.char_indices().nth(column).map_or(rest.len(), |(at, _)| at)
}

/// A length of time such as `30 days`, in nanoseconds. A month is 30 days, a year 365.
pub fn parse_duration(text: &str) -> Result<i64> {
    let wrong = || {
        Error::Invalid(format!("'{text}' is no length of time; write for example '30 days' or '15 minutes'"))
    };
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let number: i64 = number.parse().map_err(|_| wrong())?;
    let second = 1_000_000_000_i64;
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "ns" | "nanosecond" | "nanoseconds" => 1,
        "us" | "microsecond" | "microseconds" => 1_000,
        "ms" | "millisecond" | "milliseconds" => 1_000_000,
        "s" | "second" | "seconds" => second,
        "m" | "min" | "minute" | "minutes" => 60 * second,
        "h" | "hour" | "hours" => 3_600 * second,
        "d" | "day" | "days" => 86_400 * second,
        "w" | "week" | "weeks" => 7 * 86_400 * second,
        "month" | "months" => 30 * 86_400 * second,
        "y" | "year" | "years" => 365 * 86_400 * second,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read() {
        assert_eq!(parse_duration("1 day").ok(), Some(86_400_000_000_000));
        assert_eq!(parse_duration("15m").ok(), Some(900_000_000_000));
        assert!(parse_duration("day").is_err() && parse_duration("1 fortnight").is_err());
        assert!(parse_duration("9999999999 years").is_err());
    }

    #[test]
    fn scripts_are_split_at_semicolons_outside_strings_and_comments() {
        let statements = split("SELECT ';'; -- one; two\n/* ; */ SELECT 2;;\n SELECT 'ä' ").ok();
        let expected = ["SELECT ';'", "-- one; two\n/* ; */ SELECT 2", "SELECT 'ä'"];
        assert_eq!(statements, Some(expected.map(str::to_owned).to_vec()));
    }
}
