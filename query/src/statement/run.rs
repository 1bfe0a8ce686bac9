//! Carries out our own statements.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use sonde_engine::{CatalogRequest, Engine, NewTable, Object, ObjectKind, Table, TableKind, TableOptions};

use super::{Copy, CreateTable, Name, RuleAction, RuleSpec, Statement, TableChange};
use crate::answer::Answer;
use crate::context::{QueryEngine, Request};
use crate::error::{Error, Result};

/// Runs a statement that is not a query.
pub(crate) async fn run(query: &QueryEngine, statement: Statement, request: &Request) -> Result<Answer> {
    let text = match statement {
        Statement::Query(sql) => return query.query(&sql, request).await,
        Statement::CreateRule { spec, replace, text } => {
            check_rule(query, &spec, &request.database).await?;
            let object = object(ObjectKind::Rule, &spec.name, &request.database, text);
            change(query, CatalogRequest::PutObject { object, replace }, "rule created").await?
        }
        Statement::Copy(copy) => copy_to(query, &copy, request).await?,
        statement => {
            let (query, database) = (query.clone(), request.database.clone());
            // The engine blocks until the work is done.
            let done = tokio::task::spawn_blocking(move || run_blocking(&query, statement, &database)).await;
            done.map_err(|error| Error::Internal(error.to_string()))??
        }
    };
    Answer::of_text(&text)
}

fn run_blocking(query: &QueryEngine, statement: Statement, database: &str) -> Result<String> {
    let engine = query.engine();
    let table = |name: &Name| -> Result<Arc<Table>> {
        Ok(Arc::clone(engine.catalog().require_table(name.database_or(database), &name.name)?))
    };
    match statement {
        Statement::CreateTable(create) => create_table(engine, create, database),
        Statement::DropTable { name, if_exists } => match table(&name) {
            Ok(table) => {
                engine.change_catalog(CatalogRequest::DropTable(table.id()))?;
                Ok("table dropped".into())
            }
            Err(Error::Engine(sonde_engine::Error::UnknownTable { .. })) if if_exists => {
                Ok("nothing to drop".into())
            }
            Err(error) => Err(error),
        },
        Statement::AlterTable { name, change } => {
            let table = table(&name)?;
            alter_table(engine, &table, change)
        }
        Statement::CreateSource { spec, replace, text } => {
            let object = object(ObjectKind::Source, &spec.name, database, text);
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
        Statement::Query(_) | Statement::CreateRule { .. } | Statement::Copy(_) => {
            Err(Error::Internal("a statement took the wrong path".into()))
        }
    }
}

async fn change(query: &QueryEngine, request: CatalogRequest, done: &str) -> Result<String> {
    let engine = query.engine().clone();
    let changed = tokio::task::spawn_blocking(move || engine.change_catalog(request)).await;
    changed.map_err(|error| Error::Internal(error.to_string()))??;
    Ok(done.to_owned())
}

fn object(kind: ObjectKind, name: &Name, database: &str, text: String) -> Object {
    Object { kind, database: name.database_or(database).to_owned(), name: name.name.clone(), text }
}

fn create_table(engine: &Engine, create: CreateTable, database: &str) -> Result<String> {
    let new = NewTable {
        database: create.name.database_or(database).to_owned(),
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

fn alter_table(engine: &Engine, table: &Table, change: TableChange) -> Result<String> {
    let before = table.def().options;
    let options = TableOptions {
        retention: change.retention.unwrap_or(before.retention),
        cold_after: change.cold_after.unwrap_or(before.cold_after),
        ..before
    };
    engine.change_catalog(CatalogRequest::SetOptions(table.id(), options))?;
    Ok("table altered".into())
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
        database: name.database_or(database).to_owned(),
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
    catalog.require_table(spec.from.database_or(database), &spec.from.name)?;
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
            RuleAction::Insert { table } if *table == spec.from => {
                return Err(Error::Invalid(format!(
                    "the rule would insert into the table it reads, {}",
                    table.name
                )));
            }
            RuleAction::Insert { .. } => {}
        }
    }
    Ok(())
}

/// Writes a query's rows to a file below one of the configured locations.
async fn copy_to(query: &QueryEngine, copy: &Copy, request: &Request) -> Result<String> {
    let path = allowed_path(&query.options().copy_locations, &copy.location)?;
    let mut answer = query.query(&copy.query, request).await?;
    let failed =
        |error: &dyn std::fmt::Display| Error::Internal(format!("write {}: {error}", path.display()));
    let tmp = path.with_extension("tmp");
    let file = std::fs::File::create(&tmp).map_err(|error| failed(&error))?;
    let properties =
        WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let mut writer =
        ArrowWriter::try_new(file, answer.schema(), Some(properties)).map_err(|error| failed(&error))?;
    let mut rows = 0;
    while let Some(batch) = answer.next().await {
        let batch = batch.inspect_err(|_| drop(std::fs::remove_file(&tmp)))?;
        rows += batch.num_rows();
        writer.write(&batch).map_err(|error| failed(&error))?;
    }
    let file = writer.into_inner().map_err(|error| failed(&error))?;
    file.sync_all().and_then(|()| std::fs::rename(&tmp, &path)).map_err(|error| failed(&error))?;
    Ok(format!("{rows} rows written to {}", path.display()))
}

/// The file that a location names, if it is below one of the directories.
fn allowed_path(locations: &[PathBuf], location: &str) -> Result<PathBuf> {
    let path = Path::new(location.strip_prefix("file://").unwrap_or(location));
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if plain
        && path.is_absolute()
        && locations.iter().any(|allowed| path.starts_with(allowed) && path != allowed)
    {
        return Ok(path.to_path_buf());
    }
    let list: Vec<String> = locations.iter().map(|allowed| allowed.display().to_string()).collect();
    let list = if list.is_empty() { "none is".to_owned() } else { format!("these are: {}", list.join(", ")) };
    Err(Error::Denied(format!("COPY TO '{location}': no configured location (copy.locations; {list})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_stay_below_their_locations() {
        let allowed = [PathBuf::from("/data/out")];
        assert!(allowed_path(&allowed, "/data/out/x.parquet").is_ok());
        assert!(allowed_path(&allowed, "file:///data/out/a/x.parquet").is_ok());
        for location in ["/data/out/../x", "/etc/passwd", "x.parquet", "/data/outside/x", "/data/out"] {
            assert!(allowed_path(&allowed, location).is_err(), "{location}");
        }
    }
}
