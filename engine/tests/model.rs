//! What a store should hold: the simplest thing that can be right.
//!
//! # Invariants
//! - Points fold field by field, newest first, in the order in which batches were acknowledged; absent keeps, NULL
//!   replaces. Events stay as they are.

use std::collections::BTreeMap;

use sonde_engine::{Engine, Snapshot, Timestamp};

use crate::data::{Batch, Fields, Query, Rec, Tags, Value, latest, read};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ModelTable {
    /// Whether rows have no identity.
    pub(crate) events: bool,
    /// Whether its rows go by themselves, nobody knows when.
    pub(crate) expires: bool,
    points: BTreeMap<(Tags, i64), Fields>,
    rows: Vec<Rec>,
}

impl ModelTable {
    fn apply(&mut self, row: &Rec) {
        if self.events {
            return self.rows.push(row.clone());
        }
        let point = self.points.entry((row.tags.clone(), row.time)).or_default();
        point.extend(row.fields.clone());
    }

    /// The rows as a scan returns them: without NULLs, sorted.
    pub(crate) fn visible(&self) -> Vec<Rec> {
        let fold = |((tags, time), fields): (&(Tags, i64), &Fields)| Rec {
            tags: tags.clone(),
            time: *time,
            fields: fields.clone(),
        };
        let mut rows: Vec<Rec> = self.points.iter().map(fold).chain(self.rows.iter().cloned()).collect();
        rows.iter_mut().for_each(|row| row.fields.retain(|_, value| *value != Value::Null));
        rows.sort();
        rows
    }

    /// Takes out the rows that `gone` names, as a scan returns them.
    pub(crate) fn delete(&mut self, gone: impl Fn(&Rec) -> bool) {
        let row = |tags: &Tags, time: i64, fields: &Fields| {
            let mut fields = fields.clone();
            fields.retain(|_, value| *value != Value::Null);
            Rec { tags: tags.clone(), time, fields }
        };
        self.points.retain(|(tags, time), fields| !gone(&row(tags, *time, fields)));
        self.rows.retain(|rec| !gone(&row(&rec.tags, rec.time, &rec.fields)));
    }

    /// The newest row of each series, without NULLs, in key order; of event rows with one time that which came last.
    fn newest(&self, tags: &[String]) -> Vec<Rec> {
        let key = |of: &Tags| tags.iter().map(|tag| of.get(tag).cloned()).collect::<Vec<_>>();
        let points = self.points.iter().map(|((tags, time), fields)| (tags, *time, fields));
        let rows = self.rows.iter().map(|row| (&row.tags, row.time, &row.fields));
        let mut newest: BTreeMap<Vec<Option<String>>, Rec> = BTreeMap::new();
        for (tags, time, fields) in points.chain(rows) {
            let row = Rec { tags: tags.clone(), time, fields: fields.clone() };
            let known = newest.entry(key(tags)).or_insert_with(|| row.clone());
            if known.time <= time {
                *known = row;
            }
        }
        let mut rows: Vec<Rec> = newest.into_values().collect();
        rows.iter_mut().for_each(|row| row.fields.retain(|_, value| *value != Value::Null));
        rows
    }

    /// Gives a field another name, or takes it out.
    pub(crate) fn rename_field(&mut self, from: &str, to: Option<&str>) {
        for fields in self.points.values_mut().chain(self.rows.iter_mut().map(|row| &mut row.fields)) {
            if let (Some(value), Some(to)) = (fields.remove(from), to) {
                fields.insert(to.to_owned(), value);
            }
        }
    }

    /// Makes the integers of a field floats.
    pub(crate) fn widen_field(&mut self, name: &str) {
        for fields in self.points.values_mut().chain(self.rows.iter_mut().map(|row| &mut row.fields)) {
            if let Some(Value::Int(value)) = fields.get(name) {
                let value = Value::float(*value as f64);
                fields.insert(name.to_owned(), value);
            }
        }
    }

    /// Whether these, which are sorted, are its rows; of those that expire, any.
    pub(crate) fn is(&self, rows: &[Rec]) -> bool {
        let visible = self.visible();
        if self.expires {
            rows.iter().all(|row| visible.binary_search(row).is_ok())
        } else {
            *rows == visible
        }
    }

    /// Points in it, for a case that changes one that exists.
    pub(crate) fn keys(&self) -> Vec<(Tags, i64)> {
        self.points.keys().cloned().collect()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) tables: BTreeMap<String, ModelTable>,
}

impl Model {
    pub(crate) fn create(&mut self, name: &str, events: bool) {
        self.tables.insert(name.to_owned(), ModelTable { events, ..ModelTable::default() });
    }

    pub(crate) fn apply(&mut self, batch: &Batch) {
        for (table, row) in batch.iter().flatten() {
            self.tables.get_mut(table).unwrap_or_else(|| panic!("no table {table}")).apply(row);
        }
    }

