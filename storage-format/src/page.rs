#![doc = include_str!("../../docs/format/page.md")]
//!
//! # Invariants
//! - The vector grid lies on present values: vector `i` holds present values `1024 i ..` up to the next 1,024.
//! - A page decodes without any other page; a text page carries its own dictionary.

use crate::codec::{self, dictionary};
use crate::column::{Cell, Cells, Column, Texts, Values};
use crate::cursor::{Cursor, Result, Writer};
use crate::ids::PhysicalType;
use crate::limits::{PAGE_ALIGN, PLAIN_BYTES, ROW_GROUP_ROWS, VECTOR_VALUES};

/// Every row has a value; no map follows.
const CELLS_VALUES: u8 = 0;
/// Two bits per row follow.
const CELLS_MIXED: u8 = 1;

/// What a page's cells amount to, kept in the chunk's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageStats {
    /// Rows of the page.
    pub rows: u32,
    /// Rows that have a value.
    pub present: u32,
    /// Rows that are NULL; the rest is absent.
    pub nulls: u32,
    /// Values that are NaN.
    pub nans: u32,
    /// Smallest and largest value that is not NaN, as the bits of the column's type; strings have none.
    pub range: Option<(u64, u64)>,
}

impl PageStats {
    /// Counts the cells of a column.
    #[must_use]
    pub fn of(column: &Column) -> Self {
        let rows = column.len();
        let count = |wanted| match &column.cells {
            Cells::Values(_) => 0,
            Cells::Mixed(cells) => cells.iter().filter(|cell| **cell == wanted).count(),
        };
        let (nulls, absent) = (count(Cell::Null), count(Cell::Absent));
        let mut nans = 0;
        let present = (0..rows).filter(|&row| column.cells.get(row) == Cell::Value);
        let range = match &column.values {
            Values::Float(values) => {
                let mut range: Option<(f64, f64)> = None;
                for value in present.filter_map(|row| values.get(row).copied()) {
                    if value.is_nan() {
                        nans += 1;
                    } else {
                        let (low, high) = range.unwrap_or((value, value));
                        range = Some((
                            if value < low { value } else { low },
                            if value > high { value } else { high },
                        ));
                    }
                }
                range.map(|(low, high)| (low.to_bits(), high.to_bits()))
            }
            Values::Int(values) => min_max(present.filter_map(|row| values.get(row).copied()))
                .map(|(low, high)| (low.cast_unsigned(), high.cast_unsigned())),
            Values::UInt(values) => min_max(present.filter_map(|row| values.get(row).copied())),
            Values::Bool(values) => {
                min_max(present.filter_map(|row| values.get(row).map(|&value| u64::from(value))))
            }
            Values::Text(_) => None,
        };
        Self { rows: rows as u32, present: (rows - nulls - absent) as u32, nulls: nulls as u32, nans, range }
    }
}

