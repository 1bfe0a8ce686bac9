//! Adversarial values: every generator mixes the shapes that codecs are made for with those that break them.
//!
//! Long inputs are drawn from a seed, so that thousands of values cost proptest one number.

use proptest::prelude::*;
use sonde_storage_format::limits::VECTOR_VALUES;
use sonde_storage_format::{Cell, Cells, Column, PhysicalType, Texts, Values};

use crate::random::Random;

pub(crate) const KINDS: [PhysicalType; 5] = [
    PhysicalType::Float64,
    PhysicalType::Int64,
    PhysicalType::UInt64,
    PhysicalType::Boolean,
    PhysicalType::Text,
];

/// Floats that arithmetic or comparison would lose.
pub(crate) const FLOATS: [u64; 20] = [
    0x7ff8_0000_0000_0000, // NaN
    0x7ff0_0000_0000_0001, // a signalling NaN
    0xfff8_dead_beef_0001, // a negative NaN with a payload
    0x7fff_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000, // +inf
    0xfff0_0000_0000_0000, // -inf
    0x0000_0000_0000_0000,
    0x8000_0000_0000_0000, // -0.0
    0x0000_0000_0000_0001, // the smallest subnormal
    0x800f_ffff_ffff_ffff, // the largest negative subnormal
    0x0010_0000_0000_0000, // the smallest normal
    0x7fef_ffff_ffff_ffff, // f64::MAX
    0xffef_ffff_ffff_ffff, // f64::MIN
    0x4320_0000_0000_0000, // 2^51
    0x4330_0000_0000_0001, // 2^52 + 1
    0x4340_0000_0000_0000, // 2^53
    0x43e0_0000_0000_0000, // 2^63
    0xc3e0_0000_0000_0000, // -2^63
    0x43f0_0000_0000_0000, // 2^64
    0x3fb9_9999_9999_999a, // 0.1
];

const INTS: [i64; 10] =
    [i64::MIN, i64::MIN + 1, i64::MAX, i64::MAX - 1, 0, -1, 1, 1 << 53, -(1 << 32), 1 << 62];

const TEXTS: [&str; 8] = ["", "\0", "a\0b", "\0\0\0", "ok", "Grüße, 世界 🌡", "\u{10ffff}", "\u{1}\u{7f}"];

/// Lengths at the borders of vectors, and many small ones.
pub(crate) fn lengths() -> impl Strategy<Value = usize> {
    let n = VECTOR_VALUES;
    prop_oneof![
        3 => 0..40_usize,
        2 => proptest::sample::select(vec![0, 1, 2, n - 1, n, n + 1, 2 * n - 1, 2 * n, 2 * n + 1]),
    ]
}

/// Any column of any length; its cells are all values or any mix.
pub(crate) fn columns(kind: PhysicalType) -> impl Strategy<Value = Column> {
    (lengths(), any::<u64>()).prop_map(move |(rows, seed)| column(&mut Random::new(seed), kind, rows))
}

/// A column of `rows` rows.
pub(crate) fn column(random: &mut Random, kind: PhysicalType, rows: usize) -> Column {
    let cells = cells(random, rows);
    let present = cells.iter().filter(|cell| **cell == Cell::Value).count();
    let values = Column::of(values(random, kind, present));
    // A map now and then although every row has a value.
    if present == rows && random.below(4) > 0 { values } else { mixed(cells, &values) }
}

/// How `rows` rows stand: all values, or any mix.
fn cells(random: &mut Random, rows: usize) -> Vec<Cell> {
    let mode = random.below(8);
    if mode < 3 {
        return vec![Cell::Value; rows];
    }
    let mut cells = Vec::with_capacity(rows);
    while cells.len() < rows {
        let run = if mode == 3 { 1 } else { 1 + random.below(rows) };
        let cell = match mode {
            3 | 4 => random.pick(&[Cell::Absent, Cell::Null, Cell::Value, Cell::Value]),
            5 => Cell::Absent,
            6 => Cell::Null,
            _ => Cell::Value,
        };
        cells.resize((cells.len() + run).min(rows), cell);
    }
    cells
}

