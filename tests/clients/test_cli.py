"""The command line: exit codes, where settings come from, and what each command says and leaves behind."""

import signal
import subprocess

import pytest
from support import CLIENT_SECONDS, STOP_SECONDS, TIME_S, Server, run, unique, wait_rows


@pytest.fixture(scope="module")
def sonde(binary):
    """Runs the binary without a server; `how` as for `run`."""

    def call(*arguments, env=None, **how):
        return run(binary, *map(str, arguments), env=Server.environment() | (env or {}), **how)

    return call


@pytest.fixture(scope="module")
def table(server):
    name = unique("readings")
    server.write(name, [{"device": f"d{n}", "value": n / 2, "ts": TIME_S + n} for n in range(2)])
    return name


def is_one_line(said, *about):
    assert said.startswith("sonde: ") and said.count("\n") == 1, said
    assert all(word in said for word in about), said


# Exit codes


@pytest.mark.parametrize(
    "code, arguments, about",
    [
        (1, ["sql", "-c", "SELEC 1"], ["SELEC"]),
        (1, ["sql", "-c", "SELECT humidity FROM system.settings"], ["humidity"]),
        (1, ["export", "--query", "SELECT * FROM nothing", "--output", "/tmp/never"], ["nothing"]),
        (69, ["sql", "-c", "SELECT 1", "--url", "http://127.0.0.1:1"], ["127.0.0.1:1"]),
        (74, ["apply", "/nowhere/schema.sql"], ["/nowhere/schema.sql"]),
        (74, ["sql", "-c", "SELECT 1", "--output", "/nowhere/x.csv"], []),
        (74, ["export", "--query", "SELECT 1", "--output", "/nowhere/x.parquet"], ["/nowhere/x.parquet"]),
        (77, ["sql", "-c", "SELECT 1", "--token", "wrong"], ["token"]),
        (77, ["export", "--query", "SELECT 1", "--output", "/tmp/never", "--token", "wrong"], ["token"]),
        (77, ["pub", "a/x", "1", "--token", "wrong"], ["0x86"]),
        (77, ["tail", "--token", "wrong"], ["0x86"]),
        (77, ["token", "create", "--query", "--token", "wrong"], ["token"]),
        (78, ["sql", "-c", "SELECT 1", "--set", "mqtt.listn=x"], ["mqtt.listn", "did you mean mqtt.listen?"]),
    ],
)
def test_exit_codes_of_client_commands(server, code, arguments, about):
    is_one_line(server.cli(*arguments, code=code), *about)


@pytest.mark.parametrize(
    "code, arguments, about",
    [
        (2, [], []),
        (2, ["nonsense"], ["nonsense"]),
        (2, ["sql", "--nonsense"], ["--nonsense"]),
        (2, ["export", "--query", "SELECT 1"], ["--output"]),
        (2, ["pub", "a/x", "1", "--qos", "3"], ["3"]),
        (69, ["sql", "-c", "SELECT 1", "--data-dir", "/nowhere"], ["/nowhere/endpoints.json", "SONDE_URL"]),
        (69, ["pub", "a/x", "1", "--data-dir", "/nowhere"], []),
        (74, ["serve", "--data-dir", "/proc/nowhere"], ["/proc/nowhere"]),
        (78, ["serve", "--set", "mqtt.listen=nonsense"], ["mqtt.listen", "nonsense"]),
        (78, ["serve", "--set", "mqtt.listen"], ["key=value"]),
        (78, ["config", "show", "--set", "memory.limit=lots"], ["memory.limit", "lots"]),
        (78, ["config", "show", "--set", "query.timeout=soon"], ["query.timeout", "soon"]),
        (78, ["config", "show", "--set", "mqtt.anonymous=perhaps"], ["mqtt.anonymous", "perhaps"]),
        (78, ["config", "show", "--set", "cold.url=s3://bucket/x"], ["cold.url", "s3"]),
        (78, ["config", "show", "--config", "/nowhere/sonde.toml"], ["/nowhere/sonde.toml"]),
    ],
)
def test_exit_codes_without_a_server(sonde, code, arguments, about):
    said = sonde(*arguments, code=code)
    assert all(word in said for word in about), said
    if code != 2:
        is_one_line(said)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["serve", "--help"], ["token", "create", "--help"]])
