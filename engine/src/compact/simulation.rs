//! Long histories of flushes through the pure functions, without a disk: what they come to in files and in rows written.
//!
//! Rows have a time and nothing else; a chunk is how many rows it has of each slot of time. Every merge is checked
//! against the invariant of `plan`: of two chunks that overlap, one is newer as a whole.

use std::collections::BTreeMap;

use sonde_storage_format::{
    ChunkId, ChunkMeta, SeqNo, SeqRange, TableDef, TableId, TableKind, TableOptions, TimeRange, Timestamp,
};

use super::plan::{Choice, Outlook, choose, choose_all};
use super::width::{WIDTHS, Widths, lanes};
use crate::cold::DAY;
use crate::limits::{CELL_CHUNKS, CHUNK_ROWS, WIDE_CHUNKS};

const MINUTE: i64 = DAY / 1440;
const HOUR: i64 = DAY / 24;
/// No time is more exact, and no partition narrower.
const SLOT: i64 = MINUTE;
const START: i64 = 20_000 * DAY;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: i64) -> i64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let next = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        ((u128::from(next) * n as u128) >> 64) as i64
    }
}

/// Rows by slot.
type Rows = BTreeMap<i64, u64>;

struct Chunk {
    meta: ChunkMeta,
    rows: Rows,
    since: Timestamp,
}

/// One table and its clock.
struct Sim {
    table: TableDef,
    widths: Widths,
    chunks: BTreeMap<ChunkId, Chunk>,
    memory: Rows,
    now: i64,
    next_id: u64,
    next_seq: u64,
    flushed_rows: u64,
    merged_rows: u64,
    merges: usize,
    /// The most chunks that overlapped at one instant after the merges that were due, and of all.
    most_open: usize,
    most_files: usize,
}

impl Sim {
    fn new(options: TableOptions) -> Self {
        let table = TableDef {
            id: TableId(1),
            database: "public".into(),
            name: "t".into(),
            kind: TableKind::Points,
            open: true,
            options,
            columns: Vec::new(),
        };
        Self {
            table,
            widths: Widths::default(),
            chunks: BTreeMap::new(),
            memory: Rows::new(),
            now: START,
            next_id: 0,
            next_seq: 1,
            flushed_rows: 0,
            merged_rows: 0,
            merges: 0,
            most_open: 0,
            most_files: 0,
        }
    }

    fn automatic() -> Self {
        Self::new(TableOptions::automatic())
    }

    fn write(&mut self, time: i64, rows: u64) {
        *self.memory.entry(time.div_euclid(SLOT) * SLOT).or_default() += rows;
    }

    fn width(&self) -> i64 {
        self.widths.of(&self.table)
    }

    /// Flushes what is in memory, then does what is due.
    fn flush(&mut self) {
        let width = self.width();
        let mut partitions: Vec<(TimeRange, usize)> = Vec::new();
        for (time, rows) in &self.memory {
            let range = TimeRange::aligned(Timestamp::from_nanos(*time), width);
            match partitions.last_mut() {
                Some((last, count)) if *last == range => *count += *rows as usize,
                _ => partitions.push((range, *rows as usize)),
            }
        }
        let seq = SeqRange { first: SeqNo(self.next_seq), last: SeqNo(self.next_seq + 8) };
        self.next_seq += 9;
        let memory = std::mem::take(&mut self.memory);
        for (range, _) in lanes(&partitions) {
            self.flushed_rows += self.add(range, seq, within(&memory, &range));
        }
        let metas: Vec<&ChunkMeta> = self.chunks.values().map(|chunk| &chunk.meta).collect();
        self.widths.learn(&self.table, &metas, Timestamp::from_nanos(self.now));
        self.tidy();
    }

    /// Adds a chunk, if it has rows; returns how many.
    fn add(&mut self, range: TimeRange, seq: SeqRange, rows: Rows) -> u64 {
        let Some(times) = rows.keys().next().zip(rows.keys().next_back()) else { return 0 };
        let total = rows.values().sum();
        let id = ChunkId(self.next_id);
        self.next_id += 1;
        let meta = ChunkMeta {
            id,
            table: self.table.id,
            range,
            times: (Timestamp::from_nanos(*times.0), Timestamp::from_nanos(*times.1)),
            seq,
            rows: total,
            series: 1,
            bytes: 10 * total,
            columns: Vec::new(),
        };
        self.chunks.insert(id, Chunk { meta, rows, since: Timestamp::from_nanos(self.now) });
        total
    }

    fn next(&self, all: bool) -> Option<Choice> {
        let metas: Vec<&ChunkMeta> = self.chunks.values().map(|chunk| &chunk.meta).collect();
        if all {
            return choose_all(&metas, self.width(), |_| true);
        }
        let range = |time: &i64| TimeRange::aligned(Timestamp::from_nanos(*time), self.width());
        let outlook = Outlook {
            now: Timestamp::from_nanos(self.now),
            width: self.width(),
            since: &|id| self.chunks[&id].since,
            in_memory: &self.memory.keys().map(range).collect::<Vec<_>>(),
            thin: None,
        };
        choose(&metas, &outlook, |_| true)
    }

