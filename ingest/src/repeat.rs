//! Lines that repeat: a series that was written before, with the fields that it had then. Such a line is stored without
//! decoding its tags, looking up its names, or making a list of its items.
//!
//! # Invariants
//! - What is stored here is what `decode::line::decode` and `RowBuffer::store` would have stored; a line that is unusual
//!   in any way is left to them, and so are all faults.
//! - A head stands for one series of one table as long as the table exists: names of columns never change, and new tags
//!   change no key.

use std::sync::Arc;

use foldhash::HashMap;
use parking_lot::Mutex;
use sonde_engine::{
    BatchSeries, Catalog, ColumnDef, ColumnId, Engine, FieldValue, Table, Timestamp, WriteBatchBuilder,
};

use crate::decode::line;
use crate::limits::{LINE_FORMS, LINE_HEAD_BYTES, LINE_MEMORIES};
use crate::row::Stored;

/// Where the lines of a request go, beside what they say themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) database: String,
    /// The table of all lines, whatever their measurements.
    pub(crate) table: Option<String>,
}

/// The fields that lines of a table had, in their order.
#[derive(Debug, PartialEq, Eq)]
struct Form {
    table: Arc<Table>,
    /// Each with its name as lines have it, the equals sign behind it.
    fields: Vec<(Box<str>, ColumnId)>,
}

/// What the bytes of a line before its fields stand for.
#[derive(Debug)]
struct Head {
    series: BatchSeries,
    /// The place of the form that the fields had last.
    form: usize,
}

/// What is remembered of the lines of one destination.
#[derive(Debug)]
pub(crate) struct Memory {
    destination: Destination,
    /// The catalog of which the tables of the forms are.
    catalog: Arc<Catalog>,
    forms: Vec<Form>,
    heads: HashMap<Box<str>, Head>,
    /// Bytes of the heads.
    bytes: usize,
}

/// Why a line was not stored from memory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unknown;

/// Whether a table still has its name and every column that it had, by the same name and of the same type.
fn has_all_of(table: &Table, before: &Table) -> bool {
    let has = |column: &ColumnDef| table.column_by_id(column.id) == Some(column);
    table.def().name == before.def().name && before.def().columns.iter().all(has)
}

impl Memory {
    fn new(destination: Destination, catalog: Arc<Catalog>) -> Self {
        let (forms, heads) = (Vec::new(), HashMap::default());
        Self { destination, catalog, forms, heads, bytes: 0 }
    }

    /// Goes on to another catalog: tables may have got columns. Where one is gone or was altered, lines may mean something
    /// else from here on.
    fn renew(&mut self, catalog: Arc<Catalog>) {
        if Arc::ptr_eq(&self.catalog, &catalog) {
            return;
        }
        for form in &mut self.forms {
            match catalog.table_by_id(form.table.id()).filter(|table| has_all_of(table, &form.table)) {
                Some(table) => form.table = Arc::clone(table),
                // Its name, or that of a column, may be another's by now.
                None => {
                    self.forget();
                    break;
                }
            }
        }
        self.catalog = catalog;
    }

    fn forget(&mut self) {
        self.forms.clear();
        self.heads.clear();
        self.bytes = 0;
    }

    /// Stores a line that repeats one before it; `time` makes the time of the row of what stands in the line. `fields`
    /// is a buffer.
    pub(crate) fn store<'a>(
        &self,
        builder: &mut WriteBatchBuilder,
        text: &'a str,
        fields: &mut Vec<(ColumnId, FieldValue<'a>)>,
        time: impl FnOnce(Option<i64>) -> Option<Timestamp>,
    ) -> Result<(), Unknown> {
        let (head, rest) = line::head(text).ok_or(Unknown)?;
        let head = self.heads.get(head).ok_or(Unknown)?;
        let form = self.forms.get(head.form).ok_or(Unknown)?;
        fields.clear();
        let mut ids = form.fields.iter().map(|(_, id)| *id);
        let names = form.fields.iter().map(|(name, _)| name.as_ref());
        let found = line::values(rest, names, |value| fields.extend(ids.next().map(|id| (id, value))));
        let time = found.and_then(time).ok_or(Unknown)?;
        builder.row_of(&form.table, head.series, time, fields).map_err(|_| Unknown)
    }

    /// Remembers a line that was stored as a row.
    pub(crate) fn learn(&mut self, text: &str, row: &Stored<'_>) {
        let Some((head, _)) = line::head(text).filter(|_| row.series.is_registered()) else { return };
        let Some(fields) = form_fields(row) else { return };
        let place = match self.forms.iter().position(|form| form.is(row.table, &fields)) {
            Some(place) => place,
            None => {
                if self.forms.len() == LINE_FORMS {
                    self.forget();
                }
                self.forms.push(Form { table: Arc::clone(row.table), fields });
                self.forms.len() - 1
            }
        };
        if let Some(known) = self.heads.get_mut(head) {
            *known = Head { series: row.series, form: place };
            return;
        }
        if self.bytes + head.len() > LINE_HEAD_BYTES {
            self.heads.clear();
            self.bytes = 0;
        }
        self.bytes += head.len();
        self.heads.insert(head.into(), Head { series: row.series, form: place });
    }
}

impl Form {
    fn is(&self, table: &Table, fields: &[(Box<str>, ColumnId)]) -> bool {
        self.table.id() == table.id() && self.fields == fields
    }
}

/// The fields of a row as forms have them; `None` where lines could name them in other bytes, or name one twice.
fn form_fields(row: &Stored<'_>) -> Option<Vec<(Box<str>, ColumnId)>> {
    let ids = row.fields.as_ref()?;
    let mut fields: Vec<(Box<str>, ColumnId)> = Vec::with_capacity(ids.len());
    for id in ids {
        let name = &row.table.column_by_id(*id)?.name;
        if !line::is_plain(name) || fields.iter().any(|(_, known)| known == id) {
            return None;
        }
        fields.push((format!("{name}=").into(), *id));
    }
    Some(fields)
}

/// The memories that no request is using.
#[derive(Debug, Default)]
pub(crate) struct Memories(Mutex<Vec<Memory>>);

impl Memories {
    /// Takes the memory of a destination; an empty one where others have it, or there is none.
    pub(crate) fn take(&self, engine: &Engine, destination: &Destination) -> Memory {
        let catalog = engine.catalog();
        let found = {
            let mut memories = self.0.lock();
            let place = memories.iter().rposition(|memory| memory.destination == *destination);
            place.map(|place| memories.remove(place))
        };
        match found {
            Some(mut memory) => {
                memory.renew(catalog);
                memory
            }
            None => Memory::new(destination.clone(), catalog),
        }
    }

    /// Gives a memory back. Of too many the one that was used longest ago goes.
    pub(crate) fn give_back(&self, memory: Memory) {
        let mut memories = self.0.lock();
        memories.push(memory);
        let oldest = if memories.len() > LINE_MEMORIES { Some(memories.remove(0)) } else { None };
        // It may be large: nobody waits for the lock meanwhile.
        drop(memories);
        drop(oldest);
    }
}
