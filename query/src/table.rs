//! A table of the engine as DataFusion sees it: filters on time and tags are exact, others prune.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, ScalarValue};
use datafusion::datasource::sink::DataSinkExec;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use sonde_engine::{
    ColumnDef, ColumnId, ColumnRole, Engine, PhysicalType, ScanRequest, Snapshot, Table, TagFilter,
    TimeRange, Timestamp, ValueRange, arrow_schema,
};

use crate::insert::RowSink;
use crate::scan::SondeScan;

/// A table at one snapshot.
#[derive(Debug)]
pub(crate) struct SondeTable {
    engine: Engine,
    snapshot: Snapshot,
    table: Arc<Table>,
    schema: SchemaRef,
    columns: Vec<ColumnId>,
}

impl SondeTable {
    pub(crate) fn new(engine: Engine, snapshot: Snapshot, table: Arc<Table>) -> Self {
        let columns: Vec<ColumnId> = table.def().columns.iter().map(|column| column.id).collect();
        let schema = arrow_schema(&table, &columns);
        Self { engine, snapshot, table, schema, columns }
    }
}

#[async_trait]
impl TableProvider for SondeTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = |filter: &&Expr| match Pushed::of(&self.table, filter) {
            Some(Pushed::Time(_) | Pushed::Tag(_)) => TableProviderFilterPushDown::Exact,
            Some(Pushed::Value(_)) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
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
        let mut request = ScanRequest::all(Arc::clone(&self.table), columns);
        request.limit = limit;
        for filter in filters.iter().filter_map(|filter| Pushed::of(&self.table, filter)) {
            match filter {
                Pushed::Time(range) => request.time = request.time.intersect(&range),
                Pushed::Tag(tag) => request.tags.push(tag),
                Pushed::Value(value) => request.values.push(value),
            }
        }
        let description = format!(
            "table={}, time=[{}, {}), tags={}, values={}, limit={limit:?}",
            self.table.full_name(),
            request.time.start.as_nanos(),
            request.time.end.as_nanos(),
            request.tags.len(),
            request.values.len(),
        );
        let scan = self.engine.scan(&self.snapshot, &request);
        let scan = scan.map_err(|error| DataFusionError::External(Box::new(error)))?;
        Ok(Arc::new(SondeScan::of(scan, state.config().target_partitions(), description)))
    }

    async fn insert_into(
        &self,
        _state: &dyn Session,
        input: Arc<dyn ExecutionPlan>,
        op: InsertOp,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if op != InsertOp::Append {
            return Err(DataFusionError::Plan(
                "INSERT OVERWRITE and REPLACE do not exist; INSERT replaces points".into(),
            ));
        }
        let sink = RowSink::new(self.engine.clone(), Arc::clone(&self.table), input.schema());
        Ok(Arc::new(DataSinkExec::new(input, Arc::new(sink), None)))
    }
}

/// A filter that the engine applies.
#[derive(Debug, PartialEq)]
pub(crate) enum Pushed {
    Time(TimeRange),
    Tag(TagFilter),
    Value(ValueRange),
}

impl Pushed {
    pub(crate) fn of(table: &Table, filter: &Expr) -> Option<Self> {
        match filter {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
                match (Self::of(table, left)?, Self::of(table, right)?) {
                    (Self::Tag(mut a), Self::Tag(b)) if a.column == b.column => {
                        a.values.extend(b.values);
                        Some(Self::Tag(a))
                    }
                    _ => None,
                }
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (left.as_ref(), right.as_ref()) {
                (Expr::Column(column), Expr::Literal(value, _)) => {
                    Self::compare(table.exact(&column.name)?, *op, value)
                }
                (Expr::Literal(value, _), Expr::Column(column)) => {
                    Self::compare(table.exact(&column.name)?, op.swap()?, value)
                }
                _ => None,
            },
            Expr::InList(InList { expr, list, negated: false }) => {
                let Expr::Column(column) = expr.as_ref() else { return None };
                let column = table.exact(&column.name).filter(|column| column.role == ColumnRole::Tag)?;
                let value = |item: &Expr| match item {
                    Expr::Literal(value, _) => Some(Some(value.try_as_str()??.to_owned())),
                    _ => None,
                };
                let values = list.iter().map(value).collect::<Option<BTreeSet<_>>>()?;
                Some(Self::Tag(TagFilter { column: column.id, values }))
            }
            Expr::IsNull(inner) => match inner.as_ref() {
                Expr::Column(column) => {
                    let column = table.exact(&column.name).filter(|column| column.role == ColumnRole::Tag)?;
                    Some(Self::Tag(TagFilter { column: column.id, values: BTreeSet::from([None]) }))
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn compare(column: &ColumnDef, op: Operator, value: &ScalarValue) -> Option<Self> {
        match column.role {
            ColumnRole::Time => match value {
                ScalarValue::TimestampNanosecond(Some(nanos), _) => time_range(op, *nanos).map(Self::Time),
                _ => None,
            },
            ColumnRole::Tag if op == Operator::Eq => {
                let values = BTreeSet::from([Some(value.try_as_str()??.to_owned())]);
                Some(Self::Tag(TagFilter { column: column.id, values }))
            }
            ColumnRole::Tag => None,
            ColumnRole::Field => value_range(column, op, value).map(Self::Value),
        }
    }
}

fn time_range(op: Operator, nanos: i64) -> Option<TimeRange> {
    let (here, next) = (Timestamp::from_nanos(nanos), Timestamp::from_nanos(nanos.saturating_add(1)));
    Some(match op {
        Operator::Eq => TimeRange { start: here, end: next },
        Operator::Gt => TimeRange { start: next, end: Timestamp::MAX },
        Operator::GtEq => TimeRange { start: here, end: Timestamp::MAX },
        Operator::Lt => TimeRange { start: Timestamp::MIN, end: here },
        Operator::LtEq => TimeRange { start: Timestamp::MIN, end: next },
        _ => return None,
    })
}

fn value_range(column: &ColumnDef, op: Operator, value: &ScalarValue) -> Option<ValueRange> {
    if matches!(column.kind, PhysicalType::Boolean | PhysicalType::Text) {
        return None;
    }
    let value = match value {
        ScalarValue::Float64(Some(value)) => *value,
        // Bounds widen by rounding, so that a value beyond 2^53 never falls outside.
        ScalarValue::Int64(Some(value)) => *value as f64,
        ScalarValue::UInt64(Some(value)) => *value as f64,
        _ => return None,
    };
    if value.is_nan() {
        return None;
    }
    let (low, high) = match op {
        Operator::Eq => (value, value),
        Operator::Gt | Operator::GtEq => (value, f64::INFINITY),
        Operator::Lt | Operator::LtEq => (f64::NEG_INFINITY, value),
        _ => return None,
    };
    Some(ValueRange { column: column.id, low, high })
}
