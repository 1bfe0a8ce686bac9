#![doc = include_str!("../../docs/format/page.md")]
//!
//! # Invariants
//! - The vector grid lies on present values: vector `i` holds present values `1024 i ..` up to the next 1,024.
//! - A page decodes without any other page; a text page carries its own dictionary.

use crate::codec::{self, CodecId, Profile, dictionary};
use crate::column::{Cell, Cells, Column, Texts, Values};
use crate::cursor::{Cursor, Result, Writer};
use crate::ids::PhysicalType;
use crate::limits::{PAGE_ALIGN, PLAIN_BYTES, ROW_GROUP_ROWS, VECTOR_VALUES};

/// Every row has a value; no map follows.
const CELLS_VALUES: u8 = 0;
/// Two bits per row follow.
const CELLS_MIXED: u8 = 1;
/// Vectors of 1,024 present values each follow.
const GRID_VECTORS: u8 = 0;
/// All present values follow as one unit.
const GRID_UNIT: u8 = 1;

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
    encode_vectors(profile, &dense, times, &mut writer);
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

/// The vectors of a page, or its one unit, and where each ends.
#[derive(Default)]
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

    fn of_vectors<T>(values: &[T], encode: impl FnMut(&[T], &mut Vec<u8>)) -> Self {
        let mut body = Self::default();
        each_vector(values, &mut body.bytes, &mut body.ends, encode);
        body
    }

    /// Runs over the whole page instead, where they take less.
    fn or_runs(self, words: impl Iterator<Item = u64>) -> Self {
        let words: Vec<u64> = words.collect();
        if words.len() <= VECTOR_VALUES {
            return self;
        }
        match codec::encode_runs(&words, self.len() - 4) {
            Some(bytes) => Self { grid: GRID_UNIT, ends: vec![bytes.len() as u32], bytes, ..Self::default() },
            None => self,
        }
    }
}

