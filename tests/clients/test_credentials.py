"""Credentials that change under open connections, sessions whose owner lost a right, and what refused logins are told."""

import base64
import hashlib

import pytest
from mqtt_packet import V311
from mqtt_wire import Wire, connected
from support import unique, wait_until

BAD_PASSWORD, NOT_AUTHORIZED, CLIENT_ID, BUSY = 0x86, 0x87, 0x85, 0x89
PASSWORD = "correct horse"


def log_in(server, name, password=PASSWORD, **how):
    return connected(server.address("mqtt"), username=name, password=password, **how)


def refused(server, name=None, password=PASSWORD, client_id=None, **how):
    """The CONNACK of someone who is not let in."""
    with Wire(server.address("mqtt"), **how) as wire:
        connack = wire.connect(client_id or unique("client"), None, username=name, password=password)
        assert connack.reason != 0
        return connack


@pytest.mark.parametrize(
    "change",
    [
        ["ALTER USER {} PASSWORD 'another horse'"],
        ["ALTER USER {} WITH (client_id = 'another')"],
        ["DROP USER {}", "CREATE USER {} PASSWORD 'correct horse'"],
        ["CREATE OR REPLACE USER {} PASSWORD 'correct horse'"],
    ],
    ids=["password", "client_id", "dropped and created", "replaced"],
)
def test_a_connection_ends_with_its_credential(server, change):
    name = unique("user")
    server.sql(f"CREATE USER {name} PASSWORD '{PASSWORD}'")
    with log_in(server, name) as wire:
        for statement in change:
            server.sql(statement.format(name))
        end = wire.ended()
        assert end.reason == NOT_AUTHORIZED and "not accepted any more" in end.props["reason_string"]


def test_a_connection_stays_with_a_credential_that_is_good(server):
    name, client = unique("user"), unique("client")
    server.sql(f"CREATE USER {name} PASSWORD '{PASSWORD}'")
    with log_in(server, name, client_id=client) as wire:
        server.sql(f"ALTER USER {name} WITH (tenant = 'acme')")
        server.sql(f"ALTER USER {name} CERTIFICATE '{name}.example'")
        server.sql(f"ALTER USER {name} WITH (client_id = '{client}')")
        server.sql(f"GRANT PUBLISH ON 'own/${{tenant}}' TO {name}")
        assert wire.publish("own/acme", "1", 1).reason == 0


def test_a_hash_that_is_replaced_by_ours_is_the_same_password(make_server):
    """The first login with a hash of Mosquitto has it replaced, and its connection goes on."""
    server = make_server()
    salt = b"twelve bytes"
    digest = hashlib.pbkdf2_hmac("sha512", PASSWORD.encode(), salt, 101)
    text = lambda data: base64.b64encode(data).decode()  # noqa: E731
    server.sql(f"CREATE USER pump PASSWORD HASH '$7$101${text(salt)}${text(digest)}'")
    with log_in(server, "pump") as wire:
        kinds = "SELECT password FROM system.users"
        wait_until(lambda: server.sql(kinds) == [["argon2id"]], "its own hash")
        wire.ping()
        wire.ping()


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("change", ["DROP USER mallory", "REVOKE SUBSCRIBE ON 'jobs/#' FROM mallory"])
def test_an_away_session_that_may_not_read_leaves_its_group(make_server, change, restarts):
    server = make_server()
    how = {"clean": False, "props": {"session_expiry": 600}}
    for name in ("alice", "mallory"):
        server.sql(f"CREATE USER {name} PASSWORD '{PASSWORD}'")
        server.sql(f"GRANT SUBSCRIBE ON 'jobs/#' TO {name}")
        with log_in(server, name, client_id=name, **how) as wire:
            assert wire.subscribe(("$share/g/jobs/+", 1), ("jobs/own", 1)) == [1, 1]
            wire.disconnect()
    if restarts:
        server.kill9()
        server.start()
    with connected(server.address("mqtt")) as sender:
        for n in range(10):
            assert sender.publish("jobs/x", str(n), 1).reason == 0
        server.sql(change)
        members = "SELECT client FROM system.subscriptions WHERE share = 'g'"
        wait_until(lambda: server.sql(members) == [["alice"]], "the end of its membership")
        for n in range(10, 15):
            assert sender.publish("jobs/x", str(n), 1).reason == 0
    with log_in(server, "alice", client_id="alice", **how) as wire:
        got = sorted(int(wire.message().payload) for _ in range(15))
        assert got == list(range(15))


def test_a_changed_password_takes_no_part_of_a_group_from_an_away_session(make_server):
    server = make_server()
    server.sql(f"CREATE USER alice PASSWORD '{PASSWORD}'")
    server.sql("GRANT SUBSCRIBE ON 'jobs/#' TO alice")
    how = {"client_id": "alice", "clean": False, "props": {"session_expiry": 600}}
    with log_in(server, "alice", **how) as wire:
        assert wire.subscribe(("$share/g/jobs/+", 1)) == [1]
        server.sql("ALTER USER alice PASSWORD 'another horse'")
        assert wire.ended().reason == NOT_AUTHORIZED
    with connected(server.address("mqtt")) as sender:
        sender.publish("jobs/x", "1", 1)
    with log_in(server, "alice", "another horse", **how) as wire:
        assert wire.message().payload == b"1"


def test_a_refused_login_is_told_what_is_wrong(make_server):
    server = make_server("mqtt.anonymous=never", "mqtt.server_reference=other.example:1883")
    server.sql(f"CREATE USER pump PASSWORD '{PASSWORD}' WITH (client_id = 'c1')")
    server.sql(f"CREATE USER other PASSWORD '{PASSWORD}'")

    def said(reason, **how):
        connack = refused(server, **how)
        assert connack.reason == reason, connack
        return connack.props["reason_string"]

    assert "bound to another client id" in said(CLIENT_ID, name="pump", client_id="c2")
    with log_in(server, "pump", client_id="c1"):
        assert "belongs to another user" in said(CLIENT_ID, name="other", client_id="c1")
    assert "too long" in said(CLIENT_ID, name="other", client_id="x" * 1025)
    assert "password" in said(BAD_PASSWORD, name="other", password="wrong horse")
    assert "nobody is let in without" in said(NOT_AUTHORIZED, password=None)


def test_whoever_guesses_holds_up_neither_others_nor_himself_elsewhere(make_server):
    server = make_server("mqtt.server_reference=other.example:1883")
    for name in ("pump", "mallory", "other"):
        server.sql(f"CREATE USER {name} PASSWORD '{PASSWORD}'")
    answers = [refused(server, "pump", f"guess {n}") for n in range(10)]
    assert [it.reason for it in answers] == [BAD_PASSWORD] * 10
    # An account of one's own does not help.
    log_in(server, "mallory").disconnect()
    busy = refused(server, "pump", "guess 11")
    assert busy.reason == BUSY and "try again" in busy.props["reason_string"], busy
    assert "server_reference" not in busy.props
    assert refused(server, "pump", "guess 12", version=V311).reason == 3
    # Another name behind the same address has its first password looked at.
    log_in(server, "other").disconnect()
