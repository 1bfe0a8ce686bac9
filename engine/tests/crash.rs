//! The machine stops in every operation of a short history: what was acknowledged is there, and nothing by half.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use sonde_engine::{
    CatalogRequest, ColumnDef, ColumnId, ColumnRole, Engine, Error, MessageReader, PhysicalType, Result,
    SeqNo, SeqRange, Snapshot, State, TableId, TableKind, TableOptions, Timestamp,
};

use crate::data::{
    Batch, DAY, Fields, Query, Rec, START, Value, column, delete_range, message, new_table, range, read, rec,
    said, send, table, try_choose, update,
};
use crate::faults::{Fault, Faulty, Reached};
use crate::model::Model;
use crate::power::every;
use crate::store::Store;

/// A scripted history, and what is known of its outcome.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// What was acknowledged.
    acked: Model,
    acked_batches: u64,
    /// The same with the batch, or the table, whose answer was an error that leaves its fate open.
    maybe: Option<(Model, u64)>,
    last: Option<SeqRange>,
    /// What the messages said that were logged and acknowledged.
    said: Vec<(SeqNo, String)>,
    /// A snapshot that is held, and what it shows.
    held: Option<(Snapshot, Model)>,
    disk: Faulty,
}

impl History {
    /// One that runs on this disk.
    pub(crate) fn on(disk: &Faulty) -> Self {
        Self { disk: disk.clone(), ..Self::default() }
    }

    /// Runs it up to the first error.
    pub(crate) fn run(&mut self, engine: &Engine) -> Result<()> {
        self.steps(engine, false)
    }

    /// Runs it to the end, whatever fails on the way.
    pub(crate) fn run_on(&mut self, engine: &Engine) -> Result<()> {
        self.steps(engine, true)
    }

    fn steps(&mut self, engine: &Engine, go_on: bool) -> Result<()> {
        let pass = |result: Result<()>| if go_on { Ok(()) } else { result };
        for name in ["t", "w", "s", "r"] {
            pass(self.create(engine, name))?;
        }
        for round in 0..10 {
            if self.acked.tables.contains_key("t") && self.acked.tables.contains_key("w") {
                pass(self.write(engine, &batch(round)))?;
            }
            pass(self.change(engine, round))?;
            self.check_held(engine);
            let catalog = engine.catalog();
            let id = |name| catalog.require_table("public", name).map(|table| table.id());
            let (Ok(id), Ok(wide)) = (id("t"), id("w")) else { continue };
            pass(match round {
                1 | 4 => engine.flush(),
                2 => self.add_column(engine),
                5 | 8 => engine.compact(id),
                3 => engine.cool(id, Timestamp::from_nanos(START + DAY)).map(drop),
                6 => engine.cool(wide, Timestamp::from_nanos(START + 2 * DAY)).map(drop),
                _ => Ok(()),
            })?;
            // In memory, in chunks, hot and cold; purged by the compaction or the cooling behind it.
            match round {
                0 | 4 => pass(self.delete(engine, "t", START, START + 1))?,
                5 => pass(self.delete(engine, "w", START, START + 2 * DAY))?,
                7 => pass(self.delete(engine, "t", START, START + 2 * DAY))?,
                3 | 8 => pass(self.update(engine, round))?,
                _ => {}
            }
        }
        pass(engine.flush())?;
        self.check_held(engine);
        // Files that it keeps alive may go.
        self.held = None;
        Ok(())
    }

    /// What happens besides to the table `s`, whose columns change, and to `r`, whose rows expire.
    fn change(&mut self, engine: &Engine, round: i64) -> Result<()> {
        match round {
            0 | 3 | 6 | 9 => {
                let rows = rows_of(engine, "s", round);
                self.write(engine, &message("s", &rows))
            }
            1 => {
                let rows = rows_of(engine, "r", round);
                self.write(engine, &message("r", &rows))
            }
            2 => {
                // The end of a table is when retention looks at the others.
                self.create(engine, "x")?;
                self.drop_table(engine, "x")
            }
            4 => {
                if !self.disk.crashed() {
                    self.held = Some((engine.snapshot(), self.acked.clone()));
                }
                self.change_column(engine, "b", |id, column| {
                    CatalogRequest::RenameColumn(id, column, "bb".into())
                })
            }
            5 => self.change_column(engine, "i", |id, column| {
                CatalogRequest::Widen(id, column, PhysicalType::Float64)
            }),
            7 => self.change_column(engine, "s", CatalogRequest::DropColumn),
            8 if self.acked.tables.contains_key("s") => {
                let mut after = self.acked.clone();
                after.delete_range("s", &Query::default());
                self.note(delete_range(engine, "s", &Query::default()), after, self.acked_batches)
            }
            _ => Ok(()),
        }
    }

