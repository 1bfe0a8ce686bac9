"""Enhanced authentication of MQTT 5 (4.12) by SCRAM-SHA-256 (RFC 5802, RFC 7677), with AUTH packets made by hand."""

import base64
import hashlib
import hmac
import os

import pytest
from raw_mqtt5 import DATA, METHOD, Raw, text
from support import unique

PASSWORD = "pencil, and paper"
CONTINUE, AGAIN = 0x18, 0x19
PROTOCOL_ERROR, BAD_PASSWORD, NOT_AUTHORIZED, BAD_METHOD = 0x82, 0x86, 0x87, 0x8C


def mac(key, message):
    return hmac.new(key, message.encode(), hashlib.sha256).digest()


def pair(data, method="SCRAM-SHA-256"):
    return (METHOD, text(method)), (DATA, text(data))


class Scram:
    """A client's side of the exchange."""

    def __init__(self, name, password=PASSWORD, nonce=None):
        self.password = password
        self.nonce = nonce or base64.b64encode(os.urandom(18)).decode()
        self.bare = f"n={name.replace('=', '=3D').replace(',', '=2C')},r={self.nonce}"
        self.first = f"n,,{self.bare}"

    def last(self, server_first):
        """The client's last message, for what the server has said."""
        told = dict(part.split("=", 1) for part in server_first.split(","))
        assert told["r"].startswith(self.nonce) and len(told["r"]) > len(self.nonce)
        self.salt, self.iterations = told["s"], int(told["i"])
        salted = hashlib.pbkdf2_hmac("sha256", self.password.encode(), base64.b64decode(told["s"]), self.iterations)
        client_key = mac(salted, "Client Key")
        without_proof = f"c=biws,r={told['r']}"
        message = f"{self.bare},{server_first},{without_proof}"
        signature = mac(hashlib.sha256(client_key).digest(), message)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self.expected = "v=" + base64.b64encode(mac(mac(salted, "Server Key"), message)).decode()
        return f"{without_proof},p={base64.b64encode(proof).decode()}"


@pytest.fixture(scope="module")
def name(server):
    name = unique("user")
    server.sql(f"CREATE USER {name} PASSWORD '{PASSWORD}'")
    server.sql(f"GRANT PUBLISH ON 'x/{name}' TO {name}")
    return name


def begin(raw, scram, **how):
    """Sends CONNECT; what the server says first."""
    raw.connect(unique("client"), extra=pair(scram.first), **how)
    reason, found = raw.read_auth()
    assert reason == CONTINUE and found[METHOD] == b"SCRAM-SHA-256"
    return found[DATA].decode()


def log_in(raw, name):
    scram = Scram(name)
    raw.auth(CONTINUE, *pair(scram.last(begin(raw, scram))))
    _, reason, found = raw.connack()
    assert reason == 0 and found[METHOD] == b"SCRAM-SHA-256"
    # The client knows the server, too.
    assert found[DATA].decode() == scram.expected


def test_both_sides_know_each_other_and_no_password_was_sent(server, name):
    with Raw(server.address("mqtt")) as raw:
        log_in(raw, name)
        assert raw.publish(f"x/{name}", "1") == 0
        assert raw.publish("x/other", "1") == NOT_AUTHORIZED


def test_a_wrong_password_is_refused(server, name):
    with Raw(server.address("mqtt")) as raw:
        scram = Scram(name, "another pencil")
        raw.auth(CONTINUE, *pair(scram.last(begin(raw, scram))))
        assert raw.connack()[1] == BAD_PASSWORD
        assert raw.read() is None


def test_an_unknown_user_learns_nothing(server, name):
    """The same steps, a salt of its own that stays, and the same answer as for a wrong password."""
    salts = []
    for who in ("ghost", "ghost", "another", name):
        with Raw(server.address("mqtt")) as raw:
            scram = Scram(who, "no such password")
            raw.auth(CONTINUE, *pair(scram.last(begin(raw, scram))))
            assert raw.connack()[1] == BAD_PASSWORD
        salts.append((scram.salt, scram.iterations))
    assert salts[0] == salts[1] and salts[0][0] != salts[2][0]
    assert {iterations for _, iterations in salts} == {15000}
    assert {len(salt) for salt, _ in salts} == {24}


@pytest.mark.parametrize("first", ["", "n,,n=a", "p=tls-unique,,n=a,r=b", "n,,n==XX,r=b"])
def test_a_first_message_that_is_none_is_refused(server, first):
    with Raw(server.address("mqtt")) as raw:
        raw.connect(unique("client"), extra=pair(first))
        assert raw.connack()[1] == BAD_PASSWORD


