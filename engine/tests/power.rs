//! The history of `crash` on a disk that fails in more than one way, or more than once: a crash within the recovery from
//! a crash, a sync that fails before the power does, a full disk, a process that dies before the machine.
//!
//! `SONDE_TORTURE_EVERY=1` takes every place instead of a part of them that is spread over the history.

use std::sync::Arc;

use crate::crash::{History, die_in, operations};
use crate::faults::{Fault, Faulty, Reached};
use crate::store::{Store, wait_until};

/// Every so many places are taken: each `n`th unless the environment says otherwise.
pub(crate) fn every(n: usize) -> usize {
    std::env::var("SONDE_TORTURE_EVERY").map_or(n, |text| text.parse().unwrap())
}

/// What reaches the disk, another thing each time.
fn reached(turn: usize) -> Reached {
    match turn % 5 {
        0 => Reached::Nothing,
        1 => Reached::Half,
        2 => Reached::All,
        3 => Reached::Names,
        _ => Reached::Some(turn as u64),
    }
}

#[test]
fn a_crash_within_the_recovery_from_a_crash() {
    let mut turn = 0;
    for at in (0..operations().len()).step_by(every(19)) {
        let (crashed, history) = die_in(at, reached(turn));
        let mut again = 0;
        loop {
            turn += 1;
            let store = crashed.copy();
            let disk = Faulty::new(Fault::Crash(again, reached(turn)));
            drop(store.open_on(Arc::new(disk.clone())));
            let Some(last) = disk.done().pop().filter(|_| disk.crashed()) else { break };
            println!("{at}, {again}: died again in {last}");
            history.check_recovered(&store);
            again += every(3) as u64;
        }
        assert!(again > 5, "a recovery of {again} operations");
    }
}

/// A sync that fails has synced nothing, and nothing that follows makes up for it.
#[test]
fn a_sync_that_fails_before_the_power_does() {
    let all = operations();
    let syncs = (0..all.len()).filter(|at| all[*at].starts_with("sync"));
    let mut latched = 0;
    for (turn, at) in syncs.enumerate() {
        let store = Store::volatile(2048);
        let disk = Faulty::new(Fault::Once(at as u64));
        let mut history = History::on(&disk);
        let open = || store.open_on(Arc::new(disk.clone()));
        let engine = open().or_else(|_| open()).unwrap();
        let _ = history.run_on(&engine);
        latched += usize::from(engine.health().is_err());
        history.check_live(&engine);
        disk.cut_power(if turn % 2 == 0 { Reached::Nothing } else { Reached::Some(at as u64) });
        drop(engine);
        println!("{at}: {}", all[at]);
        history.check_recovered(&store);
    }
    assert!(latched > 5, "{latched} failures latched");
}

/// What has no space is refused and not there, what is acknowledged stays; with space again all goes on, without a
/// restart.
#[test]
fn a_disk_that_is_full_from_any_operation_on() {
    for at in (0..operations().len()).step_by(every(5)) {
        let store = Store::volatile(2048);
        let disk = Faulty::new(Fault::FullFrom(at as u64));
        let mut history = History::on(&disk);
        let open = || store.open_on(Arc::new(disk.clone()));
        let engine = open().or_else(|error| {
            assert!(matches!(error, sonde_engine::Error::Full(_)), "{error}");
            disk.set(Fault::None);
            open()
        });
        let engine = engine.unwrap();
        let _ = history.run_on(&engine);
        println!("{at}: {} operations", disk.done().len());
        engine.health().unwrap();
        history.check_live(&engine);
        disk.set(Fault::None);
        // One that is asked for while another fails says so.
        wait_until("the flush", || engine.flush().is_ok());
        history.write_on(&engine, 50);
        history.check_live(&engine);
        disk.crash();
        drop(engine);
        history.check_recovered(&store);
    }
}

/// The process dies and is started again on what the system has, synced or not; what it finds and builds upon must not
/// go when the machine stops later.
#[test]
fn a_process_that_dies_before_the_machine_stops() {
    for (turn, at) in (0..operations().len()).step_by(every(3)).enumerate() {
        let store = Store::volatile(2048);
        let disk = Faulty::new(Fault::Kill(at as u64));
        let mut history = History::on(&disk);
        if let Ok(engine) = store.open_on(Arc::new(disk.clone())) {
            let _ = history.run(&engine);
        }
        println!("{at}: died behind {}", disk.done().pop().unwrap());
        disk.next_process();
        let engine = store.open_on(Arc::new(disk.clone())).unwrap();
        history.settle(&engine);
        history.check_live(&engine);
        history.write_on(&engine, 50);
        disk.cut_power(if turn % 2 == 0 { Reached::Nothing } else { Reached::Some(at as u64) });
        drop(engine);
        history.check_recovered(&store);
    }
}
