"""One system after the other through the same phases; what each costs, as a dictionary that goes into the JSON file."""

import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import measure
from systems import FIELDS, Failed

START = 1_704_067_200  # 2024-01-01T00:00:00Z, the first row
# The rows that make the series, before the small requests are measured.
WARM = 20_000
SMALL = ((1, 1), (1, 4), (1, 64), (100, 4))  # lines a request, clients
SYNC_REQUESTS = 200
DUCKDB_SECONDS = 240


@dataclass
class Plan:
    """How much of everything, and what it is made of."""

    source: Path  # the lines
    load: Path  # the sender
    work: Path  # where the systems keep their data, removed when each is done
    rows: int
    hours: float
    hosts: int
    bulk_seconds: float
    small_seconds: float
    query_runs: int
    merges: bool  # whether to wait for what a system merges only after a pause


def send(plan, server, *, clients, lines, rows, skip=0, seconds=None, warm=0):
    """Sends lines, and what that cost both sides."""
    command = [plan.load, "--address", f"127.0.0.1:{server.port}", "--path", server.write_path, "--file", plan.source]
    command += ["--clients", str(clients), "--lines", str(lines), "--rows", str(rows), "--skip", str(skip)]
    command += ["--warm", str(warm)]
    command += ["--token", server.token] if server.token else []
    command += ["--seconds", f"{seconds}"] if seconds else []
    cpu, written = measure.cpu(server.pid), measure.written(server.pid)
    limit = (seconds or 0) + 120
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{server.name}: the load did not end within {limit:.0f} s") from error
    if done.returncode != 0:
        raise Failed(f"{server.name}: {done.stderr.strip()[-500:]}")
    sent = json.loads(done.stdout)
    sent["rows_per_s"] = sent["rows"] / sent["seconds"]
    sent["cpu"] = measure.cpu(server.pid) - cpu
    if written is not None:
        sent["written"] = measure.written(server.pid) - written
    return sent


def bulk(plan, server):
    """Large batches, and everything that the system does with them until it rests."""
    cpu = measure.cpu(server.pid)
    with measure.Peak(server.pid) as peak:
        sent = send(plan, server, clients=4, lines=10_000, rows=plan.rows, seconds=plan.bulk_seconds)
        sent["rows_per_cpu_acked"] = sent["rows"] / max(sent["cpu"], 0.01)
        sent["rests"] = server.settle(plan.merges)
    sent["cpu"] = measure.cpu(server.pid) - cpu
    sent["rows_per_cpu"] = sent["rows"] / max(sent["cpu"], 0.01)
    return sent, peak.bytes


def questions(plan, server, hours):
    """What each question takes, warm: 20 runs or ten seconds, each with its own series and window."""
    draw = random.Random(7)

    def window(length):
        start = START + draw.randrange(max(round((hours - length) * 3600), 0) + 1)
        return server.window(f"host_{draw.randrange(plan.hosts)}", start, start + round(length * 3600))

    asked = {
        "latest": server.latest,
        "window 1 h": lambda: window(min(hours, 1)),
        "window all": lambda: window(min(hours, 12)),
        "sum": server.total,
    }
    found = {}
    for name, ask in asked.items():
        answer = ask()
        walls, cpu, end = [], measure.cpu(server.pid), time.monotonic() + 10
        while len(walls) < plan.query_runs and (len(walls) < 3 or time.monotonic() < end):
            began = time.monotonic()
            answer = ask()
            walls.append((time.monotonic() - began) * 1e3)
        cpu = (measure.cpu(server.pid) - cpu) / len(walls) * 1e3
        found[name] = {"p50_ms": statistics.median(walls), "cpu_ms": cpu, "runs": len(walls), "bytes": len(answer)}
    found["sum"]["number"] = server.number(answer)
    return found


def small(plan, server):
    """Small requests to a server whose series exist, and the calls that sync in some of them."""
    send(plan, server, clients=4, lines=1000, rows=min(WARM, plan.rows // 4))
    skip, found = min(WARM, plan.rows // 4), {}
    for lines, clients in SMALL:
        left = plan.rows - SYNC_REQUESTS - skip
        if left <= 0:
            print(f"  {server.name}: no rows are left for {lines} rows a request", file=sys.stderr)
            continue
        limits = {"rows": left, "skip": skip, "seconds": plan.small_seconds}
        sent = send(plan, server, clients=clients, lines=lines, warm=1, **limits)
        # The clients' first requests are in the CPU time, though not in the rows a second.
        sent["rows_per_cpu"] = (sent["rows"] + sent["warm"]) / max(sent["cpu"], 0.01)
        found[f"{lines}/{clients}"] = sent
        skip += sent["rows"] + sent["warm"]
    measure.wait_idle(server.pid, at_most=10, quiet=0.5)
    with measure.SyncCalls(server.pid, server.folder / "strace") as syncs:
        send(plan, server, clients=1, lines=1, rows=SYNC_REQUESTS, skip=plan.rows - SYNC_REQUESTS)
    return found, {"requests": SYNC_REQUESTS, "total": syncs.total, "calls": syncs.calls}


def server_figures(plan, make):
    """All phases of a system that listens; `make` takes a folder and gives a `Server` that is not started."""
    folder = plan.work / "system"
    try:
        with make(folder).start() as server:
            found = {"name": server.name, "version": server.version, "settings": server.settings}
            found["acknowledges"] = server.acknowledges
            sent, peak = bulk(plan, server)
            hours = sent["rows"] / plan.hosts / 360
            server.end = START + round(hours * 3600)
            found |= {"bulk": sent, "peak_anonymous": peak, "queries": questions(plan, server, hours)}
            found["bytes_per_value"] = server.stored() / sent["rows"] / len(FIELDS)
        shutil.rmtree(folder)
        with make(folder).start() as server:
            found["small"], found["syncs"] = small(plan, server)
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def duckdb_figures(plan):
    """The library's process, which runs all its phases itself."""
    folder = plan.work / "duckdb"
    folder.mkdir()
    side = Path(__file__).with_name("duckdb_side.py")
    limits = [str(plan.rows), str(plan.small_seconds), str(plan.hours), str(plan.hosts)]
    try:
        done = subprocess.run(
            [sys.executable, side, plan.source, folder, *limits], capture_output=True, text=True, timeout=DUCKDB_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"DuckDB did not end within {DUCKDB_SECONDS} s") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode != 0:
        raise Failed(f"DuckDB: {done.stderr.strip()[-500:]}")
    found = {"name": "DuckDB", "settings": "2 threads, in process, no network"}
    return found | {"acknowledges": "after fsync of its log"} | json.loads(done.stdout)


def check_sums(found):
    """Every system that took all rows must sum them alike: a row that was lost would make all its figures wrong."""
    sums = {}
    for figures in found:
        rows = figures.get("statement", figures["bulk"])["rows"]
        sums.setdefault(rows, {}).setdefault(float(figures["queries"]["sum"]["number"]), []).append(figures["name"])
    for rows, by in sums.items():
        if len(by) > 1:
            raise Failed(f"the sum of {rows} rows differs: {by}")
