//! Runs statements: one engine, one memory pool, one set of functions; a fresh context and snapshot for each query.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProviderList, SchemaProvider, TableProvider,
};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::object_store::ObjectStoreRegistry;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::{DmlStatement, LogicalPlan, WriteOp};
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::SessionConfig;
use datafusion::sql::parser::{DFParserBuilder, Statement as DataFusionStatement};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use parking_lot::RwLock;
use sonde_access::{Action, Principal, allows};
use sonde_engine::{Engine, Snapshot};

use crate::answer::Answer;
use crate::error::{Error, Result};
use crate::limits::{QUERY_TIMEOUT, STATEMENT_DEPTH};
use crate::running::{QueryInfo, Running, Watched};
use crate::statement::{RuleSpec, Statement, parse};
use crate::table::SondeTable;
use crate::{guard, statement, system};

/// The one catalog.
pub(crate) const CATALOG: &str = "sonde";
/// The database of names without one.
pub(crate) const DEFAULT_DATABASE: &str = "public";
/// The database of system tables.
pub(crate) const SYSTEM_DATABASE: &str = "system";

/// How queries are run.
#[derive(Clone, Debug)]
pub struct QueryOptions {
    /// Bytes that all queries together may hold in memory.
    pub memory_bytes: usize,
    /// Where queries spill.
    pub spill_dir: PathBuf,
    /// Bytes that all queries together may spill.
    pub spill_bytes: u64,
    /// How long a query may run.
    pub timeout: Duration,
    /// How many partitions a plan aims at.
    pub partitions: usize,
    /// Directories below which `COPY` may write.
    pub copy_locations: Vec<PathBuf>,
}

impl QueryOptions {
    /// 512 MiB of memory, 8 GiB of spill, five minutes, two partitions, no `COPY`.
    #[must_use]
    pub fn new(spill_dir: impl Into<PathBuf>) -> Self {
        Self {
            memory_bytes: 512 << 20,
            spill_dir: spill_dir.into(),
            spill_bytes: 8 << 30,
            timeout: QUERY_TIMEOUT,
            partitions: 2,
            copy_locations: Vec::new(),
        }
    }
}

/// A table of live state, offered by whoever has the state.
pub trait SystemTable: Send + Sync + std::fmt::Debug {
    /// Its name in the database `system`.
    fn name(&self) -> &'static str;
    /// Its rows as they are now; always of the same schema.
    fn batch(&self) -> Result<RecordBatch>;
}

/// A statement that needs live state, offered by whoever has the state.
pub trait StatementHandler: Send + Sync + std::fmt::Debug {
    /// The words that the statement starts with, in capitals.
    fn prefix(&self) -> &'static [&'static str];
    /// Runs it; `argument` is the text behind the prefix. Returns what to tell the caller.
    fn run(&self, argument: &str) -> Result<String>;
}

/// A statement, and who asks.
#[derive(Clone, Debug)]
pub struct Request {
    /// The statement.
    pub sql: String,
    /// The database of names without one.
    pub database: String,
    /// Who asks.
    pub principal: Arc<Principal>,
    /// Values for `$1`, `$2`, ...
    pub parameters: Vec<ScalarValue>,
}

impl Request {
    /// A statement in the default database.
    #[must_use]
    pub fn new(sql: impl Into<String>, principal: Arc<Principal>) -> Self {
        Self { sql: sql.into(), database: DEFAULT_DATABASE.to_owned(), principal, parameters: Vec::new() }
    }
}

/// Runs statements.
#[derive(Clone)]
pub struct QueryEngine {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for QueryEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QueryEngine")
    }
}

struct Inner {
    engine: Engine,
    options: QueryOptions,
    state: SessionState,
    running: Arc<Running>,
    system: Arc<SystemTables>,
    handlers: RwLock<Vec<Arc<dyn StatementHandler>>>,
}

type SystemTables = RwLock<BTreeMap<&'static str, Arc<dyn SystemTable>>>;

/// No object store at all: no statement reaches a file.
#[derive(Debug)]
struct NoStores;

impl ObjectStoreRegistry for NoStores {
    fn register_store(
        &self,
        _url: &url::Url,
        _store: Arc<dyn object_store::ObjectStore>,
    ) -> Option<Arc<dyn object_store::ObjectStore>> {
        None
    }

    fn get_store(&self, url: &url::Url) -> datafusion::common::Result<Arc<dyn object_store::ObjectStore>> {
        Err(DataFusionError::Plan(format!("{url} cannot be read: SQL reaches tables only")))
    }
}