/// A column of one shape throughout, for which pages have units; of shapes that they have vectors for where there is no
/// unit of the type.
pub(crate) fn regular(random: &mut Random, kind: PhysicalType, rows: usize) -> Column {
    let cells = cells(random, rows);
    let n = cells.iter().filter(|cell| **cell == Cell::Value).count();
    let (start, step) = (random.next() >> random.below(64), random.next() >> random.below(64));
    let (shape, bits, period) = (random.below(5), 2 + random.below(20), 130 + random.below(60));
    let words: Vec<u64> = match shape {
        0 => (0..n as u64).map(|i| start.wrapping_add(i.wrapping_mul(step))).collect(),
        1 => (0..n).map(|i| start.wrapping_add((i % 700 * bits) as u64)).collect(),
        2 => {
            let (mut at, unit) = (start % 10_000, random.pick(&[1, 1, 250]));
            let walk = (0..n).map(|_| {
                at += random.next() % (1 << bits) * unit;
                at
            });
            walk.collect()
        }
        _ => {
            // Noise that repeats after long, or at once but for a few times only.
            let pattern: Vec<u64> = (0..period.max(n)).map(|_| random.next()).collect();
            (0..n).map(|i| pattern[if shape == 3 { i % period } else { i / 7 }]).collect()
        }
    };
    let values = match kind {
        PhysicalType::Float64 if shape >= 3 => Values::Float(words.into_iter().map(f64::from_bits).collect()),
        PhysicalType::Float64 => {
            let (scale, special) = ([10.0, 3.0][period % 2], random.pick(&FLOATS));
            let mut floats: Vec<f64> =
                words.into_iter().map(|word| (word % (1 << 40)) as f64 / scale).collect();
            floats.iter_mut().skip(period).step_by(period).for_each(|float| *float = f64::from_bits(special));
            Values::Float(floats)
        }
        PhysicalType::Int64 => Values::Int(words.into_iter().map(u64::cast_signed).collect()),
        PhysicalType::UInt64 => Values::UInt(words),
        PhysicalType::Boolean | PhysicalType::Text => values(random, kind, n),
    };
    mixed(cells, &Column::of(values))
}

/// Spreads values over the rows that have one.
pub(crate) fn mixed(cells: Vec<Cell>, present: &Column) -> Column {
    let mut column = Column::new(present.values.kind());
    let mut next = 0;
    for &cell in &cells {
        if cell == Cell::Value {
            column.extend_from(present, next..next + 1);
            next += 1;
        } else {
            column.push_empty(cell, 1);
        }
    }
    assert_eq!(next, present.len());
    column.cells = Cells::Mixed(cells);
    column
}

pub(crate) fn values(random: &mut Random, kind: PhysicalType, len: usize) -> Values {
    match kind {
        PhysicalType::Float64 => Values::Float(floats(random, len)),
        PhysicalType::Int64 => Values::Int(ints(random, len)),
        PhysicalType::UInt64 => {
            Values::UInt(ints(random, len).into_iter().map(|value| value.cast_unsigned()).collect())
        }
        PhysicalType::Boolean => {
            Values::Bool(ints(random, len).into_iter().map(|value| value & 1 == 1).collect())
        }
        PhysicalType::Text => Values::Text(texts(random, len)),
    }
}

/// Segments of one shape each, some longer than a vector.
fn segments<T>(
    random: &mut Random,
    len: usize,
    mut push: impl FnMut(&mut Random, usize, &mut Vec<T>),
) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    while values.len() < len {
        let max = random.pick(&[1, 10, 1500]);
        let run = (1 + random.below(max)).min(len - values.len());
        push(random, run, &mut values);
    }
    assert_eq!(values.len(), len);
    values
}

