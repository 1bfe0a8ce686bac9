"""Rules: what they publish and insert, what `system.rules` says of them, and what kill -9 takes from them: nothing."""

import http.client
import itertools
import json
import os
import random
import threading
import time

import pytest
from paho_client import Client
from support import CLIENT_SECONDS, TIME_S, unique, wait_rows, wait_until

SEED = int(os.environ.get("SONDE_TORTURE_SEED", 0)) or random.randrange(1, 1 << 32)
KILLS = 3
BATCH = 5
TIME = "2024-02-23T14:53:20Z"  # TIME_S


@pytest.fixture
def table(server):
    """A table that takes anything, with a row, so that rules can be made for it."""
    name = unique("readings")
    write(server, name, -1, 0.5, topic="none")
    return name


def write(server, table, n, value, **more):
    server.write(table, [{"device": f"d{n}", "value": value, "ts": TIME_S + n, **more}])


def rule(server, query, actions, create="CREATE"):
    name = unique("rule")
    server.sql(f"{create} RULE {name} AS {query} DO {actions}")
    return name


def status(server, name):
    """`system.rules` of one rule, as a dictionary."""
    columns = ["cursor", "behind", "matches", "errors", "lost", "last_error", "statement"]
    (row,) = server.sql(f"SELECT {', '.join(columns)} FROM system.rules WHERE name = '{name}'")
    return dict(zip(columns, row, strict=True))


# PUBLISH


def test_a_row_is_published_with_its_topic_and_its_values(server, table):
    prefix = unique("alerts")
    rule(server, f"SELECT time, device, value FROM {table} WHERE value > 80", f"PUBLISH TO '{prefix}/{{device}}' QOS 1")
    with Client(server) as receiver:
        receiver.subscribe(f"{prefix}/#")
        write(server, table, 1, 79.5)
        write(server, table, 2, 80.5)
        message = receiver.next()
    assert (message.topic, message.qos, message.retain) == (f"{prefix}/d2", 1, False)
    assert json.loads(message.payload) == {"time": "2024-02-23T14:53:22Z", "device": "d2", "value": 80.5}


def test_rows_by_every_door_are_seen_in_order(server, table):
    prefix, rows = unique("seen"), 10
    rule(server, f"SELECT value FROM {table} WHERE value >= 1", f"PUBLISH TO '{prefix}/x' QOS 1")
    with Client(server) as client:
        client.subscribe(f"{prefix}/#")
        for n in range(1, rows + 1, 2):
            client.publish(f"{table}/x", {"device": "d1", "value": n, "ts": TIME_S + n})
            server.sql(f"INSERT INTO {table} (time, device, value) VALUES ('{TIME}', 'd2', {n + 1})")
        assert [json.loads(client.next().payload) for _ in range(rows)] == [{"value": n + 1} for n in range(rows)]


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_qos_and_retain(server, table, qos):
    topic = f"{unique('state')}/x"
    rule(server, f"SELECT value FROM {table}", f"PUBLISH TO '{topic}' QOS {qos} RETAIN")
    with Client(server) as early, Client(server) as late:
        early.subscribe(topic, 2)
        write(server, table, 1, 7)
        assert early.next_is(topic, '{"value":7.0}').qos == qos
        late.subscribe(topic, 2)
        message = late.next_is(topic, '{"value":7.0}')
    assert (message.qos, message.retain) == (qos, True)


def test_a_value_adds_no_level_and_no_wildcard_to_the_topic(server, table):
    prefix = unique("safe")
    rule(server, f"SELECT device FROM {table}", f"PUBLISH TO '{prefix}/{{device}}/x' QOS 1")
    with Client(server) as receiver:
        receiver.subscribe(f"{prefix}/#")
        server.write(table, [{"device": "a/b+c#d", "value": 1, "ts": TIME_S}])
        receiver.next_is(f"{prefix}/a_b_c_d/x", '{"device":"a/b+c#d"}')


def test_what_a_rule_publishes_goes_to_sources_but_not_to_default(server, table):
    plain, sourced = unique("plain"), unique("sourced")
    server.sql(f"CREATE SOURCE {sourced} ON MQTT '{sourced}/+' FORMAT JSON INTO {sourced}")
    actions = ", ".join(f"PUBLISH TO '{name}/x' QOS 1" for name in (plain, sourced))
    rule(server, f"SELECT time, value FROM {table}", actions)
    write(server, table, 1, 7)
    wait_rows(server, f"SELECT value FROM {sourced}", [[7.0]])
    assert server.sql(f"SELECT messages, rows FROM system.topics WHERE topic = '{plain}/x'") == [[1, 0]]
    assert server.post_sql(f"SELECT * FROM {plain}").status == 400


