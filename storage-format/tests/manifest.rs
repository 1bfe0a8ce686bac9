//! The manifest: a head, then one frame per edit.

use proptest::prelude::*;
use sonde_storage_format::{
    ChunkId, ChunkMeta, ColdFile, ColumnId, ColumnRange, Edit, ManifestHeader, PhysicalType, SeqNo, SeqRange,
    TableId, TimeRange, Timestamp, crc32_seeded, decode_edits, encode_edit, salvage_edits,
};

use crate::random::Random;
use crate::{catalog, damage, golden, strategy};

const NUMBER: u64 = 5;

/// A manifest with one frame per group of edits, and where each frame starts.
pub(crate) fn manifest(number: u64, groups: &[Vec<Edit>]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = ManifestHeader { number }.encode();
    let mut starts = Vec::new();
    for group in groups {
        starts.push(bytes.len());
        bytes.extend(encode_edit(number, bytes.len() as u64, group).unwrap());
    }
    (bytes, starts)
}

fn exemplars() -> Vec<Vec<Edit>> {
    let nanos = Timestamp::from_nanos;
    let day = TimeRange { start: nanos(86_400_000_000_000), end: nanos(2 * 86_400_000_000_000) };
    let column =
        |id, kind, range| ColumnRange { id: ColumnId(id), kind, present: 300, bytes: 1 << 20, range };
    let chunk = ChunkMeta {
        id: ChunkId(41),
        table: TableId(7),
        range: day,
        times: (nanos(86_400_000_000_000), nanos(86_400_000_000_001)),
        seq: SeqRange { first: SeqNo(1), last: SeqNo(300) },
        rows: 300,
        series: 2,
        bytes: 1 << 33,
        columns: vec![
            column(0, PhysicalType::Int64, Some((i64::MIN.cast_unsigned(), 5))),
            column(3, PhysicalType::Text, None),
        ],
    };
    let bare =
        ChunkMeta { id: ChunkId(u64::MAX), range: TimeRange::ALL, columns: Vec::new(), ..chunk.clone() };
    let path = "public/readings/day=1970-01-02/part-é.parquet".to_owned();
    let cold = ColdFile { table: TableId(7), day, position: SeqNo(300), path, rows: 300, bytes: 9000 };
    vec![
        vec![
            Edit::NextChunk(ChunkId(42)),
            Edit::AddChunk(chunk),
            Edit::FlushedTo(SeqNo(300)),
            Edit::Checkpoint(2),
        ],
        vec![Edit::AddChunk(bare)],
        Vec::new(),
        vec![
            Edit::AddCold(cold),
            Edit::RemoveChunk(ChunkId(41)),
            Edit::RemoveCold { table: TableId(8), day },
        ],
    ]
}

fn edit(random: &mut Random) -> Edit {
    let table = TableId(random.next() as u32);
    let mut ends = [random.next().cast_signed(), random.pick(&[i64::MIN, 0, i64::MAX])];
    ends.sort_unstable();
    let [start, end] = ends.map(Timestamp::from_nanos);
    let range = if start < end { TimeRange { start, end } } else { TimeRange::ALL };
    let big = |random: &mut Random| random.next() >> random.below(64);
    match random.below(8) {
        0 => Edit::AddChunk(ChunkMeta {
            id: ChunkId(random.next()),
            table,
            range,
            times: (start, end),
            seq: SeqRange { first: SeqNo(random.next()), last: SeqNo(u64::MAX) },
            rows: random.next(),
            series: random.next(),
            bytes: random.next(),
            columns: (0..random.below(6))
                .map(|i| ColumnRange {
                    id: ColumnId(i as u32),
                    kind: random.pick(&strategy::KINDS),
                    present: big(random),
                    bytes: big(random),
                    range: (random.below(3) > 0).then(|| (random.next(), random.next())),
                })
                .collect(),
        }),
        1 => Edit::RemoveChunk(ChunkId(random.next())),
        2 => Edit::FlushedTo(SeqNo(random.next())),
        3 => Edit::Checkpoint(random.next()),
        4 => Edit::AddCold(ColdFile {
            table,
            day: range,
            position: SeqNo(random.next()),
            path: catalog::text(random),
            rows: random.next(),
            bytes: random.next(),
        }),
        5 => Edit::RemoveCold { table, day: range },
        6 => Edit::Purged { chunk: ChunkId(random.next()), seq: SeqNo(random.next()) },
        _ => Edit::NextChunk(ChunkId(random.next())),
    }
}

