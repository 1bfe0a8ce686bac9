//! Segments of the log: head, frames, every kind of record.

use proptest::prelude::*;
use sonde_storage_format::{
    Cell, Column, ColumnId, Frame, FrameScan, Record, RowsRecord, SEGMENT_HEADER_LEN, SegmentHeader, SeqNo,
    SeqRange, SeriesId, SeriesKey, SeriesRecord, State, TableId, Values, WalWriter, find_frame_after,
};

use crate::random::Random;
use crate::same::{exact, exact_all};
use crate::strategy::{self, FLOATS, KINDS};
use crate::{catalog, damage, golden, random};

const FRAME_HEADER_LEN: usize = 32;
const NUMBER: u64 = 3;
/// Zeroes behind the last frame, as a segment that was written ahead of use has them.
const UNUSED: usize = 96;

fn write(records: &[Record], segment: u64, offset: u64, seq: SeqRange) -> Vec<u8> {
    let mut writer = WalWriter::new();
    for record in records {
        match record {
            Record::Rows(rows) => writer.rows(rows),
            Record::State(state) => writer.state(state),
            Record::Catalog(change) => writer.catalog(change),
            Record::Series(series) => writer.series(series),
        }
    }
    assert_eq!(writer.is_empty(), records.is_empty());
    let len = writer.len();
    let frame = writer.finish(segment, offset, seq, offset);
    assert_eq!(frame.len(), len.next_multiple_of(8));
    frame
}

/// A segment with one frame per group, and where each frame starts.
fn segment(number: u64, groups: &[Vec<Record>]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = SegmentHeader { number, first_seq: SeqNo(1) }.encode();
    let mut starts = Vec::new();
    for (group, i) in groups.iter().zip(0..) {
        let seq = SeqRange { first: SeqNo(1 + 10 * i), last: SeqNo(10 + 10 * i) };
        starts.push(bytes.len());
        bytes.extend(write(group, number, bytes.len() as u64, seq));
    }
    (bytes, starts)
}

