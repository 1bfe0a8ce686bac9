"""Users, roles and their rights: who comes in by a password, what each may do, and what happens when that changes."""

import base64
import concurrent.futures

import pytest
from mqtt_packet import CONNACK, PUBACK, V5, V311, Will, connect, publish
from mqtt_wire import Wire, connected
from support import unique, wait_until

BAD_PASSWORD, NOT_AUTHORIZED, CLIENT_ID, BUSY, TAKEN_OVER = 0x86, 0x87, 0x85, 0x89, 0x8E
PASSWORD = "correct horse"


@pytest.fixture
def user(server):
    """Makes users with the password PASSWORD; further arguments are statements about them, with {} for the name."""

    def make(*statements, options=""):
        name = unique("user")
        server.sql(f"CREATE USER {name} PASSWORD '{PASSWORD}' {options}")
        for statement in statements:
            server.sql(statement.format(name))
        return name

    return make


def connack(server, client_id, username=None, password=None, version=V5, **how):
    """The reason code of the CONNACK."""
    with Wire(server.address("mqtt"), version) as wire:
        return wire.connect(client_id, None, username=username, password=password, **how).reason


def log_in(server, username, password=PASSWORD, **how):
    return connected(server.address("mqtt"), username=username, password=password, **how)


def told(wire, topic):
    """The reason code of the PUBACK."""
    return wire.publish(topic, "1", 1).reason


def received(wire):
    """(topic, payload) of the next message."""
    message = wire.message()
    return message.topic, message.payload


def granted(wire, *filters):
    """The reason codes of the SUBACK, with 1 asked for."""
    return wire.subscribe(*((it, 1) for it in filters))


def basic(name, password):
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def test_a_user_comes_in_by_the_password_alone(server, user):
    name = user()
    assert connack(server, "c", name, PASSWORD) == 0
    assert connack(server, "c", name, "wrong horse") == BAD_PASSWORD
    assert connack(server, "c", unique("nobody"), PASSWORD) == BAD_PASSWORD
    # 3.1.1 has return code 4 for it.
    assert connack(server, "c", name, "wrong horse", version=V311) == 4
    server.sql(f"ALTER USER {name} PASSWORD 'another horse'")
    assert connack(server, "c", name, PASSWORD) == BAD_PASSWORD
    assert connack(server, "c", name, "another horse") == 0


def test_a_client_that_does_not_wait_for_the_connack_is_served(server, user):
    name = user("GRANT PUBLISH ON 'early/#' TO {}")
    with Wire(server.address("mqtt")) as wire:
        # CONNECT and PUBLISH in one piece: the password takes a while.
        opening = connect(V5, unique("client"), username=name, password=PASSWORD)
        wire.send(opening, publish(V5, f"early/{unique()}", "1", 1, 9))
        assert wire.next_is(CONNACK).reason == 0
        assert wire.next_is(PUBACK, 9).reason == 0


def test_rights_hold_for_topics_qos_and_retain(server, user):
    name = user(
        "GRANT PUBLISH ON 'plant/${{username}}/#' TO {}",
        "GRANT PUBLISH ON 'low' QOS 0 NO RETAIN TO {}",
        "GRANT SUBSCRIBE ON 'plant/#' TO {}",
        "DENY ALL ON 'plant/secret/#' TO {}",
    )
    with log_in(server, name) as wire:
        assert told(wire, f"plant/{name}/x") == 0
        assert told(wire, "plant/other/x") == NOT_AUTHORIZED
        assert told(wire, "low") == NOT_AUTHORIZED
        assert told(wire, "plant/secret/x") == NOT_AUTHORIZED
        # What a grant covers, and what a denied topic is part of.
        assert granted(wire, "plant/a/#", "plant/#", "#", "plant/secret/x") == [1, *[NOT_AUTHORIZED] * 3]


@pytest.mark.parametrize("client_id", ["+", "#", "a/b", "+/#"])
def test_a_client_id_with_wildcards_widens_nothing(server, user, client_id):
    name = user("GRANT ALL ON 'own/${{clientid}}' TO {}", "GRANT ALL ON 'own/${{clientid}}/#' TO {}")
    with log_in(server, name, client_id=client_id) as wire:
        assert granted(wire, "own/+", "own/#", "own/a/b", "own/x") == [NOT_AUTHORIZED] * 4
        assert told(wire, "own/a/b") == NOT_AUTHORIZED


