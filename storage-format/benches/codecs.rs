//! Speed of vectors, pages and chunk files on one thread. `scripts/bench.sh` runs it.
//!
//! All figures are of one run, the best of several rounds, as machines are noisy.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark that panics has failed")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use sonde_storage_format::limits::{ROW_GROUP_ROWS, VECTOR_VALUES};
use sonde_storage_format::{
    ChunkId, ChunkReader, ChunkWriter, CodecId, Column, ColumnId, Page, Profile, SeqNo, SeqRange, SeriesId,
    SeriesKey, SeriesRows, TableId, TimeRange, Timestamp, Values, decode_page, encode_page, encode_page_as,
    use_portable_code,
};

/// Rounds of a measurement; the best one counts.
const ROUNDS: usize = 5;
/// How long a round works at least.
const PATIENCE: Duration = Duration::from_millis(60);

/// Seconds of one call, in the best round.
fn seconds(mut run: impl FnMut()) -> f64 {
    run();
    let round = |_| {
        let (started, mut calls) = (Instant::now(), 0);
        while started.elapsed() < PATIENCE {
            run();
            calls += 1;
        }
        started.elapsed().as_secs_f64() / f64::from(calls)
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}

/// Numbers that look like noise and are the same in every run.
fn noise(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed | 1;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        state >> 33
    })
}

/// Columns of one page's length, named for what the fast profile makes of them.
fn floats() -> Vec<(&'static str, Vec<f64>)> {
    let n = ROW_GROUP_ROWS;
    let decimal = |value: i64, digits: i32| value as f64 / 10_f64.powi(digits);
    let of = |seed: u64, spread: u64| noise(seed).take(n).map(move |word| (word % spread) as i64);
    let walk = |seed: u64, spread: i64| {
        of(seed, 2 * spread as u64 + 1).scan(200_000, move |at, step| {
            *at += step - spread;
            Some(*at)
        })
    };
    let outlier = |(i, value): (usize, i64)| if i % 97 == 5 { value + 9_000_000 } else { value };
    let off =
        |(i, value): (usize, f64)| f64::from_bits(value.to_bits().wrapping_add_signed((i % 5) as i64 - 2));
    vec![
        ("ALP, frame of 11 bits", of(1, 1 << 11).map(|value| decimal(20_000 + value, 2)).collect()),
        ("ALP, patched", of(2, 1 << 9).enumerate().map(outlier).map(|value| decimal(value, 1)).collect()),
        ("ALP, delta", walk(3, 7).map(|value| decimal(value, 1)).collect()),
        ("ALP, lane", of(4, 3000).map(|value| decimal(36_000 + value, 3)).enumerate().map(off).collect()),
        ("ALP-RD", noise(5).take(n).map(|word| 1.0 + word as f64 / (1_u64 << 31) as f64 * 0.7318).collect()),
        ("dictionary", of(6, 200).map(|value| (value as f64 / 7.0).sin()).collect()),
        ("XOR", walk(7, 1).map(|value| (value / 16) as f64 / 3.0).collect()),
        ("raw", noise(8).zip(noise(9)).take(n).map(|(a, b)| f64::from_bits(a << 33 | b << 2)).collect()),
    ]
}

fn sum(page: &Page<'_>) -> f64 {
    // As many sums at once as hide how long an addition takes.
    let mut lanes = [0.0; 16];
    let add = |values: &[f64]| {
        let (lines, rest) = values.as_chunks::<16>();
        for line in lines {
            (0..16).for_each(|lane| lanes[lane] += line[lane]);
        }
        rest.iter().for_each(|value| lanes[0] += value);
    };
    page.scan_floats(0..page.vectors(), add).unwrap();
    lanes.iter().sum()
}

fn codec_of(page: &[u8]) -> CodecId {
    Page::open(page).unwrap().codec(0).unwrap().0
}

fn pages() {
    println!("one page of 65,536 float64 values; GB/s of values");
    println!(
        "  {:<24} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "column", "codec", "bits", "encode", "decode", "scan", "portable"
    );
    let gbps = |seconds: f64| ROW_GROUP_ROWS as f64 * 8.0 / seconds / 1e9;
    for (name, values) in floats() {
        let column = Column::of(Values::Float(values));
        let bytes = encode_page(&column, false);
        let page = Page::open(&bytes).unwrap();
        let encode = seconds(|| drop(black_box(encode_page(black_box(&column), false))));
        let decode = seconds(|| drop(black_box(decode_page(black_box(&bytes)))));
        let scan =
            || seconds(|| page.scan_floats(0..page.vectors(), |values| _ = black_box(values)).unwrap());
        let fast = scan();
        use_portable_code(true);
        let portable = scan();
        use_portable_code(false);
        println!(
            "  {name:<24} {:>10} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.2}",
            format!("{:?}", codec_of(&bytes)),
            bytes.len() as f64 * 8.0 / ROW_GROUP_ROWS as f64,
            gbps(encode),
            gbps(decode),
            gbps(fast),
            gbps(portable),
        );
    }
    let values = floats().remove(2).1;
    let dense = encode_page_as(Profile::Dense, &Column::of(Values::Float(values.clone())), false);
    let column = Column::of(Values::Float(values));
    let encode = seconds(|| drop(black_box(encode_page_as(Profile::Dense, &column, false))));
    let decode = seconds(|| drop(black_box(decode_page(black_box(&dense)))));
    println!(
        "  {:<24} {:>10} {:>9.2} {:>9.2} {:>9.2}",
        "dense, the walk",
        format!("{:?}", codec_of(&dense)),
        dense.len() as f64 * 8.0 / ROW_GROUP_ROWS as f64,
        gbps(encode),
        gbps(decode)
    );
}

