//! What a chunk says of the values of a page and of a series, against the values themselves.

use proptest::prelude::*;
use sonde_storage_format::limits::{ROW_GROUP_ROWS, RUN_ROWS};
use sonde_storage_format::{
    Cell, ChunkReader, Column, ColumnId, ColumnPages, Ends, PageStats, PhysicalType, RunStats, SeriesKey,
    Sum, TIME_COLUMN, Values,
};

use crate::chunk::{Content, Everything, read};
use crate::random::Random;
use crate::strategy::{self, KINDS};

/// The bits of a value; `None` without one, and of strings.
fn bits(column: &Column, row: usize) -> Option<u64> {
    if column.cells.get(row) != Cell::Value {
        return None;
    }
    match &column.values {
        Values::Float(values) => Some(values[row].to_bits()),
        Values::Int(values) => Some(values[row].cast_unsigned()),
        Values::UInt(values) => Some(values[row]),
        Values::Bool(values) => Some(values[row].into()),
        Values::Text(_) => None,
    }
}

/// Compensated addition as it was published: Neumaier, 1974, algorithm IV.
fn neumaier(values: &[f64]) -> (f64, f64) {
    let (mut sum, mut compensation) = (0.0_f64, 0.0_f64);
    for value in values {
        let total = sum + value;
        if sum.abs() >= value.abs() {
            compensation += (sum - total) + value;
        } else {
            compensation += (value - total) + sum;
        }
        sum = total;
    }
    (sum, compensation)
}

/// A sum as something that `==` compares bit by bit: of floats sum and compensation, of integers the number.
fn exact(sum: Option<Sum>) -> Option<(i128, Option<u64>)> {
    sum.map(|sum| match sum {
        Sum::Float { sum, compensation } => (sum.to_bits().into(), Some(compensation.to_bits())),
        Sum::Int(sum) => (sum, None),
    })
}

/// The sum of values, given as their bits.
fn sum(kind: PhysicalType, words: &[u64]) -> Option<Sum> {
    let int = |wide: fn(u64) -> i128| Some(Sum::Int(words.iter().map(|word| wide(*word)).sum()));
    match kind {
        _ if words.is_empty() => None,
        PhysicalType::Float64 => {
            let values: Vec<f64> = words.iter().map(|word| f64::from_bits(*word)).collect();
            let (sum, compensation) = neumaier(&values);
            let finite = values.iter().all(|value| value.is_finite()) && sum.is_finite();
            finite.then_some(Sum::Float { sum, compensation })
        }
        PhysicalType::Int64 => int(|word| word.cast_signed().into()),
        PhysicalType::UInt64 | PhysicalType::Boolean => int(i128::from),
        PhysicalType::Text => None,
    }
}

/// Smallest and largest value that is not NaN; of zeroes of both signs the first.
fn extremes(kind: PhysicalType, words: &[u64]) -> Option<(u64, u64)> {
    let less = |a: u64, b: u64| match kind {
        PhysicalType::Float64 => f64::from_bits(a) < f64::from_bits(b),
        PhysicalType::Int64 => a.cast_signed() < b.cast_signed(),
        _ => a < b,
    };
    let nan = |word: u64| kind == PhysicalType::Float64 && f64::from_bits(word).is_nan();
    let words = || words.iter().copied().filter(|word| !nan(*word));
    let low = words().reduce(|low, word| if less(word, low) { word } else { low });
    let high = words().reduce(|high, word| if less(high, word) { word } else { high });
    low.zip(high)
}

/// What rows of a series amount to.
fn amounts(column: &Column, times: &[i64], rows: std::ops::Range<usize>) -> RunStats {
    let kind = column.values.kind();
    let count = |cell| rows.clone().filter(|row| column.cells.get(*row) == cell).count() as u64;
    let there: Vec<(i64, u64)> =
        rows.clone().filter_map(|row| Some((times[row], bits(column, row)?))).collect();
    let words: Vec<u64> = there.iter().map(|(_, word)| *word).collect();
    let nan = |word: &&u64| kind == PhysicalType::Float64 && f64::from_bits(**word).is_nan();
    RunStats {
        present: count(Cell::Value),
        nulls: count(Cell::Null),
        nans: words.iter().filter(nan).count() as u64,
        range: extremes(kind, &words),
        ends: there.first().zip(there.last()).map(|(first, last)| Ends { first: *first, last: *last }),
        sum: sum(kind, &words),
    }
}

