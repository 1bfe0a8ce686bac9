//! Chunk files, and through them the checksums of pages.

use proptest::prelude::*;
use sonde_storage_format::limits::{PAGE_ALIGN, ROOT_BYTES, ROW_GROUP_ROWS};
use sonde_storage_format::{
    Cell, ChunkId, ChunkReader, ChunkWriter, Column, ColumnId, ColumnPages, PageStats, PhysicalType, Result,
    SeqNo, SeqRange, SeriesId, SeriesKey, SeriesRun, TIME_COLUMN, TableId, TimeRange, Timestamp, Values,
    crc32,
};

use crate::random::Random;
use crate::same::{exact, exact_all};
use crate::strategy::{self, FLOATS, KINDS};
use crate::{damage, golden, random};

const HEAD_LEN: usize = 64;
const TAIL_LEN: usize = 16;
const ROOT_LEN: usize = 108;
const RANGE: TimeRange = TimeRange { start: Timestamp::MIN, end: Timestamp::MAX };
const SEQ: SeqRange = SeqRange { first: SeqNo(10), last: SeqNo(20) };

/// What a chunk file holds.
#[derive(Clone, Debug)]
struct Content {
    /// Keys in order, each with the times of its rows.
    series: Vec<(SeriesKey, Vec<i64>)>,
    /// One cell per row of all series.
    columns: Vec<(ColumnId, Column)>,
}

impl Content {
    fn times(&self) -> Vec<i64> {
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

    /// The file; `drain` asks for its bytes piece by piece.
    fn write(&self, drain: bool) -> (Vec<u8>, Vec<ColumnPages>) {
        let times = self.times();
        let mut bytes = Vec::new();
        let mut writer = ChunkWriter::new(ChunkId(41), TableId(7), RANGE, SEQ);
        for (i, times) in times.chunks(ROW_GROUP_ROWS).enumerate() {
            let rows = i * ROW_GROUP_ROWS..i * ROW_GROUP_ROWS + times.len();
            let slice = |(id, column): &(ColumnId, Column)| (*id, column.slice(rows.clone()));
            writer.push_group(times.to_vec(), &self.columns.iter().map(slice).collect::<Vec<_>>());
            if drain {
                bytes.extend(writer.drain());
            }
        }
        self.runs().into_iter().for_each(|run| writer.push_series(run));
        let (rest, columns) = writer.finish();
        bytes.extend(rest);
        (bytes, columns)
    }
}

/// Everything that a file says, every checksum verified.
struct Everything {
    series: Vec<SeriesRun>,
    columns: Vec<ColumnPages>,
    /// Per column, its cells in all row groups.
    cells: Vec<(ColumnId, Column)>,
}

fn read(bytes: &[u8]) -> Result<Everything> {
    let reader = ChunkReader::open(bytes)?;
    let (series, columns) = (reader.series()?, reader.columns()?);
    let mut cells = Vec::new();
    for ColumnPages { id, kind, pages } in &columns {
        let mut all = Column::new(*kind);
        for (page, time) in pages.iter().zip(&columns[0].pages) {
            let rows = time.unwrap().stats.rows as usize;
            let column = match page {
                Some(meta) => reader.page(meta)?,
                None => Column::absent(*kind, rows),
            };
            // Without checksums that fit (see `fuzz_chunk`), directory and page may disagree on the type.
            if column.values.kind() == *kind {
                all.extend_from(&column, 0..column.len());
            }
        }
        cells.push((*id, all));
    }
    Ok(Everything { series, columns, cells })
}

fn check_round_trip(content: &Content) {
    let (bytes, written) = content.write(false);
    assert_eq!(content.write(true), (bytes.clone(), written.clone()), "drained or not");
    let reader = ChunkReader::open(&bytes).unwrap();
    let (root, rows) = (reader.root(), content.times().len());
    assert_eq!((root.id, root.table, root.range, root.seq), (ChunkId(41), TableId(7), RANGE, SEQ));
    assert_eq!((root.rows, root.series), (rows as u64, content.series.len() as u64));
    let found = read(&bytes).unwrap();
    assert_eq!(found.series, content.runs());
    assert_eq!(found.columns, written);

    let mut expected = vec![(TIME_COLUMN, Column::of(Values::Int(content.times())))];
    let anything = |column: &Column| PageStats::of(column).present + PageStats::of(column).nulls > 0;
    expected.extend(content.columns.iter().filter(|(_, column)| anything(column)).cloned());
    // A map of cells that are all values stays a map within its page only.
    let dense = |columns: &[(ColumnId, Column)]| {
        let rebuild = |(id, column): &(ColumnId, Column)| {
            let mut rebuilt = Column::new(column.values.kind());
            (0..column.len()).for_each(|row| rebuilt.extend_from(column, row..row + 1));
            (*id, rebuilt)
        };
        exact_all(&columns.iter().map(rebuild).collect::<Vec<_>>())
    };
    let (mut found_cells, mut expected_cells) = (dense(&found.cells), dense(&expected));
    found_cells.sort_by_key(|(id, _)| *id);
    expected_cells.sort_by_key(|(id, _)| *id);
    assert_eq!(found_cells, expected_cells);

    for ColumnPages { id, pages, .. } in &found.columns {
        assert_eq!(pages.len(), rows.div_ceil(ROW_GROUP_ROWS));
        let column = &found.cells.iter().find(|(other, _)| other == id).unwrap().1;
        for (group, meta) in pages.iter().enumerate() {
            let start = group * ROW_GROUP_ROWS;
            let rows = start..(start + ROW_GROUP_ROWS).min(column.len());
            let Some(meta) = meta else { continue };
            assert!(
                meta.offset.is_multiple_of(PAGE_ALIGN as u64)
                    && (meta.len as usize).is_multiple_of(PAGE_ALIGN)
            );
            assert_eq!(meta.stats, PageStats::of(&column.slice(rows)), "column {id}, row group {group}");
        }
    }
}

/// Two series, and a column for each codec and cell mode; a few KB.
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
    ];
    Content {
        series,
        columns: columns.into_iter().zip(1..).map(|(column, id)| (ColumnId(id), column)).collect(),
    }
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
    Content { series, columns: (1..9).map(column).collect() }
}