impl QueryEngine {
    /// Over an engine.
    pub fn new(engine: Engine, options: QueryOptions) -> Result<Self> {
        let pool = FairSpillPool::new(options.memory_bytes);
        let pool = TrackConsumersPool::new(pool, NonZeroUsize::MIN.saturating_add(2));
        let disk = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![options.spill_dir.clone()]))
            .with_max_temp_directory_size(options.spill_bytes);
        std::fs::create_dir_all(&options.spill_dir)
            .map_err(|error| Error::Internal(format!("create {}: {error}", options.spill_dir.display())))?;
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(pool))
            .with_disk_manager_builder(disk)
            .with_object_store_registry(Arc::new(NoStores))
            .build_arc()?;
        let mut config = SessionConfig::new()
            .with_target_partitions(options.partitions)
            .with_default_catalog_and_schema(CATALOG, DEFAULT_DATABASE)
            .with_create_default_catalog_and_schema(false)
            .with_information_schema(true);
        config.options_mut().execution.time_zone = Some("UTC".into());
        config.options_mut().sql_parser.map_string_types_to_utf8view = false;
        // Names are stored as written; `Names::as_stored` finds the ones that differ in case only.
        config.options_mut().sql_parser.enable_ident_normalization = false;
        let state =
            SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features();
        let mut state = state.build();
        for function in crate::function::scalars() {
            datafusion::execution::FunctionRegistry::register_udf(&mut state, Arc::new(function))?;
        }
        for function in crate::function::aggregates() {
            datafusion::execution::FunctionRegistry::register_udaf(&mut state, Arc::new(function))?;
        }
        let running = Arc::new(Running::default());
        let query = Self {
            inner: Arc::new(Inner {
                engine,
                options,
                state,
                running,
                system: Arc::default(),
                handlers: RwLock::default(),
            }),
        };
        system::register(&query);
        Ok(query)
    }

    /// Adds a system table; one of the same name is replaced.
    pub fn register_table(&self, table: Arc<dyn SystemTable>) {
        self.inner.system.write().insert(table.name(), table);
    }

    /// Adds a statement.
    pub fn register_statement(&self, handler: Arc<dyn StatementHandler>) {
        self.inner.handlers.write().push(handler);
    }

    /// The engine below.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    pub(crate) fn options(&self) -> &QueryOptions {
        &self.inner.options
    }

    /// The queries that run now.
    #[must_use]
    pub fn running(&self) -> Vec<QueryInfo> {
        self.inner.running.list()
    }

    /// Ends a query; `false` where there is none of this number.
    #[must_use]
    pub fn kill(&self, id: u64) -> bool {
        self.inner.running.kill(id)
    }

    /// Runs one statement.
    pub async fn run(&self, request: Request) -> Result<Answer> {
        guard::check_text(&request.sql)?;
        if let Some((handler, argument)) = self.handler(&request.sql) {
            permit(&request.principal, Action::Admin, "this statement")?;
            return Answer::of_text(&handler.run(&argument)?);
        }
        match parse(&request.sql)? {
            Statement::Query(sql) => self.query(&sql, &request).await,
            statement => {
                permit(&request.principal, Action::Admin, "this statement needs an administrator's token")?;
                statement::run::run(self, statement, &request).await
            }
        }
    }

    fn handler(&self, sql: &str) -> Option<(Arc<dyn StatementHandler>, String)> {
        let handlers = self.inner.handlers.read();
        handlers.iter().find_map(|handler| {
            let mut rest = sql.trim().trim_end_matches(';').trim();
            for word in handler.prefix() {
                let (first, behind) = rest.split_at_checked(word.len())?;
                let ends = behind.is_empty() || behind.starts_with(char::is_whitespace);
                if !first.eq_ignore_ascii_case(word) || !ends {
                    return None;
                }
                rest = behind.trim_start();
            }
            Some((Arc::clone(handler), rest.to_owned()))
        })
    }

    /// Runs a query or an INSERT.
    pub(crate) async fn query(&self, sql: &str, request: &Request) -> Result<Answer> {
        let registration = self.inner.running.register(&request.principal.name, sql)?;
        tracing::debug!(id = registration.id, principal = request.principal.name, sql, "query");
        let state = self.state(&request.database, &HashMap::new());
        let plan = self.plan(&state, sql).await?;
        let action = if matches!(plan, LogicalPlan::Dml(_)) { Action::Write } else { Action::Query };
        permit(&request.principal, action, "the token allows no such statement")?;
        let plan = match request.parameters.as_slice() {
            [] => plan,
            values => plan.with_param_values(ParamValues::from(values.to_vec()))?,
        };
        let plan = state.create_physical_plan(&plan).await?;
        let stream = execute_stream(plan, state.task_ctx())?;
        Ok(Answer::new(Box::pin(Watched::new(stream, registration, self.inner.options.timeout))))
    }

    /// The schema of a query's rows, and the types of its parameters in order, as far as they are known.
    pub async fn describe(&self, request: &Request) -> Result<(SchemaRef, Vec<Option<DataType>>)> {
        match parse(&request.sql)? {
            Statement::Query(sql) => {
                permit(&request.principal, Action::Query, "queries")?;
                let state = self.state(&request.database, &HashMap::new());
                let plan = self.plan(&state, &sql).await?;
                let types = plan.get_parameter_types()?;
                let mut parameters: Vec<(usize, Option<DataType>)> = types
                    .into_iter()
                    .filter_map(|(name, kind)| Some((name.strip_prefix('$')?.parse().ok()?, kind)))
                    .collect();
                parameters.sort_by_key(|(number, _)| *number);
                let schema = Arc::clone(plan.schema().inner());
                Ok((schema, parameters.into_iter().map(|(_, kind)| kind).collect()))
            }
            _ => Ok((Answer::of_text("")?.schema(), Vec::new())),
        }
    }

    /// Runs a rule's query over some rows of its table.
    pub async fn run_rule(
        &self,
        spec: &RuleSpec,
        database: &str,
        rows: RecordBatch,
    ) -> Result<Vec<RecordBatch>> {
        let table = MemTable::try_new(rows.schema(), vec![vec![rows]])?;
        let key = (spec.from.database_or(database).to_owned(), spec.from.name.clone());
        let state = self.state(database, &HashMap::from([(key, Arc::new(table) as Arc<dyn TableProvider>)]));
        let plan = self.plan(&state, &spec.query).await?;
        let plan = state.create_physical_plan(&plan).await?;
        Ok(datafusion::physical_plan::collect(plan, state.task_ctx()).await?)
    }

    /// The schema of a rule's rows; fails where the query is wrong.
    pub async fn check_rule(&self, spec: &RuleSpec, database: &str) -> Result<SchemaRef> {
        let state = self.state(database, &HashMap::new());
        let plan = self.plan(&state, &spec.query).await?;
        Ok(Arc::clone(plan.schema().inner()))
    }

    /// A session over one snapshot.
    fn state(&self, database: &str, instead: &Overrides) -> SessionState {
        let snapshot = self.inner.engine.snapshot();
        let catalog = SondeCatalog {
            engine: self.inner.engine.clone(),
            snapshot,
            system: Arc::clone(&self.inner.system),
            instead: instead.clone(),
        };
        let catalogs = MemoryCatalogProviderList::new();
        catalogs.register_catalog(CATALOG.to_owned(), Arc::new(catalog));
        let config = self.inner.state.config().clone().with_default_catalog_and_schema(CATALOG, database);
        SessionStateBuilder::new_from_existing(self.inner.state.clone())
            .with_config(config)
            .with_catalog_list(Arc::new(catalogs))
            .build()
    }

    async fn plan(&self, state: &SessionState, sql: &str) -> Result<LogicalPlan> {
        let statement = self.parse(sql)?;
        let plan = state.statement_to_plan(statement).await.map_err(|error| self.explain(error))?;
        check_plan(&plan)?;
        Ok(plan)
    }

    /// Parses one statement of DataFusion's, its names written as they are stored.
    fn parse(&self, sql: &str) -> Result<DataFusionStatement> {
        let names = Names::of(&self.inner.engine);
        let mut tokens = Vec::new();
        let mut parameters = 0;
        Tokenizer::new(&GenericDialect {}, sql)
            .tokenize_with_location_into_buf_with_mapper(&mut tokens, |mut token| {
                match &mut token.token {
                    Token::Word(word) if word.quote_style.is_none() => {
                        word.value = names.as_stored(&word.value)
                    }
                    Token::Placeholder(name) if name == "?" => {
                        parameters += 1;
                        *name = format!("${parameters}");
                    }
                    _ => {}
                }
                token
            })
            .map_err(|error| Error::Invalid(error.to_string()))?;
        guard::check_tokens(&tokens)?;
        let mut parser = DFParserBuilder::new(tokens)
            .with_dialect(&GenericDialect {})
            .with_recursion_limit(STATEMENT_DEPTH + 16)
            .build()?;
        let mut statements = parser.parse_statements()?;
        match statements.pop_front() {
            Some(statement) if statements.is_empty() => Ok(statement),
            Some(_) => Err(Error::Invalid("one statement at a time; send the others on their own".into())),
            None => Err(Error::Invalid("the statement is empty".into())),
        }
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
        match self.inner.engine.catalog().require_table(database, name) {
            Err(error) => Error::Engine(error),
            Ok(_) => error,
        }
    }
}

