//! Reading a page: all of it, some of its vectors or rows, or only how it is laid out.

use std::ops::Range;

use super::{CELLS_ABSENT, CELLS_BOTH, CELLS_NULL, CELLS_VALUES, GRID_UNIT, GRID_VECTORS};
use crate::codec::int::Sequence;
use crate::codec::{self, CodecId, Reader, dense, dictionary};
use crate::column::{Cell, Cells, Column, Texts, Values};
use crate::cursor::{Cursor, Result};
use crate::ids::PhysicalType;
use crate::limits::{PAGE_ALIGN, PLAIN_BYTES, ROW_GROUP_ROWS, VECTOR_VALUES};

/// A page whose checksum was verified and whose parts were found; no value is decoded yet.
#[derive(Clone, Debug)]
pub struct Page<'a> {
    pub(super) kind: PhysicalType,
    rows: usize,
    present: usize,
    /// What a row without a value is, and the map.
    cells: u8,
    map: &'a [u8],
    dictionary: &'a [u8],
    /// Present values of each vector but the last; all of them where they are one unit.
    pub(super) unit: usize,
    whole: bool,
    /// Where vectors end in `vectors`, four bytes each.
    ends: &'a [u8],
    vectors: &'a [u8],
}

impl<'a> Page<'a> {
    /// Finds the parts of a page.
    pub fn open(bytes: &'a [u8]) -> Result<Self> {
        let mut cursor = Cursor::new("page", bytes);
        let kind = cursor.u8()?;
        let kind =
            PhysicalType::from_byte(kind).ok_or_else(|| cursor.invalid("a known type", kind.into()))?;
        let (cells, grid, zero) = (cursor.u8()?, cursor.u8()?, cursor.u8()?);
        let (rows, present) = (cursor.u32()? as usize, cursor.u32()? as usize);
        let (map, dictionary) = (cursor.u32()? as usize, cursor.u32()? as usize);
        if zero != 0 {
            return Err(cursor.invalid("a zero byte", zero.into()));
        }
        if rows > ROW_GROUP_ROWS || present > rows {
            return Err(cursor.invalid("at most 65,536 rows and no more values", rows as u64));
        }
        if cells > CELLS_BOTH || (cells == CELLS_VALUES) != (present == rows && map == 0) {
            return Err(cursor.invalid("cells of a known kind, and a map for them", cells.into()));
        }
        let numeric = matches!(kind, PhysicalType::Float64 | PhysicalType::Int64 | PhysicalType::UInt64);
        let (unit, whole) = match grid {
            GRID_VECTORS => (VECTOR_VALUES, false),
            GRID_UNIT if present > 0 && numeric => (present, true),
            other => return Err(cursor.invalid("a known grid, or one that the type has", other.into())),
        };
        let (map, dictionary) = (cursor.take(map)?, cursor.take(dictionary)?);
        let ends = cursor.take(4 * present.div_ceil(unit))?;
        let len = ends.last_chunk().map_or(0, |end| u32::from_le_bytes(*end)) as usize;
        let vectors = cursor.take(len)?;
        let padding = cursor.rest();
        if padding.len() >= PAGE_ALIGN || padding.iter().any(|byte| *byte != 0) {
            return Err(cursor.invalid("fewer than 64 zero bytes of padding", padding.len() as u64));
        }
        Ok(Self { kind, rows, present, cells, map, dictionary, unit, whole, ends, vectors })
    }

    /// The type of the values.
    #[must_use]
    pub fn kind(&self) -> PhysicalType {
        self.kind
    }

    /// Rows of the page.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Rows that have a value.
    #[must_use]
    pub fn present(&self) -> usize {
        self.present
    }

    /// Bytes of the dictionary, 0 without one.
    #[must_use]
    pub fn dictionary_len(&self) -> usize {
        self.dictionary.len()
    }

    /// Whether all values are one unit, which decodes as a whole.
    #[must_use]
    pub fn is_unit(&self) -> bool {
        self.whole
    }

