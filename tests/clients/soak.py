#!/usr/bin/env python3
"""A mixed load for a while, and whether the server stays as large as it is: memory, descriptors, files, log, queues.

    make soak                                30 minutes
    make soak SOAK_ARGS="--minutes 5"
    SONDE_BIN=target/debug/sonde python tests/clients/soak.py --minutes 5 --samples samples.csv

Devices publish at QoS 1 and 2, HTTP clients write batches, change and delete rows, queries run, an administrator
flushes, compacts and cools, retention drops what is older than two minutes. Every second is a sample. The verdict
compares the last third with the middle one; the first is for caches to fill. Exits with 1 where something grew, or an
answer was wrong.
"""

import argparse
import csv
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

from load import KEYS, Administrator, Changer, Publisher, Statements, check
from support import TIME_S, Server, unique, wait_until

MIB = 1 << 20
LIMIT = 512  # MiB, `memory.limit`
POINTS = 100_000  # of the table that is written over and over
BATCH = 200
DAY_S = 86_400

# What each figure may grow by, from the middle third's mean to the last one's: a factor, and a sum besides.
BOUNDS = {
    "anonymous MiB": (1.10, 16),
    "descriptors": (1.0, 16),
    "files": (1.25, 20),
    "log MiB": (1.25, 128),  # two segments
    "unflushed": (2.0, 100_000),  # positions of the log that are in memory only
    "in flight": (1.5, 40),  # messages that wait for their acknowledgement
    "query ms": (2.0, 250),
}


class Paced(Statements):
    """At most so many steps a second."""

    PER_SECOND = 10

    def __init__(self, server):
        super().__init__(server)
        self.acknowledged, self.count, self.slowest = [], 0, 0.0
        self._next = time.monotonic()

    def _step(self):
        time.sleep(max(0, self._next - time.monotonic()))  # the pace of the load
        self._next = max(self._next + 1 / self.PER_SECOND, time.monotonic() - 1)
        self.count += 1
        began = time.monotonic()
        done = self.do()
        self.slowest = max(self.slowest, time.monotonic() - began)
        return done


class Recorder(Paced):
    """Writes points of three days, the same again and again, so that there is always something to merge."""

    def __init__(self, server):
        super().__init__(server)
        self.table, self.at, self.rows = unique("recorded_"), 0, 0

    def do(self):
        day = TIME_S // DAY_S * DAY_S
        keys = [(self.at + i) % POINTS for i in range(BATCH)]
        self.at += BATCH
        times = [(day + key % 3 * DAY_S) * 1000 + key for key in keys]
        lines = (f"{self.table},device=d{k % 50} v={k % 977},n={k}i {t}" for k, t in zip(keys, times, strict=True))
        self.rows += BATCH
        return self._post("/api/v1/write?precision=ms", "\n".join(lines))


class Eraser(Paced):
    """Deletes a part of what a `Recorder` writes, by time and by value."""

    PER_SECOND = 1

    def __init__(self, server, recorder):
        super().__init__(server)
        self.recorder, self.random = recorder, random.Random(1)

    def do(self):
        low = self.random.randrange(POINTS)
        where = self.random.choice(
            [f"device = 'd{low % 50}' AND time < '2024-02-24T00:00:00Z'", f"n >= {low} AND n < {low + 500}"]
        )
        # A conflict with the recorder, eight times over, is an answer too.
        answer = self.server.post_sql(f"DELETE FROM {self.recorder.table} WHERE {where}")
        return answer.status in (200, 400, 409)


class Asker(Paced):
    """Asks what users ask."""

    PER_SECOND = 5

    def __init__(self, server, table):
        super().__init__(server)
        self.table, self.random = table, random.Random(2)

    def do(self):
        queries = [
            f"SELECT count(*), avg(v), max(time) FROM {self.table}",
            f"SELECT device, time_bucket('1 hour', time), avg(v) FROM {self.table} GROUP BY 1, 2 ORDER BY 1, 2",
            f"SELECT * FROM {self.table} WHERE device = 'd{self.random.randrange(50)}' ORDER BY time DESC LIMIT 20",
            "SELECT count(*) FROM feed WHERE time > now() - INTERVAL '30 seconds'",
        ]
        self.server.sql(self.random.choice(queries))
        return True


class PacedAdministrator(Administrator):
    def _step(self):
        time.sleep(2)  # the pace of the load
        return super()._step()


class PacedPublisher(Publisher):
    """At most PER_SECOND messages a second; those that are acknowledged are counted, not kept."""

    PER_SECOND = 400
    IN_FLIGHT = 200

    def __init__(self, server, qos, table):
        super().__init__(server, qos, timed=False)
        self.table, self.began, self.answered = table, time.monotonic(), 0

    def _on_connect(self, *_):
        pass

    def _on_publish(self, *_):
        self.answered += 1

    @property
    def waiting(self):
        return self.sent - self.answered

    def feed(self):
        """Sends what is due; the client's own thread takes the answers."""
        due = int((time.monotonic() - self.began) * self.PER_SECOND)
        while self.sent < due:
            if self.waiting >= self.IN_FLIGHT:
                self.began = time.monotonic() - self.sent / self.PER_SECOND
                return
            self.paho.publish(f"{self.table}/load", json.dumps({"n": self.sent}), self.qos)
            self.sent += 1


