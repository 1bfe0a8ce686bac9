"""Who may come in, and what for: the rights of tokens at each door, listeners beyond loopback, and `--insecure`."""

import json
import socket

import pytest
from paho_client import V5, V311
from paho_device import Device, refusal
from support import TIME_S, Server, unique

BAD_PASSWORD, NOT_AUTHORISED = 0x86, 0x87
REFUSED_FILTER = {V5: 0x87, V311: 0x80}

both_versions = pytest.mark.parametrize("protocol", [V311, V5], ids=["3.1.1", "5.0"])

# What each right lets its token do over HTTP, gRPC and Flight SQL.
RIGHTS = {
    "--admin": {"query", "insert", "write", "admin"},
    "--query": {"query"},
    "--write": {"insert", "write"},
    "--publish=#": set(),
    "--subscribe=#": set(),
}


@pytest.fixture(scope="module")
def tokens(server):
    return {right: server.create_token(right) for right in RIGHTS}


@pytest.fixture(scope="module")
def table(server):
    name = unique("readings")
    server.write(name, [{"device": "d1", "value": 1, "ts": TIME_S}])
    return name


def statements(table):
    """What is tried, by the right that it needs."""
    return {
        "query": [f"SELECT count(*) FROM {table}", f"EXPLAIN SELECT * FROM {table}", "SELECT * FROM system.settings"],
        "insert": [f"INSERT INTO {table} (time, value) VALUES ('2026-01-01T00:00:00Z', 2)"],
        "admin": [
            f"FLUSH TABLE {table}",
            f"CREATE TABLE IF NOT EXISTS {table} (time TIMESTAMP, x DOUBLE)",
            "DROP TABLE IF EXISTS nothing",
            f"COPY (SELECT * FROM {table}) TO '/x.parquet' STORED AS PARQUET",
            f"CREATE OR REPLACE SOURCE s ON MQTT 's/#' FORMAT JSON INTO {table}",
        ],
    }


def http_allows(server, token, need, statement):
    answer = server.http("POST", "/api/v1/sql", statement, token=f"Bearer {token}")
    if need == "admin" and statement.startswith("COPY") and "copy.locations" in answer.error:
        return True  # it may, and goes nowhere
    assert answer.status in (200, 403), answer
    assert answer.status == 200 or "not allowed" in answer.error
    return answer.status == 200


def grpc_allows(server, token, need, statement):
    from grpc_client import Sonde, grpc  # skips when grpcio is missing

    with Sonde(server, f"Bearer {token}") as client:
        try:
            client.query(statement)
            return True
        except grpc.RpcError as error:
            if "copy.locations" in error.details():
                return True
            assert error.code() == grpc.StatusCode.PERMISSION_DENIED, error
            return False


def flight_allows(server, token, need, statement):
    import flight  # skips when the driver is missing
    from adbc_driver_manager import Error

    with flight.connect(server, f"Bearer {token}") as connection, connection.cursor() as cursor:
        try:
            if need == "insert":
                cursor.adbc_statement.set_sql_query(statement)
                assert cursor.adbc_statement.execute_update() == 1
            else:
                cursor.execute(statement)
                cursor.fetchall()
            return True
        except Error as error:
            if "copy.locations" in str(error):
                return True
            assert "not allowed" in str(error), error
            return False


@pytest.mark.parametrize("allows", [http_allows, grpc_allows, flight_allows])
@pytest.mark.parametrize("right", RIGHTS)
def test_a_token_may_run_the_statements_that_it_was_given(server, tokens, table, allows, right):
    for need, texts in statements(table).items():
        found = {text: allows(server, tokens[right], need, text) for text in texts}
        assert found == dict.fromkeys(texts, need in RIGHTS[right])


def test_a_token_may_write_rows_only_if_it_was_given_that(server, tokens):
    from grpc_client import Sonde, grpc, pa  # skips when grpcio is missing

    for right, token in tokens.items():
        table, may = unique(), "write" in RIGHTS[right]
        for path, ok in (("/api/v1/write", 200), ("/write", 204), ("/api/v2/write", 204)):
            answer = server.http("POST", path, f"{table} value=1", token=f"Bearer {token}")
            assert answer.status == (ok if may else 403), (right, path, answer)
        with Sonde(server, f"Bearer {token}") as client:
            try:
                client.write(table, {"value": pa.array([1.0])})
                wrote = True
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.PERMISSION_DENIED
                wrote = False
        assert wrote == may, right
        assert (server.post_sql(f"SELECT * FROM {table}").status == 200) == may


@pytest.mark.parametrize("right", RIGHTS)
def test_who_may_see_and_end_queries(server, tokens, right):
    token = f"Bearer {tokens[right]}"
    seen = server.http("GET", "/api/v1/queries", token=token).status
    assert seen == (200 if "query" in RIGHTS[right] else 403)
    ended = server.http("DELETE", "/api/v1/queries/999999", token=token).status
    assert ended == (404 if "admin" in RIGHTS[right] else 403)


