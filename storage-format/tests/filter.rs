//! What reads parts of a page, against the same parts of the whole: a filter, some rows, some vectors.

use proptest::prelude::*;
use sonde_storage_format::limits::VECTOR_VALUES;
use sonde_storage_format::{
    Between, Cell, CodecId, Column, Page, PhysicalType, Profile, Values, encode_page_as,
};

use crate::exemplars;
use crate::page::page_of;
use crate::random::Random;
use crate::same::{bits, exact_values, rows};
use crate::strategy::{self, KINDS};

/// Pages of a column in both profiles, as times where it can be.
fn pages(column: &Column, times: bool) -> [Vec<u8>; 2] {
    [Profile::Fast, Profile::Dense].map(|profile| encode_page_as(profile, column, times))
}

/// A column of shapes that change, or of one throughout.
fn column(random: &mut Random, kind: PhysicalType, rows: usize) -> Column {
    match random.below(2) {
        0 => strategy::column(random, kind, rows),
        _ => {
            let more = random.pick(&[0, 2 * VECTOR_VALUES]);
            strategy::regular(random, kind, rows + more)
        }
    }
}

fn float_bound(random: &mut Random, values: &[f64]) -> f64 {
    let value = |random: &mut Random| if values.is_empty() { 0.0 } else { random.pick(values) };
    let (a, b) = (value(random), value(random));
    match random.below(8) {
        0 => random.pick(&[f64::NEG_INFINITY, f64::INFINITY, f64::MIN, f64::MAX, f64::NAN, 0.0, -0.0]),
        1 => f64::from_bits(random.next()),
        2 => a / 2.0 + b / 2.0,
        3 => a.next_up(),
        4 => a.next_down(),
        _ => a,
    }
}

fn int_bound(random: &mut Random, values: &[i64]) -> i64 {
    let value = |random: &mut Random| if values.is_empty() { 0 } else { random.pick(values) };
    let (a, b) = (value(random), value(random));
    match random.below(8) {
        0 => random.pick(&[i64::MIN, i64::MAX, 0, -1, 1]),
        1 => random.next().cast_signed(),
        2 => a.midpoint(b),
        3 => a.saturating_add(1),
        4 => a.saturating_sub(1),
        _ => a,
    }
}

fn uint_bound(random: &mut Random, values: &[u64]) -> u64 {
    let value = |random: &mut Random| if values.is_empty() { 0 } else { random.pick(values) };
    let (a, b) = (value(random), value(random));
    match random.below(8) {
        0 => random.pick(&[0, 1, u64::MAX, 1 << 63]),
        1 => random.next(),
        2 => a.midpoint(b),
        3 => a.saturating_add(1),
        4 => a.saturating_sub(1),
        _ => a,
    }
}

fn text_bound(random: &mut Random, values: &[&[u8]]) -> Vec<u8> {
    let value = if values.is_empty() { Vec::new() } else { random.pick(values).to_vec() };
    match random.below(6) {
        0 => random.pick(&[&b""[..], b"\0", b"\xff"]).to_vec(),
        1 => [&value[..], b"\0"].concat(),
        2 => value[..value.len() / 2].to_vec(),
        _ => value,
    }
}

/// The rows that a filter chooses are those whose value lies within the bounds.
fn check_chosen(page: &Page<'_>, column: &Column, between: Between<'_>, inside: impl Fn(usize) -> bool) {
    let chosen = page.filter(&between).unwrap();
    let wanted = |row: &usize| column.cells.get(*row) == Cell::Value && inside(*row);
    let wanted: Vec<usize> = (0..column.len()).filter(wanted).collect();
    assert_eq!(chosen.iter().collect::<Vec<_>>(), wanted, "{between:?}");
    assert_eq!((chosen.rows(), chosen.count()), (column.len(), wanted.len()));
    // The accessors agree, and rows behind the last one are not chosen.
    let contains = |row: &usize| chosen.contains(*row);
    assert_eq!((0..column.len() + 200).filter(contains).collect::<Vec<_>>(), wanted);
}