fn exemplars() -> Vec<Vec<Record>> {
    let float = Values::Float(FLOATS.map(f64::from_bits)[..3].to_vec());
    let mut mixed = Column::new(sonde_storage_format::PhysicalType::Text);
    mixed.push_empty(Cell::Absent, 1);
    mixed.extend_from(&Column::of(Values::Text([&b"a\0\xc3\xa9"[..]].into_iter().collect())), 0..1);
    mixed.push_empty(Cell::Null, 1);
    let rows = RowsRecord {
        table: TableId(7),
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
    let changes = catalog::exemplars().into_iter().map(Record::Catalog);
    vec![
        changes.chain([Record::Series(series)]).collect(),
        vec![Record::Rows(rows)],
        Vec::new(),
        vec![state(Some(b"on")), state(Some(b"")), state(None)],
    ]
}

/// A record as something that `==` compares bit by bit.
fn exact_record(record: &Record) -> impl PartialEq + std::fmt::Debug + use<> {
    let (mut record, mut columns) = (record.clone(), Vec::new());
    if let Record::Rows(rows) = &mut record {
        columns = exact_all(&std::mem::take(&mut rows.columns));
    }
    (record, columns)
}

fn records_of(frame: &Frame<'_>) -> Vec<Record> {
    frame.records().map(Result::unwrap).collect()
}

fn assert_same(found: &[Record], expected: &[Record]) {
    let exact = |records: &[Record]| records.iter().map(exact_record).collect::<Vec<_>>();
    assert_eq!(exact(found), exact(expected));
}

/// All frames from the head to the first place that has none, and that place.
fn scan(number: u64, bytes: &[u8]) -> (Vec<Frame<'_>>, FrameScan<'_>, u64) {
    let mut frames = Vec::new();
    let mut offset = SEGMENT_HEADER_LEN as u64;
    loop {
        match FrameScan::at(number, bytes, offset) {
            FrameScan::Frame(frame) => {
                assert!(frame.offset == offset && frame.end > offset && frame.end.is_multiple_of(8));
                offset = frame.end;
                frames.push(frame);
            }
            end => return (frames, end, offset),
        }
    }
}

#[test]
fn golden() {
    let (bytes, starts) = segment(NUMBER, &exemplars());
    golden::check("wal_segment", &bytes);
    assert_eq!(SegmentHeader::decode(&bytes).unwrap(), SegmentHeader { number: NUMBER, first_seq: SeqNo(1) });
    let (frames, end, offset) = scan(NUMBER, &bytes);
    assert!(matches!(end, FrameScan::End) && offset == bytes.len() as u64);
    for (((frame, records), start), i) in frames.iter().zip(exemplars()).zip(starts).zip(0..) {
        assert_eq!(frame.seq, SeqRange { first: SeqNo(1 + 10 * i), last: SeqNo(10 + 10 * i) });
        assert_eq!((frame.offset, frame.synced_through), (start as u64, start as u64));
        assert_same(&records_of(frame), &records);
    }
    assert_eq!(frames.len(), exemplars().len());
}

#[test]
fn sizes() {
    assert_eq!(SEGMENT_HEADER_LEN, 64);
    assert_eq!(SegmentHeader { number: 1, first_seq: SeqNo(1) }.encode().len(), SEGMENT_HEADER_LEN);
    let seq = SeqRange { first: SeqNo(1), last: SeqNo(1) };
    assert_eq!(write(&[], NUMBER, 64, seq).len(), FRAME_HEADER_LEN);
    let gone = State { namespace: "n".to_owned(), key: b"k".to_vec(), value: None };
    assert_eq!(write(&[Record::State(gone)], NUMBER, 64, seq).len(), FRAME_HEADER_LEN + 16);
}

#[test]
fn a_writer_by_default_is_a_new_writer() {
    let (writer, seq) = (WalWriter::default(), SeqRange { first: SeqNo(1), last: SeqNo(1) });
    assert!(writer.is_empty());
    assert_eq!(writer.finish(NUMBER, 64, seq, 64), WalWriter::new().finish(NUMBER, 64, seq, 64));
}

fn record(random: &mut Random) -> Record {
    let table = TableId(random.next() as u32);
    match random.below(5) {
        0 => Record::Catalog(catalog::change(random)),
        1 => {
            let (len, max) = (random.below(20), random.pick(&[1, 300]));
            let value = (random.below(3) > 0).then(|| random.bytes(max));
            Record::State(State { namespace: catalog::text(random), key: random.bytes(len), value })
        }
        2 => {
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
            Record::Rows(RowsRecord {
                table,
                first_seq: SeqNo(random.next()),
                seq_offsets,
                series: (0..count).map(|_| SeriesId(random.next() >> random.below(64))).collect(),
                times: strategy::ints(random, count),
                columns,
            })
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn round_trip(seed: u64, number: u64, shape in proptest::collection::vec(0..4_usize, 0..4)) {
        let mut random = Random::new(seed);
        let groups: Vec<Vec<Record>> =
            shape.iter().map(|count| (0..*count).map(|_| record(&mut random)).collect()).collect();
        let (mut bytes, _) = segment(number, &groups);
        let used = bytes.len() as u64;
        bytes.resize(bytes.len() + UNUSED, 0);
        let (frames, end, offset) = scan(number, &bytes);
        prop_assert!(matches!(end, FrameScan::End) && offset == used);
        prop_assert_eq!(frames.len(), groups.len());
        for (frame, records) in frames.iter().zip(&groups) {
            assert_same(&records_of(frame), records);
        }
    }

    #[test]
    fn heads_round_trip(number: u64, first_seq: u64) {
        let header = SegmentHeader { number, first_seq: SeqNo(first_seq) };
        prop_assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
    }
}

#[test]
fn a_damaged_head_is_refused() {
    damage::all_refused(
        &SegmentHeader { number: NUMBER, first_seq: SeqNo(77) }.encode(),
        SegmentHeader::decode,
    );
}

#[test]
fn a_head_of_a_later_version_is_refused() {
    for at in [8, 12] {
        let mut head = SegmentHeader { number: NUMBER, first_seq: SeqNo(1) }.encode();
        head[at] = 1;
        let crc = sonde_storage_format::crc32(&head[..60]);
        head[60..].copy_from_slice(&crc.to_le_bytes());
        let error = SegmentHeader::decode(&head).unwrap_err();
        assert!(error.to_string().contains("newer sonde"), "{error}");
    }
}

/// Frames before the damage stand, the damaged one never passes, and those behind it show that it is not a torn tail.
#[test]
fn a_flipped_frame_is_no_frame() {
    let groups = exemplars();
    let (mut bytes, starts) = segment(NUMBER, &groups);
    let used = bytes.len();
    bytes.resize(used + UNUSED, 0);
    damage::each_flip(&bytes, |flipped, at| {
        let hit = starts.iter().filter(|start| **start <= at).count();
        if hit == 0 {
            return; // the head, which has its own test
        }
        let (frames, end, offset) = scan(NUMBER, flipped);
        if at >= used {
            // Behind the last frame: nothing is lost, whatever the scan calls it.
            assert!(frames.len() == groups.len() && find_frame_after(NUMBER, flipped, offset).is_none());
            return;
        }
        assert_eq!(frames.len(), hit - 1, "a flip in byte {at}");
        assert_eq!(offset, starts[hit - 1] as u64);
        assert!(matches!(end, FrameScan::Bad(_) | FrameScan::End));
        let later = find_frame_after(NUMBER, flipped, offset).map(|frame| frame.offset as usize);
        assert_eq!(later, starts.get(hit).copied(), "the frame behind byte {at}");
    });
    let (frames, ..) = scan(NUMBER, &bytes);
    for (frame, records) in frames.iter().zip(&groups) {
        assert_same(&records_of(frame), records);
    }
}

#[test]
fn a_cut_segment_ends_in_a_torn_tail() {
    let (bytes, starts) = segment(NUMBER, &exemplars());
    damage::each_truncation(&bytes, |short| {
        if short.len() < SEGMENT_HEADER_LEN {
            assert!(SegmentHeader::decode(short).is_err());
            return;
        }
        let (frames, end, offset) = scan(NUMBER, short);
        let whole = starts.iter().skip(1).filter(|start| **start <= short.len()).count();
        assert_eq!((frames.len(), offset), (whole, starts[whole] as u64));
        assert!(matches!(end, FrameScan::Bad(_) | FrameScan::End));
        assert!(find_frame_after(NUMBER, short, offset).is_none());
    });
}

/// The checksum is seeded with segment and offset: what a recycled segment held before is no frame.
#[test]
fn a_frame_elsewhere_is_no_frame() {
    let (bytes, starts) = segment(NUMBER, &exemplars());
    for start in &starts {
        assert!(matches!(FrameScan::at(NUMBER, &bytes, *start as u64), FrameScan::Frame(_)));
        assert!(matches!(FrameScan::at(NUMBER + 1, &bytes, *start as u64), FrameScan::Bad(_)));
        let moved = [&bytes[..8], &bytes[..]].concat();
        assert!(matches!(FrameScan::at(NUMBER, &moved, *start as u64 + 8), FrameScan::Bad(_)));
    }
}

#[test]
fn nothing_is_the_end() {
    for bytes in [&[][..], &[0; 31], &[0; 200]] {
        assert!(matches!(FrameScan::at(NUMBER, bytes, 0), FrameScan::End));
        assert!(matches!(FrameScan::at(NUMBER, bytes, 1000), FrameScan::End));
        assert!(find_frame_after(NUMBER, bytes, 64).is_none());
    }
}

/// What `find_frame_after` sees before it sums up a candidate: else a torn tail of some megabytes would take minutes.
#[test]
fn a_frame_that_was_synced_before_it_was_written_is_none() {
    let seq = SeqRange { first: SeqNo(1), last: SeqNo(1) };
    let mut bytes = vec![0; 64];
    bytes.extend(write(&[], NUMBER, 64, seq));
    assert!(matches!(FrameScan::at(NUMBER, &bytes, 64), FrameScan::Frame(_)));
    bytes[64 + 24] += 1;
    seal(&mut bytes[64..], 64);
    match FrameScan::at(NUMBER, &bytes, 64) {
        FrameScan::Bad(error) => assert!(error.to_string().contains("sync"), "{error}"),
        other => panic!("{other:?}"),
    }
}

/// Makes a frame of `bytes`: its length, sync and checksum fields are set right where no frame could have them.
fn reseal(bytes: &mut Vec<u8>, offset: u64) {
    if bytes.len() < FRAME_HEADER_LEN {
        bytes.resize(FRAME_HEADER_LEN, 0);
    }
    let stated = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
    let room = bytes.len() - FRAME_HEADER_LEN;
    if stated == 0 || (stated - 1).next_multiple_of(8) > room {
        let len = room as u32 / 8 * 8 + 1;
        bytes[..4].copy_from_slice(&len.to_le_bytes());
    }
    if u64::from_le_bytes(bytes[24..32].try_into().unwrap()) > offset {
        bytes[24..32].copy_from_slice(&offset.to_le_bytes());
    }
    seal(bytes, offset);
}

fn seal(bytes: &mut [u8], offset: u64) {
    let len = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize - 1;
    let mut covered = bytes[..4].to_vec();
    covered.extend_from_slice(&bytes[8..FRAME_HEADER_LEN + len.next_multiple_of(8)]);
    let crc = sonde_storage_format::crc32_seeded(NUMBER, offset, &covered);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// A frame stands at the offset; what its records decode to encodes to something that decodes to the same.
fn decode(bytes: &[u8], offset: u64) {
    let mut segment = vec![0; offset as usize];
    segment.extend_from_slice(bytes);
    let FrameScan::Frame(frame) = FrameScan::at(NUMBER, &segment, offset) else { panic!("a sealed frame") };
    assert_eq!(frame.offset, offset);
    let Ok(records) = frame.records().collect::<Result<Vec<_>, _>>() else { return };
    for record in &records {
        if let Record::Rows(rows) = record {
            for (_, column) in &rows.columns {
                assert_eq!(exact(column).1.len(), rows.times.len());
            }
        }
    }
    let again = write(&records, NUMBER, 64, frame.seq);
    let segment = [&[0; 64][..], &again].concat();
    let FrameScan::Frame(frame) = FrameScan::at(NUMBER, &segment, 64) else { panic!("what was encoded") };
    assert_same(&records_of(&frame), &records);
}

#[test]
fn fuzz_wal_frame() {
    let offset = SEGMENT_HEADER_LEN as u64;
    let seq = SeqRange { first: SeqNo(1), last: SeqNo(9) };
    let mut exemplars: Vec<_> = exemplars().iter().map(|group| write(group, NUMBER, offset, seq)).collect();
    let mut random = Random::new(4);
    exemplars.extend((0..20).map(|_| write(&[record(&mut random)], NUMBER, offset, seq)));
    random::fuzz(&exemplars, |bytes| reseal(bytes, offset), |bytes| decode(bytes, offset));
}

/// A segment of anything: a scan ends, and finds nothing that was not written.
#[test]
fn fuzz_wal_segment() {
    let (bytes, _) = segment(NUMBER, &exemplars());
    let check = |bytes: &[u8]| {
        let _ = SegmentHeader::decode(bytes);
        let (_, _, offset) = scan(NUMBER, bytes);
        let _ = find_frame_after(NUMBER, bytes, offset);
    };
    random::fuzz(&[bytes], |_| {}, check);
}