def test_a_role_gives_its_rights_to_whoever_has_it(server, user):
    role = unique("role")
    server.sql(f"CREATE ROLE {role}")
    server.sql(f"GRANT PUBLISH ON '{role}/#' TO {role}")
    name = user(f"GRANT {role} TO {{}}")
    with log_in(server, name) as wire:
        assert told(wire, f"{role}/x") == 0
        server.sql(f"REVOKE {role} FROM {name}")
        assert told(wire, f"{role}/x") == NOT_AUTHORIZED
        server.sql(f"GRANT {role} TO {name}")
        assert told(wire, f"{role}/x") == 0
        # A new role of the same name is nobody's.
        server.sql(f"DROP ROLE {role}")
        server.sql(f"CREATE ROLE {role}")
        server.sql(f"GRANT PUBLISH ON '{role}/#' TO {role}")
        assert told(wire, f"{role}/x") == NOT_AUTHORIZED


def test_a_subscription_that_is_not_allowed_any_more_ends_and_the_others_go_on(server, user):
    name = user("GRANT SUBSCRIBE ON 'a/#' TO {}", "GRANT SUBSCRIBE ON 'b/#' TO {}")
    with log_in(server, name) as wire, connected(server.address("mqtt")) as sender:
        assert granted(wire, "a/#", "b/#") == [1, 1]
        sender.publish("a/x", "1", 1)
        assert received(wire) == ("a/x", b"1")
        server.sql(f"REVOKE SUBSCRIBE ON 'a/#' FROM {name}")
        sender.publish("a/x", "2", 1)
        sender.publish("b/x", "3", 1)
        assert received(wire) == ("b/x", b"3")
        assert granted(wire, "a/#") == [NOT_AUTHORIZED]


def test_what_waits_for_a_session_and_may_not_be_read_any_more_is_not_delivered(server, user):
    name = user("GRANT SUBSCRIBE ON 'a/#' TO {}", "GRANT SUBSCRIBE ON 'b/#' TO {}")
    client = unique("client")
    with log_in(server, name, client_id=client, clean=False, props={"session_expiry": 60}) as wire:
        assert granted(wire, "a/#", "b/#") == [1, 1]
    with connected(server.address("mqtt")) as sender:
        for topic in ("a/1", "b/1", "a/2", "b/2"):
            assert told(sender, topic) == 0
        server.sql(f"REVOKE SUBSCRIBE ON 'a/#' FROM {name}")
        with log_in(server, name, client_id=client, clean=False, props={"session_expiry": 60}) as wire:
            assert [received(wire)[0] for _ in range(2)] == ["b/1", "b/2"]
            sender.publish("a/3", "", 1)
            sender.publish("b/3", "", 1)
            assert received(wire)[0] == "b/3"


def test_a_user_that_is_dropped_is_sent_away(server, user):
    name = user()
    with log_in(server, name) as wire:
        server.sql(f"DROP USER {name}")
        assert wire.ended().reason == NOT_AUTHORIZED
    assert connack(server, "c", name, PASSWORD) == BAD_PASSWORD


@pytest.mark.parametrize("how", ["dropped", "replaced"])
def test_the_connections_of_a_token_end_with_it(server, how):
    name = unique("token")
    token = server.create_token("--publish", "x/#", name=name)
    with log_in(server, "any", password=token) as wire:
        assert told(wire, "x/1") == 0
        if how == "dropped":
            server.sql(f"DROP TOKEN {name}")
        else:
            server.cli("token", "create", "--replace", "--name", name, "--publish", "x/#")
        assert wire.ended().reason == NOT_AUTHORIZED
    assert connack(server, "c", "any", token) == BAD_PASSWORD


def test_a_session_is_its_owners_even_after_a_restart(make_server):
    server = make_server("mqtt.anonymous=always")
    for name in ("alice", "mallory"):
        server.sql(f"CREATE USER {name} PASSWORD '{PASSWORD}'")
        server.sql(f"GRANT SUBSCRIBE ON '#' TO {name}")
    with log_in(server, "alice", client_id="pump", clean=False, props={"session_expiry": 600}) as wire:
        assert granted(wire, "a/#") == [1]
        assert connack(server, "pump", "mallory", PASSWORD) == CLIENT_ID
        assert connack(server, "pump", "mallory", PASSWORD, version=V311) == 2
        assert connack(server, "pump") == CLIENT_ID, "anonymous"
        # The owner is still there, and can take it over itself.
        with log_in(server, "alice", client_id="pump", clean=False, props={"session_expiry": 600}):
            assert wire.ended().reason == TAKEN_OVER
    server.kill9()
    server.start()
    assert connack(server, "pump", "mallory", PASSWORD, clean=False) == CLIENT_ID
    with log_in(server, "alice", client_id="pump", clean=False, props={"session_expiry": 600}) as wire:
        assert wire.connack.session_present


