//! Records of the log: every kind of them, and what a frame's checksum does not tell.

use proptest::prelude::*;
use sonde_storage_format::{
    Cell, Column, ColumnId, FrameScan, Message, Origin, PhysicalType, Record, RowsRecord, SeqNo, SeqRange,
    SeriesId, SeriesKey, SeriesRecord, State, TableId, TimeRange, Timestamp, Tombstone, TombstonePart,
    Values, WalWriter,
};

use crate::random::Random;
use crate::same::exact_all;
use crate::strategy::{self, FLOATS, KINDS};
use crate::wal::{FRAME_HEADER_LEN, NUMBER, seal, write};
use crate::{catalog, damage};

/// Records of every kind, in groups.
pub(crate) fn exemplars() -> Vec<Vec<Record>> {
    let float = Values::Float(FLOATS.map(f64::from_bits)[..3].to_vec());
    let mut mixed = Column::new(PhysicalType::Text);
    mixed.push_empty(Cell::Absent, 1);
    mixed.extend_from(&Column::of(Values::Text([&b"a\0\xc3\xa9"[..]].into_iter().collect())), 0..1);
    mixed.push_empty(Cell::Null, 1);
    let rows = RowsRecord {
        table: TableId(7),
        origin: Origin::Rule(3),
        first_seq: SeqNo(1),
        seq_offsets: vec![0, 0, 300],
        series: vec![SeriesId(0), SeriesId(1), SeriesId(1 << 40)],
        times: vec![1_700_000_000_000_000_000, -1, i64::MIN],
        columns: vec![
            (ColumnId(2), Column::of(float)),
            (ColumnId(3), mixed),
            (ColumnId(4), Column::of(Values::Int(vec![i64::MIN, 0, i64::MAX]))),
            (ColumnId(5), Column::of(Values::UInt(vec![0, 1, u64::MAX]))),
            (ColumnId(6), Column::of(Values::Bool(vec![true, false, true]))),
        ],
    };
    let state = |value: Option<&[u8]>| {
        let (namespace, key) = ("mqtt.retained".to_owned(), b"plant/\0/1".to_vec());
        Record::State(State { namespace, key, value: value.map(<[u8]>::to_vec) })
    };
    let series = SeriesRecord {
        table: TableId(7),
        first: SeriesId(200),
        keys: vec![SeriesKey::encode([]), SeriesKey::encode([Some("a"), None, Some("\0")])],
    };
    let bare = |origin| {
        let (series, times, columns) = (vec![SeriesId(1)], vec![5], Vec::new());
        let (table, first_seq, seq_offsets) = (TableId(8), SeqNo(u64::MAX), vec![u32::MAX]);
        Record::Rows(RowsRecord { table, origin, first_seq, seq_offsets, series, times, columns })
    };
    let changes = catalog::exemplars().into_iter().map(Record::Catalog);
    vec![
        changes.chain([Record::Series(series)]).collect(),
        vec![Record::Rows(rows), bare(Origin::Client), bare(Origin::Import)],
        messages().into_iter().map(Record::Message).collect(),
        vec![Record::Tombstone(tombstone()), Record::Message(messages().remove(0))],
        Vec::new(),
        vec![state(Some(b"on")), state(Some(b"")), state(None)],
    ]
}

fn messages() -> Vec<Message> {
    let full = Message {
        seq: SeqNo(41),
        received: Timestamp::from_nanos(1_700_000_000_000_000_000),
        qos: 2,
        retain: true,
        topic: "plant/é/1".to_owned(),
        properties: vec![0x01, 1, 0x26, 0, 1, b'a', 0, 0],
        payload: b"{\"v\":1}\0".to_vec(),
    };
    let (received, topic) = (Timestamp::MIN, String::new());
    let bare = Message {
        seq: SeqNo(0),
        received,
        qos: 0,
        retain: false,
        topic,
        properties: vec![],
        payload: vec![],
    };
    vec![full, Message { qos: 1, ..bare.clone() }, bare]
}

