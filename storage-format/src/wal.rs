#![doc = include_str!("../../docs/format/wal.md")]
//!
//! # Invariants
//! - A frame's checksum is seeded with segment and offset, so bytes of a recycled or misplaced block never pass.
//! - One frame is one group commit: it is there whole or not at all.

use crate::catalog::CatalogChange;
use crate::column::{Cell, Cells, Column, Values};
use crate::cursor::{Cursor, FormatError, Result, Writer};
use crate::ids::{ColumnId, PhysicalType, SeqNo, SeqRange, SeriesId, TableId};
use crate::limits::{COLUMNS, FRAME_BYTES, KEY_BYTES, TEXT_BYTES};
use crate::series_key::SeriesKey;
use crate::time::{TimeRange, Timestamp};

const MAGIC: &[u8; 8] = b"SONDEWAL";
const VERSION: u32 = 1;
/// Bytes before the first frame of a segment.
pub const SEGMENT_HEADER_LEN: usize = 64;
const FRAME_HEADER_LEN: usize = 32;
const FRAME_ALIGN: usize = 8;

/// The head of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The segment's number; numbers ascend with the sequence numbers.
    pub number: u64,
    /// No frame of the segment has a smaller sequence number.
    pub first_seq: SeqNo,
}

impl SegmentHeader {
    /// 64 bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.put(MAGIC);
        writer.u32(VERSION);
        writer.u32(0); // feature bits
        writer.u64(self.number);
        writer.u64(self.first_seq.0);
        writer.pad(SEGMENT_HEADER_LEN);
        let mut bytes = writer.into_bytes();
        bytes.truncate(SEGMENT_HEADER_LEN - 4);
        let crc = crate::checksum::crc32(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads and verifies the head of a segment.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new("log segment head", bytes);
        let head = cursor.take(SEGMENT_HEADER_LEN - 4)?;
        let expected = cursor.u32()?;
        let mut cursor = Cursor::new("log segment head", head);
        if cursor.take(MAGIC.len())? != MAGIC {
            return Err(cursor.invalid("the magic SONDEWAL", 0));
        }
        let found = crate::checksum::crc32(head);
        if found != expected {
            return Err(FormatError::Checksum { structure: "log segment head", offset: 0, expected, found });
        }
        let (version, features) = (cursor.u32()?, cursor.u32()?);
        if version != VERSION {
            return Err(FormatError::Version { structure: "log segment", expected: VERSION, found: version });
        }
        if features != 0 {
            let structure = "log segment feature bits";
            return Err(FormatError::Version { structure, expected: 0, found: features });
        }
        Ok(Self { number: cursor.u64()?, first_seq: SeqNo(cursor.u64()?) })
    }
}

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

/// A message as it came, where a session or a setting wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its sequence number.
    pub seq: SeqNo,
    /// When it came.
    pub received: Timestamp,
    /// Quality of service, 0 to 2.
    pub qos: u8,
    /// Whether it is to be retained.
    pub retain: bool,
    /// Its topic.
    pub topic: String,
    /// Its properties as MQTT 5 encodes them, without their length and without a topic alias.
    pub properties: Vec<u8>,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// The same, borrowed: what a writer logs without copies, and what a reader finds in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRef<'a> {
    /// Its sequence number.
    pub seq: SeqNo,
    /// When it came.
    pub received: Timestamp,
    /// Quality of service, 0 to 2.
    pub qos: u8,
    /// Whether it is to be retained.
    pub retain: bool,
    /// Its topic.
    pub topic: &'a str,
    /// Its properties as MQTT 5 encodes them, without their length and without a topic alias.
    pub properties: &'a [u8],
    /// Its payload.
    pub payload: &'a [u8],
}

