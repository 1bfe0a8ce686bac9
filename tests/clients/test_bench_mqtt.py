"""`sonde bench mqtt` against our server and, where it is installed, Mosquitto: its figures must add up."""

import json
import shutil
import socket
import subprocess

import pytest
from documents import block
from support import run, unique, wait_until

READING = '{"device":"d{client}","ts":{time},"value":{random:0.00:9.00}}'


@pytest.fixture(params=["sonde", "mosquitto"])
def broker(request, server, tmp_path):
    """The port and the process id of a broker."""
    if request.param == "sonde":
        yield server.address("mqtt")[1], server.process.pid
        return
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 0\n")
    with subprocess.Popen(
        [program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, "mosquitto listens")
            yield port, process.pid
        finally:
            process.kill()


def bench(binary, broker, *flags, code=0):
    port, pid = broker
    flags = [str(flag) for flag in flags]
    return run(binary, "bench", "mqtt", "--port", str(port), "--pid", str(pid), "--json", *flags, code=code)


def ordered(found):
    values = [found[name] for name in ("p50", "p90", "p99", "p99.9", "max")]
    assert values == sorted(values) and values[0] > 0, found
    return found["count"]


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("version", ["3.1.1", "5"])
def test_everything_is_acknowledged_and_delivered(binary, broker, qos, version):
    root = unique("bench")
    flags = ["--protocol-version", version, "--qos", qos, "--connections", 7, "--in-flight", 5, "--messages", 1000]
    flags += ["--topic", f"{root}/{{client}}", "--subscribers", 2, "--filter", f"{root}/+", "--client-prefix", root]
    found = json.loads(bench(binary, broker, *flags))
    messages, deliveries = found["messages"], found["deliveries"]
    assert (messages["sent"], messages["acknowledged"], messages["refused"], messages["unsent"]) == (1000, 1000, 0, 0)
    assert (deliveries["expected"], deliveries["distinct"], deliveries["lost"]) == (2000, 2000, 0)
    assert deliveries["received"] == 2000 + deliveries["duplicated"] and found["closed"] == 0
    assert ordered(found["delivery_ms"]) == 2000
    if qos > 0:
        assert ordered(found["acknowledgement_ms"]) == 1000
    assert found["process"]["resident_bytes"] >= found["process"]["anonymous_bytes"] > 0


def test_a_fixed_rate_is_kept(binary, broker):
    flags = ["--rate", 500, "--duration", 1.5, "--warm-up", 0.2, "--connections", 3, "--client-prefix", unique("rate")]
    messages = json.loads(bench(binary, broker, *flags))["messages"]
    # Of 1.7 s in all; what the end of the run cuts off is a message or two.
    assert messages["acknowledged"] == messages["sent"] and 840 <= messages["sent"] <= 851, messages
    assert 740 <= messages["measured"] <= 751, messages


def test_messages_become_rows_of_their_own(binary, server):
    broker = server.address("mqtt")[1], server.process.pid
    table = unique("rows")
    flags = ["--topic", f"{table}/d{{client}}", "--payload", READING, "--messages", 2000, "--client-prefix", table]
    assert json.loads(bench(binary, broker, *flags))["messages"]["acknowledged"] == 2000
    assert server.sql(f"SELECT count(*), min(value) >= 0, max(value) <= 9 FROM {table}") == [[2000, True, True]]


def test_quiet_connections_and_subscriptions_take_memory(binary, broker):
    prefix = unique("quiet")
    found = json.loads(
        bench(binary, broker, "--connections", 0, "--quiet", 500, "--duration", 0, "--client-prefix", prefix)
    )
    assert found["quiet"]["count"] == 500 and found["quiet"]["per_second"] > 0
    assert 0 <= found["process"]["bytes_per_quiet_connection"] < 100_000
    flags = [
        "--connections",
        2,
        "--subscribers",
        3,
        "--subscriptions",
        900,
        "--client-prefix",
        prefix,
        "--messages",
        20,
    ]
    flags += ["--filter", prefix + "/{n}/v", "--filter", prefix + "/+/w{n}", "--topic", prefix + "/0/v"]
    found = json.loads(bench(binary, broker, *flags))
    # One of the subscriptions matches: the first one.
    assert found["deliveries"]["expected"] == 20 == found["deliveries"]["distinct"]


def test_a_kept_session_gets_what_came_meanwhile(binary, broker):
    prefix = unique("away")
    away = [
        "--connections",
        0,
        "--subscribers",
        1,
        "--keep-session",
        "--filter",
        f"{prefix}/#",
        "--client-prefix",
        prefix,
    ]
    bench(binary, broker, *away, "--duration", 0)
    payload = '{"value":{seq},"stamp":"{stamp}"}'
    flags = ["--messages", 300, "--topic", f"{prefix}/{{client}}", "--payload", payload]
    assert json.loads(bench(binary, broker, *flags))["messages"]["acknowledged"] == 300
    back = json.loads(bench(binary, broker, *away, "--messages", 300))
    assert (back["deliveries"]["distinct"], back["deliveries"]["lost"]) == (300, 0)


def test_lines_for_people_say_the_same(binary, server):
    port = server.address("mqtt")[1]
    said = run(binary, "bench", "mqtt", "--url", f"mqtt://127.0.0.1:{port}", "--messages", "50", "--qos", "1")
    assert "50 sent, 50 acknowledged, 0 refused" in said and "p99.9" in said, said


def test_what_cannot_be_is_said(binary, server):
    port = server.address("mqtt")[1]
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        said = run(binary, "bench", "mqtt", "--port", str(nobody.getsockname()[1]), code=69)
        assert "127.0.0.1" in said
    assert "placeholder" in run(binary, "bench", "mqtt", "--payload", "{clinet}", code=2)
    said = run(binary, "bench", "mqtt", "--port", str(port), "--username", "x", "--password", "wrong", code=77)
    assert "refused the connection" in said


def test_the_documented_commands_run(binary, server):
    commands = [line.split() for line in block("cli.md", "sh", "sonde bench mqtt").splitlines()]
    assert len(commands) == 2 and all(words[:3] == ["sonde", "bench", "mqtt"] for words in commands)
    for _, *words in commands:
        run(binary, *words, "--port", str(server.address("mqtt")[1]))
