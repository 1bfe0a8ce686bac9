//! SQL functions of a time-series database.

mod first_last;
mod time_bucket;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};

/// All scalar functions.
#[must_use]
pub fn scalars() -> Vec<ScalarUDF> {
    vec![ScalarUDF::from(time_bucket::TimeBucket::new())]
}

/// All aggregate functions.
#[must_use]
pub fn aggregates() -> Vec<AggregateUDF> {
    vec![
        AggregateUDF::from(first_last::FirstLast::first()),
        AggregateUDF::from(first_last::FirstLast::last()),
    ]
}
