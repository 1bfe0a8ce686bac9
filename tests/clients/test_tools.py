"""`sonde inspect` and `sonde bench codecs`: what they say of our files, and of files that they have never seen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support import run


@pytest.fixture
def tool(binary):
    return lambda *arguments, code=0: run(binary, *arguments, code=code)


@pytest.fixture
def directory(make_server):
    """A data directory with a chunk, of a server that has stopped."""
    server = make_server()
    lines = [f"pump,device=d{i % 3} value={20 + i % 7 / 10},count={i}i {1_708_700_000_000_000_000 + i * 10**9}" for i in range(3000)]
    server.write("pump", "\n".join(lines) + "\n")
    server.sql("FLUSH TABLE pump")
    server.stop()
    return server.data_dir


def test_inspect_describes_every_file(tool, directory):
    found = {}
    for path in sorted(path for part in ("chunks", "manifest", "wal", "state") for path in (directory / part).rglob("*")):
        if path.is_file():
            description = json.loads(tool("inspect", str(path), "--json", "--verify"))
            found.setdefault(description["file"], []).append(description)
    assert set(found) == {"chunk", "manifest", "log segment", "checkpoint"}
    chunk = max(found["chunk"], key=lambda chunk: chunk["rows"])
    assert (chunk["rows"], chunk["series"]) == (3000, 3)
    values = {column["type"]: column for column in chunk["columns"]}
    assert values["DOUBLE"]["range"] == [20.0, 20.6] and values["DOUBLE"]["values"] == 3000
    assert values["BIGINT"]["range"] == [0, 2999] and values["time"]["bits_per_value"] < 8


READER = Path(__file__).parents[1] / "format" / "reader.py"


def test_a_reader_in_another_language_reads_the_same_chunk(tool, make_server):
    """The reader knows our format from its documents alone; `--dump` is what our own code makes of the file."""
    server = make_server()
    start = 1_708_700_000_000_000_000
    lines = []
    for i in range(40_000):
        fields = [f"value={20 + i % 7 / 10}", f"wave={(i % 400) ** 0.5 / 3}", f"count={i * i % 1000}i", f'state="{"on" if i % 9 else "off"}"']
        # Fields that are not there are absent, in runs and one by one.
        present = [field for k, field in enumerate(fields) if (i // 1000 + k) % 5 and (i % 11 or k != 2)]
        lines.append(f"pump,device=d{i % 3 if i % 50 else i % 700} {','.join(present)},running={i % 2000 < 900} {start + i * 10**9 + i % 13 * 1000}")
    for first in range(0, len(lines), 10_000):
        server.write("pump", "\n".join(lines[first : first + 10_000]) + "\n")
    server.sql("FLUSH TABLE pump")
    server.stop()
    rows = 0
    for chunk in sorted((server.data_dir / "chunks").rglob("*.chunk")):
        ours = [json.loads(line) for line in tool("inspect", str(chunk), "--dump").splitlines()]
        read = subprocess.run([sys.executable, str(READER), str(chunk)], capture_output=True, text=True, check=True, timeout=120)
        theirs = [json.loads(line) for line in read.stdout.splitlines()]
        assert ours == theirs
        rows += len(ours)
    assert rows == len(lines)


def test_inspect_dumps_every_file(tool, directory):
    seen = set()
    for path in sorted(path for part in ("chunks", "manifest", "wal", "state") for path in (directory / part).rglob("*")):
        if path.is_file():
            lines = [json.loads(line) for line in tool("inspect", str(path), "--dump").splitlines()]
            seen.update((path.suffix, key) for line in lines for key in line)
            seen.update((path.suffix, key) for line in lines for key in line.get("record", ()))
    assert {(".chunk", "time"), (".chunk", "series"), (".manifest", "edit"), (".wal", "rows"), (".wal", "catalog")} <= seen, seen
    tool("inspect", "--dump", str(directory / "VERSION"), code=65)


def test_inspect_says_what_is_wrong_in_one_line(tool, directory, tmp_path):
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(b"\xff\xd8\xff\xe0" + bytes(200))
    empty = tmp_path / "empty"
    empty.touch()
    chunk = next((directory / "chunks").rglob("*"))
    half = tmp_path / "half"
    half.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    flipped = bytearray(chunk.read_bytes())
    flipped[100] ^= 1
    damaged = tmp_path / "damaged"
    damaged.write_bytes(flipped)
    for path in (picture, empty, half, damaged):
        error = tool("inspect", str(path), code=65).strip()
        assert str(path) in error and "\n" not in error, error
    tool("inspect", str(tmp_path / "nothing"), code=74)


def test_doctor_finds_nothing_on_a_whole_directory_and_damage_elsewhere(tool, binary, directory):
    found = json.loads(tool("doctor", "--json", "--data-dir", str(directory)))
    by_subject = {finding["subject"]: finding for finding in found["findings"]}
    assert found["worst"] in ("good", "warning"), found
    assert {"layout", "manifest", "chunks", "checkpoint", "log", "disk", "limits", "clock", "exposure"} <= set(by_subject)
    assert "3000 rows" in by_subject["chunks"]["text"] and by_subject["server"]["text"] == "no server has the directory"
    chunk = next((directory / "chunks").rglob("*.chunk"))
    flipped = bytearray(chunk.read_bytes())
    flipped[100] ^= 1
    chunk.write_bytes(flipped)
    done = subprocess.run([binary, "doctor", "--data-dir", directory], capture_output=True, text=True, check=False, timeout=60)
    lines = done.stdout.splitlines()
    assert done.returncode == 65 and any(line.startswith("damage") and chunk.name in line for line in lines), done
    tool("doctor", "--data-dir", str(directory / "nothing"), code=74)


def test_doctor_repairs_a_stopped_directory_and_says_what_is_lost(tool, binary, directory, server):
    tool("doctor", "--repair", "--data-dir", str(server.data_dir), code=74)
    assert "there was no damage" in tool("doctor", "--repair", "--data-dir", str(directory))
    chunk = next((directory / "chunks").rglob("*.chunk"))
    damaged = bytearray(chunk.read_bytes())
    damaged[100] ^= 1
    chunk.write_bytes(damaged)
    repair = [binary, "doctor", "--repair", "--json", "--data-dir", directory]
    done = subprocess.run(repair, capture_output=True, text=True, check=False, timeout=60)
    found = json.loads(done.stdout)
    assert done.returncode == 3 and found["worst"] != "damage", done
    (lost,) = found["repair"]["losses"]
    assert lost["kind"] == "chunk" and lost["file"] == f"chunks/{chunk.name}" and lost["rows"] > 0 and lost["name"], lost
    place = Path(found["repair"]["quarantine"])
    assert (place / "chunks" / chunk.name).read_bytes() == damaged and not chunk.exists()
    assert json.loads((place / "report.json").read_text())["losses"] == [lost]
    assert "there was no damage" in tool("doctor", "--repair", "--data-dir", str(directory))


def test_doctor_may_look_at_a_running_server(tool, server):
    found = json.loads(tool("doctor", "--json", "--data-dir", str(server.data_dir)))
    assert found["worst"] != "damage", found
    assert {"severity": "good", "subject": "server", "text": "a server has the directory"} in found["findings"]


def test_bench_codecs_takes_a_csv_that_it_has_never_seen(tool, tmp_path):
    path = tmp_path / "meter.csv"
    rows = [f"2024-02-23T14:{i // 60 % 60:02}:{i % 60:02}Z,{20 + i * 7 % 50 / 10},{i * 3},{'on' if i % 9 else 'off'},\n" for i in range(3600)]
    path.write_text("time,temperature,count,state,empty\n" + "".join(rows) + "torn,li\n")
    found = json.loads(tool("bench", "codecs", "--input", str(path), "--json"))
    columns = {column["name"]: column for column in found["columns"]}
    kinds = {name: column["type"] for name, column in columns.items()}
    assert kinds == {"meter:time": "time", "meter:temperature": "float64", "meter:count": "int64", "meter:state": "string"}
    temperature = columns["meter:temperature"]
    assert temperature["values"] == 3600 and 0 < temperature["hot_bits"] < temperature["gorilla_bits"] < 64
    assert found["mean"]["hot_bits"] == temperature["hot_bits"] and found["mean"]["float_columns"] == 1
    assert {"compacted_bits", "zstd3_bits", "parquet_zstd_bits", "chimp128_bits", "pco_bits"} <= set(found["mean"])
    text = tool("bench", "codecs", "--input", str(path))
    assert "meter:temperature" in text and "mean of 1 float columns" in text
    tool("bench", "codecs", "--input", str(tmp_path / "nothing.csv"), code=74)
