"""Bytes a value of recordings of real sensors, in SondeDB's two profiles and in what the peers make of them.

A directory holds the files; what they are is told by their first line, so that `demo/data` works and larger collections
do. Rows go in as line protocol with the numbers as the file has them; a column without a point is one of integers.
"""

import io
import json
import re
import shutil
import time
import zipfile
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path

from systems import Failed

DAY = 1_704_067_200  # 2024-01-01T00:00:00Z, where recordings without a date, or with one before 2000, begin
BATCH = 10_000  # rows a request
NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?$")


@dataclass
class Recording:
    """Rows of (series, nanoseconds since the epoch, numbers as text), sorted by the first two."""

    name: str
    columns: list[str]
    rows: list[tuple[str, int, list[str]]] = field(default_factory=list)

    def __post_init__(self):
        self.rows.sort(key=lambda row: row[:2])
        texts = zip(*(values for _, _, values in self.rows))
        self.floats = [any(not text.lstrip("-").isdigit() for text in column) for column in texts]

    @property
    def values(self):
        return len(self.rows) * len(self.columns)

    def lines(self, table, rows):
        """Some of the rows as line protocol, in requests of `BATCH` rows."""
        ends = ["" if it else "i" for it in self.floats]
        for at in range(0, len(rows), BATCH):
            part = []
            for series, when, values in rows[at : at + BATCH]:
                fields = ",".join(f"{name}={text}{end}" for name, text, end in zip(self.columns, values, ends))
                part.append(f"{table},series={series} {fields} {when}")
            yield "\n".join(part).encode()

    def arrow(self):
        import pyarrow as pa

        numbers = [
            pa.array([(float if is_float else int)(text) for text in column])
            for is_float, column in zip(self.floats, zip(*(values for _, _, values in self.rows)))
        ]
        series = pa.array([row[0] for row in self.rows])
        when = pa.array([row[1] for row in self.rows], pa.timestamp("ns"))
        return pa.table([series, when, *numbers], ["series", "time", *self.columns])


def epoch(text, form):
    return int(datetime.strptime(text, form).replace(tzinfo=timezone.utc).timestamp()) * 10**9


def heating(text):
    """A day's log of a heating system after the other, each with its header; damaged lines are left out."""
    rows = []
    for line in text.splitlines():
        cells = line.split("\t")
        values = [cell.strip().replace(",", ".") for cell in cells[1:26]]
        if re.match(r"\d\d\.\d\d\.\d{4} ", line) and len(cells) >= 28 and all(map(NUMBER.match, values)):
            rows.append(("plant", epoch(cells[0].strip(), "%d.%m.%Y %H:%M"), values))
    return [f"c{at}" for at in range(1, 26)], rows


def motion(text):
    """Nine axes of an inertial unit; time in seconds from the start."""
    rows = []
    for line in text.splitlines()[1:]:
        when, *values = line.split(",")
        rows.append(("imu", DAY * 10**9 + int(Decimal(when) * 10**9), values))
    return [f"c{at}" for at in range(1, 10)], rows


def tracks(archive):
    """Positions of one vehicle a file, some of their digits the clock's jitter; the year, 1964, becomes 2024."""
    rows = []
    for member in sorted(archive.namelist()):
        if member.endswith(".csv"):
            for line in archive.read(member).decode().splitlines()[1:]:
                when, x, y, _ = line.split(",")
                second, _, fraction = when.partition(".")
                nanoseconds = epoch("2024" + second[4:], "%Y-%m-%d %H:%M:%S") + int(fraction.ljust(9, "0"))
                rows.append((Path(member).stem, nanoseconds, [x, y]))
    return ["x", "y"], rows


def single(text, series):
    """A time and a value a line."""
    rows = [line.split(",") for line in text.splitlines()[1:]]
    return [(series, epoch(when, "%Y-%m-%d %H:%M:%S"), [value]) for when, value in rows]


def content(path):
    data = path.read_bytes()
    if path.suffix == ".zst":
        import zstandard

        data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
    return data.decode("latin-1")


def read(directory):
    """The recordings below a directory; files that are none of ours are passed over."""
    found, singles = [], []
    for path in sorted(Path(directory).rglob("*")):
        name = path.name.split(".")[0]
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                first = next((it for it in archive.namelist() if it.endswith(".csv")), None)
                if first and archive.read(first).startswith(b"timestamp,x,y,"):
                    found.append(Recording(path.parent.name, *tracks(archive)))
        elif path.name.endswith((".csv", ".csv.zst")):
            text = content(path)
            if text.startswith("Datum & Uhrzeit"):
                found.append(Recording("thermal-solar", *heating(text)))
            elif text.startswith("Time (s),"):
                found.append(Recording("imu-fusion", *motion(text)))
            elif text.startswith("timestamp,value"):
                singles.append((path, single(text, name)))
    if singles:
        path = singles[0][0]
        name = path.name.split(".")[0] if len(singles) == 1 else path.parent.name
        found.append(Recording(name, ["value"], [row for _, rows in singles for row in rows]))
    return found


