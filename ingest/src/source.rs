//! Sources: which messages become rows of which table, and how their parts become columns.
//!
//! # Invariants
//! - The source `default` maps what no other source matches, within named limits.
//! - A message becomes all of its rows or none.

use std::sync::Arc;
use std::time::Duration;

use sonde_engine::{CatalogRequest, Engine, FieldValue, Object, ObjectKind, Timestamp, WriteBatchBuilder};
use sonde_proto::mqtt::{MAX_LEVELS, filter_matches};
use sonde_query::statement::{SourceSpec, parse_source};

use crate::decode::Rows;
use crate::decode::json::{self, Shape};
use crate::limits::TEXT_PAYLOAD;
use crate::row::{Refusal, RowBuffer, TagNames, Target, TimeName};

/// The name of the source that takes what no other does.
pub(crate) const DEFAULT_SOURCE: &str = "default";
/// The text by which the catalog knows it.
const DEFAULT_TEXT: &str = "CREATE SOURCE \"default\" ON MQTT '#' FORMAT JSON INTO \"default\"";
/// A source, ready to use.
#[derive(Debug)]
pub(crate) struct Source {
    /// The database of its names.
    pub(crate) database: String,
    /// Its name.
    pub(crate) name: String,
    /// Whether a refused message is said to be refused.
    pub(crate) reject_invalid: bool,
    /// How long its messages stay in the log as they came; zero is not at all.
    pub(crate) raw_retention: Duration,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Default,
    Json { spec: Box<SourceSpec>, filter: String },
}

/// How a source makes rows of messages.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mapping<'s> {
    /// The first level is the table, and the topic a tag.
    Default,
    /// As the statement says.
    Json(&'s SourceSpec),
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

    /// All of them, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Source> {
        self.sources.iter().map(AsRef::as_ref)
    }

    /// The longest time that one of them keeps its messages in the log.
    pub(crate) fn raw_retention(&self) -> Duration {
        self.sources.iter().map(|source| source.raw_retention).max().unwrap_or_default()
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
        let raw_retention = Duration::ZERO;
        return Ok(Source { database, name, reject_invalid: false, raw_retention, kind: Kind::Default });
    }
    let spec = parse_source(&object.text).map_err(|error| error.to_string())?;
    let filter = spec.mqtt_filter();
    let (reject_invalid, raw_retention) = (spec.reject_invalid, spec.raw_retention);
    Ok(Source {
        database,
        name,
        reject_invalid,
        raw_retention,
        kind: Kind::Json { spec: Box::new(spec), filter },
    })
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

/// Whether a payload is the bare scalar null.
fn is_null(rows: &Rows<'_>) -> bool {
    rows.iter().flatten().any(|(_, value)| *value == FieldValue::Null)
}

/// The name of a bare scalar's column.
fn scalar_name(value: &FieldValue<'_>) -> &'static str {
    match value {
        FieldValue::Bool(_) => "state",
        FieldValue::Text(_) => "text",
        _ => "value",
    }
}

/// Where decoded rows go.
pub(crate) struct Sink<'s> {
    pub(crate) engine: &'s Engine,
    pub(crate) buffer: &'s mut RowBuffer,
    pub(crate) builder: &'s mut WriteBatchBuilder,
}

impl Sink<'_> {
    fn store(&mut self, target: &Target<'_>, rows: &mut Rows<'_>) -> Result<usize, Refusal> {
        self.buffer.store(self.engine, self.builder, target, rows)
    }
}

impl Source {
    /// How it makes rows of messages.
    pub(crate) fn mapping(&self) -> Mapping<'_> {
        match &self.kind {
            Kind::Default => Mapping::Default,
            Kind::Json { spec, .. } => Mapping::Json(spec),
        }
    }

    /// Adds the rows of a message to the builder's current message. Returns how many.
    pub(crate) fn decode(&self, mut sink: Sink<'_>, message: &Incoming<'_>) -> Result<usize, Refusal> {
        let mut rows = sink.buffer.rows();
        let stored = match &self.kind {
            Kind::Default => self.store_default(&mut sink, message, &mut rows),
            Kind::Json { spec, .. } => self.store_json(&mut sink, message, spec, &mut rows),
        };
        sink.buffer.keep(rows);
        stored
    }

    fn store_default<'m>(
        &self,
        sink: &mut Sink<'_>,
        message: &Incoming<'m>,
        rows: &mut Rows<'m>,
    ) -> Result<usize, Refusal> {
        let table = message.topic.split('/').next().unwrap_or_default();
        if table.is_empty() || message.payload.is_empty() {
            return Err(Refusal::Passed);
        }
        let Ok(text) = std::str::from_utf8(message.payload) else { return Err(Refusal::Passed) };
        match json::decode(message.payload, rows) {
            Ok(Shape::Objects) => {}
            Ok(Shape::Scalar) if is_null(rows) => return Err(Refusal::Passed),
            Ok(Shape::Scalar) => rows.name_scalar(scalar_name),
            Err(error) if text.trim_start().starts_with(['{', '[']) || text.len() > TEXT_PAYLOAD => {
                return Err(Refusal::Invalid(error.0));
            }
            Err(_) => {
                rows.clear();
                rows.push(("text".into(), FieldValue::Text(text.into())));
                rows.end_row();
            }
        }
        let target = Target {
            database: &self.database,
            table,
            time: TimeName::Usual,
            unit: None,
            arrival: message.arrival,
            tags: TagNames::Usual,
            fixed: &[("topic", message.topic)],
            limited_by: Some(message.topic),
        };
        sink.store(&target, rows)
    }

    fn store_json<'m>(
        &self,
        sink: &mut Sink<'_>,
        message: &Incoming<'m>,
        spec: &SourceSpec,
        rows: &mut Rows<'m>,
    ) -> Result<usize, Refusal> {
        let shape = json::decode(message.payload, rows).map_err(|error| Refusal::Invalid(error.0))?;
        if shape == Shape::Scalar {
            if is_null(rows) {
                return Err(Refusal::Invalid("the payload is null".into()));
            }
            rows.name_scalar(|_| "value");
        }
        let mut fixed = [("", ""); MAX_LEVELS];
        let mut count = 0;
        for (level, name) in spec.topic_tags() {
            let value = message.topic.split('/').nth(level).unwrap_or_default();
            if let Some(slot) = fixed.get_mut(count) {
                *slot = (name, value);
                count += 1;
            }
        }
        let target = Target {
            database: spec.table.database_or(&self.database),
            table: &spec.table.name,
            time: spec.time.as_deref().map_or(TimeName::Usual, TimeName::Named),
            unit: spec.unit,
            arrival: message.arrival,
            tags: if spec.tags.is_empty() { TagNames::Usual } else { TagNames::Listed(&spec.tags) },
            fixed: fixed.get(..count).unwrap_or_default(),
            limited_by: None,
        };
        sink.store(&target, rows)
    }
}
