//! The hex dumps in docs/format are what the code writes.

use sonde_storage_format::{
    CatalogChange, Cell, Checkpoint, Column, ColumnDef, ColumnId, ColumnRole, Edit, PhysicalType,
    SEGMENT_HEADER_LEN, SegmentHeader, SeqNo, SeqRange, SeriesKey, State, StateEntry, TableId, TableSeries,
    Values, WalWriter, Writer, encode_page,
};

use crate::manifest::manifest;

/// Sixteen bytes a line: offset, hexadecimal, ASCII.
fn dump(bytes: &[u8]) -> String {
    let line = |(i, line): (usize, &[u8])| {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let ascii = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { '.' };
        format!("{:04x}  {:<47}  {}\n", 16 * i, hex.join(" "), line.iter().map(ascii).collect::<String>())
    };
    bytes.chunks(16).enumerate().map(line).collect()
}

fn check(name: &str, document: &str, bytes: &[u8]) {
    let dump = dump(bytes);
    assert!(document.contains(&format!("```text\n{dump}```\n")), "{name} should have\n{dump}");
}

#[test]
fn page() {
    let mut column = Column::of(Values::Int(vec![7, 8, 10]));
    column.push_empty(Cell::Null, 1);
    check("page.md", include_str!("../../docs/format/page.md"), &encode_page(&column, false));
}

#[test]
fn series_key() {
    let key = SeriesKey::encode([Some("pump"), None, Some("a\0")]);
    check("series_key.md", include_str!("../../docs/format/series_key.md"), key.as_bytes());
}

#[test]
fn wal() {
    let mut bytes = SegmentHeader { number: 3, first_seq: SeqNo(1) }.encode();
    let mut writer = WalWriter::new();
    writer.state(&State { namespace: "n".to_owned(), key: b"a".to_vec(), value: Some(b"on".to_vec()) });
    let (offset, seq) = (SEGMENT_HEADER_LEN as u64, SeqRange { first: SeqNo(1), last: SeqNo(1) });
    bytes.extend(writer.finish(3, offset, seq, offset));
    check("wal.md", include_str!("../../docs/format/wal.md"), &bytes);
}

#[test]
fn catalog() {
    let (id, name, role) = (ColumnId(6), "count".to_owned(), ColumnRole::Field);
    let column = ColumnDef { id, name, role, kind: PhysicalType::UInt64 };
    let mut writer = Writer::new();
    CatalogChange::AddColumn { table: TableId(7), column }.encode(&mut writer);
    check("catalog.md", include_str!("../../docs/format/catalog.md"), writer.as_bytes());
}

#[test]
fn checkpoint() {
    let keys = ["", "a"].map(|tag| SeriesKey::encode([Some(tag)])).into_iter().collect();
    let entry = StateEntry { namespace: "n".to_owned(), key: b"k".to_vec(), value: b"v".to_vec() };
    let checkpoint = Checkpoint {
        position: SeqNo(300),
        catalog: Vec::new(),
        series: vec![TableSeries { table: TableId(7), keys }],
        state: vec![entry],
    };
    check("checkpoint.md", include_str!("../../docs/format/checkpoint.md"), &checkpoint.encode());
}

#[test]
fn manifests() {
    let (bytes, _) = manifest(5, &[vec![Edit::FlushedTo(SeqNo(300)), Edit::Checkpoint(2)]]);
    check("manifest.md", include_str!("../../docs/format/manifest.md"), &bytes);
}
