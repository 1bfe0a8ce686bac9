//! Checkpoints of catalog, series and state.

use proptest::prelude::*;
use sonde_storage_format::{
    Checkpoint, SeqNo, SeriesKey, SeriesKeys, StateEntry, TableId, TableSeries, checkpoint_parts, crc32,
};

use crate::random::Random;
use crate::{catalog, damage, golden};

fn exemplar() -> Checkpoint {
    let entry = |key: &[u8], value: &[u8]| StateEntry {
        namespace: "mqtt.retained".to_owned(),
        key: key.to_vec(),
        value: value.to_vec(),
    };
    Checkpoint {
        position: SeqNo(300),
        catalog: catalog::exemplars(),
        series: vec![
            TableSeries {
                table: TableId(7),
                keys: [
                    SeriesKey::encode([Some("a")]),
                    SeriesKey::encode([None, Some("é\0")]),
                    SeriesKey::encode([]),
                ]
                .into_iter()
                .collect(),
            },
            TableSeries { table: TableId(8), keys: SeriesKeys::default() },
        ],
        state: vec![entry(b"plant/\0", b"on"), entry(b"", b"")],
    }
}

fn checkpoint(random: &mut Random) -> Checkpoint {
    let tables = random.below(4);
    Checkpoint {
        position: SeqNo(random.next()),
        catalog: (0..random.below(5)).map(|_| catalog::change(random)).collect(),
        series: (0..tables)
            .map(|i| TableSeries {
                table: TableId(i as u32),
                keys: (0..random.below(4))
                    .map(|_| SeriesKey::encode([Some(catalog::text(random).as_str())]))
                    .collect(),
            })
            .collect(),
        state: (0..random.below(4))
            .map(|_| {
                let (key, value) = (random.below(9), random.below(300));
                let namespace = catalog::text(random);
                StateEntry { namespace, key: random.bytes(key), value: random.bytes(value) }
            })
            .collect(),
    }
}

#[test]
fn golden() {
    let bytes = exemplar().encode();
    golden::check("checkpoint", &bytes);
    assert_eq!(Checkpoint::decode(&bytes), Ok(exemplar()));
}

#[test]
fn sizes() {
    // Magic, version, position, three counts, checksum.
    assert_eq!(Checkpoint::default().encode().len(), 8 + 4 + 8 + 3 + 4);
}

proptest! {
    #[test]
    fn round_trip(seed: u64) {
        let checkpoint = checkpoint(&mut Random::new(seed));
        prop_assert_eq!(Checkpoint::decode(&checkpoint.encode()), Ok(checkpoint));
    }
}

/// However many series there are, no part is larger than a MiB and what stands at a stretch.
#[test]
fn a_large_one_comes_in_parts() {
    let key = |i: usize| SeriesKey::encode([Some(format!("device-number-{i:08}").as_str())]);
    let tables = [70_000, 0, 60_000].into_iter().zip(1..);
    let of_table =
        |(count, id)| TableSeries { table: TableId(id), keys: (0..count).map(key).collect::<SeriesKeys>() };
    let entry = |i: u8| StateEntry { namespace: "n".into(), key: vec![i], value: vec![i; 200_000] };
    let whole = Checkpoint {
        series: tables.map(of_table).collect(),
        state: (0..9).map(entry).collect(),
        ..exemplar()
    };
    let parts: Vec<Vec<u8>> =
        checkpoint_parts(whole.position, &whole.catalog, &whole.series, &whole.state).collect();
    let sizes: Vec<usize> = parts.iter().map(Vec::len).collect();
    assert!(sizes.len() > 4 && sizes.iter().all(|bytes| *bytes < (1 << 20) + 200_100), "{sizes:?}");
    assert_eq!(Checkpoint::decode(&parts.concat()), Ok(whole));
}

#[test]
fn damage_is_refused() {
    damage::all_refused(&exemplar().encode(), Checkpoint::decode);
}

#[test]
fn another_version_is_refused() {
    for (version, who) in [(0, "development build"), (2, "newer sonde")] {
        let mut bytes = exemplar().encode();
        bytes[8] = version;
        reseal(&mut bytes);
        let error = Checkpoint::decode(&bytes).unwrap_err();
        assert!(error.to_string().contains(who), "{error}");
    }
}

fn reseal(bytes: &mut [u8]) {
    let end = bytes.len() - 4;
    let crc = crc32(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_le_bytes());
}

/// Behind a checksum that is right, anything decodes to what encodes to the same, or is refused.
#[test]
fn sealed_damage_never_panics() {
    let check = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        reseal(&mut bytes);
        if let Ok(checkpoint) = Checkpoint::decode(&bytes) {
            assert_eq!(Checkpoint::decode(&checkpoint.encode()), Ok(checkpoint));
        }
    };
    let bytes = exemplar().encode();
    damage::each_flip(&bytes, |flipped, _| check(flipped));
    damage::each_truncation(&bytes, |short| check(&[short, &[0; 4]].concat()));
}
