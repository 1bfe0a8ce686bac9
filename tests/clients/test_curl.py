"""curl against the HTTP door: the commands of the documents as they stand, and what docs/http.md says of requests."""

import gzip
import json
import os
import re
import signal
import subprocess

import pytest
from documents import blocks, inline
from paho_client import Client
from support import TIME_S, run, tool, unique

AS_JSON = ["-H", "Content-Type: application/json", "--data-binary"]


@pytest.fixture(scope="module")
def curl(server):
    """Runs curl with the administrator's token, unless told otherwise; (status, body)."""
    program = tool("curl", "curl")

    def call(path, *arguments, token=server.token):
        header = ["-H", f"Authorization: Bearer {token}"] if token else []
        url = f"http://{server.endpoints['http']}{path}"
        answer = run(program, "-sS", "--noproxy", "*", "-w", "\n%{http_code}", *header, *arguments, url)
        body, status = answer.rsplit("\n", 1)
        return int(status), body

    return call


def curl_commands():
    """Every shell block and every inline command of the documents in which curl is run."""
    found = []
    for name in ("http.md", "first-hour.md"):
        scripts = [text for _, text in blocks(name, "sh") if "curl" in text]
        found += [(name, command) for command in scripts + inline(name, "curl")]
    return found


def follows(command):
    """Whether a command of the documents prints what happens until it is ended (`curl -N`)."""
    return "curl -N" in command


def script(server, command):
    """A command of the documents as a script for this server."""
    tool("curl", "curl")
    here = command.replace("127.0.0.1:7480", server.endpoints["http"])
    here = here.replace("~/.local/share/sonde/admin.token", str(server.data_dir / "admin.token"))
    return f"curl() {{ command curl -sS --fail --noproxy '*' \"$@\"; }}\n{here}"


@pytest.mark.parametrize("document, command", [c for c in curl_commands() if not follows(c[1])])
def test_the_commands_of_the_documents(server, document, command):
    answer = run("sh", "-euc", script(server, command))
    assert answer.startswith(("{", "ready")), answer


@pytest.mark.parametrize("document, command", [c for c in curl_commands() if follows(c[1])])
def test_the_commands_that_follow(server, document, command):
    shell = ["sh", "-euc", script(server, command)]
    with Client(server) as client, subprocess.Popen(shell, stdout=subprocess.PIPE, start_new_session=True) as following:
        try:
            client.publish("sensors/temp", '{"value": 23.5}', retain=True)  # found there, or heard: either way it comes
            assert following.stdout.readline() == b"event: message\n"
            assert b"sensors/temp" in following.stdout.readline()
        finally:
            os.killpg(following.pid, signal.SIGKILL)
            client.publish("sensors/temp", "", retain=True)


def test_the_documents_have_such_commands():
    assert {document for document, _ in curl_commands()} == {"http.md", "first-hour.md"}


@pytest.mark.parametrize(
    "accept, expected",
    [
        (
            "application/json",
            '{"columns":[{"name":"one","type":"BIGINT"},{"name":"t","type":"STRING"}],"rows":[[1,"x"]]}\n',
        ),
        ("*/*", '{"columns":[{"name":"one","type":"BIGINT"},{"name":"t","type":"STRING"}],"rows":[[1,"x"]]}\n'),
        ("application/x-ndjson", '{"one":1,"t":"x"}\n'),
        ("application/jsonl", '{"one":1,"t":"x"}\n'),
        ("text/csv", "one,t\n1,x\n"),
    ],
)
def test_formats(curl, accept, expected):
    assert curl("/api/v1/sql", "-H", f"Accept: {accept}", "-d", "SELECT 1 AS one, 'x' AS t") == (200, expected)


def test_numbers_are_whole_and_what_is_no_number_is_null(curl):
    query = "SELECT 18446744073709551615::BIGINT UNSIGNED AS u, 9007199254740993 AS i, 'NaN'::DOUBLE AS n, 0.1 AS f"
    status, body = curl("/api/v1/sql", "-d", query)
    assert (status, json.loads(body)["rows"]) == (200, [[18446744073709551615, 9007199254740993, None, 0.1]])


def test_parameters_and_a_database(curl, server):
    table = unique()
    server.write(table, [{"device": f"d{n}", "value": n, "ts": TIME_S} for n in range(3)], database="other")
    for query in (
        f"SELECT value FROM {table} WHERE device = $1 LIMIT $2",
        f"SELECT value FROM {table} WHERE device = ? LIMIT ?",
    ):
        body = {"query": query, "params": ["d1", 10], "database": "other"}
        status, answer = curl("/api/v1/sql", *AS_JSON, json.dumps(body))
        assert (status, json.loads(answer)["rows"]) == (200, [[1.0]])
    status, answer = curl("/api/v1/sql", "-H", "database: other", "-d", f"SELECT count(*) FROM {table}")
    assert (status, json.loads(answer)["rows"]) == (200, [[3]])
    assert curl("/api/v1/sql", "-d", f"SELECT count(*) FROM {table}")[0] == 400


