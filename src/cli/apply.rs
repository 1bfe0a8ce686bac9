//! `sonde apply FILE`: statements from a file; what exists already as they define it is passed over.

use serde_json::Value;
use sonde_engine::ColumnRole;
use sonde_query::statement::{
    CreateTable, Name, RuleAction, RuleSpec, SourceSpec, Statement, parse, parse_duration, parse_rule,
    parse_source, split,
};

use super::client::Client;
use super::output::say;
use super::{ApplyArgs, Exit, Failure, Result};

/// The database of names without one, as the server has it.
const DATABASE: &str = "public";
/// System tables say lengths of time in whole seconds.
const SECOND: i64 = 1_000_000_000;

pub(super) fn run(args: &ApplyArgs) -> Result<()> {
    let client = Client::find(&args.server)?;
    let script = std::fs::read_to_string(&args.file)
        .map_err(|error| Failure::new(Exit::Io, format!("read {}: {error}", args.file.display())))?;
    let statements = split(&script).map_err(|error| Failure::new(Exit::BadData, error.to_string()))?;
    for statement in statements {
        let outcome = apply(&client, &statement)?;
        say(format_args!("{outcome}: {}", first_line(&statement)))?;
    }
    Ok(())
}

/// Runs one statement; says that the object exists already as the statement defines it instead of failing.
pub(super) fn apply(client: &Client, statement: &str) -> Result<String> {
    match client.sql_text(statement) {
        Err(failure) if failure.text.contains("exists already") => {
            check_same(client, statement, failure)?;
            Ok("unchanged".into())
        }
        other => other,
    }
}

/// Fails unless what exists is what the statement would create; `refused` is what the server said to it.
fn check_same(client: &Client, statement: &str, refused: Failure) -> Result<()> {
    let (kind, name, same, remedy) = match parse(statement) {
        Ok(Statement::CreateTable(wanted)) => {
            let same = same_table(client, &wanted)?;
            ("table", wanted.name, same, "ALTER TABLE, or DROP TABLE and create it again")
        }
        Ok(Statement::CreateSource { spec, .. }) => {
            let known = parse_source(&stored_statement(client, "sources", &spec.name)?);
            let (name, spec) = (spec.name.clone(), settled_source(spec));
            ("source", name, known.is_ok_and(|known| settled_source(known) == spec), "CREATE OR REPLACE")
        }
        Ok(Statement::CreateRule { spec, .. }) => {
            let known = parse_rule(&stored_statement(client, "rules", &spec.name)?);
            let (name, spec) = (spec.name.clone(), settled_rule(spec));
            ("rule", name, known.is_ok_and(|known| settled_rule(known) == spec), "CREATE OR REPLACE")
        }
        // A token, of which only a digest is kept, or nothing that creates: the server's word stands.
        _ => return Err(refused),
    };
    if same {
        return Ok(());
    }
    let text = format!("{kind} {} exists with another definition: use {remedy}", name.name);
    Err(Failure::new(Exit::Failed, text))
}

/// Text in single quotes.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The statement by which a source or a rule was created.
fn stored_statement(client: &Client, table: &str, name: &Name) -> Result<String> {
    client.sql_text(&format!(
        "SELECT \"statement\" FROM \"system\".\"{table}\" WHERE \"database\" = {} AND \"name\" = {}",
        quoted(name.database_or(DATABASE)),
        quoted(&name.name)
    ))
}

/// Writes the database into a name that has none, so that `t` and `public.t` are the same.
fn settle(name: &mut Name) {
    name.database = Some(name.database_or(DATABASE).to_owned());
}

fn settled_source(mut spec: SourceSpec) -> SourceSpec {
    settle(&mut spec.name);
    settle(&mut spec.table);
    spec
}

fn settled_rule(mut spec: RuleSpec) -> RuleSpec {
    settle(&mut spec.name);
    settle(&mut spec.from);
    for action in &mut spec.actions {
        if let RuleAction::Insert { table } = action {
            settle(table);
        }
    }
    spec
}

/// Whether the table has these columns, in any order, and these options.
fn same_table(client: &Client, wanted: &CreateTable) -> Result<bool> {
    Ok(stored_columns(client, &wanted.name)? == wanted_columns(wanted)
        && stored_options(client, &wanted.name)? == Some(wanted_options(wanted)))
}

/// Names, roles and types of all columns but the time, sorted.
fn wanted_columns(wanted: &CreateTable) -> Vec<Vec<String>> {
    let columns = wanted.columns.iter().map(|column| {
        let role = if column.role == ColumnRole::Tag { "tag" } else { "field" };
        vec![column.name.clone(), role.to_owned(), column.kind.sql_name().to_owned()]
    });
    let mut columns: Vec<Vec<String>> = columns.collect();
    columns.sort();
    columns
}

