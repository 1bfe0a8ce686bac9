//! Bodies of rows on their way into a batch: JSON, NDJSON, line protocol.
//!
//! # Invariants
//! - A row that is refused costs no other one; the first is named.
//! - What `repeated` stores never blocks: no table, no column and no series is new.

use bytes::Bytes;
use sonde_engine::{ColumnId, Engine, FieldValue, Timestamp, WriteBatch, WriteBatchBuilder};
use sonde_query::statement::TimeUnit;

use crate::decode::json::{self, Shape};
use crate::decode::{Rows, line, time_of_number};
use crate::limits::REPEATED_BODY;
use crate::repeat::{Destination, Memories, Memory};
use crate::row::{Refusal, RowBuffer, TagNames, Target, TimeName, check_time};

/// What a body holds, and where it goes.
pub(crate) struct Body {
    pub(crate) destination: Destination,
    pub(crate) unit: Option<TimeUnit>,
    pub(crate) tags: Vec<String>,
    pub(crate) bytes: Bytes,
    pub(crate) kind: BodyKind,
}

/// How a body spells its rows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BodyKind {
    Json,
    NdJson,
    Lines,
}

/// The rows of a small body whose lines all repeat earlier ones: that takes little time, and cannot block.
pub(crate) fn repeated(engine: &Engine, memories: &Memories, body: &Body) -> Option<WriteBatch> {
    if !matches!(body.kind, BodyKind::Lines) || body.bytes.len() > REPEATED_BODY {
        return None;
    }
    let mut writer = Writer::new(engine, body).ok()?;
    let memory = memories.take(engine, &body.destination);
    let all_repeat = line::lines(writer.text).all(|(_, text)| writer.repeated_line(&memory, text));
    memories.give_back(memory);
    writer.builder.finish().filter(|_| all_repeat)
}

/// A body on its way into a batch.
struct Writer<'b> {
    engine: &'b Engine,
    body: &'b Body,
    text: &'b str,
    buffer: RowBuffer,
    builder: WriteBatchBuilder,
    refused: Refused,
    /// The fields of one line.
    fields: Vec<(ColumnId, FieldValue<'b>)>,
    /// By which times are judged.
    now: Timestamp,
}

/// The rows that were refused: how many, and what is wrong with the first.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) count: usize,
    pub(crate) first: String,
}

/// Adds the good rows of a body; says what is wrong with the others.
pub(crate) fn build(
    engine: &Engine,
    memories: &Memories,
    body: &Body,
) -> Result<(WriteBatchBuilder, Refused), Refusal> {
    let mut writer = Writer::new(engine, body)?;
    match body.kind {
        BodyKind::Lines => {
            let mut memory = memories.take(engine, &body.destination);
            let stored = writer.lines(&mut memory);
            memories.give_back(memory);
            stored?;
        }
        BodyKind::NdJson => writer.nd_json()?,
        BodyKind::Json => writer.json()?,
    }
    Ok((writer.builder, writer.refused))
}

impl<'b> Writer<'b> {
    fn new(engine: &'b Engine, body: &'b Body) -> Result<Self, Refusal> {
        let text =
            std::str::from_utf8(&body.bytes).map_err(|_| Refusal::Invalid("the body is not UTF-8".into()))?;
        let (buffer, refused, fields) = (RowBuffer::default(), Refused::default(), Vec::new());
        let (mut builder, now) = (engine.batch(), engine.now());
        builder.begin_message();
        Ok(Self { engine, body, text, buffer, builder, refused, fields, now })
    }

    fn lines(&mut self, memory: &mut Memory) -> Result<(), Refusal> {
        let mut rows = Rows::default();
        for (number, text) in line::lines(self.text) {
            if !self.repeated_line(memory, text) {
                let stored = self.line(memory, text, &mut rows);
                self.note("line", number, stored)?;
            }
        }
        Ok(())
    }

    /// Stores a line if it repeats an earlier one.
    fn repeated_line(&mut self, memory: &Memory, text: &'b str) -> bool {
        let Self { engine, body, builder, fields, now, .. } = self;
        let time = |number| line_time(engine, body, *now, number).ok();
        memory.store(builder, text, fields, time).is_ok()
    }

    fn line(&mut self, memory: &mut Memory, text: &'b str, rows: &mut Rows<'b>) -> Result<usize, Refusal> {
        let line = line::decode(text, rows).map_err(|error| Refusal::Invalid(error.0))?;
        let time = line_time(self.engine, self.body, self.now, line.time)?;
        let table = self.body.destination.table.as_deref().unwrap_or(&line.table);
        let mut target = target(self.body, table, time);
        (target.time, target.tags) = (TimeName::Absent, TagNames::First(line.tags));
        let stored = self.buffer.store(self.engine, &mut self.builder, &target, rows)?;
        if let Some(row) = self.buffer.last_row(line.tags) {
            memory.learn(text, &row);
        }
        Ok(stored)
    }

