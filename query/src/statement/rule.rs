//! `CREATE RULE name AS SELECT ... FROM table WHERE ... DO PUBLISH TO 'topic/{column}' [QOS n] [RETAIN], INSERT INTO t`.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use super::Name;
use super::parser::Parser;
use crate::error::{Error, Result};

/// A topic with `{column}` places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Column(String),
}

impl Template {
    fn parse(text: &str) -> Result<Self> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            let (before, behind) = rest.split_at(open);
            let close =
                behind.find('}').ok_or_else(|| Error::Invalid(format!("'{text}': a {{ without a }}")))?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Part::Column(behind.get(1..close).unwrap_or_default().to_owned()));
            rest = behind.get(close + 1..).unwrap_or_default();
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// The columns that it names.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Column(name) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    /// The text with every column's place filled.
    #[must_use]
    pub fn fill(&self, mut value: impl FnMut(&str) -> String) -> String {
        let fill = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Column(name) => value(name),
        };
        self.0.iter().map(fill).collect()
    }
}

/// What a rule does with its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleAction {
    /// Publish each row as JSON.
    Publish {
        /// Where.
        topic: Template,
        /// 0, 1 or 2.
        qos: u8,
        /// Whether it is kept for later subscribers.
        retain: bool,
    },
    /// Store each row.
    Insert {
        /// The table.
        table: Name,
    },
}

/// What a `CREATE RULE` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSpec {
    /// The rule.
    pub name: Name,
    /// The query over the table's new rows.
    pub query: String,
    /// The table that it reads.
    pub from: Name,
    /// What it does, in order.
    pub actions: Vec<RuleAction>,
}

pub(super) fn parse(parser: &mut Parser<'_>) -> Result<RuleSpec> {
    let name = parser.name()?;
    parser.words(&["AS"])?;
    let query = parser.text_until("DO", &["PUBLISH", "INSERT", "WEBHOOK", "KAFKA"])?.to_owned();
    parser.words(&["DO"])?;
    let mut actions = vec![action(parser)?];
    while parser.optional_token(&Token::Comma) {
        actions.push(action(parser)?);
    }
    Ok(RuleSpec { name, from: from_table(&query)?, query, actions })
}

fn action(parser: &mut Parser<'_>) -> Result<RuleAction> {
    let kind = parser.word("PUBLISH or INSERT")?.to_ascii_uppercase();
    match kind.as_str() {
        "PUBLISH" => {
            parser.words(&["TO"])?;
            let topic = Template::parse(&parser.text("a topic such as 'alerts/{device}'")?)?;
            let qos = if parser.optional("QOS") { parser.number()? } else { 0 };
            let qos = u8::try_from(qos).ok().filter(|qos| *qos <= 2);
            let qos = qos.ok_or_else(|| Error::Invalid("QOS is 0, 1 or 2".into()))?;
            Ok(RuleAction::Publish { topic, qos, retain: parser.optional("RETAIN") })
        }
        "INSERT" => {
            parser.words(&["INTO"])?;
            Ok(RuleAction::Insert { table: parser.name()? })
        }
        other => Err(Error::Invalid(format!("action {other} does not exist; PUBLISH TO and INSERT INTO do"))),
    }
}

/// The table behind the first top-level FROM of a query.
fn from_table(query: &str) -> Result<Name> {
    let tokens = Tokenizer::new(&GenericDialect {}, query).tokenize();
    let tokens = tokens.map_err(|error| Error::Invalid(error.to_string()))?;
    let mut depth = 0_usize;
    let mut tokens = tokens.into_iter().filter(|token| !matches!(token, Token::Whitespace(_))).peekable();
    while let Some(token) = tokens.next() {
        match token {
            Token::LParen => depth += 1,
            Token::RParen => depth = depth.saturating_sub(1),
            Token::Word(word)
                if depth == 0 && word.quote_style.is_none() && word.value.eq_ignore_ascii_case("FROM") =>
            {
                let mut parts = Vec::new();
                while let Some(Token::Word(word)) = tokens.next() {
                    parts.push(word.value);
                    if tokens.next_if_eq(&Token::Period).is_none() {
                        break;
                    }
                }
                let name = parts.pop().ok_or_else(|| Error::Invalid("a rule reads FROM a table".into()))?;
                return Ok(Name { database: parts.pop(), name });
            }
            _ => {}
        }
    }
    Err(Error::Invalid("a rule's query needs FROM a table".into()))
}