fn check_plan(plan: &LogicalPlan) -> Result<()> {
    let insert = match plan {
        LogicalPlan::Dml(DmlStatement { op: WriteOp::Insert(_), .. }) => true,
        LogicalPlan::Dml(dml) => {
            return Err(Error::Invalid(format!(
                "{} is not available yet; INSERT and DROP TABLE are",
                dml.op.name()
            )));
        }
        _ => false,
    };
    let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(insert).with_allow_statements(false);
    Ok(options.verify_plan(plan)?)
}

pub(crate) fn permit(principal: &Principal, action: Action<'_>, what: &str) -> Result<()> {
    if allows(principal, action) { Ok(()) } else { Err(Error::Denied(format!("{}: {what}", principal.name))) }
}

/// The names of all columns and tables, to find those that differ in case only.
struct Names(HashMap<String, Option<String>>);

impl Names {
    fn of(engine: &Engine) -> Self {
        let mut names: HashMap<String, Option<String>> = HashMap::new();
        let catalog = engine.catalog();
        for table in catalog.tables() {
            let columns = table.def().columns.iter().map(|column| &column.name);
            for name in columns.chain([&table.def().name, &table.def().database]) {
                let entry = names.entry(name.to_ascii_lowercase()).or_insert_with(|| Some(name.clone()));
                if entry.as_ref().is_some_and(|known| known != name) {
                    *entry = None; // names that differ in case only are found exactly, or not at all
                }
            }
        }
        Self(names)
    }

