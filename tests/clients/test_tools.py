"""`sonde inspect` and `sonde bench codecs`: what they say of our files, and of files that they have never seen."""

import json

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
    assert {"compacted_bits", "zstd3_bits", "parquet_zstd_bits"} <= set(found["mean"])
    text = tool("bench", "codecs", "--input", str(path))
    assert "meter:temperature" in text and "mean of 1 float columns" in text
    tool("bench", "codecs", "--input", str(tmp_path / "nothing.csv"), code=74)
