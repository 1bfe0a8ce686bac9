"""What the clients of one tenant may take together: connections, messages and bytes a second, messages that wait."""

import contextlib
import json
import select
import time

import pytest
from mqtt_packet import DISCONNECT, PUBACK, V5, V311, publish
from mqtt_wire import Wire
from support import unique, wait_until

PASSWORD = "correct horse"
QUOTA, TAKEN_OVER = 0x97, 0x8E


def users(server, *names, tenant=None):
    """Users of a tenant that may do everything with topics."""
    options = f"WITH (tenant = '{tenant}')" if tenant else ""
    for name in names:
        server.sql(f"CREATE USER {name} PASSWORD '{PASSWORD}' {options}")
        server.sql(f"GRANT ALL ON '#' TO {name}")


def wire(server, user, client_id=None, version=V5, expect=0, **how):
    made = Wire(server.address("mqtt"), version)
    made.connect(client_id or unique(user), expect, username=user, password=PASSWORD, **how)
    return made


def metric(server, name):
    for line in server.http("GET", "/metrics").text.splitlines():
        found, _, value = line.rpartition(" ")
        if found == name:
            return int(value)
    return 0


def by_tenant(server, tenant):
    """(sessions, bytes that wait, messages dropped for the tenant's sake) of a tenant."""
    columns = "count(*), sum(queued_bytes), sum(dropped_tenant_full)"
    (row,) = server.sql(f"SELECT {columns} FROM system.sessions WHERE tenant = '{tenant}'")
    return row


# Connections


def test_a_tenant_has_so_many_connections(make_server):
    server = make_server("mqtt.tenant_connections=2")
    users(server, "a1", "a2", "a3", tenant="acme")
    users(server, "b1", tenant="other")
    users(server, "nobodys")
    refused = 'sonde_mqtt_connections_refused_total{reason="tenant"}'
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(wire(server, user, client_id=user)) for user in ("a1", "a2"))
        said = wire(server, "a3", expect=QUOTA).connack.props["reason_string"]
        assert "tenant" in said
        wire(server, "a3", version=V311, expect=3)
        assert metric(server, refused) == 2
        # Neither other tenants nor whoever has none.
        for user in ("b1", "b1", "nobodys", "nobodys", "nobodys"):
            stack.enter_context(wire(server, user))
        assert by_tenant(server, "acme")[0] == 2
        # Who comes back takes over its own place.
        again = stack.enter_context(wire(server, "a1", client_id="a1"))
        assert first.expect(DISCONNECT).reason == TAKEN_OVER
        again.ping()
        second.disconnect()
        third = stack.enter_context(wire(server, "a3"))
        third.ping()


def test_a_user_that_changes_its_tenant_takes_its_connections_along(make_server):
    server = make_server("mqtt.tenant_connections=1")
    users(server, "a1", "a2", tenant="acme")
    with wire(server, "a1", client_id="mover", clean=False, props={"session_expiry": 600}) as mover:
        wire(server, "a2", expect=QUOTA)
        server.sql("ALTER USER a1 WITH (tenant = 'other')")
        mover.ping()
        assert by_tenant(server, "other")[0] == 1
        with wire(server, "a2") as second:
            second.ping()
            # It is full as it is, and nobody is sent away for it.
            server.sql("ALTER USER a1 WITH (tenant = 'acme')")
            # Answered when it is on stable storage, with all that came before.
            assert mover.subscribe(("x", 1)) == [1]
            second.ping()
        mover.break_off()
    # The tenant of a session that is away outlives the server.
    wait_until(lambda: server.sql("SELECT state FROM system.sessions") == [["away"]], "the end of the connection")
    server.kill9()
    server.restart()
    assert server.sql("SELECT client, tenant FROM system.sessions") == [["mover", "acme"]]


# Rates


def acknowledged(wires, count):
    """Reads until each has `count` PUBACKs; how many each had when the first had all of its own."""
    got = dict.fromkeys(wires, 0)
    at_first = None
    deadline = time.monotonic() + 60
    while min(got.values()) < count:
        assert time.monotonic() < deadline, got.values()
        ready, _, _ = select.select([w.socket for w in wires], [], [], 1)
        for one in (w for w in wires if w.socket in ready):
            packet = one.expect(PUBACK)
            got[one] += 1
            assert (packet.packet_id, packet.reason) == (got[one], 0)
            while len(one._bytes) >= 4:
                packet = one.expect(PUBACK)
                got[one] += 1
                assert (packet.packet_id, packet.reason) == (got[one], 0)
        if at_first is None and max(got.values()) >= count:
            at_first = list(got.values())
    return at_first


@pytest.mark.parametrize(
    "setting, size",
    [("mqtt.tenant_messages_per_second=60", 0), ("mqtt.tenant_bytes_per_second=30000", 450)],
    ids=["messages", "bytes"],
)
def test_a_tenant_over_its_rate_is_late_and_each_of_its_clients_has_its_turn(make_server, setting, size):
    server = make_server(setting)
    users(server, "a1", "a2", "a3", tenant="acme")
    users(server, "b1", tenant="other")
    table, count, rate = unique("readings"), 100, 60
    payload = json.dumps({"value": 1, "filler": "x" * size})
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(wire(server, f"a{n}", keep_alive=2)) for n in (1, 2, 3)]
        other = stack.enter_context(wire(server, "b1"))
        began = time.monotonic()
        for sender in wires:
            sender.send(*(publish(V5, f"{table}/x", payload, 1, n + 1) for n in range(count)))
        # Meanwhile another tenant is not slowed down.
        for _ in range(20):
            asked = time.monotonic()
            assert other.publish(f"{table}/other", b'{"value": 2}', qos=1).reason == 0
            assert time.monotonic() - asked < 3
        at_first = acknowledged(wires, count)
        took = time.monotonic() - began
        # A second's worth comes at once; keep alive does not run while nobody reads.
        assert took > (3 * count - rate) / rate * 0.7, took
        # The first one to be done may have had that second for itself, and little more.
        assert min(at_first) >= count - rate - 20, at_first
        for sender in wires:
            sender.ping()
    assert server.sql(f"SELECT count(*) FROM {table} WHERE value = 1") == [[3 * count]]
    assert metric(server, "sonde_mqtt_tenant_paused_total") > 0


