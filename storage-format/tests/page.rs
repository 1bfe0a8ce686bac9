//! Pages: one column over one row group.

use proptest::prelude::*;
use sonde_storage_format::limits::{PAGE_ALIGN, ROW_GROUP_ROWS, TEXT_BYTES, VECTOR_VALUES};
use sonde_storage_format::{
    Cell, Cells, CodecId, Column, PageStats, PhysicalType, Profile, Texts, Values, Writer, decode_page,
    encode_page, encode_page_as,
};

use crate::random::{self, Random};
use crate::same::{bits, exact};
use crate::strategy::{self, FLOATS, KINDS};
use crate::{damage, golden};

/// Bytes before the cell map.
const HEAD_LEN: usize = 10;

/// A column with a golden file, and the codec of its first vector.
pub(crate) struct Exemplar {
    pub(crate) name: &'static str,
    pub(crate) times: bool,
    pub(crate) column: Column,
    codec: Option<CodecId>,
    profile: Profile,
}

impl Exemplar {
    pub(crate) fn page(&self) -> Vec<u8> {
        encode_page_as(self.profile, &self.column, self.times)
    }
}

fn texts(values: &[&str]) -> Column {
    Column::of(Values::Text(values.iter().map(|text| text.as_bytes()).collect::<Texts>()))
}

