//! Rows as the messages that they came from: the mapping of a source, read backwards.
//!
//! # Invariants
//! - What a row becomes, its source would turn into the same row: topic, tags, fields and time.
//! - A row whose topic is not certain becomes nothing; a source of which that is so for all rows is named with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type, TimestampNanosecondType, UInt64Type};
use sonde_engine::backup::rfc3339;
use sonde_engine::{
    Catalog, ColumnId, ColumnRole, EXACT_INTEGER, FieldValue, PhysicalType, TIME_NAME, Table, TableId,
    TableKind, TagFilter, Timestamp,
};
use sonde_proto::mqtt::{filter_matches, validate_topic};
use sonde_query::statement::{SourceSpec, TimeUnit};

use crate::decode::time_of_number;
use crate::source::{Mapping, Source, Sources};

/// The column in which the default source keeps the topic.
const TOPIC: &str = "topic";

/// How rows of a table become messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inverse {
    pub(super) table: TableId,
    /// Rows of the default source, which have their topic.
    by_topic: bool,
    /// Rows of a source whose tags are its topic's levels.
    pattern: Option<Pattern>,
}

/// A source's filter and time, to be read backwards.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    levels: Vec<Level>,
    /// The key of the time.
    time: String,
    unit: Option<TimeUnit>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Level {
    Text(String),
    /// The value of this column.
    Column(String),
}

/// A source whose rows cannot become messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) source: String,
    pub(super) why: &'static str,
}

/// How rows become messages of a filter, and which sources of such messages are left out.
pub(super) fn inverses(catalog: &Catalog, sources: &Sources, filter: &str) -> (Vec<Inverse>, Vec<LeftOut>) {
    let (mut by_table, mut default) = (BTreeMap::<TableId, Vec<(&Source, &SourceSpec)>>::new(), None);
    for source in sources.iter() {
        match source.mapping() {
            Mapping::Default => default = Some(source),
            Mapping::Json(spec) => {
                let database = spec.table.database_or(&source.database);
                if let Some(table) = catalog.exact_table(database, &spec.table.name) {
                    by_table.entry(table.id()).or_default().push((source, spec));
                }
            }
        }
    }
    let (mut found, mut left_out) = (BTreeMap::new(), Vec::new());
    for (id, writers) in &by_table {
        let is_wanted = |(_, spec): &&(&Source, &SourceSpec)| overlap(filter, &spec.mqtt_filter());
        for (source, spec) in writers.iter().filter(is_wanted) {
            let is_points =
                catalog.table_by_id(*id).is_some_and(|table| table.def().kind == TableKind::Points);
            let pattern = match writers.len() {
                _ if !is_points => Err("its table is one of events"),
                1 => pattern_of(spec),
                _ => Err("another source writes to its table, and their rows look alike"),
            };
            match pattern {
                Ok(pattern) => {
                    let inverse = Inverse { table: *id, by_topic: false, pattern: Some(pattern) };
                    found.insert(*id, inverse);
                }
                Err(why) => left_out.push(LeftOut { source: source.name.clone(), why }),
            }
        }
    }
    for table in catalog.tables().filter(|table| default.is_some_and(|d| is_of_default(d, table, filter))) {
        let is_level = |level: &Level| matches!(level, Level::Column(name) if name == TOPIC);
        let inverse =
            found.entry(table.id()).or_insert(Inverse { table: table.id(), by_topic: false, pattern: None });
        // A level of that name is not the whole topic.
        inverse.by_topic = !inverse.pattern.iter().flat_map(|pattern| &pattern.levels).any(is_level);
    }
    (found.into_values().collect(), left_out)
}

/// Whether a table has rows of the default source that a filter may match.
fn is_of_default(source: &Source, table: &Table, filter: &str) -> bool {
    let def = table.def();
    let has_topic = table.exact(TOPIC).is_some_and(|column| column.kind == PhysicalType::Text);
    let is_level = |level: &str| level == "+" || level == "#" || level == def.name;
    has_topic
        && def.kind == TableKind::Points
        && def.database == source.database
        && filter.split('/').next().is_some_and(is_level)
}

