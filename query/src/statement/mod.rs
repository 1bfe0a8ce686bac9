//! SondeDB's own statements, parsed on the SQL tokenizer; everything else is DataFusion's.
//!
//! # Invariants
//! - A statement that is ours is never handed to DataFusion, so no external table, no file, no setting is reached.
//! - What goes to the catalog is the statement's own text; parsing it again gives the same object.

mod backup;
mod copy;
mod parser;
mod rule;
pub(crate) mod run;
mod source;
mod table;
mod user;
mod user_run;

use sonde_engine::Timestamp;

pub use copy::{Copy, FileFormat};
pub use parser::{parse_duration, split};
pub use rule::{RuleAction, RuleSpec, Template};
pub use source::{SourceFormat, SourceSpec, TimeUnit};
pub use table::{CreateTable, OptionChange, TableChange};
pub use user::{AccessStatement, Grantee, Login, Right, Secret, UserOptions};
pub use user_run::{ChangeUser, change_user};

use crate::error::{Error, Result};
use crate::guard;
use parser::Parser;

/// The names by which statements call a table: an optional database, and the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The database, where one was written.
    pub database: Option<String>,
    /// The object.
    pub name: String,
}

impl Name {
    /// The database that was written, else this one.
    #[must_use]
    pub fn database_or<'a>(&'a self, default: &'a str) -> &'a str {
        self.database.as_deref().unwrap_or(default)
    }
}

/// A statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Statement {
    /// A query, or an INSERT, for DataFusion.
    Query(String),
    /// `CREATE TABLE`.
    CreateTable(CreateTable),
    /// `DROP TABLE`.
    DropTable {
        /// The table.
        name: Name,
        /// Whether a missing one is an error.
        if_exists: bool,
    },
    /// `TRUNCATE TABLE`.
    Truncate(Name),
    /// `ALTER TABLE`.
    AlterTable {
        /// The table.
        name: Name,
        /// What changes.
        change: TableChange,
    },
    /// `CREATE SOURCE`.
    CreateSource {
        /// What it says.
        spec: SourceSpec,
        /// Whether one of this name may be replaced.
        replace: bool,
        /// Its text.
        text: String,
    },
    /// `DROP SOURCE`.
    DropSource {
        /// The source.
        name: Name,
        /// Whether a missing one is an error.
        if_exists: bool,
    },
    /// `CREATE RULE`.
    CreateRule {
        /// What it says.
        spec: RuleSpec,
        /// Whether one of this name may be replaced.
        replace: bool,
        /// Its text.
        text: String,
    },
    /// `DROP RULE`.
    DropRule {
        /// The rule.
        name: Name,
        /// Whether a missing one is an error.
        if_exists: bool,
    },
    /// `FLUSH TABLE`.
    Flush(Name),
    /// `COMPACT TABLE`.
    Compact(Name),
    /// `COOL TABLE t [BEFORE time]`.
    Cool {
        /// The table.
        name: Name,
        /// Days that end at or before this move; all complete days where it is missing.
        before: Option<Timestamp>,
    },
    /// `KILL QUERY id`.
    KillQuery(u64),
    /// `KILL BACKUP`.
    KillBackup,
    /// `BACKUP TO 'location'`.
    Backup(String),
    /// `COPY (query) TO 'location' STORED AS PARQUET`.
    Copy(Copy),
    /// Who may do what: `CREATE USER`, `GRANT` and their kin.
    Access(AccessStatement),
}

impl Statement {
    /// Whether it only reads.
    #[must_use]
    pub fn is_query(&self) -> bool {
        matches!(self, Self::Query(_))
    }
}

/// Parses one statement.
pub fn parse(sql: &str) -> Result<Statement> {
    guard::check_text(sql)?;
    let mut parser = Parser::new(sql)?;
    match parse_ours(&mut parser)? {
        // Read by loops: a table may have as many columns as it likes.
        Some(statement) => {
            parser.end()?;
            Ok(statement)
        }
        None => {
            guard::check_tokens(parser.tokens())?;
            let text = parser.trimmed();
            if text.is_empty() {
                return Err(Error::Invalid("the statement is empty".into()));
            }
            Ok(Statement::Query(text.to_owned()))
        }
    }
}

