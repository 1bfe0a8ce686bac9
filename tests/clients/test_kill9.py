"""kill -9 under load, again and again: every acknowledged row is there after the restart, and none is there twice.

SONDE_TORTURE_CYCLES sets the number of kills, SONDE_TORTURE_SEED repeats a run's moments.
"""

import http.client
import json
import os
import random
import threading
import time
from functools import partial

import pytest
from paho_client import ANSWER_SECONDS, V311, Client, mqtt
from support import TIME_S, unique, wait_until

CYCLES = int(os.environ.get("SONDE_TORTURE_CYCLES", 5))
SEED = int(os.environ.get("SONDE_TORTURE_SEED", 0)) or random.randrange(1, 1 << 32)
IN_FLIGHT = 20
BATCH = 20
BATCHES_TO_A_FLUSH = 25

# What a writer's thread did not expect is a failure, not a warning.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


class Publisher:
    """Keeps IN_FLIGHT messages unacknowledged, and after a reconnect goes on with those of before.

    All of its state belongs to paho's thread while that runs.
    """

    def __init__(self, server, qos, timed):
        self.server, self.qos, self.timed = server, qos, timed
        self.table = unique(f"qos{qos}_")
        self.acknowledged, self.unacknowledged = set(), {}
        self.sent, self.stopping = 0, False
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
        self.acknowledged.add(self.unacknowledged.pop(mid))
        if not self.stopping:
            self._send()

    @property
    def ended(self):
        return self._closed.is_set()

    def wait_closed(self):
        assert self._closed.wait(ANSWER_SECONDS), f"{self.table}: still connected"
        self.paho.loop_stop()

    def finish(self):
        """Everything sent becomes acknowledged."""
        self.stopping = True
        wait_until(lambda: not self.unacknowledged, f"{self.table}: acknowledgements of {self.unacknowledged}")
        self.paho.disconnect()
        self.wait_closed()


class HttpWriter:
    """Writes batch after batch, repeats one that was not acknowledged, and flushes now and then."""

    def __init__(self, server):
        self.server = server
        self.table = unique("http_")
        self.acknowledged, self.sent, self.stopping = set(), 0, False

    def connect(self):
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        batch = 0
        try:
            while not self.stopping:
                numbers = range(len(self.acknowledged), len(self.acknowledged) + BATCH)
                self.sent = numbers.stop
                rows = [{"n": n, "ts": TIME_S * 1000 + n} for n in numbers]
                self._post(f"/api/v1/write?table={self.table}", json.dumps(rows), "application/json")
                self.acknowledged.update(numbers)
                batch += 1
                if batch % BATCHES_TO_A_FLUSH == 0:
                    self._post("/api/v1/sql", f"FLUSH TABLE {self.table}", "text/plain")
        except (OSError, http.client.HTTPException):
            return  # the server is gone

    def _post(self, path, body, content_type):
        answer = self.server.http("POST", path, body, Content_Type=content_type)
        assert answer.status in (200, 204), answer

    @property
    def ended(self):
        return not self._thread.is_alive()

    def wait_closed(self):
        self._thread.join(ANSWER_SECONDS)
        assert not self._thread.is_alive(), f"{self.table}: still writing"

    def finish(self):
        self.stopping = True
        self.wait_closed()


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


def test_kill9_under_load(make_server):
    print(f"SONDE_TORTURE_SEED={SEED}")
    moments = random.Random(SEED)
    server = make_server()
    # At QoS 1 a message that comes twice states its time, so it is the same point; at QoS 2 it must not come twice.
    writers = [Publisher(server, 1, timed=True), Publisher(server, 2, timed=False), HttpWriter(server)]
    for _ in range(CYCLES):
        before = [len(writer.acknowledged) for writer in writers]
        for writer in writers:
            writer.connect()
        for writer, count in zip(writers, before, strict=True):
            wait_until(partial(goes_on, writer, count), f"{writer.table}: an acknowledgement")
        time.sleep(moments.uniform(0, 1))  # waits for nothing: the moment of the kill
        server.kill9()
        for writer in writers:
            writer.wait_closed()
        server.restart()
        for writer in writers:
            check(server, writer)

    for writer in writers:
        writer.connect()
    for writer in writers:
        writer.finish()
    for end in (server.restart, server.stop):  # a clean stop loses nothing either
        for writer in writers:
            assert check(server, writer) == set(range(writer.sent))
        end()
    print(", ".join(f"{writer.table}: {len(writer.acknowledged)} rows" for writer in writers))


@pytest.mark.parametrize("door", ["mqtt", "http"])
def test_kill9_right_after_the_acknowledgement(make_server, door):
    """One row, acknowledged, and the server is gone before it could do anything else."""
    server = make_server()
    for n in range(3):
        row = {"n": n, "ts": TIME_S * 1000 + n}
        if door == "mqtt":
            Client(server).publish("rows/x", row)
        else:
            answer = server.http("POST", "/api/v1/write?table=rows", json.dumps([row]), Content_Type="application/json")
            assert answer.status in (200, 204), answer
        server.kill9()
        server.restart()
        assert server.sql("SELECT n FROM rows ORDER BY n") == [[m] for m in range(n + 1)]
