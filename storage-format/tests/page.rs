//! Pages: one column over one row group.

use proptest::prelude::*;
use sonde_storage_format::limits::{PAGE_ALIGN, PAGE_TEXT_BYTES, ROW_GROUP_ROWS, TEXT_BYTES, VECTOR_VALUES};
use sonde_storage_format::{
    Between, Cell, Cells, CodecId, Column, Page, PhysicalType, Profile, Texts, Values, Writer, decode_page,
    encode_page, encode_page_as,
};

use crate::random::Random;
use crate::same::{bits, exact, rows};
use crate::strategy::{self, KINDS};
use crate::{damage, exemplars, golden};

/// Bytes before the cell map.
const HEAD_LEN: usize = 20;

fn texts(values: &[&str]) -> Column {
    Column::of(Values::Text(values.iter().map(|text| text.as_bytes()).collect::<Texts>()))
}

fn u32_at(page: &[u8], at: usize) -> usize {
    u32::from_le_bytes(page[at..at + 4].try_into().unwrap()) as usize
}

/// The dictionary of a page, read as the drawing has it.
pub(crate) fn dictionary(page: &[u8]) -> &[u8] {
    &page[HEAD_LEN + u32_at(page, 12)..][..u32_at(page, 16)]
}

/// The vectors of a page, or its unit, read as the drawing has it.
pub(crate) fn vectors(page: &[u8]) -> Vec<&[u8]> {
    let (grid, present) = (page[2], u32_at(page, 8));
    let ends = HEAD_LEN + u32_at(page, 12) + u32_at(page, 16);
    let count = if grid == 1 { 1 } else { present.div_ceil(VECTOR_VALUES) };
    let first = ends + 4 * count;
    let bound = |i: usize| first + if i == 0 { 0 } else { u32_at(page, ends + 4 * (i - 1)) };
    (0..count).map(|i| &page[bound(i)..bound(i + 1)]).collect()
}

/// A page without a cell map around vectors that the test chose.
pub(crate) fn page_of(kind: PhysicalType, values: usize, dictionary: &[u8], vectors: &[Vec<u8>]) -> Vec<u8> {
    let mut page = Writer::new();
    page.put(&[kind as u8, 0, 0, 0]);
    page.u32(values as u32);
    page.u32(values as u32);
    page.u32(0);
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
    assert_eq!(rows(&back), rows(column));
    assert_eq!(encode_page(&back, times), page);
    let dense = encode_page_as(Profile::Dense, column, times);
    assert!(dense.len() <= page.len());
    assert_eq!(exact(&decode_page(&dense).unwrap()), exact(&back));
}

#[test]
fn golden() {
    for exemplar in exemplars::all() {
        let page = exemplar.page();
        golden::check(&format!("page_{}", exemplar.name), &page);
        let found = vectors(&page).first().and_then(|vector| CodecId::from_byte(vector[0]));
        assert_eq!(found, exemplar.codec, "the codec of {}", exemplar.name);
        assert_eq!(exact(&decode_page(&page).unwrap()), exact(&exemplar.column), "{}", exemplar.name);
    }
}

#[test]
fn every_codec_has_a_golden_file() {
    let codecs: Vec<_> = exemplars::all().iter().filter_map(|exemplar| exemplar.codec).collect();
    let known = |byte: &u8| CodecId::from_byte(*byte);
    assert_eq!((0..=u8::MAX).filter_map(|byte| known(&byte)).count(), 19);
    for codec in (0..=u8::MAX).filter_map(|byte| known(&byte)) {
        assert!(codecs.contains(&codec), "{codec:?} has none");
    }
}

#[test]
fn every_cell_map_has_a_golden_file() {
    let mut found: Vec<(u8, Vec<u8>)> = exemplars::all()
        .iter()
        .map(|exemplar| {
            let page = exemplar.page();
            let mut map = &page[HEAD_LEN..][..u32_at(&page, 12)];
            let mut codecs = Vec::new();
            while !map.is_empty() {
                let len = u32_at(map, 0);
                codecs.extend(map[4..4 + len].first());
                map = &map[4 + len..];
            }
            (page[1], codecs)
        })
        .collect();
    found.sort();
    found.dedup();
    let wanted: [(u8, &[u8]); 8] =
        [(0, &[]), (1, &[8]), (1, &[9]), (2, &[8]), (2, &[9]), (3, &[8, 8]), (3, &[8, 9]), (3, &[9, 9])];
    assert_eq!(found, wanted.map(|(cells, codecs)| (cells, codecs.to_vec())));
}