def test_a_client_that_leaves_and_comes_back_owes_what_its_tenant_owes(make_server):
    server = make_server("mqtt.tenant_messages_per_second=10")
    users(server, "a1", tenant="acme")
    topic = unique("readings")
    began = time.monotonic()
    for _ in range(3):
        with wire(server, "a1") as sender:
            sender.send(*(publish(V5, f"{topic}/x", b'{"value": 1}', 1, n + 1) for n in range(10)))
            acknowledged([sender], 10)
    assert time.monotonic() - began > 1.4


def test_one_that_goes_leaves_its_turn_to_the_others(make_server):
    server = make_server("mqtt.tenant_messages_per_second=10")
    users(server, "a1", "a2", tenant="acme")
    topic = unique("readings")
    with wire(server, "a1") as stays:
        leaver = wire(server, "a2")
        leaver.send(*(publish(V5, f"{topic}/x", b'{"value": 1}', 0) for _ in range(40)))
        stays.send(*(publish(V5, f"{topic}/x", b'{"value": 2}', 1, n + 1) for n in range(15)))
        leaver.break_off()
        acknowledged([stays], 15)


# Queues


def away(server, user, client_id, topic_filter):
    with wire(server, user, client_id, clean=False, props={"session_expiry": 600}) as client:
        assert client.subscribe((topic_filter, 1)) == [1]
        client.disconnect()


@pytest.mark.parametrize("overflow", ["drop_new", "drop_oldest"])
def test_so_many_bytes_wait_for_the_sessions_of_a_tenant(make_server, overflow):
    limit, count, size = 30_000, 40, 1000
    server = make_server(f"mqtt.tenant_queued_bytes={limit}", f"mqtt.queue_overflow={overflow}")
    server.sql("DROP SOURCE default")
    users(server, "a1", "a2", tenant="acme")
    users(server, "b1", tenant="other")
    topic = unique("t")
    for user, client_id in (("a1", "first"), ("a2", "second"), ("b1", "theirs")):
        away(server, user, client_id, f"{topic}/#")
    here = wire(server, "a1", "here", clean=False, props={"session_expiry": 600})
    with here, wire(server, "b1") as sender:
        here.subscribe((f"{topic}/#", 1))
        for n in range(count):
            assert sender.publish(f"{topic}/x", f"{n:04}".encode() + b"x" * size, qos=1).reason == 0
            # Who is there and keeps up has everything, whatever waits for others of its tenant.
            assert here.message().payload[:4] == f"{n:04}".encode()
        here.ping()  # what it has acknowledged does not wait any more
        sessions, waiting, dropped = by_tenant(server, "acme")
        assert sessions == 3 and limit - 2 * size < waiting <= limit and dropped > 0
        # Other tenants have room of their own up to the same limit.
        (theirs,) = server.sql("SELECT queued, dropped_tenant_full FROM system.sessions WHERE client = 'theirs'")
        assert sum(theirs) == count and theirs[0] * size <= limit < (theirs[0] + 2) * size * 1.2
    # What waits is known after a restart, to the tenants too.
    server.kill9()
    server.restart()
    before = by_tenant(server, "acme")
    assert before[1] <= limit
    with wire(server, "b1") as sender:
        sender.publish(f"{topic}/x", b"more" + b"x" * size, qos=1)
        assert by_tenant(server, "acme")[1] <= limit
        # One session takes what waits for it: there is room for the other.
        (queued,) = server.sql("SELECT queued FROM system.sessions WHERE client = 'first'")[0]
        with wire(server, "a1", "first", clean=False, props={"session_expiry": 600}) as first:
            for _ in range(queued):
                first.message()
            first.ping()
            first.disconnect()
        (dropped,) = server.sql("SELECT dropped_tenant_full FROM system.sessions WHERE client = 'second'")[0]
        for _ in range(3):
            assert sender.publish(f"{topic}/x", b"x" * size, qos=1).reason == 0
        after = server.sql("SELECT dropped_tenant_full FROM system.sessions WHERE client = 'second'")[0]
        assert after == [dropped]


def test_the_end_of_a_session_makes_room(make_server):
    server = make_server("mqtt.tenant_queued_bytes=5000")
    server.sql("DROP SOURCE default")
    users(server, "a1", tenant="acme")
    users(server, "sender")
    for client_id in ("first", "second"):
        away(server, "a1", client_id, f"{client_id}/#")
    with wire(server, "sender") as sender:
        for _ in range(10):
            sender.publish("first/x", b"x" * 1000, qos=1)
        sender.publish("second/x", b"x" * 1000, qos=1)
        dropped = "SELECT dropped_tenant_full FROM system.sessions WHERE client = 'second'"
        assert server.sql(dropped) == [[1]]
        server.sql("KILL SESSION 'first'")
        sender.publish("second/x", b"x" * 1000, qos=1)
        assert server.sql(dropped) == [[1]]
        assert by_tenant(server, "acme")[1] > 1000
