"""`$replay/<from>/<filter>` of what only tables have: rows come as messages, each once, whatever the log has beside."""

import itertools
import json
import queue
import random
import threading
from contextlib import suppress

import pytest
from paho_client import ANSWER_SECONDS, Client
from support import TIME_S, servers, unique, wait_until

MANY = 6000


@pytest.fixture(scope="module")
def server(binary, tmp_path_factory):
    with servers(binary, tmp_path_factory) as make:
        yield make()


def source(server, table, more="", into=None, **options):
    with_ = ", ".join(f"{key} = '{value}'" for key, value in options.items())
    server.sql(
        f"CREATE SOURCE {table} ON MQTT '{table}/{{dev}}' FORMAT JSON {more} INTO {into or table}"
        + (f" WITH ({with_})" if with_ else "")
    )


def fill(server, table, count, devices=100, step=1_000_000):
    """Rows of a table that a source feeds, written at once."""
    lines = (f"{table},dev=d{n % devices} n={n} {TIME_S * 10**9 + n * step}" for n in range(count))
    server.write(table, "\n".join(lines))


_ends = itertools.count(1)


def end_of(client, topic):
    """Publishes the message behind everything else; what `replayed` knows it by."""
    number = -next(_ends)
    client.publish(topic, json.dumps({"n": number}))
    return topic, number


def replayed(client, end):
    """(topic, payload) of all messages up to the end's; without the ends of others."""
    found = []
    while True:
        message = client.next()
        payload = json.loads(message.payload)
        if (message.topic, payload.get("n")) == end:
            return found
        if payload.get("n", 0) >= 0:
            found.append((message.topic, payload))


def test_rows_of_the_default_source_come_in_the_order_of_their_times(server):
    table = unique()
    sent = [
        (f"{table}/a", {"ts": TIME_S + 2, "n": 2, "on": True, "in": {"side": "x\n"}, "list": [1, "y"]}),
        (f"{table}/b/c", {"ts": TIME_S, "n": 0.5, "device": "d 1"}),
        (f"{table}/a", {"ts": TIME_S * 1000 + 1250, "n": 2**53 - 1}),
        (f"{table}", {"ts": TIME_S + 3, "text": "t"}),
    ]
    with Client(server) as client:
        for topic, payload in sent:
            client.publish(topic, payload)
        client.subscribe(f"$replay/0/{table}/#")
        got = [client.next() for _ in sent]
        assert [(m.topic, json.loads(m.payload)) for m in got] == [
            (f"{table}/b/c", {"time": "2024-02-23T14:53:20Z", "device": "d 1", "n": 0.5}),
            (f"{table}/a", {"time": "2024-02-23T14:53:21.25Z", "n": 2**53 - 1}),
            (f"{table}/a", {"time": "2024-02-23T14:53:22Z", "n": 2, "on": True, "in_side": "x\n", "list": '[1,"y"]'}),
            (table, {"time": "2024-02-23T14:53:23Z", "text": "t"}),
        ]
        assert all(m.qos == 1 and not m.retain for m in got)
        assert got[0].properties.ContentType == "application/json"
        # Then it is live.
        client.publish(f"{table}/live", '{"n":1}')
        client.next_is(f"{table}/live", '{"n":1}')
        client.unsubscribe(f"$replay/0/{table}/#")
        # Each is the row that it came from.
        rows = f"SELECT * FROM {table} WHERE time < '2025-01-01' ORDER BY time"
        before = server.sql(rows)
        for message in got:
            client.publish(message.topic, message.payload)
        assert server.sql(rows) == before
        # One topic is asked for, from a time on.
        client.subscribe(f"$replay/{TIME_S + 2}/{table}/a")
        assert json.loads(client.next().payload)["n"] == 2
        assert replayed(client, end_of(client, f"{table}/a")) == []