JSON = [{"device": "d1", "value": 1.5, "ts": TIME_S}, {"device": "d2", "value": 2.5, "ts": TIME_S + 1}]
LINES = f"{{}},device=d1 value=1.5 {TIME_S}\n{{}},device=d2 value=2.5 {TIME_S + 1}\n"


@pytest.mark.parametrize(
    "path, kind, body, expected",
    [
        ("/api/v1/write?table={}", "application/json", json.dumps(JSON), (200, '{"rows":2}')),
        ("/api/v1/write?table={}", "application/x-ndjson", "\n".join(map(json.dumps, JSON)), (200, '{"rows":2}')),
        ("/api/v1/write?precision=s", "text/plain", LINES, (200, '{"rows":2}')),
        ("/write?db=any&rp=any&precision=s", "text/plain", LINES, (204, "")),
        ("/api/v2/write?org=any&bucket=any&precision=s", "text/plain", LINES, (204, "")),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_writes(curl, server, tmp_path, path, kind, body, expected, packed):
    table = unique()
    body = body.replace("{}", table).encode() if kind == "text/plain" else body.encode()
    (tmp_path / "body").write_bytes(gzip.compress(body) if packed else body)
    arguments = ["-H", f"Content-Type: {kind}", "--data-binary", f"@{tmp_path}/body"]
    arguments += ["-H", "Content-Encoding: gzip"] * packed
    assert curl(path.format(table), *arguments) == expected
    assert server.sql(f"SELECT device, value FROM {table} ORDER BY time") == [["d1", 1.5], ["d2", 2.5]]


def test_a_partial_write_names_the_first_line_that_was_refused(curl, server):
    table = unique()
    lines = f'{table} value=1 {TIME_S}\n{table} value="warm" {TIME_S + 1}\n{table} value=3 {TIME_S + 2}\n'
    status, body = curl("/write?precision=s", "--data-binary", lines)
    assert status == 400
    said = json.loads(body)["error"]
    assert re.fullmatch(
        r"partial write: line \d: column value is DOUBLE, found string 'warm'; 2 rows stored, 1 refused", said
    ), said
    assert server.sql(f"SELECT value FROM {table} ORDER BY time") == [[1.0], [3.0]]


@pytest.mark.parametrize(
    "status, path, arguments",
    [
        (400, "/api/v1/sql", ["-d", "SELEC"]),
        (400, "/api/v1/write?table=t", [*AS_JSON, "["]),
        (400, "/api/v1/write", [*AS_JSON, "{}"]),
        (400, "/api/v1/write?table=t&precision=h", [*AS_JSON, '{"value":1}']),
        (401, "/api/v1/sql", ["-d", "SELECT 1", "-H", "Authorization: Bearer wrong"]),
        (401, "/api/v1/sql", ["-d", "SELECT 1", "-u", "admin:secret"]),
        (401, "/api/v1/sql", ["-d", "SELECT 1"]),
        (403, "/api/v1/sql", ["-d", "COPY (SELECT 1) TO '/tmp/x.parquet' STORED AS PARQUET"]),
        (404, "/api/v1/nothing", []),
        (404, "/api/v1/queries/999999", ["-X", "DELETE"]),
        (405, "/api/v1/sql", []),
        (405, "/api/v1/write", ["-X", "DELETE"]),
    ],
)
def test_errors(curl, server, status, path, arguments):
    found, body = curl(path, *arguments, token=None if status == 401 else server.token)
    assert found == status
    if status not in (404, 405):
        assert re.fullmatch(r'\{"error":"[^\n]+"\}', body), body


@pytest.mark.parametrize(
    "path, status, body", [("/health", 200, "ok\n"), ("/ready", 200, "ready\n"), ("/ping", 204, "")]
)
def test_what_is_open(curl, path, status, body):
    assert curl(path, token=None) == (status, body)


def test_metrics_all_begin_with_sonde(curl):
    status, body = curl("/metrics", token=None)
    names = [line.split()[0] for line in body.splitlines() if not line.startswith("#")]
    assert status == 200 and names and all(name.startswith("sonde_") for name in names)
    assert re.search(r"^sonde_ready 1$", body, re.MULTILINE)
