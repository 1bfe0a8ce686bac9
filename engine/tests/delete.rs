//! DELETE and UPDATE: what is seen, what is durable, what is purged and when.

use std::collections::BTreeSet;

use sonde_engine::{
    CatalogRequest, ColdValues, ColumnId, ColumnRole, Engine, Error, PhysicalType, TableKind, Timestamp, path,
};

use crate::data::{
    DAY, HOUR, Query, Rec, START, Value, choose, column, create, delete_range, message, new_table, put,
    range, read_all, rec, table, update, write,
};
use crate::model::Model;
use crate::store::{Manual, Store, files, wait_until};

fn point(device: &str, time: i64, value: i64) -> Rec {
    rec(&[("device", device)], START + time, &[("i", Value::Int(value))])
}

fn device(name: &str, start: i64, end: i64) -> Query {
    let tags = vec![("device".to_owned(), BTreeSet::from([Some(name.to_owned())]))];
    Query { time: range(START + start, START + end), tags, ..Query::default() }
}

/// Rows of two devices on three days, cold, in a chunk, and in memory.
fn layered(store: &Store) -> (Engine, Model) {
    let engine = store.open();
    create(&engine, "t", DAY);
    let mut model = Model::default();
    model.create("t", false);
    for round in 0..3 {
        let rows: Vec<Rec> = (0..3)
            .flat_map(|day| ["a", "b"].map(|device| point(device, day * DAY + round, 10 * day + round)))
            .collect();
        put(&engine, "t", &rows);
        model.apply(&message("t", &rows));
        match round {
            0 => {
                engine.flush().unwrap();
                engine.cool(table(&engine, "t").id(), Timestamp::from_nanos(START + 2 * DAY)).unwrap();
            }
            1 => engine.flush().unwrap(),
            _ => {}
        }
    }
    assert_eq!((engine.cold_files().len(), engine.chunks().len()), (2, 4));
    (engine, model)
}

/// Promises 1 to 3 and 5: seen at once in every layer, after a restart, after every rewriting.
#[test]
fn a_deletion_is_seen_everywhere_and_stays() {
    for (query, left) in [
        (device("a", 0, 3 * DAY), 9),
        (device("b", DAY, DAY + 2), 16),
        (Query { time: range(START + 1, START + 2 * DAY + 2), ..Query::default() }, 4),
        (Query::default(), 0),
        (device("nobody", 0, 3 * DAY), 18),
    ] {
        let store = Store::new();
        let (engine, mut model) = layered(&store);
        let before = engine.snapshot();
        delete_range(&engine, "t", &query).unwrap();
        let mut old = Model::default();
        std::mem::swap(&mut old, &mut model);
        model = old.clone();
        model.delete_range("t", &query);
        assert_eq!(model.tables["t"].visible().len(), left);
        model.check(&engine);
        old.check_query(&engine, &before, "t", &Query::default());
        drop(before);
        let engine = store.restart(engine);
        model.check(&engine);
        // What comes later is not deleted, nor is what overwrites.
        let again = [point("a", 0, 77), point("a", 2 * DAY + 1, 78), point("c", 5, 79)];
        put(&engine, "t", &again);
        model.apply(&message("t", &again));
        model.check(&engine);
        engine.flush().unwrap();
        model.check(&engine);
        let engine = store.restart(engine);
        model.check(&engine);
        engine.compact(table(&engine, "t").id()).unwrap();
        model.check(&engine);
        engine.cool(table(&engine, "t").id(), Timestamp::MAX).unwrap();
        model.check(&engine);
        model.check(&store.reopen(engine));
    }
}