fn tombstone() -> Tombstone {
    let time = Timestamp::from_nanos;
    let day = TimeRange { start: time(86_400_000_000_000), end: time(2 * 86_400_000_000_000) };
    let range = |range, series: Option<&[u64]>| {
        let series = series.map(|series| series.iter().map(|id| SeriesId(*id)).collect());
        TombstonePart::Range { range, series }
    };
    let points = vec![(SeriesId(5), time(-1)), (SeriesId(300), Timestamp::MAX), (SeriesId(5), time(-1))];
    let parts = vec![
        range(day, Some(&[0, 1, 300, u64::MAX])),
        range(TimeRange::ALL, None),
        TombstonePart::Points(points),
        range(day, Some(&[])),
        TombstonePart::Points(Vec::new()),
    ];
    Tombstone { table: TableId(7), seq: SeqNo(45), parts }
}

/// A record as something that `==` compares bit by bit.
fn exact_record(record: &Record) -> impl PartialEq + std::fmt::Debug + use<> {
    let (mut record, mut columns) = (record.clone(), Vec::new());
    if let Record::Rows(rows) = &mut record {
        columns = exact_all(&std::mem::take(&mut rows.columns));
    }
    (record, columns)
}

pub(crate) fn assert_same(found: &[Record], expected: &[Record]) {
    let exact = |records: &[Record]| records.iter().map(exact_record).collect::<Vec<_>>();
    assert_eq!(exact(found), exact(expected));
}

/// Any record.
pub(crate) fn record(random: &mut Random) -> Record {
    let table = TableId(random.next() as u32);
    match random.below(7) {
        0 => Record::Catalog(catalog::change(random)),
        1 => Record::Message(message(random)),
        2 => Record::Tombstone(tombstone_of(random)),
        3 => {
            let (len, max) = (random.below(20), random.pick(&[1, 300]));
            let value = (random.below(3) > 0).then(|| random.bytes(max));
            Record::State(State { namespace: catalog::text(random), key: random.bytes(len), value })
        }
        4 => {
            let keys = (0..random.below(5)).map(|_| {
                let (a, b) = (catalog::text(random), catalog::text(random));
                SeriesKey::encode([Some(a.as_str()), None, Some(b.as_str())])
            });
            let keys = keys.collect();
            Record::Series(SeriesRecord { table, first: SeriesId(random.next()), keys })
        }
        _ => {
            let count = random.pick(&[0, 1, 2, 30, 1025]);
            let columns = (0..random.below(7)).map(|i| {
                let kind = random.pick(&KINDS);
                (ColumnId(i as u32), strategy::column(random, kind, count))
            });
            let columns = columns.collect();
            let mut seq_offsets: Vec<u32> =
                (0..count).map(|_| random.next() as u32 >> random.below(32)).collect();
            seq_offsets.sort_unstable();
            let steps = 1 + random.below(254) as u8;
            Record::Rows(RowsRecord {
                table,
                origin: random.pick(&[Origin::Client, Origin::Rule(steps), Origin::Import]),
                first_seq: SeqNo(random.next()),
                seq_offsets,
                series: (0..count).map(|_| SeriesId(random.next() >> random.below(64))).collect(),
                times: strategy::ints(random, count),
                columns,
            })
        }
    }
}

fn message(random: &mut Random) -> Message {
    let (properties, payload) = (random.below(40), random.pick(&[0, 1, 300]));
    Message {
        seq: SeqNo(random.next()),
        received: Timestamp::from_nanos(random.next().cast_signed()),
        qos: random.below(3) as u8,
        retain: random.below(2) == 0,
        topic: catalog::text(random),
        properties: random.bytes(properties),
        payload: random.bytes(payload),
    }
}

fn tombstone_of(random: &mut Random) -> Tombstone {
    let parts = (0..random.below(5)).map(|_| part(random)).collect();
    Tombstone { table: TableId(random.next() as u32), seq: SeqNo(random.next()), parts }
}

