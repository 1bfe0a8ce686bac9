"""The cold tier: the same answers before and after by every door, late rows, overwrites, open files, kill -9, COPY and
export."""

import contextlib
import http.client
import random
import threading
from decimal import Decimal

import pytest
from support import CLIENT_SECONDS, TIME_S, unique, wait_until

DAY = 86_400
DAYS = ["2024-02-23", "2024-02-24", "2024-02-25"]
BEFORE = "2024-02-25T00:00:00Z"  # the last of the three days stays hot
DEVICES = 7
NOON = TIME_S * 10**9 + 123_456_789

QUERIES = [
    "SELECT * FROM {} ORDER BY time, device",
    "SELECT count(*), count(f), sum(f), min(i), max(u), min(s), max(time) FROM {}",
    "SELECT device, time_bucket('1 day', time), avg(f), first(i, time) FROM {} GROUP BY 1, 2 ORDER BY 1, 2",
    "SELECT time, f FROM {} WHERE device = 'd3' AND time >= '2024-02-24T00:00:00Z' ORDER BY time",
    "SELECT time, device FROM {} WHERE u > 9223372036854775807 OR NOT b ORDER BY time DESC, device LIMIT 3",
    "SELECT device FROM {} WHERE i IS NULL AND time < '2024-02-24T00:00:00Z' ORDER BY device",
    "SELECT device, last(s, time) FROM {} GROUP BY device ORDER BY device",
    "SELECT count(*) FROM {} a JOIN {} b ON a.device = b.device WHERE a.f > b.f",
]


def lines(table):
    """Rows of every type on three days, some with a part of the fields, with times to the nanosecond."""
    text = ""
    for day, n in ((day, n) for day in range(len(DAYS)) for n in range(DEVICES)):
        fields = f"f={day + n / 4},u={18446744073709551615 - n}u"
        if n % 2:
            fields += f',i={n - 3}i,b={"tf"[n % 4 > 1]},s="text {n}"'
        text += f"{table},device=d{n} {fields} {NOON + day * DAY * 10**9 + n}\n"
    return text


def make_table(server, rows=lines, name=None):
    table = name or unique("cold")
    columns = "device STRING TAG, f DOUBLE, i BIGINT, u BIGINT UNSIGNED, b BOOLEAN, s STRING"
    server.sql(f"CREATE TABLE {table} (time TIMESTAMP, {columns})")
    server.write(table, rows(table))
    return table


def cool(server, table, before=BEFORE):
    ((text,),) = server.sql(f"COOL TABLE {table} BEFORE '{before}'")
    return text


def tiers(server, table):
    """(day, rows) of each cold file of a table."""
    rows = server.sql(f"""SELECT day, rows FROM system.tiers WHERE "table" = 'public.{table}' ORDER BY day""")
    return [(day[:10], count) for day, count in rows]


def files(server, table):
    return sorted((server.data_dir / "cold" / "public" / table).rglob("*.parquet"))


def http_sql(server, query):
    answer = server.post_sql(query)
    assert answer.status == 200, answer
    return answer.json


def grpc_sql(server, query):
    from grpc_client import Sonde  # skips when grpcio is missing

    with Sonde(server) as client:
        return client.query(query)


def flight_sql(server, query):
    import flight  # skips when the driver is missing

    with flight.connect(server) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetch_arrow_table()


@pytest.mark.parametrize("door", [http_sql, grpc_sql, flight_sql])
def test_the_same_answers_before_and_after(server, door):
    table = make_table(server)
    queries = [query.replace("{}", table) for query in QUERIES]
    hot = [door(server, query) for query in queries]
    for before, moved in ((BEFORE, DAYS[:2]), ("2024-02-26T00:00:00Z", DAYS)):
        assert cool(server, table, before).startswith(f"{len(moved) % 3 or 1} days")  # those that were not cold yet
        assert tiers(server, table) == [(day, DEVICES) for day in moved]
        assert [door(server, query) for query in queries] == hot


def test_only_complete_days_that_end_before_the_time_are_moved(server):
    table = make_table(server)
    assert cool(server, table, "2024-02-24T23:59:59Z") == "1 days moved to the cold tier"
    assert tiers(server, table) == [(DAYS[0], DEVICES)]
    today = unique("today")
    server.write(today, [{"value": 1}])
    assert server.sql(f"COOL TABLE {today}") == [["0 days moved to the cold tier"]]
    assert cool(server, table, "2024-02-24T23:59:59Z") == "0 days moved to the cold tier"


