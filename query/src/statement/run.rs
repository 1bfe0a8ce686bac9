//! Carries out our own statements.

use std::sync::Arc;

use sonde_engine::{
    CatalogRequest, ColdValues, Engine, NewTable, Object, ObjectKind, PhysicalType, Table, TableKind,
    TableOptions, TimeRange, nearest,
};

use super::{
    CreateTable, Name, OptionChange, RuleAction, RuleSpec, Statement, TableChange, backup, copy, user_run,
};
use crate::answer::Answer;
use crate::catalog::check_writable;
use crate::error::{Error, Result};
use crate::query_engine::QueryEngine;
use crate::request::Request;

/// Runs a statement that is not a query.
pub(crate) async fn run(query: &QueryEngine, statement: Statement, request: &Request) -> Result<Answer> {
    let text = match statement {
        Statement::Query(sql) => return query.query(&sql, request).await,
        Statement::CreateRule { spec, replace, text } => {
            check_rule(query, &spec, &request.database).await?;
            let object = object(ObjectKind::Rule, &spec.name, &request.database, text)?;
            change(query, CatalogRequest::PutObject { object, replace }, "rule created").await?
        }
        Statement::Copy(copy) => copy::run(query, &copy, request).await?,
        Statement::Backup(location) => backup::run(query, &location).await?,
        statement => {
            let (query, database) = (query.clone(), request.database.clone());
            // The engine blocks until the work is done.
            blocking(move || run_blocking(&query, statement, &database)).await?
        }
    };
    Answer::of_text(&text)
}

/// Does work that blocks.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Internal(error.to_string()))?
}

/// The database of a name, which the statement changes.
fn changed<'a>(name: &'a Name, database: &'a str) -> Result<&'a str> {
    let database = name.database_or(database);
    check_writable(database)?;
    Ok(database)
}

fn run_blocking(query: &QueryEngine, statement: Statement, database: &str) -> Result<String> {
    let engine = query.engine();
    let table = |name: &Name| -> Result<Arc<Table>> {
        Ok(Arc::clone(engine.catalog().require_table(name.database_or(database), &name.name)?))
    };
    match statement {
        Statement::CreateTable(create) => create_table(engine, create, database),
        Statement::DropTable { name, if_exists } => {
            changed(&name, database)?;
            drop_table(engine, table(&name), if_exists)
        }
        Statement::AlterTable { name, change } => {
            changed(&name, database)?;
            alter_table(engine, &table(&name)?, change)
        }
        Statement::Truncate(name) => {
            changed(&name, database)?;
            engine.delete_range(&table(&name)?, TimeRange::ALL, &[])?;
            Ok("table truncated".into())
        }
        Statement::CreateSource { spec, replace, text } => {
            changed(&spec.table, database)?;
            let object = object(ObjectKind::Source, &spec.name, database, text)?;
            engine.change_catalog(CatalogRequest::PutObject { object, replace })?;
            Ok("source created".into())
        }
        Statement::DropSource { name, if_exists } => {
            drop_object(engine, ObjectKind::Source, &name, database, if_exists)
        }
        Statement::DropRule { name, if_exists } => {
            drop_object(engine, ObjectKind::Rule, &name, database, if_exists)
        }
        Statement::Flush(name) => {
            table(&name)?;
            engine.flush()?;
            Ok("flushed".into())
        }
        Statement::Compact(name) => {
            engine.compact(table(&name)?.id())?;
            Ok("compacted".into())
        }
        Statement::Cool { name, before } => {
            let before = before.unwrap_or(engine.now()).min(engine.now());
            let days = engine.cool(table(&name)?.id(), before)?;
            Ok(format!("{days} days moved to the cold tier"))
        }
        Statement::KillQuery(id) if query.kill(id) => Ok("query ended".into()),
        Statement::KillQuery(id) => {
            Err(Error::Invalid(format!("no query {id} is running; see system.queries")))
        }
        Statement::KillBackup if engine.cancel_backup() => Ok("the backup ends".into()),
        Statement::KillBackup => Err(Error::Invalid("no backup is running".into())),
        Statement::Access(statement) => user_run::run(engine, statement),
        Statement::Query(_) | Statement::CreateRule { .. } | Statement::Backup(_) | Statement::Copy(_) => {
            Err(Error::Internal("a statement took the wrong path".into()))
        }
    }
}

async fn change(query: &QueryEngine, request: CatalogRequest, done: &str) -> Result<String> {
    let engine = query.engine().clone();
    blocking(move || Ok(engine.change_catalog(request)?)).await?;
    Ok(done.to_owned())
}

fn object(kind: ObjectKind, name: &Name, database: &str, text: String) -> Result<Object> {
    Ok(Object { kind, database: changed(name, database)?.to_owned(), name: name.name.clone(), text })
}

