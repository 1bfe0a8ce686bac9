"""`sonde demo`: the main job as a newcomer runs it."""

import json
import socket
import subprocess

import pytest
from support import Server

BASE_PORTS = (1883, 7480, 7481)
DEMO_SECONDS = 120  # an unoptimised build on a busy machine: a bound, no measurement


@pytest.fixture
def offset():
    """An offset at which all three ports are free."""
    for offset in range(10_000, 50_000, 101):
        try:
            for port in BASE_PORTS:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
            return offset
        except OSError:
            continue
    pytest.fail("no free ports")


def demo(binary, tmp_path, *arguments):
    """The demo with a directory for temporary files of its own, and what it left there."""
    own = tmp_path / "tmp"
    own.mkdir()
    environment = Server.environment() | {"TMPDIR": str(own)}
    command = [binary, "demo", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEMO_SECONDS)
    return done, list(own.iterdir())


def test_the_demo_checks_every_answer(binary, tmp_path, offset):
    done, left = demo(binary, tmp_path, "--once", "--json", "--port-offset", offset)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["ok"], summary["failed"]) == (True, [])
    assert summary["figures"] and all(value >= 0 for value in summary["figures"].values())
    assert left == []


def test_a_taken_port_is_said_in_one_sentence(binary, tmp_path, offset):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", BASE_PORTS[0] + offset))
        taken.listen()
        done, left = demo(binary, tmp_path, "--once", "--port-offset", offset)
    assert done.returncode == 74
    assert "--port-offset" in done.stderr and done.stderr.count("\n") == 1
    assert left == []
