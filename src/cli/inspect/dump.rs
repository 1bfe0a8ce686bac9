//! `sonde inspect --dump`: all that a file holds, one JSON object a line.

use serde_json::{Map, Value, json};
use sonde_storage_format::{
    Cell, Checkpoint, ChunkReader, Column, FrameScan, ManifestHeader, Message, Record, RowsRecord,
    SEGMENT_HEADER_LEN, SegmentHeader, SeriesRun, Tags, Tombstone, TombstonePart, Values, decode_edits,
};

use super::{Damage, FOREIGN, Kind};

/// Gives each line to `say`, as far as the file can be read.
pub(super) fn dump<E: From<Damage>>(
    bytes: &[u8],
    mut say: impl FnMut(Value) -> Result<(), E>,
) -> Result<(), E> {
    match Kind::of(bytes).ok_or(FOREIGN)? {
        Kind::Chunk => chunk(bytes, &mut say),
        Kind::Segment => segment(bytes, &mut say),
        Kind::Manifest => {
            let head = ManifestHeader::decode(bytes).map_err(Damage::from)?;
            let (edits, _) = decode_edits(head.number, bytes).map_err(Damage::from)?;
            edits.iter().try_for_each(|edit| say(json!({ "edit": format!("{edit:?}") })))
        }
        Kind::Checkpoint => checkpoint(&Checkpoint::decode(bytes).map_err(Damage::from)?, &mut say),
    }
}

/// Each row: its time in nanoseconds, the values of its series' tags, and its columns by their ids. A NULL is `null`; a
/// cell that was never written is not there.
fn chunk<E: From<Damage>>(bytes: &[u8], say: &mut impl FnMut(Value) -> Result<(), E>) -> Result<(), E> {
    let reader = ChunkReader::open(bytes).map_err(Damage::from)?;
    let series = reader.series().map_err(Damage::from)?;
    let columns = reader.columns().map_err(Damage::from)?;
    let groups = columns.first().map_or(0, |time| time.pages.len());
    let mut row = 0;
    for group in 0..groups {
        let mut decoded = Vec::with_capacity(columns.len());
        for column in &columns {
            if let Some(meta) = column.pages.get(group).copied().flatten() {
                let page = reader.page(&meta).and_then(|page| page.decode()).map_err(Damage::from)?;
                decoded.push((column.id.0, page));
            }
        }
        let rows = decoded.first().map_or(0, |(_, time)| time.len());
        for at in 0..rows {
            say(chunk_row(&series, &decoded, row, at))?;
            row += 1;
        }
    }
    Ok(())
}

fn chunk_row(series: &[SeriesRun], columns: &[(u32, Column)], row: u64, at: usize) -> Value {
    let run = series.partition_point(|run| run.start + run.rows <= row);
    let mut line = Map::new();
    for (id, column) in columns {
        let name = if *id == 0 { "time".to_owned() } else { id.to_string() };
        if let Some(value) = cell(column, at) {
            line.insert(name, value);
        }
        if *id == 0 {
            line.insert("series".to_owned(), series.get(run).map_or(Value::Null, |run| tags(run.key.tags())));
        }
    }
    Value::Object(line)
}

fn tags(tags: Tags<'_>) -> Value {
    tags.map(|tag| tag.ok().flatten().map_or(Value::Null, Value::from)).collect()
}

/// A cell as JSON; `None` where nothing was written. Floats that JSON does not have are text.
fn cell(column: &Column, row: usize) -> Option<Value> {
    match column.cells.get(row) {
        Cell::Absent => return None,
        Cell::Null => return Some(Value::Null),
        Cell::Value => {}
    }
    Some(match &column.values {
        Values::Float(values) => values.get(row).map_or(Value::Null, |value| float(*value)),
        Values::Int(values) => json!(values.get(row)),
        Values::UInt(values) => json!(values.get(row)),
        Values::Bool(values) => json!(values.get(row)),
        Values::Text(texts) => String::from_utf8_lossy(texts.get(row)).into(),
    })
}

fn float(value: f64) -> Value {
    let special = if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "inf"
    } else {
        "-inf"
    };
    if value.is_finite() { json!(value) } else { special.into() }
}

