"""What is too much or wrong ends with one clear sentence and the right status, and the server goes on: time, memory,
size, depth, names, types."""

import contextlib
import gzip
import http.client
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import CLIENT_SECONDS, TIME_S, servers, unique, wait_until

# Run for ever, the first without a single row, the second with more rows than anybody reads.
SILENT = "SELECT count(*) FROM generate_series(1, 1000000000000) WHERE sin(value) > 2"
ENDLESS = "SELECT * FROM generate_series(1, 1000000000000)"
MIB = 1 << 20


@pytest.fixture(scope="module")
def table(server):
    name = unique("readings")
    server.write(name, [{"device": "d1", "value": 1, "ts": TIME_S}])
    return name


@pytest.fixture(scope="module")
def strict(binary, tmp_path_factory):
    """A server with little time and little memory for queries."""
    with servers(binary, tmp_path_factory) as make:
        yield make("query.timeout=1 s", "query.memory=16MiB")


def is_one_clear_sentence(answer, *about):
    assert answer.error and "\n" not in answer.error, answer
    assert "panicked" not in answer.error and "Internal" not in answer.error, answer
    assert all(word in answer.error for word in about), answer


def running(server):
    return [query["id"] for query in server.http("GET", "/api/v1/queries").json["queries"]]


@contextlib.contextmanager
def in_the_background(function, *arguments):
    """A call that is under way; its result is asked for in the block."""
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(function, *arguments)


# Time, and those who end queries


def test_a_query_ends_at_its_timeout(strict):
    answer = strict.post_sql(SILENT)
    assert answer.status == 408, answer
    is_one_clear_sentence(answer, "1 s", "query.timeout")
    assert running(strict) == []
    assert strict.sql("SELECT 1") == [[1]]


def test_grpc_and_flight_say_so_too(strict):
    from grpc_client import Sonde, grpc  # skips when grpcio is missing

    with Sonde(strict) as client, pytest.raises(grpc.RpcError) as raised:
        client.query(SILENT)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "query.timeout" in raised.value.details()

    import flight  # skips when the driver is missing
    from adbc_driver_manager import Error

    with (
        flight.connect(strict) as connection,
        connection.cursor() as cursor,
        pytest.raises(Error, match="query.timeout"),
    ):
        cursor.execute(SILENT)
        cursor.fetchall()


@pytest.mark.parametrize("how", ["KILL QUERY", "DELETE"])
def test_a_query_is_ended_by_hand(server, how):
    with in_the_background(server.post_sql, SILENT) as answer:
        (number,) = wait_until(lambda: running(server), "the query in the list")
        listed = server.sql(f"SELECT principal, sql FROM system.queries WHERE id = {number}")
        assert listed == [["admin", SILENT]]
        if how == "DELETE":
            assert server.http("DELETE", f"/api/v1/queries/{number}").status == 204
        else:
            assert server.sql(f"KILL QUERY {number}") == [["query ended"]]
        ended = answer.result(CLIENT_SECONDS)
    assert ended.status == 409
    is_one_clear_sentence(ended, "cancelled")
    assert running(server) == []


def abandon_http(server, query):
    connection = http.client.HTTPConnection(*server.address("http"), timeout=CLIENT_SECONDS)
    connection.request("POST", "/api/v1/sql", query, {"Authorization": f"Bearer {server.token}"})
    wait_until(lambda: running(server), "the query in the list")
    connection.close()


def abandon_grpc(server, query):
    from grpc_client import Sonde  # skips when grpcio is missing

    with Sonde(server) as client:
        _call = client.stream(query)  # alive until its channel is closed
        wait_until(lambda: running(server), "the query in the list")


def cancel_grpc(server, query):
    from grpc_client import Sonde

    with Sonde(server) as client:
        call = client.stream(query)
        wait_until(lambda: running(server), "the query in the list")
        call.cancel()
        wait_until(lambda: not running(server), "the end of a query that was cancelled", 5)


@pytest.mark.parametrize("query", [SILENT, ENDLESS], ids=["silent", "endless"])
@pytest.mark.parametrize("leave", [abandon_http, abandon_grpc, cancel_grpc])
def test_a_client_that_goes_away_ends_its_query(server, leave, query):
    assert running(server) == []
    leave(server, query)
    wait_until(lambda: not running(server), "the end of a query whose client has gone", 5)


def test_queries_that_compute_for_long_do_not_keep_others_waiting(server):
    """Joins that give no row for seconds, more of them than there are threads for the doors."""
    many = "generate_series(1, 6000)"
    query = f"SELECT count(*) FROM {many} a, {many} b WHERE sin(a.value + b.value) > 2"
    answers = 0
    with ThreadPoolExecutor(4) as executor:
        calls = [executor.submit(server.post_sql, query) for _ in range(4)]
        while not any(call.done() for call in calls):
            assert server.http("GET", "/health").status == 200
            answers += 1
        assert {call.result(CLIENT_SECONDS).status for call in calls} == {200}
    assert answers > 5, "the server was as good as dead while it computed"


