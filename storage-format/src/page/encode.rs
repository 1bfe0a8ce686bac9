//! Writing a page.

use std::borrow::Cow;

use super::{CELLS_ABSENT, CELLS_BOTH, CELLS_NULL, CELLS_VALUES, GRID_UNIT, GRID_VECTORS};
use crate::codec::dictionary::{self, WordDictionary};
use crate::codec::float::FloatPage;
use crate::codec::{self, Codes, Profile, dense};
use crate::column::{Cell, Cells, Column, Texts, Values};
use crate::cursor::Writer;
use crate::limits::{PAGE_ALIGN, PAGE_TEXT_BYTES, ROW_GROUP_ROWS, VECTOR_VALUES};

/// Encodes the rows of one row group in the fast profile; `times` allows the codecs for timestamps.
#[must_use]
pub fn encode_page(column: &Column, times: bool) -> Vec<u8> {
    encode_page_as(Profile::Fast, column, times)
}

/// Encodes the rows of one row group; `times` allows the codecs for timestamps.
#[must_use]
pub fn encode_page_as(profile: Profile, column: &Column, times: bool) -> Vec<u8> {
    let rows = column.len();
    assert!(rows <= ROW_GROUP_ROWS, "a page holds at most {ROW_GROUP_ROWS} rows, not {rows}");
    let text = column.values.texts().map_or(0, Texts::byte_len);
    assert!(text <= PAGE_TEXT_BYTES, "a page holds at most {PAGE_TEXT_BYTES} bytes of text, not {text}");
    let dense = dense_values(column);
    let (cells, map) = encode_cells(&column.cells);
    let mut body = encode_body(&dense, times);
    if profile == Profile::Dense
        && let Some(unit) = encode_unit(&dense, body.len())
    {
        body = unit;
    }
    let mut writer = Writer::new();
    writer.put(&[column.values.kind() as u8, cells, body.grid, 0]);
    writer.u32(rows as u32);
    writer.u32(dense.len() as u32);
    writer.u32(map.len() as u32);
    writer.u32(body.dictionary.len() as u32);
    writer.put(&map);
    writer.put(&body.dictionary);
    body.ends.iter().for_each(|&end| writer.u32(end));
    writer.put(&body.bytes);
    writer.pad(PAGE_ALIGN);
    writer.into_bytes()
}

/// The values without the slots of rows that have none.
fn dense_values(column: &Column) -> Cow<'_, Values> {
    match &column.cells {
        Cells::Values(_) => Cow::Borrowed(&column.values),
        Cells::Mixed(cells) => {
            let present = cells.iter().enumerate().filter(|(_, cell)| **cell == Cell::Value);
            let rows: Vec<usize> = present.map(|(row, _)| row).collect();
            Cow::Owned(column.values.gather(&rows))
        }
    }
}

/// What rows without a value are, and the map that tells which rows that are.
fn encode_cells(cells: &Cells) -> (u8, Vec<u8>) {
    let Cells::Mixed(cells) = cells else { return (CELLS_VALUES, Vec::new()) };
    let has = |wanted: Cell| cells.contains(&wanted);
    let mode = match (has(Cell::Null), has(Cell::Absent)) {
        (false, false) => return (CELLS_VALUES, Vec::new()),
        (true, false) => CELLS_NULL,
        (false, true) => CELLS_ABSENT,
        (true, true) => CELLS_BOTH,
    };
    let mut map = Vec::new();
    put_bools(cells.iter().map(|cell| *cell == Cell::Value), &mut map);
    if mode == CELLS_BOTH {
        let empty = cells.iter().filter(|cell| **cell != Cell::Value);
        put_bools(empty.map(|cell| *cell == Cell::Null), &mut map);
    }
    (mode, map)
}

fn put_bools(bools: impl Iterator<Item = bool>, map: &mut Vec<u8>) {
    let start = map.len();
    map.extend_from_slice(&[0; 4]);
    codec::encode_bools(&bools.collect::<Vec<_>>(), map);
    let len = (map.len() - start - 4) as u32;
    if let Some(slot) = map.get_mut(start..start + 4) {
        slot.copy_from_slice(&len.to_le_bytes());
    }
}

