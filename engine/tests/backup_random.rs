//! Random histories with backups, restarts, and returns to an earlier position: whatever can be restored is what was.
//!
//! The seed of each case is printed. `SONDE_TORTURE_STEPS` sets the steps of a case, `SONDE_TORTURE_SEED` runs that one.

use sonde_engine::backup::{BackupStore, To, list, prune, verify};
use sonde_engine::{CatalogRequest, Engine, SeqNo, TableKind, Timestamp};

use crate::backup::{NAME, Past, destination, options_of, try_restore};
use crate::data::{DAY, START, Value, message, new_table, rec, table, write};
use crate::model::Model;
use crate::random::Random;
use crate::store::Store;

const STEPS: u64 = 70;

struct Case {
    random: Random,
    store: Store,
    to: BackupStore,
    engine: Option<Engine>,
    model: Model,
    past: Past,
    /// The newest backup of the history as it is now.
    last: Option<String>,
    restored: usize,
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

fn run(seed: u64) {
    let set = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = set("SONDE_TORTURE_SEED").unwrap_or(seed);
    let steps = set("SONDE_TORTURE_STEPS").unwrap_or(STEPS);
    println!("seed {seed}, {steps} steps");
    let mut random = Random::new(seed);
    let mut store = Store::with_own_cold();
    store.options.segment_bytes = random.pick(&[2048, 16 << 10]);
    store.options.memtable_bytes = random.pick(&[4 << 10, 64 << 20]);
    let to = destination(&store);
    let engine = Some(store.open());
    let (model, past) = (Model::default(), Past::default());
    let mut case = Case { random, store, to, engine, model, past, last: None, restored: 0 };
    case.note();
    for name in ["t", "e"] {
        case.create(name);
    }
    for step in 0..steps {
        let what = case.step();
        println!("{step}: {what}");
    }
    case.back_up();
    for _ in 0..6 {
        case.check();
    }
    let verified = verify(&case.to, None).unwrap();
    assert_eq!(verified.damage, Vec::<String>::new());
    println!("{} backups, {} restores", verified.backups, case.restored);
    case.engine.take().unwrap().close().unwrap();
}

impl Case {
    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    /// The model is what the store shows as of the last commit.
    fn note(&mut self) {
        let seq = self.engine().published();
        self.past.note(seq, &self.model);
    }

    fn create(&mut self, name: &str) {
        let kind = if name == "e" { TableKind::Events } else { TableKind::Points };
        self.engine().change_catalog(CatalogRequest::CreateTable(new_table(name, kind, DAY))).unwrap();
        self.model.create(name, name == "e");
        self.note();
    }

    fn step(&mut self) -> String {
        let name = self.random.pick(&["t", "e"]);
        let id = table(self.engine(), name).id();
        match self.random.below(100) {
            0..52 => {
                self.write(name);
                "write".into()
            }
            52..62 => {
                self.engine().flush().unwrap();
                "flush".into()
            }
            62..68 => {
                self.engine().compact(id).unwrap();
                format!("compact {name}")
            }
            68..74 => {
                let before = START + self.random.below(6) as i64 * DAY;
                let days = self.engine().cool(id, Timestamp::from_nanos(before)).unwrap();
                format!("cool {name}: {days} days")
            }
            74..76 => {
                self.engine().change_catalog(CatalogRequest::DropTable(id)).unwrap();
                self.model.tables.remove(name);
                self.note();
                self.create(name);
                format!("drop {name}")
            }
            76..80 => {
                let engine = self.engine.take().unwrap();
                let in_order = self.random.one_in(2);
                if in_order {
                    engine.close().unwrap();
                }
                drop(engine);
                self.engine = Some(self.store.open());
                self.model.check(self.engine());
                format!("restart, in good order: {in_order}")
            }
            80..92 => self.back_up(),
            92..94 => {
                let pruned = prune(&self.to, 3).unwrap();
                format!("prune: {}", pruned.backups.len())
            }
            94..96 => self.go_back(),
            _ => self.check(),
        }
    }

    fn write(&mut self, name: &str) {
        let count = 1 + self.random.below(8);
        let rows: Vec<_> = (0..count)
            .map(|_| {
                let device = format!("d{}", self.random.below(4));
                let time = START + self.random.below(6) as i64 * DAY + self.random.below(3) as i64;
                let number = self.random.below(99) as i64;
                let value = self.random.pick(&[Value::Null, Value::Int(7), Value::Int(number)]);
                rec(&[("device", &device)], time, &[("i", value), ("b", Value::Bool(true))])
            })
            .collect();
        let batch = message(name, &rows);
        write(self.engine(), &batch).unwrap();
        self.model.apply(&batch);
        self.note();
    }

    fn back_up(&mut self) -> String {
        let report = self.engine().backup(&self.to, NAME).unwrap();
        let said = report.to_string();
        self.last = Some(report.id);
        said
    }

    /// The positions that can be restored of this history.
    fn range(&self) -> Option<(SeqNo, SeqNo)> {
        let listing = list(&self.to).unwrap();
        assert_eq!(listing.unreadable, []);
        let get = |id: &String| listing.backups.iter().find(|backup| backup.id == *id);
        let tip = get(self.last.as_ref()?)?;
        let mut first = tip;
        while let Some(before) = first.since.as_ref().and_then(get) {
            first = before;
        }
        Some((first.seq, tip.seq))
    }

    /// A position of them.
    fn position(&mut self) -> Option<SeqNo> {
        let (first, last) = self.range()?;
        Some(SeqNo(first.0 + self.random.below((last.0 - first.0 + 1) as usize) as u64))
    }

    fn check(&mut self) -> String {
        let Some(seq) = self.position() else { return "nothing to restore".into() };
        let dir = self.store.beside("restored");
        let restored = try_restore(&self.to, &dir, To::Seq(seq), self.last.as_deref()).unwrap();
        // A job may have committed a record of its own in one group with rows.
        assert!(restored.seq <= seq && seq.0 - restored.seq.0 < 4, "{restored:?} instead of {seq:?}");
        let engine = Engine::open(options_of(&dir, &self.store.options)).unwrap();
        self.past.at(restored.seq).check(&engine);
        drop(engine);
        std::fs::remove_dir_all(&dir).unwrap();
        self.restored += 1;
        format!("restore to {}", seq.0)
    }

    /// Goes on from an earlier position, in another directory.
    fn go_back(&mut self) -> String {
        let Some(seq) = self.position() else { return "nowhere to go back to".into() };
        let dir = self.store.beside(&format!("branch{}", self.restored));
        let seq = try_restore(&self.to, &dir, To::Seq(seq), self.last.as_deref()).unwrap().seq;
        self.engine = None;
        self.store.options = options_of(&dir, &self.store.options);
        self.engine = Some(self.store.open());
        self.past.forget_behind(seq);
        self.model = self.past.at(seq).clone();
        self.model.check(self.engine());
        for name in ["t", "e"] {
            if !self.model.tables.contains_key(name) {
                self.create(name);
            }
        }
        self.restored += 1;
        self.last = None;
        format!("go back to {}", seq.0)
    }
}