/// Each cell mode with each codec that can follow it, small enough to flip every bit.
pub(crate) fn exemplars() -> Vec<Exemplar> {
    use CodecId::*;
    let float = |values: Vec<f64>| Column::of(Values::Float(values));
    let int = |values: Vec<i64>| Column::of(Values::Int(values));
    let uint = |values: Vec<u64>| Column::of(Values::UInt(values));
    let bool = |values: Vec<bool>| Column::of(Values::Bool(values));
    // A map in which absent, NULL and values take turns.
    let cells = || {
        let turns = [Cell::Value, Cell::Null, Cell::Value, Cell::Absent, Cell::Value];
        turns.into_iter().cycle().take(23).collect::<Vec<_>>()
    };
    let map = |column: Column| strategy::mixed(cells(), &column);
    let decimals = |n: usize| (0..n).map(|i| 20.0 + (i * 7 % 50) as f64 / 10.0).collect::<Vec<_>>();
    let with_exceptions = || {
        let mut values = decimals(40);
        (values[3], values[17], values[39]) = (f64::from_bits(0x7ff4_0000_0000_0001), -0.0, 1.0 / 3.0);
        values
    };
    let off_by_ulps = || {
        let off = |(i, v): (usize, f64)| f64::from_bits(v.to_bits().wrapping_add_signed((i % 4) as i64 - 2));
        decimals(40).into_iter().enumerate().map(off).collect()
    };
    let steps = || (0..30).scan(5, |at, i| Some(std::mem::replace(at, *at + 1000 + i * i * 7 % 13)));
    let noise =
        |n: u64| (1..=n).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(i as u32).wrapping_mul(i));
    let start = 1_700_000_000_000_000_000_i64;
    // On time but for one in ten, which is late by a little.
    let late = (0..60).map(|i| start + i * 1_000_000_000 + if i % 10 == 4 { 3000 + i } else { 0 });
    let word = |i: usize| if i.is_multiple_of(3) { "off" } else { "running" };
    let lines: Vec<String> = (0..12).map(|i| format!("sensor {i} said {}\0", "é".repeat(i))).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();

    let new = |name, codec: CodecId, column| {
        let (times, codec, profile) = (false, Some(codec), Profile::Fast);
        Exemplar { name, times, column, codec, profile }
    };
    let mut all = vec![
        new("float_raw", Raw, float(noise(20).map(f64::from_bits).collect())),
        new("float_special", Gorilla, float(FLOATS.map(f64::from_bits).to_vec())),
        new("float_constant", Constant, float(vec![f64::from_bits(0xfff8_dead_beef_0001); 5])),
        new("float_gorilla", Gorilla, float((0..40).map(|i| f64::from(i / 4) / 3.0).collect())),
        new("float_alp", Alp, float(with_exceptions())),
        new("float_two_vectors", Alp, float(decimals(VECTOR_VALUES + 1).iter().map(|v| v + 0.01).collect())),
        new("float_lane", Alp, float(off_by_ulps())),
        new(
            "float_dictionary",
            FloatDictionary,
            float((0..200).map(|i| f64::from(i * i % 7) / 3.0).collect()),
        ),
        new("int_constant", Constant, int(vec![i64::MIN; 3])),
        new("int_for", For, int((0..50).map(|i| i * i * 31 % 1000 - 500).collect())),
        new(
            "int_for_64_bits",
            For,
            int(noise(18).map(u64::cast_signed).chain([i64::MIN, i64::MAX]).collect()),
        ),
        new("int_gcd", Gcd, int((0..50).map(|i| i * i * 31 % 1000 * 250 - 7).collect())),
        new("int_unit_of_runs", DeltaRle, int((0..2000).map(|i| i / 700 * 5 + i * 10).collect())),
        new("int_delta", Delta, int(steps().collect())),
        new("int_delta_runs", DeltaRle, int((0..50).map(|i| -100 + 10 * i).collect())),
        new("uint_constant", Constant, uint(vec![u64::MAX; 3])),
        new("uint_for", For, uint((0..50).map(|i| u64::MAX - i * i * 31 % 1000).collect())),
        new("uint_delta", Delta, uint(steps().map(i64::cast_unsigned).collect())),
        new("uint_delta_runs", DeltaRle, uint((0..50).map(|i| 10 * (i / 25 * 1000 + i)).collect())),
        new("bool_bitmap", Bitmap, bool((0..50).map(|i| i % 3 == 0).collect())),
        new("bool_rle", Rle, bool((0..500).map(|i| i < 200).collect())),
        new("text_dictionary", Dictionary, texts(&(0..50).map(word).collect::<Vec<_>>())),
        new("text_one", Dictionary, texts(&[""; 5])),
        new("text_zstd", Zstd, texts(&lines)),
        new("mixed_float", Alp, map(float(decimals(14)))),
        new("mixed_int", DeltaRle, map(int((0..14).collect()))),
        new("mixed_uint", Constant, map(uint(vec![7; 14]))),
        new("mixed_bool", Bitmap, map(bool((0..14).map(|i| i % 2 == 0).collect()))),
        new("mixed_text", Dictionary, map(texts(&(0..14).map(word).collect::<Vec<_>>()))),
    ];
    // A walk of steps that are seldom large, in thirds and in decimals.
    let walk = |i: u32| (i * i % 91 + i / 16 * 7) % 400;
    let dense = |name, codec, column| Exemplar { profile: Profile::Dense, ..new(name, codec, column) };
    all.push(dense("float_dense", Pco, float((0..1100).map(|i| f64::from(walk(i) + i * 3) / 3.0).collect())));
    all.push(dense(
        "float_dense_decimal",
        AlpPco,
        float((0..1100).map(|i| f64::from(walk(i) + i) / 10.0).collect()),
    ));
    all.push(dense(
        "int_dense",
        Pco,
        int((0..1100).map(|i| i64::from(walk(i) * walk(i) / 40 + i * 5)).collect()),
    ));
    let times = |name, codec, values| Exemplar { times: true, ..new(name, codec, int(values)) };
    all.push(times("time_delta_runs", Gcd, (0..50).map(|i| start + i % 25 * 60_000_000_000).collect()));
    all.push(times("time_delta_of_delta", DeltaOfDelta, late.collect()));
    for (kind, [empty, absent, null]) in KINDS.into_iter().zip([
        ["float_empty", "float_absent", "float_null"],
        ["int_empty", "int_absent", "int_null"],
        ["uint_empty", "uint_absent", "uint_null"],
        ["bool_empty", "bool_absent", "bool_null"],
        ["text_empty", "text_absent", "text_null"],
    ]) {
        let without = |name, column| Exemplar { codec: None, ..new(name, Raw, column) };
        let mut nulls = Column::new(kind);
        nulls.push_empty(Cell::Null, 3);
        all.push(without(empty, Column::new(kind)));
        all.push(without(absent, Column::absent(kind, 5)));
        all.push(without(null, nulls));
    }
    all
}

/// Where the vectors of a page start and end, read as the drawing has it.
fn vectors(page: &[u8]) -> Vec<&[u8]> {
    let u32_at = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap()) as usize;
    let (rows, present) = (u32_at(2), u32_at(6));
    let map = if page[1] == 1 { (2 * rows).div_ceil(8) } else { 0 };
    // The grid stands between.
    let dictionary = HEAD_LEN + map + 1;
    let ends = dictionary + 4 + u32_at(dictionary);
    let count = if page[dictionary - 1] == 1 { 1 } else { present.div_ceil(VECTOR_VALUES) };
    let first = ends + 4 * count;
    let bound = |i: usize| first + if i == 0 { 0 } else { u32_at(ends + 4 * (i - 1)) };
    (0..count).map(|i| &page[bound(i)..bound(i + 1)]).collect()
}

/// A page without a cell map around vectors that the test chose.
pub(crate) fn page_of(kind: PhysicalType, values: usize, dictionary: &[u8], vectors: &[Vec<u8>]) -> Vec<u8> {
    let mut page = Writer::new();
    page.u8(kind as u8);
    page.u8(0);
    page.u32(values as u32);
    page.u32(values as u32);
    page.u8(0);
    page.u32(dictionary.len() as u32);
    page.put(dictionary);
    let mut end = 0;
    for vector in vectors {
        end += vector.len();
        page.u32(end as u32);
    }
    vectors.iter().for_each(|vector| page.put(vector));
    page.pad(PAGE_ALIGN);
    page.into_bytes()
}

