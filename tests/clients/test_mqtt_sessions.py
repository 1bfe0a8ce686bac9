"""What a session promises where it is tight: crashes inside a message's commit, smaller windows, rights that went, other
clients' traffic, counters over restarts."""

import random
import time

import pytest
from mqtt_packet import DISCONNECT, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, V5, V311, ack, connect, disconnect, publish, subscribe
from mqtt_wire import Wire, connected
from support import unique, wait_until

KEPT = {"session_expiry": 3600}


def client(server, client_id=None, version=V5, **how):
    return connected(server.address("mqtt"), version, client_id, **how)


def durable(server, name, clean=False, **props):
    return client(server, name, clean=clean, props=KEPT | props)


def away(server, name, topic_filter, qos=1, props=None):
    wire = durable(server, name, clean=True)
    assert wire.subscribe((topic_filter, qos), props=props) == [qos]
    wire.disconnect()


def anonymous_memory(server):
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def session(server, name):
    columns = "queued, dropped, dropped_queue_full, dropped_gone"
    (row,) = server.sql(f"SELECT {columns} FROM system.sessions WHERE client = '{name}'")
    return dict(zip(columns.split(", "), row))


def taken(wire, count):
    return [int(wire.message().payload) for _ in range(count)]


def test_qos_2_is_stored_once_however_large_its_turn_is(make_server):
    """Many durable sessions with a subscription identifier want a large message; the server dies before its PUBREC."""
    server, table = make_server(), unique("once")
    names = [unique("away") for _ in range(20)]
    for name in names:
        away(server, name, f"{table}/#", 2, {"subscription_identifier": 5})
    name, patience, unheard, count = unique("pub"), 0.1, 0, 0
    text = b"x" * 800_000
    # Crashes close before and behind the answer, until some were before it.
    while unheard < 3 and count < 40:
        count = n = count + 1
        message = publish(V5, f"{table}/x", b'{"v":%d,"text":"%s"}' % (n, text), 2, n)
        sender = durable(server, name).send(message)
        heard = None
        try:
            heard = sender.next(random.uniform(0, patience))
            patience *= 0.6
        except AssertionError:
            patience *= 1.5
        server.kill9()
        server.restart()
        sender = durable(server, name)
        if heard is None:
            unheard += 1
            sender.send(publish(V5, f"{table}/x", b'{"v":%d,"text":"%s"}' % (n, text), 2, n, dup=True))
            sender.expect(PUBREC, n)
        sender.send(ack(PUBREL, n))
        sender.expect(PUBCOMP, n)
        sender.disconnect()
    assert unheard > 0, "no crash was early enough"
    assert server.sql(f"SELECT v, count(*) FROM {table} GROUP BY v ORDER BY v") == [[n, 1] for n in range(1, count + 1)]
    for name in names[:3]:
        with durable(server, name) as wire:
            found = [wire.message() for _ in range(count)]
            assert [message.payload.split(b",")[0] for message in found] == [b'{"v":%d' % n for n in range(1, count + 1)]
            assert [message.props["subscription_identifier"] for message in found] == [[5]] * count


def test_a_rule_that_says_too_much_makes_a_dead_letter(server):
    table, rule, topic = unique(), unique("rule"), unique("out")
    server.sql(f"CREATE TABLE {table} (time TIMESTAMP, d STRING TAG, t STRING)")
    # Four times as long as JSON, and doubled: beyond a packet.
    server.sql(f"CREATE RULE {rule} AS SELECT time, d, t, t AS t2 FROM {table} DO PUBLISH TO '{topic}/{{d}}' QOS 1")
    away(server, unique("away"), f"{topic}/#")
    reader = client(server)
    reader.subscribe((f"{topic}/#", 1))
    server.write(table, [{"d": "large", "t": "\x01" * 200_000}])
    server.write(table, [{"d": "small", "t": "fine"}])
    message = reader.message()
    assert message.topic == f"{topic}/small"
    letters = f"SELECT reason FROM system.dead_letters WHERE topic LIKE '%{rule}'"
    ((reason,),) = wait_until(lambda: server.sql(letters), "the dead letter")
    assert f"{topic}/large" in reason and "a packet has at most 1048576" in reason
    assert server.http("GET", "/ready").status == 200


@pytest.mark.parametrize("qos", [1, 2])
def test_what_is_sent_again_is_within_the_new_receive_maximum(server, qos):
    name, topic = unique("client"), unique()
    first = durable(server, name, clean=True, receive_maximum=10)
    first.subscribe((topic, qos))
    sender = client(server)
    for n in range(14):
        sender.publish(topic, str(n), qos)
    assert [int(first.message(acknowledge=False).payload) for _ in range(10)] == list(range(10))
    first.break_off()
    again = durable(server, name, receive_maximum=2)
    held = [again.message(acknowledge=False) for _ in range(2)]
    again.ping()
    assert [it for it in again.waiting if it.kind == PUBLISH] == [], "not more than it takes at once"
    assert [(int(it.payload), it.dup) for it in held] == [(0, True), (1, True)]
    for message in held:
        again.acknowledge(message)
    found = [again.message() for _ in range(12)]
    assert [(int(it.payload), it.dup) for it in found] == [(n, n < 10) for n in range(2, 14)]
    again.hears_nothing()