def test_late_rows_of_a_cooled_day_are_there_and_move_with_it(server):
    table = make_table(server)
    cool(server, table)
    (before,) = files(server, table)[:1]
    # A late row, another one between two that are cold, and one single field of a row that is cold.
    at = NOON + 3
    server.write(
        table, f'{table},device=late f=1 {NOON}\n{table},device=d3 f=2 {at + 1}\n{table},device=d3 s="new" {at}\n'
    )
    query = (
        f"SELECT time, f, i, u, b, s FROM {table} WHERE device IN ('d3', 'late') AND time < '2024-02-24' ORDER BY time"
    )
    expected = [
        ["2024-02-23T14:53:20.123456789Z", 1.0, None, None, None, None],
        ["2024-02-23T14:53:20.123456792Z", 0.75, 0, 18446744073709551612, False, "new"],
        ["2024-02-23T14:53:20.123456793Z", 2.0, None, None, None, None],
    ]
    assert server.sql(query) == expected
    server.sql(f"FLUSH TABLE {table}")
    assert server.sql(query) == expected
    assert cool(server, table) == "1 days moved to the cold tier"
    assert tiers(server, table) == [(DAYS[0], DEVICES + 2), (DAYS[1], DEVICES)]
    assert server.sql(query) == expected
    wait_until(lambda: not before.exists(), "the file of the older generation to go")


def test_null_takes_the_place_of_a_cold_value_and_absent_does_not(server):
    table = make_table(server)
    cool(server, table)
    time = "2024-02-23T14:53:20.123456790Z"
    query = f"SELECT f, i, s FROM {table} WHERE time = '{time}'"
    assert server.sql(query) == [[0.25, -2, "text 1"]]
    server.write(table, [{"device": "d1", "f": 9, "i": None, "ts": NOON + 1}])  # in JSON, null is absent
    assert server.sql(query) == [[9.0, -2, "text 1"]]
    server.sql(f"INSERT INTO {table} (time, device, i, s) VALUES ('{time}', 'd1', 5, NULL)")
    for _ in range(2):
        assert server.sql(query) == [[9.0, 5, None]]
        cool(server, table)


def test_the_answers_survive_restarts(make_server):
    server = make_server()
    table = make_table(server)
    query = QUERIES[0].format(table)
    hot = server.sql(query)
    cool(server, table)
    server.write(table, f"{table},device=late f=1 {NOON}\n")
    mixed = server.sql(query)
    assert len(mixed) == len(hot) + 1
    for end in (server.stop, server.kill9):
        end()
        server.start()
        assert server.sql(query) == mixed
    assert len(server.sql(f"DROP TABLE {table}")) == 1
    assert server.post_sql(query).status == 400
    wait_until(lambda: not files(server, table), "the files of a dropped table to go")


def test_the_files_are_plain_parquet(server):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow as pa

    table = make_table(server)
    cool(server, table)
    found = files(server, table)
    assert [path.parent.name for path in found] == [f"day={day}" for day in DAYS[:2]]
    assert all(path.name.startswith("part-") for path in found)
    rows = parquet.read_table(found[0], partitioning=None)
    assert [(field.name, field.type, field.nullable) for field in rows.schema] == [
        ("time", pa.timestamp("us", tz="UTC"), False),
        ("time_ns", pa.int16(), False),
        ("device", pa.string(), True),
        ("f", pa.float64(), True),
        ("i", pa.int64(), True),
        ("u", pa.decimal128(20, 0), True),
        ("b", pa.bool_(), True),
        ("s", pa.string(), True),
    ]
    times = zip(rows["time"].cast(pa.int64()).to_pylist(), rows["time_ns"].to_pylist(), strict=True)
    assert [micros * 1000 + rest for micros, rest in times] == [NOON + n for n in range(DEVICES)]
    assert rows["device"].to_pylist() == [f"d{n}" for n in range(DEVICES)]
    assert rows["u"].to_pylist() == [Decimal(18446744073709551615 - n) for n in range(DEVICES)]
    assert rows["i"].to_pylist() == [n - 3 if n % 2 else None for n in range(DEVICES)]
    metadata = parquet.ParquetFile(found[0]).metadata
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert metadata.created_by.startswith("sonde")


def test_cold_url_names_another_directory(make_server, tmp_path):
    server = make_server(f"cold.url=file://{tmp_path}/elsewhere")
    table = make_table(server)
    hot = server.sql(QUERIES[0].format(table))
    cool(server, table)
    assert len(list((tmp_path / "elsewhere" / "public" / table).rglob("*.parquet"))) == 2
    assert files(server, table) == []
    assert server.sql(QUERIES[0].format(table)) == hot


# kill -9


def many(table):
    """Enough rows that cooling them takes a while."""
    return "".join(
        f"{table},device=d{n % 10} f={n / 8} {NOON + (n % 5) * DAY * 10**9 + n * 1000}\n" for n in range(20_000)
    )