def in_sonde(make, folder, recording):
    """Both profiles, after COMPACT TABLE, by what the server says of its chunks."""
    types = zip(recording.columns, recording.floats)
    columns = ", ".join(f"{name} {'DOUBLE' if is_float else 'BIGINT'}" for name, is_float in types)
    found = {}
    with make(folder).start() as server:
        for table in ("fast", "dense"):
            made = f"CREATE TABLE {table} (time TIMESTAMP, series STRING TAG, {columns})"
            server.sql(f"{made} WITH (profile = '{table}')")
            # Two flushes of every other row: compaction rewrites what has at least two chunks a partition.
            for rows in (recording.rows[::2], recording.rows[1::2]):
                for body in recording.lines(table, rows):
                    server.ask("POST", server.write_path, body, {"Authorization": f"Bearer {server.token}"})
                server.sql(f"FLUSH TABLE {table}")
            server.sql(f"COMPACT TABLE {table}")
            chunks = f"system.chunks WHERE \"table\" = 'public.{table}'"
            rows, stored = json.loads(server.sql(f"SELECT sum(rows), sum(bytes) FROM {chunks}"))["rows"][0]
            # A point that a recording has twice is one row.
            if not rows or not 0.99 * len(recording.rows) <= rows <= len(recording.rows):
                raise Failed(f"SondeDB has {rows} rows of {recording.name}, and was sent {len(recording.rows)}")
            found[f"SondeDB, {table}"] = stored / recording.values
    return found


def in_victoria(make, folder, recording):
    """One server for each recording: what it says of its disk is of all of them."""
    with make(folder).start() as server:
        for body in recording.lines("recording", recording.rows):
            server.ask("POST", server.write_path, body)
        server.settle(merges=True)
        return {"VictoriaMetrics": server.stored() / recording.values}


def in_files(folder, recording):
    """DuckDB's file, and the smaller of two ways to write Parquet, each with what it takes."""
    import duckdb
    import pyarrow.parquet as parquet

    table = recording.arrow()
    path = folder / "recording.duckdb"
    with duckdb.connect(str(path)) as database:
        database.register("recording", table)
        database.execute("CREATE TABLE kept AS SELECT * FROM recording")
        database.execute("CHECKPOINT")
    plain, delta = folder / "plain.parquet", folder / "delta.parquet"
    parquet.write_table(table, plain, compression="zstd", row_group_size=1 << 20)
    floats = {it.name for it in table.schema if str(it.type) == "double"}
    encodings = {
        name: "BYTE_STREAM_SPLIT" if name in floats else "DELTA_BINARY_PACKED"
        for name in table.column_names
        if name != "series"
    }
    parquet.write_table(
        table, delta, compression="zstd", use_dictionary=["series"], column_encoding=encodings, row_group_size=1 << 20
    )
    smaller = min(plain.stat().st_size, delta.stat().st_size)
    return {"DuckDB": path.stat().st_size / recording.values, "Parquet, zstd": smaller / recording.values}


def measure_all(directory, most, work, ready, end, skips):
    """Bytes a value of recordings of at most `most` values: {recording: {"values": n, store: bytes}}."""
    if not Path(directory).is_dir():
        skips.add("recordings", f"{directory} is no directory")
        return {}
    recordings = [it for it in read(directory) if it.values <= most]
    if not recordings:
        skips.add("recordings", f"{directory} holds none that this knows")
    folder, found = work / "recordings", {}
    stores = {"DuckDB and Parquet": in_files}
    if "sonde" in ready:
        stores["SondeDB"] = lambda to, recording: in_sonde(ready["sonde"], to / "data", recording)
    if "victoria" in ready:
        stores["VictoriaMetrics"] = lambda to, recording: in_victoria(ready["victoria"], to / "data", recording)
    for recording in recordings:
        sizes = found[recording.name] = {"values": recording.values}
        for name, store in stores.items():
            if time.monotonic() > end:
                skips.add(f"{recording.name} in {name}", "the time is over")
                continue
            folder.mkdir()
            try:
                sizes |= store(folder, recording)
            except (Failed, OSError, ValueError, KeyError, IndexError) as error:
                skips.add(f"{recording.name} in {name}", f"failed: {error!r}")
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    return found
