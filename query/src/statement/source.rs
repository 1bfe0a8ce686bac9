//! `CREATE SOURCE name ON MQTT 'filter' FORMAT JSON (time = 'ts', unit = 'ms') INTO table [WITH (reject_invalid = true)]`.
//!
//! The filter is a topic filter whose `{name}` levels become tags. A source maps messages to rows of one table.

use std::time::Duration;

use datafusion::sql::sqlparser::tokenizer::Token;

use super::Name;
use super::parser::{OptionValue, Parser, parse_duration};
use crate::error::{Error, Result};

/// How payloads are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceFormat {
    /// One JSON object, or an array of them.
    Json,
}

/// The unit of times that are numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeUnit {
    /// Seconds.
    Second,
    /// Milliseconds.
    Millisecond,
    /// Microseconds.
    Microsecond,
    /// Nanoseconds.
    Nanosecond,
}

impl TimeUnit {
    /// The unit of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "s" => Self::Second,
            "ms" => Self::Millisecond,
            "us" | "µs" => Self::Microsecond,
            "ns" => Self::Nanosecond,
            _ => return None,
        })
    }

    /// Nanoseconds of one.
    #[must_use]
    pub fn nanos(self) -> i64 {
        match self {
            Self::Second => 1_000_000_000,
            Self::Millisecond => 1_000_000,
            Self::Microsecond => 1_000,
            Self::Nanosecond => 1,
        }
    }
}

/// What a `CREATE SOURCE` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSpec {
    /// The source.
    pub name: Name,
    /// The topic filter, `{name}` levels as they were written.
    pub filter: String,
    /// How payloads are read.
    pub format: SourceFormat,
    /// The key of the time; the usual names where it is missing.
    pub time: Option<String>,
    /// The unit of the time; by magnitude where it is missing.
    pub unit: Option<TimeUnit>,
    /// Keys of the payload that are tags, besides the filter's.
    pub tags: Vec<String>,
    /// The table.
    pub table: Name,
    /// Whether MQTT 5 clients are told that a message was refused.
    pub reject_invalid: bool,
    /// How long messages stay in the log as they came; zero is not at all.
    pub raw_retention: Duration,
}

impl SourceSpec {
    /// The filter as a broker knows it: `{name}` levels are `+`.
    #[must_use]
    pub fn mqtt_filter(&self) -> String {
        let levels =
            self.filter.split('/').map(|level| if placeholder(level).is_some() { "+" } else { level });
        levels.collect::<Vec<_>>().join("/")
    }

    /// The tags that the filter's levels give, with the number of the level.
    pub fn topic_tags(&self) -> impl Iterator<Item = (usize, &str)> {
        self.filter
            .split('/')
            .enumerate()
            .filter_map(|(index, level)| placeholder(level).map(|name| (index, name)))
    }
}

fn placeholder(level: &str) -> Option<&str> {
    level.strip_prefix('{')?.strip_suffix('}').filter(|name| !name.is_empty())
}

pub(super) fn parse(parser: &mut Parser<'_>) -> Result<SourceSpec> {
    let name = parser.name()?;
    parser.words(&["ON", "MQTT"])?;
    let filter = parser.text("a topic filter such as 'acme/{site}/{device}'")?;
    parser.words(&["FORMAT"])?;
    let format = parser.word("JSON")?;
    if !format.eq_ignore_ascii_case("JSON") {
        return Err(Error::Invalid(format!("format {format} does not exist; JSON does")));
    }
    let mut spec = SourceSpec {
        name,
        filter,
        format: SourceFormat::Json,
        time: None,
        unit: None,
        tags: Vec::new(),
        table: Name { database: None, name: String::new() },
        reject_invalid: false,
        raw_retention: Duration::ZERO,
    };
    if !parser.optional("INTO") {
        for (key, value) in parser.options()? {
            set_format_option(&mut spec, &key, value)?;
        }
        parser.words(&["INTO"])?;
    }
    spec.table = parser.name()?;
    parser.optional_token(&Token::SemiColon);
    if parser.optional("WITH") {
        for (key, value) in parser.options()? {
            match (key.as_str(), value) {
                ("reject_invalid", OptionValue::Bool(value)) => spec.reject_invalid = value,
                ("raw_retention", OptionValue::Text(text)) => {
                    spec.raw_retention = Duration::from_nanos(parse_duration(&text)?.unsigned_abs());
                }
                _ => {
                    return Err(Error::Invalid(format!(
                        "unknown option {key}; a source has reject_invalid = true|false and raw_retention = '1 day'"
                    )));
                }
            }
        }
    }
    sonde_proto::mqtt::validate_filter(&spec.mqtt_filter())
        .map_err(|error| Error::Invalid(format!("topic filter '{}': {error}", spec.filter)))?;
    Ok(spec)
}

fn set_format_option(spec: &mut SourceSpec, key: &str, value: OptionValue) -> Result<()> {
    match (key, value) {
        ("time", OptionValue::Text(name)) => spec.time = Some(name),
        ("unit", OptionValue::Text(unit)) => {
            let known = TimeUnit::from_name(&unit);
            spec.unit =
                Some(known.ok_or_else(|| Error::Invalid(format!("unit '{unit}' is none of s, ms, us, ns")))?);
        }
        ("tags", OptionValue::Text(names)) => {
            spec.tags =
                names.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        }
        (key, _) => {
            return Err(Error::Invalid(format!(
                "unknown option {key}; FORMAT JSON has time = 'key', unit = 's|ms|us|ns' and tags = 'key, key'"
            )));
        }
    }
    Ok(())
}