# INSERT, and the query


def test_a_missing_table_is_made_with_the_strings_as_tags(server, table):
    target = unique("alerts")
    rule(server, f"SELECT time, device, value, value > 1 AS high FROM {table}", f"INSERT INTO {target}")
    write(server, table, 1, 1.5)
    wait_rows(server, f"SELECT * FROM {target}", [["2024-02-23T14:53:21Z", "d1", 1.5, True]])
    roles = server.sql(f"""SELECT "column", role FROM system.columns WHERE "table" LIKE '%{target}' ORDER BY 1""")
    assert roles == [["device", "tag"], ["high", "field"], ["time", "time"], ["value", "field"]]


def test_a_rule_may_join_a_table_that_is_read_as_it_is(server, table):
    limits, target = unique("limits"), unique("over")
    server.write(limits, [{"device": f"d{n}", "high": n, "ts": TIME_S} for n in range(4)])
    query = (
        f"SELECT r.time, r.device, r.value FROM {table} r JOIN {limits} l ON r.device = l.device WHERE r.value > l.high"
    )
    rule(server, query, f"INSERT INTO {target}")
    for n in (1, 3):
        write(server, table, n, 2)
    write(server, limits, 9, 0, high=1)
    write(server, table, 9, 2)
    wait_rows(server, f"SELECT device FROM {target} ORDER BY time", [["d1"], ["d9"]])


@pytest.mark.parametrize("query", ["SELECT now() AS at, value FROM {}", "SELECT value FROM {} WHERE time < now()"])
def test_a_rule_may_ask_for_the_time(server, table, query):
    topic = f"{unique('now')}/x"
    name = rule(server, query.format(table), f"PUBLISH TO '{topic}' QOS 1")
    with Client(server) as receiver:
        receiver.subscribe(topic)
        write(server, table, 1, 7)
        wait_until(lambda: status(server, name)["matches"] or status(server, name)["errors"], "a turn of the rule")
        assert status(server, name)["last_error"] is None
        assert json.loads(receiver.next().payload)["value"] == 7.0


def test_rows_acknowledged_after_create_rule_returned_are_seen(server, table):
    """Even if the rules are at work just then: with a slow one, which a row of another table has set off."""
    slow = unique("slow")
    write(server, slow, 1, 1)
    sum_of_many = "SELECT sum(sin(value)) AS total FROM generate_series(1, 20000000)"
    busy = rule(server, f"SELECT s.value, m.total FROM {slow} s CROSS JOIN ({sum_of_many}) m", "PUBLISH TO 'slow/x'")
    with Client(server) as client:
        for n in range(2):
            topic = f"{unique('first')}/x"
            client.subscribe(topic)
            write(server, slow, n, n)
            name = rule(server, f"SELECT value FROM {table}", f"PUBLISH TO '{topic}' QOS 1")
            client.publish(f"{table}/x", {"device": "d1", "value": n, "ts": TIME_S + n})
            wait_until(
                lambda name=name: status(server, name)["matches"], f"the first row after CREATE RULE, attempt {n}"
            )
            client.next_is(topic, f'{{"value":{n}.0}}')
            server.sql(f"DROP RULE {name}")
    server.sql(f"DROP RULE {busy}")


def test_a_replaced_rule_goes_on_where_it_stood_and_a_dropped_one_is_gone(server, table):
    prefix = unique("moved")
    name = rule(server, f"SELECT value FROM {table}", f"PUBLISH TO '{prefix}/a' QOS 1")
    with Client(server) as receiver:
        receiver.subscribe(f"{prefix}/#")
        write(server, table, 1, 1)
        receiver.next_is(f"{prefix}/a", '{"value":1.0}')
        server.sql(f"CREATE OR REPLACE RULE {name} AS SELECT value FROM {table} DO PUBLISH TO '{prefix}/b' QOS 1")
        for n in range(2, 200):
            # The rule as it was may still take some rows; none is left out.
            write(server, table, n, n)
            message = receiver.next()
            assert json.loads(message.payload) == {"value": n}
            if message.topic == f"{prefix}/b":
                break
        assert message.topic == f"{prefix}/b"
    server.sql(f"DROP RULE {name}")
    assert server.sql(f"SELECT name FROM system.rules WHERE name = '{name}'") == []


# What goes wrong