fn check_round_trip(column: &Column, times: bool) {
    let page = encode_page(column, times);
    assert_eq!(page.len() % PAGE_ALIGN, 0);
    let back = decode_page(&page).unwrap();
    assert_eq!(exact(&back), exact(column));
    assert_eq!(PageStats::of(&back), PageStats::of(column));
    assert_eq!(encode_page(&back, times), page);
    let dense = encode_page_as(Profile::Dense, column, times);
    assert!(dense.len() <= page.len());
    assert_eq!(exact(&decode_page(&dense).unwrap()), exact(column));
}

#[test]
fn golden() {
    for exemplar in exemplars() {
        let page = exemplar.page();
        golden::check(&format!("page_{}", exemplar.name), &page);
        let found = vectors(&page).first().and_then(|vector| CodecId::from_byte(vector[0]));
        assert_eq!(found, exemplar.codec, "the codec of {}", exemplar.name);
        assert_eq!(exact(&decode_page(&page).unwrap()), exact(&exemplar.column), "{}", exemplar.name);
    }
}

#[test]
fn every_codec_has_a_golden_file() {
    let codecs: Vec<_> = exemplars().iter().filter_map(|exemplar| exemplar.codec).collect();
    for byte in 0..=u8::MAX {
        if let Some(codec) = CodecId::from_byte(byte) {
            assert!(codecs.contains(&codec), "{codec:?} has none");
        }
    }
}

