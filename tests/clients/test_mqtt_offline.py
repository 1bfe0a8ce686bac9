"""What waits for an MQTT session that is away: all of it, in order, through kill -9; and what its limits do."""

import pytest
from mqtt_wire import connected
from paho_client import ANSWER_SECONDS, V5, V311, Client
from support import unique, wait_until

MANY = 50_000
DROP_SOURCE = "DROP SOURCE default"


def publish_many(sender, topic, numbers, qos=1):
    """Publishes all before it waits for the last acknowledgement: many in flight."""
    infos = []
    for n in numbers:
        infos.append(sender.paho.publish(topic, str(n), qos))
    for info in infos:
        info.wait_for_publish(ANSWER_SECONDS)
    assert all(info.is_published() for info in infos)


def numbers(client, count):
    return [int(client.next().payload) for _ in range(count)]


def session(server, client):
    columns = "state, queued, queued_bytes, dropped, dropped_queue_full, dropped_gone"
    (row,) = server.sql(f"SELECT {columns} FROM system.sessions WHERE client = '{client}'")
    return dict(zip(columns.split(", "), row, strict=True))


def away(server, name, topic_filter, qos=1, protocol=V5):
    with Client(server, protocol, name=name, durable=True) as client:
        client.subscribe(topic_filter, qos)


def test_a_long_queue_survives_kill9_whole_and_in_order(make_server):
    server = make_server(f"mqtt.queued_messages={MANY}", "mqtt.queued_bytes=256MiB")
    name, topic = unique("client"), unique()
    away(server, name, "#")
    log = "SELECT sum(bytes) FROM system.wal"
    server.sql(log)
    with Client(server) as sender:
        publish_many(sender, topic, range(MANY))
    server.kill9()
    server.restart()
    waiting = session(server, name)
    assert (waiting["state"], waiting["queued"], waiting["dropped"]) == ("away", MANY, 0)
    with Client(server, name=name, durable=True) as client:
        assert client.session_present
        assert numbers(client, MANY) == list(range(MANY))
        # All acknowledged: nothing is left, and nothing comes again.
        wait_until(lambda: session(server, name)["queued_bytes"] == 0, lambda: session(server, name))
        # What the acknowledgements came to is committed with this, or before it.
        client.unsubscribe("#")
        client.subscribe(topic)
    server.kill9()
    server.restart()
    with Client(server, name=name, durable=True) as client:
        client.publish(topic, "end")
        client.next_is(topic, "end")


@pytest.mark.parametrize("protocol", [V311, V5], ids=["3.1.1", "5.0"])
def test_what_was_acknowledged_does_not_come_again(make_server, protocol):
    server = make_server()
    name, topic = unique("client"), unique()
    away(server, name, f"{topic}/+", 2, protocol)
    with Client(server, protocol) as sender:
        for n in range(300):
            sender.publish(f"{topic}/{n % 3}", str(n), qos=1 + n % 2)
    with Client(server, protocol, name=name, durable=True) as client:
        # In order for each QoS: a client hands out a QoS 2 message at its PUBREL.
        assert sorted(numbers(client, 300), key=lambda n: n % 2) == [*range(0, 300, 2), *range(1, 300, 2)]
        wait_until(lambda: session(server, name)["queued_bytes"] == 0, "an empty queue, with nothing in flight")
        # What the acknowledgements came to is committed with this, or before it.
        with Client(server, protocol) as sender:
            sender.publish(f"other/{topic}", "1")
    server.kill9()
    server.restart()
    with Client(server, protocol, name=name, durable=True) as client, Client(server, protocol) as sender:
        sender.publish(f"{topic}/0", "end")
        client.next_is(f"{topic}/0", "end")


def test_a_queue_is_taken_in_parts(make_server):
    """A client that comes and goes, and kills of the server between: each message at least once, the first times in order."""
    server = make_server()
    name, topic = unique("client"), unique()
    away(server, name, topic)
    with Client(server) as sender:
        publish_many(sender, topic, range(3000))
    seen = []
    for part in range(4):
        client = Client(server, name=name, durable=True)
        seen += numbers(client, 400)
        if part % 2:
            server.kill9()
            client.wait_closed()
            server.restart()
        else:
            client.break_off()
        # What it has taken and acknowledged meanwhile.
        while not client.messages.empty():
            seen.append(int(client.messages.get().payload))
    with Client(server, name=name, durable=True) as client:
        while not seen or seen[-1] != 2999:
            seen.append(int(client.next().payload))
    first_times = list(dict.fromkeys(seen))
    assert set(first_times) == set(range(3000))
    assert first_times == sorted(first_times)


def test_several_sessions_share_the_logged_message(make_server):
    server = make_server()
    topic, payload = unique(), "x" * 10_000
    names = [unique("client") for _ in range(10)]
    for name in names:
        away(server, name, f"{topic}/#")
    server.sql(DROP_SOURCE)
    with Client(server) as sender:
        for n in range(100):
            sender.publish(f"{topic}/{n}", payload)
    used = sum(path.stat().st_blocks * 512 for path in (server.data_dir / "wal").iterdir())
    assert session(server, names[0])["queued_bytes"] >= 1_000_000
    server.kill9()
    server.restart()
    for name in names:
        assert session(server, name)["queued"] == 100
        with Client(server, name=name, durable=True) as client:
            assert [client.next().topic for _ in range(100)] == [f"{topic}/{n}" for n in range(100)]
    assert used > 0


