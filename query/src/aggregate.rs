//! Aggregates straight over a scan, which the engine answers: `count`, `sum`, `min`, `max` and `avg` of all rows, or by tags.
//!
//! A rule of the physical planner puts `SondeAggregate` in the place of a partial aggregation and its scan. It gives the same
//! state for each group, so the final aggregation above it stays what it is.
//!
//! # Invariants
//! - Only filters that the scan applies exactly stand below: with any other there is a filter between, and the rule does
//!   nothing.
//! - The totals of series are few for the memory that there is. Where it turns out to be taken, each partition groups its
//!   rows as the planner would have had it, which needs no memory set aside.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, TimestampNanosecondArray, UInt64Array};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::utils::memory::get_record_batch_memory_size;
use datafusion::common::{Result, internal_err};
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{CastExpr, Column, Literal};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::execution_plan::EmissionType;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::udaf::AggregateFunctionExpr;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use sonde_engine::{
    Aggregate, AggregateRequest, ColumnId, ColumnRole, Number, PhysicalType, Scan, Total, Totals,
};

use crate::leaf::{Leaf, Reader, Source, external};
use crate::limits::{SERIES_TOTALS, TOTALS_BATCH, TOTALS_SHARE};
use crate::scan::{Rows, SondeScan};

/// The rule.
#[derive(Debug)]
pub(crate) struct AggregateInEngine {
    /// What all queries together may hold.
    pub(crate) memory_bytes: usize,
}

impl PhysicalOptimizerRule for AggregateInEngine {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| match self.instead_of(&plan)? {
            Some(other) => Ok(Transformed::yes(other)),
            None => Ok(Transformed::no(plan)),
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "aggregate_in_engine"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

impl AggregateInEngine {
    /// What gives the same as an aggregation of a scan, if the engine can.
    fn instead_of(&self, plan: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(aggregate) = plan.downcast_ref::<AggregateExec>() else { return Ok(None) };
        let is_partial = match aggregate.mode() {
            AggregateMode::Partial => true,
            AggregateMode::Single => false,
            _ => return Ok(None),
        };
        if aggregate.limit_options().is_some() || aggregate.filter_expr().iter().any(Option::is_some) {
            return Ok(None);
        }
        // Where rows go after the scan is all the same to a total of them.
        let mut input = aggregate.input();
        while let Some(repartition) = input.downcast_ref::<RepartitionExec>() {
            input = repartition.input();
        }
        let Some(rows) = input.downcast_ref::<SondeScan>() else { return Ok(None) };
        let Some(question) = Question::of(aggregate, &rows.source().scan) else { return Ok(None) };
        if !self.has_room(&question, rows) {
            return Ok(None);
        }
        let (functions, filters) = (aggregate.aggr_expr().to_vec(), aggregate.filter_expr().to_vec());
        let (groups, of_rows) = (aggregate.group_expr().clone(), aggregate.input_schema());
        let partial = AggregateExec::try_new(
            AggregateMode::Partial,
            groups.clone(),
            functions.clone(),
            filters.clone(),
            Arc::clone(input),
            Arc::clone(&of_rows),
        )?;
        let mut states: Arc<dyn ExecutionPlan> = Arc::new(leaf(rows, question, Arc::new(partial)));
        if is_partial {
            return Ok(Some(states));
        }
        if states.output_partitioning().partition_count() > 1 {
            states = Arc::new(CoalescePartitionsExec::new(states));
        }
        let whole = AggregateExec::try_new(
            AggregateMode::Final,
            groups.as_final(),
            functions,
            filters,
            states,
            of_rows,
        )?;
        Ok(Some(Arc::new(whole)))
    }

