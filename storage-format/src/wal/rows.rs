//! The record that holds rows of a table: where they come from, and their cells column by column.

use crate::column::{Cell, Cells, Column, Values};
use crate::cursor::{Cursor, Result, Writer};
use crate::ids::{ColumnId, PhysicalType, SeqNo, SeriesId, TableId};
use crate::limits::{COLUMNS, TEXT_BYTES};

/// Where rows come from, for rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// A client wrote them.
    #[default]
    Client,
    /// Rules made them of such rows, in as many steps, 1 to 254.
    Rule(u8),
    /// An import, which rules skip.
    Import,
}

impl Origin {
    fn to_byte(self) -> u8 {
        match self {
            Self::Client => 0,
            Self::Rule(steps) => {
                assert!((1..u8::MAX).contains(&steps), "rows that rules made in {steps} steps");
                steps
            }
            Self::Import => u8::MAX,
        }
    }

    fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Client,
            u8::MAX => Self::Import,
            steps => Self::Rule(steps),
        }
    }
}

/// Rows of one table, as one batch wrote them.
#[derive(Clone, Debug, PartialEq)]
pub struct RowsRecord {
    /// The table.
    pub table: TableId,
    /// Where they come from.
    pub origin: Origin,
    /// The first sequence number of the batch.
    pub first_seq: SeqNo,
    /// Per row, how far its message's sequence number is from `first_seq`; ascending.
    pub seq_offsets: Vec<u32>,
    /// Per row, its series.
    pub series: Vec<SeriesId>,
    /// Per row, its time in nanoseconds.
    pub times: Vec<i64>,
    /// Columns by id, each with one cell per row.
    pub columns: Vec<(ColumnId, Column)>,
}

impl RowsRecord {
    pub(super) fn write(&self, writer: &mut Writer) {
        let count = self.times.len();
        assert!(self.series.len() == count && self.seq_offsets.len() == count, "rows of unequal length");
        writer.u32(self.table.0);
        writer.u8(self.origin.to_byte());
        writer.u64(self.first_seq.0);
        writer.u32(count as u32);
        writer.u16(self.columns.len() as u16);
        self.seq_offsets.iter().for_each(|&offset| writer.varint(offset.into()));
        self.series.iter().for_each(|series| writer.varint(series.0));
        self.times.iter().for_each(|&time| writer.i64(time));
        for (id, column) in &self.columns {
            assert_eq!(column.len(), count, "column {id} and the times differ in length");
            writer.u32(id.0);
            write_column(column, writer);
        }
    }

    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self> {
        let table = TableId(cursor.u32()?);
        let origin = Origin::from_byte(cursor.u8()?);
        let first_seq = SeqNo(cursor.u64()?);
        let count = cursor.u32()? as usize;
        if count > cursor.left() / 10 {
            return Err(cursor.invalid("as many rows as fit the record", count as u64));
        }
        let width = cursor.u16()? as usize;
        if width > COLUMNS {
            return Err(cursor.invalid("at most 4,096 columns", width as u64));
        }
        let mut seq_offsets = Vec::with_capacity(count);
        for _ in 0..count {
            let offset = cursor.varint()?;
            seq_offsets
                .push(u32::try_from(offset).map_err(|_| cursor.invalid("an offset of 32 bits", offset))?);
        }
        let mut series = Vec::with_capacity(count);
        for _ in 0..count {
            series.push(SeriesId(cursor.varint()?));
        }
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            times.push(cursor.i64()?);
        }
        let mut columns = Vec::with_capacity(width);
        for _ in 0..width {
            let id = ColumnId(cursor.u32()?);
            columns.push((id, read_column(cursor, count)?));
        }
        Ok(Self { table, origin, first_seq, seq_offsets, series, times, columns })
    }
}

fn write_column(column: &Column, writer: &mut Writer) {
    writer.u8(column.values.kind() as u8);
    match &column.cells {
        Cells::Values(_) => writer.u8(0),
        Cells::Mixed(cells) => {
            writer.u8(1);
            cells.iter().for_each(|&cell| writer.u8(cell as u8));
        }
    }
    match &column.values {
        Values::Float(values) => values.iter().for_each(|value| writer.u64(value.to_bits())),
        Values::Int(values) => values.iter().for_each(|&value| writer.i64(value)),
        Values::UInt(values) => values.iter().for_each(|&value| writer.u64(value)),
        Values::Bool(values) => values.iter().for_each(|&value| writer.u8(value.into())),
        Values::Text(values) => values.iter().for_each(|value| writer.bytes(value)),
    }
}

fn read_column(cursor: &mut Cursor<'_>, count: usize) -> Result<Column> {
    let kind = cursor.u8()?;
    let kind = PhysicalType::from_byte(kind).ok_or_else(|| cursor.invalid("a known type", kind.into()))?;
    let cells = match cursor.u8()? {
        0 => Cells::Values(count),
        1 => {
            let bytes = cursor.take(count)?;
            let cells: Option<Vec<Cell>> = bytes.iter().map(|byte| Cell::from_byte(*byte)).collect();
            Cells::Mixed(cells.ok_or_else(|| cursor.invalid("cells 0, 1 or 2", 3))?)
        }
        other => return Err(cursor.invalid("cells of a known kind", other.into())),
    };
    let mut values = Values::new(kind);
    for _ in 0..count {
        match &mut values {
            Values::Float(values) => values.push(f64::from_bits(cursor.u64()?)),
            Values::Int(values) => values.push(cursor.i64()?),
            Values::UInt(values) => values.push(cursor.u64()?),
            Values::Bool(values) => values.push(cursor.flag()?),
            Values::Text(values) => values.push(cursor.text(TEXT_BYTES)?.as_bytes()),
        }
    }
    Ok(Column { cells, values })
}
