//! Rows that go by their age: they go for good, and nothing that they had overwritten is seen again.

use std::collections::BTreeSet;
use std::sync::Arc;

use sonde_engine::{CatalogRequest, Engine, TableId, TableKind, TableOptions, Timestamp};

use crate::data::{
    DAY, Fields, HOUR, Query, Rec, START, Value, delete_range, message, new_table, put, range, read_all, rec,
    table, write,
};
use crate::faults::{Fault, Faulty, Reached};
use crate::model::Model;
use crate::random::Random;
use crate::store::{Manual, Store};

/// The first instant of a partition of eight days.
const WEEK: i64 = START / (8 * DAY) * 8 * DAY;

fn row(time: i64, value: i64) -> Rec {
    rec(&[("device", "d")], time, &[("i", Value::Int(value))])
}

/// A table of points whose rows go after a day.
fn create(engine: &Engine, partition: i64) -> TableId {
    let mut new = new_table("t", TableKind::Points, partition);
    new.options.retention = DAY;
    engine.change_catalog(CatalogRequest::CreateTable(new)).unwrap();
    table(engine, "t").id()
}

fn set_partition(engine: &Engine, partition: i64) {
    let options = TableOptions { partition, retention: DAY, ..TableOptions::default() };
    engine.change_catalog(CatalogRequest::SetOptions(table(engine, "t").id(), options)).unwrap();
}

/// Has ages looked at, which happens when a table is dropped; a merge behind it waits for it.
fn retain(engine: &Engine) -> sonde_engine::Result<()> {
    let other = new_table("other", TableKind::Points, DAY);
    engine.change_catalog(CatalogRequest::CreateTable(other))?;
    let other = table(engine, "other").id();
    engine.change_catalog(CatalogRequest::DropTable(other))?;
    engine.compact(other)
}

#[test]
fn what_a_wider_chunk_has_does_not_come_back() {
    let store = Store::new();
    let clock = Manual::at(WEEK);
    let engine = store.open_by(&clock);
    create(&engine, 8 * DAY);
    put(&engine, "t", &[row(WEEK, 1), row(WEEK + 7 * DAY, 1)]);
    engine.flush().unwrap();
    set_partition(&engine, HOUR);
    put(&engine, "t", &[row(WEEK, 2)]);
    engine.flush().unwrap();
    for (hours, left) in [
        (25, vec![row(WEEK, 2), row(WEEK + 7 * DAY, 1)]),
        (9 * 24 - 1, vec![row(WEEK, 2), row(WEEK + 7 * DAY, 1)]),
        (9 * 24, vec![]),
    ] {
        clock.set(WEEK + hours * HOUR);
        retain(&engine).unwrap();
        assert_eq!(read_all(&engine, "t"), left, "after {hours} hours");
    }
    assert!(engine.chunks().is_empty());
}

/// Rows of two hours, cold, then overwritten.
fn over_cold(engine: &Engine) {
    let id = create(engine, HOUR);
    put(engine, "t", &[row(START, 1), row(START + 23 * HOUR, 1)]);
    assert_eq!(engine.cool(id, Timestamp::from_nanos(START + DAY)).unwrap(), 1);
    put(engine, "t", &[row(START, 2), row(START + 23 * HOUR, 2)]);
    engine.flush().unwrap();
    assert_eq!(engine.chunks().len(), 2);
}

#[test]
fn what_a_cold_day_has_does_not_come_back() {
    let store = Store::new();
    let clock = Manual::at(START + DAY);
    let engine = store.open_by(&clock);
    over_cold(&engine);
    let all = [row(START, 2), row(START + 23 * HOUR, 2)];
    for hours in [25, 47] {
        clock.set(START + hours * HOUR);
        retain(&engine).unwrap();
        assert_eq!(read_all(&engine, "t"), all, "after {hours} hours");
    }
    clock.set(START + 2 * DAY);
    retain(&engine).unwrap();
    assert_eq!(read_all(&engine, "t"), []);
    assert_eq!((engine.chunks().len(), engine.cold_files().len()), (0, 0), "at once, and both");
}

