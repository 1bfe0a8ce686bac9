"""What users are promised, one test for each promise, named after it.

Promise 5 is shown by `test_cold.py`, 6 by `test_sources.py`, 9 by `test_cold.py` and 10 by `engine/tests/log.rs` and
`test_limits.py`; the rigs behind promise 1 are `test_kill9.py` and `test_powercut.py`.
"""

import json
import secrets
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filesystem import NOLOGFLUSH, filesystem
from paho_client import V5, V311, Client, mqtt
from support import TIME_S, Server, unique, wait_until

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 160 MiB with a server's directory; skips where none can be made."""
    with filesystem("ext4", tmp_path, 160 * MIB) as disk:
        yield disk


def acknowledged_by_every_door(server, table):
    """Rows that were acknowledged by MQTT at QoS 1 and 2 and by HTTP: their numbers."""
    with Client(server, V5) as five, Client(server, V311) as three:
        five.publish(f"{table}/x", {"n": 1, "ts": TIME_S * 1000 + 1}, qos=1)
        five.publish(f"{table}/x", {"n": 2, "ts": TIME_S * 1000 + 2}, qos=2)
        three.publish(f"{table}/x", {"n": 3, "ts": TIME_S * 1000 + 3}, qos=1)
        three.publish(f"{table}/x", {"n": 4, "ts": TIME_S * 1000 + 4}, qos=2)
        server.write(table, [{"n": 5, "ts": TIME_S * 1000 + 5}])
        server.sql(f"INSERT INTO {table} (time, n) VALUES ('2024-02-23T14:53:21Z', 6)")
        server.sql(f"DELETE FROM {table} WHERE n = 3")
    return [1, 2, 4, 5, 6]


@pytest.mark.parametrize("end", ["kill -9", "power cut"])
def test_promise_1_acknowledged_means_durable(binary, make_server, tmp_path, end):
    """The moment the last answer is there, the process or the machine stops."""
    if end == "kill -9":
        server = make_server()
        numbers = acknowledged_by_every_door(server, "rows")
        server.kill9()
        server.start()
        assert server.sql("SELECT n FROM rows ORDER BY n") == [[n] for n in numbers]
        return
    with filesystem("ext4", tmp_path, 512 * MIB) as disk:
        server = Server(binary, disk.mountpoint)
        server.log = tmp_path / "server.log"
        server.start()
        try:
            numbers = acknowledged_by_every_door(server, "rows")
            disk.cut_power(NOLOGFLUSH)
            server.kill9()
            disk.remount()
            server.start()
            assert server.sql("SELECT n FROM rows ORDER BY n") == [[n] for n in numbers]
            server.stop()
        finally:
            if server.running:
                server.kill9()


def test_promise_2_a_point_is_folded_field_by_field_the_newest_wins(make_server):
    """Absent keeps, NULL replaces, a redelivery is the same point; in memory, in chunks, after restarts, and cold."""
    server = make_server()
    table, time = "folded", "2024-02-23T14:53:20Z"
    columns = "topic STRING TAG, device STRING TAG, a DOUBLE, b DOUBLE, c STRING"
    server.sql(f"CREATE TABLE {table} (time TIMESTAMP, {columns})")

    def put(**fields):
        server.write(table, [{"device": "d1", "ts": TIME_S * 1000, **fields}])

    changes = [
        (lambda: put(a=1, b=1, c="one"), [1.0, 1.0, "one"]),
        (lambda: put(a=2), [2.0, 1.0, "one"]),
        (lambda: put(b=3, c=None), [2.0, 3.0, "one"]),  # in JSON, null is absent
        (
            lambda: server.sql(f"INSERT INTO {table} (time, device, c) VALUES ('{time}', 'd1', NULL)"),
            [2.0, 3.0, None],
        ),
    ]
    steps = [
        lambda: None,
        lambda: server.sql(f"FLUSH TABLE {table}"),
        server.restart,
        lambda: server.sql(f"COMPACT TABLE {table}"),
        lambda: server.sql(f"COOL TABLE {table} BEFORE '2024-03-01T00:00:00Z'"),
        lambda: (server.kill9(), server.start()),
    ]
    for change, expected in changes:
        change()
        for step in steps:
            step()
            assert server.sql(f"SELECT a, b, c FROM {table}") == [expected]
    with Client(server) as client:
        payload = json.dumps({"device": "d2", "a": 5, "ts": TIME_S * 1000})
        for _ in range(2):
            client.publish(f"{table}/x", payload, qos=1)
    assert server.sql(f"SELECT a, b, c FROM {table} ORDER BY a") == [[2.0, 3.0, None], [5.0, None, None]]