def test_help_and_version_exit_with_0(sonde, arguments):
    assert "sonde" in sonde(*arguments)


def test_a_script_that_cannot_be_read_exits_with_65(server, tmp_path):
    script = tmp_path / "broken.sql"
    script.write_text("CREATE TABLE t (time TIMESTAMP, x 'DOUBLE);")
    is_one_line(server.cli("apply", str(script), code=65))


@pytest.mark.parametrize("damage", ["version", "manifest"])
def test_a_damaged_data_directory_exits_with_65(make_server, damage):
    server = make_server()
    server.write("t", [{"n": 1, "ts": TIME_S}])
    server.stop()
    if damage == "version":
        (server.data_dir / "VERSION").write_text("99\n")
    else:
        newest = max((server.data_dir / "manifest").iterdir())
        newest.write_bytes(b"\xff" * newest.stat().st_size)
    is_one_line(server.fails_to_start(65).splitlines(keepends=True)[-1])


# serve


def test_a_second_server_is_refused_in_one_line(server):
    said = run(*server.command, env=server.environment(), code=74)
    is_one_line(said, str(server.data_dir), "in use")
    assert server.sql("SELECT 1") == [[1]]


def test_a_taken_address_exits_with_74(server, binary, tmp_path):
    said = Server(binary, tmp_path, [f"mqtt.listen={server.endpoints['mqtt']}"]).fails_to_start(74)
    is_one_line(said.splitlines(keepends=True)[-1], "mqtt.listen", server.endpoints["mqtt"])


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_in_order(make_server, sent):
    server = make_server()
    server.write("t", [{"n": 1, "ts": TIME_S}])
    assert (server.data_dir / "endpoints.json").exists()
    server.process.send_signal(sent)
    assert server.process.wait(STOP_SECONDS) == 0, server.log_tail()
    assert not (server.data_dir / "endpoints.json").exists()
    server.cli("sql", "-c", "SELECT 1", code=69)
    server.start()
    assert server.sql("SELECT n FROM t") == [[1.0]]
    assert server.sql("SELECT sum(rows) FROM system.chunks") == [[1]]  # it was flushed


def test_the_banner_and_endpoints_json_have_the_real_addresses(server):
    text = server.log.read_text()
    assert set(server.endpoints) == {"mqtt", "mqtt_ws", "http", "grpc"}
    assert all(address in text and not address.endswith(":0") for address in server.endpoints.values())
    assert str(server.data_dir) in text


def test_listeners_can_be_off(make_server):
    server = make_server("mqtt.listen=", "mqtt.ws_listen=", "grpc.listen=")
    assert list(server.endpoints) == ["http"]
    assert server.sql("SELECT 1") == [[1]]
    server.cli("pub", "a/x", "1", code=69)


# Where settings come from


def effective(text):
    """(value, origin) by key."""
    found = {}
    for line in text.splitlines():
        key, rest = line.split(" = ", 1)
        value, about = rest[1:].split('"', 1)
        found[key] = (value, about.rsplit("(", 1)[1].rstrip(")"))
    return found


def test_flag_beats_environment_beats_file_beats_default(sonde, tmp_path):
    keys = {"query.timeout": "1 minute", "log.max_age": "1 day", "mqtt.anonymous": "never", "copy.locations": "/a,/b"}
    config = tmp_path / "some.toml"
    config.write_text(
        '[query]\ntimeout = "4 s"\n[log]\nmax_age = "5 s"\n'
        '[mqtt]\nanonymous = "never"\n[copy]\nlocations = ["/a", "/b"]\n'
    )
    environment = {"SONDE_QUERY__TIMEOUT": "2 s", "SONDE_LOG__MAX_AGE": "1 day"}
    text = sonde(
        *("config", "show", "--effective", "--config", config, "--set", "query.timeout=1 minute"), env=environment
    )
    found = effective(text)
    assert {key: found[key][0] for key in keys} == keys
    assert [found[key][1] for key in keys] == ["--set", "SONDE_LOG__MAX_AGE", str(config), str(config)]
    assert found["http.listen"] == ("127.0.0.1:7480", "default")
    # Without --effective, what differs from the defaults.
    assert {line.split(" = ")[0] for line in sonde("config", "show", "--config", config).splitlines()} == set(keys)


