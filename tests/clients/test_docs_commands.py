"""Every shell command of the documents is run by some test: most of them here, as they stand, by somebody whose data
directory is where it is by default."""

import os
import re
import signal
import subprocess
import tomllib
from contextlib import contextmanager
from pathlib import Path

import pytest
from documents import DOCS, DOCUMENTS, ROOT, blocks, inline
from mqtt_wire import connected
from support import CLIENT_SECONDS, TIME_S, free_port, run, servers, tool, unique, wait_until
from test_import_mosquitto import ACL, line

# Documents whose commands need more around them, and who runs them.
ELSEWHERE = {"backup.md": "test_backup.py", "http.md": "test_curl.py", "listeners.md": "test_gateway.py"}
# Documents of commands that build, test and measure, which is what those do who run them.
OURS = ("benchmarks.md", "testing.md")
# What begins so is run by another test, or takes what a test has not.
LEFT_OUT = {
    "sonde bench mqtt": "test_bench_mqtt.py",
    "make": "scripts/test.sh and scripts/demo.sh",
    "export PATH": "the same",
    "docker": "marked as untested in the document",
}


# What commands print, by the longest of these that they begin with.
SAYS = {
    'sonde sql -c "SELECT time': "23.5",
    "sonde token create": "sonde_",
    "sonde doctor": "good",
    "sonde inspect": "chunk",
    "sonde import": "CREATE USER",
    "sonde import mosquitto --acl /etc/mosquitto/acl --passwd /etc/mosquitto/passwd --apply": "were run",
    "sonde bench codecs": "bits",
    "sonde config show": "http.listen",
    "curl": "rows",
}


def commands(text):
    """The commands of a block, each on one line."""
    return [it for it in text.replace("\\\n", " ").splitlines() if it.strip()]


def found():
    """(document, command) of the blocks and the sentences. In docs/cli.md the sentences have synopses."""
    for document in DOCUMENTS:
        if document not in (*OURS, *ELSEWHERE):
            in_blocks = [it for _, text in blocks(document, "sh") for it in commands(text)]
            in_text = inline(document, "sonde|mosquitto_pub") if document != "cli.md" else []
            whole = [it for it in in_text if len(it.split()) > 3 and not re.search(r"\[|FILES| --(acl|passwd)$", it)]
            yield from ((document, it) for it in in_blocks + whole)


FOUND = [it for it in found() if not it[1].startswith(tuple(LEFT_OUT))]


def kind(command):
    return "serves" if command.startswith("sonde serve") else "follows" if command.startswith("sonde tail") else "ends"


def of_kind(wanted):
    return [it for it in FOUND if kind(it[1]) == wanted]


def start(command, environment, place):
    """A command that goes on until it is ended, in a process group of its own."""
    shell = ["sh", "-euc", f"exec {command}"]
    return subprocess.Popen(shell, cwd=place, env=environment, stdout=subprocess.PIPE, start_new_session=True)


class Machine:
    """Where the commands run: a home, in which the server's data directory is found without a word, and paths and addresses
    of the documents that stand for others."""

    def __init__(self, server, directory):
        self.server, self.directory = server, directory
        self.there = {
            "http://10.0.0.5:7480": f"http://{server.endpoints['http']}",
            "127.0.0.1:7480": server.endpoints["http"],
            "/var/lib/sonde-restored": f"{directory}/{unique('restored')}",
            "/var/lib/sonde": str(server.data_dir),
            "/backup/sonde": f"{directory}/backups",
            "/etc/mosquitto/": f"{directory}/",
            "/FILE": f"/{max(it.name for it in (server.data_dir / 'chunks').iterdir())}",
            "demo/data/": f"{ROOT}/demo/data/",
            "192.168.1.10": server.address("mqtt")[0],
            "sonde_3f...": server.create_token("--publish", "acme/#"),
        }
        (directory / "bin").mkdir(exist_ok=True)
        (directory / "bin" / "sonde").unlink(missing_ok=True)
        (directory / "bin" / "sonde").symlink_to(server.binary)

    def environment(self, home):
        own = {key: value for key, value in self.server.environment().items() if not key.startswith("XDG_")}
        return own | {
            "HOME": str(home),
            "PATH": f"{self.directory}/bin:{os.environ['PATH']}",
            "TOKEN": self.server.token,
        }

    def home(self):
        """The home of who has the data directory of the server."""
        home = self.directory / "home"
        (home / ".local" / "share").mkdir(parents=True, exist_ok=True)
        default = home / ".local" / "share" / "sonde"
        if not default.exists():
            default.symlink_to(self.server.data_dir)
        return home

    def here(self, command):
        for old, new in self.there.items():
            command = command.replace(old, new)
        return command

    def run(self, command):
        """The command to its end; what it prints."""
        port = self.server.address("mqtt")[1]
        script = f'mosquitto_pub() {{ command mosquitto_pub -p {port} "$@"; }}\n'
        script += f"curl() {{ command curl -sS --fail --noproxy '*' \"$@\"; }}\n{self.here(command)}"
        return run("sh", "-euc", script, env=self.environment(self.home()), cwd=self.directory, input="")


