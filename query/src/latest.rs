//! `latest(table)`: the newest point of each series, from the query's own snapshot.
//!
//! # Invariants
//! - `names.rs` has written the table as two literals, database and name, so no column of the statement can be taken for
//!   it.
//! - Filters on tags choose series before anything is read; every other filter is applied to the newest points, and never
//!   makes an older one the newest.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, plan_err};
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, SchedulingType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use datafusion::sql::sqlparser::ast::{
    self, FunctionArg, FunctionArgExpr, Ident, ObjectName, TableFactor, Value,
};
use sonde_engine::{ColumnId, Engine, LatestRequest, Snapshot, Table, arrow_schema};

use crate::limits::SCAN_AHEAD;
use crate::table::Pushed;

/// Series from which on a table's are looked for in parts, one to each partition of the plan.
const SERIES_OF_ONE_PART: usize = 1000;

/// The name of the function.
pub(crate) const LATEST: &str = "latest";

/// The table that a call of `latest` names, as the words of its name; `None` where the factor is no such call.
/// `latest(t)` and `latest('t')` are the same, and so are `latest(d.t)` and `latest('d.t')`.
pub(crate) fn argument(factor: &TableFactor) -> Option<Vec<Ident>> {
    let TableFactor::Table { name, args: Some(args), .. } = factor else { return None };
    let function = name.0.first().and_then(|part| part.as_ident()).filter(|_| name.0.len() == 1)?;
    if !function.value.eq_ignore_ascii_case(LATEST) {
        return None;
    }
    let [FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))] = args.args.as_slice() else { return None };
    match argument {
        ast::Expr::Identifier(word) => Some(vec![word.clone()]),
        ast::Expr::CompoundIdentifier(words) => Some(words.clone()),
        ast::Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => Some(text.split('.').map(Ident::new).collect()),
            _ => None,
        },
        _ => None,
    }
}

/// Writes the call with the table that was found for its argument.
pub(crate) fn write(factor: &mut TableFactor, database: &str, table: &str) {
    let TableFactor::Table { name, args: Some(args), .. } = factor else { return };
    *name = ObjectName::from(vec![Ident::new(LATEST)]);
    let literal = |text: &str| {
        let value = Value::SingleQuotedString(text.to_owned());
        FunctionArg::Unnamed(FunctionArgExpr::Expr(ast::Expr::Value(value.into())))
    };
    args.args = vec![literal(database), literal(table)];
}

/// The function over one snapshot.
#[derive(Debug)]
pub(crate) struct LatestFunction {
    pub(crate) engine: Engine,
    pub(crate) snapshot: Snapshot,
}

impl TableFunctionImpl for LatestFunction {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        let text = |argument: &Expr| match argument {
            Expr::Literal(value, _) => value.try_as_str().flatten().map(str::to_owned),
            _ => None,
        };
        let texts: Option<Vec<String>> = args.exprs().iter().map(text).collect();
        let Some([database, name]) = texts.as_deref() else {
            return plan_err!("latest takes a table, for example SELECT * FROM latest(readings)");
        };
        let table = self.snapshot.catalog().require_table(database, name);
        let table = table.map_err(|error| DataFusionError::External(Box::new(error)))?;
        let columns: Vec<ColumnId> = table.def().columns.iter().map(|column| column.id).collect();
        Ok(Arc::new(LatestTable {
            engine: self.engine.clone(),
            snapshot: self.snapshot.clone(),
            schema: arrow_schema(table, &columns),
            table: Arc::clone(table),
            columns,
        }))
    }
}

/// The newest points of a table at one snapshot.
#[derive(Debug)]
struct LatestTable {
    engine: Engine,
    snapshot: Snapshot,
    table: Arc<Table>,
    schema: SchemaRef,
    columns: Vec<ColumnId>,
}

#[async_trait]
impl TableProvider for LatestTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = |filter: &&Expr| match Pushed::of(&self.table, filter) {
            Some(Pushed::Tag(_)) => TableProviderFilterPushDown::Exact,
            _ => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = match projection {
            Some(picked) => picked.iter().filter_map(|index| self.columns.get(*index).copied()).collect(),
            None => self.columns.clone(),
        };
        let tag = |filter: &Expr| match Pushed::of(&self.table, filter) {
            Some(Pushed::Tag(tag)) => Some(tag),
            _ => None,
        };
        let tags = filters.iter().filter_map(tag).collect();
        let request = LatestRequest { tags, ..LatestRequest::all(Arc::clone(&self.table), columns) };
        // A few series are found sooner than a second thread starts.
        let is_large = self.engine.series_count(self.table.id()) >= SERIES_OF_ONE_PART;
        let parts = if is_large { state.config().target_partitions() } else { 1 };
        Ok(Arc::new(LatestScan::new(self.engine.clone(), self.snapshot.clone(), request, limit, parts)))
    }
}

/// Finds the newest points, each of its partitions on a blocking thread.
#[derive(Debug)]
struct LatestScan {
    engine: Engine,
    snapshot: Snapshot,
    request: LatestRequest,
    limit: Option<usize>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl LatestScan {
    fn new(
        engine: Engine,
        snapshot: Snapshot,
        request: LatestRequest,
        limit: Option<usize>,
        parts: usize,
    ) -> Self {
        let schema = arrow_schema(&request.table, &request.columns);
        let equivalences = EquivalenceProperties::new(Arc::clone(&schema));
        let partitioning = Partitioning::UnknownPartitioning(parts.max(1));
        let properties =
            PlanProperties::new(equivalences, partitioning, EmissionType::Final, Boundedness::Bounded)
                .with_scheduling_type(SchedulingType::Cooperative);
        let metrics = ExecutionPlanMetricsSet::new();
        Self { engine, snapshot, request, limit, schema, properties: Arc::new(properties), metrics }
    }
}

impl DisplayAs for LatestScan {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (table, tags) = (self.request.table.full_name(), self.request.tags.len());
        write!(f, "LatestScan: table={table}, tags={tags}, limit={:?}", self.limit)
    }
}

impl ExecutionPlan for LatestScan {
    fn name(&self) -> &str {
        "LatestScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let memory = MemoryConsumer::new(format!("LatestScan[{partition}]")).register(context.memory_pool());
        let mut stream = RecordBatchReceiverStreamBuilder::new(Arc::clone(&self.schema), SCAN_AHEAD);
        let sender = stream.tx();
        let (engine, snapshot, mut request) =
            (self.engine.clone(), self.snapshot.clone(), self.request.clone());
        request.part = (partition, self.properties.partitioning.partition_count());
        let mut left = self.limit.unwrap_or(usize::MAX);
        stream.spawn_blocking(move || {
            let external = |error: sonde_engine::Error| DataFusionError::External(Box::new(error));
            let latest = engine.latest(&snapshot, &request).map_err(external)?;
            // They are in memory already, and nobody can spill them.
            memory.try_grow(latest.bytes())?;
            for batch in latest {
                let batch = batch.map_err(external)?;
                let batch = batch.slice(0, batch.num_rows().min(left));
                left -= batch.num_rows();
                metrics.record_output(batch.num_rows());
                // A reader that went away ends the scan.
                if sender.blocking_send(Ok(batch)).is_err() || left == 0 {
                    break;
                }
            }
            Ok(())
        });
        Ok(stream.build())
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}
