//! Requests to change the catalog: what is refused changes nothing, and does not harm the writer.

use sonde_engine::{
    CatalogRequest, ColumnRole, Engine, Error, Object, ObjectKind, PhysicalType, TableId, TableKind,
    TableOptions,
};

use crate::data::{DAY, HOUR, START, column, create, new_table, put, read_all, rec};
use crate::store::Store;

fn refused(engine: &Engine, request: CatalogRequest) -> Error {
    let (before, published) = (engine.catalog().tables().count(), engine.published());
    let error = engine.change_catalog(request).unwrap_err();
    assert_eq!((engine.catalog().tables().count(), engine.published()), (before, published));
    error
}

#[test]
fn bad_requests_are_refused() {
    let store = Store::new();
    let engine = store.open();
    let id = create(&engine, "t", DAY).id();
    let new = |name: &str| new_table(name, TableKind::Points, DAY);
    let create = |table| CatalogRequest::CreateTable(table);
    assert!(matches!(refused(&engine, create(new("t"))), Error::Conflict(_)));
    assert!(matches!(refused(&engine, create(new(""))), Error::Row(_)));
    assert!(matches!(refused(&engine, create(new(&"x".repeat(2000)))), Error::Row(_)));
    let mut unnamed = new("u");
    unnamed.database = String::new();
    assert!(matches!(refused(&engine, create(unnamed)), Error::Row(_)));
    for partition in [0, -1, 7 * HOUR, DAY + 1] {
        assert!(matches!(
            refused(&engine, create(new_table("u", TableKind::Points, partition))),
            Error::Row(_)
        ));
        let options = TableOptions { partition, ..TableOptions::default() };
        assert!(matches!(refused(&engine, CatalogRequest::SetOptions(id, options)), Error::Row(_)));
    }
    for options in [
        TableOptions { retention: -1, ..TableOptions::default() },
        TableOptions { max_bytes: -1, ..TableOptions::default() },
    ] {
        assert!(matches!(refused(&engine, CatalogRequest::SetOptions(id, options)), Error::Row(_)));
    }
    for bad in [
        column("n", ColumnRole::Tag, PhysicalType::Int64),
        column("n", ColumnRole::Time, PhysicalType::Int64),
        column("", ColumnRole::Field, PhysicalType::Int64),
        column(&"x".repeat(256), ColumnRole::Field, PhysicalType::Int64),
    ] {
        assert!(matches!(refused(&engine, CatalogRequest::AddColumns(id, vec![bad])), Error::Row(_)));
    }
    let other = column("f", ColumnRole::Field, PhysicalType::Int64);
    assert!(matches!(refused(&engine, CatalogRequest::AddColumns(id, vec![other])), Error::Conflict(_)));
    let gone = TableId(77);
    let options = TableOptions::default();
    for request in [
        CatalogRequest::AddColumns(gone, vec![]),
        CatalogRequest::SetOptions(gone, options),
        CatalogRequest::DropTable(gone),
    ] {
        assert!(matches!(refused(&engine, request), Error::Conflict(_)));
    }
    let object = |name: &str| Object {
        kind: ObjectKind::Rule,
        database: "public".into(),
        name: name.into(),
        text: "CREATE RULE".into(),
    };
    let put_object = |object, replace| CatalogRequest::PutObject { object, replace };
    assert!(matches!(refused(&engine, put_object(object(&"x".repeat(2000)), false)), Error::Row(_)));
    let long = Object { text: "x".repeat((16 << 20) + 1), ..object("r") };
    assert!(matches!(refused(&engine, put_object(long, false)), Error::Limit { .. }));
    engine.change_catalog(put_object(object("r"), false)).unwrap();
    assert!(matches!(refused(&engine, put_object(object("r"), false)), Error::Conflict(_)));
    // After all of them the writer is as good as before, and so is the log.
    put(&engine, "t", &[rec(&[("device", "d")], START, &[])]);
    let engine = store.restart(engine);
    assert_eq!(read_all(&engine, "t").len(), 1);
    assert_eq!(engine.catalog().tables().count(), 1);
    assert_eq!(engine.catalog().objects(ObjectKind::Rule).count(), 1);
}

