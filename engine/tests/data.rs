//! What is written and what is read, by names instead of ids.
//!
//! # Invariants
//! - Values are compared by their bits.
//! - A scan is read group by group, and each group's rows must ascend by (key, time), the groups by time.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampNanosecondType, UInt64Type};
use arrow::record_batch::RecordBatch;
use sonde_engine::{
    CatalogRequest, ColumnRole, Engine, FieldValue, LatestRequest, MessageRef, NewColumn, NewTable,
    PhysicalType, Points, Result, Row, ScanRequest, SeqNo, SeqRange, Snapshot, State, Table, TableKind,
    TableOptions, TagFilter, TimeRange, Timestamp, ValueRange, WriteBatch, WriteBatchBuilder,
};

pub(crate) const SECOND: i64 = 1_000_000_000;
pub(crate) const HOUR: i64 = 3600 * SECOND;
pub(crate) const DAY: i64 = 24 * HOUR;
/// 2025-06-02, a Monday, but not the first day of a partition of seven days.
pub(crate) const START: i64 = 20_241 * DAY;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Value {
    Null,
    Float(u64),
    Int(i64),
    UInt(u64),
    Bool(bool),
    Text(String),
}

impl Value {
    pub(crate) fn float(value: f64) -> Self {
        Self::Float(value.to_bits())
    }

    pub(crate) fn text(value: &str) -> Self {
        Self::Text(value.to_owned())
    }

    fn field(&self) -> FieldValue<'_> {
        match self {
            Self::Null => FieldValue::Null,
            Self::Float(bits) => FieldValue::Float(f64::from_bits(*bits)),
            Self::Int(value) => FieldValue::Int(*value),
            Self::UInt(value) => FieldValue::UInt(*value),
            Self::Bool(value) => FieldValue::Bool(*value),
            Self::Text(value) => FieldValue::Text(Cow::Borrowed(value)),
        }
    }

    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Self::Float(bits) => Some(f64::from_bits(*bits)),
            Self::Int(value) => Some(*value as f64),
            Self::UInt(value) => Some(*value as f64),
            _ => None,
        }
    }
}

/// Tags or fields by name; what is missing is absent.
pub(crate) type Tags = BTreeMap<String, String>;
pub(crate) type Fields = BTreeMap<String, Value>;

/// A row to write, or one that was read; read rows have no NULLs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rec {
    pub(crate) tags: Tags,
    pub(crate) time: i64,
    pub(crate) fields: Fields,
}

pub(crate) fn rec(tags: &[(&str, &str)], time: i64, fields: &[(&str, Value)]) -> Rec {
    Rec {
        tags: tags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        time,
        fields: fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
    }
}

/// What is committed as one: messages of rows of tables.
pub(crate) type Batch = Vec<Vec<(String, Rec)>>;

/// A batch of one message.
pub(crate) fn message(table: &str, rows: &[Rec]) -> Batch {
    vec![rows.iter().map(|row| (table.to_owned(), row.clone())).collect()]
}

pub(crate) const FIELDS: [(&str, PhysicalType); 5] = [
    ("f", PhysicalType::Float64),
    ("i", PhysicalType::Int64),
    ("u", PhysicalType::UInt64),
    ("b", PhysicalType::Boolean),
    ("s", PhysicalType::Text),
];

pub(crate) fn column(name: &str, role: ColumnRole, kind: PhysicalType) -> NewColumn {
    NewColumn { name: name.to_owned(), role, kind }
}

pub(crate) fn new_table(name: &str, kind: TableKind, partition: i64) -> NewTable {
    let tags = ["site", "device"].map(|name| column(name, ColumnRole::Tag, PhysicalType::Text));
    let fields = FIELDS.map(|(name, kind)| column(name, ColumnRole::Field, kind));
    NewTable {
        database: "public".into(),
        name: name.into(),
        kind,
        open: true,
        options: TableOptions { partition, ..TableOptions::default() },
        columns: tags.into_iter().chain(fields).collect(),
    }
}