# Memory


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM generate_series(1, 3000000) a JOIN generate_series(1, 3000000) b ON a.value = b.value",
        "SELECT array_agg(value) FROM generate_series(1, 10000000)",
    ],
    ids=["join", "aggregate"],
)
def test_a_query_that_needs_too_much_memory_ends_with_a_clear_error(strict, query):
    answer = strict.post_sql(query)
    assert answer.status == 507, answer
    is_one_clear_sentence(answer, "memory", "query.memory")
    assert running(strict) == []


def test_what_can_spill_does_and_leaves_nothing_behind(make_server):
    server = make_server("query.memory=16MiB")
    assert server.sql("SELECT count(*) FROM (SELECT DISTINCT value FROM generate_series(1, 2000000))") == [[2_000_000]]
    assert [path for path in (server.data_dir / "spill").rglob("*") if path.is_file()] == []


# Size


def post_blanks(server, path, size):
    """The server may answer, and close, before it has read everything."""
    connection = http.client.HTTPConnection(*server.address("http"), timeout=CLIENT_SECONDS)
    connection.putrequest("POST", path)
    connection.putheader("Authorization", f"Bearer {server.token}")
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    with contextlib.suppress(ConnectionError):
        connection.send(b" " * size)
    with contextlib.closing(connection):
        return connection.getresponse().status


@pytest.mark.parametrize(
    "path, size",
    [("/api/v1/sql", 2 * MIB), ("/api/v1/write?table=t", 64 * MIB + 1), ("/write", 64 * MIB + 1)],
)
def test_an_oversize_body_is_refused(server, path, size):
    assert post_blanks(server, path, size) == 413
    assert server.sql("SELECT 1") == [[1]]


def test_a_body_that_is_oversize_once_it_is_decompressed_is_refused(server):
    body = gzip.compress(b" " * (64 * MIB + 1), 1)
    assert server.http("POST", "/write", body, Content_Encoding="gzip").status == 413
    assert server.sql("SELECT 1") == [[1]]


TOO_MUCH = {
    "bytes": "SELECT '" + "x" * MIB + "'",
    "tokens": "SELECT 1 IN (" + ", ".join(["1"] * 60_000) + ")",
    "operators": "SELECT " + "1 + " * 2_001 + "1",
    "comparisons": "SELECT " + "1 = 1 AND " * 1_500 + "true",
    "negations": "SELECT " + "NOT " * 2_001 + "true",
    "signs": "SELECT " + "- " * 2_001 + "1",
    "casts": "SELECT 1" + "::BIGINT" * 2_001,
    "unions": " UNION ALL ".join(["SELECT 1"] * 1_500),
    "joins": "SELECT 1 FROM x" + " JOIN x" * 2_001,
    "parentheses": "SELECT " + "(" * 49 + "1" + ")" * 49,
    "subqueries": "SELECT * FROM " + "(SELECT * FROM " * 49 + "x" + ")" * 49,
    "calls": "SELECT " + "abs(" * 49 + "1" + ")" * 49,
    "brackets": "SELECT " + "[" * 49 + "1" + "]" * 49,
    "cases": "SELECT " + "CASE WHEN true THEN " * 2_001 + "1" + " END" * 2_001,
}


