//! From a statement to what runs: a session over one snapshot, a logical plan that was looked at, a physical one.
//!
//! # Invariants
//! - A session sees one snapshot, and names as the catalog of the same moment has them.
//! - No plan defines or sets anything, or writes to a database of our own.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::catalog::{CatalogProviderList, MemoryCatalogProviderList, TableProvider};
use datafusion::common::ParamValues;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::{SendableRecordBatchStream, SessionState, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::{DmlStatement, LogicalPlan, WriteOp};
use datafusion::physical_plan::execute_stream;
use datafusion::sql::parser::Statement;
use sonde_access::Principal;
use sonde_engine::{Catalog, Engine, Snapshot};

use crate::aggregate::AggregateInEngine;
use crate::catalog::{CATALOG, DEFAULT_DATABASE, Overrides, SondeCatalog, check_writable};
use crate::environment::{QueryOptions, config, runtime};
use crate::error::{Error, Result};
use crate::latest::{LATEST, LatestFunction};
use crate::parse::{parse_one, rule_query};
use crate::permit::{permit_reads, permit_statement};
use crate::pressure::{Held, charged};
use crate::registry::SystemTables;
use crate::request::Request;
use crate::statement::RuleSpec;
use crate::{change, insert, names};

/// What all statements are planned with.
pub(crate) struct Planner {
    pub(crate) engine: Engine,
    pub(crate) system: Arc<SystemTables>,
    /// Functions and settings, without tables.
    state: SessionState,
}

/// What one statement is planned with: a session over one snapshot, and the catalog of the same moment.
pub(crate) struct Session {
    pub(crate) state: SessionState,
    catalog: Arc<Catalog>,
    pub(crate) database: String,
}

impl Planner {
    pub(crate) fn new(engine: Engine, options: &QueryOptions) -> Result<Self> {
        let state = SessionStateBuilder::new()
            .with_config(config(options))
            .with_runtime_env(runtime(options)?)
            .with_default_features()
            .with_physical_optimizer_rule(Arc::new(AggregateInEngine { memory_bytes: options.memory_bytes }));
        let mut state = state.build();
        for function in crate::function::scalars() {
            datafusion::execution::FunctionRegistry::register_udf(&mut state, Arc::new(function))?;
        }
        for function in crate::function::aggregates() {
            datafusion::execution::FunctionRegistry::register_udaf(&mut state, Arc::new(function))?;
        }
        Ok(Self { engine, system: Arc::default(), state })
    }

    /// Plans a query, an INSERT or a change of rows and gives what it answers.
    pub(crate) async fn start(
        &self,
        sql: &str,
        request: &Request,
        held: Held,
    ) -> Result<SendableRecordBatchStream> {
        let statement = parse_for(sql, &request.principal)?;
        if change::is_change(&statement) {
            return change::run(self, &statement, request).await;
        }
        let session = self.session(&request.database, Overrides::new());
        let plan = with_parameters(self.plan(&session, statement).await?, request)?;
        permit_reads(&plan, &request.principal)?;
        let plan = session.state.create_physical_plan(&insert::as_named(plan)?).await?;
        Ok(execute_stream(plan, charged(TaskContext::from(&session.state), held))?)
    }

    pub(crate) async fn describe(
        &self,
        sql: &str,
        request: &Request,
    ) -> Result<(SchemaRef, Vec<Option<DataType>>)> {
        let statement = parse_for(sql, &request.principal)?;
        let session = self.session(&request.database, Overrides::new());
        let plan = self.plan(&session, statement).await?;
        permit_reads(&plan, &request.principal)?;
        let types = plan.get_parameter_types()?;
        let mut parameters: Vec<(usize, Option<DataType>)> = types
            .into_iter()
            .filter_map(|(name, kind)| Some((name.strip_prefix('$')?.parse().ok()?, kind)))
            .collect();
        parameters.sort_by_key(|(number, _)| *number);
        let schema = Arc::clone(plan.schema().inner());
        Ok((schema, parameters.into_iter().map(|(_, kind)| kind).collect()))
    }

    pub(crate) async fn run_rule(
        &self,
        spec: &RuleSpec,
        database: &str,
        rows: RecordBatch,
    ) -> Result<Vec<RecordBatch>> {
        let catalog = self.engine.catalog();
        let table = catalog.require_table(spec.from.database_or(database), &spec.from.name)?.def();
        let rows: Arc<dyn TableProvider> = Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows]])?);
        let instead = Overrides::from([((table.database.clone(), table.name.clone()), rows)]);
        let session = self.session(database, instead);
        let plan = self.plan(&session, rule_query(spec)?).await?;
        let plan = session.state.create_physical_plan(&plan).await?;
        Ok(datafusion::physical_plan::collect(plan, session.state.task_ctx()).await?)
    }

    pub(crate) async fn check_rule(&self, spec: &RuleSpec, database: &str) -> Result<SchemaRef> {
        let session = self.session(database, Overrides::new());
        let plan = self.plan(&session, rule_query(spec)?).await?;
        Ok(Arc::clone(plan.schema().inner()))
    }

    fn session(&self, database: &str, instead: Overrides) -> Session {
        self.session_on(self.engine.snapshot(), database, instead)
    }

    pub(crate) fn session_on(&self, snapshot: Snapshot, database: &str, instead: Overrides) -> Session {
        let catalog = Arc::clone(snapshot.catalog());
        let latest = LatestFunction { engine: self.engine.clone(), snapshot: snapshot.clone() };
        let tables = SondeCatalog {
            engine: self.engine.clone(),
            snapshot,
            system: Arc::clone(&self.system),
            instead: Arc::new(instead),
        };
        let catalogs = MemoryCatalogProviderList::new();
        catalogs.register_catalog(CATALOG.to_owned(), Arc::new(tables));
        let config = self.state.config().clone().with_default_catalog_and_schema(CATALOG, database);
        let mut state = SessionStateBuilder::new_from_existing(self.state.clone())
            .with_config(config)
            .with_catalog_list(Arc::new(catalogs))
            .build();
        state.register_udtf(LATEST, Arc::new(latest));
        // The moment that now() gives.
        state.mark_start_execution();
        Session { state, catalog, database: database.to_owned() }
    }

    pub(crate) async fn plan(&self, session: &Session, mut statement: Statement) -> Result<LogicalPlan> {
        names::write_as_stored(&mut statement, &session.catalog, &session.database);
        let plan = session.state.statement_to_plan(statement).await.map_err(|error| self.explain(error))?;
        check_plan(&plan, &session.database)?;
        Ok(plan)
    }

    /// Adds, to an unknown table, the name that was probably meant.
    fn explain(&self, error: DataFusionError) -> Error {
        let error = Error::from(error);
        let Error::Invalid(text) = &error else { return error };
        let missing = text.strip_prefix("table '").and_then(|rest| rest.split_once("' not found"));
        let Some((full, _)) = missing else { return error };
        let mut parts = full.rsplit('.');
        let name = parts.next().unwrap_or(full);
        let database = parts.next().unwrap_or(DEFAULT_DATABASE);
        match self.engine.catalog().require_table(database, name) {
            Err(error) => Error::Engine(error),
            Ok(_) => error,
        }
    }
}

