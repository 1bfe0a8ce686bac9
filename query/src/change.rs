//! DELETE and UPDATE: which points the statement means, and what becomes of them.
//!
//! # Invariants
//! - A statement is decided over one snapshot. Where others wrote to its points meanwhile it is decided again, so that
//!   nobody's write is lost to it.
//! - A DELETE whose condition is ranges of time and values of tags reads nothing but the count that it answers with.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use datafusion::common::Column;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::expr::Alias;
use datafusion::logical_expr::{
    DmlStatement, Expr, LogicalPlan, LogicalPlanBuilder, Projection, WriteOp, lit,
};
use datafusion::physical_plan::execute_stream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::sql::parser::Statement as DataFusionStatement;
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use futures::StreamExt;
use sonde_engine::limits::CHANGE_ATTEMPTS;
use sonde_engine::{ColumnRole, Points, Snapshot, Table, TagFilter, TimeRange, Timestamp};

use crate::catalog::{Overrides, check_writable};
use crate::error::{Error, Result};
use crate::insert::whole_alias;
use crate::planner::{Planner, Session, with_parameters};
use crate::request::Request;
use crate::rows::{Nulls, write_rows};
use crate::statement::run::blocking;
use crate::table::Pushed;

/// Whether a statement changes rows that are there.
pub(crate) fn is_change(statement: &DataFusionStatement) -> bool {
    let DataFusionStatement::Statement(statement) = statement else { return false };
    matches!(**statement, SqlStatement::Delete(_) | SqlStatement::Update(_))
}

/// Runs the statement; one row tells how many points it changed.
pub(crate) async fn run(
    planner: &Planner,
    statement: &DataFusionStatement,
    request: &Request,
) -> Result<SendableRecordBatchStream> {
    check_form(statement)?;
    let mut attempts = 0;
    loop {
        let engine = planner.engine.clone();
        let snapshot = blocking(move || Ok(engine.fence()?)).await?;
        let session = planner.session_on(snapshot.clone(), &request.database, Overrides::new());
        let plan = planner.plan(&session, statement.clone()).await?;
        let change = Change::new(planner, &session, &snapshot, with_parameters(plan, request)?)?;
        attempts += 1;
        match change.run().await {
            Err(Error::Engine(sonde_engine::Error::Conflict(_))) if attempts < CHANGE_ATTEMPTS => {}
            outcome => return told(outcome?),
        }
    }
}

/// Fails for what the planner would pass over.
fn check_form(statement: &DataFusionStatement) -> Result<()> {
    let DataFusionStatement::Statement(statement) = statement else { return Ok(()) };
    let unfit = match &**statement {
        SqlStatement::Delete(delete) => [
            ("RETURNING", delete.returning.is_some()),
            ("ORDER BY", !delete.order_by.is_empty()),
            ("LIMIT", delete.limit.is_some()),
            ("USING", delete.using.is_some()),
        ],
        SqlStatement::Update(update) => [
            ("RETURNING", update.returning.is_some()),
            ("FROM", update.from.is_some()),
            ("LIMIT", update.limit.is_some()),
            ("ORDER BY", false),
        ],
        _ => return Ok(()),
    };
    match unfit.iter().find(|(_, found)| *found) {
        Some((clause, _)) => Err(Error::Invalid(format!("DELETE and UPDATE have no {clause} here"))),
        None => Ok(()),
    }
}

fn told(points: u64) -> Result<SendableRecordBatchStream> {
    let schema = Arc::new(Schema::new(vec![Field::new("count", DataType::UInt64, false)]));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(UInt64Array::from(vec![points]))]);
    let batch = batch.map_err(|error| Error::Internal(error.to_string()))?;
    let stream = futures::stream::iter([Ok(batch)]);
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream)))
}

/// A statement over one snapshot.
struct Change<'a> {
    planner: &'a Planner,
    session: &'a Session,
    snapshot: &'a Snapshot,
    table: Arc<Table>,
    dml: DmlStatement,
}

impl<'a> Change<'a> {
    fn new(
        planner: &'a Planner,
        session: &'a Session,
        snapshot: &'a Snapshot,
        plan: LogicalPlan,
    ) -> Result<Self> {
        let LogicalPlan::Dml(dml) = plan else {
            return Err(Error::Internal("the plan of a change is none".into()));
        };
        let database = dml.table_name.schema().unwrap_or(&session.database);
        check_writable(database)?;
        let table = snapshot.catalog().require_table(database, dml.table_name.table())?;
        Ok(Self { planner, session, snapshot, table: Arc::clone(table), dml })
    }

