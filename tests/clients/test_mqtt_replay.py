"""`$replay/<from>/<filter>`: messages of the past from the log, then those that come, without a gap or a duplicate."""

import json
import threading
import time

import pytest
from mqtt_wire import connected
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho_client import ANSWER_SECONDS, V5, V311, Client
from support import unique

KEPT = "mqtt.raw_retention=1 hour"

both_versions = pytest.mark.parametrize("protocol", [V311, V5], ids=["3.1.1", "5.0"])


@pytest.fixture(scope="module")
def server(binary, tmp_path_factory):
    from support import servers

    with servers(binary, tmp_path_factory) as make:
        yield make(KEPT)


def numbers(client, count):
    return [int(client.next().payload) for _ in range(count)]


@both_versions
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_the_past_comes_first_then_what_is_published(server, protocol, qos):
    topic = unique()
    with Client(server, protocol) as client:
        for n in range(50):
            client.publish(f"{topic}/{n % 3}", str(n), n % 2)
            client.publish(f"other/{topic}", "-1")
        assert client.subscribe(f"$replay/-1h/{topic}/#", qos) == qos
        assert sorted(numbers(client, 50)) == list(range(50))
        client.publish(f"{topic}/x", "50")
        message = client.next()
        assert (message.topic, message.payload, message.retain) == (f"{topic}/x", b"50", False)
        client.unsubscribe(f"$replay/-1h/{topic}/#")
        client.publish(f"{topic}/x", "51")
        client.subscribe(topic)
        client.publish(topic, "end")
        client.next_is(topic, "end")


def test_from_when(server):
    topic = unique()
    with Client(server) as client:
        client.publish(topic, "0")
        time.sleep(1.1)  # the instants below are whole seconds
        middle = time.time()
        client.publish(topic, "1")
        for start, expected in [
            (str(int(middle)), 1),
            (str(int(middle * 1000)), 1),
            (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(middle)), 1),
            ("-1h", 0),
            ("0", 0),
        ]:
            client.subscribe(f"$replay/{start}/{topic}")
            assert int(client.next().payload) == expected, start
            if expected == 0:
                assert int(client.next().payload) == 1
            client.unsubscribe(f"$replay/{start}/{topic}")


def test_no_gap_and_no_duplicate_while_others_publish(server):
    """Replays begin again and again while messages come; each sees every number once, in order."""
    topic, count = unique(), 6000
    stop = threading.Event()

    def publish():
        with Client(server) as sender:
            for n in range(count):
                info = sender.paho.publish(topic, str(n), 1)
                if n % 50 == 49:
                    info.wait_for_publish(ANSWER_SECONDS)
                if stop.is_set():
                    return

    sender = threading.Thread(target=publish)
    sender.start()
    try:
        for _ in range(6):
            with Client(server) as client:
                client.subscribe(f"$replay/-1h/{topic}", 1)
                assert numbers(client, 800) == list(range(800))
        with Client(server) as client:
            client.subscribe(f"$replay/-1h/{topic}", 1)
            assert numbers(client, count) == list(range(count))
    finally:
        stop.set()
        sender.join()


def test_history_survives_kill9(make_server):
    server = make_server()
    table = unique()
    server.sql(f"CREATE SOURCE s ON MQTT '{table}/+' FORMAT JSON INTO {table} WITH (raw_retention = '1 hour')")
    with Client(server) as client:
        for n in range(100):
            client.publish(f"{table}/{n % 5}", {"n": n})
            client.publish(f"not_{table}/x", {"n": n})
    server.sql(f"FLUSH TABLE {table}")
    server.kill9()
    server.restart()
    with Client(server) as client:
        client.subscribe(f"$replay/-1h/{table}/#")
        assert [client.next().payload for _ in range(100)] == [b'{"n": %d}' % n for n in range(100)]
        # What no one asked to keep is not in the log as it came: its rows are sent.
        client.subscribe(f"$replay/-1h/not_{table}/#")
        rows = [json.loads(client.next().payload) for _ in range(100)]
        assert [row["n"] for row in rows] == list(range(100)) and all(row["time"] for row in rows)
        client.publish(f"not_{table}/end", "end")
        client.next_is(f"not_{table}/end", "end")


def test_a_replay_needs_the_right_to_its_filter_and_a_time(server):
    token = server.create_token("--subscribe", "mine/#")

    def granted(*filters, **credentials):
        with connected(server.address("mqtt"), **credentials) as wire:
            return wire.subscribe(*((it, 1) for it in filters))

    assert granted("$replay/yesterday/a", "$replay/-1h/$share/g/a", "$replay/-1h") == [0x8F] * 3
    topics = ("$replay/-1h/mine/x", "$replay/-1h/other/x", "$replay/-1h/#")
    assert granted(*topics, username="any", password=token) == [1, 0x87, 0x87]


def test_a_slow_reader_gets_it_all(server):
    topic, payload, count = unique(), "x" * 10_000, 3000
    with Client(server) as sender:
        infos = [sender.paho.publish(topic, f"{n} {payload}", 1) for n in range(count)]
        infos[-1].wait_for_publish(60)
    with Client(server) as client:
        client.subscribe(f"$replay/-1h/{topic}", 0)
        assert [int(client.next().payload.split()[0]) for _ in range(count)] == list(range(count))


def test_subscribers_that_ask_are_told_the_sequence_number(server):
    topic = unique()
    with Client(server) as client:
        properties = Properties(PacketTypes.SUBSCRIBE)
        properties.UserProperty = ("sonde-seq", "1")
        client.paho.subscribe(topic, 1, properties=properties)
        client._answers.get(timeout=ANSWER_SECONDS)
        client.publish(topic, "1")
        client.publish(topic, "2")
        seqs = [int(dict(client.next().properties.UserProperty)["sonde-seq"]) for _ in range(2)]
        assert 0 < seqs[0] < seqs[1]
        # Those who do not ask are not.
        with Client(server) as other:
            other.subscribe(topic)
            other.publish(topic, "3")
            assert not hasattr(other.next().properties, "UserProperty")


def test_sequence_numbers_are_told_after_a_restart(make_server):
    server, topic = make_server(), unique()

    def told(client):
        return [int(dict(client.next().properties.UserProperty)["sonde-seq"]) for _ in range(3)]

    def ask(client, topic_filter, identifier=None):
        properties = Properties(PacketTypes.SUBSCRIBE)
        properties.UserProperty = ("sonde-seq", "1")
        if identifier:
            properties.SubscriptionIdentifier = identifier
        client.paho.subscribe(topic_filter, 1, properties=properties)
        client._answers.get(timeout=ANSWER_SECONDS)

    # What waits in the log, what waits as a copy, and what comes by a group.
    kinds = {"log": (topic, None), "copy": (topic, 7), "group": (f"$share/g/{topic}", None)}
    for name, how in kinds.items():
        with Client(server, name=name, durable=True) as client:
            ask(client, *how)
    with Client(server) as other:
        ask(other, topic)
        for n in range(3):
            other.publish(topic, str(n))
        expected = told(other)
    assert 0 < expected[0] < expected[1] < expected[2]
    server.kill9()
    server.restart()
    for name in kinds:
        with Client(server, name=name, durable=True) as client:
            assert client.session_present
            assert told(client) == expected, name