#[test]
fn golden() {
    let (bytes, _) = exemplar().write(false);
    assert!(bytes.len() < 5000, "{} bytes are many to flip", bytes.len());
    golden::check("chunk", &bytes);
    check_round_trip(&exemplar());
}

#[test]
fn sizes() {
    let key = SeriesKey::encode([]);
    let (bytes, columns) = Content { series: vec![(key, vec![5])], columns: Vec::new() }.write(false);
    assert_eq!(bytes[..HEAD_LEN], [&b"SONDECHK"[..], &[0; 56]].concat());
    assert_eq!(bytes[bytes.len() - 8..], *b"SONDECHK");
    let root_len = u32::from_le_bytes(bytes[bytes.len() - TAIL_LEN..][..4].try_into().unwrap()) as usize;
    assert_eq!(root_len, ROOT_LEN);
    const { assert!(ROOT_LEN <= ROOT_BYTES) };
    // Id, key length, rows, two times; groups, columns, the time column's id and type, one entry of 49 bytes.
    let (series, pages) = (2 + 1 + 1 + 16, 1 + 1 + 4 + 1 + 49);
    assert_eq!(bytes.len(), HEAD_LEN + PAGE_ALIGN + series + pages + ROOT_LEN + TAIL_LEN);
    assert_eq!(columns[0].pages[0].unwrap().offset, HEAD_LEN as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn round_trip(seed: u64, rows in proptest::collection::vec(1..60_usize, 1..8), long: bool) {
        let mut rows = rows;
        if long {
            rows[0] = 1024;
        }
        check_round_trip(&content(&mut Random::new(seed), &rows));
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
    let content = Content { series, columns };
    check_round_trip(&content);
    let (bytes, _) = content.write(false);
    let columns = ChunkReader::open(&bytes).unwrap().columns().unwrap();
    let there: Vec<_> =
        columns.iter().map(|column| (column.id.0, [0, 1].map(|i| column.pages[i].is_some()))).collect();
    assert_eq!(there, [(0, [true, true]), (3, [true, false]), (1, [true, true]), (2, [false, true])]);
}

/// Every bit of the file stands under a checksum that a reader verifies before it believes the bit.
#[test]
fn damage_is_refused() {
    damage::all_refused(&exemplar().write(false).0, read);
}

#[test]
fn an_untouched_section_is_not_verified() {
    let (mut bytes, _) = exemplar().write(false);
    bytes[HEAD_LEN] ^= 1;
    let reader = ChunkReader::open(&bytes).unwrap();
    let columns = reader.columns().unwrap();
    assert!(reader.page(&columns[0].pages[0].unwrap()).is_err());
    assert!(reader.page(&columns[1].pages[0].unwrap()).is_ok());
}

#[test]
fn a_later_version_is_refused() {
    let (bytes, _) = exemplar().write(false);
    let root = bytes.len() - TAIL_LEN - ROOT_LEN;
    for at in [8, root, root + 4] {
        let mut bytes = bytes.clone();
        bytes[at] = 1;
        reseal(&mut bytes);
        let error = ChunkReader::open(&bytes).unwrap_err();
        assert!(error.to_string().contains("newer sonde"), "{error}");
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(bytes.get(at..)?.get(..4)?.try_into().ok()?) as usize)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u64::from_le_bytes(bytes.get(at..)?.get(..8)?.try_into().ok()?) as usize)
}

/// Writes the checksum of `bytes[start..start + len]` to `at`.
fn seal(bytes: &mut [u8], at: usize, start: usize, len: usize) -> Option<()> {
    let crc = crc32(bytes.get(start..)?.get(..len)?);
    bytes.get_mut(at..)?.get_mut(..4)?.copy_from_slice(&crc.to_le_bytes());
    Some(())
}

/// Makes the checksums of the pages right, as far as the page directory still says where they are.
fn reseal_pages(bytes: &mut [u8], directory: usize) -> Option<()> {
    let (groups, columns) = (*bytes.get(directory)?, *bytes.get(directory + 1)?);
    let mut at = directory + 2;
    for _ in 0..columns {
        at += 5;
        for _ in 0..groups {
            let len = u32_at(bytes, at)?;
            if len > 0 {
                let offset = u64_at(bytes, at + 4)?;
                let _ = seal(bytes, at + 12, offset, len);
            }
            at += if len > 0 { 49 } else { 4 };
        }
    }
    Some(())
}

/// Makes all checksums right, from the pages to the root, as far as the file still says where they are.
fn reseal(bytes: &mut [u8]) {
    let Some(tail) = bytes.len().checked_sub(TAIL_LEN) else { return };
    let root = tail.saturating_sub(u32_at(bytes, tail).unwrap());
    let section = |bytes: &[u8], at: usize| Some((u64_at(bytes, at)?, u64_at(bytes, at + 8)?));
    if let Some((pages, len)) = section(bytes, root + 88) {
        let _ = reseal_pages(bytes, pages);
        let _ = seal(bytes, root + 104, pages, len);
    }
    if let Some((series, len)) = section(bytes, root + 68) {
        let _ = seal(bytes, root + 84, series, len);
    }
    let _ = seal(bytes, tail + 4, root, tail - root);
}

/// Reads whatever can be read; nothing may panic.
fn decode(bytes: &[u8]) {
    let Ok(reader) = ChunkReader::open(bytes) else { return };
    if let Ok(series) = reader.series() {
        assert!(series.iter().map(|run| run.rows).sum::<u64>() == reader.root().rows);
    }
    for column in reader.columns().unwrap_or_default() {
        for meta in column.pages.iter().flatten() {
            if let Ok(page) = reader.page(meta) {
                assert_eq!(page.len(), meta.stats.rows as usize);
                let _ = exact(&page);
            }
        }
    }
}

#[test]
fn resealing_changes_nothing_that_is_whole() {
    let (bytes, _) = exemplar().write(false);
    let mut sealed = bytes.clone();
    reseal(&mut sealed);
    assert!(sealed == bytes);
}

#[test]
fn fuzz_chunk() {
    let mut random = Random::new(8);
    let mut exemplars = vec![exemplar().write(false).0];
    exemplars.extend((0..6).map(|i| content(&mut random, &[1, 30 + i]).write(false).0));
    random::fuzz(&exemplars, |bytes| reseal(bytes), decode);
}
