//! What the engine says of its background work and of its log, while it happens and behind it.

use std::sync::Arc;
use std::time::Duration;

use sonde_engine::{JobKind, JobState, JobStatus, SegmentState, Timestamp};

use crate::data::{DAY, SECOND, START, Value, create, put, rec};
use crate::faults::{Fault, Faulty};
use crate::store::Store;

fn rows(from: i64) -> Vec<crate::data::Rec> {
    (0..20).map(|i| rec(&[("device", "a")], START + (from + i) * SECOND, &[("i", Value::Int(i))])).collect()
}

fn of(jobs: &[JobStatus], kind: JobKind, state: JobState) -> Vec<JobStatus> {
    jobs.iter().filter(|job| job.kind == kind && job.state == state).cloned().collect()
}

#[test]
fn what_ended_says_how_much_it_was() {
    let store = Store::new();
    let engine = store.open();
    let id = create(&engine, "t", DAY).id();
    for round in 0..3 {
        put(&engine, "t", &rows(20 * round));
        engine.flush().unwrap();
    }
    let bytes: u64 = engine.chunks().iter().map(|chunk| chunk.bytes).sum();
    engine.compact(id).unwrap();
    assert_eq!(engine.cool(id, Timestamp::from_nanos(START + DAY)).unwrap(), 1);
    let jobs = engine.jobs();
    let flushes = of(&jobs, JobKind::Flush, JobState::Done);
    let (sum, written) =
        flushes.iter().fold((0, 0), |sum, job| (sum.0 + job.rows.unwrap(), sum.1 + job.bytes.unwrap()));
    assert_eq!((sum, written), (60, bytes));
    let merged = &of(&jobs, JobKind::Compact, JobState::Done)[0];
    assert_eq!((merged.table, merged.rows, merged.bytes), (Some(id), Some(60), Some(bytes)));
    assert_eq!(merged.range.unwrap().start, Timestamp::from_nanos(START));
    let cooled = &of(&jobs, JobKind::Cool, JobState::Done)[0];
    assert_eq!((cooled.rows, cooled.bytes), (Some(60), Some(engine.cold_files()[0].bytes)));
    assert!(merged.started <= cooled.started && cooled.took > Some(Duration::ZERO) && cooled.error.is_none());
    let others = jobs.iter().filter(|job| job.state != JobState::Done).count();
    assert_eq!(others, 0, "nothing runs, waits or rests: {jobs:?}");
}

#[test]
fn a_flush_that_fails_rests_and_says_why() {
    let store = Store::new();
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    create(&engine, "t", DAY);
    put(&engine, "t", &rows(0));
    disk.set(Fault::Full);
    assert!(engine.flush().is_err());
    let jobs = engine.jobs();
    let resting = &of(&jobs, JobKind::Flush, JobState::Resting)[0];
    assert!(resting.error.as_ref().unwrap().contains("disk full") && resting.failures > 0, "{resting:?}");
    assert!(resting.next_try > resting.started && resting.rows == Some(20), "{resting:?}");
    assert!(of(&jobs, JobKind::Flush, JobState::Queued).is_empty(), "{jobs:?}");
    disk.set(Fault::None);
    engine.flush().unwrap();
    let jobs = engine.jobs();
    assert!(of(&jobs, JobKind::Flush, JobState::Resting).is_empty(), "{jobs:?}");
    assert!(!of(&jobs, JobKind::Flush, JobState::Failed).is_empty());
}

#[test]
fn a_job_is_seen_while_it_runs() {
    let store = Store::new();
    let disk = Faulty::default();
    let engine = store.open_on(Arc::new(disk.clone())).unwrap();
    create(&engine, "t", DAY);
    put(&engine, "t", &rows(0));
    disk.hold_next_write_of(".chunk");
    let flushing = {
        let engine = engine.clone();
        std::thread::spawn(move || engine.flush())
    };
    disk.wait_held();
    let running = of(&engine.jobs(), JobKind::Flush, JobState::Running);
    assert!(running.len() == 1 && running[0].rows == Some(20) && running[0].started.is_some(), "{running:?}");
    disk.release_write();
    flushing.join().unwrap().unwrap();
    assert!(of(&engine.jobs(), JobKind::Flush, JobState::Running).is_empty());
}

#[test]
fn segments_say_why_they_are_there() {
    let store = Store::with_segments(1 << 11);
    let engine = store.open();
    create(&engine, "t", DAY);
    let first = put(&engine, "t", &rows(0)).first;
    engine.hold_log("slow", first);
    engine.hold_log("fast", put(&engine, "t", &rows(20)).last);
    for round in 2..20 {
        put(&engine, "t", &rows(20 * round));
    }
    let segments = engine.log_segments();
    let (last, older) = segments.split_last().unwrap();
    assert!(older.len() > 3 && last.state == SegmentState::Active, "{segments:?}");
    assert!(older.iter().all(|segment| segment.state == SegmentState::Replayed));
    assert!(older.windows(2).all(|pair| pair[0].last.plus(1) == pair[1].first));
    assert!(older.iter().all(|segment| segment.held_by.as_deref() == Some("slow")), "{segments:?}");
    engine.flush().unwrap();
    let segments = engine.log_segments();
    let (_, older) = segments.split_last().unwrap();
    assert!(
        !older.is_empty() && older.iter().all(|segment| segment.state == SegmentState::Held),
        "{segments:?}"
    );
    engine.release_log("slow");
    assert_eq!(engine.log_segments().last().unwrap().held_by.as_deref(), Some("fast"));
}
