//! Rules: SQL over the committed rows of a table, in log order, by a cursor that survives restarts.
//!
//! # Invariants
//! - Rows that a rule inserts and the cursor that says so are one commit: exactly once.
//! - What a rule publishes is durable before the cursor moves on: at least once.
//! - A rule starts behind the position at which it was created.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arrow::array::{ArrayRef, StringArray, TimestampNanosecondArray};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parking_lot::Mutex;
use sonde_engine::{
    CURSORS, Column, ColumnRole, Engine, LogReader, ObjectKind, Origin, RowsRecord, SeqNo, State, Table,
    Timestamp, WriteBatch, WriteBatchBuilder, arrow_schema, cursor_key, field_array, widened,
};
use sonde_proto::mqtt::{QoS, validate_topic};
use sonde_query::door::format::nd_json;
use sonde_query::statement::{RuleAction, RuleSpec, Template, parse_rule};
use sonde_query::system::{BatchBuilder, Kind};
use sonde_query::{Nulls, QueryEngine, ensure_table, write_rows};

use crate::dead_letter::{self, DeadLetter};
use crate::limits::{RULE_ROWS, RULE_STEPS};
use crate::mqtt::{Message, Mqtt};

/// The columns of `system.rules`.
const COLUMNS: &[(&str, Kind)] = &[
    ("database", Kind::Text),
    ("name", Kind::Text),
    ("cursor", Kind::UInt),
    ("behind", Kind::UInt),
    ("matches", Kind::UInt),
    ("errors", Kind::UInt),
    ("lost", Kind::UInt),
    ("last_error", Kind::Text),
    ("statement", Kind::Text),
];

/// Bytes of log that a rule may read without rows of its table before its cursor is saved.
const UNSAVED_BYTES: usize = 16 << 20;
/// How long the runner waits for rows before it looks at the catalog again.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a rule that failed rests before it is tried again.
const REST: Duration = Duration::from_secs(2);

/// What is known of a rule while it runs.
#[derive(Clone, Debug, Default)]
struct Status {
    cursor: u64,
    matches: u64,
    errors: u64,
    lost: u64,
    last_error: Option<String>,
}

type Statuses = Mutex<BTreeMap<(String, String), Status>>;

/// The running rules.
#[derive(Debug)]
pub struct Rules {
    statuses: Arc<Statuses>,
    stopping: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Starts the runner. Without a listener there is nobody to publish to, and rules that publish wait.
pub fn start(
    query: QueryEngine,
    mqtt: Option<Arc<Mqtt>>,
    runtime: tokio::runtime::Handle,
) -> std::io::Result<Rules> {
    let statuses = Arc::new(Statuses::default());
    let stopping = Arc::new(AtomicBool::new(false));
    let mut runner = Runner {
        engine: query.engine().clone(),
        query,
        mqtt,
        runtime,
        statuses: Arc::clone(&statuses),
        rules: Vec::new(),
        version: None,
    };
    let stop = Arc::clone(&stopping);
    let thread = std::thread::Builder::new().name("sonde-rules".into()).spawn(move || runner.run(&stop))?;
    Ok(Rules { statuses, stopping, thread: Mutex::new(Some(thread)) })
}

impl Rules {
    /// Ends the runner behind the micro-batch that it is at.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the rule runner panicked");
        }
    }

    /// `system.rules`.
    pub fn batch(&self, engine: &Engine) -> sonde_query::Result<RecordBatch> {
        let catalog = engine.catalog();
        let statuses = self.statuses.lock();
        let mut rows = BatchBuilder::new(COLUMNS);
        for object in catalog.objects(ObjectKind::Rule) {
            let key = (object.database.clone(), object.name.clone());
            let status = statuses.get(&key).cloned().unwrap_or_default();
            rows.text(Some(&object.database));
            rows.text(Some(&object.name));
            rows.uint(status.cursor);
            rows.uint(engine.published().0.saturating_sub(status.cursor));
            rows.uint(status.matches);
            rows.uint(status.errors);
            rows.uint(status.lost);
            rows.text(status.last_error.as_deref());
            rows.text(Some(&object.text));
            rows.end_row();
        }
        rows.finish()
    }
}

struct Rule {
    database: String,
    name: String,
    text: String,
    spec: RuleSpec,
    reader: LogReader,
    /// Bytes of log that were read since the cursor was saved.
    unsaved: usize,
    /// Until when a rule that failed rests.
    rests_until: Option<std::time::Instant>,
}

impl Rule {
    fn key(&self) -> (String, String) {
        (self.database.clone(), self.name.clone())
    }