/// Creates a table with the tags `site` and `device` and a field of every type.
pub(crate) fn create(engine: &Engine, name: &str, partition: i64) -> Arc<Table> {
    engine
        .change_catalog(CatalogRequest::CreateTable(new_table(name, TableKind::Points, partition)))
        .unwrap();
    table(engine, name)
}

pub(crate) fn table(engine: &Engine, name: &str) -> Arc<Table> {
    Arc::clone(engine.catalog().require_table("public", name).unwrap())
}

/// Builds a batch and sends it, with a change of state in its first message, if one is given.
pub(crate) fn send(engine: &Engine, batch: &Batch, state: Option<State>) -> Result<sonde_engine::Receipt> {
    Ok(engine.write(build(engine, batch, state)?))
}

/// A message to log.
pub(crate) fn raw<'a>(topic: &'a str, payload: &'a [u8]) -> MessageRef<'a> {
    let received = Timestamp::from_nanos(START);
    MessageRef { seq: SeqNo(0), received, qos: 1, retain: false, topic, properties: &[], payload }
}

/// What the message of a batch that has state says: its rows.
pub(crate) fn said(message: &[(String, Rec)]) -> String {
    format!("{message:?}")
}

/// The same; where there is no room it waits for some.
pub(crate) fn send_patient(engine: &Engine, batch: &Batch) -> Result<sonde_engine::Receipt> {
    let mut builder = engine.batch();
    builder.set_patient();
    Ok(engine.write(build_in(builder, engine, batch, None)?))
}

fn build(engine: &Engine, batch: &Batch, state: Option<State>) -> Result<WriteBatch> {
    build_in(engine.batch(), engine, batch, state)
}

fn build_in(
    mut builder: WriteBatchBuilder,
    engine: &Engine,
    batch: &Batch,
    state: Option<State>,
) -> Result<WriteBatch> {
    let catalog = engine.catalog();
    for message in batch {
        builder.begin_message();
        if state.is_some() {
            builder.message(&raw("a/b", said(message).as_bytes()))?;
        }
        for (name, row) in message {
            let table = catalog.require_table("public", name)?;
            let id = |name: &String| table.column(name).unwrap_or_else(|| panic!("no column {name}")).id;
            let tags: Vec<_> =
                row.tags.iter().map(|(name, value)| (id(name), Cow::Borrowed(value.as_str()))).collect();
            let fields: Vec<_> = row.fields.iter().map(|(name, value)| (id(name), value.field())).collect();
            let time = Timestamp::from_nanos(row.time);
            builder.row(table, &Row { time, tags: &tags, fields: &fields }, None)?;
        }
    }
    if let Some(state) = state {
        builder.state(state);
    }
    Ok(builder.finish().expect("a batch that is not empty"))
}

/// The filters of a query's tags.
pub(crate) fn filters(table: &Table, tags: &[(String, BTreeSet<Option<String>>)]) -> Vec<TagFilter> {
    let id = |name: &String| table.column(name).unwrap_or_else(|| panic!("no column {name}")).id;
    tags.iter().map(|(tag, values)| TagFilter { column: id(tag), values: values.clone() }).collect()
}

/// Deletes what a query's time and tags name.
pub(crate) fn delete_range(engine: &Engine, name: &str, query: &Query) -> Result<SeqRange> {
    let table = table(engine, name);
    engine.delete_range(&table, query.time, &filters(&table, &query.tags))
}

/// The points whose rows pass, as a snapshot that is fenced off has them.
pub(crate) fn choose(engine: &Engine, name: &str, wanted: impl Fn(&Rec) -> bool) -> (Points, Vec<Rec>) {
    try_choose(engine, name, wanted).unwrap()
}