fn pattern_of(spec: &SourceSpec) -> Result<Pattern, &'static str> {
    let mut levels: Vec<Level> = spec.filter.split('/').map(|level| Level::Text(level.to_owned())).collect();
    let mut names = BTreeSet::new();
    for (place, name) in spec.topic_tags() {
        if !names.insert(name) {
            return Err("two levels of its filter have one name");
        }
        if let Some(level) = levels.get_mut(place) {
            *level = Level::Column(name.to_owned());
        }
    }
    if levels.iter().any(|level| matches!(level, Level::Text(text) if text == "+" || text == "#")) {
        return Err("its filter has + or #: no column has those levels of the topic");
    }
    let time = spec.time.clone().unwrap_or_else(|| TIME_NAME.to_owned());
    Ok(Pattern { levels, time, unit: spec.unit })
}

/// Whether a topic can match both filters.
fn overlap(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        match (a.next(), b.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some(x), Some(y)) if x == "+" || y == "+" || x == y => {}
            _ => return false,
        }
    }
}

/// An `Inverse` for the columns that a table has in a snapshot.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) table: Arc<Table>,
    /// What is to be scanned: all columns.
    pub(super) columns: Vec<ColumnId>,
    pub(super) filters: Vec<TagFilter>,
    /// The names of the columns, as keys of JSON objects.
    keys: Vec<String>,
    roles: Vec<ColumnRole>,
    /// The place of the time.
    time: usize,
    /// The place of the column that has the whole topic.
    topic: Option<usize>,
    pattern: Option<(Vec<BoundLevel>, String, Option<TimeUnit>)>,
    /// Columns that are no items of a payload of the pattern.
    beside: Vec<usize>,
}

#[derive(Debug)]
enum BoundLevel {
    Text(String),
    Column(usize),
}

impl Inverse {
    /// `None` where the table has no rows that could become messages of the filter.
    pub(super) fn bind(&self, table: &Arc<Table>, filter: &str) -> Option<Bound> {
        let columns = &table.def().columns;
        let text = |name: &str| {
            let place = columns.iter().position(|column| column.name == name)?;
            columns.get(place).filter(|column| column.kind == PhysicalType::Text).map(|_| place)
        };
        let topic = if self.by_topic { text(TOPIC) } else { None };
        let pattern = self.pattern.as_ref().and_then(|pattern| {
            let bind = |level: &Level| match level {
                Level::Text(text) => Some(BoundLevel::Text(text.clone())),
                Level::Column(name) => text(name).map(BoundLevel::Column),
            };
            let levels = pattern.levels.iter().map(bind).collect::<Option<Vec<_>>>()?;
            Some((levels, pattern.time.clone(), pattern.unit))
        });
        if topic.is_none() && pattern.is_none() {
            return None;
        }
        let mut beside = Vec::new();
        if let Some((levels, time, _)) = &pattern {
            let of_topic = levels.iter().filter_map(|level| match level {
                BoundLevel::Column(place) => Some(*place),
                BoundLevel::Text(_) => None,
            });
            beside = of_topic.chain(columns.iter().position(|column| column.name == *time)).collect();
        }
        let mut bound = Bound {
            table: Arc::clone(table),
            columns: columns.iter().map(|column| column.id).collect(),
            filters: Vec::new(),
            keys: columns.iter().map(|column| format!("{}:", json_text(&column.name))).collect(),
            roles: columns.iter().map(|column| column.role).collect(),
            time: columns.iter().position(|column| column.role == ColumnRole::Time)?,
            topic,
            pattern,
            beside,
        };
        bound.filters = bound.tag_filters(filter);
        Some(bound)
    }
}

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A level of a topic, as a column has it; none where it cannot have been one.
fn is_level(value: &str) -> bool {
    !value.contains(['/', '+', '#', '\0'])
}

impl Bound {
    /// The series that the filter leaves.
    fn tag_filters(&self, filter: &str) -> Vec<TagFilter> {
        let one = |place: usize, value: &str| {
            let column = *self.columns.get(place)?;
            let is_tag = self.roles.get(place) == Some(&ColumnRole::Tag);
            is_tag.then(|| TagFilter { column, values: BTreeSet::from([Some(value.to_owned())]) })
        };
        match (self.topic, &self.pattern) {
            (Some(place), None) if is_exact(filter) => one(place, filter).into_iter().collect(),
            (None, Some((levels, ..))) => {
                let pairs = filter.split('/').take_while(|level| *level != "#").zip(levels);
                let wanted = pairs.filter_map(|(wanted, level)| match level {
                    BoundLevel::Column(place) if wanted != "+" => one(*place, wanted),
                    _ => None,
                });
                wanted.collect()
            }
            _ => Vec::new(),
        }
    }