fn encode_only(wanted: &str) {
    for (name, values) in floats().into_iter().filter(|(name, _)| name.contains(wanted)) {
        let column = Column::of(Values::Float(values));
        let encode = seconds(|| drop(black_box(encode_page(black_box(&column), false))));
        println!("{name}: encode {:.3} GB/s", ROW_GROUP_ROWS as f64 * 8.0 / encode / 1e9);
    }
}

/// Bits that timestamps take.
fn times() {
    println!("timestamps, one page of 65,536");
    let start = 1_700_000_000_000_000_000_i64;
    let n = ROW_GROUP_ROWS as i64;
    let jitter = |i: i64, spread: u64| (noise(i.cast_unsigned()).nth(3).unwrap() % spread).cast_signed();
    let gap = |i: i64| i / 9000 * 777_000_000_000;
    let columns: [(&str, Vec<i64>); 4] = [
        ("every second", (0..n).map(|i| start + i * 1_000_000_000).collect()),
        ("every second, gaps", (0..n).map(|i| start + i * 1_000_000_000 + gap(i)).collect()),
        ("10 ms, jitter of 8 us", (0..n).map(|i| start + i * 10_000_000 + 1000 * jitter(i, 8)).collect()),
        ("59 to 61 s", (0..n).map(|i| start + i * 60_000_000_000 + 1_000_000_000 * jitter(i, 3)).collect()),
    ];
    for (name, values) in columns {
        let page = encode_page(&Column::of(Values::Int(values)), true);
        let decode = seconds(|| drop(black_box(decode_page(black_box(&page)))));
        println!(
            "  {name:<24} {:>10} {:>9.4} bits, decode {:.2} GB/s",
            format!("{:?}", codec_of(&page)),
            page.len() as f64 * 8.0 / ROW_GROUP_ROWS as f64,
            ROW_GROUP_ROWS as f64 * 8.0 / decode / 1e9
        );
    }
}

fn writer(profile: Profile) -> ChunkWriter {
    let range = TimeRange { start: Timestamp::MIN, end: Timestamp::MAX };
    ChunkWriter::new(ChunkId(1), TableId(1), range, SeqRange { first: SeqNo(1), last: SeqNo(1) }, profile)
}

/// A chunk of one series with a column, in row groups of `rows`.
fn chunk(groups: usize, rows: usize, values: &[f64]) -> Vec<u8> {
    let mut writer = writer(Profile::Fast);
    let mut bytes = Vec::new();
    for group in 0..groups {
        let times = (0..rows).map(|row| (group * rows + row) as i64 * 1_000_000_000).collect();
        let values = values.iter().cycle().skip(group * VECTOR_VALUES).take(rows).copied().collect();
        let series = SeriesRows { id: SeriesId(0), key: SeriesKey::encode([Some("one")]), rows };
        writer.push_group(times, &[(ColumnId(1), Column::of(Values::Float(values)))], &[series]);
        bytes.extend(writer.drain());
    }
    bytes.extend(writer.finish().0);
    bytes
}

/// Scan and sum of a column through the reader, every checksum verified, beside the sum of the same floats in memory.
fn scan_and_sum() {
    let groups = 128;
    println!("scan and sum of {groups} pages, checksums verified; G values/s");
    let count = groups * ROW_GROUP_ROWS;
    let raw = |values: &[f64]| {
        let all: Vec<f64> = values.iter().cycle().take(count).copied().collect();
        count as f64
            / seconds(|| {
                let (eights, _) = all.as_chunks::<8>();
                let mut lanes = [0.0; 8];
                eights.iter().for_each(|eight| (0..8).for_each(|lane| lanes[lane] += eight[lane]));
                black_box(lanes);
            })
            / 1e9
    };
    for (name, values) in floats().into_iter().take(6) {
        let bytes = chunk(groups, ROW_GROUP_ROWS, &values);
        let reader = ChunkReader::open(&bytes).unwrap();
        let columns = reader.columns().unwrap();
        let scan = seconds(|| {
            let pages = columns[1].pages.iter().flatten();
            black_box(pages.map(|meta| sum(&reader.page(meta).unwrap())).sum::<f64>());
        });
        println!("  {name:<24} {:>9.2}, raw floats {:.2}", count as f64 / scan / 1e9, raw(&values));
    }
}

/// Opening reads the root only, however many pages there are.
fn open() {
    let values = floats().remove(0).1;
    let bytes = chunk(5000, 64, &values);
    let reader = ChunkReader::open(&bytes).unwrap();
    let pages: usize = reader.columns().unwrap().iter().map(|column| column.pages.len()).sum();
    println!("a chunk of {pages} pages, {} bytes", bytes.len());
    println!(
        "  open                     {:>9.2} us",
        seconds(|| drop(black_box(ChunkReader::open(&bytes)))) * 1e6
    );
    println!("  page directory           {:>9.2} us", seconds(|| drop(black_box(reader.columns()))) * 1e6);
}

fn main() {
    // `cargo bench -- --only NAME` looks at one kind of column, for a profile of it.
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--only") {
        return encode_only(&arguments[at + 1]);
    }
    pages();
    times();
    scan_and_sum();
    open();
}
