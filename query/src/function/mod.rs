//! SQL functions of a time-series database.

mod first_last;
mod min_max;
mod time_bucket;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};

/// All scalar functions.
#[must_use]
pub fn scalars() -> Vec<ScalarUDF> {
    vec![ScalarUDF::from(time_bucket::TimeBucket::new())]
}

/// All aggregate functions. `min` and `max` take the place of the planner's own.
#[must_use]
pub fn aggregates() -> Vec<AggregateUDF> {
    vec![
        AggregateUDF::from(first_last::FirstLast::first()),
        AggregateUDF::from(first_last::FirstLast::last()),
        AggregateUDF::from(min_max::MinMax::min()),
        AggregateUDF::from(min_max::MinMax::max()),
    ]
}