    /// Topic and payload of the message that a row is, if it is one of the filter.
    pub(super) fn row(&self, batch: &RecordBatch, row: usize, filter: &str) -> Option<(String, Vec<u8>)> {
        let text = |place: usize| {
            let array = batch.column(place).as_string_opt::<i32>()?;
            array.is_valid(row).then(|| array.value(row))
        };
        let first = Some(self.table.def().name.as_str());
        if let Some(place) = self.topic
            && let Some(topic) = text(place).filter(|topic| topic.split('/').next() == first)
        {
            let is_wanted =
                !topic.starts_with('$') && validate_topic(topic).is_ok() && filter_matches(filter, topic);
            let payload = || self.payload(batch, row, &[place], TIME_NAME, None);
            return if is_wanted { payload().map(|payload| (topic.to_owned(), payload)) } else { None };
        }
        let (levels, time, unit) = self.pattern.as_ref()?;
        let mut topic = String::new();
        for (number, level) in levels.iter().enumerate() {
            if number > 0 {
                topic.push('/');
            }
            topic.push_str(match level {
                BoundLevel::Text(text) => text,
                BoundLevel::Column(place) => text(*place).filter(|value| is_level(value))?,
            });
        }
        if validate_topic(&topic).is_err() || !filter_matches(filter, &topic) {
            return None;
        }
        Some((topic, self.payload(batch, row, &self.beside, time, *unit)?))
    }

    /// The time of a row.
    pub(super) fn time(&self, batch: &RecordBatch, row: usize) -> Option<Timestamp> {
        let times = batch.column(self.time).as_primitive_opt::<TimestampNanosecondType>()?;
        Some(Timestamp::from_nanos(times.value(row)))
    }

    /// A row as one JSON object; `None` where it has no field.
    fn payload(
        &self,
        batch: &RecordBatch,
        row: usize,
        beside: &[usize],
        time: &str,
        unit: Option<TimeUnit>,
    ) -> Option<Vec<u8>> {
        let mut out = vec![b'{'];
        out.extend_from_slice(json_text(time).as_bytes());
        out.push(b':');
        out.extend_from_slice(time_text(self.time(batch, row)?, unit).as_bytes());
        let mut has_field = false;
        for (place, (key, role)) in self.keys.iter().zip(&self.roles).enumerate() {
            if *role == ColumnRole::Time || beside.contains(&place) {
                continue;
            }
            let start = out.len();
            out.push(b',');
            out.extend_from_slice(key.as_bytes());
            if append_cell(batch.column(place).as_ref(), row, &mut out) {
                has_field |= *role == ColumnRole::Field;
            } else {
                out.truncate(start);
            }
        }
        out.push(b'}');
        has_field.then_some(out)
    }

    /// Which point a row is: its tags, in the order of the table's.
    pub(super) fn point(&self, batch: &RecordBatch, row: usize) -> Vec<u8> {
        let mut key = Vec::new();
        let tags = self.roles.iter().enumerate().filter(|(_, role)| **role == ColumnRole::Tag);
        for (place, _) in tags {
            let array = batch.column(place).as_string_opt::<i32>();
            append_tag(array.filter(|array| array.is_valid(row)).map(|array| array.value(row)), &mut key);
        }
        key
    }
}

/// Appends a tag to what tells the series of a table apart.
pub(super) fn append_tag(value: Option<&str>, key: &mut Vec<u8>) {
    match value {
        None => key.push(0),
        Some(value) => {
            key.push(1);
            key.extend_from_slice(&(value.len() as u64).to_le_bytes());
            key.extend_from_slice(value.as_bytes());
        }
    }
}

/// Whether a filter is a topic.
fn is_exact(filter: &str) -> bool {
    !filter.contains(['+', '#'])
}

/// Appends a value as JSON; `false`, where there is none that JSON has.
fn append_cell(array: &dyn Array, row: usize, out: &mut Vec<u8>) -> bool {
    if array.is_null(row) {
        return false;
    }
    // Writing to a list does not fail.
    if let Some(array) = array.as_primitive_opt::<Float64Type>() {
        let value = array.value(row);
        return value.is_finite() && write!(out, "{}", float_text(value)).is_ok();
    }
    if let Some(array) = array.as_primitive_opt::<Int64Type>() {
        return write!(out, "{}", array.value(row)).is_ok();
    }
    if let Some(array) = array.as_primitive_opt::<UInt64Type>() {
        return write!(out, "{}", array.value(row)).is_ok();
    }
    if let Some(array) = array.as_boolean_opt() {
        return write!(out, "{}", array.value(row)).is_ok();
    }
    array.as_string_opt::<i32>().is_some_and(|array| serde_json::to_writer(out, array.value(row)).is_ok())
}