def test_promise_3_a_query_sees_every_write_that_was_acknowledged_before(server):
    """By four writers at once, each of which asks for its own right behind the answer; and while files come and go."""
    table = unique("seen")
    server.sql(f"CREATE TABLE {table} (time TIMESTAMP, topic STRING TAG, device STRING TAG, n BIGINT)")

    def writes(device):
        with Client(server) as client:
            for n in range(40):
                row = {"device": device, "n": n, "ts": TIME_S * 1000 + n}
                if n % 2:
                    server.write(table, [row])
                else:
                    client.publish(f"{table}/x", row, qos=1 + n % 4 // 2)
                seen = server.sql(f"SELECT count(*), max(n) FROM {table} WHERE device = '{device}'")
                assert seen == [[n + 1, n]], f"{device} after {n}"
                if n % 10 == 0:
                    server.sql(f"FLUSH TABLE {table}")
                if n % 20 == 10:
                    server.sql(f"COMPACT TABLE {table}")

    with ThreadPoolExecutor(4) as executor:
        for done in [executor.submit(writes, f"d{i}") for i in range(4)]:
            done.result()


@pytest.mark.parametrize("qos", [1, 2])
def test_promise_4_messages_keep_their_order(server, qos):
    """Of one client and topic: for whoever subscribes, and in the log, whose order is which value is the newest."""
    table = unique("ordered")
    server.sql(f"CREATE TABLE {table} (time TIMESTAMP, topic STRING TAG, n BIGINT)")
    with Client(server) as receiver, Client(server, name=unique("sender")) as sender:
        receiver.subscribe(f"{table}/#", qos=2)
        waiting = [
            sender.paho.publish(f"{table}/x", json.dumps({"n": n, "ts": TIME_S * 1000}), qos) for n in range(200)
        ]
        for n in range(200):
            assert json.loads(receiver.next().payload)["n"] == n
        for sent in waiting:
            sent.wait_for_publish(20)
    # All of them are one point.
    assert server.sql(f"SELECT n FROM {table}") == [[199]]


def test_promise_7_a_full_disk_refuses_writes_keeps_reads_and_recovers_by_itself(binary, small_disk, tmp_path):
    server = Server(binary, small_disk.mountpoint, ["memory.limit=256MiB", "storage.memtable=1MiB"])
    server.log = tmp_path / "server.log"
    server.start()
    try:
        server.write("t", [{"n": 0, "ts": TIME_S * 1000}])
        ballast = Path(small_disk.mountpoint) / "ballast"
        fill(ballast)
        written, refused = 1, None
        while refused is None:
            rows = [
                {"n": written + i, "s": f"{written + i}".rjust(1000, "x"), "ts": TIME_S * 1000 + written + i}
                for i in range(200)
            ]
            answer = server.http("POST", "/api/v1/write?table=t", json.dumps(rows), Content_Type="application/json")
            if answer.status == 200:
                written += len(rows)
            else:
                refused = answer
            assert written < 2_000_000, "a full disk takes everything"
        assert refused.status == 503 and "Retry-After" in refused.headers, refused
        assert "full" in refused.error and "\n" not in refused.error
        # Reads go on, with all that was acknowledged.
        assert server.sql("SELECT count(*) FROM t") == [[written]]
        ballast.unlink()
        more = json.dumps([{"n": written, "ts": TIME_S * 1000 + written}])

        def accepted():
            answer = server.http("POST", "/api/v1/write?table=t", more, Content_Type="application/json")
            return answer.status == 200

        wait_until(accepted, "writes to be accepted again", 60)
        server.kill9()
        server.start()
        assert server.sql("SELECT count(*) FROM t") == [[written + 1]]
        server.stop()
    finally:
        if server.running:
            server.kill9()


def test_promise_7_devices_hear_nothing_of_a_full_disk_but_wait(binary, small_disk, tmp_path):
    """No error code for what will work later: their messages are stored, in order, when there is space again."""
    server = Server(binary, small_disk.mountpoint, ["memory.limit=256MiB", "storage.memtable=1MiB"])
    server.log = tmp_path / "server.log"
    server.start()
    ballast = Path(small_disk.mountpoint) / "ballast"
    acknowledged, lost = [], []
    paho = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "device", protocol=V5, reconnect_on_failure=False)
    paho.max_inflight_messages_set(20)
    paho.on_publish = lambda _client, _data, mid, code, _properties: acknowledged.append((mid, code.value))
    paho.on_disconnect = lambda *_: lost.append(True)
    try:
        paho.connect(*server.address("mqtt"), keepalive=5)
        paho.loop_start()
        numbers = {}

        def publish():
            body = {"n": len(numbers), "s": "x" * 4000, "ts": TIME_S * 1000 + len(numbers)}
            numbers[paho.publish("t/x", json.dumps(body), 1).mid] = len(numbers)

        publish()
        wait_until(lambda: acknowledged, "the first acknowledgement")
        fill(ballast)

        def stalls():
            """Whether 400 messages are not all acknowledged, and nothing comes for three seconds."""
            for _ in range(400):
                publish()
            heard, since = -1, 0.0
            while len(acknowledged) < len(numbers):
                if len(acknowledged) > heard:
                    heard, since = len(acknowledged), time.monotonic()
                elif time.monotonic() > since + 3:
                    return True
                time.sleep(0.01)
            return False

        for _ in range(200):
            if stalls():
                break
        else:
            pytest.fail("a full disk takes everything")
        stored = len(acknowledged)
        # More than what the devices have in flight, which does not compress: less may still fit into the log's segment.
        row = [{"n": 1, "s": secrets.token_hex(400_000)}]
        assert server.http("POST", "/api/v1/write?table=u", json.dumps(row), Content_Type="application/json").status == 503
        # Longer than its keep alive: pings are answered, nobody is sent away.
        until = time.monotonic() + 9
        wait_until(lambda: lost or time.monotonic() > until, "nine seconds")
        assert not lost and len(acknowledged) == stored, (lost, stored, len(acknowledged))
        ballast.unlink()
        wait_until(lambda: len(acknowledged) == len(numbers), "all acknowledgements", 60)
        assert not lost and all(code == 0 for _, code in acknowledged)
        assert [numbers[mid] for mid, _ in acknowledged] == list(range(len(numbers)))
        assert server.sql("SELECT count(*), count(DISTINCT n) FROM t") == [[len(numbers), len(numbers)]]
        paho.disconnect()
        paho.loop_stop()
        server.stop()
    finally:
        paho.loop_stop()
        if server.running:
            server.kill9()


