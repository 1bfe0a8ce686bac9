"""The servers that are compared: how each is started, written to, brought to rest, asked and measured on disk.

Each listens on a free port of loopback only, has a directory of its own, and is ended by its process.
Settings differ from the defaults only where the default would not let the comparison end in time, or listens elsewhere.
"""

import http.client
import json
import os
import socket
import subprocess
import time
import urllib.parse
from pathlib import Path

import measure

START_SECONDS = 60
STOP_SECONDS = 60
ANSWER_SECONDS = 60
FIELDS = [f"usage_{name}" for name in "user system idle nice iowait irq softirq steal guest guest_nice".split()]


class Failed(Exception):
    """A system that did not do what it should; the run goes on without it, loudly."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """What all have in common: a process, its log, one connection for questions."""

    name = version = settings = acknowledges = ""
    write_path = "/write"
    token = None
    # Seconds that must pass before an idle process means that nothing is left to merge.
    rest = 0.0

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True)
        self.process = self._connection = None

    def command(self):
        """What starts it, after `self.port` is known."""
        raise NotImplementedError

    def environment(self):
        return {}

    def start(self):
        """Starts it and waits until it can be written to; a start that fails or is broken off leaves no process."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self):
        self.port = free_port()
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self.environment(),
                cwd=self.folder,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.accepts():
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = (self.folder / "log").read_text(errors="replace")[-600:]
                raise Failed(f"{self.name} did not start, its log ends with: {tail}")
            time.sleep(0.05)
        self.prepare()

    def accepts(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        except OSError:
            return False

    def prepare(self):
        """What has to be there before the first row."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Ends it the polite way, and by force if that takes too long."""
        if self._connection:
            self._connection.close()
            self._connection = None
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    @property
    def pid(self):
        return self.process.pid

    def ask(self, method, path, body=None, headers=()):
        """The body of a 2xx answer, whole."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        try:
            self._connection.request(method, path, body, dict(headers))
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self._connection = None
            raise Failed(f"{self.name}: {method} {path[:60]}: {error!r}") from error
        if answer.status // 100 != 2:
            raise Failed(f"{self.name}: {answer.status}: {text[:300].decode(errors='replace')}")
        return text

    def get(self, path, **parameters):
        return self.ask("GET", f"{path}?{urllib.parse.urlencode(parameters)}")

    def settle(self, merges):
        """Brings what is written into its final form, with the wait `rest` if asked to. Whether it came to rest."""
        return measure.wait_idle(self.pid, at_least=self.rest if merges else 0, quiet=2 if merges else 1)

    def stored(self):
        """Bytes of rows on disk at rest, without the log. Some can say only after `stop`."""
        raise NotImplementedError

    def latest(self):
        """The newest values of all fields of all series, unread JSON; `window` and `total` likewise."""
        raise NotImplementedError

    def window(self, host, start, end):
        """The maximum of one field of one series for each minute of [start, end), in seconds since the epoch."""
        raise NotImplementedError

    def total(self):
        """The sum of one column over all rows."""
        raise NotImplementedError

    def number(self, answer):
        """The one number in an answer of `total`."""
        raise NotImplementedError


def utc(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class Sonde(Server):
    name = "SondeDB"
    settings = "defaults, MQTT and gRPC off"
    acknowledges = "after fsync"

    def __init__(self, folder, binary):
        super().__init__(folder)
        self.binary = binary
        self.version = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout.strip().split()[-1]

    def command(self):
        listen = [f"http.listen=127.0.0.1:{self.port}", "mqtt.listen=", "mqtt.ws_listen=", "grpc.listen="]
        data = self.folder / "data"
        return [self.binary, "serve", "--data-dir", str(data)] + [part for it in listen for part in ("--set", it)]

    def accepts(self):
        return (self.folder / "data/endpoints.json").exists()

    def prepare(self):
        self.token = (self.folder / "data/admin.token").read_text().strip()

    def sql(self, statement):
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json"}
        return self.ask("POST", "/api/v1/sql", statement.encode(), headers)

    def settle(self, merges):
        self.sql("COMPACT TABLE cpu")
        return super().settle(merges)

    def stored(self):
        return measure.size(self.folder / "data/chunks")

    def latest(self):
        return self.sql(f"SELECT hostname, {', '.join(FIELDS)} FROM latest(cpu)")

    def window(self, host, start, end):
        return self.sql(
            "SELECT time_bucket('1 minute', time) AS minute, max(usage_user) FROM cpu WHERE "
            f"hostname = '{host}' AND time >= '{utc(start)}' AND time < '{utc(end)}' GROUP BY 1 ORDER BY 1"
        )

    def total(self):
        return self.sql("SELECT sum(usage_user) FROM cpu")

    def number(self, answer):
        return json.loads(answer)["rows"][0][0]


class QuestDb(Server):
    name = "QuestDB"
    settings = "`-XX:+UseParallelGC`, telemetry off"
    acknowledges = "without a sync (its default, `cairo.commit.mode=nosync`)"
    mode = "nosync"

    def __init__(self, folder, java, jar, version):
        super().__init__(folder)
        self.java, self.jar, self.version = java, jar, version

    def command(self):
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        heap = ["-XX:+UseParallelGC", f"-XX:ErrorFile={self.folder}/jvm-error"]
        return [self.java, *heap, "-p", str(self.jar), "-m", "io.questdb/io.questdb.ServerMain", "-d", str(data)]

    def environment(self):
        return {
            "QDB_HTTP_BIND_TO": f"127.0.0.1:{self.port}",
            "QDB_HTTP_NET_BIND_TO": f"127.0.0.1:{self.port}",
            "QDB_HTTP_MIN_ENABLED": "false",
            "QDB_PG_ENABLED": "false",
            "QDB_LINE_TCP_ENABLED": "false",
            "QDB_TELEMETRY_ENABLED": "false",
            "QDB_CAIRO_COMMIT_MODE": self.mode,
        }

    def query(self, text):
        return self.get("/exec", query=text)

    def settle(self, merges):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            answer = self.query("SELECT writerTxn, sequencerTxn FROM wal_tables() WHERE name = 'cpu'")
            if any(applied == written for applied, written in json.loads(answer)["dataset"]):
                return super().settle(merges)
            time.sleep(0.05)
        return False

    def stored(self):
        """Its partitions, after the stop has cut off what is preallocated."""
        self.stop()
        (table,) = [path for path in (self.folder / "data/db").iterdir() if path.name.split("~")[0] == "cpu"]
        return sum(measure.size(path) for path in table.iterdir() if path.is_dir() and path.name[:2] == "20")

    def latest(self):
        return self.query(f"SELECT hostname, {', '.join(FIELDS)} FROM cpu LATEST ON timestamp PARTITION BY hostname")

    def window(self, host, start, end):
        return self.query(
            "SELECT timestamp_floor('1m', timestamp) AS minute, max(usage_user) FROM cpu WHERE "
            f"hostname = '{host}' AND timestamp >= '{utc(start)}' AND timestamp < '{utc(end)}' "
            "GROUP BY minute ORDER BY minute"
        )

    def total(self):
        return self.query("SELECT sum(usage_user) FROM cpu")

    def number(self, answer):
        return json.loads(answer)["dataset"][0][0]


class QuestDbSync(QuestDb):
    name = "QuestDB, sync"
    acknowledges = "after msync of the log's columns (`cairo.commit.mode=sync`)"
    mode = "sync"
    settings = QuestDb.settings + ", `cairo.commit.mode=sync`"


class VictoriaMetrics(Server):
    name = "VictoriaMetrics"
    settings = "`-retentionPeriod=100y -search.maxUniqueTimeseries=3000000`"
    acknowledges = "from memory, synced later"
    # Of all points ever written: the windows of its questions end here, and begin 13 hours before.
    end = 0

    def __init__(self, folder, program, version):
        super().__init__(folder)
        self.program, self.version = program, version

    def command(self):
        return [
            str(self.program),
            f"-storageDataPath={self.folder / 'data'}",
            f"-httpListenAddr=127.0.0.1:{self.port}",
            "-retentionPeriod=100y",
            "-search.maxUniqueTimeseries=3000000",
        ]

    def settle(self, merges):
        self.get("/internal/force_flush")
        self.get("/internal/force_merge")
        return super().settle(merges)

    def stored(self):
        """Data and index; its caches are left out."""
        return measure.size(self.folder / "data/data") + measure.size(self.folder / "data/indexdb")

    def query(self, text):
        return self.get("/api/v1/query", query=text, time=self.end, nocache=1)

    def latest(self):
        return self.query('last_over_time({__name__=~"cpu_.*"}[13h])')

    def window(self, host, start, end):
        text = f'max_over_time(cpu_usage_user{{hostname="{host}"}}[1m])'
        return self.get("/api/v1/query_range", query=text, start=start + 60, end=end, step=60, nocache=1)

    def total(self):
        return self.query("sum(sum_over_time(cpu_usage_user[13h]))")

    def number(self, answer):
        return float(json.loads(answer)["data"]["result"][0]["value"][1])


INFLUX = """
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
  dir = "{data}/meta"
[data]
  dir = "{data}/data"
  wal-dir = "{data}/wal"
  query-log-enabled = false
  cache-snapshot-write-cold-duration = "5s"
  compact-full-write-cold-duration = "10s"
[monitor]
  store-enabled = false
[http]
  bind-address = "127.0.0.1:{port}"
  log-enabled = false
"""


class InfluxDb(Server):
    name = "InfluxDB"
    settings = "snapshot after 5 s and full compaction after 10 s without writes, query log and monitor off"
    acknowledges = "after fsync of its log"
    write_path = "/write?db=bench&precision=ns"
    rest = 18.0  # the two settings above, and then it begins to compact

    def __init__(self, folder, program, version):
        super().__init__(folder)
        self.program, self.version = program, version

    def command(self):
        settings = self.folder / "influxdb.conf"
        settings.write_text(INFLUX.format(data=self.folder / "data", port=self.port, rpc=free_port()))
        return [str(self.program), "-config", str(settings)]

    def prepare(self):
        self.ask("POST", "/query?" + urllib.parse.urlencode({"q": "CREATE DATABASE bench"}))

    def stored(self):
        return measure.size(self.folder / "data/data", "*.tsm")

    def query(self, text):
        return self.get("/query", db="bench", q=text)

    def latest(self):
        return self.query(f"SELECT {', '.join(FIELDS)} FROM cpu GROUP BY hostname ORDER BY time DESC LIMIT 1")

    def window(self, host, start, end):
        return self.query(
            f"SELECT max(usage_user) FROM cpu WHERE hostname = '{host}' AND time >= '{utc(start)}' "
            f"AND time < '{utc(end)}' GROUP BY time(1m)"
        )

    def total(self):
        return self.query("SELECT sum(usage_user) FROM cpu")

    def number(self, answer):
        return json.loads(answer)["results"][0]["series"][0]["values"][0][1]