/// A number as JSON; one without a fraction as an integer, as devices send it.
fn float_text(value: f64) -> String {
    let is_whole = value.fract() == 0.0 && value.abs() <= EXACT_INTEGER as f64;
    if is_whole && !(value == 0.0 && value.is_sign_negative()) {
        return (value as i64).to_string();
    }
    serde_json::Value::from(value).to_string()
}

/// A time as its source reads it: a number of its unit where that is exact, else RFC 3339.
fn time_text(time: Timestamp, unit: Option<TimeUnit>) -> String {
    let nanos = time.as_nanos();
    if let Some(unit) = unit {
        if nanos % unit.nanos() == 0 {
            return (nanos / unit.nanos()).to_string();
        }
        let number = nanos as f64 / unit.nanos() as f64;
        if time_of_number(&FieldValue::Float(number), Some(unit)) == Ok(time) {
            return serde_json::Value::from(number).to_string();
        }
    }
    let text = rfc3339(time);
    let short = text.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
    // Zeros of whole seconds stay.
    let short = if text.contains('.') { short } else { text.trim_end_matches('Z') };
    format!("\"{short}Z\"")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn times_come_back_as_they_are() {
        for nanos in [
            0,
            1_700_000_000_000_000_000,
            1_700_000_000_120_000_000,
            1_700_000_000_123_456_789,
            1_700_000_000_000_000_001,
            -1_500_000_000,
        ] {
            let time = Timestamp::from_nanos(nanos);
            for unit in [
                None,
                Some(TimeUnit::Second),
                Some(TimeUnit::Millisecond),
                Some(TimeUnit::Microsecond),
                Some(TimeUnit::Nanosecond),
            ] {
                let text = time_text(time, unit);
                let value = match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
                    Some(text) => FieldValue::Text(text.to_owned().into()),
                    None => text
                        .parse()
                        .map_or_else(|_| FieldValue::Float(text.parse().unwrap()), FieldValue::Int),
                };
                assert_eq!(time_of_number(&value, unit), Ok(time), "{text} {unit:?}");
            }
        }
        assert_eq!(time_text(Timestamp::from_secs(1_700_000_000), None), "\"2023-11-14T22:13:20Z\"");
        assert_eq!(
            time_text(Timestamp::from_secs(1_700_000_000), Some(TimeUnit::Millisecond)),
            "1700000000000"
        );
    }

    #[test]
    fn numbers_are_what_devices_send() {
        for (value, text) in [(5.0, "5"), (-0.0, "-0.0"), (0.5, "0.5"), (-3.0, "-3")] {
            assert_eq!(float_text(value), text);
        }
        assert_eq!(float_text(1e300).parse(), Ok(1e300));
    }

    #[test]
    fn filters_overlap() {
        for (a, b, meet) in [
            ("a/+", "a/b", true),
            ("a/#", "a", true),
            ("#", "x/{y}", true),
            ("a/b", "a/+/c", false),
            ("a/b/c", "+/b/+", true),
            ("a", "b", false),
            ("a/b", "a", false),
        ] {
            assert_eq!((overlap(a, b), overlap(b, a)), (meet, meet), "{a} {b}");
        }
    }

    #[test]
    fn a_filter_that_forgets_levels_is_not_read_backwards() {
        let pattern = |filter: &str| {
            let text = format!("CREATE SOURCE s ON MQTT '{filter}' FORMAT JSON (time = 'at') INTO t");
            pattern_of(&sonde_query::statement::parse_source(&text).unwrap())
        };
        let found = pattern("a/{b}").unwrap();
        assert_eq!(found.levels, [Level::Text("a".into()), Level::Column("b".into())]);
        assert_eq!(found.time, "at");
        for (filter, why) in [("a/+", "+ or #"), ("a/{b}/#", "+ or #"), ("{a}/{a}", "one name")] {
            assert!(pattern(filter).unwrap_err().contains(why), "{filter}");
        }
    }
}
