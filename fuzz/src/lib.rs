//! What the fuzz targets check: one function per structure on disk or on the wire, which takes any bytes.
//!
//! # Invariants
//! - A target fails only where the code under test is wrong: whatever the bytes, they decode or they are refused.
//! - What decodes encodes to something that decodes to the same, bit by bit.
//! - No input makes a decoder ask for a block of more than `alloc::LIMIT` bytes.

use sonde_storage_format::{
    Between, CatalogChange, Cell, Checkpoint, ChunkReader, Column, Cursor, Edit, FrameScan, ManifestHeader,
    Page, PageMeta, PhysicalType, Profile, Record, Result, RowsRecord, SEGMENT_HEADER_LEN, SegmentHeader,
    SeqNo, SeqRange, SeriesKey, TIME_COLUMN, Values, WalWriter, Writer, crc32, decode_edits, encode_edit,
    encode_page_as, find_frame_after, use_portable_code,
};

mod alloc;
mod identity;
/// Those of ingest, by which the code of `transport` goes.
#[path = "../../ingest/src/limits.rs"]
pub mod limits;
/// The codec alone: the rest of its crate would bring the gRPC stack into a build that is to take seconds.
#[path = "../../proto/src/mqtt/mod.rs"]
pub mod mqtt;
pub mod shape;
mod transport;

pub use alloc::LIMIT;
pub use identity::{jwt, scram};
use mqtt::{Packet, Version};
pub use transport::{proxy, websocket};

/// A target: it takes any bytes.
pub type Target = fn(&[u8]);

/// All targets by name: that of their binary in `targets/` and of their corpus in `corpus/`.
pub const TARGETS: [(&str, Target); 12] = [
    ("page", page),
    ("chunk", chunk),
    ("wal", wal),
    ("manifest", manifest),
    ("checkpoint", checkpoint),
    ("catalog", catalog),
    ("series_key", series_key),
    ("mqtt", mqtt),
    ("websocket", websocket),
    ("proxy", proxy),
    ("scram", scram),
    ("jwt", jwt),
];

/// A page, as it stands in a chunk behind its checksum: whichever way it is read, it says the same.
pub fn page(data: &[u8]) {
    alloc::bounded(|| {
        let Ok(page) = Page::open(data) else { return };
        let Ok(column) = page.decode() else { return read_what_does_not_decode(&page) };
        assert_eq!(column.len(), page.rows());
        check_column(&column);
        let seed = crc32(data);
        check_rows(&page, &column, seed);
        use_portable_code(true);
        let portable = page.decode();
        use_portable_code(false);
        assert!(same(&portable.expect("the same code decodes"), &column), "other instructions, other values");
        // Times have codecs of their own.
        let times = matches!(column.values, Values::Int(_)) && seed.is_multiple_of(3);
        let profile = if seed.is_multiple_of(16) { Profile::Dense } else { Profile::Fast };
        let again = encode_page_as(profile, &column, times);
        let again = Page::open(&again).expect("what was encoded is a page");
        let decoded = again.decode().expect("what was encoded decodes");
        assert!(same(&decoded, &column), "other values than were encoded");
        check_rows(&again, &column, seed);
        check_filter(&page, &again, &column, seed);
    });
}

/// A page of which something is refused: what does not look at that may be read, but nothing may panic.
fn read_what_does_not_decode(page: &Page<'_>) {
    let _ = page.cells();
    let _ = page.decode_rows(0..1);
    let _ = page.filter(&everything(page.kind()));
    (0..page.vectors()).for_each(|vector| drop(page.codec(vector)));
}

fn everything(kind: PhysicalType) -> Between<'static> {
    match kind {
        PhysicalType::Float64 => Between::Float(f64::NEG_INFINITY, f64::INFINITY),
        PhysicalType::Int64 => Between::Int(i64::MIN, i64::MAX),
        PhysicalType::UInt64 => Between::UInt(0, u64::MAX),
        PhysicalType::Boolean => Between::Bool(false, true),
        PhysicalType::Text => Between::Text(&[], &[u8::MAX]),
    }
}

/// A row of a column that has some; `seed` and `n` say which.
fn pick(column: &Column, seed: u32, n: u32) -> usize {
    seed.rotate_right(7 * n) as usize % column.len()
}