def test_sonde_toml_of_the_working_directory_counts(sonde, tmp_path):
    (tmp_path / "sonde.toml").write_text('[storage]\ndata_dir = "/from/file"\n')
    assert effective(sonde("config", "show", "--effective", cwd=tmp_path))["storage.data_dir"] == (
        "/from/file",
        "sonde.toml",
    )
    text = sonde("config", "show", "--effective", "--data-dir", "/from/flag", cwd=tmp_path)
    assert effective(text)["storage.data_dir"] == ("/from/flag", "--data-dir")


def test_a_key_that_does_not_exist_is_refused_wherever_it_comes_from(sonde, tmp_path):
    (tmp_path / "sonde.toml").write_text("[mqtt]\nlistn = 1\n")
    is_one_line(sonde("config", "show", cwd=tmp_path, code=78), "mqtt.listn", "sonde.toml", "mqtt.listen")
    said = sonde("config", "show", env={"SONDE_QUERY__TIMEUOT": "1 s"}, code=78)
    is_one_line(said, "query.timeuot", "SONDE_QUERY__TIMEUOT", "query.timeout")
    (tmp_path / "sonde.toml").write_text("[mqtt\n")
    is_one_line(sonde("config", "show", cwd=tmp_path, code=78), "sonde.toml")


def test_a_running_server_has_the_same_settings(make_server):
    server = make_server("query.timeout=7 s")
    found = {
        key: (value, origin) for key, value, origin in server.sql("SELECT key, value, origin FROM system.settings")
    }
    assert found["query.timeout"] == ("7 s", "--set")
    assert found == effective(
        run(*server.command[:1], "config", "show", "--effective", *server.command[2:], env=server.environment())
    )


# How clients find the server


def test_clients_find_the_server_by_flag_then_environment_then_data_directory(server, sonde):
    url, token = f"http://{server.endpoints['http']}", server.token
    ask = ["sql", "-c", "SELECT 1 AS one", "--format", "csv"]
    nowhere = ["--data-dir", "/nowhere"]
    wrong = {"SONDE_URL": "http://127.0.0.1:1", "SONDE_TOKEN": "wrong"}
    assert sonde(*ask, *nowhere, "--url", url, "--token", token) == "one\n1\n"
    assert sonde(*ask, *nowhere, env={"SONDE_URL": url, "SONDE_TOKEN": token}) == "one\n1\n"
    assert sonde(*ask, *nowhere, "--url", url, "--token", token, env=wrong) == "one\n1\n"
    assert sonde(*ask, "--data-dir", server.data_dir) == "one\n1\n"
    sonde(*ask, "--data-dir", server.data_dir, env=wrong, code=69)
    sonde(*ask, "--data-dir", server.data_dir, env={"SONDE_TOKEN": "wrong"}, code=77)


def test_the_token_of_this_machine_is_not_sent_to_another(server):
    """192.0.2.1 is nobody: the command must not even try."""
    is_one_line(server.cli("sql", "-c", "SELECT 1", "--url", "http://192.0.2.1:7480", code=77), "--token")


# sql


OUTPUT = {
    "csv": "time,device,value\n2024-02-23T14:53:20Z,d0,0.0\n2024-02-23T14:53:21Z,d1,0.5\n",
    "ndjson": '{"time":"2024-02-23T14:53:20Z","device":"d0","value":0.0}\n'
    '{"time":"2024-02-23T14:53:21Z","device":"d1","value":0.5}\n',
    "json": '{"columns":[{"name":"time","type":"TIMESTAMP"},{"name":"device","type":"STRING"},'
    '{"name":"value","type":"DOUBLE"}],"rows":[["2024-02-23T14:53:20Z","d0",0.0],["2024-02-23T14:53:21Z","d1",0.5]]}\n',
    "table": """\
+----------------------+--------+-------+
| time                 | device | value |
+----------------------+--------+-------+
| 2024-02-23T14:53:20Z | d0     | 0.0   |
| 2024-02-23T14:53:21Z | d1     | 0.5   |
+----------------------+--------+-------+
(2 rows)
""",
}


