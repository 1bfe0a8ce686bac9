//! Chunk files, and through them the checksums of pages.

use proptest::prelude::*;
use sonde_storage_format::limits::{PAGE_ALIGN, ROOT_BYTES, ROW_GROUP_ROWS};
use sonde_storage_format::{
    Cell, ChunkId, ChunkReader, ChunkWriter, Column, ColumnId, ColumnPages, ColumnRuns, PhysicalType,
    Profile, Result, SeqNo, SeqRange, SeriesId, SeriesKey, SeriesRows, SeriesRun, TIME_COLUMN, TableId,
    TimeRange, Timestamp, Values, crc32,
};

use crate::random::Random;
use crate::same::rows;
use crate::strategy::{self, FLOATS, KINDS};
use crate::{damage, exemplars, golden, stats};

const HEAD_LEN: usize = 64;
const TAIL_LEN: usize = 16;
const ROOT_LEN: usize = 128;
const RANGE: TimeRange = TimeRange { start: Timestamp::MIN, end: Timestamp::MAX };
const SEQ: SeqRange = SeqRange { first: SeqNo(10), last: SeqNo(20) };

/// What a chunk file holds.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    /// Keys in order, each with the times of its rows.
    pub(crate) series: Vec<(SeriesKey, Vec<i64>)>,
    /// One cell per row of all series.
    pub(crate) columns: Vec<(ColumnId, Column)>,
    /// The rows of each row group.
    pub(crate) groups: Vec<usize>,
}

impl Content {
    pub(crate) fn times(&self) -> Vec<i64> {
        self.series.iter().flat_map(|(_, times)| times).copied().collect()
    }

    fn runs(&self) -> Vec<SeriesRun> {
        let mut start = 0;
        let run = |(i, (key, times)): (usize, &(SeriesKey, Vec<i64>))| {
            let rows = times.len() as u64;
            start += rows;
            SeriesRun {
                id: SeriesId(1000 - i as u64),
                key: key.clone(),
                start: start - rows,
                rows,
                first: Timestamp::from_nanos(times[0]),
                last: Timestamp::from_nanos(times[times.len() - 1]),
            }
        };
        self.series.iter().enumerate().map(run).collect()
    }

    /// The file, what its columns amount to, and its series; `drain` asks for its bytes piece by piece.
    pub(crate) fn write(&self, drain: bool) -> (Vec<u8>, Vec<ColumnPages>, u64) {
        self.write_as(Profile::Fast, drain)
    }

    fn write_as(&self, profile: Profile, drain: bool) -> (Vec<u8>, Vec<ColumnPages>, u64) {
        let (times, runs) = (self.times(), self.runs());
        let mut bytes = Vec::new();
        let mut writer = ChunkWriter::new(ChunkId(41), TableId(7), RANGE, SEQ, profile);
        let mut start = 0;
        for rows in &self.groups {
            let group = start..start + rows;
            start = group.end;
            let slice = |(id, column): &(ColumnId, Column)| (*id, column.slice(group.clone()));
            let columns: Vec<_> = self.columns.iter().map(slice).collect();
            let inside = |run: &SeriesRun| {
                let rows =
                    group.start.max(run.start as usize)..group.end.min((run.start + run.rows) as usize);
                (!rows.is_empty()).then(|| SeriesRows { id: run.id, key: run.key.clone(), rows: rows.len() })
            };
            let series: Vec<SeriesRows> = runs.iter().filter_map(inside).collect();
            writer.push_group(times[group.clone()].to_vec(), &columns, &series);
            if drain {
                bytes.extend(writer.drain());
            }
        }
        let (rest, columns, series) = writer.finish();
        bytes.extend(rest);
        (bytes, columns, series)
    }
}

/// Everything that a file says, every checksum verified.
pub(crate) struct Everything {
    pub(crate) series: Vec<SeriesRun>,
    pub(crate) columns: Vec<ColumnPages>,
    pub(crate) runs: Vec<ColumnRuns>,
    /// Per column, its cells in all row groups.
    pub(crate) cells: Vec<(ColumnId, Column)>,
}

