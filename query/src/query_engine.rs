//! Runs statements: one engine, one memory pool, one set of functions; a fresh context and snapshot for each query.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use sonde_access::Action;
use sonde_engine::Engine;

use crate::answer::Answer;
use crate::environment::QueryOptions;
use crate::error::{Error, Result};
use crate::limits::PRESSURE_WAIT;
use crate::permit::{permit, permit_any};
use crate::planner::Planner;
use crate::pressure::Pressure;
use crate::registry::{StatementHandler, StatementHandlers, SystemTable};
use crate::request::Request;
use crate::running::{QueryInfo, Running, Threads};
use crate::statement::{RuleSpec, Statement, parse};
use crate::{guard, statement, system};

/// Runs statements. Clones are handles to the same one; when the last goes, its queries end.
#[derive(Clone)]
pub struct QueryEngine {
    inner: Arc<Inner>,
    /// The tasks that run on them hold the planner and never this, or their end would wait for itself.
    threads: Arc<Threads>,
}

impl std::fmt::Debug for QueryEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QueryEngine")
    }
}

struct Inner {
    planner: Arc<Planner>,
    options: QueryOptions,
    running: Arc<Running>,
    handlers: StatementHandlers,
}

impl QueryEngine {
    /// Over an engine. What is in the spill directory goes.
    pub fn new(engine: Engine, options: QueryOptions) -> Result<Self> {
        let row_bytes = options.memory_bytes / 8;
        let planner = Arc::new(Planner::new(engine, &options)?);
        let inner =
            Inner { planner, options, running: Arc::default(), handlers: StatementHandlers::default() };
        let query = Self { inner: Arc::new(inner), threads: Arc::new(Threads::start(row_bytes)?) };
        system::register(&query, &query.inner.running);
        Ok(query)
    }

    /// Adds a system table; one of the same name is replaced.
    pub fn register_table(&self, table: Arc<dyn SystemTable>) {
        self.inner.planner.system.write().insert(table.name(), table);
    }

    /// Adds a statement.
    pub fn register_statement(&self, handler: Arc<dyn StatementHandler>) {
        self.inner.handlers.add(handler);
    }

    /// The engine below.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.inner.planner.engine
    }

    /// For a task of `threads`, which may outlast the last handle.
    fn planner(&self) -> Arc<Planner> {
        Arc::clone(&self.inner.planner)
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
        if let Some((handler, argument)) = self.inner.handlers.find(&request.sql) {
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

    /// Runs a query or an INSERT.
    pub(crate) async fn query(&self, sql: &str, request: &Request) -> Result<Answer> {
        self.inner.running.gate.pass(PRESSURE_WAIT).await?;
        let registration = self.inner.running.register(&request.principal.name, sql)?;
        tracing::debug!(id = registration.id, principal = request.principal.name, sql, "query");
        let (planner, sql, request) = (self.planner(), sql.to_owned(), request.clone());
        let held = Arc::clone(&registration.held);
        let start = async move { planner.start(&sql, &request, held).await };
        let timeout = self.inner.options.timeout;
        Ok(Answer::new(self.threads.stream(registration, timeout, start).await?))
    }

    /// The schema of a query's rows, and the types of its parameters in order, as far as they are known.
    pub async fn describe(&self, request: &Request) -> Result<(SchemaRef, Vec<Option<DataType>>)> {
        permit_any(&request.principal)?;
        guard::check_text(&request.sql)?;
        if self.inner.handlers.find(&request.sql).is_some() {
            return Ok((Answer::of_text("")?.schema(), Vec::new()));
        }
        match parse(&request.sql)? {
            Statement::Query(sql) => {
                let (planner, request) = (self.planner(), request.clone());
                self.threads.run(async move { planner.describe(&sql, &request).await }).await
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
        let (planner, spec, database) = (self.planner(), spec.clone(), database.to_owned());
        let timeout = self.inner.options.timeout;
        let done = self.threads.run(async move { planner.run_rule(&spec, &database, rows).await });
        tokio::time::timeout(timeout, done).await.map_err(|_| Error::Timeout(timeout.as_secs()))?
    }

    /// The schema of a rule's rows; fails where the query is wrong.
    pub async fn check_rule(&self, spec: &RuleSpec, database: &str) -> Result<SchemaRef> {
        let (planner, spec, database) = (self.planner(), spec.clone(), database.to_owned());
        self.threads.run(async move { planner.check_rule(&spec, &database).await }).await
    }
}
