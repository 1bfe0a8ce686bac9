//! Which rows of a page have a value within bounds, found on the encoded values where that is cheaper: a frame of
//! reference, a constant, a sequence or a run tells of many values at once, a dictionary of one entry for all of them,
//! and the integers of ALP are compared as they are.

use super::read::{Page, text_entries};
use crate::codec::int::{self, Bounds};
use crate::codec::{self, CodecId, Reader, alp, dictionary};
use crate::column::{Cell, Cells, Texts};
use crate::cursor::Result;
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
            return Err(crate::cursor::Cursor::new("filter", &[]).invalid("bounds of the page's type", found));
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
        let inside = |value: f64| low <= value && value <= high;
        let mut reader = self.reader()?;
        let of_entry: Vec<bool> =
            reader.entries.as_slice().iter().map(|bits| inside(f64::from_bits(*bits))).collect();
        let mut scratch = Vec::new();
        let mut known = None;
        for vector in 0..self.vectors() {
            let (mut cursor, n) = self.vector(vector)?;
            let codec = codec::read_codec(&mut cursor)?;
            if codec == CodecId::Dictionary && !self.is_unit() {
                scratch.resize(n, 0);
                dictionary::decode_codes(&mut cursor, of_entry.len(), &mut scratch)?;
                cursor.finish()?;
                chosen.push_all(scratch.iter().map(|code| of_entry.get(*code as usize) == Some(&true)));
                continue;
            }
            if codec == CodecId::Alp && !self.is_unit() {
                let start = chosen.rows;
                let head = alp::Head::read(&mut cursor)?;
                // The integers are compared as they are only where each is known to be one that a float can stand for.
                if head.lane == 0 && int::all_within(cursor.clone(), alp::INTEGERS, n)? {
                    let bounds = match known {
                        Some((exponents, bounds)) if exponents == head.exponents => bounds,
                        _ => alp::bounds(low, high, head.exponents),
                    };
                    known = Some((head.exponents, bounds));
                    int::filter_tagged(&mut cursor, bounds, n, &mut scratch, |inside, n| {
                        chosen.push_n(inside, n)
                    })?;
                    cursor.finish()?;
                    head.each_exception(n, |at, value| chosen.set(start + at, inside(value)))?;
                    continue;
                }
            }
            self.filter_decoded(vector, n, &mut reader, inside, chosen)?;
        }
        Ok(())
    }

    fn filter_decoded(
        &self,
        vector: usize,
        n: usize,
        reader: &mut Reader,
        inside: impl Fn(f64) -> bool,
        chosen: &mut Selection,
    ) -> Result<()> {
        let mut values = vec![0.0; n];
        self.floats(vector, reader, &mut values)?;
        chosen.push_all(values.into_iter().map(inside));
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
