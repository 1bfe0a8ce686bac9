//! The tables that a statement can name, as of one snapshot: those of the engine, and the system tables.
//!
//! # Invariants
//! - A database is looked up exactly: `names.rs` has written the statement's names as they are stored.
//! - A system table goes before a table of the engine, so that no table of that name can take its place.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, SchemaProvider, TableProvider};
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use sonde_engine::{Engine, Snapshot};

use crate::error::{Error, Result};
use crate::registry::{SystemTable, SystemTables};
use crate::table::SondeTable;

/// The one catalog.
pub(crate) const CATALOG: &str = "sonde";
/// The database of names without one.
pub(crate) const DEFAULT_DATABASE: &str = "public";
/// The database of system tables.
pub(crate) const SYSTEM_DATABASE: &str = "system";
/// The database in which DataFusion describes all others.
const INFORMATION_SCHEMA: &str = "information_schema";

/// Tables that stand in for those of the catalog, by database and name.
pub(crate) type Overrides = HashMap<(String, String), Arc<dyn TableProvider>>;

/// Whether a database is SondeDB's own: no client creates, drops, alters or fills a table there.
#[must_use]
pub fn is_reserved(database: &str) -> bool {
    [SYSTEM_DATABASE, INFORMATION_SCHEMA].iter().any(|reserved| database.eq_ignore_ascii_case(reserved))
}

/// Fails where a client may not change what is in a database.
pub(crate) fn check_writable(database: &str) -> Result<()> {
    if is_reserved(database) {
        return Err(Error::Invalid(format!(
            "database {database} is reserved; no statement changes what is in it"
        )));
    }
    Ok(())
}

#[derive(Debug)]
pub(crate) struct SondeCatalog {
    pub(crate) engine: Engine,
    pub(crate) snapshot: Snapshot,
    pub(crate) system: Arc<SystemTables>,
    pub(crate) instead: Arc<Overrides>,
}

impl CatalogProvider for SondeCatalog {
    fn schema_names(&self) -> Vec<String> {
        let databases = self.snapshot.catalog().tables().map(|table| table.def().database.clone());
        let mut names: Vec<String> =
            databases.chain([DEFAULT_DATABASE.to_owned(), SYSTEM_DATABASE.to_owned()]).collect();
        names.sort();
        names.dedup();
        names
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let database = self.schema_names().into_iter().find(|database| database == name)?;
        Some(Arc::new(Database {
            engine: self.engine.clone(),
            snapshot: self.snapshot.clone(),
            system: (name == SYSTEM_DATABASE).then(|| Arc::clone(&self.system)),
            instead: Arc::clone(&self.instead),
            name: database,
        }))
    }
}

#[derive(Debug)]
struct Database {
    engine: Engine,
    snapshot: Snapshot,
    system: Option<Arc<SystemTables>>,
    instead: Arc<Overrides>,
    name: String,
}

impl Database {
    fn system_table(&self, name: &str) -> Option<Arc<dyn SystemTable>> {
        self.system.as_ref()?.read().get(name).cloned()
    }
}

#[async_trait]
impl SchemaProvider for Database {
    fn table_names(&self) -> Vec<String> {
        let of_database = self.snapshot.catalog().tables().filter(|table| table.def().database == self.name);
        let mut names: Vec<String> = of_database.map(|table| table.def().name.clone()).collect();
        if let Some(system) = &self.system {
            names.extend(system.read().keys().map(|name| (*name).to_owned()));
        }
        names.sort();
        names.dedup();
        names
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        if let Some(table) = self.instead.get(&(self.name.clone(), name.to_owned())) {
            return Ok(Some(Arc::clone(table)));
        }
        if let Some(system) = self.system_table(name) {
            // Whoever has the state may take a while to answer.
            let batch = tokio::task::spawn_blocking(move || system.batch()).await;
            let batch = batch.map_err(|error| DataFusionError::External(Box::new(error)))?;
            let batch = batch.map_err(Error::into_datafusion)?;
            return Ok(Some(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?)));
        }
        let table = self.snapshot.catalog().exact_table(&self.name, name);
        Ok(table.map(|table| {
            let table = SondeTable::new(self.engine.clone(), self.snapshot.clone(), Arc::clone(table));
            Arc::new(table) as Arc<dyn TableProvider>
        }))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.system_table(name).is_some() || self.snapshot.catalog().exact_table(&self.name, name).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_databases_are_reserved_in_any_case() {
        for database in ["system", "SYSTEM", "information_schema", "Information_Schema"] {
            assert!(is_reserved(database) && check_writable(database).is_err(), "{database}");
        }
        assert!(!is_reserved("public") && !is_reserved("systems") && check_writable("public").is_ok());
    }
}
