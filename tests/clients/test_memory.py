"""Promise 7, the ceiling: in a control group the server takes half of it as `memory.limit`, and under full load with large
queries, merges, deletes and offline MQTT sessions it is neither ended by the kernel nor larger than it may be. The same where
MQTT alone holds as much as clients can make it hold, and where each row is of a new series."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cgroup import memory_group
from mqtt_packet import PUBACK, V5, publish
from mqtt_wire import connected
from paho_client import V311, mqtt
from paho_device import Device
from support import TIME_S, Server, wait_until

MIB = 1 << 20
GROUP = 512 * MIB
LIMIT = GROUP // 2
SERIES = 4000
FIELDS = 8
WRITERS = 4
SECONDS = 12
# Each may be refused for its size; none may end the server.
QUERIES = (
    "SELECT count(*), sum(f0), max(f1) FROM cpu",
    "SELECT host, count(*), avg(f0), avg(f1) FROM cpu GROUP BY host ORDER BY host",
    "SELECT time, host, count(*) FROM cpu GROUP BY time, host ORDER BY time DESC LIMIT 10",
    "SELECT a.host, b.f0 FROM cpu a JOIN cpu b ON a.f0 = b.f1 ORDER BY b.f0 LIMIT 10",
)


def body():
    """One row of each series, without times: each is a new point at its arrival."""
    fields = [",".join(f"f{n}={(series * 7 + n * 13) % 100}.5" for n in range(FIELDS)) for series in range(SERIES)]
    return "".join(f"cpu,host=host_{series},region=r{series % 10} {values}\n" for series, values in enumerate(fields))


class Watch(threading.Thread):
    """The most anonymous memory of a process."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.status = Path(f"/proc/{pid}/status")
        self.peak, self.ended = 0, threading.Event()

    def run(self):
        while not self.ended.wait(0.02):
            try:
                lines = self.status.read_text().splitlines()
            except OSError:
                return  # the process is gone
            kib = next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)
            self.peak = max(self.peak, kib << 10)


@pytest.fixture
def grouped(binary, tmp_path):
    """A server in a control group, and the group."""
    with memory_group(GROUP) as group:
        # The join has more pairs than anybody can wait for: where memory does not end it, the timeout does.
        server = Server(group.wrap(binary, tmp_path), tmp_path, ["query.timeout=20 s"])
        try:
            yield server.start(), group
        finally:
            if server.running:
                server.kill9()


def test_promise_7_the_process_stays_within_its_memory(grouped):
    server, group = grouped
    said = server.log_tail()
    assert f"{LIMIT // MIB} MiB: queries" in said, said
    watch = Watch(server.process.pid)
    watch.start()
    text, until = body().encode(), time.monotonic() + SECONDS
    written, answers = [0] * WRITERS, []
    assert server.http("POST", "/write?db=public", text).status == 204
    written[0] = SERIES

    def write(writer):
        while time.monotonic() < until:
            answer = server.http("POST", "/write?db=public", text)
            # Back-pressure may ask to come again; it never breaks the connection.
            assert answer.status in (204, 429, 503), answer
            written[writer] += SERIES if answer.status == 204 else 0

    def query(text):
        while time.monotonic() < until:
            answer = server.post_sql(text)
            assert answer.status == 200 or (answer.status in (408, 429, 507) and answer.error), answer
            answers.append(answer.status)

    def change():
        while time.monotonic() < until:
            for statement in ("DELETE FROM cpu WHERE host = 'host_7'", "COMPACT TABLE cpu"):
                answer = server.post_sql(statement)
                assert answer.status in (200, 409, 429, 503, 507), answer

    away = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "away", clean_session=False, protocol=V311)
    away.connect(*server.address("mqtt"))
    away.subscribe("bulk/#", qos=1)
    away.loop_start()
    wait_until(lambda: away.is_connected(), "the subscriber's connection")
    away.disconnect()
    away.loop_stop()

    def publish():
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "bulk", protocol=V311)
        client.connect(*server.address("mqtt"))
        client.loop_start()
        while time.monotonic() < until:
            client.publish("bulk/x", bytes(20_000), 1).wait_for_publish(60)
        client.disconnect()
        client.loop_stop()

    with ThreadPoolExecutor(WRITERS + len(QUERIES) + 2) as executor:
        work = [executor.submit(write, writer) for writer in range(WRITERS)]
        work += [executor.submit(query, text) for text in QUERIES]
        work += [executor.submit(change), executor.submit(publish)]
        for done in work:
            done.result()
    watch.ended.set()
    watch.join()
    print(f"{sum(written)} rows, {len(answers)} queries, peak {watch.peak / MIB:.0f} MiB of {LIMIT // MIB}")
    assert group.killed == 0, "the kernel has ended the server for its memory"
    assert server.running, server.log_tail()
    [[count]] = server.sql("SELECT count(*) FROM cpu")
    assert 0 < count <= sum(written)
    assert 200 in answers
    # One row that is as large as all of the memory of queries: refused by their limit, or ended by that of the server where
    # the load before has left it little; and everything goes on.
    large = server.post_sql("SELECT array_agg(f0), array_agg(f1), array_agg(f2), array_agg(time) FROM cpu")
    assert large.status == 507 and ("query.memory" in large.error or "memory.limit" in large.error), large
    assert server.sql("SELECT count(*) FROM cpu") == [[count]]
    assert group.killed == 0
    # An operator may allocate so much at once, between two looks at the process.
    assert watch.peak <= LIMIT + LIMIT // 8, f"{watch.peak / MIB:.0f} MiB of {LIMIT // MIB}"
    server.stop()


