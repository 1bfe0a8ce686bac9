"""Load whose every answer is remembered, for tests that end the server in the middle of it: MQTT at QoS 1 and 2, HTTP
batches, statements that change and delete rows, and the work of an administrator.

A writer connects, is ended by the end of the server, and connects again. What was acknowledged before `mark` has to be
there after a restart; what was acknowledged behind it may be, for the machine was going down.
"""

import http.client
import json
import os
import random
import threading
from collections import Counter
from functools import partial

from paho_client import ANSWER_SECONDS, V311, mqtt
from support import TIME_S, unique, wait_until

IN_FLIGHT = 20
BATCH = 20
BATCHES_TO_A_FLUSH = 25
COOLED = "2024-03-01T00:00:00Z"  # the rows of `Publisher(timed)`, `HttpWriter` and `Changer` are of days before
DAY_S = 86_400
KEYS = 120  # points that a `Changer` has at most


class Publisher:
    """Keeps IN_FLIGHT messages unacknowledged, and after a reconnect goes on with those of before.

    All of its state belongs to paho's thread while that runs.
    """

    def __init__(self, server, qos, timed):
        self.server, self.qos, self.timed = server, qos, timed
        self.table = unique(f"qos{qos}_")
        self.acknowledged, self.uncertain, self.unacknowledged = set(), set(), {}
        self.doubtful = set()
        self.sent, self.stopping, self.marked = 0, False, False
        self.paho = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            self.table,
            clean_session=False,
            protocol=V311,
            reconnect_on_failure=False,
        )
        self.paho.max_inflight_messages_set(IN_FLIGHT)
        self.paho.on_connect = self._on_connect
        self.paho.on_publish = self._on_publish
        self.paho.on_disconnect = lambda *_: self._closed.set()
        self._closed = threading.Event()

    def connect(self):
        self.marked = False
        self._closed.clear()
        self.paho.connect(*self.server.address("mqtt"))
        self.paho.loop_start()

    def _on_connect(self, *_):
        while len(self.unacknowledged) < IN_FLIGHT and not self.stopping:
            self._send()

    def _send(self):
        row = {"n": self.sent}
        if self.timed:
            row["ts"] = TIME_S * 1000 + self.sent
        info = self.paho.publish(f"{self.table}/load", json.dumps(row), self.qos)
        self.unacknowledged[info.mid] = self.sent
        self.sent += 1

    def _on_publish(self, _client, _userdata, mid, _code, _properties):
        number = self.unacknowledged.pop(mid)
        (self.uncertain if self.marked or number in self.doubtful else self.acknowledged).add(number)
        if not self.stopping:
            self._send()

    def mark(self):
        self.marked = True

    @property
    def ended(self):
        return self._closed.is_set()

    def wait_closed(self):
        assert self._closed.wait(ANSWER_SECONDS), f"{self.table}: still connected"
        self.paho.loop_stop()
        if self.marked and self.qos == 2:
            # The PUBREC, which stands for the row, may have come behind the mark. The client does not send such a message
            # again, and a server that lost it answers the PUBREL of the next connection all the same.
            self.doubtful.update(self.unacknowledged.values())

    def finish(self):
        """Everything sent becomes acknowledged."""
        self.stopping = True
        wait_until(lambda: not self.unacknowledged, f"{self.table}: acknowledgements of {self.unacknowledged}")
        self.paho.disconnect()
        self.wait_closed()


class Statements:
    """A thread that sends one request after the other until the server is gone."""

    def __init__(self, server):
        self.server = server
        self.stopping, self.marked = False, False

    def connect(self):
        self.marked = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        try:
            while not self.stopping and self._step():
                pass
        except (OSError, http.client.HTTPException):
            return  # the server is gone

    def _post(self, path, body, content_type="text/plain"):
        """Whether it was done; once the machine goes down, it may be refused."""
        answer = self.server.http("POST", path, body, Content_Type=content_type)
        done = answer.status in (200, 204)
        assert done or self.marked or answer.status == 503, answer
        return done

    def mark(self):
        self.marked = True

    @property
    def ended(self):
        return not self._thread.is_alive()

    def wait_closed(self):
        self._thread.join(ANSWER_SECONDS)
        assert not self._thread.is_alive(), f"{type(self).__name__}: still at work"

    def finish(self):
        self.stopping = True
        self.wait_closed()


