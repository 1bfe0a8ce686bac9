"""Enhanced authentication (section 4.12) with SCRAM-SHA-256."""

import pytest
from conformance import covers
from mqtt_packet import AUTH, CONNACK, DISCONNECT, auth, connect
from scram import AGAIN, CONTINUE, METHOD, Scram, data
from support import unique

PASSWORD = "correct horse battery"


@pytest.fixture
def user(broker):
    if broker.server is None:
        pytest.skip("MQTT_BROKER names another broker")
    name = unique("scram")
    broker.server.sql(f"CREATE USER {name} PASSWORD '{PASSWORD}'")
    return name


def begin(broker, user, password=PASSWORD, **props):
    """CONNECT up to the challenge."""
    wire, scram = broker.wire(), Scram(user, password)
    wire.send(connect(5, unique("c"), props={**data(scram.first), **props}))
    challenge = wire.next()
    assert (challenge.kind, challenge.reason) == (AUTH, CONTINUE), challenge
    assert challenge.props["authentication_method"] == METHOD
    return wire, scram, challenge


def come_in(broker, user):
    wire, scram, challenge = begin(broker, user)
    wire.send(auth(CONTINUE, data(scram.final(challenge.props["authentication_data"]))))
    connack = wire.next()
    assert (connack.kind, connack.reason) == (CONNACK, 0), connack
    assert connack.props["authentication_method"] == METHOD
    scram.check(connack.props["authentication_data"])
    return wire


@covers(v5="4.12.0-2 4.12.0-3 4.12.0-5 3.15.2-1 3.1.2-30")
def test_scram(broker, user):
    come_in(broker, user).ping()


@covers(v5="3.1.2-24")
def test_challenges_fit_the_clients_maximum(broker, user):
    """A challenge that does not fit cannot be sent: the client hears why, if that fits, and is closed."""
    _, _, challenge = begin(broker, user)
    for size in (40, challenge.size - 1):
        wire = broker.wire()
        wire.send(connect(5, unique("c"), props={**data(Scram(user, PASSWORD).first), "maximum_packet_size": size}))
        said = wire.until_closed()
        assert all(packet.size <= size for packet in said)
        assert [(packet.kind, packet.reason) for packet in said] == [(CONNACK, 0x95)]
    # One byte more, and it fits.
    wire, _, challenge = begin(broker, user, maximum_packet_size=challenge.size)
    wire.send(auth(CONTINUE, data(b"nonsense")))
    assert all(packet.size <= challenge.size for packet in wire.until_closed())


@covers(v5="3.1.2-24")
def test_a_second_challenge_fits_too(broker, user):
    """A longer nonce of the client makes a longer challenge than that of its CONNECT."""
    _, _, challenge = begin(broker, user)
    wire, scram, challenge = begin(broker, user, maximum_packet_size=challenge.size)
    wire.send(auth(CONTINUE, data(scram.final(challenge.props["authentication_data"]))))
    assert wire.next().reason == 0
    wire.send(auth(AGAIN, data(Scram(user, PASSWORD, 60).first)))
    said = wire.until_closed()
    assert all(packet.size <= challenge.size for packet in said)
    assert [(packet.kind, packet.reason) for packet in said] == [(DISCONNECT, 0x95)]


@covers(v5="4.12.0-4 3.2.2-7 4.13.2-1")
@pytest.mark.parametrize("wrong", ["password", "proof", "method"])
def test_a_refusal_closes(broker, user, wrong):
    wire, scram, challenge = begin(broker, user, "another password" if wrong == "password" else PASSWORD)
    final = scram.final(challenge.props["authentication_data"])
    props = data(b"c=biws,r=x,p=AAAA" if wrong == "proof" else final)
    if wrong == "method":
        props["authentication_method"] = "SCRAM-SHA-1"
    wire.send(auth(CONTINUE, props))
    said = wire.until_closed()
    assert [p.kind for p in said] in ([CONNACK], []) and all(p.reason >= 0x80 for p in said)
    broker.serves()


@covers(v5="4.12.1-1 4.12.0-5 3.15.2-1")
def test_authenticating_again(broker, user):
    wire, scram = come_in(broker, user), Scram(user, PASSWORD)
    wire.send(auth(AGAIN, data(scram.first)))
    challenge = wire.expect(AUTH)
    assert (challenge.reason, challenge.props["authentication_method"]) == (CONTINUE, METHOD)
    wire.send(auth(CONTINUE, data(scram.final(challenge.props["authentication_data"]))))
    done = wire.expect(AUTH)
    assert (done.reason, done.props["authentication_method"]) == (0x00, METHOD)
    scram.check(done.props["authentication_data"])
    wire.ping()


@covers(v5="4.12.1-2 4.13.2-1")
@pytest.mark.parametrize("wrong", ["password", "method"])
def test_a_failed_second_authentication_closes(broker, user, wrong):
    wire, scram = come_in(broker, user), Scram(user, "another password")
    props = data(scram.first)
    if wrong == "method":
        props["authentication_method"] = "PLAIN"
    wire.send(auth(AGAIN, props))
    if wrong == "password":
        challenge = wire.expect(AUTH)
        wire.send(auth(CONTINUE, data(scram.final(challenge.props["authentication_data"]))))
    said = wire.until_closed()
    assert said[-1].kind == DISCONNECT and said[-1].reason >= 0x80