fn same(found: &RunStats, wanted: &RunStats, what: &str) {
    let exact = |stats: &RunStats| (RunStats { sum: None, ..*stats }, exact(stats.sum));
    assert_eq!(exact(found), exact(wanted), "{what}");
}

/// Compares all statistics of a chunk file with the content that it was written from.
pub(crate) fn check(content: &Content, bytes: &[u8]) {
    let (times, Everything { series, columns, runs, cells }) = (content.times(), read(bytes).unwrap());
    let cells_of = |id: ColumnId| &cells.iter().find(|(other, _)| *other == id).unwrap().1;
    let one_series = |rows: &std::ops::Range<usize>| {
        series.iter().any(|run| run.start <= rows.start as u64 && rows.end as u64 <= run.start + run.rows)
    };
    for ColumnPages { id, kind, pages } in &columns {
        let mut start = 0;
        for (group, (page, rows)) in pages.iter().zip(&content.groups).enumerate() {
            let rows = start..start + rows;
            start = rows.end;
            let Some(page) = page else { continue };
            let PageStats { present, nulls, nans, range, ends, sum, .. } = page.stats;
            let [present, nulls, nans] = [present, nulls, nans].map(u64::from);
            let mut wanted = amounts(cells_of(*id), &times, rows.clone());
            if *id == TIME_COLUMN || *kind == PhysicalType::Text || !one_series(&rows) {
                (wanted.ends, wanted.sum) = (None, None);
            }
            assert_eq!(page.stats.rows as usize, rows.len());
            let found = RunStats { present, nulls, nans, range, ends, sum };
            same(&found, &wanted, &format!("column {id}, row group {group}"));
        }
    }

    let long: Vec<usize> = (0..series.len()).filter(|place| series[*place].rows >= RUN_ROWS).collect();
    let numbers = |column: &&ColumnPages| column.id != TIME_COLUMN && column.kind != PhysicalType::Text;
    let wanted: Vec<_> = columns
        .iter()
        .filter(numbers)
        .filter(|_| !long.is_empty())
        .map(|pages| (pages.id, pages.kind))
        .collect();
    assert_eq!(runs.iter().map(|runs| (runs.id, runs.kind)).collect::<Vec<_>>(), wanted);
    for column in &runs {
        assert_eq!(column.runs.iter().map(|(place, _)| *place).collect::<Vec<_>>(), long);
        for (place, found) in &column.runs {
            let rows = series[*place].start as usize..(series[*place].start + series[*place].rows) as usize;
            let wanted = amounts(cells_of(column.id), &times, rows);
            same(found, &wanted, &format!("column {}, series {place}", column.id));
        }
    }
}

fn stats(values: Values) -> PageStats {
    let times: Vec<i64> = (0..values.len() as i64).collect();
    PageStats::of(&Column::of(values), Some(&times))
}

#[test]
fn ranges_leave_nan_out() {
    let stats = |values: &[f64]| PageStats::of(&Column::of(Values::Float(values.to_vec())), None);
    let range = |low: f64, high: f64| Some((low.to_bits(), high.to_bits()));
    assert_eq!(stats(&[f64::NAN, 2.0, f64::NEG_INFINITY, -f64::NAN]).range, range(f64::NEG_INFINITY, 2.0));
    assert_eq!(stats(&[f64::NAN; 3]).range, None);
    assert_eq!(stats(&[f64::NAN, 1.0, f64::NAN]).nans, 2);
    assert_eq!(stats(&[f64::NAN, f64::INFINITY]).range, range(f64::INFINITY, f64::INFINITY));
    let mixed = strategy::mixed(
        vec![Cell::Absent, Cell::Null, Cell::Null, Cell::Value],
        &Column::of(Values::Int(vec![i64::MIN])),
    );
    let bits = i64::MIN.cast_unsigned();
    let wanted =
        PageStats { rows: 4, present: 1, nulls: 2, range: Some((bits, bits)), ..PageStats::default() };
    assert_eq!(PageStats::of(&mixed, None), wanted);
    let (ends, sum) = (Ends { first: (13, bits), last: (13, bits) }, Sum::Int(i64::MIN.into()));
    let wanted = PageStats { ends: Some(ends), sum: Some(sum), ..wanted };
    assert_eq!(PageStats::of(&mixed, Some(&[10, 11, 12, 13])), wanted);
}