    /// What the model answers to a query, but for its limit and value ranges.
    pub(crate) fn answer(&self, table: &str, query: &Query) -> Vec<Rec> {
        let mut rows = self.tables[table].visible();
        rows.retain(|row| query.time.contains(Timestamp::from_nanos(row.time)));
        rows.retain(|row| {
            query.tags.iter().all(|(tag, values)| values.contains(&row.tags.get(tag).cloned()))
        });
        if let Some(fields) = &query.fields {
            rows.iter_mut().for_each(|row| row.fields.retain(|name, _| fields.contains(name)));
            rows.sort();
        }
        rows
    }

    /// Takes out what a query's time and tags name.
    pub(crate) fn delete_range(&mut self, table: &str, query: &Query) {
        let named = |row: &Rec| {
            query.time.contains(Timestamp::from_nanos(row.time))
                && query.tags.iter().all(|(tag, values)| values.contains(&row.tags.get(tag).cloned()))
        };
        self.tables.get_mut(table).unwrap_or_else(|| panic!("no table {table}")).delete(named);
    }

    /// Whether every table of the store holds what the model holds.
    pub(crate) fn is_held_by(&self, engine: &Engine) -> bool {
        let rows = |table: &String| {
            let mut rows = read(engine, &engine.snapshot(), table, &Query::default()).unwrap();
            rows.sort();
            rows
        };
        self.tables.iter().all(|(name, table)| table.is(&rows(name)))
    }

    /// Fails unless every table of the store holds what the model holds.
    pub(crate) fn check(&self, engine: &Engine) {
        let snapshot = engine.snapshot();
        for table in self.tables.keys() {
            self.check_query(engine, &snapshot, table, &Query::default());
            self.check_latest(engine, &snapshot, table, &Query::default());
        }
    }

    /// Fails unless the newest point of each series that passes the query's tag filters is the model's.
    pub(crate) fn check_latest(&self, engine: &Engine, snapshot: &Snapshot, table: &str, query: &Query) {
        let found = latest(engine, snapshot, table, query).unwrap();
        if self.tables[table].expires {
            // Its rows may have gone, and which of them are left nobody knows.
            return;
        }
        let def = snapshot.catalog().require_table("public", table).unwrap();
        let tags: Vec<String> = def.tags().map(|tag| tag.name.clone()).collect();
        let mut expected = self.tables[table].newest(&tags);
        expected.retain(|row| {
            query.tags.iter().all(|(tag, values)| values.contains(&row.tags.get(tag).cloned()))
        });
        if let Some(fields) = &query.fields {
            expected.iter_mut().for_each(|row| row.fields.retain(|name, _| fields.contains(name)));
        }
        assert_same(table, query, &found, &expected);
    }

    /// Fails unless the query has the model's answer.
    pub(crate) fn check_query(&self, engine: &Engine, snapshot: &Snapshot, table: &str, query: &Query) {
        let mut found = read(engine, snapshot, table, query).unwrap();
        found.sort();
        let expected = self.answer(table, query);
        if self.tables[table].expires && self.tables[table].is(&found) {
            return;
        }
        if query.limit.is_none() && query.values.is_empty() {
            assert_same(table, query, &found, &expected);
            crate::aggregate::check(engine, snapshot, table, query, &expected);
            return;
        }
        // Some of the rows, and each of them once.
        let mut left = expected.clone();
        for row in &found {
            let place = left.binary_search(row);
            let place = place.unwrap_or_else(|_| panic!("{table} {query:?}: {row:?} is not in the model"));
            left.remove(place);
        }
        if let Some(limit) = query.limit {
            assert!(found.len() <= limit, "{} rows, the limit is {limit}", found.len());
            if query.values.is_empty() {
                assert_eq!(found.len(), expected.len().min(limit), "{table} {query:?}");
            }
        } else {
            let passes = |row: &Rec| {
                query.values.iter().all(|(field, low, high)| {
                    let number = row.fields.get(field).and_then(Value::number);
                    number.is_some_and(|number| *low <= number && number <= *high)
                })
            };
            let missed: Vec<&Rec> = left.iter().filter(|row| passes(row)).collect();
            assert!(missed.is_empty(), "{table} {query:?}: missed {missed:?}");
        }
    }
}

fn assert_same(table: &str, query: &Query, found: &[Rec], expected: &[Rec]) {
    if found == expected {
        return;
    }
    let missing: Vec<&Rec> =
        expected.iter().filter(|row| found.binary_search(row).is_err()).take(5).collect();
    let extra: Vec<&Rec> = found.iter().filter(|row| expected.binary_search(row).is_err()).take(5).collect();
    panic!(
        "{table} {query:?}: {} rows instead of {}\nmissing {missing:#?}\nextra {extra:#?}",
        found.len(),
        expected.len()
    );
}