#[test]
fn sizes() {
    let page = encode_page(&Column::new(PhysicalType::Float64), false);
    assert_eq!(page, [&[1][..], &[0; 63]].concat(), "a page of no rows is its type and zeroes");
    assert_eq!((VECTOR_VALUES, ROW_GROUP_ROWS, PAGE_ALIGN), (1024, 65_536, 64));
    // Cells that are all values need no map: head, vector end, codec and bits.
    let all = strategy::mixed(vec![Cell::Value; 5], &Column::of(Values::UInt(vec![9; 5])));
    let used = [3, 0, 0, 0, 5, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1, 9];
    let page = encode_page(&all, false);
    assert_eq!((&page[..used.len()], page.len()), (&used[..], PAGE_ALIGN));
    // Length, codec and bits of a map; a second one where rows are of both kinds.
    for (cell, map) in [(Cell::Null, 6), (Cell::Absent, 6)] {
        let mixed = strategy::mixed(vec![Cell::Value, cell], &Column::of(Values::UInt(vec![9])));
        assert_eq!(u32_at(&encode_page(&mixed, false), 12), map);
    }
    let both = strategy::mixed(vec![Cell::Null, Cell::Absent], &Column::new(PhysicalType::UInt64));
    assert_eq!(u32_at(&encode_page(&both, false), 12), 2 * 6);
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
    let page = encode_page(&texts(&[&"a".repeat(TEXT_BYTES)]), false);
    let codes = [&[CodecId::Dictionary as u8, CodecId::Constant as u8][..], &[0; 8]].concat();
    let bomb = |values| page_of(PhysicalType::Text, values, dictionary(&page), std::slice::from_ref(&codes));
    let most = PAGE_TEXT_BYTES / TEXT_BYTES;
    assert!(decode_page(&bomb(most)).is_ok());
    assert!(bomb(VECTOR_VALUES).len() < 1024);
    assert!(decode_page(&bomb(most + 1)).is_err() && decode_page(&bomb(VECTOR_VALUES)).is_err());
}

/// A page is decoded after its checksum was verified (see `chunk`); without it, damage may pass but must not panic.
#[test]
fn damage_never_panics() {
    let read = |bytes: &[u8]| {
        let Ok(page) = Page::open(bytes) else { return };
        let _ = page.decode();
        let _ = page.decode_rows(page.rows() / 2..page.rows());
        let _ = page.filter(&match page.kind() {
            PhysicalType::Float64 => Between::Float(20.5, 24.5),
            PhysicalType::Int64 => Between::Int(0, 1 << 40),
            PhysicalType::UInt64 => Between::UInt(100, 1 << 40),
            PhysicalType::Boolean => Between::Bool(true, true),
            PhysicalType::Text => Between::Text(b"off", b"r"),
        });
        let _ = page.scan_floats(0..page.vectors(), |values| assert!(values.len() <= VECTOR_VALUES));
        let _ = page.scan_words(0..page.vectors(), |words| assert!(words.len() <= VECTOR_VALUES));
        (0..page.vectors()).for_each(|vector| drop(page.codec(vector)));
    };
    for exemplar in exemplars::all() {
        let page = exemplar.page();
        if exemplar.column.len() <= 200 {
            damage::each_flip(&page, |flipped, _| read(flipped));
        } else {
            // One bit of a thousand bytes: most of them are values.
            let mut flipped = page.clone();
            for at in (0..page.len()).step_by(1 + page.len() / 1024) {
                flipped[at] ^= 1 << (at % 8);
                read(&flipped);
                flipped[at] = page[at];
            }
        }
        damage::each_truncation(&page, read);
    }
}