fn part(random: &mut Random) -> TombstonePart {
    let id = |random: &mut Random| SeriesId(random.next() >> random.below(64));
    let time = |random: &mut Random| Timestamp::from_nanos(random.next().cast_signed());
    let count = random.pick(&[0, 1, 2, 40]);
    if random.below(2) == 0 {
        return TombstonePart::Points((0..count).map(|_| (id(random), time(random))).collect());
    }
    let mut series: Vec<SeriesId> = (0..count).map(|_| id(random)).collect();
    series.sort_unstable();
    series.dedup();
    let (a, b) = (time(random), time(random));
    let range = TimeRange { start: a.min(b), end: a.max(b) };
    TombstonePart::Range { range, series: (random.below(3) > 0).then_some(series) }
}

/// The records of a frame with one record, whose kind and body these are.
fn read_record(kind: u8, body: &[u8]) -> sonde_storage_format::Result<Vec<Record>> {
    let mut frame = vec![0; FRAME_HEADER_LEN];
    frame.push(kind);
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(body);
    let len = (frame.len() - FRAME_HEADER_LEN) as u32 + 1;
    frame[..4].copy_from_slice(&len.to_le_bytes());
    frame.resize(frame.len().next_multiple_of(8), 0);
    let mut segment = vec![0; 64];
    segment.extend(frame);
    seal(&mut segment[64..], 64);
    let FrameScan::Frame(frame) = FrameScan::at(NUMBER, &segment, 64) else { panic!("a sealed frame") };
    frame.records().collect()
}

/// Kind and body of a record as it is written.
fn written(record: Record) -> (u8, Vec<u8>) {
    let seq = SeqRange { first: SeqNo(1), last: SeqNo(1) };
    let frame = write(&[record], NUMBER, 64, seq);
    let len = u32::from_le_bytes(frame[33..37].try_into().unwrap()) as usize;
    (frame[32], frame[37..37 + len].to_vec())
}

proptest! {
    #[test]
    fn messages_and_tombstones_round_trip(seed: u64) {
        let mut random = Random::new(seed);
        for record in [Record::Message(message(&mut random)), Record::Tombstone(tombstone_of(&mut random))] {
            let (kind, body) = written(record.clone());
            prop_assert_eq!(read_record(kind, &body), Ok(vec![record]));
        }
    }
}

/// Behind a checksum that is right, anything decodes to what encodes to the same, or is refused.
#[test]
fn a_damaged_record_never_panics() {
    let check = |kind: u8, body: &[u8]| {
        let Ok(records) = read_record(kind, body) else { return };
        for (_, column) in records.iter().flat_map(|record| match record {
            Record::Rows(rows) => &rows.columns[..],
            _ => &[],
        }) {
            assert_eq!(column.values.len(), column.cells.len());
        }
        for record in records {
            let (kind, body) = written(record.clone());
            assert_same(&read_record(kind, &body).unwrap(), &[record]);
        }
    };
    for record in exemplars().into_iter().flatten() {
        let (kind, body) = written(record);
        damage::each_flip(&body, |flipped, _| check(kind, flipped));
        damage::each_truncation(&body, |short| check(kind, short));
    }
}

#[test]
fn kinds_that_no_writer_makes_are_refused() {
    for kind in [0, 7, 255] {
        assert!(read_record(kind, &[]).is_err(), "kind {kind}");
    }
}

#[test]
fn messages_that_no_writer_makes_are_refused() {
    let (kind, body) = written(Record::Message(messages().remove(0)));
    // SeqNo and time, flags, length of the topic.
    assert_eq!((kind, body[16], body[17]), (2, 0b110, 10));
    let with = |at: usize, byte: u8| {
        let mut body = body.clone();
        body[at] = byte;
        read_record(kind, &body)
    };
    assert!(with(16, 0b001).is_ok());
    assert!(with(16, 0b011).is_err(), "quality of service 3");
    assert!(with(16, 0b1000).is_err(), "an unknown flag");
    assert!(with(18, 0xff).is_err(), "a topic that is not UTF-8");
    assert!(with(28, 200).is_err(), "properties beyond the end");
    assert!(with(17, 200).is_err(), "a topic beyond the end");
}