    /// Whether the totals are few, and take little of the memory that there is.
    fn has_room(&self, question: &Question, rows: &SondeScan) -> bool {
        let (scan, request) = (&rows.source().scan, &question.request);
        if !request.by_series {
            return true;
        }
        let totals = scan.series().saturating_mul(1 + request.sums.len());
        let bytes = scan.aggregate_bytes(request).saturating_mul(rows.partitions());
        totals <= SERIES_TOTALS && bytes <= self.memory_bytes / TOTALS_SHARE
    }
}

/// What an aggregation asks of the rows of a scan.
#[derive(Clone, Debug)]
struct Question {
    /// The tags by which it groups; none for one group of all rows.
    tags: Vec<ColumnId>,
    measures: Vec<Measure>,
    request: AggregateRequest,
}

/// One aggregate. Fields are named by their place among those of the scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    Rows,
    Count(usize),
    Sum(usize),
    Min(usize),
    Max(usize),
    Avg(usize),
    FirstTime,
    LastTime,
}

/// A column of the scan as aggregates see it.
#[derive(Clone, Copy)]
enum Asked {
    Time,
    Field(usize, PhysicalType),
}

impl Question {
    fn of(aggregate: &AggregateExec, scan: &Scan) -> Option<Self> {
        let tags = tags(aggregate.group_expr(), scan)?;
        let measures: Vec<Measure> =
            aggregate.aggr_expr().iter().map(|function| measure(function, scan)).collect::<Option<_>>()?;
        let fields = fields(scan).count();
        let wants_sum =
            |place: usize| measures.contains(&Measure::Sum(place)) || measures.contains(&Measure::Avg(place));
        let request =
            AggregateRequest { by_series: !tags.is_empty(), sums: (0..fields).map(wants_sum).collect() };
        Some(Self { tags, measures, request })
    }
}

/// The tags of a grouping by nothing else.
fn tags(groups: &PhysicalGroupBy, scan: &Scan) -> Option<Vec<ColumnId>> {
    if groups.has_grouping_set() {
        return None;
    }
    let tag = |(expr, _): &(Arc<dyn PhysicalExpr>, String)| {
        let id = *scan.columns().get(expr.downcast_ref::<Column>()?.index())?;
        let column = scan.table().column_by_id(id)?;
        (column.role == ColumnRole::Tag).then_some(id)
    };
    groups.expr().iter().map(tag).collect()
}

fn fields(scan: &Scan) -> impl Iterator<Item = ColumnId> {
    let is_field =
        |id: &ColumnId| scan.table().column_by_id(*id).is_some_and(|column| column.role == ColumnRole::Field);
    scan.columns().iter().copied().filter(is_field)
}

fn measure(function: &AggregateFunctionExpr, scan: &Scan) -> Option<Measure> {
    let arguments = function.expressions();
    let [argument] = arguments.as_slice() else { return None };
    if function.is_distinct() || !function.order_bys().is_empty() {
        return None;
    }
    let name = function.fun().name();
    if let Some(literal) = argument.downcast_ref::<Literal>() {
        return (name == "count" && !literal.value().is_null()).then_some(Measure::Rows);
    }
    // Integers are averaged as floats.
    let cast = argument.downcast_ref::<CastExpr>().filter(|cast| *cast.cast_type() == DataType::Float64);
    let column = cast.map_or(argument, |cast| cast.expr());
    let asked = asked(column.downcast_ref::<Column>()?, scan)?;
    match (name, asked, cast.is_some()) {
        ("count", Asked::Time, false) => Some(Measure::Rows),
        ("min", Asked::Time, false) => Some(Measure::FirstTime),
        ("max", Asked::Time, false) => Some(Measure::LastTime),
        ("count", Asked::Field(place, _), false) => Some(Measure::Count(place)),
        (_, Asked::Field(_, PhysicalType::Boolean | PhysicalType::Text), _) => None,
        ("sum", Asked::Field(place, _), false) => Some(Measure::Sum(place)),
        ("min", Asked::Field(place, _), false) => Some(Measure::Min(place)),
        ("max", Asked::Field(place, _), false) => Some(Measure::Max(place)),
        ("avg", Asked::Field(place, kind), cast) if cast != (kind == PhysicalType::Float64) => {
            Some(Measure::Avg(place))
        }
        _ => None,
    }
}

fn asked(column: &Column, scan: &Scan) -> Option<Asked> {
    let id = *scan.columns().get(column.index())?;
    let def = scan.table().column_by_id(id)?;
    match def.role {
        ColumnRole::Time => Some(Asked::Time),
        ColumnRole::Tag => None,
        ColumnRole::Field => Some(Asked::Field(fields(scan).position(|field| field == id)?, def.kind)),
    }
}

/// The state of an aggregation of an engine scan.
#[derive(Debug)]
struct State {
    rows: Rows,
    question: Question,
    /// The partial aggregation in whose place it stands.
    partial: Arc<dyn ExecutionPlan>,
}

/// Reads the state of an aggregation in the place of `partial`.
fn leaf(rows: &SondeScan, question: Question, partial: Arc<dyn ExecutionPlan>) -> Leaf<State> {
    Leaf::new(State { rows: rows.source().clone(), question, partial }, rows.partitions())
}

impl State {
    /// Some of the totals as rows of the state.
    fn batch(&self, aggregate: &Aggregate, part: Range<usize>) -> Result<RecordBatch> {
        let schema = self.schema();
        let totals = aggregate.totals.get(part.clone()).unwrap_or_default();
        let mut columns = aggregate.tags(&self.question.tags, part);
        for measure in &self.question.measures {
            columns.extend(states(*measure, totals, &schema, columns.len())?);
        }
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows.fmt(f)
    }
}

impl Source for State {
    const NAME: &'static str = "SondeAggregate";
    const EMISSION: EmissionType = EmissionType::Final;

