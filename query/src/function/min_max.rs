//! `min` and `max`: the planner's own, but of floats, where every NaN is greater than every number in every plan.
//!
//! The planner's own keep, where they group rows, a NaN until the next value comes, so their answer depends on the order of
//! the rows; where they do not, they tell NaNs by their sign.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Float32Type, Float64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::functions_aggregate::min_max::{max_udaf, min_udaf};
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, GroupsAccumulator, ReversedUDAF,
    SetMonotonicity, Signature, StatisticsArgs,
};
use datafusion_functions_aggregate_common::aggregate::groups_accumulator::prim_op::PrimitiveGroupsAccumulator;

/// Either function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct MinMax {
    is_max: bool,
    /// The planner's own.
    own: Arc<AggregateUDF>,
}

impl MinMax {
    pub(super) fn min() -> Self {
        Self { is_max: false, own: min_udaf() }
    }

    pub(super) fn max() -> Self {
        Self { is_max: true, own: max_udaf() }
    }

    /// Groups of floats; `lowest` is less than every other and `highest` is a NaN.
    fn groups<T>(&self, kind: &DataType, lowest: T::Native, highest: T::Native) -> Box<dyn GroupsAccumulator>
    where
        T: ArrowPrimitiveType + Send,
        T::Native: Into<f64>,
    {
        if self.is_max {
            let larger = |known: &mut T::Native, value: T::Native| {
                if place(value) > place(*known) {
                    *known = value;
                }
            };
            return Box::new(
                PrimitiveGroupsAccumulator::<T, _>::new(kind, larger).with_starting_value(lowest),
            );
        }
        let smaller = |known: &mut T::Native, value: T::Native| {
            if place(value) < place(*known) {
                *known = value;
            }
        };
        Box::new(PrimitiveGroupsAccumulator::<T, _>::new(kind, smaller).with_starting_value(highest))
    }
}

/// Where a float stands among all: in the total order of IEEE 754, but every NaN above all numbers.
fn place(value: impl Into<f64>) -> i64 {
    let value = value.into();
    let bits = value.to_bits().cast_signed();
    let magnitude = ((bits >> 63).cast_unsigned() >> 1).cast_signed();
    if value.is_nan() { i64::MAX } else { bits ^ magnitude }
}

impl AggregateUDFImpl for MinMax {
    fn name(&self) -> &str {
        self.own.name()
    }

    fn signature(&self) -> &Signature {
        self.own.signature()
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.own.inner().coerce_types(types)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.own.inner().return_type(types)
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(OneNan(self.own.inner().accumulator(args)?)))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(OneNan(self.own.inner().create_sliding_accumulator(args)?)))
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        self.own.inner().groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        let kind = args.return_field.data_type().clone();
        Ok(match kind {
            DataType::Float64 => self.groups::<Float64Type>(&kind, f64::NEG_INFINITY, f64::NAN),
            DataType::Float32 => self.groups::<Float32Type>(&kind, f32::NEG_INFINITY, f32::NAN),
            _ => self.own.inner().create_groups_accumulator(args)?,
        })
    }

    fn is_descending(&self) -> Option<bool> {
        self.own.inner().is_descending()
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.own.inner().order_sensitivity()
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        self.own.inner().reverse_expr()
    }

    fn value_from_stats(&self, statistics: &StatisticsArgs<'_>) -> Option<ScalarValue> {
        self.own.inner().value_from_stats(statistics)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.own.inner().documentation()
    }

    fn set_monotonicity(&self, kind: &DataType) -> SetMonotonicity {
        self.own.inner().set_monotonicity(kind)
    }
}

/// The planner's own accumulator of one group or window. It goes by the total order of IEEE 754, which has positive NaNs
/// alone above all numbers, so that is what every NaN becomes.
#[derive(Debug)]
struct OneNan(Box<dyn Accumulator>);

fn one_nan(arrays: &[ArrayRef]) -> Vec<ArrayRef> {
    let positive = |array: &ArrayRef| match array.data_type() {
        DataType::Float64 => positive::<Float64Type>(array, f64::NAN),
        DataType::Float32 => positive::<Float32Type>(array, f32::NAN),
        _ => Arc::clone(array),
    };
    arrays.iter().map(positive).collect()
}

/// The same floats with `nan` in the place of every NaN; the array itself where there is none.
fn positive<T>(array: &ArrayRef, nan: T::Native) -> ArrayRef
where
    T: ArrowPrimitiveType,
    T::Native: Into<f64>,
{
    let floats = array.as_primitive::<T>();
    let is_nan = |value: T::Native| value.into().is_nan();
    if !floats.values().iter().fold(false, |any, value| any | is_nan(*value)) {
        return Arc::clone(array);
    }
    let floats: PrimitiveArray<T> = floats.unary(|value| if is_nan(value) { nan } else { value });
    Arc::new(floats)
}

impl Accumulator for OneNan {
    fn update_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        self.0.update_batch(&one_nan(arrays))
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.0.merge_batch(&one_nan(states))
    }

    fn retract_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        self.0.retract_batch(&one_nan(arrays))
    }

    fn supports_retract_batch(&self) -> bool {
        self.0.supports_retract_batch()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.0.state()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.0.evaluate()
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.0.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nan_stands_above_all_numbers() {
        let ordered = [f64::NEG_INFINITY, -1.5, -0.0, 0.0, 1e-300, 7.0, f64::INFINITY, f64::NAN];
        assert!(ordered.is_sorted_by(|a, b| place(*a) < place(*b)));
        assert_eq!(place(-f64::NAN), place(f64::NAN));
        assert!(place(f32::MAX) < place(-f32::NAN));
    }
}
