"""JSON Web Tokens of someone else's making: RS256 and ES256 by hand, over a JWKS file."""

import base64
import hashlib
import json
import os
import time

import pytest
from mqtt_wire import Wire, connected
from support import Server, servers, unique, wait_until

BAD_PASSWORD, NOT_AUTHORIZED = 0x86, 0x87

# A key pair for these tests alone.
N = int(
    "dbc90f38f9b99cf87378fdd23afc168fb2f7046efc89daf3ef4500937528e094c591995fcfda7a22c51bff2ec11d1b203ee4"
    "796e3864dbf77dc9395ddce3fb39a31c3e80e9cddbbfd80ded831448f22dc9deed856a049fa903e16118ec0203ff0070cab7"
    "17b4a543664f9be2095c4042403b86d6e504274beb410b688286f5f36c96350c90845a15bf268e4c20370abea516643e50bf"
    "1b8964937c4c8de2841d474e1e216210b2df46629d0ab0fb0712388ae331c156995f3343a6ce5a0c7a6f5875f0ec5d538795"
    "e9db61ce54219ef663800ab0d2fa988308dcdc477dfd2a41b860a7f84f7dd97bfd4144aad7b1e2ff70f9dbbfd89fbca8d6d0"
    "c91b224bbcb3",
    16,
)
D = int(
    "37dbff76f31d46346d20bc9e0068ce9122229ee9585cef1d9d5bd3bc268447a3f81cbbb6fabc63db4f6e80aa50e18561ea2a"
    "2664a98794d26f914377c42adb507850b6e00bcc4ac414f4e13f35da1e571dddff4f2fb55220e240176dfe99ba8b4680e43c"
    "a9953b85884cc6692a08dcba19da273899c736f79828956e2ff27e32b1a803882f457e18a577c867c4829ee54e5ad2cc13ba"
    "6bed177d146c7c027ef41d9cb6b27a1473ac69c12727d7a22945c177de33dc07dec08a7d3a3c745b99708975f7e047885294"
    "f6fd21d6cfd18f6b4291c46e6350157f218e2f734dc007a2ff4d359e3d04ded54e1db12ddddf749104bf69ae48080d9e0925"
    "2ed06e6c94ed",
    16,
)
SHA256_PREFIX = bytes.fromhex("3031300d060960864801650304020105000420")

# P-256 (FIPS 186-5): the field, the group's order, the base point.
P = 2**256 - 2**224 + 2**192 + 2**96 - 1
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
BASE = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
EC_SECRET = 0x51ED_2701_9EF4_11A5_7C3B


def add(a, b):
    if a is None or b is None:
        return a or b
    if a[0] == b[0] and (a[1] + b[1]) % P == 0:
        return None
    if a == b:
        slope = (3 * a[0] * a[0] - 3) * pow(2 * a[1], -1, P)
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, P)
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def multiply(k, point):
    total = None
    while k:
        if k & 1:
            total = add(total, point)
        point, k = add(point, point), k >> 1
    return total


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value, size):
    return b64(value.to_bytes(size, "big"))


def rs256(message):
    digest = SHA256_PREFIX + hashlib.sha256(message).digest()
    padded = b"\x00\x01" + b"\xff" * (256 - 3 - len(digest)) + b"\x00" + digest
    return pow(int.from_bytes(padded, "big"), D, N).to_bytes(256, "big")


def es256(message):
    digest, k = int.from_bytes(hashlib.sha256(message).digest(), "big"), 0x1234567890ABCDEF
    r = multiply(k, BASE)[0] % ORDER
    s = pow(k, -1, ORDER) * (digest + r * EC_SECRET) % ORDER
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


RSA_KEY = {"kty": "RSA", "kid": "rsa", "use": "sig", "n": number(N, 256), "e": "AQAB"}
X, Y = multiply(EC_SECRET, BASE)
EC_KEY = {"kty": "EC", "kid": "ec", "crv": "P-256", "x": number(X, 32), "y": number(Y, 32)}


def token(sign=rs256, header=(), **claims):
    head = {"alg": sign.__name__.upper() if sign else "none"} | dict(header)
    body = {"iss": "https://issuer", "aud": "sonde", "exp": int(time.time()) + 600} | claims
    text = ".".join(b64(json.dumps(part).encode()) for part in (head, body))
    return f"{text}.{b64(sign(text.encode()) if sign else b'')}"