@pytest.mark.parametrize("form", OUTPUT)
def test_sql_writes_text(server, table, tmp_path, form):
    query = f"SELECT time, device, value FROM {table} ORDER BY time"
    assert server.cli("sql", "-c", query, "--format", form) == OUTPUT[form]
    target = tmp_path / "out"
    assert server.cli("sql", "-c", query, "--format", form, "--output", str(target)) == ""
    assert target.read_text() == OUTPUT[form]


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_sql_writes_arrow_and_parquet(server, table, tmp_path, form):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet

    target = tmp_path / "out"
    command = [server.binary, "sql", "-c", f"SELECT * FROM {table} ORDER BY time", "--format", form]
    command += ["--data-dir", server.data_dir]
    subprocess.run([*command, "--output", target], check=True, timeout=CLIENT_SECONDS, env=server.environment())
    piped = subprocess.run(
        command, check=True, timeout=CLIENT_SECONDS, env=server.environment(), stdout=subprocess.PIPE
    )
    for body in (target.read_bytes(), piped.stdout):
        source = pa.BufferReader(body)
        found = pa.ipc.open_stream(source).read_all() if form == "arrow" else pyarrow.parquet.read_table(source)
        assert found.schema.field("time").type == pa.timestamp("ns", tz="UTC")
        assert found.select(["device", "value"]).to_pylist() == [{"device": f"d{n}", "value": n / 2} for n in range(2)]


def test_sql_reads_statements_from_a_pipe(server):
    ask = ["sql", "--format", "csv"]
    text = "SELECT 1\n  AS one;\n\nSELECT 'a;b'\nAS text;\nSELECT 3 AS last"
    assert server.cli(*ask, input=text) == "one\n1\ntext\na;b\nlast\n3\n"
    assert server.cli(*ask, input="SELECT 1 AS one;\nquit\nSELECT 2;\n") == "one\n1\n"
    is_one_line(server.cli(*ask, input="SELECT 1;\nSELEC;\nSELECT 3;\n", code=1), "SELEC")


def test_sql_names_a_database(server):
    text = server.cli(
        "sql", "--database", "system", "-c", "SELECT name FROM tables WHERE name = 'dead_letters'", "--format", "csv"
    )
    assert text == "name\ndead_letters\n"


# apply


SCHEMA = """-- A table, what feeds it, and a rule over it; a ; in a comment is none.
CREATE TABLE {0} (time TIMESTAMP, device STRING TAG, value DOUBLE) WITH (retention = '30 days');
CREATE SOURCE {0} ON MQTT '{0}/{{device}}' FORMAT JSON (time = 'ts', unit = 's')
    INTO {0};
CREATE RULE {0} AS SELECT device, value FROM {0} WHERE device <> ';'
    DO PUBLISH TO 'alerts/{{device}}' QOS 1;
"""


def apply(server, tmp_path, text, **how):
    script = tmp_path / "schema.sql"
    script.write_text(text)
    return server.cli("apply", str(script), **how)


def test_apply_twice(server, tmp_path):
    name = unique("applied")
    text = SCHEMA.format(name)
    outcomes = [line.split(":")[0] for line in apply(server, tmp_path, text).splitlines()]
    assert outcomes == ["table created", "source created", "rule created"]
    again = apply(server, tmp_path, text).splitlines()
    assert [line.split(":")[0] for line in again] == ["unchanged"] * 3
    assert f"CREATE TABLE {name}" in again[0]
    server.cli("pub", f"{name}/d1", f'{{"value":1,"ts":{TIME_S}}}')
    assert server.sql(f"SELECT * FROM {name}") == [["2024-02-23T14:53:20Z", "d1", 1.0]]