impl Message {
    /// The message, borrowed.
    #[must_use]
    pub fn borrowed(&self) -> MessageRef<'_> {
        let Self { seq, received, qos, retain, topic, properties, payload } = self;
        let (seq, received, qos, retain) = (*seq, *received, *qos, *retain);
        MessageRef { seq, received, qos, retain, topic, properties, payload }
    }
}

impl MessageRef<'_> {
    /// A copy of it.
    #[must_use]
    pub fn to_message(&self) -> Message {
        Message {
            seq: self.seq,
            received: self.received,
            qos: self.qos,
            retain: self.retain,
            topic: self.topic.to_owned(),
            properties: self.properties.to_vec(),
            payload: self.payload.to_vec(),
        }
    }
}

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
        encode_tombstone(self, &mut writer);
        writer.into_bytes()
    }

    /// Reads the body of a tombstone's record, which has nothing behind it.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new("tombstone", bytes);
        let tombstone = decode_tombstone(&mut cursor)?;
        cursor.finish()?;
        Ok(tombstone)
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

/// New series of a table: handles `first ..` in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesRecord {
    /// The table.
    pub table: TableId,
    /// The handle of the first key.
    pub first: SeriesId,
    /// The keys.
    pub keys: Vec<SeriesKey>,
}

/// A key of a namespace that took a value, or lost it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Who keeps it, for example `mqtt.retained`.
    pub namespace: String,
    /// The key.
    pub key: Vec<u8>,
    /// The value; `None` removes the key.
    pub value: Option<Vec<u8>>,
}

/// One record of a frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// Rows of a table.
    Rows(RowsRecord),
    /// State of a namespace.
    State(State),
    /// A change of the catalog.
    Catalog(CatalogChange),
    /// New series.
    Series(SeriesRecord),
    /// A message.
    Message(Message),
    /// Rows that are gone.
    Tombstone(Tombstone),
}

const KIND_ROWS: u8 = 1;
const KIND_MESSAGE: u8 = 2;
const KIND_STATE: u8 = 3;
const KIND_CATALOG: u8 = 4;
const KIND_TOMBSTONE: u8 = 5;
const KIND_SERIES: u8 = 6;

/// Collects the records of one group.
#[derive(Debug)]
pub struct WalWriter {
    payload: Writer,
}

impl Default for WalWriter {
    /// The same as `new`: the payload starts behind the room for the frame's head.
    fn default() -> Self {
        Self { payload: Writer::on(vec![0; FRAME_HEADER_LEN]) }
    }
}

