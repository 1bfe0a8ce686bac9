//! Merges and splits, late rows and widths, with files: the answers stay, old chunks are left alone, files are few.

use std::collections::BTreeSet;
use std::sync::Arc;

use sonde_engine::limits::{COMPACT_CHUNKS, WIDE_AGE, WIDE_CHUNKS};
use sonde_engine::{CatalogRequest, Engine, Profile, TableId, TableKind, TableOptions, Timestamp};

use crate::data::{
    DAY, HOUR, Query, Rec, SECOND, START, Value, create, message, new_table, put, read_all, rec, table, write,
};
use crate::faults::Faulty;
use crate::model::Model;
use crate::random::Random;
use crate::store::{Manual, Store};

const MINUTE: i64 = 60 * SECOND;
/// Longer than anything waits for rows that might come.
const QUIET: i64 = WIDE_AGE.as_nanos() as i64;

fn row(device: i64, time: i64, value: i64) -> Rec {
    rec(&[("device", &format!("d{device}"))], time, &[("i", Value::Int(value)), ("f", Value::float(0.5))])
}

fn create_with(engine: &Engine, name: &str, options: TableOptions) -> TableId {
    let mut new = new_table(name, TableKind::Points, DAY);
    new.options = options;
    engine.change_catalog(CatalogRequest::CreateTable(new)).unwrap();
    table(engine, name).id()
}

fn ids(engine: &Engine) -> BTreeSet<u64> {
    engine.chunks().iter().map(|chunk| chunk.id.0).collect()
}

/// What is quiet is noticed first, and merged once it has been so for a while; twice, for what a split makes.
fn go_quiet(engine: &Engine, clock: &Arc<Manual>) {
    for _ in 0..3 {
        engine.compact_due().unwrap();
        clock.go_on(QUIET);
    }
    engine.compact_due().unwrap();
}

/// Rows of 30 days, some of them twice, in the order in which they would come and in another.
#[test]
fn a_shuffled_load_answers_like_an_ordered_one() {
    let mut random = Random::new(5);
    let mut rows: Vec<Rec> = Vec::new();
    for day in 0..30 {
        for i in 0..40 {
            rows.push(row(i % 7, START + day * DAY + i * 30 * MINUTE, i));
        }
    }
    let mut shuffled = rows.clone();
    for place in (1..shuffled.len()).rev() {
        shuffled.swap(place, random.below(place + 1));
    }
    let load = |rows: &[Rec]| {
        let store = Store::volatile(1 << 20);
        let clock = Manual::at(START + 31 * DAY);
        let mut engine = store.open_by(&clock);
        let id = create(&engine, "t", DAY).id();
        for (place, part) in rows.chunks(100).enumerate() {
            put(&engine, "t", part);
            engine.flush().unwrap();
            clock.go_on(MINUTE);
            if place % 5 == 4 {
                drop(engine);
                engine = store.open_by(&clock);
            }
            engine.compact_due().unwrap();
        }
        (store, clock, engine, id)
    };
    let (_one, _, in_order, _) = load(&rows);
    let (_two, clock, late, id) = load(&shuffled);
    let sorted = |engine: &Engine| {
        let mut rows = read_all(engine, "t");
        rows.sort();
        rows
    };
    let expected = sorted(&in_order);
    assert_eq!(expected.len(), rows.len());
    assert!(sorted(&late) == expected);
    go_quiet(&late, &clock);
    assert!(sorted(&late) == expected);
    late.compact(id).unwrap();
    assert!(sorted(&late) == expected);
    assert!(late.chunks().len() <= 30, "{}", late.chunks().len());
}

