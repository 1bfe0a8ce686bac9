#!/usr/bin/env python3
"""Measures SondeDB's MQTT broker and Mosquitto with the same loads in one run; prints a table and writes it as JSON.

The load is `sonde bench mqtt`, one process of one thread on the same machine. docs/benchmarks.md says what is measured.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts/mqtt"))

import brokers  # noqa: E402
import keys  # noqa: E402
import rows  # noqa: E402

BEGIN = "<!-- mqtt: begin, written by `make bench-mqtt` -->"
END = "<!-- mqtt: end -->"


def arguments():
    parser = argparse.ArgumentParser(description="compares the MQTT broker with Mosquitto on this machine")
    parser.add_argument("--sonde", required=True, help="the binary")
    parser.add_argument("--quick", action="store_true", help="about two minutes: shows that all runs, on little data")
    parser.add_argument("--only", help=f"some of {','.join(rows.ROWS)}")
    parser.add_argument("--json", type=Path, help="where the figures go (bench-mqtt.json in the target directory)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    parsed = parser.parse_args()
    parsed.only = parsed.only.split(",") if parsed.only else list(rows.ROWS)
    if unknown := set(parsed.only) - set(rows.ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    return parsed


def skip(what, why):
    """Says what this run goes without, and counts it where scripts/test.sh asks for that."""
    print(f"SKIPPED (1): {what}: {why}", file=sys.stderr, flush=True)
    if path := os.environ.get("SONDE_SKIPS"):
        with open(path, "a") as skips:
            skips.write(f"1 skipped: bench-mqtt: {what}: {why}\n")


def machine():
    with open("/proc/cpuinfo") as lines:
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return f"{cpu}, {os.cpu_count()} cores, {memory} GiB, Linux {platform.release().split('-')[0]}"


def commit():
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "none"


def table(head, found):
    lines = [head, "", "| load | broker | figures | goal |", "|---|---|---|---|"]
    for row in found:
        lines.append(f"| {row['load']} | {row['broker']} | {row['figures']} | {row['goal']} |")
    return "\n".join(lines)


def main():
    options = arguments()
    program = brokers.mosquitto_program()
    if program is None:
        skip("Mosquitto", "not installed (apt-get install mosquitto); the table has SondeDB alone")
    if not keys.available():
        skip("TLS, client certificates and JSON Web Tokens", "openssl is not installed (apt-get install openssl)")
    began = time.monotonic()
    load_before = os.getloadavg()[0]
    found = []
    with tempfile.TemporaryDirectory(prefix="bench-mqtt-keys-") as folder:
        made = keys.Keys(Path(folder), "bench") if keys.available() else None
        bench = rows.Bench(options.sonde, program, made, options.quick)
        for name in options.only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            for row in rows.ROWS[name](bench):
                print(f"  {row['broker']}, {row['load']}: {row['figures']}", file=sys.stderr, flush=True)
                found.append({"row": name, **row})
    others = f"Mosquitto {brokers.mosquitto_version(program)}" if program else "no Mosquitto"
    flags = [f"--only {','.join(options.only)}"] if set(options.only) != set(rows.ROWS) else []
    command = "make bench-mqtt" + (f' MQTT_ARGS="{" ".join(["--quick"] * options.quick + flags)}"' if options.quick or flags else "")
    busy = f"; load average {load_before:.1f} before the run: others used the machine, figures are preliminary" if load_before > 0.5 else ""
    head = f"{machine()}; {time.strftime('%Y-%m-%d')}, commit {commit()}, `{command}`, {others}{busy}."
    text = table(head, found)
    print(text)
    target = Path(os.environ.get("CARGO_TARGET_DIR", "."))
    path = options.json or target / "bench-mqtt.json"
    path.write_text(json.dumps({"head": head, "seconds": time.monotonic() - began, "rows": found}, indent=1) + "\n")
    print(f"{path}: every figure; {time.monotonic() - began:.0f} s", file=sys.stderr)
    if options.write:
        document = ROOT / "docs/benchmarks.md"
        before, rest = document.read_text().split(BEGIN)
        document.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
