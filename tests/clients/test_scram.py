"""Enhanced authentication of MQTT 5 (4.12) by SCRAM-SHA-256 (RFC 5802, RFC 7677), with AUTH packets made by hand."""

import pytest
from mqtt_packet import AUTH, CONNACK, PINGREQ, auth, connect, packet
from mqtt_wire import Wire, connected
from scram import AGAIN, CONTINUE, METHOD, Scram, data
from support import unique

PASSWORD = "pencil, and paper"
PROTOCOL_ERROR, BAD_PASSWORD, NOT_AUTHORIZED, BAD_METHOD = 0x82, 0x86, 0x87, 0x8C


@pytest.fixture(scope="module")
def name(server):
    name = unique("user")
    server.sql(f"CREATE USER {name} PASSWORD '{PASSWORD}'")
    server.sql(f"GRANT PUBLISH ON 'x/{name}' TO {name}")
    return name


@pytest.fixture
def wire(server):
    with Wire(server.address("mqtt")) as wire:
        yield wire


def ask(wire, props):
    """Sends CONNECT with these properties."""
    wire.send(connect(wire.version, unique("client"), props=props))


def challenge(wire):
    """What the server says first."""
    found = wire.next_is(AUTH)
    assert (found.reason, found.props["authentication_method"]) == (CONTINUE, METHOD)
    return found.props["authentication_data"]


def begin(wire, scram):
    """CONNECT, and the challenge of the server; the client's final message."""
    ask(wire, data(scram.first))
    return scram.final(challenge(wire))


def log_in(wire, name):
    scram = Scram(name, PASSWORD)
    wire.send(auth(CONTINUE, data(begin(wire, scram))))
    found = wire.next_is(CONNACK)
    assert found.reason == 0 and found.props["authentication_method"] == METHOD
    # The client knows the server, too.
    scram.check(found.props["authentication_data"])


def test_both_sides_know_each_other_and_no_password_was_sent(wire, name):
    log_in(wire, name)
    assert wire.publish(f"x/{name}", "1", 1).reason == 0
    assert wire.publish("x/other", "1", 1).reason == NOT_AUTHORIZED


def test_a_wrong_password_is_refused(wire, name):
    scram = Scram(name, "another pencil")
    wire.send(auth(CONTINUE, data(begin(wire, scram))))
    assert wire.next_is(CONNACK).reason == BAD_PASSWORD
    assert wire.next() is None


def test_an_unknown_user_learns_nothing(server, name):
    """The same steps, a salt of its own that stays, and the same answer as for a wrong password."""
    salts = []
    for who in ("ghost", "ghost", "another", name):
        with Wire(server.address("mqtt")) as wire:
            scram = Scram(who, "no such password")
            wire.send(auth(CONTINUE, data(begin(wire, scram))))
            assert wire.next_is(CONNACK).reason == BAD_PASSWORD
        salts.append((scram.salt, scram.iterations))
    assert salts[0] == salts[1] and salts[0][0] != salts[2][0]
    assert {iterations for _, iterations in salts} == {15000}
    assert {len(salt) for salt, _ in salts} == {24}


@pytest.mark.parametrize("first", [b"", b"n,,n=a", b"p=tls-unique,,n=a,r=b", b"n,,n==XX,r=b"])
def test_a_first_message_that_is_none_is_refused(wire, first):
    ask(wire, data(first))
    assert wire.next_is(CONNACK).reason == BAD_PASSWORD


def test_a_last_message_with_another_nonce_is_refused(wire, name):
    scram = Scram(name, PASSWORD)
    final = begin(wire, scram)
    wire.send(auth(CONTINUE, data(final.replace(b",p=", b"x,p="))))
    assert wire.next_is(CONNACK).reason == BAD_PASSWORD


def test_methods_that_there_are_not_are_refused(server, name):
    with Wire(server.address("mqtt")) as wire:
        ask(wire, data(b"x", "SCRAM-SHA-1"))
        assert wire.next_is(CONNACK).reason == BAD_METHOD
    # Data without a method [MQTT 5, 3.1.2.11.10].
    with Wire(server.address("mqtt")) as wire:
        ask(wire, {"authentication_data": b"x"})
        answer = wire.next()
        assert answer is None or (answer.kind, answer.reason) == (CONNACK, PROTOCOL_ERROR)


def test_the_method_stays_the_same(wire, name):
    scram = Scram(name, PASSWORD)
    final = begin(wire, scram)
    wire.send(auth(CONTINUE, data(final, "GS2-KRB5")))
    assert wire.next_is(CONNACK).reason == PROTOCOL_ERROR


@pytest.mark.parametrize("reason", [0, AGAIN])
def test_a_client_that_is_not_let_in_goes_on_and_does_not_begin_again(wire, name, reason):
    scram = Scram(name, PASSWORD)
    final = begin(wire, scram)
    wire.send(auth(reason, data(final)))
    assert wire.next_is(CONNACK).reason == PROTOCOL_ERROR


def test_nothing_but_auth_is_taken_before_the_end(wire, name):
    begin(wire, Scram(name, PASSWORD))
    wire.send(packet(PINGREQ))  # [MQTT-3.1.2-30]
    assert wire.next() is None


def again(wire, scram):
    wire.send(auth(AGAIN, data(scram.first)))
    wire.send(auth(CONTINUE, data(scram.final(challenge(wire)))))


def test_a_client_authenticates_again(wire, name):
    log_in(wire, name)
    for _ in range(2):
        scram = Scram(name, PASSWORD)
        again(wire, scram)
        done = wire.next_is(AUTH)
        assert done.reason == 0
        scram.check(done.props["authentication_data"])
        assert wire.publish(f"x/{name}", "1", 1).reason == 0


def test_a_client_that_fails_to_authenticate_again_is_sent_away(wire, name):
    log_in(wire, name)
    again(wire, Scram(name, "another pencil"))
    assert wire.ended().reason == NOT_AUTHORIZED


def test_nobody_becomes_someone_else(server, wire, name):
    other = unique("user")
    server.sql(f"CREATE USER {other} PASSWORD '{PASSWORD}'")
    log_in(wire, name)
    again(wire, Scram(other, PASSWORD))
    assert wire.ended().reason == NOT_AUTHORIZED


def test_auth_without_a_method_in_connect_is_an_error(server):
    with connected(server.address("mqtt")) as wire:
        wire.send(auth(AGAIN, data(b"n,,n=a,r=b")))
        assert wire.ended().reason == PROTOCOL_ERROR


def test_another_method_later_is_an_error(wire, name):
    log_in(wire, name)
    wire.send(auth(AGAIN, data(b"x", "GS2-KRB5")))
    assert wire.ended().reason == PROTOCOL_ERROR


def test_a_new_password_counts_at_once(server, wire):
    name = unique("user")
    server.sql(f"CREATE USER {name} PASSWORD 'not this one'")
    server.sql(f"ALTER USER {name} PASSWORD '{PASSWORD}'")
    log_in(wire, name)


def test_a_user_without_keys_for_scram_is_unknown_to_it(server, wire):
    name = unique("user")
    server.sql(f"CREATE USER {name} PASSWORD '{PASSWORD}' WITH (scram = false)")
    scram = Scram(name, PASSWORD)
    wire.send(auth(CONTINUE, data(begin(wire, scram))))
    assert wire.next_is(CONNACK).reason == BAD_PASSWORD