/// Deleted bytes are nowhere in the data directory once compaction was asked for, and the tombstone is gone, too.
#[test]
fn compaction_purges_chunks_and_cold_files_and_forgets() {
    let store = Store::new();
    let (engine, mut model) = layered(&store);
    delete_range(&engine, "t", &device("a", 0, 3 * DAY)).unwrap();
    model.delete_range("t", &device("a", 0, 3 * DAY));
    assert_eq!(engine.state_entries("engine.tombstones").len(), 1);
    engine.compact(table(&engine, "t").id()).unwrap();
    assert!(engine.state_entries("engine.tombstones").is_empty(), "nothing holds what it hides");
    model.check(&engine);
    let rows: u64 = engine.chunks().iter().map(|chunk| chunk.rows).sum::<u64>()
        + engine.cold_files().iter().map(|file| file.rows).sum::<u64>();
    assert_eq!(rows, 9);
    let engine = store.reopen(engine);
    model.check(&engine);
    assert!(engine.state_entries("engine.tombstones").is_empty());
}

/// A table that is emptied gives its space back at once, in files of every kind.
#[test]
fn what_is_deleted_as_a_whole_needs_no_rewriting() {
    let store = Store::new();
    let (engine, _) = layered(&store);
    delete_range(&engine, "t", &Query::default()).unwrap();
    assert!(read_all(&engine, "t").is_empty());
    wait_until("the removal of chunks", || engine.chunks().is_empty());
    // The files go with their last reader.
    wait_until("the removal of files", || files(&store.dir(path::CHUNK_DIR)).is_empty());
    engine.compact(table(&engine, "t").id()).unwrap();
    assert!(engine.cold_files().is_empty());
    assert!(engine.state_entries("engine.tombstones").is_empty());
    assert!(read_all(&store.reopen(engine), "t").is_empty());
}

/// By itself, an hour later; a chunk without a row of the series is not written again.
#[test]
fn what_is_deleted_is_purged_by_itself_within_its_time() {
    let store = Store::new();
    let clock = Manual::at(START + 10 * DAY);
    let engine = store.open_by(&clock);
    create(&engine, "t", DAY);
    put(&engine, "t", &[point("a", 0, 1), point("b", 1, 2)]);
    put(&engine, "t", &[point("b", DAY, 3)]);
    engine.flush().unwrap();
    let untouched = engine.chunks()[1].id;
    delete_range(&engine, "t", &device("a", 0, 9 * DAY)).unwrap();
    assert_eq!(engine.chunks().iter().map(|chunk| chunk.rows).collect::<Vec<_>>(), [2, 1]);
    clock.go_on(HOUR + 1);
    wait_until("the purge", || engine.chunks()[0].rows == 1);
    wait_until("the end of the tombstone", || engine.state_entries("engine.tombstones").is_empty());
    assert_eq!(engine.chunks()[1].id, untouched);
    assert_eq!(read_all(&engine, "t"), [point("b", 1, 2), point("b", DAY, 3)]);
}

/// Rows that only the log and the memory have leave no tombstone behind.
#[test]
fn what_no_file_holds_needs_no_tombstone() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", DAY);
    put(&engine, "t", &[point("a", 0, 1), point("b", 0, 2)]);
    delete_range(&engine, "t", &device("a", 0, 1)).unwrap();
    assert!(engine.state_entries("engine.tombstones").is_empty());
    let engine = store.restart(engine);
    assert_eq!(read_all(&engine, "t"), [point("b", 0, 2)]);
}

/// Many small deletes between two flushes are one tombstone, so a loop of them costs readers little.
#[test]
fn deletes_between_two_flushes_are_one() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", DAY);
    let rows: Vec<Rec> = (0..3000).map(|time| point("a", time, time)).collect();
    put(&engine, "t", &rows);
    engine.flush().unwrap();
    for time in 0..1500 {
        delete_range(&engine, "t", &device("a", 2 * time, 2 * time + 1)).unwrap();
    }
    assert_eq!(engine.state_entries("engine.tombstones").len(), 1);
    let odd: Vec<Rec> = rows.iter().filter(|row| (row.time - START) % 2 == 1).cloned().collect();
    assert_eq!(read_all(&engine, "t"), odd);
    let engine = store.restart(engine);
    assert_eq!(read_all(&engine, "t"), odd);
}

