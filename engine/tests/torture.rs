//! Random writes, flushes, compactions, coolings, restarts and crashes against the model.
//!
//! The seed of each case is printed. `SONDE_TORTURE_STEPS` sets the steps of a case, `SONDE_TORTURE_SEED` runs that one.

use std::collections::BTreeSet;
use std::sync::Arc;

use sonde_engine::{
    CatalogRequest, ColumnRole, Engine, PhysicalType, Snapshot, TableKind, TableOptions, TimeRange, Timestamp,
};

use crate::data::{
    Batch, DAY, FIELDS, Fields, HOUR, Query, Rec, START, Tags, Value, choose, column, delete_range, message,
    new_table, range, send, table, update,
};
use crate::faults::Faulty;
use crate::model::Model;
use crate::random::Random;
use crate::store::Store;

const STEPS: usize = 60;
const TABLES: [(&str, bool, i64); 4] =
    [("days", false, DAY), ("weeks", false, 7 * DAY), ("hours", false, HOUR), ("events", true, DAY)];

struct Case {
    random: Random,
    store: Store,
    disk: Faulty,
    engine: Option<Engine>,
    model: Model,
    /// Snapshots, and what they must show for as long as they are held.
    held: Vec<(Snapshot, Model)>,
    columns: usize,
}

#[test]
fn case_0() {
    run(0);
}

#[test]
fn case_1() {
    run(1);
}

#[test]
fn case_2() {
    run(2);
}

#[test]
fn case_3() {
    run(3);
}

#[test]
fn case_4() {
    run(4);
}

#[test]
fn case_5() {
    run(5);
}

fn run(seed: u64) {
    let set = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let steps = set("SONDE_TORTURE_STEPS").map_or(STEPS, |steps| steps as usize);
    let seed = set("SONDE_TORTURE_SEED").unwrap_or(seed);
    println!("seed {seed}, {steps} steps");
    let mut case = Case::new(seed);
    for step in 0..steps {
        let what = case.step();
        println!("{step}: {what}");
        case.check();
    }
    case.engine.take().unwrap().close().unwrap();
}

impl Case {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut store = Store::volatile(random.pick(&[2048, 16 << 10, 1 << 20]));
        store.options.memtable_bytes = random.pick(&[2 << 10, 64 << 10, 64 << 20]);
        let disk = Faulty::default();
        let engine = store.open_on(Arc::new(disk.clone())).unwrap();
        let mut case = Self {
            random,
            store,
            disk,
            engine: Some(engine),
            model: Model::default(),
            held: Vec::new(),
            columns: 0,
        };
        TABLES.iter().for_each(|(name, events, partition)| case.create(name, *events, *partition));
        case
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    fn create(&mut self, name: &str, events: bool, partition: i64) {
        let kind = if events { TableKind::Events } else { TableKind::Points };
        let table = new_table(name, kind, partition);
        self.engine().change_catalog(CatalogRequest::CreateTable(table)).unwrap();
        self.model.create(name, events);
    }

