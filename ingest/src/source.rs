//! Sources: which messages become rows of which table, and how their parts become columns.
//!
//! # Invariants
//! - The source `default` maps what no other source matches, within named limits.
//! - A message becomes all of its rows or none.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::sync::Arc;

use sonde_engine::{
    CatalogRequest, ColumnId, ColumnRole, Engine, FieldValue, NewColumn, NewTable, Object, ObjectKind,
    PhysicalType, Row, TIME_NAME, Table, TableKind, TableOptions, Timestamp, WriteBatchBuilder,
    type_conflict,
};
use sonde_proto::mqtt::filter_matches;
use sonde_query::statement::{SourceSpec, parse_source};

use crate::decode::json::{self, Payload};
use crate::decode::{Item, time_of_number};
use crate::limits::{DEFAULT_COLUMNS, DEFAULT_SERIES, DEFAULT_TABLES, TEXT_PAYLOAD};

/// The name of the source that takes what no other does.
pub(crate) const DEFAULT_SOURCE: &str = "default";
/// The text by which the catalog knows it.
const DEFAULT_TEXT: &str = "CREATE SOURCE \"default\" ON MQTT '#' FORMAT JSON INTO \"default\"";
/// 2000-01-01, the first time that is accepted.
const FIRST_TIME: Timestamp = Timestamp::from_secs(946_684_800);
/// How far ahead of the clock a time may be: 24 hours.
const AHEAD: i64 = 86_400_000_000_000;
/// Keys that are the time where no source says otherwise.
const TIME_KEYS: [&str; 3] = ["ts", "time", "timestamp"];
/// Keys that are tags where no source says otherwise.
const TAG_KEYS: [&str; 3] = ["device", "device_id", "sensor_id"];

/// The times that a row may have.
#[must_use]
pub(crate) fn accepted_times(now: Timestamp) -> RangeInclusive<Timestamp> {
    FIRST_TIME..=Timestamp::from_nanos(now.as_nanos().saturating_add(AHEAD))
}

/// A source, ready to use.
#[derive(Debug)]
pub(crate) struct Source {
    /// The database of its names.
    pub(crate) database: String,
    /// Its name.
    pub(crate) name: String,
    /// Whether a refused message is said to be refused.
    pub(crate) reject_invalid: bool,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Default,
    Json { spec: SourceSpec, filter: String },
}

/// The sources of the catalog at one version.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    version: u64,
    sources: Vec<Arc<Source>>,
}

impl Sources {
    /// The sources as the catalog has them now. Text that does not parse is left out, with a warning.
    #[must_use]
    pub(crate) fn load(engine: &Engine) -> Self {
        let catalog = engine.catalog();
        let sources = catalog.objects(ObjectKind::Source).filter_map(|object| match compile(object) {
            Ok(source) => Some(Arc::new(source)),
            Err(error) => {
                tracing::warn!(source = object.name, %error, "this source is paused: its statement does not parse");
                None
            }
        });
        Self { version: catalog.version(ObjectKind::Source), sources: sources.collect() }
    }

    /// Whether the catalog has changed since.
    #[must_use]
    pub(crate) fn is_stale(&self, engine: &Engine) -> bool {
        self.version != engine.catalog().version(ObjectKind::Source)
    }

    /// The source of a topic: the first by name that matches, else `default` where it may.
    #[must_use]
    pub(crate) fn find(&self, topic: &str) -> Option<&Arc<Source>> {
        let matches = |source: &&Arc<Source>| match &source.kind {
            Kind::Json { filter, .. } => filter_matches(filter, topic),
            Kind::Default => false,
        };
        let may_default = !topic.starts_with('$') && !topic.starts_with('/');
        let default =
            || self.sources.iter().find(|source| may_default && matches!(source.kind, Kind::Default));
        self.sources.iter().find(matches).or_else(default)
    }
}

fn compile(object: &Object) -> Result<Source, String> {
    let (database, name) = (object.database.clone(), object.name.clone());
    if object.text == DEFAULT_TEXT {
        return Ok(Source { database, name, reject_invalid: false, kind: Kind::Default });
    }
    let spec = parse_source(&object.text).map_err(|error| error.to_string())?;
    let filter = spec.mqtt_filter();
    Ok(Source { database, name, reject_invalid: spec.reject_invalid, kind: Kind::Json { spec, filter } })
}