def test_a_user_may_be_bound_to_a_client_id(server, user):
    name = user(options="WITH (client_id = 'c-${username}')")
    assert connack(server, f"c-{name}", name, PASSWORD) == 0
    assert connack(server, "another", name, PASSWORD) == CLIENT_ID
    assert connack(server, "", name, PASSWORD) == CLIENT_ID


def test_the_other_doors_take_the_same_password(server, user):
    name = user()
    ask = lambda password: server.http("POST", "/api/v1/sql", "SELECT 1", token=basic(name, password))  # noqa: E731
    assert ask(PASSWORD).status == 403
    server.sql(f"GRANT QUERY TO {name}")
    assert ask(PASSWORD).json["rows"] == [[1]]
    assert ask("wrong horse").status == 401
    server.sql(f"REVOKE QUERY FROM {name}")
    assert ask(PASSWORD).status == 403


def test_grpc_takes_the_password_too(server, user):
    pytest.importorskip("grpc")
    import grpc
    from grpc_client import Sonde

    name = user("GRANT QUERY TO {}")
    with Sonde(server, basic(name, PASSWORD)) as client:
        assert client.query("SELECT 1 AS x")
    with Sonde(server, basic(name, "wrong horse")) as client, pytest.raises(grpc.RpcError) as refused:
        client.query("SELECT 1 AS x")
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_whoever_may_only_write_reads_nothing(server, user):
    name, table = user("GRANT WRITE TO {}"), unique()
    server.sql(f"CREATE TABLE {table} (time TIMESTAMP, x DOUBLE)")
    server.sql(f"CREATE TABLE {table}_secret (time TIMESTAMP, x DOUBLE)")
    run = lambda sql: server.http("POST", "/api/v1/sql", sql, token=basic(name, PASSWORD))  # noqa: E731
    assert run(f"INSERT INTO {table} (time, x) VALUES ('2026-01-01T00:00:00Z', 1)").status == 200
    for sql in (
        f"INSERT INTO {table} SELECT * FROM {table}_secret",
        f"INSERT INTO {table} (time, x) VALUES ('2026-01-01T00:00:00Z', (SELECT max(x) FROM {table}_secret))",
        f"INSERT INTO {table} (time, x) SELECT time, x FROM latest({table}_secret)",
    ):
        answer = run(sql)
        assert answer.status == 403, f"{sql}: {answer}"
    server.sql(f"GRANT QUERY TO {name}")
    assert run(f"INSERT INTO {table} SELECT * FROM {table}_secret").status == 200


def test_the_catalog_says_who_may_do_what_and_no_secret(server, user):
    role, name = unique("role"), None
    server.sql(f"CREATE ROLE {role}")
    name = user(
        "GRANT PUBLISH ON 'x/#' QOS 1 NO RETAIN TO {}",
        "DENY SUBSCRIBE ON 'y' TO {}",
        "GRANT QUERY TO {}",
        f"GRANT {role} TO {{}}",
        options="WITH (tenant = 'acme')",
    )
    assert server.sql(f"SHOW GRANTS FOR {name}") == [
        [name, "user", "allow", "publish", "x/#", 1, "never"],
        [name, "user", "allow", "query", None, None, None],
        [name, "user", "allow", "role", role, None, None],
        [name, "user", "deny", "subscribe", "y", None, None],
    ]
    (row,) = [row for row in server.sql("SHOW USERS") if row[0] == name]
    assert row == [name, "argon2id", "SCRAM-SHA-256", None, None, None, "acme", role]
    assert [role, 1] in server.sql("SHOW ROLES")