#[test]
fn tombstones_that_no_writer_makes_are_refused() {
    let read = |parts: &[u8]| read_record(5, &[&[7, 0, 0, 0, 45, 0, 0, 0, 0, 0, 0, 0][..], parts].concat());
    // One part: a range from 0 to 256 of some series.
    let range = |series: &[u8]| [&[1, 1][..], &[0; 9], &[1, 0, 0, 0, 0, 0, 0], series].concat();
    assert!(read(&[0]).is_ok());
    assert!(read(&range(&[0])).is_ok());
    assert!(read(&range(&[1, 2, 5, 9])).is_ok());
    assert!(read(&range(&[1, 2, 9, 5])).is_err(), "series that descend");
    assert!(read(&range(&[1, 2, 5, 5])).is_err(), "a series twice");
    assert!(read(&range(&[2])).is_err(), "neither all nor some series");
    assert!(read(&[&[1, 1][..], &[0; 8], &[0; 8], &[0]].concat()).is_err(), "no time");
    assert!(read(&range(&[1, 200, 1])).is_err(), "more series than bytes");
    assert!(read(&[&[1, 2, 1, 5][..], &[0; 8]].concat()).is_ok());
    assert!(read(&[&[1, 2, 2, 5][..], &[0; 8]].concat()).is_err(), "more points than bytes");
    for part in [0, 3] {
        assert!(read(&[&[1, part][..], &[0; 20]].concat()).is_err(), "part {part}");
    }
    assert!(read(&[0, 0]).is_err(), "bytes left over");
}

#[test]
fn rows_that_no_writer_makes_are_refused() {
    let (kind, body) = written(exemplars().swap_remove(1).remove(0));
    // Table, origin, SeqNo, rows, columns; three rows; the first column is of three floats without a map.
    let columns = 4 + 1 + 8 + 4 + 2 + (1 + 1 + 2) + (1 + 1 + 6) + 3 * 8;
    assert_eq!((kind, body[4], &body[columns..columns + 6]), (1, 3, &[2, 0, 0, 0, 1, 0][..]));
    let mixed = columns + 6 + 3 * 8;
    assert_eq!(body[mixed..mixed + 9], [3, 0, 0, 0, 5, 1, 0, 2, 1]);
    let with = |at: usize, byte: u8| {
        let mut body = body.clone();
        body[at] = byte;
        read_record(kind, &body)
    };
    assert!(with(4, 0).is_ok());
    for (at, byte, what) in [
        (13, 200, "more rows than bytes"),
        (18, 0x11, "more than 4,096 columns"),
        (columns + 4, 6, "an unknown type"),
        (columns + 5, 2, "cells of no known kind"),
        (mixed + 6, 3, "a cell that is none of the three"),
    ] {
        assert!(with(at, byte).is_err(), "{what}");
    }
    assert!(with(body.len() - 1, 0).is_ok() && with(body.len() - 1, 2).is_err(), "neither false nor true");
}

/// What a reader would refuse is a mistake of the caller.
#[test]
fn a_writer_refuses_what_a_reader_would() {
    let refused = |write: &(dyn Fn(&mut WalWriter) + std::panic::RefUnwindSafe)| {
        std::panic::catch_unwind(|| write(&mut WalWriter::new())).is_err()
    };
    assert!(refused(&|writer| writer.message(&Message { qos: 3, ..messages().remove(0) }.borrowed())));
    let tombstone_of = |writer: &mut WalWriter, series: &[u64]| {
        let series = Some(series.iter().map(|id| SeriesId(*id)).collect());
        let parts = vec![TombstonePart::Range { range: TimeRange::ALL, series }];
        writer.tombstone(&Tombstone { parts, ..tombstone() });
    };
    assert!(!refused(&|writer| tombstone_of(writer, &[1, 2])));
    assert!(refused(&|writer| tombstone_of(writer, &[2, 1])), "series that descend");
    assert!(refused(&|writer| tombstone_of(writer, &[2, 2])), "a series twice");
    for steps in [0, 255] {
        let Record::Rows(rows) = exemplars().swap_remove(1).remove(0) else { panic!("rows") };
        let rows = RowsRecord { origin: Origin::Rule(steps), ..rows };
        assert!(std::panic::catch_unwind(|| WalWriter::new().rows(&rows)).is_err(), "{steps} steps");
    }
}
