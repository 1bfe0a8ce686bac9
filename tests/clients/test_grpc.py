"""gRPC: rows in and out as Arrow IPC, what is refused, and who may come in."""

from datetime import UTC, datetime

import pytest
from grpc_client import Sonde, grpc, pa
from support import TIME_S, unique

TIME = pa.array([TIME_S, TIME_S + 1], pa.timestamp("s", tz="UTC"))
TIME_NS = [TIME_S * 10**9, (TIME_S + 1) * 10**9]


@pytest.fixture(scope="module")
def sonde(server):
    with Sonde(server) as client:
        yield client


def test_rows_go_in_and_come_out(sonde):
    table = unique()
    answer = sonde.write(table, {"time": TIME, "site": ["s1", "s2"], "value": [1.5, None]}, tags=["site"])
    assert (answer.rows, list(answer.errors)) == (2, [])
    found = sonde.query(f"SELECT time, site, value FROM {table} ORDER BY time")
    assert found["time"].type == pa.timestamp("ns", tz="UTC")
    assert found["time"].cast(pa.int64()).to_pylist() == TIME_NS
    assert found["site"].to_pylist() == ["s1", "s2"]
    assert found["value"].to_pylist() == [1.5, None]


@pytest.mark.parametrize(
    "time", [TIME.cast(pa.timestamp("us", tz="UTC")), pa.array(TIME_NS, pa.int64())], ids=["us", "int"]
)
def test_any_unit_of_time(sonde, time):
    table = unique()
    sonde.write(table, {"time": time, "value": [1.5, 2.5]})
    assert sonde.query(f"SELECT time FROM {table} ORDER BY time")["time"].cast(pa.int64()).to_pylist() == TIME_NS


def test_types_are_kept(sonde):
    table = unique()
    columns = {"f": pa.array([0.1]), "i": pa.array([-(1 << 60)]), "u": pa.array([(1 << 64) - 1], pa.uint64())}
    columns |= {"b": pa.array([True]), "s": pa.array(["grüße"])}
    sonde.write(table, {"time": TIME[:1], **columns})
    found = sonde.query(f"SELECT f, i, u, b, s FROM {table}")
    assert found.to_pylist() == pa.table(columns).to_pylist()
    assert [found[name].type for name in "fiub"] == [pa.float64(), pa.int64(), pa.uint64(), pa.bool_()]


def test_a_tag_identifies_the_point(sonde):
    table, now = unique(), TIME.take(pa.array([0, 0]))
    sonde.write(table, {"time": now, "site": ["s1", "s2"], "value": [1.0, 2.0]}, tags=["site"])
    sonde.write(table, {"time": now[:1], "site": ["s2"], "value": [3.0]})
    assert sonde.query(f"SELECT value FROM {table} ORDER BY site")["value"].to_pylist() == [1.0, 3.0]


def test_a_refused_row_is_named_and_the_others_are_stored(sonde):
    table = unique()
    long_ago = datetime(1999, 12, 31, tzinfo=UTC)
    time = pa.array([datetime.fromtimestamp(TIME_S, UTC), long_ago], pa.timestamp("us", tz="UTC"))
    answer = sonde.write(table, {"time": time, "value": [1.5, 2.5]})
    assert (answer.rows, [error.row for error in answer.errors]) == (1, [1])
    assert "time" in answer.errors[0].reason
    assert sonde.query(f"SELECT value FROM {table}")["value"].to_pylist() == [1.5]


def test_a_large_answer_comes_in_many_messages(sonde):
    table, count = unique(), 100_000
    sonde.write(table, {"time": pa.array(range(TIME_NS[0], TIME_NS[0] + count)), "n": pa.array(range(count))})
    parts = [part.arrow_ipc for part in sonde.stream(f"SELECT n FROM {table} ORDER BY time")]
    assert len(parts) > 2
    assert pa.ipc.open_stream(b"".join(parts)).read_all()["n"].to_pylist() == list(range(count))

    given_up = sonde.stream(f"SELECT n FROM {table}")
    next(given_up)
    given_up.cancel()
    assert sonde.query(f"SELECT count(*) AS n FROM {table}").to_pylist() == [{"n": count}]


def test_no_rows_still_have_a_schema(sonde):
    table = unique()
    sonde.write(table, {"time": TIME, "value": [1.5, 2.5]})
    found = sonde.query(f"SELECT time, value FROM {table} WHERE value > 100")
    assert (found.column_names, found.num_rows) == (["time", "value"], 0)


@pytest.mark.parametrize("sql, named", [("SELEC 1", "SELEC"), ("SELECT humidity FROM system.settings", "humidity")])
def test_an_error_names_the_thing(sonde, sql, named):
    with pytest.raises(grpc.RpcError) as raised:
        sonde.query(sql)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert named in raised.value.details() and "\n" not in raised.value.details()
    assert sonde.query("SELECT 1 AS one").to_pylist() == [{"one": 1}]


@pytest.mark.parametrize("body", [b"", b"not arrow at all", b"\xff\xff\xff\xff\xff\xff\xff\x7f"])
def test_a_broken_stream_is_refused(sonde, body):
    with pytest.raises(grpc.RpcError) as raised:
        sonde.write_ipc(unique(), body)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("authorization", [None, "Bearer wrong"])
def test_no_entry_without_the_token(server, authorization):
    with Sonde(server, authorization) as client:
        for call in (lambda: client.query("SELECT 1"), lambda: client.write_ipc("t", b"")):
            with pytest.raises(grpc.RpcError) as raised:
                call()
            assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
