//! Changes of the catalog, which log and checkpoint carry.

use proptest::prelude::*;
use sonde_storage_format::limits::COLUMNS;
use sonde_storage_format::{
    CatalogChange, ColumnDef, ColumnId, ColumnRole, Cursor, Durability, Object, ObjectKind, PhysicalType,
    Profile, TableDef, TableId, TableKind, TableOptions, Writer,
};

use crate::random::Random;
use crate::{damage, golden, strategy};

/// One change of each kind.
pub(crate) fn exemplars() -> Vec<CatalogChange> {
    use PhysicalType::*;
    let column =
        |id, name: &str, role, kind| ColumnDef { id: ColumnId(id), name: name.to_owned(), role, kind };
    let table = TableId(7);
    let options = TableOptions {
        partition: 3_600_000_000_000,
        retention: 1,
        cold_after: i64::MAX,
        max_bytes: 1 << 30,
        profile: Profile::Dense,
        automatic: false,
        max_series: 0,
        durability: Durability::Fsync,
    };
    let object = Object {
        kind: ObjectKind::Source,
        database: "public".to_owned(),
        name: "plant".to_owned(),
        text: "CREATE SOURCE plant ON MQTT 'a/{b}' FORMAT JSON INTO readings".to_owned(),
    };
    vec![
        CatalogChange::ReserveTables(TableId(9)),
        CatalogChange::CreateTable(TableDef {
            id: table,
            database: "public".to_owned(),
            name: "Messwerte/é".to_owned(),
            kind: TableKind::Points,
            open: true,
            options: TableOptions::default(),
            columns: vec![
                column(0, "time", ColumnRole::Time, Int64),
                column(1, "device", ColumnRole::Tag, Text),
                column(2, "value", ColumnRole::Field, Float64),
                column(5, "count", ColumnRole::Field, UInt64),
            ],
        }),
        CatalogChange::AddColumn { table, column: column(6, "", ColumnRole::Field, Boolean) },
        CatalogChange::SetOptions { table, options },
        CatalogChange::PutObject(object),
        CatalogChange::DropObject {
            kind: ObjectKind::Token,
            database: "public".to_owned(),
            name: "t\0".to_owned(),
        },
        CatalogChange::DropTable(table),
        CatalogChange::CreateTable(TableDef {
            id: TableId(u32::MAX),
            database: String::new(),
            name: String::new(),
            kind: TableKind::Events,
            open: false,
            options,
            columns: Vec::new(),
        }),
    ]
}

/// What ALTER TABLE came to later than the others.
fn alterations() -> Vec<CatalogChange> {
    let (table, column) = (TableId(7), ColumnId(5));
    vec![
        CatalogChange::DropColumn { table, column: ColumnId(2) },
        CatalogChange::RenameColumn { table, column, name: "Zähler".to_owned() },
        CatalogChange::RenameTable { table, name: "readings".to_owned() },
        CatalogChange::SetType { table, column, kind: PhysicalType::Float64 },
        CatalogChange::ReserveColumns { table, next: ColumnId(6) },
    ]
}

/// Any change.
pub(crate) fn change(random: &mut Random) -> CatalogChange {
    let table = TableId(random.next() as u32);
    let width = |random: &mut Random| random.pick(&[0, 1, 86_400_000_000_000, i64::MAX]);
    let options = TableOptions {
        partition: width(random).max(1),
        retention: width(random),
        cold_after: width(random),
        max_bytes: width(random),
        profile: random.pick(&[Profile::Fast, Profile::Dense]),
        automatic: random.below(2) == 0,
        max_series: width(random),
        durability: random.pick(&[Durability::Fsync, Durability::Buffered]),
    };
    let kind = random.pick(&[
        ObjectKind::Source,
        ObjectKind::Rule,
        ObjectKind::Token,
        ObjectKind::User,
        ObjectKind::Role,
    ]);
    let (database, name) = (text(random), text(random));
    let id = ColumnId(random.next() as u32);
    match random.below(12) {
        0 => {
            let columns = (0..random.below(5)).map(|_| column(random)).collect();
            let kind = random.pick(&[TableKind::Points, TableKind::Events]);
            let open = random.below(2) == 0;
            CatalogChange::CreateTable(TableDef { id: table, database, name, kind, open, options, columns })
        }
        1 => CatalogChange::AddColumn { table, column: column(random) },
        2 => CatalogChange::SetOptions { table, options },
        3 => CatalogChange::DropTable(table),
        4 => CatalogChange::PutObject(Object { kind, database, name, text: text(random) }),
        5 => CatalogChange::DropObject { kind, database, name },
        6 => CatalogChange::DropColumn { table, column: id },
        7 => CatalogChange::RenameColumn { table, column: id, name },
        8 => CatalogChange::RenameTable { table, name },
        9 => CatalogChange::SetType { table, column: id, kind: random.pick(&strategy::KINDS) },
        10 => CatalogChange::ReserveColumns { table, next: id },
        _ => CatalogChange::ReserveTables(table),
    }
}