/// Puts the default source into a catalog that has never had one.
pub(crate) fn ensure_default(engine: &Engine) -> sonde_engine::Result<()> {
    // Once dropped it stays dropped: the catalog's first version is the mark.
    if engine.catalog().version(ObjectKind::Source) > 0 || engine.state("ingest", b"default_source").is_some()
    {
        return Ok(());
    }
    let object = Object {
        kind: ObjectKind::Source,
        database: "public".into(),
        name: DEFAULT_SOURCE.into(),
        text: DEFAULT_TEXT.into(),
    };
    match engine.change_catalog(CatalogRequest::PutObject { object, replace: false }) {
        Ok(_) | Err(sonde_engine::Error::Conflict(_)) => {}
        Err(error) => return Err(error),
    }
    let mark = sonde_engine::State {
        namespace: "ingest".into(),
        key: b"default_source".to_vec(),
        value: Some(vec![1]),
    };
    engine.write(sonde_engine::WriteBatch::of_state(vec![mark])).wait().map(drop)
}

/// A message on its way into rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming<'a> {
    /// Its topic.
    pub(crate) topic: &'a str,
    /// Its payload.
    pub(crate) payload: &'a [u8],
    /// When it arrived.
    pub(crate) arrival: Timestamp,
}

/// Why a message is no row.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// For good: it becomes a dead letter.
    Invalid(String),
    /// The engine cannot take it now.
    Engine(sonde_engine::Error),
    /// This source does not take such a message, which is no fault: it is delivered and not stored.
    Passed,
}

/// One row of a message, columns by name.
struct NamedRow<'a> {
    time: Timestamp,
    items: Vec<Item<'a>>,
}

/// What becomes of the columns of a table.
struct Shape<'s> {
    database: &'s str,
    table: Cow<'s, str>,
    /// Whether a key that no column has becomes a tag.
    is_tag: &'s dyn Fn(&str) -> bool,
    limits: bool,
    topic: &'s str,
}

impl Source {
    /// Adds the rows of a message to the builder's current message. Returns how many.
    pub(crate) fn decode(
        &self,
        engine: &Engine,
        builder: &mut WriteBatchBuilder,
        message: &Incoming<'_>,
    ) -> Result<usize, Refusal> {
        match &self.kind {
            Kind::Default => self.decode_default(engine, builder, message),
            Kind::Json { spec, .. } => self.decode_json(engine, builder, message, spec),
        }
    }

    fn decode_default(
        &self,
        engine: &Engine,
        builder: &mut WriteBatchBuilder,
        message: &Incoming<'_>,
    ) -> Result<usize, Refusal> {
        let table = message.topic.split('/').next().unwrap_or_default();
        if table.is_empty() || message.payload.is_empty() {
            return Err(Refusal::Passed);
        }
        let Ok(text) = std::str::from_utf8(message.payload) else { return Err(Refusal::Passed) };
        let rows = match json::decode(message.payload) {
            Ok(Payload::Rows(rows)) => rows,
            Ok(Payload::Scalar(FieldValue::Null)) => return Err(Refusal::Passed),
            Ok(Payload::Scalar(value)) => {
                let name = match value {
                    FieldValue::Bool(_) => "state",
                    FieldValue::Text(_) => "text",
                    _ => "value",
                };
                vec![vec![(Cow::Borrowed(name), value)]]
            }
            Err(error) if text.trim_start().starts_with(['{', '[']) || text.len() > TEXT_PAYLOAD => {
                return Err(Refusal::Invalid(error.0));
            }
            Err(_) => vec![vec![(Cow::Borrowed("text"), FieldValue::Text(Cow::Borrowed(text)))]],
        };
        let is_time = |name: &str| TIME_KEYS.contains(&name);
        let mut named = Vec::with_capacity(rows.len());
        for items in rows {
            let mut row = row_of(items, &is_time, None, message.arrival)?;
            row.items.push((Cow::Borrowed("topic"), FieldValue::Text(Cow::Borrowed(message.topic))));
            named.push(row);
        }
        let is_tag = |name: &str| name == "topic" || TAG_KEYS.contains(&name);
        let shape = Shape {
            database: &self.database,
            table: Cow::Borrowed(table),
            is_tag: &is_tag,
            limits: true,
            topic: message.topic,
        };
        store(engine, builder, &shape, named)
    }