/// The vectors of a page, or its one unit, and where each ends.
struct Body {
    dictionary: Vec<u8>,
    grid: u8,
    ends: Vec<u32>,
    bytes: Vec<u8>,
}

impl Body {
    fn len(&self) -> usize {
        self.dictionary.len() + 4 * self.ends.len() + self.bytes.len()
    }

    fn of_vectors<T>(values: &[T], mut encode: impl FnMut(&[T], &mut Vec<u8>)) -> Self {
        let mut body =
            Self { dictionary: Vec::new(), grid: GRID_VECTORS, ends: Vec::new(), bytes: Vec::new() };
        for vector in values.chunks(VECTOR_VALUES) {
            encode(vector, &mut body.bytes);
            body.ends.push(body.bytes.len() as u32);
        }
        body
    }

    fn of_unit(bytes: Vec<u8>) -> Self {
        Self { dictionary: Vec::new(), grid: GRID_UNIT, ends: vec![bytes.len() as u32], bytes }
    }
}

/// The vectors of a page that has few distinct words, some of them as codes; without codes where these save less than
/// the dictionary takes.
fn with_codes(
    words: impl ExactSizeIterator<Item = u64> + Clone,
    mut encode: impl FnMut(Option<&mut Codes>) -> Body,
) -> Body {
    let Some(dictionary) = WordDictionary::of(words) else { return encode(None) };
    let mut codes = Codes { dictionary, saved: 0 };
    let coded = encode(Some(&mut codes));
    let dictionary = codes.dictionary.to_bytes();
    match codes.saved {
        0 => coded,
        saved if saved <= dictionary.len() => encode(None),
        _ => Body { dictionary, ..coded },
    }
}

fn encode_body(values: &Values, times: bool) -> Body {
    match values {
        Values::Float(values) => encode_floats(values),
        Values::Int(values) => {
            let words: Vec<u64> = values.iter().map(|value| codec::to_word(*value)).collect();
            encode_words(&words, times)
        }
        Values::UInt(words) => encode_words(words, times),
        Values::Bool(values) => Body::of_vectors(values, codec::encode_bools),
        Values::Text(texts) => {
            let texts: Vec<&[u8]> = texts.iter().collect();
            let entries = dictionary::distinct(&texts);
            let mut body =
                Body::of_vectors(&texts, |vector, out| codec::encode_texts(vector, entries.as_deref(), out));
            if let Some(entries) = &entries {
                body.dictionary = dictionary::compress(&dictionary::encode_entries(entries));
            }
            body
        }
    }
}

fn encode_floats(values: &[f64]) -> Body {
    let mut page = FloatPage::of(values);
    with_codes(values.iter().map(|value| value.to_bits()), |mut codes| {
        Body::of_vectors(values, |vector, out| {
            page.encode(vector, codes.as_deref_mut(), out);
        })
    })
}

fn encode_words(words: &[u64], times: bool) -> Body {
    let paged = words.len() > VECTOR_VALUES;
    let mut sequence = Vec::new();
    if paged && codec::int::encode_sequence(words, &mut sequence) {
        return Body::of_unit(sequence);
    }
    let vectors = |mut codes: Option<&mut Codes>| {
        Body::of_vectors(words, |vector, out| {
            codec::encode_words(vector, times, codes.as_deref_mut(), out);
        })
    };
    // Times are too many to be few.
    let plain = if times { vectors(None) } else { with_codes(words.iter().copied(), vectors) };
    let runs = if paged { codec::encode_runs(words, plain.len() - 4) } else { None };
    match runs {
        Some(runs) => Body::of_unit(runs),
        None => plain,
    }
}

/// The values as one unit of the dense profile, where it pays.
fn encode_unit(values: &Values, vectors: usize) -> Option<Body> {
    let bytes = match values {
        Values::Float(values) => dense::encode_floats(values, vectors)?,
        Values::Int(values) => {
            let words: Vec<u64> = values.iter().map(|value| codec::to_word(*value)).collect();
            dense::encode_words(&words, vectors)?
        }
        Values::UInt(values) => dense::encode_words(values, vectors)?,
        Values::Bool(_) | Values::Text(_) => return None,
    };
    Some(Body::of_unit(bytes))
}