@pytest.mark.parametrize("crash", [False, True], ids=["goes", "crash"])
@pytest.mark.parametrize("qos", [1, 2])
def test_what_is_in_flight_is_not_sent_again_without_rights(make_server, qos, crash):
    server = make_server("mqtt.anonymous=never")
    server.sql("CREATE USER u PASSWORD 'pw123456789'")
    server.sql("GRANT ALL ON 'sec/#' TO u")
    server.sql("GRANT ALL ON 'open/#' TO u")
    who = {"username": "u", "password": "pw123456789"}
    reader = client(server, "reader", clean=True, props=KEPT | {"receive_maximum": 3}, **who)
    assert reader.subscribe(("sec/x", qos), ("open/x", qos)) == [qos, qos]
    sender = client(server, username="a", password=server.token)
    for n in range(5):
        sender.publish("sec/x", str(n), 2)
    for _ in range(3):
        reader.message(acknowledge=False)
    reader.break_off()
    wait_until(lambda: server.sql("SELECT state FROM system.sessions WHERE client = 'reader'") == [["away"]], "away")
    server.sql("REVOKE ALL ON 'sec/#' FROM u")
    if crash:
        server.kill9()
        server.restart()
        sender = client(server, username="a", password=server.token)
    reader = client(server, "reader", clean=False, props=KEPT, **who)
    sender.publish("open/x", b"open", 2)
    message = reader.message()
    assert (message.topic, message.dup) == ("open/x", False)
    reader.hears_nothing()


@pytest.mark.parametrize("overflow", ["drop_new", "drop_oldest", "disconnect"])
def test_the_overflow_policy_holds_for_sessions_that_end_with_their_connection(make_server, overflow):
    server = make_server("mqtt.queued_messages=10", f"mqtt.queue_overflow={overflow}")
    topic = unique()
    slow, sender = client(server, "slow", props={"receive_maximum": 2}), client(server)
    slow.subscribe((topic, 1))
    held = []
    for n in range(30):
        sender.publish(topic, str(n), 1)
    if overflow == "disconnect":
        said = slow.until_closed()
        assert [it.kind for it in said] == [PUBLISH, PUBLISH, DISCONNECT] and said[-1].reason == 0x97
        return
    assert session(server, "slow")["dropped_queue_full"] == 18
    held = taken(slow, 12)
    assert held == ([*range(12)] if overflow == "drop_new" else [0, 1, *range(20, 30)])
    slow.hears_nothing()


def test_what_others_publish_costs_an_away_session_nothing(make_server):
    server = make_server("log.max_bytes=128MiB", "mqtt.queued_bytes=1GiB")
    # More than enough to take all that is kept: each wants everything.
    for n in range(70):
        away(server, f"greedy-{n}", "#")
    names = {unique("dev"): None, unique("dev"): {"subscription_identifier": 7}}
    for name, props in names.items():
        away(server, name, "cmd/dev", 1, props)
    sender = client(server)
    sender.publish("cmd/dev", b"open valve", 1)
    sender.publish("cmd/dev", b"close valve", 1)
    ((last,),) = server.sql("SELECT max(last) FROM system.wal")
    pad = "x" * 60_000
    deadline = time.monotonic() + 300
    while server.sql("SELECT min(first) FROM system.wal")[0][0] <= last:
        assert time.monotonic() < deadline, "the log keeps everything"
        sender.send(*(publish(V5, "noise/x", b'{"v":%d,"pad":"%s"}' % (n, pad.encode()), 1, 1000 + n) for n in range(100)))
        for n in range(100):
            sender.expect(PUBACK, 1000 + n)
        server.sql("FLUSH TABLE noise")
    server.kill9()
    server.restart()
    for name, props in names.items():
        assert session(server, name) == {"queued": 2, "dropped": 0, "dropped_queue_full": 0, "dropped_gone": 0}
        with durable(server, name) as wire:
            assert [wire.message().payload for _ in range(2)] == [b"open valve", b"close valve"]
            wait_until(lambda name=name: session(server, name)["queued"] == 0, "an empty queue")
    client(server).publish("noise/x", b"1", 1)
    server.kill9()
    server.restart()
    for name in names:
        with durable(server, name) as wire:
            wire.hears_nothing()


def test_what_was_dropped_is_known_over_restarts(make_server):
    server = make_server("mqtt.queued_messages=2")
    name, topic = unique("dev"), unique()
    away(server, name, topic)
    sender = client(server)
    for n in range(10):
        sender.publish(topic, str(n), 1)
    assert session(server, name)["dropped_queue_full"] == 8
    server.kill9()
    server.restart()
    assert session(server, name)["dropped_queue_full"] == 8
    sender = client(server)
    sender.publish(topic, b"10", 1)
    server.restart()
    assert session(server, name) == {"queued": 2, "dropped": 9, "dropped_queue_full": 9, "dropped_gone": 0}
    away(server, name, topic)
    server.restart()
    assert session(server, name)["dropped"] == 0, "a session anew"


