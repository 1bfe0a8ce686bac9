//! `sonde apply FILE`: statements from a file; what exists already is passed over.

use sonde_query::statement::split;

use super::client::Client;
use super::{ApplyArgs, Exit, Failure, Result};

pub(super) fn run(args: &ApplyArgs) -> Result<()> {
    let client = Client::find(&args.server)?;
    let script = std::fs::read_to_string(&args.file)
        .map_err(|error| Failure::new(Exit::Io, format!("read {}: {error}", args.file.display())))?;
    let statements = split(&script).map_err(|error| Failure::new(Exit::BadData, error.to_string()))?;
    for statement in statements {
        let outcome = apply(&client, &statement)?;
        let first = statement.lines().find(|line| !line.trim_start().starts_with("--")).unwrap_or_default();
        println!("{outcome}: {}", first.trim());
    }
    Ok(())
}

/// Runs one statement; says that the object exists already instead of failing.
pub(super) fn apply(client: &Client, statement: &str) -> Result<String> {
    match client.sql_text(statement) {
        Err(failure) if failure.text.contains("exists already") => Ok("unchanged".into()),
        other => other,
    }
}