pub(crate) fn floats(random: &mut Random, len: usize) -> Vec<f64> {
    segments(random, len, |random, run, out| {
        let special = f64::from_bits(random.pick(&FLOATS));
        let scale = random.pick(&[1.0, 2.0, 10.0, 100.0, 1e4, 1e9, 1e14]);
        let start = (random.next() % 2_000_000) as f64 - 1e6;
        match random.below(8) {
            0 => out.extend((0..run).map(|_| special)),
            1 => out.extend((0..run).map(|_| f64::from_bits(random.pick(&FLOATS)))),
            2 => out.extend((0..run).map(|_| f64::from_bits(random.next()))),
            3 => out.extend((0..run).map(|_| ((random.next() % 5000) as f64 - 900.0) / scale)),
            // decimals with an exception now and then
            4 => out.extend((0..run).map(|i| if i % 9 == 8 { special } else { (start + i as f64) / scale })),
            5 => out.extend((0..run).map(|i| start + (i / 3) as f64 / 7.0)),
            6 => out.extend((0..run).map(|_| (random.next() as i64) as f64)),
            _ => out.extend((0..run).map(|i| f64::from_bits(special.to_bits() ^ (i as u64 % 4)))),
        }
    })
}

pub(crate) fn ints(random: &mut Random, len: usize) -> Vec<i64> {
    segments(random, len, |random, run, out| {
        let start = random.pick(&INTS).wrapping_add(random.below(1000) as i64);
        let step = random.pick(&[0, 1, -1, 7, 1_000_000_000, i64::MAX, i64::MIN]);
        match random.below(6) {
            0 => out.extend((0..run).map(|_| start)),
            1 => out.extend((0..run as i64).map(|i| start.wrapping_add(i.wrapping_mul(step)))),
            2 => out.extend((0..run).map(|_| random.pick(&INTS))),
            3 => out.extend((0..run).map(|_| random.next().cast_signed())),
            4 => out.extend((0..run).map(|_| start.wrapping_add(random.below(300) as i64))),
            _ => out.extend(times(random, run)),
        }
    })
}

/// Times as devices send them: regular, jittered, with gaps, back to the start where the next series begins.
pub(crate) fn times(random: &mut Random, len: usize) -> Vec<i64> {
    let start = 1_700_000_000_000_000_000 + random.below(1_000_000) as i64;
    segments(random, len, |random, run, out| {
        let step = random.pick(&[1, 50_000, 1_000_000_000, 60_000_000_000, 86_400_000_000_000]);
        let jitter = random.pick(&[1, 1, 3, 20_000, 900_000_000]);
        let border = random.pick(&[5, 48, 2000]);
        for i in 0..run {
            let regular = start + (i % border) as i64 * step;
            let gap = if random.below(50) == 0 { 3_600_000_000_000 } else { 0 };
            out.push(regular + random.below(jitter) as i64 + gap);
        }
    })
}

pub(crate) fn texts(random: &mut Random, len: usize) -> Texts {
    let texts: Vec<String> = segments(random, len, |random, run, out| match random.below(5) {
        0 => out.extend((0..run).map(|_| random.pick(&TEXTS).to_owned())),
        1 => out.extend((0..run).map(|i| format!("device-{:05}/état", i % 7))),
        2 => out.extend((0..run).map(|_| format!("{:x}", random.next()))),
        3 => out.extend((0..run).map(|i| random.pick(&["x", "\0", "é"]).repeat(i % 130))),
        _ => out.extend((0..run).map(|i| if i == 3 { "z".repeat(5000) } else { String::new() })),
    });
    texts.iter().map(|text| text.as_bytes()).collect()
}

/// Tag values of up to four tags.
pub(crate) fn tags() -> impl Strategy<Value = Vec<Option<String>>> {
    let value =
        prop_oneof![proptest::sample::select(TEXTS.to_vec()).prop_map(str::to_owned), "[a-c\\x00]{0,3}"];
    proptest::collection::vec(proptest::option::of(value), 0..=4)
}
