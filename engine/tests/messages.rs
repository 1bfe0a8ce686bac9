//! Messages in the log: logged with their rows, read back by their numbers, gone with their segments.

use std::ops::ControlFlow;

use sonde_engine::{Engine, LOG_CURSORS, MessageReader, MessageTurn, SeqNo, SeqRange, State, Timestamp};

use crate::data::{DAY, START, Value, create, put, raw, rec};
use crate::store::Store;

type Found = Vec<(u64, String)>;

fn range(first: u64, last: u64) -> SeqRange {
    SeqRange { first: SeqNo(first), last: SeqNo(last) }
}

/// Commits `count` messages as one batch, every third of which is not logged.
fn log(engine: &Engine, topic: &str, count: usize) -> Found {
    let mut builder = engine.batch();
    let mut logged = Vec::new();
    for i in 0..count {
        assert_eq!(builder.begin_message(), i as u32);
        if i % 3 < 2 {
            let payload = format!("{topic} {i}");
            builder.message(&raw(topic, payload.as_bytes())).unwrap();
            logged.push((i as u64, payload));
        }
    }
    let first = engine.write(builder.finish().unwrap()).wait().unwrap().first.0;
    logged.into_iter().map(|(i, payload)| (first + i, payload)).collect()
}

fn read(engine: &Engine, reader: &mut MessageReader, wanted: &[SeqRange]) -> (Found, MessageTurn) {
    let mut found = Vec::new();
    let turn = engine.read_messages(reader, wanted, &mut |message| {
        assert_eq!((message.qos, message.retain), (1, false));
        assert_eq!(message.received, Timestamp::from_nanos(START));
        found.push((message.seq.0, String::from_utf8(message.payload.to_vec()).unwrap()));
        ControlFlow::Continue(())
    });
    (found, turn.unwrap())
}

#[test]
fn messages_come_back_by_their_numbers() {
    let store = Store::with_segments(512);
    let engine = store.open();
    engine.hold_log("reader", SeqNo(0));
    let all: Found = (0..20).flat_map(|i| log(&engine, &format!("t/{i}"), 1 + i % 7)).collect();
    assert!(engine.log_status().segments > 2);
    let engine = store.restart(engine);
    let last = engine.published().0;
    let mut reader = MessageReader::new();
    for first in 1..=last {
        let expected: Found = all.iter().filter(|(seq, _)| *seq >= first).cloned().collect();
        let (found, turn) = read(&engine, &mut reader, &[range(first, last + 5)]);
        assert_eq!((found, turn.lost), (expected, vec![]));
        assert_eq!(turn.position, SeqNo(last));
    }
    // A range that ends inside a commit is read to its end and no further.
    for first in 1..=last {
        let end = (first + 2).min(last);
        let expected: Found = all.iter().filter(|(seq, _)| (first..=end).contains(seq)).cloned().collect();
        let (found, turn) = read(&engine, &mut reader, &[range(first, end)]);
        assert_eq!((found, turn.position), (expected, SeqNo(end)));
    }
    // Single numbers, with gaps, some of messages that were not logged.
    let wanted: Vec<SeqRange> = (1..=last).filter(|seq| seq % 4 != 1).map(|seq| range(seq, seq)).collect();
    let expected: Found = all.iter().filter(|(seq, _)| seq % 4 != 1).cloned().collect();
    assert_eq!(read(&engine, &mut reader, &wanted).0, expected);
    assert_eq!(read(&engine, &mut reader, &[]).0, []);
}

#[test]
fn a_reader_that_breaks_goes_on_where_it_was() {
    let store = Store::new();
    let engine = store.open();
    let all = log(&engine, "t", 100);
    let mut reader = MessageReader::new();
    let (mut found, mut next) = (Vec::new(), 1);
    loop {
        let mut taken = 0;
        let turn = engine.read_messages(&mut reader, &[range(next, 1000)], &mut |message| {
            taken += 1;
            found.push((message.seq.0, String::from_utf8(message.payload.to_vec()).unwrap()));
            if taken == 7 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        next = turn.unwrap().position.0 + 1;
        if taken < 7 {
            break;
        }
    }
    assert_eq!(found, all);
    assert_eq!(next, engine.published().0 + 1);
}

#[test]
fn what_is_gone_is_named() {
    let mut store = Store::with_segments(2048);
    store.options.log.max_bytes = 3 * 2048;
    let engine = store.open();
    let cursor = |at: u64| State {
        namespace: LOG_CURSORS.into(),
        key: b"mqtt".to_vec(),
        value: Some(at.to_le_bytes().to_vec()),
    };
    let mut builder = engine.batch();
    builder.state(cursor(0));
    engine.write(builder.finish().unwrap()).wait().unwrap();
    let mut all: Found = (0..5).flat_map(|_| log(&engine, "kept", 5)).collect();
    engine.flush().unwrap();
    assert_eq!(engine.log_status().first, SeqNo(1), "a cursor keeps it");
    assert_eq!(engine.log_segments()[0].held_by.as_deref(), Some("mqtt"));
    all.extend((0..60).flat_map(|_| log(&engine, "more", 5)));
    engine.flush().unwrap();
    let first = engine.log_status().first;
    assert!(first > SeqNo(20), "the log's budget is stronger");
    let last = engine.published().0;
    let (found, turn) = read(&engine, &mut MessageReader::new(), &[range(3, 4), range(6, 6), range(8, last)]);
    all.retain(|(seq, _)| *seq >= first.0);
    assert_eq!(found, all);
    assert_eq!(turn.lost, [range(3, 4), range(6, 6), range(8, first.0 - 1)]);
}

#[test]
fn a_span_of_the_log_is_kept_for_whoever_asks() {
    let store = Store::with_segments(2048);
    let engine = store.open();
    engine.keep_log_for(std::time::Duration::from_secs(3600));
    (0..40).for_each(|_| drop(log(&engine, "t", 5)));
    engine.flush().unwrap();
    assert_eq!(engine.log_status().first, SeqNo(1));
    engine.keep_log_for(std::time::Duration::ZERO);
    log(&engine, "t", 5);
    engine.flush().unwrap();
    assert!(engine.log_status().first > SeqNo(1));
}

#[test]
fn state_learns_the_number_of_its_message() {
    let store = Store::new();
    let engine = store.open();
    log(&engine, "t", 10);
    let mut builder = engine.batch();
    for _ in 0..3 {
        builder.begin_message();
    }
    let value = [b"x".as_slice(), &2_u64.to_le_bytes(), b"y"].concat();
    builder.state_of_message(State { namespace: "n".into(), key: b"k".to_vec(), value: Some(value) }, 1);
    let range = engine.write(builder.finish().unwrap()).wait().unwrap();
    let engine = store.restart(engine);
    let value = engine.state("n", b"k").unwrap();
    assert_eq!(value[1..9], (range.first.0 + 2).to_le_bytes());
    assert_eq!((value[0], value[9]), (b'x', b'y'));
}

#[test]
fn messages_and_rows_share_a_commit() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", DAY);
    put(&engine, "t", &[rec(&[("device", "d")], START, &[("i", Value::Int(1))])]);
    let logged = log(&engine, "t", 2);
    let engine = store.reopen(engine);
    assert_eq!(crate::data::read_all(&engine, "t").len(), 1);
    let found = read(&engine, &mut MessageReader::new(), &[range(1, 100)]);
    // The log may have gone with the flush; what it has comes back.
    assert!(found.0 == logged || !found.1.lost.is_empty());
}