impl WalWriter {
    /// No records yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of the frame so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.payload.len()
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.payload.len() == FRAME_HEADER_LEN
    }

    fn record(&mut self, kind: u8, body: impl FnOnce(&mut Writer)) {
        self.payload.u8(kind);
        let at = self.payload.len();
        self.payload.u32(0);
        body(&mut self.payload);
        let len = (self.payload.len() - at - 4) as u32;
        if let Some(slot) = self.payload.buffer().get_mut(at..at + 4) {
            slot.copy_from_slice(&len.to_le_bytes());
        }
    }

    /// Appends rows.
    pub fn rows(&mut self, rows: &RowsRecord) {
        self.record(KIND_ROWS, |writer| encode_rows(rows, writer));
    }

    /// Appends a change of state.
    pub fn state(&mut self, state: &State) {
        self.record(KIND_STATE, |writer| {
            writer.bytes(state.namespace.as_bytes());
            writer.bytes(&state.key);
            writer.u8(state.value.is_some().into());
            writer.put(state.value.as_deref().unwrap_or_default());
        });
    }

    /// Appends a change of the catalog.
    pub fn catalog(&mut self, change: &CatalogChange) {
        self.record(KIND_CATALOG, |writer| change.encode(writer));
    }

    /// Appends new series.
    pub fn series(&mut self, series: &SeriesRecord) {
        self.record(KIND_SERIES, |writer| {
            writer.u32(series.table.0);
            writer.varint(series.first.0);
            writer.varint(series.keys.len() as u64);
            series.keys.iter().for_each(|key| writer.bytes(key.as_bytes()));
        });
    }

    /// Appends a message.
    pub fn message(&mut self, message: &MessageRef<'_>) {
        assert!(message.qos <= 2, "a message of quality of service {}", message.qos);
        self.record(KIND_MESSAGE, |writer| {
            writer.u64(message.seq.0);
            writer.i64(message.received.as_nanos());
            writer.u8(message.qos | u8::from(message.retain) << 2);
            writer.bytes(message.topic.as_bytes());
            writer.bytes(message.properties);
            writer.put(message.payload);
        });
    }

    /// Appends a tombstone.
    pub fn tombstone(&mut self, tombstone: &Tombstone) {
        self.record(KIND_TOMBSTONE, |writer| encode_tombstone(tombstone, writer));
    }

    /// The frame's bytes for this place of this segment.
    #[must_use]
    pub fn finish(self, segment: u64, offset: u64, seq: SeqRange, synced_through: u64) -> Vec<u8> {
        let len = self.payload.len() - FRAME_HEADER_LEN;
        assert!(len + FRAME_HEADER_LEN <= FRAME_BYTES, "a frame of {len} bytes");
        assert!(
            synced_through <= offset,
            "synced through {synced_through}, but the frame stands at {offset}"
        );
        let mut payload = self.payload;
        payload.pad(FRAME_ALIGN);
        let mut bytes = payload.into_bytes();
        let mut header = Writer::new();
        header.u32(len as u32 + 1); // so that zeroes are never a frame
        header.u32(0);
        header.u64(seq.first.0);
        header.u64(seq.last.0);
        header.u64(synced_through);
        if let Some(slot) = bytes.get_mut(..FRAME_HEADER_LEN) {
            slot.copy_from_slice(header.as_bytes());
        }
        let crc = frame_crc(segment, offset, &bytes);
        if let Some(slot) = bytes.get_mut(4..8) {
            slot.copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    }
}

/// The checksum of a frame: its length field, then everything behind the checksum field.
fn frame_crc(segment: u64, offset: u64, frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&segment.to_le_bytes());
    hasher.update(&offset.to_le_bytes());
    hasher.update(frame.get(..4).unwrap_or_default());
    hasher.update(frame.get(8..).unwrap_or_default());
    hasher.finalize()
}

fn encode_rows(rows: &RowsRecord, writer: &mut Writer) {
    let count = rows.times.len();
    assert!(rows.series.len() == count && rows.seq_offsets.len() == count, "rows of unequal length");
    writer.u32(rows.table.0);
    writer.u8(rows.origin.to_byte());
    writer.u64(rows.first_seq.0);
    writer.u32(count as u32);
    writer.u16(rows.columns.len() as u16);
    rows.seq_offsets.iter().for_each(|&offset| writer.varint(offset.into()));
    rows.series.iter().for_each(|series| writer.varint(series.0));
    rows.times.iter().for_each(|&time| writer.i64(time));
    for (id, column) in &rows.columns {
        assert_eq!(column.len(), count, "column {id} and the times differ in length");
        writer.u32(id.0);
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
}

fn decode_rows(cursor: &mut Cursor<'_>) -> Result<RowsRecord> {
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
        seq_offsets.push(u32::try_from(offset).map_err(|_| cursor.invalid("an offset of 32 bits", offset))?);
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
        columns.push((id, decode_column(cursor, count)?));
    }
    Ok(RowsRecord { table, origin, first_seq, seq_offsets, series, times, columns })
}

fn decode_column(cursor: &mut Cursor<'_>, count: usize) -> Result<Column> {
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
            Values::Bool(values) => match cursor.u8()? {
                0 => values.push(false),
                1 => values.push(true),
                other => return Err(cursor.invalid("0 or 1", other.into())),
            },
            Values::Text(values) => values.push(cursor.text(TEXT_BYTES)?.as_bytes()),
        }
    }
    Ok(Column { cells, values })
}

