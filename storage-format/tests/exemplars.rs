//! Columns with a golden page: each codec with few values and with 1,024, which are interleaved; each cell mode; units.

use sonde_storage_format::limits::VECTOR_VALUES;
use sonde_storage_format::{Cell, CodecId, Column, Profile, Texts, Values, encode_page_as};

use crate::strategy::{self, FLOATS, KINDS};

/// A column with a golden file, and the codec of its first vector.
pub(crate) struct Exemplar {
    pub(crate) name: &'static str,
    pub(crate) column: Column,
    pub(crate) codec: Option<CodecId>,
    times: bool,
    profile: Profile,
}

impl Exemplar {
    fn new(name: &'static str, codec: CodecId, values: Values) -> Self {
        let (times, codec, profile) = (false, Some(codec), Profile::Fast);
        Self { name, column: Column::of(values), codec, times, profile }
    }

    fn of_times(self) -> Self {
        Self { times: true, ..self }
    }

    fn dense(self) -> Self {
        Self { profile: Profile::Dense, ..self }
    }

    /// Spreads the values over the cells that have one.
    fn over(self, cells: Vec<Cell>) -> Self {
        Self { column: strategy::mixed(cells, &self.column), ..self }
    }

    pub(crate) fn page(&self) -> Vec<u8> {
        encode_page_as(self.profile, &self.column, self.times)
    }
}

/// All of them, in the order of `values.txt`.
pub(crate) fn all() -> Vec<Exemplar> {
    [floats(), ints(), uints(), times(), bools(), texts(), maps(), units(), full(), without_values()]
        .into_iter()
        .flatten()
        .collect()
}

/// Words without any order, always the same ones.
pub(crate) fn noise(n: u64) -> impl Iterator<Item = u64> + Clone {
    (1..=n).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(i as u32).wrapping_mul(i))
}

/// Doubles from 1 up to 2 whose low 52 bits are noise.
fn noisy_doubles(n: u64) -> Vec<f64> {
    noise(n).map(|word| f64::from_bits(1.0_f64.to_bits() | word >> 12)).collect()
}

fn decimals(n: usize) -> Vec<f64> {
    (0..n).map(|i| 20.0 + (i * 7 % 50) as f64 / 10.0).collect()
}

/// The values, each up to two units in the last place beside where it was.
fn beside(values: Vec<f64>) -> Vec<f64> {
    let off = |(i, v): (usize, f64)| f64::from_bits(v.to_bits().wrapping_add_signed((i % 4) as i64 - 2));
    values.into_iter().enumerate().map(off).collect()
}

/// Steps of a thousand and a little.
fn steps(n: i64) -> impl Iterator<Item = i64> {
    (0..n).scan(5, |at, i| Some(std::mem::replace(at, *at + 1000 + i * i * 7 % 13)))
}

/// A walk of steps that are seldom large.
pub(crate) fn walk(i: u32) -> u32 {
    (i * i % 91 + i / 16 * 7) % 400
}

fn floats() -> Vec<Exemplar> {
    use CodecId::*;
    let new = |name, codec, values| Exemplar::new(name, codec, Values::Float(values));
    let mut exceptions = decimals(40);
    (exceptions[3], exceptions[17], exceptions[39]) =
        (f64::from_bits(0x7ff4_0000_0000_0001), -0.0, 1.0 / 3.0);
    // More left parts than the dictionary of eight has.
    let mut real = noisy_doubles(60);
    (0..13).for_each(|i| real[4 * i + 3] *= f64::from(1 << i));
    vec![
        new("float_raw", Raw, noise(20).map(f64::from_bits).collect()),
        new("float_special", Chimp128, FLOATS.map(f64::from_bits).to_vec()),
        new("float_constant", Constant, vec![f64::from_bits(0xfff8_dead_beef_0001); 5]),
        new("float_gorilla", Gorilla, (0..80).map(|i| f64::from(i / 7) / 3.0).collect()),
        new("float_chimp", Chimp128, noise(20).cycle().take(60).map(f64::from_bits).collect()),
        new(
            "float_chimp_near",
            Chimp128,
            (0..200).map(|i| 100.0 + f64::from(walk(i)) / 512.0 / 3.0).collect(),
        ),
        new("float_alp", Alp, exceptions),
        new("float_alp_divisor", Alp, (0..40).map(|i| 2.5 * f64::from(i * i % 17)).collect()),
        new("float_alp_sequence", Alp, (0..40).map(|i| f64::from(i) / 10.0).collect()),
        new("float_two_vectors", Alp, decimals(VECTOR_VALUES + 1).iter().map(|v| v + 0.01).collect()),
        new("float_lane", Alp, beside(decimals(40))),
        new("float_alp_rd", AlpRd, real),
        new("float_dictionary", Dictionary, (0..200).map(|i| f64::from(i * i % 7) / 3.0).collect()),
    ]
}

