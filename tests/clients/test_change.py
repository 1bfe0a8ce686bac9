"""DELETE, UPDATE, TRUNCATE and ALTER TABLE through real doors, and columns that widen by themselves."""

import json

import pytest
from paho_device import Device
from support import unique

DAY = 1_700_000_000


@pytest.fixture
def device(server):
    with Device(server.address("mqtt")) as device:
        yield device


def lines(table, device, values, kind="i"):
    return "\n".join(f"{table},device={device} n={value}{kind} {DAY + n}000000000" for n, value in enumerate(values))


def kind(server, table):
    [[found]] = server.sql(f"SELECT type FROM system.columns WHERE \"table\" = 'public.{table}' AND \"column\" = 'n'")
    return found


def test_deleted_rows_are_gone_behind_every_door_and_after_a_restart(server):
    table = unique("gone")
    server.write(table, lines(table, "d1", range(10)) + "\n" + lines(table, "d2", range(10)))
    server.sql(f"FLUSH TABLE {table}")
    assert server.sql(f"DELETE FROM {table} WHERE device = 'd1' AND n < 4") == [[4]]
    assert server.sql(f"DELETE FROM {table} WHERE device = 'd2'") == [[10]]
    assert server.sql(f"UPDATE {table} SET n = n * 10 WHERE n > 8") == [[1]]
    left = [[4], [5], [6], [7], [8], [90]]
    assert server.sql(f"SELECT n FROM {table} ORDER BY n") == left
    told = server.cli("sql", "-c", f"DELETE FROM {table} WHERE n = 90")
    assert "count" in told and "1" in told
    server.restart()
    assert server.sql(f"SELECT n FROM {table} ORDER BY n") == left[:-1]
    server.sql(f"COMPACT TABLE {table}")
    rows = f"SELECT sum(rows) FROM system.chunks WHERE \"table\" = 'public.{table}'"
    assert server.sql(rows) == [[5]]
    server.sql(f"TRUNCATE TABLE {table}")
    assert server.sql(f"SELECT count(*) FROM {table}") == [[0]]
    server.write(table, lines(table, "d1", [7]))
    assert server.sql(f"SELECT n FROM {table}") == [[7]]


@pytest.mark.parametrize("flushed", [False, True])
def test_an_integer_column_widens_when_a_fraction_comes(server, device, flushed):
    table = unique("wide")
    server.write(table, lines(table, "d1", [1, 2, 1 << 53]))
    assert kind(server, table) == "BIGINT"
    if flushed:
        server.sql(f"FLUSH TABLE {table}")
    server.write(table, lines(table, "d2", [0.5], kind=""))
    assert kind(server, table) == "DOUBLE"
    assert server.sql(f"SELECT n FROM {table} ORDER BY n") == [[0.5], [1.0], [2.0], [float(1 << 53)]]
    device.publish(f"{table}/x", {"device": "d3", "n": 0.25, "ts": DAY})
    assert server.sql(f"SELECT min(n) FROM {table}") == [[0.25]]


def test_an_integer_that_no_float_holds_keeps_the_column_and_nothing_is_lost_in_silence(server, device):
    table = unique("narrow")
    server.write(table, lines(table, "d1", [(1 << 53) + 1]))
    refused = server.http("POST", "/api/v1/write?", lines(table, "d2", [0.5], kind=""), Content_Type="text/plain")
    assert refused.status == 400 and "2^53" in json.dumps(refused.json), refused
    device.publish(f"{table}/x", {"device": "d3", "n": 0.25, "ts": DAY})
    [[reason]] = server.sql(f"SELECT reason FROM system.dead_letters WHERE topic = '{table}/x'")
    assert "2^53" in reason
    assert kind(server, table) == "BIGINT"
    assert server.sql(f"SELECT n FROM {table}") == [[(1 << 53) + 1]]
