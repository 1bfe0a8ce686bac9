//! The record that says which rows are gone.

use crate::cursor::{Cursor, Result, Writer};
use crate::ids::{SeqNo, SeriesId, TableId};
use crate::time::{TimeRange, Timestamp};

const PART_RANGE: u8 = 1;
const PART_POINTS: u8 = 2;

/// Rows that are gone: those of lower sequence numbers that one of the parts names. As long as files hold such rows it
/// is kept as state, too: its value there is the body of the log's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// The table.
    pub table: TableId,
    /// The tombstone's own sequence number.
    pub seq: SeqNo,
    /// What it hides.
    pub parts: Vec<TombstonePart>,
}

impl Tombstone {
    /// The body of a tombstone's record.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        self.write(&mut writer);
        writer.into_bytes()
    }

    /// Reads the body of a tombstone's record, which has nothing behind it.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new("tombstone", bytes);
        let tombstone = Self::read(&mut cursor)?;
        cursor.finish()?;
        Ok(tombstone)
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.u32(self.table.0);
        writer.u64(self.seq.0);
        writer.varint(self.parts.len() as u64);
        self.parts.iter().for_each(|part| part.write(writer));
    }

    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self> {
        let (table, seq) = (TableId(cursor.u32()?), SeqNo(cursor.u64()?));
        let count = cursor.count(usize::MAX, 2)?;
        let parts = (0..count).map(|_| TombstonePart::read(cursor)).collect::<Result<_>>()?;
        Ok(Self { table, seq, parts })
    }
}

/// Rows that a tombstone hides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TombstonePart {
    /// All rows in a range of time.
    Range {
        /// The range.
        range: TimeRange,
        /// The series, ascending; `None` is every series of the table.
        series: Option<Vec<SeriesId>>,
    },
    /// Single points.
    Points(Vec<(SeriesId, Timestamp)>),
}

impl TombstonePart {
    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Range { range, series } => {
                writer.u8(PART_RANGE);
                writer.i64(range.start.as_nanos());
                writer.i64(range.end.as_nanos());
                writer.u8(series.is_some().into());
                if let Some(series) = series {
                    assert!(series.is_sorted_by(|a, b| a < b), "series of a tombstone ascend");
                    writer.varint(series.len() as u64);
                    series.iter().for_each(|series| writer.varint(series.0));
                }
            }
            Self::Points(points) => {
                writer.u8(PART_POINTS);
                writer.varint(points.len() as u64);
                for (series, time) in points {
                    writer.varint(series.0);
                    writer.i64(time.as_nanos());
                }
            }
        }
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Self> {
        match cursor.u8()? {
            PART_RANGE => {
                let (start, end) =
                    (Timestamp::from_nanos(cursor.i64()?), Timestamp::from_nanos(cursor.i64()?));
                if start >= end {
                    return Err(cursor.invalid("a range that is not empty", 0));
                }
                let series = cursor.flag()?.then(|| read_series(cursor)).transpose()?;
                Ok(Self::Range { range: TimeRange { start, end }, series })
            }
            PART_POINTS => {
                let count = cursor.count(usize::MAX, 9)?;
                let mut points = Vec::with_capacity(count);
                for _ in 0..count {
                    points.push((SeriesId(cursor.varint()?), Timestamp::from_nanos(cursor.i64()?)));
                }
                Ok(Self::Points(points))
            }
            other => Err(cursor.invalid("a known part of a tombstone", other.into())),
        }
    }
}

/// Series behind their count, ascending.
fn read_series(cursor: &mut Cursor<'_>) -> Result<Vec<SeriesId>> {
    let count = cursor.count(usize::MAX, 1)?;
    let mut series: Vec<SeriesId> = Vec::with_capacity(count);
    for _ in 0..count {
        let id = SeriesId(cursor.varint()?);
        if series.last().is_some_and(|last| *last >= id) {
            return Err(cursor.invalid("series in ascending order", id.0));
        }
        series.push(id);
    }
    Ok(series)
}