#[test]
fn sizes() {
    let page = encode_page(&Column::new(PhysicalType::Float64), false);
    assert_eq!(page, [&[1][..], &[0; 63]].concat(), "a page of no rows is its type and zeroes");
    assert_eq!((VECTOR_VALUES, ROW_GROUP_ROWS, PAGE_ALIGN), (1024, 65_536, 64));
    // Head, cell map, grid, dictionary length, vector end, codec, bits.
    let column = strategy::mixed(vec![Cell::Value; 5], &Column::of(Values::UInt(vec![9; 5])));
    assert_eq!(vectors(&encode_page(&column, false))[0].len(), 9);
    assert_eq!(
        &encode_page(&column, false)[HEAD_LEN..HEAD_LEN + 2 + 1 + 4 + 4],
        [0xaa, 2, 0, 0, 0, 0, 0, 9, 0, 0, 0]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn round_trip_floats(column in strategy::columns(PhysicalType::Float64)) { check_round_trip(&column, false); }

    #[test]
    fn round_trip_ints(column in strategy::columns(PhysicalType::Int64), times: bool) {
        check_round_trip(&column, times);
    }

    #[test]
    fn round_trip_uints(column in strategy::columns(PhysicalType::UInt64)) { check_round_trip(&column, false); }

    #[test]
    fn round_trip_bools(column in strategy::columns(PhysicalType::Boolean)) { check_round_trip(&column, false); }

    #[test]
    fn round_trip_texts(column in strategy::columns(PhysicalType::Text)) { check_round_trip(&column, false); }

    #[test]
    fn round_trip_times(len in strategy::lengths(), seed: u64) {
        check_round_trip(&Column::of(Values::Int(strategy::times(&mut Random::new(seed), len))), true);
    }

    /// Few values, which proptest can shrink one by one.
    #[test]
    fn round_trip_bits(words in proptest::collection::vec(any::<u64>(), 0..20)) {
        check_round_trip(&Column::of(Values::Float(words.iter().map(|word| f64::from_bits(*word)).collect())), false);
        check_round_trip(&Column::of(Values::Int(words.iter().map(|word| word.cast_signed()).collect())), true);
        check_round_trip(&Column::of(Values::UInt(words)), false);
    }
}

#[test]
fn a_whole_row_group_comes_back() {
    let mut random = Random::new(5);
    for kind in KINDS {
        check_round_trip(&Column::of(strategy::values(&mut random, kind, ROW_GROUP_ROWS)), false);
    }
}

/// zstd writes a run of 128 KiB in four bytes: the bound on what a frame may claim has to allow for that.
#[test]
fn text_that_compresses_best_comes_back() {
    for len in [1 << 17, 1 << 20, 4 << 20, TEXT_BYTES] {
        check_round_trip(&texts(&[&"a".repeat(len)]), false);
        // Four different ones are too many for a dictionary.
        let long = ["\0", "a", "b", "c"].map(|text| text.repeat(len / 4));
        check_round_trip(&texts(&long.each_ref().map(String::as_str)), false);
    }
}

/// Codes are short and entries are long: a small page must not become more text than a column holds.
#[test]
fn text_beyond_what_a_column_holds_is_refused() {
    let entry = "a".repeat(TEXT_BYTES);
    let page = encode_page(&texts(&[&entry]), false);
    let dictionary_len = u32::from_le_bytes(page[HEAD_LEN + 1..HEAD_LEN + 5].try_into().unwrap()) as usize;
    let dictionary = &page[HEAD_LEN + 5..HEAD_LEN + 5 + dictionary_len];
    let codes = vec![CodecId::Dictionary as u8, 0];
    let bomb = page_of(PhysicalType::Text, VECTOR_VALUES, dictionary, &[codes]);
    assert!(bomb.len() < 1024);
    assert!(decode_page(&bomb).is_err());
}

#[test]
fn stats_leave_nan_out() {
    let stats = |values: &[f64]| PageStats::of(&Column::of(Values::Float(values.to_vec())));
    let range = |low: f64, high: f64| Some((low.to_bits(), high.to_bits()));
    assert_eq!(stats(&[f64::NAN, 2.0, f64::NEG_INFINITY, -f64::NAN]).range, range(f64::NEG_INFINITY, 2.0));
    assert_eq!(stats(&[f64::NAN; 3]).range, None);
    assert_eq!(stats(&[f64::NAN, 1.0, f64::NAN]).nans, 2);
    let mixed = strategy::mixed(
        vec![Cell::Absent, Cell::Null, Cell::Null, Cell::Value],
        &Column::of(Values::Int(vec![i64::MIN])),
    );
    let bits = i64::MIN.cast_unsigned();
    assert_eq!(
        PageStats::of(&mixed),
        PageStats { rows: 4, present: 1, nulls: 2, nans: 0, range: Some((bits, bits)) }
    );
}

/// A page is decoded after its checksum was verified (see `chunk`); without it, damage may pass but must not panic.
#[test]
fn damage_never_panics() {
    for exemplar in exemplars() {
        let page = exemplar.page();
        damage::each_flip(&page, |flipped, _| drop(decode_page(flipped)));
        damage::each_truncation(&page, |short| drop(decode_page(short)));
    }
}

#[test]
fn what_no_writer_makes_is_refused() {
    let vector = |bytes: &[u8]| vec![bytes.to_vec()];
    let one = |kind, bytes: &[u8]| decode_page(&page_of(kind, 1, &[], &vector(bytes)));
    let (float, int) = (PhysicalType::Float64, PhysicalType::Int64);
    let raw = [&[0][..], &1.5_f64.to_bits().to_le_bytes()].concat();
    match one(float, &raw).unwrap().values {
        Values::Float(values) => assert_eq!(bits(&values), bits(&[1.5])),
        other => panic!("{other:?}"),
    }
    assert!(one(int, &raw).is_err(), "a codec of another type");
    assert!(one(float, &[16]).is_err(), "an unknown codec");
    assert!(one(float, &raw[..8]).is_err(), "a short vector");
    assert!(one(float, &[&raw[..], &[0]].concat()).is_err(), "a long vector");
    let page = page_of(float, 1, &[], &vector(&raw));
    for (at, byte, what) in
        [(0, 6, "type"), (0, 0, "type"), (1, 2, "cells"), (6, 0, "fewer values than rows"), (6, 2, "more")]
    {
        let mut page = page.clone();
        page[at] = byte;
        assert!(decode_page(&page).is_err(), "{what}");
    }
    assert!(decode_page(&[&page[..], &[0; 64]].concat()).is_err(), "a whole block of padding");
    let mut dirty = page.clone();
    *dirty.last_mut().unwrap() = 1;
    assert!(decode_page(&dirty).is_err(), "padding that is not zero");
    let mixed = strategy::mixed(vec![Cell::Value, Cell::Null], &Column::of(Values::Float(vec![1.5])));
    let mut page = encode_page(&mixed, false);
    page[HEAD_LEN] = 0b1110;
    assert!(decode_page(&page).is_err(), "a cell that is none of the three");
    page[HEAD_LEN] = 0b1010;
    assert!(decode_page(&page).is_err(), "a map with more values than stated");
}

/// What decodes is a column that encodes and decodes to itself.
fn decode(bytes: &[u8]) {
    if let Ok(column) = decode_page(bytes) {
        assert!(column.len() <= ROW_GROUP_ROWS);
        if let Cells::Mixed(cells) = &column.cells {
            assert_eq!(cells.len(), column.values.len());
        }
        assert_eq!(exact(&decode_page(&encode_page(&column, true)).unwrap()), exact(&column));
    }
}

#[test]
fn fuzz_page() {
    let pages: Vec<_> = exemplars().iter().map(Exemplar::page).collect();
    random::fuzz(&pages, |_| {}, decode);
}
