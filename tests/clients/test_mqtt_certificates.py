"""Users that are recognised by their client certificates: who comes in, as whom, and what for."""

import ssl

import pytest
from certificates import Authority
from mqtt_packet import V5, V311
from mqtt_wire import Wire, tls
from paho_client import Client
from support import TIME_S, servers, unique

NOT_AUTHORIZED, CLIENT_ID, BAD_PASSWORD = 0x87, 0x85, 0x86
PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates") / "ca")


@pytest.fixture(scope="module")
def server(binary, tmp_path_factory, authority):
    """Nobody comes in who is not known, not even from this machine."""
    with servers(binary, tmp_path_factory) as make:
        yield make(*authority.settings(), f"tls.client_ca={authority.ca}", "mqtt.anonymous=never")


def context(authority, certificate=None):
    made = ssl.create_default_context(cafile=authority.ca)
    if certificate:
        made.load_cert_chain(*certificate)
    return made


def connect(server, authority, certificate, client_id=None, version=V5, expect=0, **credentials):
    """A connection with this certificate, whose CONNACK has this reason (3.1.1: return code)."""
    wire = Wire(tls(server.address("mqtts"), context(authority, certificate)), version)
    wire.connect(client_id or unique("client"), expect, **credentials)
    return wire


def refusal(server, authority, certificate, **how):
    """The reason of the CONNACK, behind which the connection ends."""
    with connect(server, authority, certificate, expect=None, **how) as wire:
        assert wire.next() is None
        return wire.connack.reason


def told(wire, topic):
    """The reason code of the PUBACK."""
    return wire.publish(topic, '{"value": 1}', 1).reason


@pytest.fixture
def pump(server, authority):
    """(name of a user, name in its certificate, files of the certificate)."""
    name, common_name = unique("pump"), unique("pump") + ".acme.example"
    server.sql(f"CREATE USER {name} CERTIFICATE '{common_name}' WITH (tenant = 'acme')")
    return name, common_name, authority.client(name, common_name)


@pytest.mark.parametrize("protocol", [V311, V5], ids=["3.1.1", "5.0"])
@pytest.mark.parametrize("door", ["mqtts", "mqtt_wss"])
def test_a_certificate_is_a_user_with_its_rights(server, authority, pump, protocol, door):
    name, common_name, certificate = pump
    table = unique("readings")
    server.sql(f"GRANT PUBLISH ON '{table}/${{tenant}}/${{cn}}' TO {name}")
    server.sql(f"GRANT SUBSCRIBE ON '{table}/${{username}}/commands' TO {name}")
    over = {"door": door, "tls": context(authority, certificate)}
    mine = f"{table}/acme/{common_name}"
    with Client(server, protocol, **over) as client:
        ((principal,),) = server.sql(f"SELECT principal FROM system.sessions WHERE client = '{client.name}'")
        assert principal == name
        client.publish(mine, {"value": 1, "ts": TIME_S})
        assert client.subscribe(f"{table}/{name}/commands") == 1
        with pytest.raises(AssertionError, match="SUBACK"):
            client.subscribe(f"{table}/#")
        # 3.1.1 acknowledges what it does not take.
        client.publish(f"{table}/acme/other", {"value": 2, "ts": TIME_S})
        client.publish(f"{table}/other/{common_name}", {"value": 3, "ts": TIME_S})
    assert server.sql(f"SELECT value FROM {table}") == [[1]]


def test_what_the_user_may_not_publish_is_refused(server, authority, pump):
    name, common_name, certificate = pump
    topic = unique("open")
    server.sql(f"GRANT PUBLISH ON '{topic}/${{cn}}' TO {name}")
    with connect(server, authority, certificate) as wire:
        assert told(wire, f"{topic}/{common_name}") == 0
        assert told(wire, f"{topic}/other") == NOT_AUTHORIZED
        assert told(wire, common_name) == NOT_AUTHORIZED
        assert wire.subscribe((f"{topic}/{common_name}", 1)) == [NOT_AUTHORIZED]


def test_other_certificates_and_none_are_refused(server, authority, pump, tmp_path):
    name, common_name, certificate = pump
    other = authority.client(unique("other"))
    # A certificate is known by the name that its user has, not by the user's.
    namesake = authority.client(unique("namesake"), name)
    for shown in (other, namesake, None):
        assert refusal(server, authority, shown) == NOT_AUTHORIZED
        assert refusal(server, authority, shown, version=V311) == 5
        # A user name is no proof of anything.
        assert refusal(server, authority, shown, username=name) == NOT_AUTHORIZED
    # The right names, signed by someone else: it does not get as far as CONNECT.
    forged = Authority(tmp_path / "forger").client("pump", common_name)
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        refusal(server, authority, forged)
    assert refusal(server, authority, certificate, username=name, password="wrong horse") == BAD_PASSWORD
    # Without TLS nobody has a certificate.
    with Wire(server.address("mqtt"), V311) as plain:
        plain.connect(unique("plain"), expect=5, username=name)


