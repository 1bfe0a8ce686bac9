"""Aggregates that the engine answers, from statistics where it can: the same as of the rows, which a LIMIT makes it read."""

import itertools

import pytest
from support import TIME_S, unique

QUERIES = [
    "SELECT count(*), count(1), count(time), min(time), max(time) FROM {}",
    "SELECT count(f), sum(f), min(f), max(f), avg(f) FROM {}",
    "SELECT count(i), sum(i), min(i), max(i), avg(i) FROM {}",
    "SELECT count(b), count(s) FROM {}",
    "SELECT sum(i), min(f), sum(f) / count(*) FROM {} WHERE device = 'd1'",
    "SELECT sum(i), max(i), count(*) FROM {} WHERE time >= to_timestamp(" + str(TIME_S + 100) + ")",
    "SELECT count(*), sum(f), max(i) FROM {} WHERE device = 'nobody'",
    "SELECT device, count(*), sum(i), avg(f), max(time) FROM {} GROUP BY device ORDER BY device",
    "SELECT site, sum(i) AS total, min(f) FROM {} GROUP BY site ORDER BY site NULLS FIRST",
    "SELECT site, device, count(s) FROM {} GROUP BY device, site ORDER BY device, site",
    "SELECT max(n) FROM (SELECT device, count(*) AS n FROM {} GROUP BY device)",
    "SELECT count(*) FROM {} WHERE time < to_timestamp(" + str(TIME_S + 50) + ") AND device IN ('d0', 'd2')",
]

# What the engine does not answer: rows go through the planner's own aggregation, with the same result.
OTHERS = [
    "SELECT count(DISTINCT i) FROM {}",
    "SELECT sum(i) FILTER (WHERE f > 20) FROM {}",
    "SELECT sum(i) FROM {} WHERE f > 20",
    "SELECT i % 3, count(*) FROM {} GROUP BY i % 3 ORDER BY 1",
    "SELECT sum(f + 1) FROM {}",
    "SELECT min(device), max(s) FROM {}",
    "SELECT date_bin(INTERVAL '1 minute', time) AS minute, avg(f) FROM {} GROUP BY minute ORDER BY minute",
]


def rows(devices=4, count=400):
    for device, n in itertools.product(range(devices), range(count)):
        row = {"device": f"d{device}", "ts": TIME_S + n, "i": (n - 7) * (device + 1), "b": n % 2 == 0, "s": f"text {n % 5}"}
        if device:
            row["site"] = f"s{device % 2}"
        if n % 10:
            row["f"] = n * 0.1 + device
        yield row


def same(found, expected):
    """The same rows; floats may differ in how they were rounded."""
    assert len(found) == len(expected), (found, expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert [pytest.approx(value, rel=1e-12) if isinstance(value, float) else value for value in theirs] == ours


def check(server, table):
    for query in QUERIES + OTHERS:
        read = query.replace("{}", f"(SELECT * FROM {table} LIMIT 1000000)")
        same(server.sql(query.replace("{}", table)), server.sql(read))


def test_aggregates_are_those_of_the_rows_in_every_layer(make_server):
    server, table = make_server(), unique()
    columns = "time TIMESTAMP, site STRING TAG, device STRING TAG, i BIGINT, f DOUBLE, b BOOLEAN, s STRING"
    server.sql(f"CREATE TABLE {table} ({columns})")
    check(server, table)
    server.write(table, list(rows()))
    check(server, table)
    server.sql(f"FLUSH TABLE {table}")
    check(server, table)
    server.sql(f"DELETE FROM {table} WHERE device = 'd1' AND time < to_timestamp({TIME_S + 20})")
    check(server, table)
    server.write(table, list(rows(devices=5, count=30)))
    check(server, table)
    server.sql(f"COOL TABLE {table} BEFORE '2024-02-25T00:00:00Z'")
    check(server, table)


def test_explain_says_who_answers(server):
    table = unique()
    server.write(table, [{"device": "d1", "value": n, "ts": TIME_S + n} for n in range(10)])

    def plan(query):
        return "\n".join(row[1] for row in server.sql(f"EXPLAIN {query}"))

    assert "SondeAggregate" in plan(f"SELECT sum(value), count(*) FROM {table}")
    assert "SondeAggregate" in plan(f"SELECT device, max(value) FROM {table} WHERE time > now() GROUP BY device")
    for query in (
        f"SELECT sum(value) FROM {table} WHERE value > 3",
        f"SELECT sum(value) FROM (SELECT * FROM {table} LIMIT 5)",
        f"SELECT count(DISTINCT value) FROM {table}",
        f"SELECT value, count(*) FROM {table} GROUP BY value",
    ):
        assert "SondeAggregate" not in plan(query), query


# The smallest and the largest of 1, 5 and NaNs, whatever answers. A filter on a field has the planner group rows.
OF_NANS = [
    "SELECT min(f)::text, max(f)::text FROM {}",
    "SELECT min(f)::text, max(f)::text FROM {} WHERE i >= 0",
    "SELECT min(f)::text, max(f)::text FROM {} GROUP BY device",
    "SELECT min(f)::text, max(f)::text FROM {} WHERE i >= 0 GROUP BY device",
    "SELECT min(f)::text, max(f)::text FROM {} GROUP BY date_trunc('day', time)",
    "SELECT min(f)::text, max(f)::text FROM {} WHERE i >= 0 GROUP BY time_bucket('1 day', time), device",
    "SELECT (min(f) OVER ())::text, (max(f) OVER ())::text FROM {} LIMIT 1",
]


def test_nan_is_above_every_number_in_every_layer(make_server):
    server, nan = make_server(), "CAST('NaN' AS DOUBLE)"

    def check(table):
        for query in OF_NANS:
            assert server.sql(query.replace("{}", table)) == [["1.0", "NaN"]], query

    def insert(table, values):
        rows = ", ".join(f"(to_timestamp({TIME_S + n}), 'd1', {n}, {value})" for n, value in enumerate(values))
        server.sql(f"INSERT INTO {table} (time, device, i, f) VALUES {rows}")

    for values in (["1", nan, "5"], [nan, "1", "5"], ["5", "1", nan], [f"-{nan}", "5", "1"], ["5", f"-{nan}", "1"]):
        table = unique()
        server.sql(f"CREATE TABLE {table} (time TIMESTAMP, device STRING TAG, i BIGINT, f DOUBLE)")
        insert(table, values)
        check(table)
        server.sql(f"FLUSH TABLE {table}")
        check(table)
        insert(table, values[:2])
        check(table)
        server.sql(f"COOL TABLE {table} BEFORE '2024-02-25T00:00:00Z'")
        check(table)


def test_totals_of_many_series_fit_into_little_memory(make_server):
    server, table, devices = make_server("query.memory=2MiB"), unique(), 12000
    lines = "\n".join(f"{table},device=d{n:05} v={n} {(TIME_S + n % 600) * 10**9}" for n in range(devices))
    assert server.http("POST", "/api/v1/write", lines, Content_Type="text/plain").status == 200
    server.sql(f"FLUSH TABLE {table}")
    one = f"SELECT device, sum(v), count(*) FROM {table} WHERE device = 'd00007' GROUP BY device"
    assert server.sql(one) == [["d00007", 7.0, 1]]
    assert any("SondeAggregate" in row[1] for row in server.sql(f"EXPLAIN {one}"))
    every = f"SELECT count(*), max(v) FROM (SELECT device, sum(v) AS v FROM {table} GROUP BY device)"
    assert server.sql(every) == [[devices, devices - 1.0]]