#[test]
fn names_match_exactly_or_alone() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "Temp", DAY);
    let catalog = engine.catalog();
    assert!(catalog.table("public", "TEMP").is_some() && catalog.table("other", "Temp").is_none());
    create(&engine, "temp", DAY);
    let catalog = engine.catalog();
    assert!(catalog.table("public", "TEMP").is_none(), "two match");
    assert_eq!(catalog.table("public", "temp").unwrap().def().name, "temp");
    let error = |database| catalog.require_table(database, "tmep").unwrap_err().to_string();
    assert!(error("public").contains("did you mean Temp?"), "{}", error("public"));
    assert!(!error("other").contains("Temp"), "names of another database stay there");
}

/// Versions of kinds grow with every change, so that whoever compiles them sees it.
#[test]
fn versions_grow() {
    let store = Store::new();
    let engine = store.open();
    let version = |kind| engine.catalog().version(kind);
    let object = |text: &str| Object {
        kind: ObjectKind::Source,
        database: "public".into(),
        name: "s".into(),
        text: text.into(),
    };
    for (i, text) in ["a", "b", "b"].into_iter().enumerate() {
        engine.change_catalog(CatalogRequest::PutObject { object: object(text), replace: true }).unwrap();
        assert_eq!(version(ObjectKind::Source), i as u64 + 1);
    }
    let drop =
        CatalogRequest::DropObject { kind: ObjectKind::Source, database: "public".into(), name: "s".into() };
    engine.change_catalog(drop.clone()).unwrap();
    assert_eq!((version(ObjectKind::Source), version(ObjectKind::Rule)), (4, 0));
    assert!(matches!(engine.change_catalog(drop), Err(Error::Conflict(_))));
}

/// A rule's cursor is made and removed in the rule's own commit, and survives its replacement and a crash.
#[test]
fn a_rule_stands_where_it_was_made() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", DAY);
    let key = sonde_engine::cursor_key("public", "r");
    let cursor = |engine: &Engine| {
        let value = engine.state(sonde_engine::CURSORS, &key)?;
        Some(u64::from_le_bytes(value.as_ref().try_into().unwrap()))
    };
    let rule = |text: &str| Object {
        kind: ObjectKind::Rule,
        database: "public".into(),
        name: "r".into(),
        text: text.into(),
    };
    let put_rule = |engine: &Engine, text: &str| {
        let request = CatalogRequest::PutObject { object: rule(text), replace: true };
        engine.change_catalog(request).unwrap().last.0
    };
    let made = put_rule(&engine, "one");
    put(&engine, "t", &[rec(&[("device", "d")], START, &[])]);
    assert_eq!(cursor(&engine), Some(made));
    put_rule(&engine, "two");
    let engine = store.restart(engine);
    assert_eq!(cursor(&engine), Some(made), "a replaced rule goes on");
    let drop =
        CatalogRequest::DropObject { kind: ObjectKind::Rule, database: "public".into(), name: "r".into() };
    engine.change_catalog(drop).unwrap();
    assert_eq!(cursor(&engine), None);
    let again = put_rule(&engine, "one");
    assert_eq!(cursor(&engine), Some(again), "one that is made again begins anew");
}

/// The cold tier has a column of this name in every file: its table could never cool.
#[test]
fn the_name_that_the_cold_tier_needs_is_reserved() {
    let store = Store::new();
    let engine = store.open();
    let id = create(&engine, "t", DAY).id();
    for name in ["time_ns", "TIME_NS"] {
        for role in [ColumnRole::Field, ColumnRole::Tag] {
            let reserved = || column(name, role, PhysicalType::Text);
            let mut new = new_table("u", TableKind::Points, DAY);
            new.columns.push(reserved());
            let requests =
                [CatalogRequest::CreateTable(new), CatalogRequest::AddColumns(id, vec![reserved()])];
            for request in requests {
                let error = refused(&engine, request);
                assert!(matches!(&error, Error::Row(why) if why.contains("reserved")), "{error}");
            }
        }
    }
}
