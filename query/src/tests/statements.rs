//! Statements from their text to their rows, or their refusal.

use super::{CREATE, ask, open, refusal};

#[tokio::test]
async fn a_table_has_as_many_series_as_it_may() {
    let (query, _dir) = open();
    let create = "CREATE TABLE t (time TIMESTAMP, device STRING TAG, a DOUBLE) WITH (max_series = 2)";
    ask(&query, create).await.unwrap();
    let insert = |device: &str| format!("INSERT INTO t VALUES ('2026-01-01T00:00:00Z', '{device}', 1)");
    let shown = "SELECT series, max_series FROM system.tables WHERE name = 't'";
    for device in ["d1", "d2"] {
        ask(&query, &insert(device)).await.unwrap();
    }
    let text = refusal(&query, &insert("d3")).await;
    assert!(text.contains("public.t") && text.contains("2 series") && text.contains("ALTER TABLE"), "{text}");
    ask(&query, &insert("d1")).await.unwrap();
    assert_eq!(ask(&query, shown).await.unwrap(), [["2", "2"]]);
    ask(&query, "ALTER TABLE t SET (max_series = 3)").await.unwrap();
    ask(&query, &insert("d3")).await.unwrap();
    assert_eq!(ask(&query, shown).await.unwrap(), [["3", "3"]]);
    ask(&query, "ALTER TABLE t SET (max_series = 0)").await.unwrap();
    assert_eq!(ask(&query, shown).await.unwrap(), [["3", "10000000"]]);
    for wrong in ["-1", "'many'", "true", "1.5", "5000000000"] {
        let sql = format!("ALTER TABLE t SET (max_series = {wrong})");
        assert!(ask(&query, &sql).await.is_err(), "{sql}");
    }
}

#[tokio::test]
async fn the_time_can_be_asked_for() {
    let (query, _dir) = open();
    let later = ask(&query, "SELECT now() > TIMESTAMP '2020-01-01T00:00:00Z'").await.unwrap();
    assert_eq!(later, [["true"]]);
}

#[tokio::test]
async fn an_insert_writes_the_columns_that_it_names() {
    let (query, _dir) = open();
    ask(&query, CREATE).await.unwrap();
    let time = "'2026-01-01T00:00:00Z'";
    let now = "SELECT a, b FROM t";
    for (insert, a, b) in [
        (format!("INSERT INTO t VALUES ({time}, 'd1', 1.5, 2)"), "1.5", "2"),
        (format!("INSERT INTO t (time, device, b) VALUES ({time}, 'd1', 3)"), "1.5", "3"),
        (format!("INSERT INTO T (TIME, Device, A) SELECT {time}, 'd1', 4"), "4.0", "3"),
        (format!("INSERT INTO t (time, device, a) VALUES ({time}, 'd1', NULL)"), "NULL", "3"),
        (format!("INSERT INTO t (b, device, time) VALUES (5.0, 'd1', {time})"), "NULL", "5"),
    ] {
        assert_eq!(ask(&query, &insert).await.unwrap(), [["1"]], "{insert}");
        assert_eq!(ask(&query, now).await.unwrap(), [[a, b]], "{insert}");
    }
    for insert in [
        format!("INSERT INTO t (time, device, b) VALUES ({time}, 'd1', 6), ({time}, 'd1', 1.7)"),
        format!("INSERT INTO t (time, device, b) SELECT {time}, 'd1', 1.7"),
    ] {
        let text = refusal(&query, &insert).await;
        assert!(text.contains("b is BIGINT") && text.contains("1.7"), "{text}");
    }
    assert_eq!(ask(&query, now).await.unwrap(), [["NULL", "5"]]);
    ask(&query, "INSERT INTO t (device, a) VALUES ('d2', 1), ('d2', 2)").await.unwrap();
    assert_eq!(ask(&query, "SELECT count(*) FROM t WHERE device = 'd2'").await.unwrap(), [["2"]]);
}

#[tokio::test]
async fn our_own_databases_are_nobody_elses() {
    let (query, _dir) = open();
    for sql in [
        "CREATE TABLE system.t (time TIMESTAMP, x DOUBLE)",
        "CREATE TABLE Information_Schema.t (time TIMESTAMP, x DOUBLE)",
        "DROP TABLE system.chunks",
        "ALTER TABLE system.chunks SET (retention = '1 day')",
        "INSERT INTO system.queries VALUES (1, 'me', 1.0, 0, 'x')",
        "CREATE SOURCE s ON MQTT 's/#' FORMAT JSON INTO system.t",
    ] {
        assert!(refusal(&query, sql).await.contains("is reserved"), "{sql}");
    }
}

#[tokio::test]
async fn a_rule_reads_and_does_not_write_to_what_it_reads() {
    let (query, _dir) = open();
    ask(&query, CREATE).await.unwrap();
    ask(&query, "CREATE TABLE u (time TIMESTAMP, a DOUBLE)").await.unwrap();
    for actions in ["INSERT INTO t", "INSERT INTO public.t", "INSERT INTO sonde.public.t", "INSERT INTO T"] {
        let rule = format!("CREATE RULE r AS SELECT time, a FROM t DO {actions}");
        assert!(refusal(&query, &rule).await.contains("the table it reads"), "{rule}");
    }
    let rule = "CREATE RULE r AS INSERT INTO u SELECT time, a FROM t DO INSERT INTO u";
    assert!(refusal(&query, rule).await.contains("SELECT"));
    ask(&query, "CREATE RULE r AS SELECT time, a FROM t DO INSERT INTO u").await.unwrap();
}