/// Each flush made a chunk for each day, and what was old was written again and again.
#[test]
fn late_rows_make_few_chunks_and_leave_old_ones_alone() {
    let store = Store::volatile(1 << 20);
    let clock = Manual::at(START + 30 * DAY);
    let engine = store.open_by(&clock);
    let id = create(&engine, "t", DAY).id();
    let mut model = Model::default();
    model.create("t", false);
    let add = |model: &mut Model, rows: &[Rec]| {
        let batch = message("t", rows);
        write(&engine, &batch).unwrap();
        model.apply(&batch);
        engine.flush().unwrap();
    };
    for day in 0..30 {
        let many: Vec<Rec> = (0..200).map(|i| row(i % 5, START + day * DAY + i * MINUTE, i)).collect();
        add(&mut model, &many);
    }
    go_quiet(&engine, &clock);
    let old = ids(&engine);
    assert_eq!(old.len(), 30);
    let before = engine.compaction_stats(id);
    for round in 0..WIDE_CHUNKS as i64 - 1 {
        let late: Vec<Rec> =
            (0..30).map(|day| row(day % 5, START + day * DAY + round * MINUTE, -1)).collect();
        add(&mut model, &late);
        engine.compact_due().unwrap();
    }
    let flushed = engine.compaction_stats(id).flushed_chunks - before.flushed_chunks;
    assert!(flushed <= 5 * (WIDE_CHUNKS as u64 - 1), "{flushed} chunks, of five blocks of eight days");
    model.check(&engine);
    assert!(old.is_subset(&ids(&engine)), "nothing was rewritten");
    // With few rows, the wide ones are split when no more come.
    add(&mut model, &(0..30).map(|day| row(7, START + day * DAY, -2)).collect::<Vec<_>>());
    assert!(engine.chunks().len() <= 30 + 5 * WIDE_CHUNKS, "{}", engine.chunks().len());
    engine.compact_due().unwrap();
    clock.go_on(QUIET);
    engine.compact_due().unwrap();
    assert!(engine.chunks().iter().all(|chunk| width(chunk) == DAY), "{:?}", engine.chunks());
    assert!(old.is_subset(&ids(&engine)), "what is old is still as it was");
    model.check(&engine);
    go_quiet(&engine, &clock);
    model.check(&engine);
    assert!(engine.chunks().len() <= 60);
    let stats = engine.compaction_stats(id);
    let written = (stats.flushed_chunks + stats.merged_chunks, stats.flushed_bytes + stats.merged_bytes);
    assert!(written.0 > 30 && written.1 > engine.chunks().iter().map(|chunk| chunk.bytes).sum());
}

fn width(chunk: &sonde_engine::ChunkMeta) -> i64 {
    chunk.range.end.as_nanos() - chunk.range.start.as_nanos()
}

/// Between two partitions of half a day, a split leaves a chunk that is a day long and begins at noon: a day that went
/// cold took the rows of the next one with it.
#[test]
fn a_chunk_that_reaches_over_midnight_is_split_before_it_cools() {
    let store = Store::new();
    let start = START - START.rem_euclid(4 * DAY);
    let clock = Manual::at(start + 30 * DAY);
    let engine = store.open_by(&clock);
    let id = create(&engine, "t", 12 * HOUR).id();
    let mut model = Model::default();
    model.create("t", false);
    let add = |model: &mut Model, rows: &[Rec]| {
        let batch = message("t", rows);
        write(&engine, &batch).unwrap();
        model.apply(&batch);
        engine.flush().unwrap();
    };
    for half in [0, 3] {
        let many = (0..100).map(|i| row(i, start + half * 12 * HOUR + i, i)).collect::<Vec<_>>();
        add(&mut model, &many);
    }
    let late: Vec<Rec> = (0..8).map(|half| row(1, start + half * 12 * HOUR + 1, -half)).collect();
    add(&mut model, &late);
    assert_eq!(engine.chunks().len(), 3);
    go_quiet(&engine, &clock);
    let over = |chunk: &sonde_engine::ChunkMeta| {
        (chunk.range.start.as_nanos() - start, chunk.range.end.as_nanos() - start) == (12 * HOUR, 36 * HOUR)
    };
    assert!(engine.chunks().iter().any(over), "{:?}", engine.chunks());
    model.check(&engine);
    assert_eq!(engine.cool(id, Timestamp::from_nanos(start + DAY)).unwrap(), 1);
    model.check(&engine);
    assert_eq!(engine.cool(id, Timestamp::from_nanos(start + 4 * DAY)).unwrap(), 3);
    assert!(engine.chunks().is_empty());
    model.check(&engine);
}