    fn nd_json(&mut self) -> Result<(), Refusal> {
        let mut rows = Rows::default();
        for (number, text) in self.text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
            let stored = match json::decode(text.as_bytes(), &mut rows) {
                Ok(Shape::Objects) => self.objects(&mut rows),
                Ok(Shape::Scalar) => Err(Refusal::Invalid("no JSON object".into())),
                Err(error) => Err(Refusal::Invalid(error.0)),
            };
            self.note("line", number + 1, stored)?;
        }
        Ok(())
    }

    /// Each object by itself, so that a bad one costs none of the others.
    fn json(&mut self) -> Result<(), Refusal> {
        let text = self.text;
        let mut number = 0;
        let mut failure = None;
        let shape = json::decode_each(text.as_bytes(), &mut Rows::default(), |rows| {
            if failure.is_none() {
                let stored = self.objects(rows);
                failure = self.note("row", number, stored).err();
            }
            rows.clear();
            number += 1;
        });
        match (failure, shape) {
            (Some(failure), _) => Err(failure),
            (None, Ok(Shape::Objects)) => Ok(()),
            (None, Ok(Shape::Scalar)) => {
                Err(Refusal::Invalid("the body is no JSON object or array of them".into()))
            }
            (None, Err(error)) => Err(Refusal::Invalid(error.0)),
        }
    }

    fn objects(&mut self, rows: &mut Rows<'_>) -> Result<usize, Refusal> {
        let Some(table) = &self.body.destination.table else {
            return Err(Refusal::Invalid("no table: add ?table=name".into()));
        };
        let target = target(self.body, table, self.engine.arrival());
        self.buffer.store(self.engine, &mut self.builder, &target, rows)
    }

    /// Notes what was refused; fails where nothing more can be stored.
    fn note(&mut self, what: &str, number: usize, stored: Result<usize, Refusal>) -> Result<(), Refusal> {
        match stored {
            Ok(_) | Err(Refusal::Passed) => Ok(()),
            Err(Refusal::Invalid(reason)) => {
                self.refused.count += 1;
                if self.refused.count == 1 {
                    self.refused.first = format!("{what} {number}: {reason}");
                }
                Ok(())
            }
            Err(refusal) => Err(refusal),
        }
    }
}

/// The time of a line; without one, its arrival.
fn line_time(
    engine: &Engine,
    body: &Body,
    now: Timestamp,
    number: Option<i64>,
) -> Result<Timestamp, Refusal> {
    let Some(number) = number else { return Ok(engine.arrival()) };
    let time = time_of_number(&FieldValue::Int(number), body.unit);
    let time = time.map_err(|error| Refusal::Invalid(error.0))?;
    check_time(time, now)?;
    Ok(time)
}