pub(crate) fn read(bytes: &[u8]) -> Result<Everything> {
    let reader = ChunkReader::open(bytes)?;
    let (series, columns) = (reader.series()?, reader.columns()?);
    let runs = reader.run_statistics(&series, |_| true)?;
    let mut cells = Vec::new();
    for ColumnPages { id, kind, pages } in &columns {
        let mut all = Column::new(*kind);
        for (page, time) in pages.iter().zip(&columns[0].pages) {
            let rows = time.unwrap().stats.rows as usize;
            let column = match page {
                Some(meta) => reader.page(meta)?.decode()?,
                None => Column::absent(*kind, rows),
            };
            all.extend_from(&column, 0..column.len());
        }
        cells.push((*id, all));
    }
    Ok(Everything { series, columns, runs, cells })
}

fn check_round_trip(content: &Content, profile: Profile) {
    let (bytes, written, series) = content.write_as(profile, false);
    let drained = content.write_as(profile, true);
    assert_eq!(drained, (bytes.clone(), written.clone(), series), "drained or not");
    let reader = ChunkReader::open(&bytes).unwrap();
    let (root, row_count) = (reader.root(), content.times().len());
    assert_eq!((root.id, root.table, root.range, root.seq), (ChunkId(41), TableId(7), RANGE, SEQ));
    assert_eq!((root.rows, root.series), (row_count as u64, content.series.len() as u64));
    assert_eq!(series, root.series);
    let found = read(&bytes).unwrap();
    assert_eq!(found.series, content.runs());
    assert_eq!(found.columns, written);

    let mut expected = vec![(TIME_COLUMN, Column::of(Values::Int(content.times())))];
    let there = |column: &Column| (0..column.len()).any(|row| column.cells.get(row) != Cell::Absent);
    expected.extend(content.columns.iter().filter(|(_, column)| there(column)).cloned());
    let sorted = |columns: &[(ColumnId, Column)]| {
        let mut columns: Vec<_> = columns.iter().map(|(id, column)| (*id, rows(column))).collect();
        columns.sort_by_key(|(id, _)| *id);
        columns
    };
    assert_eq!(sorted(&found.cells), sorted(&expected));
    for meta in found.columns.iter().flat_map(|column| column.pages.iter().flatten()) {
        assert!(meta.offset.is_multiple_of(PAGE_ALIGN as u64));
        assert!((meta.len as usize).is_multiple_of(PAGE_ALIGN));
    }
    assert!(found.columns.iter().all(|column| column.pages.len() == content.groups.len()));
    stats::check(content, &bytes);
}

/// Two series, and a column for each codec and cell mode, in two row groups of which the first is of one series.
fn exemplar() -> Content {
    let start = 1_700_000_000_000_000_000;
    let late = |i: i64| if i % 10 == 4 { 3000 + i } else { 0 };
    let times = |n: i64| (0..n).map(|i| start + i * 1_000_000_000 + late(i)).collect::<Vec<_>>();
    let series = vec![
        (SeriesKey::encode([Some("a\0")]), times(25)),
        (SeriesKey::encode([Some("a\0"), Some("é")]), times(15)),
    ];
    let rows = 40;
    let row = || 0..rows;
    let turns = [Cell::Value, Cell::Null, Cell::Absent, Cell::Value, Cell::Value];
    let cells: Vec<Cell> = turns.into_iter().cycle().take(rows).collect();
    let present = cells.iter().filter(|cell| **cell == Cell::Value).count();
    let map = |values: Values| strategy::mixed(cells.clone(), &Column::of(values));
    let texts = |texts: Vec<String>| Values::Text(texts.iter().map(|text| text.as_bytes()).collect());
    let mut nulls = Column::new(PhysicalType::UInt64);
    nulls.push_empty(Cell::Null, rows);
    let mut late = Column::absent(PhysicalType::Int64, 30);
    late.extend_from(&Column::of(Values::Int((0..10).map(|i| i64::MAX - i).collect())), 0..10);
    let columns = vec![
        Column::of(Values::Float(row().map(|i| f64::from_bits(FLOATS[i % FLOATS.len()])).collect())),
        Column::of(Values::Float(row().map(|i| (i / 5) as f64 / 3.0).collect())),
        map(Values::Float((0..present).map(|i| 20.0 + i as f64 / 10.0).collect())),
        map(Values::Int((0..present as i64).map(|i| i * i * 31 % 1000 - 500).collect())),
        Column::of(Values::UInt(row().map(|i| u64::MAX - 3 * i as u64).collect())),
        Column::of(Values::Bool(row().map(|i| i % 3 == 0).collect())),
        map(Values::Bool(vec![true; present])),
        Column::of(texts(row().map(|i| ["on", "off"][i % 2].to_owned()).collect())),
        map(texts((0..present).map(|i| format!("line {i}\0")).collect())),
        Column::absent(PhysicalType::Float64, rows),
        nulls,
        late,
    ];
    let columns = columns.into_iter().zip(1..).map(|(column, id)| (ColumnId(id), column)).collect();
    Content { series, columns, groups: vec![20, 20] }
}