#[test]
fn vectors_that_no_writer_makes_are_refused() {
    let one = |kind, bytes: &[u8]| decode_page(&page_of(kind, 1, &[], &[bytes.to_vec()]));
    let (float, int) = (PhysicalType::Float64, PhysicalType::Int64);
    let raw = [&[0][..], &1.5_f64.to_bits().to_le_bytes()].concat();
    match one(float, &raw).unwrap().values {
        Values::Float(values) => assert_eq!(bits(&values), bits(&[1.5])),
        other => panic!("{other:?}"),
    }
    assert!(one(int, &raw).is_err(), "a codec of another type");
    assert!(one(float, &[19]).is_err(), "an unknown codec");
    assert!(one(float, &raw[..8]).is_err(), "a short vector");
    assert!(one(float, &[&raw[..], &[0]].concat()).is_err(), "a long vector");
    let constant = |codecs: &[u8]| [codecs, &[1][..], &[7, 0, 0, 0, 0, 0, 0, 0]].concat();
    assert!(one(int, &constant(&[])).is_ok());
    assert!(one(int, &constant(&[10])).is_err(), "a code without a dictionary");
    let divisor = |inner: &[u8]| [&[12][..], &[0; 8], &[5], inner].concat();
    assert!(one(int, &divisor(&constant(&[]))).is_ok());
    assert!(one(int, &divisor(&divisor(&constant(&[])))).is_err(), "two divisors");
    for unit in [14, 15, 18] {
        assert!(one(int, &[unit, 0]).is_err() && one(float, &[unit, 0]).is_err(), "a unit as a vector");
    }
    // First, run of 2 where one value is left; lead of a run.
    assert!(decode_page(&page_of(int, 2, &[], &[vec![7, 0, 2, 1]])).is_ok());
    assert!(decode_page(&page_of(int, 2, &[], &[vec![7, 0, 2, 2]])).is_err(), "a run beyond the vector");
    assert!(decode_page(&page_of(int, 2, &[], &[vec![7, 0, 2, 0, 2, 1]])).is_err(), "an empty run");
    let bools = |bytes: &[u8]| decode_page(&page_of(PhysicalType::Boolean, 2, &[], &[bytes.to_vec()]));
    assert!(bools(&[8, 1, 2]).is_ok());
    assert!(bools(&[8, 2, 2]).is_err(), "neither false nor true");
    assert!(bools(&[8, 1, 0, 2]).is_err(), "an empty run of booleans");
    // Two words less 0: width, exceptions, width of the high parts; low parts, positions, high parts.
    let patched = |bytes: &[u8]| {
        decode_page(&page_of(int, 2, &[], &[[&[5, 0, 0, 0, 0, 0, 0, 0, 0][..], bytes].concat()]))
    };
    assert!(patched(&[8, 0, 0, 0, 1, 2]).is_ok());
    assert!(patched(&[8, 0, 0, 1, 1, 2]).is_err(), "high parts without exceptions");
    assert!(patched(&[8, 1, 0, 8, 1, 2, 1, 0, 3]).is_ok());
    assert!(patched(&[8, 1, 0, 8, 1, 2, 2, 0, 3]).is_err(), "an exception behind the vector");
    assert!(patched(&[8, 3, 0, 8, 1, 2, 0, 0, 1, 0, 1, 0, 3, 3, 3]).is_err(), "more exceptions than words");
    assert!(patched(&[&[56, 1, 0, 8][..], &[0; 14], &[1, 0, 3]].concat()).is_ok());
    assert!(patched(&[&[56, 1, 0, 9][..], &[0; 14], &[1, 0, 3, 0]].concat()).is_err(), "a word of 65 bits");
    // Three left parts and codes of two bits.
    let real = |right, entries, code| {
        one(float, &[&[16, right, entries, 1, 0, 2, 0, 3, 0, 0, 0, code][..], &[0; 6]].concat())
    };
    assert!(real(48, 3, 2).is_ok());
    assert!(real(48, 3, 3).is_err(), "a code of no left part");
    assert!(real(47, 3, 2).is_err(), "too long left parts");
}

#[test]
fn dictionaries_that_no_writer_makes_are_refused() {
    // A page of one code.
    let page = |kind, code: u8, len: usize, entries: &[u8]| {
        let vector = [CodecId::Dictionary as u8, CodecId::Constant as u8, code, 0, 0, 0, 0, 0, 0, 0];
        let packed = zstd::bulk::compress(entries, 3).unwrap();
        decode_page(&page_of(kind, 1, &[&[len as u8][..], &packed].concat(), &[vector.to_vec()]))
    };
    let words = |count: u8, words: &[u64]| {
        [&[count][..], &words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>()].concat()
    };
    let two = [(PhysicalType::Float64, words(2, &[5, 9])), (PhysicalType::Text, b"\x02\x01a\x01b".to_vec())];
    for (kind, two) in two {
        assert!(page(kind, 1, two.len(), &two).is_ok());
        assert!(page(kind, 2, two.len(), &two).is_err(), "a code of no entry");
        assert!(page(kind, 1, two.len() + 1, &two).is_err(), "shorter than stated");
        assert!(page(kind, 1, two.len() - 1, &two).is_err(), "longer than stated");
        assert!(page(kind, 1, two.len() + 1, &[&two[..], &[0]].concat()).is_err(), "a byte left over");
    }
    for (kind, entries, what) in [
        (PhysicalType::UInt64, words(2, &[9, 5]), "words that descend"),
        (PhysicalType::UInt64, words(2, &[9, 9]), "a word twice"),
        (PhysicalType::UInt64, words(3, &[5, 9]), "more words than there are"),
        (PhysicalType::Text, b"\x02\x01b\x01a".to_vec(), "texts that descend"),
        (PhysicalType::Text, b"\x02\x01a\x01a".to_vec(), "a text twice"),
        (PhysicalType::Text, b"\x02\x01a\x01\xff".to_vec(), "a text that is not UTF-8"),
    ] {
        assert!(page(kind, 0, entries.len(), &entries).is_err(), "{what}");
    }
}