pub(crate) fn try_choose(
    engine: &Engine,
    name: &str,
    wanted: impl Fn(&Rec) -> bool,
) -> Result<(Points, Vec<Rec>)> {
    let snapshot = engine.fence()?;
    let table = snapshot.catalog().require_table("public", name)?;
    let of_role = |role| table.def().columns.iter().filter(move |column| column.role == role);
    let ids = |role| of_role(role).map(|column| column.id);
    let columns: Vec<_> =
        ids(ColumnRole::Time).chain(ids(ColumnRole::Tag)).chain(ids(ColumnRole::Field)).collect();
    let keys: Vec<usize> = (0..1 + table.tags().count()).collect();
    let (mut points, mut rows) = (Points::new(table, &snapshot), Vec::new());
    let scan = engine.scan(&snapshot, &ScanRequest::all(Arc::clone(table), columns))?;
    for batch in scan.open(0, 1) {
        let batch = batch?;
        let read = decode(table, &batch);
        let picked: BooleanArray = read.iter().map(|row| Some(wanted(row))).collect();
        let batch = filter_record_batch(&batch, &picked).unwrap().project(&keys).unwrap();
        points.push(table, &batch)?;
        rows.extend(read.into_iter().filter(|row| wanted(row)));
    }
    assert_eq!(points.len(), rows.len());
    Ok((points, rows))
}

/// Writes new values of points that were chosen.
pub(crate) fn update(engine: &Engine, name: &str, points: Points, rows: &[Rec]) -> Result<SeqRange> {
    engine.update(build(engine, &message(name, rows), None)?, points)
}

/// Commits a batch.
pub(crate) fn write(engine: &Engine, batch: &Batch) -> Result<SeqRange> {
    send(engine, batch, None)?.wait()
}

/// Commits rows of one table as one message.
pub(crate) fn put(engine: &Engine, table: &str, rows: &[Rec]) -> SeqRange {
    write(engine, &message(table, rows)).unwrap()
}

/// What a scan is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) time: TimeRange,
    pub(crate) tags: Vec<(String, BTreeSet<Option<String>>)>,
    pub(crate) values: Vec<(String, f64, f64)>,
    pub(crate) limit: Option<usize>,
    /// By name; all where it is `None`. Time and tags are always read.
    pub(crate) fields: Option<Vec<String>>,
}

impl Default for Query {
    fn default() -> Self {
        Self { time: TimeRange::ALL, tags: Vec::new(), values: Vec::new(), limit: None, fields: None }
    }
}

pub(crate) fn range(start: i64, end: i64) -> TimeRange {
    TimeRange { start: Timestamp::from_nanos(start), end: Timestamp::from_nanos(end) }
}

/// All rows of a table, as of now.
pub(crate) fn read_all(engine: &Engine, table: &str) -> Vec<Rec> {
    read(engine, &engine.snapshot(), table, &Query::default()).unwrap()
}

/// The newest rows that a query's tags and fields ask for.
pub(crate) fn latest(engine: &Engine, snapshot: &Snapshot, name: &str, query: &Query) -> Result<Vec<Rec>> {
    let table = snapshot.catalog().require_table("public", name)?;
    let id = |name: &String| table.column(name).unwrap_or_else(|| panic!("no column {name}")).id;
    let wanted = |column: &sonde_engine::ColumnDef| {
        column.role != ColumnRole::Field
            || query.fields.as_ref().is_none_or(|fields| fields.contains(&column.name))
    };
    let columns = table.def().columns.iter().filter(|column| wanted(column)).map(|column| column.id);
    let tags = query.tags.iter().map(|(tag, values)| TagFilter { column: id(tag), values: values.clone() });
    let request =
        LatestRequest { tags: tags.collect(), ..LatestRequest::all(Arc::clone(table), columns.collect()) };
    let of_part = |part: usize, parts: usize| {
        let latest = engine.latest(snapshot, &LatestRequest { part: (part, parts), ..request.clone() })?;
        let count = latest.rows();
        let mut rows = Vec::new();
        for batch in latest {
            let batch = batch?;
            assert!(batch.num_rows() > 0 && batch.num_rows() <= sonde_engine::limits::BATCH_ROWS);
            rows.extend(decode(table, &batch));
        }
        assert_eq!(rows.len(), count);
        Ok(rows)
    };
    let parts = [of_part(0, 3)?, of_part(1, 3)?, of_part(2, 3)?].concat();
    let all = of_part(0, 1)?;
    assert_eq!(parts, all, "three parts are the whole");
    Ok(all)
}