/// Days that are to go one by one are not put together again.
#[test]
fn what_cooling_split_stays_split() {
    let store = Store::new();
    let start = START - START.rem_euclid(7 * DAY);
    let clock = Manual::at(start + 7 * DAY);
    let engine = store.open_by(&clock);
    let options = TableOptions { partition: 7 * DAY, cold_after: 90 * DAY, ..TableOptions::default() };
    let id = create_with(&engine, "t", options);
    put(&engine, "t", &(0..7).map(|day| row(1, start + day * DAY, day)).collect::<Vec<_>>());
    assert_eq!(engine.cool(id, Timestamp::from_nanos(start + DAY)).unwrap(), 1);
    assert_eq!(engine.chunks().len(), 6);
    let before = ids(&engine);
    go_quiet(&engine, &clock);
    engine.compact(id).unwrap();
    assert_eq!(ids(&engine), before);
    assert_eq!(read_all(&engine, "t").len(), 7);
}

/// Many tables with little in them, over three weeks, flushed every hour: the number of files that docs/storage.md
/// promises, at every moment.
#[test]
fn trickles_make_no_storm_of_files() {
    const TABLES: usize = 8;
    const DAYS: i64 = 21;
    let store = Store::volatile(1 << 20);
    let clock = Manual::at(START);
    let mut engine = store.open_by(&clock);
    let names: Vec<String> = (0..TABLES).map(|i| format!("t{i}")).collect();
    let created: Vec<TableId> =
        names.iter().map(|name| create_with(&engine, name, TableOptions::automatic())).collect();
    let mut most = 0;
    for hour in 0..DAYS * 24 {
        let rows = |name: &String| {
            let rows = (0..6).map(|i| (name.clone(), row(0, START + hour * HOUR + i * 10 * MINUTE, i)));
            rows.collect::<Vec<_>>()
        };
        write(&engine, &names.iter().map(rows).collect()).unwrap();
        clock.go_on(HOUR);
        engine.flush().unwrap();
        engine.compact_due().unwrap();
        most = most.max(engine.chunks().len());
        if hour == 10 * 24 {
            drop(engine);
            engine = store.open_by(&clock);
        }
    }
    assert!(most <= TABLES * (2 + 2 * COMPACT_CHUNKS), "{most} files of {TABLES} tables");
    for name in &names {
        assert_eq!(engine.partition_width(&table(&engine, name)), 32 * DAY, "{name}");
        assert_eq!(read_all(&engine, name).len(), DAYS as usize * 24 * 6);
    }
    clock.set(START + 70 * DAY);
    go_quiet(&engine, &clock);
    let partitions = 2;
    assert!(engine.chunks().len() <= TABLES * (partitions + 1), "{} files", engine.chunks().len());
    for (name, id) in names.iter().zip(created) {
        engine.compact(id).unwrap();
        assert_eq!(read_all(&engine, name).len(), DAYS as usize * 24 * 6);
    }
    assert!(engine.chunks().len() <= TABLES * partitions);
}

