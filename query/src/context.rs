//! Runs statements: one engine, one memory pool, one set of functions; a fresh context and snapshot for each query.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::catalog::{CatalogProviderList, MemoryCatalogProviderList, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::{SendableRecordBatchStream, SessionState, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::{DmlStatement, LogicalPlan, WriteOp};
use datafusion::physical_plan::execute_stream;
use datafusion::sql::parser::{DFParserBuilder, Statement as DataFusionStatement};
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use parking_lot::RwLock;
use sonde_access::{Action, Principal, allows};
use sonde_engine::{Catalog, Engine, Snapshot};

use crate::aggregate::AggregateInEngine;
use crate::answer::Answer;
use crate::catalog::{Overrides, SondeCatalog, SystemTables, check_writable};
use crate::environment::{QueryOptions, config, runtime};
use crate::error::{Error, Result};
use crate::latest::{LATEST, LatestFunction};
use crate::limits::{PRESSURE_WAIT, STATEMENT_DEPTH};
use crate::pressure::{Held, Pressure, charged};
use crate::running::{QueryInfo, Running, Threads};
use crate::statement::{RuleSpec, Statement, parse};
use crate::{change, guard, insert, names, statement, system};

/// The one catalog.
pub(crate) const CATALOG: &str = "sonde";
/// The database of names without one.
pub(crate) const DEFAULT_DATABASE: &str = "public";
/// The database of system tables.
pub(crate) const SYSTEM_DATABASE: &str = "system";

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

/// Runs statements. Clones are handles to the same one; when the last goes, its queries end.
#[derive(Clone)]
pub struct QueryEngine {
    inner: Arc<Inner>,
    /// Not in `inner`, which its own tasks hold.
    threads: Arc<Threads>,
}

impl std::fmt::Debug for QueryEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QueryEngine")
    }
}

pub(crate) struct Inner {
    pub(crate) engine: Engine,
    options: QueryOptions,
    state: SessionState,
    running: Arc<Running>,
    system: Arc<SystemTables>,
    handlers: RwLock<Vec<Arc<dyn StatementHandler>>>,
}