class HttpWriter(Statements):
    """Writes batch after batch, repeats one that was not acknowledged, and flushes now and then."""

    def __init__(self, server):
        super().__init__(server)
        self.table = unique("http_")
        self.acknowledged, self.uncertain, self.sent, self.batches = set(), set(), 0, 0

    def _step(self):
        first = len(self.acknowledged) + len(self.uncertain)
        numbers = range(first, first + BATCH)
        self.sent = numbers.stop
        rows = [{"n": n, "ts": TIME_S * 1000 + n} for n in numbers]
        if not self._post(f"/api/v1/write?table={self.table}", json.dumps(rows), "application/json"):
            return False
        (self.uncertain if self.marked else self.acknowledged).update(numbers)
        self.batches += 1
        if self.batches % BATCHES_TO_A_FLUSH == 0:
            return self._post("/api/v1/sql", f"FLUSH TABLE {self.table}")
        return True


class Changer(Statements):
    """Writes, updates and deletes points of three days, and knows what must be left of them.

    `open` are the tables that may be found, oldest first: what was acknowledged, then what each statement behind it
    makes of that. A statement happens as a whole or not at all.
    """

    def __init__(self, server, seed):
        super().__init__(server)
        self.table = unique("changed_")
        self.random = random.Random(seed)
        self.open, self.acknowledged, self.count = [{}], [], 0

    def create(self):
        self.server.sql(f"CREATE TABLE {self.table} (time TIMESTAMP, device STRING TAG, v BIGINT)")

    def _step(self):
        self.count += 1
        state = self.open[-1]
        what = self.random.random()
        if what < 0.5 or not state:
            keys = self.random.sample(range(KEYS), 10)
            after = state | dict.fromkeys(keys, self.count)
            rows = [{"device": f"d{key % 3}", "v": self.count, "ts": _time(key) * 1000} for key in keys]
            path, body = f"/api/v1/write?table={self.table}", json.dumps(rows)
            return self._change(after, path, body, "application/json")
        if what < 0.65:
            low = self.random.randrange(KEYS)
            after = {key: value for key, value in state.items() if not low <= key < low + 9}
            gone = f"device IN ('d0', 'd1', 'd2') AND time IN ({_times(range(low, low + 9))})"
            return self._change(after, "/api/v1/sql", f"DELETE FROM {self.table} WHERE {gone}")
        if what < 0.75:
            day = self.random.randrange(3)
            after = {key: value for key, value in state.items() if key % 3 != day}
            day = f"time >= {_literal(_time(day))} AND time < {_literal(_time(day) + DAY_S)}"
            return self._change(after, "/api/v1/sql", f"DELETE FROM {self.table} WHERE {day}")
        if what < 0.9:
            low = self.count - self.random.randrange(20)
            after = {key: value + 1000 if value >= low else value for key, value in state.items()}
            return self._change(
                after, "/api/v1/sql", f"UPDATE {self.table} SET v = v + 1000 WHERE v >= {low}"
            )
        low = self.count - self.random.randrange(20)
        after = {key: value for key, value in state.items() if value < low}
        return self._change(after, "/api/v1/sql", f"DELETE FROM {self.table} WHERE v >= {low}")

    def _change(self, after, path, body, content_type="text/plain"):
        self.open.append(after)
        if not self._post(path, body, content_type):
            return False
        if not self.marked:
            self.open = [after]
            self.acknowledged.append(self.count)
        return True

    def check(self):
        """What is there is one of the tables that may be; from here on, that one."""
        rows = self.server.sql(f"SELECT time, v FROM {self.table}")
        times = {_name(key): key for key in range(KEYS + 9)}
        found = {times[time]: value for time, value in rows}
        assert len(found) == len(rows), f"{self.table}: a point is there twice: {sorted(rows)}"
        shown = [{key: (state.get(key), found.get(key)) for key in state.keys() | found.keys()} for state in self.open]
        shown = [{key: pair for key, pair in state.items() if pair[0] != pair[1]} for state in shown]
        assert found in self.open, f"{self.table} after {self.count} statements: (expected, found) by point: {shown}"
        self.open = [found]


def _time(key):
    """Seconds; keys of one day are three apart, a second each."""
    return TIME_S // DAY_S * DAY_S + key % 3 * DAY_S + key // 3


def _name(key):
    days, seconds = divmod(_time(key) - _time(0), DAY_S)
    return f"2024-02-{23 + days}T00:{seconds // 60:02}:{seconds % 60:02}Z"


def _literal(seconds):
    days, rest = divmod(seconds - _time(0), DAY_S)
    return f"'2024-02-{23 + days}T00:{rest // 60:02}:{rest % 60:02}Z'"


def _times(keys):
    return ", ".join(_literal(_time(key)) for key in keys)


class Administrator(Statements):
    """Flushes, compacts and cools the tables of others."""

    def __init__(self, server, tables, seed):
        super().__init__(server)
        self.tables, self.random = tables, random.Random(seed)
        self.table, self.acknowledged = "administrator", []

    def _step(self):
        table = self.random.choice(self.tables)
        statement = self.random.choice(
            [f"FLUSH TABLE {table}", f"COMPACT TABLE {table}", f"COOL TABLE {table} BEFORE '{COOLED}'"]
        )
        # Not `_post`: a table may have yet to be made.
        done = self.server.post_sql(statement)
        assert done.status in (200, 400) or self.marked, f"{statement}: {done}"
        self.acknowledged.append(statement)
        return True