# MQTT alone: messages that no source takes, of a megabyte each.

LARGE = 1_000_000
DURABLE = {"session_expiry": 3600}


def send_large(server, topics, retain=False, seconds=60):
    """Publishes to each topic; the reasons of the acknowledgements."""
    reasons = []
    with connected(server.address("mqtt")) as wire:
        for at, topic in enumerate(topics):
            props = {"correlation_data": b"beside the default source"}
            wire.send(publish(V5, topic, bytes(LARGE), 1, at + 1, retain=retain, props=props))
            reasons.append(wire.expect(PUBACK, at + 1, seconds).reason)
    return reasons


def dropped(server):
    [[count]] = server.sql("SELECT sum(dropped_queue_full) FROM system.sessions")
    return count or 0


def much_is_retained(server):
    reasons = send_large(server, [f"big/{number}" for number in range(150)], retain=True)
    kept = reasons.count(0) + reasons.count(0x10)
    assert 0 < kept < 20 and reasons.count(0x97) == len(reasons) - kept, reasons
    # A smaller one takes the place of a large one, and an empty one makes room.
    with connected(server.address("mqtt")) as wire:
        assert wire.publish("big/0", b"small", 1, retain=True).reason in (0, 0x10)
        assert wire.publish("big/1", b"", 1, retain=True).reason in (0, 0x10)


def reader(server, props, identifier):
    """A subscriber that reads and never acknowledges."""
    wire = connected(server.address("mqtt"), props={"receive_maximum": 65535} | props)
    wire.subscribe(("m/x", 1), props={"subscription_identifier": 1} if identifier else None)

    def read():
        wire.socket.settimeout(None)
        try:
            while wire.socket.recv(1 << 20):
                pass
        except OSError:
            pass

    threading.Thread(target=read, daemon=True).start()
    return wire


def nobody_acknowledges(server):
    wires = [reader(server, props, identifier) for props in ({}, DURABLE) for identifier in (False, True)]
    assert set(send_large(server, ["m/x"] * 60)) == {0}
    # What the log has is not dropped; what would be in memory alone is, and is counted.
    assert dropped(server) > 0
    [[kept]] = server.sql("SELECT max(queued + in_flight) FROM system.sessions WHERE dropped = 0")
    assert kept == 60, "less than mqtt.queued_bytes: all of it waits in the log"
    for wire in wires:
        wire.socket.close()


def nobody_reads(server):
    wires = [connected(server.address("mqtt"), props={"receive_maximum": 1}) for _ in range(20)]
    for number, wire in enumerate(wires):
        wire.subscribe((f"slow/{number}", 1), (f"slow/{number}", 1))
    for number in range(20):
        send_large(server, [f"slow/{number}"] * 20)
    assert dropped(server) > 0
    for wire in wires:
        wire.socket.close()


def many_are_away(server):
    for number in range(50):
        with connected(server.address("mqtt"), client_id=f"away-{number}", props=DURABLE) as wire:
            wire.subscribe(("m/x", 1), props={"subscription_identifier": 5})
    assert set(send_large(server, ["m/x"] * 12)) == {0}