fn encode_body(values: &Values, times: bool) -> Body {
    match values {
        Values::Float(values) => encode_float_body(values),
        Values::Int(values) => Body::of_vectors(values, |vector, out| codec::encode_ints(vector, times, out))
            .or_runs(values.iter().map(|value| codec::to_word(*value))),
        Values::UInt(values) => Body::of_vectors(values, codec::encode_uints).or_runs(values.iter().copied()),
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

fn encode_float_body(values: &[f64]) -> Body {
    let page = codec::FloatPage::of(values);
    let encode = |page: &codec::FloatPage| {
        Body::of_vectors(values, |vector, out| codec::encode_floats(vector, page, out))
    };
    if page.dictionary.is_empty() {
        return encode(&page);
    }
    let mut coded = encode(&page);
    coded.dictionary = dictionary::compress(&dictionary::encode_float_entries(&page.dictionary));
    let plain = encode(&page.without_dictionary());
    if coded.len() < plain.len() { coded } else { plain }
}

/// The values as one unit of the dense profile, where it pays.
fn encode_unit(values: &Values, vectors: usize) -> Option<Body> {
    let bytes = match values {
        Values::Float(values) => codec::dense::encode_floats(values, vectors)?,
        Values::Int(values) => {
            let words: Vec<u64> = values.iter().map(|value| codec::to_word(*value)).collect();
            codec::dense::encode_words(&words, vectors)?
        }
        Values::UInt(values) => codec::dense::encode_words(values, vectors)?,
        Values::Bool(_) | Values::Text(_) => return None,
    };
    Some(Body { grid: GRID_UNIT, ends: vec![bytes.len() as u32], bytes, ..Body::default() })
}

fn encode_vectors(profile: Profile, values: &Values, times: bool, writer: &mut Writer) {
    let mut body = encode_body(values, times);
    if profile == Profile::Dense
        && let Some(unit) = encode_unit(values, body.len())
    {
        body = unit;
    }
    writer.u8(body.grid);
    writer.u32(body.dictionary.len() as u32);
    writer.put(&body.dictionary);
    body.ends.iter().for_each(|&end| writer.u32(end));
    writer.put(&body.bytes);
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

/// How a page is laid out, without its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageLayout {
    /// Rows of the page.
    pub rows: usize,
    /// Rows that have a value.
    pub present: usize,
    /// Bytes of the dictionary.
    pub dictionary: usize,
    /// Whether all values are one unit.
    pub unit: bool,
    /// Each codec that occurs: of how many vectors, and their bytes.
    pub codecs: Vec<(CodecId, usize, usize)>,
}

impl PageLayout {
    /// Reads the layout of a page whose checksum was verified.
    pub fn of(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new("page", bytes);
        let head = Head::read(&mut cursor)?;
        let (unit, whole) = read_grid(&mut cursor, head.kind, head.present)?;
        let dictionary = cursor.u32()? as usize;
        cursor.take(dictionary)?;
        let mut vectors = Vectors::read(&mut cursor, unit, head.present)?;
        let mut codecs: Vec<(CodecId, usize, usize)> = Vec::new();
        let mut lens = Vec::new();
        for end in std::mem::take(&mut vectors.ends) {
            lens.push(end.saturating_sub(vectors.start));
            vectors.start = end;
        }
        for len in lens {
            let mut vector = Cursor::new("vector", cursor.take(len)?);
            let codec = codec::read_codec(&mut vector)?;
            match codecs.iter_mut().find(|(known, ..)| *known == codec) {
                Some((_, count, bytes)) => (*count, *bytes) = (*count + 1, *bytes + len),
                None => codecs.push((codec, 1, len)),
            }
        }
        Ok(Self { rows: head.rows, present: head.present, dictionary, unit: whole, codecs })
    }
}

/// What a page says before its vectors.
struct Head {
    kind: PhysicalType,
    rows: usize,
    present: usize,
    cells: Cells,
}

impl Head {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self> {
        let kind = cursor.u8()?;
        let kind =
            PhysicalType::from_byte(kind).ok_or_else(|| cursor.invalid("a known type", kind.into()))?;
        let cells_mode = cursor.u8()?;
        let rows = cursor.u32()? as usize;
        let present = cursor.u32()? as usize;
        if rows > ROW_GROUP_ROWS || present > rows {
            return Err(cursor.invalid("at most 65,536 rows and no more values", rows as u64));
        }
        let cells = match cells_mode {
            CELLS_VALUES if present == rows => Cells::Values(rows),
            CELLS_MIXED => decode_cells(cursor, rows, present)?,
            other => return Err(cursor.invalid("cells of a known kind", other.into())),
        };
        Ok(Self { kind, rows, present, cells })
    }
}

/// How many values each vector has, and whether that is all of them as one unit.
fn read_grid(cursor: &mut Cursor<'_>, kind: PhysicalType, present: usize) -> Result<(usize, bool)> {
    let numeric = matches!(kind, PhysicalType::Float64 | PhysicalType::Int64 | PhysicalType::UInt64);
    match cursor.u8()? {
        GRID_VECTORS => Ok((VECTOR_VALUES, false)),
        GRID_UNIT if present > 0 && numeric => Ok((present, true)),
        other => Err(cursor.invalid("a known grid, or one that the type has", other.into())),
    }
}

/// Decodes a page whose checksum was verified. Rows that are absent or NULL hold the type's default.
pub fn decode_page(bytes: &[u8]) -> Result<Column> {
    let mut cursor = Cursor::new("page", bytes);
    let Head { kind, present, cells, .. } = Head::read(&mut cursor)?;
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
    let (unit, whole) = read_grid(cursor, kind, present)?;
    let read_words = if whole { codec::dense::decode_words } else { codec::decode_words };
    let dictionary_len = cursor.u32()? as usize;
    let dictionary = match dictionary_len {
        0 => Vec::new(),
        len => dictionary::decompress(&mut Cursor::new("dictionary", cursor.take(len)?), PLAIN_BYTES)?,
    };
    let vectors = Vectors::read(cursor, unit, present)?;
    Ok(match kind {
        PhysicalType::Float64 => {
            let entries =
                if dictionary_len == 0 { Vec::new() } else { dictionary::decode_float_entries(&dictionary)? };
            let mut scratch = codec::alp::Scratch::default();
            let decode = |vector: &mut Cursor<'_>, out: &mut [f64]| match whole {
                true => codec::dense::decode_floats(vector, out),
                false => codec::decode_floats_in(vector, &entries, &mut scratch, out),
            };
            Values::Float(vectors.decode(cursor, decode)?)
        }
        PhysicalType::Int64 => {
            let words: Vec<u64> = vectors.decode(cursor, read_words)?;
            Values::Int(words.into_iter().map(codec::from_word).collect())
        }
        PhysicalType::UInt64 => Values::UInt(vectors.decode(cursor, read_words)?),
        PhysicalType::Boolean => {
            let mut values = Vec::with_capacity(present);
            vectors.each(cursor, |vector, n| codec::decode_bools(vector, n, &mut values))?;
            Values::Bool(values)
        }
        PhysicalType::Text => {
            let entries =
                if dictionary_len == 0 { Vec::new() } else { dictionary::decode_entries(&dictionary)? };
            let mut texts = Texts::default();
            vectors.each(cursor, |vector, n| codec::decode_texts(vector, n, &entries, &mut texts))?;
            Values::Text(texts)
        }
    })
}

/// The vectors of a page, one after the other.
struct Vectors {
    ends: Vec<usize>,
    /// Present values in each but the last.
    unit: usize,
    left: usize,
    start: usize,
}

impl Vectors {
    /// Reads where they end.
    fn read(cursor: &mut Cursor<'_>, unit: usize, present: usize) -> Result<Self> {
        let count = present.div_ceil(unit);
        let mut ends = Vec::with_capacity(count);
        for _ in 0..count {
            ends.push(cursor.u32()? as usize);
        }
        Ok(Self { ends, unit, left: present, start: 0 })
    }

    /// Gives each vector's bytes, and how many values it has, to `read`.
    fn each(
        mut self,
        cursor: &mut Cursor<'_>,
        mut read: impl FnMut(&mut Cursor<'_>, usize) -> Result<()>,
    ) -> Result<()> {
        for end in std::mem::take(&mut self.ends) {
            let Some(len) = end.checked_sub(self.start) else {
                return Err(cursor.invalid("vector ends in ascending order", end as u64));
            };
            let values = self.left.min(self.unit);
            read(&mut Cursor::new("vector", cursor.take(len)?), values)?;
            self.start = end;
            self.left -= values;
        }
        Ok(())
    }

    /// Decodes every vector into its place. The values may be many times the bytes, but no more than a page has rows.
    fn decode<T: Copy + Default>(
        self,
        cursor: &mut Cursor<'_>,
        mut decode: impl FnMut(&mut Cursor<'_>, &mut [T]) -> Result<()>,
    ) -> Result<Vec<T>> {
        let mut values = vec![T::default(); self.left];
        let mut rest = values.as_mut_slice();
        self.each(cursor, |vector, n| {
            let (now, behind) = std::mem::take(&mut rest).split_at_mut(n);
            rest = behind;
            decode(vector, now)
        })?;
        Ok(values)
    }
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
