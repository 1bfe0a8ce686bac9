//! `first(value, time)` and `last(value, time)`: the value at the smallest or largest time; NULL values do not count.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, Signature, Volatility};

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct FirstLast {
    last: bool,
    signature: Signature,
}

impl FirstLast {
    pub(super) fn first() -> Self {
        Self { last: false, signature: Signature::user_defined(Volatility::Immutable) }
    }

    pub(super) fn last() -> Self {
        Self { last: true, ..Self::first() }
    }
}

impl AggregateUDFImpl for FirstLast {
    fn name(&self) -> &str {
        if self.last { "last" } else { "first" }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        match types {
            [_, DataType::Timestamp(..) | DataType::Int64] => Ok(types.to_vec()),
            _ => plan_err!(
                "{}(value, time) takes a value and a time, for example last(temperature, time)",
                self.name()
            ),
        }
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        types.first().cloned().map_or_else(|| plan_err!("a value is missing"), Ok)
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        let value = ScalarValue::try_from(args.return_field.data_type())?;
        Ok(Box::new(Extreme { last: self.last, value, time: None }))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let Some(value) = args.input_fields.first() else { return plan_err!("a value is missing") };
        let field =
            |name: &str, kind: DataType| Arc::new(Field::new(format_state_name(args.name, name), kind, true));
        Ok(vec![field("value", value.data_type().clone()), field("time", DataType::Int64)])
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

/// The value at the most extreme time so far.
#[derive(Debug)]
struct Extreme {
    last: bool,
    value: ScalarValue,
    time: Option<i64>,
}

impl Extreme {
    fn step(&mut self, values: &ArrayRef, times: &ArrayRef) -> Result<()> {
        let times = cast(times, &DataType::Int64)?;
        let times = times.as_primitive::<Int64Type>();
        let mut best: Option<usize> = None;
        for row in (0..times.len()).filter(|row| times.is_valid(*row) && values.is_valid(*row)) {
            let time = times.value(row);
            // Among equal times the first row seen counts for first(), the last one for last().
            if self.time.is_none_or(|known| if self.last { time >= known } else { time < known }) {
                self.time = Some(time);
                best = Some(row);
            }
        }
        if let Some(row) = best {
            self.value = ScalarValue::try_from_array(values, row)?.compacted();
        }
        Ok(())
    }
}

impl Accumulator for Extreme {
    fn update_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        match arrays {
            [values, times] => self.step(values, times),
            _ => exec_err!("a value and a time are expected"),
        }
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.value.clone(), ScalarValue::Int64(self.time)])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(self.value.clone())
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.value.size()
    }
}