/// Any short text.
pub(crate) fn text(random: &mut Random) -> String {
    let texts = strategy::texts(random, 1);
    String::from_utf8(texts.get(0).to_vec()).unwrap().chars().take(200).collect()
}

fn column(random: &mut Random) -> ColumnDef {
    ColumnDef {
        id: ColumnId(random.next() as u32),
        name: text(random),
        role: random.pick(&[ColumnRole::Time, ColumnRole::Tag, ColumnRole::Field]),
        kind: random.pick(&strategy::KINDS),
    }
}

fn encode(changes: &[CatalogChange]) -> Vec<u8> {
    let mut writer = Writer::new();
    changes.iter().for_each(|change| change.encode(&mut writer));
    writer.into_bytes()
}

fn decode(bytes: &[u8]) -> sonde_storage_format::Result<Vec<CatalogChange>> {
    let mut cursor = Cursor::new("test", bytes);
    let mut changes = Vec::new();
    while cursor.left() > 0 {
        changes.push(CatalogChange::decode(&mut cursor)?);
    }
    Ok(changes)
}

/// An option that came after the first golden file.
#[test]
fn golden_of_automatic_partitions() {
    let change = CatalogChange::SetOptions { table: TableId(7), options: TableOptions::automatic() };
    golden::check("catalog_automatic", &encode(std::slice::from_ref(&change)));
    assert_eq!(decode(&encode(std::slice::from_ref(&change))).unwrap(), [change]);
}

#[test]
fn golden() {
    let bytes = encode(&exemplars());
    golden::check("catalog", &bytes);
    assert_eq!(decode(&bytes), Ok(exemplars()));
    let bytes = encode(&alterations());
    golden::check("catalog_alter", &bytes);
    assert_eq!(decode(&bytes), Ok(alterations()));
    let options = TableOptions { durability: Durability::Buffered, ..TableOptions::default() };
    let buffered = [CatalogChange::SetOptions { table: TableId(7), options }];
    golden::check("catalog_buffered", &encode(&buffered));
    assert_eq!(decode(&encode(&buffered)), Ok(buffered.to_vec()));
}

/// Kinds of object that came after the first goldens.
#[test]
fn golden_users_and_roles() {
    let object = |kind, name: &str| Object {
        kind,
        database: "public".to_owned(),
        name: name.to_owned(),
        text: "{\"query\":true}".to_owned(),
    };
    let changes = vec![
        CatalogChange::PutObject(object(ObjectKind::Role, "readers")),
        CatalogChange::PutObject(object(ObjectKind::User, "pump-7")),
        CatalogChange::DropObject {
            kind: ObjectKind::User,
            database: "public".to_owned(),
            name: "pump-7".to_owned(),
        },
    ];
    let bytes = encode(&changes);
    golden::check("catalog_users", &bytes);
    assert_eq!(decode(&bytes), Ok(changes));
}

/// An option that came after the first goldens.
#[test]
fn golden_max_series() {
    let options = TableOptions { max_series: 2_000_000, ..TableOptions::default() };
    let change = CatalogChange::SetOptions { table: TableId(7), options };
    let bytes = encode(std::slice::from_ref(&change));
    golden::check("catalog_max_series", &bytes);
    assert_eq!(decode(&bytes), Ok(vec![change]));
}

proptest! {
    #[test]
    fn round_trip(seed: u64, count in 0..8_usize) {
        let mut random = Random::new(seed);
        let changes: Vec<_> = (0..count).map(|_| change(&mut random)).collect();
        prop_assert_eq!(decode(&encode(&changes)), Ok(changes));
    }
}

/// What decodes encodes to something that decodes to the same.
fn check(bytes: &[u8]) {
    if let Ok(changes) = decode(bytes) {
        assert_eq!(decode(&encode(&changes)), Ok(changes));
    }
}