    fn decode_json(
        &self,
        engine: &Engine,
        builder: &mut WriteBatchBuilder,
        message: &Incoming<'_>,
        spec: &SourceSpec,
    ) -> Result<usize, Refusal> {
        let payload = json::decode(message.payload).map_err(|error| Refusal::Invalid(error.0))?;
        let rows = match payload {
            Payload::Rows(rows) => rows,
            Payload::Scalar(value) => vec![vec![(Cow::Borrowed("value"), value)]],
        };
        let is_time = |name: &str| match &spec.time {
            Some(key) => key == name,
            None => TIME_KEYS.contains(&name),
        };
        let levels: Vec<&str> = message.topic.split('/').collect();
        let mut named = Vec::with_capacity(rows.len());
        for items in rows {
            let mut row = row_of(items, &is_time, spec.unit, message.arrival)?;
            for (level, name) in spec.topic_tags() {
                let value = levels.get(level).copied().unwrap_or_default();
                // What the topic says stands before what the payload says.
                row.items.retain(|(known, _)| known != name);
                row.items.push((Cow::Borrowed(name), FieldValue::Text(Cow::Borrowed(value))));
            }
            named.push(row);
        }
        let is_tag = |name: &str| {
            spec.topic_tags().any(|(_, tag)| tag == name)
                || spec.tags.iter().any(|tag| tag == name)
                || (spec.tags.is_empty() && TAG_KEYS.contains(&name))
        };
        let shape = Shape {
            database: spec.table.database_or(&self.database),
            table: Cow::Borrowed(&spec.table.name),
            is_tag: &is_tag,
            limits: false,
            topic: message.topic,
        };
        store(engine, builder, &shape, named)
    }
}

/// Takes the time out of a row's items.
fn row_of<'a>(
    mut items: Vec<Item<'a>>,
    is_time: &dyn Fn(&str) -> bool,
    unit: Option<sonde_query::statement::TimeUnit>,
    arrival: Timestamp,
) -> Result<NamedRow<'a>, Refusal> {
    let Some(place) = items.iter().position(|(name, _)| is_time(name)) else {
        return Ok(NamedRow { time: arrival, items });
    };
    let (_, value) = items.swap_remove(place);
    let time = time_of_number(&value, unit).map_err(|error| Refusal::Invalid(error.0))?;
    check_time(time, arrival).map_err(Refusal::Invalid)?;
    Ok(NamedRow { time, items })
}

/// Fails where a time is outside the accepted range.
pub(crate) fn check_time(time: Timestamp, now: Timestamp) -> Result<(), String> {
    if accepted_times(now).contains(&time) {
        return Ok(());
    }
    Err(format!("time {} ns is outside the accepted range, year 2000 to 24 h from now", time.as_nanos()))
}

fn store(
    engine: &Engine,
    builder: &mut WriteBatchBuilder,
    shape: &Shape<'_>,
    rows: Vec<NamedRow<'_>>,
) -> Result<usize, Refusal> {
    let table = prepare(engine, shape, &rows)?;
    let max_series = shape.limits.then_some(DEFAULT_SERIES);
    let mut resolved = Vec::with_capacity(rows.len());
    for row in rows {
        let columns = resolve(&table, row.items)?;
        if columns.fields.is_empty() {
            return Err(Refusal::Invalid("the message has no field: nothing but tags and time".into()));
        }
        resolved.push((row.time, columns));
    }
    let count = resolved.len();
    for (time, columns) in resolved {
        let row = Row { time, tags: &columns.tags, fields: &columns.fields };
        builder.row(&table, &row, max_series).map_err(|error| match error {
            sonde_engine::Error::Limit { .. } => Refusal::Invalid(format!("{error}{}", hint(shape))),
            sonde_engine::Error::Row(reason) => Refusal::Invalid(reason),
            other => Refusal::Engine(other),
        })?;
    }
    Ok(count)
}

/// A row's columns, by id.
pub(crate) struct Resolved<'a> {
    pub(crate) tags: Vec<(ColumnId, Cow<'a, str>)>,
    pub(crate) fields: Vec<(ColumnId, FieldValue<'a>)>,
}

/// Finds the columns of a row; tags are written as text. Every value is checked against its column.
pub(crate) fn resolve<'a>(table: &Table, items: Vec<Item<'a>>) -> Result<Resolved<'a>, Refusal> {
    let mut tags = Vec::with_capacity(4);
    let mut fields = Vec::with_capacity(items.len());
    for (name, value) in items {
        let Some(column) = table.column(&name) else {
            return Err(Refusal::Invalid(format!("table {} has no column {name}", table.full_name())));
        };
        match column.role {
            ColumnRole::Tag => tags.extend(tag_text(value).map(|text| (column.id, text))),
            ColumnRole::Field if value.fits(column.kind) => fields.push((column.id, value)),
            ColumnRole::Field => return Err(Refusal::Invalid(type_conflict(column, &value).to_string())),
            ColumnRole::Time => return Err(Refusal::Invalid(format!("column {name} is the time"))),
        }
    }
    Ok(Resolved { tags, fields })
}