def test_a_source_is_read_backwards(server):
    table = unique()
    server.sql(
        f"CREATE SOURCE {table} ON MQTT 'plant/{{site}}/{table}/{{dev}}' "
        f"FORMAT JSON (time = 'at', unit = 'ms', tags = 'line') INTO {table}"
    )
    sent = [
        ("plant/x/{}/1", {"at": TIME_S * 1000 + 1, "line": 7, "v": 1}),
        ("plant/y/{}/1", {"at": TIME_S * 1000 + 2, "v": 2, "w": "ü"}),
        ("plant/x/{}/2", {"at": TIME_S * 1000 + 3, "v": 3}),
        ("plant//{}/2", {"at": TIME_S * 1000 + 4, "v": 4}),
    ]
    sent = [(topic.format(table), payload) for topic, payload in sent]
    with Client(server) as client:
        for topic, payload in sent:
            client.publish(topic, payload)
        # What has not its levels came by no topic.
        server.write(table, f"{table},site=x v=5 {(TIME_S + 1) * 10**9}")
        sent[0][1]["line"] = "7"  # a tag is a text
        for wanted, places in [
            (f"plant/+/{table}/#", [0, 1, 2, 3]),
            (f"plant/x/{table}/+", [0, 2]),
            (f"plant/+/{table}/1", [0, 1]),
            (f"plant/x/{table}/2", [2]),
        ]:
            client.subscribe(f"$replay/0/{wanted}")
            got = [client.next() for _ in places]
            assert [(m.topic, json.loads(m.payload)) for m in got] == [sent[n] for n in places]
            topic = wanted.replace("#", "e").replace("+", "e")
            assert replayed(client, end_of(client, topic)) == []
            client.unsubscribe(f"$replay/0/{wanted}")


def test_sources_that_forget_the_topic_are_left_out_and_named(server):
    one, two = unique(), unique()
    server.sql(f"CREATE SOURCE {one} ON MQTT '{one}/+/#' FORMAT JSON INTO {one}")
    source(server, two)
    server.sql(f"CREATE SOURCE other_{two} ON MQTT 'other/{two}/{{dev}}' FORMAT JSON INTO {two}")
    with Client(server) as client:
        client.publish(f"{one}/a/b", {"n": 1})
        client.publish(f"{two}/a", {"n": 1})
        for table, topic, why in [
            (one, f"{one}/a/b", "its filter has + or #"),
            (two, f"{two}/a", "another source writes to its table"),
        ]:
            client.subscribe(f"$replay/0/{table}/#")
            assert replayed(client, end_of(client, topic)) == [], "nothing is made up"
            wait_until(lambda: why in server.log.read_text(errors="replace"), why)
            client.unsubscribe(f"$replay/0/{table}/#")


@pytest.mark.parametrize("flush", [False, True], ids=["in memory", "in files"])
def test_the_cut_between_rows_and_messages_is_exact(server, flush):
    """Messages with times in any order, some of which the log keeps and some of which it does not: each comes once."""
    table, count = unique(), 300
    kept = {"raw_retention": "1 hour"}
    dice = random.Random(7)
    times = dice.sample(range(10 * count), count)
    with Client(server) as client:
        source(server, table)
        for n in range(count):
            if n % 100 == 0 and n > 0:
                # A third without, a third with, a third without again.
                server.sql(f"DROP SOURCE {table}")
                source(server, table, **(kept if n == 100 else {}))
            payload = json.dumps({"ts": TIME_S + times[n], "n": n})  # a row has it as "time"
            client.paho.publish(f"{table}/{n % 7}", payload, 1).wait_for_publish(ANSWER_SECONDS)
        if flush:
            server.sql(f"FLUSH TABLE {table}")
        for qos in (0, 1):
            client.subscribe(f"$replay/0/{table}/#", qos)
            found = replayed(client, end_of(client, f"{table}/end"))
            assert sorted(payload["n"] for _, payload in found) == list(range(count))
            as_it_came = [payload["n"] for _, payload in found if "ts" in payload]
            assert as_it_came == list(range(100, 200)), "the log's come as they came, in its order"
            as_rows = [payload for _, payload in found if "time" in payload]
            assert [row["n"] for row in as_rows] == sorted(
                (n for n in range(count) if n not in range(100, 200)), key=lambda n: times[n]
            )
            client.unsubscribe(f"$replay/0/{table}/#")
        # Rows have the subscription's QoS, and those of 2 come behind those of 1 that were sent after them.
        client.subscribe(f"$replay/0/{table}/#", 2)
        found = []
        while len(found) < count:
            number = json.loads(client.next().payload)["n"]
            found += [number] * (number >= 0)
        assert sorted(found) == list(range(count))


