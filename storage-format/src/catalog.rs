#![doc = include_str!("../../docs/format/catalog.md")]

use crate::codec::Profile;
use crate::cursor::{Cursor, Result, Writer};
use crate::ids::{ColumnId, PhysicalType, TableId};
use crate::limits::{COLUMNS, TEXT_BYTES};

const NAME_BYTES: usize = 1024;

/// What a column is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ColumnRole {
    /// The row's time.
    Time = 0,
    /// A string that identifies the series.
    Tag = 1,
    /// A measured value.
    Field = 2,
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnDef {
    /// Its id, never reused in the table.
    pub id: ColumnId,
    /// Its name, as written.
    pub name: String,
    /// What it is for.
    pub role: ColumnRole,
    /// The type of its values.
    pub kind: PhysicalType,
}

/// How rows of a table are identified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TableKind {
    /// Points: (tag values, time); the newest write of a field wins.
    Points = 0,
    /// Events: every row is one of its own.
    Events = 1,
}

/// What `CREATE TABLE ... WITH (...)` sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// Width of a time partition, in nanoseconds; the first one where the width is `automatic`.
    pub partition: i64,
    /// How long rows are kept, in nanoseconds; 0 is for ever.
    pub retention: i64,
    /// When complete UTC days go to the cold tier, in nanoseconds after their end; 0 is never.
    pub cold_after: i64,
    /// Bytes of chunk files, above which the oldest go; 0 is without a limit.
    pub max_bytes: i64,
    /// What the pages are encoded for that compaction writes.
    pub profile: Profile,
    /// Whether the width of the partitions follows from the rows; if not, it stays as set.
    pub automatic: bool,
    /// Series that it may have; 0 is what the engine allows.
    pub max_series: i64,
    /// What an acknowledgement of its rows waits for.
    pub durability: Durability,
}

/// What an acknowledgement waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Stable storage.
    #[default]
    Fsync,
    /// The log's file: stable storage follows within a bound.
    Buffered,
}

impl Default for TableOptions {
    fn default() -> Self {
        let (partition, profile) = (86_400_000_000_000, Profile::Fast);
        let durability = Durability::Fsync;
        let (retention, cold_after, max_bytes, max_series) = (0, 0, 0, 0);
        Self {
            partition,
            retention,
            cold_after,
            max_bytes,
            profile,
            automatic: false,
            max_series,
            durability,
        }
    }
}

impl TableOptions {
    /// The options of a table for which nobody chose any: partitions of a day at first, then as wide as the rows ask for.
    #[must_use]
    pub fn automatic() -> Self {
        Self { automatic: true, ..Self::default() }
    }
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDef {
    /// Its id, never reused.
    pub id: TableId,
    /// The database (SQL schema) that it belongs to.
    pub database: String,
    /// Its name, as written.
    pub name: String,
    /// How rows are identified.
    pub kind: TableKind,
    /// Whether columns appear on first write; `CREATE TABLE` fixes the schema.
    pub open: bool,
    /// What it was created with.
    pub options: TableOptions,
    /// Its columns; the time column first.
    pub columns: Vec<ColumnDef>,
}

/// The kinds of object that are statements kept in the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ObjectKind {
    /// `CREATE SOURCE`.
    Source = 1,
    /// `CREATE RULE`.
    Rule = 2,
    /// A token and what it allows.
    Token = 3,
    /// A user: how it is recognised, and what it may do.
    User = 4,
    /// A role: what those who have it may do.
    Role = 5,
}

/// A statement kept in the catalog; whoever compiles its kind watches the version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub kind: ObjectKind,
    /// The database that it belongs to.
    pub database: String,
    /// Its name, unique within kind and database.
    pub name: String,
    /// The statement, as text.
    pub text: String,
}

/// A change of the catalog, as the log carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogChange {
    /// A new table.
    CreateTable(TableDef),
    /// A new column.
    AddColumn {
        /// The table.
        table: TableId,
        /// The column.
        column: ColumnDef,
    },
    /// New options.
    SetOptions {
        /// The table.
        table: TableId,
        /// All of its options.
        options: TableOptions,
    },
    /// The table is gone, its rows with it.
    DropTable(TableId),
    /// A new object, or a new text of one.
    PutObject(Object),
    /// The object is gone.
    DropObject {
        /// What it was.
        kind: ObjectKind,
        /// The database that it belonged to.
        database: String,
        /// Its name.
        name: String,
    },
    /// Ids below this one were used already, by tables that may be gone.
    ReserveTables(TableId),
    /// The column is gone, with what files hold of it.
    DropColumn {
        /// The table.
        table: TableId,
        /// The column.
        column: ColumnId,
    },
    /// A new name of a column.
    RenameColumn {
        /// The table.
        table: TableId,
        /// The column.
        column: ColumnId,
        /// Its name from here on.
        name: String,
    },
    /// A new name of a table.
    RenameTable {
        /// The table.
        table: TableId,
        /// Its name from here on.
        name: String,
    },
    /// A wider type of a column; what files hold of the old one is read as this one.
    SetType {
        /// The table.
        table: TableId,
        /// The column.
        column: ColumnId,
        /// Its type from here on.
        kind: PhysicalType,
    },
    /// Ids of columns below this one were used already, by columns that may be gone.
    ReserveColumns {
        /// The table.
        table: TableId,
        /// The first id that is free.
        next: ColumnId,
    },
}