@pytest.fixture(scope="module")
def jwks(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "jwks.json"
    path.write_text(json.dumps({"keys": [RSA_KEY, EC_KEY]}))
    return path


@pytest.fixture(scope="module")
def server(binary, tmp_path_factory, jwks):
    settings = (f"auth.jwks={jwks}", "auth.issuer=https://issuer", "auth.audience=sonde")
    with servers(binary, tmp_path_factory) as make:
        server = make(*settings)
        server.sql("CREATE USER pump")
        server.sql("GRANT PUBLISH ON 'own/${username}' TO pump")
        server.sql("CREATE ROLE readers")
        server.sql("GRANT SUBSCRIBE ON 'plant/${username}/#' TO readers")
        server.sql("GRANT QUERY TO readers")
        yield server


def connack(server, jwt):
    """The reason code of the CONNACK."""
    with Wire(server.address("mqtt")) as wire:
        return wire.connect(unique("client"), None, username="any", password=jwt).reason


@pytest.mark.parametrize("sign", [rs256, es256])
def test_the_subject_is_the_user(server, sign):
    with connected(server.address("mqtt"), username="any", password=token(sign, sub="pump")) as wire:
        assert wire.publish("own/pump", "1", 1).reason == 0
        assert wire.publish("own/other", "1", 1).reason == NOT_AUTHORIZED


def test_whoever_is_no_user_has_the_roles_that_the_token_names(server):
    guest = token(sub="guest", roles=["readers", "nothing"])
    with connected(server.address("mqtt"), password=guest) as wire:
        assert wire.subscribe(("plant/guest/#", 1), ("plant/other/#", 1)) == [1, NOT_AUTHORIZED]
    answer = server.http("POST", "/api/v1/sql", "SELECT 1", token=f"Bearer {guest}")
    assert answer.json["rows"] == [[1]]
    assert connack(server, token(sub="guest", roles=["nothing"])) == BAD_PASSWORD


def test_the_tenant_is_a_claim_where_there_is_no_user(server):
    server.sql("CREATE ROLE tenants")
    server.sql("GRANT PUBLISH ON 'jwt/${tenant}/#' TO tenants")

    def guest(tenant, client_id=None):
        jwt = token(sub="guest", roles=["tenants"], tenant=tenant)
        return connected(server.address("mqtt"), client_id=client_id, username="any", password=jwt)

    with guest("acme", "of acme") as wire:
        assert wire.publish("jwt/acme/x", "1", 1).reason == 0
        assert wire.publish("jwt/other/x", "1", 1).reason == NOT_AUTHORIZED
        assert server.sql("SELECT tenant FROM system.sessions WHERE client = 'of acme'") == [["acme"]]
    for tenant in ("+", "acme/x", 7, ["acme"]):
        with guest(tenant) as wire:
            assert wire.publish("jwt/acme/x", "1", 1).reason == NOT_AUTHORIZED


def test_what_is_not_as_it_must_be_is_refused(server):
    now = int(time.time())
    good = token(sub="pump")
    head, body, signature = good.split(".")
    other = b64(json.dumps({"sub": "admin", "exp": now + 600, "iss": "https://issuer", "aud": "sonde"}).encode())
    no_algorithm = b64(json.dumps({"alg": "none"}).encode())
    hs256 = lambda message: hashlib.sha256(message).digest()  # noqa: E731
    hs256.__name__ = "hs256"
    bad = {
        "over": token(sub="pump", exp=now - 1),
        "not begun": token(sub="pump", nbf=now + 3600),
        "another issuer": token(sub="pump", iss="https://other"),
        "another audience": token(sub="pump", aud=["other"]),
        "none": token(None, sub="pump"),
        "none, unsigned": f"{no_algorithm}.{body}.",
        "HS256": token(hs256, sub="pump"),
        "the wrong key": token(rs256, header={"kid": "ec"}, sub="pump"),
        "another body": f"{head}.{other}.{signature}",
        "cut off": good[:-8],
        "no subject": token(),
    }
    assert connack(server, good) == 0
    assert {what: connack(server, jwt) for what, jwt in bad.items()} == dict.fromkeys(bad, BAD_PASSWORD)


def test_a_connection_ends_with_its_token(server):
    short = token(sub="pump", exp=int(time.time()) + 2)
    with connected(server.address("mqtt"), password=short) as wire:
        assert wire.publish("own/pump", "1", 1).reason == 0
        assert wire.ended().reason == NOT_AUTHORIZED


def test_new_keys_are_taken_without_a_restart(server, jwks):
    old = jwks.read_text()
    before = jwks.stat().st_mtime
    address = server.address("mqtt")
    try:
        with (
            connected(address, password=token(sub="pump")) as user,
            connected(address, password=token(sub="guest", roles=["readers"])) as bearer,
            connected(address, password=token(es256, sub="pump")) as other,
        ):
            jwks.write_text(json.dumps({"keys": [EC_KEY]}))
            os.utime(jwks, (before + 10, before + 10))
            wait_until(lambda: connack(server, token(sub="pump")) != 0, "the refusal of the old key")
            assert connack(server, token(es256, sub="pump")) == 0
            # Connections end with the key that has signed their token.
            assert user.ended().reason == bearer.ended().reason == NOT_AUTHORIZED
            assert other.publish("own/pump", "1", 1).reason == 0
    finally:
        jwks.write_text(old)


def test_a_file_without_keys_is_refused_at_the_start(binary, tmp_path):
    path = tmp_path / "jwks.json"
    path.write_text('{"keys": []}')
    said = Server(binary, tmp_path, (f"auth.jwks={path}",)).fails_to_start(78)
    assert "auth.jwks" in said and "no key for RS256, ES256 or EdDSA" in said


def test_subjects_of_one_name_and_two_tenants_have_sessions_of_their_own(make_server, jwks):
    server = make_server(f"auth.jwks={jwks}", "auth.issuer=https://issuer", "auth.audience=sonde", "mqtt.anonymous=never")
    server.sql("CREATE ROLE devices")
    server.sql("GRANT ALL ON '${tenant}/#' TO devices")
    name = unique("pump")

    def come(tenant, expect=0):
        wire, password = Wire(server.address("mqtt")), token(sub=name, roles=["devices"], tenant=tenant)
        wire.connect(name, expect, clean=False, username="any", password=password, props={"session_expiry": 600})
        return wire

    first = come("acme")
    assert first.subscribe(("acme/cmd", 1)) == [1]
    first.disconnect()
    with connected(server.address("mqtt"), username="admin", password=server.token) as sender:
        assert sender.publish("acme/cmd", "open", 1).reason == 0
    come("beta", 0x85).socket.close()
    # What looks alike in a topic is not the same tenant.
    come("ac/me", 0x85).socket.close()
    server.restart()
    again = come("acme")
    assert again.connack.session_present and again.message().payload == b"open"
    again.disconnect()