    async fn run(&self) -> Result<u64> {
        match self.dml.op {
            WriteOp::Delete => self.delete().await,
            WriteOp::Update => self.update().await,
            _ => Err(Error::Internal("a change took the wrong path".into())),
        }
    }

    async fn delete(&self) -> Result<u64> {
        let rows = LogicalPlan::clone(&self.dml.input);
        match self.exact(&rows)? {
            Some(exact) => self.delete_range(rows, exact).await,
            None => self.delete_points(rows).await,
        }
    }

    /// The ranges that the rows are exactly those of, where the engine applies the whole condition.
    fn exact(&self, rows: &LogicalPlan) -> Result<Option<(TimeRange, Vec<TagFilter>)>> {
        let nothing = TimeRange { start: Timestamp::MIN, end: Timestamp::MIN };
        let scan = match self.session.state.optimize(rows)? {
            LogicalPlan::TableScan(scan) => scan,
            LogicalPlan::EmptyRelation(_) => return Ok(Some((nothing, Vec::new()))),
            _ => return Ok(None),
        };
        let (mut time, mut tags) = (TimeRange::ALL, Vec::new());
        for filter in &scan.filters {
            match Pushed::of(&self.table, filter) {
                Some(Pushed::Time(range)) => time = time.intersect(&range),
                Some(Pushed::Tag(tag)) => tags.push(tag),
                Some(Pushed::Value(_)) | None => return Ok(None),
            }
        }
        Ok(scan.fetch.is_none().then_some((time, tags)))
    }

    async fn delete_range(&self, rows: LogicalPlan, exact: (TimeRange, Vec<TagFilter>)) -> Result<u64> {
        let (time, tags) = exact;
        if time.is_empty() {
            return Ok(0);
        }
        let counted =
            LogicalPlanBuilder::from(rows).aggregate(Vec::<Expr>::new(), [count(lit(1))])?.build()?;
        let mut total = 0;
        let mut batches = self.execute(&counted).await?;
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let counts = batch.columns().first().and_then(|column| column.as_primitive_opt::<Int64Type>());
            total += counts.map_or(0, |counts| counts.values().iter().sum::<i64>());
        }
        let (engine, table) = (self.planner.engine.clone(), Arc::clone(&self.table));
        blocking(move || Ok(engine.delete_range(&table, time, &tags)?)).await?;
        Ok(total.unsigned_abs())
    }

    async fn delete_points(&self, rows: LogicalPlan) -> Result<u64> {
        let keys = self.keys(&rows)?;
        let rows = LogicalPlanBuilder::from(rows).project(keys)?.build()?;
        let mut points = Points::new(&self.table, self.snapshot);
        let mut batches = self.execute(&rows).await?;
        while let Some(batch) = batches.next().await {
            points.push(&self.table, &batch?)?;
        }
        let count = points.len() as u64;
        if count > 0 {
            let (engine, table) = (self.planner.engine.clone(), Arc::clone(&self.table));
            blocking(move || Ok(engine.delete_points(&table, points)?)).await?;
        }
        Ok(count)
    }

    async fn update(&self) -> Result<u64> {
        let LogicalPlan::Projection(Projection { expr, input, .. }) = &*self.dml.input else {
            return Err(Error::Internal("the plan of an UPDATE has no projection".into()));
        };
        let mut columns = self.keys(input)?;
        let keys = columns.len();
        for expr in expr.iter().filter(|expr| !is_kept(expr)) {
            columns.push(whole_alias(expr.clone(), input.schema())?);
        }
        self.check_assigned(columns.get(keys..).unwrap_or_default())?;
        let rows = LogicalPlanBuilder::from(LogicalPlan::clone(input)).project(columns)?.build()?;
        let mut points = Points::new(&self.table, self.snapshot);
        let mut builder = self.planner.engine.batch();
        builder.begin_message();
        let everything = Timestamp::MIN..=Timestamp::from_nanos(i64::MAX - 1);
        let mut batches = self.execute(&rows).await?;
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let named = batch.project(&(0..keys).collect::<Vec<_>>());
            points.push(&self.table, &named.map_err(|error| Error::Internal(error.to_string()))?)?;
            let now = || self.planner.engine.now();
            let refused = write_rows(&mut builder, &self.table, &batch, &now, &everything, Nulls::Explicit)?;
            if let Some(error) = refused.first() {
                return Err(Error::Invalid(format!("UPDATE: {}; nothing was changed", error.reason)));
            }
        }
        let count = points.len() as u64;
        if let Some(batch) = builder.finish() {
            let engine = self.planner.engine.clone();
            blocking(move || Ok(engine.update(batch, points)?)).await?;
        }
        Ok(count)
    }

    /// Fails where what identifies a point would change.
    fn check_assigned(&self, assigned: &[Expr]) -> Result<()> {
        for expr in assigned {
            let Expr::Alias(Alias { name, .. }) = expr else { continue };
            if self.table.exact(name).is_some_and(|column| column.role != ColumnRole::Field) {
                let what = "time and tags identify a point: INSERT it under the new ones and DELETE it here";
                return Err(Error::Invalid(format!("UPDATE cannot set {name}; {what}")));
            }
        }
        Ok(())
    }

    /// The time and the tags of the rows, as the engine wants to have them.
    fn keys(&self, rows: &LogicalPlan) -> Result<Vec<Expr>> {
        let time = self.table.def().columns.iter().filter(|column| column.role == ColumnRole::Time);
        let name = |name: &str| {
            let (qualifier, field) = rows.schema().qualified_field_with_unqualified_name(name)?;
            Ok(Expr::Column(Column::from((qualifier, field))))
        };
        time.chain(self.table.tags()).map(|column| name(&column.name)).collect()
    }

    async fn execute(&self, plan: &LogicalPlan) -> Result<SendableRecordBatchStream> {
        let plan = self.session.state.create_physical_plan(plan).await?;
        Ok(execute_stream(plan, self.session.state.task_ctx())?)
    }
}