    fn step(&mut self) -> String {
        let (name, events, partition) = self.random.pick(&TABLES);
        let id = table(self.engine(), name).id();
        match self.random.below(100) {
            0..50 => self.write(),
            50..54 => {
                let query = Query { limit: None, values: Vec::new(), ..self.query() };
                if query.time.is_empty() {
                    return "delete nothing".into();
                }
                delete_range(self.engine(), name, &query).unwrap();
                self.model.delete_range(name, &query);
                format!("delete from {name} {:?} {:?}", query.time, query.tags)
            }
            54..57 if !events => {
                let low = self.random.below(100) as i64;
                let hit = |row: &Rec| matches!(row.fields.get("i"), Some(Value::Int(i)) if *i >= low);
                let (points, rows) = choose(self.engine(), name, hit);
                self.engine().delete_points(&table(self.engine(), name), points).unwrap();
                self.model.tables.get_mut(name).unwrap().delete(hit);
                format!("delete {} points of {name}", rows.len())
            }
            54..60 if !events => {
                let hit = |row: &Rec| row.fields.contains_key("b");
                let (points, mut rows) = choose(self.engine(), name, hit);
                if rows.is_empty() {
                    return "update nothing".into();
                }
                let fields = Fields::from([("i".into(), Value::Int(7)), ("s".into(), Value::Null)]);
                rows.iter_mut().for_each(|row| row.fields.clone_from(&fields));
                update(self.engine(), name, points, &rows).unwrap();
                self.model.apply(&message(name, &rows));
                format!("update {} points of {name}", rows.len())
            }
            54..60 => self.write(),
            60..68 => {
                self.engine().flush().unwrap();
                "flush".into()
            }
            68..74 => {
                self.engine().compact(id).unwrap();
                format!("compact {name}")
            }
            74..82 => {
                let days = self.random.below(14) as i64;
                let before = if self.random.one_in(8) { i64::MAX } else { START + days * DAY };
                let moved = self.engine().cool(id, Timestamp::from_nanos(before)).unwrap();
                format!("cool {name}: {moved} days")
            }
            82..86 => {
                self.leave();
                let engine = self.engine.take().unwrap();
                engine.close().unwrap();
                drop(engine);
                self.enter();
                "close and open".into()
            }
            86..90 => {
                self.leave();
                self.disk.crash();
                self.engine = None;
                self.enter();
                "crash".into()
            }
            90..92 => {
                let columns = self.columns;
                self.columns += 1;
                let kind = FIELDS[columns % FIELDS.len()].1;
                let new = match columns % 3 {
                    0 => column(&format!("tag{columns}"), ColumnRole::Tag, PhysicalType::Text),
                    _ => column(&format!("field{columns}"), ColumnRole::Field, kind),
                };
                self.engine().change_catalog(CatalogRequest::AddColumns(id, vec![new])).unwrap();
                format!("add a column to {name}")
            }
            92..95 => {
                let partition = self.random.pick(&[HOUR, 6 * HOUR, DAY, 2 * DAY, 7 * DAY]);
                let options = TableOptions { partition, ..TableOptions::default() };
                self.engine().change_catalog(CatalogRequest::SetOptions(id, options)).unwrap();
                format!("partitions of {name} are {} h", partition / HOUR)
            }
            95..96 => {
                self.engine().change_catalog(CatalogRequest::DropTable(id)).unwrap();
                self.create(name, events, partition);
                format!("drop {name}")
            }
            _ => {
                if self.held.len() == 2 {
                    self.held.remove(0);
                }
                self.held.push((self.engine().snapshot(), self.model.clone()));
                "hold a snapshot".into()
            }
        }
    }

    /// A held snapshot keeps files alive that another process could not: none is held over a restart.
    fn leave(&mut self) {
        self.held.clear();
    }

    fn enter(&mut self) {
        self.disk = Faulty::default();
        self.engine = Some(self.store.open_on(Arc::new(self.disk.clone())).unwrap());
    }

    /// Some batches, sent without waiting for each other.
    fn write(&mut self) -> String {
        let batches: Vec<Batch> = (0..1 + self.random.below(4)).map(|_| self.batch()).collect();
        let receipts: Vec<_> =
            batches.iter().map(|batch| send(self.engine(), batch, None).unwrap()).collect();
        for receipt in receipts {
            receipt.wait().unwrap();
        }
        batches.iter().for_each(|batch| self.model.apply(batch));
        format!("write {} rows", batches.iter().flatten().flatten().count())
    }

    fn batch(&mut self) -> Batch {
        let message = |case: &mut Self| (0..1 + case.random.below(6)).map(|_| case.row()).collect();
        (0..1 + self.random.below(4)).map(|_| message(self)).collect()
    }

    fn row(&mut self) -> (String, Rec) {
        let (name, events, _) = self.random.pick(&TABLES);
        let def = table(self.engine(), name);
        let mut fields = Fields::new();
        for column in def.def().columns.iter().filter(|column| column.role == ColumnRole::Field) {
            if self.random.one_in(2) {
                fields.insert(column.name.clone(), self.value(column.kind));
            }
        }
        let known = self.model.tables[name].keys();
        let (tags, time) = if !events && !known.is_empty() && self.random.one_in(3) {
            self.random.pick(&known)
        } else {
            let mut tags = Tags::new();
            for tag in def.tags() {
                let values = [None, None, Some(""), Some("a"), Some("b"), Some("ä\0"), Some("a\0")];
                tags.extend(self.random.pick(&values).map(|value| (tag.name.clone(), value.to_owned())));
            }
            (tags, self.time())
        };
        (name.to_owned(), Rec { tags, time, fields })
    }