@pytest.mark.parametrize("load", [much_is_retained, nobody_acknowledges, nobody_reads, many_are_away])
def test_promise_7_mqtt_stays_within_its_memory(grouped, load):
    server, group = grouped
    watch = Watch(server.process.pid)
    watch.start()
    load(server)
    assert server.sql("SELECT 1") == [[1]]
    watch.ended.set()
    watch.join()
    server.kill9()
    server.start()
    again = Watch(server.process.pid)
    again.start()
    wait_until(lambda: server.post_sql("SELECT 1").status == 200, "SQL after the restart")
    with connected(server.address("mqtt")) as wire:
        assert wire.publish("t/x", b'{"v": 1}', 1).reason in (0, 0x10)
    again.ended.set()
    again.join()
    print(f"{load.__name__}: {watch.peak / MIB:.0f} MiB, {again.peak / MIB:.0f} after the restart, of {LIMIT // MIB}")
    assert group.killed == 0 and server.running
    assert max(watch.peak, again.peak) <= LIMIT + LIMIT // 8
    server.stop()


# Series: a tag that has a new value with every row.

AT_ONCE = 5_000


def new_series(first, count=AT_ONCE):
    """A row of each of so many series."""
    rows = (f"many,device=device-number-{n:08d},site=plant-{n % 1000:05d} v=1" for n in range(first, first + count))
    return "".join(f"{row} {TIME_S * 10**9}\n" for row in rows)


def fill_with_series(server):
    """Writes new series until they are refused; the refusal."""
    until = time.monotonic() + 60
    for first in range(0, 100 * AT_ONCE, AT_ONCE):
        answer = server.http("POST", "/write?db=public", new_series(first))
        while answer.status in (429, 503) and time.monotonic() < until:
            answer = server.http("POST", "/write?db=public", new_series(first))
        if answer.status != 204:
            return answer
    raise AssertionError(f"{100 * AT_ONCE} series, and none was refused")


def refuses_new_series_alone(server, series):
    """Rows of series that there are go on at each door, and what was acknowledged is there."""
    assert server.sql("SELECT series FROM system.tables WHERE name = 'many'") == [[series]]
    assert server.sql("SELECT count(*), sum(v) FROM many") == [[series, series]]
    assert server.sql("SELECT count(*) FROM many WHERE device = 'device-number-00000007'") == [[1]]
    assert server.http("POST", "/write?db=public", new_series(0)).status == 204
    refused = server.http("POST", "/write?db=public", new_series(10**7, 3))
    assert refused.status == 400 and "memory.limit" in refused.error, refused
    letters = "SELECT reason FROM system.dead_letters WHERE topic = 'many/new'"
    before = len(server.sql(letters))
    with Device(server.address("mqtt")) as device:
        device.publish("many/new", {"device": "new", "site": "new", "v": 1})
    wait_until(lambda: len(server.sql(letters)) == before + 1, "the dead letter")
    assert "memory.limit" in server.sql(letters)[-1][0]


def test_promise_7_series_stay_within_their_memory(binary, tmp_path):
    limit = GROUP // 4
    with memory_group(limit * 2) as group:
        server = Server(group.wrap(binary, tmp_path), tmp_path, [])
        try:
            server.start()
            assert f"series {limit // MIB // 16}, " in server.log_tail(), server.log_tail()
            watch = Watch(server.process.pid)
            watch.start()
            refused = fill_with_series(server)
            assert refused.status == 400, refused
            for part in ("memory.limit", "public.many", "stored as before", "drop tables"):
                assert part in refused.error, refused
            [[series]] = server.sql("SELECT series FROM system.tables WHERE name = 'many'")
            assert series > 50_000, series
            gauges = dict(line.rsplit(" ", 1) for line in server.http("GET", "/metrics").text.splitlines())
            held, most = (int(gauges[f"sonde_series_bytes{end}"]) for end in ("", "_at_most"))
            assert most // 10 * 9 < held <= most == limit // 16
            refuses_new_series_alone(server, series)
            server.kill9()
            watch.ended.set()
            watch.join()
            server.start()
            again = Watch(server.process.pid)
            again.start()
            refuses_new_series_alone(server, series)
            server.sql("FLUSH TABLE many")
            server.sql("COMPACT TABLE many")
            refuses_new_series_alone(server, series)
            again.ended.set()
            again.join()
            peaks = [f"{watched.peak / MIB:.0f}" for watched in (watch, again)]
            print(f"{series} series: {peaks[0]} MiB, {peaks[1]} after the restart, of {limit // MIB}")
            assert group.killed == 0 and server.running
            assert max(watch.peak, again.peak) <= limit + limit // 8
            server.stop()
        finally:
            if server.running:
                server.kill9()