@pytest.mark.parametrize(
    "overflow, kept", [("drop_new", range(10)), ("drop_oldest", range(20, 30))], ids=["drop_new", "drop_oldest"]
)
def test_what_is_too_much_is_dropped_and_counted(make_server, overflow, kept):
    server = make_server("mqtt.queued_messages=10", f"mqtt.queue_overflow={overflow}")
    name, topic = unique("client"), unique()
    away(server, name, topic)
    with Client(server) as sender:
        for n in range(30):
            sender.publish(topic, str(n))
    waiting = session(server, name)
    assert (waiting["queued"], waiting["dropped"]) == (10, 20)
    assert waiting["dropped_queue_full"] == 20
    server.kill9()
    server.restart()
    with Client(server, name=name, durable=True) as client:
        assert numbers(client, 10) == list(kept)


@pytest.mark.parametrize("overflow", ["drop_new", "drop_oldest", "disconnect"])
def test_qos_0_costs_nobody_what_was_acknowledged(make_server, overflow):
    """A queue is full: a QoS 0 message is itself the one that goes, whatever the policy says, and sends nobody away."""
    server = make_server("mqtt.queued_messages=10", f"mqtt.queue_overflow={overflow}")
    name, topic = unique("client"), unique()
    props = {"session_expiry": 600, "receive_maximum": 1}
    with connected(server.address("mqtt"), client_id=name, props=props) as slow:
        slow.subscribe((f"{topic}/#", 1))
        with connected(server.address("mqtt")) as sender:
            for n in range(11):
                assert sender.publish(f"{topic}/1", str(n), 1).reason == 0
            for n in range(20):
                sender.publish(f"{topic}/0", f"zero {n}")
            wait_until(lambda: session(server, name)["dropped_queue_full"] == 20, lambda: session(server, name))
            waiting = session(server, name)
            assert (waiting["state"], waiting["queued"], waiting["dropped"]) == ("connected", 10, 20)
            assert [slow.message().payload for _ in range(11)] == [b"%d" % n for n in range(11)]
            slow.hears_nothing()


def test_what_is_promised_takes_the_place_of_what_is_not(make_server):
    server = make_server("mqtt.queued_messages=10")
    topic = unique()
    with connected(server.address("mqtt"), client_id="c", props={"receive_maximum": 1}) as slow:
        slow.subscribe((topic, 1))
        with connected(server.address("mqtt")) as sender:
            # One is in flight, one waits, and before it QoS 0 may not be sent.
            for n in range(2):
                sender.publish(topic, f"one {n}", 1)
            for n in range(9):
                sender.publish(topic, f"zero {n}")
            for n in range(2, 11):
                assert sender.publish(topic, f"one {n}", 1).reason == 0
            wait_until(lambda: session(server, "c")["dropped_queue_full"] == 9, lambda: session(server, "c"))
            assert session(server, "c")["queued"] == 10
            assert [slow.message().payload for _ in range(11)] == [b"one %d" % n for n in range(11)]
            slow.hears_nothing()


def test_what_the_log_loses_is_counted(make_server):
    """The log's budget ends before the client comes: what is gone is said, the rest arrives."""
    settings = ["log.max_bytes=64MiB", "mqtt.queued_messages=100000", "mqtt.queued_bytes=4GiB"]
    server = make_server(*settings)
    name, topic = unique("client"), unique()
    away(server, name, topic)
    server.sql(DROP_SOURCE)
    payload, count = "x" * 500_000, 400
    with Client(server) as sender:
        for n in range(count):
            sender.publish(topic, f"{n} {payload}")
            if n % 100 == 99:
                server.write("t", [{"n": n}])
                server.sql("FLUSH TABLE t")
    with Client(server, name=name, durable=True) as client:
        received = [int(client.next().payload.split()[0])]
        while received[-1] != count - 1:
            received.append(int(client.next().payload.split()[0]))
        waiting = session(server, name)
    lost = sorted(set(range(count)) - set(received))
    # Of what went with the log a little was kept, the oldest of it; then come those that the log still has.
    assert received == sorted(received)
    assert lost and lost == list(range(lost[0], lost[-1] + 1)) and lost[0] <= 3
    assert waiting["dropped"] == len(lost)
    assert waiting["dropped_gone"] == len(lost)


def test_an_unsubscribed_or_ended_session_leaves_nothing(make_server):
    server = make_server()
    name, topic = unique("client"), unique()
    away(server, name, topic)
    with Client(server) as sender:
        for n in range(10):
            sender.publish(topic, str(n))
    # A clean start ends the session that was away.
    with Client(server, V311, name=name) as client:
        assert not client.session_present
        client.subscribe(topic)
        client.publish(topic, "end")
        client.next_is(topic, "end")
    server.restart()
    assert server.sql(f"SELECT count(*) FROM system.sessions WHERE client = '{name}'") == [[0]]