def fill(path):
    """Takes all space that is left."""
    done = subprocess.run(
        ["dd", "if=/dev/zero", f"of={path}", "bs=64K"], capture_output=True, text=True, check=False
    )
    assert "No space left" in done.stderr, done.stderr


def test_promise_7_a_query_that_is_too_large_ends_and_ingest_goes_on(make_server):
    """With an error that says why."""
    server = make_server("query.memory=16MiB")
    server.write("t", [{"n": 0, "ts": TIME_S * 1000}])
    query = "SELECT count(*) FROM generate_series(1, 3000000) a JOIN generate_series(1, 3000000) b ON a.value = b.value"
    with ThreadPoolExecutor(2) as executor:
        large = [executor.submit(server.post_sql, query) for _ in range(2)]
        written = 1
        while not all(done.done() for done in large) or written < 10:
            server.write("t", [{"n": written, "ts": TIME_S * 1000 + written}])
            written += 1
        for done in large:
            answer = done.result()
            assert answer.status == 507 and "query.memory" in answer.error and "\n" not in answer.error, answer
    assert server.sql("SELECT count(*) FROM t") == [[written]]


def test_promise_8_neither_times_nor_tables_nor_series_are_capped(server):
    """One query over the whole of time; hundreds of tables; thousands of series; a partition for every row."""
    table = unique("ages")
    years = range(1680, 2260, 4)
    lines = [f"INSERT INTO {table} (time, y) VALUES " + ", ".join(f"('{y}-06-01T00:00:00Z', {y})" for y in years)]
    server.sql(f"CREATE TABLE {table} (time TIMESTAMP, y BIGINT) WITH (partition = '1 hour')")
    server.sql(lines[0])
    for _ in range(2):
        assert server.sql(f"SELECT count(*), min(y), max(y) FROM {table}") == [[len(years), 1680, 2256]]
        server.sql(f"FLUSH TABLE {table}")
    prefix = unique("many")
    text = "".join(f"{prefix}_{n},device=d{n} v={n} {TIME_S * 10**9}\n" for n in range(300))
    server.write(None, text)
    [[count]] = server.sql("SELECT count(*) FROM system.columns WHERE \"column\" = 'v'")
    assert count >= 300
    server.write(None, "".join(f"{prefix},device=d{n} v={n} {TIME_S * 10**9}\n" for n in range(20_000)))
    assert server.sql(f"SELECT count(DISTINCT device), sum(v) FROM {prefix}") == [[20_000, 20_000 * 19_999 / 2]]