impl CatalogChange {
    /// Appends the change.
    pub fn encode(&self, writer: &mut Writer) {
        match self {
            Self::CreateTable(table) => {
                writer.u8(1);
                encode_table(table, writer);
            }
            Self::AddColumn { table, column } => {
                writer.u8(2);
                writer.u32(table.0);
                encode_column(column, writer);
            }
            Self::SetOptions { table, options } => {
                writer.u8(3);
                writer.u32(table.0);
                encode_options(options, writer);
            }
            Self::DropTable(table) => {
                writer.u8(4);
                writer.u32(table.0);
            }
            Self::PutObject(object) => {
                writer.u8(5);
                writer.u8(object.kind as u8);
                writer.bytes(object.database.as_bytes());
                writer.bytes(object.name.as_bytes());
                writer.bytes(object.text.as_bytes());
            }
            Self::DropObject { kind, database, name } => {
                writer.u8(6);
                writer.u8(*kind as u8);
                writer.bytes(database.as_bytes());
                writer.bytes(name.as_bytes());
            }
            Self::ReserveTables(next) => {
                writer.u8(7);
                writer.u32(next.0);
            }
            Self::DropColumn { table, column } => {
                writer.u8(8);
                writer.u32(table.0);
                writer.u32(column.0);
            }
            Self::RenameColumn { table, column, name } => {
                writer.u8(9);
                writer.u32(table.0);
                writer.u32(column.0);
                writer.bytes(name.as_bytes());
            }
            Self::RenameTable { table, name } => {
                writer.u8(10);
                writer.u32(table.0);
                writer.bytes(name.as_bytes());
            }
            Self::SetType { table, column, kind } => {
                writer.u8(11);
                writer.u32(table.0);
                writer.u32(column.0);
                writer.u8(*kind as u8);
            }
            Self::ReserveColumns { table, next } => {
                writer.u8(12);
                writer.u32(table.0);
                writer.u32(next.0);
            }
        }
    }

    /// Reads a change.
    pub fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        Ok(match cursor.u8()? {
            1 => Self::CreateTable(decode_table(cursor)?),
            2 => Self::AddColumn { table: TableId(cursor.u32()?), column: decode_column(cursor)? },
            3 => Self::SetOptions { table: TableId(cursor.u32()?), options: decode_options(cursor)? },
            4 => Self::DropTable(TableId(cursor.u32()?)),
            5 => Self::PutObject(Object {
                kind: decode_object_kind(cursor)?,
                database: cursor.text(NAME_BYTES)?.to_owned(),
                name: cursor.text(NAME_BYTES)?.to_owned(),
                text: cursor.text(TEXT_BYTES)?.to_owned(),
            }),
            6 => Self::DropObject {
                kind: decode_object_kind(cursor)?,
                database: cursor.text(NAME_BYTES)?.to_owned(),
                name: cursor.text(NAME_BYTES)?.to_owned(),
            },
            7 => Self::ReserveTables(TableId(cursor.u32()?)),
            8 => Self::DropColumn { table: TableId(cursor.u32()?), column: ColumnId(cursor.u32()?) },
            9 => Self::RenameColumn {
                table: TableId(cursor.u32()?),
                column: ColumnId(cursor.u32()?),
                name: cursor.text(NAME_BYTES)?.to_owned(),
            },
            10 => {
                Self::RenameTable { table: TableId(cursor.u32()?), name: cursor.text(NAME_BYTES)?.to_owned() }
            }
            11 => Self::SetType {
                table: TableId(cursor.u32()?),
                column: ColumnId(cursor.u32()?),
                kind: decode_type(cursor)?,
            },
            12 => Self::ReserveColumns { table: TableId(cursor.u32()?), next: ColumnId(cursor.u32()?) },
            other => return Err(cursor.invalid("a known catalog change", other.into())),
        })
    }
}

fn encode_table(table: &TableDef, writer: &mut Writer) {
    writer.u32(table.id.0);
    writer.bytes(table.database.as_bytes());
    writer.bytes(table.name.as_bytes());
    writer.u8(table.kind as u8);
    writer.u8(table.open.into());
    encode_options(&table.options, writer);
    writer.varint(table.columns.len() as u64);
    table.columns.iter().for_each(|column| encode_column(column, writer));
}