@pytest.fixture(scope="module")
def machine(binary, tmp_path_factory):
    directory = tmp_path_factory.mktemp("machine")
    (directory / "acl").write_text(ACL)
    (directory / "passwd").write_text(line("pump", "pump-word", 7) + "\n" + line("viewer", "view-word", 6) + "\n")
    with servers(binary, tmp_path_factory) as make:
        server = make(f"backup.locations={directory}/backups")
        server.write("sensors", [{"device": "d1", "value": 23.5, "ts": TIME_S}])
        server.sql("FLUSH TABLE sensors")
        server.cli("backup", f"{directory}/backups")
        yield Machine(server, directory)


@contextmanager
def stopped(machine):
    """While a command needs a data directory that no server has."""
    machine.server.stop()
    try:
        yield
    finally:
        machine.server.start()


@pytest.mark.parametrize("document, command", of_kind("ends"))
def test_a_command_runs(machine, document, command):
    if (program := command.split()[0]) != "sonde":
        tool(program, program if program == "curl" else "mosquitto-clients")
    if "--repair" in command:
        with stopped(machine):
            said = machine.run(command)
    else:
        if "token create" in command:
            # Another document makes one of this name, too.
            name = re.search(r"--name (\S+)", command)[1]
            machine.server.sql(f'DROP TOKEN IF EXISTS "{name}"')
        said = machine.run(command)
    words = max((it for it in SAYS if command.startswith(it)), key=len, default=None)
    assert words is None or SAYS[words] in said, said
    if "--apply" in command:
        assert ["pump"] in machine.server.sql("SELECT name FROM system.users")


@pytest.mark.parametrize("document, command", of_kind("follows"))
def test_a_command_shows_what_happens(machine, document, command):
    with start(machine.here(command), machine.environment(machine.home()), machine.directory) as following:
        try:
            with connected(machine.server.address("mqtt")) as sender:
                # Found there, or heard: either way it comes.
                sender.publish("sensors/temp", '{"value": 23.5}', 1, retain=True)
                assert b"sensors/temp" in following.stdout.readline()
                sender.publish("sensors/temp", b"", 1, retain=True)
        finally:
            os.killpg(following.pid, signal.SIGKILL)


@pytest.mark.parametrize("document, command", of_kind("serves"))
def test_a_command_serves(machine, tmp_path, document, command):
    """In a home where nothing was before; only ports are others."""
    port = free_port()
    others = {
        f"SONDE_{key.replace('.', '__').upper()}": "127.0.0.1:0"
        for key in ("mqtt.listen", "http.listen", "grpc.listen")
    }
    command = re.sub(r"mqtt.listen=([\d.]+):\d+", rf"mqtt.listen=\1:{port}", command)
    with start(command, machine.environment(tmp_path) | others | {"SONDE_MQTT__WS_LISTEN": ""}, tmp_path) as serving:
        try:
            endpoints = tmp_path / ".local" / "share" / "sonde" / "endpoints.json"
            wait_until(lambda: serving.poll() is not None or endpoints.exists(), "the server", CLIENT_SECONDS)
            assert serving.poll() is None, serving.stdout.read()
            assert "mqtt.listen" not in command or f'"127.0.0.1:{port}"' in endpoints.read_text()
            os.kill(serving.pid, signal.SIGTERM)
            assert serving.wait(CLIENT_SECONDS) == 0
        finally:
            if serving.poll() is None:
                serving.kill()


def test_no_command_is_run_by_nobody():
    with_commands = {it for it in DOCUMENTS if list(blocks(it, "sh"))}
    assert with_commands <= {it[0] for it in FOUND} | {*ELSEWHERE, *OURS}, "documents with commands that nothing runs"
    for document, file in ELSEWHERE.items():
        assert document in (Path(__file__).parent / file).read_text()
    every = [command for _, command in found()]
    assert all(any(it.startswith(words) for it in every) for words in LEFT_OUT), "what is left out is not there"
    assert not [
        it for it in DOCUMENTS if re.search(r"^```(bash|shell|console)$", (DOCS / it).read_text(), re.MULTILINE)
    ]


@pytest.mark.parametrize("document", [it for it in DOCUMENTS if list(blocks(it, "toml")) and it != "first-hour.md"])
def test_the_configuration_of_a_document_is_taken(machine, tmp_path, document):
    """Those of the first hour are Telegraf's."""
    text = "\n".join(text for _, text in blocks(document, "toml"))
    (tmp_path / "sonde.toml").write_text(text)
    shown = run("sonde", "config", "show", env=machine.environment(tmp_path), cwd=tmp_path)
    for section, keys in tomllib.loads(text).items():
        for key, value in keys.items():
            assert isinstance(value, list) and key == "listener" or f"{section}.{key} = " in shown, shown
