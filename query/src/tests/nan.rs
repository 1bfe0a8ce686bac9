//! `min` and `max` of floats among which are NaNs: the same in every plan.

use super::{CREATE, ask, open};

#[tokio::test]
async fn nan_is_above_every_number_in_every_plan() {
    let (query, _dir) = open();
    ask(&query, CREATE).await.unwrap();
    let nan = "CAST('NaN' AS DOUBLE)";
    let negative = "-CAST('NaN' AS DOUBLE)";
    for (values, low, high) in [
        (["1", nan, "5"], "1.0", "NaN"),
        ([nan, "1", "5"], "1.0", "NaN"),
        (["5", "1", nan], "1.0", "NaN"),
        ([negative, "5", "1"], "1.0", "NaN"),
        (["5", negative, "1"], "1.0", "NaN"),
        ([negative, nan, negative], "NaN", "NaN"),
        (["NULL", nan, "NULL"], "NaN", "NaN"),
        (["5", "NULL", "-1"], "-1.0", "5.0"),
        (["NULL", "NULL", "NULL"], "NULL", "NULL"),
    ] {
        ask(&query, "TRUNCATE TABLE t").await.unwrap();
        for (n, value) in values.iter().enumerate() {
            let row = format!("INSERT INTO t VALUES ('2026-01-01T00:00:0{n}Z', 'd1', {value}, {n})");
            ask(&query, &row).await.unwrap();
        }
        for layer in ["memory", "chunk"] {
            if layer == "chunk" {
                ask(&query, "FLUSH TABLE t").await.unwrap();
            }
            for behind in [
                "",
                "WHERE b >= 0",
                "GROUP BY device",
                "WHERE b >= 0 GROUP BY device",
                "GROUP BY date_trunc('day', time)",
                "GROUP BY time_bucket('1 hour', time)",
                "GROUP BY b >= 0 ORDER BY high DESC LIMIT 1",
            ] {
                for a in ["a", "CAST(a AS REAL)"] {
                    let sql =
                        format!("SELECT min({a})::double AS low, max({a})::double AS high FROM t {behind}");
                    let found = ask(&query, &sql).await.unwrap();
                    assert_eq!(found, [[low, high]], "{values:?} in {layer}: {sql}");
                }
            }
            let windows = "SELECT min(a) OVER w, max(a) OVER w, min(b) OVER w, max(a) OVER (ORDER BY time) FROM t \
                 WINDOW w AS (ORDER BY time ROWS BETWEEN 2 PRECEDING AND CURRENT ROW) ORDER BY time DESC LIMIT 1";
            let found = ask(&query, windows).await.unwrap();
            assert_eq!(found, [[low, high, "0", high]], "{values:?} in {layer}");
        }
    }
    let plan =
        format!("{:?}", ask(&query, "EXPLAIN SELECT device, max(a) FROM t GROUP BY device").await.unwrap());
    assert!(plan.contains("SondeAggregate"), "{plan}");
}