/// Two series that are long enough for statistics of their own and one that is not, across five row groups.
fn long_exemplar() -> Content {
    let (start, minute) = (1_700_000_000_000_000_000, 60_000_000_000);
    let times = |n: i64| (0..n).map(|i| start + i * minute).collect::<Vec<_>>();
    let series = vec![
        (SeriesKey::encode([Some("a")]), times(4596)),
        (SeriesKey::encode([Some("b")]), times(30)),
        (SeriesKey::encode([Some("b"), Some("")]), times(4096)),
    ];
    let rows = 8722;
    let row = || 0..rows;
    // No first and no last value; nothing in the second row group.
    let gap = |row: usize| (2000..3500).contains(&row) || matches!(row, 0 | 1 | 4595 | 8721);
    let gaps = |kind| {
        let cells: Vec<Cell> = row()
            .map(|row| match row {
                row if gap(row) => Cell::Absent,
                row if row % 50 == 7 => Cell::Null,
                _ => Cell::Value,
            })
            .collect();
        let present = cells.iter().filter(|cell| **cell == Cell::Value).count();
        let values = match kind {
            PhysicalType::Boolean => Values::Bool((0..present).map(|i| i % 900 < 400).collect()),
            _ => Values::Int((0..present as i64).map(|i| i64::MAX - i % 5).collect()),
        };
        strategy::mixed(cells, &Column::of(values))
    };
    let mut nans: Vec<f64> = row().map(|i| (i * i % 9) as f64 / 4.0).collect();
    (nans[40], nans[4595]) = (f64::NAN, f64::from_bits(0xfff8_dead_beef_0001));
    let mut late = Column::absent(PhysicalType::UInt64, 5500);
    late.extend_from(&Column::of(Values::UInt(vec![u64::MAX; 3222])), 0..3222);
    let columns = vec![
        Column::of(Values::Float(row().map(|i| f64::from((i * 7 % 50) as u32) / 10.0).collect())),
        Column::of(Values::Float(nans)),
        gaps(PhysicalType::Int64),
        gaps(PhysicalType::Boolean),
        late,
        Column::of(Values::Text(row().map(|i| [&b"on"[..], b"off"][i / 800 % 2]).collect())),
    ];
    let columns = columns.into_iter().zip(1..).map(|(column, id)| (ColumnId(id), column)).collect();
    Content { series, columns, groups: vec![2000, 1500, 2000, 1600, 1622] }
}

fn content(random: &mut Random, rows: &[usize]) -> Content {
    let mut keys: Vec<SeriesKey> = rows
        .iter()
        .enumerate()
        .map(|(i, _)| {
            let (number, value) = (format!("{i:03}"), ["", "\0", "é"][i % 3]);
            SeriesKey::encode([(i > 0).then_some(number.as_str()), (i > 1).then_some(value)])
        })
        .collect();
    keys.sort();
    let times = |rows: &usize| {
        let mut times = strategy::times(random, *rows);
        times.sort_unstable();
        times
    };
    let series: Vec<_> = keys.into_iter().zip(rows.iter().map(times).collect::<Vec<_>>()).collect();
    let total = rows.iter().sum();
    let column = |id| (ColumnId(id), strategy::column(random, KINDS[id as usize % KINDS.len()], total));
    Content { series, columns: (1..9).map(column).collect(), groups: vec![total] }
}

/// The lines of `values.txt` for the chunks.
pub(crate) fn values() -> Vec<String> {
    let mut lines = Vec::new();
    for (name, content) in [("chunk", exemplar()), ("chunk_long", long_exemplar())] {
        let (bytes, columns, _) = content.write(false);
        let reader = ChunkReader::open(&bytes).unwrap();
        for column in columns {
            for (group, meta) in column.pages.iter().enumerate() {
                let Some(meta) = meta else { continue };
                let page = reader.page(meta).unwrap().decode().unwrap();
                lines.push(golden::values_line(&format!("{name}:{}:{group}", column.id), &page));
            }
        }
    }
    lines
}

