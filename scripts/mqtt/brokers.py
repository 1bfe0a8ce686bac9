"""The brokers that are measured: each a process of its own on loopback, with a directory that goes with it."""

import json
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

START_SECONDS = 60
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach our loopback


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, what):
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {START_SECONDS} s in vain: {what}")
        time.sleep(0.02)


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


class Broker:
    """A started broker; a context that ends it and removes what it wrote."""

    def __init__(self):
        self.folder = self.process = None

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="bench-mqtt-"))
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def spawn(self, *command):
        log = open(self.folder / "log", "ab")
        self.process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=allow_files)
        log.close()

    @property
    def pid(self):
        return self.process.pid

    def kill(self):
        """Ends it as a crash would: kill -9."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def cpu_seconds(self):
        """CPU time of all its threads, by the kernel's clock of that process (`clock_getcpuclockid`)."""
        return time.clock_gettime(~self.pid << 3 | 2)

    def anonymous_bytes(self):
        """Memory that is no file's."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

    def check_alive(self, what):
        if self.process.poll() is not None:
            raise RuntimeError(f"{what} ended with {self.process.returncode}: {(self.folder / 'log').read_text()[-500:]}")
        return True

    def bytes_written(self):
        """Bytes that it has had written to the disk so far."""
        lines = Path(f"/proc/{self.pid}/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


def allow_files():
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Sonde(Broker):
    """SondeDB with its defaults; `stored=False` drops the source `default`, so that nothing stores a message."""

    def __init__(self, binary, stored=True, settings=()):
        super().__init__()
        self.binary, self.stored, self.settings = binary, stored, settings

    def start(self):
        data = self.folder / "data"
        endpoints = data / "endpoints.json"
        endpoints.unlink(missing_ok=True)
        command = [self.binary, "serve", "--data-dir", data]
        doors = [f"{door}.listen=127.0.0.1:0" for door in ("mqtt", "http")] + ["grpc.listen="]
        for setting in [*doors, *self.settings]:
            command += ["--set", setting]
        self.spawn(*command)
        wait_until(lambda: self.check_alive("sonde") and endpoints.exists(), "sonde listens")
        found = json.loads(endpoints.read_text())
        self.port = int(found["mqtt"].rsplit(":", 1)[1])
        self.tls_port = int(found["mqtts"].rsplit(":", 1)[1]) if "mqtts" in found else None
        self.http = found["http"]
        if not self.stored:
            self.sql("DROP SOURCE IF EXISTS default")

    def sql(self, statement):
        token = (self.folder / "data/admin.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        request = urllib.request.Request(f"http://{self.http}/api/v1/sql", statement.encode(), headers)
        with _opener.open(request, timeout=60) as answer:
            return json.loads(answer.read() or b"{}")

    def count(self, table):
        return self.sql(f"SELECT count(*) FROM {table}")["rows"][0][0]

    def token(self):
        command = [self.binary, "token", "create", "--data-dir", self.folder / "data", "--publish", "#", "--subscribe", "#"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.strip().split()[-1]


class Mosquitto(Broker):
    """Mosquitto as its package has it, but that it queues without limit: it would drop messages for a slow subscriber."""

    def __init__(self, program, autosave=None, keys=None):
        super().__init__()
        self.program, self.autosave, self.keys = program, autosave, keys
        self.port, self.tls_port = free_port(), keys and free_port()

    def start(self):
        lines = [
            f"listener {self.port} 127.0.0.1",
            "allow_anonymous true",
            "max_queued_messages 0",
            "log_type error",
            "user root",
            f"persistence {'true' if self.autosave else 'false'}",
        ]
        if self.autosave:
            lines += [f"persistence_location {self.folder}/", f"autosave_interval {self.autosave}"]
        if self.keys:
            certificate, key = self.keys.server
            lines += [f"listener {self.tls_port} 127.0.0.1", f"certfile {certificate}", f"keyfile {key}"]
            lines += [f"cafile {self.keys.ca}"]
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        self.spawn(self.program, "-c", config)
        wait_until(lambda: self.check_alive("mosquitto") and accepts(self.port), "mosquitto listens")


def mosquitto_program():
    """Its path, which is not in every user's PATH; `None` where it is not installed."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def mosquitto_version(program):
    done = subprocess.run([program, "-h"], capture_output=True, text=True)
    return done.stdout.split("\n")[0].removeprefix("mosquitto version ").strip()