def sample(server, publishers, began):
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    anonymous = int(status.split("RssAnon:")[1].split()[0]) / 1024
    files = [path for path in server.data_dir.rglob("*") if path.is_file()]
    clock = time.monotonic()
    [[last, flushed]] = server.sql("SELECT max(last), max(flushed_to) FROM system.wal")
    return {
        "second": round(time.monotonic() - began, 1),
        "anonymous MiB": round(anonymous, 1),
        "descriptors": len(os.listdir(f"/proc/{server.process.pid}/fd")),
        "files": len(files),
        "log MiB": round(sum(size(path) for path in files if path.suffix == ".wal") / MIB, 1),
        "unflushed": last - flushed,
        "in flight": sum(publisher.waiting for publisher in publishers),
        "query ms": round((time.monotonic() - clock) * 1000, 1),
    }


def size(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def verdict(samples):
    """A table of the thirds, and what grew."""
    third = len(samples) // 3
    thirds = [samples[:third], samples[third : 2 * third], samples[2 * third :]]
    lines = ["| | first third | middle third | last third | most | may grow to | |", "|---|---|---|---|---|---|---|"]
    grown = []
    for name, (factor, sum_) in BOUNDS.items():
        first, middle, last = (mean(row[name] for row in part) for part in thirds)
        most, bound = max(row[name] for row in samples), middle * factor + sum_
        flat = last <= bound
        if not flat:
            grown.append(name)
        figures = " | ".join(f"{figure:,.1f}" for figure in (first, middle, last, most, bound))
        lines.append(f"| {name} | {figures} | {'flat' if flat else 'GREW'} |")
    most = max(row["anonymous MiB"] for row in samples)
    if most > LIMIT:
        grown.append(f"anonymous memory of {most:.0f} MiB is above the limit of {LIMIT} MiB")
    return "\n".join(lines), grown


def soak(server, minutes):
    options = "partition = '1 minute', retention = '2 minutes'"
    server.sql(f"CREATE TABLE feed (time TIMESTAMP, topic STRING TAG, n BIGINT) WITH ({options})")
    recorder, changer = Recorder(server), Changer(server, 7)
    changer.create()
    publishers = [PacedPublisher(server, 1, "feed"), PacedPublisher(server, 2, "feed")]
    # Its rows are all there at the end, each once.
    counted = Publisher(server, 2, timed=False)
    asker = Asker(server, recorder.table)
    eraser = Eraser(server, recorder)
    administrator = PacedAdministrator(server, [recorder.table, changer.table, "feed"], 7)
    recorder.do()
    threads = [recorder, eraser, asker, changer, administrator]
    for who in (*publishers, *threads):
        who.connect()
    samples, began = [], time.monotonic()
    while time.monotonic() - began < minutes * 60:
        for publisher in publishers:
            publisher.feed()
        if not samples or time.monotonic() - began >= samples[-1]["second"] + 1:
            samples.append(sample(server, publishers, began))
            for who in threads:
                assert not who.ended, f"{type(who).__name__} ended"
        time.sleep(0.02)  # the pace of the load
    for who in threads:
        who.finish()
    for publisher in publishers:
        wait_until(lambda: not publisher.waiting, "the last acknowledgements", 60)
        publisher.paho.disconnect()
        publisher.wait_closed()
    changer.check()
    counted.connect()
    wait_until(lambda: len(counted.acknowledged) > 1000, "acknowledgements after the load")
    counted.finish()
    check(server, counted)
    [[dead]] = server.sql("SELECT count(*) FROM system.dead_letters")
    assert dead == 0, f"{dead} dead letters"
    [[kept]] = server.sql(f"SELECT count(*) FROM {changer.table}")
    assert kept <= KEYS
    done = {
        "MQTT messages": sum(publisher.sent for publisher in publishers),
        "rows over HTTP": recorder.rows,
        "changes": changer.count,
        "deletes": eraser.count,
        "queries": asker.count,
        "slowest query": f"{asker.slowest:.2f} s",
        "statements of the administrator": len(administrator.acknowledged),
    }
    return samples, done


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--samples", type=Path, help="a CSV file for all samples")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sonde-soak-") as directory:
        server = Server(os.environ["SONDE_BIN"], directory, [f"memory.limit={LIMIT}MiB"]).start()
        try:
            samples, done = soak(server, arguments.minutes)
            server.stop()
        finally:
            if server.running:
                server.kill9()
        log = server.log.read_text(errors="replace")
    if arguments.samples:
        with arguments.samples.open("w", newline="") as file:
            writer = csv.DictWriter(file, samples[0])
            writer.writeheader()
            writer.writerows(samples)
    table, grown = verdict(samples)
    errors = [line for line in log.splitlines() if " ERROR " in line]
    print(f"{arguments.minutes:g} minutes, {len(samples)} samples, memory.limit = {LIMIT} MiB: ", end="")
    counts = {what: f"{count:,}" if isinstance(count, int) else count for what, count in done.items()}
    print(", ".join(f"{what}: {count}" for what, count in counts.items()))
    print(f"\n{table}\n")
    for line in errors[:10]:
        print(f"the server said: {line}")
    print("verdict: " + (f"NOT flat: {', '.join(grown)}" if grown else "flat and bounded"), end="")
    print(f", {len(errors)} errors in the server's log")
    return 1 if grown or errors else 0


if __name__ == "__main__":
    sys.exit(main())
