//! Named scalars as rows of a table: finds the table and its columns, and makes those that are missing.
//!
//! # Invariants
//! - The rows given at once are stored all or none.
//! - For a row of a table that has its columns nothing is allocated but the row itself.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use sonde_engine::{
    BatchSeries, Catalog, CatalogRequest, ColdValues, ColumnDef, ColumnId, ColumnRole, Engine, FieldValue,
    NewColumn, NewTable, PhysicalType, Row, TIME_NAME, Table, TableId, TableKind, TableOptions, Timestamp,
    WriteBatchBuilder, type_conflict,
};
use sonde_query::statement::TimeUnit;

use crate::decode::{Item, Rows, recycle, time_of_number};
use crate::limits::{DEFAULT_COLUMNS, DEFAULT_SERIES, DEFAULT_TABLES, ROW_ITEMS, WIDEN_PAUSE};

/// 2000-01-01, the first time that is accepted.
const FIRST_TIME: Timestamp = Timestamp::from_secs(946_684_800);
/// How far ahead of the clock a time may be: 24 hours.
const AHEAD: i64 = 86_400_000_000_000;
/// Names that are the time where nothing says otherwise; the first that a row has is.
const TIME_NAMES: [&str; 3] = ["time", "ts", "timestamp"];
/// How often columns are made again that others made at the same moment.
const CATALOG_TRIES: usize = 8;
/// Names that are tags where nothing says otherwise.
const TAG_NAMES: [&str; 3] = ["device", "device_id", "sensor_id"];

/// Why rows were not stored.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// For good: a message becomes a dead letter.
    Invalid(String),
    /// The engine cannot take it now.
    Engine(sonde_engine::Error),
    /// This source does not take such a message, which is no fault: it is delivered and not stored.
    Passed,
}

/// Which item of a row is its time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TimeName<'t> {
    /// `ts`, `time` or `timestamp`.
    Usual,
    /// This one.
    Named(&'t str),
    /// None: the arrival is the time.
    Absent,
}

impl TimeName<'_> {
    /// The place of the time among a row's items.
    fn place(self, row: &[Item<'_>]) -> Option<usize> {
        match self {
            Self::Usual => {
                let named = |(place, (name, _)): (usize, &Item<'_>)| {
                    Some((TIME_NAMES.iter().position(|usual| usual == name)?, place))
                };
                row.iter().enumerate().filter_map(named).min().map(|(_, place)| place)
            }
            Self::Named(named) => row.iter().position(|(name, _)| name == named),
            Self::Absent => None,
        }
    }
}

/// Which items of a row become tags, where the table has no column of their name yet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TagNames<'t> {
    /// `device`, `device_id` and `sensor_id`.
    Usual,
    /// These.
    Listed(&'t [String]),
    /// The first so many.
    First(usize),
}

impl TagNames<'_> {
    fn has(self, place: usize, name: &str) -> bool {
        match self {
            Self::Usual => TAG_NAMES.contains(&name),
            Self::Listed(names) => names.iter().any(|listed| listed == name),
            Self::First(count) => place < count,
        }
    }
}

/// Where rows go, and what their names mean.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'t> {
    pub(crate) database: &'t str,
    pub(crate) table: &'t str,
    pub(crate) time: TimeName<'t>,
    pub(crate) unit: Option<TimeUnit>,
    /// The time of rows that have none, and the clock by which the others are judged.
    pub(crate) arrival: Timestamp,
    pub(crate) tags: TagNames<'t>,
    /// Tags that every row has beside its items; an item of the same name gives way.
    pub(crate) fixed: &'t [(&'t str, &'t str)],
    /// The topic whose first message makes the table, under the default source's limits.
    pub(crate) limited_by: Option<&'t str>,
}

/// What an item is in its table.
#[derive(Clone, Copy, Debug)]
enum Place {
    Time,
    Tag(ColumnId),
    Field(ColumnId),
    /// Something of the same name stands before it, or it is NULL and has no column.
    Nothing,
}

/// What a row is put together in, reused by all rows of a door.
#[derive(Debug, Default)]
pub(crate) struct RowBuffer {
    rows: Rows<'static>,
    /// Per item of all rows.
    places: Vec<Place>,
    /// Per row.
    times: Vec<Timestamp>,
    tags: Vec<(ColumnId, Cow<'static, str>)>,
    fields: Vec<(ColumnId, FieldValue<'static>)>,
    /// The table that was found last, and the catalog it is of.
    last: Option<(Arc<Catalog>, Arc<Table>)>,
    /// A field that does not hold a value of the rows, and would if it were wider.
    narrow: Option<ColumnId>,
    /// A field that could not be widened, when that was found, and why.
    refused: Option<((TableId, ColumnId), Instant, String)>,
    /// The series of the row that was stored last.
    series: Option<BatchSeries>,
}

/// A row that was stored: what another one of its series and columns can be stored by.
pub(crate) struct Stored<'r> {
    pub(crate) table: &'r Arc<Table>,
    pub(crate) series: BatchSeries,
    /// The fields in their order; `None` where anything else stands among them, or a tag is a field of the table.
    pub(crate) fields: Option<Vec<ColumnId>>,
}

impl RowBuffer {
    /// Empty rows to decode into; `keep` brings their memory back.
    pub(crate) fn rows<'a>(&mut self) -> Rows<'a> {
        std::mem::take(&mut self.rows).recycle()
    }

