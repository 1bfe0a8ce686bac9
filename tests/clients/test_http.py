"""The HTTP door: every way to write, every way to read, and one clear sentence for each error."""

import gzip
import io
import json

import pytest
from support import TIME_S, unique

ROWS = [{"device": "d1", "value": 1.5, "ts": TIME_S}, {"device": "d2", "value": 2.5, "ts": TIME_S + 1}]
STORED = [["2024-02-23T14:53:20Z", "d1", 1.5], ["2024-02-23T14:53:21Z", "d2", 2.5]]


def line_protocol(table, unit=10**9):
    return "".join(f"{table},device={r['device']} value={r['value']} {r['ts'] * unit}\n" for r in ROWS)


def stored(server, table):
    return server.sql(f"SELECT time, device, value FROM {table} ORDER BY time")


def write(server, table, body, content_type):
    return server.http("POST", f"/api/v1/write?table={table}", body, Content_Type=content_type)


def is_one_clear_sentence(answer, *about):
    """An error is one line that names the thing, not a trace of our insides."""
    assert answer.error and "\n" not in answer.error, answer
    assert "panicked" not in answer.error and "Internal" not in answer.error, answer
    for word in about:
        assert word in answer.error, answer


# Writing


def test_write_json(server):
    table = unique()
    assert write(server, table, json.dumps(ROWS), "application/json").status in (200, 204)
    assert stored(server, table) == STORED


def test_write_ndjson(server):
    table = unique()
    body = "".join(json.dumps(row) + "\n" for row in ROWS)
    assert write(server, table, body, "application/x-ndjson").status in (200, 204)
    assert stored(server, table) == STORED


def test_write_line_protocol(server):
    table = unique()
    assert write(server, table, line_protocol(table), "text/plain").status in (200, 204)
    assert stored(server, table) == STORED


def test_write_line_protocol_types(server):
    table = unique()
    line = f'{table},device=d\\ 1 f=1,i=-2i,u=3u,b=t,s="a \\"b\\", c" {TIME_S * 10**9}\n'
    assert write(server, table, line, "text/plain").status in (200, 204)
    answer = server.post_sql(f"SELECT device, f, i, u, b, s FROM {table}").json
    assert answer["rows"] == [["d 1", 1.0, -2, 3, True, 'a "b", c']]


def test_influx_1_write(server):
    table = unique()
    answer = server.http("POST", "/write?db=public&precision=s", line_protocol(table, 1))
    assert (answer.status, answer.body) == (204, b"")
    assert stored(server, table) == STORED


def test_influx_2_write(server):
    table = unique()
    path = "/api/v2/write?org=any&bucket=public&precision=ms"
    # Influx clients write `Token`, and Telegraf compresses unless told otherwise.
    body = gzip.compress(line_protocol(table, 1000).encode())
    answer = server.http("POST", path, body, token=f"Token {server.token}", Content_Encoding="gzip")
    assert (answer.status, answer.body) == (204, b"")
    assert stored(server, table) == STORED


def test_a_row_that_cannot_be_stored_does_not_take_the_others_with_it(server):
    table = unique()
    assert write(server, table, json.dumps(ROWS[:1]), "application/json").status in (200, 204)
    lines = f'{table},device=d1 value="warm" {TIME_S + 5}\n{table},device=d2 value=2.5 {TIME_S + 1}\n'
    answer = server.http("POST", "/write?db=public&precision=s", lines)
    assert answer.status == 400
    is_one_clear_sentence(answer, "partial write", "value")
    assert stored(server, table) == STORED


def test_writing_the_same_rows_again_changes_nothing(server):
    table = unique()
    for _ in range(3):
        assert write(server, table, json.dumps(ROWS), "application/json").status in (200, 204)
    assert stored(server, table) == STORED


@pytest.mark.parametrize(
    "content_type, body",
    [
        ("application/json", '[{"value": 1'),
        ("application/json", '"text"'),
        ("application/x-ndjson", "{"),
        ("text/plain", "no fields at all"),
    ],
)
def test_a_broken_body_is_refused(server, content_type, body):
    answer = write(server, unique(), body, content_type)
    assert answer.status == 400, answer
    is_one_clear_sentence(answer)


# Reading


@pytest.fixture(scope="module")
def table(server):
    name = unique("readings")
    assert write(server, name, json.dumps(ROWS), "application/json").status in (200, 204)
    return name


def query(table):
    return f"SELECT time, device, value FROM {table} ORDER BY time"


def test_read_json(server, table):
    answer = server.post_sql(query(table))
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("application/json")
    assert [column["name"] for column in answer.json["columns"]] == ["time", "device", "value"]
    assert all(column["type"] for column in answer.json["columns"])
    assert answer.json["rows"] == STORED


def test_a_query_may_be_a_json_object(server, table):
    body = json.dumps({"query": query(table)})
    answer = server.http("POST", "/api/v1/sql", body, Content_Type="application/json", Accept="application/json")
    assert answer.json["rows"] == STORED


def test_read_ndjson(server, table):
    answer = server.post_sql(query(table), "application/x-ndjson")
    assert answer.headers["Content-Type"].startswith("application/x-ndjson")
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert rows == [{"time": time, "device": device, "value": value} for time, device, value in STORED]


def test_read_csv(server, table):
    answer = server.post_sql(query(table), "text/csv")
    assert answer.headers["Content-Type"].startswith("text/csv")
    lines = [",".join(map(str, row)) for row in STORED]
    assert answer.text.splitlines() == ["time,device,value", *lines]


def arrow_rows(found):
    import flight  # skips when pyarrow is missing

    assert flight.nanoseconds(found["time"]) == [row["ts"] * 10**9 for row in ROWS]
    return [found["device"].to_pylist(), found["value"].to_pylist()]