@pytest.mark.parametrize(
    "query, actions, named",
    [
        ("SELECT device FROM {}x", "PUBLISH TO 'a/x'", "{}x"),
        ("SELECT humidity FROM {}", "PUBLISH TO 'a/x'", "humidity"),
        ("SELECT device FROM {}", "PUBLISH TO 'a/{{site}}'", "site"),
        ("SELECT time, value FROM {}", "INSERT INTO {}", "{}"),
        ("SELECT value FROM {}", "PUBLISH TO 'a/x' QOS 3", "QOS"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(server, table, query, actions, named):
    answer = server.post_sql(f"CREATE RULE {unique('rule')} AS {query.format(table)} DO {actions.format(table)}")
    assert answer.status == 400, answer
    assert named.format(table) in answer.error and "\n" not in answer.error


def refused(server, name):
    """(device, reason) of the dead letters of a rule, by their payload."""
    query = f"SELECT payload, reason FROM system.dead_letters WHERE topic LIKE '%{name}' ORDER BY payload"
    return [(json.loads(payload).get("device"), reason) for payload, reason in server.sql(query)]


def test_a_row_that_the_target_refuses_becomes_a_dead_letter_and_the_rule_goes_on(server, table):
    target, topic = unique("whole"), f"{unique('all')}/x"
    server.sql(f"CREATE TABLE {target} (time TIMESTAMP, device STRING TAG, value BIGINT)")
    actions = f"INSERT INTO {target}, PUBLISH TO '{topic}' QOS 1"
    name = rule(server, f"SELECT time, device, value FROM {table}", actions)
    with Client(server) as receiver:
        receiver.subscribe(topic)
        rows = [{"device": f"d{n}", "value": n / 2, "ts": TIME_S + n} for n in range(4)]
        server.write(table, rows)  # one commit with good rows and bad ones
        for n in (5, 6):
            write(server, table, n, n / 2)
        wait_rows(server, f"SELECT device, value FROM {target} ORDER BY time", [["d0", 0], ["d2", 1], ["d6", 3]])
        letters = wait_until(lambda: refused(server, name), "the dead letters of the rule")
        assert [device for device, _ in letters] == ["d1", "d3", "d5"]
        assert all("value" in reason and target in reason for _, reason in letters), letters
        # What one action refuses, another one may take.
        assert [json.loads(receiver.next().payload)["device"] for _ in range(6)] == [
            f"d{n}" for n in (0, 1, 2, 3, 5, 6)
        ]
    found = status(server, name)
    assert (found["matches"], found["errors"], found["lost"]) == (6, 3, 0), found
    assert "value" in found["last_error"]


def test_a_row_without_a_topic_becomes_a_dead_letter_and_the_rule_goes_on(server, table):
    name = rule(server, f"SELECT topic, device FROM {table} WHERE value = 7", "PUBLISH TO '{topic}' QOS 1")
    topic = f"{unique('given')}"
    with Client(server) as receiver:
        receiver.subscribe(topic)
        write(server, table, 1, 7)  # no topic
        write(server, table, 2, 7, topic=topic)
        assert json.loads(receiver.next().payload)["device"] == "d2"
    ((device, reason),) = wait_until(lambda: refused(server, name), "the dead letter of the rule")
    assert device == "d1" and "PUBLISH" in reason


def test_system_rules_shows_cursor_matches_and_errors(server, table):
    lookup, topic = unique("lookup"), f"{unique('joined')}/x"
    write(server, lookup, 1, 1)
    query = f"SELECT r.device FROM {table} r JOIN {lookup} l ON r.device = l.device"
    name = rule(server, query, f"PUBLISH TO '{topic}' QOS 1")
    before = status(server, name)
    assert [before[key] for key in ("matches", "errors", "lost", "last_error")] == [0, 0, 0, None]
    assert before["statement"].startswith(f"CREATE RULE {name} AS SELECT")
    with Client(server) as receiver:
        receiver.subscribe(topic)
        for n in (1, 2, 1):
            write(server, table, n, n)
        for _ in range(2):
            receiver.next_is(topic, '{"device":"d1"}')
        after = wait_until(lambda: (s := status(server, name))["behind"] == 0 and s, "the cursor at the end of the log")
        assert after["cursor"] > before["cursor"] and (after["matches"], after["errors"]) == (2, 0)

        server.sql(f"DROP TABLE {lookup}")
        write(server, table, 1, 1)
        failed = wait_until(lambda: (s := status(server, name))["errors"] and s, "the error of the rule")
        assert lookup in failed["last_error"] and failed["behind"] > 0
        write(server, lookup, 1, 1)  # the rows have waited
        receiver.next_is(topic, '{"device":"d1"}')


# kill -9


class Writer:
    """Writes batches of new rows until the server is gone. None is sent twice, so that a rule sees none twice."""

    def __init__(self, server, table, start):
        self.server, self.table = server, table
        self.numbers, self.acknowledged = itertools.count(start, BATCH), set()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        for first in self.numbers:
            numbers = range(first, first + BATCH)
            try:
                self.server.write(
                    self.table, [{"n": str(n), "v": n, "ts": TIME_S * 1000 + n} for n in numbers], tags="n"
                )
            except (OSError, http.client.HTTPException):
                self.next = first + BATCH
                return
            self.acknowledged.update(numbers)


def test_kill9_neither_loses_nor_doubles_what_a_rule_inserts(make_server):
    """The target's rows have no time of their own, so that a row that is inserted twice is two rows."""
    print(f"SONDE_TORTURE_SEED={SEED}")
    moments = random.Random(SEED)
    server = make_server()
    server.write("source", [{"n": "first", "v": 0, "ts": TIME_S}], tags="n")
    server.sql("CREATE RULE copy AS SELECT n, v FROM source DO INSERT INTO copies, PUBLISH TO 'copies/{n}' QOS 1")
    acknowledged, published, start = set(), set(), 0

    def watch():
        """A durable session, which gets what is published while it or the server is away."""
        watcher = Client(server, name="watcher", durable=True)
        watcher.subscribe("copies/+", 1)
        return watcher

    def take(watcher):
        while not watcher.messages.empty():
            message = watcher.messages.get()
            row = json.loads(message.payload)
            assert (message.topic, float(row["n"])) == (f"copies/{row['n']}", row["v"])
            published.add(int(row["n"]))

    def numbers(query):
        answer = server.post_sql(query)
        return sorted(int(row[0]) for row in answer.json["rows"]) if answer.status == 200 else []

    for _ in range(KILLS):
        watcher = watch()
        writer = Writer(server, "source", start)
        wait_until(lambda writer=writer: writer.acknowledged, "an acknowledgement")
        time.sleep(moments.uniform(0, 0.5))  # waits for nothing: the moment of the kill
        server.kill9()
        writer.thread.join(CLIENT_SECONDS)
        watcher.wait_closed()
        take(watcher)
        acknowledged |= writer.acknowledged
        start = writer.next
        server.restart()
        stored = numbers("SELECT n FROM source WHERE n <> 'first'")
        assert acknowledged <= set(stored)
        wait_until(lambda stored=stored: len(numbers("SELECT n FROM copies")) >= len(stored), "the rule at the end")
        assert numbers("SELECT n FROM copies") == stored
    with watch() as watcher:
        wait_until(lambda stored=stored: take(watcher) or published >= set(stored), "what was published")
    server.restart()
    assert status(server, "copy")["lost"] == 0
    assert numbers("SELECT n FROM copies") == stored
    print(f"{len(stored)} rows")


# Cycles


def test_a_cycle_of_rules_ends_in_the_dead_letters(server, table):
    """Two rules that feed each other, and one that feeds itself through MQTT."""
    other = unique("others")
    server.sql(f"CREATE TABLE {other} (time TIMESTAMP, device STRING TAG, value DOUBLE)")
    query = "SELECT time, device, value + 1 AS value FROM"
    there = rule(server, f"{query} {table} WHERE value > 100", f"INSERT INTO {other}")
    back = rule(server, f"{query} {other}", f"INSERT INTO {table}")
    write(server, table, 1, 101.5)
    reason = [["rules made this row in 8 steps: they form a cycle"]]
    letters = "SELECT reason FROM system.dead_letters WHERE topic LIKE 'rule %.{}'"
    wait_until(lambda: server.sql(letters.format(there)) + server.sql(letters.format(back)) == reason, "a dead letter")
    # Each step has written the value plus one: the newest write of the point is that of the last step.
    assert server.sql(f"SELECT value FROM {table} WHERE device = 'd1'") == [[109.5]]
    for name in (there, back):
        server.sql(f"DROP RULE {name}")

    echo = unique("echo")
    server.sql(f"CREATE SOURCE {echo} ON MQTT '{echo}/#' FORMAT JSON (time = 'ts', unit = 's') INTO {echo}")
    server.write(echo, [{"value": 1.5, "ts": TIME_S}])
    looping = rule(server, f"SELECT EXTRACT(EPOCH FROM time) AS ts, value FROM {echo}", f"PUBLISH TO '{echo}/again' QOS 1")
    server.write(echo, [{"value": 2.5, "ts": TIME_S + 1}])
    wait_until(lambda: server.sql(letters.format(looping)) == reason, "a dead letter")
    server.sql(f"DROP RULE {looping}")