    /// The name as it is stored, if only one differs from `written` in nothing but case; else what was written.
    fn as_stored(&self, written: &str) -> String {
        match self.0.get(&written.to_ascii_lowercase()) {
            Some(Some(stored)) => stored.clone(),
            _ => written.to_owned(),
        }
    }
}

/// Tables that stand in for those of the catalog, by database and name.
type Overrides = HashMap<(String, String), Arc<dyn TableProvider>>;

#[derive(Debug)]
struct SondeCatalog {
    engine: Engine,
    snapshot: Snapshot,
    system: Arc<SystemTables>,
    instead: Overrides,
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
            instead: self.instead.clone(),
            name: database,
        }))
    }
}

#[derive(Debug)]
struct Database {
    engine: Engine,
    snapshot: Snapshot,
    system: Option<Arc<SystemTables>>,
    instead: Overrides,
    name: String,
}

#[async_trait]
impl SchemaProvider for Database {
    fn table_names(&self) -> Vec<String> {
        let of_database = self.snapshot.catalog().tables().filter(|table| table.def().database == self.name);
        let mut names: Vec<String> = of_database.map(|table| table.def().name.clone()).collect();
        if let Some(system) = &self.system {
            names.extend(system.read().keys().map(|name| (*name).to_owned()));
        }
        names
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let mut instead = self.instead.iter().filter(|((database, _), _)| *database == self.name);
        if let Some((_, table)) = instead.find(|((_, table), _)| table.eq_ignore_ascii_case(name)) {
            return Ok(Some(Arc::clone(table)));
        }
        if let Some(table) = self.snapshot.catalog().table(&self.name, name) {
            let table = SondeTable::new(self.engine.clone(), self.snapshot.clone(), Arc::clone(table));
            return Ok(Some(Arc::new(table)));
        }
        let system = self.system.as_ref().and_then(|system| system.read().get(name).cloned());
        let Some(system) = system else { return Ok(None) };
        let batch = system.batch().map_err(Error::into_datafusion)?;
        Ok(Some(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?)))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.snapshot.catalog().table(&self.name, name).is_some()
            || self.system.as_ref().is_some_and(|system| system.read().contains_key(name))
    }
}
