//! `CREATE TABLE name (column type [TAG], ...) [WITH (partition, retention, cold_after, profile, max_series, durability)]`.

use datafusion::sql::sqlparser::tokenizer::Token;
use sonde_engine::limits::SERIES_AT_MOST;
use sonde_engine::{ColumnRole, Durability, NewColumn, PhysicalType, Profile, TIME_NAME, TableOptions};

use super::Name;
use super::parser::{OptionValue, Parser, parse_duration};
use crate::error::{Error, Result};

/// What a `CREATE TABLE` says.
#[derive(Clone, Debug, PartialEq)]
pub struct CreateTable {
    /// The table.
    pub name: Name,
    /// Whether an existing one is an error.
    pub if_not_exists: bool,
    /// Its columns, without the time.
    pub columns: Vec<NewColumn>,
    /// Its options.
    pub options: TableOptions,
}

/// What an `ALTER TABLE` changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableChange {
    /// `SET (...)`.
    Options(OptionChange),
    /// `ADD [COLUMN] [IF NOT EXISTS] name type [TAG]`.
    AddColumn {
        /// The column.
        column: NewColumn,
        /// Whether one that is there is no error.
        if_not_exists: bool,
    },
    /// `DROP [COLUMN] [IF EXISTS] name`.
    DropColumn {
        /// Its name.
        name: String,
        /// Whether a missing one is no error.
        if_exists: bool,
    },
    /// `RENAME [COLUMN] name TO name`.
    RenameColumn {
        /// Its name so far.
        name: String,
        /// Its name from here on.
        to: String,
    },
    /// `RENAME TO name`.
    Rename(String),
    /// `ALTER [COLUMN] name [SET DATA] TYPE type`.
    SetType {
        /// The column.
        name: String,
        /// Its type from here on.
        kind: PhysicalType,
    },
}

/// What an `ALTER TABLE ... SET (...)` changes; `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OptionChange {
    /// How long rows are kept, in nanoseconds; 0 is for ever.
    pub retention: Option<i64>,
    /// When complete days go cold, in nanoseconds; 0 is never.
    pub cold_after: Option<i64>,
    /// What compaction writes from now on.
    pub profile: Option<Profile>,
    /// What acknowledgements wait for from now on.
    pub durability: Option<Durability>,
    /// How many series there may be; 0 is the engine's limit.
    pub max_series: Option<i64>,
}

pub(super) fn create(parser: &mut Parser<'_>) -> Result<CreateTable> {
    let if_not_exists = parser.optional("IF");
    if if_not_exists {
        parser.words(&["NOT", "EXISTS"])?;
    }
    let name = parser.name()?;
    let mut columns = Vec::new();
    let mut has_time = false;
    parser.expect_token(&Token::LParen)?;
    loop {
        let column = parser.identifier("a column name")?;
        if column.eq_ignore_ascii_case(TIME_NAME) {
            time_type(parser)?;
            has_time = true;
        } else {
            columns.push(column_of(parser, column)?);
        }
        if parser.optional_token(&Token::RParen) {
            break;
        }
        parser.expect_token(&Token::Comma)?;
    }
    if !has_time {
        return Err(Error::Invalid("a table needs a column: time TIMESTAMP".into()));
    }
    let mut options = TableOptions::automatic();
    if parser.optional("WITH") {
        for (key, value) in parser.options()? {
            set_option(&mut options, &key, &value)?;
        }
    }
    Ok(CreateTable { name, if_not_exists, columns, options })
}

fn time_type(parser: &mut Parser<'_>) -> Result<()> {
    let kind = parser.word("TIMESTAMP")?;
    if !kind.eq_ignore_ascii_case("TIMESTAMP") && !kind.eq_ignore_ascii_case("TIMESTAMPTZ") {
        return Err(Error::Invalid(format!("column time is TIMESTAMP, not {kind}")));
    }
    Ok(())
}

fn column_of(parser: &mut Parser<'_>, name: String) -> Result<NewColumn> {
    let kind = type_of(parser, &name)?;
    let role = if parser.optional("TAG") { ColumnRole::Tag } else { ColumnRole::Field };
    if role == ColumnRole::Tag && kind != PhysicalType::Text {
        return Err(Error::Invalid(format!("tag {name} must be a STRING")));
    }
    Ok(NewColumn { name, role, kind })
}

fn type_of(parser: &mut Parser<'_>, name: &str) -> Result<PhysicalType> {
    let kind = parser.word("a type")?;
    let unsigned = parser.optional("UNSIGNED");
    if kind.eq_ignore_ascii_case("DOUBLE") {
        parser.optional("PRECISION");
    }
    Ok(match kind.to_ascii_uppercase().as_str() {
        "DOUBLE" | "FLOAT" | "FLOAT8" | "REAL" => PhysicalType::Float64,
        "BIGINT" | "INT" | "INTEGER" | "INT8" if unsigned => PhysicalType::UInt64,
        "BIGINT" | "INT" | "INTEGER" | "INT8" => PhysicalType::Int64,
        "BOOLEAN" | "BOOL" => PhysicalType::Boolean,
        "STRING" | "TEXT" | "VARCHAR" | "JSON" => PhysicalType::Text,
        other => {
            return Err(Error::Invalid(format!(
                "column {name} has type {other}; the types are DOUBLE, BIGINT, BIGINT UNSIGNED, BOOLEAN, STRING and JSON"
            )));
        }
    })
}