#[test]
fn golden() {
    let (bytes, ..) = exemplar().write(false);
    assert!(bytes.len() < 8000, "{} bytes are many to flip", bytes.len());
    golden::check("chunk", &bytes);
    let (bytes, ..) = long_exemplar().write(false);
    assert!(bytes.len() < 20_000, "{} bytes", bytes.len());
    golden::check("chunk_long", &bytes);
    for profile in [Profile::Fast, Profile::Dense] {
        check_round_trip(&exemplar(), profile);
        check_round_trip(&long_exemplar(), profile);
    }
}

#[test]
fn sizes() {
    let series = vec![(SeriesKey::encode([]), vec![5])];
    let (bytes, columns, _) = Content { series, columns: Vec::new(), groups: vec![1] }.write(false);
    assert_eq!(bytes[..HEAD_LEN], [&b"SONDECHK"[..], &[1], &[0; 55]].concat());
    assert_eq!(bytes[bytes.len() - 8..], *b"SONDECHK");
    assert_eq!(u32_at(&bytes, bytes.len() - TAIL_LEN), ROOT_LEN);
    const { assert!(ROOT_LEN <= ROOT_BYTES) };
    // Id, key length, rows, two times; groups, columns, the time column's id and type, an entry with a range; nothing.
    let (series, pages, runs) = (2 + 1 + 1 + 16, 1 + 1 + 4 + 1 + 4 + 8 + 4 + 16 + 1 + 16, 0);
    assert_eq!(bytes.len(), HEAD_LEN + PAGE_ALIGN + series + pages + runs + ROOT_LEN + TAIL_LEN);
    assert_eq!(columns[0].pages[0].unwrap().offset, HEAD_LEN as u64);
    let stats = columns[0].pages[0].unwrap().stats;
    assert!(stats.range == Some((5, 5)) && stats.ends.is_none() && stats.sum.is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn round_trip(seed: u64, rows in proptest::collection::vec(1..60_usize, 1..8), long: bool, dense: bool) {
        let mut rows = rows;
        if long {
            rows[0] = 4096;
        }
        check_round_trip(&content(&mut Random::new(seed), &rows), if dense { Profile::Dense } else { Profile::Fast });
    }
}

/// A series across the border of two row groups, and columns that only one of the groups has.
#[test]
fn two_row_groups_come_back() {
    let rows = ROW_GROUP_ROWS + 3;
    let series = vec![
        (SeriesKey::encode([]), (0..10).collect()),
        (SeriesKey::encode([Some("")]), (0..rows as i64 - 10).map(|i| i * i).collect()),
    ];
    let mut first = Column::of(Values::Float(vec![-0.0; 5]));
    first.push_empty(Cell::Absent, rows - 5);
    let mut second = Column::absent(PhysicalType::Int64, rows - 1);
    second.push_empty(Cell::Null, 1);
    let both = Column::of(Values::UInt((0..rows as u64).collect()));
    let columns = vec![(ColumnId(3), first), (ColumnId(2), second), (ColumnId(1), both)];
    let content = Content { series, columns, groups: vec![ROW_GROUP_ROWS, 3] };
    check_round_trip(&content, Profile::Fast);
    let (bytes, ..) = content.write(false);
    let columns = ChunkReader::open(&bytes).unwrap().columns().unwrap();
    let there: Vec<_> =
        columns.iter().map(|column| (column.id.0, [0, 1].map(|i| column.pages[i].is_some()))).collect();
    assert_eq!(there, [(0, [true, true]), (3, [true, false]), (1, [true, true]), (2, [false, true])]);
}

/// The dense profile is for pages of values; both profiles say the same of them.
#[test]
fn the_profile_is_that_of_all_pages() {
    let walk = Values::Int((0..2000).map(|i| i64::from(exemplars::walk(i).pow(2) / 40 + i * 5)).collect());
    let times = exemplars::noise(2000).scan(0, |at, word| {
        *at += (word >> 40).cast_signed();
        Some(*at)
    });
    let series = vec![(SeriesKey::encode([]), times.collect())];
    let content = Content { series, columns: vec![(ColumnId(1), Column::of(walk))], groups: vec![2000] };
    let (fast, fast_pages, _) = content.write_as(Profile::Fast, false);
    let (dense, dense_pages, _) = content.write_as(Profile::Dense, false);
    let units = |bytes: &[u8], pages: &[ColumnPages]| {
        let reader = ChunkReader::open(bytes).unwrap();
        pages
            .iter()
            .map(|column| reader.page(&column.pages[0].unwrap()).unwrap().is_unit())
            .collect::<Vec<_>>()
    };
    assert_eq!(units(&fast, &fast_pages), [false, false]);
    assert_eq!(units(&dense, &dense_pages), [false, true]);
    for (fast, dense) in fast_pages.iter().zip(&dense_pages) {
        assert_eq!(fast.pages[0].unwrap().stats, dense.pages[0].unwrap().stats);
    }
}

/// Every bit of the file stands under a checksum that a reader verifies before it believes the bit.
#[test]
fn damage_is_refused() {
    damage::all_refused(&exemplar().write(false).0, read);
}

#[test]
fn an_untouched_section_is_not_verified() {
    let (mut bytes, ..) = exemplar().write(false);
    bytes[HEAD_LEN] ^= 1;
    let reader = ChunkReader::open(&bytes).unwrap();
    let columns = reader.columns().unwrap();
    assert!(reader.page(&columns[0].pages[0].unwrap()).is_err());
    assert!(reader.page(&columns[1].pages[0].unwrap()).is_ok());
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Where the sections stand, in the order of the root.
fn sections(bytes: &[u8]) -> [std::ops::Range<usize>; 3] {
    let root = bytes.len() - TAIL_LEN - ROOT_LEN;
    [68, 88, 108].map(|at| {
        let (start, len) = (u32_at(bytes, root + at), u32_at(bytes, root + at + 8));
        start..start + len
    })
}

/// Makes the checksums of sections and root right.
fn reseal(bytes: &mut [u8]) {
    let tail = bytes.len() - TAIL_LEN;
    for (section, at) in sections(bytes).into_iter().zip([68, 88, 108]) {
        let crc = crc32(&bytes[section]);
        bytes[tail - ROOT_LEN + at + 16..][..4].copy_from_slice(&crc.to_le_bytes());
    }
    let crc = crc32(&bytes[tail - ROOT_LEN..tail]);
    bytes[tail + 4..tail + 8].copy_from_slice(&crc.to_le_bytes());
}

/// Behind checksums that are right, a section may say anything: it is refused, or names what the file has.
#[test]
fn sealed_damage_never_panics() {
    let series = |reader: &ChunkReader<'_>| {
        let Ok(series) = reader.series() else { return };
        assert_eq!(series.iter().map(|run| run.rows).sum::<u64>(), reader.root().rows);
    };
    let pages = |reader: &ChunkReader<'_>| {
        for meta in reader.columns().iter().flatten().flat_map(|column| column.pages.iter().flatten()) {
            let Ok(page) = reader.page(meta) else { continue };
            assert_eq!(
                (page.rows(), page.present()),
                (meta.stats.rows as usize, meta.stats.present as usize)
            );
        }
    };
    let runs = |reader: &ChunkReader<'_>| drop(reader.run_statistics(&reader.series().unwrap(), |_| true));
    let checks: [&dyn Fn(&ChunkReader<'_>); 3] = [&series, &pages, &runs];
    for (bytes, ..) in [exemplar().write(false), long_exemplar().write(false)] {
        let mut flipped = bytes.clone();
        for (section, check) in sections(&bytes).into_iter().zip(checks) {
            for at in section {
                flipped[at] ^= 1 << (at % 8);
                reseal(&mut flipped);
                check(&ChunkReader::open(&flipped).unwrap());
                flipped[at] = bytes[at];
            }
        }
        reseal(&mut flipped);
        assert!(flipped == bytes);
    }
}

/// Be all checksums right: what the series and the row groups say fits each other and the root.
#[test]
fn directories_that_no_writer_makes_are_refused() {
    let key = |tag: &str| SeriesKey::encode([Some(tag)]);
    let series = vec![(key("a"), vec![5]), (key("b"), vec![5, 6])];
    let columns = vec![(ColumnId(1), Column::of(Values::Float(vec![0.5; 3])))];
    let (bytes, pages, _) = Content { series, columns, groups: vec![2, 1] }.write(false);
    let behind = |wanted: &[u8]| {
        wanted.len() + bytes.windows(wanted.len()).position(|window| window == wanted).unwrap()
    };
    // Where a series has its rows, and where the first page of a column has.
    let (a, b) = (behind(key("a").as_bytes()), behind(key("b").as_bytes()));
    let [time, float] = [0, 1].map(|column: usize| {
        let page = pages[column].pages[0].unwrap();
        behind(&[&page.len.to_le_bytes()[..], &page.offset.to_le_bytes(), &page.crc.to_le_bytes()].concat())
    });
    assert_eq!([bytes[b - 3], bytes[a], bytes[b], bytes[time], bytes[float]], [b'b', 1, 2, 2, 2]);
    let refused = |changes: &[(usize, u8)]| {
        let mut bytes = bytes.clone();
        changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
        reseal(&mut bytes);
        let reader = ChunkReader::open(&bytes).unwrap();
        reader.series().is_err() || reader.columns().is_err()
    };
    assert!(!refused(&[]) && !refused(&[(a, 2), (b, 1)]));
    assert!(refused(&[(b - 3, b'a')]), "a key twice");
    assert!(refused(&[(a, 2)]), "more rows than in the chunk");
    assert!(refused(&[(b, 1)]), "fewer rows than in the chunk");
    assert!(refused(&[(a, 3), (b, 0)]), "a series without rows");
    assert!(refused(&[(time, 1), (time + 4, 1), (float, 1)]), "row groups with fewer rows than the chunk");
    assert!(refused(&[(time + 4, 1)]), "a row without a time");
    assert!(refused(&[(time - 17, PhysicalType::UInt64 as u8)]), "times of another type");
    assert!(refused(&[(float, 1)]), "a page with fewer rows than its row group");
    assert!(refused(&[(float, 3)]), "a page with more rows than its row group");
}

#[test]
fn a_page_that_is_not_as_the_directory_says_is_refused() {
    let (bytes, columns, _) = exemplar().write(false);
    let reader = ChunkReader::open(&bytes).unwrap();
    let meta = columns[3].pages[0].unwrap();
    assert!(reader.page(&meta).is_ok());
    let (mut kind, mut rows, mut present) = (meta, meta, meta);
    kind.kind = PhysicalType::Int64;
    rows.stats.rows += 1;
    present.stats.present -= 1;
    for stated in [kind, rows, present] {
        assert!(reader.page(&stated).is_err(), "{stated:?}");
    }
}

#[test]
fn another_version_is_refused() {
    let (bytes, ..) = exemplar().write(false);
    let root = bytes.len() - TAIL_LEN - ROOT_LEN;
    let refused = |at: usize, byte: u8, who: &str| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        reseal(&mut bytes);
        let error = ChunkReader::open(&bytes).unwrap_err();
        assert!(error.to_string().contains(who), "{error}");
    };
    for at in [8, root] {
        refused(at, 0, "development build");
        refused(at, 2, "newer sonde");
    }
    refused(root + 4, 1, "newer sonde");
}

/// Rows of other series in between, other times, or fewer rows than the series have, are mistakes of the caller.
#[test]
fn a_writer_is_given_rows_in_order() {
    let push = |groups: &[(&str, &[i64])]| {
        let groups: Vec<(String, Vec<i64>)> =
            groups.iter().map(|(key, times)| ((*key).to_owned(), times.to_vec())).collect();
        std::panic::catch_unwind(move || {
            let mut writer = ChunkWriter::new(ChunkId(1), TableId(1), RANGE, SEQ, Profile::Fast);
            for (key, times) in groups {
                let id = SeriesId(key.as_bytes()[0].into());
                let series =
                    SeriesRows { id, key: SeriesKey::encode([Some(key.as_str())]), rows: times.len() };
                writer.push_group(times, &[], &[series]);
            }
        })
        .is_ok()
    };
    assert!(push(&[("a", &[1, 2]), ("a", &[2, 3]), ("b", &[0])]));
    assert!(!push(&[("a", &[2, 1])]), "times that go back");
    assert!(!push(&[("a", &[1, 3, 2, 4])]), "times that go back between the first and the last");
    assert!(!push(&[("a", &[1, 2]), ("a", &[1])]), "times that go back in the next row group");
    assert!(!push(&[("b", &[1]), ("a", &[1])]), "keys that go back");
    assert!(!push(&[("a", &[])]), "no rows");
}