/// Some rows against all of them.
fn check_rows(page: &Page<'_>, column: &Column, seed: u32) {
    let rows = column.len();
    let middle = if rows == 0 { 0 } else { pick(column, seed, 0) };
    for part in [middle..rows, middle / 2..middle] {
        let some = page.decode_rows(part.clone()).expect("some rows of what decodes");
        assert!(same(&some, &column.slice(part.clone())), "rows {part:?} of {} differ", column.len());
    }
}

/// Filters against the values of the column, which both pages hold.
fn check_filter(page: &Page<'_>, again: &Page<'_>, column: &Column, seed: u32) {
    let mut bounds = vec![everything(page.kind())];
    if !column.is_empty() {
        let (a, b) = (pick(column, seed, 1), pick(column, seed, 2));
        bounds.push(match &column.values {
            Values::Float(values) => Between::Float(values[a], values[b]),
            Values::Int(values) => Between::Int(values[a], values[b]),
            Values::UInt(values) => Between::UInt(values[a], values[b]),
            Values::Bool(values) => Between::Bool(values[a], values[b]),
            Values::Text(values) => Between::Text(values.get(a), values.get(b)),
        });
    }
    for between in bounds {
        let wanted: Vec<usize> = (0..column.len()).filter(|row| lies_in(column, *row, &between)).collect();
        for page in [page, again] {
            let chosen = page.filter(&between).expect("a filter of what decodes");
            assert_eq!(chosen.rows(), column.len());
            assert!(chosen.iter().eq(wanted.iter().copied()), "{between:?} chooses other rows");
        }
    }
}

fn lies_in(column: &Column, row: usize, between: &Between<'_>) -> bool {
    column.cells.get(row) == Cell::Value
        && match (&column.values, between) {
            (Values::Float(values), Between::Float(low, high)) => (low..=high).contains(&&values[row]),
            (Values::Int(values), Between::Int(low, high)) => (low..=high).contains(&&values[row]),
            (Values::UInt(values), Between::UInt(low, high)) => (low..=high).contains(&&values[row]),
            (Values::Bool(values), Between::Bool(low, high)) => (low..=high).contains(&&values[row]),
            (Values::Text(values), Between::Text(low, high)) => (low..=high).contains(&&values.get(row)),
            _ => unreachable!("bounds of the type of the values"),
        }
}

fn check_column(column: &Column) {
    assert!(column.len() <= sonde_storage_format::limits::ROW_GROUP_ROWS);
    assert_eq!(column.cells.len(), column.values.len());
    if let Values::Text(texts) = &column.values {
        assert!(texts.iter().all(|text| std::str::from_utf8(text).is_ok()), "text that is no UTF-8");
    }
}

/// Equality bit by bit: NaN equals the same NaN, and -0.0 is not 0.0.
fn same(a: &Column, b: &Column) -> bool {
    let values = match (&a.values, &b.values) {
        (Values::Float(a), Values::Float(b)) => {
            a.iter().map(|value| value.to_bits()).eq(b.iter().map(|value| value.to_bits()))
        }
        (a, b) => a == b,
    };
    // A map that says that every row has a value may become none.
    let rows = a.cells.len();
    values && rows == b.cells.len() && (0..rows).all(|row| a.cells.get(row) == b.cells.get(row))
}

/// A chunk file: its directories, and each page as if its checksum were right, so that damage reaches the decoder.
pub fn chunk(data: &[u8]) {
    alloc::bounded(|| {
        let Ok(reader) = ChunkReader::open(data) else { return };
        if let Ok(series) = reader.series() {
            assert_eq!(series.len() as u64, reader.root().series);
            assert!(
                series.is_sorted_by(|a, b| a.key < b.key && a.start.checked_add(a.rows) == Some(b.start))
            );
            for column in reader.run_statistics(&series, |_| true).unwrap_or_default() {
                assert!(column.runs.iter().all(|(place, _)| *place < series.len()));
            }
        }
        let Ok(columns) = reader.columns() else { return };
        assert_eq!(columns[0].id, TIME_COLUMN);
        for column in &columns {
            assert_eq!(column.pages.len(), columns[0].pages.len());
            for meta in column.pages.iter().flatten() {
                read_page(&reader, data, meta);
            }
        }
    });
}