fn decode_message<'a>(cursor: &mut Cursor<'a>) -> Result<MessageRef<'a>> {
    let (seq, received) = (SeqNo(cursor.u64()?), Timestamp::from_nanos(cursor.i64()?));
    let flags = cursor.u8()?;
    let (qos, retain) = (flags & 3, flags & 4 != 0);
    if qos > 2 || flags > 7 {
        return Err(cursor.invalid("a quality of service of at most 2", flags.into()));
    }
    let topic = cursor.text(KEY_BYTES)?;
    let properties = cursor.bytes(FRAME_BYTES)?;
    Ok(MessageRef { seq, received, qos, retain, topic, properties, payload: cursor.rest() })
}

const PART_RANGE: u8 = 1;
const PART_POINTS: u8 = 2;

fn encode_tombstone(tombstone: &Tombstone, writer: &mut Writer) {
    writer.u32(tombstone.table.0);
    writer.u64(tombstone.seq.0);
    writer.varint(tombstone.parts.len() as u64);
    for part in &tombstone.parts {
        match part {
            TombstonePart::Range { range, series } => {
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
            TombstonePart::Points(points) => {
                writer.u8(PART_POINTS);
                writer.varint(points.len() as u64);
                for (series, time) in points {
                    writer.varint(series.0);
                    writer.i64(time.as_nanos());
                }
            }
        }
    }
}

fn decode_tombstone(cursor: &mut Cursor<'_>) -> Result<Tombstone> {
    let (table, seq) = (TableId(cursor.u32()?), SeqNo(cursor.u64()?));
    let count = cursor.count(usize::MAX, 2)?;
    let mut parts = Vec::with_capacity(count);
    for _ in 0..count {
        parts.push(match cursor.u8()? {
            PART_RANGE => decode_range_part(cursor)?,
            PART_POINTS => {
                let count = cursor.count(usize::MAX, 9)?;
                let mut points = Vec::with_capacity(count);
                for _ in 0..count {
                    points.push((SeriesId(cursor.varint()?), Timestamp::from_nanos(cursor.i64()?)));
                }
                TombstonePart::Points(points)
            }
            other => return Err(cursor.invalid("a known part of a tombstone", other.into())),
        });
    }
    Ok(Tombstone { table, seq, parts })
}

fn decode_range_part(cursor: &mut Cursor<'_>) -> Result<TombstonePart> {
    let (start, end) = (Timestamp::from_nanos(cursor.i64()?), Timestamp::from_nanos(cursor.i64()?));
    if start >= end {
        return Err(cursor.invalid("a range that is not empty", 0));
    }
    let series = match cursor.u8()? {
        0 => None,
        1 => {
            let count = cursor.count(usize::MAX, 1)?;
            let mut series: Vec<SeriesId> = Vec::with_capacity(count);
            for _ in 0..count {
                let id = SeriesId(cursor.varint()?);
                if series.last().is_some_and(|last| *last >= id) {
                    return Err(cursor.invalid("series in ascending order", id.0));
                }
                series.push(id);
            }
            Some(series)
        }
        other => return Err(cursor.invalid("0 or 1", other.into())),
    };
    Ok(TombstonePart::Range { range: TimeRange { start, end }, series })
}

/// One group commit.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Where the frame starts in its segment.
    pub offset: u64,
    /// Where the next frame starts.
    pub end: u64,
    /// The sequence numbers that it covers.
    pub seq: SeqRange,
    /// Everything before this offset was on stable storage when the frame was written.
    pub synced_through: u64,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The records, in the order in which they were written.
    pub fn records(&self) -> impl Iterator<Item = Result<Record>> + use<'a> {
        let mut cursor = Cursor::new("log frame", self.payload);
        std::iter::from_fn(move || (cursor.left() > 0).then(|| read_record(&mut cursor)))
    }

    /// The messages alone, borrowed, in their order: records of other kinds are passed over by their length.
    pub fn messages(&self) -> impl Iterator<Item = Result<MessageRef<'a>>> + use<'a> {
        let mut cursor = Cursor::new("log frame", self.payload);
        std::iter::from_fn(move || {
            while cursor.left() > 0 {
                match read_message(&mut cursor) {
                    Ok(None) => {}
                    Ok(Some(message)) => return Some(Ok(message)),
                    Err(error) => {
                        cursor.rest();
                        return Some(Err(error));
                    }
                }
            }
            None
        })
    }

    /// The frame at `offset` as its head describes it, without a look at the checksum: to step over frames that are known
    /// to be whole, or to read one again.
    pub fn unverified(bytes: &'a [u8], offset: u64) -> Result<Self> {
        let rest = usize::try_from(offset).ok().and_then(|start| bytes.get(start..)).unwrap_or_default();
        let (frame, _) = read_head(rest, offset)?;
        Ok(frame)
    }
}

