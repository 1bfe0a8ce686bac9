"""A `sonde` server as a subprocess, and the small helpers that every test here uses.

Nothing here sleeps for a fixed time: whatever has to become true is polled with a deadline.
"""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

START_SECONDS = 60  # a debug build with recovery to do, on a busy two-core machine
STOP_SECONDS = 60
# Listeners that every server opens. With a certificate it opens two more: `tls_settings` of test_mqtt_tls.py.
LISTENERS = ("mqtt.listen", "mqtt.ws_listen", "http.listen", "grpc.listen")
CLIENT_SECONDS = 60  # one client command or one HTTP request

# 2024-02-23T14:53:20Z, the time of every row here that states one.
TIME_S = 1_708_700_000

_names = itertools.count(1)
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach our loopback


def unique(prefix="t"):
    """A name for a table, topic or client that no other test on the same server uses."""
    return f"{prefix}{next(_names)}"


def processor_seconds(server):
    """What the process has used of processors."""
    with open(f"/proc/{server.process.pid}/stat") as stat:
        fields = stat.read().rsplit(")")[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until(condition, what, seconds=20):
    """The first true value of `condition()`. Fails with `what`, a text or what makes one, after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s in vain: {what() if callable(what) else what}")
        time.sleep(0.02)


def tool(name, package="mosquitto-clients"):
    """The path of a program that we did not write, or a skip that says how to get it."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (apt-get install {package})")
    return path


def free_port():
    """A port of loopback for a server that is to come back on it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def run(*command, env=None, code=0, input=None, cwd=None):
    """Runs a client to its end, which must be with the exit code `code`; its output, or what it says of its failure."""
    done = subprocess.run(
        command, env=env, input=input, cwd=cwd, capture_output=True, text=True, timeout=CLIENT_SECONDS
    )
    assert done.returncode == code, f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stderr if code else done.stdout


def wait_rows(server, query, expected, seconds=20):
    """Waits until a query has these rows; its table may have yet to be made."""
    answer = None

    def holds():
        nonlocal answer
        answer = server.post_sql(query)
        return answer.status == 200 and answer.json["rows"] == expected

    wait_until(holds, lambda: f"{query}: {expected}, and the last answer was {answer}", seconds)


class Answer:
    """An HTTP answer of any status."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def text(self):
        return self.body.decode()

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        """The sentence of an error, which stands alone or under the key `error` of a JSON object."""
        try:
            return self.json["error"]
        except ValueError:
            return self.text.strip()

    def __repr__(self):
        return f"{self.status} {self.body[:500]!r}"


class Server:
    """One `sonde serve` on its own data directory, on ports that it chooses itself, with further `settings`."""

    def __init__(self, binary, directory, settings=(), insecure=False):
        self.binary = binary
        self.directory = Path(directory)
        self.data_dir = self.directory / "data"
        self.log = self.directory / "server.log"
        self.settings, self.insecure = settings, insecure
        self.process = None

    @property
    def command(self):
        """What starts it."""
        command = [self.binary, "serve", "--data-dir", str(self.data_dir)]
        for setting in (*(f"{key}=127.0.0.1:0" for key in LISTENERS), *self.settings):
            command += ["--set", setting]
        return command + ["--insecure"] * self.insecure

    def start(self):
        # A killed server leaves its addresses behind; only those of this start count.
        (self.data_dir / "endpoints.json").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=self.environment())
        self.endpoints = wait_until(self._read_endpoints, "the server's endpoints.json", START_SECONDS)
        self.token = (self.data_dir / "admin.token").read_text().strip()
        return self

    def fails_to_start(self, code):
        """Starts and ends by itself with this exit code; what it says."""
        with subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True, env=self.environment()) as process:
            endpoints = self.data_dir / "endpoints.json"
            wait_until(lambda: process.poll() is not None or endpoints.exists(), "the end of the server", START_SECONDS)
            if process.poll() is None:
                process.kill()
                pytest.fail("the server did start")
            said = process.stderr.read()
        assert process.returncode == code, f"the server ended with {process.returncode}: {said}"
        return said

    def _read_endpoints(self):
        if self.process.poll() is not None:
            pytest.fail(f"the server ended with {self.process.returncode} at start:\n{self.log_tail()}")
        try:
            return json.loads((self.data_dir / "endpoints.json").read_text())
        except (FileNotFoundError, ValueError):
            return None

    @staticmethod
    def environment():
        """Ours without what would configure the server or point a client at another one."""
        return {name: value for name, value in os.environ.items() if not name.startswith("SONDE_")}

    def log_tail(self):
        return self.log.read_text(errors="replace")[-4000:]

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    def stop(self):
        """A clean stop: SIGTERM, exit code 0."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill9()
            pytest.fail(f"the server was still there {STOP_SECONDS} s after SIGTERM:\n{self.log_tail()}")
        assert code == 0, f"the server ended with {code} after SIGTERM:\n{self.log_tail()}"

    def kill9(self):
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def restart(self):
        if self.running:
            self.stop()
        return self.start()

    def address(self, door):
        """(host, port) of `mqtt`, `mqtts`, `mqtt_ws`, `mqtt_wss`, `http` or `grpc`."""
        host, port = self.endpoints[door].rsplit(":", 1)
        return host, int(port)

    def http(self, method, path, body=None, token=True, **headers):
        """One request. `token`: True for the admin token, None for none, else the whole header value.
        Header names are written with underscores."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            headers["Authorization"] = f"Bearer {self.token}" if token is True else token
        if isinstance(body, str):
            body = body.encode()
        url = f"http://{self.endpoints['http']}{path}"
        request = urllib.request.Request(url, data=body, headers=headers, method=method)
        try:
            with _opener.open(request, timeout=CLIENT_SECONDS) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def post_sql(self, query, accept="application/json"):
        return self.http("POST", "/api/v1/sql", query, Content_Type="text/plain", Accept=accept)

    def sql(self, query):
        """The rows of a statement, over HTTP."""
        answer = self.post_sql(query)
        assert answer.status == 200, f"{query}: {answer}"
        return answer.json["rows"]

    def cli(self, *arguments, **how):
        """Runs a client command of the binary, which finds the server by its data directory; `how` as for `run`."""
        return run(self.binary, *arguments, "--data-dir", str(self.data_dir), env=self.environment(), **how)

    def write(self, table, rows, **parameters):
        """Stores rows over HTTP: dictionaries, or a text of line protocol, whose table stands in its lines."""
        if isinstance(rows, str):
            path, body, kind = "/api/v1/write?", rows, "text/plain"
        else:
            path, body, kind = f"/api/v1/write?table={table}", json.dumps(rows), "application/json"
        path += "".join(f"&{name}={value}" for name, value in parameters.items())
        answer = self.http("POST", path, body, Content_Type=kind)
        assert answer.status == 200, answer

    def create_token(self, *grants, name=None):
        """A token that may do what the flags of `sonde token create` say."""
        return self.cli("token", "create", "--name", name or unique("token"), *grants).strip()


@contextmanager
def servers(binary, factory):
    """Makes servers, and at the end stops those that still run, each of which must end with exit code 0."""
    made = []

    def make(*settings, insecure=False):
        made.append(Server(binary, factory.mktemp("sonde"), settings, insecure))
        return made[-1].start()

    try:
        yield make
        for server in made:
            if server.running:
                server.stop()
    finally:
        for server in made:
            if server.running:
                server.kill9()