fn stored_columns(client: &Client, name: &Name) -> Result<Vec<Vec<String>>> {
    let full_name = format!("{}.{}", name.database_or(DATABASE), name.name);
    let rows = client.sql_rows(&format!(
        "SELECT \"column\", \"role\", \"type\" FROM \"system\".\"columns\" \
         WHERE \"table\" = {} AND \"role\" <> 'time'",
        quoted(&full_name)
    ))?;
    let text = |cell: &Value| cell.as_str().unwrap_or_default().to_owned();
    let mut columns: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(text).collect()).collect();
    columns.sort();
    Ok(columns)
}

/// Partition, 0 where its width is automatic, retention and age of cold days, in seconds.
fn wanted_options(wanted: &CreateTable) -> Vec<i64> {
    let options = &wanted.options;
    let partition = if options.automatic { 0 } else { options.partition };
    [partition, options.retention, options.cold_after].map(|nanos| nanos / SECOND).to_vec()
}

/// `None` where there is no such table any more.
fn stored_options(client: &Client, name: &Name) -> Result<Option<Vec<i64>>> {
    let rows = client.sql_rows(&format!(
        "SELECT \"partition\", \"retention\", \"cold_after\" FROM \"system\".\"tables\" \
         WHERE \"database\" = {} AND \"name\" = {}",
        quoted(name.database_or(DATABASE)),
        quoted(&name.name)
    ))?;
    // Nothing stands where there is no limit.
    let secs = |cell: &Value| cell.as_str().and_then(|text| parse_duration(text).ok()).unwrap_or(0) / SECOND;
    Ok(rows.first().map(|row| row.iter().map(secs).collect()))
}

/// A statement's first line, behind blank lines and comments.
fn first_line(statement: &str) -> &str {
    let mut rest = statement.trim_start();
    loop {
        let behind = if rest.starts_with("--") {
            rest.split_once('\n')
        } else if rest.starts_with("/*") {
            rest.split_once("*/")
        } else {
            None
        };
        match behind {
            Some((_, behind)) => rest = behind.trim_start(),
            None => return rest.lines().next().unwrap_or_default().trim_end(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_no_comment() {
        for (statement, line) in [
            ("CREATE TABLE t (\n  time TIMESTAMP)", "CREATE TABLE t ("),
            ("-- what\n\n  -- why\nDROP TABLE t", "DROP TABLE t"),
            ("\n\n/* what\n   and why */ SELECT 1\n", "SELECT 1"),
            ("-- nothing", "-- nothing"),
        ] {
            assert_eq!(first_line(statement), line);
        }
    }

    #[test]
    fn a_definition_is_the_same_however_it_is_written() {
        let rule = |text: &str| settled_rule(parse_rule(text).unwrap());
        let hot = rule("CREATE RULE hot AS SELECT * FROM t WHERE x > 1 DO INSERT INTO alerts");
        assert_eq!(
            hot,
            rule(
                "-- same\nCREATE OR REPLACE RULE public.hot AS\n  SELECT * FROM t WHERE x > 1\nDO INSERT INTO public.alerts"
            )
        );
        assert_ne!(hot, rule("CREATE RULE hot AS SELECT * FROM t WHERE x > 2 DO INSERT INTO alerts"));
        let source = |text: &str| settled_source(parse_source(text).unwrap());
        let s = source("CREATE SOURCE s ON MQTT 'a/{b}' FORMAT JSON INTO t");
        assert_eq!(s, source("create source s on mqtt 'a/{b}'\n format json into public.t"));
        assert_ne!(s, source("CREATE SOURCE s ON MQTT 'a/{c}' FORMAT JSON INTO t"));
    }

    #[test]
    fn a_table_is_compared_by_columns_and_options() {
        let create = |text: &str| match parse(text) {
            Ok(Statement::CreateTable(create)) => create,
            other => panic!("{other:?}"),
        };
        let table =
            create("CREATE TABLE t (time TIMESTAMP, x INT, d STRING TAG) WITH (retention = '2 days')");
        let text = |row: [&str; 3]| row.map(str::to_owned).to_vec();
        assert_eq!(
            wanted_columns(&table),
            [text(["d", "tag", "STRING"]), text(["x", "field", "BIGINT"])].to_vec()
        );
        assert_eq!(wanted_options(&table), [0, 2 * 86_400, 0], "the width is automatic");
    }
}