/// Whether an UPDATE leaves a column as it is.
fn is_kept(expr: &Expr) -> bool {
    match expr {
        Expr::Alias(Alias { expr, name, .. }) => {
            matches!(&**expr, Expr::Column(column) if column.name == *name)
        }
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use sonde_access::{Grants, Principal};

    use crate::QueryEngine;
    use crate::tests::{ask, ask_as, open, refusal};

    const COUNT: &str = "SELECT count(*) FROM t";

    /// Ten points of each of two devices, in memory and in chunks.
    async fn filled() -> (QueryEngine, tempfile::TempDir) {
        let (query, dir) = open();
        let create = "CREATE TABLE t (time TIMESTAMP, Device STRING TAG, a DOUBLE, b BIGINT, s STRING)";
        ask(&query, create).await.unwrap();
        for device in ["d1", "d2"] {
            let rows: Vec<String> =
                (0..10).map(|n| format!("('2026-01-01T00:00:0{n}Z', '{device}', {n}.5, {n}, 'x')")).collect();
            ask(&query, &format!("INSERT INTO t VALUES {}", rows.join(","))).await.unwrap();
            ask(&query, "FLUSH TABLE t").await.unwrap();
        }
        ask(&query, "INSERT INTO t (time, device, b) VALUES ('2026-01-01T00:00:00Z', 'd1', 100)")
            .await
            .unwrap();
        (query, dir)
    }

    async fn number(query: &QueryEngine, sql: &str) -> u64 {
        let rows = ask(query, sql).await.unwrap();
        rows.concat().first().unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn a_delete_takes_any_condition_and_counts() {
        for (condition, deleted) in [
            ("WHERE device = 'd1'", 10),
            ("WHERE DEVICE = 'd1' AND time < '2026-01-01T00:00:05Z'", 5),
            ("WHERE time BETWEEN '2026-01-01T00:00:02Z' AND '2026-01-01T00:00:03Z'", 4),
            ("WHERE device IN ('d1', 'd3') OR device = 'd2'", 20),
            ("WHERE t.device = 'no'", 0),
            ("WHERE false", 0),
            ("", 20),
            ("WHERE b >= 9", 3),
            ("WHERE a > 3 AND device LIKE '%2'", 7),
            ("WHERE b = (SELECT max(b) FROM t)", 1),
            ("WHERE a IN (SELECT a FROM t WHERE b = 4)", 2),
            ("WHERE a IS NULL", 0),
            ("WHERE time < '2026-01-01T00:00:01Z' OR time > '2026-01-01T00:00:08Z'", 4),
        ] {
            let (query, _dir) = filled().await;
            let gone = format!("SELECT count(*) FROM t {condition}");
            assert_eq!(number(&query, &gone).await, deleted, "{condition}");
            assert_eq!(number(&query, &format!("DELETE FROM T {condition}")).await, deleted, "{condition}");
            assert_eq!(number(&query, COUNT).await, 20 - deleted, "{condition}");
        }
    }

    #[tokio::test]
    async fn an_update_sets_fields_of_the_points_that_are_meant() {
        let (query, _dir) = filled().await;
        let update = "UPDATE t SET A = a * 2, s = NULL WHERE device = 'd2' AND b > 7";
        assert_eq!(number(&query, update).await, 2);
        let rows =
            ask(&query, "SELECT a, b, s FROM t WHERE device = 'd2' AND b > 6 ORDER BY b").await.unwrap();
        assert_eq!(rows, [["7.5", "7", "x"], ["17.0", "8", "NULL"], ["19.0", "9", "NULL"]]);
        assert_eq!(number(&query, "UPDATE t SET b = b + 1").await, 20);
        assert_eq!(number(&query, "SELECT sum(b) FROM t").await, 190 - 90 + 100 + 10);
        assert_eq!(number(&query, "UPDATE t SET b = 1 WHERE b < 0").await, 0);
        assert_eq!(number(&query, COUNT).await, 20);
        for (sql, why) in [
            ("UPDATE t SET b = 1.5", "is BIGINT"),
            ("UPDATE t SET device = 'd3'", "identify a point"),
            ("UPDATE t SET time = now()", "identify a point"),
            ("UPDATE t SET nothing = 1", "nothing"),
            ("UPDATE t SET b = 1 FROM t u", "FROM"),
            ("DELETE FROM t LIMIT 1", "LIMIT"),
            ("DELETE FROM t WHERE b = 1 RETURNING b", "RETURNING"),
            ("DELETE FROM system.queries", "reserved"),
            ("DELETE FROM tt", "did you mean"),
        ] {
            let text = refusal(&query, sql).await;
            assert!(text.contains(why), "{sql}: {text}");
        }
        assert_eq!(number(&query, "SELECT sum(b) FROM t").await, 210);
    }

    #[tokio::test]
    async fn whoever_changes_rows_may_read_and_write() {
        let (query, _dir) = filled().await;
        for (grants, may) in [((true, false), false), ((false, true), false), ((true, true), true)] {
            let grants = Grants { query: grants.0, write: grants.1, ..Grants::default() };
            for sql in ["DELETE FROM t WHERE b = 1", "UPDATE t SET b = 1 WHERE b = 2"] {
                let done = ask_as(&query, Principal::new("someone", grants.clone()), sql).await;
                assert_eq!(done.is_ok(), may, "{sql}");
            }
            for sql in ["TRUNCATE TABLE t", "ALTER TABLE t DROP COLUMN a"] {
                assert!(
                    ask_as(&query, Principal::new("someone", grants.clone()), sql).await.is_err(),
                    "{sql}"
                );
            }
        }
    }

    #[tokio::test]
    async fn tables_are_altered() {
        let (query, _dir) = filled().await;
        for sql in [
            "ALTER TABLE t ADD COLUMN c DOUBLE",
            "ALTER TABLE T ADD IF NOT EXISTS c DOUBLE",
            "ALTER TABLE t ADD COLUMN site STRING TAG",
            "ALTER TABLE t RENAME COLUMN A TO temperature",
            "ALTER TABLE t DROP COLUMN IF EXISTS nothing",
            "ALTER TABLE t DROP s",
            "ALTER TABLE t ALTER COLUMN b TYPE DOUBLE",
            "ALTER TABLE t RENAME TO machines",
            "INSERT INTO machines (time, device, site, b, c) VALUES ('2026-01-01T00:00:09Z', 'd2', 'x', 0.5, 1)",
        ] {
            ask(&query, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        let row = "SELECT temperature, b, c, site FROM machines WHERE time = '2026-01-01T00:00:09Z' AND device = 'd2'";
        let rows = ask(&query, &format!("{row} ORDER BY b")).await.unwrap();
        assert_eq!(rows, [["NULL", "0.5", "1.0", "x"], ["9.5", "9.0", "NULL", "NULL"]]);
        for (sql, why) in [
            ("ALTER TABLE machines DROP COLUMN s", "has no column s"),
            ("ALTER TABLE machines DROP COLUMN device", "is a tag"),
            ("ALTER TABLE machines ADD c DOUBLE", "exists already"),
            ("ALTER TABLE machines ALTER c TYPE BIGINT", "no other type"),
            ("ALTER TABLE machines RENAME c TO temperature", "exists already"),
            ("ALTER TABLE machines EXPLODE", "does not exist"),
            ("ALTER TABLE t ADD d DOUBLE", "unknown table"),
        ] {
            let text = refusal(&query, sql).await;
            assert!(text.contains(why), "{sql}: {text}");
        }
        ask(&query, "TRUNCATE machines").await.unwrap();
        assert_eq!(number(&query, "SELECT count(*) FROM machines").await, 0);
    }
}