def test_read_arrow(server, table):
    ipc = pytest.importorskip("pyarrow.ipc", reason="pyarrow is not installed")
    answer = server.post_sql(query(table), "application/vnd.apache.arrow.stream")
    assert answer.headers["Content-Type"].startswith("application/vnd.apache.arrow.stream")
    assert arrow_rows(ipc.open_stream(answer.body).read_all()) == [["d1", "d2"], [1.5, 2.5]]


def test_read_parquet(server, table):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    answer = server.post_sql(query(table), "application/vnd.apache.parquet")
    assert answer.headers["Content-Type"].startswith("application/vnd.apache.parquet")
    assert arrow_rows(parquet.read_table(io.BytesIO(answer.body))) == [["d1", "d2"], [1.5, 2.5]]


def test_every_format_states_the_columns_of_no_rows(server, table):
    ipc = pytest.importorskip("pyarrow.ipc", reason="pyarrow is not installed")
    nothing = f"SELECT time, value FROM {table} WHERE device = 'none'"
    assert server.post_sql(nothing).json["rows"] == []
    assert len(server.post_sql(nothing).json["columns"]) == 2
    assert server.post_sql(nothing, "text/csv").text.splitlines() == ["time,value"]
    assert server.post_sql(nothing, "application/x-ndjson").body == b""
    found = ipc.open_stream(server.post_sql(nothing, "application/vnd.apache.arrow.stream").body).read_all()
    assert (found.column_names, found.num_rows) == (["time", "value"], 0)


def test_limit(server):
    table = unique()
    rows = [{"device": "d1", "n": n, "ts": TIME_S + n} for n in range(5000)]
    assert write(server, table, json.dumps(rows), "application/json").status in (200, 204)
    assert server.sql(f"SELECT n FROM {table} ORDER BY time LIMIT 3") == [[0], [1], [2]]
    assert server.sql(f"SELECT n FROM {table} ORDER BY time DESC LIMIT 2 OFFSET 1") == [[4998], [4997]]
    assert len(server.sql(f"SELECT n FROM {table} LIMIT 10")) == 10
    assert server.sql(f"SELECT n FROM {table} LIMIT 0") == []


def test_time_range_and_buckets(server, table):
    assert server.sql(f"SELECT device FROM {table} WHERE time >= '2024-02-23T14:53:21Z'") == [["d2"]]
    buckets = server.sql(f"SELECT time_bucket('1 minute', time) AS t, sum(value) FROM {table} GROUP BY 1")
    assert buckets == [["2024-02-23T14:53:00Z", 4.0]]


def test_flush_and_compact_change_no_answer(server):
    table = unique()
    for row in ROWS:
        assert write(server, table, json.dumps([row]), "application/json").status in (200, 204)
        server.sql(f"FLUSH TABLE {table}")
    assert stored(server, table) == STORED
    server.sql(f"COMPACT TABLE {table}")
    assert stored(server, table) == STORED


# Errors, and who may come in


@pytest.mark.parametrize("token", [None, "Bearer wrong", "Basic d3Jvbmc6d3Jvbmc="])
@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "/api/v1/sql"),
        ("POST", "/api/v1/write?table=t"),
        ("POST", "/write?db=public"),
        ("POST", "/api/v2/write"),
    ],
)
def test_no_door_opens_without_the_token(server, method, path, token):
    answer = server.http(method, path, "SELECT 1", token=token)
    assert answer.status == 401
    is_one_clear_sentence(answer)


def test_a_refused_write_stores_nothing(server):
    table = unique()
    assert server.http("POST", "/write?db=public", line_protocol(table), token=None).status == 401
    assert server.post_sql(f"SELECT * FROM {table}").status == 400


def test_bad_sql(server):
    answer = server.post_sql("SELEC 1")
    assert answer.status == 400
    is_one_clear_sentence(answer, "SELEC")


def test_unknown_column(server, table):
    answer = server.post_sql(f"SELECT humidity FROM {table}")
    assert answer.status == 400
    is_one_clear_sentence(answer, "humidity")


def test_unknown_table_says_which_was_meant(server, table):
    answer = server.post_sql(f"SELECT * FROM {table[:-2]}{table[-1]}")
    assert answer.status == 400
    is_one_clear_sentence(answer, table)


def test_no_query_reaches_a_file(server):
    for attempt in (
        "SELECT * FROM '/etc/passwd'",
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
        "COPY (SELECT 1) TO '/tmp/x.parquet' STORED AS PARQUET",
    ):
        answer = server.post_sql(attempt)
        assert answer.status in (400, 403), (attempt, answer)
        is_one_clear_sentence(answer)


def test_a_query_that_would_overflow_the_planner_is_refused(server):
    for attempt in ("SELECT " + "1+" * 100_000 + "1", "SELECT " + "(" * 10_000 + "1" + ")" * 10_000):
        answer = server.post_sql(attempt)
        assert answer.status in (400, 413), answer
        is_one_clear_sentence(answer)
    assert server.sql("SELECT 1") == [[1]]


def test_unknown_path_and_method(server):
    assert server.http("GET", "/api/v1/nothing").status == 404
    assert server.http("DELETE", "/api/v1/sql").status == 405


# For those who watch the server


def test_health_ready_and_ping_need_no_token(server):
    assert server.http("GET", "/health", token=None).status == 200
    assert server.http("GET", "/ready", token=None).status == 200
    assert server.http("GET", "/ping", token=None).status == 204


def test_metrics(server):
    answer = server.http("GET", "/metrics")
    assert answer.status == 200
    assert "# TYPE sonde_" in answer.text