/// The second delete became one tombstone with the first, of its position, and took what was written between them.
#[test]
fn what_is_written_between_two_deletes_stays() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", DAY);
    put(&engine, "t", &[point("a", 0, 1), point("b", 0, 1), point("c", 0, 1)]);
    engine.flush().unwrap();
    delete_range(&engine, "t", &device("a", 0, 1)).unwrap();
    put(&engine, "t", &[point("a", 0, 2)]);
    delete_range(&engine, "t", &device("b", 0, 1)).unwrap();
    let left = [point("a", 0, 2), point("c", 0, 1)];
    assert_eq!(read_all(&engine, "t"), left);
    let engine = store.restart(engine);
    assert_eq!(read_all(&engine, "t"), left);
    engine.flush().unwrap();
    assert_eq!(read_all(&engine, "t"), left);
    engine.compact(table(&engine, "t").id()).unwrap();
    assert_eq!(read_all(&store.reopen(engine), "t"), left);
}

#[test]
fn points_are_chosen_by_value_and_change_together() {
    let store = Store::new();
    let (engine, mut model) = layered(&store);
    let high = |row: &Rec| matches!(row.fields.get("i"), Some(Value::Int(i)) if *i >= 11);
    let (points, rows) = choose(&engine, "t", high);
    assert_eq!(rows.len(), 10);
    let raised: Vec<Rec> = rows
        .iter()
        .map(|row| Rec { fields: [("f".to_owned(), Value::float(0.5))].into(), ..row.clone() })
        .collect();
    update(&engine, "t", points, &raised).unwrap();
    model.apply(&message("t", &raised));
    model.check(&engine);
    let (points, _) = choose(&engine, "t", high);
    engine.delete_points(&table(&engine, "t"), points).unwrap();
    model.tables.get_mut("t").unwrap().delete(high);
    model.check(&engine);
    let engine = store.restart(engine);
    model.check(&engine);
    engine.compact(table(&engine, "t").id()).unwrap();
    model.check(&engine);
}

/// Nobody's write is lost to a change that was decided before it.
#[test]
fn a_point_that_was_written_meanwhile_is_a_conflict() {
    let store = Store::new();
    let (engine, mut model) = layered(&store);
    let all = |_: &Rec| true;
    let choose_all = || choose(&engine, "t", all);
    let expect = |result: sonde_engine::Result<sonde_engine::SeqRange>| {
        assert!(matches!(result, Err(Error::Conflict(_))), "{result:?}");
    };
    let (points, rows) = choose_all();
    put(&engine, "t", &[point("a", 0, 99)]);
    expect(engine.delete_points(&table(&engine, "t"), points.clone()));
    expect(update(&engine, "t", points, &rows));
    // The same where a flush came between.
    let (points, rows) = choose_all();
    put(&engine, "t", &[point("a", 0, 99)]);
    engine.flush().unwrap();
    expect(engine.delete_points(&table(&engine, "t"), points.clone()));
    expect(update(&engine, "t", points, &rows));
    model.apply(&message("t", &[point("a", 0, 99)]));
    model.check(&engine);
    // Rows that were deleted meanwhile do not come back.
    let (points, rows) = choose_all();
    delete_range(&engine, "t", &device("b", 0, 9 * DAY)).unwrap();
    expect(update(&engine, "t", points, &rows));
    model.delete_range("t", &device("b", 0, 9 * DAY));
    model.check(&engine);
    // Another point of the same block is no conflict.
    let (points, _) = choose(&engine, "t", |row| row.time == START);
    put(&engine, "t", &[point("a", 7, 1)]);
    engine.delete_points(&table(&engine, "t"), points).unwrap();
    model.apply(&message("t", &[point("a", 7, 1)]));
    model.tables.get_mut("t").unwrap().delete(|row| row.time == START);
    model.check(&engine);
}

