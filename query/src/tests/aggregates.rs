//! Aggregates by tags, and the memory that they take: little of it leaves them to the planner, and refuses nobody.

use std::sync::Arc;

use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::physical_plan::{collect, displayable};
use sonde_engine::Engine;

use super::{CREATE, ask};
use crate::catalog::Overrides;
use crate::parse::parse_one;
use crate::planner::Planner;
use crate::{QueryEngine, QueryOptions};

const SERIES: usize = 12_000;

/// An engine with so many series of one row each, whose `b` is their number.
async fn of_many_series(dir: &tempfile::TempDir) -> Engine {
    let engine = Engine::open(sonde_engine::Options::new(dir.path().join("data"))).unwrap();
    let query = QueryEngine::new(engine.clone(), QueryOptions::new(dir.path().join("load"))).unwrap();
    ask(&query, CREATE).await.unwrap();
    let rows = format!(
        "INSERT INTO t (time, device, b) SELECT to_timestamp_seconds(1767225600 + value % 60), \
         concat('d', value), value FROM generate_series(0, {})",
        SERIES - 1
    );
    ask(&query, &rows).await.unwrap();
    ask(&query, "FLUSH TABLE t").await.unwrap();
    engine
}

const BY_SERIES: &str = "SELECT device, sum(b) AS s FROM t GROUP BY device";

#[tokio::test]
async fn totals_of_many_series_are_not_for_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let engine = of_many_series(&dir).await;
    let options = QueryOptions { memory_bytes: 2 << 20, ..QueryOptions::new(dir.path().join("spill")) };
    let query = QueryEngine::new(engine, options).unwrap();
    let plan = |sql: String| {
        let query = query.clone();
        async move { format!("{:?}", ask(&query, &format!("EXPLAIN {sql}")).await.unwrap()) }
    };
    // What is wanted counts, not what the table has.
    let one = "SELECT device, sum(b), count(*) FROM t WHERE device = 'd7' GROUP BY device";
    assert!(plan(one.to_owned()).await.contains("SondeAggregate"));
    assert_eq!(ask(&query, one).await.unwrap(), [["d7", "7", "1"]]);
    assert!(!plan(BY_SERIES.to_owned()).await.contains("SondeAggregate"));
    let all = format!("SELECT count(*), max(s) FROM ({BY_SERIES})");
    assert_eq!(ask(&query, &all).await.unwrap(), [["12000", "11999"]]);
}

#[tokio::test]
async fn totals_give_way_where_the_memory_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let engine = of_many_series(&dir).await;
    let planner = Planner::new(engine.clone(), &QueryOptions::new(dir.path().join("spill"))).unwrap();
    let session = planner.session_on(engine.snapshot(), "public", Overrides::new());
    for bytes in [64 << 20, 1536 << 10] {
        // A plan runs once.
        let plan = planner.plan(&session, parse_one(BY_SERIES).unwrap()).await.unwrap();
        let plan = session.state.create_physical_plan(&plan).await.unwrap();
        let shown = displayable(plan.as_ref()).indent(false).to_string();
        assert!(shown.contains("SondeAggregate"), "{shown}");
        let context = TaskContext::from(&session.state);
        let memory_pool = Arc::new(FairSpillPool::new(bytes));
        let runtime = RuntimeEnv { memory_pool, ..(*context.runtime_env()).clone() };
        let context = Arc::new(context.with_runtime(Arc::new(runtime)));
        let batches = collect(plan, context).await.unwrap();
        assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), SERIES, "{bytes} bytes");
    }
}