/// A width that was set stays; one that is automatic follows the rows, and is found again after a restart.
#[test]
fn widths_follow_the_rows_unless_they_were_set() {
    let store = Store::volatile(1 << 20);
    let clock = Manual::at(START + 10 * DAY);
    let mut engine = store.open_by(&clock);
    create_with(&engine, "free", TableOptions::automatic());
    create_with(&engine, "cooled", TableOptions { cold_after: 90 * DAY, ..TableOptions::automatic() });
    create(&engine, "fixed", DAY);
    let fill = |engine: &Engine, day: i64| {
        for name in ["free", "cooled", "fixed"] {
            let rows: Vec<Rec> = (0..24).map(|hour| row(0, START + day * DAY + hour * HOUR, hour)).collect();
            put(engine, name, &rows);
        }
        engine.flush().unwrap();
    };
    for day in 0..10 {
        fill(&engine, day);
    }
    let widths = |engine: &Engine| {
        ["free", "cooled", "fixed"].map(|name| engine.partition_width(&table(engine, name)) / DAY)
    };
    assert_eq!(widths(&engine), [32, 1, 1]);
    let newest = |engine: &Engine, name: &str| {
        let id = table(engine, name).id();
        engine.chunks().iter().filter(|chunk| chunk.table == id).max_by_key(|chunk| chunk.id).map(width)
    };
    assert_eq!(newest(&engine, "free"), Some(32 * DAY));
    assert_eq!(newest(&engine, "fixed"), Some(DAY));
    // Rows that come from the log are partitioned as they would have been.
    put(&engine, "free", &[row(0, START + 11 * DAY, 0)]);
    drop(engine);
    engine = store.open_by(&clock);
    engine.flush().unwrap();
    assert_eq!(newest(&engine, "free"), Some(32 * DAY));
    assert_eq!(widths(&engine)[0], 32);
    // Days go to the cold tier out of the wide partitions.
    let id = table(&engine, "free").id();
    assert_eq!(engine.cool(id, Timestamp::from_nanos(START + 5 * DAY)).unwrap(), 5);
    assert_eq!(read_all(&engine, "free").len(), 10 * 24 + 1);
    // Set by hand from now on.
    let options = TableOptions { partition: HOUR, ..TableOptions::default() };
    engine.change_catalog(CatalogRequest::SetOptions(id, options)).unwrap();
    put(&engine, "free", &[row(0, START + 12 * DAY, 0)]);
    engine.flush().unwrap();
    assert_eq!(newest(&engine, "free"), Some(HOUR));
}

/// A flush writes for speed; a table that should be dense has such chunks rewritten once they are old, each once.
#[test]
fn old_chunks_of_a_dense_table_become_dense_once() {
    let store = Store::volatile(1 << 20);
    let clock = Manual::at(START + HOUR);
    let mut engine = store.open_by(&clock);
    let id = create(&engine, "t", DAY).id();
    // Noise that comes again: only what looks at many values at once finds it.
    let noise = |i: i64| Value::Int((i % 3000).wrapping_mul(0x5851_f42d_4c95_7f2d) ^ (i % 3000).pow(4));
    let rows: Vec<Rec> =
        (0..12_000).map(|i| rec(&[("device", "d")], START + i * SECOND, &[("i", noise(i))])).collect();
    put(&engine, "t", &rows);
    engine.flush().unwrap();
    let options = TableOptions { profile: Profile::Dense, ..TableOptions::default() };
    engine.change_catalog(CatalogRequest::SetOptions(id, options)).unwrap();
    let [before] = &engine.chunks()[..] else { panic!("{:?}", engine.chunks()) };
    go_quiet(&engine, &clock);
    assert_eq!(engine.chunks()[0].id, before.id, "it is not old");
    clock.go_on(3 * DAY);
    engine.compact_due().unwrap();
    let after = engine.chunks();
    assert!(after[0].id != before.id && after[0].bytes < before.bytes, "{before:?} {after:?}");
    for _ in 0..2 {
        drop(engine);
        engine = store.open_by(&clock);
        go_quiet(&engine, &clock);
        assert_eq!(engine.chunks(), after, "it is dense already, whoever looks");
        assert_eq!(engine.compaction_stats(id).merges, 0);
    }
    assert_eq!(read_all(&engine, "t").len(), 12_000);
}

#[test]
fn random_histories_0() {
    history(0);
}

#[test]
fn random_histories_1() {
    history(1);
}

#[test]
fn random_histories_2() {
    history(2);
}

#[test]
fn random_histories_3() {
    history(3);
}