def goes_on(writer, count):
    """Has more than `count` been acknowledged? The server must not have ended the connection by itself."""
    assert not writer.ended, f"{writer.table}: the connection ended while the server was running"
    return len(writer.acknowledged) > count


def check(server, writer):
    """Every acknowledged number is a row, and no number is two. The rows' numbers."""
    rows = [int(row[0]) for row in server.sql(f"SELECT n FROM {writer.table} ORDER BY n")]
    stored = set(rows)
    lost = sorted(writer.acknowledged - stored)
    assert not lost, f"{writer.table}: {len(lost)} acknowledged rows are lost, the first are {lost[:10]}"
    twice = sorted(n for n, following in zip(rows, rows[1:], strict=False) if n == following)
    assert not twice, f"{writer.table}: {len(twice)} rows are there twice, the first are {twice[:10]}"
    return stored


class Load:
    """All of them at work on one server, by a seed."""

    # Checks read every row: a long run takes new tables after so many of them.
    CYCLES = 40

    def __init__(self, server, seed):
        self.server, self.seeds = server, random.Random(seed)
        self.done, self.cycles = Counter(), 0
        self._begin()

    def _begin(self):
        server = self.server
        # At QoS 1 a message that comes twice states its time, so it is the same point; at QoS 2 it must not come twice.
        self.writers = [Publisher(server, 1, timed=True), Publisher(server, 2, timed=False), HttpWriter(server)]
        self.changer = Changer(server, self.seeds.randrange(1 << 32))
        self.changer.create()
        self.tables = [writer.table for writer in (*self.writers, self.changer)]
        administrator = Administrator(server, self.tables, self.seeds.randrange(1 << 32))
        self.everybody = [*self.writers, self.changer, administrator]

    def start(self):
        """Returns once each has had an answer."""
        before = [len(writer.acknowledged) for writer in self.everybody]
        for writer in self.everybody:
            writer.connect()
        for writer, count in zip(self.everybody, before, strict=True):
            wait_until(partial(goes_on, writer, count), f"{writer.table}: an acknowledgement")

    def mark(self):
        for writer in self.everybody:
            writer.mark()

    def wait_closed(self):
        for writer in self.everybody:
            writer.wait_closed()

    def check(self):
        """What was acknowledged is there, whatever else."""
        for writer in self.writers:
            check(self.server, writer)
        self.changer.check()
        self.cycles += 1
        if self.cycles % self.CYCLES == 0:
            self.start()
            self.finish()
            for table in self.tables:
                self.server.sql(f"DROP TABLE {table}")
            self._begin()

    def finish(self):
        """Comes to an end; everything that was sent is there, and nothing else."""
        for writer in self.everybody:
            writer.finish()
        self.check_all()
        for writer in self.writers:
            self.done["rows"] += len(writer.acknowledged)
            self.done["uncertain rows"] += len(writer.uncertain)
        self.done["changes"] += len(self.changer.acknowledged)

    def check_all(self):
        for writer in self.writers:
            stored, sent = check(self.server, writer), set(range(writer.sent))
            assert sent - writer.uncertain <= stored <= sent, writer.table
        self.changer.check()


def files(server):
    """Names in the parts of the data directory."""
    parts = ("wal", "chunks", "manifest", "state")
    return {part: {path.name for path in (server.data_dir / part).iterdir()} for part in parts}


def check_files(server):
    """Nothing grows: each file is one that the server has a use for, as soon as its background work has passed."""

    def strangers():
        found = files(server)
        known = {f"{int(id):016x}.chunk" for (id,) in server.sql("SELECT id FROM system.chunks")}
        [[segments]] = server.sql("SELECT count(*) FROM system.wal")
        cold = {path.name for path in (server.data_dir / "cold").rglob("*.parquet")}
        tiers = {path.rsplit("/", 1)[-1] for (path,) in server.sql("SELECT path FROM system.tiers")}
        return {
            "chunks": found["chunks"] - known,
            "wal": sorted(found["wal"])[: len(found["wal"]) - segments],
            "manifest": sorted(found["manifest"])[:-1],
            # The next flush takes those that a crash brought back.
            "state": sorted(found["state"])[:-3],
            "cold": cold - tiers,
        }

    wait_until(lambda: not any(strangers().values()), lambda: f"files that nobody needs to go: {strangers()}", 60)


def descriptors(server):
    """How many files, sockets and the like the server's process has open."""
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))