# MQTT


def metric(server, name):
    lines = server.http("GET", "/metrics", token=None).text.splitlines()
    return int(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


@both_versions
def test_a_device_may_publish_and_subscribe_to_what_it_was_given(server, protocol):
    name = unique("acme")
    grants = ["--publish", f"{name}/#", "--subscribe", f"{name}/+/state", "--subscribe", "alerts/#"]
    token, before = server.create_token(*grants), metric(server, "sonde_mqtt_denied_total")
    with Device(server.address("mqtt"), token, protocol) as device:
        assert device.publish(f"{name}/a", {"n": 1, "ts": TIME_S}) == 0
        for topic in (f"{name}x/a", f"$SYS/{name}"):
            # A 3.1.1 client cannot be told.
            assert device.publish(topic, {"n": 2}) == (NOT_AUTHORISED if protocol == V5 else 0), topic
        for topic_filter in (f"{name}/a/state", f"{name}/+/state", "alerts/#", "alerts/x"):
            assert device.subscribe(topic_filter) == 1, topic_filter
        for topic_filter in ("#", "+/a/state", f"{name}/#", f"{name}/+/+", "$SYS/#"):
            assert device.subscribe(topic_filter) == REFUSED_FILTER[protocol], topic_filter
    assert server.sql(f"SELECT n FROM {name}") == [[1.0]]
    assert server.post_sql(f"SELECT * FROM {name}x").status == 400
    assert metric(server, "sonde_mqtt_denied_total") == before + 7


@both_versions
def test_rights_over_http_are_none_over_mqtt_and_the_other_way_round(server, tokens, protocol):
    with Device(server.address("mqtt"), tokens["--write"], protocol) as device:
        assert device.publish("x/y", {"n": 1}) == (NOT_AUTHORISED if protocol == V5 else 0)
        assert device.subscribe("x/y") == REFUSED_FILTER[protocol]
    with Device(server.address("mqtt"), tokens["--admin"], protocol) as device:
        assert (device.publish(f"{unique()}/y", {"n": 1}), device.subscribe("#")) == (0, 1)


@both_versions
def test_no_password_is_enough_on_loopback_and_a_wrong_one_is_not(server, protocol):
    with Device(server.address("mqtt"), protocol=protocol) as device:
        assert (device.publish(f"{unique()}/x", {"n": 1}), device.subscribe("#")) == (0, 1)
        assert device.subscribe("$SYS/#") <= 1 and device.subscribe("$other/#") == REFUSED_FILTER[protocol]
    for password in ("wrong", "", "sonde_" + "0" * 64):
        assert refusal(server.address("mqtt"), password, protocol) == BAD_PASSWORD


@both_versions
def test_anonymous_never(make_server, protocol):
    server = make_server("mqtt.anonymous=never")
    assert refusal(server.address("mqtt"), protocol=protocol) == NOT_AUTHORISED
    with Device(server.address("mqtt"), server.create_token("--publish=#"), protocol) as device:
        assert device.publish("a/x", {"n": 1}) == 0


# Beyond loopback


@pytest.fixture(scope="module")
def own_address():
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: the kernel says which address it would use
            address = probe.getsockname()[0]
        except OSError:
            address = "127.0.0.1"
    if address.startswith("127."):
        pytest.skip("this machine has no IPv4 address but loopback")
    return address


@pytest.mark.parametrize(
    "listen, key",
    [
        ("mqtt.listen", "mqtt.allow_plaintext"),
        ("http.listen", "http.allow_plaintext"),
        ("grpc.listen", "http.allow_plaintext"),
    ],
)
def test_no_door_opens_to_the_network_unasked(binary, tmp_path, listen, key):
    server = Server(binary, tmp_path, [f"{listen}=0.0.0.0:0"])
    said = server.fails_to_start(78)
    assert listen in said and f"{key} = true" in said and said.count("\n") == 1, said
    assert not server.data_dir.exists()


def at(server, door, address):
    return address, server.address(door)[1]


def test_from_the_network_devices_need_a_token(make_server, own_address):
    server = make_server("mqtt.listen=0.0.0.0:0", "mqtt.allow_plaintext=true")
    token = server.create_token("--publish", "acme/#")
    for protocol in (V311, V5):
        assert refusal(at(server, "mqtt", own_address), protocol=protocol) == NOT_AUTHORISED
        assert refusal(at(server, "mqtt", own_address), "wrong", protocol) == BAD_PASSWORD
        assert refusal(server.address("mqtt"), protocol=protocol) == 0
    with Device(at(server, "mqtt", own_address), token) as device:
        assert device.publish("acme/x", {"n": 1, "ts": TIME_S}) == 0
        assert device.publish("other/x", {"n": 1}) == NOT_AUTHORISED
    assert server.sql("SELECT topic, n FROM acme") == [["acme/x", 1.0]]


def test_anonymous_always_lets_devices_in_from_the_network(make_server, own_address):
    server = make_server("mqtt.listen=0.0.0.0:0", "mqtt.allow_plaintext=true", "mqtt.anonymous=always")
    with Device(at(server, "mqtt", own_address)) as device:
        assert device.publish("acme/x", {"n": 1}) == 0


def test_from_the_network_http_and_grpc_need_a_token_too(make_server, own_address):
    server = make_server("http.listen=0.0.0.0:0", "grpc.listen=0.0.0.0:0", "http.allow_plaintext=true")
    for door in ("http", "grpc"):
        server.endpoints[door] = "{}:{}".format(*at(server, door, own_address))
    assert server.http("GET", "/health", token=None).status == 200
    assert server.http("POST", "/api/v1/sql", "SELECT 1", token=None).status == 401
    assert server.sql("SELECT 1") == [[1]]
    from grpc_client import Sonde, grpc  # skips when grpcio is missing

    with Sonde(server) as client, Sonde(server, None) as nobody:
        assert client.query("SELECT 1 AS one").to_pylist() == [{"one": 1}]
        with pytest.raises(grpc.RpcError) as raised:
            nobody.query("SELECT 1")
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED


# Tokens come and go


def test_a_token_that_is_replaced_ends(server):
    name = unique("press")
    grants = ["--publish=#", "--subscribe=#", "--query"]
    first = server.create_token(*grants, name=name)
    said = server.cli("token", "create", "--name", name, *grants, code=1)
    assert name in said and "--replace" in said
    # What becomes of connections that are open is in `test_users.py`.
    second = server.create_token(*grants, "--replace", name=name)
    assert first != second
    assert server.http("POST", "/api/v1/sql", "SELECT 1", token=f"Bearer {first}").status == 401
    assert server.http("POST", "/api/v1/sql", "SELECT 1", token=f"Bearer {second}").status == 200
    assert refusal(server.address("mqtt"), first) == BAD_PASSWORD
    assert refusal(server.address("mqtt"), second) == 0


def test_tokens_survive_restarts_and_are_not_in_the_files(make_server):
    server = make_server()
    token = server.create_token("--query")
    for end in (server.stop, server.kill9):
        end()
        server.start()
        assert server.http("POST", "/api/v1/sql", "SELECT 1", token=f"Bearer {token}").status == 200
    kept = [path for path in server.data_dir.rglob("*") if path.is_file() and path.name != "admin.token"]
    assert not [path for path in kept if {t for t in (token, server.token) if t.encode() in path.read_bytes()}]
    log = server.log.read_text(errors="replace")
    assert token not in log and server.token not in log
    told = json.dumps([server.sql(f"SELECT * FROM system.{t}") for t in ("settings", "queries", "sessions")])
    assert token not in told and server.token not in told


def test_the_administrators_token_can_be_replaced(make_server):
    server = make_server()
    old = server.token
    server.stop()
    other = "another-secret-of-40-characters-or-more!"
    (server.data_dir / "admin.token").write_text(f"{other}\n")
    server.start()
    assert server.http("POST", "/api/v1/sql", "SELECT 1", token=f"Bearer {old}").status == 401
    assert server.token == other and server.sql("SELECT 1") == [[1]]
    server.stop()
    (server.data_dir / "admin.token").unlink()
    server.start()
    assert server.token not in (old, other) and server.sql("SELECT 1") == [[1]]


def test_an_empty_administrators_token_is_refused(make_server):
    """Else an empty bearer token or MQTT password would be the administrator's. A short one can be guessed."""
    server = make_server()
    server.stop()
    for text in ("", "\n", "  \n", "short\n"):
        (server.data_dir / "admin.token").write_text(text)
        assert "admin.token" in server.fails_to_start(78).splitlines()[-1]


# --insecure


def test_insecure_opens_every_door_and_says_so(make_server, own_address):
    server = make_server("mqtt.listen=0.0.0.0:0", "http.listen=0.0.0.0:0", insecure=True)
    assert "INSECURE" in server.log.read_text()
    assert metric(server, "sonde_insecure") == 1
    with Device(at(server, "mqtt", own_address)) as device:
        assert device.publish("a/x", {"n": 1, "ts": TIME_S}) == 0
    assert refusal(server.address("mqtt"), "wrong") == 0
    server.endpoints["http"] = "{}:{}".format(*at(server, "http", own_address))
    for token in (None, "Bearer wrong"):
        answer = server.http("POST", "/api/v1/sql", "SELECT n FROM a", token=token)
        assert answer.status == 200 and answer.json["rows"] == [[1.0]]
    from grpc_client import Sonde  # skips when grpcio is missing

    with Sonde(server, None) as nobody:
        assert nobody.query("SELECT n FROM a").to_pylist() == [{"n": 1.0}]


def test_a_server_is_not_insecure_by_itself(server):
    assert "INSECURE" not in server.log.read_text()
    assert metric(server, "sonde_insecure") == 0


def test_insecure_is_a_flag_only(binary, tmp_path):
    said = Server(binary, tmp_path, ["insecure=true"]).fails_to_start(78)
    assert "insecure" in said