#[test]
fn heads_that_no_writer_makes_are_refused() {
    let raw = [&[0][..], &1.5_f64.to_bits().to_le_bytes()].concat();
    let page = page_of(PhysicalType::Float64, 1, &[], &[raw]);
    assert!(decode_page(&page).is_ok());
    for (at, byte, what) in [
        (0, 0, "type"),
        (0, 6, "type"),
        (1, 1, "cells without a map"),
        (1, 4, "cells"),
        (2, 1, "a unit of raw floats"),
        (2, 2, "grid"),
        (3, 1, "the zero byte"),
        (4, 0, "fewer rows than values"),
        (4, 2, "rows without a value and no map"),
        (6, 2, "too many rows"),
        (8, 0, "fewer values than rows"),
        (8, 2, "more values than rows"),
        (12, 1, "a map without cells"),
        (16, 200, "a dictionary beyond the end"),
    ] {
        let mut page = page.clone();
        page[at] = byte;
        assert!(decode_page(&page).is_err(), "{what}");
    }
    let padding = PAGE_ALIGN - (HEAD_LEN + 4 + 1 + 8);
    assert!(decode_page(&[&page[..], &[0; 64][padding..]].concat()).is_err(), "a whole block of padding");
    let (mut more, mut map) = (page.clone(), page.clone());
    (more[1], more[8]) = (2, 2);
    assert!(Page::open(&more).is_err(), "more values than rows, some of which have none");
    map[12] = 1;
    map.insert(HEAD_LEN, 0);
    assert!(decode_page(&map).is_err(), "a map that no row needs");
    let mut dirty = page.clone();
    *dirty.last_mut().unwrap() = 1;
    assert!(decode_page(&dirty).is_err(), "padding that is not zero");
    let mut unit = page_of(PhysicalType::Boolean, 1, &[], &[vec![9, 1]]);
    assert!(decode_page(&unit).is_ok());
    unit[2] = 1;
    assert!(decode_page(&unit).is_err(), "a unit of booleans");
}

#[test]
fn maps_that_no_writer_makes_are_refused() {
    let cells = vec![Cell::Value, Cell::Null, Cell::Absent, Cell::Value];
    let page = encode_page(&strategy::mixed(cells, &Column::of(Values::Float(vec![1.5, 2.5]))), false);
    let map = [2, 0, 0, 0, 9, 0b1001, 2, 0, 0, 0, 9, 0b01];
    assert_eq!(&page[HEAD_LEN..HEAD_LEN + map.len()], map);
    for (at, byte, what) in [
        (4, 7, "a codec of another type"),
        (5, 0b1011, "more values than stated"),
        (5, 0b0001, "fewer values than stated"),
        (5, 0b11001, "a bit behind the last row"),
        (11, 0b101, "a bit behind the last row without a value"),
        (6, 1, "a second map without its last byte"),
    ] {
        let mut page = page.clone();
        page[HEAD_LEN + at] = byte;
        assert!(decode_page(&page).is_err(), "{what}");
    }
    for cells in [0, 1, 2] {
        let mut page = page.clone();
        page[1] = cells;
        assert!(decode_page(&page).is_err(), "two maps for cells {cells}");
    }
}

/// What a page says without being decoded.
#[test]
fn a_page_tells_its_layout() {
    let page =
        |name: &str| exemplars::all().into_iter().find(|exemplar| exemplar.name == name).unwrap().page();
    let (mixed, unit, two) = (page("mixed_text"), page("int_dense"), page("float_two_vectors"));
    let (mixed, unit, two) =
        (Page::open(&mixed).unwrap(), Page::open(&unit).unwrap(), Page::open(&two).unwrap());
    assert_eq!((mixed.kind(), mixed.rows(), mixed.present()), (PhysicalType::Text, 23, 14));
    assert!(
        mixed.dictionary_len() > 0 && matches!(mixed.cells(), Ok(Cells::Mixed(cells)) if cells.len() == 23)
    );
    assert_eq!((unit.is_unit(), unit.vectors(), unit.dictionary_len()), (true, 1, 0));
    assert_eq!((two.is_unit(), two.vectors(), two.rows()), (false, 2, 1025));
    assert!(matches!(two.cells(), Ok(Cells::Values(1025))));
    // The second vector has one value.
    for beyond in [2, 3, (1 << 62) + 1, usize::MAX] {
        assert!(two.codec(beyond).is_err());
    }
    assert_eq!(two.codec(1).unwrap(), (CodecId::Constant, 9, 1));
    assert!(two.codec(2).is_err());
}