/// The same where the day went to the cold tier meanwhile, for the first time or again.
#[test]
fn a_point_that_was_written_and_cooled_meanwhile_is_a_conflict() {
    for was_cold in [false, true] {
        let store = Store::new();
        let engine = store.open();
        let id = create(&engine, "t", DAY).id();
        let cool = || engine.cool(id, Timestamp::from_nanos(START + DAY)).unwrap();
        put(&engine, "t", &[point("a", 0, 1), point("a", DAY, 1)]);
        engine.flush().unwrap();
        if was_cold {
            assert_eq!(cool(), 1);
        }
        let of_day = |day: i64| choose(&engine, "t", move |row| row.time == START + day * DAY);
        let ((points, mut rows), (next, mut next_rows)) = (of_day(0), of_day(1));
        put(&engine, "t", &[point("a", 0, 100)]);
        engine.flush().unwrap();
        assert_eq!(cool(), 1);
        assert_eq!(engine.chunks().len(), 1, "nothing but the next day is hot");
        rows.iter_mut().chain(&mut next_rows).for_each(|row| row.fields = point("a", 0, 2).fields);
        let deleted = engine.delete_points(&table(&engine, "t"), points.clone());
        assert!(matches!(deleted, Err(Error::Conflict(_))), "was cold: {was_cold}, {deleted:?}");
        let updated = update(&engine, "t", points, &rows);
        assert!(matches!(updated, Err(Error::Conflict(_))), "was cold: {was_cold}, {updated:?}");
        // A day that moved is none of a change of another one.
        let next_rows: Vec<Rec> =
            next_rows.into_iter().map(|row| Rec { time: row.time + 1, ..row }).collect();
        update(&engine, "t", next, &next_rows).unwrap();
        let left = [point("a", 0, 100), point("a", DAY, 1), point("a", DAY + 1, 2)];
        assert_eq!(read_all(&engine, "t"), left);
        // What is chosen behind the move is changed.
        let (points, mut rows) = of_day(0);
        rows.iter_mut().for_each(|row| row.fields = point("a", 0, 101).fields);
        update(&engine, "t", points, &rows).unwrap();
        assert_eq!(read_all(&store.restart(engine), "t")[0], point("a", 0, 101));
    }
}

/// Writers go on while rows are deleted by their values, again and again.
#[test]
fn a_stream_of_writes_does_not_starve_a_change() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", DAY);
    put(&engine, "t", &[point("old", 0, 1)]);
    let writer = {
        let engine = engine.clone();
        std::thread::spawn(move || {
            for time in 0..2000 {
                put(&engine, "t", &[point("new", time, 2)]);
            }
        })
    };
    let mut deleted = 0;
    while !writer.is_finished() {
        let (points, rows) = choose(&engine, "t", |row| row.tags["device"] == "old");
        deleted += rows.len();
        engine.delete_points(&table(&engine, "t"), points).unwrap();
        put(&engine, "t", &[point("old", deleted as i64, 1)]);
    }
    writer.join().unwrap();
    assert!(deleted > 0);
    assert_eq!(read_all(&engine, "t").len(), 2001);
}

#[test]
fn events_go_by_ranges_only() {
    let store = Store::new();
    let engine = store.open();
    engine.change_catalog(CatalogRequest::CreateTable(new_table("e", TableKind::Events, DAY))).unwrap();
    put(&engine, "e", &[point("a", 0, 1), point("a", 0, 2), point("a", 5, 3)]);
    let (points, _) = choose(&engine, "e", |_| true);
    let error = engine.delete_points(&table(&engine, "e"), points).unwrap_err();
    assert!(error.to_string().contains("have no identity"), "{error}");
    delete_range(&engine, "e", &device("a", 0, 1)).unwrap();
    assert_eq!(read_all(&engine, "e"), [point("a", 5, 3)]);
    engine.flush().unwrap();
    delete_range(&engine, "e", &Query::default()).unwrap();
    assert!(read_all(&store.restart(engine), "e").is_empty());
}

/// A table of the same name that is made later is another one.
#[test]
fn a_dropped_table_takes_its_tombstones_with_it() {
    let store = Store::new();
    let (engine, _) = layered(&store);
    delete_range(&engine, "t", &device("a", 0, 3 * DAY)).unwrap();
    let old = table(&engine, "t");
    engine.change_catalog(CatalogRequest::DropTable(old.id())).unwrap();
    assert!(engine.state_entries("engine.tombstones").is_empty());
    create(&engine, "t", DAY);
    let gone = engine.delete_range(&old, range(0, 1), &[]).unwrap_err();
    assert!(matches!(gone, Error::Conflict(_)), "{gone}");
    put(&engine, "t", &[point("a", 0, 1)]);
    let engine = store.restart(engine);
    assert!(engine.state_entries("engine.tombstones").is_empty());
    assert_eq!(read_all(&engine, "t"), [point("a", 0, 1)]);
}