#[test]
fn golden() {
    let (bytes, _) = manifest(NUMBER, &exemplars());
    golden::check("manifest", &bytes);
    assert_eq!(ManifestHeader::decode(&bytes), Ok(ManifestHeader { number: NUMBER }));
    assert_eq!(decode_edits(NUMBER, &bytes), Ok((exemplars().concat(), bytes.len() as u64)));
    let purged = vec![Edit::Purged { chunk: ChunkId(41), seq: SeqNo(301) }];
    let (bytes, _) = manifest(NUMBER, std::slice::from_ref(&purged));
    golden::check("manifest_purged", &bytes);
    assert_eq!(decode_edits(NUMBER, &bytes), Ok((purged, bytes.len() as u64)));
}

#[test]
fn sizes() {
    assert_eq!(ManifestHeader::LEN, 24);
    assert_eq!(ManifestHeader { number: 1 }.encode().len(), ManifestHeader::LEN);
    assert_eq!(encode_edit(1, 24, &[]).unwrap().len(), 8 + 1);
    assert_eq!(encode_edit(1, 24, &[Edit::FlushedTo(SeqNo(1))]).unwrap().len(), 8 + 1 + 9);
}

/// What a frame does not take is refused, and does not panic.
#[test]
fn an_edit_is_at_most_64_mib() {
    let cold = |path: usize| {
        let (table, day, path) = (TableId(1), TimeRange::ALL, "x".repeat(path));
        Edit::AddCold(ColdFile { table, day, position: SeqNo(1), path, rows: 1, bytes: 1 })
    };
    let most: Vec<Edit> = (0..64).map(|_| cold((1 << 20) - 64)).collect();
    assert!(encode_edit(1, 24, &most).is_ok());
    let more: Vec<Edit> = (0..64).map(|_| cold(1 << 20)).collect();
    let error = encode_edit(1, 24, &more).unwrap_err();
    assert!(error.to_string().contains("at most 64 MiB"), "{error}");
}

#[test]
fn no_step_takes_more_than_it_says() {
    let mut random = Random::new(9);
    let steps = (0..2000).map(|_| edit(&mut random)).chain(exemplars().concat());
    for step in steps {
        let frame = encode_edit(1, 24, std::slice::from_ref(&step)).unwrap();
        assert!(frame.len() - 9 <= step.bytes_at_most(), "{step:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn round_trip(seed: u64, number: u64, shape in proptest::collection::vec(0..5_usize, 0..5)) {
        let mut random = Random::new(seed);
        let groups: Vec<Vec<Edit>> =
            shape.iter().map(|count| (0..*count).map(|_| edit(&mut random)).collect()).collect();
        let (mut bytes, _) = manifest(number, &groups);
        let end = bytes.len() as u64;
        prop_assert_eq!(decode_edits(number, &bytes), Ok((groups.concat(), end)));
        bytes.resize(bytes.len() + 40, 0);
        prop_assert_eq!(decode_edits(number, &bytes), Ok((groups.concat(), end)));
    }

    #[test]
    fn heads_round_trip(number: u64) {
        prop_assert_eq!(ManifestHeader::decode(&ManifestHeader { number }.encode()), Ok(ManifestHeader { number }));
    }
}

#[test]
fn a_damaged_head_is_refused() {
    damage::all_refused(&ManifestHeader { number: NUMBER }.encode(), ManifestHeader::decode);
}

#[test]
fn a_flip_is_damage_but_in_the_last_frame_a_torn_tail() {
    let groups = exemplars();
    let (bytes, starts) = manifest(NUMBER, &groups);
    let last = starts[starts.len() - 1];
    let kept = groups[..groups.len() - 1].concat();
    damage::each_flip(&bytes, |flipped, at| {
        if at < ManifestHeader::LEN {
            assert!(ManifestHeader::decode(flipped).is_err());
        } else if at < last {
            assert!(decode_edits(NUMBER, flipped).is_err(), "a flip in byte {at} went unnoticed");
        } else {
            assert_eq!(decode_edits(NUMBER, flipped), Ok((kept.clone(), last as u64)), "a flip in byte {at}");
        }
    });
}

/// Whatever the frame behind it begins with.
#[test]
fn damage_before_a_frame_of_any_step_is_noticed() {
    let frames = exemplars().concat().into_iter().map(|step| vec![step]).chain([Vec::new()]);
    for frame in frames {
        let (mut bytes, starts) = manifest(NUMBER, &[vec![Edit::Checkpoint(1)], frame.clone()]);
        bytes[starts[0]] ^= 1;
        assert!(decode_edits(NUMBER, &bytes).is_err(), "{frame:?}");
    }
}

/// Behind a flip every frame but the damaged one is found again.
#[test]
fn what_is_whole_is_salvaged() {
    let groups = exemplars();
    let (bytes, starts) = manifest(NUMBER, &groups);
    let whole: Vec<_> = groups.iter().cloned().map(Some).collect();
    assert_eq!(salvage_edits(NUMBER, &bytes), whole);
    for at in ManifestHeader::LEN..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        let frame = starts.partition_point(|start| *start <= at) - 1;
        let mut left = whole.clone();
        left[frame] = None;
        assert_eq!(salvage_edits(NUMBER, &flipped), left, "byte {at}");
        let cut = salvage_edits(NUMBER, &bytes[..at]);
        let torn = usize::from(!starts.contains(&at));
        assert_eq!(
            cut[..cut.len() - torn],
            whole[..frame + 1 - usize::from(torn == 1 || starts.contains(&at))]
        );
    }
    assert!(salvage_edits(NUMBER + 1, &bytes).iter().all(Option::is_none));
}