#[test]
fn sums_of_floats_are_compensated() {
    let sum = |values: &[f64]| match stats(Values::Float(values.to_vec())).sum {
        Some(Sum::Float { sum, compensation }) => Some(sum + compensation),
        other => panic!("{other:?}"),
    };
    assert_eq!(sum(&[1.0, 1e100, 1.0, -1e100]), Some(2.0), "plain addition gives 0");
    assert_eq!(sum(&[0.1; 10]), Some(1.0), "plain addition gives 0.9999999999999999");
    for not_finite in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for values in [[not_finite, 1.0, 2.0], [1.0, 2.0, not_finite]] {
            let stats = stats(Values::Float(values.to_vec()));
            assert_eq!((stats.sum, stats.present), (None, 3));
            assert!(stats.ends.is_some());
        }
    }
    let opposites = vec![f64::INFINITY, f64::NEG_INFINITY];
    assert_eq!(stats(Values::Float(opposites)).sum, None);
    assert_eq!(stats(Values::Float(vec![f64::MAX; 2])).sum, None, "a sum that overflows");
    assert_eq!(stats(Values::Float(vec![f64::MAX, f64::MAX, -f64::MAX])).sum, None, "even if it came back");
}

#[test]
fn sums_of_integers_are_exact() {
    let n = ROW_GROUP_ROWS;
    let sum = |values: Values| stats(values).sum;
    assert_eq!(sum(Values::Int(vec![i64::MIN; n])), Some(Sum::Int(i128::from(i64::MIN) * n as i128)));
    assert_eq!(sum(Values::UInt(vec![u64::MAX; n])), Some(Sum::Int(i128::from(u64::MAX) * n as i128)));
    assert_eq!(sum(Values::Bool((0..n).map(|i| i % 4 == 0).collect())), Some(Sum::Int(n as i128 / 4)));
    assert_eq!(sum(Values::Text([&b"1"[..]].into_iter().collect())), None);
    assert_eq!(sum(Values::Int(Vec::new())), None, "a sum of nothing");
}

/// Times and one column after the other, over series of these many rows.
fn content(random: &mut Random, rows: &[usize], groups: &[usize], regular: bool) -> Content {
    let keys = (0..rows.len()).map(|i| SeriesKey::encode([Some(format!("{i:03}").as_str())]));
    let times = |rows: &usize| {
        let mut times = if regular {
            (0..*rows as i64).map(|i| i * 1_000_000_000).collect()
        } else {
            strategy::ints(random, *rows)
        };
        times.sort_unstable();
        times.iter_mut().for_each(|time| *time = (*time).min(i64::MAX - 1));
        times
    };
    let series: Vec<_> = keys.zip(rows.iter().map(times).collect::<Vec<_>>()).collect();
    let total = rows.iter().sum();
    let column = |id: u32| {
        let kind = KINDS[id as usize % KINDS.len()];
        let column = match id % 2 {
            0 => strategy::column(random, kind, total),
            _ => strategy::regular(random, kind, total),
        };
        (ColumnId(id), column)
    };
    let columns = (1..9).map(column).collect();
    Content { series, columns, groups: cut(total, groups) }
}

/// Row groups of these sizes in turns, until all rows have one.
fn cut(rows: usize, sizes: &[usize]) -> Vec<usize> {
    let mut left = rows;
    let groups = sizes.iter().cycle().map_while(|size| {
        let group = (*size).min(left);
        left -= group;
        (group > 0).then_some(group)
    });
    groups.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Series of all lengths across row groups of all lengths.
    #[test]
    fn statistics_are_those_of_the_values(
        seed: u64,
        rows in proptest::collection::vec(prop_oneof![1..50_usize, 4070..4120_usize, 4500..6000_usize], 1..5),
        groups in proptest::collection::vec(1..6000_usize, 1..4),
        regular: bool,
    ) {
        let content = content(&mut Random::new(seed), &rows, &groups, regular);
        check(&content, &content.write(false).0);
    }
}