def test_what_this_connection_has_not_got_again_may_be_taken_from_it(make_server):
    """REVOKE while a client still has to get again what it did not acknowledge over the connection before."""
    server = make_server("mqtt.anonymous=never")
    server.sql("CREATE USER u PASSWORD 'pw123456789'")
    server.sql("GRANT ALL ON 'sec/#' TO u")
    server.sql("GRANT ALL ON 'open/#' TO u")
    who = {"username": "u", "password": "pw123456789", "clean": False}
    sender = client(server, username="a", password=server.token)
    readers = {qos: client(server, f"reader{qos}", props=KEPT, **who) for qos in (1, 2)}
    for qos, reader in readers.items():
        assert reader.subscribe((f"sec/{qos}", qos), ("open/x", qos)) == [qos, qos]
        for n in range(5):
            sender.publish(f"sec/{qos}", str(n), qos)
        for _ in range(5):
            reader.message(acknowledge=False)
        reader.break_off()
    for qos in readers:
        readers[qos] = client(server, f"reader{qos}", props=KEPT | {"receive_maximum": 1}, **who)
    sent = {qos: reader.message(acknowledge=False) for qos, reader in readers.items()}
    server.sql("REVOKE ALL ON 'sec/#' FROM u")
    subscribed = "SELECT count(*) FROM system.subscriptions WHERE filter LIKE 'sec/%'"
    wait_until(lambda: server.sql(subscribed) == [[0]], "the end of the subscriptions")
    sender.publish("open/x", b"open", 2)
    for qos, reader in readers.items():
        assert (sent[qos].topic, sent[qos].payload) == (f"sec/{qos}", b"0")
        reader.acknowledge(sent[qos])
        assert reader.message().topic == "open/x"
        reader.hears_nothing()


def test_a_user_of_the_same_name_inherits_nothing(make_server):
    server = make_server("mqtt.anonymous=never")
    names = [unique("dev") for _ in range(2)]

    def user(how, password):
        server.sql(f"CREATE {how} u PASSWORD '{password}'")
        server.sql("GRANT ALL ON 'a/#' TO u")
        return {"username": "u", "password": password, "clean": False, "props": KEPT}

    who = user("USER", "old password")
    for name in names:
        reader = client(server, name, **who)
        assert reader.subscribe(("a/#", 1)) == [1]
        reader.disconnect()
    client(server, username="a", password=server.token).publish("a/x", b"secret", 1)
    server.sql("DROP USER u")
    for name, who in zip(names, [user("USER", "new password"), None]):
        # OR REPLACE makes a new user, too; ALTER keeps it.
        who = who or user("OR REPLACE USER", "newer password")
        reader = client(server, name, **who)
        assert not reader.connack.session_present
        reader.hears_nothing()
        assert reader.subscribe(("a/#", 1)) == [1]
        reader.disconnect()
    server.sql("ALTER USER u PASSWORD 'newest password'")
    server.restart()
    reader = client(server, names[1], **who | {"password": "newest password"})
    assert reader.connack.session_present


def test_a_session_that_ends_with_its_disconnect_leaves_no_copies(make_server):
    """Copies of what is retained are on their way when DISCONNECT ends the session: their records go with it."""
    server = make_server("memory.limit=512MiB")
    server.sql("DROP SOURCE default")
    sender = client(server)
    for n in range(30):
        sender.publish(f"kept/{n}", random.randbytes(100_000), 1, retain=True)

    def come_and_go():
        wire = Wire(server.address("mqtt"))
        wire.send(connect(V5, "comes and goes", clean=True, props=KEPT), subscribe(V5, 1, [("kept/#", 1)]))
        wire.expect(PUBLISH)
        wire.send(disconnect(0, {"session_expiry": 0}))
        wire.until_closed()
        wire.socket.close()

    for _ in range(10):
        come_and_go()
    before = anonymous_memory(server)
    for _ in range(100):
        come_and_go()
    assert anonymous_memory(server) - before < 32 << 20


def test_a_keep_alive_ends_after_one_and_a_half_of_it(server):
    silent = client(server, keep_alive=1)
    since = time.monotonic()
    said = silent.until_closed()
    waited = time.monotonic() - since
    assert [(it.kind, it.reason) for it in said] == [(DISCONNECT, 0x8D)]
    # A quarter of a second late; a busy machine may take longer.
    assert 1.4 < waited < 2.5, waited


@pytest.mark.parametrize("version", [V311, V5], ids=["3.1.1", "5.0"])
def test_a_session_that_is_killed_hears_it(server, version):
    name = unique("killed")
    wire = Wire(server.address("mqtt"), version)
    wire.connect(name)
    server.sql(f"KILL SESSION '{name}'")
    said = wire.until_closed()
    assert [(it.kind, it.reason) for it in said] == ([(DISCONNECT, 0x98)] if version == V5 else [])
