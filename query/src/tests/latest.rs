//! `latest(table)` as a statement sees it.

use sonde_access::{Grants, Principal};

use super::{CREATE, ask, ask_as, open, refusal};
use crate::Error;

#[tokio::test]
async fn the_newest_points_are_a_table() {
    let (query, _dir) = open();
    ask(&query, "CREATE TABLE Rooms (time TIMESTAMP, device STRING TAG, Temp DOUBLE, n BIGINT)")
        .await
        .unwrap();
    let insert = |time: u32, device: &str, temp: &str, n: &str| {
        format!("INSERT INTO Rooms VALUES ('2026-01-01T00:00:{time:02}Z', '{device}', {temp}, {n})")
    };
    for sql in [insert(1, "a", "1.5", "1"), insert(9, "b", "9.5", "9"), insert(3, "a", "3.5", "3")] {
        ask(&query, &sql).await.unwrap();
    }
    ask(&query, "FLUSH TABLE Rooms").await.unwrap();
    ask(&query, "INSERT INTO Rooms (time, device, n) VALUES ('2026-01-01T00:00:03Z', 'a', 4)").await.unwrap();
    ask(&query, &insert(2, "a", "2.5", "2")).await.unwrap();
    for (sql, expected) in [
        (
            "SELECT device, temp, n FROM latest(rooms) ORDER BY 1",
            vec![vec!["a", "3.5", "4"], vec!["b", "9.5", "9"]],
        ),
        ("SELECT n FROM latest('public.rooms') WHERE device = 'a'", vec![vec!["4"]]),
        ("SELECT n FROM LATEST(public.Rooms) AS l WHERE l.DEVICE IN ('b', 'c')", vec![vec!["9"]]),
        // What is not a tag is asked of the newest points, and no older point steps in.
        ("SELECT device FROM latest(Rooms) WHERE n < 4", vec![]),
        ("SELECT device FROM latest(Rooms) WHERE time < '2026-01-01T00:00:05Z'", vec![vec!["a"]]),
        ("SELECT device FROM latest(Rooms) WHERE temp IS NULL OR device = 'b'", vec![vec!["b"]]),
        ("SELECT count(*) FROM latest(Rooms)", vec![vec!["2"]]),
        ("SELECT count(*) FROM (SELECT 1 FROM latest(Rooms) LIMIT 1)", vec![vec!["1"]]),
        (
            "SELECT r.n, l.n FROM Rooms r JOIN latest(Rooms) l ON r.device = l.device WHERE r.n = 2",
            vec![vec!["2", "4"]],
        ),
        ("SELECT n FROM Rooms WHERE time IN (SELECT max(time) FROM latest(Rooms))", vec![vec!["9"]]),
    ] {
        assert_eq!(ask(&query, sql).await.unwrap(), expected, "{sql}");
    }
    let plan = ask(&query, "EXPLAIN SELECT n FROM latest(Rooms) WHERE device = 'a'").await.unwrap();
    let plan = format!("{plan:?}");
    assert!(
        plan.contains("LatestScan: table=public.Rooms, tags=1") && !plan.contains("FilterExec"),
        "{plan}"
    );
    assert!(refusal(&query, "SELECT * FROM latest(room)").await.contains("did you mean Rooms"));
    for wrong in ["latest()", "latest(Rooms, 1)", "latest(1)"] {
        let text = refusal(&query, &format!("SELECT * FROM {wrong}")).await;
        assert!(text.contains("latest takes a table"), "{wrong}: {text}");
    }
    let nobody = Principal::new("someone", Grants { write: true, ..Grants::default() });
    let denied = ask_as(&query, nobody, "SELECT * FROM latest(Rooms)").await.unwrap_err();
    assert!(matches!(denied, Error::Denied(_)), "{denied}");
}

#[tokio::test]
async fn the_newest_of_many_series_come_in_parts() {
    let (query, _dir) = open();
    ask(&query, CREATE).await.unwrap();
    let rows = |from: u32| {
        format!(
            "INSERT INTO t (time, device, b) SELECT to_timestamp_seconds(1767225600 + value), \
             concat('d', value % 3000), value FROM generate_series({from}, {})",
            from + 5999
        )
    };
    ask(&query, &rows(0)).await.unwrap();
    ask(&query, "FLUSH TABLE t").await.unwrap();
    ask(&query, &rows(4000)).await.unwrap();
    let newest = "SELECT count(*), count(DISTINCT device), min(b), max(b) FROM latest(t)";
    assert_eq!(ask(&query, newest).await.unwrap(), [["3000", "3000", "7000", "9999"]]);
    assert_eq!(ask(&query, "SELECT b FROM latest(t) WHERE device = 'd7'").await.unwrap(), [["9007"]]);
    let limited = "SELECT count(*) FROM (SELECT b FROM latest(t) LIMIT 2500)";
    assert_eq!(ask(&query, limited).await.unwrap(), [["2500"]]);
}