fn parse_ours(parser: &mut Parser<'_>) -> Result<Option<Statement>> {
    let Some(first) = parser.peek_word().map(str::to_ascii_uppercase) else { return Ok(None) };
    Ok(Some(match first.as_str() {
        "CREATE" => create(parser)?,
        "DROP" => drop_object(parser)?,
        "GRANT" | "DENY" | "REVOKE" => Statement::Access(user::grant(parser)?),
        "ALTER" if parser.peek_second().is_some_and(|word| word.eq_ignore_ascii_case("USER")) => {
            Statement::Access(user::alter(parser)?)
        }
        "ALTER" => {
            parser.words(&["ALTER", "TABLE"])?;
            let name = parser.name()?;
            Statement::AlterTable { name, change: table::change(parser)? }
        }
        "TRUNCATE" => {
            parser.words(&["TRUNCATE"])?;
            parser.optional("TABLE");
            Statement::Truncate(parser.name()?)
        }
        "FLUSH" => {
            parser.words(&["FLUSH", "TABLE"])?;
            Statement::Flush(parser.name()?)
        }
        "COMPACT" => {
            parser.words(&["COMPACT", "TABLE"])?;
            Statement::Compact(parser.name()?)
        }
        "COOL" => {
            parser.words(&["COOL", "TABLE"])?;
            let name = parser.name()?;
            let before = if parser.optional("BEFORE") { Some(parser.timestamp()?) } else { None };
            Statement::Cool { name, before }
        }
        "KILL" => {
            parser.words(&["KILL"])?;
            if parser.optional("BACKUP") {
                Statement::KillBackup
            } else {
                parser.words(&["QUERY"])?;
                Statement::KillQuery(parser.number()?)
            }
        }
        "BACKUP" => Statement::Backup(backup::parse(parser)?),
        "COPY" => Statement::Copy(copy::parse(parser)?),
        "SHOW" => match show(parser) {
            Some(query) => Statement::Query(query),
            None => return Ok(None),
        },
        _ => return Ok(None),
    }))
}

fn create(parser: &mut Parser<'_>) -> Result<Statement> {
    let text = parser.trimmed().to_owned();
    parser.words(&["CREATE"])?;
    let replace = parser.optional("OR");
    if replace {
        parser.words(&["REPLACE"])?;
    }
    let kind = parser.word("TABLE, SOURCE, RULE, USER or ROLE")?.to_ascii_uppercase();
    match kind.as_str() {
        "USER" => Ok(Statement::Access(user::create_user(parser, replace)?)),
        "ROLE" => Ok(Statement::Access(user::create_role(parser, replace)?)),
        "TABLE" if !replace => Ok(Statement::CreateTable(table::create(parser)?)),
        "SOURCE" => Ok(Statement::CreateSource { spec: source::parse(parser)?, replace, text }),
        "RULE" => Ok(Statement::CreateRule { spec: rule::parse(parser)?, replace, text }),
        _ => Err(Error::Invalid(format!(
            "CREATE {kind} does not exist; TABLE, SOURCE, RULE, USER and ROLE can be created"
        ))),
    }
}

fn drop_object(parser: &mut Parser<'_>) -> Result<Statement> {
    parser.words(&["DROP"])?;
    let kind = parser.word("TABLE, SOURCE, RULE, USER, ROLE or TOKEN")?.to_ascii_uppercase();
    let if_exists = parser.optional("IF");
    if if_exists {
        parser.words(&["EXISTS"])?;
    }
    let name = parser.name()?;
    match kind.as_str() {
        "TABLE" => Ok(Statement::DropTable { name, if_exists }),
        "SOURCE" => Ok(Statement::DropSource { name, if_exists }),
        "RULE" => Ok(Statement::DropRule { name, if_exists }),
        "USER" => Ok(Statement::Access(AccessStatement::DropUser { name: user::bare(name)?, if_exists })),
        "TOKEN" => Ok(Statement::Access(AccessStatement::DropToken { name: user::bare(name)?, if_exists })),
        "ROLE" => Ok(Statement::Access(AccessStatement::DropRole { name: user::bare(name)?, if_exists })),
        _ => Err(Error::Invalid(format!(
            "DROP {kind} does not exist; TABLE, SOURCE, RULE, USER, ROLE and TOKEN can be dropped"
        ))),
    }
}

/// `SHOW x` as a query of the system table x.
fn show(parser: &mut Parser<'_>) -> Option<String> {
    const TABLES: [&str; 13] = [
        "sources",
        "rules",
        "queries",
        "settings",
        "chunks",
        "topics",
        "sessions",
        "dead_letters",
        "wal",
        "tiers",
        "jobs",
        "users",
        "roles",
    ];
    let what = parser.peek_second()?.to_ascii_lowercase();
    if what == "tables" {
        parser.skip(2);
        return Some("SELECT * FROM system.tables ORDER BY 1, 2".into());
    }
    if what == "grants" {
        parser.skip(2);
        return Some(user::show_grants(parser));
    }
    let table = TABLES.iter().find(|table| **table == what)?;
    parser.skip(2);
    Some(format!("SELECT * FROM system.{table}"))
}

/// Parses the text of a source from the catalog.
pub fn parse_source(text: &str) -> Result<SourceSpec> {
    match parse(text)? {
        Statement::CreateSource { spec, .. } => Ok(spec),
        _ => Err(Error::Invalid("expected CREATE SOURCE".into())),
    }
}

/// Parses the text of a rule from the catalog.
pub fn parse_rule(text: &str) -> Result<RuleSpec> {
    match parse(text)? {
        Statement::CreateRule { spec, .. } => Ok(spec),
        _ => Err(Error::Invalid("expected CREATE RULE".into())),
    }
}