def test_kill9_during_and_right_after_cool(make_server):
    server, moments = make_server(), random.Random(5)
    table = make_table(server, many)
    sums = f"SELECT time_bucket('1 day', time), count(*), sum(f), max(time) FROM {table} GROUP BY 1 ORDER BY 1"
    expected = server.sql(sums)
    cooled = "2024-03-01T00:00:00Z"
    for attempt in range(3):
        # Every day gets a new row, so that there is always something to move.
        row = "".join(f"{table},device=x{attempt} f=0 {NOON + day * DAY * 10**9 + attempt}\n" for day in range(5))
        server.write(table, row)
        expected = server.sql(sums)

        def moving():
            # The server is gone, as it should be.
            with contextlib.suppress(OSError, http.client.HTTPException):
                server.post_sql(f"COOL TABLE {table} BEFORE '{cooled}'")

        thread = threading.Thread(target=moving)
        thread.start()
        thread.join(moments.uniform(0.02, 0.4))  # waits for nothing: the moment of the kill
        server.kill9()
        thread.join(CLIENT_SECONDS)
        server.restart()
        assert server.sql(sums) == expected
    cool(server, table, cooled)
    server.kill9()
    server.restart()
    assert server.sql(sums) == expected
    listed = sorted(path for (path,) in server.sql("SELECT path FROM system.tiers"))
    assert len(listed) == 5
    there = {str(path.relative_to(server.data_dir / "cold")) for path in files(server, table)}
    assert set(listed) <= there
    print(f"{len(there) - len(listed)} files that no day has any more")
    assert server.sql(f"SELECT count(*) FROM {table}") == [[20_000 + 3 * 5]]


# COPY and export


@pytest.fixture(scope="module")
def copies(binary, tmp_path_factory):
    """A server that may copy below one directory, that directory, and a table with a cold part."""
    from support import servers

    allowed = tmp_path_factory.mktemp("allowed")
    with servers(binary, tmp_path_factory) as make:
        server = make(f"copy.locations={allowed}")
        table = make_table(server)
        cool(server, table)
        yield server, allowed, table


def read_back(path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow as pa

    found = parquet.read_table(path)
    assert found.schema.field("time").type == pa.timestamp("ns", tz="UTC")
    assert found.schema.field("u").type == pa.uint64()
    return [list(row.values()) for row in found.drop(["time"]).to_pylist()]


def test_copy_writes_a_file_below_its_location(copies):
    server, allowed, table = copies
    target = allowed / "rows.parquet"
    for location in (target, f"file://{target}"):
        (row,) = server.sql(f"COPY (SELECT * FROM {table} ORDER BY time, device) TO '{location}' STORED AS PARQUET")
        assert "21 rows" in row[0] and str(target) in row[0]
    assert read_back(target) == [row[1:] for row in server.sql(QUERIES[0].format(table))]
    assert [path.name for path in allowed.iterdir()] == ["rows.parquet"]


@pytest.mark.parametrize(
    "location", ["{}/../x.parquet", "{}x/x.parquet", "/etc/x.parquet", "x.parquet", "s3://bucket/x.parquet", "{}"]
)
def test_copy_does_not_leave_its_locations(copies, location):
    server, allowed, table = copies
    before = sorted(allowed.parent.rglob("*.parquet"))
    answer = server.post_sql(f"COPY (SELECT 1 AS one) TO '{location.format(allowed)}' STORED AS PARQUET")
    assert answer.status == 403
    assert "copy.locations" in answer.error
    assert sorted(allowed.parent.rglob("*.parquet")) == before


def test_a_copy_that_fails_leaves_nothing(copies):
    server, allowed, table = copies
    before = sorted(allowed.iterdir())
    for query in ("SELECT humidity FROM " + table, "SELECT 1 / 0", f"SELECT 10 / (i - i) FROM {table}"):
        assert server.post_sql(f"COPY ({query}) TO '{allowed}/bad.parquet' STORED AS PARQUET").status == 400, query
    assert sorted(allowed.iterdir()) == before


def test_sonde_export(copies, tmp_path):
    server, _, table = copies
    target = tmp_path / "export.parquet"
    said = server.cli("export", "--query", QUERIES[0].format(table), "--output", str(target))
    assert said == f"{target.stat().st_size} bytes written to {target}\n"
    assert read_back(target) == [row[1:] for row in server.sql(QUERIES[0].format(table))]
    for query, path, code in (("SELECT humidity FROM " + table, target, 1), ("SELECT 1", "/nowhere/x.parquet", 74)):
        before = target.read_bytes()
        assert server.cli("export", "--query", query, "--output", str(path), code=code).startswith("sonde: ")
        assert (sorted(path.name for path in tmp_path.iterdir()), target.read_bytes()) == (["export.parquet"], before)
