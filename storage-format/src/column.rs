//! A column of rows in memory: what the log carries, the memtable holds and pages encode.
//!
//! # Invariants
//! - `values` has one slot per row; the slot of a row that is absent or NULL holds the type's default.
//! - `Cells::Values` means that every row has a value; `Cells::Mixed` has one entry per row.

use crate::ids::PhysicalType;

/// How one row stands in one column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Cell {
    /// Nothing was written: an older value of the same point shows through.
    Absent = 0,
    /// An explicit NULL: replaces an older value.
    Null = 1,
    /// A value.
    Value = 2,
}

impl Cell {
    /// The cell with this number on disk, if there is one.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Absent,
            1 => Self::Null,
            2 => Self::Value,
            _ => return None,
        })
    }
}

/// How the rows of a column stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cells {
    /// All of this many rows have a value.
    Values(usize),
    /// One entry per row.
    Mixed(Vec<Cell>),
}

impl Cells {
    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Values(rows) => *rows,
            Self::Mixed(cells) => cells.len(),
        }
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How row `row` stands; a row beyond the end is absent.
    #[must_use]
    pub fn get(&self, row: usize) -> Cell {
        match self {
            Self::Values(rows) => {
                if row < *rows {
                    Cell::Value
                } else {
                    Cell::Absent
                }
            }
            Self::Mixed(cells) => cells.get(row).copied().unwrap_or(Cell::Absent),
        }
    }

    /// Appends a row.
    pub fn push(&mut self, cell: Cell) {
        self.push_n(cell, 1);
    }

    /// Appends `n` rows that stand alike.
    pub fn push_n(&mut self, cell: Cell, n: usize) {
        match self {
            Self::Values(rows) if cell == Cell::Value => *rows += n,
            Self::Values(rows) => {
                let mut cells = vec![Cell::Value; *rows];
                cells.resize(*rows + n, cell);
                *self = Self::Mixed(cells);
            }
            Self::Mixed(cells) => cells.resize(cells.len() + n, cell),
        }
    }
}

/// The values of a column, one slot per row.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// `PhysicalType::Float64`.
    Float(Vec<f64>),
    /// `PhysicalType::Int64`, and the time column in nanoseconds.
    Int(Vec<i64>),
    /// `PhysicalType::UInt64`.
    UInt(Vec<u64>),
    /// `PhysicalType::Boolean`.
    Bool(Vec<bool>),
    /// `PhysicalType::Text`.
    Text(Texts),
}

/// Strings end to end: row `i` is `bytes[offsets[i]..offsets[i + 1]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texts {
    offsets: Vec<i32>,
    bytes: Vec<u8>,
}

impl Default for Texts {
    fn default() -> Self {
        Self { offsets: vec![0], bytes: Vec::new() }
    }
}

impl Texts {
    /// Number of strings.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there is no string.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of string `row`; empty beyond the end.
    #[must_use]
    pub fn get(&self, row: usize) -> &[u8] {
        let bound = |i: usize| self.offsets.get(i).and_then(|&o| usize::try_from(o).ok());
        match (bound(row), bound(row + 1)) {
            (Some(start), Some(end)) => self.bytes.get(start..end).unwrap_or_default(),
            _ => &[],
        }
    }

    /// Appends a string. At most 2 GiB fit; callers bound their blocks far below.
    pub fn push(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
        let end = i32::try_from(self.bytes.len());
        assert!(end.is_ok(), "a text column of {} bytes does not fit 32-bit offsets", self.bytes.len());
        self.offsets.push(end.unwrap_or(i32::MAX));
    }

    /// Makes room for so many more strings and bytes, and no more.
    pub(crate) fn reserve(&mut self, strings: usize, bytes: usize) {
        self.offsets.reserve_exact(strings);
        self.bytes.reserve_exact(bytes);
    }

    /// Bytes of all strings.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Iterates over the strings.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> + '_ {
        (0..self.len()).map(|row| self.get(row))
    }

    /// Offsets (`len + 1`) and bytes, as Arrow lays strings out.
    #[must_use]
    pub fn into_parts(self) -> (Vec<i32>, Vec<u8>) {
        (self.offsets, self.bytes)
    }
}

impl<'a> FromIterator<&'a [u8]> for Texts {
    fn from_iter<I: IntoIterator<Item = &'a [u8]>>(iter: I) -> Self {
        let mut texts = Self::default();
        for text in iter {
            texts.push(text);
        }
        texts
    }
}

impl Values {
    /// No values, of this type.
    #[must_use]
    pub fn new(kind: PhysicalType) -> Self {
        match kind {
            PhysicalType::Float64 => Self::Float(Vec::new()),
            PhysicalType::Int64 => Self::Int(Vec::new()),
            PhysicalType::UInt64 => Self::UInt(Vec::new()),
            PhysicalType::Boolean => Self::Bool(Vec::new()),
            PhysicalType::Text => Self::Text(Texts::default()),
        }
    }

    /// The type of the values.
    #[must_use]
    pub fn kind(&self) -> PhysicalType {
        match self {
            Self::Float(_) => PhysicalType::Float64,
            Self::Int(_) => PhysicalType::Int64,
            Self::UInt(_) => PhysicalType::UInt64,
            Self::Bool(_) => PhysicalType::Boolean,
            Self::Text(_) => PhysicalType::Text,
        }
    }

    /// The strings, if these are strings.
    #[must_use]
    pub fn texts(&self) -> Option<&Texts> {
        match self {
            Self::Text(texts) => Some(texts),
            _ => None,
        }
    }

