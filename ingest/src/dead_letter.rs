//! Messages that could not become rows: kept, with the reason, in `system.dead_letters`.

use std::borrow::Cow;
use std::sync::Arc;

use sonde_engine::{
    CatalogRequest, ColumnRole, Engine, FieldValue, NewColumn, NewTable, PhysicalType, Row, Table, TableKind,
    TableOptions, WriteBatchBuilder,
};

use crate::limits::{DEAD_LETTER_AGE, DEAD_LETTER_BYTES, DEAD_LETTER_PARTITION, DEAD_LETTER_PAYLOAD};

const DATABASE: &str = "system";
const TABLE: &str = "dead_letters";
const COLUMNS: [&str; 5] = ["topic", "client", "payload", "encoding", "reason"];

/// A message that could not become a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeadLetter<'a> {
    /// Where it was published.
    pub(crate) topic: &'a str,
    /// By whom.
    pub(crate) client: &'a str,
    /// What it said.
    pub(crate) payload: &'a [u8],
    /// Why it is here.
    pub(crate) reason: &'a str,
}

/// Makes sure that the table is there.
pub(crate) fn table(engine: &Engine) -> sonde_engine::Result<Arc<Table>> {
    if let Some(table) = engine.catalog().table(DATABASE, TABLE) {
        return Ok(Arc::clone(table));
    }
    let column =
        |name: &&str| NewColumn { name: (*name).into(), role: ColumnRole::Field, kind: PhysicalType::Text };
    let new = NewTable {
        database: DATABASE.into(),
        name: TABLE.into(),
        kind: TableKind::Events,
        open: false,
        options: TableOptions {
            partition: DEAD_LETTER_PARTITION.as_nanos() as i64,
            retention: DEAD_LETTER_AGE.as_nanos() as i64,
            max_bytes: DEAD_LETTER_BYTES,
            ..TableOptions::default()
        },
        columns: COLUMNS.iter().map(column).collect(),
    };
    engine.change_catalog(CatalogRequest::CreateTable(new))?;
    Ok(Arc::clone(engine.catalog().require_table(DATABASE, TABLE)?))
}

/// Adds a dead letter to the current message.
pub(crate) fn write(
    engine: &Engine,
    table: &Arc<Table>,
    builder: &mut WriteBatchBuilder,
    letter: &DeadLetter<'_>,
) -> sonde_engine::Result<()> {
    let kept = letter.payload.get(..DEAD_LETTER_PAYLOAD).unwrap_or(letter.payload);
    let (payload, encoding): (Cow<'_, str>, _) = match std::str::from_utf8(kept) {
        Ok(text) => (text.into(), "utf8"),
        Err(_) => (sonde_access::hex(kept).into(), "hex"),
    };
    let values = [letter.topic.into(), letter.client.into(), payload, encoding.into(), letter.reason.into()];
    let fields: Vec<_> = COLUMNS
        .iter()
        .zip(values)
        .filter_map(|(name, value)| table.column(name).map(|column| (column.id, FieldValue::Text(value))))
        .collect();
    builder.row(table, &Row { time: engine.arrival(), tags: &[], fields: &fields }, None).map(|_| ())
}