    fn schema(&self) -> SchemaRef {
        self.partial.schema()
    }

    fn instead(&self, memory: &MemoryReservation) -> Option<&Arc<dyn ExecutionPlan>> {
        memory
            .try_grow(self.rows.scan.aggregate_bytes(&self.question.request))
            .is_err()
            .then_some(&self.partial)
    }

    fn read(&self, partition: usize, partitions: usize, reader: &Reader) -> Result<()> {
        let request = &self.question.request;
        let aggregate = self.rows.scan.aggregate(partition, partitions, request, &|| reader.waits());
        let aggregate = aggregate.map_err(external)?;
        let (count, of_totals) = (aggregate.totals.len(), reader.memory.size());
        for start in (0..count).step_by(TOTALS_BATCH) {
            let batch = self.batch(&aggregate, start..count.min(start + TOTALS_BATCH))?;
            reader.memory.resize(of_totals + get_record_batch_memory_size(&batch));
            if !reader.take(batch) {
                break;
            }
        }
        Ok(())
    }
}

/// The state columns of a measure, the first of which is the schema's column `at`.
fn states(measure: Measure, totals: &[Totals], schema: &SchemaRef, at: usize) -> Result<Vec<ArrayRef>> {
    let field = |totals: &Totals, place: usize| totals.fields.get(place).copied();
    let numbers = |of: fn(&Total) -> Option<Number>, place: usize, at: usize| {
        let kind = schema.field(at).data_type();
        array(kind, totals.iter().map(|totals| of(&field(totals, place)?)))
    };
    let counts =
        |place: usize| totals.iter().map(move |totals| field(totals, place).map_or(0, |f| f.present()));
    let times = |of: fn(&Totals) -> Option<i64>| -> ArrayRef {
        Arc::new(totals.iter().map(of).collect::<TimestampNanosecondArray>().with_timezone("UTC"))
    };
    Ok(match measure {
        Measure::Rows => vec![count_array(totals.iter().map(|totals| totals.rows))],
        Measure::Count(place) => vec![count_array(counts(place))],
        Measure::Sum(place) => vec![numbers(Total::sum, place, at)?],
        Measure::Min(place) => vec![numbers(Total::min, place, at)?],
        Measure::Max(place) => vec![numbers(Total::max, place, at)?],
        Measure::Avg(place) => {
            let present: UInt64Array = counts(place).map(|count| (count > 0).then_some(count)).collect();
            vec![Arc::new(present), numbers(Total::sum, place, at + 1)?]
        }
        Measure::FirstTime => vec![times(|totals| Some(totals.times?.0.as_nanos()))],
        Measure::LastTime => vec![times(|totals| Some(totals.times?.1.as_nanos()))],
    })
}

fn count_array(counts: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(counts.map(u64::cast_signed).collect::<Int64Array>())
}

/// Numbers as a column of this type. Sums of integers wrap around, as the planner's own do.
fn array(kind: &DataType, numbers: impl Iterator<Item = Option<Number>>) -> Result<ArrayRef> {
    let whole = |number| match number {
        Number::Int(number) => number,
        Number::Float(number) => number as i128,
    };
    Ok(match kind {
        DataType::Float64 => {
            let float = |number| match number {
                Number::Int(number) => number as f64,
                Number::Float(number) => number,
            };
            Arc::new(numbers.map(|number| number.map(float)).collect::<Float64Array>())
        }
        DataType::Int64 => Arc::new(numbers.map(|n| n.map(|n| whole(n) as i64)).collect::<Int64Array>()),
        DataType::UInt64 => Arc::new(numbers.map(|n| n.map(|n| whole(n) as u64)).collect::<UInt64Array>()),
        other => return internal_err!("an aggregate of numbers whose state is {other}"),
    })
}