    /// Number of slots.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Float(values) => values.len(),
            Self::Int(values) => values.len(),
            Self::UInt(values) => values.len(),
            Self::Bool(values) => values.len(),
            Self::Text(values) => values.len(),
        }
    }

    /// Whether there is no slot.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in memory, for budgets.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        match self {
            Self::Bool(values) => values.len(),
            Self::Text(values) => values.byte_len() + 4 * values.len(),
            _ => 8 * self.len(),
        }
    }

    /// Appends `n` slots with the type's default.
    pub fn push_default(&mut self, n: usize) {
        match self {
            Self::Float(values) => values.resize(values.len() + n, 0.0),
            Self::Int(values) => values.resize(values.len() + n, 0),
            Self::UInt(values) => values.resize(values.len() + n, 0),
            Self::Bool(values) => values.resize(values.len() + n, false),
            Self::Text(values) => (0..n).for_each(|_| values.push(b"")),
        }
    }

    /// Appends the slots `rows` of `other`, which must be of the same type.
    pub fn extend_from(&mut self, other: &Self, rows: std::ops::Range<usize>) {
        match (self, other) {
            (Self::Float(to), Self::Float(from)) => to.extend_from_slice(from.get(rows).unwrap_or_default()),
            (Self::Int(to), Self::Int(from)) => to.extend_from_slice(from.get(rows).unwrap_or_default()),
            (Self::UInt(to), Self::UInt(from)) => to.extend_from_slice(from.get(rows).unwrap_or_default()),
            (Self::Bool(to), Self::Bool(from)) => to.extend_from_slice(from.get(rows).unwrap_or_default()),
            (Self::Text(to), Self::Text(from)) => rows.for_each(|row| to.push(from.get(row))),
            (to, from) => panic!("BUG: {:?} values appended to {:?}", from.kind(), to.kind()),
        }
    }

    /// The slots `rows` in their order, as a new list.
    #[must_use]
    pub fn gather(&self, rows: &[usize]) -> Self {
        fn pick<T: Copy + Default>(values: &[T], rows: &[usize]) -> Vec<T> {
            rows.iter().map(|&row| values.get(row).copied().unwrap_or_default()).collect()
        }
        match self {
            Self::Float(values) => Self::Float(pick(values, rows)),
            Self::Int(values) => Self::Int(pick(values, rows)),
            Self::UInt(values) => Self::UInt(pick(values, rows)),
            Self::Bool(values) => Self::Bool(pick(values, rows)),
            Self::Text(values) => Self::Text(rows.iter().map(|&row| values.get(row)).collect()),
        }
    }
}

/// The cells of one column over some rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// How each row stands.
    pub cells: Cells,
    /// One slot per row.
    pub values: Values,
}

impl Column {
    /// A column of no rows.
    #[must_use]
    pub fn new(kind: PhysicalType) -> Self {
        Self { cells: Cells::Values(0), values: Values::new(kind) }
    }

    /// A column in which every row has a value.
    #[must_use]
    pub fn of(values: Values) -> Self {
        Self { cells: Cells::Values(values.len()), values }
    }

    /// A column of `rows` absent cells.
    #[must_use]
    pub fn absent(kind: PhysicalType, rows: usize) -> Self {
        let mut column = Self::new(kind);
        column.push_empty(Cell::Absent, rows);
        column
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        debug_assert_eq!(self.cells.len(), self.values.len());
        self.cells.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in memory, for budgets.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.values.byte_len() + if matches!(self.cells, Cells::Mixed(_)) { self.len() } else { 0 }
    }

    /// Gives back the memory that was set aside for more rows.
    pub fn shrink_to_fit(&mut self) {
        if let Cells::Mixed(cells) = &mut self.cells {
            cells.shrink_to_fit();
        }
        match &mut self.values {
            Values::Float(values) => values.shrink_to_fit(),
            Values::Int(values) => values.shrink_to_fit(),
            Values::UInt(values) => values.shrink_to_fit(),
            Values::Bool(values) => values.shrink_to_fit(),
            Values::Text(texts) => {
                texts.offsets.shrink_to_fit();
                texts.bytes.shrink_to_fit();
            }
        }
    }

    /// Appends `n` rows without a value.
    pub fn push_empty(&mut self, cell: Cell, n: usize) {
        assert!(cell != Cell::Value || n == 0, "a cell with a value needs the value");
        self.cells.push_n(cell, n);
        self.values.push_default(n);
    }

    /// Appends the rows `rows` of `other`, which must be of the same type.
    pub fn extend_from(&mut self, other: &Self, rows: std::ops::Range<usize>) {
        match &other.cells {
            Cells::Values(_) => self.cells.push_n(Cell::Value, rows.len()),
            Cells::Mixed(cells) => {
                for &cell in cells.get(rows.clone()).unwrap_or_default() {
                    self.cells.push(cell);
                }
            }
        }
        self.values.extend_from(&other.values, rows);
    }

    /// The rows `rows` in their order, as a new column.
    #[must_use]
    pub fn gather(&self, rows: &[usize]) -> Self {
        let cells = match &self.cells {
            Cells::Values(_) => Cells::Values(rows.len()),
            Cells::Mixed(_) => Cells::Mixed(rows.iter().map(|&row| self.cells.get(row)).collect()),
        };
        Self { cells, values: self.values.gather(rows) }
    }

    /// The rows `rows`, as a new column.
    #[must_use]
    pub fn slice(&self, rows: std::ops::Range<usize>) -> Self {
        let mut column = Self::new(self.values.kind());
        column.extend_from(self, rows);
        column
    }
}