/// A change stands under the checksum of its frame or checkpoint; without it, damage may pass but must not panic.
#[test]
fn damage_never_panics() {
    let bytes = encode(&exemplars());
    damage::each_flip(&bytes, |flipped, _| check(flipped));
    damage::each_truncation(&bytes, check);
}

/// The options of a table, as pairs of a number and a value.
fn decode_options(options: &[(u8, i64)]) -> sonde_storage_format::Result<CatalogChange> {
    let mut writer = Writer::new();
    writer.u8(3);
    writer.u32(7);
    writer.varint(options.len() as u64);
    for (option, value) in options {
        writer.u8(*option);
        writer.i64(*value);
    }
    let mut cursor = Cursor::new("test", writer.as_bytes());
    let change = CatalogChange::decode(&mut cursor)?;
    cursor.finish()?;
    Ok(change)
}

#[test]
fn options_that_are_not_set_are_left_out() {
    let (table, bare) = (TableId(7), TableOptions { partition: 9, ..TableOptions::default() });
    let options = |options| Ok(CatalogChange::SetOptions { table, options });
    assert_eq!(decode_options(&[(1, 9)]), options(bare));
    let all = [(1, 9), (2, 5), (3, i64::MAX), (4, 1), (5, 1), (6, 1), (7, 1000), (8, 1)];
    let set = TableOptions {
        partition: 9,
        retention: 5,
        cold_after: i64::MAX,
        max_bytes: 1,
        profile: Profile::Dense,
        automatic: true,
        max_series: 1000,
        durability: Durability::Buffered,
    };
    assert_eq!(decode_options(&all), options(set));
    for (options, pairs) in [(bare, 1), (set, 8)] {
        // Change, table, count, pairs.
        assert_eq!(encode(&[CatalogChange::SetOptions { table, options }]).len(), 1 + 4 + 1 + 9 * pairs);
    }
}

#[test]
fn options_that_no_writer_makes_are_refused() {
    for (options, what) in [
        (&[][..], "no partition"),
        (&[(2, 5)], "no partition"),
        (&[(2, 5), (1, 9)], "ids that descend"),
        (&[(1, 9), (1, 9)], "an option twice"),
        (&[(0, 1), (1, 9)], "an unknown option"),
        (&[(1, 9), (9, 1)], "an unknown option"),
        (&[(1, 9), (6, 2)], "automatic is 1"),
        (&[(6, 1)], "no partition"),
        (&[(1, 9), (5, 2)], "an unknown profile"),
        (&[(1, 9), (8, 2)], "an unknown durability"),
        (&[(1, 9), (2, 0)], "a value of zero"),
        (&[(1, 9), (2, -1)], "a value below zero"),
        (&[(1, 9), (4, i64::MIN)], "a value below zero"),
    ] {
        assert!(decode_options(options).is_err(), "{what}: {options:?}");
    }
}

#[test]
fn names_and_tables_have_their_limits() {
    let back = |change| decode(&encode(&[change]));
    let name = |len: usize| {
        let (kind, database, name) = (ObjectKind::Rule, "public".to_owned(), "n".repeat(len));
        back(CatalogChange::DropObject { kind, database, name })
    };
    assert!(name(1024).is_ok() && name(1025).is_err());
    let mut random = Random::new(4);
    let mut table = |columns: usize| {
        let columns = (0..columns).map(|_| column(&mut random)).collect();
        let Some(CatalogChange::CreateTable(table)) = exemplars().pop() else { panic!("a table") };
        back(CatalogChange::CreateTable(TableDef { columns, ..table }))
    };
    assert!(table(COLUMNS).is_ok() && table(COLUMNS + 1).is_err());
}

#[test]
fn changes_that_no_writer_makes_are_refused() {
    for bytes in [&[0][..], &[8], &[5, 0, 0, 0, 0], &[5, 6, 0, 0, 0], &[2, 7, 0, 0, 0, 1, 0, 0, 0, 0, 3, 1]] {
        assert!(decode(bytes).is_err(), "{bytes:?}");
    }
    let table = |kind, open| [&[1, 7, 0, 0, 0, 0, 0, kind, open, 1, 1, 9][..], &[0; 8]].concat();
    assert!(decode(&table(1, 1)).is_ok());
    assert!(decode(&table(2, 1)).is_err(), "an unknown kind of table");
    assert!(decode(&table(1, 2)).is_err(), "neither open nor fixed");
}