fn create_table(engine: &Engine, create: CreateTable, database: &str) -> Result<String> {
    let new = NewTable {
        database: changed(&create.name, database)?.to_owned(),
        name: create.name.name,
        kind: TableKind::Points,
        open: false,
        options: create.options,
        columns: create.columns,
    };
    match engine.change_catalog(CatalogRequest::CreateTable(new)) {
        Err(sonde_engine::Error::Conflict(_)) if create.if_not_exists => Ok("table exists".into()),
        other => other.map(|_| "table created".into()).map_err(Error::from),
    }
}

fn drop_table(engine: &Engine, table: Result<Arc<Table>>, if_exists: bool) -> Result<String> {
    match table {
        Ok(table) => {
            engine.change_catalog(CatalogRequest::DropTable(table.id()))?;
            Ok("table dropped".into())
        }
        Err(Error::Engine(sonde_engine::Error::UnknownTable { .. })) if if_exists => {
            Ok("nothing to drop".into())
        }
        Err(error) => Err(error),
    }
}

fn alter_table(engine: &Engine, table: &Arc<Table>, change: TableChange) -> Result<String> {
    let column = |name: &str| {
        let names = table.def().columns.iter().map(|column| column.name.as_str());
        table.column(name).map(|column| column.id).ok_or_else(|| {
            let hint = nearest(name, names).map(|name| format!("; did you mean {name}?")).unwrap_or_default();
            Error::Invalid(format!("table {} has no column {name}{hint}", table.full_name()))
        })
    };
    let request = match change {
        TableChange::Options(change) => options_request(table, change),
        TableChange::AddColumn { column, if_not_exists } => match table.column(&column.name) {
            Some(_) if if_not_exists => return Ok("column exists".into()),
            Some(known) => return Err(Error::Invalid(format!("column {} exists already", known.name))),
            None => CatalogRequest::AddColumns(table.id(), vec![column]),
        },
        TableChange::DropColumn { name, if_exists } => match column(&name) {
            Err(_) if if_exists => return Ok("nothing to drop".into()),
            found => CatalogRequest::DropColumn(table.id(), found?),
        },
        TableChange::RenameColumn { name, to } => {
            CatalogRequest::RenameColumn(table.id(), column(&name)?, to)
        }
        TableChange::Rename(to) => CatalogRequest::RenameTable(table.id(), to),
        TableChange::SetType { name, kind: PhysicalType::Float64 } => {
            engine.widen(table, column(&name)?, ColdValues::Read)?;
            return Ok("table altered".into());
        }
        TableChange::SetType { name, kind } => {
            let what = "integers become DOUBLE, and no other type changes";
            return Err(Error::Invalid(format!("column {name} cannot become {}: {what}", kind.sql_name())));
        }
    };
    engine.change_catalog(request)?;
    Ok("table altered".into())
}

fn options_request(table: &Table, change: OptionChange) -> CatalogRequest {
    let before = table.def().options;
    let options = TableOptions {
        retention: change.retention.unwrap_or(before.retention),
        cold_after: change.cold_after.unwrap_or(before.cold_after),
        profile: change.profile.unwrap_or(before.profile),
        durability: change.durability.unwrap_or(before.durability),
        max_series: change.max_series.unwrap_or(before.max_series),
        ..before
    };
    CatalogRequest::SetOptions(table.id(), options)
}

fn drop_object(
    engine: &Engine,
    kind: ObjectKind,
    name: &Name,
    database: &str,
    if_exists: bool,
) -> Result<String> {
    let request = CatalogRequest::DropObject {
        kind,
        database: changed(name, database)?.to_owned(),
        name: name.name.clone(),
    };
    match engine.change_catalog(request) {
        Err(sonde_engine::Error::Conflict(_)) if if_exists => Ok("nothing to drop".into()),
        other => other.map(|_| "dropped".into()).map_err(Error::from),
    }
}

/// Fails unless the rule's query plans over its table and gives every column that its actions name.
async fn check_rule(query: &QueryEngine, spec: &RuleSpec, database: &str) -> Result<()> {
    let catalog = query.engine().catalog();
    let from = catalog.require_table(spec.from.database_or(database), &spec.from.name)?;
    let schema = query.check_rule(spec, database).await?;
    for action in &spec.actions {
        match action {
            RuleAction::Publish { topic, .. } => {
                if let Some(missing) = topic.columns().find(|name| schema.field_with_name(name).is_err()) {
                    return Err(Error::Invalid(format!(
                        "the topic names {{{missing}}}, which the query does not select"
                    )));
                }
            }
            RuleAction::Insert { table } => {
                // Names differ where tables do not: one may be written with its database, or in another case.
                let into = catalog.table(changed(table, database)?, &table.name);
                if into.is_some_and(|into| into.id() == from.id()) {
                    let name = from.full_name();
                    return Err(Error::Invalid(format!(
                        "the rule would insert into the table it reads, {name}"
                    )));
                }
            }
        }
    }
    Ok(())
}