@pytest.mark.parametrize("kind", ["DNS", "URI", "email"])
def test_an_alternative_name_is_as_good_as_the_common_one(server, authority, kind):
    name = unique("gateway")
    known_by = {"DNS": f"{name}.acme.example", "URI": f"urn:acme:{name}", "email": f"{name}@acme.example"}[kind]
    server.sql(f"CREATE USER {name} CERTIFICATE '{known_by}'")
    server.sql(f"GRANT PUBLISH ON 'by_cn/${{cn}}' TO {name}")
    names = f"DNS:elsewhere.example,{kind}:{known_by}"
    with connect(server, authority, authority.client(name, "the-cn", names=names)) as wire:
        # ${cn} is the common name, whatever the user was recognised by.
        assert told(wire, "by_cn/the-cn") == 0
        assert told(wire, f"by_cn/{known_by}") == NOT_AUTHORIZED
    assert refusal(server, authority, authority.client(name + "x", "x", names=f"{kind}:x{known_by}")) == NOT_AUTHORIZED


def test_the_common_name_comes_first(server, authority):
    first, second = unique("first"), unique("second")
    for name in (first, second):
        server.sql(f"CREATE USER {name} CERTIFICATE '{name}.example'")
    certificate = authority.client(first, f"{first}.example", names=f"DNS:{second}.example")
    with connect(server, authority, certificate, client_id=first):
        assert server.sql(f"SELECT principal FROM system.sessions WHERE client = '{first}'") == [[first]]
    # Two users by one name there cannot be.
    answer = server.post_sql(f"CREATE USER {unique()} CERTIFICATE '{first}.example'")
    assert answer.status == 400 and first in answer.error


def test_a_certificate_may_be_bound_to_a_client_id(server, authority, pump):
    name, _, certificate = pump
    server.sql(f"ALTER USER {name} WITH (client_id = '${{username}}')")
    assert refusal(server, authority, certificate, client_id="another") == CLIENT_ID
    assert refusal(server, authority, certificate, client_id="another", version=V311) == 2
    connect(server, authority, certificate, client_id=name).disconnect()


def test_a_password_says_who_it_is_where_there_are_both(server, authority, pump):
    name, common_name, certificate = pump
    anna = unique("anna")
    server.sql(f"CREATE USER {anna} PASSWORD '{PASSWORD}'")
    server.sql(f"GRANT PUBLISH ON 'both/${{username}}/${{cn}}' TO {anna}")
    with connect(server, authority, certificate, username=anna, password=PASSWORD) as wire:
        assert told(wire, f"both/{anna}/{common_name}") == 0
        assert told(wire, f"both/{name}/{common_name}") == NOT_AUTHORIZED


def test_the_session_is_the_users_and_the_connection_ends_with_the_user(server, authority, pump):
    name, common_name, certificate = pump
    session = unique("session")
    with Client(server, name=session, durable=True, door="mqtts", tls=context(authority, certificate)):
        pass
    other = unique("other")
    server.sql(f"CREATE USER {other} CERTIFICATE '{other}.example'")
    theirs = authority.client(other, f"{other}.example")
    assert refusal(server, authority, theirs, client_id=session) == CLIENT_ID
    with connect(server, authority, certificate, client_id=session) as wire:
        server.sql(f"DROP USER {name}")
        assert wire.ended().reason == NOT_AUTHORIZED
    assert refusal(server, authority, certificate) == NOT_AUTHORIZED


def test_a_certificate_that_is_replaced_is_nobodys(server, authority, pump):
    name, common_name, certificate = pump
    server.sql(f"ALTER USER {name} CERTIFICATE 'new.{common_name}'")
    assert refusal(server, authority, certificate) == NOT_AUTHORIZED
    connect(server, authority, authority.client(name, f"new.{common_name}")).disconnect()


def test_a_certificate_alone_is_enough_where_it_is_required(make_server, authority):
    required = "tls.client_certificates=required"
    server = make_server(*authority.settings(), f"tls.client_ca={authority.ca}", required, "mqtt.anonymous=never")
    server.sql("CREATE USER pump7 CERTIFICATE 'pump7.acme.example'")
    server.sql("GRANT PUBLISH ON 'acme/${username}' TO pump7")
    with connect(server, authority, authority.client("pump7", "pump7.acme.example")) as wire:
        assert told(wire, "acme/pump7") == 0
    assert server.sql("SELECT count(*) FROM acme") == [[1]]
    assert refusal(server, authority, authority.client("pump8")) == NOT_AUTHORIZED