def test_no_gap_and_no_duplicate_while_others_publish(server):
    """Nothing is kept but what comes while the replays are open."""
    table, count = unique(), 3000
    source(server, table)

    def publish():
        with Client(server) as sender:
            for n in range(count):
                payload = json.dumps({"ts": TIME_S + n % 50 * 100 + n, "n": n})
                info = sender.paho.publish(f"{table}/d{n % 3}", payload, 1)
                if n % 50 == 49:
                    info.wait_for_publish(ANSWER_SECONDS)
            info.wait_for_publish(ANSWER_SECONDS)

    sender = threading.Thread(target=publish)
    sender.start()
    clients = []
    try:
        for _ in range(4):
            client = Client(server)
            clients.append(client)
            client.subscribe(f"$replay/0/{table}/#", 1)
            wait_until(lambda client=client: client.messages.qsize() > 100, "the past", 60)
    finally:
        sender.join()
    with Client(server) as other:
        end = end_of(other, f"{table}/end")
    for client in clients:
        found = [payload["n"] for _, payload in replayed(client, end)]
        assert sorted(found) == list(range(count))
        client.disconnect()


def test_many_rows_and_a_kill9_in_the_middle(make_server):
    server = make_server()
    table = unique()
    source(server, table)
    fill(server, table, MANY)
    server.sql(f"FLUSH TABLE {table}")
    client = Client(server)
    client.subscribe(f"$replay/0/{table}/#")
    assert [json.loads(client.next().payload)["n"] for _ in range(700)] == list(range(700))
    server.kill9()
    server.restart()
    with Client(server) as again:
        again.subscribe(f"$replay/0/{table}/#")
        assert [json.loads(again.next().payload)["n"] for _ in range(MANY)] == list(range(MANY))
        assert replayed(again, end_of(again, f"{table}/end")) == []
    client.disconnect()


def test_an_instant_with_many_rows(server):
    table, count = unique(), 6000
    source(server, table)
    fill(server, table, count, devices=count, step=0)
    with Client(server) as client:
        client.subscribe(f"$replay/{TIME_S}/{table}/+")
        found = [payload["n"] for _, payload in replayed(client, end_of(client, f"{table}/end"))]
        assert sorted(found) == list(range(count))


def test_days_that_are_cold_come_too(server):
    table = unique()
    source(server, table)
    with Client(server) as client:
        for n in range(10):
            client.publish(f"{table}/{n % 2}", {"ts": TIME_S + n, "n": n})
        server.sql(f"FLUSH TABLE {table}")
        server.sql(f"COOL TABLE {table}")
        assert server.sql(f"SELECT sum(rows) FROM system.tiers WHERE \"table\" = 'public.{table}'") == [[10]]
        client.publish(f"{table}/0", {"ts": TIME_S + 2, "n": 22})
        client.subscribe(f"$replay/0/{table}/#")
        assert [payload["n"] for _, payload in replayed(client, end_of(client, f"{table}/end"))] == [
            0, 1, 22, 3, 4, 5, 6, 7, 8, 9,
        ]  # fmt: skip


def test_a_slow_reader_holds_up_itself_only_and_can_end_it(server):
    table = unique()
    source(server, table)
    fill(server, table, MANY)
    with Client(server, acknowledges=False, receive_maximum=10) as slow:
        slow.subscribe(f"$replay/0/{table}/+", 1)
        wait_until(lambda: slow.messages.qsize() == 10, "as many as it takes")
        with Client(server) as fast:
            fast.subscribe(f"$replay/0/{table}/+", 1)
            assert [json.loads(fast.next().payload)["n"] for _ in range(MANY)] == list(range(MANY))
        slow.unsubscribe(f"$replay/0/{table}/+")
        replays = "SELECT count(*) FROM system.sessions WHERE state = 'replay'"
        wait_until(lambda: server.sql(replays) == [[0]], "the end of the replay")
        # What was handed to the session before comes yet; the rest does not.
        got = 0
        with suppress(queue.Empty):
            while True:
                message = slow.messages.get(timeout=2)
                slow.paho.ack(message.mid, message.qos)
                got += 1
        assert 10 <= got < 2000


def test_rights_hold_for_each_topic(server):
    table = unique()
    source(server, table)
    fill(server, table, 100, devices=4)
    token = server.create_token("--subscribe", f"{table}/d1", "--publish", f"{table}/#")
    with Client(server, token=token) as client:
        client.paho.subscribe(f"$replay/0/{table}/#", 1)
        (code,) = client._answers.get(timeout=ANSWER_SECONDS)
        assert code.value == 0x87
        client.subscribe(f"$replay/0/{table}/d1")
        found = replayed(client, end_of(client, f"{table}/d1"))
        assert [payload["n"] for _, payload in found] == list(range(1, 100, 4))
        assert {topic for topic, _ in found} == {f"{table}/d1"}