/// Bounds on both sides of values, empty ranges among them.
fn check_filter(random: &mut Random, page: &Page<'_>, column: &Column) {
    for _ in 0..4 {
        match &column.values {
            Values::Float(values) => {
                let (low, high) = (float_bound(random, values), float_bound(random, values));
                let inside = |row: usize| low <= values[row] && values[row] <= high;
                check_chosen(page, column, Between::Float(low, high), inside);
            }
            Values::Int(values) => {
                let (low, high) = (int_bound(random, values), int_bound(random, values));
                let inside = |row: usize| low <= values[row] && values[row] <= high;
                check_chosen(page, column, Between::Int(low, high), inside);
            }
            Values::UInt(values) => {
                let (low, high) = (uint_bound(random, values), uint_bound(random, values));
                let inside = |row: usize| low <= values[row] && values[row] <= high;
                check_chosen(page, column, Between::UInt(low, high), inside);
            }
            Values::Bool(values) => {
                let [low, high] = [(); 2].map(|()| random.below(2) == 1);
                let inside = |row: usize| low <= values[row] && values[row] <= high;
                check_chosen(page, column, Between::Bool(low, high), inside);
            }
            Values::Text(values) => {
                let all: Vec<&[u8]> = values.iter().collect();
                let (low, high) = (text_bound(random, &all), text_bound(random, &all));
                let inside = |row: usize| *low <= *all[row] && *all[row] <= *high;
                check_chosen(page, column, Between::Text(&low, &high), inside);
            }
        }
    }
}

/// A range of what there is `n` of, empty or too long now and then.
fn range(random: &mut Random, n: usize) -> std::ops::Range<usize> {
    let mut ends = [random.below(n + 2), random.below(n + 2)];
    ends.sort_unstable();
    ends[0]..ends[1]
}

fn check_rows(random: &mut Random, page: &Page<'_>, column: &Column) {
    for _ in 0..4 {
        let range = range(random, column.len());
        let some = page.decode_rows(range.clone()).unwrap();
        let wanted = column.slice(range.start.min(column.len())..range.end.min(column.len()));
        assert_eq!(rows(&some), rows(&wanted), "rows {range:?} of {}", column.len());
    }
}

