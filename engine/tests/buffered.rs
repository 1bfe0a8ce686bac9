//! Tables with `durability = 'buffered'`: what a crash may take, and what not.
//!
//! # Invariants
//! - What is there behind a crash is what was there at some moment: the log up to a point. That point is behind everything
//!   that was promised: rows of other tables, batches that touch one, state, what was flushed.

use std::sync::Arc;

use sonde_engine::{
    CatalogRequest, Durability, Engine, NewTable, Result, SeqNo, State, TableKind, TableOptions,
};

use crate::data::{Batch, DAY, Rec, SECOND, START, Value, message, new_table, put, rec, send, table, write};
use crate::faults::{Fault, Faulty, Reached};
use crate::model::Model;
use crate::random::Random;
use crate::store::{Store, wait_until};

fn create(engine: &Engine, name: &str, durability: Durability) {
    let options = TableOptions { durability, ..TableOptions::default() };
    let new = NewTable { options, ..new_table(name, TableKind::Events, DAY) };
    engine.change_catalog(CatalogRequest::CreateTable(new)).unwrap();
}

fn row(i: i64) -> Rec {
    let device = format!("d{}", i / 7);
    rec(&[("device", &device)], START + i * SECOND, &[("i", Value::Int(i)), ("s", Value::text("some text"))])
}

fn both(i: i64) -> Batch {
    vec![vec![("buffered".to_owned(), row(i)), ("synced".to_owned(), row(i))]]
}

fn noted(i: i64) -> State {
    State { namespace: "test".into(), key: b"k".to_vec(), value: Some(i.to_le_bytes().to_vec()) }
}

/// A step: what it writes, and whether its answer promises that it stays.
fn step(engine: &Engine, random: &mut Random, i: i64) -> (Batch, bool, Result<SeqNo>) {
    let buffered = message("buffered", &[row(i)]);
    let (batch, state, promised) = match random.below(12) {
        0 => (message("synced", &[row(i)]), None, true),
        1 => (both(i), None, true),
        2 => (buffered, Some(noted(i)), true),
        _ => (buffered, None, false),
    };
    let sent = send(engine, &batch, state).and_then(|receipt| receipt.wait());
    (batch, promised, sent.map(|seq| seq.last))
}

/// Steps until the disk dies; returns those that were answered or under way, and up to where they were promised.
fn run(engine: &Engine, random: &mut Random) -> (Vec<(SeqNo, Batch)>, SeqNo) {
    let mut steps: Vec<(SeqNo, Batch)> = Vec::new();
    let mut promised = SeqNo(0);
    for i in 0..400 {
        let (batch, is_promised, answer) = step(engine, random, i);
        match answer {
            Ok(last) => {
                steps.push((last, batch));
                if is_promised {
                    promised = last;
                }
            }
            Err(_) => {
                // Nobody knows.
                let next = steps.last().map_or(engine.published(), |last| last.0).plus(1);
                steps.push((next, batch));
                return (steps, promised);
            }
        }
        if random.one_in(60) && engine.flush().is_ok() {
            promised = steps.last().map_or(promised, |last| last.0);
        }
    }
    (steps, promised)
}

#[test]
fn a_crash_takes_the_end_of_buffered_rows_only() {
    let (mut lost, mut torn, mut kept) = (0, 0, 0);
    for seed in 0..150 {
        let mut random = Random::new(seed);
        let store = Store::volatile(1 << 12);
        let disk = Faulty::default();
        let engine = store.open_on(Arc::new(disk.clone())).unwrap();
        create(&engine, "buffered", Durability::Buffered);
        create(&engine, "synced", Durability::Fsync);
        let at = disk.done().len() as u64 + random.below(400) as u64;
        let reached = match random.below(4) {
            0 => Reached::Nothing,
            _ => Reached::Some(seed),
        };
        disk.set(Fault::Crash(at, reached));
        let (steps, promised) = run(&engine, &mut random);
        disk.crash();
        drop(engine);

        let cut = sonde_engine::doctor::examine(&store.options.data_dir).unwrap().findings;
        let damage = |found: &&sonde_engine::doctor::Finding| {
            assert!(found.severity != sonde_engine::doctor::Severity::Damage, "seed {seed}: {found:?}");
            found.text.contains("torn")
        };
        torn += usize::from(cut.iter().filter(damage).count() > 0);
        let engine = store.open();
        let last = engine.published();
        assert!(last >= promised, "seed {seed}: {promised} was promised, {last} is left");
        let mut model = Model::default();
        model.create("buffered", true);
        model.create("synced", true);
        let left = steps.iter().filter(|(seq, _)| *seq <= last);
        left.for_each(|(_, batch)| model.apply(batch));
        model.check(&engine);
        let answered = steps.len() - 1;
        if steps.iter().take(answered).any(|(seq, _)| *seq > last) {
            lost += 1;
        } else {
            kept += 1;
        }
        // It goes on, and what comes now is safe from what was cut off.
        let batch = both(1000);
        write(&engine, &batch).unwrap();
        model.apply(&batch);
        model.check(&store.restart(engine));
    }
    assert!(lost > 10 && torn > 10 && kept > 10, "{lost} {torn} {kept}");
}

/// The answer does not wait for the disk; the disk is asked all the same, though nothing else comes.
#[test]
fn stable_storage_follows_by_itself() {
    let store = Store::new();
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    create(&engine, "buffered", Durability::Buffered);
    disk.hold_syncs_of(".wal");
    for i in 0..10 {
        put(&engine, "buffered", &[row(i)]);
    }
    assert_eq!(crate::data::read_all(&engine, "buffered").len(), 10, "seen at once");
    disk.wait_held();
    let before = disk.syncs();
    disk.release_syncs();
    wait_until("the sync of what was buffered", || disk.syncs() > before);
    disk.crash();
    drop(engine);
    assert_eq!(crate::data::read_all(&store.open(), "buffered").len(), 10);
}

/// A sync that fails behind the answer latches the engine: nothing is accepted on top of it.
#[test]
fn a_sync_that_fails_later_latches() {
    let store = Store::new();
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    create(&engine, "buffered", Durability::Buffered);
    // The write, then its sync.
    disk.set(Fault::Once(disk.done().len() as u64 + 1));
    put(&engine, "buffered", &[row(0)]);
    wait_until("the failure", || engine.health().is_err());
    assert!(write(&engine, &message("buffered", &[row(1)])).is_err());
    assert!(engine.flush().is_err(), "rows that the log may lose do not become a chunk");
}

#[test]
fn the_option_is_kept() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", Durability::Buffered);
    let engine = store.restart(engine);
    assert_eq!(table(&engine, "t").def().options.durability, Durability::Buffered);
    let engine = store.reopen(engine);
    assert_eq!(table(&engine, "t").def().options.durability, Durability::Buffered);
}
