//! The process dies in every operation of a short history: what was acknowledged is there, and nothing by half.

use std::collections::BTreeSet;
use std::sync::Arc;

use sonde_engine::{
    CatalogRequest, ColumnRole, Engine, Error, PhysicalType, Result, SeqRange, State, TableKind,
    TableOptions, Timestamp,
};

use crate::data::{
    Batch, DAY, Query, START, Value, column, delete_range, new_table, range, rec, send, table,
};
use crate::faults::{Fault, Faulty, Reached};
use crate::model::Model;
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
}

impl History {
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
        for name in ["t", "w"] {
            pass(self.create(engine, name))?;
        }
        for round in 0..10 {
            if self.acked.tables.len() == 2 {
                pass(self.write(engine, &batch(round)))?;
            }
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
                _ => {}
            }
        }
        pass(engine.flush())
    }

    fn create(&mut self, engine: &Engine, name: &str) -> Result<()> {
        let partition = if name == "t" { DAY } else { 7 * DAY };
        let mut after = self.acked.clone();
        after.create(name, false);
        let new = CatalogRequest::CreateTable(new_table(name, TableKind::Points, partition));
        let result = engine.change_catalog(new);
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

    /// The engine that ran it shows exactly what it acknowledged.
    pub(crate) fn check_live(&self, engine: &Engine) {
        self.acked.check(engine);
        assert_eq!(batches(engine), self.acked_batches);
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

fn operations() -> u64 {
    let store = Store::volatile(2048);
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    let mut history = History::default();
    history.run(&engine).unwrap();
    history.check_live(&engine);
    assert_eq!(engine.cold_files().len(), 3);
    let done = disk.done().len() as u64;
    drop(engine);
    done
}

fn crash_everywhere(reached: Reached) {
    let total = operations();
    assert!(total > 60, "{total} operations");
    for at in 0..total {
        let store = Store::volatile(2048);
        let disk = Faulty::new(Fault::Crash(at, reached));
        let mut history = History::default();
        if let Ok(engine) = store.open_on(Arc::new(disk.clone())) {
            let _ = history.run(&engine);
        }
        assert!(disk.crashed(), "operation {at} did not come");
        println!("{at}: died in {}", disk.done().pop().unwrap());
        // It dies again while it recovers, at another place each time.
        for again in [at % 7, 0] {
            let disk = Faulty::new(Fault::Crash(again, reached));
            if let Ok(engine) = store.open_on(Arc::new(disk.clone())) {
                drop(engine);
            }
        }
        history.check_recovered(&store);
    }
}

#[test]
fn nothing_of_the_operation_reaches_the_disk() {
    crash_everywhere(Reached::Nothing);
}

#[test]
fn half_of_the_operation_reaches_the_disk() {
    crash_everywhere(Reached::Half);
}

#[test]
fn all_of_the_operation_reaches_the_disk() {
    crash_everywhere(Reached::All);
}
