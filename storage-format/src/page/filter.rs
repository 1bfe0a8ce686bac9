//! Which rows of a page have a value within bounds, found on the encoded values where that is cheaper: a frame of
//! reference, a constant, a sequence or a run tells of many values at once, a dictionary of one entry for all of them,
//! and the integers of ALP are compared as they are.

use super::read::{Page, text_entries};
use crate::codec::int::{self, Bounds};
use crate::codec::{self, CodecId, alp, dictionary};
use crate::column::{Cell, Cells, Texts};
use crate::cursor::{Cursor, Result};
use crate::ids::PhysicalType;

/// Bounds of values, both inclusive. A NaN lies in none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Between<'a> {
    /// Of a page of floats.
    Float(f64, f64),
    /// Of a page of signed integers or times.
    Int(i64, i64),
    /// Of a page of unsigned integers.
    UInt(u64, u64),
    /// Of a page of booleans: `false` comes before `true`.
    Bool(bool, bool),
    /// Of a page of strings, by their bytes.
    Text(&'a [u8], &'a [u8]),
}

impl Between<'_> {
    fn kind(&self) -> PhysicalType {
        match self {
            Self::Float(..) => PhysicalType::Float64,
            Self::Int(..) => PhysicalType::Int64,
            Self::UInt(..) => PhysicalType::UInt64,
            Self::Bool(..) => PhysicalType::Boolean,
            Self::Text(..) => PhysicalType::Text,
        }
    }
}

/// A choice of rows, one bit each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    rows: usize,
    /// Row `i` is bit `i % 64` of word `i / 64`; bits behind the last row are zero.
    words: Vec<u64>,
}

impl Selection {
    /// How many rows there are to choose from.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many rows are chosen.
    #[must_use]
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether a row is chosen.
    #[must_use]
    pub fn contains(&self, row: usize) -> bool {
        self.words.get(row / 64).is_some_and(|word| word >> (row % 64) & 1 == 1)
    }

    /// The chosen rows, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.rows).filter(|row| self.contains(*row))
    }

    fn push(&mut self, chosen: bool) {
        if self.rows.is_multiple_of(64) {
            self.words.push(0);
        }
        if let Some(word) = self.words.last_mut() {
            *word |= u64::from(chosen) << (self.rows % 64);
        }
        self.rows += 1;
    }

    fn push_all(&mut self, chosen: impl IntoIterator<Item = bool>) {
        chosen.into_iter().for_each(|chosen| self.push(chosen));
    }

    fn push_n(&mut self, chosen: bool, n: usize) {
        let mut left = n;
        while left > 0 && !(self.rows.is_multiple_of(64) && left >= 64) {
            self.push(chosen);
            left -= 1;
        }
        if left > 0 {
            let whole = left / 64;
            self.words.resize(self.words.len() + whole, if chosen { u64::MAX } else { 0 });
            self.rows += 64 * whole;
            self.push_n(chosen, left % 64);
        }
    }

    fn set(&mut self, row: usize, chosen: bool) {
        if let Some(word) = self.words.get_mut(row / 64) {
            *word = *word & !(1 << (row % 64)) | u64::from(chosen) << (row % 64);
        }
    }
}

