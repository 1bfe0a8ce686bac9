//! Series keys. That byte order is tag order is tested beside the code.

use proptest::prelude::*;
use sonde_storage_format::SeriesKey;

use crate::{damage, golden, strategy};

fn key(tags: &[Option<&str>]) -> SeriesKey {
    SeriesKey::encode(tags.iter().copied())
}

#[test]
fn golden() {
    let key = key(&[Some("plant\0a"), None, Some(""), Some("é"), None]);
    golden::check("series_key", key.as_bytes());
    let values = ["plant\0a", "", "é"].map(|value| Some(value.to_owned()));
    let [plant, empty, accent] = values;
    assert_eq!(key.to_values(5), [plant, None, empty, accent, None]);
}

proptest! {
    #[test]
    fn round_trip(tags in strategy::tags()) {
        let key = SeriesKey::encode(tags.iter().map(Option::as_deref));
        prop_assert_eq!(SeriesKey::from_bytes(key.as_bytes()), Ok(key.clone()));
        prop_assert_eq!(key.to_values(tags.len()), tags);
    }
}

/// What is taken as a key is what `encode` makes of its tag values: a series has one key.
fn decode(bytes: &[u8]) {
    if let Ok(key) = SeriesKey::from_bytes(bytes) {
        let tags: Vec<Option<_>> = key.tags().map(Result::unwrap).collect();
        assert_eq!(SeriesKey::encode(tags.iter().map(Option::as_deref)), key, "{bytes:?}");
    }
}

#[test]
fn a_key_that_ends_in_absent_values_is_refused() {
    for bytes in [&[0][..], &[0, 0], &[1, b'a', 0, 1, 0]] {
        assert!(SeriesKey::from_bytes(bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn damage_never_panics() {
    for key in [key(&[Some("a\0b"), None, Some("ü")]), key(&[None, Some("")])] {
        damage::each_flip(key.as_bytes(), |flipped, _| decode(flipped));
        damage::each_truncation(key.as_bytes(), decode);
    }
}