/// Wherever the machine stops while cold days go, and what lies over them.
#[test]
fn a_crash_brings_nothing_back() {
    let seen_behind_crash = |at: Option<u64>, reached: Reached| {
        let store = Store::volatile(1 << 16);
        let (clock, disk) = (Manual::at(START + DAY), Faulty::default());
        let open = |disk: Faulty| {
            let clock = Arc::<Manual>::clone(&clock);
            Engine::open_with(store.options.clone(), Arc::new(disk), clock).unwrap()
        };
        let engine = open(disk.clone());
        over_cold(&engine);
        let before = disk.done().len() as u64;
        disk.set(at.map_or(Fault::None, |at| Fault::Crash(before + at, reached)));
        clock.set(START + 2 * DAY);
        let _ = retain(&engine);
        let operations = disk.done().len() as u64 - before;
        disk.crash();
        drop(engine);
        // Nothing is old any more, so that what is there stays to be seen.
        clock.set(START + DAY);
        (read_all(&open(Faulty::default()), "t"), operations)
    };
    let (left, operations) = seen_behind_crash(None, Reached::All);
    assert_eq!(left, []);
    assert!(operations > 10, "{operations}");
    let mut ends = BTreeSet::new();
    for at in 0..operations {
        for reached in [Reached::Nothing, Reached::All] {
            let (left, _) = seen_behind_crash(Some(at), reached);
            assert!(left.iter().all(|row| row.fields["i"] == Value::Int(2)), "{at} {reached:?}: {left:?}");
            ends.insert(left.len());
        }
    }
    assert_eq!(ends, [0, 2].into());
}

/// Random writes, deletes, flushes, merges and moves of a table while the clock goes on.
#[test]
fn random_histories_lose_rows_and_bring_none_back() {
    let mut went = 0;
    for seed in 0..12 {
        println!("seed {seed}");
        went += history(&mut Random::new(seed));
    }
    assert!(went > 0, "no row went by its age");
}

/// Returns how many rows went.
fn history(random: &mut Random) -> usize {
    let store = Store::volatile(1 << 16);
    let clock = Manual::at(START);
    let mut engine = store.open_by(&clock);
    let id = create(&engine, DAY);
    let mut model = Model::default();
    model.create("t", false);
    for _ in 0..120 {
        // Late by up to three days.
        let recent = |random: &mut Random| {
            let now = clock.now_nanos() / (4 * HOUR) * 4 * HOUR;
            now - random.below(18) as i64 * 4 * HOUR
        };
        match random.below(20) {
            0..8 => {
                let rows: Vec<Rec> = (0..1 + random.below(4))
                    .map(|_| {
                        let mut fields = Fields::from([("i".into(), Value::Int(random.below(1000) as i64))]);
                        if random.one_in(2) {
                            fields.insert("u".into(), Value::UInt(random.below(1000) as u64));
                        }
                        Rec { fields, ..row(recent(random), 0) }
                    })
                    .collect();
                write(&engine, &message("t", &rows)).unwrap();
                model.apply(&message("t", &rows));
            }
            8..12 => engine.flush().unwrap(),
            12 => {
                let start = recent(random);
                let query = Query { time: range(start, start + 4 * HOUR), ..Query::default() };
                delete_range(&engine, "t", &query).unwrap();
                model.delete_range("t", &query);
            }
            13 => set_partition(&engine, random.pick(&[HOUR, 6 * HOUR, DAY, 4 * DAY, 8 * DAY])),
            14 => engine.compact(id).unwrap(),
            15 => {
                let before = clock.now_nanos() - random.below(3) as i64 * DAY;
                engine.cool(id, Timestamp::from_nanos(before)).unwrap();
            }
            16 => {
                drop(engine);
                engine = store.open_by(&clock);
            }
            _ => {
                clock.go_on(random.below(12) as i64 * HOUR);
                retain(&engine).unwrap();
            }
        }
        let known = model.tables["t"].visible();
        for row in read_all(&engine, "t") {
            let of_row = known.iter().find(|known| (&known.tags, known.time) == (&row.tags, row.time));
            // Of its fields some may have gone, with an older file.
            let is_known =
                |known: &Rec| row.fields.iter().all(|(name, value)| known.fields.get(name) == Some(value));
            assert!(of_row.is_some_and(is_known), "{row:?} is seen, {of_row:?} was written last");
        }
    }
    model.tables["t"].visible().len() - read_all(&engine, "t").len()
}