    fn cursor_record(&self, position: SeqNo) -> State {
        let key = cursor_key(&self.database, &self.name);
        State { namespace: CURSORS.into(), key, value: Some(position.0.to_le_bytes().to_vec()) }
    }
}

struct Runner {
    engine: Engine,
    query: QueryEngine,
    mqtt: Option<Arc<Mqtt>>,
    runtime: tokio::runtime::Handle,
    statuses: Arc<Statuses>,
    rules: Vec<Rule>,
    version: Option<u64>,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Runner {
    fn run(&mut self, stopping: &AtomicBool) {
        while !stopping.load(Ordering::Acquire) {
            self.load();
            let behind = self.rules.iter().map(|rule| rule.reader.position()).min();
            let mut rules = std::mem::take(&mut self.rules);
            for rule in &mut rules {
                if rule.rests_until.is_some_and(|until| until > std::time::Instant::now()) {
                    continue;
                }
                if let Err(error) = self.turn(rule) {
                    rule.rests_until = Some(std::time::Instant::now() + REST);
                    tracing::warn!(rule = rule.name, %error, "a rule failed; it will be tried again");
                    let mut statuses = self.statuses.lock();
                    let status = statuses.entry(rule.key()).or_default();
                    status.errors += 1;
                    status.last_error = Some(error.to_string());
                }
            }
            self.rules = rules;
            let resting = self.rules.iter().any(|rule| rule.rests_until.is_some());
            let from =
                if resting { self.engine.published() } else { behind.unwrap_or(self.engine.published()) };
            let reached = self.rules.iter().map(|rule| rule.reader.position()).min().unwrap_or(from);
            let _ = self.engine.wait_published(reached.max(from), PATIENCE);
        }
    }

    /// Compiles the rules of the catalog where they have changed.
    fn load(&mut self) {
        let catalog = self.engine.catalog();
        let version = catalog.version(ObjectKind::Rule);
        if self.version == Some(version) {
            return;
        }
        let mut known: Vec<Rule> = std::mem::take(&mut self.rules);
        for object in catalog.objects(ObjectKind::Rule) {
            let same = known.iter().position(|rule| {
                rule.database == object.database && rule.name == object.name && rule.text == object.text
            });
            if let Some(place) = same {
                self.rules.push(known.swap_remove(place));
                continue;
            }
            match parse_rule(&object.text) {
                Ok(spec) => {
                    let position = self.cursor(&object.database, &object.name);
                    let rule = Rule {
                        database: object.database.clone(),
                        name: object.name.clone(),
                        text: object.text.clone(),
                        spec,
                        reader: LogReader::new(position),
                        unsaved: 0,
                        rests_until: None,
                    };
                    self.rules.push(rule);
                }
                Err(error) => {
                    tracing::warn!(rule = object.name, %error, "this rule is paused: it does not parse")
                }
            }
        }
        self.version = Some(version);
    }

    /// Where a rule stands: its saved cursor, which is made with the rule.
    fn cursor(&self, database: &str, name: &str) -> SeqNo {
        let saved = self.engine.state(CURSORS, &cursor_key(database, name));
        let position = saved.and_then(|value| value.as_ref().try_into().ok().map(u64::from_le_bytes));
        position.map_or_else(|| self.engine.published(), SeqNo)
    }

    /// Runs a rule over the next rows of its table, and moves its cursor.
    fn turn(&self, rule: &mut Rule) -> Result<(), Failure> {
        let catalog = self.engine.catalog();
        let table =
            catalog.require_table(rule.spec.from.database_or(&rule.database), &rule.spec.from.name)?;
        let start = rule.reader.position();
        let outcome = self.step(rule, table);
        if outcome.is_err() {
            // The same rows are read again.
            rule.reader = LogReader::new(start);
        }
        outcome
    }

    fn step(&self, rule: &mut Rule, table: &Arc<Table>) -> Result<(), Failure> {
        let start = rule.reader.position();
        let turn = self.engine.read_log(&mut rule.reader, |id| id == table.id())?;
        if turn.position == start && turn.lost.is_none() {
            return Ok(());
        }
        rule.unsaved += turn.bytes;
        let done = self.apply(rule, table, turn.rows, turn.position)?;
        rule.rests_until = None;
        let mut statuses = self.statuses.lock();
        let status = statuses.entry(rule.key()).or_default();
        status.cursor = turn.position.0;
        status.matches += done.matches;
        status.errors += done.refused;
        if let Some(reason) = done.reason {
            status.last_error = Some(reason);
        }
        if let Some(lost) = turn.lost {
            status.lost += lost.last.0 - lost.first.0 + 1;
            let (first, last) = (lost.first.0, lost.last.0);
            tracing::warn!(rule = rule.name, first, last, "the log went before the rule had read it");
        }
        Ok(())
    }

    fn apply(
        &self,
        rule: &mut Rule,
        table: &Arc<Table>,
        mut rows: Vec<RowsRecord>,
        position: SeqNo,
    ) -> Result<Done, Failure> {
        let mut done = Done::default();
        // Rules are for what happens now.
        rows.retain(|rows| rows.origin != Origin::Import);
        if rows.is_empty() {
            // Nothing of the table: the cursor is saved with the next rows, or after a while.
            if rule.unsaved >= UNSAVED_BYTES {
                self.engine.write(WriteBatch::of_state(vec![rule.cursor_record(position)])).wait()?;
                rule.unsaved = 0;
            }
            return Ok(done);
        }
        let (rows, astray): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|rows| rule_steps(rows.origin) < RULE_STEPS);
        let origin =
            Origin::Rule(1 + rows.iter().map(|rows| rule_steps(rows.origin)).max().unwrap_or_default());
        let mut results = Vec::new();
        for batch in to_batches(&self.engine, table, &rows)? {
            results.extend(self.runtime.block_on(self.query.run_rule(&rule.spec, &rule.database, batch))?);
        }
        results.retain(|batch| batch.num_rows() > 0);
        done.matches = results.iter().map(|batch| batch.num_rows() as u64).sum();
        let mut builder = self.engine.batch();
        builder.set_origin(origin);
        builder.begin_message();
        let mut letters = Letters { engine: &self.engine, rule, done: &mut done };
        for batch in to_batches(&self.engine, table, &astray)? {
            let reason = format!("rules made this row in {RULE_STEPS} steps: they form a cycle");
            for row in 0..batch.num_rows() {
                letters.write(&mut builder, &nd_json(&batch.slice(row, 1))?, &reason)?;
            }
        }
        for action in &rule.spec.actions {
            if let RuleAction::Publish { topic, qos, retain } = action {
                let qos = QoS::from_bits(*qos).unwrap_or_default();
                for batch in &results {
                    let message = Message { origin, ..Message::new("", &[], qos, *retain) };
                    self.publish(&mut builder, &mut letters, batch, topic, &message)?;
                }
            }
        }
        for action in &rule.spec.actions {
            if let RuleAction::Insert { table } = action {
                let database = table.database_or(&rule.database);
                for batch in &results {
                    self.insert(&mut builder, &mut letters, (database, &table.name), batch)?;
                }
            }
        }
        builder.state(rule.cursor_record(position));
        if let Some(batch) = builder.finish() {
            self.engine.write(batch).wait()?;
        }
        rule.unsaved = 0;
        Ok(done)
    }