/// The rows that a query returns.
pub(crate) fn read(engine: &Engine, snapshot: &Snapshot, name: &str, query: &Query) -> Result<Vec<Rec>> {
    let table = snapshot.catalog().require_table("public", name)?;
    let id = |name: &String| table.column(name).unwrap_or_else(|| panic!("no column {name}")).id;
    let wanted = |column: &sonde_engine::ColumnDef| {
        column.role != ColumnRole::Field
            || query.fields.as_ref().is_none_or(|fields| fields.contains(&column.name))
    };
    let columns = table.def().columns.iter().filter(|column| wanted(column)).map(|column| column.id);
    let request = ScanRequest {
        table: Arc::clone(table),
        columns: columns.collect(),
        time: query.time,
        tags: filters(table, &query.tags),
        values: query
            .values
            .iter()
            .map(|(field, low, high)| ValueRange { column: id(field), low: *low, high: *high })
            .collect(),
        limit: query.limit,
    };
    let scan = engine.scan(snapshot, &request)?;
    // A limit holds for each partition, so it takes one partition to hold for the whole.
    let partitions = if query.limit.is_some() { 1 } else { scan.groups().max(1) };
    let mut rows = Vec::new();
    let mut reached = i64::MIN;
    for partition in 0..partitions {
        let mut last: Option<(Vec<Option<String>>, i64)> = None;
        let mut latest = reached;
        for batch in scan.open(partition, partitions) {
            let batch = batch?;
            assert!(batch.num_rows() > 0 && batch.num_rows() <= sonde_engine::limits::BATCH_ROWS);
            for row in decode(table, &batch) {
                let point =
                    (table.tags().map(|tag| row.tags.get(&tag.name).cloned()).collect::<Vec<_>>(), row.time);
                if partitions > 1 {
                    assert!(row.time >= reached, "groups overlap in time");
                    let ascends = |last: &(Vec<Option<String>>, i64)| match table.def().kind {
                        TableKind::Points => *last < point,
                        TableKind::Events => *last <= point,
                    };
                    assert!(last.as_ref().is_none_or(ascends), "{last:?} stands before {point:?}");
                    latest = latest.max(row.time + 1);
                }
                last = Some(point);
                rows.push(row);
            }
        }
        reached = latest;
    }
    Ok(rows)
}

pub(crate) fn decode(table: &Table, batch: &RecordBatch) -> Vec<Rec> {
    let mut rows = vec![Rec { tags: Tags::new(), time: 0, fields: Fields::new() }; batch.num_rows()];
    for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
        let column = table.column(field.name()).unwrap();
        for (i, row) in rows.iter_mut().enumerate() {
            match column.role {
                ColumnRole::Time => row.time = array.as_primitive::<TimestampNanosecondType>().value(i),
                ColumnRole::Tag if array.is_valid(i) => {
                    row.tags.insert(column.name.clone(), array.as_string::<i32>().value(i).to_owned());
                }
                ColumnRole::Field if array.is_valid(i) => {
                    row.fields.insert(column.name.clone(), value(array, i));
                }
                _ => {}
            }
        }
    }
    rows
}

fn value(array: &ArrayRef, row: usize) -> Value {
    match array.data_type() {
        DataType::Float64 => Value::float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Int64 => Value::Int(array.as_primitive::<Int64Type>().value(row)),
        DataType::UInt64 => Value::UInt(array.as_primitive::<UInt64Type>().value(row)),
        DataType::Boolean => Value::Bool(array.as_boolean().value(row)),
        DataType::Utf8 => Value::text(array.as_string::<i32>().value(row)),
        other => panic!("a field is {other}"),
    }
}
