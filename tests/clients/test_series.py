"""A table has as many series as it may: a row of one more is refused at each door, by its table, its limit and what to do,
and every other row is stored. And the newest point of each series, before and after a restart."""

import json

from paho_device import Device
from support import TIME_S, unique, wait_until


def make_table(server, limit=2):
    table = unique("series")
    server.sql(f"CREATE TABLE {table} (time TIMESTAMP, device STRING TAG, v DOUBLE) WITH (max_series = {limit})")
    return table


def row(device, value):
    return {"device": device, "v": value, "ts": TIME_S + value}


def devices(server, table):
    return [name for (name,) in server.sql(f"SELECT DISTINCT device FROM {table} ORDER BY 1")]


def says_what_to_do(reason, table, limit=2):
    assert f"public.{table}" in reason and f"{limit} series" in reason, reason
    assert f"ALTER TABLE public.{table} SET (max_series" in reason and "\n" not in reason, reason


def test_over_http_the_row_is_an_error_and_the_others_are_stored(server):
    table = make_table(server)
    body = json.dumps([row("a", 1), row("b", 1), row("c", 1), row("a", 2)])
    answer = server.http("POST", f"/api/v1/write?table={table}", body, Content_Type="application/json")
    says_what_to_do(answer.text, table)
    assert devices(server, table) == ["a", "b"]
    assert server.sql(f"SELECT count(*) FROM {table}") == [[3]]
    assert server.sql(f"SELECT series, max_series FROM system.tables WHERE name = '{table}'") == [[2, 2]]
    server.write(table, [row("b", 3)])
    server.sql(f"ALTER TABLE {table} SET (max_series = 3)")
    server.write(table, [row("c", 4)])
    assert devices(server, table) == ["a", "b", "c"]


def test_over_grpc_the_row_is_an_error_and_the_others_are_stored(server):
    from grpc_client import Sonde, pa  # skips when grpcio is missing

    table = make_table(server)
    time = pa.array([TIME_S] * 4, pa.timestamp("s", tz="UTC"))
    with Sonde(server) as sonde:
        answer = sonde.write(table, {"time": time, "device": ["a", "b", "c", "a"], "v": [1.0, 2.0, 3.0, 4.0]})
    assert (answer.rows, [error.row for error in answer.errors]) == (3, [2])
    says_what_to_do(answer.errors[0].reason, table)
    assert devices(server, table) == ["a", "b"]


def test_by_sql_the_insert_fails(server):
    table = make_table(server)
    insert = f"INSERT INTO {table} VALUES ('2026-01-01T00:00:00Z', '%s', 1)"
    for device in ("a", "b", "a"):
        server.sql(insert % device)
    answer = server.post_sql(insert % "c")
    assert answer.status == 400
    says_what_to_do(answer.error, table)
    assert devices(server, table) == ["a", "b"]


def test_over_mqtt_the_message_is_a_dead_letter_and_the_others_are_stored(server):
    table = make_table(server)
    server.sql(f"CREATE SOURCE {table} ON MQTT '{table}/{{device}}' FORMAT JSON INTO {table}")
    with Device(server.address("mqtt")) as device:
        for name in ("a", "b", "c", "a", "d", "b"):
            device.publish(f"{table}/{name}", {"v": 1.5})
    assert server.sql(f"SELECT device, count(*) FROM {table} GROUP BY 1 ORDER BY 1") == [["a", 2], ["b", 2]]
    letters = server.sql(
        f"SELECT topic, reason FROM system.dead_letters WHERE topic LIKE '{table}/%' ORDER BY time"
    )
    assert [topic for topic, _ in letters] == [f"{table}/c", f"{table}/d"]
    for _, reason in letters:
        says_what_to_do(reason, table)


def test_the_default_source_has_the_tables_limit(server):
    """Its own is 100,000; a table that was given one keeps to that."""
    table = unique("free")
    with Device(server.address("mqtt")) as device:
        device.publish(table, {"device": "a", "v": 1.5})
        wait_until(lambda: server.post_sql(f"SELECT * FROM {table}").status == 200, "the table")
        server.sql(f"ALTER TABLE {table} SET (max_series = 1)")
        device.publish(table, {"device": "b", "v": 1.5})
        device.publish(table, {"device": "a", "v": 2.5})
    assert devices(server, table) == ["a"]
    ((reason,),) = server.sql(f"SELECT reason FROM system.dead_letters WHERE topic = '{table}'")
    says_what_to_do(reason, table, 1)
    assert "CREATE SOURCE" not in reason, "it would not lift this limit"


def test_the_newest_points_survive_a_restart(make_server):
    server = make_server()
    table = unique("newest")
    newest = f"SELECT device, v FROM latest({table}) ORDER BY device"
    server.write(table, [row("a", 1), row("b", 5)])
    server.sql(f"FLUSH TABLE {table}")
    server.write(table, [row("a", 3), row("b", 4)])
    expected = [["a", 3.0], ["b", 5.0]]
    assert server.sql(newest) == expected
    server.kill9()
    server.restart()
    assert server.sql(newest) == expected
    assert server.sql(f"SELECT v FROM latest('{table}') WHERE device = 'b'") == [[5.0]]
    server.write(table, [row("a", 7)])
    assert server.sql(newest) == [["a", 7.0], ["b", 5.0]]