def test_a_password_is_nowhere_to_be_read(make_server):
    server = make_server()
    secret = "unheard-of secret"
    server.sql(f"CREATE USER a PASSWORD '{secret}'")
    for wrong in (
        f"CREATE USER a PASSWORD '{secret}'",
        f"CREATE USER b '{secret}'",
        f"ALTER USER a PASSWORD '{secret}' 1",
    ):
        answer = server.post_sql(wrong)
        assert answer.status == 400 and secret not in answer.text, answer
    assert connack(server, "c", "a", secret) == 0
    assert connack(server, "c", "b", secret) == BAD_PASSWORD
    for query in ("SELECT * FROM system.users", "SELECT * FROM system.queries", "SELECT * FROM system.settings"):
        assert secret not in str(server.sql(query))
    server.stop()
    for path in [server.log, *server.data_dir.rglob("*")]:
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


def test_users_survive_a_restart(make_server):
    server = make_server()
    server.sql(f"CREATE USER pump PASSWORD '{PASSWORD}'")
    server.sql("GRANT PUBLISH ON 'a/#' TO pump")
    server.kill9()
    server.start()
    with log_in(server, "pump") as wire:
        assert told(wire, "a/b") == 0 and told(wire, "b") == NOT_AUTHORIZED


def test_whoever_guesses_is_put_off_and_a_known_one_is_not(make_server):
    server = make_server()
    server.sql(f"CREATE USER pump PASSWORD '{PASSWORD}'")
    assert connack(server, "c", "pump", PASSWORD) == 0
    answers = [connack(server, "c", "pump", f"guess number {n}") for n in range(12)]
    assert answers[:10] == [BAD_PASSWORD] * 10 and BUSY in answers[10:]
    # Behind the same address: one who was found right before comes in, and tokens do.
    assert connack(server, "c", "pump", PASSWORD) == 0
    assert connack(server, "c", "any", server.token) == 0
    metrics = server.http("GET", "/metrics").text
    assert "sonde_logins_failed_total 1" in metrics and "sonde_logins_put_off_total" in metrics


def test_passwords_do_not_hold_up_the_others(server, user):
    """While passwords are hashed the event loop serves who is connected, and nobody who waits for them is late."""
    names = [user() for _ in range(2)]
    with connected(server.address("mqtt")) as wire:
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            logins = [pool.submit(connack, server, unique("client"), names[n % 2], PASSWORD) for n in range(64)]
            assert told(wire, "x") == 0
            served = 0
            while not all(login.done() for login in logins):
                wire.ping()
                served += 1
        assert {login.result() for login in logins} == {0}
    # A loop that hashes itself looks at its connections once for each password at the most.
    assert served > 2 * len(logins), served


def test_limits_of_names_and_passwords(server):
    for statement, why in (
        ("CREATE USER short PASSWORD 'seven77'", "8 characters"),
        (f"CREATE USER {'n' * 256} PASSWORD '{PASSWORD}'", "255 bytes"),
        (f"GRANT PUBLISH ON '{'/'.join('a' * 33)}' TO nobody", "32 levels"),
        ("GRANT PUBLISH ON 'a' TO nobody_at_all", "there is no user or role nobody_at_all"),
        ("GRANT nothing TO nobody_at_all", "there is no role nothing"),
        ("CREATE USER hashed PASSWORD HASH 'not a hash'", "expected the hash"),
    ):
        answer = server.post_sql(statement)
        assert answer.status == 400 and why in answer.error, f"{statement}: {answer}"
    role = unique("role")
    server.sql(f"CREATE ROLE {role}")
    for n in range(256):
        server.sql(f"GRANT PUBLISH ON 'a/{n}' TO {role}")
    answer = server.post_sql(f"GRANT PUBLISH ON 'a/256' TO {role}")
    assert answer.status == 400 and "256 at most" in answer.error


def test_a_will_is_published_under_the_rights_of_its_moment(server, user):
    """The will itself is tested with paho; here its owner goes first."""
    name = user("GRANT PUBLISH ON 'will/#' TO {}")
    topic = f"will/{unique()}"
    with connected(server.address("mqtt")) as watcher:
        watcher.subscribe(("will/#", 1))
        with log_in(server, name, will=Will(topic)) as wire:
            server.sql(f"REVOKE PUBLISH ON 'will/#' FROM {name}")
            # An empty turn of the loop in which it sees the change.
            assert told(wire, "will/x") == NOT_AUTHORIZED
        sessions = f"SELECT count(*) FROM system.sessions WHERE principal = '{name}'"
        wait_until(lambda: server.sql(sessions) == [[0]], "its end")
        with connected(server.address("mqtt")) as other:
            other.publish("will/last", "1", 1)
        assert received(watcher)[0] == "will/last"