    fn drop_table(&mut self, engine: &Engine, name: &str) -> Result<()> {
        let mut after = self.acked.clone();
        after.tables.remove(name);
        let id = engine.catalog().require_table("public", name)?.id();
        let result = engine.change_catalog(CatalogRequest::DropTable(id));
        self.note(result, after, self.acked_batches)
    }

    /// Changes a column of `s`, where it has it.
    fn change_column(
        &mut self,
        engine: &Engine,
        name: &str,
        request: impl Fn(TableId, ColumnId) -> CatalogRequest,
    ) -> Result<()> {
        let catalog = engine.catalog();
        let Ok(table) = catalog.require_table("public", "s") else { return Ok(()) };
        let Some(column) = table.column(name) else { return Ok(()) };
        let request = request(table.id(), column.id);
        let mut after = self.acked.clone();
        if let Some(table) = after.tables.get_mut("s") {
            match &request {
                CatalogRequest::RenameColumn(_, _, to) => table.rename_field(name, Some(to)),
                CatalogRequest::Widen(..) => table.widen_field(name),
                _ => table.rename_field(name, None),
            }
        }
        let result = engine.change_catalog(request);
        self.note(result, after, self.acked_batches)
    }

    /// Gives every point of a device another value.
    fn update(&mut self, engine: &Engine, round: i64) -> Result<()> {
        let of_device = |row: &Rec| row.tags.get("device").is_some_and(|device| device == "d2");
        let (points, mut rows) = try_choose(engine, "t", of_device)?;
        if rows.is_empty() {
            return Ok(());
        }
        let fields = Fields::from([("i".into(), Value::Int(1000 + round)), ("s".into(), Value::text("new"))]);
        rows.iter_mut().for_each(|row| row.fields.clone_from(&fields));
        let mut after = self.acked.clone();
        after.apply(&message("t", &rows));
        self.note(update(engine, "t", points, &rows), after, self.acked_batches)
    }

    /// The snapshot that is held shows what it showed.
    fn check_held(&self, engine: &Engine) {
        let Some((snapshot, model)) = &self.held else { return };
        for name in model.tables.keys() {
            match read(engine, snapshot, name, &Query::default()) {
                Ok(mut rows) => {
                    rows.sort();
                    assert!(model.tables[name].is(&rows), "{name}: {rows:#?} in a snapshot of {model:#?}");
                }
                // A process that stopped reads nothing.
                Err(_) if self.disk.crashed() => {}
                Err(error) => panic!("{name}: {error}"),
            }
        }
    }

    fn create(&mut self, engine: &Engine, name: &str) -> Result<()> {
        let partition = if name == "w" { 7 * DAY } else { DAY };
        let mut after = self.acked.clone();
        after.create(name, false);
        let mut new = new_table(name, TableKind::Points, partition);
        if name == "r" {
            new.options.retention = DAY;
            after.tables.get_mut(name).unwrap().expires = true;
        }
        let result = engine.change_catalog(CatalogRequest::CreateTable(new));
        self.note(result, after, self.acked_batches)
    }

    /// Deletes the rows of one device.
    fn delete(&mut self, engine: &Engine, table: &str, start: i64, end: i64) -> Result<()> {
        let tags =
            vec![("device".to_owned(), BTreeSet::from([Some("d1".to_owned()), Some("d0".to_owned())]))];
        let query = Query { time: range(start, end), tags, ..Query::default() };
        let mut after = self.acked.clone();
        after.delete_range(table, &query);
        self.note(delete_range(engine, table, &query), after, self.acked_batches)
    }

    /// Changes nothing that the model knows.
    fn add_column(&self, engine: &Engine) -> Result<()> {
        let id = table(engine, "t").id();
        let new = vec![column("x", ColumnRole::Field, PhysicalType::Text)];
        engine.change_catalog(CatalogRequest::AddColumns(id, new))?;
        let options = TableOptions { partition: DAY, retention: 100 * 365 * DAY, ..TableOptions::default() };
        engine.change_catalog(CatalogRequest::SetOptions(id, options)).map(drop)
    }