fn min_max<T: Copy + Ord>(values: impl Iterator<Item = T>) -> Option<(T, T)> {
    values.fold(None, |range, value| {
        let (low, high) = range.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

/// Encodes the rows of one row group; `times` allows the codecs for timestamps.
#[must_use]
pub fn encode_page(column: &Column, times: bool) -> Vec<u8> {
    let rows = column.len();
    assert!(rows <= ROW_GROUP_ROWS, "a page holds at most {ROW_GROUP_ROWS} rows, not {rows}");
    let dense = dense_values(column);
    let mut writer = Writer::new();
    writer.u8(column.values.kind() as u8);
    match &column.cells {
        Cells::Values(_) => writer.u8(CELLS_VALUES),
        Cells::Mixed(_) => writer.u8(CELLS_MIXED),
    }
    writer.u32(rows as u32);
    writer.u32(dense.len() as u32);
    if let Cells::Mixed(cells) = &column.cells {
        codec::bitpack::pack(cells.iter().map(|&cell| cell as u64), 2, writer.buffer());
    }
    encode_vectors(&dense, times, &mut writer);
    writer.pad(PAGE_ALIGN);
    writer.into_bytes()
}

fn dense_values(column: &Column) -> std::borrow::Cow<'_, Values> {
    match &column.cells {
        Cells::Values(_) => std::borrow::Cow::Borrowed(&column.values),
        Cells::Mixed(cells) => {
            let rows: Vec<usize> = cells
                .iter()
                .enumerate()
                .filter(|(_, cell)| **cell == Cell::Value)
                .map(|(row, _)| row)
                .collect();
            std::borrow::Cow::Owned(column.values.gather(&rows))
        }
    }
}

fn encode_vectors(values: &Values, times: bool, writer: &mut Writer) {
    let mut vectors = Vec::new();
    let mut ends = Vec::new();
    let mut dictionary = Vec::new();
    match values {
        Values::Float(values) => each_vector(values, &mut vectors, &mut ends, codec::encode_floats),
        Values::Int(values) => {
            each_vector(values, &mut vectors, &mut ends, |vector, out| {
                codec::encode_ints(vector, times, out)
            });
        }
        Values::UInt(values) => each_vector(values, &mut vectors, &mut ends, codec::encode_uints),
        Values::Bool(values) => each_vector(values, &mut vectors, &mut ends, codec::encode_bools),
        Values::Text(texts) => {
            let texts: Vec<&[u8]> = texts.iter().collect();
            let entries = dictionary::distinct(&texts);
            if let Some(entries) = &entries {
                dictionary = dictionary::compress(&dictionary::encode_entries(entries));
            }
            each_vector(&texts, &mut vectors, &mut ends, |vector, out| {
                codec::encode_texts(vector, entries.as_deref(), out);
            });
        }
    }
    writer.u32(dictionary.len() as u32);
    writer.put(&dictionary);
    ends.iter().for_each(|&end| writer.u32(end));
    writer.put(&vectors);
}

fn each_vector<T>(
    values: &[T],
    out: &mut Vec<u8>,
    ends: &mut Vec<u32>,
    mut encode: impl FnMut(&[T], &mut Vec<u8>),
) {
    for vector in values.chunks(VECTOR_VALUES) {
        encode(vector, out);
        ends.push(out.len() as u32);
    }
}

/// Decodes a page whose checksum was verified. Rows that are absent or NULL hold the type's default.
pub fn decode_page(bytes: &[u8]) -> Result<Column> {
    let mut cursor = Cursor::new("page", bytes);
    let kind = cursor.u8()?;
    let kind = PhysicalType::from_byte(kind).ok_or_else(|| cursor.invalid("a known type", kind.into()))?;
    let cells_mode = cursor.u8()?;
    let rows = cursor.u32()? as usize;
    let present = cursor.u32()? as usize;
    if rows > ROW_GROUP_ROWS || present > rows {
        return Err(cursor.invalid("at most 65,536 rows and no more values", rows as u64));
    }
    let cells = match cells_mode {
        CELLS_VALUES if present == rows => Cells::Values(rows),
        CELLS_MIXED => decode_cells(&mut cursor, rows, present)?,
        other => return Err(cursor.invalid("cells of a known kind", other.into())),
    };
    let dense = decode_vectors(&mut cursor, kind, present)?;
    let padding = cursor.rest();
    if padding.len() >= PAGE_ALIGN || padding.iter().any(|byte| *byte != 0) {
        return Err(cursor.invalid("fewer than 64 zero bytes of padding", padding.len() as u64));
    }
    Ok(Column { values: spread(dense, &cells), cells })
}

fn decode_cells(cursor: &mut Cursor<'_>, rows: usize, present: usize) -> Result<Cells> {
    let mut cells = Vec::with_capacity(rows);
    let mut unknown = false;
    codec::bitpack::unpack(cursor, rows, 2, |bits| match Cell::from_byte(bits as u8) {
        Some(cell) => cells.push(cell),
        None => unknown = true,
    })?;
    let values = cells.iter().filter(|cell| **cell == Cell::Value).count();
    if unknown || values != present {
        return Err(cursor.invalid("a cell map with as many values as stated", values as u64));
    }
    Ok(Cells::Mixed(cells))
}

fn decode_vectors(cursor: &mut Cursor<'_>, kind: PhysicalType, present: usize) -> Result<Values> {
    let dictionary_len = cursor.u32()? as usize;
    let dictionary = match dictionary_len {
        0 => Vec::new(),
        len => dictionary::decompress(&mut Cursor::new("dictionary", cursor.take(len)?), PLAIN_BYTES)?,
    };
    let entries = if dictionary_len == 0 { Vec::new() } else { dictionary::decode_entries(&dictionary)? };
    let count = present.div_ceil(VECTOR_VALUES);
    let mut ends = Vec::with_capacity(count);
    for _ in 0..count {
        ends.push(cursor.u32()? as usize);
    }
    let mut values = Values::new(kind);
    let (mut start, mut left) = (0, present);
    for end in ends {
        let Some(len) = end.checked_sub(start) else {
            return Err(cursor.invalid("vector ends in ascending order", end as u64));
        };
        let mut vector = Cursor::new("vector", cursor.take(len)?);
        let n = left.min(VECTOR_VALUES);
        match &mut values {
            Values::Float(out) => codec::decode_floats(&mut vector, n, out)?,
            Values::Int(out) => codec::decode_ints(&mut vector, n, out)?,
            Values::UInt(out) => codec::decode_uints(&mut vector, n, out)?,
            Values::Bool(out) => codec::decode_bools(&mut vector, n, out)?,
            Values::Text(out) => codec::decode_texts(&mut vector, n, &entries, out)?,
        }
        start = end;
        left -= n;
    }
    Ok(values)
}

/// Puts dense values into the slots of the rows that have one.
fn spread(dense: Values, cells: &Cells) -> Values {
    fn place<T: Copy + Default>(dense: &[T], cells: &[Cell]) -> Vec<T> {
        let mut next = dense.iter();
        let mut slot = |cell: &Cell| if *cell == Cell::Value { next.next().copied() } else { None };
        cells.iter().map(|cell| slot(cell).unwrap_or_default()).collect()
    }
    let Cells::Mixed(cells) = cells else { return dense };
    match dense {
        Values::Float(values) => Values::Float(place(&values, cells)),
        Values::Int(values) => Values::Int(place(&values, cells)),
        Values::UInt(values) => Values::UInt(place(&values, cells)),
        Values::Bool(values) => Values::Bool(place(&values, cells)),
        Values::Text(values) => {
            let mut next = values.iter();
            let slot = |cell: &Cell| if *cell == Cell::Value { next.next().unwrap_or_default() } else { &[] };
            Values::Text(cells.iter().map(slot).collect::<Texts>())
        }
    }
}