    /// Keeps the memory of rows that are done with.
    pub(crate) fn keep(&mut self, rows: Rows<'_>) {
        self.rows = rows.recycle();
    }

    /// Moves rows into the builder's current message. Returns how many.
    pub(crate) fn store(
        &mut self,
        engine: &Engine,
        builder: &mut WriteBatchBuilder,
        target: &Target<'_>,
        rows: &mut Rows<'_>,
    ) -> Result<usize, Refusal> {
        if rows.count() == 0 {
            return Ok(0);
        }
        for _ in 0..CATALOG_TRIES {
            let catalog = engine.catalog();
            let table = self.find(&catalog, target);
            let mut missing = self.locate(engine, table.as_deref(), target, rows)?;
            if let Some((table, id)) = table.as_ref().zip(self.narrow) {
                self.widen(engine, table, id)?;
                continue;
            }
            if let Some(table) = table.filter(|_| missing.is_empty()) {
                return self.push(builder, &table, target, rows);
            }
            // Tags first, in the order in which they came: columns are found faster, and look tidier.
            missing.sort_by_key(|column| column.role != ColumnRole::Tag);
            make(engine, target, &catalog, missing)?;
        }
        let changing = format!("table {} changes all the time; send the rows again", target.table);
        Err(Refusal::Engine(sonde_engine::Error::Conflict(changing)))
    }

    /// Makes a field of integers one of floats. Where that failed a moment ago it is not tried again: it looks at what the
    /// column holds.
    fn widen(&mut self, engine: &Engine, table: &Arc<Table>, id: ColumnId) -> Result<(), Refusal> {
        let refused = self
            .refused
            .iter()
            .find(|(known, at, _)| *known == (table.id(), id) && at.elapsed() < WIDEN_PAUSE);
        if let Some((_, _, reason)) = refused {
            return Err(Refusal::Invalid(reason.clone()));
        }
        match engine.widen(table, id, ColdValues::Refuse) {
            Ok(_) => Ok(()),
            Err(sonde_engine::Error::Row(reason)) => {
                self.refused = Some(((table.id(), id), Instant::now(), reason.clone()));
                Err(Refusal::Invalid(reason))
            }
            Err(error) => Err(Refusal::Engine(error)),
        }
    }

    /// The row that `store` was given last, which has to have stored it, and it alone; its first items, `tags` many, were
    /// tags.
    pub(crate) fn last_row(&self, tags: usize) -> Option<Stored<'_>> {
        let (_, table) = self.last.as_ref()?;
        let (tags, fields) = self.places.split_at_checked(tags)?;
        let field = |place: &Place| match place {
            Place::Field(id) => Some(*id),
            Place::Time | Place::Tag(_) | Place::Nothing => None,
        };
        let are_tags = tags.iter().all(|place| matches!(place, Place::Tag(_)));
        let fields = if are_tags { fields.iter().map(field).collect() } else { None };
        Some(Stored { table, series: self.series?, fields })
    }

    fn find(&mut self, catalog: &Arc<Catalog>, target: &Target<'_>) -> Option<Arc<Table>> {
        if let Some((known, table)) = &self.last
            && Arc::ptr_eq(known, catalog)
            && table.def().name == target.table
            && table.def().database == target.database
        {
            return Some(Arc::clone(table));
        }
        let table = catalog.exact_table(target.database, target.table)?;
        self.last = Some((Arc::clone(catalog), Arc::clone(table)));
        Some(Arc::clone(table))
    }