@pytest.mark.parametrize(
    "before, after",
    [
        ("value DOUBLE)", "value BIGINT)"),
        ("value DOUBLE)", "value DOUBLE, more DOUBLE)"),
        ("30 days", "40 days"),
        ("unit = 's'", "unit = 'ms'"),
        ("WHERE device <> ';'", "WHERE device = ';'"),
    ],
)
def test_apply_does_not_pass_over_an_object_that_says_something_else(server, tmp_path, before, after):
    name = unique("applied")
    text = SCHEMA.format(name)
    apply(server, tmp_path, text)
    changed = text.replace(before, after)
    assert changed != text
    is_one_line(apply(server, tmp_path, changed, code=1), name)
    # It says what to do, and that works for sources and rules.
    replaced = changed.replace("CREATE SOURCE", "CREATE OR REPLACE SOURCE").replace(
        "CREATE RULE", "CREATE OR REPLACE RULE"
    )
    if "TABLE" not in next(line for line in changed.splitlines() if after in line):
        apply(server, tmp_path, replaced)
        apply(server, tmp_path, changed)


def test_apply_stops_at_the_first_error_and_what_ran_before_stays(server, tmp_path):
    name = unique("applied")
    columns = "(time TIMESTAMP, x DOUBLE)"
    text = f"CREATE TABLE {name} {columns};\nCREATE NONSENSE;\nCREATE TABLE {name}b {columns};\n"
    is_one_line(apply(server, tmp_path, text, code=1), "NONSENSE")
    assert server.sql(f"SELECT name FROM system.tables WHERE name LIKE '{name}%'") == [[name]]


# pub and tail


class Tail:
    """`sonde tail` at work: it has subscribed."""

    def __init__(self, server, *arguments):
        command = [server.binary, "tail", *arguments, "--data-dir", server.data_dir]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=server.environment())
        subscribed = f"SELECT subscriptions FROM system.sessions WHERE client LIKE '%-{self.process.pid}'"
        try:
            wait_rows(server, subscribed, [[1]])
        except BaseException:
            self.process.kill()
            raise

    def output(self):
        try:
            out, _ = self.process.communicate(timeout=CLIENT_SECONDS)
        finally:
            self.process.kill()
        assert self.process.returncode == 0
        return out


def test_pub_and_tail_round_trip(server):
    name = unique("seen")
    tail = Tail(server, f"{name}/#", "-n", "4")
    for n in range(3):
        server.cli("pub", f"{name}/{n}", f'{{"n":{n},"ts":{TIME_S + n}}}', "--qos", str(n))
    server.cli("pub", f"{name}/on", '"grüße"', "--retain")
    rows = [f'{name}/{n} {{"n":{n},"ts":{TIME_S + n}}}' for n in range(3)]
    assert tail.output().splitlines() == [*rows, f'{name}/on "grüße"']
    wait_rows(server, f"SELECT n FROM {name} WHERE n IS NOT NULL ORDER BY time", [[0], [1], [2]])
    # What is retained comes to those who ask later.
    assert server.cli("tail", f"{name}/#", "-n", "1") == f'{name}/on "grüße"\n'
    server.cli("pub", f"{name}/on", "", "--retain")  # and goes with an empty one


def test_tail_shows_everything_by_default(server):
    topic = f"{unique('any')}/x"
    tail = Tail(server, "-n", "1")
    server.cli("pub", topic, "1")
    assert tail.output() == f"{topic} 1\n"


@pytest.mark.parametrize("qos", ["1", "2"])
def test_a_refused_pub_says_so(server, qos):
    token, name = server.create_token("--publish", "acme/#"), unique("other")
    server.cli("pub", "acme/x", "1", "--qos", qos, "--token", token)
    is_one_line(server.cli("pub", f"{name}/x", "1", "--qos", qos, "--token", token, code=77), "0x87")
    assert server.post_sql(f"SELECT * FROM {name}").status == 400


def test_a_refused_tail_says_so(server):
    token = server.create_token("--publish", "acme/#")
    is_one_line(server.cli("tail", "acme/#", "-n", "1", "--token", token, code=77), "0x87")


def test_a_topic_that_cannot_be_published_to_is_refused_before_anything_is_sent(sonde):
    for topic in ("a/#", "a/+", ""):
        is_one_line(sonde("pub", topic, "1", "--data-dir", "/nowhere", code=1), "topic")