    fn time(&mut self) -> i64 {
        if self.random.one_in(100) {
            return self.random.pick(&[i64::MIN, i64::MIN + DAY, -1, 0, i64::MAX - 1]);
        }
        let hours = self.random.pick(&[0, 5, 12, 23]) * HOUR;
        START + self.random.below(12) as i64 * DAY + hours + self.random.pick(&[0, 1, 999, 1000, HOUR - 1])
    }

    fn value(&mut self, kind: PhysicalType) -> Value {
        if self.random.one_in(6) {
            return Value::Null;
        }
        let random = &mut self.random;
        match kind {
            PhysicalType::Float64 => {
                let nan = f64::from_bits(0xfff8_0000_0000_1234);
                let odd = [0.0, -0.0, f64::INFINITY, f64::MIN_POSITIVE / 2.0, nan, f64::NAN, 1e300];
                let near = random.below(1000) as f64 / 10.0;
                Value::float(if random.one_in(3) { random.pick(&odd) } else { near })
            }
            PhysicalType::Int64 => {
                let near = random.below(100) as i64;
                Value::Int(if random.one_in(3) { random.pick(&[i64::MIN, i64::MAX, -1]) } else { near })
            }
            PhysicalType::UInt64 => {
                let near = random.below(100) as u64;
                Value::UInt(if random.one_in(3) { random.pick(&[u64::MAX, 1 << 63, 0]) } else { near })
            }
            PhysicalType::Boolean => Value::Bool(random.one_in(2)),
            PhysicalType::Text => {
                let long = "long ".repeat(random.below(100));
                Value::Text(random.pick(&[String::new(), "on".into(), "off".into(), "\0ü".into(), long]))
            }
        }
    }

    fn check(&mut self) {
        self.model.check(self.engine());
        for (snapshot, model) in &self.held {
            for table in model.tables.keys() {
                model.check_query(self.engine(), snapshot, table, &Query::default());
                model.check_latest(self.engine(), snapshot, table, &Query::default());
            }
        }
        for _ in 0..3 {
            let (table, _, _) = self.random.pick(&TABLES);
            let query = self.query();
            self.model.check_query(self.engine(), &self.engine().snapshot(), table, &query);
            self.model.check_latest(self.engine(), &self.engine().snapshot(), table, &query);
        }
    }

    fn query(&mut self) -> Query {
        let mut query = Query::default();
        let random = &mut self.random;
        if random.one_in(2) {
            let start = START + random.below(12) as i64 * DAY + random.pick(&[0, 1, 5 * HOUR]);
            query.time = range(start, start + random.pick(&[1, HOUR, DAY, 30 * DAY]));
        }
        if random.one_in(10) {
            query.time = TimeRange { start: query.time.end, end: query.time.start };
        }
        for tag in ["site", "device"] {
            if random.one_in(3) {
                let some =
                    |random: &mut Random| random.pick(&[None, Some(""), Some("a"), Some("ä\0"), Some("no")]);
                let values: BTreeSet<_> = (0..2).map(|_| some(random).map(str::to_owned)).collect();
                query.tags.push((tag.to_owned(), values));
            }
        }
        match random.below(4) {
            0 => query.limit = Some(random.pick(&[0, 1, 2, 7, 1000])),
            1 => {
                let low = random.below(100) as f64;
                query.values.push((random.pick(&["f", "i", "u"]).to_owned(), low, low + 10.0));
            }
            2 => {
                let fields =
                    FIELDS.iter().filter(|_| random.one_in(2)).map(|(name, _)| (*name).to_owned()).collect();
                query.fields = Some(fields);
            }
            _ => {}
        }
        query
    }
}