/// In order, late, shuffled, with widths that change, merges by size and by age, cooling, restarts and crashes.
/// `SONDE_TORTURE_SEED` runs that case.
fn history(seed: u64) {
    let seed = std::env::var("SONDE_TORTURE_SEED").map_or(seed, |text| text.parse().unwrap());
    println!("seed {seed}");
    let mut random = Random::new(1000 + seed);
    let store = Store::volatile(64 << 10);
    let clock = Manual::at(START);
    let open = || {
        let disk = Faulty::default();
        let engine =
            Engine::open_with(store.options.clone(), Arc::new(disk.clone()), Arc::<Manual>::clone(&clock));
        (disk, engine.unwrap())
    };
    let (mut disk, mut engine) = open();
    let mut model = Model::default();
    let tables = ["automatic", "days", "halves"];
    let options = [
        TableOptions::automatic(),
        TableOptions::default(),
        TableOptions { partition: 12 * HOUR, ..TableOptions::default() },
    ];
    for (name, options) in tables.iter().zip(options) {
        create_with(&engine, name, options);
        model.create(name, false);
    }
    for step in 0..100 {
        let name = random.pick(&tables);
        let id = table(&engine, name).id();
        match random.below(100) {
            0..60 => {
                let late = random.pick(&[0, 0, DAY, 9 * DAY, 40 * DAY]);
                let count = random.pick(&[1, 5, 40, 300]);
                let mut time = || {
                    let back = if late == 0 { 0 } else { random.below(late as usize) as i64 };
                    clock.now_nanos() - back - random.below(50) as i64 * MINUTE
                };
                let times: Vec<i64> = (0..count).map(|_| time() / MINUTE * MINUTE).collect();
                let rows: Vec<Rec> = times
                    .iter()
                    .enumerate()
                    .map(|(i, time)| row(i as i64 % 3, *time, step * 1000 + i as i64))
                    .collect();
                let batch = message(name, &rows);
                write(&engine, &batch).unwrap();
                model.apply(&batch);
                clock.go_on(random.below(HOUR as usize) as i64);
                if random.one_in(2) {
                    engine.flush().unwrap();
                }
            }
            60..78 => drop(engine.compact_due().unwrap()),
            78..84 => go_quiet(&engine, &clock),
            84..88 => engine.compact(id).unwrap(),
            88..92 => {
                let before = clock.now_nanos() - random.below(20) as i64 * DAY;
                engine.cool(id, Timestamp::from_nanos(before)).unwrap();
            }
            92..94 => {
                let partition = random.pick(&[HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY]);
                let automatic = random.one_in(3);
                let options = TableOptions { partition, automatic, ..TableOptions::default() };
                engine.change_catalog(CatalogRequest::SetOptions(id, options)).unwrap();
            }
            94..96 => {
                engine.close().unwrap();
                drop(engine);
                (disk, engine) = open();
            }
            96..98 => {
                drop(engine);
                (disk, engine) = open();
            }
            _ => {
                // In the middle of whatever is merged just then.
                disk.crash();
                drop(engine);
                (disk, engine) = open();
            }
        }
        model.check(&engine);
        let start = clock.now_nanos() - random.below(40) as i64 * DAY;
        let query = Query { time: crate::data::range(start, start + 2 * DAY), ..Query::default() };
        model.check_query(&engine, &engine.snapshot(), name, &query);
        check_order(&engine);
    }
    for name in tables {
        engine.compact(table(&engine, name).id()).unwrap();
    }
    check_order(&engine);
    model.check(&engine);
}

/// Of two chunks that overlap, one is newer as a whole.
fn check_order(engine: &Engine) {
    let chunks = engine.chunks();
    for (place, a) in chunks.iter().enumerate() {
        for b in chunks.iter().skip(place + 1).filter(|b| b.table == a.table && b.range.overlaps(&a.range)) {
            assert!(a.seq.last < b.seq.first || b.seq.last < a.seq.first, "{a:?}\n{b:?}");
        }
    }
}