impl QueryEngine {
    /// Over an engine. What is in the spill directory goes.
    pub fn new(engine: Engine, options: QueryOptions) -> Result<Self> {
        let state = SessionStateBuilder::new()
            .with_config(config(&options))
            .with_runtime_env(runtime(&options)?)
            .with_default_features()
            .with_physical_optimizer_rule(Arc::new(AggregateInEngine));
        let mut state = state.build();
        for function in crate::function::scalars() {
            datafusion::execution::FunctionRegistry::register_udf(&mut state, Arc::new(function))?;
        }
        for function in crate::function::aggregates() {
            datafusion::execution::FunctionRegistry::register_udaf(&mut state, Arc::new(function))?;
        }
        let row_bytes = options.memory_bytes / 8;
        let inner = Inner {
            engine,
            options,
            state,
            running: Arc::default(),
            system: Arc::default(),
            handlers: RwLock::default(),
        };
        let query = Self { inner: Arc::new(inner), threads: Arc::new(Threads::start(row_bytes)?) };
        system::register(&query, &query.inner.running);
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

    /// Says how scarce the process's memory is: new queries wait, or the largest one ends.
    pub fn relieve(&self, pressure: Pressure) {
        self.inner.running.gate.set_open(pressure == Pressure::None);
        if pressure == Pressure::Over {
            self.inner.running.end_largest();
        }
    }

    /// Runs one statement.
    pub async fn run(&self, request: Request) -> Result<Answer> {
        permit_any(&request.principal)?;
        guard::check_text(&request.sql)?;
        if let Some((handler, argument)) = self.handler(&request.sql) {
            permit(&request.principal, Action::Admin, "this statement")?;
            let told = statement::run::blocking(move || handler.run(&argument)).await?;
            return Answer::of_text(&told);
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
        self.inner.running.gate.pass(PRESSURE_WAIT).await?;
        let registration = self.inner.running.register(&request.principal.name, sql)?;
        tracing::debug!(id = registration.id, principal = request.principal.name, sql, "query");
        let (inner, sql, request) = (Arc::clone(&self.inner), sql.to_owned(), request.clone());
        let held = Arc::clone(&registration.held);
        let start = async move { inner.start(&sql, &request, held).await };
        let timeout = self.inner.options.timeout;
        Ok(Answer::new(self.threads.stream(registration, timeout, start).await?))
    }

    /// The schema of a query's rows, and the types of its parameters in order, as far as they are known.
    pub async fn describe(&self, request: &Request) -> Result<(SchemaRef, Vec<Option<DataType>>)> {
        permit_any(&request.principal)?;
        guard::check_text(&request.sql)?;
        if self.handler(&request.sql).is_some() {
            return Ok((Answer::of_text("")?.schema(), Vec::new()));
        }
        match parse(&request.sql)? {
            Statement::Query(sql) => {
                let (inner, request) = (Arc::clone(&self.inner), request.clone());
                self.threads.run(async move { inner.describe(&sql, &request).await }).await
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
        let (inner, spec, database) = (Arc::clone(&self.inner), spec.clone(), database.to_owned());
        let timeout = inner.options.timeout;
        let done = self.threads.run(async move { inner.run_rule(&spec, &database, rows).await });
        tokio::time::timeout(timeout, done).await.map_err(|_| Error::Timeout(timeout.as_secs()))?
    }

    /// The schema of a rule's rows; fails where the query is wrong.
    pub async fn check_rule(&self, spec: &RuleSpec, database: &str) -> Result<SchemaRef> {
        let (inner, spec, database) = (Arc::clone(&self.inner), spec.clone(), database.to_owned());
        self.threads.run(async move { inner.check_rule(&spec, &database).await }).await
    }
}

/// What a statement is planned with: a session over one snapshot, and the catalog of the same moment.
pub(crate) struct Session {
    pub(crate) state: SessionState,
    catalog: Arc<Catalog>,
    pub(crate) database: String,
}

impl Inner {
    /// Plans a query, an INSERT or a change of rows and gives what it answers.
    async fn start(&self, sql: &str, request: &Request, held: Held) -> Result<SendableRecordBatchStream> {
        let statement = parse_for(sql, request)?;
        if change::is_change(&statement) {
            return change::run(self, &statement, request).await;
        }
        let session = self.session(&request.database, Overrides::new());
        let plan = self.with_parameters(self.plan(&session, statement).await?, request)?;
        permit_reads(&plan, &request.principal)?;
        let plan = session.state.create_physical_plan(&insert::as_named(plan)?).await?;
        Ok(execute_stream(plan, charged(TaskContext::from(&session.state), held))?)
    }

    async fn describe(&self, sql: &str, request: &Request) -> Result<(SchemaRef, Vec<Option<DataType>>)> {
        let statement = parse_for(sql, request)?;
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

    async fn run_rule(&self, spec: &RuleSpec, database: &str, rows: RecordBatch) -> Result<Vec<RecordBatch>> {
        let catalog = self.engine.catalog();
        let table = catalog.require_table(spec.from.database_or(database), &spec.from.name)?.def();
        let rows: Arc<dyn TableProvider> = Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows]])?);
        let instead = Overrides::from([((table.database.clone(), table.name.clone()), rows)]);
        let session = self.session(database, instead);
        let plan = self.plan(&session, rule_query(spec)?).await?;
        let plan = session.state.create_physical_plan(&plan).await?;
        Ok(datafusion::physical_plan::collect(plan, session.state.task_ctx()).await?)
    }

    async fn check_rule(&self, spec: &RuleSpec, database: &str) -> Result<SchemaRef> {
        let session = self.session(database, Overrides::new());
        let plan = self.plan(&session, rule_query(spec)?).await?;
        Ok(Arc::clone(plan.schema().inner()))
    }

    /// The plan with the request's values for its parameters.
    pub(crate) fn with_parameters(&self, plan: LogicalPlan, request: &Request) -> Result<LogicalPlan> {
        match request.parameters.as_slice() {
            [] => Ok(plan),
            values => Ok(plan.with_param_values(ParamValues::from(values.to_vec()))?),
        }
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

    pub(crate) async fn plan(
        &self,
        session: &Session,
        mut statement: DataFusionStatement,
    ) -> Result<LogicalPlan> {
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
fn parse_for(sql: &str, request: &Request) -> Result<DataFusionStatement> {
    let statement = parse_one(sql)?;
    for action in actions(&statement) {
        permit(&request.principal, *action, "the token allows no such statement")?;
    }
    Ok(statement)
}

/// Parses one statement of DataFusion's.
fn parse_one(sql: &str) -> Result<DataFusionStatement> {
    let mut tokens = Vec::new();
    let mut parameters = 0;
    Tokenizer::new(&GenericDialect {}, sql)
        .tokenize_with_location_into_buf_with_mapper(&mut tokens, |mut token| {
            if let Token::Placeholder(name) = &mut token.token
                && name == "?"
            {
                parameters += 1;
                *name = format!("${parameters}");
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

/// The query of a rule, which reads and does nothing else.
fn rule_query(spec: &RuleSpec) -> Result<DataFusionStatement> {
    match parse_one(&spec.query)? {
        DataFusionStatement::Statement(statement) if matches!(*statement, SqlStatement::Query(_)) => {
            Ok(DataFusionStatement::Statement(statement))
        }
        _ => Err(Error::Invalid(
            "a rule's query is a SELECT; what it does with the rows stands behind DO".into(),
        )),
    }
}

/// The rights that a statement needs. Whoever changes rows by what they hold learns what they hold.
fn actions(statement: &DataFusionStatement) -> &'static [Action<'static>] {
    match statement {
        DataFusionStatement::Statement(statement) => match **statement {
            SqlStatement::Insert(_) => &[Action::Write],
            SqlStatement::Update(_) | SqlStatement::Delete(_) | SqlStatement::Merge(_) => {
                &[Action::Write, Action::Query]
            }
            _ => &[Action::Query],
        },
        _ => &[Action::Query],
    }
}

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

/// Fails where an INSERT reads tables for someone who may only write.
fn permit_reads(plan: &LogicalPlan, principal: &Principal) -> Result<()> {
    if allows(principal, Action::Query) {
        return Ok(());
    }
    let mut reads = false;
    plan.apply_with_subqueries(|node| {
        reads |= matches!(node, LogicalPlan::TableScan(_));
        Ok(if reads { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    if reads { permit(principal, Action::Query, "an INSERT that reads tables") } else { Ok(()) }
}

pub(crate) fn permit(principal: &Principal, action: Action<'_>, what: &str) -> Result<()> {
    if allows(principal, action) { Ok(()) } else { Err(Error::Denied(format!("{}: {what}", principal.name))) }
}

/// Fails for whoever may run no statement at all: nothing is parsed for him, and no error tells him a name.
fn permit_any(principal: &Principal) -> Result<()> {
    let any = [Action::Query, Action::Write, Action::Admin];
    if any.into_iter().any(|action| allows(principal, action)) {
        return Ok(());
    }
    Err(Error::Denied(format!("{}: the token allows no statement", principal.name)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(crate) mod tests {
    use arrow::array::Array;
    use arrow::util::display::array_value_to_string;
    use sonde_access::Grants;

    use super::*;

    pub(crate) fn open() -> (QueryEngine, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(sonde_engine::Options::new(dir.path().join("data"))).unwrap();
        let query = QueryEngine::new(engine, QueryOptions::new(dir.path().join("spill"))).unwrap();
        (query, dir)
    }

    pub(crate) async fn ask_as(
        query: &QueryEngine,
        principal: Principal,
        sql: &str,
    ) -> Result<Vec<Vec<String>>> {
        let answer = query.run(Request::new(sql, Arc::new(principal))).await?;
        let mut rows = Vec::new();
        for batch in answer.collect().await? {
            for row in 0..batch.num_rows() {
                let text = |column: &Arc<dyn Array>| match column.is_null(row) {
                    true => "NULL".to_owned(),
                    false => array_value_to_string(column, row).unwrap(),
                };
                rows.push(batch.columns().iter().map(text).collect());
            }
        }
        Ok(rows)
    }

    pub(crate) async fn ask(query: &QueryEngine, sql: &str) -> Result<Vec<Vec<String>>> {
        ask_as(query, Principal::admin("me"), sql).await
    }

    #[tokio::test]
    async fn the_newest_points_are_a_table() {
        let (query, _dir) = open();
        ask(&query, "CREATE TABLE Rooms (time TIMESTAMP, device STRING TAG, Temp DOUBLE, n BIGINT)")
            .await
            .unwrap();
        let insert = |time: u32, device: &str, temp: &str, n: &str| {
            format!("INSERT INTO Rooms VALUES ('2026-01-01T00:00:{time:02}Z', '{device}', {temp}, {n})")
        };
        for sql in [insert(1, "a", "1.5", "1"), insert(9, "b", "9.5", "9"), insert(3, "a", "3.5", "3")] {
            ask(&query, &sql).await.unwrap();
        }
        ask(&query, "FLUSH TABLE Rooms").await.unwrap();
        ask(&query, "INSERT INTO Rooms (time, device, n) VALUES ('2026-01-01T00:00:03Z', 'a', 4)")
            .await
            .unwrap();
        ask(&query, &insert(2, "a", "2.5", "2")).await.unwrap();
        for (sql, expected) in [
            (
                "SELECT device, temp, n FROM latest(rooms) ORDER BY 1",
                vec![vec!["a", "3.5", "4"], vec!["b", "9.5", "9"]],
            ),
            ("SELECT n FROM latest('public.rooms') WHERE device = 'a'", vec![vec!["4"]]),
            ("SELECT n FROM LATEST(public.Rooms) AS l WHERE l.DEVICE IN ('b', 'c')", vec![vec!["9"]]),
            // What is not a tag is asked of the newest points, and no older point steps in.
            ("SELECT device FROM latest(Rooms) WHERE n < 4", vec![]),
            ("SELECT device FROM latest(Rooms) WHERE time < '2026-01-01T00:00:05Z'", vec![vec!["a"]]),
            ("SELECT device FROM latest(Rooms) WHERE temp IS NULL OR device = 'b'", vec![vec!["b"]]),
            ("SELECT count(*) FROM latest(Rooms)", vec![vec!["2"]]),
            ("SELECT count(*) FROM (SELECT 1 FROM latest(Rooms) LIMIT 1)", vec![vec!["1"]]),
            (
                "SELECT r.n, l.n FROM Rooms r JOIN latest(Rooms) l ON r.device = l.device WHERE r.n = 2",
                vec![vec!["2", "4"]],
            ),
            ("SELECT n FROM Rooms WHERE time IN (SELECT max(time) FROM latest(Rooms))", vec![vec!["9"]]),
        ] {
            assert_eq!(ask(&query, sql).await.unwrap(), expected, "{sql}");
        }
        let plan = ask(&query, "EXPLAIN SELECT n FROM latest(Rooms) WHERE device = 'a'").await.unwrap();
        let plan = format!("{plan:?}");
        assert!(
            plan.contains("LatestScan: table=public.Rooms, tags=1") && !plan.contains("FilterExec"),
            "{plan}"
        );
        assert!(refusal(&query, "SELECT * FROM latest(room)").await.contains("did you mean Rooms"));
        for wrong in ["latest()", "latest(Rooms, 1)", "latest(1)"] {
            let text = refusal(&query, &format!("SELECT * FROM {wrong}")).await;
            assert!(text.contains("latest takes a table"), "{wrong}: {text}");
        }
        let nobody = Principal::new("someone", Grants { write: true, ..Grants::default() });
        let denied = ask_as(&query, nobody, "SELECT * FROM latest(Rooms)").await.unwrap_err();
        assert!(matches!(denied, Error::Denied(_)), "{denied}");
    }

    #[tokio::test]
    async fn the_newest_of_many_series_come_in_parts() {
        let (query, _dir) = open();
        ask(&query, CREATE).await.unwrap();
        let rows = |from: u32| {
            format!(
                "INSERT INTO t (time, device, b) SELECT to_timestamp_seconds(1767225600 + value), \
                 concat('d', value % 3000), value FROM generate_series({from}, {})",
                from + 5999
            )
        };
        ask(&query, &rows(0)).await.unwrap();
        ask(&query, "FLUSH TABLE t").await.unwrap();
        ask(&query, &rows(4000)).await.unwrap();
        let newest = "SELECT count(*), count(DISTINCT device), min(b), max(b) FROM latest(t)";
        assert_eq!(ask(&query, newest).await.unwrap(), [["3000", "3000", "7000", "9999"]]);
        assert_eq!(ask(&query, "SELECT b FROM latest(t) WHERE device = 'd7'").await.unwrap(), [["9007"]]);
        let limited = "SELECT count(*) FROM (SELECT b FROM latest(t) LIMIT 2500)";
        assert_eq!(ask(&query, limited).await.unwrap(), [["2500"]]);
    }

    #[tokio::test]
    async fn a_table_has_as_many_series_as_it_may() {
        let (query, _dir) = open();
        let create = "CREATE TABLE t (time TIMESTAMP, device STRING TAG, a DOUBLE) WITH (max_series = 2)";
        ask(&query, create).await.unwrap();
        let insert = |device: &str| format!("INSERT INTO t VALUES ('2026-01-01T00:00:00Z', '{device}', 1)");
        let shown = "SELECT series, max_series FROM system.tables WHERE name = 't'";
        for device in ["d1", "d2"] {
            ask(&query, &insert(device)).await.unwrap();
        }
        let text = refusal(&query, &insert("d3")).await;
        assert!(
            text.contains("public.t") && text.contains("2 series") && text.contains("ALTER TABLE"),
            "{text}"
        );
        ask(&query, &insert("d1")).await.unwrap();
        assert_eq!(ask(&query, shown).await.unwrap(), [["2", "2"]]);
        ask(&query, "ALTER TABLE t SET (max_series = 3)").await.unwrap();
        ask(&query, &insert("d3")).await.unwrap();
        assert_eq!(ask(&query, shown).await.unwrap(), [["3", "3"]]);
        ask(&query, "ALTER TABLE t SET (max_series = 0)").await.unwrap();
        assert_eq!(ask(&query, shown).await.unwrap(), [["3", "10000000"]]);
        for wrong in ["-1", "'many'", "true", "1.5", "5000000000"] {
            let sql = format!("ALTER TABLE t SET (max_series = {wrong})");
            assert!(ask(&query, &sql).await.is_err(), "{sql}");
        }
    }

    pub(crate) async fn refusal(query: &QueryEngine, sql: &str) -> String {
        ask(query, sql).await.expect_err(sql).to_string()
    }

    const CREATE: &str = "CREATE TABLE t (time TIMESTAMP, device STRING TAG, a DOUBLE, b BIGINT)";

    #[tokio::test]
    async fn the_time_can_be_asked_for() {
        let (query, _dir) = open();
        let later = ask(&query, "SELECT now() > TIMESTAMP '2020-01-01T00:00:00Z'").await.unwrap();
        assert_eq!(later, [["true"]]);
    }

    #[tokio::test]
    async fn an_insert_writes_the_columns_that_it_names() {
        let (query, _dir) = open();
        ask(&query, CREATE).await.unwrap();
        let time = "'2026-01-01T00:00:00Z'";
        let now = "SELECT a, b FROM t";
        for (insert, a, b) in [
            (format!("INSERT INTO t VALUES ({time}, 'd1', 1.5, 2)"), "1.5", "2"),
            (format!("INSERT INTO t (time, device, b) VALUES ({time}, 'd1', 3)"), "1.5", "3"),
            (format!("INSERT INTO T (TIME, Device, A) SELECT {time}, 'd1', 4"), "4.0", "3"),
            (format!("INSERT INTO t (time, device, a) VALUES ({time}, 'd1', NULL)"), "NULL", "3"),
            (format!("INSERT INTO t (b, device, time) VALUES (5.0, 'd1', {time})"), "NULL", "5"),
        ] {
            assert_eq!(ask(&query, &insert).await.unwrap(), [["1"]], "{insert}");
            assert_eq!(ask(&query, now).await.unwrap(), [[a, b]], "{insert}");
        }
        for insert in [
            format!("INSERT INTO t (time, device, b) VALUES ({time}, 'd1', 6), ({time}, 'd1', 1.7)"),
            format!("INSERT INTO t (time, device, b) SELECT {time}, 'd1', 1.7"),
        ] {
            let text = refusal(&query, &insert).await;
            assert!(text.contains("b is BIGINT") && text.contains("1.7"), "{text}");
        }
        assert_eq!(ask(&query, now).await.unwrap(), [["NULL", "5"]]);
        ask(&query, "INSERT INTO t (device, a) VALUES ('d2', 1), ('d2', 2)").await.unwrap();
        assert_eq!(ask(&query, "SELECT count(*) FROM t WHERE device = 'd2'").await.unwrap(), [["2"]]);
    }

    #[tokio::test]
    async fn our_own_databases_are_nobody_elses() {
        let (query, _dir) = open();
        for sql in [
            "CREATE TABLE system.t (time TIMESTAMP, x DOUBLE)",
            "CREATE TABLE Information_Schema.t (time TIMESTAMP, x DOUBLE)",
            "DROP TABLE system.chunks",
            "ALTER TABLE system.chunks SET (retention = '1 day')",
            "INSERT INTO system.queries VALUES (1, 'me', 1.0, 0, 'x')",
            "CREATE SOURCE s ON MQTT 's/#' FORMAT JSON INTO system.t",
        ] {
            assert!(refusal(&query, sql).await.contains("is reserved"), "{sql}");
        }
    }

    #[tokio::test]
    async fn a_rule_reads_and_does_not_write_to_what_it_reads() {
        let (query, _dir) = open();
        ask(&query, CREATE).await.unwrap();
        ask(&query, "CREATE TABLE u (time TIMESTAMP, a DOUBLE)").await.unwrap();
        for actions in
            ["INSERT INTO t", "INSERT INTO public.t", "INSERT INTO sonde.public.t", "INSERT INTO T"]
        {
            let rule = format!("CREATE RULE r AS SELECT time, a FROM t DO {actions}");
            assert!(refusal(&query, &rule).await.contains("the table it reads"), "{rule}");
        }
        let rule = "CREATE RULE r AS INSERT INTO u SELECT time, a FROM t DO INSERT INTO u";
        assert!(refusal(&query, rule).await.contains("SELECT"));
        ask(&query, "CREATE RULE r AS SELECT time, a FROM t DO INSERT INTO u").await.unwrap();
    }

    #[tokio::test]
    async fn who_may_run_nothing_learns_nothing() {
        let (query, _dir) = open();
        ask(&query, CREATE).await.unwrap();
        let grants = |query, write| Grants { query, write, ..Grants::default() };
        for (grants, sql, denied) in [
            (grants(false, false), "SELECT * FROM tt", true),
            (grants(false, false), "nonsense", true),
            (grants(false, true), "SELECT * FROM tt", true),
            (grants(true, false), "INSERT INTO tt VALUES (1)", true),
            (grants(true, false), "SELECT * FROM tt", false),
        ] {
            let error = ask_as(&query, Principal::new("someone", grants), sql).await.unwrap_err();
            assert_eq!(matches!(error, Error::Denied(_)), denied, "{sql}: {error}");
            assert_eq!(error.to_string().contains("did you mean"), !denied, "{sql}: {error}");
        }
    }
}
