//! Segments of the log: head and frames.

use proptest::prelude::*;
use sonde_storage_format::{
    Column, ColumnId, Frame, FrameScan, Origin, Record, RowsRecord, SEGMENT_HEADER_LEN, SegmentHeader, SeqNo,
    SeqRange, SeriesId, State, TableId, Values, WalWriter, find_frame_after, was_synced,
};

use crate::random::Random;
use crate::records::{assert_same, exemplars, record};
use crate::{damage, golden};

pub(crate) const FRAME_HEADER_LEN: usize = 32;
pub(crate) const NUMBER: u64 = 3;
/// Zeroes behind the last frame, as a segment that was written ahead of use has them.
const UNUSED: usize = 96;

pub(crate) fn write(records: &[Record], segment: u64, offset: u64, seq: SeqRange) -> Vec<u8> {
    let mut writer = WalWriter::new();
    for record in records {
        match record {
            Record::Rows(rows) => writer.rows(rows),
            Record::State(state) => writer.state(state),
            Record::Catalog(change) => writer.catalog(change),
            Record::Series(series) => writer.series(series),
            Record::Message(message) => writer.message(&message.borrowed()),
            Record::Tombstone(tombstone) => writer.tombstone(tombstone),
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

fn records_of(frame: &Frame<'_>) -> Vec<Record> {
    frame.records().map(Result::unwrap).collect()
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
fn a_head_of_another_version_is_refused() {
    // The version, then feature bits.
    for (at, byte, who) in [(8, 0, "development build"), (8, 2, "newer sonde"), (12, 1, "newer sonde")] {
        let mut head = SegmentHeader { number: NUMBER, first_seq: SeqNo(1) }.encode();
        head[at] = byte;
        let crc = sonde_storage_format::crc32(&head[..60]);
        head[60..].copy_from_slice(&crc.to_le_bytes());
        let error = SegmentHeader::decode(&head).unwrap_err();
        assert!(error.to_string().contains(who), "{error}");
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

/// Whatever records the frame behind it has.
#[test]
fn damage_before_a_frame_of_any_record_is_noticed() {
    for record in exemplars().concat() {
        let (mut bytes, starts) = segment(NUMBER, &[Vec::new(), vec![record.clone()]]);
        bytes[starts[0]] ^= 1;
        let later = find_frame_after(NUMBER, &bytes, starts[0] as u64);
        assert_eq!(later.map(|frame| frame.offset as usize), Some(starts[1]), "{record:?}");
    }
}

/// What was written there is torn or damaged, and the log goes on behind it.
#[test]
fn a_head_of_zeroes_but_one_byte_is_not_the_end() {
    for at in 0..FRAME_HEADER_LEN {
        let mut bytes = [0; 64];
        bytes[at] = 1;
        assert!(matches!(FrameScan::at(NUMBER, &bytes, 0), FrameScan::Bad(_)), "byte {at}");
    }
}

/// What is damaged before a frame was synced if some frame behind says so, the next one or not, and only then.
#[test]
fn a_frame_behind_says_what_was_synced() {
    // Where each frame begins, and what it says of those before it: the third was synced by the fourth's time.
    let state = |i: u8| Record::State(State { namespace: "n".into(), key: vec![i; 9], value: None });
    let mut bytes = SegmentHeader { number: NUMBER, first_seq: SeqNo(1) }.encode();
    let mut starts: Vec<usize> = Vec::new();
    for (i, synced) in [0, 1, 1, 1, 4, 4].into_iter().enumerate() {
        starts.push(bytes.len());
        let mut writer = WalWriter::new();
        if let Record::State(state) = state(i as u8) {
            writer.state(&state);
        }
        let seq = SeqRange { first: SeqNo(1 + i as u64), last: SeqNo(1 + i as u64) };
        bytes.extend(writer.finish(NUMBER, bytes.len() as u64, seq, starts[synced] as u64));
    }
    let damaged = |frames: &[usize]| {
        let mut damaged = bytes.clone();
        frames.iter().for_each(|frame| damaged[starts[*frame] + 40] ^= 1);
        was_synced(NUMBER, &damaged, starts[frames[0]] as u64)
    };
    for (frames, synced) in [
        (&[0][..], true),
        (&[1], true),
        (&[3], true),
        (&[4], false),
        (&[5], false),
        (&[1, 2, 3], true),
        (&[2, 4], true),
        (&[3, 4, 5], false),
        (&[1, 4, 5], false),
        (&[0, 1, 2, 3, 4, 5], false),
    ] {
        assert_eq!(damaged(frames), synced, "{frames:?}");
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

/// Writes the checksum of a frame at this offset.
pub(crate) fn seal(bytes: &mut [u8], offset: u64) {
    let len = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize - 1;
    let mut covered = bytes[..4].to_vec();
    covered.extend_from_slice(&bytes[8..FRAME_HEADER_LEN + len.next_multiple_of(8)]);
    let crc = sonde_storage_format::crc32_seeded(NUMBER, offset, &covered);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// A column of integers looks like lengths of frames wherever it lies: what may be a frame is told by its records' heads,
/// so that the search behind a torn tail sums up next to nothing.
#[test]
fn the_search_behind_a_torn_tail_does_not_sum_up_its_columns() {
    let rows = 300_000;
    let record = RowsRecord {
        table: TableId(1),
        origin: Origin::Client,
        first_seq: SeqNo(1),
        seq_offsets: vec![0; rows],
        series: vec![SeriesId(0); rows],
        times: (0..rows as i64).collect(),
        columns: vec![(
            ColumnId(1),
            Column::of(Values::Int((0..rows as i64).map(|i| 400_000 + i % 1000).collect())),
        )],
    };
    let offset = 1_u64 << 25;
    let mut writer = WalWriter::new();
    writer.rows(&record);
    let seq = SeqRange { first: SeqNo(1), last: SeqNo(1) };
    let mut bytes = vec![0; offset as usize];
    bytes.extend(writer.finish(3, offset, seq, offset));
    let searched = || {
        let started = std::time::Instant::now();
        for last in [1, 8, 64, 4096] {
            let torn = bytes.len() - last;
            let mut torn = bytes[..torn].to_vec();
            torn.resize(bytes.len(), 0);
            torn[offset as usize + 100] ^= 1;
            assert!(find_frame_after(3, &torn, offset).is_none());
        }
        started.elapsed().as_secs_f64()
    };
    // Summing up took seconds here, and minutes for larger batches. Others may want the processor meanwhile.
    let quickest = std::iter::repeat_with(searched).take(5).find(|seconds| *seconds < 4.0);
    assert!(quickest.is_some(), "none of five searches ended within four seconds");
    assert!(find_frame_after(3, &bytes, u64::MAX).is_none());
}