    /// Finds the column of every item, and the time of every row; returns the columns that the table lacks. Fails where
    /// a value does not fit its column or a row has no field.
    fn locate(
        &mut self,
        engine: &Engine,
        table: Option<&Table>,
        target: &Target<'_>,
        rows: &Rows<'_>,
    ) -> Result<Vec<NewColumn>, Refusal> {
        self.places.clear();
        self.times.clear();
        self.narrow = None;
        let mut missing = Vec::new();
        for (name, _) in target.fixed {
            note_missing(table, name, true, &FieldValue::Null, &mut missing);
        }
        for row in rows.iter() {
            let time_place = target.time.place(row);
            let mut has_field = false;
            for (place, (name, value)) in row.iter().enumerate() {
                let found = if Some(place) == time_place {
                    Place::Time
                } else if target.fixed.iter().any(|(fixed, _)| fixed == name) {
                    Place::Nothing
                } else if let Some(column) = table.and_then(|table| table.exact(name)) {
                    if table.is_some_and(|table| is_narrow(table, column, value)) {
                        self.narrow = Some(column.id);
                        return Ok(Vec::new());
                    }
                    place_of(column, value, target.tags, place)?
                } else {
                    let is_tag = target.tags.has(place, name);
                    note_missing(table, name, is_tag, value, &mut missing);
                    if missing.len() > ROW_ITEMS {
                        return Err(Refusal::Invalid(format!(
                            "more than {ROW_ITEMS} columns that are not there"
                        )));
                    }
                    has_field |= !is_tag && *value != FieldValue::Null;
                    Place::Nothing
                };
                has_field |= matches!(found, Place::Field(_));
                self.places.push(found);
            }
            if !has_field {
                return Err(Refusal::Invalid("there is no field: nothing but tags and time".into()));
            }
            self.times.push(match time_place.and_then(|place| row.get(place)) {
                Some((_, value)) => row_time(value, target)?,
                // Rows of one message are points of their own.
                None if self.times.is_empty() => target.arrival,
                None => engine.arrival(),
            });
        }
        Ok(missing)
    }

    /// Moves located rows into the builder.
    fn push(
        &mut self,
        builder: &mut WriteBatchBuilder,
        table: &Arc<Table>,
        target: &Target<'_>,
        rows: &mut Rows<'_>,
    ) -> Result<usize, Refusal> {
        let count = rows.count();
        let max_series = target.limited_by.map(|_| DEFAULT_SERIES); // of a table without a limit of its own
        let mut tags = recycle(std::mem::take(&mut self.tags));
        let mut fields = recycle(std::mem::take(&mut self.fields));
        let mut outcome = Ok(count);
        let (items, ends) = rows.drain();
        let mut items = items.zip(&self.places);
        let mut start = 0;
        for (end, time) in ends.zip(&self.times) {
            tags.clear();
            fields.clear();
            for ((_, value), place) in items.by_ref().take(end - start) {
                match place {
                    Place::Tag(id) => tags.extend(tag_text(value).map(|text| (*id, text))),
                    Place::Field(id) => fields.push((*id, value)),
                    Place::Time | Place::Nothing => {}
                }
            }
            start = end;
            for (name, value) in target.fixed {
                match table.exact(name).map(|column| (column.role, column.id)) {
                    Some((ColumnRole::Tag, id)) => tags.push((id, Cow::Borrowed(*value))),
                    Some((_, id)) => fields.push((id, FieldValue::Text(Cow::Borrowed(value)))),
                    None => unreachable!("column {name} was located or made"),
                }
            }
            match builder.row(table, &Row { time: *time, tags: &tags, fields: &fields }, max_series) {
                Ok(series) => self.series = Some(series),
                Err(error) => {
                    if count > 1 {
                        builder.take_back_message();
                    }
                    outcome = Err(refusal(error, table, target));
                    break;
                }
            }
        }
        drop(items);
        self.tags = recycle(tags);
        self.fields = recycle(fields);
        outcome
    }
}

fn refusal(error: sonde_engine::Error, table: &Table, target: &Target<'_>) -> Refusal {
    match error {
        // Where the table has no limit of its own, a source lifts the default source's.
        sonde_engine::Error::Series { .. } if table.def().options.max_series == 0 => {
            Refusal::Invalid(format!("{error}{}", hint(target)))
        }
        sonde_engine::Error::Series { .. }
        | sonde_engine::Error::SeriesMemory { .. }
        | sonde_engine::Error::Limit { .. } => Refusal::Invalid(error.to_string()),
        sonde_engine::Error::Row(reason) => Refusal::Invalid(reason),
        other => Refusal::Engine(other),
    }
}

/// The times that a row may have.
#[must_use]
pub(crate) fn accepted_times(now: Timestamp) -> RangeInclusive<Timestamp> {
    FIRST_TIME..=Timestamp::from_nanos(now.as_nanos().saturating_add(AHEAD))
}

/// Fails where a time is outside the accepted range.
pub(crate) fn check_time(time: Timestamp, now: Timestamp) -> Result<(), Refusal> {
    if accepted_times(now).contains(&time) {
        return Ok(());
    }
    let nanos = time.as_nanos();
    Err(Refusal::Invalid(format!(
        "time {nanos} ns is outside the accepted range, year 2000 to 24 h from now"
    )))
}

fn row_time(value: &FieldValue<'_>, target: &Target<'_>) -> Result<Timestamp, Refusal> {
    let time = time_of_number(value, target.unit).map_err(|error| Refusal::Invalid(error.0))?;
    check_time(time, target.arrival)?;
    Ok(time)
}