    /// Does what is due.
    fn tidy(&mut self) {
        for turn in 0.. {
            assert!(turn < 10_000, "it does not end");
            let Some(choice) = self.next(false) else { break };
            self.merge(&choice);
        }
        self.most_open = self.most_open.max(self.open());
        self.most_files = self.most_files.max(self.chunks.len());
    }

    fn compact(&mut self) {
        for turn in 0.. {
            assert!(turn < 10_000, "it does not end");
            let Some(choice) = self.next(true) else { break };
            self.merge(&choice);
        }
    }

    fn merge(&mut self, choice: &Choice) {
        let inputs: Vec<Chunk> = choice.chunks.iter().map(|id| self.chunks.remove(id).unwrap()).collect();
        let seq = inputs.iter().map(|chunk| chunk.meta.seq).reduce(SeqRange::union).unwrap();
        let mut rows = Rows::new();
        for (time, count) in inputs.iter().flat_map(|chunk| &chunk.rows) {
            *rows.entry(*time).or_default() += count;
        }
        let before: u64 = rows.values().sum();
        let mut written = 0;
        for range in &choice.ranges {
            written += self.add(*range, seq, within(&rows, range));
        }
        self.check(&choice.ranges);
        assert_eq!(written, before, "no row is lost: {choice:?}");
        assert!(choice.ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{choice:?}");
        self.merged_rows += written;
        self.merges += 1;
    }

    /// Chunks of these ranges keep to the invariant.
    fn check(&self, ranges: &[TimeRange]) {
        let new = self.chunks.values().filter(|chunk| ranges.contains(&chunk.meta.range));
        for a in new.map(|chunk| &chunk.meta) {
            assert!(a.rows <= CHUNK_ROWS, "{a:?}");
            let others = self.chunks.values().map(|chunk| &chunk.meta);
            for b in others.filter(|b| b.id != a.id && b.range.overlaps(&a.range)) {
                assert!(a.seq.last < b.seq.first || b.seq.last < a.seq.first, "{a:?}\n{b:?}");
            }
        }
    }

    /// The most chunks whose ranges share an instant.
    fn open(&self) -> usize {
        let mut borders: Vec<(i64, i64)> = Vec::new();
        for chunk in self.chunks.values() {
            borders.push((chunk.meta.range.start.as_nanos(), 1));
            borders.push((chunk.meta.range.end.as_nanos(), -1));
        }
        borders.sort_unstable();
        let open = borders.iter().scan(0, |open, (_, step)| {
            *open += step;
            Some(*open)
        });
        open.max().unwrap_or_default() as usize
    }

    /// The distinct partitions of the chunks.
    fn partitions(&self) -> usize {
        let mut ranges: Vec<i64> =
            self.chunks.values().map(|chunk| chunk.meta.range.start.as_nanos()).collect();
        ranges.sort_unstable();
        ranges.dedup();
        ranges.len()
    }

    /// Rows written by rows that came.
    fn amplification(&self) -> f64 {
        (self.flushed_rows + self.merged_rows) as f64 / self.flushed_rows.max(1) as f64
    }

    fn summary(&self, what: &str) {
        println!(
            "{what}: {} flushed rows, amplification {:.2}, {} merges, {} chunks in {} partitions, at most {} and {} over an instant",
            self.flushed_rows,
            self.amplification(),
            self.merges,
            self.chunks.len(),
            self.partitions(),
            self.most_files,
            self.most_open
        );
    }
}

fn within(rows: &Rows, range: &TimeRange) -> Rows {
    rows.range(range.start.as_nanos()..range.end.as_nanos()).map(|(time, rows)| (*time, *rows)).collect()
}

/// A row a minute, flushed every hour, for half a year: the documented number of files.
#[test]
fn a_trickle_is_about_one_chunk_a_month() {
    let mut sim = Sim::automatic();
    for hour in 0..180 * 24 {
        for minute in 0..60 {
            sim.write(sim.now + minute * MINUTE, 1);
        }
        sim.now += HOUR;
        sim.flush();
        if hour == 14 * 24 {
            assert!(sim.chunks.len() <= 3 * 7 + 2, "{} chunks after two weeks", sim.chunks.len());
        }
    }
    sim.summary("a row a minute");
    assert_eq!(sim.width(), 32 * DAY);
    assert!(sim.most_files <= 7 + 3 * 7, "{} files", sim.most_files);
    sim.now += 64 * DAY;
    sim.tidy();
    assert!(sim.chunks.len() <= 8, "{} chunks for 180 days", sim.chunks.len());
    assert!(sim.amplification() <= 7.0, "{}", sim.amplification());
}

/// 20 kHz into memtables of about a minute.
#[test]
fn a_machine_at_20_khz_has_few_chunks_that_are_written_about_twice() {
    let mut sim = Sim::automatic();
    for _ in 0..24 * 60 {
        sim.write(sim.now, 20_000 * 60);
        sim.now += MINUTE;
        sim.flush();
    }
    sim.now += DAY;
    sim.tidy();
    sim.summary("20 kHz");
    assert_eq!(sim.width(), 15 * MINUTE);
    assert!(sim.amplification() <= 3.0, "{}", sim.amplification());
    let partitions = 24 * 4;
    assert!(sim.chunks.len() <= partitions + partitions / 8, "{} chunks", sim.chunks.len());
    assert!(sim.most_open <= CELL_CHUNKS, "{}", sim.most_open);
}

/// Shuffled rows of the last 30 days, as fast as they can be flushed, beside what comes in order.
#[test]
fn a_shuffled_load_of_30_days_is_written_about_twice() {
    let mut random = Random(7);
    let mut sim = Sim::new(TableOptions::default());
    for _ in 0..30 {
        sim.write(sim.now, 4_000_000);
        sim.now += DAY;
        sim.flush();
    }
    let (in_order, files) = (sim.flushed_rows, sim.chunks.len());
    let before = sim.merged_rows;
    for _ in 0..16 {
        for _ in 0..40_000 {
            let time = sim.now - 1 - random.below(30 * DAY);
            sim.write(time, 32);
        }
        sim.now += 2_000_000_000;
        sim.flush();
    }
    assert!(sim.most_files <= files + 16 * 6 + 64, "{} files at once", sim.most_files);
    for _ in 0..3 {
        sim.now += 6 * HOUR;
        sim.tidy();
    }
    sim.summary("30 days late");
    let late = sim.flushed_rows - in_order;
    let amplification = (late + sim.merged_rows - before) as f64 / late as f64;
    assert!(amplification <= 3.0, "{amplification}: the large old chunks are left alone");
    assert!(sim.chunks.len() <= 3 * 31, "{} chunks in 30 days", sim.chunks.len());
}

/// A few late rows of many days, hour by hour, over large old chunks.
#[test]
fn late_trickles_do_not_rewrite_what_is_old() {
    let mut random = Random(11);
    let mut sim = Sim::new(TableOptions::default());
    for _ in 0..30 {
        sim.write(sim.now, 10_000_000);
        sim.now += DAY;
        sim.flush();
    }
    let before = sim.merged_rows;
    let mut late = 0;
    for _ in 0..15 * 24 {
        for _ in 0..200 {
            let time = sim.now - 1 - random.below(30 * DAY);
            sim.write(time, 1);
            late += 1;
        }
        sim.now += HOUR;
        sim.flush();
    }
    sim.summary("late trickles");
    let per_row = (sim.merged_rows - before) as f64 / late as f64;
    assert!(per_row <= 12.0, "{per_row} rows written by merges for a late one");
    assert!(sim.chunks.len() <= 5 * 46 + 31, "{} chunks", sim.chunks.len());
    assert!(sim.most_open < CELL_CHUNKS, "{}", sim.most_open);
}

/// Any flush sizes, late and in order, widths that change, restarts: the bounds hold, and nothing is lost.
#[test]
fn whatever_comes_the_bounds_hold() {
    for seed in 1..=4 {
        let mut random = Random(seed * 7919);
        let automatic = seed % 2 == 0;
        let options = if automatic { TableOptions::automatic() } else { TableOptions::default() };
        let mut sim = Sim::new(options);
        for _ in 0..100 {
            let scale = 1u64 << random.below(22);
            let spread = [MINUTE, HOUR, DAY, 3 * DAY, 40 * DAY][random.below(5) as usize];
            for _ in 0..1 + random.below(200) {
                let time = sim.now - random.below(spread) + random.below(20).saturating_sub(18) * HOUR;
                sim.write(time, 1 + scale / 100);
            }
            let pause = [MINUTE, HOUR, 6 * HOUR][random.below(3) as usize];
            sim.now += random.below(pause);
            sim.flush();
            if !automatic && random.below(20) == 0 {
                sim.table.options.partition = WIDTHS[3 + random.below(5) as usize];
            }
            if random.below(15) == 0 {
                // A restart: every chunk counts as new, and widths are found again.
                let now = Timestamp::from_nanos(sim.now);
                sim.chunks.values_mut().for_each(|chunk| chunk.since = now);
                sim.widths = Widths::default();
            }
        }
        sim.summary(&format!("seed {seed}"));
        assert!(sim.amplification() <= 8.0, "{}", sim.amplification());
        assert!(sim.most_open < CELL_CHUNKS + 2 * WIDE_CHUNKS, "{}", sim.most_open);
        let total: u64 = sim.chunks.values().map(|chunk| chunk.meta.rows).sum();
        assert_eq!(total, sim.flushed_rows);
        sim.compact();
        assert_eq!(sim.chunks.len(), sim.partitions(), "one chunk for each partition");
        assert_eq!(sim.open(), 1);
    }
}