fn decode_table(cursor: &mut Cursor<'_>) -> Result<TableDef> {
    let id = TableId(cursor.u32()?);
    let database = cursor.text(NAME_BYTES)?.to_owned();
    let name = cursor.text(NAME_BYTES)?.to_owned();
    let kind = match cursor.u8()? {
        0 => TableKind::Points,
        1 => TableKind::Events,
        other => return Err(cursor.invalid("a known table kind", other.into())),
    };
    let open = cursor.flag()?;
    let options = decode_options(cursor)?;
    let count = cursor.count(COLUMNS, 7)?;
    let columns = (0..count).map(|_| decode_column(cursor)).collect::<Result<_>>()?;
    Ok(TableDef { id, database, name, kind, open, options, columns })
}

fn encode_column(column: &ColumnDef, writer: &mut Writer) {
    writer.u32(column.id.0);
    writer.bytes(column.name.as_bytes());
    writer.u8(column.role as u8);
    writer.u8(column.kind as u8);
}

fn decode_column(cursor: &mut Cursor<'_>) -> Result<ColumnDef> {
    let id = ColumnId(cursor.u32()?);
    let name = cursor.text(NAME_BYTES)?.to_owned();
    let role = match cursor.u8()? {
        0 => ColumnRole::Time,
        1 => ColumnRole::Tag,
        2 => ColumnRole::Field,
        other => return Err(cursor.invalid("a known column role", other.into())),
    };
    Ok(ColumnDef { id, name, role, kind: decode_type(cursor)? })
}

fn decode_type(cursor: &mut Cursor<'_>) -> Result<PhysicalType> {
    let kind = cursor.u8()?;
    PhysicalType::from_byte(kind).ok_or_else(|| cursor.invalid("a known type", kind.into()))
}

const PARTITION: u8 = 1;
const RETENTION: u8 = 2;
const COLD_AFTER: u8 = 3;
const MAX_BYTES: u8 = 4;
const PROFILE: u8 = 5;
const AUTOMATIC: u8 = 6;
const MAX_SERIES: u8 = 7;
const DURABILITY: u8 = 8;

fn encode_options(options: &TableOptions, writer: &mut Writer) {
    let TableOptions {
        partition,
        retention,
        cold_after,
        max_bytes,
        profile,
        automatic,
        max_series,
        durability,
    } = *options;
    let all = [
        (PARTITION, partition),
        (RETENTION, retention),
        (COLD_AFTER, cold_after),
        (MAX_BYTES, max_bytes),
        (PROFILE, (profile == Profile::Dense).into()),
        (AUTOMATIC, automatic.into()),
        (MAX_SERIES, max_series),
        (DURABILITY, (durability == Durability::Buffered).into()),
    ];
    let set = || all.iter().filter(|(_, value)| *value != 0);
    writer.varint(set().count() as u64);
    for (option, value) in set() {
        writer.u8(*option);
        writer.i64(*value);
    }
}

fn decode_options(cursor: &mut Cursor<'_>) -> Result<TableOptions> {
    let mut options = TableOptions { partition: 0, ..TableOptions::default() };
    let mut before = 0;
    for _ in 0..cursor.count(usize::from(u8::MAX), 9)? {
        let (option, value) = (cursor.u8()?, cursor.i64()?);
        if option <= before {
            return Err(cursor.invalid("options in ascending order", option.into()));
        }
        before = option;
        if value <= 0 {
            return Err(cursor.invalid("an option above zero", value.cast_unsigned()));
        }
        match option {
            PARTITION => options.partition = value,
            RETENTION => options.retention = value,
            COLD_AFTER => options.cold_after = value,
            MAX_BYTES => options.max_bytes = value,
            PROFILE if value == 1 => options.profile = Profile::Dense,
            AUTOMATIC if value == 1 => options.automatic = true,
            MAX_SERIES => options.max_series = value,
            DURABILITY if value == 1 => options.durability = Durability::Buffered,
            _ => return Err(cursor.invalid("a known option", option.into())),
        }
    }
    if options.partition == 0 {
        return Err(cursor.invalid("the width of a partition", 0));
    }
    Ok(options)
}

fn decode_object_kind(cursor: &mut Cursor<'_>) -> Result<ObjectKind> {
    Ok(match cursor.u8()? {
        1 => ObjectKind::Source,
        2 => ObjectKind::Rule,
        3 => ObjectKind::Token,
        4 => ObjectKind::User,
        5 => ObjectKind::Role,
        other => return Err(cursor.invalid("a known object kind", other.into())),
    })
}