    fn insert(
        &self,
        builder: &mut WriteBatchBuilder,
        letters: &mut Letters<'_>,
        target: (&str, &str),
        batch: &RecordBatch,
    ) -> Result<(), Failure> {
        let (database, name) = target;
        let strings = batch
            .schema()
            .fields()
            .iter()
            .filter(|field| field.data_type().is_string())
            .map(|f| f.name().clone())
            .collect::<Vec<_>>();
        let known = self.engine.catalog().exact_table(database, name).is_some();
        // A table that the rule makes has the strings of its query as tags; one that exists stays as it is.
        let tags = if known { Vec::new() } else { strings };
        let table = ensure_table(&self.engine, database, name, &batch.schema(), &tags)?;
        let everything = Timestamp::MIN..=Timestamp::from_nanos(i64::MAX - 1);
        let arrival = || self.engine.arrival();
        let errors = write_rows(builder, &table, batch, &arrival, &everything, Nulls::Absent)?;
        for error in errors {
            let payload = nd_json(&batch.slice(error.row, 1))?;
            letters.write(builder, &payload, &format!("INSERT INTO {name}: {}", error.reason))?;
        }
        Ok(())
    }

    fn publish(
        &self,
        builder: &mut WriteBatchBuilder,
        letters: &mut Letters<'_>,
        batch: &RecordBatch,
        topic: &Template,
        like: &Message,
    ) -> Result<(), Failure> {
        const OPTIONS: FormatOptions<'static> = FormatOptions::new();
        let mqtt = self.mqtt.as_ref().ok_or("PUBLISH needs the MQTT listener, and mqtt.listen is empty")?;
        let payloads = nd_json(batch)?;
        let schema = batch.schema();
        let formatters: Vec<ArrayFormatter<'_>> = batch
            .columns()
            .iter()
            .map(|array| ArrayFormatter::try_new(array.as_ref(), &OPTIONS))
            .collect::<Result<_, _>>()?;
        let mut messages = Vec::with_capacity(batch.num_rows());
        for (row, payload) in payloads.split(|byte| *byte == b'\n').take(batch.num_rows()).enumerate() {
            let value = |name: &str| {
                let place = schema.index_of(name).ok();
                let text = place.and_then(|place| formatters.get(place)).map(|f| f.value(row).to_string());
                // A value must not add a level or a wildcard to the topic.
                text.unwrap_or_default().replace(['/', '+', '#'], "_")
            };
            let topic = topic.fill(value);
            if let Err(error) = validate_topic(&topic) {
                letters.write(builder, payload, &format!("PUBLISH TO '{topic}': {error}"))?;
                continue;
            }
            let message = Message { topic: topic.into(), payload: payload.into(), ..like.clone() };
            if let Some(why) = message.too_large() {
                letters.write(builder, payload, &format!("PUBLISH TO '{}': {why}", message.topic))?;
                continue;
            }
            messages.push(message);
        }
        Ok(self.runtime.block_on(mqtt.publish(messages))?)
    }
}