def test_a_last_message_with_another_nonce_is_refused(server, name):
    with Raw(server.address("mqtt")) as raw:
        scram = Scram(name)
        last = scram.last(begin(raw, scram))
        raw.auth(CONTINUE, *pair(last.replace(",p=", "x,p=")))
        assert raw.connack()[1] == BAD_PASSWORD


def test_methods_that_there_are_not_are_refused(server, name):
    with Raw(server.address("mqtt")) as raw:
        raw.connect(unique("client"), extra=pair("x", "SCRAM-SHA-1"))
        assert raw.connack()[1] == BAD_METHOD
    # Data without a method [MQTT 5, 3.1.2.11.10].
    with Raw(server.address("mqtt")) as raw:
        raw.connect(unique("client"), extra=pair("x")[1:])
        answer = raw.read()
        assert answer is None or answer[2][1] == PROTOCOL_ERROR


def test_the_method_stays_the_same(server, name):
    with Raw(server.address("mqtt")) as raw:
        scram = Scram(name)
        last = scram.last(begin(raw, scram))
        raw.auth(CONTINUE, *pair(last, "GS2-KRB5"))
        assert raw.connack()[1] == PROTOCOL_ERROR


@pytest.mark.parametrize("reason", [0, AGAIN])
def test_a_client_that_is_not_let_in_goes_on_and_does_not_begin_again(server, name, reason):
    with Raw(server.address("mqtt")) as raw:
        scram = Scram(name)
        last = scram.last(begin(raw, scram))
        raw.auth(reason, *pair(last))
        assert raw.connack()[1] == PROTOCOL_ERROR


def test_nothing_but_auth_is_taken_before_the_end(server, name):
    with Raw(server.address("mqtt")) as raw:
        begin(raw, Scram(name))
        raw.send(b"\xc0\0")  # PINGREQ [MQTT-3.1.2-30]
        assert raw.read() is None


def again(raw, scram):
    raw.auth(AGAIN, *pair(scram.first))
    reason, found = raw.read_auth()
    assert reason == CONTINUE
    raw.auth(CONTINUE, *pair(scram.last(found[DATA].decode())))


def test_a_client_authenticates_again(server, name):
    with Raw(server.address("mqtt")) as raw:
        log_in(raw, name)
        for _ in range(2):
            scram = Scram(name)
            again(raw, scram)
            reason, found = raw.read_auth()
            assert reason == 0 and found[DATA].decode() == scram.expected
            assert raw.publish(f"x/{name}", "1") == 0


def test_a_client_that_fails_to_authenticate_again_is_sent_away(server, name):
    with Raw(server.address("mqtt")) as raw:
        log_in(raw, name)
        again(raw, Scram(name, "another pencil"))
        assert raw.disconnected() == NOT_AUTHORIZED


def test_nobody_becomes_someone_else(server, name):
    other = unique("user")
    server.sql(f"CREATE USER {other} PASSWORD '{PASSWORD}'")
    with Raw(server.address("mqtt")) as raw:
        log_in(raw, name)
        again(raw, Scram(other))
        assert raw.disconnected() == NOT_AUTHORIZED


def test_auth_without_a_method_in_connect_is_an_error(server):
    with Raw(server.address("mqtt")) as raw:
        raw.connect(unique("client"))
        assert raw.connack()[1] == 0
        raw.auth(AGAIN, *pair("n,,n=a,r=b"))
        assert raw.disconnected() == PROTOCOL_ERROR


def test_another_method_later_is_an_error(server, name):
    with Raw(server.address("mqtt")) as raw:
        log_in(raw, name)
        raw.auth(AGAIN, *pair("x", "GS2-KRB5"))
        assert raw.disconnected() == PROTOCOL_ERROR


def test_a_new_password_counts_at_once(server):
    name = unique("user")
    server.sql(f"CREATE USER {name} PASSWORD 'not this one'")
    server.sql(f"ALTER USER {name} PASSWORD '{PASSWORD}'")
    with Raw(server.address("mqtt")) as raw:
        log_in(raw, name)


def test_a_user_without_keys_for_scram_is_unknown_to_it(server):
    name = unique("user")
    server.sql(f"CREATE USER {name} PASSWORD '{PASSWORD}' WITH (scram = false)")
    with Raw(server.address("mqtt")) as raw:
        scram = Scram(name)
        raw.auth(CONTINUE, *pair(scram.last(begin(raw, scram))))
        assert raw.connack()[1] == BAD_PASSWORD