@pytest.mark.parametrize("query", TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_deep_and_long_statements_are_refused(server, query):
    answer = server.post_sql(query)
    assert answer.status in (400, 413), answer
    is_one_clear_sentence(answer, "limit")
    explained = server.post_sql(f"EXPLAIN {query}")
    assert explained.status in (400, 413), explained
    assert server.sql("SELECT 1") == [[1]]


def test_deep_statements_are_refused_by_every_door(server, table):
    from grpc_client import Sonde, grpc  # skips when grpcio is missing

    with Sonde(server) as client, pytest.raises(grpc.RpcError) as raised:
        client.query(TOO_MUCH["operators"])
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "limit" in raised.value.details()

    import flight  # skips when the driver is missing
    from adbc_driver_manager import Error

    with flight.connect(server) as connection:
        for run in ("execute", "adbc_prepare"):
            with connection.cursor() as cursor, pytest.raises(Error, match="limit"):
                getattr(cursor, run)(TOO_MUCH["operators"])
    condition = TOO_MUCH["operators"].removeprefix("SELECT ")
    answer = server.post_sql(
        f"CREATE RULE deep AS SELECT value FROM {table} WHERE value = {condition} DO PUBLISH TO 'x'"
    )
    assert answer.status == 400
    assert server.sql("SELECT name FROM system.rules WHERE name = 'deep'") == []


def test_statements_just_below_the_limits_are_answered(server):
    assert server.sql("SELECT " + "1 + " * 500 + "1") == [[501]]
    assert server.sql("SELECT " + "(" * 40 + "1" + ")" * 40) == [[1]]
    assert server.sql("SELECT 7 IN (" + ", ".join(map(str, range(5_000))) + ")") == [[True]]


# Names and types


@pytest.mark.parametrize(
    "statement, about",
    [
        ("SELECT valeu FROM {}", ["valeu", "value"]),
        ("SELECT * FROM {}x", ["{}x", "did you mean {}?"]),
        ("SELECT * FROM nowhere.{}", ["nowhere"]),
        ("SELECT sine(1)", ["sine", "Did you mean"]),
        ("SELECT value + device FROM {}", ["Float64", "Utf8"]),
        ("SELECT CAST(device AS BIGINT) FROM {}", ["d1"]),
        ("SELECT time_bucket(value, time) FROM {}", ["time_bucket", "width"]),
        ("SELECT 1; SELECT 2", ["one statement"]),
        ("", ["empty"]),
        ("-- nothing", ["empty"]),
        ("INSERT INTO {} (time, humidity) VALUES ('2026-01-01T00:00:00Z', 1)", ["humidity"]),
        ("INSERT INTO {} (time, value) VALUES ('2026-01-01T00:00:00Z', 'warm')", ["warm"]),
        ("INSERT INTO {} (time, value) VALUES ('yesterday', 1)", ["yesterday"]),
        ("INSERT INTO {}x (time) VALUES ('2026-01-01T00:00:00Z')", ["{}x"]),
        ("UPDATE {} SET time = now()", ["time", "identify a point"]),
        ("UPDATE {} SET humidity = 1", ["humidity"]),
        ("DELETE FROM {} LIMIT 1", ["LIMIT"]),
        ("TRUNCATE TABLE {}x", ["{}x"]),
        ("CREATE VIEW v AS SELECT 1", ["VIEW"]),
        ("CREATE TABLE {} (time TIMESTAMP, x DOUBLE)", ["{}", "exists already"]),
        ("CREATE TABLE {}y (x DOUBLE)", ["time TIMESTAMP"]),
        ("CREATE TABLE {}y (time TIMESTAMP, x MONEY)", ["x", "MONEY", "DOUBLE"]),
        ("CREATE TABLE {}y (time TIMESTAMP, x DOUBLE, x DOUBLE)", ["x", "twice"]),
        ("CREATE TABLE {}y (time TIMESTAMP) WITH (retntion = '1 day')", ["retntion", "retention"]),
        ("CREATE TABLE {}y (time TIMESTAMP) WITH (retention = 'soon')", ["soon", "30 days"]),
        ("CREATE TABLE {}y (time TIMESTAMP) WITH (partition = '7 hours')", ["partition"]),
        ("CREATE TABLE {}y (time TIMESTAMP) WITH (durability = 'none')", ["buffered", "fsync"]),
        ("ALTER TABLE {} SET (partition = '1 hour')", ["partition", "altered"]),
        ("ALTER TABLE {}x SET (retention = '1 hour')", ["{}x"]),
        ("DROP TABLE {}x", ["{}x"]),
        ("FLUSH TABLE {}x", ["{}x"]),
        ("COMPACT TABLE {}x", ["{}x"]),
        ("COOL TABLE {}x", ["{}x"]),
        ("COOL TABLE {} BEFORE 'soon'", ["soon"]),
        ("KILL QUERY 999999", ["999999", "system.queries"]),
        ("KILL SESSION 'nobody'", ["nobody", "system.sessions"]),
        ("SHOW nothing", ["nothing"]),
        ("CREATE SOURCE s ON MQTT 'a/#/b' FORMAT JSON INTO {}", ["a/#/b"]),
        ("CREATE SOURCE s ON MQTT 'a/#' FORMAT CSV INTO {}", ["CSV", "JSON"]),
        ("CREATE SOURCE s ON MQTT 'a/#' FORMAT JSON (unit = 'h') INTO {}", ["unit", "h"]),
        ("DROP SOURCE nothing", ["nothing"]),
        ("DROP RULE nothing", ["nothing"]),
    ],
)
def test_what_is_wrong_is_named(server, table, statement, about):
    answer = server.post_sql(statement.format(table))
    assert answer.status == 400, answer
    is_one_clear_sentence(answer, *(word.format(table) for word in about))


def test_the_system_tables_are_the_servers(make_server):
    """Without its table of dead letters, no message that is one would be acknowledged any more."""
    server = make_server()
    statements = [
        "INSERT INTO system.settings (key, value) VALUES ('a', 'b')",
        "DROP TABLE system.settings",
        "CREATE TABLE system.mine (time TIMESTAMP, x DOUBLE)",
        "DROP TABLE system.dead_letters",
    ]
    found = {statement: server.post_sql(statement).status for statement in statements}
    assert {statement for statement, status in found.items() if status not in (400, 403)} == set()


def test_parameters_are_checked(server, table):
    def ask(**body):
        return server.http("POST", "/api/v1/sql", json.dumps(body), Content_Type="application/json")

    query = f"SELECT value FROM {table} WHERE device = $1"
    assert ask(query=query, params=["d1"]).json["rows"] == [[1.0]]
    for body, about in [
        ({"query": query}, "$1"),
        ({"query": query, "params": [["d1"]]}, "parameter"),
        ({"query": query, "parms": ["d1"]}, "parms"),
        ({"params": ["d1"]}, "query"),
    ]:
        answer = ask(**body)
        assert answer.status == 400, answer
        is_one_clear_sentence(answer, about)