/// Each record with the sequence numbers of its frame, up to where the log ends.
fn segment<E: From<Damage>>(bytes: &[u8], say: &mut impl FnMut(Value) -> Result<(), E>) -> Result<(), E> {
    let head = SegmentHeader::decode(bytes).map_err(Damage::from)?;
    let mut offset = SEGMENT_HEADER_LEN as u64;
    loop {
        match FrameScan::at(head.number, bytes, offset) {
            FrameScan::Frame(frame) => {
                for record in frame.records() {
                    let record = record_line(&record.map_err(Damage::from)?);
                    say(json!({ "seq": [frame.seq.first.0, frame.seq.last.0], "record": record }))?;
                }
                offset = frame.end;
            }
            FrameScan::End => return Ok(()),
            FrameScan::Bad(error) => return Err(Damage::from(error).into()),
        }
    }
}

fn record_line(record: &Record) -> Value {
    match record {
        Record::Rows(rows) => json!({
            "rows": (0..rows.times.len()).map(|row| log_row(rows, row)).collect::<Vec<_>>(),
            "table": rows.table.0,
            "origin": format!("{:?}", rows.origin),
        }),
        Record::State(state) => json!({
            "state": state.namespace,
            "key": String::from_utf8_lossy(&state.key),
            "value": state.value.as_ref().map(|value| hex(value)),
        }),
        Record::Catalog(change) => json!({ "catalog": format!("{change:?}") }),
        Record::Series(series) => json!({
            "series": series.keys.iter().map(|key| tags(key.tags())).collect::<Vec<_>>(),
            "table": series.table.0,
            "first": series.first.0,
        }),
        Record::Message(message) => message_line(message),
        Record::Tombstone(tombstone) => tombstone_line(tombstone),
    }
}

fn log_row(rows: &RowsRecord, row: usize) -> Value {
    let mut line = Map::new();
    line.insert(
        "seq".to_owned(),
        rows.seq_offsets.get(row).map(|seq| rows.first_seq.0 + u64::from(*seq)).into(),
    );
    line.insert("series".to_owned(), rows.series.get(row).map(|series| series.0).into());
    line.insert("time".to_owned(), rows.times.get(row).copied().into());
    for (id, column) in &rows.columns {
        if let Some(value) = cell(column, row) {
            line.insert(id.0.to_string(), value);
        }
    }
    Value::Object(line)
}

fn message_line(message: &Message) -> Value {
    json!({
        "message": message.topic,
        "seq": message.seq.0,
        "received": message.received.as_nanos(),
        "qos": message.qos,
        "retain": message.retain,
        "properties": hex(&message.properties),
        "payload": hex(&message.payload),
    })
}

fn tombstone_line(tombstone: &Tombstone) -> Value {
    let parts = tombstone.parts.iter().map(|part| match part {
        TombstonePart::Range { range, series } => json!({
            "range": [range.start.as_nanos(), range.end.as_nanos()],
            "series": series.as_ref().map(|series| series.iter().map(|id| id.0).collect::<Vec<_>>()),
        }),
        TombstonePart::Points(points) => {
            json!({ "points": points.iter().map(|(id, time)| (id.0, time.as_nanos())).collect::<Vec<_>>() })
        }
    });
    json!({ "tombstone": parts.collect::<Vec<_>>(), "table": tombstone.table.0, "seq": tombstone.seq.0 })
}

fn checkpoint<E>(checkpoint: &Checkpoint, say: &mut impl FnMut(Value) -> Result<(), E>) -> Result<(), E> {
    for change in &checkpoint.catalog {
        say(json!({ "catalog": format!("{change:?}") }))?;
    }
    for table in &checkpoint.series {
        for handle in 0..table.keys.len() {
            let tags = tags(table.keys.tags(handle));
            say(json!({ "series": tags, "table": table.table.0, "handle": handle }))?;
        }
    }
    for entry in &checkpoint.state {
        let key = String::from_utf8_lossy(&entry.key);
        say(json!({ "state": entry.namespace, "key": key, "value": hex(&entry.value) }))?;
    }
    Ok(())
}

/// Bytes of which only their owner knows what they mean. They may hold secrets: passwords do not stand in the state,
/// hashes of tokens do.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