/// The message that the next record is; none where it is of another kind, and passed over.
fn read_message<'a>(cursor: &mut Cursor<'a>) -> Result<Option<MessageRef<'a>>> {
    let kind = cursor.u8()?;
    let len = cursor.u32()? as usize;
    let mut body = Cursor::new("log record", cursor.take(len)?);
    match kind {
        KIND_MESSAGE => decode_message(&mut body).map(Some),
        _ => Ok(None),
    }
}

fn read_record(cursor: &mut Cursor<'_>) -> Result<Record> {
    let kind = cursor.u8()?;
    let len = cursor.u32()? as usize;
    let mut body = Cursor::new("log record", cursor.take(len)?);
    let record = match kind {
        KIND_ROWS => Record::Rows(decode_rows(&mut body)?),
        KIND_STATE => {
            let namespace = body.text(KEY_BYTES)?.to_owned();
            let key = body.bytes(KEY_BYTES)?.to_vec();
            let value = match body.u8()? {
                0 => None,
                1 => Some(body.rest().to_vec()),
                other => return Err(body.invalid("0 or 1", other.into())),
            };
            Record::State(State { namespace, key, value })
        }
        KIND_MESSAGE => Record::Message(decode_message(&mut body)?.to_message()),
        KIND_TOMBSTONE => Record::Tombstone(decode_tombstone(&mut body)?),
        KIND_CATALOG => Record::Catalog(CatalogChange::decode(&mut body)?),
        KIND_SERIES => {
            let (table, first) = (TableId(body.u32()?), SeriesId(body.varint()?));
            let count = body.count(usize::MAX, 1)?;
            let mut keys = Vec::with_capacity(count);
            for _ in 0..count {
                keys.push(SeriesKey::from_bytes(body.bytes(KEY_BYTES)?)?);
            }
            Record::Series(SeriesRecord { table, first, keys })
        }
        other => return Err(cursor.invalid("a known record kind", other.into())),
    };
    body.finish()?;
    Ok(record)
}

/// What stands at an offset of a segment.
#[derive(Debug)]
pub enum FrameScan<'a> {
    /// A frame.
    Frame(Frame<'a>),
    /// Zeroes, or the end of the file: nothing was written here.
    End,
    /// Something else: a torn tail, or damage.
    Bad(FormatError),
}

impl<'a> FrameScan<'a> {
    /// Reads what stands at `offset` of the segment `number`, whose bytes these are.
    #[must_use]
    pub fn at(number: u64, bytes: &'a [u8], offset: u64) -> Self {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = bytes.get(start..).unwrap_or_default();
        if rest.iter().take(FRAME_HEADER_LEN).all(|byte| *byte == 0) {
            return Self::End;
        }
        match read_frame(number, rest, offset) {
            Ok(frame) => Self::Frame(frame),
            Err(error) => Self::Bad(error),
        }
    }
}

