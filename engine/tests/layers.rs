//! Hot, cold and mixed: wherever rows lie, they are the same rows.

use sonde_engine::Timestamp;

use crate::data::{DAY, Query, START, Value, create, message, range, rec, table, write};
use crate::model::Model;
use crate::store::Store;

#[test]
fn first() {
    let store = Store::new();
    let engine = store.open();
    create(&engine, "t", DAY);
    let mut model = Model::default();
    model.create("t", false);
    let batch = message("t", &[rec(&[("device", "a")], START, &[("f", Value::float(1.5))])]);
    write(&engine, &batch).unwrap();
    model.apply(&batch);
    model.check(&engine);
    engine.flush().unwrap();
    model.check(&engine);
    let engine = store.restart(engine);
    model.check(&engine);
    assert_eq!(engine.cool(table(&engine, "t").id(), Timestamp::from_nanos(START + DAY)).unwrap(), 1);
    model.check(&engine);
    model.check_query(&engine, &engine.snapshot(), "t", &Query { time: range(START, START + 1), ..Query::default() });
    let engine = store.reopen(engine);
    model.check(&engine);
}