fn check_vectors(random: &mut Random, page: &Page<'_>, column: &Column) {
    let present: Vec<usize> = (0..column.len()).filter(|row| column.cells.get(*row) == Cell::Value).collect();
    let present = column.values.gather(&present);
    assert_eq!(page.present(), present.len());
    let unit = if page.is_unit() { present.len() } else { VECTOR_VALUES };
    let vectors = range(random, page.vectors());
    let row = |vector: usize| (vector * unit).min(present.len());
    let mut wanted = Values::new(present.kind());
    wanted.extend_from(&present, row(vectors.start)..row(vectors.end));
    assert_eq!(exact_values(&page.values(vectors.clone()).unwrap()), exact_values(&wanted), "{vectors:?}");

    let mut scanned = Vec::new();
    let vectors = vectors.start.min(page.vectors())..vectors.end.min(page.vectors());
    let scan = page.scan_floats(vectors.clone(), |values| {
        assert!(values.len() <= VECTOR_VALUES);
        scanned.extend_from_slice(values);
    });
    let mut words = Vec::new();
    let scan_words = page.scan_words(vectors, |values| {
        assert!(values.len() <= VECTOR_VALUES);
        words.extend_from_slice(values);
    });
    let sign = |value: &i64| value.cast_unsigned() ^ (1 << 63);
    match wanted {
        Values::Float(wanted) => assert_eq!((scan, bits(&scanned)), (Ok(()), bits(&wanted))),
        Values::Int(wanted) => assert_eq!((scan_words, words), (Ok(()), wanted.iter().map(sign).collect())),
        Values::UInt(wanted) => assert_eq!((scan_words, words), (Ok(()), wanted)),
        _ => assert!(scan.is_err() && scan_words.is_err() && scanned.is_empty() && words.is_empty()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn parts_are_parts_of_the_whole(seed: u64, len in strategy::lengths(), times: bool) {
        let random = &mut Random::new(seed);
        for kind in KINDS {
            let column = column(random, kind, len);
            for bytes in pages(&column, times) {
                let page = Page::open(&bytes).unwrap();
                check_filter(random, &page, &column);
                check_rows(random, &page, &column);
                check_vectors(random, &page, &column);
            }
        }
    }
}

#[test]
fn parts_of_exemplars_are_parts_of_the_whole() {
    let random = &mut Random::new(3);
    for exemplar in exemplars::all() {
        let bytes = exemplar.page();
        let page = Page::open(&bytes).unwrap();
        for _ in 0..10 {
            check_filter(random, &page, &exemplar.column);
            check_rows(random, &page, &exemplar.column);
            check_vectors(random, &page, &exemplar.column);
        }
    }
}

/// The columns above get every codec there is, and every unit with rows that have no value too.
#[test]
fn every_codec_is_drawn() {
    use CodecId::*;
    let units = [DeltaRle, Sequence, Pco, AlpPco, ZstdWords];
    let vectors = (0..19).filter_map(CodecId::from_byte).filter(|codec| !units[2..].contains(codec));
    // A codec, whether of a unit, whether all rows have a value.
    let mut missing: Vec<(CodecId, bool, bool)> = vectors.map(|codec| (codec, false, true)).collect();
    missing.extend(units.into_iter().flat_map(|codec| [(codec, true, true), (codec, true, false)]));
    let random = &mut Random::new(1);
    for i in 0..1000 {
        let column = column(random, KINDS[i % 5], [3, 60, 700, 1030][i / 5 % 4]);
        for bytes in pages(&column, i % 8 < 4) {
            let page = Page::open(&bytes).unwrap();
            let all = page.present() == page.rows();
            let drawn = |at: usize| (page.codec(at).unwrap().0, page.is_unit(), all);
            (0..page.vectors()).for_each(|at| missing.retain(|wanted| *wanted != drawn(at)));
        }
        if missing.is_empty() {
            return;
        }
    }
    panic!("never drawn: {missing:?}");
}

#[test]
fn vectors_are_filtered_by_their_own_exponents() {
    let value = |(i, word): (usize, u64)| (word % 997) as f64 / if i < VECTOR_VALUES { 10.0 } else { 1000.0 };
    let values: Vec<f64> = exemplars::noise(2 * VECTOR_VALUES as u64).enumerate().map(value).collect();
    let column = Column::of(Values::Float(values.clone()));
    let [bytes, _] = pages(&column, false);
    let page = Page::open(&bytes).unwrap();
    assert!((0..2).all(|vector| page.codec(vector).unwrap().0 == CodecId::Alp));
    for (low, high) in [(0.5, 0.7), (0.6, 50.0)] {
        check_chosen(&page, &column, Between::Float(low, high), |row| {
            low <= values[row] && values[row] <= high
        });
    }
}

#[test]
fn a_nan_lies_within_no_bounds() {
    let column = Column::of(Values::Float(vec![f64::NAN, -0.0, 0.0, f64::NEG_INFINITY, f64::INFINITY]));
    let [bytes, _] = pages(&column, false);
    let page = Page::open(&bytes).unwrap();
    let chosen =
        |low: f64, high: f64| page.filter(&Between::Float(low, high)).unwrap().iter().collect::<Vec<_>>();
    assert_eq!(chosen(f64::NEG_INFINITY, f64::INFINITY), [1, 2, 3, 4]);
    assert_eq!(chosen(0.0, -0.0), [1, 2], "zeroes of either sign are equal");
    assert_eq!(chosen(f64::NAN, f64::INFINITY), [0_usize; 0]);
    assert_eq!(chosen(f64::NEG_INFINITY, f64::NAN), [0_usize; 0]);
}

/// Beyond 2^51 integers of ALP do not grow with their floats: a filter gives what the decoded values do.
#[test]
fn an_integer_that_alp_has_not_is_filtered_by_its_float() {
    let word = (1_u64 << 63) + (1 << 51);
    let vector =
        [&[CodecId::Alp as u8, 0, 0, 0, 0, 0, CodecId::Constant as u8][..], &word.to_le_bytes()].concat();
    let bytes = page_of(PhysicalType::Float64, 2, &[], &[vector]);
    let page = Page::open(&bytes).unwrap();
    let Values::Float(values) = page.decode().unwrap().values else { panic!("floats") };
    let chosen = page.filter(&Between::Float(values[0], values[0])).unwrap();
    assert_eq!(chosen.iter().collect::<Vec<_>>(), [0, 1]);
}

/// Vectors that say that they are the unit of their page.
#[test]
fn a_filter_refuses_what_decoding_refuses() {
    let mut refused = Vec::new();
    for exemplar in exemplars::all() {
        let mut bytes = exemplar.page();
        if std::mem::replace(&mut bytes[2], 1) == 1 {
            continue;
        }
        // Units are of numbers.
        let Ok(page) = Page::open(&bytes) else { continue };
        let between = match page.kind() {
            PhysicalType::Float64 => Between::Float(20.5, 24.5),
            PhysicalType::Int64 => Between::Int(0, 1 << 40),
            _ => Between::UInt(100, 1 << 40),
        };
        assert_eq!(page.filter(&between).is_err(), page.decode().is_err(), "{}", exemplar.name);
        refused.extend(page.decode().is_err().then_some(exemplar.codec.unwrap()));
    }
    assert!([CodecId::Alp, CodecId::Dictionary, CodecId::For].iter().all(|codec| refused.contains(codec)));
}

#[test]
fn bounds_of_another_type_are_refused() {
    for (kind, at) in KINDS.into_iter().zip(0..) {
        let bytes = encode_page_as(Profile::Fast, &Column::absent(kind, 3), false);
        let page = Page::open(&bytes).unwrap();
        let bounds = [
            Between::Float(0.0, 1.0),
            Between::Int(0, 1),
            Between::UInt(0, 1),
            Between::Bool(false, true),
            Between::Text(b"a", b"b"),
        ];
        for (between, other) in bounds.iter().zip(0..) {
            assert_eq!(page.filter(between).is_ok(), at == other, "{between:?} of {kind:?}");
        }
    }
}
