"""DuckDB's side of the comparison, a process of its own: it is a library, so its load is no network's.

    duckdb_side.py LINES FOLDER ROWS SECONDS HOURS HOSTS    prints one JSON object

Rows come from Arrow in memory. Transactions of 10,000 rows are what compares with requests; the bulk statement is what
it can do at best. Parsing the lines is done before, and counts nowhere.
"""

import json
import os
import random
import statistics
import sys
import threading
import time
from pathlib import Path

import duckdb
import measure
from systems import FIELDS

TAGS = "hostname region datacenter rack os arch team service service_version service_environment".split()
THREADS = 2
BATCH = 10_000
BATCH_SECONDS = 10


def parse(source, limit):
    """The rows of a line protocol file in its order, as Arrow."""
    names = [f"c{number}" for number in range(20)]  # cpu + 10 tags, the last with the first field, + 9 fields
    columns = ", ".join(f"'{name}': 'VARCHAR'" for name in names)
    tags = [f"split_part(split_part(c{at + 1}, ' ', 1), '=', 2) AS {tag}" for at, tag in enumerate(TAGS)]
    texts = ["split_part(c10, ' ', 2)", *(f"split_part(c{at}, ' ', 1)" for at in range(11, 20))]
    fields = [f"CAST(rtrim(split_part({it}, '=', 2), 'i') AS BIGINT) AS {name}" for it, name in zip(texts, FIELDS)]
    when = "make_timestamp_ns(CAST(split_part(c19, ' ', 2) AS BIGINT)) AS time"
    with duckdb.connect(config={"threads": THREADS}) as lines:
        query = lines.sql(
            f"SELECT {when}, {', '.join(tags + fields)} FROM read_csv('{source}', delim=',', header=false, quote='', "
            f"escape='', auto_detect=false, columns={{{columns}}}) LIMIT {limit}"
        )
        return query.to_arrow_table()


def open_database(folder, name):
    database = duckdb.connect(str(Path(folder) / name), config={"threads": THREADS})
    tags = ", ".join(f"{tag} VARCHAR" for tag in TAGS)
    database.execute(f"CREATE TABLE cpu (time TIMESTAMP_NS, {tags}, {', '.join(f'{it} BIGINT' for it in FIELDS)})")
    return database


def insert(cursor, batch):
    cursor.register("batch", batch)
    cursor.execute("INSERT INTO cpu SELECT * FROM batch")
    cursor.unregister("batch")


def transactions(database, rows, size, clients, seconds):
    """Inserts `rows` in transactions of `size` rows by so many threads, for so long."""
    batches = iter(range(0, rows.num_rows, size))
    lock, sent, latencies = threading.Lock(), [], []
    end = time.monotonic() + seconds

    def client():
        cursor = database.cursor()
        while time.monotonic() < end:
            with lock:
                offset = next(batches, None)
            if offset is None:
                return
            batch = rows.slice(offset, size)
            began = time.monotonic()
            insert(cursor, batch)
            latencies.append((time.monotonic() - began) * 1e3)
            sent.append(batch.num_rows)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    cpu, began = measure.cpu(os.getpid()), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    if not sent:
        raise RuntimeError("no transaction came to its end")
    return {
        "rows": sum(sent),
        "requests": len(sent),
        "seconds": took,
        "rows_per_s": sum(sent) / took,
        "cpu": measure.cpu(os.getpid()) - cpu,
        "p50_ms": statistics.median(latencies),
        "p99_ms": sorted(latencies)[len(latencies) * 99 // 100],
    }


def in_transactions(folder, rows, seconds):
    """As many transactions as the requests of the others; then a checkpoint, which is its flush."""
    with open_database(folder, "batches") as database:
        figures = transactions(database, rows, BATCH, 4, BATCH_SECONDS)
        before = measure.cpu(os.getpid())
        database.execute("CHECKPOINT")
        figures["cpu"] += measure.cpu(os.getpid()) - before
        figures["rows_per_cpu"] = figures["rows"] / figures["cpu"]
        small = {}
        for size, clients in ((1, 1), (1, 4), (100, 4)):
            it = transactions(database, rows, size, clients, seconds)
            small[f"{size}/{clients}"] = it | {"rows_per_cpu": it["rows"] / max(it["cpu"], 0.01)}
        with measure.SyncCalls(os.getpid(), Path(folder) / "strace") as syncs:
            for at in range(20):
                insert(database, rows.slice(at, 1))
    return figures, small, {"requests": 20, "total": syncs.total, "calls": syncs.calls}


def in_bulk(folder, rows):
    """All rows by one statement, and the questions to them."""
    database = open_database(folder, "bulk")
    cpu, began = measure.cpu(os.getpid()), time.monotonic()
    insert(database, rows)
    database.execute("CHECKPOINT")
    took, cpu = time.monotonic() - began, measure.cpu(os.getpid()) - cpu
    count = rows.num_rows
    return database, {"rows": count, "rows_per_s": count / took, "rows_per_cpu": count / max(cpu, 0.01)}


def ask(database, hours, hosts):
    draw = random.Random(7)

    def window(length):
        host = draw.randrange(hosts)
        start = draw.randrange(max(round((hours - length) * 3600), 0) + 1)
        epoch = "TIMESTAMP '2024-01-01 00:00:00'"
        return (
            "SELECT time_bucket(INTERVAL 1 minute, time) AS minute, max(usage_user) FROM cpu "
            f"WHERE hostname = 'host_{host}' AND time >= {epoch} + INTERVAL {start} second "
            f"AND time < {epoch} + INTERVAL {start + round(length * 3600)} second GROUP BY 1 ORDER BY 1"
        )

    latest = (
        f"SELECT hostname, {', '.join(FIELDS)} FROM cpu JOIN "
        "(SELECT hostname, max(time) AS time FROM cpu GROUP BY hostname) USING (hostname, time)"
    )
    questions = {
        "latest": lambda: latest,
        "window 1 h": lambda: window(min(hours, 1)),
        "window all": lambda: window(min(hours, 12)),
        "sum": lambda: "SELECT sum(usage_user) FROM cpu",
    }
    found = {}
    for name, make in questions.items():
        answer = database.sql(make()).to_arrow_table()
        walls, cpu, end = [], measure.cpu(os.getpid()), time.monotonic() + 10
        while len(walls) < 20 and (len(walls) < 3 or time.monotonic() < end):
            began = time.monotonic()
            answer = database.sql(make()).to_arrow_table()
            walls.append((time.monotonic() - began) * 1e3)
        cpu = (measure.cpu(os.getpid()) - cpu) / len(walls) * 1e3
        found[name] = {"p50_ms": statistics.median(walls), "cpu_ms": cpu, "runs": len(walls)}
    found["sum"]["number"] = int(answer.column(0)[0].as_py())
    return found


def main():
    source, folder, limit, seconds, hours, hosts = sys.argv[1:]
    rows, seconds = parse(source, int(limit)), float(seconds)
    before = measure.anonymous(os.getpid())
    with measure.Peak(os.getpid()) as peak:
        batches, small, syncs = in_transactions(folder, rows, seconds)
    database, bulk = in_bulk(folder, rows)
    with database:
        queries = ask(database, float(hours), int(hosts))
    stored = (Path(folder) / "bulk").stat().st_size / rows.num_rows / len(FIELDS)
    figures = {"version": duckdb.__version__, "bulk": batches, "statement": bulk, "small": small, "syncs": syncs}
    figures |= {"queries": queries, "bytes_per_value": stored, "peak_anonymous": peak.bytes - before}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
