"""The gateway of docs/listeners.md: its commands, statements and program as they stand, over a server that is killed."""

import os
import queue
import signal
import subprocess
import sys
import threading

import pytest
from documents import block, statements
from mqtt_wire import connected
from support import free_port, run, tool, wait_until

pytest.importorskip("aiomqtt", reason="aiomqtt is not installed")

DOCUMENT = "listeners.md"
RESUME_SECONDS = 60  # it pauses for five between attempts


class Gateway:
    """The program at work in a directory with its certificates."""

    def __init__(self, directory, port):
        program = directory / "gateway.py"
        program.write_text(block(DOCUMENT, "python", "aiomqtt").replace("8883", str(port)))
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, program], cwd=directory, env=environment, stdout=subprocess.PIPE, text=True
        )
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def next(self):
        try:
            return self.lines.get(timeout=RESUME_SECONDS)
        except queue.Empty:
            pytest.fail(f"the gateway printed nothing for {RESUME_SECONDS} s")


@pytest.fixture
def place(tmp_path):
    """A directory with the certificates that the document makes."""
    tool("openssl", "openssl")
    for contains in ("-keyout ca.key", "-keyout gateway.key"):
        run("sh", "-euc", block(DOCUMENT, "sh", contains), cwd=tmp_path)
    return tmp_path


def session(server):
    """(state, principal of the connection, messages that wait) of the gateway."""
    return server.sql("SELECT state, principal, queued FROM system.sessions WHERE client = 'gateway'")


def send(server, n):
    """A message to each of its subscriptions, acknowledged but for the one of QoS 0."""
    with connected(server.address("mqtt")) as sender:
        for topic, qos in (("telemetry", 1), ("commands", 2), ("status", 0)):
            sender.publish(f"devices/d{n}/{topic}", str(n), qos)
        sender.ping()


def test_the_gateway_finds_its_session_and_what_waited_after_the_server_was_killed(make_server, place):
    port = free_port()
    server = make_server(
        *(
            f"tls.{key}={place}/{name}"
            for key, name in (("cert", "server.pem"), ("key", "server.key"), ("client_ca", "ca.pem"))
        ),
        "tls.client_certificates=required",
        f"mqtt.tls_listen=127.0.0.1:{port}",
    )
    for statement in statements(block(DOCUMENT, "sql", "CREATE USER gateway")):
        server.sql(statement)
    filters = "SELECT filter, qos FROM system.subscriptions WHERE client = 'gateway' ORDER BY filter"
    subscribed = [["devices/+/commands", 2], ["devices/+/status", 0], ["devices/+/telemetry", 1]]
    with Gateway(place, port) as gateway:
        wait_until(lambda: server.sql(filters) == subscribed, "the subscriptions", RESUME_SECONDS)
        assert session(server) == [["connected", "gateway", 0]]
        send(server, 1)
        live = {"devices/d{}/telemetry 1 {}", "devices/d{}/commands 2 {}", "devices/d{}/status 0 {}"}
        assert {gateway.next() for _ in live} == {line.format(1, 1) for line in live}
        # It stands still, so that it cannot connect before something waits for it.
        gateway.process.send_signal(signal.SIGSTOP)
        server.kill9()
        server.restart()
        assert server.sql(filters) == subscribed
        assert session(server) == [["away", None, 0]]
        send(server, 2)
        assert session(server) == [["away", None, 2]]
        gateway.process.send_signal(signal.SIGCONT)
        assert gateway.next().endswith("; once more in 5 s")
        waited = {"devices/d2/telemetry 1 2", "devices/d2/commands 2 2"}
        assert {gateway.next() for _ in waited} == waited
        wait_until(lambda: session(server) == [["connected", "gateway", 0]], "the end of what waited")
        # Nothing comes twice, and what is sent now comes after it.
        send(server, 3)
        assert {gateway.next() for _ in live} == {line.format(3, 3) for line in live}