/// Whether the column has to become wider before it takes the value; only open tables change by themselves.
fn is_narrow(table: &Table, column: &ColumnDef, value: &FieldValue<'_>) -> bool {
    matches!(value, FieldValue::Float(_))
        && matches!(column.kind, PhysicalType::Int64 | PhysicalType::UInt64)
        && column.role == ColumnRole::Field
        && table.def().open
        && !value.fits(column.kind)
}

fn place_of(
    column: &ColumnDef,
    value: &FieldValue<'_>,
    tags: TagNames<'_>,
    place: usize,
) -> Result<Place, Refusal> {
    match column.role {
        ColumnRole::Tag if matches!(tags, TagNames::First(count) if place >= count) => {
            Err(Refusal::Invalid(format!("field {} has the name of a tag", column.name)))
        }
        ColumnRole::Tag => Ok(Place::Tag(column.id)),
        ColumnRole::Field if value.fits(column.kind) => Ok(Place::Field(column.id)),
        ColumnRole::Field => Err(Refusal::Invalid(type_conflict(column, value).to_string())),
        ColumnRole::Time => Err(Refusal::Invalid(format!("column {} is the time", column.name))),
    }
}

/// Notes a column that the table should get.
fn note_missing(
    table: Option<&Table>,
    name: &str,
    is_tag: bool,
    value: &FieldValue<'_>,
    missing: &mut Vec<NewColumn>,
) {
    let known = table.is_some_and(|table| table.exact(name).is_some());
    if known || missing.iter().any(|column| column.name == name) {
        return;
    }
    let kind = if is_tag { Some(PhysicalType::Text) } else { value.kind() };
    let role = if is_tag { ColumnRole::Tag } else { ColumnRole::Field };
    missing.extend(kind.map(|kind| NewColumn { name: name.to_owned(), role, kind }));
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
fn hint(target: &Target<'_>) -> String {
    let Some(topic) = target.limited_by else { return String::new() };
    let level = topic.split('/').next().unwrap_or_default();
    let (name, filter) = (target.table.replace('"', "\"\""), level.replace('\'', "''"));
    format!("; CREATE SOURCE \"{name}\" ON MQTT '{filter}/#' FORMAT JSON INTO \"{name}\" lifts it")
}

/// Makes the table, or gives it the columns that it lacks, where it is open. It blocks for one commit, once for each
/// table and column. What someone else made at the same moment is no error: the caller looks again.
fn make(
    engine: &Engine,
    target: &Target<'_>,
    catalog: &Catalog,
    missing: Vec<NewColumn>,
) -> Result<(), Refusal> {
    if let Some(column) = missing.iter().find(|column| column.name == TIME_NAME) {
        return Err(Refusal::Invalid(format!("column {} is the time", column.name)));
    }
    let over = |text: String| Err(Refusal::Invalid(text + &hint(target)));
    let known = catalog.exact_table(target.database, target.table);
    let count = known.map_or(1, |table| table.def().columns.len()) + missing.len();
    if target.limited_by.is_some() && count > DEFAULT_COLUMNS {
        return over(format!(
            "table {} would have {count} columns, the limit is {DEFAULT_COLUMNS}",
            target.table
        ));
    }
    let request = match known {
        Some(table) if !table.def().open => {
            let names: Vec<&str> = missing.iter().map(|column| column.name.as_str()).collect();
            let reason = format!("table {} has no column {}", table.full_name(), names.join(", "));
            return Err(Refusal::Invalid(reason));
        }
        Some(table) => CatalogRequest::AddColumns(table.id(), missing),
        None => {
            let tables = catalog.tables().filter(|table| table.def().database == target.database).count();
            if target.limited_by.is_some() && tables >= DEFAULT_TABLES {
                return over(format!(
                    "table {} would be one of more than {DEFAULT_TABLES} tables",
                    target.table
                ));
            }
            if let Some(topic) = target.limited_by {
                tracing::info!(
                    topic,
                    table = target.table,
                    "first message of a topic: its rows go to a new table"
                );
            }
            CatalogRequest::CreateTable(NewTable {
                database: target.database.to_owned(),
                name: target.table.to_owned(),
                kind: TableKind::Points,
                open: true,
                options: TableOptions::automatic(),
                columns: missing,
            })
        }
    };
    match engine.change_catalog(request) {
        Ok(_) | Err(sonde_engine::Error::Conflict(_)) => Ok(()),
        Err(sonde_engine::Error::Row(reason)) => Err(Refusal::Invalid(reason)),
        Err(error @ sonde_engine::Error::Limit { .. }) => Err(Refusal::Invalid(error.to_string())),
        Err(error) => Err(Refusal::Engine(error)),
    }
}