    fn write(&mut self, engine: &Engine, batch: &Batch) -> Result<()> {
        let mut after = self.acked.clone();
        after.apply(batch);
        let count = self.acked_batches + 1;
        let state = State {
            namespace: "n".into(),
            key: b"batches".to_vec(),
            value: Some(count.to_le_bytes().into()),
        };
        let result = send(engine, batch, Some(state)).and_then(sonde_engine::Receipt::wait);
        if let Ok(range) = &result {
            let seqs = (range.first.0..).map(SeqNo);
            self.said.extend(seqs.zip(batch.iter().map(|message| said(message))));
        }
        self.note(result, after, count)
    }

    fn note(&mut self, result: Result<SeqRange>, after: Model, batches: u64) -> Result<()> {
        match result {
            Ok(range) => {
                assert!(
                    self.last.is_none_or(|last| last.last < range.first),
                    "{:?} before {range:?}",
                    self.last
                );
                (self.acked, self.acked_batches, self.last) = (after, batches, Some(range));
                Ok(())
            }
            Err(error) => {
                // Only a failure of the log leaves open what became of a write.
                if matches!(error, Error::Failed(_)) && self.maybe.is_none() {
                    self.maybe = Some((after, batches));
                }
                Err(error)
            }
        }
    }

    /// What was left open is decided: the engine, opened again, shows it or does not.
    pub(crate) fn settle(&mut self, engine: &Engine) {
        self.held = None;
        if let Some((model, count)) = self.maybe.take()
            && model.tables.len() == engine.catalog().tables().count()
            && count == batches(engine)
            && model.is_held_by(engine)
        {
            (self.acked, self.acked_batches) = (model, count);
        }
    }

    /// Writes once more, which must work, if the tables are there.
    pub(crate) fn write_on(&mut self, engine: &Engine, round: i64) {
        if ["t", "w"].iter().all(|name| self.acked.tables.contains_key(*name)) {
            self.write(engine, &batch(round)).unwrap();
        }
    }

    /// The engine that ran it shows exactly what it acknowledged.
    pub(crate) fn check_live(&self, engine: &Engine) {
        self.acked.check(engine);
        assert_eq!(batches(engine), self.acked_batches);
    }

    /// The messages that were acknowledged are in the log as they came, as far as that reaches back.
    fn check_messages(&self, engine: &Engine) {
        let first = engine.log_status().first;
        let kept: Vec<_> = self.said.iter().filter(|(seq, _)| *seq >= first).cloned().collect();
        let wanted: Vec<_> = kept.iter().map(|(seq, _)| SeqRange { first: *seq, last: *seq }).collect();
        let mut found = Vec::new();
        let turn = engine.read_messages(&mut MessageReader::new(), &wanted, &mut |message| {
            found.push((message.seq, String::from_utf8(message.payload.to_vec()).unwrap()));
            ControlFlow::Continue(())
        });
        assert_eq!(turn.unwrap().lost, []);
        assert_eq!(found, kept);
    }

    /// The directory holds what was acknowledged, perhaps with what was left open, and goes on from there.
    pub(crate) fn check_recovered(&self, store: &Store) {
        let engine = store.open();
        let open = self.maybe.as_ref().filter(|(model, count)| {
            model.tables.len() == engine.catalog().tables().count()
                && *count == batches(&engine)
                && model.is_held_by(&engine)
        });
        let (mut model, count) = open.cloned().unwrap_or_else(|| (self.acked.clone(), self.acked_batches));
        assert_eq!(engine.catalog().tables().count(), model.tables.len());
        assert_eq!(batches(&engine), count);
        model.check(&engine);
        self.check_messages(&engine);
        assert!(self.last.is_none_or(|last| engine.published() >= last.last));
        // And it is a store like any other.
        for name in ["t", "w"] {
            if !model.tables.contains_key(name) {
                crate::data::create(&engine, name, DAY);
                model.create(name, false);
            }
        }
        let more = batch(100);
        crate::data::write(&engine, &more).unwrap();
        model.apply(&more);
        let engine = store.restart(engine);
        model.check(&engine);
        engine.compact(table(&engine, "t").id()).unwrap();
        for name in ["t", "w"] {
            engine.cool(table(&engine, name).id(), Timestamp::from_nanos(START + 3 * DAY)).unwrap();
        }
        model.check(&engine);
        model.check(&store.reopen(engine));
    }
}

