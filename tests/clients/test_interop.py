"""Clients of other ecosystems against the server: a small program for each in interop/, all with the same command line.

    driver <scenario> <version> <qos> <url> <file of the authority, or empty> <client id> <topic>

- `echo` subscribes, publishes `hello`, shows what arrives.
- `retained` publishes `kept` retained, subscribes, shows what arrives.
- `will` connects with the will `gone`, says `ready` and waits to be killed.
- `resume` keeps its session: without one it subscribes and says `ready`, with one it says `present` and shows what it missed.
  (aiomqtt, and paho for C in 5, do not tell which; they read `again` from standard input.)

What arrives is shown as `message <qos> <retain> <payload>`.

A pairwise choice of version, QoS, transport and scenario runs for each client; SONDE_INTEROP=all, which `make interop` sets, runs
all. Packages are pinned here, and everything that is fetched or built lies in SONDE_INTEROP_CACHE, outside of the checkout.
"""

import itertools
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conformance import Broker
from mqtt_packet import V5
from support import servers, tool, unique

trustme = pytest.importorskip("trustme", reason="trustme is not installed")

HERE = Path(__file__).parent / "interop"
CACHE = Path(
    os.environ.get("SONDE_INTEROP_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sonde" / "interop"
)
BUILD_SECONDS = 300
RUN_SECONDS = 150  # a driver gives up by itself before that
MQTT_JS = "mqtt@5.16.0"
PAHO_JAVA = (
    "org.eclipse.paho:org.eclipse.paho.client.mqttv3:1.2.5",
    "org.eclipse.paho:org.eclipse.paho.mqttv5.client:1.2.5",
)

# The transports, and the listeners for them.
DOORS = {"tcp": "mqtt", "tls": "mqtts", "ws": "mqtt_ws", "wss": "mqtt_wss"}
VERSIONS, QOS = ("3.1.1", "5"), (0, 1, 2)
SCENARIOS = ("resume", "will", "retained", "echo")
# The session of a client that is away is not bound to keep messages of QoS 0.
ALL = [case for case in itertools.product(VERSIONS, QOS, DOORS, SCENARIOS) if (case[1], case[3]) != (0, "resume")]


def pairs(case):
    return set(itertools.combinations(enumerate(case), 2))


def pairwise(cases):
    """A choice of few cases in which each two values that occur together in `cases` do so."""
    missing, chosen = set().union(*map(pairs, cases)), []
    while missing:
        best = max(cases, key=lambda case: len(pairs(case) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def build(*command, cwd=None, env=None):
    """Fetches or builds; where that cannot be, the client's tests are skipped and say why."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=BUILD_SECONDS)
    if done.returncode:
        pytest.skip(f"{command[0]} cannot build this driver: {(done.stdout + done.stderr).strip()[-300:]!r}")


def python_driver(name, package):
    pytest.importorskip(package, reason=f"{package} is not installed")
    return [sys.executable, str(HERE / name / "driver.py")]


def c_driver(into):
    compiler = tool("cc", "gcc")
    if not Path("/usr/include/MQTTClient.h").exists():
        pytest.skip("paho for C is not installed (apt-get install libpaho-mqtt-dev)")
    build(compiler, "-Wall", "-o", str(into / "driver"), str(HERE / "paho-c" / "driver.c"), "-lpaho-mqtt3cs")
    return [str(into / "driver")]


def js_driver(into):
    node, npm = tool("node", "nodejs"), tool("npm", "npm")
    if not (into / "node_modules" / "mqtt").exists():
        quiet = ("--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
        build(npm, "install", "--prefix", str(into), *quiet, MQTT_JS)
    driver = shutil.copy(HERE / "mqttjs" / "driver.js", into)
    return [node, driver]


def java_driver(into):
    jdk = "default-jdk-headless"
    java, javac, maven = tool("java", jdk), tool("javac", jdk), tool("mvn", "maven")
    for artifact in PAHO_JAVA:
        _, name, version = artifact.split(":")
        if not (into / f"{name}-{version}.jar").exists():
            build(maven, "-q", "-B", "dependency:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={into}", cwd=into)
    build(javac, "-d", str(into / "classes"), "-cp", f"{into}/*", str(HERE / "paho-java" / "Driver.java"))
    return [java, "-XX:TieredStopAtLevel=1", "-cp", f"{into}/*:{into}/classes", "Driver"]


def go_driver(into):
    environment = {**os.environ, "GOFLAGS": "-mod=readonly"}
    build(tool("go", "golang-go"), "build", "-o", str(into / "driver"), ".", cwd=HERE / "paho-go", env=environment)
    return [str(into / "driver")]


CLIENTS = {
    "paho-python": lambda _: python_driver("paho-python", "paho.mqtt.client"),
    "aiomqtt": lambda _: python_driver("aiomqtt", "aiomqtt"),
    "paho-c": c_driver,
    "mqttjs": js_driver,
    "paho-java": java_driver,
    "paho-go": go_driver,
}


@pytest.fixture(scope="module", params=CLIENTS)
def driver(request):
    into = CACHE / request.param
    into.mkdir(parents=True, exist_ok=True)
    return CLIENTS[request.param](into)


@pytest.fixture(scope="module")
def place(tmp_path_factory, request):
    """The URLs of a server by transport, and the authority of its certificate."""
    directory = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(str(directory / "key.pem"))
    for n, part in enumerate(certificate.cert_chain_pems):
        part.write_to_path(str(directory / "cert.pem"), append=n > 0)
    other = os.environ.get("MQTT_BROKER")
    if other:
        # tcp[,ws[,tls[,wss]]]: a broker that lets anybody in, its certificate from MQTT_BROKER_CA.
        urls = dict(zip(("tcp", "ws", "tls", "wss"), other.split(","), strict=False))
        yield urls, os.environ.get("MQTT_BROKER_CA", "")
        return
    binary = request.getfixturevalue("binary")
    settings = [f"tls.cert={directory}/cert.pem", f"tls.key={directory}/key.pem"]
    settings += ["mqtt.tls_listen=127.0.0.1:0", "mqtt.wss_listen=127.0.0.1:0"]
    with servers(binary, tmp_path_factory) as make:
        server = make(*settings)
        yield {transport: server.endpoints[door] for transport, door in DOORS.items()}, str(directory / "ca.pem")


class Run:
    """A driver at work. Its command is fixed but for the scenario."""

    def __init__(self, driver, place, case):
        version, qos, transport, self.scenario = case
        urls, ca = place
        if transport not in urls:
            pytest.skip(f"the server has no listener for {transport}")
        host, port = urls[transport].rsplit(":", 1)
        secure, path = transport in ("tls", "wss"), "/mqtt" if transport in ("ws", "wss") else ""
        url = f"{transport}://{'localhost' if secure else host}:{port}{path}"
        self.client_id, self.topic = unique(f"interop{os.getpid()}x"), f"interop/{unique(str(os.getpid()))}"
        connection = version, str(qos), url, ca if secure else "", self.client_id, self.topic
        self.command = [*driver, self.scenario, *connection]
        host, port = urls["tcp"].rsplit(":", 1)
        self.broker = Broker((host, int(port)))

    def lines(self, said=""):
        done = subprocess.run(self.command, input=said, capture_output=True, text=True, timeout=RUN_SECONDS)
        assert done.returncode == 0, f"{self.command} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout.splitlines()


def echo(run, qos):
    assert run.lines() == [f"message {qos} 0 hello"]


def retained(run, qos):
    assert run.lines() == [f"message {qos} 1 kept"]
    run.broker.client(V5).publish(run.topic, b"", 1, retain=True)


def resume(run, qos):
    assert run.lines("first\n") == ["ready"]
    run.broker.client(V5).publish(run.topic, "missed", 2)
    assert run.lines("again\n") == ["present", f"message {qos} 0 missed"]


def will(run, qos):
    watcher = run.broker.client(V5)
    watcher.subscribe((run.topic, 2))
    with subprocess.Popen(run.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert select.select([process.stdout], [], [], RUN_SECONDS)[0], f"{run.command} says nothing"
            assert process.stdout.readline() == "ready\n"
        finally:
            process.kill()
    found = watcher.message()
    assert (found.payload, found.qos) == (b"gone", qos)


@pytest.mark.parametrize(
    "case",
    ALL if os.environ.get("SONDE_INTEROP") == "all" else pairwise(ALL),
    ids=lambda case: "-".join(map(str, case)),
)
def test_client(driver, place, case):
    run = Run(driver, place, case)
    try:
        {"echo": echo, "retained": retained, "resume": resume, "will": will}[run.scenario](run, case[1])
    finally:
        run.broker.close()
