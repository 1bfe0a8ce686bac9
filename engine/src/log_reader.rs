//! Follows the log: the change feed of rules and of whoever else must see every row.
//!
//! # Invariants
//! - Only frames that are committed are read: those up to the published sequence number, which are whole; those of buffered
//!   tables may still go with a power cut, and whoever commits what follows from them brings them to stable storage too.
//! - Every row behind the position comes once, in log order, or is named in a lost range.

use std::io::ErrorKind;

use sonde_storage_format::{
    FormatError, FrameScan, Record, RowsRecord, SEGMENT_HEADER_LEN, SeqNo, SeqRange, TableId,
};

use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::wal::{Segment, Segments};

/// Follows the committed rows of some tables, from a position on.
#[derive(Clone, Debug)]
pub struct LogReader {
    /// Everything up to here was read.
    position: SeqNo,
    /// Where the next frame stands, if the last turn ended inside a segment.
    place: Option<(u64, u64)>,
}

/// What one turn of a [`LogReader`] found.
#[derive(Debug, Default)]
pub struct LogTurn {
    /// Rows of the tables asked for, in log order.
    pub rows: Vec<RowsRecord>,
    /// Everything up to here has been read.
    pub position: SeqNo,
    /// Bytes of the frames that were read.
    pub bytes: usize,
    /// Sequence numbers that were gone from the log before they were read.
    pub lost: Option<SeqRange>,
}

impl LogReader {
    /// Starts behind `position`.
    #[must_use]
    pub fn new(position: SeqNo) -> Self {
        Self { position, place: None }
    }

    /// Everything up to here was read.
    #[must_use]
    pub fn position(&self) -> SeqNo {
        self.position
    }

    /// Reads on, up to `published` or about `max_bytes`, whichever comes first.
    pub(crate) fn turn(
        &mut self,
        storage: &dyn Storage,
        segments: &Segments,
        published: SeqNo,
        max_bytes: usize,
        wanted: impl Fn(TableId) -> bool,
    ) -> Result<LogTurn> {
        let mut turn = LogTurn::default();
        let mut left = max_bytes;
        while self.position < published && left > 0 {
            let list = segments.list();
            let next = self.position.plus(1);
            if let Some(first) = list.first().filter(|first| first.first_seq > next) {
                if turn.lost.is_some() {
                    break;
                }
                let last = SeqNo(first.first_seq.0 - 1).min(published);
                turn.lost = Some(SeqRange { first: next, last });
                self.position = last;
                continue;
            }
            let Some(segment) = list.iter().find(|segment| segment.last_seq > self.position) else { break };
            let bytes = match storage.map(&segment.path) {
                Ok(bytes) => bytes,
                // It expired since it was listed: the next look says what is lost.
                Err(error) if error.kind() == ErrorKind::NotFound && !segments.has(segment.number) => {
                    continue;
                }
                Err(error) => return Err(Error::io("map", &segment.path, &error)),
            };
            let read = self.read(segment, &bytes, published, left, &mut turn.rows, &wanted)?;
            left = left.saturating_sub(read);
            turn.bytes += read;
        }
        turn.position = self.position;
        Ok(turn)
    }

    /// Reads what a segment holds behind the position; returns the bytes of the frames.
    fn read(
        &mut self,
        segment: &Segment,
        bytes: &[u8],
        published: SeqNo,
        max_bytes: usize,
        rows: &mut Vec<RowsRecord>,
        wanted: &impl Fn(TableId) -> bool,
    ) -> Result<usize> {
        let corrupt = |source| Error::Corrupt { path: segment.path.clone(), source };
        let mut offset = match self.place {
            Some((number, offset)) if number == segment.number => offset,
            _ => SEGMENT_HEADER_LEN as u64,
        };
        // The writer is at work behind this point; up to it every frame is whole.
        let until = segment.last_seq.min(published);
        let mut taken = 0;
        while self.position < until && taken < max_bytes {
            let frame = match FrameScan::at(segment.number, bytes, offset) {
                FrameScan::Frame(frame) => frame,
                FrameScan::Bad(source) => return Err(corrupt(source)),
                FrameScan::End => {
                    let (structure, offset) = ("log segment", offset as usize);
                    let expected = "the frames that were committed";
                    return Err(corrupt(FormatError::Invalid { structure, offset, expected, found: 0 }));
                }
            };
            if frame.seq.last > self.position {
                for record in frame.records() {
                    if let Record::Rows(record) = record.map_err(corrupt)?
                        && wanted(record.table)
                    {
                        rows.extend(behind(record, self.position));
                    }
                }
                self.position = frame.seq.last;
                taken += (frame.end - offset) as usize;
            }
            offset = frame.end;
            self.place = Some((segment.number, offset));
        }
        Ok(taken)
    }
}

/// The rows behind a position, which may lie inside a group and even inside a batch.
fn behind(rows: RowsRecord, position: SeqNo) -> Option<RowsRecord> {
    let from = rows.seq_offsets.partition_point(|offset| rows.first_seq.plus((*offset).into()) <= position);
    if from == 0 {
        return Some(rows);
    }
    let len = rows.times.len();
    (from < len).then(|| RowsRecord {
        table: rows.table,
        origin: rows.origin,
        first_seq: rows.first_seq,
        seq_offsets: rows.seq_offsets.get(from..).unwrap_or_default().to_vec(),
        series: rows.series.get(from..).unwrap_or_default().to_vec(),
        times: rows.times.get(from..).unwrap_or_default().to_vec(),
        columns: rows.columns.iter().map(|(id, column)| (*id, column.slice(from..len))).collect(),
    })
}