impl Page<'_> {
    /// The rows that have a value within the bounds, which are of the page's type.
    pub fn filter(&self, between: &Between<'_>) -> Result<Selection> {
        if between.kind() != self.kind {
            let found = between.kind() as u64;
            return Err(Cursor::new("filter", &[]).invalid("bounds of the page's type", found));
        }
        let mut chosen = Selection::default();
        match *between {
            Between::Float(low, high) => self.filter_floats(low, high, &mut chosen)?,
            Between::Int(low, high) => {
                self.filter_words(
                    Bounds { low: codec::to_word(low), high: codec::to_word(high) },
                    &mut chosen,
                )?;
            }
            Between::UInt(low, high) => self.filter_words(Bounds { low, high }, &mut chosen)?,
            Between::Bool(low, high) => {
                for vector in 0..self.vectors() {
                    let (mut cursor, n) = self.vector(vector)?;
                    codec::each_bool_run(&mut cursor, n, |value, len| {
                        chosen.push_n((low..=high).contains(&value), len);
                    })?;
                }
            }
            Between::Text(low, high) => self.filter_texts(low, high, &mut chosen)?,
        }
        Ok(match self.cells()? {
            Cells::Values(_) => chosen,
            Cells::Mixed(cells) => over_rows(&chosen, &cells),
        })
    }

    fn filter_words(&self, bounds: Bounds, chosen: &mut Selection) -> Result<()> {
        let mut reader = self.reader()?;
        let entries = reader.entries.as_slice();
        let codes = Bounds::between(
            entries.partition_point(|entry| *entry < bounds.low),
            entries.partition_point(|entry| *entry <= bounds.high),
        );
        let mut scratch = Vec::new();
        for vector in 0..self.vectors() {
            let (mut cursor, n) = self.vector(vector)?;
            let put = |inside: bool, n: usize| chosen.push_n(inside, n);
            match codec::read_codec(&mut cursor)? {
                CodecId::Dictionary if !self.is_unit() => {
                    int::filter_tagged(&mut cursor, codes, n, &mut scratch, put)?;
                }
                codec if codec == CodecId::DeltaOfDelta || (self.is_unit() && !is_runs(codec)) => {
                    scratch.resize(n, 0);
                    self.words_of(vector, &mut reader, &mut scratch)?;
                    chosen.push_all(scratch.iter().map(|word| bounds.contains(*word)));
                    continue;
                }
                codec => int::filter(codec, &mut cursor, bounds, n, &mut scratch, put)?,
            }
            cursor.finish()?;
        }
        Ok(())
    }

    fn filter_floats(&self, low: f64, high: f64, chosen: &mut Selection) -> Result<()> {
        let mut reader = self.reader()?;
        let mut filter = FloatFilter { low, high, known: None, scratch: Vec::new(), chosen };
        let entries: Vec<bool> =
            reader.entries.as_slice().iter().map(|bits| filter.inside(f64::from_bits(*bits))).collect();
        for vector in 0..self.vectors() {
            let (mut cursor, n) = self.vector(vector)?;
            let done = match codec::read_codec(&mut cursor)? {
                // A unit of these is refused where it is decoded.
                _ if self.is_unit() => false,
                CodecId::Dictionary => filter.by_codes(&mut cursor, n, &entries).map(|()| true)?,
                CodecId::Alp => filter.by_integers(&mut cursor, n)?,
                _ => false,
            };
            if done {
                cursor.finish()?;
            } else {
                filter.by_values(n, |values| self.floats(vector, &mut reader, values))?;
            }
        }
        Ok(())
    }

    fn filter_texts(&self, low: &[u8], high: &[u8], chosen: &mut Selection) -> Result<()> {
        let dictionary = self.plain_dictionary()?;
        let entries = text_entries(&dictionary)?;
        let codes = Bounds::between(
            entries.partition_point(|entry| *entry < low),
            entries.partition_point(|entry| *entry <= high),
        );
        let mut scratch = Vec::new();
        for vector in 0..self.vectors() {
            let (mut cursor, n) = self.vector(vector)?;
            if codec::read_codec(&mut cursor.clone())? == CodecId::Dictionary {
                codec::read_codec(&mut cursor)?;
                int::filter_tagged(&mut cursor, codes, n, &mut scratch, |inside, n| {
                    chosen.push_n(inside, n)
                })?;
                cursor.finish()?;
                continue;
            }
            let mut texts = Texts::default();
            codec::decode_texts(&mut cursor, n, &entries, &mut texts)?;
            chosen.push_all(texts.iter().map(|text| low <= text && text <= high));
        }
        Ok(())
    }
}

/// Bounds of floats, and the choice made so far.
struct FloatFilter<'a> {
    low: f64,
    high: f64,
    /// The bounds as integers of the exponents met last.
    known: Option<(alp::Exponents, Bounds)>,
    scratch: Vec<u64>,
    chosen: &'a mut Selection,
}

impl FloatFilter<'_> {
    fn inside(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// By what is known of each entry of the page's dictionary.
    fn by_codes(&mut self, cursor: &mut Cursor<'_>, n: usize, entries: &[bool]) -> Result<()> {
        self.scratch.resize(n, 0);
        dictionary::decode_codes(cursor, entries.len(), &mut self.scratch)?;
        self.chosen.push_all(self.scratch.iter().map(|code| entries.get(*code as usize) == Some(&true)));
        Ok(())
    }

    /// By the integers of ALP; `false`, with nothing chosen, where not all of them are known to be such that a float
    /// can stand for.
    fn by_integers(&mut self, cursor: &mut Cursor<'_>, n: usize) -> Result<bool> {
        let head = alp::Head::read(cursor)?;
        if head.lane > 0 || !int::all_within(cursor.clone(), alp::INTEGERS, n)? {
            return Ok(false);
        }
        let bounds = match self.known {
            Some((exponents, bounds)) if exponents == head.exponents => bounds,
            _ => alp::bounds(self.low, self.high, head.exponents),
        };
        self.known = Some((head.exponents, bounds));
        let start = self.chosen.rows;
        int::filter_tagged(cursor, bounds, n, &mut self.scratch, |inside, n| self.chosen.push_n(inside, n))?;
        let (low, high) = (self.low, self.high);
        head.each_exception(n, |at, value| self.chosen.set(start + at, low <= value && value <= high))?;
        Ok(true)
    }

    /// By the values themselves.
    fn by_values(&mut self, n: usize, decode: impl FnOnce(&mut [f64]) -> Result<()>) -> Result<()> {
        let mut values = vec![0.0; n];
        decode(&mut values)?;
        let (low, high) = (self.low, self.high);
        self.chosen.push_all(values.into_iter().map(|value| low <= value && value <= high));
        Ok(())
    }
}

/// Whether a unit of the codec is filtered as vectors of it are.
fn is_runs(codec: CodecId) -> bool {
    matches!(codec, CodecId::DeltaRle | CodecId::Sequence)
}

/// The choice among present values, as one among all rows.
fn over_rows(present: &Selection, cells: &[Cell]) -> Selection {
    let mut rows = Selection::default();
    let mut next = 0;
    for cell in cells {
        let is_value = *cell == Cell::Value;
        rows.push(is_value && present.contains(next));
        next += usize::from(is_value);
    }
    rows
}