fn tag_text(value: FieldValue<'_>) -> Option<Cow<'_, str>> {
    Some(match value {
        FieldValue::Null => return None,
        FieldValue::Text(text) => text,
        FieldValue::Float(number) => number.to_string().into(),
        FieldValue::Int(number) => number.to_string().into(),
        FieldValue::UInt(number) => number.to_string().into(),
        FieldValue::Bool(value) => value.to_string().into(),
    })
}

/// The statement that would lift the default source's limits for a topic.
fn hint(shape: &Shape<'_>) -> String {
    let filter = shape.topic.split('/').next().unwrap_or_default();
    format!("; CREATE SOURCE {filter} ON MQTT '{filter}/#' FORMAT JSON INTO {} lifts it", shape.table)
}

/// The table with every column that the rows need; missing ones are created where the table is open.
fn prepare(engine: &Engine, shape: &Shape<'_>, rows: &[NamedRow<'_>]) -> Result<Arc<Table>, Refusal> {
    let catalog = engine.catalog();
    let known = catalog.table(shape.database, &shape.table);
    let mut missing: Vec<NewColumn> = Vec::new();
    for (name, value) in rows.iter().flat_map(|row| &row.items) {
        let exists = known.is_some_and(|table| table.column(name).is_some())
            || missing.iter().any(|column| column.name == name.as_ref())
            || name == TIME_NAME;
        if exists {
            continue;
        }
        let is_tag = (shape.is_tag)(name);
        let kind = if is_tag { Some(PhysicalType::Text) } else { value.kind() };
        let role = if is_tag { ColumnRole::Tag } else { ColumnRole::Field };
        missing.extend(kind.map(|kind| NewColumn { name: name.clone().into_owned(), role, kind }));
    }
    // Tags first, in the order in which they came: columns are found faster, and look tidier.
    missing.sort_by_key(|column| column.role != ColumnRole::Tag);
    match known {
        Some(table) if missing.is_empty() => Ok(Arc::clone(table)),
        Some(table) if !table.def().open => {
            let names: Vec<&str> = missing.iter().map(|column| column.name.as_str()).collect();
            let reason = format!("table {} has no column {}", table.full_name(), names.join(", "));
            Err(Refusal::Invalid(reason))
        }
        Some(table) => {
            let count = table.def().columns.len() + missing.len();
            if shape.limits && count > DEFAULT_COLUMNS {
                let text = format!(
                    "table {} would have {count} columns, the limit is {DEFAULT_COLUMNS}",
                    shape.table
                );
                return Err(Refusal::Invalid(text + &hint(shape)));
            }
            change(engine, shape, CatalogRequest::AddColumns(table.id(), missing))
        }
        None => {
            let count = catalog.tables().filter(|table| table.def().database == shape.database).count();
            if shape.limits && count >= DEFAULT_TABLES {
                let text = format!("table {} would be one of more than {DEFAULT_TABLES} tables", shape.table);
                return Err(Refusal::Invalid(text + &hint(shape)));
            }
            tracing::info!(topic = shape.topic, table = %shape.table, "first message of a topic: its rows go to a new table");
            let new = NewTable {
                database: shape.database.to_owned(),
                name: shape.table.clone().into_owned(),
                kind: TableKind::Points,
                open: true,
                options: TableOptions::default(),
                columns: missing,
            };
            change(engine, shape, CatalogRequest::CreateTable(new))
        }
    }
}

/// Changes the catalog, which blocks for one commit: it happens once for each table and column.
fn change(engine: &Engine, shape: &Shape<'_>, request: CatalogRequest) -> Result<Arc<Table>, Refusal> {
    match engine.change_catalog(request) {
        Ok(_) => {}
        // Someone else made it at the same moment: what is there now is looked at by the caller's checks.
        Err(sonde_engine::Error::Conflict(_)) => {}
        Err(sonde_engine::Error::Row(reason)) => return Err(Refusal::Invalid(reason)),
        Err(error @ sonde_engine::Error::Limit { .. }) => return Err(Refusal::Invalid(error.to_string())),
        Err(error) => return Err(Refusal::Engine(error)),
    }
    let catalog = engine.catalog();
    catalog.require_table(shape.database, &shape.table).map(Arc::clone).map_err(Refusal::Engine)
}

/// Adds the rows of a table that a client names itself, as HTTP and line protocol do. Returns what is wrong with a row.
pub(crate) fn store_row(
    engine: &Engine,
    builder: &mut WriteBatchBuilder,
    target: (&str, &str),
    time: Timestamp,
    items: Vec<Item<'_>>,
    is_tag: &dyn Fn(&str) -> bool,
) -> Result<(), Refusal> {
    let (database, table) = target;
    let shape = Shape { database, table: Cow::Borrowed(table), is_tag, limits: false, topic: table };
    store(engine, builder, &shape, vec![NamedRow { time, items }]).map(drop)
}

/// Keys that are tags where a client names none.
pub(crate) fn usual_tag(name: &str) -> bool {
    TAG_KEYS.contains(&name)
}

/// Keys that are the time where a client names none.
pub(crate) fn usual_time(name: &str) -> bool {
    TIME_KEYS.contains(&name)
}