#[test]
fn a_cut_manifest_keeps_its_whole_frames() {
    let groups = exemplars();
    let (bytes, starts) = manifest(NUMBER, &groups);
    damage::each_truncation(&bytes, |short| {
        if short.len() < ManifestHeader::LEN {
            assert!(ManifestHeader::decode(short).is_err());
            return;
        }
        let whole = starts.iter().skip(1).filter(|start| **start <= short.len()).count();
        assert_eq!(decode_edits(NUMBER, short), Ok((groups[..whole].concat(), starts[whole] as u64)));
    });
}

#[test]
fn a_frame_of_another_manifest_is_none() {
    let (bytes, starts) = manifest(NUMBER, &exemplars());
    assert_eq!(decode_edits(NUMBER + 1, &bytes), Ok((Vec::new(), starts[0] as u64)));
}

fn seal(number: u64, offset: u64, body: &[u8]) -> Vec<u8> {
    let covered = [&(body.len() as u32).to_le_bytes()[..], body].concat();
    [&crc32_seeded(number, offset, &covered).to_le_bytes()[..], &covered].concat()
}

/// A frame whose checksum is right was written: what cannot be read in it was not torn, and must not be dropped.
#[test]
fn a_whole_frame_with_an_unknown_edit_is_refused() {
    let (bytes, _) = manifest(NUMBER, &exemplars());
    let offset = bytes.len() as u64;
    // FlushedTo(1), then an edit of a kind that this version does not know; too many edits; none of those announced.
    for body in [&[2, 3, 1, 0, 0, 0, 0, 0, 0, 0, 99][..], &[1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[1]] {
        let frame = seal(NUMBER, offset, body);
        assert!(decode_edits(NUMBER, &[&bytes[..], &frame].concat()).is_err(), "{body:?}");
    }
}

#[test]
fn another_version_is_refused() {
    for (version, who) in [(0, "development build"), (2, "newer sonde")] {
        let mut head = ManifestHeader { number: NUMBER }.encode();
        head[8] = version;
        let crc = crc32_seeded(0, 0, &head[..20]);
        head[20..].copy_from_slice(&crc.to_le_bytes());
        let error = ManifestHeader::decode(&head).unwrap_err();
        assert!(error.to_string().contains(who), "{error}");
    }
}

/// A whole frame of anything decodes to what encodes to the same, or is refused.
#[test]
fn a_damaged_step_never_panics() {
    let (bytes, starts) = manifest(NUMBER, &exemplars());
    let check = |body: &[u8]| {
        let frame = seal(NUMBER, ManifestHeader::LEN as u64, body);
        let bytes = [&bytes[..ManifestHeader::LEN], &frame].concat();
        if let Ok((edits, end)) = decode_edits(NUMBER, &bytes) {
            // Without a body there is no frame.
            assert_eq!(end, if body.is_empty() { ManifestHeader::LEN } else { bytes.len() } as u64);
            let (again, _) = manifest(NUMBER, std::slice::from_ref(&edits));
            assert_eq!(decode_edits(NUMBER, &again), Ok((edits, again.len() as u64)));
        }
    };
    for (start, end) in starts.iter().zip(starts[1..].iter().chain([&bytes.len()])) {
        damage::each_flip(&bytes[start + 8..*end], |flipped, _| check(flipped));
        damage::each_truncation(&bytes[start + 8..*end], check);
    }
}