fn read_frame(number: u64, rest: &[u8], offset: u64) -> Result<Frame<'_>> {
    let (frame, expected) = read_head(rest, offset)?;
    let found = frame_crc(number, offset, rest.get(..(frame.end - offset) as usize).unwrap_or_default());
    if found != expected {
        return Err(FormatError::Checksum { structure: "log frame", offset, expected, found });
    }
    Ok(frame)
}

/// The frame that a head describes, and the checksum that it states.
fn read_head(rest: &[u8], offset: u64) -> Result<(Frame<'_>, u32)> {
    let mut cursor = Cursor::new("log frame", rest);
    let stated = cursor.u32()?;
    let expected = cursor.u32()?;
    let seq = SeqRange { first: SeqNo(cursor.u64()?), last: SeqNo(cursor.u64()?) };
    let synced_through = cursor.u64()?;
    let Some(len) = (stated as usize).checked_sub(1).filter(|len| *len <= FRAME_BYTES) else {
        return Err(cursor.invalid("a frame of at most 256 MiB", stated.into()));
    };
    // Nothing is synced that was not written before.
    if synced_through > offset {
        return Err(cursor.invalid("a sync that ended before the frame", synced_through));
    }
    let payload = cursor.take(len)?;
    cursor.take(len.next_multiple_of(FRAME_ALIGN) - len)?;
    Ok((Frame { offset, end: offset + cursor.offset() as u64, seq, synced_through, payload }, expected))
}

/// The first frame behind `offset`, at any alignment of a frame: where there is one, what stands at `offset` is not a
/// torn tail but damage.
#[must_use]
pub fn find_frame_after(number: u64, bytes: &[u8], offset: u64) -> Option<Frame<'_>> {
    let first = offset.checked_next_multiple_of(FRAME_ALIGN as u64)?.checked_add(FRAME_ALIGN as u64)?;
    let may_be_frame = |at: &u64| {
        let rest = usize::try_from(*at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
        has_records(rest).is_ok_and(|has| has)
    };
    let mut places = (first..bytes.len() as u64).step_by(FRAME_ALIGN).filter(may_be_frame);
    places.find_map(|at| match FrameScan::at(number, bytes, at) {
        FrameScan::Frame(frame) => Some(frame),
        FrameScan::End | FrameScan::Bad(_) => None,
    })
}

/// Whether what stands at `offset`, and is no frame, was on stable storage once: a frame behind it says so. Then it is
/// damage, else a torn tail, of which several frames may be left in part, in any order.
#[must_use]
pub fn was_synced(number: u64, bytes: &[u8], offset: u64) -> bool {
    let mut at = offset;
    while let Some(frame) = find_frame_after(number, bytes, at) {
        if frame.synced_through > offset {
            return true;
        }
        // Whole frames stand one behind the other; what is none is searched through.
        at = frame.offset;
        while let FrameScan::Frame(frame) = FrameScan::at(number, bytes, at) {
            if frame.synced_through > offset {
                return true;
            }
            at = frame.end;
        }
    }
    false
}

/// Whether what stands here could be a frame: records follow its head, one behind the other, exactly up to its length.
/// Columns of integers look like heads of frames wherever they lie, and to sum up megabytes for each takes minutes.
fn has_records(rest: &[u8]) -> Result<bool> {
    let mut cursor = Cursor::new("log frame", rest);
    let stated = cursor.u32()? as usize;
    cursor.take(FRAME_HEADER_LEN - 4)?;
    let Some(len) = stated.checked_sub(1).filter(|len| *len <= FRAME_BYTES) else { return Ok(false) };
    let mut records = Cursor::new("log frame", cursor.take(len)?);
    while records.left() > 0 {
        if !(KIND_ROWS..=KIND_SERIES).contains(&records.u8()?) {
            return Ok(false);
        }
        let len = records.u32()? as usize;
        records.take(len)?;
    }
    Ok(true)
}