fn ints() -> Vec<Exemplar> {
    use CodecId::*;
    let new = |name, codec, values| Exemplar::new(name, codec, Values::Int(values));
    let wide = noise(18).map(u64::cast_signed).chain([i64::MIN, i64::MAX]);
    let few: Vec<i64> = noise(4).map(u64::cast_signed).collect();
    vec![
        new("int_constant", Constant, vec![i64::MIN; 3]),
        new("int_for", For, (0..50).map(|i| i * i * 31 % 1000 - 500).collect()),
        new("int_for_64_bits", For, wide.collect()),
        new("int_gcd", Gcd, (0..50).map(|i| i * i * 31 % 1000 * 250 - 7).collect()),
        new("int_delta", Delta, steps(30).collect()),
        new("int_delta_runs", DeltaRle, (0..50).map(|i| i / 20 * 1000 - 3 * i).collect()),
        new("int_sequence", Sequence, (0..50).map(|i| -100 + 10 * i).collect()),
        new("int_sequence_wraps", Sequence, (0..7).map(|i| (i64::MAX - 2).wrapping_add(3 * i)).collect()),
        new("int_dictionary", Dictionary, (0..200).map(|i| few[i * i % 7 % 4]).collect()),
    ]
}

fn uints() -> Vec<Exemplar> {
    use CodecId::*;
    let new = |name, codec, values| Exemplar::new(name, codec, Values::UInt(values));
    let few: Vec<u64> = noise(5).collect();
    vec![
        new("uint_constant", Constant, vec![u64::MAX; 3]),
        new("uint_for", For, (0..50).map(|i| u64::MAX - i * i * 31 % 1000).collect()),
        new("uint_gcd", Gcd, (0..50).map(|i| i * i * 31 % 1000 * 250 + 1).collect()),
        new("uint_delta", Delta, steps(30).map(i64::cast_unsigned).collect()),
        new("uint_delta_runs", DeltaRle, (0..50).map(|i| 10 * (i / 25 * 1000 + i)).collect()),
        new("uint_sequence", Sequence, (0..50).map(|i| u64::MAX - 7 * i).collect()),
        new("uint_dictionary", Dictionary, (0..200).map(|i| few[i * i % 7 % 5]).collect()),
    ]
}

fn times() -> Vec<Exemplar> {
    use CodecId::*;
    let new = |name, codec, values| Exemplar::new(name, codec, Values::Int(values)).of_times();
    let (start, second) = (1_700_000_000_000_000_000, 1_000_000_000);
    // On time but for one in ten, which is late by a little.
    let late = |i: i64| if i % 10 == 4 { 3000 + i } else { 0 };
    vec![
        new("time_two_series", Gcd, (0..50).map(|i| start + i % 25 * 60 * second).collect()),
        new("time_delta_of_delta", DeltaOfDelta, (0..60).map(|i| start + i * second + late(i)).collect()),
        new("time_sequence", Sequence, (0..50).map(|i| start + i * second).collect()),
        new("time_unit_of_runs", DeltaRle, (0..1500).map(|i| start + i % 700 * second).collect()),
        new("time_unit_sequence", Sequence, (0..1025).map(|i| start + i * second).collect()),
    ]
}