/// Parses a statement for someone, who is asked for the right to it before any name is looked up.
fn parse_for(sql: &str, principal: &Principal) -> Result<Statement> {
    let statement = parse_one(sql)?;
    permit_statement(&statement, principal)?;
    Ok(statement)
}

/// The plan with the request's values for its parameters.
pub(crate) fn with_parameters(plan: LogicalPlan, request: &Request) -> Result<LogicalPlan> {
    match request.parameters.as_slice() {
        [] => Ok(plan),
        values => Ok(plan.with_param_values(ParamValues::from(values.to_vec()))?),
    }
}

/// Refuses what defines or sets something, and what writes where no statement may.
fn check_plan(plan: &LogicalPlan, database: &str) -> Result<()> {
    let writes = match plan {
        LogicalPlan::Dml(DmlStatement {
            op: WriteOp::Insert(_) | WriteOp::Delete | WriteOp::Update,
            table_name,
            ..
        }) => {
            check_writable(table_name.schema().unwrap_or(database))?;
            true
        }
        LogicalPlan::Dml(dml) => {
            return Err(Error::Invalid(format!(
                "{} does not exist; INSERT, UPDATE, DELETE and TRUNCATE TABLE do",
                dml.op.name()
            )));
        }
        _ => false,
    };
    let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(writes).with_allow_statements(false);
    Ok(options.verify_plan(plan)?)
}
