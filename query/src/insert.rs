//! INSERT: what becomes of DataFusion's plan of it, and the sink that stores its rows.
//!
//! # Invariants
//! - A column that the statement does not name never reaches the sink: it is absent, not NULL.
//! - A whole-number column takes whole numbers: a fraction fails the statement, it is not cut off.
//! - All rows of a statement are one commit.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{ArrowPrimitiveType, DataType, Float64Type, Int64Type, SchemaRef, UInt64Type};
use async_trait::async_trait;
use datafusion::common::{DFSchema, Result as DataFusionResult};
use datafusion::datasource::sink::DataSink;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::expr::{Alias, Cast};
use datafusion::logical_expr::{
    ColumnarValue, DmlStatement, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Projection,
    ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Values, Volatility,
};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType};
use futures::StreamExt;
use sonde_engine::{Engine, Table, Timestamp};

use crate::error::{Error, Result};
use crate::rows::{Nulls, write_rows};

/// DataFusion's plan of an INSERT gives every column of the table, cast to its type; this leaves the columns that the
/// statement names, and casts to whole numbers that fail where they would lose something. Other plans stay as they are.
pub(crate) fn as_named(plan: LogicalPlan) -> Result<LogicalPlan> {
    let LogicalPlan::Dml(DmlStatement { table_name, target, op, input, .. }) = plan else { return Ok(plan) };
    let LogicalPlan::Projection(Projection { mut expr, input, .. }) = Arc::unwrap_or_clone(input) else {
        return Err(Error::Internal("the plan of an INSERT has no projection".into()));
    };
    expr.retain(|expr| source_column(expr).is_some());
    let source = whole_values(Arc::unwrap_or_clone(input), &expr)?;
    let expr: Vec<Expr> =
        expr.into_iter().map(|expr| whole_alias(expr, source.schema())).collect::<Result<_>>()?;
    let input = LogicalPlanBuilder::from(source).project(expr)?.build()?;
    Ok(LogicalPlan::Dml(DmlStatement::new(table_name, target, op, Arc::new(input))))
}

/// The column of the source that an expression takes over; none for what fills a column that was not named.
fn source_column(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Alias(alias) => source_column(&alias.expr),
        Expr::Cast(cast) => source_column(&cast.expr),
        Expr::Column(column) => Some(&column.name),
        _ => None,
    }
}

/// Casts of literal rows, which DataFusion makes one by one; `expr` says which of their columns is for which of the
/// table.
fn whole_values(source: LogicalPlan, expr: &[Expr]) -> Result<LogicalPlan> {
    let LogicalPlan::Values(Values { schema, values }) = source else { return Ok(source) };
    let target = |name: &str| {
        expr.iter().find_map(|expr| match expr {
            Expr::Alias(alias) if source_column(expr) == Some(name) => Some(alias.name.clone()),
            _ => None,
        })
    };
    let targets: Vec<String> =
        schema.fields().iter().map(|field| target(field.name()).unwrap_or_default()).collect();
    let nothing = DFSchema::empty();
    let whole_row = |row: Vec<Expr>| {
        let cells = row.into_iter().zip(&targets).map(|(expr, target)| whole(expr, target, &nothing));
        cells.collect::<Result<Vec<Expr>>>()
    };
    let values = values.into_iter().map(whole_row).collect::<Result<Vec<Vec<Expr>>>>()?;
    Ok(LogicalPlan::Values(Values { schema, values }))
}

pub(crate) fn whole_alias(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    match expr {
        Expr::Alias(Alias { expr, name, .. }) => Ok(whole(*expr, &name, schema)?.alias(name)),
        other => Ok(other),
    }
}

/// Replaces a cast of numbers with fractions to whole numbers by one that checks.
fn whole(expr: Expr, column: &str, schema: &DFSchema) -> Result<Expr> {
    let Expr::Cast(Cast { expr, field }) = expr else { return Ok(expr) };
    let to_whole = matches!(field.data_type(), DataType::Int64 | DataType::UInt64);
    if !to_whole || !has_fractions(&expr.get_type(schema)?) {
        return Ok(Expr::Cast(Cast { expr, field }));
    }
    let check = Whole {
        column: column.to_owned(),
        to: field.data_type().clone(),
        signature: Signature::any(1, Volatility::Immutable),
    };
    Ok(ScalarUDF::from(check).call(vec![*expr]))
}

