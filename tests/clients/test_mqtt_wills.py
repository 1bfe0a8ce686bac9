"""Wills and the end of the server: whose are published at the next start, under whose rights, and whose are not."""

import pytest
from conformance import covers
from mqtt_packet import V5, V311, Will
from mqtt_wire import connected

PASSWORD = "correct horse"
ENDS = pytest.mark.parametrize("end", ["stop", "kill9"])


def log_in(server, name, **how):
    return connected(server.address("mqtt"), client_id=f"c-{name}", username=name, password=PASSWORD, **how)


def make_users(server, *names):
    for name in names:
        server.sql(f"CREATE USER {name} PASSWORD '{PASSWORD}'")
        server.sql(f"GRANT PUBLISH ON 'will/#' TO {name}")


def retained(server, topic, count):
    """Payloads by topic of the retained messages, which are so many."""
    with connected(server.address("mqtt"), username="any", password=server.token) as wire:
        wire.subscribe((topic, 1))
        messages = [wire.message() for _ in range(count)]
        wire.ping()
        return {message.topic: message.payload for message in [*messages, *wire.waiting]}


@covers(v5="3.1.2-8", v311="3.1.2-8")
@ENDS
@pytest.mark.parametrize("version", [V311, V5])
def test_the_will_of_a_session_that_is_not_durable_is_published_at_the_next_start(make_server, version, end):
    server = make_server()
    with connected(server.address("mqtt")) as other:
        for topic in ("will/lost", "will/left", "will/alone"):
            other.publish(topic, b"online", 1, retain=True)
    how = {"version": version, "clean": True}
    lost = connected(server.address("mqtt"), will=Will("will/lost", b"offline", 1, True), **how)
    left = connected(server.address("mqtt"), will=Will("will/left", b"offline", 1, True), **how)
    alone = connected(server.address("mqtt"), **how)
    # A DISCONNECT takes it back; what is acknowledged behind it was committed behind it.
    left.disconnect()
    alone.publish("will/alone", b"still online", 1, retain=True)
    getattr(server, end)()
    server.start()
    expected = {"will/lost": b"offline", "will/left": b"online", "will/alone": b"still online"}
    assert retained(server, "will/+", 3) == expected
    # Once: its record is gone.
    with connected(server.address("mqtt")) as other:
        other.publish("will/lost", b"online", 1, retain=True)
    server.kill9()
    server.start()
    assert retained(server, "will/lost", 1) == {"will/lost": b"online"}
    lost.socket.close()


@pytest.mark.parametrize("durable", [True, False])
def test_whoever_has_no_right_any_more_has_no_will_after_a_restart(make_server, durable):
    server = make_server("mqtt.anonymous=never")
    make_users(server, "dropped", "revoked", "renamed", "good")
    how = {"clean": False, "props": {"session_expiry": 600}} if durable else {}
    wires = {
        name: log_in(server, name, will=Will(f"will/{name}", b"gone", 1, True), **how)
        for name in ("dropped", "revoked", "renamed", "good")
    }
    server.sql("DROP USER dropped")
    server.sql("REVOKE PUBLISH ON 'will/#' FROM revoked")
    server.sql("DROP USER renamed")
    make_users(server, "renamed")
    assert wires["dropped"].ended().reason == 0x87
    server.kill9()
    server.start()
    assert retained(server, "will/+", 1) == {"will/good": b"gone"}


def test_a_token_that_is_gone_has_no_will_after_a_restart(make_server):
    server = make_server("mqtt.anonymous=never")
    how = {"username": "any", "clean": False, "props": {"session_expiry": 600}}
    wires = []
    for name in ("dropped", "good"):
        token = server.create_token("--publish", "will/#", name=name)
        will = Will(f"will/{name}", b"gone", 1, True, {"will_delay": 1})
        wires.append(connected(server.address("mqtt"), client_id=name, password=token, will=will, **how))
    # What waits for its delay is published under the rights of then, too.
    wires[0].break_off()
    server.sql("DROP TOKEN dropped")
    server.kill9()
    server.start()
    with connected(server.address("mqtt"), username="any", password=server.token) as wire:
        wire.subscribe(("will/+", 1))
        assert wire.message().topic == "will/good"
    assert retained(server, "will/+", 1) == {"will/good": b"gone"}