fn float(column: Column) -> (ColumnId, Column) {
    (ColumnId(4), column)
}

/// A series of 4,500 rows in three row groups, with values in the middle one only, none in its first and last row.
#[test]
fn a_run_knows_the_times_of_its_first_and_last_value() {
    let mut column = Column::absent(PhysicalType::Float64, 501);
    column.extend_from(&Column::of(Values::Float((0..98).map(f64::from).collect())), 0..98);
    column.push_empty(Cell::Null, 1);
    column.push_empty(Cell::Absent, 3900);
    let mut times: Vec<i64> = (0..4500).map(|i| i * 10).collect();
    (times[0], times[4499]) = (i64::MIN, i64::MAX - 1);
    let series = vec![(SeriesKey::encode([]), times)];
    let content = Content { series, columns: vec![float(column)], groups: vec![500, 100, 3900] };
    let (bytes, pages, _) = content.write(false);
    let there: Vec<bool> = pages[1].pages.iter().map(Option::is_some).collect();
    assert_eq!(there, [false, true, false]);
    let reader = ChunkReader::open(&bytes).unwrap();
    let runs = reader.run_statistics(&reader.series().unwrap(), |_| true).unwrap();
    let ends = Ends { first: (5010, 0.0_f64.to_bits()), last: (5980, 97.0_f64.to_bits()) };
    let wanted = RunStats {
        present: 98,
        nulls: 1,
        nans: 0,
        range: Some((0.0_f64.to_bits(), 97.0_f64.to_bits())),
        ends: Some(ends),
        sum: Some(Sum::Float { sum: 4753.0, compensation: 0.0 }),
    };
    assert_eq!((runs.len(), runs[0].id, &runs[0].runs), (1, ColumnId(4), &vec![(0, wanted)]));
    check(&content, &bytes);
}

/// A sum that overflows in the first row group stays none, whatever follows.
#[test]
fn a_run_is_one_sum_over_its_row_groups() {
    let sum = |values: Vec<f64>| {
        let series = vec![(SeriesKey::encode([]), (0..values.len() as i64).collect())];
        let groups = cut(values.len(), &[1000]);
        let content = Content { series, columns: vec![float(Column::of(Values::Float(values)))], groups };
        let bytes = content.write(false).0;
        check(&content, &bytes);
        let reader = ChunkReader::open(&bytes).unwrap();
        reader.run_statistics(&reader.series().unwrap(), |_| true).unwrap()[0].runs[0].1.sum
    };
    let mut values = vec![0.0; 5000];
    values[1000] = -0.0;
    assert_eq!(sum(values.clone()), Some(Sum::Float { sum: 0.0, compensation: 0.0 }));
    (values[0], values[1], values[4999]) = (1e100, 1.0, -1e100);
    assert_eq!(sum(values.clone()), Some(Sum::Float { sum: 0.0, compensation: 1.0 }));
    values[1] = f64::INFINITY;
    assert_eq!(sum(values), None);
}

#[test]
fn runs_below_4096_rows_have_no_statistics() {
    let runs = |rows: &[usize]| {
        let content = content(&mut Random::new(2), rows, &[ROW_GROUP_ROWS], true);
        let bytes = content.write(false).0;
        let reader = ChunkReader::open(&bytes).unwrap();
        let runs = reader.run_statistics(&reader.series().unwrap(), |_| true).unwrap();
        let places = |runs: &[(usize, RunStats)]| runs.iter().map(|(place, _)| *place).collect::<Vec<_>>();
        runs.iter().map(|column| places(&column.runs)).collect::<Vec<_>>()
    };
    assert!(runs(&[4095, 4095]).is_empty());
    let some = runs(&[4095, 4096, 1, 4097]);
    assert!(!some.is_empty() && some.iter().all(|places| *places == [1, 3]));
}
