//! `time_bucket(width, time [, origin])`: the start of the bucket that a time falls into.
//!
//! Widths are '5 minutes', `INTERVAL '1 day'` or whole months; buckets count from the origin, 2000-01-01 for months
//! and 1970-01-01 otherwise.

use std::sync::Arc;

use arrow::array::{AsArray, TimestampNanosecondArray};
use arrow::compute::kernels::cast_utils::parse_interval_month_day_nano;
use arrow::datatypes::{DataType, IntervalUnit, TimeUnit, TimestampNanosecondType};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

const DAY: i64 = 86_400_000_000_000;

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct TimeBucket {
    signature: Signature,
}

impl TimeBucket {
    pub(super) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

/// How wide buckets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Nanos(i64),
    Months(i32),
}

fn nanoseconds() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))
}

impl ScalarUDFImpl for TimeBucket {
    fn name(&self) -> &str {
        "time_bucket"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let (Some(width), Some(_), 2..=3) = (types.first(), types.get(1), types.len()) else {
            return plan_err!(
                "time_bucket takes a width, a time and perhaps an origin, got {} arguments",
                types.len()
            );
        };
        let width = match width {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
            DataType::Interval(_) => DataType::Interval(IntervalUnit::MonthDayNano),
            other => return plan_err!("time_bucket: the width is '5 minutes' or an INTERVAL, not {other}"),
        };
        let mut coerced = vec![width];
        coerced.resize(types.len(), nanoseconds());
        Ok(coerced)
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(nanoseconds())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let mut values = args.args.into_iter();
        let (Some(width), Some(time)) = (values.next(), values.next()) else {
            return exec_err!("time_bucket takes a width and a time");
        };
        let width = width_of(&width)?;
        let origin = match values.next() {
            None => None,
            Some(ColumnarValue::Scalar(ScalarValue::TimestampNanosecond(origin, _))) => origin,
            Some(_) => return exec_err!("time_bucket: the origin must be a literal"),
        };
        match time {
            ColumnarValue::Scalar(ScalarValue::TimestampNanosecond(time, zone)) => {
                let start = time.map(|time| bucket(width, time, origin));
                Ok(ColumnarValue::Scalar(ScalarValue::TimestampNanosecond(start, zone)))
            }
            ColumnarValue::Array(times) => {
                let Some(times) = times.as_primitive_opt::<TimestampNanosecondType>() else {
                    return exec_err!("time_bucket: the time is {}", times.data_type());
                };
                let starts: TimestampNanosecondArray = times.unary(|time| bucket(width, time, origin));
                Ok(ColumnarValue::Array(Arc::new(
                    starts.with_timezone_opt(times.timezone().map(Arc::<str>::from)),
                )))
            }
            ColumnarValue::Scalar(other) => exec_err!("time_bucket: the time is {}", other.data_type()),
        }
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        // A bucket's start never falls while the time rises.
        Ok(inputs.get(1).map_or(SortProperties::Unordered, |time| time.sort_properties))
    }
}

fn width_of(width: &ColumnarValue) -> Result<Width> {
    let interval = match width {
        ColumnarValue::Scalar(ScalarValue::Utf8(Some(text))) => parse_interval_month_day_nano(text)?,
        ColumnarValue::Scalar(ScalarValue::IntervalMonthDayNano(Some(interval))) => *interval,
        _ => return exec_err!("time_bucket: the width must be a literal such as '5 minutes'"),
    };
    let nanos =
        i64::from(interval.days).checked_mul(DAY).and_then(|days| days.checked_add(interval.nanoseconds));
    match (interval.months, nanos) {
        (0, Some(nanos)) if nanos > 0 => Ok(Width::Nanos(nanos)),
        (months, Some(0)) if months > 0 => Ok(Width::Months(months)),
        _ => exec_err!("time_bucket: the width is a positive length of time, or whole months"),
    }
}

fn bucket(width: Width, time: i64, origin: Option<i64>) -> i64 {
    match width {
        Width::Nanos(nanos) => {
            let origin = origin.unwrap_or_default();
            time.saturating_sub(time.wrapping_sub(origin).rem_euclid(nanos))
        }
        Width::Months(months) => {
            let origin = origin.map_or(2000 * 12, month_of);
            let month = month_of(time);
            start_of_month(month - (month - origin).rem_euclid(i64::from(months)))
        }
    }
}

/// Months since year 0, by Howard Hinnant's civil-from-days.
fn month_of(time: i64) -> i64 {
    let days = time.div_euclid(DAY) + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 2 } else { from_march - 10 };
    (year_of_era + era * 400 + i64::from(month <= 1)) * 12 + month
}

/// Nanoseconds of a month's first instant, by Howard Hinnant's days-from-civil.
fn start_of_month(months: i64) -> i64 {
    let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let from_march = (month + 9) % 12;
    let of_year = (153 * from_march + 2) / 5;
    let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
    (era * 146_097 + of_era - 719_468).saturating_mul(DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_floor_before_the_epoch_too() {
        assert_eq!(bucket(Width::Nanos(10), -1, None), -10);
        assert_eq!(bucket(Width::Nanos(10), 25, Some(3)), 23);
    }

    #[test]
    fn months_start_on_their_first_day() {
        let secs = |time: i64| time * 1_000_000_000;
        // 2024-02-29T12:00Z -> 2024-02-01; quarters count from January.
        assert_eq!(bucket(Width::Months(1), secs(1_709_208_000), None), secs(1_706_745_600));
        assert_eq!(bucket(Width::Months(3), secs(1_709_208_000), None), secs(1_704_067_200));
        assert_eq!(bucket(Width::Months(12), secs(-1), None), secs(-31_536_000));
    }
}