fn batches(engine: &Engine) -> u64 {
    let state = engine.state("n", b"batches");
    state.map_or(0, |bytes| u64::from_le_bytes(bytes.as_ref().try_into().unwrap()))
}

/// Two rows with all fields that a table has.
fn rows_of(engine: &Engine, name: &str, round: i64) -> Vec<Rec> {
    let catalog = engine.catalog();
    let Ok(table) = catalog.require_table("public", name) else { return Vec::new() };
    let value = |column: &ColumnDef| match column.kind {
        PhysicalType::Float64 => Value::float(round as f64 + 0.5),
        PhysicalType::Int64 => Value::Int(round),
        PhysicalType::UInt64 => Value::UInt(7),
        PhysicalType::Boolean => Value::Bool(round % 2 == 0),
        PhysicalType::Text => Value::text("text"),
    };
    let fields = table.def().columns.iter().filter(|column| column.role == ColumnRole::Field);
    let fields: Fields = fields.map(|column| (column.name.clone(), value(column))).collect();
    let row = |time: i64| Rec { fields: fields.clone(), ..rec(&[("device", "s")], START + time, &[]) };
    vec![row(round), row(0)]
}

/// Two messages for two tables and three days, partly overwriting what the rounds before wrote.
fn batch(round: i64) -> Batch {
    let device = format!("d{}", round % 3);
    let new = format!("new{round}");
    let row = |device: &str, time: i64| {
        let fields = [("i", Value::Int(round)), (["f", "u"][round as usize % 2], Value::Null)];
        rec(&[("device", device)], START + time, &fields)
    };
    vec![
        vec![("t".into(), row(&device, 0)), ("w".into(), row(&device, DAY)), ("t".into(), row(&new, round))],
        vec![
            ("w".into(), row(&device, 2 * DAY + 1)),
            ("t".into(), row(&device, DAY)),
            ("w".into(), row(&new, 0)),
        ],
    ]
}

/// What the history does to a disk on which all goes well.
pub(crate) fn operations() -> Vec<String> {
    let store = Store::volatile(2048);
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    let mut history = History::on(&disk);
    history.run(&engine).unwrap();
    history.check_live(&engine);
    assert_eq!(engine.cold_files().len(), 3);
    // Retention did look.
    assert!(engine.chunks().iter().all(|chunk| chunk.table != table(&engine, "r").id()));
    let done = disk.done();
    drop(history);
    drop(engine);
    done
}

/// Operations that a history may have fewer than another time: what background work finds to do depends on when it comes.
const FEWER: usize = 8;

/// Runs the history up to a crash in this operation, or to its end where that comes a little sooner this time.
pub(crate) fn die_in(at: usize, reached: Reached) -> (Store, History) {
    let store = Store::volatile(2048);
    let disk = Faulty::new(Fault::Crash(at as u64, reached));
    let mut history = History::on(&disk);
    if let Ok(engine) = store.open_on(Arc::new(disk.clone())) {
        let _ = history.run(&engine);
    }
    let done = disk.done();
    assert!(disk.crashed() || at < done.len() + FEWER, "operation {at} did not come, of {}", done.len());
    if !disk.crashed() {
        disk.cut_power(reached);
    }
    println!("{at}: died in {}, {reached:?}", done.last().unwrap());
    (store, history)
}

fn crash_everywhere(step: usize, reached: impl Fn(usize) -> Reached) {
    let total = operations().len();
    assert!(total > 200, "{total} operations");
    for at in (0..total).step_by(step) {
        let (store, history) = die_in(at, reached(at));
        history.check_recovered(&store);
    }
}

#[test]
fn nothing_that_was_not_synced_reaches_the_disk() {
    crash_everywhere(1, |_| Reached::Nothing);
}

#[test]
fn half_of_what_was_not_synced_reaches_the_disk() {
    crash_everywhere(every(3), |_| Reached::Half);
}

#[test]
fn all_that_was_not_synced_reaches_the_disk() {
    crash_everywhere(every(3), |_| Reached::All);
}

#[test]
fn names_reach_the_disk_before_the_bytes() {
    crash_everywhere(1, |_| Reached::Names);
}

#[test]
fn any_part_of_what_was_not_synced_reaches_the_disk() {
    crash_everywhere(1, |at| Reached::Some(at as u64));
}