fn has_fractions(kind: &DataType) -> bool {
    match kind {
        DataType::Float16 | DataType::Float32 | DataType::Float64 => true,
        DataType::Decimal32(_, scale)
        | DataType::Decimal64(_, scale)
        | DataType::Decimal128(_, scale)
        | DataType::Decimal256(_, scale) => *scale > 0,
        _ => false,
    }
}

/// A cast to whole numbers that loses nothing.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Whole {
    /// The column that the number is for.
    column: String,
    /// `Int64` or `UInt64`.
    to: DataType,
    signature: Signature,
}

impl Whole {
    fn number<T: ArrowPrimitiveType>(
        &self,
        numbers: &ArrayRef,
        fits: impl Fn(f64) -> bool,
        convert: impl Fn(f64) -> T::Native,
    ) -> DataFusionResult<ArrayRef> {
        let numbers = numbers.as_primitive::<Float64Type>();
        let whole = numbers.try_unary::<_, T, DataFusionError>(|number| {
            if number.fract() == 0.0 && fits(number) {
                return Ok(convert(number));
            }
            let kind = if self.to == DataType::Int64 { "BIGINT" } else { "BIGINT UNSIGNED" };
            let text = format!("column {} is {kind}, found number {number}; nothing was stored", self.column);
            Err(Error::Invalid(text).into_datafusion())
        })?;
        Ok(Arc::new(whole))
    }
}

impl ScalarUDFImpl for Whole {
    fn name(&self) -> &str {
        "whole_number"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> DataFusionResult<DataType> {
        Ok(self.to.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        let [numbers] = args.args.as_slice() else {
            return Err(Error::Internal("a cast takes one value".into()).into_datafusion());
        };
        let numbers = cast(&numbers.to_array(args.number_rows)?, &DataType::Float64)?;
        // The bounds are powers of two: exact, and the upper one the first number that does not fit.
        let whole = if self.to == DataType::Int64 {
            let bound = -(i64::MIN as f64);
            self.number::<Int64Type>(
                &numbers,
                |number| (-bound..bound).contains(&number),
                |number| number as i64,
            )?
        } else {
            let bound = 2.0 * -(i64::MIN as f64);
            self.number::<UInt64Type>(
                &numbers,
                |number| (0.0..bound).contains(&number),
                |number| number as u64,
            )?
        };
        Ok(ColumnarValue::Array(whole))
    }
}

/// Takes the rows of an INSERT.
#[derive(Debug)]
pub(crate) struct RowSink {
    engine: Engine,
    table: Arc<Table>,
    /// Of the rows that come, not of the table: what is not named does not come.
    schema: SchemaRef,
}

impl RowSink {
    pub(crate) fn new(engine: Engine, table: Arc<Table>, schema: SchemaRef) -> Self {
        Self { engine, table, schema }
    }
}

impl DisplayAs for RowSink {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RowSink: table={}", self.table.full_name())
    }
}

#[async_trait]
impl DataSink for RowSink {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    async fn write_all(
        &self,
        mut data: SendableRecordBatchStream,
        _context: &Arc<TaskContext>,
    ) -> DataFusionResult<u64> {
        let external = |error: sonde_engine::Error| DataFusionError::External(Box::new(error));
        let mut builder = self.engine.batch();
        builder.begin_message();
        let everything = Timestamp::MIN..=Timestamp::from_nanos(i64::MAX - 1);
        let mut rows = 0;
        while let Some(batch) = data.next().await {
            let batch = batch?;
            let arrival = || self.engine.arrival();
            let errors =
                write_rows(&mut builder, &self.table, &batch, &arrival, &everything, Nulls::Explicit);
            let errors = errors.map_err(Error::into_datafusion)?;
            if let Some(error) = errors.first() {
                let text =
                    format!("row {} of INSERT: {}; nothing was stored", rows + error.row, error.reason);
                return Err(Error::Invalid(text).into_datafusion());
            }
            rows += batch.num_rows();
        }
        if let Some(batch) = builder.finish() {
            let engine = self.engine.clone();
            let receipt = tokio::task::spawn_blocking(move || engine.write(batch)).await;
            receipt.map_err(|error| DataFusionError::External(Box::new(error)))?.await.map_err(external)?;
        }
        Ok(rows as u64)
    }
}