    /// Vectors of 1,024 present values, the last one fewer; 1 where all values are one unit.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.ends.len() / 4
    }

    /// The codec of a vector, how many bytes it has, its tag among them, and how many values.
    pub fn codec(&self, vector: usize) -> Result<(CodecId, usize, usize)> {
        let (mut cursor, values) = self.vector(vector)?;
        let bytes = cursor.left();
        Ok((codec::read_codec(&mut cursor)?, bytes, values))
    }

    /// A vector's bytes, and how many values it has.
    pub(super) fn vector(&self, at: usize) -> Result<(Cursor<'a>, usize)> {
        if at >= self.vectors() {
            return Err(Cursor::new("page", self.ends).invalid("a vector that the page has", at as u64));
        }
        let end = |at: usize| {
            let end = self.ends.get(4 * at..4 * at + 4).and_then(|end| end.try_into().ok());
            end.map(|end| u32::from_le_bytes(end) as usize)
        };
        let start = if at == 0 { Some(0) } else { end(at - 1) };
        let bytes = start.zip(end(at)).and_then(|(start, end)| self.vectors.get(start..end));
        match bytes {
            Some(bytes) => Ok((Cursor::new("vector", bytes), self.unit.min(self.present - at * self.unit))),
            None => Err(Cursor::new("page", self.ends).invalid("vector ends in ascending order", at as u64)),
        }
    }

    /// How each row stands.
    pub fn cells(&self) -> Result<Cells> {
        if self.cells == CELLS_VALUES {
            return Ok(Cells::Values(self.rows));
        }
        let mut cursor = Cursor::new("cell map", self.map);
        let has_value = read_bools(&mut cursor, self.rows)?;
        let values = has_value.iter().filter(|has| **has).count();
        if values != self.present {
            return Err(cursor.invalid("a cell map with as many values as stated", values as u64));
        }
        let nulls = match self.cells {
            CELLS_BOTH => read_bools(&mut cursor, self.rows - values)?,
            _ => Vec::new(),
        };
        cursor.finish()?;
        let mut nulls = nulls.into_iter();
        let empty = |cells: u8, nulls: &mut std::vec::IntoIter<bool>| match cells {
            CELLS_NULL => Cell::Null,
            CELLS_ABSENT => Cell::Absent,
            _ if nulls.next().unwrap_or_default() => Cell::Null,
            _ => Cell::Absent,
        };
        let cell = |has: bool| if has { Cell::Value } else { empty(self.cells, &mut nulls) };
        Ok(Cells::Mixed(has_value.into_iter().map(cell).collect()))
    }

    /// Decodes all rows. Rows that are absent or NULL hold the type's default.
    pub fn decode(&self) -> Result<Column> {
        let cells = self.cells()?;
        let values = self.values(0..self.vectors())?;
        Ok(Column { values: spread(values, &cells), cells })
    }

    /// Decodes some rows, and no vector without any of them.
    pub fn decode_rows(&self, rows: Range<usize>) -> Result<Column> {
        let rows = rows.start.min(self.rows)..rows.end.min(self.rows);
        let (cells, present) = match self.cells()? {
            Cells::Values(_) => (Cells::Values(rows.len()), rows),
            Cells::Mixed(cells) => {
                let count = |rows: Range<usize>| {
                    let cells = cells.get(rows).unwrap_or_default();
                    cells.iter().filter(|cell| **cell == Cell::Value).count()
                };
                let start = count(0..rows.start);
                let present = start..start + count(rows.clone());
                (Cells::Mixed(cells.get(rows).unwrap_or_default().to_vec()), present)
            }
        };
        let values = self.present_values(present)?;
        Ok(Column { values: spread(values, &cells), cells })
    }

    /// The present values `present`, of which the first one of the page is 0.
    fn present_values(&self, present: Range<usize>) -> Result<Values> {
        if present.is_empty() {
            return Ok(Values::new(self.kind));
        }
        if let Some(values) = self.of_sequence(&present)? {
            return Ok(values);
        }
        let first = present.start / self.unit;
        let values = self.values(first..present.end.div_ceil(self.unit))?;
        let skip = present.start - first * self.unit;
        if skip == 0 && values.len() == present.len() {
            return Ok(values);
        }
        let mut wanted = Values::new(self.kind);
        wanted.extend_from(&values, skip..skip + present.len());
        Ok(wanted)
    }

    /// Values of a page that is one sequence are calculated, wherever they stand.
    fn of_sequence(&self, present: &Range<usize>) -> Result<Option<Values>> {
        let Some(sequence) = self.sequence()? else { return Ok(None) };
        let words = present.clone().map(|at| sequence.word(at));
        Ok(match self.kind {
            PhysicalType::Int64 => Some(Values::Int(words.map(codec::from_word).collect())),
            PhysicalType::UInt64 => Some(Values::UInt(words.collect())),
            _ => None,
        })
    }

    fn sequence(&self) -> Result<Option<Sequence>> {
        if !self.whole {
            return Ok(None);
        }
        let (mut cursor, _) = self.vector(0)?;
        if codec::read_codec(&mut cursor)? != CodecId::Sequence {
            return Ok(None);
        }
        let sequence = Sequence::read(&mut cursor)?;
        cursor.finish()?;
        Ok(Some(sequence))
    }

    /// Decodes the present values of some vectors.
    pub fn values(&self, vectors: Range<usize>) -> Result<Values> {
        let vectors = vectors.start.min(self.vectors())..vectors.end.min(self.vectors());
        let count = self.present.min(vectors.end * self.unit).saturating_sub(vectors.start * self.unit);
        Ok(match self.kind {
            PhysicalType::Float64 => {
                let mut values = vec![0.0; count];
                let mut slots = values.chunks_mut(self.unit);
                let mut reader = self.reader()?;
                for vector in vectors {
                    self.floats(vector, &mut reader, slots.next().unwrap_or_default())?;
                }
                Values::Float(values)
            }
            PhysicalType::Int64 => {
                Values::Int(self.words(vectors, count)?.into_iter().map(codec::from_word).collect())
            }
            PhysicalType::UInt64 => Values::UInt(self.words(vectors, count)?),
            PhysicalType::Boolean => {
                let mut values = Vec::with_capacity(count);
                for vector in vectors {
                    let (mut cursor, n) = self.vector(vector)?;
                    codec::decode_bools(&mut cursor, n, &mut values)?;
                }
                Values::Bool(values)
            }
            PhysicalType::Text => {
                let dictionary = self.plain_dictionary()?;
                let entries = text_entries(&dictionary)?;
                let mut texts = Texts::default();
                for vector in vectors {
                    let (mut cursor, n) = self.vector(vector)?;
                    codec::decode_texts(&mut cursor, n, &entries, &mut texts)?;
                }
                Values::Text(texts)
            }
        })
    }

    /// Gives the present values of some vectors of floats to `sink`, at most 1,024 at a time, without memory for all.
    pub fn scan_floats(&self, vectors: Range<usize>, mut sink: impl FnMut(&[f64])) -> Result<()> {
        if self.kind != PhysicalType::Float64 {
            return Err(Cursor::new("page", &[]).invalid("a page of floats", self.kind as u64));
        }
        let vectors = vectors.start.min(self.vectors())..vectors.end.min(self.vectors());
        let mut values = vec![0.0; self.unit.min(self.present)];
        let mut reader = self.reader()?;
        for vector in vectors {
            let (_, n) = self.vector(vector)?;
            let values = values.get_mut(..n).unwrap_or_default();
            self.floats(vector, &mut reader, values)?;
            values.chunks(VECTOR_VALUES).for_each(&mut sink);
        }
        Ok(())
    }

    /// Gives the present values of some vectors of integers to `sink`, at most 1,024 at a time, without memory for all: as
    /// numbers that ascend with the values, which are those of an unsigned integer, and 2^63 more than those of a signed one.
    pub fn scan_words(&self, vectors: Range<usize>, mut sink: impl FnMut(&[u64])) -> Result<()> {
        if !matches!(self.kind, PhysicalType::Int64 | PhysicalType::UInt64) {
            return Err(Cursor::new("page", &[]).invalid("a page of integers", self.kind as u64));
        }
        let vectors = vectors.start.min(self.vectors())..vectors.end.min(self.vectors());
        let mut words = vec![0; self.unit.min(self.present)];
        let mut reader = self.reader()?;
        for vector in vectors {
            let (_, n) = self.vector(vector)?;
            let words = words.get_mut(..n).unwrap_or_default();
            self.words_of(vector, &mut reader, words)?;
            words.chunks(VECTOR_VALUES).for_each(&mut sink);
        }
        Ok(())
    }

    pub(super) fn floats(&self, vector: usize, reader: &mut Reader, out: &mut [f64]) -> Result<()> {
        let (mut cursor, _) = self.vector(vector)?;
        match self.whole {
            true => dense::decode_floats(&mut cursor, out),
            false => reader.floats(&mut cursor, out),
        }
    }

    fn words(&self, vectors: Range<usize>, count: usize) -> Result<Vec<u64>> {
        let mut reader = self.reader()?;
        let mut words = vec![0; count];
        let mut slots = words.chunks_mut(self.unit);
        for vector in vectors {
            self.words_of(vector, &mut reader, slots.next().unwrap_or_default())?;
        }
        Ok(words)
    }

    pub(super) fn words_of(&self, vector: usize, reader: &mut Reader, out: &mut [u64]) -> Result<()> {
        let (mut cursor, _) = self.vector(vector)?;
        match self.whole {
            true => dense::decode_words(&mut cursor, out),
            false => reader.words(&mut cursor, out),
        }
    }

    pub(super) fn reader(&self) -> Result<Reader> {
        Ok(Reader::new(self.word_entries()?))
    }

    /// The dictionary of a page of numbers; empty without one.
    fn word_entries(&self) -> Result<Vec<u64>> {
        match self.dictionary {
            [] => Ok(Vec::new()),
            _ => dictionary::decode_word_entries(&self.plain_dictionary()?),
        }
    }

    pub(super) fn plain_dictionary(&self) -> Result<Vec<u8>> {
        match self.dictionary {
            [] => Ok(Vec::new()),
            packed => dictionary::decompress(&mut Cursor::new("dictionary", packed), PLAIN_BYTES),
        }
    }
}

/// The entries of a page of strings; none without a dictionary.
pub(super) fn text_entries(dictionary: &[u8]) -> Result<Vec<&[u8]>> {
    if dictionary.is_empty() { Ok(Vec::new()) } else { dictionary::decode_entries(dictionary) }
}

fn read_bools(cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<bool>> {
    let len = cursor.u32()? as usize;
    let mut bools = Vec::with_capacity(count);
    codec::decode_bools(&mut Cursor::new("cell map", cursor.take(len)?), count, &mut bools)?;
    Ok(bools)
}

/// Decodes a page whose checksum was verified. Rows that are absent or NULL hold the type's default.
pub fn decode_page(bytes: &[u8]) -> Result<Column> {
    Page::open(bytes)?.decode()
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