fn duration(key: &str, value: &OptionValue) -> Result<i64> {
    match value {
        OptionValue::Text(text) => parse_duration(text),
        _ => Err(Error::Invalid(format!("option {key} is a length of time such as '30 days'"))),
    }
}

fn profile(value: &OptionValue) -> Result<Profile> {
    match value {
        OptionValue::Text(text) if text == "fast" => Ok(Profile::Fast),
        OptionValue::Text(text) if text == "dense" => Ok(Profile::Dense),
        _ => Err(Error::Invalid("option profile is 'fast' or 'dense'".into())),
    }
}

fn durability(value: &OptionValue) -> Result<Durability> {
    match value {
        OptionValue::Text(text) if text == "fsync" => Ok(Durability::Fsync),
        OptionValue::Text(text) if text == "buffered" => Ok(Durability::Buffered),
        _ => Err(Error::Invalid("option durability is 'fsync' or 'buffered'".into())),
    }
}

fn max_series(value: &OptionValue) -> Result<i64> {
    let number = match value {
        OptionValue::Number(text) | OptionValue::Text(text) => text.parse().ok(),
        OptionValue::Bool(_) => None,
    };
    let range = 0..=SERIES_AT_MOST as i64;
    number.filter(|number| range.contains(number)).ok_or_else(|| {
        Error::Invalid(format!(
            "option max_series is a number of series up to {SERIES_AT_MOST}, 0 for the limit that all tables have"
        ))
    })
}

fn set_option(options: &mut TableOptions, key: &str, value: &OptionValue) -> Result<()> {
    const DAY: i64 = 86_400_000_000_000;
    match key {
        "partition" => {
            let width = duration(key, value)?;
            let aligned = width > 0 && (DAY % width == 0 || width % DAY == 0);
            if !aligned || width < 60_000_000_000 {
                return Err(Error::Invalid(
                    "a partition is at least a minute, and divides a day or is whole days".into(),
                ));
            }
            (options.partition, options.automatic) = (width, false);
        }
        "retention" => options.retention = duration(key, value)?,
        "cold_after" => options.cold_after = duration(key, value)?,
        "profile" => options.profile = profile(value)?,
        "max_series" => options.max_series = max_series(value)?,
        "durability" => options.durability = durability(value)?,
        _ => {
            return Err(Error::Invalid(format!(
                "unknown option {key}; a table has partition, retention, cold_after, profile, max_series and durability"
            )));
        }
    }
    Ok(())
}

pub(super) fn change(parser: &mut Parser<'_>) -> Result<TableChange> {
    let word = parser.word("SET, ADD, DROP, RENAME or ALTER")?;
    Ok(match word.to_ascii_uppercase().as_str() {
        "SET" => TableChange::Options(option_change(parser)?),
        "ADD" => {
            parser.optional("COLUMN");
            let if_not_exists = parser.optional("IF");
            if if_not_exists {
                parser.words(&["NOT", "EXISTS"])?;
            }
            let name = parser.identifier("a column name")?;
            TableChange::AddColumn { column: column_of(parser, name)?, if_not_exists }
        }
        "DROP" => {
            parser.optional("COLUMN");
            let if_exists = parser.optional("IF");
            if if_exists {
                parser.words(&["EXISTS"])?;
            }
            TableChange::DropColumn { name: parser.identifier("a column name")?, if_exists }
        }
        "RENAME" if parser.optional("TO") => TableChange::Rename(parser.identifier("a table name")?),
        "RENAME" => {
            parser.optional("COLUMN");
            let name = parser.identifier("a column name")?;
            parser.words(&["TO"])?;
            TableChange::RenameColumn { name, to: parser.identifier("a column name")? }
        }
        "ALTER" => {
            parser.optional("COLUMN");
            let name = parser.identifier("a column name")?;
            if parser.optional("SET") {
                parser.words(&["DATA"])?;
            }
            parser.words(&["TYPE"])?;
            let kind = type_of(parser, &name)?;
            TableChange::SetType { name, kind }
        }
        _ => {
            return Err(Error::Invalid(format!(
                "ALTER TABLE {word} does not exist; SET, ADD, DROP, RENAME and ALTER do"
            )));
        }
    })
}

fn option_change(parser: &mut Parser<'_>) -> Result<OptionChange> {
    let mut change = OptionChange::default();
    for (key, value) in parser.options()? {
        match key.as_str() {
            "retention" => change.retention = Some(duration(&key, &value)?),
            "cold_after" => change.cold_after = Some(duration(&key, &value)?),
            "profile" => change.profile = Some(profile(&value)?),
            "max_series" => change.max_series = Some(max_series(&value)?),
            "durability" => change.durability = Some(durability(&value)?),
            _ => {
                return Err(Error::Invalid(format!(
                    "option {key} cannot be altered; retention, cold_after, profile, max_series and durability can"
                )));
            }
        }
    }
    Ok(change)
}