fn read_page(reader: &ChunkReader<'_>, data: &[u8], meta: &PageMeta) {
    let _ = reader.page(meta);
    let start = usize::try_from(meta.offset).unwrap_or(usize::MAX);
    let end = start.saturating_add(meta.len as usize);
    let Some(bytes) = data.get(start..end) else { return };
    if let Ok(page) = reader.page(&PageMeta { crc: crc32(bytes), ..*meta }) {
        assert_eq!(page.rows(), meta.stats.rows as usize);
        if let Ok(column) = page.decode() {
            assert_eq!(column.len(), page.rows());
            check_column(&column);
        }
    }
}

/// A segment of the log: its head, its frames up to the first that is none, and the search for a frame behind it.
pub fn wal(data: &[u8]) {
    alloc::bounded(|| {
        let head = SegmentHeader::decode(data);
        if let Ok(head) = head {
            assert_eq!(SegmentHeader::decode(&head.encode()), Ok(head));
        }
        let number = head.map_or(0, |head| head.number);
        let mut offset = SEGMENT_HEADER_LEN as u64;
        while let FrameScan::Frame(frame) = FrameScan::at(number, data, offset) {
            assert_eq!(frame.offset, offset);
            assert!(frame.end > offset && frame.end <= data.len() as u64);
            assert!(frame.synced_through <= offset);
            if let Ok(records) = frame.records().collect::<Result<Vec<_>>>() {
                check_records(&records);
            }
            offset = frame.end;
        }
        if let Some(frame) = find_frame_after(number, data, offset) {
            assert!(frame.offset > offset && frame.end <= data.len() as u64);
        }
    });
}

fn check_records(records: &[Record]) {
    let write = |records: &[Record]| {
        let mut writer = WalWriter::new();
        records.iter().for_each(|record| match record {
            Record::Rows(rows) => writer.rows(rows),
            Record::State(state) => writer.state(state),
            Record::Catalog(change) => writer.catalog(change),
            Record::Series(series) => writer.series(series),
            Record::Message(message) => writer.message(&message.borrowed()),
            Record::Tombstone(tombstone) => writer.tombstone(tombstone),
        });
        let seq = SeqRange { first: SeqNo(1), last: SeqNo(1) };
        let offset = SEGMENT_HEADER_LEN as u64;
        [vec![0; SEGMENT_HEADER_LEN], writer.finish(1, offset, seq, 0)].concat()
    };
    let bytes = write(records);
    let FrameScan::Frame(frame) = FrameScan::at(1, &bytes, SEGMENT_HEADER_LEN as u64) else {
        panic!("what was encoded is a frame")
    };
    let again: Vec<_> = frame.records().collect::<Result<_>>().expect("what was encoded decodes");
    assert_eq!(again.len(), records.len());
    for (again, record) in again.iter().zip(records) {
        match (again, record) {
            (Record::Rows(again), Record::Rows(rows)) => check_rows_record(again, rows),
            (again, record) => assert_eq!(again, record),
        }
    }
}

fn check_rows_record(again: &RowsRecord, rows: &RowsRecord) {
    let count = rows.times.len();
    assert!(rows.series.len() == count && rows.seq_offsets.len() == count);
    assert_eq!(again.columns.len(), rows.columns.len());
    for ((id, again), (other, column)) in again.columns.iter().zip(&rows.columns) {
        assert_eq!(column.len(), count);
        assert!(id == other && same(again, column), "column {id} became another");
    }
    // NaN equals nothing, and the columns are compared: the rest is compared whole, so that a new field is too.
    let rest = |rows: &RowsRecord| RowsRecord { columns: Vec::new(), ..rows.clone() };
    assert_eq!(rest(again), rest(rows));
}

/// A manifest: its head, its edits, and whether what stands behind them is a torn tail.
pub fn manifest(data: &[u8]) {
    alloc::bounded(|| {
        let head = ManifestHeader::decode(data);
        if let Ok(head) = head {
            assert_eq!(ManifestHeader::decode(&head.encode()), Ok(head));
        }
        let number = head.map_or(0, |head| head.number);
        let Ok((edits, end)) = decode_edits(number, data) else { return };
        assert!(end <= data.len().max(ManifestHeader::LEN) as u64);
        let most: usize = 10 + edits.iter().map(Edit::bytes_at_most).sum::<usize>();
        let mut again = ManifestHeader { number }.encode();
        let frame = encode_edit(number, again.len() as u64, &edits).expect("no more than there was");
        assert!(frame.len() <= 8 + most, "a frame of {} bytes, at most {most} were promised", frame.len());
        again.extend(frame);
        assert_eq!(decode_edits(number, &again), Ok((edits, again.len() as u64)));
    });
}

