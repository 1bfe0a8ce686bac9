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
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::EmissionType;
use datafusion::sql::sqlparser::ast::{
    self, FunctionArg, FunctionArgExpr, Ident, ObjectName, TableFactor, Value,
};
use sonde_engine::{ColumnId, Engine, LatestRequest, Snapshot, Table, arrow_schema};

use crate::leaf::{Leaf, Reader, Source, external};
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
        let table = table.map_err(external)?;
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
        let (engine, snapshot) = (self.engine.clone(), self.snapshot.clone());
        Ok(Arc::new(Leaf::new(Latest { engine, snapshot, request, limit }, parts)))
    }
}

/// The newest points that are asked for.
#[derive(Debug)]
struct Latest {
    engine: Engine,
    snapshot: Snapshot,
    request: LatestRequest,
    limit: Option<usize>,
}

impl fmt::Display for Latest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (table, tags) = (self.request.table.full_name(), self.request.tags.len());
        write!(f, "table={table}, tags={tags}, limit={:?}", self.limit)
    }
}

impl Source for Latest {
    const NAME: &'static str = "LatestScan";
    const EMISSION: EmissionType = EmissionType::Final;

    fn schema(&self) -> SchemaRef {
        arrow_schema(&self.request.table, &self.request.columns)
    }

    fn read(&self, partition: usize, partitions: usize, reader: &Reader) -> Result<()> {
        let request = LatestRequest { part: (partition, partitions), ..self.request.clone() };
        let latest = self.engine.latest(&self.snapshot, &request).map_err(external)?;
        // They are in memory already, and nobody can spill them.
        reader.memory.try_grow(latest.bytes())?;
        let mut left = self.limit.unwrap_or(usize::MAX);
        for batch in latest {
            let batch = batch.map_err(external)?;
            let batch = batch.slice(0, batch.num_rows().min(left));
            left -= batch.num_rows();
            if !reader.take(batch) || left == 0 {
                break;
            }
        }
        Ok(())
    }
}