fn bools() -> Vec<Exemplar> {
    use CodecId::*;
    let new = |name, codec, values| Exemplar::new(name, codec, Values::Bool(values));
    vec![
        new("bool_bitmap", Bitmap, (0..50).map(|i| i % 3 == 0).collect()),
        new("bool_rle", Rle, (0..500).map(|i| i < 200).collect()),
        new("bool_two_vectors", Bitmap, (0..VECTOR_VALUES + 3).map(|i| i * i % 7 < 3).collect()),
    ]
}

fn texts() -> Vec<Exemplar> {
    use CodecId::*;
    let new = |name, codec, texts: Vec<&str>| {
        Exemplar::new(name, codec, Values::Text(texts.into_iter().map(str::as_bytes).collect::<Texts>()))
    };
    let lines: Vec<String> = (0..12).map(|i| format!("sensor {i} said {}\0", "é".repeat(i))).collect();
    vec![
        new("text_dictionary", Dictionary, (0..50).map(word).collect()),
        new("text_dictionary_runs", Dictionary, (0..200).map(|i| word(i / 70)).collect()),
        new("text_one", Dictionary, vec![""; 5]),
        new("text_zstd", Zstd, lines.iter().map(String::as_str).collect()),
    ]
}

fn word(i: usize) -> &'static str {
    if i.is_multiple_of(3) { "off" } else { "running" }
}

fn words(n: usize) -> Values {
    Values::Text((0..n).map(|i| word(i).as_bytes()).collect())
}

/// Each cell mode, with maps of both codecs.
fn maps() -> Vec<Exemplar> {
    use Cell::{Absent, Null, Value};
    use CodecId::*;
    let turns = |turns: [Cell; 5]| turns.into_iter().cycle().take(23).collect::<Vec<_>>();
    let both = || turns([Value, Null, Value, Absent, Value]);
    // Runs of cells; a run of both is 20 rows of one and 30 of the other, or these in turns.
    let runs = |runs: &[(Cell, usize)]| runs.iter().flat_map(|(cell, n)| vec![*cell; *n]).collect::<Vec<_>>();
    let in_turns = || {
        let mut cells = runs(&[(Value, 30), (Null, 40), (Value, 30)]);
        (30..70).step_by(3).for_each(|row| cells[row] = Absent);
        cells
    };
    let ints = |n: i64| Values::Int((0..n).map(|i| i * i % 9).collect());
    vec![
        Exemplar::new("mixed_float", Alp, Values::Float(decimals(14))).over(both()),
        Exemplar::new("mixed_int", Sequence, Values::Int((0..14).collect())).over(both()),
        Exemplar::new("mixed_uint", Constant, Values::UInt(vec![7; 14])).over(both()),
        Exemplar::new("mixed_bool", Bitmap, Values::Bool((0..14).map(|i| i % 2 == 0).collect())).over(both()),
        Exemplar::new("mixed_text", Dictionary, words(14)).over(both()),
        Exemplar::new("null_bitmap", For, ints(14)).over(turns([Value, Null, Value, Null, Value])),
        Exemplar::new("absent_bitmap", For, ints(14)).over(turns([Value, Absent, Value, Absent, Value])),
        Exemplar::new("null_runs", For, ints(60)).over(runs(&[(Value, 50), (Null, 50), (Value, 10)])),
        Exemplar::new("absent_runs", For, ints(60)).over(runs(&[(Absent, 50), (Value, 60), (Absent, 1)])),
        Exemplar::new("both_runs", For, ints(60)).over(runs(&[
            (Absent, 20),
            (Null, 30),
            (Value, 60),
            (Absent, 9),
        ])),
        Exemplar::new("both_runs_and_bitmap", For, ints(60)).over(in_turns()),
    ]
}