fn id(engine: &Engine, name: &str) -> ColumnId {
    table(engine, "t").exact(name).unwrap().id
}

/// Old files have columns that are gone, and a new column of the same name does not find them.
#[test]
fn columns_are_dropped_and_renamed_in_every_layer() {
    let store = Store::new();
    let (engine, _) = layered(&store);
    let change = |engine: &Engine, request| engine.change_catalog(request).map(drop);
    let t = table(&engine, "t").id();
    let rows = read_all(&engine, "t");
    change(&engine, CatalogRequest::RenameColumn(t, id(&engine, "i"), "count".into())).unwrap();
    change(&engine, CatalogRequest::RenameColumn(t, id(&engine, "device"), "machine".into())).unwrap();
    let renamed = |row: &Rec| Rec {
        tags: [("machine".to_owned(), row.tags["device"].clone())].into(),
        time: row.time,
        fields: [("count".to_owned(), row.fields["i"].clone())].into(),
    };
    let expected: Vec<Rec> = rows.iter().map(renamed).collect();
    assert_eq!(read_all(&engine, "t"), expected);
    let engine = store.reopen(engine);
    assert_eq!(read_all(&engine, "t"), expected);
    let last = table(&engine, "t").def().columns.last().unwrap().id;
    change(&engine, CatalogRequest::DropColumn(t, id(&engine, "count"))).unwrap();
    change(&engine, CatalogRequest::DropColumn(t, last)).unwrap();
    let bare = |row: &Rec| Rec { fields: [].into(), ..renamed(row) };
    let expected: Vec<Rec> = rows.iter().map(bare).collect();
    assert_eq!(read_all(&engine, "t"), expected);
    let engine = store.reopen(engine);
    let new = column("count", ColumnRole::Field, PhysicalType::Text);
    change(&engine, CatalogRequest::AddColumns(t, vec![new])).unwrap();
    assert!(id(&engine, "count") > last, "ids are never used again");
    assert_eq!(read_all(&engine, "t"), expected);
    engine.compact(t).unwrap();
    assert_eq!(read_all(&engine, "t"), expected);
    for (request, why) in [
        (CatalogRequest::DropColumn(t, id(&engine, "machine")), "is a tag"),
        (CatalogRequest::DropColumn(t, ColumnId(0)), "time"),
        (CatalogRequest::DropColumn(t, last), "dropped meanwhile"),
        (CatalogRequest::RenameColumn(t, ColumnId(0), "x".into()), "time"),
        (CatalogRequest::RenameColumn(t, id(&engine, "f"), "count".into()), "exists already"),
        (CatalogRequest::RenameColumn(t, id(&engine, "f"), "TIME_NS".into()), "reserved"),
        (CatalogRequest::RenameTable(t, "t".into()), "exists already"),
    ] {
        let error = change(&engine, request.clone()).unwrap_err();
        assert!(error.to_string().contains(why), "{request:?}: {error}");
    }
    change(&engine, CatalogRequest::RenameTable(t, "machines".into())).unwrap();
    assert_eq!(read_all(&store.reopen(engine), "machines"), expected);
}

/// What was built before a column went is refused, not stored under an id that nothing has.
#[test]
fn a_batch_for_a_column_that_went_is_a_conflict() {
    let store = Store::new();
    let engine = store.open();
    let old = create(&engine, "t", DAY);
    let mut builder = engine.batch();
    builder.begin_message();
    let field = (old.exact("i").unwrap().id, sonde_engine::FieldValue::Int(1));
    let time = Timestamp::from_nanos(START);
    builder.row(&old, &sonde_engine::Row { time, tags: &[], fields: &[field] }, None).unwrap();
    engine.change_catalog(CatalogRequest::DropColumn(old.id(), id(&engine, "i"))).unwrap();
    let error = engine.write(builder.finish().unwrap()).wait().unwrap_err();
    assert!(matches!(error, Error::Conflict(_)), "{error}");
}