/// A checkpoint.
pub fn checkpoint(data: &[u8]) {
    alloc::bounded(|| {
        if let Ok(checkpoint) = Checkpoint::decode(data) {
            assert_eq!(Checkpoint::decode(&checkpoint.encode()), Ok(checkpoint));
        }
    });
}

/// Changes of the catalog, one behind the other.
pub fn catalog(data: &[u8]) {
    fn decode(bytes: &[u8]) -> Result<Vec<CatalogChange>> {
        let mut cursor = Cursor::new("catalog changes", bytes);
        let mut changes = Vec::new();
        while cursor.left() > 0 {
            changes.push(CatalogChange::decode(&mut cursor)?);
        }
        Ok(changes)
    }
    alloc::bounded(|| {
        let Ok(changes) = decode(data) else { return };
        let mut writer = Writer::new();
        changes.iter().for_each(|change| change.encode(&mut writer));
        assert_eq!(decode(writer.as_bytes()), Ok(changes));
    });
}

/// A series key: what is taken as one is what its tag values encode to, because a series has one key.
pub fn series_key(data: &[u8]) {
    alloc::bounded(|| {
        let Ok(key) = SeriesKey::from_bytes(data) else { return };
        let tags = key.tags().map(|tag| tag.expect("a key that was checked"));
        let tags: Vec<Option<String>> = tags.map(|tag| tag.map(Into::into)).collect();
        assert_eq!(SeriesKey::encode(tags.iter().map(Option::as_deref)).as_bytes(), data);
        assert_eq!(key.to_values(tags.len()), tags);
    });
}

/// What a client sends or is sent, in both versions: packets one behind the other, as long as they are understood.
pub fn mqtt(data: &[u8]) {
    alloc::bounded(|| {
        for version in [Version::V311, Version::V5] {
            let mut rest = data;
            while let Ok(Some((packet, len))) = mqtt::decode(rest, version, data.len()) {
                check_packet(&packet, &rest[..len], version);
                rest = &rest[len..];
            }
        }
    });
}

fn check_packet(packet: &Packet<'_>, bytes: &[u8], version: Version) {
    assert!(items(packet) <= bytes.len(), "more items than bytes");
    let version = if let Packet::Connect(connect) = packet { connect.version } else { version };
    let mut again = Vec::new();
    packet.encode(version, &mut again);
    // Bytes may go: a reason of 0 need not be said. None may come: lengths have their shortest form.
    assert!(again.len() <= bytes.len());
    assert_eq!(mqtt::decode(&again, version, again.len()), Ok(Some((*packet, again.len()))));
    // A decoder that is fed byte by byte must not take less for the whole.
    let cut = &bytes[..bytes.len() - 1];
    assert_eq!(mqtt::decode(cut, version, bytes.len()), Ok(None));
}

/// Reads everything that a packet holds behind iterators, and tells how much that was.
fn items(packet: &Packet<'_>) -> usize {
    match packet {
        Packet::Connect(p) => {
            p.properties.iter().count() + p.will.map_or(0, |will| will.properties.iter().count())
        }
        Packet::ConnAck(p) => p.properties.iter().count(),
        Packet::Publish(p) => p.properties.iter().count(),
        Packet::PubAck(p) | Packet::PubRec(p) | Packet::PubRel(p) | Packet::PubComp(p) => {
            p.properties.iter().count()
        }
        Packet::Subscribe(p) => {
            p.filters().for_each(|filter| assert_eq!(mqtt::validate_filter(filter.filter), Ok(())));
            p.properties.iter().count() + p.filters().count()
        }
        Packet::SubAck(p) | Packet::UnsubAck(p) => p.properties.iter().count() + p.reasons.len(),
        Packet::Unsubscribe(p) => p.properties.iter().count() + p.filters().count(),
        Packet::PingReq | Packet::PingResp => 0,
        Packet::Disconnect(p) => p.properties.iter().count(),
        Packet::Auth(p) => p.properties.iter().count(),
    }
}