/// In how many steps rules made rows of this origin.
fn rule_steps(origin: Origin) -> u8 {
    match origin {
        Origin::Rule(steps) => steps,
        Origin::Client | Origin::Import => 0,
    }
}

/// What came of one turn of a rule.
#[derive(Default)]
struct Done {
    matches: u64,
    /// Rows that an action refused: they are dead letters.
    refused: u64,
    /// Why the last of them was.
    reason: Option<String>,
}

/// Where the rows go that an action of a rule refuses: to the dead letters, in the commit that moves the cursor.
struct Letters<'r> {
    engine: &'r Engine,
    rule: &'r Rule,
    done: &'r mut Done,
}

impl Letters<'_> {
    fn write(
        &mut self,
        builder: &mut WriteBatchBuilder,
        payload: &[u8],
        reason: &str,
    ) -> Result<(), Failure> {
        let table = dead_letter::table(self.engine)?;
        let topic = format!("rule {}.{}", self.rule.database, self.rule.name);
        let payload = payload.trim_ascii_end();
        let letter = DeadLetter { topic: &topic, client: "", payload, reason };
        dead_letter::write(self.engine, &table, builder, &letter)?;
        self.done.refused += 1;
        self.done.reason = Some(reason.to_owned());
        Ok(())
    }
}

/// The logged rows as record batches of the table's schema, as they were written.
fn to_batches(engine: &Engine, table: &Arc<Table>, rows: &[RowsRecord]) -> Result<Vec<RecordBatch>, Failure> {
    let columns: Vec<_> = table.def().columns.iter().map(|column| column.id).collect();
    let schema: SchemaRef = arrow_schema(table, &columns);
    let mut batches = Vec::new();
    for record in rows {
        for start in (0..record.times.len()).step_by(RULE_ROWS) {
            let range = start..(start + RULE_ROWS).min(record.times.len());
            batches.push(to_batch(engine, table, &schema, record, range)?);
        }
    }
    Ok(batches)
}

fn to_batch(
    engine: &Engine,
    table: &Arc<Table>,
    schema: &SchemaRef,
    record: &RowsRecord,
    range: std::ops::Range<usize>,
) -> Result<RecordBatch, Failure> {
    let series = record.series.get(range.clone()).unwrap_or_default();
    let keys: Vec<Vec<Option<String>>> = series.iter().map(|id| engine.series_tags(table, *id)).collect();
    let mut arrays: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    let mut tag = 0;
    for column in &table.def().columns {
        arrays.push(match column.role {
            ColumnRole::Time => {
                let times = record.times.get(range.clone()).unwrap_or_default().to_vec();
                Arc::new(TimestampNanosecondArray::from(times).with_timezone("UTC"))
            }
            ColumnRole::Tag => {
                let values = keys.iter().map(|key| key.get(tag).cloned().flatten()).collect::<StringArray>();
                tag += 1;
                Arc::new(values)
            }
            ColumnRole::Field => {
                let known = record.columns.iter().find(|(id, _)| *id == column.id).map(|(_, cells)| cells);
                let cells = known.map_or_else(
                    || Column::absent(column.kind, range.len()),
                    |cells| cells.slice(range.clone()),
                );
                field_array(widened(cells, column.kind))?
            }
        });
    }
    Ok(RecordBatch::try_new(SchemaRef::clone(schema), arrays)?)
}
