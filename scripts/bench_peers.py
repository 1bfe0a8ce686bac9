#!/usr/bin/env python3
"""Measures SondeDB and the databases that package registries offer in one run, and writes docs/benchmarks.md's "Peers".

scripts/bench_peers.sh starts it in an environment that has what it imports; docs/benchmarks.md says what is measured.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts/peers"))

import compare  # noqa: E402
import obtain  # noqa: E402
import recordings  # noqa: E402
import report  # noqa: E402
import systems  # noqa: E402

HOSTS = 4000
FREE_DISK = 8 << 30  # bytes: the lines, and the data of the largest peer
SYSTEMS = ("sonde", "questdb", "questdb-sync", "victoria", "influx", "duckdb")


def arguments():
    parser = argparse.ArgumentParser(description="compares SondeDB with other databases on this machine")
    parser.add_argument("--quick", action="store_true", help="a minute or two, shows that all runs; writes no document")
    parser.add_argument("--hours", type=float, help=f"length of the set of {HOSTS} hosts, every 10 s (3.5; quick: 0.1)")
    parser.add_argument("--only", default=",".join(SYSTEMS), help=f"some of {','.join(SYSTEMS)}")
    parser.add_argument("--recordings", default=str(ROOT / "demo/data"), help="directory of recordings of sensors")
    parser.add_argument("--minutes", type=float, default=8, help="no system is begun later than this, downloads aside")
    parser.add_argument("--cache", type=Path, required=True, help="where programs, lines and the JSON file go")
    parser.add_argument("--sonde", type=Path, required=True, help="the binary")
    parser.add_argument("--write", action="store_true", help="write the document after --quick or --only, too")
    parsed = parser.parse_args()
    parsed.only = parsed.only.split(",")
    if unknown := set(parsed.only) - set(SYSTEMS):
        parser.error(f"no such system: {', '.join(sorted(unknown))}")
    if not 0.05 <= (parsed.hours or 1) <= 12:
        parser.error("--hours is from 0.05 to 12")
    return parsed


class Skips:
    """What this run goes without: said at once, and again, counted, at the end and in the document."""

    def __init__(self):
        self.lines = []

    def add(self, what, why):
        line = f"{what}: {' '.join(str(why).split())}"
        self.lines.append(line)
        print(f"SKIPPED (1): {line}", file=sys.stderr, flush=True)
        if path := os.environ.get("SONDE_SKIPS"):
            with open(path, "a") as skips:
                skips.write(f"1 skipped: bench-peers: {line}\n")


def makers(options):
    """For each system, what obtains it: it gives a function from a folder to a server."""
    cache = options.cache / "programs"

    def sonde():
        return lambda folder: systems.Sonde(folder, options.sonde)

    def questdb(kind):
        java, jar = obtain.questdb(cache)
        return lambda folder: kind(folder, java, jar, obtain.QUESTDB)

    def debian(kind, package, program):
        path = obtain.debian(cache, package, program)
        return lambda folder: kind(folder, path, obtain.DEBIAN[package])

    return {
        "sonde": sonde,
        "questdb": lambda: questdb(systems.QuestDb),
        "questdb-sync": lambda: questdb(systems.QuestDbSync),
        "victoria": lambda: debian(systems.VictoriaMetrics, "victoria-metrics", "victoria-metrics"),
        "influx": lambda: debian(systems.InfluxDb, "influxdb", "influxd"),
    }


def obtain_all(options, skips):
    """Everything that is downloaded or built, before the clock runs."""
    found = {}
    for name, make in makers(options).items():
        if name in options.only:
            try:
                found[name] = make()
            except (obtain.Missing, OSError) as error:
                skips.add(name, error)
    return found


def measure_all(options, plan, ready, skips):
    end, found = time.monotonic() + options.minutes * 60, []
    for name in options.only:
        if name in ready or name == "duckdb":
            if time.monotonic() > end:
                skips.add(name, f"the {options.minutes:g} minutes are over")
                continue
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                alone = name == "duckdb"
                figures = compare.duckdb_figures(plan) if alone else compare.server_figures(plan, ready[name])
            except (systems.Failed, OSError, ValueError, KeyError, IndexError) as error:
                skips.add(name, f"failed: {error!r}")
                continue
            found.append(figures | {"id": name})
            print(report.line(figures), flush=True)
    return found, end


def machine():
    model = next((line.split(":")[1] for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown CPU")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{model.strip()}, {os.cpu_count()} cores, {memory} GiB, {platform.system()} {kernel}"


def commit():
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return git.stdout.strip() or "none"


def main():
    options = arguments()
    # As Ctrl-C does: what was started is ended, what was written is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if sys.platform != "linux":
        sys.exit("bench-peers: needs Linux, it reads /proc")
    options.cache.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(options.cache).free) < FREE_DISK:
        sys.exit(f"bench-peers: {options.cache} has {free >> 20} MiB free, and needs {FREE_DISK >> 20}")
    hours = options.hours or (0.1 if options.quick else 3.5)
    skips = Skips()
    try:
        programs = options.cache / "programs"
        load = obtain.load_generator(programs, ROOT / "scripts/peers/load.rs")
        source = obtain.rows(options.cache / "rows", obtain.tsbs(programs), hours, HOSTS)
    except obtain.Missing as error:
        sys.exit(f"bench-peers: without this nothing can be compared: {error}")
    ready = obtain_all(options, skips)
    with tempfile.TemporaryDirectory(prefix="run-", dir=options.cache) as work:
        plan = compare.Plan(
            source=source,
            load=load,
            work=Path(work),
            rows=round(hours * 360) * HOSTS,
            hours=hours,
            hosts=HOSTS,
            bulk_seconds=5 if options.quick else 80,
            small_seconds=0.5 if options.quick else 4,
            query_runs=5 if options.quick else 20,
            merges=not options.quick,
        )
        found, end = measure_all(options, plan, ready, skips)
        most = 1_000_000 if options.quick else sys.maxsize
        sizes = recordings.measure_all(options.recordings, most, Path(work), ready, end, skips)
    run = {
        "machine": machine(),
        "commit": commit(),
        "given": "SONDE_BIN" in os.environ,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": " ".join(["make bench-peers"] + report.flags(sys.argv[1:])),
        "rows": plan.rows,
        "hours": hours,
        "hosts": HOSTS,
        "systems": found,
        "recordings": sizes,
        "skipped": skips.lines,
    }
    output = options.cache / "peers.json"
    output.write_text(json.dumps(run, indent=1) + "\n")
    text = report.markdown(run)
    print(text)
    whole = not options.quick and options.only == list(SYSTEMS)
    if whole or options.write:
        report.put(ROOT / "docs/benchmarks.md", text)
    print(f"bench-peers: {len(found)} measured, {len(skips.lines)} skipped; all figures in {output}")
    try:
        compare.check_sums(found)
    except systems.Failed as error:
        sys.exit(f"bench-peers: {error}")


if __name__ == "__main__":
    main()