/// Units of the dense profile, and those of the fast one.
fn units() -> Vec<Exemplar> {
    use CodecId::*;
    let floats = |name, codec, values| Exemplar::new(name, codec, Values::Float(values)).dense();
    let ints = |name, codec, values| Exemplar::new(name, codec, Values::Int(values)).dense();
    let mut tenths: Vec<f64> = (0..1100).map(|i| f64::from(walk(i) + i) / 10.0).collect();
    (tenths[7], tenths[1024]) = (f64::NAN, 1.0 / 3.0);
    let squares = |n: u32| (0..n).map(|i| i64::from(walk(i) * walk(i) / 40 + i * 5)).collect::<Vec<_>>();
    let long_pattern = || noise(160).cycle().take(1100);
    let cells: Vec<Cell> =
        [Cell::Value, Cell::Absent, Cell::Value, Cell::Value].into_iter().cycle().take(1600).collect();
    vec![
        floats("float_dense", Pco, (0..1100).map(|i| f64::from(walk(i) + i * 3) / 3.0).collect()),
        floats("float_dense_decimal", AlpPco, tenths),
        floats("float_dense_pattern", ZstdWords, long_pattern().map(f64::from_bits).collect()),
        ints("int_dense", Pco, squares(1100)),
        ints("int_dense_pattern", ZstdWords, long_pattern().map(u64::cast_signed).collect()),
        Exemplar::new(
            "uint_dense",
            Pco,
            Values::UInt(squares(1100).into_iter().map(|i| 1 << 63 | i as u64).collect()),
        )
        .dense(),
        ints("mixed_dense", Pco, squares(1200)).over(cells.clone()),
        Exemplar::new(
            "int_unit_of_runs",
            DeltaRle,
            Values::Int((0..2000).map(|i| i / 700 * 5 + i * 10).collect()),
        ),
        Exemplar::new("mixed_unit_sequence", Sequence, Values::UInt((0..1200).map(|i| i * 3).collect()))
            .over(cells),
    ]
}

/// Vectors of exactly 1,024 values, in which packed values are interleaved.
fn full() -> Vec<Exemplar> {
    use CodecId::*;
    let n = VECTOR_VALUES;
    let floats = |name, codec, values| Exemplar::new(name, codec, Values::Float(values));
    let ints = |name, codec, values| Exemplar::new(name, codec, Values::Int(values));
    let mut frame: Vec<i64> = (0..n as i64).map(|i| 5000 + i * i % 7).collect();
    (frame[100], frame[500], frame[1023]) = (1 << 40, -(1 << 40), 0);
    let mut stepped: Vec<i64> = steps(n as i64).collect();
    stepped[700..].iter_mut().for_each(|value| *value += 1 << 33);
    let mut laned = beside(decimals(n));
    (laned[0], laned[600], laned[1023]) = (f64::INFINITY, -0.0, 1.0 / 3.0);
    let mut real = noisy_doubles(n as u64);
    (0..12).for_each(|i| real[80 * i + 5] *= f64::from(1 << i));
    let entries: Vec<u64> = noise(6).collect();
    let entry = |i: usize| entries[i * i % 11 % 6];
    vec![
        ints("full_for", For, frame),
        ints("full_delta", Delta, stepped),
        ints("full_gcd", Gcd, (0..n as i64).map(|i| i * i % 61 * 1000 + 1).collect()),
        ints("full_dictionary", Dictionary, (0..n).map(|i| entry(i).cast_signed()).collect()),
        floats("full_alp", Alp, laned),
        floats("full_alp_rd", AlpRd, real),
        floats("full_dictionary_float", Dictionary, (0..n).map(|i| f64::from_bits(entry(i))).collect()),
        Exemplar::new("full_dictionary_text", Dictionary, words(n)),
    ]
}

/// Pages of no rows, and of rows without a value.
fn without_values() -> Vec<Exemplar> {
    let mut all = Vec::new();
    for (kind, [empty, absent, null]) in KINDS.into_iter().zip([
        ["float_empty", "float_absent", "float_null"],
        ["int_empty", "int_absent", "int_null"],
        ["uint_empty", "uint_absent", "uint_null"],
        ["bool_empty", "bool_absent", "bool_null"],
        ["text_empty", "text_absent", "text_null"],
    ]) {
        let without =
            |name, column| Exemplar { name, column, codec: None, times: false, profile: Profile::Fast };
        let mut nulls = Column::new(kind);
        nulls.push_empty(Cell::Null, 3);
        all.push(without(empty, Column::new(kind)));
        all.push(without(absent, Column::absent(kind, 5)));
        all.push(without(null, nulls));
    }
    all
}