#[test]
fn integers_widen_where_all_of_them_are_exact() {
    let store = Store::new();
    let (engine, _) = layered(&store);
    let t = table(&engine, "t").id();
    let rows = read_all(&engine, "t");
    engine.widen(&table(&engine, "t"), id(&engine, "i"), ColdValues::Read).unwrap();
    let float = |row: &Rec| match row.fields["i"] {
        Value::Int(i) => Rec { fields: [("i".to_owned(), Value::float(i as f64))].into(), ..row.clone() },
        _ => panic!("{row:?}"),
    };
    let mut expected: Vec<Rec> = rows.iter().map(float).collect();
    assert_eq!(read_all(&engine, "t"), expected);
    // Floats join the block that has integers.
    let new = rec(&[("device", "b")], START + 2 * DAY + 3, &[("i", Value::float(0.5))]);
    put(&engine, "t", std::slice::from_ref(&new));
    expected.push(new);
    expected.sort();
    let sorted = |engine: &Engine| {
        let mut rows = read_all(engine, "t");
        rows.sort();
        rows
    };
    assert_eq!(sorted(&engine), expected);
    let engine = store.restart(engine);
    assert_eq!(sorted(&engine), expected);
    engine.flush().unwrap();
    engine.compact(t).unwrap();
    assert_eq!(sorted(&engine), expected);
    engine.cool(t, Timestamp::MAX).unwrap();
    assert_eq!(sorted(&store.reopen(engine)), expected);
}

#[test]
fn integers_beyond_2_to_53_stay_integers() {
    for layer in 0..3 {
        let store = Store::new();
        let engine = store.open();
        create(&engine, "t", DAY);
        let large = (1 << 53) + 1;
        let row = rec(&[], START, &[("i", Value::Int(-large)), ("u", Value::UInt(1 << 53))]);
        write(&engine, &message("t", &[row])).unwrap();
        if layer > 0 {
            engine.flush().unwrap();
        }
        if layer > 1 {
            engine.cool(table(&engine, "t").id(), Timestamp::MAX).unwrap();
            assert_eq!(engine.cold_files().len(), 1);
        }
        let error = engine.widen(&table(&engine, "t"), id(&engine, "i"), ColdValues::Read).unwrap_err();
        assert!(error.to_string().contains("2^53"), "{error}");
        if layer > 1 {
            let refused =
                engine.widen(&table(&engine, "t"), id(&engine, "u"), ColdValues::Refuse).unwrap_err();
            assert!(refused.to_string().contains("TYPE DOUBLE"), "{refused}");
        }
        engine.widen(&table(&engine, "t"), id(&engine, "u"), ColdValues::Read).unwrap();
        let error = engine.widen(&table(&engine, "t"), id(&engine, "s"), ColdValues::Read).unwrap_err();
        assert!(error.to_string().contains("no other type"), "{error}");
        assert!(matches!(read_all(&engine, "t")[0].fields["u"], Value::Float(_)));
    }
}

/// A mask of very many points stays by itself, and goes like any other.
#[test]
fn many_points_are_a_tombstone_of_their_own() {
    let store = Store::new();
    let engine = store.open();
    let t = create(&engine, "t", DAY).id();
    put(&engine, "t", &[point("a", 0, 1), point("b", 0, 1)]);
    engine.flush().unwrap();
    let many: Vec<Rec> = (0..70_000).map(|time| point("a", time + 1, 1)).collect();
    put(&engine, "t", &many);
    engine.flush().unwrap();
    // Too many points to be joined with the next ones.
    let (points, _) = choose(&engine, "t", |row| row.tags["device"] == "a");
    engine.delete_points(&table(&engine, "t"), points).unwrap();
    delete_range(&engine, "t", &device("b", 0, 1)).unwrap();
    assert_eq!(engine.state_entries("engine.tombstones").len(), 2);
    engine.compact(t).unwrap();
    assert!(engine.state_entries("engine.tombstones").is_empty());
    assert!(read_all(&engine, "t").is_empty());
}