/// Rows of JSON; `arrival` is the time of those without one.
fn target<'t>(body: &'t Body, table: &'t str, arrival: Timestamp) -> Target<'t> {
    Target {
        database: &body.destination.database,
        table,
        time: TimeName::Usual,
        unit: body.unit,
        arrival,
        tags: if body.tags.is_empty() { TagNames::Usual } else { TagNames::Listed(&body.tags) },
        fixed: &[],
        limited_by: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use sonde_engine::Options;

    use super::*;
    use crate::decode::fuzz::random;

    const TIME: &str = "1708700000000000000";

    fn body(lines: &[u8]) -> Body {
        Body {
            destination: Destination { database: "public".into(), table: None },
            unit: Some(TimeUnit::Nanosecond),
            tags: Vec::new(),
            bytes: Bytes::copy_from_slice(lines),
            kind: BodyKind::Lines,
        }
    }

    fn engine() -> (tempfile::TempDir, Engine) {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(Options::new(dir.path())).unwrap();
        (dir, engine)
    }

    fn commit(engine: &Engine, memories: &Memories, lines: &str) -> Refused {
        let (builder, refused) = build(engine, memories, &body(lines.as_bytes())).unwrap();
        if let Some(batch) = builder.finish() {
            engine.write(batch).wait().unwrap();
        }
        refused
    }

    /// What becomes of a body: the batch as text, and the rows that were refused. Times from `start` on are arrivals, of
    /// which no two are the same: they count as one.
    fn outcome(
        engine: &Engine,
        memories: &Memories,
        lines: &[u8],
        start: Timestamp,
    ) -> Result<(String, Refused), String> {
        let is_arrival = |word: &str| word.parse().is_ok_and(|time: i64| time >= start.as_nanos());
        match build(engine, memories, &body(lines)) {
            Ok((builder, refused)) => {
                let batch = format!("{:?}", builder.finish());
                let words = batch.split_inclusive(|c: char| !c.is_ascii_digit());
                let mask = |word: &str| {
                    let arrives = is_arrival(word.trim_end_matches(|c: char| !c.is_ascii_digit()));
                    if arrives { "arrival".to_owned() } else { word.to_owned() }
                };
                Ok((words.map(mask).collect(), refused))
            }
            Err(refusal) => Err(format!("{refusal:?}")),
        }
    }

    #[test]
    fn fuzz_lines_that_repeat_are_stored_as_decoded_ones() {
        let (_dir, engine) = engine();
        let exemplars = [
            format!("cpu,host=a,dc=x usage=1.5,n=3i,u=4u,ok=t {TIME}"),
            format!("cpu,host=b usage=-2,n=-77i,u=0u,ok=false  {TIME}"),
            format!("m\\ x,t=a\\,b s=\"x, y\",v=1 {TIME}"),
            format!("log,host=a text=\"a b\",v=1,v=2 {TIME}"),
            format!("cpu   n=12345678901234567i {TIME}\nb v=1e5,w=.5 {TIME}"),
            format!("b,\u{e9}=\u{e8} v=nan {TIME}\nb,\u{e9}=\u{e8} \u{ea}=1 {TIME}"),
        ];
        let warm = Memories::default();
        // Twice: a series is remembered once it is registered.
        for _ in 0..2 {
            exemplars.iter().for_each(|lines| drop(commit(&engine, &warm, lines)));
        }
        let (repeated_ones, start) = (Cell::new(0), engine.now());
        let exemplars: Vec<Vec<u8>> = exemplars.iter().map(|lines| lines.clone().into_bytes()).collect();
        random::fuzz(
            &exemplars,
            |_, _| {},
            |bytes| {
                let decoded = outcome(&engine, &Memories::default(), bytes, start);
                assert_eq!(decoded, outcome(&engine, &warm, bytes, start));
                let repeats = super::repeated(&engine, &warm, &body(bytes)).is_some();
                repeated_ones.set(repeated_ones.get() + usize::from(repeats));
            },
        );
        assert!(repeated_ones.get() > 10, "{} bodies were stored from memory", repeated_ones.get());
    }

    #[test]
    fn a_memory_follows_its_table_through_new_columns_and_a_drop() {
        let (_dir, engine) = engine();
        let memories = Memories::default();
        let line = format!("cpu,host=a v=1 {TIME}");
        let repeats = |lines: &str| super::repeated(&engine, &memories, &body(lines.as_bytes())).is_some();
        assert!(!repeats(&line), "nothing is known");
        commit(&engine, &memories, &line);
        assert!(!repeats(&line), "the series had no handle when the line was decoded");
        commit(&engine, &memories, &line);
        assert!(repeats(&line) && repeats(&format!("{line}\n{line}")));
        assert!(!repeats(&format!("{line}\ncpu,host=b v=1")), "one line of another series");
        assert!(!repeats("cpu,host=a w=1") && !repeats("cpu,host=a v=1,w=1") && !repeats("cpu,host=a v=t"));

        commit(&engine, &memories, "cpu,host=a,dc=x w=1");
        assert!(repeats(&line), "columns came");
        let table = Arc::clone(engine.catalog().exact_table("public", "cpu").unwrap());
        let (v, table) = (table.exact("v").unwrap().id, table.id());
        let rename = sonde_engine::CatalogRequest::RenameColumn(table, v, "volts".into());
        engine.change_catalog(rename).unwrap();
        assert!(!repeats(&line), "the field has another name");
        commit(&engine, &memories, &line);
        assert!(engine.catalog().table_by_id(table).unwrap().exact("v").unwrap().id > v);
        engine.change_catalog(sonde_engine::CatalogRequest::DropTable(table)).unwrap();
        assert!(!repeats(&line), "the table is gone");
        commit(&engine, &memories, &line);
        commit(&engine, &memories, &line);
        assert!(repeats(&line), "another table of the name came");
    }

    #[test]
    fn a_bad_line_among_repeated_ones_is_named() {
        let (_dir, engine) = engine();
        let memories = Memories::default();
        let line = format!("cpu,host=a v=1 {TIME}");
        commit(&engine, &memories, &line);
        commit(&engine, &memories, &line);
        let refused = commit(&engine, &memories, &format!("{line}\n{line}\ncpu,host=a v=x {TIME}\n{line}"));
        assert_eq!(refused.count, 1);
        assert!(refused.first.starts_with("line 3:"), "{}", refused.first);
        let late = commit(&engine, &memories, "cpu,host=a v=1 1");
        assert!(late.first.contains("accepted range"), "{}", late.first);
    }
}
